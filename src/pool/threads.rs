//! Which thread uses which shard.

use std::cell::Cell;
use std::sync::Mutex;

use super::core::NUM_SHARDS;
use super::sync::lock;

/// The shard of this thread. A new thread gets the shard with the fewest threads, so that up to [`NUM_SHARDS`] threads alive
/// at a time have one each.
#[inline]
pub(super) fn own_shard() -> usize {
    const NONE: usize = usize::MAX;
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(NONE) };
    }
    let own = OWN.get();
    if own != NONE {
        return own;
    }
    let own = choose_shard();
    OWN.set(own);
    own
}

#[cold]
fn choose_shard() -> usize {
    static THREADS: Mutex<[u32; NUM_SHARDS]> = Mutex::new([0; NUM_SHARDS]);

    struct Member(usize);

    impl Drop for Member {
        fn drop(&mut self) {
            lock(&THREADS)[self.0] -= 1;
        }
    }

    thread_local! {
        static MEMBER: Member = {
            let mut threads = lock(&THREADS);
            let fewest = (0..NUM_SHARDS).min_by_key(|&shard| threads[shard]).unwrap_or(0);
            threads[fewest] += 1;
            Member(fewest)
        };
    }
    // A thread that is ending has already given its shard back.
    MEMBER.try_with(|member| member.0).unwrap_or(0)
}
