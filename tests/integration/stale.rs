//! Nothing that was never computed is told as a result: tensors whose recordings were dropped, refused, cancelled or not
//! submitted yet, and downloads in encoders that wgpu refuses to run.

use dilated_attention::longnet::{Input, LongNet};
use dilated_attention::nn::Parameters;
use dilated_attention::ops::{ScaledAdd, bias_backward};
use dilated_attention::pool::PoolError;
use dilated_attention::training::{Batch, Trainer};
use dilated_attention::{
    AttentionShape, CallOptions, Context, ContextOptions, DType, DeviceCaps, DilatedAttention,
    Error, Label, PoolOptions, Recorder, SliceOptions, Tensor, wgpu,
};

use crate::model_errors::{call, decoder, ids};
use crate::support::contexts::{context_with, contexts};
use crate::support::training::{batch, config, options};

/// Small data that differ.
fn numbers(first: u32, count: u32) -> Vec<f32> {
    (first..first + count).map(|x| x as f32).collect()
}

fn upload(recorder: &mut Recorder, label: &'static str, data: &[f32]) -> Tensor {
    recorder.upload(label, &[data.len()], data).unwrap()
}

/// What a recording of its own reads of a tensor.
fn read(context: &Context, tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let mut recorder = context.recorder("reader");
    let download = recorder.download::<f32>(tensor)?;
    recorder.submit()?;
    download.wait()
}

/// The names and the reason of the error that `result` is.
#[track_caller]
fn not_written<T: std::fmt::Debug>(
    result: Result<T, Error>,
) -> (Label, Label, Option<Label>, &'static str) {
    match result {
        Err(Error::NotWritten {
            label,
            reader,
            writer,
            reason,
        }) => (label, reader, writer, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_order_of_submission_decides_what_may_be_read() {
    for (_, context) in contexts() {
        let mut writer = context.recorder("writer");
        let tensor = upload(&mut writer, "data", &numbers(1, 500));
        // Recorded before the writer is submitted, submitted after it.
        let mut later = context.recorder("later");
        let download = later.download::<f32>(&tensor).unwrap();
        let (label, reader, by, reason) = not_written(read(&context, &tensor));
        assert_eq!(
            (label.as_str(), reader.as_str(), by.as_deref()),
            ("data", "reader", Some("writer"))
        );
        assert!(reason.contains("not submitted yet"), "{reason}");
        writer.submit().unwrap();
        later.submit().unwrap();
        assert_eq!(download.wait().unwrap(), numbers(1, 500));
        assert_eq!(read(&context, &tensor).unwrap(), numbers(1, 500));

        // A recording that is dropped has no effect, also not on the values of before.
        let mut dropped = context.recorder("dropped");
        dropped.write(&tensor, &numbers(9, 500)).unwrap();
        drop(dropped);
        assert_eq!(read(&context, &tensor).unwrap(), numbers(1, 500));
    }
}

#[test]
fn what_a_dropped_recording_was_to_write_is_an_error_until_it_is_written() {
    let context = context_with(&ContextOptions::default());
    let record: [fn(&mut Recorder) -> Tensor; 3] = [
        |recorder| upload(recorder, "data", &numbers(1, 500)),
        |recorder| recorder.zeros("data", &[500], DType::F32).unwrap(),
        |recorder| {
            let tensors = recorder.empty_together("data", &[&[500], &[500]], DType::F32);
            let [first, second] = tensors.unwrap().try_into().unwrap();
            recorder.write(&second, &numbers(1, 500)).unwrap();
            drop(first);
            second
        },
    ];
    for record in record {
        let mut dropped = context.recorder("dropped");
        let tensor = record(&mut dropped);
        drop(dropped);
        let (label, _, by, reason) = not_written(read(&context, &tensor));
        assert_eq!((label.as_str(), by.as_deref()), ("data", Some("dropped")));
        assert!(reason.contains("dropped"), "{reason}");
        // What reads it is refused with all it was to write.
        let mut refused = context.recorder("refused");
        refused.download::<f32>(&tensor).map(drop).unwrap();
        let other = upload(&mut refused, "other", &[1.0]);
        not_written(refused.submit());
        let (label, _, by, reason) = not_written(read(&context, &other));
        assert_eq!((label.as_str(), by.as_deref()), ("other", Some("refused")));
        assert!(reason.contains("refused"), "{reason}");

        let mut writer = context.recorder("writer");
        writer.write(&tensor, &numbers(2, 500)).unwrap();
        writer.submit().unwrap();
        assert_eq!(read(&context, &tensor).unwrap(), numbers(2, 500));
    }
    // One of two tensors in one buffer.
    let mut recorder = context.recorder("one of two");
    let tensors = recorder.empty_together("data", &[&[500], &[500]], DType::F32);
    let [first, second] = tensors.unwrap().try_into().unwrap();
    recorder.write(&first, &numbers(3, 500)).unwrap();
    recorder.submit().unwrap();
    assert_eq!(read(&context, &first).unwrap(), numbers(3, 500));
    let (_, _, by, reason) = not_written(read(&context, &second));
    assert_eq!(by.as_deref(), None);
    assert!(reason.contains("nothing that was recorded"), "{reason}");
    assert_eq!(context.pool().stats().leases.current, 1);
}

#[test]
fn poison_shows_in_what_a_dropped_recording_was_to_write() {
    let context = context_with(&ContextOptions {
        pool: PoolOptions::default().with_poison(true),
        ..Default::default()
    });
    let mut dropped = context.recorder("dropped");
    let tensor = upload(&mut dropped, "data", &numbers(1, 500));
    drop(dropped);
    not_written(read(&context, &tensor));
}

/// Kernels that read, that add to what is there and that change it in place; on a dry run, which asks the same questions.
#[test]
fn kernels_do_not_take_what_was_never_written() {
    let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    let mut ready = context.recorder("ready");
    let x = ready.zeros("x", &[8, 4], DType::F32).unwrap();
    let sum = ready.zeros("sum", &[4], DType::F32).unwrap();
    ready.submit().unwrap();
    let mut dropped = context.recorder("dropped");
    let lost_x = dropped.zeros("lost x", &[8, 4], DType::F32).unwrap();
    let lost_sum = dropped.zeros("lost sum", &[4], DType::F32).unwrap();
    drop(dropped);
    let add = |x: &Tensor, sum: &Tensor| {
        let mut recorder = context.recorder("sums");
        bias_backward(&mut recorder, x.matrix(), sum.matrix()).unwrap();
        recorder.submit().map(drop)
    };
    add(&x, &sum).unwrap();
    assert_eq!(not_written(add(&lost_x, &sum)).0, "lost x");
    assert_eq!(not_written(add(&x, &lost_sum)).0, "lost sum");
    let mut recorder = context.recorder("written first");
    ScaledAdd::new(x.matrix(), 2.0)
        .write(&mut recorder, lost_x.matrix())
        .unwrap();
    bias_backward(&mut recorder, lost_x.matrix(), sum.matrix()).unwrap();
    recorder.submit().unwrap();
    add(&lost_x, &sum).unwrap();
}

#[test]
fn training_does_not_start_from_weights_that_are_not_there() {
    let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    let model = LongNet::new(&context, config()).unwrap();
    let mut later = context.recorder("weights");
    let weights = Parameters::zeros(&mut later, model.parameters(), "weights").unwrap();
    let mut trainer = Trainer::from_weights(&context, model, weights, options()).unwrap();
    let batches = [batch(0, 1, 20)];
    let (label, reader, by, _) = not_written(trainer.step(&batches).map(drop));
    assert_eq!(
        (label.as_str(), reader.as_str(), by.as_deref()),
        ("weights", "training step", Some("weights"))
    );
    assert_eq!(trainer.steps(), 0);
    later.submit().unwrap();
    trainer.step(&batches).map(drop).unwrap();
    assert_eq!(trainer.steps(), 1);
}

/// A cache knows whether the recordings that computed its tokens were submitted.
#[test]
fn decoding_does_not_go_on_from_a_step_that_was_dropped() {
    let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    let model = LongNet::new(&context, decoder()).unwrap();
    let weights = model.initial_weights(&context, 1).unwrap();
    let mut recorder = context.recorder("cache");
    let mut cache = model.new_cache(&mut recorder, 1, 64).unwrap();
    recorder.submit().unwrap();
    let mut decode = |label, tokens: usize| {
        let mut recorder = context.recorder(label);
        let ids = ids(&mut recorder, tokens);
        let (input, call) = (Input::Tokens(&ids), call(1, tokens));
        let features = model.decode(&mut recorder, &weights, input, &call, &mut cache);
        (features.map(drop), recorder, cache.len())
    };
    let (_, prompt, _) = decode("prompt", 5);
    let (_, dropped, len) = decode("dropped", 1);
    assert_eq!(len, 6);
    // Recorded in the order in which they are submitted: fine.
    let (_, next, _) = decode("next", 1);
    prompt.submit().unwrap();
    drop(dropped);
    let (label, reader, by, _) = not_written(next.submit());
    assert_eq!(
        (label.as_str(), reader.as_str(), by.as_deref()),
        ("cached tokens", "next", Some("dropped"))
    );
    cache.truncate(5);
    let mut recorder = context.recorder("again");
    let one = ids(&mut recorder, 1);
    model
        .decode(
            &mut recorder,
            &weights,
            Input::Tokens(&one),
            &call(1, 1),
            &mut cache,
        )
        .unwrap();
    recorder.submit().unwrap();
}

fn encoder(context: &Context) -> wgpu::CommandEncoder {
    let descriptor = wgpu::CommandEncoderDescriptor::default();
    context.device().create_command_encoder(&descriptor)
}

/// Submits `encoder` with a copy in it that is not allowed; wgpu refuses the whole of it.
fn submit_refused(context: &Context, mut encoder: wgpu::CommandEncoder) {
    let scope = context
        .device()
        .push_error_scope(wgpu::ErrorFilter::Validation);
    #[expect(
        clippy::disallowed_methods,
        reason = "a buffer of the application's own"
    )]
    let own = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("of the application"),
        size: 16,
        usage: wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    encoder.copy_buffer_to_buffer(&own, 0, &own, 8, 8);
    context.queue().submit([encoder.finish()]);
    assert!(pollster::block_on(scope.pop()).is_some(), "is refused");
}

#[test]
fn downloads_of_an_encoder_that_is_refused_are_errors() {
    for (limits, context) in contexts() {
        // A buffer that an earlier download leaves in the pool, full of other numbers.
        let mut recorder = context.recorder("before");
        let old = upload(&mut recorder, "old", &numbers(7, 500));
        recorder.submit().unwrap();
        for round in 0..3 {
            assert_eq!(read(&context, &old).unwrap(), numbers(7, 500));
            let mut to_refuse = encoder(&context);
            let mut recorder = context.recorder("refused");
            let tensor = upload(&mut recorder, "data", &numbers(1, 500));
            let kept = recorder.empty("kept", &[4], DType::F32).unwrap();
            recorder.write(&kept, &[1.0; 4]).unwrap();
            let download = recorder.download::<f32>(&tensor).unwrap();
            let awaited = recorder.download::<f32>(&tensor).unwrap();
            recorder.encode(&mut to_refuse).unwrap();
            submit_refused(&context, to_refuse);
            for result in [download.wait(), pollster::block_on(awaited)] {
                assert!(
                    matches!(&result, Err(Error::DownloadAbandoned { label, reason })
                        if label == "data" && reason.contains("refused")),
                    "{limits}, round {round}: {result:?}"
                );
            }
            context.wait().unwrap();
            let (_, _, by, reason) = not_written(read(&context, &kept));
            assert_eq!(by.as_deref(), Some("refused"));
            assert!(reason.contains("wgpu refused"), "{reason}");
        }
        assert_eq!(read(&context, &old).unwrap(), numbers(7, 500));
        context.wait().unwrap();
        assert_eq!(context.pool().stats().leases.current, 1);
        assert!(context.pool().stats().identities_hold());
    }
}

#[test]
fn recordings_of_one_encoder_follow_each_other() {
    let context = context_with(&ContextOptions::default());
    let mut dropped = encoder(&context);
    let mut frame = encoder(&context);
    let mut first = context.recorder("first");
    let tensor = upload(&mut first, "data", &numbers(1, 500));
    first.encode(&mut frame).unwrap();
    let mut second = context.recorder("second");
    let download = second.download::<f32>(&tensor).unwrap();
    second.encode(&mut frame).unwrap();
    assert!(matches!(
        download.wait(),
        Err(Error::NotSubmitted { next_step, .. }) if next_step.contains("encoder")
    ));
    context.queue().submit([frame.finish()]);
    assert_eq!(download.wait().unwrap(), numbers(1, 500));
    assert_eq!(read(&context, &tensor).unwrap(), numbers(1, 500));

    let mut third = context.recorder("third");
    let lost = upload(&mut third, "lost", &numbers(1, 500));
    third.encode(&mut dropped).unwrap();
    drop(dropped);
    let (_, _, by, reason) = not_written(read(&context, &lost));
    assert_eq!(by.as_deref(), Some("third"));
    assert!(reason.contains("encoder that was dropped"), "{reason}");
}

#[test]
fn what_a_cancelled_run_left_half_written_is_an_error_until_it_is_written_anew() {
    let context = context_with(&ContextOptions::default());
    const LEN: u32 = 64 << 10;
    let mut recorder = context.recorder("before");
    let [done, half, rest] =
        ["done", "half", "rest"].map(|label| upload(&mut recorder, label, &numbers(1, LEN)));
    recorder.submit().unwrap();
    let mut recorder = context.recorder("cancelled");
    for tensor in [&done, &half, &rest] {
        recorder.write(tensor, &numbers(2, LEN)).unwrap();
    }
    let download = recorder.download::<f32>(&rest).unwrap();
    let mut sliced =
        recorder.submit_in_slices(SliceOptions::default().with_target(Default::default()));
    // Four blocks of 64 KiB each: the first as a whole, of the second one.
    for _ in 0..5 {
        pollster::block_on(sliced.step()).unwrap();
    }
    assert!(matches!(
        download.wait(),
        Err(Error::NotSubmitted { next_step, .. }) if next_step.contains("slice")
    ));
    let (label, _, by, reason) = not_written(read(&context, &half));
    assert_eq!((label.as_str(), by.as_deref()), ("half", Some("cancelled")));
    assert!(reason.contains("slices"), "{reason}");
    sliced.cancel();
    assert!(matches!(
        download.wait(),
        Err(Error::DownloadAbandoned { reason, .. }) if reason.contains("cancelled")
    ));
    assert_eq!(read(&context, &done).unwrap(), numbers(2, LEN));
    assert_eq!(read(&context, &rest).unwrap(), numbers(1, LEN));
    let (label, _, by, reason) = not_written(read(&context, &half));
    assert_eq!((label.as_str(), by.as_deref()), ("half", Some("cancelled")));
    assert!(reason.contains("was cancelled"), "{reason}");
    let mut recorder = context.recorder("anew");
    recorder.write(&half, &numbers(3, LEN)).unwrap();
    recorder.submit().unwrap();
    assert_eq!(read(&context, &half).unwrap(), numbers(3, LEN));
    // And a sliced submission that reads what is not there is refused as a whole.
    drop(rest);
    let mut recorder = context.recorder("dropped");
    let lost = upload(&mut recorder, "lost", &numbers(1, 4));
    drop(recorder);
    let mut recorder = context.recorder("sliced");
    recorder.download::<f32>(&lost).map(drop).unwrap();
    let mut sliced = recorder.submit_in_slices(SliceOptions::default());
    assert_eq!(not_written(sliced.advance()).1, "sliced");
}

#[test]
fn downloads_of_a_dry_run_say_that_nothing_runs_there() {
    let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
    let mut recorder = dry_run.recorder("planned");
    let tensor = recorder.zeros("data", &[4], DType::F32).unwrap();
    let download = recorder.download::<f32>(&tensor).unwrap();
    recorder.submit().unwrap();
    let error = download.wait().unwrap_err();
    assert!(error.to_string().contains("dry run"), "{error}");
}

/// Words of messages that a reader acts on.
#[test]
fn messages_say_what_is_so() {
    let [here, there] = [(); 2].map(|()| Context::dry_run(DeviceCaps::webgpu_defaults()));
    let attention = DilatedAttention::new(&here, config().attention().clone()).unwrap();
    let shape = AttentionShape::new(1, 8).unwrap();
    let mut recorder = there.recorder("there");
    let q = recorder.zeros("q", &[1, 8, 2, 8], DType::F32).unwrap();
    let message = |error: Error| error.to_string();
    let of_recorder = message(
        attention
            .forward_with(&mut recorder, &q, &q, &q, &CallOptions::from(&shape))
            .unwrap_err(),
    );
    let mut recorder = here.recorder("here");
    let of_tensor = message(
        attention
            .forward_with(&mut recorder, &q, &q, &q, &CallOptions::from(&shape))
            .unwrap_err(),
    );
    for (foreign, what) in [(of_recorder, "recorder"), (of_tensor, "q")] {
        assert!(foreign.starts_with(&format!("{what} belongs to another context (to pool ")));
        assert!(!foreign.contains("device"), "{foreign}");
    }
    let short = recorder.zeros("k", &[1, 7, 2, 8], DType::F32).unwrap();
    let q = recorder.zeros("q", &[1, 8, 2, 8], DType::F32).unwrap();
    let ids = [1, 2, 3];
    let of_lengths = [
        message(Batch::next_tokens(&[&ids, &ids[1..]]).unwrap_err()),
        message(Batch::new(shape.clone(), vec![1; 7], vec![1; 7]).unwrap_err()),
        message(recorder.upload("x", &[2, 8], &[1.0f32; 15]).unwrap_err()),
        message(
            attention
                .forward_with(&mut recorder, &q, &short, &q, &CallOptions::from(&shape))
                .unwrap_err(),
        ),
    ];
    for unequal in of_lengths {
        assert!(unequal.contains("with_valid_lens"), "{unequal}");
    }
}

/// A write that staging memory was refused for in the middle leaves the tensor as it was, also when the recording goes on.
#[test]
fn a_write_that_fails_half_way_writes_nothing() {
    let context = context_with(&ContextOptions::default());
    const LEN: u32 = 3 << 20;
    let mut recorder = context.recorder("before");
    let tensor = upload(&mut recorder, "data", &numbers(1, LEN));
    let unwritten = recorder
        .empty("unwritten", &[LEN as usize], DType::F32)
        .unwrap();
    recorder.submit().unwrap();
    context.wait().unwrap();
    context.pool().trim();
    // Room for one chunk of staging memory, of three.
    let held_bytes = context.pool().stats().held_bytes.current;
    let mut recorder = context.recorder("goes on");
    context
        .pool()
        .set_budget_bytes(Some(held_bytes + (5 << 20)));
    for tensor in [&tensor, &unwritten] {
        let refused = recorder.write(tensor, &numbers(2, LEN));
        assert!(
            matches!(refused, Err(Error::Pool(PoolError::BudgetExceeded { .. }))),
            "{refused:?}"
        );
    }
    context.pool().set_budget_bytes(None);
    recorder.submit().unwrap();
    assert!(read(&context, &tensor).unwrap() == numbers(1, LEN));
    not_written(read(&context, &unwritten));
}
