//! Assembles a kernel's WGSL from constants, shared fragments and its file.
//!
//! One mechanism for specialisation: constants in front of the text. WGSL's `override` cannot size arrays in registers,
//! which the kernels need for head sizes.

use std::fmt::Write;

use super::backward::{BackwardShape, BackwardVariant};
use super::forward::ForwardShape;
use super::matmul::MatmulVariant;
use super::{Cell, Kernel, Storage};

macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path))
    };
}

pub(super) fn assemble(kernel: &Kernel) -> String {
    let mut source = String::new();
    if kernel.stores_f16() {
        source.push_str("enable f16;\n");
    }
    for (name, value) in constants(kernel) {
        // Writing to a string cannot fail.
        let _ = writeln!(source, "const {name}: u32 = {value}u;");
    }
    for file in files(kernel) {
        source.push_str(file);
    }
    let unrolled = unrolled(kernel);
    for name in unrolled.of_one {
        let _ = writeln!(source, "fn {name}_each() {{");
        for c in 0..unrolled.count {
            let _ = writeln!(source, "    {name}({c}u);");
        }
        source.push_str("}\n");
    }
    for name in unrolled.of_row_and_column {
        let _ = writeln!(source, "fn {name}_each(r: u32) {{");
        for c in 0..unrolled.count {
            let _ = writeln!(source, "    {name}(r, {c}u);");
        }
        source.push_str("}\n");
    }
    source
}

/// Functions that a kernel calls for each of so many numbers, unrolled: an array stays in registers only while all its indices are
/// constants. Written here because the way to do it in WGSL, one function that branches on what to do, multiplies what
/// drivers have to compile before they see which branch is meant: 11 seconds instead of 5.
#[derive(Default)]
struct Unrolled {
    count: u32,
    /// Of a column, or of a row.
    of_one: &'static [&'static str],
    /// Of a row, which is passed on, and a column.
    of_row_and_column: &'static [&'static str],
}

fn unrolled(kernel: &Kernel) -> Unrolled {
    match kernel {
        Kernel::Forward(variant) if variant.shape != ForwardShape::Tile => Unrolled {
            count: variant.head_dim / 4,
            of_one: &["add_scores", "add_values", "shrink_output"],
            of_row_and_column: &["load_query", "store"],
        },
        Kernel::BackwardMeans(variant)
        | Kernel::BackwardDq(variant)
        | Kernel::BackwardDkDv(variant)
            if variant.shape == BackwardShape::Rows =>
        {
            Unrolled {
                count: variant.head_dim / 4,
                of_one: &[
                    "load_own_a",
                    "load_own_b",
                    "add_products_a",
                    "add_products_b",
                    "add_to_a",
                    "add_to_b",
                    "add_item_to_a",
                    "add_item_to_b",
                    "store_sums",
                ],
                of_row_and_column: &[],
            }
        }
        Kernel::Matmul {
            variant: MatmulVariant::Rows { .. },
            ..
        } => Unrolled {
            count: 64,
            of_one: &["add_row", "add_stored", "store_row"],
            of_row_and_column: &[],
        },
        _ => Unrolled::default(),
    }
}

fn constants(kernel: &Kernel) -> Vec<(&'static str, u32)> {
    match kernel {
        Kernel::Fill => Vec::new(),
        Kernel::Forward(variant) => variant.constants(),
        Kernel::Delta { head_dim, .. } => vec![("HEAD_DIM_VEC4", head_dim / 4)],
        Kernel::BackwardMeans(variant)
        | Kernel::BackwardDq(variant)
        | Kernel::BackwardDkDv(variant) => variant.constants().to_vec(),
        Kernel::Matmul {
            variant,
            transpose_a,
            transpose_b,
            activation,
            ..
        } => {
            let mut constants = variant.constants();
            constants.extend([
                ("TRANSPOSE_A", u32::from(*transpose_a)),
                ("TRANSPOSE_B", u32::from(*transpose_b)),
                ("ACTIVATION", activation.number()),
            ]);
            constants
        }
        Kernel::Activation { activation, .. } | Kernel::ActivationBackward(activation) => {
            vec![("ACTIVATION", activation.number())]
        }
        Kernel::ColumnSums { normalised } => vec![("NORMALISED", u32::from(*normalised))],
        Kernel::Reduce { squares } => vec![("SQUARES", u32::from(*squares))],
        Kernel::SumPartials
        | Kernel::LayerNorm(_)
        | Kernel::LayerNormBackward(_)
        | Kernel::Blend(_)
        | Kernel::Embedding(_)
        | Kernel::EmbeddingBackward
        | Kernel::Xpos(_)
        | Kernel::FromF32(_)
        | Kernel::ToF32(_)
        | Kernel::CrossEntropy
        | Kernel::AdamW => Vec::new(),
    }
}

/// The stored type of four elements.
fn storage_files(storage: Storage) -> &'static [&'static str] {
    match storage {
        Storage::F32 => &[shader!("shared/storage_f32.wgsl")],
        Storage::F16 => &[
            shader!("shared/f16_bits.wgsl"),
            shader!("shared/storage_f16.wgsl"),
        ],
        Storage::F16Packed => &[
            shader!("shared/f16_bits.wgsl"),
            shader!("shared/storage_f16_packed.wgsl"),
        ],
        Storage::Bf16Packed => &[shader!("shared/storage_bf16_packed.wgsl")],
    }
}

/// The stored type of elements that are read one by one.
fn words_file(storage: Storage) -> &'static str {
    match storage {
        Storage::F32 => shader!("shared/words_f32.wgsl"),
        Storage::F16 => shader!("shared/words_f16.wgsl"),
        Storage::F16Packed => shader!("shared/words_f16_packed.wgsl"),
        Storage::Bf16Packed => shader!("shared/words_bf16_packed.wgsl"),
    }
}

/// The stored type of cells.
fn cell_files(cell: Cell) -> Vec<&'static str> {
    match cell {
        Cell::Scalar => vec![shader!("shared/cells_scalar.wgsl")],
        Cell::Vec4(storage) => {
            [storage_files(storage), &[shader!("shared/cells_vec4.wgsl")]].concat()
        }
    }
}

/// Fragments, then others.
fn join(fragments: &[&'static str], others: &[&'static str]) -> Vec<&'static str> {
    [fragments, others].concat()
}

fn files(kernel: &Kernel) -> Vec<&'static str> {
    match kernel {
        Kernel::Fill => vec![shader!("fill.wgsl")],
        Kernel::Forward(variant) => join(
            storage_files(variant.storage),
            &[
                shader!("shared/geometry.wgsl"),
                shader!("shared/forward_bindings.wgsl"),
                shader!("shared/merge.wgsl"),
                shader!("shared/block.wgsl"),
                match variant.shape {
                    ForwardShape::Tile => shader!("shared/online_softmax.wgsl"),
                    _ => shader!("shared/forward_rows.wgsl"),
                },
                match variant.shape {
                    ForwardShape::Tile => shader!("attention/forward_tile.wgsl"),
                    ForwardShape::Uniform => shader!("attention/forward_uniform.wgsl"),
                    ForwardShape::Broadcast => shader!("attention/forward_broadcast.wgsl"),
                },
            ],
        ),
        Kernel::Delta { storage, .. } => {
            join(storage_files(*storage), &[shader!("attention/delta.wgsl")])
        }
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
        Kernel::Matmul {
            variant,
            left,
            result,
            ..
        } => {
            let scalar = *result == Cell::Scalar;
            let [stores, own] = match (variant, scalar) {
                (MatmulVariant::Tile, true) => [
                    shader!("shared/matmul_tile_scalar.wgsl"),
                    shader!("nn/matmul_tile.wgsl"),
                ],
                (MatmulVariant::Tile, false) => [
                    shader!("shared/matmul_tile_vec4.wgsl"),
                    shader!("nn/matmul_tile.wgsl"),
                ],
                (MatmulVariant::Rows { .. }, true) => [
                    shader!("shared/matmul_rows_scalar.wgsl"),
                    shader!("nn/matmul_rows.wgsl"),
                ],
                (MatmulVariant::Rows { .. }, false) => [
                    shader!("shared/matmul_rows_vec4.wgsl"),
                    shader!("nn/matmul_rows.wgsl"),
                ],
            };
            let common = [
                words_file(*left),
                shader!("shared/activation.wgsl"),
                shader!("shared/matmul.wgsl"),
                stores,
                own,
            ];
            join(&cell_files(*result), &common)
        }
        Kernel::SumPartials => vec![shader!("nn/sum_partials.wgsl")],
        Kernel::LayerNorm(cell) => layer_norm_files(*cell, shader!("nn/layer_norm.wgsl")),
        Kernel::LayerNormBackward(cell) => {
            layer_norm_files(*cell, shader!("nn/layer_norm_backward.wgsl"))
        }
        Kernel::ColumnSums { .. } => vec![shader!("nn/column_sums.wgsl")],
        Kernel::Activation { cell, .. } => join(
            &cell_files(*cell),
            &[
                shader!("shared/activation.wgsl"),
                shader!("nn/activation.wgsl"),
            ],
        ),
        Kernel::ActivationBackward(_) => join(
            &cell_files(Cell::Scalar),
            &[
                shader!("shared/activation.wgsl"),
                shader!("nn/activation_backward.wgsl"),
            ],
        ),
        Kernel::Blend(cell) => join(&cell_files(*cell), &[shader!("nn/blend.wgsl")]),
        Kernel::Embedding(cell) => join(&cell_files(*cell), &[shader!("nn/embedding.wgsl")]),
        Kernel::EmbeddingBackward => vec![shader!("nn/embedding_backward.wgsl")],
        Kernel::Xpos(storage) => join(storage_files(*storage), &[shader!("nn/xpos.wgsl")]),
        Kernel::FromF32(storage) => join(storage_files(*storage), &[shader!("nn/from_f32.wgsl")]),
        Kernel::ToF32(storage) => join(storage_files(*storage), &[shader!("nn/to_f32.wgsl")]),
        Kernel::CrossEntropy => vec![
            shader!("shared/rows.wgsl"),
            shader!("nn/cross_entropy.wgsl"),
        ],
        Kernel::Reduce { .. } => vec![shader!("nn/reduce.wgsl")],
        Kernel::AdamW => vec![shader!("nn/adamw.wgsl")],
    }
}

fn layer_norm_files(cell: Cell, own: &'static str) -> Vec<&'static str> {
    join(
        &cell_files(cell),
        &[
            shader!("shared/layer_norm_params.wgsl"),
            shader!("shared/rows.wgsl"),
            shader!("shared/layer_norm_stats.wgsl"),
            own,
        ],
    )
}

fn backward_files(variant: &BackwardVariant, own: &[&'static str]) -> Vec<&'static str> {
    let mut files = join(
        storage_files(variant.storage),
        &[
            shader!("shared/geometry.wgsl"),
            shader!("shared/backward_bindings.wgsl"),
            shader!("shared/backward_softmax.wgsl"),
        ],
    );
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
