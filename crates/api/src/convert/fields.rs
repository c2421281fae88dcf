//! Reads the fields of a message and collects all violations.

use std::str::FromStr;

use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::spec::limits::{Text, Whole};
use inheritune_domain::violation::{Violation, Violations};
use uuid::Uuid;

/// Reads the id in the field `field` of a request: `id("id", &request.id)`.
///
/// # Errors
/// One violation, if the id is empty or not a UUID.
pub fn id<T: From<Uuid>>(field: &str, text: &str) -> Result<T, Violations> {
    let mut notes = Notes::default();
    let id = Field::root(&mut notes).at(field).id(text);
    notes.into_result(id)
}

/// Reads the `request_id` of a request; `None` if it is empty.
///
/// # Errors
/// One violation, if the id is not a UUID.
pub fn request_id(text: &str) -> Result<Option<Uuid>, Violations> {
    let mut notes = Notes::default();
    let id = Field::root(&mut notes).at("request_id").optional_id(text);
    notes.into_result(id)
}

/// The violations of a message so far.
#[derive(Default)]
pub(crate) struct Notes {
    violations: Violations,
    missing: Vec<String>,
}

impl Notes {
    /// Returns `value`, if there are no violations.
    pub(crate) fn into_result<T>(self, value: T) -> Result<T, Violations> {
        self.violations.into_result().map(|()| value)
    }

    /// Adds the violations found by the validation of the domain, with fields renamed by `rename`.
    /// Skips fields that are unreadable or belong to a missing part, because their values are only
    /// placeholders.
    pub(crate) fn domain(&mut self, found: Result<(), Violations>, rename: impl Fn(&str) -> String) {
        let Err(found) = found else { return };
        let unreadable: Vec<String> = self.violations.0.iter().map(|v| v.field.clone()).collect();
        for Violation { field, description } in found.0 {
            let field = rename(&field);
            if !unreadable.contains(&field) && !self.below_missing(&field) {
                self.violations.add(field, description);
            }
        }
    }

    fn below_missing(&self, field: &str) -> bool {
        self.missing.iter().any(|missing| {
            field.strip_prefix(missing.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }
}

/// One field of a message, to which violations are added.
pub(crate) struct Field<'a> {
    notes: &'a mut Notes,
    path: String,
}

impl<'a> Field<'a> {
    /// Returns the message itself.
    pub(crate) fn root(notes: &'a mut Notes) -> Self {
        Self { notes, path: String::new() }
    }

    /// Returns the field `name` of this message.
    pub(crate) fn at(&mut self, name: &str) -> Field<'_> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Field { notes: self.notes, path }
    }

    /// Returns the element `index` of this repeated field.
    pub(crate) fn index(&mut self, index: usize) -> Field<'_> {
        let path = format!("{}[{index}]", self.path);
        Field { notes: self.notes, path }
    }

    /// Adds a violation of this field.
    pub(crate) fn bad(&mut self, description: impl Into<String>) {
        // Everything below a missing part is missing for the same reason.
        if !self.notes.below_missing(&self.path) {
            self.notes.violations.add(self.path.clone(), description);
        }
    }

    /// Adds a violation for this missing part of the message.
    pub(crate) fn missing(&mut self, description: &str) {
        self.bad(description);
        self.notes.missing.push(self.path.clone());
    }

    /// Returns a required part, or a placeholder if it is missing.
    pub(crate) fn required<M: Default>(&mut self, part: Option<M>) -> M {
        part.unwrap_or_else(|| {
            self.missing("must be given");
            M::default()
        })
    }

    /// Returns a required id, or a placeholder if it is missing.
    pub(crate) fn id<T: From<Uuid>>(&mut self, text: &str) -> T {
        if text.is_empty() {
            self.bad("must be given: a UUID");
            return Uuid::nil().into();
        }
        self.optional_id(text).unwrap_or_else(|| Uuid::nil().into())
    }

    /// Returns an id, or `None` if it is empty.
    pub(crate) fn optional_id<T: From<Uuid>>(&mut self, text: &str) -> Option<T> {
        if text.is_empty() {
            return None;
        }
        match Uuid::parse_str(text) {
            Ok(id) => Some(id.into()),
            Err(e) => {
                self.bad(format!("`{}` is not a UUID: {e}", shown(text)));
                None
            }
        }
    }

    /// Returns a required location, or a placeholder if it is missing.
    pub(crate) fn location(&mut self, text: &str) -> Location {
        if text.is_empty() {
            self.bad("must be given: artifact://ID, file:///path or s3://bucket/key");
            return Location::Artifact(ArtifactId(Uuid::nil()));
        }
        Location::from_str(text).unwrap_or_else(|e| {
            self.bad(e);
            Location::Artifact(ArtifactId(Uuid::nil()))
        })
    }

    /// Adds a violation if a number is not within `limit`.
    pub(crate) fn whole(&mut self, limit: Whole, value: impl Into<i128>) {
        if !limit.holds(value) {
            self.bad(limit.description());
        }
    }

    /// Adds a violation if a text is not within `limit`.
    pub(crate) fn text(&mut self, limit: Text, text: &str) {
        if let Some(problem) = limit.problem(text) {
            self.bad(problem);
        }
    }

    /// Returns an enum value as its generated type. If this version does not know the value, adds a
    /// violation and returns `None`.
    pub(crate) fn known<E: TryFrom<i32>>(&mut self, value: i32) -> Option<E> {
        let known = E::try_from(value).ok();
        if known.is_none() {
            self.bad(format!("{value} is not a value of this enum"));
        }
        known
    }
}

/// Shortens text of the caller for an error message.
fn shown(text: &str) -> String {
    const MAX_SHOWN_CHARS: usize = 80;
    if text.chars().count() <= MAX_SHOWN_CHARS {
        return text.to_owned();
    }
    let head: String = text.chars().take(MAX_SHOWN_CHARS).collect();
    format!("{head}…")
}
