"""Goldens of PoolFormer.

References: `transformers` (`PoolFormerForImageClassification`: the original head, which norms and then pools) and `timm` (the other head, and version 2).
Writes into crates/vision/tests/goldens/ files poolformer_<case>.safetensors; metadata `config` is ours, `size` that of the picture, whose values are
sin(0.7 i) for the flattened place i:

  weight.<name>     fresh weights + 0.3 * noise, layer scales near 1, by the names of `dialect`: transformers, timm or original
  output.logits, or output.stage<i> in the cases `features`
  cotangent.<output>  what the outputs are multiplied by and summed: the loss
  grad.<name>, grad_rows [B, C, H] and grad_columns [B, C, W]: the picture's gradient summed over the other axis

poolformer_counts.json: parameters and multiply-accumulates of convolutions and heads at 224 × 224 of the published variants, from timm.
"""

import json

import timm
import torch
from common import goldens, randn, save, setup, versions
from timm.layers import GroupNorm1
from timm.models.metaformer import GroupNorm1NoBias, MetaFormer, Pooling
from transformers import PoolFormerConfig, PoolFormerForImageClassification

SCRIPT = "python/goldens/vision_poolformer.py"
PACKAGES = ("timm", "transformers")
SMALL = {"layers": [1, 2, 1, 1], "embed_dims": [4, 8, 6, 12], "mlp_ratio": 2, "num_classes": 7, "drop_path_rate": 0.0}


def picture(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = torch.Size(size).numel()
    return torch.sin(0.7 * torch.arange(count, dtype=torch.float64)).reshape(size).to(dtype)


class Features(torch.nn.Module):
    """The original's dense outputs: the maps of the four stages, each behind a norm of its own."""

    def __init__(self, network: PoolFormerForImageClassification):
        super().__init__()
        self.network = network.poolformer.encoder
        for i, width in enumerate(SMALL["embed_dims"]):
            setattr(self, f"norm{2 * i}", torch.nn.GroupNorm(1, width))

    def forward(self, image):
        maps = self.network(image, output_hidden_states=True).hidden_states
        return {f"stage{i}": getattr(self, f"norm{2 * i}")(xs) for i, xs in enumerate(maps)}

    def names(self):
        """Parameters by the names of transformers, and the norms by the original's."""
        return {name.replace("network.", "poolformer.encoder."): value for name, value in self.named_parameters()}


def transformers_model(**changes):
    ours = SMALL | changes
    config = PoolFormerConfig(
        depths=ours["layers"], hidden_sizes=ours["embed_dims"], mlp_ratio=float(ours["mlp_ratio"]), num_labels=ours["num_classes"],
        drop_path_rate=0.0, pool_size=ours.get("pool_size", 3), num_channels=ours.get("in_chans", 3),
    )
    return PoolFormerForImageClassification(config)


def timm_model(version: int, in_chans: int = 3):
    """Its MLPs are always four times as wide."""
    ours = SMALL
    common = dict(
        depths=ours["layers"], dims=ours["embed_dims"], token_mixers=Pooling, num_classes=ours["num_classes"], in_chans=in_chans,
    )
    if version == 1:
        return MetaFormer(
            downsample_norm=None, mlp_act=torch.nn.GELU, mlp_bias=True, norm_layers=GroupNorm1, layer_scale_init_values=1e-5,
            res_scale_init_values=None, use_mlp_head=False, **common,
        )
    return MetaFormer(norm_layers=GroupNorm1NoBias, use_mlp_head=False, **common)


def disturb(module) -> None:
    with torch.no_grad():
        for i, (name, parameter) in enumerate(module.named_parameters()):
            if "layer_scale" in name or "res_scale" in name:
                parameter.fill_(1.0)
            parameter += randn(*parameter.shape, seed=1000 + i, scale=0.3).to(parameter.dtype)


def golden(case: str, module, dialect: str, size: tuple[int, ...], dtype: torch.dtype = torch.float64, **changes) -> None:
    module = module.eval()
    disturb(module)
    module = module.to(dtype)
    image = picture(size, dtype).requires_grad_()
    outputs = module(image)
    if isinstance(outputs, torch.Tensor):
        outputs = {"logits": outputs}
    elif isinstance(outputs, list):
        outputs = {f"stage{i}": xs for i, xs in enumerate(outputs)}
    elif not isinstance(outputs, dict) or hasattr(outputs, "logits"):
        outputs = {"logits": outputs.logits}
    named = module.names() if isinstance(module, Features) else dict(module.named_parameters())
    tensors = {f"weight.{name}": value.detach().clone() for name, value in named.items()}
    loss = 0
    for i, (name, xs) in enumerate(outputs.items()):
        # Cotangents as numbers of few bits: they take f32 in the file whatever the model's kind.
        cotangent = randn(*xs.shape, seed=50 + i).to(dtype)
        loss = loss + (xs * cotangent).sum()
        tensors[f"output.{name}"] = xs
        tensors[f"cotangent.{name}"] = cotangent
    loss.backward()
    for name, value in named.items():
        tensors[f"grad.{name}"] = value.grad
    tensors["grad_rows"], tensors["grad_columns"] = image.grad.sum(-1), image.grad.sum(-2)
    ours = SMALL | changes
    save(
        goldens("vision") / f"poolformer_{case}.safetensors", SCRIPT, tensors, ours, PACKAGES,
        dialect=dialect, size=json.dumps(size), dtype=str(dtype).removeprefix("torch."),
    )


def counts() -> None:
    found = {}
    for version in ["", "v2"]:
        for size in ["s12", "s24", "s36", "m36", "m48"]:
            name = f"poolformer{version}_{size}"
            module = timm.create_model(name).eval()
            macs = 0

            def count(layer, _inputs, output):
                nonlocal macs
                macs += output.numel() * layer.weight[0].numel()

            for layer in module.modules():
                if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                    layer.register_forward_hook(count)
            with torch.no_grad():
                module(torch.zeros(1, 3, 224, 224))
            found[name] = {"params": sum(xs.numel() for xs in module.parameters()), "macs": macs}
    path = goldens("vision") / "poolformer_counts.json"
    path.write_text(json.dumps({"script": SCRIPT, "versions": versions(*PACKAGES), "counts": found}, indent=1, sort_keys=True) + "\n")


def main() -> None:
    setup()
    torch.manual_seed(0)
    golden("odd", transformers_model(), "transformers", (2, 3, 97, 131))
    golden("narrow", transformers_model(), "transformers", (1, 3, 61, 203), torch.float32)
    golden("tiny", transformers_model(), "transformers", (2, 3, 3, 5))
    golden("wide_window", transformers_model(pool_size=5, in_chans=1), "transformers", (1, 1, 64, 96), pool_size=5, in_chans=1)
    golden("features", Features(transformers_model()), "transformers", (1, 3, 37, 51), features=True)
    golden("timm_head", timm_model(1), "timm", (2, 3, 97, 131), head_order="timm", mlp_ratio=4)
    golden("v2", timm_model(2), "timm", (2, 3, 97, 131), version="v2", mlp_ratio=4)
    golden("v2_f32", timm_model(2), "timm", (1, 3, 61, 203), torch.float32, version="v2", mlp_ratio=4)
    counts()


if __name__ == "__main__":
    main()
