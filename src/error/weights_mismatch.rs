//! How a file and a model differ.

use std::fmt;

use super::stored_type::StoredType;

/// Everything that keeps a [`WeightSource`](crate::WeightSource) from being loaded as the parameters of a list, in full;
/// only the text is shortened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightsMismatch {
    /// What was loaded from.
    pub file: String,
    /// Parameters that no tensor of the file is for.
    pub missing: Vec<String>,
    /// Tensors of the file that are for no parameter.
    pub unknown: Vec<String>,
    /// Tensors of another shape than their parameter.
    pub misshapen: Vec<Misshapen>,
    /// Tensors of a type that parameters cannot have.
    pub mistyped: Vec<Mistyped>,
    /// Parameters that several tensors are for, after renaming.
    pub duplicate: Vec<Duplicate>,
    /// Tensors with infinite elements or NaN, where [`Context::set_check_finite`](crate::Context::set_check_finite) asks.
    pub not_finite: Vec<String>,
    /// Prefixes under which the file has more of the parameters than as it was asked, most first; empty where it has half of
    /// them or more as it was asked, since then a name is wrong and no prefix.
    pub prefixes: Vec<FoundPrefix>,
}

/// What stands before parameters' names in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPrefix {
    /// For [`WeightFile::part`](crate::WeightFile::part); empty where the names are the parameters' own.
    pub prefix: String,
    /// Parameters that the file has tensors for under it.
    pub found: usize,
    /// Parameters of the model.
    pub of: usize,
}

/// A tensor of another shape than its parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub given: Vec<usize>,
    /// Shape of the parameter.
    pub need: Vec<usize>,
}

/// A tensor of a type that parameters cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistyped {
    /// Name in the file.
    pub name: String,
    /// Its type.
    pub given: StoredType,
}

/// A parameter that several tensors are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Name of the parameter.
    pub parameter: String,
    /// Their names in the file.
    pub names: Vec<String>,
}

impl WeightsMismatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
            && self.unknown.is_empty()
            && self.misshapen.is_empty()
            && self.mistyped.is_empty()
            && self.duplicate.is_empty()
            && self.not_finite.is_empty()
    }
}

/// How many of each kind a text names.
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
            // What is missing without it says nothing.
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
