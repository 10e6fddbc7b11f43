"""Goldens of NeRF, T-NeRF and mip-NeRF, with and without CAM's grids.

Reference: the networks derived anew in plain torch from the papers' equations, by the parameter names of nerfacc's examples. There is no package
of them: nerfacc's wheel holds no networks, and mip-NeRF's code is JAX.
Writes into crates/fields/tests/goldens/ files radiance_<case>.safetensors, metadata `config` being ours and `model` the kind:

  weight.<name>       weights of unequal size, biases and grids not at their first values
  input.<name>        coords, dirs, time, vars
  output.values       red, green, blue, density
  cotangent.values    what the outputs are multiplied by and summed: the loss
  grad.<name>, grad.input.<name>

radiance_mip_render_<kind>: a mip-NeRF's two levels along rays: rays, near, far, radius, jitter<level>, pixels; rgb<level>, opacity<level>,
depth<level>, weights<level>, loss and the gradients of the loss.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from common import goldens, randn, save, setup

SCRIPT = "python/goldens/fields_radiance.py"
TRUNK = {"depth": 6, "width": 9, "skip": 2, "colour_width": 5}


def waves(xs: torch.Tensor, degrees: int) -> torch.Tensor:
    """sin 2^i x of all degrees, then cos 2^i x."""
    phases = torch.cat([2**i * xs for i in range(degrees)], -1)
    return torch.sin(torch.cat([phases, phases + math.pi / 2], -1))


def encode(xs: torch.Tensor, degrees: int) -> torch.Tensor:
    return torch.cat([xs, waves(xs, degrees)], -1)


def integrated(mean: torch.Tensor, variance: torch.Tensor, degrees: int) -> torch.Tensor:
    fading = torch.exp(-0.5 * torch.cat([4**i * variance for i in range(degrees)], -1))
    return waves(mean, degrees) * torch.cat([fading, fading], -1)


def linear(weights: dict, name: str, xs: torch.Tensor) -> torch.Tensor:
    return xs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def line(grid: torch.Tensor, time: torch.Tensor):
    """Scale and shift [points, 1] of a grid [1, 2, cells, 1] over the times 0..1."""
    cells = grid.shape[2]
    at = time[:, 0] * (cells - 1)
    low = at.detach().floor().clamp(0, cells - 2).long()
    share = at - low
    read = grid[0, :, low, 0] * (1 - share) + grid[0, :, low + 1, 0] * share
    return read[0, :, None], read[1, :, None]


def bilinear(plane: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Of places counted in cells, all of them inside."""
    height, width = plane.shape
    row, column = rows.detach().floor().clamp(0, height - 2).long(), columns.detach().floor().clamp(0, width - 2).long()
    down, right = rows - row, columns - column
    return (
        plane[row, column] * (1 - down) * (1 - right) + plane[row, column + 1] * (1 - down) * right
        + plane[row + 1, column] * down * (1 - right) + plane[row + 1, column + 1] * down * right
    )


def tri_plane(grid: torch.Tensor, places: torch.Tensor):
    """Scale and shift of planes xy, xz, yz over ±1.5; the second axis runs along the rows."""
    side = grid.shape[-1]
    cells = (places / 1.5 + 1) / 2 * (side - 1)
    read = [bilinear(grid[i, 0], cells[:, b], cells[:, a]) for i, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)] * 2)]
    return (read[0] * read[1] * read[2])[:, None], (read[3] * read[4] * read[5])[:, None]


def directions(grid: torch.Tensor, dirs: torch.Tensor):
    """Scale and shift [rays, 1, 1] by azimuth and elevation; everything upwards is at the horizon."""
    x, y, z = dirs.unbind(-1)
    azimuth = (torch.atan2(y, x) / math.pi / 2 + 0.5) * (grid.shape[2] - 1)
    elevation = torch.atan2(z, torch.sqrt(x * x + y * y)) * (-2 / math.pi) * (grid.shape[3] - 1)
    elevation = elevation.clamp(0, grid.shape[3] - 1)
    return tuple(bilinear(plane, azimuth, elevation)[:, None, None] for plane in grid[0])


def trunk(weights: dict, name: str, inputs: torch.Tensor, depth: int, skip: int, modulate=None) -> torch.Tensor:
    xs = inputs
    for i in range(depth):
        xs = linear(weights, f"{name}.hidden_layers.{i}", xs)
        if modulate is not None:
            xs = modulate(weights[f"{name}.affines.{i}"], xs)
        xs = F.relu(xs)
        if i > 0 and i % skip == 0:
            xs = torch.cat([xs, inputs], -1)
    return xs


def heads(weights: dict, name: str, h: torch.Tensor, dirs: torch.Tensor):
    """Raw colour and density."""
    bottleneck = linear(weights, f"{name}.bottleneck_layer.output_layer", h)
    hidden = F.relu(linear(weights, f"{name}.rgb_layer.hidden_layers.0", torch.cat([bottleneck, dirs], -1)))
    return linear(weights, f"{name}.rgb_layer.output_layer", hidden), linear(weights, f"{name}.sigma_layer.output_layer", h)


def nerf(config: dict, weights: dict, coords, dirs, time=None):
    name = "mlp"
    if config["warp"]:
        name, warp = "nerf.mlp", config["warp"]
        joined = torch.cat([encode(coords, warp["degrees"]), encode(time, warp["degrees"])], -1)
        h = trunk(weights, "warp", joined, warp["depth"], warp["skip"])
        coords = coords + linear(weights, "warp.output_layer", h)
    modulate = None
    if config["cam"]:
        scale, place = (line, time) if config["cam"]["grid"]["kind"] == "line" else (tri_plane, coords)

        def modulate(grid, h):
            gamma, beta = scale(grid, place)
            return gamma * h + beta

    encoded = encode(coords, config["place_degrees"])
    h = trunk(weights, f"{name}.base", encoded, config["depth"], config["skip"], modulate)
    rgb, sigma = heads(weights, name, h, encode(dirs, config["direction_degrees"]))
    return torch.cat([torch.sigmoid(rgb), F.relu(sigma)], -1)


def mip_nerf(config: dict, weights: dict, coords, dirs, vars=None):
    size = coords.shape[:-1]
    rays = dirs.shape[0]
    coords = coords.reshape(rays, -1, 3)
    vars = torch.zeros_like(coords) if vars is None else vars.reshape(rays, -1, 3)
    modulate = None
    if config["cam"]:

        def modulate(grid, h):
            mean = h.mean((1, 2), keepdim=True)
            variance = ((h - mean) ** 2).mean((1, 2), keepdim=True)
            gamma, beta = directions(grid, dirs)
            return gamma * (h - mean) / torch.sqrt(variance + 1e-6) + beta

    encoded = integrated(coords, vars, config["place_degrees"])
    h = trunk(weights, "mlp.base", encoded, config["depth"], config["skip"], modulate)
    seen_from = encode(dirs, config["direction_degrees"])[:, None].expand(-1, coords.shape[1], -1)
    rgb, sigma = heads(weights, "mlp", h, seen_from)
    rgb = torch.sigmoid(rgb) * (1 + 2 * 0.001) - 0.001
    return torch.cat([rgb, F.softplus(sigma - 1)], -1).reshape(*size, 4)


def cells_of(grid: dict) -> tuple[int, ...]:
    return {
        "line": lambda: (1, 2, grid["cells"], 1),
        "tri_plane": lambda: (6, 1, grid["side"], grid["side"]),
        "directions": lambda: (1, 2, grid["azimuths"], grid["elevations"]),
    }[grid["kind"]]()


def sizes(config: dict, inputs: int) -> dict[str, tuple[int, ...]]:
    """Sizes of all parameters by name."""
    found = {}

    def dense(name: str, into: int, out: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, into), (out,)

    def layers(name: str, inputs: int, depth: int, width: int, skip: int) -> int:
        into = inputs
        for i in range(depth):
            dense(f"{name}.hidden_layers.{i}", into, width)
            into = width + inputs if i > 0 and i % skip == 0 else width
        return into

    warp = config.get("warp")
    if warp:
        into = layers("warp", 4 * (1 + 2 * warp["degrees"]), warp["depth"], warp["width"], warp["skip"])
        dense("warp.output_layer", into, 3)
    name = "nerf.mlp" if warp else "mlp"
    into = layers(f"{name}.base", inputs, config["depth"], config["width"], config["skip"])
    if config["cam"]:
        found |= {f"{name}.base.affines.{i}": cells_of(config["cam"]["grid"]) for i in range(config["depth"])}
    dense(f"{name}.sigma_layer.output_layer", into, 1)
    dense(f"{name}.bottleneck_layer.output_layer", into, config["width"])
    dense(f"{name}.rgb_layer.hidden_layers.0", config["width"] + 3 * (1 + 2 * config["direction_degrees"]), config["colour_width"])
    dense(f"{name}.rgb_layer.output_layer", config["colour_width"], 3)
    return found


def drawn(config: dict, inputs: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    weights = {}
    for i, (name, size) in enumerate(sizes(config, inputs).items()):
        noise = randn(*size, seed=100 + i).to(dtype)
        if "affines" in name:
            scale = (torch.arange(noise.numel()).reshape(size) < noise.numel() // 2).to(dtype)
            weights[name] = scale + 0.3 * noise
        elif len(size) == 2:
            weights[name] = noise * (1.5 / size[1]) ** 0.5 * (0.1 if name.startswith("warp.output") else 1)
        else:
            # Densities are rather above 0 than below, where a ReLU would hide them.
            weights[name] = 0.3 * noise + (0.5 if "sigma" in name else 0)
    return {name: value.requires_grad_() for name, value in weights.items()}


def buffers(config: dict) -> dict[str, torch.Tensor]:
    """The factors of the encodings, as nerfacc's state dicts hold them."""
    factors = lambda degrees: torch.tensor([2**i for i in range(degrees)])
    prefix, found = ("nerf.", {}) if config["warp"] else ("", {})
    if config["warp"]:
        found = {f"{name}.scales": factors(config["warp"]["degrees"]) for name in ["posi_encoder", "time_encoder"]}
    return found | {
        f"{prefix}posi_encoder.scales": factors(config["place_degrees"]), f"{prefix}view_encoder.scales": factors(config["direction_degrees"]),
    }


def unit(count: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    dirs = randn(count, 3, seed=seed).to(dtype)
    return dirs / dirs.norm(dim=-1, keepdim=True)


def golden(case: str, model: str, config: dict, inputs: dict[str, torch.Tensor]) -> None:
    dtype = inputs["coords"].dtype
    network, encoded = (nerf, 3 * (1 + 2 * config["place_degrees"])) if model == "nerf" else (mip_nerf, 6 * config["place_degrees"])
    weights = drawn(config, encoded, dtype)
    inputs = {name: xs.requires_grad_() for name, xs in inputs.items()}
    values = network(config, weights, **inputs)
    cotangent = randn(*values.shape, seed=7).to(dtype)
    (values * cotangent).sum().backward()
    assert (values[..., 3] > 0).float().mean() > 0.2, "densities are dead"
    tensors = {"output.values": values, "cotangent.values": cotangent}
    tensors |= {f"weight.{name}": xs for name, xs in weights.items()} | {f"grad.{name}": xs.grad for name, xs in weights.items()}
    tensors |= {f"input.{name}": xs for name, xs in inputs.items()} | {f"grad.input.{name}": xs.grad for name, xs in inputs.items()}
    if model == "nerf":
        tensors |= {f"weight.{name}": xs for name, xs in buffers(config).items()}
    save(goldens("fields") / f"radiance_{case}.safetensors", SCRIPT, tensors, config, model=model, dtype=str(dtype).removeprefix("torch."))


def frustum(t: np.ndarray, origins: np.ndarray, dirs: np.ndarray, radius: np.ndarray):
    """Mean and diagonal variance of the points of cones' pieces: moments of the frustum by quadrature, not by the paper's formulas.

    The share of a disc at distance t is as t²; across the cone the variance of a disc of radius r t is r² t² / 4 on each of two axes.
    """
    nodes, shares = np.polynomial.legendre.leggauss(20)
    start, end = t[:, :-1, None], t[:, 1:, None]
    ts = (start + end) / 2 + (end - start) / 2 * nodes
    mass = shares * ts**2
    mass = mass / mass.sum(-1, keepdims=True)
    mean = (mass * ts).sum(-1)
    along = (mass * (ts - mean[..., None]) ** 2).sum(-1)
    across = (mass * ts**2).sum(-1) * radius[:, None] ** 2 / 4
    squares = dirs**2
    rest = 1 - squares / squares.sum(-1, keepdims=True)
    means = origins[:, None] + mean[..., None] * dirs[:, None]
    return means, along[..., None] * squares[:, None] + across[..., None] * rest[:, None]


def resample(t: np.ndarray, weights: np.ndarray, jitter: np.ndarray, padding: float) -> np.ndarray:
    """Ray by ray, from the list of pieces."""
    eps = np.finfo(np.float32).eps
    found = np.empty_like(t)
    for ray, (ts, ws) in enumerate(zip(t, weights)):
        n = len(ws)
        larger = [max(ws[max(i - 1, 0)], ws[min(i, n - 1)]) for i in range(n + 1)]
        blurred = [(larger[i] + larger[i + 1]) / 2 + padding for i in range(n)]
        cdf = np.minimum(np.concatenate([[0], np.cumsum(blurred) / np.sum(blurred)]), 1)
        cdf[-1] = 1
        for i in range(n + 1):
            u = min(i / (n + 1) + jitter[ray, i] * (1 / (n + 1) - eps), 1 - eps)
            found[ray, i] = np.interp(u, cdf, ts)
    return found


def mip_render(dtype: torch.dtype) -> None:
    samples, rays = 7, 5
    config = TRUNK | {"place_degrees": 4, "direction_degrees": 2, "samples": samples, "levels": 2, "resample_padding": 0.01, "cam": None}
    weights = drawn(config, 24, dtype)
    origins, dirs = randn(rays, 3, seed=1).to(dtype), randn(rays, 3, seed=2).to(dtype)
    generator = torch.Generator().manual_seed(3)
    uniform = lambda *size: torch.rand(*size, generator=generator, dtype=torch.float64).to(dtype)
    near, far, radius = uniform(rays) + 0.5, uniform(rays) + 3, uniform(rays) * 0.1
    jitter, pixels = [uniform(rays, samples + 1) for _ in range(2)], uniform(rays, 3)
    lengths = dirs.norm(dim=-1, keepdim=True)
    even = near[:, None] + (far - near)[:, None] * torch.arange(samples + 1, dtype=dtype) / samples
    middles = (even[:, 1:] + even[:, :-1]) / 2
    lower, upper = torch.cat([even[:, :1], middles], 1), torch.cat([middles, even[:, -1:]], 1)
    t = lower + (upper - lower) * jitter[0]
    tensors, loss = {}, 0
    for level in range(2):
        if level == 1:
            t = torch.from_numpy(resample(t.double().numpy(), w.detach().double().numpy(), jitter[1].double().numpy(), 0.01)).to(dtype)
        means, variances = (torch.from_numpy(xs).to(dtype) for xs in frustum(*(xs.double().numpy() for xs in (t, origins, dirs, radius))))
        values = mip_nerf(config, weights, means, dirs / lengths, variances)
        thickness = values[..., 3] * (t[:, 1:] - t[:, :-1]) * lengths
        light = torch.exp(-torch.cat([torch.zeros(rays, 1, dtype=dtype), thickness.cumsum(1)], 1))
        w = light[:, :-1] - light[:, 1:]
        opacity = w.sum(1)
        rgb = (w[..., None] * values[..., :3]).sum(1) + (1 - opacity)[:, None]
        loss = loss + (0.1 if level == 0 else 1) * ((rgb - pixels) ** 2).sum(1).mean()
        depth = (w * (t[:, 1:] + t[:, :-1]) / 2).sum(1) / opacity
        tensors |= {f"rgb{level}": rgb, f"opacity{level}": opacity, f"depth{level}": depth, f"weights{level}": w, f"t{level}": t}
        tensors |= {f"means{level}": means, f"vars{level}": variances, f"jitter{level}": jitter[level]}
    loss.backward()
    tensors |= {"origins": origins, "dirs": dirs, "near": near, "far": far, "radius": radius, "pixels": pixels, "loss": loss}
    tensors |= {f"weight.{name}": xs for name, xs in weights.items()} | {f"grad.{name}": xs.grad for name, xs in weights.items()}
    kind = str(dtype).removeprefix("torch.")
    save(goldens("fields") / f"radiance_mip_render_{kind}.safetensors", SCRIPT, tensors, config, model="render", dtype=kind)


def main() -> None:
    setup()
    warp = {"depth": 4, "width": 6, "skip": 2, "degrees": 3}
    plain = TRUNK | {"place_degrees": 5, "direction_degrees": 3, "warp": None, "cam": None}
    cam = {"domain": [0.0, 1.0], "padding": "zeros", "norm": "none", "eps": 1e-5}
    time_grid = cam | {"grid": {"kind": "line", "cells": 5}}
    planes = cam | {"grid": {"kind": "tri_plane", "side": 7, "live_shift": False}, "domain": [-1.5, 1.5]}
    angles = cam | {"grid": {"kind": "directions", "azimuths": 10, "elevations": 3}, "norm": "ray", "eps": 1e-6, "padding": "border"}
    for dtype in [torch.float64, torch.float32]:
        kind = str(dtype).removeprefix("torch.")
        points = 11
        places = lambda: (2.4 * torch.rand(points, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 1.2).to(dtype)
        times = lambda: torch.linspace(0.03, 0.97, points, dtype=torch.float64)[:, None].to(dtype)
        static = lambda: {"coords": places(), "dirs": unit(points, 5, dtype)}
        golden(f"nerf_{kind}", "nerf", plain, static())
        golden(f"t_nerf_{kind}", "nerf", plain | {"warp": warp}, static() | {"time": times()})
        golden(f"nerf_cam_{kind}", "nerf", plain | {"cam": planes}, static())
        golden(f"t_nerf_cam_{kind}", "nerf", plain | {"warp": warp, "cam": time_grid}, static() | {"time": times()})
        mip = TRUNK | {"place_degrees": 5, "direction_degrees": 3, "samples": 4, "levels": 2, "resample_padding": 0.01, "cam": None}
        rays = 6
        cones = lambda: {
            "coords": randn(rays, 4, 3, seed=8).to(dtype), "dirs": unit(rays, 9, dtype), "vars": (0.05 * randn(rays, 4, 3, seed=10) ** 2).to(dtype),
        }
        golden(f"mip_nerf_{kind}", "mip_nerf", mip, cones())
        golden(f"mip_nerf_cam_{kind}", "mip_nerf", mip | {"cam": angles}, cones())
        golden(f"mip_nerf_points_{kind}", "mip_nerf", mip | {"cam": angles}, static())
        mip_render(dtype)


if __name__ == "__main__":
    main()
