//! What one shard cannot decide alone, on shards that the tests choose: in which order others are asked, when peaks are seen, and what
//! happens while a request waits.

use std::fmt;
use std::sync::{Arc, Mutex};

use wgpu::BufferUsages;

use crate::pool::simulated::{SimulatedBuffer, SimulatedSource};
use crate::pool::{
    BufferRequest, BufferSource, CreateError, Lease, Limits, Policy, Pool, PoolError, PoolOptions,
    Pressure, STORAGE_USAGE, Usage,
};

const MIB: u64 = 1 << 20;

fn pool(options: PoolOptions) -> Pool<SimulatedBuffer> {
    Pool::from_source(SimulatedSource::new(1 << 30), options)
}

/// A lease that shard `shard` is asked for.
fn lend(pool: &Pool<SimulatedBuffer>, shard: usize, bytes: u64) -> Lease<SimulatedBuffer> {
    let label = "any".into();
    let request = pool.request(&label, bytes, STORAGE_USAGE).expect("valid");
    pool.core().acquire(shard, &request).expect("lends")
}

#[test]
fn others_are_asked_for_the_exact_size_first() {
    for [larger, exact, own] in [[0, 1, 2], [1, 0, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0]] {
        let pool = pool(PoolOptions::default());
        drop(lend(&pool, larger, 1536));
        let waits = lend(&pool, larger, 1536);
        drop(lend(&pool, exact, 1024));
        // Its own shard has none: the exact one of another comes, and then lives here.
        let first = lend(&pool, own, 1024);
        assert_eq!(first.buffer_bytes(), 1024);
        drop(first);
        drop(lend(&pool, own, 1024));
        drop(waits);
        let stats = pool.stats();
        assert_eq!((stats.hits_shared, stats.hits_exact), (1, 2), "{stats}");
        // Without an exact one, a larger one.
        let kept = lend(&pool, own, 1024);
        assert_eq!(lend(&pool, own, 1024).buffer_bytes(), 1536);
        drop(kept);
        let stats = pool.stats();
        assert_eq!(
            (stats.hits_shared, stats.hits_borrowed, stats.creates),
            (2, 0, 2),
            "{stats}"
        );
        assert!(stats.identities_hold());
    }
}

#[test]
fn each_figure_has_a_peak_of_its_own() {
    let pool = pool(PoolOptions::default());
    let two = |bytes: [u64; 2]| bytes.map(|bytes| lend(&pool, 0, bytes));
    // Afterwards the shard works alone.
    for _ in 0..5 {
        drop(two([1000, 4000]));
    }
    let peaks = || {
        let stats = pool.stats();
        [
            stats.leases.peak,
            stats.requested_bytes.peak,
            stats.leased_bytes.peak,
            stats.pending.peak,
            stats.pending_bytes.peak,
        ]
    };
    assert_eq!(peaks(), [2, 5000, 1024 + 4096, 0, 0]);
    // More bytes asked for, of the same buffers.
    drop(two([1000, 4000]));
    drop(two([1020, 4000]));
    assert_eq!(peaks(), [2, 5020, 1024 + 4096, 0, 0]);
    // More bytes in fewer leases.
    drop(lend(&pool, 0, 8192));
    assert_eq!(peaks(), [2, 8192, 8192, 0, 0]);
    // As pending as before, but of more bytes.
    for bytes in [1024, 1024, 4096] {
        lend(&pool, 0, bytes)
            .suspend()
            .expect("the sole holder")
            .ready();
    }
    assert_eq!(peaks(), [2, 8192, 8192, 1, 4096]);
    assert!(pool.stats().identities_hold());
}

#[test]
fn peaks_are_exact_while_two_shards_take_turns() {
    let pool = pool(PoolOptions::default());
    let lends = |shard, count| {
        (0..count)
            .map(|_| lend(&pool, shard, 1024))
            .collect::<Vec<_>>()
    };
    let peak = || pool.stats().leases.peak;
    for _ in 0..4 {
        let [one, other] = [0, 1].map(|shard| lends(shard, 3));
        drop((one, other));
    }
    assert_eq!(peak(), 6);
    for count in 7..30 {
        let shard = count % 2;
        drop(lends(shard, count));
        assert_eq!(peak(), count as u64);
        drop(lends(1 - shard, 1));
    }
    assert!(pool.stats().identities_hold());
}

#[test]
fn windows_of_two_shards_are_about_as_long_as_those_of_one() {
    let told = Told::default();
    let pool = pool(PoolOptions::default().with_policy(told.clone()));
    let asked = || told.0.lock().expect("no panic").len();
    let mut ends = vec![0];
    let mut before = 0;
    for lease in 1..=5000 {
        drop(lend(&pool, lease % 2, 1024));
        if lease > 10 && asked() != before {
            ends.push(lease);
        }
        before = asked();
    }
    // 1024 leases, or a few less: the last ones are not divided among the shards.
    let lengths: Vec<usize> = ends.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(lengths.len() >= 4, "{ends:?}");
    assert!(
        lengths.iter().all(|length| (900..=1025).contains(length)),
        "{ends:?}"
    );
}

/// Sizes as asked for, and up to four times as large ones borrowed.
#[derive(Debug)]
struct AsAsked;

impl Policy for AsAsked {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        requested_bytes
    }

    fn borrow_bytes(&self, buffer_bytes: u64) -> u64 {
        4 * buffer_bytes
    }

    fn limits(&self, _: &Usage) -> Limits {
        Limits::NONE
    }
}

#[test]
fn a_buffer_of_the_same_class_may_be_too_small() {
    let pool = pool(PoolOptions::default().with_policy(AsAsked));
    drop(lend(&pool, 0, 1000));
    // Of the class of 1024 bytes, too, but larger than the one that is cached.
    let larger = lend(&pool, 0, 1020);
    assert_eq!(larger.buffer_bytes(), 1020);
    assert_eq!(lend(&pool, 0, 996).buffer_bytes(), 1000);
    drop(larger);
    assert_eq!(lend(&pool, 0, 1004).buffer_bytes(), 1020);
    // At most four times as large.
    assert_eq!(lend(&pool, 0, 256).buffer_bytes(), 1020);
    assert_eq!(lend(&pool, 0, 248).buffer_bytes(), 248);
}

/// Keeps what it is told.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<Usage>>>);

impl Policy for Told {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        requested_bytes
    }

    fn limits(&self, usage: &Usage) -> Limits {
        self.0.lock().expect("no panic").push(*usage);
        Limits::NONE
    }
}

#[test]
fn policies_are_told_what_is_live_cached_and_wanted() {
    let told = Told::default();
    let options = PoolOptions::default()
        .with_policy(told.clone())
        .with_budget_bytes(100 * MIB)
        .with_watermarks(0.1, 0.2);
    let pool = pool(options);
    let last = || *told.0.lock().expect("no panic").last().expect("asked");
    let usage = |live: u64, peak: u64, [free_buffers, free]: [u64; 2], pressure| Usage {
        live_bytes: live * MIB,
        recent_peak_live_bytes: peak * MIB,
        free_bytes: free * MIB,
        free_buffers: free_buffers as usize,
        budget_bytes: Some(100 * MIB),
        pressure,
        thrash_level: 0,
    };
    let first = lend(&pool, 0, 4 * MIB);
    assert_eq!(last(), usage(4, 4, [0, 0], Pressure::Normal));
    drop(lend(&pool, 0, 2 * MIB));
    assert_eq!(last(), usage(6, 6, [0, 0], Pressure::Normal));
    // 4 MiB live, 2 cached, and 5 wanted: more than a tenth of the budget.
    let second = lend(&pool, 0, 5 * MIB);
    assert_eq!(last(), usage(9, 9, [1, 2], Pressure::Graceful));
    drop(first);
    pool.set_pressure(Pressure::Aggressive);
    assert_eq!(last(), usage(5, 9, [2, 6], Pressure::Aggressive));
    drop(second);
}

/// What a device does when it is waited for.
type WhenWaitedFor = Arc<Mutex<Vec<Box<dyn FnOnce() + Send>>>>;

struct Waited {
    source: SimulatedSource,
    then: WhenWaitedFor,
}

impl fmt::Debug for Waited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waited")
    }
}

impl BufferSource<SimulatedBuffer> for Waited {
    fn create(
        &self,
        label: &str,
        bytes: u64,
        usage: BufferUsages,
    ) -> Result<SimulatedBuffer, CreateError> {
        self.source.create(label, bytes, usage)
    }

    fn poll(&self, wait: bool) {
        let then = match wait {
            true => std::mem::take(&mut *self.then.lock().expect("no panic")),
            false => Vec::new(),
        };
        then.into_iter().for_each(|act| act());
    }

    fn max_buffer_bytes(&self) -> u64 {
        self.source.max_buffer_bytes()
    }
}

#[test]
fn a_budget_that_is_used_up_is_waited_for() {
    let then = WhenWaitedFor::default();
    let waited = Arc::new(Waited {
        source: SimulatedSource::new(8 * MIB),
        then: then.clone(),
    });
    // No watermarks: they would keep buffers from being cached.
    let options = PoolOptions::default()
        .with_budget_bytes(3 * MIB)
        .with_watermarks(2.0, 2.0);
    // A shared source is a source.
    let pool = Pool::from_source(waited, options);
    assert!(matches!(
        pool.acquire("too large", 8 * MIB + 4, STORAGE_USAGE),
        Err(PoolError::BufferTooLarge { limit_bytes, .. }) if limit_bytes == 8 * MIB
    ));
    let on_wait = |act: Box<dyn FnOnce() + Send>| then.lock().expect("no panic").push(act);
    // The pending buffer comes back and serves.
    let pending = lend(&pool, 0, 3 * MIB).suspend().expect("the sole holder");
    on_wait(Box::new(move || pending.ready()));
    let again = lend(&pool, 0, 3 * MIB);
    let stats = pool.stats();
    assert_eq!(
        (stats.creates, stats.hits_exact, stats.recoveries),
        (1, 1, 1),
        "{stats}"
    );
    // The memory of a destroyed one comes back.
    let submission = pool.submitted();
    drop(again);
    assert_eq!(pool.trim(), 3 * MIB);
    assert_eq!(pool.stats().draining_bytes, 3 * MIB);
    let of_pool = pool.clone();
    on_wait(Box::new(move || of_pool.completed(submission)));
    let new = lend(&pool, 0, 3 * MIB);
    let stats = pool.stats();
    assert_eq!(
        (stats.creates, stats.draining_bytes, stats.recoveries),
        (2, 0, 2),
        "{stats}"
    );
    // Nothing more is to come, so nothing is waited for.
    on_wait(Box::new(|| panic!("waited for nothing")));
    assert!(matches!(
        pool.acquire("more", 4, BufferUsages::UNIFORM),
        Err(PoolError::BudgetExceeded { .. })
    ));
    then.lock().expect("no panic").clear();
    drop(new);
}

#[test]
fn what_comes_back_over_a_lowered_budget_does_not_stay() {
    let pool = pool(PoolOptions::default().with_watermarks(2.0, 2.0));
    let mut leases: Vec<_> = (0..6).map(|_| lend(&pool, 0, MIB)).collect();
    pool.set_budget_bytes(Some(3 * MIB));
    let held = |leases: &Vec<Lease<SimulatedBuffer>>| {
        let stats = pool.stats();
        assert_eq!(stats.leases.current, leases.len() as u64);
        stats.held_bytes.current / MIB
    };
    assert_eq!(held(&leases), 6);
    leases.truncate(4);
    assert_eq!(held(&leases), 4);
    leases.truncate(1);
    assert_eq!(held(&leases), 3);
}

/// Holds 3 MiB, and nothing idle.
#[derive(Debug)]
struct Small;

impl Policy for Small {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        requested_bytes
    }

    fn limits(&self, _: &Usage) -> Limits {
        Limits {
            held_bytes: 3 * MIB,
            ..Limits::NONE
        }
    }
}

#[test]
fn what_drains_is_no_reason_to_give_up_more() {
    let pool = pool(PoolOptions::default().with_policy(Small));
    let used = lend(&pool, 0, 3 * MIB);
    pool.submitted();
    drop(used);
    pool.trim();
    drop(lend(&pool, 0, MIB));
    pool.set_pressure(Pressure::Normal);
    let stats = pool.stats();
    assert_eq!(
        (stats.draining_bytes, stats.free_bytes.current),
        (3 * MIB, MIB),
        "{stats}"
    );
}

#[test]
fn reserved_buffers_wait_for_their_leases() {
    let pool = pool(PoolOptions::default());
    let wanted = [(3, MIB), (2, 5000)].map(|(count, bytes)| BufferRequest {
        label: "wanted".into(),
        bytes,
        usage: STORAGE_USAGE,
        count,
    });
    pool.reserve(&wanted[..]).expect("lends");
    pool.reserve(&wanted[..]).expect("is there");
    let stats = pool.stats();
    assert_eq!((stats.creates, stats.free.current), (5, 5), "{stats}");
}

#[test]
fn a_scope_that_ends_is_forgotten() {
    let pool = pool(PoolOptions::default());
    let watched = || {
        let all = pool.core().lock_all(None);
        all.ledger
            .watches
            .iter()
            .map(|watch| watch.id)
            .collect::<Vec<_>>()
    };
    let first = pool.scope("first");
    let second = pool.scope("second");
    assert_eq!(watched(), [0, 1, 2]);
    assert!(format!("{second:?}").contains("second"));
    drop(first);
    assert_eq!(watched(), [0, 2]);
    drop(second);
    assert_eq!(watched(), [0]);
}
