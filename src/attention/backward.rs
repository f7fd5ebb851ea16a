//! Gradients of dilated attention on the device.

use super::DilatedAttention;
use super::packed::{self, PackedKeys};
use crate::config::{AttentionShape, CallOptions};
use crate::context::{WarmUp, warm_up};
use crate::device::{ByteRange, DType};
#[cfg(feature = "models")]
use crate::distributed::SequenceShare;
use crate::error::Result;
use crate::kernels::attention_backward::BackwardVariant;
use crate::kernels::{Choice, Kernel, Pass};
use crate::ops::convert;
use crate::plan::BackwardPlan;
use crate::plan::dispatch::AttentionDispatch;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Gradients of a loss with respect to the inputs of an attention, of the type of the inputs.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Gradient of the queries, with their shape (B, N, H, D).
    pub dq: Tensor,
    /// Gradient of the keys, with their shape.
    pub dk: Tensor,
    /// Gradient of the values, with their shape.
    pub dv: Tensor,
}

/// The kernels that compute the passes of a backward.
pub(super) fn kernels_of_passes(variant: BackwardVariant) -> Vec<Kernel> {
    let passes = [Pass::BranchDelta].iter().chain(variant.passes());
    passes.filter_map(|pass| variant.kernel(*pass)).collect()
}

impl DilatedAttention {
    /// The backward's kernels for tensors of `dtype` and why they were chosen, in words.
    ///
    /// # Errors
    /// [`Error::WrongDType`](crate::Error::WrongDType) for integers.
    pub fn backward_kernels(&self, dtype: DType) -> Result<String> {
        Ok(self.backward_choice(dtype)?.to_string())
    }

    /// The kernels of the backward and why they were chosen.
    ///
    /// # Errors
    /// [`Error::WrongDType`](crate::Error::WrongDType) for integers.
    pub(crate) fn backward_choice(&self, dtype: DType) -> Result<Choice<BackwardVariant>> {
        self.choice_for(&self.backward_choice, dtype)
    }

    /// Plans a backward of tensors of `dtype`: its dispatches, buffers and work.
    ///
    /// # Errors
    /// As [`DilatedAttentionConfig::plan_backward`](crate::DilatedAttentionConfig::plan_backward).
    pub fn plan_backward(&self, shape: &AttentionShape, dtype: DType) -> Result<BackwardPlan> {
        let format = self.backward_choice(dtype)?.variant.format;
        let caps = self.context.caps_for(format);
        let choose = |dtype| self.backward_choice(dtype);
        self.config.plan_backward_by(shape, dtype, caps, choose)
    }

    /// Compiles the backward's kernels now; see [`Context::warm_up`](crate::Context::warm_up).
    ///
    /// # Errors
    /// As [`Context::warm_up`](crate::Context::warm_up); [`Error::WrongDType`](crate::Error::WrongDType) for integers.
    pub fn warm_up_backward(&self, dtype: DType) -> Result<WarmUp> {
        let variant = self.backward_choice(dtype)?.variant;
        warm_up::compile(&self.context, &kernels_of_passes(variant))
    }

    /// Records the gradients of the inputs of a [`forward`](Self::forward): `inputs` are its q, k and v, `softmax_state` is the
    /// state that it returned, and `dout` is the gradient of its output, (B, N, H, D), of the type of the inputs.
    ///
    /// The gradients have that type, too. In half precision, sums over branches are rounded each time a branch is added; where segments
    /// are cut into many windows, gradients are summed in f32 and rounded once. The
    /// configuration's [`MixGradient`](crate::MixGradient) says how the weights that mix the branches are differentiated. Tokens
    /// that no branch covers, and tokens after the end of an item, have gradients of 0.
    ///
    /// The result has the same bits on every run on the same device.
    ///
    /// ```no_run
    /// use dilated_attention::{Context, DilatedAttention, DilatedAttentionConfig};
    /// let context = Context::new_blocking()?;
    /// let config = DilatedAttentionConfig::new(8, 64, &[2048, 8192], &[1, 4])?;
    /// let attention = DilatedAttention::new(&context, config)?;
    /// let data = vec![0.5f32; 16_384 * 8 * 64];
    /// let mut recorder = context.recorder("layer 0");
    /// let q = recorder.upload("q", &[1, 16_384, 8, 64], &data)?;
    /// let forward = attention.forward(&mut recorder, &q, &q, &q)?;
    /// let dout = recorder.upload("dout", &[1, 16_384, 8, 64], &data)?;
    /// let state = &forward.softmax_state;
    /// let gradients = attention.backward(&mut recorder, [&q, &q, &q], state, &dout)?;
    /// let dq = recorder.download::<f32>(&gradients.dq)?;
    /// recorder.submit()?;
    /// assert_eq!(dq.wait()?.len(), data.len());
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(
        &self,
        recorder: &mut Recorder,
        inputs: [&Tensor; 3],
        softmax_state: &Tensor,
        dout: &Tensor,
    ) -> Result<Gradients> {
        self.backward_with(recorder, inputs, softmax_state, dout, &CallOptions::new())
    }

    /// As [`backward`](Self::backward), for a [`forward_with`](Self::forward_with) that had the same options.
    ///
    /// # Errors
    /// As [`forward_with`](Self::forward_with).
    pub fn backward_with(
        &self,
        recorder: &mut Recorder,
        [q, k, v]: [&Tensor; 3],
        softmax_state: &Tensor,
        dout: &Tensor,
        options: &CallOptions,
    ) -> Result<Gradients> {
        let shape = options.shape_of(q.shape(), k.shape())?;
        self.record_backward(recorder, &shape, [q, k, v], softmax_state, dout)
    }

    /// As [`backward`](Self::backward), of the whole sequences or, with `share`, of this rank's part of one.
    #[cfg(feature = "models")]
    pub(crate) fn record_backward_in(
        &self,
        recorder: &mut Recorder,
        share: Option<&SequenceShare>,
        shape: &AttentionShape,
        inputs: [&Tensor; 3],
        softmax_state: &Tensor,
        dout: &Tensor,
    ) -> Result<Gradients> {
        match share {
            None => self.record_backward(recorder, shape, inputs, softmax_state, dout),
            Some(_) if shape.is_cross() => Err(super::no_cross_share()),
            #[cfg(not(target_arch = "wasm32"))]
            Some(share) => self.backward_of_share(recorder, share, inputs, softmax_state, dout),
            #[cfg(target_arch = "wasm32")]
            Some(_) => Err(super::no_share()),
        }
    }

    pub(crate) fn record_backward(
        &self,
        recorder: &mut Recorder,
        shape: &AttentionShape,
        [q, k, v]: [&Tensor; 3],
        softmax_state: &Tensor,
        dout: &Tensor,
    ) -> Result<Gradients> {
        let (query_shape, key_shape) = (self.query_shape(shape), self.key_shape(shape));
        let queries = [("q", q), ("dout", dout)];
        let dtype = q.dtype();
        self.expect(recorder, &queries, &query_shape, dtype)?;
        self.expect(recorder, &[("k", k), ("v", v)], &key_shape, dtype)?;
        let state = [("softmax_state", softmax_state)];
        self.expect(recorder, &state, &self.state_shape(shape), DType::F32)?;
        let plan = self.plan_backward(shape, dtype)?;
        let Some(dtype) = plan.converted_from else {
            let recorded = self.record_plan(recorder, &plan, [q, k, v], softmax_state, dout)?;
            return Ok(recorded.gradients);
        };
        let wide = |recorder: &mut Recorder, tensor| convert(recorder, tensor, DType::F32);
        let [q, k] = [wide(recorder, q)?, wide(recorder, k)?];
        let [v, dout] = [wide(recorder, v)?, wide(recorder, dout)?];
        let Recorded {
            gradients,
            _scratch,
        } = self.record_plan(recorder, &plan, [&q, &k, &v], softmax_state, &dout)?;
        Ok(Gradients {
            dq: convert(recorder, &gradients.dq, dtype)?,
            dk: convert(recorder, &gradients.dk, dtype)?,
            dv: convert(recorder, &gradients.dv, dtype)?,
        })
    }

    /// Records a plan, whose kernels take tensors of the inputs' type.
    fn record_plan(
        &self,
        recorder: &mut Recorder,
        plan: &BackwardPlan,
        [q, k, v]: [&Tensor; 3],
        softmax_state: &Tensor,
        dout: &Tensor,
    ) -> Result<Recorded> {
        let (query_shape, key_shape) = (self.query_shape(&plan.shape), self.key_shape(&plan.shape));
        let dtype = q.dtype();
        // Compiled before anything is recorded, so that a refused shader leaves the recording as it was.
        let (head_dim, format) = (plan.variant.head_dim, plan.variant.format);
        let packing = packed::kernels(head_dim, format, &plan.dispatches);
        self.context
            .compile(&[kernels_of_passes(plan.variant), packing].concat())?;
        let row_stats_shape = [&query_shape[..3], &[4]].concat();
        let row_stats = recorder.empty("row statistics", &row_stats_shape, DType::F32)?;
        let dq = recorder.empty("dq", &query_shape, dtype)?;
        let dk = recorder.empty("dk", &key_shape, dtype)?;
        let dv = recorder.empty("dv", &key_shape, dtype)?;
        let packed_bytes = plan.packed_bytes;
        let packed = PackedKeys::lease(recorder, ["packed k", "packed v"], packed_bytes, dtype)?;
        let gradients = ["packed dk", "packed dv"];
        let packed_gradients = PackedKeys::lease(recorder, gradients, packed_bytes, dtype)?;
        let weights_bytes = plan.weights_bytes;
        // Fits in a usize: at most what a binding covers.
        let weights = (weights_bytes > 0)
            .then(|| recorder.undivided("weights", &[weights_bytes as usize / 4], DType::F32))
            .transpose()?;
        let width = self.config.embed_dim() as u64 * dtype.bytes();
        let rows = |&(begin, end): &(u64, u64), width: u64| ByteRange {
            offset: begin * width,
            size: (end - begin) * width,
        };
        let row_stats_width = self.config.num_heads() as u64 * 16;
        for range in &plan.query_clears {
            recorder.clear(&dq, rows(range, width));
            recorder.clear(&row_stats, rows(range, row_stats_width));
        }
        for range in &plan.key_clears {
            recorder.clear(&dk, rows(range, width));
            recorder.clear(&dv, rows(range, width));
        }
        let tensors = BackwardTensors {
            inputs: [q, k, v],
            dout,
            softmax_state,
            row_stats: &row_stats,
            gradients: [&dq, &dk, &dv],
            packed: &packed,
            packed_gradients: &packed_gradients,
            weights: weights.as_ref(),
        };
        self.record_backward_dispatches(
            recorder,
            &plan.shape,
            plan.variant,
            &plan.dispatches,
            &tensors,
        )?;
        Ok(Recorded {
            gradients: Gradients { dq, dk, dv },
            _scratch: (row_stats, [packed, packed_gradients], weights),
        })
    }

    pub(super) fn record_backward_dispatches(
        &self,
        recorder: &mut Recorder,
        shape: &AttentionShape,
        variant: BackwardVariant,
        dispatches: &[AttentionDispatch],
        tensors: &BackwardTensors<'_>,
    ) -> Result<()> {
        let [q, k, v] = tensors.inputs;
        let [dq, dk, dv] = tensors.gradients;
        let (packed, packed_gradients) = (tensors.packed, tensors.packed_gradients);
        for dispatch in dispatches {
            let params = dispatch.params(&self.config, shape);
            if let Some(kernel) = packed::kernel(variant.head_dim, variant.format, dispatch.pass) {
                let bindings = match dispatch.pass {
                    Pass::PackKeys => packed.copied([k, v], dispatch),
                    _ => packed_gradients.copied([dk, dv], dispatch),
                };
                recorder.dispatch(kernel, &bindings, &params, dispatch.grid)?;
                continue;
            }
            let [k, v] = packed.or([k, v], dispatch);
            let [dk, dv] = packed_gradients.or([dk, dv], dispatch);
            let inputs = [
                (q, dispatch.q.bytes),
                (k, dispatch.kv.bytes),
                (v, dispatch.kv.bytes),
                (tensors.dout, dispatch.out.bytes),
            ];
            let row_stats = (tensors.row_stats, dispatch.row_stats.bytes);
            let state = (tensors.softmax_state, dispatch.state.bytes);
            let weights = tensors.weights.map(|weights| (weights, weights.whole()));
            let dq = (dq, dispatch.q.bytes);
            let [dk, dv] = [dk, dv].map(|gradient| (gradient, dispatch.kv.bytes));
            let [q, k, _, dout] = inputs;
            let bindings = match (dispatch.pass, weights) {
                (Pass::BranchDelta, _) => [&inputs[..], &[state, row_stats]].concat(),
                (Pass::Weights, Some(weights)) => [&inputs[..], &[row_stats, weights]].concat(),
                (Pass::Dq, Some(weights)) => vec![weights, k, dq],
                (Pass::Dk, Some(weights)) => vec![weights, q, dk],
                (Pass::Dv, Some(weights)) => vec![weights, dout, dv],
                (Pass::Dq, None) => [&inputs[..], &[row_stats, dq]].concat(),
                (Pass::DkDv, _) => [&inputs[..], &[row_stats, dk, dv]].concat(),
                // A backward plan has no such dispatches.
                (Pass::Forward | Pass::Weights | Pass::Dk | Pass::Dv, _) => continue,
                // Done above.
                (Pass::PackKeys | Pass::PackGradients | Pass::UnpackGradients, _) => continue,
            };
            let Some(kernel) = variant.kernel(dispatch.pass) else {
                continue;
            };
            recorder.dispatch(kernel, &bindings, &params, dispatch.grid)?;
        }
        Ok(())
    }
}

/// What the dispatches of a backward bind.
pub(super) struct BackwardTensors<'a> {
    pub inputs: [&'a Tensor; 3],
    pub dout: &'a Tensor,
    pub softmax_state: &'a Tensor,
    pub row_stats: &'a Tensor,
    pub gradients: [&'a Tensor; 3],
    pub packed: &'a PackedKeys,
    pub packed_gradients: &'a PackedKeys,
    /// Weights of pairs of rows and keys, for kernels that keep them in memory.
    pub weights: Option<&'a Tensor>,
}

/// The gradients, and the buffers that the recording used on the way. As long as these are held, nothing that is recorded next is
/// put there, so that plans need not know what would fit.
struct Recorded {
    gradients: Gradients,
    _scratch: (Tensor, [PackedKeys; 2], Option<Tensor>),
}
