//! What is known of all shards together: peaks, windows, limits, evictions. Plain data; changed only under all locks.

use std::collections::{HashMap, VecDeque};

use super::event::EvictionCause;
use super::policy::{Limits, Pressure};
use super::shard::{Gauge, Gauges, NUM_GAUGES};
use crate::pool_figures::Evictions;

/// Leases after which a window ends.
pub(super) const WINDOW_ACQUIRES: u64 = 1024;

/// Ends of windows that are remembered, to tell how long a buffer idles.
const REMEMBERED_WINDOWS: usize = Limits::MAX_IDLE_WINDOWS as usize;

/// Buffers made anew in one window that raise the thrash level.
const RECREATIONS_TO_THRASH: u32 = 32;

/// Windows without so many that lower it again.
const QUIET_WINDOWS: u32 = 16;

const MAX_THRASH_LEVEL: u32 = 4;

/// The hard budget and the shares of it at which pressure begins.
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

/// Someone who wants to know the peaks since a moment of his own.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub id: u64,
    pub peaks: Gauges,
    pub peak_held_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// The pool's own watch first, then those of open scopes.
    pub watches: Vec<Watch>,
    next_watch: u64,
    /// Peak of live bytes in this window, as far as it was seen with all locks, and in the window before. The latter is
    /// exact when one thread used the pool, else at most the sum of the threads' own peaks.
    pub window_peaks: [u64; 2],
    /// Leases of the pool when the window began.
    pub window_begin: u64,
    /// Clocks at the ends of past windows, the latest first.
    window_clocks: VecDeque<u64>,
    /// A window has ended and the policy has not been asked since.
    pub policy_due: bool,
    pub limits: Limits,
    /// Bytes of buffers that are being made outside the locks, so that threads cannot pass a budget together.
    pub creating_bytes: u64,
    pub evictions: Evictions,
    pub recoveries: u64,
    pub recreations: u64,
    /// Buffers given up for retention in this window and in the one before, by usage and class.
    given_up: [HashMap<(u32, usize), u32>; 2],
    window_recreations: u32,
    quiet_windows: u32,
    pub thrash_level: u32,
    /// Bytes of destroyed buffers that submitted work may still use, with the number of its submission.
    draining: VecDeque<(u64, u64)>,
    pub draining_bytes: u64,
    pub pressure: Pressure,
    pub budget: Budget,
    /// More is held than the budget allows, since it was lowered.
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
            pressure: Pressure::Normal,
            budget,
            over_budget: false,
            lost: None,
        }
    }

    /// Watches the peaks from now on.
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

    /// Most live bytes of late, where the peaks of the threads in this window add up to `peak_live_bytes`.
    pub fn recent_peak_live_bytes(&self, peak_live_bytes: u64) -> u64 {
        let seen = self.window_peaks[0].max(self.window_peaks[1]);
        seen.max(peak_live_bytes.min(self.live_line_bytes()))
    }

    /// Live bytes do not pass this unseen. A little above the recent peak, so that a peak that wanders up is not looked at
    /// with all locks at every step.
    fn live_line_bytes(&self) -> u64 {
        let seen = self.window_peaks[0].max(self.window_peaks[1]);
        seen + seen / 32
    }

    /// What no gauge may pass unseen: the lowest peak of those who watch, and the limits.
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
            self.limits.free_buffers
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

    /// Begins a new window at `acquires` leases and `live_bytes`; the peaks of the threads add up to `peak_live_bytes`.
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

    /// Buffers that came back by this clock have idled for longer than the limits allow.
    pub fn idle_clock(&self) -> Option<u64> {
        let windows = self.limits.idle_windows.max(1) as usize;
        self.window_clocks.get(windows - 1).copied()
    }

    /// Remembers what was given up, to notice when it is made anew.
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

    /// A buffer was made: was one like it given up just before?
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

    /// A destroyed buffer's memory is free once the submissions up to `epoch` are done.
    pub fn drain(&mut self, epoch: u64, completed: u64, bytes: u64) {
        if epoch > completed {
            self.draining.push_back((epoch, bytes));
            self.draining_bytes += bytes;
        }
    }

    /// The submissions up to `completed` are done.
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
