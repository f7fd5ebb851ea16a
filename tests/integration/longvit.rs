//! LongViT by its recordings: the same as in one, planned to the byte, given up anywhere. What its results are is compared with
//! golden files, in the example `conformance`.

use std::sync::Arc;

use dilated_attention::models::longvit::{
    FeatureNorm, LongVit, LongVitConfig, LongVitResult, LongVitRun,
};
use dilated_attention::nn::{Init, ParameterList, Parameters};
use dilated_attention::recorder::SliceOptions;
use dilated_attention::reference::layers;
use dilated_attention::{
    Context, DeviceCaps, DilatedAttentionConfig, Error, WeightFile, WeightWriter,
};

use crate::support::contexts::contexts;
use crate::support::giving_up::{give_up_everywhere, is_send, settled};
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::models::{assert_near, by_name, draw, upload, wide};
use crate::support::numbers::uniform;

/// Two images of 6 x 5 patches, where the model has learned positions of 4 x 4.
const SIZE: [usize; 3] = [2, 24, 20];
const STATES: [usize; 2] = [0, 2];

fn small() -> LongVitConfig {
    let mut config = LongVitConfig::published(3);
    config.attention = DilatedAttentionConfig::new(2, 16, &[8, 20], &[1, 2])
        .unwrap()
        .torchscale();
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

fn images() -> Vec<f32> {
    uniform(1, 3 * SIZE.iter().product::<usize>())
}

fn encode(context: &Context, (model, weights): &(LongVit, Parameters)) -> LongVitResult {
    let images = images();
    model
        .encode_blocking(context, weights, &images, SIZE, &STATES)
        .unwrap()
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
            .forward(&mut recorder, weights, &images(), SIZE, true)
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
    let images = images();
    for (item, image) in images.chunks(images.len() / 2).enumerate() {
        let alone = model
            .encode_blocking(context, weights, image, [1, 24, 20], &[])
            .unwrap();
        let own = &batch.features[item * 32..(item + 1) * 32];
        assert_near("features", own, &wide(&alone.features));
    }
}

#[test]
fn a_run_asks_for_what_its_plan_says() {
    let configs = [small(), without_head(FeatureNorm::OfPatches)];
    for ((limits, context), config) in contexts().into_iter().zip(configs) {
        let (model, weights) = with_weights_of(&context, config.clone());
        let caps = context.caps().clone();
        let plan = LongVit::plan(&config, SIZE, &STATES, caps).unwrap();
        assert_eq!(plan.expected_time, None);
        context.wait().expect("waits");
        context.pool().trim();
        context.pool().reset_peaks();
        let images = images();
        let mut run = LongVitRun::new(&context, &model, &weights, &images, SIZE, &STATES).unwrap();
        assert_eq!(run.num_recordings(), 4);
        let mut dispatches = 0;
        while let Some(recorder) = run.next_recording().unwrap() {
            dispatches += recorder.num_dispatches();
            recorder.submit().unwrap().wait().unwrap();
            context.poll().expect("polls");
        }
        assert_eq!(run.num_recorded(), 4);
        pollster::block_on(run.finish()).unwrap();
        let stats = context.pool().stats();
        assert_eq!(stats.requested_bytes.peak, plan.requested_bytes, "{limits}");
        assert_eq!(dispatches, plan.num_dispatches);
        drop(weights);
        assert_eq!(settled(&context, 0), 0);
    }
}

/// The published size on images of 4096 pixels: patches go up in chunks of 1365.
#[test]
fn a_large_image_goes_up_in_chunks() {
    let caps = DeviceCaps::webgpu_defaults();
    let config = LongVitConfig::published(2);
    let plan = LongVit::plan(&config, [1, 4096, 4096], &[], caps.clone()).unwrap();
    println!("{plan}");
    assert_eq!(
        (plan.num_tokens, plan.num_recordings),
        (128 * 128, 13 + 12 + 1)
    );
    for size in [[usize::MAX, 32, 32], [1, 1 << 40, 32], [1 << 50, 32, 32]] {
        let error = LongVit::plan(&config, size, &[], caps.clone()).unwrap_err();
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
    let (images, options) = (images(), SliceOptions::default());
    let mut told = Vec::new();
    let encode = model.encode(context, weights, &images, SIZE, &STATES, options, |part| {
        told.push(part);
    });
    is_send(&encode);
    assert_eq!(pollster::block_on(encode).unwrap(), at_once);
    assert!(told.is_sorted() && told.len() >= 4, "{told:?}");
    assert_eq!(told.last(), Some(&1.0));
    let (result, polls) = give_up_everywhere(context, weights, || {
        Box::pin(model.encode(context, weights, &images, SIZE, &STATES, options, |_| ()))
    });
    assert!(polls > 1, "{polls}");
    assert_eq!(result, at_once);
    assert!(
        !model
            .warm_up(context, SIZE, &STATES)
            .unwrap()
            .kernels
            .is_empty()
    );
    // The kernels have been measured now.
    let plan = LongVit::plan_for(context, &small(), SIZE, &STATES).unwrap();
    assert!(plan.expected_time.is_some());
}

#[test]
fn checkpoints_load_strictly() {
    let context = &kernel_contexts()[0].context;
    let ready = with_weights(context);
    let folder = std::env::temp_dir().join(format!("longvit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("longvit.safetensors");
    let writer = WeightWriter::new().part("", &ready.1);
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

        let writer = WeightWriter::new().part("module.", &weights);
        writer
            .part("module.head.", &head)
            .save(context, &path)
            .unwrap();
        let file = WeightFile::open(&path).unwrap();
        let strict = file.part("module.").load(context, list).unwrap_err();
        assert!(
            strict.to_string().contains("module.head.mlp.0.weight"),
            "{strict}"
        );
        let source = file.part("module.").rename(|name| {
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
    let wrong: [fn(&mut LongVitConfig); 10] = [
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
    let images = images();
    let error = |images: &[f32], size: [usize; 3], states: &[usize]| {
        LongVitRun::new(context, &model, &weights, images, size, states)
            .err()
            .unwrap()
    };
    for (images, size, states) in [
        (&images[..], [0, 24, 20], &[][..]),
        (&[], [0, 0, 0], &[]),
        (&images, [2, 24, 0], &[]),
        (&images, [2, 20, 20], &[]),
        (&images[1..], SIZE, &[]),
        // Not whole patches.
        (&images, [2, 30, 16], &[]),
        (&images, [2, usize::MAX, 20], &[]),
        (&images, SIZE, &[3]),
    ] {
        let error = error(images, size, states);
        assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
    }
    let mut config = small();
    config.num_layers = 1;
    let other = LongVit::new(context, config).unwrap();
    let foreign = LongVitRun::new(context, &other, &weights, &images, SIZE, &[])
        .err()
        .unwrap();
    assert!(
        matches!(foreign, Error::ParameterMismatch { .. }),
        "{foreign}"
    );
    let run = LongVitRun::new(context, &model, &weights, &images, SIZE, &[]).unwrap();
    let early = pollster::block_on(run.finish()).unwrap_err();
    assert!(matches!(early, Error::InvalidShape { .. }), "{early}");
}
