//! Arguments of the command.

use std::path::PathBuf;

use clap::{Parser, value_parser};
use dilated_attention::DType;
use dilated_attention::device::KernelTier;

const GROUPS: [&str; 7] = [
    "forward", "backward", "matmul", "norm", "layer", "growth", "start",
];

/// Everything that the library computes against the adapter's own ceilings, in one run
///
/// The exit status tells whether all results were right.
#[derive(Parser)]
pub struct Options {
    /// Few small cases: that everything works, not what it measures
    #[arg(long)]
    pub quick: bool,
    /// Kernels of the forward: tile, rows or broadcast
    #[arg(long, value_name = "TIER", value_parser = tier)]
    pub kernel: Option<KernelTier>,
    /// Writes every row as an object, one a line
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// What tensors are stored as, of attention and products: f32, f16 or bf16 [default: each]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    dtype: Option<DType>,
    /// Of each measurement [default: 10, with --quick 3]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
    /// Instead of time on the device that of all processors, whatever else runs there; software adapters, Linux
    #[arg(long)]
    pub processor_time: bool,
    /// Only this group
    #[arg(long, value_name = "GROUP", value_parser = GROUPS)]
    only: Option<String>,
    /// Prints one table of such files, of other implementations, too (benches/peers); measures nothing
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub join: Vec<PathBuf>,
    /// Is a process that another times.
    #[arg(long, hide = true)]
    pub first_call: bool,
    /// Cargo passes it to every benchmark.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn tier(name: &str) -> Result<KernelTier, &'static str> {
    KernelTier::named(name).ok_or("tile, rows, broadcast, coop8 or coop16 is needed")
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn dtype(name: &str) -> Result<DType, &'static str> {
    let mut all = DTYPES.into_iter();
    let found = all.find(|dtype| dtype.to_string() == name);
    found.ok_or("f32, f16 or bf16 is needed")
}

impl Options {
    /// What tensors are stored as.
    pub fn dtypes(&self) -> Vec<DType> {
        match self.dtype {
            Some(dtype) => vec![dtype],
            None => DTYPES.to_vec(),
        }
    }

    /// How often each case is measured.
    pub fn repetitions(&self) -> usize {
        match self.repetitions {
            Some(repetitions) => repetitions as usize,
            None if self.quick => 3,
            None => 10,
        }
    }

    /// Every shader is compiled twice for it, which a quick run does for one group alone.
    pub fn compares_unchecked(&self, group: &str) -> bool {
        !self.quick || group == "forward"
    }

    pub fn wants(&self, group: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == group)
    }
}
