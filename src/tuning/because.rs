//! Reasons that are known without measuring.

/// A GPU.
pub(crate) const GPU: &str = "a GPU, kernels for workgroup memory";

/// A GPU, f16 tensors.
pub(crate) const MATRICES: &str = "a GPU with cooperative matrices, f16 tensors";

/// A software driver, `Processor::Cpu` with `uniform_loads`.
pub(crate) const UNIFORM_LOADS: &str =
    "a CPU whose driver loads an address that all lanes share once (lavapipe of Mesa 26 and later)";

/// A software driver without, with `broadcasts`.
pub(crate) const BROADCASTS: &str = "a CPU whose driver loads shared addresses once a lane, and has subgroups of 8 lanes (lavapipe before Mesa 26)";

/// A software driver with both, a linear layer's product.
pub(crate) const BROADCASTS_OF_FOURS: &str =
    "a CPU with subgroups of 8 lanes, factors whose sums run along the stored rows";

/// A software driver with neither.
pub(crate) const LOADS_PER_LANE: &str =
    "a CPU whose driver loads shared addresses once a lane (lavapipe before Mesa 26, others)";

/// Unrolled columns of such heads compile for longer than they save.
pub(crate) const WIDE_HEADS: &str =
    "heads wider than 128, whose columns compile for too long unrolled";
