//! How well a model foretells a text.

use densely_core::{Error, Result};
use tch::{Kind, Reduction, Tensor};

use crate::hooks::Run;
use crate::model::Lm;

/// Bytes of logits at a time, about. Windows go together as long as the logits of all their tokens would be no more: that bounds what the
/// layers take, too.
const MAX_LOGITS: i64 = 256 << 20;

/// Mean surprise of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Mean negative log-likelihood of a predicted token, natural logarithm; lower is better.
    pub nll: f64,
    /// Its exponential; lower is better.
    pub perplexity: f64,
    /// Tokens that were predicted.
    pub predictions: u64,
}

impl Perplexity {
    fn of(sum: f64, predictions: u64) -> Self {
        let nll = sum / predictions as f64;
        Self {
            nll,
            perplexity: nll.exp(),
            predictions,
        }
    }

    /// Bits that the predictions cost for each of `units` of text, such as bytes or words: comparable between tokenisers.
    pub fn bits_per(&self, units: u64) -> f64 {
        self.nll * self.predictions as f64 / std::f64::consts::LN_2 / units as f64
    }

    /// Perplexity of each of `units` of text, such as words.
    pub fn per(&self, units: u64) -> f64 {
        (self.nll * self.predictions as f64 / units as f64).exp()
    }
}

/// Perplexity of a text that is cut into windows of `window` tokens, each read on its own: the first token of each is not predicted.
///
/// # Errors
/// [`Error::Config`] for fewer than two tokens, a window below two, or one longer than the model takes.
pub fn perplexity(model: &Lm, ids: &[i64], window: usize) -> Result<Perplexity> {
    perplexity_strided(model, ids, window, window, &mut |_, _| Ok(()))
}

/// Perplexity of a text that is read in windows of `window` tokens whose starts are `stride` apart. Each token but the first is predicted once,
/// in the first window that has it, with at least `window - stride` tokens before it where the text has them; `stride` equal to `window`
/// is [`perplexity`]. `tell` hears how many tokens of how many are done; its error ends the work.
///
/// # Errors
/// Those of [`perplexity`]; [`Error::Config`] for a stride of 0 or above the window.
pub fn perplexity_strided(
    model: &Lm,
    ids: &[i64],
    window: usize,
    stride: usize,
    tell: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Perplexity> {
    let limit = model.config().n_ctx as usize;
    if !(2..=limit).contains(&window) {
        let reason = format!("must lie in 2 to {limit}, what the model takes, got {window}");
        return Err(Error::config("window", reason));
    }
    if !(1..=window).contains(&stride) {
        let reason = format!("must lie in 1 to the window, {window}, got {stride}");
        return Err(Error::config("stride", reason));
    }
    if ids.len() < 2 {
        let reason = format!("two tokens are the least to predict one, got {}", ids.len());
        return Err(Error::config("ids", reason));
    }
    let _no_grad = tch::no_grad_guard();
    let at_once = (MAX_LOGITS / (model.config().vocab_size * 4)).max(1);
    let together = (at_once / window as i64).max(1) as usize;
    let windows = windows(ids.len(), window, stride);
    let (mut sum, mut predictions) = (0.0, 0);
    let mut rest = windows.as_slice();
    while let Some(first) = rest.first() {
        // Only windows of one length go together.
        let alike = |other: &&Window| other.end - other.start == first.end - first.start;
        let count = rest.iter().take_while(alike).take(together).count();
        let (batch, later) = rest.split_at(count);
        let tokens: Vec<i64> = batch
            .iter()
            .flat_map(|window| &ids[window.start..window.end])
            .copied()
            .collect();
        let size = [count as i64, -1];
        let tokens = Tensor::f_from_slice(&tokens)?
            .f_reshape(size)?
            .f_to_device(model.device())?;
        let mut run = Run::new().stop_at(model.config().n_layers);
        let residual = model.run(&tokens, &mut run)?; // [batch, time, d]
        let (mut scored, mut targets) = (Vec::new(), Vec::new());
        for (row, window) in batch.iter().enumerate() {
            let start = (window.scored - window.start) as i64;
            let length = (window.end - window.scored) as i64;
            let row = row as i64;
            scored.push(residual.f_select(0, row)?.f_narrow(0, start - 1, length)?);
            targets.push(tokens.f_select(0, row)?.f_narrow(0, start, length)?);
            predictions += length as u64;
        }
        let scored = Tensor::f_cat(&scored, 0)?; // [predicted, d]
        let targets = Tensor::f_cat(&targets, 0)?; // [predicted]
        sum += losses(model, &scored, &targets, at_once)?;
        rest = later;
        tell(batch.last().map_or(0, |window| window.end), ids.len())?;
    }
    if !f64::is_finite(sum) {
        let reason = format!(
            "the model's logits are no numbers as {:?}; take a wider kind, such as f32",
            model.kind()
        );
        return Err(Error::data("", reason));
    }
    Ok(Perplexity::of(sum, predictions))
}

/// Sum of the negative log-likelihoods of the tokens `[n]` after the last residuals `[n, d]`, with the logits of so many at once.
fn losses(model: &Lm, residual: &Tensor, targets: &Tensor, at_once: i64) -> Result<f64> {
    let parts = residual.f_split(at_once, 0)?.into_iter();
    let mut sum = 0.0;
    for (residual, targets) in parts.zip(targets.f_split(at_once, 0)?) {
        let logits = model.unembed(&residual)?.f_to_kind(Kind::Float)?; // [part, vocab]
        let losses =
            logits.f_cross_entropy_loss(&targets, None::<Tensor>, Reduction::None, -100, 0.0)?;
        sum += losses.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum)
}

/// Tokens `start..end` are read, `scored..end` predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    start: usize,
    scored: usize,
    end: usize,
}

fn windows(tokens: usize, window: usize, stride: usize) -> Vec<Window> {
    let mut all = Vec::new();
    let mut done = 0;
    for start in (0..tokens).step_by(stride) {
        let end = (start + window).min(tokens);
        let scored = done.max(start + 1);
        if scored < end {
            all.push(Window { start, scored, end });
        }
        done = end;
        if end == tokens {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use densely_core::seeded;
    use serde_json::json;
    use tch::Device;
    use tch::nn::VarStore;

    use super::*;
    use crate::config::LmConfig;

    #[test]
    fn windows_side_by_side_leave_out_their_first_tokens() {
        let all: Vec<[usize; 3]> = windows(2048, 512, 512)
            .iter()
            .map(|window| [window.start, window.scored, window.end])
            .collect();
        assert_eq!(
            all,
            [
                [0, 1, 512],
                [512, 513, 1024],
                [1024, 1025, 1536],
                [1536, 1537, 2048]
            ]
        );
        // A last window of one token predicts nothing.
        assert_eq!(windows(9, 4, 4).len(), 2);
    }

    #[test]
    fn strides_predict_every_token_once() {
        for (tokens, window, stride) in [(10, 4, 1), (10, 4, 3), (11, 5, 2), (3, 8, 8), (100, 7, 5)]
        {
            let mut seen = vec![0; tokens];
            for window in windows(tokens, window, stride) {
                seen[window.scored..window.end]
                    .iter_mut()
                    .for_each(|n| *n += 1);
            }
            assert!(
                seen[1..].iter().all(|n| *n == 1) && seen[0] == 0,
                "{tokens} {window} {stride}: {seen:?}"
            );
        }
    }

    #[test]
    fn logits_in_parts_have_the_losses_of_all_at_once() -> Result<()> {
        let config = LmConfig::from_hugging(&json!({
            "model_type": "gpt2", "vocab_size": 31, "n_positions": 16, "n_embd": 12, "n_layer": 1, "n_head": 3,
        }))?;
        let vs = VarStore::new(Device::Cpu);
        let (model, residual, targets) = seeded(1, || -> Result<_> {
            let model = Lm::new(config, &vs.root())?;
            let residual = Tensor::f_randn([11, 12], tch::kind::FLOAT_CPU)?;
            let targets = Tensor::f_randint(31, [11], tch::kind::INT64_CPU)?;
            Ok((model, residual, targets))
        })?;
        let _no_grad = tch::no_grad_guard();
        let whole = losses(&model, &residual, &targets, 100)?;
        for at_once in [1, 4, 10, 11] {
            let parts = losses(&model, &residual, &targets, at_once)?;
            assert!((parts - whole).abs() < 1e-4, "{at_once}: {parts} {whole}");
        }
        Ok(())
    }

    #[test]
    fn units_are_those_of_the_text() {
        let found = Perplexity::of(8.0 * std::f64::consts::LN_2, 4);
        assert_eq!(found.predictions, 4);
        assert!((found.bits_per(16) - 0.5).abs() < 1e-12);
        assert!((found.per(8) - 2.0).abs() < 1e-12);
    }
}
