//! Training steps over ranks, against steps on one rank.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dilated_attention::distributed::{Group, RankGrid};
use dilated_attention::longnet::{LongNet, LongNetConfig, Recompute};
use dilated_attention::training::{Batch, LearningRate, StepReport, Trainer, TrainingOptions};
use dilated_attention::weights::WeightFile;
use dilated_attention::{AttentionShape, Context, Error, Result};

use crate::ranks::on_ranks;
use crate::support::models::{assert_near, wide};
use crate::support::training::{batch, config, options, trainer, weights};

fn grid(group: &Arc<Group>, ranks_per_sequence: usize) -> Result<RankGrid> {
    let columns = NonZeroUsize::new(ranks_per_sequence).unwrap();
    RankGrid::new(group.clone(), columns)
}

/// Of different lengths, and one whose items have lengths of their own.
fn batches() -> Vec<Batch> {
    let ragged = {
        let shape = AttentionShape::new(3, 40).unwrap();
        let shape = shape.with_valid_lens(&[40, 0, 13]).unwrap();
        let whole = batch(5, 3, 41);
        Batch::new(shape, whole.tokens().to_vec(), whole.labels().to_vec()).unwrap()
    };
    vec![batch(0, 2, 71), batch(3, 1, 50), ragged]
}

fn with_dropout() -> LongNetConfig {
    let mut config = config();
    config.dropout = 0.2;
    config.activation_dropout = 0.1;
    config.learned_positions = Some(100);
    config
}

/// Three steps of one trainer without ranks: reports, and the weights in the end.
fn alone(context: &Context, config: LongNetConfig) -> (Vec<StepReport>, Vec<Vec<f32>>) {
    let mut trainer = trainer(context, config, options());
    let step = |_| trainer.step(&batches()).unwrap().wait().unwrap();
    let reports = (0..3).map(step).collect();
    (reports, weights(&trainer, context))
}

/// Grids of all shapes, some with more ranks than sequences or tokens.
#[test]
fn steps_are_those_of_one_rank() {
    for config in [config(), with_dropout()] {
        let (reports, expected) =
            on_ranks(1, |_, context| alone(context, config.clone())).remove(0);
        for (ranks, ranks_per_sequence) in [(1, 1), (2, 1), (2, 2), (4, 2), (8, 1)] {
            let of_ranks = on_ranks(ranks, |group, context| {
                let grid = grid(group, ranks_per_sequence).unwrap();
                let mut trainer = trainer(context, config.clone(), options());
                let mut step = |_| trainer.step_on_ranks(&grid, &batches()).unwrap();
                let reports: Vec<StepReport> = (0..3).map(&mut step).collect();
                assert_eq!(trainer.steps(), 3);
                (reports, weights(&trainer, context))
            });
            for (given, own) in &of_ranks {
                // The same bits on all ranks.
                assert_eq!((given, own), (&of_ranks[0].0, &of_ranks[0].1));
            }
            let (given, own) = &of_ranks[0];
            let what = format!("{ranks} ranks, {ranks_per_sequence} to a sequence");
            for (given, expected) in given.iter().zip(&reports) {
                assert_eq!(given.labels, expected.labels);
                assert_near(&what, &[given.loss], &wide(&[expected.loss]));
                let norms = [given.gradient_norm, expected.gradient_norm].map(|norm| [norm]);
                assert_near(&what, &norms[0], &wide(&norms[1]));
            }
            // AdamW divides a gradient by its own size: where it is nearly 0, rounding decides. So weights are compared by what a
            // step of the learning rate is.
            let rate = reports[2].learning_rate;
            for (own, expected) in own.iter().zip(&expected) {
                for (own, expected) in own.iter().zip(expected) {
                    assert!(
                        (own - expected).abs() <= 0.2 * rate,
                        "{what}: {own} {expected}"
                    );
                }
            }
        }
    }
}

/// After a warm-up, no step makes a buffer; a checkpoint of one rank goes on on any number of ranks.
#[test]
fn steady_steps_make_no_buffers_and_checkpoints_fit_any_grid() {
    let path = std::env::temp_dir().join(format!("ranks-{}.safetensors", std::process::id()));
    let steps = |group: &Arc<Group>, context: &Context, columns: usize, resume: bool| {
        let grid = grid(group, columns).unwrap();
        let mut trainer = match resume {
            false => trainer(context, config(), options()),
            true => {
                let file = WeightFile::open(&path).unwrap();
                let model = LongNet::new(context, config()).unwrap();
                Trainer::resume(context, model, options(), &file).unwrap()
            }
        };
        let before = weights(&trainer, context);
        trainer.warm_up_on_ranks(&grid, &batches()).unwrap();
        assert_eq!(weights(&trainer, context), before);
        context.wait().unwrap();
        let warm = context.pool().stats().creates;
        let mut step = || trainer.step_on_ranks(&grid, &batches()).unwrap();
        step();
        step();
        step();
        let report = step();
        assert_eq!(context.pool().stats().creates, warm);
        group.barrier().unwrap();
        if group.rank() == 1 && !resume {
            trainer.save(&path, &[]).unwrap();
        }
        report
    };
    let first = on_ranks(2, |group, context| steps(group, context, 2, false)).remove(0);
    let two = on_ranks(4, |group, context| steps(group, context, 2, true)).remove(0);
    let one = on_ranks(1, |group, context| steps(group, context, 1, true)).remove(0);
    std::fs::remove_file(&path).unwrap();
    assert_eq!((first.step, one.step), (4, 8));
    assert_near("loss", &[two.loss], &wide(&[one.loss]));
}

/// What differs between ranks, and what fails on one of them, is an error on all; the weights stay.
#[test]
fn errors_leave_the_weights() {
    type Change = fn(usize, &mut TrainingOptions, &mut Vec<Batch>);
    let changes: [(Change, &str); 6] = [
        (|rank, options, _| options.seed += rank as u64, "seed"),
        (
            |rank, options, _| options.learning_rate = LearningRate::Constant(rank as f32),
            "learning rate",
        ),
        (
            |rank, options, _| {
                options.recompute = [Recompute::Insides, Recompute::Layers][rank];
            },
            "recompute",
        ),
        (|rank, _, batches| batches.truncate(3 - rank), "batches"),
        (
            |rank, _, batches| batches[0] = batch(rank as u32, 2, 71),
            "tokens and labels",
        ),
        // Beyond the vocabulary on all ranks, found by the one that has it.
        (
            |_, _, batches| {
                let mut tokens = batches[0].tokens().to_vec();
                tokens[69] = 1 << 20;
                let labels = batches[0].labels().to_vec();
                batches[0] = Batch::new(batches[0].shape().clone(), tokens, labels).unwrap();
            },
            "token 1048576",
        ),
    ];
    for (change, words) in changes {
        let errors = on_ranks(2, |group, context| {
            let grid = grid(group, 2).unwrap();
            let (mut options, mut batches) = (options(), batches());
            change(group.rank(), &mut options, &mut batches);
            let mut trainer = trainer(context, config(), options);
            let before = weights(&trainer, context);
            let error = trainer.step_on_ranks(&grid, &batches).unwrap_err();
            assert_eq!(trainer.steps(), 0);
            assert_eq!(weights(&trainer, context), before);
            error
        });
        for error in errors {
            assert!(error.to_string().contains(words), "{error}");
        }
    }
    // Other weights, which the warm-up compares.
    let errors = on_ranks(2, |group, context| {
        let mut seeded = options();
        seeded.seed = group.rank() as u64;
        let other = trainer(context, config(), seeded);
        let model = LongNet::new(context, config()).unwrap();
        let weights = other.weights().clone();
        let trainer = Trainer::from_weights(context, model, weights, options()).unwrap();
        let grid = grid(group, 1).unwrap();
        trainer.warm_up_on_ranks(&grid, &batches()).unwrap_err()
    });
    for error in errors {
        assert!(error.to_string().contains("weights"), "{error}");
    }
    let errors = on_ranks(3, |group, _| grid(group, 2).map(drop).unwrap_err());
    for error in errors {
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
    }
}
