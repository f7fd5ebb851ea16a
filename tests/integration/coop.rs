//! Kernels with cooperative matrices: where the adapter has usable ones, against the f64 reference and the other kernels;
//! where it has none, that they are not offered and that the capabilities say why.
//!
//! Lavapipe has them from Mesa 26 on. It would not choose them itself, for they are slower there, so tests name the kernels.

use dilated_attention::device::{DeviceCaps, KernelTier, NoCooperativeMatrix};
use dilated_attention::ops::{Activation, Matmul, convert};
use dilated_attention::testing::{
    BackwardFamily, BackwardVariant, CooperativeMatrix, ElementFormat, Family, ForwardFamily,
    ForwardVariant, MatmulFamily, MatmulVariant, Processor,
};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttentionConfig, Mask, MixGradient,
    UNCOVERED_LSE, wgpu,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::backward;
use crate::forward::{self, named_problems};
use crate::oracle::any_config;
use crate::support::contexts::context_with;
use crate::support::kernel_contexts::{
    TestContext, default_limits, kernel_contexts, tiny_bindings,
};
use crate::support::numbers::uniform;
use crate::support::problem::{Problem, roundoff};

/// Whether kernels with cooperative matrices can run. Where not, it is checked that none is offered.
fn has_matrices(on: &TestContext) -> bool {
    let caps = on.context.caps();
    let forward = ForwardFamily::of_long_segments(64, ElementFormat::F16).cooperative(caps);
    let product = MatmulFamily::of_factors(64, [ElementFormat::F16; 2]).cooperative(caps);
    match on.context.cooperative_tier() {
        Ok(tier) => {
            assert!(tier.is_cooperative() && caps.cooperative_matrix().is_ok());
            assert!(
                forward.is_ok() && product.is_ok(),
                "{forward:?} {product:?}"
            );
            true
        }
        Err(reason) => {
            assert_eq!(caps.cooperative_matrix(), Err(reason.clone()));
            let reasons = [forward.unwrap_err(), product.unwrap_err()];
            for error in reasons {
                assert!(error.to_string().contains(&reason.to_string()), "{error}");
            }
            let config = DilatedAttentionConfig::new(1, 64, &[64], &[1]).unwrap();
            let chosen = ForwardFamily::of(&config, ElementFormat::F16)
                .choice(caps)
                .variant;
            assert!(!chosen.is_cooperative());
            false
        }
    }
}

/// What the adapter itself says, asked apart from the library.
fn listed(context: &Context) -> Vec<wgpu::CooperativeMatrixProperties> {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters
        .iter()
        .find(|adapter| adapter.get_info() == *context.adapter_info())
        .expect("the adapter of the context");
    adapter.cooperative_matrix_properties()
}

fn usable_sizes(context: &Context) -> Vec<u32> {
    let products = listed(context);
    let usable = products.iter().filter(|product| {
        product.ab_type == wgpu::CooperativeScalarType::F16
            && product.cr_type == wgpu::CooperativeScalarType::F32
            && product.m_size == product.n_size
            && product.n_size == product.k_size
    });
    usable.map(|product| product.k_size).collect()
}

#[test]
fn matrices_are_offered_exactly_where_the_adapter_lists_them() {
    for on in contexts_with_features() {
        let sizes = usable_sizes(&on.context);
        match on.context.cooperative_tier() {
            Ok(tier) => {
                let size = if tier == KernelTier::Coop8 { 8 } else { 16 };
                assert!(sizes.contains(&size), "{tier} of {sizes:?}");
            }
            Err(reason) => {
                let fixed = on.context.adapter_info().subgroup_min_size
                    == on.context.adapter_info().subgroup_max_size;
                assert!(sizes.is_empty() || !fixed, "{sizes:?}, but {reason}");
            }
        }
        has_matrices(on);
    }
}

#[test]
fn options_leave_matrices_out() {
    let context = context_with(&ContextOptions {
        cooperative_matrices: false,
        ..ContextOptions::default()
    });
    assert_eq!(
        context.cooperative_tier(),
        Err(NoCooperativeMatrix::FeatureOff)
    );
    let features = context.device().features();
    assert!(!features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX));
}

/// A device that an application brings has them if it was made with the features, and not else.
#[test]
fn devices_of_applications_have_matrices_with_their_features_alone() {
    let own = context_with(&ContextOptions::default());
    let (device, queue) = (own.device().clone(), own.queue().clone());
    let options = ContextOptions::new().with_adapter_matrices(listed(&own));
    let brought = options.on_device(device.clone(), queue.clone());
    let brought = brought.expect("large enough");
    let tested = |context: &Context| pollster::block_on(context.test_cooperative_matrices());
    if listed(&own).is_empty() {
        assert!(brought.cooperative_tier().is_err());
    } else {
        assert_eq!(
            brought.cooperative_tier(),
            Err(NoCooperativeMatrix::NotTested)
        );
    }
    assert_eq!(tested(&brought), tested(&own));
    assert_eq!(brought.cooperative_tier(), own.cooperative_tier());
    // A device does not tell what its adapter lists.
    let untold = Context::from_device(device, queue).expect("large enough");
    assert!(untold.cooperative_tier().is_err());
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default())).unwrap();
    let brought = Context::from_device(device, queue).expect("large enough");
    assert_eq!(
        brought.cooperative_tier(),
        Err(NoCooperativeMatrix::FeatureOff)
    );
}

/// A claim that is wrong, of features that are off or of lanes that a subgroup does not have, is found out.
#[test]
fn wrong_claims_are_refused_by_the_self_test() {
    let context = context_with(&ContextOptions::default());
    let without = context_with(&ContextOptions {
        cooperative_matrices: false,
        ..ContextOptions::default()
    });
    let claimed = CooperativeMatrix {
        size: 8,
        lanes: 8,
        scalar_pointers: false,
    };
    let refusal = pollster::block_on(without.test_claim_of_matrices(claimed));
    assert!(
        matches!(refusal, Err(NoCooperativeMatrix::SelfTestFailed(_))),
        "{refusal:?}"
    );
    if pollster::block_on(context.test_cooperative_matrices()).is_ok() {
        let matrix = context.caps().cooperative_matrix().expect("tested");
        let test = |matrix| pollster::block_on(context.test_claim_of_matrices(matrix));
        assert_eq!(test(matrix), Ok(()));
        let wrong = CooperativeMatrix {
            lanes: matrix.lanes / 2,
            ..matrix
        };
        let refusal = test(wrong);
        assert!(
            matches!(refusal, Err(NoCooperativeMatrix::SelfTestWrong { .. })),
            "{refusal:?}"
        );
    }
}

/// The kernels with matrices on a context that has them.
fn forward_variant(on: &TestContext, head_dim: usize) -> ForwardVariant {
    ForwardFamily::of_long_segments(head_dim, ElementFormat::F16)
        .cooperative(on.context.caps())
        .expect("fits")
}

fn backward_variant(on: &TestContext, head_dim: usize) -> BackwardVariant {
    BackwardFamily::of_long_segments(head_dim, ElementFormat::F16)
        .cooperative(on.context.caps())
        .expect("fits")
}

/// Those of the contexts that have matrices.
fn contexts_with_matrices() -> Vec<&'static TestContext> {
    let all = contexts_with_features();
    all.into_iter().filter(|on| has_matrices(on)).collect()
}

/// Contexts with all that the adapter has but limits: of small workgroup memory, of small bindings, of all limits too.
fn contexts_with_features() -> [&'static TestContext; 3] {
    let all = [default_limits(), tiny_bindings(), &kernel_contexts()[1]];
    for on in all {
        // What is found is asked for below.
        let _ = pollster::block_on(on.context.test_cooperative_matrices());
    }
    all
}

#[test]
fn named_forwards_equal_the_reference() {
    for on in contexts_with_matrices() {
        for (name, problem) in named_problems() {
            let problem = problem.stored(DType::F16);
            problem
                .check_kernels(on, &[forward_variant(on, 8)])
                .unwrap_or_else(|reason| panic!("{name}: {reason}"));
        }
    }
}

/// Sizes of heads that are whole matrices and that are not, up to the largest, with scores that move the maximum.
#[test]
fn forwards_of_all_sizes_equal_the_reference() {
    for on in contexts_with_matrices() {
        // All workgroup memory the adapter has shows in the tile alone.
        let sizes: &[_] = match on.name {
            "default limits" => &[12, 128],
            "adapter limits" => &[16, 64],
            _ => continue,
        };
        for &head_dim in sizes {
            for query_scale in [1.0, 30.0] {
                let config = DilatedAttentionConfig::new(2, head_dim, &[24, 150], &[1, 2])
                    .unwrap()
                    .with_mask(Mask::Causal);
                let shape = AttentionShape::new(1, 150).unwrap();
                let problem = Problem::new(config, shape, query_scale).stored(DType::F16);
                let variant = forward_variant(on, head_dim);
                problem.check_kernels(on, &[variant]).unwrap();
            }
        }
    }
}

#[test]
fn named_gradients_equal_the_reference() {
    for on in contexts_with_matrices() {
        for (name, problem) in named_problems() {
            for gradient in [MixGradient::Exact, MixGradient::DetachedMix] {
                let mut problem = problem.clone().stored(DType::F16);
                problem.config = problem.config.with_gradient(gradient);
                backward::check_kernels(&problem, on, &[backward_variant(on, 8)])
                    .unwrap_or_else(|reason| panic!("{name}: {reason}"));
            }
        }
    }
}

#[test]
fn gradients_of_all_sizes_equal_the_reference() {
    for on in contexts_with_matrices() {
        let head_dim = match on.name {
            "default limits" => 12,
            "adapter limits" => 32,
            _ => continue,
        };
        let config = DilatedAttentionConfig::new(2, head_dim, &[24, 150], &[1, 2])
            .unwrap()
            .with_mask(Mask::Causal);
        let shape = AttentionShape::new(1, 150).unwrap();
        let problem = Problem::new(config, shape, 1.0).stored(DType::F16);
        backward::check_kernels(&problem, on, &[backward_variant(on, head_dim)]).unwrap();
    }
}

/// A matrix product would carry them to every row.
#[test]
fn values_that_are_no_numbers_stay_with_rows_that_see_them() {
    for on in contexts_with_matrices() {
        let config = DilatedAttentionConfig::new(3, 8, &[10, 70], &[1, 3]).unwrap();
        for config in [
            config.clone(),
            config.clone().with_mask(Mask::Causal),
            config.clone().with_torchscale().with_mask(Mask::Causal),
        ] {
            let shape = AttentionShape::new(2, 93).unwrap();
            let problem = Problem::new(config, shape, 1.0).stored(DType::F16);
            let variant = forward_variant(on, 8);
            forward::check_that_values_stay_with_rows_that_see_them(&problem, on, variant);
        }
        let shape = AttentionShape::new(1, 93).unwrap();
        let config = config.with_mask(Mask::Causal);
        let problem = Problem::new(config, shape, 1.0).stored(DType::F16);
        backward::check_that_values_stay_with_rows_that_see_them(
            &problem,
            on,
            backward_variant(on, 8),
        );
    }
}

/// Head sizes and types that the kernels are not for are told, and get the other kernels.
#[test]
fn other_sizes_and_types_are_refused_with_the_reason() {
    let caps = DeviceCaps::webgpu_defaults()
        .with_max_workgroup_memory_bytes(49_152)
        .with_cooperative_matrix(CooperativeMatrix {
            size: 16,
            lanes: 32,
            scalar_pointers: false,
        });
    let of = |head_dim| DilatedAttentionConfig::new(1, head_dim, &[64], &[1]).unwrap();
    let reason = |head_dim, format, caps: &DeviceCaps| {
        let chosen = ForwardFamily::of(&of(head_dim), format)
            .choice(caps)
            .variant;
        assert!(!chosen.is_cooperative(), "{chosen}");
        let forward = ForwardFamily::of_long_segments(head_dim, format)
            .cooperative(caps)
            .unwrap_err();
        let backward = BackwardFamily::of_long_segments(head_dim, format)
            .cooperative(caps)
            .unwrap_err();
        assert_eq!(forward, backward);
        forward.to_string()
    };
    let chosen = ForwardFamily::of(&of(128), ElementFormat::F16)
        .choice(&caps)
        .variant;
    assert!(chosen.is_cooperative());
    assert!(reason(132, ElementFormat::F16, &caps).contains("at most 128"));
    for format in [ElementFormat::F32, ElementFormat::Bf16Packed] {
        assert!(reason(64, format, &caps).contains("lose precision"));
    }
    let small = caps.clone().with_max_workgroup_memory_bytes(8192);
    assert!(reason(128, ElementFormat::F16, &small).contains("8192"));
    // Where they are slower.
    let cpu = caps.with_processor(Processor::Cpu {
        lanes: 8,
        uniform_loads: true,
        broadcasts: true,
    });
    assert!(
        !ForwardFamily::of(&of(64), ElementFormat::F16)
            .choice(&cpu)
            .variant
            .is_cooperative()
    );
    assert!(
        ForwardFamily::of_long_segments(64, ElementFormat::F16)
            .cooperative(&cpu)
            .is_ok()
    );
}

/// Random products: (rows, inner, columns), how they are stored, and what follows.
#[test]
fn products_equal_those_of_the_other_kernel() {
    for on in contexts_with_matrices() {
        let variant = MatmulFamily::of_factors(64, [ElementFormat::F16; 2])
            .cooperative(on.context.caps())
            .expect("fits");
        let mut draws = uniform(71, 1000).into_iter();
        let mut draw = |count: usize| ((draws.next().unwrap() * 0.5 + 0.5) * count as f32) as usize;
        for case in 0..24 {
            let sizes @ [rows, inner, columns] = [(); 3].map(|()| 4 * (1 + draw(30)));
            // Each way of storing the factors with one epilogue, so that few kernels are compiled.
            let way = draw(4);
            let (transpose_a, transpose_b, add) = (way % 2 == 1, way / 2 == 1, draw(2) == 1);
            let result = [DType::F32, DType::F16][way / 2];
            // Where bindings are small, sums come in parts, and parts cannot be activated.
            let parts = on.context.caps().max_binding_bytes() < 1 << 20;
            let activation = [Activation::Identity, Activation::Gelu][way % 2];
            let activation = if parts {
                Activation::Identity
            } else {
                activation
            };
            let add = parts || add && activation == Activation::Identity;
            let told =
                format!("{sizes:?} {transpose_a} {transpose_b} {add} {activation:?} {result}");
            let run = |variant| {
                let mut recorder = on.context.recorder("products");
                let mut stored = |seed, shape: &[usize], dtype| {
                    let values = uniform(seed, shape.iter().product());
                    let tensor = recorder.upload("factor", shape, &values).unwrap();
                    convert(&mut recorder, &tensor, dtype).unwrap()
                };
                let dims = |rows, columns, transposed| match transposed {
                    true => [columns, rows],
                    false => [rows, columns],
                };
                let a = stored(case + 1, &dims(rows, inner, transpose_a), DType::F16);
                let b = stored(case + 2, &dims(inner, columns, transpose_b), DType::F16);
                let bias = stored(case + 3, &[columns], DType::F32);
                let residual = stored(case + 4, &[rows, columns], result);
                let c = stored(case + 5, &[rows, columns], result);
                let mut product = Matmul::new(a.matrix(), b.matrix());
                if transpose_a {
                    product = product.with_transposed_a();
                }
                if transpose_b {
                    product = product.with_transposed_b();
                }
                product = product.with_variant(variant).with_bias(Some(bias.matrix()));
                match add {
                    true => product.add(&mut recorder, c.matrix()).unwrap(),
                    false => product
                        .with_activation(activation)
                        .with_residual(residual.matrix(), 0.5)
                        .write(&mut recorder, c.matrix())
                        .unwrap(),
                }
                let c = convert(&mut recorder, &c, DType::F32).unwrap();
                let c = recorder.download::<f32>(&c).unwrap();
                recorder.submit().unwrap();
                c.wait().unwrap()
            };
            let [with, again, without] = [variant, variant, MatmulVariant::Tile].map(run);
            assert_eq!(with, again, "{told}");
            // Both sum exact products in f32, in another order; then each rounds once.
            let largest = without.iter().fold(1.0, |max: f32, x| max.max(x.abs()));
            let allowed = 2.0 * inner as f64 * f64::from(f32::EPSILON) + 2.0 * roundoff(result);
            for (i, (with, without)) in with.iter().zip(&without).enumerate() {
                let off = f64::from((with - without).abs());
                assert!(
                    off <= allowed * f64::from(largest),
                    "{told}: {i} is {with}, not {without}"
                );
            }
        }
    }
}

/// Random configurations on random lengths: a store of a matrix that is read too early shows as a difference from the other
/// kernel, or from the run before. `COOP_STRESS_CASES` sets how many; the default takes some seconds.
#[test]
fn attention_of_random_shapes_equals_that_of_the_other_kernels() {
    let cases = match std::env::var("COOP_STRESS_CASES") {
        Ok(number) => number.parse().expect("a number"),
        Err(_) => 16,
    };
    for on in contexts_with_matrices() {
        let caps = on.context.caps();
        let strategy = (any_config(), 0..400usize, 0..3usize, 0..3usize);
        let mut runner = TestRunner::new_with_rng(
            ProptestConfig::default(),
            TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
        );
        let cases = std::iter::repeat_with(|| strategy.new_tree(&mut runner).unwrap().current())
            // Kernels are compiled for one size of heads.
            .filter(|(config, ..)| config.head_dim() == 8)
            .take(cases);
        for (config, tokens, batch, scale) in cases {
            let valid = (0..batch)
                .map(|item| tokens / (item + 1))
                .collect::<Vec<_>>();
            let shape = AttentionShape::new(batch, tokens).unwrap();
            let shape = shape.with_valid_lens(&valid).unwrap();
            let problem = Problem::new(config, shape, [0.1, 1.0, 40.0][scale]).stored(DType::F16);
            let told = format!("{} on {:?}, {}", problem.config, problem.shape, on.name);
            let [with, again] = [(); 2].map(|()| problem.run(on, forward_variant(on, 8)).unwrap());
            assert_eq!(with, again, "{told}");
            let tile = KernelTier::Tile;
            let config = &problem.config;
            let other = ForwardFamily::of(config, ElementFormat::F16)
                .of_tier(tile, caps)
                .unwrap();
            let without = problem.run(on, other).unwrap();
            // Weights are rounded to f16, and each branch rounds the output.
            let branches = problem.config.branches().len() as f64;
            let allowed = (2.0 + 2.0 * branches) * roundoff(DType::F16);
            assert_alike(&told, &with.out, &without.out, allowed);
            assert_alike(&told, &with.softmax_lse, &without.softmax_lse, 1e-5);
            let [with, again] =
                [(); 2].map(|()| backward::run(&problem, on, backward_variant(on, 8)).unwrap());
            assert_eq!(with, again, "{told}");
            let other = BackwardFamily::of(config, ElementFormat::F16)
                .of_tier(tile, caps)
                .unwrap();
            let without = backward::run(&problem, on, other).unwrap();
            for (with, without) in with.iter().zip(&without) {
                assert_alike(&told, with, without, 2.0 * allowed);
            }
        }
    }
}

/// Whether both are the same up to `allowed` times the largest, or 1; and cover the same.
#[track_caller]
fn assert_alike(told: &str, given: &[f32], other: &[f32], allowed: f64) {
    let uncovered = |x: f32| x < 0.1 * UNCOVERED_LSE;
    let covered = other.iter().filter(|x| !uncovered(**x));
    let largest = covered.fold(1.0, |max: f32, x| max.max(x.abs()));
    assert_eq!(given.len(), other.len());
    for (i, (given, other)) in given.iter().zip(other).enumerate() {
        let off = f64::from((given - other).abs());
        assert!(
            off <= allowed * f64::from(largest) && uncovered(*given) == uncovered(*other),
            "{told}: {i} is {given}, not {other}; the largest is {largest}"
        );
    }
}
