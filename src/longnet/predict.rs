//! What a step over ranks takes, told before there are any: bytes, memory and time, for sequences of any length at once.
//!
//! ```text
//! bytes    those that the exchange sends, counted from the same needs
//! work     products over the rank's tokens, attention over the pairs of rows and keys that the rank has
//! memory   a line through two dry runs of a rank without others, and the rows of others beside that
//! time     work over rates, then bytes over rates: nothing overlaps
//! ```
//! The rank that has the most of something counts, because the others wait for it. Bytes and work are exact, but for training under a
//! causal mask: gradients come back to the ranks that have sent keys, which are not those that have received most; there the bytes of one
//! rank are an upper bound. Memory and time are estimates.

use super::{Call, Input, LongNet, LongNetConfig, Recompute};
use crate::attention::ShareOfRank;
use crate::config::AttentionShape;
use crate::context::Context;
use crate::device::{DType, DeviceCaps};
use crate::distributed::tokens_of_rank;
use crate::error::Result;
use crate::nn::Parameters;
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::Range;
use crate::plan::{Tokens, segments_of};

/// Tokens of the dry runs: enough that what does not grow with them matters little.
const DRY_TOKENS: [usize; 2] = [4096, 8192];

/// How often ranks wait for each other in the attention of a layer. Whether all are ready takes one exchange, and so whether all are
/// done; bytes take two: how many,
/// then they.
const WAITS_OF_FORWARD: f64 = 4.0;
const WAITS_OF_BACKWARD: f64 = 6.0;

/// Ranks agree on being ready (one exchange) and on what they add (two). Each adds its part of the gradients, and all gather the parts.
const WAITS_OF_REDUCTION: f64 = 7.0;

/// How fast devices and links are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating point operations a second of a device, in products of matrices.
    pub product_flop: f64,
    /// In attention.
    pub attention_flop: f64,
    /// Bytes a second between a device and its host.
    pub host_bytes: f64,
    /// Bytes a second that a rank receives from the others.
    pub link_bytes: f64,
    /// Seconds until the first of them comes.
    pub link_latency: f64,
}

/// What one step of a model takes on each of several ranks. Made by [`StepPredictor::predict`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepPrediction {
    /// Bytes that the busiest rank receives for attention: packed keys and values of other ranks, and in training their gradients.
    pub received_bytes: u64,
    /// Those of all ranks together.
    pub all_received_bytes: u64,
    /// Were the keys and values of all tokens of shared segments gathered, once for all branches, as the longest of them take. The rows
    /// that they are packed from are never sent.
    pub dense_bytes: u64,
    /// Were keys and values of the whole sequence passed round in a ring.
    pub ring_bytes: u64,
    /// Bytes that a rank receives while gradients of the parameters are summed; 0 in inference.
    pub reduced_bytes: u64,
    /// Bytes that leases of the device ask for at one time, at most.
    pub device_bytes: u64,
    /// Floating point operations of the busiest rank in products and attention.
    pub flop: [f64; 2],
    /// Seconds in which it computes.
    pub compute_seconds: f64,
    /// Seconds in which bytes of attention move.
    pub exchange_seconds: f64,
    /// Seconds in which gradients of the parameters are summed over all ranks.
    pub reduction_seconds: f64,
    /// Time of one rank with the whole sequence, divided by the number of ranks and the time here.
    pub efficiency: f64,
}

impl StepPrediction {
    /// Seconds of the step.
    pub fn seconds(&self) -> f64 {
        self.compute_seconds + self.exchange_seconds + self.reduction_seconds
    }
}

/// Predicts steps of one model over ranks: its layers over one sequence, from embeddings to features. Vocabulary and logits are not
/// counted.
///
/// ```
/// use dilated_attention::longnet::{LongNetConfig, Rates, StepPredictor};
/// use dilated_attention::{DeviceCaps, DilatedAttentionConfig};
/// let attention = DilatedAttentionConfig::new(16, 48, &[4096, 1 << 24], &[1, 4096])?;
/// let config = LongNetConfig::encoder(attention, 12, 3072);
/// let predictor = StepPredictor::new(&config, None, DeviceCaps::webgpu_defaults())?;
/// let rates = Rates {
///     product_flop: 40e12,
///     attention_flop: 20e12,
///     host_bytes: 20e9,
///     link_bytes: 10e9,
///     link_latency: 20e-6,
/// };
/// let step = predictor.predict(1 << 30, 64, &rates)?;
/// assert!(step.received_bytes < step.ring_bytes / 1000);
/// # Ok::<(), dilated_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StepPredictor {
    config: LongNetConfig,
    /// What the backward computes again; `None` in inference.
    training: Option<Recompute>,
    num_parameters: u64,
    /// Device bytes without tokens, and for each.
    memory: [f64; 2],
}

/// What one rank does in the forward of one layer.
struct OfRank {
    tokens: f64,
    /// Pairs of rows and keys, of one head each.
    pairs: f64,
    /// Elements that it receives: as they are exchanged, and in the two other ways.
    packed: u64,
    dense: u64,
    ring: u64,
    /// Elements that it puts together.
    gathered: u64,
}

impl StepPredictor {
    /// For steps of a model on devices with `caps`: with `training` a forward, its backward and the sum of all ranks' gradients, with
    /// the optimiser's means in memory; else a forward. Records both on a dry run, in milliseconds.
    ///
    /// # Errors
    /// As [`LongNet::new`], [`LongNet::forward`] and [`LongNet::backward`].
    pub fn new(
        config: &LongNetConfig,
        training: Option<Recompute>,
        caps: DeviceCaps,
    ) -> Result<Self> {
        let [few, many] = DRY_TOKENS;
        let (of_few, _) = dry_run(config, training, caps.clone(), few)?;
        let (of_many, num_parameters) = dry_run(config, training, caps, many)?;
        let of_token = (of_many - of_few) / (many - few) as f64;
        Ok(Self {
            config: config.clone(),
            training,
            num_parameters,
            memory: [of_few - of_token * few as f64, of_token],
        })
    }

    /// A step over one sequence of `tokens` tokens on `ranks` ranks.
    ///
    /// # Errors
    /// [`Error::InvalidShape`](crate::Error::InvalidShape) for a sequence that is too long, and for no ranks.
    pub fn predict(&self, tokens: usize, ranks: usize, rates: &Rates) -> Result<StepPrediction> {
        let config = &self.config;
        // Checks that there is a rank.
        let mut all = vec![self.of_rank(tokens, ranks, 0)?];
        for rank in 1..ranks {
            all.push(self.of_rank(tokens, ranks, rank)?);
        }
        let most = |of: fn(&OfRank) -> f64| all.iter().map(of).fold(0.0, f64::max);
        let layers = config.num_layers() as f64;
        let stored = config.activations.bytes() as f64;
        let (gathers, returns) = self.exchanges();
        // Gradients are f32.
        let of_element = layers * (gathers * stored + returns * 4.0);
        let bytes = |elements: f64| (elements * of_element) as u64;
        let received = most(|rank| rank.packed as f64);
        let reduced_bytes = match self.training {
            None => 0.0,
            Some(_) => 8.0 * self.num_parameters as f64 * (ranks - 1) as f64 / ranks as f64,
        };
        let all_received: u64 = all.iter().map(|rank| rank.packed).sum();

        let row = config.attention().embed_dim() as f64;
        let own = most(|rank| rank.tokens);
        let gathered = most(|rank| rank.gathered as f64);
        let more = match (self.training, gathered > 0.0) {
            (_, false) => 0.0,
            // Keys and values that are read back and, in half precision, what is computed in f32. Rows of others in f32, and on their
            // way there.
            (None, true) => {
                let copies = match config.activations {
                    DType::F32 => 0.0,
                    _ => 3.0 * 4.0,
                };
                row * own * (2.0 * stored + copies) + gathered * (4.0 + stored)
            }
            // More than is read back is held at other times. Rows of others and their gradients, and both on their way.
            (Some(_), true) => gathered * 16.0,
        };
        let device_bytes = self.memory[0] + self.memory[1] * own + more;

        let flop = self.flop(own, most(|rank| rank.pairs));
        let compute = |[products, attention]: [f64; 2]| {
            products / rates.product_flop + attention / rates.attention_flop
        };
        let compute_seconds = compute(flop);
        let exchange_seconds = match all_received {
            0 => 0.0,
            _ => {
                // Each exchange reads keys and values back, and uploads what was put together; gradients go the other way.
                let through_host = layers
                    * (gathers * stored * (2.0 * row * own + gathered)
                        + returns * 4.0 * (gathered + 3.0 * row * own));
                through_host / rates.host_bytes + bytes(received) as f64 / rates.link_bytes
            }
        };
        let waits = match ranks {
            1 => 0.0,
            _ => layers * (self.forwards() * WAITS_OF_FORWARD + returns * WAITS_OF_BACKWARD),
        };
        let reduction_seconds = match reduced_bytes > 0.0 {
            true => {
                // Gradients are read back, and sums are uploaded.
                8.0 * self.num_parameters as f64 / rates.host_bytes
                    + reduced_bytes / rates.link_bytes
                    + WAITS_OF_REDUCTION * rates.link_latency
            }
            false => 0.0,
        };
        let alone = self.of_rank(tokens, 1, 0)?;
        let alone = compute(self.flop(alone.tokens, alone.pairs));
        let mut prediction = StepPrediction {
            received_bytes: bytes(received),
            all_received_bytes: bytes(all_received as f64),
            dense_bytes: bytes(most(|rank| rank.dense as f64)),
            ring_bytes: bytes(most(|rank| rank.ring as f64)),
            reduced_bytes: reduced_bytes as u64,
            device_bytes: device_bytes as u64,
            flop,
            compute_seconds,
            exchange_seconds: exchange_seconds + waits * rates.link_latency,
            reduction_seconds,
            efficiency: 1.0,
        };
        if ranks > 1 {
            prediction.efficiency = alone / (ranks as f64 * prediction.seconds());
        }
        Ok(prediction)
    }

    fn of_rank(&self, tokens: usize, ranks: usize, rank: usize) -> Result<OfRank> {
        let attention = self.config.attention();
        let share = ShareOfRank::new(attention, tokens, ranks, rank)?;
        // Elements of 4 bytes.
        let of_branches = attention.exchange_of_share(tokens, ranks, rank, DType::F32)?;
        let of_branches = || of_branches.iter();
        Ok(OfRank {
            tokens: tokens_of_rank(tokens, ranks, rank).len() as f64,
            pairs: share
                .geometries
                .iter()
                .map(|geometry| pairs(geometry, &share.own))
                .sum(),
            packed: of_branches().map(|branch| branch.packed_bytes / 4).sum(),
            dense: of_branches()
                .map(|branch| branch.dense_bytes / 4)
                .max()
                .unwrap_or(0),
            ring: of_branches()
                .map(|branch| branch.ring_bytes / 4)
                .max()
                .unwrap_or(0),
            gathered: 2 * share.packed_heads() * attention.head_dim() as u64,
        })
    }

    /// Forwards of each layer in a step.
    fn forwards(&self) -> f64 {
        match self.training {
            None | Some(Recompute::Insides) => 1.0,
            Some(Recompute::Layers) => 2.0,
        }
    }

    /// How often a layer gathers keys and values, and how often it returns gradients.
    fn exchanges(&self) -> (f64, f64) {
        let returns = f64::from(u8::from(self.training.is_some()));
        (self.forwards() + returns, returns)
    }

    /// Operations of a step, in products and in attention.
    fn flop(&self, tokens: f64, pairs: f64) -> [f64; 2] {
        let config = &self.config;
        let layers = config.num_layers() as f64;
        let [of_projections, of_network, of_attention] = super::flop::repeats(self.training);
        let [projections, network] = config.products_flop_of(tokens);
        let attention = 4.0 * config.attention().head_dim() as f64 * pairs;
        [
            layers * (of_projections * projections + of_network * network),
            layers * of_attention * attention,
        ]
    }
}

/// The most that the leases of a step over `tokens` tokens ask for at one time, in bytes, and the number of parameters.
fn dry_run(
    config: &LongNetConfig,
    training: Option<Recompute>,
    caps: DeviceCaps,
    tokens: usize,
) -> Result<(f64, u64)> {
    let context = Context::dry_run(caps);
    let model = LongNet::new(&context, config.clone())?;
    let mut recorder = context.recorder("weights");
    let weights = Parameters::zeros(&mut recorder, model.parameters(), "weights")?;
    recorder.submit()?;
    context.pool().reset_peaks();
    let shape = [1, tokens, config.attention().embed_dim()];
    let call = Call::new(AttentionShape::new(1, tokens)?);
    let mut recorder = context.recorder("step");
    let x = recorder.zeros("x", &shape, config.activations)?;
    let input = Input::Embeddings(&x);
    let num_parameters = model.parameters().num_elements() as u64;
    let mut means = 0;
    match training {
        None => {
            let _features = model.forward(&mut recorder, &weights, input, &call, false)?;
            recorder.submit()?;
        }
        Some(recompute) => {
            means = 8 * num_parameters;
            let gradients = model.zero_gradients(&mut recorder)?;
            let (features, saved) =
                model.forward_saving(&mut recorder, &weights, input, &call, None, recompute)?;
            let sets = [&weights, &gradients];
            model.backward(&mut recorder, sets, saved, &features, None)?;
            recorder.submit()?;
        }
    }
    let peak = context.pool().stats().requested_bytes.peak;
    Ok(((peak + means) as f64, num_parameters))
}

/// Pairs of a row and a key that it sees, of all heads, of the rows with an output among `own`.
fn pairs(geometry: &BranchGeometry, own: &Tokens) -> f64 {
    if own.is_empty() {
        return 0.0;
    }
    let Range { begin, end } = segments_of(geometry, own);
    let of = |segment| pairs_of_segment(geometry, segment, own);
    // Between the first and the last all segments are alike.
    match end - begin {
        0 => 0.0,
        1 => of(begin),
        2 => of(begin) + of(end - 1),
        all => of(begin) + f64::from(all - 2) * of(begin + 1) + of(end - 1),
    }
}

fn pairs_of_segment(geometry: &BranchGeometry, segment: u32, own: &Tokens) -> f64 {
    let rate = u64::from(geometry.dilation_rate);
    let heads = geometry.head_begin..geometry.head_begin + geometry.head_count;
    let of_head = |head| {
        let row_zero = u64::from(segment) * u64::from(geometry.output_stride)
            + u64::from(geometry.offset(head));
        let written = u64::from(geometry.written_rows(segment, head));
        let before = |token: u64| token.saturating_sub(row_zero).div_ceil(rate).min(written);
        let (first, end) = (before(own.start), before(own.end));
        let keys = u64::from(geometry.real_keys(segment, head));
        if !geometry.causal {
            return (end - first) as f64 * keys as f64;
        }
        // Row t sees t + 1 keys, as long as there are so many.
        let up_to = |rows: u64| {
            let growing = rows.min(keys) as f64;
            growing * (growing + 1.0) / 2.0 + rows.saturating_sub(keys) as f64 * keys as f64
        };
        up_to(end) - up_to(first)
    };
    heads.map(of_head).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DilatedAttentionConfig, Heads, Mask};

    fn attention() -> DilatedAttentionConfig {
        DilatedAttentionConfig::new(5, 4, &[4, 11, 64], &[1, 3, 7]).expect("valid")
    }

    const RATES: Rates = Rates {
        product_flop: 1e9,
        attention_flop: 1e9,
        host_bytes: 1e9,
        link_bytes: 1e9,
        link_latency: 1e-6,
    };

    #[test]
    fn pairs_are_those_of_a_walk_over_all_tokens() {
        let plain = attention();
        let partitioned = plain.clone().with_heads(Heads::Partitioned);
        for config in [plain.clone(), partitioned, plain.with_torchscale()] {
            for config in [config.clone().with_mask(Mask::Causal), config] {
                for (tokens, ranks) in [(1, 2), (13, 1), (70, 3), (71, 7), (200, 2)] {
                    for rank in 0..ranks {
                        let share = ShareOfRank::new(&config, tokens, ranks, rank);
                        let share = share.expect("a share");
                        for geometry in &share.geometries {
                            let heads =
                                geometry.head_begin..geometry.head_begin + geometry.head_count;
                            let mut expected = 0;
                            for token in share.own.clone() {
                                for head in heads.clone() {
                                    if let Some((segment, row)) =
                                        geometry.row_of_output(head, token as u32)
                                    {
                                        expected += geometry.visible_keys(segment, head, row);
                                    }
                                }
                            }
                            assert_eq!(
                                pairs(geometry, &share.own),
                                f64::from(expected),
                                "{config}: {tokens} tokens, rank {rank} of {ranks}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn one_rank_exchanges_nothing_and_more_divide_the_work() {
        let attention = DilatedAttentionConfig::new(4, 8, &[64, 4096], &[1, 16]).expect("valid");
        let config = LongNetConfig::encoder(attention, 2, 64);
        let caps = DeviceCaps::webgpu_defaults();
        for training in [None, Some(Recompute::Insides), Some(Recompute::Layers)] {
            let predictor = StepPredictor::new(&config, training, caps.clone()).expect("plans");
            let of = |ranks| predictor.predict(4096, ranks, &RATES).expect("predicts");
            let (one, four) = (of(1), of(4));
            assert_eq!((one.received_bytes, one.exchange_seconds), (0, 0.0));
            assert_eq!(one.efficiency, 1.0);
            for (one, four) in one.flop.iter().zip(four.flop) {
                assert_eq!(*one, 4.0 * four);
            }
            assert!(four.received_bytes > 0 && four.received_bytes < four.dense_bytes / 15);
            assert_eq!(four.reduced_bytes > 0, training.is_some());
            assert!(four.efficiency < 1.0 && four.device_bytes < one.device_bytes);
            assert!(predictor.predict(4096, 0, &RATES).is_err());
        }
    }
}
