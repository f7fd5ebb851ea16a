//! What models are given wrongly is an error that says so, and leaves recorder and cache usable.

use dilated_attention::longnet::{
    Call, CrossAttentionConfig, EncoderDecoder, Input, LongNet, LongNetConfig, Output,
    OutputProjection, Recompute,
};
use dilated_attention::nn::Parameters;
use dilated_attention::ops::{Labels, TokenIds};
use dilated_attention::{AttentionShape, DType, DilatedAttentionConfig, Error, Recorder};

use crate::support::kernel_contexts::kernel_contexts;

pub const VOCAB: usize = 11;

fn attention() -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(2, 8, &[4, 16], &[1, 2]).unwrap()
}

pub fn decoder() -> LongNetConfig {
    with_layers(1)
}

fn with_layers(num_layers: usize) -> LongNetConfig {
    let mut config = LongNetConfig::decoder(attention(), num_layers, 20);
    config.vocab_size = Some(VOCAB);
    config.output_projection = OutputProjection::Own;
    config
}

fn with_memory(mut config: LongNetConfig) -> LongNetConfig {
    config.cross_attention = Some(CrossAttentionConfig {
        attention: DilatedAttentionConfig::dense(2, 8).unwrap(),
        projection_norm: Default::default(),
    });
    config
}

pub fn call(batch: usize, len: usize) -> Call {
    Call::new(AttentionShape::new(batch, len).unwrap())
}

pub fn ids(recorder: &mut Recorder, count: usize) -> TokenIds {
    TokenIds::upload(recorder, &vec![3; count], VOCAB).unwrap()
}

/// A model, its weights, its gradients.
pub fn ready(recorder: &mut Recorder, config: LongNetConfig) -> (LongNet, Parameters, Parameters) {
    let context = recorder.context().clone();
    let model = LongNet::new(&context, config).unwrap();
    let weights = model.initial_weights(&context, 1).unwrap();
    let gradients = model.zero_gradients(recorder).unwrap();
    (model, weights, gradients)
}

macro_rules! assert_error {
    ($result:expr, $error:pat $(if $guard:expr)? $(,)?) => {
        let result = $result;
        assert!(
            matches!(&result, Err($error) $(if $guard)?),
            "{:?}",
            result.map(|_| ())
        );
    };
}

#[test]
fn wrong_inputs_of_models_are_errors() {
    let mut recorder = kernel_contexts()[0].context.recorder("errors");
    let r = &mut recorder;
    let (model, weights, gradients) = ready(r, decoder());
    let (other, other_weights, other_gradients) = ready(r, decoder().with_post_norm());
    let ten = ids(r, 10);
    let tokens = Input::Tokens(&ten);

    assert_error!(
        TokenIds::upload(r, &[0, VOCAB as u32], VOCAB),
        Error::TokenOutOfRange { index: 1, .. }
    );
    assert_error!(
        Labels::upload(r, &[VOCAB as u32], VOCAB),
        Error::TokenOutOfRange { what: "label", .. }
    );
    // Checked against another vocabulary than the model's.
    let beyond = TokenIds::upload(r, &[0, 1, 11, 50, 50], 100).unwrap();
    assert_error!(
        model.forward(r, &weights, Input::Tokens(&beyond), &call(1, 5), false),
        Error::TokenOutOfRange {
            what: "token",
            index: 3,
            given: 50,
            limit: VOCAB
        }
    );
    for (batch, len) in [(1, 9), (3, 10), (0, 10), (2, 0)] {
        assert_error!(
            model.forward(r, &weights, tokens, &call(batch, len), false),
            Error::InvalidShape { what, .. } if what == "tokens"
        );
    }
    assert_error!(
        model.forward(r, &other_weights, tokens, &call(1, 10), false),
        Error::ParameterMismatch { what: "weights" }
    );
    let x = r.zeros("x", &[1, 10, 16], DType::F32).unwrap();
    let narrow = r.zeros("x", &[1, 10, 8], DType::F32).unwrap();
    assert_error!(
        model.forward(r, &weights, Input::Embeddings(&narrow), &call(1, 10), false),
        Error::InvalidShape { what, .. } if what == "embeddings"
    );
    let encoder = LongNetConfig::encoder(attention(), 1, 20);
    let (encoder, encoder_weights, _) = ready(r, encoder);
    assert_error!(
        encoder.forward(r, &encoder_weights, tokens, &call(1, 10), false),
        Error::InvalidConfig { what: "tokens", .. }
    );
    let mut short = decoder();
    short.learned_positions = Some(9);
    let (short, short_weights, _) = ready(r, short);
    assert_error!(
        short.forward(r, &short_weights, tokens, &call(1, 10), false),
        Error::InvalidShape { what, .. } if what == "positions"
    );
    short
        .forward(r, &short_weights, tokens, &call(2, 5), false)
        .unwrap();

    // Logits, losses, backwards.
    let (recompute, seed) = (Recompute::Insides, None);
    let (features, saved) = model
        .forward_saving(r, &weights, tokens, &call(2, 5), seed, recompute)
        .unwrap();
    assert_error!(
        encoder.logits(r, &encoder_weights, &x),
        Error::InvalidConfig { .. }
    );
    assert_error!(
        model.logits(r, &encoder_weights, &features),
        Error::ParameterMismatch { what: "weights" }
    );
    assert_error!(
        model.logits(r, &weights, &narrow),
        Error::InvalidShape { .. }
    );
    let beyond = Labels::upload(r, &[0, 1, 2, 3, 4, 5, 6, 7, 80, 80], 100).unwrap();
    assert_error!(
        model.loss(r, &weights, &features, &beyond, None),
        Error::TokenOutOfRange {
            what: "label",
            index: 8,
            given: 80,
            limit: VOCAB
        }
    );
    let nine = Labels::upload(r, &[0; 9], VOCAB).unwrap();
    assert_error!(
        model.loss(r, &weights, &features, &nine, None),
        Error::InvalidShape { what, .. } if what == "labels"
    );
    let labels = Labels::upload(r, &[0; 10], VOCAB).unwrap();
    assert_error!(
        model.loss(
            r,
            &weights,
            &features,
            &labels,
            Some((&other_gradients, 1.0))
        ),
        Error::ParameterMismatch { what: "gradients" }
    );
    let logits = model.logits(r, &weights, &features).unwrap();
    for sets in [[&weights, &other_gradients], [&other_weights, &gradients]] {
        let result = model.logits_backward(r, sets, &features, &logits);
        assert_error!(result, Error::ParameterMismatch { .. });
        let result = model.backward(r, sets, saved.clone(), &features, None);
        assert_error!(result, Error::ParameterMismatch { .. });
    }
    assert_error!(
        model.backward(r, [&weights, &gradients], saved.clone(), &x, None),
        Error::InvalidShape { what, .. } if what == "dfeatures"
    );
    let sets = [&other_weights, &other_gradients];
    assert_error!(
        other.backward(r, sets, saved.clone(), &features, None),
        Error::ParameterMismatch {
            what: "saved activations"
        }
    );
    // All of which left everything usable.
    model
        .backward(r, [&weights, &gradients], saved, &features, None)
        .unwrap();
    let features = recorder.download::<f32>(&features).unwrap();
    recorder.submit().unwrap();
    assert!(
        features
            .wait()
            .unwrap()
            .iter()
            .all(|value| value.is_finite())
    );
}

#[test]
fn wrong_memories_are_errors() {
    let on = &kernel_contexts()[0].context;
    let mut recorder = on.recorder("errors");
    let r = &mut recorder;
    let encoder = LongNetConfig::encoder(attention(), 1, 20);
    assert_error!(
        EncoderDecoder::new(on, encoder.clone(), decoder()),
        Error::InvalidConfig {
            what: "decoder",
            ..
        }
    );
    let wide = DilatedAttentionConfig::new(3, 8, &[4], &[1]).unwrap();
    let wide = LongNetConfig::encoder(wide, 1, 20);
    assert_error!(
        EncoderDecoder::new(on, wide, with_memory(decoder())),
        Error::InvalidConfig {
            what: "width of the decoder",
            ..
        }
    );
    let both = EncoderDecoder::new(on, encoder, with_memory(decoder())).unwrap();
    let weights = both.encoder().initial_weights(on, 1).unwrap();
    let gradients = both.encoder().zero_gradients(r).unwrap();
    let ten = ids(r, 10);
    let tokens = Input::Tokens(&ten);
    let missing = both
        .decoder()
        .forward(r, &weights, tokens, &call(2, 5), false);
    assert_error!(missing, Error::InvalidShape { what, .. } if what == "memory");

    let memory = r.zeros("memory", &[2, 7, 16], DType::F32).unwrap();
    let output = Output {
        features: memory.clone(),
        states: Vec::new(),
    };
    let [two, three] = [2, 3].map(|batch| AttentionShape::new(batch, 5).unwrap());
    let source = AttentionShape::new(2, 7).unwrap();
    assert_error!(
        EncoderDecoder::decoder_call(three, output.clone(), &source),
        Error::InvalidShape { what, .. } if what == "batch of the decoder"
    );
    let good = EncoderDecoder::decoder_call(two, output, &source).unwrap();
    for (batch, queries, keys) in [(2, 5, 6), (2, 4, 7), (3, 5, 7)] {
        let cross = AttentionShape::cross(batch, queries, keys).unwrap();
        let wrong = Call {
            memory: Some((memory.clone(), cross)),
            ..good.clone()
        };
        let result = both.decoder().forward(r, &weights, tokens, &wrong, false);
        assert_error!(result, Error::InvalidShape { .. });
    }
    let sets = [&weights, &gradients];
    let (recompute, seed) = (Recompute::Insides, None);
    let (features, saved) = both
        .decoder()
        .forward_saving(r, &weights, tokens, &good, seed, recompute)
        .unwrap();
    assert_error!(
        both.decoder()
            .backward(r, sets, saved.clone(), &features, None),
        Error::InvalidShape { what, .. } if what == "memory"
    );
    assert_error!(
        both.decoder()
            .backward(r, sets, saved.clone(), &features, Some(&features)),
        Error::InvalidShape { .. }
    );
    // Of one list, but not of one model.
    assert_error!(
        both.encoder()
            .backward(r, sets, saved.clone(), &features, None),
        Error::ParameterMismatch {
            what: "saved activations"
        }
    );
    both.decoder()
        .backward(r, sets, saved, &features, Some(&memory))
        .unwrap();
    recorder.submit().unwrap();
}

#[test]
fn wrong_steps_are_errors_and_the_cache_stays() {
    let mut recorder = kernel_contexts()[0].context.recorder("errors");
    let r = &mut recorder;
    let encoder = LongNetConfig::encoder(attention(), 1, 20);
    let (encoder, _, _) = ready(r, encoder);
    assert_error!(
        encoder.new_cache(r, 2, 4),
        Error::InvalidConfig {
            what: "decoding",
            ..
        }
    );

    let mut config = with_memory(decoder());
    config.learned_positions = Some(6);
    let (model, weights, _) = ready(r, config);
    let (other, other_weights, _) = ready(r, decoder().with_post_norm());
    let memory = r.zeros("memory", &[2, 7, 16], DType::F32).unwrap();
    let cross = |batch| AttentionShape::cross(batch, 1, 7).unwrap();
    let with = |len, batch| Call {
        memory: Some((memory.clone(), cross(batch))),
        ..call(2, len)
    };
    let [two, six, eight] = [2, 6, 8].map(|count| ids(r, count));
    let [two, six, eight] = [&two, &six, &eight].map(Input::Tokens);
    let mut cache = model.new_cache(r, 2, 1).unwrap();
    // Twice: as a prompt, and after one.
    for len in [0, 3] {
        let cache = &mut cache;
        assert_eq!(cache.len(), len);
        let wrong = other.decode(r, &other_weights, two, &call(2, 1), cache);
        assert_error!(wrong, Error::ParameterMismatch { what: "cache" });
        let wrong = model.decode(r, &other_weights, two, &with(1, 2), cache);
        assert_error!(wrong, Error::ParameterMismatch { what: "weights" });
        let wrong = model.decode(r, &weights, six, &call(6, 1), cache);
        assert_error!(
            wrong,
            Error::InvalidShape { what, .. } if what == "batch of a decoding step"
        );
        let wrong = model.decode(r, &weights, six, &with(2, 2), cache);
        assert_error!(wrong, Error::InvalidShape { what, .. } if what == "tokens");
        let wrong = model.decode(r, &weights, two, &call(2, 1), cache);
        assert_error!(wrong, Error::InvalidShape { what, .. } if what == "memory");
        let wrong = model.decode(r, &weights, two, &with(1, 3), cache);
        assert_error!(wrong, Error::InvalidShape { .. });
        let mut ragged = with(4, 2);
        ragged.shape = ragged.shape.with_valid_lens(&[4, 3]).unwrap();
        let wrong = model.decode(r, &weights, eight, &ragged, cache);
        assert_error!(
            wrong,
            Error::InvalidShape { what, .. } if what == "valid_lens of a decoding step"
        );
        assert_eq!(cache.len(), len);
        model.decode(r, &weights, six, &with(3, 2), cache).unwrap();
    }
    let wrong = model.decode(r, &weights, two, &with(1, 2), &mut cache);
    assert_error!(
        wrong,
        Error::InvalidShape { what, .. } if what == "tokens of the cache"
    );
    assert_eq!(cache.len(), 6);

    // A cache of no tokens, of no items, and steps of none.
    let none = ids(r, 0);
    let none = Input::Tokens(&none);
    let nothing = model
        .decode(r, &weights, none, &with(0, 2), &mut cache)
        .unwrap();
    assert_eq!((nothing.shape(), cache.len()), (&[2, 0, 16][..], 6));
    let (model, weights, _) = ready(r, decoder());
    let mut cache = model.new_cache(r, 0, 0).unwrap();
    for count in [0, 4, 1] {
        let nothing = model
            .decode(r, &weights, none, &call(0, count), &mut cache)
            .unwrap();
        assert_eq!(nothing.shape(), [0, count, 16]);
    }
    assert_eq!(cache.len(), 5);
    recorder.submit().unwrap();
}

#[test]
fn numbers_that_mean_nothing_are_errors_and_sizes_of_0_do_nothing() {
    let on = &kernel_contexts()[0].context;
    let change: [fn(&mut LongNetConfig); 16] = [
        |config| config.ffn_dim = 0,
        |config| config.vocab_size = Some(0),
        |config| config.vocab_size = None,
        |config| config.dropout = 1.0,
        |config| config.activation_dropout = f32::NAN,
        |config| config.ffn_dim = 1 << 40,
        |config| config.norm_eps = f32::NAN,
        |config| config.norm_eps = 0.0,
        |config| config.residual_scale = f32::NAN,
        |config| config.initial_gain = f32::INFINITY,
        |config| config.embedding_scale = f32::NAN,
        |config| config.xpos_scale_base = Some(f32::NAN),
        |config| config.xpos_scale_base = Some(-512.0),
        |config| config.learned_positions = Some(0),
        |config| config.learned_positions = Some(usize::MAX),
        |config| *config = with_layers(usize::MAX),
    ];
    for change in change {
        let mut config = decoder();
        change(&mut config);
        assert_error!(LongNet::new(on, config), Error::InvalidConfig { .. });
    }
    let mut recorder = on.recorder("nothing");
    let r = &mut recorder;
    let [none, all] = [0, 1].map(|layers| {
        let mut config = with_layers(layers);
        config.xpos_scale_base = Some(512.0);
        config.learned_positions = Some(4);
        config
    });
    let empty = ids(r, 0);
    for (config, (batch, len)) in [(&all, (0, 4)), (&all, (2, 0)), (&none, (0, 0))] {
        let (model, weights, gradients) = ready(r, config.clone());
        let (input, call) = (Input::Tokens(&empty), call(batch, len));
        let (recompute, seed) = (Recompute::Insides, Some(1));
        let (features, saved) = model
            .forward_saving(r, &weights, input, &call, seed, recompute)
            .unwrap();
        assert_eq!(features.shape(), [batch, len, 16]);
        let labels = Labels::upload(r, &[], VOCAB).unwrap();
        let to = Some((&gradients, 1.0));
        let loss = model.loss(r, &weights, &features, &labels, to).unwrap();
        let dfeatures = loss.dfeatures.unwrap();
        model
            .backward(r, [&weights, &gradients], saved, &dfeatures, None)
            .unwrap();
    }
    recorder.submit().unwrap();
}
