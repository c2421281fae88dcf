//! Compares the decoder, its loss, its gradients and its optimizer with Hugging Face transformers
//! and PyTorch, for the checkpoints in tests/golden and for models cut from them.
//! scripts/golden/make-golden.py makes the expected values. `--nocapture` prints the differences.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use expect_test::{Expect, expect};
use inheritune_checkpoint::decoder_config::Family;
use inheritune_domain::spec::Precision;
use inheritune_lm::optimizer::{AdamW, clip_grad_norm, gradient};
use inheritune_lm::{Decoder, Device, Kind, Tensor, device, no_grad};

mod support;
use support::{ADAMW, LR, MAX_NORM, golden_cases, golden_dir, load, max_difference, slice, tensors};

/// Logits, absolute difference, fp32.
const LOGITS: f64 = 1e-4;
/// Losses, in nats.
const LOSSES: f64 = 1e-5;
/// A tensor's gradient: the largest difference relative to the tensor's largest gradient.
const GRADIENTS: f64 = 2e-5;
/// Gradients below this share of the gradient norm are rounding errors, and must only be that small
/// here too. OPT's key biases have no other gradients: they add the same number to all scores of a
/// query, which softmax cancels.
const ROUNDING: f64 = 1e-7;
/// The global gradient norm, relative difference.
const NORM: f64 = 1e-5;
/// The loss before each of 20 steps, relative difference: rounding errors grow with every step.
const LOSS_OF_STEP: f64 = 1e-5;
/// The gradient norm before each of 20 steps, relative difference.
const NORM_OF_STEP: f64 = 1e-3;

/// The loss of each of 200 steps, in nats.
const LOSS_OF_CURVE: f64 = 1e-3;
/// The mean loss in bf16, which has 8 bits of precision: relative difference.
const BF16_LOSS: f64 = 5e-3;
/// 2-norms of differences in bf16: of one tensor's gradient relative to the tensor's own norm
/// (eager and fused attention differ by a quarter of that within PyTorch), and of all tensors
/// together relative to PyTorch's own difference from fp32.
const BF16_GRADIENT: f64 = 2e-1;
const BF16_NOISE: f64 = 3.0;

/// A model and what transformers computes for it.
struct Case {
    name: String,
    decoder: Decoder,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    fn all() -> Vec<Self> {
        // The script also uses one thread, and a second one does not help models of this size.
        device::set_threads(1);
        let case = |(name, dir): (String, std::path::PathBuf)| Self {
            name,
            decoder: load(&dir),
            expected: tensors(&dir.join("expected.safetensors")),
        };
        golden_cases().into_iter().map(case).collect()
    }

    fn inputs(&self) -> &Tensor {
        &self.expected["inputs"]
    }

    fn targets(&self) -> &Tensor {
        &self.expected["targets"]
    }

    fn backward(&self) -> f64 {
        let loss = self.decoder.loss(self.inputs(), self.targets()).unwrap();
        loss.backward();
        loss.double_value(&[])
    }

    fn within(&self, what: &str, (found, limit): (f64, f64)) {
        println!("{}: {what} {found:.1e} (limit {limit:.0e})", self.name);
        assert!(found <= limit, "{}: {what} differ by {found:e}; the limit is {limit:e}", self.name);
    }
}

fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs()
}

#[test]
fn logits_are_those_of_transformers() {
    for case in Case::all() {
        let logits = no_grad(|| case.decoder.logits(case.inputs()).unwrap());
        assert_eq!(logits.kind(), Kind::Float);
        case.within("logits", (max_difference(&logits, &case.expected["logits"]), LOGITS));
    }
}

#[test]
fn losses_are_those_of_transformers() {
    for case in Case::all() {
        let (losses, loss) = no_grad(|| {
            let losses = case.decoder.losses(case.inputs(), case.targets()).unwrap();
            (losses, case.decoder.loss(case.inputs(), case.targets()).unwrap())
        });
        case.within("losses", (max_difference(&losses, &case.expected["losses"]), LOSSES));
        case.within("mean losses", (max_difference(&loss, &case.expected["loss"]), LOSSES));
    }
}

#[test]
fn a_sliced_model_is_the_one_that_transformers_cuts() {
    for case in Case::all() {
        let layers: Vec<i64> = Vec::try_from(&case.expected["sliced.layers"]).unwrap();
        let layers: Vec<u32> = layers.into_iter().map(|layer| u32::try_from(layer).unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        slice(&golden_dir().join(&case.name), &layers, dir.path());
        let target = load(dir.path());
        assert_eq!(target.config().n_layers.0 as usize, layers.len());
        let (logits, losses) =
            no_grad(|| (target.logits(case.inputs()).unwrap(), target.losses(case.inputs(), case.targets()).unwrap()));
        case.within("logits after slicing", (max_difference(&logits, &case.expected["sliced.logits"]), LOGITS));
        case.within("losses after slicing", (max_difference(&losses, &case.expected["sliced.losses"]), LOSSES));
        let before = &case.expected["logits"];
        assert!(max_difference(&logits, before) > 0.1, "{}: cutting changed nothing", case.name);
    }
}

#[test]
fn gradients_are_those_of_transformers() {
    for case in Case::all() {
        case.backward();
        let expected =
            case.expected.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("gradient.")?, tensor)));
        let mut expected: BTreeMap<&str, &Tensor> = expected.collect();
        let mut worst = 0.0_f64;
        let rounding = ROUNDING * case.expected["gradient_norm"].double_value(&[]);
        for parameter in case.decoder.parameters() {
            let expected = expected.remove(parameter.name.as_str()).unwrap();
            let largest = expected.abs().max().double_value(&[]);
            let found = gradient(parameter).unwrap().unwrap();
            if largest < rounding {
                assert!(found.abs().max().double_value(&[]) < rounding, "{}: {}", case.name, parameter.name);
                continue;
            }
            let difference = max_difference(&found, expected) / largest;
            assert!(difference <= GRADIENTS, "{}: {} differs by {difference:e}", case.name, parameter.name);
            worst = worst.max(difference);
        }
        assert!(expected.is_empty(), "{}: no parameters for these gradients: {:?}", case.name, expected.keys());
        case.within("gradients", (worst, GRADIENTS));
        let norm = clip_grad_norm(case.decoder.parameters(), f64::MAX).unwrap();
        let expected = case.expected["gradient_norm"].double_value(&[]);
        case.within("gradient norms", (relative(norm, expected), NORM));
    }
}

/// A batch's gradients are bit-identical in each precision, with attention within documents.
#[test]
fn activations_that_are_computed_twice_give_the_same_gradients() {
    for case in Case::all() {
        for precision in [Precision::Fp32, Precision::Bf16Mixed, Precision::Bf16] {
            let gradients = |decoder: &Decoder| {
                AdamW::new(decoder.parameters(), ADAMW).unwrap().zero_grad().unwrap();
                let loss = decoder.add_gradients(case.inputs(), case.targets(), 2.0).unwrap();
                let gradient = |parameter| gradient(parameter).unwrap().unwrap().copy();
                (loss, decoder.parameters().iter().map(gradient).collect::<Vec<_>>())
            };
            let decoder = load(&golden_dir().join(&case.name)).within_documents(3).in_precision(precision).unwrap();
            let kept = gradients(&decoder);
            let (loss, gradients) = gradients(&decoder.with_activation_checkpointing());
            assert_eq!(loss, kept.0, "{} {precision:?}", case.name);
            for ((parameter, twice), once) in case.decoder.parameters().iter().zip(&gradients).zip(&kept.1) {
                assert_eq!(twice, once, "{} {precision:?}: {}", case.name, parameter.name);
            }
        }
    }
}

#[test]
fn the_mean_loss_is_that_of_all_scores_at_once() {
    // 512 rows of scores are in memory at a time: some batches end with a few rows, one with
    // exactly 512.
    for (case, rows) in Case::all().iter().zip([1025, 512, 700].into_iter().cycle()) {
        let (inputs, targets) = (case.inputs().flatten(0, 1), case.targets().flatten(0, 1));
        let time = 5;
        let batch = |tokens: &Tensor| tokens.repeat([rows]).narrow(0, 0, time * (rows / time)).view([-1, time]);
        let (inputs, targets) = (batch(&inputs), batch(&targets));
        let gradients = |loss: Tensor| {
            // Like an accumulated micro-batch, whose gradient is not 1.
            (&loss / 3.0).backward();
            let gradients: Vec<Tensor> =
                case.decoder.parameters().iter().map(|p| gradient(p).unwrap().unwrap()).collect();
            AdamW::new(case.decoder.parameters(), ADAMW).unwrap().zero_grad().unwrap();
            (loss.double_value(&[]), gradients)
        };
        let (loss, found) = gradients(case.decoder.loss(&inputs, &targets).unwrap());
        let (at_once, expected) = gradients(case.decoder.losses(&inputs, &targets).unwrap().mean(Kind::Float));
        case.within("mean losses", (relative(loss, at_once), LOSSES));
        let largest = expected.iter().map(|g| g.abs().max().double_value(&[])).fold(0.0, f64::max);
        let differences = found.iter().zip(&expected).map(|(a, b)| max_difference(a, b) / largest);
        case.within("gradients", (differences.fold(0.0, f64::max), GRADIENTS));
        let without = no_grad(|| case.decoder.loss(&inputs, &targets).unwrap().double_value(&[]));
        assert_eq!(without, loss);
    }
}

#[test]
fn twenty_steps_follow_torch_adamw() {
    for case in Case::all() {
        let (losses, norms) = (&case.expected["adamw.losses"], &case.expected["adamw.norms"]);
        let mut optimizer = AdamW::new(case.decoder.parameters(), ADAMW).unwrap();
        let (mut worst_loss, mut worst_norm) = (0.0_f64, 0.0_f64);
        let steps = losses.size()[0];
        assert_eq!(steps, 20);
        for step in 0..steps {
            optimizer.zero_grad().unwrap();
            let loss = case.backward();
            let norm = clip_grad_norm(case.decoder.parameters(), MAX_NORM).unwrap();
            optimizer.step(LR).unwrap();
            worst_loss = worst_loss.max(relative(loss, losses.double_value(&[step])));
            worst_norm = worst_norm.max(relative(norm, norms.double_value(&[step])));
        }
        assert_eq!(optimizer.steps(), 20);
        case.within("losses of 20 steps", (worst_loss, LOSS_OF_STEP));
        case.within("norms of 20 steps", (worst_norm, NORM_OF_STEP));
        // A constant loss would prove little.
        assert!(losses.double_value(&[steps - 1]) < 0.9 * losses.double_value(&[0]), "{}", case.name);
    }
}

#[test]
fn two_hundred_steps_follow_torch_adamw() {
    for case in cases_with("curve.safetensors") {
        let curve = tensors(&golden_dir().join(&case.name).join("curve.safetensors"));
        let (tokens, losses) = (curve["tokens"].to_kind(Kind::Int64), &curve["losses"]);
        let (steps, length) = (losses.size()[0], tokens.size()[2]);
        assert_eq!(steps, 200);
        let mut optimizer = AdamW::new(case.decoder.parameters(), ADAMW).unwrap();
        let mut worst = 0.0_f64;
        for step in 0..steps {
            let batch = tokens.get(step);
            let (inputs, targets) = (batch.narrow(1, 0, length - 1), batch.narrow(1, 1, length - 1));
            let loss = case.decoder.loss(&inputs, &targets).unwrap();
            loss.backward();
            clip_grad_norm(case.decoder.parameters(), MAX_NORM).unwrap();
            optimizer.step(LR).unwrap();
            optimizer.zero_grad().unwrap();
            worst = worst.max((loss.double_value(&[]) - losses.double_value(&[step])).abs());
        }
        case.within("losses of 200 steps", (worst, LOSS_OF_CURVE));
        let mean = |from: i64| losses.narrow(0, from, 20).mean(Kind::Double).double_value(&[]);
        assert!(mean(steps - 20) < 0.85 * mean(0), "{}", case.name);
    }
}

/// All cases that have this file.
fn cases_with(file: &str) -> impl Iterator<Item = Case> {
    let cases: Vec<Case> =
        Case::all().into_iter().filter(|case| golden_dir().join(&case.name).join(file).exists()).collect();
    assert!(cases.len() >= 2, "{file}");
    cases.into_iter()
}

#[test]
fn bf16_gradients_are_those_of_torch() {
    for (precision, prefix) in [(Precision::Bf16Mixed, "mixed"), (Precision::Bf16, "pure")] {
        for mut case in cases_with("bf16.safetensors") {
            let expected = tensors(&golden_dir().join(&case.name).join("bf16.safetensors"));
            case.decoder = case.decoder.in_precision(precision).unwrap();
            let kept = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
            let loss = case.backward();
            let expected_loss = expected[&format!("{prefix}.loss")].double_value(&[]);
            case.within(&format!("{prefix} losses"), (relative(loss, expected_loss), BF16_LOSS));
            let norm = |tensor: &Tensor| tensor.to_kind(Kind::Double).norm().double_value(&[]);
            let (mut worst, mut ours, mut noise, mut from_fp32) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
            for parameter in case.decoder.parameters() {
                let found = gradient(parameter).unwrap().unwrap();
                assert_eq!((parameter.tensor.kind(), found.kind()), (kept, kept), "{}", parameter.name);
                let fp32 = &case.expected[&format!("gradient.{}", parameter.name)];
                // The gradients of OPT's key biases are only rounding errors.
                if norm(fp32) < ROUNDING * norm(&case.expected["gradient_norm"]) {
                    continue;
                }
                let found = found.to_kind(Kind::Float);
                let expected = &expected[&format!("{prefix}.gradient.{}", parameter.name)];
                let difference = norm(&(&found - expected));
                ours += difference.powi(2);
                noise += norm(&(expected - fp32)).powi(2);
                worst = worst.max(difference / norm(expected));
                from_fp32 = from_fp32.max(norm(&(&found - fp32)) / norm(fp32));
            }
            case.within(&format!("{prefix} gradients"), (worst, BF16_GRADIENT));
            case.within(&format!("{prefix} gradients relative to noise"), ((ours / noise).sqrt(), BF16_NOISE));
            assert!(from_fp32 > 1e-3, "{}: {prefix} computes in fp32 ({from_fp32:e})", case.name);
        }
    }
}

/// U15: libtorch's own loops for bf16 took minutes per step on processors without bf16
/// instructions. libtorch reads the variable once, so the tests run again in a separate process.
#[test]
fn bf16_is_the_same_on_a_processor_without_instructions_for_it() {
    const CAPABILITY: &str = "ATEN_CPU_CAPABILITY";
    if std::env::var_os(CAPABILITY).is_some() {
        return;
    }
    let tests = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["bf16", "--test-threads=1"])
        .env(CAPABILITY, "avx2")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&tests.stdout), String::from_utf8_lossy(&tests.stderr));
    assert!(tests.status.success() && said.contains("3 passed"), "{said}");
}

#[test]
fn a_model_kept_in_bf16_is_saved_as_such_and_taken_up_again() {
    let case = Case::all().remove(0);
    let decoder = case.decoder.in_precision(Precision::Bf16).unwrap();
    let mut optimizer = AdamW::new(decoder.parameters(), ADAMW).unwrap();
    let step = |decoder: &Decoder, optimizer: &mut AdamW| {
        decoder.loss(&case.expected["inputs"], &case.expected["targets"]).unwrap().backward();
        optimizer.step(LR).unwrap();
        optimizer.zero_grad().unwrap();
    };
    step(&decoder, &mut optimizer);
    let dir = tempfile::tempdir().unwrap();
    decoder.save(dir.path()).unwrap();
    optimizer.snapshot().unwrap().write(&dir.path().join("optimizer.safetensors")).unwrap();
    let kinds: BTreeSet<String> = ["model.safetensors", "optimizer.safetensors"]
        .iter()
        .flat_map(|file| tensors(&dir.path().join(file)).into_values())
        .map(|tensor| format!("{:?}", tensor.kind()))
        .collect();
    assert_eq!(kinds, BTreeSet::from(["BFloat16".to_owned()]));

    let again = Decoder::from_weights(decoder.config().clone(), dir.path(), Device::Cpu).unwrap();
    let again = again.in_precision(Precision::Bf16).unwrap();
    let mut again_optimizer = AdamW::new(again.parameters(), ADAMW).unwrap();
    again_optimizer.load(&dir.path().join("optimizer.safetensors")).unwrap();
    step(&decoder, &mut optimizer);
    step(&again, &mut again_optimizer);
    for (one, other) in decoder.parameters().iter().zip(again.parameters()) {
        assert!(one.tensor.equal(&other.tensor), "{}", one.name);
    }
}

#[test]
fn attention_within_documents_sees_each_as_if_alone() {
    for case in Case::all() {
        // Each row of the batch is split into two documents after the sixth token; there must be no
        // other ends.
        let end = 7_i64;
        let inputs = case.inputs().masked_fill(&case.inputs().eq(end), end + 1);
        let (cut, rest) = (6, inputs.size()[1] - 6);
        let _ = inputs.narrow(1, cut - 1, 1).fill_(end);
        let logits = |decoder: &Decoder, tokens: &Tensor| no_grad(|| decoder.logits(tokens).unwrap());
        let everywhere = logits(&case.decoder, &inputs);
        let first = logits(&case.decoder, &inputs.narrow(1, 0, cut));
        let second = logits(&case.decoder, &inputs.narrow(1, cut, rest));
        let decoder = case.decoder.within_documents(7);
        let within = logits(&decoder, &inputs);
        let case_name = &case.name;
        assert!(max_difference(&within.narrow(1, 0, cut), &first) < LOGITS, "{case_name}");
        assert!(max_difference(&within.narrow(1, cut, rest), &everywhere.narrow(1, cut, rest)) > 1e-2, "{case_name}");
        // Rotations and ALiBi only depend on distances, so the second document is processed as if
        // alone; learned positions continue from the first.
        if !matches!(decoder.config().family, Family::Gpt2 | Family::Opt) {
            assert!(max_difference(&within.narrow(1, cut, rest), &second) < LOGITS, "{case_name}");
        }
    }
}

#[test]
fn a_saved_model_is_the_same_model() {
    for case in Case::all() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(golden_dir().join(&case.name).join("config.json"), dir.path().join("config.json")).unwrap();
        case.decoder.save(dir.path()).unwrap();
        let again = load(dir.path());
        let names = |decoder: &Decoder| decoder.parameters().iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&again), names(&case.decoder));
        let logits = |decoder: &Decoder| no_grad(|| decoder.logits(case.inputs()).unwrap());
        assert!(logits(&again).equal(&logits(&case.decoder)), "{}", case.name);
        // Without a config.json, as in a training state.
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        let again = Decoder::from_weights(case.decoder.config().clone(), dir.path(), Device::Cpu).unwrap();
        assert!(logits(&again).equal(&logits(&case.decoder)), "{}", case.name);
        // Saving twice gives the same file, byte for byte, and leaves no other files.
        let first = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        again.save(dir.path()).unwrap();
        assert!(first == std::fs::read(dir.path().join("model.safetensors")).unwrap(), "{}", case.name);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

/// One line per checkpoint: its weight files, their types, their tensors, and the decoder's
/// parameters.
fn check(expected: Expect) {
    let mut lines = String::new();
    for (name, dir) in golden_cases() {
        let decoder = load(&dir);
        let all: Vec<(String, Tensor)> = weight_files(&dir).iter().flat_map(|file| tensors(file)).collect();
        let kinds: BTreeSet<String> = all.iter().map(|(_, tensor)| format!("{:?}", tensor.kind())).collect();
        let (files, first, count) = (weight_files(&dir).len(), &all[0].0, all.len());
        assert!(decoder.parameters().iter().all(|parameter| parameter.tensor.kind() == Kind::Float));
        let parameters = decoder.parameters().len();
        lines +=
            &format!("{name}: {files} files of {kinds:?}, {count} tensors from {first}; {parameters} parameters\n");
    }
    expected.assert_eq(&lines);
}

fn weight_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_weights = |path: &std::path::PathBuf| {
        let is_made = ["expected.safetensors", "bf16.safetensors", "curve.safetensors"];
        path.extension().is_some_and(|e| e == "safetensors") && !is_made.iter().any(|made| path.ends_with(made))
    };
    let mut files: Vec<_> = files.filter(is_weights).collect();
    files.sort();
    files
}

#[test]
fn the_cases_cover_what_hubs_hold() {
    check(expect![[r#"
        gpt2-f16-hub-names: 1 files of {"Float", "Half"}, 17 tensors from h.0.attn.bias; 16 parameters
        gpt2-inner: 1 files of {"Float"}, 28 tensors from transformer.h.0.attn.c_attn.bias; 28 parameters
        gpt2-inverse-layer-scale: 1 files of {"Float"}, 40 tensors from transformer.h.0.attn.c_attn.bias; 40 parameters
        gpt2-no-bias: 1 files of {"Float"}, 21 tensors from transformer.h.0.attn.c_attn.weight; 21 parameters
        gpt2-no-bias-bf16-hub-names: 1 files of {"BFloat16", "Float"}, 22 tensors from h.0.attn.bias; 21 parameters
        gpt2-no-bias-sharded: 4 files of {"Float"}, 15 tensors from transformer.h.0.ln_1.weight; 15 parameters
        gpt_neox-pythia: 1 files of {"Float", "Uint8"}, 43 tensors from embed_out.weight; 40 parameters
        gpt_neox-sequential-f16-sharded: 3 files of {"Half"}, 40 tensors from gpt_neox.embed_in.weight; 40 parameters
        gpt_neox-tied-bf16: 1 files of {"BFloat16"}, 27 tensors from gpt_neox.embed_in.weight; 27 parameters
        llama-bf16: 1 files of {"BFloat16"}, 21 tensors from lm_head.weight; 21 parameters
        llama-head-100: 1 files of {"Float"}, 12 tensors from lm_head.weight; 12 parameters
        llama-tied-sharded: 4 files of {"Float"}, 20 tensors from model.embed_tokens.weight; 20 parameters
        mosaic_gpt-8-heads-bf16: 1 files of {"BFloat16"}, 18 tensors from transformer.blocks.0.attn.Wqkv.weight; 18 parameters
        mosaic_gpt-plain-f16: 1 files of {"Half"}, 20 tensors from transformer.blocks.0.attn.Wqkv.weight; 20 parameters
        mosaic_gpt-qk-norm: 1 files of {"Float"}, 26 tensors from transformer.blocks.0.attn.Wqkv.weight; 26 parameters
        mpt-3-heads-bf16: 1 files of {"BFloat16"}, 20 tensors from transformer.blocks.0.attn.Wqkv.weight; 20 parameters
        mpt-4-heads-sharded: 5 files of {"Float"}, 14 tensors from transformer.blocks.0.attn.Wqkv.weight; 14 parameters
        mpt-5-heads: 1 files of {"Float"}, 20 tensors from transformer.blocks.0.attn.Wqkv.weight; 20 parameters
        opt-f16: 1 files of {"Half"}, 52 tensors from model.decoder.embed_positions.weight; 52 parameters
        opt-no-prefix: 1 files of {"Float"}, 36 tensors from decoder.embed_positions.weight; 36 parameters
        opt-sharded: 4 files of {"Float"}, 52 tensors from model.decoder.embed_positions.weight; 52 parameters
    "#]]);
}

#[test]
fn a_second_step_does_not_add_to_the_gradients_of_the_first() {
    let case = Case::all().remove(0);
    let optimizer = AdamW::new(case.decoder.parameters(), ADAMW).unwrap();
    let norm = || clip_grad_norm(case.decoder.parameters(), f64::MAX).unwrap();
    assert_eq!(norm(), 0.0, "no gradient yet");
    case.backward();
    let once = norm();
    case.backward();
    assert!(relative(norm(), 2.0 * once) < NORM, "backward passes accumulate");
    optimizer.zero_grad().unwrap();
    assert!(case.decoder.parameters().iter().all(|parameter| gradient(parameter).unwrap().is_none()));
    case.backward();
    assert_eq!(norm(), once);
}

#[test]
fn clipping_scales_to_the_norm_and_leaves_what_is_within_it() {
    let case = Case::all().remove(0);
    case.backward();
    let norm = || clip_grad_norm(case.decoder.parameters(), f64::MAX).unwrap();
    let before = norm();
    assert_eq!(clip_grad_norm(case.decoder.parameters(), before * 2.0).unwrap(), before);
    assert_eq!(norm(), before, "within bounds");
    assert_eq!(clip_grad_norm(case.decoder.parameters(), before / 2.0).unwrap(), before);
    assert!(relative(norm(), before / 2.0) < NORM);
}
