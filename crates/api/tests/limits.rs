//! Checks every field of every request against the table of limits: a value out of bounds is
//! rejected by the name of its field, and every field has bounds. A new field fails here until it
//! has an entry in `inheritune_domain::spec::limits`, and a new method fails until its conversion
//! is listed below.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/hostile.rs"]
mod hostile;

use hostile::Hostile;
use inheritune_api::convert::artifact::{ListedArtifacts, NewArtifact};
use inheritune_api::convert::job::{ListedJobs, SubmittedJob, WatchedJob};
use inheritune_api::convert::run::{ListedRuns, NewRun};
use inheritune_api::convert::training::Estimate;
use inheritune_api::convert::{evaluation, id, slicing};
use inheritune_api::v1;
use inheritune_domain::id::{ArtifactId, JobId, RunId};
use inheritune_domain::spec::limits::{Limit, TABLE};
use inheritune_domain::violation::Violations;
use prost::Message;
use prost_reflect::{Kind, ReflectMessage as _};

/// Reads a request as the services do before they act on it.
fn read(request: &str, bytes: &[u8]) -> Result<(), Violations> {
    fn decoded<M: Message + Default>(bytes: &[u8]) -> M {
        M::decode(bytes).unwrap()
    }
    match request {
        "CreateRunRequest" => NewRun::try_from(decoded::<v1::CreateRunRequest>(bytes)).map(drop),
        "GetRunRequest" => id::<RunId>("id", &decoded::<v1::GetRunRequest>(bytes).id).map(drop),
        "ListRunsRequest" => ListedRuns::try_from(&decoded::<v1::ListRunsRequest>(bytes)).map(drop),
        "CancelRunRequest" => id::<RunId>("id", &decoded::<v1::CancelRunRequest>(bytes).id).map(drop),
        "PauseRunRequest" => id::<RunId>("id", &decoded::<v1::PauseRunRequest>(bytes).id).map(drop),
        "ResumeRunRequest" => id::<RunId>("id", &decoded::<v1::ResumeRunRequest>(bytes).id).map(drop),
        "RetryRunRequest" => id::<RunId>("id", &decoded::<v1::RetryRunRequest>(bytes).id).map(drop),
        "WatchRunRequest" => id::<RunId>("id", &decoded::<v1::WatchRunRequest>(bytes).id).map(drop),
        "GetReportRequest" => id::<RunId>("id", &decoded::<v1::GetReportRequest>(bytes).id).map(drop),
        "SubmitJobRequest" => SubmittedJob::try_from(decoded::<v1::SubmitJobRequest>(bytes)).map(drop),
        "GetJobRequest" => id::<JobId>("id", &decoded::<v1::GetJobRequest>(bytes).id).map(drop),
        "ListJobsRequest" => ListedJobs::try_from(&decoded::<v1::ListJobsRequest>(bytes)).map(drop),
        "CancelJobRequest" => id::<JobId>("id", &decoded::<v1::CancelJobRequest>(bytes).id).map(drop),
        "PauseJobRequest" => id::<JobId>("id", &decoded::<v1::PauseJobRequest>(bytes).id).map(drop),
        "ResumeJobRequest" => id::<JobId>("id", &decoded::<v1::ResumeJobRequest>(bytes).id).map(drop),
        "RetryJobRequest" => id::<JobId>("id", &decoded::<v1::RetryJobRequest>(bytes).id).map(drop),
        "WatchJobRequest" => WatchedJob::try_from(decoded::<v1::WatchJobRequest>(bytes)).map(drop),
        "RegisterArtifactRequest" => NewArtifact::try_from(&decoded::<v1::RegisterArtifactRequest>(bytes)).map(drop),
        "GetArtifactRequest" => id::<ArtifactId>("id", &decoded::<v1::GetArtifactRequest>(bytes).id).map(drop),
        "ListArtifactsRequest" => ListedArtifacts::try_from(&decoded::<v1::ListArtifactsRequest>(bytes)).map(drop),
        "PinArtifactRequest" => id::<ArtifactId>("id", &decoded::<v1::PinArtifactRequest>(bytes).id).map(drop),
        "UnpinArtifactRequest" => id::<ArtifactId>("id", &decoded::<v1::UnpinArtifactRequest>(bytes).id).map(drop),
        "DeleteArtifactRequest" => id::<ArtifactId>("id", &decoded::<v1::DeleteArtifactRequest>(bytes).id).map(drop),
        "InspectRequest" => slicing::inspected(&decoded::<v1::InspectRequest>(bytes)).map(drop),
        "PlanSliceRequest" => slicing::planned_slice(&decoded::<v1::PlanSliceRequest>(bytes)).map(drop),
        "EstimateRequest" => Estimate::try_from(decoded::<v1::EstimateRequest>(bytes)).map(drop),
        "ListTasksRequest" => Ok(()),
        "CompareScoresRequest" => evaluation::compared(&decoded::<v1::CompareScoresRequest>(bytes)).map(drop),
        "ListModelScoresRequest" => {
            evaluation::ListedScores::try_from(&decoded::<v1::ListModelScoresRequest>(bytes)).map(drop)
        }
        new => panic!("{new}: add its conversion here and a valid request in hostile.rs"),
    }
}

/// Returns whether a violation names a field or a message that contains it.
fn names(violations: &Violations, path: &str) -> bool {
    violations.0.iter().any(|violation| {
        let rest = path.strip_prefix(violation.field.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

#[test]
fn s7_every_number_text_and_list_has_a_limit() {
    let without: Vec<String> = hostile::fields()
        .into_iter()
        .filter(|(name, field)| {
            let limits = hostile::limits(name);
            let has = |wanted: fn(&Limit) -> bool| limits.iter().any(wanted);
            let entry = match field.kind() {
                Kind::Message(_) | Kind::Enum(_) | Kind::Bool => true,
                Kind::String | Kind::Bytes => has(|limit| matches!(limit, Limit::Text(_))),
                Kind::Double | Kind::Float => has(|limit| matches!(limit, Limit::Real(_))),
                _ => has(|limit| matches!(limit, Limit::Whole(_))),
            };
            let list = !field.is_list() || has(|limit| matches!(limit, Limit::List(_)));
            !(entry && list && !field.is_map())
        })
        .map(|(name, _)| name)
        .collect();
    assert!(without.is_empty(), "without a limit in inheritune_domain::spec::limits: {without:?}");
}

#[test]
fn s7_every_limit_is_of_a_field_that_there_is() {
    let fields = hostile::fields();
    let unknown: Vec<&str> =
        TABLE.iter().flat_map(|limit| limit.fields()).copied().filter(|field| !fields.contains_key(*field)).collect();
    assert!(unknown.is_empty(), "not a field of any request: {unknown:?}");
}

#[test]
fn s7_good_requests_are_good() {
    for method in hostile::methods() {
        for message in hostile::good(&method) {
            let read = read(method.input().name(), &message.encode_to_vec());
            assert_eq!(read, Ok(()), "{}: {message}", method.full_name());
        }
    }
}

#[test]
fn s7_what_is_out_of_bounds_is_refused_by_its_name() {
    let (mut requests, mut accepted) = (0, Vec::new());
    for method in hostile::methods() {
        hostile::for_each(&method, |Hostile { path, value, out_of_bounds, message }| {
            requests += 1;
            let request = message.descriptor();
            let read = read(request.name(), &message.encode_to_vec());
            let refused = read.is_err_and(|violations| names(&violations, &path));
            if out_of_bounds && !refused {
                accepted.push(format!("{}.{path} = {value}", request.name()));
            }
        });
    }
    assert!(requests > 2000, "{requests}");
    assert!(
        accepted.is_empty(),
        "{} of {requests} are accepted, or not named:\n{}",
        accepted.len(),
        accepted.join("\n")
    );
}

#[test]
fn s7_products_of_good_numbers_are_bounded_too() {
    let training = |edit: fn(&mut v1::TrainingSpec)| {
        let mut training = v1::TrainingSpec {
            block_size: 2048,
            micro_batch: 8,
            steps: Some(1_000_000_000),
            lr_max: 1e-3,
            ..Default::default()
        };
        edit(&mut training);
        let request = v1::EstimateRequest {
            model: Some(v1::estimate_request::Model::Checkpoint("file:///model".to_owned())),
            tokens: Some(v1::estimate_request::Tokens::TrainTokens(1 << 40)),
            training: Some(training),
            data_fraction: None,
        };
        read("EstimateRequest", &request.encode_to_vec()).map_err(|violations| violations.0[0].field.clone())
    };
    assert_eq!(training(|_| ()), Ok(()));
    assert_eq!(
        training(|t| (t.block_size, t.micro_batch) = (1 << 20, 1 << 16)),
        Err("training.micro_batch".to_owned())
    );
    let steps = training(|t| (t.block_size, t.gradient_accumulation) = (1 << 20, Some(1 << 16)));
    assert_eq!(steps, Err("training.gradient_accumulation".to_owned()));
    // Regression test: rounding 4294967295 entries up overflowed to 0.
    let fresh = |vocab_size, multiple| {
        let architecture = v1::Architecture {
            family: v1::Family::Llama.into(),
            n_layers: 1,
            d_model: 8,
            n_heads: 2,
            max_positions: 8,
            pad_vocab_to_multiple_of: multiple,
            ..Default::default()
        };
        let fresh = v1::FreshSource { architecture: Some(architecture), vocab_size };
        let spec = v1::SliceSpec { source: Some(v1::slice_spec::Source::Fresh(fresh)), ..Default::default() };
        let request = v1::PlanSliceRequest { spec: Some(spec) };
        read("PlanSliceRequest", &request.encode_to_vec()).map_err(|violations| violations.0[0].field.clone())
    };
    assert_eq!(fresh(u32::MAX, Some(1024)), Err("spec.fresh.vocab_size".to_owned()));
    assert_eq!(fresh(1 << 20, Some(1024)), Ok(()));
    assert_eq!(fresh(1 << 20, Some(1000)), Err("spec.fresh.architecture.pad_vocab_to_multiple_of".to_owned()));
}
