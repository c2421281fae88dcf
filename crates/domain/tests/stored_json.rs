//! JSON that earlier releases stored is read by this one: `tests/stored/VERSION` holds what a finished demo of that release
//! left in Postgres. A field may be added; nothing that is there may be lost.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use inheritune_domain::run::Run;
use inheritune_domain::spec::{JobOutcome, JobSpec, RunSpec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Every value of `stored` is in `read`, which may hold more.
fn holds(read: &Value, stored: &Value, path: &str) {
    match (read, stored) {
        (Value::Object(read), Value::Object(stored)) => {
            for (key, value) in stored {
                let path = format!("{path}.{key}");
                // A default need not be written again.
                let Some(read) = read.get(key) else {
                    assert!(value.is_null() || *value == Value::Array(Vec::new()), "{path} was lost: {value}");
                    continue;
                };
                holds(read, value, &path);
            }
        }
        (Value::Array(read), Value::Array(stored)) => {
            assert_eq!(read.len(), stored.len(), "{path}");
            for (i, (read, stored)) in read.iter().zip(stored).enumerate() {
                holds(read, stored, &format!("{path}[{i}]"));
            }
        }
        (Value::Number(read), Value::Number(stored)) => assert_eq!(read.as_f64(), stored.as_f64(), "{path}"),
        (read, stored) => assert_eq!(read, stored, "{path}"),
    }
}

fn read<T: DeserializeOwned + Serialize>(path: &Path) {
    let values: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(!values.is_empty(), "{}", path.display());
    for (i, stored) in values.into_iter().enumerate() {
        let shown = format!("{}[{i}]", path.display());
        let value: T = serde_json::from_value(stored.clone()).unwrap_or_else(|error| panic!("{shown}: {error}"));
        holds(&serde_json::to_value(&value).unwrap(), &stored, &shown);
    }
}

#[test]
fn what_earlier_releases_stored_is_read() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stored");
    let versions: Vec<PathBuf> = std::fs::read_dir(&stored).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!versions.is_empty());
    for version in versions {
        read::<RunSpec>(&version.join("runs.spec.json"));
        read::<Run>(&version.join("runs.state.json"));
        read::<JobSpec>(&version.join("jobs.spec.json"));
        read::<JobOutcome>(&version.join("jobs.outcome.json"));
    }
}
