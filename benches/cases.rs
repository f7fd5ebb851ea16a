//! The cases that every implementation is timed on, from `cases.json`, so that tables join by name.

use dilated_attention::{AttentionShape, DilatedAttentionConfig, Mask, Result};
use serde::{Deserialize, Serialize};

/// The file.
#[derive(Deserialize)]
struct All {
    attention: Vec<Case>,
    #[allow(dead_code, reason = "only the harness multiplies matrices")]
    products: Vec<ProductCase>,
}

fn all() -> All {
    serde_json::from_str(include_str!("cases.json")).expect("cases.json is valid")
}

/// A product of `rows x inner` by `inner x columns`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProductCase {
    pub name: String,
    pub rows: usize,
    pub inner: usize,
    pub columns: usize,
    #[serde(default)]
    pub transpose_a: bool,
    #[serde(default)]
    pub transpose_b: bool,
    #[serde(skip_serializing)]
    sets: Vec<String>,
}

impl ProductCase {
    /// The products of a set.
    #[allow(dead_code, reason = "only the harness multiplies matrices")]
    pub fn set(name: &str) -> Vec<Self> {
        let mut all = all().products;
        all.retain(|case| case.sets.iter().any(|set| set == name));
        all
    }

    /// As of attention.
    #[allow(dead_code, reason = "only the harness multiplies matrices")]
    pub fn is_in(&self, set: &str) -> bool {
        self.sets.iter().any(|own| own == set)
    }

    /// Rows, inner, columns.
    #[allow(dead_code, reason = "only the harness multiplies matrices")]
    pub fn dims(&self) -> [usize; 3] {
        [self.rows, self.inner, self.columns]
    }
}

/// One call of attention.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Case {
    pub name: String,
    pub heads: usize,
    pub head_dim: usize,
    pub tokens: usize,
    pub segments: Vec<usize>,
    pub rates: Vec<usize>,
    #[serde(default)]
    pub causal: bool,
    #[serde(skip_serializing)]
    sets: Vec<String>,
}

impl Case {
    /// A case of no set: heads, their size, tokens; segment lengths and rates.
    #[allow(dead_code, reason = "only the harness has cases of its own")]
    pub fn new(
        name: String,
        [heads, head_dim, tokens]: [usize; 3],
        segments: &[usize],
        rates: &[usize],
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
        let mut all = all().attention;
        all.retain(|case| case.sets.iter().any(|set| set == name));
        all
    }

    pub fn config(&self) -> Result<DilatedAttentionConfig> {
        self.config_of_heads(self.heads)
    }

    /// The same with another number of heads. Head 0 attends alike, however many there are.
    pub fn config_of_heads(&self, heads: usize) -> Result<DilatedAttentionConfig> {
        let mask = match self.causal {
            false => Mask::Full,
            true => Mask::Causal,
        };
        Ok(
            DilatedAttentionConfig::new(heads, self.head_dim, &self.segments, &self.rates)?
                .with_mask(mask),
        )
    }

    pub fn shape(&self) -> Result<AttentionShape> {
        AttentionShape::new(1, self.tokens)
    }

    /// Whether it is one of the few that a software adapter runs in half precision, too.
    #[allow(dead_code, reason = "only the harness has half precision")]
    pub fn is_in(&self, set: &str) -> bool {
        self.sets.iter().any(|own| own == set)
    }

    /// Dimensions of q, k, v and the output.
    pub fn dims(&self) -> [usize; 4] {
        [1, self.tokens, self.heads, self.head_dim]
    }

    /// Elements of q.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }
}
