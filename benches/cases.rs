//! The cases of attention that every implementation is timed on, from `cases.json`, so that tables join by name.

use dilated_attention::{AttentionShape, DilatedAttentionConfig, Mask, Result};
use serde::{Deserialize, Serialize};

/// One call of attention.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Case {
    pub name: String,
    pub heads: u32,
    pub head_dim: u32,
    pub tokens: u32,
    pub segments: Vec<u32>,
    pub rates: Vec<u32>,
    #[serde(default)]
    pub causal: bool,
    #[serde(skip_serializing)]
    sets: Vec<String>,
}

impl Case {
    /// A case of no set: heads, their size, tokens; segment lengths and rates.
    pub fn new(
        name: String,
        [heads, head_dim, tokens]: [u32; 3],
        segments: &[u32],
        rates: &[u32],
    ) -> Self {
        Self {
            name,
            heads,
            head_dim,
            tokens,
            segments: segments.to_vec(),
            rates: rates.to_vec(),
            causal: false,
            sets: Vec::new(),
        }
    }

    /// The cases of a set: "quick", "software", "gpu", "peers".
    pub fn set(name: &str) -> Vec<Self> {
        let all: Vec<Self> =
            serde_json::from_str(include_str!("cases.json")).expect("cases.json is valid");
        all.into_iter()
            .filter(|case| case.sets.iter().any(|set| set == name))
            .collect()
    }

    pub fn config(&self) -> Result<DilatedAttentionConfig> {
        self.config_of_heads(self.heads)
    }

    /// The same with another number of heads. Head 0 attends alike, however many there are.
    pub fn config_of_heads(&self, heads: u32) -> Result<DilatedAttentionConfig> {
        let mask = match self.causal {
            false => Mask::Full,
            true => Mask::Causal,
        };
        Ok(
            DilatedAttentionConfig::new(heads, self.head_dim, &self.segments, &self.rates)?
                .mask(mask),
        )
    }

    pub fn shape(&self) -> Result<AttentionShape> {
        AttentionShape::new(1, self.tokens)
    }

    /// Dimensions of q, k, v and the output.
    pub fn dims(&self) -> [usize; 4] {
        [1, self.tokens, self.heads, self.head_dim].map(|dim| dim as usize)
    }

    /// Elements of q.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }
}
