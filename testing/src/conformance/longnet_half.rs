//! Encoders and decoders with activations in half precision, against the f64 model.

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
use dilated_attention::testing::{model, plain};
use dilated_attention::{Context, DType, ops};

use super::attention::Engine;
use super::golden_file::GoldenFile;
use super::half;
use super::longnet::{Stored, input, lengths, token_ids};
use super::modules::{same, told, weights};
use super::ranks::{self, Part, Results};
use super::report::Report;

/// Features and logits with activations in half precision.
pub fn check(
    file: &GoldenFile,
    engine: &dyn Engine,
    config: LongNetConfig,
    report: &mut Report,
) -> Result<(), String> {
    // Embeddings of padded tokens are set to 0 between two calls, which would round them twice.
    if file.has("padding_mask") {
        return Ok(());
    }
    let (lengths, dtype) = (lengths(file)?, engine.dtype());
    let mut stored = config.clone();
    stored.activations = dtype;
    let results = ranks::run(engine, &lengths, |context, part| {
        forward_part(file, context, &stored, part)
    })?;
    report.ran(results.kernels.clone());
    let given = results.shaped(&lengths);

    let context = engine.context().ok_or("there is no device")?;
    let model = LongNet::new(context, stored.clone()).map_err(told)?;
    let values = half::values(file, model.parameters(), &same)?;
    let (x, ids);
    let start = match file.shape::<3>("x") {
        Ok(shape) => {
            x = half::wide(&plain::rounded(dtype, &file.f32s("x", &shape)?));
            model::Input::Embeddings(&x)
        }
        Err(_) => {
            ids = token_ids(file)?;
            model::Input::Tokens(&ids)
        }
    };
    let run = |config: &LongNetConfig| -> Result<Vec<Vec<f64>>, String> {
        let (values, prefix) = (&values, "");
        let model = model::Model {
            config,
            values,
            prefix,
        };
        let features = model.features(&lengths, start, None).map_err(told)?;
        Ok(match config.output_projection {
            OutputProjection::None => vec![features],
            _ => {
                let logits = model.logits(&features);
                vec![features, logits]
            }
        })
    };
    let (exact, plain) = (run(&config)?, run(&stored)?);
    let last = given.len() - 1;
    for (name, index) in [("features", 0), ("logits", last), ("out", last)] {
        if file.has(name) {
            half::compare(
                name,
                dtype,
                [&exact[index], &plain[index]],
                given[index].1,
                report,
            );
        }
    }
    Ok(())
}

/// Features, and logits of a model that has them.
fn forward_part(
    file: &GoldenFile,
    context: &Context,
    config: &LongNetConfig,
    part: &Part,
) -> Result<Results, String> {
    let model = LongNet::new(context, config.clone()).map_err(told)?;
    let mut recorder = context.recorder("model in half precision");
    let weights = weights(file, &mut recorder, model.parameters(), &same)?;
    let input = match input(file, &mut recorder, part)? {
        Stored::Embeddings(x) => {
            let x = ops::convert(&mut recorder, &x, config.activations);
            Stored::Embeddings(x.map_err(told)?)
        }
        tokens => tokens,
    };
    let call = part.call();
    let output = model.forward(&mut recorder, &weights, input.input(), &call, false);
    let features = output.map_err(told)?.features;
    let mut tensors = vec![ops::convert(&mut recorder, &features, DType::F32).map_err(told)?];
    if config.output_projection != OutputProjection::None {
        let logits = model.logits(&mut recorder, &weights, &features);
        tensors.push(logits.map_err(told)?);
    }
    let tensors: Vec<_> = tensors.iter().collect();
    Results::read(recorder, &tensors, None).map_err(told)
}
