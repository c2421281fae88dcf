//! The outcome of a run: its colour, its headline and a summary.

use inheritune_domain::run::RunState;
use inheritune_domain::spec::Recipe;

use crate::numbers;
use crate::view::{NOISE_ERRORS, View};

/// The outcome of a run, which selects the colour of the page's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The target matches the reference.
    Good,
    /// Not finished yet, or finished without a match or without a benchmark.
    Neutral,
    /// The run failed or was cancelled.
    Bad,
}

impl View<'_> {
    /// The outcome of the run.
    pub fn mood(&self) -> Verdict {
        match &self.data.run.state {
            RunState::Finished { matched: Some(true), .. } => Verdict::Good,
            RunState::Failed { .. } | RunState::Cancelled => Verdict::Bad,
            RunState::Finished { .. }
            | RunState::Created
            | RunState::Tokenizing
            | RunState::Slicing(_)
            | RunState::Training(_)
            | RunState::Evaluating(_) => Verdict::Neutral,
        }
    }

    /// The outcome of the run in one line.
    pub fn headline(&self) -> String {
        let layers = self.winner().and_then(|row| row.layers);
        let run = &self.data.run;
        // A low-data target is not expected to match, because it sees less data.
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
                format!("Matched at the reference's full depth of {n} layers")
            }
            (RunState::Finished { matched: Some(false), .. }, Some(n), Some(of)) => {
                format!("{n} of {of} layers do not match the reference")
            }
            (RunState::Finished { matched: None, .. }, Some(n), Some(of)) => {
                format!("A target with {n} of the reference's {of} layers")
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

    /// A short summary for below the headline.
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
}
