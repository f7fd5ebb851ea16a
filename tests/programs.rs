//! The example programs as people run them: closed pipes, full disks, names that are not UTF-8, files of other kinds. `cargo test`
//! builds them; alone, this target needs `cargo build --profile checks --examples` before.

#![cfg(unix)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::tensor::{Dtype, TensorView};

const PROGRAMS: [&str; 12] = [
    "attend_files",
    "bring_your_device",
    "conformance",
    "genome",
    "generate",
    "gigapath_encode",
    "own_device",
    "plan",
    "pool_report",
    "predict",
    "shader",
    "train_lm",
];

/// The example `name`, to be run.
fn program(name: &str) -> Command {
    // target/release/deps/programs-HASH is this test.
    let mut path = std::env::current_exe().expect("is known");
    path.pop();
    path.pop();
    path.extend(["examples", name]);
    assert!(
        path.exists(),
        "{}: cargo test builds it, or cargo build --examples",
        path.display()
    );
    let mut command = Command::new(path);
    // No test tells another how fast kernels are.
    command.env("DILATED_ATTENTION_CACHE", "off");
    command
}

/// Runs it with a standard output whose reader has gone.
fn unheard(mut command: Command) -> Output {
    let (reader, writer) = std::io::pipe().expect("opens");
    drop(reader);
    command.stdout(writer).stderr(Stdio::piped());
    command
        .spawn()
        .expect("starts")
        .wait_with_output()
        .expect("ends")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_quiet_success(name: &str, output: &Output) {
    let told = stderr(output);
    assert!(
        output.status.success() && !told.contains("panicked") && !told.contains("error"),
        "{name}: {:?} {told}",
        output.status
    );
}

/// A folder of a test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("programs-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("is made");
        Self(path)
    }

    fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it is the system's to remove.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn help_is_in_every_program_and_needs_no_reader() {
    for name in PROGRAMS.into_iter().chain(["quickstart"]) {
        let mut command = program(name);
        command.arg("--help");
        let output = command.output().expect("runs");
        is_quiet_success(name, &output);
        let text = String::from_utf8(output.stdout).expect("is UTF-8");
        assert!(text.len() > 100, "{name}: {text}");
        is_quiet_success(name, &unheard(command));
    }
    is_quiet_success("plan", &unheard(program("plan")));
}

/// No argument makes a program panic: names of files may be any bytes, and what must be text is an error.
#[test]
fn arguments_need_not_be_utf_8() {
    let strange = OsStr::from_bytes(b"no-\xff\xfe-text");
    for (name, arguments) in [
        ("bring_your_device", [strange].as_slice()),
        ("conformance", &[OsStr::new("--kernel"), strange]),
        ("generate", &[strange]),
        ("generate", &[OsStr::new("--seed"), strange]),
        ("gigapath_encode", &[strange, strange]),
        ("gigapath_encode", &[OsStr::new("--pool"), strange]),
        ("own_device", &[strange]),
        ("plan", &[strange]),
        ("plan", &[OsStr::new("--segments"), strange]),
        ("pool_report", &[OsStr::from_bytes(b"--\xff")]),
        ("quickstart", &[strange]),
        ("train_lm", &[OsStr::new("--data"), strange]),
        ("train_lm", &[OsStr::new("--rate"), strange]),
    ] {
        let output = program(name).args(arguments).output().expect("runs");
        let told = stderr(&output);
        let code = output.status.code();
        assert!(
            matches!(code, Some(1 | 2)) && told.starts_with("error: "),
            "{name}: {code:?} {told}"
        );
        assert!(!told.contains("panicked"), "{name}: {told}");
        let given = arguments.last().map(|argument| argument.display());
        assert!(
            told.contains(&given.expect("one").to_string()),
            "{name}: {told}"
        );
    }
    // Nor is such a name in the way of the work.
    let folder = Folder::new("names");
    let path = folder.file(strange);
    std::fs::write(
        &path,
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    )
    .expect("writes");
    let told = stderr(&program("generate").arg(&path).output().expect("runs"));
    assert!(
        told.contains("Git LFS pointer to a file of 12 bytes"),
        "{told}"
    );
}

/// What is wrong with an argument is said with the option, the value given and what it may be, and no work is begun.
#[test]
fn wrong_arguments_are_told_with_what_they_may_be() {
    for (name, arguments, words) in [
        (
            "quickstart",
            &["--tokens", "0"][..],
            &["--tokens", "0 is not in 1..="][..],
        ),
        (
            "quickstart",
            &["--token", "8"],
            &["'--token'", "similar", "'--tokens'"],
        ),
        (
            "plan",
            &["--heads", "many"],
            &["--heads", "'many'", "invalid digit"],
        ),
        (
            "plan",
            &["--binding-mib", "17592186044416"],
            &["--binding-mib", "0..=17592186044415"],
        ),
        ("plan", &["1000"], &["unexpected argument '1000'"]),
        (
            "train_lm",
            &["--batch", "0"],
            &["--batch", "0 is not in 1..="],
        ),
        ("train_lm", &["--rate"], &["--rate", "value is required"]),
        (
            "gigapath_encode",
            &["--random", "4", "--tile-size", "0"],
            &["--tile-size", "0 is not in 1..="],
        ),
        (
            "gigapath_encode",
            &["weights", "tiles", "--size", "wide"],
            &["'--size <NAME>'", "'[WEIGHTS]'"],
        ),
        (
            "gigapath_encode",
            &["--random", "4", "--pool", "max"],
            &["'max'", "--pool", "mean, cls"],
        ),
        ("gigapath_encode", &["weights"], &["<TILES>"]),
        ("conformance", &["."; 0], &["<PATH>"]),
        (
            "conformance",
            &["x", "--kernel", "fast"],
            &["'fast'", "--kernel", "tile, rows, broadcast"],
        ),
    ] {
        let output = program(name).args(arguments).output().expect("runs");
        let told = stderr(&output);
        let status = if name == "conformance" { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(status), "{name}: {told}");
        assert!(
            told.starts_with("error: ") && output.stdout.is_empty(),
            "{told}"
        );
        assert!(
            words.iter().all(|word| told.contains(word)),
            "{name}: {told}"
        );
    }
}

/// A checkpoint of one layer, 32 wide, for 8 features a tile, all names after `prefix`. The first element of a token is the sum
/// of the tile's features.
fn write_checkpoint(path: &Path, prefix: &str) {
    let (width, ffn, features) = (32, 48, 8);
    let layer = "encoder.layers.0.";
    let mut shapes = vec![
        ("cls_token".to_owned(), vec![1, 1, width]),
        ("patch_embed.proj.weight".to_owned(), vec![width, features]),
        ("patch_embed.proj.bias".to_owned(), vec![width]),
    ];
    let mut linear = |name: &str, rows: usize, columns: usize| {
        shapes.push((format!("{layer}{name}.weight"), vec![rows, columns]));
        shapes.push((format!("{layer}{name}.bias"), vec![rows]));
    };
    for name in ["k_proj", "v_proj", "q_proj", "out_proj"] {
        linear(&format!("self_attn.{name}"), width, width);
    }
    linear("ffn.fc1", ffn, width);
    linear("ffn.fc2", width, ffn);
    let mut norm = |name: &str, width: usize| {
        shapes.push((format!("{name}.weight"), vec![width]));
        shapes.push((format!("{name}.bias"), vec![width]));
    };
    for (name, width) in [
        ("self_attn.inner_attn_ln", width),
        ("self_attn_layer_norm", width),
        ("ffn.ffn_layernorm", ffn),
        ("final_layer_norm", width),
    ] {
        norm(&format!("{layer}{name}"), width);
    }
    norm("encoder.layer_norm", width);
    norm("norm", width);
    let value = |name: &str, index: usize| match name {
        "patch_embed.proj.weight" if index < features => 1.0,
        _ if name.ends_with("norm.weight") || name.ends_with("ln.weight") => 1.0,
        _ => ((index * 37 % 101) as f32 / 101.0 - 0.5) / 4.0,
    };
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product())
                .map(|index| value(&name, index))
                .collect();
            (format!("{prefix}{name}"), shape, values)
        })
        .collect();
    write(path, &tensors);
}

/// 40 tiles in a row; the features of tile 17 are this large.
fn write_tiles(path: &Path, large: f32) {
    let features = (0..40 * 8).map(|index| match index / 8 {
        17 => large,
        _ => (index % 13) as f32 / 13.0,
    });
    let coords = (0..40).flat_map(|tile| [tile as f32 * 256.0, 512.0]);
    write(
        path,
        &[
            ("features".to_owned(), vec![40, 8], features.collect()),
            ("coords".to_owned(), vec![40, 2], coords.collect()),
        ],
    );
}

fn write(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).expect("fits"),
        )
    });
    safetensors::serialize_to_file(views, None, path).expect("writes");
}

fn encode(weights: &Path, tiles: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = program("gigapath_encode");
    command
        .args([weights, tiles])
        .args(["--heads", "2"])
        .arg("--out")
        .arg(out)
        .args(options);
    command
}

/// The embedding in a file of results, 32 wide.
fn embedding(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("is saved");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("is whole");
    let tensor = file.tensor("embedding").expect("is there");
    let (values, _) = tensor.data().as_chunks::<4>();
    values
        .iter()
        .map(|value| f32::from_le_bytes(*value))
        .collect()
}

/// A slide is encoded and saved whatever becomes of standard output, from a checkpoint under a prefix.
#[test]
fn what_was_computed_is_saved_whoever_reads() {
    let folder = Folder::new("pipes");
    let (weights, tiles) = (
        folder.file("weights.safetensors"),
        folder.file("tiles.safetensors"),
    );
    write_checkpoint(&weights, "module._orig_mod.slide_encoder.");
    write_tiles(&tiles, 0.5);
    let out = folder.file(OsStr::from_bytes(b"\xffout.safetensors"));
    let output = encode(&weights, &tiles, &out, &[]).output().expect("runs");
    is_quiet_success("heard", &output);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("module._orig_mod.slide_encoder."), "{said}");
    assert!(
        said.contains("1 layers, 32 wide, feed-forward 48, 2 heads of 16, 8 features a tile"),
        "{said}"
    );
    let expected = embedding(&out);
    assert!(expected.iter().all(|value| value.is_finite()));

    let out = folder.file("closed.safetensors");
    is_quiet_success(
        "closed",
        &unheard(encode(
            &weights,
            &tiles,
            &out,
            &["--prefix", "module._orig_mod.slide_encoder"],
        )),
    );
    assert_eq!(embedding(&out), expected);

    // A disk that is full, where the system has one.
    if let Ok(full) = File::options().write(true).open("/dev/full") {
        let out = folder.file("full.safetensors");
        let output = encode(&weights, &tiles, &out, &[])
            .stdout(full)
            .output()
            .expect("runs");
        let told = stderr(&output);
        assert!(
            output.status.code() == Some(1) && told.starts_with("error: standard output failed"),
            "{told}"
        );
        assert_eq!(embedding(&out), expected);
    }

    // The prefix of another wrapper is named with the one that is there; heads that do not fit with the width.
    let refused = |options: &[&str]| {
        let output = encode(&weights, &tiles, &folder.file("refused.npy"), options)
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    };
    let told = refused(&["--prefix", "model."]);
    assert!(
        told.contains("under the prefix \"module._orig_mod.slide_encoder.\""),
        "{told}"
    );
    let told = refused(&["--heads", "3"]);
    assert!(told.contains("3 for a width of 32"), "{told}");
}

/// A tile that half precision cannot hold is named, before the run or after it, and nothing is saved but on request.
#[test]
fn what_is_not_finite_is_not_saved_unasked() {
    let folder = Folder::new("finite");
    let (weights, tiles) = (
        folder.file("weights.safetensors"),
        folder.file("tiles.safetensors"),
    );
    write_checkpoint(&weights, "");
    let out = folder.file("out.safetensors");
    let run = |options: &[&str]| {
        encode(&weights, &tiles, &out, options)
            .output()
            .expect("runs")
    };
    for (large, words) in [
        (7e4, ["tile 17", "more than half precision holds"]),
        // Finite, but the sum of eight is not.
        (
            6e4,
            [
                "tile 17 in the input of the first layer",
                "activations are f16",
            ],
        ),
    ] {
        write_tiles(&tiles, large);
        let output = run(&["--f16"]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
        assert!(!out.exists());
    }
    let output = run(&["--f16", "--allow-nonfinite"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("64 values of the two embeddings are not finite"),
        "{}",
        stderr(&output)
    );
    assert!(embedding(&out).iter().all(|value| value.is_nan()));
}

/// A training that diverges ends with the step; a checkpoint is written whoever reads; a model that is not finite writes nothing.
#[test]
fn what_is_not_finite_ends_training_and_writing() {
    let folder = Folder::new("training");
    let train = |rate: &str| {
        let mut command = program("train_lm");
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
        command.arg("--data").arg(data).arg("--out").arg(&folder.0);
        let sizes = "--layers 1 --heads 1 --head-dim 4 --ffn 8 --segments 16 --rates 1 --tokens 16 --batch 1 --steps 1";
        command
            .args(sizes.split(' '))
            .args(["--generate", "0", "--rate", rate]);
        command
    };
    let told = stderr(&train("1e30").output().expect("runs"));
    assert!(
        told.contains("the loss of the weights after step 1 is NaN"),
        "{told}"
    );

    // One step learns nothing, which is an error of its own after all is written.
    let output = unheard(train("1e-3"));
    let told = stderr(&output);
    assert!(
        output.status.code() == Some(1)
            && told.contains("do not beat")
            && !told.contains("panicked"),
        "{told}"
    );
    let path = folder.file("checkpoint.safetensors");
    let mut bytes = std::fs::read(&path).expect("is saved");
    let at = {
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("is whole");
        let tensor = file
            .tensor("weights.output_projection.weight")
            .expect("is there");
        tensor.data().as_ptr() as usize - bytes.as_ptr() as usize
    };
    is_quiet_success(
        "generate",
        &unheard({
            let mut command = program("generate");
            command.arg(&path).args(["--bytes", "2"]);
            command
        }),
    );
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("writes");
    let output = program("generate")
        .arg(&path)
        .args(["--bytes", "2"])
        .output()
        .expect("runs");
    let told = stderr(&output);
    assert!(
        output.status.code() == Some(1) && told.contains("the vector of logits holds NaN"),
        "{told}"
    );
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_kernel_can_be_printed_for_every_platform() {
    let list = program("shader").output().expect("runs");
    is_quiet_success("shader", &list);
    let list = stdout(&list);
    let kernels: Vec<(&str, bool)> = list
        .lines()
        .filter_map(|line| Some((line.split_whitespace().next()?, line.contains(" coop "))))
        .collect();
    assert!(kernels.len() > 30, "{list}");
    for (name, is_cooperative) in kernels {
        for (language, begins) in [
            ("wgsl", "enable "),
            ("spirv", "07230203"),
            ("msl", "// language: metal"),
            ("hlsl", "struct "),
        ] {
            let output = program("shader").args([name, "--to", language]).output();
            let output = output.expect("runs");
            if is_cooperative && language == "hlsl" {
                assert!(stderr(&output).contains("no HLSL"), "{}", stderr(&output));
                continue;
            }
            is_quiet_success(name, &output);
            let text = stdout(&output);
            assert!(text.starts_with(&format!("// {name}")), "{text}");
            let (_, shader) = text.split_once('\n').expect("has lines");
            match language {
                "wgsl" => assert!(shader.contains(&format!("fn {name}(")), "{shader}"),
                "spirv" | "msl" => assert!(shader.starts_with(begins), "{name}: {shader}"),
                _ => assert!(shader.contains(begins), "{name}: {shader}"),
            }
        }
    }
}

#[test]
fn shaders_that_are_not_there_are_errors() {
    for (arguments, told) in [
        (&["forward_til"][..], "without a name, all are listed"),
        (
            &["forward_tile", "--head-dim", "7"],
            "a multiple of 4 up to 256",
        ),
        (
            &["forward_coop", "--dtype", "f32"],
            "no kernel forward_coop",
        ),
        (
            &["fill", "--to", "glsl"],
            "[possible values: wgsl, spirv, msl, hlsl]",
        ),
        (
            &["reduce", "--field", "squares=maybe"],
            "reduce squares=true",
        ),
        (&["reduce", "--field", "squares"], "NAME=VALUE"),
    ] {
        let output = program("shader").args(arguments).output().expect("runs");
        assert!(!output.status.success());
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
}

#[test]
fn compiled_shaders_are_dumped_where_a_folder_is_named() {
    let folder = Folder::new("dump");
    let mut command = program("quickstart");
    command.env("DILATED_ATTENTION_SHADER_DUMP", folder.file("shaders"));
    is_quiet_success("quickstart", &command.output().expect("runs"));
    let files = std::fs::read_dir(folder.file("shaders")).expect("was made");
    let files: Vec<PathBuf> = files.map(|file| file.expect("is there").path()).collect();
    let of_forward = files.iter().find(|file| {
        let name = file.file_name().expect("is a file").to_string_lossy();
        name.starts_with("forward_") && name.ends_with(".wgsl")
    });
    let text = std::fs::read_to_string(of_forward.expect("was compiled")).expect("is text");
    assert!(text.contains("fn forward_"), "{text}");
}

/// Arrays of `tokens` tokens of one head of 16 in .npy files.
fn attention_inputs(folder: &Folder, tokens: usize) -> [PathBuf; 3] {
    [1u64, 2, 3].map(|seed| {
        let path = folder.file(format!("{seed}.npy"));
        let mut state = seed;
        let values: Vec<f32> = (0..tokens * 16)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        slide_files::write_npy(&path, &[tokens, 1, 16], &values).expect("is written");
        path
    })
}

fn attend(inputs: &[PathBuf; 3], out: &Path, more: &[&OsStr]) -> Command {
    let mut command = program("attend_files");
    command.args(inputs).arg(out);
    command.args([
        "--branches",
        "256/1",
        "2048/8",
        "32768/64",
        "--block",
        "500",
    ]);
    command.args(more);
    command
}

/// Killed at any time and begun again, a run writes what one does that is left alone.
#[test]
fn attention_over_files_goes_on_after_a_kill() {
    let folder = Folder::new("attend");
    let inputs = attention_inputs(&folder, 60_000);
    let whole = folder.file("whole.npy");
    let output = attend(&inputs, &whole, &[]).output().expect("runs");
    is_quiet_success("attend_files", &output);
    let (out, progress, scratch) = (
        folder.file("out.npy"),
        folder.file("progress"),
        folder.file("scratch"),
    );
    let more = [
        OsStr::new("--progress"),
        progress.as_os_str(),
        OsStr::new("--scratch"),
        scratch.as_os_str(),
    ];
    let (mut kills, mut done) = (0, false);
    // Each run gets a bit longer, so that in the end one comes through.
    for round in 0..60u64 {
        let mut child = attend(&inputs, &out, &more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        std::thread::sleep(std::time::Duration::from_millis(
            60 + 37 * round * round % 300,
        ));
        child.kill().expect("is sent");
        let ended = child.wait_with_output().expect("ends");
        match ended.status.code() {
            None => kills += 1,
            Some(_) => {
                is_quiet_success("attend_files", &ended);
                done = true;
                break;
            }
        }
        assert!(!out.exists() || !folder.file("out.npy.partial").exists());
        if out.exists() && !progress.exists() {
            // Killed when all was done.
            done = true;
            break;
        }
    }
    if !done {
        let output = attend(&inputs, &out, &more).output().expect("runs");
        is_quiet_success("attend_files", &output);
    }
    assert!(kills > 3, "{kills}");
    assert!(std::fs::read(&out).expect("is there") == std::fs::read(&whole).expect("is there"));
    let left = ["progress", "scratch", "out.npy.partial"].map(|name| folder.file(name).exists());
    assert_eq!(left, [false; 3]);
}

/// Inputs that changed, were cut off or are no arrays, and outputs that are there: each is told, and nothing is lost.
#[test]
fn attention_over_bad_files_is_an_error() {
    let folder = Folder::new("attend-bad");
    let inputs = attention_inputs(&folder, 3000);
    let out = folder.file("out.npy");
    let refused = |mut command: Command, words: &str| {
        let output = command.output().expect("runs");
        let told = stderr(&output);
        assert!(
            output.status.code() == Some(1) && told.contains(words) && !told.contains("panicked"),
            "{:?} {told}",
            output.status
        );
    };
    std::fs::write(&out, "precious").expect("is written");
    refused(attend(&inputs, &out, &[]), "exists");
    assert_eq!(std::fs::read(&out).expect("is there"), b"precious");
    std::fs::remove_file(&out).expect("is removed");
    let with = |q: PathBuf| [q, inputs[1].clone(), inputs[2].clone()];
    refused(
        attend(&with(folder.file("nobody.npy")), &out, &[]),
        "nobody.npy",
    );
    let text = folder.file("text.npy");
    std::fs::write(&text, "no array").expect("is written");
    refused(attend(&with(text), &out, &[]), "text.npy");
    let short = folder.file("short.npy");
    let bytes = std::fs::read(&inputs[0]).expect("is there");
    std::fs::write(&short, &bytes[..bytes.len() - 1]).expect("is written");
    refused(attend(&with(short), &out, &[]), "bytes");
    refused(
        attend(&inputs, &folder.file("none/out.npy"), &[]),
        "none/out.npy",
    );
    refused(
        attend(
            &inputs,
            &out,
            &[OsStr::new("--budget-mib"), OsStr::new("0")],
        ),
        "raise the budget",
    );
    assert!(!out.exists() && !folder.file("out.npy.partial").exists());
    // A run that was ended goes on with the same input alone.
    let progress = folder.file("progress");
    let more = [OsStr::new("--progress"), progress.as_os_str()];
    let mut child = attend(&inputs, &out, &more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    while !progress.exists() && child.try_wait().expect("is known").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().expect("is sent");
    child.wait().expect("ends");
    assert!(progress.exists(), "it was done too soon");
    std::fs::write(&inputs[1], std::fs::read(&inputs[2]).expect("is there")).expect("is written");
    refused(attend(&inputs, &out, &more), "another run: its k");
    assert!(folder.file("out.npy.partial").exists());
}
