//! Files that somebody cuts off, writes to or replaces while they are open. Each is an error that names the place, or does no harm.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dilated_attention::nn::Parameters;
use dilated_attention::weights::{WeightFile, WeightsError};
use dilated_attention::{Context, DeviceCaps, Error};
use testing::weight_files::{f32_bytes, file_with};

use super::{Directory, list, read};
use crate::support::contexts::contexts;
use crate::support::numbers::uniform;

/// Elements of each tensor: more than are uploaded at a time, in f32, and more than are widened at a time.
const COUNT: usize = (1 << 20) + 1000;

const SHAPE: [usize; 1] = [COUNT];

/// A file of three tensors `a`, `b`, `c`, of which the second is of halves, last changed long ago: some file systems know no better
/// than a few milliseconds when that was.
fn written(path: &Path) -> Vec<u8> {
    let single = f32_bytes(&uniform(1, COUNT));
    let half: Vec<u8> = single
        .chunks(4)
        .flat_map(|word| [word[2], word[3]])
        .collect();
    let bytes = file_with(&[
        ("a", "F32", &SHAPE, &single),
        ("b", "BF16", &SHAPE, &half),
        ("c", "F32", &SHAPE, &single),
    ]);
    std::fs::write(path, &bytes).expect("written");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = writable(path);
    file.set_modified(long_ago).expect("set");
    bytes
}

fn writable(path: &Path) -> File {
    let file = OpenOptions::new().write(true).open(path);
    file.expect("may be written to")
}

fn loaded(context: &Context, file: &WeightFile) -> dilated_attention::Result<Parameters> {
    let names = ["a", "b", "c"];
    let list = list(&names.map(|name| (name, &SHAPE[..])));
    file.all().load(context, &list)
}

fn changed<T: std::fmt::Debug>(result: Result<T, impl Into<Error>>) -> (String, u64, [u64; 2]) {
    match result.map_err(Into::into) {
        Err(Error::Weights(WeightsError::FileChanged {
            part,
            offset,
            given_bytes,
            expected_bytes,
            ..
        })) => (part, offset, [given_bytes, expected_bytes]),
        other => panic!("{other:?}"),
    }
}

fn dry_run() -> Context {
    Context::dry_run(DeviceCaps::webgpu_defaults())
}

/// Cut anywhere, it is an error that names the tensor, the place and both lengths, and nothing stays leased.
#[test]
fn a_file_that_is_cut_off_after_it_was_opened_is_an_error() {
    let directory = Directory::new("cut-off");
    let path = directory.file("w.safetensors");
    let bytes = written(&path).len() as u64;
    let data = bytes - 10 * COUNT as u64;
    let context = dry_run();
    let cuts = [
        // In the header: the first read of all fails.
        (4, "tensor \"a\"", data),
        // In the second piece of the first tensor.
        (data + (4 << 20) + 100, "tensor \"a\"", data),
        // At the last byte: also the first tensor is read from another file than was opened.
        (bytes - 1, "tensor \"a\"", data),
        (0, "tensor \"a\"", data),
    ];
    for (cut, part, offset) in cuts {
        written(&path);
        let file = WeightFile::open(&path).expect("valid");
        writable(&path).set_len(cut).expect("cut off");
        for check_finite in [false, true] {
            context.set_check_finite(check_finite);
            let error = loaded(&context, &file).expect_err("is cut off");
            let text = error.to_string();
            assert_eq!(
                changed(Err::<(), _>(error)),
                (part.to_owned(), offset, [cut, bytes]),
                "cut at {cut}"
            );
            for told in [
                path.display().to_string(),
                format!("{cut} bytes, {bytes} then"),
                format!("byte {offset}"),
                "open it again".to_owned(),
            ] {
                assert!(text.contains(&told), "{text}");
            }
            assert_eq!(context.pool().stats().leases.current, 0);
        }
        let last = file.get("c").expect("in the header");
        assert_eq!(changed(last.to_f32(COUNT - 1..COUNT)).1, bytes - 4);
        assert_eq!(changed(last.to_bytes(0..4)).0, "tensor \"c\"");
        // Opened again, it is no such file.
        let again = WeightFile::open(&path);
        assert!(
            matches!(again, Err(WeightsError::InvalidFile { .. })),
            "{again:?}"
        );
    }
}

/// Another thread cuts the file off while it is loaded, again and again: each load is right or that error.
#[test]
fn a_file_that_is_cut_off_while_it_is_loaded_is_an_error() {
    let directory = Directory::new("cut-off-meanwhile");
    let path = directory.file("w.safetensors");
    for (limits, context) in contexts() {
        written(&path);
        let file = WeightFile::open(&path).expect("valid");
        let (stop, cut) = std::sync::mpsc::channel::<()>();
        let shortened = path.clone();
        let cutter = std::thread::spawn(move || {
            cut.recv().expect("loading");
            writable(&shortened).set_len(100).expect("cut off");
        });
        // Loads until the file is short; no load may be wrong in another way.
        let mut stop = Some(stop);
        loop {
            match loaded(&context, &file) {
                Ok(weights) => {
                    drop(weights);
                    if let Some(stop) = stop.take() {
                        stop.send(()).expect("waits for it");
                    }
                }
                error => {
                    let (_, _, [given_bytes, _]) = changed(error);
                    assert_eq!(given_bytes, 100, "{limits}");
                    break;
                }
            }
        }
        cutter.join().expect("has cut");
        context.wait().expect("waits");
        let stats = context.pool().stats();
        assert_eq!(stats.leases.current, 0);
        assert!(stats.identities_hold(), "{stats}");
    }
}

#[test]
fn a_file_that_is_written_to_after_it_was_opened_is_an_error() {
    let directory = Directory::new("written-to");
    let path = directory.file("w.safetensors");
    let context = dry_run();
    let len = written(&path).len() as u64;
    // Other elements of the same number, more bytes, fewer: all without a new file.
    type Change = fn(&mut File);
    let changes: [(Change, u64); 3] = [
        (
            |file| {
                file.seek(SeekFrom::End(-100)).expect("is as long");
                file.write_all(&[0x7f; 100]).expect("writes");
            },
            len,
        ),
        (
            |file| {
                file.seek(SeekFrom::End(0)).expect("has an end");
                file.write_all(b"more").expect("writes");
            },
            len + 4,
        ),
        (|file| file.set_len(1000).expect("cuts"), 1000),
    ];
    for (change, now) in changes {
        written(&path);
        let file = WeightFile::open(&path).expect("valid");
        drop(loaded(&context, &file).expect("loads"));
        change(&mut writable(&path));
        let (_, _, lengths) = changed(loaded(&context, &file));
        assert_eq!(lengths, [now, len]);
        assert_eq!(
            changed(file.get("a").expect("there").to_f32(0..1)).2[0],
            now
        );
    }
}

/// A new file in its place is another one.
#[test]
#[cfg(unix)]
fn a_file_that_is_replaced_is_still_read() {
    let directory = Directory::new("replaced");
    let path = directory.file("w.safetensors");
    written(&path);
    let (_, context) = &contexts()[0];
    let file = WeightFile::open(&path).expect("valid");
    let before = loaded(context, &file).expect("loads");
    let before = read(context, &before).expect("reads");
    std::fs::write(directory.file("new"), b"another").expect("written");
    std::fs::rename(directory.file("new"), &path).expect("replaced");
    let after = loaded(context, &file).expect("loads");
    assert!(read(context, &after).expect("reads") == before);
    std::fs::remove_file(&path).expect("removed");
    let after = loaded(context, &file).expect("loads");
    assert!(read(context, &after).expect("reads") == before);
    assert!(before[0] == uniform(1, COUNT) && before[2] == before[0]);
}

/// Threads share the handle: each reads where it says, not where another left off.
#[test]
fn many_threads_read_one_file() {
    let directory = Directory::new("threads");
    let path = directory.file("w.safetensors");
    written(&path);
    let file = WeightFile::open(&path).expect("valid");
    let expected = uniform(1, COUNT);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (file, expected) = (&file, &expected);
            scope.spawn(move || {
                for piece in 0..50 {
                    let first = (thread * 7919 + piece * 15013) % (COUNT - 1000);
                    for name in ["a", "c"] {
                        let tensor = file.get(name).expect("there");
                        let given = tensor.to_f32(first..first + 1000).expect("reads");
                        assert!(given == expected[first..first + 1000]);
                    }
                }
            });
        }
    });
}

/// What the host holds of a file does not grow with it.
#[test]
fn loading_holds_a_piece_of_the_file() {
    use testing::counting_allocator::bytes_allocated_by_this_thread;
    let directory = Directory::new("bounded");
    let path = directory.file("w.safetensors");
    let bytes = written(&path).len() as u64;
    let context = dry_run();
    let load = || {
        let before = bytes_allocated_by_this_thread();
        let file = WeightFile::open(&path).expect("valid");
        let opened = bytes_allocated_by_this_thread() - before;
        drop(loaded(&context, &file).expect("loads"));
        (opened, bytes_allocated_by_this_thread() - before)
    };
    load();
    let (opened, all) = load();
    assert!(opened < 8192, "{opened} bytes to open");
    // The piece of 4 MiB, and little else.
    assert!(all < (4 << 20) + (1 << 19), "{all} bytes of {bytes}");
}
