//! Warm-up of a model.

use super::{Call, Input, LongNet};
use crate::config::AttentionShape;
use crate::context::{Context, WarmUp};
use crate::error::Result;
use crate::nn::Parameters;
use crate::ops::TokenIds;
use crate::tensor::zeros;

impl LongNet {
    /// Compiles the kernels of a forward over `shape` now, and those of the logits if the model has some; see [`Context::warm_up`].
    /// Cross attention is warmed up for an encoder sequence of the same length. Training and decoding need more kernels: see
    /// [`Trainer::warm_up`](crate::training::Trainer::warm_up) and [`Context::warm_up`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward) and [`Context::warm_up`].
    pub fn warm_up(&self, context: &Context, shape: &AttentionShape) -> Result<WarmUp> {
        context.warm_up(|dry_run| {
            let model = Self::new(dry_run, self.config.clone())?;
            let mut recorder = dry_run.recorder("warm up");
            let weights = Parameters::zeros(&mut recorder, model.parameters(), "weights")?;
            let (batch, len) = (shape.batch(), shape.seq_len());
            let dims = [batch, len, self.width()];
            let mut call = Call::new(shape.clone());
            if self.config.cross_attention.is_some() {
                let memory = recorder.empty("memory", &dims, self.config.activations)?;
                call.memory = Some((memory, AttentionShape::cross(batch, len, len)?));
            }
            let output = if let Some(rows) = self.config.vocab_size {
                let count = usize::try_from(batch as u64 * len as u64).ok();
                let ids = zeros("tokens", format!("{batch} x {len}"), count)?;
                let tokens = TokenIds::upload(&mut recorder, &ids, rows)?;
                let input = Input::Tokens(&tokens);
                model.forward(&mut recorder, &weights, input, &call, false)?
            } else {
                let x = recorder.empty("x", &dims, self.config.activations)?;
                let input = Input::Embeddings(&x);
                model.forward(&mut recorder, &weights, input, &call, false)?
            };
            if model.output_projection.is_some() {
                model.logits(&mut recorder, &weights, &output.features)?;
            }
            Ok(recorder)
        })
    }
}
