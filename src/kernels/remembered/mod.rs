//! What was measured of kernels in this process or an earlier one, and the options that say where it is kept.

mod folder;
mod winners;

pub use folder::CacheFolder;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use winners::{Timed, store};
pub(crate) use winners::{Winner, Winners};

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::family::Family;
use super::{Choice, Reason};
use crate::device::{DeviceCaps, KernelTier};

/// How kernels are chosen and compiled; see [`Context::with_kernel_options`](crate::Context::with_kernel_options).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// Where what was measured and compiled is remembered.
    pub cache: CacheFolder,
    /// The text of a file of remembered kernels that comes with the application, for adapters that its makers have measured;
    /// what this user's own file says goes first. Such a file is what [`tune`](crate::tuning::tune) leaves at
    /// [`Context::winners_file`](crate::Context::winners_file); `include_str!` brings it along.
    pub shipped_winners: Option<Cow<'static, str>>,
    /// Compiles shaders without the checks that wgpu adds to them: bounds of every index, and a counter in every loop. The
    /// switch is safe and changes no result: plans compute all indices and loop bounds from checked shapes, shaders guard
    /// what lies beyond, and the tests run both ways. Checks that a driver makes itself (Vulkan's robust buffer access,
    /// Direct3D's) remain. Off by default: no adapter measured so far gains from it (lavapipe of Mesa 25.0 and 26.2: forward,
    /// backward and products within the noise, heads of 64 on the newer one slower). Without effect in browsers.
    pub trusted_shaders: bool,
    /// Kernels of this tier wherever they can do what is asked, instead of those that suit the device: to test them, or to
    /// compare. What a tier cannot do (another type than f16 with cooperative matrices, wide heads) is done by the kernels
    /// that suit the device; [`Recorder::kernel_names`](crate::Recorder::kernel_names) tells which ones a recording runs. What a call
    /// chooses for itself goes first; what was measured comes after.
    pub tier: Option<KernelTier>,
}

/// What is remembered of one adapter.
#[derive(Debug, Default)]
pub(crate) struct Tuner {
    /// Adapter, driver and versions.
    adapter: String,
    file: Option<PathBuf>,
    winners: Mutex<Winners>,
}

impl Tuner {
    /// Reads what is remembered.
    pub fn new(info: &wgpu::AdapterInfo, options: &KernelOptions) -> Self {
        let checks = if options.trusted_shaders {
            "trusted"
        } else {
            "checked"
        };
        let adapter = format!(
            "{} | {} | {} | {:?} | {checks} | {}",
            info.name,
            info.driver,
            info.driver_info,
            info.backend,
            env!("CARGO_PKG_VERSION"),
        );
        let file = options
            .cache
            .path()
            .map(|folder| folder.join("kernels.json"));
        let shipped = options.shipped_winners.as_deref().unwrap_or_default();
        let mut winners = winners::parse(shipped.as_bytes(), &adapter);
        if let Some(file) = &file {
            winners.extend(winners::load(file, &adapter));
        }
        Self {
            adapter,
            file,
            winners: Mutex::new(winners),
        }
    }

    pub fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }

    /// What tells the adapter, its driver, their versions and this library's from others.
    pub fn adapter(&self) -> &str {
        &self.adapter
    }

    pub fn winners(&self) -> MutexGuard<'_, Winners> {
        self.winners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The remembered kernel of a family, if it is one of those that may run here.
    pub fn remembered<F: Family>(
        &self,
        family: &F,
        caps: &DeviceCaps,
    ) -> Option<Choice<F::Variant>> {
        let winners = self.winners();
        if winners.is_empty() {
            return None;
        }
        let Winner { timed, against } = winners.get(&family.key())?;
        let candidates = family.candidates(caps);
        let named = |kernel: &str| {
            let affordable = candidates
                .iter()
                .filter(|candidate| candidate.compile_time.is_some());
            affordable
                .map(|candidate| candidate.variant)
                .find(|variant| F::variant_key(variant) == kernel)
        };
        let against = against
            .as_ref()
            .and_then(|other| Some((named(&other.kernel)?.to_string(), other.microseconds)));
        Some(Choice {
            variant: named(&timed.kernel)?,
            reason: Reason::Measured {
                microseconds: timed.microseconds,
                against,
            },
        })
    }

    /// The remembered kernel of a family, else what the adapter's capabilities suggest.
    pub fn choose<F: Family>(&self, family: &F, caps: &DeviceCaps) -> Choice<F::Variant> {
        let suggested = family.choice(caps);
        match suggested.reason {
            // By a tier.
            Reason::Caller => suggested,
            _ => self.remembered(family, caps).unwrap_or(suggested),
        }
    }
}
