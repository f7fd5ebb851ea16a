//! The backward of a share.

use super::exchange::{self, Partials};
use super::{Ranks, all_to_all};
use crate::attention::backward::{BackwardTensors, kernels_of_passes};
use crate::attention::packed::PackedKeys;
use crate::attention::{DilatedAttention, Gradients};
use crate::device::DType;
use crate::distributed::SequenceShare;
use crate::error::{Error, Result};
use crate::kernels::attention_backward::BackwardVariant;
use crate::ops::{ScaledAdd, convert};
use crate::plan::{SharePlan, plan_backward_of_share};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// What a rank computes.
struct Backward {
    ranks: Ranks,
    variant: BackwardVariant,
    /// The plan, and bytes of the largest buffer of weights; `None` for a share without tokens.
    plan: Option<(SharePlan, u64)>,
}

/// Gradients, in f32.
struct Recorded {
    /// Of this rank's queries, keys and values.
    own: [Tensor; 3],
    /// Of packed keys and values, for each window of the plan.
    windows: Vec<PackedKeys>,
    /// For each need of queries.
    queries: Vec<Tensor>,
}

impl DilatedAttention {
    /// Records the gradients of a [`forward_of_share`](Self::forward_of_share): `inputs` are its q, k and v, `softmax_state` is the
    /// state that it returned, and `dout` is the gradient of its output, all of this rank's tokens. All ranks make this call.
    ///
    /// It submits what `recorder` has recorded as the forward does, twice.
    ///
    /// # Errors
    /// As [`forward_of_share`](Self::forward_of_share).
    pub fn backward_of_share(
        &self,
        recorder: &mut Recorder,
        share: &SequenceShare,
        inputs: [&Tensor; 3],
        softmax_state: &Tensor,
        dout: &Tensor,
    ) -> Result<Gradients> {
        let dtype = inputs[0].dtype();
        self.expect_same(share, dtype)?;
        // As of the forward.
        let begun = self.begin_backward_of_share(recorder, share, inputs, softmax_state, dout);
        let backward = share.group().agree(begun)?;
        let ranks = &backward.ranks;
        let received = self.exchange(recorder, share, ranks, inputs)?;
        let tensors = (inputs, softmax_state, dout);
        let recorded = self.record_backward_of_share(recorder, &backward, tensors, &received);
        let added = match ranks.exchange() {
            false => recorded.map(|recorded| recorded.own),
            true => {
                let sends = recorded.as_ref().map_err(Error::clone);
                let sends = sends.and_then(|recorded| self.partials(recorder, &backward, recorded));
                let received = all_to_all(share, sends)?;
                recorded.and_then(|recorded| {
                    self.add_partials(recorder, ranks, &received, &recorded.own)?;
                    Ok(recorded.own)
                })
            }
        };
        let gradients = added.and_then(|own| {
            let [dq, dk, dv] = own.map(|tensor| convert(recorder, &tensor, dtype));
            Ok(Gradients {
                dq: dq?,
                dk: dk?,
                dv: dv?,
            })
        });
        share.group().agree(gradients)
    }

    /// All that comes before ranks wait for each other.
    fn begin_backward_of_share(
        &self,
        recorder: &Recorder,
        share: &SequenceShare,
        [q, k, v]: [&Tensor; 3],
        softmax_state: &Tensor,
        dout: &Tensor,
    ) -> Result<Backward> {
        let ranks = Ranks::of(self, share)?;
        let shape = self.tensor_shape(1, ranks.own_len());
        let tensors = [("q", q), ("k", k), ("v", v), ("dout", dout)];
        self.expect(recorder, &tensors, &shape, q.dtype())?;
        let state = [("softmax_state", softmax_state)];
        let state_shape = [shape[0], shape[1], shape[2], 2];
        self.expect(recorder, &state, &state_shape, DType::F32)?;
        let variant = self.backward_choice(DType::F32)?.variant;
        let caps = self.context.caps_for(variant.format);
        let own = (&ranks.own, ranks.own_needs());
        let plan = match ranks.own.is_empty() {
            true => None,
            false => Some(plan_backward_of_share(
                &self.config,
                &ranks.shape,
                caps,
                variant,
                own,
            )?),
        };
        let mut kernels = kernels_of_passes(variant);
        if let Some((plan, _)) = &plan {
            kernels.extend(self.packing(plan, variant.head_dim, variant.format));
        }
        self.context.compile(&kernels)?;
        Ok(Backward {
            ranks,
            variant,
            plan,
        })
    }

    fn record_backward_of_share(
        &self,
        recorder: &mut Recorder,
        backward: &Backward,
        (inputs, softmax_state, dout): ([&Tensor; 3], &Tensor, &Tensor),
        received: &[Vec<u8>],
    ) -> Result<Recorded> {
        let (ranks, dtype) = (&backward.ranks, dout.dtype());
        let shape = self.tensor_shape(1, ranks.own_len());
        let [dq, dk, dv] =
            ["dq", "dk", "dv"].map(|label| recorder.zeros(label, &shape, DType::F32));
        let mut recorded = Recorded {
            own: [dq?, dk?, dv?],
            windows: Vec::new(),
            queries: Vec::new(),
        };
        let Some((plan, weights_bytes)) = &backward.plan else {
            return Ok(recorded);
        };
        let row_stats_shape = [&shape[..3], &[4]].concat();
        let row_stats = recorder.empty("row statistics", &row_stats_shape, DType::F32)?;
        if plan.clears {
            recorder.clear(&row_stats, row_stats.whole());
        }
        let of_ranks = self.upload_of_ranks(recorder, ranks, plan, received, dtype)?;
        for window in &of_ranks.windows {
            let zeros = window.zeros_like(recorder, ["packed dk", "packed dv"])?;
            recorded.windows.push(zeros);
        }
        for tensor in &of_ranks.queries {
            let zeros = recorder.zeros("dq of ranks", tensor.shape(), DType::F32)?;
            recorded.queries.push(zeros);
        }
        let scratch = self.own_packed(recorder, plan, ["packed k", "packed v"])?;
        let scratch_gradients = self.own_packed(recorder, plan, ["packed dk", "packed dv"])?;
        // Fits in a usize: at most what a binding covers.
        let weights = (*weights_bytes > 0)
            .then(|| recorder.undivided("weights", &[*weights_bytes as usize / 4], DType::F32))
            .transpose()?;
        let [own_q, k, v] = self.wide(recorder, inputs)?;
        let dout = convert(recorder, dout, DType::F32)?;
        let [own_dq, dk, dv] = &recorded.own;
        for work in &plan.works {
            let (q, dq) = work.queries.map_or((&own_q, own_dq), |index| {
                (&of_ranks.queries[index], &recorded.queries[index])
            });
            let own = (&scratch, &scratch_gradients);
            let (packed, packed_gradients) = work.window.map_or(own, |index| {
                (&of_ranks.windows[index], &recorded.windows[index])
            });
            let tensors = BackwardTensors {
                inputs: [q, &k, &v],
                dout: &dout,
                softmax_state,
                row_stats: &row_stats,
                gradients: [dq, dk, dv],
                packed,
                packed_gradients,
                weights: weights.as_ref(),
            };
            let (shape, dispatches) = (&ranks.shape, &work.dispatches);
            let variant = backward.variant;
            self.record_backward_dispatches(recorder, shape, variant, dispatches, &tensors)?;
        }
        Ok(recorded)
    }

    /// The gradients of what this rank has got from others, for each of them.
    fn partials(
        &self,
        recorder: &mut Recorder,
        backward: &Backward,
        recorded: &Recorded,
    ) -> Result<Vec<Vec<u8>>> {
        let ranks = &backward.ranks;
        let mut downloads = Vec::new();
        for [dk, dv] in recorded.windows.iter().filter_map(PackedKeys::tensors) {
            let of_keys = recorder.download::<f32>(dk)?;
            downloads.push([of_keys, recorder.download::<f32>(dv)?]);
        }
        let of_queries = recorded.queries.iter();
        let of_queries: Result<Vec<_>> = of_queries
            .map(|tensor| recorder.download::<f32>(tensor))
            .collect();
        let of_queries = of_queries?;
        recorder.flush()?;
        let mut partials = Partials {
            keys: Vec::new(),
            queries: Vec::new(),
        };
        let head_dim = self.config.head_dim();
        for need in &ranks.own_needs().keys {
            let (_, geometry) = ranks.need_of(need.branch, need.segment)?;
            let count = exchange::packed_heads(geometry, need.rows) * head_dim;
            let zeros = [exchange::zeros(count)?, exchange::zeros(count)?];
            partials.keys.push(zeros);
        }
        let windows = backward.plan.iter().flat_map(|(plan, _)| &plan.windows);
        for (window, downloads) in windows.zip(downloads) {
            let (index, geometry) = ranks.need_of(window.branch, window.segment)?;
            let first = window.rows.begin - ranks.own_needs().keys[index].rows.begin;
            let begin = first as usize * geometry.head_count as usize * head_dim;
            for (to, download) in partials.keys[index].iter_mut().zip(downloads) {
                let values = download.wait()?;
                to[begin..][..values.len()].copy_from_slice(&values);
            }
        }
        for download in of_queries {
            partials.queries.push(download.wait()?);
        }
        let (own, layout) = (ranks.own_needs(), self.layout(DType::F32));
        let of_rank =
            |range| exchange::partials_for(&ranks.geometries, own, &partials, range, layout);
        ranks.ranges.iter().map(of_rank).collect()
    }

    /// Adds what all ranks have computed of this rank's gradients.
    fn add_partials(
        &self,
        recorder: &mut Recorder,
        ranks: &Ranks,
        received: &[Vec<u8>],
        gradients: &[Tensor; 3],
    ) -> Result<()> {
        let layout = self.layout(DType::F32);
        let (geometries, needs) = (&ranks.geometries, &ranks.needs);
        let sums = exchange::sum(geometries, needs, &ranks.own, received, layout)?;
        for (sum, to) in sums.iter().zip(gradients) {
            // Of queries there are none but where outputs lie behind them.
            if sum.iter().any(|value| *value != 0.0) {
                let sum = recorder.upload("gradients of ranks", to.shape(), sum)?;
                ScaledAdd::new(sum.matrix(), 1.0).add(recorder, to.matrix(), 1.0)?;
            }
        }
        Ok(())
    }
}
