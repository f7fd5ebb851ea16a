//! Operations of a whole model, for plans.

use super::LongNetConfig;
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
        let plan = self
            .attention()
            .plan_forward(shape, self.activations, caps)?;
        let [projections, network] = self.products_flop(shape);
        let [of_projections, of_network, of_attention] = repeats(Some(recompute));
        let of_layer =
            of_attention * plan.flop as f64 + of_projections * projections + of_network * network;
        let vocab = self.vocab_size.unwrap_or(0) as f64;
        let logits = 2.0 * rows(shape) * self.attention().embed_dim() as f64 * vocab;
        let of_layers = self.num_layers() as f64 * of_layer;
        Ok((of_layers + 3.0 * logits) as u64)
    }

    /// Floating point operations of one layer's products: of its projections, and of its network.
    pub(super) fn products_flop(&self, shape: &AttentionShape) -> [f64; 2] {
        self.products_flop_of(rows(shape))
    }

    /// The same over `rows` rows.
    pub(super) fn products_flop_of(&self, rows: f64) -> [f64; 2] {
        let width = self.attention().embed_dim() as f64;
        let of_width = 2.0 * rows * width;
        [of_width * 4.0 * width, of_width * 2.0 * self.ffn_dim as f64]
    }
}

/// How often a step does the operations of a layer's forward: of its projections, its network, its attention. `training` says what is
/// computed again; without it, the step is a forward.
pub(super) fn repeats(training: Option<Recompute>) -> [f64; 3] {
    // Two products for each of the forward: one for the input, one for the weights. Networks compute their first again.
    let backward = [2.0, 2.5, 2.5];
    let (forwards, backwards) = match training {
        None => (1.0, 0.0),
        Some(Recompute::Insides) => (1.0, 1.0),
        Some(Recompute::Layers) => (2.0, 1.0),
    };
    backward.map(|repeats| forwards + backwards * repeats)
}

fn rows(shape: &AttentionShape) -> f64 {
    shape.batch() as f64 * shape.seq_len() as f64
}
