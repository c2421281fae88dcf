//! What the numbers do not show: notes for readers of a report.

use inheritune_domain::run::Model;
use inheritune_domain::spec::{MatchBy, Recipe};

use crate::numbers;
use crate::view::{Role, Row, View};

impl View<'_> {
    /// What a reader should know before trusting the table.
    pub fn caveats(&self) -> Vec<String> {
        let run = &self.data.run;
        if self.rows.iter().all(|row| row.validation.is_none()) {
            return Vec::new();
        }
        let mut notes = vec![format!(
            "Every row is one training run with one seed ({}). Another seed gives different numbers; this report does \
             not measure how different. Change `seed` and run again before relying on a small difference.",
            run.spec.seed
        )];
        if let Some(validation) = self.rows.iter().find_map(|row| row.validation) {
            let is_paired = run.models.iter().any(|record| record.difference.is_some());
            let differences = if is_paired {
                "and differences from the reference are computed per sequence. For any other difference, the error \
                 combines both errors in quadrature, which is an upper bound"
            } else {
                "so the error of a difference (both errors in quadrature) is an upper bound"
            };
            notes.push(format!(
                "± is one standard error over {} validation sequences of {} tokens. It is the uncertainty of the loss \
                 of this one model on this text, not the variance between trainings. All models are measured on the \
                 same sequences, {differences}.",
                numbers::count(validation.n),
                numbers::count(u64::from(run.spec.training.block_size)),
            ));
        }
        if run.spec.recipe == Recipe::FullData {
            let test = match run.spec.target.match_by {
                MatchBy::Mean => "The test uses the mean alone, not its error.",
                MatchBy::Interval => "The test uses the upper end of the difference's 95 % interval.",
            };
            notes.push(format!(
                "A candidate matches when its loss is at most the reference's plus `tolerance_nats` = {}. {test}",
                run.spec.target.tolerance_nats
            ));
        }
        let rounds = self.rows.iter().filter(|row| matches!(row.model, Model::Candidate { .. })).count();
        if rounds > 1 {
            notes.push(format!(
                "The target was chosen from {rounds} rounds on the same validation text that the table reports, so its \
                 loss is slightly optimistic."
            ));
        }
        notes.push(
            "The target starts from trained weights, so its tokens come on top of those of the reference. A control \
             starts from random weights and sees only its own tokens."
                .to_owned(),
        );
        notes.extend(self.control_notes());
        notes.extend(self.cost_note());
        if self.rows.iter().any(|row| row.wall_s.is_some()) {
            notes.push("Wall times depend on the machine and its other load. Compare tokens, not seconds.".to_owned());
        }
        notes
    }

    /// Explains the losses before the first update.
    pub fn first_loss_note(&self) -> String {
        let guessing = self.data.run.tokens.and_then(|tokens| tokens.vocab_size).map(|vocab_size| {
            format!(
                " Uniform guessing has a loss of ln({vocab_size}) = {} nats.",
                numbers::loss(f64::from(vocab_size).ln())
            )
        });
        format!(
            "The loss before the first update shows whether the inherited tensors were in place.{}",
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
                    "is indistinguishable from random initialisation in this measurement"
                } else if gain.value > 0.0 {
                    "is better than random initialisation"
                } else {
                    "is worse than random initialisation"
                };
                Some(format!(
                    "Inheriting {what} at the same depth with {factor} steps (`{}`): the control's loss minus the \
                     target's is {}.",
                    control.name,
                    gain.text()
                ))
            })
            .collect()
    }

    /// The cost of training the candidates. Growing is not free: in the paper's Medium run it cost
    /// 1.94 times as much as training the reference.
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
            "Training {what} cost {:.2} times as much as training the reference, in parameters × tokens.",
            rounds.iter().sum::<f64>() / reference
        ))
    }
}
