//! Files of multi-head attention (`ts_mha_*`, `ds_mha*`).

use std::sync::Arc;

use dilated_attention::nn::{
    MultiheadAttention, MultiheadAttentionConfig, MultiheadGradients, MultiheadInput,
    ParameterList, Parameters, ProjectionNorm,
};
use dilated_attention::ops::{self, Positions, Rotations};
use dilated_attention::testing::{model, plain};
use dilated_attention::{AttentionShape, Context, DType, MixGradient, Recorder};

use super::attention::Engine;
use super::golden_file::GoldenFile;
use super::half;
use super::modules::{self, compare, compare_parameters, flag, float, read, same, told};
use super::report::Report;

/// Output, mixed heads and gradients: those of autograd as it is, then the true ones.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context().cloned() else {
        return Ok(());
    };
    let partitioned = file.config["head_groups"].is_array();
    let attention = modules::attention(file, partitioned)?;
    let norm = match (flag(file, "subln"), flag(file, "layer_norm")) {
        (true, _) => ProjectionNorm::Inner,
        (_, true) => ProjectionNorm::QueryKey,
        _ => ProjectionNorm::None,
    };
    let config = MultiheadAttentionConfig {
        attention,
        norm,
        norm_eps: float(file, &["layernorm_eps", "layer_norm_eps"], 1e-5),
        xpos: flag(file, "xpos"),
        gain: 1.0,
    };
    if engine.dtype() != DType::F32 {
        return run_half(file, &context, &config, engine.dtype(), report);
    }
    run(file, &context, &config, ("out", "attn", "dx", "g."), report)?;
    if file.has("dx_true") {
        let exact = MultiheadAttentionConfig {
            attention: config.attention.clone().with_gradient(MixGradient::Exact),
            ..config
        };
        run(file, &context, &exact, ("", "", "dx_true", "gt."), report)?;
    }
    Ok(())
}

/// Runs a module with activations in half precision and compares its output.
fn run_half(
    file: &GoldenFile,
    context: &Context,
    config: &MultiheadAttentionConfig,
    dtype: DType,
    report: &mut Report,
) -> Result<(), String> {
    let shape = file.shape::<3>("x")?;
    let x = plain::rounded(dtype, &file.f32s("x", &shape)?);
    let mut list = ParameterList::new();
    let module = MultiheadAttention::new(context, &mut list, "", config).map_err(told)?;
    let list = Arc::new(list);
    let mut recorder = context.recorder("multi-head attention");
    let rename = |name: &str| same(name.trim_start_matches('.'));
    let weights = modules::weights(file, &mut recorder, &list, &rename)?;
    let lengths = AttentionShape::new(shape[0], shape[1]).map_err(told)?;
    let turns = turns(file, config, &mut recorder, shape[1])?;
    let mut record = || {
        let stored = recorder.upload("x", &shape, &x)?;
        let stored = ops::convert(&mut recorder, &stored, dtype)?;
        let input = MultiheadInput {
            shape: &lengths,
            x: stored.matrix(),
            memory: stored.matrix(),
            positions: turns
                .as_ref()
                .map(|(rotations, positions)| (rotations, *positions)),
            share: None,
        };
        let y = recorder.empty("y", &shape, dtype)?;
        module.forward(&mut recorder, &weights, &input, None, y.matrix())?;
        ops::convert(&mut recorder, &y, DType::F32)
    };
    let y = record().map_err(told)?;
    let given = read(recorder, &[&y], report)?.swap_remove(0);
    let values = half::values(file, &list, &rename)?;
    let x = half::wide(&x);
    let base = float(file, &["xpos_scale_base"], 512.0);
    let model = |activations| {
        let model = model::MultiheadAttention {
            attention: &config.attention,
            norm: config.norm,
            norm_eps: config.norm_eps,
            xpos_scale_base: config.xpos.then_some(base),
            activations,
        };
        model.forward(&values, "", &lengths, &x, &x).map_err(told)
    };
    let (exact, plain) = (model(DType::F32)?, model(dtype)?);
    half::compare("out", dtype, [&exact, &plain], &given, report);
    Ok(())
}

/// Rotations and positions of `tokens`, for modules with xPos.
fn turns(
    file: &GoldenFile,
    config: &MultiheadAttentionConfig,
    recorder: &mut Recorder,
    tokens: usize,
) -> Result<Option<(Rotations, Positions)>, String> {
    if !config.xpos {
        return Ok(None);
    }
    let base = float(file, &["xpos_scale_base"], 512.0);
    let head_dim = config.attention.head_dim();
    let rotations = Rotations::upload(recorder, head_dim, tokens, base).map_err(told)?;
    let positions = Positions {
        seq_len: tokens,
        first: 0,
        block: 1 << 30,
        centre: tokens.div_ceil(2),
    };
    Ok(Some((rotations, positions)))
}

/// Runs a module and compares what the file has under these names.
fn run(
    file: &GoldenFile,
    context: &Context,
    config: &MultiheadAttentionConfig,
    (out, attn, dx, gradients): (&str, &str, &str, &str),
    report: &mut Report,
) -> Result<(), String> {
    let shape = file.shape::<3>("x")?;
    let [batch, tokens, width] = shape;
    let mut list = ParameterList::new();
    let module = MultiheadAttention::new(context, &mut list, "", config).map_err(told)?;
    let list = Arc::new(list);
    let mut recorder = context.recorder("multi-head attention");
    // Names begin with the point after an empty prefix.
    let rename = |name: &str| same(name.trim_start_matches('.'));
    let weights = modules::weights(file, &mut recorder, &list, &rename)?;
    let x = recorder
        .upload("x", &shape, &file.f32s("x", &shape)?)
        .map_err(told)?;
    let lengths = AttentionShape::new(batch, tokens).map_err(told)?;
    let turns = turns(file, config, &mut recorder, tokens)?;
    let input = MultiheadInput {
        shape: &lengths,
        x: x.matrix(),
        memory: x.matrix(),
        positions: turns
            .as_ref()
            .map(|(rotations, positions)| (rotations, *positions)),
        share: None,
    };
    let y = recorder.empty("y", &shape, DType::F32).map_err(told)?;
    let saved = module
        .forward(&mut recorder, &weights, &input, None, y.matrix())
        .map_err(told)?;
    let dout = recorder
        .upload("dout", &shape, &file.f32s("dout", &shape)?)
        .map_err(told)?;
    let sums = Parameters::zeros(&mut recorder, &list, "gradients").map_err(told)?;
    let gradient = recorder.empty("dx", &shape, DType::F32).map_err(told)?;
    let to = MultiheadGradients {
        dx: gradient.matrix(),
        accumulate: false,
        dmemory: None,
    };
    module
        .backward(
            &mut recorder,
            [&weights, &sums],
            &input,
            &saved,
            dout.matrix(),
            to,
        )
        .map_err(told)?;
    let mut tensors = vec![&y, saved.attended(), &gradient];
    tensors.extend(sums.iter().map(|(_, tensor)| tensor));
    let values = read(recorder, &tensors, report)?;
    compare(file, out, &[batch, tokens, width], &values[0], report);
    compare(file, attn, &[batch, tokens, width], &values[1], report);
    compare(file, dx, &[batch, tokens, width], &values[2], report);
    compare_parameters(file, gradients, &sums, &values[3..], &rename, report);
    Ok(())
}
