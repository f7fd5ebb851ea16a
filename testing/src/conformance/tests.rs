//! The checks themselves, and the golden files against the f64 reference: what needs no device.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use dilated_attention::{Context, DilatedAttentionConfig, reference};
use serde_json::Value;

use super::{Engine, ForwardOutput, Inputs, Summary, check_bytes, check_file};

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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    super::golden_files(&folder).unwrap()
}

/// The reference is far inside the tolerance of single precision: what is left is the rounding of the files to float32
/// and of the softmax scale to the float32 it is configured in.
#[test]
fn reference_equals_the_golden_files() {
    let mut summary = Summary::default();
    for line in golden_files()
        .iter()
        .flat_map(|file| check_file(file, &mut Oracle))
    {
        println!("{line}");
        summary.add(&line);
    }
    println!("{summary}; worst error / tolerance {:.4}", summary.worst);
    assert_eq!(summary.failed, 0);
    assert!(summary.passed >= 253, "only {summary}");
    assert!(summary.worst < 0.05);
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
