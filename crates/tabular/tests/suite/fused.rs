//! The fused operations against the plain chains of operations that they replace.

use densely_core::{Result, Tensors, nn, seeded, weights};
use densely_tabular::models::{ModelConfig, TabularModel};
use densely_tabular::task::{Task, members_loss};
use densely_testkit::assert_close;
use densely_torch_ext::fused::PlainPaths;
use densely_torch_ext::{Autocast, InferenceMode};
use densely_train::OptimConfig;
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// Quantile-like edges of different numbers of bins: 3, 1 and 5.
fn bins() -> Value {
    json!([
        [-1.5, -0.5, 0.5, 1.5],
        [-1.0, 1.0],
        [-2.0, -1.0, -0.25, 0.5, 1.0, 2.0]
    ])
}

fn embeddings() -> Vec<Value> {
    let piecewise = |version: &str, activation: bool| json!({"type": "piecewise_linear", "bins": bins(), "d_embedding": 5, "activation": activation, "version": version});
    vec![
        Value::Null,
        piecewise("A", true),
        piecewise("A", false),
        piecewise("B", true),
        piecewise("B", false),
    ]
}

struct Trial {
    vs: VarStore,
    model: Box<dyn TabularModel>,
    x_num: Tensor,
    x_cat: Tensor,
    y: Tensor,
}

impl Trial {
    /// A model whose parameters are all random, so that no part of it is hidden by a zero or a one.
    fn new(preset: &str, embedding: &Value, rows: &[i64], kind: Kind) -> Result<Self> {
        let mut config = json!({
            "n_num_features": 3, "cat_cardinalities": [2, 4], "d_out": 2, "n_blocks": 3, "d_block": 24,
            "dropout": 0.0, "num_embeddings": embedding,
        });
        if preset != "mlp" {
            config["k"] = json!(4);
        }
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || ModelConfig::of(preset, &config)?.build(&vs.root()))?;
        nn::set_float_kind(&vs, kind);
        seeded(1, || {
            let _no_grad = tch::no_grad_guard();
            for (_, mut param) in weights::named(&vs) {
                if param.requires_grad() {
                    param += param.randn_like() * 0.2;
                }
            }
            let of = |features: i64| [rows, &[features]].concat();
            Ok(Self {
                x_num: Tensor::randn(of(3), (kind, Device::Cpu)) * 1.3,
                x_cat: Tensor::randint(3, of(2), tch::kind::INT64_CPU).clamp_max(2),
                y: Tensor::randint(2, [rows[0]], tch::kind::INT64_CPU),
                vs,
                model,
            })
        })
    }

    /// Outputs, loss, and the gradients of all parameters and of the numbers.
    fn run(&self) -> Result<Tensors> {
        let x_num = self.x_num.copy().set_requires_grad(true);
        let ys = self
            .model
            .forward_members(Some(&x_num), Some(&self.x_cat), true)?;
        let loss = members_loss(&ys, &self.y, None, Task::Multiclass);
        let params: Vec<Tensor> = weights::named(&self.vs).into_values().collect();
        densely_torch_ext::optim::clear_grads(&params).expect("gradients go");
        loss.backward();
        let mut found = Tensors::from([
            ("y".to_owned(), ys.detach()),
            ("loss".to_owned(), loss.detach()),
            ("grad.x_num".to_owned(), x_num.grad()),
        ]);
        for (name, param) in weights::named(&self.vs) {
            if param.requires_grad() {
                found.insert(format!("grad.{name}"), param.grad());
            }
        }
        Ok(found)
    }

    fn predict(&self) -> Result<Tensor> {
        let _inference = InferenceMode::new();
        self.model
            .forward_members(Some(&self.x_num), Some(&self.x_cat), false)
    }
}

fn compare(fused: &Tensors, plain: &Tensors, rtol: f64, atol: f64) {
    assert_eq!(
        fused.keys().collect::<Vec<_>>(),
        plain.keys().collect::<Vec<_>>()
    );
    for (name, expected) in plain {
        assert!(
            expected.abs().max().double_value(&[]) > 0.0,
            "{name} is zero"
        );
        assert_close(&fused[name], expected, rtol, atol);
    }
}

/// Inference keeps forms of the weights: whoever changes a weight must see it, by whatever door.
#[test]
fn predictions_follow_every_change_of_the_weights() -> Result<()> {
    for kind in [None, Some(Kind::BFloat16)] {
        let vs = VarStore::new(Device::Cpu);
        let config = json!({"n_num_features": 3, "cat_cardinalities": [], "d_out": 1, "n_blocks": 2, "d_block": 256, "k": 8, "dropout": 0.0});
        let model = seeded(0, || ModelConfig::of("tabm", &config)?.build(&vs.root()))?;
        let x = seeded(1, || Tensor::randn([2, 3], tch::kind::FLOAT_CPU));
        let predict = || -> Result<Tensor> {
            let _inference = InferenceMode::new();
            let _autocast = kind.map(|kind| Autocast::new(Device::Cpu, kind).expect("bf16"));
            model.forward_members(Some(&x), None, false)
        };
        let plain = || {
            let _plain = PlainPaths::new();
            predict()
        };
        let (rtol, atol) = if kind.is_some() {
            (5e-2, 2e-2)
        } else {
            (1e-4, 1e-5)
        };
        let check = |before: &Tensor| -> Result<Tensor> {
            let (now, again) = (predict()?, predict()?);
            assert_eq!(now, again);
            assert_ne!(&now, before);
            assert_close(&now, &plain()?, rtol, atol);
            Ok(now)
        };
        let mut now = check(&Tensor::zeros([2, 8, 1], tch::kind::FLOAT_CPU))?;
        let names = weights::named(&vs);
        let (_, weight) = names
            .iter()
            .find(|(name, xs)| name.ends_with("weight") && xs.size() == [256, 256])
            .expect("the second block's matrix");
        // In place, by hand.
        tch::no_grad(|| {
            let mut weight = weight.shallow_clone();
            weight.copy_(&(&weight * 1.5));
        });
        now = check(&now)?;
        // By an optimiser, fused and plain.
        for fused in [true, false] {
            let optim: OptimConfig =
                serde_json::from_value(json!({"name": "sgd", "lr": 0.5})).expect("an optimiser");
            let mut optimizer = optim.build(&vs, &[])?;
            optimizer.set_fused(fused);
            optimizer.zero_grad()?;
            model
                .forward_members(Some(&x), None, false)?
                .square()
                .sum(Kind::Float)
                .backward();
            optimizer.step()?;
            now = check(&now)?;
        }
        // In inference mode, and by exchanging the memory.
        {
            let _inference = InferenceMode::new();
            let mut weight = weight.shallow_clone();
            let _ = weight.fill_(0.01);
        }
        now = check(&now)?;
        weight
            .shallow_clone()
            .set_data(&Tensor::full([256, 256], 0.02, tch::kind::FLOAT_CPU));
        drop(check(&now)?);
    }
    Ok(())
}

#[test]
fn predictions_follow_every_change_of_an_embedding() -> Result<()> {
    for embedding in embeddings() {
        let vs = VarStore::new(Device::Cpu);
        let config = json!({"n_num_features": 3, "cat_cardinalities": [], "d_out": 1, "n_blocks": 1, "d_block": 16, "num_embeddings": embedding});
        let model = seeded(0, || ModelConfig::of("mlp", &config)?.build(&vs.root()))?;
        let x = seeded(1, || Tensor::randn([2, 3], tch::kind::FLOAT_CPU));
        let predict = || -> Result<Tensor> {
            let _inference = InferenceMode::new();
            model.forward_members(Some(&x), None, false)
        };
        let mut before = predict()?;
        for (name, xs) in weights::named(&vs) {
            if !(name.starts_with("num_module.") && xs.requires_grad()) {
                continue;
            }
            tch::no_grad(|| {
                let noise = seeded(2, || xs.randn_like());
                xs.shallow_clone().copy_(&(&xs + noise));
            });
            let now = predict()?;
            assert_eq!(predict()?, now);
            assert_ne!(now, before, "{name} of {embedding}");
            let _plain = PlainPaths::new();
            assert_close(&now, &predict()?, 1e-4, 1e-5);
            before = now;
        }
    }
    Ok(())
}

/// What a GPU would run, looked at on a CPU: a CUDA graph can hold a step only if nothing in it waits for a value.
#[test]
fn a_step_of_plain_operations_reads_nothing_back() -> Result<()> {
    const READS: [&str; 6] = [
        "aten::_local_scalar_dense",
        "aten::item",
        "aten::is_nonzero",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
    ];
    let _plain = PlainPaths::new();
    for preset in ["tabm", "tabm-mini", "tabm-packed", "mlp"] {
        for embedding in embeddings() {
            let trial = Trial::new(preset, &embedding, &[33], Kind::Float)?;
            let (found, operations) =
                densely_torch_ext::profile::operations(|| trial.run()).expect("one recording");
            found?;
            // The recording sees both ways.
            for pass in ["aten::relu", "aten::threshold_backward"] {
                assert!(
                    operations.iter().any(|name| name == pass),
                    "{pass}: {operations:?}"
                );
            }
            let reads = operations
                .iter()
                .find(|name| READS.contains(&name.as_str()));
            assert_eq!(reads, None, "{preset} {embedding}");
        }
    }
    let (_, operations) =
        densely_torch_ext::profile::operations(|| Tensor::from(1.0).double_value(&[]))
            .expect("one recording");
    assert!(operations.iter().any(|name| READS.contains(&name.as_str())));
    Ok(())
}

#[test]
fn fused_and_plain_give_the_same_outputs_and_gradients() -> Result<()> {
    for preset in ["tabm", "tabm-mini", "tabm-packed", "mlp"] {
        let members = if preset == "mlp" { 1 } else { 4 };
        for embedding in embeddings() {
            // Fewer rows than a tile, more, and rows of each member's own.
            for rows in [vec![33], vec![300], vec![40, members], vec![513, members]] {
                for (kind, rtol, atol) in [(Kind::Double, 1e-10, 1e-12), (Kind::Float, 1e-4, 1e-5)]
                {
                    let trial = Trial::new(preset, &embedding, &rows, kind)?;
                    let fused = trial.run()?;
                    let plain = {
                        let _plain = PlainPaths::new();
                        trial.run()?
                    };
                    compare(&fused, &plain, rtol, atol);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn fused_predictions_equal_plain_ones_for_any_number_of_rows() -> Result<()> {
    for preset in ["tabm", "tabm-mini", "mlp"] {
        for rows in [0, 1, 2, 63, 64, 255, 256, 257, 1000] {
            let trial = Trial::new(preset, &embeddings()[3], &[rows], Kind::Float)?;
            let fused = trial.predict()?;
            let _plain = PlainPaths::new();
            assert_close(&fused, &trial.predict()?, 1e-5, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn gradients_equal_finite_differences() -> Result<()> {
    // A smooth place: the ReLUs' kinks are rarer than the step is small.
    for preset in ["tabm", "tabm-mini", "mlp"] {
        for embedding in [&embeddings()[0], &embeddings()[3]] {
            let trial = Trial::new(preset, embedding, &[37], Kind::Double)?;
            let gradients = trial.run()?;
            let step = 1e-6;
            for (name, param) in weights::named(&trial.vs) {
                if !param.requires_grad() {
                    continue;
                }
                let direction = seeded(7, || param.detach().randn_like());
                let at = |scale: f64| -> Result<f64> {
                    let moved = || {
                        let _no_grad = tch::no_grad_guard();
                        let _ = param.shallow_clone().g_add_(&(&direction * scale));
                    };
                    moved();
                    let loss = trial.run()?["loss"].double_value(&[]);
                    let _no_grad = tch::no_grad_guard();
                    let _ = param.shallow_clone().g_add_(&(&direction * -scale));
                    Ok(loss)
                };
                let numeric = (at(step)? - at(-step)?) / (2.0 * step);
                let analytic = (&gradients[&format!("grad.{name}")] * &direction).sum(Kind::Double);
                assert_close(&analytic, &Tensor::from(numeric), 1e-5, 1e-7);
            }
        }
    }
    Ok(())
}

#[test]
fn dropout_drops_its_share_scales_the_rest_and_its_gradient_follows() {
    use densely_torch_ext::fused::{Block, block};
    let (rows, width, p) = (2000, 64, 0.25);
    let xs = Tensor::ones([1, rows, 3], tch::kind::FLOAT_CPU).set_requires_grad(true);
    let weight = Tensor::ones([width, 3], tch::kind::FLOAT_CPU);
    let (r, bias) = (
        Tensor::ones([2, 3], tch::kind::FLOAT_CPU),
        Tensor::ones([width], tch::kind::FLOAT_CPU),
    );
    let layer = Block {
        weight: &weight,
        r: Some(&r),
        s: None,
        bias: &bias,
    };
    let run = |seed| block(&xs, &layer, p, seed).expect("a block");
    let ys = run(5); // 4 / (1 - p) or 0
    let kept = ys.gt(0.0);
    assert_close(
        &ys.detach(),
        &(kept.to_kind(Kind::Float) * 4.0 / (1.0 - p)),
        1e-6,
        0.0,
    );
    // Binomial: 256,000 places, standard deviation of the share 0.00086; of a column's 4,000, 0.0068; of a row's 64, 0.054.
    let share = |dims: &[i64]| {
        kept.to_kind(Kind::Double)
            .mean_dim(dims, false, Kind::Double)
            - (1.0 - p)
    };
    assert!(share(&[0, 1, 2]).abs().max().double_value(&[]) < 4.0 * 0.00086);
    assert!(share(&[0, 1]).abs().max().double_value(&[]) < 4.5 * 0.0068);
    assert!(share(&[2]).abs().max().double_value(&[]) < 5.5 * 0.054);
    // Neighbours in a row, in a column and in the other member drop independently of each other.
    let centred = kept.to_kind(Kind::Double) - (1.0 - p);
    let lagged = |dim, lag| {
        let size = centred.size()[dim as usize] - lag;
        let product = centred.narrow(dim, 0, size) * centred.narrow(dim, lag, size);
        (product.mean(Kind::Double).double_value(&[]) / (p * (1.0 - p))).abs()
    };
    for (dim, lag) in [(2, 1), (2, 16), (1, 1), (1, 256), (0, 1)] {
        assert!(lagged(dim, lag) < 0.02, "dimension {dim}, lag {lag}");
    }
    assert_eq!(run(5), ys, "the same seed drops the same places");
    assert_ne!(run(6), ys, "another seed drops others");
    ys.sum(Kind::Float).backward();
    let expected =
        kept.to_kind(Kind::Float)
            .sum_dim_intlist([0i64, 2].as_slice(), false, Kind::Float)
            / (1.0 - p);
    assert_close(
        &xs.grad().select(2, 0).squeeze_dim(0),
        &expected,
        1e-5,
        1e-4,
    );
}

#[test]
fn bf16_stays_as_near_to_f32_as_the_plain_chain_does() -> Result<()> {
    for preset in ["tabm", "tabm-mini", "mlp"] {
        let trial = Trial::new(preset, &Value::Null, &[300], Kind::Float)?;
        let exact = trial.run()?;
        let half = |plain: bool| {
            let _plain = plain.then(PlainPaths::new);
            let _autocast = Autocast::new(Device::Cpu, Kind::BFloat16).expect("bf16 on a CPU");
            trial.run()
        };
        let (fused, plain) = (half(false)?, half(true)?);
        for (name, exact) in &exact {
            let distance = |xs: &Tensor| {
                let difference = (xs.to_kind(Kind::Float) - exact).norm().double_value(&[]);
                difference / exact.norm().double_value(&[])
            };
            let (fused, plain) = (distance(&fused[name]), distance(&plain[name]));
            assert!(fused > 0.0, "{preset} {name}: no bf16 was used");
            assert!(
                fused < 2.0 * plain + 0.004,
                "{preset} {name}: {fused} against {plain}"
            );
        }
    }
    Ok(())
}

#[test]
fn values_that_are_no_numbers_are_not_hidden() -> Result<()> {
    for embedding in [&embeddings()[0], &embeddings()[4]] {
        let mut trial = Trial::new("tabm", embedding, &[40], Kind::Float)?;
        trial.x_num = trial.x_num.slice_scatter(
            &Tensor::full([1, 3], f64::NAN, tch::kind::FLOAT_CPU),
            0,
            7,
            8,
            1,
        );
        for ys in [trial.predict()?, trial.run()?["y"].shallow_clone()] {
            let bad = ys
                .isnan()
                .any_dim(2, false)
                .any_dim(1, false)
                .to_kind(Kind::Int64);
            assert_eq!(bad.sum(Kind::Int64).int64_value(&[]), 1);
            assert_eq!(bad.int64_value(&[7]), 1);
        }
    }
    Ok(())
}

#[test]
fn second_derivatives_are_refused_and_not_wrong() -> Result<()> {
    let trial = Trial::new("tabm", &Value::Null, &[40], Kind::Float)?;
    let x_num = trial.x_num.copy().set_requires_grad(true);
    let ys = trial
        .model
        .forward_members(Some(&x_num), Some(&trial.x_cat), true)?;
    let error = Tensor::f_run_backward(&[ys.sum(Kind::Float)], &[&x_num], true, true);
    let message = error.expect_err("no second derivatives").to_string();
    assert!(message.contains("second derivatives"), "{message}");
    Ok(())
}
