//! Error types: [`Error`] for all calls, and those of the pool, of weight files and of groups of ranks, which it wraps. Variants carry
//! the given value, the limit that it exceeds, and the next step, as far as these apply.

mod group;
mod non_finite;
mod pool;
mod stored_type;
mod weights;
mod weights_mismatch;

pub use group::{GroupError, RankFailure};
pub use non_finite::{NonFiniteResult, Origin, Token};
pub use pool::PoolError;
pub use stored_type::StoredType;
pub use weights::WeightsError;
pub use weights_mismatch::{Duplicate, FoundPrefix, Misshapen, Mistyped, WeightsMismatch};

use crate::element::DType;
use crate::label::Label;
use crate::pool_figures::PoolReport;

/// The error of all calls; see the variants. A failed call neither loses nor changes tensors that existed before.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Parameters or saved tensors of one model were given to another.
    #[error(
        "{what} of another model: names or shapes of its parameters differ; make it from this model"
    )]
    ParameterMismatch {
        /// What was given: weights, for example.
        what: &'static str,
    },
    /// A token id is not in the table, or a label is not a class.
    #[error("{what} {given} at index {index} is out of range: it must be below {limit}")]
    TokenOutOfRange {
        /// "token" or "label".
        what: &'static str,
        /// Index in the input.
        index: u64,
        /// The given id or label.
        given: u32,
        /// Number of rows of the table, or of classes.
        limit: usize,
    },
    /// A tile of a slide does not lie in the grid of positions.
    #[error(
        "tile {tile} at ({x}, {y}) lies outside of the grid: coordinates are pixels of level 0, at least 0 and below {limit}, \
         which is the tile size times the cells of the grid: tiles of a slide scanned at 40x have twice the size of those at 20x"
    )]
    TileOutOfGrid {
        /// Number of the tile in the slide, counted from 0.
        tile: u64,
        /// The given x coordinate.
        x: f32,
        /// The given y coordinate.
        y: f32,
        /// Coordinates must be below this.
        limit: u64,
    },
    /// An error of one of several slides.
    #[error("slide {slide}: {error}")]
    InSlide {
        /// Number of the slide in the call, counted from 0.
        slide: usize,
        /// The error.
        error: Box<Error>,
    },
    /// A plan needs more memory than the budget allows.
    #[error(
        "{what} needs {requested_bytes} bytes in buffers of the pool's sizes, the budget is {budget_bytes}: {next_step}"
    )]
    PlanOverBudget {
        /// The planned work.
        what: &'static str,
        /// Bytes of the buffers that it needs, each rounded up to its size class. This is the smallest sufficient budget.
        requested_bytes: u64,
        /// The budget.
        budget_bytes: u64,
        /// What to do.
        next_step: &'static str,
    },
    /// A source of tokens could not be read, or a sink not be written.
    #[error("{what}: tokens {}..{} of the host: {reason}", tokens.start, tokens.end)]
    HostTokens {
        /// Which one: q, k, v, the input x of a layer, packed keys, out or softmax_state.
        what: &'static str,
        /// The tokens.
        tokens: std::ops::Range<usize>,
        /// What the source or sink says.
        reason: String,
    },
    /// A file of a run out of core could not be opened, made, read or written.
    #[error("{} cannot be {action}: {reason}", path.display())]
    TokenFile {
        /// The file.
        path: std::path::PathBuf,
        /// What was tried: "opened", for example.
        action: &'static str,
        /// What the operating system says, or what is wrong with the file.
        reason: String,
    },
    /// A disk has no room for a file. The file was not made.
    #[error(
        "{} needs {requested_bytes} bytes, and its disk has {available_bytes} left: free some, or write to another disk",
        path.display()
    )]
    DiskFull {
        /// The file.
        path: std::path::PathBuf,
        /// Bytes of the file.
        requested_bytes: u64,
        /// Bytes that the disk has left.
        available_bytes: u64,
    },
    /// A progress file tells of another run: another plan, other inputs, or outputs that are not there.
    #[error(
        "{} is of another run: its {what} is {recorded}, that of this run is {given}; go on as it was begun, or remove it, and the scratch file that it may have, to begin anew",
        path.display()
    )]
    OtherRun {
        /// The progress file.
        path: std::path::PathBuf,
        /// What differs.
        what: String,
        /// What it is in this run.
        given: String,
        /// What the file says.
        recorded: String,
    },
    /// The host has no memory for what a call keeps there.
    #[error(
        "the host has no {requested_bytes} bytes for {what}: shorten the sequence, use half precision, or smaller blocks"
    )]
    HostMemory {
        /// What it is for.
        what: &'static str,
        /// Bytes that were asked for.
        requested_bytes: u64,
    },
    /// A call that means nothing yet, or no more, after the calls before it. It has changed nothing.
    #[error("{call} is out of order: {state}; {next_step}")]
    OutOfOrder {
        /// The call.
        call: &'static str,
        /// What has been done, and what has not.
        state: String,
        /// What to call before, or instead.
        next_step: &'static str,
    },
    /// An option has an invalid value, whatever the device.
    #[error("{what} is {given}; it must be {need}")]
    InvalidConfig {
        /// Name of the option.
        what: &'static str,
        /// The given value.
        given: String,
        /// The values that are valid.
        need: &'static str,
    },
    /// A shape does not fit the configuration or another shape.
    #[error("{what} is {given}; it must be {need}")]
    InvalidShape {
        /// Name of the tensor or number.
        what: Label,
        /// The given value.
        given: String,
        /// The values that are valid.
        need: String,
    },
    /// A slice has another number of elements than the shape given with it.
    #[error(
        "{label}: {given} elements for a shape of {expected}; pass exactly as many as the shape has (items of different lengths are padded to the longest, and with_valid_lens of CallOptions or AttentionShape tells their own)"
    )]
    LengthMismatch {
        /// Label of the tensor.
        label: Label,
        /// Number of elements of the slice.
        given: u64,
        /// Number of elements of the shape.
        expected: u64,
    },
    /// A tensor has an element type that the operation does not take.
    #[error(
        "{what} has elements of type {given}; {need} is needed: convert before the call (ops::convert, between floats)"
    )]
    WrongDType {
        /// Name of the tensor.
        what: Label,
        /// Element type of the tensor.
        given: DType,
        /// The element type that is needed.
        need: DType,
    },
    /// A tensor or recording belongs to a [`Context`](crate::Context) with another pool.
    #[error(
        "{what} belongs to another context (to pool {given}, this call's is pool {expected}): use what this context has made; elements get here by a download there and an upload here"
    )]
    ContextMismatch {
        /// Name of the tensor, or the recorder.
        what: Label,
        /// Number of the pool that it belongs to, unique in the process.
        given: u64,
        /// Number of the pool of the call's context.
        expected: u64,
    },
    /// A buffer of the application's that no tensor can be made of.
    #[error("'{label}' cannot be made of this buffer: {given}; it must be {need}")]
    InvalidPart {
        /// Label of the tensor.
        label: Label,
        /// What is wrong.
        given: String,
        /// What the buffer, or the range of it, must be.
        need: String,
    },
    /// A tensor of several buffers where it must be one.
    #[error(
        "'{label}' has {given} parts, but must be in one buffer: go through Tensor::parts, and import parts of Context::rows_per_part rows"
    )]
    SeveralParts {
        /// Label of the tensor.
        label: Label,
        /// Number of parts.
        given: usize,
    },
    /// One dispatch would read and write one buffer, which WebGPU forbids even where the bytes are apart.
    #[error(
        "'{written}' would be written while '{read}' is read, but both lie in one buffer: give what is written a buffer of its own"
    )]
    SharedBuffer {
        /// Label of the tensor that is read.
        read: Label,
        /// Label of the tensor that is written.
        written: Label,
    },
    /// A product of sizes does not fit in 64 bits.
    #[error("the size of {what} ({given}) overflows 64 bits")]
    SizeOverflow {
        /// Name of the tensor or buffer.
        what: Label,
        /// The factors.
        given: String,
    },
    /// One recording would have more dispatches than its buffer of parameters holds.
    #[error(
        "the call takes more than {limit} dispatches, as many as the parameters in one buffer (max_buffer_size) allow: request the adapter's own limits, or shorten sequence or segments"
    )]
    TooManyDispatches {
        /// Most dispatches of one recording.
        limit: u64,
    },
    /// The smallest possible window of a tensor is larger than a binding may be.
    #[error(
        "one token row of {what} is {requested_bytes} bytes with its alignment, a binding may cover {limit_bytes} (max_storage_buffer_binding_size): request a larger limit"
    )]
    BindingTooSmall {
        /// Name of the tensor.
        what: Label,
        /// Bytes of the smallest window.
        requested_bytes: u64,
        /// Bytes that a binding may cover.
        limit_bytes: u64,
    },
    /// The device lacks what was asked for: kernels of a tier, elements of a type, cooperative matrices, workgroup memory.
    #[error("the device cannot run {what}: {given}; needed: {need}")]
    Unsupported {
        /// The requested kernels or matrices.
        what: String,
        /// What the device has or lacks.
        given: String,
        /// What the device would need, or what to ask for instead.
        need: String,
    },
    /// A limit of the device is below what every kernel needs.
    #[error(
        "the device offers {given} for {limit}, at least {need} is needed: request WebGPU's default limits"
    )]
    DeviceTooSmall {
        /// Name of the limit.
        limit: &'static str,
        /// The device's limit.
        given: u64,
        /// The least limit that is sufficient.
        need: u64,
    },
    /// The pool has no buffer to lend. If the device is lost the error is [`DeviceLost`](Self::DeviceLost) instead, and if wgpu
    /// refuses the buffer it is [`Validation`](Self::Validation), as in all calls.
    #[error(transparent)]
    Pool(PoolError),
    /// The device ran out of memory while work was submitted. The recording is gone, but tensors and the device remain usable. (If
    /// wgpu gives the device up, the error is [`DeviceLost`](Self::DeviceLost) instead.)
    #[error(
        "the device has no memory to run '{label}': drop tensors, trim the pool, record again\n{report}"
    )]
    SubmissionOutOfMemory {
        /// Label of the recording.
        label: Label,
        /// State of the pool.
        report: Box<PoolReport>,
    },
    /// No adapter matches the request.
    #[error(
        "no adapter: {reason}; found: {found}. On Linux without a GPU driver install Mesa's software driver (scripts/install_vulkan.sh)"
    )]
    NoAdapter {
        /// Why no adapter was chosen.
        reason: String,
        /// Names of the existing adapters.
        found: String,
    },
    /// The adapter refused a device with the requested features and limits.
    #[error(
        "adapter '{adapter}' gave no device: {reason}; ask for no more than it has (ContextOptions::with_limits, with_features)"
    )]
    NoDevice {
        /// Name of the adapter.
        adapter: String,
        /// The adapter's message.
        reason: String,
    },
    /// The submitted recording reads a tensor that nothing submitted before has written. The recording has no effect.
    #[error("'{reader}' reads '{label}', but {}{reason}", match writer {
        Some(writer) => format!("the recording '{writer}' that writes it "),
        None => String::new(),
    })]
    NotWritten {
        /// Label of the tensor.
        label: Label,
        /// Label of the recording that was submitted.
        reader: Label,
        /// Label of the recording that would have written the tensor, if there is one.
        writer: Option<Label>,
        /// What became of that recording, and the next step.
        reason: &'static str,
    },
    /// A download was awaited whose recording was not submitted yet, or not far enough.
    #[error("'{label}' was recorded for download but not submitted: {next_step}, then wait again")]
    NotSubmitted {
        /// Label of the download.
        label: Label,
        /// The next step: submit the recording, submit the encoder that holds it, or advance its slices.
        next_step: &'static str,
    },
    /// A download was awaited that will never arrive: its recording was dropped, cancelled or refused, or belongs to a dry run.
    #[error("'{label}' will never arrive: {reason}")]
    DownloadAbandoned {
        /// Label of the download.
        label: Label,
        /// What became of the recording, and the next step.
        reason: &'static str,
    },
    /// The device is lost; nothing on it can be read any more.
    #[error("the device is lost ({reason}): make a new context and upload again")]
    DeviceLost {
        /// The reason, as told by the driver, the application or a failed mapping; never empty.
        reason: String,
    },
    /// A value is not finite, in a call for which the check for finite values is switched on.
    #[error(
        "{what} holds {value} at {}: look at what it was computed from",
        place(index, axes)
    )]
    NotFinite {
        /// Name of the tensor.
        what: Label,
        /// The value.
        value: f32,
        /// Index of the value along each dimension of the tensor.
        index: Vec<usize>,
        /// Names of these dimensions; empty if they are not known.
        axes: &'static [&'static str],
    },
    /// A feature of a tile is not finite, or would not be finite in the type of the activations.
    #[error("features of tile {tile} hold {value} (element {element}){}", feature_advice(*value, *activations))]
    FeatureNotFinite {
        /// Number of the tile in its slide, counted from 0.
        tile: usize,
        /// Number of the feature in the tile, counted from 0.
        element: usize,
        /// The value.
        value: f32,
        /// Type of the activations.
        activations: DType,
    },
    /// A result of a model has infinite elements or NaN. To get such results instead of this error, set `allow_nonfinite` in
    /// [`SlideOutputs`](crate::models::gigapath::SlideOutputs) or [`LongVitOutputs`](crate::models::longvit::LongVitOutputs).
    #[error("{0}")]
    NonFiniteResult(Box<NonFiniteResult>),
    /// The loss or the gradient of a training step, or the loss of an evaluation, is not finite.
    #[error("{}", step_advice(*step, *loss, *gradient_norm))]
    NonFiniteStep {
        /// Number of the step; in an evaluation, of the last training step.
        step: u64,
        /// Mean cross-entropy, in nats.
        loss: f32,
        /// Norm of the gradient; `None` in an evaluation. If it is not finite, the step has changed no weight.
        gradient_norm: Option<f32>,
    },
    /// A weight file cannot be read, does not fit the model, or cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A call that all ranks of a group make failed, on this rank or on another.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// wgpu refused something that this library considers valid. This is a defect worth reporting, except when memory ran out
    /// inside wgpu during a submission, or when the application's own commands (in its encoder, or in a
    /// [`PoolEncoder`](crate::PoolEncoder)) are at fault.
    #[error("wgpu refused '{label}': {reason}")]
    Validation {
        /// Label of the refused object.
        label: Label,
        /// wgpu's message.
        reason: String,
    },
}

/// Not derived, so that the loss of a device is the same variant, wherever it is noticed.
impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::DeviceLost { reason } => Self::DeviceLost { reason },
            PoolError::Refused { label, reason } => Self::Validation { label, reason },
            error => Self::Pool(error),
        }
    }
}

/// An index in words.
fn place(index: &[usize], axes: &[&str]) -> String {
    match axes.len() == index.len() {
        true => {
            let named = axes
                .iter()
                .zip(index)
                .map(|(axis, index)| format!("{axis} {index}"));
            named.collect::<Vec<_>>().join(", ")
        }
        false => format!("index {index:?}"),
    }
}

fn feature_advice(value: f32, activations: DType) -> String {
    match value.is_finite() {
        true => format!(
            ", more than half precision holds: activations are {activations}; take f32{} or leave that tile out",
            if activations == DType::F16 {
                ", or bf16,"
            } else {
                ""
            }
        ),
        false => {
            ": it would spread to all tiles; compute them again, or leave that tile out".to_owned()
        }
    }
}

fn step_advice(step: u64, loss: f32, gradient_norm: Option<f32>) -> String {
    match gradient_norm {
        None => format!(
            "the loss of the weights after step {step} is {loss}: look at the batch, or go back to a checkpoint"
        ),
        Some(norm) => {
            let done = match norm.is_finite() {
                true => "the step was made all the same",
                false => "no weight has changed",
            };
            format!(
                "step {step} has the loss {loss} and a gradient of norm {norm}: {done}; lower the learning rate, or look at the \
                 batch; when it stays so, go back to a checkpoint"
            )
        }
    }
}

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
