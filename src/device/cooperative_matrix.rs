//! Cooperative matrices: which ones kernels may use on a device, or why there are none.
//!
//! All lanes of a subgroup hold a cooperative matrix together and multiply it in one instruction (tensor cores, simdgroup
//! matrices). wgpu offers them as an experimental feature on Vulkan and Metal. Kernels use f16 factors and f32 sums, and only for
//! tensors stored as f16, so that no f32 silently loses precision.

use std::fmt;

/// The kind of cooperative matrices that kernels use on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CooperativeMatrix {
    /// Rows and columns of each of the three matrices of a product: 8 or 16.
    pub size: u32,
    /// Lanes of every subgroup.
    pub lanes: u32,
    /// Whether they are loaded and stored through pointers to scalars (Metal); otherwise through pointers to vec4.
    pub scalar_pointers: bool,
}

/// Why a device has no cooperative matrices that kernels may use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NoCooperativeMatrix {
    /// The device was made without `EXPERIMENTAL_COOPERATIVE_MATRIX` or without `SHADER_F16`: the adapter lacks them, the options
    /// left them out, or the application made the device without them.
    FeatureOff,
    /// The backend has no cooperative matrices (DX12).
    Backend(wgpu::Backend),
    /// The adapter lists no product of size 8 x 8 x 8 or 16 x 16 x 16 with f16 factors and f32 sums.
    NoSuchSize,
    /// Subgroups do not have a fixed number of lanes that kernels support.
    SubgroupSize {
        /// Fewest lanes.
        min: u32,
        /// Most lanes.
        max: u32,
    },
    /// The adapter lists matrices, but they were not tested yet; call
    /// [`Context::test_cooperative_matrices`](crate::Context::test_cooperative_matrices).
    NotTested,
    /// The device did not compile or run the product of the self test.
    SelfTestFailed(String),
    /// The device computed a wrong product in the self test.
    SelfTestWrong {
        /// Row of the first wrong element.
        row: u32,
        /// Column of the first wrong element.
        column: u32,
        /// The element that the device computed, as text.
        given: String,
        /// The correct element, as text.
        expected: String,
    },
}

impl fmt::Display for NoCooperativeMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FeatureOff => f.write_str(
                "the device was made without EXPERIMENTAL_COOPERATIVE_MATRIX or SHADER_F16",
            ),
            Self::Backend(backend) => write!(f, "{backend} has no cooperative matrices"),
            Self::NoSuchSize => f.write_str(
                "the adapter lists no product of 8 x 8 x 8 or 16 x 16 x 16 with f16 factors and f32 sums",
            ),
            Self::SubgroupSize { min, max } => {
                write!(f, "subgroups have {min} to {max} lanes, not a fixed number")
            }
            Self::NotTested => f.write_str(
                "what the adapter lists was not tested on the device; Context::test_cooperative_matrices does",
            ),
            Self::SelfTestFailed(reason) => write!(f, "the product of the self test failed: {reason}"),
            Self::SelfTestWrong {
                row,
                column,
                given,
                expected,
            } => write!(
                f,
                "element ({row}, {column}) of the product of the self test was {given} instead of {expected}"
            ),
        }
    }
}

impl CooperativeMatrix {
    /// The largest matrices that kernels may use on a device with `features` whose adapter lists `offered`.
    ///
    /// # Errors
    /// The reason why there are none.
    pub fn of(
        info: &wgpu::AdapterInfo,
        features: wgpu::Features,
        offered: &[wgpu::CooperativeMatrixProperties],
    ) -> Result<Self, NoCooperativeMatrix> {
        if !features.contains(Self::FEATURES) {
            return Err(NoCooperativeMatrix::FeatureOff);
        }
        let lists = |size| {
            offered.iter().any(|product| {
                [product.m_size, product.n_size, product.k_size] == [size; 3]
                    && product.ab_type == wgpu::CooperativeScalarType::F16
                    && product.cr_type == wgpu::CooperativeScalarType::F32
            })
        };
        let (min, max) = (info.subgroup_min_size, info.subgroup_max_size);
        let unfixed = NoCooperativeMatrix::SubgroupSize { min, max };
        match info.backend {
            // On Apple's GPUs with such matrices, subgroups have 32 lanes. The numbers in `info` are bounds for any Metal device.
            wgpu::Backend::Metal if lists(8) => Ok(Self {
                size: 8,
                lanes: 32,
                scalar_pointers: true,
            }),
            wgpu::Backend::Vulkan if lists(16) && min == max && min == 32 => Ok(Self {
                size: 16,
                lanes: 32,
                scalar_pointers: false,
            }),
            wgpu::Backend::Vulkan if lists(8) && min == max && [8, 16, 32].contains(&min) => {
                Ok(Self {
                    size: 8,
                    lanes: min,
                    scalar_pointers: false,
                })
            }
            wgpu::Backend::Vulkan if lists(8) || lists(16) => Err(unfixed),
            wgpu::Backend::Vulkan | wgpu::Backend::Metal => Err(NoCooperativeMatrix::NoSuchSize),
            backend => Err(NoCooperativeMatrix::Backend(backend)),
        }
    }

    /// The features that a device needs for cooperative matrices.
    pub const FEATURES: wgpu::Features =
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);
}

impl fmt::Display for CooperativeMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "coop{} ({} lanes)", self.size, self.lanes)
    }
}
