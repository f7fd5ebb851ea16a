//! Conversion of tensors between element types.

use super::Matrix;
use super::elementwise::elementwise;
use crate::device::{DType, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::VectorWidth;
use crate::kernels::convert::Convert;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Records a tensor with the elements of `x` converted to `dtype`: f32, f16 or bf16. Conversion to half precision rounds to the
/// nearest, ties to even. As in IEEE 754, numbers too large for the type become infinite, and a NaN stays a NaN. Between f16 and
/// bf16, elements are converted by way of f32. If `x` has the type already, it is returned as it is.
///
/// ```no_run
/// use dilated_attention::{Context, DType, ops::convert};
/// let context = Context::new_blocking()?;
/// let mut recorder = context.recorder("inputs");
/// let x = recorder.upload("x", &[2, 4], &[0.1f32; 8])?;
/// let half = convert(&mut recorder, &x, DType::F16)?;
/// # Ok::<(), dilated_attention::Error>(())
/// ```
///
/// # Errors
/// [`Error::WrongDType`] for integers, [`Error::InvalidShape`] when the number of elements is not a multiple of 4,
/// [`Error::ContextMismatch`], and the errors of leasing and recording.
pub fn convert(recorder: &mut Recorder, x: &Tensor, dtype: DType) -> Result<Tensor> {
    let context = recorder.context();
    let caps = context.caps();
    let from = ElementFormat::of("x", x.dtype(), caps)?;
    let to = ElementFormat::of("dtype", dtype, caps)?;
    x.expect("x", x.shape(), x.dtype(), context.pool().id())?;
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    if ![from, to].contains(&ElementFormat::F32) {
        let wide = convert(recorder, x, DType::F32)?;
        return convert(recorder, &wide, dtype);
    }
    if !x.num_elements().is_multiple_of(4) {
        return Err(Error::InvalidShape {
            what: "x".into(),
            given: format!("{:?}, {} elements", x.shape(), x.num_elements()),
            need: "a multiple of 4 elements, to be converted".to_owned(),
        });
    }
    let out = recorder.empty(x.label(), x.shape(), dtype)?;
    convert_rows(recorder, x.vector(), out.vector())?;
    Ok(out)
}

/// Records that `out` holds the elements of `x`, converted to its type. One of them is f32, and rows are whole vec4.
pub(crate) fn convert_rows(recorder: &mut Recorder, x: Matrix<'_>, out: Matrix<'_>) -> Result<()> {
    let context = recorder.context();
    let caps = context.caps();
    let from = ElementFormat::of("x", x.dtype(), caps)?;
    let to = ElementFormat::of("out", out.dtype(), caps)?;
    let kernel = match from {
        ElementFormat::F32 => Convert {
            format: to,
            widens: false,
        },
        format => Convert {
            format,
            widens: true,
        },
    };
    elementwise(recorder, kernel.into(), VectorWidth::Vec4(from), x, out)
}
