//! From one type of elements to another.

use super::elementwise::elementwise;
use crate::device::{DType, ElementFormat};
use crate::error::{Error, Result};
use crate::kernels::VectorWidth;
use crate::kernels::convert::Convert;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Records a tensor with the elements of `x` as `dtype`: f32, f16 or bf16. Towards half precision they are rounded to the
/// nearest, ties to even; numbers beyond the largest become infinite, as IEEE 754 has it, and a NaN stays one. From f16 to bf16
/// and back the way is through f32. A tensor of that type already is returned as it is.
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
/// [`Error::WrongDType`] for integers, [`Error::InvalidShape`] when the number of elements is no multiple of 4,
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
