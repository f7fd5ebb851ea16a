//! Decoding against double precision: every position, whatever was the prompt and however the cache grew, equals its row of
//! the causal forward over the whole sequence.

use std::future::Future;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};

use dilated_attention::longnet::{
    Call, CrossAttentionConfig, GenerateOptions, Generation, Input, KvCache, LongNet,
    LongNetConfig, OutputProjection,
};
use dilated_attention::nn::{Parameters, ProjectionNorm};
use dilated_attention::ops::TokenIds;
use dilated_attention::pool::PoolError;
use dilated_attention::testing::model;
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DilatedAttentionConfig, Error, HeadOffsets, Heads,
    Recorder, Result, Tensor,
};

use crate::support::contexts::context_with;
use crate::support::kernel_contexts::{kernel_contexts, tiny_bindings};
use crate::support::models::{assert_near, by_name, draw, read, tokens, upload, wide};
use crate::support::numbers::uniform;

const VOCAB: usize = 29;

/// Tokens of the encoder that decoders attend to, of which the items have `SOURCE_LENS`.
const SOURCE: usize = 13;
const SOURCE_LENS: [usize; 2] = [13, 6];

fn attention(heads: usize, segments: &[usize], rates: &[usize]) -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(heads, 8, segments, rates).unwrap()
}

fn decoder(attention: DilatedAttentionConfig) -> LongNetConfig {
    let mut config = LongNetConfig::decoder(attention, 2, 21);
    config.vocab_size = Some(VOCAB);
    config.output_projection = OutputProjection::Tied;
    config
}

fn with_xpos(mut config: LongNetConfig, base: f32) -> LongNetConfig {
    config.xpos_scale_base = Some(base);
    config
}

fn with_memory(mut config: LongNetConfig) -> LongNetConfig {
    config.cross_attention = Some(CrossAttentionConfig {
        attention: DilatedAttentionConfig::dense(config.attention().num_heads(), 8).unwrap(),
        projection_norm: ProjectionNorm::QueryKey,
    });
    config
}

/// Decoders that between them have every option that decoding sees.
fn decoders() -> Vec<(&'static str, LongNetConfig)> {
    let three = attention(2, &[4, 8, 32], &[1, 2, 4]);
    // Rates that do not divide: rows move, and take the query of an earlier token.
    let moved = attention(3, &[4, 9, 32], &[1, 2, 3]).with_torchscale();
    let uncovered = attention(2, &[5, 20], &[2, 3]).with_torchscale();
    let groups = attention(3, &[6, 24], &[1, 2])
        .with_heads(Heads::Partitioned)
        .with_head_offsets(HeadOffsets::RoundRobin);
    let mut learned = decoder(moved.clone());
    learned.learned_positions = Some(100);
    learned.embedding_norm = true;
    let mut norms = decoder(groups).with_deep_norm();
    norms.projection_norm = ProjectionNorm::QueryKey;
    vec![
        ("xPos", with_xpos(decoder(three.clone()), 64.0)),
        ("moved rows, learned positions", learned),
        ("moved rows, xPos", with_xpos(decoder(moved), 512.0)),
        ("moved rows, no rate of 1", decoder(uncovered)),
        ("head groups, DeepNorm", with_xpos(norms, 64.0)),
        ("memory", with_memory(decoder(three).with_pre_norm())),
    ]
}

/// A model with its weights and the sequence to be decoded.
struct Session<'a> {
    context: &'a Context,
    model: LongNet,
    weights: Parameters,
    memory: Option<(Tensor, AttentionShape)>,
    batch: usize,
    seq_len: usize,
    tokens: Vec<u32>,
    /// Features in double precision.
    expected: Vec<f64>,
}

impl<'a> Session<'a> {
    fn new(context: &'a Context, config: LongNetConfig, batch: usize, seq_len: usize) -> Self {
        let model = LongNet::new(context, config).unwrap();
        let values = draw(model.parameters(), 7);
        let width = model.config().attention().embed_dim();
        let mut recorder = context.recorder("weights");
        let weights = upload(&mut recorder, model.parameters(), &values).unwrap();
        let source = uniform(8, batch * SOURCE * width);
        let attends = model.config().cross_attention.is_some();
        let cross = AttentionShape::cross(batch, seq_len, SOURCE).unwrap();
        let cross = cross.with_valid_key_lens(&SOURCE_LENS[..batch]);
        let cross = cross.unwrap();
        let memory = attends.then(|| {
            let dims = [batch, SOURCE, width];
            let source = recorder.upload("memory", &dims, &source).unwrap();
            (source, cross.clone())
        });
        recorder.submit().unwrap();
        let tokens = tokens(9, batch * seq_len, VOCAB);
        let shape = AttentionShape::new(batch, seq_len).unwrap();
        let values = by_name(model.parameters(), &values);
        let reference = model::Model {
            config: model.config(),
            values: &values,
            prefix: "",
        };
        let source = wide(&source);
        let memory64 = attends.then_some((&source[..], &cross));
        let input = model::Input::Tokens(&tokens);
        let expected = reference.features(&shape, input, memory64).unwrap();
        Self {
            context,
            model,
            weights,
            memory,
            batch,
            seq_len,
            tokens,
            expected,
        }
    }

    fn cache(&self, capacity: usize) -> KvCache {
        let mut recorder = self.context.recorder("cache");
        let cache = self.model.new_cache(&mut recorder, self.batch, capacity);
        recorder.submit().unwrap();
        cache.unwrap()
    }

    /// Records the next `count` tokens of each item; `wrong` others in their place.
    fn record(
        &self,
        recorder: &mut Recorder,
        cache: &mut KvCache,
        count: usize,
        wrong: bool,
    ) -> Result<Tensor> {
        let first = cache.len();
        let items = self.tokens.chunks(self.seq_len);
        let ids: Vec<u32> = items
            .flat_map(|item| &item[first..first + count])
            .map(|id| match wrong {
                true => VOCAB as u32 - 1 - id,
                false => *id,
            })
            .collect();
        let ids = TokenIds::upload(recorder, &ids, VOCAB)?;
        let shape = AttentionShape::new(self.batch, count)?;
        let memory = self.memory.clone();
        let call = Call {
            shape,
            memory,
            share: None,
            first_row: 0,
        };
        let input = Input::Tokens(&ids);
        self.model
            .decode(recorder, &self.weights, input, &call, cache)
    }

    /// Decodes all that is left after `cache`, in calls of `prompt`, then 1, 1, 1, 5 and so on tokens, and compares.
    fn check_rest(&self, what: &str, cache: &mut KvCache, prompt: usize) {
        let width = self.expected.len() / self.tokens.len();
        let mut recorder = self.context.recorder("decode");
        let (mut parts, mut places) = (Vec::new(), Vec::new());
        let mut count = prompt;
        while cache.len() < self.seq_len {
            let first = cache.len();
            count = count.min(self.seq_len - first);
            parts.push(self.record(&mut recorder, cache, count, false).unwrap());
            assert_eq!(cache.len(), first + count);
            places.push((first, count));
            count = if places.len() % 5 == 0 { 5 } else { 1 };
        }
        let (parts, _) = read(recorder, &parts.iter().collect::<Vec<_>>(), &[]).unwrap();
        for (part, (first, count)) in parts.iter().zip(places) {
            for (item, given) in part.chunks(count * width).enumerate() {
                let begin = (item * self.seq_len + first) * width;
                let expected = &self.expected[begin..begin + given.len()];
                let what = format!("{what}, item {item}, tokens from {first}");
                assert_near(&what, given, expected);
            }
        }
    }
}

#[test]
fn every_position_equals_its_row_of_the_whole() {
    let prompts = [(1, 1), (3, 100), (36, 2)];
    for (on, prompts) in kernel_contexts().iter().zip([&prompts[..], &prompts[..1]]) {
        for (name, config) in decoders() {
            let session = Session::new(&on.context, config, 2, 100);
            for &(prompt, capacity) in prompts {
                let what = format!("{}: {name}, prompt of {prompt}", on.name);
                session.check_rest(&what, &mut session.cache(capacity), prompt);
            }
        }
    }
}

/// Bindings of 16 KiB: the keys of a step need windows.
#[test]
fn steps_in_windows_equal_their_rows() {
    let on = &tiny_bindings().context;
    let dilated = attention(3, &[7, 230], &[1, 1]).with_torchscale();
    let session = Session::new(on, decoder(dilated), 2, 231);
    session.check_rest("windows", &mut session.cache(1), 215);
}

/// One centre of xPos serves every length, also where segments allow no block and where scales grow fast.
#[test]
fn xpos_of_dense_attention_is_finite() {
    let on = &kernel_contexts()[0].context;
    for base in [512.0, 40.0] {
        let dense = DilatedAttentionConfig::dense(2, 8).unwrap();
        let session = Session::new(on, with_xpos(decoder(dense), base), 1, 40);
        session.check_rest(&format!("base {base}"), &mut session.cache(1), 20);
    }
}

#[test]
fn forgotten_tokens_leave_no_trace() {
    let on = &kernel_contexts()[0].context;
    for (name, config) in decoders() {
        let session = Session::new(on, config, 2, 60);
        let mut cache = session.cache(4);
        let mut recorder = on.recorder("wrong");
        session
            .record(&mut recorder, &mut cache, 18, false)
            .unwrap();
        for _ in 0..20 {
            session.record(&mut recorder, &mut cache, 1, true).unwrap();
        }
        recorder.submit().unwrap();
        cache.truncate(18);
        assert_eq!(cache.len(), 18);
        session.check_rest(name, &mut cache, 1);
        // A new prompt from the start, with the encoder read again.
        cache.truncate(0);
        assert!(cache.is_empty());
        session.check_rest(name, &mut cache, 11);
    }
}

/// A step whose recording is dropped has not happened, also when the cache grew in it, once or twice.
#[test]
fn dropped_steps_leave_no_trace() {
    let on = &kernel_contexts()[0].context;
    for (name, config) in decoders() {
        let session = Session::new(on, config, 2, 60);
        for (capacity, len) in [(64, 9), (8, 8), (1, 4)] {
            let mut cache = session.cache(capacity);
            let mut recorder = on.recorder("prompt");
            session
                .record(&mut recorder, &mut cache, len, false)
                .unwrap();
            recorder.submit().unwrap();
            // Two recordings, the second on top of what the first would have done.
            for counts in [&[1, 12][..], &[20]] {
                let mut recorder = on.recorder("dropped");
                for count in counts {
                    session
                        .record(&mut recorder, &mut cache, *count, true)
                        .unwrap();
                }
            }
            cache.truncate(len);
            session.check_rest(name, &mut cache, 1);
        }
        // A prompt may be dropped, too.
        let mut cache = session.cache(2);
        let mut recorder = on.recorder("dropped");
        session.record(&mut recorder, &mut cache, 5, true).unwrap();
        drop(recorder);
        cache.truncate(0);
        session.check_rest(name, &mut cache, 4);
    }
}

fn generate(session: &Session<'_>, prompt: &[u32], options: GenerateOptions) -> Generation {
    let (model, weights) = (&session.model, &session.weights);
    let generation = model.generate(session.context, weights, prompt, &options);
    generation.unwrap()
}

fn awaited(mut generation: Generation) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(token) = pollster::block_on(generation.next_token()).unwrap() {
        tokens.push(token);
    }
    // It stays at its end.
    assert_eq!(pollster::block_on(generation.next_token()), Ok(None));
    tokens
}

/// The likeliest token after each of a sequence, by a forward over all of it.
fn likeliest(session: &Session<'_>, tokens: &[u32]) -> Vec<u32> {
    let mut recorder = session.context.recorder("whole");
    let ids = TokenIds::upload(&mut recorder, tokens, VOCAB).unwrap();
    let call = Call::new(AttentionShape::new(1, tokens.len()).unwrap());
    let (model, weights) = (&session.model, &session.weights);
    let output = model.forward(&mut recorder, weights, Input::Tokens(&ids), &call, false);
    let logits = model.logits(&mut recorder, weights, &output.unwrap().features);
    let (logits, _) = read(recorder, &[&logits.unwrap()], &[]).unwrap();
    let rows = logits[0].chunks(VOCAB);
    rows.map(|row| {
        (0..VOCAB)
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .unwrap() as u32
    })
    .collect()
}

#[test]
fn generated_tokens_are_those_that_a_whole_forward_finds_likeliest() {
    let on = &kernel_contexts()[0].context;
    let (_, config) = decoders().remove(0);
    let session = Session::new(on, config, 1, 8);
    let prompt = [3, 1, 4, 1, 5];
    let options = GenerateOptions::new(30).with_temperature(0.0);
    let generated: Vec<u32> = generate(&session, &prompt, options)
        .map(Result::unwrap)
        .collect();
    assert_eq!(generated.len(), 30);
    let all = [&prompt[..], &generated].concat();
    let expected = likeliest(&session, &all[..all.len() - 1]);
    assert_eq!(generated, expected[prompt.len() - 1..]);
    assert_eq!(awaited(generate(&session, &prompt, options)), generated);
    // Up to the stop token, which is not returned.
    let (end, stop) = (7, generated[7]);
    let end = generated
        .iter()
        .position(|token| *token == stop)
        .unwrap_or(end);
    let stopped = options.with_stop_token(stop);
    assert_eq!(
        awaited(generate(&session, &prompt, stopped)),
        generated[..end]
    );
    assert_eq!(generate(&session, &prompt, stopped).count(), end);
    assert_eq!(
        generate(&session, &prompt, GenerateOptions::new(0)).count(),
        0
    );
}

/// Whatever becomes of a call, the next one draws the same token.
#[test]
fn a_token_that_was_not_computed_is_computed_again() {
    let on = &context_with(&ContextOptions::default());
    let (_, config) = decoders().remove(0);
    let session = Session::new(on, config, 1, 8);
    let prompt = [7; 20];
    let options = GenerateOptions::new(12)
        .with_temperature(1.5)
        .with_top_k(20);
    let expected = awaited(generate(&session, &prompt, options));
    assert_ne!(
        awaited(generate(&session, &prompt, options.with_seed(1))),
        expected
    );
    let mut generation = generate(&session, &prompt, options);
    let mut task = TaskContext::from_waker(Waker::noop());
    let mut dropped = 0;
    for (index, expected) in expected.iter().enumerate() {
        // Dropped after some polls, unless the device was done before. Then refused.
        let mut computed = None;
        for polls in 0..3 {
            let mut next = pin!(generation.next_token());
            computed = (0..polls).find_map(|_| match next.as_mut().poll(&mut task) {
                Poll::Ready(token) => Some(token),
                Poll::Pending => None,
            });
            if computed.is_some() {
                break;
            }
            dropped += usize::from(polls > 0);
        }
        if let Some(token) = computed {
            assert_eq!(token, Ok(Some(*expected)));
            continue;
        }
        if index % 4 == 1 {
            on.wait().expect("waits");
            on.pool().force_trim();
            on.pool().set_budget_bytes(Some(1));
            let error = pollster::block_on(generation.next_token());
            on.pool().set_budget_bytes(None);
            let refused = matches!(error, Err(Error::Pool(PoolError::BudgetExceeded { .. })));
            assert!(refused, "{error:?}");
        }
        assert_eq!(
            pollster::block_on(generation.next_token()),
            Ok(Some(*expected))
        );
    }
    assert_eq!(pollster::block_on(generation.next_token()), Ok(None));
    // The first poll submits, and gives way.
    assert!(dropped >= expected.len(), "{dropped}");
    // An iterator ends with its first error.
    let mut generation = generate(&session, &prompt, options);
    let table = session
        .model
        .parameters()
        .find("embed_tokens.weight")
        .unwrap();
    let table = session.weights.get(table);
    let mut recorder = on.recorder("spoil");
    let spoilt = vec![f32::NAN; table.num_elements() as usize];
    recorder.write(table, &spoilt).unwrap();
    recorder.submit().unwrap();
    let error = generation.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    assert!(error.to_string().contains("logits"), "{error}");
    assert_eq!(generation.next(), None);
}

/// On a context of its own, whose leases are those of this test.
#[test]
fn leases_return_when_caches_go() {
    let on = &context_with(&ContextOptions::default());
    let (_, config) = decoders().remove(0);
    let session = Session::new(on, config, 2, 60);
    on.wait().expect("waits");
    let before = on.pool().stats().leases.current;
    let mut cache = session.cache(1);
    session.check_rest("leases", &mut cache, 3);
    on.wait().expect("waits");
    // What it grew out of goes when it is next looked at: two layers of keys and values are left, and rotations.
    cache.truncate(60);
    assert_eq!(on.pool().stats().leases.current, before + 5);
    drop(cache);
    assert_eq!(on.pool().stats().leases.current, before);
}
