//! Plans without a GPU.

mod backward;
mod branch;
mod forward;
mod parts;
#[cfg(feature = "models")]
mod step;
