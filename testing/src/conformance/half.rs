//! Attention and models with tensors in half precision. Files hold results of other inputs: the comparison is with the f64
//! reference of the inputs rounded to that type, and what a plain implementation loses that stores the same type and computes
//! in f32 decides how much is allowed. Of models, the plain implementation is the f64 one with every result rounded as it is
//! stored.

use ::half::{bf16, f16};
use dilated_attention::nn::ParameterList;
use dilated_attention::reference::{self, ReferenceOutput};
use dilated_attention::testing::model::Values;
use dilated_attention::testing::plain::{self, PlainOutput, rounded};
use dilated_attention::{AttentionShape, DType, DilatedAttentionConfig};

use super::attention::{Engine, ForwardOutput, Inputs, Quantity};
use super::compare::Comparison;
use super::golden_file::GoldenFile;
use super::report::Report;

/// What errors of a tensor are compared with.
#[derive(Clone, Copy, Default)]
struct Errors {
    given: Comparison,
    plain: Comparison,
}

impl Errors {
    /// Twice the error of the plain implementation, but no less than what any may lose. That is twice half a unit in the last
    /// place of the largest value, for tensors stored as `stored`: among few values as large, the plain implementation may
    /// meet none that lies halfway between two numbers, and another one that lies there rounds either way. And for
    /// log-sum-exps of few terms, f32 in any case, it is the 1e-5 of the largest value that single precision is allowed.
    fn tolerance(&self, stored: DType) -> f64 {
        let largest = self.given.max_abs_reference;
        let floor = match stored {
            DType::F16 => unit_in_last_place(largest, f16::MANTISSA_DIGITS),
            DType::Bf16 => unit_in_last_place(largest, bf16::MANTISSA_DIGITS),
            _ => 1e-5 * largest,
        };
        floor.max(2.0 * self.plain.max_abs_err)
    }

    fn add(
        &mut self,
        quantity: Quantity,
        exact: &ReferenceOutput,
        plain: &PlainOutput,
        given: &ForwardOutput,
    ) -> Result<(), String> {
        let of = |out: &[f32], lse: &[f32]| match quantity {
            Quantity::Out => Comparison::of_reference(&exact.out, out),
            Quantity::BranchLse | Quantity::TotalLse => {
                Comparison::of_reference(&exact.softmax_lse, lse)
            }
        };
        self.given = self.given.and(of(&given.out, &given.softmax_lse)?);
        self.plain = self.plain.and(of(&plain.out, &plain.softmax_lse)?);
        Ok(())
    }

    fn report(&self, tensor: &str, stored: DType, report: &mut Report) {
        report.compared(tensor, self.given, self.tolerance(stored));
    }
}

/// Compares a result with the exact one, given that of a plain implementation. It is stored as `stored`.
pub fn compare(
    name: &str,
    stored: DType,
    [exact, plain]: [&[f64]; 2],
    given: &[f32],
    report: &mut Report,
) {
    let single: Vec<f32> = plain.iter().map(|value| *value as f32).collect();
    let errors = Comparison::of_reference(exact, given).and_then(|given| {
        let plain = Comparison::of_reference(exact, &single)?;
        Ok(Errors { given, plain })
    });
    match errors {
        Ok(errors) => errors.report(name, stored, report),
        Err(reason) => report.fail(name, reason),
    }
}

/// The distance of neighbouring numbers with `digits` significant bits, at `value` or at the smallest normal f16.
fn unit_in_last_place(value: f64, digits: u32) -> f64 {
    let value = value.max(f64::from(f16::MIN_POSITIVE));
    2f64.powi(value.log2().floor() as i32 + 1 - digits as i32)
}

/// The file's weights in double precision, by the names of `list`; `rename` says what they are called in the file.
pub fn values(
    file: &GoldenFile,
    list: &ParameterList,
    rename: &dyn Fn(&str) -> String,
) -> Result<Values, String> {
    let specs = list.specs().iter();
    specs
        .map(|spec| {
            let values = file.f32s(&format!("w.{}", rename(&spec.name)), &spec.shape)?;
            Ok((spec.name.clone(), wide(&values)))
        })
        .collect()
}

/// The same numbers in double precision.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Inputs rounded to the type that an engine stores.
struct Rounded<'a> {
    shape: &'a AttentionShape,
    tensors: [Vec<f32>; 3],
    rows: Option<&'a [usize]>,
    dtype: DType,
}

impl<'a> Rounded<'a> {
    fn new(inputs: &'a Inputs<'_>, dtype: DType) -> Self {
        Self {
            shape: &inputs.shape,
            tensors: [inputs.q, inputs.k, inputs.v].map(|tensor| rounded(dtype, tensor)),
            rows: inputs.rows,
            dtype,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        let [q, k, v] = &self.tensors;
        Inputs {
            shape: self.shape.clone(),
            q,
            k,
            v,
            rows: self.rows,
        }
    }

    /// What is right, and what a plain implementation makes of it.
    fn expected(
        &self,
        config: &DilatedAttentionConfig,
    ) -> dilated_attention::Result<(ReferenceOutput, PlainOutput)> {
        let [q, k, v] = &self.tensors;
        let rows = self
            .rows
            .map(|rows| rows.iter().map(|row| (0, *row)).collect::<Vec<_>>());
        let exact = match &rows {
            Some(rows) => reference::forward_rows(config, self.shape, q, k, v, rows)?,
            None => reference::forward(config, self.shape, q, k, v)?,
        };
        let plain = plain::forward(config, self.shape, [q, k, v], self.dtype, rows.as_deref())?;
        Ok((exact, plain))
    }
}

/// Compares `tensors` for `configs`; run `runs[i]` is of the branch with that number alone, or of all `num_branches`.
pub fn check(
    inputs: &Inputs<'_>,
    (runs, configs): (&[usize], &[DilatedAttentionConfig]),
    num_branches: usize,
    tensors: &[(String, Quantity)],
    engine: &mut dyn Engine,
    report: &mut Report,
) {
    let inputs = Rounded::new(inputs, engine.dtype());
    let mut errors = vec![Errors::default(); tensors.len()];
    let mut failed = None;
    let result = engine.forward(&inputs.inputs(), configs, &mut |number, output| {
        let alone = runs[number] < num_branches;
        let compared = inputs
            .expected(&configs[number])
            .map_err(|error| error.to_string())
            .and_then(|(exact, plain)| {
                for ((_, quantity), errors) in tensors.iter().zip(&mut errors) {
                    if (*quantity == Quantity::BranchLse) == alone {
                        errors.add(*quantity, &exact, &plain, &output)?;
                    }
                }
                Ok(())
            });
        if let Err(reason) = compared {
            failed.get_or_insert(reason);
        }
    });
    report.ran(engine.take_kernels());
    let failed = failed.or(result.err().map(|error| error.to_string()));
    for ((tensor, quantity), errors) in tensors.iter().zip(&errors) {
        let stored = match quantity {
            Quantity::Out => engine.dtype(),
            Quantity::BranchLse | Quantity::TotalLse => DType::F32,
        };
        match &failed {
            Some(reason) => report.fail(tensor, reason),
            None => errors.report(tensor, stored, report),
        }
    }
}

/// Gradients of `inputs`, given that of the output.
pub fn check_gradients(
    inputs: &Inputs<'_>,
    dout: &[f32],
    config: &DilatedAttentionConfig,
    names: &[String; 3],
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let dtype = engine.dtype();
    let rounded_inputs = Rounded::new(inputs, dtype);
    let dout = rounded(dtype, dout);
    let [q, k, v] = &rounded_inputs.tensors;
    let shape = &inputs.shape;
    let told = |error: dilated_attention::Error| error.to_string();
    let exact = reference::backward(config, shape, q, k, v, &dout).map_err(told)?;
    let plain = plain::backward(config, shape, [q, k, v], &dout, dtype).map_err(told)?;
    let given = engine.backward(&rounded_inputs.inputs(), &dout, config);
    report.ran(engine.take_kernels());
    let given = given.map_err(|error| error.to_string())?;
    let exact = [exact.dq, exact.dk, exact.dv];
    for (((name, exact), plain), given) in names.iter().zip(exact).zip(plain).zip(given) {
        let errors = Errors {
            given: Comparison::of_reference(&exact, &given)?,
            plain: Comparison::of_reference(&exact, &plain)?,
        };
        errors.report(name, dtype, report);
    }
    Ok(())
}
