//! Groups of ranks: what threads or processes that share one computation call together.
//!
//! A [`Group`] is one rank's place among all: it knows its number and theirs, and exchanges bytes with them. [`in_process`] makes
//! groups of threads; a [`Transport`] of an application's own carries a group over anything else. `examples/mpi` has one for MPI.
//!
//! **All ranks make the same calls in the same order.** Each call takes what this rank has for it as a `Result`, and begins with an
//! exchange of a few bytes: how each rank fares, which call it makes, and how much it sends. So
//!
//! * an error on one rank is an error on all, [`GroupError::OnRanks`], with the rank and its words; nobody waits for what will not come;
//! * ranks that make different calls all get [`GroupError::Differ`]: bytes of two calls never mix;
//! * a rank that ended is [`GroupError::Left`], and one that does not come within the time-out is [`GroupError::Late`].
//!
//! After an error the group has failed. Every later call returns that error at once, and this rank has left for the others.
//! A sub-group ([`Group::split`]) and the group that it was made from fail each on their own.
//!
//! ```
//! use std::time::Duration;
//! use dilated_attention::distributed::{Group, Reduction, in_process};
//!
//! fn sum_of_ranks(group: Group) -> dilated_attention::Result<u64> {
//!     group.expect_same(&[("tokens", "1000".to_owned())])?;
//!     let mut sum = Vec::new();
//!     group.all_reduce(Ok(&[group.rank() as u64]), Reduction::Sum, &mut sum)?;
//!     Ok(sum[0])
//! }
//!
//! let groups = in_process(3, Duration::from_secs(10));
//! let ranks: Vec<_> = groups
//!     .into_iter()
//!     .map(|group| std::thread::spawn(move || sum_of_ranks(group)))
//!     .collect();
//! for rank in ranks {
//!     assert_eq!(rank.join().unwrap(), Ok(0 + 1 + 2));
//! }
//! ```
//!
mod grid;
mod group;
mod header;
#[cfg(not(target_arch = "wasm32"))]
mod in_process;
mod share;
mod sum;
mod transport;

pub use crate::error::{GroupError, RankFailure};
pub use grid::RankGrid;
pub use group::{Group, Reduction};
#[cfg(not(target_arch = "wasm32"))]
pub use in_process::in_process;
pub use share::SequenceShare;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use share::tokens_of_rank;
pub use transport::{Transport, TransportError};

#[cfg(test)]
mod tests;
