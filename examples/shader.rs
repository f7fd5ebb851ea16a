//! Shaders as they are compiled, here and for other platforms: `cargo run --release --example shader`.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use dilated_attention::device::{DeviceCaps, KernelTier};
use dilated_attention::testing::{ElementFormat, Kernel};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use program::{Result, say};

/// Prints the shader of a kernel as it is compiled: WGSL, or what naga makes of it for a platform; needs no GPU
///
/// A kernel has many shaders: one for each set of fields. The first that fits is printed.
#[derive(Parser)]
struct Options {
    /// Name of the kernel; without it, all are listed
    kernel: Option<String>,
    /// Elements of a head: a multiple of 4 up to 256
    #[arg(long, value_name = "D", default_value = "64", value_parser = head_dim)]
    head_dim: u32,
    /// What tensors are stored as: f32, f16, f16_packed or bf16_packed; cooperative matrices are for f16 [default: the first that fits]
    #[arg(long, value_name = "TYPE", value_parser = format)]
    dtype: Option<ElementFormat>,
    /// What is printed; SPIR-V in hexadecimal words, HLSL not with cooperative matrices
    #[arg(long, value_name = "LANGUAGE", default_value = "wgsl")]
    to: Language,
    /// Only shaders with this field, for example transpose_b=true; several fields if given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = field)]
    field: Vec<(String, String)>,
    /// All that fit
    #[arg(long)]
    all: bool,
}

/// What is printed.
#[derive(Clone, Copy, ValueEnum)]
enum Language {
    Wgsl,
    Spirv,
    Msl,
    Hlsl,
}

fn head_dim(text: &str) -> Result<u32, &'static str> {
    let fits = |head_dim: &u32| head_dim.is_multiple_of(4) && (4..=256).contains(head_dim);
    let head_dim = text.parse().ok().filter(fits);
    head_dim.ok_or("a multiple of 4 up to 256 is needed")
}

fn format(name: &str) -> Result<ElementFormat, &'static str> {
    let mut all = ElementFormat::ALL.into_iter();
    let found = all.find(|format| format.name() == name);
    found.ok_or("f32, f16, f16_packed or bf16_packed is needed")
}

fn field(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is needed")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    program::run(run)
}

fn run(options: Options) -> Result<()> {
    let head_dim = options.head_dim;
    let Some(name) = options.kernel else {
        list(head_dim);
        return Ok(());
    };
    let formats = match options.dtype {
        Some(format) => vec![format],
        None => ElementFormat::ALL.to_vec(),
    };
    let of_formats = formats
        .into_iter()
        .flat_map(|format| kernels(head_dim, format));
    let named: Vec<Kernel> = of_formats.filter(|kernel| kernel.name() == name).collect();
    if named.is_empty() {
        return Err(
            format!("no kernel {name} of such tensors: without a name, all are listed").into(),
        );
    }
    let asked = |kernel: &&Kernel| {
        let mut wanted = options.field.iter();
        wanted.all(|(name, value)| {
            let fields = kernel.fields();
            fields
                .iter()
                .any(|(field, given)| field == name && given.to_string() == *value)
        })
    };
    let mut fitting = named.iter().filter(asked).peekable();
    if fitting.peek().is_none() {
        let keys: Vec<String> = named.iter().map(Kernel::key).collect();
        return Err(format!("none has these fields; there are\n{}", keys.join("\n")).into());
    }
    for kernel in fitting.take(if options.all { usize::MAX } else { 1 }) {
        say!("// {}", kernel.key());
        say!("{}", translated(kernel, options.to)?);
    }
    Ok(())
}

/// Kernels for such tensors on devices of every kind, each once.
fn kernels(head_dim: u32, format: ElementFormat) -> Vec<Kernel> {
    let mut seen = HashSet::new();
    let mut kernels = Vec::new();
    for caps in DeviceCaps::of_every_kind() {
        let of_device = Kernel::all(head_dim, format, &caps).into_iter();
        kernels.extend(of_device.filter(|kernel| seen.insert(*kernel)));
    }
    kernels
}

fn list(head_dim: u32) {
    let mut counts: BTreeMap<&str, (usize, Option<KernelTier>)> = BTreeMap::new();
    let all = ElementFormat::ALL
        .into_iter()
        .flat_map(|format| kernels(head_dim, format));
    for kernel in all {
        let entry = counts.entry(kernel.name()).or_insert((0, kernel.tier()));
        entry.0 += 1;
    }
    for (name, (count, tier)) in counts {
        let tier = match tier {
            Some(tier) if tier.is_cooperative() => "coop".to_owned(),
            Some(tier) => tier.to_string(),
            None => String::new(),
        };
        say!("{name:30} {tier:10} {count} with heads of {head_dim}");
    }
}

fn translated(kernel: &Kernel, language: Language) -> Result<String> {
    let shader = kernel.shader()?;
    if matches!(language, Language::Wgsl) {
        return Ok(shader.text);
    }
    if matches!(language, Language::Hlsl) && kernel.tier().is_some_and(KernelTier::is_cooperative) {
        return Err("there is no HLSL with cooperative matrices".into());
    }
    let module = naga::front::wgsl::parse_str(&shader.text)
        .map_err(|error| shader.with_origins(&error.emit_to_string(&shader.text)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|error| shader.with_origins(&error.emit_to_string(&shader.text)))?;
    Ok(match language {
        Language::Wgsl => shader.text,
        Language::Spirv => {
            let words = spv::write_vec(&module, &info, &spv::Options::default(), None)?;
            let lines = words.chunks(8).map(|words| {
                let words: Vec<String> = words.iter().map(|word| format!("{word:08x}")).collect();
                words.join(" ")
            });
            lines.collect::<Vec<_>>().join("\n")
        }
        Language::Msl => {
            let options = msl::Options {
                // The first that has matrices.
                lang_version: (2, 3),
                fake_missing_bindings: true,
                ..Default::default()
            };
            let pipeline = msl::PipelineOptions::default();
            msl::write_string(&module, &info, &options, &pipeline)?.0
        }
        Language::Hlsl => {
            let mut text = String::new();
            let options = hlsl::Options {
                fake_missing_bindings: true,
                ..Default::default()
            };
            let pipeline = hlsl::PipelineOptions::default();
            hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None)?;
            text
        }
    })
}
