//! Plans without a GPU.

mod branch;
mod forward;
mod parts;
