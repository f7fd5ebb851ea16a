//! The library on the GPU, as the checks call it.

use std::error::Error;

use dilated_attention::{Context, DilatedAttention, DilatedAttentionConfig};

use super::checks::{Engine, ForwardOutput, Inputs};

/// Runs configurations on one context.
pub struct Gpu {
    /// Where they run.
    pub context: Context,
}

impl Engine for Gpu {
    fn context(&self) -> Option<&Context> {
        Some(&self.context)
    }

    fn backward(
        &mut self,
        inputs: &Inputs<'_>,
        dout: &[f32],
        config: &DilatedAttentionConfig,
    ) -> Result<[Vec<f32>; 3], Box<dyn Error>> {
        let shape = &inputs.shape;
        let dims = [
            shape.batch(),
            shape.seq_len(),
            config.num_heads(),
            config.head_dim(),
        ];
        let dims = dims.map(|dim| dim as usize);
        let attention = DilatedAttention::new(&self.context, config.clone())?;
        let mut recorder = self.context.recorder("backward");
        let q = recorder.upload("q", &dims, inputs.q)?;
        let k = recorder.upload("k", &dims, inputs.k)?;
        let v = recorder.upload("v", &dims, inputs.v)?;
        let dout = recorder.upload("dout", &dims, dout)?;
        let forward = attention.forward(&mut recorder, shape, &q, &k, &v)?;
        let gradients = attention.backward(&mut recorder, shape, [&q, &k, &v], &forward, &dout)?;
        let dq = recorder.download::<f32>(&gradients.dq)?;
        let dk = recorder.download::<f32>(&gradients.dk)?;
        let dv = recorder.download::<f32>(&gradients.dv)?;
        recorder.submit()?;
        Ok([dq.wait()?, dk.wait()?, dv.wait()?])
    }

    fn forward(
        &mut self,
        inputs: &Inputs<'_>,
        configs: &[DilatedAttentionConfig],
        each: &mut dyn FnMut(usize, ForwardOutput),
    ) -> Result<(), Box<dyn Error>> {
        let Some(first) = configs.first() else {
            return Ok(());
        };
        let (batch, seq_len) = (
            inputs.shape.batch() as usize,
            inputs.shape.seq_len() as usize,
        );
        let (heads, head_dim) = (first.num_heads() as usize, first.head_dim() as usize);
        let dims = [batch, seq_len, heads, head_dim];
        let mut recorder = self.context.recorder("inputs");
        let q = recorder.upload("q", &dims, inputs.q)?;
        let k = recorder.upload("k", &dims, inputs.k)?;
        let v = recorder.upload("v", &dims, inputs.v)?;
        recorder.submit()?;
        for (number, config) in configs.iter().enumerate() {
            let attention = DilatedAttention::new(&self.context, config.clone())?;
            let mut recorder = self.context.recorder("forward");
            let result = attention.forward(&mut recorder, &inputs.shape, &q, &k, &v)?;
            let out = recorder.download::<f32>(&result.out)?;
            let softmax_lse = recorder.download::<f32>(&result.softmax_lse)?;
            recorder.submit()?;
            let (out, softmax_lse) = (out.wait()?, softmax_lse.wait()?);
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
fn pick(tensor: &[f32], rows: &[u32], width: usize) -> Vec<f32> {
    let row = |row: &u32| &tensor[*row as usize * width..][..width];
    rows.iter().flat_map(row).copied().collect()
}
