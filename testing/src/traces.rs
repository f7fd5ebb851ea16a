//! Streams of allocations that pools are judged by. Deterministic: every number a pool counts on them is the same on any
//! machine. Used by the benchmark, by the comparison with other pools, and by tests that gate the counts.

use std::collections::VecDeque;

use dilated_attention::pool::{Lease, Pool, PoolOptions, PoolStats, STORAGE_USAGE};
use dilated_attention::testing::{SimulatedBuffer, SimulatedSource};

/// Whatever lends memory.
pub trait Allocator {
    /// Goes back when dropped.
    type Lease;

    /// Lends `bytes`.
    fn acquire(&mut self, bytes: u64) -> Self::Lease;

    /// What follows is counted; what came before was warm-up.
    fn warm(&mut self) {}
}

/// The library's pool without a device, as traces drive it.
pub struct Simulated {
    /// The pool.
    pub pool: Pool<SimulatedBuffer>,
    /// Its figures when the warm-up was over.
    pub warm: PoolStats,
}

impl Simulated {
    /// An empty pool with these options.
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

/// A stream of allocations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Sizes of every magnitude, `live` of them at a time, each step replaces one: a busy allocator without structure.
    Random {
        /// Leases at a time.
        live: usize,
    },
    /// 64 buffers that grow at every step, the new ones taken before the old ones go: a key/value cache.
    Growing,
    /// The same 200 intermediates of 12 sizes in each of 200 runs: a static graph.
    Static,
    /// 400 requests of random length through 24 layers, at most 8 buffers live: inference on inputs of all lengths.
    Lengths,
}

impl Workload {
    /// All workloads, in the order of their letters.
    pub const ALL: [(&'static str, Self); 6] = [
        ("A100", Self::Random { live: 100 }),
        ("A1000", Self::Random { live: 1000 }),
        ("A4000", Self::Random { live: 4000 }),
        ("B", Self::Growing),
        ("C", Self::Static),
        ("D", Self::Lengths),
    ];

    /// Runs it.
    pub fn run(self, pool: &mut impl Allocator) {
        match self {
            Self::Random { live } => random(pool, live),
            Self::Growing => growing(pool),
            Self::Static => static_graph(pool),
            Self::Lengths => lengths(pool),
        }
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `2^(low + span * unit)`: every magnitude is as likely.
    fn magnitude(&mut self, low: f64, span: f64) -> u64 {
        (low + span * self.unit()).exp2() as u64
    }
}

fn random(pool: &mut impl Allocator, live: usize) {
    const WARM_UP: u32 = 25_000;
    const COUNTED: u32 = 100_000;
    let mut random = Random(88_172_645_463_325_252);
    let mut leases: Vec<_> = (0..live)
        .map(|_| pool.acquire(random.magnitude(8.0, 16.0)))
        .collect();
    for step in 0..WARM_UP + COUNTED {
        if step == WARM_UP {
            pool.warm();
        }
        let index = random.below(live as u64) as usize;
        let bytes = random.magnitude(8.0, 16.0);
        drop(leases.swap_remove(index));
        leases.push(pool.acquire(bytes));
    }
}

fn growing(pool: &mut impl Allocator) {
    let mut before = Vec::new();
    for length in 512..8192u64 {
        let now = (0..64).map(|_| pool.acquire(2048 * length)).collect();
        drop(std::mem::replace(&mut before, now));
    }
}

fn static_graph(pool: &mut impl Allocator) {
    let mut random = Random(12_345);
    let sizes: Vec<u64> = (0..12).map(|_| random.magnitude(16.0, 10.0)).collect();
    let intermediates: Vec<(u64, u64)> = (0..200)
        .map(|_| (sizes[random.below(12) as usize], 1 + random.below(12)))
        .collect();
    for run in 0..200 {
        if run == 1 {
            pool.warm();
        }
        let mut live = Vec::new();
        for (step, &(bytes, lifetime)) in (0..).zip(&intermediates) {
            live.retain(|(end, _)| *end > step);
            live.push((step + lifetime, pool.acquire(bytes)));
        }
    }
}

fn lengths(pool: &mut impl Allocator) {
    let mut random = Random(777);
    for _ in 0..400 {
        let length = 128 + random.below(3969);
        let mut live = VecDeque::new();
        for _ in 0..24 {
            for width in [4, 4, 4, 16, 16, 4] {
                live.push_back(pool.acquire(width * length * 1024));
                if live.len() > 8 {
                    live.pop_front();
                }
            }
        }
    }
}

/// For timing: which of `live` leases ends at each step, and what the next one asks for. Sizes up to 4 KiB, so that thousands
/// of buffers fit on any device.
pub fn replacements(count: usize, live: usize) -> Vec<(usize, u64)> {
    let mut random = Random(88_172_645_463_325_252);
    (0..count)
        .map(|_| (random.below(live as u64) as usize, 256 + random.below(3841)))
        .collect()
}

#[cfg(test)]
mod tests;
