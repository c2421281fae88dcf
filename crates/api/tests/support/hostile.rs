//! Requests with one hostile field each: valid requests of every method, where each field in turn,
//! found through the descriptors, is set to an invalid or extreme value.

use std::collections::{BTreeMap, BTreeSet};

use inheritune_api::v1;
use inheritune_domain::spec::limits::{Limit, TABLE};
use prost::Message as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ReflectMessage as _, Value,
};

/// Length of a list that is too long.
const LONG_LIST: usize = 200_000;
/// Bytes of a text that is too long: as long as a message allows.
const LONG_TEXT: usize = (4 << 20) - 4096;

/// A request with a hostile value in one field.
pub struct Hostile {
    /// The path of the field in the request: `spec.train.training.steps`.
    pub path: String,
    /// The hostile value.
    pub value: String,
    /// Whether the table of limits forbids the value.
    pub out_of_bounds: bool,
    /// The whole request.
    pub message: DynamicMessage,
}

/// Returns every method of the API.
pub fn methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(inheritune_api::FILE_DESCRIPTOR_SET).unwrap();
    let services = pool.services().filter(|service| service.package_name() == "inheritune.v1");
    services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// Returns every field of every request and of its nested messages, by `Message.field`.
pub fn fields() -> BTreeMap<String, FieldDescriptor> {
    let mut fields = BTreeMap::new();
    let mut left: Vec<MessageDescriptor> = methods().iter().map(MethodDescriptor::input).collect();
    let mut seen = BTreeSet::new();
    while let Some(message) = left.pop() {
        if !seen.insert(message.full_name().to_owned()) {
            continue;
        }
        for field in message.fields() {
            if let Kind::Message(inner) = field.kind() {
                left.push(inner);
            }
            fields.insert(name(&field), field);
        }
    }
    fields
}

/// Returns the limits of a field.
pub fn limits(field: &str) -> Vec<Limit> {
    TABLE.iter().filter(|limit| limit.fields().contains(&field)).copied().collect()
}

fn name(field: &FieldDescriptor) -> String {
    format!("{}.{}", field.parent_message().name(), field.name())
}

/// Returns valid requests of a method. Each of several mutually exclusive fields is present in one
/// of them.
pub fn good(method: &MethodDescriptor) -> Vec<DynamicMessage> {
    let id = "01900000-0000-7000-8000-000000000000".to_owned();
    let bytes: Vec<Vec<u8>> = match method.input().name() {
        "CreateRunRequest" => runs()
            .into_iter()
            .map(|spec| v1::CreateRunRequest { spec: Some(spec), request_id: String::new() }.encode_to_vec())
            .collect(),
        "SubmitJobRequest" => jobs()
            .into_iter()
            .map(|spec| {
                let retry = Some(v1::RetryPolicy::default());
                v1::SubmitJobRequest { spec: Some(v1::JobSpec { spec: Some(spec) }), retry, ..Default::default() }
                    .encode_to_vec()
            })
            .collect(),
        "PlanSliceRequest" => {
            [fresh_slice(), cut_slice()].map(|spec| v1::PlanSliceRequest { spec: Some(spec) }.encode_to_vec()).to_vec()
        }
        "EstimateRequest" => {
            use v1::estimate_request::{Model, Tokens};
            let models = [
                (Model::Checkpoint("file:///model".to_owned()), Tokens::TokensArtifactId(id.clone())),
                (Model::Fresh(fresh()), Tokens::TrainTokens(1_000_000)),
            ];
            let request = |(model, tokens)| v1::EstimateRequest {
                model: Some(model),
                tokens: Some(tokens),
                training: Some(training()),
                data_fraction: None,
            };
            models.map(|model| request(model).encode_to_vec()).to_vec()
        }
        "RegisterArtifactRequest" => vec![
            v1::RegisterArtifactRequest { kind: 2, uri: "file:///model".to_owned(), ..Default::default() }
                .encode_to_vec(),
        ],
        "InspectRequest" => vec![v1::InspectRequest { checkpoint: "file:///model".to_owned() }.encode_to_vec()],
        "CompareScoresRequest" => {
            vec![v1::CompareScoresRequest { first_id: id.clone(), second_id: id.clone() }.encode_to_vec()]
        }
        _ => {
            let mut message = DynamicMessage::new(method.input());
            // The other requests need only an id.
            if method.input().get_field_by_name("id").is_some() {
                message.set_field_by_name("id", Value::String(id.clone()));
            }
            vec![message.encode_to_vec()]
        }
    };
    bytes.iter().map(|bytes| DynamicMessage::decode(method.input(), bytes.as_slice()).unwrap()).collect()
}

fn training() -> v1::TrainingSpec {
    v1::TrainingSpec {
        block_size: 8,
        micro_batch: 1,
        steps: Some(10),
        lr_max: 1e-3,
        source_weights: vec![1.0],
        ..Default::default()
    }
}

fn architecture() -> v1::Architecture {
    v1::Architecture {
        family: v1::Family::Llama.into(),
        n_layers: 2,
        d_model: 8,
        n_heads: 2,
        max_positions: 16,
        ..Default::default()
    }
}

fn fresh() -> v1::FreshSource {
    v1::FreshSource { architecture: Some(architecture()), vocab_size: 300 }
}

fn fresh_slice() -> v1::SliceSpec {
    v1::SliceSpec { source: Some(v1::slice_spec::Source::Fresh(fresh())), ..Default::default() }
}

fn cut_slice() -> v1::SliceSpec {
    let reference = v1::CheckpointSource {
        checkpoint: "file:///model".to_owned(),
        layers: 2,
        layer_map: Some(v1::LayerMap { rule: v1::LayerMapRule::List.into(), list: vec![0, 1] }),
        inherit_parts: vec![v1::InheritPart::Mlp.into()],
        ..Default::default()
    };
    v1::SliceSpec { source: Some(v1::slice_spec::Source::Reference(reference)), ..Default::default() }
}

fn runs() -> [v1::RunSpec; 2] {
    use v1::tokenizer_spec::Tokenizer;
    let run = |tokenizer, reference| v1::RunSpec {
        name: "good".to_owned(),
        recipe: v1::Recipe::LowData.into(),
        corpus: Some(v1::CorpusSpec {
            sources: vec!["file:///corpus.txt".to_owned()],
            tokenizer: Some(v1::TokenizerSpec { tokenizer: Some(tokenizer) }),
            ..Default::default()
        }),
        reference: Some(reference),
        target: Some(v1::TargetSpec {
            max_rounds: Some(1),
            layer_map: Some(v1::LayerMap { rule: v1::LayerMapRule::List.into(), list: vec![0, 1] }),
            inherit_parts: vec![v1::InheritPart::Mlp.into()],
            ..Default::default()
        }),
        training: Some(training()),
        evaluation: Some(v1::EvaluationSpec {
            benchmarks: vec!["piqa".to_owned()],
            benchmark_data: Some("file:///data".to_owned()),
            ..Default::default()
        }),
        controls: vec![v1::ControlSpec { name: "control".to_owned(), steps_factor: None }],
        arms: vec![v1::ArmSpec { name: "arm".to_owned(), data_fraction: 0.5, epochs: 1 }],
        ..Default::default()
    };
    let given = v1::ReferenceSpec { checkpoint: Some("file:///model".to_owned()), ..Default::default() };
    let made =
        v1::ReferenceSpec { architecture: Some(architecture()), training: Some(training()), ..Default::default() };
    [
        run(Tokenizer::Uri("file:///tokenizer".to_owned()), given),
        run(Tokenizer::Train(v1::TrainTokenizer { vocab_size: 300 }), made),
    ]
}

fn jobs() -> [v1::job_spec::Spec; 6] {
    use v1::evaluation_task::Task;
    use v1::job_spec::Spec;
    use v1::tokenize_spec::Tokenizer;
    let id = "01900000-0000-7000-8000-000000000000".to_owned();
    let tokenize = |tokenizer| {
        Spec::Tokenize(v1::TokenizeSpec {
            sources: vec!["file:///corpus.txt".to_owned()],
            tokenizer: Some(tokenizer),
            ..Default::default()
        })
    };
    let task = |task| v1::EvaluationTask { task: Some(task) };
    let evaluate = |tasks| {
        Spec::Evaluate(v1::EvaluateSpec { checkpoint: "file:///model".to_owned(), tasks, ..Default::default() })
    };
    [
        tokenize(Tokenizer::Train(v1::TrainTokenizer { vocab_size: 300 })),
        tokenize(Tokenizer::From("file:///tokenizer".to_owned())),
        Spec::Slice(fresh_slice()),
        Spec::Slice(cut_slice()),
        Spec::Train(v1::TrainSpec {
            checkpoint: "file:///model".to_owned(),
            tokens_artifact_id: id.clone(),
            training: Some(training()),
            ..Default::default()
        }),
        evaluate(vec![
            task(Task::ValidationLoss(v1::ValidationLossTask {
                tokens_artifact_id: id,
                block_size: 8,
                max_sequences: None,
            })),
            task(Task::RollingPerplexity(v1::RollingPerplexityTask { source: "file:///text".to_owned() })),
            task(Task::Benchmark(v1::BenchmarkTask {
                name: "piqa".to_owned(),
                data: "file:///data".to_owned(),
                limit: None,
            })),
        ]),
    ]
}

/// Calls `each` with every hostile request of a method.
pub fn for_each(method: &MethodDescriptor, mut each: impl FnMut(Hostile)) {
    let good = good(method);
    let mut done = BTreeSet::new();
    for base in &good {
        let mut places = Vec::new();
        walk(base, &mut Vec::new(), &mut places);
        for place in places {
            // If several valid requests contain a place, use only the first one.
            if done.insert(shown(&place)) {
                hostile_at(base, &place, &mut each);
            }
        }
    }
    // Also test fields that no valid request contains, next to the fields that they exclude.
    for base in &good {
        let mut places = Vec::new();
        walk_missing(base.descriptor(), &mut Vec::new(), &mut places);
        for place in places {
            if done.insert(shown(&place)) {
                hostile_at(base, &place, &mut each);
            }
        }
    }
}

/// One step into a message: a field, and the index of an entry if it is a list.
#[derive(Clone)]
struct Step {
    field: FieldDescriptor,
    entry: Option<usize>,
}

fn shown(place: &[Step]) -> String {
    let step = |step: &Step| match step.entry {
        Some(entry) => format!("{}[{entry}]", step.field.name()),
        None => step.field.name().to_owned(),
    };
    place.iter().map(step).collect::<Vec<_>>().join(".")
}

/// Collects the places of all fields that are present.
fn walk(message: &DynamicMessage, above: &mut Vec<Step>, places: &mut Vec<Vec<Step>>) {
    for field in message.descriptor().fields() {
        above.push(Step { field: field.clone(), entry: None });
        match message.get_field(&field).as_ref() {
            Value::Message(inner) if message.has_field(&field) => walk(inner, above, places),
            Value::Message(_) => {}
            Value::List(entries) => {
                places.push(above.clone());
                for (number, entry) in entries.iter().enumerate() {
                    above.pop();
                    above.push(Step { field: field.clone(), entry: Some(number) });
                    match entry {
                        Value::Message(inner) => walk(inner, above, places),
                        _ => places.push(above.clone()),
                    }
                }
            }
            // An absent member of a oneof is left to `walk_missing`.
            _ if message.has_field(&field) || is_alone(&field) => places.push(above.clone()),
            _ => {}
        }
        above.pop();
    }
}

fn is_alone(field: &FieldDescriptor) -> bool {
    field.containing_oneof().is_none_or(|oneof| oneof.fields().count() == 1)
}

/// Collects all possible places.
fn walk_missing(message: MessageDescriptor, above: &mut Vec<Step>, places: &mut Vec<Vec<Step>>) {
    for field in message.fields() {
        let entry = field.is_list().then_some(0);
        above.push(Step { field: field.clone(), entry });
        match field.kind() {
            Kind::Message(inner) => walk_missing(inner, above, places),
            _ => places.push(above.clone()),
        }
        above.pop();
    }
}

fn hostile_at(base: &DynamicMessage, place: &[Step], each: &mut impl FnMut(Hostile)) {
    let last = place.last().unwrap();
    let limits = limits(&name(&last.field));
    let is_list = last.field.cardinality() == Cardinality::Repeated && last.entry.is_none();
    let values = if is_list { lists(&last.field) } else { values(&last.field, &limits) };
    for value in values {
        let mut message = base.clone();
        let value = match value {
            // Too many entries, all of them valid.
            Value::List(entries) if is_list => {
                let own = last_list(base, place).and_then(|own| own.first().cloned());
                Value::List(entries.iter().map(|entry| own.clone().unwrap_or(entry.clone())).collect())
            }
            value => value,
        };
        let (out_of_bounds, what) = (is_out_of_bounds(&value, &last.field, &limits), in_short(&value));
        set(&mut message, place, value);
        each(Hostile { path: shown(place), value: what, out_of_bounds, message });
    }
}

fn last_list(base: &DynamicMessage, place: &[Step]) -> Option<Vec<Value>> {
    let (step, below) = place.split_first()?;
    match (base.get_field(&step.field).as_ref(), step.entry, below.is_empty()) {
        (Value::List(entries), None, true) => Some(entries.clone()),
        (Value::Message(inner), None, false) => last_list(inner, below),
        (Value::List(entries), Some(entry), false) => match entries.get(entry)? {
            Value::Message(inner) => last_list(inner, below),
            _ => None,
        },
        _ => None,
    }
}

fn set(message: &mut DynamicMessage, place: &[Step], value: Value) {
    let (step, below) = place.split_first().unwrap();
    if below.is_empty() && step.entry.is_none() {
        return message.set_field(&step.field, value);
    }
    let field = message.get_field_mut(&step.field);
    let slot = match (field, step.entry) {
        (Value::List(entries), Some(entry)) => {
            while entries.len() <= entry {
                entries.push(Value::default_value(&step.field.kind()));
            }
            &mut entries[entry]
        }
        (slot, _) => slot,
    };
    match slot {
        Value::Message(inner) if !below.is_empty() => set(inner, below, value),
        slot => *slot = value,
    }
}

fn lists(field: &FieldDescriptor) -> Vec<Value> {
    vec![Value::List(vec![Value::default_value(&field.kind()); LONG_LIST])]
}

fn values(field: &FieldDescriptor, limits: &[Limit]) -> Vec<Value> {
    let edges: Vec<i128> = limits
        .iter()
        .flat_map(|limit| match limit {
            Limit::Whole(limit) => vec![limit.min - 1, limit.min, limit.max, limit.max + 1],
            Limit::Real(_) | Limit::Text(_) | Limit::List(_) => Vec::new(),
        })
        .collect();
    match field.kind() {
        Kind::Double | Kind::Float => {
            let mut numbers = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -0.0, 1e308, f64::MIN_POSITIVE];
            for limit in limits {
                if let Limit::Real(limit) = limit {
                    numbers.extend([limit.max * 2.0, limit.max * 1.01, limit.min - 0.01]);
                }
            }
            numbers.into_iter().map(Value::F64).collect()
        }
        Kind::Int32 => {
            whole(&edges, [i32::MIN, -1, 0, i32::MAX].map(Into::into), |n| n.try_into().ok().map(Value::I32))
        }
        Kind::Int64 => {
            whole(&edges, [i64::MIN, -1, 0, i64::MAX].map(Into::into), |n| n.try_into().ok().map(Value::I64))
        }
        Kind::Uint32 => whole(&edges, [0, u32::MAX].map(Into::into), |n| n.try_into().ok().map(Value::U32)),
        Kind::Uint64 => whole(&edges, [0, u64::MAX].map(Into::into), |n| n.try_into().ok().map(Value::U64)),
        Kind::Bool => [true, false].map(Value::Bool).to_vec(),
        Kind::Enum(_) => [-1, 12_345, i32::MIN, i32::MAX].map(Value::EnumNumber).to_vec(),
        Kind::String => [
            String::new(),
            " ".to_owned(),
            "a".repeat(LONG_TEXT),
            format!("file:///{}", "a".repeat(LONG_TEXT)),
            "é".repeat(LONG_TEXT / 2),
            "a\0b".to_owned(),
            "file:///a\0b".to_owned(),
            "\u{1}".to_owned(),
            "file:///a\u{85}b".to_owned(),
            "{\"a\": \"\\u0000\"}".to_owned(),
            format!("{{\"a\": {}", "[".repeat(60_000)),
            "'; DROP TABLE jobs; --".to_owned(),
        ]
        .map(Value::String)
        .to_vec(),
        kind => panic!("{}: no hostile values of the kind {kind:?} yet", field.full_name()),
    }
}

fn whole<const N: usize>(edges: &[i128], ends: [i128; N], value: impl Fn(i128) -> Option<Value>) -> Vec<Value> {
    edges.iter().chain(&ends).filter_map(|number| value(*number)).collect()
}

/// Returns whether every service must reject `value`.
fn is_out_of_bounds(value: &Value, field: &FieldDescriptor, limits: &[Limit]) -> bool {
    let whole = |number: i128| limits.iter().any(|limit| matches!(limit, Limit::Whole(limit) if !limit.holds(number)));
    match value {
        // A field without presence cannot distinguish absent from its default.
        Value::String(text) if text.is_empty() && !field.supports_presence() => false,
        Value::String(text) => {
            limits.iter().any(|limit| matches!(limit, Limit::Text(limit) if limit.problem(text).is_some()))
        }
        Value::F64(number) => limits.iter().any(|limit| matches!(limit, Limit::Real(limit) if !limit.holds(*number))),
        Value::List(entries) => {
            limits.iter().any(|limit| matches!(limit, Limit::List(limit) if !limit.holds(entries.len())))
        }
        Value::I32(number) => whole((*number).into()),
        Value::I64(number) => whole((*number).into()),
        Value::U32(number) => whole((*number).into()),
        Value::U64(number) => whole((*number).into()),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(known) => known.get_value(*number).is_none(),
            _ => false,
        },
        _ => false,
    }
}

fn in_short(value: &Value) -> String {
    match value {
        Value::List(entries) => format!("{} entries", entries.len()),
        Value::String(text) if text.len() > 60 => {
            format!("{:?}… of {} bytes", text.chars().take(20).collect::<String>(), text.len())
        }
        value => format!("{value:?}"),
    }
}
