//! What ranks send each other, as bytes of the host.
//!
//! Every rank can tell what every other needs of it, so bytes come without any description: of each need in order, first the keys
//! and then the values of the rows that the sender has, row after row and head after head.

use std::ops::Range;

use crate::error::{Error, GroupError, Result};
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::Range as Rows;
use crate::plan::{KeyNeed, ShareNeeds, Tokens};

/// How tokens lie on the host: (token, head, element).
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub num_heads: usize,
    /// Bytes of a head.
    pub head_bytes: usize,
}

impl Layout {
    fn row_bytes(&self) -> usize {
        self.num_heads * self.head_bytes
    }

    /// The bytes of a head of a token, of tokens from `first` on.
    fn head(&self, first: u64, token: u64, head: u32) -> Range<usize> {
        let begin = ((token - first) as usize * self.num_heads + head as usize) * self.head_bytes;
        begin..begin + self.head_bytes
    }

    fn tokens(&self, first: u64, tokens: &Tokens) -> Range<usize> {
        let place = |token: u64| (token - first) as usize * self.row_bytes();
        place(tokens.start)..place(tokens.end)
    }
}

/// A row of a branch: its place among the packed rows of a need, its head, its token.
#[derive(Clone, Copy)]
struct Entry {
    place: usize,
    head: u32,
    token: u64,
}

/// The rows of a need whose tokens are among `tokens`.
fn entries<'a>(
    geometry: &'a BranchGeometry,
    need: &KeyNeed,
    tokens: &Tokens,
) -> impl Iterator<Item = Entry> + use<'a> {
    let begin = u64::from(need.segment) * u64::from(geometry.segment_length);
    let end = (begin + u64::from(geometry.segment_length)).min(geometry.key_len.into());
    let (first, end) = (tokens.start.max(begin), tokens.end.min(end));
    let rate = u64::from(geometry.dilation_rate);
    let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
    let offsets = heads.clone().map(|head| u64::from(geometry.offset(head)));
    let most = offsets.max().unwrap_or(0);
    // A row whose head of the largest offset is among the tokens may be the first.
    let rows = match first < end {
        false => 0..0,
        true => first.saturating_sub(begin + most) / rate..(end - begin).div_ceil(rate),
    };
    let (all, count) = (need.rows, geometry.head_count as usize);
    let rows = rows.start.max(all.begin.into())..rows.end.min(all.end.into());
    rows.flat_map(move |row| {
        heads.clone().filter_map(move |head| {
            let token = begin + u64::from(geometry.offset(head)) + row * rate;
            let entry = Entry {
                place: (row - u64::from(all.begin)) as usize * count
                    + (head - geometry.head_begin) as usize,
                head,
                token,
            };
            (first <= token && token < end).then_some(entry)
        })
    })
}

/// The branch of a need.
fn geometry_of<'a>(geometries: &'a [BranchGeometry], need: &KeyNeed) -> Result<&'a BranchGeometry> {
    let mut all = geometries.iter();
    all.find(|geometry| geometry.branch == need.branch)
        .ok_or_else(|| lost("a branch"))
}

/// Bytes that a rank has sent, read from the first to the last.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| lost("bytes"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn finish(self) -> Result<()> {
        match self.0 {
            [] => Ok(()),
            _ => Err(lost("bytes")),
        }
    }
}

/// Ranks have agreed on all that these bytes follow from.
fn lost(what: &str) -> Error {
    GroupError::Transport {
        call: "all_to_all",
        reason: format!("{what} of a share are not those that were expected"),
    }
    .into()
}

fn common(a: &Tokens, b: &Tokens) -> Tokens {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// The tensors of the tokens `own`.
pub(super) struct Own<'a> {
    pub tokens: Tokens,
    pub q: &'a [u8],
    pub kv: [&'a [u8]; 2],
}

/// What a rank with these needs gets from the tokens `own`.
pub(super) fn rows_for(
    geometries: &[BranchGeometry],
    needs: &ShareNeeds,
    own: &Own<'_>,
    layout: Layout,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for need in &needs.keys {
        let geometry = geometry_of(geometries, need)?;
        for tensor in own.kv {
            for entry in entries(geometry, need, &own.tokens) {
                let place = layout.head(own.tokens.start, entry.token, entry.head);
                bytes.extend_from_slice(&tensor[place]);
            }
        }
    }
    for need in &needs.queries {
        let tokens = common(&need.tokens, &own.tokens);
        bytes.extend_from_slice(match tokens.is_empty() {
            true => &[],
            false => &own.q[layout.tokens(own.tokens.start, &tokens)],
        });
    }
    Ok(bytes)
}

/// Packed rows of keys and values, one buffer of both for each need, and the rows of the needed queries.
pub(super) struct Gathered {
    pub keys: Vec<[Vec<u8>; 2]>,
    pub queries: Vec<Vec<u8>>,
}

/// Puts together what all ranks have sent for these needs; `ranges` are the tokens of each.
pub(super) fn gather(
    geometries: &[BranchGeometry],
    needs: &ShareNeeds,
    ranges: &[Tokens],
    received: &[Vec<u8>],
    layout: Layout,
) -> Result<Gathered> {
    let mut cursors: Vec<Cursor<'_>> = received.iter().map(|bytes| Cursor(bytes)).collect();
    let mut gathered = Gathered {
        keys: Vec::new(),
        queries: Vec::new(),
    };
    for need in &needs.keys {
        let geometry = geometry_of(geometries, need)?;
        let bytes = packed_heads(geometry, need.rows) * layout.head_bytes;
        let mut packed = [zeros(bytes)?, zeros(bytes)?];
        for (cursor, tokens) in cursors.iter_mut().zip(ranges) {
            for tensor in &mut packed {
                for entry in entries(geometry, need, tokens) {
                    let to = &mut tensor[entry.place * layout.head_bytes..][..layout.head_bytes];
                    to.copy_from_slice(cursor.take(layout.head_bytes)?);
                }
            }
        }
        gathered.keys.push(packed);
    }
    for need in &needs.queries {
        let mut rows = zeros((need.tokens.end - need.tokens.start) as usize * layout.row_bytes())?;
        for (cursor, tokens) in cursors.iter_mut().zip(ranges) {
            let tokens = common(&need.tokens, tokens);
            if !tokens.is_empty() {
                let place = layout.tokens(need.tokens.start, &tokens);
                let count = place.len();
                rows[place].copy_from_slice(cursor.take(count)?);
            }
        }
        gathered.queries.push(rows);
    }
    cursors.into_iter().try_for_each(Cursor::finish)?;
    Ok(gathered)
}

/// Heads of packed rows of a branch.
pub(super) fn packed_heads(geometry: &BranchGeometry, rows: Rows) -> usize {
    rows.len() as usize * geometry.head_count as usize
}

/// Zeros on the host.
///
/// # Errors
/// [`Error::HostMemory`].
pub(super) fn zeros<T: bytemuck::Zeroable>(count: usize) -> Result<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(count).map_err(|()| Error::HostMemory {
        what: "rows of other ranks",
        requested_bytes: (count * size_of::<T>()) as u64,
    })
}

/// Gradients of what this rank has gathered: packed rows for each need of keys, rows for each of queries.
pub(super) struct Partials {
    pub keys: Vec<[Vec<f32>; 2]>,
    pub queries: Vec<Vec<f32>>,
}

/// The gradients of what the rank with `tokens` has sent for these needs. The layout is that of f32.
pub(super) fn partials_for(
    geometries: &[BranchGeometry],
    needs: &ShareNeeds,
    partials: &Partials,
    tokens: &Tokens,
    layout: Layout,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let head = layout.head_bytes / 4;
    for (need, packed) in needs.keys.iter().zip(&partials.keys) {
        let geometry = geometry_of(geometries, need)?;
        for tensor in packed {
            for entry in entries(geometry, need, tokens) {
                let values = &tensor[entry.place * head..][..head];
                bytes.extend_from_slice(bytemuck::cast_slice(values));
            }
        }
    }
    for (need, rows) in needs.queries.iter().zip(&partials.queries) {
        let tokens = common(&need.tokens, tokens);
        if !tokens.is_empty() {
            let place = layout.tokens(need.tokens.start, &tokens);
            bytes.extend_from_slice(&bytemuck::cast_slice(rows)[place]);
        }
    }
    Ok(bytes)
}

/// Sums of gradients of the tokens `own`, of queries, keys and values: of each rank in order what it has computed for its `needs`.
pub(super) fn sum(
    geometries: &[BranchGeometry],
    needs: &[ShareNeeds],
    own: &Tokens,
    received: &[Vec<u8>],
    layout: Layout,
) -> Result<[Vec<f32>; 3]> {
    let count = (own.end - own.start) as usize * layout.row_bytes() / 4;
    let [mut dq, mut dk, mut dv] = [zeros(count)?, zeros(count)?, zeros(count)?];
    let add = |to: &mut [f32], bytes: &[u8]| {
        for (sum, bytes) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *sum += f32::from_ne_bytes(*bytes);
        }
    };
    let words = |place: Range<usize>| place.start / 4..place.end / 4;
    for (needs, bytes) in needs.iter().zip(received) {
        let mut cursor = Cursor(bytes);
        for need in &needs.keys {
            let geometry = geometry_of(geometries, need)?;
            for tensor in [&mut dk, &mut dv] {
                for entry in entries(geometry, need, own) {
                    let place = words(layout.head(own.start, entry.token, entry.head));
                    add(&mut tensor[place], cursor.take(layout.head_bytes)?);
                }
            }
        }
        for need in &needs.queries {
            let tokens = common(&need.tokens, own);
            if !tokens.is_empty() {
                let place = layout.tokens(own.start, &tokens);
                let count = place.len();
                add(&mut dq[words(place)], cursor.take(count)?);
            }
        }
        cursor.finish()?;
    }
    Ok([dq, dk, dv])
}
