//! Plans without a GPU.

mod backward;
mod branch;
mod forward;
#[cfg(feature = "models")]
mod needs;
mod packed;
mod parts;
#[cfg(feature = "models")]
mod step;
