//! The loss over the steps as a picture.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

const SIZE: (u32, u32) = (820, 420);
const TRAINING: RGBColor = RGBColor(0x4a, 0x90, 0xd9);
const VALIDATION: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
const LEVEL: RGBColor = RGBColor(0x77, 0x77, 0x77);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

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
    pub fn svg(&self, title: &str) -> Result<String, Box<dyn Error>> {
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        self.draw(title, &root)?;
        drop(root);
        Ok(svg)
    }

    fn draw(
        &self,
        title: &str,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
    ) -> Result<(), Box<dyn Error>> {
        let points = || self.training.iter().chain(&self.validation);
        let last = points().map(|point| point.0).max().unwrap_or(1).max(1);
        let levels = self.levels.iter().map(|level| level.1);
        let bits = points().map(|point| point.1).chain(levels);
        let highest = bits.fold(1.0, f64::max).ceil();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(root)
            .margin(12)
            .caption(title, ("sans-serif", 16))
            .x_label_area_size(40)
            .y_label_area_size(48)
            .build_cartesian_2d(0..last, 0.0..highest)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .x_desc("steps")
            .y_desc("bits per byte")
            .label_style(("sans-serif", 12))
            .draw()?;
        for (name, bits) in &self.levels {
            let line = [(0, *bits), (last, *bits)];
            chart.draw_series(DashedLineSeries::new(line, 6, 4, LEVEL.into()))?;
            let style = ("sans-serif", 12).into_text_style(root).color(&LEVEL);
            let label = format!("{name}: {bits:.2}");
            let (width, height) = root.estimate_text_size(&label, &style)?;
            let above = (-(width as i32), -(height as i32) - 4);
            let label = EmptyElement::at((last, *bits)) + Text::new(label, above, style);
            chart.draw_series([label])?;
        }
        for (name, points, colour, width) in [
            ("training batches", smooth(&self.training), TRAINING, 1),
            ("validation", self.validation.clone(), VALIDATION, 2),
        ] {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(width)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .label_font(("sans-serif", 12))
            .background_style(WHITE)
            .draw()?;
        Ok(root.present()?)
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
