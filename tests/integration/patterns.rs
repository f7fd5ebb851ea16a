//! The ways in which programs use a pool, on a real device: each as the documentation shows it.

use dilated_attention::pool::{
    Balanced, Demand, NoPooling, PersistentBuffer, Pool, PoolError, PoolOptions, STORAGE_USAGE,
};
use dilated_attention::testing::SimulatedSource;
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig,
    Error, Tensor,
};

use crate::support::contexts::{context_with, contexts};
use crate::support::numbers::uniform;

const TOKENS: usize = 150;
const DIMS: [usize; 4] = [1, TOKENS, 2, 16];

fn attention(context: &Context) -> (DilatedAttention, AttentionShape) {
    let config = DilatedAttentionConfig::new(2, 16, &[32, 64], &[2, 4]).expect("valid");
    let shape = AttentionShape::new(1, TOKENS).expect("valid");
    (DilatedAttention::new(context, config).expect("fits"), shape)
}

fn inputs() -> [Vec<f32>; 3] {
    [1, 2, 3].map(|seed| uniform(seed, DIMS.iter().product()))
}

fn uploaded(context: &Context) -> [Tensor; 3] {
    let mut recorder = context.recorder("inputs");
    let tensors = inputs().map(|data| recorder.upload("input", &DIMS, &data).expect("uploads"));
    recorder.submit().expect("submits");
    context.wait().expect("waits");
    tensors
}

fn forward(context: &Context, [q, k, v]: &[Tensor; 3]) -> Vec<f32> {
    let (attention, _shape) = attention(context);
    let mut recorder = context.recorder("forward");
    let result = attention.forward(&mut recorder, q, k, v).expect("records");
    let out = recorder.download::<f32>(&result.out).expect("records");
    recorder.submit().expect("submits");
    out.wait().expect("arrives")
}

#[test]
fn temporary_buffers_serve_the_next_block() {
    for (limits, context) in contexts() {
        let pool = context.pool();
        let before = pool.stats();
        for _ in 0..20 {
            let scope = pool.scope("block");
            let mut recorder = context.recorder("block");
            let first = recorder.zeros("first", &[1000], DType::F32).expect("lends");
            let second = recorder.zeros("second", &[900], DType::F32).expect("lends");
            recorder.submit().expect("submits");
            let report = scope.report();
            assert_eq!(report.requested_bytes.peak, 7600, "{limits}: {report}");
            assert_eq!(report.leases_left, 2);
            drop((first, second));
            assert_eq!(scope.report().leases_left, 0);
        }
        let stats = pool.stats();
        assert!(stats.creates - before.creates <= 2, "{limits}: {stats}");
    }
}

#[test]
fn a_persistent_buffer_grows_while_unsubmitted_work_keeps_the_old_one() {
    let (_, context) = &contexts()[0];
    let pool = context.pool();
    let mut cache = PersistentBuffer::new(pool, "cache", STORAGE_USAGE);
    let old = cache.at_least(1000).expect("lends").clone();
    let leases = pool.stats().leases.current;
    let serial = old.buffer_serial();
    // `old` stands for a recording that uses the buffer and is not submitted yet.
    let grown = cache.at_least(5000).expect("grows");
    assert_ne!(grown.buffer_serial(), serial);
    assert!(grown.requested_bytes() >= 5000);
    assert_eq!(pool.stats().leases.current, leases + 1);
    let other = pool.acquire("other", 1000, STORAGE_USAGE).expect("lends");
    assert_ne!(other.buffer_serial(), serial, "the old one is still in use");
    drop(old);
    let again = pool.acquire("again", 1000, STORAGE_USAGE).expect("lends");
    assert_eq!(again.buffer_serial(), serial);
    // What cannot grow stays.
    let kept = cache.at_least(5000).expect("is there").buffer_serial();
    let error = cache.at_least(u64::MAX).expect_err("beyond the device");
    assert!(matches!(error, PoolError::BufferTooLarge { .. }), "{error}");
    assert_eq!(
        cache.at_least(5000).expect("is there").buffer_serial(),
        kept
    );
    cache.clear();
    assert!(cache.lease().is_none());
}

#[test]
fn q_k_and_v_of_all_heads_may_share_one_buffer() {
    for (limits, context) in contexts() {
        let expected = forward(&context, &uploaded(&context));
        let mut recorder = context.recorder("together");
        let before = context.pool().stats().leases.current;
        let together = recorder
            .empty_together("qkv", &[&DIMS[..]; 3], DType::F32)
            .expect("leases");
        for (tensor, data) in together.iter().zip(inputs()) {
            recorder.write(tensor, &data).expect("records");
        }
        let [q, k, v] = &together[..] else {
            panic!("three tensors")
        };
        let downloads = [q, k, v].map(|tensor| recorder.download::<f32>(tensor).expect("records"));
        recorder.submit().expect("submits");
        for (download, data) in downloads.iter().zip(inputs()) {
            assert_eq!(download.wait().expect("arrives"), data, "{limits}");
        }
        drop(downloads);
        context.wait().expect("waits");
        assert_eq!(context.pool().stats().leases.current, before + 1);
        let out = forward(&context, &[q.clone(), k.clone(), v.clone()]);
        assert_eq!(out, expected, "{limits}");
    }
}

#[test]
fn what_is_written_later_is_what_later_reads_see() {
    let (_, context) = &contexts()[0];
    let mut recorder = context.recorder("writes");
    let tensor = recorder
        .upload("x", &[3], &[1.0f32, 2.0, 3.0])
        .expect("uploads");
    let first = recorder.download::<f32>(&tensor).expect("records");
    recorder
        .write(&tensor, &[4.0f32, 5.0, 6.0])
        .expect("records");
    let second = recorder.download::<f32>(&tensor).expect("records");
    assert!(matches!(
        recorder.write(&tensor, &[1u32, 2, 3]),
        Err(Error::WrongDType { .. })
    ));
    assert!(matches!(
        recorder.write(&tensor, &[1.0f32]),
        Err(Error::LengthMismatch {
            given: 1,
            expected: 3,
            ..
        })
    ));
    recorder.submit().expect("submits");
    assert_eq!(first.wait().expect("arrives"), [1.0, 2.0, 3.0]);
    assert_eq!(second.wait().expect("arrives"), [4.0, 5.0, 6.0]);
}

#[test]
fn after_reserving_a_plan_the_first_forward_creates_nothing() {
    for (limits, context) in contexts() {
        let [q, k, v] = uploaded(&context);
        let (attention, shape) = attention(&context);
        let plan = attention.plan(&shape, DType::F32).expect("plans");
        let pool = context.pool();
        pool.force_trim();
        let before = pool.stats();
        pool.reserve(&plan).expect("reserves");
        pool.reset_peaks();
        let reserved = pool.stats();
        assert_eq!(
            reserved.free.current,
            Demand::buffers(&plan).len() as u64,
            "{plan}"
        );
        let mut recorder = context.recorder("forward");
        let result = attention
            .forward(&mut recorder, &q, &k, &v)
            .expect("records");
        recorder.submit().expect("submits");
        context.wait().expect("waits");
        let stats = pool.stats();
        assert_eq!(stats.creates, reserved.creates, "{limits}: {stats}");
        assert_eq!(
            stats.requested_bytes.peak - before.requested_bytes.current,
            plan.requested_bytes(),
            "{limits}: {plan}"
        );
        assert_eq!(
            stats.held_bytes.peak - before.held_bytes.current,
            plan.held_bytes(),
            "{limits}: {plan}"
        );
        drop(result);
    }
}

#[test]
fn a_profile_of_a_forward_replays_to_the_same_counts() {
    let context = context_with(&ContextOptions::default());
    let pool = context.pool();
    pool.start_trace();
    for _ in 0..3 {
        let inputs = uploaded(&context);
        forward(&context, &inputs);
        context.wait().expect("waits");
    }
    let stats = pool.stats();
    let trace = pool.take_trace();
    assert!(
        stats.hits_within_recording + stats.pending.total > 0,
        "{stats}"
    );
    let text = trace.to_string();
    assert_eq!(text.parse(), Ok(trace.clone()));
    let replayed = trace
        .replay(PoolOptions::default(), 1 << 30)
        .expect("replays");
    assert_eq!(replayed.stats.acquires, stats.acquires);
    assert_eq!(replayed.stats.creates, stats.creates);
    assert_eq!(replayed.stats.held_bytes.peak, stats.held_bytes.peak);
    assert_eq!(
        replayed.stats.requested_bytes.peak,
        stats.requested_bytes.peak
    );
    let unpooled = trace
        .replay(PoolOptions::default().with_policy(NoPooling), 1 << 30)
        .expect("replays");
    assert_eq!(unpooled.stats.misses, unpooled.stats.creates);
    assert!(unpooled.stats.creates > stats.creates);
}

#[test]
fn small_buffers_may_be_left_to_the_device() {
    let (_, context) = &contexts()[0];
    let options = PoolOptions::default().with_policy(Balanced {
        min_pooled_bytes: 4096,
        ..Balanced::default()
    });
    let pool = Pool::new(context.device(), options);
    drop(pool.acquire("small", 1024, STORAGE_USAGE).expect("lends"));
    drop(pool.acquire("large", 8192, STORAGE_USAGE).expect("lends"));
    let stats = pool.stats();
    assert_eq!((stats.destroys, stats.free.current), (1, 1), "{stats}");
}

#[test]
fn a_lost_device_is_an_error_and_a_new_context_goes_on() {
    let context = context_with(&ContextOptions::default());
    let inputs = uploaded(&context);
    let expected = forward(&context, &inputs);
    let mut recorder = context.recorder("before");
    let sum = recorder.zeros("sum", &[4], DType::F32).expect("lends");
    let unsubmitted = recorder.download::<f32>(&sum).expect("records");
    let submission = context.recorder("empty").submit().expect("submits");
    context.device().destroy();
    let lost = |error: Error| {
        let Error::DeviceLost { reason } = &error else {
            panic!("{error}");
        };
        assert_eq!(reason, "it was destroyed");
    };
    lost(context.wait().expect_err("is lost"));
    lost(submission.wait().expect_err("is lost"));
    lost(unsubmitted.wait().expect_err("is lost"));
    lost(recorder.submit().map(drop).expect_err("is lost"));
    drop((unsubmitted, sum));
    let stats = context.pool().stats();
    assert_eq!(stats.free.current, 0, "{stats}");
    let mut recorder = context.recorder("lost");
    let error = recorder
        .upload("q", &[4], &[0.0f32; 4])
        .expect_err("the device is lost");
    assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
    drop((recorder, inputs));
    let stats = context.pool().stats();
    assert_eq!(
        stats.held_bytes.current - stats.draining_bytes,
        0,
        "{stats}"
    );
    assert!(stats.identities_hold());
    let again = context_with(&ContextOptions::default());
    assert_eq!(forward(&again, &uploaded(&again)), expected);
}

#[test]
fn a_loss_that_an_upload_or_a_download_meets_ends_later_waits() {
    // Nobody tells of the loss: the device is the application's, which installs no callback.
    for meets in ["upload", "download"] {
        let own = context_with(&ContextOptions::default());
        let (device, queue) = (own.device().clone(), own.queue().clone());
        let context = Context::from_device(device.clone(), queue).expect("opens");
        let mut recorder = context.recorder("before");
        let sum = recorder.zeros("sum", &[4], DType::F32).expect("lends");
        let download = recorder.download::<f32>(&sum).expect("records");
        recorder.submit().expect("submits");
        device.destroy();
        let error = match meets {
            "upload" => {
                let mut recorder = context.recorder("after");
                recorder.upload("q", &[4], &[0.0f32; 4]).map(drop)
            }
            _ => download.wait().map(drop),
        };
        for error in [error, context.poll(), context.wait()] {
            assert!(
                matches!(error, Err(Error::DeviceLost { .. })),
                "{meets}: {error:?}"
            );
        }
    }
}

#[test]
fn a_loss_without_a_reason_has_one() {
    let context = context_with(&ContextOptions::default());
    drop(context.pool().acquire("cached", 4, STORAGE_USAGE));
    let mut recorder = context.recorder("sum");
    let sum = recorder.zeros("sum", &[4], DType::F32).expect("lends");
    let download = recorder.download::<f32>(&sum).expect("records");
    // As an application's lost callback may say it.
    context.pool().device_lost("");
    let lost = |result: Result<(), Error>| {
        let error = result.expect_err("is lost").to_string();
        assert!(error.contains("(no reason was given)"), "{error}");
    };
    lost(recorder.submit().map(drop));
    lost(download.wait().map(drop));
    lost(pollster::block_on(download).map(drop));
    lost(context.wait());
    let lent = context.pool().acquire("more", 4, STORAGE_USAGE);
    lost(lent.map(drop).map_err(Into::into));
    drop(sum);
    let stats = context.pool().stats();
    assert_eq!((stats.leases.current, stats.free.current), (0, 0));
    let simulated = Pool::from_source(SimulatedSource::new(1 << 20), PoolOptions::default());
    simulated.device_lost(" ");
    let lent = simulated.acquire("more", 4, STORAGE_USAGE);
    lost(lent.map(drop).map_err(Into::into));
}

#[test]
fn the_pool_counts_what_wgpu_counts() {
    let context = context_with(&ContextOptions::default());
    let counted = || {
        context.wait().expect("waits");
        let counters = context.device().get_internal_counters();
        let buffers = counters.hal.buffers.read() as u64;
        let stats = context.pool().stats();
        (buffers, stats.creates - stats.destroys, stats)
    };
    // wgpu has buffers of its own, one of them until the first submission is done.
    forward(&context, &uploaded(&context));
    context.pool().force_trim();
    let (own, held, stats) = counted();
    assert_eq!(held, 0, "{stats}");
    assert!(own > 0, "counters are on");
    for _ in 0..3 {
        let inputs = uploaded(&context);
        forward(&context, &inputs);
        let (buffers, held, stats) = counted();
        assert!(held > 0);
        assert_eq!(buffers - own, held, "{stats}");
    }
    context.pool().force_trim();
    let (buffers, held, stats) = counted();
    assert_eq!((buffers, held), (own, 0), "{stats}");
}
