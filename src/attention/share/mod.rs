//! Attention of a sequence of which each rank of a group holds a share.
//!
//! ```text
//! segments within a share       as on one rank
//! segments on several ranks     their ranks exchange packed keys and values: of each head every rate-th token, and no others
//! backward                      each rank computes the gradients of the rows that it has; those of keys of other ranks are partial
//!                               sums, which go back in f32 and are added by the rank that has the keys, in the order of ranks
//! ```
//! The same inputs give the same bits in every run with as many ranks. With one rank they are those of a call without ranks.
//!
//! In half precision, ranks exchange halves and compute in f32: results are rounded once.

mod bytes;
mod exchange;

use super::backward::BackwardTensors;
use super::packed::{self, PackedKeys};
use super::{DilatedAttention, ForwardOutput, ForwardTensors, Gradients};
use crate::config::AttentionShape;
use crate::device::DType;
use crate::distributed::SequenceShare;
use crate::error::{Error, Result};
use crate::kernels::Kernel;
use crate::ops::{ScaledAdd, convert};
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::packed_bytes;
use crate::plan::{ShareNeeds, SharePlan, Tokens, plan_backward_of_share, plan_forward_of_share};
use crate::recorder::Recorder;
use crate::tensor::Tensor;
pub use bytes::BranchExchange;
#[cfg(feature = "models")]
pub(crate) use bytes::ShareOfRank;
use exchange::{Gathered, Layout, Own, Partials};

/// The sequence of a share, and who has and needs what.
struct Ranks {
    shape: AttentionShape,
    geometries: Vec<BranchGeometry>,
    /// Of each rank.
    ranges: Vec<Tokens>,
    needs: Vec<ShareNeeds>,
    /// This rank, and its tokens.
    rank: usize,
    own: Tokens,
}

impl Ranks {
    fn of(attention: &DilatedAttention, share: &SequenceShare) -> Result<Self> {
        let shape = AttentionShape::new(1, share.tokens())?;
        let geometries = bytes::geometries_of(&attention.config, share.tokens())?;
        let range = |rank| {
            let range = share.range_of(rank);
            range.start as u64..range.end as u64
        };
        let ranges: Vec<Tokens> = (0..share.group().size()).map(range).collect();
        Ok(Self {
            needs: ranges
                .iter()
                .map(|range| ShareNeeds::of(&geometries, range))
                .collect(),
            rank: share.group().rank(),
            own: ranges[share.group().rank()].clone(),
            shape,
            geometries,
            ranges,
        })
    }

    fn own_needs(&self) -> &ShareNeeds {
        &self.needs[self.rank]
    }

    fn own_len(&self) -> usize {
        (self.own.end - self.own.start) as usize
    }

    /// The number of this rank's need of the keys of a segment, and its branch.
    fn need_of(&self, branch: u32, segment: u32) -> Result<(usize, &BranchGeometry)> {
        let mut needs = self.own_needs().keys.iter();
        let index = needs.position(|need| (need.branch, need.segment) == (branch, segment));
        let mut geometries = self.geometries.iter();
        let geometry = geometries.find(|geometry| geometry.branch == branch);
        // A plan has windows of its needs alone.
        index.zip(geometry).ok_or_else(|| Error::InvalidShape {
            what: "plan of a share".into(),
            given: format!("a window of branch {branch}, segment {segment}"),
            need: "windows of what is needed".to_owned(),
        })
    }

    /// Whether any rank needs anything of another. All ranks agree about it.
    fn exchange(&self) -> bool {
        self.needs.iter().any(|needs| !needs.keys.is_empty())
    }
}

/// Rows that have come from ranks, on the device in f32.
#[derive(Default)]
struct OfRanks {
    /// Packed keys and values, for each window of the plan.
    windows: Vec<PackedKeys>,
    /// For each need of queries.
    queries: Vec<Tensor>,
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
        let local = || {
            let ranks = Ranks::of(self, share)?;
            let shape = self.tensor_shape(1, ranks.own_len());
            self.expect(recorder, &[("q", q), ("k", k), ("v", v)], &shape, dtype)?;
            let variant = self.forward_choice(DType::F32)?.variant;
            let caps = self.context.caps_for(variant.format);
            let plan = match ranks.own.is_empty() {
                true => None,
                false => Some(plan_forward_of_share(
                    &self.config,
                    &ranks.shape,
                    caps,
                    variant,
                    (&ranks.own, ranks.own_needs()),
                )?),
            };
            let packing = plan.iter().flat_map(|plan| &plan.works);
            let packing = packing.flat_map(|work| {
                packed::kernels(variant.head_dim, variant.format, &work.dispatches)
            });
            let kernels: Vec<Kernel> = packing.chain([variant.into()]).collect();
            self.context.compile(&kernels)?;
            Ok((ranks, variant, plan))
        };
        // An error here is told to the other ranks by the next call.
        let (ranks, variant, plan) = share.group().agree(local())?;
        let gathered = self.exchange(recorder, share, &ranks, [q, k, v])?;
        let shape = self.tensor_shape(1, ranks.own_len());
        let out = recorder.empty("out", &shape, DType::F32)?;
        let state_shape = [shape[0], shape[1], shape[2], 2];
        let softmax_state = recorder.empty("softmax_state", &state_shape, DType::F32)?;
        let Some(plan) = plan else {
            recorder.clear(&out, out.whole());
            recorder.clear(&softmax_state, softmax_state.whole());
            let out = convert(recorder, &out, dtype)?;
            return Ok(ForwardOutput { out, softmax_state });
        };
        if plan.clears {
            recorder.clear(&out, out.whole());
            recorder.clear(&softmax_state, softmax_state.whole());
        }
        let of_ranks = self.upload_of_ranks(recorder, &ranks, &plan, gathered, dtype)?;
        let scratch = self.own_packed(recorder, &plan, ["packed k", "packed v"])?;
        let [q, k, v] = self.wide(recorder, [q, k, v])?;
        for work in &plan.works {
            let tensors = ForwardTensors {
                q: work.queries.map_or(&q, |index| &of_ranks.queries[index]),
                kv: [&k, &v],
                packed: work
                    .window
                    .map_or(&scratch, |index| &of_ranks.windows[index]),
                out: &out,
                softmax_state: &softmax_state,
            };
            self.record_forward_dispatches(
                recorder,
                &ranks.shape,
                variant,
                &work.dispatches,
                &tensors,
            )?;
        }
        let out = convert(recorder, &out, dtype)?;
        Ok(ForwardOutput { out, softmax_state })
    }

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
        let [q, k, v] = inputs;
        let dtype = q.dtype();
        self.expect_same(share, dtype)?;
        let local = || {
            let ranks = Ranks::of(self, share)?;
            let shape = self.tensor_shape(1, ranks.own_len());
            let tensors = [("q", q), ("k", k), ("v", v), ("dout", dout)];
            self.expect(recorder, &tensors, &shape, dtype)?;
            let state = [("softmax_state", softmax_state)];
            let state_shape = [shape[0], shape[1], shape[2], 2];
            self.expect(recorder, &state, &state_shape, DType::F32)?;
            let variant = self.backward_choice(DType::F32)?.variant;
            let caps = self.context.caps_for(variant.format);
            let plan = match ranks.own.is_empty() {
                true => None,
                false => Some(plan_backward_of_share(
                    &self.config,
                    &ranks.shape,
                    caps,
                    variant,
                    (&ranks.own, ranks.own_needs()),
                )?),
            };
            let packing = plan.iter().flat_map(|(plan, _)| &plan.works);
            let packing = packing.flat_map(|work| {
                packed::kernels(variant.head_dim, variant.format, &work.dispatches)
            });
            let kernels = packing.chain(super::backward::kernels_of_passes(variant));
            self.context.compile(&kernels.collect::<Vec<_>>())?;
            Ok((ranks, variant, plan))
        };
        let (ranks, variant, plan) = share.group().agree(local())?;
        let gathered = self.exchange(recorder, share, &ranks, inputs)?;
        let shape = self.tensor_shape(1, ranks.own_len());
        let [dq, dk, dv] =
            ["dq", "dk", "dv"].map(|label| recorder.zeros(label, &shape, DType::F32));
        let gradients = [dq?, dk?, dv?];
        let mut windows = Vec::new();
        let mut queries = Vec::new();
        if let Some((plan, weights_bytes)) = &plan {
            let row_stats_shape = [&shape[..3], &[4]].concat();
            let row_stats = recorder.empty("row statistics", &row_stats_shape, DType::F32)?;
            if plan.clears {
                recorder.clear(&row_stats, row_stats.whole());
            }
            let of_ranks = self.upload_of_ranks(recorder, &ranks, plan, gathered, dtype)?;
            for window in &of_ranks.windows {
                windows.push(window.zeros_like(recorder, ["packed dk", "packed dv"])?);
            }
            for tensor in &of_ranks.queries {
                queries.push(recorder.zeros("dq of ranks", tensor.shape(), DType::F32)?);
            }
            let scratch = self.own_packed(recorder, plan, ["packed k", "packed v"])?;
            let scratch_gradients = self.own_packed(recorder, plan, ["packed dk", "packed dv"])?;
            // Fits in a usize: at most what a binding covers.
            let weights = (*weights_bytes > 0)
                .then(|| {
                    let count = *weights_bytes as usize / 4;
                    recorder.undivided("weights", &[count], DType::F32)
                })
                .transpose()?;
            let [q, k, v] = self.wide(recorder, inputs)?;
            let dout = convert(recorder, dout, DType::F32)?;
            let [dq, dk, dv] = &gradients;
            for work in &plan.works {
                let (own_q, own_dq) = (&q, dq);
                let (q, dq) = work.queries.map_or((own_q, own_dq), |index| {
                    (&of_ranks.queries[index], &queries[index])
                });
                let own = (&scratch, &scratch_gradients);
                let (packed, packed_gradients) = work
                    .window
                    .map_or(own, |index| (&of_ranks.windows[index], &windows[index]));
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
                self.record_backward_dispatches(
                    recorder,
                    &ranks.shape,
                    variant,
                    &work.dispatches,
                    &tensors,
                )?;
            }
        }
        if ranks.exchange() {
            let plan = plan.as_ref().map(|(plan, _)| plan);
            let partials = self.partials(recorder, &ranks, plan, (&windows, &queries));
            self.add_partials(recorder, share, &ranks, partials, &gradients)?;
        }
        let [dq, dk, dv] = gradients
            .each_ref()
            .map(|tensor| convert(recorder, tensor, dtype));
        Ok(Gradients {
            dq: dq?,
            dk: dk?,
            dv: dv?,
        })
    }

    fn expect_same(&self, share: &SequenceShare, dtype: DType) -> Result<()> {
        share.expect_same(vec![
            ("attention", format!("{:?}", self.config)),
            ("type of q", dtype.to_string()),
        ])
    }

    fn wide(&self, recorder: &mut Recorder, tensors: [&Tensor; 3]) -> Result<[Tensor; 3]> {
        let [q, k, v] = tensors.map(|tensor| convert(recorder, tensor, DType::F32));
        Ok([q?, k?, v?])
    }

    /// Tensors for packed keys of the share's own, where its dispatches pack any.
    fn own_packed(
        &self,
        recorder: &mut Recorder,
        plan: &SharePlan,
        labels: [&'static str; 2],
    ) -> Result<PackedKeys> {
        let own = plan.works.iter().filter(|work| work.window.is_none());
        let bytes = packed_bytes(own.flat_map(|work| &work.dispatches));
        PackedKeys::lease(recorder, labels, bytes, DType::F32)
    }

    fn layout(&self, dtype: DType) -> Layout {
        Layout {
            num_heads: self.config.num_heads(),
            head_bytes: self.config.head_dim() * dtype.bytes() as usize,
        }
    }

    /// Sends what other ranks need of these tensors, and gets what this one needs.
    fn exchange(
        &self,
        recorder: &mut Recorder,
        share: &SequenceShare,
        ranks: &Ranks,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Gathered> {
        if !ranks.exchange() {
            return Ok(Gathered {
                keys: Vec::new(),
                queries: Vec::new(),
            });
        }
        let layout = self.layout(q.dtype());
        let mut sends = || -> Result<Vec<Vec<u8>>> {
            let needs_queries = ranks.needs.iter().any(|needs| !needs.queries.is_empty());
            let mut start = |tensor: &Tensor| recorder.download_bytes(tensor);
            let (k, v) = (start(k)?, start(v)?);
            let q = needs_queries.then(|| start(q)).transpose()?;
            recorder.flush()?;
            let (k, v) = (k.wait()?, v.wait()?);
            let q = q.map_or(Ok(Vec::new()), |q| q.wait())?;
            let own = Own {
                tokens: ranks.own.clone(),
                q: &q,
                kv: [&k, &v],
            };
            let of = |needs| exchange::rows_for(&ranks.geometries, needs, &own, layout);
            ranks.needs.iter().map(of).collect()
        };
        let received = all_to_all(share, sends())?;
        exchange::gather(
            &ranks.geometries,
            ranks.own_needs(),
            &ranks.ranges,
            &received,
            layout,
        )
    }

    /// Uploads what has come from ranks.
    fn upload_of_ranks(
        &self,
        recorder: &mut Recorder,
        ranks: &Ranks,
        plan: &SharePlan,
        gathered: Gathered,
        dtype: DType,
    ) -> Result<OfRanks> {
        let layout = self.layout(dtype);
        let mut of_ranks = OfRanks::default();
        let mut upload = |label: &'static str, shape: &[usize], bytes: &[u8], undivided: bool| {
            let tensor = match undivided {
                true => recorder.undivided(label, shape, dtype)?,
                false => recorder.empty(label, shape, dtype)?,
            };
            recorder.write_bytes(&tensor, bytes)?;
            convert(recorder, &tensor, DType::F32)
        };
        for window in &plan.windows {
            let (index, geometry) = ranks.need_of(window.branch, window.segment)?;
            let first = window.rows.begin - ranks.own_needs().keys[index].rows.begin;
            let row_bytes = geometry.head_count as usize * layout.head_bytes;
            let begin = first as usize * row_bytes;
            let bytes = window.rows.len() as usize * row_bytes;
            let shape = [bytes / dtype.bytes() as usize];
            let [k, v] = gathered.keys[index].each_ref();
            let k = upload("packed k", &shape, &k[begin..][..bytes], true)?;
            let v = upload("packed v", &shape, &v[begin..][..bytes], true)?;
            of_ranks.windows.push(PackedKeys::of([k, v]));
        }
        for rows in &gathered.queries {
            let tokens = rows.len() / (layout.num_heads * layout.head_bytes);
            let shape = self.tensor_shape(1, tokens);
            of_ranks
                .queries
                .push(upload("q of ranks", &shape, rows, false)?);
        }
        Ok(of_ranks)
    }

    /// The gradients of what this rank has got from others.
    fn partials(
        &self,
        recorder: &mut Recorder,
        ranks: &Ranks,
        plan: Option<&SharePlan>,
        (windows, queries): (&[PackedKeys], &[Tensor]),
    ) -> Result<Partials> {
        let mut partials = Partials {
            keys: Vec::new(),
            queries: Vec::new(),
        };
        let mut downloads = Vec::new();
        for window in windows {
            let [dk, dv] = window.tensors().ok_or_else(|| Error::InvalidShape {
                what: "window of packed keys".into(),
                given: "empty".to_owned(),
                need: "one with keys".to_owned(),
            })?;
            downloads.push([recorder.download::<f32>(dk)?, recorder.download::<f32>(dv)?]);
        }
        let of_queries: Result<Vec<_>> = queries
            .iter()
            .map(|tensor| recorder.download::<f32>(tensor))
            .collect();
        let of_queries = of_queries?;
        recorder.flush()?;
        let Some(plan) = plan else {
            return Ok(partials);
        };
        let head_dim = self.config.head_dim();
        for need in &ranks.own_needs().keys {
            let (_, geometry) = ranks.need_of(need.branch, need.segment)?;
            let count = exchange::packed_heads(geometry, need.rows) * head_dim;
            partials
                .keys
                .push([exchange::zeros(count)?, exchange::zeros(count)?]);
        }
        for (window, downloads) in plan.windows.iter().zip(downloads) {
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
        Ok(partials)
    }

    /// Sends the gradients of what came from other ranks back to them, and adds those that come from them.
    fn add_partials(
        &self,
        recorder: &mut Recorder,
        share: &SequenceShare,
        ranks: &Ranks,
        partials: Result<Partials>,
        gradients: &[Tensor; 3],
    ) -> Result<()> {
        let layout = self.layout(DType::F32);
        let own = ranks.own_needs();
        let sends = partials.and_then(|partials| {
            let of =
                |range| exchange::partials_for(&ranks.geometries, own, &partials, range, layout);
            ranks.ranges.iter().map(of).collect()
        });
        let received = all_to_all(share, sends)?;
        let sums = exchange::sum(
            &ranks.geometries,
            &ranks.needs,
            &ranks.own,
            &received,
            layout,
        )?;
        for (sum, to) in sums.iter().zip(gradients) {
            if sum.iter().any(|value| *value != 0.0) {
                let sum = recorder.upload("gradients of ranks", to.shape(), sum)?;
                ScaledAdd::new(sum.matrix(), 1.0).add(recorder, to.matrix(), 1.0)?;
            }
        }
        Ok(())
    }
}

/// Exchanges what this rank sends to each.
fn all_to_all(share: &SequenceShare, sends: Result<Vec<Vec<u8>>>) -> Result<Vec<Vec<u8>>> {
    let slices = sends.as_ref().map_err(Error::clone);
    let slices = slices.map(|sends| sends.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut received = Vec::new();
    let slices = slices.as_ref().map_err(Error::clone);
    share
        .group()
        .all_to_all(slices.map(Vec::as_slice), &mut received)?;
    Ok(received)
}
