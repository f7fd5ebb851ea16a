//! The library on the GPU, as the checks call it.

use std::error::Error;

use dilated_attention::half::{bf16, f16};
use dilated_attention::ops::convert;
use dilated_attention::out_of_core::OutOfCoreOptions;
use dilated_attention::testing::Kernel;
use dilated_attention::{
    CallOptions, Context, DType, DilatedAttention, DilatedAttentionConfig, Download, Element,
    Recorder, Result, Tensor, softmax_lse,
};

use super::attention::{Engine, ForwardOutput, Inputs};

/// Runs configurations on one context.
pub struct Gpu {
    /// Where they run.
    pub context: Context,
    /// What tensors are stored as.
    pub dtype: DType,
    /// Whether forwards of attention run out of core, and how.
    pub out_of_core: Option<OutOfCoreOptions>,
    kernels: Vec<Kernel>,
}

impl Gpu {
    /// On `context`, with tensors stored as `dtype`.
    pub fn new(context: Context, dtype: DType) -> Self {
        Self {
            context,
            dtype,
            out_of_core: None,
            kernels: Vec::new(),
        }
    }

    fn upload(
        &self,
        recorder: &mut Recorder,
        label: &'static str,
        dims: &[usize],
        values: &[f32],
    ) -> Result<Tensor> {
        let tensor = recorder.upload(label, dims, values)?;
        convert(recorder, &tensor, self.dtype)
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

fn download(recorder: &mut Recorder, tensor: &Tensor) -> Result<Download<f32>> {
    let tensor = convert(recorder, tensor, DType::F32)?;
    recorder.download(&tensor)
}

impl Engine for Gpu {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn context(&self) -> Option<&Context> {
        Some(&self.context)
    }

    fn out_of_core(&self) -> Option<&OutOfCoreOptions> {
        self.out_of_core.as_ref()
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
        let shape = &inputs.shape;
        let dims = [
            shape.batch(),
            shape.seq_len(),
            config.num_heads(),
            config.head_dim(),
        ];
        let attention = DilatedAttention::new(&self.context, config.clone())?;
        let mut recorder = self.context.recorder("backward");
        let q = self.upload(&mut recorder, "q", &dims, inputs.q)?;
        let k = self.upload(&mut recorder, "k", &dims, inputs.k)?;
        let v = self.upload(&mut recorder, "v", &dims, inputs.v)?;
        let dout = self.upload(&mut recorder, "dout", &dims, dout)?;
        let forward =
            attention.forward_with(&mut recorder, &q, &k, &v, &CallOptions::from(shape))?;
        let gradients = attention.backward_with(
            &mut recorder,
            [&q, &k, &v],
            &forward.softmax_state,
            &dout,
            &CallOptions::from(shape),
        )?;
        let dq = download(&mut recorder, &gradients.dq)?;
        let dk = download(&mut recorder, &gradients.dk)?;
        let dv = download(&mut recorder, &gradients.dv)?;
        self.kernels.extend(recorder.kernels());
        recorder.submit()?;
        Ok([dq.wait()?, dk.wait()?, dv.wait()?])
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
        let (batch, seq_len) = (inputs.shape.batch(), inputs.shape.seq_len());
        let (heads, head_dim) = (first.num_heads(), first.head_dim());
        let dims = [batch, seq_len, heads, head_dim];
        let picked = |ForwardOutput { out, softmax_lse }| match inputs.rows {
            None => ForwardOutput { out, softmax_lse },
            Some(rows) => ForwardOutput {
                out: pick(&out, rows, heads * head_dim),
                softmax_lse: pick(&softmax_lse, rows, heads),
            },
        };
        let options = self.out_of_core.as_ref();
        if let Some(options) = options.filter(|_| !inputs.shape.is_cross()) {
            for (number, config) in configs.iter().enumerate() {
                let attention = DilatedAttention::new(&self.context, config.clone())?;
                each(
                    number,
                    picked(self.forward_out_of_core(inputs, &attention, options)?),
                );
            }
            return Ok(());
        }
        let mut recorder = self.context.recorder("inputs");
        let q = self.upload(&mut recorder, "q", &dims, inputs.q)?;
        let k = self.upload(&mut recorder, "k", &dims, inputs.k)?;
        let v = self.upload(&mut recorder, "v", &dims, inputs.v)?;
        recorder.submit()?;
        for (number, config) in configs.iter().enumerate() {
            let attention = DilatedAttention::new(&self.context, config.clone())?;
            let mut recorder = self.context.recorder("forward");
            let result = attention.forward_with(
                &mut recorder,
                &q,
                &k,
                &v,
                &CallOptions::from(&inputs.shape),
            )?;
            let out = download(&mut recorder, &result.out)?;
            let state = recorder.download::<f32>(&result.softmax_state)?;
            self.kernels.extend(recorder.kernels());
            recorder.submit()?;
            let (out, softmax_lse) = (out.wait()?, softmax_lse(&state.wait()?));
            each(number, picked(ForwardOutput { out, softmax_lse }));
        }
        Ok(())
    }
}

/// The rows `rows` of a tensor with `width` elements a row.
fn pick(tensor: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    let row = |row: &usize| &tensor[*row * width..][..width];
    rows.iter().flat_map(row).copied().collect()
}
