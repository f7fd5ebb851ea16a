//! Matrix products.

use super::{Matrix, grid, row_windows_of, size};
use crate::device::{DType, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::kernels::column_sums::{ColumnSums, ColumnSumsParams};
use crate::kernels::matmul::{MatmulFamily, MatmulKernel, MatmulParams, MatmulVariant};
use crate::kernels::{Family, VectorWidth};
use crate::ops::reduce::add_partials;
use crate::recorder::Recorder;

/// Number of workgroups to aim at: column sums are cut into blocks until they have about this many.
const WANTED_WORKGROUPS: u64 = 256;

/// Least number of elements of a sum that are worth a split of their own.
const LEAST_SPLIT: u64 = 512;

/// A matrix product to be recorded: `c = activation(op(a) op(b) + bias) + scale * residual`, or a product added to `c`. `op` is a
/// transposition or nothing.
///
/// The left factor may be f32, f16 or bf16. The right factor (usually the weights) is f32 or has the type of the left one. The bias
/// is f32. Result and residual are f32 or have the type of the left factor. Sums are always f32.
///
/// If both factors are f16, GPUs with cooperative matrices use them ([`Context::cooperative_tier`](crate::Context::cooperative_tier)).
///
/// ```no_run
/// use dilated_attention::{Context, DType, ops::Matmul};
/// let context = Context::new_blocking()?;
/// let mut recorder = context.recorder("linear");
/// let x = recorder.upload("x", &[100, 20], &[1f32; 2000])?;
/// let weight = recorder.upload("weight", &[30, 20], &[1f32; 600])?;
/// let y = recorder.empty("y", &[100, 30], DType::F32)?;
/// Matmul::new(x.matrix(), weight.matrix()).with_transposed_b().write(&mut recorder, y.matrix())?;
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a product does nothing until it is recorded"]
pub struct Matmul<'a> {
    a: Matrix<'a>,
    b: Matrix<'a>,
    transpose_a: bool,
    transpose_b: bool,
    activation: Activation,
    bias: Option<Matrix<'a>>,
    residual: Option<(Matrix<'a>, f32)>,
    /// The kernel, if the caller has chosen one.
    variant: Option<MatmulVariant>,
}

impl<'a> Matmul<'a> {
    /// The product `a b`.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>) -> Self {
        Self {
            a,
            b,
            transpose_a: false,
            transpose_b: false,
            activation: Activation::Identity,
            bias: None,
            residual: None,
            variant: None,
        }
    }

    /// Uses this kernel instead of the one that suits the device.
    #[cfg(any(feature = "testing", not(target_arch = "wasm32")))]
    pub(crate) fn with_kernel(self, variant: MatmulVariant) -> Self {
        Self {
            variant: Some(variant),
            ..self
        }
    }

    /// Transposes `a`.
    pub fn with_transposed_a(self) -> Self {
        Self {
            transpose_a: true,
            ..self
        }
    }

    /// Transposes `b`.
    pub fn with_transposed_b(self) -> Self {
        Self {
            transpose_b: true,
            ..self
        }
    }

    /// Adds a bias: a matrix with one row, which is added to every row of the product.
    pub fn with_bias(self, bias: Option<Matrix<'a>>) -> Self {
        Self { bias, ..self }
    }

    /// Applies an activation to the sum of product and bias.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Adds `scale * residual` after the activation. The residual has the shape of the result.
    pub fn with_residual(self, residual: Matrix<'a>, scale: f32) -> Self {
        Self {
            residual: Some((residual, scale)),
            ..self
        }
    }

    /// Records the product, written to `c`.
    ///
    /// # Errors
    /// [`Error::InvalidShape`], [`Error::WrongDType`], [`Error::ContextMismatch`] for matrices that do not fit,
    /// [`Error::BindingTooSmall`] when a binding cannot cover one row, [`Error::InvalidConfig`] or [`Error::Unsupported`] when the
    /// chosen kernel does not take these factors on this device, and the errors of recording a dispatch.
    pub fn write(self, recorder: &mut Recorder, c: Matrix<'a>) -> Result<()> {
        self.record(recorder, c, false)
    }

    /// Records the product, added to `c`.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`Error::InvalidConfig`] with an activation or a residual, which only [`write`](Self::write) supports.
    pub fn add(self, recorder: &mut Recorder, c: Matrix<'a>) -> Result<()> {
        if self.activation != Activation::Identity || self.residual.is_some() {
            return Err(Error::InvalidConfig {
                what: "product that is added to its result",
                given: "an activation or a residual".to_owned(),
                need: "neither",
            });
        }
        self.record(recorder, c, true)
    }

    fn record(self, recorder: &mut Recorder, c: Matrix<'a>, accumulate: bool) -> Result<()> {
        let caps = recorder.context().caps().clone();
        let (rows, inner) = oriented(&self.a, self.transpose_a);
        let (_, columns) = oriented(&self.b, self.transpose_b);
        let stored = |transposed, rows, columns| match transposed {
            false => (rows, columns),
            true => (columns, rows),
        };
        let a_shape = stored(self.transpose_a, rows, inner);
        let b_shape = stored(self.transpose_b, inner, columns);
        let left = self
            .a
            .expect_activations("a", a_shape.0, a_shape.1, recorder)?;
        let right = self
            .b
            .expect_activations("b", b_shape.0, b_shape.1, recorder)?;
        let (left, right) = match self.variant {
            Some(MatmulVariant::Coop(_)) => (left.of_matrices(&caps), right.of_matrices(&caps)),
            _ => (left, right),
        };
        if ![DType::F32, self.a.dtype()].contains(&self.b.dtype()) {
            return Err(Error::WrongDType {
                what: "b".into(),
                given: self.b.dtype(),
                need: self.a.dtype(),
            });
        }
        if let Some(variant) = self.variant {
            variant.check([left, right], recorder.context().caps_for(right))?;
        }
        let result = c.expect_activations("c", rows, columns, recorder)?;
        if ![DType::F32, self.a.dtype()].contains(&c.dtype()) {
            return Err(Error::WrongDType {
                what: "c".into(),
                given: c.dtype(),
                need: self.a.dtype(),
            });
        }
        if let Some(bias) = &self.bias {
            bias.expect_f32("bias", 1, columns, recorder)?;
        }
        if let Some((residual, _)) = &self.residual {
            residual.expect("residual", rows, columns, c.dtype(), recorder)?;
        }
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        // Each matrix is cut into windows of its rows, as they are stored.
        let mut by_rows = vec![c];
        by_rows.extend(self.residual.map(|(residual, _)| residual));
        let (mut by_inner, mut by_columns) = (Vec::new(), Vec::new());
        match self.transpose_a {
            false => by_rows.push(self.a),
            true => by_inner.push(self.a),
        }
        match self.transpose_b {
            false => by_inner.push(self.b),
            true => by_columns.push(self.b),
        }
        // Where a window is one of columns of a matrix in half precision, it begins at a whole vec4.
        let unit = |of_columns: bool| match left {
            ElementFormat::F32 => 1,
            _ if of_columns => 4,
            _ => 1,
        };
        let row_unit = unit(self.transpose_a);
        let inner_unit = unit(!self.transpose_a || self.transpose_b);
        let row_windows = row_windows_of("c", rows, &by_rows, row_unit, &caps)?;
        let column_windows = row_windows_of("b", columns, &by_columns, unit(true), &caps)?;
        let inner_windows = match inner {
            // Empty sums: only bias, activation and residual are computed.
            0 => vec![(0, 0)],
            _ => row_windows_of("a", inner, &by_inner, inner_unit, &caps)?,
        };
        let epilogue_waits = inner_windows.len() > 1
            && (self.activation != Activation::Identity || self.residual.is_some());
        if epilogue_waits {
            // Activation and residual need whole sums, but here a binding covers only a part of each sum. A caller can write the
            // product to a tensor of its own first; this function makes no hidden copy.
            let covered = |matrix: &Matrix<'_>| matrix.rows_from(0, &caps);
            let a_is_cut = self.transpose_b || covered(&self.a) < covered(&self.b);
            let cut = match self.transpose_a && a_is_cut {
                true => &self.a,
                false => &self.b,
            };
            return Err(Error::BindingTooSmall {
                what: cut.tensor.label().clone(),
                requested_bytes: cut.num_rows() * cut.width * cut.dtype().bytes(),
                limit_bytes: caps.max_binding_bytes,
            });
        }
        let formats = (left, right, result);
        for &rows in &row_windows {
            for &columns in &column_windows {
                for &inner in &inner_windows {
                    let block = Block {
                        rows,
                        columns,
                        inner,
                    };
                    let first = inner.0 == 0;
                    self.record_block(recorder, c, formats, &block, (accumulate || !first, first))?;
                }
            }
        }
        Ok(())
    }

    /// The kernel that the caller chose; else the one that suits the device.
    fn chosen(
        &self,
        columns: u64,
        (left, right): (ElementFormat, ElementFormat),
        recorder: &Recorder,
    ) -> MatmulVariant {
        self.variant.unwrap_or_else(|| {
            let context = recorder.context();
            let caps = context.caps_for(right);
            let transposed = [self.transpose_a, self.transpose_b];
            let family = MatmulFamily {
                columns,
                factors: [left, right],
                transposed,
            };
            match family.choice(caps).variant {
                matrices @ MatmulVariant::Coop(_) => matrices,
                _ if transposed == [false, true] => {
                    let family = MatmulFamily::of_linear_layer(columns);
                    context.tuner().choose(&family, caps).variant
                }
                variant => variant,
            }
        })
    }

    fn record_block(
        &self,
        recorder: &mut Recorder,
        c: Matrix<'_>,
        (left, right, result): (ElementFormat, ElementFormat, ElementFormat),
        block: &Block,
        (accumulate, first): (bool, bool),
    ) -> Result<()> {
        let caps = recorder.context().caps().clone();
        let Block {
            rows,
            columns,
            inner,
        } = *block;
        let a = match self.transpose_a {
            false => self.a.bind(rows.0, rows.1, &caps)?,
            true => self.a.bind(inner.0, inner.1, &caps)?,
        };
        let b = match self.transpose_b {
            false => self.b.bind(inner.0, inner.1, &caps)?,
            true => self.b.bind(columns.0, columns.1, &caps)?,
        };
        // Rows are bound whole; a window of columns begins at these offsets within them.
        let [a_offset, b_offset] = [
            if self.transpose_a { rows.0 } else { inner.0 },
            if self.transpose_b { inner.0 } else { columns.0 },
        ];
        let [num_rows, num_columns, num_inner] = [rows, columns, inner].map(|(b, e)| e - b);
        let lengths = [
            u64::from(a.skip) + a_offset,
            u64::from(b.skip) + b_offset,
            self.a.width,
            self.b.width,
            num_inner,
            columns.0,
            num_columns,
            c.width,
        ];
        let in_vec4s = lengths.iter().all(|length| length.is_multiple_of(4));
        let variant = self
            .chosen(num_columns, (left, right), recorder)
            .for_lengths([num_inner, num_columns], in_vec4s, &caps);
        let vector_width = match variant {
            MatmulVariant::Broadcast(_) => VectorWidth::Vec4(result),
            _ => VectorWidth::smallest(result),
        };
        let vector_elements = vector_width.elements();
        let [tile_rows, tile_columns] = variant.tile();
        let (tiles_x, tiles_y) = (
            num_columns.div_ceil(tile_columns),
            num_rows.div_ceil(tile_rows),
        );
        let tiles = tiles_x * tiles_y;
        let plain = vector_width == VectorWidth::Scalar
            && self.activation == Activation::Identity
            && self.bias.is_none()
            && self.residual.is_none()
            && columns.0 == 0
            && num_columns == c.width;
        let max_splits = caps.max_binding_bytes / (num_rows * num_columns * 4).max(1);
        let splits = match plain {
            true => (variant.wanted_workgroups() / tiles.max(1))
                .min(num_inner / LEAST_SPLIT)
                .min(max_splits)
                .max(1),
            false => 1,
        };
        let split = num_inner.div_ceil(splits).next_multiple_of(4).max(1);
        let splits = num_inner.div_ceil(split).max(1);
        let partials = match splits {
            1 => None,
            _ => {
                let shape = [splits, num_rows, num_columns].map(|dim| dim as usize);
                Some(recorder.undivided("partials", &shape, DType::F32)?)
            }
        };
        let written = match &partials {
            None => c.bind_units(rows.0, rows.1, vector_elements, &caps)?,
            Some(partials) => partials.vector().bind(0, 1, &caps)?,
        };
        let bias = match &self.bias {
            Some(bias) if first => Some(bias.bind_units(0, 1, vector_elements, &caps)?),
            _ => None,
        };
        let residual = match &self.residual {
            Some((residual, scale)) => {
                let bound = residual.bind_units(rows.0, rows.1, vector_elements, &caps)?;
                Some((bound, *scale))
            }
            None => None,
        };
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let column_offset = |skip: u32| size("c", u64::from(skip) + columns.0 / vector_elements);
        let num_workgroups = tiles * splits;
        let grid = grid("matmul", num_workgroups, &caps)?;
        let params = MatmulParams {
            rows: size("rows", num_rows)?,
            columns: size("columns", num_columns)?,
            inner: size("inner", num_inner)?,
            a_skip: size("a", u64::from(a.skip) + a_offset)?,
            a_stride: size("a", self.a.width)?,
            b_skip: size("b", u64::from(b.skip) + b_offset)?,
            b_stride: size("b", self.b.width)?,
            c_skip: column_offset(written.skip)?,
            c_stride: size("c", c.width / vector_elements)?,
            bias_skip: column_offset(bias.map_or(0, |bias| bias.skip))?,
            residual_skip: column_offset(residual.map_or(0, |(bound, _)| bound.skip))?,
            residual_scale: residual.map_or(0.0, |(_, scale)| scale),
            flags: flag(accumulate && partials.is_none(), MatmulParams::ACCUMULATE)
                | flag(bias.is_some(), MatmulParams::BIAS)
                | flag(residual.is_some(), MatmulParams::RESIDUAL),
            split: size("split", split)?,
            split_stride: size("partials", num_rows * num_columns)?,
            tiles_x: size("tiles", tiles_x)?,
            tiles_y: size("tiles", tiles_y)?,
            first_workgroup: 0,
            grid_width: grid[0],
        };
        let kernel = MatmulKernel {
            variant,
            transpose_a: self.transpose_a,
            transpose_b: self.transpose_b,
            activation: self.activation,
            left,
            right,
            result: vector_width,
        };
        let bindings = [
            a.binding,
            b.binding,
            bias.map_or(b.binding, |bias| bias.binding),
            residual.map_or(b.binding, |(bound, _)| bound.binding),
            written.binding,
        ];
        if accumulate && partials.is_none() {
            recorder.reads(c.tensor);
        }
        recorder.dispatch(kernel, &bindings, &params, grid)?;
        if let Some(partials) = &partials {
            let result = c.slice_rows(rows.0, rows.1)?;
            add_partials(recorder, partials, splits, result, accumulate)?;
        }
        Ok(())
    }
}

/// The part of a product that one dispatch computes.
struct Block {
    rows: (u64, u64),
    columns: (u64, u64),
    inner: (u64, u64),
}

/// Rows and columns of a matrix, transposed or not.
fn oriented(matrix: &Matrix<'_>, transposed: bool) -> (u64, u64) {
    match transposed {
        false => (matrix.num_rows(), matrix.width),
        true => (matrix.width, matrix.num_rows()),
    }
}

/// Records that the gradient of a bias is added to `dbias`, a matrix of one row: the column sums of `dy`.
///
/// # Errors
/// As [`Matmul::write`].
pub fn bias_backward(recorder: &mut Recorder, dy: Matrix<'_>, dbias: Matrix<'_>) -> Result<()> {
    dy.expect_f32("dy", dy.num_rows(), dy.width, recorder)?;
    dbias.expect_f32("dbias", 1, dy.width, recorder)?;
    column_sums(recorder, dy, None, &[dbias])
}

/// Adds column sums to `sums`, matrices of one row each. `normalised` are the input of a norm and the statistics of its rows: then
/// the column sums of `dy` times the normalised input go to the first of `sums`, and those of `dy` to the next. Without it, those
/// of `dy` go to the first.
pub(super) fn column_sums(
    recorder: &mut Recorder,
    dy: Matrix<'_>,
    normalised: Option<(Matrix<'_>, Matrix<'_>)>,
    sums: &[Matrix<'_>],
) -> Result<()> {
    let caps = recorder.context().caps().clone();
    let width = dy.width;
    let mut matrices = vec![dy];
    if let Some((x, stats)) = normalised {
        matrices.extend([x, stats]);
    }
    // With `normalised`, its sums come before those of dy.
    let num_sums = if normalised.is_some() { 2 } else { 1 };
    for (begin, end) in super::row_windows("dy", dy.num_rows(), &matrices, &caps)? {
        let rows = end - begin;
        // Enough blocks for the number of workgroups aimed at, but blocks of at least 64 rows.
        let tiles_x = width.div_ceil(64);
        let blocks = (WANTED_WORKGROUPS / tiles_x).clamp(1, rows.div_ceil(64));
        let block = rows.div_ceil(blocks);
        let blocks = rows.div_ceil(block);
        let shape = [blocks, num_sums, width].map(|dim| dim as usize);
        let partials = recorder.undivided("partials", &shape, DType::F32)?;
        let bound = partials.vector().bind(0, 1, &caps)?;
        let dy_bound = dy.bind(begin, end, &caps)?;
        let (x, stats) = match normalised {
            Some((x, stats)) => (x.bind(begin, end, &caps)?, stats.bind(begin, end, &caps)?),
            None => (dy_bound, dy_bound),
        };
        let grid = grid("column sums", tiles_x * blocks, &caps)?;
        let params = ColumnSumsParams {
            rows: size("rows", rows)?,
            width: size("width", width)?,
            x_skip: x.skip,
            dy_skip: dy_bound.skip,
            stats_skip: stats.skip,
            partials_skip: bound.skip,
            block: size("block", block)?,
            tiles_x: size("tiles", tiles_x)?,
            first_workgroup: 0,
            grid_width: grid[0],
        };
        let kernel = ColumnSums {
            normalised: normalised.is_some(),
        };
        let bindings = [x.binding, stats.binding, dy_bound.binding, bound.binding];
        recorder.dispatch(kernel, &bindings, &params, grid)?;
        let partials = partials.matrix();
        for (index, sum) in sums.iter().enumerate() {
            let first = index as u64 * width;
            super::reduce::add_strided(
                recorder,
                partials,
                (first, num_sums * width),
                blocks,
                *sum,
                true,
            )?;
        }
    }
    Ok(())
}
