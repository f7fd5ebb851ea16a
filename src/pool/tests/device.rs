//! The pool through its public interface, on wgpu's noop device: no GPU, the whole API path.

use wgpu::BufferUsages;

use crate::pool::{Lease, NoPooling, Pool, PoolError, PoolOptions, PoolStats, STORAGE_USAGE};

fn noop_device() -> wgpu::Device {
    let limits = wgpu::Limits {
        max_buffer_size: 64 << 20,
        ..wgpu::Limits::default()
    };
    wgpu::Device::noop(&wgpu::DeviceDescriptor {
        required_limits: limits,
        ..Default::default()
    })
    .0
}

fn pool(options: PoolOptions) -> Pool {
    Pool::new(&noop_device(), options)
}

fn check(pool: &Pool) -> PoolStats {
    let stats = pool.stats();
    assert!(stats.identities_hold(), "{stats}");
    stats
}

#[test]
fn requests_that_cannot_be_met_are_typed_errors() {
    let pool = pool(PoolOptions::default());
    assert!(matches!(
        pool.acquire("none", 0, STORAGE_USAGE),
        Err(PoolError::ZeroSize { label }) if label == "none"
    ));
    assert!(matches!(
        pool.acquire("huge", (64 << 20) + 1, STORAGE_USAGE),
        Err(PoolError::BufferTooLarge {
            requested_bytes: 67_108_865,
            limit_bytes: 67_108_864,
            ..
        })
    ));
    assert!(matches!(
        pool.acquire("huge", u64::MAX, STORAGE_USAGE),
        Err(PoolError::BufferTooLarge { .. })
    ));
    for usage in [
        BufferUsages::empty(),
        BufferUsages::MAP_READ | BufferUsages::STORAGE,
        BufferUsages::MAP_WRITE | BufferUsages::COPY_DST,
        BufferUsages::MAP_READ | BufferUsages::MAP_WRITE,
    ] {
        assert!(matches!(
            pool.acquire("odd", 16, usage),
            Err(PoolError::InvalidUsage { .. })
        ));
    }
    // The largest legal request is legal, although its class would round up beyond the device.
    let largest = pool
        .acquire("largest", 64 << 20, STORAGE_USAGE)
        .expect("legal");
    assert_eq!(largest.buffer_bytes(), 64 << 20);
    drop(largest);
    assert_eq!(check(&pool).leases.current, 0);
}

#[test]
fn a_released_buffer_is_lent_again_and_keys_do_not_mix() {
    let pool = pool(PoolOptions::default());
    let first = pool.acquire("a", 1000, STORAGE_USAGE).expect("lends");
    assert_eq!(
        (first.requested_bytes(), first.buffer_bytes()),
        (1000, 1024)
    );
    let buffer = first.buffer().clone();
    let clone = first.clone();
    drop(first);
    let other = pool.acquire("b", 1000, STORAGE_USAGE).expect("lends");
    assert_ne!(other.buffer(), &buffer, "a clone still holds the first");
    drop(clone);
    let uniform = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
    let uniform = pool.acquire("c", 1000, uniform).expect("lends");
    assert_ne!(uniform.buffer(), &buffer, "other usages");
    let again = pool.acquire("d", 900, STORAGE_USAGE).expect("lends");
    assert_eq!(again.buffer(), &buffer);
    assert_eq!(again.requested_bytes(), 900);
    let stats = check(&pool);
    assert_eq!(
        (stats.creates, stats.hits_borrowed, stats.leases.current),
        (3, 1, 3)
    );
}

#[test]
fn without_pooling_every_lease_creates() {
    let pool = pool(PoolOptions::default().with_policy(NoPooling));
    for _ in 0..5 {
        drop(pool.acquire("a", 4096, STORAGE_USAGE).expect("lends"));
    }
    let stats = check(&pool);
    assert_eq!((stats.creates, stats.destroys, stats.hits()), (5, 5, 0));
    assert_eq!(stats.held_bytes.current, 0);
}

#[test]
fn the_budget_is_hard_and_what_is_cached_gives_way_first() {
    let pool = pool(PoolOptions::default().with_budget_bytes(1 << 20));
    drop(
        pool.acquire("cached", 700 << 10, STORAGE_USAGE)
            .expect("lends"),
    );
    // 700 KiB cached and 400 KiB more exceed the budget: the cached buffer is given up.
    let kept = pool
        .acquire("kept", 400 << 10, BufferUsages::COPY_DST)
        .expect("lends");
    assert_eq!(check(&pool).evictions.total(), 1);
    let Err(PoolError::BudgetExceeded {
        requested_bytes,
        budget_bytes,
        leased_bytes,
        report,
        ..
    }) = pool.acquire("too much", 700 << 10, STORAGE_USAGE)
    else {
        panic!("the budget was passed");
    };
    assert_eq!(budget_bytes, 1 << 20);
    assert_eq!(leased_bytes, kept.buffer_bytes());
    assert!(requested_bytes + leased_bytes > budget_bytes);
    assert_eq!(report.labels[0].label, "kept");
    drop(kept);
    assert!(pool.acquire("fits now", 700 << 10, STORAGE_USAGE).is_ok());
    assert_eq!(check(&pool).leases.current, 0);
}

#[test]
fn held_bytes_follow_what_is_live() {
    let pool = pool(PoolOptions::default());
    // Growing requests, each released before the next: a pool that kept all would hold 20 times what is live.
    for step in 0..200u64 {
        drop(
            pool.acquire("growing", (8 << 20) + step * (200 << 10), STORAGE_USAGE)
                .expect("lends"),
        );
        let stats = check(&pool);
        let bound = ((8 << 20) + step * (200 << 10)) * 9 / 8 * 5 / 4;
        assert!(
            stats.held_bytes.current <= bound.max(16 << 20),
            "step {step}: {stats}"
        );
    }
    assert!(pool.stats().evictions.retention > 0);
}

#[test]
fn trim_gives_up_what_is_cached_and_nothing_else() {
    let pool = pool(PoolOptions::default());
    let leases: Vec<Lease> = (1..=4)
        .map(|i| pool.acquire("a", i << 10, STORAGE_USAGE).expect("lends"))
        .collect();
    let kept = pool.acquire("kept", 5 << 10, STORAGE_USAGE).expect("lends");
    drop(leases);
    assert_eq!(check(&pool).free.current, 4);
    pool.trim_to(kept.buffer_bytes() + (4 << 10));
    let stats = check(&pool);
    assert_eq!(
        (stats.free_bytes.current, stats.evictions.trim),
        (4 << 10, 3),
        "the longest unused go first"
    );
    pool.trim();
    let stats = check(&pool);
    assert_eq!(
        (
            stats.free.current,
            stats.leases.current,
            stats.held_bytes.current
        ),
        (0, 1, kept.buffer_bytes())
    );
}

#[test]
fn leases_may_outlive_the_pool_and_cross_threads_and_panics() {
    let pool = pool(PoolOptions::default());
    let first = pool.acquire("a", 1024, STORAGE_USAGE).expect("lends");
    let second = pool.acquire("b", 1024, STORAGE_USAGE).expect("lends");
    let third = pool.acquire("c", 1024, STORAGE_USAGE).expect("lends");
    std::thread::spawn(move || drop(first))
        .join()
        .expect("no panic");
    let panicked = std::thread::spawn(move || {
        let _held = second;
        panic!("on purpose: the lease is dropped while unwinding");
    });
    assert!(panicked.join().is_err());
    assert_eq!(check(&pool).leases.current, 1);
    drop(pool);
    assert!(third.buffer().size() >= 1024);
    drop(third);
}

#[test]
fn threads_share_one_pool() {
    let pool = pool(PoolOptions::default());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let pool = &pool;
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                for i in 0..2000u64 {
                    let bytes = 256 + (i * 7919 + thread * 104_729) % 60_000;
                    held.push_back(pool.acquire("soak", bytes, STORAGE_USAGE).expect("lends"));
                    if held.len() > 8 {
                        held.pop_front();
                    }
                }
            });
        }
    });
    let stats = check(&pool);
    assert_eq!((stats.acquires, stats.leases.current), (8000, 0));
    assert!(stats.creates < 1000, "{stats}");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "buffers of the application's, not of the pool"
)]
fn buffers_of_the_application_count_apart() {
    let device = noop_device();
    let pool = Pool::new(&device, PoolOptions::default());
    let buffer = |size| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: STORAGE_USAGE,
            mapped_at_creation: false,
        })
    };
    let [small, large] = [4, 1002].map(buffer);
    assert!(matches!(
        pool.import("none".into(), &buffer(3)),
        Err(PoolError::ZeroSize { label }) if label == "none"
    ));
    let word = pool.import("word".into(), &small).expect("a word");
    assert_eq!((word.requested_bytes(), word.buffer_bytes()), (4, 4));
    let mut image = pool.import("image".into(), &large).expect("words");
    assert_eq!(
        (image.requested_bytes(), image.buffer_bytes()),
        (1000, 1002)
    );
    assert_eq!(
        (image.label().as_str(), image.usage()),
        ("image", STORAGE_USAGE)
    );
    assert_eq!(image.buffer(), &large);
    assert!(!image.is_unshared(), "the application has it, too");
    // A clone is no other import.
    drop(image.clone());
    let figures = |pool: &Pool| {
        let PoolStats {
            imported: n,
            imported_bytes: bytes,
            ..
        } = check(pool);
        [
            [n.current, n.peak, n.total],
            [bytes.current, bytes.peak, bytes.total],
        ]
    };
    assert_eq!(figures(&pool), [[2, 2, 2], [1006, 1006, 1006]]);
    drop(image);
    assert_eq!(figures(&pool), [[1, 2, 2], [4, 1006, 1006]]);
    pool.reset_peaks();
    assert_eq!(figures(&pool), [[1, 1, 2], [4, 4, 1006]]);
    let stats = pool.stats();
    assert_eq!(
        (stats.acquires, stats.leases.current, stats.held_bytes.peak),
        (0, 0, 0)
    );
    drop(word);
    assert_eq!(figures(&pool), [[0, 1, 2], [0, 4, 1006]]);
    // Only what the pool made is its own.
    let own = pool.acquire("own", 1000, STORAGE_USAGE).expect("lends");
    assert!(pool.owns(own.buffer()) && !pool.owns(&large));
}

#[test]
fn a_pool_whose_device_is_lost_gives_up_what_is_cached() {
    let pool = pool(PoolOptions::default());
    assert!(pool.watch().is_some());
    let kept = pool.acquire("kept", 1000, STORAGE_USAGE).expect("lends");
    drop(pool.acquire("cached", 5000, STORAGE_USAGE));
    pool.device_lost("on purpose");
    let stats = check(&pool);
    assert_eq!(
        (stats.free.current, stats.leases.current),
        (0, 1),
        "{stats}"
    );
    assert!(matches!(
        pool.acquire("later", 1000, STORAGE_USAGE),
        Err(PoolError::DeviceLost { reason }) if reason.contains("on purpose")
    ));
    drop(kept);
    assert_eq!(check(&pool).held_bytes.current, 0);
}

#[test]
fn buffers_that_the_host_maps_have_one_direction() {
    let pool = pool(PoolOptions::default());
    for usage in [
        BufferUsages::MAP_READ,
        BufferUsages::MAP_READ | BufferUsages::COPY_DST,
        BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC,
    ] {
        let lease = pool.acquire("mapped", 16, usage).expect("legal");
        assert_eq!(lease.usage(), usage);
        if usage.contains(BufferUsages::MAP_WRITE) {
            lease.buffer().unmap();
        }
    }
}
