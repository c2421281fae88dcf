//! Replies on standard output: tables for people, JSON for programs.

use inheritune_api::convert::time::from_timestamp;
use inheritune_api::convert::training;
use inheritune_api::v1;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::Value;

use crate::failure::{Failure, screaming};
pub use crate::table::table;
use inheritune_report::numbers;

/// A reply as JSON: field names as in the .proto files, numbers as numbers, every field present,
/// enum values without their prefix (`RUNNING`, as in the `ops` views).
///
/// # Errors
/// The message is not part of the API, which is a bug in this program.
pub fn json(message: &impl Message, name: &str) -> Result<String, Failure> {
    let mistake = |e: &dyn std::fmt::Display| Failure::Local(format!("cannot write {name} as JSON: {e}"));
    let pool = DescriptorPool::decode(inheritune_api::FILE_DESCRIPTOR_SET).map_err(|e| mistake(&e))?;
    let descriptor = pool
        .get_message_by_name(&format!("inheritune.v1.{name}"))
        .ok_or_else(|| mistake(&"there is no such message"))?;
    let dynamic =
        DynamicMessage::decode(descriptor.clone(), message.encode_to_vec().as_slice()).map_err(|e| mistake(&e))?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);
    let mut value = dynamic.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| mistake(&e))?;
    shorten_enums(&mut value, &descriptor);
    serde_json::to_string_pretty(&value).map_err(|e| mistake(&e))
}

/// Shortens enum values: `JOB_STATUS_RUNNING` becomes `RUNNING`.
fn shorten_enums(value: &mut Value, descriptor: &MessageDescriptor) {
    let Value::Object(fields) = value else { return };
    for (name, field) in fields {
        let Some(kind) = descriptor.get_field_by_name(name).map(|field| field.kind()) else { continue };
        let items = match field {
            Value::Array(items) => items.as_mut_slice(),
            one => std::slice::from_mut(one),
        };
        match kind {
            Kind::Message(inner) => items.iter_mut().for_each(|item| shorten_enums(item, &inner)),
            Kind::Enum(kind) => {
                let prefix = screaming(kind.name()) + "_";
                for item in items {
                    if let Some(short) = item.as_str().and_then(|text| text.strip_prefix(&prefix)) {
                        *item = Value::String(short.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
}

/// `text` with control characters replaced by spaces, so that it cannot control the terminal.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A run with all its details.
pub fn run(run: &v1::Run) -> String {
    let mut out = format!(
        "run      {}\nname     {}\nstatus   {}\nstate    {}\ncreated  {}",
        run.id,
        one_line(&run.name),
        status(run.status),
        one_line(&run.state),
        moment(run.created_at.as_ref())
    );
    if run.finished_at.is_some() {
        out.push_str(&format!("\nended    {}", moment(run.finished_at.as_ref())));
    }
    if let Some(winner) = &run.winner {
        let matched = match run.matched {
            Some(true) => ", matches the reference",
            Some(false) => ", does not match the reference",
            None => "",
        };
        out.push_str(&format!("\ntarget   {}{matched}\n         {}", one_line(&winner.name), winner.checkpoint));
    }
    if !run.models.is_empty() {
        out.push_str("\n\n");
        out.push_str(&models(run));
    }
    if !run.notes.is_empty() {
        out.push('\n');
        for note in &run.notes {
            out.push_str(&format!("\n{}  {}", clock(note.time.as_ref()), one_line(&note.text)));
        }
    }
    if !run.current_jobs.is_empty() {
        out.push_str("\n\n");
        out.push_str(&jobs(&run.current_jobs));
    }
    for job in run.current_jobs.iter().filter(|job| job.waiting_since.is_some()) {
        let since = moment(job.waiting_since.as_ref());
        out.push_str(&format!("\nwaiting  since {since}, {}: {}", one_line(&job.label), one_line(&job.error)));
    }
    out
}

/// The models of a run, like Table 4 of the paper.
pub fn models(run: &v1::Run) -> String {
    let absent = || "–".to_owned();
    let rows = run.models.iter().map(|model| {
        vec![
            model.name.clone(),
            model.layers.map_or_else(absent, |n| n.to_string()),
            model.steps.map_or_else(absent, |n| n.to_string()),
            model.validation.as_ref().map_or_else(absent, score_value),
            model.parameters.map_or_else(absent, |n| numbers::short(n as f64)),
            model.tokens_seen.map_or_else(absent, |n| numbers::short(n as f64)),
            model.wall_s.map_or_else(absent, numbers::duration),
        ]
    });
    table(&["model", ">layers", ">steps", ">validation loss", ">parameters?", ">tokens?", ">wall time?"], rows)
}

/// A table of runs, one per line.
pub fn runs(runs: &[v1::Run]) -> String {
    let rows = runs.iter().map(|run| {
        vec![run.id.clone(), status(run.status), run.name.clone(), run.state.clone(), moment(run.created_at.as_ref())]
    });
    table(&["id", "status", "name", "state", "created?"], rows)
}

/// A table of jobs, one per line.
pub fn jobs(jobs: &[v1::Job]) -> String {
    let rows = jobs.iter().map(|job| {
        let progress = job.progress.as_ref();
        vec![
            job.id.clone(),
            job.kind().as_str_name().trim_start_matches("JOB_KIND_").to_lowercase(),
            status(job.status),
            job.label.clone(),
            progress.and_then(|p| p.progress_percentage).map_or_else(String::new, |p| format!("{p:.0} %")),
            job.attempts.to_string(),
            moment(job.created_at.as_ref()),
        ]
    });
    table(&["id", "kind", "status", "label", ">done?", ">attempts?", "created?"], rows)
}

/// A table of curves, one per line, in the order of their first points.
pub fn metrics(points: &[v1::MetricPoint]) -> String {
    let mut curves: Vec<Vec<&v1::MetricPoint>> = Vec::new();
    for point in points {
        match curves.iter_mut().find(|curve| curve[0].name == point.name) {
            Some(curve) => curve.push(point),
            None => curves.push(vec![point]),
        }
    }
    let rows = curves.iter().map(|curve| {
        let (first, last) = (curve[0], curve[curve.len() - 1]);
        let extreme = |better: fn(f64, f64) -> f64| curve.iter().map(|point| point.value).fold(f64::NAN, better);
        vec![
            first.name.clone(),
            curve.len().to_string(),
            measured(first.value),
            measured(extreme(f64::min)),
            measured(extreme(f64::max)),
            measured(last.value),
            last.step.to_string(),
        ]
    });
    table(&["metric", ">points?", ">first", ">lowest?", ">highest?", ">last", ">at step?"], rows)
}

/// A number of any magnitude, in about the width of a table cell.
fn measured(value: f64) -> String {
    match value.abs() {
        1e15.. => format!("{value:.3e}"),
        1e4.. => numbers::short(value),
        1e-3.. | 0.0 => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}

/// A job with all its details.
pub fn job(job: &v1::Job) -> String {
    let mut out = format!(
        "job      {}\nlabel    {}\nkind     {}\nstatus   {}\nattempts {}\ncreated  {}",
        job.id,
        one_line(&job.label),
        job.kind().as_str_name().trim_start_matches("JOB_KIND_").to_lowercase(),
        status(job.status),
        job.attempts,
        moment(job.created_at.as_ref())
    );
    if !job.run_id.is_empty() {
        out.push_str(&format!("\nrun      {}", job.run_id));
    }
    if let Some(progress) = job.progress.as_ref().filter(|p| p.total > 0) {
        out.push_str(&format!("\nprogress {}", progress_line(progress)));
    }
    let counts = attempt_counts(job);
    if !counts.is_empty() {
        out.push_str(&format!("\nretries  {counts}"));
    }
    if !job.error.is_empty() {
        out.push_str(&format!("\nerror    {}", one_line(&job.error)));
    }
    if let Some(outcome) = job.outcome.as_ref().and_then(|outcome| outcome.outcome.as_ref()) {
        out.push_str(&format!("\noutcome  {}", outcome_line(outcome)));
    }
    out
}

/// How the attempts since the job's last progress ended:
/// `1 failed, 2 waited for something external, waiting since 2026-11-30 18:40:00 UTC`.
fn attempt_counts(job: &v1::Job) -> String {
    let counted = [
        (job.failed_attempts, "failed"),
        (job.lost_attempts, "lost with their worker"),
        (job.crashed_attempts, "crashed"),
        (job.waits, "waited for something external"),
    ];
    let mut parts: Vec<String> =
        counted.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if job.waiting_since.is_some() {
        parts.push(format!("waiting since {}", moment(job.waiting_since.as_ref())));
    }
    parts.join(", ")
}

/// The progress of a job: `45 %  12.3 K tokens/s  2 min 04 s left  step 120/400 loss 4.31`.
pub fn progress_line(progress: &v1::Progress) -> String {
    let mut parts = Vec::new();
    if let Some(percentage) = progress.progress_percentage {
        parts.push(format!("{percentage:.0} %"));
    }
    parts.extend(speed(progress));
    if let Some(left) = progress.estimated_remaining_seconds {
        parts.push(format!("{} left", numbers::duration(left)));
    }
    if !progress.message.is_empty() {
        parts.push(one_line(&progress.message));
    }
    parts.join("  ")
}

/// The speed of a job, such as `12.3 K tokens/s`, if known.
pub fn speed(progress: &v1::Progress) -> Option<String> {
    (progress.per_second > 0.0)
        .then(|| format!("{} {}/s", numbers::short(progress.per_second), one_line(&progress.unit)))
}

fn outcome_line(outcome: &v1::job_outcome::Outcome) -> String {
    use v1::job_outcome::Outcome;
    match outcome {
        Outcome::Tokenized(o) => {
            let read = o.corpus.clone().map_or_else(
                || format!("{} documents", o.documents),
                |corpus| one_line(&training::corpus_facts(corpus).summary(o.documents)),
            );
            format!(
                "token set {}: {} training and {} validation tokens, vocabulary {}; {read}",
                o.tokens_artifact_id, o.train_tokens, o.validation_tokens, o.vocab_size
            )
        }
        Outcome::Sliced(o) => format!(
            "checkpoint {}: {} parameters, {} tensors copied, {} fresh",
            o.checkpoint_artifact_id,
            numbers::short(o.parameters as f64),
            o.copied_tensors,
            o.fresh_tensors
        ),
        Outcome::Trained(o) => format!(
            "checkpoint {}: {} steps, {} tokens, loss {:.4} to {:.4}",
            o.checkpoint_artifact_id,
            o.steps,
            numbers::short(o.tokens_seen as f64),
            o.first_loss_nats,
            o.last_loss_nats
        ),
        Outcome::Evaluated(o) => {
            let scores = o.scores.iter().map(|s| format!("{} {} {} (n = {})", s.task, s.metric, score_value(s), s.n));
            format!("scores {}: {}", o.scores_artifact_id, scores.collect::<Vec<_>>().join(", "))
        }
        Outcome::Helped(o) => format!("measured {} units of another job", o.units),
    }
}

/// A score with its standard error: `4.1234 ± 0.0056`.
pub fn score_value(score: &v1::Score) -> String {
    match score.stderr {
        Some(stderr) => format!("{:.4} ± {stderr:.4}", score.value),
        None => format!("{:.4}", score.value),
    }
}

/// A table of artifacts, one per line.
pub fn artifacts(artifacts: &[v1::Artifact]) -> String {
    let rows = artifacts.iter().map(|artifact| {
        vec![
            artifact.id.clone(),
            artifact_kind(artifact),
            bytes(artifact.size_bytes),
            artifact.step.map_or_else(String::new, |step| step.to_string()),
            moment(artifact.created_at.as_ref()),
            if artifact.pinned { "pinned".to_owned() } else { String::new() },
            artifact.location.clone(),
        ]
    });
    table(&["id", "kind", ">size", ">step?", "created?", "pinned?", "location?"], rows)
}

/// An artifact with all its details.
pub fn artifact(artifact: &v1::Artifact, files: &[v1::ArtifactFile]) -> String {
    let mut out = format!(
        "artifact {}\nkind     {}\nsize     {}\ncreated  {}\nlocation {}",
        artifact.id,
        artifact_kind(artifact),
        bytes(artifact.size_bytes),
        moment(artifact.created_at.as_ref()),
        one_line(&artifact.location)
    );
    if !artifact.job_id.is_empty() {
        out.push_str(&format!("\njob      {}", artifact.job_id));
    }
    if artifact.pinned {
        out.push_str("\npinned   yes");
    }
    if !artifact.metadata_json.is_empty() {
        out.push_str(&format!("\nabout    {}", one_line(&artifact.metadata_json)));
    }
    if !files.is_empty() {
        out.push_str("\n\n");
        let rows = files.iter().map(|f| {
            let sha256 = match (f.sha256.as_str(), f.segments.len()) {
                ("", 0) => "–".to_owned(),
                ("", segments) => format!("{segments} segments"),
                (whole, _) => whole.to_owned(),
            };
            vec![f.name.clone(), bytes(f.size_bytes), sha256]
        });
        out.push_str(&table(&["file", ">size", "sha256?"], rows));
    }
    out
}

fn artifact_kind(artifact: &v1::Artifact) -> String {
    artifact.kind().as_str_name().trim_start_matches("ARTIFACT_KIND_").to_lowercase()
}

/// A size in binary units, such as `1.5 KiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = n as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

/// A status as the `ops` views write it, such as `RUNNING`.
pub fn status(value: i32) -> String {
    v1::JobStatus::try_from(value).map_or("UNKNOWN", |s| s.as_str_name()).trim_start_matches("JOB_STATUS_").to_owned()
}

fn moment(at: Option<&prost_types::Timestamp>) -> String {
    at.copied().and_then(from_timestamp).map_or_else(String::new, numbers::moment)
}

fn clock(at: Option<&prost_types::Timestamp>) -> String {
    at.copied().and_then(from_timestamp).map_or_else(String::new, numbers::clock)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn replies_are_json_with_the_apis_names() {
        let run = v1::Run {
            id: "r".to_owned(),
            status: v1::JobStatus::Running.into(),
            models: vec![v1::ModelRecord { tokens_seen: Some(1 << 40), ..v1::ModelRecord::default() }],
            created_at: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            ..v1::Run::default()
        };
        let value: serde_json::Value = serde_json::from_str(&json(&run, "Run").unwrap()).unwrap();
        assert_eq!(value["status"], "RUNNING");
        assert_eq!(value["models"][0]["tokens_seen"], 1_u64 << 40);
        assert_eq!(value["created_at"], "1970-01-01T00:00:00Z");
        assert_eq!(value["name"], "");
        assert!(json(&run, "NoSuchMessage").is_err());
    }

    #[test]
    fn nothing_in_a_reply_steers_the_terminal() {
        let run = v1::Run { name: "a\u{1b}[31m\nb".to_owned(), ..v1::Run::default() };
        assert!(!runs(std::slice::from_ref(&run)).contains('\u{1b}'));
        assert!(!super::run(&run).contains('\u{1b}'));
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }
}
