//! Sums over many elements.

use super::elementwise::{ScaledAdd, elementwise};
use super::matmul::column_sums;
use super::{Matrix, grid, row_windows, size};
use crate::device::{DType, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::VectorWidth;
use crate::kernels::convert::Convert;
use crate::kernels::reduce::{BLOCK, Reduce, ReduceParams};
use crate::kernels::sum_partials::{SumPartials, SumPartialsParams};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Records the sum of all elements of `tensors` (f32), and returns a tensor with this one element.
///
/// # Errors
/// [`Error::WrongDType`](crate::Error::WrongDType), [`Error::ContextMismatch`](crate::Error::ContextMismatch), and the errors
/// of leasing and recording.
pub fn sum(recorder: &mut Recorder, tensors: &[&Tensor]) -> Result<Tensor> {
    reduce(recorder, tensors, false)
}

/// Records the sum of the squares of all elements of `tensors` (f32), and returns a tensor with this one element.
///
/// # Errors
/// As [`sum`].
pub fn sum_of_squares(recorder: &mut Recorder, tensors: &[&Tensor]) -> Result<Tensor> {
    reduce(recorder, tensors, true)
}

/// Approximate bytes of a window of rows that is converted to f32 at a time.
const WIDENED_BYTES: u64 = 8 << 20;

/// Records the mean of the rows of `x`, which is f32, f16 or bf16. Returns a tensor (1, width), f32.
///
/// # Errors
/// [`Error::InvalidShape`](crate::Error::InvalidShape) without rows, [`Error::WrongDType`](crate::Error::WrongDType),
/// [`Error::ContextMismatch`](crate::Error::ContextMismatch), and the errors of leasing and recording.
pub fn mean_of_rows(recorder: &mut Recorder, x: Matrix<'_>) -> Result<Tensor> {
    let (rows, width) = (x.num_rows(), x.width);
    let format = x.expect_activations("x", rows, width, recorder)?;
    if rows == 0 {
        return Err(Error::InvalidShape {
            what: "x".into(),
            given: "no rows".to_owned(),
            need: "at least one, to have a mean".to_owned(),
        });
    }
    let shape = [1, width as usize];
    let sums = recorder.zeros("sums", &shape, DType::F32)?;
    let window = match format {
        ElementFormat::F32 => rows,
        _ => (WIDENED_BYTES / (4 * width.max(1))).max(1),
    };
    let mut begin = 0;
    while begin < rows {
        let end = rows.min(begin + window);
        let part = x.slice_rows(begin, end)?;
        match format {
            ElementFormat::F32 => column_sums(recorder, part, None, &[sums.matrix()])?,
            _ => {
                let dims = [(end - begin) as usize, width as usize];
                let wide = recorder.empty("widened", &dims, DType::F32)?;
                let kernel = Convert {
                    format,
                    widens: true,
                };
                elementwise(
                    recorder,
                    kernel.into(),
                    VectorWidth::Vec4(format),
                    part,
                    wide.matrix(),
                )?;
                column_sums(recorder, wide.matrix(), None, &[sums.matrix()])?;
            }
        }
        begin = end;
    }
    let mean = recorder.empty("mean", &shape, DType::F32)?;
    ScaledAdd::new(sums.matrix(), 1.0 / rows as f32).write(recorder, mean.matrix())?;
    Ok(mean)
}

fn reduce(recorder: &mut Recorder, tensors: &[&Tensor], squares: bool) -> Result<Tensor> {
    let caps = recorder.context().caps().clone();
    let mut pieces = Vec::new();
    for tensor in tensors {
        let elements = tensor.vector().in_rows_of(1)?;
        let count = elements.num_rows();
        elements.expect_f32("tensor", count, 1, recorder)?;
        let windows = row_windows("tensor", count, &[elements], &caps)?;
        pieces.extend(
            windows
                .into_iter()
                .map(|(begin, end)| (elements, begin, end)),
        );
    }
    let num_sums: u64 = pieces
        .iter()
        .map(|(_, begin, end)| (end - begin).div_ceil(BLOCK))
        .sum();
    let sums = recorder.undivided("sums", &[num_sums.max(1) as usize], DType::F32)?;
    recorder.clear(&sums, sums.whole());
    let mut at = 0;
    for (elements, begin, end) in pieces {
        let blocks = (end - begin).div_ceil(BLOCK);
        let bound = elements.bind(begin, end, &caps)?;
        let out = sums.vector().in_rows_of(1)?.bind(at, at + blocks, &caps)?;
        let grid = grid("sum", blocks, &caps)?;
        let params = ReduceParams {
            count: size("elements", end - begin)?,
            x_skip: bound.skip,
            out_skip: out.skip,
            first_workgroup: 0,
            grid_width: grid[0],
        };
        let kernel = Reduce { squares };
        recorder.dispatch(kernel, &[bound.binding, out.binding], &params, grid)?;
        at += blocks;
    }
    match num_sums {
        0 | 1 => Ok(sums),
        _ => reduce(recorder, &[&sums], false),
    }
}

/// Writes the sum of `count` partial results to `out`, or adds it. They lie one after the other in `partials`, each as large as `out`.
pub(super) fn add_partials(
    recorder: &mut Recorder,
    partials: &Tensor,
    count: u64,
    out: Matrix<'_>,
    accumulate: bool,
) -> Result<()> {
    let elements = out.num_rows() * out.width;
    let partials = partials.vector().in_rows_of(1)?;
    add_strided(recorder, partials, (0, elements), count, out, accumulate)
}

/// Writes the sum of `count` partial results to `out`, or adds it. Each is as large as `out`; the first begins at element `first`
/// of `partials`, each other one `stride` elements later.
pub(super) fn add_strided(
    recorder: &mut Recorder,
    partials: Matrix<'_>,
    (first, stride): (u64, u64),
    count: u64,
    out: Matrix<'_>,
    accumulate: bool,
) -> Result<()> {
    let caps = recorder.context().caps().clone();
    let elements = out.num_rows() * out.width;
    let partials = partials.in_rows_of(1)?;
    let from = partials.bind(0, partials.num_rows(), &caps)?;
    let to = out.bind(0, out.num_rows(), &caps)?;
    let grid = grid("sum", elements.div_ceil(64), &caps)?;
    let params = SumPartialsParams {
        count: size("elements", elements)?,
        num_partials: size("partials", count)?,
        partials_skip: size("partials", u64::from(from.skip) + first)?,
        stride: size("partials", stride)?,
        out_skip: to.skip,
        accumulate: u32::from(accumulate),
        first_workgroup: 0,
        grid_width: grid[0],
    };
    if accumulate {
        recorder.reads(out.tensor);
    }
    recorder.dispatch(SumPartials, &[from.binding, to.binding], &params, grid)
}
