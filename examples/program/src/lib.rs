//! What the example programs have in common: arguments, standard output, exit status.
//!
//! **Standard output** may be closed at any time (`| head -1`) or not take what is written (a full disk). Neither ends a
//! program: [`say!`] notes the failure and writes no more, the work goes on, and what is to be saved is saved. In the end
//! [`run`] says so where a reader did not just go away, and exits with 1. `println!` would panic.
//!
//! **Arguments** are what the system gives, UTF-8 or not: files may be called anything, and what has to be text is an error
//! that names the option where it is none.

#![deny(missing_docs, clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// What a program comes to.
pub type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Why standard output takes no more.
static STDOUT_FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Runs a program: its exit status is what `program` returns, or 1 after an error, which is told on standard error. With
/// `--help` or `-h`, the comment that `source` begins with is printed instead.
pub fn run<T: Termination>(source: &str, program: impl FnOnce(Arguments) -> Result<T>) -> ExitCode {
    run_or(1, source, program)
}

/// As [`run`], with another exit status after an error.
pub fn run_or<T: Termination>(
    failure: u8,
    source: &str,
    program: impl FnOnce(Arguments) -> Result<T>,
) -> ExitCode {
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut status = match given
        .iter()
        .any(|argument| argument == "--help" || argument == "-h")
    {
        true => {
            let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
            lines.for_each(|line| say!("{}", line.strip_prefix(' ').unwrap_or(line)));
            ExitCode::SUCCESS
        }
        false => program(Arguments::new(given)).map_or_else(
            |error| {
                complain(&error);
                ExitCode::from(failure)
            },
            Termination::report,
        ),
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

/// The arguments behind the program's name, one by one.
#[derive(Debug)]
pub struct Arguments {
    parser: lexopt::Parser,
    /// The option that was read last, with its dashes.
    option: String,
}

/// An option, or something that is none.
#[derive(Debug)]
pub enum Argument {
    /// With its dashes: `--tokens`, `-v`.
    Option(String),
    /// Anything else.
    Plain(OsString),
}

impl Argument {
    /// The option, or `None` for what is none: to be matched.
    pub fn option(&self) -> Option<&str> {
        match self {
            Self::Option(option) => Some(option),
            Self::Plain(_) => None,
        }
    }

    /// As a file or folder.
    pub fn into_path(self) -> PathBuf {
        match self {
            Self::Option(option) => option.into(),
            Self::Plain(path) => path.into(),
        }
    }
}

impl Arguments {
    fn new(given: Vec<OsString>) -> Self {
        Self {
            parser: lexopt::Parser::from_args(given),
            option: String::new(),
        }
    }

    /// The next argument, `None` behind the last.
    ///
    /// # Errors
    /// When the option before was given a value (`--f16=yes`) that it does not take.
    pub fn next_argument(&mut self) -> Result<Option<Argument>> {
        Ok(match self.parser.next()? {
            None => None,
            Some(lexopt::Arg::Value(value)) => Some(Argument::Plain(value)),
            Some(option @ (lexopt::Arg::Long(_) | lexopt::Arg::Short(_))) => {
                self.option = match option {
                    lexopt::Arg::Long(name) => format!("--{name}"),
                    lexopt::Arg::Short(name) => format!("-{name}"),
                    lexopt::Arg::Value(_) => String::new(),
                };
                Some(Argument::Option(self.option.clone()))
            }
        })
    }

    /// The value of the option, as the system gives it.
    ///
    /// # Errors
    /// When there is none.
    pub fn os_value(&mut self) -> Result<OsString> {
        let missing = |_| format!("{} needs a value", self.option).into();
        self.parser.value().map_err(missing)
    }

    /// The value of the option.
    ///
    /// # Errors
    /// When there is none, or it is not such a value, or no text.
    pub fn value<T: FromStr<Err: Display>>(&mut self) -> Result<T> {
        let value = self.os_value()?;
        let option = &self.option;
        let text = text(option, &value)?;
        text.parse()
            .map_err(|error| format!("{option} {text}: {error}").into())
    }

    /// The values of the option, with commas between them.
    ///
    /// # Errors
    /// As [`value`](Self::value).
    pub fn list<T: FromStr<Err: Display>>(&mut self) -> Result<Vec<T>> {
        let value = self.os_value()?;
        let option = &self.option;
        let text = text(option, &value)?;
        let parse = |part: &str| {
            part.parse()
                .map_err(|error| format!("{option} {text}: {error}"))
        };
        Ok(text.split(',').map(parse).collect::<Result<_, _>>()?)
    }

    /// The error about an option that the program has not.
    pub fn unknown(&self) -> Box<dyn Error> {
        format!("unknown option {}; --help lists them", self.option).into()
    }
}

fn text<'a>(option: &str, value: &'a OsStr) -> Result<&'a str> {
    value
        .to_str()
        .ok_or_else(|| format!("{option} {}: this is not UTF-8", value.display()).into())
}
