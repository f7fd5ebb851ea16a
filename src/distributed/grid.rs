//! Ranks that train a model together.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::Group;
use crate::error::{Error, Result};

/// Ranks in a grid: those of a row share one sequence after the other, and different rows have different sequences.
///
/// ```text
/// 6 ranks, 2 to a sequence      row 0: ranks 0 1      row 1: ranks 2 3      row 2: ranks 4 5
/// ```
/// With one rank to a sequence that is data parallel training, with all ranks to one it is sequence parallel.
#[derive(Clone, Debug)]
pub struct RankGrid {
    all: Arc<Group>,
    row: Arc<Group>,
}

impl RankGrid {
    /// Makes rows of `ranks_per_sequence` ranks of a group. All ranks of the group make this call.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the group cannot be divided so; as [`Group::split`].
    pub fn new(all: Arc<Group>, ranks_per_sequence: NonZeroUsize) -> Result<Self> {
        let columns = ranks_per_sequence.get();
        let color = match all.size().is_multiple_of(columns) {
            // A group has fewer than 2^32 ranks.
            true => Ok((all.rank() / columns) as u32),
            false => Err(Error::InvalidConfig {
                what: "number of ranks to a sequence",
                given: format!("{columns}, of {} ranks", all.size()),
                need: "a divisor of the number of ranks",
            }),
        };
        let row = Arc::new(all.split(color)?);
        Ok(Self { all, row })
    }

    /// All ranks.
    pub fn all(&self) -> &Arc<Group> {
        &self.all
    }

    /// The ranks of this rank's row, which share sequences.
    pub fn row(&self) -> &Arc<Group> {
        &self.row
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.all.size() / self.row.size()
    }

    /// This rank's row, from 0.
    pub fn row_number(&self) -> usize {
        self.all.rank() / self.row.size()
    }
}
