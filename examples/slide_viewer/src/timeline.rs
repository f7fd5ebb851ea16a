//! The pool's bytes over the last minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use dilated_attention::PoolStats;
use eframe::egui::{self, Color32, Rect, Sense, Stroke, Ui, pos2, vec2};

/// Time that one column of the picture stands for.
const COLUMN: Duration = Duration::from_millis(200);
const COLUMNS: usize = 300;
const HEIGHT: f32 = 110.0;

// Those of the picture that the example pool_report draws.
pub const LEASED: Color32 = Color32::from_rgb(0x33, 0x95, 0xd6);
pub const PENDING: Color32 = Color32::from_rgb(0xe6, 0x9f, 0x00);
pub const CACHED: Color32 = Color32::from_rgb(0x3c, 0x55, 0x66);

/// Most bytes within one column.
#[derive(Clone, Copy, Debug, Default)]
struct Bytes {
    leased: u64,
    pending: u64,
    held: u64,
}

/// The pool's bytes over the last minute.
#[derive(Debug)]
pub struct Timeline {
    begun: Instant,
    /// Number of the last column, counted from the beginning.
    last: u128,
    columns: VecDeque<Bytes>,
}

impl Timeline {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            last: 0,
            columns: VecDeque::from([Bytes::default()]),
        }
    }

    /// Takes note of the bytes of this moment.
    pub fn note(&mut self, stats: &PoolStats) {
        let now = Bytes {
            leased: stats.leased_bytes.current,
            pending: stats.pending_bytes.current,
            held: stats.held_bytes.current,
        };
        let column = self.begun.elapsed().as_millis() / COLUMN.as_millis();
        let missing = column.saturating_sub(self.last).min(COLUMNS as u128);
        self.last = column;
        for _ in 0..missing {
            self.columns.push_back(now);
        }
        while self.columns.len() > COLUMNS {
            self.columns.pop_front();
        }
        if let Some(last) = self.columns.back_mut() {
            last.leased = last.leased.max(now.leased);
            last.pending = last.pending.max(now.pending);
            last.held = last.held.max(now.held);
        }
    }

    /// Draws it over the whole width: leased, pending and cached bytes one upon the other.
    pub fn show(&self, ui: &mut Ui) -> Rect {
        let size = vec2(ui.available_width(), HEIGHT);
        let (rect, _) = ui.allocate_exact_size(size, Sense::hover());
        let painter = ui.painter_at(rect);
        painter.rect_filled(rect, 3.0, ui.visuals().extreme_bg_color);
        let most = self
            .columns
            .iter()
            .map(|bytes| bytes.held)
            .max()
            .unwrap_or(0);
        let top = (most as f32 * 1.1).max(1.0);
        let width = rect.width() / COLUMNS as f32;
        let left = rect.right() - width * self.columns.len() as f32;
        let mut mesh = egui::Mesh::default();
        for (index, bytes) in self.columns.iter().enumerate() {
            let x = left + width * index as f32;
            let mut bar = |from: u64, to: u64, colour| {
                let y = |bytes: u64| rect.bottom() - rect.height() * bytes as f32 / top;
                let bar = Rect::from_min_max(pos2(x, y(to)), pos2(x + width, y(from)));
                mesh.add_colored_rect(bar, colour);
            };
            let pending = bytes.leased.saturating_add(bytes.pending);
            bar(0, bytes.leased, LEASED);
            bar(bytes.leased, pending, PENDING);
            bar(pending, bytes.held.max(pending), CACHED);
        }
        painter.add(mesh);
        let line = Stroke::new(1.0, ui.visuals().weak_text_color());
        painter.rect_stroke(rect, 3.0, line, egui::StrokeKind::Inside);
        rect
    }
}
