//! Which model a checkpoint is of.

use dilated_attention::WeightFile;
use dilated_attention::models::gigapath::SlideEncoderConfig;

/// Sizes of the model, as the shapes and keys of a checkpoint tell them. The number of heads is in no checkpoint: the width
/// must be that of a published model. What else does not fit, loading finds.
///
/// # Errors
/// What is wrong, naming the key.
pub fn config(file: &WeightFile) -> Result<SlideEncoderConfig, String> {
    let shape = |key: &str| {
        let tensor = file.get(key);
        let missing = || {
            let some: Vec<_> = file.names().take(4).collect();
            format!(
                "no {key}, which a slide encoder has; it begins with {}",
                some.join(", ")
            )
        };
        tensor.map(|tensor| tensor.shape()).ok_or_else(missing)
    };
    let key = "patch_embed.proj.weight";
    let &[width, feature_dim] = shape(key)? else {
        return Err(format!(
            "{key} has the shape {:?}, not two sizes",
            shape(key)?
        ));
    };
    let published = [
        SlideEncoderConfig::base(),
        SlideEncoderConfig::large(),
        SlideEncoderConfig::wide(),
    ];
    let widths = published.each_ref().map(SlideEncoderConfig::width);
    let mut published = published.into_iter();
    let Some(mut config) = published.find(|config| config.width() == width) else {
        return Err(format!(
            "{key} is {width} wide; published slide encoders, whose heads are known, are {widths:?}"
        ));
    };
    let layer_key = |layer: usize| format!("encoder.layers.{layer}.ffn.fc1.weight");
    let &[ffn_dim, _] = shape(&layer_key(0))? else {
        let shape = shape(&layer_key(0))?;
        return Err(format!(
            "{} has the shape {shape:?}, not two sizes",
            layer_key(0)
        ));
    };
    config.feature_dim = feature_dim;
    config.ffn_dim = ffn_dim;
    // No more than the file has keys.
    config.num_layers = (0..)
        .take_while(|layer| file.get(&layer_key(*layer)).is_some())
        .count();
    Ok(config)
}
