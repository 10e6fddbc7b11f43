//! Layers with PyTorch's names, defaults and initial values.
//!
//! Each draws its parameters from libtorch's global generator on the CPU, in the order in which PyTorch's
//! module of the same name does, and then moves them to the store's device: with the same
//! `tch::manual_seed` the initial weights are the same bits as PyTorch's, whatever the device. tch's own
//! layers differ (another gain, zero biases, random scales), so models use only these.

use densely_torch_ext::activations::{self, Running};
use densely_torch_ext::fused;
use tch::nn::{Module, ModuleT, Path, VarStore};
use tch::{Device, Kind, Tensor};

use crate::random::draw_seed;
use crate::{Error, Result, check};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// A trainable parameter with the given initial value.
pub fn parameter(vs: &Path, name: &str, value: &Tensor) -> Tensor {
    vs.add(name, value.to_device(vs.device()), true)
}

/// A tensor that is saved with the weights but never trained, such as running statistics or a mask.
pub fn buffer(vs: &Path, name: &str, value: &Tensor) -> Tensor {
    vs.add(name, value.to_device(vs.device()), false)
}

/// Fresh values from U(-bound, bound).
pub fn uniform(size: &[i64], bound: f64) -> Tensor {
    Tensor::empty(size, CPU).uniform_(-bound, bound)
}

/// `vs` at the dotted path `name`, one step per part.
pub fn at<'a>(vs: &Path<'a>, name: &str) -> Path<'a> {
    name.split('.').fold(vs.clone(), |vs, part| vs / part)
}

/// Fails when two parts of a model claimed one name (tch renames the second silently).
///
/// # Errors
/// [`Error::Config`] naming the parameter.
pub fn check_names(vs: &VarStore) -> Result<()> {
    match crate::weights::named(vs)
        .keys()
        .find(|name| name.contains("__"))
    {
        Some(name) => Err(Error::config(
            name.clone(),
            "two parts of the model claim this name",
        )),
        None => Ok(()),
    }
}

/// Casts every floating-point parameter and buffer of the store; masks and counters keep their kind.
pub fn set_float_kind(vs: &VarStore, kind: Kind) {
    let _no_grad = tch::no_grad_guard();
    for (_, mut tensor) in crate::weights::named(vs) {
        if tensor.is_floating_point() {
            let cast = tensor.to_kind(kind);
            tensor.set_data(&cast);
        }
    }
}

/// Number of trainable values in the store.
pub fn parameter_count(vs: &VarStore) -> u64 {
    vs.trainable_variables()
        .iter()
        .filter(|p| p.requires_grad())
        .map(|p| p.numel() as u64)
        .sum()
}

/// `y = x Wᵀ + b` over the last dimension; `torch.nn.Linear`.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

/// A [`Linear`] with bias; weight and bias start at U(±1/√in).
pub fn linear(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    let (weight, bias) = linear_parameters(vs, inputs, outputs);
    Linear {
        weight,
        bias: Some(bias),
    }
}

/// Weight `[out, in]` and bias `[out]` of a [`linear`], for layers that use them in their own way.
pub fn linear_parameters(vs: &Path, inputs: i64, outputs: i64) -> (Tensor, Tensor) {
    let values = uniform(&[outputs, inputs], kaiming_bound(inputs));
    let weight = parameter(vs, "weight", &values);
    let bias = parameter(vs, "bias", &uniform(&[outputs], rsqrt(inputs)));
    (weight, bias)
}

/// A [`Linear`] without bias; the weight starts at U(±1/√in).
pub fn linear_no_bias(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    let weight = parameter(
        vs,
        "weight",
        &uniform(&[outputs, inputs], kaiming_bound(inputs)),
    );
    Linear { weight, bias: None }
}

/// A [`Linear`] as Keras and TensorFlow start it (Glorot, Xavier): weight U(±√(6/(in+out))), bias 0.
pub fn linear_glorot(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    let linear = linear_glorot_no_bias(vs, inputs, outputs);
    let bias = parameter(vs, "bias", &Tensor::zeros([outputs], CPU));
    Linear {
        bias: Some(bias),
        ..linear
    }
}

/// A [`linear_glorot`] without bias.
pub fn linear_glorot_no_bias(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    let bound = (6.0 / (inputs + outputs) as f64).sqrt();
    let weight = parameter(vs, "weight", &uniform(&[outputs, inputs], bound));
    Linear { weight, bias: None }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.linear(&self.weight, self.bias.as_ref())
    }
}

/// 1/√n, as PyTorch computes the bound of biases.
fn rsqrt(n: i64) -> f64 {
    if n > 0 { 1.0 / (n as f64).sqrt() } else { 0.0 }
}

/// The bound of `kaiming_uniform_(a=√5)`: 1/√n in exact arithmetic. Computed in PyTorch's order, so that the
/// rounding, and with it every bit of the initial weights, is the same.
fn kaiming_bound(fan_in: i64) -> f64 {
    if fan_in == 0 {
        return 0.0;
    }
    let a = 5f64.sqrt();
    let gain = (2.0 / (1.0 + a * a)).sqrt();
    3f64.sqrt() * (gain / (fan_in as f64).sqrt())
}

/// The same pictures with the channels of each pixel side by side in memory ("channels last"), as convolutions on GPUs
/// with tensor cores and in bf16 are fastest. They keep it: one call at the input is enough.
///
/// # Shapes
/// `[batch, channels, height, width]`, and so it stays: only the order in memory changes.
/// # Errors
/// [`Error::Shape`] for another number of dimensions; [`Error::Torch`].
pub fn channels_last(xs: &Tensor) -> Result<Tensor> {
    check::shape("pictures", xs, &[None; 4])?;
    Ok(xs
        .f_permute([0, 2, 3, 1])?
        .f_contiguous()?
        .f_permute([0, 3, 1, 2])?)
}

/// How a convolution slides; the same along every axis. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvConfig {
    /// Step between windows.
    pub stride: i64,
    /// Zeros added at each end.
    pub padding: i64,
    /// Distance between the taps of a window.
    pub dilation: i64,
    /// Groups of channels that do not mix.
    pub groups: i64,
    /// Whether a bias is added.
    pub bias: bool,
}

impl Default for ConvConfig {
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
            bias: true,
        }
    }
}

/// Convolution over the last axis of `[batch, channels, length]` or the last two of
/// `[batch, channels, height, width]`; `torch.nn.Conv1d`, `torch.nn.Conv2d`.
#[derive(Debug)]
pub struct Conv {
    /// `[out, in/groups, kernel]` or `[out, in/groups, kernel, kernel]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    config: ConvConfig,
}

impl Conv {
    /// A convolution of parameters that were made elsewhere; [`ConvConfig::bias`] is not looked at.
    pub const fn of(weight: Tensor, bias: Option<Tensor>, config: ConvConfig) -> Self {
        Self {
            weight,
            bias,
            config,
        }
    }
}

fn conv(vs: &Path, outputs: i64, window: &[i64], config: ConvConfig) -> Conv {
    let fan_in: i64 = window.iter().product();
    let size: Vec<i64> = [outputs].iter().chain(window).copied().collect();
    let weight = parameter(vs, "weight", &uniform(&size, kaiming_bound(fan_in)));
    let bias = config
        .bias
        .then(|| parameter(vs, "bias", &uniform(&[outputs], rsqrt(fan_in))));
    Conv {
        weight,
        bias,
        config,
    }
}

/// A one-dimensional [`Conv`]; weight and bias start at U(±1/√fan-in).
pub fn conv1d(vs: &Path, inputs: i64, outputs: i64, kernel: i64, config: ConvConfig) -> Conv {
    conv(vs, outputs, &[inputs / config.groups, kernel], config)
}

/// A two-dimensional [`Conv`] with a square kernel; weight and bias start at U(±1/√fan-in).
pub fn conv2d(vs: &Path, inputs: i64, outputs: i64, kernel: i64, config: ConvConfig) -> Conv {
    conv(
        vs,
        outputs,
        &[inputs / config.groups, kernel, kernel],
        config,
    )
}

impl Module for Conv {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let ConvConfig {
            stride,
            padding,
            dilation,
            groups,
            ..
        } = self.config;
        let bias = self.bias.as_ref();
        if self.weight.dim() == 3 {
            xs.conv1d(&self.weight, bias, [stride], [padding], [dilation], groups)
        } else {
            xs.conv2d(
                &self.weight,
                bias,
                [stride, stride],
                [padding, padding],
                [dilation, dilation],
                groups,
            )
        }
    }
}

/// Normalises the last dimensions to mean 0 and variance 1, then scales and shifts; `torch.nn.LayerNorm`.
#[derive(Debug)]
pub struct LayerNorm {
    /// Starts at 1.
    pub weight: Tensor,
    /// Starts at 0.
    pub bias: Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// A [`LayerNorm`] over the last `size.len()` dimensions. PyTorch's default `eps` is 1e-5.
pub fn layer_norm(vs: &Path, size: &[i64], eps: f64) -> LayerNorm {
    let weight = parameter(vs, "weight", &Tensor::ones(size, CPU));
    let bias = parameter(vs, "bias", &Tensor::zeros(size, CPU));
    LayerNorm { weight, bias, eps }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            true,
        )
    }
}

/// Normalises groups of channels of each sample; `torch.nn.GroupNorm`.
#[derive(Debug)]
pub struct GroupNorm {
    /// `[channels]`, starts at 1.
    pub weight: Tensor,
    /// `[channels]`, starts at 0.
    pub bias: Tensor,
    groups: i64,
    eps: f64,
}

/// A [`GroupNorm`]; `groups` divides `channels`. PyTorch's default `eps` is 1e-5.
pub fn group_norm(vs: &Path, groups: i64, channels: i64, eps: f64) -> GroupNorm {
    let weight = parameter(vs, "weight", &Tensor::ones([channels], CPU));
    let bias = parameter(vs, "bias", &Tensor::zeros([channels], CPU));
    GroupNorm {
        weight,
        bias,
        groups,
        eps,
    }
}

impl Module for GroupNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        xs.group_norm(
            self.groups,
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            true,
        )
    }
}

/// Normalises each channel over the batch and all other axes; in training by the batch's own statistics,
/// which it also averages; `torch.nn.BatchNorm1d` and `BatchNorm2d`.
#[derive(Debug)]
pub struct BatchNorm {
    /// `[channels]`, starts at 1.
    pub weight: Tensor,
    /// `[channels]`, starts at 0.
    pub bias: Tensor,
    /// `[channels]`, starts at 0.
    pub running_mean: Tensor,
    /// `[channels]`, starts at 1; PyTorch averages the unbiased variance.
    pub running_var: Tensor,
    batches: Tensor,
    momentum: f64,
    eps: f64,
}

/// A [`BatchNorm`]. PyTorch's defaults: `momentum` 0.1 (the weight of the new batch), `eps` 1e-5.
pub fn batch_norm(vs: &Path, channels: i64, momentum: f64, eps: f64) -> BatchNorm {
    let (ones, zeros) = (
        Tensor::ones([channels], CPU),
        Tensor::zeros([channels], CPU),
    );
    BatchNorm {
        weight: parameter(vs, "weight", &ones.copy()),
        bias: parameter(vs, "bias", &zeros.copy()),
        running_mean: buffer(vs, "running_mean", &zeros),
        running_var: buffer(vs, "running_var", &ones),
        batches: buffer(vs, "num_batches_tracked", &Tensor::from(0i64)),
        momentum,
        eps,
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.count(train);
        xs.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            self.momentum,
            self.eps,
            true,
        )
    }
}

impl BatchNorm {
    /// `dropout(relu(norm(xs)))` of `xs` `[rows, channels]`; for f32 on the CPU in one operation.
    pub fn relu_dropout_t(&self, xs: &Tensor, p: f64, train: bool) -> Tensor {
        let fuses = fused::enabled_for_f32(&[xs, &self.weight, &self.running_mean])
            && xs.dim() == 2
            && (!train || xs.size()[0] > 1);
        if fuses && let Ok(ys) = self.fused_relu_dropout(xs, p, train) {
            self.count(train);
            return ys;
        }
        dropout(&self.forward_t(xs, train).relu(), p, train)
    }

    fn fused_relu_dropout(
        &self,
        xs: &Tensor,
        p: f64,
        train: bool,
    ) -> std::result::Result<Tensor, String> {
        let p = if train { p } else { 0.0 };
        let seed = if p > 0.0 { draw_seed() } else { 0 };
        let affine = [&self.weight, &self.bias];
        let running = Running {
            mean: &self.running_mean,
            variance: &self.running_var,
            eps: self.eps,
            momentum: self.momentum,
        };
        activations::norm_relu(xs, affine, running, p, seed, train)
    }

    fn count(&self, train: bool) {
        if train {
            let _no_grad = tch::no_grad_guard();
            let _ = self.batches.shallow_clone().g_add_scalar_(1);
        }
    }
}

/// In training each value with probability 1 - `p` times 1 / (1 - p), else 0; `torch.nn.functional.dropout`. For f32 on the CPU on all
/// threads, where libtorch draws its mask on one.
pub fn dropout(xs: &Tensor, p: f64, train: bool) -> Tensor {
    if !train || p <= 0.0 {
        return xs.shallow_clone();
    }
    let fuses = p < 1.0 && fused::enabled_for_f32(&[xs]);
    if fuses && let Ok(ys) = activations::dropout(xs, p, draw_seed()) {
        return ys;
    }
    xs.dropout(p, true)
}

/// A row per integer; `torch.nn.Embedding`.
#[derive(Debug)]
pub struct Embedding {
    /// `[rows, dim]`, starts at N(0, 1).
    pub weight: Tensor,
}

/// An [`Embedding`] of `rows` rows.
pub fn embedding(vs: &Path, rows: i64, dim: i64) -> Embedding {
    let weight = Tensor::empty([rows, dim], CPU).normal_(0.0, 1.0);
    Embedding {
        weight: parameter(vs, "weight", &weight),
    }
}

impl Module for Embedding {
    fn forward(&self, xs: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, xs, -1, false, false)
    }
}
