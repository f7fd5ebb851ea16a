//! How tiles were cut, as a file says it, and which size of a tile follows.
//!
//! Coordinates are in pixels of level 0, the slide as it was scanned. A tile of 256 pixels at 20x covers 256 of them on a slide
//! scanned at 20x and 512 on one scanned at 40x, so that the same number means another place. What says which it is, by name:
//!
//! ```text
//! TRIDENT  patch_size_level0; patch_size, level0_magnification, target_magnification, overlap; level0_width, level0_height
//! CLAM     patch_size, patch_level, downsample (of both directions), custom_downsample
//! ```
//! as attributes of an HDF5 file (of `coords`, `features` or the root), strings of a safetensors file's metadata, or arrays of
//! one number in an .npz file.

use std::collections::HashSet;
use std::fmt;

use crate::error::Error;

/// Names that are read. `encoder` is TRIDENT's for what computed the features; `unit` says that of coordinates.
pub const NAMES: [&str; 12] = [
    "patch_size_level0",
    "patch_size",
    "patch_level",
    "downsample",
    "custom_downsample",
    "level0_magnification",
    "target_magnification",
    "overlap",
    "level0_width",
    "level0_height",
    "unit",
    ENCODER,
];

/// The name of what computed the features.
const ENCODER: &str = "encoder";

/// Tiles are no larger, in pixels of level 0.
const MAX_TILE_SIZE: f64 = (1 << 20) as f64;

/// What two sizes in pixels may differ by, and which part of the larger: they are rounded, and so are scales.
const SAME_PIXELS: f64 = 1.5;
const SAME_PART: f64 = 0.005;

/// A share that is not an accident.
const SOME: f64 = 0.02;

/// Fewest distances between neighbours, and fewest tiles in others' cells, that say something.
const FEWEST: usize = 4;

/// The name among those that are read, if it is one.
pub fn known(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name)
}

/// A value beside the arrays.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Numbers(Vec<f64>),
    Text(String),
}

impl Value {
    /// Of text that may be a number, or several in brackets.
    pub fn of_text(text: &str) -> Self {
        let inner = text.trim().trim_matches(['[', ']', '(', ')']);
        let numbers: Result<Vec<f64>, _> = inner
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect();
        match numbers {
            Ok(numbers) if !numbers.is_empty() => Self::Numbers(numbers),
            _ => Self::Text(text.trim().to_owned()),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers(numbers) => {
                let numbers: Vec<String> = numbers.iter().take(4).map(f64::to_string).collect();
                f.write_str(&numbers.join(" x "))
            }
            Self::Text(text) => write!(f, "\"{}\"", crate::array::shown(text)),
        }
    }
}

/// Values by their names, of those that are read.
pub type Attributes = Vec<(&'static str, Value)>;

/// What a file says of how its tiles were cut and their features computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TileGeometry {
    /// Every size of a tile that follows from what the file says.
    pub sizes: Vec<StatedSize>,
    /// By how much neighbours overlap, in pixels of level 0.
    pub overlap: Option<usize>,
    /// Width and height of level 0, in pixels.
    pub level0_size: Option<[f64; 2]>,
    /// The unit of coordinates, where it is not the pixel.
    pub unit: Option<String>,
    /// What computed the features.
    pub encoder: Option<String>,
    /// What is said of sizes and decides none, in words.
    undecided: Option<String>,
    /// What is said and cannot be.
    impossible: Option<String>,
}

/// A size of a tile, and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatedSize {
    /// Edge of a tile in pixels of level 0.
    pub pixels: usize,
    /// The attributes that it follows from.
    pub by: String,
}

/// Where the size of a tile comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TileSizeChoice {
    /// From the file, or a default where it says nothing.
    #[default]
    OfFile,
    /// So many pixels of level 0, unless file or coordinates contradict.
    Given(usize),
    /// So many, whatever file and coordinates say.
    Forced(usize),
}

/// The edge of a tile in the unit of coordinates, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileSize {
    /// Pixels of level 0.
    pub pixels: usize,
    /// Where that is from, for a line that is shown.
    pub reason: String,
}

impl fmt::Display for TileSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pixels of level 0, {}", self.pixels, self.reason)
    }
}

impl TileGeometry {
    /// Of tiles that lie `pixels` apart because they were made so.
    pub(crate) fn made(pixels: usize) -> Self {
        let by = "as they were made".to_owned();
        Self {
            sizes: vec![StatedSize { pixels, by }],
            ..Self::default()
        }
    }

    /// What attributes say.
    pub(crate) fn of_attributes(attributes: &Attributes) -> Self {
        Self::understand(attributes).unwrap_or_else(|impossible| Self {
            impossible: Some(impossible),
            encoder: text(attributes, ENCODER),
            ..Self::default()
        })
    }

    /// The error says which attribute means nothing, or that one name has two values.
    fn understand(attributes: &Attributes) -> Result<Self, String> {
        for (i, (name, value)) in attributes.iter().enumerate() {
            let other = attributes[..i]
                .iter()
                .find(|(same, other)| same == name && other != value);
            if let Some((_, other)) = other {
                return Err(format!("{name} {other} and {name} {value}"));
            }
        }
        let value = |name| attributes.iter().find(|(given, _)| *given == name);
        // The larger of two directions, which must be the same; `least` and more are valid.
        let number = |name: &'static str, least: f64| -> Result<Option<f64>, String> {
            let Some((_, value)) = value(name) else {
                return Ok(None);
            };
            let numbers = match value {
                Value::Numbers(numbers) => numbers.as_slice(),
                Value::Text(_) => &[],
            };
            let valid = |number: &f64| (least..=f64::from(u32::MAX)).contains(number);
            match *numbers {
                [one] if valid(&one) => Ok(Some(one)),
                [a, b] if valid(&a) && valid(&b) && (a - b).abs() <= SAME_PART * a.max(b) => {
                    Ok(Some(a.max(b)))
                }
                _ => Err(format!("{name} {value}")),
            }
        };
        // A magnification that is not known is written as 0 or below.
        let magnification = |name| match value(name) {
            Some((_, Value::Numbers(numbers))) if numbers.iter().all(|at| *at > 0.0) => {
                number(name, f64::MIN_POSITIVE)
            }
            _ => Ok(None),
        };
        let patch = number("patch_size", 1.0)?;
        let level = number("patch_level", 0.0)?;
        let downsample = number("downsample", f64::MIN_POSITIVE)?;
        let custom = number("custom_downsample", f64::MIN_POSITIVE)?;
        let scanned = magnification("level0_magnification")?;
        let target = magnification("target_magnification")?;
        let mut geometry = Self {
            unit: text(attributes, "unit").filter(|unit| {
                let unit = unit.to_ascii_lowercase();
                !["px", "pixel", "pixels"].contains(&unit.as_str())
            }),
            encoder: text(attributes, ENCODER),
            ..Self::default()
        };
        if let Some(pixels) = number("patch_size_level0", 1.0)? {
            geometry.state(pixels, format!("patch_size_level0 {pixels}"))?;
        }
        if let Some(patch) = patch {
            if let (Some(scanned), Some(target)) = (scanned, target) {
                let by = format!(
                    "patch_size {patch} at target_magnification {target} of level0_magnification {scanned}"
                );
                geometry.state(patch * scanned / target, by)?;
            }
            let further = custom.unwrap_or(1.0);
            let beyond = custom.map_or_else(String::new, |by| format!(", custom_downsample {by}"));
            match (downsample, level) {
                (Some(downsample), _) => {
                    let by = format!("patch_size {patch} at downsample {downsample}{beyond}");
                    geometry.state(patch * downsample * further, by)?;
                }
                (None, Some(0.0)) => {
                    let by = format!("patch_size {patch} at patch_level 0{beyond}");
                    geometry.state(patch * further, by)?;
                }
                (None, Some(level)) if geometry.sizes.is_empty() => {
                    let text = format!("patch_size {patch} at patch_level {level}, no downsample");
                    geometry.undecided = Some(text);
                }
                (None, None) if geometry.sizes.is_empty() => {
                    geometry.undecided = Some(format!("patch_size {patch}, no level"));
                }
                _ => {}
            }
        }
        // In pixels of the patch, as TRIDENT writes it.
        if let (Some(overlap), Some(stated)) = (number("overlap", 0.0)?, geometry.sizes.first()) {
            let scale = patch.map_or(1.0, |patch| stated.pixels as f64 / patch);
            geometry.overlap = Some((overlap * scale).round() as usize);
        }
        let sizes = (number("level0_width", 1.0)?, number("level0_height", 1.0)?);
        geometry.level0_size = sizes.0.zip(sizes.1).map(<[f64; 2]>::from);
        Ok(geometry)
    }

    fn state(&mut self, pixels: f64, by: String) -> Result<(), String> {
        if !(1.0..=MAX_TILE_SIZE).contains(&pixels.round()) {
            return Err(format!("{by}: {pixels} pixels of level 0"));
        }
        let pixels = pixels.round() as usize;
        self.sizes.push(StatedSize { pixels, by });
        Ok(())
    }

    /// The size of a tile of these coordinates; `default` where the file says nothing.
    pub(crate) fn tile_size(
        &self,
        coords: &[[f32; 2]],
        choice: TileSizeChoice,
        default: usize,
    ) -> Result<TileSize, Error> {
        let told = |pixels, reason: String| TileSize { pixels, reason };
        let contradiction = |one: String, other: String, advice: String| {
            let what = format!("{one}, but {other}");
            Err(Error::Geometry { what, advice })
        };
        if let TileSizeChoice::Forced(pixels) = choice {
            return Ok(told(pixels, "as forced".to_owned()));
        }
        if let Some(said) = &self.impossible {
            return Err(Error::Geometry {
                what: format!("what the file says of its tiles cannot be: {said}"),
                advice: "--force-tile-size N takes the right size".to_owned(),
            });
        }
        let force = |pixels: usize| format!("--force-tile-size {pixels} takes that one");
        let mut differing = self.sizes.iter().zip(self.sizes.iter().skip(1));
        if let Some((a, b)) = differing.find(|(a, b)| !same(a.pixels as f64, b.pixels as f64)) {
            return contradiction(
                format!("the file says {} pixels of level 0 ({})", a.pixels, a.by),
                format!("{} ({})", b.pixels, b.by),
                "--force-tile-size N takes the right one".to_owned(),
            );
        }
        let stated = self.sizes.first();
        let size = match (choice, stated) {
            (TileSizeChoice::Given(given), Some(stated))
                if !same(given as f64, stated.pixels as f64) =>
            {
                return contradiction(
                    format!("--tile-size is {given}"),
                    format!(
                        "the file says {} pixels of level 0 ({})",
                        stated.pixels, stated.by
                    ),
                    format!("leave --tile-size out, or {}", force(given)),
                );
            }
            (TileSizeChoice::Given(given), _) => told(given, "by --tile-size".to_owned()),
            (_, Some(stated)) => told(stated.pixels, format!("by {}", stated.by)),
            (_, None) => {
                let said = match &self.undecided {
                    Some(said) => format!("only {said}"),
                    None => "nothing".to_owned(),
                };
                let reason = format!(
                    "the default: the file says {said} of its tiles' size (--tile-size N says it)"
                );
                told(default, reason)
            }
        };
        if let (Some(unit), TileSizeChoice::OfFile) = (&self.unit, choice) {
            let unit = crate::array::shown(unit);
            return contradiction(
                format!("the file says that its coordinates are in {unit}"),
                "pixels of level 0 are needed".to_owned(),
                format!("--tile-size N is the edge of a tile in {unit}"),
            );
        }
        if let (Some(level0), None) = (self.level0_size, &self.unit) {
            let beyond = |xy: &&[f32; 2]| (0..2).any(|axis| f64::from(xy[axis]) >= level0[axis]);
            if let Some([x, y]) = coords.iter().find(beyond) {
                let [width, height] = level0;
                return contradiction(
                    format!("a tile lies at ({x}, {y})"),
                    format!("level 0 is {width} x {height} pixels (level0_width, level0_height)"),
                    "coordinates must be (x, y) in pixels of this slide's level 0; --force-tile-size N takes them \
                     as they are"
                        .to_owned(),
                );
            }
        }
        self.check_grid(coords, &size, stated.is_some())?;
        Ok(size)
    }

    /// That coordinates lie as tiles of this size do.
    fn check_grid(
        &self,
        coords: &[[f32; 2]],
        size: &TileSize,
        is_stated: bool,
    ) -> Result<(), Error> {
        let edge = size.pixels as f64;
        let contradiction = |other: String, advice: String| {
            let what = format!("the tile size is {size}, but {other}");
            Err(Error::Geometry { what, advice })
        };
        let force = format!("--force-tile-size {} keeps it", size.pixels);
        let distances = distances(coords);
        let step = step(&distances);
        if let Some(step) = step {
            let expected = edge - self.overlap.unwrap_or(0) as f64;
            // A file that says nothing of overlaps, but the size, may have them.
            let may_overlap = is_stated && self.overlap.is_none();
            // Most tiles may lie further apart than neighbours, where some are neighbours.
            let has_neighbours = share(&distances, expected) > share(&distances, step) + SOME;
            let right = match step < expected {
                true => may_overlap,
                false => has_neighbours,
            };
            let right = right || same(step, expected);
            if !right {
                let overlap = match self.overlap {
                    Some(overlap) if overlap > 0 => format!(", with an overlap of {overlap}"),
                    _ => String::new(),
                };
                return contradiction(
                    format!("tiles lie {step} apart{overlap}"),
                    format!(
                        "if a tile is {step} pixels of level 0 (256 at 20x are 512 of a slide scanned at 40x), \
                         --tile-size {step}; {force}"
                    ),
                );
            }
        }
        let apart = step.is_none_or(|step| same(step, edge)) && self.overlap.unwrap_or(0) == 0;
        let cell = |xy: &[f32; 2]| xy.map(|at| (f64::from(at) / edge).floor() as i64);
        let cells: HashSet<[i64; 2]> = coords.iter().map(cell).collect();
        let surplus = coords.len() - cells.len();
        if apart && surplus >= FEWEST && surplus * 10 > coords.len() {
            return contradiction(
                format!(
                    "{surplus} of {} tiles lie in the cell of another",
                    coords.len()
                ),
                format!("coordinates must be in pixels of level 0; {force}"),
            );
        }
        Ok(())
    }
}

/// The text of that name.
fn text(attributes: &Attributes, name: &str) -> Option<String> {
    let value = attributes.iter().find(|(given, _)| *given == name);
    match value {
        Some((_, Value::Text(text))) => Some(text.clone()),
        _ => None,
    }
}

/// Whether two sizes are the same.
fn same(a: f64, b: f64) -> bool {
    (a - b).abs() <= SAME_PIXELS.max(SAME_PART * a.abs().max(b.abs()))
}

/// Distances of neighbours in rows and in columns, from small to large.
fn distances(coords: &[[f32; 2]]) -> Vec<f64> {
    let mut distances = Vec::new();
    let mut places: Vec<[f32; 2]> = coords.to_vec();
    for (along, line) in [(0, 1), (1, 0)] {
        places.sort_by(|a, b| {
            let by_line = a[line].total_cmp(&b[line]);
            by_line.then(a[along].total_cmp(&b[along]))
        });
        let pairs = places.iter().zip(places.iter().skip(1));
        let on_line = pairs.filter(|(a, b)| a[line] == b[line] && a[along] != b[along]);
        distances.extend(on_line.map(|(a, b)| f64::from(b[along]) - f64::from(a[along])));
    }
    distances.retain(|distance| distance.is_finite());
    distances.sort_by(f64::total_cmp);
    distances
}

/// How many of the distances are multiples of one, from 0 to 1. Places are rounded to pixels where a scale is not whole.
fn share(distances: &[f64], of: f64) -> f64 {
    let is_multiple = |distance: &&f64| {
        let count = (**distance / of).round();
        count >= 1.0 && (**distance - count * of).abs() <= (of / 64.0).min(2.0)
    };
    match of > 0.0 {
        true => distances.iter().filter(is_multiple).count() as f64 / distances.len() as f64,
        false => 0.0,
    }
}

/// How far apart tiles lie: the largest distance of which nine in ten are multiples. `None` where there are few, or no such
/// distance.
fn step(distances: &[f64]) -> Option<f64> {
    if distances.len() < FEWEST {
        return None;
    }
    // The most frequent ones, and what divides all.
    let runs = distances.chunk_by(|a, b| a == b);
    let mut frequent: Vec<(usize, f64)> = runs.map(|run| (run.len(), run[0])).collect();
    frequent.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let divisor = distances.iter().copied().fold(0.0, divisor);
    let candidates = frequent.iter().take(16).map(|(_, distance)| *distance);
    let candidates = candidates.chain([divisor]);
    let steps = candidates.filter(|candidate| share(distances, *candidate) >= 0.9);
    steps.max_by(f64::total_cmp)
}

/// The greatest common divisor of whole numbers; 0 where one is not whole.
fn divisor(a: f64, b: f64) -> f64 {
    if a.fract() != 0.0 || b.fract() != 0.0 || a.is_nan() {
        return f64::NAN;
    }
    let (mut a, mut b) = (a, b);
    while b != 0.0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::{TileGeometry, TileSizeChoice, Value, distances};

    fn grid(columns: usize, rows: usize, apart: f32, from: [f32; 2]) -> Vec<[f32; 2]> {
        let places = (0..columns * rows).map(|i| [i % columns, i / columns]);
        places
            .map(|[x, y]| [from[0] + x as f32 * apart, from[1] + y as f32 * apart])
            .collect()
    }

    fn step(coords: &[[f32; 2]]) -> Option<f64> {
        super::step(&distances(coords))
    }

    fn geometry(attributes: &[(&'static str, &str)]) -> Result<TileGeometry, String> {
        let of = |(name, text): &(&'static str, &str)| (*name, Value::of_text(text));
        TileGeometry::understand(&attributes.iter().map(of).collect())
    }

    #[test]
    fn steps_of_grids() {
        assert_eq!(step(&grid(4, 3, 512.0, [0.0, 0.0])), Some(512.0));
        // Two pieces of tissue, each with a grid of its own, as CLAM lays them.
        let two = [
            grid(5, 4, 1024.0, [37.0, 91.0]),
            grid(6, 5, 1024.0, [20_011.0, 7.0]),
        ];
        assert_eq!(step(&two.concat()), Some(1024.0));
        // Rounded to pixels: 1024.4 apart.
        let rounded: Vec<[f32; 2]> = grid(9, 9, 1024.4, [0.0, 0.0])
            .iter()
            .map(|xy| xy.map(f32::floor))
            .collect();
        assert!((1024.0..=1025.0).contains(&step(&rounded).expect("a grid")));
        // A few of many tiles.
        let sparse: Vec<[f32; 2]> = (0..200u64)
            .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40)
            .map(|bits| [(bits % 32) as f32 * 256.0, (bits / 32 % 32) as f32 * 256.0])
            .collect();
        assert_eq!(step(&sparse), Some(256.0));
        assert_eq!(step(&grid(2, 2, 512.0, [0.0, 0.0])), Some(512.0));
        assert_eq!(step(&grid(3, 1, 512.0, [0.0, 0.0])), None, "too few");
        let scattered = [0.0f32, 100.0, 257.0, 999.0, 1003.5, 2000.25].map(|x| [x, 0.0]);
        assert_eq!(step(&scattered), None);
        assert_eq!(step(&[[f32::NAN, f32::INFINITY]; 9]), None);
    }

    #[test]
    fn attributes_of_trident_and_clam() {
        let size = |attributes: &[(&'static str, &str)]| {
            let geometry = geometry(attributes).expect("valid");
            geometry
                .sizes
                .iter()
                .map(|size| size.pixels)
                .collect::<Vec<_>>()
        };
        let trident = [
            ("patch_size", "256"),
            ("patch_size_level0", "512"),
            ("level0_magnification", "40"),
            ("target_magnification", "20"),
            ("overlap", "64"),
        ];
        assert_eq!(size(&trident), [512, 512]);
        assert_eq!(geometry(&trident).expect("valid").overlap, Some(128));
        assert_eq!(size(&trident[1..2]), [512]);
        assert_eq!(size(&[("patch_size_level0", "512.0")]), [512]);
        let clam = [
            ("patch_size", "256"),
            ("patch_level", "1"),
            ("downsample", "[4.0001, 4.0002]"),
        ];
        assert_eq!(size(&clam), [1024]);
        assert_eq!(size(&[clam[0], ("patch_level", "0")]), [256]);
        let custom = ("custom_downsample", "2");
        assert_eq!(size(&[clam[0], ("patch_level", "0"), custom]), [512]);
        assert_eq!(size(&clam[..2]), [0usize; 0]);
        assert_eq!(size(&[("patch_size", "256")]), [0usize; 0]);
        let unknown = [
            ("level0_magnification", "-1"),
            ("target_magnification", "-1"),
        ];
        assert_eq!(size(&[unknown[0], unknown[1], clam[0]]), [0usize; 0]);
        for (attributes, needle) in [
            (&[("patch_size_level0", "0")][..], "patch_size_level0 0"),
            (&[("patch_size_level0", "NaN")], "patch_size_level0 NaN"),
            (&[("patch_size", "wide")], "patch_size \"wide\""),
            (&[clam[0], ("downsample", "[2, 4]")], "downsample 2 x 4"),
            (&[clam[0], ("downsample", "1e9")], "256000000000 pixels"),
            (
                &[clam[0], ("patch_size", "512")],
                "patch_size 256 and patch_size 512",
            ),
        ] {
            let told = geometry(attributes).expect_err(needle);
            assert!(told.contains(needle), "{told}");
        }
    }

    #[test]
    fn contradictions_name_both_sides_and_the_way_out() {
        use TileSizeChoice::{Forced, Given, OfFile};
        let coords = grid(8, 8, 512.0, [0.0, 0.0]);
        let trident = [("patch_size_level0", "512")];
        let said = |attributes: &[_], coords: &[[f32; 2]], choice| {
            let of = |(name, text): &(&'static str, &str)| (*name, Value::of_text(text));
            let geometry = TileGeometry::of_attributes(&attributes.iter().map(of).collect());
            let size = geometry.tile_size(coords, choice, 256);
            size.map(|size| size.pixels)
                .map_err(|error| error.to_string())
        };
        assert_eq!(said(&trident, &coords, OfFile), Ok(512));
        assert_eq!(said(&trident, &coords, Given(512)), Ok(512));
        assert_eq!(said(&trident, &coords, Forced(256)), Ok(256));
        assert_eq!(said(&[], &coords, Given(512)), Ok(512));
        assert!(said(&trident, &coords, Given(509)).is_err(), "another");
        assert_eq!(said(&[], &grid(8, 8, 256.0, [3.0, 4.0]), OfFile), Ok(256));
        assert_eq!(said(&[], &coords[..3], OfFile), Ok(256), "nothing to see");
        // One in twenty has a neighbour.
        let some: Vec<[f32; 2]> = (0..400)
            .map(|i| {
                [
                    (i % 20 * 512 + i % 20 / 19 * -256) as f32,
                    (i / 20 * 512) as f32,
                ]
            })
            .collect();
        assert_eq!(said(&[], &some, OfFile), Ok(256));
        let overlapping = [("patch_size_level0", "512"), ("overlap", "256")];
        let denser = grid(8, 8, 256.0, [0.0, 0.0]);
        assert_eq!(said(&overlapping, &denser, OfFile), Ok(512));
        assert_eq!(said(&trident, &denser, OfFile), Ok(512), "may overlap");
        let apart = [("patch_size_level0", "512"), ("overlap", "0")];
        let both = [
            ("patch_size_level0", "512"),
            ("patch_size", "256"),
            ("patch_level", "0"),
        ];
        let edges = [("level0_width", "1000"), ("level0_height", "9000")];
        let index = grid(8, 8, 1.0, [0.0, 0.0]);
        let twice = [
            grid(5, 1, 1024.0, [0.0, 7.0]),
            grid(5, 1, 1024.0, [1.0, 8.0]),
        ]
        .concat();
        for (attributes, coords, choice, needles) in [
            (
                &trident[..],
                &coords,
                Given(256),
                ["--tile-size is 256", "patch_size_level0 512"],
            ),
            (
                &[],
                &coords,
                OfFile,
                ["256 pixels of level 0, the default", "tiles lie 512 apart"],
            ),
            (
                &[],
                &coords,
                Given(256),
                ["by --tile-size", "--tile-size 512"],
            ),
            (
                &[],
                &coords,
                Given(1024),
                ["1024 pixels", "tiles lie 512 apart"],
            ),
            (
                &apart,
                &denser,
                OfFile,
                ["512 pixels", "tiles lie 256 apart"],
            ),
            (
                &overlapping,
                &coords,
                OfFile,
                ["tiles lie 512 apart", "overlap of 256"],
            ),
            (
                &both,
                &coords,
                OfFile,
                ["patch_size_level0 512", "patch_size 256 at patch_level 0"],
            ),
            (
                &edges,
                &denser,
                Given(256),
                ["(1024, 0)", "1000 x 9000 pixels"],
            ),
            (
                &[("patch_size", "0")],
                &denser,
                OfFile,
                ["cannot be: patch_size 0", "--force"],
            ),
            (&[], &index, OfFile, ["256 pixels", "tiles lie 1 apart"]),
            (
                &[("patch_size_level0", "1024")],
                &twice,
                OfFile,
                ["5 of 10 tiles", "another"],
            ),
            (
                &[("unit", "um")],
                &denser,
                OfFile,
                ["coordinates are in um", "--tile-size"],
            ),
        ] {
            let told = said(attributes, coords, choice).expect_err(needles[0]);
            for needle in needles {
                assert!(told.contains(needle), "{needle}: {told}");
            }
        }
    }
}
