//! Assembles a kernel's WGSL from constants, shared fragments and its file.
//!
//! One mechanism for specialisation: constants in front of the text. WGSL's `override` cannot size arrays in registers,
//! which the kernels need for head sizes.

use std::fmt::Write;

use super::Kernel;
use super::forward::ForwardShape;

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path))
    };
}

pub(super) fn assemble(kernel: &Kernel) -> String {
    let mut source = String::new();
    let files: &[&str] = match kernel {
        Kernel::Fill => &[shader!("fill.wgsl")],
        Kernel::Forward(variant) => {
            for (name, value) in variant.constants() {
                // Writing to a string cannot fail.
                let _ = writeln!(source, "const {name}: u32 = {value}u;");
            }
            &[
                shader!("shared/forward_params.wgsl"),
                shader!("shared/merge.wgsl"),
                shader!("shared/block.wgsl"),
                match variant.shape {
                    ForwardShape::Tile => shader!("attention/forward_tile.wgsl"),
                    ForwardShape::Rows => shader!("attention/forward_rows.wgsl"),
                    ForwardShape::Micro => shader!("attention/forward_micro.wgsl"),
                },
            ]
        }
    };
    for file in files {
        source.push_str(file);
    }
    source
}
