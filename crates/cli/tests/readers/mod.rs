//! Invariants of every recipe, job file and request, with one check function for each.
//!
//! `cargo test` runs the checks on `fuzz/seeds` and on mutated copies of the seeds
//! (`hostile_specs.rs`); `make fuzz` runs them under libFuzzer. A check panics if its invariant is
//! violated.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::path::Path;

use inheritune_api::convert::job::SubmittedJob;
use inheritune_api::convert::run::NewRun;
use inheritune_api::v1;
use inheritune_cli::{job_file, recipe};
use inheritune_domain::spec::{JobSpec, RunSpec};
use inheritune_domain::violation::Violations;
use prost::Message as _;

/// One kind of untrusted text or message.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// Name of the fuzz target and of its folder of seeds.
    pub name: &'static str,
    /// Reads arbitrary bytes and checks the result.
    pub check: fn(&[u8]),
}

pub const READERS: [Reader; 4] = [
    Reader { name: "recipe", check: check_recipe },
    Reader { name: "job_file", check: check_job_file },
    Reader { name: "run_request", check: check_run_request },
    Reader { name: "job_request", check: check_job_request },
];

/// The current folder of the command that reads a file.
const BASE: &str = "/here";
/// Longest description of one invalid field, so that a caller cannot make the server send large
/// errors.
const MAX_DESCRIPTION_BYTES: usize = 2048;

/// A recipe file, as `recipe check` and `run create` read it.
pub fn check_recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match recipe::parse(text, Path::new(BASE)) {
        Ok(spec) => run_is_accepted(&spec),
        Err(violations) => refused(&violations),
    }
}

/// A job file in TOML and in JSON, as `job submit` reads it.
pub fn check_job_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for name in ["job.toml", "job.json"] {
        if let Ok(spec) = job_file::parse(text, Path::new(name), Path::new(BASE)) {
            job_is_accepted(&spec);
        }
    }
}

/// The body of a `CreateRun` call.
pub fn check_run_request(bytes: &[u8]) {
    let Ok(request) = v1::CreateRunRequest::decode(bytes) else { return };
    match NewRun::try_from(request) {
        Ok(run) => run_is_accepted(&run.spec),
        Err(violations) => refused(&violations),
    }
}

/// The body of a `SubmitJob` call.
pub fn check_job_request(bytes: &[u8]) {
    let Ok(request) = v1::SubmitJobRequest::decode(bytes) else { return };
    match SubmittedJob::try_from(request) {
        Ok(job) => job_is_accepted(&job.spec),
        Err(violations) => refused(&violations),
    }
}

/// Checks that an accepted recipe is valid and survives a round trip through the API and the
/// database.
fn run_is_accepted(spec: &RunSpec) {
    assert_eq!(spec.validate(), Ok(()));
    assert_eq!(RunSpec::try_from(v1::RunSpec::from(spec)).as_ref(), Ok(spec));
    let stored = serde_json::to_string(spec).unwrap();
    assert!(!stored.contains("\\u0000"), "Postgres cannot store U+0000");
    assert_eq!(&serde_json::from_str::<RunSpec>(&stored).unwrap(), spec);
}

/// Like [`run_is_accepted`], for a job.
fn job_is_accepted(spec: &JobSpec) {
    assert_eq!(spec.validate(), Ok(()));
    assert_eq!(JobSpec::try_from(v1::JobSpec::from(spec)).as_ref(), Ok(spec));
    let stored = serde_json::to_string(spec).unwrap();
    assert!(!stored.contains("\\u0000"), "Postgres cannot store U+0000");
    assert_eq!(&serde_json::from_str::<JobSpec>(&stored).unwrap(), spec);
}

/// Checks that a rejection names at least one field, with descriptions of bounded length.
fn refused(violations: &Violations) {
    assert!(!violations.0.is_empty());
    for violation in &violations.0 {
        let length = violation.description.len();
        assert!(length > 0 && length <= MAX_DESCRIPTION_BYTES, "{}: {length} bytes", violation.field);
    }
}
