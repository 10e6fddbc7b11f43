//! Operations that do in one what a chain of libtorch's does: the same values and gradients.

use densely_core::nn::{self, BatchNorm};
use densely_core::weights;
use densely_core::{Result, Tensors, seeded};
use densely_recsys::attention::AttentionConfig;
use densely_recsys::layers::Activation;
use densely_recsys::{CtrConfig, DinConfig, Field, FinalMlpConfig};
use densely_testkit::{assert_bits, assert_close};
use densely_torch_ext::fused::{self, PlainPaths};
use densely_torch_ext::rows::{self, Rows};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

fn drawn(seed: i64, size: &[i64]) -> Tensor {
    seeded(seed, || Tensor::randn(size, tch::kind::FLOAT_CPU))
}

/// By either product of the machine, with sizes on both sides of where it changes.
#[test]
fn the_fused_linear_layer_is_the_plain_one() {
    for (rows, inputs, outputs) in [
        (300, 256, 130),
        (300, 256, 1),
        (5, 7, 3),
        (1, 512, 64),
        (0, 4, 2),
    ] {
        let run = |fused: bool| {
            let [xs, weight, bias] = seeded(1, || {
                [vec![rows, inputs], vec![outputs, inputs], vec![outputs]]
                    .map(|size| Tensor::randn(size, tch::kind::FLOAT_CPU).set_requires_grad(true))
            });
            let ys = if fused {
                fused::linear(&xs, &weight, Some(&bias)).expect("shapes fit")
            } else {
                xs.linear(&weight, Some(&bias))
            };
            (&ys * ys.detach().sin()).sum(Kind::Float).backward();
            [ys.detach(), xs.grad(), weight.grad(), bias.grad()]
        };
        for (fused, plain) in run(true).iter().zip(&run(false)) {
            assert_close(fused, plain, 1e-4, 1e-3);
        }
    }
    let wide = Tensor::zeros([2, 3], tch::kind::FLOAT_CPU);
    assert!(fused::linear(&wide, &Tensor::zeros([2, 4], tch::kind::FLOAT_CPU), None).is_err());
}

/// Parameters, buffers and, as `grad.<name>`, gradients.
fn with_gradients(vs: &VarStore) -> Tensors {
    let mut found = Tensors::new();
    for (name, xs) in weights::named(vs) {
        found.insert(name.clone(), xs.detach().copy());
        if xs.requires_grad() {
            found.insert(format!("grad.{name}"), xs.grad());
        }
    }
    found
}

/// Parameters, buffers and gradients of two runs.
fn assert_like(fused: &Tensors, plain: &Tensors, train: bool) {
    assert_eq!(fused.len(), plain.len());
    let largest = |name: &str| {
        let xs = plain[name].abs().max().to_kind(Kind::Float);
        xs.double_value(&[])
    };
    for (name, xs) in fused {
        let mut scale = largest(name).max(1.0);
        // A bias before a norm has no gradient: what is there is the rounding of terms as large as those of its weight.
        if let Some(layer) = name.strip_suffix(".bias").filter(|_| train) {
            scale = scale.max(largest(&format!("{layer}.weight")));
        }
        assert_close(xs, &plain[name], 1e-4, 1e-5 * scale);
    }
}

/// Dice in one operation is Dice by libtorch's, gradients and running statistics too.
#[test]
fn fused_dice_is_plain_dice() -> Result<()> {
    let config = CtrConfig::Din(DinConfig {
        fields: vec![
            Field::categorical("item", 30),
            Field::sequence("items", 30, 37, Some("item")),
        ],
        din_target_field: vec![vec!["item".to_owned()]],
        din_sequence_field: vec![vec!["items".to_owned()]],
        embedding_dim: 11,
        attention_hidden_units: vec![29, 16],
        attention_dropout: 0.0,
        dnn_hidden_units: vec![23],
        net_dropout: 0.0,
        dnn_activations: Activation::Dice,
        ..DinConfig::default()
    });
    let run = |train: bool| -> Result<(Tensors, Tensor)> {
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        seeded(1, || {
            let _no_grad = tch::no_grad_guard();
            for (name, mut xs) in weights::named(&vs) {
                if name.ends_with("alpha") || name.contains("embedding_layers") {
                    let _ = xs.normal_(0.0, 0.5);
                }
            }
        });
        let inputs = seeded(2, || {
            Tensors::from([
                (
                    "item".to_owned(),
                    Tensor::randint(30, [19], tch::kind::INT64_CPU),
                ),
                (
                    "items".to_owned(),
                    Tensor::randint(30, [19, 37], tch::kind::INT64_CPU),
                ),
            ])
        });
        let logits = model.forward(&inputs, train)?;
        (&logits * Tensor::arange(19, tch::kind::FLOAT_CPU))
            .sum(Kind::Float)
            .backward();
        Ok((with_gradients(&vs), logits.detach()))
    };
    for train in [false, true] {
        let (fused, logits) = run(train)?;
        let (plain, expected) = {
            let _plain = PlainPaths::new();
            run(train)?
        };
        assert_close(&logits, &expected, 1e-5, 1e-5);
        assert_like(&fused, &plain, train);
    }
    Ok(())
}

/// A batch norm with parameters and running statistics that are not its first ones.
fn used_norm(channels: i64, kind: Kind) -> (VarStore, BatchNorm) {
    let mut vs = VarStore::new(Device::Cpu);
    let norm = nn::batch_norm(&vs.root(), channels, 0.1, 1e-5);
    if kind == Kind::Double {
        vs.double();
    }
    let of = |seed| drawn(seed, &[channels]).to_kind(kind);
    {
        let _no_grad = tch::no_grad_guard();
        for (to, from) in [
            (&norm.weight, of(1)),
            (&norm.bias, of(2)),
            (&norm.running_mean, of(3)),
            (&norm.running_var, of(4).abs() + 0.1),
        ] {
            to.shallow_clone().copy_(&from);
        }
    }
    (vs, norm)
}

/// Batch norm, ReLU and dropout in one operation against the chain in f64: values, gradients, running statistics; with a mean that is far
/// from 0. What dropout left out is read off the output.
#[test]
fn norm_relu_dropout_is_its_chain() {
    for (rows, channels) in [(2, 1), (37, 16), (1000, 29)] {
        for (train, p) in [(false, 0.3), (true, 0.0), (true, 0.3)] {
            let run = |kind: Kind, kept: Option<&Tensor>| {
                let (vs, norm) = used_norm(channels, kind);
                let xs = (drawn(5, &[rows, channels]) + 10.0).to_kind(kind);
                let xs = xs.set_requires_grad(true);
                let ys = match kept {
                    Some(kept) => xs.apply_t(&norm, train).relu() * kept,
                    None => seeded(6, || norm.relu_dropout_t(&xs, p, train)),
                };
                let weights = drawn(7, &[rows, channels]).to_kind(kind);
                (&ys * weights).sum(kind).backward();
                let mut found = vec![ys.detach(), xs.grad(), norm.weight.grad(), norm.bias.grad()];
                found.extend([norm.running_mean, norm.running_var]);
                let batches = vs.variables()["num_batches_tracked"].int64_value(&[]);
                (found, batches)
            };
            let (fused, batches) = run(Kind::Float, None);
            let scale = if train { 1.0 / (1.0 - p) } else { 1.0 };
            let kept = fused[0].ne(0.0).to_kind(Kind::Double) * scale;
            let (chain, expected) = run(Kind::Double, Some(&kept));
            assert_eq!(batches, expected);
            assert_eq!(batches, i64::from(train));
            for (fused, chain) in fused.iter().zip(&chain) {
                let largest = chain.abs().max().double_value(&[]);
                assert_close(fused, chain, 1e-5, 3e-5 * largest.max(1.0));
            }
            if train && p > 0.0 && rows == 1000 {
                // Of the positive half, seven tenths: 10,150 with a deviation of 60.
                let share = kept.ne(0.0).sum(Kind::Double).double_value(&[]);
                let positive = {
                    let (_vs, norm) = used_norm(channels, Kind::Float);
                    let xs = drawn(5, &[rows, channels]) + 10.0;
                    let relu = xs.apply_t(&norm, true).relu();
                    relu.ne(0.0).sum(Kind::Double).double_value(&[])
                };
                let deviation = (positive * p * (1.0 - p)).sqrt();
                assert!(
                    (share - positive * (1.0 - p)).abs() < 4.0 * deviation,
                    "{share} of {positive}"
                );
            }
        }
    }
}

/// NaN and infinity pass as they do through the chain.
#[test]
fn norm_relu_hides_no_nan() {
    let (_vs, norm) = used_norm(2, Kind::Float);
    let xs = Tensor::from_slice(&[f32::NAN, 1.0, f32::INFINITY, -1.0]).view([2, 2]);
    let fused = norm.relu_dropout_t(&xs, 0.0, false);
    let chain = xs.apply_t(&norm, false).relu();
    assert!(fused.isnan().equal(&chain.isnan()));
}

/// Dropout keeps values with its probability, scaled; its gradient is the same mask; a seed decides it whatever the threads.
#[test]
fn dropout_is_one_mask_forward_and_backward() {
    for size in [vec![0], vec![5], vec![1024], vec![3, 7, 911]] {
        let xs = (drawn(1, &size).abs() + 0.5).set_requires_grad(true);
        let ys = seeded(2, || nn::dropout(&xs, 0.2, true));
        ys.sum(Kind::Float).backward();
        let kept = ys.ne(0.0).to_kind(Kind::Float) * 1.25;
        assert_bits(&xs.grad(), &kept);
        assert_bits(&ys.detach(), &(&xs * 1.25 * kept.ne(0.0)).detach());
        let count = xs.numel() as f64;
        let share = kept.ne(0.0).sum(Kind::Double).double_value(&[]);
        assert!((share - 0.8 * count).abs() <= 4.0 * (count * 0.16).sqrt());
        let other = seeded(3, || nn::dropout(&xs, 0.2, true));
        assert!(count < 100.0 || !other.equal(&ys));
        assert_bits(&nn::dropout(&xs, 0.2, false).detach(), &xs.detach());
        assert_bits(&nn::dropout(&xs, 0.0, true).detach(), &xs.detach());
    }
}

/// The bilinear form of any heads and numbers of rows, against products in f64.
#[test]
fn the_fused_bilinear_form_is_its_products() {
    for (rows, heads, left, right) in [
        (1, 1, 1, 1),
        (64, 5, 80, 20),
        (131, 7, 2, 5),
        (200, 1, 33, 128),
    ] {
        let run = |kind: Kind| {
            let of = |seed, size: &[i64]| drawn(seed, size).to_kind(kind).set_requires_grad(true);
            let (x, y) = (of(1, &[rows, heads * left]), of(2, &[rows, heads * right]));
            let form = of(3, &[heads, left, right]);
            let (wx, wy) = (of(4, &[heads * left]), of(5, &[heads * right]));
            let out = if kind == Kind::Float {
                fused::bilinear(&x, &y, &form, [&wx, &wy]).expect("shapes fit")
            } else {
                let by_head = |xs: &Tensor| xs.unflatten(1, [heads, -1]).transpose(0, 1);
                let products = (by_head(&x).bmm(&form) * by_head(&y)).sum_dim_intlist(
                    [0, 2].as_slice(),
                    false,
                    None,
                );
                products + x.matmul(&wx) + y.matmul(&wy)
            };
            (&out * drawn(6, &[rows]).to_kind(kind))
                .sum(kind)
                .backward();
            [
                out.detach(),
                x.grad(),
                y.grad(),
                form.grad(),
                wx.grad(),
                wy.grad(),
            ]
        };
        for (fused, truth) in run(Kind::Float).iter().zip(&run(Kind::Double)) {
            let largest = truth.abs().max().double_value(&[]);
            assert_close(fused, truth, 1e-5, 3e-6 * largest);
        }
    }
    let [x, y] = [[2, 6], [2, 4]].map(|size| Tensor::zeros(size, tch::kind::FLOAT_CPU));
    let form = Tensor::zeros([3, 2, 2], tch::kind::FLOAT_CPU);
    let line = |n| Tensor::zeros([n], tch::kind::FLOAT_CPU);
    assert!(fused::bilinear(&x, &y, &form, [&line(6), &line(4)]).is_err());
}

/// Rows that occur several times: found, summed in their order, and repeated with their gradients, ids of several digits too.
#[test]
fn equal_rows_are_found_and_summed() {
    for (count, limit, dim) in [(0, 5, 3), (1, 1, 1), (500, 30, 11), (300, 40_000_000, 2)] {
        let ids = seeded(1, || Tensor::randint(limit, [count], tch::kind::INT64_CPU));
        let values = drawn(2, &[count, dim]);
        let (distinct, place) = rows::distinct(&ids, limit).expect("ids below the limit");
        let (expected, inverse, _) = ids.internal_unique2(true, true, false);
        assert!(distinct.equal(&expected) && place.equal(&inverse));
        let table = Rows {
            ids: &ids,
            values: &values,
            limit,
        };
        let found = rows::sums(&[table, table]).expect("shapes fit");
        assert_eq!(found.len(), 2);
        for (index, sums) in &found {
            assert!(index.equal(&expected));
            let zeros = Tensor::zeros([expected.numel() as i64, dim], tch::kind::FLOAT_CPU);
            assert_bits(sums, &zeros.index_add(0, &inverse, &values));
        }
        let weights = drawn(3, &[count, dim]);
        let run = |fused: bool| {
            // One row more than is repeated.
            let rows = drawn(4, &[expected.numel() as i64 + 1, dim]).set_requires_grad(true);
            let ys = if fused {
                rows::repeat(&rows, &place).expect("shapes fit")
            } else {
                rows.index_select(0, &place)
            };
            (&ys * &weights).sum(Kind::Float).backward();
            (ys.detach(), rows.grad())
        };
        let ((ys, grad), (plain, expected)) = (run(true), run(false));
        assert_bits(&ys, &plain);
        assert_bits(&grad, &expected);
    }
    for wrong in [-1i64, 7] {
        let ids = Tensor::from_slice(&[0, wrong]);
        let message = rows::distinct(&ids, 7).expect_err("an id beyond the table");
        assert!(message.contains(&format!("id {wrong}")), "{message}");
        assert!(rows::repeat(&drawn(1, &[7, 2]), &ids).is_err());
    }
}

/// Many queries for one history give what each gives alone, with Dice in place and with other activations.
#[test]
fn shared_histories_give_what_each_row_gives() -> Result<()> {
    for activation in [Activation::Dice, Activation::Relu] {
        let config = AttentionConfig {
            embedding_dim: 12,
            attention_units: vec![33, 17],
            hidden_activations: activation,
            ..AttentionConfig::default()
        };
        let vs = VarStore::new(Device::Cpu);
        let attention = seeded(1, || config.build(&vs.root()))?;
        {
            let _no_grad = tch::no_grad_guard();
            for (name, mut xs) in weights::named(&vs) {
                if name.ends_with("alpha")
                    || name.ends_with("bias")
                    || name.ends_with("running_mean")
                {
                    xs.copy_(&drawn(2, &xs.size()));
                }
            }
        }
        let (queries, keys) = (drawn(3, &[300, 12]), drawn(4, &[20, 12]));
        let mask = Tensor::ones([300, 20], tch::kind::FLOAT_CPU);
        let expected =
            attention.forward_plain(&queries, &keys.expand([300, 20, 12], false), &mask, false)?;
        for gradients in [false, true] {
            let _inference = (!gradients).then(densely_torch_ext::InferenceMode::new);
            let shared = attention.forward_shared(&queries, &keys)?;
            assert_close(&shared, &expected.detach(), 1e-5, 1e-5);
        }
    }
    Ok(())
}

/// `FinalMLP` with its fused gates, streams and fusion is the plain model, and so are its gradients.
#[test]
fn fused_finalmlp_is_plain_finalmlp() -> Result<()> {
    let config = CtrConfig::FinalMlp(FinalMlpConfig {
        mlp1_dropout: 0.0,
        mlp2_dropout: 0.0,
        ..FinalMlpConfig::default()
    });
    let run = |train: bool| -> Result<(Tensors, Tensor)> {
        let vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        seeded(1, || {
            let _no_grad = tch::no_grad_guard();
            for (name, mut xs) in weights::named(&vs) {
                if name.contains("embedding_layers") {
                    let _ = xs.normal_(0.0, 0.5);
                }
            }
        });
        let fields = config.fields().iter();
        let inputs = seeded(2, || {
            fields
                .map(|field| {
                    let size = field.vocab_size().unwrap_or(1);
                    let ids = Tensor::randint(size, [150], tch::kind::INT64_CPU);
                    (field.name().to_owned(), ids)
                })
                .collect()
        });
        let logits = model.forward(&inputs, train)?;
        (&logits * drawn(3, &[150])).sum(Kind::Float).backward();
        Ok((with_gradients(&vs), logits.detach()))
    };
    for train in [false, true] {
        let (fused, logits) = run(train)?;
        let (plain, expected) = {
            let _plain = PlainPaths::new();
            run(train)?
        };
        assert_close(&logits, &expected, 1e-5, 1e-5);
        assert_like(&fused, &plain, train);
    }
    Ok(())
}
