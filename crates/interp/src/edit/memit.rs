//! MEMIT: many facts into several layers at once.
//!
//! Paper: Meng et al. 2023, arXiv 2210.07229. Follows: kmeng01/memit `memit/memit_main.py`, `compute_z.py`, `compute_ks.py`.
//!
//! For each request a value z of the last layer's block output is searched at the subject's last token. From the first layer to
//! the last, with those below already changed, the keys K `[m, n]` and what is still missing of the z, shared evenly among the layers
//! left, R `[d, n]`, give the change (λC + K Kᵀ)⁻¹ K Rᵀ.

use std::rc::Rc;

use densely_core::{Error, Result, check};
use densely_lm::Lm;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::moments::Moments;
use super::request::Request;
use super::rows::{Batch, Noised};
use super::star::{Place, StarOptions, keys, optimise};
use super::{Change, Delta, Edit, EditHandle, double};

/// Settings of MEMIT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemitOptions {
    /// The layers that are changed, in ascending order.
    pub layers: Vec<usize>,
    /// Weight of the second moment, λ.
    pub lambda: f64,
    /// The search for the values.
    pub star: StarOptions,
}

impl MemitOptions {
    /// MEMIT at some layers with a weight of the moments; the search is clamped to 0.75 norms, as released.
    pub fn new(layers: Vec<usize>, lambda: f64) -> Self {
        Self {
            layers,
            lambda,
            star: StarOptions {
                clamp: 0.75,
                ..StarOptions::default()
            },
        }
    }
}

/// What one layer was changed by; tensors are of kind double on the CPU.
#[derive(Debug)]
pub struct Step {
    /// The layer.
    pub layer: usize,
    /// Keys, `[m, n]`.
    pub keys: Tensor,
    /// What was missing, shared among the layers left, `[d, n]`.
    pub residual: Tensor,
    /// (λC + K Kᵀ)⁻¹ K, `[m, n]`.
    pub solved: Tensor,
}

/// An edit of MEMIT and the numbers behind it; tensors are of kind double on the CPU.
#[derive(Debug)]
pub struct Memit {
    /// The change.
    pub edit: Edit,
    /// The last layer's output that is sought, `[n, d]`.
    pub star: Tensor,
    /// That output as it was, `[n, d]`.
    pub initial: Tensor,
    /// The loss of each evaluation of each request's search.
    pub losses: Vec<Vec<f64>>,
    /// The layers' parts, in the order of the layers.
    pub steps: Vec<Step>,
}

/// Gives the moments of a layer.
pub type MomentsOf<'a> = dyn FnMut(usize) -> Result<Rc<Moments>> + 'a;

/// Computes MEMIT's change of a model for some requests. The model is as it was in the end, also after an error.
///
/// # Errors
/// [`Error::Config`] for layers that are none, out of order or beyond the model, settings out of range or prompts that do not fit; what
/// `moments` says; [`Error::Shape`] when they are of another width; [`Error::Diverged`].
pub fn memit(
    model: &Lm,
    requests: &[Request],
    moments: &mut MomentsOf<'_>,
    options: &MemitOptions,
) -> Result<Memit> {
    check::above_zero("lambda", options.lambda)?;
    if requests.is_empty() {
        return Err(Error::config("requests", "must be at least one, got none"));
    }
    let ascending = options.layers.windows(2).all(|pair| pair[0] < pair[1]);
    let Some(last) = options.layers.last().copied().filter(|_| ascending) else {
        let reason = format!(
            "must be at least one, in ascending order, got {:?}",
            options.layers
        );
        return Err(Error::config("layers", reason));
    };
    model.mlp_out_name(last)?;
    // Before the first layer is written: moments belong to the model as it is.
    let held = options
        .layers
        .iter()
        .map(|layer| moments(*layer))
        .collect::<Result<Vec<_>>>()?;
    let (mut star, mut initial, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for request in requests {
        let found = optimise(model, request, last, Place::Block, &options.star)?;
        star.push(double(&found.value)?);
        initial.push(double(&found.initial)?);
        losses.push(found.losses);
    }
    let star = Tensor::f_stack(&star, 0)?; // [n, d]
    let mut written = Vec::new();
    let steps = go(model, requests, &held, options, &star, &mut written);
    // What was written for the layers above is taken back, whatever came.
    for handle in written.iter_mut().rev() {
        handle.undo(model)?;
    }
    let steps = steps?;
    let mut changes = Vec::new();
    for step in &steps {
        changes.push(change(model, step)?);
    }
    Ok(Memit {
        edit: Edit::new(model, "memit", changes),
        star,
        initial: Tensor::f_stack(&initial, 0)?,
        losses,
        steps,
    })
}

fn change(model: &Lm, step: &Step) -> Result<Change> {
    Ok(Change {
        name: model.mlp_out_name(step.layer)?,
        layer: step.layer,
        delta: Delta::LowRank {
            left: step.solved.shallow_clone(),
            right: step.residual.f_tr()?.f_contiguous()?,
        },
    })
}

/// The layers one after the other, each written into the model.
fn go(
    model: &Lm,
    requests: &[Request],
    held: &[Rc<Moments>],
    options: &MemitOptions,
    star: &Tensor,
    written: &mut Vec<EditHandle>,
) -> Result<Vec<Step>> {
    let _guard = tch::no_grad_guard();
    let last = options.layers.last().copied().unwrap_or_default();
    let mut steps = Vec::new();
    for (place, (layer, moments)) in options.layers.iter().copied().zip(held).enumerate() {
        let mut columns = Vec::new();
        for request in requests {
            let (groups, _) = keys(model, request, layer)?;
            let means = groups
                .iter()
                .map(|group| {
                    Ok(double(group)?.f_mean_dim([0i64].as_slice(), false, Kind::Double)?)
                })
                .collect::<Result<Vec<_>>>()?;
            let mean =
                Tensor::f_stack(&means, 0)?.f_mean_dim([0i64].as_slice(), false, Kind::Double)?;
            columns.push(mean);
        }
        let keys = Tensor::f_stack(&columns, 1)?; // [m, n]
        let now = outputs(model, requests, last)?; // [n, d]
        let left = (options.layers.len() - place) as f64;
        let residual = star.f_sub(&now)?.f_tr()?.f_div_scalar(left)?; // [d, n]
        let solved = solve(moments, options.lambda, &keys)?;
        let step = Step {
            layer,
            keys,
            residual: residual.f_contiguous()?,
            solved,
        };
        let edit = Edit::new(model, "memit", vec![change(model, &step)?]);
        written.push(EditHandle::apply(model, edit)?);
        steps.push(step);
    }
    Ok(steps)
}

/// (λC + K Kᵀ)⁻¹ K of keys `[m, n]`, as A⁻¹K (1 + Kᵀ A⁻¹ K)⁻¹ with A = λC: the large system belongs to the layer alone, and what
/// belongs to the requests is as small as their number.
///
/// # Errors
/// [`Error::Shape`] when the moments are of another width; [`Error::Torch`] when the system cannot be solved.
pub fn solve(moments: &Moments, lambda: f64, keys: &Tensor) -> Result<Tensor> {
    let keys = &double(keys)?;
    let through = moments.solve(keys)?.f_div_scalar(lambda)?; // [m, n]
    let n = through.size().last().copied().unwrap_or(0);
    let one = Tensor::f_eye(n, (Kind::Double, tch::Device::Cpu))?;
    let small = one.f_add(&keys.f_tr()?.f_matmul(&through)?)?; // [n, n]
    Ok(Tensor::f_linalg_solve(&small, &through, false)?)
}

/// The output of a block at the subject's last token of the bare prompts, `[n, d]`; under noise the mean over its draws.
fn outputs(model: &Lm, requests: &[Request], layer: usize) -> Result<Tensor> {
    let mut all = Vec::new();
    for request in requests {
        let bare = request.bare()?;
        let draws = request
            .noise
            .as_ref()
            .map_or(1, |noise| noise.size().first().copied().unwrap_or(1))
            as usize;
        let rows = vec![bare.ids.clone(); draws];
        let noised = request.noise.as_ref().map(|draws| Noised {
            start: request.subject.start,
            draws,
            rows: rows.len(),
        });
        let batch = Batch::new(model, &rows, noised)?;
        let (residual, _) = batch.enter(model, layer + 1, &[])?;
        let places: Vec<(usize, usize)> = (0..draws).map(|row| (row, bare.place)).collect();
        let picked = double(&batch.pick(&residual, &places)?)?;
        all.push(picked.f_mean_dim([0i64].as_slice(), false, Kind::Double)?);
    }
    Ok(Tensor::f_stack(&all, 0)?)
}
