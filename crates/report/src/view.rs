//! The models of a run as rows, the differences between them, and curves.

use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::report_data::{Curve, ReportData};
use inheritune_domain::run::{Model, ModelRecord, RunState};
use inheritune_domain::spec::{GrowthSource, LayerMapRule};

use super::numbers;

/// A difference below this many standard errors is reported as noise.
pub(super) const NOISE_ERRORS: f64 = 2.0;

/// A run, prepared for rendering.
#[derive(Debug)]
pub struct View<'a> {
    /// The data of the run.
    pub data: &'a ReportData,
    /// One row per model: the reference first, then the others in the order in which they started.
    pub rows: Vec<Row>,
}

/// The role of a model in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The model that layers are inherited from.
    Reference,
    /// The candidate that became the target.
    Winner,
    /// A candidate that is not the target.
    Round,
    /// A model with random initialisation at the winner's depth.
    Control,
    /// The target trained on another amount of data.
    Arm,
}

/// One model, as a row of the paper's Table 4.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The model.
    pub model: Model,
    /// Its role in the run.
    pub role: Role,
    /// CSS class of its curves and dots.
    pub class: String,
    /// Display name.
    pub name: String,
    /// Number of layers.
    pub layers: Option<u32>,
    /// How its weights were initialized.
    pub initialisation: String,
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Tokens seen.
    pub tokens: Option<u64>,
    /// Passes over its training data.
    pub epochs: Option<f64>,
    /// Training time in seconds.
    pub wall_s: Option<f64>,
    /// Loss before the first update, in nats.
    pub first_loss: Option<f64>,
    /// Parameters; tied ones are counted once.
    pub parameters: Option<u64>,
    /// Share of the training tokens that it uses.
    pub data_fraction: f64,
    /// Its validation loss.
    pub validation: Option<Measured>,
    /// Its validation loss minus the reference's; `None` for the reference.
    pub difference: Option<Difference>,
}

/// A mean loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// In nats.
    pub value: f64,
    /// Standard error of the mean over sequences.
    pub stderr: Option<f64>,
    /// Number of sequences.
    pub n: u64,
}

/// A difference of two mean losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// In nats.
    pub value: f64,
    /// Standard error, computed from the differences per sequence if they are known. Otherwise the
    /// two errors in quadrature, which is an upper bound because the sequences are the same.
    pub stderr: Option<f64>,
}

impl Measured {
    /// `self` minus `other`.
    pub fn less(self, other: Measured) -> Difference {
        let stderr = self.stderr.zip(other.stderr).map(|(a, b)| a.hypot(b));
        Difference { value: self.value - other.value, stderr }
    }

    /// The loss with its error: `4.1234 ± 0.0056`.
    pub fn text(self) -> String {
        with_error(numbers::loss(self.value), self.stderr)
    }
}

impl Difference {
    /// Whether these measurements cannot distinguish the difference from zero.
    pub fn is_noise(self) -> bool {
        self.stderr.is_some_and(|stderr| self.value.abs() < NOISE_ERRORS * stderr)
    }

    /// The difference with its error: `+0.0123 ± 0.0056`.
    pub fn text(self) -> String {
        with_error(numbers::signed(self.value), self.stderr)
    }
}

/// A formatted value with its error: `4.1234 ± 0.0056`.
pub(super) fn with_error(value: String, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{value} ± {stderr:.4}"),
        None => value,
    }
}

impl<'a> View<'a> {
    /// Prepares `data` for rendering.
    pub fn new(data: &'a ReportData) -> Self {
        let run = &data.run;
        let winner = match &run.state {
            RunState::Finished { winner, .. } => Some(*winner),
            _ => run.winner().map(|record| record.model),
        };
        let benchmark = run.record(Model::Reference).and_then(measured);
        let mut rounds = 0;
        let mut rows: Vec<Row> = run
            .models
            .iter()
            .filter(|record| is_worth_a_row(record))
            .map(|record| {
                let role = role(record.model, winner);
                let class = match (role, record.model) {
                    (Role::Reference, _) => "s-ref".to_owned(),
                    (Role::Winner, _) => "s-win".to_owned(),
                    (_, Model::Control { index }) => format!("s-ctl-{}", index % 3),
                    (_, Model::Arm { index }) => format!("s-arm-{}", index % 4),
                    (_, Model::Reference | Model::Candidate { .. }) => {
                        rounds += 1;
                        format!("s-round-{}", (rounds - 1) % 4)
                    }
                };
                row(data, record, role, class, benchmark)
            })
            .collect();
        rows.sort_by_key(|row| row.role != Role::Reference);
        Self { data, rows }
    }

    /// The row of the reference.
    pub fn reference(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.role == Role::Reference)
    }

    /// The row of the target.
    pub fn winner(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.role == Role::Winner)
    }

    /// The points of a metric of a model: (step, tokens seen, value).
    pub fn curve(&self, model: Model, metric: &str) -> &'a [(u64, u64, f64)] {
        let is_it = |curve: &&Curve| curve.model == model && curve.metric == metric;
        self.data.curves.iter().find(is_it).map_or(&[], |curve| &curve.points)
    }

    /// Number of layers of the reference.
    pub fn reference_layers(&self) -> Option<u32> {
        self.data.run.reference_layers.map(|layers| layers.0)
    }

    /// Parameters of the winner as a share of the reference's.
    pub fn parameter_share(&self) -> Option<f64> {
        let reference = self.reference()?.parameters?;
        Some(self.winner()?.parameters? as f64 / reference as f64)
    }
}

/// Whether a model has anything to show. A given reference that was never measured has nothing.
fn is_worth_a_row(record: &ModelRecord) -> bool {
    record.parameters.is_some() || record.validation.is_some() || record.steps.is_some()
}

fn role(model: Model, winner: Option<Model>) -> Role {
    match model {
        Model::Reference => Role::Reference,
        Model::Candidate { .. } if Some(model) == winner => Role::Winner,
        Model::Candidate { .. } => Role::Round,
        Model::Control { .. } => Role::Control,
        Model::Arm { .. } => Role::Arm,
    }
}

fn measured(record: &ModelRecord) -> Option<Measured> {
    record.validation.as_ref().map(|score| Measured { value: score.value, stderr: score.stderr, n: score.n })
}

fn row(data: &ReportData, record: &ModelRecord, role: Role, class: String, benchmark: Option<Measured>) -> Row {
    let run = &data.run;
    let validation = measured(record);
    Row {
        model: record.model,
        role,
        class,
        name: run.model_name(record.model),
        layers: record.layers.map(|layers| layers.0),
        initialisation: initialisation(data, record),
        steps: record.steps,
        tokens: record.tokens_seen,
        epochs: record.epochs,
        wall_s: record.wall_s,
        first_loss: record.first_loss_nats,
        parameters: record.parameters,
        data_fraction: data_fraction(data, record.model),
        validation,
        difference: match role {
            Role::Reference => None,
            Role::Winner | Role::Round | Role::Control | Role::Arm => {
                let paired = record.difference.map(|d| Difference { value: d.value, stderr: d.stderr });
                paired.or_else(|| validation.zip(benchmark).map(|(own, reference)| own.less(reference)))
            }
        },
    }
}

fn data_fraction(data: &ReportData, model: Model) -> f64 {
    let spec = &data.run.spec;
    match model {
        Model::Reference => 1.0,
        Model::Candidate { .. } | Model::Control { .. } => spec.target.data_fraction,
        Model::Arm { index } => spec.arms.get(index as usize).map_or(1.0, |arm| arm.data_fraction),
    }
}

fn initialisation(data: &ReportData, record: &ModelRecord) -> String {
    let spec = &data.run.spec;
    match record.model {
        Model::Reference if spec.reference.architecture.is_some() => "random".to_owned(),
        Model::Reference => "given".to_owned(),
        Model::Control { .. } => "random".to_owned(),
        Model::Candidate { round, .. } if round > 1 && spec.target.growth_source == GrowthSource::Carry => {
            "previous round, then the reference's next layers".to_owned()
        }
        Model::Candidate { .. } | Model::Arm { .. } => {
            let layers = record.layers.map_or_else(|| "n".to_owned(), |layers| layers.to_string());
            let which = match &spec.target.layer_map {
                LayerMapRule::First => format!("first {layers} layers of the reference"),
                LayerMapRule::FirstAndLast => format!("{layers} layers of the reference: the first ones and the last"),
                LayerMapRule::List(list) => {
                    let list: Vec<String> = list.iter().map(u32::to_string).collect();
                    format!("layers {} of the reference", list.join(", "))
                }
            };
            match spec.target.inherit {
                InheritSet::ALL => which,
                InheritSet::OFFICIAL_CODE => which + " and the head; nothing else",
                InheritSet::BLOCKS => which + "; nothing else",
                InheritSet::NOTHING => "random".to_owned(),
                parts => format!("{which}; only {}", parts.listed()),
            }
        }
    }
}
