//! Encoders and decoders that attend to them, against double precision: the two sequences differ in length, and so do items.

use dilated_attention::longnet::{
    Call, CrossAttentionConfig, EncoderDecoder, Input, LongNetConfig, Output, OutputProjection,
    Recompute,
};
use dilated_attention::nn::{ParameterList, ProjectionNorm};
use dilated_attention::ops::{Activation, TokenIds};
use dilated_attention::testing::model::{self, Values};
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttentionConfig, Heads, Result, Tensor,
};

use crate::support::gradients::check_gradients;
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::models::{
    INPUT, Inputs, assert_near, by_name, draw, read, upload, upload_labels, wide,
};

struct Pair {
    name: &'static str,
    encoder: LongNetConfig,
    decoder: LongNetConfig,
    source: Inputs,
    target: Inputs,
    /// Of the decoder's attention to the encoder.
    cross: AttentionShape,
}

struct PairRun {
    features: Vec<f32>,
    /// Gradient of the encoder's embeddings.
    dsource: Vec<f32>,
    gradients: Vec<Vec<f32>>,
}

impl Pair {
    fn new(
        name: &'static str,
        [encoder, decoder]: [LongNetConfig; 2],
        [source, target]: [AttentionShape; 2],
        cross: AttentionShape,
    ) -> Self {
        let source = Inputs::new(&encoder, source);
        let target = Inputs::new(&decoder, target);
        Self {
            name,
            encoder,
            decoder,
            source,
            target,
            cross,
        }
    }

    fn model(&self, context: &Context) -> EncoderDecoder {
        EncoderDecoder::new(context, self.encoder.clone(), self.decoder.clone()).unwrap()
    }

    fn run(&self, context: &Context, values: &[Vec<f32>], recompute: Recompute) -> Result<PairRun> {
        let both = self.model(context);
        let (encoder, decoder) = (both.encoder(), both.decoder());
        let mut recorder = context.recorder("pair");
        let weights = upload(&mut recorder, both.parameters(), values)?;
        let gradients = encoder.zero_gradients(&mut recorder)?;
        let sets = [&weights, &gradients];
        let width = self.encoder.attention().embed_dim();
        let dims = [self.source.shape.batch(), self.source.shape.seq_len()];
        let dims = [dims[0], dims[1], width];
        let source = recorder.upload("source", &dims, &self.source.x)?;
        let source = Input::Embeddings(&source);
        let vocab = self.decoder.vocab_size.unwrap_or(1);
        let ids = TokenIds::upload(&mut recorder, &self.target.tokens, vocab)?;
        let recorder_ = &mut recorder;
        let call = Call::new(self.source.shape.clone());
        let (memory, saved_encoder) =
            encoder.forward_saving(recorder_, &weights, source, &call, None, recompute)?;
        let output = Output {
            features: memory.clone(),
            states: Vec::new(),
        };
        let target = self.target.shape.clone();
        let call = match self.cross.is_cross() {
            true => EncoderDecoder::decoder_call(target, output, &self.source.shape)?,
            false => Call {
                shape: target,
                memory: Some((memory.clone(), self.cross.clone())),
                share: None,
                first_row: 0,
            },
        };
        let ids = Input::Tokens(&ids);
        let (features, saved) =
            decoder.forward_saving(recorder_, &weights, ids, &call, None, recompute)?;
        let labels = upload_labels(recorder_, &self.target.labels, vocab)?;
        let to = Some((&gradients, 1.0 / labels.counted() as f32));
        let loss = decoder.loss(recorder_, &weights, &features, &labels, to)?;
        let dfeatures = loss.dfeatures.expect("asked for");
        let dmemory = recorder_.zeros("dmemory", memory.shape(), DType::F32)?;
        decoder.backward(recorder_, sets, saved, &dfeatures, Some(&dmemory))?;
        let dsource = encoder.backward(recorder_, sets, saved_encoder, &dmemory, None)?;
        let mut tensors: Vec<&Tensor> = vec![&features, &dsource];
        let shapes = [&self.source.shape, &self.target.shape];
        let whole = match self.cross.is_cross() {
            false => None,
            true => {
                Some(both.forward(recorder_, &weights, (source, shapes[0]), (ids, shapes[1]))?)
            }
        };
        tensors.extend(whole.as_ref().map(|whole| &whole.features));
        let (tensors, mut sets) = read(recorder, &tensors, &[&gradients])?;
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().unwrap_or_default();
        let run = PairRun {
            features: next(),
            dsource: next(),
            gradients: sets.pop().unwrap_or_default(),
        };
        if whole.is_some() {
            assert!(next() == run.features, "{}", self.name);
        }
        Ok(run)
    }

    fn reference<'a>(
        config: &'a LongNetConfig,
        values: &'a Values,
        prefix: &'a str,
    ) -> model::Model<'a> {
        model::Model {
            config,
            values,
            prefix,
        }
    }

    fn features(&self, values: &Values) -> Vec<f64> {
        let source = model::Input::Embeddings(&values[INPUT]);
        let encoder = Self::reference(&self.encoder, values, "encoder.");
        let memory = encoder.features(&self.source.shape, source, None).unwrap();
        let target = model::Input::Tokens(&self.target.tokens);
        let decoder = Self::reference(&self.decoder, values, "decoder.");
        let memory = Some((&memory[..], &self.cross));
        decoder
            .features(&self.target.shape, target, memory)
            .unwrap()
    }

    fn objective(&self, values: &Values) -> f64 {
        let decoder = Self::reference(&self.decoder, values, "decoder.");
        decoder.loss(&self.features(values), &self.target.labels)
    }

    fn check(&self, list: &ParameterList, values: &[Vec<f32>], run: &PairRun) {
        let mut values = by_name(list, values);
        values.insert(INPUT.to_owned(), wide(&self.source.x));
        assert_near(self.name, &run.features, &self.features(&values));
        let names = list.specs().iter().map(|spec| spec.name.clone());
        let mut given: Vec<(String, &[f32])> =
            names.zip(run.gradients.iter().map(Vec::as_slice)).collect();
        given.push((INPUT.to_owned(), &run.dsource));
        check_gradients(self.name, &given, &values, 2, |values| {
            self.objective(values)
        });
    }
}

fn attention(segments: &[usize], rates: &[usize]) -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(2, 8, segments, rates).unwrap()
}

fn decoder(attention: DilatedAttentionConfig, cross: CrossAttentionConfig) -> LongNetConfig {
    let mut config = LongNetConfig::decoder(attention, 2, 27);
    config.cross_attention = Some(cross);
    config.vocab_size = Some(21);
    config.output_projection = OutputProjection::Own;
    config
}

fn pairs() -> Vec<Pair> {
    let dense = |projection_norm| CrossAttentionConfig {
        attention: DilatedAttentionConfig::dense(2, 8).unwrap(),
        projection_norm,
    };
    let ragged = |batch, len, lens: &[usize]| {
        let shape = AttentionShape::new(batch, len).unwrap();
        shape.with_valid_lens(lens).unwrap()
    };
    let source = ragged(3, 19, &[19, 7, 0]);
    let target = ragged(3, 26, &[20, 26, 5]);
    let cross = AttentionShape::cross(3, 26, 19).unwrap();
    let cross = cross.with_valid_lens(&[20, 26, 5]).unwrap();
    let cross = cross.with_valid_key_lens(&[19, 7, 0]).unwrap();
    let encoder = LongNetConfig::encoder(attention(&[4, 12], &[1, 2]), 1, 30);
    let decoder_ = decoder(attention(&[5, 20], &[1, 2]), dense(ProjectionNorm::Inner));
    let mut decoder_ = decoder_;
    decoder_.xpos_scale_base = Some(128.0);
    let sub_norm = Pair::new("sub-LN", [encoder, decoder_], [source, target], cross);

    let shapes = [(40, 11), (11, 40)].map(|(source, target)| {
        let shape = |len| AttentionShape::new(2, len).unwrap();
        let cross = AttentionShape::cross(2, target, source).unwrap();
        ([shape(source), shape(target)], cross)
    });
    let [
        (longer_source, longer_cross),
        (shorter_source, shorter_cross),
    ] = shapes;
    let encoder = LongNetConfig::encoder(attention(&[8, 64], &[1, 4]), 2, 18).with_post_norm();
    let mut config = decoder(attention(&[64], &[1]), dense(ProjectionNorm::None)).with_deep_norm();
    config.learned_positions = Some(11);
    let pair = [encoder.clone(), config];
    let post_norm = Pair::new("post-norm", pair, longer_source, longer_cross);

    let groups = attention(&[6, 24], &[1, 2]).with_heads(Heads::Partitioned);
    let cross = dense(ProjectionNorm::QueryKey);
    let mut config = decoder(groups, cross).with_pre_norm();
    config.projection_norm = ProjectionNorm::QueryKey;
    config.activation = Activation::Relu;
    let pair = [encoder, config];
    let query_key = Pair::new("QueryKey", pair, shorter_source, shorter_cross);

    // Two sequences of one length may be dilated alike.
    let cross = CrossAttentionConfig {
        attention: attention(&[7, 21], &[1, 3]),
        projection_norm: ProjectionNorm::None,
    };
    let encoder = LongNetConfig::encoder(attention(&[8, 64], &[1, 4]), 1, 18);
    let config = decoder(attention(&[8], &[1]), cross).with_pre_norm();
    let shape = AttentionShape::new(2, 33).unwrap();
    let shapes = [shape.clone(), shape.clone()];
    let dilated = Pair::new("one length", [encoder, config], shapes, shape);
    vec![sub_norm, post_norm, query_key, dilated]
}

#[test]
fn pairs_and_their_gradients_equal_double_precision() {
    let on = &kernel_contexts()[0].context;
    for pair in pairs() {
        let both = pair.model(on);
        let values = draw(both.parameters(), 6);
        let run = pair.run(on, &values, Recompute::Insides).unwrap();
        pair.check(both.parameters(), &values, &run);
        let again = pair.run(on, &values, Recompute::Layers).unwrap();
        assert!(run.features == again.features, "{}", pair.name);
        assert!(run.dsource == again.dsource, "{}", pair.name);
        assert!(run.gradients == again.gradients, "{}", pair.name);
    }
}
