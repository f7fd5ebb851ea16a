//! Packing: keys of one branch copied out of the tensors of tokens, and back.

use super::{Access, AttentionParams, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

/// Copies keys and values, or their gradients, between the tensors of tokens and packed keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackKeys {
    /// Elements in one head.
    pub head_dim: u32,
    /// Element format of both.
    pub format: ElementFormat,
    /// Whether packed keys are copied to the tensors of tokens; else the other way round.
    pub unpacks: bool,
}

impl PackKeys {
    /// Keys of a head that one workgroup copies.
    pub(crate) const KEYS: u32 = 16;
}

impl KernelSpec for PackKeys {
    fn name(&self) -> &'static str {
        "pack_keys"
    }

    fn fields(&self) -> Fields {
        Fields::new()
            .with("head_dim", self.head_dim)
            .with("format", self.format.name())
            .with("unpacks", self.unpacks)
    }

    fn bindings(&self) -> &'static [Access] {
        use Access::{Read, ReadWrite};
        // Two tensors of tokens, then the two of packed keys.
        match self.unpacks {
            false => &[Read, Read, ReadWrite, ReadWrite],
            true => &[ReadWrite, ReadWrite, Read, Read],
        }
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<AttentionParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        // A multiplication takes no longer than a load and a store.
        u64::from(2 * Self::KEYS * self.head_dim)
    }

    fn all(head_dim: u32, format: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        let both = [false, true].map(|unpacks| Self {
            head_dim,
            format,
            unpacks,
        });
        both.to_vec()
    }
}
