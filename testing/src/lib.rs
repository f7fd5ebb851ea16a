//! What tests, benchmarks, fuzz targets and examples share.
//!
//! Unit tests in the library's `src` cannot use this crate: it depends on the library, so for them its types would be those of
//! another crate.

#![warn(missing_docs)]

pub mod cases;
pub mod conformance;
pub mod counting_allocator;
pub mod fuzzing;
pub mod measurement;
pub mod processor;
pub mod traces;
pub mod weight_files;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: counting_allocator::CountingAllocator = counting_allocator::CountingAllocator;
