"""Goldens of FreSh: spectra, distances and a search.

References: numpy's full FFT, scipy's Wasserstein distance and torch's interpolation. The spectrum is rebuilt from its definition: each pair of conjugate
coefficients is counted once, at the smaller of its two k. Writes into crates/fields/tests/goldens/:

  fresh_<case>.safetensors   `signal` [C, ...] (absent: values of `wave` at metadata `size`), `spectrum` (k = 1 ... S), and
                             `squared` where sides differ
  fresh_distances            `a`, `b` [pairs, S], `distance` [pairs]
  fresh_search               `target` [1, H, W], `values` [v], `distances` [v, E], `mean`, `error` [v], `chosen`
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from common import goldens, randn, save, setup
from scipy.stats import wasserstein_distance

SCRIPT = "python/goldens/fields_fresh.py"
PACKAGES = ("numpy", "scipy")


def wave(size: tuple[int, ...]) -> torch.Tensor:
    """A smooth signal for any size."""
    places = torch.arange(torch.Size(size).numel(), dtype=torch.float64)
    return torch.sin(0.0007 * places) + 0.3 * torch.cos(0.011 * places)


def square(signal: torch.Tensor) -> torch.Tensor:
    sides = signal.shape[1:]
    side = min(*sides, 1024)
    if all(other == side for other in sides):
        return signal
    how = {"mode": "bilinear", "antialias": True} if len(sides) == 2 else {"mode": "trilinear"}
    return F.interpolate(signal[None], [side] * len(sides), align_corners=False, **how)[0]


def spectrum(signal: torch.Tensor, size: int) -> np.ndarray:
    """Of equal sides, in double precision by all coefficients of a complex transform."""
    values = signal.double().numpy()
    axes = tuple(range(1, values.ndim))
    n = values.shape[1]
    amplitudes = np.abs(np.fft.fftn(values, axes=axes)).sum(0)
    frequencies = np.stack(np.meshgrid(*[np.arange(n)] * len(axes), indexing="ij"), -1).reshape(-1, len(axes))
    conjugates = (-frequencies) % n
    k = np.minimum(frequencies.sum(1), conjugates.sum(1))
    # Coefficients that are their own conjugate stand alone; of the others half of both is one of both.
    share = np.where((frequencies == conjugates).all(1), 1.0, 0.5)
    sums = np.bincount(k, weights=share * amplitudes.reshape(-1), minlength=size + 1)
    return sums[1 : size + 1]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    places = np.arange(len(a))
    return wasserstein_distance(places, places, a, b)


def spectra() -> None:
    cases = {
        "odd": randn(3, 33, 33, seed=1).double(),
        "even": randn(1, 32, 32, seed=2).double(),
        "two": randn(1, 2, 2, seed=3).double(),
        "three": randn(2, 3, 3, seed=4).double(),
        "single": randn(3, 30, 30, seed=5),
        "wide": randn(3, 29, 41, seed=6).double(),
        "tall": randn(1, 44, 21, seed=7),
        "large": wave((1, 1100, 1030)).reshape(1, 1100, 1030),
        "cube_odd": randn(2, 9, 9, 9, seed=8).double(),
        "cube_even": randn(1, 8, 8, 8, seed=9).double(),
        "volume": randn(2, 7, 11, 9, seed=10).double(),
    }
    for case, signal in cases.items():
        squared = square(signal)
        axes, side = squared.ndim - 1, squared.shape[1]
        size = 64 if case == "large" else axes * (side - 1)
        tensors = {"spectrum": torch.from_numpy(spectrum(squared, size))}
        if case != "large":
            tensors["signal"] = signal
            if squared.shape != signal.shape:
                tensors["squared"] = squared
        save(goldens("fields") / f"fresh_{case}.safetensors", SCRIPT, tensors, {}, PACKAGES, size=json.dumps(list(signal.shape)))


def distances() -> None:
    generator = torch.Generator().manual_seed(11)
    a, b = torch.rand(2, 6, 17, generator=generator, dtype=torch.float64) ** 4
    a[3, 2:9] = 0
    a[4], b[4] = 0, 0
    a[4, 0], b[4, 16] = 2, 0.5
    b[5] = 7 * a[5]
    found = [distance(x, y) for x, y in zip(a.numpy(), b.numpy())]
    tensors = {"a": a, "b": b, "distance": torch.tensor(found, dtype=torch.float64)}
    save(goldens("fields") / "fresh_distances.safetensors", SCRIPT, tensors, {}, PACKAGES)


def places(height: int, width: int) -> torch.Tensor:
    axes = [torch.linspace(-1, 1, side) for side in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).double()


def network(value: float, seed: int, points: torch.Tensor) -> torch.Tensor:
    """What stands for a drawn network: waves of three frequencies around `value` whose direction and phase follow the seed."""
    angle = 0.3 + 0.2 * seed
    along = points[..., 0] * np.cos(angle) + points[..., 1] * np.sin(angle)
    return sum(torch.sin(value * factor * along + seed) for factor in (0.5, 1.0, 1.5))


def search() -> None:
    height, width, draws, first_seed = 40, 52, 4, 3
    points = places(height, width)
    target = network(33.0, 17, points)[None] + 0.1 * randn(1, height, width, seed=12).double()
    size = 13
    expected = spectrum(square(target), size)
    values = [10.0, 20.0, 30.0, 40.0, 60.0]
    table = np.array([
        [distance(expected, spectrum(square(network(value, first_seed + draw, points)[None]), size)) for draw in range(draws)]
        for value in values
    ])
    mean, error = table.mean(1), table.std(1) / np.sqrt(draws)
    tensors = {
        "target": target, "values": torch.tensor(values, dtype=torch.float64), "distances": torch.from_numpy(table), "mean": torch.from_numpy(mean),
        "error": torch.from_numpy(error), "spectrum": torch.from_numpy(expected), "chosen": torch.tensor(values[mean.argmin()], dtype=torch.float64),
    }
    options = {"spectrum_size": size, "draws": draws, "seed": first_seed, "chunk": 1000, "abandon": False}
    save(goldens("fields") / "fresh_search.safetensors", SCRIPT, tensors, options, PACKAGES)


def main() -> None:
    setup()
    spectra()
    distances()
    search()


if __name__ == "__main__":
    main()
