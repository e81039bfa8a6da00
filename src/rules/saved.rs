//! The form of a rule's hyperparameters in checkpoints.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes hyperparameters of type `R` as JSON and reads them; see [`Rule::SAVED`](crate::Rule::SAVED).
#[derive(Debug)]
pub struct Saved<R> {
    pub(super) write: fn(&R) -> Result<String, serde_json::Error>,
    pub(super) read: fn(&str) -> Result<R, serde_json::Error>,
}

impl<R: Serialize + DeserializeOwned> Saved<R> {
    /// The serde form of `R`, an object of its fields.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a constant needs a const function")]
    pub const fn new() -> Self {
        Self { write: |rule| serde_json::to_string(rule), read: |text| serde_json::from_str(text) }
    }
}
