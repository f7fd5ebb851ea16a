//! Tells stdout what happens, a line each, for programs that drive the window.

use std::collections::HashMap;

use eframe::egui::{Rect, Ui};
use program::say;

/// Where to tell, if anywhere.
#[derive(Debug)]
pub struct Trace {
    on: bool,
    widgets: HashMap<&'static str, [i32; 4]>,
}

impl Trace {
    /// Tells if `on`.
    pub fn new(on: bool) -> Self {
        Self {
            on,
            widgets: HashMap::new(),
        }
    }

    /// Tells a line.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if self.on {
            say!("{}", line());
        }
    }

    /// Tells where a widget is, in pixels of the window, `widget NAME left top width height`, if it was elsewhere before.
    pub fn widget(&mut self, ui: &Ui, name: &'static str, rect: Rect) {
        let scale = ui.ctx().pixels_per_point();
        let at = [rect.left(), rect.top(), rect.width(), rect.height()]
            .map(|length| (length * scale).round() as i32);
        if self.on && self.widgets.insert(name, at) != Some(at) {
            let [left, top, width, height] = at;
            self.say(|| format!("widget {name} {left} {top} {width} {height}"));
        }
    }
}
