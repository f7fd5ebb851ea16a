//! Attention of one token at a time, over cached keys and values.

use super::DilatedAttention;
use crate::config::{AttentionShape, Mask, in_u32};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::kernels::Kernel;
use crate::plan::{StepLayout, plan_step};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

impl DilatedAttention {
    /// Records the output of token number `token` of each item, (batch, 1, H, D). It equals the token's row in a forward over the
    /// sequence up to the token and, because of the causal mask, over any longer sequence. `k` and `v` are caches, (batch,
    /// capacity, H, D), that hold everything up to the token. `q` is the query of the token, (batch, 1, H, D), or with
    /// `query_cache` a cache like the others.
    pub(crate) fn forward_step(
        &self,
        recorder: &mut Recorder,
        token: usize,
        [q, k, v]: [&Tensor; 3],
        query_cache: bool,
    ) -> Result<Tensor> {
        if self.config.mask() != Mask::Causal {
            return Err(Error::InvalidConfig {
                what: "decoding",
                given: "a model without causal mask".to_owned(),
                need: "Mask::Causal: other rows depend on tokens that do not exist yet",
            });
        }
        let [batch, capacity] = [k.shape()[0], k.shape()[1]];
        let key_shape = self.tensor_shape(batch, capacity);
        let query_len = if query_cache { capacity } else { 1 };
        let dtype = q.dtype();
        self.expect(recorder, &[("k", k), ("v", v)], &key_shape, dtype)?;
        self.expect(
            recorder,
            &[("q", q)],
            &self.tensor_shape(batch, query_len),
            dtype,
        )?;
        let variant = self.forward_choice(dtype)?.variant;
        let layout = StepLayout {
            batch: in_u32(batch),
            token: in_u32(token),
            capacity: in_u32(capacity),
            query_cache,
        };
        let plan = plan_step(&self.config, self.context.caps(), variant.format, layout)?;
        let kernel = Kernel::from(variant);
        self.context.compile(&[kernel])?;
        let shape = self.tensor_shape(batch, 1);
        let out = recorder.empty("out", &shape, dtype)?;
        // Each dispatch computes one item, so kernels need no sequence length to step from item to item.
        let of_item = AttentionShape::new(1, 1)?;
        let state_shape = [shape[0], 1, shape[2], 2];
        let softmax_state = recorder.empty("softmax_state", &state_shape, DType::F32)?;
        if plan.clears {
            recorder.clear(&out, out.whole());
            recorder.clear(&softmax_state, softmax_state.whole());
        }
        for dispatch in &plan.dispatches {
            let bindings = [
                (q, dispatch.q.bytes),
                (k, dispatch.kv.bytes),
                (v, dispatch.kv.bytes),
                (&out, dispatch.out.bytes),
                (&softmax_state, dispatch.state.bytes),
            ];
            let params = dispatch.params(&self.config, &of_item);
            recorder.dispatch(kernel, &bindings, &params, dispatch.grid)?;
        }
        Ok(out)
    }
}
