//! Criterion benchmarks of every model: training steps, and inference at batch 1 and at a throughput batch.

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use densely_benches::{Phase, workloads};
use tch::Device;

fn benches(criterion: &mut Criterion) {
    for workload in workloads() {
        let mut group = criterion.benchmark_group(workload.about().name);
        group.sample_size(10);
        // A step takes up to seconds: as many repetitions in each sample.
        group.sampling_mode(SamplingMode::Flat);
        for &(phase, rows) in workload.about().cases {
            group.throughput(Throughput::Elements(rows as u64));
            match phase {
                Phase::Train => group.bench_function(format!("train-{rows}"), |b| {
                    let bench = workload.build(rows, Device::Cpu, false);
                    let mut bench = bench.expect("a valid workload");
                    b.iter(|| bench.train_step().expect("a step"));
                }),
                Phase::Infer => group.bench_function(format!("infer-{rows}"), |b| {
                    let bench = workload.build(rows, Device::Cpu, false);
                    let bench = bench.expect("a valid workload");
                    b.iter(|| bench.infer().expect("predictions"));
                }),
            };
        }
        group.finish();
    }
}

criterion_group!(all, benches);
criterion_main!(all);
