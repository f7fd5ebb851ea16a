//! Options of LongViT.

use crate::config::DilatedAttentionConfig;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::longnet::LongNetConfig;

/// Whether the mean of all patches is normalised, or each patch before the mean is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FeatureNorm {
    /// The mean of all patches is normalised, as in models that torchscale has fine-tuned. The norm's parameters are called
    /// `fc_norm.*`, those before it `model.*`.
    #[default]
    OfMean,
    /// Each patch is normalised before the mean is taken, as in torchscale's pretraining. The norm's parameters are called
    /// `backbone.norm.*`, those before it `backbone.*`.
    OfPatches,
}

/// Options of a [`LongVit`](super::LongVit).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LongVitConfig {
    /// Heads, branches and semantics of attention. To change the branches, use
    /// [`with_branches`](DilatedAttentionConfig::with_branches), which keeps the semantics. A new configuration needs
    /// [`with_torchscale`](DilatedAttentionConfig::with_torchscale) for torchscale's weights.
    pub attention: DilatedAttentionConfig,
    /// Number of layers.
    pub num_layers: usize,
    /// Elements of a row inside the feed-forward networks.
    pub ffn_dim: usize,
    /// Edge in pixels of the square images for which positions were learned.
    pub image_size: usize,
    /// Edge of a patch in pixels.
    pub patch_size: usize,
    /// Number of colour channels.
    pub channels: usize,
    /// Number of classes of the head; `None` for a model without a head, which ends with features.
    pub num_classes: Option<usize>,
    /// Epsilon of the layer norms in the encoder.
    pub encoder_eps: f32,
    /// What the norm of the features is applied to.
    pub feature_norm: FeatureNorm,
    /// Epsilon of the norm of the features.
    pub norm_eps: f32,
    /// Type of the activations between operations. Weights, sums, features and logits are f32.
    pub activations: DType,
}

impl LongVitConfig {
    /// The published model, fine-tuned for classification: 12 layers, 16 heads of 24, images of 1024 pixels in patches of 32,
    /// segments of 64 to 1024 patches. For images of 4096 pixels and more, torchscale uses longer segments, which can be set in
    /// [`attention`](Self::attention).
    pub fn published(num_classes: usize) -> Self {
        let lengths = [64, 128, 256, 512, 1024];
        let attention = DilatedAttentionConfig::new(16, 24, &lengths, &[1, 2, 4, 8, 16])
            .expect("the sizes of the published model are valid");
        Self {
            attention: attention.with_torchscale(),
            num_layers: 12,
            ffn_dim: 1536,
            image_size: 1024,
            patch_size: 32,
            channels: 3,
            num_classes: Some(num_classes),
            encoder_eps: 1e-5,
            feature_norm: FeatureNorm::OfMean,
            norm_eps: 1e-5,
            activations: DType::F32,
        }
    }

    /// The published model as pretrained: without a head, and with patches normalised before their mean is taken.
    pub fn pretrained() -> Self {
        Self {
            num_classes: None,
            feature_norm: FeatureNorm::OfPatches,
            norm_eps: 1e-6,
            ..Self::published(1)
        }
    }

    /// Patches along the edge of the model's images.
    pub(super) fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    pub(super) fn width(&self) -> usize {
        self.attention.embed_dim()
    }

    pub(super) fn patch_elements(&self) -> usize {
        self.channels * self.patch_size * self.patch_size
    }

    pub(super) fn encoder(&self) -> LongNetConfig {
        let mut config =
            LongNetConfig::encoder(self.attention.clone(), self.num_layers, self.ffn_dim);
        config.norm_eps = self.encoder_eps;
        config.activations = self.activations;
        config.final_norm = false;
        config
    }

    pub(super) fn check(&self) -> Result<()> {
        let sizes = [self.image_size, self.patch_size, self.channels];
        let whole = self.patch_size > 0 && self.image_size.is_multiple_of(self.patch_size);
        if sizes.contains(&0) || !whole {
            return Err(Error::InvalidConfig {
                what: "image, patch and channels",
                given: format!("{sizes:?}"),
                need: "at least 1 each, the image whole patches wide",
            });
        }
        if let Some(classes) = self.num_classes
            && (classes == 0 || u32::try_from(classes).is_err())
        {
            return Err(Error::InvalidConfig {
                what: "num_classes",
                given: classes.to_string(),
                need: "at least 1 and below 2^32, or none for features without a head",
            });
        }
        for (what, eps) in [
            ("encoder_eps", self.encoder_eps),
            ("norm_eps", self.norm_eps),
        ] {
            if !(eps > 0.0 && eps.is_finite()) {
                return Err(Error::InvalidConfig {
                    what,
                    given: eps.to_string(),
                    need: "positive and finite",
                });
            }
        }
        let fits = |sizes: [usize; 3]| {
            let product = sizes.iter().try_fold(1u32, |product, size| {
                product.checked_mul(u32::try_from(*size).ok()?)
            });
            product.is_some()
        };
        let (patch, grid) = (self.patch_size, self.grid());
        if !fits([self.channels, patch, patch]) || !fits([grid, grid, self.width()]) {
            return Err(Error::InvalidConfig {
                what: "image, patch and channels",
                given: format!("{sizes:?}"),
                need: "small enough that patches and positions have less than 2^32 elements",
            });
        }
        if self.activations != DType::F32 && !self.patch_elements().is_multiple_of(4) {
            return Err(Error::InvalidConfig {
                what: "elements of a patch with activations in half precision",
                given: self.patch_elements().to_string(),
                need: "a multiple of 4",
            });
        }
        Ok(())
    }
}
