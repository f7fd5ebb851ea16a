//! Contexts for tests that run many cases through the same kernels, and the kernels that each can run.
//!
//! They are shared by all tests and live as long as the process: a software driver takes seconds to compile a kernel, and
//! keeps it only with its device.

use std::sync::OnceLock;

use dilated_attention::kernel::Storage;
use dilated_attention::kernel::backward::{BackwardShape, BackwardVariant};
use dilated_attention::kernel::forward::{ForwardShape, ForwardVariant};
use dilated_attention::plan::Processor;
use dilated_attention::pool::PoolOptions;
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
/// On the first, buffers are filled with NaN before use, so that a read of anything never written shows.
pub fn kernel_contexts() -> &'static [TestContext] {
    static CONTEXTS: OnceLock<Vec<TestContext>> = OnceLock::new();
    CONTEXTS.get_or_init(|| {
        let defaults = wgpu::Limits::default();
        let none = Some(wgpu::Features::empty());
        vec![
            open("default limits", (Some(defaults), none), true),
            open("adapter limits", (None, None), false),
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
    let pool = PoolOptions::default().poison(poison);
    let context = context_with(&ContextOptions {
        limits,
        features,
        pool,
        ..Default::default()
    });
    TestContext { name, context }
}

impl TestContext {
    /// Every forward kernel that this adapter runs in reasonable time, the one it would choose first.
    pub fn forward_variants(&self, head_dim: u32) -> Vec<ForwardVariant> {
        let facts = self.context.facts();
        // Of long segments; those of whole models in other tests are short.
        let config = DilatedAttentionConfig::new(1, head_dim, &[4096], &[1]).expect("valid");
        let chosen = ForwardVariant::choose(&config, Storage::F32, facts);
        let mut variants = vec![chosen];
        for shape in ForwardShape::ALL {
            let affordable = match (shape, facts.processor) {
                (ForwardShape::Tile | ForwardShape::Coop(_), _) | (_, Processor::Gpu) => true,
                (ForwardShape::Broadcast, _) => true,
                // Older drivers load a shared address once per lane: a minute to compile at 64 elements.
                (ForwardShape::Uniform, Processor::Cpu { uniform_loads, .. }) => {
                    uniform_loads || head_dim <= 8
                }
            };
            let variant = ForwardVariant::with_shape(shape, head_dim, Storage::F32, facts);
            if affordable && shape != chosen.shape && variant.check(head_dim, facts).is_ok() {
                variants.push(variant);
            }
        }
        variants
    }

    /// Every backward kernel that this adapter runs in reasonable time, the one it would choose first.
    pub fn backward_variants(&self, head_dim: u32) -> Vec<BackwardVariant> {
        let facts = self.context.facts();
        // Of long segments; those of whole models in other tests are short.
        let config = DilatedAttentionConfig::new(1, head_dim, &[4096], &[1]).expect("valid");
        let chosen = BackwardVariant::choose(&config, Storage::F32, facts);
        let mut variants = vec![chosen];
        for shape in BackwardShape::all(head_dim, facts) {
            let affordable = match (shape, facts.processor) {
                (BackwardShape::Tile | BackwardShape::Coop(_) | BackwardShape::Products(_), _)
                | (_, Processor::Gpu) => true,
                (BackwardShape::Uniform, Processor::Cpu { uniform_loads, .. }) => {
                    uniform_loads || head_dim <= 4
                }
            };
            let variant = BackwardVariant::with_shape(shape, head_dim, Storage::F32, facts);
            if affordable && shape != chosen.shape && variant.check(head_dim, facts).is_ok() {
                variants.push(variant);
            }
        }
        variants
    }
}
