//! The index algebra of a branch against its definition, token by token.

use proptest::prelude::*;

use crate::config::{DilatedAttentionConfig, HeadOffsets, Heads, Mask, OutputRows, Padding};
use crate::plan::branch::BranchGeometry;

/// A token that a row reads or writes: its segment, its row there, and itself.
type Place = (u32, u32, u32);

/// Tokens below `len` that the rows of each segment are, when segments of `length` tokens with `rows` rows each begin `stride`
/// tokens apart, and every `rate`-th token from `offset` on is a row.
fn places(len: u32, length: u32, stride: u32, rows: u32, (offset, rate): (u32, u32)) -> Vec<Place> {
    let mut places = Vec::new();
    for segment in 0..len.div_ceil(length) {
        for row in 0..rows {
            let token = segment * stride + offset + row * rate;
            places.push((segment, row, token));
        }
    }
    places.retain(|(_, _, token)| *token < len);
    places
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_the_tokens_of_their_definition(
        (heads, len) in (1usize..8, 1u32..80),
        branches in prop::collection::vec((1usize..90, 1usize..7), 1..4),
        [round_robin, torchscale, zero_keys, partitioned, causal] in any::<[bool; 5]>(),
    ) {
        let (segments, rates): (Vec<_>, Vec<_>) = branches.iter().copied().unzip();
        let config = DilatedAttentionConfig::new(heads, 8, &segments, &rates).expect("valid")
            .with_head_offsets(if round_robin { HeadOffsets::RoundRobin } else { HeadOffsets::Blocked })
            .with_output_rows(if torchscale { OutputRows::Torchscale } else { OutputRows::Aligned })
            .with_padding(if zero_keys { Padding::ZeroKeys } else { Padding::Masked })
            .with_heads(if partitioned { Heads::Partitioned } else { Heads::EveryBranch })
            .with_mask(if causal { Mask::Causal } else { Mask::Full });
        let mut first_head = 0;
        for (branch, &(segment_length, rate)) in branches.iter().enumerate() {
            let geometry = BranchGeometry::new(&config, branch as u32, len);
            let (length, rate) = ((segment_length as u32).min(len), rate as u32);
            let rows = length.div_ceil(rate);
            let count = heads / branches.len() + usize::from(branch < heads % branches.len());
            let own = match partitioned {
                true => first_head..first_head + count,
                false => 0..heads,
            };
            first_head += count;
            prop_assert_eq!(
                (geometry.head_begin as usize, geometry.head_count as usize),
                (own.start, own.len())
            );
            let covers = own.len() == heads && rate == 1;
            prop_assert_eq!(geometry.covers_everything(heads as u32), covers);
            for head in own {
                let offset = match (partitioned, round_robin) {
                    (true, _) => branch as u32 % rate,
                    (false, true) => head as u32 % rate,
                    (false, false) => (head / heads.div_ceil(rate as usize)) as u32,
                };
                let head = head as u32;
                prop_assert_eq!(geometry.offset(head), offset);
                // Only tokens of the segment itself are read.
                let mut read = places(len, length, length, rows, (offset, rate));
                read.retain(|(segment, _, token)| *token < (segment + 1) * length);
                // Rows that are not aligned move, and those without a query are written, too.
                let stride = match torchscale && length < len {
                    true => rows * rate,
                    false => length,
                };
                let mut written = places(len, length, stride, rows, (offset, rate));
                if !torchscale {
                    written.clone_from(&read);
                }
                let of = |places: &[Place], segment| {
                    places.iter().filter(|place| place.0 == segment).count() as u32
                };
                for segment in 0..len.div_ceil(length) {
                    let keys = of(&read, segment);
                    prop_assert_eq!(geometry.real_rows(segment, head), keys);
                    prop_assert_eq!(geometry.real_keys(segment, head), keys);
                    prop_assert_eq!(geometry.written_rows(segment, head), of(&written, segment));
                    for row in 0..rows {
                        let seen = if causal { row + 1 } else { rows };
                        let zeros = if zero_keys { seen.saturating_sub(keys) } else { 0 };
                        prop_assert_eq!(geometry.visible_keys(segment, head, row), seen.min(keys));
                        prop_assert_eq!(geometry.visible_zero_keys(segment, head, row), zeros);
                    }
                }
                for &(segment, row, token) in &written {
                    let given = geometry.output_token(segment, head, row);
                    prop_assert_eq!(given, u64::from(token));
                }
                for token in 0..len + 10 {
                    let expected = written.iter().find(|place| place.2 == token);
                    let expected = expected.map(|(segment, row, _)| (*segment, *row));
                    prop_assert_eq!(geometry.row_of_output(head, token), expected);
                }
            }
        }
    }
}

#[test]
fn keys_of_another_sequence_have_their_own_length() {
    let config = DilatedAttentionConfig::dense(2, 8).expect("valid");
    for (len, keys) in [(3, 7), (7, 3)] {
        let geometry = BranchGeometry::cross(&config, 0, len, keys);
        assert_eq!((geometry.seq_len, geometry.key_len), (len, keys));
        assert_eq!((geometry.num_segments, geometry.segment_length), (1, 7));
        assert_eq!(geometry.real_rows(0, 1), len);
        assert_eq!(geometry.real_keys(0, 1), keys);
        assert_eq!(geometry.visible_keys(0, 1, 0), keys);
    }
}
