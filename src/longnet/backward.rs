//! The backward of a whole model.

use std::sync::Arc;

use super::forward::{Turns, pass};
use super::{Call, Input, LongNet};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::nn::{Block, BlockSaved, ParameterList, Parameters, Pass, StepSeed};
use crate::ops::{Dropout, ScaledAdd, TokenIds, embedding_backward};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Which activations of a forward are not kept, but computed again in the backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Recompute {
    /// Outputs of layer norms, and intermediate activations of feed-forward networks.
    #[default]
    Insides,
    /// All activations except the inputs of layers. This takes a third more work, and keeps one tensor of activations for each
    /// layer instead of six.
    Layers,
}

/// Tensors of a forward that its backward needs.
#[derive(Clone, Debug)]
pub struct Saved {
    list: Arc<ParameterList>,
    call: Call,
    turns: Turns,
    step_seed: Option<u64>,
    tokens: Option<TokenIds>,
    layers: Vec<LayerSaved>,
    /// The input of the final norm.
    last: Tensor,
    embedded: Option<Tensor>,
    /// Whether the forward began with [`Input::Embedded`], so that there is no embedding to differentiate.
    starts_embedded: bool,
}

#[derive(Clone, Debug)]
enum LayerSaved {
    Input(Tensor),
    Blocks(Vec<BlockSaved>),
}

impl Saved {
    /// Whether a forward of `model` saved these tensors. An encoder and a decoder may share a parameter list; then their layers
    /// tell them apart.
    fn is_of(&self, model: &LongNet) -> bool {
        let fits = |(saved, blocks): (&LayerSaved, &Vec<Block>)| match saved {
            LayerSaved::Input(_) => true,
            LayerSaved::Blocks(saved) => saved.len() == blocks.len(),
        };
        (Arc::ptr_eq(&self.list, &model.list) || self.list == model.list)
            && self.layers.len() == model.layers.len()
            && self.layers.iter().zip(&model.layers).all(fits)
    }
}

impl LongNet {
    /// As [`forward`](Self::forward), but also keeps the tensors that [`backward`](Self::backward) needs. `step_seed` is the seed
    /// of dropout, a number that should differ from step to step; `None` for no dropout.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::InvalidConfig`] with activations in half precision.
    pub fn forward_saving(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: Input<'_>,
        call: &Call,
        step_seed: Option<u64>,
        recompute: Recompute,
    ) -> Result<(Tensor, Saved)> {
        self.expect_trainable()?;
        weights.expect_list("weights", &self.list)?;
        let starts_embedded = matches!(input, Input::Embedded(_));
        let turns = self.turns_of(recorder, call)?;
        let pass = pass(weights, call, &turns, step_seed);
        let first = call.place().0;
        let (mut x, embedded) =
            self.embed_from(recorder, weights, input, call, first, pass.step())?;
        let mut layers = Vec::new();
        for blocks in &self.layers {
            match recompute {
                Recompute::Insides => {
                    let (y, saved) = forward_layer(recorder, &pass, blocks, &x)?;
                    layers.push(LayerSaved::Blocks(saved));
                    x = y;
                }
                Recompute::Layers => {
                    layers.push(LayerSaved::Input(x.clone()));
                    for block in blocks {
                        x = block.forward(recorder, &pass, &x)?.0;
                    }
                }
            }
        }
        let last = x.clone();
        let features = self.finish(recorder, weights, x)?;
        let tokens = match input {
            Input::Tokens(ids) => Some(ids.clone()),
            Input::Embeddings(_) | Input::Embedded(_) => None,
        };
        let saved = Saved {
            list: self.list.clone(),
            call: call.clone(),
            turns,
            step_seed,
            tokens,
            layers,
            last,
            embedded,
            starts_embedded,
        };
        Ok((features, saved))
    }

    /// Records the backward of [`logits`](Self::logits): returns the gradient of the features, given that of the logits, and adds
    /// the gradient of the output projection to `gradients`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits); [`Error::InvalidConfig`] with activations in half precision.
    pub fn logits_backward(
        &self,
        recorder: &mut Recorder,
        [weights, gradients]: [&Parameters; 2],
        features: &Tensor,
        dlogits: &Tensor,
    ) -> Result<Tensor> {
        self.expect_trainable()?;
        weights.expect_list("weights", &self.list)?;
        gradients.expect_list("gradients", &self.list)?;
        let projection = self.projection()?;
        let dfeatures = recorder.empty("d features", features.shape(), DType::F32)?;
        let (x, dy) = (features.matrix(), dlogits.matrix());
        projection.backward_parameters(recorder, gradients, x, dy)?;
        projection.backward_input(recorder, weights, dy, (dfeatures.matrix(), false))?;
        Ok(dfeatures)
    }

    pub(super) fn embedding_dropout(&self, step: Option<StepSeed>) -> Result<Option<Dropout>> {
        // The embedding has the model's first dropout; blocks have the following ones.
        crate::nn::dropout_at(self.config.dropout, step, self.first_place)
    }

    /// Records the backward of a model: adds the gradients of all parameters to `gradients`, given the gradient of the features.
    /// Returns the gradient of the embedded input, which is also that of [`Input::Embeddings`]. The gradient of the encoder's
    /// output is added to `dmemory`, if given.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`], [`Error::InvalidShape`] for what does not fit; the errors of leasing and recording.
    pub fn backward(
        &self,
        recorder: &mut Recorder,
        [weights, gradients]: [&Parameters; 2],
        saved: Saved,
        dfeatures: &Tensor,
        dmemory: Option<&Tensor>,
    ) -> Result<Tensor> {
        weights.expect_list("weights", &self.list)?;
        gradients.expect_list("gradients", &self.list)?;
        if !saved.is_of(self) {
            return Err(Error::ParameterMismatch {
                what: "saved activations",
            });
        }
        let Saved {
            list: _,
            call,
            turns,
            step_seed,
            tokens,
            layers,
            last,
            embedded,
            starts_embedded,
        } = saved;
        let pool_id = recorder.context().pool().id();
        dfeatures.expect("dfeatures", last.shape(), DType::F32, pool_id)?;
        let pass = pass(weights, &call, &turns, step_seed);
        let sets = [weights, gradients];
        let mut dx = match &self.final_norm {
            // A copy, because blocks may overwrite the gradient that they get.
            None => self.scaled(recorder, dfeatures, 1.0)?,
            Some(norm) => {
                let dx = recorder.empty("d activations", last.shape(), DType::F32)?;
                let to = (dx.matrix(), false);
                norm.backward(recorder, sets, last.matrix(), dfeatures.matrix(), to)?;
                dx
            }
        };
        drop(last);
        for (blocks, saved) in self.layers.iter().zip(layers).rev() {
            let saved = match saved {
                LayerSaved::Blocks(saved) => saved,
                LayerSaved::Input(x) => forward_layer(recorder, &pass, blocks, &x)?.1,
            };
            for (block, saved) in blocks.iter().zip(saved).rev() {
                dx = block.backward(recorder, &pass, gradients, &saved, dx, dmemory)?;
            }
        }
        if starts_embedded {
            return Ok(dx);
        }
        let step = pass.step();
        if let Some(dropout) = self.embedding_dropout(step)? {
            let dropped = recorder.empty("d activations", dx.shape(), DType::F32)?;
            ScaledAdd::new(dx.matrix(), 1.0)
                .with_dropout(
                    Some(dropout),
                    StepSeed::first_element(step, 0, self.width()),
                )
                .write(recorder, dropped.matrix())?;
            dx = dropped;
        }
        if let (Some(norm), Some(embedded)) = (&self.embedding_norm, &embedded) {
            let before = recorder.empty("d activations", dx.shape(), DType::F32)?;
            let to = (before.matrix(), false);
            norm.backward(recorder, sets, embedded.matrix(), dx.matrix(), to)?;
            dx = before;
        }
        if let Some(table) = self.embed_positions {
            let ids = self.position_ids(recorder, &call, call.place().0)?;
            let table = gradients.get(table).matrix();
            embedding_backward(recorder, &ids, dx.matrix(), 1.0, table)?;
        }
        if let (Some(ids), Some(table)) = (&tokens, self.embed_tokens) {
            let scale = self.config.embedding_scale;
            let table = gradients.get(table).matrix();
            embedding_backward(recorder, ids, dx.matrix(), scale, table)?;
        }
        Ok(dx)
    }
}

fn forward_layer(
    recorder: &mut Recorder,
    pass: &Pass<'_>,
    blocks: &[Block],
    x: &Tensor,
) -> Result<(Tensor, Vec<BlockSaved>)> {
    let mut x = x.clone();
    let mut all = Vec::new();
    for block in blocks {
        let (y, saved) = block.forward(recorder, pass, &x)?;
        all.push(saved);
        x = y;
    }
    Ok((x, all))
}
