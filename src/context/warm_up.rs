//! Compiles kernels before they are needed.

use std::fmt;
use std::time::Duration;

use web_time::Instant;

use super::Context;
use crate::device::DType;
use crate::error::Result;
use crate::kernels::{Access, Kernel};

/// What was compiled ahead, and how long each kernel took. Prints as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarmUp {
    /// In the order of compilation.
    kernels: Vec<WarmedKernel>,
}

/// One kernel that was compiled ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WarmedKernel {
    name: &'static str,
    /// Time to make the pipeline: translation, and on most drivers all of the compilation. Near zero when it was there.
    compile: Duration,
    /// Time of a dispatch of no workgroups, in which some drivers (Mesa's software driver) compile.
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

    /// Time that all of them took together.
    pub fn total(&self) -> Duration {
        let one = |warmed: &WarmedKernel| warmed.compile + warmed.dispatch;
        self.kernels.iter().map(one).sum()
    }
}

/// Compiles `kernels`, and runs no workgroup of each.
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
        // That it cannot be kept is no reason to fail.
        context.save_compiled();
    }
    Ok(report)
}

/// Runs no workgroup of `kernel`: enough for a driver to compile it, and no parameter is read.
fn dispatch_nothing(context: &Context, kernel: Kernel) -> Result<()> {
    let mut recorder = context.recorder("warm up");
    // What is read and what is written must not be one buffer, even in a dispatch of nothing.
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

/// Bytes of a binding that no shader finds too small: one element of each array.
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
