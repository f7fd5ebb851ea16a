//! Input of the slide encoder: slides, and the cells of their tiles.

use super::SlideEncoderConfig;
use super::config::MAX_GRID_CELLS;
use crate::config::in_u32;
use crate::device::DType;
use crate::error::{Error, Result};

/// From this value on, f16 rounds to infinity: half a step above its largest number.
const F16_OVERFLOW: f32 = 65_520.0;
const BF16_OVERFLOW: f32 = f32::from_bits(0x7f7f_8000);

/// A slide. The order of tiles matters, as upstream, because segments are runs of tokens. Any order is allowed, and so are several
/// tiles in the same cell.
#[derive(Clone, Copy, Debug)]
pub struct Slide<'a> {
    /// Features, (tiles, feature_dim), row-major.
    pub features: &'a [f32],
    /// Upper left corner of each tile, (x, y), in pixels of level 0.
    pub coords: &'a [[f32; 2]],
}

/// A cell of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Column.
    pub x: u32,
    /// Row.
    pub y: u32,
}

impl SlideEncoderConfig {
    /// The cells of a slide's tiles.
    ///
    /// # Errors
    /// [`Error::TileOutOfGrid`] names the first tile whose coordinates are NaN, negative or outside of the grid.
    pub fn cells(&self, coords: &[[f32; 2]]) -> Result<Vec<Cell>> {
        let size = self.tile_size as f64;
        let grid_cells = self.grid_cells.min(MAX_GRID_CELLS);
        let cell = |coordinate: f32| {
            let cell = (f64::from(coordinate) / size).floor();
            // NaN is in no range.
            (0.0..grid_cells as f64)
                .contains(&cell)
                .then_some(cell as u32)
        };
        let cells = coords.iter().enumerate().map(|(tile, &[x, y])| {
            cell(x)
                .zip(cell(y))
                .map(|(x, y)| Cell { x, y })
                .ok_or(Error::TileOutOfGrid {
                    tile: tile as u64,
                    x,
                    y,
                    limit: (self.tile_size as u64).saturating_mul(grid_cells as u64),
                })
        });
        cells.collect()
    }

    /// The position vector of a cell, `[sin(y w), cos(y w), sin(x w), cos(x w)]`.
    pub fn position_vector(&self, cell: Cell) -> Vec<f32> {
        [self.position_half(cell.y), self.position_half(cell.x)].concat()
    }

    /// The half of a position vector that depends on one coordinate.
    fn position_half(&self, coordinate: u32) -> Vec<f32> {
        let count = self.width() / 4;
        let angles = (0..count).map(|i| {
            let frequency = 10_000f64.powf(-(i as f64) / count as f64);
            f64::from(coordinate) * frequency
        });
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (angle.sin() as f32, angle.cos() as f32))
            .unzip();
        [sines, cosines].concat()
    }

    /// The table of all half position vectors, (grid_cells, width / 2).
    pub(super) fn position_table(&self) -> Vec<f32> {
        (0..in_u32(self.grid_cells))
            .flat_map(|coordinate| self.position_half(coordinate))
            .collect()
    }

    /// Checks the lengths of all slides, and returns the cells of their tiles.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for no slides, a slide without tiles, and features of another number or width;
    /// [`Error::InSlide`] around [`Error::TileOutOfGrid`].
    pub(super) fn check_slides(&self, slides: &[Slide<'_>]) -> Result<Vec<Vec<Cell>>> {
        let invalid = |what: &'static str, given: String, need: String| Error::InvalidShape {
            what: what.into(),
            given,
            need,
        };
        if slides.is_empty() {
            let need = "at least one".to_owned();
            return Err(invalid("number of slides", "0".to_owned(), need));
        }
        let check = |slide: &Slide<'_>| {
            let tiles = slide.coords.len();
            if tiles == 0 {
                let need = "at least one".to_owned();
                return Err(invalid("number of tiles", "0".to_owned(), need));
            }
            if Some(slide.features.len()) != tiles.checked_mul(self.feature_dim) {
                let need = format!("{tiles} tiles of {} features", self.feature_dim);
                let given = format!("{} elements", slide.features.len());
                return Err(invalid("features of a slide", given, need));
            }
            self.cells(slide.coords)
        };
        let checked = slides.iter().enumerate();
        checked
            .map(|(index, slide)| {
                check(slide).map_err(|error| in_slide(slides.len(), index, error))
            })
            .collect()
    }

    /// Checks that all features are finite, also in the type of the activations.
    ///
    /// # Errors
    /// [`Error::FeatureNotFinite`] with the first that is not; inside [`Error::InSlide`] if there are several slides.
    pub(super) fn check_features(&self, slides: &[Slide<'_>]) -> Result<()> {
        let overflow = match self.activations {
            DType::F16 => F16_OVERFLOW,
            DType::Bf16 => BF16_OVERFLOW,
            _ => f32::INFINITY,
        };
        // False for NaN.
        let stays_finite = |value: &f32| value.abs() < overflow;
        for (index, slide) in slides.iter().enumerate() {
            for (tile, row) in slide.features.chunks(self.feature_dim).enumerate() {
                // Counts all instead of stopping at the first: without a branch, compilers check several values at a time.
                if row.iter().filter(|value| !stays_finite(value)).count() == 0 {
                    continue;
                }
                let element = row
                    .iter()
                    .position(|value| !stays_finite(value))
                    .unwrap_or(0);
                let error = Error::FeatureNotFinite {
                    tile,
                    element,
                    value: row[element],
                    activations: self.activations,
                };
                return Err(in_slide(slides.len(), index, error));
            }
        }
        Ok(())
    }
}

/// Adds the number of the slide to an error if there are several slides.
fn in_slide(slides: usize, slide: usize, error: Error) -> Error {
    match slides {
        1 => error,
        _ => Error::InSlide {
            slide,
            error: Box::new(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::{BF16_OVERFLOW, F16_OVERFLOW};

    #[test]
    fn values_below_the_overflow_stay_finite_and_no_others() {
        let below = |value: f32| f32::from_bits(value.to_bits() - 1);
        assert!(f16::from_f32(F16_OVERFLOW).is_infinite());
        assert!(f16::from_f32(below(F16_OVERFLOW)).is_finite());
        assert!(bf16::from_f32(BF16_OVERFLOW).is_infinite());
        assert!(bf16::from_f32(below(BF16_OVERFLOW)).is_finite());
    }
}
