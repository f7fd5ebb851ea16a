//! Every shader, in every specialisation: valid, translatable for three platforms, and in agreement with the host.

use std::collections::HashSet;

use dilated_attention::DilatedAttentionConfig;
use dilated_attention::device::{DeviceCaps, KernelTier};
use dilated_attention::testing::{
    Access, BackwardFamily, ElementFormat, Family, ForwardFamily, Kernel, MOST_INVOCATIONS,
};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess, TypeInner};

use crate::support::snapshot::assert_snapshot;

/// Every kernel for heads of each size at which kernels change their structure, with a device that has it.
pub fn all_kernels() -> Vec<(Kernel, DeviceCaps)> {
    let head_dims = [4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 256].into_iter();
    let stored = head_dims.flat_map(|head_dim| ElementFormat::ALL.map(|format| (head_dim, format)));
    // Half precision changes what is loaded, but for matrices, whose tiles it is.
    let few = |head_dim: u32, format| {
        format == ElementFormat::F32 || [4, 64, 128, 256].contains(&head_dim)
    };
    let kinds = DeviceCaps::of_every_kind();
    let mut seen = HashSet::new();
    let mut kernels = Vec::new();
    for (head_dim, format) in stored {
        for caps in &kinds {
            let all = Kernel::all(head_dim, format, caps).into_iter();
            let wanted = all.filter(|kernel| few(head_dim, format) || is_cooperative(kernel));
            let new = wanted.filter(|kernel| seen.insert(*kernel));
            kernels.extend(new.map(|kernel| (kernel, caps.clone())));
        }
    }
    kernels
}

fn is_cooperative(kernel: &Kernel) -> bool {
    kernel.tier().is_some_and(KernelTier::is_cooperative)
}

/// Those without cooperative matrices.
fn kernels() -> Vec<(Kernel, DeviceCaps)> {
    let mut kernels = all_kernels();
    kernels.retain(|(kernel, _)| !is_cooperative(kernel));
    kernels
}

/// Every kernel with cooperative matrices. No HLSL is written of these: naga has none for them.
pub fn cooperative_kernels() -> Vec<(Kernel, DeviceCaps)> {
    let mut kernels = all_kernels();
    kernels.retain(|(kernel, _)| is_cooperative(kernel));
    kernels
}

pub fn parse(kernel: Kernel) -> Module {
    let shader = kernel.shader().expect("expands");
    naga::front::wgsl::parse_str(&shader.text).unwrap_or_else(|error| {
        let message = error.emit_to_string(&shader.text);
        panic!("{}: {}", kernel.key(), shader.with_origins(&message))
    })
}

#[test]
fn every_tier_of_every_family_is_among_the_kernels() {
    let found: HashSet<_> = all_kernels()
        .iter()
        .filter_map(|(kernel, _)| Some((std::mem::discriminant(kernel), kernel.tier()?)))
        .collect();
    // Forward, backward, products.
    assert_eq!(found.len(), 3 * KernelTier::ALL.len());
}

/// A change of a shader file shows what it changes in these.
#[test]
fn expanded_shaders_change_only_on_purpose() {
    let kernels = all_kernels();
    // With heads, formats and flags that differ, so that every branch of the fragments is in one of them.
    for (name, fields) in [
        ("forward_tile", "head_dim=64 format=f32"),
        ("forward_coop", "head_dim=24 format=f16 size=16"),
        ("forward_rows", "head_dim=4 format=f16_packed lanes=8"),
        ("forward_broadcast", "head_dim=4 format=bf16_packed"),
        ("backward_branch_delta_tile", "head_dim=64 format=f16"),
        ("backward_dq_tile", "head_dim=4 format=f32"),
        (
            "backward_dkdv_coop",
            "head_dim=12 format=f16 size=8 subgroup=32 scalar_pointers=true",
        ),
        ("backward_dkdv_rows", "head_dim=8 format=f32 lanes=8"),
        (
            "backward_gradient_broadcast",
            "head_dim=8 format=f32 rows=8",
        ),
        ("token_weights", "head_dim=64 format=f32"),
        (
            "matmul_tile",
            "transpose_a=true transpose_b=false activation=silu",
        ),
        ("matmul_coop", "size=16 subgroup=32"),
        (
            "matmul_rows",
            "lanes=8 lane_groups=4 transpose_a=false transpose_b=true activation=relu",
        ),
        (
            "matmul_broadcast",
            "rows=4 vec4s=6 depth=4 transpose_a=false transpose_b=true activation=gelu",
        ),
        ("norm", "centred=true width=vec4 format=f32"),
        ("xpos", "format=f16_packed"),
    ] {
        let mut found = kernels.iter().filter(|(kernel, _)| {
            let key = kernel.key();
            kernel.name() == name
                && fields
                    .split(' ')
                    .all(|field| key.split(' ').any(|f| f == field))
        });
        let (kernel, _) = found
            .next()
            .unwrap_or_else(|| panic!("no {name} with {fields}"));
        let text = format!("// {}\n{}", kernel.key(), kernel.shader().expect("expands"));
        assert_snapshot(&format!("shaders/{name}"), &text);
    }
}

/// What a compiler says of a shader names the file and the line that someone wrote.
#[test]
fn places_in_messages_are_those_of_the_source() {
    let mut kernels = all_kernels().into_iter().map(|(kernel, _)| kernel);
    let kernel = kernels
        .find(|kernel| kernel.name() == "forward_tile")
        .expect("is one");
    let shader = kernel.shader().expect("expands");
    let broken = shader
        .text
        .replace("tile.batch * params.seq_len", "tile.batch * nothing");
    assert_ne!(broken, shader.text);
    let error = naga::front::wgsl::parse_str(&broken).expect_err("has no such name");
    let told = shader.with_origins(&error.emit_to_string(&broken));
    let source = include_str!("../../shaders/attention/geometry.wgsl");
    let line = 1 + source
        .lines()
        .position(|line| line.contains("tile.batch * params.seq_len"))
        .expect("is there");
    assert!(
        told.contains(&format!("shaders/attention/geometry.wgsl:{line}:")),
        "{told}"
    );
    // Places that are nowhere stay as they are.
    assert_eq!(
        shader.with_origins("wgsl:999999:1 wgsl:x wgsl:"),
        "wgsl:999999:1 wgsl:x wgsl:"
    );
}

#[test]
fn names_and_fields_tell_kernels_apart() {
    let kernels = all_kernels();
    let keys: HashSet<_> = kernels.iter().map(|(kernel, _)| kernel.key()).collect();
    assert_eq!(keys.len(), kernels.len());
    // With its ending, the name of a file that shaders are dumped to.
    assert!(keys.iter().all(|key| key.len() + ".wgsl".len() <= 255));
}

#[test]
fn every_kernel_is_valid_and_translates_to_spirv_msl_and_hlsl() {
    for (kernel, _) in kernels() {
        let module = parse(kernel);
        // No capability beyond WebGPU's defaults (unpack2x16float is one of them), but for the one that a storage is for.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        let shader = kernel.shader().expect("expands");
        capabilities.set(Capabilities::SHADER_FLOAT16, shader.enables("f16"));
        let broadcasts = kernel.tier() == Some(KernelTier::Broadcast);
        capabilities.set(Capabilities::SUBGROUP, broadcasts);
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
    let least = DeviceCaps::least_limits();
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
    for (kernel, caps) in all_kernels() {
        let module = parse(kernel);
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
            // Drivers align each variable; 16 bytes is the largest alignment of any type used.
            .map(|(_, variable)| size(&module, variable.ty).next_multiple_of(16))
            .sum();
        assert!(
            bytes <= caps.max_workgroup_memory_bytes(),
            "{kernel:?} takes {bytes} bytes"
        );
        let Some(expected) = kernel.workgroup_memory_bytes() else {
            continue;
        };
        match kernel {
            // Padding is least along the longer side, so that untransposed factors take less.
            Kernel::Matmul(_) => assert!(bytes <= expected, "{}", kernel.key()),
            _ => assert_eq!(bytes, expected, "{}", kernel.key()),
        }
    }
}

#[test]
fn every_head_size_gets_a_kernel_that_fits_on_every_kind_of_device() {
    for caps in DeviceCaps::of_every_kind() {
        for head_dim in (4..=256).step_by(4) {
            let config = DilatedAttentionConfig::new(1, head_dim, &[1000], &[1]).unwrap();
            let variant = ForwardFamily::of(&config, ElementFormat::F32)
                .choice(&caps)
                .variant;
            variant
                .check(head_dim, &caps)
                .expect("the chosen kernel fits");
            BackwardFamily::of(&config, ElementFormat::F32)
                .choice(&caps)
                .variant
                .check(head_dim, &caps)
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
        let (uniform, format) = bindings.split_first().expect("parameters");
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
        let found: Vec<_> = format
            .iter()
            .map(|(n, variable)| (*n, variable.space))
            .collect();
        assert_eq!(found, expected, "{kernel:?}");
        assert!(
            found.len() <= 7,
            "Metal takes one of WebGPU's eight format buffers"
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
