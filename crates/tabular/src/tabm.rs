//! TabM: one network that carries k implicit MLPs, trained side by side and averaged at prediction.
//!
//! Paper: Gorishniy, Kotelnikov, Babenko 2025, "TabM: Advancing Tabular Deep Learning with Parameter-Efficient
//! Ensembling", ICLR 2025, arXiv 2410.24210. Follows: package `tabm` 0.0.3 (weights load by its names; with the
//! same seed the initial values are its bits).
//!
//! features → `[batch, D]` → seen k times, `[batch, k, D]` → blocks (linear, ReLU, dropout) → head of each
//! member, `[batch, k, d_out]`. What sets the members apart:
//!
//! | variant | shared by the members | of each member |
//! | --- | --- | --- |
//! | `tabm` | every block's matrix | scalings r and s and bias of every block; only the first r starts random |
//! | `tabm-mini` | all blocks | one scaling of the input |
//! | `tabm-packed` | nothing | everything: k independent MLPs |

use densely_core::{Error, Model, Result, Tensors, check, nn, registry};
use densely_torch_ext::fused::{self, Block};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, Path};

use crate::embeddings::NumEmbeddings;
use crate::layers::{Features, LinearEnsemble, ScalingInit, SharedLinear, check_codes};
use crate::models::TabularModel;

/// Sizes of a TabM. Defaults are those of the package's `TabM.make`, for 24 numbers and two categories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TabMConfig {
    /// Numerical features.
    pub n_num_features: i64,
    /// Number of categories of each categorical feature.
    pub cat_cardinalities: Vec<i64>,
    /// Outputs per member: 1 for regression, the classes for classification; `None` gives the last block's.
    pub d_out: Option<i64>,
    /// Embedding of the numerical features.
    pub num_embeddings: Option<NumEmbeddings>,
    /// Members.
    pub k: i64,
    /// Blocks; `None` stands for the package's rule: 2 with an embedding, 3 without.
    pub n_blocks: Option<i64>,
    /// Width of a block.
    pub d_block: i64,
    /// Probability of dropping an activation.
    pub dropout: f64,
    /// What the members share.
    pub arch_type: ArchType,
    /// How the first scaling starts; `None` stands for the package's rule: `normal` with an embedding,
    /// `random-signs` without, nothing for `tabm-packed`.
    pub start_scaling_init: Option<ScalingInit>,
}

/// What the members share; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the module's table describes the variants")]
pub enum ArchType {
    #[serde(rename = "tabm")]
    TabM,
    #[serde(rename = "tabm-mini")]
    Mini,
    #[serde(rename = "tabm-packed")]
    Packed,
}

impl Default for TabMConfig {
    fn default() -> Self {
        Self {
            n_num_features: 24,
            cat_cardinalities: vec![3, 7],
            d_out: Some(1),
            num_embeddings: None,
            k: 32,
            n_blocks: None,
            d_block: 512,
            dropout: 0.1,
            arch_type: ArchType::TabM,
            start_scaling_init: None,
        }
    }
}

impl TabMConfig {
    /// Preset `tabm`.
    pub fn tabm() -> Self {
        Self::default()
    }

    /// Preset `tabm-mini`.
    pub fn mini() -> Self {
        Self {
            arch_type: ArchType::Mini,
            ..Self::default()
        }
    }

    /// Preset `tabm-packed`.
    pub fn packed() -> Self {
        Self {
            arch_type: ArchType::Packed,
            ..Self::default()
        }
    }

    /// Blocks, with the package's rule applied.
    pub fn blocks(&self) -> i64 {
        self.n_blocks
            .unwrap_or(if self.num_embeddings.is_some() { 2 } else { 3 })
    }

    fn scaling_init(&self) -> ScalingInit {
        self.start_scaling_init
            .unwrap_or(if self.num_embeddings.is_some() {
                ScalingInit::Normal
            } else {
                ScalingInit::RandomSigns
            })
    }

    /// Checks the sizes; those of features and embedding are checked by [`build`](Self::build).
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("k", self.k)?;
        check::positive("n_blocks", self.blocks())?;
        check::positive("d_block", self.d_block)?;
        check::positive("d_out", self.d_out.unwrap_or(1))?;
        check::dropout("dropout", self.dropout)?;
        if self.arch_type == ArchType::Packed && self.start_scaling_init.is_some() {
            return Err(Error::config(
                "start_scaling_init",
                "must be null for `tabm-packed`",
            ));
        }
        Ok(())
    }

    /// Creates the parameters under `vs`, drawing from libtorch's global generator in the package's order.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<TabM> {
        self.validate()?;
        let embeddings = self.num_embeddings.as_ref();
        let features = Features::new(vs, self.n_num_features, &self.cat_cardinalities, embeddings)?;
        let (width, init) = (features.width(), self.scaling_init());
        let backbone = vs / "backbone";
        let mut linears: Vec<BlockLinear> = (0..self.blocks())
            .map(|i| {
                let path = &backbone / "blocks" / i / 0;
                let inputs = if i == 0 { width } else { self.d_block };
                let (outputs, k) = (self.d_block, self.k);
                match self.arch_type {
                    ArchType::TabM => {
                        let start = (i == 0).then(|| (init, features.widths()));
                        let linear = SharedLinear::batch_ensemble(&path, inputs, outputs, k, start);
                        BlockLinear::Shared(linear)
                    }
                    ArchType::Mini => {
                        BlockLinear::Shared(SharedLinear::plain(&path, inputs, outputs))
                    }
                    ArchType::Packed => {
                        BlockLinear::Own(LinearEnsemble::new(&path, inputs, outputs, k))
                    }
                }
            })
            .collect();
        if self.arch_type == ArchType::Mini {
            let weight = init.draw(self.k, features.widths());
            let affine = nn::parameter(&(&backbone / "affine"), "weight", &weight);
            if let BlockLinear::Shared(first) = &mut linears[0] {
                first.scale_input(affine);
            }
        }
        let output = self
            .d_out
            .map(|d_out| LinearEnsemble::new(&(vs / "output"), self.d_block, d_out, self.k));
        Ok(TabM {
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
        (self.k * (width * d + (blocks - 1) * d * d + d * self.d_out.unwrap_or(0))) as u64
    }
}

/// A built TabM.
#[derive(Debug)]
pub struct TabM {
    features: Features,
    linears: Vec<BlockLinear>,
    output: Option<LinearEnsemble>,
    config: TabMConfig,
}

impl TabM {
    /// The output of the last block: `[batch, k, d_block]`. Inputs as in [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`Error::Shape`] when an input does not fit the config.
    pub fn forward_features(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let xs = self.by_member(x_num, x_cat)?;
        Ok(self.run_blocks(xs, train)?.transpose(0, 1))
    }

    /// The features with the members first, so that what is a member's own is constant over a run of rows:
    /// `[k, batch, width]`, or `[1, batch, width]` when all see the same rows.
    fn by_member(&self, x_num: Option<&Tensor>, x_cat: Option<&Tensor>) -> Result<Tensor> {
        let xs = self.features.forward(x_num, x_cat, self.config.k)?;
        Ok(if xs.dim() == 2 {
            xs.unsqueeze(0)
        } else {
            xs.transpose(0, 1)
        })
    }

    /// `[k or 1, batch, width]` → `[k, batch, d_block]`.
    fn run_blocks(&self, xs: Tensor, train: bool) -> Result<Tensor> {
        let dropout = self.config.dropout;
        self.linears.iter().try_fold(xs, |xs, linear| match linear {
            BlockLinear::Shared(linear) => linear.block(&xs, dropout, train),
            BlockLinear::Own(linear) => Ok(linear.forward(&xs).relu().dropout(dropout, train)),
        })
    }

    /// All blocks and the head in one fused operation, where there is one: without gradients, on a CPU, for the
    /// variants whose members share their matrices.
    fn infer(&self, xs: &Tensor, output: &LinearEnsemble) -> Option<Result<Tensor>> {
        if fused::records_gradients() || !fused::enabled(&output.weight) {
            return None;
        }
        let blocks = self.linears.iter().map(BlockLinear::as_block);
        let blocks: Vec<Block> = blocks.collect::<Option<_>>()?;
        Some(fused::infer(xs, &blocks, &output.weight, &output.bias).map_err(Error::torch))
    }

    /// Predictions of each member: `[batch, k, d_out]`, or `[batch, k, d_block]` when `d_out` is `None`.
    ///
    /// `x_num`: `[batch, n]` float; `x_cat`: `[batch, m]` i64 codes, where a code equal to the cardinality
    /// stands for an unseen category. Or `[batch, k, n]` and `[batch, k, m]`: a batch of its own for each
    /// member. Train on the mean of the members' losses; average members only to predict.
    /// # Errors
    /// [`Error::Shape`] when an input does not fit the config.
    pub fn forward(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let xs = self.by_member(x_num, x_cat)?;
        let Some(output) = &self.output else {
            return Ok(self.run_blocks(xs, train)?.transpose(0, 1));
        };
        if !train && let Some(ys) = self.infer(&xs, output) {
            return ys;
        }
        Ok(output.forward(&self.run_blocks(xs, train)?).transpose(0, 1))
    }
}

impl TabularModel for TabM {
    fn forward_members(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        self.forward(x_num, x_cat, train)
    }
}

impl Model for TabM {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        check_codes(inputs, &self.config.cat_cardinalities)?;
        let [x_num, x_cat] = registry::take_inputs(inputs, ["x_num", "x_cat"])?;
        Ok(Tensors::from([(
            "y".to_owned(),
            self.forward(x_num, x_cat, train)?,
        )]))
    }
}

/// The linear layer of a block.
#[derive(Debug)]
enum BlockLinear {
    Shared(SharedLinear),
    Own(LinearEnsemble),
}

impl BlockLinear {
    fn as_block(&self) -> Option<Block<'_>> {
        match self {
            Self::Shared(linear) => Some(linear.as_block()),
            Self::Own(_) => None,
        }
    }
}
