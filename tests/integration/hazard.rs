//! No reuse before its time: random orders of recording, submitting and dropping, on a real device, against values that the
//! host keeps. What a kernel, a copy or an upload of one recording must not do is touch a buffer that the pool has lent to
//! another which runs first.
//!
//! `HAZARD_ORDERS=100000 cargo test --release --test integration hazard -- --nocapture` runs that many orders, with
//! `HAZARD_SEED=<number>` from that seed on; the ordinary tests run a slice.

use dilated_attention::pool::{PoolError, PoolOptions, Pressure};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig,
    Download, Error, Recorder, Tensor, wgpu,
};

use crate::support::contexts::context_with;

/// Orders of the ordinary tests, over all kinds of pools.
const SLICE: u64 = 5000;

const OPERATIONS: u64 = 24;
const MAX_OPEN: usize = 4;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }
}

/// Where the commands that wrote a tensor are.
#[derive(Clone, Copy, PartialEq)]
enum Written {
    Open(u64),
    Submitted,
}

struct Known {
    tensor: Tensor,
    values: Vec<f32>,
    written: Written,
}

/// A recording that is open, or in an encoder of the application's.
struct Work {
    id: u64,
    stage: Stage,
    downloads: Vec<(Download<f32>, Vec<f32>)>,
}

#[expect(clippy::large_enum_variant, reason = "few exist at a time")]
enum Stage {
    Recording(Recorder),
    Encoded(wgpu::CommandEncoder),
}

/// One device with its pool, and an attention that copies: every token attends to itself alone.
struct Machine {
    name: &'static str,
    context: Context,
    copy: DilatedAttention,
}

impl Machine {
    fn new(name: &'static str, pool: PoolOptions) -> Self {
        let context = context_with(&ContextOptions {
            pool,
            ..Default::default()
        });
        let config = DilatedAttentionConfig::new(1, 4, &[1], &[1]).expect("valid");
        let copy = DilatedAttention::new(&context, config).expect("fits");
        Self {
            name,
            context,
            copy,
        }
    }
}

struct Order<'a> {
    machine: &'a Machine,
    random: Random,
    next: u64,
    known: Vec<Known>,
    work: Vec<Work>,
    /// Downloads of submitted work.
    arriving: Vec<(Download<f32>, Vec<f32>)>,
}

/// What a full budget or a full device refuses is not done; anything else fails the test.
fn done<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Pool(PoolError::BudgetExceeded { .. } | PoolError::OutOfMemory { .. })) => None,
        Err(error) => panic!("{error}"),
    }
}

impl<'a> Order<'a> {
    fn new(machine: &'a Machine, seed: u64) -> Self {
        Self {
            machine,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            next: 0,
            known: Vec::new(),
            work: Vec::new(),
            arriving: Vec::new(),
        }
    }

    fn run(mut self) {
        for _ in 0..OPERATIONS {
            self.step();
        }
        while !self.work.is_empty() {
            let index = self.random.below(self.work.len());
            self.finish(index);
        }
        while !self.arriving.is_empty() {
            self.check();
        }
        let pool = self.machine.context.pool();
        pool.set_pressure(Pressure::Normal);
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0 | 1 if self.work.len() < MAX_OPEN => self.open(),
            0..=2 => self.upload(),
            3 => self.zeros(),
            4 => self.write(),
            5..=7 => self.copy(),
            8 | 9 => self.download(),
            10 => self.drop_tensor(),
            11 => self.peek(),
            12 if !self.work.is_empty() => {
                let index = self.random.below(self.work.len());
                self.finish(index);
            }
            13 => self.encode(),
            14 if !self.arriving.is_empty() => self.check(),
            15 => self.press(),
            _ => self.open_if_none(),
        }
    }

    fn open(&mut self) {
        self.next += 1;
        self.work.push(Work {
            id: self.next,
            stage: Stage::Recording(self.machine.context.recorder("hazard")),
            downloads: Vec::new(),
        });
    }

    fn open_if_none(&mut self) {
        if self.work.is_empty() {
            self.open();
        }
    }

    /// A recording that is open still.
    fn recording(&mut self) -> Option<usize> {
        self.open_if_none();
        let index = self.random.below(self.work.len());
        matches!(self.work[index].stage, Stage::Recording(_)).then_some(index)
    }

    /// A tensor that the recording may read: its own, or one whose writer was submitted before.
    fn readable(&mut self, id: u64) -> Option<usize> {
        let readable: Vec<usize> = (0..self.known.len())
            .filter(|&index| {
                let written = self.known[index].written;
                written == Written::Submitted || written == Written::Open(id)
            })
            .collect();
        (!readable.is_empty()).then(|| readable[self.random.below(readable.len())])
    }

    fn values(&mut self) -> (usize, Vec<f32>) {
        let tokens = 1 + self.random.below(16);
        let first = self.random.below(1 << 20) as f32;
        (tokens, (0..tokens * 4).map(|i| first + i as f32).collect())
    }

    fn upload(&mut self) {
        let (tokens, values) = self.values();
        self.make(values.clone(), |recorder| {
            recorder.upload("uploaded", &[1, tokens, 1, 4], &values)
        });
    }

    fn zeros(&mut self) {
        let (tokens, values) = self.values();
        self.make(vec![0.0; values.len()], |recorder| {
            recorder.zeros("zeros", &[1, tokens, 1, 4], DType::F32)
        });
    }

    /// Makes a tensor of `values` in some recording.
    fn make(&mut self, values: Vec<f32>, make: impl Fn(&mut Recorder) -> Result<Tensor, Error>) {
        let Some(index) = self.recording() else {
            return;
        };
        let Work { id, stage, .. } = &mut self.work[index];
        let Stage::Recording(recorder) = stage else {
            return;
        };
        if let Some(tensor) = done(make(recorder)) {
            let written = Written::Open(*id);
            self.known.push(Known {
                tensor,
                values,
                written,
            });
        }
    }

    /// Overwrites a tensor of the same recording.
    fn write(&mut self) {
        let Some(index) = self.recording() else {
            return;
        };
        let (_, values) = self.values();
        let Work { id, stage, .. } = &mut self.work[index];
        let Stage::Recording(recorder) = stage else {
            return;
        };
        let own = self
            .known
            .iter_mut()
            .find(|known| known.written == Written::Open(*id));
        if let Some(known) = own {
            let values: Vec<f32> = values
                .iter()
                .copied()
                .cycle()
                .take(known.values.len())
                .collect();
            if done(recorder.write(&known.tensor, &values)).is_some() {
                known.values = values;
            }
        }
    }

    /// Copies a tensor by a kernel.
    fn copy(&mut self) {
        let Some(index) = self.recording() else {
            return;
        };
        let Some(source) = self.readable(self.work[index].id) else {
            return;
        };
        let Work { id, stage, .. } = &mut self.work[index];
        let Stage::Recording(recorder) = stage else {
            return;
        };
        let Known { tensor, values, .. } = &self.known[source];
        let _shape = AttentionShape::new(1, tensor.shape()[1]).expect("valid");
        let copied = self.machine.copy.forward(recorder, tensor, tensor, tensor);
        if let Some(output) = done(copied) {
            let values = values.clone();
            let written = Written::Open(*id);
            self.known.push(Known {
                tensor: output.out,
                values,
                written,
            });
        }
    }

    fn download(&mut self) {
        let Some(index) = self.recording() else {
            return;
        };
        let Some(source) = self.readable(self.work[index].id) else {
            return;
        };
        let Work {
            stage, downloads, ..
        } = &mut self.work[index];
        let Stage::Recording(recorder) = stage else {
            return;
        };
        let Known { tensor, values, .. } = &self.known[source];
        if let Some(download) = done(recorder.download::<f32>(tensor)) {
            downloads.push((download, values.clone()));
        }
    }

    /// What an open recording writes, no other may read yet.
    fn peek(&mut self) {
        let is_open = |id: u64| {
            let of_id = |work: &&Work| work.id == id;
            let work = self.work.iter().find(of_id);
            matches!(work.map(|work| &work.stage), Some(Stage::Recording(_)))
        };
        let unwritten = self.known.iter().find(|known| match known.written {
            Written::Open(id) => is_open(id),
            Written::Submitted => false,
        });
        let Some(Known { tensor, .. }) = unwritten else {
            return;
        };
        let mut recorder = self.machine.context.recorder("peek");
        if done(recorder.download::<f32>(tensor)).is_some() {
            let refused = recorder.submit();
            assert!(matches!(refused, Err(Error::NotWritten { .. })));
        }
    }

    fn drop_tensor(&mut self) {
        if !self.known.is_empty() {
            let index = self.random.below(self.known.len());
            self.known.swap_remove(index);
        }
    }

    /// Hands a recording to an encoder of the application's.
    fn encode(&mut self) {
        let Some(index) = self.recording() else {
            return;
        };
        let work = self.work.swap_remove(index);
        let Stage::Recording(recorder) = work.stage else {
            return;
        };
        let mut encoder = self
            .machine
            .context
            .device()
            .create_command_encoder(&Default::default());
        match done(recorder.encode(&mut encoder)) {
            Some(()) => self.work.push(Work {
                stage: Stage::Encoded(encoder),
                ..work
            }),
            None => self.forget(work.id),
        }
    }

    /// Submits work, or drops it.
    fn finish(&mut self, index: usize) {
        let work = self.work.swap_remove(index);
        let context = &self.machine.context;
        let dropped = self.random.below(5) == 0;
        let submitted = match work.stage {
            _ if dropped => None,
            Stage::Recording(recorder) => done(recorder.submit()).map(drop),
            Stage::Encoded(encoder) => {
                context.queue().submit([encoder.finish()]);
                Some(())
            }
        };
        if submitted.is_none() {
            return self.forget(work.id);
        }
        for known in &mut self.known {
            if known.written == Written::Open(work.id) {
                known.written = Written::Submitted;
            }
        }
        // Some results nobody waits for.
        let wanted = self.random.below(8) > 0;
        self.arriving
            .extend(work.downloads.into_iter().filter(|_| wanted));
    }

    /// What dropped work would have written was never written.
    fn forget(&mut self, id: u64) {
        self.known
            .retain(|known| known.written != Written::Open(id));
    }

    fn check(&mut self) {
        let index = self.random.below(self.arriving.len());
        let (download, expected) = self.arriving.swap_remove(index);
        let values = download.wait().expect("arrives");
        assert_eq!(values, expected, "clobbered");
    }

    fn press(&mut self) {
        let pool = self.machine.context.pool();
        match self.random.below(16) {
            0 => drop(pool.trim()),
            1 => drop(pool.trim_to(4096)),
            2 => pool.set_pressure(Pressure::Aggressive),
            3..=5 => pool.set_pressure(Pressure::Normal),
            _ => pool.maintain(),
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn hazard_no_order_of_recording_submitting_and_dropping_clobbers() {
    let (first, orders) = (number("HAZARD_SEED", 1), number("HAZARD_ORDERS", SLICE));
    let machines = [
        Machine::new("default", PoolOptions::default()),
        Machine::new("poisoned", PoolOptions::default().with_poison(true)),
        // Staging alone takes 64 KiB a recording, of uploads or of the seals of downloads.
        Machine::new(
            "budget",
            PoolOptions::default().with_budget_bytes(400 << 10),
        ),
    ];
    // Two threads work on the same devices.
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let machines = &machines;
            scope.spawn(move || {
                for seed in (first..first + orders).filter(|seed| seed % 2 == thread) {
                    let machine = &machines[(seed / 2) as usize % machines.len()];
                    let told = Told { seed, machine };
                    Order::new(machine, seed).run();
                    std::mem::forget(told);
                    if seed % 10_000 == 0 {
                        println!("{} orders", seed - first);
                    }
                }
            });
        }
    });
    for machine in &machines {
        machine.context.wait().expect("waits");
        let stats = machine.context.pool().stats();
        assert!(stats.identities_hold(), "{}: {stats}", machine.name);
        assert_eq!(
            (stats.leases.current, stats.pending.current),
            (0, 0),
            "{}: {stats}",
            machine.name
        );
        assert!(stats.hits() > stats.misses, "{}: {stats}", machine.name);
    }
}

/// Says which order failed, when it panics.
struct Told<'a> {
    seed: u64,
    machine: &'a Machine,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!(
            "order {} failed on the '{}' pool: HAZARD_SEED={} HAZARD_ORDERS=1 runs it alone",
            self.seed, self.machine.name, self.seed
        );
    }
}
