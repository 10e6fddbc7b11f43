//! Blocks of the click models: MLPs by each reference's names and first weights, and Dice.

use densely_core::nn::{self, BatchNorm, Linear, at, buffer, parameter};
use densely_core::{Error, Result};
use densely_torch_ext::activations::{self, Running};
use densely_torch_ext::{fused, rows};
use serde::{Deserialize, Serialize};
use tch::nn::{ModuleT, Path};
use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// What stands behind a hidden layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// max(x, 0), with gradient 0 at 0.
    #[serde(alias = "ReLU")]
    Relu,
    /// 1 / (1 + e^-x).
    #[serde(alias = "Sigmoid")]
    Sigmoid,
    /// The hyperbolic tangent.
    #[serde(alias = "Tanh")]
    Tanh,
    /// x above 0 and a trained multiple of it below.
    #[serde(alias = "PReLU")]
    Prelu,
    /// [`Dice`].
    #[serde(alias = "Dice")]
    Dice,
}

/// Whose equations a model follows where released codes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The authors' TensorFlow code, `zhougr1993/DeepInterestNetwork`.
    Authors,
    /// `FuxiCTR` 2.3.10, in which the public benchmarks were run.
    #[default]
    Fuxictr,
    /// `DeepCTR-Torch` 0.3.0.
    Deepctr,
}

/// What the authors' variant normalises by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BnMode {
    /// By mean 0 and variance 1, as the released code does, which never takes its batch norms into training.
    #[default]
    Frozen,
    /// By the batch in training and by running averages in evaluation, as the paper says.
    Batch,
}

/// The authors' batch norms: TensorFlow's `eps`, and its momentum 0.99 as the weight of the new batch.
const TF_EPS: f64 = 1e-3;
const TF_MOMENTUM: f64 = 0.01;

/// A batch norm of the authors' variant: γ x̂ + β.
#[derive(Debug)]
pub struct AuthorsNorm {
    norm: BatchNorm,
    mode: BnMode,
}

impl AuthorsNorm {
    /// Creates the parameters under `vs`.
    pub fn new(vs: &Path, channels: i64, mode: BnMode) -> Self {
        Self {
            norm: nn::batch_norm(vs, channels, TF_MOMENTUM, TF_EPS),
            mode,
        }
    }
}

impl ModuleT for AuthorsNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.norm.forward_t(xs, train && self.mode == BnMode::Batch)
    }
}

/// Data-adaptive activation: p x + (1 - p) α x, where p = σ(x̂) and x̂ is x normalised over the rows.
///
/// Zhou et al. 2018, equation 3. In training x̂ takes mean and variance of the batch, padded positions of a history included;
/// in evaluation their running averages. α starts at 0.
///
/// | variant | p | eps | weight of the new batch |
/// | --- | --- | --- | --- |
/// | `fuxictr` | σ(x̂) | 1e-9 | 0.01 |
/// | `deepctr` | σ(γ x̂ + β), both trained | 1e-8 | 0.1 |
/// | `authors` | σ(β x̂), β starts at 0 | 1e-3 | 0.01, or no statistics at all ([`BnMode`]) |
#[derive(Debug)]
pub struct Dice {
    /// `[channels]`, in `deepctr` histories `[channels, 1]`.
    alpha: Tensor,
    /// `[channels]`, of the authors.
    beta: Option<Tensor>,
    /// γ and β of `deepctr`, `[channels]` each.
    affine: Option<(Tensor, Tensor)>,
    mean: Tensor,
    variance: Tensor,
    batches: Tensor,
    momentum: f64,
    eps: f64,
    frozen: bool,
}

impl Dice {
    /// Creates the parameters under `vs`. `history` is for `deepctr`, whose α has another shape there.
    pub fn new(vs: &Path, channels: i64, variant: Variant, mode: BnMode, history: bool) -> Self {
        let zeros = Tensor::zeros([channels], CPU);
        let alpha = if variant == Variant::Deepctr && history {
            Tensor::zeros([channels, 1], CPU)
        } else {
            zeros.copy()
        };
        let norm = vs / "bn";
        let (momentum, eps) = match variant {
            Variant::Authors => (TF_MOMENTUM, TF_EPS),
            Variant::Fuxictr => (0.01, 1e-9),
            Variant::Deepctr => (0.1, 1e-8),
        };
        Self {
            alpha: parameter(vs, "alpha", &alpha),
            beta: (variant == Variant::Authors).then(|| parameter(vs, "beta", &zeros.copy())),
            affine: (variant == Variant::Deepctr).then(|| {
                (
                    parameter(&norm, "weight", &Tensor::ones([channels], CPU)),
                    parameter(&norm, "bias", &zeros.copy()),
                )
            }),
            mean: buffer(&norm, "running_mean", &zeros),
            variance: buffer(&norm, "running_var", &Tensor::ones([channels], CPU)),
            batches: buffer(&norm, "num_batches_tracked", &Tensor::from(0i64)),
            momentum,
            eps,
            frozen: variant == Variant::Authors && mode == BnMode::Frozen,
        }
    }

    /// Channels that it takes.
    pub fn channels(&self) -> i64 {
        self.mean.size()[0]
    }

    /// Kind of its parameters.
    pub fn kind(&self) -> Kind {
        self.alpha.kind()
    }
}

impl Dice {
    /// The chain of operations that [`forward_t`](ModuleT::forward_t) computes in one.
    fn plain(&self, xs: &Tensor, batch: bool) -> Tensor {
        let (weight, bias) = self
            .affine
            .as_ref()
            .map_or((None, None), |(weight, bias)| (Some(weight), Some(bias)));
        let (mean, variance) = (Some(&self.mean), Some(&self.variance));
        let normed = xs.batch_norm(
            weight,
            bias,
            mean,
            variance,
            batch,
            self.momentum,
            self.eps,
            true,
        );
        let p = match &self.beta {
            Some(beta) => (beta * normed).sigmoid(),
            None => normed.sigmoid(),
        };
        let alpha = self.alpha.flatten(0, -1);
        &p * xs + alpha * (p.ones_like() - &p) * xs
    }

    fn running(&self) -> Running<'_> {
        Running {
            mean: &self.mean,
            variance: &self.variance,
            eps: self.eps,
            momentum: self.momentum,
        }
    }

    fn fuses(&self, xs: &Tensor, batch: bool) -> bool {
        self.beta.is_none()
            && self.affine.is_none()
            && fused::enabled_for_f32(&[xs, &self.alpha])
            && xs.dim() == 2
            && (!batch || xs.size()[0] > 1)
    }
}

impl Dice {
    /// In evaluation of `xs + by_step + by_row` (`[rows · steps, channels]`, `[steps, channels]`, `[rows, channels]`); into `xs` where one
    /// operation does it.
    fn of_sum(&self, mut xs: Tensor, by_step: &Tensor, by_row: Option<&Tensor>) -> Tensor {
        let fuses = self.fuses(&xs, false) && !fused::records_gradients();
        if fuses
            && activations::dice_onto(&mut xs, by_step, by_row, &self.alpha, self.running()).is_ok()
        {
            return xs;
        }
        added(&xs, by_step, by_row).apply_t(self, false)
    }
}

/// `xs + by_step + by_row`, as [`Dice::of_sum`] has them.
fn added(xs: &Tensor, by_step: &Tensor, by_row: Option<&Tensor>) -> Tensor {
    let mut sum = xs.unflatten(0, [-1, by_step.size()[0]]) + by_step;
    if let Some(by_row) = by_row {
        sum += by_row.unsqueeze(1);
    }
    sum.flatten(0, 1)
}

impl ModuleT for Dice {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let batch = train && !self.frozen;
        if batch {
            let _no_grad = tch::no_grad_guard();
            let _ = self.batches.shallow_clone().g_add_scalar_(1);
        }
        if self.fuses(xs, batch) {
            // What the chain refuses, a single row in training, is left to it.
            if let Ok(ys) = activations::dice(xs, &self.alpha, self.running(), batch) {
                return ys;
            }
        }
        self.plain(xs, batch)
    }
}

/// An [`Activation`] with its parameters.
#[derive(Debug)]
enum Nonlinear {
    Relu,
    Sigmoid,
    Tanh,
    Prelu(Tensor),
    Dice(Dice),
}

impl ModuleT for Nonlinear {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Relu => xs.relu(),
            Self::Sigmoid => xs.sigmoid(),
            Self::Tanh => xs.tanh(),
            Self::Prelu(weight) => xs.prelu(weight),
            Self::Dice(dice) => xs.apply_t(dice, train),
        }
    }
}

/// `xs Wᵀ + b` over the last dimension, for f32 on the CPU by the faster of the machine's matrix products.
pub(crate) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let fuses = fused::enabled_for_f32(&[xs, weight]) && xs.dim() == 2;
    if fuses && let Ok(ys) = fused::linear(xs, weight, bias) {
        return ys;
    }
    xs.linear(weight, bias)
}

/// The ids below `limit` that occur among `ids` `[n]`, ascending, and the place of each of them there, `[n]`.
pub(crate) fn distinct(ids: &Tensor, limit: i64) -> (Tensor, Tensor) {
    if fused::wanted()
        && ids.device() == Device::Cpu
        && let Ok(found) = rows::distinct(ids, limit)
    {
        return found;
    }
    let (ids, place, _) = ids.internal_unique2(true, true, false);
    (ids, place)
}

/// Rows `place` `[n]` of `xs` `[m, dim]`.
pub(crate) fn repeat(xs: &Tensor, place: &Tensor) -> Tensor {
    if fused::enabled_for_f32(&[xs])
        && let Ok(ys) = rows::repeat(xs, place)
    {
        return ys;
    }
    xs.index_select(0, place)
}

fn apply(layer: &Linear, xs: &Tensor) -> Tensor {
    linear(xs, &layer.weight, layer.bias.as_ref())
}

/// A linear layer with weight N(0, 2/(in+out)) (Xavier) and bias 0, as `FuxiCTR` starts all of them.
pub fn xavier_linear(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    Linear {
        weight: xavier(vs, inputs, outputs),
        bias: Some(parameter(vs, "bias", &Tensor::zeros([outputs], CPU))),
    }
}

/// A [`xavier_linear`] without bias.
pub fn xavier_linear_no_bias(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    Linear {
        weight: xavier(vs, inputs, outputs),
        bias: None,
    }
}

fn xavier(vs: &Path, inputs: i64, outputs: i64) -> Tensor {
    let std = (2.0 / (inputs + outputs) as f64).sqrt();
    parameter(
        vs,
        "weight",
        &Tensor::empty([outputs, inputs], CPU).normal_(0.0, std),
    )
}

/// A linear layer with weight N(0, 1e-4) and PyTorch's bias, as `DeepCTR-Torch` starts hidden ones.
fn deepctr_linear(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    Linear {
        weight: parameter(
            vs,
            "weight",
            &Tensor::empty([outputs, inputs], CPU).normal_(0.0, 1e-4),
        ),
        bias: Some(parameter(
            vs,
            "bias",
            &nn::uniform(&[outputs], 1.0 / (inputs as f64).sqrt()),
        )),
    }
}

/// How the layers of an [`Mlp`] are called and start; each is the way of one reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `FuxiCTR`: all modules in one sequence, `mlp.0`, `mlp.1`, …, places of dropouts counted where p is above 0.
    Sequence,
    /// `DeepCTR-Torch`: `linears.0`, `bn.0`, `activation_layers.0`, ….
    Lists {
        /// Whether the input is a history, where Dice has another shape.
        history: bool,
    },
    /// The authors: `f1_att`, `f2_att`, … in the attention, `f1`, `dice_1`, … in the tail.
    Numbered(&'static str),
}

/// Sizes of an [`Mlp`].
#[derive(Debug, Clone, Copy)]
pub struct MlpSpec<'a> {
    /// Width of the input.
    pub inputs: i64,
    /// Widths of the hidden layers.
    pub hidden: &'a [i64],
    /// Behind each of them.
    pub activation: Activation,
    /// Whether a batch norm stands before each activation.
    pub batch_norm: bool,
    /// Probability behind each of them.
    pub dropout: f64,
    /// Whether dropout runs; names stay either way.
    pub dropout_on: bool,
    /// Width of a last linear layer, where there is one.
    pub output: Option<i64>,
    /// Names and first weights.
    pub names: Names,
    /// Of [`Dice`].
    pub bn_mode: BnMode,
}

impl MlpSpec<'_> {
    /// Multiply-accumulates of all its matrix products for one row.
    pub fn macs(&self) -> i64 {
        let mut inputs = self.inputs;
        let mut macs = 0;
        for outputs in self.hidden.iter().copied().chain(self.output) {
            macs += inputs * outputs;
            inputs = outputs;
        }
        macs
    }

    /// Creates the parameters under `vs`.
    pub fn build(&self, vs: &Path) -> Mlp {
        self.build_beside(vs, vs)
    }

    /// Creates the parameters under `vs`, and those of the last layer of [`Names::Lists`] under `last`.
    pub fn build_beside(&self, vs: &Path, last: &Path) -> Mlp {
        let mut inputs = self.inputs;
        let mut place = 0;
        let mut next = || {
            place += 1;
            at(vs, &format!("mlp.{}", place - 1))
        };
        let mut hidden = Vec::with_capacity(self.hidden.len());
        for (index, &outputs) in self.hidden.iter().enumerate() {
            hidden.push(match self.names {
                Names::Sequence => {
                    let linear = xavier_linear(&next(), inputs, outputs);
                    let norm = self
                        .batch_norm
                        .then(|| nn::batch_norm(&next(), outputs, 0.1, 1e-5));
                    let act = self.nonlinear(&next(), outputs);
                    if self.dropout > 0.0 {
                        let _no_parameters = next();
                    }
                    self.layer(linear, norm, act)
                }
                Names::Lists { .. } => {
                    let of = |list: &str| at(vs, &format!("{list}.{index}"));
                    let linear = deepctr_linear(&of("linears"), inputs, outputs);
                    let norm = self
                        .batch_norm
                        .then(|| nn::batch_norm(&of("bn"), outputs, 0.1, 1e-5));
                    self.layer(
                        linear,
                        norm,
                        self.nonlinear(&of("activation_layers"), outputs),
                    )
                }
                Names::Numbered(suffix) => {
                    let number = index + 1;
                    let linear =
                        nn::linear_glorot(&(vs / format!("f{number}{suffix}")), inputs, outputs);
                    let act = self.nonlinear(&(vs / format!("dice_{number}{suffix}")), outputs);
                    self.layer(linear, None, act)
                }
            });
            inputs = outputs;
        }
        let output = self.output.map(|outputs| match self.names {
            Names::Sequence => xavier_linear(&next(), inputs, outputs),
            Names::Lists { .. } => nn::linear(&(last / "dense"), inputs, outputs),
            Names::Numbered(suffix) => nn::linear_glorot(
                &(vs / format!("f{}{suffix}", self.hidden.len() + 1)),
                inputs,
                outputs,
            ),
        });
        Mlp { hidden, output }
    }

    fn layer(&self, linear: Linear, norm: Option<BatchNorm>, act: Nonlinear) -> Hidden {
        let dropout = if self.dropout_on { self.dropout } else { 0.0 };
        Hidden {
            linear,
            norm,
            act,
            dropout,
        }
    }

    fn nonlinear(&self, vs: &Path, channels: i64) -> Nonlinear {
        let (variant, history) = match self.names {
            Names::Sequence => (Variant::Fuxictr, false),
            Names::Lists { history } => (Variant::Deepctr, history),
            Names::Numbered(_) => (Variant::Authors, false),
        };
        match self.activation {
            Activation::Relu => Nonlinear::Relu,
            Activation::Sigmoid => Nonlinear::Sigmoid,
            Activation::Tanh => Nonlinear::Tanh,
            Activation::Prelu => {
                let weight = match variant {
                    Variant::Deepctr => Tensor::full([1], 0.25, CPU),
                    _ => Tensor::full([channels], 0.1, CPU),
                };
                Nonlinear::Prelu(parameter(vs, "weight", &weight))
            }
            Activation::Dice => {
                Nonlinear::Dice(Dice::new(vs, channels, variant, self.bn_mode, history))
            }
        }
    }
}

/// Linear layers, each but the last with batch norm, activation and dropout as its [`MlpSpec`] says.
#[derive(Debug)]
pub struct Mlp {
    hidden: Vec<Hidden>,
    output: Option<Linear>,
}

#[derive(Debug)]
struct Hidden {
    linear: Linear,
    norm: Option<BatchNorm>,
    act: Nonlinear,
    dropout: f64,
}

impl Mlp {
    /// The first linear layer, sharing its parameters.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no layer at all.
    pub fn first(&self) -> Result<Linear> {
        let hidden = self.hidden.first().map(|layer| &layer.linear);
        let first = hidden.or(self.output.as_ref());
        let first =
            first.ok_or_else(|| Error::config("hidden_units", "must have at least one layer"))?;
        Ok(Linear {
            weight: first.weight.shallow_clone(),
            bias: first.bias.as_ref().map(Tensor::shallow_clone),
        })
    }

    /// All that follows the first linear layer: `[rows, width of the first layer]` → `[rows, outputs]`.
    pub fn after_first(&self, xs: &Tensor, train: bool) -> Tensor {
        let Some((first, rest)) = self.hidden.split_first() else {
            return xs.shallow_clone();
        };
        self.finish(first.finish(xs, train), rest, train)
    }

    /// In evaluation, all that follows the first linear layer, whose output is `xs + by_step + by_row`: `[rows · steps, width]`,
    /// `[steps, width]`, `[rows, width]` → `[rows · steps, outputs]`.
    pub fn after_first_of(&self, xs: Tensor, by_step: &Tensor, by_row: &Tensor) -> Tensor {
        let Some((first, rest)) = self.hidden.split_first() else {
            return added(&xs, by_step, Some(by_row));
        };
        let mut xs = first.finish_sum(xs, by_step, Some(by_row));
        for layer in rest {
            let Linear { weight, bias } = &layer.linear;
            xs = match bias {
                Some(bias) => layer.finish_sum(linear(&xs, weight, None), &bias.unsqueeze(0), None),
                None => layer.forward(&xs, false),
            };
        }
        self.finish(xs, &[], false)
    }

    fn finish(&self, mut xs: Tensor, rest: &[Hidden], train: bool) -> Tensor {
        for layer in rest {
            xs = layer.forward(&xs, train);
        }
        match &self.output {
            Some(output) => apply(output, &xs),
            None => xs,
        }
    }
}

impl ModuleT for Mlp {
    /// `[rows, inputs]` → `[rows, outputs]`.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.finish(xs.shallow_clone(), &self.hidden, train)
    }
}

impl Hidden {
    fn forward(&self, xs: &Tensor, train: bool) -> Tensor {
        self.finish(&apply(&self.linear, xs), train)
    }

    /// What follows the linear layer in evaluation, of a sum as [`Dice::of_sum`] has it.
    fn finish_sum(&self, xs: Tensor, by_step: &Tensor, by_row: Option<&Tensor>) -> Tensor {
        match (&self.norm, &self.act) {
            (None, Nonlinear::Dice(dice)) => dice.of_sum(xs, by_step, by_row),
            _ => self.finish(&added(&xs, by_step, by_row), false),
        }
    }

    /// What follows the linear layer.
    fn finish(&self, xs: &Tensor, train: bool) -> Tensor {
        let xs = match (&self.norm, &self.act) {
            (Some(norm), Nonlinear::Relu) => return norm.relu_dropout_t(xs, self.dropout, train),
            (Some(norm), act) => xs.apply_t(norm, train).apply_t(act, train),
            (None, act) => xs.apply_t(act, train),
        };
        nn::dropout(&xs, self.dropout, train)
    }
}
