//! What ranks call together.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::header::{Call, Header, Place};
use super::transport::{Transport, TransportError};
use crate::error::{Error, GroupError, RankFailure, Result};

/// One rank's place in a group. See the [module](super) for what all calls have in common.
///
/// Calls take the `Result` of this rank's work so far. With an `Err`, this rank gets that error back, and the others get
/// [`GroupError::OnRanks`]. All errors of a call are [`Error::Group`], but for this rank's own, [`Error::HostMemory`] where there is
/// none for what is received, and [`Error::SizeOverflow`].
///
/// Threads that share a group wait for each other's calls.
pub struct Group {
    rank: usize,
    size: usize,
    timeout: Duration,
    /// The way to the other ranks; after an error, that error.
    link: Mutex<Result<Link>>,
}

/// How values become one in [`Group::all_reduce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The least of them.
    Minimum,
    /// The largest of them.
    Maximum,
}

impl Reduction {
    fn of(self, a: u64, b: u64) -> Result<u64> {
        match self {
            Self::Sum => a.checked_add(b).ok_or_else(|| Error::SizeOverflow {
                what: "a sum over all ranks".into(),
                given: format!("{a} + {b}"),
            }),
            Self::Minimum => Ok(a.min(b)),
            Self::Maximum => Ok(a.max(b)),
        }
    }
}

impl Group {
    /// The group of all ranks of a transport. Each call has `timeout` to be done on this rank, waiting for others included.
    pub fn new(transport: Box<dyn Transport>, timeout: Duration) -> Self {
        Self {
            rank: transport.rank(),
            size: transport.size(),
            // Longer than anybody waits, but short enough for the clock.
            timeout: timeout.min(Duration::from_secs(u32::MAX.into())),
            link: Mutex::new(Ok(Link {
                transport,
                calls: 0,
                received: 0,
            })),
        }
    }

    /// Number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes that other ranks have sent to this one so far, without those that say how each fares.
    ///
    /// # Errors
    /// The error after which the group has failed.
    pub fn received_bytes(&self) -> Result<u64> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref()
            .map(|link| link.received)
            .map_err(Error::clone)
    }

    /// Compares what must be the same on all ranks: names of options and their values in words, and this crate's version. To be called
    /// before anything else. The first difference is [`GroupError::Differ`] on all ranks.
    pub fn expect_same(&self, what: &[(&'static str, String)]) -> Result<()> {
        let version = (
            "the version of dilated-attention",
            env!("CARGO_PKG_VERSION"),
        );
        let given = what.iter().map(|(name, value)| (*name, value.as_str()));
        let own: Vec<_> = [version].into_iter().chain(given).collect();
        let own = serde_json::to_vec(&own).map_err(|error| Error::InvalidConfig {
            what: "the list for expect_same",
            given: error.to_string(),
            need: "names and values",
        });
        let mut gathered = Vec::new();
        self.call(Call::ExpectSame, |running| {
            let own = own.as_deref().map_err(Error::clone);
            running.exchange(own.map(|own| move |_| own), &mut gathered)?;
            running.compare(&gathered)
        })
    }

    /// Sends `local` to all ranks. `received` becomes one buffer for each rank, as long as what that rank sent, which may be nothing.
    /// Buffers that are there are used again, and do not allocate where they are large enough.
    pub fn all_gather(&self, local: Result<&[u8]>, received: &mut Vec<Vec<u8>>) -> Result<()> {
        self.call(Call::AllGather, |running| {
            running.exchange(local.map(|bytes| move |_| bytes), received)
        })
    }

    /// Sends `sends[r]` to each rank r. `received` becomes as in [`all_gather`](Self::all_gather).
    pub fn all_to_all(&self, sends: Result<&[&[u8]]>, received: &mut Vec<Vec<u8>>) -> Result<()> {
        let sends = sends.and_then(|sends| match sends.len() == self.size {
            true => Ok(sends),
            false => Err(Error::InvalidShape {
                what: "the list of sends".into(),
                given: format!("{} slices", sends.len()),
                need: format!("{}, one for each rank", self.size),
            }),
        });
        self.call(Call::AllToAll, |running| {
            running.exchange(sends.map(|sends| move |rank: usize| sends[rank]), received)
        })
    }

    /// Reduces each of the values over all ranks, in the order of ranks. All ranks give the same number of values, and get the same
    /// results in `reduced`. A sum above 64 bits is an error on all ranks.
    pub fn all_reduce(
        &self,
        values: Result<&[u64]>,
        reduction: Reduction,
        reduced: &mut Vec<u64>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        let values = values.map(|values| {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        });
        let mut gathered = Vec::new();
        self.call(reduction.into(), |running| {
            let blocks = values.map(|()| |_| bytes.as_slice());
            running.exchange(blocks, &mut gathered)?;
            for (rank, other) in gathered.iter().enumerate() {
                let counts = [gathered[0].len() / 8, other.len() / 8];
                let counts = counts.map(|count| count.to_string());
                differ("the number of values to reduce", counts, rank)?;
            }
            reduced.clear();
            for (rank, values) in gathered.iter().enumerate() {
                for (index, bytes) in values.chunks_exact(8).enumerate() {
                    let mut word = [0; 8];
                    word.copy_from_slice(bytes);
                    let value = u64::from_le_bytes(word);
                    match rank {
                        0 => reduced.push(value),
                        _ => reduced[index] = reduction.of(reduced[index], value)?,
                    }
                }
            }
            Ok(())
        })
    }

    /// Returns once all ranks have made this call.
    pub fn barrier(&self) -> Result<()> {
        self.call(Call::Barrier, |running| {
            running.begin(Ok(()), |_, _| 0).map(|_| ())
        })
    }

    /// Whether all is well: returns this rank's value where every rank comes with one.
    pub fn agree<T>(&self, local: Result<T>) -> Result<T> {
        self.call(Call::Agree, |running| {
            running.begin(local, |_, _| 0).map(|(value, _)| value)
        })
    }

    /// Ranks that give the same color become a group of their own, numbered from 0 in their order here, with the same time-out. Both
    /// groups can be used from then on, at the same time from different threads, too.
    pub fn split(&self, color: Result<u32>) -> Result<Self> {
        self.call(Call::Split, |running| {
            let (color, _) = running.begin(color, |_, _| 0)?;
            let transport = running.link.transport.split(color, running.deadline);
            let transport = transport.map_err(|error| running.failed(error))?;
            Ok(Self::new(transport, self.timeout))
        })
    }

    /// Runs one call, unless the group has failed.
    fn call<T>(&self, call: Call, run: impl FnOnce(&mut Running<'_>) -> Result<T>) -> Result<T> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match &mut *link {
            Err(error) => return Err(error.clone()),
            Ok(link) => {
                link.calls += 1;
                run(&mut Running {
                    place: Place {
                        call: call as u64,
                        number: link.calls,
                    },
                    link,
                    call,
                    timeout: self.timeout,
                    deadline: Instant::now() + self.timeout,
                })
            }
        };
        if let Err(error) = &result {
            // This drops the transport, from which the other ranks see that this one has left.
            *link = Err(error.clone());
        }
        result
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The way to the other ranks.
struct Link {
    transport: Box<dyn Transport>,
    /// Number of calls so far.
    calls: u64,
    /// Bytes from other ranks so far.
    received: u64,
}

/// A call on its way.
struct Running<'l> {
    link: &'l mut Link,
    call: Call,
    place: Place,
    timeout: Duration,
    deadline: Instant,
}

impl Running<'_> {
    /// Exchanges headers: an error here or elsewhere, or another call elsewhere, ends the call on all ranks. `count` says how many
    /// bytes this rank will send to another; the headers say what it will receive from each.
    fn begin<T>(
        &mut self,
        local: Result<T>,
        count: impl Fn(&T, usize) -> usize,
    ) -> Result<(T, Vec<Header>)> {
        let words = match &local {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let own = (0..self.link.transport.size()).map(|to| Header {
            place: self.place,
            failed: local.is_err(),
            count: match &local {
                Ok(local) => count(local, to) as u64,
                Err(_) => words.len() as u64,
            },
        });
        let own: Vec<_> = own.map(Header::to_bytes).collect();
        let headers = self.exchange_headers(&own, &words);
        // What went wrong on this rank is what its caller has to know.
        let local = local?;
        Ok((local, headers?))
    }

    fn exchange_headers(
        &mut self,
        own: &[[u8; Header::BYTES]],
        words: &str,
    ) -> Result<Vec<Header>> {
        let sends: Vec<&[u8]> = own.iter().map(|header| header.as_slice()).collect();
        let mut headers = vec![[0; Header::BYTES]; own.len()];
        let mut receives: Vec<_> = headers.iter_mut().map(|bytes| &mut bytes[..]).collect();
        self.transfer(&sends, &mut receives)?;
        let headers: Vec<_> = headers.iter().map(Header::from_bytes).collect();

        if headers.iter().any(|header| header.failed) {
            return Err(self.failures(&headers, words)?.into());
        }
        for (rank, header) in headers.iter().enumerate() {
            let places = [headers[0].place, header.place];
            differ("the call", places.map(|place| place.to_string()), rank)?;
        }
        Ok(headers)
    }

    /// Fetches the words of the ranks that failed.
    fn failures(&mut self, headers: &[Header], words: &str) -> Result<GroupError> {
        let sends = vec![words.as_bytes(); headers.len()];
        let mut texts = Vec::new();
        let of_failed = headers.iter().map(|header| match header.failed {
            true => header.count,
            false => 0,
        });
        self.receive(&sends, of_failed, &mut texts)?;
        let failed = headers.iter().zip(&texts).enumerate();
        let failed = failed.filter(|(_, (header, _))| header.failed);
        let failures = failed.map(|(rank, (_, text))| RankFailure {
            rank,
            reason: String::from_utf8_lossy(text).into_owned(),
        });
        Ok(GroupError::OnRanks {
            failures: failures.collect(),
        })
    }

    /// Sends a block to each rank and receives one from each, of whatever length.
    fn exchange<'s>(
        &mut self,
        blocks: Result<impl Fn(usize) -> &'s [u8]>,
        received: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        let (blocks, headers) = self.begin(blocks, |blocks, to| blocks(to).len())?;
        let sends: Vec<_> = (0..headers.len()).map(blocks).collect();
        let counts = headers.iter().map(|header| header.count);
        self.receive(&sends, counts, received)
    }

    /// The exchange after that of headers: the lengths of what comes are known.
    fn receive(
        &mut self,
        sends: &[&[u8]],
        counts: impl Iterator<Item = u64>,
        received: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        received.resize_with(sends.len(), Vec::new);
        for (buffer, count) in received.iter_mut().zip(counts) {
            let no_memory = || Error::HostMemory {
                what: "what another rank sends",
                requested_bytes: count,
            };
            let length = usize::try_from(count).map_err(|_| no_memory())?;
            let more = length.saturating_sub(buffer.len());
            buffer.try_reserve_exact(more).map_err(|_| no_memory())?;
            buffer.resize(length, 0);
        }
        let mut receives: Vec<_> = received.iter_mut().map(Vec::as_mut_slice).collect();
        self.transfer(sends, &mut receives)?;
        let others = received.iter().enumerate();
        let others = others.filter(|(rank, _)| *rank != self.link.transport.rank());
        let bytes: usize = others.map(|(_, bytes)| bytes.len()).sum();
        self.link.received += bytes as u64;
        Ok(())
    }

    fn transfer(&mut self, sends: &[&[u8]], receives: &mut [&mut [u8]]) -> Result<()> {
        let transport = &self.link.transport;
        let done = transport.all_to_all(sends, receives, self.deadline);
        done.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: TransportError) -> Error {
        let call = self.call.name();
        let error = match error {
            TransportError::Left { rank } => GroupError::Left { call, rank },
            TransportError::Late { ranks } => GroupError::Late {
                call,
                ranks,
                timeout: self.timeout,
            },
            TransportError::Failed { reason } => GroupError::Transport { call, reason },
        };
        error.into()
    }

    /// Compares the lists of all ranks with that of rank 0.
    fn compare(&self, gathered: &[Vec<u8>]) -> Result<()> {
        let mut lists = Vec::with_capacity(gathered.len());
        for (rank, bytes) in gathered.iter().enumerate() {
            let list: Vec<(String, String)> =
                serde_json::from_slice(bytes).map_err(|error| GroupError::Transport {
                    call: self.call.name(),
                    reason: format!("rank {rank} sent no list of names and values: {error}"),
                })?;
            lists.push(list);
        }
        for (rank, list) in lists.iter().enumerate() {
            for index in 0..lists[0].len().max(list.len()) {
                match [lists[0].get(index), list.get(index)] {
                    [Some((name, value)), Some((other_name, other_value))]
                        if name == other_name =>
                    {
                        differ(name, [value.clone(), other_value.clone()], rank)?;
                    }
                    // The name, or what stands for it, always differs here.
                    options => {
                        let names = options.map(|option| match option {
                            Some((name, value)) => format!("{name} ({value})"),
                            None => "not given".to_owned(),
                        });
                        differ(&format!("option {index}"), names, rank)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// An error where the values of rank 0 and another rank differ.
fn differ(what: &str, values: [String; 2], other_rank: usize) -> Result<()> {
    let [value, other_value] = values;
    if value == other_value {
        return Ok(());
    }
    Err(Error::Group(GroupError::Differ {
        what: what.to_owned(),
        rank: 0,
        value,
        other_rank,
        other_value,
    }))
}

#[cfg(test)]
impl Group {
    /// As if this rank had made a call that the others have not.
    pub(super) fn skip_a_call(&self) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(link) = &mut *link {
            link.calls += 1;
        }
    }
}
