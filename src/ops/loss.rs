//! Cross-entropy of logits with labels.

use super::embedding::{expect_below, largest};
use super::{Matrix, grid, row_windows, size};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::kernels::cross_entropy::{CrossEntropy, CrossEntropyParams};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Marks a row without a label. Its loss and gradient are 0.
pub const IGNORED_LABEL: u32 = u32::MAX;

/// Rows that one workgroup computes.
const ROWS: u64 = 8;

/// Labels of rows on the device, checked at upload.
#[derive(Clone, Debug)]
pub struct Labels {
    labels: Tensor,
    counted: usize,
    /// The largest label and the index of its first occurrence; `None` if all are [`IGNORED_LABEL`].
    largest: Option<(u32, u64)>,
}

impl Labels {
    /// Uploads `labels`, one for each row: below `num_classes`, or [`IGNORED_LABEL`].
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] names the first label that is neither; the errors of uploading.
    pub fn upload(recorder: &mut Recorder, labels: &[u32], num_classes: usize) -> Result<Self> {
        let wrong = labels
            .iter()
            .enumerate()
            .find(|(_, label)| **label as usize >= num_classes && **label != IGNORED_LABEL);
        if let Some((index, &label)) = wrong {
            return Err(Error::TokenOutOfRange {
                what: "label",
                index: index as u64,
                given: label,
                limit: num_classes,
            });
        }
        let counted = labels
            .iter()
            .filter(|label| **label != IGNORED_LABEL)
            .count();
        // Plus 1, so that IGNORED_LABEL wraps around to 0, the smallest.
        let largest = largest(labels.iter().map(|label| label.wrapping_add(1)))
            .and_then(|(shifted, index)| Some((shifted.checked_sub(1)?, index)));
        Ok(Self {
            largest,
            labels: recorder.upload("labels", &[labels.len()], labels)?,
            counted,
        })
    }

    /// Number of rows, those without a label included.
    pub fn len(&self) -> usize {
        self.labels.num_elements() as usize
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows that have a label.
    pub fn counted(&self) -> usize {
        self.counted
    }
}

/// Records the cross-entropy of each row of `logits`, `ln(sum(exp(logits))) - logits[label]` in nats, written to `losses`. `logits`
/// is replaced by `gradient_scale` times its gradient. The label of the first row of `logits` is number `first_row` of `labels`.
///
/// # Errors
/// [`Error::TokenOutOfRange`] for labels that are not classes of `logits`; [`Error::InvalidShape`], [`Error::WrongDType`],
/// [`Error::ContextMismatch`] for matrices that do not fit, and the errors of recording.
pub fn cross_entropy(
    recorder: &mut Recorder,
    logits: Matrix<'_>,
    (labels, first_row): (&Labels, usize),
    gradient_scale: f32,
    losses: Matrix<'_>,
) -> Result<()> {
    let (rows, width) = (logits.num_rows(), logits.width);
    // At upload, labels were checked against a number of classes that the caller gave.
    expect_below("label", labels.largest, width)?;
    let labels = labels
        .labels
        .vector()
        .in_rows_of(1)?
        .slice_rows(first_row as u64, (first_row as u64).saturating_add(rows))?;
    labels.expect("labels", rows, 1, DType::U32, recorder)?;
    logits.expect_f32("logits", rows, width, recorder)?;
    losses.expect_f32("losses", rows, 1, recorder)?;
    let caps = recorder.context().caps().clone();
    for (begin, end) in row_windows("logits", rows, &[logits, labels, losses], &caps)? {
        let labels = labels.bind(begin, end, &caps)?;
        let logits = logits.bind(begin, end, &caps)?;
        let losses = losses.bind(begin, end, &caps)?;
        let grid = grid("cross-entropy", (end - begin).div_ceil(ROWS), &caps)?;
        let params = CrossEntropyParams {
            rows: size("rows", end - begin)?,
            width: size("classes", width)?,
            logits_skip: logits.skip,
            labels_skip: labels.skip,
            losses_skip: losses.skip,
            gradient_scale,
            first_workgroup: 0,
            grid_width: grid[0],
        };
        let bindings = [labels.binding, logits.binding, losses.binding];
        recorder.reads(logits.binding.0);
        recorder.dispatch(CrossEntropy, &bindings, &params, grid)?;
    }
    Ok(())
}
