//! Traces: what they tell, and what cannot be read.

use std::fmt::Write;
use std::sync::mpsc;

use crate::pool::simulated::SimulatedSource;
use crate::pool::{Pool, PoolOptions, STORAGE_USAGE, Trace};

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
    let pool = Pool::from_source(SimulatedSource::new(1 << 30), PoolOptions::default());
    let lend = || drop(pool.acquire("any", 1000, STORAGE_USAGE));
    lend();
    pool.start_trace();
    // A new thread gets the shard with the fewest threads. Those of other tests may leave it the same as this one has, but not again
    // and again while all of these stay.
    std::thread::scope(|scope| {
        let (told, lent) = mpsc::channel();
        let mut threads = Vec::new();
        while pool.stats().hits_shared == 0 && threads.len() < 64 {
            let told = told.clone();
            threads.push(scope.spawn(move || {
                lend();
                told.send(()).expect("is waited for");
                std::thread::park();
            }));
            lent.recv().expect("the thread lends");
        }
        threads.iter().for_each(|thread| thread.thread().unpark());
    });
    let text = pool.take_trace().to_string();
    assert_eq!(pool.stats().hits_shared, 1);
    assert!(text.contains(" shared any"), "{text}");
}

#[test]
fn reports_and_traces_are_json() {
    let pool = Pool::from_source(SimulatedSource::new(1 << 30), PoolOptions::default());
    pool.start_trace();
    for bytes in [1000, 3000, 1000, 70_000] {
        drop(pool.acquire("any", bytes, STORAGE_USAGE));
    }
    let trace = pool.take_trace();
    let json = serde_json::to_string(&trace).expect("is JSON");
    assert_eq!(
        serde_json::from_str::<Trace>(&json).expect("a trace"),
        trace
    );
    let report = trace
        .replay(PoolOptions::default(), 1 << 30)
        .expect("replays");
    let json = serde_json::to_value(&report).expect("is JSON");
    assert_eq!(json["stats"]["acquires"], 4);
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
fn a_trace_begins_with_what_exists() {
    let pool = Pool::from_source(SimulatedSource::new(1 << 30), PoolOptions::default());
    let lend = |bytes| pool.acquire("any", bytes, STORAGE_USAGE).expect("lends");
    let kept = lend(4096);
    let cached = [1024, 1024].map(lend);
    drop(cached);
    pool.start_trace();
    drop([1024, 1024, 4096].map(lend));
    drop(kept);
    let trace = pool.take_trace();
    let text = trace.to_string();
    let usage = STORAGE_USAGE.bits();
    for line in [
        format!("0 exists 1 4096 {usage} leased"),
        format!("0 exists 2 1024 {usage} free"),
        format!("0 exists 3 1024 {usage} free"),
    ] {
        assert!(text.lines().any(|given| given == line), "{text}");
    }
    assert_eq!(text.parse::<Trace>().expect("a trace"), trace);
    // What was cached, all at a time, is cached in a replay, too.
    let stats = trace
        .replay(PoolOptions::default(), 1 << 30)
        .expect("replays")
        .stats;
    assert_eq!((stats.creates, stats.hits_exact), (4, 2), "{stats}");
    assert_eq!(stats.leases.current, 0, "{stats}");
}
