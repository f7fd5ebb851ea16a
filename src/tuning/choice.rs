//! A kernel with the reason why it was chosen.

use std::fmt;

/// A kernel and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice<V> {
    /// The kernel with its shape.
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
    /// A timed probe found it the fastest ([`Context::tune`](crate::Context::tune)), now or in an earlier run.
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
    pub(crate) fn adapter(variant: V, because: &'static str) -> Self {
        Self {
            variant,
            reason: Reason::Adapter(because),
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
            Self::Adapter(because) => f.write_str(because),
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
