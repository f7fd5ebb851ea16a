//! Decoding: one token at a time, from [cached](super::KvCache) keys and values.

use std::sync::Arc;

use super::forward::{Turns, pass};
use super::{Call, Input, KvCache, LongNet};
use crate::config::AttentionShape;
use crate::device::ByteRange;
use crate::error::{Error, Result};
use crate::nn::{Block, MultiheadAttention, MultiheadInput, Parameters, Pass, Sublayer};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

impl LongNet {
    /// Records the features of `input`, the next tokens of each sequence, and adds their keys and values to the cache. The
    /// first call may have many tokens (a prompt), which are computed together; later ones are computed token by token.
    /// `memory` is the encoder's output for models that attend to one, with the shape of attention to it, of which keys alone
    /// matter here; it is read once, by the first call.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights or a cache of another model; [`Error::InvalidShape`] for another batch, items of
    /// different lengths, a memory that is missing, other input that does not fit, and more tokens than kernels or the model's
    /// positions allow; [`Error::InvalidConfig`] for a model without causal mask; the errors of leasing and recording. The cache is as
    /// it was then.
    pub fn decode(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: Input<'_>,
        call: &Call,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        weights.expect_list("weights", &self.list)?;
        self.expect_causal("decoding")?;
        let same_list = Arc::ptr_eq(&cache.list, &self.list) || cache.list == self.list;
        if !same_list || cache.layers.len() != self.layers.len() {
            return Err(Error::ParameterMismatch { what: "cache" });
        }
        let (batch, count) = (call.shape.batch(), call.shape.seq_len());
        if call.share.is_some() {
            return Err(Error::InvalidConfig {
                what: "decoding",
                given: "over ranks".to_owned(),
                need: "a call of the whole sequence on one rank",
            });
        }
        if batch != cache.batch {
            return Err(Error::InvalidShape {
                what: "batch of a decoding step".into(),
                given: batch.to_string(),
                need: format!("{}, that of the cache", cache.batch),
            });
        }
        if let Some(item) = (0..batch).find(|item| call.shape.valid_len(*item) != count) {
            return Err(Error::InvalidShape {
                what: "valid_lens of a decoding step".into(),
                given: format!("{} for item {item}", call.shape.valid_len(item)),
                need: format!("{count}: all items of a cache have one length"),
            });
        }
        let first = cache.len;
        let len = first.saturating_add(count);
        self.expect_decodable("tokens of the cache", len)?;
        let (embedded, _) = self.embed_from(recorder, weights, input, call, first, None)?;
        // A clone shares the buffers: a failure leaves the given one as it was.
        let mut next = cache.clone();
        next.release_copied();
        next.reads(recorder);
        self.grow(recorder, &mut next, len)?;
        let features = if first == 0 {
            self.prefill(recorder, weights, embedded, call, &mut next)?
        } else {
            let shape = embedded.shape().to_vec();
            let all = recorder.empty("features", &shape, embedded.dtype())?;
            for token in 0..count {
                let x = self.row_of(recorder, &embedded, token)?;
                let y = self.step(recorder, weights, x, call, &mut next, first + token)?;
                self.copy_rows(recorder, (&y, 1), (&all, count, token), 1);
            }
            all
        };
        next.extend(recorder, len);
        *cache = next;
        Ok(features)
    }

    /// Row `token` of each item.
    pub(super) fn row_of(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        token: usize,
    ) -> Result<Tensor> {
        let (batch, count) = (x.shape()[0], x.shape()[1] as u64);
        if count == 1 {
            return Ok(x.clone());
        }
        let width = self.width();
        let row_bytes = width as u64 * x.dtype().bytes();
        let row = recorder.empty("activations", &[batch, 1, width], x.dtype())?;
        for item in 0..batch as u64 {
            let range = ByteRange {
                offset: (item * count + token as u64) * row_bytes,
                size: row_bytes,
            };
            recorder.copy(x, range, &row, item * row_bytes);
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

    fn cache_turns(&self, cache: &KvCache, first: usize, count: usize) -> Result<Turns> {
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
        token: usize,
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
                                what: "memory".into(),
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
                                let attended = attention
                                    .attention()
                                    .record_forward(recorder, shape, &q, k, v)?;
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
        attention: &MultiheadAttention,
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
            share: None,
        };
        let mixed = attend(recorder, &input)?;
        drop(normal);
        block.after_attention(recorder, pass, attention, x, &mixed)
    }
}

/// `call` for `count` tokens of each item, whatever number of queries its memory was given for.
fn call_of(call: &Call, count: usize) -> Result<Call> {
    let batch = call.shape.batch();
    let memory = match &call.memory {
        // Attention that is not dense is of two sequences of one length, and says so itself.
        Some((tensor, shape)) if shape.is_cross() => {
            let lens: Vec<usize> = (0..shape.batch())
                .map(|item| shape.valid_key_len(item))
                .collect();
            let shape = AttentionShape::cross(shape.batch(), count, shape.key_len())?;
            Some((tensor.clone(), shape.with_valid_key_lens(&lens)?))
        }
        memory => memory.clone(),
    };
    let shape = AttentionShape::new(batch, count)?;
    Ok(Call {
        shape,
        memory,
        share: None,
        first_row: call.first_row,
    })
}
