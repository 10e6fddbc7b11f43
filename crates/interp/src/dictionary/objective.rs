//! What dictionaries minimise.

use densely_core::{Result, check};
use tch::{Kind, Tensor};

use super::config::{Activation, Dead, ErrorForm, Role, Sparsity, window};
use super::{Coded, Dictionary};

/// The loss of some rows and its parts, each a scalar.
#[derive(Debug)]
pub struct Losses {
    /// What is minimised: the sum of the others.
    pub total: Tensor,
    /// Of the reconstruction.
    pub error: Tensor,
    /// Of the features, coefficient included.
    pub sparsity: Tensor,
    /// Of dead features, coefficient included; `None` where none are dead.
    pub dead: Option<Tensor>,
}

impl Dictionary {
    /// What the dictionary gives for rows, and its loss. `sparsity` multiplies the coefficient of sparsity, for a warm-up.
    ///
    /// # Shapes
    /// `x`: `[rows, d_in]`; `target`: `[rows, d_out]`; `dead`: bool `[features]`, those that are to be woken.
    /// # Errors
    /// [`densely_core::Error::Shape`] when shapes or kinds do not fit.
    pub fn losses(
        &self,
        x: &Tensor,
        target: &Tensor,
        dead: Option<&Tensor>,
        sparsity: f64,
    ) -> Result<(Coded, Losses)> {
        let coded = self.forward(x)?;
        let ys = &coded.reconstruction;
        check::shape(
            "target",
            target,
            &[Some(ys.size()[0]), Some(self.config.d_out)],
        )?;
        check::kind("target", target, self.w_enc.kind())?;
        let objective = self.config.objective;
        let left = target.f_sub(ys)?; // [rows, d_out]
        let form = objective.error;
        let error = form.reduced(&form.each(&left, target)?)?;
        let sparsity = self.sparsity(x, &coded)?.f_mul_scalar(sparsity)?;
        let mut total = error.f_add(&sparsity)?;
        let dead = match dead {
            Some(dead) => self.wake(x, target, &left, dead)?,
            None => None,
        };
        if let Some(dead) = &dead {
            total = total.f_add(dead)?;
        }
        let losses = Losses {
            total,
            error,
            sparsity,
            dead,
        };
        Ok((coded, losses))
    }

    /// The term of sparsity, coefficient included.
    fn sparsity(&self, x: &Tensor, coded: &Coded) -> Result<Tensor> {
        let rows = coded.reconstruction.size()[0] as f64;
        let norms = || self.w_dec.f_norm_scalaropt_dim(2.0, [-1], false);
        let (coefficient, sum) = match self.config.objective.sparsity {
            Sparsity::None {} => {
                let options = (self.w_enc.kind(), self.w_enc.device());
                return Ok(Tensor::f_zeros([], options)?);
            }
            Sparsity::L1 {
                coefficient,
                by_norm: false,
            } => (
                coefficient,
                coded.features.sum(|f, _| Ok(f.shallow_clone()))?,
            ),
            Sparsity::L1 {
                coefficient,
                by_norm: true,
            } => {
                let norms = norms()?;
                let sum = coded
                    .features
                    .sum(|f, of| Ok(f.f_mul(&of.beside(&norms)?)?))?;
                (coefficient, sum)
            }
            Sparsity::Tanh { coefficient, scale } => {
                let norms = norms()?;
                let sum = coded.features.sum(|f, of| {
                    Ok(f.f_mul(&of.beside(&norms)?)?
                        .f_mul_scalar(scale)?
                        .f_tanh()?)
                })?;
                (coefficient, sum)
            }
            Sparsity::L0 { coefficient } => (coefficient, self.count(x)?),
        };
        Ok(sum.f_mul_scalar(coefficient / rows)?)
    }

    /// The number of active features, with the estimated gradient of its steps.
    fn count(&self, x: &Tensor) -> Result<Tensor> {
        let (
            Activation::JumpRelu {
                bandwidth,
                ste_to_input,
                ..
            },
            Some(threshold),
        ) = (self.config.activation, &self.threshold)
        else {
            return Err(check::absent("threshold"));
        };
        let step = |pre: &Tensor, threshold: &Tensor| -> Result<Tensor> {
            let (fixed, seen) = (threshold.f_detach()?, pre.f_detach()?);
            let on = seen.f_gt_tensor(&fixed)?.f_to_kind(pre.kind())?;
            let slope = window(&seen, &fixed, bandwidth)?;
            let mut on = on.f_add(&slope.f_mul(&fixed.f_sub(threshold)?)?)?;
            if ste_to_input {
                on = on.f_add(&slope.f_mul(&pre.f_sub(&seen)?)?)?;
            }
            Ok(on)
        };
        let (read, _) = self.read(x)?;
        match self.near_threshold(&read)? {
            Some(active) => active.sum(|pre, of| step(pre, &of.beside(threshold)?)),
            None => Ok(step(&self.pre_activations(x)?, threshold)?.f_sum(None::<Kind>)?),
        }
    }

    /// The term of dead features; `None` where it does not apply. `left` is target less reconstruction.
    fn wake(
        &self,
        x: &Tensor,
        target: &Tensor,
        left: &Tensor,
        dead: &Tensor,
    ) -> Result<Option<Tensor>> {
        if matches!(self.config.objective.dead, Dead::Nothing {}) {
            return Ok(None);
        }
        let dead = dead.f_nonzero()?.f_squeeze_dim(1)?; // [dead]
        let count = dead.size()[0];
        if count == 0 {
            return Ok(None);
        }
        let (read, _) = self.read(x)?;
        let bias = self.b_enc.as_ref().ok_or_else(|| check::absent("b_enc"))?;
        let pre = bias
            .f_index_select(0, &dead)?
            .f_addmm(&read, &self.w_enc.f_index_select(1, &dead)?)?; // [rows, dead]
        let rows = self.w_dec.f_index_select(0, &dead)?; // [dead, d_out]
        match self.config.objective.dead {
            Dead::Nothing {} => Ok(None),
            Dead::Ghost { reference_compat } => {
                let own = self.config.objective.error.each(left, target)?;
                let left = if reference_compat && self.config.role == Role::Transcoder {
                    x.f_sub(target)?.f_add(left)? // x - y
                } else {
                    left.shallow_clone()
                };
                self.ghost(&pre, &rows, &left.f_detach()?, &own).map(Some)
            }
            Dead::AuxK { coefficient } => {
                let most = self.config.d_in / 2;
                let scale = (count as f64 / most.max(1) as f64).min(1.0);
                let term = self.aux_k(&pre, &rows, &dead, &left.f_detach()?, target, most)?;
                Ok(Some(term.f_mul_scalar(coefficient * scale)?))
            }
        }
    }

    /// Ghost gradients: e^pre of dead features, each row scaled to half the norm of what is left, against it; each value in the size of its own error.
    fn ghost(
        &self,
        pre: &Tensor,
        rows: &Tensor,
        left: &Tensor,
        own_error: &Tensor,
    ) -> Result<Tensor> {
        let norm = |xs: &Tensor| xs.f_norm_scalaropt_dim(2.0, [-1], true);
        let ghost = pre.f_exp()?.f_matmul(rows)?; // [rows, d_out]
        let norms = norm(left)?;
        let factor = norms
            .f_div(&norm(&ghost)?.f_mul_scalar(2.0)?.f_add_scalar(1e-6)?)?
            .f_detach()?;
        let each = ghost
            .f_mul(&factor)?
            .f_sub(left)?
            .f_square()?
            .f_div(&norms)?;
        let size = own_error.f_div(&each.f_add_scalar(1e-6)?)?.f_detach()?;
        self.config.objective.error.reduced(&each.f_mul(&size)?)
    }

    /// The largest pre-activations of dead features against what is left.
    fn aux_k(
        &self,
        pre: &Tensor,
        rows: &Tensor,
        dead: &Tensor,
        left: &Tensor,
        target: &Tensor,
        most: i64,
    ) -> Result<Tensor> {
        // `eai-sparsify` picks among features, and its encoder gets no gradient from them: the decoder's rows alone are woken. `sae_lens` picks among what
        // stands before the activation, times the norms where it compares by those.
        let sparsify = self.config.objective.error == ErrorForm::Fvu;
        let pre = if sparsify {
            pre.f_relu()?.f_detach()?
        } else {
            pre.shallow_clone()
        };
        let scores = match self.row_norms()? {
            Some(norms) => pre.f_mul(&norms.f_index_select(0, dead)?)?,
            None => pre.shallow_clone(),
        };
        let most = most.clamp(1, pre.size()[1]);
        let (_, first) = scores.f_detach()?.f_topk(most, -1, true, false)?;
        let mask = pre.f_zeros_like()?.f_scatter(
            1,
            &first,
            &first.f_ones_like()?.f_to_kind(pre.kind())?,
        )?;
        let mut guess = pre.f_mul(&mask)?.f_matmul(rows)?;
        if sparsify {
            guess = guess.f_add(self.output_bias())?;
        }
        let squares = guess.f_sub(left)?.f_square()?;
        let sum = squares.f_sum(None::<Kind>)?;
        Ok(if sparsify {
            sum.f_div(&variance(target)?)?
        } else {
            sum.f_div_scalar(left.size()[0] as f64)?
        })
    }
}

impl ErrorForm {
    /// The error of each value, `[rows, d_out]`.
    pub(super) fn each(self, left: &Tensor, target: &Tensor) -> Result<Tensor> {
        let squares = left.f_square()?;
        Ok(match self {
            Self::Normalised => squares.f_div(&target.f_norm_scalaropt_dim(2.0, [-1], true)?)?,
            Self::Squared => squares,
            Self::Fvu => squares.f_div(&variance(target)?)?,
        })
    }

    /// The errors of all values in one number.
    pub(super) fn reduced(self, each: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Normalised => each.f_mean(None::<Kind>)?,
            Self::Squared => each
                .f_sum(None::<Kind>)?
                .f_div_scalar(each.size()[0] as f64)?,
            Self::Fvu => each.f_sum(None::<Kind>)?,
        })
    }
}

/// Σ (t - mean t)², over rows and dimensions.
fn variance(target: &Tensor) -> Result<Tensor> {
    let mean = target.f_mean_dim([0i64].as_slice(), true, None::<Kind>)?;
    Ok(target.f_sub(&mean)?.f_square()?.f_sum(None::<Kind>)?)
}
