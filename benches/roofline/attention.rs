//! Attention, forward and backward.

use dilated_attention::kernel::Storage;
use dilated_attention::kernel::backward::BackwardVariant;
use dilated_attention::kernel::forward::{ForwardShape, ForwardVariant};
use dilated_attention::ops::convert;
use dilated_attention::{
    AttentionShape, Context, DilatedAttention, DilatedAttentionConfig, ForwardOutput, Mask,
    Recorder, Result, Tensor,
};

use crate::timing::{Timed, random};

/// One call of attention.
pub struct Case {
    pub name: &'static str,
    heads: u32,
    head_dim: u32,
    tokens: u32,
    segments: &'static [u32],
    rates: &'static [u32],
    mask: Mask,
}

pub const fn case(
    name: &'static str,
    (heads, head_dim, tokens): (u32, u32, u32),
    segments: &'static [u32],
    rates: &'static [u32],
) -> Case {
    Case {
        name,
        heads,
        head_dim,
        tokens,
        segments,
        rates,
        mask: Mask::Full,
    }
}

pub const CASES: [Case; 9] = [
    case("dense, 1 head of 64", (1, 64, 1024), &[1024], &[1]),
    case("dense, 8 heads of 64", (8, 64, 1024), &[1024], &[1]),
    case("rate 4, 8 heads of 64", (8, 64, 4096), &[4096], &[4]),
    case(
        "LongNet, 4 heads of 64",
        (4, 64, 8192),
        &[512, 2048, 8192],
        &[1, 4, 16],
    ),
    Case {
        mask: Mask::Causal,
        ..case("causal, 8 heads of 64", (8, 64, 1024), &[1024], &[1])
    },
    case("dense, 8 heads of 16", (8, 16, 1024), &[1024], &[1]),
    case("dense, 8 heads of 32", (8, 32, 1024), &[1024], &[1]),
    case("dense, 8 heads of 48", (8, 48, 1024), &[1024], &[1]),
    case("dense, 4 heads of 128", (4, 128, 1024), &[1024], &[1]),
];

/// Which pass is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    /// The backward alone, after a forward that is not timed.
    Backward,
}

/// A case with its inputs.
pub struct Prepared {
    pub attention: DilatedAttention,
    pub shape: AttentionShape,
    inputs: [Tensor; 3],
    /// Of the forward and the gradient of its output.
    results: Option<(ForwardOutput, Tensor)>,
    flop: f64,
}

impl Prepared {
    pub fn new(
        context: &Context,
        case: &Case,
        (kernel, storage): (Option<ForwardShape>, Storage),
        direction: Direction,
    ) -> Result<Self> {
        let config =
            DilatedAttentionConfig::new(case.heads, case.head_dim, case.segments, case.rates)?
                .mask(case.mask);
        let (facts, dtype) = (context.facts(), storage.dtype());
        let variant = match kernel {
            None => ForwardVariant::choose(case.head_dim, storage, facts),
            Some(shape) => ForwardVariant::with_shape(shape, case.head_dim, storage, facts),
        };
        let backward = BackwardVariant::choose(&config, storage, facts);
        let attention = DilatedAttention::with_variant(context, config, variant)?
            .with_backward_variant(backward)?;
        let shape = AttentionShape::new(1, case.tokens)?;
        let dims = [
            1,
            case.tokens as usize,
            case.heads as usize,
            case.head_dim as usize,
        ];
        let mut random = random();
        let mut recorder = context.recorder("inputs");
        let mut input = |label| {
            let data: Vec<f32> = (0..dims.iter().product()).map(|_| random()).collect();
            let tensor = recorder.upload(label, &dims, &data)?;
            convert(&mut recorder, &tensor, dtype)
        };
        let inputs = [input("q")?, input("k")?, input("v")?];
        let dout = input("dout")?;
        let (results, flop) = match direction {
            Direction::Forward => (None, attention.plan(&shape, dtype)?.flop),
            Direction::Backward => {
                let [q, k, v] = &inputs;
                let forward = attention.forward(&mut recorder, &shape, q, k, v)?;
                let flop = attention.plan_backward(&shape, dtype)?.flop;
                (Some((forward, dout)), flop)
            }
        };
        recorder.submit()?.wait()?;
        Ok(Self {
            attention,
            shape,
            inputs,
            results,
            flop: flop as f64,
        })
    }

    /// Name of the kernel that is timed.
    pub fn kernel(&self) -> Result<&'static str> {
        let dtype = self.inputs[0].dtype();
        Ok(match self.results {
            None => self.attention.variant(dtype)?.shape.name(),
            Some(_) => self.attention.backward_variant(dtype)?.shape.dkdv_name(),
        })
    }
}

impl Timed for Prepared {
    fn work(&self) -> f64 {
        self.flop
    }

    fn record(&self, recorder: &mut Recorder) -> Result<()> {
        let [q, k, v] = &self.inputs;
        match &self.results {
            None => {
                let _result = self.attention.forward(recorder, &self.shape, q, k, v)?;
            }
            Some((forward, dout)) => {
                let inputs = [q, k, v];
                let _gradients =
                    self.attention
                        .backward(recorder, &self.shape, inputs, forward, dout)?;
            }
        }
        Ok(())
    }
}
