//! Compiles the C++ bridge and the fused operations against the libtorch that torch-sys found.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

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
            .flag("-fopenmp-simd")
            .flag("-fno-math-errno"); // else a root is a call
        for flag in *flags {
            build.flag(flag);
        }
        if x86 {
            build.define("DENSELY_X86", None);
        }
        build
            .define("LEVEL", *level)
            .files(
                [
                    "activation_kernels",
                    "bilinear_kernels",
                    "grid_kernels",
                    "kernels",
                    "mixer_kernels",
                    "modulated_kernels",
                    "patch_kernels",
                    "pixel_kernels",
                    "pool_kernels",
                    "ray_kernels",
                    "sine_kernels",
                    "sparse_kernels",
                    "table_kernels",
                    "trunk_kernels",
                ]
                .map(|name| format!("src/cpu/{name}.cpp")),
            )
            .compile(&format!("densely_kernels_{level}"));
    }
    if x86 {
        // Products in bf16. Where the compiler does not know them, the kernels say that they have none.
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(3)
            .warnings(false)
            .flag("-fopenmp-simd")
            .flag("-fno-math-errno");
        for flag in flags[2].1 {
            build.flag(flag);
        }
        build
            .flag_if_supported("-mavx512bf16")
            .define("DENSELY_X86", None)
            .define("LEVEL", "avx512bf16")
            .file("src/cpu/pool_kernels.cpp")
            .compile("densely_kernels_avx512bf16");
    }
}

/// A folder with CUDA's headers: the toolkit's, or the ones that lie with libtorch.
fn cuda_headers(libtorch: &Path) -> Option<PathBuf> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(|name| {
        println!("cargo:rerun-if-env-changed={name}");
        env::var_os(name).map(|folder| PathBuf::from(folder).join("include"))
    });
    let beside = [
        libtorch.join("include/cuda"),
        libtorch.join("../nvidia/cu13/include"),
        PathBuf::from("/usr/local/cuda/include"),
    ];
    let complete = |folder: &PathBuf| {
        ["cuda_runtime.h", "crt/host_config.h"]
            .iter()
            .all(|header| folder.join(header).is_file())
    };
    toolkits.chain(beside).find(complete)
}

/// Compiles CUDA graphs into a library of their own, which the crate carries and loads when they are asked for.
fn compile_cuda(libtorch: &Path) {
    println!("cargo:rustc-check-cfg=cfg(cuda_graphs)");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os != "linux") {
        return;
    }
    let (Some(headers), Some(out)) = (cuda_headers(libtorch), env::var_os("OUT_DIR")) else {
        return;
    };
    let library = PathBuf::from(out).join("densely_cuda.so");
    let mut compiler: Command = cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .pic(true)
        .warnings(false)
        .get_compiler()
        .to_command();
    compiler
        .args(["-shared", "-s"])
        .arg("-I")
        .arg(libtorch.join("include"))
        .arg("-I")
        .arg(libtorch.join("include/torch/csrc/api/include"))
        .arg("-I")
        .arg(&headers)
        .arg("src/cuda/graph.cpp")
        .arg("-o")
        .arg(&library);
    if compiler.status().is_ok_and(|status| status.success()) {
        println!("cargo:rustc-cfg=cuda_graphs");
        println!("cargo:rustc-env=DENSELY_CUDA_LIBRARY={}", library.display());
    } else {
        println!(
            "cargo:warning=CUDA graphs are left out: src/cuda/graph.cpp does not compile with the headers in {}",
            headers.display()
        );
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
            "src/device.cpp",
            "src/memory.cpp",
            "src/optim.cpp",
            "src/cpu/activations.cpp",
            "src/cpu/bilinear.cpp",
            "src/cpu/grids.cpp",
            "src/cpu/linear.cpp",
            "src/cpu/members.cpp",
            "src/cpu/mixer.cpp",
            "src/cpu/modulated.cpp",
            "src/cpu/patches.cpp",
            "src/cpu/piecewise.cpp",
            "src/cpu/pixels.cpp",
            "src/cpu/pool.cpp",
            "src/cpu/rays.cpp",
            "src/cpu/rows.cpp",
            "src/cpu/sine.cpp",
            "src/cpu/sparse.cpp",
            "src/cpu/tables.cpp",
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
    compile_cuda(root);
}
