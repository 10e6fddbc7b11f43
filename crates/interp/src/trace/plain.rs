//! Causal tracing as it is defined: a forward pass of 1 + n rows for each cell.
//!
//! The oracle of the fast way, and what to read first. Cost: tokens × layers passes of each kind, twice as many where modules
//! are severed.

use std::ops::Range;

use densely_core::Result;
use densely_lm::{Cache, Lm, Run};
use tch::Tensor;

use super::{Prompt, Restore, Scored, Trace, TraceOptions, check_noise, corrupted, mean, result};

/// Traces a prompt under given noise `[samples, subject tokens, d]`; row 0 is clean, the others are corrupted.
///
/// # Errors
/// As [`trace_with`](super::trace_with).
pub fn trace_with(
    model: &Lm,
    prompt: &Prompt,
    noise: &Tensor,
    options: &TraceOptions,
) -> Result<Trace> {
    options.validate()?;
    prompt.validate(model)?;
    check_noise(model, prompt, noise)?;
    let _guard = tch::no_grad_guard();
    let scored = Scored::new(model, prompt, options.score)?;
    let job = Job {
        model,
        input: scored.input(model, 1 + noise.size()[0])?,
        scored: &scored,
        noise,
        start: prompt.subject.start,
        replace: options.replace,
    };
    let rows = job.probabilities(&mut job.corrupting())?;
    let (high, low) = rows
        .split_first()
        .map_or((0.0, 0.0), |(high, rest)| (*high, mean(rest)));
    let mut trace = result(prompt, &scored, options, high, low);
    let n_layers = model.config().n_layers;
    for kind in &options.kinds {
        let mut grid = Vec::new();
        for token in 0..prompt.ids.len() {
            let row = (0..n_layers).map(|layer| {
                let layers = kind.layers(layer, options.window, n_layers);
                job.cell(*kind, token as i64, layers)
            });
            grid.push(row.collect::<Result<Vec<f64>>>()?);
        }
        trace.scores.insert(*kind, grid);
    }
    Ok(trace)
}

struct Job<'a> {
    model: &'a Lm,
    /// `[1 + samples, tokens]`.
    input: Tensor,
    scored: &'a Scored,
    noise: &'a Tensor,
    start: usize,
    replace: bool,
}

impl Job<'_> {
    /// A pass up to the last residual, in which all rows but the first are corrupted.
    fn corrupting(&self) -> Run<'_> {
        Run::new()
            .stop_at(self.model.config().n_layers)
            .hook("hook_embed", |xs: &Tensor| {
                Ok(Some(corrupted(xs, self.noise, self.start, self.replace)?))
            })
    }

    /// The answer's probability in each row.
    fn probabilities(&self, run: &mut Run<'_>) -> Result<Vec<f64>> {
        let residual = self.model.run(&self.input, run)?;
        self.scored.probabilities(self.model, &residual)
    }

    /// The mean probability with the outputs of these layers at one token restored.
    fn cell(&self, kind: Restore, token: i64, layers: Range<usize>) -> Result<f64> {
        let n_layers = self.model.config().n_layers;
        let severed: Vec<String> = (0..n_layers).filter_map(|l| kind.severed(l)).collect();
        // What they give in the corrupted run.
        let kept = if severed.is_empty() {
            Cache::default()
        } else {
            let mut run = self.corrupting().cache(&severed);
            let _ = self.model.run(&self.input, &mut run)?;
            run.take_cache()
        };
        let mut run = self.corrupting();
        for point in &severed {
            let value = kept.get(point)?;
            run = run.hook(point.as_str(), move |xs: &Tensor| {
                let out = xs.copy();
                let rows = xs.size()[0] - 1;
                let mut place = out.f_narrow(0, 1, rows)?.f_select(1, token)?;
                place.f_copy_(&value.f_narrow(0, 1, rows)?.f_select(1, token)?)?;
                Ok(Some(out))
            });
        }
        for layer in layers {
            run = run.hook(kind.point(layer), move |xs: &Tensor| {
                let out = xs.copy();
                let mut place = out.f_narrow(0, 1, xs.size()[0] - 1)?.f_select(1, token)?;
                place.f_copy_(&xs.f_select(0, 0)?.f_select(0, token)?)?;
                Ok(Some(out))
            });
        }
        let rows = self.probabilities(&mut run)?;
        Ok(mean(rows.get(1..).unwrap_or_default()))
    }
}
