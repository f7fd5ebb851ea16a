//! Text from a model, byte by byte, through the incremental decoder.

use std::error::Error;
use std::ops::ControlFlow;

use dilated_attention::longnet::{Call, Input, LongNet};
use dilated_attention::nn::Parameters;
use dilated_attention::ops::TokenIds;
use dilated_attention::{AttentionShape, Context};

/// How bytes are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the likeliest byte.
    pub temperature: f32,
    pub seed: u64,
}

/// Continues `prompt` by `count` bytes, each handed to `each` as soon as it is there, until that breaks off.
///
/// # Errors
/// Those of the library, and logits that are not finite.
pub fn continue_text(
    context: &Context,
    (model, weights): (&LongNet, &Parameters),
    prompt: &[u8],
    count: usize,
    sampling: Sampling,
    mut each: impl FnMut(u8) -> ControlFlow<()>,
) -> Result<(), Box<dyn Error>> {
    let mut recorder = context.recorder("cache");
    let capacity = prompt.len().saturating_add(count);
    let mut cache = model.new_cache(&mut recorder, 1, capacity.min(4096))?;
    recorder.submit()?;
    let mut random = Random::new(sampling.seed);
    let mut next: Vec<u32> = prompt.iter().map(|byte| u32::from(*byte)).collect();
    for index in 0..count {
        let mut recorder = context.recorder("token");
        let ids = TokenIds::upload(&mut recorder, &next, 256)?;
        let call = Call::new(AttentionShape::new(1, next.len())?);
        let input = Input::Tokens(&ids);
        let features = model.decode(&mut recorder, weights, input, &call, &mut cache)?;
        let logits = model.logits(&mut recorder, weights, &features)?;
        let logits = recorder.download::<f32>(&logits)?;
        recorder.submit()?;
        let logits = logits.wait()?;
        let logits = &logits[logits.len() - 256..];
        if let Some(likely) = logits.iter().position(|logit| !logit.is_finite()) {
            let logit = logits[likely];
            return Err(format!(
                "the logit of byte {likely} is {logit} where byte {index} is to be chosen: the weights are not finite, or too large; \
                 go back to an earlier checkpoint"
            )
            .into());
        }
        let byte = choose(logits, sampling.temperature, &mut random);
        if each(byte).is_break() {
            break;
        }
        next = vec![u32::from(byte)];
    }
    Ok(())
}

fn choose(logits: &[f32], temperature: f32, random: &mut Random) -> u8 {
    let likeliest = logits
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map_or(0, |(index, _)| index);
    if temperature <= 0.0 {
        return likeliest as u8;
    }
    let weights: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from((logit - logits[likeliest]) / temperature).exp())
        .collect();
    let mut left = random.unit() * weights.iter().sum::<f64>();
    for (byte, weight) in (0..).zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return byte;
        }
    }
    likeliest as u8
}

/// xorshift64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self((seed.wrapping_mul(2) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The first draws of nearby seeds are alike.
        for _ in 0..8 {
            random.bits();
        }
        random
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Bytes as text for a terminal: what is no UTF-8, and control characters but line ends and tabs, as dots.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() || c == char::REPLACEMENT_CHARACTER => '.',
            c => c,
        })
        .collect()
}
