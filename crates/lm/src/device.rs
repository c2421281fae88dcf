//! Where tensors live and how many threads compute.

use tch::Device;

use crate::shim;

/// Most bytes of freed large tensors that stay with the process for the next ones.
const MAX_KEPT_BYTES: usize = 2 << 30;

/// Sets how many threads libtorch computes with, in this process. Call it on the thread that computes,
/// before the first tensor: sums are split by thread, so the count is part of what makes two runs equal
/// bit for bit. 0 is taken as 1. From the first call on, up to 2 GiB of freed large tensors are kept for
/// the next step instead of being given back to the system: 4 to 6 % of the CPU time
/// of a 14M-parameter training step on one thread, most of it the system's zeroing of pages.
pub fn set_threads(n: usize) {
    shim::keep_large_blocks(MAX_KEPT_BYTES);
    tch::set_num_threads(i32::try_from(n.max(1)).unwrap_or(i32::MAX));
}

/// How many threads libtorch computes with.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// The device to compute on: the first GPU where libtorch has one, else the CPU.
pub fn default_device() -> Device {
    Device::cuda_if_available()
}
