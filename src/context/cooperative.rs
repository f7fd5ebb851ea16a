//! Cooperative matrices of a context's device: asked for, tried before the first use, refused where they are wrong.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use super::{Context, trial};
use crate::device::{CooperativeMatrix, DeviceFacts, KernelTier, NoCooperativeMatrix, Storage};
use crate::kernels::Pipelines;
use crate::pool::{Pool, PoolOptions};
use crate::recorder::{Machine, OnDevice};
use crate::watch::LastQueue;

impl Context {
    /// Features for cooperative matrices worth requesting from `adapter`; none where it has no usable ones. They are
    /// experimental: an application that makes its own device must also set
    /// [`wgpu::DeviceDescriptor::experimental_features`].
    pub fn cooperative_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        let matrices = adapter.cooperative_matrix_properties();
        match CooperativeMatrix::of(&adapter.get_info(), adapter.features(), &matrices) {
            Ok(_) => CooperativeMatrix::FEATURES,
            Err(_) => wgpu::Features::empty(),
        }
    }

    /// The cooperative matrices that kernels use for f16 tensors, or why none. The first call tries what the adapter claims:
    /// it multiplies known numbers on the device, and waits for the result.
    ///
    /// # Errors
    /// Why there are none.
    pub fn cooperative_matrix(
        &self,
    ) -> std::result::Result<CooperativeMatrix, NoCooperativeMatrix> {
        self.tried_facts().cooperative_matrix.clone()
    }

    /// Multiplies known numbers with such matrices on the device, and compares the result with the host's.
    ///
    /// # Errors
    /// How it failed.
    pub fn try_cooperative_matrix(
        &self,
        matrix: CooperativeMatrix,
    ) -> std::result::Result<(), NoCooperativeMatrix> {
        trial::run(self, matrix)
    }

    /// [`facts`](Self::facts) after the trial of the cooperative matrices.
    fn tried_facts(&self) -> &DeviceFacts {
        self.machine.tried_facts.get_or_init(|| {
            let mut facts = self.machine.facts.clone();
            if !self.machine.is_dry() {
                let claimed = facts.cooperative_matrix;
                facts.cooperative_matrix =
                    claimed.and_then(|matrix| trial::run(self, matrix).map(|()| matrix));
            }
            facts
        })
    }

    /// What kernels for tensors that are stored so are chosen from. Only f16 may meet cooperative matrices, so only for it they
    /// are tried.
    pub(crate) fn facts_for(&self, storage: Storage) -> &DeviceFacts {
        match storage {
            Storage::F16 => self.tried_facts(),
            _ => self.facts(),
        }
    }

    /// What decides whether the device has kernels of a tier.
    pub(super) fn tried_facts_of(&self, tier: KernelTier) -> &DeviceFacts {
        match tier {
            KernelTier::Coop8 | KernelTier::Coop16 => self.tried_facts(),
            _ => self.facts(),
        }
    }

    /// A context on the same device with a pool of its own.
    pub(super) fn beside(&self) -> Self {
        let Machine {
            watch,
            queue,
            info,
            facts,
            tuner,
            ..
        } = &*self.machine;
        Self {
            machine: Arc::new(Machine {
                pool: Pool::watched(watch.clone(), PoolOptions::default()),
                pipelines: Pipelines::default(),
                check_finite: AtomicBool::new(false),
                tried_facts: OnceLock::new(),
                pace: Mutex::default(),
                runner: &OnDevice,
                pipelines_file: None,
                tuner: tuner.clone(),
                info: info.clone(),
                facts: facts.clone(),
                watch: watch.clone(),
                _last_queue: LastQueue::new(queue, watch),
                queue: queue.clone(),
            }),
        }
    }
}

/// The permission that wgpu wants for experimental features.
pub(super) fn experimental_features(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu warns that experimental features may have bugs that lead to undefined behaviour. The one in use is that of
    // cooperative matrices, where it leaves unchecked whether the adapter lists the sizes that a shader names and whether
    // control flow is uniform: `CooperativeMatrix::of` accepts listed sizes only, the kernels branch around matrices on
    // values uniform over the workgroup, and a trial product comes before the first use.
    #[expect(
        unsafe_code,
        reason = "the only way to ask for an experimental feature"
    )]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// The cooperative matrices of the adapter that a device of an application's own is from: the device does not tell.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn matrices_of(info: &wgpu::AdapterInfo) -> Vec<wgpu::CooperativeMatrixProperties> {
    // A driver that fails here has none to offer.
    crate::watch::catch(|| {
        let adapters = super::new_instance().enumerate_adapters(wgpu::Backends::all());
        pollster::block_on(adapters)
            .iter()
            .find(|adapter| adapter.get_info() == *info)
            .map(wgpu::Adapter::cooperative_matrix_properties)
            .unwrap_or_default()
    })
    .unwrap_or_default()
}

/// Browsers have none.
#[cfg(target_arch = "wasm32")]
pub(super) fn matrices_of(_: &wgpu::AdapterInfo) -> Vec<wgpu::CooperativeMatrixProperties> {
    Vec::new()
}
