//! Circuits: contributions sum to what they are parts of, paths against brute force, and what must hold of views of weights.

mod graphs;

use std::collections::BTreeMap;

use densely_core::{Error, Result, nn, seeded};
use densely_interp::circuit::{
    Completeness, Component, ComponentKind, Contribution, Direction, Filter, Local,
    MeanAttribution, Path, PathGraph, PathOptions, Place, Reads, Replacement, Step, Sublayer,
    Transcoder, containing, ending, greedy_paths,
};
use densely_interp::dictionary::{Activation, Dictionary, DictionaryConfig, InputBias};
use densely_lm::{Lm, LmConfig};
use densely_testkit::assert_near;
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// Families whose MLPs read what their attention wrote.
const SERIAL: [&str; 4] = ["gpt2", "gpt_neox serial", "opt", "llama"];

const WIDTH: i64 = 8;
const FEATURES: i64 = 12;
const IDS: [i64; 5] = [5, 9, 30, 2, 17];

/// A model and dictionaries whose numbers are of every size, so that nothing hides.
struct Tiny {
    model: Lm,
    dictionaries: Vec<Option<Dictionary>>,
    _stores: Vec<VarStore>,
}

/// Sizes of a family's model.
fn sizes(family: &str, layers: usize) -> Value {
    match family {
        "llama" => {
            json!({ "model_type": "llama", "vocab_size": 40, "max_position_embeddings": 24, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2 })
        }
        "opt" => {
            json!({ "model_type": "opt", "vocab_size": 40, "max_position_embeddings": 24, "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 2, "ffn_dim": 16 })
        }
        "gpt2" => {
            json!({ "model_type": "gpt2", "vocab_size": 40, "n_positions": 24, "n_embd": WIDTH, "n_layer": layers, "n_head": 2 })
        }
        other => {
            json!({ "model_type": "gpt_neox", "vocab_size": 40, "max_position_embeddings": 24, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "rotary_pct": 0.5, "use_parallel_residual": other == "gpt_neox" })
        }
    }
}

fn dictionary(activation: Activation, skip: bool) -> DictionaryConfig {
    DictionaryConfig {
        d_in: WIDTH,
        d_out: WIDTH,
        d_sae: FEATURES,
        activation,
        skip,
        ..DictionaryConfig::transcoder()
    }
}

/// Sets every parameter to random numbers: matrices of about `1 / √width`, vectors moved by a fifth.
fn draw(parameters: impl IntoIterator<Item = (String, Tensor)>) -> Result<()> {
    let _guard = tch::no_grad_guard();
    for (_, mut xs) in parameters {
        let noise = xs.f_randn_like()?;
        let new = if xs.dim() > 1 {
            noise.f_mul_scalar(0.4)?
        } else {
            xs.f_add(&noise.f_mul_scalar(0.2)?)?
        };
        xs.f_copy_(&new)?;
    }
    Ok(())
}

impl Tiny {
    /// A model with a transcoder in each layer but, where there are more than two, the second.
    fn new(
        family: &str,
        layers: usize,
        kind: Kind,
        activation: Activation,
        skip: bool,
    ) -> Result<Self> {
        seeded(11, || {
            let vs = VarStore::new(Device::Cpu);
            let model = Lm::new(LmConfig::from_hugging(&sizes(family, layers))?, &vs.root())?;
            draw(model.parameters())?;
            nn::set_float_kind(&vs, kind);
            let mut stores = vec![vs];
            let mut dictionaries = Vec::new();
            for layer in 0..layers {
                if layer == 1 && layers > 2 {
                    dictionaries.push(None);
                    continue;
                }
                let vs = VarStore::new(Device::Cpu);
                dictionaries.push(Some(dictionary(activation, skip).build(&vs.root())?));
                draw(densely_core::weights::named(&vs))?;
                nn::set_float_kind(&vs, kind);
                stores.push(vs);
            }
            Ok(Self {
                model,
                dictionaries,
                _stores: stores,
            })
        })
    }

    fn replaced(&self, reads: Reads) -> Result<Replacement<'_>> {
        let transcoders = self.dictionaries.iter().map(|dictionary| {
            dictionary
                .as_ref()
                .map(|dictionary| Transcoder { dictionary, reads })
        });
        Replacement::new(&self.model, transcoders.collect())
    }
}

fn top_k(k: i64) -> Activation {
    Activation::TopK { k, rescale: false }
}

fn assert_complete(found: Completeness, tolerance: f64, what: &str) {
    assert!(found.largest > 0.0, "{what}: nothing contributes");
    assert!(found.relative() <= tolerance, "{what}: {found:?}");
}

fn completeness_holds(kind: Kind, tolerance: f64) -> Result<()> {
    for family in SERIAL {
        for (activation, reads, skip) in [
            (Activation::Relu {}, Reads::Normalized, false),
            (top_k(3), Reads::MlpInput, true),
            (top_k(3), Reads::Residual, false),
            (Activation::Relu {}, Reads::Normalized, true),
        ] {
            let tiny = Tiny::new(family, 4, kind, activation, skip)?;
            let replacement = tiny.replaced(reads)?;
            let local = Local::new(&replacement, &IDS)?;
            for token in [0, 2, 4] {
                for layer in [0, 2, 3] {
                    // Those that are not active are made of the same parts.
                    for feature in 0..FEATURES {
                        let what = format!("{family} {reads:?} {layer} {token} {feature}");
                        let found = local.feature_completeness(layer, token, feature)?;
                        assert_complete(found, tolerance, &what);
                    }
                }
                let logits = local.logit_difference(token, 3, 7)?;
                assert_complete(local.completeness(&logits)?, tolerance, family);
                for sublayer in [Sublayer::Pre, Sublayer::Mid, Sublayer::Post] {
                    let place = Place {
                        layer: 2,
                        sublayer,
                        token,
                    };
                    let vector = tiny.model.w_u()?.select(1, 3);
                    let direction = local.residual(place, &vector)?;
                    assert_complete(local.completeness(&direction)?, tolerance, family);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn contributions_sum_to_features_and_logits_in_f32() -> Result<()> {
    completeness_holds(Kind::Float, 1e-4)
}

#[test]
fn contributions_sum_to_features_and_logits_in_f64() -> Result<()> {
    completeness_holds(Kind::Double, 1e-9)
}

#[test]
fn logits_are_the_models_own() -> Result<()> {
    let tiny = Tiny::new("gpt2", 3, Kind::Double, top_k(3), false)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    let ids = Tensor::from_slice(&IDS).unsqueeze(0);
    let logits = tch::no_grad(|| tiny.model.forward(&ids))?.select(0, 0);
    assert_near(local.logits(), &logits.select(0, 4), 1e-12);
    for token in [1, 4] {
        let expected = logits.double_value(&[token as i64, 6]);
        let found = local.value(&local.logit(token, &[(6, 1.0)])?)?;
        assert!((found - expected).abs() < 1e-10, "{found} {expected}");
    }
    Ok(())
}

#[test]
fn features_are_those_of_the_dictionary() -> Result<()> {
    let tiny = Tiny::new("llama", 3, Kind::Double, top_k(3), true)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    for token in 0..IDS.len() {
        for (feature, activation) in local.features(2, token)? {
            assert_eq!(local.activation(2, token, feature)?, activation);
            let pre = local.pre_activation(2, token, feature)?;
            assert!((pre - activation).abs() < 1e-12, "{pre} {activation}");
            let value = local.value(&local.feature(2, token, feature)?)?;
            assert!((value - activation).abs() < 1e-10, "{value} {activation}");
        }
        assert!(local.features(2, token)?.len() <= 3);
    }
    assert!(local.features(1, 0).is_err(), "layer 1 has no transcoder");
    assert!(local.features(0, 5).is_err(), "there are five tokens");
    assert!(local.activation(0, 0, FEATURES).is_err());
    Ok(())
}

#[test]
fn what_is_followed_is_worth_its_contribution() -> Result<()> {
    for family in SERIAL {
        let tiny = Tiny::new(family, 4, Kind::Double, Activation::Relu {}, true)?;
        for reads in [Reads::Normalized, Reads::MlpInput, Reads::Residual] {
            let replacement = tiny.replaced(reads)?;
            let local = Local::new(&replacement, &IDS)?;
            let mut direction = local.logit_difference(4, 3, 7)?;
            // Down through the largest component that goes on, and all beside it.
            loop {
                let mut parts = local.contributions(&direction)?;
                parts.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
                let largest = parts.first().map_or(0.0, |part| part.value.abs());
                let mut next = None;
                for Contribution { component, value } in parts {
                    let Some(own) = local.follow(&direction, component)? else {
                        continue;
                    };
                    let found = local.value(&own)?;
                    assert!(
                        (found - value).abs() < 1e-9 * largest.max(1e-3),
                        "{family} {reads:?} {component}: {found} {value}"
                    );
                    next = next.or(Some(own));
                }
                match next {
                    Some(own) => direction = own,
                    None => break,
                }
            }
            assert!(direction.place.layer == 0 && direction.place.sublayer == Sublayer::Pre);
        }
    }
    Ok(())
}

#[test]
fn what_does_not_write_below_is_refused() -> Result<()> {
    let tiny = Tiny::new("gpt2", 3, Kind::Double, top_k(2), false)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    let (feature, _) = local.features(2, 3)?[0];
    let direction = local.feature(2, 3, feature)?;
    let refused = |component: Component| {
        let found = local.follow(&direction, component);
        assert!(found.is_err(), "{component}");
    };
    refused(Component::Feature { layer: 2, feature });
    refused(Component::Skip { layer: 0 });
    for (head, source) in [(2, 0), (-1, 0), (0, 4)] {
        refused(Component::Head {
            layer: 2,
            head,
            source,
        });
    }
    let idle = (0..FEATURES).find(|own| local.activation(0, 3, *own).is_ok_and(|f| f == 0.0));
    refused(Component::Feature {
        layer: 0,
        feature: idle.expect("an idle feature"),
    });
    Ok(())
}

/// All paths of so many components, by their names, with their last contributions.
fn brute_force(
    local: &Local<'_>,
    direction: &Direction,
    length: usize,
    name: &str,
    found: &mut BTreeMap<String, f64>,
) -> Result<()> {
    for Contribution { component, value } in local.contributions(direction)? {
        let skipped = matches!(component, Component::Head { source: 0, .. });
        let kind = component.kind();
        if skipped || matches!(kind, ComponentKind::Bias | ComponentKind::Error) {
            continue;
        }
        let name = format!("{name} {component}");
        if length == 1 {
            assert!(found.insert(name, value).is_none());
        } else if let Some(next) = local.follow(direction, component)? {
            brute_force(local, &next, length - 1, &name, found)?;
        }
    }
    Ok(())
}

#[test]
fn greedy_paths_of_any_number_are_all_paths() -> Result<()> {
    let tiny = Tiny::new("gpt2", 2, Kind::Double, top_k(2), true)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &[5, 9, 30])?;
    let root = local.logit_difference(2, 3, 7)?;
    let options = PathOptions {
        iterations: 3,
        branches: usize::MAX,
        ..PathOptions::default()
    };
    let generations = greedy_paths(&local, &root, None, &options)?;
    assert_eq!(generations.len(), 3);
    for (length, paths) in generations.iter().enumerate() {
        let mut expected = BTreeMap::new();
        brute_force(&local, &root, length + 1, "", &mut expected)?;
        assert_eq!(paths.len(), expected.len());
        for path in paths {
            let names = path.steps.iter().filter_map(|step| step.component);
            let name = names.fold(String::new(), |name, component| {
                format!("{name} {component}")
            });
            assert_eq!(path.contribution(), expected[&name], "{path}");
        }
        let sorted = paths.is_sorted_by(|a, b| a.contribution() >= b.contribution());
        assert!(sorted, "the largest stand first");
    }

    // Few branches: the best extensions of those that were kept.
    let few = PathOptions {
        branches: 4,
        ..options
    };
    let kept = greedy_paths(&local, &root, None, &few)?;
    let best: Vec<f64> = generations[0]
        .iter()
        .take(4)
        .map(Path::contribution)
        .collect();
    let found: Vec<f64> = kept[0].iter().map(Path::contribution).collect();
    assert_eq!(found, best);
    for path in &kept[1] {
        let parent = path.steps[1].component;
        assert!(kept[0].iter().any(|own| own.steps[1].component == parent));
    }
    let none = PathOptions { branches: 0, ..few };
    assert!(greedy_paths(&local, &root, None, &none).is_err());
    Ok(())
}

#[test]
fn capped_paths_are_worth_no_more_than_their_least_feature() -> Result<()> {
    let tiny = Tiny::new("gpt2", 4, Kind::Double, top_k(3), false)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    // Far more of a logit than any feature is active.
    let root = local.logit(4, &[(3, 400.0)])?;
    let options = PathOptions {
        capped: true,
        branches: 1000,
        ..PathOptions::default()
    };
    let mut capped = 0;
    for paths in greedy_paths(&local, &root, None, &options)? {
        for path in paths {
            let mut least = f64::INFINITY;
            for step in &path.steps[1..path.steps.len() - 1] {
                if let Some(Component::Feature { layer, feature }) = step.component {
                    least = least.min(local.activation(layer, step.token, feature)?);
                }
            }
            assert!(path.contribution() <= least, "{path}");
            capped += usize::from(path.contribution() == least);
        }
    }
    assert!(capped > 0, "the test would pass without caps");
    Ok(())
}

#[test]
fn paths_merge_into_a_graph_that_loses_nothing() -> Result<()> {
    let tiny = Tiny::new("llama", 4, Kind::Double, top_k(3), false)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    let root = local.logit_difference(4, 3, 7)?;
    let options = PathOptions {
        branches: 25,
        ..PathOptions::default()
    };
    let generations = greedy_paths(&local, &root, None, &options)?;
    let graph = PathGraph::new(&local, generations.iter().flatten())?;
    let first: f64 = generations[0].iter().map(Path::contribution).sum();
    let into = |target: usize| graph.edges.iter().filter(move |edge| edge.target == target);
    let sum: f64 = into(0).map(|edge| edge.weight).sum();
    assert!((sum - first).abs() < 1e-12, "each beginning counts once");
    assert_eq!(into(0).count(), generations[0].len());
    for (place, node) in graph.nodes.iter().enumerate() {
        let again = graph
            .nodes
            .iter()
            .filter(|own| (own.component, own.token) == (node.component, node.token));
        assert_eq!(again.count(), 1);
        // What a node is worth is what its outputs hold of it, and what its inputs and errors make of it.
        if place > 0 {
            let out = graph.edges.iter().filter(|edge| edge.source == place);
            let out: f64 = out.map(|edge| edge.weight).sum();
            assert!((out - node.contribution).abs() < 1e-9);
        }
        if let Some(direction) = &node.direction {
            let value = local.value(direction)?;
            assert!((value - node.contribution).abs() < 1e-8, "{value}");
        }
        if into(place).count() > 0 {
            let inputs: f64 = into(place).map(|edge| edge.weight).sum();
            let errors = node.errors;
            let all = inputs + errors.transcoder + errors.bias + errors.pruning;
            assert!((all - node.contribution).abs() < 1e-9);
        } else {
            assert_eq!(node.errors.pruning, 0.0);
        }
    }

    // Nothing is pruned of a root whose components all have paths, first tokens too.
    let all = PathOptions {
        iterations: 1,
        branches: usize::MAX,
        first_token: true,
        ..PathOptions::default()
    };
    let whole = greedy_paths(&local, &root, None, &all)?;
    let graph = PathGraph::new(&local, &whole[0])?;
    let errors = graph.nodes[0].errors;
    assert!(errors.pruning.abs() < 1e-10, "{errors:?}");
    assert!(errors.transcoder != 0.0 && errors.bias != 0.0);
    Ok(())
}

#[test]
fn filters_say_what_paths_go_through() -> Result<()> {
    let tiny = Tiny::new("gpt2", 4, Kind::Double, top_k(3), false)?;
    let replacement = tiny.replaced(Reads::Normalized)?;
    let local = Local::new(&replacement, &IDS)?;
    let root = local.logit_difference(4, 3, 7)?;
    let filter = |text: &str| text.parse::<Filter>();
    let options = PathOptions {
        branches: 200,
        ..PathOptions::default()
    };
    let all = greedy_paths(&local, &root, None, &options)?.concat();
    let heads = filter("kind=head, layer<2, token!=1")?;
    let found = ending(&all, &[heads]);
    let is_such = |component: Option<Component>| matches!(component, Some(Component::Head { layer: 0..2, source, .. }) if source != 1);
    let expected = all
        .iter()
        .filter(|path| is_such(path.steps.last().and_then(|step| step.component)));
    assert!(!found.is_empty());
    assert_eq!(found.len(), expected.count());
    let two = [
        filter("kind=feature,layer>=2")?,
        filter("kind=head,head=1")?,
    ];
    for path in containing(&all, &two) {
        let fits = |pair: &[Step]| {
            matches!(
                pair[0].component,
                Some(Component::Feature { layer: 2.., .. })
            ) && matches!(pair[1].component, Some(Component::Head { head: 1, .. }))
        };
        assert!(path.steps.windows(2).any(fits), "{path}");
    }
    assert_eq!(containing(&all, &[]).len(), all.len());
    let long = [Filter::default(); 9];
    assert!(ending(&all, &long).is_empty());

    let narrow = PathOptions {
        filters: vec![filter("kind=feature")?, filter("layer<=2")?],
        ..options
    };
    for path in greedy_paths(&local, &root, None, &narrow)?.concat() {
        for step in &path.steps[1..] {
            let kept = matches!(
                step.component,
                Some(Component::Feature { layer: 0..=2, .. })
            );
            assert!(kept, "{path}");
        }
    }
    for wrong in ["layer", "kind<head", "kind=tail", "layer=x", "size=3"] {
        assert!(filter(wrong).is_err(), "{wrong}");
    }
    assert_eq!(filter("")?, Filter::default());
    Ok(())
}

#[test]
fn views_of_weights_are_their_products() -> Result<()> {
    let tiny = Tiny::new("llama", 3, Kind::Double, top_k(3), false)?;
    let replacement = tiny.replaced(Reads::MlpInput)?;
    let reading = replacement.reading(2, 4)?;
    let weight = tiny
        .model
        .parameter("model.layers.2.post_attention_layernorm.weight")?;
    let dictionary = tiny.dictionaries[2].as_ref().expect("a transcoder");
    let (w_enc, w_dec) = dictionary.weights();
    assert_near(&reading, &(w_enc.select(1, 4) * weight), 1e-12);
    let values = tiny.model.w_e().matmul(&reading);
    let found = replacement.deembed(&reading, 3)?;
    let (token, value) = found.top[0];
    assert_eq!(token, values.argmax(0, false).int64_value(&[]));
    assert!((value - values.max().double_value(&[])).abs() < 1e-12);
    assert_eq!(found.bottom[0].0, values.argmin(0, false).int64_value(&[]));

    let ov = tiny.model.ov(1, 3)?.product()?;
    let gain = tiny
        .model
        .parameter("model.layers.1.input_layernorm.weight")?;
    let through = replacement.through_head(1, 3, &reading)?;
    assert_near(&through, &(ov.matmul(&reading) * gain), 1e-12);
    let ranks = replacement.rank_heads(3, &reading)?;
    assert_eq!(ranks.len(), 12);
    assert!(ranks.is_sorted_by(|a, b| a.norm >= b.norm));
    let own = ranks.iter().find(|rank| (rank.layer, rank.head) == (1, 3));
    let norm = through.norm().double_value(&[]);
    assert!((own.expect("a rank").norm - norm).abs() < 1e-12);

    let below = tiny.dictionaries[0].as_ref().expect("a transcoder");
    let pulled = replacement.pull_back(0, &reading)?;
    assert_near(&pulled, &below.weights().1.matmul(&reading), 1e-12);
    assert!(replacement.pull_back(1, &reading).is_err());
    let writing = replacement.writing(2, 4)?;
    assert_near(&writing, &w_dec.select(0, 4), 1e-12);
    let effects = replacement.logit_effects(&writing, 2)?;
    assert!(effects.top[0].1 >= effects.top[1].1);
    assert!(effects.bottom[0].1 <= effects.bottom[1].1);
    assert!(effects.top[1].1 > effects.bottom[1].1);

    let mut mean = MeanAttribution::new(&replacement, 0, &reading)?;
    let x = seeded(3, || Tensor::randn([6, WIDTH], (Kind::Double, Device::Cpu)));
    let features = tch::no_grad(|| below.encode(&x))?;
    let chosen = Tensor::from_slice(&[true, false, true, true, false, true]);
    mean.add(&features, &chosen)?;
    let rows = features
        .dense()?
        .index_select(0, &Tensor::from_slice(&[0i64, 2, 3, 5]));
    let expected = rows.mean_dim([0i64].as_slice(), false, None::<Kind>) * pulled;
    assert_near(&mean.means()?, &expected, 1e-12);
    assert_eq!(mean.rows(), 4.0);
    Ok(())
}

fn said(found: Result<Replacement<'_>>) -> String {
    found.expect_err("refused").to_string()
}

#[test]
fn what_cannot_be_replaced_is_refused() -> Result<()> {
    let tiny = Tiny::new("gpt_neox", 3, Kind::Float, Activation::Relu {}, false)?;
    let text = said(tiny.replaced(Reads::Normalized));
    assert!(text.contains("the same residual"), "{text}");
    let tiny = Tiny::new("gpt2", 3, Kind::Float, Activation::Relu {}, false)?;
    let text = said(Replacement::new(&tiny.model, vec![None]));
    assert!(text.contains("each of 3 layers, got 1"), "{text}");
    let wrong = |config: DictionaryConfig| -> Result<String> {
        let vs = VarStore::new(Device::Cpu);
        let dictionary = seeded(1, || config.build(&vs.root()))?;
        let transcoder =
            Transcoder::new(&dictionary, "blocks.0.ln2.hook_normalized", "hook_mlp_out")?;
        let transcoders = vec![Some(transcoder), None, None];
        Ok(said(Replacement::new(&tiny.model, transcoders)))
    };
    let plain = dictionary(Activation::Relu {}, false);
    let narrow = wrong(DictionaryConfig { d_in: 4, ..plain })?;
    assert!(narrow.contains("width, 8, got 4 and 8"), "{narrow}");
    let autoencoder = wrong(DictionaryConfig {
        d_in: WIDTH,
        d_out: WIDTH,
        d_sae: FEATURES,
        input_bias: InputBias::Shared,
        ..DictionaryConfig::sae()
    })?;
    assert!(autoencoder.contains("an autoencoder"), "{autoencoder}");

    assert_eq!(Reads::from_point("blocks.7.hook_mlp_in")?, Reads::Residual);
    assert_eq!(Reads::from_point("mlp.hook_in")?, Reads::MlpInput);
    assert!(Reads::from_point("blocks.7.hook_mlp_out").is_err());
    let dictionary = tiny.dictionaries[0].as_ref().expect("a transcoder");
    assert!(Transcoder::new(dictionary, "hook_mlp_in", "hook_resid_post").is_err());

    let replacement = tiny.replaced(Reads::Normalized)?;
    assert!(matches!(
        Local::new(&replacement, &[]),
        Err(Error::Config { .. })
    ));
    assert!(Local::new(&replacement, &[400]).is_err());
    Ok(())
}
