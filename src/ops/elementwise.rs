//! Operations on single elements: activations, scaled sums, dropout.

use super::{Matrix, grid, row_windows, size};
use crate::device::{DType, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::activation::{
    Activation, ActivationBackward, ActivationForward, ElementwiseParams,
};
use crate::kernels::scaled_add::{self, ScaledAddParams};
use crate::kernels::{Kernel, VectorWidth};
use crate::recorder::Recorder;

/// Vectors that one workgroup computes.
const BLOCK: u64 = 64;

/// Records `out = activation(x)`. `x` and `out` have the same type.
///
/// # Errors
/// [`Error::InvalidShape`], [`Error::WrongDType`], [`Error::ContextMismatch`] for matrices that do not fit, and the errors
/// of recording.
pub fn activation(
    recorder: &mut Recorder,
    activation: Activation,
    x: Matrix<'_>,
    out: Matrix<'_>,
) -> Result<()> {
    let format = x.expect_activations("x", x.num_rows(), x.width, recorder)?;
    out.expect("out", x.num_rows(), x.width, x.dtype(), recorder)?;
    let vector_width = VectorWidth::smallest(format);
    let kernel = ActivationForward {
        activation,
        vector_width,
    };
    elementwise(recorder, kernel.into(), vector_width, x, out)
}

/// Records the gradient of `x`: on entry, `gradient` holds the gradient of `activation(x)`, which that of `x` replaces. Both are f32.
///
/// # Errors
/// As [`activation`].
pub fn activation_backward(
    recorder: &mut Recorder,
    activation: Activation,
    x: Matrix<'_>,
    gradient: Matrix<'_>,
) -> Result<()> {
    x.expect_f32("x", x.num_rows(), x.width, recorder)?;
    gradient.expect_f32("gradient", x.num_rows(), x.width, recorder)?;
    let kernel = ActivationBackward { activation };
    elementwise(recorder, kernel.into(), VectorWidth::Scalar, x, gradient)
}

/// Records a kernel that computes each vector of `out` from the same vector of `x`.
pub(super) fn elementwise(
    recorder: &mut Recorder,
    kernel: Kernel,
    vector_width: VectorWidth,
    x: Matrix<'_>,
    out: Matrix<'_>,
) -> Result<()> {
    let caps = recorder.context().caps().clone();
    let elements = vector_width.elements();
    let (x, out) = (x.in_rows_of(elements)?, out.in_rows_of(elements)?);
    for (begin, end) in row_windows("elements", x.num_rows(), &[x, out], &caps)? {
        let [x, out] = [x, out].map(|matrix| matrix.bind_units(begin, end, elements, &caps));
        let (x, out) = (x?, out?);
        let grid = grid("elements", (end - begin).div_ceil(BLOCK), &caps)?;
        let params = ElementwiseParams {
            count: size("elements", end - begin)?,
            x_skip: x.skip,
            out_skip: out.skip,
            first_workgroup: 0,
            grid_width: grid[0],
        };
        recorder.dispatch(kernel, &[x.binding, out.binding], &params, grid)?;
    }
    Ok(())
}

/// A dropout: sets each element to 0 with a given probability and divides the others by `1 - probability`. Random numbers follow
/// from the seed and the number of the element, so that the backward drops the same elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    probability: f32,
    seed: u64,
}

impl Dropout {
    /// A dropout with `probability`. Dropouts that should be independent (of other layers, places or steps) need different seeds.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the probability is not in 0..1.
    pub fn new(probability: f32, seed: u64) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) {
            return Err(Error::InvalidConfig {
                what: "dropout probability",
                given: probability.to_string(),
                need: "at least 0 and below 1",
            });
        }
        Ok(Self { probability, seed })
    }

    /// An element is dropped if its random 32-bit number is below this.
    fn threshold(&self) -> u32 {
        (f64::from(self.probability) * f64::from(u32::MAX)) as u32
    }
}

/// A scaled sum to be recorded: `out = scale * dropout(x) + y_scale * y`. All have the same type; with dropout it must be f32.
#[derive(Clone, Copy, Debug)]
#[must_use = "a sum does nothing until it is recorded"]
pub struct ScaledAdd<'a> {
    x: Matrix<'a>,
    scale: f32,
    dropout: Option<(Dropout, u64)>,
    y: Option<(Matrix<'a>, f32)>,
}

impl<'a> ScaledAdd<'a> {
    /// `scale * x`.
    pub fn new(x: Matrix<'a>, scale: f32) -> Self {
        Self {
            x,
            scale,
            dropout: None,
            y: None,
        }
    }

    /// Applies a dropout to `x`. `first` is the number of the first element of `x` among all elements that use the dropout's seed.
    pub fn with_dropout(self, dropout: Option<Dropout>, first: u64) -> Self {
        let dropout = dropout.filter(|dropout| dropout.probability > 0.0);
        Self {
            dropout: dropout.map(|dropout| (dropout, first)),
            ..self
        }
    }

    /// Adds `scale * y`.
    pub fn with_y(self, y: Matrix<'a>, scale: f32) -> Self {
        Self {
            y: Some((y, scale)),
            ..self
        }
    }

    /// Records the sum, written to `out`.
    ///
    /// # Errors
    /// As [`activation`].
    pub fn write(self, recorder: &mut Recorder, out: Matrix<'a>) -> Result<()> {
        let mode = match self.y {
            None => ScaledAddParams::Y_NONE,
            Some(_) => ScaledAddParams::Y_BOUND,
        };
        self.record(recorder, out, mode, self.y.map_or(0.0, |(_, scale)| scale))
    }

    /// Records `out = sum + out_scale * out`.
    ///
    /// # Errors
    /// As [`activation`]; [`Error::InvalidConfig`] when the sum has a `y` already.
    pub fn add(self, recorder: &mut Recorder, out: Matrix<'a>, out_scale: f32) -> Result<()> {
        if self.y.is_some() {
            return Err(Error::InvalidConfig {
                what: "sum that is added to its result",
                given: "three terms".to_owned(),
                need: "two",
            });
        }
        self.record(recorder, out, ScaledAddParams::Y_OUT, out_scale)
    }

    fn record(
        self,
        recorder: &mut Recorder,
        out: Matrix<'a>,
        mode: u32,
        y_scale: f32,
    ) -> Result<()> {
        let Self { x, dropout, .. } = self;
        let y = self.y.map_or(x, |(y, _)| y);
        let format = x.expect_activations("x", x.num_rows(), x.width, recorder)?;
        for (what, matrix) in [("y", y), ("out", out)] {
            matrix.expect(what, x.num_rows(), x.width, x.dtype(), recorder)?;
        }
        if dropout.is_some() && format != ElementFormat::F32 {
            return Err(Error::WrongDType {
                what: "x of a dropout".into(),
                given: x.dtype(),
                need: DType::F32,
            });
        }
        let caps = recorder.context().caps().clone();
        let vector_width = VectorWidth::smallest(format);
        let elements = vector_width.elements();
        let (x, y, out) = (
            x.in_rows_of(elements)?,
            y.in_rows_of(elements)?,
            out.in_rows_of(elements)?,
        );
        let words = |value: u64| [value as u32, (value >> 32) as u32];
        for (begin, end) in row_windows("elements", x.num_rows(), &[x, y, out], &caps)? {
            let bound = |matrix: Matrix<'a>| matrix.bind_units(begin, end, elements, &caps);
            let (x, y, out) = (bound(x)?, bound(y)?, bound(out)?);
            let grid = grid("elements", (end - begin).div_ceil(BLOCK), &caps)?;
            let (drop_below, keep_scale, seed, first) = match dropout {
                None => (0, 1.0, 0, 0),
                Some((dropout, first)) => (
                    dropout.threshold(),
                    1.0 / (1.0 - dropout.probability),
                    dropout.seed,
                    first.wrapping_add(begin),
                ),
            };
            let ([seed_low, seed_high], [first_low, first_high]) = (words(seed), words(first));
            let params = ScaledAddParams {
                count: size("elements", end - begin)?,
                x_skip: x.skip,
                y_skip: y.skip,
                out_skip: out.skip,
                x_scale: self.scale * keep_scale,
                y_scale,
                mode,
                drop_below,
                seed_low,
                seed_high,
                first_low,
                first_high,
                first_workgroup: 0,
                grid_width: grid[0],
            };
            let bindings = [x.binding, y.binding, out.binding];
            recorder.dispatch(
                scaled_add::ScaledAdd { vector_width },
                &bindings,
                &params,
                grid,
            )?;
        }
        Ok(())
    }
}
