//! The slide: read from a file, or drawn so that it looks like tissue.

use std::path::Path;

use slide_files::{TileGeometry, TileSize, Tiles};

use crate::settings::Settings;

/// Kinds of tissue of a drawn slide.
const KINDS: usize = 5;

/// Tiles of a file, and their size in the unit of their coordinates.
pub fn read(path: &Path, settings: &Settings) -> Result<(Tiles, TileSize), String> {
    let config = &settings.config;
    let tiles = Tiles::read(path, config.feature_dim).map_err(|error| error.to_string())?;
    let in_file = |error: slide_files::Error| format!("{}: {error}", path.display());
    if !settings.any_encoder {
        tiles.expect_encoder("gigapath").map_err(in_file)?;
    }
    let size = tiles.tile_size(settings.tile_size, config.tile_size);
    Ok((tiles, size.map_err(in_file)?))
}

/// `count` tiles of the piece of tissue around the middle of a slide, row by row. Features are a mixture of a few kinds, which
/// change slowly over the slide, and noise.
pub fn draw(
    count: usize,
    feature_dim: usize,
    tile_size: usize,
) -> Result<(Tiles, TileSize), String> {
    let elements = count.checked_mul(feature_dim).ok_or("too many tiles")?;
    let edge = (2.2 * (count as f64).sqrt()).ceil() as usize + 1;
    // What lies inside a wavy edge, and not in one of its holes, comes first.
    let mut cells: Vec<(f64, [usize; 2])> = (0..edge * edge)
        .map(|i| [i % edge, i / edge])
        .map(|cell| {
            (
                depth(cell.map(|at| 2.0 * at as f64 / edge as f64 - 1.0)),
                cell,
            )
        })
        .collect();
    cells.sort_by(|a, b| a.0.total_cmp(&b.0));
    cells.truncate(count);
    let mut cells: Vec<[usize; 2]> = cells.into_iter().map(|(_, cell)| cell).collect();
    cells.sort_by_key(|[x, y]| [*y, *x]);

    let mut random = Random(7);
    let kinds: Vec<f32> = (0..KINDS * feature_dim).map(|_| random.signed()).collect();
    let mut features = Vec::with_capacity(elements);
    for &cell in &cells {
        let shares = shares(cell.map(|at| 2.0 * at as f64 / edge as f64 - 1.0));
        features.extend((0..feature_dim).map(|i| {
            let kinds = kinds.iter().skip(i).step_by(feature_dim);
            let mixed: f32 = shares
                .iter()
                .zip(kinds)
                .map(|(share, kind)| share * kind)
                .sum();
            mixed + 0.3 * random.signed()
        }));
    }
    let place = |[x, y]: [usize; 2]| [x as f32, y as f32].map(|at| at * tile_size as f32);
    let tiles = Tiles {
        features,
        coords: cells.into_iter().map(place).collect(),
        geometry: TileGeometry::default(),
    };
    let size = TileSize {
        pixels: tile_size,
        reason: "as they were drawn".to_owned(),
    };
    Ok((tiles, size))
}

/// How far outside of the tissue a point is, in a square from -1 to 1.
fn depth([x, y]: [f64; 2]) -> f64 {
    let angle = y.atan2(x);
    let edge = 1.0
        + 0.16 * (2.0 * angle + 0.6).sin()
        + 0.11 * (3.0 * angle + 2.1).sin()
        + 0.05 * (7.0 * angle).sin();
    let radius = x.hypot(y) / edge;
    let hole = |[cx, cy]: [f64; 2], size: f64| (1.0 - (x - cx).hypot(y - cy) / size).max(0.0);
    radius + 3.0 * hole([0.19, -0.16], 0.08) + 3.0 * hole([-0.22, 0.14], 0.06)
}

/// How much of each kind there is at a point.
fn shares([x, y]: [f64; 2]) -> [f32; KINDS] {
    let (u, v) = (x + 0.12 * (7.0 * y).sin(), y + 0.12 * (6.0 * x).cos());
    let centres = [
        [-0.35, -0.3],
        [0.4, -0.25],
        [0.05, 0.1],
        [-0.3, 0.4],
        [0.4, 0.4],
    ];
    let weights = centres.map(|[cx, cy]| (-28.0 * ((u - cx).powi(2) + (v - cy).powi(2))).exp());
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| (weight / sum.max(1e-30)) as f32)
}

/// Numbers from -1 to 1, the same each time.
struct Random(u64);

impl Random {
    fn signed(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
