//! What can be tuned: passes with several kernels that compute the same, and what their compilation is known to cost.

use std::fmt;
use std::time::Duration;

use super::choice::Choice;
use crate::config::{DilatedAttentionConfig, Mask};
use crate::error::Result;
use crate::kernel::Storage;
use crate::kernel::backward::{BackwardShape, BackwardVariant};
use crate::kernel::forward::{ForwardShape, ForwardVariant};
use crate::kernel::matmul::MatmulVariant;
use crate::plan::{DeviceFacts, Processor};

/// A kernel that may suit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate<V> {
    /// The kernel.
    pub variant: V,
    /// What its compilation is known to take on this kind of driver; `None` for far too long.
    pub compile_time: Option<Duration>,
}

/// A pass with several kernels.
pub(crate) trait Task {
    /// The kernels.
    type Variant: Copy + PartialEq + fmt::Debug + fmt::Display;

    /// What a winner is remembered under: all that the probe depends on.
    fn key(&self) -> String;

    /// The kernel that the adapter's facts suggest.
    fn suggested(&self, facts: &DeviceFacts) -> Choice<Self::Variant>;

    /// All that run on the device, with what their compilation costs.
    fn candidates(&self, facts: &DeviceFacts) -> Vec<Candidate<Self::Variant>>;
}

/// The forward over segments of a configuration's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForwardTask(pub Segments);

/// The backward over segments of a configuration's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackwardTask(pub Segments);

/// A linear layer's product with so many columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProductTask {
    pub columns: u64,
}

/// What the choice of an attention kernel can depend on, of a configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments {
    pub head_dim: u32,
    /// Rows of the shortest segment, rounded up to a power of two, at most [`MOST_ROWS`](Self::MOST_ROWS).
    pub rows: u32,
    pub mask: Mask,
}

impl ProductTask {
    /// Which factors of a linear layer's product are stored transposed: the weights.
    pub const TRANSPOSED: [bool; 2] = [false, true];
}

impl Segments {
    /// Half of them is as many as the largest tile of a kernel has.
    const MOST_ROWS: u32 = 2048;

    pub fn of(config: &DilatedAttentionConfig) -> Self {
        Self {
            head_dim: config.head_dim(),
            rows: config
                .rows_of_shortest_segment()
                .min(Self::MOST_ROWS)
                .next_power_of_two(),
            mask: config.get_mask(),
        }
    }

    /// One branch of such segments.
    ///
    /// # Errors
    /// None, since the numbers are those of a valid configuration.
    pub fn config(&self, num_heads: u32) -> Result<DilatedAttentionConfig> {
        let config = DilatedAttentionConfig::new(num_heads, self.head_dim, &[self.rows], &[1])?;
        Ok(config.mask(self.mask))
    }

    fn key(&self, pass: &str) -> String {
        let Self {
            head_dim,
            rows,
            mask,
        } = self;
        format!("{pass}: heads of {head_dim}, segments of {rows} rows, {mask:?} mask")
    }
}

/// What is known of a shape's compilation for heads of `head_dim`, with its first run, on 2 cores. `None`: too long to try.
///
/// As [`Context::warm_up`](crate::Context::warm_up) reports it on lavapipe of Mesa 25.0.7 and 26.2.6; drivers of GPUs are
/// assumed to take a second.
fn forward_compile_time(
    shape: ForwardShape,
    head_dim: u32,
    facts: &DeviceFacts,
) -> Option<Duration> {
    let seconds = match (facts.processor, shape) {
        (Processor::Gpu, ForwardShape::Tile) => 1,
        // Rows in registers are more than a GPU's lane has.
        (Processor::Gpu, ForwardShape::Uniform | ForwardShape::Broadcast) => return None,
        // Known to be faster on GPUs and slower on CPUs; f16 only, and what is measured is f32.
        (_, ForwardShape::Coop(_)) => return None,
        (Processor::Cpu { uniform_loads, .. }, shape) => match (shape, uniform_loads) {
            (ForwardShape::Tile, true) => 3,
            (ForwardShape::Uniform | ForwardShape::Broadcast, true) => 2,
            (ForwardShape::Tile, false) => 18,
            (ForwardShape::Broadcast, false) => 12,
            (ForwardShape::Uniform, false) if head_dim <= 8 => 12,
            (ForwardShape::Uniform | ForwardShape::Coop(_), _) => return None,
        },
    };
    Some(Duration::from_secs(seconds))
}

/// As [`forward_compile_time`], of all kernels of a backward.
fn backward_compile_time(
    shape: BackwardShape,
    head_dim: u32,
    facts: &DeviceFacts,
) -> Option<Duration> {
    let seconds = match (facts.processor, shape) {
        (Processor::Gpu, BackwardShape::Tile) => 1,
        (Processor::Gpu, BackwardShape::Uniform | BackwardShape::Products(_))
        | (_, BackwardShape::Coop(_)) => return None,
        (Processor::Cpu { uniform_loads, .. }, shape) => match (shape, uniform_loads) {
            (BackwardShape::Tile, true) => 5,
            (BackwardShape::Uniform, true) if head_dim <= 32 => 2,
            (BackwardShape::Uniform, true) if head_dim <= 128 => 8,
            (BackwardShape::Tile, false) => 16,
            (BackwardShape::Products(_), true) => 4,
            (BackwardShape::Products(_), false) => 12,
            (BackwardShape::Uniform | BackwardShape::Coop(_), _) => return None,
        },
    };
    Some(Duration::from_secs(seconds))
}

/// As [`forward_compile_time`], of a product.
fn product_compile_time(variant: MatmulVariant, facts: &DeviceFacts) -> Option<Duration> {
    let seconds = match (facts.processor, variant) {
        (Processor::Gpu, MatmulVariant::Tile) => 1,
        (Processor::Gpu, MatmulVariant::Rows { .. } | MatmulVariant::Broadcast { .. })
        | (_, MatmulVariant::Coop(_)) => return None,
        (Processor::Cpu { uniform_loads, .. }, variant) => match (variant, uniform_loads) {
            (MatmulVariant::Tile, true) => 1,
            (MatmulVariant::Rows { .. }, true) => 2,
            (MatmulVariant::Broadcast { .. }, true) => 1,
            (MatmulVariant::Broadcast { .. }, false) => 4,
            (MatmulVariant::Tile, false) => 15,
            (MatmulVariant::Rows { .. }, false) => 25,
            (MatmulVariant::Coop(_), _) => return None,
        },
    };
    Some(Duration::from_secs(seconds))
}

impl Task for ForwardTask {
    type Variant = ForwardVariant;

    fn key(&self) -> String {
        self.0.key("forward")
    }

    fn suggested(&self, facts: &DeviceFacts) -> Choice<ForwardVariant> {
        match self.0.config(1) {
            Ok(config) => ForwardVariant::choice(&config, Storage::F32, facts),
            // Cannot be; the tile for GPUs suits everything.
            Err(_) => {
                ForwardVariant::with_shape(ForwardShape::Tile, self.0.head_dim, Storage::F32, facts)
                    .into()
            }
        }
    }

    fn candidates(&self, facts: &DeviceFacts) -> Vec<Candidate<ForwardVariant>> {
        let head_dim = self.0.head_dim;
        let Ok(config) = self.0.config(1) else {
            return Vec::new();
        };
        ForwardShape::ALL
            .into_iter()
            .map(|shape| Candidate {
                variant: ForwardVariant::fitting(shape, &config, Storage::F32, facts),
                compile_time: forward_compile_time(shape, head_dim, facts),
            })
            .filter(|candidate| candidate.variant.check(head_dim, facts).is_ok())
            .collect()
    }
}

impl Task for BackwardTask {
    type Variant = BackwardVariant;

    fn key(&self) -> String {
        self.0.key("backward")
    }

    fn suggested(&self, facts: &DeviceFacts) -> Choice<BackwardVariant> {
        match self.0.config(1) {
            Ok(config) => BackwardVariant::choice(&config, Storage::F32, facts),
            // Cannot be; the smallest tile suits everything.
            Err(_) => BackwardVariant::with_shape(
                BackwardShape::Tile,
                self.0.head_dim,
                Storage::F32,
                facts,
            )
            .into(),
        }
    }

    fn candidates(&self, facts: &DeviceFacts) -> Vec<Candidate<BackwardVariant>> {
        let head_dim = self.0.head_dim;
        let Ok(config) = self.0.config(1) else {
            return Vec::new();
        };
        let mut variants = Vec::new();
        for shape in BackwardShape::all(head_dim, facts) {
            let fitting = BackwardVariant::fitting(shape, &config, Storage::F32, facts);
            variants.push(fitting);
            if shape == BackwardShape::Uniform && fitting.lane_groups > 1 {
                variants.push(BackwardVariant {
                    lane_groups: fitting.lane_groups / 2,
                    ..fitting
                });
            }
        }
        variants
            .into_iter()
            .map(|variant| Candidate {
                variant,
                compile_time: backward_compile_time(variant.shape, head_dim, facts),
            })
            .filter(|candidate| candidate.variant.check(head_dim, facts).is_ok())
            .collect()
    }
}

impl Task for ProductTask {
    type Variant = MatmulVariant;

    fn key(&self) -> String {
        format!("product: {} columns", self.columns)
    }

    fn suggested(&self, facts: &DeviceFacts) -> Choice<MatmulVariant> {
        MatmulVariant::choice(self.columns, [Storage::F32; 2], Self::TRANSPOSED, facts)
    }

    fn candidates(&self, facts: &DeviceFacts) -> Vec<Candidate<MatmulVariant>> {
        let mut variants = vec![MatmulVariant::Tile];
        if let Processor::Cpu { lanes, .. } = facts.processor {
            let rows = MatmulVariant::rows(self.columns, lanes);
            variants.push(rows);
            if let MatmulVariant::Rows {
                lanes,
                lane_groups: groups @ 8..,
            } = rows
            {
                variants.push(MatmulVariant::Rows {
                    lanes,
                    lane_groups: groups / 2,
                });
            }
            if facts.processor.has_broadcasts() {
                variants.push(MatmulVariant::broadcast(facts));
            }
        }
        variants
            .into_iter()
            .map(|variant| Candidate {
                variant,
                compile_time: product_compile_time(variant, facts),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors() -> Vec<DeviceFacts> {
        let cpu = |lanes, uniform_loads, broadcasts| Processor::Cpu {
            lanes,
            uniform_loads,
            broadcasts,
        };
        [
            Processor::Gpu,
            cpu(4, false, true),
            cpu(8, false, false),
            cpu(8, false, true),
            cpu(8, true, true),
            cpu(16, true, false),
        ]
        .map(|processor| DeviceFacts {
            processor,
            ..DeviceFacts::webgpu_defaults()
        })
        .to_vec()
    }

    fn check<T: Task>(task: &T, facts: &DeviceFacts) {
        let (suggested, candidates) = (task.suggested(facts).variant, task.candidates(facts));
        let found = candidates
            .iter()
            .find(|candidate| candidate.variant == suggested);
        // Also what makes a remembered winner findable: it is looked up among the candidates.
        let found = found.unwrap_or_else(|| panic!("{}: {suggested} is no candidate", task.key()));
        assert!(
            found.compile_time.is_some(),
            "{}: {suggested} is dear",
            task.key()
        );
        let names: std::collections::HashSet<String> = candidates
            .iter()
            .map(|candidate| format!("{:?}", candidate.variant))
            .collect();
        assert_eq!(
            names.len(),
            candidates.len(),
            "{}: names tell them apart",
            task.key()
        );
    }

    #[test]
    fn what_the_facts_suggest_is_an_affordable_candidate() {
        for facts in processors() {
            for head_dim in [4, 16, 64, 96, 128, 256] {
                for (segment, rate) in [(1, 1), (33, 1), (65, 2), (2048, 16), (65_536, 1)] {
                    let config = DilatedAttentionConfig::new(2, head_dim, &[segment], &[rate])
                        .expect("valid");
                    let segments = Segments::of(&config);
                    check(&ForwardTask(segments), &facts);
                    check(&BackwardTask(segments), &facts);
                    // The rounded rows are as good as the real ones.
                    assert_eq!(
                        ForwardTask(segments).suggested(&facts),
                        ForwardVariant::choice(&config, Storage::F32, &facts)
                    );
                    assert_eq!(
                        BackwardTask(segments).suggested(&facts),
                        BackwardVariant::choice(&config, Storage::F32, &facts)
                    );
                }
            }
            for columns in [1, 20, 256, 768, 3072, 100_000] {
                check(&ProductTask { columns }, &facts);
            }
        }
    }

    #[test]
    fn kernels_that_compile_for_a_minute_are_dear() {
        let facts = DeviceFacts {
            processor: Processor::Cpu {
                lanes: 8,
                uniform_loads: false,
                broadcasts: true,
            },
            ..DeviceFacts::webgpu_defaults()
        };
        let config = DilatedAttentionConfig::new(1, 64, &[512], &[1]).expect("valid");
        let candidates = ForwardTask(Segments::of(&config)).candidates(&facts);
        let uniform = candidates
            .iter()
            .find(|candidate| candidate.variant.shape == ForwardShape::Uniform);
        assert_eq!(uniform.expect("is listed").compile_time, None);
    }
}
