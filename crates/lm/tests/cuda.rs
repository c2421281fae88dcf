//! The CUDA part of libtorch is loaded at run time. Its results are tested where there is a GPU.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use inheritune_lm::{Device, device};

#[test]
fn without_its_libraries_the_cpu_computes() {
    assert_eq!(device::default_device().unwrap(), Device::cuda_if_available());
}

#[test]
fn a_folder_that_does_not_have_them_is_an_error_that_names_the_variable() {
    let empty = tempfile::tempdir().unwrap();
    // Loading happens once per process, so this test needs a separate one.
    let test = ["--ignored", "--exact", "in_a_process_of_its_own", "--nocapture"];
    let child = Command::new(std::env::current_exe().unwrap())
        .args(test)
        .env(device::CUDA_FOLDER_VARIABLE, empty.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let folder = empty.path().to_str().unwrap();
    assert!(said.contains(device::CUDA_FOLDER_VARIABLE) && said.contains(folder), "{said}");
    assert!(child.status.success(), "must return an error, not abort");
}

#[test]
#[ignore = "a part of the test above"]
fn in_a_process_of_its_own() {
    println!("{}", device::default_device().unwrap_err());
}
