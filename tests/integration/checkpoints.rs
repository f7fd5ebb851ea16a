//! Training that stops and goes on.

use dilated_attention::Error;
use dilated_attention::longnet::{LongNet, Recompute};
use dilated_attention::training::{AdamWOptions, LearningRate, Trainer, TrainingOptions};
use dilated_attention::weights::{WeightFile, WeightWriter, WeightsError};
use safetensors::SafeTensors;

use crate::support::contexts::contexts;
use crate::support::kernel_contexts::kernel_contexts;
use crate::support::training::{batch, bits, config, options, step, trainer, weights, with_layers};

/// A path of this test run's own, removed at the end.
struct TestFile(std::path::PathBuf);

impl TestFile {
    fn new(name: &str) -> Self {
        let name = format!("dilated-attention-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A function is no part of a checkpoint: given again, it goes on with the step that comes next; likewise options that were
/// changed on the way.
#[test]
fn a_resumed_run_is_given_functions_and_changed_options_again() {
    let on = &kernel_contexts()[0].context;
    let file = TestFile::new("function.safetensors");
    let options = TrainingOptions {
        learning_rate: LearningRate::from_fn(|step| 1e-2 / step as f32),
        recompute: Recompute::Layers,
        ..options()
    };
    let changed = AdamWOptions {
        weight_decay: 0.5,
        ..options.optimizer
    };
    let batches = [batch(0, 1, 20)];
    let mut whole = trainer(on, with_layers(1), options.clone());
    step(&mut whole, &batches);
    whole.set_optimizer(changed).expect("means something");
    step(&mut whole, &batches);
    whole.save(&file.0, &[]).expect("saves");
    let stored = WeightFile::open(&file.0).expect("opens");
    let resume = |options| {
        let model = LongNet::new(on, with_layers(1)).expect("valid");
        Trainer::resume(on, model, options, &stored).expect("resumes")
    };
    let mut resumed = resume(TrainingOptions {
        optimizer: changed,
        ..options.clone()
    });
    let mut forgotten = resume(options);
    let expected = step(&mut whole, &batches);
    assert_eq!(expected.learning_rate, 1e-2 / 3.0);
    assert_eq!(step(&mut resumed, &batches), expected);
    assert_eq!(bits(&weights(&resumed, on)), bits(&weights(&whole, on)));
    // With the options of the beginning it is another run.
    assert_eq!(step(&mut forgotten, &batches), expected);
    assert_ne!(bits(&weights(&forgotten, on)), bits(&weights(&whole, on)));
}

#[test]
fn a_resumed_run_ends_with_the_bits_of_one_that_never_stopped() {
    let contexts = contexts();
    let ([(_, context), _], file) = (&contexts, TestFile::new("resume.safetensors"));
    let mut config = config();
    config.dropout = 0.1;
    let options = TrainingOptions {
        learning_rate: LearningRate::Cosine {
            peak: 3e-3,
            end: 0.0,
            warm_up: 2,
            total: 6,
        },
        ..options()
    };
    let run = |trainer: &mut Trainer, steps: std::ops::Range<u32>| {
        for begin in steps {
            step(trainer, &[batch(begin, 2, 40), batch(begin + 1, 1, 20)]);
        }
    };
    let mut whole = trainer(context, config.clone(), options.clone());
    run(&mut whole, 0..6);

    let mut first = trainer(context, config.clone(), options.clone());
    run(&mut first, 0..3);
    let extra = [("note", "half way".to_owned())];
    first.save(&file.0, &extra).expect("saves");
    let saved = bits(&weights(&first, context));
    drop(first);
    for (limits, context) in &contexts {
        let stored = WeightFile::open(&file.0).expect("opens");
        assert_eq!(
            stored.metadata().get("note").map(String::as_str),
            Some("half way")
        );
        let model = LongNet::new(context, config.clone()).expect("valid");
        let mut second =
            Trainer::resume(context, model, options.clone(), &stored).expect("resumes");
        assert_eq!(second.steps(), 3);
        assert_eq!(bits(&weights(&second, context)), saved);
        run(&mut second, 3..6);
        assert_eq!(
            bits(&weights(&second, context)),
            bits(&weights(&whole, &contexts[0].1)),
            "{limits}"
        );
    }
}

/// What a user writes beside a checkpoint cannot change what the checkpoint says of itself.
#[test]
fn metadata_of_the_caller_cannot_replace_a_checkpoints_own() {
    let ([(_, context), _], file) = (contexts(), TestFile::new("metadata.safetensors"));
    let model = || LongNet::new(&context, config()).expect("valid");
    let mut trainer = trainer(&context, config(), options());
    step(&mut trainer, &[batch(0, 1, 20)]);
    let given = [("steps", "5000"), ("format", "x"), ("note", "first")];
    let given = given.map(|(key, value)| (key, value.to_owned()));
    trainer.save(&file.0, &given).expect("saves");
    let stored = WeightFile::open(&file.0).expect("opens");
    for (key, value) in &given {
        assert_eq!(stored.metadata().get(*key), Some(value));
    }
    let resumed = Trainer::resume(&context, model(), options(), &stored).expect("a checkpoint");
    assert_eq!(resumed.steps(), 1);
    let before = std::fs::read(&file.0).expect("reads");
    for key in [
        "dilated_attention.steps",
        "dilated_attention.format",
        "dilated_attention.other",
    ] {
        let error = trainer
            .save(&file.0, &[(key, "5000".to_owned())])
            .expect_err("reserved");
        assert!(
            matches!(&error, Error::Weights(WeightsError::CannotSave { given, .. }) if given == key),
            "{error}"
        );
        let writer = WeightWriter::new()
            .with_part("", trainer.weights())
            .with_metadata(key, "5000");
        let error = writer.save(&context, &file.0).expect_err("reserved");
        assert!(error.to_string().contains(key), "{error}");
    }
    assert_eq!(std::fs::read(&file.0).expect("reads"), before);
}

#[test]
fn checkpoints_of_others_are_refused_whole() {
    let ([(_, context), _], file) = (contexts(), TestFile::new("other.safetensors"));
    let trainer = trainer(&context, config(), options());
    trainer.save(&file.0, &[]).expect("saves");
    let leases = context.pool().stats().leases.current;
    let model = LongNet::new(&context, with_layers(3)).expect("valid");
    let stored = WeightFile::open(&file.0).expect("opens");
    let error = Trainer::resume(&context, model, options(), &stored).expect_err("refused");
    assert!(
        matches!(error, Error::Weights(WeightsError::Mismatch(_))),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("layers.2.self_attn.q_proj.weight"),
        "{error}"
    );

    // Weights without the rest.
    let model = || LongNet::new(&context, config()).expect("valid");
    let writer = WeightWriter::new().with_part("weights.", trainer.weights());
    writer.save(&context, &file.0).expect("saves");
    let weights_only = WeightFile::open(&file.0).expect("opens");
    let error = Trainer::resume(&context, model(), options(), &weights_only);
    assert!(
        matches!(
            error,
            Err(Error::Weights(WeightsError::NoCheckpoint { .. }))
        ),
        "{error:?}"
    );
    // Moments are missing, although the file says that it is a checkpoint.
    let metadata: std::collections::HashMap<String, String> =
        stored.metadata().clone().into_iter().collect();
    let bytes = std::fs::read(&file.0).expect("reads");
    let tensors = SafeTensors::deserialize(&bytes).expect("valid");
    let weights = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("weights."));
    let bytes = safetensors::serialize(weights, Some(metadata)).expect("fits");
    // Another file: the one of before is open.
    std::fs::remove_file(&file.0).expect("removes");
    std::fs::write(&file.0, bytes).expect("writes");
    let half = WeightFile::open(&file.0).expect("opens");
    let error = Trainer::resume(&context, model(), options(), &half).expect_err("refused");
    assert!(
        matches!(error, Error::Weights(WeightsError::Mismatch(_))),
        "{error}"
    );
    context.wait().expect("waits");
    assert_eq!(context.pool().stats().leases.current, leases);
}
