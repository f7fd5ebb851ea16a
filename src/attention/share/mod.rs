//! Attention of a sequence of which each rank of a group holds a share.
//!
//! ```text
//! segments within a share       as on one rank
//! segments on several ranks     their ranks exchange packed keys and values: of each head every rate-th token, and no others
//! backward                      each rank computes the gradients of the rows that it has; those of keys of other ranks are partial
//!                               sums, which go back in f32 and are added by the rank that has the keys, in the order of ranks
//! ```
//! The same inputs give the same bits in every run with as many ranks. With one rank, in f32, they are those of a call without ranks.
//!
//! In half precision, ranks exchange halves and compute in f32: results are rounded once.

mod backward;
mod bytes;
mod exchange;
mod forward;

use super::DilatedAttention;
use super::packed::{self, PackedKeys};
use crate::config::AttentionShape;
use crate::device::{DType, ElementFormat};
use crate::distributed::SequenceShare;
use crate::error::{Error, Result};
use crate::kernels::Kernel;
use crate::ops::convert;
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::packed_bytes;
use crate::plan::{ShareNeeds, SharePlan, Tokens};
use crate::recorder::Recorder;
use crate::tensor::Tensor;
pub use bytes::BranchExchange;
#[cfg(feature = "models")]
pub(crate) use bytes::ShareOfRank;
use exchange::{Layout, Own};

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
    /// The kernels that copy packed keys in a plan's dispatches.
    fn packing(&self, plan: &SharePlan, head_dim: u32, format: ElementFormat) -> Vec<Kernel> {
        let works = plan.works.iter();
        let kernels = works.flat_map(|work| packed::kernels(head_dim, format, &work.dispatches));
        kernels.collect()
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

    /// Sends what other ranks need of these tensors, and returns what they have sent.
    fn exchange(
        &self,
        recorder: &mut Recorder,
        share: &SequenceShare,
        ranks: &Ranks,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Vec<Vec<u8>>> {
        if !ranks.exchange() {
            return Ok(vec![Vec::new(); ranks.ranges.len()]);
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
        all_to_all(share, sends())
    }

    /// Uploads what has come from ranks.
    fn upload_of_ranks(
        &self,
        recorder: &mut Recorder,
        ranks: &Ranks,
        plan: &SharePlan,
        received: &[Vec<u8>],
        dtype: DType,
    ) -> Result<OfRanks> {
        let layout = self.layout(dtype);
        let needs = ranks.own_needs();
        let gathered = exchange::gather(&ranks.geometries, needs, &ranks.ranges, received, layout)?;
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
