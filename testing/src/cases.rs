//! The cases that every implementation is timed on, from `benches/cases.json`, so that tables join by name.

use dilated_attention::{AttentionShape, DilatedAttentionConfig, Mask, Result};
use serde::{Deserialize, Serialize};

/// The file.
#[derive(Deserialize)]
struct All {
    attention: Vec<Case>,
    products: Vec<ProductCase>,
}

fn all() -> All {
    serde_json::from_str(include_str!("../../benches/cases.json")).expect("cases.json is valid")
}

/// A product of `rows x inner` by `inner x columns`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProductCase {
    /// In tables.
    pub name: String,
    /// Of the first factor and the product.
    pub rows: usize,
    /// Columns of the first factor, rows of the second.
    pub inner: usize,
    /// Of the second factor and the product.
    pub columns: usize,
    /// Whether the first factor is stored transposed.
    #[serde(default)]
    pub transpose_a: bool,
    /// Whether the second is.
    #[serde(default)]
    pub transpose_b: bool,
    #[serde(skip_serializing)]
    sets: Vec<String>,
}

impl ProductCase {
    /// The products of a set.
    pub fn set(name: &str) -> Vec<Self> {
        let mut all = all().products;
        all.retain(|case| case.sets.iter().any(|set| set == name));
        all
    }

    /// Whether it is in a set.
    pub fn is_in(&self, set: &str) -> bool {
        self.sets.iter().any(|own| own == set)
    }

    /// Rows, inner, columns.
    pub fn dims(&self) -> [usize; 3] {
        [self.rows, self.inner, self.columns]
    }
}

/// One call of attention.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Case {
    /// In tables.
    pub name: String,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of the one sequence.
    pub tokens: usize,
    /// Segment length of each branch.
    pub segments: Vec<usize>,
    /// Dilation rate of each branch.
    pub rates: Vec<usize>,
    /// Whether a token sees only those before it, and itself.
    #[serde(default)]
    pub causal: bool,
    #[serde(skip_serializing)]
    sets: Vec<String>,
}

impl Case {
    /// A case of no set: heads, their size, tokens; segment lengths and rates.
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

    /// Its configuration.
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

    /// Its shape.
    pub fn shape(&self) -> Result<AttentionShape> {
        AttentionShape::new(1, self.tokens)
    }

    /// Whether it is in a set. Those in "half" a software adapter runs in half precision, too.
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
