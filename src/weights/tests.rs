//! Malformed, truncated and hostile files, and unusual ones that are read. The crate `testing` reads any bytes, and compares with the
//! safetensors crate.

use std::path::PathBuf;

use crate::weights::{StoredType, WeightFile, WeightsError};

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
        ("invalid type", json(r#"{"__metadata__":[]}"#, 0)),
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
