//! Causal tracing with everything reused that cannot differ between cells.

use std::ops::Range;

use densely_core::Result;
use densely_lm::{Cache, KvCache, Lm, Run};
use tch::Tensor;

use super::{Prompt, Restore, Scored, Trace, TraceOptions, check_noise, corrupted, mean, result};

/// Traces a prompt under given noise `[samples, subject tokens, d]`, which takes the place of the options' samples, draws and
/// seed.
///
/// Memory beside the model: the corrupted run's residuals, keys and values of all layers, and the activations of
/// [`batch_rows`](TraceOptions::batch_rows) rows in one layer.
///
/// # Errors
/// [`densely_core::Error::Config`] when a setting is out of range or the prompt does not fit the model;
/// [`densely_core::Error::Shape`] when the noise does not fit.
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
    let job = Job::new(model, prompt, noise, options, &scored)?;
    let clean = job.clean_high()?;
    let low = mean(&scored.probabilities(model, job.residual(model.config().n_layers)?)?);
    let mut trace = result(prompt, &scored, options, clean, low);
    let n_layers = model.config().n_layers;
    let cells = (options.batch_rows / job.samples as usize).max(1);
    for kind in &options.kinds {
        let mut grid = Vec::with_capacity(prompt.ids.len());
        for token in 0..prompt.ids.len() {
            // Nothing is corrupted there, so that there is nothing to restore.
            if token < prompt.subject.start {
                grid.push(vec![low; n_layers]);
                continue;
            }
            let mut row = Vec::with_capacity(n_layers);
            while row.len() < n_layers {
                let some = row.len()..(row.len() + cells).min(n_layers);
                row.extend(job.column(*kind, token as i64, some)?);
            }
            grid.push(row);
        }
        trace.scores.insert(*kind, grid);
    }
    Ok(trace)
}

struct Job<'a> {
    model: &'a Lm,
    scored: &'a Scored,
    window: usize,
    samples: i64,
    /// Tokens that go through the model.
    length: i64,
    /// Of the clean run, one row: what is restored.
    clean: Cache,
    /// Of the corrupted runs, a row each: residuals, and what severed modules give.
    corrupted: Cache,
    /// Keys and values of the corrupted runs.
    kv: KvCache,
}

impl<'a> Job<'a> {
    /// Makes the clean and the corrupted run.
    fn new(
        model: &'a Lm,
        prompt: &Prompt,
        noise: &Tensor,
        options: &TraceOptions,
        scored: &'a Scored,
    ) -> Result<Self> {
        let n_layers = model.config().n_layers;
        let samples = noise.size()[0];
        let mut restored: Vec<String> = Vec::new();
        // The residual that enters the first layer, those that enter the others, and the last one.
        let mut kept = vec!["blocks.0.hook_resid_pre".to_owned()];
        for layer in 0..n_layers {
            kept.push(Restore::Block.point(layer));
            for kind in &options.kinds {
                restored.push(kind.point(layer));
                kept.extend(kind.severed(layer));
            }
        }
        // Of the clean run the last residual gives the answer's probability.
        restored.push(Restore::Block.point(n_layers - 1));
        for names in [&mut restored, &mut kept] {
            names.sort_unstable();
            names.dedup();
        }
        let mut run = Run::new().stop_at(n_layers).cache(&restored);
        let _ = model.run(&scored.input(model, 1)?, &mut run)?;
        let clean = run.take_cache();
        let mut kv = KvCache::new(n_layers);
        let start = prompt.subject.start;
        let corrupted = {
            let mut run = Run::new()
                .stop_at(n_layers)
                .cache(&kept)
                .kv(&mut kv)
                .hook("hook_embed", |xs: &Tensor| {
                    Ok(Some(corrupted(xs, noise, start, options.replace)?))
                });
            let _ = model.run(&scored.input(model, samples)?, &mut run)?;
            run.take_cache()
        };
        Ok(Self {
            model,
            scored,
            window: options.window,
            samples,
            length: scored.ids.len() as i64,
            clean,
            corrupted,
            kv,
        })
    }

    fn clean_high(&self) -> Result<f64> {
        let last = Restore::Block.point(self.model.config().n_layers - 1);
        let rows = self
            .scored
            .probabilities(self.model, self.clean.get(&last)?)?;
        Ok(mean(&rows))
    }

    /// The corrupted residual `[samples, tokens, d]` that enters a layer; behind the last one that of the end.
    fn residual(&self, layer: usize) -> Result<&Tensor> {
        match layer.checked_sub(1) {
            None => self.corrupted.get("blocks.0.hook_resid_pre"),
            Some(below) => self.corrupted.get(&Restore::Block.point(below)),
        }
    }

    /// The layer from which on a cell's run is no longer the corrupted one.
    fn first(&self, kind: Restore, cell: usize) -> usize {
        let layers = kind.layers(cell, self.window, self.model.config().n_layers);
        match kind {
            Restore::Mlp | Restore::Attention => layers.start,
            // The output of a block is what enters the next one.
            Restore::Block | Restore::SeveredMlp | Restore::SeveredAttention => layers.end,
        }
    }

    /// Scores of some cells (layers, of windows their middles) of a token.
    fn column(&self, kind: Restore, token: i64, cells: Range<usize>) -> Result<Vec<f64>> {
        let n_layers = self.model.config().n_layers;
        // First layers never fall from one cell to the next, so that cells join in order.
        let mut waiting = cells.clone().peekable();
        let mut rows: Option<Tensor> = None; // [joined cells × samples, tokens from `token` on, d]
        let begin = self.first(kind, cells.start);
        for layer in begin..=n_layers {
            while waiting
                .peek()
                .is_some_and(|cell| self.first(kind, *cell) == layer)
            {
                waiting.next();
                let joining = self.joining(kind, token, layer)?;
                rows = Some(match rows {
                    None => joining,
                    Some(rows) => Tensor::f_cat(&[rows, joining], 0)?,
                });
            }
            let joined = cells.start..waiting.peek().copied().unwrap_or(cells.end);
            if let Some(xs) = rows.take_if(|_| layer < n_layers) {
                rows = Some(self.through(kind, token, layer, &xs, &joined)?);
            }
        }
        let Some(rows) = rows else {
            return Ok(Vec::new());
        };
        let scores = self.scored.probabilities(self.model, &rows)?;
        Ok(scores.chunks(self.samples as usize).map(mean).collect())
    }

    /// The rows with which a cell enters a layer, `[samples, tokens from `token` on, d]`.
    fn joining(&self, kind: Restore, token: i64, layer: usize) -> Result<Tensor> {
        let rest = self
            .residual(layer)?
            .f_narrow(1, token, self.length - token)?;
        match (kind, layer.checked_sub(1)) {
            (Restore::Block | Restore::SeveredMlp | Restore::SeveredAttention, Some(below)) => {
                let rest = rest.copy();
                let clean = self.clean.get(&kind.point(below))?;
                let mut place = rest.f_select(1, 0)?;
                place.f_copy_(&clean.f_select(1, token)?)?; // [1, d] to all samples
                Ok(rest)
            }
            _ => Ok(rest),
        }
    }

    /// What `joined` cells leave a layer with.
    fn through(
        &self,
        kind: Restore,
        token: i64,
        layer: usize,
        xs: &Tensor,
        joined: &Range<usize>,
    ) -> Result<Tensor> {
        let samples = self.samples;
        let mut kv = self.before(token, layer, joined.len() as i64)?;
        let mut run = Run::new().stop_at(layer + 1);
        if let Some(kv) = &mut kv {
            run = run.kv(kv);
        }
        // Windows end in order too: the cells that still restore here are the last ones.
        let is_over = |cell: &usize| {
            kind.layers(*cell, self.window, self.model.config().n_layers)
                .end
                <= layer
        };
        let over = joined.clone().filter(is_over).count() as i64;
        let count = joined.len() as i64 - over;
        if matches!(kind, Restore::Mlp | Restore::Attention) && count > 0 {
            let point = kind.point(layer);
            let clean = self.clean.get(&point)?.f_select(1, token)?; // [1, d]
            run = run.hook(point, move |xs: &Tensor| {
                let out = xs.copy();
                let mut place = out
                    .f_narrow(0, over * samples, count * samples)?
                    .f_select(1, 0)?;
                place.f_copy_(&clean)?;
                Ok(Some(out))
            });
        }
        if let Some(point) = kind.severed(layer) {
            let value = self.corrupted.get(&point)?.f_select(1, token)?; // [samples, d]
            run = run.hook(point, move |xs: &Tensor| {
                // Contiguous, so that a view of it can be written to.
                let out = xs.f_contiguous()?.copy();
                let size = out.size();
                let mut place = out
                    .f_view_([-1, samples, size[1], size[2]])?
                    .f_select(2, 0)?; // [cells, samples, d]
                place.f_copy_(&value)?;
                Ok(Some(out))
            });
        }
        self.model.run_from(layer, xs, &mut run)
    }

    /// Keys and values of the positions before `token` in a layer, for the rows of `cells` cells.
    fn before(&self, token: i64, layer: usize, cells: i64) -> Result<Option<KvCache>> {
        if token == 0 {
            return Ok(None);
        }
        let Some((keys, values)) = self.kv.layer(layer) else {
            return Ok(None);
        };
        let repeated = |xs: &Tensor| -> Result<Tensor> {
            let before = xs.f_narrow(2, 0, token)?; // [samples, heads, before, d of a head]
            Ok(before.f_repeat([cells, 1, 1, 1])?)
        };
        let mut kv = KvCache::new(self.model.config().n_layers);
        kv.set_layer(layer, repeated(keys)?, repeated(values)?);
        Ok(Some(kv))
    }
}
