//! The files around a slide: features and coordinates of its tiles in, embeddings out.
//!
//! ```text
//! .safetensors   features, coords
//! .npz           features, coords; stored or deflated
//! .npy           features in one file, coords in another: Tiles::read_pair
//! .h5, .hdf5     features, coords, as CLAM and TRIDENT write them; cargo feature h5
//! ```
//! Features are (tiles, feature_dim) of F16, BF16, F32 or F64, coordinates (tiles, 2) of the same types or integers, each
//! perhaps below one more dimension of 1. Everything becomes f32.
//!
//! A file may come from anywhere. What it says of its arrays is compared with what is needed and with the file's own size
//! before anything of that size is allocated; what is wrong is an [`Error`] that names file and array.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod array;
mod element;
mod error;
#[cfg(feature = "h5")]
mod h5;
mod npy;
mod npz;
mod safetensors;

use std::path::Path;

use array::Wanted;
pub use error::Error;
pub use npy::write_npy;

/// The tiles of a slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// Features, (tiles, feature_dim), row-major.
    pub features: Vec<f32>,
    /// Where each tile begins, (x, y), in pixels of level 0.
    pub coords: Vec<[f32; 2]>,
}

impl Tiles {
    /// Reads `features` and `coords` of one file, whose extension tells the format.
    ///
    /// # Errors
    /// [`Error`], naming file and array.
    pub fn read(path: impl AsRef<Path>, feature_dim: usize) -> Result<Self, Error> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let extension = extension.map(str::to_ascii_lowercase);
        let read: fn(&Wanted<'_>) -> Result<Vec<f32>, Error> = match extension.as_deref() {
            Some("safetensors") => safetensors::read,
            Some("npz") => npz::read,
            #[cfg(feature = "h5")]
            Some("h5" | "hdf5") => h5::read,
            #[cfg(not(feature = "h5"))]
            Some("h5" | "hdf5") => return Err(Error::WithoutH5 { path: path.into() }),
            Some("npy") => return Err(Error::OneNpy { path: path.into() }),
            _ => return Err(Error::UnknownFormat { path: path.into() }),
        };
        Self::join(path, path, feature_dim, read)
    }

    /// Reads features and coordinates from two `.npy` files.
    ///
    /// # Errors
    /// [`Error`], naming the file.
    pub fn read_pair(
        features: impl AsRef<Path>,
        coords: impl AsRef<Path>,
        feature_dim: usize,
    ) -> Result<Self, Error> {
        Self::join(features.as_ref(), coords.as_ref(), feature_dim, npy::read)
    }

    /// Tiles drawn at random, the same each time: features uniform between -1 and 1, coordinates row by row of a square of
    /// tiles of 256 pixels.
    ///
    /// # Errors
    /// [`Error::TooManyTiles`] when memory does not suffice.
    pub fn drawn(count: usize, feature_dim: usize) -> Result<Self, Error> {
        let too_many = || Error::TooManyTiles { count, feature_dim };
        let elements = count.checked_mul(feature_dim).ok_or_else(too_many)?;
        let mut features = Vec::new();
        features
            .try_reserve_exact(elements)
            .map_err(|_| too_many())?;
        let mut state = 1u64;
        features.extend((0..elements).map(|_| {
            // The generator of Knuth's MMIX; the upper bits are good enough here.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        }));
        let mut coords = Vec::new();
        coords.try_reserve_exact(count).map_err(|_| too_many())?;
        let width = (count as f64).sqrt().ceil() as usize;
        let place = |i: usize| [(i % width * 256) as f32, (i / width * 256) as f32];
        coords.extend((0..count).map(place));
        Ok(Self { features, coords })
    }

    /// Number of tiles.
    pub fn count(&self) -> usize {
        self.coords.len()
    }

    fn join(
        features: &Path,
        coords: &Path,
        feature_dim: usize,
        read: impl Fn(&Wanted<'_>) -> Result<Vec<f32>, Error>,
    ) -> Result<Self, Error> {
        // The coordinates first: they are small, and often enough to see that a file is another one.
        let (pairs, count) = {
            let values = read(&Wanted::coords(coords))?;
            let (pairs, _) = values.as_chunks::<2>();
            (pairs.to_vec(), pairs.len())
        };
        let values = read(&Wanted::features(features, feature_dim))?;
        if Some(values.len()) != count.checked_mul(feature_dim) {
            return Err(Error::Lengths {
                path: features.into(),
                features: values.len() / feature_dim.max(1),
                coords: count,
            });
        }
        Ok(Self {
            features: values,
            coords: pairs,
        })
    }
}
