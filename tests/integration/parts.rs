//! Tensors larger than the device's largest buffer: they lie in several, and nothing but memory shows it.

use std::num::NonZeroUsize;

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
use dilated_attention::ops::{Activation, ScaledAdd, activation, convert, mean_of_rows, sum};
use dilated_attention::pool::STORAGE_USAGE;
use dilated_attention::training::{AdamWOptions, Batch, LearningRate, Trainer, TrainingOptions};
use dilated_attention::weights::WeightFile;
use dilated_attention::{
    Context, ContextOptions, DType, DilatedAttentionConfig, Error, Mask, SliceOptions, Tensor,
    TensorPart, wgpu,
};

use crate::support::contexts::context_with;
use crate::support::numbers::uniform;
use crate::support::training::{step, weights};

/// A context whose tensors lie in parts of 7 rows.
fn short_parts() -> Context {
    context_with(&ContextOptions::new().with_part_rows(NonZeroUsize::new(7)))
}

/// Reads a tensor.
fn read(context: &Context, tensor: &Tensor) -> Vec<f32> {
    let mut recorder = context.recorder("read");
    let download = recorder.download::<f32>(tensor).unwrap();
    recorder.submit().unwrap();
    download.wait().unwrap()
}

#[test]
fn elements_go_to_the_device_and_come_back() {
    let context = &short_parts();
    for shape in [
        &[7][..],
        &[8],
        &[1000],
        &[15, 3],
        &[2, 9, 5],
        &[2, 17, 3, 4],
        &[1, 0, 4],
    ] {
        let count = shape.iter().product::<usize>();
        let data = uniform(3, count);
        let words: Vec<u32> = (0..count as u32).collect();
        let halves: Vec<half::f16> = data.iter().map(|x| half::f16::from_f32(*x)).collect();
        let mut recorder = context.recorder("there and back");
        let x = recorder.upload("x", shape, &data).unwrap();
        let u = recorder.upload("u", shape, &words).unwrap();
        let h = recorder.upload("h", shape, &halves).unwrap();
        let zeros = recorder.zeros("zeros", shape, DType::F32).unwrap();
        let back = recorder.download::<f32>(&x).unwrap();
        let words_back = recorder.download::<u32>(&u).unwrap();
        let halves_back = recorder.download::<half::f16>(&h).unwrap();
        let zeros_back = recorder.download::<f32>(&zeros).unwrap();
        assert!(matches!(back.wait(), Err(Error::NotSubmitted { .. })));
        recorder.submit().unwrap();
        assert_eq!(back.wait().unwrap(), data, "{shape:?}");
        assert!(back.is_ready());
        assert_eq!(pollster::block_on(words_back).unwrap(), words);
        assert_eq!(halves_back.wait().unwrap(), halves);
        assert_eq!(zeros_back.wait().unwrap(), vec![0.0; count]);
    }
}

#[test]
fn parts_hold_all_rows_and_whole_tokens() {
    let context = &short_parts();
    let mut recorder = context.recorder("parts");
    // 2 x 10 tokens of 3 heads: 7 tokens, 7 and 6, and tokens are not divided.
    let x = recorder.empty("x", &[2, 10, 3, 4], DType::F32).unwrap();
    let parts: Vec<_> = x.parts().map(|part| (part.rows, part.bytes)).collect();
    assert_eq!(parts, [(0..21, 0..336), (21..42, 0..336), (42..60, 0..288)]);
    let buffers: Vec<_> = x.parts().map(|part| part.buffer.clone()).collect();
    assert!(buffers[0] != buffers[1] && buffers[1] != buffers[2]);
    assert_eq!(
        x.only_part().map(drop),
        Err(Error::SeveralParts {
            label: "x".into(),
            given: 3
        })
    );
    // Parts begin at whole vec4, so that here they hold 8 rows of 6 bytes; the last one ends with a whole word.
    let halves = recorder.empty("halves", &[11, 3], DType::F16).unwrap();
    let parts: Vec<_> = halves.parts().map(|part| (part.rows, part.bytes)).collect();
    assert_eq!(parts, [(0..8, 0..48), (8..11, 0..20)]);
    assert_eq!(context.rows_per_part(&[11, 3], DType::F16), Ok(8));
    assert_eq!(context.rows_per_part(&[2, 10, 3, 4], DType::F32), Ok(21));
    assert_eq!(context.rows_per_part(&[3, 4], DType::F32), Ok(3));
    // Tensors made together are in one buffer where one holds them.
    let together = recorder.empty_together("ab", &[&[7, 4], &[5, 4]], DType::F32);
    let [a, b] = &together.unwrap()[..] else {
        panic!("two");
    };
    assert_eq!(a.only_part().unwrap().buffer, b.only_part().unwrap().buffer);
    let apart = recorder.empty_together("ab", &[&[7, 4], &[15, 4]], DType::F32);
    let apart = apart.unwrap();
    assert_eq!([1, 3], [&apart[0], &apart[1]].map(|x| x.parts().len()));
    // A vector lies in one buffer, so that it can be a bias.
    let vector = recorder.empty("vector", &[30], DType::F32).unwrap();
    assert_eq!(vector.only_part().unwrap().rows, 0..1);
    // A matrix whose rows would lie in two buffers is none.
    let wide = x.matrix().reshape(24);
    assert!(
        matches!(&wide, Err(Error::InvalidShape { given, .. }) if given == "rows of 24 elements"),
        "{wide:?}"
    );
}

#[test]
fn operations_do_not_see_parts() {
    let context = &short_parts();
    let data = uniform(1, 30 * 8);
    let others = uniform(2, 30 * 8);
    let mut recorder = context.recorder("operations");
    let x = recorder.upload("x", &[30, 8], &data).unwrap();
    let y = recorder.upload("y", &[30, 8], &others).unwrap();
    let out = recorder.empty("out", &[30, 8], DType::F32).unwrap();
    ScaledAdd::new(x.matrix(), 2.0)
        .with_y(y.matrix(), -1.0)
        .write(&mut recorder, out.matrix())
        .unwrap();
    let relu = recorder.empty("relu", &[30, 8], DType::F32).unwrap();
    activation(&mut recorder, Activation::Relu, out.matrix(), relu.matrix()).unwrap();
    // Slices that begin and end within parts.
    let slice = recorder.zeros("slice", &[12, 8], DType::F32).unwrap();
    let from = x.matrix().slice(5..17).unwrap();
    ScaledAdd::new(from, 1.0)
        .write(&mut recorder, slice.matrix())
        .unwrap();
    let total = sum(&mut recorder, &[&x, &y]).unwrap();
    let mean = mean_of_rows(&mut recorder, x.matrix().slice(3..29).unwrap()).unwrap();
    let half = convert(&mut recorder, &x, DType::F16).unwrap();
    let wide = convert(&mut recorder, &half, DType::F32).unwrap();
    // A sliced submission cuts between them like any other.
    let mut sliced = recorder.submit_in_slices(SliceOptions::default());
    while !sliced.is_done() {
        sliced.advance().unwrap();
        context.wait().unwrap();
    }
    let sums: Vec<f32> = data.iter().zip(&others).map(|(x, y)| 2.0 * x - y).collect();
    assert_eq!(read(context, &out), sums);
    let positive: Vec<f32> = sums.iter().map(|x| x.max(0.0)).collect();
    assert_eq!(read(context, &relu), positive);
    assert_eq!(read(context, &slice), data[5 * 8..17 * 8]);
    let exact: f64 = data.iter().chain(&others).map(|x| f64::from(*x)).sum();
    assert!((f64::from(read(context, &total)[0]) - exact).abs() < 1e-4);
    let means = read(context, &mean);
    for (column, mean) in means.iter().enumerate() {
        let column = (3..29).map(|row| f64::from(data[row * 8 + column]));
        assert!((f64::from(*mean) - column.sum::<f64>() / 26.0).abs() < 1e-6);
    }
    let rounded = data.iter().map(|x| half::f16::from_f32(*x).to_f32());
    assert_eq!(read(context, &wide), rounded.collect::<Vec<_>>());
}

/// Buffers of the application's as the parts of one tensor.
#[test]
fn an_application_imports_parts() {
    let context = &short_parts();
    let shape = [20, 4];
    let data = uniform(4, 80);
    #[expect(clippy::disallowed_methods, reason = "the application's")]
    let buffers = [(0, 7), (256, 7), (0, 6)].map(|(offset, rows)| {
        let buffer = context.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("own"),
            size: offset + rows * 16,
            usage: STORAGE_USAGE,
            mapped_at_creation: false,
        });
        (buffer, offset, rows)
    });
    let mut first = 0;
    let parts: Vec<_> = buffers
        .iter()
        .map(|(buffer, offset, rows)| {
            first += *rows as usize;
            TensorPart {
                buffer,
                bytes: *offset..offset + rows * 16,
                rows: first - *rows as usize..first,
            }
        })
        .collect();
    let import = |parts: &[TensorPart<'_>]| context.import_tensor("own", &shape, DType::F32, parts);
    let x = import(&parts).unwrap();
    assert!(x.parts().eq(parts.iter().cloned()));
    let mut recorder = context.recorder("fill");
    recorder.write(&x, &data).unwrap();
    recorder.submit().unwrap();
    assert_eq!(read(context, &x), data);
    // One part too many, cut elsewhere, or not to the end.
    let empty = TensorPart {
        buffer: &buffers[0].0,
        bytes: 0..112,
        rows: 20..20,
    };
    let more = import(&[&parts[..], &[empty]].concat());
    assert!(
        matches!(&more, Err(Error::InvalidShape { given, .. }) if given == "4 parts"),
        "{more:?}"
    );
    let missing = import(&parts[..2]);
    assert!(
        matches!(&missing, Err(Error::InvalidShape { need, .. }) if need.contains("rows 14..20")),
        "{missing:?}"
    );
    let mut shifted = parts.clone();
    shifted[0].rows = 0..6;
    let shifted = import(&shifted);
    assert!(
        matches!(&shifted, Err(Error::InvalidShape { need, .. }) if need.contains("rows 0..7")),
        "{shifted:?}"
    );
    assert!(import(&[]).is_err());
}

/// The largest buffer holds a part of the table of tokens, of its gradient and moments, and of the logits.
#[test]
fn parameters_larger_than_a_buffer_are_trained() {
    const VOCAB: usize = 5000;
    let limits = wgpu::Limits {
        max_buffer_size: 256 << 10,
        max_storage_buffer_binding_size: 128 << 10,
        ..Default::default()
    };
    let small = context_with(&ContextOptions::new().with_limits(limits));
    let large = context_with(&ContextOptions::new());
    let attention = DilatedAttentionConfig::new(2, 8, &[8, 32], &[1, 4])
        .unwrap()
        .with_mask(Mask::Causal);
    let mut config = LongNetConfig::decoder(attention, 1, 40);
    config.vocab_size = Some(VOCAB);
    config.output_projection = OutputProjection::Own;
    let tokens: Vec<u32> = (0..60u32).map(|i| i * i * 83 % VOCAB as u32).collect();
    let batch = Batch::next_tokens(&[&tokens]).unwrap();
    // A large eps, so that weights with hardly any gradient do not follow its rounding.
    let optimizer = AdamWOptions {
        eps: 1e-3,
        ..Default::default()
    };
    let options = TrainingOptions {
        optimizer,
        ..TrainingOptions::new(LearningRate::Constant(1e-2))
    };
    let file = std::env::temp_dir().join(format!("dilated-attention-{}-parts", std::process::id()));
    let run = |context: &Context, resumes: bool| {
        let model = LongNet::new(context, config.clone()).unwrap();
        let mut trainer = match resumes {
            false => Trainer::new(context, model, options.clone()).unwrap(),
            true => {
                let stored = WeightFile::open(&file).unwrap();
                Trainer::resume(context, model, options.clone(), &stored).unwrap()
            }
        };
        let losses = [0, 1].map(|_| step(&mut trainer, std::slice::from_ref(&batch)).loss);
        (trainer, losses)
    };
    let (trainer, losses) = run(&small, false);
    let table = trainer.weights().iter().next().unwrap().1;
    assert_eq!((table.shape(), table.parts().len()), (&[VOCAB, 16][..], 2));
    let (reference, expected) = run(&large, false);
    assert!(losses[1] < losses[0]);
    for (loss, expected) in losses.iter().zip(&expected) {
        assert!(
            (loss - expected).abs() <= 1e-5 * expected,
            "{losses:?} {expected:?}"
        );
    }
    let close = |a: &Trainer, on: &Context, b: &Trainer| {
        let pairs = weights(a, on)
            .concat()
            .into_iter()
            .zip(weights(b, &large).concat());
        let far = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4, "{far}");
    };
    close(&trainer, &small, &reference);
    // Saved here and resumed there, and the other way round.
    trainer.save(&file, &[]).unwrap();
    let (there, there_losses) = run(&large, true);
    let (here, here_losses) = run(&small, true);
    for (loss, expected) in here_losses.iter().zip(&there_losses) {
        assert!((loss - expected).abs() <= 1e-5 * expected);
    }
    close(&here, &small, &there);
    std::fs::remove_file(&file).unwrap();
    drop((trainer, here));
    small.wait().unwrap();
    assert_eq!(small.pool().stats().leases.current, 0);
}

/// Of a vector in several buffers, parts count elements.
#[test]
fn vectors_larger_than_a_buffer_have_parts() {
    let limits = wgpu::Limits {
        max_buffer_size: 64 << 10,
        max_storage_buffer_binding_size: 64 << 10,
        ..Default::default()
    };
    let context = context_with(&ContextOptions::new().with_limits(limits));
    let data = uniform(1, 40_000);
    let mut recorder = context.recorder("vector");
    let x = recorder.upload("x", &[40_000], &data).unwrap();
    let total = sum(&mut recorder, &[&x]).unwrap();
    recorder.submit().unwrap();
    let rows: Vec<_> = x.parts().map(|part| part.rows).collect();
    assert_eq!(rows, [0..16_384, 16_384..32_768, 32_768..40_000]);
    assert_eq!(context.rows_per_part(&[40_000], DType::F32), Ok(16_384));
    assert_eq!(read(&context, &x), data);
    let exact: f64 = data.iter().map(|x| f64::from(*x)).sum();
    assert!((f64::from(read(&context, &total)[0]) - exact).abs() < 1e-2);
    // A buffer that is full to the byte.
    let full = uniform(2, 16_384);
    let mut recorder = context.recorder("full");
    let x = recorder.upload("full", &[16_384], &full).unwrap();
    recorder.submit().unwrap();
    assert_eq!(x.parts().len(), 1);
    assert_eq!(read(&context, &x), full);
}

/// A cancelled recording that has cleared the first part alone leaves no tensor to be read.
#[test]
fn a_tensor_that_is_half_cleared_is_not_read() {
    let context = &short_parts();
    let mut recorder = context.recorder("cancelled");
    let x = recorder.zeros("x", &[20, 4], DType::F32).unwrap();
    let target = std::time::Duration::ZERO;
    let mut sliced = recorder.submit_in_slices(SliceOptions::default().with_target(target));
    sliced.advance().unwrap();
    assert!(!sliced.is_done(), "three clears are one slice");
    sliced.cancel();
    let mut recorder = context.recorder("reads it");
    let download = recorder.download::<f32>(&x).unwrap();
    let error = recorder.submit().map(drop).unwrap_err();
    assert!(matches!(error, Error::NotWritten { .. }), "{error}");
    drop(download);
}
