//! Steps made ready for a recording give the bits of plain steps.

use densely_core::{Result, nn, seeded, weights};
use densely_train::optim::GroupRule;
use densely_train::{OptimConfig, Optimizer, StepGraph};
use tch::nn::{Module, VarStore};
use tch::{Device, Kind, Reduction, Tensor};

use crate::trainer::turn;

struct Trial {
    vs: VarStore,
    layers: [nn::Linear; 2],
    optimizer: Optimizer,
}

impl Trial {
    fn new(optim: &str) -> Result<Self> {
        let vs = VarStore::new(Device::Cpu);
        let layers = seeded(3, || {
            [
                nn::linear(&(vs.root() / "a"), 5, 16),
                nn::linear(&(vs.root() / "b"), 16, 1),
            ]
        });
        let optim: OptimConfig = serde_json::from_str(optim).expect("an optimiser");
        let rules = [GroupRule::new(
            |name, _| name.ends_with("bias"),
            0.5,
            Some(0.0),
        )];
        let optimizer = optim.build(&vs, &rules)?;
        Ok(Self {
            vs,
            layers,
            optimizer,
        })
    }

    /// Loss and norm of the gradient, all but the optimiser's step.
    fn backward(&mut self, x: &Tensor, y: &Tensor) -> Result<[Tensor; 2]> {
        let hidden = self.layers[0].forward(x).relu().dropout(0.3, true);
        let ys = self.layers[1].forward(&hidden).squeeze_dim(1);
        let loss = ys.mse_loss(y, Reduction::Mean);
        self.optimizer.zero_grad()?;
        loss.f_backward()?;
        Ok([loss.detach(), self.optimizer.clip_grad_norm(0.5)?])
    }

    /// A whole step, through a recording where there is one.
    fn staged(
        &mut self,
        graph: Option<&mut StepGraph>,
        inputs: &[Option<Tensor>],
    ) -> Result<Vec<Tensor>> {
        self.optimizer.stage()?;
        let mut work = |inputs: &[Option<Tensor>]| {
            let [Some(x), Some(y)] = inputs else {
                panic!("two inputs")
            };
            let outputs = self.backward(x, y)?;
            self.optimizer.apply()?;
            Ok(outputs.into())
        };
        match graph {
            Some(graph) => graph.run(inputs, &mut work),
            None => work(inputs),
        }
    }

    fn values(&self) -> Vec<Tensor> {
        let state = self.optimizer.state().into_values();
        weights::named(&self.vs)
            .into_values()
            .chain(state)
            .collect()
    }
}

/// Twelve steps with batches of 8 rows, every fifth of 3; the losses, norms, weights and the optimiser's state.
fn train(optim: &str, graph: Option<&mut StepGraph>) -> Result<Vec<Tensor>> {
    let _turn = turn();
    let mut trial = Trial::new(optim)?;
    let mut graph = graph;
    let mut said = Vec::new();
    for step in 0..12 {
        let rows = if step % 5 == 4 { 3 } else { 8 };
        let (x, y) = seeded(100 + step, || {
            let x = Tensor::randn([rows, 5], (Kind::Float, Device::Cpu));
            let y = x.sum_dim_intlist(1, false, Kind::Float);
            (x, y)
        });
        trial.optimizer.set_lr(0.05 / (1.0 + step as f64));
        said.extend(match &mut graph {
            None => {
                let outputs = seeded(step, || trial.backward(&x, &y))?;
                trial.optimizer.step()?;
                outputs.into_iter().collect::<Vec<_>>()
            }
            Some(graph) => seeded(step, || trial.staged(Some(graph), &[Some(x), Some(y)]))?,
        });
    }
    said.extend(trial.values());
    Ok(said)
}

#[test]
fn rehearsed_steps_give_the_bits_of_plain_ones() -> Result<()> {
    for optim in [
        r#"{"name":"adamw","lr":0.05,"weight_decay":0.1}"#,
        r#"{"name":"adam","lr":0.05,"weight_decay":0.1}"#,
        r#"{"name":"sgd","lr":0.05}"#,
        r#"{"name":"sgd","lr":0.05,"momentum":0.9,"dampening":0.3,"weight_decay":0.1}"#,
    ] {
        let plain = train(optim, None)?;
        let mut graph = StepGraph::rehearsal();
        let staged = train(optim, Some(&mut graph))?;
        assert!(graph.recorded());
        assert_eq!(plain.len(), staged.len());
        for (index, (plain, staged)) in plain.iter().zip(&staged).enumerate() {
            assert_eq!(plain, staged, "{optim}: tensor {index}");
        }
    }
    Ok(())
}

#[test]
fn a_step_that_cannot_be_repeated_is_refused_with_the_reason() -> Result<()> {
    let _turn = turn();
    let mut trial = Trial::new(r#"{"name":"adamw","lr":0.05}"#)?;
    // No backward pass: nothing to apply.
    trial.optimizer.stage()?;
    assert!(
        trial
            .optimizer
            .apply()
            .is_err_and(|e| e.to_string().contains("gradient"))
    );
    assert!(StepGraph::new(Device::Cpu).is_err_and(|e| e.to_string().contains("CUDA")));

    // A plain step that left some parameters out, as a first step does where they get no gradient.
    let mut trial = Trial::new(r#"{"name":"adamw","lr":0.05}"#)?;
    let bias = weights::named(&trial.vs).remove("a.bias").expect("a bias");
    bias.sum(Kind::Float).f_backward()?;
    trial.optimizer.step()?;
    assert!(
        trial
            .optimizer
            .stage()
            .is_err_and(|e| e.to_string().contains("numbers of steps"))
    );

    // Parameters that stand at different steps.
    let mut trial = Trial::new(r#"{"name":"adamw","lr":0.05}"#)?;
    let (x, y) = (
        Tensor::ones([4, 5], tch::kind::FLOAT_CPU),
        Tensor::ones([4], tch::kind::FLOAT_CPU),
    );
    let _ = trial.backward(&x, &y)?;
    trial.optimizer.step()?;
    let mut state = trial.optimizer.state();
    state.insert("a.bias.step".to_owned(), Tensor::from(7.0));
    trial.optimizer.load_state(&state)?;
    assert!(
        trial
            .optimizer
            .stage()
            .is_err_and(|e| e.to_string().contains("numbers of steps"))
    );
    Ok(())
}

#[test]
#[ignore = "needs CUDA"]
fn recorded_steps_follow_plain_ones_on_a_gpu() -> Result<()> {
    let _turn = turn();
    let device = densely_core::Device::Cuda(0).open()?;
    let run = |mut graph: Option<StepGraph>| -> Result<Vec<f64>> {
        let mut trial = Trial::new(r#"{"name":"adamw","lr":0.05,"weight_decay":0.1}"#)?;
        trial.vs.set_device(device);
        trial.optimizer = serde_json::from_str::<OptimConfig>(r#"{"name":"adamw","lr":0.05}"#)
            .expect("an optimiser")
            .build(&trial.vs, &[])?;
        let mut losses = Vec::new();
        for step in 0..20 {
            let x = seeded(step, || Tensor::randn([8, 5], (Kind::Float, device)));
            let y = x.sum_dim_intlist(1, false, Kind::Float);
            let outputs = seeded(step, || trial.staged(graph.as_mut(), &[Some(x), Some(y)]))?;
            losses.push(outputs[0].double_value(&[]));
        }
        assert!(graph.is_none_or(|graph| graph.recorded()));
        Ok(losses)
    };
    let (plain, recorded) = (run(None)?, run(Some(StepGraph::new(device)?))?);
    for (plain, recorded) in plain.iter().zip(&recorded) {
        assert!(
            (plain - recorded).abs() <= 1e-5 * plain.abs(),
            "{plain} {recorded}"
        );
    }
    Ok(())
}
