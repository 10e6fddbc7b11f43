//! Criterion benchmarks; run them with `cargo xtask bench`.
