//! Compiles the C++ bridge and the fused operations against the libtorch that torch-sys found.

use std::env;
use std::path::PathBuf;

/// Compiles the loops once per instruction set, each into a namespace of its own; the program picks one when it runs.
fn compile_kernels(x86: bool) {
    let flags: &[(&str, &[&str])] = &[
        ("baseline", &[]),
        ("avx2", &["-mavx2", "-mfma"]),
        (
            "avx512",
            &[
                "-mavx512f",
                "-mavx512bw",
                "-mavx512vl",
                "-mavx512dq",
                "-mfma",
                "-mprefer-vector-width=512",
            ],
        ),
    ];
    for (level, flags) in flags.iter().take(if x86 { 3 } else { 1 }) {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(3)
            .warnings(false)
            .flag("-fopenmp-simd");
        for flag in *flags {
            build.flag(flag);
        }
        if x86 {
            build.define("DENSELY_X86", None);
        }
        build
            .define("LEVEL", *level)
            .file("src/cpu/kernels.cpp")
            .compile(&format!("densely_kernels_{level}"));
    }
}

fn main() {
    println!("cargo:rerun-if-changed=src");
    let lib = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from);
    let Some(root) = lib.as_deref().and_then(|lib| lib.parent()) else {
        println!("cargo:error=torch-sys did not say where libtorch is; run `cargo xtask doctor`");
        return;
    };
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let mut build = cxx_build::bridge("src/bridge.rs");
    if x86 {
        build.define("DENSELY_X86", None);
    }
    build
        .files([
            "src/bridge.cpp",
            "src/memory.cpp",
            "src/optim.cpp",
            "src/cpu/members.cpp",
            "src/cpu/piecewise.cpp",
        ])
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .include("src")
        .std("c++17")
        .flag("-fopenmp")
        .warnings(false)
        .compile("densely_torch_ext");
    // After the code that calls them: a static library gives only what is still asked for.
    compile_kernels(x86);
}
