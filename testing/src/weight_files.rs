//! Files of safetensors, made byte by byte, so that they can be wrong.

/// A file with the JSON `json` and these bytes after it.
pub fn file_of(json: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(data);
    bytes
}

/// The JSON of one tensor.
pub fn tensor(name: &str, stored_type: &str, shape: &[usize], range: [usize; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{stored_type}","shape":{shape:?},"data_offsets":{range:?}}}"#)
}

/// A file of tensors, one after the other.
pub fn file_with(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut data = Vec::new();
    for (name, stored_type, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(*bytes);
        entries.push(tensor(name, stored_type, shape, [begin, data.len()]));
    }
    file_of(&format!("{{{}}}", entries.join(",")), &data)
}

/// Little-endian bytes of f32.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}
