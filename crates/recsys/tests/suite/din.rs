//! Other ways to the same numbers: the first layer unsplit, padding left out, many candidates at once.

use densely_core::{Result, Tensors, seeded, weights};
use densely_recsys::attention::AttentionConfig;
use densely_recsys::layers::{Activation, Variant};
use densely_recsys::{CtrConfig, CtrModel, DinConfig, Field, FinalMlpConfig};
use densely_testkit::assert_close;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const VARIANTS: [Variant; 3] = [Variant::Authors, Variant::Fuxictr, Variant::Deepctr];
const STEPS: i64 = 7;

/// First weights are small or 0: every value is moved, so that each part of the model counts.
fn shake(vs: &VarStore) {
    seeded(3, || {
        let _no_grad = tch::no_grad_guard();
        for (name, xs) in weights::named(vs) {
            if xs.kind() == Kind::Float && !name.ends_with("running_var") {
                let _ = xs.shallow_clone().g_add_(&(xs.randn_like() * 0.3));
            }
        }
    });
}

/// One history of padding alone, one without.
fn lengths(rows: i64) -> Tensor {
    let lengths = Tensor::arange(rows, tch::kind::INT64_CPU).remainder(STEPS);
    let _ = lengths.get(rows - 1).fill_(STEPS);
    lengths
}

fn mask(rows: i64) -> Tensor {
    let steps = Tensor::arange(STEPS, tch::kind::INT64_CPU);
    steps.unsqueeze(0).lt_tensor(&lengths(rows).unsqueeze(1))
}

#[test]
fn the_split_first_layer_equals_the_whole_one_and_packing_changes_nothing() -> Result<()> {
    for variant in VARIANTS {
        for use_softmax in [true, false] {
            for train in [false, true] {
                if variant == Variant::Authors && !use_softmax {
                    continue;
                }
                let config = AttentionConfig {
                    variant,
                    use_softmax,
                    embedding_dim: 12,
                    attention_units: vec![9, 5],
                    dropout_rate: 0.0,
                    ..AttentionConfig::default()
                };
                let run = |plain: bool| -> Result<(Tensor, Tensors)> {
                    let vs = VarStore::new(Device::Cpu);
                    let attention = seeded(0, || config.build(&vs.root()))?;
                    shake(&vs);
                    let [query, keys] = seeded(1, || {
                        [[9, 1, 12], [9, STEPS, 12]]
                            .map(|size| Tensor::randn(size, tch::kind::FLOAT_CPU))
                    });
                    let query = query.squeeze_dim(1).set_requires_grad(true);
                    let keys = keys.set_requires_grad(true);
                    let pooled = if plain {
                        attention.forward_plain(&query, &keys, &mask(9), train)?
                    } else {
                        attention.forward(&query, &keys, &mask(9), train)?
                    };
                    (&pooled * Tensor::arange(12, tch::kind::FLOAT_CPU))
                        .sum(Kind::Float)
                        .backward();
                    let mut grads = Tensors::from([
                        ("query".to_owned(), query.grad()),
                        ("keys".to_owned(), keys.grad()),
                    ]);
                    for (name, xs) in weights::named(&vs)
                        .into_iter()
                        .filter(|(_, xs)| xs.requires_grad())
                    {
                        grads.insert(name, xs.grad());
                    }
                    if !train {
                        let packed = attention.forward_packed(&query, &keys, &mask(9))?;
                        assert_close(&packed, &pooled, 1e-4, 1e-5);
                    }
                    Ok((pooled.detach(), grads))
                };
                let ((ours, grads), (plain, expected)) = (run(false)?, run(true)?);
                assert_close(&ours, &plain, 1e-4, 1e-5);
                for (name, grad) in &grads {
                    assert_close(grad, &expected[name], 1e-3, 1e-4);
                }
            }
        }
    }
    Ok(())
}

fn din(variant: Variant, use_softmax: bool) -> DinConfig {
    let target = vec![
        Field::categorical("item", 11),
        Field::categorical("shop", 6),
    ];
    let histories = vec![
        Field::sequence("items", 11, STEPS, Some("item")),
        Field::sequence("shops", 6, STEPS, Some("shop")),
    ];
    let more = vec![
        Field::categorical("user", 5),
        Field::numeric("price"),
        Field::sequence("tags", 4, 3, None),
    ];
    let authors = variant == Variant::Authors;
    DinConfig {
        variant,
        fields: if authors {
            [target, histories].concat()
        } else {
            [target, more, histories].concat()
        },
        din_target_field: vec![vec!["item".to_owned(), "shop".to_owned()]],
        din_sequence_field: vec![vec!["items".to_owned(), "shops".to_owned()]],
        length: (variant != Variant::Fuxictr).then(|| "length".to_owned()),
        embedding_dim: 6,
        attention_hidden_units: vec![9, 5],
        attention_dropout: 0.0,
        din_use_softmax: use_softmax,
        dnn_hidden_units: vec![10, 7],
        dnn_activations: if variant == Variant::Deepctr {
            Activation::Relu
        } else {
            Activation::Dice
        },
        net_dropout: 0.0,
        batch_norm: !authors,
        ..DinConfig::default()
    }
}

fn built(config: &CtrConfig) -> Result<(VarStore, CtrModel)> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    shake(&vs);
    Ok((vs, model))
}

/// `rows` rows of what the config takes.
fn inputs(config: &DinConfig, rows: i64) -> Tensors {
    seeded(5, || {
        let mut inputs = Tensors::new();
        for field in &config.fields {
            let xs = match field {
                Field::Numeric { .. } => Tensor::randn([rows], tch::kind::FLOAT_CPU),
                Field::Categorical { vocab_size, .. } => {
                    Tensor::randint(*vocab_size, [rows], tch::kind::INT64_CPU)
                }
                Field::Sequence {
                    vocab_size,
                    max_len,
                    ..
                } => {
                    let ids =
                        Tensor::randint_low(1, *vocab_size, [rows, *max_len], tch::kind::INT64_CPU);
                    if *max_len == STEPS {
                        ids * mask(rows).to_kind(Kind::Int64)
                    } else {
                        ids
                    }
                }
            };
            inputs.insert(field.name().to_owned(), xs);
        }
        if let Some(length) = &config.length {
            inputs.insert(length.clone(), lengths(rows));
        }
        inputs
    })
}

#[test]
fn packing_changes_nothing_in_evaluation() -> Result<()> {
    for variant in VARIANTS {
        let config = din(variant, true);
        let (_vs, model) = built(&CtrConfig::Din(config.clone()))?;
        let inputs = inputs(&config, 9);
        let expected = model.forward(&inputs, false)?;
        let CtrModel::Din(model) = model else {
            unreachable!("it was built from a DIN's config")
        };
        model.set_packing(true);
        assert_close(&model.forward(&inputs, false)?, &expected, 1e-5, 1e-5);
    }
    Ok(())
}

#[test]
fn candidates_of_one_user_score_as_row_by_row() -> Result<()> {
    for variant in VARIANTS {
        for user_row in [0, 3, 8] {
            let config = din(variant, variant != Variant::Deepctr);
            let (_vs, model) = built(&CtrConfig::Din(config.clone()))?;
            let all = inputs(&config, 9);
            let targets = ["item", "shop"];
            let (candidates, rest): (Tensors, Tensors) = all
                .into_iter()
                .partition(|(name, _)| targets.contains(&name.as_str()));
            let user: Tensors = rest
                .into_iter()
                .map(|(name, xs)| (name, xs.narrow(0, user_row, 1)))
                .collect();
            let scores = model.score_candidates(&user, &candidates)?;
            for row in 0..9 {
                let mut one: Tensors = candidates
                    .iter()
                    .map(|(name, xs)| (name.clone(), xs.narrow(0, row, 1)))
                    .collect();
                one.extend(
                    user.iter()
                        .map(|(name, xs)| (name.clone(), xs.shallow_clone())),
                );
                assert_close(
                    &scores.narrow(0, row, 1),
                    &model.forward(&one, false)?,
                    1e-5,
                    1e-5,
                );
            }
        }
    }
    Ok(())
}

#[test]
fn finalmlp_scores_candidates_too_and_both_say_what_is_wrong() -> Result<()> {
    let config = FinalMlpConfig {
        fields: ["user", "item"]
            .map(|name| Field::categorical(name, 8))
            .to_vec(),
        ..FinalMlpConfig::default()
    };
    let (_vs, model) = built(&CtrConfig::FinalMlp(config))?;
    let one = |name: &str, ids: &[i64]| Tensors::from([(name.to_owned(), Tensor::from_slice(ids))]);
    let (user, items) = (one("user", &[3]), one("item", &[1, 7, 2]));
    let scores = model.score_candidates(&user, &items)?;
    let rows = Tensors::from([
        ("user".to_owned(), Tensor::from_slice(&[3i64, 3, 3])),
        ("item".to_owned(), items["item"].copy()),
    ]);
    assert_close(&scores, &model.forward(&rows, false)?, 1e-6, 1e-6);

    let complaint = |model: &CtrModel, user: &Tensors, items: &Tensors| {
        model
            .score_candidates(user, items)
            .expect_err("wrong sides")
            .to_string()
    };
    assert!(
        complaint(&model, &one("user", &[3, 4]), &items)
            .contains("`user`: expected one row, got 2")
    );
    assert!(
        complaint(&model, &rows, &items)
            .contains("`item`: expected a column of the user or of the candidates")
    );
    let config = din(Variant::Fuxictr, true);
    let (_vs, model) = built(&CtrConfig::Din(config.clone()))?;
    let all = inputs(&config, 1);
    let (price, user): (Tensors, Tensors) = all.into_iter().partition(|(name, _)| name == "price");
    assert!(
        complaint(&model, &user, &price).contains("`item`: expected a column of the candidates")
    );
    Ok(())
}

#[test]
fn lengths_that_do_not_fit_are_named() -> Result<()> {
    let config = din(Variant::Deepctr, true);
    let (_vs, model) = built(&CtrConfig::Din(config.clone()))?;
    let complaint = |length: i64| {
        let mut inputs = inputs(&config, 2);
        inputs.insert("length".to_owned(), Tensor::from_slice(&[1, length]));
        model
            .forward(&inputs, false)
            .expect_err("a wrong length")
            .to_string()
    };
    assert_eq!(
        complaint(8),
        "column `length`: lengths lie in 1 to 8, but `items` has 7 ids per row"
    );
    assert!(complaint(-1).contains("lengths lie in -1 to 1"));
    Ok(())
}
