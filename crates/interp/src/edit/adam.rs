//! Adam on a few tensors that belong to no model, with the numbers of `torch.optim.Adam`.

use densely_core::Result;
use tch::Tensor;

/// Moments of some tensors; betas 0.9 and 0.999, eps 1e-8.
#[derive(Debug)]
pub(crate) struct Adam {
    lr: f64,
    steps: i32,
    moments: Vec<(Tensor, Tensor)>,
}

const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;

impl Adam {
    /// For tensors of the sizes of `params`.
    pub(crate) fn new(lr: f64, params: &[Tensor]) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let zeros = |xs: &Tensor| -> Result<Tensor> { Ok(xs.f_detach()?.f_zeros_like()?) };
        let moments = params
            .iter()
            .map(|xs| Ok((zeros(xs)?, zeros(xs)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            lr,
            steps: 0,
            moments,
        })
    }

    /// One step of all tensors, given in the order of [`new`](Self::new) with their gradients.
    pub(crate) fn step(&mut self, params: &mut [Tensor], gradients: &[Tensor]) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let first_share = 1.0 - BETAS[0].powi(self.steps);
        let second_share = (1.0 - BETAS[1].powi(self.steps)).sqrt();
        let all = params.iter_mut().zip(gradients).zip(&mut self.moments);
        for ((param, gradient), (first, second)) in all {
            // A tensor that the loss does not depend on has none.
            if !gradient.defined() {
                continue;
            }
            *first = first
                .f_mul_scalar(BETAS[0])?
                .f_add(&gradient.f_mul_scalar(1.0 - BETAS[0])?)?;
            *second = second
                .f_mul_scalar(BETAS[1])?
                .f_add(&gradient.f_square()?.f_mul_scalar(1.0 - BETAS[1])?)?;
            let root = second
                .f_sqrt()?
                .f_div_scalar(second_share)?
                .f_add_scalar(EPS)?;
            let change = first.f_div(&root)?.f_mul_scalar(self.lr / first_share)?;
            let _ = param.f_sub_(&change)?;
        }
        Ok(())
    }
}
