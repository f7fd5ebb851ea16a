//! A new file that takes the place of an old one when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file being written beside the one that it will replace. Dropped before [`commit`](Self::commit), it leaves no trace.
pub(crate) struct Replacement {
    target: PathBuf,
    partial: PathBuf,
    /// To write to.
    pub file: File,
    committed: bool,
}

impl Replacement {
    /// Makes the new file, in the directory of `path`: a rename stays within one file system.
    pub fn begin(path: &Path) -> Result<Self> {
        let refused = |kind, reason| Err(Error::new(kind, reason));
        // A link stays, and what it leads to is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let permissions = match fs::metadata(&target) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
            Ok(old) if !old.is_file() => {
                return refused(ErrorKind::InvalidInput, "it is no regular file");
            }
            // A rename would not ask for that permission.
            Ok(old) if old.permissions().readonly() => {
                return refused(ErrorKind::PermissionDenied, "it is read-only");
            }
            Ok(old) => Some(old.permissions()),
        };
        let (partial, file) = new_file(directory(&target))?;
        let replacement = Self {
            target,
            partial,
            file,
            committed: false,
        };
        if let Some(permissions) = permissions {
            replacement.file.set_permissions(permissions)?;
        }
        Ok(replacement)
    }

    /// Puts the new file in the place of the old one, once it is on the disk.
    pub fn commit(mut self) -> Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.target)?;
        self.committed = true;
        // So that the new name outlives a loss of power. Either file is whole in any case, and some file systems cannot
        // do this, so its failure is none of saving.
        if cfg!(unix) {
            let _ = File::open(directory(&self.target)).and_then(|directory| directory.sync_all());
        }
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing is left to do about a failure.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

fn directory(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a file that was not there. Its name does not grow with that of the target, which may be as long as names may be.
fn new_file(directory: &Path) -> Result<(PathBuf, File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".dilated-attention-{}-{number}.partial", std::process::id());
        let path = directory.join(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            // Left by a process of the same number that was killed.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return Ok((path, made?)),
        }
    }
}

/// Puts a file of `bytes` at `path`, whole or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut replacement = Replacement::begin(path)?;
    std::io::Write::write_all(&mut replacement.file, bytes)?;
    replacement.commit()
}
