//! The bytes of a file: mapped or owned.

use std::ops::Deref;

/// Bytes that stay where they are.
pub(super) enum FileBytes {
    Owned(Vec<u8>),
    #[cfg(not(target_arch = "wasm32"))]
    Mapped(memmap2::Mmap),
}

impl FileBytes {
    /// Maps the regular file at `path`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn map(path: &std::path::Path) -> std::io::Result<Self> {
        use std::io::{Error, ErrorKind};
        // Asked before it is opened: to open a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            let reason = "it is no regular file";
            return Err(Error::new(ErrorKind::InvalidInput, reason));
        }
        let file = std::fs::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the bytes behind the map must not change while it lives. No code can rule that out for a file; this
        // crate never writes into one (saving makes a new file and renames it), and `WeightFile::open` asks its caller to
        // keep others from it. Any bytes are valid as bytes, and each is checked or copied before it is used.
        #[expect(unsafe_code, reason = "the only way to map a file")]
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            #[cfg(not(target_arch = "wasm32"))]
            Self::Mapped(map) => map,
        }
    }
}
