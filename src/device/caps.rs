//! Limits and traits of a device, as plain data, so that plans can be made without a device.

use super::cooperative_matrix::{CooperativeMatrix, NoCooperativeMatrix};
use super::limits::NEEDS;
use super::tier::KernelTier;
use crate::error::{Error, Result};

/// Limits and traits of a device, as far as plans depend on them: of a [context's](crate::Context::caps), or of one that is not there
/// ([`from_limits`](Self::from_limits)).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceCaps {
    /// Largest buffer in bytes.
    pub(crate) max_buffer_bytes: u64,
    /// Most bytes that one storage binding may cover.
    pub(crate) max_binding_bytes: u64,
    /// Offsets of storage bindings are multiples of this many bytes.
    pub(crate) storage_offset_alignment: u64,
    /// Dynamic offsets of uniform bindings are multiples of this many bytes.
    pub(crate) uniform_offset_alignment: u64,
    /// Most workgroups along one dimension of a grid.
    pub(crate) max_workgroups_per_dimension: u32,
    /// Workgroup memory in bytes. wgpu does not check it, so plans do.
    pub(crate) max_workgroup_memory_bytes: u32,
    /// Whether shaders may use the type f16 ([`SHADER_F16`](wgpu::Features::SHADER_F16)). Tensors in half precision do not need it,
    /// because kernels can also take them apart from 32-bit words.
    pub(crate) shader_f16: bool,
    /// The cooperative matrices that kernels may use, or why there are none. A [`Context`](crate::Context) tests them before
    /// kernels use them.
    pub(crate) cooperative_matrix: std::result::Result<CooperativeMatrix, NoCooperativeMatrix>,
    /// The processor that runs the shaders.
    pub(crate) processor: Processor,
    /// The tier of kernels that the caller asks for ([`KernelOptions::tier`](crate::KernelOptions::tier)).
    pub(crate) tier: Option<KernelTier>,
    /// Most rows of a part of a tensor ([`ContextOptions::part_rows`](crate::ContextOptions::part_rows)).
    pub(crate) part_rows: Option<u64>,
}

/// The processor that runs the shaders, as far as the choice of a kernel depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Processor {
    /// A GPU.
    Gpu,
    /// A CPU that runs shaders in vectors of `lanes` floats.
    Cpu {
        /// Floats in a vector.
        lanes: u32,
        /// Whether a load from an address that all lanes share is one scalar load (lavapipe of Mesa 26 and later). Other drivers
        /// load once per lane.
        uniform_loads: bool,
        /// Whether subgroups have `lanes` lanes and the device has [`SUBGROUP`](wgpu::Features::SUBGROUP) operations, with which a
        /// lane hands a value to the others.
        broadcasts: bool,
    },
}

impl Processor {
    /// Whether kernels of the tier `broadcast` run: on CPUs with subgroups of eight lanes and subgroup operations.
    pub fn has_broadcasts(self) -> bool {
        matches!(
            self,
            Self::Cpu {
                lanes: 8,
                broadcasts: true,
                ..
            }
        )
    }
}

impl DeviceCaps {
    /// Largest buffer in bytes.
    pub fn max_buffer_bytes(&self) -> u64 {
        self.max_buffer_bytes
    }

    /// Most bytes that one storage binding may cover. Larger tensors are bound in windows.
    pub fn max_binding_bytes(&self) -> u64 {
        self.max_binding_bytes
    }

    /// Whether shaders may store f16 ([`SHADER_F16`](wgpu::Features::SHADER_F16)). Tensors in half precision do not need it.
    pub fn shader_f16(&self) -> bool {
        self.shader_f16
    }

    /// The kernels that the caller wants, wherever they can do what is asked ([`KernelOptions::tier`](crate::KernelOptions::tier)).
    pub fn tier(&self) -> Option<KernelTier> {
        self.tier
    }

    /// Bytes of a part of a tensor whose rows have `row_bytes`, the same for all its parts but the last, which may be shorter: as
    /// many whole rows as a buffer holds. Parts begin at whole vec4 and, where a buffer holds so many, at whole blocks of
    /// [`PART_BLOCK`] rows. 0 where a buffer does not hold a row.
    pub(crate) fn part_bytes(&self, row_bytes: u64) -> u64 {
        if row_bytes == 0 {
            return u64::MAX;
        }
        let Some(rows) = self.part_rows else {
            return self.largest_part_bytes(row_bytes);
        };
        let aligned = aligned_rows(row_bytes);
        let rows = rows.max(1).next_multiple_of(aligned);
        let most = self.max_buffer_bytes / row_bytes / aligned * aligned;
        rows.min(most) * row_bytes
    }

    /// As [`part_bytes`](Self::part_bytes), however few rows the caller asks for.
    pub(crate) fn largest_part_bytes(&self, row_bytes: u64) -> u64 {
        if row_bytes == 0 {
            return u64::MAX;
        }
        let most = self.max_buffer_bytes / row_bytes;
        // As large a block as there is.
        let steps = [PART_BLOCK, 4, aligned_rows(row_bytes)];
        let step = steps
            .into_iter()
            .find(|step| most >= *step)
            .unwrap_or(most.max(1));
        most / step * step * row_bytes
    }

    /// The same before the self test of the cooperative matrices that the adapter lists.
    pub(crate) fn without_untested_matrices(self) -> Self {
        Self {
            cooperative_matrix: self
                .cooperative_matrix
                .and(Err(NoCooperativeMatrix::NotTested)),
            ..self
        }
    }

    /// Whether kernels read f16 tensors as the shader type f16; otherwise as 32-bit words with two elements. On CPUs only kernels
    /// with cooperative matrices do, because drivers there load f16s one by one.
    pub(crate) fn reads_f16(&self) -> bool {
        let for_matrices = || self.tier.is_some_and(KernelTier::is_cooperative);
        self.shader_f16 && (self.processor == Processor::Gpu || for_matrices())
    }

    /// A GPU with WebGPU's default limits, which every browser and `wgpu::Limits::default()` grant.
    pub fn webgpu_defaults() -> Self {
        Self {
            max_buffer_bytes: 256 << 20,
            max_binding_bytes: 128 << 20,
            storage_offset_alignment: 256,
            uniform_offset_alignment: 256,
            max_workgroups_per_dimension: 65_535,
            max_workgroup_memory_bytes: 16_384,
            shader_f16: false,
            cooperative_matrix: Err(NoCooperativeMatrix::FeatureOff),
            processor: Processor::Gpu,
            tier: None,
            part_rows: None,
        }
    }

    /// A GPU with such limits and no features, to plan for a device that is not there.
    ///
    /// ```
    /// use dilated_attention::{DeviceCaps, wgpu};
    /// let limits = wgpu::Limits {
    ///     max_storage_buffer_binding_size: 2 << 30,
    ///     max_buffer_size: 4 << 30,
    ///     ..wgpu::Limits::default()
    /// };
    /// assert_eq!(DeviceCaps::from_limits(&limits)?.max_binding_bytes(), 2 << 30);
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_limits(limits: &wgpu::Limits) -> Result<Self> {
        let no_matrix = Err(NoCooperativeMatrix::FeatureOff);
        Self::checked(limits, wgpu::Features::empty(), no_matrix, Processor::Gpu)
    }

    /// The smallest limits that [`new`](Self::new) accepts, the others being WebGPU's defaults: every pass, forward and
    /// backward, has a kernel within them. Longer sequences need larger buffers and bindings, not more of what is here.
    pub fn least_limits() -> wgpu::Limits {
        let mut limits = wgpu::Limits::default();
        for need in NEEDS {
            (need.set)(&mut limits, need.least);
        }
        limits
    }

    /// The capabilities of an adapter whose device was made with `limits` and `features`; `matrices` are the adapter's cooperative
    /// matrices ([`wgpu::Adapter::cooperative_matrix_properties`]).
    ///
    /// # Errors
    /// [`Error::DeviceTooSmall`] when a limit is below [`least_limits`](Self::least_limits), [`Error::InvalidConfig`] when an
    /// alignment is no power of two of at least 32 bytes, which WebGPU demands.
    pub fn new(
        info: &wgpu::AdapterInfo,
        limits: &wgpu::Limits,
        features: wgpu::Features,
        matrices: &[wgpu::CooperativeMatrixProperties],
    ) -> Result<Self> {
        let matrix = CooperativeMatrix::of(info, features, matrices);
        Self::checked(limits, features, matrix, processor(info, features))
    }

    fn checked(
        limits: &wgpu::Limits,
        features: wgpu::Features,
        cooperative_matrix: std::result::Result<CooperativeMatrix, NoCooperativeMatrix>,
        processor: Processor,
    ) -> Result<Self> {
        for need in NEEDS {
            let given = (need.given)(limits);
            if given < need.least {
                return Err(Error::DeviceTooSmall {
                    limit: need.limit,
                    given,
                    need: need.least,
                });
            }
        }
        let alignments = [
            (
                "min_storage_buffer_offset_alignment",
                limits.min_storage_buffer_offset_alignment,
            ),
            (
                "min_uniform_buffer_offset_alignment",
                limits.min_uniform_buffer_offset_alignment,
            ),
        ];
        for (what, given) in alignments {
            if given < 32 || !given.is_power_of_two() {
                return Err(Error::InvalidConfig {
                    what,
                    given: given.to_string(),
                    need: "a power of two of at least 32 bytes",
                });
            }
        }
        let alignment = limits.min_storage_buffer_offset_alignment.into();
        let binding = limits.max_storage_buffer_binding_size;
        if binding < alignment {
            return Err(Error::DeviceTooSmall {
                limit: "max_storage_buffer_binding_size",
                given: binding,
                need: alignment,
            });
        }
        Ok(Self {
            max_buffer_bytes: limits.max_buffer_size & !3,
            // Indices into a binding are 32-bit.
            max_binding_bytes: limits
                .max_storage_buffer_binding_size
                .min(limits.max_buffer_size)
                .min(u64::from(u32::MAX))
                & !3,
            storage_offset_alignment: limits.min_storage_buffer_offset_alignment.into(),
            uniform_offset_alignment: limits.min_uniform_buffer_offset_alignment.into(),
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            cooperative_matrix,
            processor,
            tier: None,
            part_rows: None,
        })
    }
}

/// Devices that nobody has at hand.
#[cfg(feature = "testing")]
impl DeviceCaps {
    /// Devices of every kind that kernels are told apart for: GPUs with WebGPU's default and with more workgroup memory, the
    /// cooperative matrices of each maker (NVIDIA's, those of lavapipe, Apple's), CPUs of each width and kind of driver.
    pub fn of_every_kind() -> Vec<Self> {
        let gpu = Self::webgpu_defaults();
        let matrix = |size, lanes, scalar_pointers| CooperativeMatrix {
            size,
            lanes,
            scalar_pointers,
        };
        let matrices = [
            matrix(16, 32, false),
            matrix(8, 8, false),
            matrix(8, 32, true),
        ];
        let mut kinds = Vec::new();
        for max_workgroup_memory_bytes in [16_384, 32_768, 49_152] {
            let gpu = Self {
                max_workgroup_memory_bytes,
                ..gpu.clone()
            };
            kinds.extend(matrices.map(|matrix| Self {
                shader_f16: true,
                cooperative_matrix: Ok(matrix),
                ..gpu.clone()
            }));
            kinds.push(Self {
                shader_f16: true,
                ..gpu.clone()
            });
            kinds.push(gpu);
        }
        for lanes in [4, 8, 16] {
            for (uniform_loads, broadcasts) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                kinds.push(Self {
                    max_workgroup_memory_bytes: 32_768,
                    shader_f16: true,
                    processor: Processor::Cpu {
                        lanes,
                        uniform_loads,
                        broadcasts,
                    },
                    ..gpu.clone()
                });
            }
        }
        kinds
    }

    /// Offsets of storage bindings are multiples of this many bytes.
    pub fn storage_offset_alignment(&self) -> u64 {
        self.storage_offset_alignment
    }

    /// Most workgroups along one dimension of a grid.
    pub fn max_workgroups_per_dimension(&self) -> u32 {
        self.max_workgroups_per_dimension
    }

    /// Workgroup memory in bytes.
    pub fn max_workgroup_memory_bytes(&self) -> u32 {
        self.max_workgroup_memory_bytes
    }

    /// What executes the shaders.
    pub fn processor(&self) -> Processor {
        self.processor
    }

    /// The cooperative matrices that kernels may use, or why there are none.
    pub fn cooperative_matrix(
        &self,
    ) -> std::result::Result<CooperativeMatrix, NoCooperativeMatrix> {
        self.cooperative_matrix.clone()
    }

    /// The same with smaller or larger bindings.
    pub fn with_max_binding_bytes(self, max_binding_bytes: u64) -> Self {
        Self {
            max_binding_bytes,
            ..self
        }
    }

    /// The same with other workgroup memory.
    pub fn with_max_workgroup_memory_bytes(self, max_workgroup_memory_bytes: u32) -> Self {
        Self {
            max_workgroup_memory_bytes,
            ..self
        }
    }

    /// The same with another processor.
    pub fn with_processor(self, processor: Processor) -> Self {
        Self { processor, ..self }
    }

    /// The same with f16 in shaders and such matrices.
    pub fn with_cooperative_matrix(self, matrix: CooperativeMatrix) -> Self {
        Self {
            shader_f16: true,
            cooperative_matrix: Ok(matrix),
            ..self
        }
    }
}

/// Bytes of a vec4 of f32, the largest element of a kernel's arrays.
const VEC4_BYTES: u64 = 16;

/// Rows of which a part holds whole blocks, so that rows that begin a part are vec4 in a transposed matrix, too.
const PART_BLOCK: u64 = 64;

/// The smallest number of rows that are whole vec4 of f32, for rows that have bytes.
fn aligned_rows(row_bytes: u64) -> u64 {
    // 16 is a power of two, so that all that rows and vec4 have in common are factors of 2.
    VEC4_BYTES >> row_bytes.trailing_zeros().min(VEC4_BYTES.ilog2())
}

fn processor(info: &wgpu::AdapterInfo, features: wgpu::Features) -> Processor {
    if info.device_type != wgpu::DeviceType::Cpu {
        return Processor::Gpu;
    }
    Processor::Cpu {
        lanes: info.subgroup_min_size.clamp(4, 16),
        uniform_loads: mesa_major_version(&info.driver_info).is_some_and(|major| major >= 26),
        broadcasts: features.contains(wgpu::Features::SUBGROUP)
            && info.subgroup_min_size == info.subgroup_max_size,
    }
}

/// "Mesa 26.2.0 (LLVM 22.1.0)" -> 26.
fn mesa_major_version(driver_info: &str) -> Option<u32> {
    let version = driver_info.split("Mesa ").nth(1)?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::mesa_major_version;

    #[test]
    fn mesa_versions_are_read_from_driver_info() {
        assert_eq!(mesa_major_version("Mesa 26.2.1-1 (LLVM 22.1.3)"), Some(26));
        assert_eq!(
            mesa_major_version("Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)"),
            Some(25)
        );
        assert_eq!(mesa_major_version("560.35"), None);
        assert_eq!(mesa_major_version("Mesa git"), None);
    }
}
