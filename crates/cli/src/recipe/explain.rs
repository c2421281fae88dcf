//! Explains what a recipe will do, as far as the recipe alone determines it.

use inheritune_checkpoint::inherit_set::{InheritPart, InheritSet};
use inheritune_domain::id::LayerCount;
use inheritune_domain::spec::{GrowthSource, LayerMapRule, MatchBy, Recipe, RunSpec, TokenizerSpec, TrainingSpec};
use serde::Serialize;

use inheritune_report::numbers;

/// The models that a recipe trains, in order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The recipe's name.
    pub name: String,
    /// How the corpus is used.
    pub corpus: String,
    /// One per model that may be trained.
    pub models: Vec<PlannedModel>,
    /// The rules that decide between the models.
    pub rules: Vec<String>,
}

/// One model that may be trained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedModel {
    /// Name of the model.
    pub name: String,
    /// Number of layers; `None` if it depends on the reference.
    pub layers: Option<u32>,
    /// How the weights are initialized.
    pub initialisation: String,
    /// Optimizer steps; `None` if they depend on the corpus.
    pub steps: Option<u64>,
    /// Passes over the training data; `None` if steps are given.
    pub epochs: Option<u32>,
    /// Tokens per step.
    pub tokens_per_step: u64,
    /// Total tokens; `None` if they depend on the corpus.
    pub tokens: Option<u64>,
    /// Share of the training tokens that are used.
    pub data_fraction: f64,
    /// Parameters; `None` if the vocabulary or the shape is not in the recipe.
    pub parameters: Option<u64>,
}

/// Explains what `spec` will do.
pub fn explain(spec: &RunSpec) -> Plan {
    let mut models = Vec::new();
    let depth = spec.reference_layers();
    if spec.reference.architecture.is_some() {
        let training = spec.reference.training.as_ref().unwrap_or(&spec.training);
        models.push(model(
            spec,
            ModelInputs { name: "reference", layers: depth, initialisation: "random", training, data_fraction: 1.0 },
        ));
    }
    let rounds = rounds(spec, depth);
    for (i, layers) in rounds.iter().enumerate() {
        let name = match spec.recipe {
            Recipe::FullData => format!("round {}", i + 1),
            Recipe::LowData => "target".to_owned(),
        };
        let from = initialisation(spec, *layers, i);
        models.push(model(
            spec,
            ModelInputs {
                name: &name,
                layers: *layers,
                initialisation: &from,
                training: &spec.training,
                data_fraction: spec.target.data_fraction,
            },
        ));
    }
    // The winner's depth is only known in advance if there is one candidate.
    let winner = if rounds.len() == 1 { rounds.first().copied().flatten() } else { None };
    for control in &spec.controls {
        let mut training = spec.training.clone();
        training.steps = training.steps.map(|steps| ((steps as f64 * control.steps_factor).round() as u64).max(1));
        let from = format!("random, {} x the target's steps", control.steps_factor);
        models.push(model(
            spec,
            ModelInputs {
                name: &control.name,
                layers: winner,
                initialisation: &from,
                training: &training,
                data_fraction: spec.target.data_fraction,
            },
        ));
    }
    for arm in &spec.arms {
        let training = TrainingSpec { steps: None, epochs: Some(arm.epochs), ..spec.training.clone() };
        let from = initialisation(spec, winner, 0);
        models.push(model(
            spec,
            ModelInputs {
                name: &arm.name,
                layers: winner,
                initialisation: &from,
                training: &training,
                data_fraction: arm.data_fraction,
            },
        ));
    }
    Plan { name: spec.name.clone(), corpus: corpus(spec), models, rules: rules(spec, depth) }
}

impl Plan {
    /// The plan as text, one line per model and rule.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("{}: {}", self.name, self.corpus)];
        for model in &self.models {
            let layers =
                model.layers.map_or_else(|| "as many layers as the target".to_owned(), |n| format!("{n} layers"));
            let parameters = model.parameters.map(|n| format!(" ({} parameters)", numbers::short(n as f64)));
            let amount = match (model.steps, model.epochs) {
                (Some(steps), _) => format!("{} steps", numbers::count(steps)),
                (None, Some(1)) => "1 pass in steps".to_owned(),
                (None, Some(epochs)) => format!("{epochs} passes in steps"),
                (None, None) => String::new(),
            };
            let tokens = match model.tokens {
                Some(tokens) => format!(" = {} tokens", numbers::short(tokens as f64)),
                None => String::new(),
            };
            let share = if model.data_fraction < 1.0 {
                format!(" over {} of the training tokens", numbers::percent(model.data_fraction))
            } else {
                String::new()
            };
            lines.push(format!(
                "  {}: {layers}{}, {}; {amount} of {} tokens{tokens}{share}",
                model.name,
                parameters.unwrap_or_default(),
                model.initialisation,
                numbers::short(model.tokens_per_step as f64),
            ));
        }
        lines.extend(self.rules.iter().map(|rule| format!("  {rule}")));
        lines.join("\n")
    }
}

/// The inputs of [`model`].
struct ModelInputs<'a> {
    name: &'a str,
    layers: Option<LayerCount>,
    initialisation: &'a str,
    training: &'a TrainingSpec,
    data_fraction: f64,
}

fn model(spec: &RunSpec, inputs: ModelInputs<'_>) -> PlannedModel {
    let ModelInputs { name, layers, initialisation, training, data_fraction } = inputs;
    let parameters = match (&spec.reference.architecture, &spec.corpus.tokenizer, layers) {
        (Some(architecture), TokenizerSpec::Train { vocab_size }, Some(layers)) => {
            Some(architecture.config(*vocab_size).with_layers(layers).parameters())
        }
        _ => None,
    };
    PlannedModel {
        name: name.to_owned(),
        layers: layers.map(|layers| layers.0),
        initialisation: initialisation.to_owned(),
        steps: training.steps,
        epochs: training.epochs,
        tokens_per_step: training.tokens_per_step(),
        tokens: training.steps.map(|steps| steps * training.tokens_per_step()),
        data_fraction,
        parameters,
    }
}

/// The depth of each possible round; `None` if it depends on the depth of the reference.
fn rounds(spec: &RunSpec, depth: Option<LayerCount>) -> Vec<Option<LayerCount>> {
    let target = &spec.target;
    if let LayerMapRule::List(list) = &target.layer_map {
        return vec![Some(LayerCount(list.len() as u32))];
    }
    let start = target.start_layers.or(depth.map(|n| LayerCount((n.0 / 2).max(1))));
    let rounds = match spec.recipe {
        Recipe::LowData => 1,
        Recipe::FullData => target.max_rounds,
    };
    let Some(start) = start else { return vec![None; rounds as usize] };
    let mut layers = Vec::new();
    for round in 0..rounds {
        let n = start.0.saturating_add(round.saturating_mul(target.grow_by));
        let n = depth.map_or(n, |depth| n.min(depth.0));
        layers.push(Some(LayerCount(n)));
        if depth.is_some_and(|depth| n >= depth.0) {
            break;
        }
    }
    layers
}

fn initialisation(spec: &RunSpec, layers: Option<LayerCount>, round: usize) -> String {
    let n = layers.map_or_else(|| "n".to_owned(), |n| n.to_string());
    if spec.target.growth_source == GrowthSource::Carry && round > 0 {
        return format!("the previous round's layers, then the reference's up to {n}");
    }
    let which = match &spec.target.layer_map {
        LayerMapRule::First => format!("the reference's first {n} layers"),
        LayerMapRule::FirstAndLast => format!("{n} of the reference's layers, the first ones and the last"),
        LayerMapRule::List(list) => format!("the reference's layers {list:?}"),
    };
    inherited(&which, spec.target.inherit)
}

/// Describes what `set` inherits from the layers `which` and from the parts outside the layers.
fn inherited(which: &str, set: InheritSet) -> String {
    match set {
        InheritSet::ALL => return format!("{which}, embeddings, final norm and head"),
        InheritSet::OFFICIAL_CODE => return format!("{which} and head, as the released code does"),
        InheritSet::BLOCKS => return format!("{which} and nothing else"),
        InheritSet::NOTHING => return "random".to_owned(),
        _ => {}
    }
    let words = |parts: &[InheritPart]| {
        let words: Vec<String> =
            parts.iter().map(|part| part.as_str().replace('_', " ").replace("mlp", "MLP")).collect();
        match words.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            [first @ .., last] => format!("{} and {last}", first.join(", ")),
        }
    };
    let (of_blocks, around): (Vec<InheritPart>, Vec<InheritPart>) = set.parts().partition(|part| part.is_of_blocks());
    let blocks = if of_blocks.len() < 3 { format!("{} of {which}", words(&of_blocks)) } else { which.to_owned() };
    match (of_blocks.as_slice(), around.as_slice()) {
        ([], _) => format!("the reference's {}; the rest random", words(&around)),
        (_, []) => format!("{blocks}; the rest random"),
        (_, _) => format!("{blocks}, and its {}; the rest random", words(&around)),
    }
}

fn corpus(spec: &RunSpec) -> String {
    let tokenizer = match &spec.corpus.tokenizer {
        TokenizerSpec::Reference => "the reference's tokenizer".to_owned(),
        TokenizerSpec::Train { vocab_size } => format!("a byte-level BPE with {vocab_size} entries trained on it"),
        TokenizerSpec::Uri(uri) => format!("the tokenizer of {uri}"),
    };
    let n = spec.corpus.sources.len();
    match spec.corpus.token_set() {
        Some(id) => format!("token set {id}"),
        None => format!(
            "{n} source{}, {tokenizer}, last {} held out for validation",
            if n == 1 { "" } else { "s" },
            numbers::percent(spec.corpus.validation_fraction)
        ),
    }
}

fn rules(spec: &RunSpec, depth: Option<LayerCount>) -> Vec<String> {
    let mut rules = Vec::new();
    match spec.recipe {
        Recipe::FullData if spec.target.max_rounds == 1 => rules.push(format!(
            "One round; it matches when the validation loss is at most the reference's + {} nats.",
            spec.target.tolerance_nats
        )),
        Recipe::FullData => {
            let by = match spec.target.match_by {
                MatchBy::Mean => "",
                MatchBy::Interval => " (upper end of the 95 % interval)",
            };
            rules.push(format!(
                "Grows by {} layers per round until the validation loss is at most the reference's + {} nats{by}, for \
                 at most {} rounds{}.",
                spec.target.grow_by,
                spec.target.tolerance_nats,
                spec.target.max_rounds,
                depth.map_or_else(|| " or up to the reference's depth".to_owned(), |n| format!(" or up to {n} layers")),
            ));
        }
        Recipe::LowData => rules.push("One round, without growth.".to_owned()),
    }
    if spec.target.start_layers.is_none() && depth.is_none() {
        rules.push("Starts at half of the reference's layers; their number is read from the reference.".to_owned());
    }
    if !spec.controls.is_empty() && spec.training.steps.is_none() {
        rules.push("Controls take their number of steps from the trained target.".to_owned());
    }
    if !spec.evaluation.benchmarks.is_empty() {
        let rows = spec.evaluation.benchmark_limit.map_or_else(String::new, |n| format!(", {n} rows of each"));
        let names = spec.evaluation.benchmarks.join(", ");
        rules.push(format!("Every model, including the reference, is measured on benchmarks: {names}{rows}."));
    }
    rules
}
