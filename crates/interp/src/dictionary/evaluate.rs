//! What a model loses when dictionaries stand in the place of its layers.
//!
//! The model's weights are never touched: a pass with the outputs of some points put in their place ends, and the next pass is the model's own again.

use std::cell::RefCell;

use densely_core::{Error, Result, check};
use densely_lm::{Lm, Run};
use serde::Serialize;
use tch::{Kind, Reduction, Tensor};

use super::{Dictionary, Features, Role};
use crate::activations::layer_of;
use crate::corpus::Corpus;

/// A dictionary in the place of what a layer writes.
#[derive(Debug, Clone, Copy)]
pub struct InPlace<'a> {
    /// The dictionary.
    pub dictionary: &'a Dictionary,
    /// The hook point that it reads.
    pub read: &'a str,
    /// The hook point whose value it gives.
    pub write: &'a str,
}

impl InPlace<'_> {
    /// Fails where the dictionary does not fit the model's points.
    fn check(&self, model: &Lm) -> Result<()> {
        let (read, write) = (layer_of(model, self.read)?, layer_of(model, self.write)?);
        if read > write {
            let reason = format!("`{}` is behind `{}`", self.read, self.write);
            return Err(Error::config("hook point", reason));
        }
        if self.dictionary.config().role == Role::Autoencoder && self.read != self.write {
            let reason = format!(
                "an autoencoder gives what it reads: `{}` is not `{}`",
                self.write, self.read
            );
            return Err(Error::config("hook point", reason));
        }
        Ok(())
    }
}

/// What stands in the layers' place for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ablation {
    /// Zeros.
    #[default]
    Zero,
    /// The mean output of the texts.
    Mean,
}

impl std::str::FromStr for Ablation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "zero" => Ok(Self::Zero),
            "mean" => Ok(Self::Mean),
            other => {
                let reason = format!("must be `zero` or `mean`, got `{other}`");
                Err(Error::config("ablation", reason))
            }
        }
    }
}

/// How a model with dictionaries in its layers' place is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvaluateOptions {
    /// Windows that go through the model at once.
    pub rows: usize,
    /// What it is compared with.
    pub ablation: Ablation,
    /// Whether the outputs of the token that begins each window are replaced, too.
    pub keep_first: bool,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            rows: 8,
            ablation: Ablation::Zero,
            keep_first: false,
        }
    }
}

/// What a model loses by dictionaries in its layers' place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Cross-entropy of the next token, nats: of the model itself.
    pub ce_clean: f64,
    /// With the dictionaries.
    pub ce_replaced: f64,
    /// With the ablation instead.
    pub ce_ablated: f64,
    /// (ablated - replaced) / (ablated - clean): 1 when nothing is lost; higher is better.
    pub recovered: f64,
    /// Mean divergence KL(model ‖ replaced), nats; lower is better.
    pub kl: f64,
    /// Predicted tokens.
    pub predictions: u64,
    /// Of each dictionary, in the order in which they were given.
    pub dictionaries: Vec<Layer>,
}

/// What a dictionary does in its place, on the inputs that it meets there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    /// The point whose value it gives.
    pub write: String,
    /// Features above 0 of a token, on average.
    pub l0: f64,
    /// Share of the variance of what the layer gives for the same input; higher is better.
    pub explained: f64,
    /// Share of features that fired for no token.
    pub silent: f64,
    /// Of each feature, how often it fired, as log10 of the share of tokens; none for those that never did.
    #[serde(skip)]
    pub log_frequency: Vec<Option<f64>>,
}

/// Sums over tokens of one dictionary.
struct Sums {
    tokens: i64,
    active: i64,
    left: f64,
    squares: f64,
    /// Of the targets.
    total: Tensor,
    counts: Tensor,
    /// What it read in this pass.
    seen: Option<Tensor>,
    /// Mean output, for ablations by it.
    mean: Option<Tensor>,
}

/// Judges dictionaries in their layers' place, all at once, on a corpus.
///
/// # Errors
/// [`Error::Config`] when a point is none of the model's, or there is nothing to replace; those of the model; `tell` hears of windows done and of all, and
/// its error ends the work.
pub fn evaluate(
    model: &Lm,
    corpus: &Corpus,
    replaced: &[InPlace],
    options: &EvaluateOptions,
    tell: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Evaluation> {
    check::positive("windows at once", options.rows as i64)?;
    check::positive("windows of the texts", corpus.windows() as i64)?;
    if corpus.context() < 2 {
        let reason = "must be at least 2: a window of one token predicts nothing";
        return Err(Error::config("context", reason));
    }
    if replaced.is_empty() {
        return Err(Error::config("dictionaries", "are none"));
    }
    replaced.iter().try_for_each(|each| each.check(model))?;
    let _no_grad = tch::no_grad_guard();
    let skip = if options.keep_first {
        0
    } else {
        corpus.skip() as i64
    };
    let sums: Vec<RefCell<Sums>> = replaced
        .iter()
        .map(|each| {
            let device = model.device();
            let config = each.dictionary.config();
            Ok(RefCell::new(Sums {
                tokens: 0,
                active: 0,
                left: 0.0,
                squares: 0.0,
                total: Tensor::f_zeros([config.d_out], (Kind::Double, device))?,
                counts: Tensor::f_zeros([config.d_sae], (Kind::Int64, device))?,
                seen: None,
                mean: None,
            }))
        })
        .collect::<Result<_>>()?;
    let all: Vec<usize> = (0..corpus.windows()).collect();
    if options.ablation == Ablation::Mean {
        means(model, corpus, replaced, options, &sums, skip, tell)?;
    }
    let mut losses = Losses::default();
    for (done, part) in all.chunks(options.rows).enumerate() {
        let ids = corpus.ids(part)?.f_to_device(model.device())?;
        let last = model.config().n_layers;
        let clean = model.run(&ids, &mut Run::new().stop_at(last))?;
        let mut run = Run::new().stop_at(last);
        for (each, sums) in replaced.iter().zip(&sums) {
            run = run
                .hook(each.read, |x| {
                    sums.borrow_mut().seen = Some(x.shallow_clone());
                    Ok(None)
                })
                .hook(each.write, move |y| {
                    replace(each.dictionary, y, &mut sums.borrow_mut(), skip).map(Some)
                });
        }
        let with = model.run(&ids, &mut run)?;
        drop(run);
        let mut run = Run::new().stop_at(last);
        for (each, sums) in replaced.iter().zip(&sums) {
            run = run.hook(each.write, move |y| {
                let kept = y.f_narrow(1, 0, skip)?;
                let rest = y.f_narrow(1, skip, y.size()[1] - skip)?;
                let instead = match &sums.borrow().mean {
                    Some(mean) => mean.f_to_kind(y.kind())?.f_expand(rest.size(), false)?,
                    None => rest.f_zeros_like()?,
                };
                Ok(Some(Tensor::f_cat(&[kept, instead], 1)?))
            });
        }
        let without = model.run(&ids, &mut run)?;
        drop(run);
        losses.add(model, &ids, [&clean, &with, &without])?;
        tell((done * options.rows + part.len()).min(all.len()), all.len())?;
    }
    let layers = replaced
        .iter()
        .zip(&sums)
        .map(|(each, sums)| sums.borrow().finish(each))
        .collect::<Result<_>>()?;
    losses.finish(layers)
}

/// What stands in a layer's place for some inputs.
struct Given {
    features: Features,
    /// What the layer itself gives, `[rows · time, d]`, and what the dictionary does.
    target: Tensor,
    ys: Tensor,
    /// In the shape of the layer's output, with its first positions as they were.
    whole: Tensor,
}

/// What the dictionary gives for `x`, `[rows, time, …]`, in the shape of `y`; its first `skip` positions stay.
fn given(dictionary: &Dictionary, x: &Tensor, y: &Tensor, skip: i64) -> Result<Given> {
    let flat = |xs: &Tensor| -> Result<Tensor> {
        let rest = xs.f_narrow(1, skip, xs.size()[1] - skip)?;
        Ok(rest.f_flatten(0, 1)?.f_flatten(1, -1)?)
    };
    let (x, target) = (flat(x)?, flat(y)?);
    let coded = dictionary.forward(&x.f_to_kind(dictionary.weights().0.kind())?)?;
    let ys = coded.reconstruction.f_to_kind(y.kind())?;
    check::same_shape("what the dictionary gives", &ys, &target)?;
    let mut size = y.size();
    if let Some(time) = size.get_mut(1) {
        *time -= skip;
    }
    let kept = y.f_narrow(1, 0, skip)?;
    Ok(Given {
        whole: Tensor::f_cat(&[kept, ys.f_reshape(size)?], 1)?,
        features: coded.features,
        target,
        ys,
    })
}

/// What the dictionary gives for what was seen; sums are made on the way.
fn replace(dictionary: &Dictionary, y: &Tensor, sums: &mut Sums, skip: i64) -> Result<Tensor> {
    let x = sums.seen.take().ok_or_else(unread)?;
    let given = given(dictionary, &x, y, skip)?;
    sums.note(&given)?;
    Ok(given.whole)
}

fn unread() -> Error {
    Error::config("hook point", "is written before it is read")
}

/// The model's logits `[rows, time, vocab]` for token ids `[rows, time]`, with dictionaries in their layers' place at all positions.
///
/// # Errors
/// Those of [`evaluate`].
pub fn replaced_run(model: &Lm, ids: &Tensor, replaced: &[InPlace]) -> Result<Tensor> {
    replaced.iter().try_for_each(|each| each.check(model))?;
    let seen: Vec<RefCell<Option<Tensor>>> = replaced.iter().map(|_| RefCell::default()).collect();
    let mut run = Run::new();
    for (each, seen) in replaced.iter().zip(&seen) {
        run = run
            .hook(each.read, |x| {
                *seen.borrow_mut() = Some(x.shallow_clone());
                Ok(None)
            })
            .hook(each.write, move |y| {
                let x = seen.borrow_mut().take().ok_or_else(unread)?;
                Ok(Some(given(each.dictionary, &x, y, 0)?.whole))
            });
    }
    model.run(ids, &mut run)
}

/// Mean outputs of the layers over the corpus.
fn means(
    model: &Lm,
    corpus: &Corpus,
    replaced: &[InPlace],
    options: &EvaluateOptions,
    sums: &[RefCell<Sums>],
    skip: i64,
    tell: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let points: Vec<&str> = replaced.iter().map(|each| each.write).collect();
    let stop = points
        .iter()
        .map(|point| layer_of(model, point))
        .try_fold(0, |most, layer| Ok::<_, Error>(most.max(layer? + 1)))?;
    let mut totals: Vec<Option<Tensor>> = points.iter().map(|_| None).collect();
    let all: Vec<usize> = (0..corpus.windows()).collect();
    let mut tokens = 0;
    for part in all.chunks(options.rows) {
        // A pass before those that are counted.
        tell(0, all.len())?;
        let ids = corpus.ids(part)?.f_to_device(model.device())?;
        let mut run = Run::new().stop_at(stop).cache(&points);
        let _ = model.run(&ids, &mut run)?;
        let cache = run.take_cache();
        tokens += part.len() as i64 * (corpus.context() as i64 - skip);
        for (total, point) in totals.iter_mut().zip(&points) {
            let xs = cache.get(point)?;
            let sum = xs
                .f_narrow(1, skip, xs.size()[1] - skip)?
                .f_sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Double)?;
            *total = Some(match total.take() {
                Some(total) => total.f_add(&sum)?,
                None => sum,
            });
        }
    }
    for (total, sums) in totals.into_iter().zip(sums) {
        sums.borrow_mut().mean = total
            .map(|total| total.f_div_scalar(tokens as f64))
            .transpose()?;
    }
    Ok(())
}

impl Sums {
    fn note(&mut self, given: &Given) -> Result<()> {
        let Given {
            features,
            target,
            ys,
            ..
        } = given;
        self.tokens += target.size()[0];
        self.active += features.active()?;
        self.counts = self.counts.f_add(&features.counts()?)?;
        let wide = target.f_to_kind(Kind::Double)?;
        let left = ys.f_to_kind(Kind::Double)?.f_sub(&wide)?;
        self.left += left.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        self.squares += wide.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        let sum = wide.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?;
        self.total = self.total.f_add(&sum)?;
        Ok(())
    }

    fn finish(&self, each: &InPlace) -> Result<Layer> {
        let tokens = self.tokens as f64;
        let mean = self
            .total
            .f_square()?
            .f_sum(Kind::Double)?
            .f_double_value(&[])?
            / tokens;
        let counts = Vec::<i64>::try_from(&self.counts)?;
        let silent = counts.iter().filter(|count| **count == 0).count();
        let log = |count: &i64| (*count > 0).then(|| (*count as f64 / tokens).log10());
        Ok(Layer {
            write: each.write.to_owned(),
            l0: self.active as f64 / tokens,
            explained: 1.0 - self.left / (self.squares - mean),
            silent: silent as f64 / counts.len() as f64,
            log_frequency: counts.iter().map(log).collect(),
        })
    }
}

/// Sums over predicted tokens.
#[derive(Default)]
struct Losses {
    /// Of the model, with dictionaries, ablated.
    ce: [f64; 3],
    kl: f64,
    predictions: u64,
}

/// Bytes of logits at a time, about.
const MAX_LOGITS: i64 = 128 << 20;

impl Losses {
    /// Adds the predictions behind the last residuals `[rows, time, d]` of the three passes.
    fn add(&mut self, model: &Lm, ids: &Tensor, residuals: [&Tensor; 3]) -> Result<()> {
        let time = ids.size()[1];
        let targets = ids.f_narrow(1, 1, time - 1)?.f_flatten(0, 1)?;
        let [clean, with, without] = residuals
            .map(|xs| -> Result<Tensor> { Ok(xs.f_narrow(1, 0, time - 1)?.f_flatten(0, 1)?) });
        let (clean, with, without) = (clean?, with?, without?);
        let at_once = (MAX_LOGITS / (model.config().vocab_size * 4)).max(1);
        let all = targets.size()[0];
        let mut start = 0;
        while start < all {
            let count = at_once.min(all - start);
            let targets = targets.f_narrow(0, start, count)?;
            let logs = |residual: &Tensor| -> Result<Tensor> {
                let logits = model.unembed(&residual.f_narrow(0, start, count)?)?;
                Ok(logits
                    .f_to_kind(Kind::Float)?
                    .f_log_softmax(-1, Kind::Float)?)
            };
            let loss = |logs: &Tensor| -> Result<f64> {
                let each = logs.f_nll_loss(&targets, None::<Tensor>, Reduction::None, -100)?;
                Ok(each.f_sum(Kind::Double)?.f_double_value(&[])?)
            };
            let of_model = logs(&clean)?;
            let of_replaced = logs(&with)?;
            self.ce[0] += loss(&of_model)?;
            self.ce[1] += loss(&of_replaced)?;
            self.kl += of_model
                .f_exp()?
                .f_mul(&of_model.f_sub(&of_replaced)?)?
                .f_sum(Kind::Double)?
                .f_double_value(&[])?;
            self.ce[2] += loss(&logs(&without)?)?;
            start += count;
        }
        self.predictions += all as u64;
        Ok(())
    }

    fn finish(&self, dictionaries: Vec<Layer>) -> Result<Evaluation> {
        let count = self.predictions as f64;
        let [clean, replaced, ablated] = self.ce.map(|sum| sum / count);
        if !(clean.is_finite() && replaced.is_finite() && ablated.is_finite()) {
            let reason = "the model's or the dictionaries' numbers are not finite";
            return Err(Error::data("", reason));
        }
        Ok(Evaluation {
            ce_clean: clean,
            ce_replaced: replaced,
            ce_ablated: ablated,
            recovered: (ablated - replaced) / (ablated - clean),
            kl: self.kl / count,
            predictions: self.predictions,
            dictionaries,
        })
    }
}
