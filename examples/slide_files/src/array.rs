//! An array of a file: what is wanted, what the file says of it, and its bytes as they come.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::element::Element;
use crate::error::Error;

/// Bytes converted at a time, a multiple of each element's.
const PIECE_BYTES: usize = 1 << 20;

/// An array that is looked for.
pub struct Wanted<'a> {
    pub path: &'a Path,
    pub name: &'static str,
    /// Elements of a row.
    width: usize,
    /// Whether integers will do.
    integers: bool,
}

impl<'a> Wanted<'a> {
    pub fn features(path: &'a Path, width: usize) -> Self {
        let (name, integers) = ("features", false);
        Self {
            path,
            name,
            width,
            integers,
        }
    }

    pub fn coords(path: &'a Path) -> Self {
        let (name, width, integers) = ("coords", 2, true);
        Self {
            path,
            name,
            width,
            integers,
        }
    }

    pub fn invalid(&self, format: &'static str, reason: impl ToString) -> Error {
        Error::Invalid {
            path: self.path.into(),
            format,
            reason: reason.to_string(),
        }
    }

    /// That there is no such array, but others.
    pub fn missing<'n>(&self, found: impl Iterator<Item = &'n str>) -> Error {
        Error::Missing {
            path: self.path.into(),
            array: self.name,
            found: some(found),
        }
    }

    /// That a group has the array's name.
    #[cfg(feature = "h5")]
    pub fn is_group<'n>(&self, found: impl Iterator<Item = &'n str>) -> Error {
        Error::Group {
            path: self.path.into(),
            array: self.name,
            found: some(found),
        }
    }

    /// That its chunks went through a filter that is not known.
    #[cfg(feature = "h5")]
    pub fn filtered(&self, filter: String) -> Error {
        Error::Filter {
            path: self.path.into(),
            array: self.name,
            filter,
        }
    }

    fn misshapen(&self, given: &[u64]) -> Error {
        let width = self.width;
        Error::Shape {
            path: self.path.into(),
            array: self.name,
            given: given.to_vec(),
            need: format!("(tiles, {width}) or (1, tiles, {width})"),
        }
    }

    /// That the rows are of another width than those of the model.
    fn of_other_width(&self, given: u64) -> Error {
        Error::Width {
            path: self.path.into(),
            given,
            by: String::new(),
            need: self.width,
            hint: match self.width {
                1536 => ": GigaPath's tile encoder gives them",
                _ => "",
            },
        }
    }

    /// Opens the file, which must be a regular one; its size.
    pub fn open(&self) -> Result<(File, u64), Error> {
        let refused = |reason| Error::File {
            path: self.path.into(),
            action: "opened",
            reason,
        };
        // Asked before it is opened: to open a pipe would wait for its other end.
        if !std::fs::metadata(self.path).map_err(refused)?.is_file() {
            let reason = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
            return Err(refused(reason));
        }
        let file = File::open(self.path).map_err(refused)?;
        let size = file.metadata().map_err(refused)?.len();
        Ok((file, size))
    }
}

/// Names for messages, not too many.
fn some<'n>(found: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut found: Vec<String> = found.take(8).map(shown).collect();
    found.sort();
    if found.is_empty() {
        found.push("nothing".to_owned());
    }
    found
}

/// A name for messages: on one line and not long.
pub fn shown(name: &str) -> String {
    let clipped = name.chars().take(60);
    clipped.flat_map(char::escape_debug).collect()
}

/// An array that was found: what the file says of it, and its bytes as they come.
pub struct Array<'a> {
    pub wanted: &'a Wanted<'a>,
    /// The format, for errors.
    pub format: &'static str,
    /// The type, or the name of one that is not accepted.
    pub element: Result<Element, String>,
    pub shape: Vec<u64>,
    /// Most bytes that there can be.
    pub most_bytes: u64,
}

impl Array<'_> {
    /// Its type and bytes, if type and shape are those wanted and as many bytes can be there.
    pub fn check(&self) -> Result<(Element, u64), Error> {
        let wanted = self.wanted;
        let mistyped = |given: String| Error::Type {
            path: wanted.path.into(),
            array: wanted.name,
            given,
            need: match wanted.integers {
                true => "F16, BF16, F32, F64 or integers of 32 or 64 bits, little-endian,",
                false => "F16, BF16, F32 or F64, little-endian,",
            },
        };
        let element = self.element.clone().map_err(mistyped)?;
        if !element.is_float() && !wanted.integers {
            return Err(mistyped(format!("{element:?}")));
        }
        let (rows, columns) = match self.shape[..] {
            [rows, columns] | [1, rows, columns] => (rows, columns),
            _ => return Err(wanted.misshapen(&self.shape)),
        };
        if !wanted.integers && columns != wanted.width as u64 {
            return Err(wanted.of_other_width(columns));
        }
        let need_bytes = rows
            .checked_mul(columns)
            .and_then(|count| count.checked_mul(element.size() as u64))
            .filter(|_| columns == wanted.width as u64)
            .ok_or_else(|| wanted.misshapen(&self.shape))?;
        if need_bytes > self.most_bytes {
            return Err(Error::CutOff {
                path: wanted.path.into(),
                array: wanted.name,
                given_bytes: self.most_bytes,
                need_bytes,
            });
        }
        Ok((element, need_bytes))
    }

    /// All elements.
    pub fn read(&self, bytes: &mut dyn Read) -> Result<Vec<f32>, Error> {
        let (element, mut left) = self.check()?;
        // The values grow with what is there: compressed data may be less than it says.
        let mut values = Vec::new();
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        while left > 0 {
            let size = piece
                .len()
                .min(usize::try_from(left).unwrap_or(piece.len()));
            let piece = &mut piece[..size];
            bytes.read_exact(piece).map_err(|error| {
                let reason = format!("{}: {error}", self.wanted.name);
                self.wanted.invalid(self.format, reason)
            })?;
            element.append(piece, &mut values);
            left -= size as u64;
        }
        Ok(values)
    }
}
