//! Replaces files whole: a new file takes the place of the old one once it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file being written beside the one that it will replace. If it is dropped before [`commit`](Self::commit), it is removed.
pub(crate) struct Replacement {
    target: PathBuf,
    partial: PathBuf,
    /// The new file, to write to.
    pub file: File,
    committed: bool,
}

impl Replacement {
    /// Makes the new file in the directory of `path`, because a rename must stay within one file system.
    pub fn begin(path: &Path) -> Result<Self> {
        let refused = |kind, reason| Err(Error::new(kind, reason));
        // If `path` is a link, its target is replaced and the link stays.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let permissions = match fs::metadata(&target) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
            Ok(old) if !old.is_file() => {
                return refused(ErrorKind::InvalidInput, "it is no regular file");
            }
            // Checked here, because a rename does not need write permission for the old file.
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
        // Syncs the directory, so that the rename survives a loss of power. A failure is ignored: some file systems cannot do this,
        // and the file is whole in any case.
        if cfg!(unix) {
            let _ = File::open(directory(&self.target)).and_then(|directory| directory.sync_all());
        }
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.committed {
            // A failure leaves a partial file; nothing can be done about it here.
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

/// Makes a file with a name that does not exist yet. The name does not contain that of the target, which may have the largest
/// length already.
fn new_file(directory: &Path) -> Result<(PathBuf, File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".dilated-attention-{}-{number}.partial", std::process::id());
        let path = directory.join(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            // An earlier process with the same id was killed and left this file: try the next number.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return Ok((path, made?)),
        }
    }
}

/// Replaces the file at `path` by one with the content `bytes`, as a whole or not at all. Makes missing folders.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut replacement = Replacement::begin(path)?;
    std::io::Write::write_all(&mut replacement.file, bytes)?;
    replacement.commit()
}
