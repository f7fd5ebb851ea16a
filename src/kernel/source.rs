//! Assembles a kernel's WGSL from constants, shared fragments and its file.
//!
//! One mechanism for specialisation: constants in front of the text. WGSL's `override` cannot size arrays in registers,
//! which the kernels need for head sizes.

use std::fmt::Write;

use super::backward::{BackwardKernel, BackwardShape};
use super::forward::{ForwardShape, ForwardVariant};
use super::matmul::MatmulVariant;
use super::{Cell, Kernel, Storage};
use crate::plan::{CooperativeMatrix, Pass};

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
    let matrix = matrix(kernel);
    if matrix.is_some() {
        source.push_str("enable wgpu_cooperative_matrix;\n");
    }
    for (name, value) in constants(kernel) {
        // Writing to a string cannot fail.
        let _ = writeln!(source, "const {name}: u32 = {value}u;");
    }
    for file in join(&matrix.map_or(Vec::new(), matrix_files), &files(kernel)) {
        source.push_str(file);
    }
    source.push_str(shader!("shared/workgroup.wgsl"));
    for Unrolled {
        name,
        count,
        of_row,
    } in unrolled(kernel)
    {
        let (row, pass) = if of_row { ("r: u32", "r, ") } else { ("", "") };
        let _ = writeln!(source, "fn {name}_each({row}) {{");
        for i in 0..count {
            let _ = writeln!(source, "    {name}({pass}{i}u);");
        }
        source.push_str("}\n");
    }
    source
}

/// Functions that a kernel calls for each of so many numbers, unrolled: an array stays in registers only while all its
/// indices are constants. Written here because the way to do it in WGSL, one function that branches on what to do,
/// multiplies what drivers have to compile before they see which branch is meant: 11 seconds instead of 5.
struct Unrolled {
    name: &'static str,
    count: u32,
    /// It also takes the number of a row, which is passed on.
    of_row: bool,
}

/// Functions of the number alone.
fn each(functions: &[(&'static str, u32)]) -> Vec<Unrolled> {
    let unrolled = functions.iter().map(|&(name, count)| Unrolled {
        name,
        count,
        of_row: false,
    });
    unrolled.collect()
}

fn unrolled(kernel: &Kernel) -> Vec<Unrolled> {
    match kernel {
        Kernel::Forward(ForwardVariant {
            shape: ForwardShape::Coop(tile),
            head_dim,
            ..
        }) => {
            let columns = tile.column_blocks(*head_dim);
            let scores = tile.row_blocks() * tile.staged_blocks();
            each(&[
                ("load_query", columns),
                ("clear_scores", scores),
                ("add_scores", columns * tile.staged_blocks()),
                ("store_scores", scores),
                ("shrink_output", columns),
                ("add_values", columns * tile.staged_blocks()),
                ("write_output", columns),
            ])
        }
        Kernel::Matmul {
            variant: MatmulVariant::Coop(product),
            ..
        } => each(&[
            ("load_left", product.row_blocks),
            ("add_products", product.column_blocks),
            ("write_block", product.row_blocks * product.column_blocks),
        ]),
        Kernel::Forward(variant)
            if matches!(
                variant.shape,
                ForwardShape::Uniform | ForwardShape::Broadcast
            ) =>
        {
            let count = variant.head_dim / 4;
            let mut unrolled =
                each(&["add_scores", "add_values", "shrink_output"].map(|name| (name, count)));
            unrolled.extend(["load_query", "store"].map(|name| Unrolled {
                name,
                count,
                of_row: true,
            }));
            unrolled
        }
        Kernel::Backward(kernel) => unrolled_backward(kernel),
        Kernel::Matmul {
            variant: MatmulVariant::Rows { .. },
            ..
        } => each(&["add_row", "add_stored", "store_row"].map(|name| (name, 64))),
        Kernel::Matmul {
            variant: MatmulVariant::Broadcast { rows, cells, .. },
            ..
        } => each(&[
            ("find_left", rows / 4),
            ("find_right", cells / 2),
            ("load_left", rows / 4),
            ("add_pair", cells / 2),
            ("start_sum", rows * cells),
            ("add_stored", rows * cells),
            ("store_sum", rows * cells),
        ]),
        _ => Vec::new(),
    }
}

fn unrolled_backward(kernel: &BackwardKernel) -> Vec<Unrolled> {
    let (variant, pass) = (kernel.variant(), kernel.pass());
    match variant.shape {
        BackwardShape::Tile => Vec::new(),
        BackwardShape::Uniform => {
            let count = variant.head_dim / 4;
            let functions = ["add_products_a", "add_products_b", "add_to_a", "add_to_b"];
            let mut unrolled = each(&functions.map(|name| (name, count)));
            unrolled.extend(
                ["load_own_a", "load_own_b", "load_sums", "store_sums"].map(|name| Unrolled {
                    name,
                    count,
                    of_row: true,
                }),
            );
            unrolled
        }
        BackwardShape::Products(tile) if kernel.is_product() => {
            let [fours, pairs, _, cells] = tile.counts_of_gradient(variant.head_dim);
            each(&[
                ("find_left", fours),
                ("load_left", fours),
                ("find_right", pairs),
                ("add_pair", pairs),
                ("load_sum", cells),
                ("store_sum", cells),
            ])
        }
        BackwardShape::Products(tile) => {
            let [fours, pairs, rows, cells] = tile.counts_of_scores();
            let mut functions = vec![
                ("find_rows", fours),
                ("load_queries", fours),
                ("load_gradients", fours),
                ("find_keys", pairs),
                ("add_keys", pairs),
                ("add_values", pairs),
                ("find_seen", rows),
                ("clear_sum", cells),
                ("keep_score", cells),
            ];
            match pass {
                Pass::Means => {
                    functions.extend([("find_top", rows), ("weigh", cells), ("end_row", rows)]);
                }
                _ => functions.extend([("find_terms", rows), ("write_weights", cells)]),
            }
            each(&functions)
        }
        BackwardShape::Coop(tile) => {
            let columns = tile.column_blocks(variant.head_dim);
            each(&[
                ("load_own", columns),
                ("clear_products", tile.row_blocks() * tile.staged_blocks()),
                ("add_products", columns * tile.staged_blocks()),
                ("store_products", tile.row_blocks() * tile.staged_blocks()),
                ("add_sums", columns * tile.staged_blocks()),
                ("write_sums", columns),
            ])
        }
    }
}

fn constants(kernel: &Kernel) -> Vec<(&'static str, u32)> {
    match kernel {
        Kernel::Fill => Vec::new(),
        Kernel::Forward(variant) => variant.constants(),
        Kernel::TokenWeights { head_dim, .. } => vec![("HEAD_DIM_VEC4", head_dim / 4)],
        Kernel::Backward(kernel) => kernel.constants(),
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

/// The cooperative matrices that the kernel multiplies.
fn matrix(kernel: &Kernel) -> Option<CooperativeMatrix> {
    match kernel {
        Kernel::Forward(ForwardVariant {
            shape: ForwardShape::Coop(tile),
            ..
        }) => Some(tile.matrix),
        Kernel::Backward(kernel) => match kernel.variant().shape {
            BackwardShape::Coop(tile) => Some(tile.matrix),
            _ => None,
        },
        Kernel::Matmul {
            variant: MatmulVariant::Coop(product),
            ..
        } => Some(product.matrix),
        _ => None,
    }
}

fn matrix_files(matrix: CooperativeMatrix) -> Vec<&'static str> {
    vec![
        match matrix.size {
            8 => shader!("shared/coop_8.wgsl"),
            _ => shader!("shared/coop_16.wgsl"),
        },
        match matrix.scalar_pointers {
            false => shader!("shared/slabs_vec4.wgsl"),
            true => shader!("shared/slabs_scalar.wgsl"),
        },
    ]
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

/// The stored type of elements that are read in fours.
fn fours_file(storage: Storage) -> &'static str {
    match storage {
        Storage::F32 => shader!("shared/fours_f32.wgsl"),
        Storage::F16 => shader!("shared/fours_f16.wgsl"),
        Storage::F16Packed => shader!("shared/fours_f16_packed.wgsl"),
        Storage::Bf16Packed => shader!("shared/fours_bf16_packed.wgsl"),
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
        Kernel::Forward(variant) => {
            let own: &[_] = match variant.shape {
                ForwardShape::Tile => &[shader!("attention/forward_tile.wgsl")],
                ForwardShape::Uniform => &[shader!("attention/forward_uniform.wgsl")],
                ForwardShape::Broadcast => &[
                    shader!("shared/broadcast.wgsl"),
                    shader!("attention/forward_broadcast.wgsl"),
                ],
                ForwardShape::Coop(_) => &[
                    shader!("shared/coop_staged.wgsl"),
                    shader!("attention/forward_coop.wgsl"),
                ],
            };
            let common = [
                shader!("shared/geometry.wgsl"),
                shader!("shared/forward_bindings.wgsl"),
                shader!("shared/merge.wgsl"),
                shader!("shared/block.wgsl"),
            ];
            let softmax: &[_] = match variant.shape {
                ForwardShape::Tile | ForwardShape::Coop(_) => {
                    &[shader!("shared/online_softmax.wgsl")]
                }
                ForwardShape::Uniform | ForwardShape::Broadcast => &[
                    shader!("shared/finite.wgsl"),
                    shader!("shared/forward_rows.wgsl"),
                ],
            };
            let common = join(&common, softmax);
            join(storage_files(variant.storage), &join(&common, own))
        }
        Kernel::TokenWeights { storage, .. } => join(
            storage_files(*storage),
            &[shader!("attention/token_weights.wgsl")],
        ),
        Kernel::Backward(kernel) => backward_files(kernel),
        Kernel::Matmul {
            variant,
            left,
            right,
            result,
            ..
        } => {
            let scalar = *result == Cell::Scalar;
            let stores: &[_] = match (variant, scalar) {
                (MatmulVariant::Broadcast { .. }, _) => &[],
                (MatmulVariant::Rows { .. }, true) => &[shader!("shared/matmul_rows_scalar.wgsl")],
                (MatmulVariant::Rows { .. }, false) => &[shader!("shared/matmul_rows_vec4.wgsl")],
                (_, true) => &[shader!("shared/matmul_tile_scalar.wgsl")],
                (_, false) => &[shader!("shared/matmul_tile_vec4.wgsl")],
            };
            let own: &[_] = match variant {
                MatmulVariant::Rows { .. } => &[shader!("nn/matmul_rows.wgsl")],
                MatmulVariant::Broadcast { .. } => &[
                    shader!("shared/product_broadcast.wgsl"),
                    shader!("nn/matmul_broadcast.wgsl"),
                ],
                MatmulVariant::Tile => &[
                    shader!("shared/matmul_cells.wgsl"),
                    shader!("nn/matmul_tile.wgsl"),
                ],
                MatmulVariant::Coop(_) => &[
                    shader!("shared/matmul_cells.wgsl"),
                    shader!("nn/matmul_coop.wgsl"),
                ],
            };
            let mixed = *right == Storage::F32 && *left != Storage::F32;
            let factors: &[_] = match (variant, mixed) {
                (MatmulVariant::Coop(_) | MatmulVariant::Broadcast { .. }, true) => {
                    &[fours_file(*left), shader!("shared/right_fours_f32.wgsl")]
                }
                (MatmulVariant::Coop(_) | MatmulVariant::Broadcast { .. }, false) => {
                    &[fours_file(*left), shader!("shared/right_fours.wgsl")]
                }
                (_, true) => &[
                    words_file(*left),
                    shader!("shared/matmul_elements.wgsl"),
                    shader!("shared/right_f32.wgsl"),
                ],
                (_, false) => &[
                    words_file(*left),
                    shader!("shared/matmul_elements.wgsl"),
                    shader!("shared/right_words.wgsl"),
                ],
            };
            let common = [
                shader!("shared/activation.wgsl"),
                shader!("shared/matmul.wgsl"),
            ];
            let common = join(factors, &common);
            let common = join(&join(&common, stores), own);
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

fn backward_files(kernel: &BackwardKernel) -> Vec<&'static str> {
    let (variant, pass) = (kernel.variant(), kernel.pass());
    let mut files = join(
        storage_files(variant.storage),
        &[shader!("shared/geometry.wgsl")],
    );
    if kernel.is_product() {
        files.extend([
            shader!("shared/finite.wgsl"),
            shader!("shared/product_broadcast.wgsl"),
            shader!("shared/backward_weights.wgsl"),
            shader!("attention/backward_gradient.wgsl"),
        ]);
        return files;
    }
    files.extend([
        shader!("shared/backward_bindings.wgsl"),
        shader!("shared/backward_softmax.wgsl"),
    ]);
    if pass == Pass::Means {
        files.push(shader!("shared/backward_means.wgsl"));
    }
    let [shared, own]: [&[_]; 2] = match variant.shape {
        BackwardShape::Tile => [
            &[
                shader!("shared/block.wgsl"),
                shader!("shared/backward_tile.wgsl"),
            ],
            match pass {
                Pass::Means => &[shader!("attention/backward_means_tile.wgsl")],
                Pass::Dq => &[shader!("attention/backward_dq_tile.wgsl")],
                _ => &[shader!("attention/backward_dkdv_tile.wgsl")],
            },
        ],
        BackwardShape::Uniform => [
            &[
                shader!("shared/finite.wgsl"),
                shader!("shared/backward_rows.wgsl"),
            ],
            match pass {
                Pass::Means => &[shader!("attention/backward_means_rows.wgsl")],
                Pass::Dq => &[shader!("attention/backward_dq_rows.wgsl")],
                _ => &[shader!("attention/backward_dkdv_rows.wgsl")],
            },
        ],
        BackwardShape::Products(_) => [
            &[
                shader!("shared/finite.wgsl"),
                shader!("shared/product_broadcast.wgsl"),
                shader!("shared/backward_scores.wgsl"),
            ],
            match pass {
                Pass::Means => &[shader!("attention/backward_means_products.wgsl")],
                _ => &[
                    shader!("shared/backward_weights.wgsl"),
                    shader!("attention/backward_weights.wgsl"),
                ],
            },
        ],
        BackwardShape::Coop(_) => [
            &[
                shader!("shared/coop_staged.wgsl"),
                shader!("shared/backward_coop.wgsl"),
            ],
            match pass {
                Pass::Means => &[shader!("attention/backward_means_coop.wgsl")],
                Pass::Dq => &[shader!("attention/backward_dq_coop.wgsl")],
                _ => &[shader!("attention/backward_dkdv_coop.wgsl")],
            },
        ],
    };
    files.extend(shared);
    files.extend(own);
    files
}
