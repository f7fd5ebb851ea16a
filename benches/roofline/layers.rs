//! Products of matrices and layer norms.

use dilated_attention::ops::{Matmul, Matrix, layer_norm, layer_norm_backward};
use dilated_attention::{Context, DType, Recorder, Result, Tensor};

use crate::timing::{Timed, random};

/// A product of `rows x inner` by `inner x columns`.
pub struct ProductCase {
    pub name: &'static str,
    dims: [usize; 3],
    transpose_a: bool,
    transpose_b: bool,
}

const fn product(
    name: &'static str,
    dims: [usize; 3],
    [transpose_a, transpose_b]: [bool; 2],
) -> ProductCase {
    ProductCase {
        name,
        dims,
        transpose_a,
        transpose_b,
    }
}

/// Rows, inner, columns. The last ones are GigaPath's feed-forward network in a step of training over 4096 tokens.
pub const PRODUCTS: [ProductCase; 8] = [
    product("1024 1024 1024", [1024; 3], [false, false]),
    product("1024 1024 1024, x W^T", [1024; 3], [false, true]),
    product("1024 1024 1024, dy^T x", [1024; 3], [true, false]),
    product("4096 768 768, x W^T", [4096, 768, 768], [false, true]),
    product("4096 768 3072, x W^T", [4096, 768, 3072], [false, true]),
    product("4096 3072 768, x W^T", [4096, 3072, 768], [false, true]),
    product("4096 3072 768, dy W", [4096, 3072, 768], [false, false]),
    product("3072 4096 768, dy^T x", [3072, 4096, 768], [true, false]),
];

/// A product with its matrices.
pub struct Product {
    case: &'static ProductCase,
    a: Tensor,
    b: Tensor,
    c: Tensor,
}

fn filled(recorder: &mut Recorder, label: &'static str, shape: [usize; 2]) -> Result<Tensor> {
    let mut random = random();
    let data: Vec<f32> = (0..shape[0] * shape[1]).map(|_| random()).collect();
    recorder.upload(label, &shape, &data)
}

impl Product {
    pub fn new(context: &Context, case: &'static ProductCase) -> Result<Self> {
        let [rows, inner, columns] = case.dims;
        let stored = |transposed, rows, columns| match transposed {
            false => [rows, columns],
            true => [columns, rows],
        };
        let mut recorder = context.recorder("inputs");
        let a = filled(&mut recorder, "a", stored(case.transpose_a, rows, inner))?;
        let b = filled(&mut recorder, "b", stored(case.transpose_b, inner, columns))?;
        let c = recorder.empty("c", &[rows, columns], DType::F32)?;
        recorder.submit()?.wait()?;
        Ok(Self { case, a, b, c })
    }
}

impl Timed for Product {
    fn work(&self) -> f64 {
        2.0 * self.case.dims.map(|dim| dim as f64).iter().product::<f64>()
    }

    fn record(&self, recorder: &mut Recorder) -> Result<()> {
        let mut product = Matmul::new(self.a.matrix(), self.b.matrix());
        if self.case.transpose_a {
            product = product.transpose_a();
        }
        if self.case.transpose_b {
            product = product.transpose_b();
        }
        product.write(recorder, self.c.matrix())
    }
}

const ROWS: usize = 4096;
const WIDTH: usize = 768;

/// A layer norm of 4096 rows of 768, or its backward.
pub struct Norm {
    backward: bool,
    x: Tensor,
    other: Tensor,
    result: Tensor,
    gain: Tensor,
    bias: Tensor,
    sums: [Tensor; 2],
}

impl Norm {
    pub fn new(context: &Context, backward: bool) -> Result<Self> {
        let mut recorder = context.recorder("inputs");
        let mut matrix = |label, rows| filled(&mut recorder, label, [rows, WIDTH]);
        let norm = Self {
            backward,
            x: matrix("x", ROWS)?,
            other: matrix("dy", ROWS)?,
            result: matrix("y", ROWS)?,
            gain: matrix("gain", 1)?,
            bias: matrix("bias", 1)?,
            sums: [matrix("dgain", 1)?, matrix("dbias", 1)?],
        };
        recorder.submit()?.wait()?;
        Ok(norm)
    }
}

impl Timed for Norm {
    /// Each matrix read or written once.
    fn work(&self) -> f64 {
        let matrices = if self.backward { 3 } else { 2 };
        (matrices * ROWS * WIDTH * 4) as f64
    }

    fn record(&self, recorder: &mut Recorder) -> Result<()> {
        let [x, gain, bias, result] =
            [&self.x, &self.gain, &self.bias, &self.result].map(|tensor| tensor.matrix());
        if self.backward {
            let sums: [Matrix<'_>; 2] = [self.sums[0].matrix(), self.sums[1].matrix()];
            let dy = self.other.matrix();
            return layer_norm_backward(recorder, x, gain, 1e-5, dy, (result, false), sums);
        }
        layer_norm(recorder, x, [gain, bias], 1e-5, result)
    }
}
