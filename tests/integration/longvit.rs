//! LongViT by its recordings: the same as in one, planned to the byte, given up anywhere; in half precision as near to f32 as
//! that allows. What its results are is compared with golden files, in the example `conformance`.

use std::sync::Arc;

use dilated_attention::longnet::LongNetConfig;
use dilated_attention::models::longvit::{
    FeatureNorm, Images, LongVit, LongVitConfig, LongVitOutput, LongVitOutputs,
};
use dilated_attention::models::{StagedModel, Token};
use dilated_attention::nn::{Init, ParameterList, Parameters};
use dilated_attention::testing::model::{self, Values, layer_norm, linear};
use dilated_attention::testing::{layers, plain};
use dilated_attention::{
    AttentionShape, Context, DType, DeviceCaps, DilatedAttentionConfig, Error, SliceOptions,
    WeightFile, WeightWriter,
};

use crate::support::contexts::contexts;
use crate::support::giving_up::{give_up_everywhere, is_send, settled};
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::models::{assert_near, by_name, draw, largest, upload, wide};
use crate::support::numbers::uniform;

/// Two images of 6 x 5 patches, where the model has learned positions of 4 x 4.
const SIZE: [usize; 3] = [2, 24, 20];
const STATES: [usize; 2] = [0, 2];

fn outputs() -> LongVitOutputs {
    LongVitOutputs {
        states: STATES.to_vec(),
        ..Default::default()
    }
}

fn small() -> LongVitConfig {
    let mut config = LongVitConfig::published(3);
    config.attention = DilatedAttentionConfig::new(2, 16, &[8, 20], &[1, 2])
        .unwrap()
        .with_torchscale();
    config.num_layers = 2;
    config.ffn_dim = 64;
    config.image_size = 16;
    config.patch_size = 4;
    config
}

fn without_head(feature_norm: FeatureNorm) -> LongVitConfig {
    let mut config = small();
    config.feature_norm = feature_norm;
    config.num_classes = None;
    config
}

fn with_weights(context: &Context) -> (LongVit, Parameters) {
    with_weights_of(context, small())
}

fn with_weights_of(context: &Context, config: LongVitConfig) -> (LongVit, Parameters) {
    let model = LongVit::new(context, config).unwrap();
    let mut recorder = context.recorder("weights");
    let values = draw(model.parameters(), 3);
    let weights = upload(&mut recorder, model.parameters(), &values).unwrap();
    recorder.submit().unwrap();
    (model, weights)
}

fn pixels() -> Vec<f32> {
    uniform(1, 3 * SIZE.iter().product::<usize>())
}

fn images(pixels: &[f32]) -> Images<'_> {
    Images { pixels, size: SIZE }
}

fn encode(context: &Context, (model, weights): &(LongVit, Parameters)) -> LongVitOutput {
    let pixels = pixels();
    let run = model.run(context, weights, images(&pixels), &outputs());
    run.unwrap().blocking().unwrap()
}

#[test]
fn recordings_one_by_one_compute_what_one_does() {
    for on in kernel_contexts() {
        let ready = with_weights(&on.context);
        let result = encode(&on.context, &ready);
        assert_eq!((result.batch, result.tokens), (2, 30));
        let (model, weights) = &ready;
        let mut recorder = on.context.recorder("LongViT");
        let output = model
            .forward(&mut recorder, weights, images(&pixels()), true)
            .unwrap();
        let [first, _, last] = &output.encoder.states[..] else {
            panic!("{} states", output.encoder.states.len());
        };
        let logits = output.logits.as_ref().unwrap();
        let expected = [&output.features, logits, first, last];
        let expected = expected.map(|tensor| recorder.download::<f32>(tensor).unwrap());
        recorder.submit().unwrap();
        let [features, logits, first, last] = expected.map(|download| download.wait().unwrap());
        assert_eq!((features.len(), logits.len()), (2 * 32, 2 * 3));
        assert_eq!(result.features, features, "{}", on.name);
        assert_eq!(result.logits, Some(logits), "{}", on.name);
        assert_eq!(result.states, [(0, first), (2, last)], "{}", on.name);
    }
}

/// Images of a batch do not see each other, and patches are where they are in the image: what upside down changes.
#[test]
fn images_of_a_batch_are_what_they_are_alone() {
    let context = &kernel_contexts()[0].context;
    let ready = with_weights(context);
    let batch = encode(context, &ready);
    let (model, weights) = &ready;
    let pixels = pixels();
    for (item, pixels) in pixels.chunks(pixels.len() / 2).enumerate() {
        let size = [1, 24, 20];
        let run = model.run(context, weights, Images { pixels, size }, &outputs());
        let alone = run.unwrap().blocking().unwrap();
        let own = &batch.features[item * 32..(item + 1) * 32];
        assert_near("features", own, &wide(&alone.features));
    }
}

#[test]
fn a_run_asks_for_what_its_plan_says() {
    let configs = [small(), without_head(FeatureNorm::OfPatches)];
    for ((limits, context), mut config) in contexts().into_iter().zip(configs) {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            config.activations = dtype;
            let (model, weights) = with_weights_of(&context, config.clone());
            let caps = context.caps().clone();
            let plan = LongVit::plan(&config, SIZE, &outputs(), caps).unwrap();
            assert_eq!(plan.expected_time, None);
            context.wait().expect("waits");
            context.pool().trim();
            context.pool().reset_peaks();
            let pixels = pixels();
            let run = model.run(&context, &weights, images(&pixels), &outputs());
            let mut run = run.unwrap();
            assert_eq!(run.num_recordings(), 4);
            let mut dispatches = 0;
            while let Some(recorder) = run.next_recording().unwrap() {
                dispatches += recorder.num_dispatches();
                recorder.submit().unwrap().wait().unwrap();
                context.poll().expect("polls");
            }
            assert_eq!(run.num_recorded(), 4);
            pollster::block_on(run.finish()).unwrap();
            let requested_bytes = context.pool().stats().requested_bytes.peak;
            assert_eq!(requested_bytes, plan.requested_bytes, "{limits} {dtype}");
            assert_eq!(dispatches, plan.num_dispatches);
            drop((weights, model));
            assert_eq!(settled(&context, 0), 0);
        }
    }
}

/// Patches of [`pixels`], each (channel, row, column).
fn patches() -> Vec<f32> {
    let (pixels, [batch, height, width]) = (pixels(), SIZE);
    let mut patches = Vec::new();
    for item in 0..batch {
        for (y, x) in (0..height / 4).flat_map(|y| (0..width / 4).map(move |x| (y * 4, x * 4))) {
            for line in
                (0..3).flat_map(|channel| (0..4).map(move |line| channel * height + y + line))
            {
                let begin = (item * 3 * height + line) * width + x;
                patches.extend(&pixels[begin..begin + 4]);
            }
        }
    }
    patches
}

/// First and last state, features and logits in double precision, of which all that is stored between operations is rounded to
/// the activations' type. `positions` are those that are added.
fn in_double_precision(
    config: &LongVitConfig,
    values: &Values,
    positions: &[f32],
) -> [Vec<f64>; 4] {
    let dtype = config.activations;
    let stored = |x: Vec<f64>| match dtype {
        DType::F32 => x,
        _ => {
            let x: Vec<f32> = x.iter().map(|x| *x as f32).collect();
            wide(&plain::rounded(dtype, &x))
        }
    };
    let mut values = values.clone();
    for part in ["weight", "bias"] {
        let value = values[&format!("model.patch_embed.proj.{part}")].clone();
        values.insert(format!("patches.{part}"), value);
    }
    let patches = stored(wide(&patches()));
    let embedded = stored(linear(&values, "patches", &patches, config.channels * 16));
    let positions = stored(wide(positions));
    let sums = embedded.iter().zip(positions.iter().cycle());
    let first = stored(sums.map(|(x, position)| x + position).collect());

    let mut encoder =
        LongNetConfig::encoder(config.attention.clone(), config.num_layers, config.ffn_dim);
    encoder.norm_eps = config.encoder_eps;
    encoder.activations = dtype;
    encoder.final_norm = false;
    let encoder = model::Model {
        config: &encoder,
        values: &values,
        prefix: "model.encoder.",
    };
    let shape = AttentionShape::new(2, 30).unwrap();
    let input = model::Input::Embeddings(&first);
    let last = encoder.features(&shape, input, None).unwrap();
    let means = last.chunks(30 * 32).flat_map(|image| {
        let sum = |at| image.iter().skip(at).step_by(32).sum::<f64>();
        (0..32).map(move |at| sum(at) / 30.0).collect::<Vec<_>>()
    });
    let means: Vec<f64> = means.collect();
    let features = layer_norm(&values, "fc_norm", &means, config.norm_eps);
    let logits = linear(&values, "head", &features, 32);
    [first, last, features, logits]
}

/// Largest and root mean square difference.
fn differences(given: &[f64], expected: &[f64]) -> [f64; 2] {
    assert_eq!(given.len(), expected.len());
    let differences = || given.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let mean = differences().map(|d| d * d).sum::<f64>() / given.len() as f64;
    [differences().fold(0.0, f64::max), mean.sqrt()]
}

/// Half precision against f32: states, features and logits differ by no more than twice what rounding alone makes of them,
/// largest and on average, which double precision tells that rounds whatever is stored.
#[test]
fn half_precision_loses_no_more_than_its_storage_does() {
    for on in kernel_contexts() {
        let single = with_weights(&on.context);
        let mut recorder = on.context.recorder("positions");
        let forward = single
            .0
            .forward(&mut recorder, &single.1, images(&pixels()), false);
        let positions = recorder.download::<f32>(&forward.unwrap().positions);
        recorder.submit().unwrap();
        let positions = positions.unwrap().wait().unwrap();
        let values = by_name(single.0.parameters(), &draw(single.0.parameters(), 3));
        let exact = in_double_precision(&small(), &values, &positions);
        let results = |output: LongVitOutput| {
            let [(0, first), (2, last)] = &output.states[..] else {
                panic!("{} states", output.states.len());
            };
            let logits = output.logits.as_ref().unwrap();
            [first, last, &output.features, logits].map(|values| wide(values))
        };
        let of_single = results(encode(&on.context, &single));
        for dtype in [DType::F16, DType::Bf16] {
            let mut config = small();
            config.activations = dtype;
            let rounded = in_double_precision(&config, &values, &positions);
            let half = with_weights_of(&on.context, config);
            let of_half = results(encode(&on.context, &half));
            for (index, name) in ["first state", "last state", "features", "logits"]
                .iter()
                .enumerate()
            {
                let allowed = differences(&rounded[index], &exact[index]);
                let found = differences(&of_half[index], &of_single[index]);
                let what = format!(
                    "{} {dtype} {name}: {found:?}, by rounding {allowed:?}",
                    on.name
                );
                // Rounding must itself be seen, and be small.
                assert!(
                    allowed[0] > 0.0 && allowed[0] < 0.3 * largest(&exact[index]),
                    "{what}"
                );
                assert!(found[0] > 0.0, "{what}");
                assert!(
                    found[0] <= 2.0 * allowed[0] && found[1] <= 2.0 * allowed[1],
                    "{what}"
                );
            }
        }
    }
}

/// A value that half precision cannot hold makes features NaN: an error, and where it arises can be asked.
#[test]
fn results_that_are_not_finite_are_an_error_that_names_the_patch() {
    let context = &kernel_contexts()[0].context;
    let mut config = small();
    config.activations = DType::F16;
    let (model, weights) = with_weights_of(context, config);
    let mut pixels = pixels();
    // In patch 1 of the second image.
    pixels[3 * 24 * 20 + 4] = 1e5;
    let run = |outputs: &LongVitOutputs| model.run(context, &weights, images(&pixels), outputs);
    let none = LongVitOutputs::default();
    let error = run(&none).unwrap().blocking().unwrap_err();
    let Error::NonFiniteResult(result) = &error else {
        panic!("{error}");
    };
    assert_eq!(
        (result.result, result.item, result.origin),
        ("features", 1, None)
    );
    assert_eq!(result.activations, DType::F16);
    let find = run(&none).unwrap().find_nonfinite(SliceOptions::default());
    let origin = pollster::block_on(find).unwrap().unwrap();
    assert_eq!(
        (origin.item, origin.state, origin.token, origin.tokens),
        (1, 0, Some(Token::Patch(1)), 1)
    );
    let told = run(&outputs()).unwrap().blocking().unwrap_err().to_string();
    let place = "patch 1 in the input of the first layer (item 1 of the batch)";
    assert!(told.contains(place), "{told}");
    let allowed = LongVitOutputs {
        allow_nonfinite: true,
        ..none
    };
    let output = run(&allowed).unwrap().blocking().unwrap();
    assert!(output.features[..32].iter().all(|value| value.is_finite()));
    assert!(output.features[32..].iter().all(|value| value.is_nan()));
}

/// The published size on images of 4096 pixels: patches go up in chunks of 1365.
#[test]
fn a_large_image_goes_up_in_chunks() {
    let caps = DeviceCaps::webgpu_defaults();
    let config = LongVitConfig::published(2);
    let none = LongVitOutputs::default();
    let plan = LongVit::plan(&config, [1, 4096, 4096], &none, caps.clone()).unwrap();
    println!("{plan}");
    assert_eq!(
        (plan.num_tokens, plan.num_recordings),
        (128 * 128, 13 + 12 + 1)
    );
    for size in [[usize::MAX, 32, 32], [1, 1 << 40, 32], [1 << 50, 32, 32]] {
        let error = LongVit::plan(&config, size, &none, caps.clone()).unwrap_err();
        assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
    }
}

#[test]
fn encoding_in_slices_is_the_same_and_can_be_given_up() {
    // Of its own: what other tests lease does not count.
    let [(_, context), _] = &contexts();
    let ready = with_weights(context);
    let at_once = encode(context, &ready);
    let (model, weights) = &ready;
    let (pixels, outputs, options) = (pixels(), outputs(), SliceOptions::default());
    let run = || {
        let run = model.run(context, weights, images(&pixels), &outputs);
        run.unwrap()
    };
    let mut told = Vec::new();
    let encode = run().in_slices(options, |progress| told.push(progress.fraction()));
    is_send(&encode);
    assert_eq!(pollster::block_on(encode).unwrap(), at_once);
    assert!(told.is_sorted() && told.len() >= 4, "{told:?}");
    assert_eq!(told.last(), Some(&1.0));
    let (result, polls) = give_up_everywhere(context, weights, || {
        Box::pin(run().in_slices(options, |_| ()))
    });
    assert!(polls > 1, "{polls}");
    assert_eq!(result, at_once);
    let warm_up = model.warm_up(context, SIZE, &outputs).unwrap();
    assert!(warm_up.num_kernels() > 0);
    // The kernels have been measured now.
    let plan = LongVit::plan_for(context, &small(), SIZE, &outputs).unwrap();
    assert!(plan.expected_time.is_some());
}

#[test]
fn checkpoints_load_strictly() {
    let context = &kernel_contexts()[0].context;
    let ready = with_weights(context);
    let folder = std::env::temp_dir().join(format!("longvit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("longvit.safetensors");
    let writer = WeightWriter::new().with_part("", &ready.1);
    writer.save(context, &path).unwrap();
    let file = WeightFile::open(&path).unwrap();
    let expected = encode(context, &ready);
    let loaded = ready.0.load(context, &file).unwrap();
    assert_eq!(encode(context, &(ready.0, loaded)), expected);
    for (num_layers, key) in [
        (3, "model.encoder.layers.2."),
        (1, "model.encoder.layers.1."),
    ] {
        let mut config = small();
        config.num_layers = num_layers;
        let other = LongVit::new(context, config).unwrap();
        let error = other.load(context, &file).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// torchscale's pretraining: names of its own, every patch normalised before the mean, a head of the pretraining that is left
/// out when that is said; and the fine-tuned order without a head.
#[test]
fn an_encoder_without_a_head_has_features() {
    let context = &kernel_contexts()[0].context;
    let path = std::env::temp_dir().join(format!("pretrained-{}.safetensors", std::process::id()));
    for feature_norm in [FeatureNorm::OfPatches, FeatureNorm::OfMean] {
        let config = without_head(feature_norm);
        let model = LongVit::new(context, config.clone()).unwrap();
        let list = model.parameters();
        let mut recorder = context.recorder("weights");
        let values = draw(list, 3);
        let weights = upload(&mut recorder, list, &values).unwrap();
        let mut of_pretraining = ParameterList::new();
        for name in ["mlp.0.weight", "mlp.0.bias", "last_layer.weight_g"] {
            of_pretraining.add(name.to_owned(), &[4], Init::Ones);
        }
        let of_pretraining = Arc::new(of_pretraining);
        let ones = draw(&of_pretraining, 1);
        let head = upload(&mut recorder, &of_pretraining, &ones).unwrap();
        recorder.submit().unwrap();
        let result = encode(context, &(model.clone(), weights.clone()));
        assert_eq!(result.logits, None);

        let (before, norm) = match feature_norm {
            FeatureNorm::OfPatches => ("backbone.", "backbone.norm"),
            FeatureNorm::OfMean => ("model.", "fc_norm"),
        };
        let named = |name: &String| name.starts_with(before) || name.starts_with("fc_norm.");
        assert!(list.specs().iter().all(|spec| named(&spec.name)));
        let values = by_name(list, &values);
        let [gain, bias] = ["weight", "bias"].map(|name| &values[&format!("{norm}.{name}")]);
        let normal = |x: &[f64]| layers::layer_norm(x, gain, bias, f64::from(config.norm_eps));
        let mean = |x: &[f64]| -> Vec<f64> {
            let sum = |at| x.chunks(32).map(|row| row[at]).sum::<f64>();
            (0..32).map(|at| sum(at) / 30.0).collect()
        };
        let patches = wide(&result.states[1].1);
        let expected = patches
            .chunks(30 * 32)
            .flat_map(|image| match feature_norm {
                FeatureNorm::OfPatches => mean(&normal(image)),
                FeatureNorm::OfMean => normal(&mean(image)),
            });
        assert_near("features", &result.features, &expected.collect::<Vec<_>>());

        let writer = WeightWriter::new().with_part("module.", &weights);
        writer
            .with_part("module.head.", &head)
            .save(context, &path)
            .unwrap();
        let file = WeightFile::open(&path).unwrap();
        let strict = file.part("module.").load(context, list).unwrap_err();
        assert!(
            strict.to_string().contains("module.head.mlp.0.weight"),
            "{strict}"
        );
        let source = file.part("module.").with_rename(|name| {
            let of_pretraining = name.starts_with("head.");
            (!of_pretraining).then(|| name.to_owned())
        });
        let loaded = source.load(context, list).unwrap();
        assert_eq!(encode(context, &(model, loaded)), result);
    }
    std::fs::remove_file(path).unwrap();
    let pretrained = LongVitConfig::pretrained();
    assert_eq!(
        (pretrained.feature_norm, pretrained.num_classes),
        (FeatureNorm::OfPatches, None)
    );
}

#[test]
fn sizes_that_mean_nothing_are_errors() {
    let context = &kernel_contexts()[0].context;
    let wrong: [fn(&mut LongVitConfig); 12] = [
        |config| config.image_size = 0,
        |config| config.image_size = 18,
        |config| config.patch_size = 0,
        |config| config.channels = 0,
        |config| config.num_classes = Some(0),
        |config| config.num_classes = Some(usize::MAX),
        |config| config.norm_eps = f32::NAN,
        |config| config.encoder_eps = 0.0,
        |config| (config.image_size, config.patch_size) = (1 << 40, 1 << 40),
        |config| config.image_size = 1 << 40,
        |config| (config.channels, config.patch_size, config.activations) = (3, 1, DType::F16),
        |config| config.activations = DType::U32,
    ];
    for (index, wrong) in wrong.iter().enumerate() {
        let mut config = small();
        wrong(&mut config);
        let error = LongVit::new(context, config).unwrap_err();
        assert!(
            matches!(error, Error::InvalidConfig { .. }),
            "{index}: {error}"
        );
    }
}

#[test]
fn bad_images_are_errors() {
    let context = &kernel_contexts()[0].context;
    let (model, weights) = with_weights(context);
    let pixels = pixels();
    let error = |pixels: &[f32], size: [usize; 3], states: &[usize]| {
        let outputs = LongVitOutputs {
            states: states.to_vec(),
            ..Default::default()
        };
        let run = model.run(context, &weights, Images { pixels, size }, &outputs);
        run.err().unwrap()
    };
    for (pixels, size, states) in [
        (&pixels[..], [0, 24, 20], &[][..]),
        (&[], [0, 0, 0], &[]),
        (&pixels, [2, 24, 0], &[]),
        (&pixels, [2, 20, 20], &[]),
        (&pixels[1..], SIZE, &[]),
        // Not whole patches.
        (&pixels, [2, 30, 16], &[]),
        (&pixels, [2, usize::MAX, 20], &[]),
        (&pixels, SIZE, &[3]),
    ] {
        let error = error(pixels, size, states);
        assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
    }
    let mut config = small();
    config.num_layers = 1;
    let other = LongVit::new(context, config).unwrap();
    let none = LongVitOutputs::default();
    let foreign = other.run(context, &weights, images(&pixels), &none);
    let foreign = foreign.err().unwrap();
    assert!(
        matches!(foreign, Error::ParameterMismatch { .. }),
        "{foreign}"
    );
    let run = model.run(context, &weights, images(&pixels), &none);
    let early = pollster::block_on(run.unwrap().finish()).unwrap_err();
    assert!(matches!(early, Error::OutOfOrder { .. }), "{early}");
}
