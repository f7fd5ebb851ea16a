//! An encoder and a decoder with cross attention to it.

use std::sync::Arc;

use super::{Call, Input, LongNet, LongNetConfig, Output};
use crate::config::AttentionShape;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::nn::{ParameterList, Parameters};
use crate::recorder::Recorder;

/// An encoder and a decoder with one set of weights. The names of parameters begin with `encoder.` and `decoder.`.
#[derive(Clone, Debug)]
pub struct EncoderDecoder {
    encoder: LongNet,
    decoder: LongNet,
}

impl EncoderDecoder {
    /// Makes both models.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when widths or types of activations differ, when the decoder has no cross attention, or when the
    /// encoder has some.
    pub fn new(context: &Context, encoder: LongNetConfig, decoder: LongNetConfig) -> Result<Self> {
        let widths = [&encoder, &decoder].map(|config| config.attention().embed_dim());
        if widths[0] != widths[1] {
            return Err(Error::InvalidConfig {
                what: "width of the decoder",
                given: widths[1].to_string(),
                need: "that of the encoder",
            });
        }
        if encoder.activations != decoder.activations {
            return Err(Error::InvalidConfig {
                what: "activations of the decoder",
                given: decoder.activations.to_string(),
                need: "those of the encoder",
            });
        }
        if decoder.cross_attention.is_none() {
            return Err(Error::InvalidConfig {
                what: "decoder",
                given: "no cross_attention".to_owned(),
                need: "attention to the encoder",
            });
        }
        if encoder.cross_attention.is_some() {
            return Err(Error::InvalidConfig {
                what: "encoder",
                given: "cross_attention".to_owned(),
                need: "none: nothing comes before it that it could attend to",
            });
        }
        let mut list = ParameterList::new();
        // The dropouts of the decoder have other numbers than those of the encoder, so that they are independent.
        let after_encoder = 8 * (encoder.num_layers() as u64 + 1);
        let mut encoder = LongNet::declare(context, &mut list, "encoder.", encoder, 0)?;
        let mut decoder = LongNet::declare(context, &mut list, "decoder.", decoder, after_encoder)?;
        let list = Arc::new(list);
        encoder.join(&list);
        decoder.join(&list);
        Ok(Self { encoder, decoder })
    }

    /// The encoder.
    pub fn encoder(&self) -> &LongNet {
        &self.encoder
    }

    /// The decoder.
    pub fn decoder(&self) -> &LongNet {
        &self.decoder
    }

    /// The parameters of both.
    pub fn parameters(&self) -> &Arc<ParameterList> {
        &self.encoder.list
    }

    /// The call of the decoder, where `memory` is the encoder's output for sequences of `memory_shape`. Tokens after the end of an
    /// item are not attended to.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when the batches differ.
    pub fn decoder_call(
        shape: AttentionShape,
        memory: Output,
        memory_shape: &AttentionShape,
    ) -> Result<Call> {
        if shape.batch() != memory_shape.batch() {
            return Err(Error::InvalidShape {
                what: "batch of the decoder".into(),
                given: shape.batch().to_string(),
                need: format!("{}, that of the encoder", memory_shape.batch()),
            });
        }
        let batch = shape.batch();
        let lens = |len: fn(&AttentionShape, usize) -> usize,
                    shape: &AttentionShape|
         -> Vec<usize> { (0..batch).map(|item| len(shape, item)).collect() };
        let cross = AttentionShape::cross(batch, shape.seq_len(), memory_shape.seq_len())?
            .with_valid_lens(&lens(AttentionShape::valid_len, &shape))?
            .with_valid_key_lens(&lens(AttentionShape::valid_len, memory_shape))?;
        Ok(Call {
            shape,
            memory: Some((memory.features, cross)),
            share: None,
            first_row: 0,
        })
    }

    /// Records the encoder over `source` and the decoder over `target`, and returns the decoder's features.
    ///
    /// # Errors
    /// As [`LongNet::forward`].
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        (source, source_shape): (Input<'_>, &AttentionShape),
        (target, target_shape): (Input<'_>, &AttentionShape),
    ) -> Result<Output> {
        let call = Call::new(source_shape.clone());
        let memory = self
            .encoder
            .forward(recorder, weights, source, &call, false)?;
        let call = Self::decoder_call(target_shape.clone(), memory, source_shape)?;
        self.decoder
            .forward(recorder, weights, target, &call, false)
    }
}
