//! Processor time of this process beside the wall clock. A software adapter computes here, too.

use std::time::Instant;

use testing::processor::of_program_and_system;

/// What a piece of work took.
#[derive(Clone, Copy)]
pub struct Took {
    pub wall: f64,
    /// Processor seconds of program and system.
    pub processor: Option<[f64; 2]>,
}

impl Took {
    /// Of a call.
    pub fn of<E>(call: impl FnOnce() -> Result<(), E>) -> Result<Self, E> {
        let (begin, before) = (Instant::now(), of_program_and_system());
        call()?;
        let wall = begin.elapsed().as_secs_f64();
        let processor = before.zip(of_program_and_system()).map(|(before, after)| {
            let [program, system] = [0, 1].map(|index| after[index] - before[index]);
            [program, system]
        });
        Ok(Self { wall, processor })
    }
}

/// Cores that calls kept busy on average: by the program, and by the system.
pub fn cores(calls: &[Took]) -> String {
    let wall: f64 = calls.iter().map(|call| call.wall).sum();
    let all: Option<Vec<[f64; 2]>> = calls.iter().map(|call| call.processor).collect();
    match all {
        None => "not known".to_owned(),
        Some(all) => {
            let [program, system] =
                [0, 1].map(|index| all.iter().map(|call| call[index]).sum::<f64>() / wall);
            format!("{program:.2} + {system:.2}")
        }
    }
}
