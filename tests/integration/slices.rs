//! Recordings submitted in slices: the same bits, whatever comes between, and nothing lost when they end early.

use std::future::Future;
use std::pin::pin;
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use dilated_attention::longnet::{Input, Recompute};
use dilated_attention::ops::Labels;
use dilated_attention::pool::{PoolError, PoolOptions, Pressure};
use dilated_attention::training::{AdamWOptions, AdamWStep, Optimizer};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig,
    Download, Error, Progress, Recorder, SliceOptions,
};

use crate::model_errors::{VOCAB, call, decoder, ids, ready};
use crate::support::contexts::contexts_with;
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::numbers::uniform;

const TOKENS: usize = 90;
const DIMS: [usize; 4] = [1, TOKENS, 2, 16];

/// Slices of one workgroup each.
fn smallest() -> SliceOptions {
    SliceOptions::default().with_target(Duration::ZERO)
}

fn bits(downloads: Vec<Download<f32>>) -> Vec<Vec<u32>> {
    let bits = |values: Vec<f32>| values.iter().map(|value| value.to_bits()).collect();
    downloads
        .into_iter()
        .map(|download| bits(download.wait().expect("arrives")))
        .collect()
}

/// Attention forward and backward of uploaded inputs, with an upload at the end that shares a staging chunk with the first.
fn attention(recorder: &mut Recorder) -> Vec<Download<f32>> {
    let config = DilatedAttentionConfig::new(2, 16, &[32, 64], &[1, 4]).expect("valid");
    let _shape = AttentionShape::new(1, TOKENS).expect("valid");
    let attention = DilatedAttention::new(&recorder.context(), config).expect("fits");
    let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| {
        let data = uniform(seed, DIMS.iter().product());
        recorder.upload("input", &DIMS, &data).expect("uploads")
    });
    let forward = attention.forward(recorder, &q, &k, &v).expect("records");
    let gradients = attention
        .backward(recorder, [&q, &k, &v], &forward.softmax_state, &dout)
        .expect("records");
    let late = recorder
        .upload("late", &[1000], &uniform(5, 1000))
        .expect("uploads");
    let results = [
        &forward.out,
        &gradients.dq,
        &gradients.dk,
        &gradients.dv,
        &late,
    ];
    results
        .map(|tensor| recorder.download(tensor).expect("records"))
        .into()
}

/// Uploads, with kernels on [`contexts_that_fill`], that end in a chunk of staging memory with the first: for contexts of a
/// test's own, which have yet to compile what they run.
fn uploads(recorder: &mut Recorder) -> Vec<Download<f32>> {
    (0..5)
        .map(|seed| {
            let data = uniform(seed, 3000);
            let tensor = recorder.upload("data", &[3000], &data).expect("uploads");
            recorder.download(&tensor).expect("records")
        })
        .collect()
}

/// Contexts that fill whatever is leased.
fn contexts_that_fill() -> [(&'static str, Context); 2] {
    contexts_with(&ContextOptions {
        pool: PoolOptions::default().with_poison(true),
        ..Default::default()
    })
}

/// A whole step of training.
fn training_step(recorder: &mut Recorder) -> Vec<Download<f32>> {
    let (model, weights, _) = ready(recorder, decoder());
    let optimizer = Optimizer::new(recorder, weights).expect("leases");
    let (weights, gradients) = (optimizer.weights(), optimizer.gradients());
    let tokens = ids(recorder, 10);
    let (features, saved) = model
        .forward_saving(
            recorder,
            weights,
            Input::Tokens(&tokens),
            &call(2, 5),
            Some(1),
            Recompute::Insides,
        )
        .expect("records");
    let labels = Labels::upload(recorder, &[1; 10], VOCAB).expect("uploads");
    let to = Some((gradients, 0.1));
    let loss = model
        .loss(recorder, weights, &features, &labels, to)
        .expect("records");
    let dfeatures = loss.dfeatures.expect("is asked for");
    model
        .backward(recorder, [weights, gradients], saved, &dfeatures, None)
        .expect("records");
    let step = AdamWStep {
        options: AdamWOptions::default(),
        learning_rate: 0.01,
        step: 1,
        gradient_scale: 1.0,
    };
    let norm = optimizer.update(recorder, &step).expect("records");
    let mut downloads = weights.download(recorder).expect("records");
    downloads.extend(gradients.download(recorder).expect("records"));
    downloads.push(recorder.download(&norm).expect("records"));
    downloads.push(recorder.download(&features).expect("records"));
    downloads
}

fn at_once(context: &Context, record: fn(&mut Recorder) -> Vec<Download<f32>>) -> Vec<Vec<u32>> {
    let mut recorder = context.recorder("at once");
    let downloads = record(&mut recorder);
    recorder.submit().expect("submits");
    bits(downloads)
}

#[test]
fn cut_at_every_workgroup_the_bits_are_the_same() {
    for test in kernel_contexts() {
        for record in [attention, training_step] {
            let mut recorder = test.context.recorder("in slices");
            let downloads = record(&mut recorder);
            let dispatches = recorder.num_dispatches();
            let mut sliced = recorder.submit_in_slices(smallest());
            let mut seen: Vec<Progress> = Vec::new();
            pollster::block_on(sliced.run(|progress| seen.push(progress))).expect("runs");
            assert!(sliced.is_done() && sliced.num_slices() == seen.len());
            assert!(sliced.num_slices() > dispatches, "{}", test.name);
            assert!(seen.is_sorted_by(|a, b| a.done <= b.done && a.total == b.total));
            assert!(seen.last().is_some_and(Progress::is_done));
            assert!(seen.iter().filter(|progress| progress.is_done()).count() == 1);
            assert!(
                bits(downloads) == at_once(&test.context, record),
                "{}",
                test.name
            );
        }
    }
}

#[test]
fn a_loop_of_frames_submits_between_slices() {
    for test in kernel_contexts() {
        let (limits, own) = (test.name, &test.context);
        // As a renderer's device is borrowed; the other work is of another context on the same queue.
        let context =
            Context::from_device(own.device().clone(), own.queue().clone()).expect("fits");
        let expected = at_once(own, attention);
        let mut recorder = context.recorder("between frames");
        let downloads = attention(&mut recorder);
        let mut sliced = recorder.submit_in_slices(smallest());
        let mut frames = Vec::new();
        while !sliced.advance().expect("advances").is_done() {
            if frames.len() < 20 {
                let mut recorder = own.recorder("frame");
                frames.push(attention(&mut recorder));
                recorder.submit().expect("submits");
            }
            if sliced.num_slices() == 8 {
                sliced.set_target(Duration::from_millis(3));
                assert_eq!(sliced.target(), Duration::from_millis(3));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        assert_eq!(sliced.advance().expect("is done"), sliced.progress());
        assert!(frames.len() > 8, "{limits}: {}", frames.len());
        assert!(bits(downloads) == expected, "{limits}");
        assert!(
            frames.into_iter().all(|frame| bits(frame) == expected),
            "{limits}"
        );
        // The next of the kind knows what to expect.
        let slices = |context: &Context| {
            let mut recorder = context.recorder("again");
            let downloads = attention(&mut recorder);
            let mut sliced = recorder.submit_in_slices(SliceOptions::default());
            pollster::block_on(sliced.run(|_| ())).expect("runs");
            assert!(bits(downloads) == expected, "{limits}");
            sliced.num_slices()
        };
        let first = slices(&context);
        let later = (0..5).map(|_| slices(&context)).min();
        assert!(
            later <= Some(first),
            "{limits}: {first} slices, then {later:?}"
        );
    }
}

/// Ends early and says which downloads came.
fn ended(downloads: Vec<Download<f32>>, expected: &[Vec<u32>], what: &str) -> usize {
    let mut arrived = 0;
    for (download, expected) in downloads.into_iter().zip(expected) {
        match download.wait() {
            Ok(values) => {
                assert!(
                    values
                        .iter()
                        .map(|v| v.to_bits())
                        .eq(expected.iter().copied()),
                    "{what}"
                );
                arrived += 1;
            }
            Err(Error::DownloadAbandoned { .. }) => {}
            Err(error) => panic!("{what}: {error}"),
        }
    }
    arrived
}

#[track_caller]
fn nothing_is_leased(context: &Context, what: &str) {
    // A thread that polls may still hold what it has just called back with. A lost device has given everything back.
    for _ in 0..100 {
        let _ = context.wait();
        let stats = context.pool().stats();
        if stats.leases.current + stats.pending.current == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let stats = context.pool().stats();
    let out = (stats.leases.current, stats.pending.current);
    assert_eq!(out, (0, 0), "{what}\n{stats}");
    assert!(stats.identities_hold(), "{what}\n{stats}");
}

#[test]
fn cancelled_after_any_slice_everything_is_usable() {
    for (limits, context) in contexts_that_fill() {
        let expected = at_once(&context, uploads);
        let (mut slices, mut arrived, mut creates) = (0, Vec::new(), None);
        loop {
            let mut recorder = context.recorder("cancelled");
            let downloads = uploads(&mut recorder);
            let mut sliced = recorder.submit_in_slices(smallest());
            let mut done = false;
            for _ in 0..slices {
                done = pollster::block_on(sliced.step()).expect("runs").is_done();
            }
            // In one order and in the other.
            match slices % 2 {
                0 => sliced.cancel(),
                _ => drop(sliced),
            }
            let what = format!("{limits}, after {slices} slices");
            arrived.push(ended(downloads, &expected, &what));
            nothing_is_leased(&context, &what);
            if done {
                break;
            }
            if slices == 10 {
                creates = Some(context.pool().stats().creates);
            }
            slices += 1;
        }
        assert!(slices > 20 && arrived[0] == 0, "{slices}");
        assert!(arrived.is_sorted() && arrived.last() == Some(&expected.len()));
        // What is given back early is lent again: also staging chunks that were in use.
        let made = context.pool().stats().creates - creates.unwrap_or_default();
        assert!(made < 6, "{limits}: {made} buffers made in {slices} runs");
        assert!(at_once(&context, uploads) == expected);
    }
}

#[test]
fn a_future_may_be_dropped_at_every_await() {
    let (_, context) = &contexts_that_fill()[0];
    let expected = at_once(context, uploads);
    let mut task = TaskContext::from_waker(Waker::noop());
    for polls in 0..60 {
        let mut recorder = context.recorder("dropped");
        let downloads = uploads(&mut recorder);
        let mut sliced = recorder.submit_in_slices(smallest());
        {
            let mut run = pin!(sliced.run(|_| ()));
            for poll in 0..polls {
                if run.as_mut().poll(&mut task).is_ready() {
                    break;
                }
                if poll % 3 > 0 {
                    std::thread::sleep(Duration::from_micros(400));
                }
            }
        }
        let what = format!("after {polls} polls");
        if polls % 2 == 0 {
            drop(sliced);
            ended(downloads, &expected, &what);
        } else {
            sliced.set_target(Duration::from_millis(8));
            // Moved to another thread, it goes on.
            let run = move || pollster::block_on(async move { sliced.run(|_| ()).await });
            std::thread::spawn(run)
                .join()
                .expect("joins")
                .expect("runs");
            assert!(bits(downloads) == expected, "{what}");
        }
        nothing_is_leased(context, &what);
    }
}

#[test]
fn a_device_lost_between_slices_is_an_error_and_a_new_context_goes_on() {
    let expected = at_once(&contexts_that_fill()[1].1, uploads);
    for slices in [0, 1, 7] {
        for borrowed in [false, true] {
            let [_, (_, own)] = contexts_that_fill();
            let context = match borrowed {
                false => own.clone(),
                true => Context::from_device(own.device().clone(), own.queue().clone()).unwrap(),
            };
            let mut recorder = context.recorder("lost");
            let downloads = uploads(&mut recorder);
            let mut sliced = recorder.submit_in_slices(smallest());
            for _ in 0..slices {
                pollster::block_on(sliced.step()).expect("runs");
            }
            // One is under way.
            sliced.advance().expect("advances");
            own.device().destroy();
            let error = pollster::block_on(sliced.run(|_| ())).expect_err("is lost");
            assert!(matches!(error, Error::DeviceLost { .. }), "{error}");
            assert_eq!(sliced.advance(), Err(error));
            for download in downloads {
                let error = download.wait().map(|_| ());
                assert!(
                    matches!(
                        error,
                        Ok(()) | Err(Error::DownloadAbandoned { .. } | Error::DeviceLost { .. })
                    ),
                    "{error:?}"
                );
            }
            drop(sliced);
            nothing_is_leased(&context, "after the device was lost");
        }
    }
    // The inputs are on the host.
    let [_, (_, again)] = contexts_that_fill();
    assert!(at_once(&again, uploads) == expected);
}

#[test]
fn memory_pressure_reaches_the_pool_under_way() {
    for (limits, context) in contexts_that_fill() {
        let expected = at_once(&context, uploads);
        let pool = context.pool();
        // Cached by what came before.
        let spare = context
            .recorder("spare")
            .zeros("spare", &[1 << 20], DType::F32);
        drop(spare.expect("leases"));
        let record = || {
            let mut recorder = context.recorder("under pressure");
            let downloads = uploads(&mut recorder);
            let mut sliced = recorder.submit_in_slices(smallest());
            for _ in 0..8 {
                pollster::block_on(sliced.step()).expect("runs");
            }
            (downloads, sliced)
        };
        let (downloads, mut sliced) = record();
        let before = pool.stats();
        pool.set_pressure(Pressure::Aggressive);
        let after = pool.stats();
        assert!(
            after.held_bytes.current + (4 << 20) <= before.held_bytes.current,
            "{limits}\n{before}\n{after}"
        );
        pollster::block_on(sliced.run(|_| ())).expect("runs");
        assert!(bits(downloads) == expected, "{limits}");
        pool.set_pressure(Pressure::Normal);
        // A budget that nothing fits into ends the work with an error, not the context.
        let (downloads, mut sliced) = record();
        pool.set_budget_bytes(Some(1));
        let error = pollster::block_on(sliced.run(|_| ())).expect_err("is refused");
        assert!(
            matches!(error, Error::Pool(PoolError::BudgetExceeded { .. })),
            "{error}"
        );
        pool.set_budget_bytes(None);
        ended(downloads, &expected, limits);
        drop(sliced);
        nothing_is_leased(&context, limits);
        assert!(at_once(&context, uploads) == expected, "{limits}");
    }
}

#[test]
fn a_recording_of_nothing_is_done_at_once() {
    let (_, context) = &contexts_that_fill()[0];
    let mut sliced = context
        .recorder("nothing")
        .submit_in_slices(SliceOptions::default());
    assert!(!sliced.progress().is_done());
    pollster::block_on(sliced.run(|_| ())).expect("runs");
    assert!(sliced.progress().is_done());
    let mut recorder = context.recorder("no elements");
    let tensor = recorder.upload::<f32>("none", &[0], &[]).expect("uploads");
    let download = recorder.download::<f32>(&tensor).expect("records");
    let mut sliced = recorder.submit_in_slices(SliceOptions::default());
    pollster::block_on(sliced.run(|_| ())).expect("runs");
    assert_eq!(download.wait(), Ok(vec![]));
    let dry_run = Context::dry_run(context.caps().clone());
    let mut sliced = dry_run
        .recorder("planned")
        .submit_in_slices(SliceOptions::default());
    pollster::block_on(sliced.run(|_| ())).expect("runs");
}
