//! Watching a pool for a while.

use std::fmt;

use super::Pool;
use crate::label::Label;
use crate::pool_figures::PoolStats;
use crate::pool_figures::ScopeReport;
use crate::wgpu;

/// Watches a pool; see [`Pool::scope`](super::Pool::scope).
#[must_use = "a scope ends when it is dropped"]
pub struct PoolScope<B = wgpu::Buffer> {
    pool: Pool<B>,
    name: Label,
    watch: u64,
    before: PoolStats,
}

impl<B> PoolScope<B> {
    pub(super) fn new(pool: &Pool<B>, name: Label) -> Self {
        let (watch, before) = pool.core().open_scope();
        Self {
            pool: pool.clone(),
            name,
            watch,
            before,
        }
    }

    /// What happened since the scope opened.
    pub fn report(&self) -> ScopeReport {
        let now = self.pool.core().scope_stats(self.watch);
        ScopeReport::new(&self.name, &self.before, &now)
    }
}

impl<B> Drop for PoolScope<B> {
    fn drop(&mut self) {
        self.pool.core().close_scope(self.watch);
    }
}

impl<B> fmt::Debug for PoolScope<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolScope")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
