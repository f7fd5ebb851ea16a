//! CubeCL's own memory management, over a storage that allocates nothing.

use std::collections::HashMap;
use std::sync::Arc;

use cubecl_ir::MemoryDeviceProperties;
use cubecl_server::memory_management::{
    ErrorGraph, ManagedMemoryHandle, MemoryAllocationMode, MemoryConfiguration, MemoryManagement,
    MemoryManagementOptions, PageUpdate,
};
use cubecl_server::server::IoError;
use cubecl_server::storage::{ComputeStorage, StorageHandle, StorageId, StorageUtilization};
use testing::traces::Allocator;

use crate::Peer;

/// Counts allocations; has no memory.
#[derive(Default)]
pub struct CountingStorage {
    sizes: HashMap<StorageId, u64>,
    allocations: u64,
    bytes: u64,
}

impl ComputeStorage for CountingStorage {
    type Resource = ();

    fn alignment(&self) -> usize {
        256
    }

    fn get(&mut self, _: &StorageHandle) -> Result<(), IoError> {
        Ok(())
    }

    fn alloc(&mut self, size: u64) -> Result<StorageHandle, IoError> {
        let id = StorageId::new();
        self.sizes.insert(id, size);
        self.allocations += 1;
        self.bytes += size;
        let utilization = StorageUtilization { offset: 0, size };
        Ok(StorageHandle { id, utilization })
    }

    fn dealloc(&mut self, id: StorageId) {
        self.bytes -= self.sizes.remove(&id).unwrap_or(0);
    }

    fn flush(&mut self) {}

    fn bytes_allocated(&self) -> u64 {
        self.bytes
    }
}

pub struct CubeCl {
    memory: MemoryManagement<CountingStorage>,
    failures: ErrorGraph,
    /// Counted outside, since the storage is reached mutably only.
    creates: u64,
}

fn new(configuration: MemoryConfiguration) -> CubeCl {
    CubeCl {
        memory: MemoryManagement::from_configuration(
            CountingStorage::default(),
            &MemoryDeviceProperties::new(1 << 30, 256),
            configuration,
            Arc::default(),
            MemoryManagementOptions::new("peer").mode(MemoryAllocationMode::Auto),
        ),
        failures: ErrorGraph::default(),
        creates: 0,
    }
}

/// One page an allocation, in size buckets.
pub fn exclusive() -> CubeCl {
    new(MemoryConfiguration::ExclusivePages)
}

/// Slices of large pages. A creation is a page, and several leases share one.
pub fn adaptive() -> CubeCl {
    new(MemoryConfiguration::Adaptive)
}

impl Allocator for CubeCl {
    type Lease = ManagedMemoryHandle;

    fn acquire(&mut self, bytes: u64) -> Self::Lease {
        let handle = self
            .memory
            .reserve(bytes, PageUpdate::Allow, &mut self.failures)
            .expect("there is no end to this memory");
        self.creates = self.memory.storage().allocations;
        handle
    }
}

impl Peer for CubeCl {
    fn creates(&self) -> u64 {
        self.creates
    }

    fn held_bytes(&self) -> u64 {
        self.memory.bytes_allocated()
    }
}
