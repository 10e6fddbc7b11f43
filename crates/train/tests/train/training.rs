//! The loop that several domains share.

use std::collections::BTreeMap;
use std::time::Instant;

use densely_core::{Error, Result, Tensors, weights};
use densely_train::ScheduleConfig;
use densely_train::run::FitOptions;
use densely_train::training::{Loop, Task};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::trainer::{Settings, folder, turn};

const STEPS: i64 = 5;

/// Losses are no numbers from the third step on, and weights that are none cannot be judged.
struct Diverging {
    weight: Tensor,
}

impl Task for Diverging {
    type Batch = i64;

    fn steps(&self) -> u64 {
        STEPS as u64
    }

    fn epoch(&self, _: u64, skip: u64) -> Result<impl Iterator<Item = Result<i64>>> {
        let first = skip as i64;
        Ok((first..STEPS).map(Ok))
    }

    fn loss(&self, batch: &i64, _: u64, _: u64) -> Result<Tensor> {
        let factor = if *batch < 2 { 1.0 } else { f64::NAN };
        Ok(self.weight.square().sum(Kind::Float) * factor)
    }

    fn tensors(batch: i64) -> Tensors {
        Tensors::from([("number".to_owned(), Tensor::from_slice(&[batch]))])
    }

    fn judge(&self, _steps: u64) -> Result<(f64, Vec<(&'static str, f64)>)> {
        Err(Error::config("weight", "is no number"))
    }
}

#[test]
fn a_training_that_diverged_is_told_before_its_weights_are_judged_and_its_last_batch_is_kept() {
    let _turn = turn();
    let folder = folder();
    let vs = VarStore::new(Device::Cpu);
    let task = Diverging {
        weight: vs.root().ones("weight", &[2]),
    };
    let options = FitOptions {
        folder: folder.path(),
        table: folder.path(),
        seed: 0,
        device: Device::Cpu,
        resume: None,
    };
    let training = Loop {
        optimizer: &Settings::default().optim,
        schedule: &ScheduleConfig::constant(),
        epochs: 1,
        patience: 1,
        min_improvement: 0.0,
        clip_norm: 0.0,
        ema_decay: 0.0,
        time_budget: 0.0,
        may_change: &[],
        options: &options,
        start: Instant::now(),
    };
    let settings = BTreeMap::from([("width", 2)]);
    let error = training
        .run(&task, &vs, &settings, "{}".to_owned(), &mut |_| {})
        .unwrap_err();
    assert!(
        matches!(error, Error::Diverged { step: 2, loss } if loss.is_nan()),
        "{error}"
    );
    let path = folder.path().join("diverged.safetensors");
    let kept = weights::read(&path).unwrap().tensors;
    assert_eq!(kept["number"].int64_value(&[0]), STEPS - 1);
}
