//! Weak scaling: more ranks with as many tokens each, in threads of this process with a device each. All devices are one adapter.

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dilated_attention::distributed::{Group, SequenceShare, in_process};
use dilated_attention::{Context, DilatedAttention, Result};
use testing::measurement::{Spread, range};

use crate::processor::{Took, cores};
use crate::{DIM, config, fill};

/// Tokens of a rank, so that the longer segments lie on two ranks.
const TOKENS: usize = 49_152;

/// Steps of a group.
struct Steps {
    calls: Vec<Took>,
    received_bytes: u64,
}

/// Forwards of attention.
pub fn weak_scaling(
    context: &Context,
    quick: bool,
    repetitions: usize,
) -> std::result::Result<(), Box<dyn Error>> {
    let tokens = if quick { TOKENS / 4 } else { TOKENS };
    let all = [1, 2, 4];
    let mut contexts = vec![context.clone()];
    while contexts.len() < 4 {
        contexts.push(Context::new_blocking()?);
    }
    println!(
        "\nranks in threads, {tokens} tokens each; shared cores: P ranks take P times as long at best"
    );
    println!(
        "{:>5} {:>8} {:>26} {:>10} {:>11} {:>15} {:>18}",
        "ranks", "tokens", "seconds", "at best", "efficiency", "KiB received", "program + system"
    );
    let mut first = None;
    for ranks in all {
        let steps = steps(&contexts[..ranks], tokens, repetitions)?;
        let seconds = Spread::of(steps.calls.iter().map(|call| call.wall).collect());
        let best = *first.get_or_insert(seconds.median) * ranks as f64;
        println!(
            "{ranks:>5} {:>8} {:>26} {best:>10.3} {:>9.1} % {:>15.1} {:>12} cores",
            ranks * tokens,
            range(seconds, 3),
            100.0 * best / seconds.median,
            steps.received_bytes as f64 / 1024.0,
            cores(&steps.calls),
        );
    }
    Ok(())
}

fn steps(
    contexts: &[Context],
    tokens: usize,
    repetitions: usize,
) -> std::result::Result<Steps, Box<dyn Error>> {
    let groups = in_process(contexts.len(), Duration::from_secs(600));
    thread::scope(|scope| {
        let threads = groups.into_iter().zip(contexts).map(|(group, context)| {
            scope.spawn(move || steps_of_rank(Arc::new(group), context, tokens, repetitions))
        });
        let threads: Vec<_> = threads.collect();
        let mut all = Steps {
            calls: Vec::new(),
            received_bytes: 0,
        };
        for thread in threads {
            let of_rank = thread.join().map_err(|_| "a rank ended")??;
            all.received_bytes += of_rank.received_bytes;
            // A step ends with a barrier: all ranks have measured the same, and processor time is that of the process.
            all.calls = of_rank.calls;
        }
        Ok(all)
    })
}

fn steps_of_rank(
    group: Arc<Group>,
    context: &Context,
    tokens: usize,
    repetitions: usize,
) -> Result<Steps> {
    let attention = DilatedAttention::new(context, config()?)?;
    let share = SequenceShare::new(Arc::clone(&group), tokens * group.size());
    let own = share.range();
    let mut recorder = context.recorder("inputs");
    let tensors = [0, 1, 2].map(|input| {
        let mut values = vec![0.0; own.len() * DIM];
        fill(input, own.start, &mut values);
        recorder.upload("input", &[1, own.len(), 1, DIM], &values)
    });
    let [q, k, v] = tensors;
    let (q, k, v) = (q?, k?, v?);
    recorder.submit()?.wait()?;
    let mut steps = Steps {
        calls: Vec::new(),
        received_bytes: 0,
    };
    // The first compiles.
    for step in 0..=repetitions {
        group.barrier()?;
        let before = group.received_bytes()?;
        let took = Took::of(|| {
            let mut recorder = context.recorder("forward");
            let _output = attention.forward_of_share(&mut recorder, &share, [&q, &k, &v])?;
            recorder.submit()?.wait()?;
            group.barrier()
        })?;
        if step > 0 {
            steps.calls.push(took);
            steps.received_bytes = group.received_bytes()? - before;
        }
    }
    Ok(steps)
}
