//! A pool driven by bytes, against a shadow of plain collections.

use std::collections::BTreeMap;

use dilated_attention::pool::{
    Balanced, BufferRequest, Exact, Lean, Lease, Limits, NoPooling, PersistentBuffer, Policy, Pool,
    PoolError, PoolOptions, PoolScope, Pressure, STAGING_USAGE, STORAGE_USAGE, Speed, Usage,
};
use dilated_attention::testing::{Faults, SimulatedBuffer, SimulatedSource};
use dilated_attention::wgpu::BufferUsages;

const MAX_BUFFER_BYTES: u64 = (1 << 28) - 1;

const USAGES: [BufferUsages; 3] = [STORAGE_USAGE, STAGING_USAGE, BufferUsages::UNIFORM];

/// Answers nonsense.
#[derive(Debug)]
struct Nonsense(u8);

impl Nonsense {
    fn number(&self, seed: u64) -> u64 {
        match (seed ^ u64::from(self.0)) % 5 {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => seed / 2,
            _ => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }
}

impl Policy for Nonsense {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        self.number(requested_bytes)
    }

    fn borrow_bytes(&self, buffer_bytes: u64) -> u64 {
        self.number(buffer_bytes)
    }

    fn keeps(&self, buffer_bytes: u64) -> bool {
        self.number(buffer_bytes).is_multiple_of(2)
    }

    fn limits(&self, usage: &Usage) -> Limits {
        Limits {
            held_bytes: self.number(usage.live_bytes),
            free_bytes: self.number(usage.free_bytes),
            free_buffers: self.number(usage.free_buffers as u64) as usize,
            idle_windows: self.number(usage.live_bytes) as u32,
        }
    }
}

/// Bytes as instructions; zeros when they run out.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    /// Sizes of every magnitude, also beyond the limit.
    fn size(&mut self) -> u64 {
        let magnitude = self.next() % 30;
        (1u64 << magnitude) + (u64::from(self.next()) << magnitude >> 8)
    }
}

struct Live {
    lease: Lease<SimulatedBuffer>,
    requested_bytes: u64,
}

/// The pool, its shadow, and what is needed to compare them.
struct Machine {
    pool: Pool<SimulatedBuffer>,
    source: SimulatedSource,
    budget_bytes: Option<u64>,
    live: Vec<Live>,
    persistent: PersistentBuffer<SimulatedBuffer>,
    scopes: Vec<PoolScope<SimulatedBuffer>>,
    submissions: Vec<u64>,
    acquires: u64,
    peak_requested_bytes: u64,
    peak_leases: u64,
}

/// Runs the operations that `bytes` spell; panics where the pool is not what its contract says.
pub fn run(bytes: &[u8]) {
    let mut bytes = Bytes(bytes.iter());
    let mut machine = Machine::new(&mut bytes);
    while !bytes.is_empty() {
        machine.step(&mut bytes);
        machine.check();
    }
    machine.end();
}

impl Machine {
    fn new(bytes: &mut Bytes<'_>) -> Self {
        let options = PoolOptions::default();
        let options = match bytes.next() % 6 {
            0 => options.with_policy(Balanced {
                floor_bytes: 1 << 16,
                ..Balanced::default()
            }),
            1 => options.with_policy(Speed),
            2 => options.with_policy(Lean),
            3 => options.with_policy(Exact),
            4 => options.with_policy(NoPooling),
            _ => options.with_policy(Nonsense(bytes.next())),
        };
        let budget_bytes = match bytes.next() % 3 {
            0 => Some(u64::from(bytes.next()) << 16),
            _ => None,
        };
        let options = match budget_bytes {
            Some(budget_bytes) => options.with_budget_bytes(budget_bytes),
            None => options,
        };
        let mut faults = Faults::default();
        match bytes.next() % 6 {
            0 => faults.memory_bytes = Some(u64::from(bytes.next()) << 16),
            1 => {
                faults.fail_at = Some(bytes.next().into());
                faults.fail_times = bytes.next().into();
            }
            2 => faults.lose_at = Some(bytes.next().into()),
            _ => {}
        }
        let source = SimulatedSource::new(MAX_BUFFER_BYTES).with_faults(faults);
        let pool = Pool::from_source(source.clone(), options);
        Self {
            persistent: PersistentBuffer::new(&pool, "persistent", STORAGE_USAGE),
            pool,
            source,
            budget_bytes,
            live: Vec::new(),
            scopes: Vec::new(),
            submissions: Vec::new(),
            acquires: 0,
            peak_requested_bytes: 0,
            peak_leases: 0,
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.next() % 24 {
            0..=7 => self.acquire(bytes),
            8..=12 => self.release(bytes),
            13 => self.share(bytes),
            14 => drop(self.pool.trim_to(bytes.size())),
            15 => drop(self.pool.force_trim()),
            16 => self.pool.set_pressure(match bytes.next() % 3 {
                0 => Pressure::Normal,
                1 => Pressure::Graceful,
                _ => Pressure::Aggressive,
            }),
            17 => (0..bytes.next()).for_each(|_| self.pool.maintain()),
            18 => self.submissions.push(self.pool.submitted()),
            19 => {
                if let Some(submission) = self.submissions.pop() {
                    self.pool.completed(submission);
                }
            }
            20 => match bytes.next() % 2 {
                0 => self.scopes.push(self.pool.scope("scope")),
                _ if self.scopes.is_empty() => {}
                pick => {
                    let scope = self
                        .scopes
                        .swap_remove(usize::from(pick) % self.scopes.len());
                    assert!(scope.report().requested_bytes.peak <= self.peak_requested_bytes);
                }
            },
            21 => self.reserve(bytes),
            22 => {
                let grown = self
                    .persistent
                    .at_least(bytes.size())
                    .map(Lease::buffer_bytes);
                self.expected(grown.as_ref().err());
            }
            _ => match bytes.next() % 3 {
                0 => self.pool.start_trace(),
                1 => {
                    let trace = self.pool.take_trace();
                    assert_eq!(trace.to_string().parse(), Ok(trace));
                }
                _ => self.acquire_elsewhere(bytes),
            },
        }
    }

    fn acquire(&mut self, bytes: &mut Bytes<'_>) {
        let (requested, usage) = (bytes.size(), USAGES[usize::from(bytes.next()) % 3]);
        let lease = self.pool.acquire("leased", requested, usage);
        self.took(lease, requested);
    }

    /// From another thread, hence another shard.
    fn acquire_elsewhere(&mut self, bytes: &mut Bytes<'_>) {
        let (requested, usage) = (bytes.size(), USAGES[usize::from(bytes.next()) % 3]);
        let pool = &self.pool;
        let lease = std::thread::scope(|scope| {
            let thread = scope.spawn(move || pool.acquire("elsewhere", requested, usage));
            thread.join().expect("no panic")
        });
        self.took(lease, requested);
    }

    fn took(&mut self, lease: Result<Lease<SimulatedBuffer>, PoolError>, requested_bytes: u64) {
        match lease {
            Ok(lease) => {
                assert!(lease.requested_bytes() >= requested_bytes);
                assert!(lease.buffer_bytes() >= lease.requested_bytes());
                assert_eq!(lease.buffer().bytes(), lease.buffer_bytes());
                let requested_bytes = lease.requested_bytes();
                self.live.push(Live {
                    lease,
                    requested_bytes,
                });
                self.acquires += 1;
            }
            Err(error) => self.expected(Some(&error)),
        }
    }

    fn expected(&self, error: Option<&PoolError>) {
        match error {
            None
            | Some(
                PoolError::BufferTooLarge { .. }
                | PoolError::BudgetExceeded { .. }
                | PoolError::OutOfMemory { .. }
                | PoolError::DeviceLost { .. },
            ) => {}
            Some(error) => panic!("{error}"),
        }
    }

    fn release(&mut self, bytes: &mut Bytes<'_>) {
        if self.live.is_empty() {
            return;
        }
        let pick = bytes.next();
        let live = self.live.swap_remove(usize::from(pick) % self.live.len());
        if pick.is_multiple_of(8) {
            // Handed to another thread, which drops it.
            std::thread::spawn(move || drop(live))
                .join()
                .expect("no panic");
        }
    }

    /// A second handle keeps the buffer.
    fn share(&mut self, bytes: &mut Bytes<'_>) {
        let Some(live) = self.live.get(usize::from(bytes.next())) else {
            return;
        };
        let (handle, before) = (live.lease.clone(), self.pool.stats());
        drop(handle);
        assert_eq!(self.pool.stats(), before);
    }

    fn reserve(&mut self, bytes: &mut Bytes<'_>) {
        let request = BufferRequest {
            label: "reserved".into(),
            bytes: bytes.size(),
            usage: STORAGE_USAGE,
            count: usize::from(bytes.next() % 4),
        };
        let before = self.pool.stats();
        let reserved = self.pool.reserve(&[request][..]);
        self.expected(reserved.as_ref().err());
        let stats = self.pool.stats();
        assert_eq!(stats.leases.current, before.leases.current);
        self.acquires += stats.acquires - before.acquires;
        self.peak_requested_bytes = stats.requested_bytes.peak;
        self.peak_leases = stats.leases.peak;
    }

    fn check(&mut self) {
        let stats = self.pool.stats();
        assert!(stats.identities_hold(), "{stats}");
        let kept = self.persistent.lease();
        let (kept_leases, kept_bytes) = kept.map_or((0, 0), |lease| (1, lease.requested_bytes()));
        let leases = self.live.len() as u64 + kept_leases;
        let requested: u64 = self.live.iter().map(|live| live.requested_bytes).sum();
        let requested_bytes = requested + kept_bytes;
        assert_eq!(stats.leases.current, leases, "{stats}");
        assert_eq!(stats.requested_bytes.current, requested_bytes, "{stats}");
        // A buffer that grows is two for a moment.
        if kept.is_none() {
            self.peak_requested_bytes = self.peak_requested_bytes.max(requested_bytes);
            self.peak_leases = self.peak_leases.max(leases);
            assert_eq!(stats.requested_bytes.peak, self.peak_requested_bytes);
            assert_eq!(stats.leases.peak, self.peak_leases);
            assert_eq!(stats.acquires, self.acquires);
        } else {
            self.peak_requested_bytes = stats.requested_bytes.peak;
            self.peak_leases = stats.leases.peak;
            self.acquires = stats.acquires;
        }
        // What the pool says exists is what exists.
        let existing = stats.held_bytes.current - stats.draining_bytes;
        assert_eq!(existing, self.source.bytes(), "{stats}");
        assert_eq!(
            stats.creates - stats.destroys,
            self.source.buffers(),
            "{stats}"
        );
        if let Some(budget_bytes) = self.budget_bytes {
            assert!(stats.held_bytes.peak <= budget_bytes, "{stats}");
        }
        let mut serials = BTreeMap::new();
        for live in &self.live {
            assert!(
                serials.insert(live.lease.buffer_serial(), ()).is_none(),
                "lent twice"
            );
        }
        assert_eq!(self.pool.leases().len() as u64, leases);
    }

    fn end(self) {
        let Self {
            pool,
            source,
            live,
            persistent,
            scopes,
            ..
        } = self;
        drop(scopes);
        // One lease outlives its pool.
        let mut live = live;
        let last = live.pop();
        drop((live, persistent));
        drop(pool);
        let left = u64::from(last.is_some());
        assert_eq!(source.buffers(), left, "leaked");
        drop(last);
        assert_eq!((source.buffers(), source.bytes()), (0, 0), "leaked");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_operations_leave_the_pool_as_its_contract_says(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            super::run(&bytes);
        }
    }
}
