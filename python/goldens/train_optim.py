"""Goldens of the optimisers: 50 steps of `torch.optim` on made gradients, each option.

Writes crates/train/tests/goldens/optim.safetensors. Keys:
  weight.<param>                 parameters before the first step
  grad.<param>                   gradients of all steps, [50, ...], the same for every case. `late` has none in its first 10
                                 steps: there the Rust test leaves the gradient undefined
  <case>.output.<param>          parameters after steps 1, 2, 10, 11, 25, 50 (stacked)
  <case>.state.<param>.<name>    optimiser state after step 50
  <case>.norm                    norms before clipping, all steps (cases with "clip")
  <case>.fused.output.<param>    the same parameters, of the optimiser with `fused=True`
Metadata `config`: {case: {"optim": OptimConfig, "clip": max norm or null, "groups": [{"suffix", "lr_scale", "weight_decay"}], "lr_decay"}}.
With "lr_decay" the rate of step s is lr * lr_decay**s.
"""

import torch
from common import goldens, randn, save, setup

STEPS = 50
KEPT = (1, 2, 10, 11, 25, 50)
LATE = 10
SHAPES = {"bias": (3,), "late": (2, 2), "weight": (5, 7)}
GROUPS = [{"suffix": "bias", "lr_scale": 0.5, "weight_decay": 0.0}, {"suffix": "late", "lr_scale": 2.0, "weight_decay": None}]


def case(name, clip=None, groups=(), lr_decay=1.0, **options):
    return {"optim": {"name": name, **options}, "clip": clip, "groups": list(groups), "lr_decay": lr_decay}


CASES = {
    "adamw": case("adamw"),
    "adamw_options": case("adamw", lr=0.02, betas=[0.8, 0.95], eps=1e-5, weight_decay=0.1),
    "adamw_no_decay": case("adamw", lr=0.01, weight_decay=0.0),
    "adamw_groups_clip": case("adamw", lr=2e-3, weight_decay=3e-4, clip=1.0, groups=GROUPS, lr_decay=0.97),
    "adam": case("adam"),
    "adam_l2": case("adam", lr=0.01, weight_decay=0.05),
    "sgd": case("sgd", lr=0.1),
    "sgd_l2": case("sgd", lr=0.1, weight_decay=0.02),
    "sgd_momentum": case("sgd", lr=0.05, momentum=0.9),
    "sgd_dampening": case("sgd", lr=0.05, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "sgd_nesterov": case("sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd_groups_clip": case("sgd", lr=0.05, momentum=0.9, weight_decay=0.01, clip=2.5, groups=GROUPS),
}
CLASSES = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def main() -> None:
    setup()
    start = {name: randn(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    grads = {name: randn(STEPS, *shape, seed=10 + i) for i, (name, shape) in enumerate(SHAPES.items())}
    tensors = {f"weight.{k}": v for k, v in start.items()} | {f"grad.{k}": v for k, v in grads.items()}
    for label, config in CASES.items():
        tensors |= {f"{label}.{key}": value for key, value in train(config, start, grads, foreach=False).items()}
        fused = train(config, start, grads, fused=True)
        tensors |= {f"{label}.fused.{key}": value for key, value in fused.items() if key.startswith("output.")}
    save(goldens("train") / "optim.safetensors", "python/goldens/train_optim.py", tensors, CASES)


def train(config: dict, start: dict, grads: dict, **kernels: bool) -> dict[str, torch.Tensor]:
    """50 steps; parameters on the way, the state and the norms at the end."""
    options = {k: v for k, v in config["optim"].items() if k != "name"} | kernels
    params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    defaults = CLASSES[config["optim"]["name"]](list(params.values()), **options).defaults
    groups = []
    for name, param in params.items():
        rule = next((rule for rule in config["groups"] if name.endswith(rule["suffix"])), {"lr_scale": 1.0, "weight_decay": None})
        decay = defaults["weight_decay"] if rule["weight_decay"] is None else rule["weight_decay"]
        groups.append({"params": [param], "weight_decay": decay, "scale": rule["lr_scale"]})
    optimizer = CLASSES[config["optim"]["name"]](groups, **options)
    kept = {name: [] for name in params}
    norms = []
    for step in range(STEPS):
        for name, param in params.items():
            param.grad = None if name == "late" and step < LATE else grads[name][step].clone()
        for group in optimizer.param_groups:
            group["lr"] = defaults["lr"] * config["lr_decay"] ** step * group["scale"]
        if config["clip"] is not None:
            norms.append(torch.nn.utils.clip_grad_norm_(params.values(), config["clip"]))
        optimizer.step()
        if step + 1 in KEPT:
            for name, param in params.items():
                kept[name].append(param.detach().clone())
    found = {}
    for name, param in params.items():
        found[f"output.{name}"] = torch.stack(kept[name])
        for key, value in optimizer.state[param].items():
            if value is not None:
                found[f"state.{name}.{key}"] = value
    if norms:
        found["norm"] = torch.stack(norms)
    return found


if __name__ == "__main__":
    main()
