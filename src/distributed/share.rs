//! Which tokens of a sequence a rank has.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::{Mutex, PoisonError};

use super::Group;
#[cfg(not(target_arch = "wasm32"))]
use crate::error::Result;

/// A sequence of which each rank of a group holds a share: `ceil(tokens / ranks)` tokens, the last ranks fewer or none.
///
/// Calls that take a share are made by all ranks of the group, with the same sequence and the same options. Cheap to clone.
#[derive(Clone)]
pub struct SequenceShare {
    group: Arc<Group>,
    tokens: usize,
    /// What all ranks have compared already.
    #[cfg(not(target_arch = "wasm32"))]
    compared: Arc<Mutex<Vec<Options>>>,
}

/// Names of options, and their values in words.
#[cfg(not(target_arch = "wasm32"))]
type Options = Vec<(&'static str, String)>;

impl SequenceShare {
    /// This rank's share of a sequence of `tokens` tokens. Exchanges nothing: what ranks differ in, the first call that takes the share
    /// says.
    pub fn new(group: Arc<Group>, tokens: usize) -> Self {
        Self {
            group,
            tokens,
            #[cfg(not(target_arch = "wasm32"))]
            compared: Arc::default(),
        }
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Tokens of the sequence.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The tokens of this rank.
    pub fn range(&self) -> Range<usize> {
        self.range_of(self.group.rank())
    }

    /// The tokens of a rank; none for one that the group does not have.
    pub fn range_of(&self, rank: usize) -> Range<usize> {
        tokens_of_rank(self.tokens, self.group.size(), rank)
    }

    /// Compares options of a call, and the sequence, between all ranks, once for each.
    ///
    /// # Errors
    /// As [`Group::expect_same`].
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn expect_same(&self, what: Options) -> Result<()> {
        let mut compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner);
        if compared.contains(&what) {
            return Ok(());
        }
        let tokens = [("tokens of the sequence", self.tokens.to_string())];
        self.group.expect_same(&[&tokens[..], &what].concat())?;
        compared.push(what);
        Ok(())
    }
}

/// The tokens of rank `rank` of `ranks`, which are at least one.
pub(crate) fn tokens_of_rank(tokens: usize, ranks: usize, rank: usize) -> Range<usize> {
    let count = tokens.div_ceil(ranks);
    let place = |rank: usize| rank.saturating_mul(count).min(tokens);
    place(rank)..place(rank.saturating_add(1))
}

impl fmt::Debug for SequenceShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequenceShare")
            .field("group", &self.group)
            .field("tokens", &self.tokens)
            .field("range", &self.range())
            .finish_non_exhaustive()
    }
}
