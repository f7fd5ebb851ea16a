//! Encoders and decoders with activations in half precision, against the f64 model.

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
use dilated_attention::testing::{model, plain};
use dilated_attention::{Context, DType, ops};

use super::golden_file::GoldenFile;
use super::half;
use super::longnet::{Stored, input, token_ids};
use super::modules::{read, same, told, weights};
use super::report::Report;

/// Features and logits with activations in half precision.
pub fn check(
    file: &GoldenFile,
    context: &Context,
    config: LongNetConfig,
    dtype: DType,
    report: &mut Report,
) -> Result<(), String> {
    // Embeddings of padded tokens are set to 0 between two calls, which would round them twice.
    if file.has("padding_mask") {
        return Ok(());
    }
    let mut stored = config.clone();
    stored.activations = dtype;
    let model = LongNet::new(context, stored.clone()).map_err(told)?;
    let mut recorder = context.recorder("model in half precision");
    let weights = weights(file, &mut recorder, model.parameters(), &same)?;
    let (input, call) = input(file, &mut recorder, 0..usize::MAX)?;
    let input = match input {
        Stored::Embeddings(x) => {
            Stored::Embeddings(ops::convert(&mut recorder, &x, dtype).map_err(told)?)
        }
        tokens => tokens,
    };
    let output = model.forward(&mut recorder, &weights, input.input(), &call, false);
    let features = output.map_err(told)?.features;
    let mut tensors = vec![ops::convert(&mut recorder, &features, DType::F32).map_err(told)?];
    if config.output_projection != OutputProjection::None {
        let logits = model.logits(&mut recorder, &weights, &features);
        tensors.push(logits.map_err(told)?);
    }
    let given = read(recorder, &tensors.iter().collect::<Vec<_>>(), report)?;

    let values = half::values(file, model.parameters(), &same)?;
    let (x, ids);
    let start = match file.shape::<3>("x") {
        Ok(shape) => {
            x = half::wide(&plain::rounded(dtype, &file.f32s("x", &shape)?));
            model::Input::Embeddings(&x)
        }
        Err(_) => {
            ids = token_ids(file, 0..usize::MAX)?;
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
        let features = model.features(&call.shape, start, None).map_err(told)?;
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
                &given[index],
                report,
            );
        }
    }
    Ok(())
}
