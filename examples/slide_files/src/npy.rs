//! NumPy's .npy files.
//!
//! ```text
//! \x93NUMPY | version, 2 bytes | length of the header, 2 or 4 bytes | header | data
//! header: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }
//! ```
//! The header is read here: the crates for it multiply a file's shape unchecked, which a hostile one makes a panic where
//! overflow checks are on, and bring a parser of all of Python's literals, of which a header needs four.

use std::io::{Read, Write};
use std::path::Path;

use crate::array::{Array, Wanted, shown};
use crate::element::{Element, number};
use crate::error::Error;
use crate::geometry::Value;

const FORMAT: &str = ".npy";

/// Longest header that is read. NumPy itself refuses 10 000 bytes.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// Longest text that is read.
const MAX_TEXT: usize = 256;

/// The array of the file, whatever its name.
pub fn read(wanted: &Wanted<'_>) -> Result<Vec<f32>, Error> {
    let (mut file, file_bytes) = wanted.open()?;
    read_within(wanted, FORMAT, &mut file, file_bytes)
}

/// The array that `file` holds, which has `file_bytes` at most.
pub fn read_within(
    wanted: &Wanted<'_>,
    format: &'static str,
    file: &mut dyn Read,
    file_bytes: u64,
) -> Result<Vec<f32>, Error> {
    let header = Header::read(file).map_err(|reason| wanted.invalid(format, reason))?;
    let element = match header.descr.as_str() {
        "<f2" => Ok(Element::F16),
        "<f4" => Ok(Element::F32),
        "<f8" => Ok(Element::F64),
        "<i4" => Ok(Element::I32),
        "<i8" => Ok(Element::I64),
        "<u4" => Ok(Element::U32),
        "<u8" => Ok(Element::U64),
        other => Err(shown(other)),
    };
    let array = Array {
        wanted,
        format,
        element,
        shape: header.shape,
        most_bytes: file_bytes.saturating_sub(header.bytes),
    };
    array.check()?;
    if header.fortran_order {
        return Err(Error::FortranOrder {
            path: wanted.path.into(),
            array: wanted.name,
        });
    }
    array.read(file)
}

/// Of a small array beside those of the tiles: one or two numbers, or one text.
pub fn value(file: &mut dyn Read) -> Result<Value, String> {
    let header = Header::read(file)?;
    let count = header.shape.iter().product::<u64>();
    if header.shape.len() > 2 || !(1..=2).contains(&count) {
        let shape = header.shape;
        return Err(format!(
            "one or two numbers are needed, not the shape {shape:?}"
        ));
    }
    let mut read = |size: usize| {
        let mut bytes = vec![0; size * count as usize];
        let read = file.read_exact(&mut bytes);
        read.map(|()| bytes).map_err(|error| error.to_string())
    };
    let descr = header.descr.as_str();
    if let Some(characters) = descr.strip_prefix("<U") {
        let characters: usize = characters.parse().map_err(|_| "a long text")?;
        let bytes = read(4 * characters.min(MAX_TEXT))?;
        let (units, _) = bytes.as_chunks::<4>();
        let text = units.iter().map(|unit| u32::from_le_bytes(*unit));
        let text = text.take_while(|unit| *unit != 0);
        return Ok(Value::Text(text.filter_map(char::from_u32).collect()));
    }
    let (class, size) = descr.split_at_checked(2).unwrap_or(("", ""));
    let (signed, float) = match class {
        "<i" | "|i" => (true, false),
        "<u" | "|u" => (false, false),
        "<f" => (true, true),
        _ => return Err(format!("the type {}", shown(descr))),
    };
    let size = size.parse().unwrap_or(0);
    if !matches!((size, float), (1 | 2 | 4 | 8, false) | (2 | 4 | 8, true)) {
        return Err(format!("the type {}", shown(descr)));
    }
    let bytes = read(size)?;
    let numbers = bytes.chunks(size);
    Ok(Value::Numbers(
        numbers.map(|bytes| number(bytes, signed, float)).collect(),
    ))
}

/// What stands before the data.
struct Header {
    /// Its own bytes.
    bytes: u64,
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

impl Header {
    /// Reads the header; the error says what is wrong.
    fn read(file: &mut dyn Read) -> Result<Self, String> {
        let mut start = [0; 8];
        let mut read = |to: &mut [u8]| file.read_exact(to).map_err(|error| error.to_string());
        read(&mut start)?;
        let [magic @ .., major, _minor] = start;
        if magic != *b"\x93NUMPY" {
            return Err("it does not begin as one".to_owned());
        }
        let (length_bytes, length) = match major {
            1 => {
                let mut length = [0; 2];
                read(&mut length)?;
                (2, usize::from(u16::from_le_bytes(length)))
            }
            2 | 3 => {
                let mut length = [0; 4];
                read(&mut length)?;
                let length = u32::from_le_bytes(length);
                (4, usize::try_from(length).unwrap_or(usize::MAX))
            }
            _ => return Err(format!("version {major} is unknown")),
        };
        if length > MAX_HEADER_BYTES {
            return Err(format!(
                "its header would have {length} bytes; {MAX_HEADER_BYTES} are allowed"
            ));
        }
        let mut text = vec![0; length];
        read(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let mut parser = Parser { rest: &text };
        let fields = parser.fields();
        let (descr, fortran_order, shape) =
            fields.ok_or("its header is not that of a plain array")?;
        Ok(Self {
            bytes: (start.len() + length_bytes + length) as u64,
            descr,
            fortran_order,
            shape,
        })
    }
}

/// Of Python's literals the four that a header of a plain array has: a dict, strings, booleans, a tuple of integers.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// Type, whether in Fortran order, shape.
    fn fields(&mut self) -> Option<(String, bool, Vec<u64>)> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.expect("{")?;
        while !self.accept("}") {
            let key = self.string()?;
            self.expect(":")?;
            match key {
                "descr" => descr = Some(self.string()?.to_owned()),
                "fortran_order" => fortran_order = Some(self.boolean()?),
                "shape" => shape = Some(self.tuple()?),
                _ => return None,
            }
            if !self.accept(",") {
                self.expect("}")?;
                break;
            }
        }
        let complete = self.rest.trim().is_empty();
        complete.then_some((descr?, fortran_order?, shape?))
    }

    fn accept(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Option<()> {
        self.accept(token).then_some(())
    }

    /// Without escapes, which no key or type has.
    fn string(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (string, rest) = text[1..].split_once(quote)?;
        self.rest = rest;
        Some(string)
    }

    fn boolean(&mut self) -> Option<bool> {
        if self.accept("True") {
            return Some(true);
        }
        self.expect("False")?;
        Some(false)
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        let mut numbers = Vec::new();
        self.expect("(")?;
        while !self.accept(")") {
            let text = self.rest.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit())?;
            numbers.push(text[..end].parse().ok()?);
            self.rest = &text[end..];
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        Some(numbers)
    }
}

/// Where the array of an `.npy` file lies, for programs that read or write it piece by piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyArray {
    /// First byte of its elements, in row-major order.
    pub first_byte: u64,
    /// Type of its elements, as NumPy writes it: `<f4`, for example.
    pub descr: String,
    /// Its shape.
    pub shape: Vec<u64>,
}

impl NpyArray {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Invalid`] when it is no `.npy` file, [`Error::FortranOrder`] when its elements are in another order.
    pub fn of(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut file = std::fs::File::open(path).map_err(|reason| Error::File {
            path: path.into(),
            action: "opened",
            reason,
        })?;
        let header = Header::read(&mut file).map_err(|reason| Error::Invalid {
            path: path.into(),
            format: FORMAT,
            reason,
        })?;
        match header.fortran_order {
            true => Err(Error::FortranOrder {
                path: path.into(),
                array: "the array",
            }),
            false => Ok(Self {
                first_byte: header.bytes,
                descr: header.descr,
                shape: header.shape,
            }),
        }
    }

    /// The header of a file with an array of this type and shape, behind which its elements begin.
    ///
    /// # Errors
    /// [`Error::Shape`] for a shape of so many dimensions that a header does not hold them.
    pub fn header(path: impl AsRef<Path>, descr: &str, shape: &[usize]) -> Result<Vec<u8>, Error> {
        // As Python writes a tuple.
        let dims = match shape {
            [one] => format!("{one},"),
            _ => {
                let dims: Vec<_> = shape.iter().map(usize::to_string).collect();
                dims.join(", ")
            }
        };
        let mut text =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
        // Data begins at a multiple of 64 bytes, behind a newline.
        let start = b"\x93NUMPY\x01\x00";
        let unpadded = start.len() + 2 + text.len() + 1;
        let padding = unpadded.next_multiple_of(64) - unpadded;
        text.extend(std::iter::repeat_n(' ', padding));
        text.push('\n');
        let length = u16::try_from(text.len()).map_err(|_| Error::Shape {
            path: path.as_ref().into(),
            array: "the array",
            given: shape.iter().map(|dim| *dim as u64).collect(),
            need: "one of fewer dimensions".to_owned(),
        })?;
        Ok([&start[..], &length.to_le_bytes(), text.as_bytes()].concat())
    }
}

/// Writes `values` of this shape, row-major, as a `.npy` file. The file takes the place of an old one.
///
/// # Errors
/// [`Error::File`]; [`Error::Shape`] when the shape is not that of so many values.
pub fn write_npy(path: impl AsRef<Path>, shape: &[usize], values: &[f32]) -> Result<(), Error> {
    let path = path.as_ref();
    let count = shape
        .iter()
        .try_fold(1usize, |count, dim| count.checked_mul(*dim));
    if count != Some(values.len()) {
        return Err(Error::Shape {
            path: path.into(),
            array: "the array",
            given: shape.iter().map(|dim| *dim as u64).collect(),
            need: format!("one of {} elements", values.len()),
        });
    }
    let header = NpyArray::header(path, "<f4", shape)?;
    let write = || -> std::io::Result<()> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        file.write_all(&header)?;
        for value in values {
            file.write_all(&value.to_le_bytes())?;
        }
        file.flush()
    };
    write().map_err(|reason| Error::File {
        path: path.into(),
        action: "written",
        reason,
    })
}
