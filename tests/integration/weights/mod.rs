//! Files of weights: what is loaded, what is saved. What is refused is among the unit tests.

mod changed;
mod loading;
mod saving;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dilated_attention::nn::{Init, ParameterList, Parameters};
use dilated_attention::{Context, Result};

/// A list of parameters of these names and shapes.
fn list(parameters: &[(&str, &[usize])]) -> Arc<ParameterList> {
    let mut list = ParameterList::new();
    for (name, shape) in parameters {
        list.add((*name).to_owned(), shape, Init::Zeros);
    }
    Arc::new(list)
}

/// All elements of all parameters.
fn read(context: &Context, parameters: &Parameters) -> Result<Vec<Vec<f32>>> {
    let mut recorder = context.recorder("read");
    let downloads = parameters.download(&mut recorder)?;
    recorder.submit()?;
    downloads.iter().map(|download| download.wait()).collect()
}

/// Bits, so that NaN and -0 count.
fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let bits = |values: &Vec<f32>| values.iter().map(|value| value.to_bits()).collect();
    values.iter().map(bits).collect()
}

/// A directory of a test's own, which goes with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let name = format!("dilated-attention-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("made");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names in it, sorted.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("there");
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("read").file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}
