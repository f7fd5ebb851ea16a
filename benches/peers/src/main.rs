//! The pool beside others, on the same streams of allocations and without a device, so that only the pools differ:
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! CubeCL's pools are CubeCL's own code, over a storage of ours that allocates nothing. Pools "after" another project are
//! re-implementations: the size classes and caps of that project over plain free lists.

mod cubecl;
mod lists;

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser;
use dilated_attention::pool::{PoolOptions, STORAGE_USAGE};
use testing::traces::{Allocator, Simulated, Workload, replacements};

/// The pool beside others, on the same streams of allocations and without a device
#[derive(Parser)]
struct Options {
    /// Few repetitions: that everything works, not what it measures
    #[arg(long)]
    quick: bool,
}

/// A pool that tells what it made and holds.
trait Peer: Allocator {
    /// Allocations made on the device so far.
    fn creates(&self) -> u64;

    /// Bytes held on the device now.
    fn held_bytes(&self) -> u64;
}

impl Peer for Simulated {
    fn creates(&self) -> u64 {
        self.pool.stats().creates
    }

    fn held_bytes(&self) -> u64 {
        self.pool.stats().held_bytes.current
    }
}

/// Counts what a peer is asked for.
struct Counted<P> {
    peer: P,
    live_bytes: Rc<Cell<u64>>,
    peak_live_bytes: u64,
    peak_held_bytes: u64,
    acquires: u64,
    creates_when_warm: u64,
}

struct CountedLease<L> {
    _lease: L,
    bytes: u64,
    live_bytes: Rc<Cell<u64>>,
}

impl<L> Drop for CountedLease<L> {
    fn drop(&mut self) {
        self.live_bytes.set(self.live_bytes.get() - self.bytes);
    }
}

impl<P: Peer> Allocator for Counted<P> {
    type Lease = CountedLease<P::Lease>;

    fn acquire(&mut self, bytes: u64) -> Self::Lease {
        let lease = self.peer.acquire(bytes);
        self.acquires += 1;
        self.live_bytes.set(self.live_bytes.get() + bytes);
        self.peak_live_bytes = self.peak_live_bytes.max(self.live_bytes.get());
        // A look at every eighth is enough for a peak, and some peers answer slowly.
        if self.acquires.is_multiple_of(8) {
            self.peak_held_bytes = self.peak_held_bytes.max(self.peer.held_bytes());
        }
        CountedLease {
            _lease: lease,
            bytes,
            live_bytes: self.live_bytes.clone(),
        }
    }

    fn warm(&mut self) {
        self.acquires = 0;
        self.creates_when_warm = self.peer.creates();
        self.peak_live_bytes = self.live_bytes.get();
        self.peak_held_bytes = self.peer.held_bytes();
    }
}

fn count(name: &str, peer: &dyn Fn() -> Box<dyn FnOnce(Workload) -> [f64; 3]>) {
    print!("{name:<34}");
    for (_, workload) in Workload::ALL {
        let [creates, hits, held] = peer()(workload);
        print!(" {:>22}", format!("{creates} {hits:.2}% {held:.2}"));
    }
    println!();
}

fn counted<P: Peer + 'static>(peer: P) -> Box<dyn FnOnce(Workload) -> [f64; 3]> {
    Box::new(move |workload| {
        let mut counted = Counted {
            peer,
            live_bytes: Rc::default(),
            peak_live_bytes: 0,
            peak_held_bytes: 0,
            acquires: 0,
            creates_when_warm: 0,
        };
        workload.run(&mut counted);
        let creates = (counted.peer.creates() - counted.creates_when_warm) as f64;
        [
            creates,
            100.0 * (1.0 - creates / counted.acquires as f64),
            counted.peak_held_bytes as f64 / counted.peak_live_bytes as f64,
        ]
    })
}

const STEPS: usize = 20_000;

/// Nanoseconds of a release and an acquire while `live` leases are out, one sample a call.
fn timed<P: Allocator + 'static>(mut peer: P, live: usize) -> Box<dyn FnMut() -> f64> {
    let steps = replacements(STEPS, live);
    let mut leases: Vec<P::Lease> = (0..live).map(|_| peer.acquire(4096)).collect();
    let mut run = move || {
        let started = Instant::now();
        for &(index, bytes) in &steps {
            drop(leases.swap_remove(index));
            leases.push(black_box(peer.acquire(bytes)));
        }
        started.elapsed().as_secs_f64() / STEPS as f64 * 1e9
    };
    // Until every size has buffers enough.
    for _ in 0..3 {
        run();
    }
    Box::new(run)
}

/// Per operation, on so many threads with 100 leases each.
fn threads<L: Send>(count: usize, acquire: &(impl Fn(u64) -> L + Sync)) -> f64 {
    let steps = replacements(STEPS, 100);
    let work = || {
        let mut leases: Vec<L> = (0..100).map(|_| acquire(4096)).collect();
        let mut nanoseconds = 0.0;
        for _ in 0..2 {
            let started = Instant::now();
            for &(index, bytes) in &steps {
                drop(leases.swap_remove(index));
                leases.push(black_box(acquire(bytes)));
            }
            nanoseconds = started.elapsed().as_secs_f64() / STEPS as f64 * 1e9;
        }
        nanoseconds
    };
    let times: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        let times = threads.into_iter().map(|thread| thread.join());
        times.map(|time| time.expect("no panic")).collect()
    });
    times.iter().sum::<f64>() / count as f64
}

fn spread(mut samples: Vec<f64>) -> (f64, String) {
    samples.sort_by(f64::total_cmp);
    let median = samples[samples.len() / 2];
    let [least, most] = [samples[0], samples[samples.len() - 1]];
    (median, format!("{median:.0} ({least:.0}..{most:.0})"))
}

fn ours() -> Simulated {
    Simulated::new(PoolOptions::default())
}

fn main() {
    let quick = Options::parse().quick;
    println!("creates, hits and peak held / peak asked for after warm-up");
    print!("{:<34}", "");
    for (letter, _) in Workload::ALL {
        print!(" {letter:>22}");
    }
    println!();
    count("this pool (Balanced)", &|| counted(ours()));
    count("CubeCL exclusive (own code)", &|| {
        counted(cubecl::exclusive())
    });
    count(
        "CubeCL adaptive (own code)",
        &|| counted(cubecl::adaptive()),
    );
    count("powers of two (re-impl.)", &|| {
        counted(lists::powers_of_two())
    });
    count("after vello, 2 a doubling (re-impl.)", &|| {
        counted(lists::two_a_doubling())
    });
    count("after onnxruntime buckets (re-impl.)", &|| {
        counted(lists::capped_buckets())
    });
    count("exact sizes (re-impl.)", &|| counted(lists::exact()));

    println!("\nrelease + acquire, ns, medians with least and most; x: against this pool");
    type Runner = Box<dyn FnMut() -> f64>;
    type Make = fn(usize) -> Runner;
    let peers: [(&str, Make); 5] = [
        ("this pool (Balanced)", |live| timed(ours(), live)),
        ("CubeCL exclusive (own code)", |live| {
            timed(cubecl::exclusive(), live)
        }),
        ("CubeCL adaptive (own code)", |live| {
            timed(cubecl::adaptive(), live)
        }),
        ("powers of two (re-impl.)", |live| {
            timed(lists::powers_of_two(), live)
        }),
        ("exact sizes (re-impl.)", |live| timed(lists::exact(), live)),
    ];
    println!(
        "{:<34} {:>26} {:>26} {:>26} {:>26}",
        "live", 16, 100, 1000, 4000
    );
    let repetitions = if quick { 2 } else { 7 };
    let mut cells = vec![Vec::new(); peers.len()];
    for live in [16, 100, 1000, 4000] {
        let mut runners: Vec<Runner> = peers.iter().map(|(_, make)| make(live)).collect();
        let mut samples = vec![Vec::new(); peers.len()];
        for _ in 0..repetitions {
            for (samples, run) in samples.iter_mut().zip(&mut runners) {
                samples.push(run());
            }
        }
        let spreads: Vec<(f64, String)> = samples.into_iter().map(spread).collect();
        for (cells, (median, text)) in cells.iter_mut().zip(&spreads) {
            cells.push(format!("{text} {:.1}x", median / spreads[0].0));
        }
    }
    for ((name, _), cells) in peers.iter().zip(cells) {
        print!("{name:<34}");
        for cell in cells {
            print!(" {cell:>26}");
        }
        println!();
    }

    println!("\nper operation on 1 / 2 / 8 threads with 100 live each, ns");
    let ours = ours().pool;
    let exclusive = Mutex::new(cubecl::exclusive());
    for threads_count in [1, 2, 8] {
        let (mut own, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..repetitions {
            own.push(threads(threads_count, &|bytes| {
                ours.acquire("timed", bytes, STORAGE_USAGE)
            }));
            peer.push(threads(threads_count, &|bytes| {
                exclusive.lock().expect("no panic").acquire(bytes)
            }));
        }
        println!(
            "{threads_count}: this pool {}, CubeCL exclusive in a mutex {}",
            spread(own).1,
            spread(peer).1
        );
    }
}
