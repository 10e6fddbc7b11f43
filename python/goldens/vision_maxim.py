"""Goldens of MAXIM.

Reference: the released JAX code, `maxim/models/maxim.py` of github.com/google-research/maxim (commit 3c82651), which is in no package: set MAXIM
to a checkout and run this in an environment of its own with jax==0.10.2, flax==0.12.8, einops and torch; else the script says so and leaves the files
as they are. Parameters have the names of the released archives with `.` for `/`, and torch's layouts (by `python/convert_maxim.py`).

Networks are too large for their weights to be files: the k-th parameter of the sorted names is drawn by its places i,

  d(i) = sin(0.37 i √i + k)
  d / √fan-in for weights of two dimensions and more, 1 + 0.3 d for other weights, 0.1 d for biases

and the picture is (1 + sin(0.7 i)) / 2. Writes into crates/vision/tests/goldens/ files maxim_<case>.safetensors:

  output.stage<i>_scale<j>   all images, the smallest first; the loss is Σ images · sin(i + 1)
  grads                      [parameters + 1, 2], by the sorted names and the picture's last: Σ g · sin(0.3 i + 1) and Σ |g|; not in the case `s1`
maxim_counts.json: parameters, tensors and multiply-accumulates of convolutions and layers of the released configurations at 256 × 256
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from common import goldens, save, setup, versions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert_maxim import to_torch, torch_name  # noqa: E402

try:
    import flax
    import jax
    import jax.numpy as jnp
except ImportError as error:
    print(f"MAXIM's goldens stay as they are: {error}; see the top of the script", file=sys.stderr)
    sys.exit(0)

SCRIPT = "python/goldens/vision_maxim.py"
PACKAGES = ("jax", "flax")
SMALL = {"features": 8, "num_stages": 2, "num_groups": 2, "num_bottleneck_blocks": 1, "block_size_hr": 4, "block_size_lr": 2}


def reference():
    folder = os.environ.get("MAXIM")
    if not folder:
        print("MAXIM's goldens stay as they are: set MAXIM to a checkout of github.com/google-research/maxim", file=sys.stderr)
        sys.exit(0)
    spec = importlib.util.spec_from_file_location("maxim_model", Path(folder) / "maxim" / "models" / "maxim.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MAXIM


def from_torch(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel"):
        return value
    if "ConvTranspose" in path:
        return value.transpose(2, 3, 0, 1)[::-1, ::-1]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def places(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float64)


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """By the paths of the reference, from the shapes that torch has."""
    drawn = {}
    for k, path in enumerate(sorted(shapes, key=torch_name)):
        size = shapes[path]
        i = places(int(np.prod(size)))
        d = np.sin(0.37 * i * np.sqrt(i) + k).reshape(size)
        if path.endswith("kernel"):
            d = d / (d.size / size[0]) ** 0.5
        elif path.endswith("scale"):
            d = 1 + 0.3 * d
        else:
            d = 0.1 * d
        drawn[path] = d
    return drawn


def two_numbers(grad: np.ndarray) -> torch.Tensor:
    flat = torch.from_numpy(np.array(grad)).flatten()
    return torch.stack([(flat * torch.sin(0.3 * torch.arange(flat.numel(), dtype=torch.float64) + 1)).sum(), flat.abs().sum()])


def golden(network, case: str, size: tuple[int, int, int], grads: bool = True, **ours) -> None:
    arguments = dict(depth=3, num_supervision_scales=3, channels_reduction=4, **ours)
    for kind in ("hr", "lr"):
        side = arguments.pop(f"block_size_{kind}")
        arguments[f"block_size_{kind}"] = arguments[f"grid_size_{kind}"] = (side, side)
    module = network(**arguments)
    batch, height, width = size
    count = batch * 3 * height * width
    image = ((1 + np.sin(0.7 * places(count))) / 2).reshape(batch, 3, height, width)
    xs = jnp.asarray(image.transpose(0, 2, 3, 1))
    tree = jax.eval_shape(module.init, jax.random.PRNGKey(0), xs)["params"]
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    shapes = {path: to_torch(path, np.empty(leaf.shape, dtype=np.uint8)).shape for path, leaf in flat.items()}
    params = {path: jnp.asarray(from_torch(path, value)) for path, value in draw(shapes).items()}

    def loss(params, xs):
        outputs = module.apply({"params": flax.traverse_util.unflatten_dict(params, sep="/")}, xs)
        total = 0.0
        for images in outputs:
            for ys in images:
                turned = ys.transpose(0, 3, 1, 2)
                total = total + (turned * jnp.sin(places(turned.size) + 1).reshape(turned.shape)).sum()
        return total, outputs

    if grads:
        ((_, outputs), found) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)
    else:
        _, outputs = loss(params, xs)
    tensors = {}
    for stage, images in enumerate(outputs):
        for scale, ys in enumerate(images):
            tensors[f"output.stage{stage}_scale{scale}"] = torch.from_numpy(np.array(ys.transpose(0, 3, 1, 2)))
    if grads:
        rows = [two_numbers(to_torch(path, np.asarray(found[0][path]))) for path in sorted(found[0], key=torch_name)]
        tensors["grads"] = torch.stack([*rows, two_numbers(np.asarray(found[1]).transpose(0, 3, 1, 2))])
    save(goldens("vision") / f"maxim_{case}.safetensors", SCRIPT, tensors, ours, PACKAGES, size=json.dumps([batch, 3, height, width]))


def counts(network) -> None:
    """Of the released configurations at 256 × 256; each layer's work is its output times what an output takes in."""
    found = {}
    for stages in (1, 2, 3):
        module = network(features=32, depth=3, num_stages=stages, num_groups=2, num_bottleneck_blocks=2, num_supervision_scales=3)
        macs = 0

        def count(next_method, args, kwargs, context):
            nonlocal macs
            output = next_method(*args, **kwargs)
            layer = context.module
            if context.method_name == "__call__" and isinstance(layer, (flax.linen.Dense, flax.linen.Conv, flax.linen.ConvTranspose)):
                kernel = layer.get_variable("params", "kernel")
                # A transposed convolution spreads each input pixel over its window.
                pixels = args[0] if isinstance(layer, flax.linen.ConvTranspose) else output
                macs += pixels.size // pixels.shape[-1] * kernel.size
            return output

        with flax.linen.intercept_methods(count):
            tree = jax.eval_shape(module.init, jax.random.PRNGKey(0), jnp.zeros((1, 256, 256, 3)))
        leaves = jax.tree_util.tree_leaves(tree["params"])
        found[f"maxim_s{stages}"] = {"params": sum(leaf.size for leaf in leaves), "tensors": len(leaves), "macs": macs}
    path = goldens("vision") / "maxim_counts.json"
    path.write_text(json.dumps({"script": SCRIPT, "versions": versions(*PACKAGES), "counts": found}, indent=1, sort_keys=True) + "\n")


def main() -> None:
    setup()
    jax.config.update("jax_enable_x64", True)
    network = reference()
    golden(network, "small", (1, 32, 48), **SMALL)
    golden(network, "s1", (1, 64, 64), grads=False, features=32, num_stages=1, num_groups=2, num_bottleneck_blocks=2, block_size_hr=16, block_size_lr=8)
    counts(network)


if __name__ == "__main__":
    main()
