//! Compiles the C++ shim against libtorch's headers, and gives the tests of this package an rpath
//! to libtorch, so that they run without LD_LIBRARY_PATH.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=csrc");
    let Some(libtorch) = std::env::var_os("LIBTORCH") else {
        panic!(
            "LIBTORCH is not set: run `make setup`, then run cargo inside the repository, whose .cargo/config.toml sets it"
        );
    };
    let libtorch = Path::new(&libtorch);
    let include = libtorch.join("include");
    assert!(include.is_dir(), "{} is missing: run `make setup`", include.display());
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // Also in debug builds, like libtorch itself.
        .opt_level(3)
        .include(include.join("torch/csrc/api/include"))
        .include(&include)
        // libtorch's own headers produce warnings.
        .warnings(false)
        .include("csrc/gloo-stub")
        .files([
            "csrc/shim.cpp",
            "csrc/blocks.cpp",
            "csrc/products.cpp",
            "csrc/attention.cpp",
            "csrc/allocator.cpp",
            "csrc/c10d.cpp",
            "csrc/cuda.cpp",
        ]);
    // Without it, ATen's parallel loops run on one thread wherever they are compiled.
    if build.get_compiler().is_like_gnu() {
        build.flag("-fopenmp");
        println!("cargo:rustc-link-lib=gomp");
    }
    build.compile("inheritune_lm_shim");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libtorch.join("lib").display());
}
