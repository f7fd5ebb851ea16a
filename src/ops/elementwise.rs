//! Element by element: activations, sums, dropout.

use super::{Matrix, grid, size};
use crate::error::{Error, Result};
use crate::kernel::{Activation, BlendParams, ElementwiseParams, Kernel};
use crate::plan::DeviceFacts;
use crate::recorder::Recorder;

/// Elements that one workgroup takes.
const BLOCK: u64 = 64;

/// Records `out = activation(x)`.
///
/// # Errors
/// [`Error::InvalidShape`], [`Error::WrongDType`], [`Error::ForeignDevice`] for matrices that do not fit, and the errors
/// of recording.
pub fn activation(
    recorder: &mut Recorder,
    activation: Activation,
    x: Matrix<'_>,
    out: Matrix<'_>,
) -> Result<()> {
    elementwise(recorder, Kernel::Activation(activation), x, out)
}

/// Records that `gradient`, that of `activation(x)`, becomes that of `x`.
///
/// # Errors
/// As [`activation`].
pub fn activation_backward(
    recorder: &mut Recorder,
    activation: Activation,
    x: Matrix<'_>,
    gradient: Matrix<'_>,
) -> Result<()> {
    elementwise(
        recorder,
        Kernel::ActivationBackward(activation),
        x,
        gradient,
    )
}

fn elementwise(
    recorder: &mut Recorder,
    kernel: Kernel,
    x: Matrix<'_>,
    out: Matrix<'_>,
) -> Result<()> {
    x.expect_f32("x", x.rows(), x.width(), recorder)?;
    out.expect_f32("out", x.rows(), x.width(), recorder)?;
    let facts = recorder.context().facts().clone();
    let (x, out) = (x.reshape(1)?, out.reshape(1)?);
    for (begin, end) in windows(x.rows(), &facts) {
        let (x, out) = (x.bind(begin, end, &facts)?, out.bind(begin, end, &facts)?);
        let grid = grid("elements", (end - begin).div_ceil(BLOCK), &facts)?;
        let params = ElementwiseParams {
            count: size("elements", end - begin)?,
            x_skip: x.skip,
            out_skip: out.skip,
            grid_width: grid[0],
            ..Default::default()
        };
        recorder.dispatch(kernel, &[x.binding, out.binding], &params, grid)?;
    }
    Ok(())
}

/// Ranges of elements that one binding covers wherever they begin.
fn windows(count: u64, facts: &DeviceFacts) -> impl Iterator<Item = (u64, u64)> {
    let size = facts
        .max_binding_bytes
        .saturating_sub(facts.storage_offset_alignment)
        / 4;
    let size = size.max(1);
    (0..count.div_ceil(size)).map(move |i| (i * size, count.min((i + 1) * size)))
}

/// Which elements a dropout drops: each independently with probability `probability`, drawn from a counter, so that the
/// backward draws the same again. Kept elements are divided by `1 - probability`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    probability: f32,
    seed: u64,
}

impl Dropout {
    /// Drops with `probability`; `seed` tells draws apart: layers, places in them, steps.
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

    /// Draws below this, of 32 bits, drop.
    fn threshold(&self) -> u32 {
        (f64::from(self.probability) * f64::from(u32::MAX)) as u32
    }
}

/// `out = scale * dropout(x) + y_scale * y`, to be recorded.
#[derive(Clone, Copy, Debug)]
#[must_use = "a sum does nothing until it is recorded"]
pub struct Blend<'a> {
    x: Matrix<'a>,
    scale: f32,
    dropout: Option<(Dropout, u64)>,
    y: Option<(Matrix<'a>, f32)>,
}

impl<'a> Blend<'a> {
    /// `scale * x`.
    pub fn new(x: Matrix<'a>, scale: f32) -> Self {
        Self {
            x,
            scale,
            dropout: None,
            y: None,
        }
    }

    /// With elements of `x` dropped; its first element has the number `first` among those that are drawn with the seed.
    pub fn dropout(self, dropout: Option<Dropout>, first: u64) -> Self {
        let dropout = dropout.filter(|dropout| dropout.probability > 0.0);
        Self {
            dropout: dropout.map(|dropout| (dropout, first)),
            ..self
        }
    }

    /// Plus `scale * y`.
    pub fn plus(self, y: Matrix<'a>, scale: f32) -> Self {
        Self {
            y: Some((y, scale)),
            ..self
        }
    }

    /// Records that `out` becomes the sum.
    ///
    /// # Errors
    /// As [`activation`].
    pub fn write(self, recorder: &mut Recorder, out: Matrix<'a>) -> Result<()> {
        let mode = match self.y {
            None => BlendParams::Y_NONE,
            Some(_) => BlendParams::Y_BOUND,
        };
        self.record(recorder, out, mode, self.y.map_or(0.0, |(_, scale)| scale))
    }

    /// Records that `out` becomes the sum plus `out_scale * out`.
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
        self.record(recorder, out, BlendParams::Y_OUT, out_scale)
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
        for (what, matrix) in [("x", x), ("y", y), ("out", out)] {
            matrix.expect_f32(what, x.rows(), x.width(), recorder)?;
        }
        let facts = recorder.context().facts().clone();
        let (x, y, out) = (x.reshape(1)?, y.reshape(1)?, out.reshape(1)?);
        let words = |value: u64| [value as u32, (value >> 32) as u32];
        for (begin, end) in windows(x.rows(), &facts) {
            let bound = |matrix: Matrix<'a>| matrix.bind(begin, end, &facts);
            let (x, y, out) = (bound(x)?, bound(y)?, bound(out)?);
            let grid = grid("elements", (end - begin).div_ceil(BLOCK), &facts)?;
            let (drop_below, keep_scale, seed, first) = match dropout {
                None => (0, 1.0, 0, 0),
                Some((dropout, first)) => (
                    dropout.threshold(),
                    1.0 / (1.0 - dropout.probability),
                    dropout.seed,
                    first + begin,
                ),
            };
            let ([seed_low, seed_high], [first_low, first_high]) = (words(seed), words(first));
            let params = BlendParams {
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
                grid_width: grid[0],
            };
            let bindings = [x.binding, y.binding, out.binding];
            recorder.dispatch(Kernel::Blend, &bindings, &params, grid)?;
        }
        Ok(())
    }
}
