//! Layers against PyTorch: initial bits, outputs, gradients and running statistics.

use densely_core::nn::{self, ConvConfig};
use densely_core::weights::{self, Strictness};
use densely_core::{Result, Tensors, seeded};
use densely_testkit::{Golden, assert_bits, assert_close};
use serde_json::Value;
use tch::nn::{Module, ModuleT, Path, VarStore};
use tch::{Device, Tensor};

/// The layer that a case of the golden describes, under `vs`.
fn build(case: &Value, vs: &Path) -> Box<dyn ModuleT> {
    let args = &case["args"];
    let int = |name: &str| {
        args[name]
            .as_i64()
            .unwrap_or_else(|| panic!("no `{name}` in {args}"))
    };
    let or = |name: &str, default: i64| args[name].as_i64().unwrap_or(default);
    let eps = args["eps"].as_f64().unwrap_or(1e-5);
    let bias = args["bias"].as_bool().unwrap_or(true);
    let conv = || ConvConfig {
        stride: or("stride", 1),
        padding: or("padding", 0),
        dilation: or("dilation", 1),
        groups: or("groups", 1),
        bias,
    };
    match case["layer"].as_str() {
        Some("Linear") if bias => Box::new(nn::linear(vs, int("in_features"), int("out_features"))),
        Some("Linear") => Box::new(nn::linear_no_bias(
            vs,
            int("in_features"),
            int("out_features"),
        )),
        Some("Conv1d") => Box::new(nn::conv1d(
            vs,
            int("in_channels"),
            int("out_channels"),
            int("kernel_size"),
            conv(),
        )),
        Some("Conv2d") => Box::new(nn::conv2d(
            vs,
            int("in_channels"),
            int("out_channels"),
            int("kernel_size"),
            conv(),
        )),
        Some("LayerNorm") => {
            let size = args["normalized_shape"].as_array().expect("a list");
            let size: Vec<i64> = size.iter().filter_map(Value::as_i64).collect();
            Box::new(nn::layer_norm(vs, &size, eps))
        }
        Some("BatchNorm1d" | "BatchNorm2d") => {
            let momentum = args["momentum"].as_f64().unwrap_or(0.1);
            Box::new(nn::batch_norm(vs, int("num_features"), momentum, eps))
        }
        Some("GroupNorm") => Box::new(nn::group_norm(
            vs,
            int("num_groups"),
            int("num_channels"),
            eps,
        )),
        Some("Embedding") => Box::new(nn::embedding(
            vs,
            int("num_embeddings"),
            int("embedding_dim"),
        )),
        other => panic!("no layer {other:?}"),
    }
}

#[test]
fn layers_start_compute_and_learn_as_in_pytorch() -> Result<()> {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "nn");
    let cases: serde_json::Map<String, Value> = golden.config();
    assert_eq!(cases.len(), 17);
    for (name, case) in &cases {
        let tensor = |key: &str| golden.tensor(&format!("{name}.{key}"));
        let weights_of_case: Tensors = golden.group(&format!("{name}.weight."));

        let vs = VarStore::new(Device::Cpu);
        let layer = seeded(0, || build(case, &vs.root()));
        nn::check_names(&vs)?;
        if case["perturbed"] == false {
            for (key, expected) in &weights_of_case {
                assert_bits(&weights::named(&vs)[key].detach(), expected);
            }
        }
        weights::load_tensors(&vs, golden.path(), &weights_of_case, Strictness::All)?;

        let xs = tensor("input.x");
        let xs = if xs.is_floating_point() {
            xs.set_requires_grad(true)
        } else {
            xs
        };
        let ys = layer.forward_t(&xs, true);
        assert_close(&ys, &tensor("output.train"), 1e-5, 1e-6);
        let loss = (&ys * tensor("cotangent")).sum(tch::Kind::Float);
        assert_close(&loss, &tensor("loss"), 1e-5, 1e-5);
        loss.backward();
        let grads = golden.group(&format!("{name}.grad."));
        assert!(!grads.is_empty());
        for (key, expected) in &grads {
            assert_close(&weights::named(&vs)[key].grad(), expected, 1e-4, 1e-6);
        }
        if xs.requires_grad() {
            assert_close(&xs.grad(), &tensor("grad_input.x"), 1e-4, 1e-6);
        }
        for (key, expected) in golden.group(&format!("{name}.after.")) {
            assert_close(&weights::named(&vs)[&key], &expected, 1e-6, 1e-7);
        }
        let ys = tch::no_grad(|| layer.forward_t(&tensor("input.x"), false));
        assert_close(&ys, &tensor("output.eval"), 1e-5, 1e-6);
    }
    Ok(())
}

#[test]
fn a_name_claimed_twice_is_an_error() {
    let vs = VarStore::new(Device::Cpu);
    nn::linear(&(vs.root() / "a"), 1, 1);
    assert!(nn::check_names(&vs).is_ok());
    nn::linear(&(vs.root() / "a"), 1, 1);
    assert!(nn::check_names(&vs).is_err());
}

#[test]
fn casting_the_store_leaves_masks_and_counters_alone() {
    let vs = VarStore::new(Device::Cpu);
    let layer = nn::batch_norm(&vs.root(), 2, 0.1, 1e-5);
    let _ = nn::buffer(&vs.root(), "mask", &Tensor::from_slice(&[true, false]));
    nn::set_float_kind(&vs, tch::Kind::Double);
    assert_eq!(layer.weight.kind(), tch::Kind::Double);
    let kinds = weights::named(&vs);
    assert_eq!(kinds["mask"].kind(), tch::Kind::Bool);
    assert_eq!(kinds["num_batches_tracked"].kind(), tch::Kind::Int64);
}

#[test]
fn convolutions_keep_channels_last_and_give_the_same_values() -> Result<()> {
    let vs = VarStore::new(Device::Cpu);
    let conv = nn::conv2d(&(vs.root() / "conv"), 3, 8, 3, ConvConfig::default());
    let xs = Tensor::randn([2, 3, 9, 7], tch::kind::FLOAT_CPU);
    let turned = nn::channels_last(&xs)?;
    assert_eq!(turned, xs);
    assert_eq!(turned.stride(), [3 * 9 * 7, 1, 3 * 7, 3]);
    let (ys, plain) = (conv.forward(&turned), conv.forward(&xs));
    assert_eq!(ys.stride()[1], 1);
    assert_close(&ys, &plain, 1e-5, 1e-6);
    assert!(nn::channels_last(&xs.get(0)).is_err());
    Ok(())
}
