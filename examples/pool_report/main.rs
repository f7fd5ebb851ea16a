//! Records what the pool does under a forward workload, and shows it: figures, tables, a drawn timeline, JSON, and what other
//! policies would have done on the same requests: `cargo run --release --example pool_report`.

mod picture;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use dilated_attention::pool::{Balanced, Exact, Lean, NoPooling, PoolOptions, PoolReport, Speed};
use dilated_attention::{Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig};
use program::say;

const NUM_HEADS: usize = 4;
const HEAD_DIM: usize = 32;
const LAYERS: usize = 3;

/// Requests of these numbers of tokens, one after the other: growing, then short, then all lengths.
const TOKENS: [usize; 20] = [
    1024, 1536, 2048, 3072, 4096, 4096, 512, 512, 512, 768, 512, 2048, 1024, 3072, 768, 4096, 1536,
    512, 2048, 1024,
];

/// Records what the pool does under a forward workload: figures, tables, a picture, and what other policies would have done
#[derive(Parser)]
struct Options {
    /// Where timeline.svg, report.json and trace.txt are written
    #[arg(default_value = "target/pool_report")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(Options { directory }: Options) -> Result<(), Box<dyn Error>> {
    // A small floor, so that what is held follows what is live at these sizes, too.
    let policy = Balanced {
        floor_bytes: 1 << 20,
        ..Balanced::default()
    };
    let context = ContextOptions::new()
        .with_pool(PoolOptions::default().with_policy(policy))
        .open_blocking()?;
    let info = context.adapter_info();
    say!("adapter  {} ({})\n", info.name, info.driver_info);

    let config = DilatedAttentionConfig::new(NUM_HEADS, HEAD_DIM, &[64, 256], &[1, 4])?;
    let attention = DilatedAttention::new(&context, config)?;
    request(&context, &attention, 64)?; // compiles
    context.pool().force_trim();
    context.pool().start_trace();
    for tokens in TOKENS {
        let scope = context.pool().scope("request");
        request(&context, &attention, tokens)?;
        context.wait()?;
        say!("{tokens:>5} tokens, {}", scope.report());
    }
    let report = context.pool().report();
    let trace = context.pool().take_trace();
    say!("\n{report}\n\n{}", report.class_table());

    say!("the same requests under each policy");
    say!(
        "{:<10} {:>8} {:>8} {:>14} {:>14} {:>8}",
        "policy",
        "created",
        "hits %",
        "peak asked",
        "peak held",
        "ratio"
    );
    let options = PoolOptions::default;
    for (name, options) in [
        ("here", options().with_policy(policy)),
        ("Balanced", options().with_policy(Balanced::default())),
        ("Speed", options().with_policy(Speed)),
        ("Lean", options().with_policy(Lean)),
        ("Exact", options().with_policy(Exact)),
        ("NoPooling", options().with_policy(NoPooling)),
    ] {
        print_line(
            name,
            &trace.replay(options, context.caps().max_buffer_bytes())?,
        );
    }

    let failed = |path: &Path, error| format!("{} cannot be written: {error}", path.display());
    std::fs::create_dir_all(&directory).map_err(|error| failed(&directory, error))?;
    let title = format!("Buffer pool under {} attention requests", TOKENS.len());
    for (name, text) in [
        ("timeline.svg", picture::svg(&trace.timeline(), &title)?),
        ("report.json", serde_json::to_string_pretty(&report)?),
        ("trace.txt", trace.to_string()),
    ] {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// One request: layers of attention over `tokens` tokens, uploaded and read back.
fn request(
    context: &Context,
    attention: &DilatedAttention,
    tokens: usize,
) -> Result<(), Box<dyn Error>> {
    let dims = [1, tokens, NUM_HEADS, HEAD_DIM];
    let data = vec![0.5f32; dims.iter().product()];
    let mut recorder = context.recorder("request");
    let mut hidden = recorder.upload("hidden", &dims, &data)?;
    for _ in 0..LAYERS {
        let keys = recorder.zeros("keys", &dims, DType::F32)?;
        hidden = attention
            .forward(&mut recorder, &hidden, &keys, &hidden)?
            .out;
    }
    let result = recorder.download::<f32>(&hidden)?;
    recorder.submit()?;
    result.wait()?;
    Ok(())
}

fn print_line(name: &str, report: &PoolReport) {
    let stats = &report.stats;
    say!(
        "{name:<10} {:>8} {:>8.1} {:>14} {:>14} {:>8.2}",
        stats.creates,
        100.0 * stats.hit_rate(),
        stats.requested_bytes.peak,
        stats.held_bytes.peak,
        stats.held_bytes.peak as f64 / stats.requested_bytes.peak as f64
    );
}
