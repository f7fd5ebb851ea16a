//! The device's side of a run: the tensors that all blocks use in turn, and what is recorded over them.

use super::plan::OutOfCorePlan;
use crate::config::DilatedAttentionConfig;
use crate::context::Context;
use crate::device::{ByteRange, DType};
use crate::error::Result;
use crate::kernels::Kernel;
use crate::ops::convert_rows;
use crate::plan::{BlockWork, Tokens};
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// The layer around the attention of a run. All tensors are f32 and have a row for each of `tokens`.
pub(crate) trait AttentionLayer: Sync {
    /// Records the queries of `tokens`, of which the layer's input is `x`.
    fn queries(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tokens: &Tokens,
        q: &Tensor,
    ) -> Result<()>;

    /// Records their keys and values.
    fn keys(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tokens: &Tokens,
        kv: [&Tensor; 2],
    ) -> Result<()>;

    /// Records the layer's output, from its input and attention's output.
    fn output(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tokens: &Tokens,
        attended: &Tensor,
    ) -> Result<Tensor>;

    /// The model, in words: what the plan was made for.
    fn model(&self) -> String;

    /// What tells the layer from others, in words.
    fn identity(&self) -> Result<String>;
}

/// The tensors of a run, and the layer around its attention, if there is one.
pub(super) struct OnDevice<'a> {
    context: Context,
    config: DilatedAttentionConfig,
    layer: Option<Box<dyn AttentionLayer + 'a>>,
    /// Queries, keys and values, in f32.
    inputs: [Tensor; 3],
    /// A chunk of a layer's input.
    x: Option<Tensor>,
    /// What is on its way from or to the host in half precision.
    half: Option<Tensor>,
    out: Tensor,
    softmax_state: Tensor,
}

impl<'a> OnDevice<'a> {
    /// # Errors
    /// The errors of leasing.
    pub fn lease(
        context: &Context,
        plan: &OutOfCorePlan,
        layer: Option<Box<dyn AttentionLayer + 'a>>,
    ) -> Result<Self> {
        let mut recorder = context.recorder("out of core");
        let (width, heads) = (plan.config.embed_dim(), plan.config.num_heads());
        // Both are at most what a binding covers.
        let [tokens, held] = [plan.size.tokens, plan.size.held_tokens].map(|count| count as usize);
        let inputs = ["q", "k", "v"];
        let mut lease =
            |label, rows, width, dtype| recorder.undivided(label, &[rows, width], dtype);
        let [q, k, v] = inputs.map(|label| lease(label, held, width, DType::F32));
        let leased = Self {
            context: context.clone(),
            config: plan.config.clone(),
            inputs: [q?, k?, v?],
            x: match &plan.layer {
                None => None,
                Some(layer) => Some(lease("x", layer.chunk_rows, width, DType::F32)?),
            },
            half: match plan.dtype {
                DType::F32 => None,
                dtype => Some(lease("half", held, width, dtype)?),
            },
            layer,
            out: lease("out", tokens, width, DType::F32)?,
            softmax_state: lease("softmax_state", tokens, 2 * heads, DType::F32)?,
        };
        recorder.submit()?;
        leased.begin_again()?;
        Ok(leased)
    }

    /// Makes the tensors ready, whatever became of the work before: a layer writes rows of them chunk by chunk, which fills none.
    pub fn begin_again(&self) -> Result<()> {
        if self.layer.is_none() {
            return Ok(());
        }
        let mut recorder = self.recorder();
        for tensor in &self.inputs {
            recorder.clear(tensor, tensor.whole());
        }
        recorder.submit().map(drop)
    }

    fn recorder(&self) -> Recorder {
        self.context.recorder("out of core")
    }

    /// The first `count` rows of a tensor.
    fn rows(tensor: &Tensor, count: u64) -> Tensor {
        Self::rows_from(tensor, 0, count)
    }

    fn rows_from(tensor: &Tensor, first: u64, count: u64) -> Tensor {
        let width = tensor.shape()[1];
        let row_bytes = width as u64 * tensor.dtype().bytes();
        tensor.view(&[count as usize, width], first * row_bytes)
    }

    /// Records that `to` begins with `rows` of the plan's type.
    fn upload(&self, recorder: &mut Recorder, rows: &[u8], to: &Tensor) -> Result<()> {
        let Some(half) = &self.half else {
            return recorder.write_bytes(to, rows);
        };
        recorder.write_bytes(half, rows)?;
        // Packed rows have the heads of their branch alone, so that they are narrower than the tensor's.
        let vec4s = rows.len() / (4 * half.dtype().bytes() as usize);
        let [from, to] = [half, to].map(|tensor| {
            let elements = tensor.matrix().reshape(4)?;
            elements.slice(0..vec4s)
        });
        convert_rows(recorder, from?, to?)
    }

    /// Calls `record` for the chunks of a layer's input, with the chunk on the device, its tokens and its first row.
    fn in_chunks(
        &self,
        recorder: &mut Recorder,
        rows: &[u8],
        tokens: &Tokens,
        mut record: impl FnMut(&mut Recorder, &Tensor, Tokens, u64) -> Result<()>,
    ) -> Result<()> {
        let Some(x) = &self.x else { return Ok(()) };
        let row_bytes = (rows.len() as u64)
            .checked_div(tokens.end - tokens.start)
            .unwrap_or(0);
        let step = x.shape()[0] as u64;
        for first in (tokens.start..tokens.end).step_by(step as usize) {
            let chunk = first..tokens.end.min(first + step);
            let (row, count) = (first - tokens.start, chunk.end - first);
            let begin = (row * row_bytes) as usize;
            let bytes = &rows[begin..][..(count * row_bytes) as usize];
            self.upload(recorder, bytes, x)?;
            record(recorder, &Self::rows(x, count), chunk, row)?;
        }
        Ok(())
    }

    /// Records that the queries of `tokens` are on the device. `rows` are these, or the layer's input.
    pub fn queries(&self, recorder: &mut Recorder, rows: &[u8], tokens: &Tokens) -> Result<()> {
        let [q, ..] = &self.inputs;
        let Some(layer) = &self.layer else {
            return self.upload(recorder, rows, q);
        };
        self.in_chunks(recorder, rows, tokens, |recorder, x, chunk, first| {
            let to = Self::rows_from(q, first, chunk.end - chunk.start);
            layer.queries(recorder, x, &chunk, &to)
        })
    }

    /// Records that `keys` and values are on the device: those of tokens, or packed ones of the plan's type.
    pub fn keys(&self, recorder: &mut Recorder, keys: [&[u8]; 2]) -> Result<()> {
        let [_, k, v] = &self.inputs;
        for (rows, to) in keys.into_iter().zip([k, v]) {
            match &self.layer {
                None => self.upload(recorder, rows, to)?,
                // They come from this device, where they were f32.
                Some(_) => recorder.write_bytes(to, rows)?,
            }
        }
        Ok(())
    }

    /// Records the keys and values of `tokens`, of which the layer's input is `rows`.
    pub fn project_keys(
        &self,
        recorder: &mut Recorder,
        rows: &[u8],
        tokens: &Tokens,
    ) -> Result<()> {
        let (Some(layer), [_, k, v]) = (&self.layer, &self.inputs) else {
            return Ok(());
        };
        self.in_chunks(recorder, rows, tokens, |recorder, x, chunk, first| {
            let count = chunk.end - chunk.start;
            let [k, v] = [k, v].map(|tensor| Self::rows_from(tensor, first, count));
            layer.keys(recorder, x, &chunk, [&k, &v])
        })
    }

    /// The keys and values of `tokens`, of which the layer's input is `rows`.
    pub fn projected_keys(&self, rows: &[u8], tokens: &Tokens) -> Result<[Vec<u8>; 2]> {
        let mut recorder = self.recorder();
        self.project_keys(&mut recorder, rows, tokens)?;
        let [_, k, v] = &self.inputs;
        let [k, v] = [k, v].map(|tensor| {
            let rows = Self::rows(tensor, tokens.end - tokens.start);
            recorder.download_bytes(&rows)
        });
        let (k, v) = (k?, v?);
        recorder.submit()?;
        Ok([k.wait()?, v.wait()?])
    }

    /// Sets outputs and states to 0: of some rows there may be no work.
    pub fn clear(&self) -> Result<()> {
        let mut recorder = self.recorder();
        for tensor in [&self.out, &self.softmax_state] {
            recorder.clear(tensor, tensor.whole());
        }
        recorder.submit().map(drop)
    }

    /// Records the dispatches of a work.
    pub fn attend(
        &self,
        recorder: &mut Recorder,
        plan: &OutOfCorePlan,
        work: &BlockWork,
    ) -> Result<()> {
        let [q, k, v] = &self.inputs;
        for dispatch in &work.dispatches {
            let bindings: [(&Tensor, ByteRange); 5] = [
                (q, dispatch.q.bytes),
                (k, dispatch.kv.bytes),
                (v, dispatch.kv.bytes),
                (&self.out, dispatch.out.bytes),
                (&self.softmax_state, dispatch.state.bytes),
            ];
            let params = dispatch.params(&self.config, &plan.shape);
            let kernel = Kernel::from(plan.choice.variant);
            recorder.dispatch(kernel, &bindings, &params, dispatch.grid)?;
        }
        Ok(())
    }

    /// Records the layer's output for `tokens`, of which its input is `rows`. It takes the place of the queries.
    pub fn layer_output(
        &self,
        recorder: &mut Recorder,
        rows: &[u8],
        tokens: &Tokens,
    ) -> Result<()> {
        let (Some(layer), [q, ..]) = (&self.layer, &self.inputs) else {
            return Ok(());
        };
        self.in_chunks(recorder, rows, tokens, |recorder, x, chunk, first| {
            let count = chunk.end - chunk.start;
            let attended = Self::rows_from(&self.out, first, count);
            let y = layer.output(recorder, x, &chunk, &attended)?;
            let row_bytes = 4 * q.shape()[1] as u64;
            recorder.copy(
                &y,
                ByteRange {
                    offset: 0,
                    size: count * row_bytes,
                },
                q,
                first * row_bytes,
            );
            Ok(())
        })
    }

    /// The outputs of a block of `count` tokens, as bytes of the plan's type.
    pub fn download(&self, count: u64) -> Result<Vec<u8>> {
        let out = match &self.layer {
            None => &self.out,
            Some(_) => &self.inputs[0],
        };
        let mut recorder = self.recorder();
        let download = match &self.half {
            None => recorder.download_bytes(&Self::rows(out, count))?,
            Some(half) => {
                let rows = 0..count as usize;
                let [from, to] = [out, half].map(|tensor| tensor.matrix().slice(rows.clone()));
                convert_rows(&mut recorder, from?, to?)?;
                recorder.download_bytes(&Self::rows(half, count))?
            }
        };
        wait(recorder, download)
    }

    /// The softmax states of a block of `count` tokens, as bytes of f32.
    pub fn download_states(&self, count: u64) -> Result<Vec<u8>> {
        let mut recorder = self.recorder();
        let download = recorder.download_bytes(&Self::rows(&self.softmax_state, count))?;
        wait(recorder, download)
    }
}

fn wait(recorder: Recorder, download: Download<u8>) -> Result<Vec<u8>> {
    recorder.submit()?;
    download.wait()
}
