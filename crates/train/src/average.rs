//! A running average of the weights: what is judged and saved, while the weights themselves go on learning.

use densely_core::{Error, Result, Tensors, weights};
use tch::Tensor;
use tch::nn::VarStore;

use crate::optim::{Optimizer, OptimizerState};

/// An optimiser, and the exponential moving average of the weights that it moves: `average ← decay · average + (1 - decay) · weight`.
///
/// As `timm.utils.ModelEmaV2`, running statistics are averaged, too, and integers are taken over; early steps keep less, `min(decay, (s - 1) / (s + 9))`
/// at step s, since an average that begins at random numbers would remember them long. In training the store holds the weights;
/// [`evaluate`](Self::evaluate) exchanges them with their average, so that models are judged, checkpoints are written and the best epoch is kept by
/// the average, and [`train`](Self::train) exchanges them back.
#[derive(Debug)]
pub struct Averaged {
    optimizer: Optimizer,
    decay: f64,
    /// The store's tensors with their counterparts: the average in training, the weights else.
    pairs: Vec<(String, Tensor, Tensor)>,
    training: bool,
}

/// What the names of the weights begin with in a checkpoint's state.
const PREFIX: &str = "weight.";

impl Averaged {
    /// With an average that starts at the weights of `vs`; with `decay` 0 there is none, and nothing is exchanged.
    pub fn new(optimizer: Optimizer, vs: &VarStore, decay: f64) -> Self {
        let named = if decay > 0.0 {
            weights::named(vs)
        } else {
            Tensors::new()
        };
        let pairs = named.into_iter().map(|(name, xs)| {
            let copy = xs.detach().copy();
            (name, xs, copy)
        });
        Self {
            optimizer,
            decay,
            pairs: pairs.collect(),
            training: true,
        }
    }

    /// The optimiser.
    pub fn optimizer(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }

    /// Takes the weights into the average, after `steps` steps in all, from 1.
    pub fn average(&mut self, steps: u64) {
        let _no_grad = tch::no_grad_guard();
        let keep = self
            .decay
            .min(steps.saturating_sub(1) as f64 / (steps + 9) as f64);
        for (_, weight, average) in &mut self.pairs {
            if average.is_floating_point() {
                let _ = average.lerp_(weight, 1.0 - keep);
            } else {
                average.copy_(weight);
            }
        }
    }

    /// The store holds the average from here on.
    pub fn evaluate(&mut self) {
        if self.training {
            self.exchange();
        }
    }

    /// The store holds the weights from here on.
    pub fn train(&mut self) {
        if !self.training {
            self.exchange();
        }
    }

    fn exchange(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for (_, stored, other) in &mut self.pairs {
            let kept = stored.detach().copy();
            stored.copy_(other);
            other.copy_(&kept);
        }
        self.training = !self.training;
    }
}

impl OptimizerState for Averaged {
    /// The optimiser's state, and the weights that the store does not hold while it is evaluated.
    fn state(&self) -> Tensors {
        let mut state = self.optimizer.state();
        let pairs = self.pairs.iter();
        state.extend(
            pairs.map(|(name, _, other)| (format!("{PREFIX}{name}"), other.shallow_clone())),
        );
        state
    }

    /// After the store was loaded: it then holds the average.
    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut rest = Tensors::new();
        let mut weights = Tensors::new();
        for (name, xs) in state {
            match name.strip_prefix(PREFIX) {
                Some(name) => weights.insert(name.to_owned(), xs.shallow_clone()),
                None => rest.insert(name.clone(), xs.shallow_clone()),
            };
        }
        let same = self.pairs.len() == weights.len()
            && self.pairs.iter().all(|(name, stored, _)| {
                weights
                    .get(name)
                    .is_some_and(|xs| xs.size() == stored.size() && xs.kind() == stored.kind())
            });
        if !same {
            return Err(Error::config(
                "ema_decay",
                "the checkpoint's averaged weights are not those of this model",
            ));
        }
        self.optimizer.load_state(&rest)?;
        for (name, _, other) in &mut self.pairs {
            other.copy_(&weights[name.as_str()]);
        }
        self.training = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{OptimConfig, SgdConfig};
    use tch::{Device, Kind};

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }

    fn store(value: f64) -> (VarStore, Tensor) {
        let vs = VarStore::new(Device::Cpu);
        let weight = Tensor::full([2], value, (Kind::Float, Device::Cpu));
        let weight = vs.root().add("w", weight, true);
        (vs, weight)
    }

    fn averaged(vs: &VarStore, decay: f64) -> Averaged {
        let config = OptimConfig::Sgd(SgdConfig::default());
        Averaged::new(config.build(vs, &[]).expect("an optimiser"), vs, decay)
    }

    fn set(weight: &mut Tensor, value: f64) {
        let _no_grad = tch::no_grad_guard();
        let _ = weight.fill_(value);
    }

    #[test]
    fn the_average_follows_its_definition() {
        let (vs, mut weight) = store(5.0);
        let mut state = averaged(&vs, 0.5);
        let mut expected = 0.0;
        for (step, value) in [(1u64, 1.0), (2, 2.0), (3, 4.0)] {
            set(&mut weight, value);
            state.average(step);
            let keep = 0.5f64.min((step - 1) as f64 / (step + 9) as f64);
            expected = keep * expected + (1.0 - keep) * value;
        }
        state.evaluate();
        assert!((weight.double_value(&[0]) - expected).abs() < 1e-6);
        state.train();
        assert_close(weight.double_value(&[0]), 4.0);
    }

    #[test]
    fn a_checkpoint_brings_back_weights_and_average() {
        let (vs, mut weight) = store(1.0);
        let mut state = averaged(&vs, 0.9);
        for step in 1..20 {
            set(&mut weight, step as f64);
            state.average(step);
        }
        state.evaluate();
        let average = weight.double_value(&[0]);
        let saved: Tensors = state
            .state()
            .into_iter()
            .map(|(name, xs)| (name, xs.copy()))
            .collect();

        let (other_vs, mut other) = store(0.0);
        let mut loaded = averaged(&other_vs, 0.9);
        set(&mut other, average);
        loaded.load_state(&saved).expect("the same model");
        assert_close(other.double_value(&[0]), average);
        loaded.train();
        assert_close(other.double_value(&[0]), 19.0);
        let without = averaged(&store(0.0).0, 0.0).load_state(&saved);
        assert!(without.is_err(), "an average without a place for it");
    }

    #[test]
    fn without_an_average_nothing_moves() {
        let (vs, mut weight) = store(1.0);
        let mut state = averaged(&vs, 0.0);
        set(&mut weight, 3.0);
        state.average(1);
        state.evaluate();
        assert_close(weight.double_value(&[0]), 3.0);
        assert!(!state.state().keys().any(|name| name.starts_with(PREFIX)));
    }
}
