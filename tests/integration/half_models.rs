//! Operations of layers and whole models with activations in half precision: operations against exact results, models against
//! double precision that rounds what they store.

use dilated_attention::device::DeviceCaps;
use dilated_attention::longnet::{Call, EncoderDecoder, Input, LongNet, LongNetConfig};
use dilated_attention::ops::{
    Activation, Dropout, Matmul, Positions, Rotations, ScaledAdd, TokenIds, XposRole, activation,
    convert, embedding, layer_norm, xpos,
};
use dilated_attention::testing::layers;
use dilated_attention::testing::plain::rounded;
use dilated_attention::training::{LearningRate, Trainer, TrainingOptions};
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttentionConfig, Error, Recorder, Result, Tensor,
};

use crate::models;
use crate::support::kernel_contexts::{kernel_contexts, tiny_bindings};
use crate::support::models::{Case, INPUT, by_name, draw, largest, upload, wide};
use crate::support::numbers::uniform;
use crate::support::problem::roundoff;

const HALVES: [DType; 2] = [DType::F16, DType::Bf16];

fn stored(
    recorder: &mut Recorder,
    shape: &[usize],
    values: &[f32],
    dtype: DType,
) -> Result<Tensor> {
    let tensor = recorder.upload("x", shape, values)?;
    convert(recorder, &tensor, dtype)
}

fn read(mut recorder: Recorder, tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>> {
    let downloads = tensors.iter().map(|tensor| {
        let tensor = convert(&mut recorder, tensor, DType::F32)?;
        recorder.download::<f32>(&tensor)
    });
    let downloads: Vec<_> = downloads.collect::<Result<_>>()?;
    recorder.submit()?;
    downloads.iter().map(|download| download.wait()).collect()
}

/// Whether each of `given` is off by no more than `roundings` roundings of its value, and what single precision loses.
#[track_caller]
fn assert_rounded(what: &str, given: &[f32], expected: &[f64], dtype: DType, roundings: f64) {
    assert_eq!(given.len(), expected.len(), "{what}");
    let noise = 1e-5 * largest(expected);
    for (index, (given, expected)) in given.iter().zip(expected).enumerate() {
        let error = (f64::from(*given) - expected).abs();
        let allowed = roundings * roundoff(dtype) * expected.abs() + noise;
        assert!(
            error <= allowed,
            "{what} in {dtype}: [{index}] is {given}, expected {expected}"
        );
    }
}

#[test]
fn products_equal_double_precision() -> Result<()> {
    for context in [&kernel_contexts()[0].context, &tiny_bindings().context] {
        for dtype in HALVES {
            for (rows, inner, columns) in [(1, 4, 4), (70, 20, 100), (65, 36, 8)] {
                let x = rounded(dtype, &uniform(1, rows * inner));
                let w = uniform(2, columns * inner);
                let (bias, residual) = (
                    uniform(3, columns),
                    rounded(dtype, &uniform(4, rows * columns)),
                );
                let (function, wanted): (_, fn(f64) -> f64) = match rows {
                    65 => (Activation::Silu, layers::silu),
                    _ => (Activation::Gelu, layers::gelu),
                };
                let mut recorder = context.recorder("test");
                let a = stored(&mut recorder, &[rows, inner], &x, dtype)?;
                let b = recorder.upload("w", &[columns, inner], &w)?;
                let bias_row = recorder.upload("bias", &[columns], &bias)?;
                let skip = stored(&mut recorder, &[rows, columns], &residual, dtype)?;
                let product = Matmul::new(a.matrix(), b.matrix())
                    .with_transposed_b()
                    .with_bias(Some(bias_row.vector()));
                let plain = recorder.empty("plain", &[rows, columns], dtype)?;
                product.write(&mut recorder, plain.matrix())?;
                let all = recorder.empty("all", &[rows, columns], dtype)?;
                product
                    .with_activation(function)
                    .with_residual(skip.matrix(), 1.5)
                    .write(&mut recorder, all.matrix())?;
                let wide_result = recorder.empty("logits", &[rows, columns], DType::F32)?;
                product.write(&mut recorder, wide_result.matrix())?;
                product.add(&mut recorder, plain.matrix())?;
                let tensors = [&plain, &all, &wide_result];
                let [twice, all, single] = read(recorder, &tensors)?.try_into().unwrap();
                let exact = layers::linear(&wide(&x), &wide(&w), &wide(&bias), inner);
                assert_rounded("f32 result", &single, &exact, DType::F32, 1.0);
                let doubled: Vec<f64> = exact.iter().map(|x| 2.0 * x).collect();
                assert_rounded("added", &twice, &doubled, dtype, 2.0);
                let finished: Vec<f64> = exact
                    .iter()
                    .zip(&residual)
                    .map(|(x, r)| wanted(*x) + 1.5 * f64::from(*r))
                    .collect();
                // The sum may be rounded before it is activated: then by as much as itself allows.
                let before = largest(&exact) / largest(&finished) + 1.0;
                let noise = before * roundoff(dtype) * largest(&finished);
                for (given, expected) in all.iter().zip(&finished) {
                    assert!(
                        (f64::from(*given) - expected).abs() <= noise,
                        "all in {dtype}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn rows_and_elements_equal_double_precision() -> Result<()> {
    for context in [&kernel_contexts()[0].context, &tiny_bindings().context] {
        for dtype in HALVES {
            let (rows, width) = (70, 44);
            let x = rounded(dtype, &uniform(1, rows * width));
            let y = rounded(dtype, &uniform(2, rows * width));
            let (weight, bias) = (uniform(3, width), uniform(4, width));
            let table = uniform(5, 9 * width);
            let ids: Vec<u32> = (0..rows as u32).map(|row| row * 5 % 9).collect();
            let mut recorder = context.recorder("test");
            let shape = [rows, width];
            let a = stored(&mut recorder, &shape, &x, dtype)?;
            let b = stored(&mut recorder, &shape, &y, dtype)?;
            let weights = recorder.upload("weight", &[width], &weight)?;
            let biases = recorder.upload("bias", &[width], &bias)?;
            let [normal, gelu, silu, sum, rows_of] =
                [(); 5].map(|()| recorder.empty("out", &shape, dtype));
            let (normal, gelu, silu, sum, rows_of) = (normal?, gelu?, silu?, sum?, rows_of?);
            let parameters = [weights.vector(), biases.vector()];
            layer_norm(&mut recorder, a.matrix(), parameters, 1e-5, normal.matrix())?;
            activation(&mut recorder, Activation::Gelu, a.matrix(), gelu.matrix())?;
            activation(&mut recorder, Activation::Silu, a.matrix(), silu.matrix())?;
            ScaledAdd::new(a.matrix(), 2.0)
                .with_y(b.matrix(), -0.5)
                .write(&mut recorder, sum.matrix())?;
            let given_table = recorder.upload("table", &[9, width], &table)?;
            let tokens = TokenIds::upload(&mut recorder, &ids, 9)?;
            let to = (rows_of.matrix(), false);
            embedding(&mut recorder, &tokens, given_table.matrix(), 3.0, to)?;
            let rotations = Rotations::upload(&mut recorder, 4, 100, 64.0)?;
            let positions = Positions {
                seq_len: 35,
                first: 2,
                block: 100,
                centre: 50,
            };
            xpos(
                &mut recorder,
                &rotations,
                b.matrix(),
                XposRole::Key,
                positions,
                false,
            )?;
            let tensors = [&normal, &gelu, &silu, &sum, &rows_of, &b];
            let results = read(recorder, &tensors)?;
            let [xs, ys] = [&x, &y].map(|values| wide(values));
            let expected = [
                layers::layer_norm(&xs, &wide(&weight), &wide(&bias), 1e-5),
                xs.iter().map(|x| layers::gelu(*x)).collect(),
                xs.iter().map(|x| layers::silu(*x)).collect(),
                xs.iter().zip(&ys).map(|(x, y)| 2.0 * x - 0.5 * y).collect(),
                ids.iter()
                    .flat_map(|id| &table[*id as usize * width..][..width])
                    .map(|x| 3.0 * f64::from(*x))
                    .collect(),
                ys.chunks(4)
                    .enumerate()
                    .flat_map(|(index, head)| {
                        let position = (2 + index / 11 % 35) as f64;
                        layers::xpos(head, position, -(position - 50.0) / 64.0)
                    })
                    .collect::<Vec<f64>>(),
            ];
            let names = [
                "layer norm",
                "GELU",
                "SiLU",
                "scaled_add",
                "embedding",
                "xpos",
            ];
            for ((name, given), expected) in names.iter().zip(&results).zip(&expected) {
                assert_rounded(name, given, expected, dtype, 1.0);
            }
        }
    }
    Ok(())
}

/// Cases of other tests whose networks have widths that half precision allows.
fn cases() -> Vec<Case> {
    let mut cases = models::cases();
    for case in &mut cases {
        case.config.ffn_dim = case.config.ffn_dim.next_multiple_of(4);
    }
    cases
}

/// Features and logits of a model, and of its input.
fn run(context: &Context, case: &Case, values: &[Vec<f32>]) -> Result<(Vec<f32>, Vec<f32>)> {
    let model = LongNet::new(context, case.config.clone())?;
    let mut recorder = context.recorder("test");
    let weights = upload(&mut recorder, model.parameters(), values)?;
    let inputs = &case.inputs;
    let call = Call::new(inputs.shape.clone());
    let dims = [inputs.shape.batch(), inputs.shape.seq_len(), case.width()];
    let features = match case.config.vocab_size {
        Some(vocab) => {
            let ids = TokenIds::upload(&mut recorder, &inputs.tokens, vocab)?;
            model.forward(&mut recorder, &weights, Input::Tokens(&ids), &call, false)?
        }
        None => {
            let x = stored(&mut recorder, &dims, &inputs.x, case.config.activations)?;
            model.forward(&mut recorder, &weights, Input::Embeddings(&x), &call, false)?
        }
    }
    .features;
    assert_eq!(features.dtype(), case.config.activations);
    let logits = match case.config.vocab_size {
        Some(_) => {
            let logits = model.logits(&mut recorder, &weights, &features)?;
            assert_eq!(logits.dtype(), DType::F32);
            logits
        }
        None => features.clone(),
    };
    let logits = convert(&mut recorder, &logits, DType::F32)?;
    let logits = recorder.download::<f32>(&logits)?;
    let features = read(recorder, &[&features])?.remove(0);
    Ok((features, logits.wait()?))
}

/// Largest and root mean square error.
fn errors(given: &[f64], expected: &[f64]) -> [f64; 2] {
    let differences = || given.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let mean = differences().map(|e| e * e).sum::<f64>() / given.len() as f64;
    [differences().fold(0.0, f64::max), mean.sqrt()]
}

/// Errors of features and logits are at most twice those of a model in double precision that rounds every result as it is
/// stored, largest and on average.
#[test]
fn models_lose_no_more_than_their_storage_does() -> Result<()> {
    let context = &kernel_contexts()[0].context;
    for dtype in HALVES {
        for mut case in cases() {
            case.inputs.x = rounded(dtype, &case.inputs.x);
            let model = LongNet::new(context, case.config.clone())?;
            let values = draw(model.parameters(), 5);
            let mut names = by_name(model.parameters(), &values);
            if case.config.vocab_size.is_none() {
                names.insert(INPUT.to_owned(), wide(&case.inputs.x));
            }
            let exact = case.features(&names);
            case.config.activations = dtype;
            let plain = case.features(&names);
            let (features, logits) = run(context, &case, &values)?;
            let allowed = errors(&plain, &exact);
            let found = errors(&wide(&features), &exact);
            // Plain rounding must itself be seen, and be small.
            assert!(
                allowed[0] > 0.0 && allowed[0] < 0.3 * largest(&exact),
                "{allowed:?}"
            );
            for (found, allowed) in found.iter().zip(allowed) {
                assert!(
                    *found <= 2.0 * allowed,
                    "{} in {dtype}: {found:?}, plain {allowed:?}",
                    case.name
                );
            }
            if case.config.vocab_size.is_some() {
                // Of the features that there are: logits lose nothing more.
                let expected = case.reference(&names).logits(&wide(&features));
                crate::support::models::assert_near(case.name, &logits, &expected);
            }
        }
    }
    Ok(())
}

fn decoder(dtype: DType) -> LongNetConfig {
    let attention = DilatedAttentionConfig::new(2, 8, &[8, 32], &[1, 2]).unwrap();
    let mut config = LongNetConfig::decoder(attention, 2, 32);
    config.vocab_size = Some(20);
    config.activations = dtype;
    config
}

/// Tokens decoded one by one have the features of a forward, up to rounding.
#[test]
fn decoding_equals_the_forward() -> Result<()> {
    let context = &kernel_contexts()[0].context;
    for dtype in HALVES {
        let model = LongNet::new(context, decoder(dtype))?;
        let values = draw(model.parameters(), 5);
        let ids: Vec<u32> = (0..21).map(|i| i * 7 % 20).collect();
        let mut recorder = context.recorder("test");
        let weights = upload(&mut recorder, model.parameters(), &values)?;
        let all = TokenIds::upload(&mut recorder, &ids, 20)?;
        let call = Call::new(AttentionShape::new(1, 21)?);
        let whole = model
            .forward(&mut recorder, &weights, Input::Tokens(&all), &call, false)?
            .features;
        // The cache grows on the way.
        let mut cache = model.new_cache(&mut recorder, 1, 16)?;
        let mut parts = Vec::new();
        for (begin, end) in [(0, 13), (13, 15), (15, 21)] {
            let tokens = TokenIds::upload(&mut recorder, &ids[begin..end], 20)?;
            let call = Call::new(AttentionShape::new(1, end - begin)?);
            let input = Input::Tokens(&tokens);
            parts.push(model.decode(&mut recorder, &weights, input, &call, &mut cache)?);
        }
        assert_eq!(cache.layer(0).unwrap()[0].dtype(), dtype);
        let tensors: Vec<&Tensor> = std::iter::once(&whole).chain(&parts).collect();
        let mut results = read(recorder, &tensors)?;
        let whole = wide(&results.remove(0));
        let decoded = wide(&results.concat());
        let [worst, _] = errors(&decoded, &whole);
        // Each is off by a few roundings.
        assert!(
            worst <= 16.0 * roundoff(dtype) * largest(&whole),
            "{dtype}: {worst}"
        );
    }
    Ok(())
}

#[test]
fn training_and_widths_that_do_not_fit_are_errors() -> Result<()> {
    let context = &Context::dry_run(DeviceCaps::webgpu_defaults());
    let model = LongNet::new(context, decoder(DType::F16))?;
    let options = TrainingOptions::new(LearningRate::Constant(1e-3));
    let result = Trainer::new(context, model, options);
    assert!(matches!(
        result.map(drop),
        Err(Error::InvalidConfig {
            what: "training",
            ..
        })
    ));
    let mut config = decoder(DType::F16);
    config.ffn_dim = 30;
    let result = LongNet::new(context, config).map(drop);
    assert!(matches!(
        result,
        Err(Error::InvalidConfig {
            what: "ffn_dim",
            ..
        })
    ));
    let result = LongNet::new(context, decoder(DType::U32)).map(drop);
    assert!(matches!(
        result,
        Err(Error::InvalidConfig {
            what: "activations",
            ..
        })
    ));
    let mut cross = decoder(DType::F32);
    cross.cross_attention = Some(dilated_attention::longnet::CrossAttentionConfig {
        attention: DilatedAttentionConfig::dense(2, 8)?,
        projection_norm: Default::default(),
    });
    let result = EncoderDecoder::new(context, decoder(DType::F16), cross).map(drop);
    assert!(matches!(result, Err(Error::InvalidConfig { .. })));

    let mut recorder = context.recorder("test");
    let result = Rotations::upload(&mut recorder, 6, 10, 512.0).map(drop);
    assert!(matches!(result, Err(Error::InvalidConfig { .. })));
    let half = recorder.zeros("x", &[3, 8], DType::F16)?;
    let odd = recorder.zeros("x", &[3, 6], DType::F16)?;
    let odd_out = recorder.zeros("y", &[3, 6], DType::F16)?;
    let wide = recorder.zeros("y", &[3, 8], DType::F32)?;
    let brain = recorder.zeros("y", &[3, 8], DType::Bf16)?;
    let weight = recorder.zeros("w", &[8, 8], DType::F32)?;
    let wrong = |result: Result<()>, what: &str| match result {
        Err(Error::WrongDType { what: given, .. }) => assert_eq!(given, what),
        other => panic!("{what}: {other:?}"),
    };
    let gelu = Activation::Gelu;
    let result = activation(&mut recorder, gelu, half.matrix(), wide.matrix());
    wrong(result, "out");
    let result = activation(&mut recorder, gelu, odd.matrix(), odd_out.matrix());
    assert!(matches!(result, Err(Error::InvalidShape { what, .. }) if what == "x"));
    let product = Matmul::new(half.matrix(), weight.matrix());
    wrong(product.write(&mut recorder, brain.matrix()), "c");
    let product = Matmul::new(half.matrix(), brain.matrix()).with_transposed_b();
    let square = recorder.zeros("c", &[3, 3], DType::F32)?;
    wrong(product.write(&mut recorder, square.matrix()), "b");
    let dropout = ScaledAdd::new(half.matrix(), 1.0).with_dropout(Some(Dropout::new(0.5, 1)?), 0);
    let out = recorder.zeros("out", &[3, 8], DType::F16)?;
    wrong(dropout.write(&mut recorder, out.matrix()), "x of a dropout");
    Ok(())
}

/// Compiling ahead takes embeddings and memories of the model's own type.
#[test]
fn models_in_half_precision_can_be_warmed_up() -> Result<()> {
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let shape = AttentionShape::new(1, 8)?;
    for dtype in HALVES {
        let attention = DilatedAttentionConfig::new(2, 8, &[4, 16], &[1, 2])?;
        let mut encoder = LongNetConfig::encoder(attention, 1, 32);
        encoder.activations = dtype;
        for config in [encoder, decoder(dtype)] {
            LongNet::new(&dry_run, config)?.warm_up(&dry_run, &shape)?;
        }
    }
    Ok(())
}
