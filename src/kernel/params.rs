//! Parameter structs as kernels read them from a uniform buffer. Tests compare every field's offset with the shader's.

/// Structs that a kernel takes as its parameters.
pub trait KernelParams: bytemuck::Pod {}

/// Parameters of `fill.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct FillParams {
    /// First word of the range, in the binding.
    pub first_word: u32,
    /// Words to fill.
    pub num_words: u32,
    /// Value of each.
    pub value: u32,
    /// Workgroups along x.
    pub grid_width: u32,
}

impl KernelParams for FillParams {}

/// Parameters of the attention kernels; `shaders/shared/geometry.wgsl` says what each means.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[expect(missing_docs, reason = "documented once, in the shader")]
pub struct AttentionParams {
    pub seq_len: u32,
    pub valid_len: u32,
    pub key_len: u32,
    pub valid_key_len: u32,
    pub num_heads: u32,
    pub head_begin: u32,
    pub head_count: u32,
    pub offset_base: u32,
    pub offset_div: u32,
    pub offset_mod: u32,
    pub segment_length: u32,
    pub dilation_rate: u32,
    pub rows_per_segment: u32,
    pub output_stride: u32,
    pub segment_begin: u32,
    pub segment_count: u32,
    pub row_begin: u32,
    pub row_end: u32,
    pub key_row_begin: u32,
    pub key_row_end: u32,
    pub flags: u32,
    pub scale_log2e: f32,
    pub out_scale: f32,
    pub q_token0: u32,
    pub q_skip: u32,
    pub kv_token0: u32,
    pub kv_skip: u32,
    pub out_token0: u32,
    pub out_skip: u32,
    pub lse_skip: u32,
    pub terms_skip: u32,
    pub grid_width: u32,
    pub num_workgroups: u32,
}

impl KernelParams for AttentionParams {}

impl AttentionParams {
    /// A row sees no row after itself.
    pub const CAUSAL: u32 = 1;
    /// Rows that are not real count as keys of score 0 and value 0 in this dispatch.
    pub const ZERO_KEYS: u32 = 2;
    /// Merge into what is there instead of writing.
    pub const MERGE: u32 = 4;
    /// Rows that are not real are written too, with a zero query.
    pub const PHANTOM_ROWS: u32 = 8;
    /// No later dispatch has more keys for these rows in this branch.
    pub const LAST_KEYS: u32 = 16;
}

/// Parameters of `delta.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DeltaParams {
    /// Rows times heads.
    pub num_places: u32,
    /// Elements of the bindings before the first place: of the output and its gradient, vec4.
    pub out_skip: u32,
    /// Of the LSE.
    pub lse_skip: u32,
    /// Of the terms.
    pub terms_skip: u32,
    /// Workgroups along x.
    pub grid_width: u32,
}

impl KernelParams for DeltaParams {}
