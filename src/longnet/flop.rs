//! Operations of a whole model, for plans.

use super::LongNetConfig;
#[cfg(feature = "training")]
use super::Recompute;
use crate::config::AttentionShape;
use crate::device::DeviceCaps;
use crate::error::Result;

impl LongNetConfig {
    /// Floating point operations of products and attention in all layers of a forward over `shape`.
    ///
    /// # Errors
    /// As [`DilatedAttentionConfig::plan_forward`](crate::DilatedAttentionConfig::plan_forward).
    pub(crate) fn layers_flop(&self, shape: &AttentionShape, caps: &DeviceCaps) -> Result<u64> {
        let attention = self
            .attention()
            .plan_forward(shape, self.activations, caps)?
            .flop as f64;
        let [projections, network] = self.products_flop(shape);
        let of_layer = attention + projections + network;
        Ok((self.num_layers() as f64 * of_layer) as u64)
    }

    /// Floating point operations of products and attention of a training step over `shape`, with what is computed again.
    ///
    /// # Errors
    /// As [`layers_flop`](Self::layers_flop).
    #[cfg(feature = "training")]
    pub(crate) fn step_flop(
        &self,
        shape: &AttentionShape,
        recompute: Recompute,
        caps: &DeviceCaps,
    ) -> Result<u64> {
        let forward = self.layers_flop(shape, caps)? as f64;
        let attention = self
            .attention()
            .plan_backward(shape, self.activations, caps)?
            .flop as f64;
        let [projections, network] = self.products_flop(shape);
        // Two products for each of the forward: one for the input, one for the weights. Networks compute their first again.
        let backward = attention + 2.0 * projections + 2.5 * network;
        let again = match recompute {
            Recompute::Insides => 0.0,
            Recompute::Layers => forward,
        };
        let vocab = self.vocab_size.unwrap_or(0) as f64;
        let logits = 2.0 * rows(shape) * self.attention().embed_dim() as f64 * vocab;
        let of_layers = forward + self.num_layers() as f64 * backward + again;
        Ok((of_layers + 3.0 * logits) as u64)
    }

    /// Floating point operations of one layer's products: of its projections, and of its network.
    pub(super) fn products_flop(&self, shape: &AttentionShape) -> [f64; 2] {
        let width = self.attention().embed_dim() as f64;
        let of_width = 2.0 * rows(shape) * width;
        [of_width * 4.0 * width, of_width * 2.0 * self.ffn_dim as f64]
    }
}

fn rows(shape: &AttentionShape) -> f64 {
    shape.batch() as f64 * shape.seq_len() as f64
}
