//! What the pool saves: `cargo bench --bench pool`.
//!
//! Criterion times a hit, a miss, raw creation, and a forward with and without the pool. The table at the end compares the
//! first dispatch on a new buffer with one on a reused buffer, in turns, medians with the smallest and largest.

#![expect(
    clippy::disallowed_methods,
    reason = "the comparison is with what a program without the pool would call"
)]

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dilated_attention::pool::{Lease, NoPooling, Pool, PoolOptions, STORAGE_USAGE};
use dilated_attention::wgpu;
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DilatedAttention, DilatedAttentionConfig,
};

fn acquire_and_release(criterion: &mut Criterion) {
    let context = Context::headless().expect("an adapter");
    let mut group = criterion.benchmark_group("acquire and release");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(2));
    for live in [16, 1000] {
        let pool = Pool::new(context.device(), PoolOptions::default());
        let held: Vec<Lease> = (0..live)
            .map(|_| pool.acquire("held", 4096, STORAGE_USAGE).expect("lends"))
            .collect();
        drop(pool.acquire("first", 4096, STORAGE_USAGE));
        group.bench_function(format!("hit, {live} live"), |bencher| {
            bencher.iter(|| pool.acquire("hit", 4096, STORAGE_USAGE));
        });
        let unpooled = Pool::new(context.device(), PoolOptions::default().policy(NoPooling));
        group.bench_function(format!("miss, {live} live"), |bencher| {
            bencher.iter(|| unpooled.acquire("miss", 4096, STORAGE_USAGE));
        });
        group.bench_function(format!("create_buffer, {live} live"), |bencher| {
            bencher.iter(|| create(context.device(), 4096));
        });
        drop(held);
    }
    group.finish();
}

fn create(device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("raw"),
        size: bytes,
        usage: STORAGE_USAGE,
        mapped_at_creation: false,
    })
}

fn forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward of 2048 tokens, 4 heads of 32");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(3));
    for (name, pool) in [
        ("pooled", PoolOptions::default()),
        ("without pool", PoolOptions::default().policy(NoPooling)),
    ] {
        let context = pollster::block_on(Context::with_options(&ContextOptions {
            pool,
            ..Default::default()
        }))
        .expect("an adapter");
        let config = DilatedAttentionConfig::new(4, 32, &[64, 256], &[1, 4]).expect("valid");
        let attention = DilatedAttention::new(&context, config).expect("fits");
        let shape = AttentionShape::new(1, 2048).expect("valid");
        let data = vec![0.5f32; 2048 * 128];
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut recorder = context.recorder("forward");
                let q = recorder
                    .upload("q", &[1, 2048, 4, 32], &data)
                    .expect("uploads");
                let result = attention
                    .forward(&mut recorder, &shape, &q, &q, &q)
                    .expect("records");
                let out = recorder.download::<f32>(&result.out).expect("records");
                recorder.submit().expect("submits");
                out.wait().expect("arrives")
            });
        });
    }
    group.finish();
}

/// A dispatch that writes one word of a buffer: all the rest of its time is what the buffer costs.
struct Touch<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    pipeline: wgpu::ComputePipeline,
}

impl<'a> Touch<'a> {
    fn new(context: &'a Context) -> Self {
        let device = context.device();
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("touch"),
            source: wgpu::ShaderSource::Wgsl(
                "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
                @compute @workgroup_size(1) fn touch() { words[0] = 1u; }"
                    .into(),
            ),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("touch"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        Self {
            device,
            queue: context.queue(),
            pipeline,
        }
    }

    /// Takes a buffer, dispatches on it and waits.
    fn seconds(&self, pool: &Pool, bytes: u64) -> (f64, Lease) {
        let started = Instant::now();
        let lease = pool
            .acquire("touched", bytes, STORAGE_USAGE)
            .expect("lends");
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: lease.buffer().as_entire_binding(),
            }],
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
        self.queue.submit([encoder.finish()]);
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("the device answers");
        (started.elapsed().as_secs_f64() * 1e3, lease)
    }
}

/// Three ways to get a buffer: created while those before it live, so that its memory is new to the process; created after
/// the one before it was dropped, so that the driver's allocator may have warm memory for it; lent again by the pool.
fn first_dispatch(_: &mut Criterion) {
    const REPETITIONS: usize = 11;
    let context = Context::headless().expect("an adapter");
    let info = context.adapter_info();
    println!(
        "first dispatch on a buffer, {} ({})",
        info.name, info.driver_info
    );
    println!(
        "{:>5} {:>26} {:>26} {:>26} {:>12}",
        "MiB", "new ms", "created again ms", "reused ms", "new / reused"
    );
    let touch = Touch::new(&context);
    for mib in [1u64, 16, 64, 128] {
        let pooled = Pool::new(context.device(), PoolOptions::default());
        let unpooled = Pool::new(context.device(), PoolOptions::default().policy(NoPooling));
        drop(touch.seconds(&pooled, mib << 20));
        let mut kept = Vec::new();
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..REPETITIONS {
            let (new, lease) = touch.seconds(&unpooled, mib << 20);
            kept.push(lease);
            times[0].push(new);
            times[2].push(touch.seconds(&pooled, mib << 20).0);
        }
        kept.clear();
        for _ in 0..REPETITIONS {
            times[1].push(touch.seconds(&unpooled, mib << 20).0);
        }
        let [new, again, reused] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            (times[REPETITIONS / 2], times[0], times[REPETITIONS - 1])
        });
        let show = |(median, least, most): (f64, f64, f64)| {
            format!("{median:.2} ({least:.2} to {most:.2})")
        };
        println!(
            "{mib:>5} {:>26} {:>26} {:>26} {:>11.0}x",
            show(new),
            show(again),
            show(reused),
            new.0 / reused.0
        );
    }
}

criterion_group!(benches, acquire_and_release, forward, first_dispatch);
criterion_main!(benches);
