//! The forward of a share.

use super::Ranks;
use crate::attention::{DilatedAttention, ForwardOutput, ForwardTensors};
use crate::device::DType;
use crate::distributed::SequenceShare;
use crate::error::Result;
use crate::kernels::attention_forward::ForwardVariant;
use crate::ops::convert;
use crate::plan::{SharePlan, plan_forward_of_share};
use crate::recorder::Recorder;
use crate::tensor::Tensor;

/// What a rank computes.
struct Forward {
    ranks: Ranks,
    variant: ForwardVariant,
    /// `None` for a share without tokens.
    plan: Option<SharePlan>,
}

impl DilatedAttention {
    /// Records the forward of a share: `q`, `k` and `v`, (1, tokens of this rank, H, D), are this rank's part of a sequence, and so are
    /// the results. All ranks of the share's group make this call.
    ///
    /// Where a segment lies on several ranks, the call submits what `recorder` has recorded, waits for it and for the other ranks, and
    /// records the rest anew.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and those of the [group](crate::distributed::Group): an error on one rank is one on all.
    pub fn forward_of_share(
        &self,
        recorder: &mut Recorder,
        share: &SequenceShare,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<ForwardOutput> {
        let dtype = q.dtype();
        self.expect_same(share, dtype)?;
        // What fails on one rank between two exchanges, the others get to know before they wait for it.
        let begun = self.begin_forward_of_share(recorder, share, [q, k, v]);
        let forward = share.group().agree(begun)?;
        let received = self.exchange(recorder, share, &forward.ranks, [q, k, v])?;
        let recorded = self.record_forward_of_share(recorder, &forward, [q, k, v], &received);
        share.group().agree(recorded)
    }

    /// All that comes before ranks wait for each other.
    fn begin_forward_of_share(
        &self,
        recorder: &Recorder,
        share: &SequenceShare,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Forward> {
        let ranks = Ranks::of(self, share)?;
        let shape = self.tensor_shape(1, ranks.own_len());
        self.expect(recorder, &[("q", q), ("k", k), ("v", v)], &shape, q.dtype())?;
        let variant = self.forward_choice(DType::F32)?.variant;
        let caps = self.context.caps_for(variant.format);
        let own = (&ranks.own, ranks.own_needs());
        let plan = match ranks.own.is_empty() {
            true => None,
            false => Some(plan_forward_of_share(
                &self.config,
                &ranks.shape,
                caps,
                variant,
                own,
            )?),
        };
        let mut kernels = vec![variant.into()];
        if let Some(plan) = &plan {
            kernels.extend(self.packing(plan, variant.head_dim, variant.format));
        }
        self.context.compile(&kernels)?;
        Ok(Forward {
            ranks,
            variant,
            plan,
        })
    }

    fn record_forward_of_share(
        &self,
        recorder: &mut Recorder,
        forward: &Forward,
        [q, k, v]: [&Tensor; 3],
        received: &[Vec<u8>],
    ) -> Result<ForwardOutput> {
        let (ranks, dtype) = (&forward.ranks, q.dtype());
        let shape = self.tensor_shape(1, ranks.own_len());
        let out = recorder.empty("out", &shape, DType::F32)?;
        let state_shape = [shape[0], shape[1], shape[2], 2];
        let softmax_state = recorder.empty("softmax_state", &state_shape, DType::F32)?;
        if forward.plan.as_ref().is_none_or(|plan| plan.clears) {
            recorder.clear(&out, out.whole());
            recorder.clear(&softmax_state, softmax_state.whole());
        }
        if let Some(plan) = &forward.plan {
            let of_ranks = self.upload_of_ranks(recorder, ranks, plan, received, dtype)?;
            let scratch = self.own_packed(recorder, plan, ["packed k", "packed v"])?;
            let [q, k, v] = self.wide(recorder, [q, k, v])?;
            for work in &plan.works {
                let of_window = |index: usize| &of_ranks.windows[index];
                let tensors = ForwardTensors {
                    q: work.queries.map_or(&q, |index| &of_ranks.queries[index]),
                    kv: [&k, &v],
                    packed: work.window.map_or(&scratch, of_window),
                    out: &out,
                    softmax_state: &softmax_state,
                };
                let (shape, dispatches) = (&ranks.shape, &work.dispatches);
                let variant = forward.variant;
                self.record_forward_dispatches(recorder, shape, variant, dispatches, &tensors)?;
            }
        }
        let out = convert(recorder, &out, dtype)?;
        Ok(ForwardOutput { out, softmax_state })
    }
}
