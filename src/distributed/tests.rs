use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::{Group, Reduction, Transport, TransportError, in_process};
use crate::error::{Error, GroupError, RankFailure, Result};

/// Longer than any test takes: who waits for it has hung.
const LONG: Duration = Duration::from_secs(60);

/// Runs every rank on a thread of its own; what they return, in order.
fn on_ranks<T: Send>(size: usize, timeout: Duration, rank: impl Fn(Group) -> T + Sync) -> Vec<T> {
    run(in_process(size, timeout), rank)
}

fn run<T: Send>(groups: Vec<Group>, rank: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let rank = &rank;
    thread::scope(|scope| {
        let threads: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || rank(group)))
            .collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results.map(|result| result.expect("no panic")).collect()
    })
}

fn broken(reason: &str) -> Error {
    Error::DeviceLost {
        reason: reason.to_owned(),
    }
}

fn group_error<T>(result: Result<T>) -> GroupError {
    match result {
        Err(Error::Group(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("no error"),
    }
}

fn on_rank(rank: usize, error: &Error) -> RankFailure {
    RankFailure {
        rank,
        reason: error.to_string(),
    }
}

/// What rank `from` sends to `to` in a round: of a length of its own, sometimes nothing.
fn block(from: usize, to: usize, round: usize) -> Vec<u8> {
    let length = (from * 7 + to * 3 + round) % 5 * 100;
    (0..length)
        .map(|byte| (byte + from * 31 + to * 17 + round) as u8)
        .collect()
}

#[test]
fn every_call_with_every_size() {
    for size in [1, 2, 3, 8] {
        let ranks = on_ranks(size, LONG, |group| -> Result<()> {
            let rank = group.rank();
            assert_eq!(group.size(), size);
            group.expect_same(&[("tokens", "5".to_owned()), ("type", "f16".to_owned())])?;
            let (mut received, mut reduced) = (Vec::new(), Vec::new());
            for round in 0..200 {
                let blocks: Vec<_> = (0..size).map(|to| block(rank, to, round)).collect();
                let sends: Vec<_> = blocks.iter().map(Vec::as_slice).collect();
                group.all_to_all(Ok(&sends), &mut received)?;
                let expected: Vec<_> = (0..size).map(|from| block(from, rank, round)).collect();
                assert_eq!(received, expected);

                group.all_gather(Ok(&block(rank, 0, round)), &mut received)?;
                let expected: Vec<_> = (0..size).map(|from| block(from, 0, round)).collect();
                assert_eq!(received, expected);

                let values = [rank as u64 + 1, 1 << 60, 7 * round as u64];
                group.all_reduce(Ok(&values), Reduction::Sum, &mut reduced)?;
                let ranks = size as u64;
                let sums = [
                    ranks * (ranks + 1) / 2,
                    ranks << 60,
                    7 * ranks * round as u64,
                ];
                assert_eq!(reduced, sums);
                group.all_reduce(Ok(&values), Reduction::Minimum, &mut reduced)?;
                assert_eq!(reduced, [1, 1 << 60, values[2]]);
                group.all_reduce(Ok(&values), Reduction::Maximum, &mut reduced)?;
                assert_eq!(reduced, [ranks, 1 << 60, values[2]]);
                group.all_reduce(Ok(&[]), Reduction::Sum, &mut reduced)?;
                assert!(reduced.is_empty());

                group.barrier()?;
                assert_eq!(group.agree(Ok(rank))?, rank);
            }
            Ok(())
        });
        assert_eq!(ranks, vec![Ok(()); size]);
    }
    assert!(in_process(0, LONG).is_empty());
}

#[test]
fn a_barrier_waits_for_all() {
    let started = Instant::now();
    on_ranks(3, LONG, |group| {
        if group.rank() == 1 {
            thread::sleep(Duration::from_millis(50));
        }
        group.barrier().expect("all come");
        assert!(started.elapsed() >= Duration::from_millis(50));
    });
}

#[test]
fn an_error_on_one_rank_is_an_error_on_all() {
    let own = broken("the driver said so");
    // In every call that takes a result.
    type Call = fn(&Group, Option<Error>) -> Result<()>;
    let calls: [Call; 6] = [
        |group, error| group.agree(error.map_or(Ok(()), Err)),
        |group, error| {
            let local: Result<&[u8]> = error.map_or(Ok(&[1, 2, 3]), Err);
            group.all_gather(local, &mut Vec::new())
        },
        |group, error| {
            let blocks: Vec<&[u8]> = vec![&[5; 99]; group.size()];
            group.all_to_all(error.map_or(Ok(&blocks), Err), &mut Vec::new())
        },
        |group, error| {
            let local: Result<&[u64]> = error.map_or(Ok(&[1]), Err);
            group.all_reduce(local, Reduction::Sum, &mut Vec::new())
        },
        |group, error| group.split(error.map_or(Ok(0), Err)).map(|_| ()),
        // The rank that failed is elsewhere in the program: its words count more than that.
        |group, error| match error {
            Some(error) => group.agree(Err(error)),
            None => group.barrier(),
        },
    ];
    for call in calls {
        for size in [1, 2, 3, 8] {
            for failing in 0..size {
                let results = on_ranks(size, LONG, |group| {
                    let fails = group.rank() == failing;
                    group.barrier().expect("all well");
                    let result = call(&group, fails.then(|| own.clone()));
                    // The group stays failed, with the first error.
                    assert_eq!(group.barrier(), result);
                    assert_eq!(group.agree(Err::<(), _>(broken("later"))), result);
                    result
                });
                for (rank, result) in results.into_iter().enumerate() {
                    if rank == failing {
                        assert_eq!(result, Err(own.clone()));
                    } else {
                        let failures = vec![on_rank(failing, &own)];
                        assert_eq!(group_error(result), GroupError::OnRanks { failures });
                    }
                }
            }
        }
    }
}

#[test]
fn two_ranks_fail() {
    let first = broken("no power");
    let second: Error = GroupError::Application {
        reason: "no such file".to_owned(),
    }
    .into();
    for _ in 0..100 {
        let results = on_ranks(4, LONG, |group| {
            group.agree(match group.rank() {
                1 => Err(first.clone()),
                3 => Err(second.clone()),
                rank => Ok(rank),
            })
        });
        let failures = vec![on_rank(1, &first), on_rank(3, &second)];
        let others = GroupError::OnRanks { failures };
        assert_eq!(results[1], Err(first.clone()));
        assert_eq!(results[3], Err(second.clone()));
        for rank in [0, 2] {
            assert_eq!(results[rank], Err(others.clone().into()));
        }
        let text = others.to_string();
        assert!(
            text.contains("rank 1: ") && text.contains("no power"),
            "{text}"
        );
        assert!(text.ends_with("; rank 3: no such file"), "{text}");
    }
}

#[test]
fn configurations_that_differ() {
    let differ = |options: fn(usize) -> Vec<(&'static str, String)>| {
        let results = on_ranks(3, LONG, |group| {
            group_error(group.expect_same(&options(group.rank())))
        });
        assert!(results.iter().all(|error| *error == results[0]));
        results[0].to_string()
    };
    let text = differ(|rank| {
        let dtype = if rank == 2 { "bf16" } else { "f16" };
        vec![("tokens", "5".to_owned()), ("dtype", dtype.to_owned())]
    });
    assert!(
        text.starts_with("dtype is f16 on rank 0, but bf16 on rank 2"),
        "{text}"
    );
    let text = differ(|rank| match rank {
        1 => vec![],
        _ => vec![("tokens", "5".to_owned())],
    });
    assert!(
        text.starts_with("option 1 is tokens (5) on rank 0, but not given on rank 1"),
        "{text}"
    );
    let text = differ(|rank| vec![(if rank == 1 { "heads" } else { "tokens" }, "5".to_owned())]);
    assert!(
        text.starts_with("option 1 is tokens (5) on rank 0, but heads (5) on rank 1"),
        "{text}"
    );
}

#[test]
fn calls_that_differ() {
    for _ in 0..100 {
        let results = on_ranks(3, LONG, |group| match group.rank() {
            1 => group.all_gather(Ok(b"bytes"), &mut Vec::new()),
            _ => group.barrier(),
        });
        for result in results {
            let text = group_error(result).to_string();
            let expected =
                "the call is barrier as number 1 on rank 0, but all_gather as number 1 on rank 1";
            assert!(text.starts_with(expected), "{text}");
        }
        let results = on_ranks(3, LONG, |group| {
            group.all_reduce(
                Ok(&[3]),
                if group.rank() == 2 {
                    Reduction::Minimum
                } else {
                    Reduction::Sum
                },
                &mut Vec::new(),
            )
        });
        for result in results {
            let text = group_error(result).to_string();
            assert!(
                text.contains("all_reduce(Minimum) as number 1 on rank 2"),
                "{text}"
            );
        }
    }
    // One call fewer: whoever is alone in its last call learns that the others are through.
    let results = on_ranks(2, LONG, |group| {
        group.barrier()?;
        if group.rank() == 0 {
            group.barrier()
        } else {
            Ok(())
        }
    });
    assert_eq!(results[1], Ok(()));
    let left = GroupError::Left {
        call: "barrier",
        rank: 1,
    };
    assert_eq!(group_error(results[0].clone()), left);
}

/// A group whose rank 1 has made one call that rank 0 knows nothing of.
#[test]
fn a_call_out_of_step() {
    let results = on_ranks(2, LONG, |group| {
        if group.rank() == 1 {
            group.skip_a_call();
        }
        group_error(group.barrier()).to_string()
    });
    for text in results {
        let expected =
            "the call is barrier as number 1 on rank 0, but barrier as number 2 on rank 1";
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn lengths_that_differ() {
    let results = on_ranks(3, LONG, |group| {
        let values: &[u64] = if group.rank() == 1 { &[1, 2] } else { &[1] };
        group.all_reduce(Ok(values), Reduction::Sum, &mut Vec::new())
    });
    for result in results {
        let text = group_error(result).to_string();
        let expected = "the number of values to reduce is 1 on rank 0, but 2 on rank 1";
        assert!(text.starts_with(expected), "{text}");
    }
    let results = on_ranks(2, LONG, |group| {
        let sends: &[&[u8]] = if group.rank() == 1 {
            &[&[1]]
        } else {
            &[&[1], &[2]]
        };
        group.all_to_all(Ok(sends), &mut Vec::new())
    });
    let Err(own) = &results[1] else {
        panic!("{results:?}")
    };
    assert!(matches!(own, Error::InvalidShape { .. }), "{own}");
    let failures = vec![on_rank(1, own)];
    assert_eq!(
        group_error(results[0].clone()),
        GroupError::OnRanks { failures }
    );
}

#[test]
fn a_sum_beyond_64_bits() {
    let results = on_ranks(2, LONG, |group| {
        group.all_reduce(Ok(&[u64::MAX]), Reduction::Sum, &mut Vec::new())
    });
    for result in results {
        assert!(
            matches!(result, Err(Error::SizeOverflow { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn a_rank_that_leaves() {
    for round in 0..100 {
        let size = [2, 3, 8][round % 3];
        let gone = round % size;
        let started = Instant::now();
        let results = on_ranks(size, LONG, |group| {
            group.barrier().expect("all there");
            if group.rank() == gone {
                drop(group);
                return None;
            }
            Some(group_error(
                group.all_gather(Ok(&[1; 1000]), &mut Vec::new()),
            ))
        });
        assert!(started.elapsed() < Duration::from_secs(5));
        for error in results.into_iter().flatten() {
            // Whoever noticed has left, too, and may be what others notice first.
            assert!(matches!(error, GroupError::Left { .. }), "{error}");
        }
    }
}

#[test]
fn a_rank_that_panics() {
    let groups = in_process(3, LONG);
    let started = Instant::now();
    thread::scope(|scope| {
        for group in groups {
            scope.spawn(move || {
                let rank = group.rank();
                let thread = thread::spawn(move || {
                    group.barrier().expect("all there");
                    assert!(group.rank() != 1, "meant to be");
                    group_error(group.barrier())
                });
                match thread.join() {
                    Err(_) => assert_eq!(rank, 1),
                    Ok(error) => assert!(matches!(error, GroupError::Left { .. }), "{error}"),
                }
            });
        }
    });
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_rank_that_left_is_noticed_before_one_that_is_busy_comes() {
    let done = Barrier::new(2);
    let error = on_ranks(3, LONG, |group| match group.rank() {
        0 => {
            let error = group_error(group.barrier());
            done.wait();
            Some(error)
        }
        1 => {
            done.wait();
            None
        }
        _ => None,
    });
    let left = GroupError::Left {
        call: "barrier",
        rank: 2,
    };
    assert_eq!(error[0], Some(left));
}

#[test]
fn leaving_after_the_last_call_is_no_error() {
    for _ in 0..300 {
        let results = on_ranks(4, LONG, |group| {
            group.all_gather(Ok(&[7; 10]), &mut Vec::new())
        });
        assert_eq!(results, vec![Ok(()); 4]);
    }
}

#[test]
fn a_rank_that_hangs() {
    let timeout = Duration::from_millis(500);
    let (begun, done) = (Barrier::new(3), Barrier::new(3));
    let errors = on_ranks(3, timeout, |group| {
        begun.wait();
        let error = (group.rank() != 1).then(|| {
            let started = Instant::now();
            let error = group_error(group.all_gather(Ok(&[1]), &mut Vec::new()));
            assert!(started.elapsed() < Duration::from_secs(5));
            error
        });
        done.wait();
        if group.rank() == 1 {
            // It comes after all, and nobody is there.
            let error = group_error(group.all_gather(Ok(&[1]), &mut Vec::new()));
            assert!(matches!(error, GroupError::Left { .. }), "{error}");
        }
        error
    });
    let late = GroupError::Late {
        call: "all_gather",
        ranks: vec![1],
        timeout,
    };
    // The one whose time was up first has left.
    let errors: Vec<_> = errors.into_iter().flatten().collect();
    assert!(errors.contains(&late), "{errors:?}");
    assert!(late.to_string().contains("for rank 1"), "{late}");
}

#[test]
fn ranks_that_never_come() {
    let timeout = Duration::from_millis(20);
    let mut groups = in_process(4, timeout);
    let first = groups.remove(0);
    let started = Instant::now();
    let ranks = vec![1, 2, 3];
    let late = GroupError::Late {
        call: "agree",
        ranks,
        timeout,
    };
    assert_eq!(group_error(first.agree(Ok(()))), late);
    assert!(started.elapsed() >= timeout);
    // With an error of its own, that is what a rank returns.
    let second = groups.remove(0);
    assert_eq!(
        second.agree(Err::<(), _>(broken("own"))),
        Err(broken("own"))
    );
}

#[test]
fn sub_groups() {
    let results = on_ranks(5, LONG, |group| -> Result<Vec<u8>> {
        let rank = group.rank();
        // 0, 2, 4 and 1, 3.
        let sub = group.split(Ok(rank as u32 % 2))?;
        assert_eq!(
            (sub.rank(), sub.size()),
            (rank / 2, if rank % 2 == 0 { 3 } else { 2 })
        );
        // And once more, of one rank each.
        let alone = sub.split(Ok(rank as u32))?;
        assert_eq!((alone.rank(), alone.size()), (0, 1));
        alone.barrier()?;
        let mut all = Vec::new();
        // All three at the same time, from threads of their own.
        let (group, sub, alone) = (&group, &sub, &alone);
        thread::scope(|scope| {
            let threads = [group, sub, alone].map(|group| {
                scope.spawn(move || -> Result<()> {
                    let mut received = Vec::new();
                    for round in 0..300 {
                        let own = block(rank, round, group.size());
                        group.all_gather(Ok(&own), &mut received)?;
                        assert_eq!(received[group.rank()], own);
                    }
                    Ok(())
                })
            });
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        sub.all_gather(Ok(&[rank as u8]), &mut all)?;
        Ok(all.concat())
    });
    for (rank, result) in results.into_iter().enumerate() {
        let members: &[u8] = if rank % 2 == 0 { &[0, 2, 4] } else { &[1, 3] };
        assert_eq!(result.as_deref(), Ok(members));
    }
}

#[test]
fn errors_of_sub_groups_stay_their_own() {
    let own = broken("in the odd group");
    let results = on_ranks(4, LONG, |group| {
        let rank = group.rank();
        let sub = group.split(Ok(rank as u32 % 2)).expect("all well");
        let result = sub.agree(match rank {
            3 => Err(own.clone()),
            rank => Ok(rank),
        });
        // The group of all goes on, and so does the other sub-group.
        group.barrier().expect("the group of all is well");
        if rank % 2 == 0 {
            sub.barrier().expect("the even group is well");
        }
        result
    });
    assert_eq!(results[0], Ok(0));
    assert_eq!(results[2], Ok(2));
    assert_eq!(results[3], Err(own.clone()));
    // By the numbers of the sub-group.
    let failures = vec![on_rank(1, &own)];
    assert_eq!(
        group_error(results[1].clone()),
        GroupError::OnRanks { failures }
    );

    // And where the group of all fails, sub-groups go on.
    let results = on_ranks(4, LONG, |group| {
        let sub = group.split(Ok(group.rank() as u32 / 2)).expect("all well");
        let failed = group.agree(match group.rank() {
            0 => Err(own.clone()),
            _ => Ok(()),
        });
        assert!(failed.is_err());
        sub.barrier()
    });
    assert_eq!(results, vec![Ok(()); 4]);
}

#[test]
fn a_large_exchange() {
    const BYTES: usize = 24 << 20;
    let results = on_ranks(3, LONG, |group| -> Result<()> {
        let rank = group.rank();
        // Rank 0 sends far more than the others.
        let length = if rank == 0 { BYTES } else { 1000 };
        let blocks: Vec<Vec<u8>> = (0..3)
            .map(|to| vec![(rank * 3 + to) as u8; length])
            .collect();
        let sends: Vec<_> = blocks.iter().map(Vec::as_slice).collect();
        let mut received = Vec::new();
        group.all_to_all(Ok(&sends), &mut received)?;
        for (from, bytes) in received.iter().enumerate() {
            assert_eq!(bytes.len(), if from == 0 { BYTES } else { 1000 });
            assert!(bytes.iter().all(|byte| *byte == (from * 3 + rank) as u8));
        }
        Ok(())
    });
    assert_eq!(results, vec![Ok(()); 3]);
}

#[test]
fn receive_buffers_are_used_again() {
    let results = on_ranks(3, LONG, |group| -> Result<()> {
        let mut received = Vec::new();
        group.all_gather(Ok(&[1; 5000]), &mut received)?;
        let places: Vec<_> = received.iter().map(|buffer| buffer.as_ptr()).collect();
        for length in [5000, 10, 0, 4999, 5000] {
            group.all_gather(Ok(&vec![2; length]), &mut received)?;
            assert_eq!(received, vec![vec![2; length]; 3]);
            let now: Vec<_> = received.iter().map(|buffer| buffer.as_ptr()).collect();
            assert_eq!(now, places);
        }
        Ok(())
    });
    assert_eq!(results, vec![Ok(()); 3]);
}

#[test]
fn a_timeout_of_any_length() {
    let results = on_ranks(2, Duration::MAX, |group| group.barrier());
    assert_eq!(results, vec![Ok(()); 2]);
    let group = in_process(2, Duration::ZERO).remove(0);
    assert!(matches!(
        group_error(group.barrier()),
        GroupError::Left { rank: 1, .. }
    ));
}

/// A transport that claims that another rank sends more than there is memory.
struct Boaster;

impl Transport for Boaster {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        2
    }

    fn all_to_all(
        &self,
        sends: &[&[u8]],
        receives: &mut [&mut [u8]],
        _: Instant,
    ) -> Result<(), TransportError> {
        let (own, other) = receives.split_at_mut(1);
        own[0].copy_from_slice(sends[0]);
        other[0].copy_from_slice(sends[0]);
        if let Some(count) = other[0].last_chunk_mut() {
            *count = (u64::MAX / 4).to_le_bytes();
        }
        Ok(())
    }

    fn split(&self, _: u32, _: Instant) -> Result<Box<dyn Transport>, TransportError> {
        Err(TransportError::Failed {
            reason: "it has no groups".to_owned(),
        })
    }
}

#[test]
fn failures_of_a_transport() {
    let group = Group::new(Box::new(Boaster), LONG);
    let result = group.all_gather(Ok(&[1]), &mut Vec::new());
    assert!(
        matches!(result, Err(Error::HostMemory { requested_bytes, .. }) if requested_bytes == u64::MAX / 4),
        "{result:?}"
    );
    let group = Group::new(Box::new(Boaster), LONG);
    let text = group_error(group.split(Ok(1))).to_string();
    assert_eq!(text, "split: the transport failed: it has no groups");
}
