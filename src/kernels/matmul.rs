//! Products of matrices: their kernels, and which of them a device gets.
//!
//! | tier | shader | for |
//! |---|---|---|
//! | tile | `matmul/matmul_tile.wgsl` | GPUs; other software drivers |
//! | coop | `matmul/matmul_coop.wgsl` | GPUs with cooperative matrices, factors stored as f16 |
//! | rows | `software/matmul_rows.wgsl` | CPUs whose driver loads an address that all lanes share once, where broadcasts are slower or do not run |
//! | broadcast | `software/matmul_broadcast.wgsl` | CPUs with subgroups of eight lanes, for factors and results of rows of vec4; newer drivers for those of a linear layer, whose sums run along stored rows |

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
    /// Adds to the result instead of writing it.
    pub const ACCUMULATE: u32 = 1;
    /// Adds a bias.
    pub const BIAS: u32 = 2;
    /// Adds a scaled residual.
    pub const RESIDUAL: u32 = 4;
}

/// How the work is laid out. All compute the same; see the shader files for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatmulVariant {
    /// Tiles of both factors in workgroup memory.
    Tile,
    /// Cooperative matrices.
    Coop(CoopProduct),
    /// Four columns a lane in registers; groups of lanes lie beside each other.
    Rows(LaneGroups),
    /// Rows of a lane in registers, whose columns are handed from lane to lane.
    Broadcast(BroadcastTile),
}

/// How the kernel with cooperative matrices lays its work out: two by two subgroups, each with a block of c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoopProduct {
    /// The matrices.
    pub matrix: CooperativeMatrix,
    /// Matrices from top to bottom of a subgroup's block.
    pub row_blocks: u32,
    /// Matrices beside each other in it.
    pub column_blocks: u32,
    /// Inner elements that are staged at a time.
    pub staged: u32,
}

impl CoopProduct {
    /// The largest block that fits.
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

    /// Rows and columns of the workgroup's tile.
    pub(crate) fn tile(&self) -> [u32; 2] {
        [self.row_blocks, self.column_blocks].map(|blocks| 2 * blocks * self.matrix.size)
    }

    /// Bytes of workgroup memory, at most.
    pub fn workgroup_memory_bytes(&self) -> u32 {
        let [rows, columns] = self.tile();
        // Padding is least along the longer side, so this is what it takes untransposed or more.
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

/// What the choice of a product's kernel depends on.
#[derive(Clone, Copy, Debug)]
pub struct MatmulFamily {
    /// Columns of the result.
    pub columns: u64,
    /// How the factors are stored.
    pub factors: [ElementFormat; 2],
    /// Whether they are stored transposed.
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

    /// A linear layer's product, in f32: its weights are stored transposed.
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
                (MatmulVariant::Tile, false) => 15,
                (_, false) => 25,
            },
        };
        Some(Duration::from_secs(seconds))
    }

    fn key(&self) -> String {
        let names = self.factors.map(ElementFormat::name);
        // Numbers of columns that are too large for a field are those of no layer.
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
    /// [`Error::Unsupported`] or [`Error::InvalidConfig`] with the reason why there is none for such factors on such a device.
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

    /// Whether the kernel takes factors that are stored so on a device with `caps`.
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

    /// The kernel for sums of `inner` elements: this one wherever it can be. `in_vec4s` tells whether sums, rows and windows are all
    /// multiples of 4 elements long.
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

    /// Rows and columns that one workgroup computes.
    pub fn tile(self) -> [u64; 2] {
        match self {
            Self::Tile => [64, 64],
            Self::Coop(product) => product.tile().map(u64::from),
            Self::Rows(lanes) => [64, u64::from(4 * lanes.threads())],
            Self::Broadcast(tile) => tile.tile(),
        }
    }

    /// Long sums over few tiles are split until there are about this many workgroups.
    pub fn wanted_workgroups(self) -> u64 {
        match self {
            Self::Tile | Self::Coop(_) | Self::Broadcast(_) => 256,
            // As each is large, enough to even out a few cores.
            Self::Rows(_) => 16,
        }
    }

    /// Whether factors are read as vec4.
    fn reads_vec4(self) -> bool {
        matches!(self, Self::Coop(_) | Self::Broadcast(_))
    }
}

/// Product of two matrices, either transposed, with a bias, an activation and a residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatmulKernel {
    /// How the work is laid out.
    pub variant: MatmulVariant,
    /// The left factor is stored transposed.
    pub transpose_a: bool,
    /// The right factor is stored transposed.
    pub transpose_b: bool,
    /// Applied to the product and bias.
    pub activation: Activation,
    /// How the left factor is stored; the bias is f32.
    pub left: ElementFormat,
    /// How the right factor is stored: f32, or as the left one.
    pub right: ElementFormat,
    /// How the result and the residual are stored.
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

    /// Left factors, right factors and results of one type, or each of the last two f32; for narrow to wide results.
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
