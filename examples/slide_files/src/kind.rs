//! What a file is by its first bytes, whatever its name says.

use std::io::{self, Read};

/// Where the signature of HDF5 may stand: at the beginning, or behind a block of the user's.
const HDF5_OFFSETS: [usize; 4] = [0, 512, 1024, 2048];

/// Bytes that decide.
const HEAD_BYTES: u64 = 2048 + 8;

/// A kind of file that is known by how it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Safetensors,
    Npz,
    Npy,
    Hdf5,
    LfsPointer,
    Html,
    PyTorch,
    Pickle,
    Zip,
    Gzip,
    Tiff,
}

impl Kind {
    /// The kind of what `file` begins with, if it is one of these.
    pub fn read(file: impl Read) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        file.take(HEAD_BYTES).read_to_end(&mut head)?;
        Ok(Self::of(&head))
    }

    fn of(head: &[u8]) -> Option<Self> {
        let hdf5 = |at: &usize| {
            head.get(*at..)
                .is_some_and(|rest| rest.starts_with(b"\x89HDF\r\n\x1a\n"))
        };
        let text = String::from_utf8_lossy(head).trim_start().to_lowercase();
        match head {
            _ if HDF5_OFFSETS.iter().any(hdf5) => Some(Self::Hdf5),
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Some(Self::Npy),
            [b'P', b'K', 3, 4, rest @ ..] => Some(zip(rest)),
            [0x80, 2..=5, ..] => Some(Self::Pickle),
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            _ if text.starts_with("version https://git-lfs") => Some(Self::LfsPointer),
            _ if text.starts_with("<!doctype html") || text.starts_with("<html") => {
                Some(Self::Html)
            }
            // The length of its header, below 2^32, and the header, which is JSON.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => Some(Self::Safetensors),
            _ => None,
        }
    }

    /// What to call it, and what to do where another file was wanted.
    pub fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Safetensors => ("a safetensors file", "give it the extension .safetensors"),
            Self::Npz => ("an .npz file of NumPy", "give it the extension .npz"),
            Self::Npy => ("an .npy file of NumPy", "give it the extension .npy"),
            Self::Hdf5 => ("an HDF5 file", "give it the extension .h5"),
            Self::LfsPointer => (
                "a Git LFS pointer, which stands for a file that was not fetched",
                "`git lfs pull` fetches it",
            ),
            Self::Html => (
                "a web page (HTML)",
                "download the file itself, perhaps after logging in",
            ),
            Self::PyTorch | Self::Pickle => (
                "a pickle of Python, as PyTorch saves it",
                "give the .h5 of CLAM or TRIDENT, or load it in Python and save features and coords with numpy.savez",
            ),
            Self::Zip => ("a zip archive", "unpack it"),
            Self::Gzip => ("compressed with gzip", "unpack it with gunzip"),
            Self::Tiff => (
                "a TIFF image, perhaps the slide itself",
                "features of its tiles are needed, as TRIDENT or CLAM compute them",
            ),
        }
    }
}

/// Which archive, by the name of the first entry; `rest` begins behind the signature.
fn zip(rest: &[u8]) -> Kind {
    let length = rest.get(22..24).map_or(0, |length| {
        usize::from(u16::from_le_bytes([length[0], length[1]]))
    });
    let name = rest.get(26..).unwrap_or_default();
    let name = &name[..length.min(name.len())];
    if name.ends_with(b".npy") {
        Kind::Npz
    } else if name.ends_with(b".pkl") || name.ends_with(b".data/serialization_id") {
        Kind::PyTorch
    } else {
        Kind::Zip
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn kinds_are_told_by_their_first_bytes() {
        let mut behind = vec![0; 512];
        behind.extend(b"\x89HDF\r\n\x1a\n");
        let entry = |name: &str| {
            let mut bytes = b"PK\x03\x04".to_vec();
            bytes.resize(30, 0);
            bytes[26] = name.len() as u8;
            bytes.extend(name.as_bytes());
            bytes
        };
        for (head, kind) in [
            (b"\x89HDF\r\n\x1a\n\0".to_vec(), Some(Kind::Hdf5)),
            (behind, Some(Kind::Hdf5)),
            (b"\x93NUMPY\x01\x00".to_vec(), Some(Kind::Npy)),
            (entry("features.npy"), Some(Kind::Npz)),
            (entry("slide_encoder/data.pkl"), Some(Kind::PyTorch)),
            (entry("slide.svs"), Some(Kind::Zip)),
            (b"PK\x03\x04".to_vec(), Some(Kind::Zip)),
            (b"\x80\x02}q\x00".to_vec(), Some(Kind::Pickle)),
            (b"\x1f\x8b\x08".to_vec(), Some(Kind::Gzip)),
            (b"II*\0\x08".to_vec(), Some(Kind::Tiff)),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00".to_vec(),
                Some(Kind::LfsPointer),
            ),
            (b"\n<!DOCTYPE HTML><html>".to_vec(), Some(Kind::Html)),
            (b"<html lang=en>".to_vec(), Some(Kind::Html)),
            (b"\x02\0\0\0\0\0\0\0{}".to_vec(), Some(Kind::Safetensors)),
            (b"\x02\0\0\0\0\0\0\0[]".to_vec(), None),
            (b"".to_vec(), None),
            (b"x,y\n1,2\n".to_vec(), None),
        ] {
            assert_eq!(Kind::of(&head), kind, "{head:?}");
        }
    }
}
