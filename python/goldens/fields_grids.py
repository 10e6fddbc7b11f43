"""Goldens of hash grids, K-Planes and the radiance fields upon them.

tiny-cuda-nn has neither a CPU path nor a wheel, and K-Planes needs it: the hash grid is derived anew from its rules, in numpy, gradients by hand;
spherical harmonics come from scipy; planes are torch's `grid_sample` put together as in the released code.
Writes into crates/fields/tests/goldens/ files of f64, metadata `config` being ours:

  hashgrid_<case>  coords, weight.params, features, cotangent.features, grad.params, grad.coords; metadata `levels`: [entries, hashed, scale] of each
  ngp              coords, dirs, weight.<name>, output.{density,rgb}, cotangent.*, grad.<name>, grad.coords
  planes_<case>    coords, weight.<name>, features, cotangent.features, total_variation, time_smoothness, motion, grad.<name> (of the loss
                   Σ features · cotangent + 0.1 total_variation + 0.2 time_smoothness + 0.3 motion), grad.coords
  kplanes          as ngp
"""

import itertools
import json

import numpy as np
import torch
import torch.nn.functional as F
from common import goldens, save, setup
from scipy.special import sph_harm_y

SCRIPT = "python/goldens/fields_grids.py"
PACKAGES = ("numpy", "scipy")
PRIMES = [1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737]
f32 = np.float32


class HashGrid:
    """The rules of tiny-cuda-nn's grid encoding, one corner at a time."""

    def __init__(self, inputs=3, levels=16, features=2, log2_table=19, base=16, growth=None, smoothstep=False):
        self.inputs, self.features, self.smoothstep = inputs, features, smoothstep
        (kind, value), = growth.items()
        b = value if kind == "scale" else np.exp(np.log(value / base) / (levels - 1))
        log2 = f32(np.log2(np.float64(f32(b))))
        self.levels = []
        for level in range(levels):
            scale = f32(f32(np.exp2(np.float64(f32(level) * log2))) * f32(base) - f32(1))
            resolution = int(np.ceil(scale)) + 1
            corners = resolution**inputs
            entries = min((corners + 7) // 8 * 8, 2**log2_table)
            self.levels.append((entries, corners > entries, float(scale), resolution))

    def entries(self):
        return sum(level[0] for level in self.levels)

    @staticmethod
    def index(corner, entries, hashed, resolution):
        """`corner`: [N, D] of whole numbers of any sign. Python's own integers, cut to 32 bits."""
        found = []
        for row in corner.tolist():
            number = 0
            for d, i in enumerate(row):
                i %= 2**32
                number = number ^ (i * PRIMES[d]) % 2**32 if hashed else number + i * resolution**d
            found.append(number % 2**32 % entries)
        return np.array(found, dtype=np.int64).reshape(len(corner))

    def walk(self, coords):
        """Of each level and corner: level, place in the table, share [N], and its gradient by the coordinates [N, D]."""
        begin = 0
        for number, (entries, hashed, scale, resolution) in enumerate(self.levels):
            at = coords * scale + 0.5
            cell = np.floor(at)
            t = at - cell
            far, slope = (3 * t**2 - 2 * t**3, 6 * t * (1 - t)) if self.smoothstep else (t, np.ones_like(t))
            for bits in itertools.product([0, 1], repeat=self.inputs):
                bits = np.array(bits)
                sides = np.where(bits, far, 1 - far)
                grads = np.stack([np.delete(sides, d, 1).prod(1) * (2 * bits[d] - 1) * slope[:, d] * scale for d in range(self.inputs)], 1)
                place = begin + self.index(cell.astype(np.int64) + bits, entries, hashed, resolution)
                yield number, place, sides.prod(1), grads
            begin += entries

    def forward(self, coords, table):
        table = table.reshape(-1, self.features)
        ys = np.zeros((len(coords), len(self.levels), self.features))
        for level, place, share, _ in self.walk(coords):
            ys[:, level] += share[:, None] * table[place]
        return ys.reshape(len(coords), -1)

    def backward(self, coords, table, dy):
        """Gradients of the table and the coordinates: the shares scattered, and their slopes gathered."""
        table = table.reshape(-1, self.features)
        dy = dy.reshape(len(coords), len(self.levels), self.features)
        dtable, dx = np.zeros_like(table), np.zeros_like(coords)
        for level, place, share, slope in self.walk(coords):
            np.add.at(dtable, place, share[:, None] * dy[:, level])
            dx += slope * (table[place] * dy[:, level]).sum(1, keepdims=True)
        return dtable.reshape(-1), dx


def tensor(xs) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(xs))


def points(rng, count: int, inputs: int) -> np.ndarray:
    """In the unit cube, at its corners, on edges of cells of scale 4, and outside; numbers of f32."""
    ends = [np.zeros(inputs), np.ones(inputs), np.full(inputs, 0.125), np.full(inputs, 0.375), np.full(inputs, -0.3), np.full(inputs, 1.7)]
    mixed = np.where(np.arange(inputs) % 2, 1.0, 0.625)
    xs = np.concatenate([rng.random((count, inputs)), np.stack([*ends, mixed])])
    return xs.astype(np.float32).astype(np.float64)


def hash_case(case: str, coords=None, **config) -> None:
    rng = np.random.default_rng(len(case))
    grid = HashGrid(**config)
    coords = points(rng, 30, grid.inputs) if coords is None else coords(rng, grid)
    table = rng.standard_normal(grid.entries() * grid.features)
    cotangent = rng.standard_normal((len(coords), len(grid.levels) * grid.features))
    dtable, dx = grid.backward(coords, table, cotangent)
    tensors = {
        "coords": coords, "weight.params": table, "features": grid.forward(coords, table), "cotangent.features": cotangent, "grad.params": dtable,
        "grad.coords": dx,
    }
    levels = [[entries, bool(hashed), scale] for entries, hashed, scale, _ in grid.levels]
    save(
        goldens("fields") / f"hashgrid_{case}.safetensors", SCRIPT, {name: tensor(xs) for name, xs in tensors.items()}, config, PACKAGES,
        levels=json.dumps(levels),
    )


def far_points(rng, grid: HashGrid) -> np.ndarray:
    """Cells whose numbers go to 2^30 on both sides of 0 at the finest level."""
    return (2 * rng.random((40, grid.inputs)) - 1) * 2**30 / grid.levels[-1][2]


def harmonics(dirs: np.ndarray, degree: int) -> np.ndarray:
    polar, azimuth = np.arccos(dirs[:, 2]), np.arctan2(dirs[:, 1], dirs[:, 0])
    values = []
    for n in range(degree):
        for m in range(-n, n + 1):
            y = sph_harm_y(n, abs(m), polar, azimuth)
            values.append(y.real if m == 0 else np.sqrt(2) * (y.real if m > 0 else y.imag))
    return np.stack(values, 1)


class TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].clamp(-15, 15).exp()


def network(xs: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    for weight in weights[:-1]:
        xs = (xs @ weight.T).relu()
    return xs @ weights[-1].T


def draw(rng, *size: int, scale: float = 1.0) -> torch.Tensor:
    return tensor(rng.standard_normal(size) * scale).requires_grad_()


HEAD = {"hidden": 9, "density_layers": 1, "geometry": 5, "colour_layers": 2, "harmonics": 4}


def head(rng, features: torch.Tensor, dirs: np.ndarray):
    """Outputs, cotangents and parameters. The density's own weights are so large that the largest exponent is 18, beyond where the gradient is cut."""
    width, hidden, geometry = features.shape[1], HEAD["hidden"], HEAD["geometry"]
    sigma = [draw(rng, hidden, width), draw(rng, geometry, hidden, scale=0.7)]
    sigma[1].data[0] *= 18 / network(features, sigma)[:, 0].max().item()
    colour = [draw(rng, hidden, geometry + 16, scale=0.3), draw(rng, hidden, hidden, scale=0.3), draw(rng, 3, hidden)]
    g = network(features, sigma)
    outputs = {"density": TruncatedExp.apply(g[:, 0]), "rgb": network(torch.cat([g, tensor(harmonics(dirs, 4))], 1), colour).sigmoid()}
    cotangents = {name: draw(rng, *xs.shape).detach() for name, xs in outputs.items()}
    cotangents["density"] /= outputs["density"].detach()  # else the largest is all that counts
    names = {f"sigma_net.{i}.weight": w for i, w in enumerate(sigma)} | {f"color_net.{i}.weight": w for i, w in enumerate(colour)}
    return outputs, cotangents, names


def save_head(case: str, config, outputs, cotangents, names, coords, dirs, **more) -> None:
    tensors = {f"weight.{name}": xs for name, xs in names.items()} | {f"grad.{name}": xs.grad for name, xs in names.items()}
    tensors |= {f"output.{name}": xs for name, xs in outputs.items()} | {f"cotangent.{name}": xs for name, xs in cotangents.items()}
    tensors |= {"coords": coords.detach(), "dirs": tensor(dirs)} | more
    save(goldens("fields") / f"{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


def directions(rng, count: int) -> np.ndarray:
    dirs = rng.standard_normal((count, 3))
    return dirs / np.linalg.norm(dirs, axis=1, keepdims=True)


def ngp() -> None:
    rng = np.random.default_rng(7)
    config = {"inputs": 3, "levels": 3, "features": 2, "log2_table": 7, "base": 3, "growth": {"scale": 1.7}, "smoothstep": False}
    grid = HashGrid(**config)
    coords, table = points(rng, 20, 3), rng.standard_normal(grid.entries() * 2)
    dirs = directions(rng, len(coords))
    features = tensor(grid.forward(coords, table)).requires_grad_()
    outputs, cotangents, names = head(rng, features, dirs)
    sum((xs * cotangents[name]).sum() for name, xs in outputs.items()).backward()
    dtable, dx = grid.backward(coords, table, features.grad.numpy())
    more = {"weight.encoding.params": tensor(table), "grad.encoding.params": tensor(dtable), "grad.coords": tensor(dx)}
    save_head("ngp", {"grid": config, "head": HEAD}, outputs, cotangents, names, tensor(coords), dirs, **more)


class Planes:
    def __init__(self, rng, resolution, multipliers, features):
        self.pairs = list(itertools.combinations(range(len(resolution)), 2))
        self.grids = []
        for multiplier, width in zip(multipliers, features):
            sizes = [n * multiplier for n in resolution[:3]] + resolution[3:]
            self.grids.append([draw(rng, 1, width, sizes[j], sizes[i]) for i, j in self.pairs])

    def forward(self, coords: torch.Tensor) -> torch.Tensor:
        scales = []
        for planes in self.grids:
            product = 1.0
            for plane, pair in zip(planes, self.pairs):
                at = coords[:, pair][None, None]
                sampled = F.grid_sample(plane, at, align_corners=True, mode="bilinear", padding_mode="border")
                product = product * sampled.view(plane.shape[1], -1).T
            scales.append(product)
        return torch.cat(scales, -1)

    def regularisers(self) -> dict[str, torch.Tensor]:
        total, smooth, still = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for planes in self.grids:
            with_time = [2, 4, 5] if len(planes) == 6 else []
            for number, plane in enumerate(planes):
                variation = 2 * (plane.diff(dim=2).square().mean() + plane.diff(dim=3).square().mean())
                total = total + variation + (0 if number in with_time else variation)
            for number in with_time:
                smooth = smooth + planes[number].diff(dim=2, n=2).square().mean()
                still = still + (1 - planes[number]).abs().mean()
        return {"total_variation": total, "time_smoothness": smooth, "motion": still}

    def names(self) -> dict[str, torch.Tensor]:
        return {f"grids.{s}.{p}": plane for s, planes in enumerate(self.grids) for p, plane in enumerate(planes)}


def plane_points(rng, count: int, inputs: int) -> torch.Tensor:
    ends = np.stack([np.full(inputs, -1.0), np.full(inputs, 1.0), np.zeros(inputs), np.full(inputs, 1.3), np.where(np.arange(inputs) % 2, -1.2, 0.5)])
    return tensor(np.concatenate([2 * rng.random((count, inputs)) - 1, ends])).requires_grad_()


def planes_case(case: str, **config) -> None:
    rng = np.random.default_rng(11)
    planes = Planes(rng, **config)
    coords = plane_points(rng, 25, len(config["resolution"]))
    features = planes.forward(coords)
    cotangent = draw(rng, *features.shape).detach()
    regularisers = planes.regularisers()
    weights = {"total_variation": 0.1, "time_smoothness": 0.2, "motion": 0.3}
    ((features * cotangent).sum() + sum(weights[name] * xs for name, xs in regularisers.items())).backward()
    tensors = {f"weight.{name}": xs for name, xs in planes.names().items()} | {f"grad.{name}": xs.grad for name, xs in planes.names().items()}
    tensors |= {"coords": coords.detach(), "grad.coords": coords.grad, "features": features, "cotangent.features": cotangent} | regularisers
    save(goldens("fields") / f"planes_{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


def kplanes() -> None:
    rng = np.random.default_rng(13)
    config = {"resolution": [5, 7, 4, 3], "multipliers": [1, 2], "features": [4, 3]}
    planes = Planes(rng, **config)
    coords = plane_points(rng, 20, 4)
    dirs = directions(rng, len(coords))
    outputs, cotangents, names = head(rng, planes.forward(coords), dirs)
    sum((xs * cotangents[name]).sum() for name, xs in outputs.items()).backward()
    save_head(
        "kplanes", {"planes": config, "head": HEAD}, outputs, cotangents, planes.names() | names, coords, dirs, **{"grad.coords": coords.grad},
    )


def main() -> None:
    setup()
    hash_case("three", inputs=3, levels=5, features=2, log2_table=8, base=5, growth={"scale": 1.6}, smoothstep=False)
    hash_case("two_smooth", inputs=2, levels=4, features=4, log2_table=6, base=5, growth={"finest": 37}, smoothstep=True)
    # 8^3 fills the table to the last entry, 9^3 does not fit.
    hash_case("just_fits", inputs=3, levels=3, features=1, log2_table=9, base=8, growth={"scale": 1.125}, smoothstep=False)
    hash_case("far", far_points, inputs=3, levels=4, features=2, log2_table=8, base=4, growth={"scale": 2.5}, smoothstep=False)
    hash_case("four_smooth", inputs=4, levels=3, features=8, log2_table=8, base=2, growth={"scale": 2.2}, smoothstep=True)
    hash_case("five", inputs=5, levels=3, features=1, log2_table=7, base=2, growth={"scale": 1.9}, smoothstep=False)
    ngp()
    planes_case("static", resolution=[5, 7, 4], multipliers=[1, 2], features=[3, 2])
    planes_case("time", resolution=[5, 7, 4, 6], multipliers=[1, 2], features=[2, 3])
    kplanes()


if __name__ == "__main__":
    main()
