//! What forwards take from the pool and give back: planned bytes, repetition, budgets, memory that runs out.

use std::num::NonZeroUsize;

use dilated_attention::pool::{NoPooling, Pool, PoolError, PoolOptions};
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig,
    Error, MixGradient,
};

use crate::recorder::numbers;
use crate::support::contexts::{context_with, contexts};
use crate::support::failing_source::FailingSource;

/// One forward on fresh uploads; returns the output.
fn forward(context: &Context, attention: &DilatedAttention, n: usize) -> Result<Vec<f32>, Error> {
    let config = attention.config();
    let dims = [1, n, config.num_heads(), config.head_dim()];
    let _shape = AttentionShape::new(1, n)?;
    let data: Vec<f32> = numbers(dims.iter().product(), 7)
        .iter()
        .map(|x| x / 65_536.0)
        .collect();
    let mut recorder = context.recorder("forward");
    let q = recorder.upload("q", &dims, &data)?;
    let k = recorder.upload("k", &dims, &data)?;
    let v = recorder.upload("v", &dims, &data)?;
    let result = attention.forward(&mut recorder, &q, &k, &v)?;
    let out = recorder.download::<f32>(&result.out)?;
    recorder.submit()?;
    out.wait()
}

fn small_attention(context: &Context) -> DilatedAttention {
    let config = DilatedAttentionConfig::new(2, 16, &[32, 64], &[1, 2]).expect("valid");
    DilatedAttention::new(context, config).expect("fits")
}

#[test]
fn two_hundred_forwards_create_nothing_after_the_first_few() {
    for (limits, context) in contexts() {
        let attention = small_attention(&context);
        for _ in 0..3 {
            forward(&context, &attention, 150).expect("runs");
        }
        let warm = context.pool().stats();
        for _ in 0..200 {
            forward(&context, &attention, 150).expect("runs");
        }
        context.wait().expect("waits");
        let stats = context.pool().stats();
        assert_eq!(stats.creates, warm.creates, "{limits}: {stats}");
        assert_eq!(stats.leases.current, 0);
        assert!(stats.acquires > warm.acquires + 200 * 5);
        assert!(stats.identities_hold());
    }
}

#[test]
fn the_plan_promises_what_the_pool_measures() {
    let in_parts = ContextOptions::new().with_part_rows(NonZeroUsize::new(200));
    let in_parts = ("parts of 200 rows", context_with(&in_parts));
    for (limits, context) in contexts().into_iter().chain([in_parts]) {
        // With clears and without, short and long.
        for (segments, rates, n, dtype) in [
            (&[32usize, 64][..], &[1usize, 2][..], 150usize, DType::F32),
            (&[64, 700], &[2, 4], 3000, DType::F32),
            (&[64, 700], &[2, 4], 3000, DType::F16),
            (&[5], &[3], 1, DType::F32),
        ] {
            let config = DilatedAttentionConfig::new(2, 16, segments, rates).expect("valid");
            let attention = DilatedAttention::new(&context, config).expect("fits");
            let shape = AttentionShape::new(1, n).expect("valid");
            let mut inputs = context.recorder("inputs");
            let q = inputs.zeros("q", &[1, n, 2, 16], dtype).expect("leases");
            inputs.submit().expect("submits");
            context.wait().expect("waits");
            context.pool().trim();
            let before = context.pool().stats();
            context.pool().reset_peaks();
            let mut recorder = context.recorder("measured");
            let result = attention
                .forward(&mut recorder, &q, &q, &q)
                .expect("records");
            recorder.submit().expect("submits");
            let stats = context.pool().stats();
            let plan = attention.plan(&shape, dtype).expect("plans");
            assert_eq!(
                stats.requested_bytes.peak - before.requested_bytes.current,
                plan.requested_bytes(),
                "{limits}\n{plan}\n{stats}"
            );
            assert!(stats.held_bytes.peak - before.held_bytes.current <= plan.held_bytes());

            for gradient in [MixGradient::Exact, MixGradient::DetachedMix] {
                let attention = DilatedAttention::new(
                    &context,
                    attention.config().clone().with_gradient(gradient),
                )
                .expect("fits");
                let plan = attention.plan_backward(&shape, dtype).expect("plans");
                context.wait().expect("waits");
                context.pool().trim();
                let before = context.pool().stats();
                context.pool().reset_peaks();
                let mut recorder = context.recorder("measured");
                attention
                    .backward(&mut recorder, [&q, &q, &q], &result.softmax_state, &q)
                    .expect("records");
                recorder.submit().expect("submits");
                let stats = context.pool().stats();
                assert_eq!(
                    stats.requested_bytes.peak - before.requested_bytes.current,
                    plan.requested_bytes(),
                    "{limits}\n{stats}"
                );
                assert!(stats.held_bytes.peak - before.held_bytes.current <= plan.held_bytes());
            }
        }
    }
}

#[test]
fn a_budget_too_small_is_an_error_and_the_context_goes_on() {
    let options = ContextOptions {
        pool: PoolOptions::default().with_budget_bytes(600 << 10),
        ..Default::default()
    };
    let context = context_with(&options);
    let attention = small_attention(&context);
    let error = forward(&context, &attention, 4000).expect_err("4 x 512 KB exceed the budget");
    assert!(
        matches!(
            error,
            Error::Pool(PoolError::BudgetExceeded {
                budget_bytes: 614_400,
                ..
            })
        ),
        "{error}"
    );
    context.wait().expect("waits");
    assert_eq!(context.pool().stats().leases.current, 0);
    forward(&context, &attention, 150).expect("runs");
    assert!(context.pool().stats().held_bytes.current <= 600 << 10);
}

#[test]
fn running_out_of_memory_at_any_creation_is_an_error_and_the_context_goes_on() {
    let (_, base) = &contexts()[0];
    let expected = forward(base, &small_attention(base), 150).expect("runs");
    let creations = base.pool().stats().creates;
    // Twice in a row is more than one retry can mend; once is not.
    for (failures, fails) in [(1, false), (2, true)] {
        for fail_at in 0..creations {
            let source = FailingSource::new(base.device(), fail_at, failures);
            let pool = Pool::from_source(source, PoolOptions::default());
            let (device, queue) = (base.device().clone(), base.queue().clone());
            let context = ContextOptions::new()
                .on_device_with_pool(device, queue, pool)
                .expect("fits");
            let attention = small_attention(&context);
            let result = forward(&context, &attention, 150);
            if fails {
                assert!(
                    matches!(result, Err(Error::Pool(PoolError::OutOfMemory { .. }))),
                    "creation {fail_at}"
                );
            } else {
                assert_eq!(result.as_ref(), Ok(&expected), "creation {fail_at}");
            }
            assert_eq!(forward(&context, &attention, 150).as_ref(), Ok(&expected));
            context.wait().expect("waits");
            let stats = context.pool().stats();
            assert!(
                stats.leases.current == 0 && stats.identities_hold(),
                "{stats}"
            );
        }
    }
}

#[test]
fn pooling_changes_no_bit() {
    let pooled = context_with(&ContextOptions::default());
    let options = ContextOptions {
        pool: PoolOptions::default().with_policy(NoPooling),
        ..Default::default()
    };
    let fresh = context_with(&options);
    let [pooled_attention, fresh_attention] = [&pooled, &fresh].map(small_attention);
    let first = forward(&pooled, &pooled_attention, 333).expect("runs");
    for _ in 0..3 {
        assert_eq!(
            forward(&pooled, &pooled_attention, 333).expect("runs"),
            first
        );
        assert_eq!(forward(&fresh, &fresh_attention, 333).expect("runs"), first);
    }
    fresh.wait().expect("waits");
    assert_eq!(fresh.pool().stats().held_bytes.current, 0);
}

#[test]
fn empty_calls_return_empty_tensors() {
    let (_, context) = &contexts()[0];
    let attention = small_attention(context);
    assert_eq!(forward(context, &attention, 0), Ok(Vec::new()));
    let mut recorder = context.recorder("no items");
    let _shape = AttentionShape::new(0, 7).expect("valid");
    let empty = recorder
        .upload::<f32>("q", &[0, 7, 2, 16], &[])
        .expect("uploads");
    let result = attention
        .forward(&mut recorder, &empty, &empty, &empty)
        .expect("records");
    assert_eq!(result.out.shape(), [0, 7, 2, 16]);
    recorder.submit().expect("submits");
}
