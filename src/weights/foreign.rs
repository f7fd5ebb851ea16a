//! Recognises files of other formats, so that the error for them can say what they are and what to do.

use super::header::quoted;

/// Number of bytes at the beginning of a file that are checked.
pub(super) const LOOKED_AT: usize = 512;

/// First characters of a Git LFS pointer.
const LFS_POINTER: &str = "version https://git-lfs";

const FROM_PYTORCH: &str = "convert it once, in Python: `safetensors.torch.save_file(torch.load(FILE, map_location=\"cpu\"), \
     \"weights.safetensors\")`, with `[\"model\"]` or the like behind `torch.load(..)` where its tensors are wrapped so";

const FROM_NUMPY: &str =
    "load it with numpy and write its arrays with `safetensors.numpy.save_file`";

/// Other formats: first bytes of a file, what the file is, and what to do.
const FORMATS: [(&[u8], &str, &str); 10] = [
    (
        b"\x89HDF\r\n\x1a\n",
        "HDF5, as Keras writes weights",
        "read it with h5py and write its arrays with `safetensors.numpy.save_file`",
    ),
    (b"\x93NUMPY", "an array of NumPy (.npy)", FROM_NUMPY),
    (
        b"GGUF",
        "GGUF, the format of llama.cpp",
        "take the model's file in safetensors, from which such files are made",
    ),
    (b"\x1f\x8b\x08", "compressed with gzip", "unpack it first"),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "unpack it first",
    ),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (
        b"\x80\x02",
        "a pickle, as old versions of torch.save write",
        FROM_PYTORCH,
    ),
    (b"\x80\x04", "a pickle", FROM_PYTORCH),
    (b"\x80\x05", "a pickle", FROM_PYTORCH),
];

/// Says what a file is that is not safetensors, and what to do about it. `head` are its first [`LOOKED_AT`] bytes, or all. `None`
/// if the format is unknown.
///
/// In a safetensors file the first eight bytes are a length, which may be any number, and the ninth is a brace.
pub(super) fn recognise(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("it is empty: fetch or write it again".to_owned());
    }
    if head.get(8) == Some(&b'{') {
        return None;
    }
    if let Some((_, what, advice)) = FORMATS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Some(format!("it is {what}: {advice}"));
    }
    if head.starts_with(b"PK\x03\x04") {
        return Some(of_zip(head));
    }
    of_text(text(head)?)
}

/// Says what a zip archive is, by the name of its first member.
fn of_zip(head: &[u8]) -> String {
    // The header of a member has 26 bytes, then the length of its name (2 bytes), that of the extra field (2 bytes), and the name.
    let length = head.get(26..28).map_or(0, |bytes| {
        usize::from(bytes[0]) | usize::from(bytes[1]) << 8
    });
    let name = head
        .get(30..(30 + length).min(head.len()))
        .unwrap_or_default();
    match name.ends_with(b".npy") {
        true => format!("it is an archive of NumPy (.npz): {FROM_NUMPY}"),
        false => {
            format!("it is a zip archive, as torch.save writes (.pth, .pt, .bin): {FROM_PYTORCH}")
        }
    }
}

fn of_text(text: &str) -> Option<String> {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let first_line = text.lines().next()?;
    if first_line.starts_with(LFS_POINTER) {
        let size = text.lines().find_map(|line| line.strip_prefix("size "));
        let of = size.and_then(|size| size.parse::<u64>().ok());
        let of = of.map_or(String::new(), |bytes| format!(" of {bytes} bytes"));
        return Some(format!(
            "it is the Git LFS pointer to a file{of}, not that file: run `git lfs pull` in its repository, or download it"
        ));
    }
    let begins = |with: &str| {
        let begin = text.get(..with.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(with))
    };
    Some(if begins("<!doctype html") || begins("<html") {
        "it is a page of HTML, such as a site answers where one has to log in or agree first: download the file itself, with \
         the site's own client or an access token"
            .to_owned()
    } else if begins("<") {
        "it is XML, such as a server's error message: look at it, and download the file again"
            .to_owned()
    } else if text.contains("\"weight_map\"") {
        "it is the index of a model in several files: name one of those, or join them in Python with \
         `safetensors.torch.save_file`"
            .to_owned()
    } else if begins("{") || begins("[") {
        "it is text in JSON, such as a server's error message or a model's configuration: name the file with the weights"
            .to_owned()
    } else {
        let begin: String = first_line.chars().take(40).collect();
        format!(
            "it is text that begins with {}: name the file with the weights",
            quoted(&begin)
        )
    })
}

/// `head` as text; `None` if it is not text. Text is UTF-8 without control characters. The last character may be cut off.
fn text(head: &[u8]) -> Option<&str> {
    let whole = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    whole.chars().all(is_text).then_some(whole)
}
