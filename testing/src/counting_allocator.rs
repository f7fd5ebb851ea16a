//! Counts what each thread allocates: for the claims that a hit allocates nothing, and a hostile file little.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting. It counts in programs that make it theirs:
///
/// ```
/// use testing::counting_allocator::{CountingAllocator, allocations_of_this_thread};
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator;
///
/// let before = allocations_of_this_thread();
/// drop(Box::new(5));
/// assert_eq!(allocations_of_this_thread(), before + 1);
/// ```
pub struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Allocations of the calling thread so far.
pub fn allocations_of_this_thread() -> u64 {
    ALLOCATIONS.get()
}

/// Bytes that the calling thread allocated so far, whether or not they were freed.
pub fn bytes_allocated_by_this_thread() -> u64 {
    BYTES.get()
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        BYTES.set(BYTES.get() + layout.size() as u64);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}
