//! Checkpoints of a training: one file with the weights, the optimizer's means and the number of steps.

use super::{Optimizer, Trainer, TrainingOptions};
use crate::context::Context;
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Result, WeightsError};
use crate::longnet::LongNet;
#[cfg(not(target_arch = "wasm32"))]
use crate::weights::WeightWriter;
use crate::weights::{OWN_METADATA, WeightFile};

/// Keys of the crate's own among a file's metadata.
const FORMAT: (&str, &str) = ("format", "training 1");
const STEPS: &str = "steps";
const WEIGHTS: &str = "weights.";
const MOMENTS: [&str; 2] = ["moment_1.", "moment_2."];

impl Trainer {
    /// Writes weights, the optimizer's means, the number of steps and the entries of `metadata` to a safetensors file. The names of
    /// the weights in it begin with `weights.`. The file does not hold the options: give them to [`resume`](Self::resume) again.
    /// Blocks until the file is written. An existing file is replaced at the very end; after an error it is as it was.
    ///
    /// # Errors
    /// [`Error::OutOfOrder`] while a step is recorded and not submitted to the end. As [`WeightWriter::save`]: among them
    /// [`WeightsError::CannotSave`] for a key of `metadata` that begins with [`OWN_METADATA`], where steps and format stand.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(
        &self,
        path: impl AsRef<std::path::Path>,
        metadata: &[(&str, String)],
    ) -> Result<()> {
        self.expect_no_step_under_way("Trainer::save")?;
        let [moment_1, moment_2] = self.optimizer.moments();
        let mut writer = WeightWriter::new()
            .with_part(WEIGHTS, self.optimizer.weights())
            .with_part(MOMENTS[0], moment_1)
            .with_part(MOMENTS[1], moment_2)
            .own_metadata(FORMAT.0, FORMAT.1)
            .own_metadata(STEPS, self.steps().to_string());
        for (key, value) in metadata {
            writer = writer.with_metadata(*key, value.clone());
        }
        writer.save(&self.context, path)
    }

    /// Continues the training that [`save`](Self::save) saved. With the same model and batches, and the options that the trainer had last, the
    /// following steps have the bits that they would have had. That goes for a learning rate that is a
    /// [function](super::LearningRate::from_fn), too, if it returns the same rates.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] for the checkpoint of another model, [`WeightsError::NoCheckpoint`] for a file that is
    /// none; as [`new`](Self::new).
    pub fn resume(
        context: &Context,
        model: LongNet,
        options: TrainingOptions,
        file: &WeightFile,
    ) -> Result<Self> {
        options.check(&model)?;
        let metadata = |key: &str| {
            let value = file.metadata().get(&format!("{OWN_METADATA}{key}"));
            value.map(String::as_str)
        };
        let steps = metadata(STEPS).and_then(|steps| steps.parse().ok());
        let (true, Some(steps)) = (metadata(FORMAT.0) == Some(FORMAT.1), steps) else {
            return Err(WeightsError::NoCheckpoint {
                file: file.label().to_owned(),
            }
            .into());
        };
        let list = model.parameters();
        let load = |part: &str| file.part(part).load(context, list);
        let weights = load(WEIGHTS)?;
        let moments = [load(MOMENTS[0])?, load(MOMENTS[1])?];
        let mut recorder = context.recorder("optimizer");
        let optimizer = Optimizer::from_moments(&mut recorder, weights, moments)?;
        recorder.submit()?;
        Self::assemble(context, model, options, optimizer, steps)
    }
}
