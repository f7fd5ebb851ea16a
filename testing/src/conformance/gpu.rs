//! The library on the GPU, as the checks call it.

use std::error::Error;

use dilated_attention::half::{bf16, f16};
use dilated_attention::ops::convert;
use dilated_attention::out_of_core::OutOfCoreOptions;
use dilated_attention::testing::Kernel;
use dilated_attention::{
    CallOptions, Context, DType, DilatedAttention, DilatedAttentionConfig, Element, Recorder,
    Result, Tensor, softmax_lse,
};

use super::attention::{Engine, ForwardOutput, Inputs};
use super::ranks::{self, Part, Ranks, Results, Rows};

/// Runs configurations on one context.
pub struct Gpu {
    /// Where they run.
    pub context: Context,
    /// What tensors are stored as.
    pub dtype: DType,
    /// Whether forwards of attention run out of core, and how.
    pub out_of_core: Option<OutOfCoreOptions>,
    /// The ranks over which attention and layers run, on their contexts; nothing of it out of core then.
    pub ranks: Option<Ranks>,
    kernels: Vec<Kernel>,
}

impl Gpu {
    /// On `context`, with tensors stored as `dtype`.
    pub fn new(context: Context, dtype: DType) -> Self {
        Self {
            context,
            dtype,
            out_of_core: None,
            ranks: None,
            kernels: Vec::new(),
        }
    }
}

/// Output and softmax states of a sequence, out of core.
fn out_of_core<T: Element>(
    attention: &DilatedAttention,
    tokens: usize,
    inputs: [&[f32]; 3],
    options: &OutOfCoreOptions,
    narrow: fn(f32) -> T,
    widen: fn(T) -> f32,
) -> Result<[Vec<f32>; 2]> {
    let [q, k, v] = inputs.map(|x| x.iter().map(|x| narrow(*x)).collect::<Vec<T>>());
    let plan = attention.plan_out_of_core(tokens, T::DTYPE, options)?;
    let mut out = vec![T::zeroed(); q.len()];
    let mut states = vec![0f32; tokens * attention.config().num_heads() * 2];
    let run = attention.run_out_of_core(&plan, [&q, &k, &v], &mut out)?;
    let mut run = run.with_softmax_state(&mut states)?;
    while !run.is_done() {
        run.advance()?;
    }
    drop(run);
    Ok([out.into_iter().map(widen).collect(), states])
}

impl Gpu {
    /// A forward out of core: item after item, of which each has its own tokens alone.
    fn forward_out_of_core(
        &self,
        inputs: &Inputs<'_>,
        attention: &DilatedAttention,
        options: &OutOfCoreOptions,
    ) -> Result<ForwardOutput> {
        let config = attention.config();
        let (heads, width) = (config.num_heads(), config.embed_dim());
        let mut output = ForwardOutput {
            out: Vec::new(),
            softmax_lse: Vec::new(),
        };
        for item in 0..inputs.shape.batch() {
            let (seq_len, tokens) = (inputs.shape.seq_len(), inputs.shape.valid_len(item));
            let first = item * seq_len * width;
            let tensors = [inputs.q, inputs.k, inputs.v].map(|x| &x[first..][..tokens * width]);
            let (mut out, mut states) = (Vec::new(), Vec::new());
            if tokens > 0 {
                [out, states] = match self.dtype {
                    DType::F16 => out_of_core(
                        attention,
                        tokens,
                        tensors,
                        options,
                        f16::from_f32,
                        f16::to_f32,
                    )?,
                    DType::Bf16 => out_of_core(
                        attention,
                        tokens,
                        tensors,
                        options,
                        bf16::from_f32,
                        bf16::to_f32,
                    )?,
                    _ => out_of_core(attention, tokens, tensors, options, |x: f32| x, |x| x)?,
                };
            }
            out.resize(seq_len * width, 0.0);
            states.resize(seq_len * heads * 2, 0.0);
            output.out.extend(out);
            output.softmax_lse.extend(softmax_lse(&states));
        }
        Ok(output)
    }
}

/// A part of a tensor of the batch, (item, token, head, element), stored as `dtype`.
fn upload(
    recorder: &mut Recorder,
    label: &'static str,
    config: &DilatedAttentionConfig,
    part: &Part,
    values: &[f32],
    dtype: DType,
) -> Result<Tensor> {
    let dims = part.dims(&[config.num_heads(), config.head_dim()]);
    let values = part.cut(values, config.embed_dim());
    let tensor = recorder.upload(label, &dims, &values)?;
    convert(recorder, &tensor, dtype)
}

/// Output and softmax states of a part.
fn forward_part(
    context: &Context,
    part: &Part,
    inputs: &Inputs<'_>,
    config: &DilatedAttentionConfig,
    dtype: DType,
) -> Result<Results> {
    let attention = DilatedAttention::new(context, config.clone())?;
    let mut recorder = context.recorder("forward");
    let mut get = |label, values| upload(&mut recorder, label, config, part, values, dtype);
    let (q, k, v) = (
        get("q", inputs.q)?,
        get("k", inputs.k)?,
        get("v", inputs.v)?,
    );
    let result = match &part.share {
        None => attention.forward_with(&mut recorder, &q, &k, &v, &CallOptions::from(&part.shape)),
        Some(share) => attention.forward_of_share(&mut recorder, share, [&q, &k, &v]),
    };
    let result = result?;
    let out = convert(&mut recorder, &result.out, DType::F32)?;
    Results::read(recorder, &[&out, &result.softmax_state], None)
}

/// Gradients of queries, keys and values of a part.
fn backward_part(
    context: &Context,
    part: &Part,
    (inputs, dout): (&Inputs<'_>, &[f32]),
    config: &DilatedAttentionConfig,
    dtype: DType,
) -> Result<Results> {
    let attention = DilatedAttention::new(context, config.clone())?;
    let mut recorder = context.recorder("backward");
    let mut get = |label, values| upload(&mut recorder, label, config, part, values, dtype);
    let (q, k, v) = (
        get("q", inputs.q)?,
        get("k", inputs.k)?,
        get("v", inputs.v)?,
    );
    let dout = get("dout", dout)?;
    let qkv = [&q, &k, &v];
    let gradients = match &part.share {
        None => {
            let options = CallOptions::from(&part.shape);
            let forward = attention.forward_with(&mut recorder, &q, &k, &v, &options)?;
            let state = &forward.softmax_state;
            attention.backward_with(&mut recorder, qkv, state, &dout, &options)?
        }
        Some(share) => {
            let forward = attention.forward_of_share(&mut recorder, share, qkv)?;
            let state = &forward.softmax_state;
            attention.backward_of_share(&mut recorder, share, qkv, state, &dout)?
        }
    };
    let wide = [gradients.dq, gradients.dk, gradients.dv]
        .map(|tensor| convert(&mut recorder, &tensor, DType::F32));
    let [dq, dk, dv] = wide;
    Results::read(recorder, &[&dq?, &dk?, &dv?], None)
}

impl Engine for Gpu {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn context(&self) -> Option<&Context> {
        Some(&self.context)
    }

    fn out_of_core(&self) -> Option<&OutOfCoreOptions> {
        self.out_of_core.as_ref().filter(|_| self.ranks.is_none())
    }

    fn ranks(&self) -> Option<&Ranks> {
        self.ranks.as_ref()
    }

    fn take_kernels(&mut self) -> Vec<Kernel> {
        std::mem::take(&mut self.kernels)
    }

    fn backward(
        &mut self,
        inputs: &Inputs<'_>,
        dout: &[f32],
        config: &DilatedAttentionConfig,
    ) -> std::result::Result<[Vec<f32>; 3], Box<dyn Error>> {
        let dtype = self.dtype;
        let results = ranks::run(self, &inputs.shape, |context, part| {
            backward_part(context, part, (inputs, dout), config, dtype)
        })?;
        self.kernels.extend(results.kernels);
        Ok(values(results.rows)?)
    }

    fn forward(
        &mut self,
        inputs: &Inputs<'_>,
        configs: &[DilatedAttentionConfig],
        each: &mut dyn FnMut(usize, ForwardOutput),
    ) -> std::result::Result<(), Box<dyn Error>> {
        let Some(first) = configs.first() else {
            return Ok(());
        };
        let (heads, width) = (first.num_heads(), first.embed_dim());
        let dtype = self.dtype;
        let options = self.out_of_core().cloned();
        for (number, config) in configs.iter().enumerate() {
            let output = match options.as_ref().filter(|_| !inputs.shape.is_cross()) {
                Some(options) => {
                    let attention = DilatedAttention::new(&self.context, config.clone())?;
                    self.forward_out_of_core(inputs, &attention, options)?
                }
                None => {
                    let results = ranks::run(self, &inputs.shape, |context, part| {
                        forward_part(context, part, inputs, config, dtype)
                    })?;
                    self.kernels.extend(results.kernels);
                    let [out, states] = values(results.rows)?;
                    let softmax_lse = softmax_lse(&states);
                    ForwardOutput { out, softmax_lse }
                }
            };
            let picked = match inputs.rows {
                None => output,
                Some(rows) => ForwardOutput {
                    out: pick(&output.out, rows, width),
                    softmax_lse: pick(&output.softmax_lse, rows, heads),
                },
            };
            each(number, picked);
        }
        Ok(())
    }
}

/// The values of so many tensors.
fn values<const COUNT: usize>(rows: Vec<Rows>) -> std::result::Result<[Vec<f32>; COUNT], String> {
    let values: Vec<_> = rows.into_iter().map(|rows| rows.values).collect();
    let wrong = |values: Vec<_>| format!("{} tensors instead of {COUNT}", values.len());
    values.try_into().map_err(wrong)
}

/// The rows `rows` of a tensor with `width` elements a row.
fn pick(tensor: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    let row = |row: &usize| &tensor[*row * width..][..width];
    rows.iter().flat_map(row).copied().collect()
}
