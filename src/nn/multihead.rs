//! Multi-head dilated attention: projections around [`DilatedAttention`].

use super::{Init, LayerNorm, Linear, ParameterList, Parameters};
use crate::attention::{DilatedAttention, ForwardOutput};
use crate::config::{AttentionShape, DilatedAttentionConfig};
use crate::context::Context;
use crate::device::DType;
use crate::distributed::SequenceShare;
use crate::error::{Error, Result};
use crate::ops::{Matrix, Positions, Rotations, XposRole, xpos};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Layer norms inside multi-head attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProjectionNorm {
    /// No norm.
    #[default]
    None,
    /// A norm of the attention output before the output projection: `inner_attn_ln` (sub-LN, torchscale).
    Inner,
    /// Norms of the projected queries (`q_ln`) and keys (`k_ln`), over all heads together. `q_ln` is applied again to the attention
    /// output, before the output projection (dilated-attention-pytorch).
    QueryKey,
}

/// Options of multi-head attention.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiheadAttentionConfig {
    /// Heads, branches and mask.
    pub attention: DilatedAttentionConfig,
    /// Layer norms inside.
    pub norm: ProjectionNorm,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Whether xPos is applied to queries and keys.
    pub xpos: bool,
    /// Factor on the initial weights of the value and output projections.
    pub gain: f32,
}

/// Multi-head dilated attention with its four projections.
#[derive(Clone, Debug)]
pub struct MultiheadAttention {
    attention: DilatedAttention,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    inner_norm: Option<LayerNorm>,
    q_norm: Option<LayerNorm>,
    k_norm: Option<LayerNorm>,
    xpos: bool,
}

/// Inputs of multi-head attention, besides the parameters.
#[derive(Clone, Copy, Debug)]
pub struct MultiheadInput<'a> {
    /// Batch and lengths.
    pub shape: &'a AttentionShape,
    /// Activations from which queries are projected, (batch * tokens, E).
    pub x: Matrix<'a>,
    /// Activations from which keys and values are projected; the same as `x` in self-attention.
    pub memory: Matrix<'a>,
    /// Rotations and positions, for layers with xPos.
    pub positions: Option<(&'a Rotations, Positions)>,
    /// This rank's share of the sequence, of which `shape` is then that part; `None` for whole sequences.
    pub share: Option<&'a SequenceShare>,
}

/// Where a backward writes the gradients of its inputs.
#[derive(Clone, Copy, Debug)]
pub struct MultiheadGradients<'a> {
    /// Gradient of `x`.
    pub dx: Matrix<'a>,
    /// Whether the gradient is added to `dx` instead of overwriting it.
    pub accumulate: bool,
    /// Gradient of the memory, which is always added. `None` in self-attention, where it is part of `dx`.
    pub dmemory: Option<Matrix<'a>>,
}

/// Tensors of a forward that its backward needs.
#[derive(Clone, Debug)]
pub struct MultiheadSaved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Projected queries and keys before their norms, if they have norms.
    before_norms: Option<[Tensor; 2]>,
    forward: ForwardOutput,
}

impl MultiheadSaved {
    /// The attention output before layer norm and output projection, (B, N, H, D).
    pub fn attended(&self) -> &Tensor {
        &self.forward.out
    }

    /// The queries that enter attention, after norm and xPos, (B, N, H, D).
    pub fn queries(&self) -> &Tensor {
        &self.q
    }

    /// The keys and values that enter attention, after norm and xPos, (B, N, H, D).
    pub fn keys_and_values(&self) -> [&Tensor; 2] {
        [&self.k, &self.v]
    }
}

impl MultiheadAttention {
    /// Declares the parameters `prefix.{q,k,v,out}_proj` and those of the norms.
    ///
    /// # Errors
    /// As [`DilatedAttention::new`].
    pub fn new(
        context: &Context,
        list: &mut ParameterList,
        prefix: &str,
        config: &MultiheadAttentionConfig,
    ) -> Result<Self> {
        let attention = DilatedAttention::new(context, config.attention.clone())?;
        let width = config.attention.embed_dim();
        let mut linear = |name: &str, gain| {
            let name = format!("{prefix}.{name}");
            let weight = Init::xavier_uniform(width, width, gain);
            Linear::new(list, &name, [width; 2], weight, Some(Init::Zeros))
        };
        let half = std::f32::consts::FRAC_1_SQRT_2;
        let [q_proj, k_proj, v_proj, out_proj] = [
            linear("q_proj", half),
            linear("k_proj", half),
            linear("v_proj", half * config.gain),
            linear("out_proj", config.gain),
        ];
        let mut norm = |name: &str, wanted: bool| {
            let name = format!("{prefix}.{name}");
            wanted.then(|| LayerNorm::new(list, &name, width, config.norm_eps))
        };
        let query_key = config.norm == ProjectionNorm::QueryKey;
        Ok(Self {
            attention,
            q_proj,
            k_proj,
            v_proj,
            out_proj,
            inner_norm: norm("inner_attn_ln", config.norm == ProjectionNorm::Inner),
            q_norm: norm("q_ln", query_key),
            k_norm: norm("k_ln", query_key),
            xpos: config.xpos,
        })
    }

    /// The dilated attention between the projections.
    pub fn attention(&self) -> &DilatedAttention {
        &self.attention
    }

    /// The norm of the attention output, if there is one.
    fn mixed_norm(&self) -> Option<&LayerNorm> {
        self.inner_norm.as_ref().or(self.q_norm.as_ref())
    }

    fn width(&self) -> usize {
        self.attention.config().embed_dim()
    }

    /// A tensor with the rows and the type of a matrix, and the width of the model.
    fn like(
        &self,
        recorder: &mut Recorder,
        label: &'static str,
        matrix: Matrix<'_>,
    ) -> Result<Tensor> {
        let shape = [matrix.rows(), self.width()];
        recorder.empty(label, &shape, matrix.dtype())
    }

    /// A tensor (batch, len, heads, elements) for queries, keys or values.
    fn heads(
        &self,
        recorder: &mut Recorder,
        label: &'static str,
        shape: &AttentionShape,
        len: usize,
        dtype: DType,
    ) -> Result<Tensor> {
        let config = self.attention.config();
        let shape = [shape.batch(), len, config.num_heads(), config.head_dim()];
        recorder.empty(label, &shape, dtype)
    }

    /// Records projected queries (or keys) and their norm, if they have one, written to `to`. Returns the projection before the norm.
    fn project(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        (linear, norm): (&Linear, Option<&LayerNorm>),
        x: Matrix<'_>,
        to: &Tensor,
    ) -> Result<Option<Tensor>> {
        let rows = to.matrix().reshape(self.width())?;
        let Some(norm) = norm else {
            linear.forward(recorder, weights, x, rows)?;
            return Ok(None);
        };
        let before = self.like(recorder, "projected", x)?;
        linear.forward(recorder, weights, x, before.matrix())?;
        norm.forward(recorder, weights, before.matrix(), rows)?;
        Ok(Some(before))
    }

    /// Records the queries, keys and values that enter attention. Also returns queries and keys before their norms, if they have norms.
    pub(crate) fn project_all(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: &MultiheadInput<'_>,
    ) -> Result<([Tensor; 3], Option<[Tensor; 2]>)> {
        let (q, q_before) = self.project_queries(recorder, weights, input)?;
        let ([k, v], k_before) = self.project_memory(recorder, weights, input)?;
        Ok(([q, k, v], q_before.zip(k_before).map(|(q, k)| [q, k])))
    }

    /// Records the queries that enter attention. Also returns them before their norm, if they have one.
    pub(crate) fn project_queries(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: &MultiheadInput<'_>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let q = self.heads(
            recorder,
            "q",
            input.shape,
            input.shape.seq_len(),
            input.x.dtype(),
        )?;
        let before = self.queries_into(recorder, weights, input, &q)?;
        Ok((q, before))
    }

    /// Records that `q` holds the queries that enter attention. Returns them before their norm, if they have one.
    pub(crate) fn queries_into(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: &MultiheadInput<'_>,
        q: &Tensor,
    ) -> Result<Option<Tensor>> {
        let layers = (&self.q_proj, self.q_norm.as_ref());
        let before = self.project(recorder, weights, layers, input.x, q)?;
        self.turn(recorder, input, q, XposRole::Query, false)?;
        Ok(before)
    }

    /// Records the keys and values that enter attention. Also returns the keys before their norm, if they have one.
    pub(crate) fn project_memory(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: &MultiheadInput<'_>,
    ) -> Result<([Tensor; 2], Option<Tensor>)> {
        let MultiheadInput { shape, memory, .. } = *input;
        let k = self.heads(recorder, "k", shape, shape.key_len(), memory.dtype())?;
        let v = self.heads(recorder, "v", shape, shape.key_len(), memory.dtype())?;
        let before = self.memory_into(recorder, weights, input, [&k, &v])?;
        Ok(([k, v], before))
    }

    /// Records that `k` and `v` hold the keys and values that enter attention. Returns the keys before their norm, if they have one.
    pub(crate) fn memory_into(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: &MultiheadInput<'_>,
        [k, v]: [&Tensor; 2],
    ) -> Result<Option<Tensor>> {
        let memory = input.memory;
        let layers = (&self.k_proj, self.k_norm.as_ref());
        let before = self.project(recorder, weights, layers, memory, k)?;
        self.project(recorder, weights, (&self.v_proj, None), memory, v)?;
        self.turn(recorder, input, k, XposRole::Key, false)?;
        Ok(before)
    }

    fn turn(
        &self,
        recorder: &mut Recorder,
        input: &MultiheadInput<'_>,
        x: &Tensor,
        role: XposRole,
        inverse: bool,
    ) -> Result<()> {
        if !self.xpos {
            return Ok(());
        }
        let (rotations, positions) = input.positions.ok_or_else(|| Error::InvalidShape {
            what: "positions".into(),
            given: "none".to_owned(),
            need: "rotations and positions, for attention with xPos".to_owned(),
        })?;
        let rows = x.matrix().reshape(self.width())?;
        xpos(recorder, rotations, rows, role, positions, inverse)
    }

    /// Records the norm and the output projection of an attention output to `y`, plus `scale * residual` if a residual is given.
    pub(crate) fn project_out(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        mixed: &Tensor,
        residual: Option<(Matrix<'_>, f32)>,
        y: Matrix<'_>,
    ) -> Result<()> {
        let mixed = mixed.matrix().reshape(self.width())?;
        let normal = self.normal(recorder, weights, mixed)?;
        let mixed = normal.as_ref().map_or(mixed, Tensor::matrix);
        let mut product = self.out_proj.product(weights, mixed);
        if let Some((residual, scale)) = residual {
            product = product.with_residual(residual, scale);
        }
        product.write(recorder, y)
    }

    /// Records the norm of an attention output; `None` if there is no norm.
    fn normal(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        mixed: Matrix<'_>,
    ) -> Result<Option<Tensor>> {
        let Some(norm) = self.mixed_norm() else {
            return Ok(None);
        };
        let normal = self.like(recorder, "mixed heads", mixed)?;
        norm.forward(recorder, weights, mixed, normal.matrix())?;
        Ok(Some(normal))
    }

    /// Records `y = attention(x, memory)`, plus `scale * residual` if a residual is given. Activations are f32, f16 or bf16, all of
    /// the same type.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when positions for xPos are missing; the errors of [`DilatedAttention::forward`] and of the operations.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: &MultiheadInput<'_>,
        residual: Option<(Matrix<'_>, f32)>,
        y: Matrix<'_>,
    ) -> Result<MultiheadSaved> {
        let ([q, k, v], before_norms) = self.project_all(recorder, weights, input)?;
        let inputs = [&q, &k, &v];
        let forward =
            self.attention
                .record_forward_in(recorder, input.share, input.shape, inputs)?;
        self.project_out(recorder, weights, &forward.out, residual, y)?;
        Ok(MultiheadSaved {
            q,
            k,
            v,
            before_norms,
            forward,
        })
    }

    /// Records the backward: gradients of `x` and of the memory, and those of the parameters, which are added to `gradients`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward(
        &self,
        recorder: &mut Recorder,
        [weights, gradients]: [&Parameters; 2],
        input: &MultiheadInput<'_>,
        saved: &MultiheadSaved,
        dy: Matrix<'_>,
        to: MultiheadGradients<'_>,
    ) -> Result<()> {
        let MultiheadGradients {
            dx,
            accumulate,
            dmemory,
        } = to;
        let MultiheadInput {
            shape, x, memory, ..
        } = *input;
        let width = self.width();
        let MultiheadSaved {
            q,
            k,
            v,
            before_norms,
            forward,
        } = saved;
        let sets = [weights, gradients];
        // Output projection and its norm.
        let mixed = forward.out.matrix().reshape(width)?;
        let dmixed = self.heads(
            recorder,
            "d mixed heads",
            shape,
            shape.seq_len(),
            DType::F32,
        )?;
        let dmixed_rows = dmixed.matrix().reshape(width)?;
        match (self.mixed_norm(), self.normal(recorder, weights, mixed)?) {
            (Some(norm), Some(normal)) => {
                self.out_proj
                    .backward_parameters(recorder, gradients, normal.matrix(), dy)?;
                // The normalised output is not needed any more, so its buffer takes its gradient.
                let dnormal = normal.matrix();
                self.out_proj
                    .backward_input(recorder, weights, dy, (dnormal, false))?;
                norm.backward(recorder, sets, mixed, dnormal, (dmixed_rows, false))?;
            }
            _ => {
                self.out_proj
                    .backward_parameters(recorder, gradients, mixed, dy)?;
                self.out_proj
                    .backward_input(recorder, weights, dy, (dmixed_rows, false))?;
            }
        }
        let heads = self.attention.record_backward_in(
            recorder,
            input.share,
            shape,
            [q, k, v],
            &forward.softmax_state,
            &dmixed,
        )?;
        drop(dmixed);
        self.turn(recorder, input, &heads.dq, XposRole::Query, true)?;
        self.turn(recorder, input, &heads.dk, XposRole::Key, true)?;
        let [dq, dk, dv] =
            [&heads.dq, &heads.dk, &heads.dv].map(|tensor| tensor.matrix().reshape(width));
        let (mut dq, mut dk, dv) = (dq?, dk?, dv?);
        // Backward of the norms of queries and keys.
        let dbefore = match (before_norms, &self.q_norm, &self.k_norm) {
            (Some([q_before, k_before]), Some(q_norm), Some(k_norm)) => {
                let dq_before = self.like(recorder, "dq", q_before.matrix())?;
                let dk_before = self.like(recorder, "dk", k_before.matrix())?;
                q_norm.backward(
                    recorder,
                    sets,
                    q_before.matrix(),
                    dq,
                    (dq_before.matrix(), false),
                )?;
                k_norm.backward(
                    recorder,
                    sets,
                    k_before.matrix(),
                    dk,
                    (dk_before.matrix(), false),
                )?;
                Some((dq_before, dk_before))
            }
            _ => None,
        };
        if let Some((dq_before, dk_before)) = &dbefore {
            (dq, dk) = (dq_before.matrix(), dk_before.matrix());
        }
        self.q_proj
            .backward_parameters(recorder, gradients, x, dq)?;
        self.k_proj
            .backward_parameters(recorder, gradients, memory, dk)?;
        self.v_proj
            .backward_parameters(recorder, gradients, memory, dv)?;
        self.q_proj
            .backward_input(recorder, weights, dq, (dx, accumulate))?;
        let dmemory = dmemory.unwrap_or(dx);
        self.k_proj
            .backward_input(recorder, weights, dk, (dmemory, true))?;
        self.v_proj
            .backward_input(recorder, weights, dv, (dmemory, true))
    }
}
