//! Timed probes: each measures one candidate on the device, its first run, which compiles, and the median of a few runs after it.

use std::time::{Duration, Instant};

use super::search::Timing;
use crate::attention::DilatedAttention;
use crate::config::{AttentionShape, DilatedAttentionConfig};
use crate::context::Context;
use crate::device::{DType, DeviceCaps, Processor};
use crate::error::Result;
use crate::kernels::Family;
use crate::kernels::Segments;
use crate::kernels::attention_backward::{BackwardFamily, BackwardVariant};
use crate::kernels::attention_forward::{ForwardFamily, ForwardVariant};
use crate::kernels::matmul::{MatmulFamily, MatmulVariant};
use crate::ops::Matmul;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Number of runs after the first.
const RUNS: usize = 5;

/// A function that records the work to be timed.
pub(super) type Work = Box<dyn Fn(&mut Recorder) -> Result<()>>;

/// A family whose candidates can be timed.
pub(super) trait Probe: Family {
    /// Uploads inputs and returns the work to be timed.
    fn prepare(&self, context: &Context, variant: Self::Variant) -> Result<Work>;
}

/// Times one candidate.
pub(super) fn measure<P: Probe>(
    probe: &P,
    context: &Context,
    variant: P::Variant,
) -> Result<Timing> {
    let work = probe.prepare(context, variant)?;
    let run = || -> Result<Duration> {
        let begin = Instant::now();
        let mut recorder = context.recorder("probe");
        work(&mut recorder)?;
        recorder.submit()?.wait()?;
        Ok(begin.elapsed())
    };
    let first = run()?;
    let mut runs = (0..RUNS).map(|_| run()).collect::<Result<Vec<_>>>()?;
    let total = first + runs.iter().sum::<Duration>();
    runs.sort_unstable();
    Ok(Timing {
        first,
        run: runs[RUNS / 2],
        total,
    })
}

/// Options and shape of an attention that is just large enough to keep the device busy.
fn problem(
    segments: &Segments,
    context: &Context,
) -> Result<(DilatedAttentionConfig, AttentionShape)> {
    let (num_heads, tokens) = match context.caps().processor {
        Processor::Gpu => (16, 4096),
        Processor::Cpu { .. } => (1, 512),
    };
    // One branch with these segments.
    let [head_dim, rows] = [segments.head_dim, segments.rows].map(|n| n as usize);
    let config = DilatedAttentionConfig::new(num_heads, head_dim, &[rows], &[1])?;
    let config = config.with_mask(segments.mask);
    Ok((config, AttentionShape::new(1, tokens.max(rows))?))
}

/// A tensor of small numbers that repeat only after 1009 elements. Values hardly matter for the time, but extreme ones would.
fn numbers(recorder: &mut Recorder, label: &'static str, shape: &[usize]) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let data: Vec<f32> = (0..count)
        .map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5)
        .collect();
    recorder.upload(label, shape, &data)
}

fn dims(config: &DilatedAttentionConfig, shape: &AttentionShape) -> [usize; 4] {
    [1, shape.seq_len(), config.num_heads(), config.head_dim()]
}

impl Probe for ForwardFamily {
    fn prepare(&self, context: &Context, variant: ForwardVariant) -> Result<Work> {
        let (config, shape) = problem(self.segments(), context)?;
        let dims = dims(&config, &shape);
        let attention = DilatedAttention::new(context, config)?.with_forward_kernel(variant)?;
        let mut recorder = context.recorder("probe");
        let q = numbers(&mut recorder, "q", &dims)?;
        recorder.submit()?;
        Ok(Box::new(move |recorder| {
            attention.forward(recorder, &q, &q, &q).map(drop)
        }))
    }
}

impl Probe for BackwardFamily {
    fn prepare(&self, context: &Context, variant: BackwardVariant) -> Result<Work> {
        let (config, shape) = problem(self.segments(), context)?;
        let dims = dims(&config, &shape);
        let attention = DilatedAttention::new(context, config)?.with_backward_kernels(variant)?;
        let mut recorder = context.recorder("probe");
        let q = numbers(&mut recorder, "q", &dims)?;
        let forward = attention.forward(&mut recorder, &q, &q, &q)?;
        // Waits, so that compiling and running the forward is not timed.
        recorder.submit()?.wait()?;
        Ok(Box::new(move |recorder| {
            attention
                .backward(recorder, [&q, &q, &q], &forward.softmax_state, &q)
                .map(drop)
        }))
    }
}

/// Rows of the left factor and of the result of a probed product.
fn product_rows(caps: &DeviceCaps) -> usize {
    match caps.processor {
        Processor::Gpu => 4096,
        Processor::Cpu { .. } => 256,
    }
}

/// Elements of the sums of a probed product.
const PRODUCT_INNER: usize = 512;

/// More columns than any layer has; their weights take 512 MiB on the host.
const MOST_COLUMNS: u64 = 1 << 18;

/// Most columns of a probed product: the larger of the weights and the result fits in a buffer.
pub(super) fn most_columns(caps: &DeviceCaps) -> usize {
    let column_bytes = 4 * product_rows(caps).max(PRODUCT_INNER) as u64;
    (caps.max_buffer_bytes / column_bytes).min(MOST_COLUMNS) as usize
}

impl Probe for MatmulFamily {
    fn prepare(&self, context: &Context, variant: MatmulVariant) -> Result<Work> {
        let (rows, inner) = (product_rows(context.caps()), PRODUCT_INNER);
        let columns = self.columns as usize;
        let mut recorder = context.recorder("probe");
        let x = numbers(&mut recorder, "x", &[rows, inner])?;
        let weight = numbers(&mut recorder, "weight", &[columns, inner])?;
        let y = recorder.empty("y", &[rows, columns], DType::F32)?;
        recorder.submit()?;
        Ok(Box::new(move |recorder| {
            let product = Matmul::new(x.matrix(), weight.matrix()).with_transposed_b();
            product.with_kernel(variant).write(recorder, y.matrix())
        }))
    }
}
