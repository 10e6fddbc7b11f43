//! Training steps of click models, whose tables hold nearly all parameters and see few of them in a batch.
//!
//! Two modes with results of their own, never to be mixed:
//! - `dense` is `FuxiCTR`'s training, number by number: the regulariser is the sum over whole tables at every step, and Adam's moments
//!   of every row decay at every step. One pass over each table does both.
//! - `lazy` touches the rows that occur in the batch and no others: their moments, and the regulariser on them. Its cost does not
//!   depend on the vocabulary.

use std::collections::BTreeSet;

use densely_core::{Error, Result, Tensors, weights};
use densely_torch_ext::rows::{self, Rows};
use densely_torch_ext::tables::{self, Gradient, Penalty, Step};
use densely_torch_ext::{fused, optim as lists};
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::embedding::is_embedding;
use crate::models::CtrModel;

/// Which rows of a table a step touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All.
    #[default]
    Dense,
    /// Those that occur in the batch.
    Lazy,
}

/// How a step follows from the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Adam (Kingma & Ba 2015); lazily with the number of all steps in its bias correction.
    #[default]
    Adam,
    /// Adagrad (Duchi et al. 2011).
    Adagrad,
}

/// Settings of a step. Defaults are `FuxiCTR`'s. A regulariser adds l1 Σ|w| + l2/2 Σw² to the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Which rows a step touches.
    pub mode: Mode,
    /// Of all parameters.
    pub rule: Rule,
    /// Learning rate per step.
    pub lr: f64,
    /// Decay per step of Adam's two moments.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// On tables, weights of numbers and encoders of given vectors.
    pub embedding_l1: f64,
    /// The same, squared.
    pub embedding_l2: f64,
    /// On everything else.
    pub net_l1: f64,
    /// The same, squared.
    pub net_l2: f64,
    /// λ of mini-batch aware regularisation (DIN, section 5.1): λ/n w is added to the gradient of a row that occurs in the batch, once,
    /// where n counts the row in all of the training set. Only in the lazy mode.
    pub mini_batch_aware: f64,
    /// Gradients are scaled together so that their norm is at most this.
    pub max_norm: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Dense,
            rule: Rule::Adam,
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            embedding_l1: 0.0,
            embedding_l2: 0.0,
            net_l1: 0.0,
            net_l2: 0.0,
            mini_batch_aware: 0.0,
            max_norm: 10.0,
        }
    }
}

impl OptimConfig {
    /// Checks every setting's range.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [
            ("lr", self.lr),
            ("eps", self.eps),
            ("embedding_l1", self.embedding_l1),
            ("embedding_l2", self.embedding_l2),
            ("net_l1", self.net_l1),
            ("net_l2", self.net_l2),
            ("mini_batch_aware", self.mini_batch_aware),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                let reason = format!("must be a finite number of at least 0, got {value}");
                return Err(Error::config(format!("optim.{field}"), reason));
            }
        }
        if self.max_norm.is_nan() || self.max_norm <= 0.0 {
            let reason = format!("must be above 0, got {}", self.max_norm);
            return Err(Error::config("optim.max_norm", reason));
        }
        for beta in self.betas {
            if !(0.0..1.0).contains(&beta) {
                let reason = format!("each must lie in [0, 1), got {beta}");
                return Err(Error::config("optim.betas", reason));
            }
        }
        if self.mini_batch_aware > 0.0 && self.mode == Mode::Dense {
            let reason = "works on the rows of a batch: set mode = \"lazy\"";
            return Err(Error::config("optim.mini_batch_aware", reason));
        }
        Ok(())
    }
}

/// One parameter with its state: Adam's moments, or Adagrad's sum as the second.
#[derive(Debug)]
struct Slot {
    name: String,
    param: Tensor,
    first: Option<Tensor>,
    second: Tensor,
    /// How often each row occurs in the training set.
    counts: Option<Tensor>,
}

/// A gradient as it came from the loss.
#[derive(Debug)]
enum Given {
    Zero,
    Dense(Tensor),
    Rows {
        index: Tensor,
        values: Tensor,
        extra: Option<Tensor>,
    },
}

impl Given {
    fn view(&self) -> Gradient<'_> {
        match self {
            Self::Zero => Gradient::Zero,
            Self::Dense(dense) => Gradient::Dense(dense),
            Self::Rows {
                index,
                values,
                extra,
            } => Gradient::Rows {
                index,
                values,
                extra: extra.as_ref(),
            },
        }
    }
}

/// An optimiser of a click model.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimConfig,
    lr: f64,
    steps: u64,
    slots: Vec<Slot>,
}

impl densely_train::optim::OptimizerState for Optimizer {
    fn state(&self) -> Tensors {
        self.state()
    }

    fn load_state(&mut self, state: &Tensors) -> Result<()> {
        self.load_state(state)
    }
}

impl Optimizer {
    /// An optimiser of the trainable variables of `vs`, in which `model` was built. It has the model give gradients of tables row by row.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of range or there is nothing to train; [`Error::Torch`].
    pub fn new(config: &OptimConfig, vs: &VarStore, model: &CtrModel) -> Result<Self> {
        config.validate()?;
        let variables = weights::named(vs)
            .into_iter()
            .filter(|(_, param)| param.requires_grad());
        let slots: Vec<Slot> = variables
            .map(|(name, param)| {
                let zeros = || param.detach().f_zeros_like();
                let first = (config.rule == Rule::Adam).then(zeros).transpose()?;
                let second = zeros()?;
                Ok(Slot {
                    name,
                    param,
                    first,
                    second,
                    counts: None,
                })
            })
            .collect::<Result<_>>()?;
        if slots.is_empty() {
            return Err(Error::config(
                "optim",
                "the model has no trainable parameter",
            ));
        }
        model.set_sparse(true);
        Ok(Self {
            config: config.clone(),
            lr: config.lr,
            steps: 0,
            slots,
        })
    }

    /// Sets the learning rate.
    pub fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// The learning rate.
    pub const fn lr(&self) -> f64 {
        self.lr
    }

    /// Steps that were made.
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Adds to what mini-batch aware regularisation knows of the tables of `field`: how often each of its ids occurs in the training set,
    /// `[vocabulary]`. Fields that share a table add up when each is given under the name of the field that owns it.
    ///
    /// # Errors
    /// [`Error::Shape`] for another size than the table's; [`Error::Config`] when no table is called so.
    pub fn add_counts(&mut self, field: &str, counts: &Tensor) -> Result<()> {
        let endings = [
            format!("embedding_layers.{field}.weight"),
            format!("embedding_dict.{field}.weight"),
            format!("{field}_emb_w.weight"),
        ];
        let mut found = false;
        for slot in &mut self.slots {
            if !endings.iter().any(|ending| slot.name.ends_with(ending)) || slot.param.dim() != 2 {
                continue;
            }
            densely_core::check::shape(field, counts, &[Some(slot.param.size()[0])])?;
            let counts = counts
                .f_to_kind(slot.param.kind())?
                .f_to_device(slot.param.device())?;
            slot.counts = Some(match &slot.counts {
                Some(before) => before.f_add(&counts)?,
                None => counts,
            });
            found = true;
        }
        if found {
            return Ok(());
        }
        Err(Error::config(
            "mini_batch_aware",
            format!("the model has no table `{field}`"),
        ))
    }

    /// The regulariser's part of the loss: Σ l1 |w| + l2/2 w². Lazily it is that of whole tables too.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn penalty(&self) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let mut total = 0.0;
        for slot in &self.slots {
            let Penalty { l1, l2, .. } = self.penalty_of(slot, true);
            if l1 > 0.0 {
                total += l1
                    * slot
                        .param
                        .f_abs()?
                        .f_sum(Kind::Double)?
                        .f_double_value(&[])?;
            }
            if l2 > 0.0 {
                total += l2 / 2.0
                    * slot
                        .param
                        .f_square()?
                        .f_sum(Kind::Double)?
                        .f_double_value(&[])?;
            }
        }
        Ok(total)
    }

    fn penalty_of(&self, slot: &Slot, all: bool) -> Penalty {
        let c = &self.config;
        let (l1, l2) = if is_embedding(&slot.name) {
            (c.embedding_l1, c.embedding_l2)
        } else {
            (c.net_l1, c.net_l2)
        };
        Penalty { l1, l2, all }
    }

    /// One step down the gradient of `loss` and of the regulariser: the norm of that gradient, before it was clipped.
    ///
    /// # Errors
    /// [`Error::Diverged`] when the loss or the norm is not a finite number, with all weights as they were; [`Error::Config`] when
    /// mini-batch aware regularisation lacks the counts of a table; [`Error::Torch`].
    pub fn step(&mut self, loss: &Tensor) -> Result<f64> {
        let params: Vec<Tensor> = self
            .slots
            .iter()
            .map(|slot| slot.param.shallow_clone())
            .collect();
        lists::clear_grads(&params).map_err(Error::torch)?;
        loss.f_backward()?;
        let _no_grad = tch::no_grad_guard();
        let mut due = Vec::with_capacity(self.slots.len());
        let mut squares = 0.0;
        let gradients = self.gradients()?;
        for (place, (slot, given)) in self.slots.iter().zip(gradients).enumerate() {
            let Some(given) = given else {
                continue;
            };
            let by_row = matches!(given, Given::Rows { .. });
            let penalty = self.penalty_of(slot, self.config.mode == Mode::Dense || !by_row);
            squares += if slot.fuses() {
                tables::squares(&slot.param, given.view(), penalty).map_err(Error::torch)?
            } else {
                let whole = slot.whole(&given, penalty)?;
                whole
                    .grad
                    .f_square()?
                    .f_sum(Kind::Double)?
                    .f_double_value(&[])?
            };
            due.push((place, given, penalty));
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Err(Error::Diverged {
                step: self.steps,
                loss: loss.f_double_value(&[])?,
            });
        }
        self.steps += 1;
        let numbers = self.numbers((self.config.max_norm / (norm + 1e-6)).min(1.0));
        for (place, given, penalty) in due {
            let slot = &mut self.slots[place];
            if slot.fuses() {
                let moments = (slot.first.as_ref(), &slot.second);
                tables::step(&slot.param, given.view(), moments, penalty, numbers)
                    .map_err(Error::torch)?;
            } else {
                let whole = slot.whole(&given, penalty)?;
                slot.step(&whole, numbers)?;
            }
        }
        Ok(norm)
    }

    fn numbers(&self, scale: f64) -> Step {
        let [beta1, beta2] = self.config.betas;
        let steps = self.steps as f64;
        let adam = self.config.rule == Rule::Adam;
        Step {
            scale,
            betas: self.config.betas,
            step: if adam {
                self.lr / (1.0 - beta1.powf(steps))
            } else {
                self.lr
            },
            root: (1.0 - beta2.powf(steps)).sqrt(),
            eps: self.config.eps,
        }
    }

    /// What came from the loss, parameter by parameter; `None` where the step leaves it alone.
    fn gradients(&self) -> Result<Vec<Option<Given>>> {
        let mut due = Vec::new();
        for (place, slot) in self.slots.iter().enumerate() {
            let grad = slot.param.grad();
            if grad.defined() && grad.is_sparse() && slot.fuses() {
                let ids = grad.f_internal_indices()?.f_select(0, 0)?.f_contiguous()?;
                let values = grad.f_internal_values()?.f_contiguous()?;
                due.push((place, ids, values, slot.param.size()[0]));
            }
        }
        let tables: Vec<Rows> = due
            .iter()
            .map(|(_, ids, values, limit)| Rows {
                ids,
                values,
                limit: *limit,
            })
            .collect();
        let sums = rows::sums(&tables).map_err(Error::torch)?;
        let mut summed: Vec<Option<(Tensor, Tensor)>> = self.slots.iter().map(|_| None).collect();
        for ((place, ..), sums) in due.iter().zip(sums) {
            summed[*place] = Some(sums);
        }
        let slots = self.slots.iter().zip(summed);
        slots
            .map(|(slot, summed)| self.gradient(slot, summed))
            .collect()
    }

    /// `summed` are rows and their gradients where they are known already.
    fn gradient(&self, slot: &Slot, summed: Option<(Tensor, Tensor)>) -> Result<Option<Given>> {
        let grad = slot.param.grad();
        if !grad.defined() {
            // The regulariser reaches a whole table that the loss does not.
            let Penalty { l1, l2, .. } = self.penalty_of(slot, true);
            let due = self.config.mode == Mode::Dense && (l1 > 0.0 || l2 > 0.0);
            return Ok(due.then_some(Given::Zero));
        }
        if !grad.is_sparse() {
            return Ok(Some(Given::Dense(grad.f_contiguous()?)));
        }
        let (index, values) = if let Some(both) = summed {
            both
        } else {
            let grad = grad.f_coalesce()?;
            let index = grad.f_indices()?.f_select(0, 0)?;
            (index.f_contiguous()?, grad.f_values()?.f_contiguous()?)
        };
        let extra = if self.config.mini_batch_aware > 0.0 {
            let counts = slot.counts.as_ref().ok_or_else(|| {
                let reason = format!(
                    "the counts of `{}` are missing: call add_counts for its field",
                    slot.name
                );
                Error::config("mini_batch_aware", reason)
            })?;
            let counts = counts.f_index_select(0, &index)?.f_clamp_min(1.0)?;
            Some(
                counts
                    .f_reciprocal()?
                    .f_mul_scalar(self.config.mini_batch_aware)?,
            )
        } else {
            None
        };
        Ok(Some(Given::Rows {
            index,
            values,
            extra,
        }))
    }

    const fn state_names(&self) -> [&'static str; 2] {
        match self.config.rule {
            Rule::Adam => ["exp_avg", "exp_avg_sq"],
            Rule::Adagrad => ["", "sum"],
        }
    }

    /// The state as named tensors: `step`, and `<param>.exp_avg` and `<param>.exp_avg_sq` (Adam) or `<param>.sum` (Adagrad). They share
    /// memory with the optimiser: save them before the next step.
    pub fn state(&self) -> Tensors {
        let [first, second] = self.state_names();
        let mut state = Tensors::from([("step".to_owned(), Tensor::from(self.steps as f64))]);
        for slot in &self.slots {
            if let Some(xs) = &slot.first {
                state.insert(format!("{}.{first}", slot.name), xs.shallow_clone());
            }
            state.insert(
                format!("{}.{second}", slot.name),
                slot.second.shallow_clone(),
            );
        }
        state
    }

    /// Takes over what [`state`](Self::state) gave, from any device.
    ///
    /// # Errors
    /// [`Error::Config`] listing every tensor that is missing, unexpected or of another shape; the optimiser is then unchanged.
    pub fn load_state(&mut self, state: &Tensors) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let own = self.state();
        let mut problems = Vec::new();
        for (name, ours) in &own {
            match state.get(name) {
                None => problems.push(format!("{name} is missing")),
                Some(theirs) if theirs.size() != ours.size() => {
                    problems.push(format!(
                        "{name} has shape {:?} instead of {:?}",
                        theirs.size(),
                        ours.size()
                    ));
                }
                Some(_) => (),
            }
        }
        let known: BTreeSet<&String> = own.keys().collect();
        problems.extend(
            state
                .keys()
                .filter(|name| !known.contains(name))
                .map(|name| format!("{name} is unexpected")),
        );
        if !problems.is_empty() {
            let reason = format!("the saved state does not fit: {}", problems.join("; "));
            return Err(Error::config("optim", reason));
        }
        for (name, mut ours) in own.into_iter().filter(|(name, _)| name != "step") {
            ours.f_copy_(&state[&name])?;
        }
        self.steps = state["step"].f_double_value(&[])? as u64;
        Ok(())
    }
}

/// A gradient with its penalty, of the whole parameter or of the rows in `index`.
struct Whole {
    grad: Tensor,
    index: Option<Tensor>,
}

impl Slot {
    fn fuses(&self) -> bool {
        fused::wanted()
            && self.param.device() == Device::Cpu
            && self.param.kind() == Kind::Float
            && self.param.is_contiguous()
    }

    /// The chain of operations for what the fused one does not take.
    fn whole(&self, given: &Given, penalty: Penalty) -> Result<Whole> {
        let param = self.param.detach();
        let with = |grad: Tensor, param: &Tensor, extra: Option<&Tensor>| -> Result<Tensor> {
            let mut grad = grad;
            if penalty.l2 > 0.0 {
                grad = grad.f_add(&param.f_mul_scalar(penalty.l2)?)?;
            }
            if penalty.l1 > 0.0 {
                grad = grad.f_add(&param.f_sign()?.f_mul_scalar(penalty.l1)?)?;
            }
            match extra {
                Some(extra) => Ok(grad.f_add(&param.f_mul(&extra.f_unsqueeze(1)?)?)?),
                None => Ok(grad),
            }
        };
        Ok(match given {
            Given::Zero => Whole {
                grad: with(param.f_zeros_like()?, &param, None)?,
                index: None,
            },
            Given::Dense(grad) => Whole {
                grad: with(grad.shallow_clone(), &param, None)?,
                index: None,
            },
            Given::Rows { index, values, .. } if penalty.all => {
                let grad = param.f_zeros_like()?.f_index_add(0, index, values)?;
                Whole {
                    grad: with(grad, &param, None)?,
                    index: None,
                }
            }
            Given::Rows {
                index,
                values,
                extra,
            } => {
                let rows = param.f_index_select(0, index)?;
                Whole {
                    grad: with(values.shallow_clone(), &rows, extra.as_ref())?,
                    index: Some(index.shallow_clone()),
                }
            }
        })
    }

    fn step(&mut self, whole: &Whole, numbers: Step) -> Result<()> {
        let Step {
            scale,
            betas: [beta1, beta2],
            step,
            root,
            eps,
        } = numbers;
        let of = |xs: &Tensor| match &whole.index {
            Some(index) => xs.f_index_select(0, index),
            None => Ok(xs.shallow_clone()),
        };
        let put = |to: &Tensor, xs: &Tensor| -> Result<()> {
            let mut to = to.detach();
            match &whole.index {
                Some(index) => to.f_index_copy_(0, index, xs).map(|_| ())?,
                None => to.f_copy_(xs)?,
            }
            Ok(())
        };
        let grad = whole.grad.f_mul_scalar(scale)?;
        let square = grad.f_square()?;
        let (change, second) = if let Some(first) = &self.first {
            let new = of(first)?.f_lerp(&grad, 1.0 - beta1)?;
            put(first, &new)?;
            let second = of(&self.second)?
                .f_mul_scalar(beta2)?
                .f_add(&square.f_mul_scalar(1.0 - beta2)?)?;
            let under = second.f_sqrt()?.f_div_scalar(root)?.f_add_scalar(eps)?;
            (new.f_div(&under)?, second)
        } else {
            let second = of(&self.second)?.f_add(&square)?;
            let under = second.f_sqrt()?.f_add_scalar(eps)?;
            (grad.f_div(&under)?, second)
        };
        put(&self.second, &second)?;
        let param = of(&self.param.detach())?.f_sub(&change.f_mul_scalar(step)?)?;
        put(&self.param, &param)
    }
}
