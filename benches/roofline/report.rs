//! Rows as text and as JSON, one object a line.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use dilated_attention::DType;
use dilated_attention::device::KernelTier;
use serde_json::{Map, Value, json};
use testing::measurement::{Spread, date, range};

use crate::ceilings::Ceiling;
use crate::machine::Machine;
use crate::timing::Measured;

/// Where rows go.
pub struct Report {
    json: Option<File>,
    /// What every object says.
    common: Map<String, Value>,
}

/// What tells one row from others.
pub struct Key<'a> {
    pub group: &'a str,
    pub case: &'a str,
    pub kernel: &'a str,
    /// What is stored.
    pub dtype: DType,
    /// The tier that was asked for instead of the one chosen.
    pub tier: Option<KernelTier>,
    /// Whether shaders check their indices and loops.
    pub checked: bool,
}

impl Report {
    pub fn new(machine: &Machine, json: Option<&Path>) -> io::Result<Self> {
        let info = machine.context.adapter_info();
        let common = json!({
            "implementation": "dilated-attention",
            "adapter": info.name,
            "backend": format!("{:?}", info.backend),
            "driver": info.driver_info,
            "date": date(),
            "dtype": "f32",
        });
        let Value::Object(common) = common else {
            unreachable!("an object was written")
        };
        println!(
            "adapter   {} ({:?}, {})",
            info.name, info.backend, info.driver_info
        );
        Ok(Self {
            json: json.map(File::create).transpose()?,
            common,
        })
    }

    /// Writes an object, without a line of text.
    pub fn object(&mut self, row: Value) -> io::Result<()> {
        let Some(file) = &mut self.json else {
            return Ok(());
        };
        let mut object = self.common.clone();
        if let Value::Object(row) = row {
            object.extend(row);
        }
        writeln!(file, "{}", Value::Object(object))
    }

    pub fn ceiling(&mut self, name: &str, unit: &str, rates: Spread) -> io::Result<()> {
        println!("ceiling   {} {unit}: {name}", range(rates, 1));
        self.object(json!({
            "group": "ceiling", "case": name, "unit": unit, "rate": rates,
        }))
    }

    pub fn no_ceiling(&mut self, name: &str, reason: &str) -> io::Result<()> {
        println!("ceiling   none: {name} ({reason})");
        self.object(json!({"group": "ceiling", "case": name, "failure": reason}))
    }

    pub fn header(&self, group: &str, unit: &str) {
        println!(
            "\n{:<38} {:<24} {:>7} {:>22} {:>9} {:>22} {:>20} {:>5} {:>16} {:>6}",
            group,
            "kernel",
            "first s",
            "ms (range)",
            "device ms",
            format!("{unit} (range)"),
            "% ceiling (range)",
            "calls",
            "MB (extra)",
            "error"
        );
    }

    /// A row without figures.
    pub fn failure(
        &mut self,
        group: &str,
        case: &str,
        dtype: DType,
        parameters: &Value,
        error: &dyn std::fmt::Display,
    ) -> io::Result<()> {
        println!("{case:<38} {dtype} failed: {error}");
        self.object(json!({
            "group": group, "case": case, "dtype": dtype.to_string(), "parameters": parameters,
            "failure": error.to_string(),
        }))
    }

    /// One row; returns whether its results were right.
    pub fn row(
        &mut self,
        key: &Key<'_>,
        ceiling: &Ceiling,
        parameters: &Value,
        measured: &Measured,
    ) -> io::Result<bool> {
        let seconds = measured.device.unwrap_or(measured.wall);
        let rates = seconds.map(|seconds| measured.work / seconds / 1e9);
        let milliseconds = |spread: Spread| spread.map(|seconds| seconds * 1e3);
        let extra = measured.peak_bytes as f64 - measured.floor_bytes as f64;
        let mut kernel = key.kernel.to_owned();
        if key.dtype != DType::F32 {
            kernel = format!("{kernel} {}", key.dtype);
        }
        if !key.checked {
            kernel.push_str(" unchecked");
        }
        println!(
            "{:<38} {kernel:<24} {:>7.2} {:>22} {:>9} {:>22} {:>20} {:>5} {:>16} {:>6.2}",
            key.case,
            measured.first_seconds,
            range(milliseconds(measured.wall), 2),
            measured.device.map_or("-".to_owned(), |device| format!(
                "{:.2}",
                device.median * 1e3
            )),
            range(rates, 1),
            range(measured.share, 0),
            measured.dispatches,
            format!(
                "{:.2} ({:+.2})",
                measured.peak_bytes as f64 / 1e6,
                extra / 1e6
            ),
            measured.error,
        );
        let right = measured.error <= 1.0;
        if !right {
            println!(
                "    WRONG: the error is {:.2} times what is allowed",
                measured.error
            );
        }
        self.object(json!({
            "group": key.group,
            "case": key.case,
            "kernel": key.kernel,
            "checked": key.checked,
            "dtype": key.dtype.to_string(),
            "tier": key.tier.map(|tier| tier.to_string()),
            "parameters": parameters,
            "repetitions": measured.repetitions,
            "first_seconds": measured.first_seconds,
            "wall_ms": milliseconds(measured.wall),
            "device_ms": measured.device.map(milliseconds),
            "work": measured.work,
            "unit": ceiling.unit,
            "rate": rates,
            "ceiling": ceiling.name,
            "percent_of_ceiling": measured.share,
            "dispatches": measured.dispatches,
            "submissions": 1,
            "peak_bytes": measured.peak_bytes,
            "floor_bytes": measured.floor_bytes,
            "error_of_allowed": measured.error.is_finite().then_some(measured.error),
        }))?;
        Ok(right)
    }
}
