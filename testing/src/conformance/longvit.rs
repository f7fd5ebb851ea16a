//! Files of LongViT (`lv_*`), as it is and with padding masked.

use dilated_attention::models::StagedModel;
use dilated_attention::models::longvit::{Images, LongVit, LongVitConfig};
use dilated_attention::{Context, HeadOffsets, OutputRows, Padding};

use super::attention::Engine;
use super::gigapath::FirstLayer;
use super::golden_file::GoldenFile;
use super::modules::{self, compare, float, number, read, same, told};
use super::report::Report;

/// All outputs.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let Some(context) = engine.context().cloned() else {
        return Ok(());
    };
    let config = config(file)?;
    run(file, &context, &config, "", report)?;
    if file.names().iter().any(|name| name.starts_with("clean_")) {
        let mut clean = config.clone();
        clean.attention = clean
            .attention
            .with_head_offsets(HeadOffsets::Blocked)
            .with_padding(Padding::Masked)
            .with_output_rows(OutputRows::Aligned);
        run(file, &context, &clean, "clean_", report)?;
    }
    let first = FirstLayer::of(file, &context, &config.attention, config.encoder_eps)?;
    let Some(layer) = first else {
        return Ok(());
    };
    let mut recorder = context.recorder("first layer");
    let rename = |name: &str| format!("model.encoder.layers.0.{name}");
    let weights = modules::some_weights(file, &mut recorder, &layer.list, &rename)?;
    layer.compare(file, recorder, &weights, report)
}

fn config(file: &GoldenFile) -> Result<LongVitConfig, String> {
    let mut config = LongVitConfig::published(number(file, "num_classes")?);
    config.attention = modules::attention(file, false)?;
    config.num_layers = number(file, "depth")?;
    config.ffn_dim = number(file, "ffn_dim")?;
    config.image_size = number(file, "img_size")?;
    config.patch_size = number(file, "patch_size")?;
    config.channels = number(file, "in_chans")?;
    config.encoder_eps = float(file, &["layernorm_eps"], 1e-5);
    config.norm_eps = float(file, &["fc_norm_eps"], 1e-5);
    Ok(config)
}

fn run(
    file: &GoldenFile,
    context: &Context,
    config: &LongVitConfig,
    prefix: &str,
    report: &mut Report,
) -> Result<(), String> {
    let model = LongVit::new(context, config.clone()).map_err(told)?;
    let mut recorder = context.recorder("LongViT");
    let weights = modules::weights(file, &mut recorder, model.parameters(), &same)?;
    let shape @ [batch, _, height, width] = file.shape::<4>("image")?;
    let images = Images {
        pixels: &file.f32s("image", &shape)?,
        size: [batch, height, width],
    };
    let output = model
        .forward(&mut recorder, &weights, images, true)
        .map_err(told)?;
    let mut named = vec![
        ("encoder_out".to_owned(), &output.encoder.features),
        ("features".to_owned(), &output.features),
        ("pos_embed".to_owned(), &output.positions),
    ];
    let logits = output.logits.iter();
    named.extend(logits.map(|logits| ("logits".to_owned(), logits)));
    let states = output.encoder.states.iter().enumerate();
    named.extend(states.map(|(index, state)| (format!("hidden.{index}"), state)));
    let tensors: Vec<_> = named.iter().map(|(_, tensor)| *tensor).collect();
    let values = read(recorder, &tensors, report)?;
    for ((name, tensor), values) in named.iter().zip(&values) {
        compare(
            file,
            &format!("{prefix}{name}"),
            tensor.shape(),
            values,
            report,
        );
    }
    Ok(())
}
