//! What the pool gives up, when and why: idleness, pressure, watermarks, caps, thrash, trims; and what it reports.

use wgpu::BufferUsages;

use crate::pool::simulated::{SimulatedBuffer, SimulatedSource};
use crate::pool::{
    Balanced, Lean, Lease, Limits, Policy, Pool, PoolOptions, Pressure, STORAGE_USAGE, Speed,
    Usage, size_class,
};

const MIB: u64 = 1 << 20;

fn pool(options: PoolOptions) -> Pool<SimulatedBuffer> {
    Pool::from_source(SimulatedSource::new(1 << 30), options)
}

/// Leases `count` buffers of `bytes` at once and gives them back.
fn fill(pool: &Pool<SimulatedBuffer>, count: usize, bytes: u64) {
    let leases: Vec<Lease<SimulatedBuffer>> = (0..count)
        .map(|_| pool.acquire("fill", bytes, STORAGE_USAGE).expect("lends"))
        .collect();
    drop(leases);
}

fn windows(pool: &Pool<SimulatedBuffer>, count: usize) {
    (0..64 * count).for_each(|_| pool.maintain());
}

#[test]
fn a_pool_that_idles_gives_up_what_it_has() {
    let pool = pool(PoolOptions::default());
    fill(&pool, 10, 8 * MIB);
    assert_eq!(pool.stats().free_bytes.current, 80 * MIB);
    // After two windows nothing was live of late: the floor of 16 MiB remains.
    windows(&pool, 3);
    let stats = pool.stats();
    assert_eq!(stats.free_bytes.current, 16 * MIB, "{stats}");
    assert_eq!(stats.evictions.retention, 8, "{stats}");
    // After many, nothing.
    windows(&pool, 33);
    let stats = pool.stats();
    assert_eq!(
        (stats.free.current, stats.evictions.idle),
        (0, 2),
        "{stats}"
    );
}

#[test]
fn pressure_acts_at_once_and_until_it_is_over() {
    let pool = pool(PoolOptions::default());
    fill(&pool, 10, MIB);
    let kept = pool.acquire("kept", MIB, STORAGE_USAGE).expect("lends");
    pool.set_pressure(Pressure::Aggressive);
    let stats = pool.stats();
    assert_eq!(stats.free.current, 0, "{stats}");
    assert_eq!(stats.evictions.pressure, 9, "{stats}");
    drop(kept);
    assert_eq!(
        pool.stats().free.current,
        0,
        "what comes back does not stay"
    );
    pool.set_pressure(Pressure::Normal);
    fill(&pool, 2, MIB);
    assert_eq!(pool.stats().free.current, 2);
}

#[test]
fn graceful_pressure_keeps_what_was_live_of_late() {
    let pool = pool(PoolOptions::default().with_policy(Speed));
    fill(&pool, 10, 8 * MIB);
    windows(&pool, 3);
    assert_eq!(pool.stats().free.current, 10, "speed keeps everything");
    fill(&pool, 4, 8 * MIB);
    pool.set_pressure(Pressure::Graceful);
    let stats = pool.stats();
    assert_eq!(stats.free.current, 4, "{stats}");
}

#[test]
fn watermarks_begin_to_clean_up_below_the_budget() {
    let options = || {
        let policy = Balanced {
            slack: 10.0,
            ..Balanced::default()
        };
        PoolOptions::default()
            .with_policy(policy)
            .with_budget_bytes(100 * MIB)
    };
    let program = |pool: &Pool<SimulatedBuffer>| {
        fill(pool, 5, 8 * MIB);
        // Of other usages, so that nothing cached fits: 40 MiB cached and 24 MiB live.
        let leases: Vec<_> = (0..3)
            .map(|_| pool.acquire("other", 8 * MIB, BufferUsages::UNIFORM))
            .collect();
        drop(leases);
        pool.stats()
    };
    let quiet = program(&pool(options()));
    assert_eq!(quiet.evictions.total(), 0, "{quiet}");
    let early = program(&pool(options().with_watermarks(0.3, 0.6)));
    assert!(early.evictions.pressure > 0, "{early}");
    assert!(early.held_bytes.peak < quiet.held_bytes.peak, "{early}");
    // Numbers that mean nothing are never reached.
    let never = program(&pool(options().with_watermarks(f64::NAN, f64::INFINITY)));
    assert_eq!(never.evictions.total(), 0, "{never}");
}

/// At most so many bytes and buffers cached.
#[derive(Debug)]
struct Capped;

impl Policy for Capped {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        size_class::class_bytes(requested_bytes, u64::MAX)
    }

    fn limits(&self, _: &Usage) -> Limits {
        Limits {
            free_bytes: 3 * MIB,
            free_buffers: 5,
            ..Limits::NONE
        }
    }
}

#[test]
fn caps_hold_whenever_a_buffer_comes_back() {
    let pool = pool(PoolOptions::default().with_policy(Capped));
    fill(&pool, 10, MIB);
    let stats = pool.stats();
    assert_eq!((stats.free.current, stats.evictions.cap), (3, 7), "{stats}");
    assert!(stats.free_bytes.peak <= 4 * MIB, "{stats}");
    fill(&pool, 10, 1000);
    let stats = pool.stats();
    assert_eq!(stats.free.current, 5, "{stats}");
}

#[test]
fn the_guard_stops_a_pool_from_making_what_it_gave_up() {
    // Two phases in turn that cannot share buffers: 1.6 times what is live at a time.
    let rounds = |pool: &Pool<SimulatedBuffer>, count: usize| {
        let before = pool.stats().creates;
        for _ in 0..count {
            fill(pool, 10, MIB);
            let others: Vec<_> = (0..6)
                .map(|_| pool.acquire("other", MIB, BufferUsages::UNIFORM))
                .collect();
            drop(others);
        }
        pool.stats().creates - before
    };
    let balanced = Balanced {
        floor_bytes: 0,
        ..Balanced::default()
    };
    let guarded = pool(PoolOptions::default().with_policy(balanced));
    let first = rounds(&guarded, 100);
    let later = rounds(&guarded, 100);
    let stats = guarded.stats();
    assert!(first > 32 && stats.recreations > 32, "{stats}");
    assert_eq!(later, 0, "{stats}");
    // Without a guard it goes on.
    let lean = pool(PoolOptions::default().with_policy(Lean));
    rounds(&lean, 100);
    assert!(rounds(&lean, 100) > 100, "{}", lean.stats());
}

#[test]
fn trims_say_what_they_gave_up() {
    let pool = pool(PoolOptions::default());
    fill(&pool, 4, MIB);
    assert_eq!(pool.trim_to(3 * MIB), MIB);
    assert_eq!(pool.force_trim(), 3 * MIB);
    assert_eq!(pool.trim(), 0);
}

#[test]
fn destroyed_buffers_count_until_the_submissions_that_use_them_are_done() {
    let pool = pool(PoolOptions::default().with_budget_bytes(4 * MIB));
    let lease = pool.acquire("used", 3 * MIB, STORAGE_USAGE).expect("lends");
    let submission = pool.submitted();
    drop(lease);
    pool.trim();
    let stats = pool.stats();
    assert_eq!(stats.draining_bytes, 3 * MIB, "{stats}");
    assert_eq!(stats.held_bytes.current, 3 * MIB, "{stats}");
    assert!(
        pool.acquire("next", 3 * MIB, STORAGE_USAGE).is_err(),
        "the memory is not free yet"
    );
    pool.completed(submission);
    assert_eq!(pool.stats().held_bytes.current, 0);
    assert!(pool.acquire("next", 3 * MIB, STORAGE_USAGE).is_ok());
}

#[test]
fn reports_say_who_holds_what() {
    let pool = pool(PoolOptions::default());
    let scores = pool.acquire("scores", 1000, STORAGE_USAGE).expect("lends");
    let weights: Vec<_> = (0..3)
        .map(|_| pool.acquire("weights", 5000, STORAGE_USAGE).expect("lends"))
        .collect();
    let leases = pool.leases();
    assert_eq!(leases.len(), 4);
    let oldest = leases.iter().max_by_key(|lease| lease.age).expect("four");
    assert_eq!(
        (oldest.label.as_str(), oldest.requested_bytes),
        ("scores", 1000)
    );
    let report = pool.report();
    assert_eq!(report.labels[0].label, "weights");
    assert_eq!(report.labels[0].requested_bytes, 15_000);
    assert_eq!(report.ages.iter().sum::<u64>(), 4);
    let classes: Vec<(u64, usize, u64)> = report
        .classes
        .iter()
        .map(|class| (class.class_bytes, class.leased, class.wasted_bytes))
        .collect();
    assert_eq!(classes, [(1024, 1, 24), (5120, 3, 360)]);
    let text = format!("{report}\n{}", report.class_table());
    for part in [
        "held by 'weights': 15000 bytes in 3 leases",
        "5120",
        "4 out (peak 4)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    drop((scores, weights));
    assert!(pool.leases().is_empty());
}

#[test]
fn scopes_may_end_in_any_order() {
    let pool = pool(PoolOptions::default());
    let outer = pool.scope("outer");
    fill(&pool, 3, MIB);
    let inner = pool.scope("inner");
    fill(&pool, 2, MIB);
    assert_eq!(inner.report().requested_bytes.peak, 2 * MIB);
    assert_eq!(outer.report().requested_bytes.peak, 3 * MIB);
    drop(outer);
    fill(&pool, 5, MIB);
    let report = inner.report();
    assert_eq!((report.requested_bytes.peak, report.acquires), (5 * MIB, 7));
    assert_eq!((report.creates, report.hits), (2, 5));
    assert_eq!(pool.stats().requested_bytes.peak, 5 * MIB);
}
