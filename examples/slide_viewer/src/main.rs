//! A window that shows what GigaPath's slide encoder sees, and stays alive while it computes on the same device.
//!
//! ```text
//! cargo run --release -p slide_viewer -- WEIGHTS.safetensors TILES [OPTIONS]
//! cargo run --release -p slide_viewer -- --random 2000 [OPTIONS]
//! ```
//! WEIGHTS is a checkpoint of GigaPath's slide encoder or GigaPath-Flash's; its shapes tell the sizes, and a prefix of its names is
//! found. TILES is a `.safetensors` or `.npz` file of `features` and `coords`, or with `--features slide-files/h5` an `.h5` file. With
//! `--random N`, weights and a slide of N tiles are drawn.
//!
//! ```text
//! --size NAME         of a drawn model: base (default), flash, large or wide
//! --layers N          of a drawn model, with another number of layers
//! --heads N           with another number of heads than 16, which published models have
//! --max-wsi-size N    segment lengths for slides of this edge (default 262144)
//! --tile-size N       edge of a tile in pixels of level 0, where the file does not say it: 512 for tiles of 256 at 20x of a slide
//!                     scanned at 40x (else 256)
//! --force-tile-size N the same, whatever file and coordinates say
//! --any-encoder       take features that the file says another encoder than GigaPath's computed
//! --f16               activations in half precision
//! --slice MS          time of the device that a submission may take (default 8)
//! --keep MIB          memory of the host for states, last layers first (default 1024)
//! --trace             says on stdout what happens and where widgets are, for programs that drive the window
//! ```
//!
//! Tiles are coloured by the similarity of their states to those of a tile, at first one in the middle, or by how much the CLS
//! token attends to them. That token was not trained in the published weights, where its attention is no map of what matters.
//!
//! Data flows one way: the window sends commands to a thread ([`worker`]), which encodes on the window's own device in slices
//! and sends messages back; each frame takes in what came ([`app`]) and draws it. The window never waits for the device but as
//! every window does, for its own frames.

mod app;
mod colour;
mod frames;
mod grid;
mod settings;
mod slide;
mod timeline;
mod trace;
mod worker;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use dilated_attention::Context;
use dilated_attention::wgpu;
use eframe::egui;
use eframe::egui_wgpu::{WgpuSetup, WgpuSetupCreateNew};

use settings::Settings;

/// Of the window, in points.
const SIZE: [f32; 2] = [1100.0, 720.0];

fn main() -> ExitCode {
    program::run(include_str!("main.rs"), |arguments| {
        Ok(run(Settings::from_arguments(arguments)?)?)
    })
}

fn run(settings: Settings) -> Result<(), String> {
    let mut setup = WgpuSetupCreateNew::without_display_handle();
    // Those that offer compute shaders within WebGPU's default limits.
    setup.instance_descriptor.backends =
        wgpu::Backends::from_env().unwrap_or(wgpu::Backends::PRIMARY);
    setup.device_descriptor = Arc::new(|adapter| wgpu::DeviceDescriptor {
        label: Some("slide viewer"),
        required_features: Context::recommended_features(adapter),
        required_limits: Context::recommended_limits(adapter),
        ..Default::default()
    });
    let mut options = eframe::NativeOptions {
        viewport: egui::ViewportBuilder::default()
            .with_inner_size(SIZE)
            .with_min_inner_size([720.0, 560.0]),
        ..Default::default()
    };
    options.wgpu_options.wgpu_setup = WgpuSetup::CreateNew(setup);
    let fatal = Arc::new(Mutex::new(None));
    let app_fatal = fatal.clone();
    eframe::run_native(
        "slide viewer",
        options,
        Box::new(move |creation| Ok(Box::new(app::Viewer::new(creation, settings, app_fatal)?))),
    )
    .map_err(|error| error.to_string())?;
    let mut fatal = fatal.lock().unwrap_or_else(PoisonError::into_inner);
    fatal.take().map_or(Ok(()), Err)
}
