//! What runs while the driver fails: the library as applications use it. Each returns numbers to compare.

use std::thread;
use std::time::Duration;

use dilated_attention::longnet::{LongNet, LongNetConfig, OutputProjection};
use dilated_attention::models::StagedModel;
use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
use dilated_attention::pool::{READBACK_USAGE, STAGING_USAGE, STORAGE_USAGE};
use dilated_attention::training::{Batch, LearningRate, Trainer, TrainingOptions};
use dilated_attention::{
    Context, DType, DilatedAttention, DilatedAttentionConfig, Download, Error, Recorder, Result,
    SliceOptions, WeightFile,
};

/// A workload on a context that is there, or (`context`) one that makes its own.
pub type Run = fn(&Context) -> Result<Vec<f32>>;

/// By name.
pub const ALL: [(&str, Run); 11] = [
    ("wait", wait),
    ("await", await_it),
    ("other thread", other_thread),
    ("two downloads", two_downloads),
    ("slices", slices),
    ("frames", frames),
    ("pool", pool),
    ("encoder of an application", encode),
    ("training step", training_step),
    ("slide encoder", slide_encoder),
    ("context", context),
];

const TOKENS: usize = 96;
const DIMS: [usize; 4] = [1, TOKENS, 2, 16];

fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 37 + seed * 101) % 211) as f32 / 211.0 - 0.5)
        .collect()
}

/// Attention of two branches, recorded for download.
fn record(recorder: &mut Recorder) -> Result<Download<f32>> {
    let config = DilatedAttentionConfig::new(2, 16, &[32, 96], &[1, 2])?;
    let attention = DilatedAttention::new(&recorder.context(), config)?;
    let count = DIMS.iter().product();
    let q = recorder.upload("q", &DIMS, &values(1, count))?;
    let k = recorder.upload("k", &DIMS, &values(2, count))?;
    let v = recorder.upload("v", &DIMS, &values(3, count))?;
    let output = attention.forward(recorder, &q, &k, &v)?;
    recorder.download(&output.out)
}

fn wait(context: &Context) -> Result<Vec<f32>> {
    let mut recorder = context.recorder("forward");
    let download = record(&mut recorder)?;
    recorder.submit()?.wait()?;
    context.wait()?;
    download.wait()
}

fn await_it(context: &Context) -> Result<Vec<f32>> {
    let mut recorder = context.recorder("forward");
    let download = record(&mut recorder)?;
    recorder.submit()?;
    pollster::block_on(download)
}

/// One thread waits while another polls.
fn other_thread(context: &Context) -> Result<Vec<f32>> {
    let mut recorder = context.recorder("forward");
    let download = record(&mut recorder)?;
    recorder.submit()?;
    let waiting = thread::spawn(move || download.wait());
    while !waiting.is_finished() {
        let _ = context.poll();
        thread::yield_now();
    }
    waiting.join().expect("no panic leaves a public function")
}

/// Two are awaited on two threads while a third one waits.
fn two_downloads(context: &Context) -> Result<Vec<f32>> {
    let mut recorder = context.recorder("forward");
    let downloads = [record(&mut recorder)?, record(&mut recorder)?];
    let last = record(&mut recorder)?;
    recorder.submit()?;
    let waiting = downloads.map(|download| thread::spawn(move || pollster::block_on(download)));
    let last = last.wait();
    let mut sum = Vec::new();
    for waiting in waiting {
        sum.extend(waiting.join().expect("no panic leaves a public function")?);
    }
    sum.extend(last?);
    Ok(sum)
}

fn slices(context: &Context) -> Result<Vec<f32>> {
    let mut recorder = context.recorder("forward");
    let download = record(&mut recorder)?;
    let mut sliced =
        recorder.submit_in_slices(SliceOptions::default().with_target(Duration::from_micros(200)));
    pollster::block_on(sliced.run(|_| ()))?;
    pollster::block_on(download)
}

/// As an application with frames does.
fn frames(context: &Context) -> Result<Vec<f32>> {
    let mut recorder = context.recorder("forward");
    let download = record(&mut recorder)?;
    let mut sliced =
        recorder.submit_in_slices(SliceOptions::default().with_target(Duration::from_micros(200)));
    while !sliced.advance()?.is_done() {
        thread::sleep(Duration::from_micros(200));
    }
    while !download.is_ready() {
        let _ = context.poll();
        thread::sleep(Duration::from_micros(200));
    }
    download.wait()
}

fn pool(context: &Context) -> Result<Vec<f32>> {
    let pool = context.pool();
    for round in 0..3 {
        let mut leases = Vec::new();
        for bytes in [16, 4000, 1 << 16, 1 << 20] {
            leases.push(pool.acquire("storage", bytes << round, STORAGE_USAGE)?);
        }
        leases.push(pool.acquire("readback", 4096 << round, READBACK_USAGE)?);
        leases.push(pool.acquire("staging", 4096 << round, STAGING_USAGE)?);
        drop(leases);
        pool.trim();
        // Once more with what memory running out would find cached.
        drop(pool.acquire("storage", 3 << 20, STORAGE_USAGE)?);
    }
    pool.force_trim();
    Ok(vec![pool.stats().leases.current as f32])
}

/// An application that owns the encoder, and takes errors of its own as they are.
#[expect(
    clippy::disallowed_methods,
    reason = "stands for an application of its own"
)]
fn encode(context: &Context) -> Result<Vec<f32>> {
    let mut recorder = context.recorder("forward");
    let download = record(&mut recorder)?;
    let device = context.device();
    device.on_uncaptured_error(std::sync::Arc::new(|_| ()));
    let mut encoder = device.create_command_encoder(&Default::default());
    recorder.encode(&mut encoder)?;
    context.queue().submit([encoder.finish()]);
    match download.wait() {
        // Its own commands were refused.
        Err(Error::NotSubmitted { .. } | Error::DownloadAbandoned { .. }) => {
            context.wait()?;
            Err(Error::DeviceLost {
                reason: "the application's submission was refused".to_owned(),
            })
        }
        other => other,
    }
}

fn training_step(context: &Context) -> Result<Vec<f32>> {
    let attention = DilatedAttentionConfig::new(2, 8, &[8, 32], &[1, 2])?;
    let mut config = LongNetConfig::decoder(attention, 1, 24);
    config.vocab_size = Some(11);
    config.output_projection = OutputProjection::Own;
    let model = LongNet::new(context, config)?;
    let options = TrainingOptions::new(LearningRate::Constant(1e-2));
    let mut trainer = Trainer::new(context, model, options)?;
    let tokens: Vec<u32> = (0..33).map(|i| i * i % 11).collect();
    let batch = Batch::next_tokens(&[&tokens])?;
    let first = trainer.step(std::slice::from_ref(&batch))?.wait()?;
    let step = trainer.record_step(&[batch])?;
    let second = pollster::block_on(step.in_slices(SliceOptions::default(), |_| ()))?;
    Ok(vec![first.loss, second.loss])
}

fn slide_encoder(context: &Context) -> Result<Vec<f32>> {
    let mut config = SlideEncoderConfig::base();
    config.attention = DilatedAttentionConfig::new(2, 16, &[8, 32], &[1, 2])?.with_torchscale();
    config.feature_dim = 12;
    config.num_layers = 1;
    config.ffn_dim = 32;
    let encoder = SlideEncoder::new(context, config)?;
    let file = weights_of(&encoder)?;
    let weights = encoder.load(context, &file)?;
    let features = values(4, 40 * 12);
    let coords: Vec<[f32; 2]> = (0..40)
        .map(|i| [(i % 7 * 256) as f32, (i / 7 * 256) as f32])
        .collect();
    let slides = [Slide {
        features: &features,
        coords: &coords,
    }];
    let options = SliceOptions::default().with_target(Duration::from_millis(1));
    let run = encoder.run(context, &weights, &slides, &SlideOutputs::default())?;
    Ok(pollster::block_on(run.in_slices(options, |_| ()))?.cls)
}

/// A file of weights, made on the host.
fn weights_of(encoder: &SlideEncoder) -> Result<WeightFile> {
    let list = encoder.parameters();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = list
        .specs()
        .iter()
        .enumerate()
        .map(|(number, spec)| {
            let count = spec.shape.iter().product();
            let bytes = values(number, count)
                .iter()
                .flat_map(|value| (value * 0.2).to_le_bytes())
                .collect();
            (spec.name.clone(), spec.shape.clone(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.as_str(), view.expect("as many bytes as the shape has"))
    });
    let bytes = safetensors::serialize(views, None).expect("serialises");
    Ok(WeightFile::from_bytes(bytes)?)
}

/// All of a context's life, with kernels compiled ahead.
fn context(_: &Context) -> Result<Vec<f32>> {
    let context = Context::new_blocking()?;
    let config = DilatedAttentionConfig::new(2, 16, &[32, 96], &[1, 2])?;
    DilatedAttention::new(&context, config)?.warm_up(DType::F32)?;
    wait(&context)
}
