//! Configurations, shapes and the options of calls.

use super::*;
use crate::error::{Error, Result};

#[test]
fn bad_configurations_name_the_value() {
    let new = DilatedAttentionConfig::new;
    for (config, word) in [
        (new(0, 64, &[8], &[1]), "num_heads is 0"),
        (new(1, 0, &[8], &[1]), "head_dim is 0"),
        (new(1, 66, &[8], &[1]), "head_dim is 66"),
        (new(1, 260, &[8], &[1]), "head_dim is 260"),
        (new(1, 64, &[], &[]), "number of branches is 0"),
        (
            new(1, 64, &[8, 16], &[1]),
            "2 segment lengths and 1 dilation rates",
        ),
        (
            new(1, 64, &[8, 0], &[1, 1]),
            "branch 1 with segment length 0",
        ),
        (new(1, 64, &[8], &[0]), "dilation rate 0"),
        (
            new(1, 64, &[8], &[u32::MAX as usize]),
            "dilation rate 4294967295",
        ),
        (new(1 << 26, 256, &[8], &[1]), "67108864 * 256"),
        (
            new(1, 64, &[8], &[1]).and_then(|c| c.with_softmax_scale(f32::NAN)),
            "softmax_scale is NaN",
        ),
    ] {
        let error = config.expect_err("must be refused").to_string();
        assert!(error.contains(word), "'{error}' does not say '{word}'");
    }
    let shape = AttentionShape::new(2, 8).expect("valid");
    for lens in [&[8][..], &[8, 9][..]] {
        assert!(matches!(
            shape.clone().with_valid_lens(lens),
            Err(Error::InvalidShape { what, .. }) if what == "valid_lens"
        ));
    }
}

fn small() -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(3, 8, &[8, 21], &[1, 4]).unwrap()
}

#[test]
fn the_largest_numbers_that_are_allowed() {
    let new = DilatedAttentionConfig::new;
    for head_dim in [4, MAX_HEAD_DIM] {
        assert_eq!(new(1, head_dim, &[8], &[1]).unwrap().head_dim(), head_dim);
    }
    new((1 << 24) - 1, 256, &[8], &[1]).unwrap();
    new(1 << 24, 256, &[8], &[1]).unwrap_err();
    new(1, 64, &[usize::MAX], &[MAX_TOKENS]).unwrap();
    AttentionShape::new(u32::MAX as usize, MAX_TOKENS).unwrap();
    AttentionShape::new(1, MAX_TOKENS + 1).unwrap_err();
    AttentionShape::new(u32::MAX as usize + 1, 1).unwrap_err();
    AttentionShape::cross(1, 1, MAX_TOKENS).unwrap();
    AttentionShape::cross(1, 1, MAX_TOKENS + 1).unwrap_err();
    assert_eq!([5, usize::MAX].map(in_u32), [5, u32::MAX]);
}

#[test]
fn options_are_set_one_by_one_and_stay() {
    let plain = small();
    assert_eq!((plain.num_heads(), plain.head_dim()), (3, 8));
    assert_eq!(plain.embed_dim(), 24);
    assert_eq!(plain.rows_of_shortest_segment(), 6);
    assert_eq!(plain.softmax_scale(), 1.0 / 8f32.sqrt());
    let set = plain
        .clone()
        .with_mask(Mask::Causal)
        .with_head_offsets(HeadOffsets::RoundRobin)
        .with_padding(Padding::ZeroKeys)
        .with_output_rows(OutputRows::Torchscale)
        .with_gradient(MixGradient::DetachedMix)
        .with_heads(Heads::Partitioned)
        .with_softmax_scale(0.0)
        .unwrap();
    let options = |config: &DilatedAttentionConfig| {
        (
            config.mask(),
            config.head_offsets(),
            config.padding(),
            config.output_rows(),
            config.gradient(),
            config.heads(),
        )
    };
    let all = (
        Mask::Causal,
        HeadOffsets::RoundRobin,
        Padding::ZeroKeys,
        OutputRows::Torchscale,
        MixGradient::DetachedMix,
        Heads::Partitioned,
    );
    assert_eq!(options(&set), all);
    assert_ne!(options(&plain).0, all.0);
    assert_eq!(
        set.to_string(),
        "3 heads of 8, branches 8/1 21/4, Causal, RoundRobin offsets, ZeroKeys padding, Torchscale rows, Partitioned, scale 0"
    );
    // Other branches or another size, and all else as it was.
    let other = set.clone().with_branches(&[5], &[2]).unwrap();
    let branch = Branch {
        segment_length: 5,
        dilation_rate: 2,
    };
    assert_eq!(other.branches(), [branch]);
    assert_eq!((options(&other), other.softmax_scale()), (all, 0.0));
    let other = set.clone().with_size(2, 16).unwrap();
    assert_eq!((other.num_heads(), other.head_dim()), (2, 16));
    assert_eq!(other.softmax_scale(), 0.25);
    assert_eq!((options(&other), other.branches()), (all, set.branches()));
    set.clone().with_branches(&[5], &[0]).unwrap_err();
    set.with_size(2, 17).unwrap_err();
    // What torchscale's weights need.
    let torchscale = small()
        .with_head_offsets(HeadOffsets::RoundRobin)
        .with_torchscale();
    let (_, offsets, padding, rows, gradient, _) = options(&torchscale);
    assert_eq!(offsets, HeadOffsets::Blocked);
    assert_eq!(padding, Padding::ZeroKeys);
    assert_eq!(rows, OutputRows::Torchscale);
    assert_eq!(gradient, MixGradient::DetachedMix);
}

#[test]
fn shapes_say_how_much_of_each_item_is_real() {
    let shape = AttentionShape::new(2, 9).unwrap();
    assert_eq!((shape.batch(), shape.seq_len(), shape.key_len()), (2, 9, 9));
    assert!(!shape.is_cross());
    assert_eq!((shape.valid_len(1), shape.valid_key_len(1)), (9, 9));
    let shape = shape.with_valid_lens(&[9, 4]).unwrap();
    assert_eq!((shape.valid_len(0), shape.valid_len(1)), (9, 4));
    assert_eq!(shape.valid_key_len(1), 4);
    let cross = AttentionShape::cross(2, 9, 5).unwrap();
    assert_eq!((cross.seq_len(), cross.key_len()), (9, 5));
    assert!(cross.is_cross());
    assert_eq!((cross.valid_len(1), cross.valid_key_len(1)), (9, 5));
    let cross = cross.with_valid_lens(&[1, 2]).unwrap();
    let cross = cross.with_valid_key_lens(&[5, 3]).unwrap();
    assert_eq!((cross.valid_len(1), cross.valid_key_len(1)), (2, 3));
    for read in [AttentionShape::valid_len, AttentionShape::valid_key_len] {
        let beyond = || read(&cross, 2);
        assert!(std::panic::catch_unwind(beyond).is_err());
    }
}

#[test]
fn a_call_takes_its_shape_from_its_tensors_and_options() {
    let [nine, five] = [[2, 9, 3, 8], [2, 5, 3, 8]];
    let plain = CallOptions::new();
    let shape = plain.shape_of(&nine, &nine).unwrap();
    assert_eq!(shape, AttentionShape::new(2, 9).unwrap());
    let told = |result: Result<AttentionShape>| result.unwrap_err().to_string();
    assert!(told(plain.shape_of(&nine, &five)).contains("5 tokens"));
    assert!(told(plain.shape_of(&nine[..3], &nine)).contains("[2, 9, 3]"));
    assert!(told(plain.shape_of(&nine, &nine[..3])).contains("[2, 9, 3]"));
    let cross = CallOptions::cross()
        .with_valid_lens(&[9, 4])
        .with_valid_key_lens(&[5, 3]);
    let shape = cross.shape_of(&nine, &five).unwrap();
    let expected = AttentionShape::cross(2, 9, 5)
        .and_then(|shape| shape.with_valid_lens(&[9, 4]))
        .and_then(|shape| shape.with_valid_key_lens(&[5, 3]))
        .unwrap();
    assert_eq!(shape, expected);
    assert_eq!(CallOptions::from(&shape), cross);
    let keys = CallOptions::new().with_valid_key_lens(&[9, 9]);
    assert!(told(keys.shape_of(&nine, &nine)).contains("AttentionShape::cross"));
}

/// Each condition of dense attention, by a configuration that fails it alone.
#[test]
fn two_sequences_need_dense_attention() {
    let of = |segments: &[usize], rates: &[usize]| {
        DilatedAttentionConfig::new(3, 8, segments, rates).unwrap()
    };
    let longest = of(&[9], &[1]);
    let shapes = [(9, 5), (5, 9)].map(|(n, keys)| AttentionShape::cross(2, n, keys).unwrap());
    let others = [
        of(&[9, 9], &[1, 1]),
        of(&[9], &[2]),
        of(&[8], &[1]),
        longest.clone().with_mask(Mask::Causal),
        longest.clone().with_padding(Padding::ZeroKeys),
    ];
    for shape in &shapes {
        shape.check_config(&longest).unwrap();
        shape
            .check_config(&DilatedAttentionConfig::dense(3, 8).unwrap())
            .unwrap();
        for config in &others {
            shape.check_config(config).unwrap_err();
        }
    }
    let one = AttentionShape::new(2, 9).unwrap();
    for config in &others {
        one.check_config(config).unwrap();
    }
}
