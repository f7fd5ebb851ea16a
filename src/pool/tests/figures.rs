//! Figures of small programs, in exact numbers: what is counted, when a window ends, and who is asked then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use wgpu::BufferUsages;

use crate::pool::event::{Event, Outcome};
use crate::pool::simulated::{Faults, SimulatedBuffer, SimulatedSource};
use crate::pool::{
    Balanced, Exact, Lean, Lease, Limits, NoPooling, PersistentBuffer, Policy, Pool, PoolError,
    PoolOptions, STORAGE_USAGE, Speed, Usage,
};
use crate::pool_figures::{Counter, Evictions, PoolStats};

const MIB: u64 = 1 << 20;

fn pool(options: PoolOptions) -> Pool<SimulatedBuffer> {
    Pool::from_source(SimulatedSource::new(1 << 30), options)
}

fn counter(current: u64, peak: u64, total: u64) -> Counter {
    Counter {
        current,
        peak,
        total,
    }
}

/// A program of four leases on two buffers: a third lease gets the first buffer, the second buffer comes back late, and is lost
/// after a fourth lease. Returns the third lease.
fn four_leases(pool: &Pool<SimulatedBuffer>) -> Lease<SimulatedBuffer> {
    let lend = |label, bytes| pool.acquire(label, bytes, STORAGE_USAGE).expect("lends");
    let suspended = |lease: Lease<SimulatedBuffer>| lease.suspend().expect("the sole holder");
    let first = lend("first", 1000);
    let second = lend("second", 4096);
    drop(first);
    let third = lend("third", 1024);
    suspended(second).ready();
    let fourth = lend("fourth", 2560);
    assert_eq!(fourth.buffer_bytes(), 4096);
    drop(suspended(fourth));
    third
}

#[test]
fn every_step_of_a_buffers_life_is_counted() {
    let pool = pool(PoolOptions::default());
    let third = four_leases(&pool);
    let expected = PoolStats {
        acquires: 4,
        releases: 3,
        hits_exact: 1,
        hits_borrowed: 1,
        hits_shared: 0,
        hits_within_recording: 0,
        misses: 2,
        creates: 2,
        destroys: 1,
        evictions: Evictions::default(),
        recreations: 0,
        recoveries: 0,
        leases: counter(1, 2, 4),
        requested_bytes: counter(1024, 1024 + 4096, 1000 + 4096 + 1024 + 2560),
        leased_bytes: counter(1024, 1024 + 4096, 2 * (1024 + 4096)),
        pending: counter(0, 1, 2),
        pending_bytes: counter(0, 4096, 2 * 4096),
        free: counter(0, 1, 2),
        free_bytes: counter(0, 4096, 1024 + 4096),
        held_bytes: counter(1024, 1024 + 4096, 1024 + 4096),
        draining_bytes: 0,
        destroyed_bytes: 4096,
        imported: Counter::default(),
        imported_bytes: Counter::default(),
    };
    assert_eq!(pool.stats(), expected);
    // Of what was, only totals are left.
    drop(third);
    pool.reset_peaks();
    let stats = pool.stats();
    assert_eq!(stats.leases, counter(0, 0, 4));
    assert_eq!(stats.held_bytes, counter(1024, 1024, 1024 + 4096));
}

#[test]
fn every_step_of_a_buffers_life_is_in_the_trace_once() {
    let pool = pool(PoolOptions::default());
    pool.start_trace();
    drop(four_leases(&pool));
    let events = pool.take_trace().events;
    let acquired = |buffer,
                    [requested_bytes, buffer_bytes]: [u64; 2],
                    label: &'static str,
                    outcome| Event::Acquire {
        buffer,
        requested_bytes,
        buffer_bytes,
        usage: STORAGE_USAGE.bits(),
        label: label.into(),
        outcome,
    };
    let expected = [
        acquired(1, [1000, 1024], "first", Outcome::Created),
        acquired(2, [4096, 4096], "second", Outcome::Created),
        Event::Release {
            buffer: 1,
            kept: true,
        },
        acquired(1, [1024, 1024], "third", Outcome::Exact),
        Event::Suspend { buffer: 2 },
        Event::Resume {
            buffer: 2,
            usable: true,
            kept: true,
        },
        acquired(2, [2560, 4096], "fourth", Outcome::Borrowed),
        Event::Suspend { buffer: 2 },
        Event::Resume {
            buffer: 2,
            usable: false,
            kept: false,
        },
        Event::Release {
            buffer: 1,
            kept: true,
        },
    ];
    let events: Vec<Event> = events.into_iter().map(|(_, event)| event).collect();
    assert_eq!(events, expected);
}

#[test]
fn ages_and_classes_are_reported() {
    let pool = pool(PoolOptions::default());
    let third = four_leases(&pool);
    let pending = pool.acquire("pending", 2048, STORAGE_USAGE).expect("lends");
    let pending = pending.suspend().expect("the sole holder");
    drop(pool.acquire("free", 3072, STORAGE_USAGE).expect("lends"));
    let ages: Vec<_> = pool
        .leases()
        .iter()
        .map(|lease| (lease.label.to_string(), lease.pending, lease.age))
        .collect();
    // After the third lease, the second ended and came back, the fourth began, ended and was lost, and four steps followed.
    assert_eq!(
        ages,
        [
            ("third".to_owned(), false, 2 + 3 + 4),
            ("pending".to_owned(), true, 3)
        ]
    );
    let classes: Vec<_> = pool
        .report()
        .classes
        .iter()
        .map(|c| {
            assert_eq!(c.usage, STORAGE_USAGE.bits());
            let counts = [c.acquires, c.misses, c.wasted_bytes];
            (c.class_bytes, counts, [c.leased, c.pending, c.free])
        })
        .collect();
    assert_eq!(
        classes,
        [
            (1024, [2, 1, 0], [1, 0, 0]),
            (2048, [1, 1, 0], [0, 1, 0]),
            (3072, [1, 1, 0], [0, 0, 1]),
            (4096, [2, 1, 0], [0, 0, 0]),
        ]
    );
    drop((third, pending));
}

#[test]
fn a_recording_gets_the_smallest_of_its_own_that_fits() {
    let pool = pool(PoolOptions::default());
    let lend = |bytes, usage| pool.acquire("own", bytes, usage).expect("lends");
    // A larger buffer is cached, which the lease of 1000 bytes borrows: it counts as one of 1024.
    drop(lend(1280, STORAGE_USAGE));
    let mut leases = vec![
        lend(1000, STORAGE_USAGE),
        lend(1280, STORAGE_USAGE),
        lend(1100, BufferUsages::UNIFORM),
        lend(1536, STORAGE_USAGE),
    ];
    assert_eq!(leases[0].buffer_bytes(), 1280);
    let serials: Vec<_> = leases.iter().map(Lease::buffer_serial).collect();
    let served = |leases: &mut Vec<Lease<SimulatedBuffer>>, bytes| {
        let reused = pool.reuse(leases, "next", bytes, STORAGE_USAGE);
        reused
            .expect("a valid request")
            .map(|lease| lease.buffer_serial())
    };
    assert_eq!(served(&mut leases, 900), Some(serials[0]));
    // It now is a lease of 900 bytes in the class of 1024.
    assert_eq!(
        (leases[0].label().as_str(), leases[0].requested_bytes()),
        ("next", 900)
    );
    assert_eq!(served(&mut leases, 1024), Some(serials[0]));
    // No more than a quarter larger than a buffer for the request.
    assert_eq!(served(&mut leases, 1025), Some(serials[1]));
    assert_eq!(served(&mut leases, 1280), Some(serials[1]));
    assert_eq!(served(&mut leases, 1284), Some(serials[3]));
    assert_eq!(served(&mut leases, 1540), None);
    assert_eq!(served(&mut leases, 700), None);
    // What others hold, too, does not serve.
    let shared = leases[0].clone();
    assert_eq!(served(&mut leases, 1000), Some(serials[1]));
    drop(shared);
    assert_eq!(served(&mut leases, 1000), Some(serials[0]));
    let stats = pool.stats();
    assert_eq!(stats.hits_within_recording, 7);
    assert_eq!((stats.acquires, stats.releases), (5 + 7, 1 + 7));
    assert!(stats.identities_hold());
    assert_eq!(stats.requested_bytes.current, 1000 + 1000 + 1100 + 1284);
}

/// Counts how often it is asked for limits.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<AtomicU32>);

impl Policy for Asked {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        requested_bytes
    }

    fn limits(&self, _: &Usage) -> Limits {
        self.0.fetch_add(1, Ordering::Relaxed);
        Limits::NONE
    }
}

#[test]
fn a_window_ends_after_1024_leases() {
    let asked = Asked::default();
    let pool = pool(PoolOptions::default().with_policy(asked.clone()));
    let lend = || pool.acquire("any", 1024, STORAGE_USAGE).expect("lends");
    // (leases so far, how often the policy was asked since)
    let mut changes = Vec::new();
    drop(lend());
    let mut leases = vec![lend()];
    let mut before = asked.0.load(Ordering::Relaxed);
    for lease in 3..=5000 {
        // By a hit, or by a lease within a recording.
        if lease % 2 == 0 {
            leases.clear();
            leases.push(lend());
        } else {
            let reused = pool.reuse(&mut leases, "again", 1024, STORAGE_USAGE);
            drop(reused.expect("valid").expect("fits"));
        }
        let now = asked.0.load(Ordering::Relaxed);
        if now != before {
            changes.push((lease, now - before));
        }
        before = now;
    }
    // The lease after so many is the one that ends the window.
    assert_eq!(changes, [(1025, 1), (2050, 1), (3075, 1), (4100, 1)]);
    // Or after 64 calls.
    let ticks: Vec<u32> = (0..200)
        .map(|_| {
            pool.maintain();
            asked.0.load(Ordering::Relaxed) - before
        })
        .collect();
    assert_eq!(
        [ticks[62], ticks[63], ticks[126], ticks[127], ticks[191]],
        [0, 1, 1, 2, 3]
    );
}

#[test]
fn buffers_that_are_not_kept_drain_as_well() {
    let pool = pool(PoolOptions::default().with_policy(NoPooling));
    let lend = || pool.acquire("any", MIB, STORAGE_USAGE).expect("lends");
    drop(lend());
    assert_eq!(pool.stats().draining_bytes, 0);
    let used = lend();
    let submission = pool.submitted();
    drop(used);
    assert_eq!(pool.stats().draining_bytes, MIB);
    pool.completed(submission);
    drop(lend());
    assert_eq!(pool.stats().draining_bytes, 0);
}

#[test]
fn a_creation_that_fails_leaves_the_budget_as_it_was() {
    let faults = Faults {
        fail_at: Some(0),
        fail_times: 2,
        ..Faults::default()
    };
    let source = SimulatedSource::new(1 << 30).with_faults(faults);
    let options = PoolOptions::default().with_budget_bytes(3 * MIB);
    let pool = Pool::from_source(source, options);
    let lend = |bytes| pool.acquire("any", bytes, STORAGE_USAGE);
    assert!(matches!(lend(3 * MIB), Err(PoolError::OutOfMemory { .. })));
    let whole = lend(3 * MIB).expect("all of the budget is there");
    assert!(matches!(lend(4), Err(PoolError::BudgetExceeded { .. })));
    drop(whole);
}

#[test]
fn policies_differ_in_what_they_make_and_borrow() {
    let answers = |policy: &dyn Policy| [policy.buffer_bytes(1000), policy.borrow_bytes(1024)];
    assert_eq!(answers(&Balanced::default()), [1024, 2048]);
    assert_eq!(answers(&Speed), [1024, 4096]);
    assert_eq!(answers(&Lean), [1024, 1536]);
    assert_eq!(answers(&Exact), [1000, 1024]);
    assert_eq!(answers(&NoPooling), [1000, 1024]);
    let from_a_page = Balanced {
        min_pooled_bytes: 4096,
        ..Balanced::default()
    };
    assert_eq!(
        [4095, 4096].map(|bytes| from_a_page.keeps(bytes)),
        [false, true]
    );
}

#[test]
fn a_persistent_buffer_at_least_doubles() {
    let pool = pool(
        PoolOptions::default()
            .with_budget_bytes(10 * MIB)
            .with_watermarks(2.0, 2.0),
    );
    let mut kept = PersistentBuffer::new(&pool, "kept", STORAGE_USAGE);
    assert!(kept.lease().is_none());
    let mut at_least = |bytes| {
        let lease = kept.at_least(bytes)?;
        Ok::<_, PoolError>((lease.buffer_serial(), lease.requested_bytes()))
    };
    let first = at_least(MIB).expect("lends");
    assert_eq!(first.1, MIB);
    assert_eq!(
        [MIB, 4].map(|bytes| at_least(bytes).expect("there")),
        [first; 2]
    );
    let second = at_least(MIB + 4).expect("lends");
    assert_eq!(second.1, 2 * MIB);
    assert_ne!(first.0, second.0);
    // 2 MiB and 12 more are too much, but 8 are not.
    assert_eq!(at_least(6 * MIB).expect("lends").1, 6 * MIB);
    assert!(at_least(11 * MIB).is_err());
    let lease = kept.lease().expect("the old one stays");
    assert_eq!(
        (lease.label().as_str(), lease.requested_bytes()),
        ("kept", 6 * MIB)
    );
    assert_eq!(pool.leases().len(), 1);
    assert!(format!("{kept:?}").contains("kept"));
    kept.clear();
    assert!(kept.lease().is_none() && pool.leases().is_empty());
}

#[test]
fn leases_say_whose_they_are() {
    let pools = [
        PoolOptions::default(),
        PoolOptions::default().with_poison(true),
    ]
    .map(pool);
    let [first, second] = &pools;
    assert_ne!(first.id(), second.id());
    assert_eq!([first.poisons(), second.poisons()], [false, true]);
    let lend = |pool: &Pool<SimulatedBuffer>| pool.acquire("scores", 1000, STORAGE_USAGE);
    let [one, other, of_second] = [first, first, second].map(|pool| lend(pool).expect("lends"));
    assert_eq!(one.label(), "scores");
    assert_eq!(
        (one.pool_id(), of_second.pool_id()),
        (first.id(), second.id())
    );
    assert_ne!(one.buffer_serial(), other.buffer_serial());
    assert_eq!(one.clone().buffer_serial(), one.buffer_serial());
    assert_eq!(one.buffer().bytes(), 1024);
    let told = format!("{one:?}");
    assert!(
        told.contains("scores") && told.contains("1000") && told.contains("1024"),
        "{told}"
    );
    let pending = other.suspend().expect("the sole holder");
    assert!(format!("{pending:?}").contains("1024"));
    assert!(format!("{first:?}").contains(&first.id().to_string()));
}
