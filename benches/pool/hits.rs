//! What a hit costs, against creating a buffer, at several numbers of live buffers and threads.

use std::hint::black_box;
use std::time::Instant;

use dilated_attention::Context;
use dilated_attention::pool::{Lease, Pool, PoolOptions, STORAGE_USAGE};
use dilated_attention::wgpu;
use testing::counting_allocator::allocations_of_this_thread;
use testing::traces::replacements;

use crate::table::{Samples, Table};

/// Nanoseconds of one step: a buffer goes, another comes.
fn replace<T>(held: &mut Vec<T>, steps: &[(usize, u64)], mut make: impl FnMut(u64) -> T) -> f64 {
    let started = Instant::now();
    for &(index, bytes) in steps {
        drop(held.swap_remove(index));
        held.push(make(bytes));
    }
    started.elapsed().as_secs_f64() / steps.len() as f64 * 1e9
}

/// Nanoseconds of one call.
fn repeat(count: u32, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    for _ in 0..count {
        call();
    }
    started.elapsed().as_secs_f64() / f64::from(count) * 1e9
}

pub fn measure(context: &Context, quick: bool, table: &mut Table) {
    let repetitions = if quick { 3 } else { 15 };
    let device = context.device();
    let raw = |bytes| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("raw"),
            size: bytes,
            usage: STORAGE_USAGE,
            mapped_at_creation: false,
        })
    };
    println!(
        "ns: acquire + release of one buffer while others live, and one of those goes, another of another size comes"
    );
    println!(
        "{:>6} {:>20} {:>24} {:>8} {:>20} {:>24} {:>8}",
        "live", "pool", "create_buffer + drop", "ratio", "pool", "drop + create_buffer", "ratio"
    );
    let mut medians = Vec::new();
    for live in [16, 100, 1000, 4000] {
        let pool = Pool::new(device, PoolOptions::default());
        let lend = |bytes| {
            pool.acquire("held", bytes, STORAGE_USAGE)
                .expect("the device has memory")
        };
        let (hits, creations) = (replacements(20_000, live), replacements(1000, live));
        let mut leases: Vec<Lease> = (0..live).map(|_| lend(4096)).collect();
        // Until every size has buffers enough.
        for _ in 0..5 {
            replace(&mut leases, &hits, lend);
        }
        let mut samples: [Samples; 4] = Default::default();
        for _ in 0..repetitions {
            // Once untimed: what the creations left in the processor's caches is not the pool's doing.
            replace(&mut leases, &hits, lend);
            samples[2].add(replace(&mut leases, &hits, lend));
            samples[0].add(repeat(20_000, || drop(black_box(lend(4096)))));
            let mut buffers: Vec<wgpu::Buffer> = (0..live).map(|_| raw(4096)).collect();
            samples[3].add(replace(&mut buffers, &creations, raw));
            samples[1].add(repeat(1000, || drop(black_box(raw(4096)))));
        }
        let [hit, create, replaced, created] = &samples;
        let ratio = create.median() / hit.median();
        println!(
            "{live:>6} {hit:>20} {create:>24} {ratio:>7.1}x {replaced:>20} {created:>24} {:>7.1}x",
            created.median() / replaced.median()
        );
        medians.push((hit.median(), ratio, replaced.median()));
    }
    let slowest = medians.iter().map(|median| median.0).fold(0.0, f64::max);
    table.at_most(
        "acquire + release, slowest of 16 to 4000 live, ns",
        slowest,
        100.0,
    );
    table.at_least(
        "create_buffer + drop against that, 100 live",
        medians[1].1,
        10.0,
    );
    table.at_least("the same, 4000 live", medians[3].1, 100.0);
    let flatness = medians[3].2 / medians[0].2;
    table.at_most(
        "replacing one of 4000 live against one of 16",
        flatness,
        1.5,
    );
    threads(device, repetitions, table);
    allocations(device, table);
}

/// Two threads, each with leases of its own.
fn threads(device: &wgpu::Device, repetitions: usize, table: &mut Table) {
    let pool = Pool::new(device, PoolOptions::default());
    let steps = replacements(20_000, 100);
    let work = || {
        let lend = |bytes| {
            pool.acquire("held", bytes, STORAGE_USAGE)
                .expect("the device has memory")
        };
        let mut leases: Vec<Lease> = (0..100).map(|_| lend(4096)).collect();
        replace(&mut leases, &steps, lend);
        replace(&mut leases, &steps, lend)
    };
    let together = |count: usize| {
        let times: Vec<f64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
            let times = threads.into_iter().map(|thread| thread.join());
            times.map(|time| time.expect("no panic")).collect()
        });
        times.iter().sum::<f64>() / count as f64
    };
    let mut samples = std::array::from_fn(|_| Samples::default());
    for _ in 0..repetitions {
        for (samples, count) in samples.iter_mut().zip([1, 2, 8]) {
            samples.add(together(count));
        }
    }
    let [one, two, eight] = samples;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("\nper operation, 100 live on each of 1 / 2 / 8 threads, ns ({cores} cores)");
    println!("{one} / {two} / {eight}");
    table.at_most(
        "two threads, time per operation against one",
        two.median() / one.median(),
        1.5,
    );
}

fn allocations(device: &wgpu::Device, table: &mut Table) {
    const HITS: u64 = 10_000;
    let pool = Pool::new(device, PoolOptions::default());
    let hit = || drop(black_box(pool.acquire("hit", 4096, STORAGE_USAGE)));
    hit();
    let before = allocations_of_this_thread();
    for _ in 0..HITS {
        hit();
    }
    let allocations = allocations_of_this_thread() - before;
    table.at_most(
        "heap allocations per hit",
        allocations as f64 / HITS as f64,
        0.0,
    );
}
