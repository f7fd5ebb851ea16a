//! Where tokens look: a row for each, its weights along the genome.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

/// Rows and columns of the picture.
const ROWS: usize = 24;
const COLUMNS: usize = 120;

/// Draws the weights of some tokens: which parts of the genome they look at, and how much.
pub fn draw(
    path: &Path,
    bases: usize,
    looks: &[(usize, Vec<(usize, f64)>)],
) -> Result<(), Box<dyn Error>> {
    let million = |token: usize| token as f64 / 1e6;
    let step = looks.len().div_ceil(ROWS).max(1);
    let rows: Vec<_> = looks.iter().step_by(step).collect();
    let area = SVGBackend::new(path, (900, 520)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .caption(
            "What tokens look at: the part of their attention by place, on a logarithmic scale",
            ("sans-serif", 16),
        )
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..million(bases), 0.0..rows.len() as f64)?;
    let label = |row: &f64| match rows.get(*row as usize) {
        Some((token, _)) if row.fract() == 0.0 => format!("{:.2}", million(*token)),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("place in the genome, million bases")
        .y_desc("token, million bases")
        .y_labels(rows.len() / 2)
        .y_label_formatter(&label)
        .draw()?;
    for (row, (_, weights)) in rows.iter().enumerate() {
        let mut columns = [0.0; COLUMNS];
        for (token, weight) in weights {
            columns[token * COLUMNS / bases] += weight;
        }
        let cells = columns
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0.0);
        chart.draw_series(cells.map(|(column, weight)| {
            // Black for all, white for a millionth.
            let shade = (1.0 + weight.log10() / 6.0).clamp(0.0, 1.0);
            let place = |column: usize| million(bases) * column as f64 / COLUMNS as f64;
            let (left, right) = (place(column), place(column + 1));
            let corners = [(left, row as f64 + 0.08), (right, row as f64 + 0.92)];
            Rectangle::new(corners, BLUE.mix(shade).filled())
        }))?;
    }
    area.present()?;
    Ok(())
}
