//! Where tokens come from and go to.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;

use crate::device::{DType, Element};

/// Queries, keys or values on the host: rows (head, element) of tokens, of the type of the plan. Most reads come from a thread of
/// their own, while the device computes. A source that panics is read as one that fails.
pub trait TokenSource: Sync {
    /// Type of the elements.
    fn dtype(&self) -> DType;

    /// Number of elements, if there is an end.
    fn num_elements(&self) -> Option<u64>;

    /// Fills `rows` with the rows of `tokens`, one after the other, as bytes in the order of the machine.
    ///
    /// # Errors
    /// Any: it ends the run with [`Error::HostTokens`](crate::Error::HostTokens), which carries it in words.
    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()>;

    /// What tells the tokens from others, besides the first and the last of them: when a file was modified, for example. A run that
    /// [goes on](super::OutOfCoreOptions::with_progress_file) compares it.
    ///
    /// # Errors
    /// Any, as of [`read`](Self::read).
    fn identity(&self) -> io::Result<String> {
        Ok(String::new())
    }
}

/// Where outputs go, of the type of the plan.
pub trait TokenSink {
    /// Type of the elements.
    fn dtype(&self) -> DType;

    /// Number of elements that there is room for, if there is an end.
    fn num_elements(&self) -> Option<u64>;

    /// Takes the rows (head, element) of `tokens`, as bytes in the order of the machine. Called for one block after the other, in
    /// order. After an error, a run that is advanced again calls it again for the same block.
    ///
    /// # Errors
    /// As [`TokenSource::read`].
    fn write(&mut self, tokens: Range<usize>, rows: &[u8]) -> io::Result<()>;

    /// Makes what was written outlive the program and the machine's power. A run with a
    /// [progress file](super::OutOfCoreOptions::with_progress_file) calls it after each block.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Fills `rows` with what was written for `tokens` and returns true, or returns false if that is not to be had any more. A run
    /// that goes on looks whether the outputs are those that it had written.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn read_back(&mut self, _tokens: Range<usize>, _rows: &mut [u8]) -> io::Result<bool> {
        Ok(false)
    }
}

/// The bytes of `tokens` among `all`, which holds rows of as many bytes as `rows` are for `tokens`.
fn place(tokens: &Range<usize>, rows: usize, all: usize) -> io::Result<Range<usize>> {
    let row = rows.checked_div(tokens.len()).unwrap_or(0);
    let place = tokens.start * row..tokens.end * row;
    match place.end <= all {
        true => Ok(place),
        false => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "there are {all} bytes, but tokens {tokens:?} end at byte {}",
                place.end
            ),
        )),
    }
}

impl<T: Element> TokenSource for [T] {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn num_elements(&self) -> Option<u64> {
        Some(self.len() as u64)
    }

    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
        let all: &[u8] = bytemuck::cast_slice(self);
        rows.copy_from_slice(&all[place(&tokens, rows.len(), all.len())?]);
        Ok(())
    }
}

impl<T: Element> TokenSource for Vec<T> {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn num_elements(&self) -> Option<u64> {
        Some(self.len() as u64)
    }

    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
        self.as_slice().read(tokens, rows)
    }
}

impl<T: Element> TokenSink for [T] {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn num_elements(&self) -> Option<u64> {
        Some(self.len() as u64)
    }

    fn write(&mut self, tokens: Range<usize>, rows: &[u8]) -> io::Result<()> {
        let all: &mut [u8] = bytemuck::cast_slice_mut(self);
        let place = place(&tokens, rows.len(), all.len())?;
        all[place].copy_from_slice(rows);
        Ok(())
    }

    fn read_back(&mut self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<bool> {
        self.read(tokens, rows)?;
        Ok(true)
    }
}

impl<T: Element> TokenSink for Vec<T> {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn num_elements(&self) -> Option<u64> {
        Some(self.len() as u64)
    }

    fn write(&mut self, tokens: Range<usize>, rows: &[u8]) -> io::Result<()> {
        self.as_mut_slice().write(tokens, rows)
    }

    fn read_back(&mut self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<bool> {
        self.as_mut_slice().read_back(tokens, rows)
    }
}

impl<S: TokenSource + ?Sized> TokenSource for &S {
    fn dtype(&self) -> DType {
        (**self).dtype()
    }

    fn num_elements(&self) -> Option<u64> {
        (**self).num_elements()
    }

    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
        (**self).read(tokens, rows)
    }

    fn identity(&self) -> io::Result<String> {
        (**self).identity()
    }
}

impl<S: TokenSink + ?Sized> TokenSink for &mut S {
    fn dtype(&self) -> DType {
        (**self).dtype()
    }

    fn num_elements(&self) -> Option<u64> {
        (**self).num_elements()
    }

    fn write(&mut self, tokens: Range<usize>, rows: &[u8]) -> io::Result<()> {
        (**self).write(tokens, rows)
    }

    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }

    fn read_back(&mut self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<bool> {
        (**self).read_back(tokens, rows)
    }
}

/// Tokens that a function computes when they are read. It gets a range of tokens and fills their rows, and gives the same numbers
/// whenever it is asked for the same tokens.
#[derive(Clone, Copy, Debug)]
pub struct Generated<T, F> {
    generate: F,
    element: PhantomData<fn(T)>,
}

impl<T: Element, F: Fn(Range<usize>, &mut [T]) + Sync> Generated<T, F> {
    /// The tokens that `generate` computes.
    pub fn new(generate: F) -> Self {
        Self {
            generate,
            element: PhantomData,
        }
    }
}

impl<T: Element, F: Fn(Range<usize>, &mut [T]) + Sync> TokenSource for Generated<T, F> {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn num_elements(&self) -> Option<u64> {
        None
    }

    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
        // Memory for bytes need not be aligned for elements, but mostly is.
        if let Ok(elements) = bytemuck::try_cast_slice_mut(rows) {
            (self.generate)(tokens, elements);
            return Ok(());
        }
        let mut elements: Vec<T> = vec![T::zeroed(); rows.len() / size_of::<T>()];
        (self.generate)(tokens, &mut elements);
        rows.copy_from_slice(bytemuck::cast_slice(&elements));
        Ok(())
    }
}
