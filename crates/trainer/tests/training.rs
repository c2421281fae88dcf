//! Train jobs on a real store: what they publish, how they resume after a stop, and what they
//! reject.

#![allow(clippy::unwrap_used)]

mod support;

use inheritune_domain::artifact::{ArtifactKind, Location};
use inheritune_domain::job::{Directive, JobStatus};
use inheritune_domain::spec::{Precision, Sampling};
use inheritune_lm::tokens::{HeldOut, NewTokenSet, TokenSetWriter};
use inheritune_lm::{Decoder, Device};
use inheritune_store::artifacts::ArtifactFilter;
use inheritune_store::jobs::Page;
use inheritune_trainer::process_group::Ranks;
use support::{Bench, VOCAB_SIZE, train_spec, trained, write_model, write_tokens};

/// Enough steps to stop a training in the middle.
const LONG: u64 = 300;

async fn bench() -> (Bench, Location, inheritune_domain::id::ArtifactId) {
    let bench = Bench::new().await;
    write_model(&bench.path("model"), 0.1, |_, tensor| tensor);
    write_tokens(&bench.path("tokens"), VOCAB_SIZE, 4000);
    let tokens = bench.register_tokens("tokens").await;
    let model = bench.uri("model");
    (bench, model, tokens)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_learns_and_leaves_a_checkpoint_and_its_curves() {
    let (bench, model, tokens) = bench().await;
    let spec = train_spec(model, tokens, 60, |spec| {
        spec.training.lr_max = 1e-2;
        spec.training.log_every_steps = 20;
        spec.training.evaluate_every_steps = 25;
        spec.training.evaluate_sequences = 8;
        spec.training.checkpoint_every_steps = 10;
    });
    let record = bench.work(spec).await;
    let (job, progress) = (record.id, record.progress.clone());
    let trained = trained(record);
    assert_eq!((trained.steps, trained.tokens_seen), (60, 60 * 4 * 16));
    // 3600 training tokens make 224 blocks.
    assert!((trained.epochs - 240.0 / 224.0).abs() < 1e-12, "{}", trained.epochs);
    assert!(trained.last_loss_nats < trained.first_loss_nats - 0.5, "{trained:?}");
    assert_eq!((progress.done, progress.total, progress.unit.as_str()), (3840, 3840, "tokens"));

    let steps = async |name: &str| -> Vec<u64> {
        bench.store.metrics(job, &[name], None).await.unwrap().iter().map(|point| point.step).collect()
    };
    assert_eq!(steps("train_loss").await, [20, 40, 60]);
    assert_eq!(steps("gradient_norm").await, [20, 40, 60]);
    assert_eq!(steps("learning_rate").await, [20, 40, 60]);
    assert_eq!(steps("tokens_per_second").await, [20, 40, 60]);
    assert_eq!(steps("model_flops_utilization").await, [20, 40, 60]);
    assert_eq!(steps("memory_bytes").await, [20, 40, 60]);
    let epochs = bench.store.metrics(job, &["data_epoch"], None).await.unwrap();
    assert!((epochs[2].value - trained.epochs).abs() < 1e-12);
    assert_eq!(steps("validation_loss").await, [0, 25, 50, 60]);

    // The checkpoint loads like any other and is fp32; the training states are deleted.
    let dir = bench.path("fetched");
    std::fs::create_dir(&dir).unwrap();
    bench.store.open(&Location::Artifact(trained.checkpoint)).await.unwrap().fetch(&dir).await.unwrap();
    assert_eq!(Decoder::load(&dir, Device::Cpu).unwrap().config().n_layers.0, 2);
    assert_eq!(bench.json(trained.checkpoint, "config.json").await["torch_dtype"], "float32");
    let card = String::from_utf8(bench.read(trained.checkpoint, "README.md").await).unwrap();
    assert!(card.contains("| steps | 60 |"), "{card}");
    assert!(bench.store.training_states(job).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_training_gives_the_weights_of_an_uninterrupted_one_bit_for_bit() {
    let (bench, model, tokens) = bench().await;
    let spec = train_spec(model, tokens, LONG, |spec| {
        spec.training.gradient_accumulation = 2;
        spec.training.checkpoint_every_steps = 7;
    });
    let calm = trained(bench.work(spec.clone()).await);
    let expected = bench.read(calm.checkpoint, "model.safetensors").await;

    // Stopped twice by a shutdown and once by a pause; another worker resumes it after each
    // shutdown.
    let job = bench.submit(spec).await;
    for step in [30, 90] {
        let worker = bench.worker(1);
        bench.until_step(job, step).await;
        worker.stop().await;
        let record = bench.store.job(job).await.unwrap();
        assert_eq!((record.status, record.error), (JobStatus::Queued, None));
        assert!(bench.store.training_states(job).await.unwrap()[0].step >= Some(step));
    }
    let worker = bench.worker(1);
    bench.until_step(job, 150).await;
    bench.store.request_job(job, Directive::Pause).await.unwrap();
    bench.until(job, |record| record.status == JobStatus::Paused).await;
    // With the newest state damaged, the one before is used and the steps in between are repeated.
    let states = bench.store.training_states(job).await.unwrap();
    assert_eq!(states.len(), 2);
    let damaged = bench.path("objects").join(&states[0].location).join("optimizer.safetensors");
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    bench.store.request_job(job, Directive::Run).await.unwrap();
    let record = bench.ended(job).await;
    worker.stop().await;
    assert_eq!(record.attempts, 4);
    let resumed = trained(record);
    assert!(bench.read(resumed.checkpoint, "model.safetensors").await == expected, "the weights differ");
    assert_eq!(
        (resumed.first_loss_nats, resumed.last_loss_nats, resumed.tokens_seen),
        (calm.first_loss_nats, calm.last_loss_nats, calm.tokens_seen)
    );
    let losses = bench.store.metrics(job, &["train_loss"], None).await.unwrap();
    assert_eq!(losses.len() as u64, LONG);
}

/// In each precision, with every other option on, a training that is stopped and resumed ends with
/// the same weights, bit for bit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_precision_and_order_resumes_bit_for_bit() {
    let (bench, model, _) = bench().await;
    let dir = bench.path("mixture");
    std::fs::create_dir(&dir).unwrap();
    let new = NewTokenSet { vocab_size: VOCAB_SIZE, end_of_text_id: Some(0), tokenizer_sha256: None };
    let mut writer = TokenSetWriter::create(&dir, new).unwrap();
    for source in 1..=2 {
        for i in 0..200 {
            writer.push_document(&[source * 10, i % 9 + source * 100, 7, source * 10 + 1], 10).unwrap();
        }
        writer.end_source(HeldOut::Share(0.1)).unwrap();
    }
    writer.finish(0.1).unwrap();
    let tokens = bench.register_tokens("mixture").await;
    for (precision, dtype) in [(Precision::Bf16Mixed, "float32"), (Precision::Bf16, "bfloat16")] {
        let spec = train_spec(model.clone(), tokens, LONG, |spec| {
            spec.training.precision = precision;
            spec.training.activation_checkpointing = precision == Precision::Bf16;
            spec.training.sampling = Sampling::RandomOffsets;
            spec.training.source_weights = vec![3.0, 1.0];
            spec.training.document_mask = true;
            spec.training.lr_max = 1e-2;
        });
        let calm = trained(bench.work(spec.clone()).await);
        assert!(calm.last_loss_nats < calm.first_loss_nats - 0.5, "{calm:?}");
        assert_eq!(bench.json(calm.checkpoint, "config.json").await["torch_dtype"], dtype);
        let job = bench.submit(spec).await;
        let worker = bench.worker(1);
        bench.until_step(job, 40).await;
        worker.stop().await;
        assert_eq!(bench.store.job(job).await.unwrap().status, JobStatus::Queued);
        let worker = bench.worker(1);
        let resumed = trained(bench.ended(job).await);
        worker.stop().await;
        let weights = async |checkpoint| bench.read(checkpoint, "model.safetensors").await;
        assert!(weights(resumed.checkpoint).await == weights(calm.checkpoint).await, "{precision:?}");
    }
    let refused = async |change: &dyn Fn(&mut inheritune_domain::spec::TrainSpec), tokens| {
        bench.permanent_error(train_spec(model.clone(), tokens, 10, change)).await
    };
    let error = refused(&|spec| spec.training.source_weights = vec![1.0; 3], tokens).await;
    assert!(error.contains("source_weights: 3 weights are given") && error.contains("2 sources"), "{error}");
    write_tokens(&bench.path("endless"), VOCAB_SIZE, 4000);
    let endless = bench.register_tokens("endless").await;
    let error = refused(&|spec| spec.training.document_mask = true, endless).await;
    assert!(error.contains("training.document_mask"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_the_best_and_the_pinned_states_are_kept() {
    let (bench, model, tokens) = bench().await;
    let spec = |steps| {
        train_spec(model.clone(), tokens, steps, |spec| {
            (spec.training.evaluate_every_steps, spec.training.evaluate_sequences) = (10, 8);
            (spec.training.checkpoint_every_steps, spec.training.keep_newest) = (5, 3);
            spec.training.keep_best = true;
            spec.training.lr_max = 1e-2;
        })
    };
    let steps = async |job| -> Vec<Option<u64>> {
        bench.store.training_states(job).await.unwrap().iter().map(|state| state.step).collect()
    };
    // While it runs, there are the newest three (every 5 steps), possibly an older one that is the
    // best, and one that was pinned early on.
    let job = bench.submit(spec(100_000)).await;
    let worker = bench.worker(1);
    bench.until_step(job, 10).await;
    // States are saved concurrently with the training: the first may not exist yet, and a listed
    // one may have been deleted.
    let pinned = loop {
        if let Some(newest) = bench.store.training_states(job).await.unwrap().first()
            && let Ok(pinned) = bench.store.pin_artifact(newest.id, true).await
        {
            break pinned;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    bench.until_step(job, pinned.step.unwrap() + 60).await;
    bench.store.request_job(job, Directive::Pause).await.unwrap();
    bench.until(job, |record| record.status == JobStatus::Paused).await;
    worker.stop().await;
    let kept = steps(job).await;
    assert!((4..=5).contains(&kept.len()) && kept.contains(&pinned.step), "{kept:?} without {:?}", pinned.step);

    let record = bench.work(spec(60)).await;
    let losses = bench.store.metrics(record.id, &["validation_loss"], None).await.unwrap();
    let best = losses.iter().min_by(|a, b| a.value.total_cmp(&b.value)).unwrap();
    assert!(best.step > 0, "{losses:?}");
    let kept = bench.store.training_states(record.id).await.unwrap();
    assert_eq!(kept.iter().map(|state| state.step).collect::<Vec<_>>(), [Some(best.step)]);
    assert_eq!(kept[0].metadata["best_validation_nats"], best.value);
    // A training state is a complete model.
    let dir = bench.path("best");
    std::fs::create_dir(&dir).unwrap();
    bench.store.open(&Location::Artifact(kept[0].id)).await.unwrap().fetch(&dir).await.unwrap();
    assert_eq!(Decoder::load(&dir, Device::Cpu).unwrap().config().n_layers.0, 2);
}

/// Two processes that sum their gradients over loopback.
fn two_ranks() -> Ranks {
    Ranks { size: 2, program: env!("CARGO_BIN_EXE_inheritune-trainer").into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ranks_follow_the_curve_of_one_and_resume_bit_for_bit() {
    let (mut bench, model, tokens) = bench().await;
    let spec = train_spec(model, tokens, 60, |spec| {
        // Three micro-batches: rank 0 gets two of them, rank 1 gets one.
        (spec.training.micro_batch, spec.training.gradient_accumulation) = (2, 3);
        (spec.training.evaluate_every_steps, spec.training.evaluate_sequences) = (20, 8);
        spec.training.lr_max = 1e-2;
    });
    let curve = async |bench: &Bench, job, name: &str| -> Vec<f64> {
        bench.store.metrics(job, &[name], None).await.unwrap().iter().map(|point| point.value).collect()
    };
    let alone = bench.work(spec.clone()).await;
    bench.ranks = two_ranks();
    let shared = bench.work(spec.clone()).await;
    for name in ["train_loss", "gradient_norm", "validation_loss"] {
        let (one, two) = (curve(&bench, alone.id, name).await, curve(&bench, shared.id, name).await);
        assert_eq!((one.len(), one.len() >= 4), (two.len(), true), "{name}");
        for (one, two) in one.iter().zip(&two) {
            assert!((one - two).abs() < 1e-3 * one.abs(), "{name}: {one} and {two}");
        }
    }
    let shared = trained(shared);
    assert!(shared.last_loss_nats < shared.first_loss_nats - 0.5, "{shared:?}");
    let weights = async |bench: &Bench, checkpoint| bench.read(checkpoint, "model.safetensors").await;
    let expected = weights(&bench, shared.checkpoint).await;

    let job = bench.submit(spec).await;
    let worker = bench.worker(1);
    bench.until_step(job, 10).await;
    worker.stop().await;
    assert_eq!(bench.store.job(job).await.unwrap().status, JobStatus::Queued);
    assert!(bench.store.training_states(job).await.unwrap()[0].step >= Some(10));
    let worker = bench.worker(1);
    let resumed = trained(bench.ended(job).await);
    worker.stop().await;
    assert!(weights(&bench, resumed.checkpoint).await == expected, "the weights differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_rank_ends_the_attempt_and_the_next_goes_on() {
    let (mut bench, model, tokens) = bench().await;
    bench.ranks = two_ranks();
    let spec = train_spec(model.clone(), tokens, LONG, |spec| {
        spec.training.gradient_accumulation = 2;
        spec.training.checkpoint_every_steps = 5;
    });
    let job = bench.submit(spec).await;
    let worker = bench.worker(1);
    bench.until_step(job, 20).await;
    let cache = bench.path("cache");
    let lost = worker_rank(&cache);
    rustix::process::kill_process(lost, rustix::process::Signal::KILL).unwrap();
    let record = bench.ended(job).await;
    worker.stop().await;
    assert_eq!(record.attempts, 2);
    trained(record);
    let losses = bench.store.metrics(job, &["train_loss"], None).await.unwrap();
    assert_eq!(losses.len() as u64, LONG);

    let error = bench.permanent_error(train_spec(model, tokens, 10, |_| {})).await;
    assert!(error.contains("gradient_accumulation 1") && error.contains("2 ranks"), "{error}");
}

/// The worker rank started by the trainer that has its cache in `cache`.
fn worker_rank(cache: &std::path::Path) -> rustix::process::Pid {
    let command_line = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_it = |pid: &i32| {
        let arguments = command_line(*pid);
        let text = String::from_utf8_lossy(&arguments);
        text.contains("\0rank\0") && text.contains(cache.to_str().unwrap())
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let found: Vec<i32> = ids.filter(is_it).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    rustix::process::Pid::from_raw(found[0]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_saves_nothing() {
    let (bench, model, tokens) = bench().await;
    let worker = bench.worker(1);
    let job = bench.submit(train_spec(model, tokens, 100_000, |_| {})).await;
    bench.until_step(job, 3).await;
    bench.store.request_job(job, Directive::Cancel).await.unwrap();
    assert_eq!(bench.ended(job).await.status, JobStatus::Cancelled);
    worker.stop().await;
    assert!(bench.store.training_states(job).await.unwrap().is_empty());
    let filter = ArtifactFilter { kind: Some(ArtifactKind::Checkpoint), job: Some(job), run: None };
    assert!(bench.store.list_artifacts(&filter, &Page { size: 1, token: None }).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accumulating_micro_batches_equals_one_large_batch() {
    let (bench, model, tokens) = bench().await;
    let losses = async |micro_batch, gradient_accumulation| -> Vec<f64> {
        let spec = train_spec(model.clone(), tokens, 10, |spec| {
            (spec.training.micro_batch, spec.training.gradient_accumulation) = (micro_batch, gradient_accumulation);
        });
        let job = bench.work(spec).await.id;
        bench.store.metrics(job, &["train_loss"], None).await.unwrap().iter().map(|point| point.value).collect()
    };
    let (whole, parts) = (losses(8, 1).await, losses(2, 4).await);
    assert_eq!(whole.len(), 10);
    for (whole, parts) in whole.iter().zip(&parts) {
        assert!((whole - parts).abs() < 1e-5, "{whole} and {parts}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_are_not_finite_stop_the_job_and_are_named() {
    let (bench, _, tokens) = bench().await;
    write_model(&bench.path("broken"), 0.1, |name, tensor| {
        if name == "transformer.h.1.mlp.c_fc.weight" { tensor * f64::INFINITY } else { tensor }
    });
    let error = bench.permanent_error(train_spec(bench.uri("broken"), tokens, 10, |_| {})).await;
    assert!(error.contains("step 0: the loss of micro-batch 0 is NaN"), "{error}");

    // The largest accepted learning rate and weight decay: each update makes the weights ten
    // million times larger.
    let wild = train_spec(bench.uri("model"), tokens, 10, |spec| {
        (spec.training.lr_max, spec.training.lr_min, spec.training.warmup_steps) = (10.0, 10.0, 0);
        (spec.training.weight_decay, spec.training.adam_eps) = (1e6, 1e-8);
    });
    let error = bench.permanent_error(wild).await;
    assert!(error.contains("step ") && !error.contains("step 0:") && error.contains("lr_max"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_trained_is_refused_by_name() {
    let (bench, model, tokens) = bench().await;
    let error =
        bench.permanent_error(train_spec(model.clone(), tokens, 10, |spec| spec.training.block_size = 33)).await;
    assert!(error.contains("block_size 33") && error.contains("32 positions"), "{error}");

    let error = bench.permanent_error(train_spec(model.clone(), tokens, 10, |spec| spec.data_fraction = 0.004)).await;
    assert!(error.contains("14 training tokens") && error.contains("needs 17"), "{error}");

    write_tokens(&bench.path("more-tokens"), VOCAB_SIZE + 1, 4000);
    let more = bench.register_tokens("more-tokens").await;
    let error = bench.permanent_error(train_spec(model.clone(), more, 10, |_| {})).await;
    assert!(error.contains("301 tokens") && error.contains("300 rows"), "{error}");

    // Tokens from a different tokenizer than the checkpoint's.
    write_model(&bench.path("with-tokenizer"), 0.1, |_, tensor| tensor);
    std::fs::write(bench.path("with-tokenizer").join("tokenizer.json"), "{}").unwrap();
    let dir = bench.path("others-tokens");
    std::fs::create_dir(&dir).unwrap();
    let digest = inheritune_domain::id::Sha256Digest::of(b"{ }");
    let new = NewTokenSet { vocab_size: VOCAB_SIZE, end_of_text_id: None, tokenizer_sha256: Some(digest) };
    let mut writer = TokenSetWriter::create(&dir, new).unwrap();
    writer.push_document(&[1; 1000], 1000).unwrap();
    writer.finish(0.1).unwrap();
    let others = bench.register_tokens("others-tokens").await;
    let error = bench.permanent_error(train_spec(bench.uri("with-tokenizer"), others, 10, |_| {})).await;
    assert!(error.contains("a different tokenizer") && error.contains(&digest.to_string()), "{error}");

    let error = bench.permanent_error(train_spec(bench.uri("nowhere"), tokens, 10, |_| {})).await;
    assert!(error.contains("nowhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_random_model_that_was_to_be_inherited_is_found_out() {
    let (bench, _, tokens) = bench().await;
    // Initialised like GPT-2, so the logits are close to zero.
    write_model(&bench.path("random"), 0.03, |_, tensor| tensor);
    let inherited = |model: &str| train_spec(bench.uri(model), tokens, 5, |spec| spec.expect_inherited = true);
    let error = bench.permanent_error(inherited("random")).await;
    assert!(error.contains("random model") && error.contains("5.704"), "{error}");
    // A model with confident predictions, right or wrong, is accepted.
    write_model(&bench.path("certain"), 0.5, |_, tensor| tensor);
    trained(bench.work(inherited("certain")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_estimate_counts_steps_parameters_and_time() {
    use inheritune_api::v1;
    use inheritune_api::v1::training_service_server::TrainingService as _;
    let (bench, model, tokens) = bench().await;
    let service = inheritune_trainer::grpc::training(bench.store.clone());
    let request = |epochs| v1::EstimateRequest {
        model: Some(v1::estimate_request::Model::Checkpoint(model.to_string())),
        tokens: Some(v1::estimate_request::Tokens::TokensArtifactId(tokens.to_string())),
        training: Some(v1::TrainingSpec {
            block_size: 16,
            micro_batch: 4,
            epochs: Some(epochs),
            lr_max: 1e-3,
            ..v1::TrainingSpec::default()
        }),
        data_fraction: None,
    };
    let answer = service.estimate(tonic::Request::new(request(2))).await.unwrap().into_inner();
    assert_eq!((answer.steps, answer.tokens_per_step, answer.tokens), (112, 64, 7168));
    assert_eq!(answer.epochs, 2.0);
    assert!(answer.parameters > 5000 && answer.seconds > 0.0 && answer.memory_bytes > answer.state_bytes, "{answer:?}");
    let twice = service.estimate(tonic::Request::new(request(4))).await.unwrap().into_inner();
    assert!((twice.seconds / answer.seconds - 2.0).abs() < 1e-9, "the same peak serves every call");
    let bad = v1::EstimateRequest { data_fraction: Some(2.0), ..request(0) };
    let status = service.estimate(tonic::Request::new(bad)).await.unwrap_err();
    assert!(status.message().contains("data_fraction") && status.message().contains("training.epochs"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_a_warm_up_that_epochs_do_not_outlast_is_refused() {
    use inheritune_api::v1;
    use inheritune_api::v1::training_service_server::TrainingService as _;
    let (bench, model, tokens) = bench().await;
    // Two passes are 112 steps, as in the estimate above.
    let training = |warmup_steps| {
        train_spec(model.clone(), tokens, 1, move |spec| {
            (spec.training.steps, spec.training.epochs) = (None, Some(2));
            spec.training.warmup_steps = warmup_steps;
        })
    };
    let error = bench.permanent_error(training(112)).await;
    assert!(error.starts_with("training.warmup_steps: 112 do not fit") && error.contains("are 112 steps"), "{error}");
    let service = inheritune_trainer::grpc::training(bench.store.clone());
    let request = v1::EstimateRequest {
        model: Some(v1::estimate_request::Model::Checkpoint(model.to_string())),
        tokens: Some(v1::estimate_request::Tokens::TokensArtifactId(tokens.to_string())),
        training: Some(v1::TrainingSpec {
            block_size: 16,
            micro_batch: 4,
            epochs: Some(2),
            lr_max: 1e-3,
            warmup_steps: 112,
            ..v1::TrainingSpec::default()
        }),
        data_fraction: None,
    };
    let status = service.estimate(tonic::Request::new(request)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("training.warmup_steps"), "{status:?}");
    assert_eq!(bench.work(training(111)).await.status, JobStatus::Succeeded);
}

#[test]
fn the_sample_configuration_is_valid() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config/trainer.toml");
    let config: inheritune_trainer::TrainerConfig = inheritune_runtime::config::load(&path).unwrap();
    assert_eq!(config.worker.lease_ms, 5000);
}
