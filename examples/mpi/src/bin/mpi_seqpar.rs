//! Attention over a sequence of which each process has a share, forward and backward, against what one process computes.
//!
//! ```sh
//! mpiexec -n 4 mpi_seqpar
//! mpiexec -n 4 mpi_seqpar --tokens 100000 --branches 2048/1 65536/32 --dtype bf16
//! ```

use std::ops::Range;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use dilated_attention::distributed::{Group, GroupError, SequenceShare};
use dilated_attention::ops::convert;
use dilated_attention::pool::PoolStats;
use dilated_attention::{
    Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig, Error, Mask,
    Recorder, Result, Tensor,
};
use dilated_attention_mpi::{Settings, run};
use program::say;

/// Runs attention over a sequence that all processes share, and compares it with what the first one computes alone
///
/// For each rank and branch it prints how many bytes the rank receives in a forward, beside those of the keys and values of all tokens of
/// the same segments, and those that pass by in ring attention. All outputs and gradients must be near those of one process, and the
/// third step must not create any buffer.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// Tokens of the sequence
    #[arg(long, default_value_t = 2500)]
    tokens: usize,
    /// Heads
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Elements of a head
    #[arg(long, default_value_t = 16)]
    head_dim: usize,
    /// Branches, each a segment length and a dilation rate
    #[arg(long, value_name = "LENGTH/RATE", num_args = 1.., default_values = ["256/1", "1000/4", "4096/16"], value_parser = program::branch)]
    branches: Vec<(usize, usize)>,
    /// Padding and rows as torchscale has them
    #[arg(long)]
    torchscale: bool,
    /// Type of queries, keys, values, outputs and gradients
    #[arg(long, value_enum, default_value_t = Stored::F32)]
    dtype: Stored,
    /// Time-out of each call, in which the first process also computes alone
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u32,
    /// This rank has another configuration
    #[arg(long, value_name = "RANK")]
    mismatch: Option<usize>,
    /// This rank dies between forward and backward
    #[arg(long, value_name = "RANK")]
    kill: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stored {
    F32,
    F16,
    Bf16,
}

impl Stored {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
        }
    }

    /// The largest error as a part of the largest value. In half precision both results are rounded once, after f32: where these
    /// differ at all, they may end as neighbouring numbers.
    fn tolerance(self) -> f64 {
        match self {
            Self::F32 => 1e-5,
            Self::F16 => 1.0 / 1024.0,
            Self::Bf16 => 1.0 / 128.0,
        }
    }
}

fn main() -> ExitCode {
    program::run(|options: Options| {
        let settings = Settings::new(Duration::from_secs(options.timeout.into()));
        Ok(run(settings, |group| share_attention(group, &options)))
    })
}

fn share_attention(group: &Arc<Group>, options: &Options) -> Result<()> {
    let context = group.agree(ContextOptions::new().open_blocking())?;
    let first = group.rank() == 0;
    if first {
        say!("adapter     {}", context.adapter_info().name);
    }
    for mask in [Mask::Full, Mask::Causal] {
        let config = group.agree(config(options, mask, group.rank()))?;
        if mask == Mask::Full {
            say_on_first(group, exchange_in_words(group, options, &config))?;
        }
        let share = SequenceShare::new(Arc::clone(group), options.tokens);
        let attention = group.agree(DilatedAttention::new(&context, config))?;
        let mut creates = Vec::new();
        let mut last = None;
        for _ in 0..3 {
            let started = Instant::now();
            let results = step(&context, &attention, &share, options);
            let results = group.agree(results)?;
            creates.push(context.pool().stats().creates);
            last = Some((results, started.elapsed()));
        }
        let Some((results, time)) = last else {
            continue;
        };
        let words = pool_in_words(group, mask, &context.pool().stats(), time);
        say_on_first(group, Ok(words))?;
        let more = creates[2] - creates[1];
        group.agree(match more {
            0 => Ok(()),
            _ => Err(wrong(format!("the third step created {more} buffers"))),
        })?;
        let all = gather(group, &results)?;
        let compared = match first {
            true => alone(attention.config(), options).and_then(|of_one| {
                say!("{}", compare(&all, &of_one, options.dtype.tolerance())?);
                Ok(())
            }),
            false => Ok(()),
        };
        group.agree(compared)?;
    }
    Ok(())
}

fn config(options: &Options, mask: Mask, rank: usize) -> Result<DilatedAttentionConfig> {
    let (mut lengths, rates): (Vec<_>, Vec<_>) = options.branches.iter().copied().unzip();
    if options.mismatch == Some(rank) {
        lengths[0] += 1;
    }
    let (heads, head_dim) = (options.heads, options.head_dim);
    let config = DilatedAttentionConfig::new(heads, head_dim, &lengths, &rates)?.with_mask(mask);
    Ok(match options.torchscale {
        true => config.with_torchscale(),
        false => config,
    })
}

/// Element `index` of q, k, v or the gradient of the output (`tensor` 0 to 3): a number in -1..1 that is exact in every type.
fn value(tensor: u64, index: u64) -> f32 {
    let mut bits = index * 4 + tensor;
    bits = (bits ^ (bits >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d);
    (bits >> 57) as f32 / 64.0 - 1.0
}

/// Tokens of q, k, v and the gradient of the output, of `dtype`.
fn inputs(
    recorder: &mut Recorder,
    options: &Options,
    tokens: Range<usize>,
    dtype: DType,
) -> Result<[Tensor; 4]> {
    let width = (options.heads * options.head_dim) as u64;
    let shape = [1, tokens.len(), options.heads, options.head_dim];
    let mut upload = |tensor, label| {
        let elements = tokens.start as u64 * width..tokens.end as u64 * width;
        let values: Vec<f32> = elements.map(|index| value(tensor, index)).collect();
        let tensor = recorder.upload(label, &shape, &values)?;
        convert(recorder, &tensor, dtype)
    };
    Ok([
        upload(0, "q")?,
        upload(1, "k")?,
        upload(2, "v")?,
        upload(3, "dout")?,
    ])
}

/// Output, and gradients of queries, keys and values.
type Results = [Vec<f32>; 4];

/// A step of this rank. Results were of the type that is asked for.
fn step(
    context: &Context,
    attention: &DilatedAttention,
    share: &SequenceShare,
    options: &Options,
) -> Result<Results> {
    let mut recorder = context.recorder("a share");
    let dtype = options.dtype.dtype();
    let [q, k, v, dout] = inputs(&mut recorder, options, share.range(), dtype)?;
    let forward = attention.forward_of_share(&mut recorder, share, [&q, &k, &v])?;
    if options.kill == Some(share.group().rank()) {
        process::abort();
    }
    let state = &forward.softmax_state;
    let gradients =
        attention.backward_of_share(&mut recorder, share, [&q, &k, &v], state, &dout)?;
    let tensors = [forward.out, gradients.dq, gradients.dk, gradients.dv];
    download(recorder, tensors)
}

/// All of the sequence, by calls that know nothing of ranks, in f32. Results are rounded to the type that is asked for.
fn alone(config: &DilatedAttentionConfig, options: &Options) -> Result<Results> {
    // Its own, so that the figures of the other pool are those of a share.
    let context = ContextOptions::new().open_blocking()?;
    let attention = DilatedAttention::new(&context, config.clone())?;
    let mut recorder = context.recorder("alone");
    let [q, k, v, dout] = inputs(&mut recorder, options, 0..options.tokens, DType::F32)?;
    let forward = attention.forward(&mut recorder, &q, &k, &v)?;
    let state = &forward.softmax_state;
    let gradients = attention.backward(&mut recorder, [&q, &k, &v], state, &dout)?;
    let tensors = [forward.out, gradients.dq, gradients.dk, gradients.dv];
    let dtype = options.dtype.dtype();
    let [out, dq, dk, dv] = tensors.map(|tensor| convert(&mut recorder, &tensor, dtype));
    download(recorder, [out?, dq?, dk?, dv?])
}

fn download(mut recorder: Recorder, tensors: [Tensor; 4]) -> Result<Results> {
    let downloads = tensors.map(|tensor| {
        let tensor = convert(&mut recorder, &tensor, DType::F32)?;
        recorder.download::<f32>(&tensor)
    });
    recorder.submit()?;
    let [out, dq, dk, dv] = downloads.map(|download| download?.wait());
    Ok([out?, dq?, dk?, dv?])
}

/// The results of all ranks, put together on the first one.
fn gather(group: &Group, results: &Results) -> Result<Results> {
    let values = results.iter().flatten();
    let bytes: Vec<u8> = values.flat_map(|value| value.to_ne_bytes()).collect();
    let mut sends = vec![&[][..]; group.size()];
    sends[0] = &bytes;
    let mut received = Vec::new();
    group.all_to_all(Ok(&sends), &mut received)?;
    let mut all = Results::default();
    for bytes in &received {
        let values = bytes.as_chunks::<4>().0;
        let values: Vec<f32> = values
            .iter()
            .map(|bytes| f32::from_ne_bytes(*bytes))
            .collect();
        let count = values.len() / all.len();
        for (number, all) in all.iter_mut().enumerate() {
            all.extend(&values[number * count..][..count]);
        }
    }
    Ok(all)
}

/// The largest errors as parts of the largest values, in words; an error where one is beyond the tolerance.
fn compare(given: &Results, expected: &Results, tolerance: f64) -> Result<String> {
    let mut words = String::from("error      ");
    for ((name, given), expected) in ["out", "dq", "dk", "dv"].iter().zip(given).zip(expected) {
        if given.len() != expected.len() {
            return Err(wrong(format!(
                "{name} has {} elements instead of {}",
                given.len(),
                expected.len()
            )));
        }
        let pairs = given.iter().zip(expected);
        let errors = pairs.map(|(given, expected)| f64::from((given - expected).abs()));
        let largest = expected.iter().map(|value| f64::from(value.abs()));
        // A NaN stays.
        let worst = |max: f64, error: f64| match max.is_nan() || error <= max {
            true => max,
            false => error,
        };
        let error = errors.fold(0.0, worst);
        let largest = largest.fold(f64::MIN_POSITIVE, f64::max);
        words += &format!(" {name} {:.1e}", error / largest);
        if error.is_nan() || error > tolerance * largest {
            return Err(wrong(format!(
                "{name} is off by {error:e}, more than {tolerance:.1e} of the largest value, {largest}"
            )));
        }
    }
    Ok(format!(
        "{words} of the largest; {tolerance:.1e} is allowed"
    ))
}

fn wrong(reason: String) -> Error {
    GroupError::Application { reason }.into()
}

/// What this rank receives in a forward, branch after branch.
fn exchange_in_words(
    group: &Group,
    options: &Options,
    config: &DilatedAttentionConfig,
) -> Result<String> {
    let (rank, dtype) = (group.rank(), options.dtype.dtype());
    let of_branches = config.exchange_of_share(options.tokens, group.size(), rank, dtype)?;
    let lines = of_branches.iter().map(|bytes| {
        let (length, rate) = options.branches[bytes.branch];
        format!(
            "rank {rank:<7}branch {length}/{rate}: receives {} bytes; dense keys and values are {}, a ring passes {}\n",
            bytes.packed_bytes, bytes.dense_bytes, bytes.ring_bytes
        )
    });
    Ok(lines.collect())
}

fn pool_in_words(group: &Group, mask: Mask, stats: &PoolStats, time: Duration) -> String {
    format!(
        "rank {:<7}{mask:?}: {} buffers, {} bytes at most; third step {:.1} ms\n",
        group.rank(),
        stats.creates,
        stats.held_bytes.peak,
        1e3 * time.as_secs_f64()
    )
}

/// The first rank says what each has to say, in order.
fn say_on_first(group: &Group, words: Result<String>) -> Result<()> {
    let bytes = words.as_ref().map(String::as_bytes).map_err(Error::clone);
    let mut received = Vec::new();
    group.all_gather(bytes, &mut received)?;
    let all = received.concat();
    if group.rank() == 0 && !all.is_empty() {
        say!("{}", String::from_utf8_lossy(&all).trim_end());
    }
    Ok(())
}
