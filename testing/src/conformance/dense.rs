//! Files of ordinary attention (`sdpa_*`): one branch that spans the sequence must equal it.

use dilated_attention::DilatedAttentionConfig;

use super::attention::{self, Engine, Quantity, StoredInputs, mask};
use super::golden_file::GoldenFile;
use super::gradients;
use super::report::Report;

/// Output and log-sum-exp of one undilated branch as long as the sequence.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let stored = StoredInputs::read(file, ["q", "k", "v"])?;
    let [batch, tokens, heads, head_dim] = stored.dims;
    let segment_length = tokens.max(1);
    let config = DilatedAttentionConfig::new(heads, head_dim, &[segment_length], &[1])
        .map_err(|error| error.to_string())?
        .with_mask(mask(file));
    let mut tensors = vec![("out".to_owned(), Quantity::Out)];
    if file.has("lse") {
        tensors.push(("lse".to_owned(), Quantity::TotalLse));
    }
    let inputs = stored.inputs()?;
    attention::check(file, &[batch], &inputs, &config, &tensors, engine, report)?;
    gradients::check(
        file,
        &stored,
        &config,
        ["dq", "dk", "dv"].map(String::from),
        engine,
        report,
    )
}
