//! The golden files in `tests/golden` on devices. The crate `testing` checks the reference against them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use dilated_attention::DType;
use dilated_attention::out_of_core::OutOfCoreOptions;
use testing::conformance::{Gpu, Ranks, Summary, check_file, golden_files};

use crate::ranks::with_contexts;
use crate::support::kernel_contexts::{kernel_contexts, short_parts};

/// The golden files whose names `wanted` accepts.
fn files(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files = golden_files(&folder).unwrap();
    assert!(files.len() >= 75, "only {} golden files", files.len());
    files.retain(|file| wanted(&file.file_name().unwrap().to_string_lossy()));
    files
}

/// Checks golden files, at least `tensors` of theirs.
fn check(files: &[PathBuf], gpu: &mut Gpu, tensors: usize) {
    let mut summary = Summary::default();
    for line in files.iter().flat_map(|file| check_file(file, gpu)) {
        println!("{line}");
        summary.add(&line);
    }
    println!("{summary}; worst error / tolerance {:.4}", summary.worst);
    assert_eq!(summary.failed, 0);
    assert!(summary.passed >= tensors, "only {summary}");
}

/// Whole training runs once, on a context as the runner opens it. AdamW divides by the root of tiny squares: of each run one or
/// two weights have a gradient of nearly 0 in an early step and move by rounding, by more in some kernels than in others, while
/// the header's noise is that of a single run in single precision.
#[test]
fn kernels_equal_the_golden_files() {
    for (index, on) in kernel_contexts().iter().enumerate() {
        println!("{}", on.name);
        let trains = index > 0;
        let files = files(|name| trains || !name.starts_with("ts_train_"));
        let mut gpu = Gpu::new(on.context.clone(), DType::F32);
        check(&files, &mut gpu, if trains { 786 } else { 718 });
    }
}

/// Everything there is, with tensors in parts of 13 rows: attention, layers, models, training, attention weights and decoding.
#[test]
fn tensors_in_parts_equal_the_golden_files() {
    let files = files(|name| !name.starts_with("ts_train_"));
    let mut gpu = Gpu::new(short_parts().context.clone(), DType::F32);
    check(&files, &mut gpu, 718);
}

/// Forwards of attention out of core, in blocks that no segment is a multiple of, in f32 and in half precision.
#[test]
fn blocks_out_of_core_equal_the_golden_files() {
    let kinds = [
        "big_core_",
        "ds_core_",
        "fk_",
        "quirk_",
        "sdpa_",
        "ts_core_",
    ];
    let files = files(|name| kinds.iter().any(|kind| name.starts_with(kind)));
    let options = OutOfCoreOptions::new(64 << 20).with_block_tokens(NonZeroUsize::new(19));
    for dtype in [DType::F32, DType::Bf16] {
        let mut gpu = Gpu::new(kernel_contexts()[0].context.clone(), dtype);
        gpu.out_of_core = Some(options.clone());
        check(&files, &mut gpu, 30);
    }
}

/// Attention, gradients, encoders and decoders on three ranks, of which one has tensors in parts of 13 rows.
#[test]
fn ranks_equal_the_golden_files() {
    let kinds = ["ds_", "quirk_", "sdpa_", "ts_"];
    let is_of_ranks = |name: &str| {
        kinds.iter().any(|kind| name.starts_with(kind)) && !name.starts_with("ts_train_")
    };
    with_contexts(|contexts| {
        let mut gpu = Gpu::new(contexts[0].clone(), DType::F32);
        gpu.ranks = Some(Ranks::new(contexts[..3].to_vec()));
        check(&files(is_of_ranks), &mut gpu, 495);
    });
}

/// Attention, gradients and models of the files' inputs, rounded: errors at most twice those of a plain implementation. All
/// with heads of 8, whose kernels other tests compile, too; the runner takes every file.
#[test]
fn kernels_in_half_precision_lose_what_a_plain_implementation_does() {
    let f16 = [
        "ts_mha_subln.",
        "ts_encoder_",
        "ds_mha",
        "ds_grad",
        "quirk_",
        "ts_grad_aligned",
        "ts_grad_causal",
        "ts_grad_no_r1",
        "ts_grad_ragged.",
        "ts_grad_xpos",
    ];
    let bf16 = ["ts_grad_causal", "ts_decoder_", "ds_core_uneven"];
    for (dtype, kinds) in [(DType::F16, &f16[..]), (DType::Bf16, &bf16)] {
        println!("{dtype}");
        let files = files(|name| kinds.iter().any(|kind| name.starts_with(kind)));
        let context = kernel_contexts()[0].context.clone();
        check(&files, &mut Gpu::new(context, dtype), 15);
    }
}
