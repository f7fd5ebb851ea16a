//! A timeline of the pool as a picture: bytes leased, pending and cached one upon the other, so that the upper edge is what is
//! held; the bytes that leases asked for as a line; and below, where buffers were created and where they were given up, by cause.

use std::collections::BTreeMap;
use std::error::Error;

use dilated_attention::pool::{EvictionCause, MarkKind, Timeline, TimelineSample};
use plotters::coord::Shift;
use plotters::prelude::*;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Which bytes of a moment.
type Bytes = fn(&TimelineSample) -> u64;

const SIZE: (u32, u32) = (1200, 540);
/// Parts of the time, each about a pixel wide.
const COLUMNS: usize = 1080;
/// Of both charts, so that their times stand one below the other.
const LABELS: u32 = 84;
const MARGIN: u32 = 12;
const MIB: f64 = (1 << 20) as f64;

// Colours that colour-blind people tell apart (Okabe and Ito), the cached bytes pale as what is not in use.
const LEASED: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const PENDING: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const CACHED: RGBColor = RGBColor(0xb9, 0xdc, 0xf2);
const REQUESTED: RGBColor = RGBColor(0x1b, 0x27, 0x33);
const GRID: RGBColor = RGBColor(0xdf, 0xe5, 0xea);

/// What a mark is called and drawn in.
fn look(kind: &MarkKind) -> (&'static str, RGBColor) {
    match kind {
        MarkKind::Created(_) => ("created", RGBColor(0x00, 0x9e, 0x73)),
        MarkKind::NotKept => ("not kept", RGBColor(0x5d, 0x40, 0x37)),
        MarkKind::Evicted(cause) => match cause {
            EvictionCause::Retention => ("given up: retention", RGBColor(0xd5, 0x5e, 0x00)),
            EvictionCause::Cap => ("given up: cap", RGBColor(0xcc, 0x79, 0xa7)),
            EvictionCause::Idle => ("given up: idle", RGBColor(0x8a, 0x97, 0xa3)),
            EvictionCause::Pressure => ("given up: pressure", RGBColor(0x9a, 0x63, 0x24)),
            EvictionCause::Budget => ("given up: budget", RGBColor(0x7b, 0x32, 0x94)),
            EvictionCause::OutOfMemory => ("given up: out of memory", RGBColor(0xb0, 0x00, 0x20)),
            EvictionCause::Trim => ("given up: trim", RGBColor(0x4d, 0x5b, 0x68)),
            _ => ("given up", BLACK),
        },
    }
}

/// The picture, as SVG.
pub fn svg(timeline: &Timeline, title: &str) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    draw(timeline, title, root)?;
    Ok(svg)
}

fn draw(timeline: &Timeline, title: &str, root: Area<'_>) -> Result<(), Box<dyn Error>> {
    root.fill(&WHITE)?;
    let (bytes, rest) = root
        .margin(10, 0, 0, 0)
        .titled(title, ("sans-serif", 21))?
        .split_vertically(400);
    let (marks, legend) = rest.split_vertically(84);
    draw_bytes(timeline, &bytes)?;
    draw_marks(timeline, &marks)?;
    draw_legend(timeline, &legend)?;
    Ok(root.present()?)
}

fn end_ms(timeline: &Timeline) -> f64 {
    timeline.end_micros() as f64 / 1000.0
}

/// When a column begins.
fn column_ms(timeline: &Timeline, column: usize) -> f64 {
    end_ms(timeline) * column as f64 / COLUMNS as f64
}

fn draw_bytes(timeline: &Timeline, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let columns: Vec<_> = timeline.columns(COLUMNS).collect();
    let peak = columns.iter().map(TimelineSample::held_bytes).max();
    let top = peak.unwrap_or(0).max(1) as f64 / MIB;
    let mut chart = ChartBuilder::on(area)
        .margin(MARGIN)
        .y_label_area_size(LABELS)
        .build_cartesian_2d(0.0..end_ms(timeline), 0.0..1.05 * top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(("sans-serif", 13))
        .y_label_formatter(&|mib| format!("{mib:.1} MiB"))
        .draw()?;
    // A step for each column in which it changes.
    let steps = |bytes: Bytes| {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for (column, sample) in columns.iter().enumerate() {
            let (begin, mib) = (column_ms(timeline, column), bytes(sample) as f64 / MIB);
            let before = points.last().map_or(f64::NAN, |point| point.1);
            if mib != before {
                points.extend((!before.is_nan()).then_some((begin, before)));
                points.push((begin, mib));
            }
        }
        let last = points.last().map_or(0.0, |point| point.1);
        points.push((end_ms(timeline), last));
        points
    };
    // From the highest down, each over the one before.
    let stacks: [(RGBColor, Bytes); 3] = [
        (CACHED, TimelineSample::held_bytes),
        (PENDING, |sample| {
            sample.leased_bytes.saturating_add(sample.pending_bytes)
        }),
        (LEASED, |sample| sample.leased_bytes),
    ];
    for (colour, bytes) in stacks {
        chart.draw_series(AreaSeries::new(steps(bytes), 0.0, colour.filled()))?;
    }
    chart.draw_series(LineSeries::new(
        steps(|sample| sample.requested_bytes),
        REQUESTED,
    ))?;
    Ok(())
}

fn draw_marks(timeline: &Timeline, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    const GIVEN_UP: i32 = 0;
    const CREATED: i32 = 1;
    let rows = (GIVEN_UP..CREATED).into_segmented();
    let mut chart = ChartBuilder::on(area)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .x_label_area_size(28)
        .y_label_area_size(LABELS)
        .build_cartesian_2d(0.0..end_ms(timeline), rows)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(GRID)
        .label_style(("sans-serif", 13))
        .x_label_formatter(&|ms| format!("{ms:.0} ms"))
        .y_label_formatter(&|row| match row {
            SegmentValue::CenterOf(CREATED) => "created".to_owned(),
            _ => "given up".to_owned(),
        })
        .draw()?;
    // One mark for each column and kind, so that a long trace stays a small picture.
    let drawn: BTreeMap<(usize, &str), _> = timeline
        .marks
        .iter()
        .map(|mark| {
            let column = timeline.column(mark.micros, COLUMNS);
            let row = match mark.kind {
                MarkKind::Created(_) => CREATED,
                _ => GIVEN_UP,
            };
            let (name, colour) = look(&mark.kind);
            ((column, name), (row, colour))
        })
        .collect();
    chart.draw_series(drawn.into_iter().map(|((column, _), (row, colour))| {
        // Twice as wide as a column, to be seen.
        let [begin, end] = [column, column + 2].map(|column| column_ms(timeline, column));
        let end = end.min(end_ms(timeline));
        let [low, high] = [row, row + 1].map(SegmentValue::Exact);
        let mut mark = Rectangle::new([(begin, low), (end, high)], colour.filled());
        mark.set_margin(2, 2, 0, 0);
        mark
    }))?;
    Ok(())
}

fn draw_legend(timeline: &Timeline, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let kinds = timeline.marks.iter().map(|mark| look(&mark.kind));
    let kinds: BTreeMap<&str, RGBColor> = kinds.collect();
    let bytes = [
        ("leased", LEASED),
        ("pending: the device has it", PENDING),
        ("cached", CACHED),
        ("asked for", REQUESTED),
    ];
    let style = ("sans-serif", 13).into_text_style(area);
    let mut x = (LABELS + MARGIN) as i32;
    for (name, colour) in bytes.into_iter().chain(kinds) {
        let height = if colour == REQUESTED { 1 } else { 6 };
        let swatch = [(x, 12 - height), (x + 14, 12 + height)];
        area.draw(&Rectangle::new(swatch, colour.filled()))?;
        area.draw(&Text::new(name, (x + 20, 6), style.clone()))?;
        let (width, _) = area.estimate_text_size(name, &style)?;
        x += width as i32 + 44;
    }
    Ok(())
}
