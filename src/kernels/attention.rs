//! What the attention kernels have in common, forward and backward.

use super::params::{params, read};

/// What a dispatch of attention computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output and its softmax state.
    Forward,
    /// Backward: the sweep. Of each row, the sums of the weights and of weights times `dout . v` over its keys.
    Means,
    /// Backward, where gradients are products of matrices: the weights of a window.
    Weights,
    /// Backward: the gradient of the queries.
    Dq,
    /// Backward: the gradient of the keys, from weights.
    Dk,
    /// Backward: the gradient of the values, from weights.
    Dv,
    /// Backward: the gradients of the keys and values.
    DkDv,
}

params! {
    /// Parameters of `geometry.wgsl`, which says what each means.
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

    /// Keys of a dispatch that a row sees at most.
    pub(super) fn keys(params: &[u8]) -> u32 {
        let params: Self = read(params);
        let keys = params.key_row_end.saturating_sub(params.key_row_begin);
        keys.min(params.rows_per_segment)
    }

    /// Rows of a dispatch that see a key at most.
    pub(super) fn rows(params: &[u8]) -> u32 {
        let params: Self = read(params);
        let rows = params.row_end.saturating_sub(params.row_begin);
        rows.min(params.rows_per_segment)
    }
}
