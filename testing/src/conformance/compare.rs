//! Error of one tensor against its reference, and how large it may be.

use dilated_attention::reference::UNCOVERED_LSE;

use super::golden_file::GoldenFile;

/// Entries of a reference log-sum-exp at or below this mean "covered by nothing".
const UNCOVERED_BELOW: f32 = -1e7;

/// How two tensors differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comparison {
    /// Largest absolute difference; NaN when a value to be compared is NaN.
    pub max_abs_err: f64,
    /// Largest absolute value of the reference.
    pub max_abs_reference: f64,
}

impl Comparison {
    /// Compares element by element.
    pub fn of(reference: &[f32], given: &[f32]) -> Result<Self, String> {
        if reference.len() != given.len() {
            return Err(format!(
                "{} values for {} in the file",
                given.len(),
                reference.len()
            ));
        }
        let mut comparison = Self::default();
        for (&reference, &given) in reference.iter().zip(given) {
            comparison.add(f64::from(reference), f64::from(given))?;
        }
        Ok(comparison)
    }

    /// Compares log-sum-exps: `reference` is (item, head, row), `given` (item, row, head). The same entries must be
    /// uncovered in both; the others are compared.
    pub fn of_lse(
        reference: &[f32],
        given: &[f32],
        num_heads: usize,
        num_rows: usize,
    ) -> Result<Self, String> {
        let item = num_heads * num_rows;
        if reference.len() != given.len() || (item > 0 && !reference.len().is_multiple_of(item)) {
            return Err(format!(
                "{} values for {} in the file",
                given.len(),
                reference.len()
            ));
        }
        let mut comparison = Self::default();
        for (index, &reference) in reference.iter().enumerate() {
            let (head, row) = (index / num_rows % num_heads, index % num_rows);
            let given = given[index / item * item + row * num_heads + head];
            match (reference <= UNCOVERED_BELOW, given <= UNCOVERED_BELOW) {
                (true, true) => {}
                (false, false) => comparison.add(f64::from(reference), f64::from(given))?,
                (uncovered, _) => {
                    return Err(format!(
                        "item {} head {head} row {row} is {} in the file, the result is {given:e}",
                        index / item,
                        if uncovered { "uncovered" } else { "covered" },
                    ));
                }
            }
        }
        Ok(comparison)
    }

    /// Compares with the f64 reference, in its order. The same log-sum-exps must be uncovered in both.
    pub fn of_reference(reference: &[f64], given: &[f32]) -> Result<Self, String> {
        if reference.len() != given.len() {
            return Err(format!("{} values for {}", given.len(), reference.len()));
        }
        let mut comparison = Self::default();
        for (index, (&reference, &given)) in reference.iter().zip(given).enumerate() {
            match (reference == UNCOVERED_LSE, given <= UNCOVERED_BELOW) {
                (true, true) => {}
                (false, false) => comparison.add(reference, f64::from(given))?,
                _ => return Err(format!("value {index} is {given:e} for {reference:e}")),
            }
        }
        Ok(comparison)
    }

    /// Compares numbers that must be equal.
    pub fn of_counts(reference: &[u8], given: &[u32]) -> Result<Self, String> {
        if reference.len() != given.len() {
            return Err(format!(
                "{} values for {} in the file",
                given.len(),
                reference.len()
            ));
        }
        let mut comparison = Self::default();
        for (&reference, &given) in reference.iter().zip(given) {
            comparison.add(f64::from(reference), f64::from(given))?;
        }
        Ok(comparison)
    }

    /// The comparison of both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            max_abs_err: max_or_nan(self.max_abs_err, other.max_abs_err),
            max_abs_reference: self.max_abs_reference.max(other.max_abs_reference),
        }
    }

    fn add(&mut self, reference: f64, given: f64) -> Result<(), String> {
        if !reference.is_finite() {
            return Err(format!(
                "the file holds {reference}, which nothing can be compared with"
            ));
        }
        *self = self.and(Self {
            max_abs_err: (reference - given).abs(),
            max_abs_reference: reference.abs(),
        });
        Ok(())
    }

    /// Largest error that passes in single precision: `1e-5` of the largest reference value, or ten times the noise
    /// that single precision brought to the code that made the file.
    pub fn f32_tolerance(&self, file: &GoldenFile, tensor: &str) -> f64 {
        let noise = |name: &str| file.f32_noise[name].as_f64();
        let noise = noise(tensor).or_else(|| noise(&sibling(tensor)));
        f64::max(1e-5 * self.max_abs_reference, 10.0 * noise.unwrap_or(0.0))
    }
}

/// The tensor whose noise a tensor without its own has: what it is a variant of.
fn sibling(tensor: &str) -> String {
    let name = tensor.strip_prefix("clean_").unwrap_or(tensor);
    let name = name.strip_suffix("_true").unwrap_or(name);
    match name.strip_prefix("gt.") {
        Some(parameter) => format!("g.{parameter}"),
        None => name.to_owned(),
    }
}

/// The larger number, NaN if either is: `f64::max` would hide it.
fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}
