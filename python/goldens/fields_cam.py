"""Goldens of CAM's modulations and of its compression.

References: torch (`instance_norm`, `group_norm`, `grid_sample`), `scipy.ndimage.map_coordinates` for the reading of grids, scipy's entropy, and a
Huffman tree built below.
Writes into crates/fields/tests/goldens/:

cam_<case>.safetensors: metadata `config` is ours, `dtype`; the loss is the sum of y times cotangent
  affine, h, coords, y, cotangent, grad_affine, grad_h, grad_coords
cam_video.safetensors: scale, shift, xs, times, and the same of them
cam_quantised.safetensors: weights, and per rule the quantised values, the gradient that comes back, the levels and the bits that they take
"""

import heapq
import itertools
import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from common import goldens, randn, save, setup
from scipy.ndimage import map_coordinates
from scipy.stats import entropy

SCRIPT = "python/goldens/fields_cam.py"
PACKAGES = ("scipy",)


def read(affine, places, padding):
    """Scale and shift at `places` [points, 2] in +-1, the number of the last axis first; checked against scipy."""
    found = F.grid_sample(affine, places[None, :, None], padding_mode=padding, align_corners=True)[0, ..., 0]
    rows, columns = affine.shape[2:]
    cells = (places.detach().double().numpy() + 1) / 2 * [columns - 1, rows - 1]
    for channel, values in zip(affine[0].detach().double().numpy(), found):
        # With mode `grid-constant` scipy fades to 0 over a cell, as padding with zeros does.
        theirs = map_coordinates(channel, [cells[:, 1], cells[:, 0]], order=1, mode={"border": "nearest", "zeros": "grid-constant"}[padding])
        assert np.abs(values.detach().numpy() - theirs).max() < (1e-12 if affine.dtype == torch.float64 else 1e-5)
    return found


def plane(affine, coords, config):
    low, high = config["domain"]
    return read(affine, 2 * (coords - low) / (high - low) - 1, config["padding"])


def line(affine, coords, config):
    low, high = config["domain"]
    along = 2 * (coords - low) / (high - low) - 1
    return read(affine, torch.cat([torch.zeros_like(along), along], -1), config["padding"])


def directions(affine, coords, config):
    """The released angles, in cells; `map_coordinates` of JAX with mode `nearest`, written out."""
    x, y, z = coords.unbind(-1)
    azimuth = torch.atan2(y, x) / math.pi / 2 + 0.5
    elevation = torch.atan2(z, torch.sqrt(x * x + y * y)) * (-2.0) / math.pi
    grids, found = affine[0], 0
    rows, columns = grids.shape[1:]
    places = [azimuth * (rows - 1), elevation * (columns - 1)]
    for corner in itertools.product([0, 1], repeat=2):
        weight, index = 1, []
        for place, offset, count in zip(places, corner, (rows, columns)):
            below = place.detach().floor()
            weight = weight * ((place - below) if offset else (1 - (place - below)))
            index.append((below + offset).clamp(0, count - 1).long())
        found = found + weight * grids[:, index[0], index[1]]
    return found


def tri_plane(affine, coords, config):
    low, high = config["domain"]
    places = 2 * (coords - low) / (high - low) - 1
    pairs = torch.stack([places[:, pair] for pair in ([0, 1], [0, 2], [1, 2])]).repeat(2, 1, 1)
    found = F.grid_sample(affine, pairs[:, :, None], padding_mode=config["padding"], align_corners=True).reshape(6, -1)
    return torch.stack([found[:3].prod(0), found[3:].prod(0)])


READ = {"plane": plane, "line": line, "directions": directions, "tri_plane": tri_plane}


def normalise(h, config):
    if config["norm"] == "none":
        return h
    if config["norm"] == "point":
        points = h.reshape(1, -1, h.shape[-1])
        return F.instance_norm(points, eps=config["eps"]).reshape(h.shape)
    # One group over the channels, which stand first here, and over the samples.
    return F.group_norm(h.transpose(1, 2), 1, eps=config["eps"]).transpose(1, 2)


def golden(case: str, config: dict, size: tuple[int, ...], coords, affine, dtype=torch.float64) -> None:
    h = (randn(*size, seed=1) * 2 + 0.5).to(dtype).requires_grad_()
    coords = coords.detach().clone().to(dtype).requires_grad_()
    affine = (affine + 0.3 * randn(*affine.shape, seed=2)).to(dtype).requires_grad_()
    scale, shift = READ[config["grid"]["kind"]](affine, coords.reshape(-1, coords.shape[-1]), config)
    leading = coords.shape[:-1] + (1,) * (h.dim() - coords.dim() + 1)
    y = normalise(h, config) * scale.view(leading) + shift.view(leading)
    cotangent = randn(*y.shape, seed=3).to(dtype)
    (y * cotangent).sum().backward()
    tensors = {
        "affine": affine, "h": h, "coords": coords, "y": y, "cotangent": cotangent,
        "grad_affine": affine.grad, "grad_h": h.grad, "grad_coords": coords.grad,
    }
    save(goldens("fields") / f"cam_{case}.safetensors", SCRIPT, tensors, config, PACKAGES, dtype=str(dtype).removeprefix("torch."))


def video() -> None:
    """Scale and shift per channel and time; the last cell, cells' own times and ends among the times."""
    steps, channels = 5, 3
    xs = randn(6, channels, 4, 7, seed=1).double().requires_grad_()
    scale = (1 + 0.3 * randn(steps, channels, 1, 1, seed=2)).double().requires_grad_()
    shift = (0.3 * randn(steps, channels, 1, 1, seed=3)).double().requires_grad_()
    times = torch.tensor([0.0, 0.1, 0.25, 0.6, 0.999, 1.0], dtype=torch.float64).requires_grad_()
    # Between cells by numbers that are all at hand, so that the last time needs no cell after the last.
    place = times.view(-1, 1) * (steps - 1)
    weights = (1 - (place - torch.arange(steps)).abs()).clamp(min=0)  # [frames, steps]
    normalised = F.instance_norm(xs, eps=1e-5)
    at_time = [torch.einsum("fs,scij->fcij", weights, grid) for grid in (scale, shift)]
    y = normalised * at_time[0] + at_time[1]
    cotangent = randn(*y.shape, seed=4).double()
    (y * cotangent).sum().backward()
    tensors = {
        "scale": scale, "shift": shift, "xs": xs, "times": times, "y": y, "cotangent": cotangent,
        "grad_scale": scale.grad, "grad_shift": shift.grad, "grad_xs": xs.grad,
    }
    config = {"steps": steps, "channels": channels}
    save(goldens("fields") / "cam_video.safetensors", SCRIPT, tensors, config, PACKAGES, dtype="float64")


def huffman_bits(levels) -> int:
    """Bits of all levels by the lengths of a tree's code words."""
    symbols, counts = np.unique(levels, return_counts=True)
    if len(symbols) == 1:
        return int(counts[0])
    order = itertools.count()
    heap = [(int(count), next(order), {int(symbol): 0}) for symbol, count in zip(symbols, counts)]
    heapq.heapify(heap)
    while len(heap) > 1:
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        depths = {symbol: depth + 1 for part in (a[2], b[2]) for symbol, depth in part.items()}
        heapq.heappush(heap, (a[0] + b[0], next(order), depths))
    depths = heap[0][2]
    assert abs(sum(2.0**-depth for depth in depths.values()) - 1) < 1e-12
    return sum(int(count) * depths[int(symbol)] for symbol, count in zip(symbols, counts))


def quantised() -> None:
    ws = (randn(37, 11, seed=1) * 0.4).double()
    ws[0, 0], ws[0, 1] = 0.0, -1.7
    cotangent = randn(37, 11, seed=2).double()
    tensors, sizes = {"weights": ws, "cotangent": cotangent}, {}
    for rule, bits in [("symmetric", 8), ("symmetric", 4), ("tanh", 8), ("tanh", 6), ("tanh", 2)]:
        most = 2 ** (bits - 1) - 1
        xs = ws.numpy()
        if rule == "symmetric":
            scale = np.abs(xs).max()
            levels = np.rint(np.abs(xs) / scale * most) * np.sign(xs)
            values, through = levels / most * scale, np.ones_like(xs)
        else:
            levels = np.floor(np.abs(np.tanh(xs)) * most) * np.sign(xs)
            values, through = levels / most, 1 / np.cosh(xs) ** 2
        levels = levels.astype(np.int64)
        case = f"{rule}.{bits}"
        tensors |= {
            f"{case}.values": torch.from_numpy(values), f"{case}.levels": torch.from_numpy(levels),
            f"{case}.grad": cotangent * torch.from_numpy(through),
        }
        _, counts = np.unique(levels, return_counts=True)
        sizes[case] = {
            "values": levels.size, "distinct": len(counts), "shannon_bits": float(entropy(counts, base=2) * levels.size),
            "huffman_bits": huffman_bits(levels),
        }
    save(goldens("fields") / "cam_quantised.safetensors", SCRIPT, tensors, {}, PACKAGES, sizes=json.dumps(sizes, sort_keys=True))


def start(*size, axis=1):
    return torch.cat([torch.ones(*size), torch.zeros(*size)], axis)


def unit(*size, seed):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def main() -> None:
    setup()
    f32 = torch.float32
    base = {"padding": "border", "norm": "point", "eps": 1e-5}
    image = base | {"grid": {"kind": "plane", "rows": 5, "columns": 8}, "domain": [0.0, 1.0]}
    coords = unit(19, 2, seed=4) * 1.2 - 0.1
    coords[:4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.25]])
    golden("plane", image, (19, 6), coords, start(1, 1, 8, 5))
    golden("plane_f32", image, (19, 6), coords, start(1, 1, 8, 5), f32)
    golden("plane_zeros", image | {"padding": "zeros", "domain": [-1.0, 1.0]}, (19, 6), coords * 2.4 - 1.2, start(1, 1, 8, 5))
    golden("plane_rays", image, (4, 3, 6), unit(4, 3, 2, seed=5), start(1, 1, 8, 5))
    signal = base | {"grid": {"kind": "line", "cells": 9}, "domain": [0.0, 1.0], "padding": "zeros", "norm": "none"}
    golden("line", signal, (19, 5), unit(19, 1, seed=6) * 1.2 - 0.1, start(1, 1, 9, 1))
    time = signal | {"grid": {"kind": "line", "cells": 5}}
    golden("time_per_ray", time, (7, 3, 5), unit(7, 1, seed=7), start(1, 1, 5, 1))
    rays = base | {"grid": {"kind": "directions", "azimuths": 10, "elevations": 3}, "domain": [0.0, 1.0], "norm": "ray", "eps": 1e-6}
    ways = randn(15, 3, seed=8)
    ways = ways / ways.norm(dim=-1, keepdim=True)
    assert (ways[:, 2] > 0).any() and (ways[:, 2] < 0).any()
    golden("directions", rays, (15, 4, 6), ways, start(1, 1, 10, 3))
    golden("directions_f32", rays, (15, 4, 6), ways, start(1, 1, 10, 3), f32)
    cube = signal | {"grid": {"kind": "tri_plane", "side": 7, "live_shift": False}, "domain": [-1.5, 1.5]}
    places = unit(23, 3, seed=9) * 3.6 - 1.8
    golden("tri_plane", cube, (23, 5), places, start(3, 1, 7, 7, axis=0))
    golden("tri_plane_f32", cube, (23, 5), places, start(3, 1, 7, 7, axis=0), f32)
    video()
    quantised()


if __name__ == "__main__":
    main()
