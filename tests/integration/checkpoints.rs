//! Training that stops and goes on.

use dilated_attention::Error;
use dilated_attention::longnet::LongNet;
use dilated_attention::training::{LearningRate, Trainer, TrainingOptions};
use dilated_attention::weights::{WeightFile, WeightWriter};

use crate::support::contexts::contexts;
use crate::support::training::{batch, bits, config, options, step, trainer, weights};

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

#[test]
fn checkpoints_of_others_are_refused_whole() {
    let ([(_, context), _], file) = (contexts(), TestFile::new("other.safetensors"));
    let trainer = trainer(&context, config(), options());
    trainer.save(&file.0, &[]).expect("saves");
    let leases = context.pool().stats().leases.current;
    let mut other = config();
    other.num_layers = 3;
    let model = LongNet::new(&context, other).expect("valid");
    let stored = WeightFile::open(&file.0).expect("opens");
    let error = Trainer::resume(&context, model, options(), &stored).expect_err("refused");
    assert!(matches!(error, Error::WeightsMismatch(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("layers.2.self_attn.q_proj.weight"),
        "{error}"
    );

    // Weights without the rest.
    let model = || LongNet::new(&context, config()).expect("valid");
    let writer = WeightWriter::new().part("weights.", trainer.weights());
    writer.save(&context, &file.0).expect("saves");
    let weights_only = WeightFile::open(&file.0).expect("opens");
    let error = Trainer::resume(&context, model(), options(), &weights_only);
    assert!(
        matches!(error, Err(Error::InvalidWeightFile { .. })),
        "{error:?}"
    );
    // Moments are missing, although the file says that it is a checkpoint.
    let metadata = stored.metadata().clone();
    let mut writer = WeightWriter::new().part("weights.", trainer.weights());
    for (key, value) in metadata {
        writer = writer.metadata(key, value);
    }
    writer.save(&context, &file.0).expect("saves");
    let half = WeightFile::open(&file.0).expect("opens");
    let error = Trainer::resume(&context, model(), options(), &half).expect_err("refused");
    assert!(matches!(error, Error::WeightsMismatch(_)), "{error}");
    context.wait().expect("waits");
    assert_eq!(context.pool().stats().leases.current, leases);
}
