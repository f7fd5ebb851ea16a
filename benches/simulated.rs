//! The pool without a device, as the traces drive it.

use dilated_attention::pool::{Lease, Pool, PoolOptions, PoolStats, STORAGE_USAGE};
use dilated_attention::testing::{SimulatedBuffer, SimulatedSource};

use crate::traces::Allocator;

/// A pool without a device, and its figures when the warm-up was over.
pub struct Simulated {
    pub pool: Pool<SimulatedBuffer>,
    pub warm: PoolStats,
}

impl Simulated {
    pub fn new(options: PoolOptions) -> Self {
        let pool = Pool::from_source(SimulatedSource::new((1 << 31) - 1), options);
        let warm = pool.stats();
        Self { pool, warm }
    }
}

impl Allocator for Simulated {
    type Lease = Lease<SimulatedBuffer>;

    fn acquire(&mut self, bytes: u64) -> Self::Lease {
        self.pool
            .acquire("workload", bytes, STORAGE_USAGE)
            .expect("there is no end to this memory")
    }

    fn warm(&mut self) {
        self.pool.reset_peaks();
        self.warm = self.pool.stats();
    }
}
