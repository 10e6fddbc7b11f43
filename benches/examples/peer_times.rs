//! Our side of the comparison with Python: prints one JSON line per workload and phase, with times and a checksum.
//!
//! `cargo xtask bench --peers` runs it in turn with `benches/peers/tabular.py`. Both sides draw the same initial weights and rows
//! from the same seeds, so that equal checksums show that they computed the same function.
#![expect(clippy::print_stdout, reason = "a command line program")]

use std::time::Instant;

use densely_benches::WORKLOADS;
use densely_core::{Device, Result};
use densely_train::peak_rss_mb;
use serde_json::json;

/// Repeats `work` for about two seconds after two unmeasured turns; milliseconds of each.
fn measure(device: tch::Device, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let wait = || {
        if let tch::Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
    };
    let mut times = Vec::new();
    let start = Instant::now();
    for turn in 0.. {
        wait();
        let begin = Instant::now();
        work()?;
        wait();
        if turn >= 2 {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        if times.len() >= 200 || (times.len() >= 2 && start.elapsed().as_secs_f64() > 2.0) {
            break;
        }
    }
    Ok(times)
}

fn main() -> Result<()> {
    let (mut names, mut device) = (Vec::new(), Device::Cpu);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--device" => device = words.next().unwrap_or_default().parse()?,
            _ => names.push(word),
        }
    }
    let open = device.open()?;
    for workload in WORKLOADS {
        if !names.is_empty()
            && !names
                .iter()
                .any(|name| workload.name.contains(name.as_str()))
        {
            continue;
        }
        let print = |phase: &str, batch: i64, ms: &[f64], checksum: f64| {
            let line = json!({
                "workload": workload.name, "model": workload.model, "phase": phase, "batch": batch,
                "threads": tch::get_num_threads(), "dtype": "f32", "device": device.to_string(), "ms": ms,
                "checksum": checksum, "peak_mb": peak_rss_mb(),
            });
            println!("{line}");
        };
        for rows in [1, 1024] {
            let bench = workload.build(rows, open)?;
            let checksum = bench.infer()?.sum(tch::Kind::Double).double_value(&[]);
            let ms = measure(open, || bench.infer().map(|_| ()))?;
            print("infer", rows, &ms, checksum);
        }
        let mut bench = workload.build(workload.batch, open)?;
        let ms = measure(open, || bench.train_step())?;
        let mut fresh = workload.build(workload.batch, open)?;
        for _ in 0..3 {
            fresh.train_step()?;
        }
        let checksum = fresh.infer()?.sum(tch::Kind::Double).double_value(&[]);
        print("train", workload.batch, &ms, checksum);
    }
    Ok(())
}
