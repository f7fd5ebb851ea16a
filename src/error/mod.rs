//! The error type of all calls, and those of the pool and of files of weights, which it carries. Variants carry the value given, the
//! limit it met and the next step, where there are such.

mod non_finite;
mod pool;
mod stored_type;
mod weights;
mod weights_mismatch;

pub use non_finite::{NonFiniteResult, Origin, Token};
pub use pool::PoolError;
pub use stored_type::StoredType;
pub use weights::WeightsError;
pub use weights_mismatch::{Duplicate, FoundPrefix, Misshapen, Mistyped, WeightsMismatch};

use crate::element::DType;
use crate::label::Label;
use crate::pool_figures::PoolReport;

/// What went wrong; see the variants. No tensor that was there before a failed call is lost or changed by it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something made for one model was given to another.
    #[error(
        "{what} of another model: names or shapes of its parameters differ; make it from this model"
    )]
    ParameterMismatch {
        /// What was given.
        what: &'static str,
    },
    /// A token id or label that the table or the classes do not have.
    #[error("{what} {given} at index {index} is out of range: there are {limit}")]
    TokenOutOfRange {
        /// Token or label.
        what: &'static str,
        /// Where in the input.
        index: u64,
        /// The number given.
        given: u32,
        /// How many there are.
        limit: usize,
    },
    /// A tile of a slide does not lie in the grid of positions.
    #[error(
        "tile {tile} at ({x}, {y}) lies outside of the grid: coordinates are pixels of level 0, at least 0 and below {limit}, \
         which is the tile size times the cells of the grid: tiles of a slide scanned at 40x have twice the size of those at 20x"
    )]
    TileOutOfGrid {
        /// Its number in the slide, from 0.
        tile: u64,
        /// The coordinate given.
        x: f32,
        /// The coordinate given.
        y: f32,
        /// Coordinates are below this.
        limit: u64,
    },
    /// One of several slides is wrong.
    #[error("slide {slide}: {error}")]
    InSlide {
        /// Its number in the call, from 0.
        slide: usize,
        /// What is wrong.
        error: Box<Error>,
    },
    /// A plan needs more memory than it may.
    #[error(
        "{what} needs {requested_bytes} bytes in buffers of the pool's sizes, the budget is {budget_bytes}: {next_step}"
    )]
    PlanOverBudget {
        /// What was planned.
        what: &'static str,
        /// Bytes of the buffers it needs, each rounded up to its size class: the smallest budget that suffices.
        requested_bytes: u64,
        /// The budget.
        budget_bytes: u64,
        /// What to do.
        next_step: &'static str,
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
    /// An option has a value that means nothing, on whatever device.
    #[error("{what} is {given}; it must be {need}")]
    InvalidConfig {
        /// Name of the option.
        what: &'static str,
        /// The value given.
        given: String,
        /// What a valid value is.
        need: &'static str,
    },
    /// A shape does not fit the configuration or another shape.
    #[error("{what} is {given}; it must be {need}")]
    InvalidShape {
        /// Name of the tensor or number.
        what: Label,
        /// The value given.
        given: String,
        /// What a valid value is.
        need: String,
    },
    /// A slice does not have as many elements as the shape it comes with.
    #[error(
        "{label}: {given} elements for a shape of {expected}; pass exactly as many as the shape has (items of different lengths are padded to the longest, and with_valid_lens of CallOptions or AttentionShape tells their own)"
    )]
    LengthMismatch {
        /// Label of the tensor.
        label: Label,
        /// Elements given.
        given: u64,
        /// Elements of the shape.
        expected: u64,
    },
    /// A tensor's element type is not what the operation takes.
    #[error("{what} has elements of type {given}; {need} is needed: convert before the call")]
    WrongDType {
        /// Name of the tensor.
        what: Label,
        /// Its element type.
        given: DType,
        /// The element type needed.
        need: DType,
    },
    /// A tensor or recording belongs to another [`Context`](crate::Context), that is, to one with another pool.
    #[error(
        "{what} belongs to another context (to pool {given}, this call's is pool {expected}): use what this context has made; elements get here by a download there and an upload here"
    )]
    ContextMismatch {
        /// Name of the tensor, or the recorder.
        what: Label,
        /// Number of the pool it belongs to, unique in the process.
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
    /// A tensor of several buffers where it must be one. No operation takes such tensors yet.
    #[error("'{label}' has {given} parts; this call takes a tensor in one buffer")]
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
    /// Sizes multiply to more than 64 bits hold.
    #[error("the size of {what} ({given}) overflows 64 bits")]
    SizeOverflow {
        /// Name of the tensor or buffer.
        what: Label,
        /// The factors.
        given: String,
    },
    /// The smallest possible window of a tensor exceeds what one binding may cover.
    #[error(
        "one token row of {what} is {requested_bytes} bytes with its alignment, a binding may cover {limit_bytes} (max_storage_buffer_binding_size): request a larger limit"
    )]
    BindingTooSmall {
        /// Name of the tensor.
        what: Label,
        /// Bytes of the smallest window.
        requested_bytes: u64,
        /// Bytes one binding may cover.
        limit_bytes: u64,
    },
    /// The device lacks what was asked for: kernels of a tier, elements of a type, cooperative matrices, workgroup memory.
    #[error("the device cannot run {what}: {given}; needed: {need}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What the device has, or has not.
        given: String,
        /// What it would have to have, and what to ask for instead.
        need: String,
    },
    /// The device lacks something every kernel needs.
    #[error(
        "the device offers {given} for {limit}, at least {need} is needed: request WebGPU's default limits"
    )]
    DeviceTooSmall {
        /// Name of the limit.
        limit: &'static str,
        /// What the device offers.
        given: u64,
        /// What is needed.
        need: u64,
    },
    /// The pool has no buffer to lend. A device that is lost is [`DeviceLost`](Self::DeviceLost), a buffer that it refuses
    /// [`Validation`](Self::Validation), as everywhere.
    #[error(transparent)]
    Pool(PoolError),
    /// The device ran out of memory while the work was submitted, and goes on (where wgpu gives it up, this is
    /// [`DeviceLost`](Self::DeviceLost)). The recording is lost, the tensors are not.
    #[error(
        "the device has no memory to run '{label}': drop tensors, trim the pool, record again\n{report}"
    )]
    SubmissionOutOfMemory {
        /// Label of the recording.
        label: Label,
        /// State of the pool.
        report: Box<PoolReport>,
    },
    /// No adapter matches what was asked for.
    #[error(
        "no adapter: {reason}; found: {found}. On Linux without a GPU driver install Mesa's software driver (scripts/install_vulkan.sh)"
    )]
    NoAdapter {
        /// Why none was chosen.
        reason: String,
        /// Names of the adapters that there are.
        found: String,
    },
    /// The adapter gave no device with the features and limits asked for.
    #[error("adapter '{adapter}' gave no device: {reason}")]
    NoDevice {
        /// Name of the adapter.
        adapter: String,
        /// The adapter's words.
        reason: String,
    },
    /// A recording was submitted that reads a tensor which holds no result. It has no effect then.
    #[error("'{reader}' reads '{label}', but {}{reason}", match writer {
        Some(writer) => format!("the recording '{writer}' that writes it "),
        None => String::new(),
    })]
    NotWritten {
        /// Label of the tensor.
        label: Label,
        /// Label of the recording that was submitted.
        reader: Label,
        /// Label of the recording that was to write the tensor, if there is one.
        writer: Option<Label>,
        /// What became of that, and the next step.
        reason: &'static str,
    },
    /// A download was waited for before its recording was submitted, or submitted far enough.
    #[error("'{label}' was recorded for download but not submitted: {next_step}, then wait again")]
    NotSubmitted {
        /// Label of the download.
        label: Label,
        /// What to do: submit the recording or the encoder that it went to, or advance its slices.
        next_step: &'static str,
    },
    /// A download was waited for that never comes: what it belongs to was dropped, cancelled or refused, or runs nowhere.
    #[error("'{label}' will never arrive: {reason}")]
    DownloadAbandoned {
        /// Label of the download.
        label: Label,
        /// What became of that, and the next step.
        reason: &'static str,
    },
    /// The device is lost; nothing on it can be read any more.
    #[error("the device is lost ({reason}): make a new context and upload again")]
    DeviceLost {
        /// What the device, the application or the mapping said; never empty.
        reason: String,
    },
    /// A value that is not finite was found where the caller asked for a check.
    #[error("{what} holds {value} at {}", place(index, axes))]
    NotFinite {
        /// Name of the tensor.
        what: Label,
        /// The value.
        value: f32,
        /// Its index along each of the tensor's own dimensions.
        index: Vec<usize>,
        /// What these dimensions are; empty where that is not known.
        axes: &'static [&'static str],
    },
    /// A feature of a tile is not finite, or would not be as the activations' type holds it.
    #[error("features of tile {tile} hold {value} (element {element}){}", feature_advice(*value, *activations))]
    FeatureNotFinite {
        /// Number of the tile in its slide, from 0.
        tile: usize,
        /// Which of its features, from 0.
        element: usize,
        /// The value.
        value: f32,
        /// Type of the activations.
        activations: DType,
    },
    /// A result has infinite elements or NaN. Outputs that allow it
    /// (`allow_nonfinite` of [`SlideOutputs`](crate::models::gigapath::SlideOutputs) and
    /// [`LongVitOutputs`](crate::models::longvit::LongVitOutputs)) return it all the same.
    #[error("{0}")]
    NonFiniteResult(Box<NonFiniteResult>),
    /// Loss or gradient of a training step, or the loss of an evaluation, is not finite.
    #[error("{}", step_advice(*step, *loss, *gradient_norm))]
    NonFiniteStep {
        /// The step; of an evaluation, the last one done.
        step: u64,
        /// Mean cross-entropy, in nats.
        loss: f32,
        /// Norm of the gradient; `None` for an evaluation. Where it is not finite, the step has changed no weight.
        gradient_norm: Option<f32>,
    },
    /// A file of weights cannot be read, does not fit the model, or cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// wgpu refused something that this library believed valid: a defect worth reporting (or, at a submission, memory that
    /// ran out inside wgpu).
    #[error("wgpu refused '{label}': {reason}")]
    Validation {
        /// Label of what was made.
        label: Label,
        /// wgpu's words.
        reason: String,
    },
}

/// Not derived, so that a loss has one variant, whoever meets it.
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
