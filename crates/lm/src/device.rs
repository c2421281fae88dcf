//! The device that tensors live on, and the number of threads that compute.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tch::{Device, Kind, TchError, Tensor, no_grad};

use crate::error::LmError;
use crate::shim;

/// Rows and columns of the matrices whose product measures the peak of a CPU, and of a GPU.
const PROBE_WIDTHS: (i64, i64) = (1024, 8192);
/// Minimum time for which products are timed. Other processes may use the machine meanwhile, so the
/// fastest product counts.
const PROBE_TIME: Duration = Duration::from_millis(500);

/// Sets the number of threads that libtorch computes with in this process; 0 means 1. Call it on
/// the thread that computes, before the first tensor is created. Sums are split by thread, so two
/// runs are bit-identical only with the same number of threads.
///
/// From the first call on, freed large tensors are kept for the next step instead of being returned
/// to the system, which would have to zero their pages again. They are kept until
/// [`release_memory`], and never exceed the peak of memory in use.
pub fn set_threads(n: usize) {
    shim::keep_large_blocks();
    tch::set_num_threads(i32::try_from(n.max(1)).unwrap_or(i32::MAX));
}

/// Returns the memory of freed tensors to the system. Call it after a job's tensors are dropped.
pub fn release_memory() {
    shim::release_large_blocks();
}

/// The number of threads that libtorch computes with.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// The environment variable with the folder of PyTorch's CUDA libraries
/// (`site-packages/torch/lib`), if they are not next to libtorch's other libraries.
pub const CUDA_FOLDER_VARIABLE: &str = "INHERITUNE_TORCH_CUDA";

/// The device to compute on: the first GPU if there is one, else the CPU. The first call loads the
/// CUDA part of libtorch if it is found.
///
/// # Errors
/// [`LmError::Torch`] if [`CUDA_FOLDER_VARIABLE`] is set and its libraries cannot be loaded, or if
/// the ones next to libtorch exist but cannot be loaded. Silently training on the CPU instead would
/// be a surprise.
pub fn default_device() -> Result<Device, LmError> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let folder = std::env::var_os(CUDA_FOLDER_VARIABLE).filter(|folder| !folder.is_empty());
    match LOADED.get_or_init(|| shim::load_cuda(folder.as_deref()).map_err(|error| error.to_string())) {
        Ok(()) => Ok(Device::cuda_if_available()),
        Err(problem) => {
            let problem = format!("PyTorch's CUDA libraries ({CUDA_FOLDER_VARIABLE}) cannot be loaded: {problem}");
            Err(TchError::Torch(problem).into())
        }
    }
}

/// Floating-point operations per second of `device` in a product of matrices of `kind`: the fastest
/// of several products. Measured at the first call in a process, with its number of threads at that
/// time.
///
/// # Errors
/// [`LmError::Torch`].
pub fn matmul_peak(device: Device, kind: Kind) -> Result<f64, LmError> {
    static MEASURED: Mutex<Option<HashMap<String, f64>>> = Mutex::new(None);
    let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    let measured = measured.get_or_insert_default();
    let key = format!("{device:?} {kind:?}");
    if let Some(peak) = measured.get(&key) {
        return Ok(*peak);
    }
    let peak = no_grad(|| probe(device, kind))?;
    measured.insert(key, peak);
    Ok(peak)
}

fn probe(device: Device, kind: Kind) -> Result<f64, LmError> {
    let width = if device.is_cuda() { PROBE_WIDTHS.1 } else { PROBE_WIDTHS.0 };
    let ones = || Tensor::f_ones([width, width], (kind, device));
    let (a, b) = (ones()?, ones()?);
    let mut fastest_s = f64::INFINITY;
    let probing = Instant::now();
    while fastest_s.is_infinite() || probing.elapsed() < PROBE_TIME {
        let started = Instant::now();
        // Reading one number waits for the device to finish.
        a.f_matmul(&b)?.f_double_value(&[0, 0])?;
        fastest_s = fastest_s.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (width as f64).powi(3) / fastest_s.max(1e-9))
}
