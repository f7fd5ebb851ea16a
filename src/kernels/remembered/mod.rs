//! The fastest kernels, as measured in this process or an earlier one, and the options that say where the results are kept.

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
    /// The folder for results of measurements and for compiled kernels.
    pub cache: CacheFolder,
    /// The text of a winners file that ships with the application, for adapters that its makers have measured. The user's own
    /// winners file takes precedence. To make one, run [`tune`](crate::tuning::tune), take the file at
    /// [`Context::winners_file`](crate::Context::winners_file), and read it with `include_str!`.
    pub shipped_winners: Option<Cow<'static, str>>,
    /// Compiles shaders without the checks that wgpu adds: bounds of every index, and a counter in every loop. The switch is safe
    /// and changes no result: plans compute all indices and loop bounds from checked shapes, shaders guard what lies beyond, and
    /// the tests run both ways. Checks that a driver makes itself (Vulkan's robust buffer access, Direct3D's) remain. Off by
    /// default, because no adapter measured so far gains from it (docs/performance.md). Without effect in browsers.
    pub trusted_shaders: bool,
    /// Asks for kernels of this tier, to test or compare them, instead of those that suit the device. Where the tier has no kernel
    /// for a call (types other than f16 with cooperative matrices, wide heads), the call gets one that suits the device;
    /// [`Recorder::kernel_names`](crate::Recorder::kernel_names) lists the kernels that a recording runs. A kernel that a call names itself
    /// takes precedence over this tier; this tier takes precedence over measured winners.
    pub tier: Option<KernelTier>,
}

/// The measured winners of one adapter.
#[derive(Debug, Default)]
pub(crate) struct Tuner {
    /// Identifies adapter, driver and their versions, and more; see the method of the same name.
    adapter: String,
    file: Option<PathBuf>,
    winners: Mutex<Winners>,
}

impl Tuner {
    /// Reads the winners of this adapter from the shipped text and from the user's file.
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

    /// Text that identifies the adapter, its driver, their versions, the version of this library, and whether shaders are checked.
    pub fn adapter(&self) -> &str {
        &self.adapter
    }

    pub fn winners(&self) -> MutexGuard<'_, Winners> {
        self.winners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The measured winner of a family, if there is one and it is among the kernels that may run here.
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

    /// The measured winner of a family; else the kernel that suits the device.
    pub fn choose<F: Family>(&self, family: &F, caps: &DeviceCaps) -> Choice<F::Variant> {
        let suggested = family.choice(caps);
        match suggested.reason {
            // The caller asked for a tier.
            Reason::Caller => suggested,
            _ => self.remembered(family, caps).unwrap_or(suggested),
        }
    }
}
