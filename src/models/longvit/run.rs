//! The work over one batch of images, recording by recording.

use std::ops::Range;

use super::LongVit;
use super::images::Images;
use crate::config::AttentionShape;
use crate::context::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::error::{Origin, Token};
use crate::longnet::Call;
use crate::models::finite;
use crate::models::recordings::{Recordings, UPLOAD_BYTES};
use crate::nn::Parameters;
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// What a run returns.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LongVitResult {
    /// Number of images.
    pub batch: usize,
    /// Patches of each.
    pub tokens: usize,
    /// Mean and norm of all patches, (batch, width).
    pub features: Vec<f32>,
    /// The head of that, (batch, classes), if there is one.
    pub logits: Option<Vec<f32>>,
    /// The states that were asked for, in their own order: which, 0 being the input of the first layer and the last what the
    /// encoder returns, and the patches in it, (batch, tokens, width).
    pub states: Vec<(usize, Vec<f32>)>,
}

impl LongVitResult {
    /// Whether all of it is finite.
    fn check_finite(&self, width: usize) -> Result<()> {
        let of_head = self.logits.iter().map(|values| ("logits", values));
        let of_states = self.states.iter().map(|(_, values)| ("states", values));
        let results = std::iter::once(("features", &self.features))
            .chain(of_head)
            .chain(of_states)
            .flat_map(|(name, values)| {
                // Of equal size for each image.
                let size = (values.len() / self.batch.max(1)).max(1);
                (0..)
                    .zip(values.chunks(size))
                    .map(move |(item, values)| (name, item, values))
            });
        let origin = || {
            let bad = self.states.iter().filter_map(|(state, values)| {
                let (first, tokens) = finite::rows(values, width)?;
                let (item, patch) = (first / self.tokens, first % self.tokens);
                let token = Some(Token::Patch(patch));
                Some(Origin {
                    item,
                    state: *state,
                    token,
                    tokens,
                })
            });
            bad.min_by_key(|origin| origin.state)
        };
        finite::check(results, origin, DType::F32)
    }
}

/// The work over one batch of images as recordings, to be submitted in their order by whatever means: at once, in slices, in
/// the encoders of an application's frames. Dropping it in between gives everything back.
#[derive(Debug)]
#[must_use = "a run does nothing until its recordings are submitted"]
pub struct LongVitRun<'a> {
    context: Context,
    model: &'a LongVit,
    weights: &'a Parameters,
    images: Images<'a>,
    states: Vec<usize>,
    call: Call,
    /// Patches that each of the first recordings uploads.
    uploads: Vec<Range<usize>>,
    next: usize,
    state: Option<Tensor>,
    of_states: Vec<(usize, Download<f32>)>,
    of_head: Option<(Download<f32>, Option<Download<f32>>)>,
}

impl<'a> LongVitRun<'a> {
    /// Checks everything; nothing is recorded or leased yet. `images` are (batch, channels, height, width), `size` is
    /// (batch, height, width), `states` are those of [`LongVitResult::states`] that are wanted.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights that do not fit; [`Error::InvalidShape`] for images that are not whole patches or not
    /// as large as `size` says, and states that there are not.
    pub fn new(
        context: &Context,
        model: &'a LongVit,
        weights: &'a Parameters,
        images: &'a [f32],
        size: [usize; 3],
        states: &[usize],
    ) -> Result<Self> {
        weights.expect_list("weights", &model.list)?;
        let images = Images::new(&model.config, images, size)?;
        let limit = model.config.num_layers + 1;
        if let Some(given) = states.iter().find(|state| **state >= limit) {
            return Err(Error::InvalidShape {
                what: "state",
                given: given.to_string(),
                need: format!("one of the {limit} there are, from 0 on"),
            });
        }
        let (rows, bytes) = (images.num_rows(), 4 * model.config.patch_elements());
        let step = (UPLOAD_BYTES / bytes).max(1);
        let uploads = (0..rows).step_by(step);
        Ok(Self {
            context: context.clone(),
            model,
            weights,
            states: states.to_vec(),
            call: images.call()?,
            images,
            uploads: uploads.map(|begin| begin..rows.min(begin + step)).collect(),
            next: 0,
            state: None,
            of_states: Vec::new(),
            of_head: None,
        })
    }

    /// Number of recordings of the whole run.
    pub fn num_recordings(&self) -> usize {
        self.count()
    }

    /// Number of recordings handed out so far.
    pub fn num_recorded(&self) -> usize {
        self.handed_out()
    }

    /// The fraction of the run's operations that is done, from 0 to 1. Recordings before the one handed out last count as
    /// done; of the last, the fraction `within` (0 to 1) is done. For progress bars.
    pub fn fraction_done(&self, within: f64) -> f64 {
        self.fraction(within)
    }

    /// The next recording, or `None` after the last: each uploads some patches or runs one layer.
    ///
    /// # Errors
    /// Those of leasing and recording. The run can be continued when the cause is gone.
    pub fn next_recording(&mut self) -> Result<Option<Recorder>> {
        self.next()
    }

    /// The results, when all recordings were submitted.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when recordings are left, [`Error::NonFiniteResult`] for infinite values and NaN, and those of
    /// [`Download`].
    pub async fn finish(self) -> Result<LongVitResult> {
        let Some((features, logits)) = self.of_head else {
            return Err(Error::InvalidShape {
                what: "number of recordings submitted",
                given: self.next.to_string(),
                need: format!("all {}", self.count()),
            });
        };
        let mut states = Vec::new();
        for (state, download) in self.of_states {
            states.push((state, download.await?));
        }
        let result = LongVitResult {
            batch: self.images.batch(),
            tokens: self.images.tokens(),
            features: features.await?,
            logits: match logits {
                Some(logits) => Some(logits.await?),
                None => None,
            },
            states,
        };
        result.check_finite(self.model.config.width())?;
        Ok(result)
    }

    pub(super) fn shape(&self) -> &AttentionShape {
        &self.call.shape
    }

    /// The state that the next recording starts from.
    fn current(&self) -> Result<Tensor> {
        self.state.clone().ok_or(Error::InvalidShape {
            what: "state of the run",
            given: "none".to_owned(),
            need: "that of the recording before".to_owned(),
        })
    }

    /// Nothing of the run changes unless all of the chunk was recorded.
    fn upload(&mut self, rows: Range<usize>) -> Result<Recorder> {
        let mut recorder = self.context.recorder("patches");
        let (model, images) = (self.model, &self.images);
        let x = match &self.state {
            Some(x) => x.clone(),
            None => model.empty_state(&mut recorder, images)?,
        };
        let is_last = rows.end == images.num_rows();
        model.embed_patches(&mut recorder, self.weights, images, rows, &x)?;
        let mut download = None;
        if is_last {
            model.add_positions(&mut recorder, self.weights, images, &x)?;
            download = self.keep(&mut recorder, 0, &x)?;
        }
        self.of_states.extend(download);
        self.state = Some(x);
        Ok(recorder)
    }

    /// Nothing of the run changes unless all of the layer was recorded.
    fn layer(&mut self, index: usize) -> Result<Recorder> {
        let mut recorder = self.context.recorder("LongViT layer");
        let (x, encoder) = (self.current()?, &self.model.encoder);
        let (x, _) = encoder.layer(&mut recorder, self.weights, &self.call, index, x, None)?;
        let download = self.keep(&mut recorder, index + 1, &x)?;
        self.of_states.extend(download);
        self.state = Some(x);
        Ok(recorder)
    }

    /// The download of a state, if it is wanted.
    fn keep(
        &self,
        recorder: &mut Recorder,
        index: usize,
        state: &Tensor,
    ) -> Result<Option<(usize, Download<f32>)>> {
        match self.states.contains(&index) {
            true => Ok(Some((index, recorder.download(state)?))),
            false => Ok(None),
        }
    }

    fn head(&mut self) -> Result<Recorder> {
        let mut recorder = self.context.recorder("LongViT head");
        let x = self.current()?;
        let (features, logits) =
            self.model
                .classify(&mut recorder, self.weights, &self.images, &x)?;
        let features = recorder.download(&features)?;
        let logits = logits.as_ref().map(|logits| recorder.download(logits));
        self.of_head = Some((features, logits.transpose()?));
        self.state = None;
        Ok(recorder)
    }
}

impl Recordings for LongVitRun<'_> {
    fn next(&mut self) -> Result<Option<Recorder>> {
        let (num_uploads, num_layers) = (self.uploads.len(), self.model.config.num_layers);
        let recorder = match self.next {
            step if step < num_uploads => self.upload(self.uploads[step].clone())?,
            step if step < num_uploads + num_layers => self.layer(step - num_uploads)?,
            step if step == num_uploads + num_layers => self.head()?,
            _ => return Ok(None),
        };
        self.next += 1;
        Ok(Some(recorder))
    }

    fn count(&self) -> usize {
        self.uploads.len() + self.model.config.num_layers + 1
    }

    fn handed_out(&self) -> usize {
        self.next
    }

    fn operations(&self, step: usize) -> f64 {
        let config = &self.model.config;
        let width = config.width() as f64;
        let rows = self.images.num_rows() as f64;
        match self.uploads.get(step) {
            Some(rows) => rows.len() as f64 * config.patch_elements() as f64 * width,
            None if step + 1 < self.count() => {
                rows * width * (4.0 * width + 2.0 * config.ffn_dim as f64)
            }
            None => rows * width,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LongVitResult;

    #[test]
    fn a_result_that_is_not_finite_names_image_and_patch() {
        let mut result = LongVitResult {
            batch: 2,
            tokens: 3,
            features: vec![0.0; 2 * 2],
            logits: Some(vec![0.0; 2 * 5]),
            states: vec![(1, vec![0.0; 2 * 3 * 2])],
        };
        result.check_finite(2).expect("finite");
        result.features[2] = f32::NAN;
        let told = result.check_finite(2).expect_err("told").to_string();
        assert!(
            told.starts_with("1 of the 2 values of features of item 1 are not finite:"),
            "{told}"
        );
        // Patches 1 and 2 of the second image.
        result.states[0].1[4 * 2..].fill(f32::INFINITY);
        let told = result.check_finite(2).expect_err("told").to_string();
        let place = "patch 1 and 1 more tokens in the output of layer 0 (item 1 of the batch)";
        assert!(told.contains(place), "{told}");
    }
}
