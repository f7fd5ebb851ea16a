//! What the checks of modules share: weights of a file on the device, tensors there and back.

use std::sync::Arc;

use dilated_attention::nn::{ParameterList, Parameters};
use dilated_attention::ops::{Positions, Rotations, XposRole};
use dilated_attention::{Context, DilatedAttentionConfig, Error, Heads, Recorder, Tensor, ops};

use super::attention::mask;
use super::compare::Comparison;
use super::golden_file::GoldenFile;
use super::report::Report;

/// The library's error as the checks report it.
pub fn told(error: Error) -> String {
    error.to_string()
}

/// A size of the file's configuration.
pub fn number(file: &GoldenFile, name: &str) -> Result<usize, String> {
    let value = file.config[name].as_u64();
    let value = value.and_then(|value| usize::try_from(value).ok());
    value.ok_or_else(|| format!("config: {name} is no size"))
}

/// A number of the file's configuration, or what it is when the file does not say.
pub fn float(file: &GoldenFile, names: &[&str], default: f32) -> f32 {
    let found = names.iter().find_map(|name| file.config[*name].as_f64());
    found.map_or(default, |value| value as f32)
}

/// A switch of the file's configuration, off when the file does not say.
pub fn flag(file: &GoldenFile, name: &str) -> bool {
    file.config[name] == true
}

/// Dilated attention as torchscale has it, or with `partitioned` heads.
pub fn attention(file: &GoldenFile, partitioned: bool) -> Result<DilatedAttentionConfig, String> {
    let heads = number(file, "H")?;
    let head_dim = match number(file, "D") {
        Ok(head_dim) => head_dim,
        // It follows from the width where that is given instead.
        Err(reason) => {
            let width = number(file, "embed_dim").map_err(|_| reason)?;
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(format!(
                    "config: embed_dim {width} is no multiple of H {heads}"
                ));
            }
            width / heads
        }
    };
    let (segment_lengths, dilation_rates) = file.branches()?;
    let config = DilatedAttentionConfig::new(heads, head_dim, &segment_lengths, &dilation_rates)
        .map_err(told)?;
    let config = match partitioned {
        true => config.with_heads(Heads::Partitioned),
        false => config.with_torchscale(),
    };
    Ok(config.with_mask(mask(file)))
}

/// The file's weights `w.*`, strictly: all that the list names, and no others. `rename` says what a parameter is called in the file.
pub fn weights(
    file: &GoldenFile,
    recorder: &mut Recorder,
    list: &Arc<ParameterList>,
    rename: &dyn Fn(&str) -> String,
) -> Result<Parameters, String> {
    let weights = some_weights(file, recorder, list, rename)?;
    let known = list.specs().iter();
    let known: Vec<_> = known
        .map(|spec| format!("w.{}", rename(&spec.name)))
        .collect();
    for name in file.names() {
        // A buffer of torchscale's, which follows from the head size.
        let buffer = name.ends_with("xpos.scale");
        if name.starts_with("w.") && !buffer && !known.iter().any(|known| known == name) {
            return Err(format!("the model has no parameter {name}"));
        }
    }
    Ok(weights)
}

/// Those of the file's weights `w.*` that the list names.
pub fn some_weights(
    file: &GoldenFile,
    recorder: &mut Recorder,
    list: &Arc<ParameterList>,
    rename: &dyn Fn(&str) -> String,
) -> Result<Parameters, String> {
    let weights = Parameters::zeros(recorder, list, "weights").map_err(told)?;
    for (spec, tensor) in weights.iter() {
        let values = file.f32s(&format!("w.{}", rename(&spec.name)), &spec.shape)?;
        recorder.write(tensor, &values).map_err(told)?;
    }
    Ok(weights)
}

/// A name that stays as it is.
pub fn same(name: &str) -> String {
    name.to_owned()
}

/// Compares a result with a tensor of the file, if it has it.
pub fn compare(file: &GoldenFile, name: &str, shape: &[usize], given: &[f32], report: &mut Report) {
    if !file.has(name) {
        return;
    }
    match file
        .f32s(name, shape)
        .and_then(|values| Comparison::of(&values, given))
    {
        Ok(comparison) => report.compared(name, comparison, tolerance(file, name, &comparison)),
        Err(reason) => report.fail(name, reason),
    }
}

/// Without positions the true gradient of a key bias is 0: what remains is compared with the gradient of the query bias.
fn tolerance(file: &GoldenFile, name: &str, comparison: &Comparison) -> f64 {
    let tolerance = comparison.f32_tolerance(file, name);
    let Some(prefix) = name.strip_suffix("k_proj.bias") else {
        return tolerance;
    };
    let shape = file.shape::<1>(name);
    let sibling = format!("{prefix}q_proj.bias");
    let values = shape.and_then(|shape| file.f32s(&sibling, &shape));
    match values.and_then(|values| Comparison::of(&values, &values)) {
        Ok(sibling) => tolerance.max(1e-5 * sibling.max_abs_reference),
        Err(_) => tolerance,
    }
}

/// Compares gradients, or weights, with the tensors `prefix` + name of the file.
pub fn compare_parameters(
    file: &GoldenFile,
    prefix: &str,
    list: &ParameterList,
    values: &[Vec<f32>],
    rename: &dyn Fn(&str) -> String,
    report: &mut Report,
) {
    for (spec, values) in list.specs().iter().zip(values) {
        let name = format!("{prefix}{}", rename(&spec.name));
        compare(file, &name, &spec.shape, values, report);
    }
}

/// Reads tensors after everything recorded.
pub fn read(
    recorder: Recorder,
    tensors: &[&Tensor],
    report: &mut Report,
) -> Result<Vec<Vec<f32>>, String> {
    report.ran(recorder.kernels());
    download(recorder, tensors)
}

fn download(mut recorder: Recorder, tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>, String> {
    let downloads: Result<Vec<_>, _> = tensors
        .iter()
        .map(|tensor| recorder.download::<f32>(tensor))
        .collect();
    let downloads = downloads.map_err(told)?;
    recorder.submit().map_err(told)?;
    downloads
        .into_iter()
        .map(|download| download.wait().map_err(told))
        .collect()
}

/// Queries or keys, turned and scaled by their positions as torchscale does.
pub fn xpos(
    context: &Context,
    x: &[f32],
    dims: [usize; 4],
    role: XposRole,
    inverse: bool,
) -> Result<Vec<f32>, String> {
    let [_, tokens, heads, head_dim] = dims;
    let width = heads * head_dim;
    let (tokens, head_dim) = (tokens, head_dim);
    let mut recorder = context.recorder("positions");
    let mut turned = || {
        let tensor = recorder.upload("x", &dims, x)?;
        let rotations = Rotations::upload(&mut recorder, head_dim, tokens, 512.0)?;
        let positions = Positions {
            seq_len: tokens,
            first: 0,
            block: 1 << 30,
            centre: tokens.div_ceil(2),
        };
        ops::xpos(
            &mut recorder,
            &rotations,
            tensor.matrix().reshape(width)?,
            role,
            positions,
            inverse,
        )?;
        Ok(tensor)
    };
    let tensor = turned().map_err(told)?;
    Ok(download(recorder, &[&tensor])?.swap_remove(0))
}
