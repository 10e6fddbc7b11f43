//! What the tabular models share: features to one flat row, and layers that hold k members.

use densely_core::random::draw_seed;
use densely_core::{Error, Result, Tensors, check, nn};
use densely_torch_ext::fused::{self, Block};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::embeddings::{NumEmbedding, NumEmbeddings};

/// Numbers (embedded or as they are) and one-hot categories side by side: `[batch, width]`.
#[derive(Debug)]
pub struct Features {
    numbers: i64,
    num_module: Option<NumEmbedding>,
    categories: Option<OneHot>,
    widths: Vec<i64>,
}

impl Features {
    /// Creates the embedding's parameters under `vs / "num_module"`.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no feature at all, a cardinality is not positive, or the embedding does
    /// not fit.
    pub fn new(
        vs: &Path,
        numbers: i64,
        cardinalities: &[i64],
        embeddings: Option<&NumEmbeddings>,
    ) -> Result<Self> {
        if numbers < 0 {
            return Err(Error::config(
                "n_num_features",
                format!("must be at least 0, got {numbers}"),
            ));
        }
        if numbers == 0 && cardinalities.is_empty() {
            return Err(Error::config(
                "n_num_features",
                "is 0 and `cat_cardinalities` is empty",
            ));
        }
        for (feature, cardinality) in cardinalities.iter().enumerate() {
            check::positive(&format!("cat_cardinalities[{feature}]"), *cardinality)?;
        }
        if numbers == 0 && embeddings.is_some() {
            return Err(Error::config(
                "num_embeddings",
                "must be null when `n_num_features` is 0",
            ));
        }
        let d_embedding = embeddings.map_or(1, NumEmbeddings::d_embedding);
        let widths = std::iter::repeat_n(d_embedding, numbers as usize)
            .chain(cardinalities.iter().copied())
            .collect();
        Ok(Self {
            numbers,
            num_module: embeddings
                .map(|e| e.build(&(vs / "num_module"), numbers))
                .transpose()?,
            categories: (!cardinalities.is_empty()).then(|| OneHot::new(cardinalities, vs)),
            widths,
        })
    }

    /// Columns of each feature, numbers first.
    pub fn widths(&self) -> &[i64] {
        &self.widths
    }

    /// Columns of all features.
    pub fn width(&self) -> i64 {
        self.widths.iter().sum()
    }

    /// `x_num [batch, n]` and `x_cat [batch, m]` → `[batch, width]`; or, with a batch of its own for each of
    /// `k` members, `[batch, k, n]` and `[batch, k, m]` → `[batch, k, width]`.
    ///
    /// A code equal to the feature's cardinality stands for a category unseen in training: all zeros.
    /// # Errors
    /// [`Error::Shape`] when an input is absent, superfluous or of another shape or kind.
    pub fn forward(
        &self,
        x_num: Option<&Tensor>,
        x_cat: Option<&Tensor>,
        k: i64,
    ) -> Result<Tensor> {
        let cardinalities = self
            .categories
            .as_ref()
            .map_or(0, |c| c.cardinalities.size()[0]);
        let x_num = flat("x_num", x_num, self.numbers, k)?;
        let x_cat = flat("x_cat", x_cat, cardinalities, k)?;
        if let Some((xs, _)) = &x_cat {
            check::kind("x_cat", xs, Kind::Int64)?;
        }
        if let Some((xs, _)) = &x_num
            && !xs.is_floating_point()
        {
            return Err(Error::Shape {
                what: "x_num".to_owned(),
                expected: "a float kind".to_owned(),
                got: format!("{:?}", xs.kind()),
            });
        }
        if let (Some((a, members)), Some((b, others))) = (&x_num, &x_cat)
            && (a.size()[0] != b.size()[0] || members != others)
        {
            return Err(Error::Shape {
                what: "x_cat".to_owned(),
                expected: format!("as many rows as `x_num`: {}", a.size()[0]),
                got: b.size()[0].to_string(),
            });
        }
        let per_member = x_num
            .as_ref()
            .or(x_cat.as_ref())
            .is_some_and(|(_, members)| *members);
        let x_num = match (x_num, &self.num_module) {
            (Some((xs, _)), Some(module)) => Some(module.forward(&xs)?.flatten(1, 2)), // [rows, n * d_embedding]
            (xs, _) => xs.map(|(xs, _)| xs),
        };
        let x_cat = x_cat.and_then(|(xs, _)| {
            let kind = x_num.as_ref().map_or(Kind::Float, Tensor::kind);
            Some(self.categories.as_ref()?.forward(&xs, kind))
        });
        let xs = match (x_num, x_cat) {
            (Some(a), Some(b)) => Tensor::cat(&[a, b], 1),
            (Some(xs), None) | (None, Some(xs)) => xs,
            (None, None) => unreachable!("a model has at least one feature"),
        };
        Ok(if per_member {
            xs.unflatten(0, [-1, k])
        } else {
            xs
        })
    }
}

/// The input as `[rows, features]`, and whether each member had rows of its own.
fn flat(name: &str, xs: Option<&Tensor>, features: i64, k: i64) -> Result<Option<(Tensor, bool)>> {
    let wrong = |expected: &str, got: &str| {
        Err(Error::Shape {
            what: name.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        })
    };
    match xs {
        None if features == 0 => Ok(None),
        None => wrong(&format!("[_, {features}]"), "no such input"),
        Some(_) if features == 0 => wrong("no such input: the model has no such features", "one"),
        Some(xs) if xs.dim() == 3 => {
            check::shape(name, xs, &[None, Some(k), Some(features)])?;
            Ok(Some((xs.flatten(0, 1), true)))
        }
        Some(xs) => {
            check::shape(name, xs, &[None, Some(features)])?;
            Ok(Some((xs.shallow_clone(), false)))
        }
    }
}

/// One-hot codes of all categorical features side by side; a code out of range gives zeros.
#[derive(Debug)]
struct OneHot {
    cardinalities: Tensor,
    offsets: Tensor,
    width: i64,
}

impl OneHot {
    fn new(cardinalities: &[i64], vs: &Path) -> Self {
        let offsets: Vec<i64> = cardinalities
            .iter()
            .scan(0, |next, cardinality| {
                let offset = *next;
                *next += cardinality;
                Some(offset)
            })
            .collect();
        let device = |values: &[i64]| Tensor::from_slice(values).to_device(vs.device());
        Self {
            cardinalities: device(cardinalities),
            offsets: device(&offsets),
            width: cardinalities.iter().sum(),
        }
    }

    fn forward(&self, codes: &Tensor, kind: Kind) -> Tensor {
        // Unseen categories go to a column beyond the last, which is cut off: no branch, no device sync.
        let seen = codes.lt_tensor(&self.cardinalities);
        let place = (codes + &self.offsets).where_scalarother(&seen, self.width);
        Tensor::zeros([codes.size()[0], self.width + 1], (kind, codes.device()))
            .scatter_value_(1, &place, 1)
            .narrow(1, 0, self.width)
    }
}

/// Fails on a category code below 0 or above its feature's cardinality. Reads the codes back from the device,
/// so it is for doors where codes come from a stranger.
///
/// # Errors
/// [`Error::Shape`] naming the first feature with such a code.
pub fn check_codes(inputs: &Tensors, cardinalities: &[i64]) -> Result<()> {
    let Some(codes) = inputs.get("x_cat").filter(|codes| codes.numel() > 0) else {
        return Ok(());
    };
    let last = codes.dim() as i64 - 1;
    for (feature, cardinality) in cardinalities
        .iter()
        .enumerate()
        .take(codes.size()[last as usize] as usize)
    {
        let column = codes.select(last, feature as i64);
        let (low, high) = (column.min().int64_value(&[]), column.max().int64_value(&[]));
        if low < 0 || high > *cardinality {
            return Err(Error::Shape {
                what: format!("x_cat[{feature}]"),
                expected: format!("codes 0 to {cardinality} (the last stands for unseen)"),
                got: format!("codes {low} to {high}"),
            });
        }
    }
    Ok(())
}

/// How the factors that set the members apart start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScalingInit {
    /// -1 or 1 with equal chance.
    RandomSigns,
    /// N(0, 1).
    Normal,
}

impl ScalingInit {
    /// `[k, Σ widths]`, one draw per member and feature, repeated over the feature's columns. (A historical
    /// accident of the paper's code that its results rest on.)
    pub fn draw(self, k: i64, widths: &[i64]) -> Tensor {
        let chunks: Vec<Tensor> = widths
            .iter()
            .map(|width| {
                let mut chunk = Tensor::empty([k, 1], tch::kind::FLOAT_CPU);
                let chunk = match self {
                    Self::RandomSigns => chunk.bernoulli_float_(0.5) * 2.0 - 1.0,
                    Self::Normal => chunk.normal_(0.0, 1.0),
                };
                chunk.expand([k, *width], false)
            })
            .collect();
        Tensor::cat(&chunks, 1)
    }
}

/// U(±1/√in), with the power taken as the package takes it, so that the bits are the same.
fn rsqrt_uniform(size: &[i64], inputs: i64) -> Tensor {
    nn::uniform(size, (inputs as f64).powf(-0.5))
}

/// k linear layers that share their matrix: `y = ((x ∘ r) Wᵀ) ∘ s + b`, with r, s, b of each member; r and s
/// may be absent, and b may be the same for all.
#[derive(Debug)]
pub struct SharedLinear {
    weight: Tensor,
    r: Option<Tensor>,
    s: Option<Tensor>,
    bias: Tensor,
}

/// Below so many rows the fused gradient of a block costs more than the plain one: it makes one small matrix
/// per member, whatever the batch.
const FUSED_BATCH: i64 = 32;

impl SharedLinear {
    /// A "batch ensemble": everything but the matrix is the member's own. `start` draws `r` (with the widths of
    /// the input's features); without it all members start equal.
    pub fn batch_ensemble(
        vs: &Path,
        inputs: i64,
        outputs: i64,
        k: i64,
        start: Option<(ScalingInit, &[i64])>,
    ) -> Self {
        let ones = |size: i64| Tensor::ones([k, size], tch::kind::FLOAT_CPU);
        let weight = nn::parameter(vs, "weight", &rsqrt_uniform(&[outputs, inputs], inputs));
        let r = start.map_or_else(|| ones(inputs), |(init, widths)| init.draw(k, widths));
        let r = nn::parameter(vs, "r", &r);
        let s = nn::parameter(vs, "s", &ones(outputs));
        let bias = rsqrt_uniform(&[outputs], inputs).repeat([k, 1]);
        Self {
            weight,
            r: Some(r),
            s: Some(s),
            bias: nn::parameter(vs, "bias", &bias),
        }
    }

    /// An ordinary linear layer, the same for all members.
    pub fn plain(vs: &Path, inputs: i64, outputs: i64) -> Self {
        let (weight, bias) = nn::linear_parameters(vs, inputs, outputs);
        Self {
            weight,
            r: None,
            s: None,
            bias,
        }
    }

    /// Puts a scaling of the input, `[k, in]`, before the layer.
    pub fn scale_input(&mut self, r: Tensor) {
        self.r = Some(r);
    }

    /// The layer as the fused operations take it.
    pub fn as_block(&self) -> Block<'_> {
        Block {
            weight: &self.weight,
            r: self.r.as_ref(),
            s: self.s.as_ref(),
            bias: &self.bias,
        }
    }

    /// The layer with ReLU and dropout behind it: `dropout(relu(((x ∘ r) Wᵀ) ∘ s + b))`.
    ///
    /// # Shapes
    /// `xs`: `[k, batch, in]`, or `[1, batch, in]` when all members see the same rows → `[k, batch, out]`.
    ///
    /// On the CPU one fused operation does it, unless gradients of a few rows are asked for.
    /// # Errors
    /// [`Error::Torch`].
    pub fn block(&self, xs: &Tensor, dropout: f64, train: bool) -> Result<Tensor> {
        let Self { weight, r, s, bias } = self;
        if fused::enabled(weight) && (xs.size()[1] >= FUSED_BATCH || !fused::records_gradients()) {
            let dropout = if train { dropout } else { 0.0 };
            let seed = if dropout > 0.0 { draw_seed() } else { 0 };
            return fused::block(xs, &self.as_block(), dropout, seed).map_err(Error::torch);
        }
        let of_member = |xs: &Tensor| xs.unsqueeze(1); // [k, 1, features]
        let scaled = r.as_ref().map(|r| xs * of_member(r));
        let xs = scaled.as_ref().unwrap_or(xs);
        let ys = match s {
            Some(s) => of_member(bias).addcmul(&xs.linear(weight, None::<&Tensor>), &of_member(s)),
            None => xs.linear(weight, Some(bias)),
        };
        Ok(ys.relu().dropout(dropout, train))
    }
}

/// k independent linear layers: `[k, batch, in]` → `[k, batch, out]`.
#[derive(Debug)]
pub struct LinearEnsemble {
    /// `[k, in, out]`.
    pub weight: Tensor,
    /// `[k, out]`.
    pub bias: Tensor,
}

impl LinearEnsemble {
    /// Weights and biases start at U(±1/√in).
    pub fn new(vs: &Path, inputs: i64, outputs: i64, k: i64) -> Self {
        let weight = nn::parameter(vs, "weight", &rsqrt_uniform(&[k, inputs, outputs], inputs));
        Self {
            weight,
            bias: nn::parameter(vs, "bias", &rsqrt_uniform(&[k, outputs], inputs)),
        }
    }
}

impl Module for LinearEnsemble {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let k = self.weight.size()[0];
        self.bias
            .unsqueeze(1)
            .baddbmm(&xs.expand([k, -1, -1], false), &self.weight, 1, 1)
    }
}
