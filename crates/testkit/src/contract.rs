//! What holds for every registered model, whatever its domain: each domain crate's contract test runs these over its presets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use densely_core::forward::{Request, Response, forward};
use densely_core::registry::{Preset, find};
use densely_core::weights::{self, Strictness, Tensors};
use densely_core::{Device, Error, Result, nn, seeded};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::{assert_bits, assert_close};

/// A preset at a small size.
#[derive(Debug, Clone)]
pub struct Case {
    /// The preset.
    pub preset: &'static Preset,
    /// Fields of its config that make it small.
    pub small: Value,
    /// Inputs of a number of rows, the same at each call.
    pub inputs: fn(&Value, i64) -> Tensors,
    /// Inputs that may be absent.
    pub optional: &'static [&'static str],
    /// Inputs whose last axis may have any length.
    pub any_width: &'static [&'static str],
}

impl Case {
    /// The preset at that size, in f32 on the CPU, as in evaluation.
    pub fn request(&self) -> Request<'static> {
        Request {
            preset: self.preset,
            overrides: self.small.clone(),
            weights: None,
            seed: 0,
            train: false,
            dropout: false,
            grads: false,
            kind: Kind::Float,
            device: tch::Device::Cpu,
        }
    }

    fn run(&self, change: impl FnOnce(&mut Request), rows: i64) -> Result<Response> {
        let mut request = self.request();
        change(&mut request);
        forward(&request, &(self.inputs)(&self.small, rows))
    }

    fn outputs(&self, change: impl FnOnce(&mut Request), rows: i64) -> Result<Tensors> {
        Ok(self.run(change, rows)?.tensors)
    }
}

/// What building a preset with a wrong config says.
///
/// # Panics
/// When the preset is unknown or takes the config.
pub fn refusal(presets: &'static [Preset], name: &str, config: &Value) -> String {
    let preset = find(presets, name).expect("a preset");
    let vs = VarStore::new(tch::Device::Cpu);
    let build = || (preset.build)(&preset.config_with(config)?, &vs.root());
    seeded(0, build).expect_err("a wrong config").to_string()
}

/// Runs every check of this module.
///
/// # Errors
/// Whatever a model refuses that it must take.
/// # Panics
/// When a check fails; the message names the preset.
pub fn check(case: &Case) -> Result<()> {
    check_all(case, true, &[])
}

/// As [`check`], for a model whose first weights are constants.
///
/// # Errors
/// Those of [`check`].
/// # Panics
/// As [`check`].
pub fn check_undrawn(case: &Case) -> Result<()> {
    check_all(case, false, &[])
}

/// As [`check`], for a model whose first weights may be constants (`drawn` says whether the seed draws them), and with gradients that are 0: of
/// parameters kept for the reference's names alone, or of `input.<name>` where the first weights hide it.
///
/// # Errors
/// Those of [`check`].
/// # Panics
/// As [`check`].
pub fn check_with_idle(case: &Case, drawn: bool, idle: &[&str]) -> Result<()> {
    check_all(case, drawn, idle)
}

/// What the first GPU gives is what the CPU gives: outputs and gradients in f64, outputs in f32.
///
/// # Errors
/// When no GPU can be used, and whatever a model refuses there.
/// # Panics
/// When a number differs; the message names it.
pub fn check_on_a_gpu(cases: impl Iterator<Item = Case>) -> Result<()> {
    let device = Device::Cuda(0).open()?;
    for case in cases {
        gives_the_same_on(device, &case)?;
    }
    Ok(())
}

fn gives_the_same_on(device: tch::Device, case: &Case) -> Result<()> {
    let name = case.preset.name;
    // In f32 gradients that cancel are nothing but rounding.
    for (kind, grads, near) in [(Kind::Double, true, 1e-9), (Kind::Float, false, 1e-3)] {
        let asked = |request: &mut Request| {
            request.kind = kind;
            request.grads = grads;
        };
        let here = case.run(asked, 5)?;
        let weights = Weights::of(name, &here)?;
        let mut request = case.request();
        asked(&mut request);
        request.device = device;
        request.weights = Some(&weights.path);
        let there = forward(&request, &(case.inputs)(&case.small, 5))?.tensors;
        assert_eq!(there.len(), here.tensors.len(), "{name}");
        for (key, xs) in &here.tensors {
            let found = &there[key];
            assert_eq!(found.device(), device, "{name}: {key}");
            let found = found.to_device(tch::Device::Cpu);
            let largest = xs.abs().max().double_value(&[]);
            let close = found.allclose(xs, near, near * largest.max(1.0), false);
            assert!(
                close,
                "{name}, {kind:?}: `{key}` is {found} on the GPU, {xs} on the CPU"
            );
        }
    }
    Ok(())
}

/// The weights of a response in a file, for as long as this lives.
struct Weights {
    path: PathBuf,
}

impl Weights {
    fn of(name: &str, response: &Response) -> Result<Self> {
        // Tests of one process run side by side.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let file = format!("densely-contract-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(file);
        weights::save(&path, &weights::named(&response.store), &BTreeMap::new())?;
        Ok(Self { path })
    }
}

impl Drop for Weights {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn check_all(case: &Case, drawn: bool, idle: &[&str]) -> Result<()> {
    let _cpu = Device::Cpu.open()?;
    states_its_parameters(case)?;
    gradients_reach_every_parameter(case, idle)?;
    a_batch_is_its_rows(case)?;
    saved_weights_load_to_the_same_bits(case, drawn)?;
    dropout_runs_only_when_asked_for(case)?;
    other_kinds_run_and_stay_near(case)?;
    wrong_inputs_are_errors_that_name_them(case);
    Ok(())
}

fn states_its_parameters(case: &Case) -> Result<()> {
    let vs = VarStore::new(tch::Device::Cpu);
    let _model = seeded(0, || {
        (case.preset.build)(&(case.preset.config)(), &vs.root())
    })?;
    nn::check_names(&vs)?;
    assert_eq!(
        nn::parameter_count(&vs),
        case.preset.params,
        "{}",
        case.preset.name
    );
    Ok(())
}

/// Also: outputs are those that the preset names, finite, and the same at a second call.
fn gradients_reach_every_parameter(case: &Case, idle: &[&str]) -> Result<()> {
    let name = case.preset.name;
    let found = case.outputs(|request| request.grads = true, 5)?;
    let mut outputs: Vec<&str> = found
        .keys()
        .map(String::as_str)
        .filter(|key| !key.starts_with("grad."))
        .collect();
    let mut stated: Vec<&str> = case.preset.outputs.iter().map(|spec| spec.name).collect();
    outputs.sort_unstable();
    stated.sort_unstable();
    assert_eq!(outputs, stated, "{name}");
    for (key, xs) in &found {
        assert_eq!(xs.isfinite().all().int64_value(&[]), 1, "{name}: {key}");
        if let Some(parameter) = key.strip_prefix("grad.") {
            let reached = xs.abs().sum(Kind::Float).double_value(&[]) > 0.0;
            assert_eq!(reached, !idle.contains(&parameter), "{name}: {key}");
        }
    }
    for parameter in idle {
        let known = found.contains_key(&format!("grad.{parameter}"));
        assert!(known, "{name} has no `{parameter}` that could be idle");
    }
    let again = case.outputs(|request| request.grads = true, 5)?;
    for (key, xs) in &found {
        assert_bits(&again[key], xs);
    }
    Ok(())
}

fn a_batch_is_its_rows(case: &Case) -> Result<()> {
    let both = case.outputs(|_| (), 2)?;
    for row in 0..2 {
        let one = (case.inputs)(&case.small, 2)
            .into_iter()
            .map(|(name, xs)| (name, xs.narrow(0, row, 1)));
        let one = forward(&case.request(), &one.collect())?.tensors;
        for (name, xs) in &both {
            // A loss is of all rows together.
            if xs.dim() == 0 {
                continue;
            }
            // Sums of f32 in another order: deep networks round like their largest values.
            let largest = xs.abs().max().double_value(&[]);
            assert_close(&one[name], &xs.narrow(0, row, 1), 1e-5, 1e-5 * largest);
        }
    }
    Ok(())
}

fn saved_weights_load_to_the_same_bits(case: &Case, drawn: bool) -> Result<()> {
    let response = case.run(|request| request.seed = 5, 3)?;
    let file = Weights::of(case.preset.name, &response)?;
    let mut request = case.request();
    request.weights = Some(&file.path);
    let again = forward(&request, &(case.inputs)(&case.small, 3))?.tensors;
    let other = case.run(|_| (), 3)?;
    weights::load(
        &other.store,
        &file.path,
        weights::same_name,
        Strictness::All,
    )?;
    let mut differs = false;
    for (name, xs) in &response.tensors {
        assert_bits(&again[name], xs);
        differs |= &other.tensors[name] != xs;
    }
    assert_eq!(
        differs, drawn,
        "{}: whether the seed draws the weights",
        case.preset.name
    );
    Ok(())
}

fn dropout_runs_only_when_asked_for(case: &Case) -> Result<()> {
    if case.preset.dropout.is_empty() {
        return Ok(());
    }
    let ys = |dropout: bool| {
        case.outputs(
            |request| {
                request.train = true;
                request.dropout = dropout;
                request.seed = 3;
            },
            64,
        )
    };
    let (without, again, with) = (ys(false)?, ys(false)?, ys(true)?);
    for (name, xs) in &without {
        assert_bits(&again[name], xs);
    }
    assert!(
        without.iter().any(|(name, xs)| &with[name] != xs),
        "{}",
        case.preset.name
    );
    Ok(())
}

fn other_kinds_run_and_stay_near(case: &Case) -> Result<()> {
    let of = |kind: Kind| case.outputs(|request| request.kind = kind, 4);
    let (single, double, half) = (of(Kind::Float)?, of(Kind::Double)?, of(Kind::BFloat16)?);
    for (name, xs) in &double {
        assert_eq!(xs.kind(), Kind::Double, "{}: {name}", case.preset.name);
        assert_eq!(
            half[name].kind(),
            Kind::BFloat16,
            "{}: {name}",
            case.preset.name
        );
        let largest = xs.abs().max().double_value(&[]);
        assert_close(&single[name], xs, 1e-4, 1e-5 * largest.max(1.0));
        assert_close(&half[name], xs, 0.1, 0.1 * largest.max(1.0));
    }
    Ok(())
}

/// Each input left out, of another size and of another kind, and one too many.
fn wrong_inputs_are_errors_that_name_them(case: &Case) {
    let message = |change: &dyn Fn(&mut Tensors)| {
        let mut inputs = (case.inputs)(&case.small, 4);
        change(&mut inputs);
        match forward(&case.request(), &inputs) {
            Ok(_) => panic!("{}: inputs {inputs:?} are taken", case.preset.name),
            Err(error @ Error::Torch { .. }) => panic!("{}: {error}", case.preset.name),
            Err(error) => error.to_string(),
        }
    };
    for name in (case.inputs)(&case.small, 1).keys() {
        let quoted = format!("`{name}`");
        let refused = |what: &str, change: &dyn Fn(&mut Tensors)| {
            let message = message(change);
            assert!(
                message.contains(&quoted),
                "{}: {name} {what}: {message}",
                case.preset.name
            );
        };
        if !case.optional.contains(&name.as_str()) {
            refused("absent", &|xs| {
                xs.remove(name);
            });
        }
        if !case.any_width.contains(&name.as_str()) {
            refused("wider", &|xs| {
                let wider = Tensor::cat(&[&xs[name], &xs[name]], -1);
                xs.insert(name.clone(), wider);
            });
        }
        refused("of another rank", &|xs| {
            let more = xs[name].unsqueeze(0);
            xs.insert(name.clone(), more);
        });
        refused("of another kind", &|xs| {
            let other = if xs[name].is_floating_point() {
                Kind::Int
            } else {
                Kind::Float
            };
            let cast = xs[name].to_kind(other);
            xs.insert(name.clone(), cast);
        });
    }
    let extra = message(&|xs| {
        xs.insert("extra".to_owned(), Tensor::from(1.0));
    });
    assert!(extra.contains("`extra`"), "{}: {extra}", case.preset.name);
}
