//! Training steps: the dense mode against `FuxiCTR`'s, the lazy one against the dense one and against its own definition.

use densely_core::weights::{self, Strictness};
use densely_core::{Result, Tensors, seeded};
use densely_recsys::optim::{Mode, OptimConfig, Optimizer, Rule};
use densely_recsys::{CtrConfig, CtrModel, Field, FinalMlpConfig};
use densely_testkit::{Golden, assert_bits, assert_close, goldens};
use densely_torch_ext::fused::PlainPaths;
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::goldens::{HERE, cross_entropy};

/// The regulariser as `FuxiCTR` writes it: a number for the squared one, or `l1(…)`, `l2(…)`, `l1_l2(…,…)`.
fn regularizer(value: &Value) -> (f64, f64) {
    let Some(text) = value.as_str() else {
        return (0.0, value.as_f64().unwrap_or(0.0));
    };
    let numbers: Vec<f64> = text
        .trim_end_matches(')')
        .split_once('(')
        .expect("numbers in brackets")
        .1
        .split(',')
        .map(|number| number.parse().expect("a number"))
        .collect();
    match (text.starts_with("l1("), numbers.as_slice()) {
        (true, [l1]) => (*l1, 0.0),
        (false, [l2]) => (0.0, *l2),
        (_, [l1, l2]) => (*l1, *l2),
        _ => panic!("{text}"),
    }
}

fn three_steps(name: &str) -> Result<()> {
    let golden = Golden::open(HERE, name);
    let training: Value = serde_json::from_str(golden.meta("training")).expect("JSON");
    let (embedding_l1, embedding_l2) = regularizer(&training["embedding_regularizer"]);
    let (net_l1, net_l2) = regularizer(&training["net_regularizer"]);
    let optim = OptimConfig {
        lr: training["lr"].as_f64().expect("a number"),
        max_norm: training["max_norm"].as_f64().expect("a number"),
        embedding_l1,
        embedding_l2,
        net_l1,
        net_l2,
        ..OptimConfig::default()
    };
    let config = match golden.meta("model") {
        "din" => CtrConfig::Din(golden.config()),
        _ => CtrConfig::FinalMlp(golden.config()),
    };
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    weights::load_tensors(
        &vs,
        golden.path(),
        &golden.group("weight."),
        Strictness::All,
    )?;
    let mut optimizer = Optimizer::new(&optim, &vs, &model)?;
    for step in 0..3 {
        let penalty = Tensor::from(optimizer.penalty()? as f32);
        assert_close(
            &penalty,
            &golden.tensor(&format!("penalty.{step}")),
            1e-5,
            1e-6,
        );
        let logits = model.forward(&golden.group(&format!("input.{step}.")), true)?;
        let loss = cross_entropy(&logits, &golden.tensor(&format!("label.{step}")));
        assert_close(&loss, &golden.tensor(&format!("loss.{step}")), 1e-5, 1e-5);
        optimizer.step(&loss)?;
        let ours = weights::named(&vs);
        let theirs = golden.group(&format!("after.{step}."));
        assert_eq!(theirs.len(), ours.len());
        for (name, expected) in theirs {
            // A gradient near 0 takes a step of lr in either direction: Adam divides it by its own size.
            assert_close(&ours[&name], &expected, 1e-4, 2e-5);
        }
    }
    Ok(())
}

#[test]
fn dense_steps_are_fuxictrs() -> Result<()> {
    for name in goldens(HERE, "steps_", 5) {
        three_steps(&name)?;
        let _plain = PlainPaths::new();
        three_steps(&name)?;
    }
    Ok(())
}

/// Tables of 6 ids each.
fn small() -> CtrConfig {
    let fields = ["a", "b", "c"].map(|name| Field::categorical(name, 6));
    CtrConfig::FinalMlp(FinalMlpConfig {
        fields: [fields.to_vec(), vec![Field::numeric("n")]].concat(),
        embedding_dim: 5,
        mlp1_hidden_units: vec![8],
        mlp2_hidden_units: vec![8],
        mlp1_dropout: 0.0,
        mlp2_dropout: 0.0,
        // A bias before a batch norm has no gradient but rounding, and Adam makes a whole step of it.
        mlp1_batch_norm: false,
        mlp2_batch_norm: false,
        fs_hidden_units: vec![7],
        fs1_context: vec!["a".to_owned()],
        fs2_context: vec!["b".to_owned(), "n".to_owned()],
        num_heads: 2,
        ..FinalMlpConfig::default()
    })
}

struct Made {
    vs: VarStore,
    model: CtrModel,
    optimizer: Optimizer,
}

fn made(config: &CtrConfig, optim: &OptimConfig) -> Result<Made> {
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    let _no_grad = tch::no_grad_guard();
    for (name, param) in weights::named(&vs) {
        if name.contains("embedding_layers") && param.dim() == 2 && param.size()[0] == 6 {
            // First weights are so small that regularisers hardly show.
            let _ = param.narrow(0, 1, 5).g_mul_scalar_(3e3);
        }
    }
    let optimizer = Optimizer::new(optim, &vs, &model)?;
    Ok(Made {
        vs,
        model,
        optimizer,
    })
}

impl Made {
    fn step(&mut self, ids: &[i64]) -> Result<f64> {
        let rows = ids.len() as i64;
        let ids = Tensor::from_slice(ids);
        let inputs = Tensors::from([
            ("a".to_owned(), ids.shallow_clone()),
            ("b".to_owned(), ids.shallow_clone()),
            ("c".to_owned(), ids),
            (
                "n".to_owned(),
                Tensor::arange(rows, tch::kind::FLOAT_CPU) / 7.0,
            ),
        ]);
        let label = Tensor::arange(rows, tch::kind::FLOAT_CPU).remainder(2.0);
        let loss = cross_entropy(&self.model.forward(&inputs, true)?, &label);
        self.optimizer.step(&loss)
    }
}

const REGULARISED: OptimConfig = OptimConfig {
    mode: Mode::Dense,
    rule: Rule::Adam,
    lr: 0.01,
    betas: [0.9, 0.999],
    eps: 1e-8,
    embedding_l1: 0.003,
    embedding_l2: 0.05,
    net_l1: 0.0,
    net_l2: 0.01,
    mini_batch_aware: 0.0,
    max_norm: 0.5,
};

#[test]
fn lazy_steps_are_dense_steps_where_every_row_occurs() -> Result<()> {
    for rule in [Rule::Adam, Rule::Adagrad] {
        let dense = OptimConfig {
            rule,
            ..REGULARISED
        };
        let lazy = OptimConfig {
            mode: Mode::Lazy,
            ..dense.clone()
        };
        let (mut dense, mut lazy) = (made(&small(), &dense)?, made(&small(), &lazy)?);
        for ids in [
            [1, 2, 3, 4, 5, 5, 1],
            [5, 4, 3, 2, 1, 1, 1],
            [1, 3, 2, 5, 4, 4, 2],
        ] {
            let (one, other) = (dense.step(&ids)?, lazy.step(&ids)?);
            assert!((one - other).abs() < 1e-6 * one, "{one} {other}");
        }
        let theirs = weights::named(&dense.vs);
        for (name, ours) in weights::named(&lazy.vs) {
            assert_close(&ours, &theirs[&name], 1e-5, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn fused_steps_are_plain_steps() -> Result<()> {
    for rule in [Rule::Adam, Rule::Adagrad] {
        for mode in [Mode::Dense, Mode::Lazy] {
            let optim = OptimConfig {
                rule,
                mode,
                ..REGULARISED
            };
            let (mut fused, mut plain) = (made(&small(), &optim)?, made(&small(), &optim)?);
            for ids in [[1, 2, 1, 4], [5, 0, 3, 3], [0, 0, 1, 2]] {
                let one = fused.step(&ids)?;
                let _plain = PlainPaths::new();
                let other = plain.step(&ids)?;
                assert!((one - other).abs() < 1e-5 * one, "{one} {other}");
            }
            let theirs = weights::named(&plain.vs);
            for (name, ours) in weights::named(&fused.vs) {
                assert_close(&ours, &theirs[&name], 1e-4, 2e-5);
            }
        }
    }
    Ok(())
}

#[test]
fn rows_that_do_not_occur_keep_their_bits_in_lazy_mode_and_padding_in_both() -> Result<()> {
    for mode in [Mode::Lazy, Mode::Dense] {
        let mut made = made(
            &small(),
            &OptimConfig {
                mode,
                ..REGULARISED
            },
        )?;
        made.step(&[1, 2, 3, 4, 5, 0])?;
        let before: Tensors = weights::named(&made.vs)
            .into_iter()
            .map(|(name, xs)| (name, xs.detach().copy()))
            .collect();
        let moments = made.optimizer.state()["embedding_layer.embedding_layer.embedding_layers.c.weight.exp_avg"].copy();
        made.step(&[2, 4, 4, 0, 2, 2])?;
        let table = "embedding_layer.embedding_layer.embedding_layers.c.weight";
        let (old, new) = (&before[table], weights::named(&made.vs)[table].detach());
        for row in 0..6 {
            let occurs = [2, 4].contains(&row);
            let touched = row != 0 && (occurs || mode == Mode::Dense);
            if touched {
                assert!(old.get(row) != new.get(row), "{mode:?} {row}");
            } else {
                assert_bits(&new.get(row), &old.get(row));
            }
        }
        assert_bits(&new.get(0), &new.get(0).zeros_like());
        let after = &made.optimizer.state()[&format!("{table}.exp_avg")];
        assert_eq!(after.get(5) == moments.get(5), mode == Mode::Lazy);
    }
    Ok(())
}

/// λ/n w of a row is added once, however often it occurs: Adagrad's sum after one step is the squared gradient.
#[test]
fn mini_batch_aware_regularisation_adds_its_term_once_per_row() -> Result<()> {
    let optim = |mini_batch_aware: f64| OptimConfig {
        mode: Mode::Lazy,
        rule: Rule::Adagrad,
        embedding_l1: 0.0,
        embedding_l2: 0.0,
        mini_batch_aware,
        max_norm: f64::INFINITY,
        ..REGULARISED
    };
    let (mut with, mut without) = (made(&small(), &optim(0.3))?, made(&small(), &optim(0.0))?);
    let table = "embedding_layer.embedding_layer.embedding_layers.c.weight";
    let message = with.step(&[2, 4, 4, 4]).expect_err("no counts").to_string();
    assert!(
        message.contains("the counts of `embedding_layer.") && message.contains("call add_counts"),
        "{message}"
    );
    let counts = Tensor::from_slice(&[9i64, 7, 2, 0, 5, 1]);
    for field in ["a", "b", "c"] {
        with.optimizer.add_counts(field, &counts)?;
    }
    assert!(with.optimizer.add_counts("nobody", &counts).is_err());
    assert!(
        with.optimizer
            .add_counts("a", &counts.narrow(0, 0, 3))
            .is_err()
    );
    let weight = weights::named(&with.vs)[table].detach().copy();
    with.step(&[2, 4, 4, 4])?;
    without.step(&[2, 4, 4, 4])?;
    // The sum of squares after one step is the squared gradient.
    let gradient = |made: &Made| {
        let grads = weights::named(&made.vs)[table].grad().to_dense(None, false);
        (
            grads,
            made.optimizer.state()[&format!("{table}.sum")].copy(),
        )
    };
    let ((plain, squares), (bare, bare_squares)) = (gradient(&with), gradient(&without));
    assert_close(&plain, &bare, 1e-5, 1e-7);
    assert_close(&bare_squares, &bare.square(), 1e-5, 1e-9);
    let scale = Tensor::from_slice(&[0.0f32, 0.0, 0.3 / 2.0, 0.0, 0.3 / 5.0, 0.0]).unsqueeze(1);
    assert_close(&squares, &(plain + weight * scale).square(), 1e-4, 1e-8);
    Ok(())
}

#[test]
fn a_saved_state_goes_on_to_the_same_bits_and_a_foreign_one_is_refused() -> Result<()> {
    for mode in [Mode::Dense, Mode::Lazy] {
        let optim = OptimConfig {
            mode,
            ..REGULARISED
        };
        let mut unbroken = made(&small(), &optim)?;
        unbroken.step(&[1, 2, 3, 3])?;
        let state: Tensors = unbroken
            .optimizer
            .state()
            .into_iter()
            .map(|(name, xs)| (name, xs.copy()))
            .collect();
        let values: Tensors = weights::named(&unbroken.vs)
            .into_iter()
            .map(|(name, xs)| (name, xs.detach().copy()))
            .collect();
        let mut resumed = made(&small(), &optim)?;
        weights::load_tensors(&resumed.vs, HERE.as_ref(), &values, Strictness::All)?;
        resumed.optimizer.load_state(&state)?;
        assert_eq!(resumed.optimizer.steps(), 1);
        unbroken.step(&[5, 5, 1, 0])?;
        resumed.step(&[5, 5, 1, 0])?;
        let theirs = weights::named(&unbroken.vs);
        for (name, ours) in weights::named(&resumed.vs) {
            assert_bits(&ours.detach(), &theirs[&name].detach());
        }
        let mut foreign = state;
        foreign.insert("extra".to_owned(), Tensor::from(1.0));
        foreign.remove("step");
        let message = resumed
            .optimizer
            .load_state(&foreign)
            .expect_err("foreign")
            .to_string();
        assert!(
            message.contains("step is missing") && message.contains("extra is unexpected"),
            "{message}"
        );
    }
    Ok(())
}

#[test]
fn a_loss_that_is_no_number_leaves_the_weights_alone() -> Result<()> {
    let mut made = made(&small(), &REGULARISED)?;
    let before: Tensors = weights::named(&made.vs)
        .into_iter()
        .map(|(name, xs)| (name, xs.detach().copy()))
        .collect();
    let parameter = weights::named(&made.vs)["fusion_module.w_xy"].shallow_clone();
    let loss = (parameter * f64::NAN).sum(Kind::Float);
    let message = made
        .optimizer
        .step(&loss)
        .expect_err("no number")
        .to_string();
    assert!(message.contains("training diverged at step 0"), "{message}");
    for (name, xs) in weights::named(&made.vs) {
        assert_bits(&xs.detach(), &before[&name]);
    }
    Ok(())
}

#[test]
fn wrong_settings_are_errors_that_name_them() {
    for (optim, part) in [
        (
            OptimConfig {
                lr: -1.0,
                ..REGULARISED
            },
            "`optim.lr`",
        ),
        (
            OptimConfig {
                max_norm: 0.0,
                ..REGULARISED
            },
            "`optim.max_norm`",
        ),
        (
            OptimConfig {
                betas: [0.9, 1.0],
                ..REGULARISED
            },
            "`optim.betas`",
        ),
        (
            OptimConfig {
                mini_batch_aware: 0.1,
                ..REGULARISED
            },
            "set mode = \"lazy\"",
        ),
        (
            OptimConfig {
                embedding_l2: f64::NAN,
                ..REGULARISED
            },
            "`optim.embedding_l2`",
        ),
    ] {
        let message = optim.validate().expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    }
}
