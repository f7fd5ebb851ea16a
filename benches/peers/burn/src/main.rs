//! burn's attention beside ours, on the same adapter and in turn:
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/burn/Cargo.toml
//! ```
//!
//! `burn::tensor::module::attention` over wgpu, with fusion and autotune as burn's defaults have them, inputs in the layout that
//! it takes. It returns no log-sum-exp, so branches cannot be merged: of several branches the gathering of their rows and the
//! attentions are timed and the merge is left out, in burn's favour. Each case has a process of its own, since an allocation
//! that fails poisons burn's device; a failure is a row. Results of both are compared with the f64 reference on sampled rows.
//!
//! Rows have the names and fields of the roofline benchmark's, so `roofline --join` puts them into one table.

mod peer;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use clap::{Parser, value_parser};
use dilated_attention::{Context, DType, DilatedAttention, reference, wgpu};
use peer::Peer;
use serde_json::{Value, json};
use testing::cases::Case;
use testing::measurement::{Spread, date, error_f32, random, range, sampled_rows};

const BURN: &str = "burn 0.22.1";
const OURS: &str = "dilated-attention beside burn";
/// Makes the program the process of one case.
const CASE: &str = "--case";

type Outcome<T> = Result<T, Box<dyn Error>>;

/// burn's attention beside ours, on the same adapter and in turn
#[derive(Parser)]
struct Options {
    /// The first case alone: that everything works, not what it measures
    #[arg(long)]
    quick: bool,
    /// Writes every row as an object, one a line
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Of each measurement [default: 10, with --quick 3]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
    /// Is the process of this case.
    #[arg(long, hide = true)]
    case: Option<String>,
}

fn main() -> Outcome<()> {
    let options = Options::parse();
    let mut json = options.json.map(File::create).transpose()?;
    let repetitions = options.repetitions.unwrap_or(if options.quick { 3 } else { 10 }) as usize;
    let context = Context::new_blocking()?;
    let is_software = context.adapter_info().device_type == wgpu::DeviceType::Cpu;
    let mut cases = Case::set(if is_software { "peers" } else { "gpu" });
    if options.quick {
        cases.truncate(1);
    }
    if let Some(name) = options.case {
        let case = cases.into_iter().find(|case| case.name == name);
        let case = case.ok_or(format!("no case {name}"))?;
        for row in compare(&context, &case, is_software, repetitions)? {
            println!("{row}");
        }
        return Ok(());
    }
    let info = context.adapter_info();
    println!(
        "adapter   {} ({:?}, {})",
        info.name, info.backend, info.driver_info
    );
    let mut all_right = true;
    for case in cases {
        for row in process(&case, repetitions)? {
            all_right &= print(&row);
            if let Some(file) = &mut json {
                let mut row = row;
                row["adapter"] = json!(info.name);
                row["backend"] = json!(format!("{:?}", info.backend));
                row["driver"] = json!(info.driver_info);
                row["date"] = json!(date());
                writeln!(file, "{row}")?;
            }
        }
    }
    match all_right {
        true => Ok(()),
        false => Err("some results are wrong, see above".into()),
    }
}

/// Compares one case in a process of its own and returns its rows.
fn process(case: &Case, repetitions: usize) -> Outcome<Vec<Value>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--repetitions", &repetitions.to_string(), CASE, &case.name]);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let objects = text.lines().filter(|line| line.starts_with('{'));
    let rows = objects
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    if output.status.success() {
        return Ok(rows);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    // What went wrong first, without the line that says in which thread.
    let said = errors.lines().find(|line| {
        let line = line.to_lowercase();
        !line.contains("panicked at") && (line.contains("alloc") || line.contains("error"))
    });
    let failure = said
        .or(errors.lines().last())
        .unwrap_or("no message")
        .trim();
    let mut row = row(BURN, case);
    row["failure"] = json!(failure);
    Ok(vec![row])
}

fn row(implementation: &str, case: &Case) -> Value {
    json!({
        "implementation": implementation, "group": "forward", "case": case.name, "parameters": case, "dtype": "f32",
    })
}

/// Prints a row; returns whether its results were right.
fn print(row: &Value) -> bool {
    let text = |key: &str| row[key].as_str().unwrap_or("?").to_owned();
    let spread = |key: &str, digits| {
        let number = |part: &str| row[key][part].as_f64().unwrap_or(f64::NAN);
        let [median, min, max] = ["median", "min", "max"].map(number);
        range(Spread { median, min, max }, digits)
    };
    let names = format!("{:<28} {:<30}", text("case"), text("implementation"));
    if let Some(failure) = row["failure"].as_str() {
        println!("{names} failed: {failure}");
        return true;
    }
    let error = row["error_of_allowed"].as_f64().unwrap_or(f64::INFINITY);
    let ratio = match row.get("times_of_ours") {
        Some(_) => format!("  {} times ours", spread("times_of_ours", 2)),
        None => String::new(),
    };
    println!(
        "{names} {:>26} ms  {:>22} GFLOP/s  error {error:.2}{ratio}",
        spread("wall_ms", 1),
        spread("rate", 1),
    );
    error <= 1.0
}

/// Times both in turn and checks both.
fn compare(
    context: &Context,
    case: &Case,
    is_software: bool,
    repetitions: usize,
) -> Outcome<Vec<Value>> {
    let mut random = random();
    let inputs = [(); 3].map(|()| -> Vec<f32> { (0..case.elements()).map(|_| random()).collect() });
    let [q, k, v] = &inputs;
    let (config, shape, dims) = (case.config()?, case.shape()?, case.dims());
    let attention = DilatedAttention::new(context, config.clone())?;
    let mut recorder = context.recorder("inputs");
    let tensors = [
        recorder.upload("q", &dims, q)?,
        recorder.upload("k", &dims, k)?,
        recorder.upload("v", &dims, v)?,
    ];
    recorder.submit()?.wait()?;
    let ours = || -> Outcome<_> {
        let started = Instant::now();
        let mut recorder = context.recorder("ours");
        let [q, k, v] = &tensors;
        let result = attention.forward(&mut recorder, q, k, v)?;
        recorder.submit()?.wait()?;
        Ok((started.elapsed().as_secs_f64(), result.out))
    };
    let peer = Peer::new(case, &inputs, is_software)?;
    let mut times = [const { Vec::new() }; 2];
    let mut ratios = Vec::new();
    // What is compiled and tuned at first is not timed.
    let mut results = (ours()?.1, peer.attend()?.1);
    for _ in 0..repetitions {
        let mut recorder = context.recorder("poison");
        recorder.write(&results.0, &vec![f32::NAN; case.elements()])?;
        recorder.submit()?.wait()?;
        drop(results);
        let (our_time, our_result) = ours()?;
        let (peer_time, peer_result) = peer.attend()?;
        results = (our_result, peer_result);
        ratios.push(peer_time / our_time);
        times[0].push(our_time);
        times[1].push(peer_time);
    }
    let rows = sampled_rows(case.tokens);
    let expected = reference::forward_rows(&config, &shape, q, k, v, &rows)?;
    let mut recorder = context.recorder("result");
    let download = recorder.download::<f32>(&results.0)?;
    recorder.submit()?.wait()?;
    let out = download.wait()?;
    let width = (case.heads * case.head_dim) as usize;
    let sampled = rows
        .iter()
        .flat_map(|&(_, row)| &out[row as usize * width..][..width]);
    let errors = [
        error_f32(sampled.copied(), &expected.out),
        peer.error(case, &inputs, results.1)?,
    ];
    let flop = attention.plan(&shape, DType::F32)?.flop as f64;
    let mut objects = Vec::new();
    for ((implementation, times), error) in [OURS, BURN].into_iter().zip(times).zip(errors) {
        let seconds = Spread::of(times);
        let mut row = row(implementation, case);
        row["repetitions"] = json!(repetitions);
        row["wall_ms"] = json!(seconds.map(|seconds| seconds * 1e3));
        row["work"] = json!(flop);
        row["unit"] = json!("GFLOP/s");
        row["rate"] = json!(seconds.map(|seconds| flop / seconds / 1e9));
        row["error_of_allowed"] = json!(error.is_finite().then_some(error));
        objects.push(row);
    }
    objects[1]["times_of_ours"] = json!(Spread::of(ratios));
    if case.rates.len() > 1 {
        objects[1]["note"] = json!("without the merge of branches");
    }
    Ok(objects)
}
