//! Warm-up: compiles kernels before they are needed.

use std::fmt;
use std::time::Duration;

use web_time::Instant;

use super::Context;
use crate::device::DType;
use crate::error::Result;
use crate::kernels::{Access, Kernel};

/// Report of a warm-up: which kernels were compiled, and how long each took. Prints as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarmUp {
    /// The kernels, in the order of compilation.
    kernels: Vec<WarmedKernel>,
}

/// A kernel that was compiled in a warm-up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WarmedKernel {
    name: &'static str,
    /// Time to make the pipeline: translation and, on most drivers, compilation. Near zero for a kernel that was compiled before.
    compile: Duration,
    /// Time of a dispatch without workgroups. Some drivers compile in it (Mesa's software driver).
    dispatch: Duration,
}

impl WarmUp {
    /// Number of kernels; those that were compiled before count, too.
    pub fn num_kernels(&self) -> usize {
        self.kernels.len()
    }

    /// Names of the kernels, in the order of compilation.
    pub fn kernel_names(&self) -> impl Iterator<Item = &'static str> {
        self.kernels.iter().map(|warmed| warmed.name)
    }

    /// Time of the whole warm-up.
    pub fn total(&self) -> Duration {
        let one = |warmed: &WarmedKernel| warmed.compile + warmed.dispatch;
        self.kernels.iter().map(one).sum()
    }
}

/// Compiles each of `kernels` and dispatches it without workgroups.
pub(crate) fn compile(context: &Context, kernels: &[Kernel]) -> Result<WarmUp> {
    let mut report = WarmUp::default();
    if context.is_dry() {
        return Ok(report);
    }
    for &kernel in kernels {
        let (compiled, compile) = timed(|| context.pipeline(kernel));
        compiled?;
        let (dispatched, dispatch) = timed(|| dispatch_nothing(context, kernel));
        dispatched?;
        report.kernels.push(WarmedKernel {
            name: kernel.name(),
            compile,
            dispatch,
        });
    }
    if !report.kernels.is_empty() {
        // If the file cannot be written, later processes compile again: not an error.
        context.save_compiled();
    }
    Ok(report)
}

/// Dispatches `kernel` without workgroups. This makes the driver compile it, and no parameter is read.
fn dispatch_nothing(context: &Context, kernel: Kernel) -> Result<()> {
    let mut recorder = context.recorder("warm up");
    // Two buffers, because wgpu refuses to bind one for reading and writing, even in an empty dispatch.
    let read = recorder.zeros("warm up", &[BINDING_BYTES / 4], DType::F32)?;
    let written = recorder.empty("warm up", &[BINDING_BYTES / 4], DType::F32)?;
    let bindings: Vec<_> = kernel
        .bindings()
        .iter()
        .map(|access| match access {
            Access::Read => (&read, read.whole()),
            Access::ReadWrite => (&written, written.whole()),
        })
        .collect();
    let params = vec![0; kernel.params_bytes() as usize];
    recorder.dispatch_bytes(kernel, &bindings, &params, [0, 0])?;
    recorder.submit()?.wait()
}

/// Bytes of a binding that is large enough for every shader, which needs one element of its array.
const BINDING_BYTES: usize = 256;

fn timed<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let made = call();
    (made, begin.elapsed())
}

impl fmt::Display for WarmUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warmed in &self.kernels {
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            writeln!(
                f,
                "{:<32} pipeline {:>9.1} ms, first dispatch {:>9.1} ms",
                warmed.name,
                milliseconds(warmed.compile),
                milliseconds(warmed.dispatch)
            )?;
        }
        write!(f, "all {:.2} s", self.total().as_secs_f64())
    }
}
