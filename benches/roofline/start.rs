//! Time from the start of a process to its first result: with no compiled shader anywhere, and with the driver's cache warm.
//!
//! The harness runs itself again for each sample, since a driver keeps what it compiled as long as the process lives.

use std::env;
use std::error::Error;
use std::fs;
use std::process::Command;
use std::time::Instant;

use dilated_attention::{CacheFolder, Context, DType};
use serde_json::json;
use testing::cases::Case;
use testing::measurement::{Spread, range};

use crate::attention::{Direction, Prepared};
use crate::report::Report;
use crate::timing::{Clock, Subject};

/// Makes the harness such a process.
pub const CHILD: &str = "--first-call";

/// The process that is timed: opens a device, calls attention twice, prints the seconds of each step.
pub fn child() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let context = Context::new_blocking()?;
    let open = started.elapsed().as_secs_f64();
    let case = &Case::set("quick")[0];
    let prepared = Prepared::new(&context, case, None, Direction::Forward, DType::F32)?;
    let clock = Clock::new(&context, false);
    let subject = Subject {
        context: &context,
        clock: &clock,
        timed: &prepared,
    };
    let (first, second) = (subject.seconds()?.wall, subject.seconds()?.wall);
    // As an application that keeps what was compiled.
    context.save_compiled();
    println!("{open} {first} {second}");
    Ok(())
}

/// Seconds of one process: in all, to open the device, of the first and of the second call.
fn process(variables: &[(&str, &str)]) -> Result<[f64; 4], Box<dyn Error>> {
    let started = Instant::now();
    let mut command = Command::new(env::current_exe()?);
    command.arg(CHILD).envs(variables.iter().copied());
    let output = command.output()?;
    let whole = started.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout);
    let steps = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<Vec<f64>, _>>()?;
    let [open, first, second] = steps[..] else {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the process ended with {}: {errors}", output.status).into());
    };
    Ok([whole, open, first, second])
}

pub fn run(report: &mut Report, quick: bool) -> Result<(), Box<dyn Error>> {
    let folder = env::temp_dir().join(format!("roofline-{}", std::process::id()));
    let cache = folder.to_string_lossy().into_owned();
    // The library's cache, Mesa's and that of NVIDIA's driver.
    let cold = [
        (CacheFolder::VARIABLE, "off"),
        ("MESA_SHADER_CACHE_DISABLE", "true"),
        ("__GL_SHADER_DISK_CACHE", "0"),
    ];
    let warm = [
        (CacheFolder::VARIABLE, cache.as_str()),
        ("MESA_SHADER_CACHE_DISABLE", "false"),
        ("MESA_SHADER_CACHE_DIR", &cache),
        ("__GL_SHADER_DISK_CACHE", "1"),
        ("__GL_SHADER_DISK_CACHE_PATH", &cache),
    ];
    fs::create_dir_all(&folder)?;
    // Fills the cache.
    process(&warm)?;
    let repetitions = if quick { 1 } else { 5 };
    println!(
        "\nseconds from the start of a process, first call of {}",
        Case::set("quick")[0].name
    );
    for (case, variables) in [
        ("no cached shaders", &cold[..]),
        ("warm shader cache", &warm[..]),
    ] {
        let mut samples = [const { Vec::new() }; 4];
        for _ in 0..repetitions {
            for (samples, seconds) in samples.iter_mut().zip(process(variables)?) {
                samples.push(seconds);
            }
        }
        let [whole, open, first, second] = samples.map(Spread::of);
        println!(
            "{case:<18}  process {}, device {}, first call {}, second {}",
            range(whole, 2),
            range(open, 2),
            range(first, 2),
            range(second, 3),
        );
        report.object(json!({
            "group": "start", "case": case, "process_seconds": whole, "device_seconds": open,
            "first_seconds": first, "second_seconds": second, "repetitions": repetitions,
        }))?;
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}
