//! Attention, forward and backward.

use dilated_attention::device::KernelTier;
use dilated_attention::ops::convert;
use dilated_attention::testing::{ElementFormat, Family, ForwardFamily, Kernel, plain};
use dilated_attention::{
    AttentionShape, Context, DType, DilatedAttention, Recorder, Result, Tensor, reference,
    softmax_lse,
};
use testing::cases::Case;
use testing::measurement::{error_f32, error_half, random, sampled_rows};

use crate::timing::Timed;

/// Which pass is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    /// The backward alone, after a forward that is not timed.
    Backward,
}

/// A case with its inputs.
pub struct Prepared {
    case: Case,
    attention: DilatedAttention,
    shape: AttentionShape,
    inputs: [Tensor; 3],
    dtype: DType,
    /// The softmax state of the forward and the gradient of its output.
    results: Option<(Tensor, Tensor)>,
    flop: f64,
    kernel: &'static str,
}

/// Elements of q, k, v and dout, always the same.
fn elements(case: &Case) -> [Vec<f32>; 4] {
    let mut random = random();
    [(); 4].map(|()| (0..case.elements()).map(|_| random()).collect())
}

impl Prepared {
    pub fn new(
        context: &Context,
        case: &Case,
        kernel: Option<KernelTier>,
        direction: Direction,
        dtype: DType,
    ) -> Result<Self> {
        let config = case.config()?;
        let attention = match kernel {
            None => DilatedAttention::new(context, config)?,
            Some(tier) => {
                let caps = context.caps();
                let variant = ForwardFamily::of(&config, ElementFormat::F32).of_tier(tier, caps)?;
                DilatedAttention::new(context, config)?.with_variant(variant)?
            }
        };
        let shape = case.shape()?;
        let dims = case.dims();
        let [q, k, v, dout] = elements(case);
        let mut recorder = context.recorder("inputs");
        let mut upload = |label, values: &[f32]| {
            let tensor = recorder.upload(label, &dims, values)?;
            convert(&mut recorder, &tensor, dtype)
        };
        let inputs = [upload("q", &q)?, upload("k", &k)?, upload("v", &v)?];
        let dout = match direction {
            Direction::Forward => None,
            Direction::Backward => Some(upload("dout", &dout)?),
        };
        let (results, flop) = match dout {
            None => (None, attention.plan(&shape, dtype)?.flop),
            Some(dout) => {
                let [q, k, v] = &inputs;
                let forward = attention.forward(&mut recorder, q, k, v)?;
                let flop = attention.plan_backward(&shape, dtype)?.flop;
                (Some((forward.softmax_state, dout)), flop)
            }
        };
        recorder.submit()?.wait()?;
        let kernel = match direction {
            Direction::Forward => Kernel::from(attention.variant(dtype)?).name(),
            Direction::Backward => {
                // The last pass.
                let variant = attention.backward_variant(dtype)?;
                let mut kernels = variant
                    .passes()
                    .iter()
                    .filter_map(|pass| variant.kernel(*pass));
                kernels.next_back().map_or("none", |kernel| kernel.name())
            }
        };
        Ok(Self {
            case: case.clone(),
            attention,
            shape,
            inputs,
            dtype,
            results,
            flop: flop as f64,
            kernel,
        })
    }

    /// Name of the kernel that is timed.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Elements of q, k, v and dout as they are stored.
    fn stored_elements(&self) -> [Vec<f32>; 4] {
        elements(&self.case).map(|all| match self.dtype {
            DType::F32 => all,
            dtype => plain::rounded(dtype, &all),
        })
    }

    fn tensor_bytes(&self) -> u64 {
        self.case.elements() as u64 * self.dtype.bytes()
    }

    fn state_bytes(&self) -> u64 {
        (self.case.tokens as u64) * (self.case.heads as u64) * 8
    }

    fn forward_error(&self, results: &[Vec<f32>]) -> Result<f64> {
        let [q, k, v, _] = self.stored_elements();
        let rows = sampled_rows(self.case.tokens);
        let config = self.case.config()?;
        let expected = reference::forward_rows(&config, &self.shape, &q, &k, &v, &rows)?;
        let width = self.case.heads * self.case.head_dim;
        let sampled = |values: &[f32], width: usize| -> Vec<f32> {
            let row = |&(_, token): &(usize, usize)| &values[token * width..][..width];
            rows.iter().flat_map(row).copied().collect()
        };
        let out = sampled(&results[0], width);
        let lse = softmax_lse(&sampled(&results[1], 2 * self.case.heads));
        let errors = match self.dtype {
            DType::F32 => [
                error_f32(out, &expected.out),
                error_f32(lse, &expected.softmax_lse),
            ],
            dtype => {
                let inputs = [&q[..], &k, &v];
                let plain = plain::forward(&config, &self.shape, inputs, dtype, Some(&rows))?;
                [
                    error_half(out, &expected.out, &plain.out),
                    error_half(lse, &expected.softmax_lse, &plain.softmax_lse),
                ]
            }
        };
        let unwritten = unwritten(&results[0], &self.case);
        Ok(errors.into_iter().fold(unwritten, f64::max))
    }

    /// Head 0 in full, the others for being written.
    fn backward_error(&self, results: &[Vec<f32>]) -> Result<f64> {
        let [q, k, v, dout] = self.stored_elements().map(|all| head_0(&all, &self.case));
        let config = self.case.config_of_heads(1)?;
        let expected = reference::backward(&config, &self.shape, &q, &k, &v, &dout)?;
        let expected = [expected.dq, expected.dk, expected.dv];
        let plain = match self.dtype {
            DType::F32 => None,
            dtype => {
                let inputs = [&q[..], &k, &v];
                let plain = plain::backward(&config, &self.shape, inputs, &dout, dtype)?;
                Some(plain)
            }
        };
        let errors = results.iter().zip(&expected).enumerate();
        let errors = errors.map(|(i, (result, expected))| {
            let head = head_0(result, &self.case);
            let error = match &plain {
                None => error_f32(head, expected),
                Some(plain) => error_half(head, expected, &plain[i]),
            };
            error.max(unwritten(result, &self.case))
        });
        Ok(errors.fold(0.0, f64::max))
    }
}

/// Elements of head 0 of a tensor.
fn head_0(all: &[f32], case: &Case) -> Vec<f32> {
    let width = case.heads * case.head_dim;
    let rows = all.chunks_exact(width);
    rows.flat_map(|row| &row[..case.head_dim])
        .copied()
        .collect()
}

/// Infinite if an element is no number or a whole head is 0, as memory is that nobody wrote; else 0.
fn unwritten(all: &[f32], case: &Case) -> f64 {
    let mut sums = vec![0.0f64; case.heads];
    for (i, value) in all.iter().enumerate() {
        let head = i / case.head_dim % case.heads;
        sums[head] += f64::from(value.abs());
    }
    let written = sums.iter().all(|sum| sum.is_finite() && *sum > 0.0);
    if written { 0.0 } else { f64::INFINITY }
}

impl Timed for Prepared {
    fn work(&self) -> f64 {
        self.flop
    }

    fn record(&self, recorder: &mut Recorder) -> Result<Vec<Tensor>> {
        let [q, k, v] = &self.inputs;
        match &self.results {
            None => {
                let result = self.attention.forward(recorder, q, k, v)?;
                Ok(vec![result.out, result.softmax_state])
            }
            Some((state, dout)) => {
                let inputs = [q, k, v];
                let gradients = self.attention.backward(recorder, inputs, state, dout)?;
                Ok(vec![gradients.dq, gradients.dk, gradients.dv])
            }
        }
    }

    fn error(&self, results: &[Vec<f32>]) -> Result<f64> {
        match self.results {
            None => self.forward_error(results),
            Some(_) => self.backward_error(results),
        }
    }

    fn held_bytes(&self) -> u64 {
        let tensor = self.tensor_bytes();
        match self.results {
            None => 3 * tensor,
            Some(_) => 4 * tensor + self.state_bytes(),
        }
    }

    /// Forward: q, k, v, out, softmax state. Backward: q, k, v, softmax state, dout and the three gradients.
    fn floor_bytes(&self) -> u64 {
        let tensor = self.tensor_bytes();
        let tensors = if self.results.is_some() { 7 } else { 4 };
        tensors * tensor + self.state_bytes()
    }
}
