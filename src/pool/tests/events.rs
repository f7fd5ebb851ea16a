//! The pool's events reach an application's subscriber.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::pool::simulated::{Faults, SimulatedSource};
use crate::pool::{Pool, PoolOptions, STORAGE_USAGE};

/// Keeps level and message of every event.
#[derive(Default)]
struct Messages {
    events: Mutex<Vec<(Level, String)>>,
    spans: AtomicU64,
}

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("dilated_attention")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = String::new();
        event.record(&mut Message(&mut message));
        let mut events = self.events.lock().expect("no panic");
        events.push((*event.metadata().level(), message));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn creations_evictions_and_failures_are_told() {
    let messages = std::sync::Arc::new(Messages::default());
    tracing::subscriber::with_default(messages.clone(), || {
        let faults = Faults {
            fail_at: Some(1),
            fail_times: 1,
            ..Faults::default()
        };
        let source = SimulatedSource::new(1 << 30).with_faults(faults);
        let pool = Pool::from_source(source, PoolOptions::default());
        drop(pool.acquire("first", 1000, STORAGE_USAGE));
        // The second finds no memory until the first is given up; a hit says nothing.
        drop(pool.acquire("second", 100_000, STORAGE_USAGE));
        drop(pool.acquire("second", 100_000, STORAGE_USAGE));
        pool.device_lost("on purpose");
    });
    let events = messages.events.lock().expect("no panic");
    let expected = [
        (Level::DEBUG, "a buffer is created"),
        (Level::WARN, "the device has no memory for a buffer"),
        (Level::DEBUG, "a cached buffer is given up"),
        (Level::DEBUG, "a buffer is created"),
        (Level::ERROR, "the device is lost"),
        (Level::DEBUG, "a cached buffer is given up"),
    ];
    let events: Vec<(Level, &str)> = events
        .iter()
        .map(|(level, text)| (*level, &text[..]))
        .collect();
    assert_eq!(events, expected);
}
