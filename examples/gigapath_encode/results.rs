//! Results as files.

use std::error::Error;

use dilated_attention::models::gigapath::SlideOutput;
use safetensors::tensor::{Dtype, TensorView};

use crate::settings::{Format, Pool, Settings};

/// Name, shape and elements.
type Named = (String, Vec<usize>, Vec<f32>);

/// Writes what was asked for.
pub fn save(
    output: &SlideOutput,
    settings: &Settings,
    format: Format,
) -> Result<(), Box<dyn Error>> {
    let chosen = |cls: &Vec<f32>, pool: &Vec<f32>| match settings.pool {
        Pool::Cls => cls.clone(),
        Pool::Mean => pool.clone(),
    };
    let embedding = chosen(&output.cls, &output.pool);
    let states: Vec<Vec<f32>> = output
        .layers
        .iter()
        .map(|layer| chosen(&layer.cls, &layer.pool))
        .collect();
    let width = output.width;
    match (format, settings.compat) {
        (Format::Npy, false) => slide_files::write_npy(&settings.out, &[width], &embedding)?,
        (Format::Npy, true) => {
            let list = match states.is_empty() {
                true => vec![embedding],
                false => states,
            };
            let shape = [list.len(), output.slides, width];
            slide_files::write_npy(&settings.out, &shape, &list.concat())?;
        }
        (Format::Safetensors, false) => {
            let mut tensors = vec![("embedding".to_owned(), vec![width], embedding)];
            tensors.extend(everything(output));
            write(&tensors, settings)?;
        }
        (Format::Safetensors, true) => write(&as_upstream(output, embedding, &states), settings)?,
    }
    Ok(())
}

/// All that the run returned.
fn everything(output: &SlideOutput) -> Vec<Named> {
    let width = output.width;
    let mut tensors = vec![
        ("cls".to_owned(), vec![width], output.cls.clone()),
        ("pool".to_owned(), vec![width], output.pool.clone()),
    ];
    let layers = &output.layers;
    if !layers.is_empty() {
        let shape = vec![layers.len(), width];
        let cls: Vec<_> = layers.iter().map(|layer| layer.cls.as_slice()).collect();
        tensors.push(("layers_cls".to_owned(), shape.clone(), cls.concat()));
        let pool: Vec<_> = layers.iter().map(|layer| layer.pool.as_slice()).collect();
        tensors.push(("layers_pool".to_owned(), shape, pool.concat()));
    }
    if let Some(encoded) = &output.encoded {
        // Without the CLS token: a row for each tile.
        let tiles = encoded[width..].to_vec();
        tensors.push(("tiles".to_owned(), vec![output.tokens - 1, width], tiles));
    }
    for attention in &output.attention {
        let map = attention.map(0).unwrap_or_default();
        let tiles: Vec<f32> = map.into_iter().skip(1).collect();
        let name = format!("attention.{}", attention.layer);
        tensors.push((name, vec![tiles.len()], tiles));
    }
    tensors
}

/// What upstream's forward returns, under the names that upstream gives.
fn as_upstream(output: &SlideOutput, embedding: Vec<f32>, states: &[Vec<f32>]) -> Vec<Named> {
    let shape = vec![output.slides, output.width];
    let Some(last) = states.last() else {
        return vec![("embedding".to_owned(), shape, embedding)];
    };
    let named = states.iter().enumerate().map(|(index, state)| {
        let name = format!("layer_{index}_embed");
        (name, shape.clone(), state.clone())
    });
    let last = ("last_layer_embed".to_owned(), shape.clone(), last.clone());
    named.chain([last]).collect()
}

fn write(tensors: &[Named], settings: &Settings) -> Result<(), Box<dyn Error>> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes)?;
        Ok((name.as_str(), view))
    });
    let views: Result<Vec<_>, safetensors::SafeTensorError> = views.collect();
    safetensors::serialize_to_file(views?, None, &settings.out)
        .map_err(|error| format!("{}: {error}", settings.out.display()).into())
}
