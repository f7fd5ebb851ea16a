//! What buffers cost on the device: first uses, bind groups, a forward.

use std::collections::HashMap;
use std::time::Instant;

use dilated_attention::pool::{Lease, NoPooling, Pool, PoolOptions, STORAGE_USAGE};
use dilated_attention::wgpu;
use dilated_attention::{Context, ContextOptions, DilatedAttention, DilatedAttentionConfig};

use crate::table::{Samples, Table};

pub fn measure(context: &Context, quick: bool, table: &mut Table) {
    let repetitions = if quick { 3 } else { 11 };
    first_dispatches(context, repetitions, table);
    bind_groups(context, repetitions);
    forwards(repetitions);
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

    fn bind_group(&self, buffer: &wgpu::Buffer) -> wgpu::BindGroup {
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: buffer.as_entire_binding(),
            }],
        })
    }

    /// Takes a buffer, dispatches on it and waits; milliseconds.
    #[expect(
        clippy::disallowed_methods,
        reason = "stands for an application of its own"
    )]
    fn milliseconds(&self, pool: &Pool, bytes: u64) -> (f64, Lease) {
        let started = Instant::now();
        let lease = pool
            .acquire("touched", bytes, STORAGE_USAGE)
            .expect("the device has memory");
        let group = self.bind_group(lease.buffer());
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
fn first_dispatches(context: &Context, repetitions: usize, table: &mut Table) {
    println!("\nfirst dispatch on a buffer, ms");
    println!(
        "{:>9} {:>24} {:>24} {:>24} {:>12} {:>14}",
        "KiB", "new", "created again", "reused", "new/reused", "again/reused"
    );
    let touch = Touch::new(context);
    for kib in [1u64, 4, 64, 1 << 10, 16 << 10, 64 << 10, 128 << 10] {
        let bytes = kib << 10;
        let pooled = Pool::new(context.device(), PoolOptions::default());
        let unpooled = Pool::new(
            context.device(),
            PoolOptions::default().with_policy(NoPooling),
        );
        drop(touch.milliseconds(&pooled, bytes));
        let mut kept = Vec::new();
        let [mut new, mut again, mut reused] = std::array::from_fn(|_| Samples::default());
        for _ in 0..repetitions {
            let (milliseconds, lease) = touch.milliseconds(&unpooled, bytes);
            kept.push(lease);
            new.add(milliseconds);
            reused.add(touch.milliseconds(&pooled, bytes).0);
        }
        kept.clear();
        for _ in 0..repetitions {
            again.add(touch.milliseconds(&unpooled, bytes).0);
        }
        let ratio = new.median() / reused.median();
        println!(
            "{kib:>9} {new:>24} {again:>24} {reused:>24} {ratio:>11.1}x {:>13.1}x",
            again.median() / reused.median()
        );
        if kib == 64 << 10 {
            table.at_least("first dispatch on 64 MiB, new against reused", ratio, 50.0);
        }
    }
}

/// Whether keeping bind groups would pay: what one costs, against finding it by the numbers of its buffers and against the
/// cheapest dispatch there is.
fn bind_groups(context: &Context, repetitions: usize) {
    const CALLS: u64 = 1000;
    let touch = Touch::new(context);
    let pool = context.pool();
    let lease = pool
        .acquire("bound", 4096, STORAGE_USAGE)
        .expect("the device has memory");
    let key = [lease.buffer_serial(); 6];
    let kept = HashMap::from([(key, touch.bind_group(lease.buffer()))]);
    let [mut created, mut found, mut dispatched] = std::array::from_fn(|_| Samples::default());
    let per_call = |work: &dyn Fn()| {
        let started = Instant::now();
        for _ in 0..CALLS {
            work();
        }
        started.elapsed().as_secs_f64() / CALLS as f64 * 1e6
    };
    for _ in 0..repetitions {
        created.add(per_call(&|| drop(touch.bind_group(lease.buffer()))));
        found.add(per_call(&|| {
            std::hint::black_box(kept.get(std::hint::black_box(&key)));
        }));
        dispatched.add(touch.milliseconds(pool, 4096).0 * 1e3);
    }
    println!(
        "\nbind group of one buffer, us: create {created}, find in a map {found}; dispatch and wait {dispatched}"
    );
}

/// A forward with upload and download, with the pool and without.
fn forwards(repetitions: usize) {
    let runners = [
        PoolOptions::default(),
        PoolOptions::default().with_policy(NoPooling),
    ]
    .map(|pool| {
        let options = ContextOptions {
            pool,
            ..Default::default()
        };
        let context = options.open_blocking().expect("an adapter");
        let config = DilatedAttentionConfig::new(4, 32, &[64, 256], &[1, 4]).expect("valid");
        let attention = DilatedAttention::new(&context, config).expect("fits");
        (context, attention)
    });
    let data = vec![0.5f32; 2048 * 128];
    let run = |(context, attention): &(Context, DilatedAttention)| {
        let started = Instant::now();
        let mut recorder = context.recorder("forward");
        let q = recorder
            .upload("q", &[1, 2048, 4, 32], &data)
            .expect("uploads");
        let result = attention
            .forward(&mut recorder, &q, &q, &q)
            .expect("records");
        let out = recorder.download::<f32>(&result.out).expect("records");
        recorder.submit().expect("submits");
        out.wait().expect("arrives");
        started.elapsed().as_secs_f64() * 1e3
    };
    let mut times = [Samples::default(), Samples::default()];
    for runner in &runners {
        run(runner);
    }
    for _ in 0..repetitions {
        for (times, runner) in times.iter_mut().zip(&runners) {
            times.add(run(runner));
        }
    }
    let [pooled, unpooled] = times;
    println!(
        "forward of 2048 tokens with upload and download, ms: pooled {pooled}, without {unpooled}"
    );
}
