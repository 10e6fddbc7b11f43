//! Compiles the C++ bridge against the libtorch that torch-sys found.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/bridge.h");
    println!("cargo:rerun-if-changed=src/bridge.cpp");
    let lib = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from);
    let Some(root) = lib.as_deref().and_then(|lib| lib.parent()) else {
        println!("cargo:error=torch-sys did not say where libtorch is; run `cargo xtask doctor`");
        return;
    };
    cxx_build::bridge("src/bridge.rs")
        .file("src/bridge.cpp")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .include("src")
        .std("c++17")
        .warnings(false)
        .compile("densely_torch_ext");
}
