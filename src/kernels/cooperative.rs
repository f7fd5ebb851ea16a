//! Tiles of the attention kernels with cooperative matrices.
//!
//! A tile is as large as workgroup memory allows: 48 KiB (NVIDIA), 32 KiB, or WebGPU's 16 KiB. More subgroups come first, because
//! they share the staged vectors. More staged vectors in a step come second, because they need fewer barriers.

use super::Fields;
use super::family::no_room;
use crate::device::{CooperativeMatrix, DeviceCaps, ElementFormat};
use crate::error::{Error, Result};

/// Largest head size of these kernels, in elements: operands and sums stay in registers.
const MOST_HEAD_DIM: u32 = 128;

/// Most matrices of `size` rows each that a subgroup's rows may be divided into. The shaders unroll loops over them.
const MOST_ROW_BLOCKS: u32 = 4;

/// How an attention kernel with cooperative matrices divides its work among subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoopTile {
    /// The kind of matrices.
    pub matrix: CooperativeMatrix,
    /// Subgroups of a workgroup.
    pub subgroups: u32,
    /// Vectors that a subgroup owns: rows, or keys in the pass for dk and dv.
    pub rows: u32,
    /// Vectors of the other side that are staged in workgroup memory at a time.
    pub staged: u32,
}

impl CoopTile {
    /// Tiles to choose from, the best first, for subgroups that own `rows` vectors.
    pub(super) fn candidates(matrix: CooperativeMatrix, rows: u32) -> impl Iterator<Item = Self> {
        // Two matrices of 16, or one.
        let staged = [32, 16];
        [4, 2, 1]
            .into_iter()
            .flat_map(move |subgroups| staged.map(|staged| (subgroups, staged)))
            .map(move |(subgroups, staged)| Self {
                matrix,
                subgroups,
                rows,
                staged,
            })
    }

    /// The device's matrices for tensors stored as `format`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason why the device has none, [`Error::InvalidConfig`] for another format than f16.
    pub(super) fn matrix_for(
        format: ElementFormat,
        caps: &DeviceCaps,
    ) -> Result<CooperativeMatrix> {
        if format != ElementFormat::F16 {
            return Err(Error::InvalidConfig {
                what: "format of a kernel with cooperative matrices",
                given: format!("{format:?}"),
                need: "F16: other types would lose precision",
            });
        }
        caps.cooperative_matrix
            .clone()
            .map_err(|reason| Error::Unsupported {
                what: "kernels with cooperative matrices".to_owned(),
                given: reason.to_string(),
                need: "such matrices, or kernels of another tier".to_owned(),
            })
    }

    pub(super) fn check_head_dim(head_dim: u32) -> Result<()> {
        if head_dim > MOST_HEAD_DIM {
            return Err(Error::InvalidConfig {
                what: "head_dim of a kernel with cooperative matrices",
                given: head_dim.to_string(),
                need: "at most 128: more does not fit in registers",
            });
        }
        Ok(())
    }

    pub(super) fn no_room(caps: &DeviceCaps) -> Error {
        no_room("kernels with cooperative matrices", caps, "more".to_owned())
    }

    /// Whether kernels with this tile run on a device with `caps`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device has no such matrices, [`Error::InvalidConfig`] for numbers that no device runs.
    pub(super) fn check(&self, format: ElementFormat, caps: &DeviceCaps) -> Result<()> {
        let size = self.matrix.size;
        let whole = |vectors: u32| vectors > 0 && vectors.is_multiple_of(size);
        let threads = self.matrix.lanes.checked_mul(self.subgroups);
        let has = Self::matrix_for(format, caps)?;
        if has != self.matrix {
            return Err(Error::Unsupported {
                what: format!("kernels with the cooperative matrices {}", self.matrix),
                given: format!("its own are {has}"),
                need: "kernels for those".to_owned(),
            });
        }
        if !whole(self.rows)
            || !whole(self.staged)
            || self.row_blocks() > MOST_ROW_BLOCKS
            || !(1..=256).contains(&threads.unwrap_or(0))
        {
            return Err(Error::InvalidConfig {
                what: "tile of a kernel with cooperative matrices",
                given: format!("{self:?}"),
                need: "of whole matrices, at most 4 from top to bottom and 256 lanes together",
            });
        }
        Ok(())
    }

    /// Vectors that a workgroup owns.
    pub fn vectors(&self) -> u32 {
        self.subgroups * self.rows
    }

    /// Number of matrices that the rows of a subgroup are divided into.
    pub(super) fn row_blocks(&self) -> u32 {
        self.rows / self.matrix.size
    }

    /// Number of matrices that the columns of a head are divided into.
    pub(super) fn column_blocks(&self, head_dim: u32) -> u32 {
        head_dim.div_ceil(self.matrix.size)
    }

    /// Bytes of `count` rows of `columns` f16, each padded by 8 elements.
    pub(super) fn f16_bytes(count: u32, columns: u32) -> u32 {
        count * (columns + 8) * 2
    }

    /// Bytes of `count` rows of `columns` f32, each padded by 4 elements.
    pub(super) fn f32_bytes(count: u32, columns: u32) -> u32 {
        count * (columns + 4) * 4
    }

    /// Fields of the shaders.
    pub(super) fn fields(&self) -> Fields {
        matrix_fields(self.matrix)
            .with("subgroups", self.subgroups)
            .with("rows", self.rows)
            .with("staged", self.staged)
    }
}

/// Fields of `matrices.wgsl`, and the lanes of a subgroup.
pub(super) fn matrix_fields(matrix: CooperativeMatrix) -> Fields {
    Fields::new()
        .with("size", matrix.size)
        .with("subgroup", matrix.lanes)
        .with("scalar_pointers", matrix.scalar_pointers)
}
