//! Gradients of dilated attention.

use dilated_attention::ops::XposRole;
use dilated_attention::{DType, DilatedAttentionConfig, Heads, MixGradient};

use super::attention::{Engine, StoredInputs, configuration};
use super::compare::Comparison;
use super::golden_file::GoldenFile;
use super::half;
use super::modules;
use super::partitioned;
use super::report::Report;
use super::torchscale;

/// `ts_grad_*`: what torchscale's autograd returns, the true gradient, and that with padding absent.
pub fn check_torchscale(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    torchscale::check(file, engine, report)?;
    let stored = StoredInputs::read(file, ["q", "k", "v"])?;
    let [_, _, heads, head_dim] = stored.dims;
    let clean = configuration(file, heads, head_dim)?;
    let as_is = clean.clone().with_torchscale();
    let exact = as_is.clone().with_gradient(MixGradient::Exact);
    for (config, prefix, suffix) in [
        (as_is, "", ""),
        (exact, "", "_true"),
        (clean, "clean_", "_true"),
    ] {
        let names = ["dq", "dk", "dv"].map(|name| format!("{prefix}{name}{suffix}"));
        check(file, &stored, &config, names, engine, report)?;
    }
    Ok(())
}

/// `ds_grad*`: head groups with one branch each.
pub fn check_partitioned(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    partitioned::check(file, engine, report)?;
    let stored = StoredInputs::read(file, ["q", "k", "v"])?;
    let [_, _, heads, head_dim] = stored.dims;
    let config = configuration(file, heads, head_dim)?.with_heads(Heads::Partitioned);
    check(
        file,
        &stored,
        &config,
        ["dq", "dk", "dv"].map(String::from),
        engine,
        report,
    )
}

/// Compares those of the three gradients that the file has. With positions, they are those of queries and keys before them.
pub fn check(
    file: &GoldenFile,
    stored: &StoredInputs,
    config: &DilatedAttentionConfig,
    names: [String; 3],
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    if !names.iter().any(|name| file.has(name)) {
        return Ok(());
    }
    let dims = stored.dims;
    let dout = file.f32s("dout", &dims)?;
    let turned = file.has("q_xpos");
    if engine.dtype() != DType::F32 {
        // Of queries and keys after positions, as attention is given them.
        let names_of_inputs = match turned {
            true => ["q_xpos", "k_xpos", "v"],
            false => ["q", "k", "v"],
        };
        let stored = StoredInputs::read(file, names_of_inputs)?;
        let inputs = stored.inputs()?;
        return half::check_gradients(&inputs, &dout, config, &names, engine, report);
    }
    let given = match (turned, engine.context().cloned()) {
        (false, _) => engine.backward(&stored.inputs()?, &dout, config),
        // Only the device turns by positions.
        (true, None) => return Ok(()),
        (true, Some(context)) => {
            let turn = |x: &[f32], role, inverse| modules::xpos(&context, x, dims, role, inverse);
            let inputs = stored.inputs()?;
            let tensors = [
                turn(inputs.q, XposRole::Query, false)?,
                turn(inputs.k, XposRole::Key, false)?,
                inputs.v.to_vec(),
            ];
            let after = StoredInputs::new(dims, tensors);
            engine
                .backward(&after.inputs()?, &dout, config)
                .and_then(|[dq, dk, dv]| {
                    Ok([
                        turn(&dq, XposRole::Query, true)?,
                        turn(&dk, XposRole::Key, true)?,
                        dv,
                    ])
                })
        }
    };
    report.ran(engine.take_kernels());
    let given = given.map_err(|error| error.to_string())?;
    for (name, given) in names.iter().zip(&given) {
        if file.has(name) {
            match file
                .f32s(name, &dims)
                .and_then(|values| Comparison::of(&values, given))
            {
                Ok(comparison) => {
                    report.compared(name, comparison, comparison.f32_tolerance(file, name));
                }
                Err(reason) => report.fail(name, reason),
            }
        }
    }
    Ok(())
}
