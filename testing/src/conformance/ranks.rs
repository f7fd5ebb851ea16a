//! Calls over whole batches on one device, or item after item over ranks: threads that have a device and a share of the tokens each.
//! Either way the results are those of the batch.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dilated_attention::distributed::{Group, SequenceShare, in_process};
use dilated_attention::longnet::Call;
use dilated_attention::nn::{ParameterList, Parameters};
use dilated_attention::testing::Kernel;
use dilated_attention::{AttentionShape, Context, Recorder, Tensor};

use super::attention::Engine;

/// Time-out of each exchange. Kernels of one rank may be compiled meanwhile, on a software driver.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A context for each rank.
pub struct Ranks {
    contexts: Vec<Context>,
}

impl Ranks {
    /// As many ranks as contexts, each with a device of its own.
    pub fn new(contexts: Vec<Context>) -> Self {
        Self { contexts }
    }

    /// What `work` returns on each rank, in order.
    pub fn run<T: Send>(
        &self,
        work: impl Fn(&Arc<Group>, &Context) -> Result<T, String> + Sync,
    ) -> Result<Vec<T>, String> {
        let groups = in_process(self.contexts.len(), TIMEOUT);
        let ended: Vec<_> = thread::scope(|scope| {
            let work = &work;
            let start = |(group, context)| scope.spawn(move || work(&Arc::new(group), context));
            let threads: Vec<_> = groups.into_iter().zip(&self.contexts).map(start).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let (mut results, mut errors) = (Vec::new(), Vec::new());
        for (rank, ended) in ended.into_iter().enumerate() {
            match ended.unwrap_or_else(|_| Err("panicked; the message is on stderr".to_owned())) {
                Ok(result) => results.push(result),
                Err(error) => errors.push(format!("rank {rank}: {error}")),
            }
        }
        match errors.is_empty() {
            true => Ok(results),
            false => Err(errors.join("; ")),
        }
    }

    /// Whether every rank has given all of its buffers back to its pool.
    pub fn expect_idle(&self) -> Result<(), String> {
        for (rank, context) in self.contexts.iter().enumerate() {
            context
                .wait()
                .map_err(|error| format!("rank {rank}: {error}"))?;
            let leases = context.pool().stats().leases.current;
            if leases > 0 {
                return Err(format!("the pool of rank {rank} has lent {leases} buffers"));
            }
        }
        Ok(())
    }
}

/// What one call computes of a batch: tokens of items.
pub struct Part {
    /// Batch and lengths of the call.
    pub shape: AttentionShape,
    /// The sequence of which these are a rank's tokens.
    pub share: Option<SequenceShare>,
    /// Tokens of an item of the batch.
    seq_len: usize,
    items: Range<usize>,
    tokens: Range<usize>,
}

impl Part {
    /// All of a batch.
    pub fn whole(shape: &AttentionShape) -> Self {
        Self {
            shape: shape.clone(),
            share: None,
            seq_len: shape.seq_len(),
            items: 0..shape.batch(),
            tokens: 0..shape.seq_len(),
        }
    }

    /// Some tokens of each item of a batch.
    pub fn of_tokens(batch: &AttentionShape, tokens: Range<usize>) -> Result<Self, String> {
        let shape = AttentionShape::new(batch.batch(), tokens.len());
        Ok(Self {
            shape: shape.map_err(|error| error.to_string())?,
            tokens,
            ..Self::whole(batch)
        })
    }

    /// A rank's share of an item, which has its valid tokens alone.
    fn of_item(batch: &AttentionShape, item: usize, group: &Arc<Group>) -> Result<Self, String> {
        let share = SequenceShare::new(Arc::clone(group), batch.valid_len(item));
        let shape = AttentionShape::new(1, share.range().len());
        Ok(Self {
            shape: shape.map_err(|error| error.to_string())?,
            seq_len: batch.seq_len(),
            items: item..item + 1,
            tokens: share.range(),
            share: Some(share),
        })
    }

    /// The part's rows of a tensor of the batch with `width` elements a token.
    pub fn cut<T: Copy>(&self, tensor: &[T], width: usize) -> Vec<T> {
        let rows = |item: usize| {
            let first = item * self.seq_len;
            &tensor[(first + self.tokens.start) * width..(first + self.tokens.end) * width]
        };
        self.items.clone().flat_map(rows).copied().collect()
    }

    /// (items, tokens, `row`): the shape of a tensor of the part.
    pub fn dims(&self, row: &[usize]) -> Vec<usize> {
        [&[self.items.len(), self.tokens.len()], row].concat()
    }

    /// The part as a model is called with it.
    pub fn call(&self) -> Call {
        let mut call = Call::new(self.shape.clone());
        call.share = self.share.clone();
        call
    }

    /// Position of the first token, and number of tokens of the sequence.
    pub fn place(&self) -> (usize, usize) {
        let whole = (0, self.seq_len);
        let of = |share: &SequenceShare| (share.range().start, share.tokens());
        self.share.as_ref().map_or(whole, of)
    }
}

/// A tensor with a row for each token.
pub struct Rows {
    /// Shape of a row.
    row: Vec<usize>,
    /// (item, token, element).
    pub values: Vec<f32>,
}

/// A value for each element of each parameter.
pub struct Sums {
    /// The parameters.
    pub list: Arc<ParameterList>,
    /// Of each parameter.
    pub values: Vec<Vec<f32>>,
}

/// What calls have computed.
#[derive(Default)]
pub struct Results {
    /// Tensors with a row for each token.
    pub rows: Vec<Rows>,
    /// Of parameters: gradients, which are sums over all tokens, or weights.
    pub sums: Option<Sums>,
    /// The kernels that ran.
    pub kernels: Vec<Kernel>,
}

impl Results {
    /// Reads tensors after everything recorded.
    pub fn read(
        mut recorder: Recorder,
        rows: &[&Tensor],
        sums: Option<&Parameters>,
    ) -> dilated_attention::Result<Self> {
        let mut results = Self {
            kernels: recorder.kernels(),
            ..Self::default()
        };
        let start = |tensor: &&Tensor| recorder.download::<f32>(tensor);
        let of_rows: Vec<_> = rows.iter().map(start).collect::<Result<_, _>>()?;
        let of_sums = sums.map(|sums| sums.download(&mut recorder)).transpose()?;
        recorder.submit()?;
        for (tensor, download) in rows.iter().zip(of_rows) {
            results.rows.push(Rows {
                row: tensor.shape()[2..].to_vec(),
                values: download.wait()?,
            });
        }
        if let (Some(sums), Some(downloads)) = (sums, of_sums) {
            let values = downloads.iter().map(|download| download.wait());
            results.sums = Some(Sums {
                list: Arc::clone(sums.list()),
                values: values.collect::<Result<_, _>>()?,
            });
        }
        Ok(results)
    }

    /// Adds the results of another part, whose rows come next.
    fn add(&mut self, part: Self) {
        self.kernels.extend(part.kernels);
        if self.rows.is_empty() {
            (self.rows, self.sums) = (part.rows, part.sums);
            return;
        }
        for (all, rows) in self.rows.iter_mut().zip(part.rows) {
            all.values.extend(rows.values);
        }
        let values = |sums: Option<Sums>| sums.into_iter().flat_map(|sums| sums.values);
        let sums = self.sums.iter_mut().flat_map(|sums| &mut sums.values);
        for (sum, part) in sums.zip(values(part.sums)) {
            let pairs = sum.iter_mut().zip(part);
            pairs.for_each(|(sum, part)| *sum += part);
        }
    }

    /// Of each tensor with rows, its shape for a batch and its values.
    pub fn shaped(&self, batch: &AttentionShape) -> Vec<(Vec<usize>, &[f32])> {
        let rows = self.rows.iter().map(|rows| {
            let shape = [&[batch.batch(), batch.seq_len()], rows.row.as_slice()].concat();
            (shape, rows.values.as_slice())
        });
        rows.collect()
    }
}

/// Runs `call` on all of a batch: in one call on the engine's device, or on the engine's ranks, item after item.
pub fn run<E: ToString>(
    engine: &dyn Engine,
    batch: &AttentionShape,
    call: impl Fn(&Context, &Part) -> Result<Results, E> + Sync,
) -> Result<Results, String> {
    let call =
        |context: &Context, part: &Part| call(context, part).map_err(|error| error.to_string());
    let can_share = batch.batch() > 0 && !batch.is_cross();
    let Some(ranks) = engine.ranks().filter(|_| can_share) else {
        let context = engine.context().ok_or("there is no device")?;
        return call(context, &Part::whole(batch));
    };
    let of_ranks = ranks.run(|group, context| {
        let of_item = |item| call(context, &Part::of_item(batch, item, group)?);
        (0..batch.batch())
            .map(of_item)
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut of_ranks: Vec<_> = of_ranks.into_iter().map(Vec::into_iter).collect();
    let mut all = Results::default();
    for item in 0..batch.batch() {
        of_ranks
            .iter_mut()
            .filter_map(Iterator::next)
            .for_each(|part| all.add(part));
        // Behind the valid tokens of an item there is nothing.
        for rows in &mut all.rows {
            let width: usize = rows.row.iter().product();
            rows.values
                .resize((item + 1) * batch.seq_len() * width, 0.0);
        }
    }
    Ok(all)
}
