//! Input of LongViT: images, and their patches.

use std::ops::Range;

use super::LongVitConfig;
use crate::config::AttentionShape;
use crate::error::{Error, Result};

/// A batch of images of the same size, whose height and width are multiples of the patch size.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// Pixels, (batch, channels, height, width), row-major, normalised as in the model's training.
    pub pixels: &'a [f32],
    /// Number of images, height and width of each in pixels.
    pub size: [usize; 3],
}

/// The patches of images, as rows, image by image.
#[derive(Clone, Debug)]
pub(super) struct Patches<'a> {
    pixels: &'a [f32],
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    patch: usize,
}

impl<'a> Patches<'a> {
    /// # Errors
    /// [`Error::InvalidShape`] for no images, for images that do not consist of whole patches, and for a wrong number of pixels.
    pub fn new(config: &LongVitConfig, images: Images<'a>) -> Result<Self> {
        let (pixels, [batch, height, width]) = (images.pixels, images.size);
        let (patch, channels) = (config.patch_size, config.channels);
        let whole = |size: usize| size > 0 && size.is_multiple_of(patch);
        let elements = [batch, channels, height, width]
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size));
        if batch == 0 || !whole(height) || !whole(width) || elements != Some(pixels.len()) {
            return Err(Error::InvalidShape {
                what: "images".into(),
                given: format!(
                    "{} elements for {batch} of {height} x {width}",
                    pixels.len()
                ),
                need: format!(
                    "at least one image of {channels} channels, whole patches of {patch}"
                ),
            });
        }
        Ok(Self {
            pixels,
            batch,
            channels,
            height,
            width,
            patch,
        })
    }

    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Number of patches along an image's height and width.
    pub fn grid(&self) -> [usize; 2] {
        [self.height / self.patch, self.width / self.patch]
    }

    /// Number of patches of an image.
    pub fn tokens(&self) -> usize {
        self.grid().iter().product()
    }

    /// Number of patches of all images.
    pub fn num_rows(&self) -> usize {
        self.batch * self.tokens()
    }

    /// Range of the rows of an image.
    pub fn rows_of(&self, item: usize) -> Range<usize> {
        let tokens = self.tokens();
        item * tokens..(item + 1) * tokens
    }

    /// Batch and number of patches.
    ///
    /// # Errors
    /// As [`AttentionShape::new`].
    pub fn shape(&self) -> Result<AttentionShape> {
        AttentionShape::new(self.batch, self.tokens())
    }

    /// The pixels of some patches; the order in a patch is (channel, row, column).
    pub fn values(&self, rows: Range<usize>) -> Vec<f32> {
        let (patch, [_, columns]) = (self.patch, self.grid());
        let plane = self.height * self.width;
        let mut values = Vec::with_capacity(rows.len() * self.channels * patch * patch);
        for row in rows {
            let (item, token) = (row / self.tokens(), row % self.tokens());
            let (y, x) = (token / columns * patch, token % columns * patch);
            for channel in 0..self.channels {
                let begin = (item * self.channels + channel) * plane + x;
                for line in y..y + patch {
                    let begin = begin + line * self.width;
                    values.extend_from_slice(&self.pixels[begin..begin + patch]);
                }
            }
        }
        values
    }
}
