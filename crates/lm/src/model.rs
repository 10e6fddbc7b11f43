//! The language model: embedding, blocks, head.

use densely_core::registry::nearest;
use densely_core::weights::Tensors;
use densely_core::{Error, Result, check, nn};
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

use crate::attention::{Attention, Reader};
use crate::block::Block;
use crate::config::{Architecture, LmConfig};
use crate::hooks::{Catalog, Global, Run, Tape};
use crate::kv::KvCache;
use crate::linear::Projection;
use crate::mlp::Mlp;
use crate::names::{self, Names};
use crate::norm::Norm;
use crate::positions::{self, Pass, check_ids};

/// Which optional parameters a model has. A family has its own; processing adds to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "five independent facts")]
pub(crate) struct Parts {
    pub read_bias: bool,
    pub write_bias: bool,
    pub mlp_bias: bool,
    pub head_bias: bool,
    pub tied: bool,
}

impl Parts {
    const fn of(config: &LmConfig) -> Self {
        let biased = matches!(
            config.architecture,
            Architecture::Gpt2 | Architecture::GptNeoX | Architecture::Opt
        );
        let llama = matches!(config.architecture, Architecture::Llama);
        Self {
            read_bias: biased || (llama && config.qkv_bias),
            write_bias: biased,
            mlp_bias: !llama,
            head_bias: matches!(config.architecture, Architecture::GptJ),
            tied: config.tied,
        }
    }
}

/// First values of a parameter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Init {
    Normal(f64),
    Ones,
    Zeros,
}

/// Gives a parameter of a name and size.
type Source<'s> = dyn FnMut(&str, &[i64], Init) -> Result<Tensor> + 's;

/// A decoder language model with hook points.
///
/// Its parameters have the names and layouts of the reference's files. It does not hold a `VarStore`: that of the path it was made under
/// shares their memory.
#[derive(Debug)]
pub struct Lm {
    config: LmConfig,
    parts: Parts,
    embed: Tensor,
    positions: Option<Tensor>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Norm,
    head: Tensor,
    head_bias: Option<Tensor>,
    parameters: Tensors,
    catalog: Catalog,
}

/// Where a pass starts.
enum Start<'s> {
    Ids(&'s Tensor),
    Residual(usize, &'s Tensor),
}

impl Lm {
    /// A model of fresh weights, drawn as the reference draws them: N(0, `initializer_range`), in GPT-2 the matrices that write into the
    /// residual narrower by √(2 layers); biases 0, norms 1.
    ///
    /// # Errors
    /// [`Error::Config`] when the sizes do not fit each other; [`Error::Torch`] when there is no memory for them.
    pub fn new(config: LmConfig, path: &Path) -> Result<Self> {
        let parts = Parts::of(&config);
        Self::assemble(config, parts, &mut |name, size, init| {
            let cpu = (Kind::Float, Device::Cpu);
            let value = match init {
                Init::Normal(std) => Tensor::f_empty(size, cpu)?.f_normal_(0.0, std)?,
                Init::Ones => Tensor::f_ones(size, cpu)?,
                Init::Zeros => Tensor::f_zeros(size, cpu)?,
            };
            Ok(add(path, name, &value))
        })
    }

    /// A model whose parameters are all 0 and of this kind: for loading into, without the time of drawing and of casting.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn undrawn(config: LmConfig, path: &Path, kind: Kind) -> Result<Self> {
        let parts = Parts::of(&config);
        Self::assemble(config, parts, &mut |name, size, _| {
            let value = Tensor::f_zeros(size, (kind, path.device()))?;
            Ok(add(path, name, &value))
        })
    }

    /// A model of the parameters that `source` gives.
    pub(crate) fn assemble(
        config: LmConfig,
        parts: Parts,
        source: &mut Source<'_>,
    ) -> Result<Self> {
        config.validate()?;
        let family = Names::of(config.architecture);
        let mut parameters = Tensors::new();
        let mut make = |name: String, size: &[i64], init: Init| -> Result<Tensor> {
            let xs = source(&name, size, init)?;
            parameters.insert(name, xs.shallow_clone());
            Ok(xs)
        };
        let (d, vocab) = (config.d_model, config.vocab_size);
        let drawn = Init::Normal(config.initializer_range);
        let embed = make(weight(&family.outer(family.embed)), &[vocab, d], drawn)?;
        let positions = if config.learned_positions() {
            let rows = config.n_ctx + config.position_offset();
            let name = weight(&family.outer(family.positions));
            Some(make(name, &[rows, d], drawn)?)
        } else {
            None
        };
        let mut blocks = Vec::with_capacity(config.n_layers);
        for layer in 0..config.n_layers {
            blocks.push(block(&config, parts, layer, &mut make)?);
        }
        let norm = norm(&config, &family.outer(family.norm), &mut make)?;
        let (head, head_bias) = if parts.tied {
            (embed.shallow_clone(), None)
        } else {
            let head = make(family.head_weight(), &[vocab, d], drawn)?;
            let name = format!("{}.bias", family.head);
            let bias = parts
                .head_bias
                .then(|| make(name, &[vocab], Init::Zeros))
                .transpose()?;
            (head, bias)
        };
        let catalog = Catalog::new(&config);
        Ok(Self {
            config,
            parts,
            embed,
            positions,
            blocks,
            norm,
            head,
            head_bias,
            parameters,
            catalog,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// Kind of the parameters.
    pub fn kind(&self) -> Kind {
        self.embed.kind()
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.embed.device()
    }

    /// Logits of every position: tokens `[batch, time]` (i64) to `[batch, time, vocab]`.
    ///
    /// Gradients flow as the caller's mode says; [`run`](Self::run) turns them off.
    /// # Errors
    /// [`Error::Shape`] and [`Error::Config`] for tokens that are not whole numbers of the vocabulary, none, or more than the model takes.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.go(&Start::Ids(ids), &mut Run::new())
    }

    /// Logits as [`forward`](Self::forward) gives them, recording and changing what `run` says; with
    /// [`Run::stop_at`] the residual `[batch, time, d]` instead.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward) and of the hooks; [`Error::Config`] for the name of a point that the model lacks, with the nearest
    /// ones; [`Error::Shape`] for a mask or a value in the place of another that does not fit.
    pub fn run(&self, ids: &Tensor, run: &mut Run<'_>) -> Result<Tensor> {
        let _no_grad = (!run.gradients).then(tch::no_grad_guard);
        self.go(&Start::Ids(ids), run)
    }

    /// As [`run`](Self::run), starting at `layer` with the residual `[batch, time, d]` that enters it (its `hook_resid_pre` before any
    /// change there). Positions go on from those of the cache of keys and values, if there is one.
    ///
    /// # Errors
    /// Those of [`run`](Self::run); [`Error::Config`] for a layer beyond the last.
    pub fn run_from(&self, layer: usize, residual: &Tensor, run: &mut Run<'_>) -> Result<Tensor> {
        let _no_grad = (!run.gradients).then(tch::no_grad_guard);
        self.go(&Start::Residual(layer, residual), run)
    }

    /// [`run`](Self::run) in the caller's mode of gradients.
    pub(crate) fn run_ambient(&self, ids: &Tensor, run: &mut Run<'_>) -> Result<Tensor> {
        self.go(&Start::Ids(ids), run)
    }

    fn go(&self, start: &Start<'_>, run: &mut Run<'_>) -> Result<Tensor> {
        let layers = self.config.n_layers;
        let (first, input) = match start {
            Start::Ids(ids) => {
                check_ids(ids, self.config.vocab_size)?;
                (0, *ids)
            }
            Start::Residual(layer, residual) => {
                let width = Some(self.config.d_model);
                check::shape("residual", residual, &[None, None, width])?;
                check::kind("residual", residual, self.kind())?;
                if residual.numel() == 0 {
                    let reason = format!("holds no token ({:?})", residual.size());
                    return Err(Error::config("residual", reason));
                }
                (*layer, *residual)
            }
        };
        let stop = run.stop_at.unwrap_or(layers);
        for (field, layer) in [("layer", first), ("stop_at", stop)] {
            if layer > layers {
                let reason = format!("the model has {layers} layers, got {layer}");
                return Err(Error::config(field, reason));
            }
        }
        if stop < first {
            let reason = format!("must not lie before layer {first}, got {stop}");
            return Err(Error::config("stop_at", reason));
        }
        let outer = (matches!(start, Start::Ids(_)), run.stop_at.is_none());
        for (name, _) in &run.actions {
            let place = self.catalog.place(name)?;
            if !self.catalog.reached(place, first..stop, outer) {
                let reason = format!(
                    "this pass does not come by it: it computes the layers from {first} to before {stop}"
                );
                return Err(Error::config(name, reason));
            }
        }
        let past = match &run.kv {
            Some(kv) => kv.past(first, stop)?,
            None => 0,
        };
        let size = input.size();
        let shape = [size[0], size[1], past];
        let pass = Pass::new(
            &self.config,
            shape,
            run.mask.as_ref(),
            run.kv.as_deref(),
            (self.kind(), self.device()),
        )?;
        // Not without gradients: where a layer gets more room, its old memory would last to the end of the pass.
        let before = run.kv.as_deref().filter(|_| run.gradients);
        let before = before.map(KvCache::snapshot);
        let found = self.compute(start, [first, stop], &pass, run);
        if let Some(kv) = run.kv.as_deref_mut() {
            match (&found, before) {
                (Ok(_), _) if first < stop => kv.set_mask(pass.mask),
                (Ok(_), _) => (),
                (Err(_), Some(before)) => *kv = before,
                (Err(_), None) => kv.undo([first, stop], past)?,
            }
        }
        found
    }

    /// What [`go`](Self::go) gives, after its checks: layers `first` to before `stop`, and what lies around them.
    fn compute(
        &self,
        start: &Start<'_>,
        [first, stop]: [usize; 2],
        pass: &Pass,
        run: &mut Run<'_>,
    ) -> Result<Tensor> {
        let layers = self.config.n_layers;
        let mut tape = Tape::new(
            &self.catalog,
            &run.patterns,
            &mut run.actions,
            &mut run.cache,
            run.gradients,
        )?;
        let mut residual = match start {
            Start::Ids(ids) => self.enter(ids, pass, &mut tape)?,
            Start::Residual(_, residual) => leaf(residual, &tape)?,
        };
        for (layer, block) in self.blocks.iter().enumerate().take(stop).skip(first) {
            let kv = run.kv.as_deref_mut();
            residual = block.pass(residual, layer, pass, kv, &mut tape)?;
        }
        if run.stop_at.is_some() {
            return Ok(residual);
        }
        if run.last_only {
            residual = residual.f_narrow(1, pass.len - 1, 1)?;
        }
        let places = [
            Global::FinalScale.at(layers),
            Global::FinalNormalized.at(layers),
        ];
        self.head(&self.norm.pass(&residual, &mut tape, places)?)
    }

    /// Tokens to the residual that enters the first block.
    fn enter(&self, ids: &Tensor, pass: &Pass, tape: &mut Tape<'_, '_>) -> Result<Tensor> {
        let layers = self.config.n_layers;
        let embedded = Tensor::f_embedding(&self.embed, ids, -1, false, false)?;
        let embedded = leaf(&embedded, tape)?;
        let embedded = tape.pass(Global::Embed.at(layers), embedded)?;
        let Some(table) = &self.positions else {
            return Ok(embedded);
        };
        let mut places = positions::learned(table, &self.config, pass)?;
        let at = Global::PosEmbed.at(layers);
        if tape.wants(at) {
            let wide = leaf(&places.f_expand(embedded.size(), false)?, tape)?;
            places = tape.pass(at, wide)?;
        }
        Ok(embedded.f_add(&places)?)
    }

    fn head(&self, normed: &Tensor) -> Result<Tensor> {
        Ok(normed.f_linear(&self.head, self.head_bias.as_ref())?)
    }

    /// The token embedding alone, before positions: `[batch, time]` to `[batch, time, d]`, the value of `hook_embed`.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn embed_tokens(&self, ids: &Tensor) -> Result<Tensor> {
        check_ids(ids, self.config.vocab_size)?;
        Ok(Tensor::f_embedding(&self.embed, ids, -1, false, false)?)
    }

    /// Last norm and head: residual `[.., d]` to logits `[.., vocab]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another width or kind.
    pub fn unembed(&self, residual: &Tensor) -> Result<Tensor> {
        let size = residual.size();
        let mut expected: Vec<Option<i64>> = size.iter().copied().map(Some).collect();
        if let Some(width) = expected.last_mut() {
            *width = Some(self.config.d_model);
        } else {
            expected.push(Some(self.config.d_model));
        }
        check::shape("residual", residual, &expected)?;
        check::kind("residual", residual, self.kind())?;
        self.head(&self.norm.forward(residual)?)
    }

    pub(crate) fn block(&self, layer: usize) -> Result<&Block> {
        self.blocks.get(layer).ok_or_else(|| {
            let reason = format!("must be below {}, got {layer}", self.blocks.len());
            Error::config("layer", reason)
        })
    }

    /// The second matrix of a layer's MLP, `[d_mlp, d]`: row j is what hidden value j writes. It shares the parameter's memory, as a turned
    /// view where files hold it `[d, d_mlp]`; writing into it (without gradients) changes the model.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer beyond the last.
    pub fn mlp_out(&self, layer: usize) -> Result<Tensor> {
        self.block(layer)?.mlp.out.matrix()
    }

    /// The bias of that matrix, `[d]`; Llama's have none.
    ///
    /// # Errors
    /// Those of [`mlp_out`](Self::mlp_out).
    pub fn mlp_out_bias(&self, layer: usize) -> Result<Option<Tensor>> {
        let bias = self.block(layer)?.mlp.out.bias.as_ref();
        Ok(bias.map(Tensor::shallow_clone))
    }

    /// The published name of that matrix, such as `transformer.h.8.mlp.c_proj.weight`.
    ///
    /// # Errors
    /// Those of [`mlp_out`](Self::mlp_out).
    pub fn mlp_out_name(&self, layer: usize) -> Result<String> {
        self.block(layer)?;
        let family = Names::of(self.config.architecture);
        Ok(weight(&family.block(layer, family.down)))
    }

    /// The parameter of this published name, sharing its memory.
    ///
    /// # Errors
    /// [`Error::Config`] with the nearest names.
    pub fn parameter(&self, name: &str) -> Result<Tensor> {
        if let Some(xs) = self.parameters.get(name) {
            return Ok(xs.shallow_clone());
        }
        let aliases = self.name_aliases();
        let known = aliases.iter().find(|(alias, _)| alias == name);
        if let Some(xs) = known.and_then(|(_, name)| self.parameters.get(name)) {
            return Ok(xs.shallow_clone());
        }
        let near = nearest(self.parameters.keys().map(String::as_str), name).join("`, `");
        let reason = format!("this model has no such parameter; nearest: `{near}`");
        Err(Error::config(name, reason))
    }

    /// All parameters by their published names, sharing their memory. A tied head is not among them.
    pub fn parameters(&self) -> Tensors {
        let clone = |(name, xs): (&String, &Tensor)| (name.clone(), xs.shallow_clone());
        self.parameters.iter().map(clone).collect()
    }

    /// Whether it has the parts that its family has, and no others that processing added.
    pub(crate) fn is_published(&self) -> bool {
        self.parts == Parts::of(&self.config)
    }

    /// Further names that files give to the parameters, each with the name here.
    pub fn name_aliases(&self) -> Vec<(String, String)> {
        let names = self.parameters.keys().map(String::as_str);
        names::aliases(&self.config, self.parts.tied, names)
    }

    /// Names of buffers that files hold beside the parameters, such as causal masks: they are computed here.
    pub fn ignored_names(&self) -> Vec<String> {
        names::ignored(&self.config)
    }

    /// Names of all hook points of the model.
    pub fn hook_names(&self) -> impl Iterator<Item = &str> {
        self.catalog.names()
    }

    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    /// The head's matrix `[vocab, d]` and bias `[vocab]`.
    pub(crate) fn head_parts(&self) -> (&Tensor, Option<&Tensor>) {
        (&self.head, self.head_bias.as_ref())
    }

    /// The token table `[vocab, d]` and the table of positions.
    pub(crate) fn tables(&self) -> (&Tensor, Option<&Tensor>) {
        (&self.embed, self.positions.as_ref())
    }
}

/// `xs` as the start of a graph where gradients are wanted and nothing before it takes any.
fn leaf(xs: &Tensor, tape: &Tape<'_, '_>) -> Result<Tensor> {
    if tape.gradients && !xs.requires_grad() {
        return Ok(xs.f_detach()?.f_set_requires_grad(true)?);
    }
    Ok(xs.shallow_clone())
}

fn weight(name: &str) -> String {
    format!("{name}.weight")
}

/// Adds a parameter under its dotted name.
fn add(path: &Path, name: &str, value: &Tensor) -> Tensor {
    match name.rsplit_once('.') {
        Some((at, last)) => nn::parameter(&nn::at(path, at), last, value),
        None => nn::parameter(path, name, value),
    }
}

type Make<'m> = dyn FnMut(String, &[i64], Init) -> Result<Tensor> + 'm;

fn norm(config: &LmConfig, name: &str, make: &mut Make<'_>) -> Result<Norm> {
    let size = [config.d_model];
    let weight = make(weight(name), &size, Init::Ones)?;
    let bias = if config.rms() {
        None
    } else {
        Some(make(format!("{name}.bias"), &size, Init::Zeros)?)
    };
    Ok(Norm {
        weight,
        bias,
        eps: config.norm_eps,
        rms: config.rms(),
    })
}

/// A matrix from `inputs` to `outputs`, turned as the family's files are.
fn projection(
    turned: bool,
    name: &str,
    [inputs, outputs]: [i64; 2],
    (bias, init): (bool, Init),
    make: &mut Make<'_>,
) -> Result<Projection> {
    let size = if turned {
        [inputs, outputs]
    } else {
        [outputs, inputs]
    };
    Ok(Projection {
        weight: make(weight(name), &size, init)?,
        bias: if bias {
            Some(make(format!("{name}.bias"), &[outputs], Init::Zeros)?)
        } else {
            None
        },
        turned,
    })
}

fn block(config: &LmConfig, parts: Parts, layer: usize, make: &mut Make<'_>) -> Result<Block> {
    let family = Names::of(config.architecture);
    let name = |part: &str| family.block(layer, part);
    let turned = config.architecture == Architecture::Gpt2;
    let std = config.initializer_range;
    let read_init = (parts.read_bias, Init::Normal(std));
    let write_std = if turned {
        std / (2.0 * config.n_layers as f64).sqrt()
    } else {
        std
    };
    let (d, m) = (config.d_model, config.d_mlp);
    let queries = config.n_heads * config.d_head;
    let keys = config.n_kv_heads * config.d_head;
    let ln1 = norm(config, &name(family.ln1), make)?;
    let reader = match family.read {
        [all] => {
            let all = projection(turned, &name(all), [d, 3 * queries], read_init, make)?;
            if turned {
                Reader::Blocks(all)
            } else {
                Reader::ByHead(all)
            }
        }
        [query, key, value, ..] => Reader::Apart([
            projection(turned, &name(query), [d, queries], read_init, make)?,
            projection(turned, &name(key), [d, keys], read_init, make)?,
            projection(turned, &name(value), [d, keys], read_init, make)?,
        ]),
        _ => {
            return Err(Error::config(
                "architecture",
                "has no names for its queries",
            ));
        }
    };
    let write_init = (parts.write_bias, Init::Normal(write_std));
    let write = projection(turned, &name(family.write), [queries, d], write_init, make)?;
    let ln2 = if family.ln2.is_empty() {
        None
    } else {
        Some(norm(config, &name(family.ln2), make)?)
    };
    let up_init = (parts.mlp_bias, Init::Normal(std));
    let gate = if config.gated() {
        Some(projection(
            turned,
            &name(family.gate),
            [d, m],
            up_init,
            make,
        )?)
    } else {
        None
    };
    let down_init = (parts.mlp_bias, Init::Normal(write_std));
    let mlp = Mlp {
        up: projection(turned, &name(family.up), [d, m], up_init, make)?,
        gate,
        out: projection(turned, &name(family.down), [m, d], down_init, make)?,
        activation: config.activation,
    };
    Ok(Block {
        ln1,
        ln2,
        attention: Attention::new(config, reader, write),
        mlp,
        parallel: config.is_parallel(),
    })
}
