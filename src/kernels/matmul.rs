//! The kernels of matrix products, and which of them a device gets.
//!
//! | tier | shader | for |
//! |---|---|---|
//! | tile | `matmul/matmul_tile.wgsl` | GPUs; other software drivers |
//! | coop | `matmul/matmul_coop.wgsl` | GPUs with cooperative matrices, f16 factors |
//! | rows | `software/matmul_rows.wgsl` | CPUs whose driver loads an address that all lanes share once |
//! | broadcast | `software/matmul_broadcast.wgsl` | other CPUs with subgroups of 8 lanes |
//!
//! `broadcast` takes widths, strides and sums that are multiples of 4 only. On drivers that suit `rows` it is still the faster one
//! for linear layers, whose sums run along the stored rows of both factors, and takes those.

use std::fmt;
use std::time::Duration;

use super::activation::Activation;
use super::choice::reasons;
use super::cooperative::{CoopTile, matrix_fields};
use super::family::{Family, gpu_tiers};
use super::params::{params, read};
use super::software::LaneGroups;
use super::software::matmul::{self as software, BroadcastTile};
use super::{Access, Fields, KernelSpec, ParamsInfo, VectorWidth};
use crate::device::{CooperativeMatrix, DeviceCaps, ElementFormat, KernelTier, Processor};
use crate::error::{Error, Result};

params! {
    /// Parameters of `product.wgsl`, which says what each means.
    MatmulParams { rows: u32, columns: u32, inner: u32, a_skip: u32, a_stride: u32, b_skip: u32, b_stride: u32, c_skip: u32, c_stride: u32, bias_skip: u32, residual_skip: u32, residual_scale: f32, flags: u32, split: u32, split_stride: u32, tiles_x: u32, tiles_y: u32, first_workgroup: u32, grid_width: u32 }
}

impl MatmulParams {
    /// The product is added to the result instead of overwriting it.
    pub const ACCUMULATE: u32 = 1;
    /// A bias is added.
    pub const BIAS: u32 = 2;
    /// A scaled residual is added.
    pub const RESIDUAL: u32 = 4;
}

/// How a product divides its work among threads. All variants have the same result; the shader files say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatmulVariant {
    /// Tiles of both factors in workgroup memory.
    Tile,
    /// Cooperative matrices.
    Coop(CoopProduct),
    /// Each lane owns four columns of the result. All lanes read the same elements of the left factor.
    Rows(LaneGroups),
    /// Each lane owns rows of the result. Subgroup operations hand the right factor from lane to lane.
    Broadcast(BroadcastTile),
}

/// How the kernel with cooperative matrices divides its work: a workgroup has 2 x 2 subgroups, and each computes a block of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoopProduct {
    /// The kind of matrices.
    pub matrix: CooperativeMatrix,
    /// Number of matrices along the rows of a subgroup's block.
    pub row_blocks: u32,
    /// Number of matrices along the columns of a subgroup's block.
    pub column_blocks: u32,
    /// Elements of the inner dimension that are staged at a time.
    pub staged: u32,
}

impl CoopProduct {
    /// The largest of the known blocks that fits in the device's workgroup memory; the smallest one if none fits.
    pub(crate) fn with(matrix: CooperativeMatrix, caps: &DeviceCaps) -> Self {
        let of_rows = |row_blocks| Self {
            matrix,
            row_blocks,
            column_blocks: 2,
            staged: 32,
        };
        let fits =
            |product: &Self| product.workgroup_memory_bytes() <= caps.max_workgroup_memory_bytes;
        Some(of_rows(4)).filter(fits).unwrap_or(of_rows(2))
    }

    /// Rows and columns of the result that a workgroup computes.
    pub(crate) fn tile(&self) -> [u32; 2] {
        [self.row_blocks, self.column_blocks].map(|blocks| 2 * blocks * self.matrix.size)
    }

    /// Upper bound on the bytes of workgroup memory, over factors that are transposed or not.
    pub fn workgroup_memory_bytes(&self) -> u32 {
        let [rows, columns] = self.tile();
        // Each row is padded, so a factor takes the most memory when its longer side is the number of rows.
        CoopTile::f16_bytes(rows.max(self.staged), rows.min(self.staged))
            + CoopTile::f16_bytes(columns.max(self.staged), columns.min(self.staged))
            + CoopTile::f32_bytes(4 * self.matrix.size, self.matrix.size)
    }

    fn fields(&self) -> Fields {
        matrix_fields(self.matrix)
            .with("subgroups_x", 2)
            .with("subgroups_y", 2)
            .with("row_blocks", self.row_blocks)
            .with("column_blocks", self.column_blocks)
            .with("staged", self.staged)
    }
}

/// The kernels of a matrix product, to choose from.
#[derive(Clone, Copy, Debug)]
pub struct MatmulFamily {
    /// Columns of the result.
    pub columns: u64,
    /// Element formats of the left and the right factor.
    pub factors: [ElementFormat; 2],
    /// Whether the left and the right factor are stored transposed.
    pub transposed: [bool; 2],
}

impl MatmulFamily {
    /// A product of untransposed factors.
    pub fn of_factors(columns: u64, factors: [ElementFormat; 2]) -> Self {
        Self {
            columns,
            factors,
            transposed: [false; 2],
        }
    }

    /// The product of an f32 linear layer, whose weights, the right factor, are stored transposed.
    pub fn of_linear_layer(columns: u64) -> Self {
        Self {
            columns,
            factors: [ElementFormat::F32; 2],
            transposed: [false, true],
        }
    }
}

impl Family for MatmulFamily {
    type Variant = MatmulVariant;

    fn suited(&self, caps: &DeviceCaps) -> Vec<(KernelTier, &'static str)> {
        match caps.processor {
            Processor::Gpu => gpu_tiers(caps),
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => {
                let sums_along_rows = self.transposed == [false, true];
                let broadcast = (KernelTier::Broadcast, reasons::BROADCASTS_OF_VEC4);
                let rows = (KernelTier::Rows, reasons::UNIFORM_LOADS);
                match sums_along_rows {
                    true => vec![broadcast, rows],
                    false => vec![rows],
                }
            }
            Processor::Cpu { .. } => vec![
                (KernelTier::Broadcast, reasons::BROADCASTS),
                (KernelTier::Tile, reasons::LOADS_PER_LANE),
            ],
        }
    }

    fn of_device_tier(&self, tier: KernelTier, caps: &DeviceCaps) -> Result<MatmulVariant> {
        Ok(match tier {
            KernelTier::Tile => self.tile(),
            KernelTier::Rows => MatmulVariant::Rows(software::rows(self.columns, caps)),
            KernelTier::Broadcast => MatmulVariant::Broadcast(BroadcastTile::choose(caps)),
            KernelTier::Coop8 | KernelTier::Coop16 => {
                MatmulVariant::cooperative(self.factors, caps)?
            }
        })
    }

    fn tile(&self) -> MatmulVariant {
        MatmulVariant::Tile
    }

    fn check(&self, variant: MatmulVariant, caps: &DeviceCaps) -> Result<()> {
        variant.check(self.factors, caps)
    }

    fn alternatives(&self, variant: MatmulVariant) -> Vec<MatmulVariant> {
        match variant {
            MatmulVariant::Rows(lanes) if lanes.groups >= 8 => {
                let groups = lanes.groups / 2;
                vec![MatmulVariant::Rows(LaneGroups { groups, ..lanes })]
            }
            _ => Vec::new(),
        }
    }

    fn compile_time(&self, variant: MatmulVariant, caps: &DeviceCaps) -> Option<Duration> {
        let seconds = match (caps.processor, variant) {
            (_, MatmulVariant::Coop(_)) => return None,
            (Processor::Gpu, MatmulVariant::Tile) => 1,
            (Processor::Gpu, _) => return None,
            (Processor::Cpu { uniform_loads, .. }, variant) => match (variant, uniform_loads) {
                (MatmulVariant::Rows(_), true) => 2,
                (_, true) => 1,
                (MatmulVariant::Broadcast(_), false) => 4,
                (MatmulVariant::Tile, false) => 2,
                (_, false) => 25,
            },
        };
        Some(Duration::from_secs(seconds))
    }

    fn key(&self) -> String {
        let names = self.factors.map(ElementFormat::name);
        // No layer has more columns than a field can hold.
        let columns = u32::try_from(self.columns).unwrap_or(u32::MAX);
        Fields::new()
            .with("columns", columns)
            .with("left_format", names[0])
            .with("right_format", names[1])
            .with("transpose_a", self.transposed[0])
            .with("transpose_b", self.transposed[1])
            .key("matmul")
    }

    fn variant_key(variant: &MatmulVariant) -> String {
        variant.fields().key(variant.name())
    }
}

impl MatmulVariant {
    /// The kernel with cooperative matrices.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::InvalidConfig`] with the reason why there is none for these factors on this device.
    fn cooperative(factors: [ElementFormat; 2], caps: &DeviceCaps) -> Result<Self> {
        let other = factors
            .into_iter()
            .find(|format| *format != ElementFormat::F16);
        let matrix = CoopTile::matrix_for(other.unwrap_or(ElementFormat::F16), caps)?;
        let product = CoopProduct::with(matrix, caps);
        if product.workgroup_memory_bytes() > caps.max_workgroup_memory_bytes {
            return Err(CoopTile::no_room(caps));
        }
        Ok(Self::Coop(product))
    }

    /// Whether the kernel runs with factors of these element formats on a device with `caps`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device lacks what it needs, [`Error::InvalidConfig`] for numbers that no device runs.
    pub fn check(self, factors: [ElementFormat; 2], caps: &DeviceCaps) -> Result<()> {
        match self {
            Self::Tile => Ok(()),
            Self::Rows(lanes) => lanes.check(),
            Self::Broadcast(tile) => {
                tile.check()?;
                KernelTier::Broadcast.check(caps)
            }
            Self::Coop(_) if Self::cooperative(factors, caps)? != self => {
                Err(Error::InvalidConfig {
                    what: "kernel of a product",
                    given: format!("{self:?}"),
                    need: "the one that is chosen for the device",
                })
            }
            Self::Coop(_) => Ok(()),
        }
    }

    /// The kernel for a product with `inner` elements in each sum and `columns` columns: this one if it can do that, else one that
    /// can. `in_vec4s` says whether sums, rows and windows are all multiples of 4 elements long.
    pub(crate) fn for_lengths(
        self,
        [inner, columns]: [u64; 2],
        in_vec4s: bool,
        caps: &DeviceCaps,
    ) -> Self {
        let Self::Broadcast(tile) = self else {
            return self;
        };
        if in_vec4s {
            return Self::Broadcast(tile.for_sums_of(inner));
        }
        match caps.processor {
            Processor::Cpu {
                uniform_loads: true,
                ..
            } => Self::Rows(software::rows(columns, caps)),
            _ => Self::Tile,
        }
    }

    /// Name of the shader.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tile => "matmul_tile",
            Self::Coop(_) => "matmul_coop",
            Self::Rows(_) => "matmul_rows",
            Self::Broadcast(_) => "matmul_broadcast",
        }
    }

    fn fields(self) -> Fields {
        match self {
            Self::Tile => Fields::new(),
            Self::Coop(product) => product.fields(),
            Self::Rows(lanes) => software::rows_fields(lanes),
            Self::Broadcast(tile) => tile.fields(),
        }
    }

    /// Rows and columns of the result that one workgroup computes.
    pub fn tile(self) -> [u64; 2] {
        match self {
            Self::Tile => [64, 64],
            Self::Coop(product) => product.tile().map(u64::from),
            Self::Rows(lanes) => [64, u64::from(4 * lanes.threads())],
            Self::Broadcast(tile) => tile.tile(),
        }
    }

    /// Number of workgroups to aim at: products with long sums and few tiles are split along the sums until they have about this many.
    pub fn wanted_workgroups(self) -> u64 {
        match self {
            Self::Tile | Self::Coop(_) | Self::Broadcast(_) => 256,
            // Each of these workgroups is large: 16 are enough to keep a few cores evenly busy.
            Self::Rows(_) => 16,
        }
    }

    /// Whether the kernel reads its factors as vec4.
    fn reads_vec4(self) -> bool {
        matches!(self, Self::Coop(_) | Self::Broadcast(_))
    }
}

/// Product of two matrices, each as it is or transposed, with an optional bias, activation and residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatmulKernel {
    /// How the work is divided among threads.
    pub variant: MatmulVariant,
    /// Whether the left factor is stored transposed.
    pub transpose_a: bool,
    /// Whether the right factor is stored transposed.
    pub transpose_b: bool,
    /// Activation, applied to the sum of product and bias.
    pub activation: Activation,
    /// Element format of the left factor. The bias is always f32.
    pub left: ElementFormat,
    /// Element format of the right factor: f32, or that of the left factor.
    pub right: ElementFormat,
    /// Element format of the result and the residual, and how many elements are written at a time.
    pub result: VectorWidth,
}

impl KernelSpec for MatmulKernel {
    fn name(&self) -> &'static str {
        self.variant.name()
    }

    fn fields(&self) -> Fields {
        let factors = match self.variant.reads_vec4() {
            true => "vec4",
            false => "scalar",
        };
        self.variant
            .fields()
            .with("transpose_a", self.transpose_a)
            .with("transpose_b", self.transpose_b)
            .with("activation", self.activation.word())
            .with("factors", factors)
            .with("left_format", self.left.name())
            .with("right_format", self.right.name())
            .and(self.result.fields())
    }

    fn bindings(&self) -> &'static [Access] {
        // a, b, bias, residual, c
        &[
            Access::Read,
            Access::Read,
            Access::Read,
            Access::Read,
            Access::ReadWrite,
        ]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<MatmulParams>()
    }

    fn workgroup_work(&self, params: &[u8]) -> u64 {
        let params: MatmulParams = read(params);
        let [rows, columns] = self.variant.tile();
        rows * columns * u64::from(params.inner.min(params.split))
    }

    fn tier(&self) -> Option<KernelTier> {
        Some(match self.variant {
            MatmulVariant::Tile => KernelTier::Tile,
            MatmulVariant::Coop(product) => KernelTier::of_matrix(product.matrix),
            MatmulVariant::Rows(_) => KernelTier::Rows,
            MatmulVariant::Broadcast(_) => KernelTier::Broadcast,
        })
    }

    fn workgroup_memory_bytes(&self) -> Option<u32> {
        match self.variant {
            MatmulVariant::Coop(product) => Some(product.workgroup_memory_bytes()),
            _ => None,
        }
    }

    /// Right factor and result may each be f32 or `format`, the type of the left factor. Several numbers of columns cover the tiles
    /// of narrow and wide results.
    fn all(_: u32, format: ElementFormat, caps: &DeviceCaps) -> Vec<Self> {
        let mut kernels = Vec::new();
        let stored = [
            (ElementFormat::F32, VectorWidth::smallest(format)),
            (ElementFormat::F32, VectorWidth::Scalar),
            (format, VectorWidth::smallest(format)),
        ];
        for columns in [1, 64, 256, 768, 1024, 3072] {
            let family = MatmulFamily::of_factors(columns, [format; 2]);
            for variant in family.of_all_tiers(caps) {
                for (right, result) in stored {
                    let result = match (variant, result) {
                        (MatmulVariant::Broadcast(_), VectorWidth::Scalar) => {
                            VectorWidth::Vec4(ElementFormat::F32)
                        }
                        (_, result) => result,
                    };
                    if matches!(variant, MatmulVariant::Coop(_)) && right != format {
                        continue;
                    }
                    for transposed in 0..4 {
                        kernels.extend(Activation::ALL.map(|activation| Self {
                            variant,
                            transpose_a: transposed & 1 != 0,
                            transpose_b: transposed & 2 != 0,
                            activation,
                            left: format,
                            right,
                            result,
                        }));
                    }
                }
            }
        }
        kernels
    }
}

impl fmt::Display for MatmulVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.tile();
        write!(
            f,
            "{} ({rows} x {columns} elements a workgroup)",
            self.name()
        )
    }
}
