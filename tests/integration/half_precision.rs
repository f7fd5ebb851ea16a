//! Attention with f16 and bf16 tensors, with and without f16 in shaders: against the f64 reference of the rounded inputs, allowed
//! twice the error of a plain implementation that stores the same type.

use dilated_attention::device::DeviceCaps;
use dilated_attention::ops::convert;
use dilated_attention::testing::plain::rounded;
use dilated_attention::testing::{
    BackwardFamily, ElementFormat, Family, ForwardFamily, ForwardVariant,
};
use dilated_attention::{
    AttentionShape, CallOptions, Context, ContextOptions, DType, DilatedAttention,
    DilatedAttentionConfig, Error, Heads, Mask, MixGradient, Padding, Recorder, Tensor, reference,
    wgpu,
};
use half::{bf16, f16};

use crate::backward;
use crate::forward::named_problems;
use crate::support::contexts::context_with;
use crate::support::kernel_contexts::{TestContext, kernel_contexts, tiny_bindings};
use crate::support::problem::Problem;

const HALVES: [DType; 2] = [DType::F16, DType::Bf16];

/// What stores `dtype` on a context: f16 in words on every device, and as such where shaders know it.
fn formats(on: &TestContext, dtype: DType) -> Vec<ElementFormat> {
    let all = ElementFormat::ALL.into_iter();
    all.filter(|format| format.dtype() == dtype && format.check(on.context.caps()).is_ok())
        .collect()
}

/// The kernel that the adapter would choose for long segments: one for all tests.
fn forward_variant(on: &TestContext, head_dim: usize, format: ElementFormat) -> ForwardVariant {
    let config = DilatedAttentionConfig::new(1, head_dim, &[4096], &[1]).unwrap();
    ForwardFamily::of(&config, format)
        .choice(on.context.caps())
        .variant
}

#[test]
fn named_forwards_equal_the_reference() {
    for on in [&kernel_contexts()[0], tiny_bindings()] {
        for dtype in HALVES {
            for (name, problem) in named_problems() {
                let variants: Vec<_> = formats(on, dtype)
                    .into_iter()
                    .map(|format| forward_variant(on, 8, format))
                    .collect();
                problem
                    .stored(dtype)
                    .check_kernels(on, &variants)
                    .unwrap_or_else(|reason| panic!("{name}: {reason}"));
            }
        }
    }
}

/// Kernels that the adapter would not choose have their own loads and stores.
#[test]
fn every_forward_kernel_equals_the_reference() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[16, 50], &[1, 3]).unwrap();
    let shape = AttentionShape::new(2, 70).unwrap();
    for dtype in HALVES {
        let problem =
            Problem::new(config.clone().with_torchscale(), shape.clone(), 1.0).stored(dtype);
        let format = *formats(on, dtype).last().unwrap();
        let variants: Vec<_> = on
            .forward_variants(8)
            .into_iter()
            .skip(1)
            .map(|variant| ForwardVariant { format, ..variant })
            .collect();
        problem.check_kernels(on, &variants).unwrap();
    }
}

#[test]
fn gradients_equal_the_reference() {
    for on in [&kernel_contexts()[0], tiny_bindings()] {
        for dtype in HALVES {
            // Of segments as long as those of other tests, so that kernels are compiled once.
            let config = DilatedAttentionConfig::new(1, 8, &[4096], &[1]).unwrap();
            let variants: Vec<_> = formats(on, dtype)
                .into_iter()
                .map(|format| {
                    BackwardFamily::of(&config, format)
                        .choice(on.context.caps())
                        .variant
                })
                .collect();
            for (name, problem) in named_problems() {
                for gradient in [MixGradient::Exact, MixGradient::DetachedMix] {
                    let mut problem = problem.clone().stored(dtype);
                    problem.config = problem.config.with_gradient(gradient);
                    backward::check_kernels(&problem, on, &variants)
                        .unwrap_or_else(|reason| panic!("{name}: {reason}"));
                }
            }
        }
    }
}

/// Segments that exceed a binding: keys are packed, and so are their gradients.
#[test]
fn packed_keys_equal_the_reference() {
    // Few windows, for in half precision gradients are rounded after each.
    let limits = wgpu::Limits {
        max_storage_buffer_binding_size: 128 << 10,
        ..Default::default()
    };
    let context = context_with(&ContextOptions {
        limits: Some(limits),
        ..Default::default()
    });
    let on = &TestContext {
        name: "bindings of 128 KiB",
        context,
    };
    let config = DilatedAttentionConfig::new(16, 8, &[600, 700], &[2, 3]).unwrap();
    let partitioned = config
        .clone()
        .with_heads(Heads::Partitioned)
        .with_padding(Padding::ZeroKeys);
    let shape = AttentionShape::new(1, 800).unwrap();
    for config in [config.with_torchscale(), partitioned] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let format = formats(on, dtype)[0];
            let long = DilatedAttentionConfig::new(1, 8, &[4096], &[1]).unwrap();
            let backward_variant = BackwardFamily::of(&long, format)
                .choice(on.context.caps())
                .variant;
            let problem = Problem::new(config.clone(), shape.clone(), 1.0).stored(dtype);
            let caps = on.context.caps();
            let plan = config
                .plan_backward_with(&shape, caps, backward_variant)
                .unwrap();
            for pass in ["pack k, v", "unpack dk, dv"] {
                assert!(plan.to_string().contains(pass), "{plan}");
            }
            problem
                .check_kernels(on, &[forward_variant(on, 8, format)])
                .unwrap();
            backward::check_kernels(&problem, on, &[backward_variant]).unwrap();
        }
    }
}

/// A head as wide as in real models, and more branches than two, each of which rounds the running output.
#[test]
fn wide_heads_and_many_branches_equal_the_reference() {
    let on = &kernel_contexts()[1];
    let config = DilatedAttentionConfig::new(2, 64, &[8, 16, 32, 64, 128], &[1, 2, 4, 6, 12])
        .unwrap()
        .with_mask(Mask::Causal);
    let shape = AttentionShape::new(1, 130).unwrap();
    for dtype in HALVES {
        let problem = Problem::new(config.clone(), shape.clone(), 4.0).stored(dtype);
        let format = formats(on, dtype)[0];
        let variant = forward_variant(on, 64, format);
        problem.check_kernels(on, &[variant]).unwrap();
    }
}

/// The same bits whether shaders know f16 or not, and on every run.
#[test]
fn storages_of_one_type_agree_bit_for_bit() {
    let [without, on] = [&kernel_contexts()[0], &kernel_contexts()[1]];
    assert!(!without.context.caps().shader_f16());
    assert_eq!(formats(without, DType::F16), [ElementFormat::F16Packed]);
    let config = DilatedAttentionConfig::new(2, 8, &[16, 50], &[1, 3]).unwrap();
    let problem = Problem::new(config, AttentionShape::new(2, 70).unwrap(), 1.0).stored(DType::F16);
    let results: Vec<_> = formats(on, DType::F16)
        .into_iter()
        .flat_map(|format| [forward_variant(on, 8, format); 2])
        .map(|variant| problem.run(on, variant).unwrap())
        .collect();
    // Where shaders know no f16, one storage runs twice.
    assert_eq!(
        results.len(),
        if on.context.caps().shader_f16() { 4 } else { 2 }
    );
    for result in &results {
        assert_eq!(result, &results[0]);
    }
}

/// Numbers at which rounding is special, and neighbours of all f16 steps in one binade.
fn special_numbers() -> Vec<f32> {
    let mut numbers = vec![
        0.0,
        -0.0,
        65_504.0,
        65_519.996,
        65_520.0,
        -65_520.0,
        1e6,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        6.103_515_6e-5,
        6.1e-5,
        5.960_464_5e-8,
        2.980_232_2e-8,
        2.980_232_6e-8,
        8.940_697e-8,
        -1e-7,
        1e-10,
        1e-30,
        3.389_531_4e38,
        3.396e38,
    ];
    for i in 0..4096u32 {
        // Halfway between two numbers, just below and just above, for both types.
        let base = 1.0f32.to_bits() + (i << 12);
        numbers.extend([base, base - 1, base + 1].map(f32::from_bits));
        let base = 3.0f32.to_bits() + (i << 15);
        numbers.extend([base, base - 1, base + 1].map(f32::from_bits));
        numbers.push(i as f32 * 1.490_116_1e-8);
    }
    numbers.resize(numbers.len().next_multiple_of(4), 0.5);
    numbers
}

#[test]
fn conversions_round_as_the_host_does() {
    let numbers = special_numbers();
    for on in kernel_contexts() {
        let mut recorder = on.context.recorder("test");
        let x = recorder.upload("x", &[numbers.len()], &numbers).unwrap();
        let to_f16 = convert(&mut recorder, &x, DType::F16).unwrap();
        let to_bf16 = convert(&mut recorder, &x, DType::Bf16).unwrap();
        let f16s = recorder.download::<f16>(&to_f16).unwrap();
        let bf16s = recorder.download::<bf16>(&to_bf16).unwrap();
        let back = [&to_f16, &to_bf16].map(|half| {
            let wide = convert(&mut recorder, half, DType::F32).unwrap();
            recorder.download::<f32>(&wide).unwrap()
        });
        recorder.submit().unwrap();
        let (f16s, bf16s) = (f16s.wait().unwrap(), bf16s.wait().unwrap());
        for (index, number) in numbers.iter().enumerate() {
            let (expected, given) = (f16::from_f32(*number), f16s[index]);
            assert!(
                expected.is_nan() && given.is_nan() || expected.to_bits() == given.to_bits(),
                "{}: {number:e} is {given:?}, not {expected:?} in f16",
                on.name
            );
            let (expected, given) = (bf16::from_f32(*number), bf16s[index]);
            assert!(
                expected.is_nan() && given.is_nan() || expected.to_bits() == given.to_bits(),
                "{}: {number:e} is {given:?}, not {expected:?} in bf16",
                on.name
            );
        }
        let [from_f16, from_bf16] = back.map(|download| download.wait().unwrap());
        for (index, (wide, half)) in from_f16.iter().zip(&f16s).enumerate() {
            let expected = half.to_f32();
            assert!(
                *wide == expected || wide.is_nan() && expected.is_nan(),
                "{}: element {index}, {half:?}, is {wide:e} in f32",
                on.name
            );
        }
        for (wide, half) in from_bf16.iter().zip(&bf16s) {
            let expected = half.to_f32();
            assert!(*wide == expected || wide.is_nan() && expected.is_nan());
        }
    }
}

/// As in f32: whatever is no number stays with the rows that see it.
#[test]
fn values_that_are_no_numbers_stay_with_rows_that_see_them() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[16, 50], &[1, 3])
        .unwrap()
        .with_mask(Mask::Causal);
    let shape = AttentionShape::new(1, 60).unwrap();
    for dtype in HALVES {
        let variant = forward_variant(on, 8, formats(on, dtype)[0]);
        let problem = Problem::new(config.clone(), shape.clone(), 1.0).stored(dtype);
        let before = problem.run(on, variant).unwrap();
        let token = 40;
        for value in [f32::NAN, f32::INFINITY] {
            let mut poisoned = problem.clone();
            poisoned.v[token * 16..][..16].fill(value);
            let after = poisoned.run(on, variant).unwrap();
            assert_eq!(before.out[..token * 16], after.out[..token * 16]);
            let own = &after.out[token * 16..][..16];
            assert!(own.iter().all(|value| !value.is_finite()), "{own:?}");
        }
    }
}

/// Gradients of values are sums over the rows that see them: beyond the largest f16 they become infinite, and no others do;
/// bf16 has room for them.
#[test]
fn gradients_overflow_to_infinity() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[50], &[1]).unwrap();
    let mut problem = Problem::new(config, AttentionShape::new(1, 50).unwrap(), 1.0);
    problem.dout.fill(65_504.0);
    for dtype in HALVES {
        let problem = problem.clone().stored(dtype);
        let format = formats(on, dtype)[0];
        let long = DilatedAttentionConfig::new(1, 8, &[4096], &[1]).unwrap();
        let variant = BackwardFamily::of(&long, format)
            .choice(on.context.caps())
            .variant;
        let [_, _, dv] = backward::run(&problem, on, variant).unwrap();
        let Problem {
            config,
            shape,
            q,
            k,
            v,
            dout,
            ..
        } = &problem;
        let exact = reference::backward(config, shape, q, k, v, dout)
            .unwrap()
            .dv;
        let mut overflown = 0;
        for (given, exact) in dv.iter().zip(exact) {
            if dtype == DType::F16 && exact > 65_540.0 {
                assert_eq!(*given, f32::INFINITY);
                overflown += 1;
            } else if dtype == DType::Bf16 || exact < 65_500.0 {
                assert!((f64::from(*given) - exact).abs() < 0.01 * exact);
            }
        }
        assert_eq!(overflown > 0, dtype == DType::F16);
    }
}

fn zeros(recorder: &mut Recorder, dtype: DType) -> Tensor {
    recorder.zeros("zeros", &[1, 20, 2, 8], dtype).unwrap()
}

#[test]
fn mixed_types_are_errors() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[16], &[1]).unwrap();
    let attention = DilatedAttention::new(&on.context, config).unwrap();
    let shape = AttentionShape::new(1, 20).unwrap();
    let mut recorder = on.context.recorder("test");
    let [wide, half, brain] =
        [DType::F32, DType::F16, DType::Bf16].map(|dtype| zeros(&mut recorder, dtype));
    for (q, k, v, what, given, need) in [
        (&wide, &half, &wide, "k", DType::F16, DType::F32),
        (&half, &half, &wide, "v", DType::F32, DType::F16),
        (&brain, &half, &brain, "k", DType::F16, DType::Bf16),
    ] {
        let result = attention.forward_with(&mut recorder, q, k, v, &CallOptions::from(&shape));
        let expected = Error::WrongDType {
            what: what.into(),
            given,
            need,
        };
        assert_eq!(result.map(drop).unwrap_err(), expected);
    }
    let integers = zeros(&mut recorder, DType::U32);
    let result = attention.forward_with(
        &mut recorder,
        &integers,
        &integers,
        &integers,
        &CallOptions::from(&shape),
    );
    assert!(matches!(
        result,
        Err(Error::WrongDType { what, given: DType::U32, .. }) if what == "q"
    ));
    let forward = attention
        .forward_with(
            &mut recorder,
            &half,
            &half,
            &half,
            &CallOptions::from(&shape),
        )
        .unwrap();
    assert_eq!(forward.softmax_state.dtype(), DType::F32);
    let result = attention.backward_with(
        &mut recorder,
        [&half; 3],
        &forward.softmax_state,
        &wide,
        &CallOptions::from(&shape),
    );
    assert_eq!(
        result.map(drop).unwrap_err(),
        Error::WrongDType {
            what: "dout".into(),
            given: DType::F32,
            need: DType::F16
        }
    );
    let odd = recorder.zeros("odd", &[3], DType::F32).unwrap();
    let result = convert(&mut recorder, &odd, DType::F16);
    assert!(matches!(result, Err(Error::InvalidShape { .. })));
    let result = convert(&mut recorder, &integers, DType::F16);
    assert!(matches!(result, Err(Error::WrongDType { .. })));
}

#[test]
fn plans_promise_what_the_pool_measures() {
    let defaults = DeviceCaps::webgpu_defaults();
    let tight = defaults.clone().with_max_binding_bytes(16 << 10);
    for caps in [defaults, tight] {
        for dtype in HALVES {
            // It takes leases and runs nothing; another test runs one type on a device.
            let context = Context::dry_run(caps.clone());
            let config = DilatedAttentionConfig::new(2, 8, &[32, 700], &[2, 4]).unwrap();
            let attention = DilatedAttention::new(&context, config).unwrap();
            let shape = AttentionShape::new(1, 900).unwrap();
            let mut inputs = context.recorder("inputs");
            let q = inputs.zeros("q", &[1, 900, 2, 8], dtype).unwrap();
            inputs.submit().unwrap();
            let pool = context.pool();
            let measured = |record: &mut dyn FnMut(&mut Recorder)| {
                pool.trim();
                let before = pool.stats().requested_bytes.current;
                pool.reset_peaks();
                let mut recorder = context.recorder("measured");
                record(&mut recorder);
                recorder.submit().unwrap();
                pool.stats().requested_bytes.peak - before
            };
            let mut result = None;
            let bytes = measured(&mut |recorder| {
                result = Some(
                    attention
                        .forward_with(recorder, &q, &q, &q, &CallOptions::from(&shape))
                        .unwrap(),
                );
            });
            let plan = attention.plan(&shape, dtype).unwrap();
            assert_eq!(bytes, plan.requested_bytes(), "{plan}");
            let wide = attention.plan(&shape, DType::F32).unwrap();
            // The output is half as large; all else is as it was or, with fewer windows, less.
            assert!(wide.requested_bytes() - plan.requested_bytes() >= 900 * 16 * 2);
            let result = result.unwrap();
            let bytes = measured(&mut |recorder| {
                attention
                    .backward_with(
                        recorder,
                        [&q; 3],
                        &result.softmax_state,
                        &q,
                        &CallOptions::from(&shape),
                    )
                    .unwrap();
            });
            let plan = attention.plan_backward(&shape, dtype).unwrap();
            assert_eq!(bytes, plan.requested_bytes());
        }
    }
}

/// Heads of partitioned branches are divided before they are stored.
#[test]
fn rounding_a_tensor_is_what_storing_it_does() {
    let on = &kernel_contexts()[0];
    let config = DilatedAttentionConfig::new(2, 8, &[1, 1], &[1, 1])
        .unwrap()
        .with_heads(Heads::Partitioned);
    let problem = Problem::new(config, AttentionShape::new(1, 30).unwrap(), 1.0);
    for dtype in HALVES {
        let problem = problem.clone().stored(dtype);
        let variant = forward_variant(on, 8, formats(on, dtype)[0]);
        // One key a row: the output is its value.
        let halved: Vec<f32> = problem.v.iter().map(|value| value / 2.0).collect();
        assert_eq!(
            problem.run(on, variant).unwrap().out,
            rounded(dtype, &halved)
        );
    }
}
