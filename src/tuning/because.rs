//! Reasons that are known without measuring.

/// A GPU.
pub(crate) const GPU: &str = "a GPU, kernels for workgroup memory";

/// A software driver, `Processor::Cpu` with `uniform_loads`.
pub(crate) const UNIFORM_LOADS: &str =
    "a CPU whose driver loads an address that all lanes share once (lavapipe of Mesa 26 and later)";

/// A software driver without.
pub(crate) const LOADS_PER_LANE: &str =
    "a CPU whose driver loads shared addresses once a lane (lavapipe before Mesa 26, others)";

/// Unrolled columns of such heads compile for longer than they save.
pub(crate) const WIDE_HEADS: &str =
    "heads wider than 96, whose columns compile for too long unrolled";
