//! Ceilings of matrix units: one for each combination of shape and types that the adapter lists and WGSL can name.

use std::rc::Rc;

use dilated_attention::wgpu::{self, CooperativeMatrixProperties, CooperativeScalarType};
use testing::measurement::random;

use crate::ceilings::{Ceiling, Program, storage};
use crate::machine::Machine;
use crate::timing::Clock;

const CHAINS: u32 = 4;

/// The listed combinations, each with its ceiling or the reason why it has none.
pub fn ceilings(
    machine: &Machine,
    clock: &Rc<Clock>,
) -> Vec<(String, Result<Rc<Ceiling>, &'static str>)> {
    let ceiling = |properties: &CooperativeMatrixProperties| {
        let &CooperativeMatrixProperties {
            m_size: m,
            n_size: n,
            k_size: k,
            ab_type: ab,
            cr_type: cr,
            ..
        } = properties;
        let name = name([m, n, k], &format!("{ab:?}"), &format!("{cr:?}"));
        let ceiling = match (m == n && n == k, float(ab), float(cr)) {
            (true, Some(ab), Some(cr)) if m == 8 || m == 16 => Ok(Rc::new(multiply_add(
                machine,
                clock,
                name.clone(),
                m,
                [ab, cr],
            ))),
            _ => Err("not in WGSL"),
        };
        (name, ceiling)
    };
    machine.matrices.iter().map(ceiling).collect()
}

/// Name of a combination: rows, columns and inner elements, types of the factors and of the sums.
pub fn name([m, n, k]: [u32; 3], factors: &str, sums: &str) -> String {
    format!("cooperative matrix {m}x{n}x{k} {factors} -> {sums}")
}

fn float(scalar: CooperativeScalarType) -> Option<&'static str> {
    match scalar {
        CooperativeScalarType::F32 => Some("f32"),
        CooperativeScalarType::F16 => Some("f16"),
        _ => None,
    }
}

/// A matrix of numbers between -1 and 1.
#[expect(
    clippy::disallowed_methods,
    reason = "ceilings are measured without the library"
)]
fn filled<const N: usize>(
    machine: &Machine,
    size: u32,
    bytes: impl Fn(f32) -> [u8; N],
) -> wgpu::Buffer {
    let mut random = random();
    let contents: Vec<u8> = (0..size * size).flat_map(|_| bytes(random())).collect();
    let device = machine.context.device();
    wgpu::util::DeviceExt::create_buffer_init(
        device,
        &wgpu::util::BufferInitDescriptor {
            label: Some("factors"),
            contents: &contents,
            usage: wgpu::BufferUsages::STORAGE,
        },
    )
}

/// Independent chains of products in registers, one subgroup a workgroup.
fn multiply_add(
    machine: &Machine,
    clock: &Rc<Clock>,
    name: String,
    size: u32,
    [ab, cr]: [&str; 2],
) -> Ceiling {
    let (workgroups, rounds): (u32, u32) = match machine.is_software() {
        true => (64, 500),
        false => (16_384, 1000),
    };
    // With the smallest subgroups the adapter may choose, a workgroup of the largest size would be several.
    let lanes = machine.context.adapter_info().subgroup_min_size;
    let matrix = |scalar: &str, role: &str| format!("coop_mat{size}x{size}<{scalar}, {role}>");
    let [left, right, sum] = [matrix(ab, "A"), matrix(ab, "B"), matrix(cr, "C")];
    let each = |text: &dyn Fn(u32) -> String| (0..CHAINS).map(text).collect::<String>();
    let declare = each(&|i| format!("var c{i} = coopLoadT<{sum}>(&c[0], {size}u);\n"));
    let multiply = each(&|i| format!("c{i} = coopMultiplyAdd(a, b, c{i});\n"));
    let store = each(&|i| {
        let at = (1 + i) * size * size;
        format!("coopStoreT(c{i}, &c[{at}], {size}u);\n")
    });
    let source = format!(
        "enable f16;
        enable wgpu_cooperative_matrix;
        @group(0) @binding(0) var<storage, read> ab: array<{ab}>;
        @group(0) @binding(1) var<storage, read_write> c: array<{cr}>;
        @compute @workgroup_size({lanes})
        fn matrix_ceiling() {{
            let a = coopLoadT<{left}>(&ab[0], {size}u);
            let b = coopLoadT<{right}>(&ab[0], {size}u);
            {declare}
            for (var i = 0u; i < {rounds}u; i++) {{ {multiply} }}
            {store}
        }}"
    );
    // Random, since products of zeros take less power.
    let factors = match ab {
        "f16" => filled(machine, size, |value| {
            half::f16::from_f32(value).to_le_bytes()
        }),
        _ => filled(machine, size, f32::to_le_bytes),
    };
    let sums = storage(machine, u64::from((1 + CHAINS) * size * size) * 4);
    let flop = [2, size, size, size, CHAINS, rounds, workgroups].map(f64::from);
    let program = Program {
        name,
        source: &source,
        buffers: &[&factors, &sums],
        grid: workgroups,
        work: flop.iter().product(),
        unit: "GFLOP/s",
    };
    Ceiling::new(machine, clock, program)
}
