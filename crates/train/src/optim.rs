//! AdamW, Adam and SGD with the numbers of `torch.optim`, and their state as named tensors.
//!
//! The operations and their order are those of PyTorch's single-tensor implementations
//! (`torch/optim/adam.py`, `sgd.py`), so that a run here and a run there give the same bits on a CPU, up to
//! fused multiply-adds that tch cannot ask for.

use std::fmt;

use densely_core::{Error, Result, Tensors};
use densely_torch_ext::optim as lists;
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

mod fused;

use fused::{Staged, fused_step};

/// Settings of AdamW: Adam with weight decay that does not pass through the moments. Defaults are PyTorch's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Learning rate per step.
    pub lr: f64,
    /// Decay per step of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight that is taken off per step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 1e-2,
        }
    }
}

/// Settings of Adam, whose weight decay is added to the gradient. Defaults are PyTorch's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamConfig {
    /// Learning rate per step.
    pub lr: f64,
    /// Decay per step of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight that is added to its gradient.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Settings of stochastic gradient descent. Defaults are PyTorch's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// Learning rate per step.
    pub lr: f64,
    /// Share of the last update that is kept.
    pub momentum: f64,
    /// Share of the gradient that does not enter the momentum.
    pub dampening: f64,
    /// Share of a weight that is added to its gradient.
    pub weight_decay: f64,
    /// Nesterov's look-ahead; needs momentum and no dampening.
    pub nesterov: bool,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        }
    }
}

/// Which optimiser, and its settings; in TOML `name = "adamw"` and the fields beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum OptimConfig {
    /// Adam with decoupled weight decay.
    AdamW(AdamWConfig),
    /// Adam.
    Adam(AdamConfig),
    /// Stochastic gradient descent.
    Sgd(SgdConfig),
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self::AdamW(AdamWConfig::default())
    }
}

/// Says whether a parameter, given by name and value, belongs to a group.
pub type Matches = Box<dyn Fn(&str, &Tensor) -> bool + Send>;

/// Parameters that learn by settings of their own.
pub struct GroupRule {
    /// Whether a parameter, given by name and value, belongs to the group.
    pub matches: Matches,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Weight decay instead of the optimiser's, where given.
    pub weight_decay: Option<f64>,
}

impl GroupRule {
    /// A rule for the parameters that `matches` accepts.
    pub fn new(
        matches: impl Fn(&str, &Tensor) -> bool + Send + 'static,
        lr_scale: f64,
        weight_decay: Option<f64>,
    ) -> Self {
        Self {
            matches: Box::new(matches),
            lr_scale,
            weight_decay,
        }
    }

    /// No weight decay for biases, norms and other parameters of at most one dimension.
    pub fn no_decay_below_2d() -> Self {
        Self::new(|_, param| param.dim() < 2, 1.0, Some(0.0))
    }
}

impl fmt::Debug for GroupRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupRule")
            .field("lr_scale", &self.lr_scale)
            .field("weight_decay", &self.weight_decay)
            .finish_non_exhaustive()
    }
}

impl OptimConfig {
    /// Learning rate per step, before schedules.
    pub const fn lr(&self) -> f64 {
        match self {
            Self::AdamW(c) => c.lr,
            Self::Adam(c) => c.lr,
            Self::Sgd(c) => c.lr,
        }
    }

    const fn weight_decay(&self) -> f64 {
        match self {
            Self::AdamW(c) => c.weight_decay,
            Self::Adam(c) => c.weight_decay,
            Self::Sgd(c) => c.weight_decay,
        }
    }

    /// Checks every setting's range.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        at_least_zero("optim.lr", self.lr())?;
        at_least_zero("optim.weight_decay", self.weight_decay())?;
        match self {
            Self::AdamW(AdamWConfig { betas, eps, .. })
            | Self::Adam(AdamConfig { betas, eps, .. }) => {
                at_least_zero("optim.eps", *eps)?;
                for beta in betas {
                    if !(0.0..1.0).contains(beta) {
                        let reason = format!("each must lie in [0, 1), got {beta}");
                        return Err(Error::config("optim.betas", reason));
                    }
                }
                Ok(())
            }
            Self::Sgd(c) => {
                at_least_zero("optim.momentum", c.momentum)?;
                if !c.dampening.is_finite() {
                    let reason = format!("must be a finite number, got {}", c.dampening);
                    return Err(Error::config("optim.dampening", reason));
                }
                if c.nesterov && (c.momentum == 0.0 || c.dampening != 0.0) {
                    let reason = "needs momentum above 0 and dampening 0";
                    return Err(Error::config("optim.nesterov", reason));
                }
                Ok(())
            }
        }
    }

    /// An optimiser of the trainable variables of `vs`, in the order of their names. Each takes the first rule
    /// that matches it; the rest take the settings as they are.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails, a rule's numbers are negative or the store
    /// has nothing to train.
    pub fn build(&self, vs: &VarStore, rules: &[GroupRule]) -> Result<Optimizer> {
        self.validate()?;
        for rule in rules {
            at_least_zero("lr_scale", rule.lr_scale)?;
            at_least_zero("weight_decay", rule.weight_decay.unwrap_or(0.0))?;
        }
        let variables = densely_core::weights::named(vs).into_iter();
        let slots: Vec<Slot> = variables
            .filter(|(_, param)| param.requires_grad())
            .map(|(name, param)| {
                let rule = rules.iter().find(|rule| (rule.matches)(&name, &param));
                let decay = rule.and_then(|rule| rule.weight_decay);
                Slot {
                    lr_scale: rule.map_or(1.0, |rule| rule.lr_scale),
                    weight_decay: decay.unwrap_or_else(|| self.weight_decay()),
                    steps: 0,
                    first: None,
                    second: None,
                    name,
                    param,
                }
            })
            .collect();
        if slots.is_empty() {
            return Err(Error::config(
                "optim",
                "the model has no trainable parameter",
            ));
        }
        Ok(Optimizer {
            config: self.clone(),
            lr: self.lr(),
            slots,
            fused: densely_torch_ext::fused::wanted(),
            staged: Vec::new(),
        })
    }
}

fn at_least_zero(field: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must be a finite number of at least 0, got {value}"),
    ))
}

/// One parameter with its state. `first` is Adam's `exp_avg` or SGD's `momentum_buffer`, `second` Adam's
/// `exp_avg_sq`; both appear at the parameter's first step, as in PyTorch.
#[derive(Debug)]
struct Slot {
    name: String,
    param: Tensor,
    lr_scale: f64,
    weight_decay: f64,
    steps: u64,
    first: Option<Tensor>,
    second: Option<Tensor>,
}

/// An optimiser over named parameters; see [`OptimConfig::build`].
#[derive(Debug)]
pub struct Optimizer {
    config: OptimConfig,
    lr: f64,
    slots: Vec<Slot>,
    fused: bool,
    staged: Vec<Staged>,
}

/// What a run must know of any optimiser: its state, for checkpoints.
pub trait OptimizerState {
    /// The state as named tensors. They may share memory with the optimiser: save them before the next step.
    fn state(&self) -> Tensors;

    /// Takes over what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// [`Error::Config`] when it does not fit; the optimiser is then unchanged.
    fn load_state(&mut self, state: &Tensors) -> Result<()>;
}

impl OptimizerState for Optimizer {
    fn state(&self) -> Tensors {
        self.state()
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.load_state(state)
    }
}

impl Optimizer {
    /// Sets the learning rate; groups multiply it by their own factor.
    pub fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// The learning rate of groups whose factor is 1.
    pub const fn lr(&self) -> f64 {
        self.lr
    }

    /// Names of the parameters, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|slot| slot.name.as_str())
    }

    /// Takes all gradients away, as PyTorch does by default: a parameter that the next backward pass does not
    /// reach is left alone by [`step`](Self::step).
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn zero_grad(&mut self) -> Result<()> {
        let params: Vec<Tensor> = self
            .slots
            .iter()
            .map(|slot| slot.param.shallow_clone())
            .collect();
        lists::clear_grads(&params).map_err(Error::torch)
    }

    /// Scales all gradients together so that their norm is at most `max_norm`, and returns the norm before, a
    /// scalar on the parameters' device. The device is not waited for. With `max_norm` infinite it only measures.
    ///
    /// # Errors
    /// [`Error::Config`] unless `max_norm` is above 0; [`Error::Torch`].
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> Result<Tensor> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            return Err(Error::config(
                "clip_norm",
                format!("must be above 0, got {max_norm}"),
            ));
        }
        let _no_grad = tch::no_grad_guard();
        let grads: Vec<Tensor> = self
            .slots
            .iter()
            .map(|slot| slot.param.grad())
            .filter(Tensor::defined)
            .collect();
        if grads.is_empty() {
            let device = self
                .slots
                .first()
                .map_or(tch::Device::Cpu, |slot| slot.param.device());
            return Ok(Tensor::f_zeros([], (Kind::Float, device))?);
        }
        lists::clip_grads(&grads, max_norm).map_err(Error::torch)
    }

    /// Multiplies all gradients by `factor`; whether all were finite. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn unscale(&mut self, factor: f64) -> Result<bool> {
        let grads = self.slots.iter().map(|slot| slot.param.grad());
        let grads: Vec<Tensor> = grads.filter(Tensor::defined).collect();
        if grads.is_empty() {
            return Ok(true);
        }
        lists::unscale_grads(&grads, factor).map_err(Error::torch)
    }

    /// One step down the gradients. A parameter without a gradient is left alone.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn step(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut due: Vec<(&mut Slot, Tensor)> = self
            .slots
            .iter_mut()
            .map(|slot| {
                let grad = slot.param.grad();
                (slot, grad)
            })
            .filter(|(_, grad)| grad.defined())
            .collect();
        for (slot, _) in &mut due {
            slot.steps += 1;
        }
        if self.fused && due.iter().all(|(slot, grad)| slot.fuses(grad)) {
            return fused_step(&self.config, self.lr, due);
        }
        for (slot, grad) in due {
            let lr = self.lr * slot.lr_scale;
            match &self.config {
                OptimConfig::AdamW(c) => {
                    if slot.weight_decay != 0.0 {
                        let _ = slot.param.f_mul_scalar_(1.0 - lr * slot.weight_decay)?;
                    }
                    slot.adam(&grad, lr, c.betas, c.eps)?;
                }
                OptimConfig::Adam(c) => {
                    let grad = slot.with_decay(grad)?;
                    slot.adam(&grad, lr, c.betas, c.eps)?;
                }
                OptimConfig::Sgd(c) => slot.sgd(grad, lr, c)?,
            }
        }
        Ok(())
    }

    /// Whether steps use libtorch's fused kernels, which they do unless this says otherwise: one pass over memory
    /// for all parameters instead of one per operation and parameter.
    pub fn set_fused(&mut self, fused: bool) {
        self.fused = fused;
    }

    /// The state as named tensors: `<param>.step`, and `<param>.exp_avg` and `<param>.exp_avg_sq` (Adam) or
    /// `<param>.momentum_buffer` (SGD). They share memory with the optimiser: save them before the next step.
    pub fn state(&self) -> Tensors {
        let [first, second] = self.state_names();
        let mut state = Tensors::new();
        for slot in &self.slots {
            let mut put = |what: &str, xs: &Option<Tensor>| {
                if let Some(xs) = xs {
                    state.insert(format!("{}.{what}", slot.name), xs.shallow_clone());
                }
            };
            put(first, &slot.first);
            put(second, &slot.second);
            // Double counts steps exactly, where PyTorch's f32 stops at 16,777,216.
            put("step", &Some(Tensor::from(slot.steps as f64)));
        }
        state
    }

    /// Takes over what [`state`](Self::state) gave, from any device.
    ///
    /// # Errors
    /// [`Error::Config`] listing every tensor that is missing, unexpected or of another shape; the optimiser is
    /// then unchanged.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let [first, second] = self.state_names();
        let mut problems = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        let mut loaded = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let mut take = |what: &str, size: &[i64]| {
                let name = format!("{}.{what}", slot.name);
                let found = state.get(&name);
                if let Some(xs) = found
                    && xs.size() != size
                {
                    problems.push(format!(
                        "{name} has shape {:?} instead of {size:?}",
                        xs.size()
                    ));
                }
                known.insert(name);
                found
            };
            let size = slot.param.size();
            let (steps, a, b) = (take("step", &[]), take(first, &size), take(second, &size));
            let steps = steps
                .filter(|xs| xs.numel() == 1)
                .map(|xs| xs.double_value(&[]));
            let mut missing =
                |what: &str| problems.push(format!("{}.{what} is missing", slot.name));
            if steps.is_none() {
                missing("step");
            }
            let stepped = steps.is_some_and(|steps| steps > 0.0);
            let needs_first = match &self.config {
                OptimConfig::Sgd(c) => stepped && c.momentum != 0.0,
                _ => stepped,
            };
            let needs_second = stepped && !second.is_empty();
            if needs_first && a.is_none() {
                missing(first);
            }
            if needs_second && b.is_none() {
                missing(second);
            }
            loaded.push((steps.unwrap_or(0.0) as u64, a, b));
        }
        let unexpected = state.keys().filter(|name| !known.contains(*name));
        problems.extend(unexpected.map(|name| format!("{name} is unexpected")));
        if !problems.is_empty() {
            let reason = format!("the saved state does not fit: {}", problems.join("; "));
            return Err(Error::config("optim", reason));
        }
        let fresh: Vec<_> = loaded
            .into_iter()
            .zip(&self.slots)
            .map(|((steps, a, b), slot)| {
                let own = |xs: Option<&Tensor>| -> Result<Option<Tensor>> {
                    let Some(xs) = xs else { return Ok(None) };
                    let mut mine = slot.param.f_zeros_like()?;
                    mine.f_copy_(xs)?;
                    Ok(Some(mine))
                };
                Ok((steps, own(a)?, own(b)?))
            })
            .collect::<Result<_>>()?;
        for (slot, (steps, a, b)) in self.slots.iter_mut().zip(fresh) {
            (slot.steps, slot.first, slot.second) = (steps, a, b);
        }
        Ok(())
    }

    /// Names of the two moments; SGD has only one.
    const fn state_names(&self) -> [&'static str; 2] {
        match self.config {
            OptimConfig::Sgd(_) => ["momentum_buffer", ""],
            _ => ["exp_avg", "exp_avg_sq"],
        }
    }
}

impl Slot {
    fn with_decay(&self, grad: Tensor) -> Result<Tensor> {
        if self.weight_decay == 0.0 {
            return Ok(grad);
        }
        add_scaled(&grad, &self.param, self.weight_decay)
    }

    /// Whether libtorch's fused kernels take this parameter: real numbers without gaps in memory, and the gradient's in the same order. Moments are made in the
    /// parameter's order.
    fn fuses(&self, grad: &Tensor) -> bool {
        let real = |xs: &Tensor| matches!(xs.kind(), Kind::Float | Kind::Double);
        let (ours, theirs) = (&self.param, grad);
        let alike = (ours.is_contiguous() && theirs.is_contiguous())
            || (ours.stride() == theirs.stride() && is_dense(ours));
        real(ours)
            && real(theirs)
            && alike
            && matches!(grad.device(), tch::Device::Cpu | tch::Device::Cuda(_))
    }

    /// What the optimiser remembers of the parameter: Adam's two moments, SGD's buffer where there is momentum.
    fn moments(&mut self, config: &OptimConfig) -> Result<[Option<Tensor>; 2]> {
        let Self {
            first,
            second,
            param,
            ..
        } = self;
        Ok(match config {
            OptimConfig::Sgd(c) if c.momentum == 0.0 => [None, None],
            OptimConfig::Sgd(_) => [Some(memory(first, param)?), None],
            _ => [Some(memory(first, param)?), Some(memory(second, param)?)],
        })
    }

    fn adam(&mut self, grad: &Tensor, lr: f64, betas: [f64; 2], eps: f64) -> Result<()> {
        let mut first = memory(&mut self.first, &self.param)?;
        let mut second = memory(&mut self.second, &self.param)?;
        let steps = self.steps as f64;
        let _ = first.f_lerp_(grad, 1.0 - betas[0])?;
        // tch's addcmul_ and addcdiv_ lack `value`; libtorch multiplies it into the first tensor, so doing that
        // beforehand gives the same bits.
        let scaled = grad.f_mul_scalar(1.0 - betas[1])?;
        let _ = second.f_mul_scalar_(betas[1])?.f_addcmul_(&scaled, grad)?;
        let step_size = lr / (1.0 - betas[0].powf(steps));
        let root = (1.0 - betas[1].powf(steps)).powf(0.5);
        let denominator = second.f_sqrt()?.f_div_scalar_(root)?.f_add_scalar_(eps)?;
        let _ = self
            .param
            .f_addcdiv_(&first.f_mul_scalar(-step_size)?, &denominator)?;
        Ok(())
    }

    fn sgd(&mut self, grad: Tensor, lr: f64, config: &SgdConfig) -> Result<()> {
        let grad = self.with_decay(grad)?;
        let step = if config.momentum == 0.0 {
            grad
        } else {
            let buffer = match &mut self.first {
                Some(buffer) => {
                    let mut kept = buffer.f_mul_scalar_(config.momentum)?;
                    add_scaled_(&mut kept, &grad, 1.0 - config.dampening)?;
                    kept
                }
                // Not the gradient itself, which belongs to the graph.
                none => none.insert(copied(&grad)?).shallow_clone(),
            };
            if config.nesterov {
                add_scaled(&grad, &buffer, config.momentum)?
            } else {
                buffer
            }
        };
        add_scaled_(&mut self.param, &step, -lr)
    }
}

/// A moment, zero before the parameter's first step.
fn memory(moment: &mut Option<Tensor>, param: &Tensor) -> Result<Tensor> {
    Ok(match moment {
        Some(xs) => xs.shallow_clone(),
        none => none.insert(param.f_zeros_like()?).shallow_clone(),
    })
}

/// Whether the values lie without gaps or overlap in memory, in whatever order of axes, such as a transpose.
fn is_dense(xs: &Tensor) -> bool {
    let mut axes: Vec<(i64, i64)> = xs
        .stride()
        .into_iter()
        .zip(xs.size())
        .filter(|(_, size)| *size != 1)
        .collect();
    axes.sort_unstable();
    let mut next = 1;
    axes.into_iter().all(|(stride, size)| {
        let fits = stride == next;
        next = stride.saturating_mul(size);
        fits
    })
}

/// A clone in memory of its own.
fn copied(xs: &Tensor) -> Result<Tensor> {
    let mut copy = xs.f_zeros_like()?;
    copy.f_copy_(xs)?;
    Ok(copy)
}

/// `xs + scale · ys`. libtorch's own `add(alpha)` fuses product and sum, as does `addcmul` with a scalar.
fn add_scaled(xs: &Tensor, ys: &Tensor, scale: f64) -> Result<Tensor> {
    Ok(xs.f_addcmul(ys, &scalar_like(xs, scale)?)?)
}

/// `xs += scale · ys`.
fn add_scaled_(xs: &mut Tensor, ys: &Tensor, scale: f64) -> Result<()> {
    let scale = scalar_like(xs, scale)?;
    let _ = xs.f_addcmul_(ys, &scale)?;
    Ok(())
}

fn scalar_like(xs: &Tensor, value: f64) -> Result<Tensor> {
    Ok(Tensor::f_full([], value, (xs.kind(), xs.device()))?)
}
