//! Our side of the comparison with Python: one case, measured whenever a line arrives on standard input.
//!
//! `cargo xtask bench --peers` starts this and `benches/peers/*.py` together and lets them measure in turn. All sides draw
//! the same weights and rows from the same seeds and first say what they compute, so that it can be compared:
//!
//! ```text
//! → {"ready": true, "outputs": [..], "loss": .., "gradient_norm": .., "threads": ..}
//! ← (a line)
//! → {"ms": [..], "floor_ms": .., "checksum": ..}
//! ← (end of input)
//! → {"peak_mb": ..}
//! ```
//!
//! The floor is the matrix products alone, plus memory that must move; the checksum that of the predictions, where weights
//! stay as they are.
#![expect(clippy::print_stdout, reason = "a command line program")]

use std::io::BufRead;
use std::time::Instant;

use densely_benches::{About, Convolution, Phase, Work, Workload, workloads};
use densely_core::weights::hex;
use densely_core::{Device, Error, Result};
use densely_torch_ext::cuda::Timer;
use densely_train::peak_rss_mb;
use serde_json::json;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

/// Milliseconds of `work`: by the clock, on a GPU by its own events.
fn timed(device: tch::Device, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    if let tch::Device::Cuda(index) = device {
        let timer = Timer::start(index).map_err(Error::torch)?;
        work()?;
        return timer.milliseconds().map_err(Error::torch);
    }
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// Repeats `work` for half a second, at least three times (twice when it takes longer than that); milliseconds of each.
fn measure(device: tch::Device, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let (mut times, start) = (Vec::new(), Instant::now());
    loop {
        times.push(timed(device, work)?);
        let seconds = start.elapsed().as_secs_f64();
        if times.len() >= 1000
            || (seconds > 0.5 && times.len() >= if seconds > 1.5 { 2 } else { 3 })
        {
            return Ok(times);
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Milliseconds of each of the products through libtorch, and of moving `bytes` at the speed of a large copy.
struct Floor {
    products: Vec<(Tensor, Tensor, Tensor)>,
    /// How often the case does all of them.
    times: f64,
    convolutions: Vec<(Convolution, [[Tensor; 2]; 2])>,
    /// A step does each convolution's work again for the input and for the weight.
    passes: f64,
    from: Tensor,
    to: Tensor,
    bytes: u64,
}

impl Floor {
    fn new(
        workload: &dyn Workload,
        phase: Phase,
        rows: i64,
        bf16: bool,
        device: tch::Device,
        bytes: u64,
    ) -> Self {
        let kind = (if bf16 { Kind::BFloat16 } else { Kind::Float }, device);
        let mut shapes = workload.products(phase, rows);
        shapes.sort_unstable();
        let products = shapes
            .into_iter()
            .map(|[batches, m, k, n]| {
                let of = |a, b| {
                    let size = if batches == 1 {
                        vec![a, b]
                    } else {
                        vec![batches, a, b]
                    };
                    Tensor::randn(size.as_slice(), (Kind::Float, device)).to_kind(kind.0)
                };
                // A weight's gradient multiplies by a transpose, as in the step.
                let left = if phase == Phase::Train && k >= rows {
                    of(k, m).transpose(-1, -2)
                } else {
                    of(m, k)
                };
                let out = if batches == 1 {
                    vec![m, n]
                } else {
                    vec![batches, m, n]
                };
                (left, of(k, n), Tensor::empty(out.as_slice(), kind))
            })
            .collect();
        let convolutions = workload.convolutions(rows).into_iter().map(|conv| {
            let of = |size: [i64; 4]| Tensor::randn(size, (Kind::Float, device)).to_kind(kind.0);
            let maps = of([conv.rows, conv.inputs, conv.side, conv.side]);
            let weight = of([conv.outputs, conv.inputs, conv.window, conv.window]);
            let last = |xs: &Tensor| xs.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
            let turned = [last(&maps), last(&weight)];
            (conv, [[maps, weight], turned])
        });
        let convolutions = convolutions.collect();
        let large = || Tensor::zeros([16 << 20], (Kind::Float, device));
        Self {
            products,
            times: workload.passes(),
            convolutions,
            passes: if phase == Phase::Train { 3.0 } else { 1.0 },
            from: large(),
            to: large(),
            bytes,
        }
    }

    fn milliseconds(&mut self, device: tch::Device) -> Result<f64> {
        let mut total = 0.0;
        for (left, right, out) in &mut self.products {
            let mut product = || Ok(left.f_matmul_out(out, right).map(|_| ())?);
            product()?; // warm-up
            total += self.times * median(measure_few(device, &mut product)?);
        }
        let _no_grad = tch::no_grad_guard();
        for (conv, layouts) in &self.convolutions {
            // The faster of the two orders in memory; for layers over channels also the plain product.
            let mut best = f64::INFINITY;
            for [maps, weight] in layouts {
                let (stride, padding) = ([conv.stride; 2], [(conv.window - 1) / 2; 2]);
                let mut work = || {
                    let none = None::<Tensor>;
                    Ok(maps
                        .f_conv2d(weight, none, stride, padding, [1, 1], 1)
                        .map(|_| ())?)
                };
                work()?;
                best = best.min(median(measure_few(device, &mut work)?));
            }
            if conv.window == 1 {
                let [maps, weight] = &layouts[1];
                let rows = maps.permute([0, 2, 3, 1]).flatten(0, 2);
                let weight = weight.flatten(1, 3).transpose(0, 1).contiguous();
                let out = rows.f_matmul(&weight)?;
                let mut work = || Ok(rows.f_matmul_out(&out, &weight).map(|_| ())?);
                best = best.min(median(measure_few(device, &mut work)?));
            }
            total += best * conv.times as f64 * self.passes;
        }
        let mut copy = || {
            self.to.copy_(&self.from);
            Ok(())
        };
        let bandwidth =
            2.0 * 4.0 * self.from.numel() as f64 / median(measure_few(device, &mut copy)?);
        Ok(total + self.bytes as f64 / bandwidth)
    }
}

/// As [`measure`], for a fifth of the time: there are several products to a case.
fn measure_few(device: tch::Device, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let first = median(measure_n(device, work, 1)?);
    measure_n(
        device,
        work,
        ((100.0 / first.max(1e-3)) as usize).clamp(2, 200),
    )
}

fn measure_n(
    device: tch::Device,
    work: &mut dyn FnMut() -> Result<()>,
    n: usize,
) -> Result<Vec<f64>> {
    (0..n).map(|_| timed(device, work)).collect()
}

fn numbers(xs: &Tensor) -> Result<Vec<f64>> {
    let xs = xs.to_device(tch::Device::Cpu).to_kind(Kind::Double);
    Ok(Vec::try_from(xs)?)
}

fn checksum(predictions: &Tensor) -> Result<String> {
    let mut digest = Sha256::new();
    for y in numbers(predictions)? {
        digest.update((y as f32).to_le_bytes());
    }
    Ok(hex(&digest.finalize()))
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "--list") {
        for workload in workloads() {
            for (phase, batch) in workload.about().cases {
                let phase = format!("{phase:?}").to_lowercase();
                let About {
                    name, model, peer, ..
                } = workload.about();
                println!(
                    "{}",
                    json!({"workload": name, "model": model, "phase": phase, "batch": batch, "peer": peer})
                );
            }
        }
        return Ok(());
    }
    let [name, phase, batch, dtype, device] = words.as_slice() else {
        return Err(Error::config(
            "arguments",
            "WORKLOAD PHASE BATCH DTYPE DEVICE, or --list",
        ));
    };
    let unknown = || Error::config("workload", format!("there is none named `{name}`"));
    let workload = workloads()
        .find(|w| w.about().name == name)
        .ok_or_else(unknown)?;
    let phase: Phase = phase.parse()?;
    let rows: i64 = batch
        .parse()
        .map_err(|_| Error::config("batch", "must be a number"))?;
    let bf16 = dtype == "bf16";
    let device = device.parse::<Device>()?.open()?;

    let mut bench = workload.build(rows, device, bf16)?;
    let outputs = numbers(&bench.infer()?)?;
    let (loss, norm) = if phase == Phase::Train {
        bench.loss_and_gradient_norm()?
    } else {
        (0.0, 0.0)
    };
    // Reading and writing what Adam must: parameter, gradient and two moments, three of them written back.
    let bytes = if phase == Phase::Train {
        7 * bench.parameter_bytes()
    } else {
        0
    };
    let work = |bench: &mut dyn Work| match phase {
        Phase::Train => bench.train_step(),
        Phase::Infer => bench.infer().map(|_| ()),
    };
    measure(device, &mut || work(&mut *bench))?; // warm-up
    let peak = peak_rss_mb();
    let mut floor = None;
    println!(
        "{}",
        json!({"ready": true, "outputs": &outputs[..outputs.len().min(64)], "loss": loss, "gradient_norm": norm,
                          "threads": tch::get_num_threads()})
    );
    for line in std::io::stdin().lock().lines() {
        line.map_err(Error::io("standard input"))?;
        let ms = measure(device, &mut || work(&mut *bench))?;
        let checksum = match phase {
            Phase::Train => None,
            Phase::Infer => Some(checksum(&bench.infer()?)?),
        };
        let floor =
            floor.get_or_insert_with(|| Floor::new(workload, phase, rows, bf16, device, bytes));
        println!(
            "{}",
            json!({"ms": ms, "floor_ms": floor.milliseconds(device)?, "checksum": checksum})
        );
    }
    // The floor's own matrices are not ours.
    println!("{}", json!({"peak_mb": peak}));
    Ok(())
}
