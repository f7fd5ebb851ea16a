//! A layer over a sequence that the device does not hold.

use super::LongNet;
use crate::config::AttentionShape;
use crate::context::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::nn::{Block, MultiheadAttention, MultiheadInput, Parameters, Pass, Sublayer};
use crate::ops::Rotations;
use crate::out_of_core::{
    AttentionLayer, Inputs, LayerNeeds, OutOfCoreOptions, OutOfCorePlan, OutOfCoreRun, TokenSink,
    TokenSource,
};
use crate::plan::Tokens;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Most bytes of the rows of a layer's input that go through its products at a time, and the part of the budget that they may be.
const CHUNK_BYTES: u64 = 8 << 20;
const CHUNKS_OF_BUDGET: u64 = 64;

impl LongNet {
    /// Plans a layer over one sequence of `tokens` tokens whose activations are stored as `dtype`, so that it takes at most as much
    /// device memory as `options` say, the weights not counted. See [`out_of_core`](crate::out_of_core).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without layers or with cross attention; [`Error::PlanOverBudget`] when the budget does not
    /// hold the smallest block, and as [`DilatedAttention::plan_out_of_core`](crate::DilatedAttention::plan_out_of_core).
    pub fn plan_layer_out_of_core(
        &self,
        tokens: usize,
        dtype: DType,
        options: &OutOfCoreOptions,
    ) -> Result<OutOfCorePlan> {
        let (_, attention, _) = self.parts_of_layer(0)?;
        let attention = attention.attention();
        let shape = AttentionShape::new(1, 1)?;
        let [projections, network] = self.config.products_flop(&shape);
        let row_bytes = 4 * self.width() as u64;
        let chunk_bytes = CHUNK_BYTES.min(options.budget_bytes / CHUNKS_OF_BUDGET);
        // They begin at multiples of 64, as bindings must. At most 8 MiB of rows.
        let chunk_rows = (chunk_bytes / row_bytes / 64 * 64).max(64) as usize;
        let chunk_rows = chunk_rows.min(tokens.max(1));
        let needs = LayerNeeds {
            model: format!("{:?}", self.config),
            chunk_rows,
            chunk_bytes: self.chunk_bytes(attention.context(), chunk_rows, tokens)?,
            token_flop: projections + network,
        };
        OutOfCorePlan::new(attention, tokens, dtype, options, Some(needs))
    }

    /// Begins layer number `index` over the sequence `x`, as `plan` says: `x` is the layer's input, (token, element) of the plan's type,
    /// and the output goes to `sink`, block after block. The device computes in f32, whatever the model's activations are. Attention
    /// weights, states and dropout are not to be had.
    ///
    /// The activations of a whole model go from one file to the next, layer after layer. The final norm is
    /// [`final_norm`](Self::final_norm).
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when there is no such layer; [`Error::ParameterMismatch`] for weights that do not fit; and as
    /// [`DilatedAttention::run_out_of_core`](crate::DilatedAttention::run_out_of_core).
    pub fn run_layer_out_of_core<'a>(
        &'a self,
        plan: &'a OutOfCorePlan,
        weights: &'a Parameters,
        index: usize,
        x: &'a dyn TokenSource,
        sink: &'a mut dyn TokenSink,
    ) -> Result<OutOfCoreRun<'a>> {
        weights.expect_list("weights", &self.list)?;
        let (_, attention, _) = self.parts_of_layer(index)?;
        let attention = attention.attention();
        let context = attention.context();
        let layer = LayerOutOfCore::new(self, context, weights, index, plan.tokens())?;
        OutOfCoreRun::begin(
            attention,
            plan,
            Inputs::Layer(x),
            Some(Box::new(layer)),
            sink,
        )
    }

    /// The block with the attention of a layer, its attention, and the other blocks.
    fn parts_of_layer(&self, index: usize) -> Result<(&Block, &MultiheadAttention, &[Block])> {
        let blocks = self.layers.get(index).ok_or_else(|| Error::InvalidShape {
            what: "layer".into(),
            given: index.to_string(),
            need: format!("one of the {} layers", self.layers.len()),
        })?;
        match blocks.split_first() {
            Some((first, others)) if self.config.cross_attention.is_none() => {
                match &first.sublayer {
                    Sublayer::SelfAttention(attention) => Ok((first, attention, others)),
                    _ => Err(Self::no_such_layer()),
                }
            }
            _ => Err(Self::no_such_layer()),
        }
    }

    fn no_such_layer() -> Error {
        Error::InvalidConfig {
            what: "layer out of core",
            given: "one with cross attention".to_owned(),
            need: "one of self-attention and a feed-forward network",
        }
    }

    /// Device bytes that the layer takes besides the tensors of attention, with `most` rows at a time, found by a dry run.
    fn chunk_bytes(&self, context: &Context, most: usize, tokens: usize) -> Result<u64> {
        let dry_run = context.own_dry_run();
        let width = self.width();
        let model = Self::new(&dry_run, self.config.clone())?;
        let weights = Parameters::submitted(&dry_run, "weights", &model.list, |_, _, _| Ok(()))?;
        let mut recorder = dry_run.recorder("layer out of core");
        let mut lease = || recorder.zeros("rows", &[most, width], DType::F32);
        let [q, k, v, attended] = [lease()?, lease()?, lease()?, lease()?];
        recorder.submit()?;
        let pool = dry_run.pool();
        pool.force_trim();
        pool.reset_peaks();
        let before = pool.stats().held_bytes.current;
        let layer = LayerOutOfCore::new(&model, &dry_run, &weights, 0, tokens)?;
        let mut recorder = dry_run.recorder("layer out of core");
        let x = recorder.zeros("x", &[most, width], DType::F32)?;
        recorder.submit()?;
        // The last chunk of some tokens is shorter, and buffers for it are of other sizes.
        for rows in [most, most * 3 / 4, most / 2, most / 4, 1] {
            let rows = rows.max(1);
            let tokens = 0..rows as u64;
            let [x, q, k, v, attended] =
                [&x, &q, &k, &v, &attended].map(|tensor| tensor.view(&[rows, width], 0));
            let mut recorder = dry_run.recorder("layer out of core");
            layer.queries(&mut recorder, &x, &tokens, &q)?;
            layer.keys(&mut recorder, &x, &tokens, [&k, &v])?;
            recorder.submit()?;
            let mut recorder = dry_run.recorder("layer out of core");
            layer.output(&mut recorder, &x, &tokens, &attended)?;
            recorder.submit()?;
        }
        Ok(pool.stats().held_bytes.peak - before)
    }
}

/// Elements of a weight that are read at a time: 1 MiB.
const PIECE_ELEMENTS: u64 = 256 << 10;

/// The layer around the attention of a run.
struct LayerOutOfCore<'a> {
    model: &'a LongNet,
    weights: &'a Parameters,
    context: Context,
    index: usize,
    /// Tokens of the sequence.
    tokens: usize,
    rotations: Option<Rotations>,
}

impl<'a> LayerOutOfCore<'a> {
    fn new(
        model: &'a LongNet,
        context: &Context,
        weights: &'a Parameters,
        index: usize,
        tokens: usize,
    ) -> Result<Self> {
        let mut recorder = context.recorder("rotations");
        let turns = model.turns(&mut recorder, 0, tokens, tokens)?;
        recorder.submit()?;
        Ok(Self {
            model,
            weights,
            context: context.clone(),
            index,
            tokens,
            rotations: turns.map(|(rotations, _)| rotations),
        })
    }

    /// Calls `record` with the layer over `tokens`.
    fn over<T>(
        &self,
        tokens: &Tokens,
        record: impl FnOnce((&Block, &MultiheadAttention, &[Block]), &Pass<'_>) -> Result<T>,
    ) -> Result<T> {
        // They are fewer than 2^31.
        let (first, count) = (tokens.start as usize, (tokens.end - tokens.start) as usize);
        let shape = AttentionShape::new(1, count)?;
        let positions = match &self.rotations {
            None => None,
            Some(rotations) => {
                let positions = self.model.config.positions(first, count, self.tokens)?;
                Some((rotations, positions))
            }
        };
        let pass = Pass {
            weights: self.weights,
            shape: &shape,
            memory: None,
            positions,
            step_seed: None,
            share: None,
            first_row: 0,
        };
        record(self.model.parts_of_layer(self.index)?, &pass)
    }

    /// Calls `record` with the input of attention over `tokens`.
    fn attention_over(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tokens: &Tokens,
        record: impl FnOnce(&mut Recorder, &MultiheadAttention, &MultiheadInput<'_>) -> Result<()>,
    ) -> Result<()> {
        self.over(tokens, |(block, attention, _), pass| {
            let normal = block.input(recorder, pass, x)?;
            let input = normal.as_ref().unwrap_or(x).matrix();
            let input = MultiheadInput {
                shape: pass.shape,
                x: input,
                memory: input,
                positions: pass.positions,
                share: None,
            };
            record(recorder, attention, &input)
        })
    }
}

impl AttentionLayer for LayerOutOfCore<'_> {
    fn queries(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tokens: &Tokens,
        q: &Tensor,
    ) -> Result<()> {
        self.attention_over(recorder, x, tokens, |recorder, attention, input| {
            let done = attention.queries_into(recorder, self.weights, input, q);
            done.map(drop)
        })
    }

    fn keys(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tokens: &Tokens,
        kv: [&Tensor; 2],
    ) -> Result<()> {
        self.attention_over(recorder, x, tokens, |recorder, attention, input| {
            let done = attention.memory_into(recorder, self.weights, input, kv);
            done.map(drop)
        })
    }

    fn output(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tokens: &Tokens,
        attended: &Tensor,
    ) -> Result<Tensor> {
        self.over(tokens, |(block, attention, others), pass| {
            let mut y = block.after_attention(recorder, pass, attention, x, attended)?;
            for block in others {
                y = block.infer(recorder, pass, &y, None)?.0;
            }
            Ok(y)
        })
    }

    fn model(&self) -> String {
        format!("{:?}", self.model.config)
    }

    fn identity(&self) -> Result<String> {
        let mut digest = crc32fast::Hasher::new();
        let own = format!("layers.{}.", self.index);
        for (spec, tensor) in self.weights.iter() {
            if !spec.name.contains(&own) {
                continue;
            }
            digest.update(spec.name.as_bytes());
            let count = tensor.num_elements();
            // In pieces, as they are saved: readback buffers of the largest weights are no part of the plan.
            for first in (0..count).step_by(PIECE_ELEMENTS as usize) {
                let piece = PIECE_ELEMENTS.min(count - first) as usize;
                let mut recorder = self.context.recorder("weights");
                let download = recorder.download_bytes(&tensor.view(&[piece], first * 4))?;
                recorder.submit()?;
                digest.update(&download.wait()?);
            }
        }
        Ok(format!(
            "number {} of {}, with weights of CRC-32 {:08x}",
            self.index,
            self.model(),
            digest.finalize()
        ))
    }
}
