"""Goldens of training steps of the click models.

Reference: `BaseModel.train_step` of package `fuxictr`: mean binary cross-entropy plus (lambda/p) Σ|w|^p over whole tables, clipping of the
global norm, dense Adam. Writes into crates/recsys/tests/goldens/ files steps_<case>.safetensors with three steps:

  weight.<name>                    before
  input.<step>.<name>, label.<step>
  loss.<step>                      without the regulariser
  penalty.<step>                   the regulariser
  after.<step>.<name>              weights and running statistics after the step

`training` in the metadata holds lr, regularisers and the norm that gradients are clipped to.
"""

import json

import torch
from common import goldens, save, setup
from recsys_ctr_common import BATCH, DIN, FinalMLP, PACKAGES, batch, build, labels, ours, perturb
from recsys_ctr_din import CONFIG as DIN_CONFIG
from recsys_ctr_finalmlp import CONFIG as FINALMLP_CONFIG

SCRIPT = "python/goldens/recsys_ctr_steps.py"
STEPS = 3


def steps(case: str, preset: str, kind, config: dict, embedding_regularizer, net_regularizer, max_norm: float, lr: float = 1e-2, but: str = "nothing") -> None:
    module = build(kind, config, embedding_regularizer=embedding_regularizer, net_regularizer=net_regularizer, learning_rate=lr)
    perturb(module, but)
    module.train()
    module._max_gradient_norm = max_norm
    own = lambda: {name: value.clone() for name, value in module.state_dict().items() if name not in aliases}
    # A shared table stands under two names; one is enough here.
    first, aliases = {}, set()
    for name, value in module.state_dict().items():
        if first.setdefault(value.data_ptr(), name) != name and value.numel() > 1:
            aliases.add(name)
    tensors = {f"weight.{name}": value for name, value in own().items()}
    for step in range(STEPS):
        inputs, label = batch(config["fields"], BATCH, seed=20 + step), labels(BATCH, seed=30 + step)
        tensors |= {f"input.{step}.{name}": value for name, value in inputs.items()} | {f"label.{step}": label}
        penalty = module.regularization_loss()
        tensors[f"penalty.{step}"] = torch.as_tensor(float(penalty.detach()) if torch.is_tensor(penalty) else float(penalty))
        total = module.train_step(inputs | {"label": label})
        tensors[f"loss.{step}"] = (total - penalty).detach()
        tensors |= {f"after.{step}.{name}": value for name, value in own().items()}
    training = {"lr": lr, "embedding_regularizer": embedding_regularizer, "net_regularizer": net_regularizer, "max_norm": max_norm}
    save(goldens("recsys") / f"steps_{case}.safetensors", SCRIPT, tensors, ours(config), PACKAGES, model=preset, training=json.dumps(training))


def main() -> None:
    setup()
    # A bias before a batch norm has no gradient but rounding, and Adam makes a whole step of it: such cases have a regulariser of the net.
    plain = {"mlp1_batch_norm": False}
    gated = FINALMLP_CONFIG | {"fs1_context": ["price", "age"], "fs2_context": ["item"]}
    steps("finalmlp", "finalmlp", FinalMLP, gated | plain, 0.05, None, 10.0)
    steps("finalmlp_clipped", "finalmlp", FinalMLP, gated, 0.05, 0.01, 0.3)
    steps("finalmlp_l1", "finalmlp", FinalMLP, gated, "l1_l2(0.01,0.02)", "l1(0.001)", 10.0)
    steps("finalmlp_dead", "finalmlp", FinalMLP, FINALMLP_CONFIG | plain, None, None, 10.0, but="fs_module")
    steps("din", "din", DIN, DIN_CONFIG, 0.005, 0.01, 10.0)


if __name__ == "__main__":
    main()
