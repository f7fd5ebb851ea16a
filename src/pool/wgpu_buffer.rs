//! What leases and pools of `wgpu::Buffer`s can do, beside those of any buffer.

use super::lease::Lease;
use super::shard::Request;
use super::{Pool, PoolError};
use crate::label::Label;

impl Lease {
    /// The bytes that were asked for, to be bound. So `arrayLength` in a shader is true, although the buffer may be larger.
    ///
    /// ```
    /// # use dilated_attention::pool::{Pool, PoolOptions, STORAGE_USAGE};
    /// # use dilated_attention::wgpu;
    /// # let (device, _) = wgpu::Device::noop(&Default::default());
    /// let pool = Pool::new(&device, PoolOptions::default());
    /// let scores = pool.acquire("scores", 1000, STORAGE_USAGE)?;
    /// let entry = wgpu::BindGroupEntry {
    ///     binding: 0,
    ///     resource: scores.binding(),
    /// };
    /// # drop(entry);
    /// # Ok::<(), dilated_attention::Error>(())
    /// ```
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: self.buffer(),
            offset: 0,
            size: wgpu::BufferSize::new(self.requested_bytes()),
        })
    }
}

impl Pool {
    /// Takes in a buffer of the application's. The caller has checked that it belongs to the pool's device.
    ///
    /// # Errors
    /// [`PoolError::ZeroSize`].
    pub(crate) fn import(&self, label: Label, buffer: &wgpu::Buffer) -> Result<Lease, PoolError> {
        let bytes = buffer.size();
        if bytes < 4 {
            return Err(PoolError::ZeroSize { label });
        }
        let request = Request {
            label: &label,
            // Bindings cover whole words.
            requested_bytes: bytes & !3,
            usage: buffer.usage().bits(),
            buffer_bytes: bytes,
            borrow_bytes: bytes,
        };
        Ok(self.core().import(buffer.clone(), &request))
    }

    /// Whether `buffer` is one of the pool's own.
    pub(crate) fn owns(&self, buffer: &wgpu::Buffer) -> bool {
        self.core().lock_all(None).any_buffer(|own| own == buffer)
    }
}
