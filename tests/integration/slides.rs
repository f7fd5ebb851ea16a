//! GigaPath's slide encoder: attention of the CLS token against double precision, batches, memory, bad input. What its results
//! are is compared with golden files, in `golden`.

use std::future::Future;

use dilated_attention::models::gigapath::{
    Slide, SlideEncoder, SlideEncoderConfig, SlideOutput, SlideOutputs,
};
use dilated_attention::models::{StagedModel, Token};
use dilated_attention::nn::Parameters;
use dilated_attention::pool::PoolError;
use dilated_attention::{
    AttentionShape, CacheFolder, CallOptions, Context, ContextOptions, DType, DeviceCaps,
    DilatedAttention, DilatedAttentionConfig, Error, Mask, SliceOptions, WeightFile, WeightWriter,
    reference,
};

use crate::support::contexts::{context_with, contexts};
use crate::support::giving_up::{give_up_everywhere, is_send, requested_by, settled};
use crate::support::kernel_contexts::{TestContext, kernel_contexts, tiny_bindings};
use crate::support::models::{assert_within, draw, upload};
use crate::support::numbers::uniform;

fn small() -> SlideEncoderConfig {
    let mut config = SlideEncoderConfig::base();
    config.attention = DilatedAttentionConfig::new(2, 16, &[8, 20, 64], &[1, 2, 4])
        .unwrap()
        .with_torchscale();
    config.feature_dim = 12;
    config.num_layers = 2;
    config.ffn_dim = 64;
    config
}

fn with_weights(context: &Context, config: SlideEncoderConfig) -> (SlideEncoder, Parameters) {
    let encoder = SlideEncoder::new(context, config).unwrap();
    let mut recorder = context.recorder("weights");
    let values = draw(encoder.parameters(), 3);
    let weights = upload(&mut recorder, encoder.parameters(), &values).unwrap();
    recorder.submit().unwrap();
    (encoder, weights)
}

/// Features and coordinates.
type Tiles = (Vec<f32>, Vec<[f32; 2]>);

/// So many tiles, two of them in one cell.
fn tiles(seed: u64, count: usize, dim: usize) -> Tiles {
    let place = |i: usize| [(i % 7 * 256) as f32 + 3.0, (i / 8 * 256) as f32];
    (uniform(seed, count * dim), (0..count).map(place).collect())
}

fn slides(parts: &[Tiles]) -> Vec<Slide<'_>> {
    parts
        .iter()
        .map(|(features, coords)| Slide { features, coords })
        .collect()
}

fn everything() -> SlideOutputs {
    SlideOutputs {
        layers: true,
        states: vec![0, 2],
        encoded: true,
        attention: vec![0, 1],
        allow_nonfinite: false,
    }
}

fn encode(
    context: &Context,
    (encoder, weights): &(SlideEncoder, Parameters),
    parts: &[Tiles],
) -> SlideOutput {
    let slides = slides(parts);
    let run = encoder.run(context, weights, &slides, &everything());
    run.unwrap().blocking().unwrap()
}

fn all_contexts() -> Vec<&'static TestContext> {
    let mut all: Vec<_> = kernel_contexts().iter().collect();
    all.push(tiny_bindings());
    all
}

/// Values that are 1 for one key each make an output of attention weights: the oracle, asked for them in parts.
#[test]
fn weights_of_a_token_are_what_the_reference_mixes_values_with() {
    let base = || DilatedAttentionConfig::new(3, 16, &[8, 21, 64], &[1, 2, 4]).unwrap();
    let configs = [
        base(),
        base().with_torchscale(),
        base().with_mask(Mask::Causal),
        base().with_torchscale().with_mask(Mask::Causal),
    ];
    let lens = [50usize, 37];
    let shape = AttentionShape::new(2, 50)
        .unwrap()
        .with_valid_lens(&lens)
        .unwrap();
    let dims = [2usize, 50, 3, 16];
    let [q, k] = [1, 2].map(|seed| uniform(seed, dims.iter().product()));
    for on in all_contexts() {
        for config in &configs {
            let attention = DilatedAttention::new(&on.context, config.clone()).unwrap();
            for token in [0usize, 1, 22, 36, 49] {
                let mut recorder = on.context.recorder("weights of a token");
                let q_tensor = recorder.upload("q", &dims, &q).unwrap();
                let k_tensor = recorder.upload("k", &dims, &k).unwrap();
                let forward = attention
                    .forward_with(
                        &mut recorder,
                        &q_tensor,
                        &k_tensor,
                        &k_tensor,
                        &CallOptions::from(&shape),
                    )
                    .unwrap();
                let pair = [&q_tensor, &k_tensor];
                let weights = attention
                    .token_weights_with(
                        &mut recorder,
                        pair,
                        &forward.softmax_state,
                        token,
                        &CallOptions::from(&shape),
                    )
                    .unwrap();
                assert_eq!(weights.shape(), [2, 3, 3, 50]);
                let download = recorder.download::<f32>(&weights).unwrap();
                recorder.submit().unwrap();
                let weights = download.wait().unwrap();
                for item in 0..2usize {
                    let mut summed = vec![0f32; 3 * 50];
                    for plane in weights[item * 450..(item + 1) * 450].chunks(150) {
                        summed
                            .iter_mut()
                            .zip(plane)
                            .for_each(|(sum, value)| *sum += value);
                    }
                    let mut expected = vec![0f64; 3 * 50];
                    if token < lens[item] {
                        for first in (0..50).step_by(16) {
                            let v: Vec<f32> = (0..2 * 50 * 3 * 16)
                                .map(|i| f32::from(u8::from(i / 48 % 50 == first + i % 16)))
                                .collect();
                            let rows = [(item, token)];
                            let out =
                                reference::forward_rows(config, &shape, &q, &k, &v, &rows).unwrap();
                            for (i, value) in out.out.iter().enumerate() {
                                if first + i % 16 < 50 {
                                    expected[i / 16 * 50 + first + i % 16] = *value;
                                }
                            }
                        }
                    }
                    let what = format!("{} {config} token {token} item {item}", on.name);
                    assert_within(&what, &summed, &expected, 1e-5);
                }
            }
        }
    }
}

#[test]
fn slides_of_a_batch_are_what_they_are_alone() {
    let parts = [tiles(1, 60, 12), tiles(2, 7, 12), tiles(3, 1, 12)];
    for on in all_contexts() {
        let model = with_weights(&on.context, small());
        let batch = encode(&on.context, &model, &parts);
        assert_eq!((batch.slides, batch.tokens, batch.width), (3, 61, 32));
        for (slide, part) in parts.iter().enumerate() {
            let alone = encode(&on.context, &model, std::slice::from_ref(part));
            let own = |values: &[f32], size: usize, count: usize| {
                values[slide * size..slide * size + count].to_vec()
            };
            let compare = |what: &str, batch: Vec<f32>, alone: &[f32]| {
                let expected: Vec<f64> = alone.iter().map(|x| f64::from(*x)).collect();
                assert_within(
                    &format!("{} {what} {slide}", on.name),
                    &batch,
                    &expected,
                    1e-5,
                );
            };
            compare("cls", own(&batch.cls, 32, 32), &alone.cls);
            compare("pool", own(&batch.pool, 32, 32), &alone.pool);
            let rows = alone.tokens * 32;
            for (of_batch, of_one) in batch.layers.iter().zip(&alone.layers) {
                compare("layer's cls", own(&of_batch.cls, 32, 32), &of_one.cls);
                compare("layer's pool", own(&of_batch.pool, 32, 32), &of_one.pool);
            }
            for ((_, of_batch), (_, of_one)) in batch.states.iter().zip(&alone.states) {
                compare("state", own(of_batch, 61 * 32, rows), of_one);
            }
            let encoded = batch.encoded.as_deref().unwrap();
            let of_one = alone.encoded.as_deref().unwrap();
            compare("encoded", own(encoded, 61 * 32, rows), of_one);
            for (of_batch, of_one) in batch.attention.iter().zip(&alone.attention) {
                let map = of_batch.map(slide).unwrap();
                compare(
                    "attention",
                    map[..alone.tokens].to_vec(),
                    &of_one.map(0).unwrap(),
                );
            }
        }
    }
}

/// Without zero keys the attention of a token adds up to 1.
#[test]
fn attention_of_the_cls_token_adds_up() {
    for on in kernel_contexts() {
        let model = with_weights(&on.context, small().with_masked_padding());
        let output = encode(&on.context, &model, &[tiles(1, 60, 12)]);
        for attention in &output.attention {
            let map = attention.map(0).unwrap();
            assert_eq!(map.len(), 61);
            assert!((map.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{map:?}");
            assert_eq!(attention.map(1), None);
        }
    }
}

/// Half precision against f32: each of about 20 roundings a layer is by at most 2^-11 (f16) or 2^-8 (bf16) of a value.
#[test]
fn half_precision_is_near_single_precision() {
    let parts = [tiles(1, 60, 12), tiles(2, 20, 12)];
    for on in kernel_contexts() {
        let single = encode(&on.context, &with_weights(&on.context, small()), &parts);
        for (dtype, roundoff) in [(DType::F16, 2f64.powi(-11)), (DType::Bf16, 2f64.powi(-8))] {
            let mut config = small();
            config.activations = dtype;
            let half = encode(&on.context, &with_weights(&on.context, config), &parts);
            for (half, single) in [(&half.cls, &single.cls), (&half.pool, &single.pool)] {
                assert_ne!(half, single);
                let expected: Vec<f64> = single.iter().map(|x| f64::from(*x)).collect();
                assert_within(
                    &format!("{} {dtype}", on.name),
                    half,
                    &expected,
                    20.0 * roundoff,
                );
            }
        }
    }
}

#[test]
fn a_run_asks_for_what_its_plan_says_and_gives_all_back() {
    for (limits, context) in contexts() {
        for dtype in [DType::F32, DType::F16] {
            let mut config = small();
            config.activations = dtype;
            let parts = [tiles(1, 90, 12)];
            let before = context.pool().stats().requested_bytes.current;
            let model = with_weights(&context, config.clone());
            let outputs = SlideOutputs::default();
            let caps = context.caps().clone();
            let plan = SlideEncoder::plan(&config, &[90], &outputs, caps).unwrap();
            context.wait().expect("waits");
            context.pool().trim();
            context.pool().reset_peaks();
            let slides = slides(&parts);
            let (encoder, weights) = &model;
            let mut run = encoder.run(&context, weights, &slides, &outputs).unwrap();
            let mut dispatches = 0;
            while let Some(recorder) = run.next_recording().unwrap() {
                dispatches += recorder.num_dispatches();
                recorder.submit().unwrap().wait().unwrap();
                context.poll().expect("polls");
            }
            pollster::block_on(run.finish()).unwrap();
            context.wait().expect("waits");
            let stats = context.pool().stats();
            let peak = stats.requested_bytes.peak - before;
            assert_eq!(
                peak, plan.requested_bytes,
                "{limits} {dtype}\n{plan}\n{stats}"
            );
            assert_eq!(dispatches, plan.num_dispatches);
            drop(model);
            assert_eq!(context.pool().stats().requested_bytes.current, before);
            assert!(context.pool().stats().identities_hold());
            plan.check_budget(plan.held_bytes).unwrap();
            let refused = plan.check_budget(plan.held_bytes - 1).unwrap_err();
            let budget_bytes = plan.held_bytes - 1;
            assert!(
                matches!(refused, Error::PlanOverBudget { budget_bytes: given, .. } if given == budget_bytes)
            );
        }
    }
}

/// The same slide scanned at 20x and at 40x, with what TRIDENT says of its tiles, read from files: to the bit one embedding.
#[test]
fn scans_at_20x_and_40x_give_the_same_embedding() {
    let folder = std::env::temp_dir().join(format!("scans-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let features = uniform(1, 24 * 12);
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let [(_, context), _] = &contexts();
    let encode = |scale: usize, choice| {
        let coords: Vec<f32> = (0..24)
            .flat_map(|i| [3 + i % 6, 1 + i / 6].map(|cell| (cell * 256 * scale) as f32))
            .collect();
        let own = |name: &str, value: usize| (name.to_owned(), value.to_string());
        let metadata = [
            own("patch_size", 256),
            own("patch_size_level0", 256 * scale),
            own("level0_magnification", 20 * scale),
            own("target_magnification", 20),
            own("overlap", 0),
        ];
        let (features, coords) = (bytes(&features), bytes(&coords));
        let view = |columns, bytes| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![24, columns], bytes)
                .unwrap()
        };
        let views = [
            ("features", view(12, &features)),
            ("coords", view(2, &coords)),
        ];
        let path = folder.join("tiles.safetensors");
        let metadata = Some(metadata.into());
        std::fs::write(&path, safetensors::serialize(views, metadata).unwrap()).unwrap();
        let tiles = slide_files::Tiles::read(&path, 12).unwrap();
        let mut config = small();
        config.tile_size = tiles.tile_size(choice, config.tile_size).unwrap().pixels;
        let (encoder, weights) = with_weights(context, config);
        let slide = Slide {
            features: &tiles.features,
            coords: &tiles.coords,
        };
        let slides = [slide];
        let run = encoder.run(context, &weights, &slides, &SlideOutputs::default());
        run.unwrap().blocking().unwrap().pool
    };
    let of_file = slide_files::TileSizeChoice::OfFile;
    let expected = encode(1, of_file);
    assert_eq!(encode(2, of_file), expected);
    // What came of it while the size was always 256.
    let misread = encode(2, slide_files::TileSizeChoice::Forced(256));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths = (dot(&misread, &misread) * dot(&expected, &expected)).sqrt();
    let cosine = dot(&misread, &expected) / lengths;
    assert!(cosine < 0.999, "{cosine}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The bounds of a large slide at the published sizes, on WebGPU's default limits.
#[test]
fn a_large_slide_fits_where_it_should() {
    let mut config = SlideEncoderConfig::base();
    let caps = DeviceCaps::webgpu_defaults();
    let outputs = SlideOutputs {
        layers: true,
        ..Default::default()
    };
    let tiles = [45_680];
    let single = SlideEncoder::plan(&config, &tiles, &outputs, caps.clone()).unwrap();
    assert!(single.held_bytes <= 1536 << 20, "{single}");
    config.activations = DType::F16;
    let half = SlideEncoder::plan(&config, &tiles, &outputs, caps.clone()).unwrap();
    assert!(half.held_bytes <= 900 << 20, "{half}");
    println!("{single}\n{half}");
    // One activation of the slide lies in several buffers, and memory grows with the tiles.
    let largest = SlideEncoder::plan(&config, &[200_000], &outputs, caps).unwrap();
    println!("{largest}");
    assert!(largest.held_bytes < half.held_bytes * 200 / 44, "{largest}");
}

#[test]
fn a_run_that_is_dropped_gives_everything_back() {
    // Of its own: what other tests lease does not count.
    let [(_, context), _] = &contexts();
    let model = with_weights(context, small());
    let parts = [tiles(1, 40, 12), tiles(2, 30, 12)];
    let slides = slides(&parts);
    context.wait().expect("waits");
    let before = context.pool().stats().requested_bytes.current;
    for stop in 0..=5 {
        let (encoder, weights) = &model;
        let mut run = encoder
            .run(context, weights, &slides, &everything())
            .unwrap();
        assert_eq!(run.num_recordings(), 5);
        for _ in 0..stop {
            run.next_recording().unwrap().unwrap().submit().unwrap();
        }
        match stop < 5 {
            // A recording that is dropped unsubmitted, too.
            true => drop(run.next_recording().unwrap()),
            false => assert!(run.next_recording().unwrap().is_none()),
        }
        drop(run);
        context.wait().expect("waits");
        context.poll().expect("polls");
        assert_eq!(
            context.pool().stats().requested_bytes.current,
            before,
            "after {stop}"
        );
    }
}

/// In slices, with progress, the same to the bit; given up anywhere, nothing stays.
#[test]
fn encoding_in_slices_is_the_same_and_can_be_given_up() {
    // Of its own: what other tests lease does not count.
    let [(_, context), _] = &contexts();
    let (encoder, weights) = with_weights(context, small());
    let (parts, few) = ([tiles(1, 40, 12), tiles(2, 30, 12)], [tiles(1, 5, 12)]);
    let (slides, few) = (slides(&parts), slides(&few));
    let outputs = everything();
    let run = || encoder.run(context, &weights, &slides, &outputs).unwrap();
    let at_once = run().blocking().unwrap();
    let before = requested_by(context, &weights);
    let mut told = Vec::new();
    let options = SliceOptions::default();
    let encode = run().in_slices(options, |progress| told.push(progress.fraction()));
    is_send(&encode);
    assert_eq!(pollster::block_on(encode).unwrap(), at_once);
    assert!(told.is_sorted() && told.len() >= 5, "{told:?}");
    assert_eq!(told.last(), Some(&1.0));
    let (output, polls) = give_up_everywhere(context, &weights, || {
        Box::pin(run().in_slices(options, |_| ()))
    });
    // Once a recording, unless the device is done with one before it is asked.
    assert!(polls > 1, "{polls}");
    // In the smallest slices there are many more.
    let none = SlideOutputs::default();
    let smallest = SliceOptions::default().with_target(std::time::Duration::ZERO);
    let run = || encoder.run(context, &weights, &few, &none).unwrap();
    let (output_of_few, polls) = give_up_everywhere(context, &weights, || {
        Box::pin(run().in_slices(smallest, |_| ()))
    });
    println!("given up at {polls} points");
    assert!(polls > 10, "{polls}");
    assert_eq!(output_of_few, run().blocking().unwrap());
    assert_eq!(output, at_once);
    assert_eq!(settled(context, before), before);
    drop(weights);
    assert_eq!(settled(context, 0), 0);
}

/// Whenever the device is lost, the future says so, and a new context goes on from the file.
#[test]
fn a_lost_device_is_an_error_and_a_new_context_goes_on() {
    let parts = [tiles(1, 40, 12)];
    let (slides, outputs) = (slides(&parts), SlideOutputs::default());
    let open = || {
        let [(_, context), _] = contexts();
        context
    };
    let context = open();
    let (encoder, weights) = with_weights(&context, small());
    let file = pollster::block_on(
        WeightWriter::new()
            .with_part("", &weights)
            .to_bytes(&context),
    );
    let file = WeightFile::from_bytes(file.unwrap()).unwrap();
    let run = encoder.run(&context, &weights, &slides, &outputs);
    let expected = run.unwrap().blocking().unwrap();
    for polls in [0, 1, 2, 4] {
        let context = open();
        let encoder = SlideEncoder::new(&context, small()).unwrap();
        let weights = encoder.load(&context, &file).unwrap();
        let options = SliceOptions::default();
        let run = encoder.run(&context, &weights, &slides, &outputs).unwrap();
        let mut encode = Box::pin(run.in_slices(options, |_| ()));
        let mut waker = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..polls {
            assert!(encode.as_mut().poll(&mut waker).is_pending());
            context.wait().expect("waits");
        }
        context.device().destroy();
        let error = pollster::block_on(encode).unwrap_err();
        assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
    }
    let context = open();
    let encoder = SlideEncoder::new(&context, small()).unwrap();
    let weights = encoder.load(&context, &file).unwrap();
    let run = encoder.run(&context, &weights, &slides, &outputs);
    assert_eq!(run.unwrap().blocking().unwrap(), expected);
}

/// Before anything was measured nothing is expected; then about what it takes, in later contexts of the same adapter, too.
#[test]
fn a_plan_tells_the_time_where_the_pace_was_measured() {
    let folder = std::env::temp_dir().join(format!("slide-cost-model-{}", std::process::id()));
    let open = || {
        let mut options = ContextOptions::default();
        options.kernels.cache = CacheFolder::At(folder.clone());
        context_with(&options)
    };
    let context = open();
    let outputs = SlideOutputs::default();
    let plan = |context: &Context, tiles: usize| {
        SlideEncoder::plan_for(context, &small(), &[tiles], &outputs).unwrap()
    };
    let caps = context.caps().clone();
    let without = SlideEncoder::plan(&small(), &[300], &outputs, caps).unwrap();
    assert_eq!(without.expected_time, None);
    assert_eq!(plan(&context, 300), without);
    let (encoder, weights) = with_weights(&context, small());
    let parts = [tiles(1, 300, 12)];
    let slides = slides(&parts);
    let options = SliceOptions::default();
    let run = || encoder.run(&context, &weights, &slides, &outputs).unwrap();
    let encode = || run().in_slices(options, |_| ());
    // Compiles.
    pollster::block_on(encode()).unwrap();
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..5 {
        let begin = std::time::Instant::now();
        pollster::block_on(encode()).unwrap();
        slowest = slowest.max(begin.elapsed());
    }
    let expected = plan(&context, 300).expected_time.unwrap();
    // What is between slices, and uploads, come on top; a slow slice is believed at once.
    println!("expected {expected:?}, took at most {slowest:?}");
    assert!(
        expected > std::time::Duration::ZERO && expected < 4 * slowest,
        "{expected:?} {slowest:?}"
    );
    let longer = plan(&context, 600).expected_time.unwrap();
    assert!(longer > expected, "{longer:?} {expected:?}");
    // Other kernels were never measured.
    let mut half = small();
    half.activations = DType::F16;
    let half = SlideEncoder::plan_for(&context, &half, &[300], &outputs).unwrap();
    assert_eq!(half.expected_time, None);
    // A recording itself is expected to take its part of that.
    let mut run = run();
    let first = run.next_recording().unwrap().unwrap();
    let first = context.expected_time(&first).unwrap();
    assert!(first > std::time::Duration::ZERO && first < expected);

    assert!(context.save_cost_model());
    let expected = plan(&context, 300);
    assert_eq!(plan(&open(), 300), expected);
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("cost-model-")
        {
            std::fs::write(path, "{\"damaged\"").unwrap();
        }
    }
    assert_eq!(plan(&open(), 300), without);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Memory that runs out at any recording is an error after which the run goes on as if nothing had been.
#[test]
fn a_run_goes_on_after_memory_ran_out() {
    // Of its own: it has a budget.
    let [(_, context), _] = &contexts();
    let (encoder, weights) = with_weights(context, small());
    let parts = [tiles(1, 40, 12), tiles(2, 30, 12)];
    let slides = slides(&parts);
    let outputs = everything();
    let run = || encoder.run(context, &weights, &slides, &outputs).unwrap();
    let expected = run().blocking().unwrap();
    let mut run = run();
    let mut refused = 0;
    // Refused at the first lease, then at ever later ones, until there is room.
    let mut room = 0;
    while run.num_recorded() < run.num_recordings() {
        context.wait().expect("waits");
        context.poll().expect("polls");
        context.pool().force_trim();
        let held = context.pool().stats().held_bytes.current;
        context.pool().set_budget_bytes(Some(held + room));
        match run.next_recording() {
            Err(error) => {
                assert!(
                    matches!(error, Error::Pool(PoolError::BudgetExceeded { .. })),
                    "{error}"
                );
                refused += 1;
                room += 4 << 10;
            }
            Ok(recorder) => {
                context.pool().set_budget_bytes(None);
                recorder.unwrap().submit().unwrap();
                room = 0;
            }
        }
    }
    assert!(refused >= 2 * run.num_recordings(), "only {refused}");
    assert_eq!(pollster::block_on(run.finish()).unwrap(), expected);
}

#[test]
fn parameters_are_those_of_the_checkpoint() {
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let encoder = SlideEncoder::new(&dry_run, SlideEncoderConfig::base()).unwrap();
    let list = encoder.parameters();
    assert_eq!((list.specs().len(), list.num_elements()), (247, 86_330_880));
    for name in [
        "cls_token",
        "patch_embed.proj.bias",
        "encoder.layers.11.self_attn.inner_attn_ln.weight",
        "encoder.layers.0.ffn.ffn_layernorm.bias",
        "encoder.layers.3.final_layer_norm.weight",
        "encoder.layer_norm.bias",
        "norm.weight",
    ] {
        assert!(list.find(name).is_some(), "{name}");
    }
    for config in [SlideEncoderConfig::large(), SlideEncoderConfig::wide()] {
        SlideEncoder::new(&dry_run, config).unwrap();
    }
}

/// Other branches leave every other option as it was.
#[test]
fn other_branches_keep_the_options() {
    let mut config = small();
    config.attention = config
        .attention
        .with_mask(Mask::Causal)
        .with_softmax_scale(0.5)
        .unwrap();
    let changed = config.clone().with_segments(&[16], &[2]).unwrap();
    let expected = DilatedAttentionConfig::new(2, 16, &[16], &[2])
        .unwrap()
        .with_torchscale()
        .with_mask(Mask::Causal)
        .with_softmax_scale(0.5)
        .unwrap();
    assert_eq!(changed.attention, expected);
    assert!(config.clone().with_segments(&[16], &[]).is_err());
    let fine_tuned = config.with_max_wsi_size(250_000).unwrap();
    assert_eq!(fine_tuned.attention.branches()[4].segment_length, 524_288);
}

#[test]
fn checkpoints_load_strictly() {
    let context = &kernel_contexts()[0].context;
    let (encoder, weights) = with_weights(context, small());
    let folder = std::env::temp_dir().join(format!("slide-encoder-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("slide.safetensors");
    let writer = WeightWriter::new().with_part("", &weights);
    writer.save(context, &path).unwrap();
    let file = WeightFile::open(&path).unwrap();
    let parts = [tiles(1, 20, 12)];
    let loaded = encoder.load(context, &file).unwrap();
    let first = encode(context, &(encoder, weights), &parts);
    let encoder = SlideEncoder::new(context, small()).unwrap();
    assert_eq!(encode(context, &(encoder, loaded), &parts), first);
    let mut larger = small();
    larger.num_layers = 3;
    let larger = SlideEncoder::new(context, larger).unwrap();
    let error = larger.load(context, &file).unwrap_err();
    assert!(error.to_string().contains("encoder.layers.2."), "{error}");
    let mut smaller = small();
    smaller.num_layers = 1;
    let smaller = SlideEncoder::new(context, smaller).unwrap();
    let error = smaller.load(context, &file).unwrap_err();
    assert!(error.to_string().contains("encoder.layers.1."), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Numbers of tiles that no machine holds, and none at all, before anything is allocated.
#[test]
fn plans_of_impossible_slides_are_errors() {
    let plan = |config: &SlideEncoderConfig, tiles: &[usize]| {
        let caps = DeviceCaps::webgpu_defaults();
        SlideEncoder::plan(config, tiles, &SlideOutputs::default(), caps).unwrap_err()
    };
    let mut narrow = small();
    narrow.feature_dim = 1;
    for config in [SlideEncoderConfig::base(), narrow] {
        for tiles in [&[][..], &[0], &[usize::MAX], &[1 << 60], &[1 << 50, 3]] {
            let error = plan(&config, tiles);
            assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
        }
    }
    let mut wide = small();
    wide.grid_cells = usize::MAX;
    let error = plan(&wide, &[1]);
    assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
}

#[test]
fn bad_slides_are_errors_that_name_what_is_wrong() {
    let context = &kernel_contexts()[0].context;
    let (encoder, weights) = with_weights(context, small());
    let (features, coords) = tiles(1, 4, 12);
    let good = Slide {
        features: &features,
        coords: &coords,
    };
    let error = |slides: &[Slide<'_>], outputs: &SlideOutputs| {
        let run = encoder.run(context, &weights, slides, outputs);
        run.err().unwrap()
    };
    let none = SlideOutputs::default();
    for place in [
        [f32::NAN, 0.0],
        [0.0, -1.0],
        [256_000.0, 0.0],
        [0.0, f32::INFINITY],
    ] {
        let mut moved = coords.clone();
        moved[2] = place;
        let slide = Slide {
            coords: &moved,
            ..good
        };
        let alone = error(&[slide], &none);
        assert!(
            matches!(
                alone,
                Error::TileOutOfGrid {
                    tile: 2,
                    limit: 256_000,
                    ..
                }
            ),
            "{alone}"
        );
        let second = error(&[good, slide], &none);
        assert!(
            matches!(second, Error::InSlide { slide: 1, .. }),
            "{second}"
        );
        assert!(second.to_string().contains("slide 1: tile 2"), "{second}");
    }
    let empty = Slide {
        features: &[],
        coords: &[],
    };
    for slides in [
        &[][..],
        &[empty],
        &[good, empty],
        &[Slide {
            coords: &coords[..3],
            ..good
        }],
        &[Slide {
            features: &features[..47],
            ..good
        }],
    ] {
        let error = error(slides, &none);
        let inner = match error {
            Error::InSlide { error, .. } => *error,
            other => other,
        };
        assert!(matches!(inner, Error::InvalidShape { .. }), "{inner}");
    }
    let outputs = SlideOutputs {
        states: vec![3],
        ..Default::default()
    };
    assert!(matches!(
        error(&[good], &outputs),
        Error::InvalidShape { .. }
    ));
    let outputs = SlideOutputs {
        attention: vec![2],
        ..Default::default()
    };
    assert!(matches!(
        error(&[good], &outputs),
        Error::InvalidShape { .. }
    ));
    let mut other = small();
    other.num_layers = 1;
    let other = SlideEncoder::new(context, other).unwrap();
    let foreign = other.run(context, &weights, &[good], &none).err().unwrap();
    assert!(
        matches!(foreign, Error::ParameterMismatch { .. }),
        "{foreign}"
    );
}

/// Layers, width, feed-forward width and features come from the shapes; heads from the published models, or from the caller.
#[test]
fn a_checkpoint_tells_its_architecture() {
    let file = |prefix: &str, shapes: &[(&str, [usize; 2])]| {
        let (mut entries, mut end) = (Vec::new(), 0);
        for (name, [rows, columns]) in shapes {
            let begin = end;
            end += rows * columns;
            entries.push(format!(
                r#""{prefix}{name}":{{"dtype":"U8","shape":[{rows},{columns}],"data_offsets":[{begin},{end}]}}"#
            ));
        }
        let json = format!("{{{}}}", entries.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + end, 0);
        WeightFile::from_bytes(bytes).unwrap()
    };
    let sizes = |width: usize, features: usize, ffn: usize| {
        [
            ("patch_embed.proj.weight", [width, features]),
            ("encoder.layers.0.ffn.fc1.weight", [ffn, width]),
            ("encoder.layers.1.ffn.fc1.weight", [ffn, width]),
        ]
    };
    let of = |file: &WeightFile, heads| SlideEncoderConfig::from_weights(&file.all(), heads);
    // GigaPath-Flash, cut to two layers.
    let flash = file("", &sizes(384, 384, 1536));
    let mut expected = SlideEncoderConfig::flash();
    assert_eq!((expected.width(), expected.attention.head_dim()), (384, 24));
    expected.num_layers = 2;
    assert_eq!(of(&flash, None).unwrap(), expected);
    let plan = SlideEncoder::plan(
        &expected,
        &[50],
        &everything(),
        DeviceCaps::webgpu_defaults(),
    );
    assert!(plan.unwrap().num_dispatches > 0);
    for (published, width) in [
        (SlideEncoderConfig::base(), 768),
        (SlideEncoderConfig::wide(), 1536),
    ] {
        let config = of(&file("", &sizes(width, 1536, 40)), None).unwrap();
        assert_eq!(config.attention, published.attention);
        assert_eq!((config.num_layers, config.ffn_dim), (2, 40));
    }
    // A width of nobody's needs to be told its heads, and they must divide it.
    let own = file("", &sizes(96, 12, 100));
    let refused = |heads| of(&own, heads).unwrap_err().to_string();
    assert!(
        refused(None).contains("not known for a width of 96"),
        "{}",
        refused(None)
    );
    for heads in [0, 7, 16] {
        assert!(
            refused(Some(heads)).contains(&format!("{heads} for a width of 96")),
            "{}",
            refused(Some(heads))
        );
    }
    let config = of(&own, Some(8)).unwrap();
    assert_eq!(
        (
            config.width(),
            config.attention.head_dim(),
            config.feature_dim
        ),
        (96, 12, 12)
    );
    let scale = config.attention.softmax_scale();
    assert_eq!(scale, 1.0 / 12f32.sqrt());
    assert_eq!(config.with_heads(4).unwrap().attention.head_dim(), 24);
    // Under a prefix, the error names it.
    let wrapped = file("module.slide_encoder.", &sizes(384, 384, 1536));
    let told = of(&wrapped, None).unwrap_err().to_string();
    assert!(told.contains(r#"part("module.slide_encoder.")"#), "{told}");
    let part = SlideEncoder::weights_in(&wrapped).unwrap();
    assert_eq!(part.prefix(), "module.slide_encoder.");
    assert_eq!(
        SlideEncoderConfig::from_weights(&part, None).unwrap(),
        expected
    );
}

/// One tile that half precision cannot hold makes every value NaN: an error before the run where its features show it, else
/// after the run, and where it arises can be asked.
#[test]
fn results_that_are_not_finite_are_an_error_that_names_the_tile() {
    let [(_, context), _] = contexts();
    let mut config = small();
    config.activations = DType::F16;
    let encoder = SlideEncoder::new(&context, config).unwrap();
    let mut values = draw(encoder.parameters(), 3);
    let mut names = encoder.parameters().specs().iter();
    let embedding = names
        .position(|spec| spec.name == "patch_embed.proj.weight")
        .unwrap();
    // The first element of a token is the sum of the tile's features.
    values[embedding][..12].fill(1.0);
    let mut recorder = context.recorder("weights");
    let weights = upload(&mut recorder, encoder.parameters(), &values).unwrap();
    recorder.submit().unwrap();
    let mut parts = [tiles(1, 40, 12)];
    let run = |parts: &[Tiles], outputs: &SlideOutputs| {
        let slides = slides(parts);
        encoder
            .run(&context, &weights, &slides, outputs)?
            .blocking()
    };
    let place = |parts: &[Tiles]| {
        let slides = slides(parts);
        let run = encoder.run(&context, &weights, &slides, &SlideOutputs::default());
        let find = run.unwrap().find_nonfinite(SliceOptions::default());
        pollster::block_on(find).unwrap()
    };
    run(&parts, &everything()).unwrap();
    assert_eq!(place(&parts), None);

    // Each feature is finite in f16, their sum is not.
    parts[0].0[17 * 12..18 * 12].fill(6e4);
    let error = run(&parts, &SlideOutputs::default()).unwrap_err();
    let Error::NonFiniteResult(result) = &error else {
        panic!("{error}");
    };
    assert_eq!((result.result, result.count, result.of), ("pool", 32, 32));
    assert_eq!(result.origin, None);
    let told = error.to_string();
    assert!(
        told.contains("activations are f16, which holds at most 65504"),
        "{told}"
    );
    let origin = place(&parts).unwrap();
    assert_eq!(
        (origin.state, origin.token, origin.tokens),
        (0, Some(Token::Tile(17)), 1)
    );
    // Where states were asked for, the error says it by itself.
    let told = run(&parts, &everything()).unwrap_err().to_string();
    assert!(
        told.contains("tile 17 in the input of the first layer"),
        "{told}"
    );
    let layers = SlideOutputs {
        layers: true,
        ..SlideOutputs::default()
    };
    let told = run(&parts, &layers).unwrap_err().to_string();
    assert!(
        told.contains("the first are in the input of the first layer"),
        "{told}"
    );
    let allowed = SlideOutputs {
        allow_nonfinite: true,
        ..SlideOutputs::default()
    };
    assert!(
        run(&parts, &allowed)
            .unwrap()
            .cls
            .iter()
            .all(|value| value.is_nan())
    );

    // A feature that f16 cannot hold is found before anything runs.
    parts[0].0[17 * 12 + 5] = 65520.0;
    let error = run(&parts, &SlideOutputs::default()).unwrap_err();
    let told = error.to_string();
    assert!(
        matches!(
            error,
            Error::FeatureNotFinite {
                tile: 17,
                element: 5,
                ..
            }
        ),
        "{told}"
    );
    assert!(
        told.contains("tile 17 hold 65520 (element 5), more than half precision holds"),
        "{told}"
    );
    parts[0].0[17 * 12 + 5] = f32::NAN;
    let error = run(&parts, &SlideOutputs::default()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::FeatureNotFinite {
                tile: 17,
                element: 5,
                ..
            }
        ),
        "{error}"
    );
    drop(weights);
    assert_eq!(settled(&context, 0), 0);
}

/// States that an application keeps are those that a run brings to the host, and the run goes on beside them.
#[test]
fn states_kept_on_the_device_are_those_of_the_run() {
    let (_, context) = &contexts()[0];
    let (encoder, weights) = with_weights(context, small());
    let parts = [tiles(5, 30, 12)];
    let slides = slides(&parts);
    let outputs = SlideOutputs {
        states: vec![0, 1, 2],
        ..SlideOutputs::default()
    };
    let mut run = encoder.run(context, &weights, &slides, &outputs).unwrap();
    assert!(run.state().is_none());
    let mut kept = Vec::new();
    while let Some(recorder) = run.next_recording().unwrap() {
        recorder.submit().unwrap();
        kept.extend(run.state().map(|(index, state)| (index, state.clone())));
    }
    assert!(run.state().is_none());
    let output = pollster::block_on(run.finish()).unwrap();
    assert_eq!(kept.len(), 3);
    for ((index, state), (of_run, values)) in kept.iter().zip(&output.states) {
        assert_eq!((index, state.shape()), (of_run, &[1, 31, 32][..]));
        let mut recorder = context.recorder("kept");
        let download = recorder.download::<f32>(state).unwrap();
        recorder.submit().unwrap();
        assert_eq!(&download.wait().unwrap(), values, "state {index}");
    }
}
