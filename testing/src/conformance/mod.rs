//! The checks of the golden files, whatever computes the results: a device ([`Gpu`]), or the f64 reference in tests.
//!
//! ```text
//! golden_file    one file: header and tensors, nothing of it trusted
//! ranks          calls on one device, or on ranks with a device each
//! compare        error and tolerance of one tensor
//! report         the result lines
//! attention      outputs and log-sum-exps of dilated attention      key_counts   integer tensors, from the plan alone
//! gradients      gradients of dilated attention                     modules        weights of a file, on the device
//! half           both of them, in half precision
//! torchscale, dense, partitioned, generated, multihead, longnet, longnet_half, gigapath, longvit, training     one module for each family of files
//! ```
//!
//! The kind of a file is the prefix of its name; everything else comes from its header. A kind without a module has
//! each of its tensors reported as skipped, so that nothing is passed over in silence.

mod attention;
mod compare;
mod dense;
mod generated;
mod generator;
mod gigapath;
mod golden_file;
mod gpu;
mod gradients;
mod half;
mod key_counts;
mod longnet;
mod longnet_half;
mod longvit;
mod modules;
mod multihead;
mod partitioned;
mod ranks;
mod report;
#[cfg(test)]
mod tests;
mod torchscale;
mod training;

pub use attention::{Engine, ForwardOutput, Inputs};
pub use gpu::Gpu;
pub use ranks::Ranks;
pub use report::{Line, Summary};

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use dilated_attention::DType;
use golden_file::GoldenFile;
use report::Report;

/// `path` itself when it is no folder, else the golden files below it, sorted. Links to folders are not followed.
pub fn golden_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            files.extend(golden_files(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Checks the file at `path` with results of `engine`.
pub fn check_file(path: &Path, engine: &mut dyn Engine) -> Vec<Line> {
    let name = match path.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => path.to_string_lossy().into_owned(),
    };
    // A panic is a defect, here or in the library. It fails this file, loudly, and the others are still checked.
    let checked = catch_unwind(AssertUnwindSafe(|| match fs::read(path) {
        Ok(bytes) => check_bytes(&name, &bytes, engine),
        Err(error) => failed_file(&name, &format!("cannot be read: {error}")),
    }));
    checked.unwrap_or_else(|_| failed_file(&name, "panicked; the message is on stderr"))
}

/// The report on a file that nothing of could be checked.
pub fn failed_file(name: &str, reason: &str) -> Vec<Line> {
    let mut report = Report::new(name, None);
    report.fail("-", reason);
    report.into_lines()
}

/// Checks a file named `name` that holds `bytes`.
pub fn check_bytes(name: &str, bytes: &[u8], engine: &mut dyn Engine) -> Vec<Line> {
    let file = match GoldenFile::parse(bytes) {
        Ok(file) => file,
        Err(reason) => return failed_file(name, &reason),
    };
    let tier = engine.context().and_then(|context| context.caps().tier());
    let mut report = Report::new(name, tier);
    let kind = |prefix: &str| name.starts_with(prefix);
    let checked = if kind("ts_core_") || kind("quirk_ts_misaligned") {
        torchscale::check(&file, engine, &mut report)
    } else if kind("quirk_ts_lse0") {
        torchscale::check_zero_lse_quirk(&file, engine, &mut report)
    } else if kind("sdpa_") {
        dense::check(&file, engine, &mut report)
    } else if kind("ds_core_") {
        partitioned::check(&file, engine, &mut report)
    } else if kind("big_core_") {
        generated::check(&file, engine, &mut report)
    } else if kind("ts_grad_") {
        gradients::check_torchscale(&file, engine, &mut report)
    } else if kind("ds_grad") {
        gradients::check_partitioned(&file, engine, &mut report)
    } else if kind("ts_mha_") || kind("ds_mha") {
        multihead::check(&file, engine, &mut report)
    } else if kind("ts_encoder_") || kind("ts_decoder_") {
        longnet::check(&file, engine, &mut report)
    } else if engine.dtype() != DType::F32 {
        Ok(())
    } else if kind("ts_train_") {
        training::check(&file, engine, &mut report)
    } else if kind("ds_longnet") {
        longnet::check_encoder_decoder(&file, engine, &mut report)
    } else if kind("gp_slide_") || kind("gp_gen_") || kind("gp_real_") {
        gigapath::check(&file, engine, &mut report)
    } else if kind("lv_") {
        longvit::check(&file, engine, &mut report)
    } else if kind("fk_longnet_lm") {
        longnet::check_embedded(&file, engine, &mut report)
    } else {
        Ok(())
    };
    let idle = engine.ranks().map_or(Ok(()), Ranks::expect_idle);
    if let Err(reason) = idle {
        report.fail("-", reason);
    }
    // fkodom divides by a sum over the sequence, which breaks causality and is ill-conditioned: not reproduced.
    let reason = if kind("fk_") {
        "fk-normalisation"
    } else if engine.dtype() != DType::F32 {
        "f32-only"
    } else {
        "todo"
    };
    match checked {
        Ok(()) => report.skip_rest(&file, reason),
        Err(reason) => report.fail("-", reason),
    }
    report.into_lines()
}
