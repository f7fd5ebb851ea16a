//! Futures that are dropped at every point where they wait.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use dilated_attention::nn::Parameters;
use dilated_attention::{Context, PoolStats, Result};

/// Executors with several threads ask for it.
pub fn is_send(_: &impl Send) {}

/// Requested bytes once the device is done, which should be `expected`.
pub fn settled(context: &Context, expected: u64) -> u64 {
    until(context, |stats| stats.requested_bytes.current == expected)
}

/// Requested bytes once nothing but `weights` is leased.
pub fn requested_by(context: &Context, weights: &Parameters) -> u64 {
    let leases = weights.iter().count() as u64;
    until(context, |stats| {
        stats.leases.current == leases && stats.pending.current == 0
    })
}

/// Requested bytes once the device is done. What was under way is given back by callbacks, which another polling thread may be
/// running: they get two seconds to arrive where `done` holds.
fn until(context: &Context, done: impl Fn(&PoolStats) -> bool) -> u64 {
    // A lost device has given everything back.
    let _ = context.wait();
    for _ in 0..100 {
        let _ = context.poll();
        if done(&context.pool().stats()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    context.pool().stats().requested_bytes.current
}

/// Polls a new future of `begin` once, then twice, and so on, and drops it, until one is ready; its result, and how often it had
/// to be polled. The device is done before each poll, so that each goes on to the next point where the future waits. Every
/// other time the device is done before the drop, too. Nothing but `weights` is leased after each.
///
/// `context` must be the test's own.
pub fn give_up_everywhere<'a, T>(
    context: &Context,
    weights: &Parameters,
    begin: impl Fn() -> Pin<Box<dyn Future<Output = Result<T>> + 'a>>,
) -> (T, usize) {
    let before = requested_by(context, weights);
    let mut waker = TaskContext::from_waker(Waker::noop());
    for polls in 0.. {
        for done_first in [false, true] {
            let mut future = begin();
            let mut result = None;
            for poll in 0..polls {
                if let Poll::Ready(ready) = future.as_mut().poll(&mut waker) {
                    result = Some((ready.unwrap(), poll + 1));
                    break;
                }
                if done_first || poll + 1 < polls {
                    context.wait().expect("waits");
                }
            }
            drop(future);
            let left = settled(context, before);
            assert_eq!(left, before, "{polls} polls, device done: {done_first}");
            assert!(context.pool().stats().identities_hold());
            if let Some(result) = result {
                return result;
            }
        }
    }
    unreachable!("a future that is never ready")
}
