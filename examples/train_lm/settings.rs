//! The model's sizes, as they are written into its checkpoint.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use clap::Args;
use dilated_attention::DilatedAttentionConfig;
use dilated_attention::longnet::{LongNetConfig, OutputProjection};

/// Sizes of a byte-level language model.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct Settings {
    /// Layers of the model
    #[arg(long, value_name = "L", default_value_t = 3)]
    pub layers: usize,
    /// Heads of each
    #[arg(long, value_name = "H", default_value_t = 4)]
    pub heads: usize,
    /// Elements of a head
    #[arg(long, value_name = "D", default_value_t = 32)]
    pub head_dim: usize,
    /// Width inside of the feed-forward networks
    #[arg(long = "ffn", value_name = "F", default_value_t = 512)]
    pub ffn_dim: usize,
    /// Segment length of each branch
    #[arg(
        long,
        value_name = "W,..",
        value_delimiter = ',',
        default_value = "128,512"
    )]
    pub segments: Vec<usize>,
    /// Dilation rate of each branch
    #[arg(
        long,
        value_name = "R,..",
        value_delimiter = ',',
        default_value = "1,4"
    )]
    pub rates: Vec<usize>,
}

impl Settings {
    /// The model: causal, with xPos, bytes as tokens.
    pub fn config(&self) -> dilated_attention::Result<LongNetConfig> {
        let attention =
            DilatedAttentionConfig::new(self.heads, self.head_dim, &self.segments, &self.rates)?;
        let mut config = LongNetConfig::decoder(attention, self.layers, self.ffn_dim)
            .with_vocabulary(256, OutputProjection::Own);
        config.xpos_scale_base = Some(512.0);
        Ok(config)
    }

    /// As metadata of a checkpoint.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![
            ("layers", self.layers.to_string()),
            ("heads", self.heads.to_string()),
            ("head_dim", self.head_dim.to_string()),
            ("ffn_dim", self.ffn_dim.to_string()),
            ("segments", join(&self.segments)),
            ("rates", join(&self.rates)),
        ]
    }

    /// Reads what [`metadata`](Self::metadata) wrote.
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Result<Self, String> {
        let get = |name: &str| {
            let missing =
                format!("the checkpoint does not say '{name}': train_lm did not write it");
            metadata.get(name).ok_or(missing)
        };
        Ok(Self {
            layers: parse(get("layers")?)?,
            heads: parse(get("heads")?)?,
            head_dim: parse(get("head_dim")?)?,
            ffn_dim: parse(get("ffn_dim")?)?,
            segments: list(get("segments")?)?,
            rates: list(get("rates")?)?,
        })
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<String> = self
            .metadata()
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        f.write_str(&values.join(", "))
    }
}

fn join(values: &[impl Display]) -> String {
    let values: Vec<String> = values.iter().map(ToString::to_string).collect();
    values.join(",")
}

/// A number of the metadata.
fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|error| format!("the checkpoint says '{text}': {error}"))
}

/// Numbers with commas between them.
fn list(text: &str) -> Result<Vec<usize>, String> {
    text.split(',').map(parse).collect()
}
