//! Cross-entropy of next tokens, in chunks of rows.
//!
//! Logits are as wide as the vocabulary. They never exist whole: a chunk's logits become its gradient in place, which is
//! carried back to the features before the next chunk begins.

use super::LongNet;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::ops::{Labels, cross_entropy, sum};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Bytes of a chunk's logits, about.
const CHUNK_BYTES: usize = 16 << 20;

/// What a loss returns.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Sum of the cross-entropies of all labels, in nats, one element.
    pub total: Tensor,
    /// Gradient of the features, if it was asked for.
    pub dfeatures: Option<Tensor>,
}

impl LongNet {
    /// Records the cross-entropy of the logits of `features` with `labels`, summed. With `gradients`, the gradients of `scale` times
    /// that sum are recorded, too: of the output projection, added, and of the features. A `scale` of
    /// `1 / labels.counted()` makes them those of the mean.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without output projection, and for gradients with activations in half precision;
    /// [`Error::InvalidShape`], [`Error::ParameterMismatch`] for what does not fit; the errors of leasing and recording.
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
                what: "labels",
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
