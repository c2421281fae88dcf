//! What the report says: rows, the verdict, and what the numbers do not show.

use inheritune_checkpoint::inherit_set::InheritSet;
use inheritune_domain::artifact::Location;
use inheritune_domain::report_data::{Curve, ReportData};
use inheritune_domain::run::{Model, ModelRecord, RunState};
use inheritune_domain::spec::{GrowthSource, LayerMapRule, MatchBy, Recipe};

use super::numbers;

/// A difference below this many standard errors is called noise.
const NOISE_ERRORS: f64 = 2.0;

/// A run, ready to be drawn.
#[derive(Debug)]
pub struct View<'a> {
    /// All of it.
    pub data: &'a ReportData,
    /// One per model, the reference first, else in the order they were started.
    pub rows: Vec<Row>,
}

/// What part a model plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Inherited from.
    Reference,
    /// The target.
    Winner,
    /// A candidate that was grown further.
    Round,
    /// Random initialisation at the winner's depth.
    Control,
    /// The target on another amount of data.
    Arm,
}

/// One model: a row of the paper's Table 4.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which.
    pub model: Model,
    /// Its part.
    pub role: Role,
    /// CSS class of its curves and dots.
    pub class: String,
    /// For people.
    pub name: String,
    /// Blocks.
    pub layers: Option<u32>,
    /// What it started from.
    pub initialisation: String,
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Tokens seen.
    pub tokens: Option<u64>,
    /// Passes over its data.
    pub epochs: Option<f64>,
    /// Training time.
    pub wall_s: Option<f64>,
    /// Loss before the first update.
    pub first_loss: Option<f64>,
    /// Parameters, tied ones once.
    pub parameters: Option<u64>,
    /// Share of the training tokens it draws from.
    pub data_fraction: f64,
    /// Its validation loss.
    pub validation: Option<Measured>,
    /// Its validation loss less the reference's; none for the reference.
    pub difference: Option<Difference>,
}

/// A mean loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// In nats.
    pub value: f64,
    /// Standard error over sequences.
    pub stderr: Option<f64>,
    /// Sequences.
    pub n: u64,
}

/// A difference of two mean losses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// In nats.
    pub value: f64,
    /// Its standard error: of the differences sequence by sequence, where they are known; else the two errors in quadrature,
    /// an upper bound, as the sequences are the same.
    pub stderr: Option<f64>,
}

impl Measured {
    /// `self` less `other`.
    pub fn less(self, other: Measured) -> Difference {
        let stderr = self.stderr.zip(other.stderr).map(|(a, b)| a.hypot(b));
        Difference { value: self.value - other.value, stderr }
    }

    /// `4.1234 ± 0.0056`
    pub fn text(self) -> String {
        with_error(numbers::loss(self.value), self.stderr)
    }
}

impl Difference {
    /// Too small to be told from no difference by these measurements.
    pub fn is_noise(self) -> bool {
        self.stderr.is_some_and(|stderr| self.value.abs() < NOISE_ERRORS * stderr)
    }

    /// `+0.0123 ± 0.0056`
    pub fn text(self) -> String {
        with_error(numbers::signed(self.value), self.stderr)
    }
}

/// `4.1234 ± 0.0056`
pub(super) fn with_error(value: String, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{value} ± {stderr:.4}"),
        None => value,
    }
}

/// How the run came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// The target matches.
    Good,
    /// Finished without a match, or without a benchmark.
    Neutral,
    /// Failed or cancelled.
    Bad,
}

/// A command to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What it is for.
    pub purpose: &'static str,
    /// To paste into a shell.
    pub code: String,
}

impl<'a> View<'a> {
    /// The view of `data`.
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

    /// The points of one metric of one model: (step, tokens seen, value).
    pub fn curve(&self, model: Model, metric: &str) -> &'a [(u64, u64, f64)] {
        let is_it = |curve: &&Curve| curve.model == model && curve.metric == metric;
        self.data.curves.iter().find(is_it).map_or(&[], |curve| &curve.points)
    }

    /// The reference's depth.
    pub fn reference_layers(&self) -> Option<u32> {
        self.data.run.reference_layers.map(|layers| layers.0)
    }

    /// Parameters of the winner as a share of the reference's.
    pub fn parameter_share(&self) -> Option<f64> {
        let reference = self.reference()?.parameters?;
        Some(self.winner()?.parameters? as f64 / reference as f64)
    }

    /// How it came out.
    pub fn mood(&self) -> Mood {
        match &self.data.run.state {
            RunState::Finished { matched: Some(true), .. } => Mood::Good,
            RunState::Failed { .. } | RunState::Cancelled => Mood::Bad,
            RunState::Finished { .. }
            | RunState::Created
            | RunState::Tokenizing
            | RunState::Slicing(_)
            | RunState::Training(_)
            | RunState::Evaluating(_) => Mood::Neutral,
        }
    }

    /// One line: how it came out.
    pub fn headline(&self) -> String {
        let layers = self.winner().and_then(|row| row.layers);
        let run = &self.data.run;
        // A low-data target is not meant to match: it saw less.
        if let (RunState::Finished { .. }, Recipe::LowData, Some(n)) = (&run.state, run.spec.recipe, layers) {
            let of = self.reference_layers().map_or_else(String::new, |of| format!(" of {of}"));
            return format!(
                "{n}{of} layers, trained on {} of the data",
                numbers::percent(run.spec.target.data_fraction)
            );
        }
        match (&self.data.run.state, layers, self.reference_layers()) {
            (RunState::Finished { matched: Some(true), .. }, Some(n), Some(of)) if n < of => {
                format!("{n} of {of} layers match the reference")
            }
            (RunState::Finished { matched: Some(true), .. }, Some(n), _) => {
                format!("Matched at the reference's own depth of {n} layers")
            }
            (RunState::Finished { matched: Some(false), .. }, Some(n), Some(of)) => {
                format!("{n} of {of} layers do not match the reference")
            }
            (RunState::Finished { matched: None, .. }, Some(n), Some(of)) => {
                format!("A target of {n} of the reference's {of} layers")
            }
            (RunState::Finished { .. }, _, _) => "Finished".to_owned(),
            (RunState::Failed { .. }, _, _) => "The run failed".to_owned(),
            (RunState::Cancelled, _, _) => "The run was cancelled".to_owned(),
            (
                RunState::Created
                | RunState::Tokenizing
                | RunState::Slicing(_)
                | RunState::Training(_)
                | RunState::Evaluating(_),
                _,
                _,
            ) => format!("Not finished yet: {}", self.data.run.describe_state()),
        }
    }

    /// A sentence or two under the headline.
    pub fn summary(&self) -> String {
        if let RunState::Failed { message } = &self.data.run.state {
            return message.clone();
        }
        let Some(winner) = self.winner() else {
            return "No target has been measured.".to_owned();
        };
        let mut text = match winner.validation {
            Some(validation) => format!("The target's validation loss is {} nats", validation.text()),
            None => "The target has not been measured".to_owned(),
        };
        if let (Some(reference), Some(difference)) =
            (self.reference().and_then(|row| row.validation), winner.difference)
        {
            text.push_str(&format!("; the reference's is {}. ", reference.text()));
            text.push_str(&match (difference.is_noise(), difference.value < 0.0) {
                (true, _) => {
                    format!("The difference, {}, is within {NOISE_ERRORS} standard errors of zero.", difference.text())
                }
                (false, true) => format!("The target is better by {} nats.", numbers::loss(-difference.value)),
                (false, false) => format!("The target is worse by {} nats.", numbers::loss(difference.value)),
            });
        } else {
            text.push('.');
        }
        if let Some(share) = self.parameter_share() {
            text.push_str(&format!(" It has {} of the reference's parameters.", numbers::percent(share)));
        }
        text
    }

    /// What a reader should know before believing the table.
    pub fn caveats(&self) -> Vec<String> {
        let run = &self.data.run;
        if self.rows.iter().all(|row| row.validation.is_none()) {
            return Vec::new();
        }
        let mut notes = vec![format!(
            "Every row is one training run with one seed ({}). Another seed gives other numbers; how different they \
             would be is not measured here. Change `seed` and run again before building on a small difference.",
            run.spec.seed
        )];
        if let Some(validation) = self.rows.iter().find_map(|row| row.validation) {
            let is_paired = run.models.iter().any(|record| record.difference.is_some());
            let differences = if is_paired {
                "and differences from the reference are taken sequence by sequence; any other difference's error is the two \
                 in quadrature, an upper bound"
            } else {
                "so the error shown for a difference (the two in quadrature) is an upper bound"
            };
            notes.push(format!(
                "± is one standard error over {} validation sequences of {} tokens. It says how well the loss on this \
                 text is known for this one model, not how training varies. All models are measured on the same \
                 sequences, {differences}.",
                numbers::count(validation.n),
                numbers::count(u64::from(run.spec.training.block_size)),
            ));
        }
        if run.spec.recipe == Recipe::FullData {
            let test = match run.spec.target.match_by {
                MatchBy::Mean => "The test looks at the mean alone, not at its error.",
                MatchBy::Interval => "The test looks at the upper end of the difference's 95 % interval.",
            };
            notes.push(format!(
                "A candidate counts as a match when its loss is at most the reference's plus `tolerance_nats` = {}. {test}",
                run.spec.target.tolerance_nats
            ));
        }
        let rounds = self.rows.iter().filter(|row| matches!(row.model, Model::Candidate { .. })).count();
        if rounds > 1 {
            notes.push(format!(
                "The target was chosen among {rounds} rounds by the same validation text that the table shows, so its \
                 number is slightly optimistic."
            ));
        }
        notes.push(
            "The target starts from weights that were trained before: its tokens come on top of those behind the \
             reference. A control has nothing behind it but its own."
                .to_owned(),
        );
        notes.extend(self.control_notes());
        notes.extend(self.cost_note());
        if self.rows.iter().any(|row| row.wall_s.is_some()) {
            notes.push(
                "Wall times are of whatever machine ran this, other load included; compare tokens, not seconds."
                    .to_owned(),
            );
        }
        notes
    }

    /// What the losses before the first update are there for.
    pub fn first_loss_note(&self) -> String {
        let guessing = self.data.run.tokens.and_then(|tokens| tokens.vocab_size).map(|vocab_size| {
            format!(" Guessing evenly costs ln({vocab_size}) = {} nats.", numbers::loss(f64::from(vocab_size).ln()))
        });
        format!(
            "The loss before the first update shows whether the inherited tensors were really there.{}",
            guessing.unwrap_or_default()
        )
    }

    fn control_notes(&self) -> Vec<String> {
        let Some(winner) = self.winner() else { return Vec::new() };
        let Some(inherited) = winner.validation else { return Vec::new() };
        let controls = self.rows.iter().filter(|row| row.role == Role::Control);
        controls
            .filter_map(|control| {
                let gain = control.validation?.less(inherited);
                let factor = match (control.steps, winner.steps) {
                    (Some(a), Some(b)) if a != b && b > 0 => {
                        format!("{} times the", (a as f64 / b as f64 * 100.0).round() / 100.0)
                    }
                    _ => "the same number of".to_owned(),
                };
                let what = if gain.is_noise() {
                    "cannot be told from random initialisation by this measurement"
                } else if gain.value > 0.0 {
                    "is better than random initialisation"
                } else {
                    "is worse than random initialisation"
                };
                Some(format!(
                    "Inheriting {what} at the same depth with {factor} steps (`{}`): the control's loss is {} against \
                     the target's.",
                    control.name,
                    gain.text()
                ))
            })
            .collect()
    }

    /// Growing is not free: the paper's Medium run spent 1.94 times the reference's training.
    fn cost_note(&self) -> Option<String> {
        let cost = |row: &Row| Some(row.parameters? as f64 * row.tokens? as f64);
        let reference = cost(self.reference()?)?;
        let rounds: Vec<f64> =
            self.rows.iter().filter(|row| matches!(row.model, Model::Candidate { .. })).filter_map(cost).collect();
        if rounds.is_empty() || reference == 0.0 {
            return None;
        }
        let what = match rounds.len() {
            1 => "the target".to_owned(),
            n => format!("the candidates of all {n} rounds"),
        };
        Some(format!(
            "Training {what} took {:.2} times as much as training the reference did, by parameters × tokens.",
            rounds.iter().sum::<f64>() / reference
        ))
    }

    /// How to go on from here.
    pub fn commands(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        if let Some(Location::Artifact(id)) =
            self.winner().and_then(|row| self.data.run.record(row.model)).and_then(|record| record.checkpoint.clone())
        {
            commands.push(Command {
                purpose: "Take the target out as a Hugging Face checkpoint",
                code: format!("inheritune artifact export {id} --to target"),
            });
            commands.push(Command {
                purpose: "Load it in transformers and generate",
                code: "python3 -c \"\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\ntokenizer = \
                       AutoTokenizer.from_pretrained('target')\nmodel = \
                       AutoModelForCausalLM.from_pretrained('target')\nprompt = tokenizer('Once upon a time', \
                       return_tensors='pt')\nprint(tokenizer.decode(model.generate(**prompt, max_new_tokens=60, \
                       do_sample=True)[0]))\""
                    .to_owned(),
            });
            commands.push(Command {
                purpose: "Measure it on another text (perplexity.toml)",
                code: format!(
                    "cat > perplexity.toml <<'END'\nkind = \"evaluate\"\ncheckpoint = \"artifact://{id}\"\nbatch_size = \
                     8\n[[tasks]]\ntask = \"rolling_perplexity\"\nsource = \"file:other.txt\"\nEND\ninheritune job submit \
                     perplexity.toml"
                ),
            });
            commands.push(Command {
                purpose: "Inherit from it in turn: in a recipe",
                code: format!("[reference]\ncheckpoint = \"artifact://{id}\""),
            });
        }
        commands.push(Command {
            purpose: "Look at the run again",
            code: format!("inheritune run get {0}\ninheritune run report {0} --output-dir report", self.data.id),
        });
        commands
    }
}

/// A given reference that nobody measured has nothing to show.
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
                LayerMapRule::FirstAndLast => format!("{layers} layers of the reference: the first and the last one"),
                LayerMapRule::List(list) => {
                    let list: Vec<String> = list.iter().map(u32::to_string).collect();
                    format!("layers {} of the reference", list.join(", "))
                }
            };
            match spec.target.inherit {
                InheritSet::ALL => which,
                InheritSet::OFFICIAL_CODE => which + "; of the rest only the head",
                InheritSet::BLOCKS => which + "; nothing else",
                InheritSet::NOTHING => "random".to_owned(),
                parts => format!("{which}; only {}", parts.listed()),
            }
        }
    }
}
