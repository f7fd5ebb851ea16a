//! Makes every call of a group of processes and checks what comes. It can be told to go wrong on one rank.
//!
//! ```sh
//! mpiexec -n 4 mpi_collectives
//! mpiexec -n 4 mpi_collectives --fail 2
//! ```

use std::num::NonZeroUsize;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use dilated_attention::Error;
use dilated_attention::distributed::{Group, GroupError, Reduction};
use dilated_attention_mpi::{Settings, run};
use program::say;

/// Makes every call of a group of processes, and checks what comes.
#[derive(Parser)]
struct Options {
    /// How often each call is made.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Bytes that each rank sends to each other in the large exchange.
    #[arg(long, default_value_t = 8 << 20)]
    bytes: usize,
    /// Only rank 0 sends in the large exchange.
    #[arg(long)]
    one_way: bool,
    /// Bytes of the largest message; what is longer is cut.
    #[arg(long)]
    largest_message: Option<NonZeroUsize>,
    /// Time-out of each call.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    timeout: f64,
    /// This rank comes with an error.
    #[arg(long, value_name = "RANK")]
    fail: Option<usize>,
    /// This rank has another configuration.
    #[arg(long, value_name = "RANK")]
    mismatch: Option<usize>,
    /// This rank makes another call than the others.
    #[arg(long, value_name = "RANK")]
    stray: Option<usize>,
    /// This rank panics.
    #[arg(long, value_name = "RANK")]
    panic: Option<usize>,
    /// This rank dies.
    #[arg(long, value_name = "RANK")]
    kill: Option<usize>,
    /// This rank never comes.
    #[arg(long, value_name = "RANK")]
    hang: Option<usize>,
}

fn main() -> ExitCode {
    program::run(|options: Options| {
        let timeout = Duration::try_from_secs_f64(options.timeout)
            .map_err(|error| format!("--timeout {}: {error}", options.timeout))?;
        let mut settings = Settings::new(timeout);
        if let Some(bytes) = options.largest_message {
            settings.largest_message = bytes;
        }
        Ok(run(settings, |group| collectives(group, &options)))
    })
}

fn collectives(group: &Group, options: &Options) -> Result<(), Error> {
    let is_this = |rank: Option<usize>| rank == Some(group.rank());
    let rounds = options.rounds + usize::from(is_this(options.mismatch));
    group.expect_same(&[
        ("--rounds", rounds.to_string()),
        ("--bytes", options.bytes.to_string()),
        ("--one-way", options.one_way.to_string()),
    ])?;
    say!("rank {} of {}: configured", group.rank(), group.size());

    if is_this(options.kill) {
        process::abort();
    }
    if is_this(options.hang) {
        loop {
            thread::sleep(Duration::from_secs(1));
        }
    }
    assert!(!is_this(options.panic), "as --panic says");
    if is_this(options.stray) {
        group.barrier()?;
    }
    let local = match is_this(options.fail) {
        true => Err(wrong("as --fail says".to_owned())),
        false => Ok(group.rank()),
    };
    group.agree(local)?;

    let started = Instant::now();
    let mut calls = 0;
    for round in 0..options.rounds {
        calls += every_call(group, round)?;
    }
    report(group, &format!("{calls} calls"), started);

    sub_groups(group, options.rounds)?;

    large(group, options)
}

fn report(group: &Group, what: &str, started: Instant) {
    say!(
        "rank {} of {}: {what} in {:.1} ms",
        group.rank(),
        group.size(),
        1e3 * started.elapsed().as_secs_f64()
    );
}

/// What `from` sends to `to` in a round: of a length of its own, sometimes nothing.
fn block(from: usize, to: usize, round: usize) -> Vec<u8> {
    let length = (from * 7 + to * 3 + round) % 5 * 1000;
    let bytes = (0..length).map(|byte| (byte + from * 31 + to * 17 + round) as u8);
    bytes.collect()
}

/// The next call tells the others.
fn expect<T: PartialEq>(what: &str, given: &T, expected: &T) -> Result<(), Error> {
    match given == expected {
        true => Ok(()),
        false => Err(wrong(format!(
            "{what} brought something else than was sent"
        ))),
    }
}

fn wrong(reason: String) -> Error {
    GroupError::Application { reason }.into()
}

/// Every call that exchanges something, with lengths that differ; returns how many.
fn every_call(group: &Group, round: usize) -> Result<usize, Error> {
    let (rank, size) = (group.rank(), group.size());
    let (mut received, mut reduced) = (Vec::new(), Vec::new());

    let blocks: Vec<_> = (0..size).map(|to| block(rank, to, round)).collect();
    let sends: Vec<_> = blocks.iter().map(Vec::as_slice).collect();
    group.all_to_all(Ok(&sends), &mut received)?;
    let sent: Vec<_> = (0..size).map(|from| block(from, rank, round)).collect();
    let mut outcome = expect("all_to_all", &received, &sent);

    let own = block(rank, 0, round);
    group.all_gather(outcome.map(|()| own.as_slice()), &mut received)?;
    let sent: Vec<_> = (0..size).map(|from| block(from, 0, round)).collect();
    outcome = expect("all_gather", &received, &sent);

    let ranks = size as u64;
    let cases = [
        (Reduction::Sum, ranks * (ranks + 1) / 2),
        (Reduction::Minimum, 1),
        (Reduction::Maximum, ranks),
    ];
    for (reduction, expected) in cases {
        let own = [rank as u64 + 1];
        group.all_reduce(outcome.map(|()| own.as_slice()), reduction, &mut reduced)?;
        outcome = expect("all_reduce", &reduced, &vec![expected]);
    }
    group.agree(outcome)?;
    group.barrier()?;
    Ok(7)
}

/// Sub-groups of even and odd ranks, and the group of all, at the same time.
fn sub_groups(group: &Group, rounds: usize) -> Result<(), Error> {
    let started = Instant::now();
    let sub = group.split(Ok(group.rank() as u32 % 2))?;
    let alone = sub.split(Ok(sub.rank() as u32))?;
    let outcome = thread::scope(|scope| {
        let threads = [group, &sub, &alone].map(|group| {
            scope.spawn(move || {
                (0..rounds).try_for_each(|round| every_call(group, round).map(|_| ()))
            })
        });
        threads.into_iter().try_for_each(|thread| {
            let panicked = |_| Err(wrong("a thread panicked".to_owned()));
            thread.join().unwrap_or_else(panicked)
        })
    });
    group.agree(outcome)?;
    report(group, "three groups at the same time", started);
    Ok(())
}

/// Blocks whose bytes all say who sent them, and to whom.
fn large(group: &Group, options: &Options) -> Result<(), Error> {
    let (rank, size) = (group.rank(), group.size());
    let length = |from: usize, to: usize| match from == to || (options.one_way && from != 0) {
        true => 0,
        false => options.bytes,
    };
    let fill = |from: usize, to: usize| (from * size + to) as u8;
    let blocks: Vec<_> = (0..size)
        .map(|to| vec![fill(rank, to); length(rank, to)])
        .collect();
    let sends: Vec<_> = blocks.iter().map(Vec::as_slice).collect();
    let mut received = Vec::new();
    group.barrier()?;
    let started = Instant::now();
    group.all_to_all(Ok(&sends), &mut received)?;
    let what = format!(
        "{} bytes received",
        received.iter().map(Vec::len).sum::<usize>()
    );
    report(group, &what, started);
    let is_right = |(from, block): (usize, &Vec<u8>)| {
        block.len() == length(from, rank) && block.iter().all(|byte| *byte == fill(from, rank))
    };
    let is_right = received.iter().enumerate().all(is_right);
    group.agree(expect("the large all_to_all", &is_right, &true))
}
