//! Runs cases, one a line of its standard input, and answers each with a line.

use std::fs::File;
use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use dilated_attention::pool::{PoolError, STORAGE_USAGE};
use dilated_attention::{Context, Error, Pool, Result};

use super::workloads::{ALL, Run};
use super::{ERRORS, Fault, KINDS};

/// How long what other threads hold may take to come back.
const GRACE: Duration = Duration::from_secs(2);

/// How long a lost context may take to say so.
const PROMPT: Duration = Duration::from_secs(1);

/// Panics of which the hook was told, inside wgpu where the library catches them, and elsewhere.
static INSIDE_WGPU: AtomicU64 = AtomicU64::new(0);
static ELSEWHERE: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub fn run() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or("", |location| location.file());
        if place.contains("wgpu") {
            INSIDE_WGPU.fetch_add(1, Ordering::Relaxed);
        } else if let Ok(mut elsewhere) = ELSEWHERE.lock() {
            elsewhere.push(panic.to_string());
        }
    }));
    let Ok(control) = Control::open() else {
        eprintln!("FAULT_CONTROL names no file");
        return ExitCode::FAILURE;
    };
    let mut expected: Vec<Option<Vec<f32>>> = vec![None; ALL.len()];
    for line in std::io::stdin().lock().lines() {
        let Some((workload, fault)) = line.ok().as_deref().and_then(parse) else {
            return ExitCode::FAILURE;
        };
        let answer = case(&control, ALL[workload], fault, &mut expected[workload]);
        println!("{answer}");
        if std::io::stdout().flush().is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn parse(line: &str) -> Option<(usize, Fault)> {
    let mut numbers = line.split(' ').map(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next()?;
    let workload = next()? as usize;
    let fault = Fault {
        kind: next()? as usize,
        error: next()? as usize,
        nth: next()?,
        onward: next()? == 1,
    };
    Some((workload, fault))
}

/// What the layer and this program share; see `struct control` of layer.c.
struct Control(File);

impl Control {
    fn open() -> std::io::Result<Self> {
        let path = std::env::var_os("FAULT_CONTROL").unwrap_or_default();
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self(file))
    }

    /// Counts from 0, and arms a fault.
    fn arm(&self, fault: Fault) -> std::io::Result<()> {
        let mut bytes = vec![0; 32 + 8 * KINDS.len()];
        // Disarmed first: what is read while this is written is no other fault.
        self.0.write_all_at(&bytes, 0)?;
        bytes[..4].copy_from_slice(&(fault.kind as i32).to_le_bytes());
        bytes[4..8].copy_from_slice(&ERRORS[fault.error].1.to_le_bytes());
        bytes[16..24].copy_from_slice(&u64::from(fault.onward).to_le_bytes());
        bytes[8..16].copy_from_slice(&fault.nth.to_le_bytes());
        self.0.write_all_at(&bytes[..24], 0)
    }

    /// How many calls failed, and the calls of each kind.
    fn counts(&self) -> std::io::Result<(u64, Vec<u64>)> {
        let mut bytes = vec![0; 8 + 8 * KINDS.len()];
        self.0.read_exact_at(&mut bytes, 24)?;
        let numbers: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
            .collect();
        Ok((numbers[0], numbers[1..].to_vec()))
    }
}

/// One case: `result milliseconds failed caught counts text`.
fn case(
    control: &Control,
    (name, run): (&str, Run),
    fault: Fault,
    expected: &mut Option<Vec<f32>>,
) -> String {
    let caught_before = INSIDE_WGPU.load(Ordering::Relaxed);
    let makes_its_own = name == "context";
    let armed = |fault| control.arm(fault).expect("the control file can be written");
    armed(Fault::default());
    let context = match Context::new_blocking() {
        Ok(context) => context,
        Err(error) => return format!("broken 0 0 0 - no new context: {error}"),
    };
    let pool = context.pool().clone();
    armed(fault);
    let begin = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| run(&context)));
    let seconds = begin.elapsed().as_secs_f64();
    let (failed, calls) = control.counts().expect("the control file can be read");
    let mut wrong: Vec<(&str, String)> = Vec::new();
    let outcome = match &result {
        Err(_) => {
            wrong.push(("panic", "left a public function".to_owned()));
            "panic"
        }
        Ok(Ok(numbers)) => {
            if failed == 0 && expected.is_none() {
                *expected = Some(numbers.clone());
            }
            if expected
                .as_ref()
                .is_some_and(|expected| expected != numbers)
            {
                wrong.push(("wrong", "another result".to_owned()));
            }
            "success"
        }
        Ok(Err(Error::DeviceLost { reason })) => {
            if reason.trim().is_empty() {
                wrong.push(("wrong", "an empty reason".to_owned()));
            }
            // A context that a workload made for itself is gone.
            if !makes_its_own && let Some(text) = not_prompt(run, &context) {
                wrong.push(("wrong", text));
            }
            "lost"
        }
        Ok(Err(error)) => {
            if failed == 0 {
                wrong.push(("wrong", format!("nothing failed, but {error}")));
            }
            kind_of(error)
        }
    };
    // Also what is dropped is dropped while the driver fails.
    if catch_unwind(AssertUnwindSafe(|| drop((result, context)))).is_err() {
        wrong.push(("panic", "left a drop".to_owned()));
    }
    armed(Fault::default());
    if let Some(left) = leaks(&pool) {
        wrong.push(("leak", left));
    }
    let elsewhere = std::mem::take(&mut *ELSEWHERE.lock().expect("no panic holds it"));
    for panic in elsewhere {
        wrong.push(("panic", panic));
    }
    let caught = INSIDE_WGPU.load(Ordering::Relaxed) - caught_before;
    let counts: Vec<String> = calls.iter().map(u64::to_string).collect();
    let (result, text) = match wrong.first() {
        None => (outcome, String::new()),
        Some((what, text)) => (*what, text.replace('\n', " ")),
    };
    let milliseconds = seconds * 1e3;
    format!(
        "{result} {milliseconds:.0} {failed} {caught} {} {text}",
        counts.join(",")
    )
}

fn kind_of(error: &Error) -> &'static str {
    match error {
        Error::Pool(PoolError::OutOfMemory { .. }) | Error::SubmissionOutOfMemory { .. } => {
            "memory"
        }
        Error::NoAdapter { .. } | Error::NoDevice { .. } => "no_device",
        Error::Validation { .. } => "refused",
        _ => "other",
    }
}

/// Whether a context that has told of its loss fails to do so again, at once, from wherever it is used.
fn not_prompt(run: Run, context: &Context) -> Option<String> {
    let lost = |result: Result<()>| matches!(result, Err(Error::DeviceLost { .. }));
    let begin = Instant::now();
    let answers = [
        ("wait", context.wait()),
        (
            "acquire",
            context
                .pool()
                .acquire("lost", 4, STORAGE_USAGE)
                .map(drop)
                .map_err(Error::from),
        ),
        ("submit", context.recorder("lost").submit().map(drop)),
        ("the workload", run(context).map(drop)),
    ];
    for (what, answer) in answers {
        if !lost(answer) {
            return Some(format!("{what} of a lost context does not say so"));
        }
    }
    (begin.elapsed() > PROMPT).then(|| "a lost context is slow to say so".to_owned())
}

/// What the pool still lends when nobody holds anything.
fn leaks(pool: &Pool) -> Option<String> {
    let begin = Instant::now();
    loop {
        let stats = pool.stats();
        if stats.leases.current == 0 && stats.pending.current == 0 && stats.identities_hold() {
            return None;
        }
        if begin.elapsed() > GRACE {
            return Some(format!("{:?}", pool.leases()));
        }
        sleep(Duration::from_millis(5));
    }
}
