//! Stages of LongViT: uploads of patches, position vectors, features and logits.

use std::ops::Range;

use super::LongVit;
use super::images::{Images, Patches};
use crate::config::AttentionShape;
use crate::error::{Result, Token};
use crate::longnet::LongNet;
use crate::models::finite::{PartOf, ResultPart, by_item, by_token};
use crate::models::staged::{Outline, Stage, Stages, rows_of_an_upload};
use crate::tensor::Tensor;

/// Optional outputs of a run. Features and logits are always returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LongVitOutputs {
    /// States whose patches are returned: 0 is the input of the first layer, n the output of n layers. Each is as large as the batch.
    pub states: Vec<usize>,
    /// Whether results may be infinite or NaN. If so, they are returned as they are, instead of an error.
    pub allow_nonfinite: bool,
}

/// Results of a run, on the host.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LongVitOutput {
    /// Number of images.
    pub batch: usize,
    /// Patches of each image.
    pub tokens: usize,
    /// Features of each image, (batch, width).
    pub features: Vec<f32>,
    /// Logits, (batch, classes); `None` for a model without a head.
    pub logits: Option<Vec<f32>>,
    /// The requested states in increasing order, each with its number and its patches, (batch, tokens, width).
    pub states: Vec<(usize, Vec<f32>)>,
}

/// The run over a batch of images.
#[derive(Debug)]
pub struct ImageStages<'a> {
    model: LongVit,
    patches: Patches<'a>,
    /// Patches that are uploaded by each of the first recordings.
    chunks: Vec<Range<usize>>,
}

/// Downloads besides states.
#[derive(Clone, Copy, Debug)]
pub enum ImageReadout {
    /// Features of each image.
    Features,
    /// Logits of each image.
    Logits,
}

impl<'a> ImageStages<'a> {
    pub(super) fn new(
        model: &LongVit,
        images: Images<'a>,
        outputs: &LongVitOutputs,
    ) -> Result<(Outline, Self)> {
        let elements = model.config.patch_elements();
        let patches = Patches::new(&model.config, images)?;
        let (rows, step) = (patches.num_rows(), rows_of_an_upload(elements));
        let chunks = (0..rows).step_by(step);
        let chunks: Vec<_> = chunks.map(|begin| begin..rows.min(begin + step)).collect();
        let operations =
            |rows: &Range<usize>| (rows.len() * elements) as u64 * model.config.width() as u64;
        let outline = Outline {
            shape: patches.shape()?,
            part_operations: chunks.iter().map(operations).collect(),
            states: outputs.states.clone(),
            allow_nonfinite: outputs.allow_nonfinite,
        };
        let stages = Self {
            model: model.clone(),
            patches,
            chunks,
        };
        Ok((outline, stages))
    }
}

impl Stages for ImageStages<'_> {
    type Output = LongVitOutput;
    type Carried = ();
    type Readout = ImageReadout;

    const LABELS: [&'static str; 3] = ["patches", "LongViT layer", "LongViT head"];

    fn encoder(&self) -> &LongNet {
        &self.model.encoder
    }

    fn embed(
        &self,
        stage: &mut Stage<'_, Self>,
        state: Option<&Tensor>,
        part: usize,
    ) -> Result<Tensor> {
        let (recorder, weights) = (&mut stage.recorder, stage.weights);
        let (model, patches) = (&self.model, &self.patches);
        let x = match state {
            Some(x) => x.clone(),
            None => model.empty_state(recorder, patches)?,
        };
        let rows = self.chunks[part].clone();
        model.embed_patches(recorder, weights, patches, rows, &x)?;
        if part + 1 == self.chunks.len() {
            model.add_positions(recorder, weights, patches, &x)?;
        }
        Ok(x)
    }

    fn read_out(&self, stage: &mut Stage<'_, Self>, state: &Tensor) -> Result<()> {
        let (recorder, weights) = (&mut stage.recorder, stage.weights);
        let (features, logits) = self
            .model
            .classify(recorder, weights, &self.patches, state)?;
        stage.read(ImageReadout::Features, &features)?;
        match &logits {
            Some(logits) => stage.read(ImageReadout::Logits, logits),
            None => Ok(()),
        }
    }

    fn output(
        &self,
        states: Vec<(usize, Vec<f32>)>,
        readouts: Vec<(ImageReadout, Vec<f32>)>,
    ) -> LongVitOutput {
        let mut output = LongVitOutput {
            batch: self.patches.batch(),
            tokens: self.patches.tokens(),
            features: Vec::new(),
            logits: None,
            states,
        };
        for (readout, values) in readouts {
            match readout {
                ImageReadout::Features => output.features = values,
                ImageReadout::Logits => output.logits = Some(values),
            }
        }
        output
    }

    fn results<'o>(
        &self,
        output: &'o LongVitOutput,
        shape: &AttentionShape,
    ) -> Vec<ResultPart<'o>> {
        let by_image =
            |result, values: &'o [f32]| by_item(result, PartOf::End, values, output.batch);
        let mut results: Vec<_> = by_image("features", &output.features).collect();
        if let Some(logits) = &output.logits {
            results.extend(by_image("logits", logits));
        }
        for (state, values) in &output.states {
            let of = PartOf::Tokens(*state);
            results.extend(by_token("states", of, values, shape));
        }
        results
    }

    fn token(row: usize) -> Token {
        Token::Patch(row)
    }
}
