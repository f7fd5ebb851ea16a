//! How a pool behaves.

use std::sync::Arc;

use super::ledger::Budget;
use super::policy::{Balanced, Policy};

/// How a pool behaves.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    pub(super) policy: Arc<dyn Policy>,
    pub(super) budget: Budget,
    pub(super) poison: bool,
}

impl Default for PoolOptions {
    /// [`Balanced`], without a budget, without poison. With a budget, pressure is graceful above 0.8 of it and aggressive
    /// above 0.95.
    fn default() -> Self {
        Self {
            policy: Arc::new(Balanced::default()),
            budget: Budget {
                bytes: None,
                graceful: 0.8,
                aggressive: 0.95,
            },
            poison: false,
        }
    }
}

impl PoolOptions {
    /// What is kept.
    pub fn with_policy(self, policy: impl Policy + 'static) -> Self {
        Self {
            policy: Arc::new(policy),
            ..self
        }
    }

    /// Most bytes of buffers that may be held: leased, pending, cached and draining together, each at its full size.
    pub fn with_budget_bytes(mut self, bytes: u64) -> Self {
        self.budget.bytes = Some(bytes);
        self
    }

    /// Shares of the budget, 0 to 1, above which [pressure](super::Pressure) is graceful and aggressive. Without a budget they mean
    /// nothing; a share above 1, or no number, is never reached.
    pub fn with_watermarks(mut self, graceful: f64, aggressive: f64) -> Self {
        self.budget.graceful = graceful;
        self.budget.aggressive = aggressive;
        self
    }

    /// Whether a recording fills every buffer that it takes with NaN first, so that a kernel that reads behind what was written
    /// shows. For tests. (A recording that is not submitted fills nothing; what it was to write is an error to read:
    /// [`Error::NotWritten`](crate::Error::NotWritten).)
    pub fn with_poison(self, poison: bool) -> Self {
        Self { poison, ..self }
    }
}
