//! Options of the slide encoder.

use std::collections::HashSet;

use crate::config::{DilatedAttentionConfig, HeadOffsets, OutputRows, Padding};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::longnet::LongNetConfig;
use crate::weights::WeightSource;

/// Number of heads of every published model.
const HEADS: usize = 16;

/// Widths of the published models.
const WIDTHS: [usize; 4] = [384, 768, 1024, 1536];

/// Head sizes that kernels support, in elements; multiples of 4 only.
const HEAD_DIMS: std::ops::RangeInclusive<usize> = 4..=256;

/// Dilation rates of all published models.
const RATES: [usize; 5] = [1, 2, 4, 8, 16];

/// Most cells of the grid along a direction. The table of half position vectors has a row for each.
pub(super) const MAX_GRID_CELLS: usize = 1 << 16;

/// Options of a [`SlideEncoder`](super::SlideEncoder). Start from [`base`](Self::base), and change fields.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlideEncoderConfig {
    /// Elements of a tile's features.
    pub feature_dim: usize,
    /// Heads, branches and semantics of attention. To change the branches, use
    /// [`with_branches`](DilatedAttentionConfig::with_branches), which keeps the semantics. A new configuration needs
    /// [`with_torchscale`](DilatedAttentionConfig::with_torchscale) for the published weights.
    pub attention: DilatedAttentionConfig,
    /// Number of layers.
    pub num_layers: usize,
    /// Elements of a row inside the feed-forward networks.
    pub ffn_dim: usize,
    /// Edge of a tile in pixels of level 0, the resolution at which the slide was scanned. Coordinates have this unit, too. A tile
    /// of 256 pixels at 20x covers 256 of these pixels on a slide scanned at 20x, and 512 on one scanned at 40x. Segment lengths do
    /// not depend on this field: they stay those that the weights were trained with.
    pub tile_size: usize,
    /// Cells of the grid along each direction, at most 65 536.
    pub grid_cells: usize,
    /// Epsilon of the layer norms in the encoder.
    pub encoder_eps: f32,
    /// Epsilon of the last norm.
    pub norm_eps: f32,
    /// Type of the activations between operations. Weights and sums are f32.
    pub activations: DType,
}

impl SlideEncoderConfig {
    /// `gigapath_slide_enc12l768d`, the published model: 12 layers, 16 heads of 48.
    pub fn base() -> Self {
        Self::published(12, 48)
    }

    /// `gigapath_slide_enc12l384d`, GigaPath-Flash: 12 layers, 16 heads of 24, for tiles of 384 features.
    pub fn flash() -> Self {
        Self {
            feature_dim: 384,
            ..Self::published(12, 24)
        }
    }

    /// `gigapath_slide_enc24l1024d`: 24 layers, 16 heads of 64.
    pub fn large() -> Self {
        Self::published(24, 64)
    }

    /// `gigapath_slide_enc12l1536d`: 12 layers, 16 heads of 96.
    pub fn wide() -> Self {
        Self::published(12, 96)
    }

    fn published(num_layers: usize, head_dim: usize) -> Self {
        let lengths = segment_lengths(262_144, 256);
        let attention = DilatedAttentionConfig::new(HEADS, head_dim, &lengths, &RATES)
            .expect("the sizes of published models are valid")
            .with_torchscale();
        Self {
            feature_dim: 1536,
            ffn_dim: 4 * attention.embed_dim(),
            attention,
            num_layers,
            tile_size: 256,
            grid_cells: 1000,
            encoder_eps: 1e-5,
            norm_eps: 1e-6,
            activations: DType::F32,
        }
    }

    /// The options of the model in a checkpoint. The shapes of its tensors give the numbers of layers, the width, the width of the
    /// feed-forward networks, and the features of a tile. Everything else is as in the published models: branches, tile size,
    /// norms, and 16 heads for their widths (384, 768, 1024 or 1536). For other widths, or another number of heads, pass `heads`.
    ///
    /// ```no_run
    /// # use dilated_attention::models::StagedModel;
    /// # use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig};
    /// # use dilated_attention::{Context, WeightFile};
    /// # let context = Context::new_blocking()?;
    /// let file = WeightFile::open("flash.safetensors")?;
    /// let part = SlideEncoder::weights_in(&file)?;
    /// let config = SlideEncoderConfig::from_weights(&part, None)?;
    /// let encoder = SlideEncoder::new(&context, config)?;
    /// let weights = encoder.load(&context, part)?;
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`](crate::weights::WeightsError::Mismatch) for a file without the tensors of a slide encoder, with
    /// the prefix under which the file has them, if it does; [`Error::InvalidConfig`] when the number of heads is unknown, or does
    /// not divide the width into a head size that kernels support. Other differences are found by loading.
    pub fn from_weights(weights: &WeightSource<'_>, heads: Option<usize>) -> Result<Self> {
        let sizes = |name: &'static str| match weights.tensor(name)?.shape() {
            &[rows, columns] => Ok((rows, columns)),
            shape => Err(Error::InvalidShape {
                what: name.into(),
                given: format!("{shape:?}"),
                need: "two sizes".to_owned(),
            }),
        };
        let (width, feature_dim) = sizes("patch_embed.proj.weight")?;
        let (ffn_dim, _) = sizes("encoder.layers.0.ffn.fc1.weight")?;
        let names: HashSet<_> = weights.tensors().map(|(name, _)| name).collect();
        let has = |layer: &usize| {
            let name = format!("encoder.layers.{layer}.ffn.fc1.weight");
            names.contains(name.as_str())
        };
        // Ends, because the file has a finite number of tensors.
        let num_layers = (0..).take_while(has).count();
        let published = WIDTHS.contains(&width).then_some(HEADS);
        let Some(heads) = heads.or(published) else {
            return Err(Error::InvalidConfig {
                what: "the number of heads",
                given: format!("not known for a width of {width}"),
                need: "told: no file has it, and no published slide encoder is that wide (384, 768, 1024 and 1536 have 16)",
            });
        };
        let config = Self {
            feature_dim,
            num_layers,
            ffn_dim,
            ..Self::base()
        };
        config.divided(width, heads)
    }

    /// Sets the number of heads. The width stays; the head size follows.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the number does not divide the width into a head size that kernels support.
    pub fn with_heads(self, heads: usize) -> Result<Self> {
        let width = self.width();
        self.divided(width, heads)
    }

    fn divided(self, width: usize, heads: usize) -> Result<Self> {
        let divides = heads > 0 && width.is_multiple_of(heads);
        let head_dim = divides.then(|| width / heads);
        let Some(head_dim) =
            head_dim.filter(|dim| HEAD_DIMS.contains(dim) && dim.is_multiple_of(4))
        else {
            return Err(Error::InvalidConfig {
                what: "the number of heads",
                given: format!("{heads} for a width of {width}"),
                need: "one that divides the width into heads of 4, 8, 12, ... or 256 elements",
            });
        };
        let attention = self.attention.with_size(heads, head_dim)?;
        Ok(Self { attention, ..self })
    }

    /// Sets the segment lengths that upstream derives from `max_wsi_size`, the longest edge of a slide in pixels (262 144 by
    /// default, 250 000 in its fine-tuning script). The lengths depend on [`tile_size`](Self::tile_size). For a slide scanned at
    /// 40x, change the tile size after this call, so that the lengths stay those that the weights were trained with.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the slide is smaller than a tile.
    pub fn with_max_wsi_size(self, max_wsi_size: usize) -> Result<Self> {
        if max_wsi_size < self.tile_size || self.tile_size == 0 {
            return Err(Error::InvalidConfig {
                what: "max_wsi_size",
                given: max_wsi_size.to_string(),
                need: "at least tile_size",
            });
        }
        let lengths = segment_lengths(max_wsi_size, self.tile_size);
        self.with_segments(&lengths, &RATES)
    }

    /// Sets the branches.
    ///
    /// # Errors
    /// As [`DilatedAttentionConfig::new`].
    pub fn with_segments(self, lengths: &[usize], rates: &[usize]) -> Result<Self> {
        let attention = self.attention.with_branches(lengths, rates)?;
        Ok(Self { attention, ..self })
    }

    /// Sets the plain semantics of attention: padding is masked, and each row is written to its own token. The published weights
    /// were not trained with these.
    pub fn with_masked_padding(self) -> Self {
        let attention = self
            .attention
            .with_head_offsets(HeadOffsets::Blocked)
            .with_padding(Padding::Masked)
            .with_output_rows(OutputRows::Aligned);
        Self { attention, ..self }
    }

    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.attention.embed_dim()
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
            ("feature_dim", self.feature_dim),
        ] {
            if size == 0 || u32::try_from(size).is_err() {
                return invalid(what, size.to_string(), "at least 1, in 32 bits");
            }
        }
        for (what, eps) in [
            ("encoder_eps", self.encoder_eps),
            ("norm_eps", self.norm_eps),
        ] {
            if !(eps > 0.0 && eps.is_finite()) {
                return invalid(what, eps.to_string(), "positive and finite");
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

/// The five segment lengths that upstream derives from the longest edge of a slide and the edge of a tile, both in pixels. Their
/// logarithms are evenly spaced from 1024 to the largest power of two not above the number of tiles that a slide can have. For
/// small slides the lengths decrease.
pub fn segment_lengths(max_wsi_size: usize, tile_size: usize) -> [usize; 5] {
    let cells = (max_wsi_size / tile_size.max(1)) as f64;
    let last = (cells * cells).log2().max(0.0).floor();
    let first = 10.0;
    let step = (last - first) / 4.0;
    // numpy's linspace gives its last element exactly.
    let exponents = [0.0, 1.0, 2.0, 3.0].map(|i| first + i * step);
    let [a, b, c, d] = exponents.map(|exponent| exponent.exp2() as usize);
    [a, b, c, d, last.exp2() as usize]
}

#[cfg(test)]
mod tests {
    use super::{SlideEncoderConfig, segment_lengths};

    #[test]
    fn an_epsilon_that_is_none_is_named() {
        let change: [fn(&mut SlideEncoderConfig); 2] = [
            |config| config.encoder_eps = f32::NAN,
            |config| config.norm_eps = 0.0,
        ];
        let told = change.map(|change| {
            let mut config = SlideEncoderConfig::base();
            change(&mut config);
            config.check().expect_err("no epsilon").to_string()
        });
        let expected = ["encoder_eps is NaN", "norm_eps is 0"]
            .map(|given| format!("{given}; it must be positive and finite"));
        assert_eq!(told, expected);
    }

    /// Lengths as upstream computes them: 262 144 is its default, 250 000 is used in its fine-tuning script.
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
