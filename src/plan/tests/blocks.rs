//! Plans of blocks: whatever their size, together they are the attention, and each dispatch finds its tokens in what is held.

use std::collections::HashMap;

use proptest::prelude::*;

use super::packed::key_index;
use crate::config::{
    AttentionShape, DilatedAttentionConfig, HeadOffsets, Heads, Mask, OutputRows, Padding,
};
use crate::device::{DeviceCaps, ElementFormat};
use crate::kernels::Family;
use crate::kernels::attention_forward::ForwardFamily;
use crate::plan::branch::BranchGeometry;
use crate::plan::dispatch::AttentionDispatch;
use crate::plan::window::TokenWindow;
use crate::plan::{BlockKeys, BlockPlan, BlockSize, BlockWork, plan_block};

const HEAD_DIM: usize = 8;

#[derive(Default)]
struct Row {
    /// (branch, key row), in the order in which they are seen.
    keys: Vec<(u32, u32)>,
    initialised: bool,
}

/// The row of the held tensor at which the bytes of `window` find the token `token`, of which the first is `first`.
fn held_row(
    window: TokenWindow,
    row_bytes: u64,
    element_bytes: u64,
    first: u32,
    token: u64,
) -> u64 {
    let place = window.bytes.offset + u64::from(window.skip) * element_bytes;
    let from_first = token
        .checked_sub(first.into())
        .expect("not before the window");
    let end = u64::from(window.skip) * element_bytes + (from_first + 1) * row_bytes;
    assert!(end <= window.bytes.size, "behind the window");
    assert_eq!(place % row_bytes, 0);
    place / row_bytes + from_first
}

/// Runs a work on indices.
fn execute(
    work: &BlockWork,
    (config, shape): (&DilatedAttentionConfig, &AttentionShape),
    outputs: &std::ops::Range<u64>,
    clears: bool,
    rows: &mut HashMap<(u64, u32), Row>,
) {
    let num_heads = config.num_heads() as u64;
    let row_bytes = num_heads * HEAD_DIM as u64 * 4;
    for dispatch in &work.dispatches {
        let AttentionDispatch {
            geometry,
            heads,
            segments,
            ..
        } = dispatch;
        let params = dispatch.params(config, shape);
        let [first_query, _, first_out] = dispatch.first_tokens;
        for (segment, head) in (segments.begin..segments.end)
            .flat_map(|segment| (heads.begin..heads.end).map(move |head| (segment, head)))
        {
            let written = geometry.written_rows(segment, head);
            for t in dispatch.rows.begin..dispatch.rows.end.min(written) {
                let token = geometry.output_token(segment, head, t);
                assert!(outputs.contains(&token), "of another block");
                for (window, row_bytes, element) in [
                    (dispatch.out, row_bytes, 16),
                    (dispatch.state, num_heads * 8, 8),
                ] {
                    let row = held_row(window, row_bytes, element, first_out, token);
                    assert_eq!(row, token - outputs.start);
                }
                let place = |row: u32| {
                    u64::from(segment) * u64::from(geometry.segment_length)
                        + u64::from(geometry.offset(head))
                        + u64::from(row) * u64::from(geometry.dilation_rate)
                };
                if t < geometry.real_rows(segment, head) {
                    assert!(work.queries.contains(&place(t)));
                    let row = held_row(dispatch.q, row_bytes, 16, first_query, place(t));
                    assert_eq!(row, place(t) - work.queries.start);
                }
                let row = rows.entry((token, head)).or_default();
                match dispatch.merges {
                    true => assert!(row.initialised || clears, "merged before it was written"),
                    false => assert!(!row.initialised, "overwritten"),
                }
                row.initialised = true;
                let seen = geometry.visible_keys(segment, head, t);
                for key in dispatch.key_rows.begin..dispatch.key_rows.end.min(seen) {
                    row.keys.push((geometry.branch, key));
                    let vec4s = HEAD_DIM as u32 / 4;
                    let offset = geometry.offset(head);
                    let index = key_index(&params, [0, segment, head], offset, key, vec4s);
                    let at = dispatch.kv.bytes.offset + u64::from(index) * 16;
                    assert!(u64::from(index + vec4s) * 16 <= dispatch.kv.bytes.size);
                    let (row, head_in_row, heads) = match &work.keys {
                        BlockKeys::Tokens(tokens) => {
                            assert!(tokens.contains(&place(key)));
                            (place(key) - tokens.start, head, num_heads)
                        }
                        BlockKeys::Packed {
                            branch,
                            segment: of,
                            rows,
                        } => {
                            assert_eq!((*branch, *of), (geometry.branch, segment));
                            let in_branch = head - geometry.head_begin;
                            (
                                (key - rows.begin).into(),
                                in_branch,
                                geometry.head_count.into(),
                            )
                        }
                    };
                    let expected = (row * heads + u64::from(head_in_row)) * u64::from(vec4s) * 16;
                    assert_eq!(at, expected, "another key");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_together_are_the_attention(
        (seq_len, num_heads) in (1usize..90, 1usize..6),
        branches in prop::collection::vec((1usize..90, 1usize..7), 1..4),
        tokens in 1u64..60,
        [round_robin, torchscale, zero_keys, partitioned, causal] in any::<[bool; 5]>(),
    ) {
        let (segments, rates): (Vec<usize>, Vec<usize>) = branches.into_iter().unzip();
        let config = DilatedAttentionConfig::new(num_heads, HEAD_DIM, &segments, &rates).expect("valid")
            .with_head_offsets(if round_robin { HeadOffsets::RoundRobin } else { HeadOffsets::Blocked })
            .with_output_rows(if torchscale { OutputRows::Torchscale } else { OutputRows::Aligned })
            .with_padding(if zero_keys { Padding::ZeroKeys } else { Padding::Masked })
            .with_heads(if partitioned { Heads::Partitioned } else { Heads::EveryBranch })
            .with_mask(if causal { Mask::Causal } else { Mask::Full });
        let shape = AttentionShape::new(1, seq_len).expect("valid");
        let caps = DeviceCaps::webgpu_defaults();
        let variant = ForwardFamily::of(&config, ElementFormat::F32).choice(&caps).variant;
        let geometries: Vec<_> = (0..segments.len() as u32)
            .map(|branch| BranchGeometry::cross(&config, branch, seq_len as u32, seq_len as u32))
            .filter(|geometry| geometry.head_count > 0)
            .collect();
        let size = BlockSize::new(tokens, &geometries);
        let mut rows: HashMap<(u64, u32), Row> = HashMap::new();
        let mut cleared = HashMap::new();
        let mut begin = 0;
        while begin < seq_len as u64 {
            let outputs = begin..(seq_len as u64).min(begin + tokens);
            let BlockPlan { clears, works } =
                plan_block(&config, &shape, &caps, variant, outputs.clone(), size).expect("plans");
            for work in &works {
                prop_assert!(work.queries.end - work.queries.start <= size.held_tokens);
                match &work.keys {
                    BlockKeys::Tokens(held) => prop_assert!(held.end - held.start <= size.held_tokens),
                    BlockKeys::Packed { rows, .. } => prop_assert!(u64::from(rows.len()) <= size.held_tokens),
                }
                execute(work, (&config, &shape), &outputs, clears, &mut rows);
            }
            cleared.extend(outputs.clone().map(|token| (token, clears)));
            begin = outputs.end;
        }
        for token in 0..seq_len as u32 {
            for head in 0..num_heads as u32 {
                let mut expected = Vec::new();
                let mut covered = false;
                for geometry in &geometries {
                    let takes_part = (geometry.head_begin..geometry.head_begin + geometry.head_count).contains(&head);
                    if let (true, Some((segment, t))) = (takes_part, geometry.row_of_output(head, token)) {
                        covered = true;
                        expected.extend((0..geometry.visible_keys(segment, head, t)).map(|key| (geometry.branch, key)));
                    }
                }
                let place = u64::from(token);
                match rows.get(&(place, head)) {
                    Some(row) => {
                        prop_assert!(covered);
                        // Branch after branch, keys ascending.
                        let mut seen = row.keys.clone();
                        let mut order = seen.clone();
                        order.dedup_by_key(|(branch, _)| *branch);
                        let branches: std::collections::HashSet<_> = order.iter().map(|(branch, _)| *branch).collect();
                        prop_assert_eq!(branches.len(), order.len(), "a branch in two pieces");
                        prop_assert!(seen.chunk_by(|a, b| a.0 == b.0).all(|keys| keys.is_sorted()));
                        seen.sort_unstable();
                        prop_assert_eq!(seen, expected);
                    }
                    None => prop_assert!(!covered && cleared[&place], "neither written nor cleared"),
                }
            }
        }
    }
}
