//! Files of GigaPath's slide encoder (`gp_slide_*`, `gp_gen_*`, `gp_real_*`), as it is and with padding masked.

use std::sync::Arc;

use dilated_attention::models::StagedModel;
use dilated_attention::models::gigapath::{
    Slide, SlideEncoder, SlideEncoderConfig, SlideOutput, SlideOutputs,
};
use dilated_attention::nn::{
    LayerNorm, MultiheadAttention, MultiheadAttentionConfig, MultiheadInput, ParameterList,
    Parameters, ProjectionNorm,
};
use dilated_attention::{AttentionShape, Context, DType, DilatedAttentionConfig, Recorder};
use serde_json::Value;

use super::attention::Engine;
use super::compare::Comparison;
use super::generated::check_tensor;
use super::generator::{MAX_ELEMENTS, draws, generate};
use super::golden_file::GoldenFile;
use super::modules::{self, compare, float, number, read, told};
use super::report::Report;

/// States, pooled outputs, positions and the mixed heads of the first layer.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context().cloned() else {
        return Ok(());
    };
    let inputs = Inputs::of(file, report)?;
    let config = config(file)?;
    positions(file, &config, &inputs, report)?;
    run(file, &context, &config, &inputs, "", report)?;
    if file.names().iter().any(|name| name.starts_with("clean_")) {
        run(
            file,
            &context,
            &config.clone().with_masked_padding(),
            &inputs,
            "clean_",
            report,
        )?;
    }
    mixed_heads(file, &context, &config, report)
}

fn config(file: &GoldenFile) -> Result<SlideEncoderConfig, String> {
    let mut config = SlideEncoderConfig::base();
    config.attention = modules::attention(file, false)?;
    config.feature_dim = number(file, "in_chans")?;
    config.num_layers = number(file, "depth")?;
    config.ffn_dim = number(file, "ffn_dim")?;
    config.tile_size = number(file, "tile_size")?;
    config.grid_cells = number(file, "slide_ngrids")?;
    config.encoder_eps = float(file, &["layernorm_eps"], 1e-5);
    config.norm_eps = float(file, &["norm_eps"], 1e-6);
    Ok(config)
}

/// Features and coordinates, stored or generated.
struct Inputs {
    batch: usize,
    tiles: usize,
    features: Vec<f32>,
    coords: Vec<[f32; 2]>,
}

impl Inputs {
    fn of(file: &GoldenFile, report: &mut Report) -> Result<Self, String> {
        let sizes = ["B", "L", "in_chans"].map(|name| number(file, name));
        let [batch, tiles, dim] = sizes;
        let (batch, tiles, dim) = (batch?, tiles?, dim?);
        let generator = &file.config["generator"];
        let (features, coords) = if generator.is_object() {
            let spec = &generator["x"];
            let features = generated(file, "x", spec, &[batch, tiles, dim], report)?;
            (features, generated_coords(file, tiles)?)
        } else {
            let features = file.f32s("x", &[batch, tiles, dim])?;
            let coords = file.f32s("coords", &[batch, tiles, 2])?;
            (
                features,
                coords.chunks(2).map(|pair| [pair[0], pair[1]]).collect(),
            )
        };
        if file.has("coords") {
            let stored = file.f32s("coords", &[batch, tiles, 2])?;
            if stored != coords.as_flattened() {
                return Err("the generated coordinates are not those of the file".to_owned());
            }
        }
        Ok(Self {
            batch,
            tiles,
            features,
            coords,
        })
    }

    fn slides(&self) -> Vec<Slide<'_>> {
        let features = self
            .features
            .chunks(self.features.len() / self.batch.max(1));
        let coords = self.coords.chunks(self.tiles.max(1));
        let pairs = features.zip(coords);
        pairs
            .map(|(features, coords)| Slide { features, coords })
            .collect()
    }
}

/// A generated tensor, checked against what the header says of it and against the file, where that stores it too.
fn generated(
    file: &GoldenFile,
    key: &str,
    spec: &Value,
    shape: &[usize],
    report: &mut Report,
) -> Result<Vec<f32>, String> {
    let read = || {
        Some((
            spec["name"].as_str()?,
            spec["base"].as_f64()?,
            spec["scale"].as_f64()?,
        ))
    };
    let (name, base, scale) =
        read().ok_or_else(|| format!("config: the generator of {key} needs name, base, scale"))?;
    let count = shape
        .iter()
        .try_fold(1usize, |count, dim| count.checked_mul(*dim));
    let count = count
        .filter(|count| *count <= MAX_ELEMENTS)
        .ok_or_else(|| format!("{key} of shape {shape:?} is too large to generate"))?;
    let tensor = generate(name, count, base, scale);
    let stored = if key == "x" {
        "x".to_owned()
    } else {
        format!("w.{key}")
    };
    let same = match file.has(&stored) {
        true => file.f32s(&stored, shape)? == tensor.values,
        false => true,
    };
    if !check_tensor(file, key, &tensor, report) || !same {
        return Err(format!("the generated {key} is not that of the file"));
    }
    Ok(tensor.values)
}

/// A raster scan over cells that keeps some.
fn generated_coords(file: &GoldenFile, tiles: usize) -> Result<Vec<[f32; 2]>, String> {
    let spec = &file.config["generator"]["coords"];
    let number_of = |name: &str| {
        let given = spec[name].as_u64();
        given.ok_or_else(|| format!("config: the generator of coords needs {name}"))
    };
    let name = spec["name"]
        .as_str()
        .ok_or("config: the generator of coords needs name")?;
    let [keep, width] = ["keep24", "grid_w"].map(number_of);
    let (keep, width) = (keep?, width?.max(1));
    let [x0, y0, ox, oy] = ["x0", "y0", "ox", "oy"].map(number_of);
    let (x0, y0, ox, oy) = (x0?, y0?, ox?, oy?);
    let tile = number(file, "tile_size")? as u64;
    if keep == 0 || tiles > MAX_ELEMENTS {
        return Err("config: the generator of coords keeps no cell".to_owned());
    }
    let kept = (0..).zip(draws(name)).filter(|(_, bits)| *bits < keep);
    let place = |(cell, _): (u64, u64)| {
        let at = |cell: u64, first: u64, offset: u64| ((cell + first) * tile + offset) as f32;
        [at(cell % width, x0, ox), at(cell / width, y0, oy)]
    };
    Ok(kept.map(place).take(tiles).collect())
}

fn weights(
    file: &GoldenFile,
    recorder: &mut Recorder,
    list: &Arc<ParameterList>,
    prefix: &str,
    report: &mut Report,
) -> Result<Parameters, String> {
    let generator = &file.config["generator"];
    if !generator.is_object() {
        let all = prefix.is_empty();
        return match all {
            true => modules::weights(file, recorder, list, &modules::same),
            false => modules::some_weights(file, recorder, list, &|name| format!("{prefix}{name}")),
        };
    }
    let salt = generator["salt"]
        .as_str()
        .ok_or("config: the generator needs a salt")?;
    let specs = generator["weights"]
        .as_object()
        .ok_or("config: the generator has no weights")?;
    if prefix.is_empty() && specs.len() != list.specs().len() {
        return Err(format!(
            "the file has {} weights, the model {}",
            specs.len(),
            list.specs().len()
        ));
    }
    let weights = Parameters::zeros(recorder, list, "weights").map_err(told)?;
    for (spec, tensor) in weights.iter() {
        let key = format!("{prefix}{}", spec.name);
        let rule = specs
            .get(&key)
            .ok_or_else(|| format!("the file has no weight {key}"))?;
        let rule = serde_json::json!({
            "name": format!("{salt}:{key}"), "base": rule[1], "scale": rule[2],
        });
        let quiet = &mut Report::new("", None);
        let report = if prefix.is_empty() {
            &mut *report
        } else {
            quiet
        };
        let values = generated(file, &key, &rule, &spec.shape, report)?;
        recorder.write(tensor, &values).map_err(told)?;
    }
    Ok(weights)
}

fn positions(
    file: &GoldenFile,
    config: &SlideEncoderConfig,
    inputs: &Inputs,
    report: &mut Report,
) -> Result<(), String> {
    let cells = config.cells(&inputs.coords).map_err(told)?;
    if file.has("pos") {
        let theirs = file.i32s("pos", &[inputs.batch, inputs.tiles])?;
        let ours = cells
            .iter()
            .map(|cell| cell.x as usize * config.grid_cells + cell.y as usize + 1);
        let differ = ours
            .zip(&theirs)
            .filter(|(ours, theirs)| usize::try_from(**theirs) != Ok(*ours));
        let comparison = Comparison {
            max_abs_err: differ.count() as f64,
            max_abs_reference: 0.0,
        };
        report.compared("pos", comparison, 0.0);
    }
    let vectors: Vec<f32> = match file.has("pos_embed") {
        true => cells
            .iter()
            .flat_map(|cell| config.position_vector(*cell))
            .collect(),
        false => Vec::new(),
    };
    let shape = [inputs.batch, inputs.tiles, config.width()];
    compare(file, "pos_embed", &shape, &vectors, report);
    Ok(())
}

fn run(
    file: &GoldenFile,
    context: &Context,
    config: &SlideEncoderConfig,
    inputs: &Inputs,
    prefix: &str,
    report: &mut Report,
) -> Result<(), String> {
    let encoder = SlideEncoder::new(context, config.clone()).map_err(told)?;
    let mut recorder = context.recorder("weights");
    let quiet = &mut Report::new("", None);
    let of_weights = if prefix.is_empty() {
        &mut *report
    } else {
        quiet
    };
    let weights = weights(file, &mut recorder, encoder.parameters(), "", of_weights)?;
    recorder.submit().map_err(told)?;
    let has = |name: &str| file.has(&format!("{prefix}{name}"));
    let sampled = has("hidden_rows");
    let states = 0..=config.num_layers;
    let outputs = SlideOutputs {
        layers: true,
        states: states
            .filter(|state| sampled || has(&format!("hidden.{state}")))
            .collect(),
        encoded: has("encoder_out") || has("encoder_out_rows"),
        ..SlideOutputs::default()
    };
    let slides = inputs.slides();
    let run = encoder.run(context, &weights, &slides, &outputs);
    let output = run.and_then(|run| run.blocking()).map_err(told)?;
    report_output(file, &output, prefix, report)
}

fn report_output(
    file: &GoldenFile,
    output: &SlideOutput,
    prefix: &str,
    report: &mut Report,
) -> Result<(), String> {
    let (slides, tokens, width) = (output.slides, output.tokens, output.width);
    let mut compare = |name: &str, shape: &[usize], values: &[f32]| {
        compare(file, &format!("{prefix}{name}"), shape, values, report);
    };
    compare("cls", &[slides, width], &output.cls);
    compare("pool", &[slides, width], &output.pool);
    let states = output.layers.len();
    for (name, of) in [
        (
            "layers_cls",
            output
                .layers
                .iter()
                .map(|layer| &layer.cls)
                .collect::<Vec<_>>(),
        ),
        (
            "layers_pool",
            output.layers.iter().map(|layer| &layer.pool).collect(),
        ),
    ] {
        let values: Vec<f32> = of.into_iter().flatten().copied().collect();
        compare(name, &[states, slides, width], &values);
    }
    let all = [slides, tokens, width];
    for (state, values) in &output.states {
        compare(&format!("hidden.{state}"), &all, values);
    }
    if let Some(encoded) = &output.encoded {
        compare("encoder_out", &all, encoded);
    }
    if !file.has("rows") {
        return Ok(());
    }
    let [count] = file.shape::<1>("rows")?;
    let rows = file.i32s("rows", &[count])?;
    let sample = |values: &[f32]| -> Result<Vec<f32>, String> {
        let mut sampled = Vec::new();
        for item in values.chunks(tokens * width) {
            for &row in &rows {
                let row = usize::try_from(row).ok().filter(|row| *row < tokens);
                let row = row.ok_or("a row lies outside of the tokens")?;
                sampled.extend_from_slice(&item[row * width..(row + 1) * width]);
            }
        }
        Ok(sampled)
    };
    let mut hidden = Vec::new();
    for (_, values) in &output.states {
        hidden.extend(sample(values)?);
    }
    compare(
        "hidden_rows",
        &[output.states.len(), slides, count, width],
        &hidden,
    );
    if let Some(encoded) = &output.encoded {
        compare(
            "encoder_out_rows",
            &[slides, count, width],
            &sample(encoded)?,
        );
    }
    Ok(())
}

/// The mixed heads of the first layer, before norm and projection.
fn mixed_heads(
    file: &GoldenFile,
    context: &Context,
    config: &SlideEncoderConfig,
    report: &mut Report,
) -> Result<(), String> {
    let Some(layer) = FirstLayer::of(file, context, &config.attention, config.encoder_eps)? else {
        return Ok(());
    };
    let mut recorder = context.recorder("first layer");
    let (list, prefix) = (&layer.list, "encoder.layers.0.");
    let quiet = &mut Report::new("", None);
    let weights = weights(file, &mut recorder, list, prefix, quiet)?;
    layer.compare(file, recorder, &weights, report)
}

/// Norm and attention of the first layer of a pre-norm encoder, whose input is the file's `hidden.0` and whose mixed heads are
/// its `l0.attn`.
pub struct FirstLayer {
    norm: LayerNorm,
    attention: MultiheadAttention,
    /// Names begin with those of the layer's parts.
    pub list: Arc<ParameterList>,
}

impl FirstLayer {
    /// The layer, if the file has both.
    pub fn of(
        file: &GoldenFile,
        context: &Context,
        attention: &DilatedAttentionConfig,
        eps: f32,
    ) -> Result<Option<Self>, String> {
        if !file.has("l0.attn") || !file.has("hidden.0") {
            return Ok(None);
        }
        let mut list = ParameterList::new();
        let width = attention.embed_dim();
        let norm = LayerNorm::new(&mut list, "self_attn_layer_norm", width, eps);
        let options = MultiheadAttentionConfig {
            attention: attention.clone(),
            norm: ProjectionNorm::Inner,
            norm_eps: eps,
            xpos: false,
            gain: 1.0,
        };
        let attention =
            MultiheadAttention::new(context, &mut list, "self_attn", &options).map_err(told)?;
        Ok(Some(Self {
            norm,
            attention,
            list: Arc::new(list),
        }))
    }

    /// Compares the mixed heads.
    pub fn compare(
        &self,
        file: &GoldenFile,
        mut recorder: Recorder,
        weights: &Parameters,
        report: &mut Report,
    ) -> Result<(), String> {
        let shape @ [batch, tokens, _] = file.shape::<3>("hidden.0")?;
        let x = file.f32s("hidden.0", &shape)?;
        let call = AttentionShape::new(batch, tokens).map_err(told)?;
        let mut mixed = || {
            let x = recorder.upload("x", &shape, &x)?;
            let normal = recorder.empty("normal", &shape, DType::F32)?;
            let to = normal.matrix();
            self.norm.forward(&mut recorder, weights, x.matrix(), to)?;
            let input = MultiheadInput {
                shape: &call,
                x: normal.matrix(),
                memory: normal.matrix(),
                positions: None,
                share: None,
            };
            let y = recorder.empty("y", &shape, DType::F32)?;
            let to = y.matrix();
            let saved = self
                .attention
                .forward(&mut recorder, weights, &input, None, to)?;
            Ok(saved.attended().clone())
        };
        let mixed = mixed().map_err(told)?;
        let values = read(recorder, &[&mixed], report)?.swap_remove(0);
        compare(file, "l0.attn", &shape, &values, report);
        Ok(())
    }
}
