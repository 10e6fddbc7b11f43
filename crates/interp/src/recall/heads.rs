//! Which heads carry the answer to the last position.

use std::str::FromStr;

use densely_core::{Error, Result};
use densely_lm::{KvCache, Lm, Run};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::{check_prompts, check_token, double, input, point_z};

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
/// may differ in length.
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
    let config = model.config();
    let mut run = Run::new().last_only().cache(&["blocks.*.attn.hook_z"]);
    let logits = model.run(&input(model, &[clean])?, &mut run)?;
    let clean_metric = measure(&logits, answer, metric)?;
    let clean_run = run.take_cache();

    let mut kv = KvCache::new(config.n_layers);
    let points = [
        "blocks.*.attn.hook_z",
        "blocks.*.hook_mlp_out",
        "blocks.*.hook_resid_pre",
    ];
    let (logits, corrupted_run) = {
        let mut run = Run::new().last_only().cache(&points).kv(&mut kv);
        let logits = model.run(&input(model, &[corrupted])?, &mut run)?;
        (logits, run.take_cache())
    };
    let corrupted_metric = measure(&logits, answer, metric)?;
    let past = corrupted.len() as i64 - 1;
    kv.truncate(past)?;
    // [1, 1, ..]
    let last = |xs: &Tensor| xs.f_narrow(1, xs.size()[1] - 1, 1);

    let mut heads = Vec::with_capacity(config.n_layers);
    for layer in 0..config.n_layers {
        let rows = config.n_heads;
        let residual = last(corrupted_run.get(&format!("blocks.{layer}.hook_resid_pre"))?)?
            .f_expand([rows, 1, config.d_model], false)?;
        let clean_z = last(clean_run.get(&point_z(layer))?)?.f_reshape([rows, config.d_head])?;
        let mut own = if past > 0 {
            Some(kv.expand(rows)?)
        } else {
            None
        };
        let mut run = Run::new().last_only();
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
        if patching != Patching::Activation {
            for later in layer + 1..config.n_layers {
                let kept = last(corrupted_run.get(&point_z(later))?)?;
                run = run.freeze(point_z(later), kept);
            }
        }
        if patching == Patching::Direct {
            for later in layer..config.n_layers {
                let point = format!("blocks.{later}.hook_mlp_out");
                let kept = last(corrupted_run.get(&point)?)?;
                run = run.freeze(point, kept);
            }
        }
        let logits = model.run_from(layer, &residual, &mut run)?;
        heads.push(measures(&logits, answer, metric)?);
    }
    Ok(HeadEffects {
        clean: clean_metric,
        corrupted: corrupted_metric,
        heads,
    })
}

/// The metric of each row of logits `[rows, 1, vocab]`.
fn measures(logits: &Tensor, answer: i64, metric: Metric) -> Result<Vec<f64>> {
    let logits = double(&logits.f_select(1, 0)?)?;
    let values = match metric {
        Metric::Logit => logits.f_select(1, answer)?,
        Metric::Probability => logits.f_softmax(-1, None::<Kind>)?.f_select(1, answer)?,
    };
    Ok(Vec::<f64>::try_from(&values.f_contiguous()?)?)
}

fn measure(logits: &Tensor, answer: i64, metric: Metric) -> Result<f64> {
    let values = measures(logits, answer, metric)?;
    Ok(values.first().copied().unwrap_or(f64::NAN))
}
