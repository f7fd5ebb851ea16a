//! The run of a model over one input, recording by recording.

use std::fmt;

use super::activations::ActivationDownload;
use super::finite::{self, PartOf};
use super::staged::{Outline, Stage, StagedModel, Stages, expect_below};
use crate::context::Context;
use crate::error::{Error, Origin, Result};
use crate::longnet::{Call, LongNetConfig};
use crate::nn::Parameters;
use crate::recorder::{Progress, Recorder, SliceOptions};
use crate::tensor::Tensor;

/// A run of a model over one input: a sequence of recordings, to be submitted in their order. They may be submitted in slices, at
/// once, or through an application's encoders. Made by [`StagedModel::run`].
///
/// [`in_slices`](Self::in_slices) and [`blocking`](Self::blocking) submit all of them. An application that does it itself:
///
/// ```no_run
/// # use dilated_attention::models::ModelRun;
/// # use dilated_attention::models::gigapath::{SlideEncoder, SlideOutput};
/// # use dilated_attention::{Result, SliceOptions};
/// # async fn encode(mut run: ModelRun<'_, SlideEncoder>, is_cancelled: impl Fn() -> bool) -> Result<Option<SlideOutput>> {
/// while let Some(recorder) = run.next_recording()? {
///     let mut sliced = recorder.submit_in_slices(SliceOptions::default());
///     while !sliced.is_done() {
///         if is_cancelled() {
///             return Ok(None);
///         }
///         let within = sliced.step().await?;
///         println!("{:.0} %", 100.0 * run.progress(within).fraction());
///     }
/// }
/// run.finish().await.map(Some)
/// # }
/// ```
///
/// On the device, the run keeps only the last state of the model ([`state`](Self::state)), and requested outputs until they are on the host. Dropping the
/// run at any time gives its buffers back. It holds the weights and borrows the input.
#[must_use = "a run does nothing until its recordings are submitted"]
pub struct ModelRun<'a, M: StagedModel> {
    context: Context,
    weights: Parameters,
    outline: Outline,
    stages: M::Stages<'a>,
    call: Call,
    next: usize,
    state: Option<Tensor>,
    carried: <M::Stages<'a> as Stages>::Carried,
    states: Vec<(usize, ActivationDownload)>,
    readouts: Vec<(<M::Stages<'a> as Stages>::Readout, ActivationDownload)>,
}

impl<'a, M: StagedModel> ModelRun<'a, M> {
    /// A run over an input whose values are not checked.
    pub(super) fn unchecked(
        context: &Context,
        model: &M,
        weights: &Parameters,
        input: M::Input<'a>,
        outputs: &M::Outputs,
    ) -> Result<Self> {
        weights.expect_list("weights", model.parameters())?;
        let (outline, stages) = model.stages(input, outputs)?;
        let num_states = stages.encoder().config().num_layers() + 1;
        expect_below("state", &outline.states, num_states)?;
        Ok(Self {
            context: context.clone(),
            weights: weights.clone(),
            call: Call::new(outline.shape.clone()),
            outline,
            stages,
            next: 0,
            state: None,
            carried: Default::default(),
            states: Vec::new(),
            readouts: Vec::new(),
        })
    }

    pub(super) fn check_values(&self) -> Result<()> {
        match self.outline.allow_nonfinite {
            true => Ok(()),
            false => self.stages.check_values(),
        }
    }

    pub(super) fn outline(&self) -> &Outline {
        &self.outline
    }

    pub(super) fn encoder_config(&self) -> &LongNetConfig {
        self.stages.encoder().config()
    }

    fn width(&self) -> usize {
        self.encoder_config().attention().embed_dim()
    }

    /// Number of recordings of the whole run.
    pub fn num_recordings(&self) -> usize {
        self.outline.part_operations.len() + self.encoder_config().num_layers() + 1
    }

    /// Number of recordings handed out so far.
    pub fn num_recorded(&self) -> usize {
        self.next
    }

    /// The state that the recordings handed out so far leave on the device, with its number: 0 is the input of the first layer, n
    /// the output of n layers, each (batch, tokens, width). A clone of it stays as it is while the run goes on, for the
    /// application's own shaders (see [`Tensor::parts`]); plans do not count clones. `None` before the whole input is
    /// embedded, and after the last recording.
    pub fn state(&self) -> Option<(usize, &Tensor)> {
        let index = self.next.checked_sub(self.outline.part_operations.len())?;
        Some((index, self.state.as_ref()?))
    }

    /// Progress of the run, counted in (approximate) multiplications of its matrix products. It assumes that all recordings handed
    /// out so far are done, except the last one, whose progress is `within`.
    pub fn progress(&self, within: Progress) -> Progress {
        let operations = |end: usize| -> f64 { (0..end).map(|step| self.operations(step)).sum() };
        let done = self.next.checked_sub(1).map_or(0.0, |last| {
            operations(last) + within.fraction() * self.operations(last)
        });
        Progress {
            done: done as u64,
            total: operations(self.num_recordings()) as u64,
        }
    }

    /// Approximate multiplications of the matrix products of recording number `step`.
    fn operations(&self, step: usize) -> f64 {
        if let Some(operations) = self.outline.part_operations.get(step) {
            return *operations as f64;
        }
        let shape = &self.call.shape;
        let rows = shape.batch() as f64 * shape.seq_len() as f64;
        let width = self.width() as f64;
        match step + 1 < self.num_recordings() {
            true => rows * width * (4.0 * width + 2.0 * self.encoder_config().ffn_dim as f64),
            false => rows * width,
        }
    }

    /// The next recording, or `None` after the last one. A recording embeds a part of the input, computes one layer, or reads the results.
    ///
    /// # Errors
    /// The errors of leasing and recording. Once the cause is removed, the run can go on with another call.
    pub fn next_recording(&mut self) -> Result<Option<Recorder>> {
        let (num_parts, step) = (self.outline.part_operations.len(), self.next);
        let num_layers = self.encoder_config().num_layers();
        if step > num_parts + num_layers {
            return Ok(None);
        }
        let [of_part, of_layer, of_end] = M::Stages::LABELS;
        let label = match step {
            step if step < num_parts => of_part,
            step if step < num_parts + num_layers => of_layer,
            _ => of_end,
        };
        let recorder = self.context.recorder(label);
        let mut stage = Stage::new(recorder, &self.weights, self.carried.clone());
        let (mut state, mut made) = (None, None);
        match step.checked_sub(num_parts) {
            None => {
                state = Some(self.stages.embed(&mut stage, self.state.as_ref(), step)?);
                made = (step + 1 == num_parts).then_some(0);
            }
            Some(layer) if layer < num_layers => {
                let before = self.current()?;
                state = Some(self.stages.layer(&mut stage, &self.call, layer, before)?);
                made = Some(layer + 1);
            }
            Some(_) => self.stages.read_out(&mut stage, &self.current()?)?,
        }
        let mut download = None;
        if let (Some(index), Some(state)) = (made, &state) {
            self.stages.read_state(&mut stage, index, state)?;
            if self.outline.states.contains(&index) {
                let values = ActivationDownload::start(&mut stage.recorder, state)?;
                download = Some((index, values));
            }
        }
        // The whole stage was recorded, so its results count now.
        let Stage {
            recorder,
            carried,
            readouts,
            ..
        } = stage;
        self.next += 1;
        self.state = state;
        self.carried = carried;
        self.states.extend(download);
        self.readouts.extend(readouts);
        Ok(Some(recorder))
    }

    /// The state that the next recording starts from.
    fn current(&self) -> Result<Tensor> {
        self.state.clone().ok_or(Error::OutOfOrder {
            call: "ModelRun::next_recording",
            state: "no part of the input was embedded".to_owned(),
            next_step: "make a new run",
        })
    }

    /// Submits the remaining recordings in short slices, so that other users of the device need not wait long, and returns the
    /// results. `progress` is called after each slice, see [`progress`](Self::progress). Nothing blocks, and any executor will do.
    /// If the future is dropped, the work ends after the current slice.
    ///
    /// # Errors
    /// As [`next_recording`](Self::next_recording), [`SlicedSubmission::advance`](crate::SlicedSubmission::advance) and
    /// [`finish`](Self::finish).
    pub async fn in_slices(
        mut self,
        slices: SliceOptions,
        mut progress: impl FnMut(Progress),
    ) -> Result<M::Output> {
        while let Some(recorder) = self.next_recording()? {
            recorder
                .submit_in_slices(slices)
                .run(|within| progress(self.progress(within)))
                .await?;
        }
        self.finish().await
    }

    /// Submits the remaining recordings at once and blocks until the results are there (not in browsers). At most two recordings
    /// hold staging memory at a time.
    ///
    /// # Errors
    /// As [`next_recording`](Self::next_recording), [`Recorder::submit`] and [`finish`](Self::finish).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn blocking(mut self) -> Result<M::Output> {
        let mut before: Option<crate::pool_encoder::Submission> = None;
        while let Some(recorder) = self.next_recording()? {
            if let Some(before) = before.replace(recorder.submit()?) {
                before.wait()?;
            }
        }
        pollster::block_on(self.finish())
    }

    /// Waits for the results. All recordings must have been submitted.
    ///
    /// # Errors
    /// [`Error::OutOfOrder`] when recordings are left, [`Error::NonFiniteResult`] for infinity or NaN in the results unless the
    /// outputs allow them, and the errors of [`Download`](crate::Download).
    pub async fn finish(self) -> Result<M::Output> {
        if self.next < self.num_recordings() {
            return Err(Error::OutOfOrder {
                call: "ModelRun::finish",
                state: format!(
                    "{} of {} recordings were handed out",
                    self.next,
                    self.num_recordings()
                ),
                next_step: "submit all that next_recording returns before",
            });
        }
        let (width, activations) = (self.width(), self.encoder_config().activations);
        let (mut states, mut readouts) = (Vec::new(), Vec::new());
        for (state, download) in self.states {
            states.push((state, download.values().await?));
        }
        for (readout, download) in self.readouts {
            readouts.push((readout, download.values().await?));
        }
        let output = self.stages.output(states, readouts);
        if !self.outline.allow_nonfinite {
            let results = self.stages.results(&output, &self.call.shape);
            finite::check(&results, width, M::Stages::token, activations)?;
        }
        Ok(output)
    }

    /// Finds where values that are not finite arise: runs state by state, up to the first state that has such values. `None` if no
    /// state has. Call this on a new run over the same input, after another run has returned
    /// [`NonFiniteResult`](super::NonFiniteResult). Work is submitted in slices; one state at a time is on the host.
    ///
    /// # Errors
    /// As [`in_slices`](Self::in_slices), except for results that are not finite; [`Error::OutOfOrder`] for a run that has begun.
    pub async fn find_nonfinite(mut self, slices: SliceOptions) -> Result<Option<Origin>> {
        if self.next > 0 {
            return Err(Error::OutOfOrder {
                call: "ModelRun::find_nonfinite",
                state: format!("{} recordings were handed out", self.next),
                next_step: "call it on a new run over the same input",
            });
        }
        self.outline.states = (0..=self.encoder_config().num_layers()).collect();
        while let Some(recorder) = self.next_recording()? {
            recorder.submit_in_slices(slices).run(|_| ()).await?;
            for (state, download) in std::mem::take(&mut self.states) {
                let values = download.values().await?;
                let of = PartOf::Tokens(state);
                let parts = finite::by_token("states", of, &values, &self.call.shape);
                let origin = finite::origin(parts, self.width(), M::Stages::token);
                if origin.is_some() {
                    return Ok(origin);
                }
            }
        }
        Ok(None)
    }
}

impl<M: StagedModel> fmt::Debug for ModelRun<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelRun")
            .field("call", &self.call)
            .field("num_recorded", &self.next)
            .field("num_recordings", &self.num_recordings())
            .finish_non_exhaustive()
    }
}
