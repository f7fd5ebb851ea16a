//! What the pool does and costs, row by row: `cargo bench --bench pool`.
//!
//! Every figure is a ratio, or stands beside what it is compared with, from one run; times are medians of interleaved
//! repetitions with the smallest and largest. The traces are counted, not timed: their figures are the same on any machine.

#![expect(
    clippy::disallowed_methods,
    reason = "the comparison is with what a program without the pool would call"
)]

mod device;
mod hits;
mod table;
mod workloads;

use clap::Parser;
use dilated_attention::Context;
use table::Table;
use testing::counting_allocator::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What the pool does and costs, row by row
#[derive(Parser)]
struct Options {
    /// Few repetitions: that everything works, not what it measures
    #[arg(long)]
    quick: bool,
    /// Cargo passes it to every benchmark.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() {
    let quick = Options::parse().quick;
    let context = Context::new_blocking().expect("an adapter");
    let info = context.adapter_info();
    println!("{} ({})\n", info.name, info.driver_info);
    let mut table = Table::default();
    hits::measure(&context, quick, &mut table);
    workloads::measure(&mut table);
    device::measure(&context, quick, &mut table);
    println!("\n{table}");
}
