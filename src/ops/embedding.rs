//! Embeddings: rows of a table, looked up by id.

use super::{Matrix, grid, row_windows, size};
use crate::device::{DType, DeviceCaps};
use crate::error::{Error, Result};
use crate::kernels::VectorWidth;
use crate::kernels::embedding::{
    Embedding, EmbeddingBackward, EmbeddingBackwardParams, EmbeddingParams,
};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Token ids on the device, checked at upload. Also holds them sorted, for the backward.
#[derive(Clone, Debug)]
pub struct TokenIds {
    ids: Tensor,
    /// The largest id and the index of its first occurrence; `None` without ids.
    largest: Option<(u32, u64)>,
    blocks: Vec<Block>,
}

/// Consecutive rows, sorted by id: as many as bindings cover.
#[derive(Clone, Debug)]
struct Block {
    rows: std::ops::Range<u64>,
    /// Rows of the block, counted from its first, sorted by id. Rows with the same id keep their order.
    order: Tensor,
    /// (id, begin, end) of each id that occurs: its rows are `order[begin..end]`. The tensor always has as many entries as there
    /// may be at most, so that its size does not depend on the ids. Unused entries have an id that no table has.
    runs: Tensor,
}

impl Block {
    fn upload(
        recorder: &mut Recorder,
        ids: &[u32],
        first_row: u64,
        num_table_rows: usize,
    ) -> Result<Self> {
        let count = size("tokens", ids.len() as u64)?;
        let mut order: Vec<u32> = (0..count).collect();
        // The sort is stable: rows with the same id keep their order.
        order.sort_by_key(|row| ids[*row as usize]);
        let most = ids.len().min(num_table_rows);
        let mut runs: Vec<[u32; 3]> = Vec::with_capacity(most);
        for (at, &row) in (0..).zip(&order) {
            let id = ids[row as usize];
            match runs.last_mut() {
                Some([run, _, end]) if *run == id => *end = at + 1,
                _ => runs.push([id, at, at + 1]),
            }
        }
        runs.resize(most, [u32::MAX, 0, 0]);
        Ok(Self {
            rows: first_row..first_row + u64::from(count),
            order: recorder.upload_undivided("token order", &[ids.len()], &order)?,
            runs: recorder.upload_undivided("token runs", &[runs.len(), 3], runs.as_flattened())?,
        })
    }

    /// Most rows of a block, whose runs have 12 bytes each.
    fn most_rows(caps: &DeviceCaps) -> u64 {
        let covered = caps.max_binding_bytes / 12;
        caps.part_rows
            .map_or(covered, |rows| rows.min(covered))
            .max(1)
    }
}

impl TokenIds {
    /// Uploads `ids` for a table of `num_rows` rows.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] names the first id that is not below `num_rows`; the errors of uploading.
    pub fn upload(recorder: &mut Recorder, ids: &[u32], num_rows: usize) -> Result<Self> {
        if let Some((index, &id)) = ids
            .iter()
            .enumerate()
            .find(|(_, id)| **id as usize >= num_rows)
        {
            return Err(Error::TokenOutOfRange {
                what: "token",
                index: index as u64,
                given: id,
                limit: num_rows,
            });
        }
        let largest = largest(ids.iter().copied());
        let block_rows = Block::most_rows(recorder.context().caps()) as usize;
        let uploaded = recorder.upload("token ids", &[ids.len()], ids)?;
        let blocks = (0..).step_by(block_rows).zip(ids.chunks(block_rows));
        let blocks =
            blocks.map(|(first, ids)| Block::upload(recorder, ids, first as u64, num_rows));
        Ok(Self {
            largest,
            ids: uploaded,
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.ids.num_elements() as usize
    }

    /// Checks that a table of `rows` rows has all ids. At upload they were checked against a number that the caller gave.
    fn expect_below(&self, rows: u64) -> Result<()> {
        expect_below("token", self.largest, rows)
    }

    /// Whether there are no ids.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The largest of `ids` and the index of its first occurrence.
pub(super) fn largest(ids: impl Iterator<Item = u32>) -> Option<(u32, u64)> {
    let larger = |largest: Option<(u32, u64)>, (index, id): (u64, u32)| match largest {
        Some((max, _)) if max >= id => largest,
        _ => Some((id, index)),
    };
    (0..).zip(ids).fold(None, larger)
}

/// Checks that the largest id is below `limit`.
pub(super) fn expect_below(
    what: &'static str,
    largest: Option<(u32, u64)>,
    limit: u64,
) -> Result<()> {
    match largest {
        Some((given, index)) if u64::from(given) >= limit => Err(Error::TokenOutOfRange {
            what,
            index,
            given,
            // Fits in a usize: at most the id, which has 32 bits.
            limit: limit as usize,
        }),
        _ => Ok(()),
    }
}
/// Records `out[r] = scale * table[ids[r]]` for each row r or, with the flag, `out[r] += scale * table[ids[r]]`. The table is f32;
/// `out` is f32, f16 or bf16.
///
/// # Errors
/// [`Error::TokenOutOfRange`] for ids that the table does not have; [`Error::InvalidShape`], [`Error::WrongDType`],
/// [`Error::ContextMismatch`] for matrices that do not fit, and the errors of recording.
pub fn embedding(
    recorder: &mut Recorder,
    ids: &TokenIds,
    table: Matrix<'_>,
    scale: f32,
    (out, accumulate): (Matrix<'_>, bool),
) -> Result<()> {
    let width = table.width;
    ids.expect_below(table.num_rows())?;
    let ids = ids.ids.vector().in_rows_of(1)?;
    ids.expect("token ids", ids.num_rows(), 1, DType::U32, recorder)?;
    table.expect_f32("table", table.num_rows(), width, recorder)?;
    let vector_width =
        VectorWidth::smallest(out.expect_activations("out", ids.num_rows(), width, recorder)?);
    let caps = recorder.context().caps().clone();
    let tables = row_windows("table", table.num_rows(), &[table], &caps)?;
    for (begin, end) in row_windows("out", ids.num_rows(), &[ids, out], &caps)? {
        for &(first_id, last_id) in &tables {
            let ids = ids.bind(begin, end, &caps)?;
            let out = out.bind_units(begin, end, vector_width.elements(), &caps)?;
            let table = table.bind_units(first_id, last_id, vector_width.elements(), &caps)?;
            let vectors = width / vector_width.elements();
            let tiles_x = vectors.div_ceil(64);
            let grid = grid("embedding", tiles_x * (end - begin), &caps)?;
            let params = EmbeddingParams {
                rows: size("rows", end - begin)?,
                width: size("width", vectors)?,
                first_id: size("id", first_id)?,
                num_ids: size("ids", last_id - first_id)?,
                ids_skip: ids.skip,
                table_skip: table.skip,
                out_skip: out.skip,
                accumulate: u32::from(accumulate),
                scale,
                tiles_x: size("tiles", tiles_x)?,
                first_workgroup: 0,
                grid_width: grid[0],
            };
            let bindings = [ids.binding, table.binding, out.binding];
            if accumulate {
                recorder.reads(out.binding.0);
            }
            recorder.dispatch(Embedding { vector_width }, &bindings, &params, grid)?;
        }
    }
    Ok(())
}

/// Records that the gradient of the table of an [`embedding`] is added to `dtable`. `dout` is the gradient of its result.
///
/// # Errors
/// As [`embedding`].
pub fn embedding_backward(
    recorder: &mut Recorder,
    ids: &TokenIds,
    dout: Matrix<'_>,
    scale: f32,
    dtable: Matrix<'_>,
) -> Result<()> {
    let width = dtable.width;
    ids.expect_below(dtable.num_rows())?;
    let num_ids = ids.len() as u64;
    dout.expect_f32("dout", num_ids, width, recorder)?;
    dtable.expect_f32("dtable", dtable.num_rows(), width, recorder)?;
    let caps = recorder.context().caps().clone();
    let tables = row_windows("dtable", dtable.num_rows(), &[dtable], &caps)?;
    for block in &ids.blocks {
        let (order, runs) = (block.order.vector().in_rows_of(1)?, block.runs.matrix());
        let num_rows = order.num_rows();
        order.expect("token order", num_rows, 1, DType::U32, recorder)?;
        let dout = dout.slice_rows(block.rows.start, block.rows.end)?;
        for (begin, end) in row_windows("dout", num_rows, &[dout], &caps)? {
            for &(first_id, last_id) in &tables {
                let table = dtable.bind(first_id, last_id, &caps)?;
                let dout = dout.bind(begin, end, &caps)?;
                let tiles_x = width.div_ceil(64);
                let grid = grid("embedding", tiles_x * runs.num_rows(), &caps)?;
                let params = EmbeddingBackwardParams {
                    num_runs: size("ids", runs.num_rows())?,
                    width: size("width", width)?,
                    first_row: size("rows", begin)?,
                    num_rows: size("rows", end - begin)?,
                    first_id: size("id", first_id)?,
                    num_ids: size("ids", last_id - first_id)?,
                    dout_skip: dout.skip,
                    table_skip: table.skip,
                    scale,
                    tiles_x: size("tiles", tiles_x)?,
                    first_workgroup: 0,
                    grid_width: grid[0],
                };
                let bindings = [
                    runs.bind(0, runs.num_rows(), &caps)?.binding,
                    order.bind(0, num_rows, &caps)?.binding,
                    dout.binding,
                    table.binding,
                ];
                recorder.reads(dtable.tensor);
                recorder.dispatch(EmbeddingBackward, &bindings, &params, grid)?;
            }
        }
    }
    Ok(())
}
