//! Plans of the backward: what they print, and that the dispatches of each pass together visit every query with its keys.

use std::collections::{HashMap, HashSet};

use expect_test::expect_file;
use proptest::prelude::*;

use super::check_window;
use super::packed::PackedKeys;
use crate::device::{DeviceCaps, Processor};
use crate::kernels::Pass;
use crate::plan::BackwardPlan;
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::{AttentionDispatch, KeySource};
use crate::plan::window::TokenWindow;
use crate::pool::Demand;
use crate::{
    AttentionShape, DType, DilatedAttentionConfig, HeadOffsets, Heads, Mask, MixGradient,
    OutputRows, Padding,
};

/// A processor whose kernels keep the weights in memory.
const KEEPS_WEIGHTS: Processor = Processor::Cpu {
    lanes: 8,
    uniform_loads: false,
    broadcasts: true,
};

fn plan(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
    caps: &DeviceCaps,
) -> BackwardPlan {
    config
        .plan_backward(shape, DType::F32, caps)
        .expect("plans")
}

#[test]
fn backward_plans_print_as_tables() {
    let config = DilatedAttentionConfig::new(12, 64, &[2048, 8192], &[1, 4])
        .expect("valid")
        .with_mask(Mask::Causal);
    let shape = AttentionShape::new(2, 8192)
        .and_then(|shape| shape.with_valid_lens(&[8192, 5000]))
        .expect("valid");
    let caps = DeviceCaps::webgpu_defaults();
    let in_memory = caps.clone().with_processor(KEEPS_WEIGHTS);
    let detached = config.clone().with_torchscale();
    let few = AttentionShape::new(1, 1500).expect("valid");
    let two_heads = config.clone().with_size(2, 64).expect("valid");
    let plans = [
        plan(&config, &shape, &caps),
        plan(&detached, &shape, &caps),
        plan(&two_heads, &few, &in_memory),
    ];
    expect_file![concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/snapshots/backward.txt"
    )]
    .assert_eq(&plans.map(|plan| plan.to_string()).join("\n\n"));
}

/// What the passes of a plan do, on indices.
#[derive(Default)]
struct Done {
    /// (pass, branch, item, head, query row, key row), rows counted over all segments of a branch -> how often.
    pairs: HashMap<(Pass, u32, u32, u32, u32, u32), u32>,
    /// (pass, item, head, token) that hold a result.
    written: HashSet<(Pass, u32, u32, u32)>,
}

/// Passes are in order, merge only with what is there, and touch nothing outside of their windows.
fn execute(plan: &BackwardPlan, config: &DilatedAttentionConfig, caps: &DeviceCaps) -> Done {
    let mut done = Done::default();
    let exact = config.gradient() == MixGradient::Exact;
    let num_heads = config.num_heads() as u64;
    let (row_bytes, state_bytes, stats_bytes) = (num_heads * 32, num_heads * 8, num_heads * 16);
    let [seq_len, key_len] = [plan.shape.seq_len(), plan.shape.key_len()].map(|len| len as u64);
    let mut swept: Option<u32> = None;
    // Items of which a gradient was begun.
    let mut graded: HashSet<u32> = HashSet::new();
    let mut weights: Option<AttentionDispatch> = None;
    let call = (config, &plan.shape);
    let mut packed = PackedKeys::default();
    // (pass, index in packed gradients) that hold a result, and the indices that hold what there was among the tokens before.
    let mut packed_written: HashSet<(Pass, u32)> = HashSet::new();
    let mut packed_before: HashSet<u32> = HashSet::new();
    let of_keys = plan
        .variant
        .passes()
        .iter()
        .filter(|pass| pass.is_of_keys());
    for dispatch in &plan.dispatches {
        let geometry = &dispatch.geometry;
        let pass = dispatch.pass;
        match pass {
            Pass::PackKeys => {
                packed.pack(dispatch, call);
                packed_written.clear();
                packed_before.clear();
                continue;
            }
            Pass::PackGradients => {
                let copied = packed.copied(dispatch, call).into_iter();
                packed_before.extend(copied.filter_map(|key| key.packed_at));
                continue;
            }
            Pass::UnpackGradients => {
                for key in packed.copied(dispatch, call) {
                    let index = key.packed_at.expect("packed");
                    let (item, token, head) = key.owner;
                    for pass in of_keys.clone() {
                        assert!(
                            packed_written.contains(&(*pass, index)),
                            "nothing to copy back"
                        );
                        let is_new = done.written.insert((*pass, item, head, token));
                        assert!(is_new || packed_before.contains(&index), "overwritten");
                    }
                }
                continue;
            }
            Pass::BranchDelta => {
                let items = dispatch.items.begin..dispatch.items.end;
                assert!(!exact || items.clone().all(|item| !graded.contains(&item)));
                // Sums of another branch are not wanted any more.
                if !exact && swept != Some(geometry.branch) {
                    done.written.retain(|place| place.0 != pass);
                }
                swept = Some(geometry.branch);
            }
            _ if !exact => assert_eq!(swept, Some(geometry.branch), "the sums are of this branch"),
            _ => assert!(swept.is_some()),
        }
        if pass != Pass::BranchDelta {
            graded.extend(dispatch.items.begin..dispatch.items.end);
        }
        if pass == Pass::Weights {
            weights = Some(dispatch.clone());
        } else if pass != Pass::BranchDelta
            && let Some(weights) = &weights
        {
            let of = |d: &AttentionDispatch| (d.geometry.branch, d.items, d.heads, d.segments);
            assert_eq!(of(weights), of(dispatch));
            assert_eq!(
                (weights.rows, weights.key_rows),
                (dispatch.rows, dispatch.key_rows)
            );
        }
        let of_keys = (dispatch.keys == KeySource::Tokens).then_some(row_bytes);
        for (window, row_bytes) in [
            (dispatch.q, Some(row_bytes)),
            (dispatch.kv, of_keys),
            (dispatch.out, Some(row_bytes)),
            (dispatch.state, Some(state_bytes)),
            (dispatch.row_stats, Some(stats_bytes)),
        ] {
            check_window(window, row_bytes, caps);
        }
        // Something is bound, beside what comes before it for the sake of alignment.
        for (window, row, element) in [
            (dispatch.q, row_bytes, 16),
            (dispatch.out, row_bytes, 16),
            (dispatch.state, state_bytes, 8),
            (dispatch.row_stats, stats_bytes, 16),
        ] {
            assert!(window.bytes.size >= u64::from(window.skip) * element + row);
        }
        for item in dispatch.items.begin..dispatch.items.end {
            let check = |window: TokenWindow, place: [u64; 3], bytes: [u64; 2]| {
                let [len, token, first] = place;
                let [row_bytes, element_bytes] = bytes;
                let row = u64::from(item - dispatch.items.begin) * len + token;
                let row = row.checked_sub(first).expect("not before the window");
                let end = u64::from(window.skip) * element_bytes + (row + 1) * row_bytes;
                assert!(end <= window.bytes.size, "behind the window");
            };
            let [first_query, _, first_out] = dispatch.first_tokens.map(u64::from);
            for segment in dispatch.segments.begin..dispatch.segments.end {
                for head in dispatch.heads.begin..dispatch.heads.end {
                    let token = |row: u32| {
                        segment * geometry.segment_length
                            + geometry.offset(head)
                            + row * geometry.dilation_rate
                    };
                    let real = geometry.real_rows(segment, head);
                    let end = dispatch.rows.end.min(geometry.written_rows(segment, head));
                    let keys_end = dispatch.key_rows.end.min(geometry.real_keys(segment, head));
                    let mut targets = HashSet::new();
                    for row in dispatch.rows.begin..end {
                        let out = geometry.output_token(segment, head, row);
                        check(dispatch.out, [seq_len, out, first_out], [row_bytes, 16]);
                        check(dispatch.state, [seq_len, out, first_out], [state_bytes, 8]);
                        check(
                            dispatch.row_stats,
                            [seq_len, out, first_out],
                            [stats_bytes, 16],
                        );
                        if row < real {
                            let query = u64::from(token(row));
                            check(dispatch.q, [seq_len, query, first_query], [row_bytes, 16]);
                        }
                        match pass {
                            Pass::BranchDelta => _ = targets.insert(out as u32),
                            Pass::Dq if row < real => _ = targets.insert(token(row)),
                            _ => {}
                        }
                        let seen = geometry.visible_keys(segment, head, row);
                        for key in dispatch.key_rows.begin..dispatch.key_rows.end.min(seen) {
                            let [of_query, of_key] =
                                [row, key].map(|row| segment * geometry.rows_per_segment + row);
                            let pair = (pass, geometry.branch, item, head, of_query, of_key);
                            *done.pairs.entry(pair).or_default() += 1;
                        }
                    }
                    for row in dispatch.key_rows.begin..keys_end {
                        let key = packed.key(dispatch, call, [item, segment, head], row);
                        match key.packed_at {
                            _ if !pass.is_of_keys() => {}
                            None => _ = targets.insert(key.owner.1),
                            Some(index) => {
                                let is_new = packed_written.insert((pass, index));
                                let known = packed_before.contains(&index);
                                match dispatch.merges {
                                    true => {
                                        assert!(!is_new || known, "merged before it was written")
                                    }
                                    false => assert!(is_new && !known, "overwritten"),
                                }
                            }
                        }
                    }
                    let (clears, len) = match pass {
                        Pass::BranchDelta | Pass::Dq => (&plan.query_clears, seq_len),
                        _ => (&plan.key_clears, key_len),
                    };
                    for token in targets {
                        let row = u64::from(item) * len + u64::from(token);
                        let cleared = clears
                            .iter()
                            .any(|(begin, end)| (*begin..*end).contains(&row));
                        let is_new = done.written.insert((pass, item, head, token));
                        match dispatch.merges {
                            true => assert!(!is_new || cleared, "merged before it was written"),
                            false => assert!(is_new, "overwritten"),
                        }
                    }
                }
            }
        }
    }
    done
}

/// All pairs of a query and a key, once each in every pass, and every gradient written or cleared.
fn check(config: &DilatedAttentionConfig, shape: &AttentionShape, caps: &DeviceCaps) {
    let plan = plan(config, shape, caps);
    let done = execute(&plan, config, caps);
    let mut passes = vec![Pass::BranchDelta];
    passes.extend(plan.variant.passes());
    let mut expected = 0;
    for item in 0..shape.batch() {
        let [len, keys] = [shape.valid_len(item), shape.valid_key_len(item)].map(|len| len as u32);
        let item = item as u32;
        for branch in 0..config.branches().len() as u32 {
            if len == 0 {
                continue;
            }
            let geometry = BranchGeometry::cross(config, branch, len, keys);
            for head in geometry.head_begin..geometry.head_begin + geometry.head_count {
                for segment in 0..geometry.num_segments {
                    for row in 0..geometry.written_rows(segment, head) {
                        for key in 0..geometry.visible_keys(segment, head, row) {
                            let [row, key] =
                                [row, key].map(|row| segment * geometry.rows_per_segment + row);
                            for pass in &passes {
                                let pair = (*pass, branch, item, head, row, key);
                                assert_eq!(done.pairs.get(&pair), Some(&1), "{pair:?}");
                                expected += 1;
                            }
                        }
                    }
                }
            }
        }
        for head in 0..config.num_heads() as u32 {
            for (clears, len, of) in [
                (&plan.query_clears, shape.seq_len(), &[Pass::Dq][..]),
                (&plan.key_clears, shape.key_len(), plan.variant.passes()),
            ] {
                let of_keys = |pass: &&Pass| matches!(pass, Pass::DkDv | Pass::Dk | Pass::Dv);
                let of = of.iter().filter(|pass| of.len() == 1 || of_keys(pass));
                for (pass, token) in of.flat_map(|pass| (0..len as u32).map(move |t| (*pass, t))) {
                    let row = u64::from(item) * len as u64 + u64::from(token);
                    let cleared = clears
                        .iter()
                        .any(|(begin, end)| (*begin..*end).contains(&row));
                    let written = done.written.contains(&(pass, item, head, token));
                    assert!(cleared || written, "{pass:?} of {item}, {head}, {token}");
                }
            }
        }
    }
    assert_eq!(done.pairs.len(), expected, "no other pairs");
    // All windows of weights take turns in one buffer, which is as large as the largest needs.
    let of_weights = plan.dispatches.iter().filter(|d| d.pass == Pass::Weights);
    let most = plan.variant.weights_tile().map_or(0, |tile| {
        of_weights.map(|d| d.weights_bytes(tile)).max().unwrap_or(0)
    });
    assert_eq!(plan.weights_bytes, most);
    assert!(most <= caps.max_binding_bytes().min(16 << 20));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_visit_every_query_with_its_keys(
        (batch, seq_len, num_heads) in (1usize..3, 1usize..60, 1usize..5),
        branches in prop::collection::vec((1usize..70, 1usize..6), 1..4),
        binding_rows in 1u64..100,
        part_rows in prop::option::of(1u64..70),
        [round_robin, torchscale_rows, zero_keys, partitioned, causal] in any::<[bool; 5]>(),
        (detached, keeps_weights) in any::<(bool, bool)>(),
        shorten in prop::option::of(0usize..60),
    ) {
        let (segments, rates): (Vec<usize>, Vec<usize>) = branches.into_iter().unzip();
        let config = DilatedAttentionConfig::new(num_heads, 8, &segments, &rates).expect("valid")
            .with_head_offsets(if round_robin { HeadOffsets::RoundRobin } else { HeadOffsets::Blocked })
            .with_output_rows(if torchscale_rows { OutputRows::Torchscale } else { OutputRows::Aligned })
            .with_padding(if zero_keys { Padding::ZeroKeys } else { Padding::Masked })
            .with_heads(if partitioned { Heads::Partitioned } else { Heads::EveryBranch })
            .with_gradient(if detached { MixGradient::DetachedMix } else { MixGradient::Exact })
            .with_mask(if causal { Mask::Causal } else { Mask::Full });
        let mut shape = AttentionShape::new(batch, seq_len).expect("valid");
        if let Some(shorten) = shorten {
            let mut lens = vec![seq_len; batch];
            lens[0] = seq_len.saturating_sub(shorten);
            shape = shape.with_valid_lens(&lens).expect("valid");
        }
        let caps = DeviceCaps { part_rows, ..DeviceCaps::webgpu_defaults() };
        let caps = match keeps_weights {
            false => caps.with_max_binding_bytes(256 + binding_rows * num_heads as u64 * 32),
            // The weights of one tile need 20 KiB.
            true => caps.with_processor(KEEPS_WEIGHTS).with_max_binding_bytes((20 << 10) + binding_rows * 1024),
        };
        check(&config, &shape, &caps);
    }

    #[test]
    fn passes_of_two_sequences_visit_all_pairs(
        (batch, seq_len, key_len) in (1usize..3, 1usize..40, 1usize..40),
        binding_rows in 1u64..60,
        part_rows in prop::option::of(1u64..50),
        lens in prop::option::of((0usize..40, 0usize..40)),
    ) {
        let config = DilatedAttentionConfig::dense(3, 8).expect("valid");
        let mut shape = AttentionShape::cross(batch, seq_len, key_len).expect("valid");
        if let Some((len, keys)) = lens {
            let of_first = |whole: usize, first: usize| {
                let mut lens = vec![whole; batch];
                lens[0] = whole.min(first);
                lens
            };
            shape = shape.with_valid_lens(&of_first(seq_len, len))
                .and_then(|shape| shape.with_valid_key_lens(&of_first(key_len, keys)))
                .expect("valid");
        }
        let caps = DeviceCaps { part_rows, ..DeviceCaps::webgpu_defaults() }
            .with_max_binding_bytes(256 + binding_rows * 96);
        check(&config, &shape, &caps);
    }
}

#[test]
fn weights_of_many_heads_segments_and_items_share_a_dispatch() {
    // 4 rows of 8 lanes are a tile of 32: the weights of a segment of 32 rows are 2 matrices of 32 rows and 36 words.
    let config = DilatedAttentionConfig::new(6, 8, &[32], &[1]).expect("valid");
    let shape = AttentionShape::new(5, 4 * 32).expect("valid");
    let bytes = 2 * 32 * 36 * 4;
    let caps = DeviceCaps::webgpu_defaults().with_processor(KEEPS_WEIGHTS);
    let parts = |at_once: u64| {
        let plan = plan(
            &config,
            &shape,
            &caps.clone().with_max_binding_bytes(at_once * bytes),
        );
        let weights = plan.dispatches.iter().filter(|d| d.pass == Pass::Weights);
        let lens = |d: &AttentionDispatch| [d.items, d.segments, d.heads].map(|range| range.len());
        let lens: HashSet<_> = weights.clone().map(lens).collect();
        let mut lens: Vec<_> = lens.into_iter().collect();
        lens.sort_unstable();
        (weights.count(), lens, plan.weights_bytes / bytes)
    };
    assert_eq!(parts(1), (5 * 4 * 6, vec![[1, 1, 1]], 1));
    assert_eq!(parts(4), (5 * 4 * 2, vec![[1, 1, 3]], 3));
    assert_eq!(parts(13), (5 * 2, vec![[1, 2, 6]], 12));
    assert_eq!(parts(74), (2, vec![[2, 4, 6], [3, 4, 6]], 72));
}

#[test]
fn gradients_are_asked_for_with_their_bytes() {
    let config = DilatedAttentionConfig::dense(3, 8).expect("valid");
    let shape = AttentionShape::cross(2, 50, 30).expect("valid");
    let plan = plan(&config, &shape, &DeviceCaps::webgpu_defaults());
    let asked: Vec<_> = plan
        .buffers()
        .iter()
        .map(|buffer| (buffer.label.to_string(), buffer.bytes))
        .collect();
    let expected = [
        ("row statistics", 2 * 50 * 3 * 16),
        ("dq", 2 * 50 * 96),
        ("dk", 2 * 30 * 96),
        ("dv", 2 * 30 * 96),
    ];
    assert_eq!(
        asked[..4],
        expected.map(|(label, bytes)| (label.to_owned(), bytes))
    );
    assert_eq!(plan.num_dispatches(), 3);
    // 5 products of 50 x 30 x 8, for 2 items of 3 heads.
    assert_eq!(plan.flop, 5 * 2 * 50 * 30 * 8 * 6);
    // The larger of q and k counts for all of q, k, v, dout, dq, dk and dv.
    assert_eq!(plan.byte_floor, 7 * 2 * 50 * 96);
    assert_eq!(
        plan.requested_bytes(),
        plan.buffers()
            .iter()
            .map(|buffer| buffer.bytes)
            .sum::<u64>()
    );
    assert!(plan.held_bytes() > plan.requested_bytes());
    for dispatch in &plan.dispatches {
        let [rows, keys] = [dispatch.rows, dispatch.key_rows].map(|range| [range.begin, range.end]);
        assert_eq!((rows, keys), ([0, 50], [0, 30]));
    }
}

#[test]
fn each_tensor_of_a_backward_has_parts_of_its_own() {
    // In half precision with short heads, the statistics of a row are the largest.
    let config = DilatedAttentionConfig::dense(64, 4).expect("valid");
    let caps = DeviceCaps {
        max_buffer_bytes: 1 << 20,
        ..DeviceCaps::webgpu_defaults()
    };
    let shape = AttentionShape::new(1, 1025).expect("valid");
    let plan = config
        .plan_backward(&shape, DType::F16, &caps)
        .expect("plans");
    let storage: Vec<_> = plan.buffers[..5]
        .iter()
        .map(|buffer| (buffer.label, buffer.requested_bytes))
        .collect();
    let width = 64 * 4 * 2;
    assert_eq!(
        storage,
        [
            ("row statistics", 1 << 20),
            ("row statistics", 1024),
            ("dq", 1025 * width),
            ("dk", 1025 * width),
            ("dv", 1025 * width),
        ]
    );
}

#[test]
fn what_no_dispatch_reaches_is_cleared() {
    let config = DilatedAttentionConfig::dense(3, 8).expect("valid");
    let shape = AttentionShape::cross(3, 50, 30)
        .and_then(|shape| shape.with_valid_lens(&[0, 50, 40]))
        .and_then(|shape| shape.with_valid_key_lens(&[30, 7, 30]))
        .expect("valid");
    let plan = plan(&config, &shape, &DeviceCaps::webgpu_defaults());
    assert_eq!(plan.query_clears, [(0, 50), (140, 150)]);
    // Keys without a query have no gradient.
    assert_eq!(plan.key_clears, [(0, 30), (37, 60)]);
}
