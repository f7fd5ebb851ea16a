//! Conversion of tensors between element types.

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
    let kernel = match (from, to) {
        (ElementFormat::F32, format) => Convert {
            format,
            widens: false,
        },
        (format, ElementFormat::F32) => Convert {
            format,
            widens: true,
        },
        _ => {
            let wide = convert(recorder, x, DType::F32)?;
            return convert(recorder, &wide, dtype);
        }
    };
    if !x.num_elements().is_multiple_of(4) {
        return Err(Error::InvalidShape {
            what: "x".into(),
            given: format!("{:?}, {} elements", x.shape(), x.num_elements()),
            need: "a multiple of 4 elements, to be converted".to_owned(),
        });
    }
    let out = recorder.empty(x.label(), x.shape(), dtype)?;
    let vector_width = VectorWidth::Vec4(from);
    elementwise(
        recorder,
        kernel.into(),
        vector_width,
        x.vector(),
        out.vector(),
    )?;
    Ok(out)
}
