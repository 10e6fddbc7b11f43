//! Features that fire no more, set anew on what is reconstructed worst, after Bricken et al. 2023.

use densely_core::Result;
use densely_train::optim::Optimizer;
use tch::{Kind, Tensor};

use super::{FitSettings, Trainer};
use crate::dictionary::Role;

impl Trainer {
    /// The factor on the learning rate: it climbs in a line again behind a resampling.
    pub(super) fn recovery(&self, settings: &FitSettings, step: u64) -> Result<f64> {
        let Some(resample) = settings.resample else {
            return Ok(1.0);
        };
        let at = self.resampled.f_int64_value(&[])?;
        if at < 0 || resample.recovery == 0 {
            return Ok(1.0);
        }
        let since = step.saturating_sub(at as u64) as f64 / resample.recovery as f64;
        Ok((resample.factor + (1.0 - resample.factor) * since).min(1.0))
    }

    /// Every so many steps: dead features get directions of tokens that are drawn by their squared error. For an autoencoder both directions are the token's,
    /// for a transcoder the encoder's is the input's and the decoder's what is left of the target: an input has no meaning there.
    pub(super) fn resample(
        &mut self,
        settings: &FitSettings,
        optimizer: &Optimizer,
        x: &Tensor,
        target: &Tensor,
        step: u64,
    ) -> Result<()> {
        let Some(resample) = settings.resample else {
            return Ok(());
        };
        if step == 0 || !step.is_multiple_of(resample.every) {
            return Ok(());
        }
        let Some(dead) = self.dead(settings)? else {
            return Ok(());
        };
        let _no_grad = tch::no_grad_guard();
        let dead = dead.f_nonzero()?.f_squeeze_dim(1)?;
        let count = dead.size()[0].min(x.size()[0]);
        if count == 0 {
            return Ok(());
        }
        let dead = dead.f_narrow(0, 0, count)?;
        let coded = self.dictionary.forward(x)?;
        let left = target.f_sub(&coded.reconstruction)?;
        let errors = left
            .f_square()?
            .f_sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>)?;
        let chances = errors
            .f_square()?
            .f_add_scalar(f64::from(f32::MIN_POSITIVE))?;
        let drawn = chances.f_multinomial(count, false)?;
        let unit = |xs: &Tensor| -> Result<Tensor> {
            let norms = xs.f_norm_scalaropt_dim(2.0, [-1], true)?;
            Ok(xs.f_div(&norms.f_clamp_min(1e-6)?)?)
        };
        let reads = unit(&x.f_index_select(0, &drawn)?)?; // [dead, d_in]
        let writes = match settings.dictionary.role {
            Role::Autoencoder => unit(&target.f_index_select(0, &drawn)?)?,
            Role::Transcoder => unit(&left.f_index_select(0, &drawn)?)?,
        };
        let alive = self.since.f_lt(settings.dead_after as i64)?;
        let norms = self
            .dictionary
            .w_enc
            .f_norm_scalaropt_dim(2.0, [0], false)?;
        let live = norms.f_masked_select(&alive)?;
        let size = if live.numel() == 0 {
            1.0
        } else {
            live.f_mean(None::<Kind>)?.f_double_value(&[])?
        };
        let encoder = reads.f_mul_scalar(0.2 * size)?.f_tr()?;
        let _ = self.dictionary.w_enc.f_index_copy_(1, &dead, &encoder)?;
        let _ = self.dictionary.w_dec.f_index_copy_(0, &dead, &writes)?;
        if let Some(bias) = &mut self.dictionary.b_enc {
            let _ = bias.f_index_fill_(0, &dead, 0.0)?;
        }
        // What the optimiser remembers of them belongs to other features.
        for (name, mut moment) in optimizer.state() {
            let Some((parameter, what)) = name.split_once('.') else {
                continue;
            };
            if what == "step" {
                continue;
            }
            let axis = match parameter {
                "W_enc" => 1,
                "W_dec" | "b_enc" => 0,
                _ => continue,
            };
            let _ = moment.f_index_fill_(axis, &dead, 0.0)?;
        }
        let _ = self.since.f_index_fill_(0, &dead, 0)?;
        let _ = self.resampled.f_fill_(step as i64)?;
        tracing::info!("step {step}: {count} features that fired no more were set anew");
        Ok(())
    }
}
