//! Compute shaders of one's own on the buffer pool alone, without attention: sums the squares of more numbers than fit into the
//! pool's budget, batch after batch, by passes that each add up what the pass before has left.
//!
//! The pool lends the buffers, brings the numbers to the device and the sums back, and waits for the device where the budget
//! leaves no room for another batch.

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, value_parser};
use dilated_attention::pool::{Pool, PoolOptions, STORAGE_USAGE};
use dilated_attention::{Download, Lease, Result, wgpu};
use program::say;

/// What the pool may hold.
const BUDGET_BYTES: u64 = 64 << 20;

/// Numbers of a batch: 16 MiB.
const BATCH: usize = 4 << 20;

/// Numbers that a workgroup adds up.
const NUMBERS_PER_WORKGROUP: usize = 256 * 16;

const SHADER: &str = "
override is_first: bool = false;

@group(0) @binding(0) var<storage, read> numbers: array<f32>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn add_up(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) {
        let at = (group.x * 16u + i) * 256u + lane;
        // A lease binds the bytes that were asked for, however large its buffer is, so the length is that of the numbers.
        if at < arrayLength(&numbers) {
            let x = numbers[at];
            sum += select(x, x * x, is_first);
        }
    }
    partial[lane] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            partial[lane] += partial[lane + half];
        }
    }
    if lane == 0u {
        sums[group.x] = partial[0];
    }
}";

/// Sums the squares of more numbers than fit into the pool's 64 MiB, by a shader of its own
#[derive(Parser)]
struct Options {
    /// How many batches of 16 MiB
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..=1024))]
    batches: u32,
}

/// The shader, for the first pass or the later ones.
struct Pass {
    device: wgpu::Device,
    pipeline: wgpu::ComputePipeline,
}

impl Pass {
    #[expect(
        clippy::disallowed_methods,
        reason = "the pipeline belongs to this application"
    )]
    fn new(device: &wgpu::Device, is_first: bool) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("add up"),
            source: wgpu::ShaderSource::Wgsl(SHADER.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("add up"),
            layout: None,
            module: &module,
            entry_point: Some("add_up"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[("is_first", f64::from(u8::from(is_first)))],
                ..Default::default()
            },
            cache: None,
        });
        Self {
            device: device.clone(),
            pipeline,
        }
    }

    /// Records one workgroup for each of the `sums`.
    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        numbers: &Lease,
        sums: &Lease,
        count: u32,
    ) {
        let resources = [numbers.binding(), sums.binding()];
        let entries = [0, 1].map(|binding| wgpu::BindGroupEntry {
            binding,
            resource: resources[binding as usize].clone(),
        });
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("add up"),
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(count, 1, 1);
    }
}

/// Submits a batch. Its sum is one number, on its way to the host.
fn sum_of_squares(
    pool: &Pool,
    queue: &wgpu::Queue,
    [first, later]: &[Pass; 2],
    batch: &[f32],
) -> Result<Download<f32>> {
    let mut work = pool.encoder(queue, "sum of squares")?;
    let mut numbers = pool.acquire("numbers", 4 * batch.len() as u64, STORAGE_USAGE)?;
    work.upload(&numbers, 0, batch)?;
    let (mut count, mut pass) = (batch.len(), first);
    loop {
        count = count.div_ceil(NUMBERS_PER_WORKGROUP);
        let sums = pool.acquire("sums", 4 * count as u64, STORAGE_USAGE)?;
        pass.record(work.encoder(), &numbers, &sums, count as u32);
        // The encoder keeps it, so this function may drop it before the commands are submitted.
        work.keep(&sums);
        (numbers, pass) = (sums, later);
        if count == 1 {
            break;
        }
    }
    let sum = work.download(&numbers)?;
    // From here on, the pool may lend the same buffers to the next batch.
    work.submit()?;
    Ok(sum)
}

/// Numbers from -1 to 1.
fn numbers(batch: u32) -> Vec<f32> {
    let mut state = u64::from(batch) + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..BATCH).map(|_| next()).collect()
}

async fn open_device() -> std::result::Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = instance.request_adapter(&Default::default()).await?;
    say!("adapter: {}", adapter.get_info().name);
    Ok(adapter.request_device(&Default::default()).await?)
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(Options { batches }: Options) -> std::result::Result<(), Box<dyn Error>> {
    let (device, queue) = pollster::block_on(open_device())?;
    let pool = Pool::new(
        &device,
        PoolOptions::default().with_budget_bytes(BUDGET_BYTES),
    );
    let passes = [true, false].map(|is_first| Pass::new(&device, is_first));
    let mut sums = Vec::new();
    let mut expected = 0.0;
    for batch in 0..batches {
        let numbers = numbers(batch);
        expected += numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        sums.push(sum_of_squares(&pool, &queue, &passes, &numbers)?);
    }
    let mut sum = 0.0;
    for batch in &sums {
        sum += batch.wait()?.into_iter().map(f64::from).sum::<f64>();
    }
    let mib = u64::from(batches) * 16;
    say!("{mib} MiB of numbers: the sum of their squares is {sum:.1}, on the host {expected:.1}");
    drop(sums);
    say!("{}", pool.stats());
    if (sum / expected - 1.0).abs() > 1e-5 {
        return Err("the sums differ".into());
    }
    Ok(())
}
