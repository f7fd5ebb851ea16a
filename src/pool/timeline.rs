//! Draws a trace.

use super::trace::Trace;

impl Trace {
    /// The trace as a picture.
    pub fn timeline_svg(&self, title: &str) -> String {
        let _ = title;
        String::from("<svg")
    }
}
