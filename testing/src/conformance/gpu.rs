//! The library on the GPU, as the checks call it.

use std::error::Error;

use dilated_attention::ops::convert;
use dilated_attention::testing::Kernel;
use dilated_attention::{
    CallOptions, Context, DType, DilatedAttention, DilatedAttentionConfig, Download, Recorder,
    Result, Tensor, softmax_lse,
};

use super::attention::{Engine, ForwardOutput, Inputs};

/// Runs configurations on one context.
pub struct Gpu {
    /// Where they run.
    pub context: Context,
    /// What tensors are stored as.
    pub dtype: DType,
    kernels: Vec<Kernel>,
}

impl Gpu {
    /// On `context`, with tensors stored as `dtype`.
    pub fn new(context: Context, dtype: DType) -> Self {
        Self {
            context,
            dtype,
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
            let output = match inputs.rows {
                None => ForwardOutput { out, softmax_lse },
                Some(rows) => ForwardOutput {
                    out: pick(&out, rows, heads * head_dim),
                    softmax_lse: pick(&softmax_lse, rows, heads),
                },
            };
            each(number, output);
        }
        Ok(())
    }
}

/// The rows `rows` of a tensor with `width` elements a row.
fn pick(tensor: &[f32], rows: &[usize], width: usize) -> Vec<f32> {
    let row = |row: &usize| &tensor[*row * width..][..width];
    rows.iter().flat_map(row).copied().collect()
}
