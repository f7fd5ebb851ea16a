//! Repetitions of one piece of work beside the ceiling it is compared with.
//!
//! Before every repetition the outputs of the one before are overwritten with NaN, and the pool has been emptied before the
//! first: so an output lies in memory that holds NaN, or in a new buffer, which wgpu fills with zeros. The outputs of the last
//! repetition are then compared with a reference. A kernel that does nothing therefore cannot look fast.

use std::time::Instant;

use dilated_attention::ops::convert;
use dilated_attention::wgpu;
use dilated_attention::{Context, DType, Recorder, Result, Tensor, half};
use testing::measurement::Spread;
use testing::processor;

use crate::ceilings::Ceiling;

/// Work that can be recorded again and again.
pub trait Timed {
    /// Floating point operations, or bytes.
    fn work(&self) -> f64;

    /// Records it and tells where its results are.
    fn record(&self, recorder: &mut Recorder) -> Result<Vec<Tensor>>;

    /// Largest error of the results, as a share of what is allowed: above 1 is wrong.
    fn error(&self, results: &[Vec<f32>]) -> Result<f64>;

    /// Bytes of tensors that exist before it is recorded.
    fn held_bytes(&self) -> u64;

    /// Bytes of its inputs and outputs: what any implementation needs.
    fn floor_bytes(&self) -> u64;
}

/// Seconds of one run.
#[derive(Clone, Copy)]
pub struct Seconds {
    /// From recording to completion.
    pub wall: f64,
    /// On the device, where it has timestamps; or of the processor, where that is asked for.
    pub device: Option<f64>,
}

impl Seconds {
    /// Those that rates are made of.
    pub fn best_known(&self) -> f64 {
        self.device.unwrap_or(self.wall)
    }
}

/// Two timestamps around the commands of a submission.
pub struct Clock {
    device: wgpu::Device,
    queue: wgpu::Queue,
    time: Time,
}

/// How time on the device is told.
enum Time {
    Stamps(Stamps),
    /// The processor's, which is the device.
    Processor,
    /// Not.
    Wall,
}

struct Stamps {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    mapped: wgpu::Buffer,
}

impl Clock {
    #[expect(
        clippy::disallowed_methods,
        reason = "16 bytes that have nothing to do with the pool"
    )]
    pub fn new(context: &Context, processor_time: bool) -> Self {
        let device = context.device().clone();
        let features =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        let stamps = || Stamps {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            mapped: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        };
        let time = match (processor_time, device.features().contains(features)) {
            (true, _) => Time::Processor,
            (false, true) => Time::Stamps(stamps()),
            (false, false) => Time::Wall,
        };
        Self {
            queue: context.queue().clone(),
            device,
            time,
        }
    }

    /// Submits what `encode` puts into an encoder and waits for it.
    pub fn time<E>(
        &self,
        encode: impl FnOnce(&mut wgpu::CommandEncoder) -> std::result::Result<(), E>,
    ) -> std::result::Result<Seconds, E> {
        let started = Instant::now();
        let used = processor::seconds().unwrap_or(0.0);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        if let Time::Stamps(stamps) = &self.time {
            encoder.write_timestamp(&stamps.set, 0);
        }
        encode(&mut encoder)?;
        if let Time::Stamps(stamps) = &self.time {
            encoder.write_timestamp(&stamps.set, 1);
            encoder.resolve_query_set(&stamps.set, 0..2, &stamps.resolved, 0);
            encoder.copy_buffer_to_buffer(&stamps.resolved, 0, &stamps.mapped, 0, 16);
        }
        self.queue.submit([encoder.finish()]);
        self.wait();
        let wall = started.elapsed().as_secs_f64();
        let device = match &self.time {
            Time::Stamps(stamps) => Some(self.read(stamps)),
            Time::Processor => Some(processor::seconds().unwrap_or(0.0) - used),
            Time::Wall => None,
        };
        Ok(Seconds { wall, device })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "stands for an application of its own"
    )]
    fn wait(&self) {
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("the device answers");
    }

    fn read(&self, stamps: &Stamps) -> f64 {
        let slice = stamps.mapped.slice(..);
        slice.map_async(wgpu::MapMode::Read, |result| result.expect("maps"));
        self.wait();
        let ticks: Vec<u64> = {
            let view = slice.get_mapped_range().expect("is mapped");
            let words = view.chunks_exact(8);
            words
                .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
                .collect()
        };
        stamps.mapped.unmap();
        let period = f64::from(self.queue.get_timestamp_period());
        ticks[1].wrapping_sub(ticks[0]) as f64 * period * 1e-9
    }
}

/// What was measured of one piece of work.
pub struct Measured {
    pub work: f64,
    /// Wall time of the first call, which compiles.
    pub first_seconds: f64,
    pub wall: Spread,
    pub device: Option<Spread>,
    /// Of the ceiling.
    pub share: Spread,
    pub repetitions: usize,
    pub dispatches: usize,
    /// Most that existed at once during a call, with the inputs.
    pub peak_bytes: u64,
    pub floor_bytes: u64,
    /// Largest error, as a share of what is allowed.
    pub error: f64,
}

/// One piece of work on one context.
pub struct Subject<'a> {
    pub context: &'a Context,
    pub clock: &'a Clock,
    pub timed: &'a dyn Timed,
}

impl Subject<'_> {
    /// Time, number of dispatches, results.
    fn call(&self) -> Result<(Seconds, usize, Vec<Tensor>)> {
        let (mut dispatches, mut results) = (0, Vec::new());
        let seconds = self.clock.time(|encoder| {
            let mut recorder = self.context.recorder("timed");
            results = self.timed.record(&mut recorder)?;
            dispatches = recorder.num_dispatches();
            recorder.encode(encoder)
        })?;
        Ok((seconds, dispatches, results))
    }

    /// Times one call whose results nobody wants.
    pub fn seconds(&self) -> Result<Seconds> {
        self.call().map(|(seconds, ..)| seconds)
    }

    /// Overwrites results with NaN and gives their memory back.
    fn poison(&self, results: Vec<Tensor>) -> Result<()> {
        let mut recorder = self.context.recorder("poison");
        for tensor in &results {
            let count = tensor.num_elements() as usize;
            match tensor.dtype() {
                DType::F16 => recorder.write(tensor, &vec![half::f16::NAN; count])?,
                DType::Bf16 => recorder.write(tensor, &vec![half::bf16::NAN; count])?,
                _ => recorder.write(tensor, &vec![f32::NAN; count])?,
            }
        }
        recorder.submit()?.wait()
    }

    fn read(&self, results: &[Tensor]) -> Result<Vec<Vec<f32>>> {
        let mut recorder = self.context.recorder("results");
        let downloads = results
            .iter()
            .map(|tensor| {
                let tensor = convert(&mut recorder, tensor, DType::F32)?;
                recorder.download::<f32>(&tensor)
            })
            .collect::<Result<Vec<_>>>()?;
        recorder.submit()?.wait()?;
        downloads.iter().map(|download| download.wait()).collect()
    }
}

/// Repetitions of a subject.
pub struct Series<'a> {
    subject: Subject<'a>,
    measured: Measured,
    walls: Vec<f64>,
    devices: Vec<f64>,
    /// Of the last call.
    results: Vec<Tensor>,
}

impl<'a> Series<'a> {
    /// Calls it for the first time.
    pub fn start(subject: Subject<'a>) -> Result<Self> {
        let pool = subject.context.pool();
        pool.force_trim();
        pool.reset_peaks();
        let before = pool.stats().requested_bytes.current;
        let (first, dispatches, results) = subject.call()?;
        let leased = pool.stats().requested_bytes.peak - before;
        let nothing = Spread::of(vec![0.0]);
        let measured = Measured {
            work: subject.timed.work(),
            first_seconds: first.wall,
            wall: nothing,
            device: None,
            share: nothing,
            repetitions: 0,
            dispatches,
            peak_bytes: leased + subject.timed.held_bytes(),
            floor_bytes: subject.timed.floor_bytes(),
            error: f64::NAN,
        };
        Ok(Self {
            subject,
            measured,
            walls: Vec::new(),
            devices: Vec::new(),
            results,
        })
    }

    /// Overwrites the results with NaN and calls it again.
    pub fn again(&mut self) -> Result<Seconds> {
        self.subject.poison(std::mem::take(&mut self.results))?;
        let (seconds, _, results) = self.subject.call()?;
        self.walls.push(seconds.wall);
        self.devices.extend(seconds.device);
        self.results = results;
        Ok(seconds)
    }

    /// Checks the results of the last call.
    pub fn finish(self) -> Result<Measured> {
        let results = self.subject.read(&self.results)?;
        drop(self.results);
        Ok(Measured {
            error: self.subject.timed.error(&results)?,
            repetitions: self.walls.len(),
            device: (!self.devices.is_empty()).then(|| Spread::of(self.devices)),
            wall: Spread::of(self.walls),
            ..self.measured
        })
    }
}

/// Times `subjects` in turn, repetition by repetition, each after its ceiling, so that a machine whose speed drifts does not
/// shift the ratios.
pub fn measure(
    subjects: Vec<Subject<'_>>,
    ceiling: &Ceiling,
    repetitions: usize,
) -> Result<Vec<Measured>> {
    let mut series = Vec::new();
    for subject in subjects {
        series.push((Series::start(subject)?, Vec::new()));
    }
    for _ in 0..repetitions {
        for (series, shares) in &mut series {
            let most = ceiling.rate();
            let seconds = series.again()?.best_known();
            shares.push(series.measured.work / seconds / most * 100.0);
        }
    }
    let finish = |(series, shares): (Series<'_>, Vec<f64>)| {
        let share = Spread::of(shares);
        Ok(Measured {
            share,
            ..series.finish()?
        })
    };
    series.into_iter().map(finish).collect()
}
