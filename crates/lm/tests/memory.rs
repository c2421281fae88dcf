//! Large tensors: freed blocks are reused, and no block has two owners.

use inheritune_lm::{Device, Kind, LmError, Tensor, device};

mod support;
use support::max_difference;

/// fp32 numbers of a tensor that is large enough to be kept.
const LARGE: i64 = 1 << 20;

fn filled(value: f64, elements: i64) -> Tensor {
    Tensor::full([elements], value, (Kind::Float, Device::Cpu))
}

/// Resident memory of this process, if the system reports it.
fn resident_bytes() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[test]
fn freed_blocks_are_used_again() {
    let before = filled(7.0, 3 * LARGE);
    device::set_threads(1);
    // Kept blocks are bounded by the peak of memory in use.
    drop(filled(0.0, 9 * LARGE));
    let first = filled(1.0, 3 * LARGE);
    let address = first.data_ptr();
    assert_eq!(address as usize % 64, 0, "blocks must be aligned like libtorch's own");
    drop(first);
    let half = filled(2.0, 3 * LARGE / 2);
    assert_ne!(half.data_ptr(), address, "half of the block would be wasted");
    let again = filled(3.0, 3 * LARGE - 100);
    assert_eq!(again.data_ptr(), address);
    let other = filled(4.0, 3 * LARGE);
    assert_ne!(other.data_ptr(), address, "the block is in use");
    for (tensor, value) in [(&before, 7.0), (&half, 2.0), (&again, 3.0), (&other, 4.0)] {
        assert_eq!((tensor.min().double_value(&[]), tensor.max().double_value(&[])), (value, value));
    }
    // A block from before the first call is returned to its own allocator.
    drop(before);

    // Many threads allocate concurrently, and another thread frees the blocks.
    let workers: Vec<_> = (0..8_i64)
        .map(|worker| {
            std::thread::spawn(move || {
                let made = |round: i64| filled((worker * 100 + round) as f64, LARGE + worker * 1000);
                let mut tensors: Vec<Tensor> = (0..4).map(made).collect();
                for round in 0..20 {
                    drop(tensors.remove(0));
                    tensors.push(made(round));
                    let sum = tensors[3].mean(Kind::Double).double_value(&[]);
                    assert_eq!(sum, (worker * 100 + round) as f64);
                }
                tensors
            })
        })
        .collect();
    for (worker, thread) in workers.into_iter().enumerate() {
        let tensors = thread.join().unwrap();
        for (tensor, round) in tensors.iter().zip(16..20) {
            assert_eq!(tensor.max().double_value(&[]), (worker * 100 + round) as f64);
            assert_eq!(tensor.min().double_value(&[]), (worker * 100 + round) as f64);
        }
    }
    // oneDNN allocates raw memory of any size: exact GELU is x Phi(x), forward and backward.
    for elements in [1000, 2 * LARGE] {
        let x = (filled(1.0, elements).cumsum(0, Kind::Float) * (8.0 / elements as f64) - 4.0).set_requires_grad(true);
        let gelu = x.gelu("none");
        let x64 = x.detach().to_kind(Kind::Double);
        let phi: Tensor = ((&x64 / 2.0_f64.sqrt()).erf() + 1.0) / 2.0;
        assert!(max_difference(&gelu.detach(), &(&x64 * &phi)) < 3e-6);
        gelu.sum(Kind::Float).backward();
        let density = (&x64 * &x64 / -2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        assert!(max_difference(&x.grad(), &(&phi + &x64 * &density)) < 1e-6);
    }
    // Blocks of sizes that are never requested again do not accumulate, and are freed at the end of
    // a job.
    if let Some(start) = resident_bytes() {
        for blocks in 10..30 {
            drop(filled(1.0, blocks * LARGE));
        }
        let largest = 29 * LARGE as u64 * 4;
        let kept = resident_bytes().unwrap();
        assert!(kept < start + 2 * largest, "{start} bytes, then {kept}");
        device::release_memory();
        let released = resident_bytes().unwrap();
        assert!(released + largest / 2 < kept, "{kept} bytes, then {released}");
    }
    // More than a process's address space, so that no system grants it.
    for elements in [1 << 46, 1 << 58] {
        let error = LmError::from(Tensor::f_zeros([elements], (Kind::Float, Device::Cpu)).unwrap_err());
        assert!(error.is_out_of_memory(), "{error}");
    }
}
