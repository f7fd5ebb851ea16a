//! The window: what is known, and how a frame shows it.

use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dilated_attention::{CacheFolder, Context, ContextOptions, Pool, wgpu};
use eframe::egui::{self, Color32, RichText, Ui, vec2};
use eframe::egui_wgpu::RenderState;

use crate::colour;
use crate::frames::{Figures, FrameTimes};
use crate::grid::Grid;
use crate::settings::Settings;
use crate::timeline::{self, Timeline};
use crate::trace::Trace;
use crate::worker::{Command, Message, Progress, Ready, Worker};

/// From the beginning of one frame to that of the next while the slide is encoded.
const FRAME: Duration = Duration::from_micros(16_667);

const PANEL_WIDTH: f32 = 330.0;

/// Why the window ended by itself, for whoever opened it: the loss of its device.
pub type Fatal = Arc<Mutex<Option<String>>>;

/// What the thread is doing, as far as its messages tell.
enum Stage {
    Preparing(&'static str),
    Idle,
    Encoding(Progress),
    /// It has ended.
    Ended,
}

/// What tiles are coloured by. Layers count from 1 on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum View {
    Attention { layer: usize },
    Similarity { layer: usize, tile: u32 },
}

/// Colours on the slide.
struct Painted {
    view: View,
    /// What the ends of the scale mean.
    scale: [String; 2],
}

/// The window.
pub struct Viewer {
    worker: Option<Worker>,
    messages: Receiver<Message>,
    /// What the window is drawn with.
    state: RenderState,
    pool: Pool,
    adapter: String,
    fatal: Fatal,
    stage: Stage,
    slide: Option<(Ready, Grid)>,
    /// Attention of the last run, by layer.
    attention: Vec<Vec<f32>>,
    /// How far the last run came, and what became of it.
    fraction: f32,
    outcome: String,
    error: Option<String>,
    by_similarity: bool,
    layer: usize,
    /// The tile that was clicked; before that, similarities are those to one in the middle.
    selected: Option<u32>,
    middle: Option<u32>,
    /// Bytes that the run may hold.
    planned: Option<u64>,
    /// What the thread was asked for and has not yet answered.
    asked: Option<View>,
    painted: Option<Painted>,
    slice_ms: u64,
    frames: FrameTimes,
    timeline: Timeline,
    trace: Trace,
}

impl Viewer {
    /// Starts the thread on the window's device.
    pub fn new(
        creation: &eframe::CreationContext<'_>,
        settings: Settings,
        fatal: Fatal,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let state = creation.wgpu_render_state.as_ref();
        let state = state.ok_or("the window has no device of wgpu")?;
        let context = ContextOptions::new()
            .with_adapter_matrices(state.adapter.cooperative_matrix_properties())
            .with_cache(CacheFolder::User)
            .on_device(state.device.clone(), state.queue.clone())?;
        watch(&context, &creation.egui_ctx, &fatal);
        creation.egui_ctx.set_theme(egui::Theme::Dark);
        // A click is one however long a busy processor took for the frames in between.
        creation.egui_ctx.options_mut(|options| {
            options.input_options.max_click_duration = f64::INFINITY;
        });
        let (sender, messages) = mpsc::channel();
        let info = context.adapter_info();
        let adapter = match info.driver_info.as_str() {
            "" => info.name.clone(),
            driver => format!("{}, {driver}", info.name),
        };
        let trace = Trace::new(settings.trace);
        trace.say(|| format!("adapter {adapter}"));
        let layer = settings.config.num_layers;
        let slice_ms = settings.slice.as_millis() as u64;
        let pool = context.pool().clone();
        let ctx = creation.egui_ctx.clone();
        let worker = Worker::start(context, settings, move |message| {
            // Frames come by themselves while there is progress.
            let repaint = !matches!(message, Message::Progress(_));
            // A window that is being closed listens no more.
            let _ = sender.send(message);
            if repaint {
                ctx.request_repaint();
            }
        })?;
        Ok(Self {
            worker: Some(worker),
            messages,
            state: state.clone(),
            pool,
            adapter,
            fatal,
            stage: Stage::Preparing("starting"),
            slide: None,
            attention: Vec::new(),
            fraction: 0.0,
            outcome: String::new(),
            error: None,
            by_similarity: true,
            layer,
            selected: None,
            middle: None,
            planned: None,
            asked: None,
            painted: None,
            slice_ms,
            frames: FrameTimes::default(),
            timeline: Timeline::new(),
            trace,
        })
    }

    fn send(&self, command: Command) {
        if let Some(worker) = &self.worker {
            worker.send(command);
        }
    }

    fn lost(&self) -> MutexGuard<'_, Option<String>> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that leases asked for.
    fn leased_bytes(&self) -> u64 {
        self.pool.stats().requested_bytes.current
    }

    /// A texture of the device's, for the window to show.
    fn register(&self, picture: &wgpu::TextureView) -> egui::TextureId {
        // Tiles have sharp edges, however large they are.
        let sampler = wgpu::SamplerDescriptor {
            label: Some("slide"),
            mag_filter: wgpu::FilterMode::Nearest,
            min_filter: wgpu::FilterMode::Linear,
            ..Default::default()
        };
        let mut renderer = self.state.renderer.write();
        renderer.register_native_texture_with_sampler_options(&self.state.device, picture, sampler)
    }

    /// Takes in what came.
    fn receive(&mut self, ctx: &egui::Context) {
        loop {
            match self.messages.try_recv() {
                Ok(message) => self.take(ctx, message),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    if self.error.is_none() {
                        self.error = Some("the encoding thread ended unexpectedly".to_owned());
                    }
                    self.stage = Stage::Ended;
                    return;
                }
            }
        }
    }

    fn take(&mut self, ctx: &egui::Context, message: Message) {
        match message {
            Message::Preparing(what) => {
                self.trace.say(|| format!("preparing {what}"));
                self.stage = Stage::Preparing(what);
            }
            Message::Ready(ready) => {
                let drawn = self.register(&ready.picture);
                let grid = Grid::new(ctx, ready.layout.clone(), drawn);
                let [columns, rows] = grid.size();
                let (tiles, leased) = (ready.layout.cell_of_tile.len(), self.leased_bytes());
                self.trace.say(|| {
                    format!("ready tiles {tiles} columns {columns} rows {rows} leased {leased}")
                });
                self.middle = grid.middle_tile();
                let size = &ready.tile_size;
                self.trace.say(|| format!("tile size {size}"));
                self.slide = Some((ready, grid));
                self.stage = Stage::Idle;
            }
            Message::Progress(progress) => {
                self.trace.say(|| {
                    let Progress {
                        done,
                        total,
                        fraction,
                    } = progress;
                    format!("progress {done} {total} {fraction:.4}")
                });
                self.fraction = progress.fraction;
                self.stage = Stage::Encoding(progress);
            }
            Message::Encoded(encoded) => {
                self.attention = encoded.attention;
                (self.painted, self.asked) = (None, None);
                let how = format!("encoded in {:.1} s", encoded.took.as_secs_f64());
                self.trace.say(|| how.clone());
                self.ended(how);
            }
            Message::Cancelled => {
                self.trace.say(|| "cancelled".to_owned());
                self.ended("cancelled".to_owned());
            }
            Message::Similarity { state, tile } => {
                let view = View::Similarity { layer: state, tile };
                if self.asked == Some(view) {
                    self.asked = None;
                    self.show_similarity(view);
                }
            }
            Message::Exported(file) => {
                let file = file.display();
                self.trace.say(|| format!("exported {file}"));
                self.outcome = format!("exported {file}");
            }
            Message::Failed(error) => {
                self.trace.say(|| format!("failed {error}"));
                self.ended("failed".to_owned());
                self.error = Some(error);
            }
            Message::DeviceLost(error) => {
                self.ended("failed".to_owned());
                self.lost().get_or_insert(error);
            }
        }
    }

    /// A run ended in whatever way.
    fn ended(&mut self, how: String) {
        self.stage = Stage::Idle;
        self.outcome = how;
        let leased = self.leased_bytes();
        self.trace.say(|| format!("leased {leased}"));
        let Figures {
            count,
            median,
            percentile_95,
            longest,
        } = self.frames.all_intervals();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.trace.say(|| {
            let (median, most, longest) = (ms(median), ms(percentile_95), ms(longest));
            format!("frames {count} median {median:.1} p95 {most:.1} longest {longest:.1}")
        });
    }

    fn show_attention(&mut self, layer: usize) {
        let values = self.attention.get(layer - 1);
        if let (Some((_, grid)), Some(values)) = (&mut self.slide, values) {
            let scale = grid.colour(values).map(short);
            let view = View::Attention { layer };
            self.painted = Some(Painted { view, scale });
            self.trace.say(|| format!("painted attention {layer}"));
        }
    }

    /// The device has drawn it.
    fn show_similarity(&mut self, view: View) {
        if let (Some((_, grid)), View::Similarity { layer, tile }) = (&mut self.slide, view) {
            grid.show_drawn();
            let scale = ["mean − 2 σ", "mean + 2 σ"].map(str::to_owned);
            self.painted = Some(Painted { view, scale });
            self.trace
                .say(|| format!("painted similarity {layer} {tile}"));
        }
    }

    /// Colours tiles by what is chosen, or asks for it.
    fn colour(&mut self) {
        if self.attention.is_empty() {
            return;
        }
        let layer = self.layer;
        let view = match self.compared().filter(|_| self.by_similarity) {
            Some(tile) => View::Similarity { layer, tile },
            None => View::Attention { layer },
        };
        if self
            .painted
            .as_ref()
            .is_some_and(|painted| painted.view == view)
        {
            return;
        }
        match view {
            View::Attention { layer } => self.show_attention(layer),
            View::Similarity { layer, tile } if self.keeps(layer) && self.asked != Some(view) => {
                self.asked = Some(view);
                self.send(Command::Similarity { state: layer, tile });
            }
            View::Similarity { .. } => {}
        }
    }

    /// The tile that others are compared with.
    fn compared(&self) -> Option<u32> {
        self.selected.or(self.middle)
    }

    fn keeps(&self, state: usize) -> bool {
        let slide = self.slide.as_ref();
        slide.is_some_and(|(ready, _)| ready.states.contains(&state))
    }

    fn encode(&mut self) {
        self.error = None;
        (self.fraction, self.outcome) = (0.0, String::new());
        self.frames = FrameTimes::default();
        self.pool.reset_peaks();
        self.planned = self.slide.as_ref().map(|(ready, _)| {
            // States of the run before stay until there are others.
            let sets = 1 + u64::from(!self.attention.is_empty());
            ready.plan.held_bytes + sets * ready.kept_bytes
        });
        self.stage = Stage::Encoding(Progress {
            done: 0,
            total: 1,
            fraction: 0.0,
        });
        self.send(Command::Encode);
    }

    fn panel(&mut self, ui: &mut Ui) {
        ui.add_space(6.0);
        ui.heading("Slide encoder");
        ui.label(RichText::new(&self.adapter).weak());
        if let Some((ready, _)) = &self.slide {
            let (tiles, layers) = (ready.layout.cell_of_tile.len(), ready.layers);
            let gflop = ready.plan.flop as f64 / 1e9;
            let text = format!("{tiles} tiles, {layers} layers, {gflop:.1} GFLOP");
            ui.label(RichText::new(text).weak());
            let text = format!("tiles of {}", ready.tile_size);
            ui.label(RichText::new(text).weak());
        }
        section(ui, "Encoding");
        self.run_controls(ui);
        section(ui, "Colours");
        self.colour_controls(ui);
        section(ui, "Frames while encoding");
        self.frame_figures(ui);
        section(ui, "Pool");
        self.pool_figures(ui);
        if let Some(error) = &self.error {
            ui.add_space(8.0);
            ui.label(RichText::new(error).color(ui.visuals().error_fg_color));
        }
    }

    fn run_controls(&mut self, ui: &mut Ui) {
        let (idle, encoding) = match self.stage {
            Stage::Idle => (self.slide.is_some(), false),
            Stage::Encoding(_) => (false, true),
            Stage::Preparing(_) | Stage::Ended => (false, false),
        };
        ui.horizontal(|ui| {
            let size = vec2(100.0, 28.0);
            let button = |ui: &mut Ui, text, enabled| {
                ui.add_enabled(enabled, egui::Button::new(text).min_size(size))
            };
            let encode = button(ui, "Encode", idle);
            self.trace.widget(ui, "encode", encode.rect);
            let cancel = button(ui, "Cancel", encoding);
            self.trace.widget(ui, "cancel", cancel.rect);
            if encode.clicked() {
                self.encode();
            }
            if cancel.clicked() {
                self.send(Command::Cancel);
            }
        });
        let (fraction, text) = match &self.stage {
            Stage::Preparing(what) => (0.0, format!("{what} …")),
            Stage::Encoding(Progress { done, total, .. }) => {
                let percent = 100.0 * self.fraction;
                let text = format!("{percent:.0} %, {done} of {total} recordings");
                (self.fraction, text)
            }
            Stage::Idle | Stage::Ended => (self.fraction, self.outcome.clone()),
        };
        ui.add(egui::ProgressBar::new(fraction).text(text));
        ui.horizontal(|ui| {
            let slider = egui::Slider::new(&mut self.slice_ms, 1..=50).suffix(" ms");
            if ui.add(slider).changed() {
                let time = Duration::from_millis(self.slice_ms);
                self.send(Command::Slice(time));
            }
            ui.label("slice");
        });
    }

    fn colour_controls(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            let similarity = ui.radio_value(&mut self.by_similarity, true, "similarity");
            self.trace.widget(ui, "similarity", similarity.rect);
            let attention = ui.radio_value(&mut self.by_similarity, false, "attention of CLS");
            self.trace.widget(ui, "attention", attention.rect);
        });
        if let Some((ready, _)) = &self.slide {
            let layers = ready.layers;
            ui.horizontal(|ui| {
                let slider = egui::Slider::new(&mut self.layer, 1..=layers.max(1));
                let response = ui.add(slider.show_value(false));
                self.trace.widget(ui, "layer", response.rect);
                ui.label(format!("layer {} of {layers}", self.layer));
            });
        }
        let hint = match (&self.painted, self.by_similarity, self.compared()) {
            (None, ..) => "not encoded yet",
            (_, true, None) => "click a tile",
            (_, true, Some(_)) if !self.keeps(self.layer) => {
                "states of this layer did not fit (--keep)"
            }
            (_, true, Some(_)) => "cosine to the marked tile, of states after the layer",
            (_, false, _) => {
                "how much CLS attends to a tile: all branches, mean of heads. The published weights were trained \
                 without CLS: no map of what matters"
            }
        };
        ui.label(RichText::new(hint).weak());
        self.legend(ui);
        let can_export = !self.attention.is_empty() && self.keeps(self.layer);
        let button = egui::Button::new("Export the layer's states");
        let export = ui.add_enabled(can_export, button);
        self.trace.widget(ui, "export", export.rect);
        if export.clicked() {
            self.send(Command::Export { state: self.layer });
        }
    }

    fn legend(&self, ui: &mut Ui) {
        let size = vec2(ui.available_width(), 10.0);
        let (rect, _) = ui.allocate_exact_size(size, egui::Sense::hover());
        let painter = ui.painter_at(rect);
        const STEPS: usize = 64;
        for step in 0..STEPS {
            let width = rect.width() / STEPS as f32;
            let left = rect.left() + width * step as f32;
            let part = egui::Rect::from_min_size(egui::pos2(left, rect.top()), vec2(width, 10.0));
            painter.rect_filled(part, 0.0, colour::ramp(step as f32 / (STEPS - 1) as f32));
        }
        let [low, high] = match &self.painted {
            Some(Painted { scale, .. }) => scale.clone(),
            None => ["–".to_owned(), "–".to_owned()],
        };
        ui.horizontal(|ui| {
            ui.label(RichText::new(low).small());
            let right = egui::Layout::right_to_left(egui::Align::Center);
            ui.with_layout(right, |ui| ui.label(RichText::new(high).small()));
        });
    }

    fn frame_figures(&self, ui: &mut Ui) {
        egui::Grid::new("frames").num_columns(4).show(ui, |ui| {
            for title in ["last 200", "median", "95 %", "longest"] {
                ui.label(RichText::new(title).weak());
            }
            ui.end_row();
            let rows = [
                ("interval", self.frames.intervals()),
                ("in the window", self.frames.inside()),
            ];
            for (name, figures) in rows {
                ui.label(name);
                for time in [figures.median, figures.percentile_95, figures.longest] {
                    ui.monospace(format!("{:.1} ms", time.as_secs_f64() * 1e3));
                }
                ui.end_row();
            }
        });
    }

    fn pool_figures(&mut self, ui: &mut Ui) {
        let stats = self.pool.stats();
        self.timeline.note(&stats);
        ui.horizontal_wrapped(|ui| {
            for (name, bytes, colour) in [
                ("leased", stats.leased_bytes.current, timeline::LEASED),
                ("pending", stats.pending_bytes.current, timeline::PENDING),
                ("cached", stats.free_bytes.current, timeline::CACHED),
            ] {
                let (rect, _) = ui.allocate_exact_size(vec2(9.0, 9.0), egui::Sense::hover());
                ui.painter().rect_filled(rect, 1.0, colour);
                ui.label(format!("{name} {}", mib(bytes)));
            }
        });
        let (held, peak) = (stats.held_bytes.current, stats.held_bytes.peak);
        let planned = self
            .planned
            .map_or_else(String::new, |bytes| format!(", planned {}", mib(bytes)));
        ui.label(format!(
            "held {}, peak {}{planned} MiB",
            mib(held),
            mib(peak)
        ));
        let rect = self.timeline.show(ui);
        self.trace.widget(ui, "timeline", rect);
        ui.label(RichText::new("the last minute").small().weak());
    }
}

impl eframe::App for Viewer {
    fn ui(&mut self, ui: &mut Ui, _: &mut eframe::Frame) {
        let begin = Instant::now();
        if matches!(self.stage, Stage::Encoding(_)) {
            self.frames.begin(begin);
        }
        let ctx = ui.ctx().clone();
        self.receive(&ctx);
        if let Some(reason) = &*self.lost() {
            // Nothing can be drawn without a device, and egui panics where it tries.
            self.pool.device_lost(reason);
            ctx.send_viewport_cmd(egui::ViewportCommand::Close);
            return;
        }
        egui::Panel::right("panel")
            .exact_size(PANEL_WIDTH)
            .resizable(false)
            .show(ui, |ui| self.panel(ui));
        egui::CentralPanel::default().show(ui, |ui| {
            let unasked = self.middle.filter(|_| self.painted.is_some());
            let selected = self.selected.or(unasked);
            if let Some((_, grid)) = &mut self.slide {
                let (rect, clicked) = grid.show(ui, selected);
                self.trace.widget(ui, "slide", rect);
                if let Some(tile) = clicked {
                    self.selected = Some(tile);
                    self.by_similarity = true;
                }
            }
        });
        self.colour();
        if matches!(self.stage, Stage::Encoding(_)) {
            self.frames.end(begin);
            ctx.request_repaint_after(FRAME.saturating_sub(begin.elapsed()));
        }
    }

    fn on_exit(&mut self) {
        // Stops after the slice under way, and gives everything back.
        self.worker = None;
        let leased = self.leased_bytes();
        self.trace.say(|| format!("closed leased {leased}"));
    }
}

/// The device is the window's own, and so are its handlers.
#[expect(
    clippy::disallowed_methods,
    reason = "the device belongs to this application"
)]
fn watch(context: &Context, ctx: &egui::Context, fatal: &Fatal) {
    let (fatal, ctx) = (fatal.clone(), ctx.clone());
    context
        .device()
        .set_device_lost_callback(move |reason, message| {
            // A device that is dropped with the window is no loss.
            if reason == dilated_attention::wgpu::DeviceLostReason::Unknown {
                let text = format!("the device is lost: {message}");
                *fatal.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
                ctx.request_repaint();
            }
        });
    context
        .device()
        .on_uncaptured_error(Arc::new(|error| program::note(format_args!("{error}"))));
}

fn section(ui: &mut Ui, title: &str) {
    ui.add_space(8.0);
    ui.separator();
    ui.label(RichText::new(title).strong().color(Color32::WHITE));
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// Three digits.
fn short(value: f32) -> String {
    match value.abs() {
        size if size != 0.0 && size < 0.01 => format!("{value:.2e}"),
        _ => format!("{value:.3}"),
    }
}
