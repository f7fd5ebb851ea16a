//! The forward against the adapter's own ceilings, in one run.
//!
//! ```text
//! cargo bench --bench roofline [-- --quick] [--kernel tile|rows|micro]
//! ```
//!
//! The ceiling is measured before each repetition of each case, so that a machine whose speed drifts does not shift the
//! ratio; medians of the repetitions with the smallest and largest. The last table is time per token against length.
//! `--quick` runs few small cases: that everything works, not what it measures.

mod ceilings;

use std::error::Error;
use std::time::Instant;

use dilated_attention::kernel::forward::{ForwardShape, ForwardVariant};
use dilated_attention::plan::Processor;
use dilated_attention::{
    AttentionShape, Context, DilatedAttention, DilatedAttentionConfig, Mask, Tensor,
};

/// Lower quartile and so on are noise with so few repetitions: median, least, most.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

struct Case {
    name: &'static str,
    heads: u32,
    head_dim: u32,
    tokens: u32,
    segments: &'static [u32],
    rates: &'static [u32],
    mask: Mask,
}

const fn case(
    name: &'static str,
    (heads, head_dim, tokens): (u32, u32, u32),
    segments: &'static [u32],
    rates: &'static [u32],
) -> Case {
    Case {
        name,
        heads,
        head_dim,
        tokens,
        segments,
        rates,
        mask: Mask::Full,
    }
}

const CASES: [Case; 9] = [
    case("dense, 1 head of 64", (1, 64, 1024), &[1024], &[1]),
    case("dense, 8 heads of 64", (8, 64, 1024), &[1024], &[1]),
    case("rate 4, 8 heads of 64", (8, 64, 4096), &[4096], &[4]),
    case(
        "LongNet, 4 heads of 64",
        (4, 64, 8192),
        &[512, 2048, 8192],
        &[1, 4, 16],
    ),
    Case {
        mask: Mask::Causal,
        ..case("causal, 8 heads of 64", (8, 64, 1024), &[1024], &[1])
    },
    case("dense, 8 heads of 16", (8, 16, 1024), &[1024], &[1]),
    case("dense, 8 heads of 32", (8, 32, 1024), &[1024], &[1]),
    case("dense, 8 heads of 48", (8, 48, 1024), &[1024], &[1]),
    case("dense, 4 heads of 128", (4, 128, 1024), &[1024], &[1]),
];

struct Prepared {
    attention: DilatedAttention,
    shape: AttentionShape,
    inputs: [Tensor; 3],
    flop: f64,
}

impl Prepared {
    fn new(
        context: &Context,
        case: &Case,
        kernel: Option<ForwardShape>,
    ) -> dilated_attention::Result<Self> {
        let config =
            DilatedAttentionConfig::new(case.heads, case.head_dim, case.segments, case.rates)?
                .mask(case.mask);
        let attention = match kernel {
            None => DilatedAttention::new(context, config)?,
            Some(shape) => {
                let variant = ForwardVariant::with_shape(shape, case.head_dim, context.facts());
                DilatedAttention::with_variant(context, config, variant)?
            }
        };
        let shape = AttentionShape::new(1, case.tokens)?;
        let dims = [
            1,
            case.tokens as usize,
            case.heads as usize,
            case.head_dim as usize,
        ];
        let mut state = 88_172_645_463_325_252u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut recorder = context.recorder("inputs");
        let mut input = |label| {
            let data: Vec<f32> = (0..dims.iter().product()).map(|_| random()).collect();
            recorder.upload(label, &dims, &data)
        };
        let inputs = [input("q")?, input("k")?, input("v")?];
        recorder.submit()?;
        let flop = attention.plan(&shape)?.flop as f64;
        Ok(Self {
            attention,
            shape,
            inputs,
            flop,
        })
    }

    /// Seconds of one forward, from recording to completion.
    fn seconds(&self, context: &Context) -> dilated_attention::Result<f64> {
        let started = Instant::now();
        let mut recorder = context.recorder("forward");
        let [q, k, v] = &self.inputs;
        let _result = self
            .attention
            .forward(&mut recorder, &self.shape, q, k, v)?;
        recorder.submit()?.wait()?;
        Ok(started.elapsed().as_secs_f64())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut quick, mut kernel) = (false, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--kernel" => {
                let name = format!("forward_{}", arguments.next().unwrap_or_default());
                let found = ForwardShape::ALL
                    .into_iter()
                    .find(|shape| shape.name() == name);
                kernel = Some(found.ok_or(format!("no kernel {name}"))?);
            }
            // Cargo passes it to every benchmark.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let context = Context::headless()?;
    let info = context.adapter_info();
    println!(
        "adapter   {} ({:?}, {})",
        info.name, info.backend, info.driver_info
    );
    let (device, queue) = (context.device(), context.queue());
    let on_cpu = context.facts().processor != Processor::Gpu;
    let fma = ceilings::fma(device, queue, on_cpu);
    let copy = ceilings::copy(device);
    copy.rate(device, queue);
    let repetitions = if quick { 3 } else { 7 };
    let measure = |ceiling: &ceilings::Ceiling| {
        let rates = (0..repetitions)
            .map(|_| ceiling.rate(device, queue) / 1e9)
            .collect();
        spread(rates)
    };
    let (median, least, most) = measure(&fma);
    println!(
        "ceiling   {median:.1} GFLOP/s ({least:.1} to {most:.1}): {}",
        fma.name
    );
    let (median, least, most) = measure(&copy);
    println!(
        "ceiling   {median:.1} GB/s ({least:.1} to {most:.1}): {}\n",
        copy.name
    );

    println!(
        "{:<24} {:<14} {:>7} {:>10} {:>22} {:>22}",
        "forward, f32", "kernel", "first s", "median ms", "GFLOP/s (range)", "% of ceiling (range)"
    );
    let cases = if quick { &CASES[..2] } else { &CASES[..] };
    for case in cases {
        let prepared = Prepared::new(&context, case, kernel)?;
        let first = prepared.seconds(&context)?;
        let (mut seconds, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..repetitions {
            let ceiling = fma.rate(device, queue);
            let time = prepared.seconds(&context)?;
            seconds.push(time);
            shares.push(prepared.flop / time / ceiling * 100.0);
        }
        let (median, least, most) = spread(seconds);
        let (share, lowest, highest) = spread(shares);
        let rate = |time: f64| prepared.flop / time / 1e9;
        println!(
            "{:<24} {:<14} {first:>7.2} {:>10.2} {:>22} {:>22}",
            case.name,
            prepared.attention.variant().shape.name(),
            median * 1e3,
            format!(
                "{:.1} ({:.1} to {:.1})",
                rate(median),
                rate(most),
                rate(least)
            ),
            format!("{share:.0} ({lowest:.0} to {highest:.0})"),
        );
    }
    growth(&context, quick)?;
    println!("\npool\n{}", context.pool().stats());
    Ok(())
}

/// Time per token at fixed branches, over the length.
fn growth(context: &Context, quick: bool) -> Result<(), Box<dyn Error>> {
    let lengths: &[u32] = if quick {
        &[16_384, 32_768]
    } else {
        &[16_384, 32_768, 65_536, 131_072, 262_144]
    };
    let prepared = lengths
        .iter()
        .map(|&tokens| {
            let case = case(
                "growth",
                (1, 16, tokens),
                &[1024, 4096, 16_384],
                &[1, 4, 16],
            );
            let prepared = Prepared::new(context, &case, None)?;
            prepared.seconds(context)?;
            Ok(prepared)
        })
        .collect::<dilated_attention::Result<Vec<_>>>()?;
    let repetitions = if quick { 2 } else { 5 };
    let mut times = vec![Vec::new(); lengths.len()];
    for _ in 0..repetitions {
        for (times, prepared) in times.iter_mut().zip(&prepared) {
            let tokens = f64::from(prepared.shape.seq_len());
            times.push(prepared.seconds(context)? / tokens * 1e9);
        }
    }
    println!(
        "\ntime per token, 1 head of 16, branches 1024/1 4096/4 16384/16, medians of {repetitions}"
    );
    let medians: Vec<f64> = times.into_iter().map(|times| spread(times).0).collect();
    for (tokens, nanoseconds) in lengths.iter().zip(&medians) {
        let against = (nanoseconds / medians[0] - 1.0) * 100.0;
        println!("{tokens:>8} tokens  {nanoseconds:>8.1} ns  {against:+.1} %");
    }
    Ok(())
}
