//! The adapter with one device for everything: the library's contexts, ceilings, timestamps.

use dilated_attention::device::KernelTier;
use dilated_attention::testing::Processor;
use dilated_attention::{Context, ContextOptions, KernelOptions, Result, wgpu};

/// An adapter and what runs on it.
pub struct Machine {
    pub context: Context,
    /// The same with shaders that do not check indices and loops.
    unchecked: Context,
    /// Shapes and types of products that its matrix units offer, with the feature switched on.
    pub matrices: Vec<wgpu::CooperativeMatrixProperties>,
}

impl Machine {
    /// Opens a device with the library's own features and limits, and with what only this harness needs.
    pub async fn open() -> std::result::Result<Self, Box<dyn std::error::Error>> {
        let instance =
            wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = wgpu::util::initialize_adapter_from_env_or_default(&instance, None).await?;
        let extra = wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::SHADER_F16
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let features = Context::recommended_features(&adapter) | (adapter.features() & extra);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("roofline"),
            required_features: features,
            required_limits: Context::recommended_limits(&adapter),
            memory_hints: wgpu::MemoryHints::Performance,
            experimental_features: experimental(),
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await?;
        let matrices = match features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            true => adapter.cooperative_matrix_properties(),
            false => Vec::new(),
        };
        let context = ContextOptions::new()
            .with_adapter_matrices(matrices.clone())
            .on_device(device, queue)?;
        // Without them, kernels do without.
        let _ = context.test_cooperative_matrices().await;
        let unchecked = context.with_kernel_options(&KernelOptions {
            trusted_shaders: true,
            ..Default::default()
        })?;
        Ok(Self {
            context,
            unchecked,
            matrices,
        })
    }

    /// The tier of f16 beside the one that is chosen, where there are two: on a CPU the cooperative matrices, on a GPU that
    /// chooses these the tiles.
    pub fn other_tier(&self) -> Result<Option<(KernelTier, Context)>> {
        let Ok(cooperative) = self.context.cooperative_tier() else {
            return Ok(None);
        };
        let tier = match self.is_software() {
            true => cooperative,
            false => KernelTier::Tile,
        };
        let options = KernelOptions {
            tier: Some(tier),
            ..Default::default()
        };
        Ok(Some((tier, self.context.with_kernel_options(&options)?)))
    }

    /// The contexts to measure on, and whether their shaders check indices and loops.
    pub fn contexts(&self) -> [(&Context, bool); 2] {
        [(&self.context, true), (&self.unchecked, false)]
    }

    pub fn has(&self, features: wgpu::Features) -> bool {
        self.context.device().features().contains(features)
    }

    pub fn is_software(&self) -> bool {
        self.context.caps().processor() != Processor::Gpu
    }
}

/// Permission for features that wgpu calls experimental.
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: what wgpu may get wrong is memory shared between subgroups through cooperative stores. The only shaders here
    // that use the feature keep everything in registers until one store at their end, to a place that nobody reads.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}
