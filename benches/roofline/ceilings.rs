//! What an adapter can do at most: plain kernels that only multiply and add, or only copy.

#![expect(
    clippy::disallowed_methods,
    reason = "ceilings are measured without the library, so that they cannot share its mistakes"
)]

use std::fmt::Write;
use std::time::Instant;

use dilated_attention::wgpu;

/// A kernel that is run for its time.
pub struct Ceiling {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: u32,
    /// Floating point operations, or bytes, of one run.
    pub work: f64,
    pub name: String,
}

impl Ceiling {
    fn new(
        device: &wgpu::Device,
        name: String,
        source: &str,
        buffers: &[&wgpu::Buffer],
        grid: u32,
        work: f64,
    ) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&name),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&name),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Self {
            pipeline,
            group,
            grid,
            work,
            name,
        }
    }

    /// Runs once and returns work per second.
    pub fn rate(&self, device: &wgpu::Device, queue: &wgpu::Queue) -> f64 {
        let started = Instant::now();
        let mut encoder = device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(self.grid, 1, 1);
        }
        queue.submit([encoder.finish()]);
        device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("the device answers");
        self.work / started.elapsed().as_secs_f64()
    }
}

fn storage(device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("ceiling"),
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    })
}

/// The fastest of a few shapes of independent chains of `fma` on vec4 in registers, in FLOP per second.
pub fn fma(device: &wgpu::Device, queue: &wgpu::Queue, on_cpu: bool) -> Ceiling {
    let out = storage(device, 256);
    // Enough invocations to fill any GPU; a CPU needs only a few workgroups for each core.
    let (invocations, rounds, sizes): (u32, u32, &[u32]) = if on_cpu {
        (4096, 1000, &[8, 32])
    } else {
        (1 << 20, 1000, &[64, 256])
    };
    let mut best: Option<(f64, Ceiling)> = None;
    for chains in [2u32, 3, 4] {
        for &size in sizes {
            let mut body = String::new();
            for _ in 0..16 {
                for chain in 0..chains {
                    let _ = writeln!(body, "a{chain} = fma(a{chain}, b, c);");
                }
            }
            let declare: String = (0..chains)
                .map(|chain| format!("var a{chain} = vec4f(x + {chain}.0);\n"))
                .collect();
            let sum: String = (0..chains).map(|chain| format!(" + a{chain}")).collect();
            // The factors come from memory, so that nothing can be computed ahead.
            let source = format!(
                "@group(0) @binding(0) var<storage, read_write> out: array<vec4f>;
                @compute @workgroup_size({size})
                fn fma_ceiling(@builtin(global_invocation_id) id: vec3u) {{
                    let x = f32(id.x) * 1e-7;
                    let b = out[0] + 0.5;
                    let c = out[1] + 0.25;
                    {declare}
                    for (var i = 0u; i < {rounds}u; i++) {{ {body} }}
                    let sum = vec4f(){sum};
                    if sum.x == 12345.678 {{ out[2] = sum; }}
                }}"
            );
            let work =
                2.0 * 4.0 * 16.0 * f64::from(chains) * f64::from(rounds) * f64::from(invocations);
            let name = format!("fma, {chains} chains, workgroups of {size}");
            let ceiling = Ceiling::new(device, name, &source, &[&out], invocations / size, work);
            ceiling.rate(device, queue);
            let rate = (0..3)
                .map(|_| ceiling.rate(device, queue))
                .fold(0.0, f64::max);
            if best.as_ref().is_none_or(|(fastest, _)| rate > *fastest) {
                best = Some((rate, ceiling));
            }
        }
    }
    best.expect("at least one shape").1
}

/// A copy of 64 MiB, in bytes read and written per second.
pub fn copy(device: &wgpu::Device) -> Ceiling {
    const BYTES: u64 = 64 << 20;
    let [from, to] = [storage(device, BYTES), storage(device, BYTES)];
    let vectors = (BYTES / 16) as u32;
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
    let name = "copy of 64 MiB".to_owned();
    Ceiling::new(
        device,
        name,
        source,
        &[&from, &to],
        vectors / 1024,
        2.0 * BYTES as f64,
    )
}
