"""State dicts of PoolFormer as `transformers` and `timm` write them, and what the two make of a picture.

Reference: transformers' `save_pretrained` and timm's `state_dict()` written by `safetensors.torch.save_file`. Small networks with drawn weights, so that
the files are small. The picture is sin(0.7 i), 2 × 3 × 61 × 75.

Writes into crates/vision/tests/fixtures/ poolformer_transformers.safetensors and poolformer_timm.safetensors, and into crates/vision/tests/goldens/ files
state_dict_<package>.safetensors with `logits`, and for timm `stage0` to `stage3`.
"""

import tempfile
from pathlib import Path

import timm
import torch
from common import ROOT, goldens, save, setup
from safetensors.torch import save_file
from timm.layers import GroupNorm1
from timm.models.metaformer import MetaFormer, Pooling
from transformers import PoolFormerConfig, PoolFormerForImageClassification

SCRIPT = "python/goldens/vision_state_dicts.py"
LAYERS, DIMS, CLASSES = [1, 2, 1, 1], [4, 8, 12, 16], 5
OURS = {"layers": LAYERS, "embed_dims": DIMS, "num_classes": CLASSES}


def draw(model: torch.nn.Module) -> None:
    """Weights large enough that no block hides behind its layer scale."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + (1 if parameter.dim() == 1 and "weight" in name else 0))


def main() -> None:
    setup()
    picture = torch.sin(0.7 * torch.arange(2 * 3 * 61 * 75, dtype=torch.float64)).view(2, 3, 61, 75).float()
    fixtures = ROOT / "crates" / "vision" / "tests" / "fixtures"
    fixtures.mkdir(parents=True, exist_ok=True)

    config = PoolFormerConfig(num_labels=CLASSES, depths=LAYERS, hidden_sizes=DIMS, layer_scale_init_value=1.0)
    model = PoolFormerForImageClassification(config).eval()
    draw(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (fixtures / "poolformer_transformers.safetensors").write_bytes((Path(folder) / "model.safetensors").read_bytes())
    with torch.no_grad():
        logits = model(picture).logits
    save(goldens("vision") / "state_dict_transformers.safetensors", SCRIPT, {"logits": logits}, OURS, ("transformers",))

    model = MetaFormer(
        depths=LAYERS, dims=DIMS, num_classes=CLASSES, token_mixers=Pooling, norm_layers=GroupNorm1, mlp_act=torch.nn.GELU, mlp_bias=True,
        downsample_norm=None, layer_scale_init_values=1.0, res_scale_init_values=None, use_mlp_head=False,
    ).eval()
    draw(model)
    save_file(model.state_dict(), fixtures / "poolformer_timm.safetensors")
    with torch.no_grad():
        logits, maps = model(picture), model.forward_intermediates(picture, intermediates_only=True)
    assert len(maps) == 4, timm.__version__
    tensors = {"logits": logits, **{f"stage{i}": xs for i, xs in enumerate(maps)}}
    save(goldens("vision") / "state_dict_timm.safetensors", SCRIPT, tensors, OURS | {"head_order": "timm"}, ("timm",))


if __name__ == "__main__":
    main()
