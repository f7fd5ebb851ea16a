//! Kernels that are measured, remembered, shipped and compiled ahead.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dilated_attention::device::KernelTier;
use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig, OutputProjection};
use dilated_attention::models::StagedModel;
use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
use dilated_attention::ops::{Matmul, TokenIds};
use dilated_attention::testing::{
    BroadcastTile, ElementFormat, Family, Fill, ForwardFamily, ForwardVariant, Kernel, LaneGroups,
    MatmulFamily, MatmulVariant, Pass, Processor, Reason,
};
use dilated_attention::training::{Batch, LearningRate, Trainer, TrainingOptions};
use dilated_attention::tuning::{TuneOptions, tune, tune_product};
use dilated_attention::{
    AttentionShape, CacheFolder, Context, ContextOptions, DType, DeviceCaps, DilatedAttention,
    DilatedAttentionConfig, Error, KernelOptions,
};

use crate::support::contexts::{context_with, contexts};

/// A folder of a test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("dilated-attention-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn context(&self) -> Context {
        self.context_with_shipped(None)
    }

    fn context_with_shipped(&self, shipped: Option<String>) -> Context {
        context_with(&ContextOptions {
            kernels: KernelOptions {
                cache: CacheFolder::At(self.0.clone()),
                shipped_winners: shipped.map(Into::into),
                ..Default::default()
            },
            ..Default::default()
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config() -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(1, 4, &[64], &[1]).expect("valid")
}

fn tune_options() -> TuneOptions {
    // On drivers that compile slowly enough for one kernel, on others for all.
    TuneOptions {
        budget: Duration::from_secs(15),
        ..Default::default()
    }
}

fn reason(context: &Context) -> Reason {
    let attention = DilatedAttention::new(context, config()).expect("fits");
    attention.choice(DType::F32).unwrap().reason.clone()
}

#[test]
fn a_measured_kernel_is_remembered_by_later_contexts() {
    let folder = Folder::new("tune");
    let context = folder.context();
    assert!(matches!(reason(&context), Reason::Adapter(_)));
    let report = tune(&context, &config(), &tune_options()).expect("measures");
    println!("{report}");
    assert_eq!(report.not_remembered, None);
    assert_eq!(report.passes.len(), 1);
    assert!(!report.passes[0].considered.is_empty());
    let attention = DilatedAttention::new(&context, config()).expect("fits");
    assert!(matches!(
        attention.choice(DType::F32).unwrap().reason,
        Reason::Measured { .. }
    ));
    assert_eq!(
        report.passes[0].choice,
        attention.forward_kernel(DType::F32).unwrap()
    );
    assert!(attention.forward_kernel(DType::U32).is_err());

    // Another context, as in a later process: nothing is measured again, and the plan says why.
    let later = folder.context();
    let remembered = DilatedAttention::new(&later, config()).expect("fits");
    assert_eq!(
        remembered.choice(DType::F32).unwrap(),
        attention.choice(DType::F32).unwrap()
    );
    let shape = AttentionShape::new(1, 64).expect("valid");
    let plan = remembered
        .plan(&shape, DType::F32)
        .expect("plans")
        .to_string();
    assert!(plan.contains("chosen: measured"), "{plan}");
    let report = tune(&later, &config(), &tune_options()).expect("finds");
    assert!(report.passes[0].considered.is_empty(), "{report}");
    // Other heads were not measured.
    let other = DilatedAttentionConfig::new(1, 8, &[64], &[1]).expect("valid");
    let other = DilatedAttention::new(&later, other).expect("fits");
    assert!(matches!(
        other.choice(DType::F32).unwrap().reason,
        Reason::Adapter(_)
    ));

    // Deleted or damaged, it is as if it had never been.
    let file = later.winners_file().expect("has a folder").to_owned();
    let whole = std::fs::read_to_string(&file).expect("was written");
    for text in [&whole[..whole.len() / 2], "", "null", "\0\0\0"] {
        std::fs::write(&file, text).expect("writes");
        assert!(matches!(reason(&folder.context()), Reason::Adapter(_)));
    }
    std::fs::remove_file(&file).expect("removes");
    assert!(matches!(reason(&folder.context()), Reason::Adapter(_)));
}

/// The file that a context with this folder would write, with `variant` as the winner.
fn winners_text(context: &Context, variant: &str) -> String {
    let quick = TuneOptions {
        budget: Duration::ZERO,
        again: true,
        ..Default::default()
    };
    tune(context, &config(), &quick).expect("measures");
    let file = context.winners_file().expect("has a folder");
    let text = std::fs::read_to_string(file).expect("was written");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
    let adapters = json["adapters"].as_object_mut().expect("is an object");
    for tasks in adapters.values_mut() {
        for winner in tasks.as_object_mut().expect("is an object").values_mut() {
            winner["kernel"] = variant.into();
        }
    }
    json.to_string()
}

#[test]
fn a_shipped_file_chooses_among_affordable_kernels_only() {
    let folder = Folder::new("shipped");
    let context = folder.context();
    let caps = context.caps().clone();
    let of_tier = |tier| ForwardFamily::of(&config(), ElementFormat::F32).of_tier(tier, &caps);
    let tile = of_tier(KernelTier::Tile).expect("of every device");
    let name = |variant: ForwardVariant| Kernel::from(variant).key();
    let text = winners_text(&context, &name(tile));
    let file = context.winners_file().expect("has a folder").to_owned();
    std::fs::remove_file(&file).expect("removes");
    let shipped = |text: &str| {
        let context = folder.context_with_shipped(Some(text.to_owned()));
        let attention = DilatedAttention::new(&context, config()).expect("fits");
        (
            attention.variant(DType::F32).unwrap(),
            attention.choice(DType::F32).unwrap().reason.clone(),
        )
    };
    let (chosen, reason) = shipped(&text);
    assert_eq!(chosen, tile);
    assert!(matches!(reason, Reason::Measured { .. }));
    // What is no kernel of this device has no say.
    let hostile = format!("{} lanes={}", name(tile), u32::MAX);
    for kernel in [hostile, String::new(), "rm -rf".to_owned()] {
        let (chosen, reason) = shipped(&text.replace(&name(tile), &kernel));
        assert_eq!(
            chosen,
            ForwardFamily::of(&config(), ElementFormat::F32)
                .choice(&caps)
                .variant
        );
        assert!(matches!(reason, Reason::Adapter(_)));
    }
    // The user's own file goes first.
    let own = ForwardFamily::of(&config(), ElementFormat::F32)
        .choice(&caps)
        .variant;
    std::fs::write(&file, text.replace(&name(tile), &name(own))).expect("writes");
    assert_eq!(shipped(&text).0, own);
}

#[test]
fn nothing_is_written_without_a_folder_and_failures_to_write_are_told() {
    let quick = TuneOptions {
        budget: Duration::ZERO,
        ..Default::default()
    };
    let off = context_with(&ContextOptions::default());
    assert_eq!(off.winners_file(), None);
    let report = tune(&off, &config(), &quick).expect("measures");
    assert!(report.not_remembered.is_some(), "{report}");
    // Within the context it is remembered all the same.
    assert!(matches!(reason(&off), Reason::Measured { .. }));

    let folder = Folder::new("unwritable");
    std::fs::write(&folder.0, "a file where a folder is wanted").expect("writes");
    let context = folder.context();
    let report = tune(&context, &config(), &quick).expect("measures");
    assert!(report.not_remembered.is_some(), "{report}");
    std::fs::remove_file(&folder.0).expect("removes");
    for columns in [0, usize::MAX] {
        let error = tune_product(&context, columns, &quick).expect_err("refused");
        assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
        assert!(error.to_string().contains(&columns.to_string()), "{error}");
    }
}

#[test]
fn a_dry_run_measures_nothing() {
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let report = tune(&dry_run, &config(), &tune_options()).expect("plans");
    assert!(report.passes[0].considered.is_empty());
    assert_eq!(
        dry_run
            .compile_ahead(&[Fill.into()])
            .expect("plans")
            .num_kernels(),
        0
    );
}

/// What a recording runs is told by name, and compiling it ahead tells the same names.
#[test]
fn recordings_and_warm_ups_name_their_kernels() {
    let context = context_with(&ContextOptions::default());
    let record = |context: &Context| {
        let attention = DilatedAttention::new(context, config())?;
        let mut recorder = context.recorder("named");
        let x = recorder.zeros("x", &[1, 64, 1, 4], DType::F32)?;
        attention.forward(&mut recorder, &x, &x, &x)?;
        attention.forward(&mut recorder, &x, &x, &x)?;
        Ok(recorder)
    };
    let names = record(&context).expect("records").kernel_names();
    let report = context.warm_up(record).expect("compiles");
    assert_eq!(names.len(), 1);
    assert!(names[0].starts_with("forward_"), "{names:?}");
    assert_eq!(report.kernel_names().collect::<Vec<_>>(), names);
    assert_eq!(report.num_kernels(), 1);
}

fn tiny_model() -> LongNetConfig {
    let attention = DilatedAttentionConfig::new(2, 4, &[8, 16], &[1, 2]).expect("valid");
    let mut config = LongNetConfig::decoder(attention, 1, 16);
    config.vocab_size = Some(11);
    config.output_projection = OutputProjection::Own;
    config
}

/// Compute pipelines that exist, counted by wgpu.
fn pipelines(context: &Context) -> isize {
    let counters = context.device().get_internal_counters();
    counters.hal.compute_pipelines.read()
}

#[test]
fn after_a_warm_up_nothing_is_left_to_compile() {
    for (limits, context) in contexts() {
        let shape = AttentionShape::new(1, 20).expect("valid");
        let model = LongNet::new(&context, tiny_model()).expect("valid");
        let thread = {
            let (model, context, shape) = (model.clone(), context.clone(), shape.clone());
            std::thread::spawn(move || model.warm_up(&context, &shape))
        };
        let report = thread.join().expect("ends").expect("compiles");
        println!("{limits}\n{report}");
        let before = pipelines(&context);
        assert!(before > 0);
        let weights = model.initial_weights(&context, 0).expect("draws");
        let mut recorder = context.recorder("forward");
        let ids: Vec<u32> = (0..20).map(|i| i % 11).collect();
        let tokens = TokenIds::upload(&mut recorder, &ids, 11).expect("uploads");
        let call = Call::new(shape.clone());
        let input = Input::Tokens(&tokens);
        let output = model.forward(&mut recorder, &weights, input, &call, false);
        let features = output.expect("records").features;
        let logits = model.logits(&mut recorder, &weights, &features);
        logits.expect("records");
        recorder
            .submit()
            .and_then(|submission| submission.wait())
            .expect("runs");
        assert_eq!(pipelines(&context), before, "{limits}");

        let options = TrainingOptions::new(LearningRate::Constant(1e-3));
        let trainer = Trainer::from_weights(&context, model, weights, options);
        let mut trainer = trainer.expect("valid");
        println!(
            "{}",
            trainer
                .warm_up(std::slice::from_ref(&shape))
                .expect("compiles")
        );
        let before = pipelines(&context);
        let batch = Batch::new(shape, ids.clone(), ids).expect("valid");
        trainer
            .step(&[batch])
            .and_then(|step| step.wait())
            .expect("runs");
        assert_eq!(pipelines(&context), before, "{limits}");
    }
}

#[test]
fn after_a_warm_up_a_slide_is_encoded_without_compiling() {
    const TILES: usize = 30;
    for (limits, context) in contexts() {
        let mut config = SlideEncoderConfig::base();
        config.attention = DilatedAttentionConfig::new(2, 16, &[8, 20], &[1, 2])
            .expect("valid")
            .with_torchscale();
        (config.feature_dim, config.num_layers, config.ffn_dim) = (12, 2, 64);
        let encoder = SlideEncoder::new(&context, config).expect("valid");
        let weights = encoder.initial_weights(&context, 1).expect("draws");
        let outputs = SlideOutputs {
            layers: true,
            states: vec![1],
            encoded: true,
            attention: vec![0, 1],
            ..SlideOutputs::default()
        };
        let report = encoder.warm_up(&context, &[TILES], &outputs);
        assert!(report.expect("compiles").num_kernels() > 0);
        let before = pipelines(&context);
        let slide = Slide {
            features: &[0.5; 12 * TILES],
            coords: &[[0.0; 2]; TILES],
        };
        let slides = [slide];
        let run = encoder.run(&context, &weights, &slides, &outputs);
        run.expect("valid").blocking().expect("runs");
        assert_eq!(pipelines(&context), before, "{limits}");
    }
}

/// What a tier can do it does, forward, backward and products; what the device has not is refused.
#[test]
fn kernels_of_one_tier_run_where_they_can() {
    let context = context_with(&ContextOptions::default());
    let cooperative = pollster::block_on(context.test_cooperative_matrices());
    for tier in KernelTier::ALL {
        let forced = context.with_kernel_options(&KernelOptions {
            cache: CacheFolder::Off,
            tier: Some(tier),
            ..Default::default()
        });
        let offered = match (tier, context.caps().processor()) {
            (KernelTier::Tile, _) | (KernelTier::Rows, Processor::Cpu { .. }) => true,
            (
                KernelTier::Broadcast,
                Processor::Cpu {
                    lanes, broadcasts, ..
                },
            ) => lanes == 8 && broadcasts,
            _ => cooperative == Ok(tier),
        };
        let forced = match forced {
            Ok(forced) => forced,
            Err(error) => {
                assert!(!offered, "{error}");
                assert!(error.to_string().contains(&tier.to_string()), "{error}");
                continue;
            }
        };
        assert!(offered, "{tier}");
        let attention = DilatedAttention::new(&forced, config()).expect("fits");
        for dtype in [DType::F32, DType::F16] {
            let of_all_types = !tier.is_cooperative();
            let kernel = Kernel::from(attention.variant(dtype).unwrap());
            assert_eq!(
                kernel.tier() == Some(tier),
                of_all_types || dtype == DType::F16,
                "{tier} {dtype}"
            );
            let backward = attention.backward_variant(dtype).unwrap();
            let kernel = backward.kernel(Pass::Dq).expect("of every backward");
            assert_eq!(
                kernel.tier() == Some(tier),
                of_all_types || dtype == DType::F16,
                "{tier} {dtype}"
            );
        }
        let factors = [ElementFormat::F16; 2];
        let product = MatmulFamily::of_factors(64, factors).of_tier(tier, forced.caps());
        let product = product.expect("every tier has a product");
        for transposed in [[false, false], [false, true], [true, false]] {
            let chosen = MatmulFamily {
                columns: 64,
                factors,
                transposed,
            }
            .choice(forced.caps())
            .variant;
            assert_eq!(chosen, product);
        }
    }
}

/// Shapes of a product that no kernel is written for.
#[test]
fn impossible_shapes_of_products_are_errors() {
    let context = context_with(&ContextOptions::default());
    let broadcast =
        |rows, vec4s, depth| MatmulVariant::Broadcast(BroadcastTile { rows, vec4s, depth });
    let rows = |lanes, groups| MatmulVariant::Rows(LaneGroups { lanes, groups });
    let shapes = [
        broadcast(5, 6, 4),
        broadcast(0, 6, 4),
        broadcast(4, 7, 4),
        broadcast(4, 0, 4),
        broadcast(4, u32::MAX - 1, 4),
        broadcast(4, 6, 3),
        rows(0, 4),
        rows(8, 0),
        rows(8, u32::MAX),
    ];
    for shape in shapes {
        let mut recorder = context.recorder("product");
        let x = recorder.zeros("x", &[8, 8], DType::F32).unwrap();
        let y = recorder.empty("y", &[8, 8], DType::F32).unwrap();
        let product = Matmul::new(x.matrix(), x.matrix()).with_variant(shape);
        let result = product.write(&mut recorder, y.matrix());
        assert!(
            matches!(result, Err(Error::InvalidConfig { .. })),
            "{shape:?}"
        );
    }
}

#[test]
fn trusted_shaders_compute_the_same() {
    let checked = context_with(&ContextOptions::default());
    let trusted = checked
        .with_kernel_options(&KernelOptions {
            cache: CacheFolder::Off,
            trusted_shaders: true,
            ..Default::default()
        })
        .expect("no tier is asked for");
    let config = DilatedAttentionConfig::new(2, 4, &[16, 64], &[1, 4]).expect("valid");
    let _shape = AttentionShape::new(1, 100).expect("valid");
    let data: Vec<f32> = (0..800)
        .map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0)
        .collect();
    let mut recorder = checked.recorder("upload");
    let q = recorder
        .upload("q", &[1, 100, 2, 4], &data)
        .expect("uploads");
    recorder.submit().expect("submits");
    let outputs = [&checked, &trusted].map(|context| {
        let attention = DilatedAttention::new(context, config.clone()).expect("fits");
        let mut recorder = context.recorder("forward");
        // A tensor of one context in a recording of the other.
        let result = attention
            .forward(&mut recorder, &q, &q, &q)
            .expect("records");
        let out = recorder.download::<f32>(&result.out).expect("records");
        recorder.submit().expect("submits");
        out.wait().expect("arrives")
    });
    let worst = outputs[0]
        .iter()
        .zip(&outputs[1])
        .map(|(a, b)| (a - b).abs());
    let worst = worst.fold(0.0, f32::max);
    assert!(worst <= 1e-6, "{worst}");
    assert!(outputs[0].iter().any(|x| x.abs() > 0.1));
}

#[test]
fn compiled_kernels_are_kept_where_the_backend_lets_them() {
    let folder = Folder::new("compiled");
    let files = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&folder.0).map(|entries| entries.flatten().collect());
        let entries: Vec<_> = entries.unwrap_or_default();
        entries.iter().map(std::fs::DirEntry::path).collect()
    };
    let fill = |context: &Context| {
        let kernels = [Fill.into()];
        context.compile_ahead(&kernels).expect("compiles");
    };
    let context = folder.context();
    let offered = dilated_attention::wgpu::Features::PIPELINE_CACHE;
    if !context.device().features().contains(offered) {
        assert!(!context.save_compiled());
        return;
    }
    fill(&context);
    assert!(context.save_compiled());
    let [file]: [PathBuf; 1] = files().try_into().expect("one file");
    let whole = std::fs::read(&file).expect("reads");
    let damage = |place: usize| {
        let mut damaged = whole.clone();
        let place = place % damaged.len();
        damaged[place] ^= 0x80;
        damaged
    };
    let all: Vec<Vec<u8>> = vec![whole.clone(), Vec::new(), damage(3), damage(20), damage(60)];
    for bytes in all {
        std::fs::write(&file, bytes).expect("writes");
        fill(&folder.context());
        assert!(Path::new(&file).is_file());
    }
}
