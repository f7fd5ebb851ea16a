//! Any bytes, as a checkpoint of a small slide encoder: they load or are refused, and nothing stays leased.

use dilated_attention::models::StagedModel;
use dilated_attention::models::gigapath::{SlideEncoder, SlideEncoderConfig};
use dilated_attention::nn::Parameters;
use dilated_attention::weights::WeightsError;
use dilated_attention::{Context, DilatedAttentionConfig, Error, WeightFile};

/// The slide encoder of the smallest sizes that have all its parts.
pub fn encoder(context: &Context) -> SlideEncoder {
    let mut config = SlideEncoderConfig::base();
    config.attention = DilatedAttentionConfig::new(2, 4, &[8, 16], &[1, 2])
        .expect("valid")
        .with_torchscale();
    config.feature_dim = 4;
    config.num_layers = 1;
    config.ffn_dim = 8;
    SlideEncoder::new(context, config).expect("valid")
}

/// Loads a checkpoint of `bytes`; the weights, if it is one.
pub fn run(context: &Context, encoder: &SlideEncoder, bytes: &[u8]) -> Option<Parameters> {
    let file = WeightFile::from_bytes(bytes.to_vec());
    let loaded = file
        .map_err(Error::from)
        .and_then(|file| encoder.load(context, &file));
    match loaded {
        Ok(weights) => {
            let names = weights.iter().map(|(spec, _)| &spec.name);
            assert!(names.eq(encoder.parameters().specs().iter().map(|spec| &spec.name)));
            Some(weights)
        }
        Err(
            error @ Error::Weights(WeightsError::InvalidFile { .. } | WeightsError::Mismatch(_)),
        ) => {
            let told = error.to_string();
            assert!(!told.is_empty());
            // Some names of each kind, each as long as the file may be.
            assert!(
                told.len() < 16_384 + 8 * bytes.len(),
                "{} bytes of text",
                told.len()
            );
            None
        }
        Err(error) => panic!("{error}"),
    }
}
