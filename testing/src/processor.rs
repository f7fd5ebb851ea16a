//! Processor time of this process, which is where a software adapter runs: what else runs on the machine does not count.

use std::fs;

/// Seconds of processor time that this process has used so far, divided by the number of processors.
///
/// # Errors
/// Where the system does not tell it as Linux does.
pub fn seconds() -> Result<f64, String> {
    let told = |error: std::io::Error| format!("no processor time: /proc/self/task: {error}");
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir("/proc/self/task").map_err(told)? {
        let path = thread.map_err(told)?.path().join("schedstat");
        // A thread may have ended since.
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        let ran = text.split_whitespace().next();
        nanoseconds += ran.and_then(|ran| ran.parse().ok()).unwrap_or(0.0);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(nanoseconds / 1e9 / processors as f64)
}

/// Ticks of a second, in what Linux tells.
const TICKS: f64 = 100.0;

/// Seconds of the program, and of the system for it; `None` where the system does not tell them as Linux does.
pub fn of_program_and_system() -> Option<[f64; 2]> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold anything, but for its last parenthesis.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / TICKS);
    Some([seconds()?, seconds()?])
}
