//! What a run returns.

use crate::device::DType;
use crate::error::Result;
use crate::error::{Origin, Token};
use crate::models::finite;

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
    /// The states that were asked for, in their own order.
    pub states: Vec<SlideStates>,
    /// Tokens after the encoder's norm, (slides, tokens, width), where they were asked for.
    pub encoded: Option<Vec<f32>>,
    /// Attention of the CLS token in the layers that were asked for, in their order.
    pub attention: Vec<SlideAttention>,
}

impl SlideOutput {
    /// Whether all of it is finite, of slides of so many tiles.
    ///
    /// # Errors
    /// [`Error::NonFiniteResult`](crate::Error::NonFiniteResult).
    pub(super) fn check_finite(&self, tiles: &[usize], activations: DType) -> Result<()> {
        let (tokens, width) = (self.tokens, self.width);
        let rows = |values, item: usize| row(values, item, width);
        let own = |values, item: usize| {
            let of_slide = row(values, item, tokens * width);
            &of_slide[..of_slide.len().min((1 + tiles[item]) * width)]
        };
        let results = (0..self.slides).flat_map(|item| {
            let both = [
                ("pool", item, rows(&self.pool, item)),
                ("cls", item, rows(&self.cls, item)),
            ];
            let layers = self.layers.iter().flat_map(move |layer| {
                [
                    ("layers", item, rows(&layer.cls, item)),
                    ("layers", item, rows(&layer.pool, item)),
                ]
            });
            let states = self
                .states
                .iter()
                .map(move |states| ("states", item, own(&states.values, item)));
            let encoded = self
                .encoded
                .iter()
                .map(move |encoded| ("encoded", item, own(encoded, item)));
            let attention = self.attention.iter().map(move |of_layer| {
                let size = of_layer.branches * of_layer.heads * of_layer.tokens;
                ("attention", item, row(&of_layer.weights, item, size))
            });
            both.into_iter()
                .chain(layers)
                .chain(states)
                .chain(encoded)
                .chain(attention)
        });
        finite::check(results, || self.origin(tiles), activations)
    }

    /// The first state that is not finite, as far as states and their embeddings were asked for.
    fn origin(&self, tiles: &[usize]) -> Option<Origin> {
        let in_states = self.states.iter().filter_map(|states| {
            origin_in(
                states.state,
                &states.values,
                [self.tokens, self.width],
                tiles,
            )
        });
        let in_embeddings = self.layers.iter().enumerate().filter_map(|(state, layer)| {
            let (row, _) =
                finite::rows(&layer.pool, self.width).or(finite::rows(&layer.cls, self.width))?;
            Some(Origin {
                item: row,
                state,
                token: None,
                tokens: 0,
            })
        });
        // Of one state, the tokens say more.
        in_states
            .chain(in_embeddings)
            .min_by_key(|origin| origin.state)
    }
}

/// Row `index` of rows of `size` elements.
fn row(values: &[f32], index: usize, size: usize) -> &[f32] {
    values.chunks(size.max(1)).nth(index).unwrap_or_default()
}

/// The tokens that are not finite in a state, (slides, tokens, width), of the first slide that has some.
pub(super) fn origin_in(
    state: usize,
    values: &[f32],
    [tokens, width]: [usize; 2],
    tiles: &[usize],
) -> Option<Origin> {
    tiles.iter().enumerate().find_map(|(item, tiles)| {
        let of_slide = row(values, item, tokens * width);
        let own = &of_slide[..of_slide.len().min((1 + tiles) * width)];
        let (first, tokens) = finite::rows(own, width)?;
        let token = match first.checked_sub(1) {
            None => Token::Cls,
            Some(tile) => Token::Tile(tile),
        };
        Some(Origin {
            item,
            state,
            token: Some(token),
            tokens,
        })
    })
}

/// The embeddings of one state.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerEmbedding {
    /// The norm of the CLS token, (slides, width).
    pub cls: Vec<f32>,
    /// The norm of the mean of all tiles, (slides, width).
    pub pool: Vec<f32>,
}

/// All tokens of one state.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideStates {
    /// Which: 0 is the input of the first layer.
    pub state: usize,
    /// The tokens, (slides, tokens, width); the first of each slide is CLS.
    pub values: Vec<f32>,
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
