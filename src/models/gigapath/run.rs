//! The work of one batch of slides, recording by recording.

use half::{bf16, f16};

use super::outputs::origin_in;
use super::slide::Cell;
use super::{
    LayerEmbedding, Slide, SlideAttention, SlideEncoder, SlideOutput, SlideOutputs, SlideStates,
};
use crate::config::AttentionShape;
use crate::context::Context;
use crate::device::DType;
use crate::error::Origin;
use crate::error::{Error, Result};
use crate::longnet::Call;
use crate::models::recordings::{Recordings, UPLOAD_BYTES};
use crate::nn::Parameters;
use crate::ops::{Matrix, TokenIds, embedding, mean_of_rows};
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Tiles of a slide whose features one recording uploads.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    slide: usize,
    begin: usize,
    end: usize,
}

/// The work of one batch of slides as recordings, to be submitted in their order by whatever means: at once, in slices, in
/// the encoders of an application's frames. Dropping it in between gives everything back.
///
/// ```no_run
/// # use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideOutputs, SlideRun};
/// # use dilated_attention::{Context, Result, nn::Parameters};
/// # fn encode(context: &Context, encoder: &SlideEncoder, weights: &Parameters, slide: Slide<'_>) -> Result<()> {
/// let slides = [slide];
/// let mut run = SlideRun::new(context, encoder, weights, &slides, &SlideOutputs::default())?;
/// let mut done = 0;
/// while let Some(recorder) = run.next_recording()? {
///     recorder.submit()?.wait()?;
///     done += 1;
///     println!("{done} of {}", run.num_recordings());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a run does nothing until its recordings are submitted"]
pub struct SlideRun<'a> {
    context: Context,
    encoder: &'a SlideEncoder,
    weights: &'a Parameters,
    slides: &'a [Slide<'a>],
    outputs: SlideOutputs,
    cells: Vec<Vec<Cell>>,
    chunks: Vec<Chunk>,
    call: Call,
    tokens: usize,
    next: usize,
    /// The halves of position vectors, while features go up.
    positions: Option<Tensor>,
    state: Option<Tensor>,
    /// (embedding, slide, width): CLS and mean of the encoded tokens, then of each state that is wanted.
    embeddings: Option<Tensor>,
    downloads: Downloads,
}

#[derive(Debug, Default)]
struct Downloads {
    embeddings: Option<Download<f32>>,
    states: Vec<(usize, Activations)>,
    encoded: Option<Activations>,
    attention: Vec<(usize, Download<f32>)>,
}

/// A download of activations, whatever their type.
#[derive(Debug)]
enum Activations {
    F32(Download<f32>),
    F16(Download<f16>),
    Bf16(Download<bf16>),
}

impl Activations {
    fn start(recorder: &mut Recorder, tensor: &Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::F16 => Self::F16(recorder.download(tensor)?),
            DType::Bf16 => Self::Bf16(recorder.download(tensor)?),
            _ => Self::F32(recorder.download(tensor)?),
        })
    }

    async fn values(self) -> Result<Vec<f32>> {
        Ok(match self {
            Self::F32(download) => download.await?,
            Self::F16(download) => download.await?.into_iter().map(f16::to_f32).collect(),
            Self::Bf16(download) => download.await?.into_iter().map(bf16::to_f32).collect(),
        })
    }
}

impl<'a> SlideRun<'a> {
    /// Checks everything; nothing is recorded or leased yet.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`] for weights that do not fit; [`Error::TileOutOfGrid`] for a tile outside of the grid and
    /// [`Error::InvalidShape`] for slides without tiles, features of another number or width and outputs of layers that the
    /// encoder does not have, [`Error::FeatureNotFinite`] for features that are not finite as the activations' type holds them,
    /// [`Error::InSlide`] around them when there are several slides.
    pub fn new(
        context: &Context,
        encoder: &'a SlideEncoder,
        weights: &'a Parameters,
        slides: &'a [Slide<'a>],
        outputs: &SlideOutputs,
    ) -> Result<Self> {
        weights.expect_list("weights", &encoder.list)?;
        let config = &encoder.config;
        let cells = config.check_slides(slides)?;
        if !outputs.allow_nonfinite {
            config.check_features(slides)?;
        }
        let last = config.num_layers;
        for (what, wanted, limit) in [
            ("state", &outputs.states, last + 1),
            ("layer whose attention is wanted", &outputs.attention, last),
        ] {
            if let Some(&given) = wanted.iter().find(|given| **given >= limit) {
                return Err(Error::InvalidShape {
                    what,
                    given: given.to_string(),
                    need: format!("one of the {limit} there are, from 0 on"),
                });
            }
        }
        let lens: Vec<usize> = cells.iter().map(|cells| cells.len() + 1).collect();
        let longest = lens.iter().copied().max().unwrap_or(0);
        let shape = AttentionShape::new(slides.len(), longest)?.with_valid_lens(&lens)?;
        let step = (UPLOAD_BYTES / (4 * config.feature_dim)).max(1);
        let chunks = cells.iter().enumerate().flat_map(|(slide, cells)| {
            let tiles = cells.len();
            (0..tiles).step_by(step).map(move |begin| Chunk {
                slide,
                begin,
                end: tiles.min(begin + step),
            })
        });
        Ok(Self {
            context: context.clone(),
            encoder,
            weights,
            slides,
            outputs: outputs.clone(),
            chunks: chunks.collect(),
            cells,
            call: Call::new(shape),
            tokens: longest,
            next: 0,
            positions: None,
            state: None,
            embeddings: None,
            downloads: Downloads::default(),
        })
    }

    /// Number of recordings of the whole run.
    pub fn num_recordings(&self) -> usize {
        self.count()
    }

    /// Number of recordings handed out so far.
    pub fn num_recorded(&self) -> usize {
        self.handed_out()
    }

    /// The fraction of the run's operations that is done, from 0 to 1. Recordings before the one handed out last count as
    /// done; of the last, the fraction `within` (0 to 1) is done. For progress bars.
    pub fn fraction_done(&self, within: f64) -> f64 {
        self.fraction(within)
    }

    /// The next recording, or `None` after the last: each uploads some features or runs one layer.
    ///
    /// # Errors
    /// Those of leasing and recording. The run can be continued when the cause is gone.
    pub fn next_recording(&mut self) -> Result<Option<Recorder>> {
        self.next()
    }

    pub(super) fn shape(&self) -> &AttentionShape {
        &self.call.shape
    }

    /// The results, when all recordings were submitted.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] when recordings are left, [`Error::NonFiniteResult`] for infinite values and NaN unless they are
    /// [allowed](SlideOutputs::allow_nonfinite), and those of [`Download`].
    pub async fn finish(self) -> Result<SlideOutput> {
        if self.next < self.num_recordings() {
            return Err(Error::InvalidShape {
                what: "number of recordings submitted",
                given: self.next.to_string(),
                need: format!("all {}", self.num_recordings()),
            });
        }
        let (slides, width) = (self.slides.len(), self.encoder.config.width());
        let attention = &self.encoder.config.attention;
        let (branches, heads) = (attention.branches().len(), attention.num_heads());
        let mut embeddings = match self.downloads.embeddings {
            Some(download) => download.await?,
            None => Vec::new(),
        }
        .chunks(slides * width)
        .map(<[f32]>::to_vec)
        .collect::<Vec<_>>()
        .into_iter();
        // The last recording downloads two for the slide and two for each state.
        let mut pair = || Some((embeddings.next()?, embeddings.next()?));
        let (cls, pool) = pair().unwrap_or_default();
        let layers = std::iter::from_fn(pair).map(|(cls, pool)| LayerEmbedding { cls, pool });
        let layers = layers.collect();
        let mut states = Vec::new();
        for (state, download) in self.downloads.states {
            let values = download.values().await?;
            states.push(SlideStates { state, values });
        }
        let encoded = match self.downloads.encoded {
            Some(download) => Some(download.values().await?),
            None => None,
        };
        let mut attention = Vec::new();
        for (layer, download) in self.downloads.attention {
            attention.push(SlideAttention {
                layer,
                branches,
                heads,
                tokens: self.tokens,
                weights: download.await?,
            });
        }
        let output = SlideOutput {
            slides,
            tokens: self.tokens,
            width,
            cls,
            pool,
            layers,
            states,
            encoded,
            attention,
        };
        if !self.outputs.allow_nonfinite {
            let tiles: Vec<usize> = self.cells.iter().map(Vec::len).collect();
            output.check_finite(&tiles, self.encoder.config.activations)?;
        }
        Ok(output)
    }

    /// Where values that are not finite arise in the states that were recorded since the last call. What it waits for must be
    /// submitted.
    pub(super) async fn origin(&mut self) -> Result<Option<Origin>> {
        let tiles: Vec<usize> = self.cells.iter().map(Vec::len).collect();
        let size = [self.tokens, self.encoder.config.width()];
        for (state, download) in std::mem::take(&mut self.downloads.states) {
            let values = download.values().await?;
            if let Some(origin) = origin_in(state, &values, size, &tiles) {
                return Ok(Some(origin));
            }
        }
        Ok(None)
    }

    /// The state that the next recording starts from.
    fn current(&self) -> Result<Tensor> {
        self.state.clone().ok_or(Error::InvalidShape {
            what: "state of the run",
            given: "none".to_owned(),
            need: "that of the recording before".to_owned(),
        })
    }

    /// Nothing of the run changes unless all of the chunk was recorded.
    fn upload(&mut self, chunk: Chunk) -> Result<Recorder> {
        let mut recorder = self.context.recorder("slide features");
        let started = match (&self.state, &self.positions) {
            (Some(state), Some(positions)) => (state.clone(), positions.clone(), None),
            _ => {
                let (state, positions, embeddings) = self.start(&mut recorder)?;
                (state, positions, Some(embeddings))
            }
        };
        let (state, positions, embeddings) = started;
        let config = &self.encoder.config;
        let Chunk { slide, begin, end } = chunk;
        let dim = config.feature_dim;
        let values = &self.slides[slide].features[begin * dim..end * dim];
        let shape = [end - begin, dim];
        let features = match config.activations {
            DType::F16 => {
                let values: Vec<f16> = values.iter().copied().map(f16::from_f32).collect();
                recorder.upload("features", &shape, &values)?
            }
            DType::Bf16 => {
                let values: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
                recorder.upload("features", &shape, &values)?
            }
            _ => recorder.upload("features", &shape, values)?,
        };
        let first = (slide * self.tokens) as u64;
        if begin == 0 {
            let cls = TokenIds::upload(&mut recorder, &[0], 1)?;
            let table = self.weights.get(self.encoder.cls_token).matrix();
            let row = state.matrix().slice(first, first + 1)?;
            embedding(&mut recorder, &cls, table, 1.0, (row, false))?;
        }
        let rows = state
            .matrix()
            .slice(first + 1 + begin as u64, first + 1 + end as u64)?;
        self.encoder
            .patch_embed
            .forward(&mut recorder, self.weights, features.matrix(), rows)?;
        // A row is two halves: that of y, then that of x.
        let cells = self.cells[slide][begin..end].iter();
        let halves: Vec<u32> = cells.flat_map(|cell| [cell.y, cell.x]).collect();
        let ids = TokenIds::upload(&mut recorder, &halves, config.grid_cells as usize)?;
        let rows = rows.reshape(config.width() as u64 / 2)?;
        embedding(&mut recorder, &ids, positions.matrix(), 1.0, (rows, true))?;
        self.state = Some(state);
        self.positions = Some(positions);
        self.embeddings = embeddings.or(self.embeddings.take());
        Ok(recorder)
    }

    /// What lives through the run: the state, the halves of position vectors, the embeddings.
    fn start(&self, recorder: &mut Recorder) -> Result<(Tensor, Tensor, Tensor)> {
        let config = &self.encoder.config;
        let (slides, width) = (self.slides.len(), config.width());
        let dims = [slides, self.tokens, width];
        let ragged = self.cells.iter().any(|cells| cells.len() + 1 < self.tokens);
        // Rows behind a slide's tokens are computed, too: of zeros, which stay finite.
        let state = match ragged {
            true => recorder.zeros("activations", &dims, config.activations)?,
            false => recorder.empty("activations", &dims, config.activations)?,
        };
        let dims = [config.grid_cells as usize, width / 2];
        let positions = recorder.upload("positions", &dims, &config.position_table())?;
        let num_states = match self.outputs.layers {
            true => config.num_layers + 1,
            false => 0,
        };
        let dims = [2 + 2 * num_states, slides, width];
        let embeddings = recorder.empty("embeddings", &dims, DType::F32)?;
        Ok((state, positions, embeddings))
    }

    /// Nothing of the run changes unless all of the layer was recorded.
    fn layer(&mut self, index: usize) -> Result<Recorder> {
        let mut recorder = self.context.recorder("slide encoder layer");
        let state = self.current()?;
        let first = match index {
            0 => self.keep(&mut recorder, 0, &state)?,
            _ => None,
        };
        let watched = self.outputs.attention.contains(&index).then_some(0);
        let encoder = &self.encoder.encoder;
        let (state, attention) = encoder.layer(
            &mut recorder,
            self.weights,
            &self.call,
            index,
            state,
            watched,
        )?;
        let next = self.keep(&mut recorder, index + 1, &state)?;
        if let Some(attention) = attention {
            let download = recorder.download(&attention)?;
            self.downloads.attention.push((index, download));
        }
        self.downloads.states.extend(first.into_iter().chain(next));
        self.positions = None;
        self.state = Some(state);
        Ok(recorder)
    }

    /// Records what is wanted of a state; its download, if that is wanted.
    fn keep(
        &self,
        recorder: &mut Recorder,
        index: usize,
        state: &Tensor,
    ) -> Result<Option<(usize, Activations)>> {
        if self.outputs.layers {
            self.embed(recorder, 1 + index, state)?;
        }
        match self.outputs.states.contains(&index) {
            true => Ok(Some((index, Activations::start(recorder, state)?))),
            false => Ok(None),
        }
    }

    /// Records the norms of CLS and of the mean of the tiles of each slide, as the embeddings of number `place`.
    fn embed(&self, recorder: &mut Recorder, place: usize, state: &Tensor) -> Result<()> {
        let Some(embeddings) = &self.embeddings else {
            return Ok(());
        };
        let slides = self.slides.len();
        for (slide, cells) in self.cells.iter().enumerate() {
            let first = (slide * self.tokens) as u64;
            let tiles = cells.len() as u64;
            for (kind, begin, end) in [(0, first, first + 1), (1, first + 1, first + 1 + tiles)] {
                let mean = mean_of_rows(recorder, state.matrix().slice(begin, end)?)?;
                let row = ((2 * place + kind) * slides + slide) as u64;
                let to: Matrix<'_> = embeddings.matrix().slice(row, row + 1)?;
                self.encoder
                    .norm
                    .forward(recorder, self.weights, mean.matrix(), to)?;
            }
        }
        Ok(())
    }

    fn last(&mut self) -> Result<Recorder> {
        let mut recorder = self.context.recorder("slide embedding");
        let state = self.current()?;
        let encoded = recorder.empty("encoded", state.shape(), state.dtype())?;
        if let Some(norm) = self.encoder.encoder.final_norm() {
            norm.forward(
                &mut recorder,
                self.weights,
                state.matrix(),
                encoded.matrix(),
            )?;
        }
        self.embed(&mut recorder, 0, &encoded)?;
        let of_encoded = match self.outputs.encoded {
            true => Some(Activations::start(&mut recorder, &encoded)?),
            false => None,
        };
        if let Some(embeddings) = &self.embeddings {
            self.downloads.embeddings = Some(recorder.download(embeddings)?);
        }
        self.downloads.encoded = of_encoded;
        self.embeddings = None;
        self.state = None;
        Ok(recorder)
    }
}

impl Recordings for SlideRun<'_> {
    fn next(&mut self) -> Result<Option<Recorder>> {
        let (num_chunks, num_layers) = (self.chunks.len(), self.encoder.config.num_layers);
        let recorder = match self.next {
            step if step < num_chunks => self.upload(self.chunks[step])?,
            step if step < num_chunks + num_layers => self.layer(step - num_chunks)?,
            step if step == num_chunks + num_layers => self.last()?,
            _ => return Ok(None),
        };
        self.next += 1;
        Ok(Some(recorder))
    }

    fn count(&self) -> usize {
        self.chunks.len() + self.encoder.config.num_layers + 1
    }

    fn handed_out(&self) -> usize {
        self.next
    }

    fn operations(&self, step: usize) -> f64 {
        let config = &self.encoder.config;
        let width = config.width() as f64;
        let rows = (self.slides.len() * self.tokens) as f64;
        match self.chunks.get(step) {
            Some(chunk) => (chunk.end - chunk.begin) as f64 * config.feature_dim as f64 * width,
            None if step + 1 < self.count() => {
                rows * width * (4.0 * width + 2.0 * config.ffn_dim as f64)
            }
            None => rows * width,
        }
    }
}
