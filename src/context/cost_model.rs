//! The file in which the cost model is kept between processes.

use std::path::{Path, PathBuf};

use super::compiled;
use crate::kernels::remembered::Tuner;
use crate::recorder::CostModel;

/// More is not read: no file of this many kernels is as large.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file for an adapter, its driver and their versions, beside that of the tuner.
pub(super) fn file(tuner: &Tuner) -> Option<PathBuf> {
    let name = format!(
        "cost-model-{:016x}.json",
        compiled::checksum(tuner.adapter().as_bytes())
    );
    Some(tuner.file()?.with_file_name(name))
}

/// What a process before has saved.
pub(super) fn load(file: Option<&Path>) -> CostModel {
    let saved = file.and_then(|file| compiled::read_file(file, MAX_FILE_BYTES));
    saved.map_or_else(CostModel::default, |json| CostModel::from_json(&json))
}
