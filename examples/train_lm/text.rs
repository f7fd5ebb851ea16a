//! Bytes, which are the model's tokens, and text.

/// Bytes as tokens.
pub fn tokens(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|byte| u32::from(*byte)).collect()
}

/// A token as a byte; the model has no others.
pub fn byte(token: u32) -> u8 {
    token as u8
}

/// Bytes as text for a terminal: what is no UTF-8, and control characters but line ends and tabs, as dots.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() || c == char::REPLACEMENT_CHARACTER => '.',
            c => c,
        })
        .collect()
}
