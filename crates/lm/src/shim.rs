//! The safe face of `csrc`: what tch lacks.

use std::ffi::{CStr, CString, OsStr, c_char, c_void};

use tch::{TchError, Tensor};

/// Rows of scores, a token each, that the mean loss has in memory at once.
pub const SCORE_ROWS: u32 = 512;

/// A pointer to tch's own pointer to a tensor, as C++ takes it.
pub(crate) type RawTensor = *const c_void;

/// One step of AdamW: its constants and the step's number, this step included.
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
    fn lm_keep_large_blocks(max_kept_bytes: usize);
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
}

/// Keeps up to `max_kept_bytes` of freed large blocks for later tensors on the CPU. Only the first call counts.
#[allow(unsafe_code)]
pub(crate) fn keep_large_blocks(max_kept_bytes: usize) {
    // SAFETY: it takes a number and may be called at any time; blocks made before keep their own allocator.
    unsafe { lm_keep_large_blocks(max_kept_bytes) }
}

/// Loads CUDA's part of libtorch from `folder`, or from beside the rest of it, where it need not be.
#[allow(unsafe_code)]
pub(crate) fn load_cuda(folder: Option<&OsStr>) -> Result<(), TchError> {
    let folder = folder.map(|folder| CString::new(folder.as_encoded_bytes())).transpose();
    let folder = folder.map_err(|error| TchError::Torch(format!("the folder's name: {error}")))?;
    // SAFETY: the text outlives the call; loading a library runs its initialisers, which is what is wanted.
    check(unsafe { lm_load_cuda(folder.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())) })
}

/// Drops the gradients of `parameters`: the next backward pass then stores its own.
#[allow(unsafe_code)]
pub(crate) fn reset_gradients<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<(), TchError> {
    let parameters = raw(parameters);
    // SAFETY: the pointers come from live tensors, which the borrow keeps alive during the call.
    check(unsafe { lm_reset_gradients(parameters.as_ptr(), parameters.len()) })
}

/// Scales the gradients of `parameters` to a joint 2-norm of at most `max_norm`; gives the norm before.
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

/// One AdamW step in place. All three iterators give the same tensors' values and moments, in one order.
#[allow(unsafe_code)]
pub(crate) fn adamw<'a>(tensors: impl IntoIterator<Item = [&'a Tensor; 3]>, step: &AdamWStep) -> Result<(), TchError> {
    let (mut parameters, mut exp_avgs, mut exp_avg_sqs) = (Vec::new(), Vec::new(), Vec::new());
    for [parameter, exp_avg, exp_avg_sq] in tensors {
        parameters.push(parameter.as_ptr().cast());
        exp_avgs.push(exp_avg.as_ptr().cast());
        exp_avg_sqs.push(exp_avg_sq.as_ptr().cast());
    }
    // SAFETY: as in `reset_gradients`; the three vectors are of one length by construction.
    check(unsafe { lm_adamw(parameters.as_ptr(), exp_avgs.as_ptr(), exp_avg_sqs.as_ptr(), parameters.len(), step) })
}

/// The mean cross-entropy, nats, of the head `w_VD` over `x_ND`: a differentiable scalar, for which the scores [N, V] are
/// never all in memory. `targets_N` are int64 below V.
#[allow(unsafe_code, non_snake_case)]
pub(crate) fn cross_entropy(x_ND: &Tensor, w_VD: &Tensor, targets_N: &Tensor) -> Result<Tensor, TchError> {
    let mut loss = std::ptr::null_mut();
    let (x, w, targets) = (x_ND.as_ptr().cast(), w_VD.as_ptr().cast(), targets_N.as_ptr().cast());
    // SAFETY: as in `reset_gradients`; `loss` outlives the call.
    check(unsafe { lm_cross_entropy(x, w, targets, SCORE_ROWS.into(), &raw mut loss) })?;
    // SAFETY: without an error it is a new tensor that nothing else refers to.
    Ok(unsafe { Tensor::from_ptr(loss.cast()) })
}

pub(crate) fn raw<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<RawTensor> {
    tensors.into_iter().map(|tensor| tensor.as_ptr().cast()).collect()
}

#[allow(unsafe_code)]
pub(crate) fn check(error: *mut c_char) -> Result<(), TchError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a string of its own that nothing else refers to.
    let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
    // SAFETY: as above; it is not used after this.
    unsafe { lm_free_error(error) };
    Err(TchError::Torch(text))
}
