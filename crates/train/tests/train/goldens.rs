//! Optimisers and schedules against `torch.optim`.

use std::collections::BTreeMap;

use densely_testkit::{Golden, assert_close};
use densely_train::{Direction, GradScaler, GroupRule, OptimConfig, Optimizer, ScheduleConfig};
use serde::Deserialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Group {
    suffix: String,
    lr_scale: f64,
    weight_decay: Option<f64>,
}

#[derive(Deserialize)]
struct OptimCase {
    optim: OptimConfig,
    clip: Option<f64>,
    groups: Vec<Group>,
    lr_decay: f64,
}

const KEPT: [i64; 6] = [1, 2, 10, 11, 25, 50];
const LATE: i64 = 10;

struct Trial {
    vs: VarStore,
    opt: Optimizer,
    grads: BTreeMap<String, Tensor>,
    clip: Option<f64>,
    lr: f64,
    lr_decay: f64,
}

impl Trial {
    fn new(golden: &Golden, case: &OptimCase) -> Self {
        let vs = VarStore::new(Device::Cpu);
        for (name, start) in golden.group("weight.") {
            let _ = vs.root().var_copy(&name, &start);
        }
        let rules: Vec<GroupRule> = case
            .groups
            .iter()
            .map(|group| {
                let suffix = group.suffix.clone();
                let matches = move |name: &str, _: &Tensor| name.ends_with(&suffix);
                GroupRule::new(matches, group.lr_scale, group.weight_decay)
            })
            .collect();
        let opt = case.optim.build(&vs, &rules).unwrap();
        let (lr, grads) = (opt.lr(), golden.group("grad."));
        Self {
            vs,
            opt,
            grads,
            clip: case.clip,
            lr,
            lr_decay: case.lr_decay,
        }
    }

    /// One step with the golden's gradients; the norm before clipping.
    fn step(&mut self, step: i64) -> Option<Tensor> {
        self.opt.zero_grad().unwrap();
        for (name, param) in densely_core::weights::named(&self.vs) {
            if name != "late" || step >= LATE {
                (param * self.grads[&name].get(step))
                    .sum(Kind::Float)
                    .backward();
            }
        }
        self.opt.set_lr(self.lr * self.lr_decay.powf(step as f64));
        let norm = self.clip.map(|clip| self.opt.clip_grad_norm(clip).unwrap());
        self.opt.step().unwrap();
        norm
    }
}

/// Largest distance in units of the last place.
fn ulps(actual: &Tensor, expected: &Tensor) -> i64 {
    // Floats of one sign are ordered as their bits are.
    let bits = |xs: &Tensor| xs.contiguous().view_dtype(Kind::Int).to_kind(Kind::Int64);
    (bits(actual) - bits(expected)).abs().max().int64_value(&[])
}

#[test]
fn fifty_steps_of_every_option_equal_torch_optim() {
    check_fifty_steps(false);
}

#[test]
fn fifty_fused_steps_of_every_option_equal_torch_optim_fused() {
    check_fifty_steps(true);
}

/// Whether libtorch's square root gives the nearest number, as on the processor that the goldens are from: on others it is MKL's, which may be the
/// one beside.
fn roots_are_rounded() -> bool {
    let squares: Vec<f32> = (0..200_000).map(|i| i as f32 + 0.37).collect();
    let roots: Vec<f32> = squares.iter().map(|x| x.sqrt()).collect();
    Tensor::from_slice(&squares).sqrt() == Tensor::from_slice(&roots)
}

fn check_fifty_steps(fused: bool) {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "optim");
    let kernels = if fused { ".fused" } else { "" };
    let mut report = Vec::new();
    for (label, case) in golden.config::<BTreeMap<String, OptimCase>>() {
        let mut trial = Trial::new(&golden, &case);
        trial.opt.set_fused(fused);
        let mut norms = Vec::new();
        let mut worst = 0;
        for step in 0..50 {
            norms.extend(trial.step(step));
            if let Some(row) = KEPT.iter().position(|kept| *kept == step + 1) {
                for (name, param) in densely_core::weights::named(&trial.vs) {
                    let expected = golden
                        .tensor(&format!("{label}{kernels}.output.{name}"))
                        .get(row as i64);
                    worst = worst.max(ulps(&param.detach(), &expected));
                    assert_close(&param, &expected, 2e-7, 2e-7);
                }
            }
        }
        if let Some(clip) = case.clip {
            assert!(clip > 0.0);
            assert_close(
                &Tensor::stack(&norms, 0),
                &golden.tensor(&format!("{label}.norm")),
                0.0,
                0.0,
            );
        }
        let state = trial.opt.state();
        let expected = golden.group(&format!("{label}.state."));
        for (name, expected) in &expected {
            assert_close(&state[name], expected, 1e-6, 1e-7);
        }
        // torch keeps no step for SGD.
        let extra = state.keys().filter(|name| {
            !expected.contains_key(*name) && name.rsplit('.').next() != Some("step")
        });
        assert_eq!(extra.count(), 0, "{label}");
        report.push((label, worst));
    }
    // Elsewhere the bits of the golden cannot come out, and the distance above stands alone.
    if roots_are_rounded() {
        for (label, worst) in &report {
            assert!(
                *worst <= 1,
                "largest distance in units of the last place: {report:?} ({label})"
            );
        }
    }
}

#[test]
fn the_order_of_axes_in_memory_changes_no_step() {
    let cpu = (Kind::Float, Device::Cpu);
    // Whole vectors: what is left beside them is rounded otherwise, and would be other values in another order.
    let first = densely_core::seeded(3, || Tensor::randn([8, 16], cpu));
    let wanted = densely_core::seeded(4, || Tensor::randn([8, 16], cpu));
    let stores = [first.copy(), first.tr().contiguous().tr()].map(|value| {
        let vs = VarStore::new(Device::Cpu);
        let param = densely_core::nn::parameter(&vs.root(), "w", &value);
        (vs, param)
    });
    assert_ne!(stores[0].1.stride(), stores[1].1.stride());
    for name in ["adam", "adamw", "sgd"] {
        let config: OptimConfig =
            serde_json::from_value(serde_json::json!({ "name": name, "lr": 0.1 })).unwrap();
        let ends = stores.each_ref().map(|(vs, param)| {
            let mut opt = config.build(vs, &[]).unwrap();
            for step in 0..6 {
                if step == 3 {
                    let state = opt.state();
                    opt = config.build(vs, &[]).unwrap();
                    opt.load_state(&state).unwrap();
                }
                opt.zero_grad().unwrap();
                (param - &wanted).square().sum(Kind::Float).backward();
                opt.step().unwrap();
            }
            param.detach().contiguous()
        });
        assert_ne!(ends[0], first, "{name}");
        assert_eq!(ends[0], ends[1], "{name}");
    }
}

#[test]
fn a_saved_state_goes_on_in_the_same_bits() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "optim");
    for (label, case) in golden.config::<BTreeMap<String, OptimCase>>() {
        let mut whole = Trial::new(&golden, &case);
        (0..50).for_each(|step| drop(whole.step(step)));
        for cut in [0, 5, 11, 30] {
            let mut first = Trial::new(&golden, &case);
            (0..cut).for_each(|step| drop(first.step(step)));
            let mut second = Trial::new(&golden, &case);
            second.opt.load_state(&first.opt.state()).unwrap();
            tch::no_grad(|| {
                for (name, mut param) in densely_core::weights::named(&second.vs) {
                    param.copy_(&densely_core::weights::named(&first.vs)[&name]);
                }
            });
            (cut..50).for_each(|step| drop(second.step(step)));
            assert_eq!(
                second.opt.state(),
                whole.opt.state(),
                "{label} cut at {cut}"
            );
            for (name, param) in densely_core::weights::named(&second.vs) {
                assert_eq!(
                    param,
                    densely_core::weights::named(&whole.vs)[&name],
                    "{label} {name}"
                );
            }
        }
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_with_all_its_problems() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "optim");
    let case = &golden.config::<BTreeMap<String, OptimCase>>()["adamw"];
    let mut trial = Trial::new(&golden, case);
    (0..12).for_each(|step| drop(trial.step(step)));
    let mut state = trial.opt.state();
    state.remove("bias.exp_avg");
    state.insert("late.exp_avg_sq".to_owned(), Tensor::from(1.0f32));
    state.insert("weight.momentum_buffer".to_owned(), Tensor::from(1.0f32));
    let before = trial.opt.state();
    let error = trial.opt.load_state(&state).unwrap_err().to_string();
    assert_eq!(
        error,
        "setting `optim`: the saved state does not fit: bias.exp_avg is missing; \
         late.exp_avg_sq has shape [] instead of [2, 2]; weight.momentum_buffer is unexpected"
    );
    assert_eq!(trial.opt.state(), before);
}

#[test]
fn clipping_without_any_gradient_gives_zero_and_nonsense_is_refused() {
    let vs = VarStore::new(Device::Cpu);
    assert!(OptimConfig::default().build(&vs, &[]).is_err());
    let _ = vs.root().zeros("w", &[2]);
    let mut opt = OptimConfig::default().build(&vs, &[]).unwrap();
    opt.zero_grad().unwrap();
    assert_eq!(opt.clip_grad_norm(1.0).unwrap().double_value(&[]), 0.0);
    opt.step().unwrap();
    for max_norm in [0.0, -1.0, f64::NAN] {
        assert!(opt.clip_grad_norm(max_norm).is_err());
    }
    for text in [
        r#"{"name":"adamw","lr":-1}"#,
        r#"{"name":"adam","betas":[1.0,0.9]}"#,
        r#"{"name":"sgd","nesterov":true}"#,
        r#"{"name":"sgd","weight_decay":-0.1}"#,
    ] {
        let config: OptimConfig = serde_json::from_str(text).unwrap();
        assert!(config.build(&vs, &[]).is_err(), "{text}");
    }
    for text in [
        r#"{"name":"lion"}"#,
        r#"{"name":"sgd","betas":[0.9,0.9]}"#,
        r#"{"lr":1}"#,
    ] {
        assert!(serde_json::from_str::<OptimConfig>(text).is_err(), "{text}");
    }
}

#[derive(Deserialize)]
struct ScheduleCase {
    schedule: ScheduleConfig,
    lr: f64,
    steps: u64,
    steps_per_epoch: u64,
    direction: Option<Direction>,
}

#[test]
fn schedules_equal_torch_lr_schedulers_at_every_step() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "schedules");
    for (label, case) in golden.config::<BTreeMap<String, ScheduleCase>>() {
        let mut schedule = case
            .schedule
            .bind(case.lr, case.steps, case.steps_per_epoch)
            .unwrap();
        let scores = case
            .direction
            .map(|_| golden.tensor(&format!("{label}.scores")));
        let mut rates = Vec::new();
        for step in 0..case.steps {
            rates.push(schedule.at(step));
            if let (Some(direction), Some(scores)) = (case.direction, &scores) {
                schedule.observe(scores.double_value(&[step as i64]), direction);
                // A round trip through its kept state changes nothing.
                let state = serde_json::to_string(&schedule.state()).unwrap();
                schedule = case
                    .schedule
                    .bind(case.lr, case.steps, case.steps_per_epoch)
                    .unwrap();
                schedule.load_state(serde_json::from_str(&state).unwrap());
            }
        }
        // The reference multiplies step after step, which rounds a hundred times.
        let expected = golden.tensor(&format!("{label}.lr"));
        assert_close(&Tensor::from_slice(&rates), &expected, 1e-12, 1e-17);
    }
}

#[test]
fn warmup_climbs_in_a_line_and_hands_over() {
    let config: ScheduleConfig =
        serde_json::from_str(r#"{"name":"cosine","warmup_steps":4}"#).unwrap();
    let schedule = config.bind(1.0, 104, 1).unwrap();
    let rates: Vec<f64> = (0..6).map(|step| schedule.at(step)).collect();
    assert_eq!(rates[..5], [0.2, 0.4, 0.6, 0.8, 1.0]);
    let plain = ScheduleConfig {
        warmup_steps: 0,
        ..config.clone()
    }
    .bind(1.0, 100, 1)
    .unwrap();
    for step in 0..120 {
        assert_eq!(schedule.at(step + 4).to_bits(), plain.at(step).to_bits());
    }
    assert!(config.bind(1.0, 4, 1).is_err());
}

#[test]
fn schedule_settings_survive_toml_and_unknown_ones_are_refused() {
    let config: ScheduleConfig =
        toml::from_str("name = \"one_cycle\"\nwarmup_steps = 3\npct_start = 0.2\n").unwrap();
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<ScheduleConfig>(&text).unwrap(), config);
    assert!(toml::from_str::<ScheduleConfig>("name = \"constant\"\n").is_ok());
    for (text, names) in [
        ("name = \"cosine\"\nwarmup = 3\n", "warmup"),
        ("name = \"cosin\"\n", "cosin"),
        ("name = \"step\"\n", "every"),
        ("name = \"cosine\"\nwarmup_steps = -1\n", "warmup_steps"),
    ] {
        let error = toml::from_str::<ScheduleConfig>(text)
            .unwrap_err()
            .to_string();
        assert!(error.contains(names), "{text}: {error}");
    }
    let bad: ScheduleConfig = toml::from_str("name = \"plateau\"\nfactor = 1.5\n").unwrap();
    assert!(
        bad.bind(0.1, 10, 1)
            .unwrap_err()
            .to_string()
            .contains("schedule.factor")
    );
}

#[test]
fn the_loss_scaler_skips_shrinks_and_grows_as_torch_does() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "scaler");
    let interval = golden.config::<BTreeMap<String, u32>>()["growth_interval"];
    let vs = VarStore::new(Device::Cpu);
    let param = vs.root().var_copy("weight", &golden.tensor("weight"));
    let config: OptimConfig = serde_json::from_str(r#"{"name":"sgd","lr":0.1}"#).unwrap();
    let mut opt = config.build(&vs, &[]).unwrap();
    let mut scaler = GradScaler::with_growth_interval(interval);
    let (mut skipped, grads) = (0, golden.tensor("grad"));
    for step in 0..grads.size()[0] {
        opt.zero_grad().unwrap();
        let loss = (&param * grads.get(step)).sum(Kind::Float);
        scaler.scale_loss(&loss).backward();
        if scaler.unscale(&mut opt, step as u64).unwrap() {
            opt.step().unwrap();
        } else {
            skipped += 1;
        }
        let expected = golden.tensor("scale").get(step).double_value(&[]);
        assert_eq!(f64::from(scaler.scale()), expected, "after step {step}");
        assert_close(
            &param.detach(),
            &golden.tensor("output").get(step),
            1e-6,
            1e-7,
        );
    }
    assert_eq!(skipped, 4);
    let saved = serde_json::to_string(&scaler).unwrap();
    assert_eq!(serde_json::from_str::<GradScaler>(&saved).unwrap(), scaler);
}
