//! xPos: relative positions with decay (Sun et al. 2022), as torchscale applies them before attention
//! (`torchscale/component/xpos_relative_position.py`).
//!
//! Pair `i` of a head of size `d` at position `p` is rotated by the angle `p * 10000^(-2i/d)` and scaled by `zeta_i^((p - c) /
//! base)` for queries, or its inverse for keys, where `zeta_i = (2i + 0.4d) / 1.4d` and `c` is a centre. In the product of a query
//! and a key the centre cancels.
//!
//! torchscale takes the middle of the sequence as the centre, and overflows f32 near 72 000 tokens (base 512). Here it is the
//! middle of a block of positions: the whole sequence if that is short enough, else a segment. A query and the keys that it sees
//! must be in the same block.

use super::{Matrix, grid, row_windows, size};
use crate::config::{MAX_HEAD_DIM, MAX_TOKENS};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::kernels::xpos::{Xpos, XposParams};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Number of positions from one coarse rotation to the next, and number of fine rotations.
const FINE: u32 = 256;

/// Whether vectors are queries or keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XposRole {
    /// Queries, which are scaled by `zeta^((p - c) / base)`.
    Query,
    /// Keys, which are scaled by `zeta^(-(p - c) / base)`.
    Key,
}

/// Table of rotations on the device, for all positions below a limit and heads of one size.
#[derive(Clone, Debug)]
pub struct Rotations {
    table: Tensor,
    pairs: u32,
    num_positions: usize,
    scale_base: f32,
}

impl Rotations {
    /// Uploads rotations of positions `0 .. num_positions` for heads of `head_dim` elements. `scale_base` is the base of the scales
    /// (torchscale: 512). Angles are computed in f64, from frequencies in f32 as torchscale has them.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a `head_dim` that is not a multiple of 4 or above 256, for more positions than a sequence may
    /// have, or for a base that is not positive; the errors of uploading.
    pub fn upload(
        recorder: &mut Recorder,
        head_dim: usize,
        num_positions: usize,
        scale_base: f32,
    ) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(4) || head_dim > MAX_HEAD_DIM {
            return Err(Error::InvalidConfig {
                what: "head_dim of xPos",
                given: head_dim.to_string(),
                need: "a multiple of 4 up to 256, as attention takes",
            });
        }
        if num_positions > MAX_TOKENS {
            return Err(Error::InvalidConfig {
                what: "positions of xPos",
                given: num_positions.to_string(),
                need: "at most 2^31 - 1, as a sequence has",
            });
        }
        if !(scale_base > 0.0 && scale_base.is_finite()) {
            return Err(Error::InvalidConfig {
                what: "scale base of xPos",
                given: scale_base.to_string(),
                need: "a positive number",
            });
        }
        let pairs = size("head_dim of xPos", head_dim as u64)? / 2;
        let frequencies: Vec<f64> = (0..pairs)
            .map(|i| f64::from((1.0 / 10_000f64.powf(f64::from(i) / f64::from(pairs))) as f32))
            .collect();
        let fine = u64::from(FINE);
        let coarse = (0..(num_positions as u64).div_ceil(fine).max(1)).map(|i| i * fine);
        let rotations: Vec<f32> = (0..u64::from(FINE))
            .chain(coarse)
            .flat_map(|position| {
                frequencies.iter().flat_map(move |frequency| {
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    [cos as f32, sin as f32]
                })
            })
            .collect();
        let rows = rotations.len() / (2 * pairs as usize);
        Ok(Self {
            table: recorder.upload_undivided(
                "rotations",
                &[rows, pairs as usize, 2],
                &rotations,
            )?,
            pairs,
            num_positions,
            scale_base,
        })
    }

    /// Number of positions that the table has rotations of.
    pub fn num_positions(&self) -> usize {
        self.num_positions
    }
}

/// Positions of the rows of a matrix, and the block of positions that share a centre.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Rows of one batch item.
    pub seq_len: usize,
    /// Position of the first row of an item.
    pub first: usize,
    /// Number of positions in a block.
    pub block: usize,
    /// Place of the centre in its block.
    pub centre: usize,
}

/// Records that all heads in the rows of `x` are rotated and scaled by their positions, in place. With `inverse` they are rotated
/// back and scaled as before. This is the transposed operation, which gradients need.
///
/// # Errors
/// [`Error::InvalidShape`] when the width is not a multiple of the head size, or a position has no rotation;
/// [`Error::WrongDType`], [`Error::ContextMismatch`]; the errors of recording.
pub fn xpos(
    recorder: &mut Recorder,
    rotations: &Rotations,
    x: Matrix<'_>,
    role: XposRole,
    positions: Positions,
    inverse: bool,
) -> Result<()> {
    let (rows, width) = (x.num_rows(), x.width);
    let head_dim = 2 * u64::from(rotations.pairs);
    // The kernel needs a sequence of at least one row if there are rows at all.
    let seq_len = (positions.seq_len as u64).max(rows.min(1));
    let end = (positions.first as u64).saturating_add(seq_len);
    if !width.is_multiple_of(head_dim) || end > rotations.num_positions as u64 {
        return Err(Error::InvalidShape {
            what: "x of xPos".into(),
            given: format!("rows of {width} up to position {end}"),
            need: format!(
                "rows of heads of {head_dim} at positions below {}",
                rotations.num_positions
            ),
        });
    }
    let format = x.expect_activations("x", rows, width, recorder)?;
    let table = rotations.table.matrix();
    table.expect("rotations", table.num_rows(), 2, DType::F32, recorder)?;
    let caps = recorder.context().caps().clone();
    let num_heads = width / head_dim;
    let per_position = 1.0 / rotations.scale_base;
    for (begin, end) in row_windows("x", rows, &[x], &caps)? {
        let bound = x.bind_units(begin, end, 4, &caps)?;
        let places = (end - begin) * num_heads;
        let quads = rotations.pairs / 2;
        let num_workgroups = (places * u64::from(quads)).div_ceil(64);
        let grid = grid("xPos", num_workgroups, &caps)?;
        let params = XposParams {
            num_places: size("places", places)?,
            num_heads: size("heads", num_heads)?,
            quads,
            seq_len: size("positions", positions.seq_len.max(1) as u64)?,
            first_row: size("rows", begin)?,
            skip: bound.skip,
            coarse_begin: FINE,
            first_position: size("positions", positions.first as u64)?,
            block: size("positions of a block", positions.block.max(1) as u64)?,
            centre: size("centre of a block", positions.centre as u64)?,
            scale_per_position: match role {
                XposRole::Query => per_position,
                XposRole::Key => -per_position,
            },
            inverse: u32::from(inverse),
            first_workgroup: 0,
            grid_width: grid[0],
        };
        let rotations = table.bind(0, table.num_rows(), &caps)?;
        let bindings = [rotations.binding, bound.binding];
        recorder.reads(x.tensor);
        recorder.dispatch(Xpos { format }, &bindings, &params, grid)?;
    }
    Ok(())
}
