//! The progress of a run in a file, from which the run goes on after the program was killed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file::failed;
use super::packed::NAME_BYTES;
use crate::error::{Error, Result};
use crate::replacement::replace;

/// What tells a run from another: names and values, in words.
pub(super) type Facts = BTreeMap<String, String>;

/// A progress file.
pub(super) struct ProgressFile {
    path: PathBuf,
    pub recorded: Recorded,
    /// Whether the file was there, so that the run goes on.
    pub goes_on: bool,
}

/// What the file holds, as JSON.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Recorded {
    facts: Facts,
    /// Tells the run's scratch file from those of others.
    pub name: [u8; NAME_BYTES],
    /// Tokens whose keys are packed in the scratch file.
    pub packed_tokens: u64,
    /// Tokens whose outputs are on the disk.
    pub written_tokens: u64,
    /// The first token of the last block of these, and the CRC-32 of its outputs.
    pub last_block: Option<(u64, u32)>,
    /// The CRC-32 of its softmax states, if they are written, too.
    pub last_states: Option<u32>,
}

impl ProgressFile {
    /// The progress in the file at `path`; that of a new run if there is no file.
    ///
    /// # Errors
    /// [`Error::OtherRun`] when it is of a run with other facts; [`Error::TokenFile`] when it cannot be read, or is no such file.
    pub fn open(path: &Path, facts: Facts) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self {
                    path: path.to_owned(),
                    recorded: Recorded {
                        facts,
                        name: new_name(),
                        packed_tokens: 0,
                        written_tokens: 0,
                        last_block: None,
                        last_states: None,
                    },
                    goes_on: false,
                });
            }
            Err(error) => return Err(failed(path, "opened", &error)),
        };
        let recorded: Recorded =
            serde_json::from_slice(&bytes).map_err(|error| Error::TokenFile {
                path: path.to_owned(),
                action: "read as the progress of a run",
                reason: error.to_string(),
            })?;
        let file = Self {
            path: path.to_owned(),
            recorded,
            goes_on: true,
        };
        let none = String::new();
        for what in facts.keys().chain(file.recorded.facts.keys()) {
            let given = facts.get(what).unwrap_or(&none);
            let recorded = file.recorded.facts.get(what).unwrap_or(&none);
            if given != recorded {
                return Err(file.other_run(what, given, recorded));
            }
        }
        Ok(file)
    }

    /// Checks what the file says of a run over `tokens` tokens in blocks of `block_tokens`.
    ///
    /// # Errors
    /// [`Error::TokenFile`] for numbers that no run writes.
    pub fn check(&self, tokens: u64, block_tokens: u64) -> Result<()> {
        let Recorded {
            packed_tokens,
            written_tokens: written,
            last_block,
            ..
        } = self.recorded;
        let is_block = |first: u64| first < written && written - first <= block_tokens;
        let is_known = match last_block {
            None => written == 0,
            Some((first, _)) => is_block(first),
        };
        match is_known && written <= tokens && packed_tokens <= tokens {
            true => Ok(()),
            false => Err(Error::TokenFile {
                path: self.path.clone(),
                action: "read as the progress of a run",
                reason: format!(
                    "its numbers of tokens contradict each other, or the {tokens} of the sequence: remove it to begin anew"
                ),
            }),
        }
    }

    pub fn other_run(&self, what: &str, given: &str, recorded: &str) -> Error {
        Error::OtherRun {
            path: self.path.clone(),
            what: what.to_owned(),
            given: given.to_owned(),
            recorded: recorded.to_owned(),
        }
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::TokenFile`].
    pub fn write(&self) -> Result<()> {
        let written = serde_json::to_vec_pretty(&self.recorded)
            .map_err(std::io::Error::other)
            .and_then(|bytes| replace(&self.path, &bytes));
        written.map_err(|error| failed(&self.path, "written", &error))
    }
}

/// A name that no other run has: the time, the process, and a number of the standard library that is drawn anew each time.
fn new_name() -> [u8; NAME_BYTES] {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let drawn = RandomState::new().build_hasher().finish();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = since.map_or(0, |time| time.as_nanos() as u64);
    let mut name = [0; NAME_BYTES];
    name[..8].copy_from_slice(&drawn.to_le_bytes());
    name[8..].copy_from_slice(&(nanos ^ u64::from(std::process::id())).to_le_bytes());
    name
}
