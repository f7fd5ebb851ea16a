//! A run out of core: one block after the other.

use std::fmt;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;

use super::packed::PackedBranch;
use super::plan::OutOfCorePlan;
use super::tokens::{TokenSink, TokenSource};
use crate::attention::DilatedAttention;
use crate::device::{ByteRange, DType};
use crate::error::{Error, Result};
use crate::kernels::Kernel;
use crate::ops::convert_rows;
use crate::plan::{BlockKeys, BlockPlan, BlockWork, Tokens, plan_block};
use crate::pool_encoder::Submission;
use crate::recorder::{Progress, Recorder};
use crate::tensor::Tensor;

/// A forward out of core, under way. [`advance`](Self::advance) takes it a block further. Dropping it cancels the run: what was
/// written stays, and nothing else is.
pub struct OutOfCoreRun<'a> {
    attention: &'a DilatedAttention,
    plan: &'a OutOfCorePlan,
    inputs: [&'a dyn TokenSource; 3],
    sink: &'a mut dyn TokenSink,
    states: Option<&'a mut dyn TokenSink>,
    packed: Vec<PackedBranch>,
    device: Device,
    /// Tokens whose keys are packed, as far as any are; then tokens whose outputs are written.
    packed_tokens: u64,
    written_tokens: u64,
}

impl DilatedAttention {
    /// Begins a forward as `plan` says: `inputs` are q, k and v, of as many tokens and of the type that the plan has. The output goes
    /// to `sink`, block after block. Leases all device memory that the run takes, but for staging.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a plan of another attention; [`Error::WrongDType`] and [`Error::LengthMismatch`] for inputs and
    /// sinks of another type or size than the plan's;
    /// [`Error::HostMemory`] when the host has no memory for packed keys; [`Error::Validation`] when the device refuses a shader; the
    /// errors of leasing.
    pub fn run_out_of_core<'a>(
        &'a self,
        plan: &'a OutOfCorePlan,
        inputs: [&'a dyn TokenSource; 3],
        sink: &'a mut dyn TokenSink,
    ) -> Result<OutOfCoreRun<'a>> {
        let caps = self.context().caps_for(plan.choice.variant.format);
        if (&plan.config, &plan.caps) != (self.config(), caps) {
            return Err(Error::InvalidConfig {
                what: "plan out of core",
                given: "that of another attention, or of another device".to_owned(),
                need: "one that plan_out_of_core of the same attention made",
            });
        }
        let [q, k, v] = inputs.map(|input| (input.dtype(), input.num_elements()));
        let out = (sink.dtype(), sink.num_elements());
        let width = self.config().embed_dim() as u64;
        let expected = (plan.tokens() as u64).saturating_mul(width);
        for (what, (dtype, elements)) in [("q", q), ("k", k), ("v", v), ("out", out)] {
            expect(what, (dtype, plan.dtype), (elements, expected))?;
        }
        self.context().compile(&[plan.choice.variant.into()])?;
        let head_bytes = self.config().head_dim() * plan.dtype.bytes() as usize;
        let packed = plan.packed.iter();
        let packed = packed.map(|geometry| PackedBranch::new(geometry.clone(), head_bytes));
        let packed: Vec<_> = packed.collect::<Result<_>>()?;
        let tokens = plan.tokens() as u64;
        Ok(OutOfCoreRun {
            attention: self,
            plan,
            inputs,
            sink,
            states: None,
            packed_tokens: if packed.is_empty() { tokens } else { 0 },
            packed,
            device: Device::lease(self, plan)?,
            written_tokens: 0,
        })
    }
}

/// The tensors that all blocks use in turn.
struct Device {
    /// Queries, keys and values, in f32.
    inputs: [Tensor; 3],
    /// What is on its way from or to the host in half precision.
    half: Option<Tensor>,
    out: Tensor,
    softmax_state: Tensor,
}

impl Device {
    fn lease(attention: &DilatedAttention, plan: &OutOfCorePlan) -> Result<Self> {
        let mut recorder = attention.context().recorder("out of core");
        let config = attention.config();
        let (width, heads) = (config.embed_dim(), config.num_heads());
        // Both are at most what a binding covers.
        let [tokens, held] = [plan.size.tokens, plan.size.held_tokens].map(|count| count as usize);
        let inputs = ["q", "k", "v"];
        let mut lease =
            |label, rows, width, dtype| recorder.undivided(label, &[rows, width], dtype);
        let [q, k, v] = inputs.map(|label| lease(label, held, width, DType::F32));
        Ok(Self {
            inputs: [q?, k?, v?],
            half: match plan.dtype {
                DType::F32 => None,
                dtype => Some(lease("half", held, width, dtype)?),
            },
            out: lease("out", tokens, width, DType::F32)?,
            softmax_state: lease("softmax_state", tokens, 2 * heads, DType::F32)?,
        })
    }

    /// Records that input number `index` begins with `rows`.
    fn upload(&self, recorder: &mut Recorder, index: usize, rows: &[u8]) -> Result<()> {
        let input = &self.inputs[index];
        match &self.half {
            None => recorder.write_bytes(input, rows),
            Some(half) => {
                recorder.write_bytes(half, rows)?;
                // Packed rows have the heads of their branch alone, so that they are narrower than the tensor's.
                let vec4s = rows.len() / (4 * half.dtype().bytes() as usize);
                let [from, to] = [half, input].map(|tensor| {
                    let elements = tensor.matrix().reshape(4)?;
                    elements.slice(0..vec4s)
                });
                convert_rows(recorder, from?, to?)
            }
        }
    }
}

/// Inputs of a work that were read. `None`: the tensors hold them already, or the host has them packed.
struct ReadAhead {
    queries: Option<Vec<u8>>,
    keys: Option<[Vec<u8>; 2]>,
}

/// Checks type and number of elements of a source or sink: given, expected.
fn expect(
    what: &'static str,
    (given, need): (DType, DType),
    (elements, expected): (Option<u64>, u64),
) -> Result<()> {
    if given != need {
        return Err(Error::WrongDType {
            what: what.into(),
            given,
            need,
        });
    }
    match elements.filter(|given| *given != expected) {
        None => Ok(()),
        Some(given) => Err(Error::LengthMismatch {
            label: what.into(),
            given,
            expected,
        }),
    }
}

impl<'a> OutOfCoreRun<'a> {
    /// The same, which also writes the softmax state of each row and head to `states`, as f32: rows (head, 2), as of
    /// [`ForwardOutput::softmax_state`](crate::ForwardOutput::softmax_state). Of a block, they come before the outputs.
    ///
    /// # Errors
    /// [`Error::WrongDType`] and [`Error::LengthMismatch`] for another type or size; [`Error::OutOfOrder`] once outputs were written.
    pub fn with_softmax_state(self, states: &'a mut dyn TokenSink) -> Result<Self> {
        if self.written_tokens > 0 {
            return Err(Error::OutOfOrder {
                call: "with_softmax_state",
                state: format!("the outputs of {} tokens are written", self.written_tokens),
                next_step: "call it before the run is advanced",
            });
        }
        let heads = self.attention.config().num_heads() as u64;
        let elements = (states.num_elements(), self.plan.tokens() as u64 * heads * 2);
        expect("softmax_state", (states.dtype(), DType::F32), elements)?;
        Ok(Self {
            states: Some(states),
            ..self
        })
    }
}

impl OutOfCoreRun<'_> {
    /// What is done, in tokens: those whose keys were packed, if any are, and those whose outputs were written.
    pub fn progress(&self) -> Progress {
        let tokens = self.plan.tokens() as u64;
        let passes = if self.packed.is_empty() { 1 } else { 2 };
        Progress {
            done: self.packed_tokens * (passes - 1) + self.written_tokens,
            total: tokens * passes,
        }
    }

    /// Whether all outputs are written.
    pub fn is_done(&self) -> bool {
        self.written_tokens == self.plan.tokens() as u64
    }

    /// Takes the run a block further and returns how far it is. Blocks until the block is done.
    ///
    /// # Errors
    /// [`Error::HostTokens`] when a source cannot be read or the sink not be written, [`Error::HostMemory`], and the errors of
    /// leasing and submitting. Call it again to try the same block once more.
    pub fn advance(&mut self) -> Result<Progress> {
        let tokens = self.plan.tokens() as u64;
        let block = |from: u64| from..tokens.min(from + self.plan.size.tokens);
        if self.packed_tokens < tokens {
            self.pack(block(self.packed_tokens))?;
        } else if !self.is_done() {
            self.compute(block(self.written_tokens))?;
        }
        Ok(self.progress())
    }

    fn pack(&mut self, tokens: Tokens) -> Result<()> {
        let [k, v] = [("k", 1), ("v", 2)].map(|(what, index)| {
            let row_bytes = self.row_bytes();
            read(what, self.inputs[index], tokens.clone(), row_bytes)
        });
        let (k, v) = (k?, v?);
        for branch in &mut self.packed {
            branch.pack(host_range(&tokens), [&k, &v]);
        }
        self.packed_tokens = tokens.end;
        Ok(())
    }

    /// Bytes of a token on the host.
    fn row_bytes(&self) -> usize {
        self.attention.config().embed_dim() * self.plan.dtype.bytes() as usize
    }

    fn compute(&mut self, tokens: Tokens) -> Result<()> {
        let context = self.attention.context();
        let variant = self.plan.choice.variant;
        let caps = context.caps_for(variant.format);
        let block = plan_block(
            self.attention.config(),
            &self.plan.shape,
            caps,
            variant,
            tokens.clone(),
            self.plan.size,
        )?;
        if block.clears {
            self.clear()?;
        }
        self.run_works(&block, &tokens)?;
        if self.states.is_some() {
            let states = self.download_f32(&self.device.softmax_state, &tokens)?;
            if let Some(sink) = &mut self.states {
                let written = sink.write(host_range(&tokens), &states);
                written.map_err(|error| host_error("softmax_state", &tokens, &error))?;
            }
        }
        let out = self.download(&tokens)?;
        let written = self.sink.write(host_range(&tokens), &out);
        written.map_err(|error| host_error("out", &tokens, &error))?;
        self.written_tokens = tokens.end;
        Ok(())
    }

    /// Sets outputs and states to 0: of some rows there may be no work.
    fn clear(&self) -> Result<()> {
        let mut recorder = self.attention.context().recorder("out of core");
        for tensor in [&self.device.out, &self.device.softmax_state] {
            recorder.clear(tensor, tensor.whole());
        }
        recorder.submit().map(drop)
    }

    /// Runs the works of a block, while a thread reads what the next ones take.
    fn run_works(&self, block: &BlockPlan, outputs: &Tokens) -> Result<()> {
        let inputs = self.inputs;
        let row_bytes = self.row_bytes();
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            let read_all = move || {
                let mut before: Option<&BlockWork> = None;
                for work in &block.works {
                    let ahead = read_ahead(inputs, work, before, row_bytes);
                    before = Some(work);
                    // If nobody receives it, an error has ended the block.
                    if send.send(ahead).is_err() {
                        return;
                    }
                }
            };
            let reader = std::thread::Builder::new().spawn_scoped(scope, read_all);
            let reader = reader.map_err(|error| host_error("q, k and v", outputs, &error))?;
            let run = || -> Result<()> {
                let mut running: Option<Submission> = None;
                for work in &block.works {
                    let ended = |_| io::Error::other("the thread that reads has ended");
                    let ahead = receive.recv().map_err(ended);
                    let ahead =
                        ahead.map_err(|error| host_error("q, k and v", outputs, &error))??;
                    // Its staging memory comes back.
                    if let Some(running) = running.take() {
                        running.wait()?;
                    }
                    running = Some(self.submit(work, &ahead)?);
                }
                running.map_or(Ok(()), |running| running.wait())
            };
            let result = run();
            drop(receive);
            // A panic of its own would have been told above.
            _ = reader.join();
            result
        })
    }

    fn submit(&self, work: &BlockWork, ahead: &ReadAhead) -> Result<Submission> {
        let device = &self.device;
        let mut recorder = self.attention.context().recorder("out of core");
        if let Some(queries) = &ahead.queries {
            device.upload(&mut recorder, 0, queries)?;
        }
        let packed = match &work.keys {
            BlockKeys::Tokens(_) => None,
            BlockKeys::Packed {
                branch,
                segment,
                rows,
            } => {
                // The plan has packed all branches that are not short.
                let packed = self.packed.iter().find(|packed| packed.branch() == *branch);
                packed.map(|packed| packed.rows(*segment, *rows))
            }
        };
        let read = ahead.keys.as_ref();
        let keys = packed.or(read.map(|[k, v]| [k.as_slice(), v.as_slice()]));
        for (index, rows) in (1..).zip(keys.into_iter().flatten()) {
            device.upload(&mut recorder, index, rows)?;
        }
        let [q, k, v] = &device.inputs;
        for dispatch in &work.dispatches {
            let bindings: [(&Tensor, ByteRange); 5] = [
                (q, dispatch.q.bytes),
                (k, dispatch.kv.bytes),
                (v, dispatch.kv.bytes),
                (&device.out, dispatch.out.bytes),
                (&device.softmax_state, dispatch.state.bytes),
            ];
            let params = dispatch.params(self.attention.config(), &self.plan.shape);
            let kernel = Kernel::from(self.plan.choice.variant);
            recorder.dispatch(kernel, &bindings, &params, dispatch.grid)?;
        }
        recorder.submit()
    }

    /// The outputs of a block, as bytes.
    fn download(&self, tokens: &Tokens) -> Result<Vec<u8>> {
        let device = &self.device;
        let Some(half) = &device.half else {
            return self.download_f32(&device.out, tokens);
        };
        let mut recorder = self.attention.context().recorder("outputs");
        let count = (tokens.end - tokens.start) as usize;
        let [from, to] = [&device.out, half].map(|tensor| tensor.matrix().slice(0..count));
        convert_rows(&mut recorder, from?, to?)?;
        self.download_rows(recorder, half, count)
    }

    /// The first rows of a tensor of f32, one for each of `tokens`, as bytes.
    fn download_f32(&self, tensor: &Tensor, tokens: &Tokens) -> Result<Vec<u8>> {
        let recorder = self.attention.context().recorder("outputs");
        self.download_rows(recorder, tensor, (tokens.end - tokens.start) as usize)
    }

    /// Submits `recorder`; the first `count` rows of a tensor after that, as bytes.
    fn download_rows(
        &self,
        mut recorder: Recorder,
        tensor: &Tensor,
        count: usize,
    ) -> Result<Vec<u8>> {
        let rows = tensor.view(&[count, tensor.shape()[1]], 0);
        let download = recorder.download_bytes(&rows)?;
        recorder.submit()?;
        download.wait()
    }
}

impl fmt::Debug for OutOfCoreRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutOfCoreRun")
            .field("plan", self.plan)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

/// Reads what `work` takes and the work before it did not.
fn read_ahead(
    [q, k, v]: [&dyn TokenSource; 3],
    work: &BlockWork,
    before: Option<&BlockWork>,
    row_bytes: usize,
) -> Result<ReadAhead> {
    let same_queries = before.is_some_and(|before| before.queries == work.queries);
    let same_keys = before.is_some_and(|before| before.keys == work.keys);
    let of = |what, source, tokens: &Tokens| read(what, source, tokens.clone(), row_bytes);
    Ok(ReadAhead {
        queries: match same_queries {
            true => None,
            false => Some(of("q", q, &work.queries)?),
        },
        keys: match &work.keys {
            BlockKeys::Tokens(tokens) if !same_keys => {
                Some([of("k", k, tokens)?, of("v", v, tokens)?])
            }
            _ => None,
        },
    })
}

fn read(
    what: &'static str,
    source: &dyn TokenSource,
    tokens: Tokens,
    row_bytes: usize,
) -> Result<Vec<u8>> {
    let range = host_range(&tokens);
    let bytes = range.len() * row_bytes;
    let mut rows: Vec<u8> =
        bytemuck::allocation::try_zeroed_vec(bytes).map_err(|()| Error::HostMemory {
            what: "tokens on their way to the device",
            requested_bytes: bytes as u64,
        })?;
    // The application's own code, on a thread of ours.
    let done = catch_unwind(AssertUnwindSafe(|| source.read(range, &mut rows)));
    let done = done.unwrap_or_else(|_| Err(io::Error::other("the source panicked")));
    done.map_err(|error| host_error(what, &tokens, &error))?;
    Ok(rows)
}

/// A range of tokens, of which there are less than 2^31.
fn host_range(tokens: &Tokens) -> Range<usize> {
    tokens.start as usize..tokens.end as usize
}

fn host_error(what: &'static str, tokens: &Tokens, error: &io::Error) -> Error {
    Error::HostTokens {
        what,
        tokens: host_range(tokens),
        reason: error.to_string(),
    }
}
