//! What concerns all shards together, as plain data: pressure, lines, windows, what was given up and made anew; and lists of classes.

use crate::pool::ledger::{Budget, Ledger};
use crate::pool::lists::Lists;
use crate::pool::shard::{Gauge, NUM_GAUGES};
use crate::pool::{EvictionCause, Limits, Pressure};

fn budget(bytes: Option<u64>) -> Budget {
    Budget {
        bytes,
        graceful: 0.5,
        aggressive: 0.75,
    }
}

#[test]
fn watermarks_are_passed_above_their_fraction() {
    let pressures =
        |budget: Budget| [0, 50, 51, 75, 76, 1000].map(|held_bytes| budget.pressure(held_bytes));
    let (normal, graceful, aggressive) =
        (Pressure::Normal, Pressure::Graceful, Pressure::Aggressive);
    assert_eq!(
        pressures(budget(Some(100))),
        [normal, normal, graceful, graceful, aggressive, aggressive]
    );
    assert_eq!(pressures(budget(None)), [normal; 6]);
}

#[test]
fn lines_are_the_next_peak_or_limit() {
    let mut ledger = Ledger::new(budget(None));
    let all = |ledger: &Ledger| ledger.lines();
    // A new pool has seen nothing.
    assert_eq!(all(&ledger), [0; NUM_GAUGES]);
    ledger.watches[0].peaks = [10_000; NUM_GAUGES];
    ledger.watch([9000; NUM_GAUGES], 0);
    ledger.window_peaks = [640, 3200];
    let mut expected = [9000; NUM_GAUGES];
    // A thirty-second above the recent peak.
    expected[Gauge::LiveBytes as usize] = 3300;
    assert_eq!(all(&ledger), expected);
    ledger.limits = Limits {
        free_buffers: 7,
        free_bytes: 700,
        ..Limits::NONE
    };
    expected[Gauge::Free as usize] = 7;
    expected[Gauge::FreeBytes as usize] = 700;
    assert_eq!(all(&ledger), expected);
    // Over the budget, whatever comes back is looked at.
    ledger.over_budget = true;
    expected[Gauge::Free as usize] = 0;
    assert_eq!(all(&ledger), expected);
    // Peaks of shards count up to the line.
    assert_eq!(ledger.recent_peak_live_bytes(3250), 3250);
    assert_eq!(ledger.recent_peak_live_bytes(5000), 3300);
    assert_eq!(ledger.recent_peak_live_bytes(100), 3200);
    ledger.end_window(1024, 50, 5000, 1);
    assert_eq!(ledger.window_peaks, [50, 3300]);
    assert_eq!(ledger.window_begin, 1024);
    ledger.end_window(2048, 60, 40, 2);
    assert_eq!(ledger.window_peaks, [60, 50]);
}

#[test]
fn idle_is_what_is_older_than_so_many_windows() {
    let mut ledger = Ledger::new(budget(None));
    for clock in [10, 20, 30] {
        ledger.end_window(0, 0, 0, clock);
    }
    let mut clock = |idle_windows| {
        ledger.limits.idle_windows = idle_windows;
        ledger.idle_clock()
    };
    assert_eq!([0, 1, 2, 3].map(&mut clock), [30, 30, 20, 10].map(Some));
    assert_eq!([4, 64, u32::MAX].map(&mut clock), [None; 3]);
    for at in 31..200 {
        ledger.end_window(0, 0, 0, at);
    }
    ledger.limits.idle_windows = Limits::MAX_IDLE_WINDOWS;
    assert_eq!(ledger.idle_clock(), Some(199 - 63));
    ledger.limits.idle_windows = Limits::MAX_IDLE_WINDOWS + 1;
    assert_eq!(ledger.idle_clock(), None);
}

#[test]
fn what_is_made_anew_is_noticed_once_for_each_given_up() {
    let mut ledger = Ledger::new(budget(None));
    let give_up = |ledger: &mut Ledger, count| {
        (0..count).for_each(|_| ledger.gave_up(EvictionCause::Retention, 1, 2));
    };
    let make = |ledger: &mut Ledger, count| (0..count).for_each(|_| ledger.made(1, 2));
    give_up(&mut ledger, 2);
    ledger.gave_up(EvictionCause::Idle, 1, 3);
    ledger.made(1, 3);
    ledger.made(2, 2);
    assert_eq!(ledger.recreations, 0);
    make(&mut ledger, 3);
    assert_eq!(ledger.recreations, 2);
    // Remembered in the next window, but not in the one after it.
    give_up(&mut ledger, 3);
    ledger.end_window(0, 0, 0, 0);
    make(&mut ledger, 1);
    assert_eq!(ledger.recreations, 3);
    ledger.end_window(0, 0, 0, 0);
    make(&mut ledger, 1);
    assert_eq!(ledger.recreations, 3);
    // A level for every 32 in a window, up to 4.
    let levels = [31, 1, 31, 1, 64, 320].map(|count| {
        give_up(&mut ledger, count);
        make(&mut ledger, count);
        ledger.thrash_level
    });
    assert_eq!(levels, [0, 1, 1, 2, 4, 4]);
    // And one less after 16 windows with fewer; this one had more.
    let mut after = |windows| {
        (0..windows).for_each(|_| ledger.end_window(0, 0, 0, 0));
        ledger.thrash_level
    };
    assert_eq!([1, 15, 1, 15, 1, 48].map(&mut after), [4, 4, 3, 3, 2, 0]);
}

#[test]
fn bytes_drain_until_their_submission_is_done() {
    let mut ledger = Ledger::new(budget(None));
    ledger.drain(3, 3, 100);
    assert_eq!(ledger.draining_bytes, 0);
    ledger.drain(5, 3, 10);
    ledger.drain(4, 3, 20);
    ledger.drain(6, 3, 40);
    let mut left = |completed| {
        ledger.drained(completed);
        ledger.draining_bytes
    };
    assert_eq!([3, 4, 5, 5, 6].map(&mut left), [70, 50, 40, 40, 0]);
}

#[test]
fn occupied_classes_are_those_with_a_cached_buffer() {
    let mut lists = Lists::new(0);
    let classes = [3, 63, 64, 65, 130, 200];
    for (index, class) in (0..).zip(classes) {
        lists.push(class, index);
        lists.push(class, 100 + index);
    }
    assert_eq!(lists.occupied().collect::<Vec<_>>(), classes);
    let first = |lists: &Lists, from, last| lists.first_occupied(from, last);
    assert_eq!(first(&lists, 4, 62), None);
    assert_eq!(first(&lists, 4, 63), Some(63));
    assert_eq!(first(&lists, 64, 500), Some(64));
    assert_eq!(first(&lists, 66, 129), None);
    assert_eq!(first(&lists, 66, 130), Some(130));
    assert_eq!(first(&lists, 201, usize::MAX), None);
    assert_eq!(first(&lists, usize::MAX, usize::MAX), None);
    // From below and from above; the class is empty with its last buffer.
    lists.take_out(64, 2);
    lists.take_out(65, 103);
    lists.take_out(63, 101);
    lists.take_out(63, 1);
    assert_eq!(lists.occupied().collect::<Vec<_>>(), [3, 64, 65, 130, 200]);
    assert_eq!(
        (&lists.classes[64].free[..], &lists.classes[65].free[..]),
        (&[102][..], &[3][..])
    );
    lists.take_out(64, 102);
    lists.take_out(3, 0);
    lists.take_out(3, 100);
    assert_eq!(lists.occupied().collect::<Vec<_>>(), [65, 130, 200]);
    lists.push(64, 9);
    assert_eq!(first(&lists, 0, 64), Some(64));
}
