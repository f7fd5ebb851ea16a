//! What the pool keeps, as plain data.

/// What happens to a buffer that nobody leases any more, and how large a cached buffer may be for a request.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// Buffers are kept for reuse, bounded by what was live of late.
    Balanced {
        /// On a miss, cached buffers are given up until the bytes held are at most `(1 + slack)` times the peak of the
        /// bytes leased of late. 0.25 keeps a static graph from creating anew what it just gave up; 0.125 does not.
        slack: f64,
        /// Below this many bytes held nothing is given up for the bound above.
        floor_bytes: u64,
        /// A cached buffer may serve a request whose own class is smaller by up to this factor.
        max_borrow: f64,
    },
    /// Every lease creates, every release destroys: what the same program costs without a pool.
    NoPooling,
}

impl Default for Policy {
    fn default() -> Self {
        Self::Balanced {
            slack: 0.25,
            floor_bytes: 16 << 20,
            max_borrow: 2.25,
        }
    }
}

impl Policy {
    /// Largest class, in bytes, that may serve a request of class `class_bytes`.
    pub(super) fn borrow_limit_bytes(&self, class_bytes: u64) -> u64 {
        match *self {
            Self::Balanced { max_borrow, .. } => {
                let limit = class_bytes as f64 * max_borrow.max(1.0);
                (limit as u64).max(class_bytes)
            }
            Self::NoPooling => class_bytes,
        }
    }

    /// Bytes that may be held (leased, pending and cached) when `peak_live_bytes` were live of late.
    pub(super) fn held_limit_bytes(&self, peak_live_bytes: u64) -> u64 {
        match *self {
            Self::Balanced {
                slack, floor_bytes, ..
            } => (((1.0 + slack.max(0.0)) * peak_live_bytes as f64) as u64).max(floor_bytes),
            Self::NoPooling => 0,
        }
    }

    /// Whether a released buffer is kept at all.
    pub(super) fn keeps(&self) -> bool {
        !matches!(self, Self::NoPooling)
    }
}
