//! The frame of a program: MPI starts before it and ends after it, whatever happens.

use std::fmt::Display;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dilated_attention::distributed::Group;

use crate::raw::Session;
use crate::transport::MpiTransport;

/// Time for the others to tell their errors before all processes end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Well below what every MPI counts.
const LARGEST_MESSAGE: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 30) - 1);

/// What [`run`] needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Time-out of each call of the group and its sub-groups.
    pub timeout: Duration,
    /// Bytes of the largest message; what is longer is cut. 1 GiB by default, MPI counts to 2^31 - 1.
    pub largest_message: NonZeroUsize,
}

impl Settings {
    /// With this time-out.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            largest_message: LARGEST_MESSAGE,
        }
    }
}

/// Starts MPI and runs `program` with the group of all processes. Where it is done on all of them, ends MPI and returns success.
/// After an error or a panic on one, says it on standard error and ends all processes, with a status that is not 0.
///
/// The group, and sub-groups of it, end with `program`.
pub fn run<E: Display>(
    settings: Settings,
    program: impl FnOnce(&Arc<Group>) -> Result<(), E>,
) -> ExitCode {
    let session = match Session::start() {
        Ok(session) => Arc::new(session),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let transport = MpiTransport::of_all(&session, settings.largest_message.get());
    let group = Arc::new(Group::new(Box::new(transport), settings.timeout));
    // A panic must not end MPI in order either: that would wait for ranks that wait for this one.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        program(&group).map_err(|error| error.to_string())?;
        // Ending MPI waits for all ranks, without a deadline. So they come together before.
        group.barrier().map_err(|error| error.to_string())?;
        match session.is_unfinished() {
            true => Err("a sub-group failed, and its messages are still on their way".to_owned()),
            false => Ok(()),
        }
    }));
    let error = match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => error,
        Err(_) => "it panicked".to_owned(),
    };
    // In one piece, since all ranks may write at the same time. Where nobody reads it, the status still tells.
    let line = format!(
        "rank {} of {}: error: {error}\n",
        group.rank(),
        group.size()
    );
    let _ = io::stderr().write_all(line.as_bytes());
    thread::sleep(LAST_WORDS);
    session.abort()
}
