//! Dilated attention on the device.

mod backward;
mod packed;
#[cfg(not(target_arch = "wasm32"))]
mod share;
mod state;
#[cfg(feature = "models")]
mod step;
mod weights;

pub use backward::Gradients;
#[cfg(not(target_arch = "wasm32"))]
pub use share::BranchExchange;
#[cfg(all(feature = "models", not(target_arch = "wasm32")))]
pub(crate) use share::ShareOfRank;
pub use state::{UNCOVERED_LSE, softmax_lse};

use crate::config::{AttentionShape, CallOptions, DilatedAttentionConfig, UNEQUAL_LENGTHS};
use crate::context::{Context, WarmUp, warm_up};
use crate::device::{DType, ElementFormat};
#[cfg(feature = "models")]
use crate::distributed::SequenceShare;
use crate::error::{Error, Result};
use crate::kernels::attention_backward::{BackwardFamily, BackwardVariant};
use crate::kernels::attention_forward::{ForwardFamily, ForwardVariant};
use crate::kernels::{
    AttentionFamily, AttentionLayout, AttentionVariant, Choice, Family, Kernel, Reason,
};
use crate::plan::ForwardPlan;
use crate::plan::dispatch::AttentionDispatch;
use crate::recorder::Recorder;
use crate::tensor::Tensor;
use packed::PackedKeys;

/// Dilated attention with fixed options, on one context.
///
/// ```no_run
/// use dilated_attention::{Context, DilatedAttention, DilatedAttentionConfig};
/// let context = Context::new_blocking()?;
/// let config = DilatedAttentionConfig::new(8, 64, &[2048, 8192], &[1, 4])?;
/// let attention = DilatedAttention::new(&context, config)?;
/// let zeros = vec![0f32; 16_384 * 8 * 64];
/// let mut recorder = context.recorder("layer 0");
/// let q = recorder.upload("q", &[1, 16_384, 8, 64], &zeros)?;
/// let result = attention.forward(&mut recorder, &q, &q, &q)?;
/// let out = recorder.download::<f32>(&result.out)?;
/// recorder.submit()?;
/// assert_eq!(out.wait()?.len(), zeros.len());
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DilatedAttention {
    context: Context,
    config: DilatedAttentionConfig,
    /// The kernel for f32, or the one that the caller chose; `choice` derives kernels for other types from it.
    forward_choice: Choice<ForwardVariant>,
    backward_choice: Choice<BackwardVariant>,
}

/// The results of a forward.
#[derive(Clone, Debug)]
pub struct ForwardOutput {
    /// Attention output, (B, N, H, D), of the type of the inputs. 0 where no branch covers a token.
    pub out: Tensor,
    /// The softmax state of each token and head, over the keys of all branches: (B, N, H, 2), f32. A backward needs nothing else
    /// from the forward. With it, the softmax can be merged with one over other keys.
    ///
    /// The state is a pair `(m, s)` with `s = sum(2^(score - m))` over the keys and `score = softmax_scale * log2(e) * q . k`. `m`
    /// is the largest score, or a number at most 8 below it. So `s` is at least 1, and at most 256 times the number of keys. Zero
    /// keys have a score of 0. The state is `(0, 0)` where no branch covers a token, and `s` is 0 nowhere else.
    ///
    /// To merge the states of two sets of keys, take `m = max(m1, m2)` and `s = s1 * 2^(m1 - m) + s2 * 2^(m2 - m)`; the merged
    /// output is the mean of the two outputs, weighted by the two summands of `s`. [`softmax_lse`] turns states into log-sum-exp.
    pub softmax_state: Tensor,
}

/// That cross attention of two sequences has no shares.
#[cfg(feature = "models")]
fn no_cross_share() -> Error {
    Error::InvalidConfig {
        what: "attention over ranks",
        given: "cross attention of two sequences".to_owned(),
        need: "self-attention, or cross attention of sequences of one length",
    }
}

/// That a browser has no ranks to wait for.
#[cfg(all(feature = "models", target_arch = "wasm32"))]
fn no_share() -> Error {
    Error::InvalidConfig {
        what: "attention over ranks",
        given: "a browser, where nothing may wait for other ranks".to_owned(),
        need: "a program of its own",
    }
}

/// What the dispatches of a forward bind.
struct ForwardTensors<'a> {
    q: &'a Tensor,
    kv: [&'a Tensor; 2],
    packed: &'a PackedKeys,
    out: &'a Tensor,
    softmax_state: &'a Tensor,
}

impl DilatedAttention {
    /// Attention with the options `config`. It uses the kernels that [`tune`](crate::tuning::tune) has measured to be the fastest;
    /// without measurements, those that suit the context's device.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when no kernel supports the configuration.
    pub fn new(context: &Context, config: DilatedAttentionConfig) -> Result<Self> {
        let (tuner, caps) = (context.tuner(), context.caps());
        let forward = ForwardFamily::of(&config, ElementFormat::F32);
        let backward = BackwardFamily::of(&config, ElementFormat::F32);
        let forward_choice = tuner.choose(&forward, caps);
        let backward_choice = tuner.choose(&backward, caps);
        forward_choice.variant.check(config.head_dim(), caps)?;
        backward_choice.variant.check(config.head_dim(), caps)?;
        Ok(Self {
            context: context.clone(),
            config,
            forward_choice,
            backward_choice,
        })
    }

    /// The same, with a forward kernel of the caller's choice. For tensors of another type than its own it is compiled for
    /// theirs, but for cooperative matrices, which are for f16 only: then the device's own choice takes its place.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the kernel does not fit the head size, [`Error::Unsupported`] when it does not fit the device.
    #[cfg(any(feature = "testing", not(target_arch = "wasm32")))]
    pub(crate) fn with_forward_kernel(self, variant: ForwardVariant) -> Result<Self> {
        let caps = self.context.caps_for(variant.format);
        variant.check(self.config.head_dim(), caps)?;
        Ok(Self {
            forward_choice: variant.into(),
            ..self
        })
    }

    /// Replaces the kernels of the backward.
    ///
    /// # Errors
    /// As [`with_forward_kernel`](Self::with_forward_kernel).
    #[cfg(any(feature = "testing", not(target_arch = "wasm32")))]
    pub(crate) fn with_backward_kernels(self, variant: BackwardVariant) -> Result<Self> {
        let caps = self.context.caps_for(variant.format);
        variant.check(self.config.head_dim(), caps)?;
        Ok(Self {
            backward_choice: variant.into(),
            ..self
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// The options.
    pub fn config(&self) -> &DilatedAttentionConfig {
        &self.config
    }

    /// The forward's kernel for tensors of `dtype` and why it was chosen, in words.
    ///
    /// # Errors
    /// [`Error::WrongDType`] for integers.
    pub fn forward_kernel(&self, dtype: DType) -> Result<String> {
        Ok(self.forward_choice(dtype)?.to_string())
    }

    /// The kernel of the forward and why it was chosen.
    ///
    /// # Errors
    /// [`Error::WrongDType`] for integers.
    pub(crate) fn forward_choice(&self, dtype: DType) -> Result<Choice<ForwardVariant>> {
        self.choice_for(&self.forward_choice, dtype)
    }

    /// The kernel `given`, which the caller chose or a measurement found, for tensors of `dtype`. Usually it is the same kernel
    /// compiled for that type. But kernels with cooperative matrices take f16 only, and where they suit device and type, they
    /// replace a kernel that was measured with f32.
    fn choice_for<L: AttentionLayout>(
        &self,
        given: &Choice<AttentionVariant<L>>,
        dtype: DType,
    ) -> Result<Choice<AttentionVariant<L>>> {
        let format = ElementFormat::of("q", dtype, self.context.caps())?;
        let caps = self.context.caps_for(format);
        if given.variant.format.dtype() == dtype {
            return Ok(given.clone());
        }
        let of_device = AttentionFamily::of(&self.config, format).choice(caps);
        let instead = of_device.variant.is_cooperative() && given.reason != Reason::Caller;
        if instead || given.variant.is_cooperative() {
            return Ok(of_device);
        }
        Ok(Choice {
            variant: AttentionVariant {
                format,
                ..given.variant
            },
            reason: given.reason.clone(),
        })
    }

    /// Plans a forward of tensors of `dtype`: its dispatches, buffers and work.
    ///
    /// # Errors
    /// As [`DilatedAttentionConfig::plan_forward`].
    pub fn plan(&self, shape: &AttentionShape, dtype: DType) -> Result<ForwardPlan> {
        let choice = self.forward_choice(dtype)?;
        let caps = self.context.caps_for(choice.variant.format);
        self.config.plan_forward_with(shape, caps, choice)
    }

    /// Compiles the forward's kernels for tensors of `dtype` now instead of at the first call; see [`Context::warm_up`].
    ///
    /// # Errors
    /// As [`Context::warm_up`]; [`Error::WrongDType`] for integers.
    pub fn warm_up(&self, dtype: DType) -> Result<WarmUp> {
        let forward = self.forward_choice(dtype)?.variant.into();
        warm_up::compile(&self.context, &[forward])
    }

    /// Records the attention of `q`, `k` and `v`. Each is (B, N, H, D): batch items, tokens, heads, elements of a head. All have
    /// the same type: f32, f16 or bf16.
    ///
    /// The output has that type, the softmax state is f32, and kernels compute in f32. In half precision the output is rounded each
    /// time a branch is merged into it, because there is no f32 copy of it. The results are leased from the pool. Later calls on
    /// the same recorder may use them, and other recorders once this one was submitted.
    ///
    /// A NaN or an infinity in the inputs affects only the rows that see it. The results of these rows are unspecified.
    ///
    /// # Errors
    /// [`Error::ContextMismatch`], [`Error::WrongDType`], [`Error::InvalidShape`] for tensors that do not fit; the errors of
    /// [`plan`](Self::plan); [`Error::Validation`] when the device refuses a shader;
    /// [`PoolError::BudgetExceeded`](crate::pool::PoolError::BudgetExceeded) and
    /// [`PoolError::OutOfMemory`](crate::pool::PoolError::OutOfMemory) when the pool cannot lend buffers for the results. What was
    /// recorded before the call stays valid.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<ForwardOutput> {
        self.forward_with(recorder, q, k, v, &CallOptions::new())
    }

    /// As [`forward`](Self::forward), for items of different lengths, or for keys of another sequence.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::InvalidShape`] for lengths that do not fit, [`Error::InvalidConfig`] for a configuration
    /// that is not defined for two sequences.
    pub fn forward_with(
        &self,
        recorder: &mut Recorder,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: &CallOptions,
    ) -> Result<ForwardOutput> {
        let shape = options.shape_of(q.shape(), k.shape())?;
        self.record_forward(recorder, &shape, q, k, v)
    }

    /// As [`forward`](Self::forward), of the whole sequences or, with `share`, of this rank's part of one.
    #[cfg(feature = "models")]
    pub(crate) fn record_forward_in(
        &self,
        recorder: &mut Recorder,
        share: Option<&SequenceShare>,
        shape: &AttentionShape,
        inputs: [&Tensor; 3],
    ) -> Result<ForwardOutput> {
        let [q, k, v] = inputs;
        match share {
            None => self.record_forward(recorder, shape, q, k, v),
            Some(_) if shape.is_cross() => Err(no_cross_share()),
            #[cfg(not(target_arch = "wasm32"))]
            Some(share) => self.forward_of_share(recorder, share, inputs),
            #[cfg(target_arch = "wasm32")]
            Some(_) => Err(no_share()),
        }
    }

    pub(crate) fn record_forward(
        &self,
        recorder: &mut Recorder,
        shape: &AttentionShape,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<ForwardOutput> {
        let dtype = q.dtype();
        self.expect(recorder, &[("q", q)], &self.query_shape(shape), dtype)?;
        self.expect(
            recorder,
            &[("k", k), ("v", v)],
            &self.key_shape(shape),
            dtype,
        )?;
        let plan = self.plan(shape, dtype)?;
        let kernel = Kernel::from(plan.variant);
        let packing = packed::kernels(plan.variant.head_dim, plan.variant.format, &plan.dispatches);
        // Compiled before anything is recorded, so that a refused shader leaves the recording as it was.
        self.context
            .compile(&[&[kernel], packing.as_slice()].concat())?;
        let out_shape = self.query_shape(shape);
        let out = recorder.empty("out", &out_shape, dtype)?;
        let softmax_state =
            recorder.empty("softmax_state", &self.state_shape(shape), DType::F32)?;
        let packed =
            PackedKeys::lease(recorder, ["packed k", "packed v"], plan.packed_bytes, dtype)?;
        for &rows in &plan.clears {
            recorder.clear(&out, plan.out_range(rows));
            recorder.clear(&softmax_state, plan.state_range(rows));
        }
        let tensors = ForwardTensors {
            q,
            kv: [k, v],
            packed: &packed,
            out: &out,
            softmax_state: &softmax_state,
        };
        self.record_forward_dispatches(recorder, shape, plan.variant, &plan.dispatches, &tensors)?;
        Ok(ForwardOutput { out, softmax_state })
    }

    fn record_forward_dispatches(
        &self,
        recorder: &mut Recorder,
        shape: &AttentionShape,
        variant: ForwardVariant,
        dispatches: &[AttentionDispatch],
        tensors: &ForwardTensors<'_>,
    ) -> Result<()> {
        let packed = tensors.packed;
        for dispatch in dispatches {
            let params = dispatch.params(&self.config, shape);
            if let Some(kernel) = packed::kernel(variant.head_dim, variant.format, dispatch.pass) {
                let bindings = packed.copied(tensors.kv, dispatch);
                recorder.dispatch(kernel, &bindings, &params, dispatch.grid)?;
                continue;
            }
            let [k, v] = packed.or(tensors.kv, dispatch);
            let bindings = [
                (tensors.q, dispatch.q.bytes),
                (k, dispatch.kv.bytes),
                (v, dispatch.kv.bytes),
                (tensors.out, dispatch.out.bytes),
                (tensors.softmax_state, dispatch.state.bytes),
            ];
            recorder.dispatch(Kernel::from(variant), &bindings, &params, dispatch.grid)?;
        }
        Ok(())
    }

    /// Shape of queries and outputs.
    fn query_shape(&self, shape: &AttentionShape) -> [usize; 4] {
        self.tensor_shape(shape.batch(), shape.seq_len())
    }

    /// Shape of the softmax state.
    fn state_shape(&self, shape: &AttentionShape) -> [usize; 4] {
        let [batch, len, heads, _] = self.query_shape(shape);
        [batch, len, heads, 2]
    }

    /// Shape of keys and values.
    fn key_shape(&self, shape: &AttentionShape) -> [usize; 4] {
        self.tensor_shape(shape.batch(), shape.key_len())
    }

    fn tensor_shape(&self, batch: usize, len: usize) -> [usize; 4] {
        [batch, len, self.config.num_heads(), self.config.head_dim()]
    }

    /// Checks that recorder and tensors belong to this context, and that the tensors have this shape and type.
    fn expect(
        &self,
        recorder: &Recorder,
        tensors: &[(&'static str, &Tensor)],
        shape: &[usize],
        dtype: DType,
    ) -> Result<()> {
        let pool_id = self.context.pool().id();
        if recorder.context().pool().id() != pool_id {
            return Err(Error::ContextMismatch {
                what: "recorder".into(),
                given: recorder.context().pool().id(),
                expected: pool_id,
            });
        }
        for (what, tensor) in tensors {
            tensor
                .expect(*what, shape, dtype, pool_id)
                .map_err(|error| match error {
                    Error::InvalidShape { what, given, need } if tensor.shape().len() == 4 => {
                        Error::InvalidShape {
                            what,
                            given,
                            need: format!(
                                "{need} (batch, tokens, heads, elements; {UNEQUAL_LENGTHS})"
                            ),
                        }
                    }
                    error => error,
                })?;
        }
        Ok(())
    }
}
