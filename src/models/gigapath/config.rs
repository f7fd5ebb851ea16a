//! Options of the slide encoder.

use crate::config::{DilatedAttentionConfig, HeadOffsets, OutputRows, Padding};
use crate::error::{Error, Result};
use crate::longnet::LongNetConfig;
use crate::tensor::DType;

/// Dilation rates of all published models.
const RATES: [u32; 5] = [1, 2, 4, 8, 16];

/// Half position vectors of so many cells are in one table.
const MAX_GRID_CELLS: u32 = 1 << 16;

/// Options of a [`SlideEncoder`](super::SlideEncoder); those of [`base`](Self::base), then changed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlideEncoderConfig {
    /// Elements of a tile's features.
    pub feature_dim: usize,
    /// Heads, branches and semantics.
    pub attention: DilatedAttentionConfig,
    /// Number of layers.
    pub num_layers: usize,
    /// Elements of a row inside the feed-forward networks.
    pub ffn_dim: usize,
    /// Edge of a tile, in the unit of coordinates: pixels of level 0, the slide as it was scanned. A tile of 256 pixels at 20x
    /// covers 256 of them on a slide scanned at 20x and 512 on one scanned at 40x. Segment lengths do not follow it: they are
    /// those that the weights were trained with.
    pub tile_size: u32,
    /// Cells of the grid along each direction, at most 65 536.
    pub grid_cells: u32,
    /// Epsilon of the layer norms in the encoder.
    pub encoder_eps: f32,
    /// Epsilon of the last norm.
    pub norm_eps: f32,
    /// Type of everything between operations; weights and sums are f32.
    pub activations: DType,
}

impl SlideEncoderConfig {
    /// `gigapath_slide_enc12l768d`, the published model: 12 layers, 16 heads of 48.
    pub fn base() -> Self {
        Self::published(12, 16, 48)
    }

    /// `gigapath_slide_enc24l1024d`: 24 layers, 16 heads of 64.
    pub fn large() -> Self {
        Self::published(24, 16, 64)
    }

    /// `gigapath_slide_enc12l1536d`: 12 layers, 16 heads of 96.
    pub fn wide() -> Self {
        Self::published(12, 16, 96)
    }

    fn published(num_layers: usize, num_heads: u32, head_dim: u32) -> Self {
        let lengths = segment_lengths(262_144, 256);
        let attention = DilatedAttentionConfig::new(num_heads, head_dim, &lengths, &RATES)
            .expect("the sizes of published models are valid")
            .torchscale();
        Self {
            feature_dim: 1536,
            ffn_dim: 4 * attention.embed_dim() as usize,
            attention,
            num_layers,
            tile_size: 256,
            grid_cells: 1000,
            encoder_eps: 1e-5,
            norm_eps: 1e-6,
            activations: DType::F32,
        }
    }

    /// With the segment lengths that upstream derives from `max_wsi_size`, the longest edge of a slide in pixels: 262 144 by
    /// default, 250 000 in its fine-tuning script. It is divided by [`tile_size`](Self::tile_size): of a slide scanned at 40x that is
    /// changed after this, so that the lengths stay those that the weights were trained with.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the slide has no whole tile.
    pub fn max_wsi_size(self, max_wsi_size: u32) -> Result<Self> {
        if max_wsi_size < self.tile_size || self.tile_size == 0 {
            return Err(Error::InvalidConfig {
                what: "max_wsi_size",
                given: max_wsi_size.to_string(),
                need: "at least tile_size",
            });
        }
        let lengths = segment_lengths(max_wsi_size, self.tile_size);
        self.segments(&lengths, &RATES)
    }

    /// With other branches.
    ///
    /// # Errors
    /// As [`DilatedAttentionConfig::new`].
    pub fn segments(self, lengths: &[u32], rates: &[u32]) -> Result<Self> {
        let attention = self.attention.with_branches(lengths, rates)?;
        Ok(Self { attention, ..self })
    }

    /// With the textbook's semantics: padding is masked, rows stay where they are. Published weights were not trained so.
    pub fn masked(self) -> Self {
        let attention = self
            .attention
            .head_offsets(HeadOffsets::Blocked)
            .padding(Padding::Masked)
            .output_rows(OutputRows::Aligned);
        Self { attention, ..self }
    }

    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.attention.embed_dim() as usize
    }

    pub(super) fn encoder(&self) -> LongNetConfig {
        let mut config =
            LongNetConfig::encoder(self.attention.clone(), self.num_layers, self.ffn_dim);
        config.norm_eps = self.encoder_eps;
        config.activations = self.activations;
        config
    }

    pub(super) fn check(&self) -> Result<()> {
        let invalid = |what, given: String, need| Err(Error::InvalidConfig { what, given, need });
        if !self.width().is_multiple_of(4) {
            let need = "a multiple of 4: sines and cosines of two coordinates";
            return invalid("width of the slide encoder", self.width().to_string(), need);
        }
        for (what, size) in [
            ("tile_size", self.tile_size),
            ("grid_cells", self.grid_cells),
            ("feature_dim", u32::try_from(self.feature_dim).unwrap_or(0)),
        ] {
            if size == 0 {
                return invalid(what, size.to_string(), "at least 1, in 32 bits");
            }
        }
        if self.grid_cells > MAX_GRID_CELLS {
            let need = "at most 65536: there is a table of them";
            return invalid("grid_cells", self.grid_cells.to_string(), need);
        }
        if self.activations != DType::F32
            && (!self.feature_dim.is_multiple_of(4) || !self.width().is_multiple_of(8))
        {
            return invalid(
                "sizes with activations in half precision",
                format!("feature_dim {}, width {}", self.feature_dim, self.width()),
                "feature_dim a multiple of 4, width a multiple of 8",
            );
        }
        Ok(())
    }
}

/// The segment lengths that upstream derives from the longest edge of a slide and of a tile, in pixels: five, evenly spaced in
/// their logarithm from 1024 to the largest power of two of tokens that a slide can have. They decrease for small slides.
pub fn segment_lengths(max_wsi_size: u32, tile_size: u32) -> [u32; 5] {
    let cells = f64::from(max_wsi_size / tile_size.max(1));
    let last = (cells * cells).log2().max(0.0).floor();
    let first = 10.0;
    let step = (last - first) / 4.0;
    // numpy's linspace gives its last element exactly.
    let exponents = [0.0, 1.0, 2.0, 3.0].map(|i| first + i * step);
    let [a, b, c, d] = exponents.map(|exponent| exponent.exp2() as u32);
    [a, b, c, d, last.exp2() as u32]
}

#[cfg(test)]
mod tests {
    use super::segment_lengths;

    /// What upstream computes: 262 144 is its default, 250 000 its fine-tuning script's.
    #[test]
    fn segment_lengths_are_those_of_upstream() {
        let lengths = [1024, 5792, 32_768, 185_363, 1_048_576];
        assert_eq!(segment_lengths(262_144, 256), lengths);
        let lengths = [1024, 4870, 23_170, 110_217, 524_288];
        assert_eq!(segment_lengths(250_000, 256), lengths);
        assert_eq!(segment_lengths(2048, 256), [1024, 512, 256, 128, 64]);
        assert_eq!(segment_lengths(4096, 256), [1024, 724, 512, 362, 256]);
        let lengths = [1024, 4096, 16_384, 65_536, 262_144];
        assert_eq!(segment_lengths(262_144, 512), lengths);
    }
}
