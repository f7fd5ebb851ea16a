//! The thread that owns the model: it encodes on the window's device when it is told to, in slices, and says what came of it.
//!
//! **On the device** it keeps the states of the last run, for similarities: the tensors of the encoder itself, (1, tokens, width)
//! for each layer, 31 MB for 10 000 tiles at a width of 768. Where those of all layers take more than the settings allow, the last
//! layers' are kept. Until a run ends, those of the run before stay, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dilated_attention::models::gigapath::{Slide, SlideEncoder, SlideEncoderConfig, SlideOutputs};
use dilated_attention::models::{ModelPlan, StagedModel};
use dilated_attention::nn::Parameters;
use dilated_attention::{Context, DType, Error, SliceOptions, Tensor, WeightFile, half, wgpu};
use slide_files::{TileSize, Tiles, write_npy};

use crate::grid::Layout;
use crate::settings::{Settings, Source};
use crate::similarity::Similarity;
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
    /// Draw how similar all tiles are to this one in this state.
    Similarity { state: usize, tile: u32 },
    /// Write this state to files.
    Export { state: usize },
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
    /// The device draws this: the work is submitted.
    Similarity { state: usize, tile: u32 },
    /// A state is in this file.
    Exported(PathBuf),
    /// Why there is nothing, or no more.
    Failed(String),
    /// So is what the window is drawn with.
    DeviceLost(String),
}

/// What is known before a run.
#[derive(Debug)]
pub struct Ready {
    pub layout: Arc<Layout>,
    /// What the device draws.
    pub picture: wgpu::TextureView,
    pub tile_size: TileSize,
    pub plan: ModelPlan,
    pub layers: usize,
    /// States that a run keeps on the device: state n is the output of n layers.
    pub states: Vec<usize>,
    /// Bytes of all of them, about: buffers are up to an eighth larger than what is asked for.
    pub kept_bytes: u64,
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
                Err(error) => failed(error),
            }),
            Command::Cancel => {}
            Command::Slice(time) => kept.slice = time,
            Command::Similarity { state, tile } => report(model.similarity(&kept, state, tile)),
            Command::Export { state } => report(model.export(&kept, state)),
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
    /// States that a run keeps.
    states: Vec<usize>,
    similarity: Similarity,
    export: PathBuf,
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
        let layout = Arc::new(Layout::new(&cells));
        let similarity = Similarity::new(context, &layout).map_err(text)?;
        context.pool().trim();
        let state_bytes = state_bytes(config, cells.len());
        let states = states_that_fit(config.num_layers, state_bytes, settings.keep_bytes);
        report(Message::Ready(Ready {
            layout,
            picture: similarity.picture().clone(),
            tile_size,
            plan,
            layers: config.num_layers,
            kept_bytes: states.len() as u64 * state_bytes * 9 / 8,
            states: states.clone(),
        }));
        Ok(Self {
            context: context.clone(),
            encoder,
            weights,
            tiles,
            outputs,
            states,
            similarity,
            export: settings.export.clone(),
        })
    }

    fn similarity(&self, kept: &Kept, state: usize, tile: u32) -> Message {
        let Some(tensor) = kept.states.get(&state) else {
            return not_kept(state);
        };
        match self.similarity.colour(tensor, tile) {
            Ok(()) => Message::Similarity { state, tile },
            Err(error) => failed(error),
        }
    }

    /// Writes the states of all tiles, (tiles, width), and beside it their coordinates.
    fn export(&self, kept: &Kept, state: usize) -> Message {
        let Some(tensor) = kept.states.get(&state) else {
            return not_kept(state);
        };
        let values = match download(&self.context, tensor) {
            Ok(values) => values,
            Err(error) => return failed(error),
        };
        let width = tensor.shape().last().copied().unwrap_or(0);
        let coords: Vec<f32> = self.tiles.coords.iter().flatten().copied().collect();
        let file = self.export.join(format!("layer_{state}.npy"));
        let write = |file: &Path, shape: [usize; 2], values: &[f32]| {
            write_npy(file, &shape, values).map_err(|error| error.to_string())
        };
        let tiles = self.tiles.coords.len();
        // The first token is CLS.
        let written = write(&file, [tiles, width], &values[width..])
            .and_then(|()| write(&self.export.join("coords.npy"), [tiles, 2], &coords));
        match written {
            Ok(()) => Message::Exported(file),
            Err(error) => Message::Failed(error),
        }
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
        let mut states = BTreeMap::new();
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
                            report(self.similarity(kept, state, tile));
                        }
                        Ok(Command::Export { state }) => report(self.export(kept, state)),
                        Err(TryRecvError::Empty) => break,
                        Ok(Command::Cancel) | Err(TryRecvError::Disconnected) => return Ok(None),
                    }
                }
                if progress.is_done() {
                    break;
                }
                sliced.set_target(kept.slice);
            }
            if let Some((index, state)) = run.state()
                && self.states.contains(&index)
            {
                states.insert(index, state.clone());
            }
        }
        let output = pollster::block_on(run.finish())?;
        kept.states = states;
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
    states: BTreeMap<usize, Tensor>,
}

fn not_kept(state: usize) -> Message {
    Message::Failed(format!("no states of layer {state} are kept"))
}

fn failed(error: Error) -> Message {
    match error {
        Error::DeviceLost { .. } => Message::DeviceLost(error.to_string()),
        error => Message::Failed(error.to_string()),
    }
}

/// All elements of a state, once: for files.
fn download(context: &Context, state: &Tensor) -> dilated_attention::Result<Vec<f32>> {
    let mut recorder = context.recorder("export");
    match state.dtype() {
        DType::F16 => {
            let values = recorder.download::<half::f16>(state)?;
            recorder.submit()?;
            Ok(values.wait()?.into_iter().map(half::f16::to_f32).collect())
        }
        _ => {
            let values = recorder.download(state)?;
            recorder.submit()?;
            values.wait()
        }
    }
}

/// Bytes of one state: all tiles and CLS.
fn state_bytes(config: &SlideEncoderConfig, tiles: usize) -> u64 {
    (tiles as u64 + 1) * config.width() as u64 * config.activations.bytes()
}

/// The last states that take at most `bytes` on the device; that before the first layer knows nothing of the slide and is never
/// among them.
fn states_that_fit(layers: usize, state_bytes: u64, bytes: u64) -> Vec<usize> {
    let fitting = usize::try_from(bytes / state_bytes.max(1)).unwrap_or(usize::MAX);
    (layers + 1 - layers.min(fitting)..=layers).collect()
}
