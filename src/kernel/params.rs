//! Parameter structs as kernels read them from a uniform buffer. Tests compare every field's offset with the shader's.

/// Structs that a kernel takes as its parameters.
pub trait KernelParams: bytemuck::Pod {
    /// Name and offset of each field, in order.
    const FIELDS: &'static [(&'static str, usize)];
}

/// Declares one.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[expect(missing_docs, reason = "documented once, in the shader")]
        pub struct $name {
            $(pub $field: $ty,)*
        }

        impl KernelParams for $name {
            const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
        }
    };
}

params! {
    /// Parameters of `fill.wgsl`, which says what each means.
    FillParams { first_word: u32, num_words: u32, value: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of the attention kernels; `shared/geometry.wgsl` says what each means.
    AttentionParams { seq_len: u32, valid_len: u32, key_len: u32, valid_key_len: u32, num_heads: u32, head_begin: u32, head_count: u32, offset_base: u32, offset_div: u32, offset_mod: u32, segment_length: u32, dilation_rate: u32, rows_per_segment: u32, output_stride: u32, segment_begin: u32, segment_count: u32, row_begin: u32, row_end: u32, key_row_begin: u32, key_row_end: u32, flags: u32, scale: f32, scale_log2e: f32, out_scale: f32, q_token0: u32, q_skip: u32, kv_token0: u32, kv_skip: u32, out_token0: u32, out_skip: u32, state_skip: u32, terms_skip: u32, first_workgroup: u32, grid_width: u32, num_workgroups: u32 }
}

impl AttentionParams {
    /// A row sees no row after itself.
    pub const CAUSAL: u32 = 1;
    /// Rows that are not real count as keys of score 0 and value 0 in this dispatch.
    pub const ZERO_KEYS: u32 = 2;
    /// Merge into what is there instead of writing.
    pub const MERGE: u32 = 4;
    /// Rows that are not real are written too, with a zero query.
    pub const PHANTOM_ROWS: u32 = 8;
    /// The sweep is over one branch's keys, and shares are divided by the forward's sum.
    pub const DETACHED: u32 = 16;
}

params! {
    /// Parameters of `attention/token_weights.wgsl`, which says what each means.
    TokenWeightsParams { num_heads: u32, head_begin: u32, head_count: u32, num_keys: u32, dilation_rate: u32, has_query: u32, q_skip: u32, k_skip: u32, state_skip: u32, out_skip: u32, out_stride: u32, scale_log2e: f32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/matmul.wgsl`, which says what each means.
    MatmulParams { rows: u32, columns: u32, inner: u32, a_skip: u32, a_stride: u32, b_skip: u32, b_stride: u32, c_skip: u32, c_stride: u32, bias_skip: u32, residual_skip: u32, residual_scale: f32, flags: u32, split: u32, split_stride: u32, tiles_x: u32, tiles_y: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/sum_partials.wgsl`, which says what each means.
    SumPartialsParams { count: u32, num_partials: u32, partials_skip: u32, stride: u32, out_skip: u32, accumulate: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `shared/layer_norm_params.wgsl`, which says what each means.
    LayerNormParams { rows: u32, width: u32, x_skip: u32, y_skip: u32, out_skip: u32, stats_skip: u32, gain_skip: u32, bias_skip: u32, accumulate: u32, eps: f32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/column_sums.wgsl`, which says what each means.
    ColumnSumsParams { rows: u32, width: u32, x_skip: u32, dy_skip: u32, stats_skip: u32, partials_skip: u32, block: u32, tiles_x: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/activation.wgsl`, which says what each means.
    ElementwiseParams { count: u32, x_skip: u32, y_skip: u32, out_skip: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/blend.wgsl`, which says what each means.
    BlendParams { count: u32, x_skip: u32, y_skip: u32, out_skip: u32, x_scale: f32, y_scale: f32, mode: u32, drop_below: u32, seed_low: u32, seed_high: u32, first_low: u32, first_high: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/embedding.wgsl`, which says what each means.
    EmbeddingParams { rows: u32, width: u32, first_id: u32, num_ids: u32, ids_skip: u32, table_skip: u32, out_skip: u32, accumulate: u32, scale: f32, tiles_x: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/embedding_backward.wgsl`, which says what each means.
    EmbeddingBackwardParams { num_runs: u32, width: u32, first_row: u32, num_rows: u32, first_id: u32, num_ids: u32, dout_skip: u32, table_skip: u32, scale: f32, tiles_x: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/xpos.wgsl`, which says what each means.
    XposParams { num_places: u32, num_heads: u32, quads: u32, seq_len: u32, first_row: u32, skip: u32, coarse_begin: u32, first_position: u32, block: u32, centre: u32, scale_per_position: f32, inverse: u32, tiles_x: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/cross_entropy.wgsl`, which says what each means.
    CrossEntropyParams { rows: u32, width: u32, logits_skip: u32, labels_skip: u32, losses_skip: u32, gradient_scale: f32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/reduce.wgsl`, which says what each means.
    ReduceParams { count: u32, x_skip: u32, out_skip: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `nn/adamw.wgsl`, which says what each means.
    AdamWParams { count: u32, skip: u32, learning_rate: f32, beta_1: f32, beta_2: f32, eps: f32, weight_decay: f32, correction_1: f32, correction_2: f32, max_norm: f32, gradient_scale: f32, first_workgroup: u32, grid_width: u32 }
}

impl MatmulParams {
    /// Adds to the result instead of writing it.
    pub const ACCUMULATE: u32 = 1;
    /// Adds a bias.
    pub const BIAS: u32 = 2;
    /// Adds a scaled residual.
    pub const RESIDUAL: u32 = 4;
}

impl BlendParams {
    /// There is no second term.
    pub const Y_NONE: u32 = 0;
    /// The second term is what the result holds.
    pub const Y_OUT: u32 = 1;
    /// The second term has a binding of its own.
    pub const Y_BOUND: u32 = 2;
}
