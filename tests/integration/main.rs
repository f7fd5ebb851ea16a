//! The integration tests, in one binary so that they are linked once.

mod abandoned;
mod backward;
mod budgets;
mod checkpoints;
mod coop;
mod decode;
mod devices;
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
mod out_of_core;
mod out_of_core_files;
mod out_of_core_layers;
mod parts;
mod patterns;
mod ranks;
mod ranks_training;
mod recorder;
mod slices;
mod slides;
mod stale;
mod support;
mod training;
mod tuning;
mod weights;

use testing::counting_allocator::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
