//! Cached buffers of one usage set, by size class.

use super::size_class::NUM_CLASSES;

const BITMAP_WORDS: usize = NUM_CLASSES.div_ceil(64);

/// Cached buffers of one usage set and size class, the longest unused first, and counts of what the class has served.
#[derive(Default)]
pub(super) struct Class {
    pub free: Vec<u32>,
    /// Number of buffers of the class, leased, pending or cached.
    pub members: usize,
    pub acquires: u64,
    pub misses: u64,
}

/// The size classes of one usage set.
pub(super) struct Lists {
    pub usage: u32,
    occupied: [u64; BITMAP_WORDS],
    pub classes: Vec<Class>,
}

impl Lists {
    pub fn new(usage: u32) -> Self {
        Self {
            usage,
            occupied: [0; BITMAP_WORDS],
            classes: (0..NUM_CLASSES).map(|_| Class::default()).collect(),
        }
    }

    /// Smallest class from `from` to `last` that has a cached buffer.
    pub fn first_occupied(&self, from: usize, last: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = self.occupied.get(word)? & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            if word * 64 > last {
                return None;
            }
            bits = *self.occupied.get(word)?;
        }
        let class = word * 64 + bits.trailing_zeros() as usize;
        (class <= last).then_some(class)
    }

    pub fn occupied(&self) -> impl Iterator<Item = usize> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let class = self.first_occupied(from, NUM_CLASSES - 1)?;
            from = class + 1;
            Some(class)
        })
    }

    /// Caches the buffer of entry `index`.
    pub fn push(&mut self, class: usize, index: u32) {
        self.classes[class].free.push(index);
        self.occupied[class / 64] |= 1 << (class % 64);
    }

    /// Takes out the buffer of entry `index`, which is most often the last one in.
    pub fn take_out(&mut self, class: usize, index: u32) {
        let free = &mut self.classes[class].free;
        if free.last() == Some(&index) {
            free.pop();
        } else if let Some(position) = free.iter().position(|&other| other == index) {
            free.remove(position);
        }
        if free.is_empty() {
            self.occupied[class / 64] &= !(1 << (class % 64));
        }
    }
}
