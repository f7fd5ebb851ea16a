//! From a file to parameters on the device.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::file::WeightFile;
use super::mismatch::{Duplicate, Misshapen, Mistyped, WeightsMismatch};
use super::stored::StoredTensor;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::nn::{PIECE_ELEMENTS, ParameterList, Parameters};

type Rename<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// What to load from: a [`WeightFile`], perhaps a part of it, perhaps under other names.
pub struct WeightSource<'a> {
    file: &'a WeightFile,
    prefix: String,
    rename: Option<Rename<'a>>,
}

impl<'a> WeightSource<'a> {
    pub(super) fn new(file: &'a WeightFile, prefix: String) -> Self {
        Self {
            file,
            prefix,
            rename: None,
        }
    }

    /// The same under other names: `rename` is given a tensor's name (without the prefix of the part, after earlier renaming)
    /// and says which parameter it is for, or `None` for a tensor to leave out knowingly.
    pub fn rename(mut self, rename: impl Fn(&str) -> Option<String> + 'a) -> Self {
        self.rename = Some(match self.rename.take() {
            None => Box::new(rename),
            Some(earlier) => Box::new(move |name| rename(&earlier(name)?)),
        });
        self
    }

    /// Compares with the list, by headers alone.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`], with all differences.
    pub fn check(&self, list: &ParameterList) -> Result<()> {
        self.matched(list, false).map(drop)
    }

    /// The parameters of the list, each from the tensor of its name and shape. F16 and BF16 are widened, which is exact.
    ///
    /// Strict: each parameter needs a tensor and each tensor a parameter. All that can be wrong with a file is found before
    /// anything is leased. Uploads go in submissions of 16 MiB, one after the other; when one fails, what was leased goes back.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`], with all differences; those of leasing, uploading and submitting.
    pub fn load(&self, context: &Context, list: &Arc<ParameterList>) -> Result<Parameters> {
        let tensors = self.matched(list, context.checks_finite())?;
        Parameters::submitted(context, "load weights", list, |index, first, values| {
            // One for each parameter, as `matched` says.
            if let Some(stored) = tensors.get(index) {
                stored.read(first, values);
            }
        })
    }

    /// For each parameter of the list its tensor.
    fn matched(&self, list: &ParameterList, check_finite: bool) -> Result<Vec<StoredTensor<'a>>> {
        let specs = list.specs();
        let mut index_of = HashMap::new();
        for (index, spec) in specs.iter().enumerate() {
            // Of two parameters of one name, the second stays without a tensor and is reported.
            index_of.entry(spec.name.as_str()).or_insert(index);
        }
        let mut found: Vec<Vec<StoredTensor<'a>>> = vec![Vec::new(); specs.len()];
        let mut mismatch = WeightsMismatch {
            file: self.file.label().to_owned(),
            ..Default::default()
        };
        for tensor in self.file.tensors() {
            let Some(name) = tensor.name().strip_prefix(&self.prefix) else {
                continue;
            };
            let name = match &self.rename {
                None => name.to_owned(),
                Some(rename) => match rename(name) {
                    None => continue,
                    Some(name) => name,
                },
            };
            let Some(&index) = index_of.get(name.as_str()) else {
                mismatch.unknown.push(tensor.name().to_owned());
                continue;
            };
            found[index].push(tensor);
            if tensor.shape() != specs[index].shape {
                mismatch.misshapen.push(Misshapen {
                    name: tensor.name().to_owned(),
                    given: tensor.shape().to_vec(),
                    need: specs[index].shape.clone(),
                });
            }
            if !tensor.stored_type().is_accepted() {
                mismatch.mistyped.push(Mistyped {
                    name: tensor.name().to_owned(),
                    given: tensor.stored_type(),
                });
            } else if check_finite && !is_finite(&tensor) {
                mismatch.not_finite.push(tensor.name().to_owned());
            }
        }
        let mut tensors = Vec::with_capacity(specs.len());
        for (spec, found) in specs.iter().zip(&found) {
            match found.as_slice() {
                [] => mismatch.missing.push(spec.name.clone()),
                [tensor] => tensors.push(*tensor),
                several => mismatch.duplicate.push(Duplicate {
                    parameter: spec.name.clone(),
                    names: several.iter().map(|t| t.name().to_owned()).collect(),
                }),
            }
        }
        match mismatch.is_empty() {
            true => Ok(tensors),
            false => Err(Error::WeightsMismatch(Box::new(mismatch))),
        }
    }
}

/// Whether all elements are numbers.
fn is_finite(tensor: &StoredTensor<'_>) -> bool {
    let num_elements = tensor.num_elements();
    let mut scratch = vec![0.0f32; num_elements.min(PIECE_ELEMENTS)];
    (0..num_elements).step_by(PIECE_ELEMENTS).all(|first| {
        let piece = &mut scratch[..PIECE_ELEMENTS.min(num_elements - first)];
        tensor.read(first, piece);
        piece.iter().all(|value| value.is_finite())
    })
}

impl fmt::Debug for WeightSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightSource")
            .field("file", self.file)
            .field("prefix", &self.prefix)
            .field("renamed", &self.rename.is_some())
            .finish()
    }
}
