//! Tables of scores: of one evaluation, of two compared models, and of all models.

use inheritune_api::v1;
use inheritune_domain::benchmark::{self, GROUPS, POSTER_NINE, Prompt};

use crate::show::{one_line, score_value, table};
use inheritune_report::numbers;

/// Significance level: a difference with a smaller p-value is reported as one.
const SIGNIFICANT: f64 = 0.05;

/// The available tasks. The subjects of MMLU differ only in their names, so they are listed below
/// the table.
pub fn tasks(reply: &v1::ListTasksResponse) -> String {
    let (subjects, others): (Vec<&v1::TaskInfo>, Vec<&v1::TaskInfo>) = reply
        .tasks
        .iter()
        .partition(|task| benchmark::find(&task.name).is_some_and(|found| matches!(found.prompt, Prompt::Mmlu { .. })));
    let row = |task: &&v1::TaskInfo| vec![task.name.clone(), task.metrics.join(", "), task.description.clone()];
    let mut text = table(&["task", "metrics?", "what it measures"], others.iter().map(row));
    if let Some(one) = subjects.first() {
        let names: Vec<String> = subjects.iter().map(|task| one_line(&task.name)).collect();
        text.push_str(&format!("\n\nFurther tasks ({}): {}", one_line(&one.description), names.join(", ")));
    }
    text + "\n\nTo see the data that a task needs: inheritune eval tasks NAME"
}

/// The details of single tasks.
pub fn tasks_in_full(reply: &v1::ListTasksResponse) -> String {
    let one = |task: &v1::TaskInfo| {
        let mut text = format!("task      {}\nmeasures  {}", one_line(&task.name), one_line(&task.description));
        if !task.metrics.is_empty() {
            text.push_str(&format!("\nmetrics   {}", task.metrics.join(", ")));
        }
        text.push_str(&format!("\nneeds     {}", one_line(&task.input)));
        if benchmark::find(&task.name).is_none() {
            let members = benchmark::select(&task.name).unwrap_or_default();
            let names: Vec<&str> = members.iter().map(|member| member.name).collect();
            if !names.is_empty() {
                text.push_str(&format!("\ncontains  {}", names.join(", ")));
            }
        }
        text
    };
    reply.tasks.iter().map(one).collect::<Vec<_>>().join("\n\n")
}

/// The scores of one evaluation, compared with guessing and, if given, with the baseline.
pub fn evaluated(evaluated: &v1::Evaluated) -> String {
    let row = |score: &v1::Score| {
        vec![
            score.task.clone(),
            score.metric.clone(),
            score_value(score),
            score.n.to_string(),
            score.chance.map_or_else(String::new, |chance| format!("{chance:.4}")),
            score.majority.map_or_else(String::new, |majority| format!("{majority:.4}")),
            against_chance(score),
        ]
    };
    let heads = ["task", "metric", "value ± error", "n", "chance?", "majority?", "vs. guessing"];
    let mut text = table(&heads, evaluated.scores.iter().map(row));
    if !evaluated.differences.is_empty() {
        text = format!("{text}\n\nCompared with the baseline, pair by pair\n\n{}", differences(&evaluated.differences));
    }
    format!("{text}\n\nscores {} ({} parameters)", evaluated.scores_artifact_id, numbers::count(evaluated.parameters))
}

/// How a score compares with guessing, such as `above, p = 0.003`. It also says if the score is not
/// above that of always giving the most frequent answer.
fn against_chance(score: &v1::Score) -> String {
    match (score.chance, score.chance_p_value) {
        (Some(chance), Some(p)) if p < SIGNIFICANT && score.value > chance => {
            let constant = if score.majority.is_some_and(|majority| score.value <= majority) {
                "; not above the majority"
            } else {
                ""
            };
            format!("above, {}{constant}", p_value(p))
        }
        (Some(_), Some(p)) if p < SIGNIFICANT => format!("below, {}", p_value(p)),
        (Some(_), Some(p)) => format!("no difference, {}", p_value(p)),
        (Some(_), None) => "no difference".to_owned(),
        (None, _) => String::new(),
    }
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") }
}

/// The scores of two models and their differences.
pub fn compared(reply: &v1::CompareScoresResponse) -> String {
    let places =
        format!("first   {}\nsecond  {}", one_line(&reply.first_checkpoint), one_line(&reply.second_checkpoint));
    if reply.differences.is_empty() {
        return format!("{places}\n\nThe two models have no scores in common.");
    }
    let value = |scores: &[v1::Score], difference: &v1::ScoreDifference| {
        let score = scores.iter().find(|score| score.task == difference.task && score.metric == difference.metric);
        score.map_or_else(String::new, score_value)
    };
    let row = |difference: &v1::ScoreDifference| {
        let mut row = vec![difference.task.clone(), difference.metric.clone()];
        row.extend([value(&reply.first, difference), value(&reply.second, difference)]);
        row.extend(difference_cells(difference));
        row
    };
    let heads = ["task", "metric", "first?", "second?", "first - second", "95 % interval?", "n?", "verdict"];
    format!("{places}\n\n{}", table(&heads, reply.differences.iter().map(row)))
}

fn differences(differences: &[v1::ScoreDifference]) -> String {
    let row = |difference: &v1::ScoreDifference| {
        let mut row = vec![difference.task.clone(), difference.metric.clone()];
        row.extend(difference_cells(difference));
        row
    };
    let heads = ["task", "metric", "this - baseline", "95 % interval?", "n?", "verdict"];
    table(&heads, differences.iter().map(row))
}

fn difference_cells(difference: &v1::ScoreDifference) -> [String; 4] {
    let value = match difference.stderr {
        Some(stderr) => format!("{:+.4} ± {stderr:.4}", difference.value),
        None => format!("{:+.4}", difference.value),
    };
    let interval = match (difference.confidence_low, difference.confidence_high) {
        (Some(low), Some(high)) => format!("{low:+.4} to {high:+.4}"),
        _ => String::new(),
    };
    let verdict = match difference.p_value {
        Some(p) if p < SIGNIFICANT => format!("different, {}", p_value(p)),
        Some(p) => format!("no difference, {}", p_value(p)),
        None => "no difference".to_owned(),
    };
    [value, interval, difference.n.to_string(), verdict]
}

/// The columns of the leaderboard after the poster's nine tasks: task, metric and head.
const FURTHER: [(&str, &str, &str); 5] = [
    ("mmlu", "acc", "MMLU"),
    ("arc_easy", "acc", "arc_easy"),
    ("sciq", "acc", "sciq"),
    ("hellaswag", "acc_norm", "hellaswag acc_norm"),
    ("lambada_openai", "acc", "lambada_openai"),
];
/// Columns whose values are not shares of correct answers.
const PLAIN: [(&str, &str, &str); 3] = [
    ("lambada_openai", "perplexity", "lambada_openai perplexity"),
    ("wikitext", "word_perplexity", "wikitext word perplexity"),
    ("validation_loss", "loss_nats", "validation loss, nats"),
];

/// A table of models by tasks.
pub fn leaderboard(reply: &v1::ListModelScoresResponse) -> String {
    let nine = POSTER_NINE.iter().map(|task| (*task, "acc", *task));
    let shares: Vec<(&str, &str, &str)> = nine.chain(FURTHER).collect();
    let known =
        |(task, metric, _): &(&str, &str, &str)| reply.models.iter().any(|model| find(model, task, metric).is_some());
    let shares: Vec<_> = shares.into_iter().filter(known).collect();
    let plain: Vec<_> = PLAIN.into_iter().filter(known).collect();
    let mut heads = vec!["model", "parameters", "nine tasks"];
    heads.extend(shares.iter().chain(&plain).map(|column| column.2));
    let row = |model: &v1::ModelScores| {
        let name = match model.published_in.as_str() {
            "" => one_line(&model.model),
            source => format!("{} [published: {source}]", one_line(&model.model)),
        };
        let parameters = if model.parameters == 0 { String::new() } else { numbers::short(model.parameters as f64) };
        let mut row = vec![name, parameters, average(model)];
        let cell =
            |score: Option<&v1::Score>, text: &dyn Fn(&v1::Score) -> String| score.map_or_else(String::new, text);
        row.extend(shares.iter().map(|(task, metric, _)| cell(find(model, task, metric), &share)));
        row.extend(plain.iter().map(|(task, metric, _)| cell(find(model, task, metric), &score_value)));
        row
    };
    let subjects = GROUPS[0].members().len();
    format!(
        "{}\n\nPercent ± standard error; * differs from guessing (p < {SIGNIFICANT}). \"nine tasks\" is the average of \
         the poster's tasks {}. MMLU: {subjects} subjects, five shots.",
        table(&heads, reply.models.iter().map(row)),
        POSTER_NINE.join(", ")
    )
}

fn find<'a>(model: &'a v1::ModelScores, task: &str, metric: &str) -> Option<&'a v1::Score> {
    model.scores.iter().find(|score| score.task == task && score.metric == metric)
}

/// A score in percent, marked if it differs from guessing: `56.47 ± 1.16*`.
fn share(score: &v1::Score) -> String {
    let mark = if score.chance_p_value.is_some_and(|p| p < SIGNIFICANT) { "*" } else { "" };
    percent(score.value, score.stderr) + mark
}

fn percent(value: f64, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{:.2} ± {:.2}", 100.0 * value, 100.0 * stderr),
        None => format!("{:.2}", 100.0 * value),
    }
}

/// The unweighted average of the poster's nine tasks, with the error of independent scores. Empty
/// for a model that lacks one of them.
fn average(model: &v1::ModelScores) -> String {
    let scores: Option<Vec<&v1::Score>> = POSTER_NINE.iter().map(|task| find(model, task, "acc")).collect();
    let Some(scores) = scores else { return String::new() };
    let n = scores.len() as f64;
    let squares: Option<f64> = scores.iter().map(|score| score.stderr.map(|stderr| stderr * stderr)).sum();
    percent(scores.iter().map(|score| score.value).sum::<f64>() / n, squares.map(|sum| sum.sqrt() / n))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn acc(task: &str, value: f64, stderr: Option<f64>) -> v1::Score {
        let (task, metric) = (task.to_owned(), "acc".to_owned());
        v1::Score { task, metric, value, stderr, n: 100, ..v1::Score::default() }
    }

    #[test]
    fn the_poster_s_average_is_the_published_one() {
        // Poster, Figure 1: the mean of the nine tasks is 46.9 for the poster's own model.
        let values = [50.96, 56.47, 61.68, 51.69, 25.19, 48.61, 34.42, 49.41, 43.66];
        let scores = POSTER_NINE.iter().zip(values).map(|(task, value)| acc(task, value / 100.0, None)).collect();
        let published =
            v1::ModelScores { model: "ours".into(), published_in: "there".into(), scores, ..Default::default() };
        assert_eq!(average(&published), "46.90");
        let text = leaderboard(&v1::ListModelScoresResponse { models: vec![published], ..Default::default() });
        assert!(text.contains("ours [published: there]") && text.contains("56.47"), "{text}");
    }

    #[test]
    fn a_score_is_held_against_guessing() {
        let score =
            |value, p| v1::Score { chance: Some(0.5), chance_p_value: Some(p), ..acc("piqa", value, Some(0.01)) };
        assert_eq!(against_chance(&score(0.56, 0.0001)), "above, p < 0.001");
        assert_eq!(against_chance(&score(0.48, 0.04)), "below, p = 0.040");
        let constant = v1::Score { majority: Some(0.6346), ..score(0.6346, 0.006) };
        assert_eq!(against_chance(&constant), "above, p = 0.006; not above the majority");
        assert_eq!(against_chance(&score(0.51, 0.3)), "no difference, p = 0.300");
        assert_eq!(share(&score(0.56, 0.0001)), "56.00 ± 1.00*");
    }
}
