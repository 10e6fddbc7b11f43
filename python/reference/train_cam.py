"""CAM and its baseline in plain PyTorch on a Kodak picture, as the recipes cam-kodak and cam-kodak-regression train them at the quick size.

    python python/reference/train_cam.py FOLDER/kodak/kodim12.png [--every 1] [--steps 100]

FOLDER is what `cargo xtask data get kodak` prints. The networks are the authors' (maincold2/CAM, `image`): 256 Gaussian frequencies of standard deviation 10, three
hidden layers of 256 with ReLU, a sigmoid at the end; CAM multiplies and shifts each normalised pre-activation by grids of 32 x 32, read at the pixel's place. Half the
mean square error over all trained pixels, Adam at 1e-3, grids at 1e-2. Prints PSNR of both on the trained pixels and on all.
"""

import argparse
import json
import math

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

SIDE = 512


class Network(nn.Module):
    """Fourier features and three hidden layers; with grids, CAM between each linear layer and its ReLU."""

    def __init__(self, grids: bool):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(2, 256) * 10)
        self.hidden = nn.ModuleList(nn.Linear(512 if layer == 0 else 256, 256) for layer in range(3))
        self.last = nn.Linear(256, 3)
        # Channel 0 multiplies, channel 1 is added.
        start = torch.stack([torch.ones(32, 32), torch.zeros(32, 32)])[None]
        self.grids = nn.ParameterList(start.clone() for _ in self.hidden) if grids else None

    def forward(self, coords):
        phase = coords @ self.frequencies
        h = torch.cat([phase.sin(), phase.cos()], dim=-1)
        for layer, linear in enumerate(self.hidden):
            h = linear(h)
            if self.grids is not None:
                places = (2 * coords - 1)[None, None]
                read = F.grid_sample(self.grids[layer], places, mode="bilinear", padding_mode="border", align_corners=True)
                gamma, beta = read[0, :, 0]
                h = gamma[:, None] * F.layer_norm(h, (256,)) + beta[:, None]
            h = h.relu()
        return self.last(h).sigmoid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--every", type=int, default=2, help="train on every so-many-th pixel of both axes")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pixels = np.asarray(Image.open(options.picture).convert("RGB"), dtype=np.float32) / 255
    top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
    pixels = torch.from_numpy(pixels[top : top + SIDE, left : left + SIDE].copy())
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    trained = (slice(None, None, options.every),) * 2
    x, y = coords[trained].reshape(-1, 2), pixels[trained].reshape(-1, 3)
    found = {}
    for name, grids in [("cam", True), ("ffn", False)]:
        torch.manual_seed(options.seed)
        network = Network(grids)
        groups = [{"params": [p for n, p in network.named_parameters() if not n.startswith("grids")], "lr": 1e-3}]
        if grids:
            groups.append({"params": list(network.grids), "lr": 1e-2})
        adam = torch.optim.Adam(groups)
        for _ in range(options.steps):
            adam.zero_grad()
            loss = 0.5 * F.mse_loss(network(x), y)
            loss.backward()
            adam.step()

        def psnr(x, y, network=network):
            with torch.no_grad():
                guess = torch.cat([network(part) for part in x.split(65536)])
            return -10 * math.log10(F.mse_loss(guess.clamp(0, 1), y).item())

        found[name] = {"psnr": psnr(x, y), "psnr_all": psnr(coords.reshape(-1, 2), pixels.reshape(-1, 3))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
