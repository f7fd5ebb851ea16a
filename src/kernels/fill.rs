//! Fills 32-bit words with a value. Contexts that poison buffers use it.

use super::params::params;
use super::{Access, Fields, KernelSpec, ParamsInfo};
use crate::device::{DeviceCaps, ElementFormat};

params! {
    /// Parameters of `fill.wgsl`, which says what each means.
    FillParams { first_word: u32, num_words: u32, value: u32, first_workgroup: u32, grid_width: u32 }
}

/// Words that one workgroup fills: the product of the two constants in the shader.
pub(crate) const WORDS_PER_WORKGROUP: u32 = 64 * 16;

/// Fills 32-bit words with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fill;

impl KernelSpec for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn fields(&self) -> Fields {
        Fields::new()
    }

    fn bindings(&self) -> &'static [Access] {
        // words
        &[Access::ReadWrite]
    }

    fn params(&self) -> ParamsInfo {
        ParamsInfo::of::<FillParams>()
    }

    fn workgroup_work(&self, _: &[u8]) -> u64 {
        WORDS_PER_WORKGROUP.into()
    }

    fn all(_: u32, _: ElementFormat, _: &DeviceCaps) -> Vec<Self> {
        vec![Self]
    }
}
