//! What a plan and a verdict say of an image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known of an image when planning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImageFacts {
    /// Recipe name.
    pub name: String,
    /// Content hash of the recipe, in hex.
    pub hash: String,
    /// Kernel release, if it can be read without booting.
    pub release: Option<String>,
}
