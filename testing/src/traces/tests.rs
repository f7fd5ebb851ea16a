//! What every policy creates and holds on the streams of allocations that pools are judged by. The counts are exact: a
//! change to the pool that moves one of them shows here.

use std::fmt::Write;

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
use dilated_attention::pool::{
    Balanced, Exact, Lean, NoPooling, PoolOptions, PoolStats, STORAGE_USAGE, Speed, Trace,
};
use dilated_attention::training::{Batch, LearningRate, Trainer, TrainingOptions};
use dilated_attention::{AttentionShape, Context, DeviceCaps, DilatedAttentionConfig, Label};
use expect_test::expect_file;

use super::{Allocator, Simulated, Workload, replacements};
use crate::counting_allocator::allocations_of_this_thread;

/// Six training steps of a small language model at several lengths, each over two batches, as the pool's own profile records
/// them on a dry run.
fn training_steps() -> Trace {
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let attention = DilatedAttentionConfig::new(4, 16, &[64, 256], &[1, 4]).expect("valid");
    let mut config = LongNetConfig::decoder(attention, 3, 256);
    config.vocab_size = Some(64);
    config.output_projection = OutputProjection::Own;
    let model = LongNet::new(&dry_run, config).expect("valid");
    let options = TrainingOptions::new(LearningRate::Constant(1e-3));
    let mut trainer = Trainer::new(&dry_run, model, options).expect("leases");
    dry_run.pool().trim();
    dry_run.pool().start_trace();
    for len in [512, 512, 384, 1024, 700, 512] {
        let batch = |items| {
            let shape = AttentionShape::new(items, len).expect("valid");
            let tokens = vec![1; items * len];
            Batch::new(shape, tokens.clone(), tokens).expect("a batch")
        };
        drop(trainer.step(&[batch(1), batch(2)]).expect("records"));
    }
    dry_run.pool().take_trace()
}

fn policies() -> [(&'static str, PoolOptions); 5] {
    let options = PoolOptions::default;
    [
        ("Balanced", options().with_policy(Balanced::default())),
        ("Speed", options().with_policy(Speed)),
        ("Lean", options().with_policy(Lean)),
        ("Exact", options().with_policy(Exact)),
        ("NoPooling", options().with_policy(NoPooling)),
    ]
}

fn line(table: &mut String, trace: &str, policy: &str, stats: &PoolStats, warm: &PoolStats) {
    assert!(stats.identities_hold(), "{trace} {policy}: {stats}");
    writeln!(
        table,
        "{trace:<6} {policy:<10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12} {:>12}",
        stats.acquires - warm.acquires,
        stats.creates - warm.creates,
        stats.hits_borrowed - warm.hits_borrowed,
        stats.evictions.total() - warm.evictions.total(),
        stats.recreations - warm.recreations,
        stats.requested_bytes.peak,
        stats.held_bytes.peak,
    )
    .expect("writes to a string");
}

#[test]
fn every_policy_does_on_the_traces_what_it_did() {
    let mut table = format!(
        "{:<6} {:<10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12} {:>12}\n",
        "trace",
        "policy",
        "leases",
        "created",
        "borrowed",
        "evicted",
        "anew",
        "peak asked",
        "peak held"
    );
    for (trace, workload) in Workload::ALL {
        for (policy, options) in policies() {
            let mut simulated = Simulated::new(options);
            workload.run(&mut simulated);
            let stats = simulated.pool.stats();
            assert_eq!(stats.leases.current, 0);
            line(&mut table, trace, policy, &stats, &simulated.warm);
        }
    }
    let step = training_steps();
    for (policy, options) in policies() {
        let stats = step.replay(options, 1 << 30).expect("replays").stats;
        line(&mut table, "E", policy, &stats, &PoolStats::default());
    }
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/snapshots/pool_traces.txt"
    );
    expect_file![file].assert_eq(&table);
}

#[test]
fn the_default_policy_meets_its_goals_on_the_traces() {
    // Peak held per peak asked for, and share of the leases that create.
    let goals = [
        ("A100", 1.50, 1.0),
        ("A1000", 1.32, 1.0),
        ("A4000", 1.22, 1.0),
        ("B", 1.26, 0.009),
        ("C", 1.35, 5.0 / 39_800.0),
        ("D", 1.50, 0.03),
    ];
    for ((trace, workload), (name, held, created)) in Workload::ALL.into_iter().zip(goals) {
        assert_eq!(trace, name);
        let mut simulated = Simulated::new(PoolOptions::default());
        workload.run(&mut simulated);
        let (stats, warm) = (simulated.pool.stats(), simulated.warm);
        let per_peak = stats.held_bytes.peak as f64 / stats.requested_bytes.peak as f64;
        assert!(per_peak <= held, "{trace}: {per_peak}\n{stats}");
        let share = (stats.creates - warm.creates) as f64 / (stats.acquires - warm.acquires) as f64;
        assert!(share <= created, "{trace}: {share}\n{stats}");
    }
}

#[test]
fn a_hit_allocates_nothing() {
    // A policy that gives nothing up, so that all steps are hits in the end.
    let mut simulated = Simulated::new(PoolOptions::default().with_policy(Speed));
    let mut leases: Vec<_> = (0..100).map(|_| simulated.acquire(4096)).collect();
    let steps = replacements(10_000, leases.len());
    // A literal costs nothing, and a label that was made once is shared.
    let formatted = Label::from(format!("lease of {}", "a model"));
    let mut replace = || {
        for &(index, bytes) in &steps {
            drop(leases.swap_remove(index));
            leases.push(simulated.acquire(bytes));
            drop(simulated.pool.acquire("a literal", bytes, STORAGE_USAGE));
            drop(simulated.pool.acquire(&formatted, bytes, STORAGE_USAGE));
        }
        (allocations_of_this_thread(), simulated.pool.stats().creates)
    };
    replace();
    let before = replace();
    assert_eq!(replace(), before);
}
