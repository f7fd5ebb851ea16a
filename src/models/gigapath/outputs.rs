//! Outputs of the slide encoder.

/// Optional outputs of a run. The two embeddings of each slide are always returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlideOutputs {
    /// Whether to return embeddings of every state: of the input of the first layer, and of the output of each layer (upstream's
    /// `all_layer_embed`).
    pub layers: bool,
    /// States whose tokens are returned: 0 is the input of the first layer, n the output of n layers. Each is as large as the slide.
    pub states: Vec<usize>,
    /// Whether to return the tokens after the last layer and the encoder's norm: embeddings of tiles in the context of their slide.
    pub encoded: bool,
    /// Layers, counted from 0, whose attention weights of the CLS token are returned. In the published weights CLS was not trained,
    /// so there the weights do not show which tiles matter.
    pub attention: Vec<usize>,
    /// Whether features and results may be infinite or NaN. If so, results are returned as they are, instead of an error.
    pub allow_nonfinite: bool,
}

/// Results of a run over a batch of slides. Rows after the last token of a shorter slide have no meaning.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlideOutput {
    /// Number of slides.
    pub slides: usize,
    /// Tokens of the longest slide: its tiles and the CLS token.
    pub tokens: usize,
    /// Elements of a token.
    pub width: usize,
    /// Embedding from the CLS token after encoder and norm, (slides, width). For weights that were fine-tuned with it; in the
    /// published weights CLS was not trained.
    pub cls: Vec<f32>,
    /// Embedding from the mean of all tiles, normalised, (slides, width): upstream's `global_pool`, which the model's authors use
    /// as the embedding of a slide.
    pub pool: Vec<f32>,
    /// Embeddings of each state, if requested. As upstream, without the encoder's last norm.
    pub layers: Vec<LayerEmbedding>,
    /// The requested states in increasing order, each with its number (0 is the input of the first layer) and its tokens, (slides,
    /// tokens, width). The first token of each slide is CLS.
    pub states: Vec<(usize, Vec<f32>)>,
    /// Tokens after the encoder's norm, (slides, tokens, width), if requested.
    pub encoded: Option<Vec<f32>>,
    /// Attention weights of the CLS token in the requested layers, in increasing order.
    pub attention: Vec<SlideAttention>,
}

/// The embeddings of one state.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerEmbedding {
    /// The CLS token, normalised, (slides, width).
    pub cls: Vec<f32>,
    /// The mean of all tiles, normalised, (slides, width).
    pub pool: Vec<f32>,
}

/// Attention weights of the CLS token in one layer: how much it attends to each token. In the published weights CLS was not
/// trained, so there the weights do not show which tiles matter.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideAttention {
    /// Number of the layer, counted from 0.
    pub layer: usize,
    /// Number of branches.
    pub branches: usize,
    /// Number of heads.
    pub heads: usize,
    /// Tokens of the longest slide.
    pub tokens: usize,
    /// Attention weights, (slides, branches, heads, tokens); see [`token_weights`](crate::DilatedAttention::token_weights).
    pub weights: Vec<f32>,
}

impl SlideAttention {
    /// The attention map of a slide: weights summed over branches and averaged over heads, one number for each token, CLS first.
    /// `None` if there is no slide with this number.
    pub fn map(&self, slide: usize) -> Option<Vec<f32>> {
        let plane = self.tokens.max(1);
        let size = self.branches * self.heads * plane;
        let of_slide = self.weights.chunks(size.max(1)).nth(slide)?;
        let mut map = vec![0.0f32; self.tokens];
        for plane in of_slide.chunks(plane) {
            for (sum, weight) in map.iter_mut().zip(plane) {
                *sum += weight / self.heads as f32;
            }
        }
        Some(map)
    }
}
