//! Kernels with cooperative matrices: where the adapter has usable ones, against the f64 reference and the other kernels;
//! where it has none, that they are not offered and that the facts say why.
//!
//! Lavapipe has them from Mesa 26 on. It would not choose them itself, for they are slower there, so tests name the kernels.

use dilated_attention::kernel::Storage;
use dilated_attention::kernel::forward::{ForwardShape, ForwardVariant};
use dilated_attention::kernel::matmul::MatmulVariant;
use dilated_attention::plan::{CooperativeMatrix, DeviceFacts, NoCooperativeMatrix, Processor};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig,
    Error, Mask, wgpu,
};

use crate::forward::named_problems;
use crate::support::contexts::context_with;
use crate::support::kernel_contexts::{TestContext, kernel_contexts, tiny_bindings};
use crate::support::problem::Problem;

/// Whether kernels with cooperative matrices can run. Where not, it is checked that none is offered.
fn has_matrices(on: &TestContext) -> bool {
    let facts = on.context.facts();
    let forward = ForwardVariant::cooperative(64, Storage::F16, facts);
    let product = MatmulVariant::cooperative([Storage::F16; 2], facts);
    match on.context.cooperative_matrix() {
        Ok(matrix) => {
            assert_eq!(facts.cooperative_matrix, Ok(matrix));
            assert!(
                forward.is_ok() && product.is_ok(),
                "{forward:?} {product:?}"
            );
            true
        }
        Err(reason) => {
            assert_eq!(facts.cooperative_matrix, Err(reason.clone()));
            let reasons = [forward.unwrap_err(), product.unwrap_err()];
            for error in reasons {
                assert!(error.to_string().contains(&reason.to_string()), "{error}");
            }
            let chosen = ForwardVariant::choose(64, Storage::F16, facts);
            assert!(!chosen.shape.is_cooperative());
            false
        }
    }
}

/// What the adapter itself says, asked apart from the library.
fn usable_sizes(context: &Context) -> Vec<u32> {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters
        .iter()
        .find(|adapter| adapter.get_info() == *context.adapter_info())
        .expect("the adapter of the context");
    let products = adapter.cooperative_matrix_properties();
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
    for on in kernel_contexts() {
        let sizes = usable_sizes(&on.context);
        match on.context.cooperative_matrix() {
            Ok(matrix) => assert!(sizes.contains(&matrix.size), "{matrix} of {sizes:?}"),
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
        without_cooperative_matrices: true,
        ..ContextOptions::default()
    });
    assert_eq!(
        context.cooperative_matrix(),
        Err(NoCooperativeMatrix::FeatureOff)
    );
    let features = context.device().features();
    assert!(!features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX));
}

/// A device that an application brings has them if it was made with the features, and not else.
#[test]
fn devices_of_applications_have_matrices_with_their_features_alone() {
    let own = context_with(&ContextOptions::default());
    let brought =
        Context::from_device(own.device().clone(), own.queue().clone()).expect("large enough");
    assert_eq!(brought.cooperative_matrix(), own.cooperative_matrix());
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default())).unwrap();
    let brought = Context::from_device(device, queue).expect("large enough");
    assert_eq!(
        brought.cooperative_matrix(),
        Err(NoCooperativeMatrix::FeatureOff)
    );
}

/// A claim that is wrong, of features that are off or of lanes that a subgroup does not have, is found out.
#[test]
fn wrong_claims_are_refused_by_the_trial() {
    let context = context_with(&ContextOptions::default());
    let without = context_with(&ContextOptions {
        without_cooperative_matrices: true,
        ..ContextOptions::default()
    });
    let claimed = CooperativeMatrix {
        size: 8,
        lanes: 8,
        scalar_pointers: false,
    };
    let refusal = without.try_cooperative_matrix(claimed);
    assert!(
        matches!(refusal, Err(NoCooperativeMatrix::TrialFailed(_))),
        "{refusal:?}"
    );
    if let Ok(matrix) = context.cooperative_matrix() {
        assert_eq!(context.try_cooperative_matrix(matrix), Ok(()));
        let wrong = CooperativeMatrix {
            lanes: matrix.lanes / 2,
            ..matrix
        };
        let refusal = context.try_cooperative_matrix(wrong);
        assert!(
            matches!(refusal, Err(NoCooperativeMatrix::TrialWrong { .. })),
            "{refusal:?}"
        );
    }
}

/// The kernel with matrices on a context that has them.
fn forward(on: &TestContext, head_dim: u32) -> ForwardVariant {
    ForwardVariant::cooperative(head_dim, Storage::F16, on.context.facts()).expect("fits")
}

#[test]
fn named_forwards_equal_the_reference() {
    for on in [&kernel_contexts()[0], tiny_bindings()] {
        if !has_matrices(on) {
            continue;
        }
        for (name, problem) in named_problems() {
            problem
                .stored(DType::F16)
                .check_kernels(on, &[forward(on, 8)])
                .unwrap_or_else(|reason| panic!("{name}: {reason}"));
        }
    }
}
