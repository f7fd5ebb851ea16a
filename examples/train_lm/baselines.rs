//! What counting alone achieves on the same split.

use std::collections::HashMap;

/// Bits a byte of `validation` when each byte is coded by its frequency in `training`.
pub fn order_0(training: &[u8], validation: &[u8]) -> f64 {
    let mut counts = [1f64; 256];
    for byte in training {
        counts[usize::from(*byte)] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    let bits: f64 = validation
        .iter()
        .map(|byte| (total / counts[usize::from(*byte)]).log2())
        .sum();
    bits / validation.len() as f64
}

/// What followed a context.
#[derive(Default)]
struct Followers {
    counts: HashMap<u8, u32>,
    total: u32,
}

/// Bits a byte of `validation` under a model of the three bytes before, counted in `training`: frequencies after the longest
/// context, mixed with those after shorter ones as Witten and Bell (1991) do, down to all bytes alike.
pub fn order_3(training: &[u8], validation: &[u8]) -> f64 {
    const ORDER: usize = 3;
    let mut contexts: [HashMap<u32, Followers>; ORDER + 1] = Default::default();
    for end in 0..training.len() {
        for (order, contexts) in contexts.iter_mut().enumerate() {
            if let Some(key) = key(&training[..end], order) {
                let followers = contexts.entry(key).or_default();
                *followers.counts.entry(training[end]).or_default() += 1;
                followers.total += 1;
            }
        }
    }
    let mut bits = 0.0;
    for end in 0..validation.len() {
        let mut probability = 1.0 / 256.0;
        for (order, contexts) in contexts.iter().enumerate() {
            let followers = key(&validation[..end], order).and_then(|key| contexts.get(&key));
            if let Some(followers) = followers {
                let count = followers.counts.get(&validation[end]).copied().unwrap_or(0);
                let (total, kinds) = (f64::from(followers.total), followers.counts.len() as f64);
                probability = (f64::from(count) + kinds * probability) / (total + kinds);
            }
        }
        bits -= f64::log2(probability);
    }
    bits / validation.len() as f64
}

/// The last `order` bytes as a number.
fn key(before: &[u8], order: usize) -> Option<u32> {
    let context = &before[before.len().checked_sub(order)?..];
    let number = |key: u32, byte: &u8| key << 8 | u32::from(*byte);
    Some(context.iter().fold(0, number))
}
