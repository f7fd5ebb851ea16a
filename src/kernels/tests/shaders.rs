//! Every shader, in every specialisation: valid, translatable for three platforms, and in agreement with the host.

use std::collections::HashSet;

use expect_test::expect_file;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess, TypeInner};

use crate::DilatedAttentionConfig;
use crate::device::limits::MOST_INVOCATIONS;
use crate::device::{DeviceCaps, ElementFormat, KernelTier};
use crate::kernels::attention_backward::BackwardFamily;
use crate::kernels::attention_forward::ForwardFamily;
use crate::kernels::{Access, Family, Kernel, Shader};

use super::barriers::waits_for_what_it_reads;

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

pub fn is_cooperative(kernel: &Kernel) -> bool {
    kernel.tier().is_some_and(KernelTier::is_cooperative)
}

/// A kernel's shader as the front end reads it.
pub fn parse(kernel: &Kernel) -> (Shader, Module) {
    let shader = kernel.shader().expect("expands");
    let module = naga::front::wgsl::parse_str(&shader.text).unwrap_or_else(|error| {
        let message = error.emit_to_string(&shader.text);
        panic!("{}: {}", kernel.key(), shader.with_origins(&message))
    });
    (shader, module)
}

/// Reads each kernel once, since that is what takes long, and checks all that there is to check of it.
#[test]
fn every_kernel_is_valid_and_agrees_with_the_host() {
    let kernels = all_kernels();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let needs: Vec<Option<Needs>> = std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads)
            .map(|first| {
                let share = kernels.iter().skip(first).step_by(threads);
                scope.spawn(|| share.map(checked).collect::<Vec<_>>())
            })
            .collect();
        let checked = shares.into_iter().map(|share| share.join());
        checked.flat_map(|share| share.expect("right")).collect()
    });
    // The largest that any kernel needs is what a device has to have, no more and no less.
    let most = |of: fn(&Needs) -> u32| needs.iter().flatten().map(of).max();
    let least = DeviceCaps::least_limits();
    let bindings = least.max_storage_buffers_per_shader_stage;
    assert_eq!(most(|needs| needs.bindings), Some(bindings));
    let params = least.max_uniform_buffer_binding_size as u32;
    assert_eq!(most(|needs| needs.params_bytes), Some(params));
    let invocations = least.max_compute_invocations_per_workgroup;
    assert_eq!(most(|needs| needs.invocations), Some(invocations));
    assert_eq!(invocations, least.max_compute_workgroup_size_x);
}

/// What a kernel needs of every device.
struct Needs {
    bindings: u32,
    params_bytes: u32,
    invocations: u32,
}

/// Checks one kernel. What one with cooperative matrices needs counts for nothing: it is only used where the device has that.
fn checked((kernel, caps): &(Kernel, DeviceCaps)) -> Option<Needs> {
    let (shader, module) = parse(kernel);
    translates(kernel, &shader, &module);
    has_its_name_and_fits_webgpu_defaults(kernel, &module);
    workgroup_memory_is_what_the_plan_says_and_within_the_limit(kernel, &module, caps);
    bindings_are_those_of_the_kernel(kernel, &module);
    parameters_have_the_same_layout_on_both_sides(kernel, &module);
    if is_cooperative(kernel) {
        waits_for_what_it_reads(&module);
        return None;
    }
    Some(Needs {
        bindings: kernel.bindings().len() as u32,
        params_bytes: kernel.params_bytes() as u32,
        invocations: module.entry_points[0].workgroup_size[0],
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
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/shaders");
        expect_file![format!("{folder}/{name}.txt")].assert_eq(&text);
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
    let source = include_str!("../../../shaders/attention/geometry.wgsl");
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

/// To SPIR-V and MSL, and to HLSL but for cooperative matrices, for which naga has none.
fn translates(kernel: &Kernel, shader: &Shader, module: &Module) {
    // No capability beyond WebGPU's defaults (unpack2x16float is one of them), but for the one that a kernel is for.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let cooperative = is_cooperative(kernel);
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, cooperative);
    let halves = cooperative || shader.enables("f16");
    capabilities.set(Capabilities::SHADER_FLOAT16, halves);
    let broadcasts = kernel.tier() == Some(KernelTier::Broadcast);
    capabilities.set(Capabilities::SUBGROUP, broadcasts);
    let info = translates_to_spirv_and_msl(kernel, module, capabilities);
    if cooperative {
        return;
    }
    let mut text = String::new();
    let options = hlsl::Options {
        fake_missing_bindings: true,
        ..Default::default()
    };
    hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
        .write(module, &info, None)
        .unwrap_or_else(|error| panic!("{kernel:?} to HLSL: {error}"));
    assert!(text.contains(kernel.name()));
}

fn translates_to_spirv_and_msl(
    kernel: &Kernel,
    module: &Module,
    capabilities: Capabilities,
) -> ModuleInfo {
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

fn has_its_name_and_fits_webgpu_defaults(kernel: &Kernel, module: &Module) {
    assert_eq!(module.entry_points.len(), 1);
    let entry = &module.entry_points[0];
    assert_eq!(entry.name, kernel.name());
    let [x, y, z] = entry.workgroup_size;
    assert_eq!((y, z), (1, 1), "{kernel:?}");
    assert!(x <= MOST_INVOCATIONS, "{kernel:?} has {x} invocations");
}

fn workgroup_memory_is_what_the_plan_says_and_within_the_limit(
    kernel: &Kernel,
    module: &Module,
    caps: &DeviceCaps,
) {
    let bytes: u32 = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
        // Drivers align each variable; 16 bytes is the largest alignment of any type used.
        .map(|(_, variable)| size(module, variable.ty).next_multiple_of(16))
        .sum();
    assert!(
        bytes <= caps.max_workgroup_memory_bytes,
        "{kernel:?} takes {bytes} bytes"
    );
    match (kernel, kernel.workgroup_memory_bytes()) {
        (_, None) => {}
        // Padding is least along the longer side, so that untransposed factors take less.
        (Kernel::Matmul(_), Some(expected)) => assert!(bytes <= expected, "{}", kernel.key()),
        (_, Some(expected)) => assert_eq!(bytes, expected, "{}", kernel.key()),
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

fn bindings_are_those_of_the_kernel(kernel: &Kernel, module: &Module) {
    let mut bindings: Vec<_> = module
        .global_variables
        .iter()
        .filter_map(|(_, variable)| Some((variable.binding?.binding, variable)))
        .collect();
    bindings.sort_by_key(|(number, _)| *number);
    let (uniform, storage) = bindings.split_first().expect("parameters");
    assert_eq!(uniform.0, 0);
    assert_eq!(uniform.1.space, AddressSpace::Uniform);
    assert_eq!(u64::from(size(module, uniform.1.ty)), kernel.params_bytes());
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
        .map(|(number, variable)| (*number, variable.space))
        .collect();
    assert_eq!(found, expected, "{kernel:?}");
    assert!(
        found.len() <= 7,
        "Metal takes one of WebGPU's eight storage buffers"
    );
}

/// Name and offset of each field of the shader's struct.
fn shader_fields<'a>(module: &'a Module, name: &str) -> Vec<(&'a str, usize)> {
    let mut types = module.types.iter();
    let (_, ty) = types
        .find(|(_, ty)| ty.name.as_deref() == Some(name))
        .expect("the parameter struct");
    let TypeInner::Struct { members, .. } = &ty.inner else {
        panic!("{name} is a struct");
    };
    members
        .iter()
        .map(|member| {
            let name = member.name.as_deref().expect("named");
            (name, member.offset as usize)
        })
        .collect()
}

fn parameters_have_the_same_layout_on_both_sides(kernel: &Kernel, module: &Module) {
    let host = kernel.params();
    assert!(!host.fields.is_empty());
    assert_eq!(shader_fields(module, host.name), host.fields, "{kernel:?}");
}
