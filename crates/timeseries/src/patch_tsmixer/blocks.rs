//! The layers of a PatchTSMixer, outer to inner.

use densely_core::nn::{self, BatchNorm, LayerNorm, Linear};
use densely_core::random::draw_seed;
use densely_core::{Error, Result};
use densely_torch_ext::fused;
use tch::nn::{Module, ModuleT, Path};
use tch::{Kind, Tensor};

use super::Features;
use super::config::{NormKind, PatchTsMixerConfig};
use crate::layers::linear_from;

/// What a layer is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Channels, C.
    pub(crate) channels: i64,
    /// Patches, n.
    pub(crate) patches: i64,
    /// Features of a patch, d.
    pub(crate) d_model: i64,
    /// Hidden width of the MLPs in units of their input, e.
    pub(crate) expansion: i64,
    /// Probability of dropping an activation.
    pub(crate) dropout: f64,
    /// Whether a block over the channels opens the layer.
    pub(crate) mix_channels: bool,
    /// Whether there is a block over the patches.
    pub(crate) mix_patches: bool,
    /// Whether the blocks have gates.
    pub(crate) gates: bool,
    /// What is normalised before each block.
    pub(crate) norm: NormKind,
    /// Added to the variance in the norms.
    pub(crate) norm_eps: f64,
    /// Heads of the attention among patches; `None` for none.
    pub(crate) attention_heads: Option<i64>,
    /// Standard deviation of the initial weights; `None` starts them as PyTorch does.
    pub(crate) init_std: Option<f64>,
}

impl Sizes {
    /// A linear layer with this model's initial weights.
    pub(crate) fn linear(&self, vs: &Path, inputs: i64, outputs: i64) -> Linear {
        linear_from(vs, inputs, outputs, self.init_std)
    }

    /// Multiply-accumulates of a layer's matrix products for one window.
    pub(crate) fn macs(&self) -> i64 {
        let (c, n, d) = (self.channels, self.patches, self.d_model);
        let products = 2 * self.expansion + i64::from(self.gates); // of an MLP and its gate, in units of width²
        let patches = i64::from(self.mix_patches) * products * d * n * n;
        let attention = i64::from(self.mix_patches && self.attention_heads.is_some())
            * (4 * n * d * d + 2 * n * n * d);
        let channels = i64::from(self.mix_channels) * products * c * c * n * d;
        c * (patches + products * n * d * d + attention) + channels
    }
}

#[derive(Debug)]
pub(crate) struct Layer {
    channels: Option<ChannelBlock>,
    patches: Option<PatchBlock>,
    features: FeatureBlock,
}

impl Layer {
    pub(crate) fn new(vs: &Path, sizes: &Sizes) -> Self {
        let channels = || ChannelBlock::new(&(vs / "channel_feature_mixer"), sizes);
        let patches = || PatchBlock::new(&(vs / "patch_mixer"), sizes);
        Self {
            channels: sizes.mix_channels.then(channels),
            patches: sizes.mix_patches.then(patches),
            features: FeatureBlock::new(&(vs / "feature_mixer"), sizes),
        }
    }
}

impl Layer {
    /// `[batch, channels, patches, d]`, mixed.
    ///
    /// On the CPU one fused operation does a block whose norm is that of the layer and whose mixing is gated, as in all presets.
    /// # Errors
    /// [`Error::Torch`].
    pub(crate) fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = match &self.channels {
            Some(channels) => channels.forward_t(xs, train),
            None => xs.shallow_clone(),
        };
        let xs = match &self.patches {
            Some(patches) => patches.forward(&xs, train)?,
            None => xs,
        };
        self.features.forward(&xs, train)
    }
}

/// The parameters as the fused operation takes them, where it may run.
fn fused_block<'a>(
    norm: &'a Norm,
    mlp: &'a Mlp,
    gate: Option<&'a Gate>,
    along_features: bool,
) -> Option<fused::PatchBlock<'a>> {
    let of = |linear: &'a Linear| Some([&linear.weight, linear.bias.as_ref()?]);
    let (Norm::Layer(norm), Some(Gate(gate))) = (norm, gate) else {
        return None;
    };
    fused::enabled_without_autocast(&mlp.fc1.weight).then_some(fused::PatchBlock {
        norm: [&norm.weight, &norm.bias],
        fc1: of(&mlp.fc1)?,
        fc2: of(&mlp.fc2)?,
        gate: of(gate)?,
        eps: norm.eps,
        along_features,
    })
}

fn mix(xs: &Tensor, block: &fused::PatchBlock, dropout: f64, train: bool) -> Result<Tensor> {
    let dropout = if train { dropout } else { 0.0 };
    let seed = if dropout > 0.0 { draw_seed() } else { 0 };
    fused::mix_patches(xs, block, dropout, seed).map_err(Error::torch)
}

#[derive(Debug)]
struct ChannelBlock {
    norm: Norm,
    gate: Option<Gate>,
    mlp: Mlp,
}

impl ChannelBlock {
    fn new(vs: &Path, sizes: &Sizes) -> Self {
        let width = sizes.channels;
        Self {
            norm: Norm::new(&(vs / "norm"), sizes),
            gate: Gate::new(vs, width, sizes),
            mlp: Mlp::new(&(vs / "mlp"), width, sizes),
        }
    }
}

impl ModuleT for ChannelBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self.norm.forward_t(xs, train).permute([0, 3, 2, 1]); // [batch, d, patches, channels]
        let ys = self.mlp.forward_t(&gated(self.gate.as_ref(), ys), train);
        xs + ys.permute([0, 3, 2, 1])
    }
}

#[derive(Debug)]
struct PatchBlock {
    norm: Norm,
    mlp: Mlp,
    gate: Option<Gate>,
    attention: Option<(Attention, Norm)>,
}

impl PatchBlock {
    fn new(vs: &Path, sizes: &Sizes) -> Self {
        let width = sizes.patches;
        let attention = |heads| {
            (
                Attention::new(&(vs / "self_attn_layer"), heads, sizes),
                Norm::new(&(vs / "norm_attn"), sizes),
            )
        };
        Self {
            norm: Norm::new(&(vs / "norm"), sizes),
            mlp: Mlp::new(&(vs / "mlp"), width, sizes),
            gate: Gate::new(vs, width, sizes),
            attention: sizes.attention_heads.map(attention),
        }
    }
}

impl PatchBlock {
    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let Self {
            norm, mlp, gate, ..
        } = self;
        match fused_block(norm, mlp, gate.as_ref(), false) {
            Some(block) if self.attention.is_none() => mix(xs, &block, mlp.dropout, train),
            _ => Ok(self.forward_t(xs, train)),
        }
    }
}

impl ModuleT for PatchBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let normed = self.norm.forward_t(xs, train);
        let ys = self.mlp.forward_t(&normed.transpose(2, 3), train); // [batch, channels, d, patches]
        let ys = gated(self.gate.as_ref(), ys).transpose(2, 3);
        match &self.attention {
            None => xs + ys,
            Some((attention, norm)) => {
                xs + norm.forward_t(&(ys + attention.forward_t(&normed, train)), train)
            }
        }
    }
}

#[derive(Debug)]
struct FeatureBlock {
    norm: Norm,
    mlp: Mlp,
    gate: Option<Gate>,
}

impl FeatureBlock {
    fn new(vs: &Path, sizes: &Sizes) -> Self {
        let width = sizes.d_model;
        Self {
            norm: Norm::new(&(vs / "norm"), sizes),
            mlp: Mlp::new(&(vs / "mlp"), width, sizes),
            gate: Gate::new(vs, width, sizes),
        }
    }
}

impl FeatureBlock {
    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let Self { norm, mlp, gate } = self;
        match fused_block(norm, mlp, gate.as_ref(), true) {
            Some(block) => mix(xs, &block, mlp.dropout, train),
            None => Ok(self.forward_t(xs, train)),
        }
    }
}

impl ModuleT for FeatureBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self.mlp.forward_t(&self.norm.forward_t(xs, train), train);
        xs + gated(self.gate.as_ref(), ys)
    }
}

/// Two linear layers over the last axis.
#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    dropout: f64,
}

impl Mlp {
    fn new(vs: &Path, width: i64, sizes: &Sizes) -> Self {
        let hidden = width * sizes.expansion;
        Self {
            fc1: sizes.linear(&(vs / "fc1"), width, hidden),
            fc2: sizes.linear(&(vs / "fc2"), hidden, width),
            dropout: sizes.dropout,
        }
    }
}

impl ModuleT for Mlp {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let ys = self
            .fc1
            .forward(xs)
            .gelu("none")
            .dropout(self.dropout, train);
        self.fc2.forward(&ys).dropout(self.dropout, train)
    }
}

/// Weighs the last axis by a softmax of itself.
#[derive(Debug)]
pub(crate) struct Gate(Linear);

impl Gate {
    /// The gate of a block, where its model has gates.
    fn new(block: &Path, width: i64, sizes: &Sizes) -> Option<Self> {
        Self::named(&(block / "gating_block"), width, sizes)
    }

    /// A gate under `vs`, where its model has gates.
    pub(crate) fn named(vs: &Path, width: i64, sizes: &Sizes) -> Option<Self> {
        let linear = || Self(sizes.linear(&(vs / "attn_layer"), width, width));
        sizes.gates.then(linear)
    }
}

/// `xs` through its gate, if there is one.
pub(crate) fn gated(gate: Option<&Gate>, xs: Tensor) -> Tensor {
    match gate {
        Some(Gate(linear)) => linear.forward(&xs).softmax(-1, None::<Kind>) * xs,
        None => xs,
    }
}

/// Multi-head attention among the patches of a channel.
#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: i64,
    dropout: f64,
}

impl Attention {
    fn new(vs: &Path, heads: i64, sizes: &Sizes) -> Self {
        let linear = |name: &str| sizes.linear(&(vs / name), sizes.d_model, sizes.d_model);
        Self {
            key: linear("k_proj"),
            value: linear("v_proj"),
            query: linear("q_proj"),
            out: linear("out_proj"),
            heads,
            dropout: sizes.dropout,
        }
    }
}

impl ModuleT for Attention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let split = |linear: &Linear| {
            linear
                .forward(xs)
                .unflatten(-1, [self.heads, -1])
                .transpose(2, 3)
        }; // [batch, channels, heads, patches, d/heads]
        let (query, key, value) = (split(&self.query), split(&self.key), split(&self.value));
        let scale = (value.size()[4] as f64).powf(-0.5);
        let weights = (query * scale)
            .matmul(&key.transpose(3, 4))
            .softmax(-1, None::<Kind>);
        let ys = weights.dropout(self.dropout, train).matmul(&value);
        self.out.forward(&ys.transpose(2, 3).flatten(3, 4))
    }
}

/// Normalisation over the features.
#[derive(Debug)]
enum Norm {
    Layer(LayerNorm),
    Batch(BatchNorm),
}

impl Norm {
    fn new(vs: &Path, sizes: &Sizes) -> Self {
        let vs = vs / "norm";
        match sizes.norm {
            NormKind::LayerNorm => {
                Self::Layer(nn::layer_norm(&vs, &[sizes.d_model], sizes.norm_eps))
            }
            NormKind::BatchNorm => Self::Batch(nn::batch_norm(
                &(&vs / "batchnorm"),
                sizes.d_model,
                0.1,
                sizes.norm_eps,
            )),
        }
    }
}

impl ModuleT for Norm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Layer(norm) => norm.forward(xs),
            Self::Batch(norm) => {
                let rows = xs.flatten(0, 1).transpose(1, 2); // [batch · channels, d, patches]
                let size = xs.size();
                norm.forward_t(&rows, train).transpose(1, 2).reshape(&size)
            }
        }
    }
}

/// Gives classification and regression back what scaling took away: the window's level and spread.
#[derive(Debug)]
pub(super) struct InjectScale {
    map_expansion: Linear,
    map_compression: Linear,
    expansion: Linear,
    compression: Linear,
}

impl InjectScale {
    pub(super) fn new(vs: &Path, config: &PatchTsMixerConfig) -> Self {
        let d = config.d_model;
        let linear = |name: &str, inputs, outputs| {
            linear_from(&(vs / name), inputs, outputs, config.initial_std())
        };
        Self {
            expansion: linear("inverse_trans_expansion", d + 2, 2 * d),
            compression: linear("inverse_trans_compression", 2 * d, d),
            map_expansion: linear("map_scale_expansion", 2, 4),
            map_compression: linear("map_scale_compression", 4, 2),
        }
    }

    pub(super) fn forward(&self, features: &Features) -> Tensor {
        let size = features.hidden.size();
        let moments = Tensor::cat(&[&features.loc, &features.scale], 1)
            .transpose(1, 2)
            .unsqueeze(2); // [batch, channels, 1, 2]
        let moments = self
            .map_compression
            .forward(&self.map_expansion.forward(&moments));
        let moments = moments.expand([size[0], size[1], size[2], 2], false);
        let xs = Tensor::cat(&[&features.hidden, &moments], 3); // [batch, channels, patches, d + 2]
        self.compression.forward(&self.expansion.forward(&xs))
    }
}
