//! What a group stands on: something that carries bytes between ranks.

use std::time::Instant;

/// Carries bytes between ranks. A [`Group`](super::Group) makes one call at a time, the same ones on all ranks, and drops the
/// transport after the first error; dropping it lets the other ranks know that this one has left, where that is possible.
pub trait Transport: Send + Sync {
    /// Number of this rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Sends `sends[r]` to rank r and fills `receives[r]` with what that rank sends to this one, for every rank r. What a rank sends
    /// to itself is copied. Lengths may differ from pair to pair and may be 0; both ranks of a pair give the same one. Where all are
    /// 0, ranks need not wait for each other.
    ///
    /// Returns once all of `receives` is filled, or else after the deadline: not before, as long as every rank may still come.
    fn all_to_all(
        &self,
        sends: &[&[u8]],
        receives: &mut [&mut [u8]],
        deadline: Instant,
    ) -> Result<(), TransportError>;

    /// Ranks that give the same color form a new transport, in their old order. All ranks make this call.
    fn split(&self, color: u32, deadline: Instant) -> Result<Box<dyn Transport>, TransportError>;
}

/// Why a [`Transport`] did not carry what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportError {
    /// A rank has left, and what it should have sent or taken is still missing.
    Left {
        /// The rank.
        rank: usize,
    },
    /// The deadline has passed.
    Late {
        /// The ranks whose bytes are missing, or that have not taken theirs; empty if they are not known.
        ranks: Vec<usize>,
    },
    /// Anything else.
    Failed {
        /// In words.
        reason: String,
    },
}
