//! What the example programs have in common: standard output and exit status.
//!
//! **Standard output** may be closed at any time (`| head -1`) or not take what is written (a full disk). Neither ends a
//! program: [`say!`] notes the failure and writes no more, the work goes on, and what is to be saved is saved. In the end
//! [`run`] says so where a reader did not just go away, and exits with 1. `println!` would panic.
//!
//! **Arguments** are read by clap. An error about them is told as any other, with the same exit status, and help is written as
//! everything else is.

#![deny(missing_docs, clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};
use std::iter;
use std::process::{ExitCode, Termination};
use std::sync::{Mutex, PoisonError};

use clap::Parser;

/// What a program comes to.
pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Why standard output takes no more.
static STDOUT_FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Runs a program with its arguments: its exit status is what `program` returns, or 1 after an error, which is told on standard
/// error.
pub fn run<A: Parser, T: Termination>(program: impl FnOnce(A) -> Result<T>) -> ExitCode {
    run_or(1, program)
}

/// As [`run`], with another exit status after an error.
pub fn run_or<A: Parser, T: Termination>(
    failure: u8,
    program: impl FnOnce(A) -> Result<T>,
) -> ExitCode {
    // Of an option that is given twice the last counts, so that scripts can append.
    let command = A::command().args_override_self(true);
    let matches = command.try_get_matches();
    let mut status = match matches.and_then(|matches| A::from_arg_matches(&matches)) {
        Ok(arguments) => program(arguments).map_or_else(
            |error| {
                complain(&error);
                ExitCode::from(failure)
            },
            Termination::report,
        ),
        Err(help) if !help.use_stderr() => {
            write(format_args!("{help}"), false);
            ExitCode::SUCCESS
        }
        Err(error) => {
            // "error: " is part of its text.
            note(format_args!("{}", error.to_string().trim_end()));
            if error.kind() == clap::error::ErrorKind::InvalidUtf8 {
                note(format_args!("{}", strange_arguments()));
            }
            ExitCode::from(failure)
        }
    };
    write(format_args!(""), true);
    let failed = STDOUT_FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = failed
        .as_ref()
        .filter(|error| error.kind() != ErrorKind::BrokenPipe)
    {
        complain(&format_args!(
            "standard output failed, everything else was done: {error}"
        ));
        status = ExitCode::from(failure);
    }
    status
}

/// A branch of dilated attention as an argument: its segment length and its dilation rate, as `4096/1`.
///
/// # Errors
/// What is wrong, in words.
pub fn branch(text: &str) -> Result<(usize, usize), String> {
    let (length, rate) = text.split_once('/').ok_or("LENGTH/RATE, such as 4096/1")?;
    let number = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
    Ok((number(length)?, number(rate)?))
}

/// The arguments that are not UTF-8, each behind the one before it, which is its option: clap's error names none.
fn strange_arguments() -> String {
    let behind_name = std::env::args_os().skip(1);
    let given: Vec<OsString> = iter::once(OsString::new()).chain(behind_name).collect();
    let strange = given.windows(2).filter(|pair| pair[1].to_str().is_none());
    let shown = strange.map(|pair| format!(" {} {}", pair[0].display(), pair[1].display()));
    format!("not UTF-8:{}", shown.collect::<String>())
}

/// Whether `values` are all finite: results that are not are no results.
///
/// # Errors
/// Names the first that is not.
pub fn expect_finite(what: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(format!("{what} is {} at index {index}", values[index]).into()),
    }
}

/// Writes a line to standard error, where that is open.
pub fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Tells an error on standard error, where that is open.
pub fn complain(error: &impl Display) {
    note(format_args!("error: {error}"));
}

/// Writes a line to standard output, as `println!` does, but a failure is only noted.
#[macro_export]
macro_rules! say {
    () => { $crate::say!("") };
    ($($part:tt)*) => { $crate::write(format_args!("{}\n", format_args!($($part)*)), false) };
}

/// Writes a part of a line to standard output, to be seen at once; a failure is only noted.
#[macro_export]
macro_rules! say_part {
    ($($part:tt)*) => { $crate::write(format_args!($($part)*), true) };
}

/// What [`say!`] and [`say_part!`] do.
pub fn write(text: fmt::Arguments<'_>, flush: bool) {
    let mut failed = STDOUT_FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    if failed.is_none() {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_fmt(text).and_then(|()| match flush {
            true => stdout.flush(),
            false => Ok(()),
        });
        *failed = written.err();
    }
}

/// Whether standard output still takes what is written: where not, a program that does nothing else may end.
pub fn is_heard() -> bool {
    let failed = STDOUT_FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    failed.is_none()
}
