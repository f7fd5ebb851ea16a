//! The operations of layers against double precision: values against the reference, gradients against its finite
//! differences. Shapes are no multiples of any tile; bindings of 16 KiB cut even these into windows.

use dilated_attention::device::KernelTier;
use dilated_attention::ops::{
    Activation, Dropout, IGNORED_LABEL, Labels, Matmul, Matrix, Positions, Rotations, ScaledAdd,
    TokenIds, XposRole, activation, activation_backward, bias_backward, convert, cross_entropy,
    embedding, embedding_backward, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward,
    sum, sum_of_squares, xpos,
};
use dilated_attention::testing::{AdamWStep, adamw, layers};
use dilated_attention::training::AdamWOptions;
use dilated_attention::{Context, DType, Error, KernelOptions, Recorder, Result, Tensor};

use crate::support::kernel_contexts::{kernel_contexts, tiny_bindings};
use crate::support::numbers::uniform;

/// Runs `test` on every kind of context.
fn on_all(test: impl Fn(&Context)) {
    for on in kernel_contexts().iter().chain([tiny_bindings()]) {
        test(&on.context);
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// Whether each of `given` is `expected` up to 1e-5 of the largest.
#[track_caller]
fn assert_near(what: &str, given: &[f32], expected: &[f64]) {
    assert_eq!(given.len(), expected.len(), "{what}");
    let largest = expected
        .iter()
        .fold(1e-30, |max: f64, value| max.max(value.abs()));
    for (index, (given, expected)) in given.iter().zip(expected).enumerate() {
        let error = (f64::from(*given) - expected).abs();
        assert!(
            error <= 1e-5 * largest,
            "{what}[{index}] is {given}, expected {expected}, largest {largest}"
        );
    }
}

/// Central differences of `f` at `x`.
fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut at = x.to_vec();
    (0..x.len())
        .map(|index| {
            let step = 1e-4;
            at[index] = x[index] + step;
            let above = f(&at);
            at[index] = x[index] - step;
            let below = f(&at);
            at[index] = x[index];
            (above - below) / (2.0 * step)
        })
        .collect()
}

fn weigh(values: &[f64], weights: &[f32]) -> f64 {
    values
        .iter()
        .zip(weights)
        .map(|(value, weight)| value * f64::from(*weight))
        .sum()
}

/// Records `work`, which returns tensors to be read, and reads them.
fn run<const N: usize>(
    context: &Context,
    work: impl FnOnce(&mut Recorder) -> Result<[Tensor; N]>,
) -> [Vec<f32>; N] {
    let mut recorder = context.recorder("test");
    let tensors = work(&mut recorder).unwrap();
    let downloads = tensors.map(|tensor| recorder.download::<f32>(&tensor).unwrap());
    recorder.submit().unwrap();
    downloads.map(|download| download.wait().unwrap())
}

/// Transposed first and second factor.
const ORIENTATIONS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

/// Products of factors without rows, as in the backward of a layer over no tokens.
const EMPTY_SUMS: [[usize; 3]; 2] = [[5, 0, 3], [8, 0, 64]];

#[test]
fn products_of_every_orientation() {
    on_all(|context| {
        for sizes in [
            [1, 1, 1],
            [5, 3, 70],
            [130, 67, 65],
            [65, 300, 9],
            [3, 1500, 5],
            [700, 33, 20],
            // As vec4.
            [33, 68, 124],
            [70, 136, 44],
        ] {
            for orientation in ORIENTATIONS {
                check_product(context, sizes, orientation);
            }
        }
        for sizes in EMPTY_SUMS {
            check_product(context, sizes, [true, false]);
        }
    });
}

/// Kernels that the adapter would not choose. Those of cooperative matrices are in `coop`.
#[test]
fn products_of_every_tier() {
    let on = &kernel_contexts()[0];
    for tier in KernelTier::ALL {
        let options = KernelOptions {
            tier: Some(tier),
            ..Default::default()
        };
        let Ok(forced) = on.context.with_kernel_options(&options) else {
            continue;
        };
        // An older software driver takes half a minute to compile one of these.
        let slow = tier == KernelTier::Rows && on.compiles_slowly();
        for orientation in &ORIENTATIONS[..if slow { 1 } else { 4 }] {
            for sizes in [[33, 68, 124], [130, 136, 44]] {
                check_product(&forced, sizes, *orientation);
            }
        }
        for sizes in EMPTY_SUMS.iter().filter(|_| !slow) {
            check_product(&forced, *sizes, [true, false]);
        }
    }
}

/// A product alone, with everything that can be added to it, and added to what is there.
fn check_product(
    context: &Context,
    [rows, inner, columns]: [usize; 3],
    [transpose_a, transpose_b]: [bool; 2],
) {
    let (a, b) = (uniform(1, rows * inner), uniform(2, inner * columns));
    let (bias, residual) = (uniform(3, columns), uniform(4, rows * columns));
    let transposed = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
        (0..rows * columns)
            .map(|i| values[i % rows * columns + i / rows])
            .collect()
    };
    let b_transposed = wide(&transposed(&b, inner, columns));
    let product = match inner {
        0 => vec![0.0; rows * columns],
        _ => layers::linear(&wide(&a), &b_transposed, &[], inner),
    };
    let whole: Vec<f64> = product
        .iter()
        .enumerate()
        .map(|(i, c)| c + f64::from(bias[i % columns]) + 0.5 * f64::from(residual[i]))
        .collect();
    let [plain, all, twice] = run(context, |recorder| {
        let a = match transpose_a {
            false => recorder.upload("a", &[rows, inner], &a)?,
            true => recorder.upload("a", &[inner, rows], &transposed(&a, rows, inner))?,
        };
        let b = match transpose_b {
            false => recorder.upload("b", &[inner, columns], &b)?,
            true => recorder.upload("b", &[columns, inner], &transposed(&b, inner, columns))?,
        };
        let mut matmul = Matmul::new(a.matrix(), b.matrix());
        if transpose_a {
            matmul = matmul.with_transposed_a();
        }
        if transpose_b {
            matmul = matmul.with_transposed_b();
        }
        let shape = [rows, columns];
        let plain = recorder.empty("plain", &shape, DType::F32)?;
        matmul.write(recorder, plain.matrix())?;
        let twice = recorder.upload("twice", &shape, &residual)?;
        matmul.add(recorder, twice.matrix())?;
        matmul.add(recorder, twice.matrix())?;
        let all = recorder.zeros("all", &shape, DType::F32)?;
        let bias = recorder.upload("bias", &[columns], &bias)?;
        let residual = recorder.upload("residual", &shape, &residual)?;
        // A sum that one binding cannot hold has no epilogue.
        let whole = matmul
            .with_bias(Some(bias.vector()))
            .with_residual(residual.matrix(), 0.5)
            .write(recorder, all.matrix());
        match whole {
            Err(Error::BindingTooSmall { .. }) => {
                let matmul = matmul.with_bias(Some(bias.vector()));
                matmul.write(recorder, all.matrix())?;
                ScaledAdd::new(residual.matrix(), 0.5).add(recorder, all.matrix(), 1.0)?;
            }
            other => other?,
        }
        Ok([plain, all, twice])
    });
    let what = format!("{rows} {inner} {columns} {transpose_a} {transpose_b}");
    assert_near(&what, &plain, &product);
    assert_near(&format!("{what} with all"), &all, &whole);
    let added: Vec<f64> = product
        .iter()
        .zip(&residual)
        .map(|(c, residual)| 2.0 * c + f64::from(*residual))
        .collect();
    assert_near(&format!("{what} added twice"), &twice, &added);
}

#[test]
fn sums_of_columns() {
    on_all(|context| {
        for (rows, columns) in [(1, 1), (70, 3), (500, 130), (3000, 20)] {
            let (dy, before) = (uniform(1, rows * columns), uniform(2, columns));
            let [sums] = run(context, |recorder| {
                let dy = recorder.upload("dy", &[rows, columns], &dy)?;
                let sums = recorder.upload("dbias", &[columns], &before)?;
                bias_backward(recorder, dy.matrix(), sums.vector())?;
                Ok([sums])
            });
            let expected: Vec<f64> = (0..columns)
                .map(|column| {
                    let values = dy.iter().skip(column).step_by(columns);
                    f64::from(before[column]) + values.map(|v| f64::from(*v)).sum::<f64>()
                })
                .collect();
            assert_near("column sums", &sums, &expected);
        }
    });
}

#[test]
fn layer_norms_and_their_gradients() {
    let eps = 1e-5;
    on_all(|context| {
        for (rows, width) in [(1, 1), (5, 7), (50, 20), (300, 33), (9, 260)] {
            // A mean far from 0: a variance by differences of squares would lose its digits.
            let x: Vec<f32> = uniform(1, rows * width).iter().map(|x| x + 30.0).collect();
            let (gain, bias) = (uniform(2, width), uniform(3, width));
            let (dy, before) = (uniform(4, rows * width), uniform(5, rows * width));
            let [y, dx, added, dgain, dbias] = run(context, |recorder| {
                let shape = [rows, width];
                let x = recorder.upload("x", &shape, &x)?;
                let gain = recorder.upload("gain", &[width], &gain)?;
                let bias = recorder.upload("bias", &[width], &bias)?;
                let dy = recorder.upload("dy", &shape, &dy)?;
                let y = recorder.empty("y", &shape, DType::F32)?;
                let weights = [gain.vector(), bias.vector()];
                layer_norm(recorder, x.matrix(), weights, eps, y.matrix())?;
                let dx = recorder.empty("dx", &shape, DType::F32)?;
                let added = recorder.upload("dx", &shape, &before)?;
                let dgain = recorder.zeros("dgain", &[width], DType::F32)?;
                let dbias = recorder.zeros("dbias", &[width], DType::F32)?;
                for to in [(dx.matrix(), false), (added.matrix(), true)] {
                    let sums = [dgain.vector(), dbias.vector()];
                    layer_norm_backward(
                        recorder,
                        x.matrix(),
                        gain.vector(),
                        eps,
                        dy.matrix(),
                        to,
                        sums,
                    )?;
                }
                Ok([y, dx, added, dgain, dbias])
            });
            let [wide_x, wide_gain, wide_bias] = [&x, &gain, &bias].map(|values| wide(values));
            let f = |x: &[f64], gain: &[f64], bias: &[f64]| {
                layers::layer_norm(x, gain, bias, f64::from(eps))
            };
            // Differences of nearby values: x itself is rounded at 30.
            let near = |what: &str, given: &[f32], expected: &[f64]| {
                let largest = expected
                    .iter()
                    .fold(1e-3, |max: f64, value| max.max(value.abs()));
                for (given, expected) in given.iter().zip(expected) {
                    let error = (f64::from(*given) - expected).abs();
                    assert!(
                        error <= 1e-4 * largest,
                        "{what} {rows} {width}: {given}, {expected}"
                    );
                }
            };
            near("y", &y, &f(&wide_x, &wide_gain, &wide_bias));
            let expected = differences(&wide_x, |x| weigh(&f(x, &wide_gain, &wide_bias), &dy));
            near("dx", &dx, &expected);
            let expected: Vec<f64> = expected
                .iter()
                .zip(&before)
                .map(|(dx, b)| dx + f64::from(*b))
                .collect();
            near("dx added", &added, &expected);
            let expected = differences(&wide_gain, |gain| {
                2.0 * weigh(&f(&wide_x, gain, &wide_bias), &dy)
            });
            near("dgain", &dgain, &expected);
            let expected = differences(&wide_bias, |bias| {
                2.0 * weigh(&f(&wide_x, &wide_gain, bias), &dy)
            });
            near("dbias", &dbias, &expected);
        }
    });
}

#[test]
fn rms_norms_and_their_gradients() {
    let eps = 1e-5;
    on_all(|context| {
        for (rows, width) in [(1, 1), (5, 7), (50, 20), (300, 33), (9, 260)] {
            let (x, gain) = (uniform(1, rows * width), uniform(2, width));
            let (dy, before) = (uniform(4, rows * width), uniform(5, rows * width));
            let [y, half, dx, added, dgain] = run(context, |recorder| {
                let shape = [rows, width];
                let x = recorder.upload("x", &shape, &x)?;
                let gain = recorder.upload("gain", &[width], &gain)?;
                let dy = recorder.upload("dy", &shape, &dy)?;
                let y = recorder.empty("y", &shape, DType::F32)?;
                rms_norm(recorder, x.matrix(), gain.vector(), eps, y.matrix())?;
                // Half precision has rows of whole vectors.
                let mut half = y.clone();
                if width.is_multiple_of(4) {
                    let x = convert(recorder, &x, DType::Bf16)?;
                    let y = recorder.empty("y", &shape, DType::Bf16)?;
                    rms_norm(recorder, x.matrix(), gain.vector(), eps, y.matrix())?;
                    half = convert(recorder, &y, DType::F32)?;
                }
                let dx = recorder.empty("dx", &shape, DType::F32)?;
                let added = recorder.upload("dx", &shape, &before)?;
                let dgain = recorder.zeros("dgain", &[width], DType::F32)?;
                for to in [(dx.matrix(), false), (added.matrix(), true)] {
                    rms_norm_backward(
                        recorder,
                        x.matrix(),
                        gain.vector(),
                        eps,
                        dy.matrix(),
                        to,
                        dgain.vector(),
                    )?;
                }
                Ok([y, half, dx, added, dgain])
            });
            let [wide_x, wide_gain] = [&x, &gain].map(|values| wide(values));
            let f = |x: &[f64], gain: &[f64]| layers::rms_norm(x, gain, f64::from(eps));
            let expected = f(&wide_x, &wide_gain);
            assert_near("y", &y, &expected);
            for (half, expected) in half.iter().zip(&expected) {
                // Input and result are rounded to 8 bits, and the input in the row's scale.
                let allowed = 3.0 / 256.0 * expected.abs().max(0.1);
                assert!(
                    (f64::from(*half) - expected).abs() <= allowed,
                    "{half} {expected}"
                );
            }
            let near = |what: &str, given: &[f32], expected: &[f64]| {
                let largest = expected
                    .iter()
                    .fold(1e-3, |max: f64, value| max.max(value.abs()));
                for (given, expected) in given.iter().zip(expected) {
                    let error = (f64::from(*given) - expected).abs();
                    assert!(
                        error <= 1e-5 * largest,
                        "{what} {rows} {width}: {given}, {expected}"
                    );
                }
            };
            let expected = differences(&wide_x, |x| weigh(&f(x, &wide_gain), &dy));
            near("dx", &dx, &expected);
            let added_to = expected
                .iter()
                .zip(&before)
                .map(|(dx, b)| dx + f64::from(*b));
            near("dx added", &added, &added_to.collect::<Vec<_>>());
            let expected = differences(&wide_gain, |gain| 2.0 * weigh(&f(&wide_x, gain), &dy));
            near("dgain", &dgain, &expected);
        }
    });
}

#[test]
fn activations_and_their_gradients() {
    on_all(|context| {
        let mut x: Vec<f32> = uniform(1, 5003).iter().map(|x| 7.0 * x).collect();
        let extremes = [
            0.0,
            -0.0,
            1e-20,
            -1e-20,
            -17.0,
            17.0,
            -30.0,
            30.0,
            -86.0,
            -88.0,
            88.0,
            -104.0,
            104.0,
            -1e4,
            1e4,
            -1e19,
            1e19,
            -1e30,
            1e30,
            f32::MAX,
            f32::MIN,
        ];
        x[..extremes.len()].copy_from_slice(&extremes);
        let dy = uniform(2, x.len());
        for which in Activation::ALL {
            let [y, dx] = run(context, |recorder| {
                let x = recorder.upload("x", &[x.len()], &x)?;
                let y = recorder.empty("y", x.shape(), DType::F32)?;
                activation(recorder, which, x.vector(), y.vector())?;
                let dx = recorder.upload("dx", x.shape(), &dy)?;
                activation_backward(recorder, which, x.vector(), dx.vector())?;
                Ok([y, dx])
            });
            let f = |x: f64| match which {
                Activation::Identity => x,
                Activation::Relu => layers::relu(x),
                Activation::Gelu => layers::gelu(x),
                Activation::Silu => layers::silu(x),
            };
            for (index, x) in x.iter().enumerate() {
                let expected = f(f64::from(*x));
                let error = (f64::from(y[index]) - expected).abs();
                // The error of erf, times x / 2; far from 0 that vanishes.
                let scale = match x.abs() < 20.0 {
                    true => f64::from(x.abs()).max(1e-30),
                    false => expected.abs() + 1e-8,
                };
                let allowed = 4e-7 * scale;
                assert!(
                    error <= allowed,
                    "{which:?}({x}) is {}, expected {expected}",
                    y[index]
                );
                // At 0 a ReLU has the slope that PyTorch gives it.
                let slope = match which {
                    Activation::Identity => 1.0,
                    Activation::Relu => f64::from(u8::from(*x > 0.0)),
                    _ if x.abs() > 1e3 => f64::from(u8::from(*x > 0.0)),
                    _ => (f(f64::from(*x) + 1e-5) - f(f64::from(*x) - 1e-5)) / 2e-5,
                };
                let error = (f64::from(dx[index]) - slope * f64::from(dy[index])).abs();
                assert!(error < 2e-6, "{which:?}'({x}) is {}", dx[index] / dy[index]);
            }
        }
    });
}

#[test]
fn dropout_drops_its_share_and_draws_the_same_again() {
    on_all(|context| {
        let count = 20_011;
        let x = vec![1f32; count];
        for probability in [0.0, 0.1, 0.5, 0.9] {
            let dropout = Some(Dropout::new(probability, 0x1234_5678_9abc).unwrap());
            let other = Some(Dropout::new(probability, 0x1234_5678_9abd).unwrap());
            let [first, again, shifted, other] = run(context, |recorder| {
                let x = recorder.upload("x", &[count], &x)?;
                let scaled_add = |recorder: &mut Recorder, dropout, first| -> Result<_> {
                    let y = recorder.empty("y", &[count], DType::F32)?;
                    ScaledAdd::new(x.vector(), 1.0)
                        .with_dropout(dropout, first)
                        .write(recorder, y.vector())?;
                    Ok(y)
                };
                Ok([
                    scaled_add(recorder, dropout, 0)?,
                    scaled_add(recorder, dropout, 0)?,
                    scaled_add(recorder, dropout, 1000)?,
                    scaled_add(recorder, other, 0)?,
                ])
            });
            assert_eq!(first, again);
            assert_eq!(first[1000..], shifted[..count - 1000]);
            let kept = 1.0 / (1.0 - probability);
            assert!(
                first
                    .iter()
                    .all(|value| *value == 0.0 || (*value - kept).abs() < 1e-6)
            );
            let dropped = first.iter().filter(|value| **value == 0.0).count() as f64;
            let expected = f64::from(probability) * count as f64;
            let deviation = (expected * f64::from(1.0 - probability)).sqrt();
            assert!(
                (dropped - expected).abs() <= 5.0 * deviation,
                "{dropped} of {expected}"
            );
            // Draws with another seed, and of neighbours, are independent: both drop with the product.
            for pairs in [first.iter().zip(&other[..]), first.iter().zip(&first[1..])] {
                let both = pairs.filter(|(a, b)| **a == 0.0 && **b == 0.0).count() as f64;
                let expected = f64::from(probability).powi(2) * count as f64;
                assert!(
                    (both - expected).abs() <= 6.0 * expected.sqrt(),
                    "{both}, {expected}"
                );
            }
        }
    });
    assert!(matches!(
        Dropout::new(1.0, 0),
        Err(Error::InvalidConfig { .. })
    ));
    assert!(Dropout::new(f32::NAN, 0).is_err());
}

#[test]
fn sums_of_two_and_of_all() {
    on_all(|context| {
        for count in [1, 63, 4096, 4097, 50_001] {
            let (x, y) = (uniform(1, count), uniform(2, count));
            let [both, added, total, squares] = run(context, |recorder| {
                let x = recorder.upload("x", &[count], &x)?;
                let y = recorder.upload("y", &[count], &y)?;
                let both = recorder.empty("both", &[count], DType::F32)?;
                ScaledAdd::new(x.vector(), 2.0)
                    .with_y(y.vector(), -3.0)
                    .write(recorder, both.vector())?;
                ScaledAdd::new(x.vector(), 0.5).add(recorder, y.vector(), 4.0)?;
                let total = sum(recorder, &[&x, &x])?;
                let squares = sum_of_squares(recorder, &[&x, &both])?;
                Ok([both, y, total, squares])
            });
            let [x, y, wide_both] = [wide(&x), wide(&y), wide(&both)];
            let sums = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
                x.iter().zip(&y).map(|(x, y)| f(*x, *y)).collect()
            };
            assert_near("both", &both, &sums(&|x, y| 2.0 * x - 3.0 * y));
            assert_near("added", &added, &sums(&|x, y| 0.5 * x + 4.0 * y));
            let expected = 2.0 * x.iter().sum::<f64>();
            assert!(
                (f64::from(total[0]) - expected).abs() < 1e-3,
                "{} {expected}",
                total[0]
            );
            let square = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
            assert_near("squares", &squares, &[square(&x) + square(&wide_both)]);
        }
    });
}

#[test]
fn embeddings_and_their_gradients() {
    on_all(|context| {
        let (num_ids, width, count) = (300usize, 30, 700);
        let ids: Vec<u32> = (0..count)
            .map(|i| ((i * i * 7 + i / 3) % (num_ids - 10)) as u32)
            .collect();
        let (table, dout) = (uniform(1, num_ids * width), uniform(2, count * width));
        let before = uniform(3, count * width);
        let [out, added, dtable] = run(context, |recorder| {
            let ids = TokenIds::upload(recorder, &ids, num_ids)?;
            let table_shape = [num_ids, width];
            let table = recorder.upload("table", &table_shape, &table)?;
            let dout = recorder.upload("dout", &[count, width], &dout)?;
            let out = recorder.empty("out", &[count, width], DType::F32)?;
            embedding(recorder, &ids, table.matrix(), 3.0, (out.matrix(), false))?;
            let added = recorder.upload("out", &[count, width], &before)?;
            embedding(recorder, &ids, table.matrix(), 3.0, (added.matrix(), true))?;
            let dtable = recorder.zeros("dtable", &table_shape, DType::F32)?;
            embedding_backward(recorder, &ids, dout.matrix(), 3.0, dtable.matrix())?;
            Ok([out, added, dtable])
        });
        let rows = ids
            .iter()
            .flat_map(|id| &table[*id as usize * width..][..width]);
        let expected: Vec<f64> = rows.map(|value| 3.0 * f64::from(*value)).collect();
        assert_near("out", &out, &expected);
        let expected: Vec<f64> = expected
            .iter()
            .zip(&before)
            .map(|(a, b)| a + f64::from(*b))
            .collect();
        assert_near("added", &added, &expected);
        let mut expected = vec![0.0; table.len()];
        for (row, id) in ids.iter().enumerate() {
            for column in 0..width {
                expected[*id as usize * width + column] +=
                    3.0 * f64::from(dout[row * width + column]);
            }
        }
        assert_near("dtable", &dtable, &expected);
    });
}

#[test]
fn cross_entropies_and_their_gradients() {
    on_all(|context| {
        for (rows, classes) in [(1, 2), (37, 300), (500, 5)] {
            let mut logits: Vec<f32> = uniform(1, rows * classes).iter().map(|x| 9.0 * x).collect();
            logits[0] = 200.0;
            let mut labels: Vec<u32> = (0..rows).map(|i| (i * 31 % classes) as u32).collect();
            if rows > 1 {
                labels[rows / 2] = IGNORED_LABEL;
            }
            let [losses, gradient] = run(context, |recorder| {
                let labels = Labels::upload(recorder, &labels, classes)?;
                let logits = recorder.upload("logits", &[rows, classes], &logits)?;
                let losses = recorder.empty("losses", &[rows, 1], DType::F32)?;
                cross_entropy(
                    recorder,
                    logits.matrix(),
                    (&labels, 0),
                    0.25,
                    losses.matrix(),
                )?;
                Ok([losses, logits])
            });
            let loss = |row: usize, logits: &[f64]| match labels[row] {
                IGNORED_LABEL => 0.0,
                label => layers::cross_entropy(logits, label as usize),
            };
            let logits = wide(&logits);
            let rows = || logits.chunks(classes).enumerate();
            let expected: Vec<f64> = rows().map(|(row, logits)| loss(row, logits)).collect();
            assert_near("losses", &losses, &expected);
            let expected: Vec<f64> = rows()
                .flat_map(|(row, logits)| differences(logits, |logits| 0.25 * loss(row, logits)))
                .collect();
            assert_near("gradient", &gradient, &expected);
        }
    });
}

/// What all logits of a row have in common changes no loss, however large it is.
#[test]
fn losses_of_large_logits_keep_their_digits() {
    on_all(|context| {
        let (rows, classes) = (20, 30);
        let logits: Vec<f32> = uniform(1, rows * classes)
            .iter()
            .map(|x| 1e4 + 3.0 * x)
            .collect();
        let labels: Vec<u32> = (0..rows as u32).map(|row| row % classes as u32).collect();
        let [losses] = run(context, |recorder| {
            let labels = Labels::upload(recorder, &labels, classes)?;
            let logits = recorder.upload("logits", &[rows, classes], &logits)?;
            let losses = recorder.empty("losses", &[rows, 1], DType::F32)?;
            cross_entropy(
                recorder,
                logits.matrix(),
                (&labels, 0),
                1.0,
                losses.matrix(),
            )?;
            Ok([losses])
        });
        for ((loss, logits), label) in losses.iter().zip(logits.chunks(classes)).zip(&labels) {
            let expected = layers::cross_entropy(&wide(logits), *label as usize);
            assert!(
                (f64::from(*loss) - expected).abs() < 5e-6,
                "{loss}, not {expected}"
            );
        }
    });
}

#[test]
fn positions_turn_and_scale() {
    on_all(|context| {
        let (batch, seq_len, heads, head_dim) = (2, 300, 2, 8);
        let width = heads * head_dim;
        let x = uniform(1, batch * seq_len * width);
        // The rotations of all positions are one binding.
        let far = if context.caps().max_binding_bytes() < 1 << 20 {
            30_000
        } else {
            1_000_000
        };
        for (first, block, centre) in [(0, 65_536, 150), (far, 1024, 512)] {
            let positions = Positions {
                seq_len,
                first,
                block,
                centre,
            };
            for (role, sign) in [(XposRole::Query, 1.0), (XposRole::Key, -1.0)] {
                let [turned, back] = run(context, |recorder| {
                    let rotations = Rotations::upload(recorder, head_dim, first + seq_len, 512.0)?;
                    let shape = [batch, seq_len, heads, head_dim];
                    let turn = |recorder: &mut Recorder, inverse| -> Result<_> {
                        let x = recorder.upload("x", &shape, &x)?;
                        let rows = x.matrix().reshape(width)?;
                        xpos(recorder, &rotations, rows, role, positions, inverse)?;
                        Ok(x)
                    };
                    Ok([turn(recorder, false)?, turn(recorder, true)?])
                });
                let expected = |direction: f64| -> Vec<f64> {
                    wide(&x)
                        .chunks(head_dim)
                        .enumerate()
                        .flat_map(|(place, head)| {
                            let position = first + place / heads % seq_len;
                            let from = ((position % block) as f64) - (centre as f64);
                            let mut head = layers::xpos(head, 0.0, sign * from / 512.0);
                            head = layers::xpos(&head, direction * (position as f64), 0.0);
                            head
                        })
                        .collect()
                };
                // Frequencies in single precision, as torchscale has them: an angle of a million is off by 0.03.
                let allowed = 1e-5 + 6e-8 * ((first + 300) as f64);
                for (given, expected) in [(&turned, expected(1.0)), (&back, expected(-1.0))] {
                    for (given, expected) in given.iter().zip(expected) {
                        let error = (f64::from(*given) - expected).abs();
                        assert!(error <= 2.0 * allowed, "{given} {expected}");
                    }
                }
            }
        }
    });
}

/// Products of a query and a key depend on their distance alone, also at a million tokens.
#[test]
fn positions_are_relative() {
    let on = &kernel_contexts()[0];
    let head = uniform(1, 64);
    let product = |position: usize, distance: usize| {
        let [q, k] = run(&on.context, |recorder| {
            let rotations = Rotations::upload(recorder, 64, 1 << 20, 512.0)?;
            let turn = |recorder: &mut Recorder, first, role| -> Result<_> {
                let x = recorder.upload("x", &[1, 64], &head)?;
                let positions = Positions {
                    seq_len: 1,
                    first,
                    block: 65_536,
                    centre: 32_768,
                };
                xpos(recorder, &rotations, x.matrix(), role, positions, false)?;
                Ok(x)
            };
            Ok([
                turn(recorder, position, XposRole::Query)?,
                turn(recorder, position - distance, XposRole::Key)?,
            ])
        });
        q.iter()
            .zip(&k)
            .map(|(q, k)| f64::from(*q) * f64::from(*k))
            .sum::<f64>()
    };
    for distance in [0, 1, 17, 2000] {
        let near = product(33_000 + distance, distance);
        let far = product((1 << 20) - 1, distance);
        assert!(
            (near - far).abs() < 2e-3 * near.abs().max(1.0),
            "{distance}: {near} {far}"
        );
    }
}

#[test]
fn adamw_steps_are_those_of_double_precision() {
    on_all(|context| {
        let count = 9001;
        let mut step = AdamWStep {
            options: AdamWOptions {
                beta_1: 0.9,
                beta_2: 0.99,
                eps: 1e-8,
                weight_decay: 0.1,
                max_norm: Some(3.0),
            },
            learning_rate: 0.01,
            step: 1,
            gradient_scale: 0.5,
        };
        let value = uniform(1, count);
        let gradients: Vec<Vec<f32>> = (0..3).map(|i| uniform(10 + i, count)).collect();
        let [given, m, v] = run(context, |recorder| {
            let value = recorder.upload("value", &[count], &value)?;
            let m = recorder.zeros("m", &[count], DType::F32)?;
            let v = recorder.zeros("v", &[count], DType::F32)?;
            for (number, gradient) in (1..).zip(&gradients) {
                step.step = number;
                let gradient = recorder.upload("gradient", &[count], gradient)?;
                let norm = sum_of_squares(recorder, &[&gradient])?;
                adamw(recorder, &step, &norm, &gradient, &value, [&m, &v])?;
            }
            Ok([value, m, v])
        });
        let mut expected = wide(&value);
        let (mut expected_m, mut expected_v) = (vec![0.0; count], vec![0.0; count]);
        for (number, gradient) in (1..).zip(&gradients) {
            let gradient: Vec<f64> = wide(gradient).iter().map(|g| 0.5 * g).collect();
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            assert!(norm > 3.0, "nothing is clipped");
            for i in 0..count {
                let g = gradient[i] * 3.0 / (norm + 1e-6);
                expected_m[i] = 0.9 * expected_m[i] + 0.1 * g;
                expected_v[i] = 0.99 * expected_v[i] + 0.01 * g * g;
                let m = expected_m[i] / (1.0 - 0.9f64.powi(number));
                let v = expected_v[i] / (1.0 - 0.99f64.powi(number));
                expected[i] -= 0.01 * (m / (v.sqrt() + 1e-8) + 0.1 * expected[i]);
            }
        }
        assert_near("value", &given, &expected);
        assert_near("m", &m, &expected_m);
        assert_near("v", &v, &expected_v);
    });
}

#[test]
fn wrong_shapes_are_errors() {
    let context = &kernel_contexts()[0].context;
    let mut recorder = context.recorder("test");
    let a = recorder.zeros("a", &[3, 4], DType::F32).unwrap();
    let b = recorder.zeros("b", &[5, 4], DType::F32).unwrap();
    let c = recorder.zeros("c", &[3, 5], DType::F32).unwrap();
    let wrong = |result: Result<()>| {
        assert!(
            matches!(result, Err(Error::InvalidShape { .. })),
            "{result:?}"
        )
    };
    let product = Matmul::new(a.matrix(), b.matrix());
    wrong(product.write(&mut recorder, c.matrix()));
    wrong(product.with_transposed_b().write(&mut recorder, a.matrix()));
    product
        .with_transposed_b()
        .write(&mut recorder, c.matrix())
        .unwrap();
    wrong(
        product
            .with_transposed_b()
            .with_bias(Some(a.vector()))
            .write(&mut recorder, c.matrix()),
    );
    wrong(layer_norm(
        &mut recorder,
        a.matrix(),
        [b.vector(), b.vector()],
        1e-5,
        c.matrix(),
    ));
    wrong(a.matrix().slice(2..4).map(|_: Matrix<'_>| ()));
    wrong(a.matrix().reshape(5).map(|_: Matrix<'_>| ()));
    let ids = TokenIds::upload(&mut recorder, &[0, 3, 7], 7);
    assert!(matches!(
        ids,
        Err(Error::TokenOutOfRange {
            what: "token",
            index: 2,
            given: 7,
            limit: 7
        })
    ));
    let labels = Labels::upload(&mut recorder, &[IGNORED_LABEL, 9], 9);
    assert!(matches!(
        labels,
        Err(Error::TokenOutOfRange {
            what: "label",
            index: 1,
            ..
        })
    ));
    let ids = recorder.upload("ids", &[3, 4], &[0u32; 12]).unwrap();
    let wrong = Matmul::new(ids.matrix(), b.matrix()).write(&mut recorder, c.matrix());
    assert!(matches!(wrong, Err(Error::WrongDType { .. })));
}
