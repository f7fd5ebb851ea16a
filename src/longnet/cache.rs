//! The cache of a decoder: keys and values of the tokens so far.
//!
//! A cache holds, for each layer, keys and values of all tokens as attention sees them (after norms and positions), in pooled
//! buffers that grow by doubling. xPos has one fixed centre here, since later queries must fit earlier keys; it cancels in
//! their products, so a step equals the row of a whole forward up to rounding.
//!
//! Where torchscale's rows move (its rates do not divide its lengths), the row of a token may take the query of an earlier
//! one: such models also keep their queries.

use std::sync::Arc;

use super::LongNet;
use crate::config::{AttentionShape, Mask};
use crate::contents::Contents;
use crate::device::{ByteRange, DType};
use crate::error::{Error, Result};
use crate::nn::ParameterList;
use crate::ops::{Positions, Rotations};
use crate::readback::Download;
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// Keys and values of the tokens so far, of one model and batch.
///
/// Steps are recorded like everything else: a step whose recording is dropped has not happened, and recordings that go on from
/// it are refused ([`Error::NotWritten`]). [`truncate`](Self::truncate) then takes the cache back to the length it had. Buffers that
/// it grew out of are kept for that until the recording which copied them has run.
#[derive(Clone, Debug)]
pub struct KvCache {
    pub(super) list: Arc<ParameterList>,
    pub(super) batch: usize,
    pub(super) len: usize,
    pub(super) capacity: usize,
    pub(super) layers: Vec<LayerCache>,
    pub(super) rotations: Option<Rotations>,
    /// Oldest first.
    outgrown: Vec<Outgrown>,
    /// Whether the recordings that computed the tokens from each number on were submitted, oldest first.
    computed: Vec<(usize, Arc<Contents>)>,
}

/// Buffers that were too small for more than `len` tokens.
#[derive(Clone, Debug)]
struct Outgrown {
    len: usize,
    capacity: usize,
    layers: Vec<LayerCache>,
    rotations: Option<Rotations>,
    /// Arrives when the recording that copied them has run, and never when it was dropped.
    copied: Arc<Download<f32>>,
}

#[derive(Clone, Debug)]
pub(super) struct LayerCache {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    /// Queries, where rows may take an earlier one.
    pub(super) q: Option<Tensor>,
    /// Keys and values of the encoder's output.
    pub(super) cross: Option<[Tensor; 2]>,
}

impl KvCache {
    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit before the cache grows.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens from `len` on. The encoder's output, if any, is kept unless nothing is left.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        // Larger buffers hold these tokens only if the recording that copied them has run; smaller ones do in any case.
        while let Some(smaller) = self.outgrown.pop_if(|smaller| self.len <= smaller.len) {
            self.capacity = smaller.capacity;
            self.layers = smaller.layers;
            self.rotations = smaller.rotations;
        }
        self.release_copied();
        self.computed.retain(|(first, _)| *first < self.len);
        if self.len == 0 {
            self.layers.iter_mut().for_each(|layer| layer.cross = None);
        }
    }

    /// Gives up the buffers whose tokens are known to be in larger ones.
    pub(super) fn release_copied(&mut self) {
        let copied = |download: &Download<f32>| download.is_ready() && download.wait().is_ok();
        self.outgrown.retain(|smaller| !copied(&smaller.copied));
    }

    /// What is recorded next reads the tokens so far.
    pub(super) fn reads(&mut self, recorder: &mut Recorder) {
        self.computed.retain(|(_, tokens)| !tokens.are_held());
        for (_, tokens) in &self.computed {
            recorder.needs(tokens);
        }
    }

    /// What was recorded last has computed the tokens from the last one on, to make `len`.
    pub(super) fn extend(&mut self, recorder: &mut Recorder, len: usize) {
        let tokens = Contents::new("cached tokens");
        recorder.wrote(&tokens, true);
        self.computed.push((self.len, tokens));
        self.len = len;
    }

    /// Keys and values of layer `layer`, (batch, capacity, H, D), of which the first [`len`](Self::len) tokens are set.
    pub fn layer(&self, layer: usize) -> Option<[&Tensor; 2]> {
        self.layers.get(layer).map(|layer| [&layer.k, &layer.v])
    }

    /// Rotations and positions of all tokens, for models with xPos.
    pub fn positions(&self, model: &LongNet) -> Result<Option<(&Rotations, Positions)>> {
        match &self.rotations {
            None => Ok(None),
            Some(rotations) => {
                let positions = model.config.decode_positions(0, self.capacity)?;
                Ok(Some((rotations, positions)))
            }
        }
    }
}

impl LongNet {
    /// A cache for `batch` sequences, with room for `capacity` tokens (it grows).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a model without causal mask; [`Error::InvalidShape`] for more tokens than kernels or the
    /// model's positions allow; the errors of leasing.
    pub fn new_cache(
        &self,
        recorder: &mut Recorder,
        batch: usize,
        capacity: usize,
    ) -> Result<KvCache> {
        self.expect_causal("decoding")?;
        let capacity = capacity.max(1);
        self.expect_decodable("capacity of the cache", capacity)?;
        AttentionShape::new(batch, capacity)?;
        let keeps_queries = self.config.rows_move();
        let mut layers = Vec::new();
        for _ in &self.layers {
            let mut tensor = |label| self.cache_tensor(recorder, label, batch, capacity);
            layers.push(LayerCache {
                k: tensor("cached k")?,
                v: tensor("cached v")?,
                q: if keeps_queries {
                    Some(tensor("cached q")?)
                } else {
                    None
                },
                cross: None,
            });
        }
        Ok(KvCache {
            list: self.list.clone(),
            batch,
            len: 0,
            capacity,
            layers,
            rotations: self.cache_rotations(recorder, capacity)?,
            outgrown: Vec::new(),
            computed: Vec::new(),
        })
    }

    /// Whether no token sees what follows it, which `what` depends on.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(crate) fn expect_causal(&self, what: &'static str) -> Result<()> {
        match self.config.attention().mask() {
            Mask::Causal => Ok(()),
            Mask::Full => Err(Error::InvalidConfig {
                what,
                given: "a model without causal mask".to_owned(),
                need: "one made by LongNetConfig::decoder: a token must not see those after it",
            }),
        }
    }

    /// Whether a cache may hold `len` tokens.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] with the largest number that it may hold.
    pub(super) fn expect_decodable(&self, what: &'static str, len: usize) -> Result<()> {
        let (limit, of) = self.config.max_decoded_tokens();
        match len <= limit {
            true => Ok(()),
            false => Err(Error::InvalidShape {
                what: what.into(),
                given: format!("{len} tokens"),
                need: format!("at most {limit}, {of}"),
            }),
        }
    }

    fn cache_tensor(
        &self,
        recorder: &mut Recorder,
        label: &'static str,
        batch: usize,
        capacity: usize,
    ) -> Result<Tensor> {
        let config = self.config.attention();
        let shape = [batch, capacity, config.num_heads(), config.head_dim()];
        recorder.empty(label, &shape, self.config.activations)
    }

    fn cache_rotations(
        &self,
        recorder: &mut Recorder,
        capacity: usize,
    ) -> Result<Option<Rotations>> {
        let Some(base) = self.config.xpos_scale_base else {
            return Ok(None);
        };
        self.config.decode_positions(0, capacity)?;
        let head_dim = self.config.attention().head_dim();
        Rotations::upload(recorder, head_dim, capacity, base).map(Some)
    }

    /// Makes room for `len` tokens.
    pub(super) fn grow(
        &self,
        recorder: &mut Recorder,
        cache: &mut KvCache,
        len: usize,
    ) -> Result<()> {
        if len <= cache.capacity {
            return Ok(());
        }
        let (most, _) = self.config.max_decoded_tokens();
        let capacity = len.checked_next_power_of_two().unwrap_or(len).min(most);
        let mut larger = self.new_cache(recorder, cache.batch, capacity)?;
        for (from, to) in cache.layers.iter_mut().zip(&mut larger.layers) {
            to.cross = from.cross.clone();
            let queries = from.q.iter().zip(&to.q);
            for (from, to) in [(&from.k, &to.k), (&from.v, &to.v)]
                .into_iter()
                .chain(queries)
            {
                self.copy_rows(
                    recorder,
                    (from, cache.capacity),
                    (to, capacity, 0),
                    cache.len,
                );
            }
        }
        larger.len = cache.len;
        let copied = recorder.zeros("cache grown", &[1], DType::F32)?;
        let smaller = Outgrown {
            len: cache.len,
            capacity: cache.capacity,
            layers: std::mem::take(&mut cache.layers),
            rotations: cache.rotations.take(),
            copied: Arc::new(recorder.download(&copied)?),
        };
        larger.computed = std::mem::take(&mut cache.computed);
        larger.outgrown = std::mem::take(&mut cache.outgrown);
        larger.outgrown.push(smaller);
        *cache = larger;
        Ok(())
    }

    /// Copies `len` rows of each item to another tensor, from row `first` of its items on.
    pub(super) fn copy_rows(
        &self,
        recorder: &mut Recorder,
        (from, from_len): (&Tensor, usize),
        (to, to_len, first): (&Tensor, usize, usize),
        len: usize,
    ) {
        let row = self.width() as u64 * from.dtype().bytes();
        for item in 0..from.shape()[0] as u64 {
            let range = ByteRange {
                offset: item * from_len as u64 * row,
                size: len as u64 * row,
            };
            let offset = (item * to_len as u64 + first as u64) * row;
            recorder.copy(from, range, to, offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DilatedAttentionConfig;
    use crate::config::MAX_TOKENS;
    use crate::context::Context;
    use crate::device::DeviceCaps;
    use crate::longnet::{Call, Input, LongNetConfig};
    use crate::nn::Parameters;

    fn config() -> LongNetConfig {
        let attention = DilatedAttentionConfig::dense(1, 4).expect("valid");
        LongNetConfig::decoder(attention, 1, 8)
    }

    #[test]
    fn a_cache_holds_no_more_tokens_than_there_can_be() {
        let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
        let refused = |config: LongNetConfig, batch, capacity| {
            let model = LongNet::new(&dry_run, config).expect("valid");
            let cache = model.new_cache(&mut dry_run.recorder("cache"), batch, capacity);
            let error = cache.expect_err("too many");
            assert!(matches!(error, Error::InvalidShape { .. }), "{error}");
            error.to_string()
        };
        for capacity in [MAX_TOKENS + 1, usize::MAX] {
            let told = format!(
                "capacity of the cache is {capacity} tokens; it must be at most 2147483647, "
            );
            assert!(refused(config(), 1, capacity).starts_with(&told));
        }
        assert!(refused(config(), 1 << 40, 1).starts_with("batch is "));
        let mut learned = config();
        learned.learned_positions = Some(100);
        assert!(refused(learned, 1, 101).contains("at most 100, the positions that"));
        let mut turned = config();
        turned.xpos_scale_base = Some(40.0);
        assert!(refused(turned, 1, 2561).contains("at most 2560, the positions of one centre"));
    }

    /// It doubles, but not beyond what the model has positions for.
    #[test]
    fn a_cache_grows_up_to_the_last_position() {
        let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
        let mut config = config();
        config.xpos_scale_base = Some(40.0);
        let model = LongNet::new(&dry_run, config).expect("valid");
        let mut recorder = dry_run.recorder("decode");
        let weights = Parameters::zeros(&mut recorder, model.parameters(), "weights");
        let weights = weights.expect("leases");
        let mut cache = model.new_cache(&mut recorder, 1, 1).expect("leases");
        for (count, len, capacity) in [(3, 3, 4), (2046, 2049, 2560), (511, 2560, 2560)] {
            let x = recorder
                .zeros("x", &[1, count, 4], DType::F32)
                .expect("leases");
            let call = Call::new(AttentionShape::new(1, count).expect("valid"));
            let input = Input::Embeddings(&x);
            let decoded = model.decode(&mut recorder, &weights, input, &call, &mut cache);
            decoded.expect("records");
            assert_eq!((cache.len(), cache.capacity()), (len, capacity));
        }
        let x = recorder.zeros("x", &[1, 1, 4], DType::F32).expect("leases");
        let call = Call::new(AttentionShape::new(1, 1).expect("valid"));
        let input = Input::Embeddings(&x);
        let error = model.decode(&mut recorder, &weights, input, &call, &mut cache);
        let error = error.expect_err("too many").to_string();
        assert!(
            error.starts_with("tokens of the cache is 2561 tokens; it must be at most 2560"),
            "{error}"
        );
        assert_eq!(cache.len(), 2560);
    }
}
