//! Lookup of table rows by id, and the gradient of the table.

use super::params::{LITTLE_WORK, params};
use super::{Access, Fields, KernelSpec, ParamsInfo, VectorWidth};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `embedding.wgsl`, which says what each means.
    EmbeddingParams { rows: u32, width: u32, first_id: u32, num_ids: u32, ids_skip: u32, table_skip: u32, out_skip: u32, accumulate: u32, scale: f32, tiles_x: u32, first_workgroup: u32, grid_width: u32 }
}

params! {
    /// Parameters of `embedding_backward.wgsl`, which says what each means.
    EmbeddingBackwardParams { num_runs: u32, width: u32, first_row: u32, num_rows: u32, first_id: u32, num_ids: u32, dout_skip: u32, table_skip: u32, scale: f32, tiles_x: u32, first_workgroup: u32, grid_width: u32 }
}

/// Looks up rows of an f32 table by their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Embedding {
    /// How the result is stored.
    pub vector_width: VectorWidth,
}

impl KernelSpec for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn fields(&self) -> Fields {
        self.vector_width.fields()
    }

    fn bindings(&self) -> &'static [Access] {
        // ids, table, out
        &[Access::Read, Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<EmbeddingParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        VectorWidth::stored(format)
            .into_iter()
            .map(|vector_width| Self { vector_width })
            .collect()
    }
}

/// Gradient of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EmbeddingBackward;

impl KernelSpec for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding_backward"
    }

    fn fields(&self) -> Fields {
        Fields::new()
    }

    fn bindings(&self) -> &'static [Access] {
        // runs, order, dout, dtable
        &[Access::Read, Access::Read, Access::Read, Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<EmbeddingBackwardParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        LITTLE_WORK
    }

    fn all(_: u32, _: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        vec![Self]
    }
}
