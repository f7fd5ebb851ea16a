//! Attention of which each rank has a share, in threads with a device each, against the reference and against one rank.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use dilated_attention::distributed::{Group, SequenceShare, in_process};
use dilated_attention::longnet::{Call, Input, LongNet, Recompute};
use dilated_attention::ops::convert;
use dilated_attention::testing::plain::PlainOutput;
use dilated_attention::{
    AttentionShape, Context, ContextOptions, DType, DilatedAttention, DilatedAttentionConfig,
    Error, Mask, PoolOptions, Result, Tensor, softmax_lse, wgpu,
};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::backward::{self, GRADIENTS, Gradients32, with_gradient};
use crate::forward::named_problems;
use crate::models::{self, cases};
use crate::oracle::any_config;
use crate::support::contexts::context_with;
use crate::support::models::{Case, Inputs, Run, assert_near, wide};
use crate::support::problem::Problem;

/// A device and a pool for each rank. Those of every other rank have tensors in parts of 13 rows and bindings of 64 KiB.
fn contexts() -> &'static [Context] {
    static CONTEXTS: OnceLock<Vec<Context>> = OnceLock::new();
    CONTEXTS.get_or_init(|| {
        let open = |rank: usize| {
            let mut limits = wgpu::Limits::default();
            let mut options = ContextOptions {
                pool: PoolOptions::default().with_poison(true),
                ..Default::default()
            };
            if rank % 2 == 1 {
                limits.max_storage_buffer_binding_size = 64 << 10;
                options.part_rows = NonZeroUsize::new(13);
            }
            options.limits = Some(limits);
            context_with(&options)
        };
        (0..8).map(open).collect()
    })
}

/// Runs `run` with the contexts, which are those of one test at a time, so that their pools are empty at its end.
pub fn with_contexts<T>(run: impl FnOnce(&[Context]) -> T) -> T {
    static DEVICES: Mutex<()> = Mutex::new(());
    let _devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    run(contexts())
}

/// Runs `run` on each of `ranks` ranks; what each returns, in order.
pub fn on_ranks<T: Send>(ranks: usize, run: impl Fn(&Arc<Group>, &Context) -> T + Sync) -> Vec<T> {
    with_contexts(|contexts| on_ranks_of(contexts, ranks, run))
}

fn on_ranks_of<T: Send>(
    contexts: &[Context],
    ranks: usize,
    run: impl Fn(&Arc<Group>, &Context) -> T + Sync,
) -> Vec<T> {
    let groups = in_process(ranks, Duration::from_secs(60));
    std::thread::scope(|scope| {
        let run = &run;
        let threads = groups.into_iter().zip(contexts).map(|(group, context)| {
            scope.spawn(move || {
                let result = run(&Arc::new(group), context);
                context.wait().unwrap();
                assert_eq!(context.pool().stats().leases.current, 0);
                result
            })
        });
        let threads: Vec<_> = threads.collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        // A panic of one makes others fail, too: the first that is no failure of the group is told.
        ended
            .map(|result| result.expect("a rank panicked"))
            .collect()
    })
}

/// The part of an item that a rank has: (1, tokens, H, D), of the problem's type.
fn upload(
    problem: &Problem,
    recorder: &mut dilated_attention::Recorder,
    values: &[f32],
    item: usize,
    tokens: Range<usize>,
) -> Result<Tensor> {
    let width = problem.config.embed_dim();
    let first = item * problem.shape.seq_len();
    let values = &values[(first + tokens.start) * width..(first + tokens.end) * width];
    let shape = [
        1,
        tokens.len(),
        problem.config.num_heads(),
        problem.config.head_dim(),
    ];
    problem.upload_one(recorder, "share", &shape, values)
}

/// What a rank computes of an item: output, softmax states, and gradients if they are asked for.
type OfRank = [Vec<f32>; 5];

fn run_rank(
    problem: &Problem,
    group: &Arc<Group>,
    context: &Context,
    item: usize,
    backward: bool,
) -> Result<OfRank> {
    let attention = DilatedAttention::new(context, problem.config.clone())?;
    let share = SequenceShare::new(group.clone(), problem.shape.valid_len(item));
    let mut recorder = context.recorder("rank");
    let mut get = |values| upload(problem, &mut recorder, values, item, share.range());
    let [q, k, v, dout] = [
        get(&problem.q)?,
        get(&problem.k)?,
        get(&problem.v)?,
        get(&problem.dout)?,
    ];
    let forward = attention.forward_of_share(&mut recorder, &share, [&q, &k, &v])?;
    assert_eq!(forward.out.dtype(), problem.dtype);
    let mut tensors = vec![forward.out.clone(), forward.softmax_state.clone()];
    if backward {
        let state = &forward.softmax_state;
        let gradients =
            attention.backward_of_share(&mut recorder, &share, [&q, &k, &v], state, &dout)?;
        tensors.extend([gradients.dq, gradients.dk, gradients.dv]);
    }
    let mut downloads = Vec::new();
    for tensor in &tensors {
        let wide = convert(&mut recorder, tensor, DType::F32)?;
        downloads.push(recorder.download::<f32>(&wide)?);
    }
    recorder.submit()?;
    let mut results = OfRank::default();
    for (result, download) in results.iter_mut().zip(downloads) {
        *result = download.wait()?;
    }
    Ok(results)
}

/// All items on so many ranks. Behind the length of an item there is nothing.
fn run(problem: &Problem, ranks: usize, backward: bool) -> Result<OfRank> {
    let (heads, width) = (problem.config.num_heads(), problem.config.embed_dim());
    let len = problem.shape.seq_len();
    let mut all = OfRank::default();
    for item in 0..problem.shape.batch() {
        let of_ranks = on_ranks(ranks, |group, context| {
            run_rank(problem, group, context, item, backward)
        });
        for of_rank in of_ranks {
            for (all, of_rank) in all.iter_mut().zip(of_rank?) {
                all.extend(of_rank);
            }
        }
        let widths = [width, 2 * heads, width, width, width];
        let wanted = if backward { 5 } else { 2 };
        for (all, width) in all.iter_mut().zip(widths).take(wanted) {
            all.resize((item + 1) * len * width, 0.0);
        }
    }
    Ok(all)
}

fn check(problem: &Problem, ranks: &[usize]) -> std::result::Result<(), String> {
    let ways = || ranks.iter().map(|ranks| (format!("{ranks} ranks"), *ranks));
    problem.check_runs(ways(), |ranks| {
        let [out, states, ..] = run(problem, ranks, false)?;
        Ok(PlainOutput {
            out,
            softmax_lse: softmax_lse(&states),
        })
    })?;
    for gradient in GRADIENTS {
        let problem = &with_gradient(problem, gradient);
        backward::check_runs(problem, ways(), |ranks| -> Result<Gradients32> {
            let [_, _, dq, dk, dv] = run(problem, ranks, true)?;
            Ok([dq, dk, dv])
        })?;
    }
    Ok(())
}

/// Every kind of attention, forward and backward.
#[test]
fn named_cases_equal_the_reference() {
    for (name, problem) in named_problems() {
        if problem.shape.is_cross() {
            continue;
        }
        let ranks: &[usize] = match problem.shape.seq_len() {
            ..=100 => &[2, 3, 8],
            _ => &[3],
        };
        check(&problem, ranks).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
}

/// Any options, any length, any number of ranks: borders fall between the heads of a row, and between queries and their outputs.
#[test]
fn drawn_configurations_equal_the_reference() {
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig {
            cases: 40,
            failure_persistence: None,
            ..Default::default()
        },
        // The same cases in every run: what fails here fails again.
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let cases = (any_config(), 1..90usize, 2..7usize);
    let drawn = runner.run(&cases, |(config, tokens, ranks)| {
        let shape = AttentionShape::new(1, tokens).unwrap();
        let problem = Problem::new(config, shape, 1.0);
        check(&problem, &[ranks]).map_err(TestCaseError::fail)
    });
    drawn.unwrap();
}

/// Results in half precision, and shares that hold many bindings.
#[test]
fn half_precision_and_many_windows_equal_the_reference() {
    let config = DilatedAttentionConfig::new(3, 16, &[40, 400], &[1, 3]).unwrap();
    for mask in [Mask::Full, Mask::Causal] {
        let config = config.clone().with_torchscale().with_mask(mask);
        let shape = AttentionShape::new(1, 700).unwrap();
        let problem = Problem::new(config, shape, 1.0);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            check(&problem.clone().stored(dtype), &[2]).unwrap();
        }
    }
}

/// One rank has the bits of a call without ranks; several have the same bits in every run.
#[test]
fn bits_are_the_same() {
    let config = DilatedAttentionConfig::new(4, 8, &[16, 64], &[1, 4]).unwrap();
    let config = config.with_torchscale();
    let problem = Problem::new(config, AttentionShape::new(1, 150).unwrap(), 1.0);
    let expected = on_ranks(1, |_, context| {
        let attention = DilatedAttention::new(context, problem.config.clone()).unwrap();
        let mut recorder = context.recorder("one");
        let [q, k, v] = problem.upload(&mut recorder).unwrap();
        let dout = recorder.upload("dout", &problem.dims(150), &problem.dout);
        let forward = attention.forward(&mut recorder, &q, &k, &v).unwrap();
        let state = &forward.softmax_state;
        let gradients = attention.backward(&mut recorder, [&q, &k, &v], state, &dout.unwrap());
        let gradients = gradients.unwrap();
        let tensors = [
            &forward.out,
            state,
            &gradients.dq,
            &gradients.dk,
            &gradients.dv,
        ];
        let downloads = tensors.map(|tensor| recorder.download::<f32>(tensor).unwrap());
        recorder.submit().unwrap();
        downloads.map(|download| download.wait().unwrap())
    });
    assert_eq!(run(&problem, 1, true).unwrap(), expected[0]);
    for ranks in [2, 5] {
        let first = run(&problem, ranks, true).unwrap();
        assert_eq!(run(&problem, ranks, true).unwrap(), first);
    }
}

/// Forward and backward of a case with one item on so many ranks.
fn run_case(
    case: &Case,
    values: &[Vec<f32>],
    ranks: usize,
    recompute: Recompute,
    step_seed: Option<u64>,
) -> Result<Run> {
    let (width, inputs) = (case.width(), &case.inputs);
    let of_ranks = on_ranks(ranks, |group, context| -> Result<Run> {
        let model = LongNet::new(context, case.config.clone())?;
        let share = SequenceShare::new(group.clone(), inputs.shape.seq_len());
        let own = share.range();
        let rows = |x: &[f32]| x[own.start * width..own.end * width].to_vec();
        let part = Inputs {
            shape: AttentionShape::new(1, own.len())?,
            tokens: inputs.tokens[own.clone()].to_vec(),
            labels: inputs.labels[own.clone()].to_vec(),
            x: rows(&inputs.x),
            dy: rows(&inputs.dy),
        };
        let call = Call::of_share(share)?;
        case.run_calls(
            context,
            &model,
            values,
            &[(part, call)],
            recompute,
            step_seed,
        )
    });
    let mut all = Run {
        features: Vec::new(),
        loss: 0.0,
        dinput: Vec::new(),
        gradients: values.iter().map(|x| vec![0.0; x.len()]).collect(),
    };
    for run in of_ranks {
        let run = run?;
        all.features.extend(run.features);
        all.dinput.extend(run.dinput);
        all.loss += run.loss;
        for (sum, gradient) in all.gradients.iter_mut().zip(run.gradients) {
            let pairs = sum.iter_mut().zip(gradient);
            pairs.for_each(|(sum, gradient)| *sum += gradient);
        }
    }
    Ok(all)
}

/// Encoders and decoders with every option, forward and backward.
#[test]
fn models_equal_double_precision() {
    for case in cases() {
        let shape = &case.inputs.shape;
        let item = (0..shape.batch()).find(|item| shape.valid_len(*item) > 0);
        let item = item.unwrap();
        let case = Case {
            inputs: case.inputs.part(item..item + 1, shape.valid_len(item)),
            ..case.clone()
        };
        let (list, values) = on_ranks(1, |_, context| {
            let (model, values) = models::model(context, &case);
            (model.parameters().clone(), values)
        })
        .remove(0);
        for ranks in [2, 3] {
            let run = run_case(&case, &values, ranks, Recompute::Layers, None).unwrap();
            models::check(&case, &list, &values, &run, 1);
        }
    }
}

/// What a share cannot have is an error, not a number.
#[test]
fn weights_and_decoding_of_a_share_are_errors() {
    let case = &cases()[2];
    on_ranks(2, |group, context| {
        let (model, _) = models::model(context, case);
        let weights = model.initial_weights(context, 1).unwrap();
        let call = Call::of_share(SequenceShare::new(group.clone(), 8)).unwrap();
        let mut recorder = context.recorder("share");
        let x = recorder
            .zeros("x", &[1, 4, case.width()], DType::F32)
            .unwrap();
        let layer = model.layer(&mut recorder, &weights, &call, 0, x.clone(), Some(0));
        assert!(matches!(layer.map(drop), Err(Error::InvalidConfig { .. })));
        let mut cache = model.new_cache(&mut recorder, 1, 8).unwrap();
        let input = Input::Embeddings(&x);
        let decoded = model.decode(&mut recorder, &weights, input, &call, &mut cache);
        assert!(matches!(
            decoded.map(drop),
            Err(Error::InvalidConfig { .. })
        ));
    });
}

/// Each rank drops what one rank with all tokens would.
#[test]
fn dropout_is_that_of_the_sequence() {
    let mut case = cases().remove(2);
    case.inputs = case.inputs.part(0..1, 45);
    (case.config.dropout, case.config.activation_dropout) = (0.2, 0.1);
    let values = on_ranks(1, |_, context| models::model(context, &case).1).remove(0);
    let run = |ranks| run_case(&case, &values, ranks, Recompute::Insides, Some(9)).unwrap();
    let (one, three) = (run(1), run(3));
    assert_near("features", &three.features, &wide(&one.features));
    assert_near("loss", &[three.loss], &wide(&[one.loss]));
    assert_near("input", &three.dinput, &wide(&one.dinput));
    for (three, one) in three.gradients.iter().zip(&one.gradients) {
        assert_near("gradients", three, &wide(one));
    }
}

/// What is wrong on one rank is an error on all that names it, and so is a difference between ranks.
#[test]
fn errors_are_errors_on_all_ranks() {
    let config = DilatedAttentionConfig::new(2, 8, &[16, 64], &[1, 4]).unwrap();
    let causal = config.clone().with_mask(Mask::Causal);
    let run = |bad: &(dyn Fn(usize) -> (DilatedAttentionConfig, usize, usize) + Sync)| {
        on_ranks(3, |group, context| {
            let (config, tokens, rows) = bad(group.rank());
            let attention = DilatedAttention::new(context, config)?;
            let share = SequenceShare::new(group.clone(), tokens);
            let mut recorder = context.recorder("rank");
            let x = recorder.upload("x", &[1, rows, 2, 8], &vec![0.5f32; rows * 16])?;
            attention
                .forward_of_share(&mut recorder, &share, [&x, &x, &x])
                .map(drop)
        })
    };
    let all_fail = |results: Vec<Result<()>>, words: &str| {
        for (rank, result) in results.into_iter().enumerate() {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(words), "rank {rank}: {error}");
        }
    };
    let good = |rank: usize| (config.clone(), 90, [30, 30, 30][rank]);
    assert!(run(&good).iter().all(Result::is_ok));
    let mask = |rank: usize| match rank {
        1 => (causal.clone(), 90, 30),
        _ => good(rank),
    };
    all_fail(run(&mask), "attention is ");
    all_fail(
        run(&|rank| (config.clone(), 90 + rank / 2, 30)),
        "tokens of the sequence",
    );
    // A tensor of another length than the share.
    let results = run(&|rank| (config.clone(), 90, if rank == 2 { 29 } else { 30 }));
    assert!(
        matches!(results[2], Err(Error::InvalidShape { .. })),
        "{results:?}"
    );
    for result in &results[..2] {
        let error = result.as_ref().unwrap_err();
        assert!(error.to_string().contains("rank 2"), "{error}");
    }
}
