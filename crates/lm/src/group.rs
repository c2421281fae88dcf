//! Process groups on one machine that sum tensors: libtorch's c10d over loopback.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use tch::Tensor;

use crate::decoder::Parameter;
use crate::error::LmError;
use crate::shim::{self, RawTensor};

/// csrc's LmStore and LmGroup, which are opaque here.
type RawStore = c_void;
type RawGroup = c_void;

#[allow(unsafe_code)]
// SAFETY: these are the functions of csrc/c10d.cpp, with the same types; build.rs links it.
unsafe extern "C" {
    fn lm_store_open(port: *mut u16, timeout_ms: i64, opened: *mut *mut RawStore) -> *mut c_char;
    fn lm_store_close(store: *mut RawStore);
    fn lm_group_join(
        store: *const RawStore,
        rank: i32,
        size: i32,
        join_ms: i64,
        exchange_ms: i64,
        joined: *mut *mut RawGroup,
    ) -> *mut c_char;
    fn lm_group_leave(group: *mut RawGroup);
    fn lm_group_sum(group: *const RawGroup, tensor: RawTensor) -> *mut c_char;
    fn lm_group_sum_gradients(group: *const RawGroup, parameters: *const RawTensor, count: usize) -> *mut c_char;
}

/// The rendezvous of a process group.
#[derive(Debug)]
pub struct Rendezvous {
    raw: *mut RawStore,
    port: u16,
}

/// How long a process waits for the others.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Time limit until all have joined.
    pub join: Duration,
    /// Time limit of an exchange.
    pub exchange: Duration,
}

/// One process's membership in a process group that sums tensors.
#[derive(Debug)]
pub struct Group {
    raw: *mut RawGroup,
    // Gloo looks up the other processes in the store during its lifetime.
    _rendezvous: Rendezvous,
}

#[allow(unsafe_code)]
// SAFETY: the store behind the pointer is only reachable through this value, and libtorch does not
// tie it to a thread.
unsafe impl Send for Rendezvous {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Send for Group {}

impl Rendezvous {
    /// Opens a rendezvous on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// [`LmError::Torch`].
    pub fn open(timeout: Duration) -> Result<Self, LmError> {
        Self::at(0, timeout)
    }

    /// Connects to the rendezvous that another process has opened on this port.
    ///
    /// # Errors
    /// [`LmError::Torch`] if it cannot be reached within `timeout`.
    pub fn reach(port: u16, timeout: Duration) -> Result<Self, LmError> {
        Self::at(port, timeout)
    }

    #[allow(unsafe_code)]
    fn at(mut port: u16, timeout: Duration) -> Result<Self, LmError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: both pointers outlive the call.
        shim::check(unsafe { lm_store_open(&raw mut port, milliseconds(timeout), &raw mut raw) })?;
        Ok(Self { raw, port })
    }

    /// The port of the rendezvous.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Rendezvous {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: `at` created it, and nothing else refers to it.
        unsafe { lm_store_close(self.raw) }
    }
}

impl Group {
    /// Joins the group as process `rank` of `size`; returns once all have joined.
    ///
    /// # Errors
    /// [`LmError::Torch`] if not all have joined in time.
    #[allow(unsafe_code)]
    pub fn join(rendezvous: Rendezvous, (rank, size): (u32, u32), patience: Patience) -> Result<Self, LmError> {
        let mut raw = std::ptr::null_mut();
        let (rank, size) = (rank.min(i32::MAX as u32) as i32, size.min(i32::MAX as u32) as i32);
        let (join_ms, exchange_ms) = (milliseconds(patience.join), milliseconds(patience.exchange));
        // SAFETY: the store lives as long as `rendezvous`, which the group owns; `raw` outlives the
        // call.
        shim::check(unsafe { lm_group_join(rendezvous.raw, rank, size, join_ms, exchange_ms, &raw mut raw) })?;
        Ok(Self { raw, _rendezvous: rendezvous })
    }

    /// The sums of `numbers` over all processes, which must all pass the same count.
    ///
    /// # Errors
    /// [`LmError::Torch`] if a process is lost.
    #[allow(unsafe_code)]
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>, LmError> {
        let tensor = Tensor::from_slice(numbers);
        // SAFETY: both live during the call, and this function owns the tensor.
        shim::check(unsafe { lm_group_sum(self.raw, tensor.as_ptr().cast()) })?;
        Ok(Vec::try_from(&tensor)?)
    }

    /// Sums the gradients of `parameters` over all processes, in place. Every process gets the same
    /// bits.
    ///
    /// # Errors
    /// [`LmError::Torch`] if a process is lost; the gradients are then unusable.
    #[allow(unsafe_code)]
    pub fn sum_gradients(&self, parameters: &[Parameter]) -> Result<(), LmError> {
        let parameters = shim::raw(parameters.iter().map(|parameter| &parameter.tensor));
        // SAFETY: the pointers come from live tensors, which the borrow keeps alive during the
        // call.
        Ok(shim::check(unsafe { lm_group_sum_gradients(self.raw, parameters.as_ptr(), parameters.len()) })?)
    }
}

impl Drop for Group {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: `join` created it, and nothing else refers to it.
        unsafe { lm_group_leave(self.raw) }
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
