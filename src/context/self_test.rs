//! The self test of cooperative matrices. Kernels use only matrices that have passed it.
//!
//! What an adapter lists need not be true: the feature is experimental in wgpu, drivers are young, and nothing guarantees which
//! lanes make up a subgroup. So the matmul kernel computes products whose results are known exactly: of whole numbers that fit in
//! f16, with sums that fit in f32. The products exercise everything that kernels do with matrices: both orders of loading, sums
//! over several steps, a slab for each subgroup, stores that other lanes read, and edges that do not fill a matrix.

use std::time::Duration;

use super::Context;
use crate::device::{CooperativeMatrix, ElementFormat, NoCooperativeMatrix};
use crate::error::Result;
use crate::kernels::VectorWidth;
use crate::kernels::activation::Activation;
use crate::kernels::matmul::{CoopProduct, MatmulKernel, MatmulParams, MatmulVariant};

/// Rows, inner elements and columns of the product. Every subgroup has some of them, none is a multiple of a tile, and they fit in
/// small bindings.
const SIZES: [u32; 3] = [100, 44, 36];

/// Whether the left and the right factor are transposed. Together the two products load both factors in both orders.
const TRANSPOSED: [(bool, bool); 2] = [(false, true), (true, false)];

/// How often the device is polled.
const POLL_PERIOD: Duration = Duration::from_millis(1);

/// Runs the self test.
///
/// # Errors
/// [`NoCooperativeMatrix::SelfTestFailed`] or [`NoCooperativeMatrix::SelfTestWrong`].
pub(super) async fn run(
    context: &Context,
    matrix: CooperativeMatrix,
) -> Result<(), NoCooperativeMatrix> {
    if ![8, 16].contains(&matrix.size) || !(1..=128).contains(&matrix.lanes) {
        let reason = format!("no kernel has matrices like {matrix}");
        return Err(NoCooperativeMatrix::SelfTestFailed(reason));
    }
    // On a context beside this one, so that the test does not show in the figures of its pool and its kernels.
    let context = context.beside();
    let _polling = context.watch().keep_polling(POLL_PERIOD);
    for transposed in TRANSPOSED {
        let product = product(&context, matrix, transposed)
            .await
            .map_err(|error| NoCooperativeMatrix::SelfTestFailed(error.to_string()))?;
        compare(&product)?;
    }
    Ok(())
}

/// An element of the left factor: a whole number in -8..=8.
fn left(row: u32, k: u32) -> f32 {
    ((row * 7 + k * 3) % 17) as f32 - 8.0
}

/// An element of the right factor: a whole number in -6..=6.
fn right(k: u32, column: u32) -> f32 {
    ((k * 5 + column * 11) % 13) as f32 - 6.0
}

/// The product as the device computes it.
async fn product(
    context: &Context,
    matrix: CooperativeMatrix,
    (transpose_a, transpose_b): (bool, bool),
) -> Result<Vec<f32>> {
    let [rows, inner, columns] = SIZES;
    let stored = |rows: u32, columns: u32, transposed, number: fn(u32, u32) -> f32| {
        let (lines, width) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let place = move |line, at| {
            if transposed {
                number(at, line)
            } else {
                number(line, at)
            }
        };
        let numbers = (0..lines).flat_map(|line| (0..width).map(move |at| place(line, at)));
        (width, numbers.map(half::f16::from_f32).collect::<Vec<_>>())
    };
    let (a_stride, a) = stored(rows, inner, transpose_a, left);
    let (b_stride, b) = stored(inner, columns, transpose_b, right);
    let variant = CoopProduct::with(matrix, context.caps());
    let [tile_rows, tile_columns] = variant.tile();
    let (tiles_x, tiles_y) = (columns.div_ceil(tile_columns), rows.div_ceil(tile_rows));
    let mut recorder = context.recorder("self test of cooperative matrices");
    let a = recorder.upload("a", &[a.len()], &a)?;
    let b = recorder.upload("b", &[b.len()], &b)?;
    let c = recorder.upload(
        "c",
        &[(rows * columns) as usize],
        &vec![f32::NAN; (rows * columns) as usize],
    )?;
    let params = MatmulParams {
        rows,
        columns,
        inner,
        a_stride,
        b_stride,
        c_stride: columns,
        split: inner,
        tiles_x,
        tiles_y,
        grid_width: tiles_x * tiles_y,
        ..MatmulParams::default()
    };
    let kernel = MatmulKernel {
        variant: MatmulVariant::Coop(variant),
        left: ElementFormat::F16,
        right: ElementFormat::F16,
        result: VectorWidth::Scalar,
        transpose_a,
        transpose_b,
        activation: Activation::Identity,
    };
    let bindings = [&a, &b, &b, &b, &c].map(|tensor| (tensor, tensor.whole()));
    recorder.dispatch(kernel, &bindings, &params, [tiles_x * tiles_y, 1])?;
    let result = recorder.download::<f32>(&c)?;
    recorder.submit()?;
    result.await
}

/// Compares every element of a product with the correct one.
fn compare(product: &[f32]) -> Result<(), NoCooperativeMatrix> {
    let [rows, inner, columns] = SIZES;
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    for ((row, column), given) in places.zip(product) {
        let expected: f32 = (0..inner).map(|k| left(row, k) * right(k, column)).sum();
        if *given != expected {
            return Err(NoCooperativeMatrix::SelfTestWrong {
                row,
                column,
                given: given.to_string(),
                expected: expected.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_element_refuses_the_matrices() {
        let [rows, inner, columns] = SIZES;
        let element = |row, column| {
            (0..inner)
                .map(|k| left(row, k) * right(k, column))
                .sum::<f32>()
        };
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let mut product: Vec<f32> = places.map(|(row, column)| element(row, column)).collect();
        assert_eq!(compare(&product), Ok(()));
        for wrong in [product[1300] + 1.0, f32::NAN] {
            product[1300] = wrong;
            let refusal = compare(&product).unwrap_err();
            let NoCooperativeMatrix::SelfTestWrong { row, column, .. } = refusal else {
                panic!("{refusal}");
            };
            assert_eq!((row, column), (1300 / columns, 1300 % columns));
        }
    }
}
