"""Goldens of the noisy quantile transform, from scikit-learn, with the noise as an input.

The recipe is that of the TabM paper: fit on x + noise (both float32), transform x itself; NaN becomes 0 afterwards.
"""

import warnings

import common
import numpy as np
import torch
from sklearn.preprocessing import QuantileTransformer

SCRIPT = "python/goldens/data_quantile.py"


def columns(rows: int, names: list[str], generator: np.random.Generator) -> np.ndarray:
    """Columns that are awkward in different ways."""
    normal = generator.normal(size=rows)
    holes = np.where(generator.random(rows) < 0.2, np.nan, normal)
    made = {
        "normal": normal,
        "heavy": np.exp(3 * generator.normal(size=rows)),
        "ties": generator.integers(0, 4, size=rows).astype(float),
        "holes": holes,
        "tied_holes": np.where(np.isnan(holes), np.nan, np.round(2 * holes)),
        "large": 1e7 + np.round(generator.normal(size=rows) * 50),
        "zeros": np.where(generator.random(rows) < 0.9, 0.0, generator.random(rows)),
        "constant": np.full(rows, 3.0),
        "tiny": 1e-7 * generator.normal(size=rows),
    }
    return np.stack([made[name] for name in names], axis=1).astype(np.float32)


def case(name: str, rows: int, test_rows: int, names: list[str], seed: int) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    train = columns(rows, names, generator)
    test = columns(test_rows, names, generator)
    # Beyond the training range on both sides, at its ends, and just inside and outside of them.
    ends = np.stack([np.nanmin(train, axis=0), np.nanmax(train, axis=0)])
    edges = np.concatenate([ends - 1, ends + 1, ends, np.nextafter(ends, np.float32(-np.inf)), np.nextafter(ends, np.float32(np.inf))])
    test = np.concatenate([test, edges.astype(np.float32)])
    noise = generator.normal(0.0, 1e-5, train.shape).astype(np.float32)
    count = max(min(rows // 30, 1000), 10)
    transformer = QuantileTransformer(n_quantiles=count, output_distribution="normal", subsample=1_000_000_000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more quantiles than rows: scikit-learn takes as many as there are rows
        transformer.fit(train + noise)
    outputs = {"train": transformer.transform(train), "test": transformer.transform(test)}
    tensors = {f"input.{name}.train": train, f"input.{name}.noise": noise, f"input.{name}.test": test}
    tensors |= {f"output.{name}.{part}": np.nan_to_num(values, nan=0.0).astype(np.float32) for part, values in outputs.items()}
    tensors[f"output.{name}.quantiles"] = transformer.quantiles_.astype(np.float64)
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}


def main() -> None:
    common.setup()
    everything = ["normal", "heavy", "ties", "holes", "tied_holes", "large", "zeros", "constant", "tiny"]
    tensors = case("rows_8", 8, 10, everything, seed=1)  # fewer rows than the least number of quantiles
    tensors |= case("rows_20", 20, 20, everything, seed=2)
    tensors |= case("rows_329", 329, 30, everything, seed=3)
    tensors |= case("rows_900", 900, 30, ["normal", "ties", "holes", "zeros"], seed=4)
    tensors |= case("rows_4000", 4000, 50, ["heavy", "tied_holes"], seed=5)
    config = {"noise": 1e-5, "cases": ["rows_8", "rows_20", "rows_329", "rows_900", "rows_4000"]}
    common.save(common.goldens("data") / "quantile.safetensors", SCRIPT, tensors, config, ("numpy", "scikit-learn", "scipy"))


if __name__ == "__main__":
    main()
