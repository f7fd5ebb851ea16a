//! Parameters of a model: named tensors for weights, gradients and moments.

use std::sync::Arc;

use crate::context::Context;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::ops::Dropout;
use crate::random::Random;
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::{Tensor, num_bytes, padded_bytes, part_bytes};

/// Approximate size of the buffers that parameters share. They are large, so that an optimiser step takes few dispatches, but small
/// enough for any device.
const SLAB_BYTES: u64 = 32 << 20;

/// Elements of a parameter that are read and uploaded at a time: as many as fit in a staging chunk.
pub(crate) const PIECE_ELEMENTS: usize = 1 << 20;

/// Bytes of weights that one submission uploads, and so the size of its staging memory.
const PART_BYTES: usize = 16 << 20;

/// Index of a parameter in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParameterId(usize);

/// Initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Uniform in `-bound .. bound`.
    Uniform {
        /// Largest absolute value.
        bound: f32,
    },
}

impl Init {
    /// Xavier's uniform distribution (Glorot and Bengio 2010), times `gain`.
    pub fn xavier_uniform(fan_in: usize, fan_out: usize, gain: f32) -> Self {
        Self::Uniform {
            bound: gain * (6.0 / (fan_in + fan_out) as f32).sqrt(),
        }
    }

    /// The initial distribution of PyTorch's `nn.Linear`, times `gain`.
    pub fn linear(fan_in: usize, gain: f32) -> Self {
        Self::Uniform {
            bound: gain / (fan_in as f32).sqrt(),
        }
    }
}

/// Name, shape and initial values of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Name, as in checkpoints: `layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Shape. The weights of linear layers are (outputs, inputs).
    pub shape: Vec<usize>,
    /// Initial values.
    pub init: Init,
}

impl ParameterSpec {
    /// Whether weight decay applies: to matrices, but not to weights of norms and to biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The parameters of a model, in the order in which its layers declared them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParameterList {
    specs: Vec<ParameterSpec>,
}

impl ParameterList {
    /// A list without parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a parameter.
    pub fn add(&mut self, name: String, shape: &[usize], init: Init) -> ParameterId {
        self.specs.push(ParameterSpec {
            name,
            shape: shape.to_vec(),
            init,
        });
        ParameterId(self.specs.len() - 1)
    }

    /// All parameters, in order.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// The parameter called `name`.
    pub fn find(&self, name: &str) -> Option<ParameterId> {
        let position = self.specs.iter().position(|spec| spec.name == name);
        position.map(ParameterId)
    }

    /// Number of elements of all parameters.
    pub fn num_elements(&self) -> usize {
        let elements = self.specs.iter().map(ParameterSpec::num_elements);
        elements.fold(0, usize::saturating_add)
    }
}

/// A set of tensors, one for each parameter of a list.
#[derive(Clone, Debug)]
pub struct Parameters {
    list: Arc<ParameterList>,
    tensors: Vec<Tensor>,
    slabs: Vec<(Tensor, bool)>,
}

/// Parameters that share a buffer, as one vector. Gaps between them are 0 and stay 0.
#[cfg(feature = "training")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slab<'a> {
    pub elements: &'a Tensor,
    /// Whether weight decay applies, which is the same for all parameters of a slab.
    pub decays: bool,
}

impl Parameters {
    /// A set of zeros: for gradients, for moments, or for weights that will be written.
    ///
    /// # Errors
    /// [`Error::SizeOverflow`], and the errors of leasing.
    pub fn zeros(
        recorder: &mut Recorder,
        list: &Arc<ParameterList>,
        label: &'static str,
    ) -> Result<Self> {
        let caps = recorder.context().caps().clone();
        let slab_bytes = SLAB_BYTES.min(caps.max_buffer_bytes);
        let mut slabs = Vec::new();
        let mut tensors = vec![None; list.specs.len()];
        for decays in [true, false] {
            // Parameters in the slab that is being filled: (parameter, offset in bytes).
            let mut placed: Vec<(usize, u64)> = Vec::new();
            let mut end = 0u64;
            let mut close = |placed: &mut Vec<(usize, u64)>, bytes: u64| -> Result<()> {
                if placed.is_empty() {
                    return Ok(());
                }
                // One that no buffer holds lies in parts, as a tensor of its shape; the others are bound as a whole.
                let part_bytes = match &placed[..] {
                    [(only, _)] if bytes > caps.max_buffer_bytes => {
                        part_bytes(&list.specs[*only].shape, DType::F32, &caps)
                    }
                    _ => u64::MAX,
                };
                let shape = [(bytes / 4) as usize];
                let elements =
                    recorder.empty_in_parts(label.into(), &shape, DType::F32, part_bytes)?;
                recorder.clear(&elements, elements.whole());
                for (index, offset) in placed.drain(..) {
                    let shape = &list.specs[index].shape;
                    tensors[index] = Some(elements.view(shape, offset));
                }
                slabs.push((elements, decays));
                Ok(())
            };
            for (index, spec) in list.specs.iter().enumerate() {
                if spec.decays() != decays {
                    continue;
                }
                let bytes = padded_bytes(num_bytes(label, &spec.shape, DType::F32)?);
                let mut offset = end.next_multiple_of(caps.storage_offset_alignment);
                if !placed.is_empty() && offset.saturating_add(bytes) > slab_bytes {
                    close(&mut placed, end)?;
                    offset = 0;
                }
                placed.push((index, offset));
                end = offset + bytes;
            }
            close(&mut placed, end)?;
        }
        Ok(Self {
            list: list.clone(),
            // Every parameter was placed in one of the two passes.
            tensors: tensors.into_iter().flatten().collect(),
            slabs,
        })
    }

    /// Weights with the initial values that the list gives; random ones follow from `seed`. They are uploaded and submitted in
    /// parts of bounded size.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros), and the errors of uploading and submitting.
    pub fn initial(context: &Context, list: &Arc<ParameterList>, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed, 0);
        Self::submitted(context, "initial weights", list, |index, first, values| {
            if first == 0 {
                random = Random::new(seed, index as u64);
            }
            let init = list.specs[index].init;
            values.fill_with(|| match init {
                Init::Zeros => 0.0,
                Init::Ones => 1.0,
                Init::Normal { std } => std * random.normal(),
                Init::Uniform { bound } => bound * random.uniform(),
            });
            Ok(())
        })
    }

    /// Weights with values from `read`, which is called piece by piece, in order: it gets the index of a parameter and of an
    /// element, and fills a slice with the values from there on. Weights are uploaded and submitted in parts. Each part is done
    /// before the next is recorded, so that staging memory is never larger than a part. (Browsers cannot wait; there staging memory
    /// grows while the device is behind.)
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros), and the errors of `read`, of uploading and of submitting.
    pub(crate) fn submitted(
        context: &Context,
        recording: &'static str,
        list: &Arc<ParameterList>,
        mut read: impl FnMut(usize, usize, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let mut recorder = context.recorder(recording);
        let weights = Self::zeros(&mut recorder, list, "weights")?;
        let largest = list.specs.iter().map(ParameterSpec::num_elements).max();
        let mut values = vec![0.0; largest.unwrap_or(0).min(PIECE_ELEMENTS)];
        let mut recorded_bytes = 0;
        for (index, tensor) in weights.tensors.iter().enumerate() {
            let num_elements = list.specs[index].num_elements();
            for first in (0..num_elements).step_by(PIECE_ELEMENTS) {
                let piece = &mut values[..PIECE_ELEMENTS.min(num_elements - first)];
                if recorded_bytes + piece.len() * 4 > PART_BYTES {
                    recorded_bytes = 0;
                    let next = context.recorder(recording);
                    let part = std::mem::replace(&mut recorder, next).submit()?;
                    if cfg!(not(target_arch = "wasm32")) {
                        part.wait()?;
                    }
                }
                read(index, first, piece)?;
                recorder.write(&tensor.view(&[piece.len()], first as u64 * 4), piece)?;
                recorded_bytes += piece.len() * 4;
            }
        }
        recorder.submit()?;
        Ok(weights)
    }

    /// The list of parameters.
    pub fn list(&self) -> &Arc<ParameterList> {
        &self.list
    }

    /// The tensor of a parameter.
    ///
    /// # Panics
    /// If the id belongs to another list and is out of range here.
    pub fn get(&self, id: ParameterId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// Every parameter with its tensor, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&ParameterSpec, &Tensor)> {
        self.list.specs.iter().zip(&self.tensors)
    }

    /// Records that all tensors are set to 0.
    pub fn clear(&self, recorder: &mut Recorder) {
        for (elements, _) in &self.slabs {
            recorder.clear(elements, elements.whole());
        }
    }

    /// Records downloads of all tensors, in order.
    ///
    /// # Errors
    /// As [`Recorder::download`].
    pub fn download(&self, recorder: &mut Recorder) -> Result<Vec<Download<f32>>> {
        self.tensors
            .iter()
            .map(|tensor| recorder.download(tensor))
            .collect()
    }

    #[cfg(feature = "training")]
    pub(crate) fn slabs(&self) -> impl Iterator<Item = Slab<'_>> {
        self.slabs.iter().map(|(elements, decays)| Slab {
            elements,
            decays: *decays,
        })
    }

    /// Checks that these tensors are for the parameters of `list`.
    ///
    /// # Errors
    /// [`Error::ParameterMismatch`].
    pub(crate) fn expect_list(&self, what: &'static str, list: &Arc<ParameterList>) -> Result<()> {
        if Arc::ptr_eq(&self.list, list) || self.list == *list {
            return Ok(());
        }
        Err(Error::ParameterMismatch { what })
    }
}

/// What the dropouts of a training step follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSeed {
    /// A number that should differ from step to step.
    pub seed: u64,
    /// Number of the first row among all rows of the call: above 0 where a rank has later tokens of a sequence, so that it drops what
    /// one rank with all of them would.
    pub first_row: usize,
}

impl From<u64> for StepSeed {
    /// Of all rows.
    fn from(seed: u64) -> Self {
        Self { seed, first_row: 0 }
    }
}

impl StepSeed {
    /// Number of the first element of row `row`, of rows of `width` elements.
    pub(crate) fn first_element(step: Option<Self>, row: usize, width: usize) -> u64 {
        let first_row = step.map_or(0, |step| step.first_row);
        (first_row as u64 + row as u64) * width as u64
    }
}

/// The dropout of a place in a model in a training step; `None` without a step or with probability 0.
pub(crate) fn dropout_at(
    probability: f32,
    step: Option<StepSeed>,
    place: u64,
) -> Result<Option<Dropout>> {
    match step {
        Some(step) if probability > 0.0 => {
            Dropout::new(probability, Random::new(step.seed, place).bits()).map(Some)
        }
        _ => Ok(None),
    }
}
