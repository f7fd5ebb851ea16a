//! What a pool keeps: plain data in, plain data out.
//!
//! A [`Policy`] answers four questions: how large a buffer is made for a request, how large a cached one may serve it, which
//! buffers are worth keeping, and how much may be kept altogether. It sees figures ([`Usage`]) and no buffers, so the same
//! code runs in the real pool, in a [replay](super::Trace::replay) and in the fuzzer. Whatever it answers, the pool stays
//! sound: sizes are clamped to what the request needs and the device allows, and limits only decide which cached buffers go.
//!
//! A pool with a cap of its own that starts to clean up at a threshold:
//!
//! ```
//! use dilated_attention::pool::{Limits, Policy, Pool, PoolOptions, STORAGE_USAGE, Usage, size_class};
//!
//! #[derive(Debug)]
//! struct Capped {
//!     cap_bytes: u64,
//!     cleanup_threshold: f64,
//! }
//!
//! impl Policy for Capped {
//!     fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
//!         size_class::class_bytes(requested_bytes, u64::MAX)
//!     }
//!
//!     fn limits(&self, usage: &Usage) -> Limits {
//!         let threshold_bytes = (self.cap_bytes as f64 * self.cleanup_threshold) as u64;
//!         let crowded = usage.live_bytes + usage.free_bytes > threshold_bytes;
//!         Limits {
//!             // Crowded: only what is in use. Otherwise up to the cap.
//!             held_bytes: if crowded { usage.live_bytes } else { self.cap_bytes },
//!             ..Limits::NONE
//!         }
//!     }
//! }
//!
//! # let (device, _) = dilated_attention::wgpu::Device::noop(&Default::default());
//! let policy = Capped { cap_bytes: 64 << 20, cleanup_threshold: 0.8 };
//! let pool = Pool::new(&device, PoolOptions::default().with_policy(policy));
//! drop(pool.acquire("scores", 1 << 20, STORAGE_USAGE)?);
//! assert_eq!(pool.stats().free.current, 1);
//! # Ok::<(), dilated_attention::Error>(())
//! ```

use std::fmt;

use super::size_class;

/// How scarce memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Pressure {
    /// It is not.
    #[default]
    Normal,
    /// Keep only what is likely to be used soon.
    Graceful,
    /// Keep nothing that is not in use.
    Aggressive,
}

/// The figures that a policy decides on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Bytes of the buffers that are leased or pending, and of the one about to be made.
    pub live_bytes: u64,
    /// Largest number of such bytes in this window and the one before. A window lasts 1024 leases or 64 calls of
    /// [`Pool::maintain`](super::Pool::maintain), whichever is first.
    pub recent_peak_live_bytes: u64,
    /// Bytes of the cached buffers.
    pub free_bytes: u64,
    /// Number of cached buffers.
    pub free_buffers: u64,
    /// The hard budget, if there is one.
    pub budget_bytes: Option<u64>,
    /// How scarce memory is: the higher of what the application said and what the budget's watermarks say.
    pub pressure: Pressure,
    /// How often of late buffers were made anew that had just been given up: 0 is not at all, and each step means more than
    /// 32 in a window. Falls by one after sixteen quiet windows. At most 4.
    pub thrash_level: u32,
}

/// How much may be kept. Cached buffers are given up, the longest unused first, until every limit holds or none is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all buffers: leased, pending and cached.
    pub held_bytes: u64,
    /// Bytes of the cached buffers.
    pub free_bytes: u64,
    /// Number of cached buffers.
    pub free_buffers: u64,
    /// Buffers that were not used for this many windows go; at most [`Limits::MAX_IDLE_WINDOWS`] are told apart.
    pub idle_windows: u32,
}

impl Limits {
    /// Keep everything.
    pub const NONE: Self = Self {
        held_bytes: u64::MAX,
        free_bytes: u64::MAX,
        free_buffers: u64::MAX,
        idle_windows: u32::MAX,
    };

    /// More idle windows than this mean: never.
    pub const MAX_IDLE_WINDOWS: u32 = 64;
}

/// What a pool keeps; see the [module](self) documentation. It must not use the pool that asks it.
pub trait Policy: fmt::Debug + Send + Sync {
    /// Bytes of the buffer that is made for a request of `requested_bytes` (a multiple of 4). The pool raises the answer to
    /// the request, rounds it up to a multiple of 4 and lowers it to the device's limit. Answers that are no
    /// [size class](super::size_class) are fine, but lookups then compare up to 32 cached buffers instead of taking the
    /// first.
    fn buffer_bytes(&self, requested_bytes: u64) -> u64;

    /// Bytes of the largest cached buffer that may serve a request for which one of `buffer_bytes` would be made.
    fn borrow_bytes(&self, buffer_bytes: u64) -> u64 {
        buffer_bytes
    }

    /// Whether a buffer of `buffer_bytes` is worth keeping when nobody uses it. Asked once, when it is made.
    fn keeps(&self, buffer_bytes: u64) -> bool {
        let _ = buffer_bytes;
        true
    }

    /// How much may be kept. Asked before a buffer is made, at the end of each window and when the pressure changes.
    fn limits(&self, usage: &Usage) -> Limits;
}

/// Keeps what is held near the recent peak of what is live. The default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balanced {
    /// What is held is at most `1 + slack` times the recent peak of what is live. 0.25 keeps a static graph from making anew
    /// what it just gave up; 0.125 does not.
    pub slack: f64,
    /// Below this many bytes held nothing is given up for the bound above, but for idleness.
    pub floor_bytes: u64,
    /// A cached buffer may serve a request whose own buffer would be smaller by up to this factor.
    pub max_borrow: f64,
    /// Most buffers that are cached.
    pub max_free_buffers: u64,
    /// Buffers that were not used for this many windows are given up.
    pub idle_windows: u32,
    /// Smaller buffers are not kept. 0: a hit is cheaper than a creation at every size measured (`cargo bench --bench pool`).
    pub min_pooled_bytes: u64,
}

impl Default for Balanced {
    fn default() -> Self {
        Self {
            slack: 0.25,
            floor_bytes: 16 << 20,
            max_borrow: 2.0,
            max_free_buffers: 8192,
            idle_windows: 32,
            min_pooled_bytes: 0,
        }
    }
}

impl Policy for Balanced {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        size_class::class_bytes(requested_bytes, u64::MAX)
    }

    fn borrow_bytes(&self, buffer_bytes: u64) -> u64 {
        scaled(buffer_bytes, self.max_borrow)
    }

    fn keeps(&self, buffer_bytes: u64) -> bool {
        buffer_bytes >= self.min_pooled_bytes
    }

    fn limits(&self, usage: &Usage) -> Limits {
        // Giving up what is made anew soon after costs more than it saves: allow more.
        let slack =
            (self.slack * f64::from(1u32 << usage.thrash_level.min(4))).min(self.slack.max(1.0));
        let (held_bytes, idle_windows) = match usage.pressure {
            Pressure::Normal => (
                scaled(usage.recent_peak_live_bytes, 1.0 + slack).max(self.floor_bytes),
                self.idle_windows,
            ),
            Pressure::Graceful => (usage.recent_peak_live_bytes, self.idle_windows.min(2)),
            Pressure::Aggressive => (usage.live_bytes, 1),
        };
        Limits {
            held_bytes,
            free_buffers: self.max_free_buffers,
            idle_windows,
            free_bytes: match usage.pressure {
                Pressure::Aggressive => 0,
                Pressure::Normal | Pressure::Graceful => u64::MAX,
            },
        }
    }
}

/// Gives nothing up unless the budget, memory or the application asks for it: for programs that own the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speed;

impl Policy for Speed {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        size_class::class_bytes(requested_bytes, u64::MAX)
    }

    fn borrow_bytes(&self, buffer_bytes: u64) -> u64 {
        scaled(buffer_bytes, 4.0)
    }

    fn limits(&self, usage: &Usage) -> Limits {
        match usage.pressure {
            Pressure::Normal => Limits::NONE,
            Pressure::Graceful | Pressure::Aggressive => Balanced::default().limits(usage),
        }
    }
}

/// Keeps little: a tenth more than what was live of late, and nothing that idles. For programs that share the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lean;

impl Lean {
    const BALANCED: Balanced = Balanced {
        slack: 0.1,
        floor_bytes: 1 << 20,
        max_borrow: 1.5,
        max_free_buffers: 1024,
        idle_windows: 2,
        min_pooled_bytes: 0,
    };
}

impl Policy for Lean {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        Self::BALANCED.buffer_bytes(requested_bytes)
    }

    fn borrow_bytes(&self, buffer_bytes: u64) -> u64 {
        Self::BALANCED.borrow_bytes(buffer_bytes)
    }

    fn limits(&self, usage: &Usage) -> Limits {
        // No thrash guard: whoever chooses this has said what matters.
        let usage = Usage {
            thrash_level: 0,
            ..*usage
        };
        Self::BALANCED.limits(&usage)
    }
}

/// Buffers of exactly the bytes asked for, lent again for exactly those: no waste, for programs whose shapes never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exact;

impl Policy for Exact {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        requested_bytes
    }

    fn limits(&self, usage: &Usage) -> Limits {
        Balanced::default().limits(usage)
    }
}

/// Every lease creates, every release destroys: what the same program costs without a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoPooling;

impl Policy for NoPooling {
    fn buffer_bytes(&self, requested_bytes: u64) -> u64 {
        requested_bytes
    }

    fn keeps(&self, _: u64) -> bool {
        false
    }

    fn limits(&self, _: &Usage) -> Limits {
        Limits {
            held_bytes: 0,
            ..Limits::NONE
        }
    }
}

/// `bytes * factor`, at least `bytes`, never beyond 64 bits, whatever `factor` is.
fn scaled(bytes: u64, factor: f64) -> u64 {
    // Through signed integers, which processors convert in one instruction: this is on the way of every hit.
    let product = (bytes.min(i64::MAX as u64) as i64 as f64 * factor) as i64;
    (product.max(0) as u64).max(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(peak: u64, pressure: Pressure, thrash_level: u32) -> Usage {
        Usage {
            live_bytes: peak / 2,
            recent_peak_live_bytes: peak,
            pressure,
            thrash_level,
            ..Usage::default()
        }
    }

    #[test]
    fn balanced_follows_the_peak_and_allows_more_when_it_thrashes() {
        let held = |peak, pressure, level| {
            Balanced::default()
                .limits(&usage(peak, pressure, level))
                .held_bytes
        };
        let peak = 1u64 << 30;
        assert_eq!(held(peak, Pressure::Normal, 0), peak / 4 * 5);
        assert_eq!(held(peak, Pressure::Normal, 1), peak / 2 * 3);
        assert_eq!(held(peak, Pressure::Normal, 4), peak * 2, "never more");
        assert_eq!(held(1000, Pressure::Normal, 0), 16 << 20);
        assert_eq!(held(peak, Pressure::Graceful, 0), peak);
        assert_eq!(held(peak, Pressure::Aggressive, 4), peak / 2);
    }

    #[test]
    fn factors_that_mean_nothing_are_harmless() {
        for factor in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, 1e300] {
            assert!(scaled(4096, factor) >= 4096);
        }
    }
}
