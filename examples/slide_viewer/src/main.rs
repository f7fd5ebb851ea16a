//! A window that shows what GigaPath's slide encoder sees, and stays alive while it computes on the same device:
//! `cargo run --release -p slide_viewer -- --random 2000`, or `-- --help`.
//!
//! Data flows one way: the window sends commands to a thread ([`worker`]), which encodes on the window's own device in slices
//! and sends messages back; each frame takes in what came ([`app`]) and draws it. The window never waits for the device but as
//! every window does, for its own frames.
//!
//! The states of tiles stay on the device: a shader of this application's compares them and draws the colours ([`similarity`]).
//! They come to the host where the user exports them.

mod app;
mod colour;
mod frames;
mod grid;
mod settings;
mod similarity;
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
    program::run(|options| Ok(run(Settings::new(options)?)?))
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
