//! The bytes to learn from.

use std::error::Error;
use std::path::{Path, PathBuf};

/// Bytes split into those to learn from and those to be judged by.
pub struct Data {
    pub name: String,
    pub training: Vec<u8>,
    pub validation: Vec<u8>,
}

impl Data {
    /// A file, or all text files below a folder, one after the other in the order of their paths. The last tenth is for
    /// validation.
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut files = Vec::new();
        collect(path, &mut files)?;
        let mut bytes = Vec::new();
        for file in &files {
            let content = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
            // What has a zero byte is no text, unless it was asked for by name.
            if files.len() == 1 || !content.contains(&0) {
                bytes.extend(content);
            }
        }
        if bytes.len() < 1 << 16 {
            let (path, len) = (path.display(), bytes.len());
            return Err(
                format!("{path} has {len} bytes of text; at least 65536 are needed").into(),
            );
        }
        let validation = bytes.split_off(bytes.len() / 10 * 9);
        Ok(Self {
            name: path.display().to_string(),
            training: bytes,
            validation,
        })
    }

    /// Source code that lies on every machine which built this: the crate `naga`, which translates shaders.
    pub fn default_path() -> Result<PathBuf, String> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let user = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"));
        let home = home.or(user.map(|user| PathBuf::from(user).join(".cargo")));
        let sources = home.map(|home| home.join("registry").join("src"));
        let entries = |path: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            paths
        };
        let is_naga = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let version = name.and_then(|name| name.strip_prefix("naga-"));
            version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
        };
        let registries = sources.iter().flat_map(|path| entries(path));
        registries
            .flat_map(|registry| entries(&registry))
            .rfind(is_naga)
            .map(|path| path.join("src"))
            .ok_or("the sources of the crate naga are not in cargo's registry; name a file or folder with --data".to_owned())
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let told = |error| format!("{}: {error}", path.display());
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries: Result<Vec<_>, _> = std::fs::read_dir(path).map_err(told)?.collect();
    let mut paths: Vec<PathBuf> = entries
        .map_err(told)?
        .iter()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths.iter().try_for_each(|path| collect(path, files))
}

/// Where sequences begin: xorshift64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self((seed.wrapping_mul(2) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The first draws of nearby seeds are alike.
        for _ in 0..8 {
            random.bits();
        }
        random
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
