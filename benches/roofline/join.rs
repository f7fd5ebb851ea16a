//! One table of several files of rows: what each implementation took for the same case.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

/// Name of the column of a row: the implementation, where it is not plain f32 the type, a tier asked for, and unchecked shaders.
fn column(row: &Value) -> String {
    let mut name = row["implementation"].as_str().unwrap_or("?").to_owned();
    if let Some(dtype) = row["dtype"].as_str().filter(|dtype| *dtype != "f32") {
        name = format!("{name} {dtype}");
    }
    if let Some(tier) = row["tier"].as_str() {
        name = format!("{name} {tier}");
    }
    if row["checked"] == false {
        name.push_str(" unchecked");
    }
    name
}

/// Milliseconds, billions of work a second, or why there are none.
fn cell(row: &Value) -> String {
    let seconds = |key: &str| row[key]["median"].as_f64();
    match (
        seconds("device_ms").or(seconds("wall_ms")),
        row["rate"]["median"].as_f64(),
    ) {
        (Some(milliseconds), Some(rate)) => format!("{milliseconds:.2} ms, {rate:.1}"),
        _ => row["failure"]
            .as_str()
            .unwrap_or("-")
            .chars()
            .take(24)
            .collect(),
    }
}

/// Prints the table; later rows of the same implementation and case replace earlier ones.
pub fn print(paths: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let mut rows: Vec<Value> = Vec::new();
    for path in paths {
        let failed = |error: &dyn Error| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            rows.push(serde_json::from_str(line).map_err(|error| failed(&error))?);
        }
    }
    // What was timed, and without the rows that have a shape of their own.
    rows.retain(|row| row.get("wall_ms").is_some() || row.get("failure").is_some());
    rows.retain(|row| row["group"] != "ceiling");
    let mut columns: Vec<String> = Vec::new();
    let mut cases: Vec<[String; 2]> = Vec::new();
    for row in &rows {
        let column = column(row);
        if !columns.contains(&column) {
            columns.push(column);
        }
        let case = ["group", "case"].map(|key| row[key].as_str().unwrap_or("?").to_owned());
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    print!("{:<44}", "median time, then GFLOP/s (or GB/s)");
    columns.iter().for_each(|name| print!(" {name:>28}"));
    println!();
    for [group, case] in &cases {
        print!("{:<44}", format!("{group}: {case}"));
        for name in &columns {
            let of_case = |row: &&Value| {
                row["group"] == **group && row["case"] == **case && column(row) == *name
            };
            let text = rows.iter().rev().find(of_case).map_or("-".to_owned(), cell);
            print!(" {text:>28}");
        }
        println!();
    }
    Ok(())
}
