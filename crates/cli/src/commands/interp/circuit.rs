//! `densely interp circuit`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path as FilePath, PathBuf};

use densely_core::{Error, Result, check};
use densely_data::table::available_memory;
use densely_interp::activations::layer_of;
use densely_interp::circuit::export::{GraphFile, Labels};
use densely_interp::circuit::page::{Effect, FeatureDetail, Page};
use densely_interp::circuit::{
    Completeness, Component, Graph, GraphOptions, Local, Node, Path, PathOptions, Replacement,
    TokenEffects, Transcoder, greedy_paths,
};
use densely_interp::corpus::{Corpus, CorpusOptions, Documents};
use densely_interp::dictionary::examples::{Example, Survey, Surveyed};
use densely_interp::dictionary::fit;
use densely_interp::dictionary::folder::Opened as OpenedDictionary;
use densely_lm::{Opened, Tokenizer};
use serde_json::{Value, json};

use super::model_name;
use super::transcoder::{enters, open_dictionary, points_of, windows_bar};
use crate::Common;
use crate::commands::lm::Source;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp circuit gpt2 --dictionary mlp0,mlp1,mlp2 --prompt \"The capital of France is\" --text wiki.txt --out circuits\n\
                  Writes for each prompt <name>.html, a page that opens without a server, and <name>.json, a graph file of circuit-tracer. A layer without a transcoder is one error."
)]
pub(crate) struct Circuit {
    #[command(flatten)]
    source: Source,
    /// Transcoders, of a layer each; `8=DIR` or `blocks.8.hook_mlp_out=DIR` says where one stands that does not say so itself.
    #[arg(
        long,
        required = true,
        value_name = "[LAYER=]DIR",
        value_delimiter = ','
    )]
    dictionary: Vec<PathBuf>,
    /// Text of a prompt; may be given several times.
    #[arg(long, required = true, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Text in which features' top examples are looked for.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    text: Vec<PathBuf>,
    /// Windows of it, at most.
    #[arg(long, default_value_t = 256, value_name = "N")]
    windows: usize,
    /// Feature nodes of a graph, at most: the most influential ones.
    #[arg(long, default_value_t = 7500, value_name = "N")]
    features: usize,
    /// Logits of a graph, at most.
    #[arg(long, default_value_t = 10, value_name = "N")]
    logits: usize,
    /// Share of probability that they are to cover.
    #[arg(long, default_value_t = 0.95)]
    probability: f64,
    /// Share of influence that nodes are kept for.
    #[arg(long, default_value_t = 0.8)]
    nodes: f64,
    /// Share of influence that edges are kept for.
    #[arg(long, default_value_t = 0.98)]
    edges: f64,
    /// Print the so many best paths into the likeliest logit, too.
    #[arg(long, value_name = "N")]
    paths: Option<usize>,
    /// Steps of a path, at most.
    #[arg(long, default_value_t = 3, value_name = "N", requires = "paths")]
    steps: usize,
    /// Do not begin prompts with the token that begins a text.
    #[arg(long)]
    no_bos: bool,
    /// Folder for what is found.
    #[arg(long, value_name = "DIR", default_value = "runs/circuits")]
    out: PathBuf,
}

/// Transcoders, with the points that they stand between.
pub(super) struct Transcoders {
    pub(super) all: Vec<(OpenedDictionary, String, String)>,
}

/// A folder, and the layer or point that is named before it: `8=DIR`. What is there under its whole name is a folder.
fn placed(text: &FilePath) -> (&FilePath, Option<&str>) {
    if text.exists() {
        return (text, None);
    }
    match text.to_str().and_then(|text| text.split_once('=')) {
        Some((place, folder)) => (FilePath::new(folder), Some(place)),
        None => (text, None),
    }
}

fn open_placed(
    text: &FilePath,
    opened: &Opened,
    common: &Common,
) -> Result<(OpenedDictionary, String, String)> {
    let (path, Some(place)) = placed(text) else {
        return open_dictionary(text, None, None, common).map_err(|error| match error {
            Error::Config { field, .. } if field == "--read" || field == "--write" => {
                let reason = format!(
                    "{0} does not say where it stands: write `LAYER={0}`",
                    text.display()
                );
                Error::config("--dictionary", reason)
            }
            other => other,
        });
    };
    let write = match place.parse::<usize>() {
        Ok(layer) => format!("blocks.{layer}.hook_mlp_out"),
        Err(_) => place.to_owned(),
    };
    let layer = layer_of(&opened.model, &write)?;
    let dictionary = fit::open(path, common.device)?;
    let read = match dictionary.metadata.hook_name {
        Some(_) => None,
        None => Some(enters(&opened.model, layer)?),
    };
    let (read, write) = points_of(&dictionary, path, read.as_deref(), Some(&write))?;
    Ok((dictionary, read, write))
}

impl Transcoders {
    pub(super) fn open(paths: &[PathBuf], opened: &Opened, common: &Common) -> Result<Self> {
        let all = paths
            .iter()
            .map(|path| open_placed(path, opened, common))
            .collect::<Result<Vec<_>>>()?;
        let mut layers = BTreeSet::new();
        for ((_, read, write), path) in all.iter().zip(paths) {
            if layer_of(&opened.model, read)? != layer_of(&opened.model, write)? {
                let reason = format!(
                    "{} reads `{read}` and writes `{write}`: a circuit's transcoders are of one layer each",
                    path.display()
                );
                return Err(Error::config("--dictionary", reason));
            }
            if !layers.insert(layer_of(&opened.model, write)?) {
                let reason = format!("{} is a second one of its layer", path.display());
                return Err(Error::config("--dictionary", reason));
            }
        }
        Ok(Self { all })
    }

    /// The model with them in its MLPs' place.
    pub(super) fn replacement<'a>(&'a self, opened: &'a Opened) -> Result<Replacement<'a>> {
        let mut layers: Vec<Option<Transcoder>> =
            (0..opened.model.config().n_layers).map(|_| None).collect();
        for (dictionary, read, write) in &self.all {
            let layer = layer_of(&opened.model, write)?;
            if let Some(slot) = layers.get_mut(layer) {
                *slot = Some(Transcoder::new(&dictionary.dictionary, read, write)?);
            }
        }
        Replacement::new(&opened.model, layers)
    }
}

/// A prompt as the model reads it, with the token that begins a text before it.
pub(super) fn tokens(tokenizer: &Tokenizer, prompt: &str, bos: bool) -> Result<Vec<i64>> {
    let start = tokenizer.bos().filter(|_| bos);
    let ids: Vec<i64> = start
        .into_iter()
        .chain(tokenizer.encode_plain(prompt)?)
        .collect();
    if ids.len() < 2 {
        let reason = format!("`{prompt}` has too few tokens");
        return Err(Error::config("--prompt", reason));
    }
    Ok(ids)
}

pub(super) fn run(arguments: &Circuit, common: &Common) -> Result<()> {
    let opened = arguments.source.open(common)?;
    let transcoders = Transcoders::open(&arguments.dictionary, &opened, common)?;
    let replacement = transcoders.replacement(&opened)?;
    let prompts = prompts(arguments, &opened)?;
    let surveys = surveys(arguments, &opened, &transcoders, common)?;
    std::fs::create_dir_all(&arguments.out).map_err(Error::io(&arguments.out))?;
    // The list of graphs has a name of its own.
    let mut names = BTreeSet::from(["graph-metadata".to_owned()]);
    let mut whole = Vec::new();
    let mut ended = Ok(());
    for (prompt, ids) in arguments.prompt.iter().zip(&prompts) {
        let base = slug(prompt);
        let mut name = base.clone();
        for count in 2.. {
            if names.insert(name.clone()) {
                break;
            }
            name = format!("{base}-{count}");
        }
        let made = Local::new(&replacement, ids)
            .and_then(|local| one(arguments, &opened, &replacement, &local, &surveys, &name));
        match made {
            Ok(made) => {
                if !common.json {
                    println!("{}", made.words);
                }
                whole.push(made.json);
            }
            // The graphs before it are written, and told of.
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    if common.json {
        println!("{}", json!(whole));
    }
    ended
}

/// The prompts' tokens. What can be wrong with them, and with the shares, is said before the survey, which takes minutes.
fn prompts(arguments: &Circuit, opened: &Opened) -> Result<Vec<Vec<i64>>> {
    for (name, share) in [("--nodes", arguments.nodes), ("--edges", arguments.edges)] {
        if !(0.0..=1.0).contains(&share) {
            let reason = format!("must lie in 0 to 1, got {share}");
            return Err(Error::config(name, reason));
        }
    }
    graph_options(arguments).validate()?;
    check::positive("--paths", arguments.paths.unwrap_or(1) as i64)?;
    check::positive("--steps", arguments.steps as i64)?;
    let most = opened.model.config().n_ctx as usize;
    let ids_of = |prompt: &String| {
        let ids = tokens(&opened.tokenizer, prompt, !arguments.no_bos)?;
        if ids.len() > most {
            let reason = format!(
                "{} tokens are more than the {most} that the model takes",
                ids.len()
            );
            return Err(Error::config("--prompt", reason));
        }
        Ok(ids)
    };
    arguments.prompt.iter().map(ids_of).collect()
}

fn graph_options(arguments: &Circuit) -> GraphOptions {
    GraphOptions {
        features: arguments.features,
        logits: arguments.logits,
        logit_probability: arguments.probability,
        ..GraphOptions::default()
    }
}

fn path_options(count: usize, steps: usize) -> PathOptions {
    PathOptions {
        iterations: steps,
        branches: count,
        ..PathOptions::default()
    }
}

/// A token as text; one whose bytes are no text of their own by its bytes.
fn shown(tokenizer: &Tokenizer, id: i64) -> Result<String> {
    let bytes = tokenizer.bytes(id).unwrap_or_default();
    if std::str::from_utf8(&bytes).is_ok() {
        return tokenizer.piece(id);
    }
    let mut all = String::new();
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(all, "<0x{byte:02X}>");
    }
    Ok(all)
}

/// Where features fire most, by layer.
struct Surveys<'a> {
    corpus: Option<Corpus>,
    by_layer: BTreeMap<usize, (Survey, &'a OpenedDictionary, &'a str)>,
}

fn surveys<'a>(
    arguments: &Circuit,
    opened: &Opened,
    transcoders: &'a Transcoders,
    common: &Common,
) -> Result<Surveys<'a>> {
    let mut found = Surveys {
        corpus: None,
        by_layer: BTreeMap::new(),
    };
    if arguments.text.is_empty() {
        tracing::warn!("without --text pages show no examples of features");
        return Ok(found);
    }
    let options = CorpusOptions {
        context: CorpusOptions::default()
            .context
            .min(opened.model.config().n_ctx as usize),
        ..CorpusOptions::default()
    };
    let documents = Documents::read(&arguments.text, &opened.tokenizer, &options)?;
    let corpus = documents
        .windows(&opened.tokenizer, &options)?
        .first(arguments.windows);
    for (dictionary, read, write) in &transcoders.all {
        let layer = layer_of(&opened.model, write)?;
        tracing::info!("layer {layer}: looking for its features' top examples");
        let surveyed = Surveyed {
            model: &opened.model,
            dictionary: &dictionary.dictionary,
            read,
            corpus: &corpus,
        };
        let mut bar = windows_bar(common.quiet);
        let survey = Survey::new(&surveyed, 5, &mut bar)?;
        found.by_layer.insert(layer, (survey, dictionary, read));
    }
    found.corpus = Some(corpus);
    Ok(found)
}

impl Surveys<'_> {
    /// Top examples of features of a layer.
    fn examples(
        &self,
        opened: &Opened,
        layer: usize,
        features: &[usize],
    ) -> Result<BTreeMap<usize, Vec<Example>>> {
        let (Some(corpus), Some((survey, dictionary, read))) =
            (&self.corpus, self.by_layer.get(&layer))
        else {
            return Ok(BTreeMap::new());
        };
        let surveyed = Surveyed {
            model: &opened.model,
            dictionary: &dictionary.dictionary,
            read,
            corpus,
        };
        survey.examples(&surveyed, &opened.tokenizer, features, 12)
    }
}

/// A name for files: letters and digits of a prompt, ASCII alone as the files' readers want it.
fn slug(prompt: &str) -> String {
    let words: Vec<String> = prompt
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let whole: String = words.join("-").chars().take(60).collect();
    if whole.is_empty() {
        "prompt".to_owned()
    } else {
        whole
    }
}

/// What was made of a prompt.
struct Made {
    words: String,
    json: Value,
}

fn one(
    arguments: &Circuit,
    opened: &Opened,
    replacement: &Replacement,
    local: &Local,
    surveys: &Surveys,
    name: &str,
) -> Result<Made> {
    let tokenizer = &opened.tokenizer;
    let options = graph_options(arguments);
    let memory = local.memory(&options)?;
    let free = available_memory();
    tracing::info!(
        "{name}: {} active features; the graph takes at most {:.0} MB of {:.0}",
        memory.active,
        memory.total() as f64 / 1e6,
        free as f64 / 1e6
    );
    let needed = memory.needed(opened.model.device());
    if needed > free && FilePath::new("/proc/meminfo").exists() {
        let reason = format!(
            "of {} the graph of `{name}` takes up to {:.1} GB more, and {:.1} GB are free: fewer, or a shorter prompt",
            arguments.features,
            needed as f64 / 1e9,
            free as f64 / 1e9
        );
        return Err(Error::config("--features", reason));
    }
    let graph = Graph::new(local, &options)?;
    let complete = graph
        .completeness()?
        .iter()
        .map(Completeness::relative)
        .fold(0.0, f64::max);
    let scores = graph.scores()?;
    let pruned = graph.prune(arguments.nodes, arguments.edges)?;
    let piece = |id: &i64| shown(tokenizer, *id);
    let logits = graph.nodes.iter().filter_map(|node| match node {
        Node::Logit { id, .. } => Some(*id),
        _ => None,
    });
    let logits: Vec<i64> = logits.collect();
    let model = model_name(arguments.source.path());
    let labels = Labels {
        slug: name.to_owned(),
        scan: model.clone(),
        transcoders: arguments
            .dictionary
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        prompt: tokenizer.decode(local.ids())?,
        tokens: local.ids().iter().map(piece).collect::<Result<_>>()?,
        logits: logits.iter().map(piece).collect::<Result<_>>()?,
        node_share: Some(arguments.nodes),
    };
    let file = GraphFile::new(&graph, &pruned, &labels)?;
    file.write_into(&arguments.out)?;
    let details = details(opened, replacement, surveys, &graph, &pruned.nodes)?;
    let (nodes, links) = (file.nodes.len(), file.links.len());
    let page = Page {
        title: labels.prompt.clone(),
        source: format!("{model}, {} transcoders", arguments.dictionary.len()),
        graph: file,
        features: details,
    };
    let path = arguments.out.join(format!("{name}.html"));
    page.write(&path)?;
    let mut words = format!(
        "{name}: {nodes} nodes and {links} edges are left of {} and {}; every node's inputs and bias sum to its value within {complete:.1e} of the largest; replacement score {:.3}, completeness score {:.3}\n  {}",
        graph.nodes.len(),
        graph.rows.numel(),
        scores.replacement,
        scores.completeness,
        path.display()
    );
    let paths = match (arguments.paths, logits.first()) {
        (Some(count), Some(logit)) => best_paths(opened, local, *logit, count, arguments.steps)?,
        _ => Vec::new(),
    };
    for (path, value) in &paths {
        let _ = write!(words, "\n  {value:+9.4}  {path}");
    }
    let json = json!({
        "name": name, "tokens": labels.tokens, "logits": labels.logits, "nodes": nodes, "links": links, "active": memory.active,
        "completeness": complete, "replacement_score": scores.replacement, "completeness_score": scores.completeness,
        "page": path, "graph": arguments.out.join(format!("{name}.json")),
        "paths": paths.iter().map(|(path, value)| json!({ "path": path, "contribution": value })).collect::<Vec<_>>(),
    });
    Ok(Made { words, json })
}

/// What is known of the features that are left.
fn details(
    opened: &Opened,
    replacement: &Replacement,
    surveys: &Surveys,
    graph: &Graph,
    kept: &tch::Tensor,
) -> Result<Vec<FeatureDetail>> {
    let kept = Vec::<bool>::try_from(&kept.to_kind(tch::Kind::Bool))?;
    let mut wanted = BTreeMap::<usize, BTreeSet<usize>>::new();
    for (node, _) in graph.nodes.iter().zip(kept).filter(|(_, kept)| *kept) {
        if let Node::Feature { layer, feature, .. } = node {
            wanted.entry(*layer).or_default().insert(*feature as usize);
        }
    }
    let effects = |side: &[(i64, f64)]| -> Result<Vec<Effect>> {
        side.iter()
            .map(|(id, value)| {
                Ok(Effect {
                    token: shown(&opened.tokenizer, *id)?,
                    value: *value,
                })
            })
            .collect()
    };
    let mut found = Vec::new();
    for (layer, features) in wanted {
        let features: Vec<usize> = features.into_iter().collect();
        let mut examples = surveys.examples(opened, layer, &features)?;
        for feature in features {
            let index = feature as i64;
            let TokenEffects { top, bottom } =
                replacement.logit_effects(&replacement.writing(layer, index)?, 8)?;
            let reading = replacement.deembed(&replacement.reading(layer, index)?, 8)?;
            found.push(FeatureDetail {
                layer,
                feature: index,
                label: String::new(),
                examples: examples.remove(&feature).unwrap_or_default(),
                top_logits: effects(&top)?,
                bottom_logits: effects(&bottom)?,
                embeddings: effects(&reading.top)?,
            });
        }
    }
    Ok(found)
}

/// The best paths into a logit, of all lengths.
fn best_paths(
    opened: &Opened,
    local: &Local,
    logit: i64,
    count: usize,
    steps: usize,
) -> Result<Vec<(String, f64)>> {
    let root = local.logit(local.ids().len() - 1, &[(logit, 1.0)])?;
    let options = path_options(count, steps);
    let name = shown(&opened.tokenizer, logit)?;
    let mut all: Vec<(String, f64)> = greedy_paths(local, &root, None, &options)?
        .into_iter()
        .flatten()
        .filter(|path| path.steps.len() > 1)
        .map(|path| (path_words(&path, &name), path.contribution()))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(count);
    Ok(all)
}

/// A path from its root down.
pub(super) fn path_words(path: &Path, root: &str) -> String {
    let step = |step: &densely_interp::circuit::Step| match step.component {
        None => format!("{root:?}"),
        Some(Component::Feature { layer, feature }) => {
            format!("mlp{layer} feature {feature} at {}", step.token)
        }
        Some(Component::Head { layer, head, .. }) => {
            format!("attn{layer} head {head} from {}", step.token)
        }
        Some(other) => format!("{other} at {}", step.token),
    };
    let steps: Vec<String> = path.steps.iter().map(step).collect();
    steps.join(" ← ")
}
