//! Any registered model on named tensors: the door for parity with other frameworks.

use serde_json::Value;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::registry::{Model, Preset};
use crate::weights::{self, Tensors};
use crate::{Error, Result, nn};

/// What to run and how.
#[derive(Debug)]
pub struct Request<'a> {
    /// The model.
    pub preset: &'a Preset,
    /// Fields of its config to replace; a JSON object.
    pub overrides: Value,
    /// A weight file by the reference's names; without it the weights are fresh from `seed`.
    pub weights: Option<&'a std::path::Path>,
    /// Seed of fresh weights and of dropout.
    pub seed: i64,
    /// Whether to use batch statistics, as in training.
    pub train: bool,
    /// Whether `train` also drops out.
    pub dropout: bool,
    /// Whether to compute gradients of Σ output·cotangent.
    pub grads: bool,
    /// Kind of the parameters and floating-point inputs.
    pub kind: Kind,
    /// Where to compute.
    pub device: tch::Device,
}

/// What came out.
#[derive(Debug)]
pub struct Response {
    /// Outputs by name; with gradients also `grad.<parameter>` and `grad.input.<name>`.
    pub tensors: Tensors,
    /// The weights that were used.
    pub store: VarStore,
    /// The whole config that was used.
    pub config: Value,
}

/// Prefix of the tensors in an input file that weigh the outputs for gradients.
const COTANGENT: &str = "cotangent.";

/// Builds the model of `request`, loads or draws its weights and runs it on `inputs`.
///
/// Tensors called `cotangent.<output>` weigh the sum whose gradients are computed; ones where absent.
/// # Errors
/// Those of the config, of the weight file, and [`Error::Shape`] of inputs or cotangents that do not fit.
pub fn forward(request: &Request, inputs: &Tensors) -> Result<Response> {
    let config = request.preset.config_with(&request.overrides)?;
    let mut build_config = config.clone();
    if !request.dropout {
        for field in request.preset.dropout {
            let is_switch = build_config[*field].is_boolean();
            build_config[*field] = if is_switch { false.into() } else { 0.0.into() };
        }
    }
    let store = VarStore::new(request.device);
    let build = || (request.preset.build)(&build_config, &store.root());
    let model: Box<dyn Model> = crate::seeded(request.seed, build)?;
    nn::check_names(&store)?;
    if let Some(path) = request.weights {
        weights::load_model(&store, path, model.as_ref())?;
    }
    nn::set_float_kind(&store, request.kind);

    let (cotangents, inputs): (Tensors, Tensors) = inputs
        .iter()
        .map(|(name, xs)| {
            let xs = xs.to_device(request.device);
            let float = xs.is_floating_point();
            let xs = if float { xs.to_kind(request.kind) } else { xs };
            let leaf = request.grads && float && !name.starts_with(COTANGENT);
            (
                name.clone(),
                if leaf {
                    xs.copy().set_requires_grad(true)
                } else {
                    xs
                },
            )
        })
        .partition(|(name, _)| name.starts_with(COTANGENT));

    let _no_grad = (!request.grads).then(tch::no_grad_guard);
    let run = || model.forward_named(&inputs, request.train);
    let outputs = crate::seeded(request.seed, run)?;
    let mut tensors = Tensors::new();
    if request.grads {
        tensors = gradients(&store, &inputs, &outputs, &cotangents)?;
    }
    tensors.extend(outputs.into_iter().map(|(name, ys)| (name, ys.detach())));
    Ok(Response {
        tensors,
        store,
        config,
    })
}

fn gradients(
    store: &VarStore,
    inputs: &Tensors,
    outputs: &Tensors,
    cotangents: &Tensors,
) -> Result<Tensors> {
    let mut total: Option<Tensor> = None;
    for (name, ys) in outputs {
        let term = match cotangents.get(&format!("{COTANGENT}{name}")) {
            Some(cotangent) => {
                let size: Vec<Option<i64>> = ys.size().into_iter().map(Some).collect();
                crate::check::shape(&format!("{COTANGENT}{name}"), cotangent, &size)?;
                (ys * cotangent).sum(None)
            }
            None => ys.sum(None),
        };
        total = Some(total.map_or_else(|| term.shallow_clone(), |total| total + &term));
    }
    let known = |name: &String| outputs.contains_key(name.trim_start_matches(COTANGENT));
    if let Some(name) = cotangents.keys().find(|name| !known(name)) {
        return Err(Error::Shape {
            what: name.clone(),
            expected: format!("one of the outputs {:?}", outputs.keys()),
            got: "a cotangent of an output that the model does not give".to_owned(),
        });
    }
    if let Some(total) = total {
        total.f_backward()?;
    }
    // A tensor that the outputs do not depend on has no gradient in libtorch; mathematically it is zero.
    let grad = |xs: &Tensor| {
        if xs.grad().defined() {
            xs.grad()
        } else {
            xs.zeros_like()
        }
    };
    let mut found = Tensors::new();
    for (name, parameter) in weights::named(store) {
        if parameter.requires_grad() {
            found.insert(format!("grad.{name}"), grad(&parameter));
        }
    }
    for (name, xs) in inputs {
        if xs.requires_grad() {
            found.insert(format!("grad.input.{name}"), grad(xs));
        }
    }
    Ok(found)
}
