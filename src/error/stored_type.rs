//! Element types in a weight file.

use std::fmt;

/// Element type of a tensor in a weight file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoredType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper 16 bits of an f32.
    Bf16,
    /// Another type of the safetensors format, with its name. A file may have such tensors, but they cannot be loaded as parameters.
    Other(&'static str),
}

impl StoredType {
    /// Name of the type in the safetensors format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
