//! Arguments of the command.

use dilated_attention::DType;
use dilated_attention::device::KernelTier;

use crate::start;

const GROUPS: [&str; 7] = [
    "forward", "backward", "matmul", "norm", "layer", "growth", "start",
];

/// What to do.
pub enum Command {
    Measure(Options),
    /// Prints files of rows as one table.
    Join(Vec<String>),
    /// Is a process that another times.
    FirstCall,
}

/// What to measure.
pub struct Options {
    pub quick: bool,
    pub kernel: Option<KernelTier>,
    pub json: Option<String>,
    /// What tensors are stored as, of attention and products.
    pub storages: Vec<DType>,
    pub repetitions: usize,
    /// Times are of the processor.
    pub processor_time: bool,
    only: Option<&'static str>,
}

impl Options {
    /// Every shader is compiled twice for it, which a quick run does for one group alone.
    pub fn compares_unchecked(&self, group: &str) -> bool {
        !self.quick || group == "forward"
    }

    pub fn wants(&self, group: &str) -> bool {
        self.only.is_none_or(|only| only == group)
    }
}

impl Command {
    pub fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Options {
            quick: false,
            kernel: None,
            json: None,
            storages: vec![DType::F32, DType::F16, DType::Bf16],
            repetitions: 0,
            processor_time: false,
            only: None,
        };
        let mut repetitions = None;
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let missing = || format!("{argument} needs a value");
                arguments.next().ok_or_else(missing)
            };
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--processor-time" => options.processor_time = true,
                "--json" => options.json = Some(value()?),
                "--storage" => {
                    let name = value()?;
                    options.storages.retain(|dtype| dtype.to_string() == name);
                    if options.storages.is_empty() {
                        return Err(format!("no storage {name}: f32, f16 or bf16"));
                    }
                }
                "--repetitions" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|number| *number > 0);
                    repetitions = Some(number.ok_or(format!("no number of repetitions: {text}"))?);
                }
                "--only" => {
                    let name = value()?;
                    let found = GROUPS.into_iter().find(|group| *group == name);
                    options.only = Some(found.ok_or(format!("no group {name}"))?);
                }
                "--kernel" => {
                    let name = value()?;
                    let found = KernelTier::named(&name);
                    options.kernel = Some(found.ok_or(format!("no tier {name}"))?);
                }
                "--join" => return Ok(Self::Join(arguments.collect())),
                start::CHILD => return Ok(Self::FirstCall),
                // Cargo passes it to every benchmark.
                "--bench" => {}
                other => return Err(format!("unknown option {other}")),
            }
        }
        options.repetitions = repetitions.unwrap_or(if options.quick { 3 } else { 10 });
        Ok(Self::Measure(options))
    }
}
