//! Drivers that fail: the n-th call of each kind, for every n, answers that the device is lost or memory has run out.
//!
//! ```sh
//! cargo test --release --test faults                  # every n
//! cargo test --release --test faults -- --bounded     # few n of each kind, for continuous integration
//! cargo test --release --test faults -- --workload slices --kind submit
//! ```
//!
//! `layer.c` is a Vulkan layer that counts calls and fails the one it is told to. This program compiles it, starts itself again
//! below it (Linux, with a C compiler), and runs each workload with each fault, in a fresh context. A case may end in the right
//! result or in a typed error. It fails when a panic leaves a public function or ends a thread, when it takes longer than
//! [`HANG`], when leases are left in the pool after all is dropped, when a result is another one, or when a context that was
//! told of a loss does not say so at once on its next use. The next case is the new context that has to work.

mod supervisor;
mod worker;
mod workloads;

use std::process::ExitCode;
use std::time::Duration;

/// How long a case may take, or ten times as long as its workload takes without a fault, where that is more.
const HANG: Duration = Duration::from_secs(20);

/// Kinds of calls, in the order of the layer's.
const KINDS: [&str; 24] = [
    "allocate",
    "create buffer",
    "bind memory",
    "map",
    "submit",
    "wait idle",
    "wait semaphores",
    "counter",
    "fences",
    "create fence or semaphore",
    "pipeline",
    "shader",
    "layouts",
    "descriptor pool",
    "descriptor sets",
    "command pool",
    "command buffers",
    "begin commands",
    "end commands",
    "pipeline cache",
    "flush or invalidate",
    "create device",
    "create instance",
    "enumerate",
];

/// Vulkan's errors that are tried.
const ERRORS: [(&str, i32); 3] = [
    ("device lost", -4),
    ("out of device memory", -2),
    ("out of host memory", -1),
];

/// What is to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fault {
    kind: usize,
    error: usize,
    /// Which call, from 1; 0 for none.
    nth: u64,
    /// And all after it.
    onward: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--worker") {
        return worker::run();
    }
    supervisor::run(&arguments)
}
