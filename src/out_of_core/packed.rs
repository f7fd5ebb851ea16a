//! Packed keys on the host: what branches with long segments need of all keys and values.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::file::{create, failed, fill_new};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::Range as Rows;

/// Keys and values of the rows of some branches.
pub(super) struct PackedKeys {
    branches: Vec<PackedBranch>,
    store: Store,
}

/// Where a branch lies: (segment, row, head of the branch, element), as bytes.
#[derive(Debug)]
struct PackedBranch {
    geometry: BranchGeometry,
    /// Bytes of a head.
    head_bytes: usize,
    /// First byte of the keys and of the values.
    first: [u64; 2],
}

/// Keys and values of tokens from a first one on.
struct Tokens<'a> {
    first: usize,
    token_bytes: usize,
    rows: [&'a [u8]; 2],
}

enum Store {
    Memory(Vec<u8>),
    File(Scratch),
}

/// A file, which begins with the name of the run.
struct Scratch {
    path: PathBuf,
    file: DiskFile,
    /// Whether a later run goes on with it. Else it is removed with this one.
    is_kept: bool,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept {
            // A failure leaves a file that nobody needs.
            _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Bytes of the name of a run, before the packed keys in a file.
pub(super) const NAME_BYTES: usize = 16;

/// Bytes of the packed keys and values of a branch.
pub(super) fn branch_bytes(geometry: &BranchGeometry, head_bytes: usize) -> u64 {
    let rows = u64::from(geometry.num_segments) * u64::from(geometry.rows_per_segment);
    let heads = rows.saturating_mul(geometry.head_count.into());
    heads.saturating_mul(2 * head_bytes as u64)
}

impl PackedKeys {
    fn lay_out(
        geometries: &[BranchGeometry],
        head_bytes: usize,
        mut first: u64,
    ) -> (Vec<PackedBranch>, u64) {
        let mut branches = Vec::new();
        for geometry in geometries {
            let half = branch_bytes(geometry, head_bytes) / 2;
            branches.push(PackedBranch {
                geometry: geometry.clone(),
                head_bytes,
                first: [first, first.saturating_add(half)],
            });
            first = first.saturating_add(2 * half);
        }
        (branches, first)
    }

    /// Those of no branch.
    pub fn none() -> Self {
        Self {
            branches: Vec::new(),
            store: Store::Memory(Vec::new()),
        }
    }

    /// # Errors
    /// [`Error::HostMemory`] when the host has no memory for them.
    pub fn in_memory(geometries: &[BranchGeometry], head_bytes: usize) -> Result<Self> {
        let (branches, bytes) = Self::lay_out(geometries, head_bytes, 0);
        let count = usize::try_from(bytes).ok();
        let zeros = count.and_then(|count| bytemuck::allocation::try_zeroed_vec(count).ok());
        Ok(Self {
            branches,
            store: Store::Memory(zeros.ok_or(Error::HostMemory {
                what: "packed keys",
                requested_bytes: bytes,
            })?),
        })
    }

    /// In a file at `path`, for the run with this name, and whether it holds what the run has packed before: `goes_on` says that there
    /// may be such a file, else there must be none. If the file `is_kept`, a later run can go on with it.
    ///
    /// # Errors
    /// [`Error::TokenFile`], also when the file is of another run, and [`Error::DiskFull`].
    pub fn in_file(
        geometries: &[BranchGeometry],
        head_bytes: usize,
        path: &Path,
        name: [u8; NAME_BYTES],
        [is_kept, goes_on]: [bool; 2],
    ) -> Result<(Self, bool)> {
        let (branches, bytes) = Self::lay_out(geometries, head_bytes, NAME_BYTES as u64);
        let old = match goes_on && path.exists() {
            false => None,
            true => Some(open_old(path, name).map_err(|error| failed(path, "opened", &error))?),
        };
        // The run may have ended while it made the file.
        let is_whole = old.as_ref().is_some_and(|file| file.len() == bytes);
        let file = match old {
            Some(file) if is_whole => file,
            Some(file) => {
                fill_new(path, &file, &name, bytes)?;
                file
            }
            None => create(path, &name, bytes)?,
        };
        let store = Store::File(Scratch {
            path: path.to_owned(),
            file,
            is_kept,
        });
        Ok((Self { branches, store }, is_whole))
    }

    /// Whether the file at `path` is whole, and the run's with this name.
    pub fn are_in_file(
        geometries: &[BranchGeometry],
        head_bytes: usize,
        path: &Path,
        name: [u8; NAME_BYTES],
    ) -> bool {
        let (_, bytes) = Self::lay_out(geometries, head_bytes, NAME_BYTES as u64);
        open_old(path, name).is_ok_and(|file| file.len() == bytes)
    }

    /// Removes the file at `path` if it is the run's with this name.
    pub fn remove(path: &Path, name: [u8; NAME_BYTES]) {
        if open_old(path, name).is_ok_and(|file| file.len() > 0) {
            // A failure leaves a file that nobody needs.
            _ = std::fs::remove_file(path);
        }
    }

    /// Keeps what the branches need of `tokens`, whose keys and values are `rows`: (token, head, element).
    pub fn pack(&mut self, tokens: Range<usize>, rows: [&[u8]; 2]) -> io::Result<()> {
        let Self { branches, store } = self;
        let all = Tokens {
            first: tokens.start,
            token_bytes: rows[0].len().checked_div(tokens.len()).unwrap_or(0),
            rows,
        };
        for branch in branches {
            let length = branch.geometry.segment_length as usize;
            let mut first = tokens.start;
            while first < tokens.end {
                let segment = first / length;
                let end = tokens.end.min((segment + 1) * length);
                branch.pack(store, segment, first..end, &all)?;
                first = end;
            }
        }
        Ok(())
    }

    /// Fills `out` with the keys and the values of `rows` of a segment of a branch.
    pub fn read(
        &self,
        branch: u32,
        segment: u32,
        rows: Rows,
        out: &mut [Vec<u8>; 2],
    ) -> io::Result<()> {
        let of = |packed: &&PackedBranch| packed.geometry.branch == branch;
        // The plan has packed all branches that are not short.
        let Some(packed) = self.branches.iter().find(of) else {
            return Err(io::Error::other(format!("branch {branch} is not packed")));
        };
        for (first, out) in packed.first.into_iter().zip(out) {
            let place = packed.place(segment as usize, rows.begin as usize..rows.end as usize);
            let begin = first + place.start;
            match &self.store {
                Store::Memory(bytes) => {
                    // The store has been allocated, so that all places are below its length.
                    let from = &bytes[begin as usize..][..(place.end - place.start) as usize];
                    out.clear();
                    out.extend_from_slice(from);
                }
                Store::File(scratch) => {
                    out.resize((place.end - place.start) as usize, 0);
                    scratch.file.read(begin, out)?;
                }
            }
        }
        Ok(())
    }

    /// Makes them outlive the program, if they are in a file.
    pub fn sync(&self) -> io::Result<()> {
        match &self.store {
            Store::Memory(_) => Ok(()),
            Store::File(scratch) => scratch.file.file().sync_data(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.branches.is_empty()
    }

    /// The first token that the outputs from `written` on need packed.
    pub fn first_needed(&self, written: u64) -> u64 {
        let begins = self.branches.iter().map(|branch| {
            let geometry = &branch.geometry;
            let segment = written / u64::from(geometry.output_stride);
            segment.saturating_mul(geometry.segment_length.into())
        });
        begins.min().unwrap_or(0)
    }

    /// From here on nobody needs them.
    pub fn discard(&mut self) {
        if let Store::File(scratch) = &mut self.store {
            scratch.is_kept = false;
        }
        self.store = Store::Memory(Vec::new());
    }
}

/// Opens the file of the run with this name.
fn open_old(path: &Path, name: [u8; NAME_BYTES]) -> io::Result<DiskFile> {
    let file = DiskFile::open_to_write(path)?;
    let mut found = [0; NAME_BYTES];
    let known = (file.len() as usize).min(NAME_BYTES);
    file.read(0, &mut found[..known])?;
    match found[..known] == name[..known] {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidData,
            "it is not the scratch file of the run that the progress file tells of: name another",
        )),
    }
}

impl PackedBranch {
    /// The bytes of rows of a segment, from the first of the keys or of the values on.
    fn place(&self, segment: usize, rows: Range<usize>) -> Range<u64> {
        let first = segment as u64 * u64::from(self.geometry.rows_per_segment);
        let row_bytes = u64::from(self.geometry.head_count) * self.head_bytes as u64;
        (first + rows.start as u64) * row_bytes..(first + rows.end as u64) * row_bytes
    }

    /// Keeps what the branch needs of `tokens`, which lie in one segment and among `all`.
    fn pack(
        &self,
        store: &mut Store,
        segment: usize,
        tokens: Range<usize>,
        all: &Tokens<'_>,
    ) -> io::Result<()> {
        let geometry = &self.geometry;
        let begin = segment * geometry.segment_length as usize;
        let rate = geometry.dilation_rate as usize;
        // The rows of a head whose tokens are among these.
        let rows_of = |head: u32| {
            let offset = geometry.offset(head) as usize;
            let row = |token: usize| (token - begin).saturating_sub(offset).div_ceil(rate);
            row(tokens.start)..row(tokens.end)
        };
        let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
        let ranges = heads.clone().map(rows_of).filter(|rows| !rows.is_empty());
        let Some(rows) = ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) else {
            return Ok(());
        };
        for (first, from_rows) in self.first.into_iter().zip(all.rows) {
            let place = self.place(segment, rows.clone());
            store.update(first + place.start..first + place.end, |packed| {
                for (index, head) in heads.clone().enumerate() {
                    for row in rows_of(head) {
                        let token = begin + geometry.offset(head) as usize + row * rate;
                        let from =
                            (token - all.first) * all.token_bytes + head as usize * self.head_bytes;
                        let to = ((row - rows.start) * geometry.head_count as usize + index)
                            * self.head_bytes;
                        let head = &from_rows[from..][..self.head_bytes];
                        packed[to..][..self.head_bytes].copy_from_slice(head);
                    }
                }
            })?;
        }
        Ok(())
    }
}

impl Store {
    /// Changes some bytes in place.
    fn update(&mut self, place: Range<u64>, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let count = (place.end - place.start) as usize;
        match self {
            Self::Memory(bytes) => {
                // As in `read`.
                change(&mut bytes[place.start as usize..][..count]);
                Ok(())
            }
            Self::File(scratch) => {
                // A row has heads of several tokens, and may be half full.
                let mut bytes = vec![0; count];
                scratch.file.read(place.start, &mut bytes)?;
                change(&mut bytes);
                scratch.file.write(place.start, &bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DilatedAttentionConfig, HeadOffsets, Heads};

    /// Every token and head says in two bytes who it is; packed rows must be those that the branch reads, however tokens come.
    #[test]
    fn rows_are_those_of_the_branch() {
        for (offsets, heads, lengths, rates) in [
            (
                HeadOffsets::Blocked,
                Heads::EveryBranch,
                [40usize, 17],
                [3usize, 4],
            ),
            (
                HeadOffsets::RoundRobin,
                Heads::EveryBranch,
                [100, 9],
                [2, 5],
            ),
            (HeadOffsets::Blocked, Heads::Partitioned, [33, 50], [4, 7]),
        ] {
            let config = DilatedAttentionConfig::new(5, 8, &lengths, &rates).expect("valid");
            let config = config.with_head_offsets(offsets).with_heads(heads);
            let tokens = 83u32;
            let name = |token: u32, head: u32| [token as u8, head as u8];
            let all: Vec<u8> = (0..tokens)
                .flat_map(|token| (0..5).flat_map(move |head| name(token, head)))
                .collect();
            for branch in 0..2 {
                let geometry = BranchGeometry::cross(&config, branch, tokens, tokens);
                for piece in [1usize, 7, 83] {
                    let only = [geometry.clone()];
                    let path = std::env::temp_dir().join(format!(
                        "packed-{}-{offsets:?}-{heads:?}-{branch}-{piece}",
                        std::process::id()
                    ));
                    let run = [7; NAME_BYTES];
                    let in_file =
                        |run, goes_on| PackedKeys::in_file(&only, 2, &path, run, [true, goes_on]);
                    let (file, is_old) = in_file(run, false).expect("is made");
                    assert!(!is_old);
                    let memory = PackedKeys::in_memory(&only, 2).expect("small");
                    let [memory, file] = [memory, file].map(|mut packed| {
                        for (first, rows) in (0..).step_by(piece).zip(all.chunks(piece * 10)) {
                            let tokens = first..first + rows.len() / 10;
                            packed.pack(tokens, [rows, rows]).expect("is kept");
                        }
                        packed
                    });
                    file.sync().expect("is synced");
                    for refused in [in_file([8; NAME_BYTES], true), in_file(run, false)] {
                        assert!(matches!(refused.map(drop), Err(Error::TokenFile { .. })));
                    }
                    let (mut again, is_old) = in_file(run, true).expect("is there");
                    assert!(is_old);
                    for segment in 0..geometry.num_segments {
                        for (index, head) in (geometry.head_begin
                            ..geometry.head_begin + geometry.head_count)
                            .enumerate()
                        {
                            for row in 0..geometry.real_keys(segment, head) {
                                let rows = Rows {
                                    begin: row,
                                    end: row + 1,
                                };
                                let read = |packed: &PackedKeys| {
                                    let mut out = [Vec::new(), Vec::new()];
                                    packed
                                        .read(branch, segment, rows, &mut out)
                                        .expect("is there");
                                    out
                                };
                                let [k, v] = read(&memory);
                                assert_eq!(read(&file), [k.clone(), v.clone()]);
                                assert_eq!(read(&again), [k.clone(), v.clone()]);
                                let token = segment * geometry.segment_length
                                    + geometry.offset(head)
                                    + row * geometry.dilation_rate;
                                assert_eq!(k[2 * index..][..2], name(token, head));
                                assert_eq!(k, v);
                            }
                        }
                    }
                    again.discard();
                    assert!(!path.exists());
                }
            }
        }
    }
}
