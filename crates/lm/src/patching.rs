//! Which part of a model carries a difference between two texts: values of a pass over one put into a pass over the other.

use std::cell::RefCell;
use std::collections::BTreeMap;

use densely_core::weights::Tensors;
use densely_core::{Error, Result, check};
use tch::{Device, Tensor};

use crate::hooks::{Cache, Run};
use crate::model::Lm;

/// What is copied: the value at a point, of some positions and heads alone or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Name of the hook point.
    pub name: String,
    /// Positions; `None` for all.
    pub positions: Option<Vec<i64>>,
    /// Heads; `None` for all. Only for points whose values have heads.
    pub heads: Option<Vec<i64>>,
}

impl Site {
    /// The whole value at a point.
    pub fn whole(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            positions: None,
            heads: None,
        }
    }

    /// The same at these positions alone.
    #[must_use]
    pub fn positions(mut self, positions: &[i64]) -> Self {
        self.positions = Some(positions.to_vec());
        self
    }

    /// The same of these heads alone.
    #[must_use]
    pub fn heads(mut self, heads: &[i64]) -> Self {
        self.heads = Some(heads.to_vec());
        self
    }

    /// `target` with what this site copies from `source`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the two differ in shape; [`Error::Config`] for a position or head that they lack.
    pub fn copy(&self, target: &Tensor, source: &Tensor) -> Result<Tensor> {
        check::same_shape(&self.name, source, target)?;
        check::kind(&self.name, source, target.kind())?;
        let size = target.size();
        let squared =
            self.name.ends_with("hook_attn_scores") || self.name.ends_with("hook_pattern");
        // [batch, time, heads, ..], or [batch, heads, time, time].
        let (time, heads) = if squared { (2, 1) } else { (1, 2) };
        let mut chosen: Option<Tensor> = None;
        for (axis, list, what) in [
            (time, &self.positions, "positions"),
            (heads, &self.heads, "heads"),
        ] {
            let Some(list) = list else { continue };
            if what == "heads" && size.len() < 4 {
                let reason = format!("`{}` has no heads", self.name);
                return Err(Error::config("heads", reason));
            }
            let flags = flags(list, size[axis], what, target.device())?;
            let mut shape = vec![1; size.len()];
            shape[axis] = size[axis];
            let flags = flags.f_reshape(shape)?;
            chosen = Some(match chosen {
                Some(chosen) => chosen.f_logical_and(&flags)?,
                None => flags,
            });
        }
        match chosen {
            Some(chosen) => Ok(source.f_where_self(&chosen, target)?),
            None => Ok(source.shallow_clone()),
        }
    }
}

/// Booleans `[len]`, true at those listed.
fn flags(list: &[i64], len: i64, what: &str, device: Device) -> Result<Tensor> {
    if let Some(wrong) = list.iter().find(|index| !(0..len).contains(*index)) {
        let reason = format!("must lie in 0 to {}, got {wrong}", len - 1);
        return Err(Error::config(what, reason));
    }
    let mut flags = vec![false; len as usize];
    for index in list {
        flags[*index as usize] = true;
    }
    Ok(Tensor::f_from_slice(&flags)?.f_to_device(device)?)
}

/// Logits of `ids` where the values at `sites` are those that `source` holds of another text of the same length.
///
/// # Errors
/// [`Error::Config`] for a point that the model or the cache lacks; those of [`Site::copy`].
pub fn activation_patch(
    model: &Lm,
    ids: &Tensor,
    source: &Cache,
    sites: &[Site],
) -> Result<Tensor> {
    model.run(ids, &mut patched(Run::new(), source, sites)?)
}

/// `run` with the copies of `sites`.
fn patched<'a>(mut run: Run<'a>, source: &'a Cache, sites: &'a [Site]) -> Result<Run<'a>> {
    for site in sites {
        let value = source.get(&site.name)?;
        run = run.hook(&site.name, move |xs| Ok(Some(site.copy(xs, value)?)));
    }
    Ok(run)
}

/// A metric at each layer and, in it, at each position of a text: of the logits where the value of `point` (such as `hook_resid_pre`) at that
/// place alone is copied from `source`.
///
/// Each pass starts at the layer of its copy, from the residual of the unchanged text.
/// # Errors
/// Those of [`activation_patch`] and of the metric.
pub fn patch_positions(
    model: &Lm,
    ids: &Tensor,
    source: &Cache,
    point: &str,
    metric: impl FnMut(&Tensor) -> Result<f64>,
) -> Result<Vec<Vec<f64>>> {
    let time = ids.size().get(1).copied().unwrap_or(0);
    grid(model, ids, source, point, time, Site::positions, metric)
}

/// A metric at each layer and, in it, of each head: of the logits where the value of `point` (such as `attn.hook_z`) of that head alone is
/// copied from `source`, at all positions.
///
/// # Errors
/// Those of [`activation_patch`] and of the metric.
pub fn patch_heads(
    model: &Lm,
    ids: &Tensor,
    source: &Cache,
    point: &str,
    metric: impl FnMut(&Tensor) -> Result<f64>,
) -> Result<Vec<Vec<f64>>> {
    let config = model.config();
    let shared = [
        "hook_k",
        "hook_v",
        "hook_rot_k",
        "hook_k_input",
        "hook_v_input",
    ];
    let own = point.rsplit('.').next().unwrap_or(point);
    let heads = if shared.contains(&own) {
        config.n_kv_heads
    } else {
        config.n_heads
    };
    grid(model, ids, source, point, heads, Site::heads, metric)
}

fn grid(
    model: &Lm,
    ids: &Tensor,
    source: &Cache,
    point: &str,
    columns: i64,
    narrow: fn(Site, &[i64]) -> Site,
    mut metric: impl FnMut(&Tensor) -> Result<f64>,
) -> Result<Vec<Vec<f64>>> {
    let mut run = Run::new().cache(&["blocks.*.hook_resid_pre"]);
    let _ = model.run(ids, &mut run)?;
    let residuals = run.take_cache();
    let mut rows = Vec::with_capacity(model.config().n_layers);
    for layer in 0..model.config().n_layers {
        let residual = residuals.get(&format!("blocks.{layer}.hook_resid_pre"))?;
        let name = format!("blocks.{layer}.{point}");
        let mut row = Vec::with_capacity(columns as usize);
        for column in 0..columns {
            let sites = [narrow(Site::whole(&name), &[column])];
            let mut run = patched(Run::new(), source, &sites)?;
            row.push(metric(&model.run_from(layer, residual, &mut run)?)?);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// A part whose output is taken from the source in path patching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// A head.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number there.
        head: i64,
    },
    /// An MLP.
    Mlp {
        /// Its layer.
        layer: usize,
    },
}

/// A part whose input sees the sender in path patching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Receiver {
    /// The queries of a head.
    Query {
        /// Its layer.
        layer: usize,
        /// Its number there.
        head: i64,
    },
    /// The keys of a key and value head.
    Key {
        /// Its layer.
        layer: usize,
        /// Its number among the key and value heads.
        head: i64,
    },
    /// The values of a key and value head.
    Value {
        /// Its layer.
        layer: usize,
        /// Its number among the key and value heads.
        head: i64,
    },
    /// An MLP.
    Mlp {
        /// Its layer.
        layer: usize,
    },
    /// The last residual: the direct way to the logits.
    Logits,
}

impl Receiver {
    /// The point of its input, and the head there.
    fn place(self, layers: usize) -> (String, Option<i64>) {
        match self {
            Self::Query { layer, head } => (format!("blocks.{layer}.attn.hook_q"), Some(head)),
            Self::Key { layer, head } => (format!("blocks.{layer}.attn.hook_k"), Some(head)),
            Self::Value { layer, head } => (format!("blocks.{layer}.attn.hook_v"), Some(head)),
            Self::Mlp { layer } => (format!("blocks.{layer}.hook_mlp_in"), None),
            Self::Logits => (format!("blocks.{}.hook_resid_post", layers - 1), None),
        }
    }
}

/// Which paths are patched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// Parts whose outputs come from the source.
    pub senders: Vec<Sender>,
    /// Parts whose inputs see them.
    pub receivers: Vec<Receiver>,
    /// Whether the MLPs between them stay as they are in the target; else paths through MLPs count as direct.
    pub freeze_mlps: bool,
}

/// Logits of the target where the receivers alone see what the senders write in the source, along direct paths.
///
/// Three passes after that over the source: the target as it is; the target with all queries, keys and values (and MLPs, if asked) held at
/// those of the second and the senders' outputs from the first, whose inputs of the receivers are kept; the target with those inputs.
/// # Errors
/// [`Error::Shape`] for texts of different shapes; [`Error::Config`] for a layer or head that the model lacks, or no sender or receiver.
pub fn path_patch(model: &Lm, source: &Tensor, target: &Tensor, paths: &Paths) -> Result<Tensor> {
    check::same_shape("source", source, target)?;
    if paths.senders.is_empty() || paths.receivers.is_empty() {
        let reason = "path patching needs at least one sender and one receiver";
        return Err(Error::config("paths", reason));
    }
    let layers = model.config().n_layers;
    let sites = sender_sites(paths);
    let names: Vec<&String> = sites.iter().map(|site| &site.name).collect();
    let mut run = Run::new().cache(&names);
    let _ = model.run(source, &mut run)?;
    let from_source = run.take_cache();

    let mut frozen = vec![
        "blocks.*.attn.hook_q",
        "blocks.*.attn.hook_k",
        "blocks.*.attn.hook_v",
    ];
    if paths.freeze_mlps {
        frozen.push("blocks.*.hook_mlp_out");
    }
    let mut run = Run::new().cache(&frozen);
    let _ = model.run(target, &mut run)?;
    let from_target = run.take_cache();

    // Inputs of the receivers with the senders changed and all between them held.
    let mut inputs = BTreeMap::<String, Option<Vec<i64>>>::new();
    for receiver in &paths.receivers {
        let (name, head) = receiver.place(layers);
        let heads = inputs
            .entry(name)
            .or_insert_with(|| head.map(|_| Vec::new()));
        if let (Some(heads), Some(head)) = (heads, head) {
            heads.push(head);
        }
    }
    let seen = RefCell::new(Tensors::new());
    let mut run = Run::new();
    for name in inputs.keys() {
        let seen = &seen;
        run = run.hook(name, move |xs| {
            seen.borrow_mut().insert(name.clone(), xs.shallow_clone());
            Ok(None)
        });
    }
    let held: Vec<String> = from_target.names().map(str::to_owned).collect();
    for name in held {
        let value = from_target.get(&name)?.shallow_clone();
        run = run.freeze(name, value);
    }
    let _ = model.run(target, &mut patched(run, &from_source, &sites)?)?;

    let seen = Cache::from(seen.into_inner());
    let sites: Vec<Site> = inputs
        .into_iter()
        .map(|(name, heads)| Site {
            name,
            positions: None,
            heads,
        })
        .collect();
    activation_patch(model, target, &seen, &sites)
}

/// The senders as sites, heads of one layer together.
fn sender_sites(paths: &Paths) -> Vec<Site> {
    let mut heads = BTreeMap::<usize, Vec<i64>>::new();
    let mut sites = Vec::new();
    for sender in &paths.senders {
        match sender {
            Sender::Head { layer, head } => heads.entry(*layer).or_default().push(*head),
            Sender::Mlp { layer } => {
                sites.push(Site::whole(format!("blocks.{layer}.hook_mlp_out")));
            }
        }
    }
    for (layer, heads) in heads {
        sites.push(Site::whole(format!("blocks.{layer}.attn.hook_z")).heads(&heads));
    }
    sites
}

/// A first-order guess of all patches at once: (source − target) · ∂metric/∂value at each point of `names`, in the point's shape. Its sum over
/// some positions or heads is the guess of what copying those does to the metric.
///
/// `metric` makes a single number of the logits. A point that the metric does not depend on gets 0.
/// # Errors
/// [`Error::Config`] for a point that the model or `source` lacks; [`Error::Shape`] when values differ in shape.
pub fn attribution_patch(
    model: &Lm,
    ids: &Tensor,
    source: &Cache,
    names: &[impl AsRef<str>],
    metric: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensors> {
    let mut run = Run::new().cache(names).with_gradients();
    let logits = model.run(ids, &mut run)?;
    let target: Vec<(String, Tensor)> = run.take_cache().into_tensors().into_iter().collect();
    let loss = metric(&logits)?;
    if loss.numel() != 1 {
        return Err(Error::Shape {
            what: "metric".to_owned(),
            expected: "a single number".to_owned(),
            got: format!("{:?}", loss.size()),
        });
    }
    let values: Vec<&Tensor> = target.iter().map(|(_, value)| value).collect();
    if let Some((name, _)) = target.iter().find(|(_, value)| !value.requires_grad()) {
        let reason = "no gradients reach it: they are turned off around this call";
        return Err(Error::config(name, reason));
    }
    let gradients = Tensor::f_run_backward(&[loss], &values, false, false)?;
    let _no_grad = tch::no_grad_guard();
    let mut found = Tensors::new();
    for ((name, value), gradient) in target.iter().zip(gradients) {
        let from = source.get(name)?;
        check::same_shape(name, from, value)?;
        let guess = if gradient.defined() {
            from.f_sub(value)?.f_mul(&gradient)?
        } else {
            value.f_zeros_like()?
        };
        // Scores that the causal mask hides are −∞ in both passes, and their difference is not a number.
        let guess = if name.ends_with("hook_attn_scores") {
            guess.f_nan_to_num(0.0, None, None)?
        } else {
            guess
        };
        found.insert(name.clone(), guess);
    }
    Ok(found)
}
