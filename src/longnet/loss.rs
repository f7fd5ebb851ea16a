//! Cross-entropy of next tokens, computed in chunks of rows.
//!
//! Logits are as wide as the vocabulary, so they never exist as a whole. The logits of a chunk are replaced by their gradient, from
//! which the gradient of the features is computed before the next chunk begins.

use super::LongNet;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::ops::{Labels, cross_entropy, sum};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Approximate bytes of the logits of a chunk.
const CHUNK_BYTES: usize = 16 << 20;

/// Results of a loss.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Sum of the cross-entropies of all labels, in nats: a tensor of one element.
    pub total: Tensor,
    /// Gradient of the features; `None` unless asked for.
    pub dfeatures: Option<Tensor>,
}

impl LongNet {
    /// Records the sum of the cross-entropies of the logits of `features` with `labels`. With `gradients`, also records the
    /// gradients of `scale` times that sum: that of the output projection is added to `gradients`, that of the features is
    /// returned. With `scale = 1 / labels.counted()` they are the gradients of the mean.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without output projection, and for gradients with activations in half precision;
    /// [`Error::InvalidShape`], [`Error::ParameterMismatch`] for tensors that do not fit; the errors of leasing and recording.
    pub fn loss(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        features: &Tensor,
        labels: &Labels,
        gradients: Option<(&Parameters, f32)>,
    ) -> Result<Loss> {
        weights.expect_list("weights", &self.list)?;
        let projection = self.projection()?;
        let rows = features.matrix().rows();
        if labels.len() != rows {
            return Err(Error::InvalidShape {
                what: "labels".into(),
                given: format!("{} labels", labels.len()),
                need: format!("{rows}, one for each row"),
            });
        }
        let vocab = self.config.vocab_size.unwrap_or(0);
        let losses = recorder.empty("losses", &[rows, 1], DType::F32)?;
        let dfeatures = match gradients {
            None => None,
            Some((gradients, _)) => {
                self.expect_trainable()?;
                gradients.expect_list("gradients", &self.list)?;
                Some(recorder.empty("d features", features.shape(), DType::F32)?)
            }
        };
        let step = (CHUNK_BYTES / (vocab * 4) / 64 * 64).max(64);
        let mut begin = 0;
        while begin < rows {
            let end = rows.min(begin + step);
            let x = features.matrix().slice(begin..end)?;
            let shape = [end - begin, vocab];
            let logits = recorder.empty("logits", &shape, DType::F32)?;
            projection.forward(recorder, weights, x, logits.matrix())?;
            let scale = gradients.map_or(0.0, |(_, scale)| scale);
            let losses = losses.matrix().slice(begin..end)?;
            cross_entropy(recorder, logits.matrix(), (labels, begin), scale, losses)?;
            if let (Some((gradients, _)), Some(dfeatures)) = (gradients, &dfeatures) {
                let dlogits = logits.matrix();
                projection.backward_parameters(recorder, gradients, x, dlogits)?;
                let to = (dfeatures.matrix().slice(begin..end)?, false);
                projection.backward_input(recorder, weights, dlogits, to)?;
            }
            begin = end;
        }
        let total = sum(recorder, &[&losses])?;
        Ok(Loss { total, dfeatures })
    }
}
