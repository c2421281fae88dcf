//! Failed jobs of a run: which ones fail the run, which ones are only noted, and how the run
//! continues.

use super::*;

/// Simulates a run to its end. Jobs for which `fails` returns true fail.
fn play_with_failures(spec: RunSpec, fails: impl Fn(&Submission) -> bool) -> (Run, Vec<String>) {
    let mut depth = 5;
    let mut notes = Vec::new();
    let mut transition = Run::new(spec).advance(&RunEvent::Created).unwrap();
    loop {
        notes.extend(transition.notes.drain(..).map(|note| note.to_string()));
        let Some(job) = transition.submit.take() else { return (transition.run, notes) };
        let event = if fails(&job) {
            RunEvent::JobFailed { message: format!("{}: broken", job.label) }
        } else {
            RunEvent::JobSucceeded { outcome: answer(&job.spec, &mut depth, 3.0) }
        };
        transition = transition.run.advance(&event).unwrap();
    }
}

fn with_extras() -> RunSpec {
    let mut spec = spec();
    spec.recipe = Recipe::LowData;
    spec.controls = vec![ControlSpec { name: "control".into(), steps_factor: 1.0 }];
    spec.arms = vec![ArmSpec { name: "arm".into(), data_fraction: 0.5, epochs: 2 }];
    spec.evaluation.benchmarks = vec!["piqa".into()];
    spec.evaluation.benchmark_data = Some("file:///b".into());
    spec
}

#[test]
fn r3_a_finished_target_is_not_lost_to_what_it_is_compared_with() {
    for step in ["slice", "train", "evaluate"] {
        for (extra, index) in [("control", 0), ("arm", 1)] {
            let failing = format!("{extra}: {step}");
            let (run, notes) = play_with_failures(with_extras(), |job| job.label == failing);
            assert_eq!(run.status(), JobStatus::Succeeded, "{failing}: {}", run.describe_state());
            let model = [Model::Control { index: 0 }, Model::Arm { index: 0 }];
            assert_eq!(run.record(model[index]).unwrap().given_up, Some(format!("{failing}: broken")));
            assert_eq!(run.record(model[1 - index]).unwrap().given_up, None);
            let note = format!("{extra}: given up, the run continues without it: {failing}: broken");
            assert!(notes.contains(&note), "{notes:?}");
        }
    }
    let (run, _) = play_with_failures(with_extras(), |job| job.label.contains("control") || job.label.contains("arm"));
    assert_eq!(run.status(), JobStatus::Succeeded);
    let (run, _) = play_with_failures(with_extras(), |job| job.label.contains("inherited: train"));
    assert_eq!(run.status(), JobStatus::Failed, "a run without a target cannot succeed");
}

#[test]
fn r3_benchmarks_that_cannot_be_measured_are_noted() {
    let has_benchmarks = |job: &Submission| {
        let JobSpec::Evaluate(spec) = &job.spec else { return false };
        spec.tasks.len() > 1
    };
    for recipe in [Recipe::FullData, Recipe::LowData] {
        let mut spec = with_extras();
        spec.recipe = recipe;
        if recipe == Recipe::FullData {
            spec.arms.clear();
        }
        let (run, notes) = play_with_failures(spec, has_benchmarks);
        assert_eq!(run.status(), JobStatus::Succeeded, "{}", run.describe_state());
        assert!(run.winner().unwrap().benchmarks_problem.as_ref().unwrap().contains("broken"));
        let measured = run.models.iter().filter(|record| record.validation.is_some()).count();
        let noted = notes.iter().filter(|note| note.contains("measured without benchmarks")).count();
        assert_eq!((measured, noted), (run.models.len(), run.models.len()), "{notes:?}");
    }
    // A given reference that a low-data run measures only for the report.
    let mut spec = with_extras();
    spec.reference.architecture = None;
    spec.reference.checkpoint = Some("file:///m".into());
    let (run, _) = play_with_failures(spec, |job| job.label == "benchmark the reference");
    assert_eq!(run.status(), JobStatus::Succeeded, "{}", run.describe_state());
}

#[test]
fn r3_what_does_not_fit_the_tokens_is_refused_once_they_are_counted() {
    let failure = |change: fn(&mut RunSpec)| {
        let mut spec = spec();
        (spec.training.steps, spec.training.epochs) = (None, Some(1));
        change(&mut spec);
        spec.validate().unwrap();
        let (run, log) = play(spec, &[3.0, 2.0]);
        let trained = log.iter().any(|line| line.ends_with(": train"));
        assert_eq!(matches!(run.state, RunState::Failed { .. }), !trained, "{log:?}");
        run.describe_state()
    };
    // 10000 tokens: 156 blocks of 64, 39 steps of 4 blocks.
    expect!["finished (round 1: 2 layers inherited, matches the reference)"]
        .assert_eq(&failure(|spec| spec.training.warmup_steps = 38));
    expect!["failed: training.warmup_steps: 39 do not fit: 1 epochs of 10000 tokens are 39 steps of 256 tokens, and lr_max would never be reached. Lower warmup_steps, or give more epochs, more text, a larger data_fraction or smaller steps"].assert_eq(&failure(|spec| spec.training.warmup_steps = 39));
    expect!["failed: training.epochs: 1 epochs of 10000 tokens do not fill one step of 10240: give more epochs, more text, a larger data_fraction, or a smaller micro_batch or gradient_accumulation"].assert_eq(&failure(|spec| spec.training.gradient_accumulation = 40));
    expect!["failed: training.block_size: one block needs 65 tokens, but there are only 60: use more text, a larger data_fraction or a smaller block_size"].assert_eq(&failure(|spec| spec.target.data_fraction = 0.006));
    expect![
        "failed: controls[0].steps_factor: leaves 20 of the target's 39 steps, fewer than training.warmup_steps (30)"
    ]
    .assert_eq(&failure(|spec| {
        spec.training.warmup_steps = 30;
        spec.controls = vec![ControlSpec { name: "half".into(), steps_factor: 0.5 }];
    }));
    expect!["failed: arms[0] with training.warmup_steps: 10 do not fit: 1 epochs of 2000 tokens are 7 steps of 256 tokens, and lr_max would never be reached. Lower warmup_steps, or give more epochs, more text, a larger data_fraction or smaller steps"].assert_eq(&failure(|spec| {
        spec.recipe = Recipe::LowData;
        spec.training.warmup_steps = 10;
        spec.arms = vec![ArmSpec { name: "small".into(), data_fraction: 0.2, epochs: 1 }];
    }));
    expect!["failed: reference.training.warmup_steps: 500 do not fit: 2 epochs of 10000 tokens are 78 steps of 256 tokens, and lr_max would never be reached. Lower warmup_steps, or give more epochs, more text, a larger data_fraction or smaller steps"].assert_eq(&failure(|spec| {
        let training = TrainingSpec { epochs: Some(2), warmup_steps: 500, ..spec.training.clone() };
        spec.reference.training = Some(training);
    }));
    // With explicit steps, the problem is known before any job runs.
    let mut spec = spec();
    spec.training.warmup_steps = 60;
    spec.controls = vec![ControlSpec { name: "half".into(), steps_factor: 0.5 }];
    expect!["controls[0].steps_factor: leaves 50 of the target's 100 steps, fewer than training.warmup_steps (60)"]
        .assert_eq(&spec.validate().unwrap_err().to_string());
}

#[test]
fn r1_a_failed_run_goes_on_from_where_it_failed() {
    let step = RunState::Training(Model::Candidate { round: 1, layers: LayerCount(2) });
    let mut run = running();
    run.state = step.clone();
    let failed = run.advance(&RunEvent::JobFailed { message: "given up".into() }).unwrap().run;
    assert_eq!(failed.status(), JobStatus::Failed);
    let retried = failed.advance(&RunEvent::RetryRequested { step }).unwrap();
    assert_eq!((&retried.run, retried.request, retried.submit), (&run, Some(JobsRequest::Retry), None));
    assert_eq!(retried.notes[0].to_string(), "retried: training (round 1: 2 layers inherited)");
}
