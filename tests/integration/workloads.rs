//! What every policy creates and holds on the streams of allocations that pools are judged by. The counts are exact: a
//! change to the pool that moves one of them shows here.

use std::fmt::Write;

use dilated_attention::pool::{
    Balanced, Exact, Lean, NoPooling, PoolOptions, PoolStats, Speed, Trace,
};

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
use dilated_attention::training::{Batch, LearningRate, Trainer, TrainingOptions};
use dilated_attention::{AttentionShape, Context, DeviceCaps, DilatedAttentionConfig};

use crate::simulated::Simulated;
use crate::support::snapshot::assert_snapshot;
use crate::traces::Workload;

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
            let tokens = vec![1; (items * len)];
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
    assert_snapshot("pool_traces", &table);
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
fn a_trace_that_cannot_be_read_names_the_line() {
    for (text, line) in [
        ("", 1),
        ("pool trace 2", 1),
        ("pool trace 1\n5 release", 2),
        ("pool trace 1\n0 tick\n1 acquire 1 2 x 4 exact label", 3),
        ("pool trace 1\n1 acquire 1 2 3 4 stolen label", 2),
        ("pool trace 1\nx tick", 2),
        ("pool trace 1\n1 explode 2", 2),
    ] {
        let error = text.parse::<Trace>().expect_err("no trace").to_string();
        assert!(
            error.contains(&format!("line {line} ")),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn reports_and_traces_are_json() {
    let step = training_steps();
    let json = serde_json::to_string(&step).expect("is JSON");
    assert_eq!(serde_json::from_str::<Trace>(&json).expect("a trace"), step);
    let report = step
        .replay(PoolOptions::default(), 1 << 30)
        .expect("replays");
    let json = serde_json::to_value(&report).expect("is JSON");
    assert_eq!(json["stats"]["acquires"], report.stats.acquires);
    assert_eq!(
        json["stats"]["held_bytes"]["peak"],
        report.stats.held_bytes.peak
    );
    assert_eq!(
        json["classes"].as_array().map(Vec::len),
        Some(report.classes.len())
    );
    let stats = serde_json::from_value(json["stats"].clone()).expect("figures");
    assert_eq!(report.stats, stats);
}

#[test]
fn an_unpooled_trace_replays_as_if_it_had_been_pooled() {
    // Staging buffers, each destroyed when the device handed it back.
    let mut text = "pool trace 1\n".to_owned();
    for buffer in 1..=100 {
        writeln!(
            text,
            "{buffer} acquire {buffer} 4096 4096 6 created staging"
        )
        .expect("a string");
        writeln!(text, "{buffer} suspend {buffer}").expect("a string");
        writeln!(text, "{buffer} resume {buffer} usable destroyed").expect("a string");
    }
    let trace: Trace = text.parse().expect("a trace");
    let stats = trace
        .replay(PoolOptions::default(), 1 << 30)
        .expect("replays")
        .stats;
    assert_eq!((stats.creates, stats.hits()), (1, 99), "{stats}");
}

#[test]
fn a_trace_tells_what_other_threads_had_cached() {
    let simulated = Simulated::new(PoolOptions::default());
    let pool = &simulated.pool;
    let lend = || drop(pool.acquire("any", 1000, dilated_attention::pool::STORAGE_USAGE));
    lend();
    pool.start_trace();
    std::thread::scope(|scope| scope.spawn(lend).join().expect("no panic"));
    let text = pool.take_trace().to_string();
    assert_eq!(pool.stats().hits_shared, 1);
    assert!(text.contains(" shared any"), "{text}");
}
