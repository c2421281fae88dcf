//! The report's tables, independent of how they are written down.

use inheritune_domain::benchmark::GROUPS;
use inheritune_domain::run::Model;
use inheritune_domain::spec::Score;

use super::numbers;
use super::view::{Role, View, with_error};

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Head and alignment of each column.
    pub columns: Vec<Column>,
    /// As many cells as columns in each.
    pub rows: Vec<TableRow>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its head, with the unit.
    pub head: &'static str,
    /// How its cells stand.
    pub align: Align,
}

/// How cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRow {
    /// CSS class of the model's colour; empty for none.
    pub class: String,
    /// The target's row.
    pub role: Option<Role>,
    /// The cells.
    pub cells: Vec<String>,
}

/// What to know when reading [`models`].
pub const MODELS_CAPTION: &str =
    "As the paper's Table 4. ± is one standard error. Against the reference, less is better.";
/// What to know when reading [`repetition`].
pub const REPETITION_CAPTION: &str = "As the paper's Table 3, in validation loss: compare rows that saw as many tokens. All \
                                      start from the same inherited layers.";

/// What to know when reading [`benchmarks`].
pub const BENCHMARKS_CAPTION: &str = "As the paper's Table 2, by lm-evaluation-harness's tasks: the score, its standard error, and what guessing and the most \
     frequent answer bring. A score within two errors of chance says nothing.";

const ABSENT: &str = "–";

fn columns<const N: usize>(heads: [(&'static str, Align); N]) -> Vec<Column> {
    heads.into_iter().map(|(head, align)| Column { head, align }).collect()
}

fn or_absent<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| ABSENT.to_owned(), text)
}

/// The rows of the paper's Table 4.
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

/// The rows of the paper's Table 2: every model on every benchmark, subjects of a group under the group. None without any.
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

/// The paper's Table 3: the same tokens as fresh data against repeated passes. None without arms.
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

/// The loss of each model before its first update, beside that of guessing.
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

/// Where each tensor of the target came from.
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

/// `14 copied, 1 tied`: how many tensors came from where.
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

/// Models that the size plots show: one of each depth, the reference and the candidates.
pub fn is_a_size(model: Model) -> bool {
    match model {
        Model::Reference | Model::Candidate { .. } => true,
        Model::Control { .. } | Model::Arm { .. } => false,
    }
}
