//! Norms of rows: layer norm (Ba, Kiros and Hinton 2016) and RMS norm (Zhang and Sennrich 2019).

use super::matmul::column_sums;
use super::{Matrix, grid, row_windows, size};
use crate::device::{DType, ElementFormat};
use crate::error::Result;
use crate::kernels::VectorWidth;
use crate::kernels::norm::{Norm, NormBackward, NormParams, ROWS};
use crate::recorder::Recorder;

/// Records the layer norm `y = (x - mean) / sqrt(variance + eps) * weight + bias`, with mean and (population) variance of each row.
/// `x` and `y` have the same type, `weight` and `bias` are f32.
///
/// # Errors
/// [`Error::InvalidShape`](crate::Error::InvalidShape), [`Error::WrongDType`](crate::Error::WrongDType),
/// [`Error::ContextMismatch`](crate::Error::ContextMismatch) for matrices that do not fit, and the errors of recording.
pub fn layer_norm<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    [weight, bias]: [Matrix<'a>; 2],
    eps: f32,
    y: Matrix<'a>,
) -> Result<()> {
    forward(recorder, x, weight, Some(bias), eps, y)
}

/// Records the RMS norm `y = x / sqrt(m + eps) * weight`, where m is the mean of the squares of each row. `x` and `y` have the same
/// type, `weight` is f32.
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    weight: Matrix<'a>,
    eps: f32,
    y: Matrix<'a>,
) -> Result<()> {
    forward(recorder, x, weight, None, eps, y)
}
/// Records the gradients of a [`layer_norm`]. The gradient of `x` is written to `dx` or, with the flag, added to it. The gradients
/// of weight and bias are added to `sums`.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_backward<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    weight: Matrix<'a>,
    eps: f32,
    dy: Matrix<'a>,
    dx: (Matrix<'a>, bool),
    sums: [Matrix<'a>; 2],
) -> Result<()> {
    backward(recorder, x, weight, eps, dy, dx, &sums)
}
/// Records the gradients of an [`rms_norm`]. The gradient of `x` is written to `dx` or, with the flag, added to it. The gradient of
/// the weight is added to `dweight`.
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm_backward<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    weight: Matrix<'a>,
    eps: f32,
    dy: Matrix<'a>,
    dx: (Matrix<'a>, bool),
    dweight: Matrix<'a>,
) -> Result<()> {
    backward(recorder, x, weight, eps, dy, dx, &[dweight])
}

/// Records a layer norm if there is a bias, else an RMS norm.
fn forward<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    weight: Matrix<'a>,
    bias: Option<Matrix<'a>>,
    eps: f32,
    y: Matrix<'a>,
) -> Result<()> {
    let (rows, width) = (x.num_rows(), x.width);
    let format = x.expect_activations("x", rows, width, recorder)?;
    y.expect("y", rows, width, x.dtype(), recorder)?;
    weight.expect_f32("weight", 1, width, recorder)?;
    if let Some(bias) = bias {
        bias.expect_f32("bias", 1, width, recorder)?;
    }
    let caps = recorder.context().caps().clone();
    let vector_width = VectorWidth::of(width, format);
    let centred = bias.is_some();
    for (begin, end) in row_windows("x", rows, &[x, y], &caps)? {
        let bind = |matrix: Matrix<'a>, begin, end| {
            matrix.bind_units(begin, end, vector_width.elements(), &caps)
        };
        let (x, y) = (bind(x, begin, end)?, bind(y, begin, end)?);
        let weight = bind(weight, 0, 1)?;
        let bias = bias.map(|bias| bind(bias, 0, 1)).transpose()?;
        let grid = grid("norm", (end - begin).div_ceil(ROWS), &caps)?;
        let params = NormParams {
            rows: size("rows", end - begin)?,
            width: size("width", width)?,
            x_skip: x.skip,
            y_skip: y.skip,
            weight_skip: weight.skip,
            bias_skip: bias.as_ref().map_or(0, |bias| bias.skip),
            eps,
            grid_width: grid[0],
            ..Default::default()
        };
        let mut bindings = vec![x.binding, weight.binding, y.binding];
        bindings.extend(bias.map(|bias| bias.binding));
        recorder.dispatch(
            Norm {
                centred,
                vector_width,
            },
            &bindings,
            &params,
            grid,
        )?;
    }
    Ok(())
}

/// Records the gradients of a norm. `sums` are the gradients of weight and bias of a layer norm, or of the weight of an RMS norm.
fn backward<'a>(
    recorder: &mut Recorder,
    x: Matrix<'a>,
    weight: Matrix<'a>,
    eps: f32,
    dy: Matrix<'a>,
    (dx, accumulate): (Matrix<'a>, bool),
    sums: &[Matrix<'a>],
) -> Result<()> {
    let (rows, width) = (x.num_rows(), x.width);
    for (what, matrix) in [("x", x), ("dy", dy), ("dx", dx)] {
        matrix.expect_f32(what, rows, width, recorder)?;
    }
    weight.expect_f32("weight", 1, width, recorder)?;
    for (what, matrix) in ["dweight", "dbias"].into_iter().zip(sums) {
        matrix.expect_f32(what, 1, width, recorder)?;
    }
    let caps = recorder.context().caps().clone();
    let vector_width = VectorWidth::of(width, ElementFormat::F32);
    let centred = sums.len() == 2;
    let stats = recorder.empty("row statistics", &[rows as usize, 2], DType::F32)?;
    for (begin, end) in row_windows("x", rows, &[x, dy, dx, stats.matrix()], &caps)? {
        let bind = |matrix: Matrix<'a>, begin, end| {
            matrix.bind_units(begin, end, vector_width.elements(), &caps)
        };
        let (x, dy, dx) = (
            bind(x, begin, end)?,
            bind(dy, begin, end)?,
            bind(dx, begin, end)?,
        );
        let weight = bind(weight, 0, 1)?;
        let stats = stats.matrix().bind(begin, end, &caps)?;
        let grid = grid("norm", (end - begin).div_ceil(ROWS), &caps)?;
        let params = NormParams {
            rows: size("rows", end - begin)?,
            width: size("width", width)?,
            x_skip: x.skip,
            y_skip: dy.skip,
            out_skip: dx.skip,
            stats_skip: stats.skip,
            weight_skip: weight.skip,
            accumulate: u32::from(accumulate),
            eps,
            grid_width: grid[0],
            ..Default::default()
        };
        let bindings = [
            x.binding,
            weight.binding,
            dy.binding,
            dx.binding,
            stats.binding,
        ];
        if accumulate {
            recorder.reads(dx.binding.0);
        }
        recorder.dispatch(
            NormBackward {
                centred,
                vector_width,
            },
            &bindings,
            &params,
            grid,
        )?;
    }
    column_sums(recorder, dy, Some((x, stats.matrix())), sums)
}
