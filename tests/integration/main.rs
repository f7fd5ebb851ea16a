//! The integration tests, in one binary so that they are linked once.

mod abandoned;
mod backward;
mod barriers;
mod budgets;
mod checkpoints;
mod coop;
#[path = "../../benches/counting_allocator.rs"]
mod counting_allocator;
mod decode;
mod devices;
mod documented_figures;
mod dropout;
mod encoder_decoder;
mod forward;
mod golden;
mod half_models;
mod half_precision;
mod hazard;
mod hostile_checkpoints;
mod interop;
mod large_scores;
mod layers;
mod longvit;
mod memory;
mod model_errors;
mod models;
mod operations;
mod oracle;
mod patterns;
mod plan;
mod pool;
mod pool_model;
mod pool_policy;
mod recorder;
mod shaders;
#[path = "../../benches/simulated.rs"]
mod simulated;
mod slices;
mod slides;
mod stale;
mod support;
mod telemetry;
#[path = "../../benches/traces.rs"]
mod traces;
mod training;
mod tuning;
mod weights;
mod workloads;
