//! Dilated attention in a page, on the browser's WebGPU, checked against the f64 oracle; `examples/browser/check.py` builds
//! and opens it.
//!
//! Everything is awaited: the page draws frames while slices of the work follow each other.

use dilated_attention::{AttentionShape, Context, DilatedAttention, DilatedAttentionConfig, Error, Mask, Recorder, SliceOptions, Tensor, reference};
use js_sys::Function;
use wasm_bindgen::prelude::{JsError, JsValue, wasm_bindgen};
use web_time::Instant;

const NUM_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const SAMPLED_ROWS: usize = 16;
/// Tokens that a page has the memory for.
const MOST_TOKENS: usize = 1 << 20;
/// Tokens of the gradients, all of which the oracle computes.
const CHECKED_TOKENS: usize = 192;
/// Of the largest value; f32 sums in another order differ by less.
const TOLERANCE: f64 = 1e-5;

/// Attention over `num_tokens` random tokens, and the gradients of a short sequence. `progress` is called with the share that
/// is done. Resolves to a report; an error when a result is wrong or the device refuses.
#[wasm_bindgen]
pub async fn run(num_tokens: usize, progress: Function) -> Result<String, JsError> {
    if !(SAMPLED_ROWS..=MOST_TOKENS).contains(&num_tokens) {
        return Err(JsError::new(&format!(
            "{num_tokens} tokens: give {SAMPLED_ROWS} to {MOST_TOKENS}"
        )));
    }
    let context = Context::new().await?;
    let info = context.adapter_info();
    let mut report = format!("adapter   {} ({:?})\n", info.name, info.backend);
    report += &forward(&context, num_tokens, &progress).await?;
    report += &gradients(&context).await?;
    report += &format!("\npool\n{}", context.pool().stats());
    Ok(report)
}

async fn forward(
    context: &Context,
    num_tokens: usize,
    progress: &Function,
) -> Result<String, JsError> {
    let config = DilatedAttentionConfig::new(NUM_HEADS, HEAD_DIM, &[256, 1024, 4096], &[1, 4, 16])?
        .with_mask(Mask::Causal);
    let attention = DilatedAttention::new(context, config.clone())?;
    let shape = AttentionShape::new(1, num_tokens)?;
    let inputs = [1, 2, 3].map(|seed| random(seed, num_tokens));
    let mut recorder = context.recorder("forward");
    let [q, k, v] = upload(&mut recorder, num_tokens, ["q", "k", "v"], &inputs)?;
    let output = attention.forward(&mut recorder, &q, &k, &v)?;
    let out = recorder.download::<f32>(&output.out)?;
    let begin = Instant::now();
    let mut sliced = recorder.submit_in_slices(SliceOptions::default());
    sliced
        .run(|now| {
            // A page that does not listen is no reason to stop.
            let _ = progress.call1(&JsValue::NULL, &now.fraction().into());
        })
        .await?;
    let out = out.await?;
    let seconds = begin.elapsed().as_secs_f64();
    let rows: Vec<(usize, usize)> = (0..SAMPLED_ROWS)
        .map(|row| (0, row * (num_tokens - 1) / (SAMPLED_ROWS - 1)))
        .collect();
    let [q, k, v] = &inputs;
    let expected = reference::forward_rows(&config, &shape, q, k, v, &rows)?.out;
    let width = (NUM_HEADS * HEAD_DIM) as usize;
    let sampled = rows.iter().flat_map(|&(_, token)| {
        let begin = token as usize * width;
        &out[begin..begin + width]
    });
    let error = check("out", sampled, &expected)?;
    Ok(format!(
        "forward   {num_tokens} tokens in {seconds:.3} s with compilation, {} slices, error {error:.1e}\n",
        sliced.num_slices()
    ))
}

async fn gradients(context: &Context) -> Result<String, JsError> {
    let config = DilatedAttentionConfig::new(NUM_HEADS, HEAD_DIM, &[64, 128], &[1, 2])?;
    let attention = DilatedAttention::new(context, config.clone())?;
    let shape = AttentionShape::new(1, CHECKED_TOKENS)?;
    let inputs = [4, 5, 6, 7].map(|seed| random(seed, CHECKED_TOKENS));
    let mut recorder = context.recorder("gradients");
    let names = ["q", "k", "v", "dout"];
    let [q, k, v, dout] = upload(&mut recorder, CHECKED_TOKENS, names, &inputs)?;
    let output = attention.forward(&mut recorder, &q, &k, &v)?;
    let gradients = attention.backward(&mut recorder, [&q, &k, &v], &output.softmax_state, &dout)?;
    let [dq, dk, dv] = [&gradients.dq, &gradients.dk, &gradients.dv]
        .map(|gradient| recorder.download::<f32>(gradient));
    let (dq, dk, dv) = (dq?, dk?, dv?);
    recorder.submit()?;
    let [q, k, v, dout] = &inputs;
    let expected = reference::backward(&config, &shape, q, k, v, dout)?;
    let errors = [
        check("dq", &dq.await?, &expected.dq)?,
        check("dk", &dk.await?, &expected.dk)?,
        check("dv", &dv.await?, &expected.dv)?,
    ];
    let error = errors.into_iter().fold(0.0, f64::max);
    Ok(format!(
        "gradients {CHECKED_TOKENS} tokens, error {error:.1e}\n"
    ))
}

fn upload<const N: usize>(
    recorder: &mut Recorder,
    num_tokens: usize,
    names: [&'static str; N],
    inputs: &[Vec<f32>; N],
) -> Result<[Tensor; N], Error> {
    let shape = [1, num_tokens, NUM_HEADS, HEAD_DIM];
    let mut tensors = Vec::new();
    for (name, input) in names.into_iter().zip(inputs) {
        tensors.push(recorder.upload(name, &shape, input)?);
    }
    Ok(tensors.try_into().expect("one of each"))
}

/// Numbers from -1 to 1, the same in every run.
fn random(seed: u64, num_tokens: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // Steele, Lea and Flood's SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let elements = num_tokens * NUM_HEADS * HEAD_DIM;
    (0..elements).map(|_| next()).collect()
}

/// The largest difference, as a share of the largest value.
fn check<'a>(
    what: &str,
    given: impl IntoIterator<Item = &'a f32>,
    expected: &[f64],
) -> Result<f64, JsError> {
    let largest = expected
        .iter()
        .fold(0.0f64, |most, value| most.max(value.abs()));
    let differences = given
        .into_iter()
        .zip(expected)
        .map(|(given, expected)| (f64::from(*given) - expected).abs() / largest);
    // A NaN is the largest, whatever comes after it; f64::max would hide it.
    let error = differences.fold(0.0f64, |most, error| {
        match most.is_nan() || error.is_nan() {
            true => f64::NAN,
            false => most.max(error),
        }
    });
    if error <= TOLERANCE {
        return Ok(error);
    }
    Err(JsError::new(&format!(
        "{what} is off by {error:.1e} of the largest value, more than {TOLERANCE:.0e}"
    )))
}
