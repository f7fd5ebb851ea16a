//! Stages of the slide encoder: uploads of features, position vectors, embeddings.

use super::slide::Cell;
use super::{LayerEmbedding, Slide, SlideAttention, SlideEncoder, SlideOutput, SlideOutputs};
use crate::config::AttentionShape;
use crate::device::DType;
use crate::error::{Result, Token};
use crate::longnet::{Call, LongNet};
use crate::models::activations::upload;
use crate::models::finite::{PartOf, ResultPart, by_item, by_token};
use crate::models::staged::{Outline, Stage, Stages, expect_below, rows_of_an_upload};
use crate::ops::{TokenIds, embedding, mean_of_rows};
use crate::tensor::Tensor;

/// A run of tiles of a slide whose features one recording uploads.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    slide: usize,
    begin: usize,
    end: usize,
}

/// The run over a batch of slides.
#[derive(Debug)]
pub struct SlideStages<'a> {
    encoder: SlideEncoder,
    slides: &'a [Slide<'a>],
    outputs: SlideOutputs,
    cells: Vec<Vec<Cell>>,
    chunks: Vec<Chunk>,
    /// Tokens of the longest slide.
    tokens: usize,
}

/// Tensors that stages hand on to the next.
#[derive(Clone, Debug, Default)]
pub struct SlideTensors {
    /// The table of half position vectors, until all features are uploaded.
    positions: Option<Tensor>,
    /// Embeddings, (embedding, slide, width): from CLS and from the mean of the encoded tokens, then of each requested state.
    embeddings: Option<Tensor>,
}

/// Downloads besides states.
#[derive(Clone, Copy, Debug)]
pub enum SlideReadout {
    /// All embeddings.
    Embeddings,
    /// Tokens after the encoder's norm.
    Encoded,
    /// Attention of the CLS token in a layer.
    Attention(usize),
}

impl<'a> SlideStages<'a> {
    /// Checks shapes and cells, but not the values of features.
    pub(super) fn new(
        encoder: &SlideEncoder,
        slides: &'a [Slide<'a>],
        outputs: &SlideOutputs,
    ) -> Result<(Outline, Self)> {
        let config = &encoder.config;
        let cells = config.check_slides(slides)?;
        expect_below(
            "layer whose attention is wanted",
            &outputs.attention,
            config.num_layers,
        )?;
        let lens: Vec<usize> = cells.iter().map(|cells| cells.len() + 1).collect();
        let longest = lens.iter().copied().max().unwrap_or(0);
        let shape = AttentionShape::new(slides.len(), longest)?.with_valid_lens(&lens)?;
        let step = rows_of_an_upload(config.feature_dim);
        let chunks = cells.iter().enumerate().flat_map(|(slide, cells)| {
            let tiles = cells.len();
            (0..tiles).step_by(step).map(move |begin| Chunk {
                slide,
                begin,
                end: tiles.min(begin + step),
            })
        });
        let chunks: Vec<_> = chunks.collect();
        let operations = |chunk: &Chunk| {
            let tiles = (chunk.end - chunk.begin) as u64;
            tiles * config.feature_dim as u64 * config.width() as u64
        };
        let outline = Outline {
            shape,
            part_operations: chunks.iter().map(operations).collect(),
            states: outputs.states.clone(),
            allow_nonfinite: outputs.allow_nonfinite,
        };
        let stages = Self {
            encoder: encoder.clone(),
            slides,
            outputs: outputs.clone(),
            chunks,
            cells,
            tokens: longest,
        };
        Ok((outline, stages))
    }

    /// Makes the state and uploads the table of half position vectors, which it returns. Also makes the tensor of embeddings.
    fn start(&self, stage: &mut Stage<'_, Self>) -> Result<(Tensor, Tensor)> {
        let (config, recorder) = (&self.encoder.config, &mut stage.recorder);
        let (slides, width) = (self.slides.len(), config.width());
        let dims = [slides, self.tokens, width];
        let ragged = self.cells.iter().any(|cells| cells.len() + 1 < self.tokens);
        // Rows after the tokens of a shorter slide are computed, too. They are zeros, so that they stay finite.
        let state = match ragged {
            true => recorder.zeros("activations", &dims, config.activations)?,
            false => recorder.empty("activations", &dims, config.activations)?,
        };
        let dims = [config.grid_cells, width / 2];
        let positions = recorder.upload_undivided("positions", &dims, &config.position_table())?;
        let num_states = match self.outputs.layers {
            true => config.num_layers + 1,
            false => 0,
        };
        let dims = [2 + 2 * num_states, slides, width];
        stage.carried = SlideTensors {
            positions: Some(positions.clone()),
            embeddings: Some(recorder.empty("embeddings", &dims, DType::F32)?),
        };
        Ok((state, positions))
    }

    /// Records both embeddings of each slide, from CLS and from the mean of its tiles, as pair number `place`.
    fn embed_slides(
        &self,
        stage: &mut Stage<'_, Self>,
        place: usize,
        state: &Tensor,
    ) -> Result<()> {
        let Some(embeddings) = &stage.carried.embeddings else {
            return Ok(());
        };
        let recorder = &mut stage.recorder;
        let slides = self.slides.len();
        for (slide, cells) in self.cells.iter().enumerate() {
            let cls = slide * self.tokens;
            let tiles = cls + 1..cls + 1 + cells.len();
            for (kind, rows) in [(0, cls..cls + 1), (1, tiles)] {
                let mean = mean_of_rows(recorder, state.matrix().slice(rows)?)?;
                let row = (2 * place + kind) * slides + slide;
                let to = embeddings.matrix().slice(row..row + 1)?;
                let norm = &self.encoder.norm;
                norm.forward(recorder, stage.weights, mean.matrix(), to)?;
            }
        }
        Ok(())
    }
}

impl Stages for SlideStages<'_> {
    type Output = SlideOutput;
    type Carried = SlideTensors;
    type Readout = SlideReadout;

    const LABELS: [&'static str; 3] = ["slide features", "slide encoder layer", "slide embedding"];

    fn encoder(&self) -> &LongNet {
        &self.encoder.encoder
    }

    fn check_values(&self) -> Result<()> {
        self.encoder.config.check_features(self.slides)
    }

    fn embed(
        &self,
        stage: &mut Stage<'_, Self>,
        state: Option<&Tensor>,
        part: usize,
    ) -> Result<Tensor> {
        let (state, positions) = match (state, &stage.carried.positions) {
            (Some(state), Some(positions)) => (state.clone(), positions.clone()),
            _ => self.start(stage)?,
        };
        let (recorder, weights) = (&mut stage.recorder, stage.weights);
        let config = &self.encoder.config;
        let Chunk { slide, begin, end } = self.chunks[part];
        let dim = config.feature_dim;
        let values = &self.slides[slide].features[begin * dim..end * dim];
        let shape = [end - begin, dim];
        let features = upload(recorder, "features", &shape, values, config.activations)?;
        let first = slide * self.tokens;
        if begin == 0 {
            let cls = TokenIds::upload(recorder, &[0], 1)?;
            let table = weights.get(self.encoder.cls_token).matrix();
            let row = state.matrix().slice(first..first + 1)?;
            embedding(recorder, &cls, table, 1.0, (row, false))?;
        }
        let rows = state.matrix().slice(first + 1 + begin..first + 1 + end)?;
        let patch_embed = &self.encoder.patch_embed;
        patch_embed.forward(recorder, weights, features.matrix(), rows)?;
        // A position vector has two halves: first that of y, then that of x.
        let cells = self.cells[slide][begin..end].iter();
        let halves: Vec<u32> = cells.flat_map(|cell| [cell.y, cell.x]).collect();
        let ids = TokenIds::upload(recorder, &halves, config.grid_cells)?;
        let rows = rows.reshape(config.width() / 2)?;
        embedding(recorder, &ids, positions.matrix(), 1.0, (rows, true))?;
        Ok(state)
    }

    fn layer(
        &self,
        stage: &mut Stage<'_, Self>,
        call: &Call,
        index: usize,
        state: Tensor,
    ) -> Result<Tensor> {
        let cls = self.outputs.attention.contains(&index).then_some(0);
        let (recorder, weights) = (&mut stage.recorder, stage.weights);
        let layer = self
            .encoder()
            .layer(recorder, weights, call, index, state, cls);
        let (state, attention) = layer?;
        if let Some(attention) = attention {
            stage.read(SlideReadout::Attention(index), &attention)?;
        }
        // All features are uploaded, so the table is not needed any more.
        stage.carried.positions = None;
        Ok(state)
    }

    fn read_state(&self, stage: &mut Stage<'_, Self>, index: usize, state: &Tensor) -> Result<()> {
        match self.outputs.layers {
            true => self.embed_slides(stage, 1 + index, state),
            false => Ok(()),
        }
    }

    fn read_out(&self, stage: &mut Stage<'_, Self>, state: &Tensor) -> Result<()> {
        let recorder = &mut stage.recorder;
        let encoded = recorder.empty("encoded", state.shape(), state.dtype())?;
        if let Some(norm) = self.encoder().final_norm() {
            norm.forward(recorder, stage.weights, state.matrix(), encoded.matrix())?;
        }
        self.embed_slides(stage, 0, &encoded)?;
        if self.outputs.encoded {
            stage.read(SlideReadout::Encoded, &encoded)?;
        }
        if let Some(embeddings) = stage.carried.embeddings.take() {
            stage.read(SlideReadout::Embeddings, &embeddings)?;
        }
        Ok(())
    }

    fn output(
        &self,
        states: Vec<(usize, Vec<f32>)>,
        readouts: Vec<(SlideReadout, Vec<f32>)>,
    ) -> SlideOutput {
        let attention = &self.encoder.config.attention;
        let mut output = SlideOutput {
            slides: self.slides.len(),
            tokens: self.tokens,
            width: self.encoder.config.width(),
            cls: Vec::new(),
            pool: Vec::new(),
            layers: Vec::new(),
            states,
            encoded: None,
            attention: Vec::new(),
        };
        for (readout, values) in readouts {
            match readout {
                SlideReadout::Embeddings => {
                    let mut rows = values
                        .chunks(output.slides * output.width)
                        .map(<[f32]>::to_vec);
                    // First a pair for the slide, then a pair for each state.
                    let mut pair = || Some((rows.next()?, rows.next()?));
                    (output.cls, output.pool) = pair().unwrap_or_default();
                    let layers = std::iter::from_fn(pair);
                    let layers = layers.map(|(cls, pool)| LayerEmbedding { cls, pool });
                    output.layers = layers.collect();
                }
                SlideReadout::Encoded => output.encoded = Some(values),
                SlideReadout::Attention(layer) => output.attention.push(SlideAttention {
                    layer,
                    branches: attention.branches().len(),
                    heads: attention.num_heads(),
                    tokens: output.tokens,
                    weights: values,
                }),
            }
        }
        output
    }

    fn results<'o>(&self, output: &'o SlideOutput, shape: &AttentionShape) -> Vec<ResultPart<'o>> {
        let by_slide =
            |result, of, values: &'o [f32]| by_item(result, of, values, self.slides.len());
        let by_token = |result, of, values: &'o [f32]| by_token(result, of, values, shape);
        let mut results = Vec::new();
        results.extend(by_slide("pool", PartOf::End, &output.pool));
        results.extend(by_slide("cls", PartOf::End, &output.cls));
        for (state, layer) in output.layers.iter().enumerate() {
            results.extend(by_slide("layers", PartOf::State(state), &layer.pool));
            results.extend(by_slide("layers", PartOf::State(state), &layer.cls));
        }
        for (state, values) in &output.states {
            results.extend(by_token("states", PartOf::Tokens(*state), values));
        }
        if let Some(encoded) = &output.encoded {
            results.extend(by_token("encoded", PartOf::End, encoded));
        }
        for attention in &output.attention {
            results.extend(by_slide("attention", PartOf::End, &attention.weights));
        }
        results
    }

    fn token(row: usize) -> Token {
        match row.checked_sub(1) {
            None => Token::Cls,
            Some(tile) => Token::Tile(tile),
        }
    }
}
