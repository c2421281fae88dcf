//! Reads job specs from TOML or JSON files. Locations are written as in recipes.

use std::path::Path;

use inheritune_domain::artifact::Location;
use inheritune_domain::spec::JobSpec;
use serde_json::Value;

use crate::failure::Failure;
use crate::recipe::{absolute_location, written};

/// Names of the fields that contain a location, anywhere in a spec.
const LOCATION_FIELDS: [&str; 5] = ["checkpoint", "source", "sources", "from", "data"];

/// Parses the job in `text`: JSON if the extension of `path` is `json`, otherwise TOML. Relative
/// paths are resolved against `base`.
///
/// # Errors
/// A syntax or type error, or every invalid field.
pub fn parse(text: &str, path: &Path, base: &Path) -> Result<JobSpec, Failure> {
    let bad = |problem: String| Failure::invalid(format!("{}: {problem}", path.display()));
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let mut value: Value = if is_json {
        serde_json::from_str(text).map_err(|e| bad(e.to_string()))?
    } else {
        toml::from_str(text).map_err(|e| bad(e.to_string()))?
    };
    read_locations(&mut value, base).map_err(bad)?;
    let spec: JobSpec = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
    spec.validate().map_err(|violations| Failure::Invalid {
        headline: format!("{}: invalid {} job", path.display(), spec.kind().as_str()),
        violations,
    })?;
    Ok(spec)
}

/// Converts location strings such as `"artifact://ID"` and `"file:x"` to the serialized form of
/// [`Location`].
fn read_locations(value: &mut Value, base: &Path) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if LOCATION_FIELDS.contains(&name.as_str()) {
                    match field {
                        Value::String(text) => *field = location(text, base)?,
                        Value::Array(items) => {
                            for item in items {
                                if let Value::String(text) = item {
                                    *item = location(text, base)?;
                                }
                            }
                        }
                        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
                    }
                }
                read_locations(field, base)?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| read_locations(item, base)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn location(text: &str, base: &Path) -> Result<Value, String> {
    if let Some(problem) = written::problem(text, base) {
        return Err(problem);
    }
    let location: Location = absolute_location(text, base).parse()?;
    serde_json::to_value(location).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use inheritune_domain::spec::{EvaluationTask, JobKind};

    use super::*;

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = r#"
kind = "evaluate"
checkpoint = "artifact://01900000-0000-7000-8000-000000000000"
batch_size = 8
[[tasks]]
task = "rolling_perplexity"
source = "file:texts/other.txt"
"#;
        let json = r#"{"kind": "evaluate", "checkpoint": {"artifact": "01900000-0000-7000-8000-000000000000"},
            "batch_size": 8, "tasks": [{"task": "rolling_perplexity", "source": "file:///here/texts/other.txt"}]}"#;
        let base = Path::new("/here");
        let from_toml = parse(toml, Path::new("job.toml"), base).unwrap();
        assert_eq!(from_toml, parse(json, Path::new("job.json"), base).unwrap());
        let JobSpec::Evaluate(spec) = from_toml else { unreachable!() };
        let uri = "file:///here/texts/other.txt".to_owned();
        assert_eq!(spec.tasks, [EvaluationTask::RollingPerplexity { source: Location::Uri(uri) }]);
    }

    #[test]
    fn slice_sources_stay_what_they_are() {
        let toml = r#"
kind = "slice"
seed = 1
[source.checkpoint]
checkpoint = "models/gpt2"
layers = 4
layer_map = "first"
inherit = "all"
"#;
        assert_eq!(parse(toml, Path::new("job.toml"), Path::new("/here")).unwrap().kind(), JobKind::Slice);
    }

    #[test]
    fn bad_jobs_are_refused() {
        for (text, problem) in [
            ("kind = \"cook\"", "unknown variant `cook`"),
            ("kind = ", "job.toml"),
            ("kind = \"evaluate\"\ncheckpoint = \"artifact://7\"\nbatch_size = 1\ntasks = []", "not an artifact id"),
            ("kind = \"evaluate\"\ncheckpoint = \"s3://b/x\"\nbatch_size = 0\ntasks = []", "\n  tasks: "),
        ] {
            let failure = parse(text, Path::new("job.toml"), Path::new("/here")).unwrap_err();
            assert!(failure.to_string().contains(problem), "{failure}");
            assert_eq!(failure.exit_code(), 2);
        }
    }
}
