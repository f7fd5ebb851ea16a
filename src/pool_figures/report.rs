//! Reports for people: what happened in a scope, and who holds what.

use std::collections::BTreeMap;
use std::fmt;

use super::stats::{Counter, PoolStats};
use crate::label::Label;
use crate::wgpu::BufferUsages;

/// What happened in a [scope](crate::Pool::scope), on all threads: peaks and counts since it opened.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ScopeReport {
    /// Name of the scope.
    pub name: Label,
    /// Leases handed out.
    pub acquires: u64,
    /// Leases served without creating a buffer.
    pub hits: u64,
    /// Buffers created.
    pub creates: u64,
    /// Buffers destroyed.
    pub destroys: u64,
    /// Bytes that leases asked for: now, at the peak of the scope, and in total in the scope.
    pub requested_bytes: Counter,
    /// Bytes of all buffers; the total counts those created in the scope.
    pub held_bytes: Counter,
    /// Live leases now minus those when the scope opened. Above 0, a lease taken inside the scope is still held.
    pub leases_left: i64,
}

impl ScopeReport {
    pub(crate) fn new(name: &Label, before: &PoolStats, now: &PoolStats) -> Self {
        let since = |now: Counter, before: Counter| Counter {
            total: now.total - before.total,
            ..now
        };
        Self {
            name: name.clone(),
            acquires: now.acquires - before.acquires,
            hits: now.hits() - before.hits(),
            creates: now.creates - before.creates,
            destroys: now.destroys - before.destroys,
            requested_bytes: since(now.requested_bytes, before.requested_bytes),
            held_bytes: since(now.held_bytes, before.held_bytes),
            leases_left: now.leases.current as i64 - before.leases.current as i64,
        }
    }
}

impl fmt::Display for ScopeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} leases ({} hits), {} buffers created, {} destroyed; peak {} bytes asked for, {} held; {:+} leases left",
            self.name,
            self.acquires,
            self.hits,
            self.creates,
            self.destroys,
            self.requested_bytes.peak,
            self.held_bytes.peak,
            self.leases_left
        )
    }
}

/// The full state of a pool: its figures, its size classes, and who holds what. Errors carry it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolReport {
    /// The figures.
    pub stats: PoolStats,
    /// Every usage set and size class that was ever used, in order.
    pub classes: Vec<ClassUse>,
    /// Labels of the live leases, the one with the most bytes first.
    pub labels: Vec<LabelUse>,
    /// Live leases by age. Age counts the pool's leases and returns since the lease began. Entry `i` counts leases of age
    /// `4^i` up to, not including, `4^(i + 1)`; entry 0 also counts age 0.
    pub ages: Vec<u64>,
}

/// Buffers of one usage set and size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClassUse {
    /// Bits of the usage set, [`bits`](crate::wgpu::BufferUsages::bits).
    pub usage: u32,
    /// Bytes of the class; its buffers may be smaller under policies that do not round up to classes.
    pub class_bytes: u64,
    /// Leases that its buffers have served.
    pub acquires: u64,
    /// Leases that needed a new buffer.
    pub misses: u64,
    /// Buffers leased now.
    pub leased: usize,
    /// Buffers pending now.
    pub pending: usize,
    /// Buffers cached now.
    pub free: usize,
    /// Bytes of leased buffers beyond what was asked for.
    pub wasted_bytes: u64,
}

/// The live leases of one label.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LabelUse {
    /// The label.
    pub label: Label,
    /// Live leases.
    pub leases: usize,
    /// Bytes that these leases asked for.
    pub requested_bytes: u64,
}

/// One live lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Label of the lease.
    pub label: Label,
    /// Bytes asked for.
    pub requested_bytes: u64,
    /// Bytes of the buffer.
    pub buffer_bytes: u64,
    /// Usages of the buffer.
    pub usage: BufferUsages,
    /// Whether the lease has ended but the device still has the buffer.
    pub pending: bool,
    /// Age: the pool's leases and returns since this lease began.
    pub age: u64,
}

/// Most labels that a report prints.
const PRINTED_LABELS: usize = 8;

impl PoolReport {
    pub(crate) fn new(stats: PoolStats, classes: Vec<ClassUse>, leases: Vec<LeaseInfo>) -> Self {
        let mut by_label: BTreeMap<Label, LabelUse> = BTreeMap::new();
        let mut ages = Vec::new();
        for lease in leases.iter().filter(|lease| !lease.pending) {
            let entry = by_label.entry(lease.label.clone()).or_insert(LabelUse {
                label: lease.label.clone(),
                leases: 0,
                requested_bytes: 0,
            });
            entry.leases += 1;
            entry.requested_bytes += lease.requested_bytes;
            let bucket = (lease.age.max(1).ilog2() / 2) as usize;
            if ages.len() <= bucket {
                ages.resize(bucket + 1, 0);
            }
            ages[bucket] += 1;
        }
        let mut labels: Vec<LabelUse> = by_label.into_values().collect();
        labels.sort_by_key(|label| std::cmp::Reverse(label.requested_bytes));
        Self {
            stats,
            classes,
            labels,
            ages,
        }
    }

    /// The size classes as a table, one line each.
    pub fn class_table(&self) -> String {
        use fmt::Write;
        let mut table = format!(
            "{:>14} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8} {:>12}  usage\n",
            "class bytes",
            "leases",
            "misses",
            "hit %",
            "leased",
            "pending",
            "cached",
            "wasted bytes"
        );
        for class in &self.classes {
            let hit_rate = 100.0 * (1.0 - class.misses as f64 / class.acquires.max(1) as f64);
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:>14} {:>10} {:>10} {:>8.1} {:>8} {:>8} {:>8} {:>12}  {:?}",
                class.class_bytes,
                class.acquires,
                class.misses,
                hit_rate,
                class.leased,
                class.pending,
                class.free,
                class.wasted_bytes,
                BufferUsages::from_bits_retain(class.usage)
            );
        }
        table
    }
}

impl fmt::Display for PoolReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stats)?;
        for entry in self.labels.iter().take(PRINTED_LABELS) {
            write!(
                f,
                "\nheld by '{}': {} bytes in {} leases",
                entry.label, entry.requested_bytes, entry.leases
            )?;
        }
        if let Some(rest) = self
            .labels
            .get(PRINTED_LABELS..)
            .filter(|rest| !rest.is_empty())
        {
            let bytes: u64 = rest.iter().map(|entry| entry.requested_bytes).sum();
            write!(f, "\nheld by {} other labels: {bytes} bytes", rest.len())?;
        }
        if !self.ages.is_empty() {
            write!(f, "\nage of the leases, in leases and returns since:")?;
            for (bucket, count) in (1..).zip(&self.ages) {
                let comma = if bucket == 1 { "" } else { "," };
                write!(f, "{comma} {count} below {}", 1u64 << (2 * bucket))?;
            }
        }
        Ok(())
    }
}
