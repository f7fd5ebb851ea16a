//! One token at a time, from cached keys and values.
//!
//! A cache holds, for each layer, keys and values of all tokens so far as attention sees them (after norms and positions), in
//! pooled buffers that grow by doubling. xPos has one fixed centre here, since later queries must fit earlier keys; it cancels in
//! their products, so a step equals the row of a whole forward up to rounding.
//!
//! Where torchscale's rows move (its rates do not divide its lengths), the row of a token may take the query of an earlier
//! one: such models also keep their queries.

use std::sync::Arc;

use super::forward::{Turns, pass};
use super::{Call, Input, LongNet};
use crate::config::{AttentionShape, Mask};
use crate::error::{Error, Result};
use crate::nn::{Block, Multihead, MultiheadInput, ParameterList, Parameters, Pass, Sublayer};
use crate::ops::{Positions, Rotations};
use crate::plan::ByteRange;
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::{DType, Tensor};

/// Keys and values of the tokens so far, of one model and batch.
///
/// Steps are recorded like everything else: a step whose recording is dropped has not happened. [`truncate`](Self::truncate)
/// then takes the cache back to the length it had. Buffers that it grew out of are kept for that until the recording which
/// copied them has run.
#[derive(Clone, Debug)]
pub struct KvCache {
    list: Arc<ParameterList>,
    batch: u32,
    len: u32,
    capacity: u32,
    layers: Vec<LayerCache>,
    rotations: Option<Rotations>,
    /// Oldest first.
    outgrown: Vec<Outgrown>,
}

/// Buffers that were too small for more than `len` tokens.
#[derive(Clone, Debug)]
struct Outgrown {
    len: u32,
    capacity: u32,
    layers: Vec<LayerCache>,
    rotations: Option<Rotations>,
    /// Arrives when the recording that copied them has run, and never when it was dropped.
    copied: Arc<Download<f32>>,
}

#[derive(Clone, Debug)]
struct LayerCache {
    k: Tensor,
    v: Tensor,
    /// Queries, where rows may take an earlier one.
    q: Option<Tensor>,
    /// Keys and values of the encoder's output.
    cross: Option<[Tensor; 2]>,
}

impl KvCache {
    /// Tokens so far.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit before the cache grows.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Forgets all tokens from `len` on. The encoder's output, if any, is kept unless nothing is left.
    pub fn truncate(&mut self, len: u32) {
        self.len = self.len.min(len);
        // Larger buffers hold these tokens only if the recording that copied them has run; smaller ones do in any case.
        while let Some(smaller) = self.outgrown.pop_if(|smaller| self.len <= smaller.len) {
            self.capacity = smaller.capacity;
            self.layers = smaller.layers;
            self.rotations = smaller.rotations;
        }
        self.release_copied();
        if self.len == 0 {
            self.layers.iter_mut().for_each(|layer| layer.cross = None);
        }
    }

    /// Gives up the buffers whose tokens are known to be in larger ones.
    fn release_copied(&mut self) {
        let copied = |download: &Download<f32>| download.is_ready() && download.wait().is_ok();
        self.outgrown.retain(|smaller| !copied(&smaller.copied));
    }

    /// Keys and values of layer `layer`, (batch, capacity, H, D), of which the first [`len`](Self::len) tokens are set.
    pub fn layer(&self, layer: usize) -> Option<[&Tensor; 2]> {
        self.layers.get(layer).map(|layer| [&layer.k, &layer.v])
    }

    /// Rotations and positions of all tokens, for models with xPos.
    pub fn positions(&self, model: &LongNet) -> Result<Option<(&Rotations, Positions)>> {
        match &self.rotations {
            None => Ok(None),
            Some(rotations) => {
                let positions = model.config.decode_positions(0, self.capacity)?;
                Ok(Some((rotations, positions)))
            }
        }
    }
}

impl LongNet {
    /// A cache for `batch` sequences, with room for `capacity` tokens (it grows).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without causal mask, or with xPos and segments that allow no fixed centre; the
    /// errors of leasing.
    pub fn new_cache(&self, recorder: &mut Recorder, batch: u32, capacity: u32) -> Result<KvCache> {
        self.expect_causal()?;
        let capacity = capacity.max(1);
        let keeps_queries = self.config.rows_move();
        let mut layers = Vec::new();
        for _ in &self.layers {
            let mut tensor = |label| self.cache_tensor(recorder, label, batch, capacity);
            layers.push(LayerCache {
                k: tensor("cached k")?,
                v: tensor("cached v")?,
                q: if keeps_queries {
                    Some(tensor("cached q")?)
                } else {
                    None
                },
                cross: None,
            });
        }
        Ok(KvCache {
            list: self.list.clone(),
            batch,
            len: 0,
            capacity,
            layers,
            rotations: self.cache_rotations(recorder, capacity)?,
            outgrown: Vec::new(),
        })
    }

    fn expect_causal(&self) -> Result<()> {
        match self.config.attention.get_mask() {
            Mask::Causal => Ok(()),
            Mask::Full => Err(Error::InvalidConfig {
                what: "decoding",
                given: "a model without causal mask".to_owned(),
                need: "LongNetConfig::decoder",
            }),
        }
    }

    fn cache_tensor(
        &self,
        recorder: &mut Recorder,
        label: &'static str,
        batch: u32,
        capacity: u32,
    ) -> Result<Tensor> {
        let config = &self.config.attention;
        let shape = [batch, capacity, config.num_heads(), config.head_dim()];
        recorder.empty(label, &shape.map(|dim| dim as usize), DType::F32)
    }

    fn cache_rotations(&self, recorder: &mut Recorder, capacity: u32) -> Result<Option<Rotations>> {
        let Some(base) = self.config.xpos_scale_base else {
            return Ok(None);
        };
        self.config.decode_positions(0, capacity)?;
        let head_dim = self.config.attention.head_dim();
        Rotations::upload(recorder, head_dim, capacity, base).map(Some)
    }

    /// Makes room for `len` tokens.
    fn grow(&self, recorder: &mut Recorder, cache: &mut KvCache, len: u32) -> Result<()> {
        if len <= cache.capacity {
            return Ok(());
        }
        let capacity = len.checked_next_power_of_two().unwrap_or(len);
        let mut larger = self.new_cache(recorder, cache.batch, capacity)?;
        for (from, to) in cache.layers.iter_mut().zip(&mut larger.layers) {
            to.cross = from.cross.clone();
            let queries = from.q.iter().zip(&to.q);
            for (from, to) in [(&from.k, &to.k), (&from.v, &to.v)]
                .into_iter()
                .chain(queries)
            {
                self.copy_rows(
                    recorder,
                    (from, cache.capacity),
                    (to, capacity, 0),
                    cache.len,
                );
            }
        }
        larger.len = cache.len;
        let copied = recorder.zeros("cache grown", &[1], DType::F32)?;
        let smaller = Outgrown {
            len: cache.len,
            capacity: cache.capacity,
            layers: std::mem::take(&mut cache.layers),
            rotations: cache.rotations.take(),
            copied: Arc::new(recorder.download(&copied)?),
        };
        larger.outgrown = std::mem::take(&mut cache.outgrown);
        larger.outgrown.push(smaller);
        *cache = larger;
        Ok(())
    }

    /// Copies `len` rows of each item to another tensor, from row `first` of its items on.
    fn copy_rows(
        &self,
        recorder: &mut Recorder,
        (from, from_len): (&Tensor, u32),
        (to, to_len, first): (&Tensor, u32, u32),
        len: u32,
    ) {
        let row = self.width() * 4;
        for item in 0..from.shape()[0] as u64 {
            let range = ByteRange {
                offset: item * u64::from(from_len) * row,
                size: u64::from(len) * row,
            };
            let offset = (item * u64::from(to_len) + u64::from(first)) * row;
            recorder.copy(from, range, to, offset);
        }
    }

    /// Records the features of `input`, the next tokens of each sequence, and adds their keys and values to the cache. The
    /// first call may have many tokens (a prompt), which are computed together; later ones are computed token by token.
    /// `memory` is the encoder's output for models that attend to one, with the shape of attention to it, of which keys alone
    /// matter here; it is read once, by the first call.
    ///
    /// # Errors
    /// [`Error::OtherModel`] for weights or a cache of another model; [`Error::InvalidShape`] for another batch, items of
    /// different lengths, a memory that is missing, other input that does not fit, and positions beyond the learned ones;
    /// [`Error::InvalidConfig`] for a model without causal mask and for positions beyond those of xPos; the errors of leasing
    /// and recording. The cache is as it was then.
    pub fn decode(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: Input<'_>,
        call: &Call,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        weights.expect_list("weights", &self.list)?;
        self.expect_causal()?;
        let same_list = Arc::ptr_eq(&cache.list, &self.list) || cache.list == self.list;
        if !same_list || cache.layers.len() != self.layers.len() {
            return Err(Error::OtherModel { what: "cache" });
        }
        let (batch, count) = (call.shape.batch(), call.shape.seq_len());
        if batch != cache.batch {
            return Err(Error::InvalidShape {
                what: "batch of a decoding step",
                given: batch.to_string(),
                need: format!("{}, that of the cache", cache.batch),
            });
        }
        if let Some(item) = (0..batch).find(|item| call.shape.valid_len(*item) != count) {
            return Err(Error::InvalidShape {
                what: "valid_lens of a decoding step",
                given: format!("{} for item {item}", call.shape.valid_len(item)),
                need: format!("{count}: all items of a cache have one length"),
            });
        }
        let first = cache.len;
        let Some(len) = first.checked_add(count) else {
            return Err(Error::SizeOverflow {
                what: "tokens of a cache",
                given: format!("{first} + {count}"),
            });
        };
        let embedded = self.embed_from(recorder, weights, input, call, first, None)?;
        // A clone shares the buffers: a failure leaves the given one as it was.
        let mut next = cache.clone();
        next.release_copied();
        self.grow(recorder, &mut next, len)?;
        let features = if first == 0 {
            self.prefill(recorder, weights, embedded, call, &mut next)?
        } else {
            let shape = embedded.shape().to_vec();
            let all = recorder.empty("features", &shape, DType::F32)?;
            for token in 0..count {
                let x = self.row_of(recorder, &embedded, token)?;
                let y = self.step(recorder, weights, x, call, &mut next, first + token)?;
                self.copy_rows(recorder, (&y, 1), (&all, count, token), 1);
            }
            all
        };
        next.len = len;
        *cache = next;
        Ok(features)
    }

    /// Row `token` of each item.
    fn row_of(&self, recorder: &mut Recorder, x: &Tensor, token: u32) -> Result<Tensor> {
        let (batch, count) = (x.shape()[0], x.shape()[1] as u64);
        if count == 1 {
            return Ok(x.clone());
        }
        let width = self.width();
        let row = recorder.empty("activations", &[batch, 1, width as usize], DType::F32)?;
        for item in 0..batch as u64 {
            let range = ByteRange {
                offset: (item * count + u64::from(token)) * width * 4,
                size: width * 4,
            };
            recorder.copy(x, range, &row, item * width * 4);
        }
        Ok(row)
    }

    /// All tokens of a prompt together, as a forward does, with the cache's positions.
    fn prefill(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        mut x: Tensor,
        call: &Call,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let count = call.shape.seq_len();
        let turns = self.cache_turns(cache, 0, count)?;
        let call = call_of(call, count)?;
        let pass = pass(weights, &call, &turns, None);
        for (blocks, layer) in self.layers.iter().zip(&mut cache.layers) {
            for block in blocks {
                let (y, saved) = block.forward(recorder, &pass, &x)?;
                match (&block.sublayer, saved.attention()) {
                    (Sublayer::SelfAttention(_), Some(saved)) => {
                        let [k, v] = saved.keys_and_values();
                        let to = (cache.capacity, 0);
                        self.copy_rows(recorder, (k, count), (&layer.k, to.0, to.1), count);
                        self.copy_rows(recorder, (v, count), (&layer.v, to.0, to.1), count);
                        if let Some(q) = &layer.q {
                            let from = (saved.queries(), count);
                            self.copy_rows(recorder, from, (q, to.0, to.1), count);
                        }
                    }
                    (Sublayer::CrossAttention(_), Some(saved)) => {
                        layer.cross = Some(saved.keys_and_values().map(Clone::clone));
                    }
                    _ => {}
                }
                x = y;
            }
        }
        self.finish(recorder, weights, x)
    }

    fn cache_turns(&self, cache: &KvCache, first: u32, count: u32) -> Result<Turns> {
        match &cache.rotations {
            None => Ok(None),
            Some(rotations) => {
                let positions = self.config.decode_positions(first, count)?;
                Ok(Some((rotations.clone(), positions)))
            }
        }
    }

    /// One token of each item, (batch, 1, width).
    fn step(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        mut x: Tensor,
        call: &Call,
        cache: &mut KvCache,
        token: u32,
    ) -> Result<Tensor> {
        let one = call_of(call, 1)?;
        let turns = self.cache_turns(cache, token, 1)?;
        let pass = pass(weights, &one, &turns, None);
        let capacity = cache.capacity;
        for (blocks, layer) in self.layers.iter().zip(&cache.layers) {
            for block in blocks {
                x = match &block.sublayer {
                    Sublayer::FeedForward(_) => block.forward(recorder, &pass, &x)?.0,
                    Sublayer::SelfAttention(attention) => self.step_block(
                        recorder,
                        &pass,
                        block,
                        attention,
                        &x,
                        |recorder, input| {
                            let ([k, v], _) = attention.project_memory(recorder, weights, input)?;
                            let (q, _) = attention.project_queries(recorder, weights, input)?;
                            self.copy_rows(recorder, (&k, 1), (&layer.k, capacity, token), 1);
                            self.copy_rows(recorder, (&v, 1), (&layer.v, capacity, token), 1);
                            let queries = layer.q.as_ref();
                            if let Some(queries) = queries {
                                self.copy_rows(recorder, (&q, 1), (queries, capacity, token), 1);
                            }
                            let tensors = [queries.unwrap_or(&q), &layer.k, &layer.v];
                            attention.attention().forward_step(
                                recorder,
                                token,
                                tensors,
                                queries.is_some(),
                            )
                        },
                    )?,
                    Sublayer::CrossAttention(attention) => {
                        let (Some([k, v]), Some((_, shape))) = (&layer.cross, &one.memory) else {
                            return Err(Error::InvalidShape {
                                what: "memory",
                                given: "none".to_owned(),
                                need: "the encoder's output".to_owned(),
                            });
                        };
                        self.step_block(
                            recorder,
                            &pass,
                            block,
                            attention,
                            &x,
                            |recorder, input| {
                                let input = MultiheadInput {
                                    shape,
                                    positions: None,
                                    ..*input
                                };
                                let (q, _) =
                                    attention.project_queries(recorder, weights, &input)?;
                                let attended =
                                    attention.attention().forward(recorder, shape, &q, k, v)?;
                                Ok(attended.out)
                            },
                        )?
                    }
                };
            }
        }
        self.finish(recorder, weights, x)
    }

    /// Norm, `attend`, output projection and residual.
    fn step_block(
        &self,
        recorder: &mut Recorder,
        pass: &Pass<'_>,
        block: &Block,
        attention: &Multihead,
        x: &Tensor,
        attend: impl FnOnce(&mut Recorder, &MultiheadInput<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let normal = block.input(recorder, pass, x)?;
        let rows = normal.as_ref().unwrap_or(x).matrix();
        let input = MultiheadInput {
            shape: pass.shape,
            x: rows,
            memory: rows,
            positions: pass.positions,
        };
        let mixed = attend(recorder, &input)?;
        let sum = recorder.empty("activations", x.shape(), DType::F32)?;
        let residual = Some((x.matrix(), block.residual_scale));
        attention.project_out(recorder, pass.weights, &mixed, residual, sum.matrix())?;
        if !block.post_norm {
            return Ok(sum);
        }
        let y = recorder.empty("activations", x.shape(), DType::F32)?;
        block
            .norm
            .forward(recorder, pass.weights, sum.matrix(), y.matrix())?;
        Ok(y)
    }
}

/// `call` for `count` tokens of each item, whatever number of queries its memory was given for.
fn call_of(call: &Call, count: u32) -> Result<Call> {
    let batch = call.shape.batch();
    let memory = match &call.memory {
        // Attention that is not dense is of two sequences of one length, and says so itself.
        Some((tensor, shape)) if shape.is_cross() => {
            let lens: Vec<u32> = (0..shape.batch())
                .map(|item| shape.valid_key_len(item))
                .collect();
            let shape = AttentionShape::cross(shape.batch(), count, shape.key_len())?;
            Some((tensor.clone(), shape.with_valid_key_lens(&lens)?))
        }
        memory => memory.clone(),
    };
    let shape = AttentionShape::new(batch, count)?;
    Ok(Call { shape, memory })
}
