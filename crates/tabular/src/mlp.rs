//! The plain multi-layer perceptron on tables: the baseline that every other model must beat.
//!
//! Features → blocks (linear, ReLU, dropout) → linear head. The backbone and the names are those of package
//! `tabm` 0.0.3 (`MLPBackbone`), so that TabM and this differ in nothing but the members.

use densely_core::nn::{self, Linear};
use densely_core::{Error, Model, Result, Tensors, check, registry};
use densely_torch_ext::fused::{self, Block};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, Path};

use crate::embeddings::NumEmbeddings;
use crate::layers::{Features, SharedLinear, check_codes};
use crate::models::TabularModel;

/// Sizes of an MLP. Defaults are those of TabM, with one member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpConfig {
    /// Numerical features.
    pub n_num_features: i64,
    /// Number of categories of each categorical feature.
    pub cat_cardinalities: Vec<i64>,
    /// Outputs: 1 for regression, the classes for classification; `None` gives the last block's.
    pub d_out: Option<i64>,
    /// Embedding of the numerical features.
    pub num_embeddings: Option<NumEmbeddings>,
    /// Blocks; `None` stands for 2 with an embedding, 3 without. With 0 the head stands on the features: a linear model.
    pub n_blocks: Option<i64>,
    /// Width of a block.
    pub d_block: i64,
    /// Probability of dropping an activation.
    pub dropout: f64,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            n_num_features: 24,
            cat_cardinalities: vec![3, 7],
            d_out: Some(1),
            num_embeddings: None,
            n_blocks: None,
            d_block: 512,
            dropout: 0.1,
        }
    }
}

impl MlpConfig {
    /// Preset `mlp`.
    pub fn mlp() -> Self {
        Self::default()
    }

    /// Blocks, with the rule for `None` applied.
    pub fn blocks(&self) -> i64 {
        self.n_blocks
            .unwrap_or(if self.num_embeddings.is_some() { 2 } else { 3 })
    }

    /// Checks the sizes; those of features and embedding are checked by [`build`](Self::build).
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.blocks() < 0 {
            let reason = format!("must be at least 0, got {}", self.blocks());
            return Err(Error::config("n_blocks", reason));
        }
        if self.blocks() == 0 && self.d_out.is_none() {
            return Err(Error::config(
                "d_out",
                "must be given where there is no block",
            ));
        }
        check::positive("d_block", self.d_block)?;
        check::positive("d_out", self.d_out.unwrap_or(1))?;
        check::dropout("dropout", self.dropout)
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<Mlp> {
        self.validate()?;
        let embeddings = self.num_embeddings.as_ref();
        let features = Features::new(vs, self.n_num_features, &self.cat_cardinalities, embeddings)?;
        let blocks = vs / "backbone" / "blocks";
        let linears = (0..self.blocks())
            .map(|i| {
                let inputs = if i == 0 {
                    features.width()
                } else {
                    self.d_block
                };
                SharedLinear::plain(&(&blocks / i / 0), inputs, self.d_block)
            })
            .collect();
        let last = if self.blocks() == 0 {
            features.width()
        } else {
            self.d_block
        };
        let output = self
            .d_out
            .map(|d_out| nn::linear(&(vs / "output"), last, d_out));
        Ok(Mlp {
            features,
            linears,
            output,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one row, embeddings left out.
    pub fn macs(&self) -> u64 {
        let embedding = self
            .num_embeddings
            .as_ref()
            .map_or(1, NumEmbeddings::d_embedding);
        let width = self.n_num_features * embedding + self.cat_cardinalities.iter().sum::<i64>();
        let (blocks, d) = (self.blocks(), self.d_block);
        let outputs = self.d_out.unwrap_or(0);
        if blocks == 0 {
            return (width * outputs) as u64;
        }
        (width * d + (blocks - 1) * d * d + d * outputs) as u64
    }
}

/// A built MLP.
#[derive(Debug)]
pub struct Mlp {
    features: Features,
    linears: Vec<SharedLinear>,
    output: Option<Linear>,
    config: MlpConfig,
}

impl Mlp {
    /// The output of the last block: `[batch, d_block]`. Inputs as in [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`densely_core::Error::Shape`] when an input does not fit the config.
    pub fn forward_features(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let xs = self.one_member(x_num, x_cat)?;
        Ok(self.run_blocks(xs, train)?.squeeze_dim(0))
    }

    /// The features as the one member's, as the blocks take them: `[1, batch, width]`.
    fn one_member(&self, x_num: Option<&Tensor>, x_cat: Option<&Tensor>) -> Result<Tensor> {
        let xs = self.features.forward(x_num, x_cat, 1)?;
        Ok(if xs.dim() == 3 {
            xs.transpose(0, 1)
        } else {
            xs.unsqueeze(0)
        })
    }

    fn run_blocks(&self, xs: Tensor, train: bool) -> Result<Tensor> {
        let mut blocks = self.linears.iter();
        blocks.try_fold(xs, |xs, linear| {
            linear.block(&xs, self.config.dropout, train)
        })
    }

    /// Predictions `[batch, d_out]`, or `[batch, d_block]` when `d_out` is `None`.
    ///
    /// `x_num`: `[batch, n]` float; `x_cat`: `[batch, m]` i64 codes, where a code equal to the cardinality
    /// stands for an unseen category.
    /// # Errors
    /// [`densely_core::Error::Shape`] when an input does not fit the config.
    pub fn forward(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let xs = self.one_member(x_num, x_cat)?;
        let Some(output) = &self.output else {
            return Ok(self.run_blocks(xs, train)?.squeeze_dim(0));
        };
        if let Some(bias) = &output.bias
            && !train
            && !self.linears.is_empty()
            && !fused::records_gradients()
            && fused::enabled(&output.weight)
        {
            let blocks: Vec<Block> = self.linears.iter().map(SharedLinear::as_block).collect();
            let weight = output.weight.transpose(0, 1).unsqueeze(0); // [1, d_block, d_out]
            let ys = fused::infer(&xs, &blocks, &weight, &bias.unsqueeze(0));
            return Ok(ys.map_err(Error::torch)?.squeeze_dim(1));
        }
        Ok(output.forward(&self.run_blocks(xs, train)?.squeeze_dim(0)))
    }
}

impl TabularModel for Mlp {
    fn forward_members(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        Ok(self.forward(x_num, x_cat, train)?.unsqueeze(1))
    }
}

impl Model for Mlp {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        check_codes(inputs, &self.config.cat_cardinalities)?;
        let [x_num, x_cat] = registry::take_inputs(inputs, ["x_num", "x_cat"])?;
        Ok(Tensors::from([(
            "y".to_owned(),
            self.forward(x_num, x_cat, train)?,
        )]))
    }
}
