//! The bodies of the fuzz targets, which property tests run, too. Each takes any bytes, and panics where the library does not do
//! what it promises.

pub mod checkpoint;
pub mod pool;
pub mod weights;
