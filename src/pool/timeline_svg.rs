//! Draws a timeline as an SVG picture.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::event::EvictionCause;
use super::timeline::{Mark, MarkKind, Sample, Timeline, column};
use super::trace::Trace;

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 532.0;
/// The plot, in the picture's units; one column of samples a unit.
const LEFT: f64 = 84.0;
const TOP: f64 = 92.0;
const COLUMNS: usize = 1080;
const PLOT_HEIGHT: f64 = 316.0;
const BOTTOM: f64 = TOP + PLOT_HEIGHT;
/// Strips of marks below it.
const CREATED_Y: f64 = BOTTOM + 10.0;
const EVICTED_Y: f64 = CREATED_Y + 22.0;
const STRIP: f64 = 16.0;
const AXIS_Y: f64 = EVICTED_Y + STRIP + 8.0;

// Colours that colour-blind people tell apart (Okabe and Ito), the cached bytes pale as what is not in use.
const LEASED: &str = "#0072b2";
const PENDING: &str = "#e69f00";
const CACHED: &str = "#b9dcf2";
const REQUESTED: &str = "#1b2733";
const CREATED: &str = "#009e73";
const NOT_KEPT: &str = "#5d4037";
const TEXT: &str = "#1b2733";
const QUIET: &str = "#66727f";
const GRID: &str = "#dfe5ea";

const CAUSES: [(EvictionCause, &str, &str); 7] = [
    (EvictionCause::Retention, "retention", "#d55e00"),
    (EvictionCause::Cap, "cap", "#cc79a7"),
    (EvictionCause::Idle, "idle", "#8a97a3"),
    (EvictionCause::Pressure, "pressure", "#9a6324"),
    (EvictionCause::Budget, "budget", "#7b3294"),
    (EvictionCause::OutOfMemory, "out of memory", "#b00020"),
    (EvictionCause::Trim, "trim", "#4d5b68"),
];

impl Trace {
    /// Draws the trace as an SVG picture without scripts or fonts. Leased, pending and cached bytes over time are stacked,
    /// so that the upper edge shows the held bytes. A line shows the bytes that leases asked for. Marks below show when
    /// buffers were created, and when cached ones were destroyed, by cause.
    pub fn timeline_svg(&self, title: &str) -> String {
        let timeline = Timeline::new(self);
        let end = timeline.samples.last().map_or(0, |sample| sample.micros);
        let mut svg = Svg(String::new());
        svg.open(title);
        svg.header(title, &timeline);
        let scale = Scale::new(timeline.peak(Sample::held));
        svg.byte_axis(&scale);
        svg.areas(&timeline.columns(COLUMNS), &scale);
        svg.marks(&timeline.marks, end.max(1));
        svg.time_axis(end.max(1));
        svg.legend(&timeline.marks);
        svg.0.push_str("</svg>\n");
        svg.0
    }
}

/// Bytes to heights, with a round tick.
struct Scale {
    top_bytes: f64,
    tick_bytes: f64,
    unit: (&'static str, f64),
}

impl Scale {
    fn new(peak: u64) -> Self {
        let peak = peak.max(1) as f64;
        let unit = [
            ("GiB", f64::from(1u32 << 30)),
            ("MiB", f64::from(1u32 << 20)),
            ("KiB", 1024.0),
        ];
        let unit = unit.into_iter().find(|(_, bytes)| peak >= *bytes);
        let unit = unit.unwrap_or(("bytes", 1.0));
        let tick_bytes = round_step(peak / unit.1 / 4.0) * unit.1;
        Self {
            top_bytes: (peak / tick_bytes).ceil() * tick_bytes,
            tick_bytes,
            unit,
        }
    }

    fn y(&self, bytes: u64) -> f64 {
        BOTTOM - bytes as f64 / self.top_bytes * PLOT_HEIGHT
    }
}

/// The least of 1, 2 and 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let factor = factors.into_iter().find(|factor| factor * power >= step);
    factor.unwrap_or(10.0) * power
}

/// A number without needless digits.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn bytes(count: u64) -> String {
    let scale = Scale::new(count);
    format!("{} {}", short(count as f64 / scale.unit.1), scale.unit.0)
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let text = text.replace('>', "&gt;").replace('"', "&quot;");
    // Control characters are no XML.
    text.replace(|character: char| character.is_control(), " ")
}

/// The picture so far. Writing to a string cannot fail.
struct Svg(String);

impl Svg {
    fn open(&mut self, title: &str) {
        let _ = writeln!(
            self.0,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"Inter, 'Helvetica Neue', Helvetica, Arial, sans-serif\" role=\"img\">\n<title>{}</title>\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"10\" fill=\"#fbfcfd\"/>",
            escaped(title)
        );
    }

    fn text(&mut self, [x, y]: [f64; 2], size: u32, fill: &str, anchor: &str, text: &str) {
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\" text-anchor=\"{anchor}\">{}</text>",
            escaped(text)
        );
    }

    fn header(&mut self, title: &str, timeline: &Timeline) {
        self.text([LEFT, 38.0], 21, TEXT, "start", title);
        let created = timeline.created();
        let evicted = timeline.marks.len() as u64 - created;
        let hits = timeline.acquires.saturating_sub(created);
        let rate = 100.0 * hits as f64 / timeline.acquires.max(1) as f64;
        let figures = format!(
            "{} leases, {} % hits   ·   {created} buffers created, {evicted} given up   ·   peak {} asked for, {} held",
            timeline.acquires,
            short(rate),
            bytes(timeline.peak(|sample| sample.requested)),
            bytes(timeline.peak(Sample::held)),
        );
        self.text([LEFT, 64.0], 14, QUIET, "start", &figures);
    }

    fn byte_axis(&mut self, scale: &Scale) {
        let ticks = (scale.top_bytes / scale.tick_bytes).round() as u32;
        for tick in 0..=ticks {
            let value = f64::from(tick) * scale.tick_bytes;
            let y = scale.y(value as u64);
            let right = LEFT + COLUMNS as f64;
            let _ = writeln!(
                self.0,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"{GRID}\"/>"
            );
            let label = format!("{} {}", short(value / scale.unit.1), scale.unit.0);
            self.text([LEFT - 10.0, y + 4.0], 12, QUIET, "end", &label);
        }
    }

    fn areas(&mut self, columns: &[Sample], scale: &Scale) {
        // From the highest stack down, each over the one before.
        for (depth, fill) in [CACHED, PENDING, LEASED].into_iter().enumerate() {
            let outline = outline(columns, |sample| {
                let stacked = [sample.free, sample.pending, sample.leased];
                scale.y(stacked[depth..].iter().sum())
            });
            let _ = writeln!(
                self.0,
                "<path d=\"M{LEFT} {BOTTOM}V{outline}V{BOTTOM}Z\" fill=\"{fill}\"/>"
            );
        }
        let line = outline(columns, |sample| scale.y(sample.requested));
        let _ = writeln!(
            self.0,
            "<path d=\"M{LEFT} {line}\" fill=\"none\" stroke=\"#fbfcfd\" stroke-width=\"3\" stroke-opacity=\"0.55\"/>\n<path d=\"M{LEFT} {line}\" fill=\"none\" stroke=\"{REQUESTED}\" stroke-width=\"1.3\"/>"
        );
    }

    fn marks(&mut self, marks: &[Mark], end: u64) {
        for (y, label) in [(CREATED_Y, "created"), (EVICTED_Y, "given up")] {
            let _ = writeln!(
                self.0,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{COLUMNS}\" height=\"{STRIP}\" fill=\"#f0f3f6\"/>"
            );
            self.text([LEFT - 10.0, y + 12.0], 12, QUIET, "end", label);
        }
        // One mark for each column and kind, so that a long trace stays a small picture.
        let mut drawn: BTreeMap<(usize, &str), (f64, String, u64, u64)> = BTreeMap::new();
        for mark in marks {
            let at = column(mark.micros, end, COLUMNS);
            let (y, fill, what) = match &mark.kind {
                MarkKind::Created(label) => (CREATED_Y, CREATED, format!("created for {label}")),
                MarkKind::Evicted(cause) => {
                    let (name, fill) = look_of(*cause);
                    (EVICTED_Y, fill, format!("given up: {name}"))
                }
                MarkKind::NotKept => (EVICTED_Y, NOT_KEPT, "not kept".to_owned()),
            };
            let (_, _, count, sum) = drawn.entry((at, fill)).or_insert((y, what, 0, 0));
            *count += 1;
            *sum = sum.saturating_add(mark.bytes);
        }
        for ((at, fill), (y, what, count, sum)) in drawn {
            let more = if count > 1 {
                format!(" and {} more", count - 1)
            } else {
                String::new()
            };
            let _ = writeln!(
                self.0,
                "<rect x=\"{:.1}\" y=\"{y}\" width=\"2\" height=\"{STRIP}\" fill=\"{fill}\"><title>{}{more}, {}</title></rect>",
                LEFT + at as f64 - 0.5,
                escaped(&what),
                bytes(sum)
            );
        }
    }

    fn time_axis(&mut self, end: u64) {
        let unit = [("s", 1e6), ("ms", 1e3)];
        let unit = unit.into_iter().find(|(_, micros)| end as f64 >= *micros);
        let (name, micros) = unit.unwrap_or(("µs", 1.0));
        let step = round_step(end as f64 / micros / 8.0);
        let ticks = (end as f64 / micros / step).floor() as u32;
        for tick in 0..=ticks {
            let value = f64::from(tick) * step;
            let x = LEFT + value * micros / end as f64 * COLUMNS as f64;
            let _ = writeln!(
                self.0,
                "<path d=\"M{x:.1} {BOTTOM}v4M{x:.1} {:.1}v5\" stroke=\"{QUIET}\"/>",
                AXIS_Y - 8.0
            );
            let label = format!("{} {name}", short(value));
            self.text([x, AXIS_Y + 10.0], 12, QUIET, "middle", &label);
        }
    }

    fn legend(&mut self, marks: &[Mark]) {
        let causes = CAUSES.iter().filter(|(cause, ..)| {
            let of_cause = |mark: &Mark| mark.kind == MarkKind::Evicted(*cause);
            marks.iter().any(of_cause)
        });
        let causes = causes.map(|(_, name, fill)| (*fill, format!("given up: {name}")));
        let not_kept = marks.iter().any(|mark| mark.kind == MarkKind::NotKept);
        let not_kept = not_kept.then(|| (NOT_KEPT, "not kept".to_owned()));
        let areas = [
            (LEASED, "leased"),
            (PENDING, "pending: the device has it"),
            (CACHED, "cached"),
            (REQUESTED, "asked for"),
            (CREATED, "created"),
        ];
        let entries = areas.map(|(fill, name)| (fill, name.to_owned()));
        let y = AXIS_Y + 46.0;
        let mut x = LEFT;
        for (fill, name) in entries.into_iter().chain(causes).chain(not_kept) {
            let height = if fill == REQUESTED { 2.0 } else { 12.0 };
            let _ = writeln!(
                self.0,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"14\" height=\"{height}\" rx=\"1\" fill=\"{fill}\"/>",
                y - 4.0 - height / 2.0
            );
            self.text([x + 20.0, y], 13, TEXT, "start", &name);
            // About the width of the words.
            x += 44.0 + 7.0 * name.len() as f64;
        }
    }
}

/// A stepped line over all columns, without its first move.
fn outline(columns: &[Sample], y: impl Fn(&Sample) -> f64) -> String {
    let mut path = String::new();
    let mut last = f64::NAN;
    for (column, sample) in columns.iter().enumerate() {
        let height = y(sample);
        if path.is_empty() {
            let _ = write!(path, "{height:.1}");
        } else if height != last {
            let _ = write!(path, "H{:.0}V{height:.1}", LEFT + column as f64);
        }
        last = height;
    }
    let _ = write!(path, "H{:.0}", LEFT + columns.len() as f64);
    path
}

fn look_of(cause: EvictionCause) -> (&'static str, &'static str) {
    let found = CAUSES.iter().find(|(known, ..)| *known == cause);
    found.map_or(("", QUIET), |(_, name, fill)| (name, fill))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_escaped_and_empty_traces_drawn() {
        let svg = Trace::default().timeline_svg("a < b & \"c\"\n");
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot; "));
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn any_trace_that_parses_is_drawn_and_long_ones_stay_small() -> crate::Result<()> {
        let mut text =
            "pool trace 1\n900 acquire 1 8 256 140 created a\n10 release 1 kept\n".to_owned();
        for buffer in 2..20_000u64 {
            let huge = u64::MAX - buffer;
            let _ = writeln!(text, "{buffer} acquire {buffer} 8 {huge} 140 created b");
            let _ = writeln!(text, "{buffer} evict {buffer} retention");
            let _ = writeln!(text, "{buffer} release {buffer} destroyed");
        }
        let svg = text.parse::<Trace>()?.timeline_svg("any");
        assert!(svg.len() < 1 << 20, "{} bytes", svg.len());
        assert!(svg.contains("not kept") && !svg.contains("NaN"));
        Ok(())
    }

    #[test]
    fn steps_are_round() {
        for (step, round) in [(0.3, 0.5), (1.0, 1.0), (11.0, 20.0), (499.0, 500.0)] {
            assert!((round_step(step) - round).abs() < 1e-9, "{step}");
        }
    }
}
