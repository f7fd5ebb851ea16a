//! The winners file: the fastest kernel of each probe, for each adapter.
//!
//! ```json
//! {"format": 2, "adapters": {"<adapter, driver, versions>": {"<what was probed>": {"kernel": "...", "microseconds": 1930,
//!     "against": {"kernel": "...", "microseconds": 2411}}}}}
//! ```
//! Kernels are named by their shader and all of its fields, as in `forward_rows head_dim=64 format=f32 lanes=8 ...`. A file can
//! only choose among the kernels that this code lists for the device, so a wrong file makes calls slower at worst. A file that
//! cannot be read counts as empty; the next probe replaces it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

#[cfg(not(target_arch = "wasm32"))]
use crate::replacement::replace;

/// Version of the file format above.
const FORMAT: u32 = 2;

/// Files larger than this are not read. A file with `MAX_ADAPTERS` adapters is smaller.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Most adapters (with their driver and versions) that a file holds. When there are more, others than the current one are removed.
#[cfg(not(target_arch = "wasm32"))]
const MAX_ADAPTERS: usize = 64;

/// A kernel and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timed {
    pub kernel: String,
    pub microseconds: u64,
}

/// The fastest kernel of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Winner {
    #[serde(flatten)]
    pub timed: Timed,
    pub against: Option<Timed>,
}

/// Winners by what was probed.
pub(crate) type Winners = BTreeMap<String, Winner>;

#[derive(Default, Serialize, Deserialize)]
struct WinnersFile {
    format: u32,
    adapters: BTreeMap<String, Winners>,
}

/// The winners of `adapter` in the text of a file; empty unless it is whole and of this format.
pub(super) fn parse(text: &[u8], adapter: &str) -> Winners {
    parse_file(text)
        .adapters
        .remove(adapter)
        .unwrap_or_default()
}

fn parse_file(text: &[u8]) -> WinnersFile {
    let file = serde_json::from_slice::<WinnersFile>(text).ok();
    file.filter(|file| file.format == FORMAT)
        .unwrap_or_default()
}

/// The bytes of the file at `path`; no bytes when there is no such file or it is too large.
fn read(path: &Path) -> Vec<u8> {
    let bytes = || -> io::Result<Vec<u8>> {
        // Checked before opening: opening a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    bytes()
        .ok()
        .filter(|bytes| bytes.len() as u64 <= MAX_FILE_BYTES)
        .unwrap_or_default()
}

/// The winners of `adapter` in the file at `path`.
pub(super) fn load(path: &Path, adapter: &str) -> Winners {
    parse(&read(path), adapter)
}

/// Adds `winners` to the file at `path`. Other processes may do so at the same time: a reader always finds a whole file, and
/// winners that get lost between two writers are measured again some day.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn store(path: &Path, adapter: &str, winners: &Winners) -> io::Result<()> {
    let mut file = parse_file(&read(path));
    file.format = FORMAT;
    file.adapters
        .entry(adapter.to_owned())
        .or_default()
        .extend(winners.clone());
    while file.adapters.len() > MAX_ADAPTERS {
        let Some(other) = file.adapters.keys().find(|key| *key != adapter).cloned() else {
            break;
        };
        file.adapters.remove(&other);
    }
    replace(path, &serde_json::to_vec_pretty(&file)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use proptest::prelude::*;

    fn winner(kernel: &str, microseconds: u64) -> Winner {
        Winner {
            timed: Timed {
                kernel: kernel.to_owned(),
                microseconds,
            },
            against: Some(Timed {
                kernel: "other".to_owned(),
                microseconds: microseconds + 1,
            }),
        }
    }

    /// A folder of a test's own, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("dilated-attention-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).expect("makes");
            Self(path)
        }

        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn winners(entries: &[(&str, Winner)]) -> Winners {
        entries
            .iter()
            .map(|(key, winner)| ((*key).to_owned(), winner.clone()))
            .collect()
    }

    #[test]
    fn winners_are_stored_per_adapter_beside_those_of_others() {
        let folder = Folder::new("winners");
        let path = folder.join("new/winners.json");
        assert_eq!(load(&path, "a"), Winners::new());
        store(&path, "a", &winners(&[("x", winner("k", 1))])).expect("stores");
        store(&path, "b", &winners(&[("x", winner("l", 2))])).expect("stores");
        store(&path, "a", &winners(&[("y", winner("m", 3))])).expect("stores");
        assert_eq!(
            load(&path, "a"),
            winners(&[("x", winner("k", 1)), ("y", winner("m", 3))])
        );
        assert_eq!(load(&path, "b"), winners(&[("x", winner("l", 2))]));
        for number in 0..2 * MAX_ADAPTERS {
            let adapter = format!("n{number}");
            store(&path, &adapter, &winners(&[("x", winner("k", 1))])).expect("stores");
            assert_eq!(load(&path, &adapter).len(), 1);
        }
        assert!(parse_file(&read(&path)).adapters.len() <= MAX_ADAPTERS);
    }

    #[test]
    fn what_cannot_be_read_is_empty_and_replaced() {
        let folder = Folder::new("damaged-winners");
        let path = folder.join("winners.json");
        store(&path, "a", &winners(&[("x", winner("k", 1))])).expect("stores");
        let whole = std::fs::read(&path).expect("reads");
        let text = String::from_utf8(whole.clone()).expect("text");
        let mut broken: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
        broken.push(text.replace("\"format\": 2", "\"format\": 1").into());
        broken.push(
            text.replace(
                "\"microseconds\": 1",
                "\"microseconds\": 99999999999999999999999",
            )
            .into(),
        );
        broken.push(
            text.replace("\"microseconds\": 1", "\"microseconds\": -1")
                .into(),
        );
        broken.push("[".repeat(100_000).into());
        broken.push(vec![b' '; MAX_FILE_BYTES as usize + 1]);
        broken.push(vec![0xff; 1000]);
        for bytes in broken {
            std::fs::write(&path, &bytes).expect("writes");
            assert_eq!(load(&path, "a"), Winners::new(), "{} bytes", bytes.len());
            store(&path, "a", &winners(&[("y", winner("k", 1))])).expect("stores");
            assert_eq!(load(&path, "a").len(), 1);
        }
        let is_folder = folder.join("folder");
        std::fs::create_dir(&is_folder).expect("makes");
        assert_eq!(load(&is_folder, "a"), Winners::new());
        assert!(store(&is_folder, "a", &Winners::new()).is_err());
    }

    #[test]
    fn two_writers_leave_a_whole_file() {
        let folder = Folder::new("shared-winners");
        let path = folder.join("winners.json");
        std::thread::scope(|scope| {
            for writer in 0..4u32 {
                let path = &path;
                scope.spawn(move || {
                    for number in 0..20u64 {
                        let adapter = format!("adapter {writer}");
                        store(path, &adapter, &winners(&[("x", winner("k", number))]))
                            .expect("stores");
                        let file = serde_json::from_slice::<WinnersFile>(&read(path))
                            .expect("a whole file");
                        assert_eq!(file.format, FORMAT);
                    }
                });
            }
        });
        let names: Vec<_> = std::fs::read_dir(&folder.0).expect("reads").collect();
        assert_eq!(names.len(), 1, "no partial file is left");
    }

    proptest! {
        #[test]
        fn no_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, "a");
        }

        #[test]
        fn no_damage_is_an_error(at in 0usize..200, byte in any::<u8>(), cut in 0usize..200) {
            let file = WinnersFile {
                format: FORMAT,
                adapters: BTreeMap::from([("a".to_owned(), winners(&[("x", winner("k", 7))]))]),
            };
            let mut bytes = serde_json::to_vec(&file).expect("writes");
            let (at, len) = (at % bytes.len(), bytes.len());
            bytes[at] = byte;
            let _ = parse(&bytes, "a");
            bytes.truncate(cut % len);
            prop_assert_eq!(parse(&bytes, "a"), Winners::new());
        }
    }
}
