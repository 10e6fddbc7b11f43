"""Goldens of the learning-rate schedules: the rate that `torch.optim.lr_scheduler` gives at each step.

Writes crates/train/tests/goldens/schedules.safetensors. Keys:
  <case>.lr       rates of all steps (f64)
  <case>.scores   score told after each epoch (plateau; one step is one epoch there)
Metadata `config`: {case: {"schedule": ScheduleConfig, "lr", "steps", "steps_per_epoch", "direction"}}. Schedules that count epochs
are stepped once per epoch.
"""

import torch
from common import goldens, randn, save, setup
from torch.optim import lr_scheduler as s

LR = 0.03


def case(name, build, steps=100, steps_per_epoch=1, direction=None, **options):
    return {"schedule": {"name": name, **options}, "lr": LR, "steps": steps, "steps_per_epoch": steps_per_epoch, "direction": direction}, build


def one_cycle(**options):
    return lambda o: s.OneCycleLR(o, max_lr=LR, total_steps=100, cycle_momentum=False, **options)


def plateau(mode, **options):
    return lambda o: s.ReduceLROnPlateau(o, mode=mode, **options)


PLATEAU = {"factor": 0.5, "patience": 2, "threshold": 0.01, "cooldown": 3, "min_lr": 1e-3}
CASES = {
    "constant": case("constant", lambda o: s.LambdaLR(o, lambda _: 1.0)),
    "cosine": case("cosine", lambda o: s.CosineAnnealingLR(o, T_max=100)),
    "cosine_min": case("cosine", lambda o: s.CosineAnnealingLR(o, T_max=100, eta_min=1e-3), min_lr=1e-3),
    "step": case("step", lambda o: s.StepLR(o, step_size=3), steps_per_epoch=10, every=3),
    "step_factor": case("step", lambda o: s.StepLR(o, step_size=7, gamma=0.7), every=7, factor=0.7),
    "multistep": case("multistep", lambda o: s.MultiStepLR(o, [2, 5, 8], gamma=0.2), steps_per_epoch=10, milestones=[2, 5, 8], factor=0.2),
    "linear": case("linear", lambda o: s.LinearLR(o, start_factor=1.0, end_factor=0.25, total_iters=100), end_factor=0.25),
    "linear_up": case("linear", lambda o: s.LinearLR(o, start_factor=0.1, end_factor=1.0, total_iters=100), start_factor=0.1, end_factor=1.0),
    "polynomial": case("polynomial", lambda o: s.PolynomialLR(o, total_iters=100, power=2.0), power=2.0),
    "one_cycle": case("one_cycle", one_cycle()),
    "one_cycle_linear": case(
        "one_cycle",
        one_cycle(pct_start=0.15, div_factor=10.0, final_div_factor=100.0, anneal_strategy="linear"),
        pct_start=0.15,
        div_factor=10.0,
        final_div_factor=100.0,
        anneal="linear",
    ),
    "plateau_lower": case("plateau", plateau("min", **PLATEAU), direction="lower", **PLATEAU),
    "plateau_higher": case("plateau", plateau("max", **PLATEAU), direction="higher", **PLATEAU),
    "plateau_absolute": case("plateau", plateau("max", threshold_mode="abs", **PLATEAU), direction="higher", absolute=True, **PLATEAU),
    "plateau_defaults": case("plateau", plateau("min"), direction="lower"),
}


def main() -> None:
    setup()
    tensors = {}
    for label, (config, build) in CASES.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
        scheduler = build(optimizer)
        scores = (randn(config["steps"], seed=3).double().abs() + 1.0) * torch.linspace(2.0, 1.0, config["steps"], dtype=torch.float64)
        rates = []
        for step in range(config["steps"]):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if config["direction"]:
                scheduler.step(scores[step].item())
            elif (step + 1) % config["steps_per_epoch"] == 0 and step + 1 < config["steps"]:
                scheduler.step()
        tensors[f"{label}.lr"] = torch.tensor(rates, dtype=torch.float64)
        if config["direction"]:
            tensors[f"{label}.scores"] = scores
    save(goldens("train") / "schedules.safetensors", "python/goldens/train_schedules.py", tensors, {k: v[0] for k, v in CASES.items()})


if __name__ == "__main__":
    main()
