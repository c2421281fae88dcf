//! Default values are defined once, in `inheritune_domain::spec::defaults`. Recipe files, job
//! files, gRPC requests and the comments of the proto files must all agree with them.
#![allow(clippy::unwrap_used)]

#[path = "support/hostile.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod hostile;

use std::collections::BTreeMap;

use inheritune_api::convert::job::SubmittedJob;
use inheritune_api::v1;
use inheritune_api::v1::job_spec::Spec;
use inheritune_domain::spec::{JobSpec, RunSpec, defaults};
use prost_reflect::{Cardinality, Kind};

const ID: &str = "01900000-0000-7000-8000-000000000000";
/// Optional numbers and texts without a default value: absent means something that is not a value,
/// or depends on other fields.
const WITHOUT: [&str; 16] = [
    "Architecture.d_ff",
    "Architecture.n_kv_heads",
    "Architecture.pad_vocab_to_multiple_of",
    "Architecture.rope_theta",
    "Architecture.tied_head",
    "BenchmarkTask.limit",
    "EvaluateSpec.add_bos_token",
    "EvaluationSpec.benchmark_data",
    "EvaluationSpec.benchmark_limit",
    "EvaluationSpec.max_sequences",
    "ReferenceSpec.checkpoint",
    "TargetSpec.start_layers",
    "TrainingSpec.epochs",
    "TrainingSpec.steps",
    "ValidationLossTask.max_sequences",
    "WatchJobRequest.after_step",
];

/// Returns `Message.field` for every optional field of the requests.
fn optional_fields() -> Vec<String> {
    let optional = hostile::fields().into_iter().filter(|(_, field)| {
        field.cardinality() == Cardinality::Optional
            && field.supports_presence()
            && field.containing_oneof().is_none_or(|oneof| oneof.is_synthetic())
            && !matches!(field.kind(), Kind::Message(_))
    });
    optional.map(|(name, _)| name).collect()
}

fn of_fields() -> BTreeMap<&'static str, String> {
    defaults::table().into_iter().flat_map(|(fields, value)| fields.iter().map(move |f| (*f, value.clone()))).collect()
}

#[test]
fn every_optional_field_has_one_default() {
    let defaults = of_fields();
    let mut expected: Vec<String> = defaults.keys().copied().chain(WITHOUT).map(str::to_owned).collect();
    expected.sort();
    assert_eq!(optional_fields(), expected, "list an optional field in spec/defaults.rs or in WITHOUT");
}

#[test]
fn the_comments_of_the_proto_files_say_the_defaults() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/inheritune/v1");
    let mut comments = BTreeMap::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let (mut message, mut comment) = (String::new(), String::new());
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("message ") {
                message = name.trim_end_matches([' ', '{', '}']).to_owned();
            } else if let Some(text) = line.strip_prefix("//") {
                comment.push_str(text);
                continue;
            } else if let Some((field, _)) = line.strip_prefix("optional ").and_then(|rest| rest.split_once(" =")) {
                let name = field.rsplit(' ').next().unwrap();
                comments.insert(format!("{message}.{name}"), comment.clone());
            }
            comment.clear();
        }
    }
    let wrong: Vec<String> = of_fields()
        .into_iter()
        .filter_map(|(field, value)| {
            let value = value.trim_matches('"');
            let value = value.strip_suffix(".0").unwrap_or(value);
            let comment = &comments[field];
            let says = [format!(" {value} when absent"), format!(" `{value}` when absent")];
            (!says.iter().any(|text| comment.contains(text))).then(|| format!("{field} ({value}):{comment}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\"VALUE when absent\" is not there: {wrong:#?}");
}

/// The smallest job of each kind, as a file and as a message.
fn smallest_jobs() -> [(serde_json::Value, Spec); 5] {
    let training =
        v1::TrainingSpec { block_size: 8, micro_batch: 1, steps: Some(1), lr_max: 1e-3, ..Default::default() };
    let architecture = v1::Architecture {
        family: v1::Family::Gpt2.into(),
        n_layers: 2,
        d_model: 8,
        n_heads: 2,
        max_positions: 16,
        ..Default::default()
    };
    let model = "file:///model".to_owned();
    [
        (
            serde_json::json!({"kind": "tokenize", "sources": [{"uri": "file:///a"}], "tokenizer": {"from": {"uri": "file:///t"}}}),
            Spec::Tokenize(v1::TokenizeSpec {
                sources: vec!["file:///a".into()],
                tokenizer: Some(v1::tokenize_spec::Tokenizer::From("file:///t".into())),
                ..Default::default()
            }),
        ),
        (
            serde_json::json!({"kind": "slice", "source": {"checkpoint": {"checkpoint": {"uri": model}, "layers": 2}}}),
            Spec::Slice(v1::SliceSpec {
                source: Some(v1::slice_spec::Source::Reference(v1::CheckpointSource {
                    checkpoint: model.clone(),
                    layers: 2,
                    ..Default::default()
                })),
                ..Default::default()
            }),
        ),
        (
            serde_json::json!({"kind": "slice", "source": {"architecture": {
                "architecture": {"family": "gpt2", "n_layers": 2, "d_model": 8, "n_heads": 2, "max_positions": 16},
                "vocab_size": 300,
            }}}),
            Spec::Slice(v1::SliceSpec {
                source: Some(v1::slice_spec::Source::Fresh(v1::FreshSource {
                    architecture: Some(architecture),
                    vocab_size: 300,
                })),
                ..Default::default()
            }),
        ),
        (
            serde_json::json!({"kind": "train", "checkpoint": {"uri": model}, "tokens": ID, "training": {
                "block_size": 8, "micro_batch": 1, "steps": 1, "lr_max": 1e-3,
            }}),
            Spec::Train(v1::TrainSpec {
                checkpoint: model.clone(),
                tokens_artifact_id: ID.into(),
                training: Some(training),
                ..Default::default()
            }),
        ),
        (
            serde_json::json!({"kind": "evaluate", "checkpoint": {"uri": model}, "tasks": [
                {"task": "validation_loss", "tokens": ID, "block_size": 8},
                {"task": "benchmark", "name": "piqa", "data": {"uri": "file:///data"}},
            ]}),
            Spec::Evaluate(v1::EvaluateSpec {
                checkpoint: model,
                tasks: [
                    v1::evaluation_task::Task::ValidationLoss(v1::ValidationLossTask {
                        tokens_artifact_id: ID.into(),
                        block_size: 8,
                        max_sequences: None,
                    }),
                    v1::evaluation_task::Task::Benchmark(v1::BenchmarkTask {
                        name: "piqa".into(),
                        data: "file:///data".into(),
                        limit: None,
                    }),
                ]
                .map(|task| v1::EvaluationTask { task: Some(task) })
                .to_vec(),
                ..Default::default()
            }),
        ),
    ]
}

#[test]
fn a_job_file_and_a_call_mean_the_same_by_absent_fields() {
    for (file, spec) in smallest_jobs() {
        let of_file: JobSpec = serde_json::from_value(file).unwrap();
        let request = v1::SubmitJobRequest { spec: Some(v1::JobSpec { spec: Some(spec) }), ..Default::default() };
        let of_call = SubmittedJob::try_from(request).unwrap();
        assert_eq!(of_call.spec, of_file);
        assert_eq!(of_call.retry, inheritune_domain::job::RetryPolicy::default());
    }
}

#[test]
fn a_recipe_file_and_a_call_mean_the_same_by_absent_fields() {
    let of_file: RunSpec = toml::from_str(
        r#"
        name = "smallest"
        recipe = "full-data"
        corpus = { sources = ["file:///corpus.txt"] }
        reference = { checkpoint = "file:///model" }
        target = {}
        training = { block_size = 8, micro_batch = 1, steps = 1, lr_max = 1e-3 }
        controls = [{ name = "control" }]
        "#,
    )
    .unwrap();
    let of_call = v1::RunSpec {
        name: "smallest".into(),
        recipe: v1::Recipe::FullData.into(),
        corpus: Some(v1::CorpusSpec { sources: vec!["file:///corpus.txt".into()], ..Default::default() }),
        reference: Some(v1::ReferenceSpec { checkpoint: Some("file:///model".into()), ..Default::default() }),
        target: Some(v1::TargetSpec::default()),
        training: Some(v1::TrainingSpec {
            block_size: 8,
            micro_batch: 1,
            steps: Some(1),
            lr_max: 1e-3,
            ..Default::default()
        }),
        controls: vec![v1::ControlSpec { name: "control".into(), steps_factor: None }],
        ..Default::default()
    };
    assert_eq!(RunSpec::try_from(of_call), Ok(of_file));
}
