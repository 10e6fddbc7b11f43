"""Goldens of Strip-MLP.

Reference: the authors' file `models/strip_mlp.py` of github.com/Med-Process/Strip_MLP (commit 492d705), which is in no package: set STRIP_MLP to a
checkout of it, or the script says so and leaves the files as they are. An import of timm that has moved and one of an unused matplotlib are replaced.

Networks are too large for their weights to be files. A parameter or buffer, the k-th of the sorted names, is drawn by its places i:

  d(i) = sin(0.37 i √i + k)
  d / √fan-in for weights of two dimensions and more, 1 + 0.3 d for other weights and running variances, 0.1 d for everything else

and the picture is sin(0.7 i). Writes into crates/vision/tests/goldens/ files strip_mlp_<case>.safetensors:

  output.logits, loss     the loss is Σ logits · sin(i + 1)
  grad.<name>             two numbers: Σ g · sin(0.3 i + 1) and Σ |g|; so for `image`
  after.<name>            running statistics behind one step in training, in the cases `_train`; there drop-path is off

strip_mlp_counts.json: parameters, buffers and multiply-accumulates of convolutions and layers of the published variants.
"""

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch
from common import goldens, save, setup, versions

SCRIPT = "python/goldens/vision_strip_mlp.py"
PACKAGES = ("timm",)
SMALL = {"img_size": 32, "embed_dim": 16, "layers": [1, 2, 1, 1], "num_classes": 7, "drop_path_rate": 0.0}


def reference():
    folder = os.environ.get("STRIP_MLP")
    if not folder:
        print("Strip-MLP's goldens stay as they are: set STRIP_MLP to a checkout of github.com/Med-Process/Strip_MLP", file=sys.stderr)
        sys.exit(0)
    import timm.layers

    sys.modules["timm.models.layers"] = timm.layers
    pyplot = types.ModuleType("matplotlib.pyplot")
    pyplot.axis = None
    sys.modules.setdefault("matplotlib", types.ModuleType("matplotlib"))
    sys.modules["matplotlib.pyplot"] = pyplot
    spec = importlib.util.spec_from_file_location("strip_mlp", Path(folder) / "models" / "strip_mlp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StripMLPNet


def places(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64)


def draw(module) -> None:
    state = module.state_dict()
    names = sorted(name for name, value in state.items() if value.is_floating_point())
    for k, name in enumerate(names):
        value = state[name]
        i = places(value.numel())
        # Not torch's root, which on some processors is a unit in the last place off.
        roots = torch.from_numpy(np.sqrt(i.numpy()))
        d = torch.sin(0.37 * i * roots + k).reshape(value.shape)
        if name.endswith("weight") and value.dim() > 1:
            drawn = d / (value.numel() / value.shape[0]) ** 0.5
        elif name.endswith("weight") or name.endswith("running_var"):
            drawn = 1 + 0.3 * d
        else:
            drawn = 0.1 * d
        value.copy_(drawn.to(value.dtype))


def two_numbers(grad: torch.Tensor) -> torch.Tensor:
    flat = grad.flatten()
    return torch.stack([(flat * torch.sin(0.3 * places(flat.numel()) + 1).to(flat.dtype)).sum(), flat.abs().sum()])


def golden(network, case: str, train: bool = False, dtype: torch.dtype = torch.float64, **changes) -> None:
    ours = SMALL | changes
    torch.manual_seed(0)
    module = network(
        img_size=ours["img_size"], patch_size=ours.get("patch_size", 4), in_chans=ours.get("in_chans", 3), num_classes=ours["num_classes"],
        embed_dim=ours["embed_dim"], layers=ours["layers"],
    )
    module = module.to(dtype).train(train)
    for layer in module.modules():
        if type(layer).__name__ == "DropPath":
            layer.drop_prob = 0.0
    with torch.no_grad():
        draw(module)
    size = (2, ours.get("in_chans", 3), ours["img_size"], ours["img_size"])
    image = torch.sin(0.7 * places(torch.Size(size).numel())).reshape(size).to(dtype).requires_grad_()
    logits = module(image)
    loss = (logits * torch.sin(places(logits.numel()) + 1).reshape(logits.shape).to(dtype)).sum()
    loss.backward()
    tensors = {"output.logits": logits, "loss": loss, "grad.image": two_numbers(image.grad)}
    for name, value in module.named_parameters():
        tensors[f"grad.{name}"] = two_numbers(value.grad)
    if train:
        for name, value in module.named_buffers():
            if "running" in name:
                tensors[f"after.{name}"] = value
    save(
        goldens("vision") / f"strip_mlp_{case}.safetensors", SCRIPT, tensors, ours, PACKAGES,
        size=json.dumps(size), dtype=str(dtype).removeprefix("torch."), train=json.dumps(train),
    )


def counts(network) -> None:
    found = {}
    for name, width, third in [("tstar", 80, 6), ("t", 80, 12), ("s", 96, 18), ("b", 112, 18)]:
        module = network(embed_dim=width, layers=[2, 2, third, 2]).eval()
        macs = 0

        def count(layer, _inputs, output):
            nonlocal macs
            macs += output.numel() * layer.weight[0].numel()

        for layer in module.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.register_forward_hook(count)
        with torch.no_grad():
            module(torch.zeros(1, 3, 224, 224))
        found[f"strip_mlp_{name}"] = {
            "params": sum(xs.numel() for xs in module.parameters()),
            "buffers": sum(xs.numel() for xs in module.buffers()),
            "macs": macs,
        }
    path = goldens("vision") / "strip_mlp_counts.json"
    path.write_text(json.dumps({"script": SCRIPT, "versions": versions(*PACKAGES), "counts": found}, indent=1, sort_keys=True) + "\n")


def main() -> None:
    setup()
    network = reference()
    golden(network, "eval")
    golden(network, "train", train=True)
    golden(network, "shared_by_two", embed_dim=80, layers=[1, 1, 1, 1])
    golden(network, "larger", img_size=64, in_chans=1)
    golden(network, "f32", dtype=torch.float32)
    counts(network)


if __name__ == "__main__":
    main()
