//! Dilated attention inside an application that has a device, a queue and an encoder of its own.
//!
//! The application below stands for a renderer: it asks for a device with WebGPU's default limits, draws "frames" (here it
//! clears a texture) and never blocks. Attention goes into the encoder of one frame; its result is there some frames later.
//! Longer work is submitted in slices between frames, and given up when nobody wants it any more.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttention, DilatedAttentionConfig, SliceOptions, wgpu,
};
use program::say;

/// Draws frames on a device of its own, with attention in one of them and longer work in slices between others
#[derive(Parser)]
struct Options {}

/// What a renderer does at its start.
async fn application_device() -> Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = instance.request_adapter(&Default::default()).await?;
    say!("application's adapter: {}", adapter.get_info().name);
    Ok(adapter.request_device(&Default::default()).await?)
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(_: Options) -> Result<(), Box<dyn Error>> {
    let (device, queue) = pollster::block_on(application_device())?;
    // The library borrows handles: no error handler and no device-lost callback is installed on the device.
    let context = Context::from_device(device.clone(), queue.clone())?;
    let config = DilatedAttentionConfig::new(4, 32, &[256, 1024], &[1, 4])?;
    let attention = DilatedAttention::new(&context, config)?;
    attention.warm_up(DType::F32)?;

    let shape = AttentionShape::new(1, 2048)?;
    let dims = [1, 2048, 4, 32];
    let data: Vec<f32> = (0..dims.iter().product())
        .map(|i: usize| ((i * 31) % 97) as f32 / 48.0 - 1.0)
        .collect();

    let target = device.create_texture(&wgpu::TextureDescriptor {
        label: Some("frame"),
        size: wgpu::Extent3d {
            width: 64,
            height: 64,
            depth_or_array_layers: 1,
        },
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format: wgpu::TextureFormat::Rgba8Unorm,
        usage: wgpu::TextureUsages::RENDER_ATTACHMENT,
        view_formats: &[],
    });
    let view = target.create_view(&Default::default());

    let mut download = None;
    for frame in 0.. {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor {
            label: Some("frame"),
        });
        draw(&mut encoder, &view);
        if frame == 2 {
            let mut recorder = context.recorder("attention in a frame");
            let q = recorder.upload("q", &dims, &data)?;
            let result = attention.forward(&mut recorder, &q, &q, &q)?;
            let out = recorder.download::<f32>(&result.out)?;
            // Into the application's encoder; the application submits.
            recorder.encode(&mut encoder)?;
            download = Some(out);
        }
        queue.submit([encoder.finish()]);
        // Once a frame, as renderers do; never blocks.
        context.poll()?;
        if let Some(out) = download.as_ref().filter(|out| out.is_ready()) {
            let out = out.wait()?;
            program::expect_finite("attention", &out)?;
            say!(
                "frame {frame}: attention of {} tokens is here, first value {}",
                shape.seq_len(),
                out[0]
            );
            break;
        }
        std::thread::sleep(Duration::from_millis(4));
    }
    drop(download);

    for give_up_at in [1.0, 0.3] {
        let mut recorder = context.recorder("between frames");
        let mut x = recorder.upload("x", &dims, &data)?;
        for _ in 0..4 {
            x = attention.forward(&mut recorder, &x, &x, &x)?.out;
        }
        let out = recorder.download::<f32>(&x)?;
        let mut sliced = recorder.submit_in_slices(SliceOptions::default());
        let mut frame_times = Vec::new();
        loop {
            // A slice at most is on the queue before the frame.
            let progress = sliced.advance()?;
            if progress.is_done() || progress.fraction() > give_up_at {
                break;
            }
            let begin = Instant::now();
            let mut encoder = device.create_command_encoder(&Default::default());
            draw(&mut encoder, &view);
            let drawn = Arc::new(AtomicBool::new(false));
            let shown = drawn.clone();
            encoder.on_submitted_work_done(move || shown.store(true, Ordering::Relaxed));
            queue.submit([encoder.finish()]);
            // Where a renderer waits for its frame to be shown.
            while !drawn.load(Ordering::Relaxed) {
                context.poll()?;
                std::thread::sleep(Duration::from_micros(200));
            }
            frame_times.push(begin.elapsed());
        }
        frame_times.sort();
        say!(
            "{:.0} % in {} slices; of {} frames 95 % took at most {:?}",
            100.0 * sliced.progress().fraction(),
            sliced.num_slices(),
            frame_times.len(),
            frame_times[frame_times.len() * 95 / 100],
        );
        // What is left never happens.
        sliced.cancel();
        match pollster::block_on(out) {
            Ok(out) => {
                program::expect_finite("the result", &out)?;
                say!("first value {}", out[0]);
            }
            Err(error) => say!("{error}"),
        }
    }
    context.wait()?;
    say!("{}", context.pool().stats());
    Ok(())
}

fn draw(encoder: &mut wgpu::CommandEncoder, view: &wgpu::TextureView) {
    encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
        label: Some("clear"),
        color_attachments: &[Some(wgpu::RenderPassColorAttachment {
            view,
            depth_slice: None,
            resolve_target: None,
            ops: wgpu::Operations {
                load: wgpu::LoadOp::Clear(wgpu::Color::BLUE),
                store: wgpu::StoreOp::Store,
            },
        })],
        ..Default::default()
    });
}
