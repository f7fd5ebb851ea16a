//! What concerns all shards together: peaks, windows, limits, evictions. Plain data, changed only under all locks.

use std::collections::{HashMap, VecDeque};

use super::event::EvictionCause;
use super::import::Imports;
use super::policy::{Limits, Pressure};
use super::shard::{Gauge, Gauges, NUM_GAUGES};
use crate::pool_figures::Evictions;

/// Number of leases after which a window ends.
pub(super) const WINDOW_ACQUIRES: u64 = 1024;

/// Number of past windows whose ends are remembered, to tell how long a buffer has been idle.
const REMEMBERED_WINDOWS: usize = Limits::MAX_IDLE_WINDOWS as usize;

/// Buffers re-created in one window that raise the thrash level by one.
const RECREATIONS_TO_THRASH: u32 = 32;

/// Windows with fewer re-creations that lower it by one.
const QUIET_WINDOWS: u32 = 16;

const MAX_THRASH_LEVEL: u32 = 4;

/// The hard budget, and the fractions of it above which pressure is graceful and aggressive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Budget {
    pub bytes: Option<u64>,
    pub graceful: f64,
    pub aggressive: f64,
}

impl Budget {
    pub fn pressure(&self, held_bytes: u64) -> Pressure {
        let Some(bytes) = self.bytes else {
            return Pressure::Normal;
        };
        let share = held_bytes as f64 / bytes.max(1) as f64;
        if share > self.aggressive {
            Pressure::Aggressive
        } else if share > self.graceful {
            Pressure::Graceful
        } else {
            Pressure::Normal
        }
    }
}

/// Peaks since the moment when somebody began to watch: the pool itself, or a scope.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub id: u64,
    pub peaks: Gauges,
    pub peak_held_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// First the pool's own watch, then those of open scopes.
    pub watches: Vec<Watch>,
    next_watch: u64,
    /// Peak of live bytes in this window, as seen whenever all locks were taken, and in the window before. The latter is
    /// exact if one thread used the pool, and otherwise at most the sum of the threads' peaks.
    pub window_peaks: [u64; 2],
    /// Number of leases handed out when the window began.
    pub window_begin: u64,
    /// The clock at the ends of past windows, the latest first.
    window_clocks: VecDeque<u64>,
    /// Whether a window has ended since the policy was last asked.
    pub policy_due: bool,
    pub limits: Limits,
    /// Bytes of buffers that are being created outside of the locks, so that several threads together cannot exceed a
    /// budget.
    pub creating_bytes: u64,
    pub evictions: Evictions,
    pub recoveries: u64,
    pub recreations: u64,
    /// Number of buffers destroyed for retention in this window and in the one before, by usages and size class.
    given_up: [HashMap<(u32, usize), u32>; 2],
    window_recreations: u32,
    quiet_windows: u32,
    pub thrash_level: u32,
    /// Destroyed buffers that submitted work may still use: number of the last such submission, and bytes.
    draining: VecDeque<(u64, u64)>,
    pub draining_bytes: u64,
    /// Buffers of the application's, which count in no other figure.
    pub imports: Imports,
    pub pressure: Pressure,
    pub budget: Budget,
    /// Whether more is held than the budget allows, because it was lowered.
    pub over_budget: bool,
    pub lost: Option<String>,
}

impl Ledger {
    pub fn new(budget: Budget) -> Self {
        Self {
            watches: vec![Watch {
                id: 0,
                peaks: [0; NUM_GAUGES],
                peak_held_bytes: 0,
            }],
            next_watch: 1,
            window_peaks: [0; 2],
            window_begin: 0,
            window_clocks: VecDeque::with_capacity(REMEMBERED_WINDOWS + 1),
            policy_due: false,
            limits: Limits::NONE,
            creating_bytes: 0,
            evictions: Evictions::default(),
            recoveries: 0,
            recreations: 0,
            given_up: [HashMap::new(), HashMap::new()],
            window_recreations: 0,
            quiet_windows: 0,
            thrash_level: 0,
            draining: VecDeque::new(),
            draining_bytes: 0,
            imports: Imports::default(),
            pressure: Pressure::Normal,
            budget,
            over_budget: false,
            lost: None,
        }
    }

    /// Adds a watch that starts now and returns its number.
    pub fn watch(&mut self, gauges: Gauges, held_bytes: u64) -> u64 {
        let id = self.next_watch;
        self.next_watch += 1;
        self.watches.push(Watch {
            id,
            peaks: gauges,
            peak_held_bytes: held_bytes,
        });
        id
    }

    /// Largest number of live bytes in this window and the one before. `peak_live_bytes` is the sum of the shards' peaks in
    /// this window.
    pub fn recent_peak_live_bytes(&self, peak_live_bytes: u64) -> u64 {
        let seen = self.window_peaks[0].max(self.window_peaks[1]);
        seen.max(peak_live_bytes.min(self.live_line_bytes()))
    }

    /// Whenever live bytes exceed this line, all locks are taken and the peak is recorded. It lies a little above the recent
    /// peak, so that a slowly rising peak does not take all locks at every step.
    fn live_line_bytes(&self) -> u64 {
        let seen = self.window_peaks[0].max(self.window_peaks[1]);
        seen + seen / 32
    }

    /// The line of each gauge. A gauge that would exceed its line has to take all locks first: to record a new peak of any
    /// watch, or to apply the policy's limits.
    pub fn lines(&self) -> Gauges {
        let mut lines = [u64::MAX; NUM_GAUGES];
        for watch in &self.watches {
            for (line, peak) in lines.iter_mut().zip(watch.peaks) {
                *line = (*line).min(peak);
            }
        }
        let free_buffers = if self.over_budget {
            0
        } else {
            self.limits.free_buffers as u64
        };
        for (gauge, line) in [
            (Gauge::LiveBytes, self.live_line_bytes()),
            (Gauge::Free, free_buffers),
            (Gauge::FreeBytes, self.limits.free_bytes),
        ] {
            let nearest = &mut lines[gauge as usize];
            *nearest = (*nearest).min(line);
        }
        lines
    }

    /// Ends the window and begins the next, at `acquires` leases and `live_bytes`. `peak_live_bytes` is the sum of the
    /// shards' peaks in the window that ends.
    pub fn end_window(&mut self, acquires: u64, live_bytes: u64, peak_live_bytes: u64, clock: u64) {
        self.window_begin = acquires;
        let ended = peak_live_bytes.min(self.live_line_bytes());
        self.window_peaks = [live_bytes, ended.max(self.window_peaks[0])];
        self.window_clocks.push_front(clock);
        self.window_clocks.truncate(REMEMBERED_WINDOWS);
        self.given_up.swap(0, 1);
        self.given_up[0].clear();
        if self.window_recreations >= RECREATIONS_TO_THRASH {
            self.quiet_windows = 0;
        } else {
            self.quiet_windows += 1;
            if self.quiet_windows >= QUIET_WINDOWS {
                self.quiet_windows = 0;
                self.thrash_level = self.thrash_level.saturating_sub(1);
            }
        }
        self.window_recreations = 0;
        self.policy_due = true;
    }

    /// Buffers that came back at or before this clock have been idle for longer than the limits allow.
    pub fn idle_clock(&self) -> Option<u64> {
        let windows = self.limits.idle_windows.max(1) as usize;
        self.window_clocks.get(windows - 1).copied()
    }

    /// Counts a destroyed buffer, to notice when one like it is created again.
    pub fn gave_up(&mut self, cause: EvictionCause, usage: u32, class: usize) {
        let count = match cause {
            EvictionCause::Retention => {
                *self.given_up[0].entry((usage, class)).or_default() += 1;
                &mut self.evictions.retention
            }
            EvictionCause::Cap => &mut self.evictions.cap,
            EvictionCause::Idle => &mut self.evictions.idle,
            EvictionCause::Pressure => &mut self.evictions.pressure,
            EvictionCause::Budget => &mut self.evictions.budget,
            EvictionCause::OutOfMemory => &mut self.evictions.out_of_memory,
            EvictionCause::Trim => &mut self.evictions.trim,
        };
        *count += 1;
    }

    /// Counts a created buffer, and notices if one like it was destroyed just before.
    pub fn made(&mut self, usage: u32, class: usize) {
        for given_up in &mut self.given_up {
            if let Some(count) = given_up
                .get_mut(&(usage, class))
                .filter(|count| **count > 0)
            {
                *count -= 1;
                self.recreations += 1;
                self.window_recreations += 1;
                if self
                    .window_recreations
                    .is_multiple_of(RECREATIONS_TO_THRASH)
                {
                    self.thrash_level = (self.thrash_level + 1).min(MAX_THRASH_LEVEL);
                }
                return;
            }
        }
    }

    /// Counts a destroyed buffer's bytes as draining until the submissions up to `epoch` are done.
    pub fn drain(&mut self, epoch: u64, completed: u64, bytes: u64) {
        if epoch > completed {
            self.draining.push_back((epoch, bytes));
            self.draining_bytes += bytes;
        }
    }

    /// All submissions up to `completed` are done: their buffers no longer drain.
    pub fn drained(&mut self, completed: u64) {
        let bytes = &mut self.draining_bytes;
        self.draining.retain(|&(epoch, drained)| {
            let draining = epoch > completed;
            if !draining {
                *bytes -= drained;
            }
            draining
        });
    }
}
