//! Malformed, truncated and hostile files, and unusual ones that are read. The crate `testing` reads any bytes, and compares with the
//! safetensors crate.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use half::{bf16, f16};

use crate::context::Context;
use crate::device::DeviceCaps;
use crate::error::{Duplicate, FoundPrefix, Misshapen, Mistyped, WeightsMismatch};
use crate::nn::{Init, ParameterList, Parameters};
use crate::weights::new_header::NewHeader;
use crate::weights::{StoredType, WeightFile, WeightSource, WeightWriter, WeightsError};
use crate::{Error, Result};

/// A file with the JSON `json` and these bytes after it.
fn file_of(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
}

/// The JSON of one tensor.
fn tensor(name: &str, stored_type: &str, shape: &[usize], range: [usize; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{stored_type}","shape":{shape:?},"data_offsets":{range:?}}}"#)
}

/// What is wrong with a file.
fn refusal(bytes: Vec<u8>) -> String {
    match WeightFile::from_bytes(bytes) {
        Err(WeightsError::InvalidFile { file, reason }) => {
            assert_eq!(file, "given bytes");
            assert!(reason.len() < 4096, "{} bytes", reason.len());
            reason
        }
        Err(error) => panic!("{error}"),
        Ok(file) => panic!("accepted: {file:?}"),
    }
}

fn small_file() -> Vec<u8> {
    let json = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}"#,
        tensor("a", "F32", &[2, 2], [0, 16]),
        tensor("b", "F16", &[3], [16, 22]),
        tensor("c", "I64", &[], [22, 30]),
    );
    file_of(&json, &(0..30).collect::<Vec<u8>>())
}

/// What people name by mistake is said, with what to do; a damaged file of safetensors stays one.
#[test]
fn what_is_another_kind_of_file_is_named() {
    let zip = |name: &str| {
        let mut bytes = b"PK\x03\x04".to_vec();
        bytes.resize(26, 0);
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(name.as_bytes());
        bytes
    };
    let pointer =
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 346169432\n";
    let cases: [(&[u8], &[&str]); 16] = [
        (b"", &["empty"]),
        (
            pointer,
            &["Git LFS pointer", "346169432 bytes", "git lfs pull"],
        ),
        (
            b"\n<!DOCTYPE html>\n<html lang=\"en\">",
            &["HTML", "log in"],
        ),
        (b"<html><body>", &["HTML"]),
        (b"<?xml version=\"1.0\"?><Error>", &["XML"]),
        (b"{\"error\":\"Access to model is restricted\"}", &["JSON"]),
        (
            b"{\"metadata\": {}, \"weight_map\": {}}",
            &["index of a model in several files"],
        ),
        (
            b"Invalid credentials in Authorization header",
            &["text that begins with", "Invalid credentials"],
        ),
        (
            &zip("archive/data.pkl"),
            &["torch.save", "safetensors.torch.save_file"],
        ),
        (
            &zip("features.npy"),
            &[".npz", "safetensors.numpy.save_file"],
        ),
        (
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
            &["pickle", "safetensors.torch.save_file"],
        ),
        (b"\x80\x04\x95\x0f\0\0\0\0\0\0\0}", &["pickle"]),
        (b"\x89HDF\r\n\x1a\n\0\0\0", &["HDF5"]),
        (b"GGUF\x03\0\0\0\0\0", &["GGUF"]),
        (b"\x93NUMPY\x01\0v\0{'descr'", &["NumPy"]),
        // Its first eight bytes would be a length that a file could have.
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", &["gzip"]),
    ];
    for (bytes, words) in cases {
        let told = refusal(bytes.to_vec());
        for word in words {
            assert!(told.contains(word), "{told}");
        }
    }
    // A name of more than 255 bytes, and more behind it; a character that is cut off.
    let mut long = zip(&format!("{}.npy", "n".repeat(300)));
    long.extend([b'x'; 100]);
    assert!(refusal(long).contains(".npz"));
    let text = "a".repeat(511) + "\u{e9}";
    assert!(refusal(text.into_bytes()).contains("text that begins with"));
    assert!(!refusal(b"not text: \xff\xfe, and more".to_vec()).contains("text that"));
    // A length of 0x0280 is how a pickle begins, too.
    let told = refusal(file_of(&format!("{{{}", " ".repeat(0x0280 - 1)), &[]));
    assert!(told.contains("EOF"), "{told}");
    let mut cut_off = small_file();
    cut_off.truncate(cut_off.len() - 10);
    let told = refusal(cut_off);
    assert!(
        told.contains("of 30 bytes of data 20 are here") && told.contains("download"),
        "{told}"
    );
}

#[test]
fn what_is_malformed_is_told() {
    let json = |text: &str, data_bytes: usize| file_of(text, &vec![0; data_bytes]);
    let one = |shape: &str, stored_type: &str, offsets: &str, data_bytes: usize| {
        let text = format!(
            r#"{{"a":{{"dtype":"{stored_type}","shape":{shape},"data_offsets":{offsets}}}}}"#
        );
        file_of(&text, &vec![0; data_bytes])
    };
    let entries = |entries: &[String], data_bytes: usize| {
        file_of(&format!("{{{}}}", entries.join(",")), &vec![0; data_bytes])
    };
    let f32s = |name: &str, count: usize, range| tensor(name, "F32", &[count], range);
    let max = u64::MAX;
    // Eight tensors that end just below 2^64: the length of the file overflows if it is added to that.
    let huge: Vec<String> = (0..8u64)
        .map(|i| {
            let size = u64::MAX / 8;
            let (from, to) = (i * size, (i + 1) * size);
            format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{from},{to}]}}"#)
        })
        .collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("it is empty", vec![]),
        ("it has 7 bytes", vec![0; 7]),
        ("100000000 are allowed", [0xff; 64].to_vec()),
        (
            "100000000 are allowed",
            100_000_001u64.to_le_bytes().to_vec(),
        ),
        ("of which 0 are here", 100_000_000u64.to_le_bytes().to_vec()),
        ("does not begin with '{'", 0u64.to_le_bytes().to_vec()),
        (
            "not UTF-8",
            [&4u64.to_le_bytes()[..], b"{\xff\xfe}"].concat(),
        ),
        ("does not begin with '{'", json("[]", 0)),
        ("does not begin with '{'", json(" {}", 0)),
        ("EOF", json("{", 0)),
        ("trailing characters", json("{} x", 0)),
        (
            "EOF while parsing a list",
            json(&format!(r#"{{"a":{{"x":{}"#, "[".repeat(9999)), 0),
        ),
        ("invalid type", json(r#"{"a":5}"#, 0)),
        ("invalid type", json(r#"{"__metadata__":{"a":5}}"#, 0)),
        (
            "expected an object of strings",
            json(r#"{"__metadata__":[]}"#, 0),
        ),
        (
            "metadata twice",
            json(r#"{"__metadata__":null,"__metadata__":{}}"#, 0),
        ),
        (
            "\"k\" twice",
            json(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0),
        ),
        (
            "missing field `dtype`",
            json(r#"{"a":{"shape":[],"data_offsets":[0,0]}}"#, 0),
        ),
        (
            "missing field `shape`",
            json(r#"{"a":{"dtype":"F32","data_offsets":[0,0]}}"#, 0),
        ),
        (
            "missing field `data_offsets`",
            json(r#"{"a":{"dtype":"F32","shape":[]}}"#, 0),
        ),
        ("no type of the format", one("[1]", "F31", "[0,4]", 4)),
        ("no type of the format", one("[1]", "f32", "[0,4]", 4)),
        ("invalid value", one("[-1]", "F32", "[0,4]", 4)),
        ("invalid type", one("[1.0]", "F32", "[0,4]", 4)),
        (
            "expected an array of dimensions",
            one("5", "F32", "[0,4]", 4),
        ),
        ("number out of range", one("[1e999]", "F32", "[0,4]", 4)),
        ("invalid length", one("[1]", "F32", "[4]", 4)),
        ("trailing characters", one("[1]", "F32", "[0,4,4]", 4)),
        (
            "more than 64 dimensions",
            one(&format!("{:?}", [1; 65]), "F32", "[0,4]", 4),
        ),
        ("which are not its 4 bytes", one("[2]", "F32", "[0,4]", 4)),
        ("which are not its 4 bytes", one("[1]", "F16", "[0,4]", 4)),
        ("which are not its 0 bytes", one("[1]", "F32", "[0,0]", 0)),
        // No whole byte.
        ("which are not its 1 bytes", one("[1]", "F4", "[0,1]", 1)),
        // Products of more than 64 bits, and one that is 0 after wrapping.
        (
            "which are not its 4 bytes",
            one(&format!("[{max},{max}]"), "F32", "[0,4]", 4),
        ),
        (
            "which are not its 4 bytes",
            one(&format!("[{max}]"), "F32", "[0,4]", 4),
        ),
        (
            "which are not its 0 bytes",
            one("[4294967296,4294967296]", "F32", "[0,0]", 0),
        ),
        (
            "data 4 are here: the file was cut off",
            one("[2]", "F32", "[0,8]", 4),
        ),
        (
            "data 4 are here: the file was cut off",
            one("[1]", "F32", &format!("[{},{max}]", max - 4), 4),
        ),
        ("the file was cut off", entries(&huge, 0)),
        (
            "ends before it begins",
            entries(&[f32s("a", 1, [0, 4]), f32s("b", 1, [4, 0])], 4),
        ),
        ("leaves a gap", one("[1]", "F32", "[4,8]", 8)),
        (
            "leaves a gap",
            entries(&[f32s("a", 1, [0, 4]), f32s("b", 1, [5, 9])], 9),
        ),
        (
            "overlaps",
            entries(&[f32s("a", 2, [0, 8]), f32s("b", 1, [4, 8])], 8),
        ),
        (
            "overlaps",
            entries(&[f32s("a", 1, [0, 4]), f32s("b", 1, [0, 4])], 4),
        ),
        ("1 bytes at its end", one("[1]", "F32", "[0,4]", 5)),
        ("4 bytes at its end", json("{}", 4)),
        (
            "two tensors are called \"a\"",
            entries(&[f32s("a", 1, [0, 4]), f32s("a", 1, [4, 8])], 8),
        ),
        (
            "two tensors are called \"\\n\"",
            entries(&[f32s("\\n", 0, [0, 0]), f32s("\\u000a", 0, [0, 0])], 0),
        ),
    ];
    for (expected, bytes) in cases {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let reason = refusal(bytes);
        assert!(
            reason.contains(expected),
            "{reason}\nnot: {expected}\n{text}"
        );
    }
}

#[test]
fn what_is_unusual_is_read() {
    let names = |bytes| {
        let file = WeightFile::from_bytes(bytes).expect("valid");
        file.names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(small_file()), ["a", "b", "c"]);
    // Nothing at all, spaces after it, no metadata, tensors without elements, any order of entries, odd beginnings.
    for json in ["{}", "{}     ", r#"{"__metadata__":null}"#] {
        assert!(names(file_of(json, &[])).is_empty());
    }
    let empty = tensor("e", "F32", &[5, 0, 3], [1, 1]);
    let (odd, first) = (
        tensor("odd", "F32", &[2], [1, 9]),
        tensor("f", "U8", &[1], [0, 1]),
    );
    let data = [&[7u8][..], &1.5f32.to_le_bytes(), &(-2.5f32).to_le_bytes()].concat();
    let bytes = file_of(&format!("{{{odd},{empty},{first}}}"), &data);
    let file = WeightFile::from_bytes(bytes).expect("valid");
    assert_eq!(file.names().collect::<Vec<_>>(), ["f", "e", "odd"]);
    let odd = file.get("odd").expect("there");
    assert_eq!(odd.stored_type(), StoredType::F32);
    assert_eq!(odd.to_f32(0..2).expect("reads"), [1.5, -2.5]);
    assert_eq!(odd.to_f32(1..2).expect("reads"), [-2.5]);
    assert!(odd.to_f32(2..2).expect("reads").is_empty());
    #[expect(clippy::reversed_empty_ranges, reason = "to be refused")]
    let reversed = odd.to_f32(2..1);
    assert!(matches!(reversed, Err(WeightsError::RangeOutside { .. })));
    assert_eq!(
        odd.to_f32(0..3).expect_err("has two").to_string(),
        "elements 0..3 of tensor odd were asked for; it has 2: ask for a range within 0..2"
    );
    assert_eq!(odd.to_bytes(1..5).expect("reads"), data[2..6]);
    assert!(matches!(
        odd.to_bytes(0..9),
        Err(WeightsError::RangeOutside { limit: 8, .. })
    ));
    assert_eq!(file.get("e").expect("there").shape(), [5, 0, 3]);
    let first = file.get("f").expect("there");
    assert_eq!(first.to_bytes(0..1).expect("reads"), [7]);
    assert!(matches!(
        first.to_f32(0..1),
        Err(WeightsError::WrongStoredType {
            given: StoredType::Other("U8"),
            ..
        })
    ));
    assert!(file.get("of").is_none());
}

/// A directory of a test's own, which goes with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("dilated-attention-files-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("made");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn paths_that_are_no_files_are_errors() {
    let directory = Directory::new();
    let refused = |path: PathBuf| match WeightFile::open(&path) {
        Err(WeightsError::File {
            path: told,
            action,
            reason,
        }) => {
            assert_eq!((told, action), (path, "opened"));
            reason
        }
        other => panic!("{other:?}"),
    };
    refused(directory.file("missing"));
    refused(directory.file("missing/missing"));
    assert!(refused(directory.0.clone()).contains("no regular file"));
    // A pipe, or a device: opening it could wait for ever, reading it never end.
    #[cfg(unix)]
    assert!(refused("/dev/zero".into()).contains("no regular file"));
    std::fs::write(directory.file("empty"), b"").expect("written");
    let opened = WeightFile::open(directory.file("empty"));
    let Err(error @ WeightsError::InvalidFile { .. }) = opened else {
        panic!("{opened:?}");
    };
    assert!(
        error
            .to_string()
            .contains("empty is no valid safetensors file: it is empty")
    );
    std::fs::write(directory.file("small"), small_file()).expect("written");
    let file = WeightFile::open(directory.file("small")).expect("valid");
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(
        file.get("a").expect("there").to_bytes(0..16),
        Ok((0..16).collect::<Vec<u8>>())
    );
}

#[test]
fn a_long_name_is_not_told_in_full() {
    let name = "n".repeat(100_000);
    let reason = refusal(file_of(
        &format!("{{{}}}", tensor(&name, "F32", &[1], [0, 5])),
        &[0; 5],
    ));
    assert!(reason.len() < 1000, "{} bytes", reason.len());
    let reason = refusal(file_of(&format!(r#"{{"{name}":"{name}"}}"#), &[]));
    assert!(reason.len() < 1000, "{} bytes", reason.len());
}

/// A file with f32 tensors of these names, one element each.
fn named(names: &[&str]) -> WeightFile {
    let entries: Vec<String> = (0..)
        .zip(names)
        .map(|(i, name)| tensor(name, "F32", &[1], [4 * i, 4 * i + 4]))
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    WeightFile::from_bytes(file_of(&json, &vec![0; 4 * names.len()])).expect("valid")
}

fn list(specs: &[(&str, &[usize])]) -> Arc<ParameterList> {
    let mut list = ParameterList::new();
    for (name, shape) in specs {
        list.add((*name).to_owned(), shape, Init::Zeros);
    }
    Arc::new(list)
}

fn mismatch<T>(result: std::result::Result<T, WeightsError>) -> WeightsMismatch {
    match result {
        Err(WeightsError::Mismatch(mismatch)) => *mismatch,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted"),
    }
}

fn found(prefix: &str, found: usize, of: usize) -> FoundPrefix {
    FoundPrefix {
        prefix: prefix.to_owned(),
        found,
        of,
    }
}

#[test]
fn a_part_is_found_by_its_prefix_or_by_a_name() {
    let file = named(&["module.a", "module.b", "b"]);
    let names = |source: WeightSource<'_>| {
        let names = source
            .tensors()
            .map(|(name, tensor)| (name.into_owned(), tensor.name().to_owned()));
        names.collect::<Vec<_>>()
    };
    let pairs = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        pairs.collect::<Vec<_>>()
    };
    let module = [("a", "module.a"), ("b", "module.b")];
    assert_eq!(names(file.part("module.")), pairs(&module));
    let with_a = file.part_with("a").expect("there once");
    assert_eq!(with_a.prefix(), "module.");
    assert_eq!(names(with_a), pairs(&module));
    assert_eq!(file.part_with("module.b").expect("there once").prefix(), "");
    let all = ["module.a", "module.b", "b"].map(str::to_owned);
    let expected = |missing: &str, unknown: &[String], prefixes| WeightsMismatch {
        file: "given bytes".to_owned(),
        missing: vec![missing.to_owned()],
        unknown: unknown.to_vec(),
        prefixes,
        ..Default::default()
    };
    let twice = vec![found("module.", 1, 1), found("", 1, 1)];
    assert_eq!(mismatch(file.part_with("b")), expected("b", &all, twice));
    // A prefix ends with a dot.
    assert_eq!(
        mismatch(file.part_with("le.a")),
        expected("le.a", &all, vec![])
    );
    let elsewhere = vec![found("module.", 1, 1)];
    assert_eq!(
        mismatch(file.all().tensor("a")),
        expected("a", &[], elsewhere)
    );
    assert_eq!(file.all().tensor("b").expect("there").name(), "b");
    // Renamed one after the other, or left out.
    let upper = || {
        let part = file.part("module.");
        part.with_rename(|name| (name != "b").then(|| name.to_uppercase()))
    };
    assert_eq!(names(upper()), pairs(&[("A", "module.a")]));
    let longer = upper().with_rename(|name| Some(format!("{name}1")));
    assert_eq!(names(longer), pairs(&[("A1", "module.a")]));
    for (told, words) in [
        (format!("{file:?}"), ["given bytes", "3"]),
        (
            format!("{:?}", file.part("module.")),
            ["given bytes", "module."],
        ),
        (format!("{:?}", file.get("b")), ["\"b\"", "F32"]),
    ] {
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    }
}

#[test]
fn all_differences_from_a_list_are_told_at_once() {
    let json = [
        tensor("a", "F32", &[4], [0, 16]),
        tensor("b", "I32", &[1], [16, 20]),
        tensor("c1", "F32", &[1], [20, 24]),
        tensor("c2", "F32", &[1], [24, 28]),
        tensor("x", "F32", &[1], [28, 32]),
    ];
    let bytes = file_of(&format!("{{{}}}", json.join(",")), &[0; 32]);
    let file = WeightFile::from_bytes(bytes).expect("valid");
    let source = file.all().with_rename(|name| {
        let renamed = if name.starts_with('c') { "c" } else { name };
        Some(renamed.to_owned())
    });
    let strings = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let expected = WeightsMismatch {
        file: "given bytes".to_owned(),
        missing: strings(&["d"]),
        unknown: strings(&["x"]),
        misshapen: vec![Misshapen {
            name: "a".to_owned(),
            given: vec![4],
            need: vec![2, 2],
        }],
        mistyped: vec![Mistyped {
            name: "b".to_owned(),
            given: StoredType::Other("I32"),
        }],
        duplicate: vec![Duplicate {
            parameter: "c".to_owned(),
            names: strings(&["c1", "c2"]),
        }],
        ..Default::default()
    };
    let wanted = list(&[("a", &[2, 2]), ("b", &[1]), ("c", &[1]), ("d", &[1])]);
    assert_eq!(mismatch(source.check(&wanted)), expected);
    let fitting = list(&[("x", &[1]), ("c2", &[1])]);
    let two = |name: &str| ["x", "c2"].contains(&name).then(|| name.to_owned());
    file.all().with_rename(two).check(&fitting).expect("fits");
    // With less than half of the names, another prefix may be meant: one that has more.
    let four = list(&[("a", &[1]), ("b", &[1]), ("c", &[1]), ("d", &[1])]);
    let other = named(&["m.a", "m.b", "m.c", "k.l.a", "k.l.b", "o.c", "d"]);
    assert_eq!(
        mismatch(other.all().check(&four)).prefixes,
        [found("m.", 3, 4), found("k.l.", 2, 4)]
    );
    let two = list(&[("a", &[1]), ("b", &[1])]);
    assert_eq!(
        mismatch(named(&["m.a", "m.b"]).all().check(&two)).prefixes,
        [found("m.", 2, 2)]
    );
    let half = named(&["a", "b", "m.a", "m.b", "m.c"]);
    assert_eq!(mismatch(half.all().check(&four)).prefixes, []);
}

#[test]
fn halves_are_widened_in_any_range() {
    // More than are read at a time.
    let count = 70_000;
    let value = |i: usize| (i % 251) as f32;
    let f16s: Vec<u8> = (0..count)
        .flat_map(|i| f16::from_f32(value(i)).to_le_bytes())
        .collect();
    let bf16s: Vec<u8> = (0..count)
        .flat_map(|i| bf16::from_f32(value(i)).to_le_bytes())
        .collect();
    for (stored_type, data) in [("F16", f16s), ("BF16", bf16s)] {
        let json = format!("{{{}}}", tensor("h", stored_type, &[count], [0, 2 * count]));
        let file = WeightFile::from_bytes(file_of(&json, &data)).expect("valid");
        let tensor = file.get("h").expect("there");
        for range in [0..count, 1..count - 1, 32_767..32_770, 5..6, 7..7] {
            let expected: Vec<f32> = range.clone().map(value).collect();
            assert_eq!(tensor.to_f32(range).expect("reads"), expected);
        }
    }
}

#[test]
fn values_are_rounded_to_what_is_stored() {
    let narrowed = |stored_type: StoredType, values: &[f32]| {
        let mut bytes = vec![9];
        let lost = stored_type.narrow(values, &mut bytes);
        (lost, bytes)
    };
    let values = [1.0, -2.5];
    let f32s = [
        vec![9],
        1f32.to_le_bytes().to_vec(),
        (-2.5f32).to_le_bytes().to_vec(),
    ]
    .concat();
    assert_eq!(narrowed(StoredType::F32, &values), (None, f32s));
    assert_eq!(
        narrowed(StoredType::F16, &values),
        (None, vec![9, 0, 0x3c, 0, 0xc1])
    );
    assert_eq!(
        narrowed(StoredType::Bf16, &values),
        (None, vec![9, 0x80, 0x3f, 0x20, 0xc0])
    );
    // What is infinite stays so; what becomes it is told. 65504 is the largest f16, and 65520 lies halfway to the next.
    for stored_type in [StoredType::F16, StoredType::Bf16] {
        let infinite = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65_504.0];
        assert_eq!(narrowed(stored_type, &infinite).0, None);
        assert_eq!(
            narrowed(stored_type, &[1.0, -f32::MAX, f32::MAX]).0,
            Some(-f32::MAX)
        );
    }
    assert_eq!(narrowed(StoredType::F16, &[65_519.0]).0, None);
    assert_eq!(narrowed(StoredType::F16, &[65_520.0]).0, Some(65_520.0));
    let accepted = [
        StoredType::F32,
        StoredType::F16,
        StoredType::Bf16,
        StoredType::Other("U8"),
    ];
    assert_eq!(
        accepted.map(StoredType::is_accepted),
        [true, true, true, false]
    );
}

#[test]
fn elements_that_are_not_finite_are_looked_for_if_asked() {
    // The last of more than are read at a time.
    let count = (1 << 20) + 3;
    let json = format!("{{{}}}", tensor("w", "F16", &[count], [0, 2 * count]));
    let file = |last: f16| {
        let mut data = vec![0; 2 * count];
        data[2 * count - 2..].copy_from_slice(&last.to_le_bytes());
        WeightFile::from_bytes(file_of(&json, &data)).expect("valid")
    };
    let wanted = list(&[("w", &[count])]);
    let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    for asked in [false, true] {
        context.set_check_finite(asked);
        file(f16::MAX)
            .all()
            .load(&context, &wanted)
            .expect("finite");
        for last in [f16::NAN, f16::INFINITY] {
            let loaded = file(last).all().load(&context, &wanted);
            match loaded {
                Ok(_) => assert!(!asked),
                Err(Error::Weights(error)) => {
                    assert!(asked);
                    assert_eq!(mismatch::<()>(Err(error)).not_finite, ["w"]);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_file_that_is_written_to_later_is_noticed() {
    let path =
        std::env::temp_dir().join(format!("dilated-attention-changed-{}", std::process::id()));
    let bytes = small_file();
    let before = bytes.len() as u64;
    let changed = |change: &dyn Fn(&mut std::fs::File)| {
        std::fs::write(&path, &bytes).expect("written");
        let file = WeightFile::open(&path).expect("valid");
        change(
            &mut std::fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .expect("opens"),
        );
        // Two bytes into the tensor behind 16 others, of 30 at the end.
        match file.get("b").expect("there").to_bytes(2..6) {
            Err(WeightsError::FileChanged {
                offset,
                given_bytes,
                expected_bytes,
                ..
            }) => {
                assert_eq!((offset, expected_bytes), (before - 30 + 16 + 2, before));
                given_bytes
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        changed(&|file| file.write_all(b"more").expect("written")),
        before + 4
    );
    assert_eq!(
        changed(&|file| file.set_len(before - 12).expect("cut")),
        before - 12
    );
    std::fs::remove_file(&path).expect("is there");
}

#[test]
fn headers_that_are_written_are_those_of_the_format() {
    let written = |metadata: &[(&str, &str)]| {
        let metadata: BTreeMap<_, _> = metadata
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let header = NewHeader {
            metadata: &metadata,
            stored_type: StoredType::Bf16,
            tensors: vec![
                ("w".to_owned(), &[2, 3], [0, 12]),
                ("v".to_owned(), &[], [12, 14]),
            ],
        };
        header.to_bytes().expect("writes")
    };
    let entries = r#""w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"v":{"dtype":"BF16","shape":[],"data_offsets":[12,14]}}"#;
    for (metadata, begin) in [
        (&[][..], "{"),
        (&[("k", "1")], r#"{"__metadata__":{"k":"1"},"#),
    ] {
        let bytes = written(metadata);
        // Spaces fill it up to a multiple of 8.
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(bytes[..8], (bytes.len() as u64 - 8).to_le_bytes());
        let json = std::str::from_utf8(&bytes[8..]).expect("JSON");
        assert_eq!(json.trim_end_matches(' '), format!("{begin}{entries}"));
        assert!(json.len() - json.trim_end().len() < 8);
    }
}

#[test]
fn what_no_reader_could_tell_apart_is_not_written() {
    let context = Context::dry_run(DeviceCaps::webgpu_defaults());
    let bytes = |writer: &WeightWriter<'_>| pollster::block_on(writer.to_bytes(&context));
    let writer = || {
        WeightWriter::new()
            .with_metadata("k", "0")
            .with_metadata("k", "1")
    };
    let file = WeightFile::from_bytes(bytes(&writer()).expect("nothing is a file, too"));
    let file = file.expect("valid");
    assert_eq!(
        file.metadata(),
        &BTreeMap::from([("k".to_owned(), "1".to_owned())])
    );
    let parameters = |name: &str| -> Result<Parameters> {
        let mut recorder = context.recorder("zeros");
        Parameters::zeros(&mut recorder, &list(&[(name, &[2])]), "zeros")
    };
    let [weights, reserved] = ["w", "metadata__"].map(|name| parameters(name).expect("leases"));
    for (writer, told) in [
        (
            writer().with_metadata("dilated_attention.step", "7"),
            "dilated_attention.step",
        ),
        (writer().with_stored_type(StoredType::Other("F64")), "F64"),
        (
            writer().with_part("p.", &weights).with_part("p.", &weights),
            "p.w",
        ),
        (writer().with_part("__", &reserved), "__metadata__"),
    ] {
        match bytes(&writer) {
            Err(Error::Weights(WeightsError::CannotSave { given, .. })) => assert_eq!(given, told),
            other => panic!("{told}: {other:?}"),
        }
    }
}
