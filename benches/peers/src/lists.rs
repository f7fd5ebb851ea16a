//! Free lists by size class, as several projects have them: the classes and caps are theirs, the code is ours.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use testing::traces::Allocator;

use crate::Peer;

/// Buffers of one size that wait, by size, and what exists.
#[derive(Default)]
struct State {
    free: HashMap<u64, u64>,
    creates: u64,
    held_bytes: u64,
}

/// Bytes of the class for a request, and how many of it may wait.
type Classes = fn(u64) -> (u64, u64);

pub struct Lists {
    state: Rc<RefCell<State>>,
    classes: Classes,
}

pub struct Lease {
    state: Rc<RefCell<State>>,
    bytes: u64,
    cap: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        let free = state.free.entry(self.bytes).or_default();
        if *free < self.cap {
            *free += 1;
        } else {
            state.held_bytes -= self.bytes;
        }
    }
}

impl Allocator for Lists {
    type Lease = Lease;

    fn acquire(&mut self, bytes: u64) -> Lease {
        let (bytes, cap) = (self.classes)(bytes);
        let mut state = self.state.borrow_mut();
        match state.free.get_mut(&bytes).filter(|free| **free > 0) {
            Some(free) => *free -= 1,
            None => {
                state.creates += 1;
                state.held_bytes += bytes;
            }
        }
        Lease {
            state: self.state.clone(),
            bytes,
            cap,
        }
    }
}

impl Peer for Lists {
    fn creates(&self) -> u64 {
        self.state.borrow().creates
    }

    fn held_bytes(&self) -> u64 {
        self.state.borrow().held_bytes
    }
}

fn lists(classes: Classes) -> Lists {
    Lists {
        state: Rc::default(),
        classes,
    }
}

/// The next power of two, without caps.
pub fn powers_of_two() -> Lists {
    lists(|bytes| (bytes.next_power_of_two(), u64::MAX))
}

/// Powers of two and the sizes half-way between them, without caps: vello's classes.
pub fn two_a_doubling() -> Lists {
    lists(|bytes| {
        let power = bytes.next_power_of_two();
        let half_way = power / 4 * 3;
        let class = if bytes <= half_way { half_way } else { power };
        (class, u64::MAX)
    })
}

/// Fixed buckets, each with a cap of its own: those of onnxruntime's WebGPU buffer manager. What is larger than all of them is
/// not kept.
pub fn capped_buckets() -> Lists {
    const BUCKETS: [(u64, u64); 26] = [
        (64, 250),
        (128, 200),
        (256, 200),
        (512, 200),
        (2048, 230),
        (4096, 200),
        (8192, 50),
        (16_384, 50),
        (32_768, 50),
        (65_536, 50),
        (131_072, 50),
        (262_144, 50),
        (524_288, 50),
        (1_048_576, 50),
        (2_097_152, 30),
        (4_194_304, 20),
        (8_388_608, 10),
        (12_582_912, 10),
        (16_777_216, 10),
        (26_214_400, 15),
        (33_554_432, 22),
        (44_236_800, 2),
        (58_982_400, 6),
        (67_108_864, 6),
        (134_217_728, 6),
        (167_772_160, 6),
    ];
    lists(|bytes| {
        let bucket = BUCKETS.into_iter().find(|(size, _)| *size >= bytes);
        bucket.unwrap_or((bytes, 0))
    })
}

/// The very size, without caps.
pub fn exact() -> Lists {
    lists(|bytes| (bytes.next_multiple_of(4), u64::MAX))
}
