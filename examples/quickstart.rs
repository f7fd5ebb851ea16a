//! Dilated attention with its plan, its time, its error and what the pool is worth: `cargo run --release --example quickstart`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use dilated_attention::pool::{NoPooling, PoolOptions};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig, Mask,
    Tensor, reference,
};
use program::say;

const NUM_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const SAMPLED_ROWS: usize = 64;
const REPETITIONS: usize = 5;

/// Dilated attention over the bytes of a real file, checked against the f64 oracle
///
/// Each byte becomes one token; its query, key and value follow from the byte and its place by a fixed rule,
/// so every run computes the same numbers on every machine.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// What is read, from its start again where it has fewer bytes than there are tokens
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"))]
    file: PathBuf,
    /// Length of the sequence
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let num_tokens = options.tokens as usize;
    let shown = options.file.display();
    let file = std::fs::read(&options.file).map_err(|error| format!("{shown}: {error}"))?;
    if file.is_empty() {
        return Err(format!("{shown} is empty; give a file with at least one byte").into());
    }
    let bytes: Vec<u8> = file.iter().copied().cycle().take(num_tokens).collect();
    say!(
        "file      {shown}, {} bytes, {num_tokens} tokens",
        file.len()
    );
    let [q, k, v] = [1, 2, 3].map(|role| embed(&bytes, role));

    let context = Context::new_blocking()?;
    let info = context.adapter_info();
    say!(
        "adapter   {} ({:?}, {})",
        info.name,
        info.backend,
        info.driver_info
    );
    let config =
        DilatedAttentionConfig::new(NUM_HEADS, HEAD_DIM, &[1024, 4096, 16_384], &[1, 4, 16])?
            .with_mask(Mask::Causal);
    let shape = AttentionShape::new(1, num_tokens)?;
    let attention = DilatedAttention::new(&context, config.clone())?;
    let plan = attention.plan(&shape, DType::F32)?;
    say!("\n{plan}\n");

    let started = Instant::now();
    attention.warm_up(DType::F32)?;
    let mut pooled = Runner::new(&context, &attention, &shape, [&q, &k, &v])?;
    let out = pooled.output()?;
    say!(
        "first     {:.3} s, kernels compiled",
        started.elapsed().as_secs_f64()
    );
    let time = pooled.median_time()?;
    let gflops = plan.flop as f64 / time.as_secs_f64() / 1e9;
    say!(
        "forward   {:.4} s, {gflops:.1} GFLOP/s (median of {REPETITIONS})",
        time.as_secs_f64()
    );

    let error = largest_error(&config, &shape, [&q, &k, &v], &out)?;
    say!("oracle    largest error {error:.2e} over {SAMPLED_ROWS} sampled rows of every head");
    say!("\npool\n{}", context.pool().stats());

    let options = ContextOptions {
        pool: PoolOptions::default().with_policy(NoPooling),
        ..Default::default()
    };
    let fresh = options.open_blocking()?;
    let fresh_attention = DilatedAttention::new(&fresh, config)?;
    fresh_attention.warm_up(DType::F32)?;
    let mut unpooled = Runner::new(&fresh, &fresh_attention, &shape, [&q, &k, &v])?;
    unpooled.output()?;
    let fresh_time = unpooled.median_time()?;
    say!(
        "\nwithout the pool the same call takes {:.4} s ({:+.1} %) and creates {} buffers",
        fresh_time.as_secs_f64(),
        (fresh_time.as_secs_f64() / time.as_secs_f64() - 1.0) * 100.0,
        fresh.pool().stats().creates
    );
    // f32 accumulation over up to 16 384 keys; a wrong kernel is off by orders of magnitude more.
    if error.is_nan() || error > 1e-4 {
        return Err(format!("the largest error {error:.2e} is not within 1e-4").into());
    }
    Ok(())
}

/// (N, H, D) numbers in about [-2, 2]: a fixed random vector for each byte value, turned slowly with the position.
fn embed(bytes: &[u8], role: u64) -> Vec<f32> {
    let width = NUM_HEADS * HEAD_DIM;
    let table: Vec<f32> = (0..256 * width as u64)
        .map(|i| {
            let mut z = (i + (role << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z >> 40) as f32) / (1 << 22) as f32 - 2.0
        })
        .collect();
    let mut embedded = Vec::with_capacity(bytes.len() * width);
    for (token, &byte) in bytes.iter().enumerate() {
        let row = &table[byte as usize * width..][..width];
        for (column, value) in row.iter().enumerate() {
            let angle = token as f64 / 10f64.powf(4.0 * column as f64 / width as f64);
            embedded.push(value * angle.cos() as f32);
        }
    }
    embedded
}

/// One attention with its inputs on the device.
struct Runner<'a> {
    context: &'a Context,
    attention: &'a DilatedAttention,
    inputs: [Tensor; 3],
}

impl<'a> Runner<'a> {
    fn new(
        context: &'a Context,
        attention: &'a DilatedAttention,
        shape: &'a AttentionShape,
        data: [&[f32]; 3],
    ) -> dilated_attention::Result<Self> {
        let dims = [1, shape.seq_len(), NUM_HEADS, HEAD_DIM];
        let mut recorder = context.recorder("upload");
        let inputs = [
            recorder.upload("q", &dims, data[0])?,
            recorder.upload("k", &dims, data[1])?,
            recorder.upload("v", &dims, data[2])?,
        ];
        recorder.submit()?;
        Ok(Self {
            context,
            attention,
            inputs,
        })
    }

    fn output(&mut self) -> dilated_attention::Result<Vec<f32>> {
        let mut recorder = self.context.recorder("forward");
        let [q, k, v] = &self.inputs;
        let result = self.attention.forward(&mut recorder, q, k, v)?;
        let out = recorder.download::<f32>(&result.out)?;
        recorder.submit()?;
        out.wait()
    }

    /// Median time of a forward from recording to completion, inputs and outputs on the device.
    fn median_time(&mut self) -> dilated_attention::Result<Duration> {
        let mut times = Vec::with_capacity(REPETITIONS);
        for _ in 0..REPETITIONS {
            let started = Instant::now();
            let mut recorder = self.context.recorder("forward");
            let [q, k, v] = &self.inputs;
            let _result = self.attention.forward(&mut recorder, q, k, v)?;
            recorder.submit()?.wait()?;
            times.push(started.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2])
    }
}

/// Largest difference from the oracle over rows spread evenly, the first and the last among them.
fn largest_error(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    out: &[f32],
) -> dilated_attention::Result<f64> {
    let last = (shape.seq_len() - 1) as u64;
    let rows: Vec<(usize, usize)> = (0..SAMPLED_ROWS as u64)
        .map(|i| (0, (i * last / (SAMPLED_ROWS as u64 - 1)) as usize))
        .collect();
    let expected = reference::forward_rows(config, shape, q, k, v, &rows)?;
    let width = NUM_HEADS * HEAD_DIM;
    let mut largest = 0f64;
    for (number, (_, token)) in rows.iter().enumerate() {
        let row = &out[*token * width..][..width];
        for (got, want) in row.iter().zip(&expected.out[number * width..]) {
            let error = (f64::from(*got) - want).abs();
            // A NaN is the largest error, whatever comes after it.
            if error.is_nan() {
                return Ok(error);
            }
            largest = largest.max(error);
        }
    }
    Ok(largest)
}
