//! What a run returns.

/// What is wanted of a run besides the two embeddings of each slide, which are always returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlideOutputs {
    /// Embeddings of every state: the input of the first layer, then the output of each (upstream's `all_layer_embed`).
    pub layers: bool,
    /// Tokens of these states, 0 being the input of the first layer, as they are. Each is as large as the slide.
    pub states: Vec<usize>,
    /// Tokens after the last layer and the encoder's norm: embeddings of tiles that know of the slide.
    pub encoded: bool,
    /// In these layers, from 0 on, how much the CLS token attends to every token. In the published weights CLS was not
    /// trained: there this is not a map of what matters.
    pub attention: Vec<usize>,
    /// Features and results need not be finite: returned as they are, instead of an error.
    pub allow_nonfinite: bool,
}

/// Results. Slides are of one batch: `tokens` is that of the longest, and rows behind a slide's own tokens mean nothing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlideOutput {
    /// Number of slides.
    pub slides: usize,
    /// Tokens of the longest slide: its tiles and one.
    pub tokens: usize,
    /// Elements of a token.
    pub width: usize,
    /// The CLS token after encoder and norm, (slides, width): for weights that were fine-tuned with it. In the published ones it
    /// was not trained.
    pub cls: Vec<f32>,
    /// The norm of the mean of all tiles, (slides, width): upstream's `global_pool`, and the embedding of a slide as the
    /// model's authors use it.
    pub pool: Vec<f32>,
    /// Embeddings of each state, where they were asked for; without the encoder's last norm, as upstream.
    pub layers: Vec<LayerEmbedding>,
    /// The states that were asked for, in their own order: which, 0 being the input of the first layer, and its tokens, (slides,
    /// tokens, width), of which the first of each slide is CLS.
    pub states: Vec<(usize, Vec<f32>)>,
    /// Tokens after the encoder's norm, (slides, tokens, width), where they were asked for.
    pub encoded: Option<Vec<f32>>,
    /// Attention of the CLS token in the layers that were asked for, in their order.
    pub attention: Vec<SlideAttention>,
}

/// The embeddings of one state.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerEmbedding {
    /// The norm of the CLS token, (slides, width).
    pub cls: Vec<f32>,
    /// The norm of the mean of all tiles, (slides, width).
    pub pool: Vec<f32>,
}

/// How much the CLS token attends to every token in one layer. In the published weights CLS was not trained, so that a picture
/// of this is no map of what matters there.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideAttention {
    /// Which, from 0 on.
    pub layer: usize,
    /// Number of branches.
    pub branches: usize,
    /// Number of heads.
    pub heads: usize,
    /// Tokens of the longest slide.
    pub tokens: usize,
    /// Weights, (slides, branches, heads, tokens), as by [`token_weights`](crate::DilatedAttention::token_weights).
    pub weights: Vec<f32>,
}

impl SlideAttention {
    /// Summed over branches, and the mean over heads: one number for each token of slide `slide`; CLS first. `None` when there
    /// is no such slide.
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
