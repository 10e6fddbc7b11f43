"""Goldens of volume rendering, of where rays are sampled, and of occupancy grids.

References: nerfacc 0.5.3 where it runs on a CPU (dense rendering, visibility, ray-box intersection, updates of the occupancy grid); else the
equations anew: NeRF's first code (its rendering and its draws) in torch, cameras and marching ray by ray in numpy.
Writes into crates/fields/tests/goldens/ files rendering_<case>.safetensors.
"""

import json
import math

import numpy as np
import torch
from common import goldens, randn, save, setup
from nerfacc import OccGridEstimator, render_visibility_from_density, rendering
from nerfacc.estimators import occ_grid
from nerfacc.grid import _ray_aabb_intersect

SCRIPT = "python/goldens/fields_rendering.py"


def write(case: str, tensors: dict, config=None, packages: tuple[str, ...] = (), **meta: str) -> None:
    tensors = {name: torch.as_tensor(xs) for name, xs in tensors.items()}
    save(goldens("fields") / f"rendering_{case}.safetensors", SCRIPT, tensors, config or {}, packages, **meta)


def uniform(*size: int, seed: int) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rays_of(rays: int, samples: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Thin, thick and empty rays, with pieces of no length."""
    t = uniform(rays, samples + 1, seed=1).cumsum(1) + 0.5
    t[1, 4] = t[1, 5]
    sigma = 2 * randn(rays, samples, seed=2).double().relu()
    sigma[0], sigma[3, 3] = 0, 1e6
    if dtype == torch.float64:
        sigma[2] *= 1e-6  # in f32, 1 - exp(-τ) as the references compute it keeps no digits of such a ray
    return {"sigma": sigma.to(dtype), "rgb": uniform(rays, samples, 3, seed=3).to(dtype), "t": t.to(dtype)}


def differentiated(outputs: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs, outputs, cotangents and gradients."""
    cotangents = {name: randn(*xs.shape, seed=20 + i).to(xs.dtype) for i, (name, xs) in enumerate(sorted(outputs.items()))}
    sum((xs * cotangents[name]).sum() for name, xs in outputs.items()).backward()
    return (
        inputs | {f"output.{name}": xs for name, xs in outputs.items()} | {f"cotangent.{name}": xs for name, xs in cotangents.items()}
        | {f"grad.{name}": xs.grad for name, xs in inputs.items() if xs.grad is not None}
    )


def dense() -> None:
    for dtype in [torch.float64, torch.float32]:
        inputs = {name: xs.requires_grad_() for name, xs in rays_of(7, 13, dtype).items()}
        t = inputs["t"]
        rgb, opacity, depth, extras = rendering(
            t[:, :-1], t[:, 1:], rgb_sigma_fn=lambda *_: (inputs["rgb"], inputs["sigma"]), render_bkgd=torch.ones(3, dtype=dtype),
        )
        outputs = {"rgb": rgb, "opacity": opacity[:, 0], "depth": depth[:, 0], "weights": extras["weights"]}
        kind = str(dtype).removeprefix("torch.")
        write(f"dense_{kind}", differentiated(outputs, inputs), packages=("nerfacc",), dtype=kind)


def classic() -> None:
    """`raw2outputs` of NeRF's first code, from the density on."""
    inputs = rays_of(7, 13, torch.float64)
    inputs["t"] = inputs["t"][:, :-1].clone()
    inputs["lengths"] = uniform(7, seed=4) + 0.5
    inputs = {name: xs.requires_grad_() for name, xs in inputs.items()}
    sigma, rgb, t, lengths = inputs.values()
    dists = torch.cat([t[:, 1:] - t[:, :-1], torch.full_like(t[:, :1], 1e10)], -1) * lengths[:, None]
    alpha = 1 - torch.exp(-sigma * dists)
    weights = alpha * torch.cumprod(torch.cat([torch.ones(7, 1), 1 - alpha + 1e-10], -1), -1)[:, :-1]
    outputs = {
        "rgb": (weights[..., None] * rgb).sum(1), "weights": weights, "opacity": weights.sum(1), "depth": (weights * t).sum(1),
    }
    write("classic", differentiated(outputs, inputs))


def packed() -> None:
    """Ray by ray, sample by sample: light that is left is multiplied by e^-τ. Counts of samples beyond a piece of work, one, and none."""
    counts = [0, 1, 300, 0, 7, 129, 128, 0]
    for dtype in [torch.float64, torch.float32]:
        total = sum(counts)
        inputs = {"sigma": (3 * randn(total, seed=5).double().relu()).to(dtype), "rgb": uniform(total, 3, seed=6).to(dtype)}
        inputs = {name: xs.requires_grad_() for name, xs in inputs.items()}
        ray = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
        lengths = 0.02 + 0.1 * uniform(total, seed=7)
        end = torch.cat([(part + 0.05 * uniform(len(part), seed=8)).cumsum(0) for part in lengths.split(counts)])
        start, end = (end - lengths).to(dtype), end.to(dtype)
        sigma, colours = inputs["sigma"].double(), inputs["rgb"].double()
        rgb, opacity, depth, weights, place = [], [], [], [], 0
        for count in counts:
            light, sums = torch.ones((), dtype=torch.float64), [torch.zeros(3, dtype=torch.float64)] + [torch.zeros((), dtype=torch.float64)] * 2
            for i in range(place, place + count):
                left = light * torch.exp(-sigma[i] * (end[i] - start[i]).double())
                weight, light = light - left, left
                weights.append(weight)
                middle = (start[i] + end[i]).double() / 2
                sums = [sums[0] + weight * colours[i], sums[1] + weight, sums[2] + weight * middle]
            rgb.append(sums[0]), opacity.append(sums[1])
            depth.append(sums[2] / sums[1].clamp_min(torch.finfo(dtype).eps))
            place += count
        outputs = {"rgb": torch.stack(rgb), "opacity": torch.stack(opacity), "depth": torch.stack(depth), "weights": torch.stack(weights)}
        outputs = {name: xs.to(dtype) for name, xs in outputs.items()}
        kind = str(dtype).removeprefix("torch.")
        write(f"packed_{kind}", differentiated(outputs, inputs) | {"ray": ray, "start": start, "end": end}, rays=str(len(counts)), dtype=kind)


def visible() -> None:
    inputs = rays_of(9, 40, torch.float64)
    t = inputs["t"] * 0.2
    found = {}
    for early, alpha in [(1e-4, 0.0), (1e-4, 0.05), (0.3, 0.2), (0.0, 0.0)]:
        found[f"seen.{early}.{alpha}"] = render_visibility_from_density(
            t[:, :-1], t[:, 1:], inputs["sigma"], early_stop_eps=early, alpha_thre=alpha,
        )
    write("visible", {"sigma": inputs["sigma"], "t": t} | found, packages=("nerfacc",))


def camera() -> None:
    """Pixel by pixel: a point on the plane z = -1 of the camera, turned and moved into the world."""
    width, height, angle = 7, 5, 0.69
    focal = 0.5 * width / math.tan(0.5 * angle)
    rotation, _ = np.linalg.qr(randn(3, 3, seed=9).double().numpy())
    pose = np.concatenate([np.concatenate([rotation, [[0.3], [-4.0], [1.1]]], 1), [[0, 0, 0, 1]]])
    dirs = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5 - width / 2) / focal, (height / 2 - row - 0.5) / focal
            dirs[row, column] = pose[:3, :3] @ np.array([x, y, -1.0])
    spread = np.linalg.norm(dirs[:-1] - dirs[1:], axis=-1) * 2 / np.sqrt(12)  # as mip-NeRF's loader has radii
    write(
        "camera", {"pose": pose, "dirs": dirs.reshape(-1, 3), "origin": pose[:3, 3].copy(), "radius": spread[0, 0]},
        {"width": width, "height": height, "focal": focal}, angle=str(angle),
    )


def some_rays() -> tuple[torch.Tensor, torch.Tensor]:
    """Towards a box around 0 and past it, from outside and inside, along axes, and away from it."""
    origins, dirs = 3 * randn(60, 3, seed=10).double(), randn(60, 3, seed=11).double()
    dirs[:40] = 0.4 * randn(40, 3, seed=12).double() - origins[:40]
    origins[40:46] *= 0.1
    dirs[46], origins[46] = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, -0.3, -5.0])
    dirs[47], origins[47] = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([9.0, 0.0, 0.1])
    dirs[48], origins[48] = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-7.0, 0.5, 0.7])
    return origins, dirs / dirs.norm(dim=1, keepdim=True)


BOX = [-1.0, -1.25, -0.75, 1.5, 1.0, 0.75]


def box() -> None:
    origins, dirs = some_rays()
    tensors = {"origins": origins, "dirs": dirs}
    for name, near, far in [("open", -1e30, 1e30), ("limited", 0.5, 4.0)]:
        enter, leave, hit = _ray_aabb_intersect(origins, dirs, torch.tensor([BOX], dtype=torch.float64), near, far)
        tensors |= {f"{name}.enter": enter[:, 0], f"{name}.leave": leave[:, 0], f"{name}.hit": hit[:, 0]}
    write("box", tensors, {"min": BOX[:3], "max": BOX[3:]}, ("nerfacc",))


def sampling() -> None:
    """Stratified distances and `sample_pdf` of NeRF's first code, with its uniform numbers given."""
    rays, coarse, fine = 6, 9, 14
    near, far = uniform(rays, seed=13) + 0.5, uniform(rays, seed=14) + 4
    share = torch.linspace(0, 1, coarse, dtype=torch.float64)
    steps = near[:, None] * (1 - share) + far[:, None] * share
    mids = 0.5 * (steps[:, 1:] + steps[:, :-1])
    jitter = uniform(rays, coarse, seed=15)
    upper, lower = torch.cat([mids, steps[:, -1:]], -1), torch.cat([steps[:, :1], mids], -1)
    stratified = lower + (upper - lower) * jitter
    weights = uniform(rays, coarse, seed=16)
    weights[0], weights[1, 3], weights[2, :6] = 0, 40, 0
    tensors = {"near": near, "far": far, "steps": steps, "jitter": jitter, "stratified": stratified, "weights": weights}
    for name, u in [("random", uniform(rays, fine, seed=17)), ("even", torch.linspace(0, 1, fine, dtype=torch.float64).expand(rays, fine))]:
        bins = 0.5 * (stratified[:, 1:] + stratified[:, :-1])
        pdf = weights[:, 1:-1] + 1e-5
        pdf = pdf / pdf.sum(-1, keepdim=True)
        cdf = torch.cat([torch.zeros(rays, 1), torch.cumsum(pdf, -1)], -1)
        inds = torch.searchsorted(cdf, u.contiguous(), right=True)
        below, above = (inds - 1).clamp_min(0), inds.clamp_max(cdf.shape[-1] - 1)
        cdf0, cdf1, bins0, bins1 = cdf.gather(1, below), cdf.gather(1, above), bins.gather(1, below), bins.gather(1, above)
        denom = torch.where(cdf1 - cdf0 < 1e-5, torch.ones_like(cdf0), cdf1 - cdf0)
        drawn = bins0 + (u - cdf0) / denom * (bins1 - bins0)
        tensors |= {f"u.{name}": u.contiguous(), f"fine.{name}": torch.cat([stratified, drawn], -1).sort(-1)[0]}
    write("sampling", tensors)


def occupancy() -> None:
    """Three updates of nerfacc's grid with given cells and places: all cells, then some. Densities of a ball that moves."""
    side, step = 6, 5e-3
    estimator = OccGridEstimator(BOX, resolution=side)
    tensors, places = {}, []
    original = torch.rand_like
    for number, at in enumerate([0, 16, 256]):
        places = uniform(side**3, 3, seed=30 + number).float()
        cells = torch.randperm(side**3, generator=torch.Generator().manual_seed(number))[: side**3 // 4]
        seen = {}

        def density(x):
            seen["points"] = x
            seen["density"] = (8 * (0.8 - (x - 0.3 * number).norm(dim=-1))).clamp_min(0)
            return (seen["density"] * step)[:, None]

        occ_grid.torch.rand_like = lambda coords, dtype: places[: len(coords)]
        estimator._sample_uniform_and_occupied_cells = lambda n: [cells]
        estimator.update_every_n_steps(step=at, occ_eval_fn=density, warmup_steps=256, n=16)
        occ_grid.torch.rand_like = original
        cells = torch.arange(side**3) if at < 256 else cells
        tensors |= {
            f"{at}.cells": cells, f"{at}.places": places[: len(cells)].clone(), f"{at}.points": seen["points"], f"{at}.density": seen["density"],
            f"{at}.occs": estimator.occs.clone(), f"{at}.binaries": estimator.binaries.clone(),
        }
    state = {f"state.{name}": xs for name, xs in estimator.state_dict().items()}
    config = {"aabb": {"min": BOX[:3], "max": BOX[3:]}, "resolution": side, "step": step}
    write("occupancy", tensors | state, config, ("nerfacc",), steps=json.dumps([0, 16, 256]))


def marching() -> None:
    """All pieces of every ray, one by one: kept if its middle lies in the box and in an occupied cell."""
    side, step, near, far = 9, 0.013, 0.1, 8.0
    occupied = uniform(side, side, side, seed=40).numpy() < 0.2
    occupied[:, :, :2] = False
    origins, dirs = (xs.numpy() for xs in some_rays())
    jitter = uniform(len(origins), seed=41).numpy()
    low, high = np.array(BOX[:3]), np.array(BOX[3:])
    tensors = {"occupied": occupied, "origins": origins, "dirs": dirs, "jitter": jitter}
    for name, moved in [("even", np.zeros_like(jitter)), ("jittered", jitter)]:
        rays, starts, ends = [], [], []
        for ray, (origin, direction) in enumerate(zip(origins, dirs)):
            first = near + moved[ray] * step
            for k in range(int((far - near) / step) + 2):
                middle = first + (k + 0.5) * step
                share = (origin + middle * direction - low) / (high - low)
                if middle >= far or (share < 0).any() or (share >= 1).any() or not occupied[tuple((share * side).astype(int))]:
                    continue
                rays.append(ray), starts.append(first + k * step), ends.append(first + (k + 1) * step)
        assert len(rays) > 500 and len(set(rays)) < len(origins)
        tensors |= {f"{name}.ray": np.array(rays), f"{name}.start": np.array(starts), f"{name}.end": np.array(ends)}
    config = {"aabb": {"min": BOX[:3], "max": BOX[3:]}, "resolution": side, "step": step}
    write("marching", tensors, config, near=str(near), far=str(far))


def main() -> None:
    setup()
    dense()
    classic()
    packed()
    visible()
    camera()
    box()
    sampling()
    occupancy()
    marching()


if __name__ == "__main__":
    main()
