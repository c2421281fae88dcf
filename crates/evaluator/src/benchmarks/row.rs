//! Typed access to the columns of one row, by name.

use serde_json::Value;

/// A row as a JSON object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a>(pub(super) &'a Value);

impl<'a> Row<'a> {
    fn column(self, name: &str) -> Result<&'a Value, String> {
        self.0.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.0.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            format!("there is no column `{name}` (there are: {})", names.join(", "))
        })
    }

    /// Returns a text.
    pub(super) fn text(self, name: &str) -> Result<&'a str, String> {
        self.column(name)?.as_str().ok_or_else(|| format!("column `{name}` is not a text"))
    }

    /// Whether the row has the column `name`.
    pub(super) fn has(self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    /// Returns a text. A non-negative integer is converted.
    pub(super) fn word(self, name: &str) -> Result<String, String> {
        match self.column(name)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) if number.is_u64() => Ok(number.to_string()),
            other => Err(format!("column `{name}` is {other}, which is not a text")),
        }
    }

    /// Returns a non-negative integer.
    pub(super) fn number(self, name: &str) -> Result<usize, String> {
        let number = self.column(name)?.as_u64().and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| format!("column `{name}` is {}, which is not a non-negative integer", self.0[name]))
    }

    /// Returns the index of one of `n` choices. A number as text is accepted, and so are true (1)
    /// and false (0).
    pub(super) fn label(self, name: &str, n: usize) -> Result<usize, String> {
        let value = self.column(name)?;
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            Value::Bool(is_true) => Some(u64::from(*is_true)),
            other => other.as_u64(),
        };
        let label = number.and_then(|number| usize::try_from(number).ok()).filter(|label| *label < n);
        label.ok_or_else(|| format!("column `{name}` is {value}, which is not one of the labels 0 to {}", n - 1))
    }

    /// Returns a non-empty list of texts.
    pub(super) fn texts(self, name: &str) -> Result<Vec<&'a str>, String> {
        let texts: Option<Vec<&str>> =
            self.column(name)?.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts
            .filter(|texts| !texts.is_empty())
            .ok_or_else(|| format!("column `{name}` is not a non-empty list of texts"))
    }

    /// Returns a list of exactly `n` texts.
    pub(super) fn exactly(self, name: &str, n: usize) -> Result<Vec<&'a str>, String> {
        let texts = self.texts(name)?;
        if texts.len() == n {
            return Ok(texts);
        }
        Err(format!("column `{name}` has {} texts instead of {n}", texts.len()))
    }

    /// Returns a list of zeros and ones as booleans.
    pub(super) fn flags(self, name: &str) -> Result<Vec<bool>, String> {
        let flag = |value: &Value| match value.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        };
        let flags = self.column(name)?.as_array().and_then(|list| list.iter().map(flag).collect());
        flags.ok_or_else(|| format!("column `{name}` is not a list of zeros and ones"))
    }

    /// Returns the object in a column as a row.
    pub(super) fn inner(self, name: &str) -> Result<Row<'a>, String> {
        let value = self.column(name)?;
        if value.is_object() { Ok(Row(value)) } else { Err(format!("column `{name}` is not an object")) }
    }
}
