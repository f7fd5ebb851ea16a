//! How long a program waits for its first result, and where that time goes; each shape's compilation on this driver.
//!
//! ```text
//! cargo bench --bench cold_start [-- [--head-dim D] [--trusted] [--cache FOLDER] [--backward] [--shapes]]
//! ```
//!
//! A driver's own cache on disk makes a second run another measurement than a first one: `MESA_SHADER_CACHE_DISABLE=true`
//! turns Mesa's off. `--shapes` compiles every shape that is not known to be dear, which gives the numbers in
//! `src/tuning/task.rs`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use dilated_attention::kernel::Activation;
use dilated_attention::kernel::Kernel;
use dilated_attention::kernel::backward::{BackwardShape, BackwardVariant};
use dilated_attention::kernel::forward::{ForwardShape, ForwardVariant};
use dilated_attention::kernel::matmul::MatmulVariant;
use dilated_attention::{
    AttentionShape, CacheFolder, Context, ContextOptions, DilatedAttention, DilatedAttentionConfig,
    KernelOptions,
};

const TOKENS: u32 = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut head_dim, mut backward, mut shapes) = (64u32, false, false);
    let mut kernels = KernelOptions {
        cache: CacheFolder::Off,
        ..Default::default()
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("an option lacks its value");
        match argument.as_str() {
            "--head-dim" => head_dim = value()?.parse()?,
            "--trusted" => kernels.trusted_shaders = true,
            "--cache" => kernels.cache = CacheFolder::At(PathBuf::from(value()?)),
            "--backward" => backward = true,
            "--shapes" => shapes = true,
            // Cargo passes it to every benchmark.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let begin = Instant::now();
    let options = ContextOptions {
        kernels,
        ..Default::default()
    };
    let context = pollster::block_on(Context::with_options(&options))?;
    let info = context.adapter_info();
    println!("{} ({})", info.name, info.driver_info);
    println!("context {:.3} s", begin.elapsed().as_secs_f64());
    let config = DilatedAttentionConfig::new(1, head_dim, &[TOKENS], &[1])?;
    if shapes {
        return compile_shapes(&context, &config);
    }
    let attention = DilatedAttention::new(&context, config)?;
    println!("{}", attention.warm_up(DType::F32)?);
    let shape = AttentionShape::new(1, TOKENS)?;
    let dims = [1, TOKENS as usize, 1, head_dim as usize];
    let data = vec![0.5f32; dims.iter().product()];
    for name in ["first", "second"] {
        let run = Instant::now();
        let mut recorder = context.recorder("forward");
        let q = recorder.upload("q", &dims, &data)?;
        let result = attention.forward(&mut recorder, &shape, &q, &q, &q)?;
        let out = recorder.download::<f32>(&result.out)?;
        recorder.submit()?;
        out.wait()?;
        println!(
            "{name} forward {:.4} s, {:.3} s after the start",
            run.elapsed().as_secs_f64(),
            begin.elapsed().as_secs_f64()
        );
    }
    if backward {
        println!("{}", attention.warm_up_backward(DType::F32)?);
    }
    Ok(())
}

/// Compiles every shape that a search would ever try.
fn compile_shapes(
    context: &Context,
    config: &DilatedAttentionConfig,
) -> Result<(), Box<dyn Error>> {
    let (facts, head_dim) = (context.facts(), config.head_dim());
    for shape in ForwardShape::ALL {
        let variant = ForwardVariant::with_shape(shape, head_dim, Storage::F32, facts);
        if variant.check(head_dim, facts).is_ok()
            && affordable(shape == ForwardShape::Uniform, context, head_dim)
        {
            println!("{}", context.warm_up(&[Kernel::Forward(variant)])?);
        }
    }
    for shape in BackwardShape::ALL {
        let variant = BackwardVariant::fitting(shape, config, Storage::F32, facts);
        if affordable(shape == BackwardShape::Rows, context, head_dim) {
            println!(
                "{}",
                context.warm_up(&[
                    Kernel::Delta {
                        head_dim,
                        storage: Storage::F32,
                    },
                    Kernel::BackwardDq(variant),
                    Kernel::BackwardDkDv(variant)
                ])?
            );
        }
    }
    let product = |variant| Kernel::Matmul {
        variant,
        left: Storage::F32,
        right: Storage::F32,
        result: Cell::Scalar,
        transpose_a: false,
        transpose_b: true,
        activation: Activation::Identity,
    };
    let chosen = MatmulVariant::choose(1024, [Storage::F32; 2], facts);
    println!(
        "{}",
        context.warm_up(&[product(chosen), product(MatmulVariant::Tile)])?
    );
    Ok(())
}

/// Unrolled rows of wide heads compile for minutes, and on old drivers those of all but the narrowest.
fn affordable(rows: bool, context: &Context, head_dim: u32) -> bool {
    use dilated_attention::plan::Processor;
    match context.facts().processor {
        Processor::Cpu {
            uniform_loads: true,
            ..
        } => !rows || head_dim <= 128,
        Processor::Cpu { .. } => !rows || head_dim <= 16,
        Processor::Gpu => !rows,
    }
}
