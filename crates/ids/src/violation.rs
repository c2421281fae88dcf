//! Validation that reports every invalid field at once.

use std::fmt;

/// An invalid field, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, separated by dots: `training.lr_max`, `corpus.sources[0]`.
    pub field: String,
    /// What is wrong, and what a valid value looks like.
    pub description: String,
}

/// Maximum number of violations kept, so that a list of a million bad entries does not become a
/// million messages.
const MAX_KEPT: usize = 4096;

/// All invalid fields of one spec. Never empty when returned as an error.
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
    /// Records a violation of `field` if `ok` is false.
    pub fn check(&mut self, ok: bool, field: impl Into<String>, description: impl Into<String>) {
        if !ok {
            self.add(field, description);
        }
    }

    /// Records a violation of `field`.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.0.len() < MAX_KEPT {
            self.0.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Adds the violations of a nested spec, with `prefix` in front of their fields.
    pub fn nest(&mut self, prefix: &str, inner: Violations) {
        for violation in inner.0 {
            self.add(format!("{prefix}.{}", violation.field), violation.description);
        }
    }

    /// Returns these violations with `prefix` in front of their fields.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        let mut outer = Self::default();
        outer.nest(prefix, self);
        outer
    }

    /// Returns `Ok` if there are no violations.
    ///
    /// # Errors
    /// All recorded violations.
    pub fn into_result(self) -> Result<(), Violations> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}
