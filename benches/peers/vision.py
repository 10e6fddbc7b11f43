"""The Python side of the comparison: PoolFormer of `transformers` and of `timm`, the authors' Strip-MLP, and MAXIM from its released JAX code
by hand, eager or compiled, on the work of benches/src/vision.rs.

    python benches/peers/vision.py WORKLOAD PHASE BATCH DTYPE DEVICE PEER

PEER is `eager` or `compiled`. Parameters are drawn in the order of our names, from the same seed, and so are the pictures; see side.py.
Strip-MLP's code is in no package: the environment variable STRIP_MLP names a checkout.
"""

import math
import os
import re
import sys
import types

import torch
from torch import nn
from torch.nn import functional as F

import side


def poolformer() -> nn.Module:
    from transformers import PoolFormerConfig, PoolFormerForImageClassification

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PoolFormerForImageClassification(PoolFormerConfig(num_labels=1000))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.inner(pixel_values=image).logits

    return Logits()


def poolformer_name(name: str) -> str:
    """Ours for a name of transformers or timm."""
    name = re.sub(r"^inner\.(poolformer\.encoder\.)?", "", name)
    name = re.sub(r"^patch_embeddings\.0\.projection|^stem\.conv", "patch_embed.proj", name)
    name = re.sub(r"^(?:patch_embeddings\.(\d)\.projection|stages_(\d)\.downsample\.conv)", lambda m: f"network.{2 * int(m[1] or m[2]) - 1}.proj", name)
    name = re.sub(r"^(?:block\.(\d)|stages_(\d)\.blocks)\.", lambda m: f"network.{2 * int(m[1] or m[2])}.", name)
    for theirs, ours in (
        ("before_norm", "norm1"), ("after_norm", "norm2"), ("output.conv1", "mlp.fc1"), ("output.conv2", "mlp.fc2"),
        ("layer_scale1.scale", "layer_scale_1"), ("layer_scale2.scale", "layer_scale_2"), ("classifier", "head"),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


class PoolFormerFeatures(nn.Module):
    """timm's maps, normed as the authors' backbone for detection norms them."""

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.inner = timm.create_model("poolformer_s12", features_only=True, pretrained=False)
        for stage, width in enumerate((64, 128, 320, 512)):
            self.add_module(f"norm{2 * stage}", nn.GroupNorm(1, width))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = [getattr(self, f"norm{2 * stage}")(xs) for stage, xs in enumerate(self.inner(image))]
        return maps[3]


def strip_mlp() -> nn.Module:
    import timm.layers

    # What the authors' file imports and does not use, or from where it no longer is.
    sys.modules["timm.models.layers"] = timm.layers
    pyplot = types.ModuleType("matplotlib.pyplot")
    pyplot.axis = None
    sys.modules.setdefault("matplotlib", types.ModuleType("matplotlib"))
    sys.modules["matplotlib.pyplot"] = pyplot
    sys.path.insert(0, os.path.join(os.environ["STRIP_MLP"], "models"))
    from strip_mlp import StripMLPNet

    model = StripMLPNet(embed_dim=80, layers=[2, 2, 6, 2], drop_rate=0.0)
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "DropPath":
                setattr(module, name, nn.Identity())
    return model


# MAXIM. Maps are [batch, channels, height, width] between its parts, as convolutions want them, and have their channels last inside.


def tree(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """Puts `child` at a dotted place of `module`."""
    *folders, leaf = name.split(".")
    for folder in folders:
        if folder not in dict(module.named_children()):
            module.add_module(folder, nn.Module())
        module = getattr(module, folder)
    module.add_module(leaf, child)
    return child


def norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def conv(inputs: int, outputs: int, window: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, window, stride, (window - 1) // 2)


def last(xs: torch.Tensor) -> torch.Tensor:
    return xs.permute(0, 2, 3, 1)


def first(xs: torch.Tensor) -> torch.Tensor:
    return xs.permute(0, 3, 1, 2)


def gelu(xs: torch.Tensor) -> torch.Tensor:
    return F.gelu(xs, approximate="tanh")


def into_blocks(xs: torch.Tensor, high: int, wide: int) -> torch.Tensor:
    """n (gh fh) (gw fw) c -> n (gh gw) (fh fw) c"""
    n, height, width, c = xs.shape
    xs = xs.reshape(n, height // high, high, width // wide, wide, c).permute(0, 1, 3, 2, 4, 5)
    return xs.reshape(n, height // high * (width // wide), high * wide, c)


def from_blocks(xs: torch.Tensor, grid: tuple[int, int], high: int, wide: int) -> torch.Tensor:
    n, _, _, c = xs.shape
    xs = xs.reshape(n, grid[0], grid[1], high, wide, c).permute(0, 1, 3, 2, 4, 5)
    return xs.reshape(n, grid[0] * high, grid[1] * wide, c)


class Cells:
    """Of a grid of `side` x `side` cells, or blocks of so many pixels."""

    def __init__(self, grid: bool, side: int) -> None:
        self.grid, self.side, self.axis = grid, side, 1 if grid else 2

    def cut(self, xs: torch.Tensor) -> torch.Tensor:
        return into_blocks(xs, *self.cell(xs.shape[1], xs.shape[2]))

    def join(self, xs: torch.Tensor, height: int, width: int) -> torch.Tensor:
        high, wide = self.cell(height, width)
        return from_blocks(xs, (height // high, width // wide), high, wide)

    def cell(self, height: int, width: int) -> tuple[int, int]:
        return (height // self.side, width // self.side) if self.grid else (self.side, self.side)

    def mix(self, layer: nn.Linear, xs: torch.Tensor) -> torch.Tensor:
        return layer(xs.transpose(self.axis, -1)).transpose(self.axis, -1)


class Gmlp(nn.Module):
    def __init__(self, width: int, side: int, grid: bool) -> None:
        super().__init__()
        self.cells, self.unit = Cells(grid, side), ("Grid" if grid else "Block") + "GatingUnit"
        self.LayerNorm, self.in_project = norm(width), nn.Linear(width, 2 * width)
        self.inner = [tree(self, f"{self.unit}.intermediate_layernorm", norm(width))]
        self.inner.append(tree(self, f"{self.unit}.Dense_0", nn.Linear(side * side, side * side)))
        self.out_project = nn.Linear(width, width)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        height, width = xs.shape[1:3]
        xs = self.cells.cut(xs)
        u, v = gelu(self.in_project(self.LayerNorm(xs))).chunk(2, -1)
        v = self.cells.mix(self.inner[1], self.inner[0](v))
        return self.cells.join(xs + self.out_project(u * (v + 1)), height, width)


class MultiAxis(nn.Module):
    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.LayerNorm_in, self.in_project = norm(width), nn.Linear(width, 2 * width)
        self.GridGmlpLayer, self.BlockGmlpLayer = Gmlp(width, side, True), Gmlp(width, side, False)
        self.out_project = nn.Linear(2 * width, width)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        xs = last(xs)
        u, v = gelu(self.in_project(self.LayerNorm_in(xs))).chunk(2, -1)
        return first(self.out_project(torch.cat((self.GridGmlpLayer(u), self.BlockGmlpLayer(v)), -1)) + xs)


class ChannelAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.Conv_0, self.Conv_1 = conv(width, width // 4, 1), conv(width // 4, width, 1)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        return xs * self.Conv_1(self.Conv_0(xs.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Rcab(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.LayerNorm, self.conv1, self.conv2, self.channel_attention = norm(width), conv(width, width, 3), conv(width, width, 3), ChannelAttention(width)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        ys = F.leaky_relu(self.conv1(first(self.LayerNorm(last(xs)))), 0.2)
        return xs + self.channel_attention(self.conv2(ys))


class Rdcab(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.LayerNorm, self.channel_attention = norm(width), ChannelAttention(width)
        self.layers = [tree(self, f"channel_mixing.Dense_{i}", nn.Linear(width, width)) for i in range(2)]

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        ys = self.layers[1](gelu(self.layers[0](self.LayerNorm(last(xs)))))
        return xs + self.channel_attention(first(ys))


class Body(nn.Module):
    def __init__(self, inputs: int, width: int, side: int, bottleneck: bool = False) -> None:
        super().__init__()
        self.input = tree(self, "input_proj" if bottleneck else "Conv_0", conv(inputs, width, 1))
        self.groups = []
        for i in range(2):
            mixing = tree(self, f"SplitHeadMultiAxisGmlpLayer_{i}", MultiAxis(width, side))
            name = f"channel_attention_block_1_{i}" if bottleneck else f"channel_attention_block_1{i}"
            self.groups.append((mixing, tree(self, name, (Rdcab if bottleneck else Rcab)(width))))

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        long = xs = self.input(xs)
        for mixing, attention in self.groups:
            xs = attention(mixing(xs))
        return xs + long


class Gating(nn.Module):
    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.grid, self.block = Cells(True, side), Cells(False, side)
        self.LayerNorm_in, self.in_project = norm(width), nn.Linear(width, 2 * width)
        self.Dense_0, self.Dense_1 = nn.Linear(side * side, side * side), nn.Linear(side * side, side * side)
        self.out_project = nn.Linear(2 * width, width)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        height, width = xs.shape[1:3]
        u, v = gelu(self.in_project(self.LayerNorm_in(xs))).chunk(2, -1)
        u = self.grid.join(self.grid.mix(self.Dense_0, self.grid.cut(u)), height, width)
        v = self.block.join(self.block.mix(self.Dense_1, self.block.cut(v)), height, width)
        return self.out_project(torch.cat((u, v), -1))


class CrossGating(nn.Module):
    def __init__(self, x_inputs: int, y_inputs: int, width: int, side: int, up: bool) -> None:
        super().__init__()
        self.up = up
        if up:
            self.ConvTranspose_0 = nn.ConvTranspose2d(y_inputs, width, 2, 2)
            y_inputs = width
        self.Conv_0, self.Conv_1 = conv(x_inputs, width, 1), conv(y_inputs, width, 1)
        for name in "xy":
            self.add_module(f"LayerNorm_{name}", norm(width))
            self.add_module(f"in_project_{name}", nn.Linear(width, width))
            self.add_module(f"out_project_{name}", nn.Linear(width, width))
            self.add_module(f"SplitHeadMultiAxisGating_{name}", Gating(width, side))

    def forward(self, xs: torch.Tensor, ys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ys = self.ConvTranspose_0(ys) if self.up else ys
        long_x, long_y = last(self.Conv_0(xs)), last(self.Conv_1(ys))
        xs, ys = gelu(self.in_project_x(self.LayerNorm_x(long_x))), gelu(self.in_project_y(self.LayerNorm_y(long_y)))
        of_x, of_y = self.SplitHeadMultiAxisGating_x(xs), self.SplitHeadMultiAxisGating_y(ys)
        ys = self.out_project_y(ys * of_x) + long_y
        xs = self.out_project_x(xs * of_y) + ys + long_x
        return first(xs), first(ys)


class Maxim(nn.Module):
    """S-2: two stages, 32 channels, blocks of 16 x 16 at the two larger scales and of 8 x 8 below."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.sides = (32, 64, 128), (16, 16, 8)
        resizes = 0
        for s in range(2):
            for i, (width, block) in enumerate(zip(self.widths, self.sides)):
                above = self.widths[max(i - 1, 0)]
                self.add(f"stage_{s}_input_conv_{i}", conv(3, width, 3))
                encoder = self.add(f"stage_{s}_encoder_block_{i}", Body(above + width, width, block))
                encoder.add_module("Conv_1", conv(width, width, 4, 2))
                if s > 0:
                    self.add(f"stage_{s}_input_fuse_sam_{i}", CrossGating(width, width, width, block, False))
                    encoder.add_module("cross_gating_block", CrossGating(width, width, width, block, False))
            for i in range(2):
                self.add(f"stage_{s}_global_block_{i}", Body(128, 128, 8, True))
            for i in (2, 1, 0):
                for other in (0, 1, 2):
                    self.add(f"UpSampleRatio_{resizes}.Conv_0", conv(self.widths[other], self.widths[i], 1))
                    resizes += 1
                width = self.widths[i]
                self.add(f"stage_{s}_cross_gating_block_{i}", CrossGating(3 * width, self.widths[min(i + 1, 2)], width, self.sides[i], True))
            for i in (2, 1, 0):
                for other in (2, 1, 0):
                    self.add(f"UpSampleRatio_{resizes}.Conv_0", conv(self.widths[other], self.widths[i], 1))
                    resizes += 1
                width = self.widths[i]
                self.add(f"stage_{s}_decoder_block_{i}.ConvTranspose_0", nn.ConvTranspose2d(self.widths[min(i + 1, 2)], width, 2, 2))
                self.add(f"stage_{s}_decoder_block_{i}.UNetEncoderBlock_0", Body(4 * width, width, self.sides[i]))
                if s == 0:
                    for place, (inputs, outputs) in enumerate(((width, width), (width, 3), (3, width))):
                        self.add(f"stage_{s}_supervised_attention_module_{i}.Conv_{place}", conv(inputs, outputs, 3))
                else:
                    self.add(f"stage_{s}_output_conv_{i}", conv(width, 3, 3))

    def add(self, name: str, module: nn.Module) -> nn.Module:
        return tree(self, name, module)

    def part(self, name: str) -> nn.Module:
        return self.get_submodule(name)

    def resized(self, number: int, xs: torch.Tensor, to: int, source: int) -> torch.Tensor:
        size = [side * 2**source // 2**to for side in xs.shape[2:]]
        if to != source:
            xs = F.interpolate(xs, size, mode="bilinear", align_corners=False, antialias=to > source)
        return self.part(f"UpSampleRatio_{number}.Conv_0")(xs)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        images = [image, image[:, :, 1::2, 1::2], image[:, :, 2::4, 2::4]]
        encoded, decoded, attended, resizes = [], [], [], 0
        for s in range(2):
            scales = []
            for i in range(3):
                xs = self.part(f"stage_{s}_input_conv_{i}")(images[i])
                scales.append(self.part(f"stage_{s}_input_fuse_sam_{i}")(xs, attended[i])[0] if s > 0 else xs)
            xs, bridges = scales[0], []
            for i in range(3):
                encoder = self.part(f"stage_{s}_encoder_block_{i}")
                bridge = encoder(torch.cat((xs, scales[i]), 1))
                if s > 0:
                    bridge = encoder.cross_gating_block(bridge, encoded[i] + decoded[i])[0]
                xs = encoder.Conv_1(bridge)
                bridges.append(bridge)
            for i in range(2):
                xs = self.part(f"stage_{s}_global_block_{i}")(xs)
            feature, skips = xs, [None] * 3
            for i in (2, 1, 0):
                signal = []
                for other in (0, 1, 2):
                    signal.append(self.resized(resizes, bridges[other], i, other))
                    resizes += 1
                skips[i], feature = self.part(f"stage_{s}_cross_gating_block_{i}")(torch.cat(signal, 1), feature)
            encoded, decoded, attended = bridges, [None] * 3, [None] * 3
            for i in (2, 1, 0):
                signal = []
                for other in (2, 1, 0):
                    signal.append(self.resized(resizes, skips[other], i, other))
                    resizes += 1
                decoder = self.part(f"stage_{s}_decoder_block_{i}")
                xs = decoder.UNetEncoderBlock_0(torch.cat((decoder.ConvTranspose_0(xs), *signal), 1))
                decoded[i] = xs
                if s == 0:
                    sam = self.part(f"stage_{s}_supervised_attention_module_{i}")
                    restored = sam.Conv_1(xs) + images[i]
                    attended[i] = sam.Conv_0(xs) * sam.Conv_2(restored).sigmoid() + xs
                else:
                    restored = self.part(f"stage_{s}_output_conv_{i}")(xs) + images[i]
        return restored


# name -> (model, side, our name for one of its)
MODELS = {
    "poolformer_s12": (poolformer, 224, poolformer_name),
    "poolformer_s12@features": (PoolFormerFeatures, 224, poolformer_name),
    "strip_mlp_tstar": (strip_mlp, 224, lambda name: name),
    "maxim_s2": (Maxim, 256, lambda name: name),
}


@torch.no_grad()
def draw(model: nn.Module, named) -> None:
    """As in benches/src/vision.rs."""
    torch.manual_seed(0)
    for name, param in sorted((named(name), param) for name, param in model.named_parameters()):
        values = torch.randn(param.shape)
        lower = name.lower()
        if param.dim() > 1:
            values = values / math.sqrt(param[0].numel())
        elif "norm" in lower and lower.endswith("weight"):
            values = values * 0.1 + 1
        else:
            values = values * 0.1
        param.copy_(values)


class Bench:
    def __init__(self, name: str, rows: int, dtype: str, device: str, compiled: bool) -> None:
        make, side_, named = MODELS[name]
        self.device, self.bf16 = device.partition(":")[0], dtype == "bf16"
        self.model = make()
        draw(self.model, named)
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        torch.manual_seed(1)
        self.image, self.labels = torch.randn(rows, 3, side_, side_).to(device), torch.randint(1000, (rows,)).to(device)
        self.call = torch.compile(self.model) if compiled else self.model

    def outputs(self, model: nn.Module) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return model(self.image).float()

    def train_step(self) -> None:
        loss = F.cross_entropy(self.outputs(self.call), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        return self.outputs(self.call).flatten()

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        loss = F.cross_entropy(self.outputs(self.model), self.labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimizer.zero_grad()
        return loss.item(), norm.item()


if __name__ == "__main__":
    name, phase, batch, dtype, device, peer = side.arguments()
    side.run(Bench(name, int(batch), dtype, device, peer == "compiled"), phase)
