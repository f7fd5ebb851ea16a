//! From tokens or embeddings to features and logits.

use super::{FIRST_POSITION, LongNet};
use crate::config::{AttentionShape, UNEQUAL_LENGTHS, in_u32};
use crate::device::DType;
use crate::distributed::SequenceShare;
use crate::error::{Error, Result};
use crate::nn::{Block, LayerNorm, Memory, Parameters, Pass, StepSeed, Sublayer};
use crate::ops::{Positions, Rotations, ScaledAdd, TokenIds, embedding};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Input of a model.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids, batch * tokens of them.
    Tokens(&'a TokenIds),
    /// Embeddings, (batch, tokens, width), of the type of the model's activations. The model adds positions and applies the embedding norm.
    Embeddings(&'a Tensor),
    /// The input of the first layer, (batch, tokens, width), of the type of the model's activations; see [`Output::states`].
    Embedded(&'a Tensor),
}

/// Lengths of a call, and the sequence that cross attention attends to.
#[derive(Clone, Debug)]
pub struct Call {
    /// Batch and lengths.
    pub shape: AttentionShape,
    /// For models with cross attention: the encoder's output, (batch, tokens, width), and the shape of the attention to it.
    pub memory: Option<(Tensor, AttentionShape)>,
    /// This rank's share of the sequence, of which the input is that part; `None` for whole sequences.
    pub share: Option<SequenceShare>,
    /// Number of the first row among all that follow from a step's seed: 0, but where the rows of a batch come in several calls.
    pub first_row: usize,
}

impl Call {
    /// A call without an encoder.
    pub fn new(shape: AttentionShape) -> Self {
        Self {
            shape,
            memory: None,
            share: None,
            first_row: 0,
        }
    }

    /// A call of the part of a sequence that this rank has. All ranks of the share's group make it.
    ///
    /// What fails in attention is told to all ranks. After an error elsewhere in a model, on one rank alone, the others wait for it in the
    /// next attention: tell them with [`agree`](crate::distributed::Group::agree), or drop the group.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for a sequence that is too long.
    pub fn of_share(share: SequenceShare) -> Result<Self> {
        Ok(Self {
            shape: AttentionShape::new(1, share.range().len())?,
            memory: None,
            share: Some(share),
            first_row: 0,
        })
    }

    /// Sets the [number of the first row](Self::first_row), of a share the number of the sequence's first.
    pub fn with_first_row(self, first_row: usize) -> Self {
        Self { first_row, ..self }
    }

    /// Position of the first token, and number of tokens of the sequence.
    pub(super) fn place(&self) -> (usize, usize) {
        let whole = (0, self.shape.seq_len());
        let of = |share: &SequenceShare| (share.range().start, share.tokens());
        self.share.as_ref().map_or(whole, of)
    }
}

/// Results of a forward.
#[derive(Clone, Debug)]
pub struct Output {
    /// Output of the last layer after the final norm, (batch, tokens, width), of the type of the model's activations.
    pub features: Tensor,
    /// The input of the first layer, then the output of each layer. Empty unless asked for.
    pub states: Vec<Tensor>,
}

/// Rotations and positions of a sequence; `None` for a model without xPos.
pub(super) type Turns = Option<(Rotations, Positions)>;

impl LongNet {
    /// Records the features of `input`. With `keep_states`, also returns the input of the first layer and the output of every layer.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights that do not fit; [`Error::InvalidShape`] for inputs that do not fit, a missing
    /// memory, and positions beyond the learned ones; [`Error::TokenOutOfRange`] for tokens that are not in the vocabulary;
    /// [`Error::InvalidConfig`] for tokens where the model has no vocabulary, and for positions beyond those of xPos; the errors of
    /// leasing and recording.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: Input<'_>,
        call: &Call,
        keep_states: bool,
    ) -> Result<Output> {
        weights.expect_list("weights", &self.list)?;
        let (mut x, _) = self.embed_from(recorder, weights, input, call, call.place().0, None)?;
        let turns = self.turns_of(recorder, call)?;
        let pass = pass(weights, call, &turns, None);
        let mut states = Vec::new();
        for blocks in &self.layers {
            if keep_states {
                states.push(x.clone());
            }
            x = run_layer(blocks, recorder, &pass, x, None)?.0;
        }
        if keep_states {
            states.push(x.clone());
        }
        let features = self.finish(recorder, weights, x)?;
        Ok(Output { features, states })
    }

    /// Records layer number `index` alone, over its input `x`. Use it to run a model layer by layer, for example to submit each
    /// layer by itself. The [final norm](Self::final_norm) follows after the last layer. With `watched`, also returns the
    /// [attention weights](crate::DilatedAttention::token_weights) of that token in the layer's self-attention.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::InvalidShape`] when there is no such layer or token; [`Error::InvalidConfig`] for a
    /// watched token of a share.
    pub fn layer(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        call: &Call,
        index: usize,
        x: Tensor,
        watched: Option<usize>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        weights.expect_list("weights", &self.list)?;
        if watched.is_some() && call.share.is_some() {
            return Err(Error::InvalidConfig {
                what: "attention weights of a token",
                given: "over ranks".to_owned(),
                need: "a call of the whole sequence",
            });
        }
        let blocks = self.layers.get(index).ok_or_else(|| Error::InvalidShape {
            what: "layer".into(),
            given: index.to_string(),
            need: format!("one of the {} layers", self.layers.len()),
        })?;
        let shape = [call.shape.batch(), call.shape.seq_len()];
        let shape = [shape[0], shape[1], self.width()];
        let pool_id = recorder.context().pool().id();
        x.expect("state", &shape, self.config.activations, pool_id)?;
        let turns = self.turns_of(recorder, call)?;
        run_layer(
            blocks,
            recorder,
            &pass(weights, call, &turns, None),
            x,
            watched,
        )
    }

    /// The norm after the last layer, if there is one.
    pub fn final_norm(&self) -> Option<&LayerNorm> {
        self.final_norm.as_ref()
    }

    /// Records the logits of features, (batch, tokens, vocabulary), f32.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without output projection, [`Error::ParameterMismatch`] for weights of another model;
    /// the errors of recording.
    pub fn logits(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        features: &Tensor,
    ) -> Result<Tensor> {
        weights.expect_list("weights", &self.list)?;
        let projection = self.projection()?;
        let vocab = self.config.vocab_size.unwrap_or(0);
        let rows = features
            .shape()
            .split_last()
            .map_or(&[][..], |(_, rows)| rows);
        let logits = recorder.empty("logits", &[rows, &[vocab]].concat(), DType::F32)?;
        projection.forward(recorder, weights, features.matrix(), logits.matrix())?;
        Ok(logits)
    }

    /// Records the input of the first layer: embedded tokens plus positions, normalised if the model has an embedding norm.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn embed(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: Input<'_>,
        call: &Call,
    ) -> Result<Tensor> {
        weights.expect_list("weights", &self.list)?;
        let first = call.place().0;
        let (x, _) = self.embed_from(recorder, weights, input, call, first, None)?;
        Ok(x)
    }

    /// As [`embed`](Self::embed), from position `first` on, with dropout in training. Also returns the input of the embedding norm,
    /// if there is one.
    pub(super) fn embed_from(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        input: Input<'_>,
        call: &Call,
        first: usize,
        step: Option<StepSeed>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (batch, seq_len) = (call.shape.batch(), call.shape.seq_len());
        let shape = [batch, seq_len, self.width()];
        let pool_id = recorder.context().pool().id();
        let dtype = self.config.activations;
        let mut x = match (input, self.embed_tokens) {
            (Input::Embedded(x), _) => {
                x.expect("embedded input", &shape, dtype, pool_id)?;
                return Ok((x.clone(), None));
            }
            (Input::Embeddings(x), _) => {
                x.expect("embeddings", &shape, dtype, pool_id)?;
                match self.embed_positions {
                    // A copy, to which positions are added.
                    Some(_) => self.scaled(recorder, x, 1.0)?,
                    None => x.clone(),
                }
            }
            (Input::Tokens(ids), Some(table)) => {
                if Some(ids.len()) != batch.checked_mul(seq_len) {
                    return Err(Error::InvalidShape {
                        what: "tokens".into(),
                        given: format!("{} ids", ids.len()),
                        need: format!("{batch} x {seq_len} ({UNEQUAL_LENGTHS})"),
                    });
                }
                let x = recorder.empty("activations", &shape, dtype)?;
                let scale = self.config.embedding_scale;
                let table = weights.get(table).matrix();
                embedding(recorder, ids, table, scale, (x.matrix(), false))?;
                x
            }
            (Input::Tokens(_), None) => {
                return Err(Error::InvalidConfig {
                    what: "tokens",
                    given: "a model without vocab_size".to_owned(),
                    need: "embeddings",
                });
            }
        };
        if let Some(table) = self.embed_positions {
            let ids = self.position_ids(recorder, call, first)?;
            let table = weights.get(table).matrix();
            embedding(recorder, &ids, table, 1.0, (x.matrix(), true))?;
        }
        let mut before_norm = None;
        if let Some(norm) = &self.embedding_norm {
            let normal = recorder.empty("activations", &shape, dtype)?;
            norm.forward(recorder, weights, x.matrix(), normal.matrix())?;
            before_norm = Some(std::mem::replace(&mut x, normal));
        }
        if let Some(dropout) = self.embedding_dropout(step)? {
            let dropped = recorder.empty("activations", &shape, dtype)?;
            ScaledAdd::new(x.matrix(), 1.0)
                .with_dropout(
                    Some(dropout),
                    StepSeed::first_element(step, 0, self.width()),
                )
                .write(recorder, dropped.matrix())?;
            x = dropped;
        }
        Ok((x, before_norm))
    }

    /// Ids of rows in the table of learned positions, one for each token of the batch.
    pub(super) fn position_ids(
        &self,
        recorder: &mut Recorder,
        call: &Call,
        first: usize,
    ) -> Result<TokenIds> {
        let seq_len = call.shape.seq_len();
        let limit = self.config.learned_positions.unwrap_or(0);
        if first as u64 + seq_len as u64 > limit as u64 {
            return Err(Error::InvalidShape {
                what: "positions".into(),
                given: format!("{first}..{}", first as u64 + seq_len as u64),
                need: format!("positions below {limit}, which the model has learned"),
            });
        }
        let row = |position: usize| in_u32(FIRST_POSITION + position);
        let item = row(first)..row(first + seq_len);
        let ids: Vec<u32> = (0..call.shape.batch()).flat_map(|_| item.clone()).collect();
        TokenIds::upload(recorder, &ids, limit + FIRST_POSITION)
    }

    pub(super) fn scaled(&self, recorder: &mut Recorder, x: &Tensor, scale: f32) -> Result<Tensor> {
        let copy = recorder.empty("activations", x.shape(), x.dtype())?;
        ScaledAdd::new(x.matrix(), scale).write(recorder, copy.matrix())?;
        Ok(copy)
    }

    /// Rotations of a call's positions; `None` for a model without xPos.
    pub(super) fn turns_of(&self, recorder: &mut Recorder, call: &Call) -> Result<Turns> {
        let (first, total) = call.place();
        self.turns(recorder, first, call.shape.seq_len(), total)
    }

    /// Rotations of `seq_len` positions from `first` on, of a sequence of `total`; `None` for a model without xPos.
    pub(super) fn turns(
        &self,
        recorder: &mut Recorder,
        first: usize,
        seq_len: usize,
        total: usize,
    ) -> Result<Turns> {
        let Some(base) = self.config.xpos_scale_base else {
            return Ok(None);
        };
        let positions = self.config.positions(first, seq_len, total)?;
        let head_dim = self.config.attention().head_dim();
        let rotations = Rotations::upload(recorder, head_dim, total, base)?;
        Ok(Some((rotations, positions)))
    }

    pub(super) fn finish(
        &self,
        recorder: &mut Recorder,
        weights: &Parameters,
        x: Tensor,
    ) -> Result<Tensor> {
        let Some(norm) = &self.final_norm else {
            return Ok(x);
        };
        let features = recorder.empty("features", x.shape(), x.dtype())?;
        norm.forward(recorder, weights, x.matrix(), features.matrix())?;
        Ok(features)
    }
}

/// Records the blocks of a layer. The weights of the watched token are those of the self-attention, which is the first block.
fn run_layer(
    blocks: &[Block],
    recorder: &mut Recorder,
    pass: &Pass<'_>,
    mut x: Tensor,
    watched: Option<usize>,
) -> Result<(Tensor, Option<Tensor>)> {
    let mut token_weights = None;
    for block in blocks {
        let watched = watched.filter(|_| matches!(block.sublayer, Sublayer::SelfAttention(_)));
        let (y, weights) = block.infer(recorder, pass, &x, watched)?;
        token_weights = token_weights.or(weights);
        x = y;
    }
    Ok((x, token_weights))
}

pub(super) fn pass<'a>(
    weights: &'a Parameters,
    call: &'a Call,
    turns: &'a Turns,
    step_seed: Option<u64>,
) -> Pass<'a> {
    Pass {
        weights,
        shape: &call.shape,
        memory: call
            .memory
            .as_ref()
            .map(|(tensor, shape)| Memory { tensor, shape }),
        positions: turns
            .as_ref()
            .map(|(rotations, positions)| (rotations, *positions)),
        step_seed,
        share: call.share.as_ref(),
        first_row: call.first_row,
    }
}
