//! Dilated attention from file to file: `cargo run --release --example attend_files -- --help`.
//!
//! Queries, keys and values are read where they are needed, from .npy or safetensors files, and the output is written block by block.
//! So the sequence may be longer than what device and host hold. With `--progress`, a run that was killed goes on where it was.

use std::error::Error;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use dilated_attention::out_of_core::{OutOfCoreOptions, TokenFile, TokenSource};
use dilated_attention::{
    Context, DType, DilatedAttention, DilatedAttentionConfig, Mask, WeightFile,
};
use indicatif::{ProgressBar, ProgressStyle};
use program::say;
use slide_files::NpyArray;

/// Dilated attention from file to file
///
/// A file is FILE.npy, or FILE.safetensors:TENSOR. Its array is (tokens, heads, elements), (tokens, heads * elements), or one of these
/// below a first dimension of 1, of f32, f16 or, in safetensors, bf16. The output has the shape and the type of the queries.
///
/// Exits with 0 when the output is written, 1 after an error. With --progress, what was written is kept then, and the same command goes
/// on with it.
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Options {
    /// File of the queries
    q: String,
    /// File of the keys
    k: String,
    /// File of the values
    v: String,
    /// File of the output, which must not exist unless --progress goes on with it
    out: String,
    /// Heads; needed where arrays do not have them as a dimension
    #[arg(long)]
    heads: Option<usize>,
    /// Branches, each a segment length and a dilation rate
    #[arg(long, value_name = "LENGTH/RATE", num_args = 1.., required = true, value_parser = program::branch)]
    branches: Vec<(usize, usize)>,
    /// Tokens see no later ones
    #[arg(long)]
    causal: bool,
    /// Rows, padding and offsets of heads as in torchscale
    #[arg(long)]
    torchscale: bool,
    /// MiB of device memory
    #[arg(long, default_value_t = 256)]
    budget_mib: u64,
    /// Most tokens of a block
    #[arg(long)]
    block: Option<NonZeroUsize>,
    /// Where the progress is written down, so that the same command goes on after it was ended; removed in the end
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
    /// Where packed keys are kept, if not in memory
    #[arg(long, value_name = "FILE")]
    scratch: Option<PathBuf>,
    /// Only says what it would do
    #[arg(long)]
    plan: bool,
}

fn main() -> ExitCode {
    program::run(run)
}

/// An array in a file.
struct Array {
    file: TokenFile,
    shape: Vec<usize>,
}

/// The path of a file and, of safetensors, the name of its tensor.
fn named(name: &str) -> (&Path, Option<&str>) {
    match name.split_once(".safetensors:") {
        None => (Path::new(name), None),
        Some((stem, tensor)) => (Path::new(&name[..stem.len() + 12]), Some(tensor)),
    }
}

fn open(name: &str) -> Result<Array, Box<dyn Error>> {
    if cfg!(target_endian = "big") {
        return Err("these files are little-endian, this machine is not".into());
    }
    let (path, tensor) = named(name);
    if let Some(tensor) = tensor {
        let file = WeightFile::open(path)?;
        let found = file.get(tensor).ok_or_else(|| {
            let names: Vec<_> = file.tensors().map(|tensor| tensor.name()).take(8).collect();
            format!(
                "{}: there is no tensor {tensor}, but {}",
                path.display(),
                names.join(", ")
            )
        })?;
        let shape = found.shape().to_vec();
        let file = TokenFile::open_safetensors(path, tensor)?;
        return Ok(Array { file, shape });
    }
    let array = NpyArray::of(path)?;
    let dtype = match array.descr.as_str() {
        "<f4" => DType::F32,
        "<f2" => DType::F16,
        other => return Err(format!("{name}: elements are {other}; <f4 or <f2 is needed").into()),
    };
    let shape: Vec<usize> = array.shape.iter().map(|dim| *dim as usize).collect();
    let elements = shape
        .iter()
        .try_fold(1u64, |all, dim| all.checked_mul(*dim as u64));
    let elements = elements.ok_or_else(|| format!("{name}: a shape of {shape:?} is too large"))?;
    let file = TokenFile::open(path, array.first_byte, dtype, elements)?;
    Ok(Array { file, shape })
}

/// The file of the output, which has another name until it is whole.
struct Output {
    path: PathBuf,
    partial: PathBuf,
    tensor: Option<String>,
}

impl Output {
    fn new(name: &str) -> Self {
        let (path, tensor) = named(name);
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        Self {
            path: path.to_owned(),
            partial: partial.into(),
            tensor: tensor.map(str::to_owned),
        }
    }

    /// A new file.
    fn create(&self, like: &Array) -> Result<TokenFile, Box<dyn Error>> {
        if self.path.exists() {
            return Err(
                format!("{} exists: remove it, or name another", self.path.display()).into(),
            );
        }
        // Left by a run that was killed and has no progress file.
        if self.partial.exists() {
            fs::remove_file(&self.partial)?;
        }
        let dtype = TokenSource::dtype(&like.file);
        if let Some(tensor) = &self.tensor {
            let file = TokenFile::create_safetensors(&self.partial, tensor, &like.shape, dtype)?;
            return Ok(file);
        }
        let descr = match dtype {
            DType::F32 => "<f4",
            DType::F16 => "<f2",
            other => return Err(format!("NumPy has no {other}: write to a .safetensors").into()),
        };
        let header = NpyArray::header(&self.path, descr, &like.shape)?;
        let elements = like.shape.iter().product::<usize>() as u64;
        Ok(TokenFile::create(&self.partial, &header, dtype, elements)?)
    }

    /// The file of a run that goes on, and whether it has its name already, as after a kill behind the last block.
    fn go_on(&self, like: &Array) -> Result<(TokenFile, bool), Box<dyn Error>> {
        let (path, partial) = (self.path.display(), self.partial.display());
        match (self.partial.exists(), self.path.exists()) {
            (true, false) => Ok((self.open(&self.partial, like)?, false)),
            (false, true) => Ok((self.open(&self.path, like)?, true)),
            (true, true) => Err(format!("{path} and {partial} exist: remove one").into()),
            (false, false) => {
                Err(format!("{partial} is gone: remove the progress file to begin anew").into())
            }
        }
    }

    fn open(&self, path: &Path, like: &Array) -> Result<TokenFile, Box<dyn Error>> {
        if let Some(tensor) = &self.tensor {
            return Ok(TokenFile::open_safetensors_to_write(path, tensor)?);
        }
        let (array, dtype) = (NpyArray::of(path)?, TokenSource::dtype(&like.file));
        let shape = like.shape.iter().map(|dim| *dim as u64);
        if array.shape != shape.collect::<Vec<_>>() {
            return Err(format!("{} is another array than the output", path.display()).into());
        }
        let elements = like.shape.iter().product::<usize>() as u64;
        Ok(TokenFile::open_to_write(
            path,
            array.first_byte,
            dtype,
            elements,
        )?)
    }

    fn finish(&self) -> std::io::Result<()> {
        match self.partial.exists() {
            true => fs::rename(&self.partial, &self.path),
            false => Ok(()),
        }
    }
}

fn run(options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let q = open(&options.q)?;
    let (k, v) = (open(&options.k)?, open(&options.v)?);
    let shape = match &q.shape[..] {
        [1, rest @ ..] if rest.len() > 1 => rest,
        all => all,
    };
    let (tokens, heads, dim) = match (shape, options.heads) {
        (&[tokens, heads, dim], None) => (tokens, heads, dim),
        (&[tokens, heads, dim], Some(given)) if given == heads => (tokens, heads, dim),
        (&[tokens, width], Some(heads)) if heads > 0 && width % heads == 0 => {
            (tokens, heads, width / heads)
        }
        (shape, heads) => {
            return Err(format!(
                "the queries have shape {shape:?} and --heads is {heads:?}: (tokens, heads, elements) is needed, or \
                 (tokens, heads * elements) with --heads"
            )
            .into());
        }
    };
    for (name, array) in [(&options.k, &k), (&options.v, &v)] {
        let shape = match &array.shape[..] {
            [1, rest @ ..] if rest.len() > 1 => rest,
            all => all,
        };
        if shape != [tokens, heads, dim] && shape != [tokens, heads * dim] {
            return Err(format!(
                "{name} has shape {shape:?}; ({tokens}, {heads}, {dim}) is needed, as of the queries"
            )
            .into());
        }
    }
    let (lengths, rates): (Vec<usize>, Vec<usize>) = options.branches.iter().copied().unzip();
    let mut config = DilatedAttentionConfig::new(heads, dim, &lengths, &rates)?;
    if options.causal {
        config = config.with_mask(Mask::Causal);
    }
    if options.torchscale {
        config = config.with_torchscale();
    }
    let context = Context::new_blocking()?;
    let adapter = context.adapter_info();
    say!("adapter   {}, {}", adapter.name, adapter.driver_info);
    let attention = DilatedAttention::new(&context, config)?;
    let mut settings =
        OutOfCoreOptions::new(options.budget_mib << 20).with_block_tokens(options.block);
    if let Some(path) = &options.progress {
        settings = settings.with_progress_file(path);
    }
    if let Some(path) = &options.scratch {
        settings = settings.with_scratch_file(path);
    }
    let dtype = TokenSource::dtype(&q.file);
    let plan = attention.plan_out_of_core(tokens, dtype, &settings)?;
    say!("{plan}");
    if options.plan {
        return Ok(ExitCode::SUCCESS);
    }
    let output = Output::new(&options.out);
    let goes_on = options.progress.as_ref().is_some_and(|file| file.exists());
    let (mut out, is_named) = match goes_on {
        true => output.go_on(&q)?,
        false => (output.create(&q)?, false),
    };
    let begin = Instant::now();
    let style = ProgressStyle::with_template("[{bar:40}] {percent:>3} %, {eta} left")?;
    let bar = ProgressBar::new(1000).with_style(style);
    let done = (|| -> Result<(), Box<dyn Error>> {
        let mut run = attention.run_out_of_core(&plan, [&q.file, &k.file, &v.file], &mut out)?;
        let before = run.progress().fraction();
        if before > 0.0 {
            say!("goes on at {:.1} %", 100.0 * before);
        }
        if is_named && !run.is_done() {
            let partial = output.partial.display();
            return Err(
                format!("{partial} is gone: remove the progress file to begin anew").into(),
            );
        }
        while !run.is_done() {
            bar.set_position((1000.0 * run.advance()?.fraction()) as u64);
        }
        Ok(())
    })();
    bar.finish_and_clear();
    if let Err(error) = done {
        if options.progress.is_none() {
            // Nothing goes on with it. A failure leaves a file that the next run removes.
            _ = fs::remove_file(&output.partial);
        }
        return Err(error);
    }
    output.finish()?;
    if let Some(path) = &options.progress {
        fs::remove_file(path)?;
    }
    say!(
        "written   {} in {:.1} s",
        options.out,
        begin.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}
