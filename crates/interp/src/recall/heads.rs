//! Which heads carry the answer to the last position.

use std::str::FromStr;

use densely_core::{Error, Result};
use densely_lm::{Cache, KvCache, Lm, Run};
use serde::Serialize;
use tch::Tensor;

use super::{check_prompts, check_token, double, input, point_z, probabilities};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The answer's logit.
    #[default]
    Logit,
    /// The answer's probability.
    Probability,
}

/// What else may change when a head's output is set to that of the clean prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Patching {
    /// All that follows.
    #[default]
    Activation,
    /// The MLPs that follow; the other heads stay as in the corrupted run.
    PathThroughMlps,
    /// Nothing: the head's output reaches the last norm alone.
    Direct,
}

impl FromStr for Patching {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "activation" => Ok(Self::Activation),
            "path" => Ok(Self::PathThroughMlps),
            "direct" => Ok(Self::Direct),
            _ => Err(Error::config(
                "patching",
                format!("must be `activation`, `path` or `direct`, got `{text}`"),
            )),
        }
    }
}

/// The metric with one head's output at the last position set to that of the clean prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadEffects {
    /// The metric on the clean prompt.
    pub clean: f64,
    /// The metric on the corrupted prompt.
    pub corrupted: f64,
    /// By layer and head.
    pub heads: Vec<Vec<f64>>,
}

impl HeadEffects {
    /// Heads by how far each takes the corrupted prompt's metric toward the clean one's: layer, head, metric - corrupted.
    pub fn ranked(&self) -> Vec<(usize, usize, f64)> {
        let mut all: Vec<(usize, usize, f64)> = self
            .heads
            .iter()
            .enumerate()
            .flat_map(|(layer, heads)| {
                heads
                    .iter()
                    .enumerate()
                    .map(move |(head, value)| (layer, head, value - self.corrupted))
            })
            .collect();
        let sign = if self.clean < self.corrupted {
            -1.0
        } else {
            1.0
        };
        all.sort_by(|a, b| (sign * b.2).total_cmp(&(sign * a.2)));
        all
    }
}

/// Sets the output (`hook_z`) of each head at the last position of a corrupted prompt, of another subject, to what it is on the clean
/// prompt, one head at a time, and measures `answer`.
///
/// Only the last position differs between these runs, so that it alone is computed, with all heads of a layer in one pass; the prompts
/// may differ in length. By [`Patching::Direct`] nothing is computed anew: what a head writes is exchanged in the last residual. Of the logits
/// only the answer's is made, unless its probability is asked for, which takes all of them.
///
/// # Errors
/// [`Error::Config`] when a prompt or the answer does not fit the model.
pub fn head_effects(
    model: &Lm,
    clean: &[i64],
    corrupted: &[i64],
    answer: i64,
    metric: Metric,
    patching: Patching,
) -> Result<HeadEffects> {
    check_prompts(model, [clean.to_vec(), corrupted.to_vec()].iter())?;
    check_token(model, answer)?;
    let _guard = tch::no_grad_guard();
    let n_layers = model.config().n_layers;
    let gauge = Gauge::new(model, answer, metric)?;
    let mut run = Run::new()
        .stop_at(n_layers)
        .cache(&["blocks.*.attn.hook_z"]);
    let residual = model.run(&input(model, &[clean])?, &mut run)?;
    let clean_run = run.take_cache();
    let clean_metric = gauge.first(&last(&residual)?)?;

    let mut kv = KvCache::new(n_layers);
    let mut points = vec!["blocks.*.attn.hook_z"];
    if patching != Patching::Direct {
        points.push("blocks.*.hook_resid_pre");
    }
    let (residual, corrupted_run) = {
        let mut run = Run::new().stop_at(n_layers).cache(&points).kv(&mut kv);
        let residual = model.run(&input(model, &[corrupted])?, &mut run)?;
        (last(&residual)?, run.take_cache())
    };
    kv.truncate(corrupted.len() as i64 - 1)?;
    let job = Job {
        model,
        patching,
        clean: clean_run,
        corrupted: corrupted_run,
        residual,
        kv,
    };
    let heads = (0..n_layers).map(|layer| gauge.read(&job.patched(layer)?));
    Ok(HeadEffects {
        clean: clean_metric,
        corrupted: gauge.first(&job.residual)?,
        heads: heads.collect::<Result<_>>()?,
    })
}

/// What there is before heads are patched.
struct Job<'a> {
    model: &'a Lm,
    patching: Patching,
    clean: Cache,
    corrupted: Cache,
    /// Behind the last block of the corrupted run, `[1, d]`.
    residual: Tensor,
    /// Keys and values of the corrupted run before its last position.
    kv: KvCache,
}

impl Job<'_> {
    /// The residual behind the last block with each head of a layer patched, `[heads, d]`.
    fn patched(&self, layer: usize) -> Result<Tensor> {
        let config = self.model.config();
        let rows = config.n_heads;
        let clean_z = last(self.clean.get(&point_z(layer))?)?; // [1, heads, d_head]
        if self.patching == Patching::Direct {
            let own_z = last(self.corrupted.get(&point_z(layer))?)?;
            let written = |zs: &Tensor| self.model.head_results(layer, &zs.f_unsqueeze(1)?);
            let gained = written(&clean_z)?.f_sub(&written(&own_z)?)?; // [1, 1, heads, d]
            let gained = gained.f_reshape([rows, config.d_model])?;
            return Ok(self.residual.f_add(&gained)?);
        }
        let entering = format!("blocks.{layer}.hook_resid_pre");
        let entering = last(self.corrupted.get(&entering)?)?
            .f_unsqueeze(1)?
            .f_expand([rows, 1, config.d_model], false)?;
        let clean_z = clean_z.f_reshape([rows, config.d_head])?;
        let mut own = if self.kv.is_empty() {
            None
        } else {
            Some(self.kv.expand(rows)?)
        };
        let mut run = Run::new().stop_at(config.n_layers);
        if let Some(own) = &mut own {
            run = run.kv(own);
        }
        run = run.hook(point_z(layer), move |zs: &Tensor| {
            let out = zs.f_contiguous()?.copy();
            // Row h, head h: [d_head, heads].
            let mut place = out.f_select(1, 0)?.f_diagonal(0, 0, 1)?;
            place.f_copy_(&clean_z.f_tr()?)?;
            Ok(Some(out))
        });
        if self.patching == Patching::PathThroughMlps {
            for later in layer + 1..config.n_layers {
                let kept = last(self.corrupted.get(&point_z(later))?)?.f_unsqueeze(1)?;
                run = run.freeze(point_z(later), kept);
            }
        }
        last(&self.model.run_from(layer, &entering, &mut run)?)
    }
}

/// A value `[rows, time, ..]` at the last position, `[rows, ..]`.
fn last(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.f_select(1, -1)?)
}

/// Reads the metric off residuals behind the last block.
struct Gauge<'a> {
    model: &'a Lm,
    answer: i64,
    /// The answer's column of the head, `[d]`, and its logit of a residual that is all zeros: bias of the norm and of the head. `None` for
    /// the probability.
    column: Option<(Tensor, f64)>,
}

impl<'a> Gauge<'a> {
    fn new(model: &'a Lm, answer: i64, metric: Metric) -> Result<Self> {
        let column = match metric {
            Metric::Probability => None,
            Metric::Logit => {
                let size = [1, model.config().d_model];
                let zeros = Tensor::f_zeros(size, (model.kind(), model.device()))?;
                let constant = model.unembed(&zeros)?.f_double_value(&[0, answer])?;
                Some((model.w_u()?.f_select(1, answer)?, constant))
            }
        };
        Ok(Self {
            model,
            answer,
            column,
        })
    }

    /// The metric of each residual `[rows, d]`.
    fn read(&self, residual: &Tensor) -> Result<Vec<f64>> {
        let Some((column, constant)) = &self.column else {
            let answers = vec![self.answer; residual.size()[0] as usize];
            return probabilities(self.model, residual, &answers);
        };
        let scale = self.model.final_scale(residual)?;
        let normed = self.model.frozen_norm(residual, &scale)?;
        let logits = normed.f_mv(&column.f_to_kind(normed.kind())?)?;
        let logits = double(&logits)?.f_add_scalar(*constant)?;
        Ok(Vec::<f64>::try_from(&logits)?)
    }

    /// The metric of the first one.
    fn first(&self, residual: &Tensor) -> Result<f64> {
        let values = self.read(residual)?;
        Ok(values.first().copied().unwrap_or(f64::NAN))
    }
}
