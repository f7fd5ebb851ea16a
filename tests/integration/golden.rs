//! The golden files in `tests/golden`, through the checks of the conformance runner.

#[path = "../../examples/conformance/checks/mod.rs"]
mod checks;
#[path = "../../examples/conformance/gpu.rs"]
mod gpu;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use checks::{Engine, ForwardOutput, Inputs, Summary, check_bytes, check_file};
use dilated_attention::{Context, DType, DilatedAttentionConfig, reference};
use gpu::Gpu;
use serde_json::Value;

use crate::support::kernel_contexts::kernel_contexts;

/// The f64 reference in the place of the GPU.
struct Oracle;

impl Engine for Oracle {
    fn context(&self) -> Option<&Context> {
        None
    }

    fn backward(
        &mut self,
        inputs: &Inputs<'_>,
        dout: &[f32],
        config: &DilatedAttentionConfig,
    ) -> Result<[Vec<f32>; 3], Box<dyn Error>> {
        let Inputs { shape, q, k, v, .. } = inputs;
        let gradients = reference::backward(config, shape, q, k, v, dout)?;
        let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Ok([gradients.dq, gradients.dk, gradients.dv].map(single))
    }

    fn forward(
        &mut self,
        inputs: &Inputs<'_>,
        configs: &[DilatedAttentionConfig],
        each: &mut dyn FnMut(usize, ForwardOutput),
    ) -> Result<(), Box<dyn Error>> {
        let Inputs {
            shape,
            q,
            k,
            v,
            rows,
        } = inputs;
        let rows: Option<Vec<_>> = rows.map(|rows| rows.iter().map(|row| (0, *row)).collect());
        for (number, config) in configs.iter().enumerate() {
            let result = match &rows {
                Some(rows) => reference::forward_rows(config, shape, q, k, v, rows)?,
                None => reference::forward(config, shape, q, k, v)?,
            };
            let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
            each(
                number,
                ForwardOutput {
                    out: single(result.out),
                    softmax_lse: single(result.softmax_lse),
                },
            );
        }
        Ok(())
    }
}

/// The golden files, sorted by name.
fn golden_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "safetensors")
        })
        .collect();
    files.sort();
    files
}

/// Checks every golden file but those whose names begin with `without`, at least `tensors` of theirs; returns the largest error
/// as a part of its tolerance.
fn check_golden_files(engine: &mut dyn Engine, without: Option<&str>, tensors: usize) -> f64 {
    let mut files = golden_files();
    assert!(files.len() >= 75, "only {} golden files", files.len());
    files.retain(|file| {
        let name = file.file_name().unwrap().to_string_lossy();
        without.is_none_or(|without| !name.starts_with(without))
    });
    let (mut summary, mut worst) = (Summary::default(), 0.0);
    for line in files.iter().flat_map(|file| check_file(file, engine)) {
        println!("{line}");
        summary.add(&line);
        if let Some((error, tolerance)) = line.error_and_tolerance
            && tolerance > 0.0
        {
            worst = f64::max(worst, error / tolerance);
        }
    }
    println!("{summary}; worst error / tolerance {worst:.4}");
    assert_eq!(summary.failed, 0);
    assert!(summary.passed >= tensors, "only {summary}");
    worst
}

/// The reference is far inside the tolerance of single precision: what is left is the rounding of the files to float32
/// and of the softmax scale to the float32 it is configured in.
#[test]
fn reference_equals_the_golden_files() {
    assert!(check_golden_files(&mut Oracle, None, 253) < 0.05);
}

/// Whole training runs once, on a context as the runner opens it. AdamW divides by the root of tiny squares: of each run one or
/// two weights have a gradient of nearly 0 in an early step and move by rounding, by more in some kernels than in others, while
/// the header's noise is that of a single run in single precision.
#[test]
fn kernels_equal_the_golden_files() {
    let expected = [(Some("ts_train_"), 718), (None, 786)];
    for (on, (without, tensors)) in kernel_contexts().iter().zip(expected) {
        println!("{}", on.name);
        let mut gpu = Gpu::new(on.context.clone(), DType::F32);
        check_golden_files(&mut gpu, without, tensors);
    }
}

/// Attention, gradients and models of the files' inputs, rounded: errors at most twice those of a plain implementation. All
/// with heads of 8, whose kernels other tests compile, too; the runner takes every file.
#[test]
fn kernels_in_half_precision_lose_what_a_plain_implementation_does() {
    let gradients = ["aligned", "causal", "no_r1", "ragged.", "xpos"];
    let gradients = gradients.map(|kind| format!("ts_grad_{kind}"));
    let others = |kinds: &[&str]| {
        kinds
            .iter()
            .map(|kind| (*kind).to_owned())
            .collect::<Vec<_>>()
    };
    let mut f16 = others(&[
        "ts_mha_subln.",
        "ts_encoder_",
        "ds_mha",
        "ds_grad",
        "quirk_",
    ]);
    f16.extend(gradients);
    let bf16 = others(&["ts_grad_causal", "ts_decoder_", "ds_core_uneven"]);
    let kinds = [(DType::F16, f16), (DType::Bf16, bf16)];
    for (dtype, kinds) in kinds {
        let context = kernel_contexts()[0].context.clone();
        let mut gpu = Gpu::new(context, dtype);
        let mut summary = Summary::default();
        for file in golden_files() {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if kinds.iter().any(|kind| name.starts_with(kind.as_str())) {
                for line in check_file(&file, &mut gpu) {
                    println!("{line}");
                    summary.add(&line);
                }
            }
        }
        println!("{dtype}: {summary}");
        assert_eq!(summary.failed, 0);
        assert!(summary.passed >= 15, "only {summary}");
    }
}

/// Of what a header holds to check generated tensors by, some may be missing; what is there must be right.
#[test]
fn generated_tensors_are_checked_by_what_the_header_holds() {
    let path = golden_files()
        .into_iter()
        .find(|path| path.ends_with("big_core_tiny_causal.safetensors"));
    let good = fs::read(path.unwrap()).unwrap();
    let checks_of = |change: &dyn Fn(&mut Value)| {
        let (header_bytes, rest) =
            good[8..].split_at(u64::from_le_bytes(good[..8].try_into().unwrap()) as usize);
        let mut header: Value = serde_json::from_slice(header_bytes).unwrap();
        let entry = &mut header["__metadata__"]["generator_check"];
        let mut checks: Value = serde_json::from_str(entry.as_str().unwrap()).unwrap();
        change(&mut checks);
        *entry = checks.to_string().into();
        let header = header.to_string();
        let bytes = [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            rest,
        ]
        .concat();
        let lines = check_bytes("big_core_tiny_causal.safetensors", &bytes, &mut Oracle);
        let mut summary = Summary::default();
        lines.iter().for_each(|line| summary.add(line));
        let checks = lines
            .iter()
            .map(ToString::to_string)
            .filter(|line| line.contains("generator_check"));
        (checks.count(), summary.failed)
    };
    let remove = |checks: &mut Value, what: &str, name: &str| {
        checks[what].as_object_mut().unwrap().remove(name).unwrap();
    };
    assert_eq!(checks_of(&|_| ()), (9, 0));
    let fewer = checks_of(&|checks| {
        remove(checks, "first8", "q");
        remove(checks, "last8", "v");
        remove(checks, "bitsum", "k");
    });
    assert_eq!(fewer, (6, 0));
    let no_ends = checks_of(&|checks| {
        checks
            .as_object_mut()
            .unwrap()
            .retain(|what, _| what == "bitsum");
    });
    assert_eq!(no_ends, (3, 0));
    for (what, name, wrong) in [
        ("first8", "q", Value::from(vec![1.0; 8])),
        ("last8", "v", Value::from(vec![1.0; 3])),
        ("first8", "k", Value::from("eight")),
        ("bitsum", "k", Value::from(1)),
        ("bitsum", "q", Value::from("many")),
    ] {
        let (_, failed) = checks_of(&|checks| checks[what][name] = wrong.clone());
        // The check itself, and the file, whose results are not compared then.
        assert_eq!(failed, 2, "{what} {name}");
    }
}

/// Damaged files fail with a reason, whatever is damaged; nothing panics.
#[test]
fn hostile_files_fail() {
    let good = fs::read(&golden_files()[0]).unwrap();
    let name = "ts_core_hostile.safetensors";
    let failed = |bytes: &[u8]| {
        let lines = check_bytes(name, bytes, &mut Oracle);
        let mut summary = Summary::default();
        lines.iter().for_each(|line| summary.add(line));
        assert!(summary.failed > 0, "{lines:?}");
    };
    failed(&[]);
    failed(&good[..good.len() - 1]);
    failed(&[0xff; 64]);
    for header in [
        r#"{}"#,
        r#"{"q":{"dtype":"F32","shape":[1,2,1],"data_offsets":[0,8]}}"#,
        r#"{"__metadata__":{"config":"["}}"#,
        r#"{"q":{"dtype":"F32","shape":[4294967296,4294967296,4,4],"data_offsets":[0,8]}}"#,
        r#"{"q":{"dtype":"F32","shape":[1,0,4294967296,4],"data_offsets":[0,0]},"k":{"dtype":"F32","shape":[1,0,4294967296,4],"data_offsets":[0,0]},"v":{"dtype":"F32","shape":[1,0,4294967296,4],"data_offsets":[0,0]}}"#,
        r#"{"q":{"dtype":"I32","shape":[1,1,1,4],"data_offsets":[0,16]}}"#,
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 16]);
        failed(&bytes);
        bytes.truncate(8 + header.len());
        failed(&bytes);
    }
}
