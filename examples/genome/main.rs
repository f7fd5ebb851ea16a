//! An encoder layer over a whole genome, out of core: `scripts/fetch_genome.sh`, then
//! `cargo run --release --example genome -- --help`.
//!
//! Every base is a token. Its embedding, of the base and of its position, is computed when it is read, so that the layer's input is
//! nowhere as a whole; the output goes to a file, or to a checksum. Sampled tokens are computed again in f64, from all tokens that
//! they see. The weights are random: this shows what a layer over a genome takes, not what one has learned.

mod exact;
mod picture;

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Instant;

use clap::Parser;
use dilated_attention::longnet::{LongNet, LongNetConfig};
use dilated_attention::out_of_core::{Generated, OutOfCoreOptions, TokenFile, TokenSink};
use dilated_attention::{Context, DType, DilatedAttentionConfig};
use indicatif::{ProgressBar, ProgressStyle};
use program::say;

/// Heads, and elements of each.
const HEADS: usize = 4;
const HEAD_DIM: usize = 16;
const WIDTH: usize = HEADS * HEAD_DIM;

/// The largest error that passes, of the largest value: 128 units in the last place of an f32.
const TOLERANCE: f64 = 1.0 / (1u64 << 16) as f64;

/// An encoder layer over a whole genome, out of core
///
/// Exits with 0 when all sampled tokens are right, 1 when one is not, 2 when they could not be checked.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// A FASTA file
    #[arg(default_value = "target/genome.fna")]
    genome: PathBuf,
    /// Bases to take, from the first on; all unless set
    #[arg(long)]
    bases: Option<usize>,
    /// Branches, each a segment length and a dilation rate; the last reaches over the whole of a bacterium's genome
    #[arg(long, value_name = "LENGTH/RATE", num_args = 1.., default_values = ["4096/1", "65536/16", "8388608/2048"], value_parser = program::branch)]
    branches: Vec<(usize, usize)>,
    /// MiB of device memory, weights included
    #[arg(long, default_value_t = 256)]
    budget_mib: u64,
    /// Tokens that are computed again in f64
    #[arg(long, default_value_t = 64)]
    samples: usize,
    /// File for the layer's output, 256 bytes a base: a safetensors file of one tensor, which must not exist
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// File for a picture of where the samples look (.svg)
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Only says what it would do
    #[arg(long)]
    plan: bool,
}

fn main() -> ExitCode {
    program::run_or(2, run)
}

/// The bases of a FASTA file with one sequence.
fn read(options: &Options) -> Result<Vec<u8>, Box<dyn Error>> {
    let path = options.genome.display();
    let text = std::fs::read(&options.genome)
        .map_err(|error| format!("{path}: {error}; scripts/fetch_genome.sh fetches one"))?;
    let mut bases: Vec<u8> = Vec::with_capacity(text.len());
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        match line.first() {
            Some(b'>') if number > 0 => {
                return Err(format!("{path}: line {} begins a second sequence", number + 1).into());
            }
            Some(b'>') => {}
            _ => bases.extend(line.iter().filter(|byte| !byte.is_ascii_whitespace())),
        }
    }
    if let Some(odd) = bases.iter().find(|base| !base.is_ascii_alphabetic()) {
        return Err(format!("{path}: {:?} is no base", char::from(*odd)).into());
    }
    bases.truncate(options.bases.unwrap_or(usize::MAX));
    match bases.is_empty() {
        true => Err(format!("{path}: there are no bases").into()),
        false => Ok(bases),
    }
}

/// The embedding of a base at a position: a row of numbers for each letter, and sines and cosines of the position.
fn embed(base: u8, position: usize, row: &mut [f32]) {
    static FREQUENCIES: LazyLock<[f32; WIDTH / 2]> = LazyLock::new(|| {
        std::array::from_fn(|pair| 10_000f32.powf(-2.0 * pair as f32 / WIDTH as f32))
    });
    for (pair, (values, frequency)) in row.chunks_mut(2).zip(&*FREQUENCIES).enumerate() {
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        for (element, (value, wave)) in values.iter_mut().zip([sin, cos]).enumerate() {
            let bits = (u64::from(base) << 8 | (2 * pair + element) as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *value = (bits >> 40) as f32 / (1 << 23) as f32 - 1.0 + 0.5 * wave;
        }
    }
}

/// The name of an output that is not whole yet.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn run(options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let bases = read(&options)?;
    let (lengths, rates): (Vec<usize>, Vec<usize>) = options.branches.iter().copied().unzip();
    let attention = DilatedAttentionConfig::new(HEADS, HEAD_DIM, &lengths, &rates)?;
    let config = LongNetConfig::encoder(attention, 1, 2 * WIDTH);
    let context = Context::new_blocking()?;
    let adapter = context.adapter_info();
    say!("adapter   {}, {}", adapter.name, adapter.driver_info);
    let model = LongNet::new(&context, config)?;
    let weights = model.initial_weights(&context, 1)?;
    context.wait()?;
    context.pool().force_trim();
    let weight_bytes = context.pool().stats().held_bytes.current;
    let budget = (options.budget_mib << 20).saturating_sub(weight_bytes);
    let budget = OutOfCoreOptions::new(budget);
    let plan = model.plan_layer_out_of_core(bases.len(), DType::F32, &budget)?;
    say!("{plan}");
    if options.plan {
        return Ok(ExitCode::SUCCESS);
    }
    let input = Generated::new(|tokens: Range<usize>, rows: &mut [f32]| {
        for (token, row) in tokens.zip(rows.chunks_mut(WIDTH)) {
            embed(bases[token], token, row);
        }
    });
    // Spread over the genome, the ends included. Every other one is at a multiple of the largest rate, where all branches have a row.
    let (last, steps) = (bases.len() - 1, options.samples.max(2) - 1);
    let rate = options.branches.iter().map(|(_, rate)| *rate).max();
    let rate = rate.unwrap_or(1).max(1);
    let samples = (0..=steps).map(|step| {
        let token = (last as u128 * step as u128 / steps as u128) as usize;
        match step % 2 == 1 && step < steps {
            true => token / rate * rate,
            false => token,
        }
    });
    let mut sink = Sampled {
        checksum: crc32fast::Hasher::new(),
        rows: samples.map(|token| (token, Vec::new())).collect(),
        file: match &options.out {
            None => None,
            Some(path) => {
                let shape = [bases.len(), WIDTH];
                // Under its own name once it is whole.
                Some(TokenFile::create_safetensors(
                    partial(path),
                    "layer",
                    &shape,
                    DType::F32,
                )?)
            }
        },
    };
    context.pool().reset_peaks();
    let begin = Instant::now();
    let style = ProgressStyle::with_template("[{bar:40}] {percent:>3} %, {eta} left")?;
    let bar = ProgressBar::new(1000).with_style(style);
    let mut run = model.run_layer_out_of_core(&plan, &weights, 0, &input, &mut sink)?;
    while !run.is_done() {
        bar.set_position((1000.0 * run.advance()?.fraction()) as u64);
    }
    drop(run);
    bar.finish_and_clear();
    if let Some(path) = &options.out {
        std::fs::rename(partial(path), path)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    say!(
        "computed  {seconds:.1} s, {:.3} million bases a second, {:.1} GFLOP/s",
        bases.len() as f64 / 1e6 / seconds,
        plan.flop as f64 / 1e9 / seconds
    );
    say!(
        "memory    {:.1} MiB of device memory at most, of {} MiB",
        context.pool().stats().held_bytes.peak as f64 / f64::from(1 << 20),
        options.budget_mib
    );
    say!(
        "checksum  {:08x} (CRC-32 of the output)",
        sink.checksum.finalize()
    );
    let begin = Instant::now();
    let values = exact::download(&context, &weights)?;
    let layer = exact::Layer {
        config: model.config(),
        values: &values,
        bases: &bases,
    };
    let (mut worst, mut largest) = (0f64, 0f64);
    let mut looks = Vec::new();
    let tokens: Vec<usize> = sink.rows.keys().copied().collect();
    for (exact, (token, row)) in layer.outputs(&tokens).into_iter().zip(&sink.rows) {
        for (given, expected) in row.iter().zip(&exact.output) {
            let error = (f64::from(*given) - expected).abs();
            worst = if error > worst || error.is_nan() {
                error
            } else {
                worst
            };
            largest = largest.max(expected.abs());
        }
        looks.push((*token, exact.weights));
    }
    let holds = worst <= TOLERANCE * largest;
    say!(
        "checked   {} tokens in {:.1} s: largest {largest:.3e}, worst error {worst:.3e}: {}",
        looks.len(),
        begin.elapsed().as_secs_f64(),
        if holds { "ok" } else { "WRONG" }
    );
    if let Some(path) = &options.picture {
        picture::draw(path, bases.len(), &looks)?;
        say!("picture   {}", path.display());
    }
    Ok(ExitCode::from(u8::from(!holds)))
}

/// Keeps a checksum of the output and some rows; the rest goes to a file, if there is one.
struct Sampled {
    checksum: crc32fast::Hasher,
    rows: BTreeMap<usize, Vec<f32>>,
    file: Option<TokenFile>,
}

impl TokenSink for Sampled {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn num_elements(&self) -> Option<u64> {
        None
    }

    fn write(&mut self, tokens: Range<usize>, rows: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write(tokens.clone(), rows)?;
        }
        self.checksum.update(rows);
        for (token, row) in self.rows.range_mut(tokens.clone()) {
            let bytes = &rows[(token - tokens.start) * 4 * WIDTH..][..4 * WIDTH];
            *row = bytemuck::pod_collect_to_vec(bytes);
        }
        Ok(())
    }
}
