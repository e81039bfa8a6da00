//! The kernels that are looked at.

use serde::Deserialize;
use std::env;
use std::fs;

/// A composed kernel.
#[derive(Debug, Deserialize)]
pub(crate) struct Kernel {
    /// The rule, or `-` for a kernel of all rules.
    pub(crate) rule: String,
    pub(crate) variant: String,
    pub(crate) wgsl: String,
    pub(crate) entry_point: String,
    /// Bytes read and written for an element of a tensor; 0 where a kernel does not go over elements.
    pub(crate) bytes_per_element: f64,
}

impl Kernel {
    /// Whether a thread updates one vector after another, in a loop that the compiler counts eight times.
    pub(crate) fn in_rounds(&self) -> bool {
        self.wgsl.contains("fn rounds_of(")
    }
}

/// All of them: a file that `ISA_DUMP` names, one a line.
pub(crate) fn kernels() -> Result<Vec<Kernel>, String> {
    let path = env::var("ISA_DUMP").map_err(|_| "ISA_DUMP names no file of kernels")?;
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    text.lines().map(|line| serde_json::from_str(line).map_err(|error| format!("{path}: {error}"))).collect()
}
