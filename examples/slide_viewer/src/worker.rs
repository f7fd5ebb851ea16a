//! The thread that owns the model: it encodes on the window's device when it is told to, in slices, and says what came of it.
//!
//! **On the host** it keeps the states of the last run, as unit rows, for similarities: (tiles, width) f32 for each layer, 31 MB
//! for 10 000 tiles at a width of 768. Where those of all layers take more than the settings allow, the last layers' are kept.
//! Until a run ends, its states wait in mapped buffers of the pool.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dilated_attention::models::gigapath::{
    Cell, Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs,
};
use dilated_attention::models::{ModelPlan, StagedModel};
use dilated_attention::nn::Parameters;
use dilated_attention::{Context, Error, SliceOptions, WeightFile};
use slide_files::{TileSize, Tiles};

use crate::settings::{Settings, Source};
use crate::slide;

/// What the window wants.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Encode the slide.
    Encode,
    /// Stop after the slice under way.
    Cancel,
    /// Time that a slice should take, from the next on.
    Slice(Duration),
    /// How similar all tiles are to this one in this state.
    Similarity { state: usize, tile: u32 },
}

/// What happened.
#[derive(Debug)]
pub enum Message {
    /// It is about to do this, before anything can be encoded.
    Preparing(&'static str),
    /// The slide may be encoded.
    Ready(Ready),
    /// A slice is done.
    Progress(Progress),
    /// The slide is encoded.
    Encoded(Encoded),
    /// It was told to stop, and everything of the run is given back.
    Cancelled,
    /// The cosine of each tile's state to one tile's.
    Similarity {
        state: usize,
        tile: u32,
        values: Vec<f32>,
    },
    /// Why there is nothing, or no more.
    Failed(String),
    /// So is what the window is drawn with.
    DeviceLost(String),
}

/// What is known before a run.
#[derive(Debug)]
pub struct Ready {
    pub cells: Vec<Cell>,
    pub tile_size: TileSize,
    pub plan: ModelPlan,
    pub layers: usize,
    /// States that a run keeps: state n is the output of n layers.
    pub states: Vec<usize>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Recordings that are done.
    pub done: usize,
    /// All of them.
    pub total: usize,
    /// Part of the operations that is done.
    pub fraction: f32,
}

/// Results of a run that are shown.
#[derive(Debug)]
pub struct Encoded {
    pub took: Duration,
    /// Of each layer, how much CLS attends to each tile.
    pub attention: Vec<Vec<f32>>,
}

/// The thread. Dropping it ends it, after the slice under way.
#[derive(Debug)]
pub struct Worker {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread; `report` is told what happens, on that thread.
    pub fn start(
        context: Context,
        settings: Settings,
        report: impl Fn(Message) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, received) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("slide encoder".to_owned())
            .spawn(move || {
                if let Err(error) = work(&context, &settings, &received, &report) {
                    report(Message::Failed(error));
                }
            })?;
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    /// Tells it what to do.
    pub fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // One that has ended has said why.
            let _ = commands.send(command);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn work(
    context: &Context,
    settings: &Settings,
    commands: &Receiver<Command>,
    report: &impl Fn(Message),
) -> Result<(), String> {
    // Kernels do without where there are none; here, because a test of them is no work for the window's thread.
    let _ = pollster::block_on(context.test_cooperative_matrices());
    let model = Model::prepare(context, settings, report)?;
    let mut kept = Kept {
        slice: settings.slice,
        states: BTreeMap::new(),
    };
    while let Ok(command) = commands.recv() {
        match command {
            Command::Encode => report(match model.encode(&mut kept, commands, report) {
                Ok(Some(encoded)) => Message::Encoded(encoded),
                Ok(None) => Message::Cancelled,
                Err(error @ Error::DeviceLost { .. }) => Message::DeviceLost(error.to_string()),
                Err(error) => Message::Failed(error.to_string()),
            }),
            Command::Cancel => {}
            Command::Slice(time) => kept.slice = time,
            Command::Similarity { state, tile } => report(kept.similarity(state, tile)),
        }
    }
    Ok(())
}

/// The model and the slide.
struct Model {
    context: Context,
    encoder: SlideEncoder,
    weights: Parameters,
    tiles: Tiles,
    outputs: SlideOutputs,
}

impl Model {
    fn prepare(
        context: &Context,
        settings: &Settings,
        report: &impl Fn(Message),
    ) -> Result<Self, String> {
        let text = |error: dilated_attention::Error| error.to_string();
        let mut config = settings.config.clone();
        report(Message::Preparing("reading the slide"));
        let (tiles, tile_size) = match &settings.source {
            Source::Files { tiles, .. } => slide::read(tiles, settings)?,
            Source::Drawn(count) => slide::draw(*count, config.feature_dim, config.tile_size)?,
        };
        // Segment lengths stay those of the weights.
        config.tile_size = tile_size.pixels;
        let config = &config;
        let cells = config.cells(&tiles.coords).map_err(text)?;
        let outputs = SlideOutputs {
            states: states_that_fit(config, cells.len(), settings.keep_bytes),
            attention: (0..config.num_layers).collect(),
            ..SlideOutputs::default()
        };
        let caps = context.caps().clone();
        let plan = SlideEncoder::plan(config, &[cells.len()], &outputs, caps).map_err(text)?;
        report(Message::Preparing("loading the weights"));
        let encoder = SlideEncoder::new(context, config.clone()).map_err(text)?;
        let weights = match &settings.source {
            Source::Files { weights, .. } => WeightFile::open(weights)
                .map_err(Error::from)
                .and_then(|file| encoder.load(context, SlideEncoder::weights_in(&file)?))
                .map_err(|error| format!("{}: {error}", weights.display()))?,
            Source::Drawn(_) => encoder.initial_weights(context, 1).map_err(text)?,
        };
        // Where the driver compiles at the first dispatch, frames wait meanwhile: before a run rather than in it.
        report(Message::Preparing("compiling kernels"));
        encoder
            .warm_up(context, &[cells.len()], &outputs)
            .map_err(text)?;
        context.pool().trim();
        report(Message::Ready(Ready {
            cells,
            tile_size,
            plan,
            layers: config.num_layers,
            states: outputs.states.clone(),
        }));
        Ok(Self {
            context: context.clone(),
            encoder,
            weights,
            tiles,
            outputs,
        })
    }

    /// `None` when it was told to stop.
    fn encode(
        &self,
        kept: &mut Kept,
        commands: &Receiver<Command>,
        report: &impl Fn(Message),
    ) -> dilated_attention::Result<Option<Encoded>> {
        let begin = Instant::now();
        let slides = [Slide {
            features: &self.tiles.features,
            coords: &self.tiles.coords,
        }];
        let (context, outputs) = (&self.context, &self.outputs);
        let encoder = &self.encoder;
        let mut run = encoder.run(context, &self.weights, &slides, outputs)?;
        while let Some(recorder) = run.next_recording()? {
            let mut sliced =
                recorder.submit_in_slices(SliceOptions::default().with_target(kept.slice));
            loop {
                let progress = pollster::block_on(sliced.step())?;
                report(Message::Progress(Progress {
                    done: run.num_recorded() - usize::from(!progress.is_done()),
                    total: run.num_recordings(),
                    fraction: run.progress(progress).fraction() as f32,
                }));
                loop {
                    match commands.try_recv() {
                        Ok(Command::Encode) => {}
                        Ok(Command::Slice(time)) => kept.slice = time,
                        Ok(Command::Similarity { state, tile }) => {
                            report(kept.similarity(state, tile));
                        }
                        Err(TryRecvError::Empty) => break,
                        Ok(Command::Cancel) | Err(TryRecvError::Disconnected) => return Ok(None),
                    }
                }
                if progress.is_done() {
                    break;
                }
                sliced.set_target(kept.slice);
            }
        }
        let output = pollster::block_on(run.finish())?;
        let width = output.width;
        kept.states = (output.states.into_iter())
            .map(|(state, values)| (state, UnitRows::of_tiles(values, width)))
            .collect();
        let attention = output.attention.iter().map(|layer| {
            let of_tokens = layer.map(0).unwrap_or_default();
            of_tokens.into_iter().skip(1).collect()
        });
        Ok(Some(Encoded {
            took: begin.elapsed(),
            attention: attention.collect(),
        }))
    }
}

/// What stays from one command to the next.
struct Kept {
    slice: Duration,
    states: BTreeMap<usize, UnitRows>,
}

impl Kept {
    fn similarity(&self, state: usize, tile: u32) -> Message {
        let rows = self.states.get(&state);
        Message::Similarity {
            state,
            tile,
            values: rows.map_or_else(Vec::new, |rows| rows.cosines(tile as usize)),
        }
    }
}

/// The state of every tile, scaled to length 1.
struct UnitRows {
    width: usize,
    values: Vec<f32>,
}

impl UnitRows {
    /// Of all tokens, the first of which is CLS.
    fn of_tiles(mut values: Vec<f32>, width: usize) -> Self {
        values.drain(..width.min(values.len()));
        for row in values.chunks_mut(width.max(1)) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut()
                .for_each(|x| *x /= length.max(f32::MIN_POSITIVE));
        }
        Self { width, values }
    }

    /// Of each row with row `tile`.
    fn cosines(&self, tile: usize) -> Vec<f32> {
        let rows = self.values.chunks(self.width.max(1));
        let Some(one) = rows.clone().nth(tile) else {
            return Vec::new();
        };
        let cosine = |row: &[f32]| row.iter().zip(one).map(|(a, b)| a * b).sum();
        rows.map(cosine).collect()
    }
}

/// The last states that take at most `bytes` on the host; that before the first layer knows nothing of the slide and is never
/// among them.
fn states_that_fit(config: &SlideEncoderConfig, tiles: usize, bytes: usize) -> Vec<usize> {
    let layers = config.num_layers;
    let of_one = 4usize
        .saturating_mul(config.width())
        .saturating_mul(tiles + 1);
    let count = layers.min(bytes / of_one.max(1));
    (layers + 1 - count..=layers).collect()
}
