//! Policies: which buffers a pool keeps. Plain data in, plain data out.
//!
//! A [`Policy`] answers four questions: how large a buffer to create for a request, how large a cached buffer may serve it,
//! which buffers are worth keeping, and how much to keep altogether. It sees figures ([`Usage`]) and no buffers, so the same
//! code runs in the real pool, in a [replay](super::Trace::replay) and in the fuzzer. No answer can break the pool: sizes
//! are clamped to what the request needs and the device allows, and limits only decide which cached buffers are destroyed.
//!
//! A policy with a fixed cap that cleans up above a threshold:
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
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Pressure {
    /// It is not scarce.
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
    /// Bytes of leased and pending buffers, and of the buffer about to be created.
    pub live_bytes: u64,
    /// Peak of live bytes in this window and the one before. A window ends after 1024 leases, or after 64 submissions and
    /// calls of [`Pool::maintain`](super::Pool::maintain).
    pub recent_peak_live_bytes: u64,
    /// Bytes of the cached buffers.
    pub free_bytes: u64,
    /// Number of cached buffers.
    pub free_buffers: usize,
    /// The hard budget, if there is one.
    pub budget_bytes: Option<u64>,
    /// How scarce memory is: the higher of what the application said and what the budget's watermarks say.
    pub pressure: Pressure,
    /// How often buffers were recently re-created after they had just been destroyed, 0 to 4. It rises by one with every 32
    /// re-creations in a window, and falls by one after sixteen windows with fewer.
    pub thrash_level: u32,
}

/// How much may be kept. Cached buffers are destroyed, the longest unused first, until every limit holds or none is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of all buffers: leased, pending and cached.
    pub held_bytes: u64,
    /// Bytes of the cached buffers.
    pub free_bytes: u64,
    /// Number of cached buffers.
    pub free_buffers: usize,
    /// Buffers unused for this many windows are destroyed. More than [`Limits::MAX_IDLE_WINDOWS`] means never.
    pub idle_windows: u32,
}

impl Limits {
    /// No limits: keep everything.
    pub const NONE: Self = Self {
        held_bytes: u64::MAX,
        free_bytes: u64::MAX,
        free_buffers: usize::MAX,
        idle_windows: u32::MAX,
    };

    /// Largest meaningful value of `idle_windows`; more means never.
    pub const MAX_IDLE_WINDOWS: u32 = 64;
}

/// Decides which buffers a pool keeps; see the [module](self) documentation. A policy must not call the pool that asks it.
pub trait Policy: fmt::Debug + Send + Sync {
    /// Bytes of the buffer to create for a request of `requested_bytes` (a multiple of 4). The pool raises the answer to the
    /// request, rounds it up to a multiple of 4 and lowers it to the device's limit. The answer need not be a [size
    /// class](super::size_class), but then lookups compare up to 32 cached buffers instead of taking the first.
    fn buffer_bytes(&self, requested_bytes: u64) -> u64;

    /// Bytes of the largest cached buffer that may serve a request for which a buffer of `buffer_bytes` would be created.
    fn borrow_bytes(&self, buffer_bytes: u64) -> u64 {
        buffer_bytes
    }

    /// Whether a buffer of `buffer_bytes` is worth keeping when nobody uses it. Asked once, when the buffer is created.
    fn keeps(&self, buffer_bytes: u64) -> bool {
        let _ = buffer_bytes;
        true
    }

    /// How much may be kept. Asked before a buffer is created, at the end of each window, and when the pressure changes.
    fn limits(&self, usage: &Usage) -> Limits;
}

/// The default policy: keeps held bytes near the recent peak of live bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balanced {
    /// Held bytes are at most `1 + slack` times the recent peak of live bytes. With 0.25, a static graph does not re-create
    /// what was just destroyed; with 0.125 it does.
    pub slack: f64,
    /// While fewer bytes than this are held, the bound above does not apply; idle buffers are still destroyed.
    pub floor_bytes: u64,
    /// A cached buffer may be this many times larger than the buffer that the request would create.
    pub max_borrow: f64,
    /// Most buffers to cache.
    pub max_free_buffers: usize,
    /// Buffers unused for this many windows are destroyed.
    pub idle_windows: u32,
    /// Smaller buffers are not kept. The default is 0, because a hit is cheaper than a creation at every size measured
    /// (`cargo bench --bench pool`).
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
        // Destroying buffers that are soon re-created costs more than it saves, so allow more.
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

/// Destroys nothing unless the budget, the device's memory or the application's pressure demands it. For programs that own
/// the machine.
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

/// Keeps little: a tenth more than the recent peak of live bytes, and nothing idle. For programs that share the device.
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
        // No thrash guard: this policy values little memory above few creations.
        let usage = Usage {
            thrash_level: 0,
            ..*usage
        };
        Self::BALANCED.limits(&usage)
    }
}

/// Creates buffers of exactly the requested size and reuses them only for that size. No waste, for programs whose shapes
/// never change.
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

/// Creates a buffer for every lease and destroys it afterwards. Shows what a program costs without a pool.
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
