//! A chosen kernel, with the reason for the choice.

use std::fmt;

/// A chosen kernel, with the reason for the choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice<V> {
    /// The kernel, with the numbers it is compiled for.
    pub variant: V,
    /// The reason.
    pub reason: Reason,
}

/// Why a kernel was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// It suits this kind of adapter; the text says why.
    Adapter(&'static str),
    /// A timed probe found it the fastest ([`tune`](crate::tuning::tune)), in this process or an earlier one.
    Measured {
        /// Its time in the probe.
        microseconds: u64,
        /// The second fastest kernel and its time in microseconds; `None` when no other could be measured.
        against: Option<(String, u64)>,
    },
    /// The caller chose it.
    Caller,
}

impl<V> Choice<V> {
    /// A kernel that suits this kind of adapter.
    pub(crate) fn adapter(variant: V, reason: &'static str) -> Self {
        Self {
            variant,
            reason: Reason::Adapter(reason),
        }
    }
}

/// A choice that the caller made.
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

/// Texts for [`Reason::Adapter`].
pub(super) mod reasons {
    /// When no other kernel suits the device.
    pub const EVERY_DEVICE: &str = "the kernel that every device runs";

    /// A GPU.
    pub const GPU: &str = "a GPU, kernels for workgroup memory";

    /// A GPU with cooperative matrices, and f16 tensors.
    pub const MATRICES: &str = "a GPU with cooperative matrices, f16 tensors";

    /// `Processor::Cpu` with `uniform_loads`.
    pub const UNIFORM_LOADS: &str = "a CPU whose driver loads an address that all lanes share once (lavapipe of Mesa 26 and later)";

    /// `Processor::Cpu` with `broadcasts`, without `uniform_loads`.
    pub const BROADCASTS: &str = "a CPU whose driver loads shared addresses once a lane, and has subgroups of 8 lanes (lavapipe before Mesa 26)";

    /// `Processor::Cpu` with `broadcasts` and `uniform_loads`, for the product of a linear layer.
    pub const BROADCASTS_OF_VEC4: &str =
        "a CPU with subgroups of 8 lanes, factors whose sums run along the stored rows";

    /// `Processor::Cpu` with neither.
    pub const LOADS_PER_LANE: &str =
        "a CPU whose driver loads shared addresses once a lane (lavapipe before Mesa 26, others)";

    /// Wide heads: unrolled loops over their columns take longer to compile than they save.
    pub const WIDE_HEADS: &str =
        "heads wider than 128, whose columns compile for too long unrolled";
}
