//! The loss over the steps as a picture.

use std::fmt::Write;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 36.0;

/// Bits a byte: of the batch of each step, and of the validation bytes at some.
#[derive(Debug, Default)]
pub struct Curve {
    pub training: Vec<(u64, f64)>,
    pub validation: Vec<(u64, f64)>,
    /// Levels to compare with.
    pub levels: Vec<(&'static str, f64)>,
}

impl Curve {
    /// The picture, as SVG.
    pub fn svg(&self, title: &str) -> String {
        let all = || self.training.iter().chain(&self.validation);
        let last = all().map(|point| point.0).max().unwrap_or(1).max(1);
        let levels = self.levels.iter().map(|level| level.1);
        let highest = all().map(|p| p.1).chain(levels).fold(1.0, f64::max).ceil();
        let x = |step: u64| LEFT + (WIDTH - LEFT - RIGHT) * step as f64 / last as f64;
        let y = |bits: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - bits / highest);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{}</text>\n",
            escape(title)
        );
        // Writing to a string cannot fail.
        for bits in 0..=highest as u32 {
            let at = y(f64::from(bits));
            let right = WIDTH - RIGHT;
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{bits}</text>",
                LEFT - 8.0,
                at + 4.0
            );
        }
        for (name, bits) in &self.levels {
            let at = y(*bits);
            let right = WIDTH - RIGHT;
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#888\" stroke-dasharray=\"6 4\"/><text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{name}: {bits:.2}</text>",
                at - 4.0
            );
        }
        let mut line = |points: &[(u64, f64)], colour: &str, width: f64| {
            let path: Vec<String> = points
                .iter()
                .map(|(step, bits)| format!("{:.1} {:.1}", x(*step), y(*bits)))
                .collect();
            if !path.is_empty() {
                let path = path.join("L");
                let _ = writeln!(
                    svg,
                    "<path d=\"M{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
                );
            }
        };
        line(&smooth(&self.training), "#4a90d9", 1.0);
        line(&self.validation, "#c0392b", 2.5);
        let bottom = HEIGHT - 12.0;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{bottom}\">0</text><text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">{last} steps</text>\n\
             <text x=\"{}\" y=\"{bottom}\" text-anchor=\"middle\">bits per byte: <tspan fill=\"#4a90d9\">training batches</tspan>, <tspan fill=\"#c0392b\">validation</tspan></text>\n</svg>",
            WIDTH - RIGHT,
            (LEFT + WIDTH - RIGHT) / 2.0
        );
        svg
    }
}

/// Means over as many neighbours as leave a few hundred points.
fn smooth(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let size = points.len().div_ceil(300).max(1);
    points
        .chunks(size)
        .map(|chunk| {
            let mean = chunk.iter().map(|point| point.1).sum::<f64>() / chunk.len() as f64;
            (chunk[chunk.len() / 2].0, mean)
        })
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
