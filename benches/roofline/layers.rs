//! Products of matrices and layer norms.

use dilated_attention::ops::{Matmul, convert, layer_norm, layer_norm_backward};
use dilated_attention::testing::{layers, plain};
use dilated_attention::{Context, DType, Recorder, Result, Tensor};
use testing::cases::ProductCase;
use testing::measurement::{error_f32, error_half, random, sampled_rows};

use crate::timing::Timed;

/// Matrices with their elements, each with numbers of its own.
struct Matrices<'a> {
    recorder: &'a mut Recorder,
    random: Box<dyn FnMut() -> f32>,
}

type Filled = (Tensor, Vec<f32>);

impl<'a> Matrices<'a> {
    fn new(recorder: &'a mut Recorder) -> Self {
        let random = Box::new(random());
        Self { recorder, random }
    }

    fn add(&mut self, label: &'static str, shape: [usize; 2]) -> Result<Filled> {
        self.add_stored(label, shape, DType::F32)
    }

    fn add_stored(
        &mut self,
        label: &'static str,
        [rows, columns]: [usize; 2],
        dtype: DType,
    ) -> Result<Filled> {
        let mut data: Vec<f32> = (0..rows * columns).map(|_| (self.random)()).collect();
        if dtype != DType::F32 {
            data = plain::rounded(dtype, &data);
        }
        let tensor = self.recorder.upload(label, &[rows, columns], &data)?;
        Ok((convert(self.recorder, &tensor, dtype)?, data))
    }
}

/// Sampled rows of a matrix.
fn rows_of(matrix: &[f32], width: usize) -> Vec<f32> {
    sampled_rows(matrix.len() / width)
        .into_iter()
        .flat_map(|(_, row)| &matrix[row * width..][..width])
        .copied()
        .collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// A product with its matrices.
pub struct Product {
    case: ProductCase,
    dtype: DType,
    kernel: &'static str,
    a: Filled,
    b: Filled,
}

impl Product {
    /// Both factors and the result are stored as `dtype`.
    pub fn new(context: &Context, case: &ProductCase, dtype: DType) -> Result<Self> {
        let [rows, inner, columns] = case.dims();
        let stored = |transposed, rows, columns| match transposed {
            false => [rows, columns],
            true => [columns, rows],
        };
        let mut recorder = context.recorder("inputs");
        let mut matrices = Matrices::new(&mut recorder);
        let a = matrices.add_stored("a", stored(case.transpose_a, rows, inner), dtype)?;
        let b = matrices.add_stored("b", stored(case.transpose_b, inner, columns), dtype)?;
        recorder.submit()?.wait()?;
        let mut product = Self {
            case: case.clone(),
            dtype,
            kernel: "",
            a,
            b,
        };
        let mut recorder = context.recorder("kernel");
        product.record(&mut recorder)?;
        let kernels = recorder.kernels();
        product.kernel = kernels
            .iter()
            .find(|kernel| kernel.tier().is_some())
            .map_or("none", |kernel| kernel.name());
        Ok(product)
    }

    /// Name of the kernel that is timed.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// One element of the product, in f64.
    fn element(&self, row: usize, column: usize) -> f64 {
        let [rows, inner, columns] = self.case.dims();
        let terms = (0..inner).map(|i| {
            let a = match self.case.transpose_a {
                false => self.a.1[row * inner + i],
                true => self.a.1[i * rows + row],
            };
            let b = match self.case.transpose_b {
                false => self.b.1[i * columns + column],
                true => self.b.1[column * inner + i],
            };
            f64::from(a) * f64::from(b)
        });
        terms.sum()
    }

    fn elements(&self) -> [u64; 3] {
        let [rows, inner, columns] = self.case.dims().map(|dim| dim as u64);
        [rows * inner, inner * columns, rows * columns]
    }
}

impl Timed for Product {
    fn work(&self) -> f64 {
        2.0 * self
            .case
            .dims()
            .map(|dim| dim as f64)
            .iter()
            .product::<f64>()
    }

    fn record(&self, recorder: &mut Recorder) -> Result<Vec<Tensor>> {
        let [rows, _, columns] = self.case.dims();
        let c = recorder.empty("c", &[rows, columns], self.dtype)?;
        let mut product = Matmul::new(self.a.0.matrix(), self.b.0.matrix());
        if self.case.transpose_a {
            product = product.with_transposed_a();
        }
        if self.case.transpose_b {
            product = product.with_transposed_b();
        }
        product.write(recorder, c.matrix())?;
        Ok(vec![c])
    }

    fn error(&self, results: &[Vec<f32>]) -> Result<f64> {
        let [rows, _, columns] = self.case.dims();
        let expected: Vec<f64> = sampled_rows(rows)
            .into_iter()
            .flat_map(|(_, row)| (0..columns).map(move |column| self.element(row, column)))
            .collect();
        let given = rows_of(&results[0], columns);
        Ok(match self.dtype {
            DType::F32 => error_f32(given, &expected),
            dtype => {
                let single: Vec<f32> = expected.iter().map(|value| *value as f32).collect();
                error_half(given, &expected, &plain::rounded(dtype, &single))
            }
        })
    }

    fn held_bytes(&self) -> u64 {
        let [a, b, _] = self.elements();
        self.dtype.bytes() * (a + b)
    }

    fn floor_bytes(&self) -> u64 {
        self.dtype.bytes() * self.elements().iter().sum::<u64>()
    }
}

pub const ROWS: usize = 4096;
pub const WIDTH: usize = 768;
const EPS: f32 = 1e-5;

/// A layer norm of 4096 rows of 768, or its backward.
pub struct Norm {
    x: Filled,
    weight: Filled,
    other: Other,
}

/// What only one of the directions reads.
enum Other {
    Bias(Filled),
    /// The gradient of the result.
    Dy(Filled),
}

impl Norm {
    pub fn new(context: &Context, backward: bool) -> Result<Self> {
        let mut recorder = context.recorder("inputs");
        let mut matrices = Matrices::new(&mut recorder);
        let norm = Self {
            x: matrices.add("x", [ROWS, WIDTH])?,
            weight: matrices.add("weight", [1, WIDTH])?,
            other: match backward {
                false => Other::Bias(matrices.add("bias", [1, WIDTH])?),
                true => Other::Dy(matrices.add("dy", [ROWS, WIDTH])?),
            },
        };
        recorder.submit()?.wait()?;
        Ok(norm)
    }

    /// Normalised values of a row and what they were divided by.
    fn normalised(row: &[f32]) -> (Vec<f64>, f64) {
        let x = wide(row);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let deviation = (variance + f64::from(EPS)).sqrt();
        let normalised = x.iter().map(|x| (x - mean) / deviation);
        (normalised.collect(), deviation)
    }

    fn forward_error(&self, bias: &[f32], y: &[f32]) -> f64 {
        let x = wide(&rows_of(&self.x.1, WIDTH));
        let [weight, bias] = [&self.weight.1, bias].map(wide);
        let expected = layers::layer_norm(&x, &weight, &bias, f64::from(EPS));
        error_f32(rows_of(y, WIDTH), &expected)
    }

    /// `dx = (g - mean(g) - x^ mean(g x^)) / deviation` with `g = weight dy` and x^ the normalised row; `dweight` and `dbias`
    /// are the sums of `dy x^` and `dy` over all rows.
    fn backward_error(&self, dy: &[f32], results: &[Vec<f32>]) -> f64 {
        let width = WIDTH as f64;
        let (mut dweight, mut dbias) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
        let mut rows = Vec::new();
        for (x, dy) in self.x.1.chunks(WIDTH).zip(dy.chunks(WIDTH)) {
            let (x, deviation) = Self::normalised(x);
            let g: Vec<f64> = std::iter::zip(dy, &self.weight.1)
                .map(|(dy, weight)| f64::from(*dy) * f64::from(*weight))
                .collect();
            let mean = g.iter().sum::<f64>() / width;
            let mean_x = std::iter::zip(&g, &x).map(|(g, x)| g * x).sum::<f64>() / width;
            let dx = std::iter::zip(&g, &x).map(|(g, x)| (g - mean - x * mean_x) / deviation);
            rows.push(dx.collect::<Vec<f64>>());
            for (i, (dy, x)) in dy.iter().zip(&x).enumerate() {
                dweight[i] += f64::from(*dy) * x;
                dbias[i] += f64::from(*dy);
            }
        }
        let sampled = sampled_rows(ROWS).into_iter();
        let dx: Vec<f64> = sampled.flat_map(|(_, row)| rows[row].clone()).collect();
        let of_sums = std::iter::zip(&results[1..], [dweight, dbias])
            .map(|(result, expected)| error_f32(result.iter().copied(), &expected));
        of_sums.fold(error_f32(rows_of(&results[0], WIDTH), &dx), f64::max)
    }

    fn matrix_bytes() -> u64 {
        (ROWS * WIDTH * 4) as u64
    }

    fn row_bytes() -> u64 {
        (WIDTH * 4) as u64
    }
}

impl Timed for Norm {
    /// Each matrix read or written once.
    fn work(&self) -> f64 {
        let matrices = match self.other {
            Other::Bias(_) => 2,
            Other::Dy(_) => 3,
        };
        (matrices * Self::matrix_bytes()) as f64
    }

    fn record(&self, recorder: &mut Recorder) -> Result<Vec<Tensor>> {
        let result = recorder.empty("result", &[ROWS, WIDTH], DType::F32)?;
        let [x, weight] = [&self.x, &self.weight].map(|(tensor, _)| tensor.matrix());
        match &self.other {
            Other::Bias((bias, _)) => {
                layer_norm(recorder, x, [weight, bias.matrix()], EPS, result.matrix())?;
                Ok(vec![result])
            }
            Other::Dy((dy, _)) => {
                let dweight = recorder.zeros("dweight", &[1, WIDTH], DType::F32)?;
                let dbias = recorder.zeros("dbias", &[1, WIDTH], DType::F32)?;
                let sums = [dweight.matrix(), dbias.matrix()];
                let dx = (result.matrix(), false);
                layer_norm_backward(recorder, x, weight, EPS, dy.matrix(), dx, sums)?;
                Ok(vec![result, dweight, dbias])
            }
        }
    }

    fn error(&self, results: &[Vec<f32>]) -> Result<f64> {
        Ok(match &self.other {
            Other::Bias((_, bias)) => self.forward_error(bias, &results[0]),
            Other::Dy((_, dy)) => self.backward_error(dy, results),
        })
    }

    fn held_bytes(&self) -> u64 {
        match self.other {
            // x, weight, bias
            Other::Bias(_) => Self::matrix_bytes() + 2 * Self::row_bytes(),
            // x, dy, weight
            Other::Dy(_) => 2 * Self::matrix_bytes() + Self::row_bytes(),
        }
    }

    fn floor_bytes(&self) -> u64 {
        let results = match self.other {
            Other::Bias(_) => Self::matrix_bytes(),
            // dx, dweight, dbias
            Other::Dy(_) => Self::matrix_bytes() + 2 * Self::row_bytes(),
        };
        self.held_bytes() + results
    }
}
