//! Attribution graphs as files that the package `circuit-tracer` and its viewers read.

use std::path::Path;

use densely_core::{Error, Result, fs};
use serde::{Deserialize, Serialize};

use super::attribution::{Graph, Node};
use super::numbers;
use super::prune::Pruned;

/// A graph file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphFile {
    /// What the graph is of.
    pub metadata: Metadata,
    /// How a viewer first shows it.
    pub q_params: ViewParams,
    /// What is left of its nodes, in their order.
    pub nodes: Vec<FileNode>,
    /// What is left of its edges, by target and then source.
    pub links: Vec<Link>,
}

/// What a graph is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Name of the graph and of its file.
    pub slug: String,
    /// Name of the set of transcoders, by which a viewer finds their features.
    pub scan: String,
    /// Names of the transcoders of each layer, where they are of no named set.
    pub transcoder_list: Vec<String>,
    /// The text of each token.
    pub prompt_tokens: Vec<String>,
    /// All of it.
    pub prompt: String,
    /// Share of influence that nodes were kept for.
    pub node_threshold: Option<f64>,
    /// Version of the format.
    pub schema_version: Option<u32>,
}

/// How a viewer first shows a graph: nothing pinned, nothing chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ViewParams {
    /// Nodes that are pinned.
    pub pinned_ids: Vec<String>,
    /// Groups of nodes.
    pub supernodes: Vec<Vec<String>>,
    /// Which edges are shown.
    pub link_type: String,
    /// The chosen node.
    pub clicked_id: String,
    /// Where pinned nodes stand.
    #[serde(rename = "sg_pos")]
    pub sg_pos: String,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileNode {
    /// Its name.
    pub node_id: String,
    /// A number for its feature and layer together; of a token its place, of a logit its number in the vocabulary.
    pub feature: i64,
    /// Its layer, `E` for embeddings; logits stand one above the one behind the last.
    pub layer: String,
    /// The token.
    pub ctx_idx: usize,
    /// `cross layer transcoder`, `mlp reconstruction error`, `embedding` or `logit`.
    pub feature_type: String,
    /// Of a logit, its probability.
    pub token_prob: f64,
    /// Whether it is the likeliest logit.
    pub is_target_logit: bool,
    /// Always 0.
    pub run_idx: usize,
    /// Always 0.
    pub reverse_ctx_idx: usize,
    /// Its name over prompts.
    #[serde(rename = "jsNodeId")]
    pub js_node_id: String,
    /// What it is called.
    pub clerp: String,
    /// Share of all influence that it and more influential nodes have.
    pub influence: Option<f64>,
    /// Of a feature, how active it is.
    pub activation: Option<f64>,
}

/// An edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Name of the node that writes.
    pub source: String,
    /// Name of the node that reads.
    pub target: String,
    /// What it adds.
    pub weight: f64,
}

/// What a graph file says beside the graph.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Labels {
    /// Name of the graph and of its file.
    pub slug: String,
    /// Name of the set of transcoders; may be empty where `transcoders` are given.
    pub scan: String,
    /// Names of the transcoders of each layer.
    pub transcoders: Vec<String>,
    /// The text of the whole prompt.
    pub prompt: String,
    /// The text of each token of the prompt.
    pub tokens: Vec<String>,
    /// The text of each logit's token, in their order.
    pub logits: Vec<String>,
    /// Share of influence that nodes were kept for.
    pub node_share: Option<f64>,
}

/// The number that the format has for two: that of their place along the diagonals.
const fn paired(x: i64, y: i64) -> i64 {
    (x + y) * (x + y + 1) / 2 + y
}

impl GraphFile {
    /// The nodes and edges that are kept of a graph. Nodes that no edge is left of go, but for tokens and logits.
    ///
    /// Errors are called `err_{layer}_{token}`: the package's own name for them, `0_{layer}_{token}`, is also that of a feature of the first layer.
    /// # Errors
    /// [`Error::Config`] when the texts do not fit the graph in number.
    pub fn new(graph: &Graph, pruned: &Pruned, labels: &Labels) -> Result<Self> {
        for (name, got, expected) in [
            ("tokens", labels.tokens.len(), graph.sizes.tokens),
            ("logits", labels.logits.len(), graph.sizes.logits),
        ] {
            if got != expected {
                let reason = format!("must be a text for each of {expected}, got {got}");
                return Err(Error::config(name, reason));
            }
        }
        let kept = numbers(&pruned.nodes)?;
        let is_kept = |at: usize| kept.get(at).is_some_and(|kept| *kept != 0.0);
        let before_logits = graph.sizes.nodes() - graph.sizes.logits;
        let mut links = Vec::new();
        let mut is_linked = vec![false; graph.nodes.len()];
        // Row by row: a mask over all of them at once takes sixteen bytes for each entry.
        for row in 0..graph.sizes.rows() {
            let target = if row < graph.sizes.features {
                row
            } else {
                before_logits + row - graph.sizes.features
            };
            if !is_kept(target) {
                continue;
            }
            for (source, weight) in row_edges(graph, pruned, row as i64)? {
                if is_kept(source) {
                    is_linked[source] = true;
                    is_linked[target] = true;
                    links.push(Link {
                        source: name(graph, source),
                        target: name(graph, target),
                        weight,
                    });
                }
            }
        }
        let cumulative = numbers(&pruned.cumulative)?;
        let first_token = graph.sizes.features + graph.sizes.errors;
        let nodes = (0..graph.nodes.len())
            .filter(|at| is_kept(*at) && (is_linked[*at] || *at >= first_token))
            .map(|at| FileNode::new(graph, labels, at, cumulative.get(at).copied()))
            .collect();
        Ok(Self {
            metadata: Metadata {
                slug: labels.slug.clone(),
                scan: if labels.scan.is_empty() {
                    "custom-transcoders".to_owned()
                } else {
                    labels.scan.clone()
                },
                transcoder_list: labels.transcoders.clone(),
                prompt_tokens: labels.tokens.clone(),
                prompt: labels.prompt.clone(),
                node_threshold: labels.node_share,
                schema_version: Some(1),
            },
            q_params: ViewParams {
                pinned_ids: Vec::new(),
                supernodes: Vec::new(),
                link_type: "both".to_owned(),
                clicked_id: String::new(),
                sg_pos: String::new(),
            },
            nodes,
            links,
        })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] naming `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, &json(path, self)?)
    }

    /// Writes `{slug}.json` into a folder, and enters it into the list `graph-metadata.json` there, by which viewers find graphs.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::Config`] for a slug that is no name of a file; [`Error::Corrupt`] for a list of another format.
    pub fn write_into(&self, folder: &Path) -> Result<()> {
        let slug = &self.metadata.slug;
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if slug.is_empty() || slug.starts_with('.') || !slug.chars().all(is_plain) {
            let reason = format!("must be of letters, digits, `-`, `_` and `.`, got `{slug}`");
            return Err(Error::config("slug", reason));
        }
        // Some file systems take names for the same whatever the case of their letters.
        if slug.eq_ignore_ascii_case("graph-metadata") {
            let reason = "`graph-metadata` is the list's own name";
            return Err(Error::config("slug", reason));
        }
        self.write(&folder.join(format!("{slug}.json")))?;
        let path = folder.join("graph-metadata.json");
        let mut list = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<List>(&bytes)
                .map_err(|error| Error::corrupt(&path, error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => List::default(),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        list.graphs.retain(|graph| {
            graph.get("slug").and_then(serde_json::Value::as_str) != Some(slug.as_str())
        });
        let own = serde_json::to_value(&self.metadata);
        list.graphs
            .push(own.map_err(|error| Error::corrupt(&path, error.to_string()))?);
        fs::write(&path, &json(&path, &list)?)
    }
}

/// The graphs of a folder, as their metadata. What other programs have written there is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    graphs: Vec<serde_json::Value>,
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::corrupt(path, error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The sources and weights of a row's edges that are left.
fn row_edges(graph: &Graph, pruned: &Pruned, row: i64) -> Result<Vec<(usize, f64)>> {
    let kept = numbers(&pruned.edges.f_select(0, row)?)?;
    let weights = numbers(&graph.rows.f_select(0, row)?)?;
    let all = kept.into_iter().zip(weights).enumerate();
    Ok(all
        .filter(|(_, (kept, _))| *kept != 0.0)
        .map(|(source, (_, weight))| (source, weight))
        .collect())
}

/// A node's name in files and pages.
pub(super) fn name(graph: &Graph, at: usize) -> String {
    match graph.nodes.get(at) {
        Some(Node::Feature {
            layer,
            token,
            feature,
            ..
        }) => format!("{layer}_{feature}_{token}"),
        Some(Node::Error { layer, token }) => format!("err_{layer}_{token}"),
        Some(Node::Token { token, id }) => format!("E_{id}_{token}"),
        Some(Node::Logit { id, .. }) => {
            format!("{}_{id}_{}", graph.layers + 1, graph.sizes.tokens - 1)
        }
        None => String::new(),
    }
}

impl FileNode {
    fn new(graph: &Graph, labels: &Labels, at: usize, influence: Option<f64>) -> Self {
        let plain = Self {
            node_id: name(graph, at),
            feature: -1,
            layer: String::new(),
            ctx_idx: 0,
            feature_type: String::new(),
            token_prob: 0.0,
            is_target_logit: false,
            run_idx: 0,
            reverse_ctx_idx: 0,
            js_node_id: String::new(),
            clerp: String::new(),
            influence,
            activation: None,
        };
        match graph.nodes.get(at).copied() {
            Some(Node::Feature {
                layer,
                token,
                feature,
                activation,
            }) => Self {
                feature: paired(layer as i64, feature),
                layer: layer.to_string(),
                ctx_idx: token,
                feature_type: "cross layer transcoder".to_owned(),
                js_node_id: format!("{layer}_{feature}-0"),
                activation: Some(activation),
                ..plain
            },
            Some(Node::Error { layer, token }) => Self {
                layer: layer.to_string(),
                ctx_idx: token,
                feature_type: "mlp reconstruction error".to_owned(),
                js_node_id: format!("{layer}_{token}-0"),
                ..plain
            },
            Some(Node::Token { token, id }) => Self {
                feature: token as i64,
                layer: "E".to_owned(),
                ctx_idx: token,
                feature_type: "embedding".to_owned(),
                js_node_id: format!("E_{id}-{token}"),
                ..plain
            },
            Some(Node::Logit { id, probability }) => {
                let first = graph.sizes.nodes() - graph.sizes.logits;
                let text = labels.logits.get(at - first).map_or("", String::as_str);
                let end = graph.sizes.tokens - 1;
                Self {
                    feature: id,
                    layer: (graph.layers + 1).to_string(),
                    ctx_idx: end,
                    feature_type: "logit".to_owned(),
                    token_prob: probability,
                    is_target_logit: at == first,
                    js_node_id: format!("L_{id}-{end}"),
                    clerp: format!("Output \"{text}\" (p={probability:.3})"),
                    influence: None,
                    ..plain
                }
            }
            None => plain,
        }
    }
}
