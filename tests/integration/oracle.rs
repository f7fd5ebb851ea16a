//! Properties of the f64 reference that hold for every configuration.

use dilated_attention::reference::{self, ReferenceOutput, UNCOVERED_LSE};
use dilated_attention::{
    AttentionShape, DilatedAttentionConfig, HeadOffsets, Heads, Mask, OutputRows, Padding,
};
use proptest::prelude::*;

use crate::support::numbers::uniform;

/// Any configuration over 1 to 5 heads of 4 or 8 elements.
pub fn any_config() -> impl Strategy<Value = DilatedAttentionConfig> {
    let branch = (1..40usize, 1..9usize);
    let options = proptest::array::uniform5(any::<bool>());
    let sizes = (1..6usize, prop_oneof![Just(4usize), Just(8)]);
    (sizes, proptest::collection::vec(branch, 1..4), options).prop_map(
        |((heads, head_dim), branches, [causal, round_robin, zeros, torchscale, partitioned])| {
            let (segments, rates): (Vec<_>, Vec<_>) = branches.into_iter().unzip();
            let pick = |flag, yes, no| if flag { yes } else { no };
            DilatedAttentionConfig::new(heads, head_dim, &segments, &rates)
                .unwrap()
                .with_mask(if causal { Mask::Causal } else { Mask::Full })
                .with_head_offsets(pick(
                    round_robin,
                    HeadOffsets::RoundRobin,
                    HeadOffsets::Blocked,
                ))
                .with_padding(if zeros {
                    Padding::ZeroKeys
                } else {
                    Padding::Masked
                })
                .with_output_rows(if torchscale {
                    OutputRows::Torchscale
                } else {
                    OutputRows::Aligned
                })
                .with_heads(if partitioned {
                    Heads::Partitioned
                } else {
                    Heads::EveryBranch
                })
        },
    )
}

fn run(config: &DilatedAttentionConfig, tokens: usize, qkv: &[Vec<f32>; 3]) -> ReferenceOutput {
    let shape = AttentionShape::new(1, tokens).unwrap();
    reference::forward(config, &shape, &qkv[0], &qkv[1], &qkv[2]).unwrap()
}

fn inputs(config: &DilatedAttentionConfig, tokens: usize) -> [Vec<f32>; 3] {
    let count = (tokens * config.embed_dim());
    [1, 2, 3].map(|seed| uniform(seed, count))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The branches' results, each by its share, make the whole; a row is covered when one of them covers it.
    #[test]
    fn branches_mix_to_the_whole(config in any_config(), tokens in 1..50usize) {
        let qkv = inputs(&config, tokens);
        let shape = AttentionShape::new(1, tokens).unwrap();
        let whole = run(&config, tokens, &qkv);
        let branches: Vec<_> = (0..config.branches().len())
            .map(|branch| reference::forward_branch(&config, &shape, &qkv[0], &qkv[1], &qkv[2], branch).unwrap())
            .collect();
        let divisor = match config.heads() {
            Heads::Partitioned => branches.len() as f64,
            Heads::EveryBranch => 1.0,
        };
        let head_dim = config.head_dim();
        for (row, lse) in whole.softmax_lse.iter().enumerate() {
            let covered = branches.iter().any(|branch| branch.softmax_lse[row] != UNCOVERED_LSE);
            prop_assert_eq!(covered, *lse != UNCOVERED_LSE);
            for element in row * head_dim..(row + 1) * head_dim {
                let shares = branches.iter().map(|branch| {
                    (branch.softmax_lse[row] - lse).exp() * branch.out[element]
                });
                let mixed = if covered { shares.sum::<f64>() / divisor } else { 0.0 };
                prop_assert!((mixed - whole.out[element]).abs() < 1e-12);
            }
        }
    }

    /// Outputs are means of values and zeros: never larger than the largest value.
    #[test]
    fn outputs_are_means_of_values(config in any_config(), tokens in 1..50usize) {
        let mut qkv = inputs(&config, tokens);
        qkv[2].fill(1.0);
        let whole = run(&config, tokens, &qkv);
        let full = config.padding() == Padding::Masked && config.heads() == Heads::EveryBranch;
        for (row, out) in whole.out.chunks(config.head_dim()).enumerate() {
            for value in out {
                prop_assert!(*value >= 0.0 && *value < 1.0 + 1e-12);
                if full && whole.softmax_lse[row] != UNCOVERED_LSE {
                    prop_assert!((value - 1.0).abs() < 1e-12);
                }
            }
        }
    }

    /// Causal rows written in place do not depend on later tokens, not even on whether they exist.
    #[test]
    fn causal_prefix_equals_a_shorter_run(config in any_config(), tokens in 2..50usize, at in any::<prop::sample::Index>()) {
        let config = config.with_mask(Mask::Causal).with_output_rows(OutputRows::Aligned);
        let qkv = inputs(&config, tokens);
        let prefix = 1 + at.index(tokens - 1);
        let width = config.embed_dim();
        let shorter = qkv.clone().map(|tensor| tensor[..prefix * width].to_vec());
        let (whole, part) = (run(&config, tokens, &qkv), run(&config, prefix, &shorter));
        prop_assert_eq!(&whole.out[..prefix * width], &part.out[..]);
    }

    /// A poisoned token reaches a row of a head exactly when the reference for finite inputs depends on that token.
    #[test]
    fn poison_reaches_only_rows_that_see_it(config in any_config(), tokens in 1..30usize, at in any::<prop::sample::Index>()) {
        let mut qkv = inputs(&config, tokens);
        let token = at.index(tokens);
        let width = config.embed_dim();
        let before = run(&config, tokens, &qkv);
        let elements = token * width..(token + 1) * width;
        let kept = qkv[2][elements.clone()].to_vec();
        qkv[2][elements.clone()].fill(7.0);
        let moved = run(&config, tokens, &qkv);
        qkv[2][elements].fill(f32::NAN);
        let poisoned = run(&config, tokens, &qkv);
        prop_assert!(kept.iter().all(|value| *value != 7.0));
        for ((before, moved), poisoned) in before.out.iter().zip(&moved.out).zip(&poisoned.out) {
            prop_assert_eq!(before != moved, poisoned.is_nan());
        }
        prop_assert_eq!(before.softmax_lse, poisoned.softmax_lse);
    }
}
