//! Every model against its reference package: outputs, loss, gradients, running averages, parameter counts.

use densely_core::registry::{self, Preset, parse_config};
use densely_core::weights::{self, Strictness};
use densely_core::{Result, Tensors, nn, seeded};
use densely_testkit::{Golden, assert_close, goldens};
use densely_timeseries::distributions::Distribution;
use densely_timeseries::models::PRESETS;
use densely_timeseries::patch_tsmixer::{Head, PatchTsMixerConfig, masked_loss};
use densely_timeseries::ttm::{Aside, TtmConfig};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

struct Loaded {
    golden: Golden,
    preset: &'static Preset,
    config: Value,
    outputs: Tensors,
    past: Tensor,
    vs: VarStore,
}

/// The golden's model with its weights, run on its inputs.
fn run(name: &str) -> Result<Loaded> {
    let golden = Golden::open(HERE, name);
    let preset = registry::find(PRESETS, golden.meta("model"))?;
    let train = name.ends_with("_train");
    let mut config = preset.config_with(&golden.config::<Value>())?;
    if train {
        for field in preset.dropout {
            config[*field] = 0.0.into();
        }
    }
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || (preset.build)(&config, &vs.root()))?;
    nn::check_names(&vs)?;
    weights::load_tensors(
        &vs,
        golden.path(),
        &golden.group("weight."),
        Strictness::All,
    )?;
    let mut inputs: Tensors = golden.group("input.");
    inputs.remove("target");
    for xs in inputs.values_mut().filter(|xs| xs.is_floating_point()) {
        *xs = xs.set_requires_grad(true);
    }
    let outputs = model.forward_named(&inputs, train)?;
    let past = inputs["past"].shallow_clone();
    for (name, expected) in golden.group("grad_input.") {
        assert!(inputs.contains_key(&name) && expected.numel() > 0);
    }
    Ok(Loaded {
        golden,
        preset,
        config,
        outputs,
        past,
        vs,
    })
}

fn assert_gradients(loaded: &Loaded) {
    let ours = weights::named(&loaded.vs);
    let theirs = loaded.golden.group("grad.");
    assert_eq!(theirs.len(), loaded.vs.trainable_variables().len());
    for (name, expected) in &theirs {
        let grad = ours[name].grad();
        // libtorch keeps no gradient for what the loss does not depend on.
        let grad = if grad.defined() {
            grad
        } else {
            ours[name].zeros_like()
        };
        assert_close(&grad, expected, 1e-4, 1e-5);
    }
    assert_close(
        &loaded.past.grad(),
        &loaded.golden.tensor("grad_input.past"),
        1e-4,
        1e-5,
    );
    for (name, expected) in loaded.golden.group("after.") {
        assert_close(&ours[&name], &expected, 1e-5, 1e-6);
    }
}

#[test]
fn tsmixers_equal_neuralforecast() -> Result<()> {
    let names = goldens(HERE, "tsmixer_", 9);
    for name in names {
        let loaded = run(&name)?;
        let (golden, ys) = (&loaded.golden, &loaded.outputs["forecast"]);
        assert_close(ys, &golden.tensor("output.forecast"), 1e-5, 1e-5);
        let loss = (ys * golden.tensor("cotangent")).sum(Kind::Float);
        assert_close(&loss, &golden.tensor("loss"), 1e-5, 1e-5);
        loss.backward();
        assert_gradients(&loaded);
    }
    Ok(())
}

fn loss(loaded: &Loaded) -> Result<Tensor> {
    let (golden, outputs) = (&loaded.golden, &loaded.outputs);
    if loaded.preset.name == "patchtsmixer-pretrain" {
        return Ok(masked_loss(
            &outputs["reconstruction"],
            &outputs["patches"],
            &outputs["mask"],
        ));
    }
    let target = golden.tensor("input.target");
    let config: PatchTsMixerConfig = parse_config(&loaded.config)?;
    if let Some(distribution) = config.distribution_output {
        let parameters: Vec<Tensor> = distribution
            .parameters()
            .iter()
            .map(|name| outputs[&format!("{}.{name}", distribution.name())].shallow_clone())
            .collect();
        let affine = (config.head == Head::Forecast).then(|| (&outputs["loc"], &outputs["scale"]));
        return Ok(distribution.nll(&parameters, affine, &target));
    }
    Ok(match config.head {
        Head::Forecast => outputs["forecast"].mse_loss(&target, Reduction::Mean),
        Head::Classification => outputs["logits"].cross_entropy_for_logits(&target),
        _ => outputs["values"].mse_loss(&target, Reduction::Mean),
    })
}

fn assert_outputs(loaded: &Loaded) {
    for (key, expected) in loaded.golden.group("output.") {
        assert_close(&loaded.outputs[&key], &expected, 1e-5, 1e-5);
    }
}

#[test]
fn patchtsmixers_equal_transformers() -> Result<()> {
    let names = goldens(HERE, "patchtsmixer_", 29);
    for name in names {
        let loaded = run(&name)?;
        assert_outputs(&loaded);
        let loss = loss(&loaded)?;
        assert_close(&loss, &loaded.golden.tensor("loss"), 1e-5, 1e-5);
        loss.backward();
        assert_gradients(&loaded);

        // The reference's own config says the same.
        let config: PatchTsMixerConfig = parse_config(&loaded.config)?;
        let theirs: Value = serde_json::from_str(loaded.golden.meta("transformers")).expect("JSON");
        let read = PatchTsMixerConfig::from_transformers(&theirs, config.head)?;
        let at_init = PatchTsMixerConfig {
            dropout: read.dropout,
            head_dropout: read.head_dropout,
            ..config
        };
        assert_eq!(read, at_init, "{name}");
    }
    Ok(())
}

#[test]
fn ttms_equal_granite_tsfm() -> Result<()> {
    let names = goldens(HERE, "ttm_", 18);
    for name in names {
        let loaded = run(&name)?;
        assert_outputs(&loaded);
        let target = loaded.golden.tensor("input.target");
        let loss = loaded.outputs["forecast"].mse_loss(&target, Reduction::Mean);
        assert_close(&loss, &loaded.golden.tensor("loss"), 1e-5, 1e-5);
        loss.backward();
        assert_gradients(&loaded);

        // The reference's own config says the same.
        let ours: TtmConfig = parse_config(&loaded.config)?;
        let theirs: Value = serde_json::from_str(loaded.golden.meta("transformers")).expect("JSON");
        let read = TtmConfig::from_transformers(&theirs)?;
        let targets = read.targets();
        let ours = TtmConfig {
            dropout: read.dropout,
            head_dropout: read.head_dropout,
            // The package writes down which channels it forecasts when some are known.
            prediction_channel_indices: read.prediction_channel_indices.clone(),
            ..ours
        };
        assert_eq!((read, targets), (ours.clone(), ours.targets()), "{name}");
    }
    Ok(())
}

#[test]
fn a_folder_that_granite_tsfm_saved_loads_as_it_is() -> Result<()> {
    let folder = format!("{HERE}/tests/saved_by_granite");
    let text = std::fs::read_to_string(format!("{folder}/config.json")).expect("config.json");
    let config = TtmConfig::from_transformers(&serde_json::from_str(&text).expect("JSON"))?;
    assert_eq!(config.targets(), [1, 2]);
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    weights::load(
        &vs,
        format!("{folder}/model.safetensors").as_ref(),
        weights::same_name,
        Strictness::All,
    )?;
    let golden = Golden::open(HERE, "../saved_by_granite/input");
    let future = golden.tensor("input.future");
    let aside = Aside {
        future: Some(&future),
        ..Aside::default()
    };
    let [ys, _, _] = model.forward(&golden.tensor("input.past"), aside, false)?;
    assert_close(&ys, &golden.tensor("output.forecast"), 1e-5, 1e-6);
    Ok(())
}

#[test]
fn what_a_ttm_lacks_or_does_not_take_is_said() -> Result<()> {
    let read = |config: Value| TtmConfig::from_transformers(&config);
    let plain = read(json!({ "model_type": "tinytimemixer", "scaling": true }))?;
    assert_eq!((plain.context_length, plain.d_model), (64, 16));
    for (config, part) in [
        (
            json!({ "model_type": "patchtsmixer" }),
            "must be `tinytimemixer`",
        ),
        (
            json!({ "multi_scale": true }),
            "`multi_scale` = true is not available",
        ),
        (json!({ "register_tokens": 4 }), "`register_tokens` = 4"),
        (
            json!({ "categorical_vocab_size_list": [3] }),
            "`categorical_vocab_size_list`",
        ),
        (
            json!({ "gate_mode": "glu" }),
            "must be `softmax`, got `glu`",
        ),
        (
            json!({ "patch_length": 16 }),
            "`patch_stride`: must be patch_length (16)",
        ),
        (
            json!({ "d_model": 22, "adaptive_patching_levels": 3 }),
            "`adaptive_patching_levels`",
        ),
        (
            json!({ "exogenous_channel_indices": [0], "enable_forecast_channel_mixing": true }),
            "leave no channel to forecast",
        ),
        (
            json!({ "num_input_channels": 2, "exogenous_channel_indices": [0] }),
            "switch it on",
        ),
        (
            json!({ "prediction_filter_length": 17 }),
            "at most prediction_length (16), got 17",
        ),
    ] {
        let message = read(config).expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    }
    let small = TtmConfig {
        context_length: 18,
        patch_length: 4,
        num_input_channels: 2,
        prediction_length: 5,
        d_model: 8,
        adaptive_patching_levels: 0,
        decoder_d_model: 8,
        resolution_prefix_tuning: true,
        enable_forecast_channel_mixing: true,
        exogenous_channel_indices: Some(vec![1]),
        ..TtmConfig::default()
    };
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || small.build(&vs.root()))?;
    let (past, future) = (
        Tensor::randn([2, 18, 2], tch::kind::FLOAT_CPU),
        Tensor::randn([2, 5, 2], tch::kind::FLOAT_CPU),
    );
    let token = Tensor::from_slice(&[0i64, 4]);
    let complaint = |past: &Tensor, token: Option<&Tensor>, future: Option<&Tensor>| {
        let aside = Aside {
            freq_token: token,
            future,
            observed: None,
        };
        match model.forward(past, aside, false) {
            Ok(_) => "fine".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(complaint(&past, Some(&token), Some(&future)), "fine");
    assert!(complaint(&past, None, Some(&future)).contains("`freq_token`"));
    assert!(complaint(&past, Some(&token), None).contains("`future`"));
    assert!(complaint(&past, Some(&(&token + 1)), Some(&future)).contains("numbers from 0 to 4"));
    assert!(complaint(&past.narrow(1, 0, 17), Some(&token), Some(&future)).contains("`past`"));
    assert!(complaint(&past, Some(&token), Some(&future.narrow(1, 0, 4))).contains("`future`"));
    // What stands in the future of a channel that is forecast is not read.
    let aside = |future| Aside {
        freq_token: Some(&token),
        future: Some(future),
        observed: None,
    };
    let [ys, _, _] = model.forward(&past, aside(&future), false)?;
    let other = Tensor::cat(&[future.narrow(2, 0, 1) + 7.0, future.narrow(2, 1, 1)], 2);
    let [again, _, _] = model.forward(&past, aside(&other), false)?;
    densely_testkit::assert_bits(&again, &ys);
    Ok(())
}

#[test]
fn a_folder_that_transformers_saved_loads_as_it_is() -> Result<()> {
    let folder = format!("{HERE}/tests/saved_by_transformers");
    let text = std::fs::read_to_string(format!("{folder}/config.json")).expect("config.json");
    let config = PatchTsMixerConfig::from_transformers(
        &serde_json::from_str(&text).expect("JSON"),
        Head::Forecast,
    )?;
    let vs = VarStore::new(Device::Cpu);
    let model = seeded(0, || config.build(&vs.root()))?;
    weights::load(
        &vs,
        format!("{folder}/model.safetensors").as_ref(),
        weights::same_name,
        Strictness::All,
    )?;
    let golden = Golden::open(HERE, "../saved_by_transformers/input");
    let ys = model.forward(&golden.tensor("input.past"), None, None, false)?;
    assert_close(
        &ys["forecast"],
        &golden.tensor("output.forecast"),
        1e-5,
        1e-6,
    );
    Ok(())
}

#[test]
fn what_a_saved_config_leaves_out_is_the_packages_default() -> Result<()> {
    let read = |config: Value| PatchTsMixerConfig::from_transformers(&config, Head::Forecast);
    let plain = read(json!({ "model_type": "patchtsmixer", "scaling": true }))?;
    assert_eq!(
        (
            plain.context_length,
            plain.d_model,
            plain.distribution_output
        ),
        (32, 8, None)
    );
    let likely = read(json!({ "loss": "nll" }))?;
    assert_eq!(likely.distribution_output, Some(Distribution::StudentT));
    let normal = read(json!({ "loss": "nll", "distribution_output": "normal" }))?;
    assert_eq!(normal.distribution_output, Some(Distribution::Normal));
    assert!(read(json!({ "model_type": "patchtst" })).is_err());
    Ok(())
}

#[test]
fn parameter_counts_are_the_packages() -> Result<()> {
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(format!("{HERE}/tests/goldens/{name}")).expect("counts");
        serde_json::from_str(&text).expect("JSON")
    };
    let rows = |value: &Value| value["models"].as_array().expect("a list").clone();
    let count = |preset: &str, config: &Value| -> Result<u64> {
        let preset = registry::find(PRESETS, preset)?;
        let vs = VarStore::new(Device::Cpu);
        let _model = seeded(0, || {
            (preset.build)(&preset.config_with(config)?, &vs.root())
        })?;
        Ok(nn::parameter_count(&vs))
    };
    let mixers = rows(&read("counts_tsmixer.json"));
    let patched = rows(&read("counts_patchtsmixer.json"));
    assert_eq!((mixers.len(), patched.len()), (5, 11));
    for row in rows(&read("counts_ttm.json")) {
        let config = TtmConfig::from_transformers(&row["transformers"])?;
        let config = serde_json::to_value(config).expect("JSON");
        assert_eq!(
            count("ttm-forecast", &config)?,
            row["params"].as_u64().expect("a number"),
            "{}",
            row["name"]
        );
    }
    for row in mixers {
        assert_eq!(
            count(row["model"].as_str().expect("a name"), &row["config"])?,
            row["params"].as_u64().expect("a number"),
            "{row}"
        );
    }
    for row in patched {
        let head: Head = parse_config(&row["head"])?;
        let config = PatchTsMixerConfig::from_transformers(&row["transformers"], head)?;
        let config = serde_json::to_value(config).expect("JSON");
        assert_eq!(
            count("patchtsmixer-forecast", &config)?,
            row["params"].as_u64().expect("a number"),
            "{}",
            row["name"]
        );
    }
    Ok(())
}
