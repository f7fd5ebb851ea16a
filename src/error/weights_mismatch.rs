//! Differences between a weight file and a model.

use std::fmt;

use super::stored_type::StoredType;

/// All differences that keep a [`WeightSource`](crate::WeightSource) from being loaded as the parameters of a list. The lists are
/// complete; only the printed text is shortened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightsMismatch {
    /// The file, or another description of the source.
    pub file: String,
    /// Parameters without a tensor in the file.
    pub missing: Vec<String>,
    /// Tensors of the file that belong to no parameter.
    pub unknown: Vec<String>,
    /// Tensors with another shape than their parameter.
    pub misshapen: Vec<Misshapen>,
    /// Tensors with a type that parameters cannot have.
    pub mistyped: Vec<Mistyped>,
    /// Parameters for which, after renaming, there are several tensors.
    pub duplicate: Vec<Duplicate>,
    /// Tensors with infinite elements or NaN, if [`Context::set_check_finite`](crate::Context::set_check_finite) is on.
    pub not_finite: Vec<String>,
    /// Prefixes under which the file has more of the parameters than under the given one, the one with the most first. Empty if the
    /// file has half of the parameters or more under the given prefix: then names are wrong, not the prefix.
    pub prefixes: Vec<FoundPrefix>,
}

/// A prefix of names in a file under which parameters were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPrefix {
    /// The prefix, to be given to [`WeightFile::part`](crate::WeightFile::part). Empty if names have no prefix.
    pub prefix: String,
    /// Number of parameters for which the file has tensors under this prefix.
    pub found: usize,
    /// Number of parameters of the model.
    pub of: usize,
}

/// A tensor with another shape than its parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub given: Vec<usize>,
    /// Shape of the parameter.
    pub need: Vec<usize>,
}

/// A tensor with a type that parameters cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistyped {
    /// Name in the file.
    pub name: String,
    /// Type in the file.
    pub given: StoredType,
}

/// A parameter for which there are several tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Name of the parameter.
    pub parameter: String,
    /// Names of the tensors in the file.
    pub names: Vec<String>,
}

impl WeightsMismatch {
    /// Whether there are no differences.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unknown.is_empty()
            && self.misshapen.is_empty()
            && self.mistyped.is_empty()
            && self.duplicate.is_empty()
            && self.not_finite.is_empty()
    }
}

/// Most names of each kind that are printed.
const SHOWN: usize = 20;

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, kind: &str, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    write!(f, "\n  {} {kind}: ", items.len())?;
    for (index, item) in items.iter().take(SHOWN).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{item}")?;
    }
    match items.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

impl fmt::Display for WeightsMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(best) = self.prefixes.first() {
            // Without the right prefix, the lists of differences are of no use, so only the prefix is printed.
            let FoundPrefix { prefix, found, of } = best;
            write!(
                f,
                "{} does not fit the model as asked, but it has ",
                self.file
            )?;
            match self.missing.as_slice() {
                [one] => write!(f, "{one}")?,
                _ => write!(f, "{found} of {of} parameters")?,
            }
            match prefix.as_str() {
                "" => write!(f, " without a prefix: load all()")?,
                _ => write!(f, " under the prefix {prefix:?}: load part({prefix:?})")?,
            }
            for other in self.prefixes[1..].iter().take(SHOWN) {
                write!(f, ", or part({:?}) with {}", other.prefix, other.found)?;
            }
            return Ok(());
        }
        write!(f, "{} does not fit the model:", self.file)?;
        list(f, "missing", &self.missing)?;
        list(f, "unknown", &self.unknown)?;
        list(f, "misshapen", &self.misshapen)?;
        list(f, "of a type other than F32, F16, BF16", &self.mistyped)?;
        list(f, "given several times", &self.duplicate)?;
        list(f, "not finite", &self.not_finite)
    }
}

impl fmt::Display for Misshapen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, given, need } = self;
        write!(f, "{name} ({given:?}, needs {need:?})")
    }
}

impl fmt::Display for Mistyped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.given)
    }
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (by {})", self.parameter, self.names.join(", "))
    }
}
