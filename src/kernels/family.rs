//! Families: kernels with the same result, and the choice of one for a device.

use std::fmt;
use std::time::Duration;

use super::Choice;
use super::choice::reasons;
use crate::device::{DeviceCaps, KernelTier};
use crate::error::{Error, Result};

/// A computation that several kernels can do, with everything that the choice between them depends on. Plans choose here; contexts
/// that compile ahead and timed probes ask here, too.
pub trait Family {
    /// A kernel, or the kernels of all passes, with the numbers they are compiled for.
    type Variant: Copy + PartialEq + fmt::Debug + fmt::Display;

    /// The tiers that suit a device, the best first, each with the reason. The order follows measurements; docs/performance.md has
    /// the figures.
    fn suited(&self, caps: &DeviceCaps) -> Vec<(KernelTier, &'static str)>;

    /// The variant of `tier`, which the device must run; see [`of_tier`](Self::of_tier).
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::InvalidConfig`] with the reason why there is none for these tensors.
    fn of_device_tier(&self, tier: KernelTier, caps: &DeviceCaps) -> Result<Self::Variant>;

    /// The variant that every device runs.
    fn tile(&self) -> Self::Variant;

    /// Whether `variant` runs on a device with `caps`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the device lacks what it needs, [`Error::InvalidConfig`] for numbers that no device runs.
    fn check(&self, variant: Self::Variant, caps: &DeviceCaps) -> Result<()>;

    /// Variants of the same tier with other numbers, which may be faster.
    fn alternatives(&self, variant: Self::Variant) -> Vec<Self::Variant>;

    /// Expected time to compile `variant` and run it once; `None` for too long to try. Measured on 2 cores with lavapipe of Mesa
    /// 25.0.7 and 26.2.6 ([`Context::warm_up`](crate::Context::warm_up) reports it); drivers of GPUs are assumed to take a second.
    fn compile_time(&self, variant: Self::Variant, caps: &DeviceCaps) -> Option<Duration>;

    /// The key under which the winner of a probe is remembered. It holds everything that the probe depends on.
    fn key(&self) -> String;

    /// The text by which a winner is remembered: the name of the kernel and all its numbers.
    fn variant_key(variant: &Self::Variant) -> String;

    /// The variant of `tier`, if the device runs it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::InvalidConfig`] with the reason why there is none for these tensors on this device.
    fn of_tier(&self, tier: KernelTier, caps: &DeviceCaps) -> Result<Self::Variant> {
        tier.check(caps)?;
        let variant = self.of_device_tier(tier, caps)?;
        self.check(variant, caps)?;
        Ok(variant)
    }

    /// The variant of the tier that the caller asked for (`caps.tier`), if it runs here; else of the best tier that suits the device.
    fn choice(&self, caps: &DeviceCaps) -> Choice<Self::Variant> {
        if let Some(Ok(variant)) = caps.tier.map(|tier| self.of_tier(tier, caps)) {
            return variant.into();
        }
        let suited = self.suited(caps).into_iter();
        let mut fitting = suited.filter_map(|(tier, reason)| {
            let variant = self.of_tier(tier, caps).ok()?;
            Some(Choice::adapter(variant, reason))
        });
        fitting
            .next()
            .unwrap_or_else(|| Choice::adapter(self.tile(), reasons::EVERY_DEVICE))
    }

    /// The variant with the device's cooperative matrices.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::InvalidConfig`] with the reason why there is none for these tensors on this device.
    #[cfg(feature = "testing")]
    fn cooperative(&self, caps: &DeviceCaps) -> Result<Self::Variant> {
        let matrix = caps.cooperative_matrix.as_ref();
        let tier = matrix.map_or(KernelTier::Coop16, |matrix| KernelTier::of_matrix(*matrix));
        let variant = self.of_device_tier(tier, caps)?;
        self.check(variant, caps)?;
        Ok(variant)
    }

    /// The variants of all tiers that run on a device.
    fn of_all_tiers(&self, caps: &DeviceCaps) -> Vec<Self::Variant> {
        let tiers = KernelTier::ALL.into_iter();
        tiers
            .filter_map(|tier| self.of_tier(tier, caps).ok())
            .collect()
    }

    /// All variants that run on a device, alternatives included, each with its compile time.
    fn candidates(&self, caps: &DeviceCaps) -> Vec<Candidate<Self::Variant>> {
        let of_tiers = self.of_all_tiers(caps).into_iter();
        let variants = of_tiers.flat_map(|variant| {
            let others = self.alternatives(variant).into_iter();
            std::iter::once(variant).chain(others)
        });
        let fitting = variants.filter(|variant| self.check(*variant, caps).is_ok());
        fitting
            .map(|variant| Candidate {
                variant,
                compile_time: self.compile_time(variant, caps),
            })
            .collect()
    }
}

/// A variant that runs on a device, with its compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<V> {
    /// The variant.
    pub variant: V,
    /// Expected compile time on this kind of driver; `None` for too long to try ([`Family::compile_time`]).
    pub compile_time: Option<Duration>,
}

/// The tiers that suit a GPU, the best first.
pub(super) fn gpu_tiers(caps: &DeviceCaps) -> Vec<(KernelTier, &'static str)> {
    let matrices = caps.cooperative_matrix.iter();
    let matrices = matrices.map(|matrix| (KernelTier::of_matrix(*matrix), reasons::MATRICES));
    matrices.chain([(KernelTier::Tile, reasons::GPU)]).collect()
}

/// The error for a number that a kernel cannot have.
pub(super) fn invalid<T>(what: &'static str, given: u32, need: &'static str) -> Result<T> {
    Err(Error::InvalidConfig {
        what,
        given: given.to_string(),
        need,
    })
}

/// The error for a kernel that needs more workgroup memory than the device has.
pub(super) fn no_room(what: &str, caps: &DeviceCaps, need: String) -> Error {
    Error::Unsupported {
        what: what.to_owned(),
        given: format!(
            "its workgroups have {} bytes of memory",
            caps.max_workgroup_memory_bytes
        ),
        need: format!("{need}, or a kernel of another tier"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DilatedAttentionConfig;
    use crate::device::{ElementFormat, Processor};
    use crate::kernels::attention_backward::BackwardFamily;
    use crate::kernels::attention_forward::{ForwardFamily, ForwardLayout};
    use crate::kernels::matmul::MatmulFamily;

    fn check<F: Family>(family: &F, caps: &DeviceCaps) {
        let (chosen, candidates) = (family.choice(caps).variant, family.candidates(caps));
        let found = candidates
            .iter()
            .find(|candidate| candidate.variant == chosen);
        // Also what makes a remembered winner findable: it is looked up among the candidates.
        let found = found.unwrap_or_else(|| panic!("{}: {chosen} is no candidate", family.key()));
        assert!(
            found.compile_time.is_some(),
            "{}: {chosen} is dear",
            family.key()
        );
        let keys: std::collections::HashSet<String> = candidates
            .iter()
            .map(|candidate| F::variant_key(&candidate.variant))
            .collect();
        assert_eq!(
            keys.len(),
            candidates.len(),
            "{}: keys tell them apart",
            family.key()
        );
    }

    fn without_matrices() -> impl Iterator<Item = DeviceCaps> {
        let kinds = DeviceCaps::of_every_kind().into_iter();
        kinds.filter(|caps| caps.cooperative_matrix.is_err())
    }

    #[test]
    fn what_is_chosen_is_an_affordable_candidate() {
        let format = ElementFormat::F32;
        for caps in without_matrices() {
            for head_dim in [4, 16, 64, 96, 128, 256] {
                for (segment, rate) in [(1, 1), (33, 1), (65, 2), (2048, 16), (65_536, 1)] {
                    let config = DilatedAttentionConfig::new(2, head_dim, &[segment], &[rate])
                        .expect("valid");
                    check(&ForwardFamily::of(&config, format), &caps);
                    check(&BackwardFamily::of(&config, format), &caps);
                }
            }
            for columns in [1, 20, 256, 768, 3072, 100_000] {
                check(&MatmulFamily::of_linear_layer(columns), &caps);
            }
        }
    }

    #[test]
    fn kernels_that_compile_for_a_minute_are_dear() {
        let caps = DeviceCaps {
            processor: Processor::Cpu {
                lanes: 8,
                uniform_loads: false,
                broadcasts: true,
            },
            ..DeviceCaps::webgpu_defaults()
        };
        let config = DilatedAttentionConfig::new(1, 64, &[512], &[1]).expect("valid");
        let candidates = ForwardFamily::of(&config, ElementFormat::F32).candidates(&caps);
        let rows = candidates
            .iter()
            .find(|candidate| matches!(candidate.variant.layout, ForwardLayout::Rows(_)));
        assert_eq!(rows.expect("is listed").compile_time, None);
    }
}
