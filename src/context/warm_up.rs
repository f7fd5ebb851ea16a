//! Compiles kernels before they are needed.

use std::fmt;
use std::time::Duration;

use web_time::Instant;

use super::Context;
use crate::device::DType;
use crate::error::Result;
use crate::kernels::{Access, Kernel};
use crate::recorder::Recorder;

/// What was compiled ahead, and how long each kernel took. Prints as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarmUp {
    /// In the order of compilation.
    pub kernels: Vec<WarmedKernel>,
}

/// One kernel that was compiled ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmedKernel {
    /// The kernel.
    pub kernel: Kernel,
    /// Time to make the pipeline: translation, and on most drivers all of the compilation. Near zero when it was there.
    pub compile: Duration,
    /// Time of a dispatch of no workgroups, in which some drivers (Mesa's software driver) compile.
    pub dispatch: Duration,
}

impl WarmUp {
    /// All of it together.
    pub fn total(&self) -> Duration {
        let one = |warmed: &WarmedKernel| warmed.compile + warmed.dispatch;
        self.kernels.iter().map(one).sum()
    }
}

impl Context {
    /// Compiles `kernels` now instead of at their first use; those that are compiled already cost nothing but an empty
    /// dispatch. May run on any thread: only who wants a kernel that is being compiled waits for it. On drivers that compile
    /// at the first dispatch, Mesa's software driver among them, other submissions wait while one kernel is compiled.
    /// Durations are 0 in browsers, which have no clock here.
    ///
    /// # Errors
    /// [`Error::Validation`](crate::Error::Validation) when the device refuses a shader; those of submitting.
    pub fn warm_up(&self, kernels: &[Kernel]) -> Result<WarmUp> {
        let mut report = WarmUp::default();
        if self.is_dry() {
            return Ok(report);
        }
        for &kernel in kernels {
            let (compiled, compile) = timed(|| self.pipeline(kernel));
            compiled?;
            let (dispatched, dispatch) = timed(|| self.dispatch_nothing(kernel));
            dispatched?;
            report.kernels.push(WarmedKernel {
                kernel,
                compile,
                dispatch,
            });
        }
        if !report.kernels.is_empty() {
            // That it cannot be kept is no reason to fail.
            self.save_compiled();
        }
        Ok(report)
    }

    /// As [`warm_up`](Self::warm_up), of all kernels that `record` records on the context it is given, which only counts
    /// ([`planner`](Self::planner)) and chooses as this one does. Models and tensors for the recording are made on that context;
    /// they take no memory of the device.
    ///
    /// ```no_run
    /// use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig};
    /// use dilated_attention::{AttentionShape, Context, DType, DilatedAttentionConfig, nn::Parameters};
    /// let context = Context::headless()?;
    /// let attention = DilatedAttentionConfig::new(8, 32, &[1024], &[1])?;
    /// let config = LongNetConfig::encoder(attention, 4, 1024);
    /// let report = context.warm_up_recording(|planner| {
    ///     let model = LongNet::new(planner, config.clone())?;
    ///     let mut recorder = planner.recorder("warm up");
    ///     let weights = Parameters::zeros(&mut recorder, model.parameters(), "weights")?;
    ///     let x = recorder.empty("x", &[1, 4096, 256], DType::F32)?;
    ///     let call = Call::new(AttentionShape::new(1, 4096)?);
    ///     model.forward(&mut recorder, &weights, Input::Embeddings(&x), &call, false)?;
    ///     Ok(recorder)
    /// })?;
    /// println!("{report}");
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of `record`, and as [`warm_up`](Self::warm_up).
    pub fn warm_up_recording(
        &self,
        record: impl FnOnce(&Self) -> Result<Recorder>,
    ) -> Result<WarmUp> {
        let recorder = record(&self.own_planner())?;
        self.warm_up(&recorder.kernels())
    }

    /// Runs no workgroup of `kernel`: enough for a driver to compile it, and no parameter is read.
    fn dispatch_nothing(&self, kernel: Kernel) -> Result<()> {
        let mut recorder = self.recorder("warm up");
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
                "{:<22} pipeline {:>9.1} ms, first dispatch {:>9.1} ms",
                warmed.kernel.name(),
                milliseconds(warmed.compile),
                milliseconds(warmed.dispatch)
            )?;
        }
        write!(f, "all {:.2} s", self.total().as_secs_f64())
    }
}
