//! Plans of decoding steps: their dispatches together are one row of the attention, read from where the caches hold it.

use std::collections::HashMap;

use proptest::prelude::*;

use super::check_window;

use crate::config::{DilatedAttentionConfig, HeadOffsets, Heads, Mask, OutputRows, Padding};
use crate::device::{ByteRange, DeviceCaps, ElementFormat};
use crate::error::Error;
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::AttentionDispatch;
use crate::plan::step::{StepLayout, StepPlan, plan_step};
use crate::plan::window::TokenWindow;

/// Elements in a head.
const HEAD_DIM: usize = 8;

/// First and last byte of what a window holds, without what comes before its first row for the sake of alignment.
fn bytes_of(window: TokenWindow, element_bytes: u64) -> [u64; 2] {
    let ByteRange { offset, size } = window.bytes;
    [
        offset + u64::from(window.skip) * element_bytes,
        offset + size,
    ]
}

/// The bytes of rows `first ..= last`.
fn rows(first: u64, last: u64, row_bytes: u64) -> [u64; 2] {
    [first * row_bytes, (last + 1) * row_bytes]
}

fn caps(max_rows: u64, num_heads: usize) -> DeviceCaps {
    let row_bytes = (num_heads * HEAD_DIM * 4) as u64;
    DeviceCaps::webgpu_defaults().with_max_binding_bytes(256 + max_rows * row_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_together_are_the_row_of_their_token(
        (batch, token, num_heads) in (1u32..4, 0u32..70, 1usize..6),
        branches in prop::collection::vec((1usize..90, 1usize..7), 1..4),
        (spare, max_rows) in (0u32..9, 1u64..100),
        part_rows in prop::option::of(1u64..80),
        [round_robin, torchscale, zero_keys, partitioned, query_cache] in any::<[bool; 5]>(),
    ) {
        let (segments, rates): (Vec<usize>, Vec<usize>) = branches.iter().copied().unzip();
        let config = DilatedAttentionConfig::new(num_heads, HEAD_DIM, &segments, &rates).expect("valid")
            .with_mask(Mask::Causal)
            .with_head_offsets(if round_robin { HeadOffsets::RoundRobin } else { HeadOffsets::Blocked })
            .with_output_rows(if torchscale { OutputRows::Torchscale } else { OutputRows::Aligned })
            .with_padding(if zero_keys { Padding::ZeroKeys } else { Padding::Masked })
            .with_heads(if partitioned { Heads::Partitioned } else { Heads::EveryBranch });
        let capacity = token + 1 + spare;
        let caps = DeviceCaps { part_rows, ..caps(max_rows, num_heads) };
        let layout = StepLayout { batch, token, capacity, query_cache };
        let StepPlan { clears, dispatches } =
            plan_step(&config, &caps, ElementFormat::F32, layout).expect("plans");
        let [row_bytes, state_bytes, stats_bytes] = [32, 8, 16].map(|bytes| bytes * num_heads as u64);
        // (item, head, branch) -> its keys, in the order in which they are seen; and who wrote an output first.
        let mut seen: HashMap<(u32, u32, u32), Vec<u32>> = HashMap::new();
        let mut written: HashMap<(u32, u32), u32> = HashMap::new();
        for dispatch in &dispatches {
            let AttentionDispatch { geometry, items, heads, segments, rows: queries, key_rows, .. } = dispatch;
            prop_assert_eq!((items.len(), segments.len(), queries.len()), (1, 1, 1));
            let (item, segment, row) = (items.begin, segments.begin, queries.begin);
            prop_assert_eq!(dispatch.num_workgroups, heads.len());
            prop_assert!(dispatch.grid[0] * dispatch.grid[1] >= heads.len());
            let place = |row: u32| {
                segment * geometry.segment_length + geometry.offset(heads.begin) + row * geometry.dilation_rate
            };
            for head in heads.begin..heads.end {
                prop_assert_eq!(geometry.row_of_output(head, token), Some((segment, row)));
                prop_assert_eq!(geometry.offset(head), geometry.offset(heads.begin));
                let keys = seen.entry((item, head, geometry.branch)).or_default();
                keys.extend(key_rows.begin..key_rows.end);
                match dispatch.merges {
                    true => prop_assert!(clears || written.contains_key(&(item, head))),
                    false => prop_assert_eq!(written.get(&(item, head)), None),
                }
                *written.entry((item, head)).or_default() += 1;
            }
            for (window, row_bytes) in [
                (dispatch.q, row_bytes),
                (dispatch.kv, row_bytes),
                (dispatch.out, row_bytes),
                (dispatch.state, state_bytes),
            ] {
                check_window(window, Some(row_bytes), &caps);
            }
            // Where the caches hold what is read. A row without a query reads none.
            let in_cache = u64::from(item * capacity);
            let [first_query, first_key, first_out] = dispatch.first_tokens;
            if row < geometry.real_rows(segment, heads.begin) {
                prop_assert_eq!(first_query, place(row));
            }
            let query = if query_cache { in_cache + u64::from(first_query) } else { item.into() };
            prop_assert_eq!(bytes_of(dispatch.q, 16), rows(query, query, row_bytes));
            let keys = match key_rows.len() {
                0 => [0, 0],
                _ => [key_rows.begin, key_rows.end - 1].map(place),
            };
            prop_assert_eq!(first_key, keys[0]);
            let [first, last] = keys.map(|key| in_cache + u64::from(key));
            prop_assert_eq!(bytes_of(dispatch.kv, 16), rows(first, last, row_bytes));
            prop_assert_eq!(first_out, token);
            let item = u64::from(item);
            prop_assert_eq!(bytes_of(dispatch.out, 16), rows(item, item, row_bytes));
            prop_assert_eq!(bytes_of(dispatch.state, 8), rows(item, item, state_bytes));
            prop_assert_eq!(bytes_of(dispatch.row_stats, 16), rows(item, item, stats_bytes));
        }
        let mut whole = false;
        for branch in 0..branches.len() as u32 {
            let geometry = BranchGeometry::new(&config, branch, token + 1);
            let own = geometry.head_begin..geometry.head_begin + geometry.head_count;
            let row_of = |head| match own.contains(&head) {
                true => geometry.row_of_output(head, token),
                false => None,
            };
            let first = row_of(0);
            whole |= first.is_some() && (0..num_heads as u32).all(|head| row_of(head) == first);
            for item in 0..batch {
                for head in 0..num_heads as u32 {
                    let expected = row_of(head).map(|(segment, row)| {
                        (0..geometry.visible_keys(segment, head, row)).collect::<Vec<_>>()
                    });
                    prop_assert_eq!(seen.remove(&(item, head, branch)), expected);
                }
            }
        }
        prop_assert!(seen.is_empty());
        // Only where one branch writes all heads of each item at once, nothing need be cleared.
        prop_assert_eq!(clears, !whole);
    }
}

/// The heads and keys of each dispatch, and whether it merges.
fn parts(plan: &StepPlan) -> Vec<([u32; 2], [u32; 2], bool)> {
    let dispatches = plan.dispatches.iter();
    let part = |dispatch: &AttentionDispatch| {
        let (heads, keys) = (dispatch.heads, dispatch.key_rows);
        (
            [heads.begin, heads.end],
            [keys.begin, keys.end],
            dispatch.merges,
        )
    };
    dispatches.map(part).collect()
}

#[test]
fn keys_of_a_step_are_cut_where_a_binding_ends() {
    let config = DilatedAttentionConfig::new(2, HEAD_DIM, &[64, 64], &[2, 1]).expect("valid");
    let config = config
        .with_mask(Mask::Causal)
        .with_head_offsets(HeadOffsets::RoundRobin);
    let layout = StepLayout {
        batch: 1,
        token: 12,
        capacity: 20,
        query_cache: false,
    };
    let plan = |max_rows| plan_step(&config, &caps(max_rows, 2), ElementFormat::F32, layout);
    // From a token whose bytes begin at a multiple of 256 on, a binding holds 10 tokens, and 6 more at least: 5 keys of rate 2 and 10
    // of rate 1 at first. The branch with all heads is first, and only the head with offset 0 has token 12 in the other one.
    let cut = plan(6).expect("plans");
    assert!(!cut.clears);
    assert_eq!(
        parts(&cut),
        [
            ([0, 2], [0, 10], false),
            ([0, 1], [0, 5], true),
            ([0, 1], [5, 7], true),
            ([0, 2], [10, 13], true),
        ]
    );
    assert_eq!(
        parts(&plan(100).expect("plans")),
        [([0, 2], [0, 13], false), ([0, 1], [0, 7], true)]
    );
    // Parts of 5 tokens, which are 3 keys of rate 2, then 2, then 2.
    let caps_of_parts = DeviceCaps {
        part_rows: Some(5),
        ..caps(100, 2)
    };
    let plan_of_parts = plan_step(&config, &caps_of_parts, ElementFormat::F32, layout);
    assert_eq!(
        parts(&plan_of_parts.expect("plans")),
        [
            ([0, 2], [0, 5], false),
            ([0, 1], [0, 3], true),
            ([0, 1], [3, 5], true),
            ([0, 1], [5, 7], true),
            ([0, 2], [5, 10], true),
            ([0, 2], [10, 13], true),
        ]
    );
    // A single key is in reach whatever the rate.
    assert_eq!(parts(&plan(1).expect("plans")).len(), 3 + 3);
    let tight = caps(0, 2).with_max_binding_bytes(60);
    let refused = plan_step(&config, &tight, ElementFormat::F32, layout);
    let refused = refused.expect_err("no token fits");
    let Error::BindingTooSmall {
        requested_bytes,
        limit_bytes,
        ..
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!((requested_bytes, limit_bytes), (64 + 256, 60));
}

#[test]
fn a_padding_row_is_written_without_a_key() {
    // Segments of 2 tokens with offsets up to 3: the last two heads have no token of a segment, and write behind it.
    let config = DilatedAttentionConfig::new(4, HEAD_DIM, &[2], &[4])
        .expect("valid")
        .with_mask(Mask::Causal)
        .with_torchscale();
    let layout = StepLayout {
        batch: 1,
        token: 7,
        capacity: 10,
        query_cache: true,
    };
    let plan = plan_step(&config, &caps(100, 4), ElementFormat::F32, layout).expect("plans");
    assert!(plan.clears);
    assert_eq!(parts(&plan), [([3, 4], [0, 0], true)]);
    // Whatever is bound in place of the query and the keys is in the caches.
    let dispatch = &plan.dispatches[0];
    assert_eq!(dispatch.first_tokens, [7, 0, 7]);
    assert_eq!(bytes_of(dispatch.kv, 16), rows(0, 0, 128));
}
