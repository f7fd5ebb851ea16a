//! Assembles a kernel's WGSL from constants, shared fragments and its file.
//!
//! One mechanism for specialisation: constants in front of the text. WGSL's `override` cannot size arrays in registers,
//! which the kernels need for head sizes.

use std::fmt::Write;

use super::backward::{BackwardShape, BackwardVariant};
use super::forward::ForwardShape;
use super::matmul::MatmulVariant;
use super::{Cell, Kernel};

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path))
    };
}

pub(super) fn assemble(kernel: &Kernel) -> String {
    let mut source = String::new();
    for (name, value) in constants(kernel) {
        // Writing to a string cannot fail.
        let _ = writeln!(source, "const {name}: u32 = {value}u;");
    }
    for file in files(kernel) {
        source.push_str(file);
    }
    let (functions, count) = unrolled(kernel);
    for name in functions {
        let _ = writeln!(source, "fn {name}_each() {{");
        for i in 0..count {
            let _ = writeln!(source, "    {name}({i}u);");
        }
        source.push_str("}\n");
    }
    source
}

/// Functions that a kernel calls for each of so many numbers, unrolled: an array stays in registers only while all its
/// indices are constants. Written here because the way to do it in WGSL, one function that branches on what to do,
/// multiply what drivers have to compile before they see which branch is meant: 11 seconds instead of 5.
fn unrolled(kernel: &Kernel) -> (&'static [&'static str], u32) {
    match kernel {
        Kernel::BackwardMeans(variant)
        | Kernel::BackwardDq(variant)
        | Kernel::BackwardDkDv(variant)
            if variant.shape == BackwardShape::Rows =>
        {
            let functions = &[
                "load_own_a",
                "load_own_b",
                "add_products_a",
                "add_products_b",
                "add_to_a",
                "add_to_b",
                "add_item_to_a",
                "add_item_to_b",
                "store_sums",
            ];
            (functions, variant.head_dim / 4)
        }
        Kernel::Forward(variant) if variant.shape == ForwardShape::Rows => {
            let functions = &[
                "load_a",
                "load_b",
                "add_scores",
                "add_values",
                "last_score",
                "last_value",
                "store_a",
                "store_b",
            ];
            (functions, variant.head_dim / 4)
        }
        Kernel::Matmul {
            variant: MatmulVariant::Rows { .. },
            ..
        } => (&["add_row", "add_stored", "store_row"], 64),
        _ => (&[], 0),
    }
}

fn constants(kernel: &Kernel) -> Vec<(&'static str, u32)> {
    match kernel {
        Kernel::Fill => Vec::new(),
        Kernel::Forward(variant) => variant.constants().to_vec(),
        Kernel::Delta { head_dim } => vec![("HEAD_DIM_VEC4", head_dim / 4)],
        Kernel::BackwardMeans(variant)
        | Kernel::BackwardDq(variant)
        | Kernel::BackwardDkDv(variant) => variant.constants().to_vec(),
        Kernel::Matmul {
            variant,
            transpose_a,
            transpose_b,
            activation,
        } => {
            let mut constants = variant.constants();
            constants.extend([
                ("TRANSPOSE_A", u32::from(*transpose_a)),
                ("TRANSPOSE_B", u32::from(*transpose_b)),
                ("ACTIVATION", activation.number()),
            ]);
            constants
        }
        Kernel::Activation(activation) | Kernel::ActivationBackward(activation) => {
            vec![("ACTIVATION", activation.number())]
        }
        Kernel::ColumnSums { normalised } => vec![("NORMALISED", u32::from(*normalised))],
        Kernel::Reduce { squares } => vec![("SQUARES", u32::from(*squares))],
        Kernel::SumPartials
        | Kernel::LayerNorm(_)
        | Kernel::LayerNormBackward(_)
        | Kernel::Blend
        | Kernel::Embedding
        | Kernel::EmbeddingBackward
        | Kernel::Xpos
        | Kernel::CrossEntropy
        | Kernel::AdamW => Vec::new(),
    }
}

fn files(kernel: &Kernel) -> Vec<&'static str> {
    match kernel {
        Kernel::Fill => vec![shader!("fill.wgsl")],
        Kernel::Forward(variant) => vec![
            shader!("shared/geometry.wgsl"),
            shader!("shared/forward_bindings.wgsl"),
            shader!("shared/merge.wgsl"),
            shader!("shared/block.wgsl"),
            shader!("shared/online_softmax.wgsl"),
            match variant.shape {
                ForwardShape::Tile => shader!("attention/forward_tile.wgsl"),
                ForwardShape::Rows => shader!("attention/forward_rows.wgsl"),
                ForwardShape::Micro => shader!("attention/forward_micro.wgsl"),
            },
        ],
        Kernel::Delta { .. } => vec![shader!("attention/delta.wgsl")],
        Kernel::BackwardMeans(variant) => backward_files(
            variant,
            &[
                shader!("shared/backward_means.wgsl"),
                match variant.shape {
                    BackwardShape::Tile => shader!("attention/backward_means_tile.wgsl"),
                    BackwardShape::Rows => shader!("attention/backward_means_rows.wgsl"),
                },
            ],
        ),
        Kernel::BackwardDq(variant) => backward_files(
            variant,
            &[match variant.shape {
                BackwardShape::Tile => shader!("attention/backward_dq_tile.wgsl"),
                BackwardShape::Rows => shader!("attention/backward_dq_rows.wgsl"),
            }],
        ),
        Kernel::BackwardDkDv(variant) => backward_files(
            variant,
            &[match variant.shape {
                BackwardShape::Tile => shader!("attention/backward_dkdv_tile.wgsl"),
                BackwardShape::Rows => shader!("attention/backward_dkdv_rows.wgsl"),
            }],
        ),
        Kernel::Matmul { variant, .. } => vec![
            shader!("shared/activation.wgsl"),
            shader!("shared/matmul.wgsl"),
            match variant {
                MatmulVariant::Tile => shader!("nn/matmul_tile.wgsl"),
                MatmulVariant::Rows { .. } => shader!("nn/matmul_rows.wgsl"),
            },
        ],
        Kernel::SumPartials => vec![shader!("nn/sum_partials.wgsl")],
        Kernel::LayerNorm(cell) => layer_norm_files(*cell, shader!("nn/layer_norm.wgsl")),
        Kernel::LayerNormBackward(cell) => {
            layer_norm_files(*cell, shader!("nn/layer_norm_backward.wgsl"))
        }
        Kernel::ColumnSums { .. } => vec![shader!("nn/column_sums.wgsl")],
        Kernel::Activation(_) => vec![
            shader!("shared/activation.wgsl"),
            shader!("nn/activation.wgsl"),
        ],
        Kernel::ActivationBackward(_) => vec![
            shader!("shared/activation.wgsl"),
            shader!("nn/activation_backward.wgsl"),
        ],
        Kernel::Blend => vec![shader!("nn/blend.wgsl")],
        Kernel::Embedding => vec![shader!("nn/embedding.wgsl")],
        Kernel::EmbeddingBackward => vec![shader!("nn/embedding_backward.wgsl")],
        Kernel::Xpos => vec![shader!("nn/xpos.wgsl")],
        Kernel::CrossEntropy => vec![
            shader!("shared/rows.wgsl"),
            shader!("nn/cross_entropy.wgsl"),
        ],
        Kernel::Reduce { .. } => vec![shader!("nn/reduce.wgsl")],
        Kernel::AdamW => vec![shader!("nn/adamw.wgsl")],
    }
}

fn layer_norm_files(cell: Cell, own: &'static str) -> Vec<&'static str> {
    vec![
        match cell {
            Cell::Scalar => shader!("shared/cells_scalar.wgsl"),
            Cell::Vec4 => shader!("shared/cells_vec4.wgsl"),
        },
        shader!("shared/layer_norm_params.wgsl"),
        shader!("shared/rows.wgsl"),
        shader!("shared/layer_norm_stats.wgsl"),
        own,
    ]
}

fn backward_files(variant: &BackwardVariant, own: &[&'static str]) -> Vec<&'static str> {
    let mut files = vec![
        shader!("shared/geometry.wgsl"),
        shader!("shared/backward_bindings.wgsl"),
        shader!("shared/backward_softmax.wgsl"),
    ];
    match variant.shape {
        BackwardShape::Tile => {
            files.push(shader!("shared/block.wgsl"));
            files.push(shader!("shared/backward_tile.wgsl"));
        }
        BackwardShape::Rows => files.push(shader!("shared/backward_rows.wgsl")),
    }
    files.extend(own);
    files
}
