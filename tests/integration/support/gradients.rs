//! Gradients against finite differences in double precision.

use dilated_attention::testing::model::Values;

use super::numbers::uniform;

/// Compares some elements of the gradients called `names` with central differences of `objective` at `values`: of each, the
/// one that is largest on the device and `samples` others.
///
/// Allowed is 1e-5 of the largest in the same tensor, or 1e-7 of the largest of all (one rounding), which is left where terms
/// cancel. The bias of keys is measured by that of queries: without positions its gradient is 0.
#[track_caller]
pub fn check_gradients(
    what: &str,
    given: &[(String, &[f32])],
    values: &Values,
    samples: usize,
    objective: impl Fn(&Values) -> f64,
) {
    let mut values = values.clone();
    let mut compared = Vec::new();
    for (name, given) in given {
        let finite = given.iter().all(|value| value.is_finite());
        assert!(finite, "{what}: d {name} is {given:?}");
        let by_size = |a: &usize, b: &usize| given[*a].abs().total_cmp(&given[*b].abs());
        let mut indices: Vec<usize> = (0..given.len()).max_by(by_size).into_iter().collect();
        let draws = uniform(31 + name.len() as u64, samples);
        indices.extend(
            draws
                .iter()
                .map(|u| ((u * 0.5 + 0.5) * given.len() as f32) as usize),
        );
        let mut found = Vec::new();
        for index in indices {
            let expected = difference(&mut values, name, index, &objective);
            found.push((index, given[index], expected));
        }
        compared.push((name, found));
    }
    let size = |found: &[(usize, f32, f64)]| {
        found
            .iter()
            .fold(0.0, |max: f64, found| max.max(found.2.abs()))
    };
    let largest = compared
        .iter()
        .fold(0.0, |max: f64, (_, found)| max.max(size(found)));
    let mut wrong = String::new();
    for (name, found) in &compared {
        let queries = name.replace("k_proj.bias", "q_proj.bias");
        let queries = compared.iter().find(|(name, _)| **name == queries);
        let scale = size(found).max(queries.map_or(0.0, |(_, found)| size(found)));
        let allowed = (1e-5 * scale).max(1e-7 * largest);
        for (index, given, expected) in found {
            let error = (f64::from(*given) - expected).abs();
            if std::env::var_os("SHOW_GRADIENTS").is_some() {
                println!(
                    "{what} d {name}[{index}] {given} {expected} {:.3}",
                    error / allowed
                );
            }
            if error > allowed {
                wrong += &format!(
                    "\n{what}: d {name}[{index}] is {given}, expected {expected}: {:.1} of what is allowed",
                    error / allowed
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The central difference of `objective` by one element.
fn difference(
    values: &mut Values,
    name: &str,
    index: usize,
    objective: impl Fn(&Values) -> f64,
) -> f64 {
    let step = 1e-5;
    let before = values[name][index];
    let mut at = |x: f64| {
        values.get_mut(name).expect("a parameter")[index] = x;
        objective(values)
    };
    let difference = at(before + step) - at(before - step);
    at(before);
    difference / (2.0 * step)
}
