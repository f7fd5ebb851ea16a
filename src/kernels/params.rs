//! Parameter structs, laid out as kernels read them from a uniform buffer. Tests compare the offset of every field with the shader.

/// The parameter struct of a kernel.
pub trait KernelParams: bytemuck::Pod {
    /// Name of the struct in the shader.
    const NAME: &'static str;

    /// Name and byte offset of each field, in order.
    const FIELDS: &'static [(&'static str, usize)];
}

/// Layout of a parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamsInfo {
    /// Name of the struct in the shader.
    pub name: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// Name and byte offset of each field, in order.
    pub fields: &'static [(&'static str, usize)],
}

impl ParamsInfo {
    pub(super) fn of<P: KernelParams>() -> Self {
        Self {
            name: P::NAME,
            bytes: size_of::<P>() as u64,
            fields: P::FIELDS,
        }
    }
}

/// Declares a parameter struct. What each field means is said once, in the shader.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name {
            $(pub $field: $ty,)*
        }

        impl $crate::kernels::KernelParams for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
        }
    };
}
pub(super) use params;

/// Reads parameters from the bytes of a recording, where they may be unaligned. Zeros when there are no bytes.
pub(super) fn read<P: bytemuck::Pod>(params: &[u8]) -> P {
    bytemuck::try_pod_read_unaligned(params).unwrap_or_else(|_| P::zeroed())
}

/// Work of a workgroup whose 64 invocations each do little: about 8 operations.
pub(super) const LITTLE_WORK: u64 = 64 * 8;
