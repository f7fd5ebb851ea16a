//! What threads may do to each other in the shards.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::core::Core;
use super::lease::Lease;
use super::ledger::Budget;
use super::policy::Balanced;
use super::source::{BufferSource, CreateError};
use crate::wgpu::BufferUsages;

/// Makes buffers of nothing.
#[derive(Debug)]
struct Source;

impl BufferSource<()> for Source {
    fn create(&self, _: &str, _: u64, _: BufferUsages) -> Result<(), CreateError> {
        Ok(())
    }

    fn poll(&self, _: bool) {}

    fn max_buffer_bytes(&self) -> u64 {
        1 << 20
    }
}

fn core() -> Arc<Core<()>> {
    let budget = Budget {
        bytes: None,
        graceful: 1.0,
        aggressive: 1.0,
    };
    Core::new(1, Box::new(Source), Arc::new(Balanced::default()), budget)
}

fn acquire(core: &Arc<Core<()>>, shard: usize) -> Lease<()> {
    let label = "model".into();
    let request = core.request(&label, 256, BufferUsages::STORAGE.bits());
    match core.acquire(shard, &request) {
        Ok(lease) => lease,
        Err(failure) => panic!("{failure:?}"),
    }
}

/// Runs `body` under every order with at most two preemptions.
fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    builder.check(body);
}

/// After all leases are gone.
fn check_idle(core: &Core<()>) {
    let stats = core.stats();
    assert!(stats.identities_hold(), "{stats}");
    assert_eq!(stats.leases.current, 0, "{stats}");
}

#[test]
fn the_last_two_handles_dropped_at_once_return_the_buffer_once() {
    model(|| {
        let core = core();
        let first = acquire(&core, 0);
        let second = first.clone();
        let thread = thread::spawn(move || drop(first));
        drop(second);
        thread.join().unwrap();
        check_idle(&core);
        let stats = core.stats();
        assert_eq!((stats.releases, stats.free.current), (1, 1), "{stats}");
        core.close();
    });
}

#[test]
fn a_buffer_that_comes_back_while_another_is_wanted_is_lent_once() {
    model(|| {
        let core = core();
        let first = acquire(&core, 0);
        let kept = acquire(&core, 0);
        let returned = first.buffer_serial();
        let thread = {
            let core = core.clone();
            thread::spawn(move || acquire(&core, 0))
        };
        drop(first);
        let lent = thread.join().unwrap();
        assert_ne!(lent.buffer_serial(), kept.buffer_serial());
        let stats = core.stats();
        assert!(stats.identities_hold(), "{stats}");
        let new = u64::from(lent.buffer_serial() != returned);
        assert_eq!(stats.creates, 2 + new, "{stats}");
        drop((lent, kept));
        check_idle(&core);
        core.close();
    });
}

#[test]
fn two_shards_that_want_one_cached_buffer_do_not_both_get_it() {
    model(|| {
        let core = core();
        drop(acquire(&core, 0));
        let thread = {
            let core = core.clone();
            thread::spawn(move || acquire(&core, 1))
        };
        let here = acquire(&core, 0);
        let there = thread.join().unwrap();
        assert_ne!(here.buffer_serial(), there.buffer_serial());
        drop((here, there));
        check_idle(&core);
        core.close();
    });
}

#[test]
fn a_lease_that_ends_while_the_pool_is_closed_or_trimmed_is_not_kept_and_not_lost() {
    model(|| {
        let core = core();
        let lease = acquire(&core, 1);
        let thread = thread::spawn(move || drop(lease));
        core.trim_to(0);
        core.close();
        thread.join().unwrap();
        check_idle(&core);
        let stats = core.stats();
        assert_eq!(
            (stats.destroys, stats.held_bytes.current),
            (1, 0),
            "{stats}"
        );
    });
}

#[test]
fn a_lease_that_moves_to_another_thread_returns_to_its_shard() {
    model(|| {
        let core = core();
        let lease = acquire(&core, 0);
        let thread = {
            let core = core.clone();
            thread::spawn(move || {
                drop(lease);
                drop(acquire(&core, 1));
            })
        };
        drop(acquire(&core, 0));
        thread.join().unwrap();
        check_idle(&core);
        core.close();
    });
}

#[test]
fn no_peak_is_missed() {
    model(|| {
        let core = core();
        // Both shards have a buffer and room for the leases to come, so that they work alone; one lease is out at a time.
        drop(acquire(&core, 0));
        let here = acquire(&core, 0);
        drop((here, acquire(&core, 1)));
        core.reset_peaks();
        for shard in [0, 0, 1] {
            drop(acquire(&core, shard));
        }
        assert_eq!(core.stats().leases.peak, 1);
        let shadow = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let work = |shard: usize| {
            let (core, shadow) = (core.clone(), shadow.clone());
            move || {
                let lease = acquire(&core, shard);
                let now = shadow[0].fetch_add(1, Ordering::SeqCst) + 1;
                shadow[1].fetch_max(now, Ordering::SeqCst);
                shadow[0].fetch_sub(1, Ordering::SeqCst);
                drop(lease);
            }
        };
        let thread = thread::spawn(work(1));
        work(0)();
        thread.join().unwrap();
        let stats = core.stats();
        assert!(
            stats.leases.peak >= shadow[1].load(Ordering::SeqCst),
            "{stats}"
        );
        assert!(stats.leases.peak <= 2, "{stats}");
        check_idle(&core);
        core.close();
    });
}
