//! Parameter structs as kernels read them from a uniform buffer. Tests compare every field's offset with the shader's.

/// Structs that a kernel takes as its parameters.
pub trait KernelParams: bytemuck::Pod {
    /// Name in the shader.
    const NAME: &'static str;

    /// Name and offset of each field, in order.
    const FIELDS: &'static [(&'static str, usize)];
}

/// Layout of a parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamsInfo {
    /// Name in the shader.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// Name and offset of each field, in order.
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

/// Declares a struct of parameters; the shader says what each field means, once.
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

/// The parameters, which a recording holds at any offset; a recording of nothing has none.
pub(super) fn read<P: bytemuck::Pod>(params: &[u8]) -> P {
    bytemuck::try_pod_read_unaligned(params).unwrap_or_else(|_| P::zeroed())
}

/// Work of one workgroup of 64 invocations that do little each.
pub(super) const LITTLE_WORK: u64 = 64 * 8;
