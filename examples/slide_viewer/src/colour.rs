//! Numbers as colours.

use eframe::egui::Color32;

/// From low to high, its lightness rising evenly.
pub const RAMP: [[f32; 3]; 6] = [
    [60.0, 42.0, 120.0],
    [66.0, 76.0, 160.0],
    [46.0, 118.0, 168.0],
    [44.0, 166.0, 140.0],
    [158.0, 206.0, 96.0],
    [252.0, 240.0, 160.0],
];

/// The colour of a part from 0 to 1 of the ramp; of what is no number, the lowest.
pub fn ramp(part: f32) -> Color32 {
    let part = if part.is_nan() {
        0.0
    } else {
        part.clamp(0.0, 1.0)
    };
    let at = part * (RAMP.len() - 1) as f32;
    let first = (at as usize).min(RAMP.len() - 2);
    let between = at - first as f32;
    let [r, g, b] =
        [0, 1, 2].map(|i| (RAMP[first][i] * (1.0 - between) + RAMP[first + 1][i] * between) as u8);
    Color32::from_rgb(r, g, b)
}

/// The ends of a scale that holds most of `values`: a few far outside would leave the rest one colour.
pub fn scale(values: &[f32]) -> [f32; 2] {
    let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    if sorted.is_empty() {
        return [0.0, 1.0];
    }
    let last = sorted.len() - 1;
    let mut at = |place: usize| *sorted.select_nth_unstable_by(place, f32::total_cmp).1;
    [at(last / 50), at(last - last / 50)]
}
