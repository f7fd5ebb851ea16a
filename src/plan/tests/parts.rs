//! Windows, buffers and parameters of plans, in exact numbers.

use crate::config::{
    AttentionShape, DilatedAttentionConfig, Heads, Mask, MixGradient, OutputRows, Padding,
};
use crate::device::{ByteRange, DType, DeviceCaps, ElementFormat};
use crate::kernels::AttentionParams;
use crate::plan::dispatch::AttentionDispatch;
use crate::plan::window::{RowLayout, TokenWindow};
use crate::plan::workspace::{ParamsLayout, PlannedBuffer, staging_bytes};

fn config() -> DilatedAttentionConfig {
    DilatedAttentionConfig::new(3, 20, &[8, 21], &[1, 4]).expect("valid")
}

#[test]
fn rows_have_the_bytes_of_their_elements() {
    let caps = DeviceCaps::webgpu_defaults();
    let layout = |row_bytes, element_bytes| RowLayout {
        row_bytes,
        element_bytes,
        // Whole blocks of 64 rows in 256 MiB.
        part_bytes: (256 << 20) / (64 * row_bytes) * 64 * row_bytes,
    };
    let activations = |format| RowLayout::of_activations(&config(), format, &caps);
    assert_eq!(activations(ElementFormat::F32), layout(240, 16));
    assert_eq!(activations(ElementFormat::F16), layout(120, 8));
    assert_eq!(RowLayout::of_state(&config(), &caps), layout(24, 8));
    assert_eq!(RowLayout::of_row_stats(&config(), &caps), layout(48, 16));
}

#[test]
fn windows_begin_where_the_device_allows() {
    let caps = DeviceCaps {
        storage_offset_alignment: 256,
        max_binding_bytes: 1024,
        ..DeviceCaps::webgpu_defaults()
    };
    let rows = RowLayout {
        row_bytes: 240,
        element_bytes: 16,
        part_bytes: u64::MAX,
    };
    let window = |offset, size, skip| TokenWindow {
        bytes: ByteRange { offset, size },
        skip,
    };
    assert_eq!(rows.window(0, 4, &caps), Some(window(0, 960, 0)));
    assert_eq!(rows.window(0, 5, &caps), None);
    // 720 bytes in: 512 are aligned, and 13 elements come before the row.
    assert_eq!(rows.window(3, 5, &caps), Some(window(512, 688, 13)));
    assert_eq!(rows.max_rows(&caps), 3);
    // As large as a binding, to the byte.
    let wide = RowLayout {
        row_bytes: 1024,
        element_bytes: 16,
        part_bytes: u64::MAX,
    };
    assert_eq!(wide.window(1, 2, &caps), Some(window(1024, 1024, 0)));
    assert_eq!(wide.max_rows(&caps), 0);
    // Elements larger than the alignment are not cut.
    let fine = DeviceCaps {
        storage_offset_alignment: 4,
        ..caps
    };
    assert_eq!(rows.window(3, 5, &fine), Some(window(720, 480, 0)));
    assert_eq!(rows.max_rows(&fine), 4);
    let tiny = DeviceCaps {
        max_binding_bytes: 8,
        ..fine
    };
    assert_eq!(rows.max_rows(&tiny), 0);
}

#[test]
fn staging_chunks_serve_any_upload() {
    let [least, most] = [64 << 10, 4 << 20];
    for (bytes, chunk) in [
        (0, least),
        (1, least),
        (least, least),
        (least + 1, 2 * least),
        (most - 1, most),
        (most, most),
        (most + 1, most),
        (u64::MAX, most),
    ] {
        assert_eq!(staging_bytes(bytes), chunk, "{bytes}");
    }
}

#[test]
fn buffers_are_asked_for_in_words() {
    let caps = DeviceCaps::webgpu_defaults();
    let bytes = |bytes| {
        let buffer = PlannedBuffer::storage("b", bytes, &caps);
        (buffer.requested_bytes, buffer.class_bytes)
    };
    assert_eq!(
        [0, 4, 5, 1000].map(bytes),
        [(4, 256), (4, 256), (8, 256), (1000, 1024)]
    );
}

#[test]
fn parameters_of_each_dispatch_are_aligned() {
    let caps = DeviceCaps {
        uniform_offset_alignment: 256,
        ..DeviceCaps::webgpu_defaults()
    };
    assert_eq!(ParamsLayout::new(&caps).buffers(), []);
    let asked = |dispatches: u64| {
        let mut layout = ParamsLayout::new(&caps);
        (0..dispatches).for_each(|_| layout.add::<[u32; 10]>());
        let buffers = layout.buffers().into_iter();
        buffers
            .map(|buffer| (buffer.label, buffer.requested_bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(asked(1), [("params", 40), ("staging", 64 << 10)]);
    assert_eq!(asked(3), [("params", 552), ("staging", 64 << 10)]);
    // Of 5 MiB, 4 are staged first.
    let many = asked(20 << 10);
    let params = ((20 << 10) - 1) * 256 + 40;
    assert_eq!(
        many,
        [
            ("params", params),
            ("staging", 4 << 20),
            ("staging", 1 << 20)
        ]
    );
}

/// The first dispatch of a plan, and its parameters.
fn first(
    config: &DilatedAttentionConfig,
    shape: &AttentionShape,
) -> (AttentionDispatch, AttentionParams) {
    let caps = DeviceCaps::webgpu_defaults();
    let plan = config
        .plan_forward(shape, DType::F32, &caps)
        .expect("plans");
    let dispatch = plan.dispatches[0].clone();
    let params = dispatch.params(config, shape);
    (dispatch, params)
}

#[test]
fn flags_of_parameters_are_those_of_the_options() {
    let flags = |config: &DilatedAttentionConfig| {
        first(config, &AttentionShape::new(1, 50).expect("valid"))
            .1
            .flags
    };
    let plain = config();
    assert_eq!(flags(&plain), 0);
    let causal = plain.clone().with_mask(Mask::Causal);
    assert_eq!(flags(&causal), AttentionParams::CAUSAL);
    let zeros = plain.clone().with_padding(Padding::ZeroKeys);
    assert_eq!(flags(&zeros), AttentionParams::ZERO_KEYS);
    let moved = plain.clone().with_output_rows(OutputRows::Torchscale);
    assert_eq!(flags(&moved), AttentionParams::PHANTOM_ROWS);
    let detached = plain.clone().with_gradient(MixGradient::DetachedMix);
    assert_eq!(flags(&detached), AttentionParams::DETACHED);
    let all = plain.with_torchscale().with_mask(Mask::Causal);
    let expected = AttentionParams::CAUSAL
        | AttentionParams::ZERO_KEYS
        | AttentionParams::PHANTOM_ROWS
        | AttentionParams::DETACHED;
    assert_eq!(flags(&all), expected);
    // Zero keys are counted once, with the first keys, and a later dispatch merges.
    let shape = AttentionShape::new(1, 50).expect("valid");
    let (dispatch, _) = first(&all, &shape);
    let mut later = dispatch;
    later.key_rows.begin = 1;
    later.merges = true;
    let expected = expected - AttentionParams::ZERO_KEYS + AttentionParams::MERGE;
    assert_eq!(later.params(&all, &shape).flags, expected);
}

#[test]
fn scales_of_parameters() {
    let shape = AttentionShape::new(1, 50).expect("valid");
    let scaled = config().with_softmax_scale(0.5).expect("finite");
    let (_, params) = first(&scaled, &shape);
    assert_eq!((params.scale, params.out_scale), (0.5, 1.0));
    assert_eq!(params.scale_log2e, 0.5 * std::f32::consts::LOG2_E);
    let partitioned = scaled.with_heads(Heads::Partitioned);
    assert_eq!(first(&partitioned, &shape).1.out_scale, 0.5);
}
