//! Scores a thousand items for one user, at once and one by one.
//!
//! `cargo run --release --example score_candidates`: a DIN at the size of `AmazonElectronics_x1` with fresh weights.
#![expect(clippy::print_stdout, reason = "a command line program")]

use std::time::Instant;

use densely_core::tch::{self, Device, Kind, Tensor, nn::VarStore};
use densely_core::{Result, Tensors, seeded};
use densely_recsys::{CtrConfig, DinConfig};

const CANDIDATES: i64 = 1000;

fn main() -> Result<()> {
    tch::set_num_threads(1);
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || CtrConfig::Din(DinConfig::default()).build(&vs.root()))?;
    let _no_grad = tch::no_grad_guard();
    for valid in [100, 20] {
        let ids =
            |most: i64, size: &[i64]| Tensor::randint_low(1, most, size, tch::kind::INT64_CPU);
        let mask = Tensor::arange(100, tch::kind::INT64_CPU)
            .lt(valid)
            .to_kind(Kind::Int64);
        let (user, items) = seeded(1, || {
            let user = Tensors::from([
                ("item_history".to_owned(), ids(63_003, &[1, 100]) * &mask),
                ("cate_history".to_owned(), ids(803, &[1, 100]) * &mask),
            ]);
            let items = Tensors::from([
                ("item_id".to_owned(), ids(63_003, &[CANDIDATES])),
                ("cate_id".to_owned(), ids(803, &[CANDIDATES])),
            ]);
            (user, items)
        });
        let start = Instant::now();
        let scores = model.score_candidates(&user, &items)?;
        let at_once = start.elapsed().as_secs_f64() * 1e3;

        let start = Instant::now();
        let mut largest = 0.0f64;
        for row in 0..CANDIDATES {
            let one = |(name, xs): (&String, &Tensor)| (name.clone(), xs.narrow(0, row, 1));
            let mut inputs: Tensors = items.iter().map(one).collect();
            inputs.extend(
                user.iter()
                    .map(|(name, xs)| (name.clone(), xs.shallow_clone())),
            );
            let logit = model.forward(&inputs, false)?;
            largest = largest.max((logit - scores.get(row)).abs().double_value(&[0]));
        }
        let one_by_one = start.elapsed().as_secs_f64() * 1e3;
        println!(
            "history of {valid}: {CANDIDATES} at once {at_once:.0} ms, one by one {one_by_one:.0} ms, {:.1} times as long; largest difference {largest:.1e}",
            one_by_one / at_once
        );
    }
    Ok(())
}
