//! `FinalMLP`: two MLPs over gated copies of the same embeddings, joined by a bilinear form with several heads.
//!
//! Paper: Mao, Zhu, Su, Cai, Li, Dong 2023, arXiv 2304.00902 (AAAI). Follows `FuxiCTR` 2.3.10; weights load by its names.
//! The code has a bias on either side of the last layer where the paper has one.

use densely_core::nn::{Linear, parameter};
use densely_core::{Error, Model, Result, Tensors, check};
use densely_torch_ext::fused;
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::embedding::{Embeddings, TableSpec, check_inputs, check_sides};
use crate::fields::{self, Field};
use crate::layers::{
    Activation, BnMode, Mlp, MlpSpec, Names, Variant, distinct, repeat, xavier_linear,
};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Heads up to this width are fused by one operation; wider ones by matrix products.
const NARROW: i64 = 128;

/// Sizes of a `FinalMLP`. Defaults are those of `Frappe_x1` in the BARS benchmark.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of the reference"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinalMlpConfig {
    /// Inputs in order; sequences enter as the mean of their vectors.
    pub fields: Vec<Field>,
    /// Width of a field's vector, d.
    pub embedding_dim: i64,
    /// Widths of the first stream.
    pub mlp1_hidden_units: Vec<i64>,
    /// Behind each of its layers.
    pub mlp1_hidden_activations: Activation,
    /// Probability behind each of its layers.
    pub mlp1_dropout: f64,
    /// Whether it has batch norms.
    pub mlp1_batch_norm: bool,
    /// Widths of the second stream.
    pub mlp2_hidden_units: Vec<i64>,
    /// Behind each of its layers.
    pub mlp2_hidden_activations: Activation,
    /// Probability behind each of its layers.
    pub mlp2_dropout: f64,
    /// Whether it has batch norms.
    pub mlp2_batch_norm: bool,
    /// Whether gates weigh the embeddings of each stream.
    pub use_fs: bool,
    /// Hidden widths of the gates.
    pub fs_hidden_units: Vec<i64>,
    /// Fields that decide the first gate, through tables of their own. With none it is the same for every row.
    pub fs1_context: Vec<String>,
    /// The same of the second gate.
    pub fs2_context: Vec<String>,
    /// Heads of the bilinear form; divides the last width of both streams.
    pub num_heads: i64,
    /// Whether a gate without fields learns. In the reference it starts where the gradient of ReLU is 0, so that only its last bias ever
    /// moves; this starts its input at N(0, 0.01) instead of 0.
    pub live_gate: bool,
    /// Whether dropout runs in training. Its places in the reference's lists of modules, and with them the parameters' names, stay.
    pub dropout_on: bool,
}

impl Default for FinalMlpConfig {
    fn default() -> Self {
        let sizes = [
            ("user", 956),
            ("item", 4084),
            ("daytime", 9),
            ("weekday", 9),
            ("isweekend", 4),
            ("homework", 5),
            ("cost", 4),
            ("weather", 11),
            ("country", 82),
            ("city", 235),
        ];
        Self {
            fields: sizes
                .map(|(name, size)| Field::categorical(name, size))
                .to_vec(),
            embedding_dim: 10,
            mlp1_hidden_units: vec![400],
            mlp1_hidden_activations: Activation::Relu,
            mlp1_dropout: 0.4,
            mlp1_batch_norm: true,
            mlp2_hidden_units: vec![100],
            mlp2_hidden_activations: Activation::Relu,
            mlp2_dropout: 0.4,
            mlp2_batch_norm: true,
            use_fs: true,
            fs_hidden_units: vec![400],
            fs1_context: vec!["user".to_owned()],
            fs2_context: vec!["item".to_owned()],
            num_heads: 5,
            live_gate: false,
            dropout_on: true,
        }
    }
}

impl FinalMlpConfig {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        fields::validate(&self.fields)?;
        check::positive("embedding_dim", self.embedding_dim)?;
        check::positive("num_heads", self.num_heads)?;
        check::dropout("mlp1_dropout", self.mlp1_dropout)?;
        check::dropout("mlp2_dropout", self.mlp2_dropout)?;
        for width in &self.fs_hidden_units {
            check::positive("fs_hidden_units", *width)?;
        }
        for (field, hidden) in [
            ("mlp1_hidden_units", &self.mlp1_hidden_units),
            ("mlp2_hidden_units", &self.mlp2_hidden_units),
        ] {
            for width in hidden {
                check::positive(field, *width)?;
            }
            let Some(last) = hidden.last() else {
                return Err(Error::config(field, "must have at least one layer"));
            };
            if last % self.num_heads != 0 {
                let reason = format!(
                    "must divide the last of {field}, {last}, got {}",
                    self.num_heads
                );
                return Err(Error::config("num_heads", reason));
            }
        }
        for (field, context) in [
            ("fs1_context", &self.fs1_context),
            ("fs2_context", &self.fs2_context),
        ] {
            for (place, name) in context.iter().enumerate() {
                if !self.fields.iter().any(|known| known.name() == name) {
                    return Err(Error::config(
                        field,
                        format!("`{name}` is no field of the model"),
                    ));
                }
                if context[..place].contains(name) {
                    return Err(Error::config(field, format!("`{name}` stands twice")));
                }
            }
        }
        Ok(())
    }

    /// Width of all embeddings side by side, F.
    pub fn width(&self) -> i64 {
        self.fields.len() as i64 * self.embedding_dim
    }

    fn last(hidden: &[i64]) -> i64 {
        hidden.last().copied().unwrap_or(0)
    }

    fn stream(&self, first: bool) -> MlpSpec<'_> {
        let (hidden, activation, dropout, batch_norm) = if first {
            (
                &self.mlp1_hidden_units,
                self.mlp1_hidden_activations,
                self.mlp1_dropout,
                self.mlp1_batch_norm,
            )
        } else {
            (
                &self.mlp2_hidden_units,
                self.mlp2_hidden_activations,
                self.mlp2_dropout,
                self.mlp2_batch_norm,
            )
        };
        MlpSpec {
            inputs: self.width(),
            hidden,
            activation,
            batch_norm,
            dropout,
            dropout_on: self.dropout_on,
            output: None,
            names: Names::Sequence,
            bn_mode: BnMode::Batch,
        }
    }

    fn gate(&self, context: &[String]) -> MlpSpec<'_> {
        MlpSpec {
            inputs: self.embedding_dim * context.len().max(1) as i64,
            hidden: &self.fs_hidden_units,
            activation: Activation::Relu,
            batch_norm: false,
            dropout: 0.0,
            dropout_on: false,
            output: Some(self.width()),
            names: Names::Sequence,
            bn_mode: BnMode::Batch,
        }
    }

    /// Multiply-accumulates of all matrix products for one row. A gate without fields is computed once per batch, and counted here.
    pub fn macs(&self) -> u64 {
        let (x, y) = (
            Self::last(&self.mlp1_hidden_units),
            Self::last(&self.mlp2_hidden_units),
        );
        let mut macs = self.stream(true).macs() + self.stream(false).macs();
        if self.use_fs {
            macs += self.gate(&self.fs1_context).macs() + self.gate(&self.fs2_context).macs();
        }
        macs += x + y + x * y / self.num_heads + y;
        macs as u64
    }

    /// Creates the parameters under `vs`.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails.
    pub fn build(&self, vs: &Path) -> Result<FinalMlp> {
        self.validate()?;
        let tables = TableSpec {
            dim: self.embedding_dim,
            variant: Variant::Fuxictr,
            pretrained: &[],
        };
        let (x, y) = (
            Self::last(&self.mlp1_hidden_units),
            Self::last(&self.mlp2_hidden_units),
        );
        let gate = |stream: usize, context: &[String]| {
            let vs = vs / "fs_module";
            let dim = self.embedding_dim;
            let source = if context.is_empty() {
                let mut bias = Tensor::zeros([1, dim], CPU);
                if self.live_gate {
                    bias = bias.normal_(0.0, 0.01);
                }
                Context::Bias(parameter(&vs, &format!("fs{stream}_ctx_bias"), &bias))
            } else {
                let vs = &vs / format!("fs{stream}_ctx_emb") / "embedding_layer";
                let chosen = self
                    .fields
                    .iter()
                    .filter(|field| context.iter().any(|name| name == field.name()));
                Context::Fields(tables.build(&vs, chosen))
            };
            let mlp = self
                .gate(context)
                .build(&(&vs / format!("fs{stream}_gate")));
            Gate { source, mlp }
        };
        let embeddings = tables.build(
            &(vs / "embedding_layer" / "embedding_layer"),
            self.fields.iter(),
        );
        let streams = [
            self.stream(true).build(&(vs / "mlp1")),
            self.stream(false).build(&(vs / "mlp2")),
        ];
        let gates = self
            .use_fs
            .then(|| [gate(1, &self.fs1_context), gate(2, &self.fs2_context)]);
        let fusion = vs / "fusion_module";
        let bilinear = x * y / self.num_heads;
        let std = (2.0 / (bilinear + 1) as f64).sqrt();
        Ok(FinalMlp {
            embeddings,
            streams,
            gates,
            linears: [
                xavier_linear(&(&fusion / "w_x"), x, 1),
                xavier_linear(&(&fusion / "w_y"), y, 1),
            ],
            bilinear: parameter(
                &fusion,
                "w_xy",
                &Tensor::empty([bilinear, 1], CPU).normal_(0.0, std),
            ),
            config: self.clone(),
        })
    }
}

/// A built `FinalMLP`.
#[derive(Debug)]
pub struct FinalMlp {
    embeddings: Embeddings,
    streams: [Mlp; 2],
    gates: Option<[Gate; 2]>,
    linears: [Linear; 2],
    bilinear: Tensor,
    config: FinalMlpConfig,
}

/// Weighs every value of the embeddings by a factor in (0, 2).
#[derive(Debug)]
struct Gate {
    source: Context,
    mlp: Mlp,
}

#[derive(Debug)]
enum Context {
    /// `[1, d]`, the same for all rows.
    Bias(Tensor),
    Fields(Embeddings),
}

impl Gate {
    /// `[batch, width]`, or `[1, width]` where the gate does not depend on the row.
    fn forward(&self, inputs: &Tensors) -> Result<Tensor> {
        let logits = match &self.source {
            Context::Bias(bias) => bias.apply_t(&self.mlp, false),
            Context::Fields(tables) => self.of_fields(tables, inputs)?,
        };
        Ok(logits.sigmoid() * 2.0)
    }

    /// A gate that one field decides is computed once for each of its ids in the batch.
    fn of_fields(&self, tables: &Embeddings, inputs: &Tensors) -> Result<Tensor> {
        let fields: Vec<&Field> = tables.fields().collect();
        if let [
            Field::Categorical {
                name, vocab_size, ..
            },
        ] = fields.as_slice()
        {
            let (ids, place) = distinct(&inputs[name], *vocab_size);
            let rows = tables.of(name, &ids)?.apply_t(&self.mlp, false);
            return Ok(repeat(&rows, &place));
        }
        Ok(tables.flat(inputs)?.apply_t(&self.mlp, false))
    }
}

impl FinalMlp {
    /// Logits `[batch]` of a click; `inputs` holds one tensor per field by its name: i64 `[batch]`, f32 `[batch]` for numbers, i64
    /// `[batch, time]` for sequences.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Data`] for inputs that do not fit.
    pub fn forward(&self, inputs: &Tensors, train: bool) -> Result<Tensor> {
        check_inputs(&self.config.fields, &[], self.bilinear.kind(), inputs)?;
        let xs = self.embeddings.flat(inputs)?; // [batch, width]
        let gated = match &self.gates {
            None => [xs.shallow_clone(), xs],
            Some([one, two]) => [&xs * one.forward(inputs)?, &xs * two.forward(inputs)?],
        };
        let x = gated[0].apply_t(&self.streams[0], train);
        let y = gated[1].apply_t(&self.streams[1], train);
        Ok(self.fuse(&x, &y))
    }

    /// Logits `[n]` of many candidates for one user, in evaluation: `candidates` holds the fields that depend on the candidate, `[n]` each,
    /// `user` all others, one row each.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Data`] for inputs that do not fit.
    pub fn score_candidates(&self, user: &Tensors, candidates: &Tensors) -> Result<Tensor> {
        let kind = self.bilinear.kind();
        let count = check_sides(&self.config.fields, &[], kind, user, candidates)?;
        let repeated = user.iter().map(|(name, xs)| {
            let size = [&[count], &xs.size()[1..]].concat();
            (name.clone(), xs.expand(size, false))
        });
        let own = candidates
            .iter()
            .map(|(name, xs)| (name.clone(), xs.shallow_clone()));
        self.forward(&repeated.chain(own).collect(), false)
    }

    /// The last layer: `[batch, D1]` and `[batch, D2]` → `[batch]`.
    fn fuse(&self, x: &Tensor, y: &Tensor) -> Tensor {
        let heads = self.config.num_heads;
        let (left, right) = (x.size()[1] / heads, y.size()[1] / heads);
        let weight = self.bilinear.view([heads, left, right]);
        let [of_x, of_y] = &self.linears;
        let fuses = fused::enabled_for_f32(&[x, y, &weight]) && left.max(right) <= NARROW;
        if fuses
            && let (Some(one), Some(other)) = (&of_x.bias, &of_y.bias)
            && let Ok(logits) = fused::bilinear(x, y, &weight, [&of_x.weight, &of_y.weight])
        {
            return logits + one + other;
        }
        let linear = of_x.forward(x) + of_y.forward(y); // [batch, 1]
        let by_head = |xs: &Tensor| xs.unflatten(1, [heads, -1]); // [batch, heads, dim]
        let left = by_head(x).transpose(0, 1).bmm(&weight).transpose(0, 1); // [batch, heads, D2/heads]
        let product = (left * by_head(y)).sum_dim_intlist([1, 2].as_slice(), false, None);
        linear.squeeze_dim(1) + product
    }

    /// Its tables, those of the gates included.
    pub fn embeddings(&self) -> impl Iterator<Item = &Embeddings> {
        let gates = self
            .gates
            .iter()
            .flatten()
            .filter_map(|gate| match &gate.source {
                Context::Fields(tables) => Some(tables),
                Context::Bias(_) => None,
            });
        std::iter::once(&self.embeddings).chain(gates)
    }

    /// The config it was built from.
    pub fn config(&self) -> &FinalMlpConfig {
        &self.config
    }
}

impl Model for FinalMlp {
    fn forward_named(&self, inputs: &Tensors, train: bool) -> Result<Tensors> {
        Ok(crate::models::outputs(&self.forward(inputs, train)?))
    }

    fn aliases(&self) -> Vec<(String, String)> {
        let mut aliases = self.embeddings.aliases("embedding_layer.embedding_layer");
        for (stream, gate) in self.gates.iter().flatten().enumerate() {
            if let Context::Fields(tables) = &gate.source {
                let prefix = format!("fs_module.fs{}_ctx_emb.embedding_layer", stream + 1);
                aliases.extend(tables.aliases(&prefix));
            }
        }
        aliases
    }
}
