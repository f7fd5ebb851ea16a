//! The files around a slide: features and coordinates of its tiles in, embeddings out.
//!
//! ```text
//! .safetensors   features, coords
//! .npz           features, coords; stored or deflated
//! .npy           features in one file, coords in another: Tiles::read_pair
//! .h5, .hdf5     features, coords, as CLAM and TRIDENT write them; cargo feature h5
//! ```
//! Beside them a file may say how its tiles were cut and what computed their features: [`TileGeometry`], of which
//! [`Tiles::tile_size`] makes the size of a tile in the unit of its coordinates.
//!
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
mod geometry;
#[cfg(feature = "h5")]
mod h5;
mod kind;
#[cfg(feature = "h5")]
mod lzf;
mod npy;
mod npz;
mod safetensors;

use std::path::Path;

use array::Wanted;
pub use error::Error;
use geometry::Attributes;
pub use geometry::{StatedSize, TileGeometry, TileSize, TileSizeChoice};
use kind::Kind;
pub use npy::{NpyArray, write_npy};

/// The tiles of a slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// Features, (tiles, feature_dim), row-major.
    pub features: Vec<f32>,
    /// Where each tile begins, (x, y), in pixels of level 0.
    pub coords: Vec<[f32; 2]>,
    /// What the file says of them.
    pub geometry: TileGeometry,
}

/// How one format is read.
struct Format {
    kind: Kind,
    read: fn(&Wanted<'_>) -> Result<Vec<f32>, Error>,
    attributes: fn(&Wanted<'_>) -> Result<Attributes, Error>,
}

const SAFETENSORS: Format = Format {
    kind: Kind::Safetensors,
    read: safetensors::read,
    attributes: safetensors::attributes,
};

const NPZ: Format = Format {
    kind: Kind::Npz,
    read: npz::read,
    attributes: npz::attributes,
};

const NPY: Format = Format {
    kind: Kind::Npy,
    read: npy::read,
    attributes: |_| Ok(Attributes::new()),
};

const HDF5: Format = Format {
    kind: Kind::Hdf5,
    #[cfg(feature = "h5")]
    read: h5::read,
    #[cfg(feature = "h5")]
    attributes: h5::attributes,
    #[cfg(not(feature = "h5"))]
    read: |wanted| {
        Err(Error::WithoutH5 {
            path: wanted.path.into(),
        })
    },
    #[cfg(not(feature = "h5"))]
    attributes: |_| Ok(Attributes::new()),
};

impl Tiles {
    /// Reads `features` and `coords` of one file, whose extension tells the format.
    ///
    /// # Errors
    /// [`Error`], naming file and array.
    pub fn read(path: impl AsRef<Path>, feature_dim: usize) -> Result<Self, Error> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let extension = extension.map(str::to_ascii_lowercase);
        let format = match extension.as_deref() {
            Some("safetensors") => Ok(SAFETENSORS),
            Some("npz") => Ok(NPZ),
            Some("h5" | "hdf5") => Ok(HDF5),
            Some("npy") => Err(Error::OneNpy { path: path.into() }),
            _ => Err(Error::UnknownFormat { path: path.into() }),
        };
        let kind = format.as_ref().map_or(Kind::Npy, |format| format.kind);
        expect_kind(&Wanted::coords(path), kind)?;
        Self::join(path, path, feature_dim, &format?)
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
        let (features, coords) = (features.as_ref(), coords.as_ref());
        for path in [features, coords] {
            expect_kind(&Wanted::coords(path), Kind::Npy)?;
        }
        Self::join(features, coords, feature_dim, &NPY)
    }

    /// The edge of a tile in the unit of [`coords`](Self::coords), by what the file says, the caller's `choice`, and where
    /// neither says it `default`.
    ///
    /// # Errors
    /// [`Error::Geometry`] where two of these contradict each other, or the coordinates: tiles lie further apart than their
    /// size or nearer, several lie in one cell, or one beyond the slide. The message has both sides and the options
    /// `--tile-size` and `--force-tile-size` of the programs that read slides.
    pub fn tile_size(&self, choice: TileSizeChoice, default: usize) -> Result<TileSize, Error> {
        self.geometry.tile_size(&self.coords, choice, default)
    }

    /// That the features are of the encoder called so, if the file says of which they are.
    ///
    /// # Errors
    /// [`Error::Encoder`].
    pub fn expect_encoder(&self, need: &'static str) -> Result<(), Error> {
        match &self.geometry.encoder {
            Some(given) if !given.to_ascii_lowercase().contains(need) => Err(Error::Encoder {
                given: array::shown(given),
                need,
            }),
            _ => Ok(()),
        }
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
        Ok(Self {
            features,
            coords,
            geometry: TileGeometry::made(256),
        })
    }

    /// Number of tiles.
    pub fn count(&self) -> usize {
        self.coords.len()
    }

    fn join(
        features: &Path,
        coords: &Path,
        feature_dim: usize,
        format: &Format,
    ) -> Result<Self, Error> {
        // The coordinates first: they are small, and often enough to see that a file is another one.
        let (pairs, count) = {
            let values = (format.read)(&Wanted::coords(coords))?;
            let (pairs, _) = values.as_chunks::<2>();
            (pairs.to_vec(), pairs.len())
        };
        let geometry = TileGeometry::of_attributes(&(format.attributes)(&Wanted::coords(coords))?);
        let mut values = (format.read)(&Wanted::features(features, feature_dim));
        if let (Err(Error::Width { by, .. }), Some(encoder)) = (&mut values, &geometry.encoder) {
            *by = format!(" (by {}, as the file says)", array::shown(encoder));
        }
        let values = values?;
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
            geometry,
        })
    }
}

/// That the file does not begin as another kind does; one that begins as none is left to its reader.
fn expect_kind(wanted: &Wanted<'_>, kind: Kind) -> Result<(), Error> {
    let (file, _) = wanted.open()?;
    let given = Kind::read(file).map_err(|reason| Error::File {
        path: wanted.path.into(),
        action: "read",
        reason,
    })?;
    match given.filter(|given| *given != kind) {
        Some(given) => {
            let (is, remedy) = given.told();
            Err(Error::AnotherKind {
                path: wanted.path.into(),
                is,
                remedy,
            })
        }
        None => Ok(()),
    }
}
