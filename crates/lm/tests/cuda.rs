//! CUDA's part of libtorch is looked for at run time. What it computes is tested where there is a GPU.
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
    // Loading is done once in a process, so this takes one of its own.
    let test = ["--ignored", "--exact", "in_a_process_of_its_own", "--nocapture"];
    let child = Command::new(std::env::current_exe().unwrap())
        .args(test)
        .env(device::CUDA_FOLDER_VARIABLE, empty.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let folder = empty.path().to_str().unwrap();
    assert!(said.contains(device::CUDA_FOLDER_VARIABLE) && said.contains(folder), "{said}");
    assert!(child.status.success(), "an error, not an abort");
}

#[test]
#[ignore = "a part of the test above"]
fn in_a_process_of_its_own() {
    println!("{}", device::default_device().unwrap_err());
}
