//! Steps by libtorch's fused kernels: one call for all parameters, with their numbers in the call or on the device.

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use densely_torch_ext::optim as lists;
use tch::{Kind, Tensor};

use super::{AdamConfig, AdamWConfig, OptimConfig, Optimizer, Slot};

/// Parameters that share everything that a fused step takes as a number, and those numbers on their device.
#[derive(Debug)]
pub(super) struct Staged {
    slots: Vec<usize>,
    lr_scale: f64,
    weight_decay: f64,
    lr: Tensor,
    steps: Tensor,
}

impl Optimizer {
    /// The first half of a step that is recorded and repeated ([`crate::graph::StepGraph`]): counts it and puts learning
    /// rate and count where [`apply`](Self::apply) reads them, on the parameters' device. Nothing waits.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when parameters have made different numbers of steps or are of a kind that libtorch's fused
    /// kernels do not take; [`Error::Torch`].
    pub fn stage(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        if self.staged.is_empty() {
            self.staged = self.staged_groups()?;
        }
        for slot in &mut self.slots {
            slot.steps += 1;
        }
        for group in &mut self.staged {
            let _ = group.lr.f_fill_(self.lr * group.lr_scale)?;
            let _ = group
                .steps
                .f_fill_(self.slots[group.slots[0]].steps as f64)?;
        }
        Ok(())
    }

    fn staged_groups(&mut self) -> Result<Vec<Staged>> {
        let unlike = |what: &str| Error::Unsupported {
            what: format!("a recorded step of {what}"),
            hint: "record no steps".to_owned(),
        };
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !slot.fuses(&slot.param) {
                return Err(unlike(&format!(
                    "`{}`, which no fused kernel takes",
                    slot.name
                )));
            }
            slot.moments(&self.config)?;
            let key = (
                slot.lr_scale.to_bits(),
                slot.weight_decay.to_bits(),
                likeness(&slot.param),
            );
            groups.entry(key).or_default().push(index);
        }
        let first = self.slots[0].steps;
        if self.slots.iter().any(|slot| slot.steps != first) {
            return Err(unlike(
                "parameters that have made different numbers of steps",
            ));
        }
        let group = |((lr_scale, weight_decay, _), slots): ((u64, u64, _), Vec<usize>)| {
            let device = self.slots[slots[0]].param.device();
            // CUDA's kernels read an f32, the CPU's any number.
            let kind = if device == tch::Device::Cpu {
                Kind::Double
            } else {
                Kind::Float
            };
            Ok(Staged {
                slots,
                lr_scale: f64::from_bits(lr_scale),
                weight_decay: f64::from_bits(weight_decay),
                lr: Tensor::f_zeros([], (kind, device))?,
                steps: Tensor::f_zeros([], (Kind::Float, device))?,
            })
        };
        groups.into_iter().map(group).collect()
    }

    /// The second half of a step whose first was [`stage`](Self::stage): reads every number from the device, so that
    /// repeating the same work is the next step.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when a parameter has no gradient; [`Error::Torch`].
    pub fn apply(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for group in &self.staged {
            let slots: Vec<&Slot> = group
                .slots
                .iter()
                .map(|index| &self.slots[*index])
                .collect();
            let params = params_of(slots.iter().copied());
            let grads: Vec<Tensor> = params.iter().map(Tensor::grad).collect();
            if let Some((slot, _)) = slots.iter().zip(&grads).find(|(_, grad)| !grad.defined()) {
                return Err(Error::Unsupported {
                    what: format!("a recorded step without a gradient of `{}`", slot.name),
                    hint: "record no steps".to_owned(),
                });
            }
            let moment = |of: fn(&Slot) -> Option<&Tensor>| -> Vec<Tensor> {
                slots
                    .iter()
                    .filter_map(|slot| of(slot))
                    .map(Tensor::shallow_clone)
                    .collect()
            };
            let (first, second) = (
                moment(|slot| slot.first.as_ref()),
                moment(|slot| slot.second.as_ref()),
            );
            let numbers = Numbers {
                lr: lists::Rate::Device(&group.lr),
                weight_decay: group.weight_decay,
                first: slots[0].steps == 1,
            };
            fused_call(
                &self.config,
                &numbers,
                &params,
                &grads,
                [&first, &second],
                &group.steps,
            )?;
        }
        Ok(())
    }
}

/// One call for all parameters that share learning rate, decay and number of steps.
pub(super) fn fused_step(
    config: &OptimConfig,
    lr: f64,
    due: Vec<(&mut Slot, Tensor)>,
) -> Result<()> {
    type Group<'a> = Vec<(&'a mut Slot, Tensor)>;
    let mut groups: BTreeMap<(u64, u64, u64, Likeness), Group> = BTreeMap::new();
    for (slot, grad) in due {
        let key = (
            slot.lr_scale.to_bits(),
            slot.weight_decay.to_bits(),
            slot.steps,
            likeness(&slot.param),
        );
        groups.entry(key).or_default().push((slot, grad));
    }
    for ((lr_scale, weight_decay, steps, _), group) in groups {
        let (mut slots, grads): (Vec<&mut Slot>, Vec<Tensor>) = group.into_iter().unzip();
        let params = params_of(slots.iter().map(|slot| &**slot));
        // Slots that have made as many steps have all a buffer, or none has.
        let buffered = slots.iter().all(|slot| slot.first.is_some());
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for slot in &mut slots {
            let [one, two] = slot.moments(config)?;
            first.extend(one);
            second.extend(two);
        }
        let count = Tensor::f_full([], steps as f64, (Kind::Float, params[0].device()))?;
        let numbers = Numbers {
            lr: lists::Rate::Number(lr * f64::from_bits(lr_scale)),
            weight_decay: f64::from_bits(weight_decay),
            first: !buffered,
        };
        fused_call(config, &numbers, &params, &grads, [&first, &second], &count)?;
    }
    Ok(())
}

fn params_of<'a>(slots: impl Iterator<Item = &'a Slot>) -> Vec<Tensor> {
    slots.map(|slot| slot.param.shallow_clone()).collect()
}

/// What parameters of one fused call share beside the optimiser's own settings.
struct Numbers<'a> {
    lr: lists::Rate<'a>,
    weight_decay: f64,
    /// Whether SGD's buffers are new.
    first: bool,
}

fn fused_call(
    config: &OptimConfig,
    numbers: &Numbers,
    params: &[Tensor],
    grads: &[Tensor],
    moments: [&[Tensor]; 2],
    count: &Tensor,
) -> Result<()> {
    let &Numbers {
        lr,
        weight_decay,
        first,
    } = numbers;
    match config {
        OptimConfig::AdamW(AdamWConfig { betas, eps, .. })
        | OptimConfig::Adam(AdamConfig { betas, eps, .. }) => {
            let step = lists::AdamStep {
                lr,
                betas: *betas,
                weight_decay,
                eps: *eps,
                decoupled: matches!(config, OptimConfig::AdamW(_)),
            };
            let counts: Vec<Tensor> = params.iter().map(|_| count.shallow_clone()).collect();
            lists::fused_adam(params, grads, moments, &counts, &step)
        }
        OptimConfig::Sgd(c) => {
            let step = lists::SgdStep {
                lr,
                weight_decay,
                momentum: c.momentum,
                dampening: c.dampening,
                nesterov: c.nesterov,
                first,
            };
            lists::fused_sgd(params, grads, moments[0], &step)
        }
    }
    .map_err(Error::torch)
}

fn likeness(xs: &Tensor) -> Likeness {
    (xs.kind() == Kind::Double, format!("{:?}", xs.device()))
}

/// What else must be the same in a group: kind and device.
type Likeness = (bool, String);
