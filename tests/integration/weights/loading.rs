//! From files to parameters.

use dilated_attention::longnet::{Call, Input, LongNet, LongNetConfig};
use dilated_attention::pool::{PoolError, PoolOptions};
use dilated_attention::weights::{
    Duplicate, StoredType, WeightFile, WeightsError, WeightsMismatch,
};
use dilated_attention::{AttentionShape, ContextOptions, DilatedAttentionConfig, Error};
use half::{bf16, f16};
use testing::weight_files::{f32_bytes, file_of, file_with};

use super::{bits, golden, list, read};
use crate::support::contexts::{context_with, contexts};
use crate::support::numbers::uniform;

fn valid(bytes: Vec<u8>) -> WeightFile {
    WeightFile::from_bytes(bytes).expect("valid")
}

fn mismatch<T: std::fmt::Debug>(result: Result<T, impl Into<Error>>) -> WeightsMismatch {
    match result.map_err(Into::into) {
        Err(Error::Weights(WeightsError::Mismatch(mismatch))) => *mismatch,
        other => panic!("{other:?}"),
    }
}

/// All of an f16's or bf16's bit patterns, but for NaN, whose payloads conversions may change.
fn every_half(is_nan: impl Fn(u16) -> bool) -> Vec<u16> {
    (0..=u16::MAX).filter(|bits| !is_nan(*bits)).collect()
}

#[test]
fn stored_types_are_widened_exactly() {
    let halves = every_half(|bits| f16::from_bits(bits).is_nan());
    let brains = every_half(|bits| bf16::from_bits(bits).is_nan());
    let le = |bits: &[u16]| {
        bits.iter()
            .flat_map(|b| b.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut singles = uniform(1, 1000);
    singles.extend([f32::INFINITY, f32::MIN_POSITIVE / 8.0, -0.0]);
    // A NaN with a payload comes through as it is.
    singles.push(f32::from_bits(0x7fc1_2345));
    let file = valid(file_with(&[
        // So that nothing after it is aligned.
        ("skipped", "U8", &[1], &[0]),
        ("w.half", "F16", &[halves.len()], &le(&halves)),
        ("w.brain", "BF16", &[brains.len() / 2, 2], &le(&brains)),
        ("w.single", "F32", &[singles.len()], &f32_bytes(&singles)),
        ("w.none", "F32", &[0, 3], &[]),
        ("w.scalar", "F32", &[], &f32_bytes(&[2.5])),
    ]));
    // In another order than the file's.
    let parameters = list(&[
        ("single", &[singles.len()]),
        ("brain", &[brains.len() / 2, 2]),
        ("scalar", &[]),
        ("none", &[0, 3]),
        ("half", &[halves.len()]),
    ]);
    let expected = [
        singles,
        brains
            .iter()
            .map(|b| f32::from_bits(u32::from(*b) << 16))
            .collect(),
        vec![2.5],
        vec![],
        halves
            .iter()
            .map(|b| f16::from_bits(*b).to_f64() as f32)
            .collect(),
    ];
    for (limits, context) in contexts() {
        let weights = file.part("w.").load(&context, &parameters).expect("loads");
        let given = read(&context, &weights).expect("reads");
        assert!(bits(&given) == bits(&expected), "{limits}");
        assert_eq!(weights.list(), &parameters);
        drop(weights);
        context.wait().expect("waits");
        let stats = context.pool().stats();
        assert_eq!(stats.leases.current, 0);
        assert!(stats.identities_hold(), "{stats}");
    }
}

#[test]
fn names_may_differ_knowingly() {
    let file = valid(file_with(&[
        ("model.gamma", "F32", &[2], &f32_bytes(&[1.0, 2.0])),
        ("model.xpos.scale", "F64", &[1], &[0; 8]),
        ("optimizer", "I64", &[], &[0; 8]),
    ]));
    let (_, context) = &contexts()[0];
    let parameters = list(&[("norm.weight", &[2])]);
    let weights = file
        .part("model.")
        .with_rename(|name| (name != "xpos.scale").then(|| name.to_owned()))
        .with_rename(|name| Some(name.replace("gamma", "norm.weight")))
        .load(context, &parameters)
        .expect("loads");
    assert_eq!(read(context, &weights).expect("reads"), [[1.0, 2.0]]);
    // Without renaming, the same is three differences.
    let mismatch = mismatch(file.part("model.").check(&parameters));
    assert_eq!(mismatch.missing, ["norm.weight"]);
    assert_eq!(mismatch.unknown, ["model.gamma", "model.xpos.scale"]);
}

#[test]
fn all_differences_are_told_at_once() {
    let one = f32_bytes(&[1.0]);
    let file = valid(file_with(&[
        ("p.shape", "F32", &[1, 1], &one),
        ("p.type", "I32", &[1], &one),
        ("p.both", "F64", &[], &[0; 8]),
        ("p.twice", "F32", &[1], &one),
        ("p.Twice", "F32", &[1], &one),
        ("p.unknown", "F32", &[1], &one),
        ("p.good", "F32", &[1], &one),
        ("p.nan", "F32", &[1], &f32_bytes(&[f32::NAN])),
        ("elsewhere", "F32", &[1], &one),
    ]));
    let names = [
        "shape",
        "type",
        "both",
        "twice",
        "good",
        "nan",
        "missing",
        "missing too",
    ];
    let parameters = list(&names.map(|name| (name, &[1usize][..])));
    let (_, context) = &contexts()[0];
    let before = context.pool().stats();
    let source = file
        .part("p.")
        .with_rename(|name| Some(name.to_lowercase()));
    context.set_check_finite(true);
    let error = source.load(context, &parameters).expect_err("differs");
    let text = error.to_string();
    let given = mismatch(Err::<(), _>(error));
    assert_eq!(given.file, "given bytes");
    assert_eq!(given.missing, ["missing", "missing too"]);
    assert_eq!(given.unknown, ["p.unknown"]);
    let shapes = |m: &WeightsMismatch| -> Vec<_> {
        let shapes = m.misshapen.iter();
        shapes
            .map(|m| (m.name.clone(), m.given.clone(), m.need.clone()))
            .collect()
    };
    assert_eq!(
        shapes(&given),
        [
            ("p.shape".to_owned(), vec![1, 1], vec![1]),
            ("p.both".to_owned(), vec![], vec![1]),
        ]
    );
    let types: Vec<_> = given
        .mistyped
        .iter()
        .map(|m| (m.name.as_str(), m.given))
        .collect();
    assert_eq!(
        types,
        [
            ("p.type", StoredType::Other("I32")),
            ("p.both", StoredType::Other("F64"))
        ]
    );
    assert_eq!(
        given.duplicate,
        [Duplicate {
            parameter: "twice".to_owned(),
            names: vec!["p.twice".to_owned(), "p.Twice".to_owned()],
        }]
    );
    assert_eq!(given.not_finite, ["p.nan"]);
    assert_eq!(
        text,
        "given bytes does not fit the model:
  2 missing: missing, missing too
  1 unknown: p.unknown
  2 misshapen: p.shape ([1, 1], needs [1]), p.both ([], needs [1])
  2 of a type other than F32, F16, BF16: p.type (I32), p.both (F64)
  1 given several times: twice (by p.twice, p.Twice)
  1 not finite: p.nan"
    );
    context.set_check_finite(false);
    // Whether elements are finite is asked only then; the rest is the same.
    let unasked = mismatch(source.load(context, &parameters));
    assert!(unasked.not_finite.is_empty());
    assert_eq!(
        (unasked.missing, unasked.mistyped),
        (given.missing, given.mistyped)
    );
    // Nothing was leased, not even for a moment.
    assert_eq!(context.pool().stats(), before);
    // Of two parameters of one name, one cannot be filled.
    let twice = list(&[("twice", &[1]), ("twice", &[1])]);
    let file = valid(file_with(&[("twice", "F32", &[1], &one)]));
    assert_eq!(mismatch(file.all().check(&twice)).missing, ["twice"]);
}

#[test]
fn long_lists_are_shortened_in_the_text_alone() {
    let names: Vec<String> = (0..50).map(|i| format!("p{i}")).collect();
    let shapes: Vec<(&str, &[usize])> =
        names.iter().map(|name| (name.as_str(), &[1][..])).collect();
    let file = valid(file_of("{}", &[]));
    let given = mismatch(file.all().check(&list(&shapes)));
    assert_eq!(given.missing, names);
    let text = given.to_string();
    assert!(
        text.contains("50 missing: p0, ") && text.ends_with("p19 and 30 more"),
        "{text}"
    );
}

#[test]
fn a_load_that_fails_gives_everything_back() {
    let count = 6 << 20;
    let values = uniform(1, count);
    let bytes = f32_bytes(&values);
    let file = valid(file_with(&[
        ("a", "F32", &[count], &bytes),
        ("b", "F32", &[count], &bytes),
    ]));
    let parameters = list(&[("a", &[count]), ("b", &[count])]);
    let mut failures = 0;
    // A budget below the weights, one that they fill without staging, and one that is enough.
    for budget_mib in [10, 30, 50, 52, 200] {
        let context = context_with(&ContextOptions {
            pool: PoolOptions::default().with_budget_bytes(budget_mib << 20),
            ..Default::default()
        });
        match file.all().load(&context, &parameters) {
            Ok(weights) => {
                let given = read(&context, &weights).expect("reads");
                assert!(given[0] == values && given[1] == values);
            }
            Err(Error::Pool(PoolError::BudgetExceeded { .. })) => failures += 1,
            Err(error) => panic!("{error}"),
        }
        context.wait().expect("waits");
        let stats = context.pool().stats();
        assert_eq!(stats.leases.current, 0, "budget {budget_mib} MiB");
        assert!(stats.identities_hold(), "{stats}");
    }
    assert!((1..5).contains(&failures), "{failures}");
}

/// 240 MiB of weights through staging that is bounded; also tensors of several pieces.
#[test]
fn staging_is_bounded() {
    let count = 20 << 20;
    let values: Vec<f16> = (0..count)
        .map(|i| f16::from_f32((i % 2039) as f32 - 1000.0))
        .collect();
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let names = ["a", "b", "c"];
    let shape = [count];
    let file = valid(file_with(
        &names.map(|name| (name, "F16", &shape[..], &bytes[..])),
    ));
    let parameters = list(&names.map(|name| (name, &shape[..])));
    let context = context_with(&ContextOptions::default());
    let weights = file.all().load(&context, &parameters).expect("loads");
    let stats = context.pool().stats();
    let weight_bytes = 3 * count as u64 * 4;
    let beside = stats.requested_bytes.peak - weight_bytes;
    assert_eq!(beside, 16 << 20, "bytes of staging\n{stats}");
    drop(file);
    let mut recorder = context.recorder("read");
    let (_, last) = weights.iter().last().expect("three");
    let download = recorder.download::<f32>(last).expect("records");
    recorder.submit().expect("submits");
    let given = download.wait().expect("arrives");
    assert!(
        given
            .iter()
            .zip(&values)
            .all(|(given, value)| *given == value.to_f32())
    );
}

/// Features of the file's input `x`, and what the file says they are.
fn features(config: LongNetConfig, name: &str) -> [Vec<f32>; 2] {
    let (_, context) = &contexts()[0];
    let model = LongNet::new(context, config).expect("valid");
    let file = WeightFile::open(golden(name)).expect("valid");
    let weights = file
        .part("w.")
        .with_rename(|name| (!name.ends_with("self_attn.xpos.scale")).then(|| name.to_owned()))
        .load(context, model.parameters())
        .expect("loads");
    let all = |name: &str| {
        let tensor = file.get(name).expect("there");
        tensor.to_f32(0..tensor.num_elements()).expect("reads")
    };
    let shape = file.get("x").expect("there").shape();
    let call = Call::new(AttentionShape::new(shape[0], shape[1]).expect("valid"));
    let mut recorder = context.recorder("forward");
    let x = recorder.upload("x", shape, &all("x")).expect("uploads");
    let output = model
        .forward(&mut recorder, &weights, Input::Embeddings(&x), &call, false)
        .expect("records");
    let out = recorder.download::<f32>(&output.features).expect("records");
    recorder.submit().expect("submits");
    [out.wait().expect("arrives"), all("out")]
}

fn assert_close([given, expected]: [Vec<f32>; 2]) {
    assert_eq!(given.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let error = largest(&mut given.iter().zip(&expected).map(|(a, b)| (a - b).abs()));
    let scale = largest(&mut expected.iter().map(|value| value.abs()));
    assert!(error <= 2e-5 * scale, "{error} of {scale}");
}

#[test]
fn torchscale_weights_load_into_a_model() {
    let attention = DilatedAttentionConfig::new(4, 8, &[16, 32], &[1, 2]).expect("valid");
    let config = |layers| {
        LongNetConfig::encoder(attention.clone().with_torchscale(), layers, 48).with_pre_norm()
    };
    assert_close(features(config(2), "ts_encoder_prenorm.safetensors"));
    // A model of another depth names every parameter that it lacks.
    let file = WeightFile::open(golden("ts_encoder_prenorm.safetensors")).expect("valid");
    let (_, context) = &contexts()[0];
    let deeper = LongNet::new(context, config(3)).expect("valid");
    let given = mismatch(file.part("w.").check(deeper.parameters()));
    assert_eq!(given.missing.len(), 16);
    assert!(
        given
            .missing
            .iter()
            .all(|name| name.starts_with("layers.2."))
    );
    assert!(given.unknown.is_empty());
}

#[test]
fn a_buffer_of_torchscale_is_left_out() {
    let attention = DilatedAttentionConfig::new(4, 8, &[16, 32], &[1, 2]).expect("valid");
    let mut config = LongNetConfig::encoder(attention.with_torchscale(), 1, 48);
    config.xpos_scale_base = Some(512.0);
    assert_close(features(config.clone(), "ts_encoder_xpos.safetensors"));
    let (_, context) = &contexts()[0];
    let model = LongNet::new(context, config).expect("valid");
    let file = WeightFile::open(golden("ts_encoder_xpos.safetensors")).expect("valid");
    let given = mismatch(file.part("w.").check(model.parameters()));
    assert_eq!(given.unknown, ["w.layers.0.self_attn.xpos.scale"]);
    assert!(given.missing.is_empty());
}

/// A checkpoint from inside wrappers: its error names the part that fits, instead of every parameter.
#[test]
fn a_prefix_of_all_names_is_found_and_named() {
    let one = f32_bytes(&[1.0]);
    let names = ["a.weight", "a.bias", "b.weight", "b.bias"];
    let parameters = list(&names.map(|name| (name, &[1usize][..])));
    let wrapped = |prefixes: &[&str]| {
        let full: Vec<String> = prefixes
            .iter()
            .flat_map(|prefix| names.map(|name| format!("{prefix}{name}")))
            .collect();
        let tensors: Vec<(&str, &str, &[usize], &[u8])> = (full.iter())
            .map(|name| (name.as_str(), "F32", &[1usize][..], &one[..]))
            .collect();
        valid(file_with(&tensors))
    };
    for prefix in [
        "module.",
        "_orig_mod.",
        "slide_encoder.",
        "model.",
        "module._orig_mod.slide_encoder.",
    ] {
        let file = wrapped(&[prefix]);
        assert_eq!(file.part_with("b.bias").expect("is there").prefix(), prefix);
        let error = file.all().check(&parameters).expect_err("has a prefix");
        assert_eq!(
            error.to_string(),
            format!(
                "given bytes does not fit the model as asked, but it has 4 of 4 parameters under the prefix {prefix:?}: \
                 load part({prefix:?})"
            )
        );
        file.part(prefix).check(&parameters).expect("fits");
        // Nor is a prefix that is not there a riddle.
        let told = wrapped(&[""])
            .part(prefix)
            .check(&parameters)
            .expect_err("has none")
            .to_string();
        assert!(
            told.ends_with("4 of 4 parameters without a prefix: load all()"),
            "{told}"
        );
    }
    let several = wrapped(&["weights.", "moment_1."]);
    let told = several
        .part_with("a.bias")
        .expect_err("is there twice")
        .to_string();
    assert!(
        told.contains("has a.bias under the prefix \"weights.\"")
            && told.contains("part(\"moment_1.\")"),
        "{told}"
    );
    let told = several
        .part_with("c.bias")
        .expect_err("is not there")
        .to_string();
    assert!(
        told.contains("1 missing: c.bias") && told.contains("8 unknown: weights.a.weight"),
        "{told}"
    );
    let told = several
        .all()
        .check(&parameters)
        .expect_err("has prefixes")
        .to_string();
    assert!(
        told.ends_with("load part(\"moment_1.\"), or part(\"weights.\") with 4"),
        "{told}"
    );
    // One name that is wrong is no wrong prefix, even where another prefix has it.
    let mut tensors: Vec<(String, Vec<u8>)> = names[1..]
        .iter()
        .map(|name| (format!("weights.{name}"), one.clone()))
        .collect();
    tensors.extend(names.map(|name| (format!("moment_1.{name}"), one.clone())));
    let tensors: Vec<(&str, &str, &[usize], &[u8])> = (tensors.iter())
        .map(|(name, bytes)| (name.as_str(), "F32", &[1usize][..], &bytes[..]))
        .collect();
    let file = valid(file_with(&tensors));
    let mismatch = mismatch(file.part("weights.").check(&parameters));
    assert_eq!(
        (mismatch.missing.as_slice(), mismatch.prefixes.len()),
        (&["a.weight".to_owned()][..], 0)
    );
}
