//! Least squares with scalar weights and a free vector.

use densely_core::{Error, Result, check};
use serde::Serialize;
use tch::{Kind, Tensor};

/// One term of a decomposition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Term {
    /// What it is the weight of, such as `L9H8`.
    pub name: String,
    /// The weight: below 0 it erases, above 0 it amplifies.
    pub weight: f64,
    /// Its standard error if the equations of all prompts and dimensions were independent.
    pub standard_error: f64,
    /// Its standard error with prompts, not dimensions, as what is independent (the sandwich estimator clustered by prompt): the one
    /// to go by.
    pub clustered_error: f64,
}

/// An MLP's output as a weighted sum.
#[derive(Debug)]
pub struct Decomposition {
    /// The weights.
    pub terms: Vec<Term>,
    /// Share of the outputs' variance over prompts that the terms explain.
    pub r2: f64,
    /// Cosine of the written and the true output of each prompt, both with the constant.
    pub cosines: Vec<f64>,
    /// The constant b, `[d]` of kind double: what the MLP adds whatever the prompt.
    pub bias: Tensor,
    /// Largest over smallest eigenvalue of the normal equations: how far the terms are from being told apart.
    pub condition: f64,
}

/// Fits `target ≈ Σ w_k term_k + b` with one weight for each term and a free b: `[prompts, d]` each, of kind double on the CPU.
///
/// With `ridge` ρ the normal equations get ρ times the mean of their diagonal added to it.
///
/// # Errors
/// [`Error::Shape`] when sizes differ; [`Error::Config`] for fewer than two prompts, no term, a ridge that is negative or not
/// finite, or terms that plain least squares cannot tell apart.
pub fn fit(target: &Tensor, terms: &[(String, Tensor)], ridge: f64) -> Result<Decomposition> {
    check::kind("target", target, Kind::Double)?;
    let size = target.size();
    let &[n, d] = size.as_slice() else {
        check::shape("target", target, &[None, None])?;
        return Err(Error::config("target", "must have two axes"));
    };
    if n < 2 || terms.is_empty() {
        return Err(Error::config(
            "prompts",
            format!(
                "must be at least 2, with at least one term, got {n} and {}",
                terms.len()
            ),
        ));
    }
    if !ridge.is_finite() || ridge < 0.0 {
        let reason = format!("must be at least 0, got {ridge}");
        return Err(Error::config("ridge", reason));
    }
    for (name, xs) in terms {
        check::same_shape(name, xs, target)?;
        check::kind(name, xs, Kind::Double)?;
    }
    let k = terms.len() as i64;
    let over_prompts = [0i64];
    let center = target.f_mean_dim(over_prompts.as_slice(), true, None::<Kind>)?;
    let target_c = target.f_sub(&center)?;
    let mut columns = Vec::with_capacity(terms.len());
    let mut means = Vec::with_capacity(terms.len());
    for (_, xs) in terms {
        let mean = xs.f_mean_dim(over_prompts.as_slice(), true, None::<Kind>)?;
        columns.push(xs.f_sub(&mean)?);
        means.push(mean);
    }
    let columns = Tensor::f_stack(&columns, 0)?; // [terms, prompts, d]
    let flat = columns.f_reshape([k, n * d])?;
    let gram = flat.f_matmul(&flat.f_tr()?)?;
    let right = flat.f_mv(&target_c.f_reshape([n * d])?)?;
    let eigenvalues = gram.f_linalg_eigvalsh("L")?;
    let largest = eigenvalues.f_double_value(&[k - 1])?;
    let smallest = eigenvalues.f_double_value(&[0])?;
    let condition = if smallest > 0.0 {
        largest / smallest
    } else {
        f64::INFINITY
    };
    // Normal equations square the terms' own condition; beyond this no digit of a weight is left.
    if ridge <= 0.0 && (condition.is_nan() || condition > 1e14) {
        let reason = format!(
            "must be above 0: the terms cannot be told apart (condition {condition:.1e} of {n} prompts)"
        );
        return Err(Error::config("ridge", reason));
    }
    let unit = gram.f_trace()?.f_double_value(&[])? / k as f64;
    let eye = Tensor::f_eye(k, (Kind::Double, target.device()))?;
    let (lower, info) = gram
        .f_add(&eye.f_mul_scalar(ridge * unit)?)?
        .f_linalg_cholesky_ex(false, false)?;
    if info.f_int64_value(&[])? != 0 {
        let reason = format!("must be larger: with {ridge} the terms cannot be told apart");
        return Err(Error::config("ridge", reason));
    }
    let inverse = lower.f_cholesky_inverse(false)?;
    let weights = inverse.f_mv(&right)?;
    let fitted = flat.f_tr()?.f_mv(&weights)?.f_reshape([n, d])?;
    let residual = target_c.f_sub(&fitted)?;
    let rest = residual
        .f_square()?
        .f_sum(Kind::Double)?
        .f_double_value(&[])?;
    let all = target_c
        .f_square()?
        .f_sum(Kind::Double)?
        .f_double_value(&[])?;
    // Each prompt gives d equations; b takes d unknowns, the weights k.
    let freedom = ((n - 1) * d - k).max(1) as f64;
    let plain = inverse
        .f_matmul(&gram)?
        .f_matmul(&inverse)?
        .f_mul_scalar(rest / freedom)?;
    let scores =
        columns
            .f_mul(&residual)?
            .f_sum_dim_intlist([2i64].as_slice(), false, Kind::Double)?; // [terms, prompts]
    let meat = scores
        .f_matmul(&scores.f_tr()?)?
        .f_mul_scalar(n as f64 / (n - 1) as f64)?;
    let clustered = inverse.f_matmul(&meat)?.f_matmul(&inverse)?;
    let mut bias = center.copy();
    let mut found = Vec::with_capacity(terms.len());
    for (place, ((name, _), mean)) in terms.iter().zip(&means).enumerate() {
        let at = place as i64;
        let weight = weights.f_double_value(&[at])?;
        bias = bias.f_sub(&mean.f_mul_scalar(weight)?)?;
        found.push(Term {
            name: name.clone(),
            weight,
            standard_error: plain.f_double_value(&[at, at])?.max(0.0).sqrt(),
            clustered_error: clustered.f_double_value(&[at, at])?.max(0.0).sqrt(),
        });
    }
    let cosines = Tensor::f_cosine_similarity(&fitted.f_add(&center)?, target, 1, 1e-12)?;
    Ok(Decomposition {
        terms: found,
        r2: if all > 0.0 {
            1.0 - rest / all
        } else {
            f64::NAN
        },
        cosines: Vec::<f64>::try_from(&cosines)?,
        bias: bias.f_squeeze_dim(0)?,
        condition,
    })
}
