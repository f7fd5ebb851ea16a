//! Files of long sequences (`big_core_*`): inputs are generated, results stored at sampled rows.

use dilated_attention::AttentionShape;
use serde_json::Value;

use super::attention::{Engine, Inputs, configuration};
use super::compare::Comparison;
use super::generator::{Generated, MAX_ELEMENTS, generate};
use super::golden_file::GoldenFile;
use super::report::Report;
use super::torchscale::{Preset, check_preset};

/// Generates the inputs, checks them, and compares both presets at the sampled rows.
pub fn check(
    file: &GoldenFile,
    engine: &mut dyn Engine,
    report: &mut Report,
) -> Result<(), String> {
    let [q, k, v] = ["q", "k", "v"].map(|name| Spec::read(file, name));
    let (q, k, v) = (q?, k?, v?);
    let dims @ [batch, tokens, heads, head_dim] = q.dims;
    if k.dims != dims || v.dims != dims || batch != 1 {
        return Err(format!(
            "generated q, k, v have shapes {dims:?}, {:?}, {:?}; need one shape with a batch of 1",
            k.dims, v.dims
        ));
    }
    let config = configuration(file, heads, head_dim)?;
    let [num_rows] = file.shape::<1>("rows")?;
    let rows = file.i32s("rows", &[num_rows])?.into_iter();
    let rows: Vec<usize> = rows
        .map(|row| match usize::try_from(row) {
            Ok(token) if token < tokens => Ok(token),
            _ => Err(format!("row {row} lies outside of {tokens} tokens")),
        })
        .collect::<Result<_, _>>()?;

    let [q, k, v] = [q, k, v].map(|spec| spec.generate());
    let good = [("q", &q), ("k", &k), ("v", &v)]
        .map(|(name, tensor)| check_tensor(file, name, tensor, report));
    if good.contains(&false) {
        return Err("the generated inputs are not those of the file".to_owned());
    }
    let shape = AttentionShape::new(1, tokens).map_err(|error| error.to_string())?;
    let inputs = Inputs {
        shape,
        q: &q.values,
        k: &k.values,
        v: &v.values,
        rows: Some(&rows),
    };
    for preset in [Preset::Torchscale, Preset::Clean] {
        check_preset(file, &[], &inputs, &config, preset, engine, report)?;
    }
    Ok(())
}

/// How one tensor is generated.
struct Spec<'a> {
    name: &'a str,
    dims: [usize; 4],
    base: f64,
    scale: f64,
}

impl<'a> Spec<'a> {
    fn read(file: &'a GoldenFile, tensor: &str) -> Result<Self, String> {
        let spec = &file.config["generator"]["tensors"][tensor];
        let read = || {
            let dims = spec["shape"].as_array()?.iter().map(Value::as_u64);
            let dims = dims.map(|dim| usize::try_from(dim?).ok());
            Some(Self {
                name: spec["name"].as_str()?,
                dims: dims.collect::<Option<Vec<_>>>()?.try_into().ok()?,
                base: spec["base"].as_f64()?,
                scale: spec["scale"].as_f64()?,
            })
        };
        let read = read().ok_or_else(|| {
            format!(
                "config: the generator of {tensor} needs name, shape of 4 sizes, base and scale"
            )
        })?;
        let count = read
            .dims
            .iter()
            .try_fold(1usize, |count, dim| count.checked_mul(*dim));
        match count {
            Some(count) if count <= MAX_ELEMENTS => Ok(read),
            _ => Err(format!(
                "{tensor} of shape {:?} is too large to generate",
                read.dims
            )),
        }
    }

    fn generate(&self) -> Generated {
        generate(self.name, self.dims.iter().product(), self.base, self.scale)
    }
}

/// Compares the ends of a generated tensor and the sum of its draws with what the header says: equal bit for bit. What the
/// header does not hold of this tensor is not checked. The error reported is the number of differences, or the difference of
/// the sums.
pub fn check_tensor(
    file: &GoldenFile,
    name: &str,
    tensor: &Generated,
    report: &mut Report,
) -> bool {
    let values = &tensor.values;
    let end = values.len().min(8);
    let ends = [
        ("first8", &values[..end]),
        ("last8", &values[values.len() - end..]),
    ];
    let differences = |theirs: &Value, ours: &[f32]| {
        let theirs = theirs
            .as_array()
            .filter(|theirs| theirs.len() == ours.len())?;
        let same = |(ours, theirs): &(&f32, &Value)| {
            theirs.as_f64().map(|value| (value as f32).to_bits()) == Some(ours.to_bits())
        };
        Some((ours.len() - ours.iter().zip(theirs).filter(same).count()) as f64)
    };
    let mut good = true;
    let mut check = |what: &str, difference: &dyn Fn(&Value) -> Option<f64>| {
        let theirs = &file.generator_check[what][name];
        if !theirs.is_null() {
            let what = format!("generator_check.{what}.{name}");
            good &= exact(&what, difference(theirs), report);
        }
    };
    for (what, ours) in ends {
        check(what, &|theirs| differences(theirs, ours));
    }
    check("bitsum", &|theirs| {
        Some(theirs.as_u64()?.abs_diff(tensor.bitsum) as f64)
    });
    good
}

/// Reports a check that allows no difference; none given means that what the header holds cannot be compared.
fn exact(tensor: &str, difference: Option<f64>, report: &mut Report) -> bool {
    match difference {
        Some(max_abs_err) => {
            let comparison = Comparison {
                max_abs_err,
                max_abs_reference: 0.0,
            };
            report.compared(tensor, comparison, 0.0);
            max_abs_err == 0.0
        }
        None => {
            report.fail(
                tensor,
                "the header holds something else than numbers of this length",
            );
            false
        }
    }
}
