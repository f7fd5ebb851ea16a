//! What ranks tell each other before anything else in a call.

use std::fmt;

use super::group::Reduction;

/// The calls of a group. The numbers travel between processes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Call {
    ExpectSame = 1,
    AllGather = 2,
    AllToAll = 3,
    Sum = 4,
    Minimum = 5,
    Maximum = 6,
    Barrier = 7,
    Agree = 8,
    Split = 9,
}

impl Call {
    const ALL: [Self; 9] = [
        Self::ExpectSame,
        Self::AllGather,
        Self::AllToAll,
        Self::Sum,
        Self::Minimum,
        Self::Maximum,
        Self::Barrier,
        Self::Agree,
        Self::Split,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ExpectSame => "expect_same",
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
            Self::Sum => "all_reduce(Sum)",
            Self::Minimum => "all_reduce(Minimum)",
            Self::Maximum => "all_reduce(Maximum)",
            Self::Barrier => "barrier",
            Self::Agree => "agree",
            Self::Split => "split",
        }
    }
}

impl From<Reduction> for Call {
    fn from(reduction: Reduction) -> Self {
        match reduction {
            Reduction::Sum => Self::Sum,
            Reduction::Minimum => Self::Minimum,
            Reduction::Maximum => Self::Maximum,
        }
    }
}

/// Which call a rank makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// A [`Call`] as a number, which another version of the crate may not know.
    pub call: u64,
    /// Number of the call in the group, from 1.
    pub number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Call::ALL.iter().find(|call| **call as u64 == self.call) {
            Some(call) => write!(f, "{}", call.name())?,
            None => write!(f, "an unknown one ({})", self.call)?,
        }
        write!(f, " as number {}", self.number)
    }
}

/// What one rank tells another.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub place: Place,
    /// The rank comes with an error.
    pub failed: bool,
    /// Bytes that follow: those of the call, or the text of the error.
    pub count: u64,
}

impl Header {
    pub const BYTES: usize = 32;

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let words = [
            self.place.call,
            self.place.number,
            u64::from(self.failed),
            self.count,
        ];
        let mut bytes = [0; Self::BYTES];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = u64::from_le_bytes(eight);
        }
        let [call, number, failed, count] = words;
        Self {
            place: Place { call, number },
            failed: failed != 0,
            count,
        }
    }
}
