//! Criterion benchmarks of TabM and TabM-mini: a training step, and inference at batch 1 and 1024.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use densely_benches::WORKLOADS;
use tch::Device;

fn benches(criterion: &mut Criterion) {
    for workload in WORKLOADS {
        let mut group = criterion.benchmark_group(workload.name);
        group.sample_size(10);
        group.throughput(Throughput::Elements(workload.batch as u64));
        let mut bench = workload
            .build(workload.batch, Device::Cpu)
            .expect("a valid workload");
        group.bench_function("train", |b| b.iter(|| bench.train_step().expect("a step")));
        for rows in [1, 1024] {
            let bench = workload.build(rows, Device::Cpu).expect("a valid workload");
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(format!("infer-{rows}"), |b| {
                b.iter(|| bench.infer().expect("predictions"));
            });
        }
        group.finish();
    }
}

criterion_group!(tabular, benches);
criterion_main!(tabular);
