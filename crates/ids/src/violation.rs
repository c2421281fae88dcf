//! Validation that names every bad field at once.

use std::fmt;

/// One field that cannot be accepted, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, dots between names: `training.lr_max`, `corpus.sources[0]`.
    pub field: String,
    /// What is wrong and what would be right.
    pub description: String,
}

/// Bad fields that are kept: a list of a million wrong entries must not become a million messages.
const MAX_KEPT: usize = 4096;

/// All the bad fields of one spec; never empty when it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

impl Violations {
    /// Notes `description` against `field` when `ok` does not hold.
    pub fn check(&mut self, ok: bool, field: impl Into<String>, description: impl Into<String>) {
        if !ok {
            self.add(field, description);
        }
    }

    /// Notes `description` against `field`.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.0.len() < MAX_KEPT {
            self.0.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Takes over the violations of a nested spec, their fields put under `prefix`.
    pub fn nest(&mut self, prefix: &str, inner: Violations) {
        for violation in inner.0 {
            self.add(format!("{prefix}.{}", violation.field), violation.description);
        }
    }

    /// The same, their fields put under `prefix`.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        let mut outer = Self::default();
        outer.nest(prefix, self);
        outer
    }

    /// `Ok` when nothing was noted.
    ///
    /// # Errors
    /// All that was noted.
    pub fn into_result(self) -> Result<(), Violations> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}
