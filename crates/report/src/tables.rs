//! The report's tables, independent of the output format.

use inheritune_domain::benchmark::GROUPS;
use inheritune_domain::run::Model;
use inheritune_domain::spec::Score;

use super::numbers;
use super::view::{Role, View, with_error};

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The columns, from left to right.
    pub columns: Vec<Column>,
    /// The rows, each with one cell per column.
    pub rows: Vec<TableRow>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Head, with the unit.
    pub head: &'static str,
    /// Alignment of the cells.
    pub align: Align,
}

/// Alignment of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Left-aligned, for text.
    Left,
    /// Right-aligned, for numbers.
    Right,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRow {
    /// CSS class for the colour of the model; empty for none.
    pub class: String,
    /// Role of the row's model, if the row has one.
    pub role: Option<Role>,
    /// The cells, one per column.
    pub cells: Vec<String>,
}

/// Caption of [`models`].
pub const MODELS_CAPTION: &str =
    "Corresponds to Table 4 of the paper. ± is one standard error. A lower difference from the reference is better.";
/// Caption of [`repetition`].
pub const REPETITION_CAPTION: &str = "Corresponds to Table 3 of the paper, with validation loss. Compare rows with \
     the same number of tokens seen. All rows start from the same inherited layers.";

/// Caption of [`benchmarks`].
pub const BENCHMARKS_CAPTION: &str = "Corresponds to Table 2 of the paper, with the tasks of lm-evaluation-harness: \
     the score, its standard error, and the scores of guessing and of always giving the most frequent answer. A \
     score within two standard errors of chance cannot be distinguished from guessing.";

const ABSENT: &str = "–";

fn columns<const N: usize>(heads: [(&'static str, Align); N]) -> Vec<Column> {
    heads.into_iter().map(|(head, align)| Column { head, align }).collect()
}

fn or_absent<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| ABSENT.to_owned(), text)
}

/// The models of the run, as in Table 4 of the paper.
pub fn models(view: &View) -> Table {
    use Align::{Left, Right};
    let rows = view.rows.iter().map(|row| TableRow {
        class: row.class.clone(),
        role: Some(row.role),
        cells: vec![
            row.name.clone(),
            or_absent(row.layers, |n| n.to_string()),
            row.initialisation.clone(),
            or_absent(row.steps, numbers::count),
            or_absent(row.validation, |v| v.text()),
            or_absent(row.difference, |d| d.text()),
            or_absent(row.parameters, |n| numbers::short(n as f64)),
            or_absent(row.tokens, |n| numbers::short(n as f64)),
            or_absent(row.epochs, |n| format!("{n:.2}")),
            or_absent(row.wall_s, numbers::duration),
        ],
    });
    Table {
        columns: columns([
            ("Model", Left),
            ("Layers", Right),
            ("Initialisation", Left),
            ("Steps", Right),
            ("Validation loss (nats)", Right),
            ("vs. reference", Right),
            ("Parameters", Right),
            ("Tokens", Right),
            ("Epochs", Right),
            ("Wall time", Right),
        ]),
        rows: rows.collect(),
    }
}

/// Every model on every benchmark, as in Table 2 of the paper. Members of a group are only shown as
/// the group. `None` without benchmarks.
pub fn benchmarks(view: &View) -> Option<Table> {
    use Align::{Left, Right};
    let mut rows = Vec::new();
    for row in &view.rows {
        let Some(record) = view.data.run.record(row.model) else { continue };
        let scores: Vec<&Score> = record.benchmarks.iter().collect();
        let groups = GROUPS.iter().filter(|group| scores.iter().any(|score| score.task == group.name));
        let members: Vec<&str> = groups.flat_map(|group| group.members()).map(|member| member.name).collect();
        rows.extend(scores.into_iter().filter(|score| !members.contains(&score.task.as_str())).map(|score| TableRow {
            class: row.class.clone(),
            role: Some(row.role),
            cells: vec![
                row.name.clone(),
                score.task.clone(),
                score.metric.clone(),
                with_error(format!("{:.4}", score.value), score.stderr),
                numbers::count(score.n),
                or_absent(score.chance, |chance| format!("{chance:.4}")),
                or_absent(score.majority, |majority| format!("{majority:.4}")),
            ],
        }));
    }
    let columns = columns([
        ("Model", Left),
        ("Benchmark", Left),
        ("Metric", Left),
        ("Score", Right),
        ("Documents", Right),
        ("Chance", Right),
        ("Majority", Right),
    ]);
    (!rows.is_empty()).then_some(Table { columns, rows })
}

/// Fresh data compared with repeated passes over the same number of tokens, as in Table 3 of the
/// paper. `None` without arms.
pub fn repetition(view: &View) -> Option<Table> {
    use Align::{Left, Right};
    if !view.rows.iter().any(|row| row.role == Role::Arm) {
        return None;
    }
    let base = view.winner().and_then(|row| row.validation);
    let train_tokens = view.data.run.tokens.and_then(|tokens| tokens.train_tokens);
    let mut models: Vec<_> = view.rows.iter().filter(|row| matches!(row.role, Role::Winner | Role::Arm)).collect();
    models.sort_by(|a, b| a.data_fraction.total_cmp(&b.data_fraction));
    let rows = models.into_iter().map(|row| TableRow {
        class: row.class.clone(),
        role: Some(row.role),
        cells: vec![
            row.name.clone(),
            numbers::percent(row.data_fraction),
            or_absent(train_tokens, |n| numbers::short(n as f64 * row.data_fraction)),
            or_absent(row.epochs, |n| format!("{n:.2}")),
            or_absent(row.tokens, |n| numbers::short(n as f64)),
            or_absent(row.validation, |v| v.text()),
            match row.role {
                Role::Winner => ABSENT.to_owned(),
                Role::Reference | Role::Round | Role::Control | Role::Arm => {
                    or_absent(row.validation.zip(base), |(own, base)| own.less(base).text())
                }
            },
        ],
    });
    Some(Table {
        columns: columns([
            ("Model", Left),
            ("Share of the data", Right),
            ("Different tokens", Right),
            ("Passes", Right),
            ("Tokens seen", Right),
            ("Validation loss (nats)", Right),
            ("vs. target", Right),
        ]),
        rows: rows.collect(),
    })
}

/// The loss of each model before its first update. `None` if no loss is known.
pub fn first_losses(view: &View) -> Option<Table> {
    use Align::{Left, Right};
    let rows: Vec<TableRow> = view
        .rows
        .iter()
        .filter_map(|row| {
            let first = row.first_loss?;
            Some(TableRow {
                class: row.class.clone(),
                role: Some(row.role),
                cells: vec![row.name.clone(), row.initialisation.clone(), numbers::loss(first)],
            })
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        columns: columns([("Model", Left), ("Initialisation", Left), ("Loss at step 0 (nats)", Right)]),
        rows,
    })
}

/// The origin of each tensor of the target.
pub fn origins(view: &View) -> Table {
    use Align::{Left, Right};
    let rows = view.data.origins.iter().map(|tensor| TableRow {
        class: String::new(),
        role: None,
        cells: vec![
            tensor.name.clone(),
            tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × "),
            tensor.origin.clone(),
            tensor.from.clone(),
            if tensor.sha256.is_empty() { ABSENT.to_owned() } else { tensor.sha256.chars().take(16).collect() },
        ],
    });
    Table {
        columns: columns([
            ("Tensor", Left),
            ("Shape", Right),
            ("Origin", Left),
            ("From", Left),
            ("SHA-256 before training", Left),
        ]),
        rows: rows.collect(),
    }
}

/// The number of tensors per origin: `14 copied, 1 tied`.
pub fn origin_counts(view: &View) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for tensor in &view.data.origins {
        match counts.iter_mut().find(|(origin, _)| *origin == tensor.origin) {
            Some((_, n)) => *n += 1,
            None => counts.push((&tensor.origin, 1)),
        }
    }
    counts.iter().map(|(origin, n)| format!("{n} {origin}")).collect::<Vec<_>>().join(", ")
}

/// The jobs, in order.
pub fn jobs(view: &View) -> Table {
    use Align::{Left, Right};
    let rows = view.data.jobs.iter().map(|job| TableRow {
        class: String::new(),
        role: None,
        cells: vec![
            job.label.clone(),
            job.status.as_str().to_owned(),
            job.attempts.to_string(),
            or_absent(job.started_at, numbers::clock),
            or_absent(job.started_at.zip(job.finished_at), |(start, end)| {
                numbers::duration((end - start).as_seconds_f64())
            }),
        ],
    });
    Table {
        columns: columns([
            ("Job", Left),
            ("Status", Left),
            ("Attempts", Right),
            ("Started (UTC)", Right),
            ("Took", Right),
        ]),
        rows: rows.collect(),
    }
}

/// Whether the size plots show a model. They show each depth once: the reference and the
/// candidates.
pub fn is_a_size(model: Model) -> bool {
    match model {
        Model::Reference | Model::Candidate { .. } => true,
        Model::Control { .. } | Model::Arm { .. } => false,
    }
}
