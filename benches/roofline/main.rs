//! Kernels against the adapter's own ceilings, in one run.
//!
//! ```text
//! cargo bench --bench roofline [-- --quick] [--only forward|backward|matmul|norm|growth] [--kernel tile|rows|micro]
//!     [--storage f32|f16|f16packed|bf16packed]
//!     [--trusted]
//! ```
//!
//! `--storage` says how attention's tensors are stored.
//!
//! The ceiling is measured before each repetition of each case, so that a machine whose speed drifts does not shift the
//! ratio; medians of the repetitions with the smallest and largest. The backward counts 2.5 times the operations of the
//! forward; layer norms count each matrix once, against a copy. The last table is time per token against length.
//! `--trusted` compiles without runtime checks. `--quick` runs few small cases: that everything works, not what it measures.

mod attention;
mod ceilings;
mod layers;
mod timing;

use std::error::Error;

use attention::{CASES, Direction, Prepared, case};
use dilated_attention::kernel::Storage;
use dilated_attention::kernel::forward::ForwardShape;
use dilated_attention::kernel::matmul::MatmulVariant;
use dilated_attention::plan::Processor;
use dilated_attention::{Context, ContextOptions};
use layers::{Norm, PRODUCTS, Product};
use timing::{Timed, header, row, spread};

const GROUPS: [&str; 5] = ["forward", "backward", "matmul", "norm", "growth"];

fn main() -> Result<(), Box<dyn Error>> {
    let (mut quick, mut kernel, mut only) = (false, None, None);
    let mut storage = Storage::F32;
    let mut options = ContextOptions::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--trusted" => options.kernels.trusted_shaders = true,
            "--only" => {
                let name = arguments.next().unwrap_or_default();
                let found = GROUPS.into_iter().find(|group| *group == name);
                only = Some(found.ok_or(format!("no group {name}"))?);
            }
            "--kernel" => {
                let name = format!("forward_{}", arguments.next().unwrap_or_default());
                let found = ForwardShape::ALL
                    .into_iter()
                    .find(|shape| shape.name() == name);
                kernel = Some(found.ok_or(format!("no kernel {name}"))?);
            }
            "--storage" => {
                let name = arguments.next().unwrap_or_default();
                let found = Storage::ALL
                    .into_iter()
                    .find(|storage| format!("{storage:?}").eq_ignore_ascii_case(&name));
                storage = found.ok_or(format!("no storage {name}"))?;
            }
            // Cargo passes it to every benchmark.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let wanted = |group: &str| only.is_none_or(|only| only == group);
    let context = pollster::block_on(Context::with_options(&options))?;
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
        "ceiling   {median:.1} GB/s ({least:.1} to {most:.1}): {}",
        copy.name
    );

    for (group, direction) in [
        ("forward", Direction::Forward),
        ("backward", Direction::Backward),
    ] {
        if wanted(group) {
            header(&format!("{group}, {storage:?}"), "GFLOP/s");
            let cases = if quick { &CASES[..2] } else { &CASES[..] };
            for case in cases {
                let prepared = Prepared::new(&context, case, (kernel, storage), direction)?;
                let names = [case.name, prepared.kernel()?];
                row(&context, &fma, repetitions, names, &prepared)?;
            }
        }
    }
    if wanted("matmul") {
        header("matmul, f32", "GFLOP/s");
        let cases = if quick { &PRODUCTS[..1] } else { &PRODUCTS[..] };
        let kernel = MatmulVariant::choose(1024, [Storage::F32; 2], context.facts()).name();
        for case in cases {
            let product = Product::new(&context, case)?;
            row(&context, &fma, repetitions, [case.name, kernel], &product)?;
        }
    }
    if wanted("norm") {
        header("layer norm, f32", "GB/s");
        for (kernel, backward) in [("layer_norm", false), ("layer_norm_backward", true)] {
            let norm = Norm::new(&context, backward)?;
            let names = ["4096 rows of 768", kernel];
            row(&context, &copy, repetitions, names, &norm)?;
        }
    }
    if wanted("growth") {
        growth(&context, storage, quick)?;
    }
    println!("\npool\n{}", context.pool().stats());
    Ok(())
}

/// Time per token at fixed branches, over the length.
fn growth(context: &Context, storage: Storage, quick: bool) -> Result<(), Box<dyn Error>> {
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
            let prepared = Prepared::new(context, &case, (None, storage), Direction::Forward)?;
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
