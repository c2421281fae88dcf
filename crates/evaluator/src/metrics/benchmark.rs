//! Computes a benchmark's scores from answers: the metrics and standard errors of
//! lm-evaluation-harness 0.4.13, and the baselines of guessing to compare them with.

use inheritune_domain::benchmark::{Benchmark, Prompt};
use inheritune_domain::comparison::two_sided;
use inheritune_domain::spec::Score;

use super::bootstrap::perplexity_stderr;
use super::{TextLength, TextPerplexity};
use crate::answer::Answer;
use crate::benchmarks::Target;

/// Returns an item's value in each of its benchmark's metrics, in the order of [`Prompt::metrics`]:
/// 0 or 1 for `acc` and `acc_norm` (a probability for [`Target::Mass`]), and the log-likelihood
/// that enters a perplexity.
///
/// # Panics
/// If a request of the item has no answer.
pub fn shares(target: &Target, answers: &[Answer]) -> Vec<f64> {
    let first = answers[0];
    let log_likelihoods = answers.iter().map(|answer| answer.log_likelihood);
    match target {
        Target::Choice { gold, lengths, .. } => {
            let acc = right(*gold, log_likelihoods.clone());
            let by_length = |lengths: &Vec<usize>| {
                right(*gold, log_likelihoods.clone().zip(lengths).map(|(sum, length)| sum / *length as f64))
            };
            [acc].into_iter().chain(lengths.as_ref().map(by_length)).collect()
        }
        Target::Mass { is_true } => {
            // Subtracting the largest one cancels out and avoids underflow.
            let largest = log_likelihoods.clone().fold(f64::NEG_INFINITY, f64::max);
            let likelihoods: Vec<f64> = log_likelihoods.map(|sum| (sum - largest).exp()).collect();
            let all: f64 = likelihoods.iter().sum();
            vec![likelihoods.iter().zip(is_true).filter(|(_, is_true)| **is_true).map(|(p, _)| p / all).sum()]
        }
        Target::Word => vec![f64::from(u8::from(first.is_greedy)), first.log_likelihood],
        Target::Text(_) => vec![first.log_likelihood; 3],
    }
}

/// Returns 1 if the first of the largest values (NumPy's argmax) is at `gold`, else 0.
fn right(gold: usize, values: impl Iterator<Item = f64>) -> f64 {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, value) in values.enumerate() {
        if value > best.1 || place == 0 {
            best = (place, value);
        }
    }
    f64::from(u8::from(best.0 == gold))
}

/// Returns a benchmark's scores, one per metric, from the [`shares`] of its items. Standard errors
/// of perplexities use `resamples` resamples.
pub fn scores(benchmark: &Benchmark, targets: &[Target], shares: &[Vec<f64>], resamples: u32) -> Vec<Score> {
    let metrics = benchmark.prompt.metrics().iter().enumerate();
    metrics
        .filter_map(|(place, metric)| {
            let values: Vec<f64> = shares.iter().map(|shares| shares[place]).collect();
            (!values.is_empty()).then(|| score(benchmark, (metric, resamples), &values, targets))
        })
        .collect()
}

fn score(benchmark: &Benchmark, (metric, resamples): (&str, u32), values: &[f64], targets: &[Target]) -> Score {
    let n = values.len() as u64;
    let plain = |value_and_error| Score::plain(benchmark.name, metric, value_and_error, n);
    let text = || {
        let length = targets.iter().fold(TextLength::default(), |sum, target| match target {
            Target::Text(length) => TextLength { words: sum.words + length.words, bytes: sum.bytes + length.bytes },
            Target::Choice { .. } | Target::Mass { .. } | Target::Word => sum,
        });
        TextPerplexity::new(-values.iter().sum::<f64>(), length)
    };
    match metric {
        "perplexity" => plain(((-mean(values)).exp(), perplexity_stderr(values, resamples))),
        "word_perplexity" => plain((text().word_perplexity, None)),
        "byte_perplexity" => plain((text().byte_perplexity, None)),
        "bits_per_byte" => plain((text().bits_per_byte, None)),
        _ => accuracy(benchmark.prompt, plain((mean(values), mean_stderr(values))), values, targets),
    }
}

/// Adds the expected results of guessing to a score.
fn accuracy(prompt: Prompt, score: Score, values: &[f64], targets: &[Target]) -> Score {
    let chances: Vec<f64> = targets.iter().filter_map(chance).collect();
    if chances.len() != values.len() {
        return score;
    }
    let excess: f64 = values.iter().zip(&chances).map(|(value, chance)| value - chance).sum();
    // When guessing, a correct choice is a Bernoulli variable. A share of probability has no known
    // distribution, so its sample variance is used.
    let variance = if targets.iter().all(|target| matches!(target, Target::Choice { .. })) {
        chances.iter().map(|chance| chance * (1.0 - chance)).sum::<f64>()
    } else {
        let mean = excess / values.len() as f64;
        values.iter().zip(&chances).map(|(value, chance)| (value - chance - mean).powi(2)).sum::<f64>()
    };
    Score {
        chance: Some(mean(&chances)),
        majority: majority(prompt, targets),
        chance_p_value: two_sided(excess, variance.sqrt()),
        ..score
    }
}

/// Returns the expected value of guessing on an item.
fn chance(target: &Target) -> Option<f64> {
    match target {
        Target::Choice { choices, .. } => Some(1.0 / *choices as f64),
        Target::Mass { is_true } => {
            Some(is_true.iter().filter(|is_true| **is_true).count() as f64 / is_true.len() as f64)
        }
        Target::Word | Target::Text(_) => None,
    }
}

/// Returns the accuracy of always giving the most frequent correct answer, if every item offers the
/// same answers.
fn majority(prompt: Prompt, targets: &[Target]) -> Option<f64> {
    let has_same_answers = match prompt {
        Prompt::Wsc | Prompt::Boolq | Prompt::Mmlu { .. } | Prompt::Wnli | Prompt::Qnli | Prompt::Mnli => true,
        Prompt::Wsc273
        | Prompt::Piqa
        | Prompt::Winogrande
        | Prompt::Logiqa
        | Prompt::TruthfulqaMc1
        | Prompt::TruthfulqaMc2
        | Prompt::Wikitext
        | Prompt::Lambada
        | Prompt::Arc
        | Prompt::Sciq
        | Prompt::Hellaswag => false,
    };
    let mut counts: Vec<usize> = Vec::new();
    for target in targets {
        let Target::Choice { gold, .. } = target else { return None };
        counts.resize(counts.len().max(gold + 1), 0);
        counts[*gold] += 1;
    }
    let most = counts.into_iter().max()?;
    has_same_answers.then_some(most as f64 / targets.len() as f64)
}

/// Returns the score of a group whose members are weighted by their items, like `mmlu` in the
/// harness: the mean, and the pooled standard error (`pooled_sample_stderr`). `None` unless all
/// members are accuracies.
pub fn group_score(name: &str, members: &[Score]) -> Option<Score> {
    let n: u64 = members.iter().map(|score| score.n).sum();
    let metric = &members.first()?.metric;
    let weighted = |value: &dyn Fn(&Score) -> Option<f64>| {
        members.iter().map(|score| Some(value(score)? * score.n as f64)).sum::<Option<f64>>().map(|sum| sum / n as f64)
    };
    let stderr = members
        .iter()
        .map(|score| Some((score.n as f64 - 1.0) * score.stderr?.powi(2) * score.n as f64))
        .sum::<Option<f64>>()
        .map(|squares| (squares / (n as f64 - members.len() as f64) / n as f64).sqrt());
    let value = weighted(&|score| Some(score.value))?;
    let chance = weighted(&|score| score.chance)?;
    let coins: f64 =
        members.iter().filter_map(|score| Some(score.n as f64 * score.chance? * (1.0 - score.chance?))).sum();
    Some(Score {
        chance: Some(chance),
        majority: weighted(&|score| score.majority),
        chance_p_value: two_sided((value - chance) * n as f64, coins.sqrt()),
        ..Score::plain(name, metric, (value, stderr), n)
    })
}

/// The mean, summed from left to right as in Python.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard error of the mean; `None` for a single value.
fn mean_stderr(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let n = values.len() as f64;
    (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answers(log_likelihoods: &[f64]) -> Vec<Answer> {
        log_likelihoods.iter().map(|sum| Answer { log_likelihood: *sum, tokens: 1, is_greedy: false }).collect()
    }

    #[test]
    fn the_first_of_equal_answers_counts() {
        let choice = |gold, lengths| Target::Choice { gold, choices: 3, lengths };
        let said = answers(&[-4.0, -2.0, -2.0]);
        assert_eq!(shares(&choice(1, None), &said), [1.0]);
        assert_eq!(shares(&choice(2, None), &said), [0.0]);
        // -4/8, -2/2, -2/5: the third is the most likely per character.
        assert_eq!(shares(&choice(2, Some(vec![8, 2, 5])), &said), [0.0, 1.0]);
    }

    #[test]
    fn mass_is_the_share_of_probability_on_true_choices() {
        let mass = Target::Mass { is_true: vec![true, false, true] };
        // Python: p = [math.exp(x) for x in (-1, -2, -3)]; (p[0] + p[2]) / sum(p)
        assert!((shares(&mass, &answers(&[-1.0, -2.0, -3.0]))[0] - 0.755_271_52).abs() < 1e-8);
        assert!((shares(&mass, &answers(&[-1001.0, -1002.0, -1003.0]))[0] - 0.755_271_52).abs() < 1e-8);
    }

    #[test]
    fn accuracies_have_chance_and_majority() {
        let boolq = inheritune_domain::benchmark::find("boolq").unwrap();
        let targets: Vec<Target> =
            [0, 1, 1, 1].iter().map(|gold| Target::Choice { gold: *gold, choices: 2, lengths: None }).collect();
        let [score] = &scores(&boolq, &targets, &[vec![1.0], vec![1.0], vec![0.0], vec![1.0]], 0)[..] else { panic!() };
        assert_eq!((score.value, score.chance, score.majority), (0.75, Some(0.5), Some(0.75)));
        assert!((score.stderr.unwrap() - 0.25).abs() < 1e-15);
        // One more than the expected 2 of 4 coin flips: z = 1.
        assert!((score.chance_p_value.unwrap() - 0.317_310_507_862_914_1).abs() < 1e-12);
    }

    #[test]
    fn groups_are_pooled_as_the_harness_pools_them() {
        // lm_eval 0.4.13: pooled_sample_stderr([0.1, 0.2], [5, 10]), aggregate_subtask_metrics([0.4, 0.6], [5, 10])
        let member = |value, stderr, n| Score {
            chance: Some(0.25),
            ..Score::plain("mmlu_anatomy", "acc", (value, Some(stderr)), n)
        };
        let group = group_score("mmlu", &[member(0.4, 0.1, 5), member(0.6, 0.2, 10)]).unwrap();
        assert!((group.value - 8.0 / 15.0).abs() < 1e-15);
        assert!((group.stderr.unwrap() - 0.139_596_488_090_422_58).abs() < 1e-15, "{:?}", group.stderr);
        assert_eq!((group.n, group.chance, group.majority), (15, Some(0.25), None));
        let alone = Score { stderr: None, ..member(1.0, 0.0, 1) };
        assert_eq!(group_score("mmlu", &[member(0.4, 0.1, 5), alone]).unwrap().stderr, None);
    }
}
