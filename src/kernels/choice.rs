//! A kernel with the reason why it was chosen.

use std::fmt;

/// A kernel and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice<V> {
    /// The kernel with its numbers.
    pub variant: V,
    /// Why.
    pub reason: Reason,
}

/// Why a kernel was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// By what the adapter is; in words.
    Adapter(&'static str),
    /// A timed probe found it the fastest ([`tune`](crate::tuning::tune)), now or in an earlier run.
    Measured {
        /// Time of the probe.
        microseconds: u64,
        /// The next best kernel and its time.
        against: Option<(String, u64)>,
    },
    /// The caller chose it.
    Caller,
}

impl<V> Choice<V> {
    /// Chosen by what the adapter is.
    pub(crate) fn adapter(variant: V, reason: &'static str) -> Self {
        Self {
            variant,
            reason: Reason::Adapter(reason),
        }
    }
}

/// The caller's.
impl<V> From<V> for Choice<V> {
    fn from(variant: V) -> Self {
        Self {
            variant,
            reason: Reason::Caller,
        }
    }
}

impl<V: fmt::Display> fmt::Display for Choice<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, chosen: {}", self.variant, self.reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |microseconds: u64| microseconds as f64 / 1e3;
        match self {
            Self::Adapter(reason) => f.write_str(reason),
            Self::Caller => f.write_str("by the caller"),
            Self::Measured {
                microseconds,
                against,
            } => {
                write!(f, "measured {:.2} ms", milliseconds(*microseconds))?;
                match against {
                    Some((other, time)) => {
                        write!(f, " against {:.2} ms of {other}", milliseconds(*time))
                    }
                    None => f.write_str(", no other could be measured in time"),
                }
            }
        }
    }
}

/// Reasons that are known without measuring.
pub(super) mod reasons {
    /// Where nothing else suits.
    pub const EVERY_DEVICE: &str = "the kernel that every device runs";

    /// A GPU.
    pub const GPU: &str = "a GPU, kernels for workgroup memory";

    /// A GPU, f16 tensors.
    pub const MATRICES: &str = "a GPU with cooperative matrices, f16 tensors";

    /// A software driver, `Processor::Cpu` with `uniform_loads`.
    pub const UNIFORM_LOADS: &str = "a CPU whose driver loads an address that all lanes share once (lavapipe of Mesa 26 and later)";

    /// A software driver without, with `broadcasts`.
    pub const BROADCASTS: &str = "a CPU whose driver loads shared addresses once a lane, and has subgroups of 8 lanes (lavapipe before Mesa 26)";

    /// A software driver with both, a linear layer's product.
    pub const BROADCASTS_OF_VEC4: &str =
        "a CPU with subgroups of 8 lanes, factors whose sums run along the stored rows";

    /// A software driver with neither.
    pub const LOADS_PER_LANE: &str =
        "a CPU whose driver loads shared addresses once a lane (lavapipe before Mesa 26, others)";

    /// Unrolled columns of such heads compile for longer than they save.
    pub const WIDE_HEADS: &str =
        "heads wider than 128, whose columns compile for too long unrolled";
}
