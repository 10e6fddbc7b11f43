//! Every model against its reference package: outputs, loss, gradients, running averages, parameter counts.

use densely_core::registry::{self, Preset, parse_config};
use densely_core::weights::{self, Strictness};
use densely_core::{Result, Tensors, nn, seeded};
use densely_testkit::{Golden, assert_close};
use densely_timeseries::distributions::Distribution;
use densely_timeseries::models::PRESETS;
use densely_timeseries::patch_tsmixer::{Head, PatchTsMixerConfig, masked_loss};
use serde_json::{Value, json};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Names of the goldens that start with `prefix`.
fn goldens(prefix: &str) -> Vec<String> {
    let folder = std::fs::read_dir(format!("{HERE}/tests/goldens")).expect("the goldens' folder");
    let names = folder.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("a name")
    });
    let mut names: Vec<String> = names
        .filter_map(|name| Some(name.strip_suffix(".safetensors")?.to_owned()))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

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
    for xs in inputs.values_mut() {
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
    let names = goldens("tsmixer_");
    assert_eq!(
        names.len(),
        9,
        "a golden is missing or not listed: {names:?}"
    );
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

#[test]
fn patchtsmixers_equal_transformers() -> Result<()> {
    let names = goldens("patchtsmixer_");
    assert_eq!(
        names.len(),
        29,
        "a golden is missing or not listed: {names:?}"
    );
    for name in names {
        let loaded = run(&name)?;
        for (key, expected) in loaded.golden.group("output.") {
            assert_close(&loaded.outputs[&key], &expected, 1e-5, 1e-5);
        }
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
