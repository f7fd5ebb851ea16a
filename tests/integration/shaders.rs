//! Every shader, in every specialisation: valid, translatable for three platforms, and in agreement with the host.

use dilated_attention::DilatedAttentionConfig;
use dilated_attention::kernel::backward::{BackwardShape, BackwardVariant};
use dilated_attention::kernel::forward::{ForwardShape, ForwardVariant};
use dilated_attention::kernel::matmul::MatmulVariant;
use dilated_attention::kernel::{Access, Activation, Cell, Kernel, MOST_INVOCATIONS, Storage};
use dilated_attention::plan::{CooperativeMatrix, DeviceFacts, Pass, Processor};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess, TypeInner};

fn facts_of_every_kind() -> Vec<DeviceFacts> {
    let gpu = DeviceFacts::webgpu_defaults();
    let mut facts = vec![gpu.clone()];
    facts.push(DeviceFacts {
        max_workgroup_memory_bytes: 32_768,
        ..gpu.clone()
    });
    for lanes in [4, 8, 16] {
        for uniform_loads in [false, true] {
            for broadcasts in [false, true] {
                facts.push(DeviceFacts {
                    max_workgroup_memory_bytes: 32_768,
                    processor: Processor::Cpu {
                        lanes,
                        uniform_loads,
                        broadcasts,
                    },
                    ..gpu.clone()
                });
            }
        }
    }
    facts
}

fn broadcasts(facts: &DeviceFacts) -> bool {
    let Processor::Cpu {
        lanes, broadcasts, ..
    } = facts.processor
    else {
        return false;
    };
    lanes == 8 && broadcasts
}

/// Facts of devices with each kind of cooperative matrices, and each size of workgroup memory.
fn facts_with_matrices() -> Vec<DeviceFacts> {
    let matrix = |size, lanes, scalar_pointers| CooperativeMatrix {
        size,
        lanes,
        scalar_pointers,
    };
    // NVIDIA; lavapipe; Metal.
    let matrices = [
        matrix(16, 32, false),
        matrix(8, 8, false),
        matrix(8, 32, true),
    ];
    let facts = matrices.into_iter().flat_map(|matrix| {
        [16_384, 32_768, 49_152].map(|max_workgroup_memory_bytes| DeviceFacts {
            max_workgroup_memory_bytes,
            shader_f16: true,
            cooperative_matrix: Ok(matrix),
            ..DeviceFacts::webgpu_defaults()
        })
    });
    facts.collect()
}

/// Every kernel with cooperative matrices. No HLSL is written of these: naga has none for them.
pub fn cooperative_kernels() -> Vec<(Kernel, DeviceFacts)> {
    let mut kernels = Vec::new();
    for facts in facts_with_matrices() {
        for head_dim in [4, 12, 16, 24, 32, 48, 64, 80, 96, 128] {
            let forward = ForwardVariant::cooperative(head_dim, Storage::F16, &facts);
            kernels.push((Kernel::Forward(forward.expect("fits")), facts.clone()));
            let backward = BackwardVariant::cooperative(head_dim, Storage::F16, &facts);
            let backward = backward.expect("fits");
            let passes = backward.passes().iter();
            kernels.extend(
                passes
                    .filter_map(|pass| backward.kernel(*pass))
                    .map(|kernel| (kernel, facts.clone())),
            );
        }
        let variant = MatmulVariant::cooperative([Storage::F16; 2], &facts).expect("fits");
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            for (activation, result) in Activation::ALL
                .into_iter()
                .flat_map(|activation| Cell::ALL.map(|cell| (activation, cell)))
                .filter(|(_, cell)| matches!(cell, Cell::Scalar | Cell::Vec4(Storage::F16)))
            {
                let kernel = Kernel::Matmul {
                    variant,
                    left: Storage::F16,
                    right: Storage::F16,
                    transpose_a,
                    transpose_b,
                    activation,
                    result,
                };
                kernels.push((kernel, facts.clone()));
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    kernels.retain(|(kernel, _)| seen.insert(*kernel));
    kernels
}

fn all_kernels() -> Vec<(Kernel, DeviceFacts)> {
    [kernels(), cooperative_kernels()].concat()
}

/// Those chosen for narrow to wide results on every kind of device.
fn matmul_variants() -> std::collections::HashSet<MatmulVariant> {
    facts_of_every_kind()
        .iter()
        .flat_map(|facts| [1, 64, 256, 768, 1024, 3072].map(|columns| (columns, facts)))
        .flat_map(|(columns, facts)| {
            [false, true].map(|transpose_b| {
                MatmulVariant::choose(columns, [Storage::F32; 2], [false, transpose_b], facts)
            })
        })
        .collect()
}

fn layer_kernels() -> Vec<Kernel> {
    let mut kernels = vec![
        Kernel::Fill,
        Kernel::SumPartials,
        Kernel::LayerNormBackward(Cell::Scalar),
        Kernel::LayerNormBackward(Cell::Vec4(Storage::F32)),
        Kernel::EmbeddingBackward,
        Kernel::CrossEntropy,
        Kernel::AdamW,
    ];
    for cell in Cell::ALL {
        kernels.extend([
            Kernel::LayerNorm(cell),
            Kernel::Blend(cell),
            Kernel::Embedding(cell),
        ]);
    }
    for storage in Storage::ALL {
        kernels.extend([
            Kernel::Xpos(storage),
            Kernel::FromF32(storage),
            Kernel::ToF32(storage),
        ]);
    }
    // Left factors, right factors and results: of one type, or each of the last two f32.
    let stored = Storage::ALL.into_iter().flat_map(|left| {
        [
            (left, Storage::F32, Cell::smallest(left)),
            (left, Storage::F32, Cell::Scalar),
            (left, left, Cell::smallest(left)),
        ]
    });
    let stored: std::collections::HashSet<_> = stored.collect();
    for activation in Activation::ALL {
        for cell in Cell::ALL {
            kernels.push(Kernel::Activation { activation, cell });
        }
        kernels.push(Kernel::ActivationBackward(activation));
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            for variant in matmul_variants() {
                for &(left, right, result) in &stored {
                    let result = match (variant, result) {
                        (MatmulVariant::Broadcast { .. }, Cell::Scalar) => Cell::Vec4(Storage::F32),
                        _ => result,
                    };
                    kernels.push(Kernel::Matmul {
                        variant,
                        transpose_a,
                        transpose_b,
                        activation,
                        left,
                        right,
                        result,
                    });
                }
            }
        }
    }
    for flag in [false, true] {
        kernels.push(Kernel::ColumnSums { normalised: flag });
        kernels.push(Kernel::Reduce { squares: flag });
    }
    kernels
}

fn kernels() -> Vec<(Kernel, DeviceFacts)> {
    let mut kernels: Vec<_> = layer_kernels()
        .into_iter()
        .map(|kernel| (kernel, DeviceFacts::webgpu_defaults()))
        .collect();
    for facts in facts_of_every_kind() {
        // Only a device with f16 in shaders takes kernels that store it so; one with it takes the others, too.
        let facts = DeviceFacts {
            shader_f16: true,
            ..facts
        };
        let head_dims = [4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 256].into_iter();
        let stored = head_dims.flat_map(|head_dim| Storage::ALL.map(|storage| (head_dim, storage)));
        // The sizes at which kernels change their structure, for half precision.
        let stored = stored.filter(|(head_dim, storage)| {
            *storage == Storage::F32 || [4, 64, 128, 256].contains(head_dim)
        });
        for (head_dim, storage) in stored {
            for shape in ForwardShape::ALL {
                if shape == ForwardShape::Broadcast && !broadcasts(&facts) {
                    continue;
                }
                let variant = ForwardVariant::with_shape(shape, head_dim, storage, &facts);
                kernels.push((Kernel::Forward(variant), facts.clone()));
            }
            for shape in BackwardShape::all(head_dim, &facts) {
                if matches!(shape, BackwardShape::Products(_)) && !broadcasts(&facts) {
                    continue;
                }
                let variant = BackwardVariant::with_shape(shape, head_dim, storage, &facts);
                for pass in [&[Pass::Means], variant.passes()].concat() {
                    kernels.push((
                        variant.kernel(pass).expect("of the backward"),
                        facts.clone(),
                    ));
                }
            }
            kernels.push((Kernel::TokenWeights { head_dim, storage }, facts.clone()));
        }
    }
    let mut seen = std::collections::HashSet::new();
    kernels.retain(|(kernel, _)| seen.insert(*kernel));
    kernels
}

fn uses_subgroups(kernel: &Kernel) -> bool {
    match kernel {
        Kernel::Forward(variant) => variant.shape == ForwardShape::Broadcast,
        Kernel::Backward(kernel) => {
            matches!(kernel.variant().shape, BackwardShape::Products(_))
        }
        Kernel::Matmul { variant, .. } => matches!(variant, MatmulVariant::Broadcast { .. }),
        _ => false,
    }
}

pub fn parse(kernel: Kernel) -> Module {
    naga::front::wgsl::parse_str(&kernel.source())
        .unwrap_or_else(|error| panic!("{kernel:?}: {}", error.emit_to_string(&kernel.source())))
}

#[test]
fn every_kernel_is_valid_and_translates_to_spirv_msl_and_hlsl() {
    for (kernel, _) in kernels() {
        let module = parse(kernel);
        // No capability beyond WebGPU's defaults (unpack2x16float is one of them), but for the one that a storage is for.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SHADER_FLOAT16, kernel.stores_f16());
        capabilities.set(Capabilities::SUBGROUP, uses_subgroups(&kernel));
        let info = translate(kernel, &module, capabilities);
        let mut text = String::new();
        let options = hlsl::Options {
            fake_missing_bindings: true,
            ..Default::default()
        };
        hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .unwrap_or_else(|error| panic!("{kernel:?} to HLSL: {error}"));
        assert!(text.contains(kernel.name()));
    }
}

#[test]
fn every_kernel_with_matrices_is_valid_and_translates_to_spirv_and_msl() {
    for (kernel, _) in cooperative_kernels() {
        let capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | Capabilities::SHADER_FLOAT16
            | Capabilities::COOPERATIVE_MATRIX;
        translate(kernel, &parse(kernel), capabilities);
    }
}

/// Validates a kernel and writes it as SPIR-V and MSL.
fn translate(kernel: Kernel, module: &Module, capabilities: Capabilities) -> ModuleInfo {
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(module)
        .unwrap_or_else(|error| panic!("{kernel:?}: {error:?}"));
    let words = spv::write_vec(module, &info, &spv::Options::default(), None)
        .unwrap_or_else(|error| panic!("{kernel:?} to SPIR-V: {error}"));
    assert!(words.len() > 100);
    let options = msl::Options {
        // The first that has matrices.
        lang_version: (2, 3),
        fake_missing_bindings: true,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions::default();
    let (text, _) = msl::write_string(module, &info, &options, &pipeline)
        .unwrap_or_else(|error| panic!("{kernel:?} to MSL: {error}"));
    assert!(text.contains(kernel.name()));
    info
}

/// The largest that any kernel needs is what a device has to have, no more and no less. Cooperative matrices are only used where
/// the device has what they need.
#[test]
fn the_least_limits_of_a_device_are_what_kernels_need() {
    let kernels = kernels();
    let most = |of: &dyn Fn(&Kernel) -> u64| kernels.iter().map(|(kernel, _)| of(kernel)).max();
    let least = DeviceFacts::least_limits();
    let bindings = most(&|kernel| kernel.bindings().len() as u64);
    let given = u64::from(least.max_storage_buffers_per_shader_stage);
    assert_eq!(bindings, Some(given));
    let params = most(&Kernel::params_bytes);
    assert_eq!(params, Some(least.max_uniform_buffer_binding_size));
    let invocations = most(&|kernel| {
        let [x, y, z] = parse(*kernel).entry_points[0].workgroup_size;
        assert_eq!((y, z), (1, 1), "{kernel:?}");
        x.into()
    });
    let given = least.max_compute_invocations_per_workgroup;
    assert_eq!(invocations, Some(given.into()));
    assert_eq!(given, least.max_compute_workgroup_size_x);
}

#[test]
fn entry_points_bear_the_name_of_the_kernel_and_fit_webgpu_defaults() {
    for (kernel, _) in all_kernels() {
        let module = parse(kernel);
        assert_eq!(module.entry_points.len(), 1);
        let entry = &module.entry_points[0];
        assert_eq!(entry.name, kernel.name());
        let invocations: u32 = entry.workgroup_size.iter().product();
        assert!(
            invocations <= MOST_INVOCATIONS,
            "{kernel:?} has {invocations} invocations"
        );
    }
}

#[test]
fn workgroup_memory_is_what_the_plan_says_and_within_the_limit() {
    for (kernel, facts) in all_kernels() {
        let module = parse(kernel);
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
            // Drivers align each variable; 16 bytes is the largest alignment of any type used.
            .map(|(_, variable)| size(&module, variable.ty).next_multiple_of(16))
            .sum();
        assert!(
            bytes <= facts.max_workgroup_memory_bytes,
            "{kernel:?} takes {bytes} bytes"
        );
        let (variant, pass) = match kernel {
            Kernel::Forward(variant) => {
                assert_eq!(bytes, variant.workgroup_memory_bytes(), "{kernel:?}");
                assert!(variant.check(variant.head_dim, &facts).is_ok());
                continue;
            }
            Kernel::Matmul {
                variant: MatmulVariant::Coop(product),
                ..
            } => {
                assert!(bytes <= product.workgroup_memory_bytes(), "{kernel:?}");
                continue;
            }
            Kernel::Backward(kernel) => (kernel.variant(), kernel.pass()),
            _ => continue,
        };
        assert_eq!(bytes, variant.workgroup_memory_bytes(pass), "{kernel:?}");
        assert!(variant.check(variant.head_dim, &facts).is_ok());
    }
}

#[test]
fn every_head_size_gets_a_kernel_that_fits_on_every_kind_of_device() {
    for facts in facts_of_every_kind() {
        for head_dim in (4..=256).step_by(4) {
            let config = DilatedAttentionConfig::new(1, head_dim, &[1000], &[1]).unwrap();
            let variant = ForwardVariant::choose(&config, Storage::F32, &facts);
            assert!(variant.workgroup_memory_bytes() <= facts.max_workgroup_memory_bytes);
            variant
                .check(head_dim, &facts)
                .expect("the chosen kernel fits");
            BackwardVariant::choose(&config, Storage::F32, &facts)
                .check(head_dim, &facts)
                .expect("the chosen kernels fit");
        }
    }
}

fn size(module: &Module, ty: naga::Handle<naga::Type>) -> u32 {
    module.types[ty].inner.size(module.to_ctx())
}

#[test]
fn bindings_agree_with_the_kernel_table() {
    for (kernel, _) in all_kernels() {
        let module = parse(kernel);
        let mut bindings: Vec<_> = module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| Some((variable.binding?.binding, variable)))
            .collect();
        bindings.sort_by_key(|(number, _)| *number);
        let (uniform, storage) = bindings.split_first().expect("parameters");
        assert_eq!(uniform.0, 0);
        assert_eq!(uniform.1.space, AddressSpace::Uniform);
        assert_eq!(
            u64::from(size(&module, uniform.1.ty)),
            kernel.params_bytes()
        );
        let expected: Vec<_> = (1..)
            .zip(kernel.bindings())
            .map(|(number, access)| {
                let access = match access {
                    Access::Read => StorageAccess::LOAD,
                    Access::ReadWrite => StorageAccess::LOAD | StorageAccess::STORE,
                };
                (number, AddressSpace::Storage { access })
            })
            .collect();
        let found: Vec<_> = storage
            .iter()
            .map(|(n, variable)| (*n, variable.space))
            .collect();
        assert_eq!(found, expected, "{kernel:?}");
        assert!(
            found.len() <= 7,
            "Metal takes one of WebGPU's eight storage buffers"
        );
    }
}

/// Name and offset of each field of the shader's struct.
fn shader_fields(kernel: Kernel, name: &str) -> Vec<(String, usize)> {
    let module = parse(kernel);
    let (_, ty) = module
        .types
        .iter()
        .find(|(_, ty)| ty.name.as_deref() == Some(name))
        .expect("the parameter struct");
    let TypeInner::Struct { members, .. } = &ty.inner else {
        panic!("{name} is a struct");
    };
    members
        .iter()
        .map(|member| (member.name.clone().expect("named"), member.offset as usize))
        .collect()
}

#[test]
fn parameter_structs_have_the_same_layout_on_both_sides() {
    for (kernel, _) in all_kernels() {
        let host = kernel.params();
        let fields: Vec<_> = host
            .fields
            .iter()
            .map(|(name, offset)| ((*name).to_owned(), *offset))
            .collect();
        assert!(!fields.is_empty());
        assert_eq!(shader_fields(kernel, host.name), fields, "{kernel:?}");
    }
}
