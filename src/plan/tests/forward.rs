//! Plans of the forward: what they print, what they promise, and that their dispatches together are the attention.

use std::collections::HashMap;

use expect_test::expect_file;
use proptest::prelude::*;

use super::check_window;
use super::packed::PackedKeys;
use crate::device::{ByteRange, DeviceCaps, Processor};
use crate::kernels::Pass;
use crate::plan::ForwardPlan;
use crate::plan::dispatch::KeySource;
use crate::pool::{Demand, PoolError, STORAGE_USAGE};
use crate::{
    AttentionShape, DType, DilatedAttentionConfig, Error, HeadOffsets, Heads, Mask, OutputRows,
    Padding, wgpu,
};

#[test]
fn longnet_plan_prints_as_a_table() {
    let segments = [2048, 4096, 8192, 16_384, 32_768];
    let config = DilatedAttentionConfig::new(12, 64, &segments, &[1, 2, 4, 6, 12]).expect("valid");
    let shape = AttentionShape::new(1, 32_768).expect("valid");
    let plan = config
        .plan_forward(&shape, DType::F32, &DeviceCaps::webgpu_defaults())
        .expect("plans");
    expect_file![concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/snapshots/longnet.txt"
    )]
    .assert_eq(&plan.to_string());
}

#[test]
fn plan_with_windows_prints_as_a_table() {
    let config = DilatedAttentionConfig::new(16, 48, &[1024, 65_536], &[2, 4])
        .expect("valid")
        .with_torchscale()
        .with_mask(Mask::Causal);
    let shape = AttentionShape::new(2, 80_000)
        .and_then(|shape| shape.with_valid_lens(&[80_000, 50_000]))
        .expect("valid");
    let limits = wgpu::Limits {
        max_buffer_size: 1 << 30,
        max_storage_buffer_binding_size: 64 << 20,
        ..wgpu::Limits::default()
    };
    let cpu = Processor::Cpu {
        lanes: 8,
        uniform_loads: true,
        broadcasts: true,
    };
    let caps = DeviceCaps::from_limits(&limits).expect("large enough");
    let caps = caps.with_processor(cpu);
    let plan = config
        .plan_forward(&shape, DType::F32, &caps)
        .expect("plans");
    expect_file![concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/snapshots/windows.txt"
    )]
    .assert_eq(&plan.to_string());
}

#[test]
fn limits_give_typed_errors() {
    let config = DilatedAttentionConfig::new(64, 256, &[1024], &[1]).expect("valid");
    let caps = DeviceCaps::webgpu_defaults();
    let plan = |n: usize, caps: &DeviceCaps| {
        config.plan_forward(&AttentionShape::new(1, n).expect("valid"), DType::F32, caps)
    };
    // Sequences may be longer than a buffer, but one token may not be.
    plan(100_000, &caps).expect("lies in several buffers");
    let small = DeviceCaps {
        max_buffer_bytes: 65_532,
        ..caps.clone()
    };
    assert!(matches!(
        plan(1, &small),
        Err(Error::Pool(PoolError::BufferTooLarge {
            requested_bytes: 65_536,
            limit_bytes: 65_532,
            ..
        }))
    ));
    let tight = caps.with_max_binding_bytes(65_536);
    assert!(matches!(
        plan(16, &tight),
        Err(Error::BindingTooSmall {
            limit_bytes: 65_536,
            ..
        })
    ));
    let shape = AttentionShape::new(u32::MAX as usize, 2_000_000_000).expect("valid");
    assert!(matches!(
        config.plan_forward(&shape, DType::F32, &tight),
        Err(Error::SizeOverflow { .. })
    ));
    assert!(matches!(
        AttentionShape::new(1, u32::MAX as usize),
        Err(Error::InvalidShape { .. })
    ));
}

#[test]
fn empty_calls_plan_nothing() {
    let config = DilatedAttentionConfig::new(2, 8, &[4], &[1]).expect("valid");
    for (batch, seq_len) in [(0, 5), (5, 0), (0, 0)] {
        let shape = AttentionShape::new(batch, seq_len).expect("valid");
        let plan = config
            .plan_forward(&shape, DType::F32, &DeviceCaps::webgpu_defaults())
            .expect("plans");
        assert!(plan.dispatches().is_empty() && plan.clears().is_empty());
        assert_eq!(plan.flop, 0);
    }
}

#[test]
fn operations_are_those_of_real_tokens_heads_and_keys() {
    let flop = |config: &DilatedAttentionConfig, shape: &AttentionShape| {
        let caps = DeviceCaps::webgpu_defaults();
        let plan = config.plan_forward(shape, DType::F32, &caps);
        plan.expect("plans").flop
    };
    // Each of 40 tokens has 16 keys in the first branch; in the second, half of the tokens have half of 32 keys.
    let config = DilatedAttentionConfig::new(3, 8, &[16, 32], &[1, 2]).expect("valid");
    let whole = AttentionShape::new(2, 40).expect("valid");
    let of_40 = 3 * 8 * 4 * 40 * (16 + 32 / 4);
    assert_eq!(flop(&config, &whole), 2 * of_40);
    // An item of 20 tokens has segments of 20 tokens at most.
    let shorter = whole.clone().with_valid_lens(&[40, 20]).expect("valid");
    let of_20 = 3 * 8 * 4 * 20 * (16 + 20 / 4);
    assert_eq!(flop(&config, &shorter), of_40 + of_20);
    let causal = config.clone().with_mask(Mask::Causal);
    assert_eq!(flop(&causal, &whole), of_40);
    let plan = causal.plan_forward(&whole, DType::F32, &DeviceCaps::webgpu_defaults());
    assert_eq!(plan.expect("plans").num_dispatches(), 2);
    let partitioned = config.with_heads(Heads::Partitioned);
    assert_eq!(flop(&partitioned, &whole), of_40);
    // Two products of 50 x 30 x 8 in 3 heads, with 7 of 30 keys in the second item.
    let dense = DilatedAttentionConfig::dense(3, 8).expect("valid");
    let cross = AttentionShape::cross(2, 50, 30)
        .and_then(|shape| shape.with_valid_key_lens(&[30, 7]))
        .expect("valid");
    assert_eq!(flop(&dense, &cross), 2 * 2 * 50 * (30 + 7) * 8 * 3);
}

#[test]
fn rows_that_no_dispatch_writes_are_cleared() {
    let clears = |rates: &[usize], heads: Heads, lens: &[usize]| {
        let config = DilatedAttentionConfig::new(3, 8, &[10, 10][..rates.len()], rates)
            .expect("valid")
            .with_heads(heads);
        let shape = AttentionShape::new(lens.len(), 10)
            .and_then(|shape| shape.with_valid_lens(lens))
            .expect("valid");
        let caps = DeviceCaps::webgpu_defaults();
        let plan = config.plan_forward(&shape, DType::F32, &caps);
        plan.expect("plans").clears
    };
    let every = |rates: &[usize], lens: &[usize]| clears(rates, Heads::EveryBranch, lens);
    assert_eq!(every(&[2, 1], &[10, 10]), []);
    // Behind the tokens of each item; what touches is one range.
    assert_eq!(every(&[1], &[4, 10, 7]), [(4, 10), (27, 30)]);
    assert_eq!(every(&[1], &[4, 0, 10, 0]), [(4, 20), (30, 40)]);
    assert_eq!(every(&[2, 3], &[10, 4]), [(0, 20)]);
    // Of partitioned heads, all branches have to write every token.
    let partitioned = |rates: &[usize]| clears(rates, Heads::Partitioned, &[10, 9]);
    assert_eq!(partitioned(&[1, 1]), [(19, 20)]);
    assert_eq!(partitioned(&[1, 2]), [(0, 20)]);
}

#[test]
fn rows_without_keys_are_written_in_windows_too() {
    let config = DilatedAttentionConfig::dense(3, 8).expect("valid");
    let shape = AttentionShape::cross(1, 40, 20)
        .and_then(|shape| shape.with_valid_key_lens(&[0]))
        .expect("valid");
    // 8 rows of 96 bytes.
    let caps = DeviceCaps::webgpu_defaults().with_max_binding_bytes(256 + 8 * 96);
    let plan = config
        .plan_forward(&shape, DType::F32, &caps)
        .expect("plans");
    assert_eq!(plan.clears, []);
    let parts: Vec<_> = plan
        .dispatches
        .iter()
        .map(|d| (d.rows.begin..d.rows.end, d.key_rows.len(), d.merges))
        .collect();
    let expected = [0, 8, 16, 24, 32].map(|begin| (begin..begin + 8, 0, false));
    assert_eq!(parts, expected);
}

#[test]
fn what_a_forward_needs_is_told_in_bytes() {
    let config = DilatedAttentionConfig::new(3, 8, &[16], &[1]).expect("valid");
    let shape = AttentionShape::new(2, 50).expect("valid");
    let plan = |dtype| {
        let caps = DeviceCaps::webgpu_defaults();
        config.plan_forward(&shape, dtype, &caps).expect("plans")
    };
    let full = plan(DType::F32);
    let asked: Vec<(String, u64)> = full
        .buffers()
        .iter()
        .map(|buffer| (buffer.label.to_string(), buffer.bytes))
        .collect();
    assert_eq!(asked[0], ("out".to_owned(), 100 * 96));
    assert_eq!(asked[1], ("softmax_state".to_owned(), 100 * 24));
    let bytes = asked.iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert_eq!(full.requested_bytes(), bytes);
    assert!(full.held_bytes() > bytes);
    assert_eq!(full.num_dispatches(), 1);
    // q, k, v and the output.
    assert_eq!(full.byte_floor, 4 * 100 * 96);
    let range = |offset, size| ByteRange { offset, size };
    assert_eq!(full.out_range((7, 12)), range(7 * 96, 5 * 96));
    assert_eq!(full.state_range((7, 12)), range(7 * 24, 5 * 24));
    let half = plan(DType::F16);
    assert_eq!(half.out_range((7, 12)), range(7 * 48, 5 * 48));
    assert_eq!(half.state_range((7, 12)), range(7 * 24, 5 * 24));
    assert_eq!(half.byte_floor, 4 * 100 * 48);
    // Keys of another sequence may be what is largest.
    let dense = DilatedAttentionConfig::dense(3, 8).expect("valid");
    let caps = DeviceCaps {
        max_buffer_bytes: 1 << 16,
        ..DeviceCaps::webgpu_defaults()
    };
    let most = (1 << 16) / 96;
    let cross = |keys| {
        let shape = AttentionShape::cross(1, 5, keys).expect("valid");
        dense.plan_forward(&shape, DType::F32, &caps)
    };
    assert_eq!(cross(most).expect("plans").byte_floor, 4 * 682 * 96);
}

#[test]
fn tensors_larger_than_a_buffer_lie_in_several() {
    let caps = DeviceCaps {
        max_buffer_bytes: 1 << 16,
        ..DeviceCaps::webgpu_defaults()
    };
    // 512 tokens of 128 bytes fill a buffer to the byte; of their states it holds 2048.
    let config = DilatedAttentionConfig::dense(4, 8).expect("valid");
    let buffers = |tokens| {
        let shape = AttentionShape::new(1, tokens).expect("valid");
        let plan = config
            .plan_forward(&shape, DType::F32, &caps)
            .expect("plans");
        if tokens > 2048 {
            let text = plan.to_string();
            let cut = "tensors of queries lie in 5 buffers of 512 tokens of 2049";
            assert!(text.contains(cut), "{text}");
        }
        let storage = plan
            .buffers
            .iter()
            .filter(|buffer| buffer.usage == STORAGE_USAGE);
        storage
            .map(|buffer| (buffer.label, buffer.requested_bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(buffers(512), [("out", 65_536), ("softmax_state", 512 * 32)]);
    assert_eq!(
        buffers(513),
        [("out", 65_536), ("out", 128), ("softmax_state", 513 * 32)]
    );
    assert_eq!(
        buffers(2049),
        [
            ("out", 65_536),
            ("out", 65_536),
            ("out", 65_536),
            ("out", 65_536),
            ("out", 128),
            ("softmax_state", 65_536),
            ("softmax_state", 32),
        ]
    );
}

#[test]
fn a_plan_is_held_against_a_budget_and_a_rate() {
    let config = DilatedAttentionConfig::dense(2, 8).expect("valid");
    let shape = AttentionShape::new(1, 1000).expect("valid");
    let caps = DeviceCaps::webgpu_defaults();
    let forward = config
        .plan_forward(&shape, DType::F32, &caps)
        .expect("plans");
    let backward = config
        .plan_backward(&shape, DType::F32, &caps)
        .expect("plans");
    let refused = |result: crate::Result<()>| match result {
        Err(Error::PlanOverBudget {
            requested_bytes,
            budget_bytes,
            ..
        }) => (requested_bytes, budget_bytes),
        other => panic!("{other:?}"),
    };
    let held = forward.held_bytes();
    forward.check_budget(held).expect("fits");
    assert_eq!(refused(forward.check_budget(held - 1)), (held, held - 1));
    let held = backward.held_bytes();
    backward.check_budget(held).expect("fits");
    assert_eq!(refused(backward.check_budget(held - 1)), (held, held - 1));
    // 2 products of 1000 x 1000 x 8 for each of 2 heads; the backward has 5.
    assert_eq!(forward.time_at(64e6).as_secs_f64(), 1.0);
    assert_eq!(backward.time_at(64e6).as_secs_f64(), 2.5);
}

#[derive(Default)]
struct Row {
    /// (branch, key row) -> times it is counted.
    keys: HashMap<(u32, u32), u32>,
    initialised: bool,
}

/// Runs a plan's dispatches on indices: what each output row of each head sees, and how it is stored.
fn execute(
    plan: &ForwardPlan,
    config: &DilatedAttentionConfig,
    caps: &DeviceCaps,
) -> HashMap<(u64, u32), Row> {
    let row_bytes = config.embed_dim() as u64 * 4;
    let call = (config, &plan.shape);
    let mut packed = PackedKeys::default();
    let mut rows: HashMap<(u64, u32), Row> = HashMap::new();
    let seq_len = plan.shape.seq_len() as u64;
    for dispatch in plan.dispatches() {
        let of_keys = (dispatch.keys == KeySource::Tokens).then_some(row_bytes);
        check_window(dispatch.q, Some(row_bytes), caps);
        check_window(dispatch.kv, of_keys, caps);
        if dispatch.pass == Pass::Forward {
            check_window(dispatch.out, Some(row_bytes), caps);
            check_window(dispatch.state, Some(row_bytes / 4), caps);
        }
        let geometry = &dispatch.geometry;
        if dispatch.pass == Pass::PackKeys {
            packed.pack(dispatch, call);
            continue;
        }
        for window in [dispatch.q, dispatch.out] {
            assert!(window.bytes.size >= u64::from(window.skip) * 16 + row_bytes);
        }
        // Windows of keys after the first one are there for keys.
        let segments = dispatch.segments.begin..dispatch.segments.end;
        let mut keys = segments.flat_map(|segment| {
            let heads = dispatch.heads.begin..dispatch.heads.end;
            heads.map(move |head| geometry.real_keys(segment, head))
        });
        let first = dispatch.key_rows.begin;
        assert!(first == 0 || keys.any(|keys| keys > first));
        for item in dispatch.items.begin..dispatch.items.end {
            for segment in dispatch.segments.begin..dispatch.segments.end {
                for head in dispatch.heads.begin..dispatch.heads.end {
                    let written = geometry.written_rows(segment, head);
                    for t in dispatch.rows.begin..dispatch.rows.end.min(written) {
                        let token = geometry.output_token(segment, head, t);
                        let place = u64::from(item) * seq_len + token;
                        let cleared = plan
                            .clears()
                            .iter()
                            .any(|(begin, end)| (*begin..*end).contains(&place));
                        let row = rows.entry((place, head)).or_default();
                        if dispatch.merges {
                            assert!(row.initialised || cleared, "merged before it was written");
                        } else {
                            assert!(!row.initialised, "overwritten");
                        }
                        row.initialised = true;
                        let seen = geometry.visible_keys(segment, head, t);
                        for key in dispatch.key_rows.begin..dispatch.key_rows.end.min(seen) {
                            *row.keys.entry((geometry.branch, key)).or_default() += 1;
                        }
                        // What is touched lies in the windows.
                        let place =
                            |token: u64| u64::from(item - dispatch.items.begin) * seq_len + token;
                        let inside = |window: crate::plan::window::TokenWindow,
                                      token: u64,
                                      first: u32| {
                            let row = place(token)
                                .checked_sub(u64::from(first))
                                .expect("not before the window");
                            u64::from(window.skip) * 16 + (row + 1) * row_bytes <= window.bytes.size
                        };
                        assert!(inside(dispatch.out, token, dispatch.first_tokens[2]));
                        let token_of = |t: u32| {
                            u64::from(segment) * u64::from(geometry.segment_length)
                                + u64::from(geometry.offset(head))
                                + u64::from(t) * u64::from(geometry.dilation_rate)
                        };
                        if t < geometry.real_rows(segment, head) {
                            assert!(inside(dispatch.q, token_of(t), dispatch.first_tokens[0]));
                        }
                        for key in dispatch.key_rows.begin..dispatch.key_rows.end.min(seen) {
                            packed.key(dispatch, call, [item, segment, head], key);
                        }
                    }
                }
            }
        }
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever the windows: each row sees each of its keys once, is written before it is merged, and is cleared if no
    /// dispatch writes it.
    #[test]
    fn dispatches_together_are_the_attention(
        (batch, seq_len, num_heads) in (1usize..3, 1usize..70, 1usize..6),
        branches in prop::collection::vec((1usize..90, 1usize..7), 1..4),
        binding_rows in 1u64..100,
        part_rows in prop::option::of(1u64..80),
        (round_robin, torchscale_rows, zero_keys, partitioned, causal) in any::<(bool, bool, bool, bool, bool)>(),
        shorten in prop::option::of(0usize..70),
    ) {
        let (segments, rates): (Vec<usize>, Vec<usize>) = branches.into_iter().unzip();
        let config = DilatedAttentionConfig::new(num_heads, 8, &segments, &rates).expect("valid")
            .with_head_offsets(if round_robin { HeadOffsets::RoundRobin } else { HeadOffsets::Blocked })
            .with_output_rows(if torchscale_rows { OutputRows::Torchscale } else { OutputRows::Aligned })
            .with_padding(if zero_keys { Padding::ZeroKeys } else { Padding::Masked })
            .with_heads(if partitioned { Heads::Partitioned } else { Heads::EveryBranch })
            .with_mask(if causal { Mask::Causal } else { Mask::Full });
        let mut shape = AttentionShape::new(batch, seq_len).expect("valid");
        if let Some(shorten) = shorten {
            let mut lens = vec![seq_len; batch];
            lens[0] = seq_len.saturating_sub(shorten);
            shape = shape.with_valid_lens(&lens).expect("valid");
        }
        let caps = DeviceCaps { part_rows, ..DeviceCaps::webgpu_defaults() }
            .with_max_binding_bytes(256 + binding_rows * num_heads as u64 * 32);
        let plan = config.plan_forward(&shape, DType::F32, &caps).expect("plans");
        let rows = execute(&plan, &config, &caps);
        for item in 0..batch {
            let valid_len = shape.valid_len(item) as u32;
            for token in 0..seq_len as u32 {
                for head in 0..num_heads as u32 {
                    let place = (item * seq_len) as u64 + u64::from(token);
                    let row = rows.get(&(place, head));
                    let mut expected: HashMap<(u32, u32), u32> = HashMap::new();
                    let mut covered = false;
                    if valid_len > 0 {
                        for branch in 0..segments.len() as u32 {
                            let geometry = crate::plan::branch::BranchGeometry::new(&config, branch, valid_len);
                            let takes_part = (geometry.head_begin..geometry.head_begin + geometry.head_count).contains(&head);
                            if let (true, Some((segment, t))) = (takes_part, geometry.row_of_output(head, token)) {
                                covered = true;
                                for key in 0..geometry.visible_keys(segment, head, t) {
                                    expected.insert((branch, key), 1);
                                }
                            }
                        }
                    }
                    let cleared = plan.clears().iter().any(|(begin, end)| (*begin..*end).contains(&place));
                    match row {
                        Some(row) => {
                            prop_assert_eq!(&row.keys, &expected);
                            prop_assert!(covered);
                        }
                        None => prop_assert!(!covered && cleared, "neither written nor cleared"),
                    }
                }
            }
        }
    }
}
