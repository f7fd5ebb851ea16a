//! The file that keeps the cost model between processes.

use std::path::{Path, PathBuf};

use super::compiled;
use crate::kernels::remembered::Tuner;
use crate::recorder::CostModel;

/// Files larger than this are not read. No cost model is as large.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file for an adapter, its driver and their versions, in the folder of the winners file.
pub(super) fn file(tuner: &Tuner) -> Option<PathBuf> {
    let name = format!(
        "cost-model-{:016x}.json",
        compiled::checksum(tuner.adapter().as_bytes())
    );
    Some(tuner.file()?.with_file_name(name))
}

/// The cost model that an earlier process has saved, or an empty one.
pub(super) fn load(file: Option<&Path>) -> CostModel {
    let saved = file.and_then(|file| compiled::read_file(file, MAX_FILE_BYTES));
    saved.map_or_else(CostModel::default, |json| CostModel::from_json(&json))
}
