//! A run out of core: one block after the other, in steps.

use std::fmt;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use super::device::{AttentionLayer, OnDevice};
use super::packed::PackedKeys;
use super::plan::OutOfCorePlan;
use super::progress::{Facts, ProgressFile};
use super::tokens::{TokenSink, TokenSource};
use crate::attention::DilatedAttention;
use crate::context::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::plan::{BlockKeys, BlockPlan, BlockWork, Tokens};
use crate::recorder::{Progress, SlicedSubmission};

/// A forward out of core, under way. [`advance`](Self::advance) takes it a step further. Dropping it cancels the run: what was
/// written stays, and nothing else is.
pub struct OutOfCoreRun<'a> {
    context: Context,
    plan: &'a OutOfCorePlan,
    inputs: Inputs<'a>,
    sink: &'a mut dyn TokenSink,
    states: Option<&'a mut dyn TokenSink>,
    packed: PackedKeys,
    device: OnDevice<'a>,
    progress_file: Option<ProgressFile>,
    /// Whether the run was advanced.
    has_begun: bool,
    /// Whether the last step failed.
    has_failed: bool,
    /// Tokens whose keys are packed, as far as any are; then tokens whose outputs are written.
    packed_tokens: u64,
    written_tokens: u64,
    /// The block under way.
    block: Option<Block>,
    /// The block after it, once something of it is read.
    upcoming: Option<Block>,
    /// What the next item takes.
    ahead: Option<Result<Ahead>>,
}

/// Where the rows of a run come from.
#[derive(Clone, Copy)]
pub(crate) enum Inputs<'a> {
    /// Queries, keys and values.
    Attention([&'a dyn TokenSource; 3]),
    /// The input of a layer.
    #[cfg_attr(
        not(feature = "models"),
        expect(dead_code, reason = "layers are models' own")
    )]
    Layer(&'a dyn TokenSource),
}

/// A block of outputs. Its items are the works of its plan and then, of a layer, what follows attention.
struct Block {
    outputs: Tokens,
    plan: BlockPlan,
    /// Number of items that are done.
    done: usize,
    /// The item under way.
    flight: Option<SlicedSubmission>,
}

/// Rows that an item takes. `None`: the device has them already.
struct Ahead {
    queries: Option<Vec<u8>>,
    keys: Option<KeyRows>,
}

/// Rows of keys and values.
enum KeyRows {
    /// Keys and values.
    Given([Vec<u8>; 2]),
    /// The layer's input.
    LayerInput(Vec<u8>),
}

impl DilatedAttention {
    /// Begins a forward as `plan` says: `inputs` are q, k and v, of as many tokens and of the type that the plan has. The output goes
    /// to `sink`, block after block. Leases all device memory that the run takes, but for staging.
    ///
    /// With a [progress file](super::OutOfCoreOptions::with_progress_file) of the same run it goes on where that one was.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a plan of another attention; [`Error::WrongDType`] and [`Error::LengthMismatch`] for inputs and
    /// sinks of another type or size than the plan's;
    /// [`Error::HostMemory`] when the host has no memory for packed keys, [`Error::DiskFull`] when the disk has no room for them;
    /// [`Error::OtherRun`] for the progress file of another run, [`Error::TokenFile`] when it or the scratch file cannot be opened or
    /// made; [`Error::Validation`] when the device refuses a shader; the errors of leasing.
    pub fn run_out_of_core<'a>(
        &'a self,
        plan: &'a OutOfCorePlan,
        inputs: [&'a dyn TokenSource; 3],
        sink: &'a mut dyn TokenSink,
    ) -> Result<OutOfCoreRun<'a>> {
        OutOfCoreRun::begin(self, plan, Inputs::Attention(inputs), None, sink)
    }
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
    /// As [`DilatedAttention::run_out_of_core`]; with `layer`, of the layer around the attention.
    pub(crate) fn begin(
        attention: &DilatedAttention,
        plan: &'a OutOfCorePlan,
        inputs: Inputs<'a>,
        layer: Option<Box<dyn AttentionLayer + 'a>>,
        sink: &'a mut dyn TokenSink,
    ) -> Result<Self> {
        let context = attention.context();
        let caps = context.caps_for(plan.choice.variant.format);
        let of_model = plan.layer.as_ref().map(|layer| layer.model.clone());
        let planned = (&plan.config, &plan.caps, of_model);
        let model = layer.as_ref().map(|layer| layer.model());
        if planned != (attention.config(), caps, model) {
            return Err(Error::InvalidConfig {
                what: "plan out of core",
                given: "that of another attention or layer, or of another device".to_owned(),
                need: "one that was made for this attention, or for this layer, here",
            });
        }
        let width = plan.config.embed_dim() as u64;
        let expected = (plan.tokens() as u64).saturating_mul(width);
        for (what, source) in inputs.sources() {
            let dtypes = (source.dtype(), plan.dtype);
            expect(what, dtypes, (source.num_elements(), expected))?;
        }
        let dtypes = (sink.dtype(), plan.dtype);
        expect("out", dtypes, (sink.num_elements(), expected))?;
        context.compile(&[plan.choice.variant.into()])?;
        let tokens = plan.tokens() as u64;
        let mut progress_file = match &plan.options.progress_file {
            None => None,
            Some(path) => {
                let facts = facts(plan, &inputs, layer.as_deref())?;
                let file = ProgressFile::open(path, facts)?;
                file.check(tokens, plan.size.tokens)?;
                Some(file)
            }
        };
        if let Some(file) = &mut progress_file {
            let name = file.recorded.name;
            let are_kept = |path: &PathBuf| {
                PackedKeys::are_in_file(&plan.packed, plan.head_bytes(), path, name)
            };
            // Before a new scratch file is made, which would look like the old one.
            if !plan.options.scratch_file.as_ref().is_some_and(are_kept) {
                file.recorded.packed_tokens = 0;
            }
            // A folder that cannot be written to is an error now, and not after the first block.
            file.write()?;
        }
        let recorded = progress_file.as_ref().map(|file| &file.recorded);
        let written_tokens = recorded.map_or(0, |recorded| recorded.written_tokens.min(tokens));
        let (branches, head_bytes) = (&plan.packed, plan.head_bytes());
        let (packed, packed_tokens) = match &plan.options.scratch_file {
            scratch_file if written_tokens == tokens => {
                if let (Some(path), Some(recorded)) = (scratch_file, recorded) {
                    // The run may have been killed before it did so itself.
                    PackedKeys::remove(path, recorded.name);
                }
                (PackedKeys::none(), tokens)
            }
            None => {
                let packed = PackedKeys::in_memory(branches, head_bytes)?;
                let first = packed.first_needed(written_tokens).min(tokens);
                (packed, first)
            }
            Some(path) => {
                let name = recorded.map_or([0; _], |recorded| recorded.name);
                let goes_on = progress_file.as_ref().is_some_and(|file| file.goes_on);
                let kept = [progress_file.is_some(), goes_on];
                let (packed, is_old) = PackedKeys::in_file(branches, head_bytes, path, name, kept)?;
                let before = recorded.filter(|_| is_old);
                (
                    packed,
                    before.map_or(0, |recorded| recorded.packed_tokens.min(tokens)),
                )
            }
        };
        let mut run = Self {
            context: context.clone(),
            device: OnDevice::lease(context, plan, layer)?,
            plan,
            inputs,
            sink,
            states: None,
            packed_tokens: if packed.is_empty() {
                tokens
            } else {
                packed_tokens
            },
            packed,
            progress_file,
            has_begun: false,
            has_failed: false,
            written_tokens,
            block: None,
            upcoming: None,
            ahead: None,
        };
        run.check_last_block()?;
        Ok(run)
    }

    /// Checks that the outputs which the progress file tells of are there.
    fn check_last_block(&mut self) -> Result<()> {
        let Some(file) = &self.progress_file else {
            return Ok(());
        };
        let Some((first, recorded)) = file.recorded.last_block else {
            return Ok(());
        };
        let tokens = first..self.written_tokens;
        check_written(
            file,
            "output",
            &mut *self.sink,
            (&tokens, self.plan.row_bytes()),
            recorded,
        )
    }

    /// The same, which also writes the softmax state of each row and head to `states`, as f32: rows (head, 2), as of
    /// [`ForwardOutput::softmax_state`](crate::ForwardOutput::softmax_state). Of a block, they come before the outputs.
    ///
    /// # Errors
    /// [`Error::WrongDType`] and [`Error::LengthMismatch`] for another type or size; [`Error::OutOfOrder`] once the run was advanced;
    /// [`Error::OtherRun`] for a run that goes on and has not written them before, or elsewhere.
    pub fn with_softmax_state(self, states: &'a mut dyn TokenSink) -> Result<Self> {
        if self.has_begun {
            return Err(Error::OutOfOrder {
                call: "with_softmax_state",
                state: "the run was advanced".to_owned(),
                next_step: "call it before the run is advanced",
            });
        }
        let heads = self.plan.config.num_heads();
        let elements = self.plan.tokens() as u64 * heads as u64 * 2;
        let elements = (states.num_elements(), elements);
        expect("softmax_state", (states.dtype(), DType::F32), elements)?;
        if let Some(file) = &self.progress_file
            && let Some((first, _)) = file.recorded.last_block
        {
            let Some(recorded) = file.recorded.last_states else {
                return Err(file.other_run("softmax_state", WRITTEN[1], WRITTEN[0]));
            };
            let tokens = (&(first..self.written_tokens), heads * 8);
            check_written(file, "softmax_state", states, tokens, recorded)?;
        }
        Ok(Self {
            states: Some(states),
            ..self
        })
    }
}

impl OutOfCoreRun<'_> {
    /// What is done, in tokens: those whose keys were packed, if any are, and those whose outputs were computed.
    pub fn progress(&self) -> Progress {
        let tokens = self.plan.tokens() as u64;
        let passes = if self.packed.is_empty() { 1 } else { 2 };
        // Of the block under way, as much as of its items. The last token counts once all is written.
        let within = self.block.as_ref().map_or(0, |block| {
            let done = block.fraction(self.plan.is_layer());
            let count = block.outputs.end - block.outputs.start;
            ((done * count as f64) as u64).min(count - 1)
        });
        Progress {
            done: self.packed_tokens * (passes - 1) + self.written_tokens + within,
            total: tokens * passes,
        }
    }

    /// Whether all outputs are written.
    pub fn is_done(&self) -> bool {
        self.written_tokens == self.plan.tokens() as u64
    }

    /// Takes the run a step further and returns how far it is: packs the keys of a block, computes for about as long as
    /// [`SliceOptions`](crate::SliceOptions) say, or writes the outputs of a block. Blocks until that is done. Meanwhile another thread
    /// reads what the next step takes.
    ///
    /// # Errors
    /// [`Error::HostTokens`] when a source cannot be read or the sink not be written, [`Error::HostMemory`], [`Error::TokenFile`] when
    /// the progress file cannot be written, [`Error::OtherRun`] when that one was begun with softmax states and this is without, or the
    /// other way round; and the errors of leasing and submitting. Call it again to try the same block once more.
    pub fn advance(&mut self) -> Result<Progress> {
        let result = self.step();
        if result.is_err() {
            // The tensors of the device may hold anything.
            (self.block, self.upcoming, self.ahead) = (None, None, None);
            self.has_failed = true;
        }
        result.map(|()| self.progress())
    }

    fn step(&mut self) -> Result<()> {
        if !self.has_begun {
            self.check_states()?;
            self.has_begun = true;
        }
        let tokens = self.plan.tokens() as u64;
        if self.packed_tokens < tokens {
            let end = tokens.min(self.packed_tokens + self.plan.size.tokens);
            return self.pack(self.packed_tokens..end);
        }
        if self.is_done() {
            return Ok(());
        }
        let mut block = match self.block.take() {
            Some(block) => block,
            None => {
                let block = match self.upcoming.take() {
                    Some(upcoming) => upcoming,
                    None => Block::plan(self.plan, self.written_tokens)?,
                };
                if std::mem::take(&mut self.has_failed) {
                    self.device.begin_again()?;
                }
                if block.plan.clears {
                    self.device.clear()?;
                }
                block
            }
        };
        if block.done == block.num_items(self.plan.is_layer()) {
            return self.write(&block.outputs);
        }
        self.compute(&mut block)?;
        self.block = Some(block);
        Ok(())
    }

    /// Whether softmax states are written must not change from one run to the next.
    fn check_states(&mut self) -> Result<()> {
        match (&self.progress_file, &self.states) {
            // Where there are some now, they were compared when they were asked for.
            (Some(file), None) if file.recorded.last_states.is_some() => {
                Err(file.other_run("softmax_state", WRITTEN[0], WRITTEN[1]))
            }
            _ => Ok(()),
        }
    }

    fn pack(&mut self, tokens: Tokens) -> Result<()> {
        let row_bytes = self.plan.row_bytes();
        let [k, v] = match self.inputs {
            Inputs::Attention([_, k, v]) => [
                read("k", k, &tokens, row_bytes)?,
                read("v", v, &tokens, row_bytes)?,
            ],
            Inputs::Layer(x) => {
                let rows = read("x", x, &tokens, row_bytes)?;
                self.device.projected_keys(&rows, &tokens)?
            }
        };
        let kept = self.packed.pack(host_range(&tokens), [&k, &v]);
        kept.map_err(|error| host_error("packed keys", &tokens, &error))?;
        if let (Some(file), Some(_)) = (&mut self.progress_file, &self.plan.options.scratch_file) {
            let synced = self.packed.sync();
            synced.map_err(|error| host_error("packed keys", &tokens, &error))?;
            file.recorded.packed_tokens = tokens.end;
            file.write()?;
        }
        self.packed_tokens = tokens.end;
        Ok(())
    }

    /// Computes a slice of the block's next item, while a thread reads what the item after it takes.
    fn compute(&mut self, block: &mut Block) -> Result<()> {
        let is_last = block.done + 1 == block.num_items(self.plan.is_layer());
        let is_end = block.outputs.end == self.plan.tokens() as u64;
        if is_last && !is_end && self.upcoming.is_none() {
            self.upcoming = Some(Block::plan(self.plan, block.outputs.end)?);
        }
        let mut flight = match block.flight.take() {
            Some(flight) => flight,
            None => {
                let ahead = match self.ahead.take() {
                    Some(Ok(ahead)) => ahead,
                    // Read now, an error is one of this item.
                    _ => self.reader().read(block, block.done)?,
                };
                self.submit(block, &ahead)?
            }
        };
        let next = match (is_last, &self.upcoming) {
            (false, _) => Some((&*block, block.done + 1)),
            (true, upcoming) => upcoming.as_ref().map(|upcoming| (upcoming, 0)),
        };
        let reader = self.reader();
        let next = next.filter(|(block, item)| {
            self.ahead.is_none() && *item < block.num_items(reader.plan.is_layer())
        });
        let (stepped, read) = std::thread::scope(|scope| {
            let read = next.map(|(block, item)| {
                std::thread::Builder::new().spawn_scoped(scope, move || reader.read(block, item))
            });
            let stepped = pollster::block_on(flight.step());
            // Without a thread, it is read when it is needed. Panics of sources are caught where they are called.
            let read = read.and_then(|thread| thread.ok()?.join().ok());
            (stepped, read)
        });
        if read.is_some() {
            self.ahead = read;
        }
        stepped?;
        match flight.is_done() {
            true => block.done += 1,
            false => block.flight = Some(flight),
        }
        Ok(())
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            plan: self.plan,
            inputs: self.inputs,
            packed: &self.packed,
        }
    }

    /// Submits the next item of a block.
    fn submit(&self, block: &Block, ahead: &Ahead) -> Result<SlicedSubmission> {
        let mut recorder = self.context.recorder("out of core");
        match block.plan.works.get(block.done) {
            Some(work) => {
                if let Some(rows) = &ahead.queries {
                    self.device.queries(&mut recorder, rows, &work.queries)?;
                }
                match (&ahead.keys, &work.keys) {
                    (Some(KeyRows::Given([k, v])), _) => {
                        self.device.keys(&mut recorder, [k, v])?;
                    }
                    (Some(KeyRows::LayerInput(rows)), BlockKeys::Tokens(tokens)) => {
                        self.device.project_keys(&mut recorder, rows, tokens)?;
                    }
                    _ => {}
                }
                self.device.attend(&mut recorder, self.plan, work)?;
            }
            None => {
                let rows = ahead.queries.as_deref().unwrap_or(&[]);
                self.device
                    .layer_output(&mut recorder, rows, &block.outputs)?;
            }
        }
        Ok(recorder.submit_in_slices(self.plan.options.slices))
    }

    /// Writes the outputs of a block that is computed.
    fn write(&mut self, tokens: &Tokens) -> Result<()> {
        let count = tokens.end - tokens.start;
        let range = host_range(tokens);
        let mut last_states = None;
        if let Some(sink) = &mut self.states {
            let states = self.device.download_states(count)?;
            let written = sink.write(range.clone(), &states);
            written.map_err(|error| host_error("softmax_state", tokens, &error))?;
            last_states = Some(crc32fast::hash(&states));
        }
        let out = self.device.download(count)?;
        let failed = |error: io::Error| host_error("out", tokens, &error);
        self.sink.write(range, &out).map_err(failed)?;
        if let Some(file) = &mut self.progress_file {
            if let Some(sink) = &mut self.states {
                let synced = sink.sync();
                synced.map_err(|error| host_error("softmax_state", tokens, &error))?;
            }
            self.sink.sync().map_err(failed)?;
            file.recorded.written_tokens = tokens.end;
            file.recorded.last_block = Some((tokens.start, crc32fast::hash(&out)));
            file.recorded.last_states = last_states;
            file.write()?;
        }
        self.written_tokens = tokens.end;
        if self.is_done() {
            self.packed.discard();
        }
        Ok(())
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

impl Block {
    /// The block that begins at an output.
    fn plan(plan: &OutOfCorePlan, first: u64) -> Result<Self> {
        let outputs = first..(first + plan.size.tokens).min(plan.tokens() as u64);
        Ok(Self {
            plan: plan.block(&outputs)?,
            outputs,
            done: 0,
            flight: None,
        })
    }

    fn num_items(&self, is_layer: bool) -> usize {
        self.plan.works.len() + usize::from(is_layer)
    }

    fn fraction(&self, is_layer: bool) -> f64 {
        let of_flight = self.flight.as_ref();
        let of_flight = of_flight.map_or(0.0, |flight| flight.progress().fraction());
        (self.done as f64 + of_flight) / self.num_items(is_layer).max(1) as f64
    }
}

impl<'a> Inputs<'a> {
    fn sources(&self) -> Vec<(&'static str, &'a dyn TokenSource)> {
        match *self {
            Inputs::Attention([q, k, v]) => vec![("q", q), ("k", k), ("v", v)],
            Inputs::Layer(x) => vec![("x", x)],
        }
    }
}

/// Whether softmax states are written, in words.
const WRITTEN: [&str; 2] = ["not written", "written"];

/// Checks that a sink has what the progress file tells of.
fn check_written(
    file: &ProgressFile,
    what: &'static str,
    sink: &mut dyn TokenSink,
    (tokens, row_bytes): (&Tokens, usize),
    recorded: u32,
) -> Result<()> {
    let mut rows = zeros(tokens, row_bytes)?;
    let found = sink.read_back(host_range(tokens), &mut rows);
    let given = crc32fast::hash(&rows);
    match found.map_err(|error| host_error(what, tokens, &error))? {
        true if given == recorded => Ok(()),
        true => {
            let what = format!("{what} of tokens {}..{}", tokens.start, tokens.end);
            let [given, recorded] = [given, recorded].map(|crc| format!("one of CRC-32 {crc:08x}"));
            Err(file.other_run(&what, &given, &recorded))
        }
        false => {
            let need = "that of a sink which keeps what was written";
            Err(file.other_run(what, "nowhere to be read", need))
        }
    }
}

/// What tells the run from others.
fn facts(
    plan: &OutOfCorePlan,
    inputs: &Inputs<'_>,
    layer: Option<&dyn AttentionLayer>,
) -> Result<Facts> {
    let mut facts = plan.facts();
    if let Some(layer) = layer {
        facts.insert("layer".to_owned(), layer.identity()?);
    }
    let (tokens, block) = (plan.tokens() as u64, plan.size.tokens);
    for (what, source) in inputs.sources() {
        let identity = source.identity();
        let identity = identity.map_err(|error| host_error(what, &(0..tokens), &error))?;
        let of = |tokens: Tokens| -> Result<u32> {
            let rows = read(what, source, &tokens, plan.row_bytes())?;
            Ok(crc32fast::hash(&rows))
        };
        let (first, last) = (of(0..block)?, of(tokens - block..tokens)?);
        let words = format!(
            "{identity}; first and last {block} tokens of CRC-32 {first:08x} and {last:08x}"
        );
        facts.insert(what.to_owned(), words.trim_start_matches("; ").to_owned());
    }
    Ok(facts)
}

/// Reads rows of the host.
#[derive(Clone, Copy)]
struct Reader<'a> {
    plan: &'a OutOfCorePlan,
    inputs: Inputs<'a>,
    packed: &'a PackedKeys,
}

impl Reader<'_> {
    /// Reads what an item of a block takes and the item before it did not.
    fn read(self, block: &Block, item: usize) -> Result<Ahead> {
        let row_bytes = self.plan.row_bytes();
        let Some(work) = block.plan.works.get(item) else {
            return Ok(Ahead {
                queries: match self.inputs {
                    Inputs::Attention(_) => None,
                    Inputs::Layer(x) => Some(read("x", x, &block.outputs, row_bytes)?),
                },
                keys: None,
            });
        };
        let before = item.checked_sub(1).map(|before| &block.plan.works[before]);
        let has = |same: fn(&BlockWork, &BlockWork) -> bool| {
            before.is_some_and(|before| same(before, work))
        };
        let queries = match has(|before, work| before.queries == work.queries) {
            true => None,
            false => Some(match self.inputs {
                Inputs::Attention([q, ..]) => read("q", q, &work.queries, row_bytes)?,
                Inputs::Layer(x) => read("x", x, &work.queries, row_bytes)?,
            }),
        };
        let keys = match &work.keys {
            _ if has(|before, work| before.keys == work.keys) => None,
            BlockKeys::Packed {
                branch,
                segment,
                rows,
            } => {
                let mut keys = [Vec::new(), Vec::new()];
                let done = self.packed.read(*branch, *segment, *rows, &mut keys);
                done.map_err(|error| host_error("packed keys", &block.outputs, &error))?;
                Some(KeyRows::Given(keys))
            }
            BlockKeys::Tokens(tokens) => Some(match self.inputs {
                Inputs::Attention([_, k, v]) => {
                    let (k, v) = (
                        read("k", k, tokens, row_bytes)?,
                        read("v", v, tokens, row_bytes)?,
                    );
                    KeyRows::Given([k, v])
                }
                Inputs::Layer(x) => KeyRows::LayerInput(read("x", x, tokens, row_bytes)?),
            }),
        };
        Ok(Ahead { queries, keys })
    }
}

fn read(
    what: &'static str,
    source: &dyn TokenSource,
    tokens: &Tokens,
    row_bytes: usize,
) -> Result<Vec<u8>> {
    let mut rows = zeros(tokens, row_bytes)?;
    // The application's own code, perhaps on a thread of ours.
    let done = catch_unwind(AssertUnwindSafe(|| {
        source.read(host_range(tokens), &mut rows)
    }));
    let done = done.unwrap_or_else(|_| Err(io::Error::other("the source panicked")));
    done.map_err(|error| host_error(what, tokens, &error))?;
    Ok(rows)
}

/// Room for the rows of `tokens`.
fn zeros(tokens: &Tokens, row_bytes: usize) -> Result<Vec<u8>> {
    let bytes = host_range(tokens).len() * row_bytes;
    bytemuck::allocation::try_zeroed_vec(bytes).map_err(|()| Error::HostMemory {
        what: "tokens on their way to the device",
        requested_bytes: bytes as u64,
    })
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
