//! What is LongViT's own in a run: patches go up, positions are added, features and logits are read.

use std::ops::Range;

use super::LongVit;
use super::images::{Images, Patches};
use crate::config::AttentionShape;
use crate::error::{Result, Token};
use crate::longnet::LongNet;
use crate::models::finite::{PartOf, ResultPart, by_item, by_token};
use crate::models::staged::{Outline, Stage, Stages, rows_of_an_upload};
use crate::tensor::Tensor;

/// What is wanted of a run besides features and logits, which are always returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LongVitOutputs {
    /// Patches in these states, 0 being the input of the first layer and the last what the encoder returns. Each is as large as
    /// the batch.
    pub states: Vec<usize>,
    /// Results need not be finite: returned as they are, instead of an error.
    pub allow_nonfinite: bool,
}

/// Results, on the host.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LongVitOutput {
    /// Number of images.
    pub batch: usize,
    /// Patches of each.
    pub tokens: usize,
    /// Mean and norm of all patches, (batch, width).
    pub features: Vec<f32>,
    /// The head of that, (batch, classes), if there is one.
    pub logits: Option<Vec<f32>>,
    /// The states that were asked for, in their own order: which, and the patches in it, (batch, tokens, width).
    pub states: Vec<(usize, Vec<f32>)>,
}

/// A batch of images.
#[derive(Debug)]
pub struct ImageStages<'a> {
    model: LongVit,
    patches: Patches<'a>,
    /// Patches that each of the first recordings uploads.
    chunks: Vec<Range<usize>>,
}

/// What is read back besides states.
#[derive(Clone, Copy, Debug)]
pub enum ImageReadout {
    /// Mean and norm of all patches.
    Features,
    /// The head of that.
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
