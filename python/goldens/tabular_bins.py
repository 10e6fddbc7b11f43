"""Goldens of the bin edges of piecewise-linear embeddings: `rtdl_num_embeddings.compute_bins`.

Writes crates/tabular/tests/goldens/bins.safetensors:
  input.x [1000, 5] f32    columns: normal; long-tailed; one decimal (many ties); three values; two values, one of them rare
  input.y_regression [1000] f32, input.y_classes [1000] i64
and crates/tabular/tests/goldens/bins_tree.safetensors, trees only:
  input.houses.* [5000 rows]   columns: income (skewed), age (whole numbers), latitude (two decimals), rooms (long tail)
  input.small.*  [60 rows]     columns: three values; constant but for one row; two clusters with gaps below 1e-7; 0, 1, 2, ... twice
  input.even.*   [64 rows]     columns and targets that are mirror images: cuts and nodes that are equally good
  output.<case>.<feature>      edges; cases and their arguments in `config`
Equal bit for bit: scikit-learn adds sums in an order that decides between cuts that are equally good.
"""

import warnings

import torch
from common import goldens, randn, save, setup
from rtdl_num_embeddings import compute_bins


def tree(n_bins: int, x: str, y: str, leaf: int = 1, decrease: float = 0.0) -> dict:
    return {"n_bins": n_bins, "x": x, "y": y, "tree_kwargs": {"min_samples_leaf": leaf, "min_impurity_decrease": decrease}}


BINS = {
    "quantile_48": {"n_bins": 48},
    "quantile_5": {"n_bins": 5},
    "quantile_2": {"n_bins": 2},
    "quantile_999": {"n_bins": 999},
    "tree_regression_16": tree(16, "x", "y_regression", leaf=8),
    "tree_regression_48_decrease": tree(48, "x", "y_regression", decrease=0.002),
    "tree_regression_999": tree(999, "x", "y_regression"),
    "tree_classes_16": tree(16, "x", "y_classes", leaf=4, decrease=0.0001),
}

TREES = {f"{task}_{n}": tree(n, "houses.x", f"houses.{task}") for task in ("price", "dear", "band") for n in (2, 48)} | {
    "price_leaf": tree(128, "houses.x", "houses.price", leaf=64, decrease=1e-4),
    "dear_leaf": tree(128, "houses.x", "houses.dear", leaf=32, decrease=1e-5),
    "band_leaf": tree(48, "houses.x", "houses.band", leaf=5, decrease=1e-4),
    "uncut": tree(8, "houses.x", "houses.price", decrease=1e3),
    "small": tree(59, "small.x", "small.y"),
    "small_classes": tree(59, "small.x", "small.classes"),
    "small_leaf": tree(8, "small.x", "small.y", leaf=20),
}
TREES |= {f"even_{task}_{n}": tree(n, "even.x", f"even.{task}") for task in ("y", "classes") for n in (3, 4, 6, 11, 20, 63)}


def many_kinds() -> dict:
    noise = randn(1000, 6, seed=1)
    xs = torch.stack(
        [
            noise[:, 0],
            (noise[:, 1] * 1.5).exp(),
            (noise[:, 2] * 10).round() / 10,
            (noise[:, 3] * 1.2).round().clamp(-1, 1),
            (noise[:, 4] > 2.2).float(),
        ],
        1,
    )
    y = (2 * xs[:, 0]).sin() + 0.3 * xs[:, 1].log() + xs[:, 2] * xs[:, 3] + 0.8 * xs[:, 4] + 0.3 * noise[:, 5]
    return {"x": xs, "y_regression": y, "y_classes": torch.bucketize(y, torch.tensor([-0.6, 0.7]))}


def houses() -> dict:
    noise = randn(5000, 5, seed=2)
    income, age = (noise[:, 0] * 0.5 + 1.2).exp(), (noise[:, 1] * 12 + 28).round().clamp(1, 52)
    latitude, rooms = ((noise[:, 2] * 2.1 + 35.6) * 100).round() / 100, (noise[:, 3] * 0.3 + 1.6).exp()
    price = (0.4 * income + 0.01 * age - 0.3 * (latitude - 34).abs() + 0.1 * rooms + 0.3 * noise[:, 4]).clamp(0.15, 5)
    return {
        "houses.x": torch.stack([income, age, latitude, rooms], 1),
        "houses.price": (price - price.mean()) / price.std(correction=0),
        "houses.dear": (price > 1.2).long(),
        "houses.band": torch.bucketize(price, torch.tensor([0.5, 0.9, 1.4, 2.0])),
    }


def small() -> dict:
    noise = randn(60, 2, seed=3)
    rows = torch.arange(60)
    near = torch.where(rows < 30, 0.1, 0.2) + (rows % 7) * 3e-8
    xs = torch.stack([(rows % 3).float(), (rows == 17).float(), near, (rows // 2).float()], 1)
    return {"small.x": xs, "small.y": (noise[:, 0] * 3).round() / 3, "small.classes": (noise[:, 1] * 1.5).round().clamp(-1, 1).long() + 1}


def even() -> dict:
    rows = torch.arange(64)
    shuffled = rows[torch.randperm(64, generator=torch.Generator().manual_seed(4))]
    xs = torch.stack([shuffled.float(), (shuffled // 4).float(), (shuffled % 8).float()], 1)
    return {"even.x": xs, "even.y": ((shuffled // 4) % 4 * 0.1).float(), "even.classes": (shuffled // 8) % 2}


def write(file: str, inputs: dict, cases: dict) -> None:
    tensors = {f"input.{name}": values for name, values in inputs.items()}
    for case, config in cases.items():
        args = {"n_bins": config["n_bins"]}
        if "tree_kwargs" in config:
            y = inputs[config["y"]]
            args |= {"y": y, "regression": y.is_floating_point(), "tree_kwargs": config["tree_kwargs"] | {"random_state": 0}}
        edges = compute_bins(inputs[config.get("x", "x")], **args)
        tensors |= {f"output.{case}.{i}": values for i, values in enumerate(edges)}
        print(case, [len(values) - 1 for values in edges])
    save(goldens("tabular") / file, "python/goldens/tabular_bins.py", tensors, cases, ("rtdl_num_embeddings", "scikit-learn"))


def main() -> None:
    setup()
    warnings.filterwarnings("ignore", message=".*just two bin edges")
    write("bins.safetensors", many_kinds(), BINS)
    write("bins_tree.safetensors", houses() | small() | even(), TREES)


if __name__ == "__main__":
    main()
