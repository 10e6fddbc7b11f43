"""The Python side of the comparison: SIREN and CAM's image network as their authors write them, a hash grid by indexed tables (tiny-cuda-nn has no
CPU path), and `nerfacc`'s rendering of dense rays (its packed one needs CUDA), eager or compiled, on the work of benches/src/fields.rs.

    python benches/peers/fields.py WORKLOAD PHASE BATCH DTYPE DEVICE PEER

PEER is `eager` or `compiled`. Parameters are drawn in the order of our names, from the same seed, and so are the points; see side.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

import side


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 256), *(nn.Linear(256, 256) for _ in range(3))])
        self.last_layer = nn.Linear(256, 3)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            xs = torch.sin(30 * layer(xs))
        return self.last_layer(xs)


class CamLayer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 256)
        self.affine = nn.Parameter(torch.empty(1, 2, 32, 32))

    def forward(self, xs: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        xs = F.instance_norm(self.linear(xs)[None])[0]
        affine = F.grid_sample(self.affine, (2 * coords - 1)[None, None], padding_mode="border", align_corners=True)
        gamma, beta = affine[0, :, 0, :, None]
        return F.relu(gamma * xs + beta)


class CamImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_enc = nn.Module()
        self.pos_enc.register_buffer("proj", torch.empty(2, 256))
        for i in range(3):
            self.add_module(f"FC_{i}", CamLayer(512 if i == 0 else 256))
        self.FC_final = nn.Module()
        self.FC_final.linear = nn.Linear(256, 3)

    def forward(self, coords: torch.Tensor) -> torch.Tensor:
        phases = coords @ (self.pos_enc.proj * 10)
        xs = torch.cat((phases.sin(), phases.cos()), -1)
        for i in range(3):
            xs = self.get_submodule(f"FC_{i}")(xs, coords)
        return self.FC_final.linear(xs).sigmoid()


class HashGrid(nn.Module):
    """16 levels of 2 features, tables of 2^19 entries at most."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, first = [], 0
        # In f32 step by step, as tiny-cuda-nn computes it: at the last level the f64 of it lies a thousandth of a cell away.
        single = lambda value: torch.tensor(value, dtype=torch.float32).item()
        log2 = single(math.log2(single(1.38191)))
        for level in range(16):
            scale = single(single(2 ** single(level * log2)) * 16 - 1)
            resolution = math.ceil(scale) + 1
            entries = min((resolution**3 + 7) // 8 * 8, 2**19)
            hashed = resolution**3 > entries
            self.levels.append((scale, entries, first, hashed, (1, 2654435761, 805459861) if hashed else (1, resolution, resolution**2)))
            first += entries
        self.params = nn.Parameter(torch.empty(2 * first))

    def forward(self, coords: torch.Tensor) -> torch.Tensor:
        table, features = self.params.view(-1, 2), []
        for scale, entries, first, hashed, factors in self.levels:
            places = coords * scale + 0.5
            cell = places.floor()
            far = places - cell
            cell = cell.long()
            near, sums = 1 - far, 0
            for corner in range(8):
                share, index = 1, 0
                for axis, factor in enumerate(factors):
                    farther = corner >> axis & 1
                    share = share * (far if farther else near)[:, axis]
                    term = (cell[:, axis] + farther) * factor
                    index = index ^ term if hashed else index + term
                index = (index & 0xFFFFFFFF) % entries + first
                sums = sums + share[:, None] * table[index]
            features.append(sums)
        return torch.cat(features, 1)


class HashField(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoding = HashGrid()
        self.network = nn.ModuleList(nn.Linear(*sizes, bias=False) for sizes in ((32, 64), (64, 64), (64, 3)))

    def forward(self, coords: torch.Tensor) -> torch.Tensor:
        xs = self.encoding(coords)
        for layer in self.network[:-1]:
            xs = F.relu(layer(xs))
        return self.network[-1](xs)


# Model, coordinates and the two values between which they lie, gain of the weights.
FIELDS = {
    "siren": (Siren, 2, (-1, 1), math.sqrt(2) / 30),
    "cam-image": (CamImage, 2, (0, 1), math.sqrt(2)),
    "hashgrid": (HashField, 3, (0, 1), math.sqrt(2)),
}


@torch.no_grad()
def draw(model: nn.Module, gain: float) -> None:
    """As in benches/src/fields.rs."""
    torch.manual_seed(0)
    for name, param in sorted([*model.named_parameters(), *model.named_buffers()]):
        values = torch.randn(param.shape)
        if name.endswith("proj"):
            values = values * (2 * math.pi)
        elif name.endswith("affine"):
            values = values * 0.1 + 1
        elif param.dim() > 1:
            values = values * (gain / math.sqrt(param.shape[1]))
        else:
            values = values * 0.1
        param.copy_(values)


class OnPoints:
    def __init__(self, name: str, rows: int, dtype: str, device: str, compiled: bool) -> None:
        make, inputs, (low, high), gain = FIELDS[name]
        self.device, self.bf16 = device.partition(":")[0], dtype == "bf16"
        self.model = make()
        draw(self.model, gain)
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        torch.manual_seed(1)
        self.coords = (torch.rand(rows, inputs) * (high - low) + low).to(device)
        self.target = torch.rand(rows, 3).to(device)
        self.call = torch.compile(self.model) if compiled else self.model

    def values(self, model: nn.Module) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return model(self.coords).float()

    def train_step(self) -> None:
        loss = F.mse_loss(self.values(self.call), self.target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        return self.values(self.call).flatten()

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        loss = F.mse_loss(self.values(self.model), self.target)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimizer.zero_grad()
        return loss.item(), norm.item()


class Rendering(nn.Module):
    """Rays as rows of the longest one's length: the samples that there are, and zeros."""

    def __init__(self, rows: int, device: str) -> None:
        super().__init__()
        from nerfacc import accumulate_along_rays, render_weight_from_density

        self.sums, self.weights = accumulate_along_rays, render_weight_from_density
        torch.manual_seed(1)
        counts, target = torch.randint(65, (rows,)), torch.rand(rows, 3)
        most = int(counts.max())
        ray = torch.arange(rows).repeat_interleave(counts)
        place = torch.arange(len(ray)) - (counts.cumsum(0) - counts)[ray]
        self.places, self.rows, self.most = (ray * most + place).to(device), rows, most
        self.start = (torch.arange(most) * 0.02 + 2).expand(rows, most).contiguous().to(device)
        self.end, self.target = self.start + 0.02, target.to(device)
        torch.manual_seed(0)
        self.rgb = nn.Parameter(torch.rand(len(ray), 3, device="cpu").to(device))
        self.sigma = nn.Parameter((torch.rand(len(ray)) * 20).to(device))

    def forward(self) -> torch.Tensor:
        sigma = self.sigma.new_zeros(self.rows * self.most).index_copy(0, self.places, self.sigma).view(self.rows, self.most)
        rgb = self.rgb.new_zeros(self.rows * self.most, 3).index_copy(0, self.places, self.rgb).view(self.rows, self.most, 3)
        weights, _, _ = self.weights(self.start, self.end, sigma)
        colour, opacity = self.sums(weights, rgb), self.sums(weights)
        depth = self.sums(weights, (self.start + self.end)[..., None] / 2)
        self.seen = opacity, depth / opacity.clamp_min(1e-10)
        return colour


class OnRays:
    def __init__(self, rows: int, device: str, compiled: bool) -> None:
        self.device, self.model = device.partition(":")[0], Rendering(rows, device)
        self.call = torch.compile(self.model) if compiled else self.model

    def train_step(self) -> None:
        F.mse_loss(self.call(), self.model.target).backward()
        self.model.zero_grad()

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        return self.call().flatten()

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        loss = F.mse_loss(self.model(), self.model.target)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.model.zero_grad()
        return loss.item(), norm.item()


if __name__ == "__main__":
    name, phase, batch, dtype, device, peer = side.arguments()
    compiled = peer == "compiled"
    bench = OnRays(int(batch), device, compiled) if name == "render-packed" else OnPoints(name, int(batch), dtype, device, compiled)
    side.run(bench, phase)
