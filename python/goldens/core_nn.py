"""Goldens of the basic layers: initialisation, forward, gradients and buffers of `torch.nn`.

Writes crates/core/tests/goldens/nn.safetensors. Keys start with the case's name:
  <case>.weight.<name>    state dict right after `torch.manual_seed(0)` and construction. A correct initialisation equals it
                          bit for bit. Cases with "perturbed": true in the config had noise added: load these.
  <case>.input.x          input
  <case>.cotangent        loss = (output.train * cotangent).sum()
  <case>.output.train     output in training mode
  <case>.output.eval      output in evaluation mode, after the training forward (so with the updated running statistics)
  <case>.loss, <case>.grad.<name>, <case>.grad_input.x
  <case>.after.<name>     buffers after the training forward
Metadata `config`: {case: {"layer", "args", "perturbed"}}.
"""

import torch
from common import goldens, randn, save, setup
from torch import nn

# name -> (layer, constructor arguments, input shape, perturbed)
CASES = {
    "linear": ("Linear", {"in_features": 5, "out_features": 3}, (4, 5), False),
    "linear_batched": ("Linear", {"in_features": 5, "out_features": 3}, (2, 4, 5), False),
    "linear_no_bias": ("Linear", {"in_features": 5, "out_features": 3, "bias": False}, (4, 5), False),
    "conv1d": ("Conv1d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}, (2, 4, 9), False),
    "conv1d_no_bias": ("Conv1d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "dilation": 2, "bias": False}, (2, 3, 9), False),
    "conv2d": ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "groups": 2}, (2, 4, 7, 8), False),
    "conv2d_plain": ("Conv2d", {"in_channels": 3, "out_channels": 5, "kernel_size": 3}, (2, 3, 6, 5), False),
    "layer_norm": ("LayerNorm", {"normalized_shape": [6]}, (4, 6), False),
    "layer_norm_perturbed": ("LayerNorm", {"normalized_shape": [6]}, (2, 4, 6), True),
    "layer_norm_2d_perturbed": ("LayerNorm", {"normalized_shape": [3, 6], "eps": 1e-6}, (4, 3, 6), True),
    "batch_norm1d": ("BatchNorm1d", {"num_features": 4}, (6, 4), False),
    "batch_norm1d_perturbed": ("BatchNorm1d", {"num_features": 4}, (6, 4, 5), True),
    "batch_norm2d": ("BatchNorm2d", {"num_features": 3}, (4, 3, 5, 2), False),
    "batch_norm2d_perturbed": ("BatchNorm2d", {"num_features": 3, "eps": 1e-3, "momentum": 0.01}, (4, 3, 5, 2), True),
    "group_norm": ("GroupNorm", {"num_groups": 2, "num_channels": 6}, (3, 6, 4), False),
    "group_norm_perturbed": ("GroupNorm", {"num_groups": 3, "num_channels": 6}, (3, 6, 4, 2), True),
    "embedding": ("Embedding", {"num_embeddings": 7, "embedding_dim": 4}, (3, 5), False),
}


def main() -> None:
    setup()
    tensors, config = {}, {}
    for index, (case, (layer, args, shape, perturbed)) in enumerate(CASES.items()):
        torch.manual_seed(0)
        module = getattr(nn, layer)(**args)
        if perturbed:
            with torch.no_grad():
                for i, parameter in enumerate(module.parameters()):
                    parameter += randn(*parameter.shape, seed=1000 + 10 * index + i, scale=0.3)
        config[case] = {"layer": layer, "args": args, "perturbed": perturbed}
        tensors |= {f"{case}.weight.{name}": value.clone() for name, value in module.state_dict().items()}

        if layer == "Embedding":
            # Row 2 twice and row 5 never: gradients must add up and stay zero.
            xs = torch.tensor([[0, 1, 2, 2, 6], [3, 3, 3, 4, 0], [1, 6, 0, 2, 4]])
        else:
            xs = (randn(*shape, seed=100 + index) * 1.5 + 0.5).requires_grad_()
        module.train()
        ys = module(xs)
        cotangent = randn(*ys.shape, seed=500 + index)
        loss = (ys * cotangent).sum()
        loss.backward()
        tensors[f"{case}.input.x"] = xs.detach().clone()
        tensors[f"{case}.cotangent"] = cotangent
        tensors[f"{case}.output.train"] = ys.detach().clone()
        tensors[f"{case}.loss"] = loss.detach().clone()
        tensors |= {f"{case}.grad.{name}": p.grad for name, p in module.named_parameters()}
        tensors |= {f"{case}.after.{name}": b.clone() for name, b in module.named_buffers()}
        if xs.grad is not None:
            tensors[f"{case}.grad_input.x"] = xs.grad
        module.eval()
        with torch.no_grad():
            tensors[f"{case}.output.eval"] = module(xs)
    save(goldens("core") / "nn.safetensors", "python/goldens/core_nn.py", tensors, config)


if __name__ == "__main__":
    main()
