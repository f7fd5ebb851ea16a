//! What an adapter can do at most: plain kernels that only multiply and add, or only copy.

#![expect(
    clippy::disallowed_methods,
    reason = "ceilings are measured without the library, so that they cannot share its mistakes"
)]

use std::fmt::Write;
use std::rc::Rc;

use dilated_attention::wgpu;
use testing::measurement::Spread;

use crate::machine::Machine;
use crate::timing::Clock;

/// A kernel that is run for its time.
pub struct Ceiling {
    clock: Rc<Clock>,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: u32,
    /// Floating point operations, or bytes, of one run.
    work: f64,
    pub unit: &'static str,
    pub name: String,
}

/// What a ceiling does.
pub struct Program<'a> {
    pub name: String,
    pub source: &'a str,
    pub buffers: &'a [&'a wgpu::Buffer],
    pub grid: u32,
    pub work: f64,
    pub unit: &'static str,
}

impl Ceiling {
    pub fn new(machine: &Machine, clock: &Rc<Clock>, program: Program<'_>) -> Self {
        let device = machine.context.device();
        let label = Some(program.name.as_str());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(program.source.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let entries: Vec<_> = (0..)
            .zip(program.buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Self {
            clock: clock.clone(),
            pipeline,
            group,
            grid: program.grid,
            work: program.work,
            unit: program.unit,
            name: program.name,
        }
    }

    /// Runs once and returns work per second.
    pub fn rate(&self) -> f64 {
        let encode = |encoder: &mut wgpu::CommandEncoder| {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(self.grid, 1, 1);
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(seconds) = self.clock.time(encode);
        self.work / seconds.best_known()
    }

    /// Billions of work per second over some runs after one that warms up.
    pub fn rates(&self, repetitions: usize) -> Spread {
        self.rate();
        Spread::of((0..repetitions).map(|_| self.rate() / 1e9).collect())
    }
}

pub fn storage(machine: &Machine, bytes: u64) -> wgpu::Buffer {
    let device = machine.context.device();
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("ceiling"),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    })
}

/// The fastest of some ceilings.
pub fn fastest(ceilings: impl IntoIterator<Item = Ceiling>) -> Option<Ceiling> {
    let rated = ceilings
        .into_iter()
        .map(|ceiling| (ceiling.rates(3).max, ceiling));
    rated
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, ceiling)| ceiling)
}

/// The fastest of a few shapes of independent chains of `fma` in registers: `scalar` is "f32" or "f16".
pub fn fma(machine: &Machine, clock: &Rc<Clock>, scalar: &str) -> Ceiling {
    let out = storage(machine, 256);
    // Enough invocations to fill any GPU; a CPU needs only a few workgroups for each core.
    let (invocations, rounds, sizes): (u32, u32, &[u32]) = match machine.is_software() {
        true => (4096, 1000, &[8, 32]),
        false => (1 << 20, 1000, &[64, 256]),
    };
    let enable = if scalar == "f16" { "enable f16;" } else { "" };
    let shape = |width: u32, chains: u32, size: u32| {
        let vector = format!("vec{width}<{scalar}>");
        let mut body = String::new();
        for _ in 0..16 {
            for chain in 0..chains {
                let _ = writeln!(body, "a{chain} = fma(a{chain}, b, c);");
            }
        }
        let declare: String = (0..chains)
            .map(|chain| format!("var a{chain} = {vector}(x + {scalar}({chain}));\n"))
            .collect();
        let sum: String = (0..chains).map(|chain| format!(" + a{chain}")).collect();
        // The factors come from memory, so that nothing can be computed ahead.
        let source = format!(
            "{enable}
            @group(0) @binding(0) var<storage, read_write> out: array<{vector}>;
            @compute @workgroup_size({size})
            fn fma_ceiling(@builtin(global_invocation_id) id: vec3u) {{
                let x = {scalar}(f32(id.x) * 1e-7);
                let b = out[0] + {scalar}(0.5);
                let c = out[1] + {scalar}(0.25);
                {declare}
                for (var i = 0u; i < {rounds}u; i++) {{ {body} }}
                let sum = {vector}(){sum};
                if sum.x == {scalar}(12345.0) {{ out[2] = sum; }}
            }}"
        );
        let flop = [2, width, 16, chains, rounds, invocations].map(f64::from);
        let program = Program {
            name: format!("fma {scalar} ({chains} chains of vec{width}, workgroups of {size})"),
            source: &source,
            buffers: &[&out],
            grid: invocations / size,
            work: flop.iter().product(),
            unit: "GFLOP/s",
        };
        Ceiling::new(machine, clock, program)
    };
    let widths: &[u32] = if scalar == "f16" { &[2, 4] } else { &[4] };
    let shapes = widths.iter().flat_map(|&width| {
        let sizes = move |chains| sizes.iter().map(move |&size| (width, chains, size));
        [2, 3, 4].into_iter().flat_map(sizes)
    });
    fastest(shapes.map(|(width, chains, size)| shape(width, chains, size)))
        .expect("at least one shape")
}

/// A copy, in bytes read and written per second: of 64 MiB, on a GPU of 256 MiB, which no cache holds.
pub fn copy(machine: &Machine, clock: &Rc<Clock>) -> Ceiling {
    let mebibytes: u32 = if machine.is_software() { 64 } else { 256 };
    let bytes = u64::from(mebibytes) << 20;
    let [from, to] = [storage(machine, bytes), storage(machine, bytes)];
    let vectors = (bytes / 16) as u32;
    let workgroups = vectors / 1024;
    let source = "
        @group(0) @binding(0) var<storage, read> source: array<vec4f>;
        @group(0) @binding(1) var<storage, read_write> target_: array<vec4f>;
        @compute @workgroup_size(64)
        fn copy_ceiling(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
            for (var i = 0u; i < 16u; i++) {
                let at = group.x * 1024u + i * 64u + lane;
                target_[at] = source[at];
            }
        }";
    let program = Program {
        name: format!("copy of {mebibytes} MiB"),
        source,
        buffers: &[&from, &to],
        grid: workgroups,
        work: 2.0 * bytes as f64,
        unit: "GB/s",
    };
    Ceiling::new(machine, clock, program)
}
