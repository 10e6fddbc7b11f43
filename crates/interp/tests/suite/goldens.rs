//! Noise against numpy, tracing and editing against the released algorithms on models of `transformers`, regressions against `statsmodels`.

use std::rc::Rc;

use densely_core::weights::{self, Strictness};
use densely_core::{Result, nn};
use densely_interp::edit::{
    Edit, EditHandle, FinetuneOptions, KeyMode, MemitOptions, Moments, Request, RomeOptions,
    StarOptions, TargetLoss, finetune, memit, rome,
};
use densely_interp::noise::RandomState;
use densely_interp::regress::{Design, fit};
use densely_interp::trace::{self, Prompt, Restore, Score, Trace, TraceOptions};
use densely_lm::{Lm, LmConfig};
use densely_testkit::{Golden, assert_close, assert_near, goldens};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A golden, the model that it names, and that model's parameters.
struct Case {
    golden: Golden,
    config: Value,
    model: Lm,
    _vs: VarStore,
}

impl Case {
    fn open(name: &str, kind: Kind) -> Result<Self> {
        let golden = Golden::open(HERE, name);
        let config = golden.config::<Value>();
        let weights = Golden::open(HERE, config["model"].as_str().unwrap_or_default());
        let vs = VarStore::new(Device::Cpu);
        let sizes = LmConfig::from_hugging(&weights.config::<Value>())?;
        let model = Lm::undrawn(sizes, &vs.root(), kind)?;
        nn::check_names(&vs)?;
        let values = weights.group("weight.");
        weights::load_tensors(&vs, weights.path(), &values, Strictness::All)?;
        Ok(Self {
            golden,
            config,
            model,
            _vs: vs,
        })
    }

    fn number(&self, field: &str) -> f64 {
        self.config[field].as_f64().expect(field)
    }

    fn whole(&self, field: &str) -> usize {
        self.number(field) as usize
    }

    fn ids(&self, name: &str) -> Result<Vec<i64>> {
        Ok(Vec::try_from(&self.golden.tensor(name))?)
    }
}

/// How near two computations in f64 come.
const NEAR: f64 = 1e-10;

fn range(value: &Value) -> std::ops::Range<usize> {
    let end = |i: usize| value[i].as_u64().expect("a range") as usize;
    end(0)..end(1)
}

fn scalar(value: f64) -> Tensor {
    Tensor::from(value)
}

/// As many numbers of a fresh generator as the golden `{seed}.{name}` holds.
fn assert_drawn(
    golden: &Golden,
    seed: u32,
    name: &str,
    draw: impl Fn(&mut RandomState) -> Result<f64>,
) -> Result<()> {
    let expected = golden.tensor(&format!("{seed}.{name}"));
    let mut random = RandomState::new(seed);
    let values = (0..expected.numel()).map(|_| draw(&mut random));
    let values = values.collect::<Result<Vec<f64>>>()?;
    assert_close(&Tensor::from_slice(&values), &expected, 1e-13, 0.0);
    Ok(())
}

#[test]
fn noise_equals_numpy() -> Result<()> {
    let golden = Golden::open(HERE, "noise");
    for seed in [1, 2, 7, u32::MAX] {
        assert_drawn(&golden, seed, "randn", |random| Ok(random.normal()))?;
        assert_drawn(&golden, seed, "uniform", |random| {
            Ok(random.uniform(-1.0, 1.0))
        })?;
        for degrees in [1.0, 2.0, 3.0, 5.5] {
            let name = format!("standard_t.{degrees}");
            assert_drawn(&golden, seed, &name, |random| random.student(degrees))?;
            let name = format!("chisquare.{degrees}");
            assert_drawn(&golden, seed, &name, |random| random.chi_square(degrees))?;
        }
        let mut random = RandomState::new(seed);
        for (name, count) in [("randn_odd", 7), ("then", 5)] {
            let expected = golden.tensor(&format!("{seed}.{name}"));
            assert_close(&random.randn(&[count])?, &expected, 1e-13, 0.0);
        }
        let mut random = RandomState::new(seed);
        for expected in Vec::<i64>::try_from(&golden.tensor(&format!("{seed}.words")))? {
            assert_eq!(i64::from(random.word()), expected);
        }
    }
    Ok(())
}

type Tracer = fn(&Lm, &Prompt, &Tensor, &TraceOptions) -> Result<Trace>;

fn assert_grid(trace: &Trace, kind: Restore, expected: &Tensor, tolerance: f64) {
    let cells: Vec<f64> = trace.scores[&kind].iter().flatten().copied().collect();
    let grid = Tensor::from_slice(&cells).reshape(expected.size());
    assert_near(&grid, expected, tolerance);
}

fn traces_equal(name: &str, kind: Kind, tracer: Tracer) -> Result<()> {
    let case = Case::open(name, kind)?;
    let golden = &case.golden;
    let near = if kind == Kind::Double { NEAR } else { 3e-5 };
    let subject = range(&case.config["subject"]);
    let prompt = Prompt::from_ids(case.ids("input.ids")?, subject.clone(), Vec::new())?;
    let noise = golden.tensor("noise") * case.number("sd");
    for (key, expected) in golden.group("scores.") {
        let (restored, window) = key.rsplit_once('.').expect("a kind and a window");
        let restored: Restore = restored.parse()?;
        let options = TraceOptions {
            kinds: vec![restored],
            window: window.parse().expect("a number"),
            ..TraceOptions::default()
        };
        let trace = tracer(&case.model, &prompt, &noise, &options)?;
        assert_eq!(trace.answer_ids, case.ids("answer")?);
        assert_near(&scalar(trace.high), &golden.tensor("high"), near);
        assert_near(&scalar(trace.low), &golden.tensor("low"), near);
        assert_grid(&trace, restored, &expected, near);
    }

    let blocks = TraceOptions {
        kinds: vec![Restore::Block],
        ..TraceOptions::default()
    };
    let replacing = TraceOptions {
        replace: true,
        ..blocks.clone()
    };
    let uniform = golden.tensor("uniform.noise") * case.number("sd");
    for (part, options, noise) in [
        ("replaced", &replacing, &noise),
        ("uniform", &blocks, &uniform),
    ] {
        let trace = tracer(&case.model, &prompt, noise, options)?;
        let low = golden.tensor(&format!("{part}.low"));
        assert_near(&scalar(trace.low), &low, near);
        let grid = golden.tensor(&format!("{part}.block"));
        assert_grid(&trace, Restore::Block, &grid, near);
    }

    let target = case.ids("forced.target")?;
    let prompt = Prompt::from_ids(case.ids("input.ids")?, subject, target)?;
    let options = TraceOptions {
        kinds: vec![Restore::Block, Restore::Mlp, Restore::Attention],
        window: 3,
        score: Score::Product,
        ..TraceOptions::default()
    };
    let trace = tracer(&case.model, &prompt, &noise, &options)?;
    assert_near(&scalar(trace.high), &golden.tensor("forced.high"), near);
    assert_near(&scalar(trace.low), &golden.tensor("forced.low"), near);
    for (kind, key) in [
        (Restore::Block, "forced.block.1"),
        (Restore::Mlp, "forced.mlp.3"),
        (Restore::Attention, "forced.attn.3"),
    ] {
        assert_grid(&trace, kind, &golden.tensor(key), near);
    }
    Ok(())
}

#[test]
fn traces_equal_one_pass_for_each_cell() -> Result<()> {
    for name in goldens(HERE, "trace_", 2) {
        for kind in [Kind::Float, Kind::Double] {
            traces_equal(&name, kind, trace::trace_with)?;
            traces_equal(&name, kind, trace::plain::trace_with)?;
        }
    }
    Ok(())
}

impl Case {
    /// The prefixes `{stem}.0`, `{stem}.1` …, of which there are `count`.
    fn prefixes(&self, stem: &str, count: usize) -> Result<Vec<Vec<i64>>> {
        (0..count)
            .map(|i| self.ids(&format!("{stem}.{i}")))
            .collect()
    }

    /// The request whose tensors end in `suffix`.
    fn request(
        &self,
        subject: &Value,
        suffix: &str,
        prefixes: &[Vec<Vec<i64>>],
    ) -> Result<Request> {
        let place = self.ids(&format!("kl_subject{suffix}"))?[0] as usize;
        Request::from_ids(
            &self.ids(&format!("prompt{suffix}"))?,
            range(subject),
            &self.ids(&format!("target{suffix}"))?,
            Some((&self.ids(&format!("kl_prompt{suffix}"))?, place)),
            prefixes,
        )
    }

    fn star(&self) -> StarOptions {
        StarOptions {
            lr: self.number("lr"),
            steps: self.whole("steps"),
            clamp: self.number("clamp"),
            kl_factor: self.number("kl_factor"),
            weight_decay: self.number("weight_decay"),
            ..StarOptions::default()
        }
    }

    /// Logits behind the prompt `name`.
    fn after(&self, name: &str) -> Result<Tensor> {
        let ids = self.golden.tensor(name).unsqueeze(0);
        let logits = tch::no_grad(|| self.model.forward(&ids))?;
        Ok(logits.select(0, 0).select(0, -1))
    }

    /// How near an edit comes that was searched for in steps.
    fn edit_tolerance(&self) -> f64 {
        if self.model.kind() == Kind::Double {
            10.0 * NEAR
        } else {
            1e-4
        }
    }
}

/// The change of the only parameter.
fn delta(edit: &Edit) -> Result<Tensor> {
    assert_eq!(edit.changes.len(), 1);
    edit.changes[0].delta.tensor()
}

fn rome_equals(name: &str, kind: Kind) -> Result<()> {
    let case = Case::open(name, kind)?;
    let golden = &case.golden;
    let near = case.edit_tolerance();
    let prefixes = case.prefixes("prefix", 4)?;
    let request = case.request(&case.config["subject"], "", &[prefixes])?;
    let moments = Moments::from_tensor(&golden.tensor("moments"), 1)?;
    let mut options = RomeOptions::new(case.whole("layer"));
    options.star = case.star();
    for (mode, key) in [
        ("reference", KeyMode::Reference),
        ("averaged", KeyMode::Averaged),
    ] {
        options.key = key;
        let found = rome(&case.model, &request, &moments, &options)?;
        let losses = golden.tensor("loss");
        assert_eq!(found.losses.len(), losses.numel(), "{name}");
        assert_near(&Tensor::from_slice(&found.losses), &losses, near);
        assert_near(&found.averaged_key, &golden.tensor("averaged_key"), near);
        assert_near(&found.u, &golden.tensor("u"), near);
        assert_near(&found.initial, &golden.tensor("v0"), near);
        assert_near(&found.star, &golden.tensor("v_star"), near);
        let value = golden.tensor(&format!("{mode}.value"));
        assert_near(&found.value, &value, near);
        let change = golden.tensor(&format!("{mode}.delta"));
        assert_near(&delta(&found.edit)?, &change, near);

        let mut handle = EditHandle::apply(&case.model, found.edit)?;
        let logits = golden.tensor(&format!("after.logits.{mode}"));
        assert_near(&case.after("prompt")?, &logits, near);
        handle.undo(&case.model)?;
        assert!(handle.is_as_before(&case.model)?);
    }

    // Without moments the change is along the key itself.
    let plain = Moments::identity(moments.width())?;
    let found = rome(&case.model, &request, &plain, &options)?;
    assert_near(&found.u, &golden.tensor("plain_u"), near);
    Ok(())
}

#[test]
fn rome_equals_the_released_algorithm() -> Result<()> {
    for name in goldens(HERE, "rome_", 4) {
        for kind in [Kind::Float, Kind::Double] {
            rome_equals(&name, kind)?;
        }
    }
    Ok(())
}

#[test]
fn memit_equals_the_released_algorithm() -> Result<()> {
    for kind in [Kind::Float, Kind::Double] {
        let case = Case::open("memit", kind)?;
        let golden = &case.golden;
        let near = case.edit_tolerance();
        let prefixes = [case.prefixes("prefix.0", 1)?, case.prefixes("prefix.1", 3)?];
        let requests = [
            case.request(&case.config["subjects"][0], ".0", &prefixes)?,
            case.request(&case.config["subjects"][1], ".1", &prefixes)?,
        ];
        let mut options = MemitOptions::new(layers_of(&case), case.number("lambda"));
        options.star = case.star();
        let mut moments = |layer: usize| -> Result<Rc<Moments>> {
            let matrix = golden.tensor(&format!("moments.{layer}"));
            Ok(Rc::new(Moments::from_tensor(&matrix, 1)?))
        };
        let found = memit(&case.model, &requests, &mut moments, &options)?;
        assert_near(&found.star, &golden.tensor("z"), near);
        assert_near(&found.initial, &golden.tensor("z0"), near);
        for (r, losses) in found.losses.iter().enumerate() {
            let expected = golden.tensor(&format!("loss.{r}"));
            assert_near(&Tensor::from_slice(losses), &expected, near);
        }
        assert_eq!(found.edit.changes.len(), options.layers.len());
        for (step, change) in found.steps.iter().zip(&found.edit.changes) {
            let expected = |part: &str| golden.tensor(&format!("{part}.{}", step.layer));
            assert_near(&step.keys, &expected("keys"), near);
            assert_near(&step.residual, &expected("residual"), near);
            assert_near(&change.delta.tensor()?, &expected("delta"), near);
        }
        let _handle = EditHandle::apply(&case.model, found.edit)?;
        let logits = golden.tensor("after.logits");
        for r in 0..2 {
            let after = case.after(&format!("prompt.{r}"))?;
            assert_near(&after, &logits.select(0, r), near);
        }
    }
    Ok(())
}

fn layers_of(case: &Case) -> Vec<usize> {
    let layers = case.config["layers"].as_array().expect("layers");
    let layer = |layer: &Value| layer.as_u64().expect("a layer") as usize;
    layers.iter().map(layer).collect()
}

#[test]
fn finetuning_equals_torch() -> Result<()> {
    for name in goldens(HERE, "finetune_", 6) {
        let case = Case::open(&name, Kind::Double)?;
        let golden = &case.golden;
        let count = golden.group("prompt.").len();
        let requests = (0..count)
            .map(|r| {
                let prompt = case.ids(&format!("prompt.{r}"))?;
                let target = case.ids(&format!("target.{r}"))?;
                Request::from_ids(&prompt, 0..1, &target, None, &[vec![Vec::new()]])
            })
            .collect::<Result<Vec<_>>>()?;
        let options = FinetuneOptions {
            lr: case.number("lr"),
            steps: case.whole("steps"),
            loss: match case.config["loss"].as_str() {
                Some("single_position") => TargetLoss::SinglePosition,
                Some("sequence_mean") => TargetLoss::SequenceMean,
                _ => TargetLoss::SequenceSum,
            },
            bias: case.config["bias"] == Value::Bool(true),
            ..FinetuneOptions::new(vec![case.whole("layer")], case.config["clamp"].as_f64())
        };
        let found = finetune(&case.model, &requests, &options)?;
        let losses = golden.tensor("loss");
        assert_eq!(found.losses.len(), losses.numel(), "{name}");
        assert_near(&Tensor::from_slice(&found.losses), &losses, 1e-9);
        assert_eq!(found.edit.changes.len(), 1 + usize::from(options.bias));
        for change in &found.edit.changes {
            let part = if change.name.ends_with("bias") {
                "bias_delta"
            } else {
                "delta"
            };
            assert_near(&change.delta.tensor()?, &golden.tensor(part), 1e-9);
        }
    }
    Ok(())
}

#[test]
fn regressions_equal_statsmodels() -> Result<()> {
    for name in goldens(HERE, "regress_", 3) {
        let golden = Golden::open(HERE, &name);
        let layers = Vec::<i64>::try_from(&golden.tensor("layer"))?;
        let layers: Vec<usize> = layers.into_iter().map(|layer| layer as usize).collect();
        let fractions = Vec::<f64>::try_from(&golden.tensor("fraction"))?;
        let scores = Vec::<f64>::try_from(&golden.tensor("score"))?;
        let close = |key: &str, value: f64| {
            let what = format!("{name}: {key}");
            let expected = golden.tensor(key).double_value(&[]);
            let error = (value - expected).abs();
            assert!(
                error <= 1e-8 * expected.abs(),
                "{what}: {value}, {expected}"
            );
        };
        let smaller = fit(Design::Layer, &layers, &fractions, &scores)?;
        for (key, design) in [
            ("layer", Design::Layer),
            ("fraction", Design::Trace),
            ("sum", Design::Sum),
            ("product", Design::Product),
        ] {
            let found = fit(design, &layers, &fractions, &scores)?;
            assert!(found.dropped.is_empty());
            for (part, value) in [
                ("r2", found.r2),
                ("adjusted_r2", found.adjusted_r2),
                ("f", found.f),
                ("p", found.p),
                ("df_model", Some(found.df_model as f64)),
                ("df_residual", Some(found.df_residual as f64)),
            ] {
                close(&format!("{key}.{part}"), value.expect(part));
            }
            let coefficients: Vec<f64> = found.coefficients.iter().map(|(_, c)| *c).collect();
            let expected = golden.tensor(&format!("{key}.coefficients"));
            assert_near(&Tensor::from_slice(&coefficients), &expected, 1e-9);
            if matches!(design, Design::Sum | Design::Product) {
                let nested = found.over(&smaller)?.expect("further columns");
                close(&format!("{key}_over_layer.f"), nested.f);
                close(&format!("{key}_over_layer.p"), nested.p);
                close(&format!("{key}_over_layer.df"), nested.df as f64);
            }
        }
    }
    Ok(())
}
