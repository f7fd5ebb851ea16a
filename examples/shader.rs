//! Prints the shader of a kernel as it is compiled: WGSL, or what naga makes of it for a platform. Without a name, lists all kernels.
//! Needs no GPU.
//!
//! ```text
//! cargo run --release --example shader -- [KERNEL] [--head-dim D] [--dtype f32|f16|f16_packed|bf16_packed]
//!     [--to wgsl|spirv|msl|hlsl] [--field NAME=VALUE ..] [--all]
//! ```
//!
//! A kernel has many shaders: one for each set of fields. The first that fits is printed (`--all`: each), for heads of 64 in f32 unless told
//! otherwise (cooperative matrices are for f16); `--field` picks others, for example `--field transpose_b=true`. SPIR-V is printed
//! in hexadecimal words. There is no HLSL with cooperative matrices.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;

use dilated_attention::device::{DeviceCaps, ElementFormat, KernelTier};
use dilated_attention::kernels::Kernel;
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use program::{Arguments, Result, say};

/// What is printed.
#[derive(Clone, Copy)]
enum Language {
    Wgsl,
    SpirV,
    Msl,
    Hlsl,
}

fn main() -> ExitCode {
    program::run(include_str!("shader.rs"), run)
}

fn run(mut arguments: Arguments) -> Result<()> {
    let mut name = None;
    let mut head_dim = 64u32;
    let mut format = None;
    let mut language = Language::Wgsl;
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut all = false;
    while let Some(argument) = arguments.next_argument()? {
        match argument.option() {
            Some("--head-dim") => head_dim = arguments.value()?,
            Some("--dtype") => format = Some(stored_as(&arguments.value::<String>()?)?),
            Some("--to") => language = language_called(&arguments.value::<String>()?)?,
            Some("--field") => {
                let field: String = arguments.value()?;
                let pair = field.split_once('=');
                let (name, value) = pair.ok_or(format!("--field takes NAME=VALUE, not {field}"))?;
                fields.push((name.to_owned(), value.to_owned()));
            }
            Some("--all") => all = true,
            Some(_) => return Err(arguments.unknown()),
            None => name = Some(argument.into_path().to_string_lossy().into_owned()),
        }
    }
    if head_dim == 0 || !head_dim.is_multiple_of(4) || head_dim > 256 {
        return Err(format!("--head-dim {head_dim}: a multiple of 4 up to 256").into());
    }
    let Some(name) = name else {
        list(head_dim);
        return Ok(());
    };
    let formats = format.map_or_else(|| ElementFormat::ALL.to_vec(), |format| vec![format]);
    let of_storages = formats
        .into_iter()
        .flat_map(|format| kernels(head_dim, format));
    let named: Vec<Kernel> = of_storages.filter(|kernel| kernel.name() == name).collect();
    if named.is_empty() {
        return Err(
            format!("no kernel {name} of such tensors: without a name, all are listed").into(),
        );
    }
    let asked = |kernel: &&Kernel| {
        let mut wanted = fields.iter();
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
    for kernel in fitting.take(if all { usize::MAX } else { 1 }) {
        say!("// {}", kernel.key());
        say!("{}", translated(kernel, language)?);
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

fn stored_as(name: &str) -> Result<ElementFormat> {
    let mut all = ElementFormat::ALL.into_iter();
    let found = all.find(|format| format.name() == name);
    Ok(found.ok_or(format!(
        "no type {name}: f32, f16, f16_packed or bf16_packed"
    ))?)
}

fn language_called(name: &str) -> Result<Language> {
    Ok(match name {
        "wgsl" => Language::Wgsl,
        "spirv" => Language::SpirV,
        "msl" => Language::Msl,
        "hlsl" => Language::Hlsl,
        _ => return Err(format!("no language {name}: wgsl, spirv, msl or hlsl").into()),
    })
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
        Language::SpirV => {
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
