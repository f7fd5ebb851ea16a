//! Errors of a group of ranks.

use std::fmt;
use std::time::Duration;

/// Why a call of a [`Group`](crate::distributed::Group) failed. Ranks are numbers in that group, from 0. The group has failed with it:
/// every later call returns the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// Other ranks came to the call with an error. Each of those has its own error instead.
    #[error("{}", in_words(failures))]
    OnRanks {
        /// The ranks that failed, in order.
        failures: Vec<RankFailure>,
    },
    /// Two ranks differ in what must be the same on all: an option, the call itself, or the number of values in it.
    #[error(
        "{what} is {value} on rank {rank}, but {other_value} on rank {other_rank}: it must be the same on all ranks"
    )]
    Differ {
        /// Name of the option, or "the call".
        what: String,
        /// The lower of the two ranks.
        rank: usize,
        /// Its value.
        value: String,
        /// The other rank.
        other_rank: usize,
        /// Its value.
        other_value: String,
    },
    /// A rank ended, or left the group after an error, before its part of the call was done.
    #[error(
        "{call}: rank {rank} has left the group, after an error or at its end: look at what that rank says"
    )]
    Left {
        /// The call.
        call: &'static str,
        /// The rank.
        rank: usize,
    },
    /// Ranks did not come to the call, or not through it, within the time-out.
    #[error(
        "{call}: waited {timeout:?}, the time-out, for {}: look whether it hangs, or raise the time-out",
        ranks_in_words(ranks)
    )]
    Late {
        /// The call.
        call: &'static str,
        /// The ranks that were waited for; empty if they are not known.
        ranks: Vec<usize>,
        /// The time-out of the group.
        timeout: Duration,
    },
    /// An error of the application's own, which brings it to a call so that the other ranks know.
    #[error("{reason}")]
    Application {
        /// Its text.
        reason: String,
    },
    /// Bytes did not get to where they should, for another reason.
    #[error("{call}: the transport failed: {reason}")]
    Transport {
        /// The call.
        call: &'static str,
        /// What the transport says.
        reason: String,
    },
}

/// An error on one rank, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankFailure {
    /// The rank.
    pub rank: usize,
    /// The text of its error.
    pub reason: String,
}

impl fmt::Display for RankFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}: {}", self.rank, self.reason)
    }
}

fn in_words(failures: &[RankFailure]) -> String {
    let failures = failures.iter().map(RankFailure::to_string);
    failures.collect::<Vec<_>>().join("; ")
}

fn ranks_in_words(ranks: &[usize]) -> String {
    match ranks {
        [] => "some rank".to_owned(),
        [rank] => format!("rank {rank}"),
        ranks => {
            let ranks = ranks.iter().map(usize::to_string);
            format!("ranks {}", ranks.collect::<Vec<_>>().join(", "))
        }
    }
}
