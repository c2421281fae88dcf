#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use expect_test::{Expect, expect};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::comparison::Difference;
use crate::id::ArtifactId;
use crate::spec::{
    ArmSpec, ControlSpec, EvaluateSpec, Evaluated, GrowthSource, Helped, MatchBy, Score, ScoreDifference, SliceSource,
    SliceSpec, Sliced, Tokenized, Trained, TrainingSpec,
};
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::inherit_set::{InheritPart, InheritSet};

mod failures;

fn artifact(n: u128) -> ArtifactId {
    ArtifactId(Uuid::from_u128(n))
}

fn spec() -> RunSpec {
    toml::from_str(
        r#"
        name = "test"
        recipe = "full-data"
        corpus = { sources = ["file:///c.txt"], tokenizer = { train = { vocab_size = 512 } } }
        target = { start_layers = 2, grow_by = 2 }
        training = { block_size = 64, micro_batch = 4, steps = 100, lr_max = 1e-3 }
        [reference.architecture]
        family = "gpt2"
        n_layers = 5
        d_model = 32
        n_heads = 4
        max_positions = 64
        "#,
    )
    .unwrap()
}

fn config(layers: u32) -> DecoderConfig {
    spec().reference.architecture.unwrap().config(512).with_layers(LayerCount(layers))
}

/// Returns the outcome of `job`; `loss` is the result of an evaluation.
fn answer(job: &JobSpec, depth: &mut u32, loss: f64) -> JobOutcome {
    match job {
        JobSpec::Tokenize(_) => JobOutcome::Tokenized(Tokenized {
            tokens: artifact(1),
            train_tokens: 10_000,
            validation_tokens: 1_000,
            vocab_size: 512,
            documents: 3,
            text_bytes: 40_000,
            corpus: None,
        }),
        JobSpec::Slice(slice) => {
            *depth = match &slice.source {
                SliceSource::Architecture { architecture, .. } => architecture.n_layers.0,
                SliceSource::Checkpoint { layers, .. } => layers.0,
            };
            JobOutcome::Sliced(Sliced {
                checkpoint: artifact(2),
                config: config(*depth),
                reference_layers: LayerCount(5),
                parameters: 1,
                copied_tensors: 1,
                fresh_tensors: 0,
                copied_bytes: 1,
            })
        }
        JobSpec::Train(train) => JobOutcome::Trained(Trained {
            checkpoint: artifact(3),
            steps: train.training.total_steps(10_000),
            tokens_seen: 25_600,
            epochs: 1.0,
            first_loss_nats: 5.0,
            last_loss_nats: 4.0,
            wall_s: 1.0,
        }),
        JobSpec::Evaluate(_) => JobOutcome::Evaluated(Evaluated {
            scores_artifact: artifact(4),
            scores: vec![Score::plain("validation_loss", "loss_nats", (loss, Some(0.01)), 10)],
            differences: Vec::new(),
            config: config(*depth),
            parameters: 1,
        }),
    }
}

/// Simulates a run to its end. Each evaluation returns the next of `losses`, and the last one
/// repeatedly after that.
fn play(spec: RunSpec, losses: &[f64]) -> (Run, Vec<String>) {
    let mut log = Vec::new();
    let mut depth = 5;
    let reference = losses[0];
    let mut losses = losses.iter().copied().chain(std::iter::repeat(*losses.last().unwrap()));
    let mut transition = Run::new(spec).advance(&RunEvent::Created).unwrap();
    for _ in 0..1000 {
        log.extend(transition.notes.iter().map(|note| format!("  {note}")));
        let Some(job) = transition.submit.take() else { return (transition.run, log) };
        log.push(job.label.clone());
        let loss = if matches!(job.spec, JobSpec::Evaluate(_)) { losses.next().unwrap() } else { 0.0 };
        let mut outcome = answer(&job.spec, &mut depth, loss);
        if let (JobSpec::Evaluate(EvaluateSpec { baseline: Some(_), .. }), JobOutcome::Evaluated(evaluated)) =
            (&job.spec, &mut outcome)
        {
            let difference = Difference { value: loss - reference, stderr: Some(0.002), n: 10 };
            let (task, metric) = ("validation_loss".to_owned(), "loss_nats".to_owned());
            evaluated.differences.push(ScoreDifference { task, metric, difference });
        }
        transition = transition.run.advance(&RunEvent::JobSucceeded { outcome }).unwrap();
    }
    panic!("the run does not end: {log:#?}");
}

fn check(spec: RunSpec, losses: &[f64], expected: Expect) {
    spec.validate().unwrap();
    let (run, log) = play(spec, losses);
    expected.assert_eq(&format!("{}\n=> {}\n", log.join("\n"), run.describe_state()));
}

#[test]
fn grows_until_it_matches_then_trains_the_controls() {
    let mut spec = spec();
    spec.controls = vec![
        ControlSpec { name: "random".into(), steps_factor: 1.0 },
        ControlSpec { name: "random, twice the steps".into(), steps_factor: 2.0 },
    ];
    check(
        spec,
        &[3.0, 3.2, 2.9, 3.5, 3.4],
        expect![[r#"
            tokenize the corpus
              tokenized: 10000 training and 1000 validation tokens, vocabulary 512
            reference: slice
            reference: train
            benchmark the reference
              reference: validation loss 3.0000 ± 0.0100 nats
              round 1: inherit 2 layers
            round 1: 2 layers inherited: slice
            round 1: 2 layers inherited: train
            round 1: 2 layers inherited: evaluate
              round 1: 2 layers inherited: validation loss 3.2000 ± 0.0100 nats
              not matched yet (+0.2000 (95 %: +0.1961 to +0.2039) nats): grow to 4 layers
              round 2: inherit 4 layers
            round 2: 4 layers inherited: slice
            round 2: 4 layers inherited: train
            round 2: 4 layers inherited: evaluate
              round 2: 4 layers inherited: validation loss 2.9000 ± 0.0100 nats
              matched: -0.1000 (95 %: -0.1039 to -0.0961) nats from the reference, tolerance 0
            random: slice
            random: train
            random: evaluate
              random: validation loss 3.5000 ± 0.0100 nats
            random, twice the steps: slice
            random, twice the steps: train
            random, twice the steps: evaluate
              random, twice the steps: validation loss 3.4000 ± 0.0100 nats
              finished
            => finished (round 2: 4 layers inherited, matches the reference)
        "#]],
    );
}

#[test]
fn stops_at_the_references_own_depth() {
    check(
        spec(),
        &[3.0, 3.3, 3.2, 3.1],
        expect![[r#"
            tokenize the corpus
              tokenized: 10000 training and 1000 validation tokens, vocabulary 512
            reference: slice
            reference: train
            benchmark the reference
              reference: validation loss 3.0000 ± 0.0100 nats
              round 1: inherit 2 layers
            round 1: 2 layers inherited: slice
            round 1: 2 layers inherited: train
            round 1: 2 layers inherited: evaluate
              round 1: 2 layers inherited: validation loss 3.3000 ± 0.0100 nats
              not matched yet (+0.3000 (95 %: +0.2961 to +0.3039) nats): grow to 4 layers
              round 2: inherit 4 layers
            round 2: 4 layers inherited: slice
            round 2: 4 layers inherited: train
            round 2: 4 layers inherited: evaluate
              round 2: 4 layers inherited: validation loss 3.2000 ± 0.0100 nats
              not matched yet (+0.2000 (95 %: +0.1961 to +0.2039) nats): grow to 5 layers
              round 3: inherit 5 layers
            round 3: 5 layers inherited: slice
            round 3: 5 layers inherited: train
            round 3: 5 layers inherited: evaluate
              round 3: 5 layers inherited: validation loss 3.1000 ± 0.0100 nats
              not matched at the reference's own depth of 5
              finished
            => finished (round 3: 5 layers inherited, does not match the reference)
        "#]],
    );
}

#[test]
fn low_data_has_one_round_and_arms() {
    let mut spec = spec();
    spec.recipe = Recipe::LowData;
    spec.target.data_fraction = 0.1;
    spec.arms = vec![ArmSpec { name: "fresh".into(), data_fraction: 1.0, epochs: 1 }];
    check(
        spec,
        &[3.0, 3.1, 3.05],
        expect![[r#"
        tokenize the corpus
          tokenized: 10000 training and 1000 validation tokens, vocabulary 512
        reference: slice
        reference: train
        benchmark the reference
          reference: validation loss 3.0000 ± 0.0100 nats
          round 1: inherit 2 layers
        2 layers inherited: slice
        2 layers inherited: train
        2 layers inherited: evaluate
          2 layers inherited: validation loss 3.1000 ± 0.0100 nats
          one round: done growing
        fresh: slice
        fresh: train
        fresh: evaluate
          fresh: validation loss 3.0500 ± 0.0100 nats
          finished
        => finished (2 layers inherited, does not match the reference)
    "#]],
    );
}

#[test]
fn a_given_reference_is_only_benchmarked() {
    let mut spec = spec();
    spec.reference.architecture = None;
    spec.reference.checkpoint = Some("file:///m".into());
    spec.target.start_layers = None;
    check(
        spec,
        &[3.0, 2.9],
        expect![[r#"
            tokenize the corpus
              tokenized: 10000 training and 1000 validation tokens, vocabulary 512
            benchmark the reference
              reference: validation loss 3.0000 ± 0.0100 nats
              round 1: inherit 2 layers
            round 1: 2 layers inherited: slice
            round 1: 2 layers inherited: train
            round 1: 2 layers inherited: evaluate
              round 1: 2 layers inherited: validation loss 2.9000 ± 0.0100 nats
              matched: -0.1000 (95 %: -0.1039 to -0.0961) nats from the reference, tolerance 0
              finished
            => finished (round 1: 2 layers inherited, matches the reference)
        "#]],
    );
}

#[test]
fn controls_take_the_winners_steps() {
    let mut spec = spec();
    spec.controls = vec![ControlSpec { name: "random".into(), steps_factor: 2.0 }];
    let mut depth = 5;
    let mut transition = Run::new(spec).advance(&RunEvent::Created).unwrap();
    let mut last_training = None;
    while let Some(job) = transition.submit.take() {
        if let JobSpec::Train(train) = &job.spec {
            last_training = Some(train.clone());
        }
        let outcome = answer(&job.spec, &mut depth, 3.0);
        transition = transition.run.advance(&RunEvent::JobSucceeded { outcome }).unwrap();
    }
    let control = last_training.unwrap();
    assert_eq!(control.training.steps, Some(200));
    assert!(!control.expect_inherited);
}

#[test]
fn parts_are_asked_for_and_expect_no_low_first_loss() {
    let mut spec = spec();
    spec.recipe = Recipe::LowData;
    spec.target.inherit = InheritSet::of(&[InheritPart::Attention, InheritPart::Norms, InheritPart::Head]);
    let mut depth = 5;
    let mut transition = Run::new(spec.clone()).advance(&RunEvent::Created).unwrap();
    let (mut inherited, mut notes) = (Vec::new(), Vec::new());
    while let Some(job) = transition.submit.take() {
        match &job.spec {
            JobSpec::Slice(SliceSpec { source: SliceSource::Checkpoint { inherit, .. }, .. }) => {
                inherited.push(*inherit)
            }
            JobSpec::Train(train) => assert!(!train.expect_inherited),
            JobSpec::Slice(_) | JobSpec::Tokenize(_) | JobSpec::Evaluate(_) => {}
        }
        let outcome = answer(&job.spec, &mut depth, 3.0);
        transition = transition.run.advance(&RunEvent::JobSucceeded { outcome }).unwrap();
        notes.append(&mut transition.notes);
    }
    assert_eq!(inherited, [spec.target.inherit]);
    let inherited = "round 1: inherit 2 layers (attention, norms, head)";
    assert!(notes.iter().any(|note| note.to_string() == inherited), "{notes:?}");
}

fn states() -> Vec<(&'static str, Run)> {
    let run = |state, intent| Run { state, intent, ..running() };
    let candidate = Model::Candidate { round: 1, layers: LayerCount(2) };
    let finished = RunState::Finished { winner: candidate, matched: Some(true) };
    vec![
        ("created", Run::new(spec())),
        ("tokenizing", run(RunState::Tokenizing, Intent::Run)),
        ("slicing", run(RunState::Slicing(candidate), Intent::Run)),
        ("training", run(RunState::Training(candidate), Intent::Run)),
        ("evaluating", run(RunState::Evaluating(candidate), Intent::Run)),
        ("training, paused", run(RunState::Training(candidate), Intent::Pause)),
        ("training, cancelling", run(RunState::Training(candidate), Intent::Cancel)),
        ("finished", run(finished, Intent::Run)),
        ("failed", run(RunState::Failed { message: "no".into() }, Intent::Run)),
        ("cancelled", run(RunState::Cancelled, Intent::Cancel)),
    ]
}

/// Returns a run with a reference of loss 3.0 and a candidate of round 1.
fn running() -> Run {
    let mut depth = 5;
    let mut transition = Run::new(spec()).advance(&RunEvent::Created).unwrap();
    while let Some(job) = transition.submit.take() {
        if matches!(transition.run.state, RunState::Evaluating(Model::Candidate { .. })) {
            return transition.run;
        }
        let outcome = answer(&job.spec, &mut depth, 3.0);
        transition = transition.run.advance(&RunEvent::JobSucceeded { outcome }).unwrap();
    }
    panic!("no candidate was evaluated");
}

fn events() -> Vec<(&'static str, RunEvent)> {
    let mut depth = 2;
    let mut done = |job: &JobSpec| RunEvent::JobSucceeded { outcome: answer(job, &mut depth, 3.1) };
    let tokenize = Run::new(spec()).advance(&RunEvent::Created).unwrap().submit.unwrap().spec;
    let run = running();
    let slice = run.clone().slice_candidate(1, LayerCount(2), vec![]).submit.unwrap().spec;
    let train = run.clone().train(Model::Candidate { round: 1, layers: LayerCount(2) }).submit.unwrap().spec;
    let evaluate = run.evaluate(Model::Reference, vec![]).submit.unwrap().spec;
    vec![
        ("created", RunEvent::Created),
        ("tokenized", done(&tokenize)),
        ("sliced", done(&slice)),
        ("trained", done(&train)),
        ("evaluated", done(&evaluate)),
        ("helped", RunEvent::JobSucceeded { outcome: JobOutcome::Helped(Helped { units: 1 }) }),
        ("job failed", RunEvent::JobFailed { message: "out of disk".into() }),
        ("job cancelled", RunEvent::JobCancelled),
        ("pause", RunEvent::PauseRequested),
        ("resume", RunEvent::ResumeRequested),
        ("cancel", RunEvent::CancelRequested),
        ("retry", RunEvent::RetryRequested { step: RunState::Training(Model::Reference) }),
        ("retry of nothing", RunEvent::RetryRequested { step: RunState::Created }),
    ]
}

/// Checks every (state, event) pair. A pair that is not listed is rejected.
#[test]
fn every_pair() {
    let mut table = String::new();
    for (state_name, run) in states() {
        for (event_name, event) in events() {
            let Ok(transition) = run.advance(&event) else { continue };
            let submit = transition.submit.map_or(String::new(), |job| format!(" + {}", job.label));
            let request = transition.request.map_or(String::new(), |request| format!(" + {request:?} jobs"));
            let status = transition.run.status().as_str();
            table.push_str(&format!(
                "{state_name:<21} {event_name:<14} {status} {}{submit}{request}\n",
                transition.run.describe_state()
            ));
        }
    }
    expect![[r#"
        created               created        RUNNING tokenizing + tokenize the corpus
        created               pause          PAUSED created + Pause jobs
        created               resume         QUEUED created
        created               cancel         CANCELLED cancelled
        tokenizing            tokenized      RUNNING slicing (reference) + reference: slice
        tokenizing            job failed     FAILED failed: out of disk
        tokenizing            job cancelled  FAILED failed: a job of the run was cancelled
        tokenizing            pause          PAUSED tokenizing + Pause jobs
        tokenizing            resume         RUNNING tokenizing
        tokenizing            cancel         CANCELLING tokenizing + Cancel jobs
        slicing               sliced         RUNNING training (round 1: 2 layers inherited) + round 1: 2 layers inherited: train
        slicing               job failed     FAILED failed: out of disk
        slicing               job cancelled  FAILED failed: a job of the run was cancelled
        slicing               pause          PAUSED slicing (round 1: 2 layers inherited) + Pause jobs
        slicing               resume         RUNNING slicing (round 1: 2 layers inherited)
        slicing               cancel         CANCELLING slicing (round 1: 2 layers inherited) + Cancel jobs
        training              trained        RUNNING evaluating (round 1: 2 layers inherited) + round 1: 2 layers inherited: evaluate
        training              job failed     FAILED failed: out of disk
        training              job cancelled  FAILED failed: a job of the run was cancelled
        training              pause          PAUSED training (round 1: 2 layers inherited) + Pause jobs
        training              resume         RUNNING training (round 1: 2 layers inherited)
        training              cancel         CANCELLING training (round 1: 2 layers inherited) + Cancel jobs
        evaluating            evaluated      RUNNING slicing (round 2: 4 layers inherited) + round 2: 4 layers inherited: slice
        evaluating            job failed     FAILED failed: out of disk
        evaluating            job cancelled  FAILED failed: a job of the run was cancelled
        evaluating            pause          PAUSED evaluating (round 1: 2 layers inherited) + Pause jobs
        evaluating            resume         RUNNING evaluating (round 1: 2 layers inherited)
        evaluating            cancel         CANCELLING evaluating (round 1: 2 layers inherited) + Cancel jobs
        training, paused      trained        PAUSED evaluating (round 1: 2 layers inherited) + round 1: 2 layers inherited: evaluate + Pause jobs
        training, paused      job failed     FAILED failed: out of disk
        training, paused      job cancelled  FAILED failed: a job of the run was cancelled
        training, paused      pause          PAUSED training (round 1: 2 layers inherited) + Pause jobs
        training, paused      resume         RUNNING training (round 1: 2 layers inherited) + Resume jobs
        training, paused      cancel         CANCELLING training (round 1: 2 layers inherited) + Cancel jobs
        training, cancelling  trained        CANCELLED cancelled
        training, cancelling  job failed     FAILED failed: out of disk
        training, cancelling  job cancelled  CANCELLED cancelled
        training, cancelling  cancel         CANCELLING training (round 1: 2 layers inherited) + Cancel jobs
        failed                retry          RUNNING training (reference) + Retry jobs
        cancelled             job cancelled  CANCELLED cancelled
        cancelled             cancel         CANCELLED cancelled
    "#]].assert_eq(&table);
}

/// A new state or event does not compile here, and then fails until the table contains it.
#[test]
fn the_table_leaves_nothing_out() {
    let states: BTreeSet<usize> = states()
        .iter()
        .map(|(_, run)| match run.state {
            RunState::Created => 0,
            RunState::Tokenizing => 1,
            RunState::Slicing(_) => 2,
            RunState::Training(_) => 3,
            RunState::Evaluating(_) => 4,
            RunState::Finished { .. } => 5,
            RunState::Failed { .. } => 6,
            RunState::Cancelled => 7,
        })
        .collect();
    assert_eq!(states, (0..8).collect());
    let events: BTreeSet<usize> = events()
        .iter()
        .map(|(_, event)| match event {
            RunEvent::Created => 0,
            RunEvent::JobSucceeded { outcome: JobOutcome::Tokenized(_) } => 1,
            RunEvent::JobSucceeded { outcome: JobOutcome::Sliced(_) } => 2,
            RunEvent::JobSucceeded { outcome: JobOutcome::Trained(_) } => 3,
            RunEvent::JobSucceeded { outcome: JobOutcome::Evaluated(_) } => 4,
            RunEvent::JobSucceeded { outcome: JobOutcome::Helped(_) } => 5,
            RunEvent::JobFailed { .. } => 6,
            RunEvent::JobCancelled => 7,
            RunEvent::PauseRequested => 8,
            RunEvent::ResumeRequested => 9,
            RunEvent::CancelRequested => 10,
            RunEvent::RetryRequested { .. } => 11,
        })
        .collect();
    assert_eq!(events, (0..12).collect());
}

#[test]
fn a_match_can_be_asked_for_beyond_chance() {
    let mut spec = spec();
    spec.target.tolerance_nats = 0.004;
    let (run, _) = play(spec.clone(), &[3.0, 3.001]);
    expect!["finished (round 1: 2 layers inherited, matches the reference)"].assert_eq(&run.describe_state());
    spec.target.match_by = MatchBy::Interval;
    let (run, log) = play(spec, &[3.0, 3.001, 2.999]);
    expect!["finished (round 2: 4 layers inherited, matches the reference)"].assert_eq(&run.describe_state());
    assert!(
        log.iter().any(|line| line.contains("not matched yet (+0.0010 (95 %: -0.0029 to +0.0049) nats)")),
        "{log:#?}"
    );
}

#[test]
fn every_model_is_measured_on_the_benchmarks_of_the_recipe() {
    let mut spec = spec();
    spec.evaluation.benchmarks = vec!["piqa".to_owned(), "mmlu".to_owned()];
    spec.evaluation.benchmark_data = Some("file:///data".to_owned());
    spec.validate().unwrap();
    let run = Run { spec, ..running() };
    let JobSpec::Evaluate(evaluate) = run.evaluate(Model::Reference, vec![]).submit.unwrap().spec else { panic!() };
    assert_eq!((evaluate.tasks.len(), evaluate.baseline), (3, None));
    let mut spec = self::spec();
    spec.evaluation.benchmarks = vec!["pika".to_owned()];
    let problems = spec.validate().unwrap_err().to_string();
    assert!(problems.contains("did you mean `piqa`?") && problems.contains("evaluation.benchmark_data"), "{problems}");
}

#[test]
fn a_diverged_model_ends_the_run() {
    let (run, _) = play(spec(), &[3.0, f64::NAN]);
    expect!["failed: round 1: 2 layers inherited: the validation loss is NaN"].assert_eq(&run.describe_state());
    let (run, _) = play(spec(), &[f64::INFINITY]);
    expect!["failed: reference: the validation loss is inf"].assert_eq(&run.describe_state());
}

#[test]
fn a_start_deeper_than_the_reference_is_refused_once_its_depth_is_known() {
    let mut spec = spec();
    spec.reference.architecture = None;
    spec.reference.checkpoint = Some("file:///m".into());
    spec.target.start_layers = Some(LayerCount(6));
    check(
        spec,
        &[3.0],
        expect![[r#"
            tokenize the corpus
              tokenized: 10000 training and 1000 validation tokens, vocabulary 512
            benchmark the reference
              reference: validation loss 3.0000 ± 0.0100 nats
              failed: target.start_layers: 6 is more than the reference's 5 layers
            => failed: target.start_layers: 6 is more than the reference's 5 layers
        "#]],
    );
}

/// Any valid recipe, for a reference with 5 layers.
fn any_spec() -> impl Strategy<Value = RunSpec> {
    let target = (prop::option::of(1u32..=5), 1u32..4, 1u32..6, any::<bool>(), 0.0f64..0.2);
    let extras = (0usize..3, 0usize..3);
    (any::<bool>(), any::<bool>(), target, extras).prop_map(|(given, low_data, target, (controls, arms))| {
        let (start, grow_by, max_rounds, carry, tolerance) = target;
        let mut spec = spec();
        if given {
            spec.reference.architecture = None;
            spec.reference.checkpoint = Some("file:///m".into());
        }
        spec.target.start_layers = start.map(LayerCount);
        spec.target.grow_by = grow_by;
        spec.target.max_rounds = max_rounds;
        spec.target.tolerance_nats = tolerance;
        spec.target.growth_source = if carry { GrowthSource::Carry } else { GrowthSource::Reference };
        spec.controls = (0..controls).map(|i| ControlSpec { name: format!("c{i}"), steps_factor: 2.0 }).collect();
        if low_data {
            spec.recipe = Recipe::LowData;
            spec.target.start_layers.get_or_insert(LayerCount(2));
            spec.arms = (0..arms).map(|i| ArmSpec { name: format!("a{i}"), data_fraction: 0.5, epochs: 2 }).collect();
        }
        spec.validate().unwrap();
        spec
    })
}

proptest! {
    /// A run ends within `max_rounds`. Layers only grow, by `grow_by`, and never exceed the
    /// reference. The run stops for a reason, and all requested models exist.
    #[test]
    fn runs_end_and_layers_only_grow(spec in any_spec(), losses in prop::collection::vec(2.0f64..4.0, 1..10)) {
        let (run, log) = play(spec.clone(), &losses);
        let candidates: Vec<&ModelRecord> =
            run.models.iter().filter(|r| matches!(r.model, Model::Candidate { .. })).collect();
        let layers: Vec<u32> = candidates.iter().map(|r| r.layers.unwrap().0).collect();
        let jobs = log.iter().filter(|line| !line.starts_with("  ")).count();
        let models = 1 + candidates.len() + spec.controls.len() + spec.arms.len();
        prop_assert!(jobs <= 1 + 3 * models, "{jobs} jobs for {models} models");

        prop_assert_eq!(layers[0], spec.target.start_layers.map_or(2, |n| n.0));
        prop_assert!(candidates.len() as u32 <= spec.target.max_rounds);
        prop_assert!(layers.windows(2).all(|pair| pair[1] == (pair[0] + spec.target.grow_by).min(5)), "{layers:?}");
        prop_assert!(layers.windows(2).all(|pair| pair[0] < pair[1]), "{layers:?}");
        prop_assert!(layers.iter().all(|layers| *layers <= 5), "{layers:?}");

        let benchmark = run.record(Model::Reference).and_then(|r| r.validation.as_ref()).map(|s| s.value);
        prop_assert_eq!(benchmark.is_some(), spec.recipe == Recipe::FullData || spec.reference.checkpoint.is_none());
        let matches = |r: &ModelRecord| {
            benchmark.map(|benchmark| r.validation.as_ref().unwrap().value <= benchmark + spec.target.tolerance_nats)
        };
        let (last, before) = candidates.split_last().unwrap();
        prop_assert_eq!(&run.state, &RunState::Finished { winner: last.model, matched: matches(last) });
        prop_assert!(before.iter().all(|r| matches(r) == Some(false)), "it continued to grow after a match");
        let reason = spec.recipe == Recipe::LowData
            || matches(last) == Some(true)
            || layers.last() == Some(&5)
            || candidates.len() as u32 == spec.target.max_rounds;
        prop_assert!(reason, "it stopped at {layers:?} for no reason");

        let controls = (0..spec.controls.len() as u32).map(|index| Model::Control { index });
        let arms = (0..spec.arms.len() as u32).map(|index| Model::Arm { index });
        for model in controls.chain(arms) {
            let record = run.record(model).unwrap();
            prop_assert_eq!(record.layers, last.layers);
            prop_assert!(record.validation.is_some());
        }
    }

    /// No sequence of events panics, a final state is final, and a rejected event changes nothing.
    #[test]
    fn any_events_in_any_order(picks in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let events = events();
        let mut run = Run::new(spec());
        for pick in picks {
            let before = run.clone();
            if let Ok(transition) = run.advance(&pick.get(&events).1) {
                let is_retry = transition.request == Some(JobsRequest::Retry);
                let had_failed = matches!(before.state, RunState::Failed { .. });
                prop_assert!(had_failed || !is_retry);
                if before.state.is_final() && !is_retry {
                    prop_assert_eq!(&transition.run, &before);
                    prop_assert!(transition.submit.is_none());
                }
                run = transition.run;
            }
        }
    }

    /// The owner pauses, resumes and cancels at any time. The next job of a paused run waits too, a
    /// cancelled run starts no further job, and the run can always be serialized and restored.
    #[test]
    fn what_the_owner_wants_holds(
        spec in any_spec(),
        wishes in prop::collection::vec(prop::option::weighted(0.3, 0usize..7), 0..60),
    ) {
        let mut run = Run::new(spec).advance(&RunEvent::Created).unwrap();
        let mut job = run.submit.take();
        let mut depth = 5;
        let mut wishes = wishes.into_iter();
        for _ in 0..1000 {
            let event = match (wishes.next().flatten(), &job) {
                (Some(0..=2), _) => RunEvent::PauseRequested,
                (Some(3..=5), _) => RunEvent::ResumeRequested,
                (Some(_), _) => RunEvent::CancelRequested,
                (None, Some(job)) => RunEvent::JobSucceeded { outcome: answer(&job.spec, &mut depth, 3.0) },
                (None, None) => break,
            };
            let ends_job = matches!(event, RunEvent::JobSucceeded { .. });
            let Ok(next) = run.run.advance(&event) else {
                prop_assert!(!ends_job, "the outcome of the run's own job was rejected");
                continue;
            };
            if ends_job {
                job = None;
            }
            if next.submit.is_some() {
                prop_assert!(job.is_none(), "two jobs at once");
                prop_assert_ne!(next.run.intent, Intent::Cancel);
                prop_assert_eq!(next.request == Some(JobsRequest::Pause), next.run.intent == Intent::Pause);
                job = next.submit.clone();
            }
            prop_assert_eq!(next.run.state.is_final(), next.run.status().is_final());
            let written = serde_json::to_string(&next.run).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Run>(&written).unwrap(), &next.run);
            run = next;
        }
        let expected = if run.run.intent == Intent::Cancel { JobStatus::Cancelled } else { JobStatus::Succeeded };
        prop_assert!(run.run.status() == expected || job.is_some(), "{}", run.run.describe_state());
    }
}
