#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use inheritune_checkpoint::decoder_config::{Architecture, DecoderConfig, Family};
use inheritune_checkpoint::inherit_set::{InheritPart, InheritSet};
use inheritune_domain::artifact::Location;
use inheritune_domain::comparison::Difference;
use inheritune_domain::id::{ArtifactId, JobId, LayerCount};
use inheritune_domain::job::Progress;
use inheritune_domain::spec::{
    ArmSpec, ControlSpec, CorpusFacts, CorpusSpec, DecayOn, EvaluateSpec, Evaluated, EvaluationSpec, EvaluationTask,
    FilesLeftOut, FilesOfKind, GrowthSource, Helped, JobOutcome, JobSpec, LayerMapRule, MIN_MAX_SHARD_SIZE_BYTES,
    MatchBy, Precision, Recipe, ReferenceSpec, RunSpec, Sampling, Schedule, Score, ScoreDifference, SliceSource,
    SliceSpec, Sliced, TargetSpec, TokenizeSpec, Tokenized, TokenizerSource, TokenizerSpec, TrainSpec, Trained,
    TrainingSpec,
};
use inheritune_domain::violation::Violations;
use proptest::array::uniform4;
use proptest::prelude::*;
use uuid::Uuid;

use super::artifact::NewArtifact;
use super::job::{ListedJobs, SubmittedJob};
use super::run::NewRun;
use super::training::Estimate;
use crate::v1;

fn check<T: std::fmt::Debug>(read: Result<T, Violations>, expected: Expect) {
    let lines: Vec<String> = match read {
        Ok(value) => vec![format!("accepted: {value:?}")],
        Err(violations) => violations.0.iter().map(|v| format!("{}: {}", v.field, v.description)).collect(),
    };
    expected.assert_eq(&lines.join("\n"));
}

fn artifact_id() -> impl Strategy<Value = ArtifactId> {
    any::<u128>().prop_map(|bits| ArtifactId(Uuid::from_u128(bits)))
}

fn location() -> impl Strategy<Value = Location> {
    prop_oneof![
        artifact_id().prop_map(Location::Artifact),
        "[a-z]{1,8}".prop_map(|name| Location::Uri(format!("file:///models/{name}"))),
        "[a-z]{1,8}".prop_map(|name| Location::Uri(format!("s3://bucket/{name}"))),
    ]
}

prop_compose! {
    fn training()(
        (block_size, micro_batch, gradient_accumulation) in (1u32..4096, 1u32..64, 1u32..64),
        (by_steps, amount) in (any::<bool>(), 100u32..1000),
        // A control has at least a tenth of the steps.
        (lr_max, share, warmup_steps) in (1e-6f64..1.0, 0.0f64..1.0, 0u64..=10),
        (schedule, decay) in (prop_oneof![Just(Schedule::Cosine), Just(Schedule::Constant)],
                              prop_oneof![Just(DecayOn::Matrices), Just(DecayOn::All)]),
        (weight_decay, beta1, beta2, adam_eps, clip_norm) in (0.0f64..1.0, 0.0f64..0.99, 0.0f64..0.99, 1e-9f64..1e-3, 0.0f64..9.0),
        (log_every_steps, evaluate_every_steps, checkpoint_every_steps) in (1u64..100, 0u64..100, 0u64..100),
        evaluate_sequences in 1u32..100,
        precision in proptest::sample::select(vec![Precision::Fp32, Precision::Bf16Mixed, Precision::Bf16]),
        activation_checkpointing in any::<bool>(),
        (sampling, document_mask) in (prop_oneof![Just(Sampling::Permutation), Just(Sampling::RandomOffsets)], any::<bool>()),
        (keep_newest, best) in (1u32..9, any::<bool>()),
        source_weights in prop_oneof![Just(Vec::new()), proptest::collection::vec(0.1f64..9.0, 2)],
    ) -> TrainingSpec {
        TrainingSpec {
            block_size, micro_batch, gradient_accumulation, precision, activation_checkpointing, sampling, source_weights,
            document_mask,
            steps: by_steps.then_some(u64::from(amount)),
            epochs: (!by_steps).then_some(amount),
            lr_max, lr_min: lr_max * share, warmup_steps, schedule, weight_decay, decay, beta1, beta2, adam_eps,
            clip_norm, log_every_steps, evaluate_every_steps, evaluate_sequences, checkpoint_every_steps, keep_newest,
            keep_best: best && evaluate_every_steps > 0,
        }
    }
}

prop_compose! {
    fn architecture()(
        family in proptest::sample::select(Family::ALL.to_vec()),
        (n_layers, heads, head_dim, kv) in (1u32..48, 0u32..4, 1u32..32, any::<bool>()),
        d_ff in proptest::option::of(1u32..9),
        (theta, tied, scale, no_bias) in (proptest::option::of(1.0f64..1e6), any::<Option<bool>>(), any::<bool>(), any::<bool>()),
        (max_positions, pad_vocab_to_multiple_of) in (1u32..9999, proptest::option::of(1u32..1024)),
    ) -> Architecture {
        let (llama, gpt2) = (family == Family::Llama, family == Family::Gpt2);
        let rotary = llama || family == Family::GptNeox;
        let n_heads = if family == Family::MosaicGpt { 1 << heads } else { 1 + 2 * heads };
        let d_model = n_heads * 2 * head_dim;
        Architecture {
            family,
            n_layers: LayerCount(n_layers),
            d_model,
            n_heads,
            n_kv_heads: if llama { kv.then_some(1) } else { kv.then_some(n_heads) },
            d_ff: d_ff.map(|ratio| d_model * if family == Family::Mpt { 4 } else { ratio }),
            max_positions,
            rope_theta: theta.filter(|_| rotary),
            tied_head: if rotary { tied } else { tied.map(|_| true) },
            inverse_layer_scale: scale && gpt2,
            no_bias: no_bias && gpt2,
            pad_vocab_to_multiple_of,
        }
    }
}

fn inherit() -> impl Strategy<Value = InheritSet> {
    prop_oneof![
        proptest::sample::select(InheritSet::PRESETS.to_vec()).prop_map(|(_, set)| set),
        proptest::sample::subsequence(InheritPart::ALL.to_vec(), 0..=7).prop_map(|parts| parts.into_iter().collect()),
    ]
}

fn layer_map() -> impl Strategy<Value = LayerMapRule> {
    prop_oneof![
        Just(LayerMapRule::First),
        Just(LayerMapRule::FirstAndLast),
        proptest::collection::vec(0u32..4, 1..6).prop_map(LayerMapRule::List)
    ]
}

prop_compose! {
    fn target()(
        start in proptest::option::of(1u32..2),
        (grow_by, max_rounds, tolerance_nats, data_fraction) in (1u32..9, 1u32..9, 0.0f64..1.0, 0.01f64..1.0),
        carry in any::<bool>(),
        inherit in inherit(),
        map in layer_map(),
    ) -> TargetSpec {
        let list = matches!(map, LayerMapRule::List(_));
        let carry = carry && map == LayerMapRule::First;
        TargetSpec {
            start_layers: start.map(LayerCount).filter(|_| !list),
            grow_by,
            max_rounds: if list { 1 } else { max_rounds },
            tolerance_nats,
            match_by: if carry { MatchBy::Interval } else { MatchBy::Mean },
            growth_source: if carry { GrowthSource::Carry } else { GrowthSource::Reference },
            inherit,
            layer_map: map,
            data_fraction,
        }
    }
}

fn reference() -> impl Strategy<Value = ReferenceSpec> {
    prop_oneof![
        location().prop_map(|l| ReferenceSpec { checkpoint: Some(l.to_string()), architecture: None, training: None }),
        (architecture(), proptest::option::of(training())).prop_map(|(mut architecture, training)| {
            // Explicit layer maps above use layers 0 to 3.
            architecture.n_layers.0 += 4;
            // Any block size above fits.
            architecture.max_positions += 4096;
            ReferenceSpec { checkpoint: None, architecture: Some(architecture), training }
        }),
    ]
}

prop_compose! {
    fn run()(
        (name, seed, priority, low) in ("[a-z][a-z ]{0,19}", any::<u64>(), -100i32..100, any::<bool>()),
        reference in reference(),
        target in target(),
        training in training(),
        (token_set, fraction, tokenizer) in (proptest::option::weighted(0.2, artifact_id()), 0.01f64..0.5, prop_oneof![
            (257u32..65_536).prop_map(|vocab_size| TokenizerSpec::Train { vocab_size }),
            location().prop_map(|l| TokenizerSpec::Uri(l.to_string())),
        ]),
        (max_sequences, batch_size) in (proptest::option::of(1u64..99), 1u32..99),
        (controls, arms) in (proptest::collection::vec(0.1f64..10.0, 0..3), proptest::collection::vec((0.1f64..1.0, 1u32..9), 0..3)),
    ) -> RunSpec {
        let own = reference.checkpoint.is_some() && seed % 2 == 0;
        let sources = match token_set {
            Some(id) if reference.checkpoint.is_some() => vec![Location::Artifact(id).to_string()],
            _ => vec!["file:///corpus/a.txt".into(), "s3://corpus/b.jsonl.gz".into()],
        };
        let mut target = target;
        // Low-data runs of a given checkpoint do not learn its depth.
        if low && reference.checkpoint.is_some() && !matches!(target.layer_map, LayerMapRule::List(_)) {
            target.start_layers = Some(target.start_layers.unwrap_or(LayerCount(3)));
        }
        RunSpec {
            name, seed, priority,
            recipe: if low { Recipe::LowData } else { Recipe::FullData },
            corpus: CorpusSpec {
                sources,
                validation_fraction: fraction,
                text_column: own.then(|| "content".to_owned()),
                max_bad_rows: u64::from(low),
                tokenizer: if own { TokenizerSpec::Reference } else { tokenizer },
            },
            reference, target, training,
            evaluation: EvaluationSpec {
                max_sequences,
                batch_size,
                benchmarks: max_sequences.map(|_| "poster".to_owned()).into_iter().collect(),
                benchmark_data: max_sequences.map(|_| "file:///data".to_owned()),
                benchmark_limit: max_sequences.map(|_| batch_size),
            },
            controls: controls.into_iter().enumerate()
                .map(|(i, steps_factor)| ControlSpec { name: format!("control {i}"), steps_factor }).collect(),
            arms: arms.into_iter().enumerate().filter(|_| low)
                .map(|(i, (data_fraction, epochs))| ArmSpec { name: format!("arm {i}"), data_fraction, epochs }).collect(),
        }
    }
}

fn slice() -> impl Strategy<Value = SliceSpec> {
    let fresh = (architecture(), 1u32..9999)
        .prop_map(|(architecture, vocab_size)| SliceSource::Architecture { architecture, vocab_size });
    let cut = (location(), 1u32..9, layer_map(), inherit(), proptest::option::of(artifact_id())).prop_map(
        |(checkpoint, layers, layer_map, inherit, previous)| {
            let layers = match &layer_map {
                LayerMapRule::List(list) => list.len() as u32,
                LayerMapRule::First | LayerMapRule::FirstAndLast => layers,
            };
            SliceSource::Checkpoint { checkpoint, layers: LayerCount(layers), layer_map, inherit, previous }
        },
    );
    (prop_oneof![fresh, cut], proptest::option::of(artifact_id()), any::<u64>(), MIN_MAX_SHARD_SIZE_BYTES..).prop_map(
        |(source, tokenizer, seed, max_shard_size_bytes)| SliceSpec { source, tokenizer, seed, max_shard_size_bytes },
    )
}

fn job() -> impl Strategy<Value = JobSpec> {
    let tokenizer = prop_oneof![
        (257u32..65_536).prop_map(|vocab_size| TokenizerSource::Train { vocab_size }),
        location().prop_map(TokenizerSource::From),
    ];
    let task = prop_oneof![
        (artifact_id(), 1u32..999, proptest::option::of(1u64..99)).prop_map(|(tokens, block_size, max_sequences)| {
            EvaluationTask::ValidationLoss { tokens, block_size, max_sequences }
        }),
        location().prop_map(|source| EvaluationTask::RollingPerplexity { source }),
        (location(), proptest::option::of(1u32..99))
            .prop_map(|(data, limit)| { EvaluationTask::Benchmark { name: "piqa".to_owned(), data, limit } }),
    ];
    prop_oneof![
        (proptest::collection::vec(location(), 1..4), tokenizer, 0.01f64..0.5).prop_map(
            |(sources, tokenizer, validation_fraction)| {
                JobSpec::Tokenize(TokenizeSpec {
                    text_column: (sources.len() > 1).then(|| "a.b".to_owned()),
                    max_bad_rows: sources.len() as u64,
                    sources,
                    tokenizer,
                    validation_fraction,
                })
            }
        ),
        slice().prop_map(JobSpec::Slice),
        (location(), artifact_id(), training(), 0.01f64..1.0, any::<u64>(), any::<bool>()).prop_map(
            |(checkpoint, tokens, training, data_fraction, seed, expect_inherited)| {
                JobSpec::Train(TrainSpec { checkpoint, tokens, training, data_fraction, seed, expect_inherited })
            }
        ),
        (
            (location(), task, proptest::array::uniform2(1u32..99)),
            (any::<Option<bool>>(), any::<bool>(), proptest::option::of(artifact_id()), any::<Option<u128>>()),
        )
            .prop_map(
                |((checkpoint, task, [batch_size, max_batch_tokens]), (add_bos_token, one_by_one, baseline, helps))| {
                    JobSpec::Evaluate(EvaluateSpec {
                        checkpoint,
                        tasks: vec![task],
                        batch_size,
                        max_batch_tokens,
                        add_bos_token,
                        one_by_one,
                        baseline,
                        helps: helps.map(|bits| JobId(Uuid::from_u128(bits))),
                    })
                }
            ),
    ]
}

fn config() -> impl Strategy<Value = DecoderConfig> {
    (architecture(), 1u32..9999).prop_map(|(architecture, vocab_size)| architecture.config(vocab_size))
}

fn facts(n: u64) -> CorpusFacts {
    let names = vec!["a.json.gz".to_owned()];
    CorpusFacts {
        files: vec![FilesOfKind { kind: "JSON lines in gzip".to_owned(), files: n, names: names.clone() }],
        left_out: vec![FilesLeftOut { reason: "hidden".to_owned(), files: n, names }],
        rows_without_text: n,
        bad_rows: n / 2,
        first_bad_row: n.is_multiple_of(3).then(|| "a: line 1: is not an object".to_owned()),
        forced_cuts: n / 3,
    }
}

fn outcome() -> impl Strategy<Value = JobOutcome> {
    prop_oneof![
        (artifact_id(), any::<[u64; 4]>(), any::<u32>()).prop_map(|(tokens, n, vocab_size)| {
            let [train_tokens, validation_tokens, documents, text_bytes] = n;
            JobOutcome::Tokenized(Tokenized {
                tokens,
                train_tokens,
                validation_tokens,
                vocab_size,
                documents,
                text_bytes,
                corpus: (documents % 2 == 0).then(|| facts(train_tokens)),
            })
        }),
        (artifact_id(), config(), any::<[u32; 3]>(), any::<[u64; 2]>()).prop_map(|(checkpoint, config, n, m)| {
            let [layers, copied_tensors, fresh_tensors] = n;
            let [parameters, copied_bytes] = m;
            let reference_layers = LayerCount(layers);
            JobOutcome::Sliced(Sliced {
                checkpoint,
                config,
                reference_layers,
                parameters,
                copied_tensors,
                fresh_tensors,
                copied_bytes,
            })
        }),
        (artifact_id(), any::<[u64; 2]>(), uniform4(0.0f64..99.0)).prop_map(|(checkpoint, n, x)| {
            let [steps, tokens_seen] = n;
            let [epochs, first_loss_nats, last_loss_nats, wall_s] = x;
            JobOutcome::Trained(Trained {
                checkpoint,
                steps,
                tokens_seen,
                epochs,
                first_loss_nats,
                last_loss_nats,
                wall_s,
            })
        }),
        (artifact_id(), config(), any::<[u64; 2]>(), 0.0f64..99.0, uniform4(proptest::option::of(0.0f64..1.0)))
            .prop_map(
                |(scores_artifact, config, [n, parameters], value, [stderr, chance, majority, chance_p_value])| {
                    let score =
                        Score { chance, majority, chance_p_value, ..Score::plain("piqa", "acc", (value, stderr), n) };
                    let difference = Difference { value, stderr, n };
                    let difference = ScoreDifference { task: "piqa".into(), metric: "acc".into(), difference };
                    let (scores, differences) = (vec![score], vec![difference]);
                    JobOutcome::Evaluated(Evaluated { scores_artifact, scores, config, parameters, differences })
                }
            ),
        any::<u32>().prop_map(|units| JobOutcome::Helped(Helped { units })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_run_survives_the_wire(spec in run()) {
        prop_assert_eq!(spec.validate(), Ok(()));
        let bytes = prost::Message::encode_to_vec(&v1::RunSpec::from(&spec));
        let message = <v1::RunSpec as prost::Message>::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(RunSpec::try_from(message), Ok(spec));
    }

    #[test]
    fn a_job_survives_the_wire(spec in job()) {
        prop_assert_eq!(spec.validate(), Ok(()));
        prop_assert_eq!(JobSpec::try_from(v1::JobSpec::from(&spec)), Ok(spec));
    }

    #[test]
    fn an_outcome_survives_the_wire(outcome in outcome()) {
        prop_assert_eq!(JobOutcome::try_from(v1::JobOutcome::from(&outcome)), Ok(outcome));
    }

    #[test]
    fn progress_survives_the_wire(done in 0u64..100, total in 0u64..100, eta in proptest::option::of(0.0f64..9.0)) {
        let progress = Progress {
            done, total, unit: "tokens".into(), per_second: 1.5, estimated_remaining_seconds: eta, message: "m".into(),
        };
        let message = v1::Progress::from(&progress);
        prop_assert_eq!(message.progress_percentage.is_some(), total > 0);
        prop_assert_eq!(Progress::from(message), progress);
    }

    #[test]
    fn a_time_survives_the_wire(nanos in -4_000_000_000_000_000_000i128..4_000_000_000_000_000_000) {
        let at = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
        prop_assert_eq!(super::time::from_timestamp(super::time::timestamp(at)), Some(at));
    }
}

/// A recipe without any field that has a default.
fn smallest() -> v1::RunSpec {
    v1::RunSpec {
        name: "smallest".into(),
        recipe: v1::Recipe::FullData.into(),
        corpus: Some(v1::CorpusSpec { sources: vec!["file:///corpus.txt".into()], ..Default::default() }),
        reference: Some(v1::ReferenceSpec { checkpoint: Some("file:///model".into()), ..Default::default() }),
        target: Some(v1::TargetSpec::default()),
        training: Some(v1::TrainingSpec {
            block_size: 8,
            micro_batch: 1,
            steps: Some(1),
            lr_max: 1e-3,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn every_bad_field_of_a_run_is_named_at_once() {
    let mut spec = smallest();
    spec.name = String::new();
    spec.priority = 500;
    spec.corpus = Some(v1::CorpusSpec {
        sources: vec!["ftp://host/a".into(), "file:///b".into(), "nonsense".into()],
        validation_fraction: Some(0.0),
        tokenizer: Some(v1::TokenizerSpec {
            tokenizer: Some(v1::tokenizer_spec::Tokenizer::Train(v1::TrainTokenizer { vocab_size: 3 })),
        }),
        ..Default::default()
    });
    spec.reference = Some(v1::ReferenceSpec {
        checkpoint: None,
        architecture: Some(v1::Architecture {
            d_model: 10,
            n_heads: 4,
            n_layers: 2,
            max_positions: 8,
            ..Default::default()
        }),
        training: None,
    });
    spec.target = Some(v1::TargetSpec {
        growth_source: 9,
        layer_map: Some(v1::LayerMap { rule: 0, list: vec![0, 7] }),
        max_rounds: Some(2),
        tolerance_nats: f64::NAN,
        ..Default::default()
    });
    spec.training = Some(v1::TrainingSpec { schedule: 7, lr_max: -1.0, ..Default::default() });
    let request = v1::CreateRunRequest { spec: Some(spec), request_id: "not-a-uuid".into() };
    check(
        NewRun::try_from(request),
        expect![[r#"
            spec.reference.architecture.family: must be given: one of gpt2, llama, gpt_neox, opt, mpt and mosaic_gpt
            spec.target.growth_source: 9 is not a value of this enum
            spec.training.schedule: 7 is not a value of this enum
            request_id: `not-a-uuid` is not a UUID: invalid character: found `n` at 0
            spec.name: must be 1 to 128 bytes without control characters, and not blank
            spec.priority: must be -100 to 100
            spec.corpus.sources[0]: scheme `ftp` is unknown; use file://, s3:// or artifact://
            spec.corpus.sources[2]: `nonsense` is not a URI (relative URL without a base); use file:///path, s3://bucket/key or artifact://ID
            spec.corpus.validation_fraction: must be above 0 and at most 0.5
            spec.corpus.tokenizer.train.vocab_size: must be 257 to 65536 entries
            spec.reference.architecture.d_model: must be a multiple of n_heads (4)
            spec.target.tolerance_nats: must be at least 0 and at most 1000
            spec.target.max_rounds: must be 1 with an explicit layer_map list
            spec.target.layer_map.list[1]: layer 7 does not exist: the reference has layers 0 to 1
            spec.training.block_size: must be 1 to 1048576 tokens
            spec.training.micro_batch: must be 1 to 65536 sequences
            spec.training.steps: give steps or epochs
            spec.training.lr_max: must be above 0 and at most 10
            spec.training.lr_min: must be at least 0 and at most lr_max"#]],
    );
}

#[test]
fn missing_parts_are_named_once() {
    check(NewRun::try_from(v1::CreateRunRequest::default()), expect!["spec: must be given"]);
    let spec = v1::RunSpec { name: "x".into(), ..Default::default() };
    let request = v1::CreateRunRequest { spec: Some(spec), request_id: String::new() };
    check(
        NewRun::try_from(request),
        expect![[r#"
        spec.corpus: must be given
        spec.reference: must be given
        spec.target: must be given
        spec.training: must be given
        spec.recipe: must be given: full-data or low-data"#]],
    );
}

#[test]
fn every_bad_field_of_a_job_is_named_at_once() {
    use v1::job_spec::Spec;
    let submit = |spec| {
        let spec = Some(v1::JobSpec { spec: Some(spec) });
        SubmittedJob::try_from(v1::SubmitJobRequest { spec, ..Default::default() })
    };
    check(
        submit(Spec::Tokenize(v1::TokenizeSpec::default())),
        expect![[r#"
            spec.tokenize.tokenizer: give train or from
            spec.tokenize.sources: must be 1 to 1024 sources"#]],
    );
    let train = v1::tokenize_spec::Tokenizer::Train(v1::TrainTokenizer { vocab_size: 1 });
    let tokenize = v1::TokenizeSpec {
        sources: vec!["x".into()],
        tokenizer: Some(train),
        validation_fraction: Some(0.9),
        ..Default::default()
    };
    check(
        submit(Spec::Tokenize(tokenize)),
        expect![[r#"
            spec.tokenize.sources[0]: `x` is not a URI (relative URL without a base); use file:///path, s3://bucket/key or artifact://ID
            spec.tokenize.validation_fraction: must be above 0 and at most 0.5
            spec.tokenize.train.vocab_size: must be 257 to 65536 entries"#]],
    );
    check(
        submit(Spec::Slice(v1::SliceSpec::default())),
        expect![[r#"
            spec.slice.source: give fresh or reference
            spec.slice.reference.layers: must be 1 to 1024 layers"#]],
    );
    let fresh = v1::slice_spec::Source::Fresh(v1::FreshSource::default());
    check(
        submit(Spec::Slice(v1::SliceSpec { source: Some(fresh), ..Default::default() })),
        expect![[r#"
            spec.slice.fresh.architecture: must be given
            spec.slice.fresh.vocab_size: must be 1 to 1048576"#]],
    );
    let cut = v1::slice_spec::Source::Reference(v1::CheckpointSource {
        previous_artifact_id: "7".into(),
        layer_map: Some(v1::LayerMap { rule: v1::LayerMapRule::First.into(), list: vec![1] }),
        ..Default::default()
    });
    check(
        submit(Spec::Slice(v1::SliceSpec { source: Some(cut), ..Default::default() })),
        expect![[r#"
            spec.slice.reference.checkpoint: must be given: artifact://ID, file:///path or s3://bucket/key
            spec.slice.reference.layer_map.list: is only allowed with the list rule
            spec.slice.reference.previous_artifact_id: `7` is not a UUID: invalid length: found 1
            spec.slice.reference.layers: must be 1 to 1024 layers"#]],
    );
    check(
        submit(Spec::Train(v1::TrainSpec { data_fraction: Some(2.0), ..Default::default() })),
        expect![[r#"
        spec.train.checkpoint: must be given: artifact://ID, file:///path or s3://bucket/key
        spec.train.tokens_artifact_id: must be given: a UUID
        spec.train.training: must be given
        spec.train.data_fraction: must be above 0 and at most 1"#]],
    );
    let tasks = vec![
        v1::EvaluationTask { task: None },
        v1::EvaluationTask { task: Some(v1::evaluation_task::Task::ValidationLoss(Default::default())) },
    ];
    let evaluate = v1::EvaluateSpec { tasks, batch_size: Some(0), ..Default::default() };
    check(
        submit(Spec::Evaluate(evaluate)),
        expect![[r#"
            spec.evaluate.checkpoint: must be given: artifact://ID, file:///path or s3://bucket/key
            spec.evaluate.tasks[0]: give validation_loss, rolling_perplexity or benchmark
            spec.evaluate.tasks[1].validation_loss.tokens_artifact_id: must be given: a UUID
            spec.evaluate.batch_size: must be 1 to 65536 sequences
            spec.evaluate.tasks[1].validation_loss.block_size: must be 1 to 1048576 tokens"#]],
    );
    let request = v1::SubmitJobRequest {
        label: "a\nb".into(),
        priority: 101,
        retry: Some(v1::RetryPolicy { max_attempts: Some(0), backoff_ms: Some(u64::MAX), backoff_max_ms: None }),
        request_id: "1".into(),
        spec: None,
    };
    check(
        SubmittedJob::try_from(request),
        expect![[r#"
            spec: must be given
            retry.max_attempts: must be 1 to 100 attempts
            retry.backoff_ms: must be 0 to 86400000 ms (a day)
            request_id: `1` is not a UUID: invalid length: found 1
            label: must be at most 256 bytes without control characters
            priority: must be -100 to 100"#]],
    );
}

#[test]
fn parts_are_given_instead_of_a_preset() {
    let cut = |inherit: v1::InheritSet, parts: &[i32]| {
        let source = Some(v1::slice_spec::Source::Reference(v1::CheckpointSource {
            checkpoint: "file:///m".into(),
            layers: 1,
            inherit: inherit.into(),
            inherit_parts: parts.to_vec(),
            ..Default::default()
        }));
        let spec = Some(v1::SliceSpec { source, max_shard_size_bytes: Some(5), ..Default::default() });
        super::slicing::planned_slice(&v1::PlanSliceRequest { spec })
    };
    let attention = i32::from(v1::InheritPart::Attention);
    check(
        cut(v1::InheritSet::Blocks, &[attention]),
        expect![[r#"
            spec.reference.inherit_parts: is only allowed with the parts set: give inherit or inherit_parts, not both
            spec.max_shard_size_bytes: must be at least 1048576 bytes"#]],
    );
    check(
        cut(v1::InheritSet::Parts, &[]),
        expect![[r#"
            spec.reference.inherit_parts: must name at least one part
            spec.max_shard_size_bytes: must be at least 1048576 bytes"#]],
    );
    check(
        cut(v1::InheritSet::Unspecified, &[attention, 0, 99]),
        expect![[r#"
            spec.reference.inherit_parts[1]: must be one of token_embedding, position_embedding, attention, mlp, norms, final_norm, head
            spec.reference.inherit_parts[2]: 99 is not a value of this enum
            spec.max_shard_size_bytes: must be at least 1048576 bytes"#]],
    );
    let spec = |inherit: v1::InheritSet, inherit_parts| {
        let target = Some(v1::TargetSpec { inherit: inherit.into(), inherit_parts, ..smallest().target.unwrap() });
        RunSpec::try_from(v1::RunSpec { target, ..smallest() }).map(|spec| spec.target.inherit)
    };
    let [norms, mlp] = [v1::InheritPart::Norms, v1::InheritPart::Mlp].map(i32::from);
    assert_eq!(spec(v1::InheritSet::Unspecified, vec![norms, mlp, attention]), Ok(InheritSet::BLOCKS));
    assert_eq!(spec(v1::InheritSet::Parts, vec![norms]), Ok(InheritSet::of(&[InheritPart::Norms])));
    check(
        spec(v1::InheritSet::All, vec![norms]),
        expect!["target.inherit_parts: is only allowed with the parts set: give inherit or inherit_parts, not both"],
    );
}

#[test]
fn other_requests_name_every_bad_field_at_once() {
    let register = v1::RegisterArtifactRequest {
        kind: 0,
        uri: "artifact://0190a0a0-0000-7000-8000-000000000000".into(),
        metadata_json: "[]".into(),
        request_id: "x".into(),
    };
    check(
        NewArtifact::try_from(&register),
        expect![[r#"
        kind: must be given
        uri: is already registered; use file:///path or s3://bucket/key
        metadata_json: must be a JSON object
        request_id: `x` is not a UUID: invalid character: found `x` at 0"#]],
    );
    check(
        NewArtifact::try_from(&v1::RegisterArtifactRequest { kind: 99, ..Default::default() }),
        expect![[r#"
        kind: 99 is not a value of this enum
        uri: must be given: artifact://ID, file:///path or s3://bucket/key"#]],
    );
    check(
        Estimate::try_from(v1::EstimateRequest { data_fraction: Some(0.0), ..Default::default() }),
        expect![[r#"
        model: give checkpoint or fresh
        tokens: give tokens_artifact_id or train_tokens
        data_fraction: must be above 0 and at most 1
        training: must be given"#]],
    );
    check(super::slicing::planned_slice(&v1::PlanSliceRequest::default()), expect!["spec: must be given"]);
    check(super::id::<ArtifactId>("id", ""), expect!["id: must be given: a UUID"]);
    check(super::id::<ArtifactId>("id", "zz"), expect!["id: `zz` is not a UUID: invalid character: found `z` at 0"]);
    check(
        ListedJobs::try_from(&v1::ListJobsRequest {
            run_id: "zz".into(),
            kind: 17,
            status: -1,
            page_size: -1,
            page_token: "a\nb".into(),
            ..Default::default()
        }),
        expect![[r#"
            run_id: `zz` is not a UUID: invalid character: found `z` at 0
            kind: 17 is not a value of this enum
            status: -1 is not a value of this enum
            page_size: -1 is negative; use 0 for 50, at most 1000
            page_token: must be at most 64 bytes without control characters"#]],
    );
}

#[test]
fn page_sizes_are_brought_into_range() {
    let size =
        |page_size| ListedJobs::try_from(&v1::ListJobsRequest { page_size, ..Default::default() }).unwrap().page.size;
    let sizes: Vec<u32> = [0, 1, 50, 1000, 1001, i32::MAX].map(size).to_vec();
    assert_eq!(sizes, [50, 1, 50, 1000, 1000, 1000]);
}
