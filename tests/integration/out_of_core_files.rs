//! Runs out of core from file to file, which go on where they were ended.

use std::cell::Cell;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dilated_attention::half::f16;
use dilated_attention::longnet::{LongNet, LongNetConfig};
use dilated_attention::out_of_core::{
    OutOfCoreOptions, OutOfCorePlan, TokenFile, TokenSink, TokenSource,
};
use dilated_attention::weights::WeightFile;
use dilated_attention::{DType, DilatedAttention, DilatedAttentionConfig, Error, Mask, Result};

use crate::support::kernel_contexts::kernel_contexts;
use crate::support::numbers::uniform;

const TOKENS: usize = 300;
const WIDTH: usize = 16;

/// A folder of a test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("dilated-attention-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

fn attention() -> DilatedAttention {
    let config = DilatedAttentionConfig::new(2, 8, &[16, 64, 512], &[1, 4, 8]).unwrap();
    DilatedAttention::new(&kernel_contexts()[0].context, config).unwrap()
}

fn options(block_tokens: usize) -> OutOfCoreOptions {
    OutOfCoreOptions::new(64 << 20).with_block_tokens(NonZeroUsize::new(block_tokens))
}

/// Counts how often each token is read.
struct Counted<'a> {
    x: &'a [f32],
    reads: Mutex<Vec<usize>>,
}

impl<'a> Counted<'a> {
    fn new(x: &'a [f32]) -> Self {
        let reads = Mutex::new(vec![0; x.len() / WIDTH]);
        Self { x, reads }
    }

    fn of(&self, tokens: Range<usize>) -> usize {
        self.reads.lock().unwrap()[tokens].iter().sum()
    }
}

impl TokenSource for Counted<'_> {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn num_elements(&self) -> Option<u64> {
        Some(self.x.len() as u64)
    }

    fn read(&self, tokens: Range<usize>, rows: &mut [u8]) -> io::Result<()> {
        for token in tokens.clone() {
            self.reads.lock().unwrap()[token] += 1;
        }
        self.x.read(tokens, rows)
    }
}

/// Advances a run to its end, or by `steps`.
fn advance(
    attention: &DilatedAttention,
    plan: &OutOfCorePlan,
    inputs: [&dyn TokenSource; 3],
    out: &mut dyn TokenSink,
    steps: usize,
) -> Result<(bool, u64)> {
    let mut run = attention.run_out_of_core(plan, inputs, out)?;
    for _ in 0..steps {
        if run.is_done() {
            break;
        }
        run.advance()?;
    }
    Ok((run.is_done(), run.progress().done))
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// A run that is dropped after any number of steps, again and again, writes what one does that is not; with packed keys in memory
/// and in a file.
#[test]
fn runs_go_on_where_they_were() {
    let attention = attention();
    let folder = Folder::new("goes-on");
    let x = uniform(1, TOKENS * WIDTH);
    let mut expected = vec![0f32; x.len()];
    let plain = attention
        .plan_out_of_core(TOKENS, DType::F32, &options(40))
        .unwrap();
    advance(&attention, &plain, [&x, &x, &x], &mut expected, usize::MAX).unwrap();
    for scratch in [false, true] {
        for steps in [1, 2, 3, 7, 30] {
            let [out, progress, scratch_file] = ["out", "progress", "scratch"]
                .map(|name| folder.file(&format!("{name}-{scratch}-{steps}")));
            let mut options = options(40).with_progress_file(&progress);
            if scratch {
                options = options.with_scratch_file(&scratch_file);
            }
            let plan = attention
                .plan_out_of_core(TOKENS, DType::F32, &options)
                .unwrap();
            drop(TokenFile::create(&out, b"", DType::F32, x.len() as u64).unwrap());
            // With steps too few for the packing and a block, packing in memory begins again and again.
            let mut steps = steps;
            let (mut is_done, mut rounds, mut last) = (false, 0, 0);
            while !is_done {
                let mut sink =
                    TokenFile::open_to_write(&out, 0, DType::F32, x.len() as u64).unwrap();
                let inputs: [&dyn TokenSource; 3] = [&x, &x, &x];
                let done;
                (is_done, done) = advance(&attention, &plan, inputs, &mut sink, steps).unwrap();
                assert!(scratch || done >= last, "{done} {last}");
                last = if scratch { 0 } else { done.min(last) };
                rounds += 1;
                assert!(rounds < 200, "no progress");
                steps += usize::from(rounds % 8 == 0);
                assert_eq!(scratch_file.exists(), scratch && !is_done);
            }
            assert_eq!(bytes(&out), bytemuck::cast_slice::<f32, u8>(&expected));
            // A run that is done stays done, without reading anything but what tells it from others.
            let counted = Counted::new(&x);
            let inputs: [&dyn TokenSource; 3] = [&x, &counted, &x];
            let mut sink = TokenFile::open_to_write(&out, 0, DType::F32, x.len() as u64).unwrap();
            let run = attention.run_out_of_core(&plan, inputs, &mut sink).unwrap();
            assert!(run.is_done() && run.progress().is_done());
            assert_eq!(counted.of(40..TOKENS - 40), 0);
        }
    }
}

/// Blocks that are written are not computed again, and of keys only those of segments under way are packed again.
#[test]
fn finished_blocks_are_not_computed_again() {
    let config = DilatedAttentionConfig::new(2, 8, &[16, 100], &[1, 4]).unwrap();
    let attention = DilatedAttention::new(&kernel_contexts()[0].context, config).unwrap();
    let folder = Folder::new("finished");
    let x = uniform(1, TOKENS * WIDTH);
    let options = options(20).with_progress_file(folder.file("progress"));
    let plan = attention
        .plan_out_of_core(TOKENS, DType::F32, &options)
        .unwrap();
    let mut out = vec![0f32; x.len()];
    let written = Cell::new(0);
    {
        let mut run = attention
            .run_out_of_core(&plan, [&x, &x, &x], &mut out)
            .unwrap();
        // All keys are packed, and 12 of 15 blocks written.
        while run.progress().done < (TOKENS + 240) as u64 {
            written.set(run.advance().unwrap().done - TOKENS as u64);
        }
    }
    let (q, k) = (Counted::new(&x), Counted::new(&x));
    let (is_done, _) = advance(&attention, &plan, [&q, &k, &x], &mut out, usize::MAX).unwrap();
    assert!(is_done);
    // The first and the last block tell the inputs from others.
    assert_eq!(q.of(20..200), 0, "queries of {} tokens", written.get());
    assert_eq!(k.of(20..200), 0);
    assert!(k.of(200..240) >= 40);
}

/// A scratch file that is gone is made anew, and filled anew: also if the run ends before it has filled any of it.
#[test]
fn packed_keys_that_are_gone_are_packed_again() {
    let attention = attention();
    let folder = Folder::new("gone");
    let x = uniform(1, TOKENS * WIDTH);
    let (progress, scratch) = (folder.file("progress"), folder.file("scratch"));
    let plain = attention
        .plan_out_of_core(TOKENS, DType::F32, &options(40))
        .unwrap();
    let mut expected = vec![0f32; x.len()];
    advance(&attention, &plain, [&x, &x, &x], &mut expected, usize::MAX).unwrap();
    let options = options(40)
        .with_progress_file(&progress)
        .with_scratch_file(&scratch);
    let plan = attention
        .plan_out_of_core(TOKENS, DType::F32, &options)
        .unwrap();
    let mut out = vec![0f32; x.len()];
    let inputs: [&dyn TokenSource; 3] = [&x, &x, &x];
    // All is packed, and a block written.
    let mut run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    while run.progress().done < (TOKENS + 50) as u64 {
        run.advance().unwrap();
    }
    drop(run);
    std::fs::remove_file(&scratch).unwrap();
    drop(attention.run_out_of_core(&plan, inputs, &mut out).unwrap());
    let run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    assert!(run.progress().done < TOKENS as u64);
    drop(run);
    let (is_done, _) = advance(&attention, &plan, inputs, &mut out, usize::MAX).unwrap();
    assert!(is_done && !scratch.exists());
    assert_eq!(out, expected);
    // The run ended before it had removed the file.
    let text = bytes(&progress);
    let text = String::from_utf8(text).unwrap();
    let name = text.split("\"name\":").nth(1).unwrap();
    let name = name
        .split(']')
        .next()
        .unwrap()
        .replace(['[', ',', '\n'], " ");
    let name: Vec<u8> = name
        .split_whitespace()
        .map(|byte| byte.parse().unwrap())
        .collect();
    std::fs::write(&scratch, name).unwrap();
    let run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    assert!(run.is_done() && !scratch.exists());
    drop(run);
    // Numbers that no run writes.
    for (from, to) in [
        ("300", "301"),
        ("\"written_tokens\": 300", "\"written_tokens\": 40"),
    ] {
        std::fs::write(&progress, text.replace(from, to)).unwrap();
        let error = attention.run_out_of_core(&plan, inputs, &mut out).map(drop);
        assert!(error.is_err(), "{from}");
    }
}

/// Softmax states that were written are those that go on; without them the run does not.
#[test]
fn states_go_on_too() {
    let attention = attention();
    let folder = Folder::new("states");
    let x = uniform(1, TOKENS * WIDTH);
    let options = options(40).with_progress_file(folder.file("progress"));
    let plan = attention
        .plan_out_of_core(TOKENS, DType::F32, &options)
        .unwrap();
    let (mut out, mut states) = (vec![0f32; x.len()], vec![0f32; TOKENS * 4]);
    let inputs: [&dyn TokenSource; 3] = [&x, &x, &x];
    let run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    let mut run = run.with_softmax_state(&mut states).unwrap();
    while run.progress().done < (TOKENS + 90) as u64 {
        run.advance().unwrap();
    }
    drop(run);
    let other = |error: Error| match error {
        Error::OtherRun { what, .. } => what,
        other => panic!("{other}"),
    };
    let mut empty = vec![0f32; TOKENS * 4];
    let run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    let error = run.with_softmax_state(&mut empty).map(drop).unwrap_err();
    assert!(other(error).contains("softmax_state"));
    let mut run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    assert_eq!(other(run.advance().map(drop).unwrap_err()), "softmax_state");
    drop(run);
    let run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    let mut run = run.with_softmax_state(&mut states).unwrap();
    while !run.is_done() {
        run.advance().unwrap();
    }
    drop(run);
    let whole = attention
        .plan_out_of_core(TOKENS, DType::F32, &self::options(40))
        .unwrap();
    let run = attention.run_out_of_core(&whole, inputs, &mut out).unwrap();
    let mut run = run.with_softmax_state(&mut empty).unwrap();
    while !run.is_done() {
        run.advance().unwrap();
    }
    drop(run);
    assert_eq!(states, empty);
}

#[test]
fn progress_of_another_run_is_an_error() {
    let attention = attention();
    let folder = Folder::new("another");
    let x = uniform(1, TOKENS * WIDTH);
    let other = uniform(2, TOKENS * WIDTH);
    let progress = folder.file("progress");
    let plan_of = |attention: &DilatedAttention, block| {
        let options = options(block).with_progress_file(&progress);
        attention
            .plan_out_of_core(TOKENS, DType::F32, &options)
            .unwrap()
    };
    let plan = plan_of(&attention, 40);
    let mut out = vec![0f32; x.len()];
    let input = folder.file("x");
    std::fs::write(&input, bytemuck::cast_slice::<f32, u8>(&x)).unwrap();
    let open = || TokenFile::open(&input, 0, DType::F32, x.len() as u64).unwrap();
    {
        let file = open();
        let mut run = attention
            .run_out_of_core(&plan, [&file, &x, &x], &mut out)
            .unwrap();
        while run.progress().done < (TOKENS + 100) as u64 {
            run.advance().unwrap();
        }
    }
    let refused = |plan: &OutOfCorePlan,
                   attention: &DilatedAttention,
                   inputs: [&dyn TokenSource; 3],
                   out: &mut dyn TokenSink| {
        match attention.run_out_of_core(plan, inputs, out).map(drop) {
            Err(Error::OtherRun { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    let file = open();
    let inputs: [&dyn TokenSource; 3] = [&file, &x, &x];
    // The plan, by its blocks and by its mask.
    let of_blocks = refused(&plan_of(&attention, 30), &attention, inputs, &mut out);
    assert_eq!(of_blocks, "block_tokens");
    let causal = attention.config().clone().with_mask(Mask::Causal);
    let causal = DilatedAttention::new(&kernel_contexts()[0].context, causal).unwrap();
    let of_mask = refused(&plan_of(&causal, 40), &causal, inputs, &mut out);
    assert_eq!(of_mask, "attention");
    // An input, and an output that is not there any more.
    assert_eq!(
        refused(&plan, &attention, [&file, &other, &x], &mut out),
        "k"
    );
    let mut empty = vec![0f32; x.len()];
    let what = refused(&plan, &attention, inputs, &mut empty);
    assert!(what.contains("output"), "{what}");
    // States where there were none.
    let mut states = vec![0f32; TOKENS * 4];
    let run = attention.run_out_of_core(&plan, inputs, &mut out).unwrap();
    let error = run.with_softmax_state(&mut states).map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::OtherRun { what, .. } if what == "softmax_state"),
        "{error}"
    );
    // What goes on nevertheless.
    let mut again = out.clone();
    let (is_done, _) = advance(&attention, &plan, inputs, &mut again, usize::MAX).unwrap();
    assert!(is_done);
    // The file is written to, with the same content: it has another time.
    drop(file);
    let text = bytes(&input);
    let now = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    std::fs::write(&input, &text).unwrap();
    let touched = std::fs::OpenOptions::new()
        .write(true)
        .open(&input)
        .unwrap();
    touched.set_modified(now).unwrap();
    let file = open();
    let inputs: [&dyn TokenSource; 3] = [&file, &x, &x];
    assert_eq!(refused(&plan, &attention, inputs, &mut again), "q");
    // What is no progress file at all.
    for text in ["", "{}", "[1, 2", "{\"facts\": 7}"] {
        std::fs::write(&progress, text).unwrap();
        let run = attention.run_out_of_core(&plan, inputs, &mut out);
        let error = run.map(drop).unwrap_err();
        assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    }
}

#[test]
fn what_a_disk_cannot_do_is_an_error() {
    let attention = attention();
    let folder = Folder::new("disk");
    let x = uniform(1, TOKENS * WIDTH);
    let path = folder.file("large");
    // 2^60 bytes.
    let error = TokenFile::create(&path, b"head", DType::F32, 1 << 58).unwrap_err();
    let expected = (1u64 << 60) + 4;
    assert!(
        matches!(error, Error::DiskFull { requested_bytes, .. } if requested_bytes == expected),
        "{error}"
    );
    assert!(!path.exists());
    // A file that is there, and one that is nowhere.
    std::fs::write(&path, b"precious").unwrap();
    let create = |path: &Path| TokenFile::create(path, b"", DType::F32, 10).map(drop);
    for bad in [&path, &folder.file("none/where"), &folder.0] {
        let error = create(bad).unwrap_err();
        assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    }
    assert_eq!(bytes(&path), b"precious");
    for bad in [&path, &folder.file("none"), &folder.0] {
        let error = TokenFile::open(bad, 0, DType::F32, 10).unwrap_err();
        assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    }
    let begin = |options: OutOfCoreOptions| {
        let plan = attention
            .plan_out_of_core(TOKENS, DType::F32, &options)
            .unwrap();
        let mut out = vec![0f32; x.len()];
        let run = attention.run_out_of_core(&plan, [&x, &x, &x], &mut out);
        run.map(drop).unwrap_err()
    };
    // Progress where no file can be; a scratch file where there is another.
    let error = begin(options(40).with_progress_file(folder.file("large/progress")));
    assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    let error = begin(options(40).with_scratch_file(&path));
    assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    assert_eq!(bytes(&path), b"precious");
    let error = begin(
        options(40)
            .with_progress_file(folder.file("progress"))
            .with_scratch_file(&path),
    );
    assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    assert_eq!(bytes(&path), b"precious");
}

/// Inputs that are cut off while they are read, and outputs of all types.
#[test]
fn tokens_go_from_file_to_file() {
    let attention = attention();
    let folder = Folder::new("files");
    let x: Vec<f16> = uniform(1, TOKENS * WIDTH)
        .into_iter()
        .map(f16::from_f32)
        .collect();
    let plan = attention
        .plan_out_of_core(TOKENS, DType::F16, &options(50))
        .unwrap();
    let mut expected = vec![f16::ZERO; x.len()];
    advance(&attention, &plan, [&x, &x, &x], &mut expected, usize::MAX).unwrap();
    let (input, out) = (folder.file("x"), folder.file("out.safetensors"));
    let text = [b"seven..", bytemuck::cast_slice::<f16, u8>(&x)].concat();
    std::fs::write(&input, &text).unwrap();
    let file = TokenFile::open(&input, 7, DType::F16, x.len() as u64).unwrap();
    assert_eq!(file.path(), input);
    let shape = [TOKENS, 2, 8];
    let mut sink = TokenFile::create_safetensors(&out, "out", &shape, DType::F16).unwrap();
    let inputs: [&dyn TokenSource; 3] = [&file, &file, &file];
    advance(&attention, &plan, inputs, &mut sink, usize::MAX).unwrap();
    drop(sink);
    let stored = WeightFile::open(&out).unwrap();
    let tensor = stored.get("out").unwrap();
    assert_eq!(tensor.shape(), shape);
    let bytes = tensor.to_bytes(0..x.len() * 2).unwrap();
    assert_eq!(bytes, bytemuck::cast_slice::<f16, u8>(&expected));
    // It can be written on, by its name.
    let mut again = TokenFile::open_safetensors_to_write(&out, "out").unwrap();
    again.write(0..1, &[0; 32]).unwrap();
    let mut row = [1; 32];
    assert!(again.read_back(0..1, &mut row).unwrap());
    assert_eq!(row, [0; 32]);
    let error = TokenFile::open_safetensors_to_write(&out, "x").unwrap_err();
    assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    let error = TokenFile::create_safetensors(&out, "x", &[1], DType::U32).unwrap_err();
    assert!(matches!(error, Error::WrongDType { .. }), "{error}");
    let far = TokenFile::create_safetensors(&out, "x", &[usize::MAX, 2], DType::F32);
    assert!(matches!(far, Err(Error::SizeOverflow { .. })));
    // Cut off while it is open.
    let cut = std::fs::OpenOptions::new()
        .write(true)
        .open(&input)
        .unwrap();
    cut.set_len(2000).unwrap();
    let mut out = vec![f16::ZERO; x.len()];
    let error = advance(&attention, &plan, inputs, &mut out, usize::MAX).unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
}

/// A layer goes on, too; with other weights it is another run.
#[test]
fn layers_go_on_where_they_were() {
    let context = &kernel_contexts()[0].context;
    let attention = DilatedAttentionConfig::new(2, 8, &[16, 512], &[1, 8]).unwrap();
    let model = LongNet::new(context, LongNetConfig::encoder(attention, 1, 24)).unwrap();
    let [weights, others] = [1, 2].map(|seed| model.initial_weights(context, seed).unwrap());
    let folder = Folder::new("layers");
    let x = uniform(1, TOKENS * WIDTH);
    let plan = |options: &OutOfCoreOptions| {
        model
            .plan_layer_out_of_core(TOKENS, DType::F32, options)
            .unwrap()
    };
    let plain = plan(&options(40));
    let mut expected = vec![0f32; x.len()];
    let mut run = model
        .run_layer_out_of_core(&plain, &weights, 0, &x, &mut expected)
        .unwrap();
    while !run.is_done() {
        run.advance().unwrap();
    }
    drop(run);
    let options = options(40)
        .with_progress_file(folder.file("progress"))
        .with_scratch_file(folder.file("scratch"));
    let plan = plan(&options);
    let mut y = vec![0f32; x.len()];
    let mut rounds = 0;
    loop {
        let mut run = model
            .run_layer_out_of_core(&plan, &weights, 0, &x, &mut y)
            .unwrap();
        for _ in 0..9 {
            run.advance().unwrap();
        }
        rounds += 1;
        if run.is_done() {
            break;
        }
    }
    assert!(rounds > 2);
    assert_eq!(y, expected);
    let run = model.run_layer_out_of_core(&plan, &others, 0, &x, &mut y);
    let error = run.map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::OtherRun { what, .. } if what == "layer"),
        "{error}"
    );
}
