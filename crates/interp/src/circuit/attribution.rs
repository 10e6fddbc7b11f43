//! Attribution graphs: how tokens, features and errors make each feature and each likely token, on one prompt.
//!
//! A row of the graph is a target's gradient, walked backwards through the linear model of the prompt for many targets at once: attention hands it to the
//! tokens that are looked at, through values and the norm; MLPs hand nothing on, but for the linear way past a transcoder's features; and at each layer it
//! is multiplied with what features write, with errors, and in the end with embeddings. These are plain products of matrices, and no graph of gradients is
//! kept.

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::contributions::Completeness;
use super::local::{Direction, Local};
use super::numbers;
use super::prune::{Pruned, Scores, influence, partial_influence, prune, scores};
use super::walk::Walk;

/// Settings of a graph. Defaults are those of the package `circuit-tracer`, and at most 7,500 features.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphOptions {
    /// Most logits: the likeliest next tokens.
    pub logits: usize,
    /// Probability that the logits together reach, if so many suffice.
    pub logit_probability: f64,
    /// Most features that become nodes: those of most influence on the logits.
    pub features: usize,
    /// Rows that are walked at once: bounds the memory, changes no edge.
    pub batch: usize,
    /// Batches after which features are ranked anew by influence, where not all of them become nodes.
    pub update_every: usize,
    /// Whether features and errors at the first token are nodes. Residuals are huge there, and say nothing of the prompt.
    pub first_token: bool,
}

impl Default for GraphOptions {
    fn default() -> Self {
        Self {
            logits: 10,
            logit_probability: 0.95,
            features: 7_500,
            batch: 128,
            update_every: 4,
            first_token: false,
        }
    }
}

impl GraphOptions {
    /// Fails on settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("logits", self.logits),
            ("features", self.features),
            ("batch", self.batch),
            ("update_every", self.update_every),
        ] {
            if value == 0 {
                return Err(Error::config(name, "must be at least 1, got 0"));
            }
        }
        if !(0.0..=1.0).contains(&self.logit_probability) {
            let reason = format!("must lie in 0 to 1, got {}", self.logit_probability);
            return Err(Error::config("logit_probability", reason));
        }
        Ok(())
    }
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Node {
    /// An active feature.
    Feature {
        /// Its layer.
        layer: usize,
        /// The token at which it is active.
        token: usize,
        /// Its number.
        feature: i64,
        /// How active it is.
        activation: f64,
    },
    /// What a transcoder misses at a token.
    Error {
        /// The layer.
        layer: usize,
        /// The token.
        token: usize,
    },
    /// The embedding of a token of the prompt.
    Token {
        /// Its place in the prompt.
        token: usize,
        /// Its number in the vocabulary.
        id: i64,
    },
    /// The logit of a next token, less the mean logit.
    Logit {
        /// The token's number in the vocabulary.
        id: i64,
        /// Its probability.
        probability: f64,
    },
}

/// Numbers of nodes, in the order in which they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// By layer, token and then number.
    pub features: usize,
    /// By layer and then token.
    pub errors: usize,
    /// In the order of the prompt.
    pub tokens: usize,
    /// The likeliest first.
    pub logits: usize,
}

impl Sizes {
    /// All nodes.
    pub const fn nodes(&self) -> usize {
        self.features + self.errors + self.tokens + self.logits
    }

    /// Nodes that edges lead to: features, then logits.
    pub const fn rows(&self) -> usize {
        self.features + self.logits
    }
}

/// Bytes that a graph takes beside model and dictionaries, before it is made.
///
/// They are counted from the tensors that [`Graph::new`], [`Graph::scores`] and [`Graph::prune`] hold at once, for the largest number of logits. What grows
/// with nodes alone and not with their pairs is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Active features of the prompt, of which [`GraphOptions::features`] become nodes.
    pub active: usize,
    /// What active features write, held by the [`Local`] already, where the model is.
    pub writes: u64,
    /// The rows of the finished graph, on the CPU.
    pub rows: u64,
    /// The most that is alive beside them at once, on the CPU. It is the largest of three: the rows as they were made, with the columns of all active
    /// features, while they are put in order; these and their shares, in place of the finished ones, while features are ranked; and in pruning the shares
    /// of the finished rows with either the sorted scores of edges or a byte for each edge.
    pub work: u64,
    /// One batch on its way through a layer, where the model is.
    pub batch: u64,
}

impl Memory {
    /// Of all together, at most, wherever it is.
    pub const fn total(&self) -> u64 {
        self.writes.saturating_add(self.needed(Device::Cpu))
    }

    /// Of what is not held yet, at most, on the CPU, for a model on a device.
    pub const fn needed(&self, device: Device) -> u64 {
        let own = self.rows.saturating_add(self.work);
        match device {
            Device::Cpu => own.saturating_add(self.batch),
            _ => own,
        }
    }
}

/// An attribution graph.
#[derive(Debug)]
pub struct Graph {
    /// The prompt.
    pub ids: Vec<i64>,
    /// Layers of the model.
    pub layers: usize,
    /// Numbers of nodes.
    pub sizes: Sizes,
    /// Features, errors, tokens, logits.
    pub nodes: Vec<Node>,
    /// What each node (column) adds to each feature and then each logit (row), `[features + logits, nodes]` on the CPU.
    pub rows: Tensor,
    /// What biases, positions and the first token's MLPs add to each row.
    pub bias: Vec<f64>,
    /// What features that are no nodes add to each row.
    pub left_out: Vec<f64>,
    /// What each row sums to: activations, then logits less the mean logit.
    pub values: Vec<f64>,
}

impl Graph {
    /// The graph of a prompt, whole; see [`prune`](Self::prune).
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range; [`Error::Torch`] when there is no memory, see [`Local::memory`].
    pub fn new(local: &Local<'_>, options: &GraphOptions) -> Result<Self> {
        options.validate()?;
        let _guard = tch::no_grad_guard();
        let walk = Walk::new(local, options);
        let (likeliest, directions) = likeliest(local, options)?;
        let (total, logits) = (walk.features.len(), likeliest.len());
        let most = options.features.min(total);
        let size = [(logits + most) as i64, walk.columns as i64];
        let rows = Tensor::f_zeros(size, (local.replacement.kind(), Device::Cpu))?;
        let mut bias = Vec::with_capacity(logits + most);
        let mut order: Vec<usize> = Vec::with_capacity(most);
        let mut put = |found: &(Tensor, Vec<f64>)| -> Result<()> {
            let count = found.1.len() as i64;
            let mut place = rows.f_narrow(0, bias.len() as i64, count)?;
            place.f_copy_(&found.0)?;
            bias.extend(&found.1);
            Ok(())
        };
        for some in directions.chunks(options.batch) {
            put(&walk.of_logits(some)?)?;
        }
        let probabilities: Vec<f64> = likeliest.iter().map(|(_, p)| *p).collect();
        let mut is_node = vec![false; total];
        while order.len() < most {
            let pending: Vec<usize> = if most == total {
                (0..total).collect()
            } else {
                let done = rows.f_narrow(0, 0, (logits + order.len()) as i64)?;
                let influence = partial_influence(&done, &order, &probabilities)?;
                let mut ranked: Vec<usize> = (0..total).filter(|at| !is_node[*at]).collect();
                ranked.sort_by(|a, b| influence[*b].total_cmp(&influence[*a]));
                let some = options.update_every.saturating_mul(options.batch);
                ranked.truncate(some.min(most - order.len()));
                ranked
            };
            for some in pending.chunks(options.batch) {
                put(&walk.of_features(some)?)?;
                order.extend(some);
                for at in some {
                    is_node[*at] = true;
                }
            }
        }
        assemble(local, &walk, &rows, &bias, &order, &likeliest)
    }

    /// Probabilities of the logits.
    pub fn probabilities(&self) -> Vec<f64> {
        let of = |node: &Node| match node {
            Node::Logit { probability, .. } => Some(*probability),
            _ => None,
        };
        self.nodes.iter().filter_map(of).collect()
    }

    /// Influence of each node on the logits, `[nodes]`.
    ///
    /// # Errors
    /// [`Error::Config`] never for a graph that was made by this crate.
    pub fn influence(&self) -> Result<Tensor> {
        influence(&self.sizes, &self.rows, &self.probabilities())
    }

    /// What matters of the graph; usual shares are 0.8 of nodes and 0.98 of edges.
    ///
    /// # Errors
    /// [`Error::Config`] for a share outside 0 to 1.
    pub fn prune(&self, node_share: f64, edge_share: f64) -> Result<Pruned> {
        let probabilities = self.probabilities();
        prune(
            &self.sizes,
            &self.rows,
            &probabilities,
            node_share,
            edge_share,
        )
    }

    /// How much of the graph goes through features.
    ///
    /// # Errors
    /// [`Error::Config`] never for a graph that was made by this crate.
    pub fn scores(&self) -> Result<Scores> {
        scores(&self.sizes, &self.rows, &self.probabilities())
    }

    /// Of each row, how near edges, biases and what is left out come to its value.
    ///
    /// # Errors
    /// [`Error::Torch`] never for a graph that was made by this crate.
    pub fn completeness(&self) -> Result<Vec<Completeness>> {
        let constants = self.bias.iter().zip(&self.left_out).zip(&self.values);
        constants
            .enumerate()
            .map(|(row, ((bias, left_out), value))| {
                let edges = numbers(&self.rows.f_select(0, row as i64)?)?;
                let largest = edges
                    .iter()
                    .fold(bias.abs(), |most, edge| most.max(edge.abs()));
                Ok(Completeness {
                    value: *value,
                    sum: edges.iter().sum::<f64>() + bias + left_out,
                    largest,
                })
            })
            .collect()
    }
}

impl Local<'_> {
    /// What a graph of these settings would take.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range.
    pub fn memory(&self, options: &GraphOptions) -> Result<Memory> {
        options.validate()?;
        let config = self.replacement.model.config();
        let walk = Walk::new(self, options);
        let all = self.layers.iter().filter_map(|layer| layer.active.as_ref());
        let all: usize = all.map(|active| active.values.len()).sum();
        let (length, width) = (self.ids.len() as u64, config.d_model as u64);
        let bytes = self.replacement.kind().elt_size_in_bytes() as u64;
        let total = walk.features.len();
        let most = options.features.min(total);
        let logits = (options.logits as i64).clamp(0, config.vocab_size) as usize;
        let rest = walk.columns - total; // errors and tokens
        let (targets, nodes) = ((most + logits) as u64, (most + rest + logits) as u64);
        let made = targets * walk.columns as u64 * bytes;
        let rows = targets * nodes * bytes;
        let ranking = if most < total { 2 * made } else { 0 };
        // Edges between features lead up, so that at most half of the pairs have one; scores are sorted in double precision.
        let edges = most * most.saturating_sub(1) / 2 + most * rest + logits * (most + rest);
        let pruning = 2 * rows + (8 * edges as u64).max(targets * nodes);
        let peak = ranking.max(made + rows).max(pruning);
        // The gradient and its way through the norm; heads before and behind their patterns; the patterns, once for each target; the row, and values for it.
        let heads = config.n_heads as u64;
        let values = heads * config.d_head as u64;
        let one = length * (5 * width + 4 * values + heads * length) + 2 * walk.columns as u64;
        let batch = options.batch.min(most.max(logits)) as u64;
        Ok(Memory {
            active: total,
            writes: all as u64 * width * bytes,
            rows,
            work: peak - rows,
            batch: batch * one * bytes,
        })
    }
}

/// Tokens with their probabilities, and the directions of their logits.
type Likeliest = (Vec<(i64, f64)>, Vec<Direction>);

/// The likeliest next tokens with their probabilities, and their logits less the mean one as directions.
fn likeliest(local: &Local<'_>, options: &GraphOptions) -> Result<Likeliest> {
    let model = local.replacement.model;
    let kind = local.replacement.kind();
    let all = local.logits().f_softmax(0, kind)?;
    let most = (options.logits as i64).clamp(0, model.config().vocab_size);
    let (values, ids) = all.f_topk(most, 0, true, true)?;
    let ids = Vec::<i64>::try_from(&ids.f_to(Device::Cpu)?)?;
    let mut found = Vec::new();
    let mut reached = 0.0;
    for (id, probability) in ids.into_iter().zip(numbers(&values)?) {
        found.push((id, probability));
        reached += probability;
        if reached >= options.logit_probability {
            break;
        }
    }
    let (matrix, bias) = (model.w_u()?.f_detach()?, model.b_u()?);
    let mean = matrix.f_mean_dim([1i64].as_slice(), false, kind)?; // [d]
    let mean_bias = bias.f_mean(kind)?.f_double_value(&[])?;
    let directions = found.iter().map(|(id, _)| {
        let column = matrix.f_select(1, *id)?.f_to_kind(kind)?.f_sub(&mean)?;
        let mut direction = local.unembedded(local.ids.len() - 1, &column)?;
        direction.offset += bias.f_double_value(&[*id])? - mean_bias;
        Ok(direction)
    });
    let directions = directions.collect::<Result<Vec<Direction>>>()?;
    Ok((found, directions))
}

/// Rows and columns in the order of nodes.
fn assemble(
    local: &Local<'_>,
    walk: &Walk<'_, '_>,
    rows: &Tensor,
    bias: &[f64],
    order: &[usize],
    likeliest: &[(i64, f64)],
) -> Result<Graph> {
    let (total, logits) = (walk.features.len(), likeliest.len());
    let mut sorted: Vec<(usize, usize)> = order
        .iter()
        .enumerate()
        .map(|(row, feature)| (*feature, row + logits))
        .collect();
    sorted.sort_unstable();
    let rows_of: Vec<i64> = sorted
        .iter()
        .map(|(_, row)| *row as i64)
        .chain(0..logits as i64)
        .collect();
    let nodes: Vec<i64> = sorted.iter().map(|(feature, _)| *feature as i64).collect();
    let rest = total as i64..walk.columns as i64;
    let columns: Vec<i64> = nodes.iter().copied().chain(rest).collect();
    let (ordered, sums) = arranged(rows, &rows_of, &columns, [total, nodes.len()], logits)?;
    let left_out = if order.len() == total {
        vec![0.0; rows_of.len()]
    } else {
        sums.iter().map(|[all, own]| all - own).collect()
    };
    let length = local.ids.len();
    let layers = local.layers.len();
    let features = sorted.iter().map(|(feature, _)| walk.node(*feature));
    let mut list = features.collect::<Result<Vec<Node>>>()?;
    let activation = |node: &Node| match node {
        Node::Feature { activation, .. } => *activation,
        _ => 0.0,
    };
    let mut values: Vec<f64> = list.iter().map(activation).collect();
    let mean = local.logits().f_mean(Kind::Double)?.f_double_value(&[])?;
    for (id, _) in likeliest {
        values.push(local.logits().f_double_value(&[*id])? - mean);
    }
    let places = (0..layers).flat_map(|layer| (0..length).map(move |token| (layer, token)));
    list.extend(places.map(|(layer, token)| Node::Error { layer, token }));
    let tokens = local.ids.iter().enumerate();
    list.extend(tokens.map(|(token, id)| Node::Token { token, id: *id }));
    let logit = |(id, probability): &(i64, f64)| Node::Logit {
        id: *id,
        probability: *probability,
    };
    list.extend(likeliest.iter().map(logit));
    Ok(Graph {
        ids: local.ids.clone(),
        layers,
        sizes: Sizes {
            features: nodes.len(),
            errors: layers * length,
            tokens: length,
            logits,
        },
        nodes: list,
        rows: ordered,
        bias: rows_of
            .iter()
            .filter_map(|row| bias.get(*row as usize).copied())
            .collect(),
        left_out,
        values,
    })
}

/// Some rows and columns in another order, with columns of zeros for logits behind them, and of each row what it sums to over all features and over those
/// that are nodes: `features` are their numbers, and they are the first columns.
///
/// It goes row by row, so that no more than `rows` and the result are in memory.
fn arranged(
    rows: &Tensor,
    rows_of: &[i64],
    columns: &[i64],
    features: [usize; 2],
    logits: usize,
) -> Result<(Tensor, Vec<[f64; 2]>)> {
    let width = columns.len() as i64;
    let size = [rows_of.len() as i64, width + logits as i64];
    let ordered = Tensor::f_zeros(size, (rows.kind(), Device::Cpu))?;
    let columns = Tensor::f_from_slice(columns)?;
    let sum = |xs: &Tensor, count: usize| -> Result<f64> {
        let own = xs.f_narrow(0, 0, count as i64)?;
        Ok(own.f_sum(Kind::Double)?.f_double_value(&[])?)
    };
    let [all, own] = features;
    let mut sums = Vec::with_capacity(rows_of.len());
    for (at, row) in rows_of.iter().enumerate() {
        let made = rows.f_select(0, *row)?;
        let kept = made.f_index_select(0, &columns)?;
        let mut place = ordered.f_select(0, at as i64)?.f_narrow(0, 0, width)?;
        place.f_copy_(&kept)?;
        sums.push([sum(&made, all)?, sum(&kept, own)?]);
    }
    Ok((ordered, sums))
}
