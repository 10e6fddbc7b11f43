//! Attribution graphs: against `circuit-tracer`, against gradients of the frozen model and against paths, and what must hold of their files and pages.

use std::collections::BTreeMap;

use densely_core::weights::{self, Strictness};
use densely_core::{Result, nn, seeded};
use densely_interp::circuit::export::{GraphFile, Labels};
use densely_interp::circuit::page::{Effect, Example, FeatureDetail, Page};
use densely_interp::circuit::{
    Component, Graph, GraphOptions, Local, Node, PathOptions, Reads, Replacement, Sizes,
    Transcoder, greedy_paths, influence, prune, scores,
};
use densely_interp::dictionary::{Activation, Dictionary, DictionaryConfig, InputBias};
use densely_lm::{Lm, LmConfig, Run};
use densely_testkit::{Golden, assert_near, goldens};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::{IDS, SERIAL, Tiny, top_k};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// All that makes a node, without numbers that round.
fn key(node: &Node) -> String {
    match node {
        Node::Feature {
            layer,
            token,
            feature,
            ..
        } => format!("{layer}_{feature}_{token}"),
        Node::Error { layer, token } => format!("error {layer} {token}"),
        Node::Token { token, .. } => format!("token {token}"),
        Node::Logit { id, .. } => format!("logit {id}"),
    }
}

fn edge(graph: &Graph, row: usize, column: usize) -> f64 {
    graph.rows.double_value(&[row as i64, column as i64])
}

/// Layer of a node, in steps that edges go up: errors and features of a layer are one.
fn height(node: &Node) -> i64 {
    match node {
        Node::Feature { layer, .. } | Node::Error { layer, .. } => *layer as i64,
        Node::Token { .. } => -1,
        Node::Logit { .. } => i64::MAX,
    }
}

#[test]
fn rows_are_complete_and_go_up() -> Result<()> {
    for family in SERIAL {
        for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::Double, 1e-9)] {
            let tiny = Tiny::new(family, 4, kind, Activation::Relu {}, family != "gpt2")?;
            for reads in [Reads::Normalized, Reads::MlpInput, Reads::Residual] {
                let replacement = tiny.replaced(reads)?;
                let local = Local::new(&replacement, &IDS)?;
                for first_token in [false, true] {
                    let options = GraphOptions {
                        first_token,
                        ..GraphOptions::default()
                    };
                    let graph = Graph::new(&local, &options)?;
                    for (row, found) in graph.completeness()?.into_iter().enumerate() {
                        let what = format!("{family} {reads:?} row {row}: {found:?}");
                        assert!(found.relative() <= tolerance, "{what}");
                    }
                    assert!(graph.left_out.iter().all(|more| *more == 0.0));
                    goes_up(&graph);
                }
            }
        }
    }
    Ok(())
}

/// Edges go from lower layers and earlier tokens, and from nothing at the first token but its embedding unless it was asked for.
fn goes_up(graph: &Graph) {
    let targets = graph.nodes.iter().take(graph.sizes.features);
    let logits = graph
        .nodes
        .iter()
        .skip(graph.sizes.nodes() - graph.sizes.logits);
    let place = |node: &Node| match node {
        Node::Feature { token, .. } | Node::Error { token, .. } | Node::Token { token, .. } => {
            *token
        }
        Node::Logit { .. } => usize::MAX,
    };
    for (row, target) in targets.chain(logits).enumerate() {
        for (column, source) in graph.nodes.iter().enumerate() {
            let may = height(source) < height(target) && place(source) <= place(target);
            let (source, target) = (key(source), key(target));
            assert!(
                may || edge(graph, row, column) == 0.0,
                "{source} to {target}"
            );
        }
    }
}

#[test]
fn edges_from_tokens_are_gradients_of_the_frozen_model() -> Result<()> {
    for family in ["gpt2", "llama"] {
        let tiny = Tiny::new(family, 4, Kind::Double, Activation::Relu {}, false)?;
        let replacement = tiny.replaced(Reads::Normalized)?;
        let local = Local::new(&replacement, &IDS)?;
        let graph = Graph::new(&local, &GraphOptions::default())?;
        let ids = Tensor::from_slice(&IDS).unsqueeze(0);
        // Patterns, scales and what MLPs write are held; attention is linear then.
        let mut held = Vec::new();
        for layer in 0..4 {
            for point in ["attn.hook_pattern", "ln1.hook_scale", "hook_mlp_out"] {
                held.push(format!("blocks.{layer}.{point}"));
            }
        }
        let mut run = Run::new().cache(&held);
        let _ = tiny.model.run(&ids, &mut run)?;
        let values = run.take_cache().into_tensors();
        let seen = ["hook_embed", "blocks.*.hook_resid_mid"];
        let mut run = Run::new().with_gradients().cache(&seen).stop_at(4);
        for (name, value) in values {
            run = run.freeze(name, value);
        }
        let _ = tiny.model.run(&ids, &mut run)?;
        let cache = run.take_cache();
        let embedded = cache.get("hook_embed")?;
        let mut checked = 0;
        for (row, node) in graph.nodes.iter().take(graph.sizes.features).enumerate() {
            let Node::Feature {
                layer,
                token,
                feature,
                ..
            } = *node
            else {
                continue;
            };
            let direction = local.feature(layer, token, feature)?;
            let mid = cache.get(&format!("blocks.{layer}.hook_resid_mid"))?;
            let value = mid
                .select(0, 0)
                .select(0, token as i64)
                .dot(&direction.vector);
            let gradient = Tensor::f_run_backward(&[value], &[embedded], true, false)?;
            let product = (&gradient[0] * embedded).detach().select(0, 0);
            let expected = product.sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>);
            let first = (graph.sizes.features + graph.sizes.errors) as i64;
            let found = graph
                .rows
                .select(0, row as i64)
                .narrow(0, first, IDS.len() as i64);
            assert_near(&found, &expected, 1e-10);
            checked += 1;
        }
        assert!(checked > 20);
    }
    Ok(())
}

#[test]
fn edges_are_sums_over_paths_through_heads_and_skips() -> Result<()> {
    let tiny = Tiny::new("gpt2", 3, Kind::Double, top_k(3), true)?;
    let replacement = tiny.replaced(Reads::MlpInput)?;
    let local = Local::new(&replacement, &[5, 9, 30])?;
    let options = GraphOptions {
        first_token: true,
        ..GraphOptions::default()
    };
    let graph = Graph::new(&local, &options)?;
    let (feature, _) = local.features(2, 2)?[0];
    let root = local.feature(2, 2, feature)?;
    let every = PathOptions {
        iterations: 8,
        branches: usize::MAX,
        first_token: true,
        ..PathOptions::default()
    };
    let mut sums = BTreeMap::<String, f64>::new();
    for path in greedy_paths(&local, &root, None, &every)?.concat() {
        let (Some(last), between) = (path.steps.last(), &path.steps[1..path.steps.len() - 1])
        else {
            continue;
        };
        let is_linear = |component: Option<Component>| {
            matches!(
                component,
                Some(Component::Head { .. } | Component::Skip { .. })
            )
        };
        if !between.iter().all(|step| is_linear(step.component)) {
            continue;
        }
        let name = match last.component {
            Some(Component::Feature { layer, feature }) => {
                format!("{layer}_{feature}_{}", last.token)
            }
            Some(Component::Embedding) => format!("token {}", last.token),
            _ => continue,
        };
        *sums.entry(name).or_default() += path.contribution();
    }
    let own = format!("2_{feature}_2");
    let row = graph
        .nodes
        .iter()
        .position(|node| key(node) == own)
        .expect("a row");
    for (column, node) in graph.nodes.iter().enumerate() {
        if matches!(node, Node::Feature { .. } | Node::Token { .. }) {
            let (found, name) = (edge(&graph, row, column), key(node));
            let expected = sums.get(&name).copied().unwrap_or(0.0);
            assert!(
                (found - expected).abs() < 1e-10,
                "{name}: {found} {expected}"
            );
        }
    }
    assert!(sums.len() > 6, "{sums:?}");
    Ok(())
}

#[test]
fn batches_of_any_size_and_fewer_features_give_the_same_edges() -> Result<()> {
    let tiny = Tiny::new("gpt2", 4, Kind::Double, top_k(4), true)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    let whole = Graph::new(&local, &GraphOptions::default())?;
    for batch in [1, 3, 1000] {
        let options = GraphOptions {
            batch,
            ..GraphOptions::default()
        };
        let graph = Graph::new(&local, &options)?;
        assert_eq!(graph.nodes, whole.nodes);
        assert_near(&graph.rows, &whole.rows, 1e-12);
    }
    let options = GraphOptions {
        features: 10,
        batch: 3,
        update_every: 1,
        logits: 3,
        logit_probability: 1.0,
        ..GraphOptions::default()
    };
    let fewer = Graph::new(&local, &options)?;
    assert_eq!((fewer.sizes.features, fewer.sizes.logits), (10, 3));
    assert_eq!(fewer.nodes.len(), fewer.sizes.nodes());
    for found in fewer.completeness()? {
        assert!(
            found.relative() < 1e-9,
            "what is left out counts: {found:?}"
        );
    }
    assert!(fewer.left_out.iter().any(|more| *more != 0.0));
    let places: BTreeMap<String, usize> = whole.nodes.iter().map(key).zip(0..).collect();
    for (row, target) in fewer.nodes.iter().take(10).enumerate() {
        for (column, source) in fewer.nodes.iter().enumerate() {
            if let Some(place) = places.get(&key(source)) {
                let expected = edge(&whole, places[&key(target)], *place);
                assert!((edge(&fewer, row, column) - expected).abs() < 1e-12);
            }
        }
    }
    memory_is_that_of_the_rows(&local, &options, &[&fewer, &whole])?;
    let wrong = GraphOptions {
        batch: 0,
        ..options
    };
    assert!(Graph::new(&local, &wrong).is_err());
    Ok(())
}

/// Estimates count the rows to the byte where all logits are taken, another tensor of their size at least beside them, and grow with features.
fn memory_is_that_of_the_rows(
    local: &Local,
    options: &GraphOptions,
    graphs: &[&Graph],
) -> Result<()> {
    let estimate = |features: usize, logits: usize| {
        local.memory(&GraphOptions {
            features,
            logits,
            ..*options
        })
    };
    for graph in graphs {
        let memory = estimate(graph.sizes.features, graph.sizes.logits)?;
        assert_eq!(memory.rows, 8 * graph.rows.numel() as u64);
        assert!(memory.work >= memory.rows && memory.batch > 0, "{memory:?}");
        let elsewhere = memory.needed(Device::Cuda(0));
        assert_eq!(elsewhere, memory.rows + memory.work);
        assert_eq!(memory.needed(Device::Cpu), elsewhere + memory.batch);
        let fewer = estimate(graph.sizes.features - 1, graph.sizes.logits)?;
        assert!(fewer.rows < memory.rows, "{fewer:?}, {memory:?}");
    }
    let active = graphs.iter().map(|graph| graph.sizes.features).max();
    assert_eq!(Some(local.memory(options)?.active), active);
    Ok(())
}

/// A golden of the reference package: model, transcoders, prompt.
struct Case {
    golden: Golden,
    config: Value,
    model: Lm,
    dictionaries: Vec<Dictionary>,
    _stores: Vec<VarStore>,
}

impl Case {
    fn open(name: &str, kind: Kind) -> Result<Self> {
        let golden = Golden::open(HERE, name);
        let config = golden.config::<Value>();
        let file = Golden::open(HERE, config["model"].as_str().unwrap_or_default());
        let vs = VarStore::new(Device::Cpu);
        let sizes = LmConfig::from_hugging(&file.config::<Value>())?;
        let model = Lm::undrawn(sizes, &vs.root(), kind)?;
        weights::load_tensors(&vs, file.path(), &file.group("weight."), Strictness::All)?;
        let mut stores = vec![vs];
        let width = model.config().d_model;
        let sizes = DictionaryConfig {
            d_in: width,
            d_out: width,
            d_sae: config["features"].as_i64().expect("a size"),
            activation: Activation::Relu {},
            input_bias: InputBias::None,
            skip: golden.has("transcoder.0.W_skip"),
            ..DictionaryConfig::transcoder()
        };
        let mut dictionaries = Vec::new();
        for layer in 0..model.config().n_layers {
            let vs = VarStore::new(Device::Cpu);
            dictionaries.push(seeded(0, || sizes.build(&vs.root()))?);
            let values = golden.group(&format!("transcoder.{layer}."));
            nn::set_float_kind(&vs, kind);
            weights::load_tensors(&vs, golden.path(), &values, Strictness::All)?;
            stores.push(vs);
        }
        Ok(Self {
            golden,
            config,
            model,
            dictionaries,
            _stores: stores,
        })
    }

    fn number(&self, field: &str) -> f64 {
        self.config[field].as_f64().expect(field)
    }

    fn replaced(&self) -> Result<Replacement<'_>> {
        let reads = self.config["reads"].as_str().expect("a point");
        let transcoders = self
            .dictionaries
            .iter()
            .map(|dictionary| Transcoder::new(dictionary, reads, "hook_mlp_out").map(Some));
        Replacement::new(&self.model, transcoders.collect::<Result<_>>()?)
    }

    fn options(&self) -> GraphOptions {
        GraphOptions {
            logits: self.number("logits") as usize,
            logit_probability: self.number("logit_probability"),
            ..GraphOptions::default()
        }
    }
}

fn graphs_equal(name: &str, kind: Kind, near: f64) -> Result<()> {
    let case = Case::open(name, kind)?;
    let golden = &case.golden;
    let replacement = case.replaced()?;
    let ids = Vec::<i64>::try_from(&golden.tensor("input.ids"))?;
    let local = Local::new(&replacement, &ids)?;
    let graph = Graph::new(&local, &case.options())?;
    let mut active = Vec::new();
    let mut activations = Vec::new();
    let mut logits = Vec::new();
    for node in &graph.nodes {
        match *node {
            Node::Feature {
                layer,
                token,
                feature,
                activation,
            } => {
                active.push(vec![layer as i64, token as i64, feature]);
                activations.push(activation);
            }
            Node::Logit { id, .. } => logits.push(id),
            Node::Error { .. } | Node::Token { .. } => (),
        }
    }
    let expected = Vec::<Vec<i64>>::try_from(&golden.tensor("active"))?;
    assert_eq!(active, expected);
    assert_eq!(logits, Vec::<i64>::try_from(&golden.tensor("logit.ids"))?);
    let values = |xs: &[f64]| Tensor::from_slice(xs);
    assert_near(&values(&activations), &golden.tensor("activations"), near);
    let probabilities = values(&graph.probabilities());
    assert_near(&probabilities, &golden.tensor("logit.probabilities"), near);
    let rows = graph.rows.to_kind(Kind::Double);
    assert_near(&rows, &golden.tensor("rows"), near);

    let fewer = GraphOptions {
        features: case.number("capped") as usize,
        batch: case.number("capped_batch") as usize,
        update_every: 1,
        ..case.options()
    };
    let capped = Graph::new(&local, &fewer)?;
    let selected = capped.nodes.iter().take(capped.sizes.features);
    let place = |node: &Node| graph.nodes.iter().position(|own| own == node);
    let selected: Option<Vec<i64>> = selected.map(|node| Some(place(node)? as i64)).collect();
    let expected = Vec::<i64>::try_from(&golden.tensor("capped.selected"))?;
    assert_eq!(selected, Some(expected));
    let rows = capped.rows.to_kind(Kind::Double);
    assert_near(&rows, &golden.tensor("capped.rows"), near);

    let pruned = graph.prune(case.number("node_share"), case.number("edge_share"))?;
    assert_eq!(pruned.nodes, golden.tensor("prune.nodes"));
    assert_eq!(pruned.edges, golden.tensor("prune.edges"));
    let cumulative = pruned.cumulative.to_kind(Kind::Double);
    assert_near(&cumulative, &golden.tensor("prune.cumulative"), 10.0 * near);
    let found = graph.scores()?;
    let found = values(&[found.replacement, found.completeness]);
    assert_near(&found, &golden.tensor("scores"), 10.0 * near);

    let text = |id: &i64| format!("<{id}>");
    let labels = Labels {
        slug: "tiny".to_owned(),
        scan: "tiny".to_owned(),
        transcoders: Vec::new(),
        prompt: ids.iter().map(text).collect(),
        tokens: ids.iter().map(text).collect(),
        logits: logits.iter().map(text).collect(),
        node_share: Some(case.number("node_share")),
    };
    let file = GraphFile::new(&graph, &pruned, &labels)?;
    let found = serde_json::to_string(&file).expect("JSON");
    // The package's name for an error, which may also be a feature's.
    let found = found.replace("\"err_", "\"0_");
    let found = serde_json::from_str(&found).expect("JSON");
    same(&found, &case.config["file"], "file", 10.0 * near);
    let folder = tempfile::tempdir().expect("a folder");
    file.write_into(folder.path())?;
    file.write_into(folder.path())?;
    let read = |name: &str| -> Value {
        let bytes = std::fs::read(folder.path().join(name)).expect("a file");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let back: GraphFile = serde_json::from_value(read("tiny.json")).expect("a graph");
    assert_eq!(back, file);
    let list = read("graph-metadata.json");
    assert_eq!(list["graphs"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["graphs"][0]["slug"], "tiny");
    let mut wrong = file;
    "../tiny".clone_into(&mut wrong.metadata.slug);
    assert!(wrong.write_into(folder.path()).is_err());
    // The list is not written over.
    "graph-metadata".clone_into(&mut wrong.metadata.slug);
    assert!(wrong.write_into(folder.path()).is_err());
    assert_eq!(read("graph-metadata.json"), list);
    Ok(())
}

/// The same fields, and values that are the same but for rounding.
fn same(found: &Value, expected: &Value, what: &str, near: f64) {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(
                a.keys().collect::<Vec<_>>(),
                b.keys().collect::<Vec<_>>(),
                "{what}"
            );
            for (field, value) in a {
                same(value, &b[field], &format!("{what}.{field}"), near);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{what}");
            for (place, (a, b)) in a.iter().zip(b).enumerate() {
                same(a, b, &format!("{what}[{place}]"), near);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().expect(what), b.as_f64().expect(what));
            assert!((a - b).abs() <= near * b.abs().max(1.0), "{what}: {a} {b}");
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

#[test]
fn graphs_and_their_files_equal_those_of_circuit_tracer() -> Result<()> {
    for name in goldens(HERE, "circuit_", 3) {
        if name != "circuit_prune" {
            graphs_equal(&name, Kind::Double, 1e-10)?;
            graphs_equal(&name, Kind::Float, 2e-5)?;
        }
    }
    Ok(())
}

#[test]
fn pruning_equals_that_of_circuit_tracer() -> Result<()> {
    let golden = Golden::open(HERE, "circuit_prune");
    let config = golden.config::<Value>();
    let size = |field: &str| config[field].as_u64().expect(field) as usize;
    let share = |field: &str| config[field].as_f64().expect(field);
    let sizes = Sizes {
        features: size("features"),
        errors: size("errors"),
        tokens: size("tokens"),
        logits: size("logits"),
    };
    let rows = golden.tensor("rows");
    let probabilities = Vec::<f64>::try_from(&golden.tensor("probabilities"))?;
    let found = influence(&sizes, &rows, &probabilities)?;
    assert_near(&found, &golden.tensor("influence"), 1e-12);
    let (nodes, edges) = (share("node_share"), share("edge_share"));
    let found = prune(&sizes, &rows, &probabilities, nodes, edges)?;
    assert_eq!(found.nodes, golden.tensor("prune.nodes"));
    assert_eq!(found.edges, golden.tensor("prune.edges"));
    assert_near(&found.cumulative, &golden.tensor("prune.cumulative"), 1e-12);
    let found = scores(&sizes, &rows, &probabilities)?;
    let found = Tensor::from_slice(&[found.replacement, found.completeness]);
    assert_near(&found, &golden.tensor("scores"), 1e-12);

    assert!(prune(&sizes, &rows, &probabilities, 1.5, 0.5).is_err());
    assert!(influence(&sizes, &rows, &probabilities[1..]).is_err());
    assert!(influence(&sizes, &rows.narrow(0, 1, 3), &probabilities).is_err());
    let circle = rows.ones_like();
    assert!(influence(&sizes, &circle, &probabilities).is_err());
    Ok(())
}

#[test]
fn a_page_holds_what_it_shows_and_no_token_can_break_it() -> Result<()> {
    let tiny = Tiny::new("gpt2", 3, Kind::Double, top_k(3), false)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    let graph = Graph::new(&local, &GraphOptions::default())?;
    let pruned = graph.prune(1.0, 1.0)?;
    let evil = "</script><b>";
    let labels = Labels {
        slug: "tiny".to_owned(),
        tokens: vec![evil.to_owned(); IDS.len()],
        logits: vec!["\n\"".to_owned(); graph.sizes.logits],
        ..Labels::default()
    };
    let (feature, activation) = local.features(2, 4)?[0];
    let detail = FeatureDetail {
        layer: 2,
        feature,
        label: String::new(),
        examples: vec![Example {
            tokens: vec!["a".to_owned(), evil.to_owned()],
            activations: vec![0.0, activation as f32],
            peak: 1,
        }],
        top_logits: vec![Effect {
            token: " b".to_owned(),
            value: 0.5,
        }],
        ..FeatureDetail::default()
    };
    let elsewhere = FeatureDetail {
        layer: 9,
        ..detail.clone()
    };
    let page = Page {
        title: "What makes <b> likely".to_owned(),
        source: "a tiny model".to_owned(),
        graph: GraphFile::new(&graph, &pruned, &labels)?,
        features: vec![detail.clone(), elsewhere],
    };
    let html = page.html()?;
    assert!(html.contains("<title>What makes &lt;b&gt; likely</title>"));
    assert!(!html.contains(evil));
    assert_eq!(html.matches("</script>").count(), 2);
    let start = html.find("id=\"data\">").expect("data") + "id=\"data\">".len();
    let data = html[start..].split("</script>").next().expect("data");
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["graph"]["metadata"]["prompt_tokens"][0], evil);
    assert_eq!(data["features"].as_array().map(Vec::len), Some(1));
    assert_eq!(data["features"][0]["examples"][0]["peak"], 1);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("page.html");
    page.write(&path)?;
    assert_eq!(std::fs::read_to_string(&path).expect("a page"), html);

    let mut torn = detail;
    torn.examples[0].activations.pop();
    let torn = Page {
        features: vec![torn],
        ..page
    };
    assert!(torn.html().is_err());
    let few = Labels {
        logits: Vec::new(),
        ..labels
    };
    assert!(GraphFile::new(&graph, &pruned, &few).is_err());
    Ok(())
}
