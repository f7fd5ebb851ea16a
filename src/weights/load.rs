//! Loads parameters from a file to the device.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::file::WeightFile;
use super::stored::StoredTensor;
use crate::context::Context;
use crate::error::Result;
use crate::error::{Duplicate, FoundPrefix, Misshapen, Mistyped, WeightsError, WeightsMismatch};
use crate::nn::{PIECE_ELEMENTS, ParameterList, Parameters};

/// Prefixes are looked for up to this many dots in a name. Prefixes of wrappers have few; the limit bounds the work for hostile files.
const PREFIX_DOTS: usize = 8;

type Rename<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// A source of weights: a [`WeightFile`] or a part of it, with renamed tensors if necessary.
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

    /// The prefix of the part, which is removed from the names of its tensors.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Renames tensors. `rename` gets the name of a tensor, without the prefix of the part and after earlier renaming, and returns
    /// the name of its parameter, or `None` to leave the tensor out.
    pub fn with_rename(mut self, rename: impl Fn(&str) -> Option<String> + 'a) -> Self {
        self.rename = Some(match self.rename.take() {
            None => Box::new(rename),
            Some(earlier) => Box::new(move |name| rename(&earlier(name)?)),
        });
        self
    }

    /// The tensors of the part, each with its parameter's name: without the prefix, and renamed.
    pub fn tensors(&self) -> impl Iterator<Item = (Cow<'a, str>, StoredTensor<'a>)> {
        self.file.tensors().filter_map(|tensor| {
            let name = tensor.name().strip_prefix(&self.prefix)?;
            Some((self.renamed(name)?, tensor))
        })
    }

    fn renamed(&self, name: &'a str) -> Option<Cow<'a, str>> {
        match &self.rename {
            None => Some(Cow::Borrowed(name)),
            Some(rename) => rename(name).map(Cow::Owned),
        }
    }

    /// The tensor for the parameter called `name`.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] when there is none, with the prefixes under which the file has one.
    pub(crate) fn tensor(&self, name: &str) -> Result<StoredTensor<'a>, WeightsError> {
        let found = self.tensors().find(|(given, _)| given == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| {
            WeightsError::Mismatch(Box::new(WeightsMismatch {
                file: self.file.label().to_owned(),
                missing: vec![name.to_owned()],
                prefixes: self.prefixes(&HashMap::from([(name, 0)]), 0),
                ..Default::default()
            }))
        })
    }

    /// Prefixes under which the file has more than `found` of the parameters.
    fn prefixes(&self, index_of: &HashMap<&str, usize>, found: usize) -> Vec<FoundPrefix> {
        let mut counts = BTreeMap::<&str, usize>::new();
        for name in self.file.names() {
            let dots = name.match_indices('.').take(PREFIX_DOTS);
            for begin in [0].into_iter().chain(dots.map(|(dot, _)| dot + 1)) {
                let (prefix, rest) = name.split_at(begin);
                let is_parameter = |rest: Cow<'_, str>| index_of.contains_key(&*rest);
                if self.renamed(rest).is_some_and(is_parameter) {
                    *counts.entry(prefix).or_default() += 1;
                }
            }
        }
        let prefix = |(prefix, found): (&str, usize)| FoundPrefix {
            prefix: prefix.to_owned(),
            found,
            of: index_of.len(),
        };
        let more = counts.into_iter().filter(|(_, count)| *count > found);
        let mut prefixes: Vec<_> = more.map(prefix).collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.found));
        prefixes
    }

    /// Compares names, types and shapes with the list. Elements are not read.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`], with all differences.
    pub fn check(&self, list: &ParameterList) -> Result<(), WeightsError> {
        self.matched(list, false).map(drop)
    }

    /// Loads the parameters of the list, each from the tensor with its name and shape. F16 and BF16 are converted to f32, which is exact.
    ///
    /// Loading is strict: each parameter needs a tensor, and each tensor a parameter. All differences are found before anything is
    /// leased. Uploads are submitted in parts of 16 MiB, one after the other. If one fails, all leases go back.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`], with all differences; [`WeightsError::FileChanged`] and [`WeightsError::Unreadable`]; the errors
    /// of leasing, uploading and submitting.
    pub fn load(&self, context: &Context, list: &Arc<ParameterList>) -> Result<Parameters> {
        let tensors = self.matched(list, context.checks_finite())?;
        Parameters::submitted(context, "load weights", list, |index, first, values| {
            // `matched` returns a tensor for each parameter.
            if let Some(stored) = tensors.get(index) {
                stored.read(first, values)?;
            }
            Ok(())
        })
    }

    /// The tensor of each parameter of the list, in order.
    fn matched(
        &self,
        list: &ParameterList,
        check_finite: bool,
    ) -> Result<Vec<StoredTensor<'a>>, WeightsError> {
        let specs = list.specs();
        let mut index_of = HashMap::new();
        for (index, spec) in specs.iter().enumerate() {
            // If two parameters have the same name, the second gets no tensor and is reported as missing.
            index_of.entry(spec.name.as_str()).or_insert(index);
        }
        let mut found: Vec<Vec<StoredTensor<'a>>> = vec![Vec::new(); specs.len()];
        let mut mismatch = WeightsMismatch {
            file: self.file.label().to_owned(),
            ..Default::default()
        };
        for (name, tensor) in self.tensors() {
            let Some(&index) = index_of.get(&*name) else {
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
            } else if check_finite && !is_finite(&tensor)? {
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
        if mismatch.is_empty() {
            return Ok(tensors);
        }
        let named = index_of.len().saturating_sub(mismatch.missing.len());
        if 2 * named < index_of.len() {
            mismatch.prefixes = self.prefixes(&index_of, named);
        }
        Err(WeightsError::Mismatch(Box::new(mismatch)))
    }
}

/// Whether all elements are finite.
fn is_finite(tensor: &StoredTensor<'_>) -> Result<bool, WeightsError> {
    let num_elements = tensor.num_elements();
    let mut scratch = vec![0.0f32; num_elements.min(PIECE_ELEMENTS)];
    for first in (0..num_elements).step_by(PIECE_ELEMENTS) {
        let piece = &mut scratch[..PIECE_ELEMENTS.min(num_elements - first)];
        tensor.read(first, piece)?;
        if piece.iter().any(|value| !value.is_finite()) {
            return Ok(false);
        }
    }
    Ok(true)
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
