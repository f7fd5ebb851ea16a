//! Files of torchscale's dilated attention (`ts_core_*`, `quirk_ts_*`).
//!
//! Plain names hold what torchscale computes; `clean_*` the same with padding absent and rows in their place, which is
//! this library's default.

use dilated_attention::ops::XposRole;
use dilated_attention::{DType, DilatedAttentionConfig};

use super::attention::{self, Engine, Inputs, Quantity, StoredInputs, configuration};
use super::golden_file::GoldenFile;
use super::key_counts;
use super::modules;
use super::report::Report;

/// Which of the two a tensor belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// As torchscale.
    Torchscale,
    /// Padding absent, rows in their place.
    Clean,
}

/// `ts_core_*` and `quirk_ts_misaligned*`: both presets, and the counts.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let (stored, config) = read(file)?;
    let (inputs, batch) = (stored.inputs()?, [stored.dims[0]]);
    if !file.has("out") {
        report.fail("out", "missing");
    }
    for preset in [Preset::Torchscale, Preset::Clean] {
        check_preset(file, &batch, &inputs, &config, preset, engine, report)?;
    }
    // What follows runs none of the kernels that are chosen.
    report.ran(Vec::new());
    key_counts::check(file, stored.dims[1], &config.with_torchscale(), report);
    check_positions(file, engine, report)
}

/// Queries and keys after positions, where only those are stored that come before.
fn check_positions(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context().filter(|_| engine.dtype() == DType::F32) else {
        return Ok(());
    };
    for (before, after, role) in [
        ("q", "q_xpos", XposRole::Query),
        ("k", "k_xpos", XposRole::Key),
    ] {
        if file.has(after) {
            let dims = file.shape::<4>(before)?;
            let given = modules::xpos(context, &file.f32s(before, &dims)?, dims, role, false)?;
            modules::compare(file, after, &dims, &given, report);
        }
    }
    Ok(())
}

/// `quirk_ts_lse0*`: torchscale takes a log-sum-exp of exactly 0 for "covered by nothing". That is not reproduced.
pub fn check_zero_lse_quirk(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let (stored, config) = read(file)?;
    let inputs = stored.inputs()?;
    for (tensor, _) in tensors_present(file, Preset::Torchscale) {
        report.skip(&tensor, "lse0");
    }
    let (batch, preset) = ([stored.dims[0]], Preset::Clean);
    check_preset(file, &batch, &inputs, &config, preset, engine, report)
}

/// Compares the tensors of one preset that the file has.
pub fn check_preset(
    file: &GoldenFile,
    batch: &[usize],
    inputs: &Inputs<'_>,
    config: &DilatedAttentionConfig,
    preset: Preset,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let tensors = tensors_present(file, preset);
    if tensors.is_empty() {
        return Ok(());
    }
    let config = match preset {
        Preset::Torchscale => config.clone().with_torchscale(),
        Preset::Clean => config.clone(),
    };
    attention::check(file, batch, inputs, &config, &tensors, engine, report)
}

fn tensors_present(file: &GoldenFile, preset: Preset) -> Vec<(String, Quantity)> {
    let prefix = match preset {
        Preset::Torchscale => "",
        Preset::Clean => "clean_",
    };
    [
        ("out", Quantity::Out),
        ("lse", Quantity::BranchLse),
        ("lse_total", Quantity::TotalLse),
    ]
    .map(|(name, quantity)| (format!("{prefix}{name}"), quantity))
    .into_iter()
    .filter(|(name, _)| file.has(name))
    .collect()
}

/// Inputs and configuration. Files with positions store queries and keys after them too: attention starts there.
fn read(file: &GoldenFile) -> Result<(StoredInputs, DilatedAttentionConfig), String> {
    let names = match file.has("q_xpos") || file.has("k_xpos") {
        true => ["q_xpos", "k_xpos", "v"],
        false => ["q", "k", "v"],
    };
    let stored = StoredInputs::read(file, names)?;
    let [_, _, heads, head_dim] = stored.dims;
    let config = configuration(file, heads, head_dim)?;
    Ok((stored, config))
}
