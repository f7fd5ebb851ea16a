//! RMS norm of rows (Zhang and Sennrich 2019).

use super::matmul::column_sums;
use super::{Matrix, grid, row_windows, size};
use crate::device::{DType, Storage};
use crate::error::Result;
use crate::kernels::Cell;
use crate::kernels::rms_norm::{ROWS, RmsNorm, RmsNormBackward, RmsNormParams};
use crate::recorder::Recorder;

/// Records `y = x / sqrt(m + eps) * gain`, m the mean of the squares of each row. `x` and `y` are activations of one type, `gain` is f32.
///
/// # Errors
/// [`Error::InvalidShape`](crate::Error::InvalidShape), [`Error::WrongDType`](crate::Error::WrongDType),
/// [`Error::ForeignDevice`](crate::Error::ForeignDevice) for matrices that do not fit, and the errors of recording.
pub fn rms_norm<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    gain: Matrix<'a>,
    eps: f32,
    y: Matrix<'a>,
) -> Result<()> {
    let (rows, width) = (x.rows(), x.width());
    let storage = x.expect_activations("x", rows, width, recorder)?;
    y.expect("y", rows, width, x.dtype(), recorder)?;
    gain.expect_f32("gain", 1, width, recorder)?;
    let facts = recorder.context().facts().clone();
    let cell = Cell::of(width, storage);
    for (begin, end) in row_windows("x", rows, &[x, y], &facts)? {
        let bind =
            |matrix: Matrix<'a>, begin, end| matrix.bind_units(begin, end, cell.elements(), &facts);
        let (x, y, gain) = (
            bind(x, begin, end)?,
            bind(y, begin, end)?,
            bind(gain, 0, 1)?,
        );
        let grid = grid("RMS norm", (end - begin).div_ceil(ROWS), &facts)?;
        let params = RmsNormParams {
            rows: size("rows", end - begin)?,
            width: size("width", width)?,
            x_skip: x.skip,
            y_skip: y.skip,
            gain_skip: gain.skip,
            eps,
            grid_width: grid[0],
            ..Default::default()
        };
        let bindings = [x.binding, gain.binding, y.binding];
        recorder.dispatch(RmsNorm { cell }, &bindings, &params, grid)?;
    }
    Ok(())
}

/// Records the gradients of an [`rms_norm`] of `x`: that of `x` is written to `dx`, or added to it; that of the gain is added to `dgain`.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_backward<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    gain: Matrix<'a>,
    eps: f32,
    dy: Matrix<'a>,
    (dx, accumulate): (Matrix<'a>, bool),
    dgain: Matrix<'a>,
) -> Result<()> {
    let (rows, width) = (x.rows(), x.width());
    for (what, matrix) in [("x", x), ("dy", dy), ("dx", dx)] {
        matrix.expect_f32(what, rows, width, recorder)?;
    }
    for (what, matrix) in [("gain", gain), ("dgain", dgain)] {
        matrix.expect_f32(what, 1, width, recorder)?;
    }
    let facts = recorder.context().facts().clone();
    let cell = Cell::of(width, Storage::F32);
    let stats = recorder.empty("row statistics", &[rows as usize, 2], DType::F32)?;
    for (begin, end) in row_windows("x", rows, &[x, dy, dx, stats.matrix()], &facts)? {
        let bind =
            |matrix: Matrix<'a>, begin, end| matrix.bind_units(begin, end, cell.elements(), &facts);
        let (x, dy, dx, gain) = (
            bind(x, begin, end)?,
            bind(dy, begin, end)?,
            bind(dx, begin, end)?,
            bind(gain, 0, 1)?,
        );
        let stats = stats.matrix().bind(begin, end, &facts)?;
        let grid = grid("RMS norm", (end - begin).div_ceil(ROWS), &facts)?;
        let params = RmsNormParams {
            rows: size("rows", end - begin)?,
            width: size("width", width)?,
            x_skip: x.skip,
            y_skip: dy.skip,
            out_skip: dx.skip,
            stats_skip: stats.skip,
            gain_skip: gain.skip,
            accumulate: u32::from(accumulate),
            eps,
            grid_width: grid[0],
            ..Default::default()
        };
        let bindings = [
            x.binding,
            gain.binding,
            dy.binding,
            dx.binding,
            stats.binding,
        ];
        if accumulate {
            recorder.reads(dx.binding.0);
        }
        recorder.dispatch(RmsNormBackward { cell }, &bindings, &params, grid)?;
    }
    column_sums(recorder, dy, Some((x, stats.matrix())), &[dgain])
}
