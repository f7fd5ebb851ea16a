//! Outputs and log-sum-exps of dilated attention.

use dilated_attention::out_of_core::OutOfCoreOptions;
use dilated_attention::testing::Kernel;
use dilated_attention::{AttentionShape, Context, DType, DilatedAttentionConfig};

use super::compare::Comparison;
use super::golden_file::GoldenFile;
use super::half;
use super::ranks::Ranks;
use super::report::Report;

/// What computes the results.
pub trait Engine {
    /// What tensors are stored as.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// The device on which modules run; none for an engine that only knows attention itself.
    fn context(&self) -> Option<&Context>;

    /// How forwards of attention and layers run out of core; `None` for in core.
    fn out_of_core(&self) -> Option<&OutOfCoreOptions> {
        None
    }

    /// The ranks over which attention and layers run; `None` for one device.
    fn ranks(&self) -> Option<&Ranks> {
        None
    }

    /// The kernels that ran since the last call of this.
    fn take_kernels(&mut self) -> Vec<Kernel> {
        Vec::new()
    }

    /// The gradients of queries, keys and values, given that of the output.
    fn backward(
        &mut self,
        inputs: &Inputs<'_>,
        dout: &[f32],
        config: &DilatedAttentionConfig,
    ) -> Result<[Vec<f32>; 3], Box<dyn std::error::Error>>;

    /// Runs every configuration on the same inputs and hands each result, with the number of its configuration, to
    /// `each` before it goes on: long sequences leave no room for two.
    fn forward(
        &mut self,
        inputs: &Inputs<'_>,
        configs: &[DilatedAttentionConfig],
        each: &mut dyn FnMut(usize, ForwardOutput),
    ) -> Result<(), Box<dyn std::error::Error>>;
}

/// What configurations are run on.
pub struct Inputs<'a> {
    /// Batch and sequence length.
    pub shape: AttentionShape,
    /// Queries, (batch, token, head, element).
    pub q: &'a [f32],
    /// Keys, like the queries.
    pub k: &'a [f32],
    /// Values, like the queries.
    pub v: &'a [f32],
    /// The tokens wanted, of a batch of one; all rows when none are given.
    pub rows: Option<&'a [usize]>,
}

/// Result of one configuration for the rows wanted.
pub struct ForwardOutput {
    /// (batch, row, head, element).
    pub out: Vec<f32>,
    /// (batch, row, head), natural logarithm.
    pub softmax_lse: Vec<f32>,
}

/// What a tensor of a file holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// The output, (batch, row, head, element).
    Out,
    /// The log-sum-exp of each branch alone, (branch, batch, head, row).
    BranchLse,
    /// The log-sum-exp over all branches, (batch, head, row).
    TotalLse,
}

/// Compares `tensors` of `file` with what `engine` makes of `config`; in half precision those of the reference. `batch` is the batch dimension of the tensors,
/// nothing in files that leave it out.
pub fn check(
    file: &GoldenFile,
    batch: &[usize],
    inputs: &Inputs<'_>,
    config: &DilatedAttentionConfig,
    tensors: &[(String, Quantity)],
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let num_branches = config.branches().len();
    let heads = config.num_heads();
    let rows = match inputs.rows {
        Some(rows) => rows.len(),
        None => inputs.shape.seq_len(),
    };
    let mut comparisons: Vec<(&str, Quantity, Vec<f32>, Comparison)> = Vec::new();
    for (tensor, quantity) in tensors {
        let shape = match quantity {
            Quantity::Out => [batch, &[rows, heads, config.head_dim()]].concat(),
            Quantity::BranchLse => [&[num_branches], batch, &[heads, rows]].concat(),
            Quantity::TotalLse => [batch, &[heads, rows]].concat(),
        };
        match file.f32s(tensor, &shape) {
            Ok(values) => comparisons.push((tensor, *quantity, values, Comparison::default())),
            Err(reason) => report.fail(tensor, reason),
        }
    }
    let wants = |branches: bool| {
        let mut quantities = comparisons.iter().map(|(_, quantity, ..)| *quantity);
        quantities.any(|quantity| (quantity == Quantity::BranchLse) == branches)
    };
    // The number of a run is that of its branch; the run after them is the one of all branches.
    let (mut runs, mut configs) = (Vec::new(), Vec::new());
    if wants(true) {
        for branch in 0..num_branches {
            runs.push(branch);
            configs.push(alone(config, branch).map_err(|error| error.to_string())?);
        }
    }
    if wants(false) {
        runs.push(num_branches);
        configs.push(config.clone());
    }
    if engine.dtype() != DType::F32 {
        let runs = (&runs[..], &configs[..]);
        half::check(inputs, runs, num_branches, tensors, engine, report);
        return Ok(());
    }
    let mut failed: Vec<Option<String>> = vec![None; comparisons.len()];
    let result = engine.forward(inputs, &configs, &mut |number, output| {
        let run = runs[number];
        for ((_, quantity, values, total), failed) in comparisons.iter_mut().zip(&mut failed) {
            let comparison = match quantity {
                Quantity::Out if run == num_branches => Comparison::of(values, &output.out),
                Quantity::TotalLse if run == num_branches => {
                    Comparison::of_lse(values, &output.softmax_lse, heads, rows)
                }
                Quantity::BranchLse if run < num_branches => {
                    let count = values.len() / num_branches;
                    let values = &values[run * count..][..count];
                    Comparison::of_lse(values, &output.softmax_lse, heads, rows)
                        .map_err(|reason| format!("branch {run}: {reason}"))
                }
                _ => continue,
            };
            match comparison {
                Ok(comparison) => *total = total.and(comparison),
                Err(reason) => {
                    failed.get_or_insert(reason);
                }
            }
        }
    });
    report.ran(engine.take_kernels());
    for ((tensor, _, _, comparison), failed) in comparisons.into_iter().zip(failed) {
        match (failed, &result) {
            (Some(reason), _) => report.fail(tensor, reason),
            (None, Err(error)) => report.fail(tensor, error),
            (None, Ok(())) => {
                report.compared(tensor, comparison, comparison.f32_tolerance(file, tensor));
            }
        }
    }
    Ok(())
}

/// `config` with branch `branch` as its only one.
fn alone(
    config: &DilatedAttentionConfig,
    branch: usize,
) -> dilated_attention::Result<DilatedAttentionConfig> {
    let given = config.branches()[branch];
    let alone = DilatedAttentionConfig::new(
        config.num_heads(),
        config.head_dim(),
        &[given.segment_length],
        &[given.dilation_rate],
    )?;
    Ok(alone
        .with_mask(config.mask())
        .with_head_offsets(config.head_offsets())
        .with_padding(config.padding())
        .with_output_rows(config.output_rows()))
}

/// `q`, `k` and `v` (or other tensors in their place) of a file that stores them.
pub struct StoredInputs {
    /// Batch, tokens, heads and head size.
    pub dims: [usize; 4],
    tensors: [Vec<f32>; 3],
}

impl StoredInputs {
    /// Queries, keys and values given.
    pub fn new(dims: [usize; 4], tensors: [Vec<f32>; 3]) -> Self {
        Self { dims, tensors }
    }

    /// Reads the three tensors; they must have one shape.
    pub fn read(file: &GoldenFile, names: [&str; 3]) -> Result<Self, String> {
        let dims = file.shape::<4>(names[0])?;
        let [q, k, v] = names.map(|name| file.f32s(name, &dims));
        Ok(Self {
            dims,
            tensors: [q?, k?, v?],
        })
    }

    /// All rows of them.
    pub fn inputs(&self) -> Result<Inputs<'_>, String> {
        let [q, k, v] = &self.tensors;
        let shape = AttentionShape::new(self.dims[0], self.dims[1]);
        Ok(Inputs {
            shape: shape.map_err(|error| error.to_string())?,
            q,
            k,
            v,
            rows: None,
        })
    }
}

/// The configuration of a file over `heads` heads of `head_dim` elements, all else at its default but the mask.
pub fn configuration(
    file: &GoldenFile,
    heads: usize,
    head_dim: usize,
) -> Result<DilatedAttentionConfig, String> {
    let (segment_lengths, dilation_rates) = file.branches()?;
    let config = DilatedAttentionConfig::new(heads, head_dim, &segment_lengths, &dilation_rates);
    let config = config.map_err(|error| error.to_string())?;
    Ok(config.with_mask(mask(file)))
}

/// The mask of a file.
pub fn mask(file: &GoldenFile) -> dilated_attention::Mask {
    match file.causal() {
        true => dilated_attention::Mask::Causal,
        false => dilated_attention::Mask::Full,
    }
}
