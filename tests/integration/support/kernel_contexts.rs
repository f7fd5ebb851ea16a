//! Contexts for tests that run many cases through the same kernels, and the kernels that each can run.
//!
//! They are shared by all tests and live as long as the process: a software driver takes seconds to compile a kernel, and
//! keeps it only with its device.

use std::num::NonZeroUsize;
use std::sync::OnceLock;

use dilated_attention::device::KernelTier;
use dilated_attention::pool::PoolOptions;
use dilated_attention::testing::{
    BackwardFamily, BackwardVariant, ElementFormat, Family, ForwardFamily, ForwardVariant,
    Processor,
};
use dilated_attention::{Context, ContextOptions, DilatedAttentionConfig, wgpu};

use super::contexts::context_with;

/// A context with what it is for.
pub struct TestContext {
    /// For messages.
    pub name: &'static str,
    /// The context.
    pub context: Context,
}

/// WebGPU's default limits without features first, what every browser grants, then the adapter's own limits and features.
///
/// On the first, buffers are filled with NaN before use, so that a read of anything never written shows. On older software drivers
/// it has subgroups: without, it would be given the kernels of GPUs, which take such a driver longer to compile, and
/// this many tests compile many of them.
pub fn kernel_contexts() -> &'static [TestContext] {
    static CONTEXTS: OnceLock<Vec<TestContext>> = OnceLock::new();
    CONTEXTS.get_or_init(|| {
        let own = open("adapter limits", (None, None), false);
        let features = match own.compiles_slowly() {
            true => own.context.device().features() & wgpu::Features::SUBGROUP,
            false => wgpu::Features::empty(),
        };
        let defaults = wgpu::Limits::default();
        vec![
            open("default limits", (Some(defaults), Some(features)), true),
            own,
        ]
    })
}

/// A context whose bindings cover 16 KiB and whose grids are at most 256 wide: tensors of a few hundred tokens already need
/// windows, and some dispatches a second row of workgroups.
pub fn tiny_bindings() -> &'static TestContext {
    static CONTEXT: OnceLock<TestContext> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: 16 << 10,
            max_compute_workgroups_per_dimension: 256,
            ..Default::default()
        };
        open("bindings of 16 KiB", (Some(limits), None), true)
    })
}

/// A context whose tensors lie in parts of 13 rows, as longer ones do where a buffer holds no more; its bindings cover 64 KiB.
pub fn short_parts() -> &'static TestContext {
    static CONTEXT: OnceLock<TestContext> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let limits = wgpu::Limits {
            max_storage_buffer_binding_size: 64 << 10,
            ..Default::default()
        };
        let context = context_with(&ContextOptions {
            limits: Some(limits),
            pool: PoolOptions::default().with_poison(true),
            part_rows: NonZeroUsize::new(13),
            ..Default::default()
        });
        TestContext {
            name: "parts of 13 rows",
            context,
        }
    })
}

/// WebGPU's default limits, with the adapter's features.
pub fn default_limits() -> &'static TestContext {
    static CONTEXT: OnceLock<TestContext> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let limits = Some(wgpu::Limits::default());
        open("default limits", (limits, None), true)
    })
}

fn open(
    name: &'static str,
    (limits, features): (Option<wgpu::Limits>, Option<wgpu::Features>),
    poison: bool,
) -> TestContext {
    let pool = PoolOptions::default().with_poison(poison);
    let context = context_with(&ContextOptions {
        limits,
        features,
        pool,
        ..Default::default()
    });
    TestContext { name, context }
}

impl TestContext {
    /// Whether this is a software driver that takes long to compile a kernel.
    pub fn compiles_slowly(&self) -> bool {
        matches!(
            self.context.caps().processor(),
            Processor::Cpu {
                uniform_loads: false,
                ..
            }
        )
    }

    /// Every forward kernel that this adapter compiles in reasonable time, the one it would choose first.
    pub fn forward_variants(&self, head_dim: usize) -> Vec<ForwardVariant> {
        let caps = self.context.caps();
        let family = ForwardFamily::of(&long(head_dim), ElementFormat::F32);
        let chosen = family.choice(caps).variant;
        let tiers = self.affordable_tiers(head_dim).iter();
        let of_tiers = tiers.filter_map(|tier| family.of_tier(*tier, caps).ok());
        let others = of_tiers.filter(|variant| *variant != chosen);
        std::iter::once(chosen).chain(others).collect()
    }

    /// Every backward kernel that this adapter compiles in reasonable time, the one it would choose first.
    pub fn backward_variants(&self, head_dim: usize) -> Vec<BackwardVariant> {
        let caps = self.context.caps();
        let family = BackwardFamily::of(&long(head_dim), ElementFormat::F32);
        let chosen = family.choice(caps).variant;
        let tiers = self.affordable_tiers(head_dim).iter();
        let of_tiers = tiers.filter_map(|tier| family.of_tier(*tier, caps).ok());
        let others = of_tiers.filter(|variant| *variant != chosen);
        std::iter::once(chosen).chain(others).collect()
    }

    /// The tiers that are tried beside the chosen kernel. A driver that compiles slowly tries them at one size of heads, at which
    /// all special cases run: what differs with the size is the same text on the newest driver, which tries it at many.
    fn affordable_tiers(&self, head_dim: usize) -> &'static [KernelTier] {
        match self.compiles_slowly() && head_dim != 8 {
            true => &[],
            false => &KernelTier::ALL,
        }
    }
}

/// Of long segments; those of whole models in other tests are short.
fn long(head_dim: usize) -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(1, head_dim, &[4096], &[1]).expect("valid")
}
