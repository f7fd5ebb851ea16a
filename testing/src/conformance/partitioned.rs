//! Files of dilated-attention-pytorch (`ds_core_*`): head groups with one branch each.

use dilated_attention::Heads;
use serde_json::json;

use super::attention::{self, Engine, Quantity, StoredInputs, configuration};
use super::golden_file::GoldenFile;
use super::report::Report;

/// The output with partitioned heads.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let stored = StoredInputs::read(file, ["q", "k", "v"])?;
    let [batch, _, heads, head_dim] = stored.dims;
    let config = configuration(file, heads, head_dim)?.with_heads(Heads::Partitioned);
    let groups = config.branches().len();
    // Where the file tells its groups, they must be ours: H / G heads, one more in the first H % G.
    let begin = |group: usize| group * (heads / groups) + group.min(heads % groups);
    let ours: Vec<_> = (0..groups)
        .map(|group| [begin(group), begin(group + 1)])
        .collect();
    let theirs = &file.config["head_groups"];
    if !theirs.is_null() && *theirs != json!(ours) {
        return Err(format!(
            "head groups are {theirs} in the file, {ours:?} here"
        ));
    }
    let tensors = [("out".to_owned(), Quantity::Out)];
    let inputs = stored.inputs()?;
    attention::check(file, &[batch], &inputs, &config, &tensors, engine, report)
}
