//! Files of multi-head attention (`ts_mha_*`, `ds_mha*`).

use std::sync::Arc;

use dilated_attention::nn::{
    MultiheadAttention, MultiheadAttentionConfig, MultiheadGradients, MultiheadInput,
    ParameterList, Parameters, ProjectionNorm,
};
use dilated_attention::ops::{self, Positions, Rotations};
use dilated_attention::testing::{model, plain};
use dilated_attention::{AttentionShape, Context, DType, MixGradient, Recorder, Tensor};

use super::attention::Engine;
use super::golden_file::GoldenFile;
use super::half;
use super::modules::{self, compare, compare_parameters, flag, float, same, told};
use super::ranks::{self, Part, Results, Sums};
use super::report::Report;

/// Output, mixed heads and gradients: those of autograd as it is, then the true ones.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context() else {
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
        let list = Module::new(context, &config)?.list;
        return run_half(file, engine, &config, &list, report);
    }
    run(file, engine, &config, ("out", "attn", "dx", "g."), report)?;
    if file.has("dx_true") {
        let exact = MultiheadAttentionConfig {
            attention: config.attention.clone().with_gradient(MixGradient::Exact),
            ..config
        };
        run(file, engine, &exact, ("", "", "dx_true", "gt."), report)?;
    }
    Ok(())
}

/// A module and its parameters.
struct Module {
    module: MultiheadAttention,
    list: Arc<ParameterList>,
}

impl Module {
    fn new(context: &Context, config: &MultiheadAttentionConfig) -> Result<Self, String> {
        let mut list = ParameterList::new();
        let module = MultiheadAttention::new(context, &mut list, "", config).map_err(told)?;
        let list = Arc::new(list);
        Ok(Self { module, list })
    }
}

/// Names begin with the point after an empty prefix.
fn rename(name: &str) -> String {
    same(name.trim_start_matches('.'))
}

/// Runs a module with activations in half precision and compares its output.
fn run_half(
    file: &GoldenFile,
    engine: &dyn Engine,
    config: &MultiheadAttentionConfig,
    list: &ParameterList,
    report: &mut Report,
) -> Result<(), String> {
    let shape @ [batch, tokens, width] = file.shape::<3>("x")?;
    let lengths = AttentionShape::new(batch, tokens).map_err(told)?;
    let dtype = engine.dtype();
    let x = plain::rounded(dtype, &file.f32s("x", &shape)?);
    let results = ranks::run(engine, &lengths, |context, part| {
        let Module { module, list } = Module::new(context, config)?;
        let mut recorder = context.recorder("multi-head attention");
        let weights = modules::weights(file, &mut recorder, &list, &rename)?;
        let turns = turns(file, config, &mut recorder, part)?;
        let dims = part.dims(&[width]);
        let run = || {
            let stored = recorder.upload("x", &dims, &part.cut(&x, width))?;
            let stored = ops::convert(&mut recorder, &stored, dtype)?;
            let input = input(&stored, &turns, part);
            let y = recorder.empty("y", &dims, dtype)?;
            module.forward(&mut recorder, &weights, &input, None, y.matrix())?;
            let y = ops::convert(&mut recorder, &y, DType::F32)?;
            Results::read(recorder, &[&y], None)
        };
        run().map_err(told)
    })?;
    report.ran(results.kernels.clone());
    let values = half::values(file, list, &rename)?;
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
    for (_, given) in results.shaped(&lengths) {
        half::compare("out", dtype, [&exact, &plain], given, report);
    }
    Ok(())
}

/// Rotations and positions of a part, for modules with xPos.
type Turns = Option<(Rotations, Positions)>;

fn turns(
    file: &GoldenFile,
    config: &MultiheadAttentionConfig,
    recorder: &mut Recorder,
    part: &Part,
) -> Result<Turns, String> {
    if !config.xpos {
        return Ok(None);
    }
    let base = float(file, &["xpos_scale_base"], 512.0);
    let head_dim = config.attention.head_dim();
    let (first, total) = part.place();
    let rotations = Rotations::upload(recorder, head_dim, total, base).map_err(told)?;
    let positions = Positions {
        seq_len: part.shape.seq_len(),
        first,
        block: 1 << 30,
        centre: total.div_ceil(2),
    };
    Ok(Some((rotations, positions)))
}

/// Self-attention of a part.
fn input<'a>(x: &'a Tensor, turns: &'a Turns, part: &'a Part) -> MultiheadInput<'a> {
    MultiheadInput {
        shape: &part.shape,
        x: x.matrix(),
        memory: x.matrix(),
        positions: turns
            .as_ref()
            .map(|(rotations, positions)| (rotations, *positions)),
        share: part.share.as_ref(),
    }
}

/// Runs a module and compares what the file has under these names.
fn run(
    file: &GoldenFile,
    engine: &dyn Engine,
    config: &MultiheadAttentionConfig,
    (out, attn, dx, gradients): (&str, &str, &str, &str),
    report: &mut Report,
) -> Result<(), String> {
    let shape @ [batch, tokens, _] = file.shape::<3>("x")?;
    let lengths = AttentionShape::new(batch, tokens).map_err(told)?;
    let results = ranks::run(engine, &lengths, |context, part| {
        run_part(file, context, config, part)
    })?;
    report.ran(results.kernels.clone());
    let tensors = results.shaped(&lengths);
    for (name, (_, values)) in [out, attn, dx].into_iter().zip(tensors) {
        compare(file, name, &shape, values, report);
    }
    if let Some(Sums { list, values }) = &results.sums {
        compare_parameters(file, gradients, list, values, &rename, report);
    }
    Ok(())
}

/// Output, mixed heads, and gradients of the input and of the parameters.
fn run_part(
    file: &GoldenFile,
    context: &Context,
    config: &MultiheadAttentionConfig,
    part: &Part,
) -> Result<Results, String> {
    let shape @ [_, _, width] = file.shape::<3>("x")?;
    let (x, dout) = (file.f32s("x", &shape)?, file.f32s("dout", &shape)?);
    let Module { module, list } = Module::new(context, config)?;
    let mut recorder = context.recorder("multi-head attention");
    let weights = modules::weights(file, &mut recorder, &list, &rename)?;
    let turns = turns(file, config, &mut recorder, part)?;
    let dims = part.dims(&[width]);
    let run = || {
        let x = recorder.upload("x", &dims, &part.cut(&x, width))?;
        let input = input(&x, &turns, part);
        let y = recorder.empty("y", &dims, DType::F32)?;
        let saved = module.forward(&mut recorder, &weights, &input, None, y.matrix())?;
        let dout = recorder.upload("dout", &dims, &part.cut(&dout, width))?;
        let sums = Parameters::zeros(&mut recorder, &list, "gradients")?;
        let gradient = recorder.empty("dx", &dims, DType::F32)?;
        let to = MultiheadGradients {
            dx: gradient.matrix(),
            accumulate: false,
            dmemory: None,
        };
        let sets = [&weights, &sums];
        module.backward(&mut recorder, sets, &input, &saved, dout.matrix(), to)?;
        let heads = saved.attended();
        Results::read(recorder, &[&y, heads, &gradient], Some(&sums))
    };
    run().map_err(told)
}
