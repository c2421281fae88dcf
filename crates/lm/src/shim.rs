//! Safe wrappers of `csrc`, which provides what tch lacks.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};

use tch::{Kind, TchError, Tensor};

/// Rows of scores (one per token) that the mean loss keeps in memory at a time.
pub const SCORE_ROWS: u32 = 512;

/// A pointer to tch's own pointer to a tensor, as C++ expects it.
pub(crate) type RawTensor = *const c_void;

/// One step of AdamW: its constants and the step's number, starting at 1.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWStep {
    pub(crate) lr: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
    pub(crate) step: f64,
}

#[allow(unsafe_code)]
// SAFETY: these are the functions of csrc, with the same types; build.rs links it.
unsafe extern "C" {
    fn lm_keep_large_blocks();
    fn lm_release_large_blocks();
    fn lm_load_cuda(folder: *const c_char) -> *mut c_char;
    fn lm_free_error(error: *mut c_char);
    fn lm_reset_gradients(parameters: *const RawTensor, count: usize) -> *mut c_char;
    fn lm_clip_gradients(parameters: *const RawTensor, count: usize, max_norm: f64, norm: *mut f64) -> *mut c_char;
    fn lm_adamw(
        parameters: *const RawTensor,
        exp_avgs: *const RawTensor,
        exp_avg_sqs: *const RawTensor,
        count: usize,
        options: *const AdamWStep,
    ) -> *mut c_char;
    fn lm_cross_entropy(
        x: RawTensor,
        w: RawTensor,
        targets: RawTensor,
        at_once: i64,
        loss: *mut *mut c_void,
    ) -> *mut c_char;
    fn lm_project(x: RawTensor, w: RawTensor, b: RawTensor, is_conv1d: bool, y: *mut *mut c_void) -> *mut c_char;
    fn lm_has_bf16() -> bool;
    fn lm_rms_norm(x: RawTensor, w: RawTensor, eps: f64, is_bf16: bool, y: *mut *mut c_void) -> *mut c_char;
    fn lm_swiglu_down(gate: RawTensor, up: RawTensor, w: RawTensor, b: RawTensor, y: *mut *mut c_void) -> *mut c_char;
    fn lm_attend(q: RawTensor, k: RawTensor, v: RawTensor, scale: f64, y: *mut *mut c_void) -> *mut c_char;
    fn lm_rotate(x: RawTensor, cosine: RawTensor, sine: RawTensor, y: *mut *mut c_void) -> *mut c_char;
}

/// Keeps freed large blocks for later tensors on the CPU. Only the first call has an effect.
#[allow(unsafe_code)]
pub(crate) fn keep_large_blocks() {
    // SAFETY: it may be called at any time; existing blocks keep their own allocator.
    unsafe { lm_keep_large_blocks() }
}

/// Returns the kept blocks to the system.
#[allow(unsafe_code)]
pub(crate) fn release_large_blocks() {
    // SAFETY: it may be called at any time; no tensor uses a kept block.
    unsafe { lm_release_large_blocks() }
}

/// Whether the CPU has bf16 instructions. Without them, libtorch's own bf16 loops are a hundred
/// times slower than fp32.
#[allow(unsafe_code)]
pub(crate) fn has_bf16() -> bool {
    // SAFETY: it has no arguments and may be called at any time.
    unsafe { lm_has_bf16() }
}

/// Loads the CUDA part of libtorch from `folder`. Without a folder, looks for it next to the rest
/// of libtorch, where it may be absent.
#[allow(unsafe_code)]
pub(crate) fn load_cuda(folder: Option<&OsStr>) -> Result<(), TchError> {
    let folder = folder.map(|folder| CString::new(folder.as_encoded_bytes())).transpose();
    let folder = folder.map_err(|error| TchError::Torch(format!("invalid folder name: {error}")))?;
    // SAFETY: the text outlives the call; loading a library runs its initialisers, as intended.
    check(unsafe { lm_load_cuda(folder.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())) })
}

/// Drops the gradients of `parameters`: the next backward pass then stores its own.
#[allow(unsafe_code)]
pub(crate) fn reset_gradients<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<(), TchError> {
    let parameters = raw(parameters);
    // SAFETY: the pointers come from live tensors, which the borrow keeps alive during the call.
    check(unsafe { lm_reset_gradients(parameters.as_ptr(), parameters.len()) })
}

/// Scales the gradients of `parameters` to a joint 2-norm of at most `max_norm`; returns the norm
/// before scaling.
#[allow(unsafe_code)]
pub(crate) fn clip_gradients<'a>(
    parameters: impl IntoIterator<Item = &'a Tensor>,
    max_norm: f64,
) -> Result<f64, TchError> {
    let parameters = raw(parameters);
    let mut norm = 0.0;
    // SAFETY: as in `reset_gradients`; `norm` outlives the call.
    check(unsafe { lm_clip_gradients(parameters.as_ptr(), parameters.len(), max_norm, &raw mut norm) })?;
    Ok(norm)
}

/// Performs one AdamW step in place. Each item is one parameter's values and its two moments.
#[allow(unsafe_code)]
pub(crate) fn adamw<'a>(tensors: impl IntoIterator<Item = [&'a Tensor; 3]>, step: &AdamWStep) -> Result<(), TchError> {
    let (mut parameters, mut exp_avgs, mut exp_avg_sqs) = (Vec::new(), Vec::new(), Vec::new());
    for [parameter, exp_avg, exp_avg_sq] in tensors {
        parameters.push(parameter.as_ptr().cast());
        exp_avgs.push(exp_avg.as_ptr().cast());
        exp_avg_sqs.push(exp_avg_sq.as_ptr().cast());
    }
    // SAFETY: as in `reset_gradients`; the three vectors have the same length by construction.
    check(unsafe { lm_adamw(parameters.as_ptr(), exp_avgs.as_ptr(), exp_avg_sqs.as_ptr(), parameters.len(), step) })
}

/// The mean cross-entropy, in nats, of the head `w_VD` over `x_ND`: a differentiable scalar. The
/// scores [N, V] are never in memory all at once. Products are computed in the type of `x_ND`,
/// whatever the type of `w_VD`; `targets_N` are int64 below V.
#[allow(unsafe_code, non_snake_case)]
pub(crate) fn cross_entropy(x_ND: &Tensor, w_VD: &Tensor, targets_N: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: as in `reset_gradients`; the location that the tensor is written to outlives the
    // call.
    made(|loss| unsafe { lm_cross_entropy(one(x_ND), one(w_VD), one(targets_N), SCORE_ROWS.into(), loss) })
}

/// `x_NI` `w`ᵀ + `b_O` for `w` [O, I], or `x_NI` `w` + `b_O` for `w` [I, O], as in a Conv1D; all
/// have the same type. For trained fp32 weights it uses the fastest library on this machine, whose
/// bits differ from those of other libraries.
#[allow(unsafe_code, non_snake_case)]
pub(crate) fn project(x_NI: &Tensor, w: &Tensor, b_O: Option<&Tensor>, is_conv1d: bool) -> Result<Tensor, TchError> {
    let b = b_O.map_or(std::ptr::null(), one);
    // SAFETY: as in `cross_entropy`.
    made(|y| unsafe { lm_project(one(x_NI), one(w), b, is_conv1d, y) })
}

/// RMSNorm of `x_ND` by `w_D`, both fp32 or both bf16, on the CPU. The result has the type `kind`,
/// which is also fp32 or bf16.
#[allow(unsafe_code, non_snake_case)]
pub(crate) fn rms_norm(x_ND: &Tensor, w_D: &Tensor, eps: f64, kind: Kind) -> Result<Tensor, TchError> {
    // SAFETY: as in `cross_entropy`.
    made(|y| unsafe { lm_rms_norm(one(x_ND), one(w_D), eps, kind == Kind::BFloat16, y) })
}

/// (silu(`gate_NF`) * `up_NF`) `w_DF`ᵀ + `b_D`; all have the same type.
#[allow(unsafe_code, non_snake_case)]
pub(crate) fn swiglu_down(
    gate_NF: &Tensor,
    up_NF: &Tensor,
    w_DF: &Tensor,
    b_D: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let b = b_D.map_or(std::ptr::null(), one);
    // SAFETY: as in `cross_entropy`.
    made(|y| unsafe { lm_swiglu_down(one(gate_NF), one(up_NF), one(w_DF), b, y) })
}

/// Applies rotary positions to `x_BTHK`, fp32 or bf16, on the CPU. The angles are given by their
/// cosines and sines, fp32 and contiguous.
#[allow(unsafe_code, non_snake_case)]
pub(crate) fn rotate(x_BTHK: &Tensor, cos_T1P: &Tensor, sin_T1P: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: as in `cross_entropy`.
    made(|y| unsafe { lm_rotate(one(x_BTHK), one(cos_T1P), one(sin_T1P), y) })
}

/// Causal attention of `q_BTHK` over `k_BTGK` and `v_BTGK`: each query sees the keys from the first
/// to its own. The result is [B, T, H, K]; `None` on a device or processor for which csrc has no
/// kernels.
#[allow(unsafe_code, non_snake_case)]
pub(crate) fn attend(
    q_BTHK: &Tensor,
    k_BTGK: &Tensor,
    v_BTGK: &Tensor,
    scale: f64,
) -> Result<Option<Tensor>, TchError> {
    let mut y = std::ptr::null_mut();
    // SAFETY: as in `cross_entropy`.
    check(unsafe { lm_attend(one(q_BTHK), one(k_BTGK), one(v_BTGK), scale, &raw mut y) })?;
    // SAFETY: if it is not null, it is a new tensor that nothing else refers to.
    Ok((!y.is_null()).then(|| unsafe { Tensor::from_ptr(y.cast()) }))
}

/// Returns the tensor that `make` writes a pointer to, unless it returns an error.
#[allow(unsafe_code)]
fn made(make: impl FnOnce(*mut *mut c_void) -> *mut c_char) -> Result<Tensor, TchError> {
    let mut tensor = std::ptr::null_mut();
    check(make(&raw mut tensor))?;
    // SAFETY: without an error, it is a new tensor that nothing else refers to.
    Ok(unsafe { Tensor::from_ptr(tensor.cast()) })
}

fn one(tensor: &Tensor) -> RawTensor {
    tensor.as_ptr().cast()
}

pub(crate) fn raw<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<RawTensor> {
    tensors.into_iter().map(one).collect()
}

#[allow(unsafe_code)]
pub(crate) fn check(error: *mut c_char) -> Result<(), TchError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a string that nothing else refers to.
    let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
    // SAFETY: as above; it is not used afterwards.
    unsafe { lm_free_error(error) };
    Err(TchError::Torch(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, non_snake_case)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn random(size: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind).set_requires_grad(true)
    }

    /// The largest difference between `found` and `expected`, relative to the largest expected
    /// number.
    fn distance(found: &Tensor, expected: &Tensor) -> f64 {
        let expected = expected.to_kind(Kind::Double);
        let largest = expected.abs().max().double_value(&[]).max(1e-9);
        (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]) / largest
    }

    /// Compares values and gradients of `ours` with those of `theirs` in fp64.
    fn check_beside(
        name: &str,
        inputs: &[&Tensor],
        within: f64,
        (ours, theirs): (impl Fn(&[Tensor]) -> Tensor, impl Fn(&[Tensor]) -> Tensor),
    ) {
        let copies = |kind: Kind| -> Vec<Tensor> {
            inputs.iter().map(|x| x.detach().to_kind(kind).set_requires_grad(true)).collect()
        };
        let (own, exact) = (copies(inputs[0].kind()), copies(Kind::Double));
        let (y, expected) = (ours(&own), theirs(&exact));
        let weights = expected.detach().rand_like();
        (&y * weights.to_kind(y.kind())).sum(Kind::Float).backward();
        (&expected * weights.to_kind(y.kind()).to_kind(Kind::Double)).sum(Kind::Double).backward();
        let mut pairs = vec![(y.detach(), expected.detach())];
        pairs.extend(own.iter().zip(&exact).map(|(own, exact)| (own.grad(), exact.grad())));
        for (place, (found, expected)) in pairs.iter().enumerate() {
            let distance = distance(found, expected);
            assert!(distance <= within, "{name}, {place}: {distance}");
        }
    }

    #[test]
    fn projections_are_those_of_fp64() {
        tch::manual_seed(7);
        for (n, i, o) in [(1, 64, 64), (37, 72, 130), (512, 96, 384)] {
            let (x_NI, b_O) = (random(&[n, i], Kind::Float), random(&[o], Kind::Float));
            for is_conv1d in [false, true] {
                let w = random(&if is_conv1d { [i, o] } else { [o, i] }, Kind::Float);
                let theirs = |x: &[Tensor]| x[0].matmul(&if is_conv1d { x[1].shallow_clone() } else { x[1].tr() });
                let plain = |x: &[Tensor]| project(&x[0], &x[1], None, is_conv1d).unwrap();
                let biased = |x: &[Tensor]| project(&x[0], &x[1], Some(&x[2]), is_conv1d).unwrap();
                let name = format!("{n} x {i} -> {o}, {is_conv1d}");
                check_beside(&name, &[&x_NI, &w], 1e-5, (plain, theirs));
                check_beside(&name, &[&x_NI, &w, &b_O], 1e-5, (biased, |x: &[Tensor]| theirs(x) + &x[2]));
            }
        }
    }

    #[test]
    fn attention_is_that_of_fp64() {
        tch::manual_seed(7);
        // Blocks of 64 queries and ranges of 512 keys, complete and partial; separate and shared
        // heads.
        let shapes = [(2, 1, 2, 1, 8), (2, 7, 4, 2, 16), (1, 65, 3, 3, 24), (2, 130, 4, 1, 64), (1, 577, 2, 1, 80)];
        for (kind, within) in [(Kind::Float, 2e-6), (Kind::BFloat16, 2e-2)] {
            for (batch, time, heads, groups, width) in shapes {
                // Three parts of one tensor, as a fused projection makes them, so rows have a
                // larger stride.
                let qkv = random(&[batch, time, heads + 2 * groups, width], kind);
                let parts = |x: &Tensor| {
                    let part = |from: i64, n: i64| x.narrow(2, from, n);
                    (part(0, heads), part(heads, groups), part(heads + groups, groups))
                };
                let (q, k, v) = parts(&qkv);
                let scale = 1.0 / (width as f64).sqrt();
                if attend(&q, &k, &v, scale).unwrap().is_none() {
                    eprintln!("skipped: no {kind:?} kernels for this processor");
                    continue;
                }
                let ours = |x: &[Tensor]| {
                    let (q, k, v) = parts(&x[0]);
                    attend(&q, &k, &v, scale).unwrap().unwrap()
                };
                let theirs = |x: &[Tensor]| {
                    let (q, k, v) = parts(&x[0]);
                    let shared = heads / groups;
                    let across = |x: &Tensor, n: i64| x.repeat_interleave_self_int(n, 2, None).transpose(1, 2);
                    let (q, k, v) = (q.transpose(1, 2), across(&k, shared), across(&v, shared));
                    let future = Tensor::ones([time, time], (Kind::Bool, Device::Cpu)).triu(1);
                    let scores = (q.matmul(&k.transpose(2, 3)) * scale).masked_fill(&future, f64::NEG_INFINITY);
                    scores.softmax(-1, Kind::Double).matmul(&v).transpose(1, 2)
                };
                let name = format!("{kind:?}: {batch} of {time}, {heads} and {groups} heads of {width}");
                check_beside(&name, &[&qkv], within, (ours, theirs));
            }
        }
    }
}
