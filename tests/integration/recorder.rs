//! Recordings on a device: order, reuse, what is kept alive, and how results come back.

use dilated_attention::CallOptions;
use dilated_attention::pool::{PoolError, PoolOptions};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig,
    Error, Tensor, wgpu,
};

use crate::support::contexts::{contexts, contexts_with};

pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32)
        .map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503)) >> 16) as f32)
        .collect()
}

fn read(context: &Context, tensor: &Tensor) -> Vec<f32> {
    let mut recorder = context.recorder("read");
    let download = recorder.download::<f32>(tensor).expect("records");
    recorder.submit().expect("submits");
    download.wait().expect("arrives")
}

#[test]
fn what_is_uploaded_comes_back() {
    for (limits, context) in contexts() {
        // Up to several staging chunks, and lengths that are no multiple of anything.
        for count in [0, 1, 3, 1000, 65_537, 2_500_001] {
            let data = numbers(count, 1);
            let mut recorder = context.recorder("round trip");
            let tensor = recorder.upload("data", &[count], &data).expect("uploads");
            let download = recorder.download::<f32>(&tensor).expect("records");
            recorder.submit().expect("submits");
            assert_eq!(
                download.wait().expect("arrives"),
                data,
                "{count} elements, {limits}"
            );
        }
        let halves: Vec<half::f16> = (0..7).map(|i| half::f16::from_f32(i as f32)).collect();
        let mut recorder = context.recorder("halves");
        let tensor = recorder.upload("halves", &[7], &halves).expect("uploads");
        let download = recorder.download::<half::f16>(&tensor).expect("records");
        assert!(matches!(
            recorder.download::<f32>(&tensor),
            Err(Error::WrongDType {
                given: DType::F16,
                need: DType::F32,
                ..
            })
        ));
        recorder.submit().expect("submits");
        assert_eq!(download.wait().expect("arrives"), halves);
        drop((tensor, download));
        context.wait().expect("waits");
        assert_eq!(context.pool().stats().leases.current, 0);
        assert!(context.pool().stats().identities_hold());
    }
}

#[test]
fn a_wrong_number_of_elements_is_an_error() {
    let (_, context) = &contexts()[0];
    let mut recorder = context.recorder("wrong");
    assert!(matches!(
        recorder.upload("short", &[2, 3], &[0f32; 5]),
        Err(Error::LengthMismatch {
            given: 5,
            expected: 6,
            ..
        })
    ));
    assert!(matches!(
        recorder.upload("huge", &[usize::MAX, 2], &[0f32; 5]),
        Err(Error::SizeOverflow { .. })
    ));
    for huge in [&[1, usize::MAX][..], &[1, 1, usize::MAX, 2]] {
        assert!(matches!(
            recorder.empty("huge", huge, DType::F32),
            Err(Error::SizeOverflow { .. })
        ));
    }
    // A row that no buffer holds, and more buffers than any device has.
    assert!(matches!(
        recorder.empty("wide", &[1, 1 << 40], DType::F32),
        Err(Error::Pool(PoolError::BufferTooLarge { .. }))
    ));
    assert!(matches!(
        recorder.empty("large", &[1 << 50], DType::F32),
        Err(Error::InvalidShape { .. })
    ));
    assert_eq!(context.pool().stats().leases.current, 0);
}

#[test]
fn the_opt_in_check_names_tensor_and_token() {
    let (_, context) = &contexts()[0];
    context.set_check_finite(true);
    let mut data = numbers(2 * 5 * 3 * 4, 3);
    data[((5 + 3) * 3 + 2) * 4 + 1] = f32::NEG_INFINITY;
    let mut recorder = context.recorder("checked");
    let error = recorder
        .upload("k", &[2, 5, 3, 4], &data)
        .expect_err("is refused");
    assert_eq!(
        error,
        Error::NotFinite {
            what: "k".into(),
            value: f32::NEG_INFINITY,
            index: vec![1, 3, 2, 1],
            axes: &["item", "token", "head", "element"],
        }
    );
    let told = error.to_string();
    assert!(
        told.contains("at item 1, token 3, head 2, element 1: "),
        "{told}"
    );
    // Of other ranks, the index is the tensor's own.
    let mut rows = numbers(20 * 6, 4);
    rows[17 * 6 + 5] = f32::NAN;
    let error = recorder
        .upload("rows", &[20, 6], &rows)
        .expect_err("is refused");
    assert_eq!(
        error.to_string(),
        "rows holds NaN at index [17, 5]: look at what it was computed from"
    );
}

#[test]
fn a_buffer_freed_before_submission_is_not_lent_to_another_recording() {
    for (limits, context) in contexts() {
        let old = numbers(5000, 1);
        let new = numbers(5000, 2);
        let mut first = context.recorder("first");
        let tensor = first.upload("old", &[5000], &old).expect("uploads");
        let download = first.download::<f32>(&tensor).expect("records");
        drop(tensor);
        // Submitted before the first, so it must not have got the first one's buffer.
        let mut second = context.recorder("second");
        let other = second.upload("new", &[5000], &new).expect("uploads");
        second.submit().expect("submits");
        first.submit().expect("submits");
        assert_eq!(download.wait().expect("arrives"), old, "{limits}");
        assert_eq!(read(&context, &other), new, "{limits}");
    }
}

/// Random orders of recording, dropping and submitting, each tensor checked for its own contents at the end.
fn hazard_orders(context: &Context, orders: u32, seed: u64) {
    let mut state = seed;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..orders {
        let mut open: Vec<(dilated_attention::Recorder, Vec<(u32, Tensor)>)> = Vec::new();
        let mut kept: Vec<(u32, Tensor)> = Vec::new();
        let mut downloads = Vec::new();
        for step in 0..12u32 {
            match random(6) {
                0 => open.push((context.recorder("hazard"), Vec::new())),
                1 | 2 if !open.is_empty() => {
                    let pick = random(open.len() as u64) as usize;
                    let (recorder, tensors) = &mut open[pick];
                    let count = 64 + random(3) as usize * 8;
                    let data = vec![step as f32; count];
                    tensors.push((
                        step,
                        recorder.upload("x", &[count], &data).expect("uploads"),
                    ));
                }
                3 if !open.is_empty() => {
                    // Reads a tensor of its own, then lets it go while still recording.
                    let pick = random(open.len() as u64) as usize;
                    let (recorder, tensors) = &mut open[pick];
                    if let Some((value, tensor)) = tensors.pop() {
                        downloads.push((
                            pick,
                            value,
                            recorder.download::<f32>(&tensor).expect("records"),
                        ));
                    }
                }
                4 if !open.is_empty() => {
                    let pick = random(open.len() as u64) as usize;
                    let (recorder, tensors) = open.swap_remove(pick);
                    recorder.submit().expect("submits");
                    kept.extend(tensors);
                }
                5 if !open.is_empty() => {
                    let pick = random(open.len() as u64) as usize;
                    drop(open.swap_remove(pick));
                }
                _ => {
                    kept.truncate(4);
                }
            }
        }
        for (recorder, tensors) in open {
            recorder.submit().expect("submits");
            kept.extend(tensors);
        }
        for (_, value, download) in downloads {
            match download.wait() {
                Ok(data) => assert!(data.iter().all(|x| *x == value as f32), "clobbered"),
                Err(Error::DownloadAbandoned { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        for (value, tensor) in &kept {
            let data = read(context, tensor);
            assert!(data.iter().all(|x| x == &(*value as f32)), "clobbered");
        }
    }
    context.wait().expect("waits");
    let stats = context.pool().stats();
    assert!(
        stats.identities_hold() && stats.leases.current == 0,
        "{stats}"
    );
}

#[test]
fn no_order_of_recording_submitting_and_dropping_clobbers() {
    for (_, context) in contexts() {
        hazard_orders(&context, 300, 88_172_645_463_325_252);
    }
}

#[test]
fn within_a_recording_what_nobody_else_holds_serves_again() {
    let (_, context) = &contexts()[1];
    let mut recorder = context.recorder("chain");
    let mut downloads = Vec::new();
    for i in 0..20 {
        let data = numbers(3000, i);
        let tensor = recorder.upload("link", &[3000], &data).expect("uploads");
        downloads.push((recorder.download::<f32>(&tensor).expect("records"), data));
    }
    let stats = context.pool().stats();
    assert_eq!(stats.hits_within_recording, 19, "{stats}");
    recorder.submit().expect("submits");
    for (download, data) in downloads {
        assert_eq!(download.wait().expect("arrives"), data);
    }
    context.wait().expect("waits");
    assert_eq!(context.pool().stats().leases.current, 0);
}

#[test]
fn a_recording_dropped_unsubmitted_gives_everything_back() {
    for (_, context) in contexts() {
        let mut recorder = context.recorder("dropped");
        let tensor = recorder
            .upload("data", &[1000], &numbers(1000, 1))
            .expect("uploads");
        let download = recorder.download::<f32>(&tensor).expect("records");
        assert!(matches!(
            download.wait(),
            Err(Error::NotSubmitted { label, .. }) if label == "data"
        ));
        drop(recorder);
        assert!(matches!(
            download.wait(),
            Err(Error::DownloadAbandoned { .. })
        ));
        drop((tensor, download));
        let stats = context.pool().stats();
        assert_eq!(
            (stats.leases.current, stats.pending.current),
            (0, 0),
            "{stats}"
        );
        // The staging chunk is still mapped and serves the next recording.
        let mut recorder = context.recorder("next");
        let tensor = recorder
            .upload("data", &[1000], &numbers(1000, 2))
            .expect("uploads");
        recorder.submit().expect("submits");
        assert_eq!(read(&context, &tensor), numbers(1000, 2));
        assert!(context.pool().stats().identities_hold());
    }
}

#[test]
fn recordings_may_be_built_on_many_threads() {
    let (_, context) = &contexts()[0];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..20 {
                    let data = numbers(4000, thread * 100 + round);
                    let mut recorder = context.recorder("thread");
                    let tensor = recorder.upload("data", &[4000], &data).expect("uploads");
                    let download = recorder.download::<f32>(&tensor).expect("records");
                    recorder.submit().expect("submits");
                    assert_eq!(download.wait().expect("arrives"), data);
                }
            });
        }
    });
    context.wait().expect("waits");
    let stats = context.pool().stats();
    assert!(
        stats.leases.current == 0 && stats.identities_hold(),
        "{stats}"
    );
}

#[test]
fn downloads_can_be_awaited_on_any_executor() {
    let (_, context) = &contexts()[0];
    let data = numbers(10_000, 5);
    let mut recorder = context.recorder("awaited");
    let tensor = recorder.upload("data", &[10_000], &data).expect("uploads");
    let download = recorder.download::<f32>(&tensor).expect("records");
    recorder.submit().expect("submits");
    assert_eq!(pollster::block_on(download).expect("arrives"), data);
}

#[test]
fn an_embedder_may_own_the_encoder() {
    for (_, context) in contexts() {
        let data = numbers(3000, 9);
        let encoder = || {
            context
                .device()
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
        };
        let record = |encoder: &mut wgpu::CommandEncoder| {
            let mut recorder = context.recorder("embedded");
            let tensor = recorder.upload("data", &[3000], &data).expect("uploads");
            let download = recorder.download::<f32>(&tensor).expect("records");
            recorder.encode(encoder).expect("encodes");
            download
        };
        let mut first = encoder();
        let download = record(&mut first);
        assert!(matches!(download.wait(), Err(Error::NotSubmitted { .. })));
        assert!(
            context.pool().stats().leases.current > 0,
            "the encoder keeps what its commands use"
        );
        context.queue().submit([first.finish()]);
        assert_eq!(download.wait().expect("arrives"), data);
        drop(download);
        context.wait().expect("waits");
        assert_eq!(context.pool().stats().leases.current, 0);

        let mut second = encoder();
        let download = record(&mut second);
        drop(second);
        assert!(matches!(
            download.wait(),
            Err(Error::DownloadAbandoned { .. })
        ));
        drop(download);
        let stats = context.pool().stats();
        assert_eq!(
            (stats.leases.current, stats.pending.current),
            (0, 0),
            "{stats}"
        );
        assert!(stats.identities_hold());
    }
}

#[test]
fn tensors_of_another_context_are_refused() {
    let (_, here) = &contexts()[0];
    let (_, there) = &contexts()[0];
    let mut foreign = there.recorder("there");
    let tensor = foreign
        .zeros("foreign", &[1, 4, 1, 8], DType::F32)
        .expect("leases");
    let config = DilatedAttentionConfig::new(1, 8, &[4], &[1]).expect("valid");
    let attention = DilatedAttention::new(here, config).expect("fits");
    let shape = AttentionShape::new(1, 4).expect("valid");
    let mut recorder = here.recorder("here");
    let own = recorder
        .zeros("own", &[1, 4, 1, 8], DType::F32)
        .expect("leases");
    assert!(matches!(
        attention.forward_with(
            &mut recorder,
            &own,
            &tensor,
            &own,
            &CallOptions::from(&shape)
        ),
        Err(Error::ContextMismatch { what, .. }) if what == "k"
    ));
    assert!(matches!(
        attention.forward_with(&mut foreign, &own, &own, &own, &CallOptions::from(&shape)),
        Err(Error::ContextMismatch { what, .. }) if what == "recorder"
    ));
    assert!(matches!(
        recorder.download::<f32>(&tensor),
        Err(Error::ContextMismatch { .. })
    ));
    let short = recorder
        .zeros("short", &[1, 3, 1, 8], DType::F32)
        .expect("leases");
    assert!(matches!(
        attention.forward_with(
            &mut recorder,
            &own,
            &own,
            &short,
            &CallOptions::from(&shape)
        ),
        Err(Error::InvalidShape { what, .. }) if what == "v"
    ));
    let halves = recorder
        .zeros("halves", &[1, 4, 1, 8], DType::F16)
        .expect("leases");
    assert!(matches!(
        attention.forward_with(
            &mut recorder,
            &own,
            &halves,
            &own,
            &CallOptions::from(&shape)
        ),
        Err(Error::WrongDType {
            what,
            given: DType::F16,
            need: DType::F32
        }) if what == "k"
    ));
    // The context is as usable as before.
    assert!(
        attention
            .forward_with(&mut recorder, &own, &own, &own, &CallOptions::from(&shape))
            .is_ok()
    );
    drop((recorder, own, short, halves));
    assert_eq!(here.pool().stats().leases.current, 0);
}

#[test]
fn poison_shows_what_was_never_written() {
    let options = ContextOptions {
        pool: PoolOptions::default().with_poison(true),
        ..Default::default()
    };
    for (_, context) in contexts_with(&options) {
        let mut recorder = context.recorder("poisoned");
        let unwritten = recorder
            .empty("unwritten", &[70_000], DType::F32)
            .expect("leases");
        let zeros = recorder
            .zeros("zeros", &[70_001], DType::F32)
            .expect("leases");
        recorder.submit().expect("submits");
        assert!(read(&context, &unwritten).iter().all(|x| x.is_nan()));
        assert!(read(&context, &zeros).iter().all(|x| *x == 0.0));
    }
}
