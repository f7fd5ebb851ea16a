//! Generation of text: tokens are drawn one after the other, each from the logits after all tokens before it.

use super::{Call, Input, KvCache, LongNet};
use crate::config::AttentionShape;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::nn::Parameters;
use crate::ops::TokenIds;
use crate::random::Random;
use crate::readback::Download;
use crate::recorder::{Recorder, SliceOptions};

/// A cache has room for all tokens from the start, or for so many, and grows.
const FIRST_CAPACITY: usize = 4096;

/// How tokens are drawn.
///
/// ```
/// use dilated_attention::longnet::GenerateOptions;
/// let options = GenerateOptions::new(400).with_temperature(0.8).with_top_k(40).with_stop_token(0);
/// assert_eq!(options.max_tokens, 400);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Largest number of tokens to generate.
    pub max_tokens: usize,
    /// Logits are divided by this, so that less likely tokens are drawn more often the larger it is; 0 takes the likeliest token
    /// each time.
    pub temperature: f32,
    /// If set, only the likeliest tokens, as many as this, are drawn from.
    pub top_k: Option<usize>,
    /// Seed of the draws.
    pub seed: u64,
    /// Ends the generation when it is drawn; it is not returned itself.
    pub stop_token: Option<u32>,
}

impl GenerateOptions {
    /// Up to `max_tokens`, drawn with the model's probabilities (temperature 1), with seed 0.
    pub fn new(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            temperature: 1.0,
            top_k: None,
            seed: 0,
            stop_token: None,
        }
    }

    /// Sets the temperature.
    pub fn with_temperature(self, temperature: f32) -> Self {
        Self {
            temperature,
            ..self
        }
    }

    /// Draws from the `top_k` likeliest tokens alone.
    pub fn with_top_k(self, top_k: usize) -> Self {
        Self {
            top_k: Some(top_k),
            ..self
        }
    }

    /// Sets the seed of the draws.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Ends when `stop_token` is drawn.
    pub fn with_stop_token(self, stop_token: u32) -> Self {
        Self {
            stop_token: Some(stop_token),
            ..self
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |what, given: String, need| Err(Error::InvalidConfig { what, given, need });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let need = "at least 0 and finite";
            return invalid("temperature", self.temperature.to_string(), need);
        }
        match self.top_k {
            Some(0) => invalid("top_k", "0".to_owned(), "at least 1, or none"),
            _ => Ok(()),
        }
    }
}

impl LongNet {
    /// Generates text after `prompt`: returns a [`Generation`], which yields token after token. Computes nothing yet.
    ///
    /// ```no_run
    /// # use dilated_attention::{Context, Result, longnet::{GenerateOptions, LongNet}, nn::Parameters};
    /// # fn write(context: &Context, model: &LongNet, weights: &Parameters) -> Result<()> {
    /// let prompt: Vec<u32> = b"fn ".iter().map(|byte| u32::from(*byte)).collect();
    /// let options = GenerateOptions::new(200).with_temperature(0.8);
    /// for token in model.generate(context, weights, &prompt, &options)? {
    ///     print!("{}", char::from(token? as u8)); // as soon as it is there
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for an empty prompt, and for one that with `max_tokens` is longer than kernels or the model's
    /// positions allow; [`Error::TokenOutOfRange`] for a token that the model does not have; [`Error::InvalidConfig`] for options
    /// out of range and for a model without vocabulary, output projection or causal mask, or with an encoder;
    /// [`Error::ParameterMismatch`] for weights of another model; those of leasing and submitting the cache.
    pub fn generate(
        &self,
        context: &Context,
        weights: &Parameters,
        prompt: &[u32],
        options: &GenerateOptions,
    ) -> Result<Generation> {
        options.check()?;
        weights.expect_list("weights", &self.list)?;
        self.projection()?;
        let vocab = self.config.vocab_size.unwrap_or(0);
        if self.config.cross_attention.is_some() {
            return Err(Error::InvalidConfig {
                what: "generation",
                given: "a model that attends to an encoder".to_owned(),
                need: "a model without one; LongNet::decode takes the encoder's output",
            });
        }
        if prompt.is_empty() {
            return Err(Error::InvalidShape {
                what: "prompt".into(),
                given: "empty".to_owned(),
                need: "one token or more, for the model to go on from".to_owned(),
            });
        }
        expect_below("token of the prompt", prompt, vocab)?;
        expect_below("stop token", options.stop_token.as_slice(), vocab)?;
        let all = prompt.len().saturating_add(options.max_tokens);
        self.expect_decodable("prompt and max_tokens together", all)?;
        let capacity = all.min(FIRST_CAPACITY.max(prompt.len()));
        let mut recorder = context.recorder("cache");
        let cache = self.new_cache(&mut recorder, 1, capacity)?;
        recorder.submit()?;
        Ok(Generation {
            context: context.clone(),
            model: self.clone(),
            weights: weights.clone(),
            options: *options,
            cache,
            num_cached: 0,
            next: prompt.to_vec(),
            left: options.max_tokens,
            random: Random::new(options.seed, 0),
            #[cfg(not(target_arch = "wasm32"))]
            has_failed: false,
        })
    }
}

/// A generation under way, made by [`LongNet::generate`]. As an iterator it blocks for each token (not in browsers) and ends with the
/// last one or the first error; [`next_token`](Self::next_token) computes one in slices, and can be called again after an error.
///
/// It holds the weights. Each token is computed with what they are when it is submitted, and with keys and values of the tokens
/// before, as they were then: make a new generation after a training step.
#[derive(Debug)]
#[must_use = "a generation computes nothing until its tokens are asked for"]
pub struct Generation {
    context: Context,
    model: LongNet,
    weights: Parameters,
    options: GenerateOptions,
    cache: KvCache,
    /// Tokens whose keys and values are known to be computed.
    num_cached: usize,
    /// Tokens that follow those: the prompt, then the last one drawn.
    next: Vec<u32>,
    /// Tokens still to be drawn.
    left: usize,
    random: Random,
    /// Whether the iterator has returned an error.
    #[cfg(not(target_arch = "wasm32"))]
    has_failed: bool,
}

impl Generation {
    /// The next token, or `None` after the last: after `max_tokens`, or when the stop token was drawn. It is computed in slices of the
    /// device's time, so that others who use the device are not kept waiting by a long prompt. Nothing blocks, and any executor will
    /// do. When the future is dropped, the next call computes the same token.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for logits that are not finite, with the token and the value: weights are not finite, or too large. The
    /// errors of leasing, recording, submitting and downloading. A later call tries the same token again.
    pub async fn next_token(&mut self) -> Result<Option<u32>> {
        let Some((recorder, logits)) = self.record()? else {
            return Ok(None);
        };
        let mut sliced = recorder.submit_in_slices(SliceOptions::default());
        sliced.run(|_| ()).await?;
        let logits = logits.await?;
        self.draw(&logits)
    }

    /// Records the logits of the next token, if there is one to come.
    fn record(&mut self) -> Result<Option<(Recorder, Download<f32>)>> {
        if self.left == 0 {
            return Ok(None);
        }
        // What was recorded before and did not end has not happened.
        self.cache.truncate(self.num_cached);
        let (model, weights) = (&self.model, &self.weights);
        let mut recorder = self.context.recorder("next token");
        let count = self.next.len();
        let vocab = model.config.vocab_size.unwrap_or(0);
        let ids = TokenIds::upload(&mut recorder, &self.next, vocab)?;
        let call = Call::new(AttentionShape::new(1, count)?);
        let input = Input::Tokens(&ids);
        let features = model.decode(&mut recorder, weights, input, &call, &mut self.cache)?;
        let last = model.row_of(&mut recorder, &features, count - 1)?;
        let logits = model.logits(&mut recorder, weights, &last)?;
        let logits = recorder.download(&logits)?;
        Ok(Some((recorder, logits)))
    }

    /// Draws the next token.
    fn draw(&mut self, logits: &[f32]) -> Result<Option<u32>> {
        let token = draw(logits, &self.options, &mut self.random)?;
        self.num_cached = self.cache.len();
        if self.options.stop_token == Some(token) {
            self.left = 0;
            return Ok(None);
        }
        self.left -= 1;
        self.next = vec![token];
        Ok(Some(token))
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Generation {
    /// The next token, all of it submitted at once.
    fn next_blocking(&mut self) -> Result<Option<u32>> {
        let Some((recorder, logits)) = self.record()? else {
            return Ok(None);
        };
        recorder.submit()?;
        self.draw(&logits.wait()?)
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Iterator for Generation {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let token = self.next_blocking();
        self.has_failed = token.is_err();
        token.transpose()
    }
}

/// Whether the model has all of `tokens`.
///
/// # Errors
/// [`Error::TokenOutOfRange`] about the first that it does not have.
fn expect_below(what: &'static str, tokens: &[u32], vocab: usize) -> Result<()> {
    let wrong = (0..)
        .zip(tokens)
        .find(|(_, token)| **token as usize >= vocab);
    match wrong {
        None => Ok(()),
        Some((index, &given)) => Err(Error::TokenOutOfRange {
            what,
            index,
            given,
            limit: vocab,
        }),
    }
}

/// A token of those that `logits` are of.
///
/// # Errors
/// [`Error::NotFinite`].
fn draw(logits: &[f32], options: &GenerateOptions, random: &mut Random) -> Result<u32> {
    if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
        return Err(Error::NotFinite {
            what: "the vector of logits".into(),
            value: logits[index],
            index: vec![index],
            axes: &["token"],
        });
    }
    let likelier = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut tokens: Vec<usize> = (0..logits.len()).collect();
    let top_k = match options.temperature > 0.0 {
        true => options.top_k.unwrap_or(usize::MAX),
        false => 1,
    };
    if top_k < tokens.len() {
        tokens.select_nth_unstable_by(top_k - 1, likelier);
        tokens.truncate(top_k);
        // In an order that does not depend on how they were selected.
        tokens.sort_unstable();
    }
    let highest = tokens.iter().map(|token| f64::from(logits[*token]));
    let highest = highest.fold(f64::NEG_INFINITY, f64::max);
    let temperature = f64::from(options.temperature);
    let weight = |token: &usize| match tokens.len() {
        1 => 1.0,
        _ => ((f64::from(logits[*token]) - highest) / temperature).exp(),
    };
    let mut left = random.unit() * tokens.iter().map(weight).sum::<f64>();
    let drawn = tokens.iter().find(|token| {
        left -= weight(token);
        left < 0.0
    });
    // Rounding may leave nothing to the last one.
    let token = drawn.or(tokens.last()).copied().unwrap_or(0);
    Ok(token as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DilatedAttentionConfig;
    use crate::device::DeviceCaps;
    use crate::longnet::{CrossAttentionConfig, LongNetConfig, OutputProjection};
    use crate::nn::ProjectionNorm;

    fn options() -> GenerateOptions {
        GenerateOptions::new(1)
    }

    /// How often each token is drawn of 20 000 times.
    fn shares(logits: &[f32], options: &GenerateOptions) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut random = Random::new(3, 0);
        for _ in 0..20_000 {
            let token = draw(logits, options, &mut random).expect("finite");
            counts[token as usize] += 1.0;
        }
        counts.iter().map(|count| count / 20_000.0).collect()
    }

    #[track_caller]
    fn assert_shares(given: &[f64], expected: &[f64]) {
        for (given, expected) in given.iter().zip(expected) {
            // Five standard deviations.
            assert!((given - expected).abs() < 0.018, "{given} {expected}");
        }
        assert_eq!(given.len(), expected.len());
    }

    #[test]
    fn tokens_are_drawn_as_often_as_their_logits_say() {
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let of = |options: GenerateOptions| shares(&logits, &options);
        assert_shares(&of(options()), &[0.5, 0.25, 0.125, 0.125]);
        // At half the temperature, squares of the probabilities.
        let squares = [16.0, 4.0, 1.0, 1.0].map(|share| share / 22.0);
        assert_shares(&of(options().with_temperature(0.5)), &squares);
        assert_shares(
            &of(options().with_top_k(2)),
            &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        assert_eq!(of(options().with_top_k(9)), of(options()));
        // Of equals, the first.
        assert_eq!(of(options().with_top_k(3))[3], 0.0);
        for likeliest in [options().with_temperature(0.0), options().with_top_k(1)] {
            assert_eq!(of(likeliest), [1.0, 0.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn extreme_logits_and_temperatures_draw_tokens_that_there_are() {
        let logits = [-f32::MAX, f32::MAX, 0.0];
        for temperature in [0.0, f32::from_bits(1), 1.0] {
            let options = options().with_temperature(temperature);
            assert_eq!(shares(&logits, &options), [0.0, 1.0, 0.0], "{temperature}");
        }
        let all_alike = shares(&[1.0, -1.0], &options().with_temperature(f32::MAX));
        assert_shares(&all_alike, &[0.5, 0.5]);
        assert_eq!(shares(&[7.0], &options()), [1.0]);
    }

    #[test]
    fn logits_that_are_not_finite_are_named() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = draw(&[0.0, value], &options(), &mut Random::new(0, 0));
            let Err(Error::NotFinite { index, .. }) = error else {
                panic!("{error:?}");
            };
            assert_eq!(index, [1]);
        }
    }

    #[test]
    fn options_that_mean_nothing_are_refused() {
        for (options, told) in [
            (
                options().with_temperature(f32::NAN),
                "temperature is NaN; it must be at least 0 and finite",
            ),
            (
                options().with_temperature(-0.5),
                "temperature is -0.5; it must be at least 0 and finite",
            ),
            (
                options().with_temperature(f32::INFINITY),
                "temperature is inf; it must be at least 0 and finite",
            ),
            (
                options().with_top_k(0),
                "top_k is 0; it must be at least 1, or none",
            ),
        ] {
            let error = options.check().expect_err("means nothing").to_string();
            assert_eq!(error, told);
        }
    }

    #[test]
    fn what_no_model_can_go_on_from_is_refused_before_anything_is_leased() {
        let dry_run = Context::dry_run(DeviceCaps::webgpu_defaults());
        let attention = DilatedAttentionConfig::dense(1, 4).expect("valid");
        let mut config = LongNetConfig::decoder(attention.clone(), 1, 8);
        (config.vocab_size, config.learned_positions) = (Some(5), Some(100));
        config.output_projection = OutputProjection::Tied;
        let refused = |config: &LongNetConfig, prompt: &[u32], options: GenerateOptions| {
            let model = LongNet::new(&dry_run, config.clone()).expect("valid");
            let weights = model.initial_weights(&dry_run, 0).expect("leases");
            let leases = || dry_run.pool().stats().leases.current;
            let before = leases();
            let generation = model.generate(&dry_run, &weights, prompt, &options);
            let error = generation.map(drop).expect_err("refused");
            assert_eq!(leases(), before);
            error
        };
        let of = |prompt: &[u32], options| refused(&config, prompt, options);
        assert!(matches!(
            of(&[], options()),
            Error::InvalidShape { what, .. } if what == "prompt"
        ));
        let Error::TokenOutOfRange {
            what: "token of the prompt",
            index: 2,
            given: 5,
            limit: 5,
        } = of(&[0, 4, 5], options())
        else {
            panic!("names the token");
        };
        let stop = options().with_stop_token(u32::MAX);
        assert!(matches!(
            of(&[0], stop),
            Error::TokenOutOfRange {
                what: "stop token",
                ..
            }
        ));
        for (prompt, max_tokens) in [(101, 0), (100, 1), (1, 100), (1, usize::MAX)] {
            let error = of(&vec![0; prompt], GenerateOptions::new(max_tokens)).to_string();
            assert!(
                error.contains("at most 100, the positions that the model has learned"),
                "{error}"
            );
        }
        assert!(matches!(
            of(&[0], options().with_top_k(0)),
            Error::InvalidConfig { what: "top_k", .. }
        ));
        let mut endless = config.clone();
        endless.learned_positions = None;
        let error = refused(&endless, &[0], GenerateOptions::new(1 << 31)).to_string();
        assert!(
            error.contains("2147483649 tokens; it must be at most 2147483647"),
            "{error}"
        );
        // Models that write nothing.
        let mut without_logits = config.clone();
        without_logits.output_projection = OutputProjection::None;
        let mut full = LongNetConfig::encoder(attention.clone(), 1, 8);
        (full.vocab_size, full.output_projection) = (Some(5), OutputProjection::Tied);
        let mut of_two = config.clone();
        of_two.cross_attention = Some(CrossAttentionConfig {
            attention,
            projection_norm: ProjectionNorm::None,
        });
        for config in [without_logits, full, of_two] {
            let error = refused(&config, &[0], options());
            assert!(matches!(error, Error::InvalidConfig { .. }), "{error}");
        }
        let model = LongNet::new(&dry_run, config.clone()).expect("valid");
        let other = LongNet::new(&dry_run, endless).expect("valid");
        let weights = other.initial_weights(&dry_run, 0).expect("leases");
        let error = model
            .generate(&dry_run, &weights, &[0], &options())
            .map(drop);
        assert_eq!(error, Err(Error::ParameterMismatch { what: "weights" }));
    }
}
