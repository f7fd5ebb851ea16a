//! Memory of the process.

use dilated_attention::Context;
use program::say;

/// Prints the most bytes that were resident, and what they are, where the system tells (Linux).
pub fn print(context: &Context) {
    let Some(peak_bytes) = peak_bytes() else {
        return;
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let is_software = context.adapter_info().device_type == wgpu::DeviceType::Cpu;
    // A software adapter's memory is the process's own.
    let device_bytes = match is_software {
        true => context.pool().stats().requested_bytes.current,
        false => 0,
    };
    let beyond_bytes = peak_bytes.saturating_sub(device_bytes);
    say!(
        "resident    {:.1} MiB at most: {:.1} of a software adapter's buffers, {:.1} beyond",
        mib(peak_bytes),
        mib(device_bytes),
        mib(beyond_bytes)
    );
}

/// Most bytes that were resident at one moment.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
