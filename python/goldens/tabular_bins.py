"""Goldens of the bin edges of piecewise-linear embeddings: `rtdl_num_embeddings.compute_bins`.

Writes crates/tabular/tests/goldens/bins.safetensors:
  input.x [1000, 5] f32    columns: normal; long-tailed; one decimal (many ties); three values; two values, one of them rare
  input.y_regression [1000] f32, input.y_classes [1000] i64
  output.<case>.<feature>  edges; cases and their arguments in `config`
Quantile edges are equal bit for bit; tree edges need the same thresholds as scikit-learn.
"""

import warnings

import torch
from common import goldens, randn, save, setup
from rtdl_num_embeddings import compute_bins

CASES = {
    "quantile_48": {"n_bins": 48},
    "quantile_5": {"n_bins": 5},
    "quantile_2": {"n_bins": 2},
    "quantile_999": {"n_bins": 999},
    "tree_regression_16": {"n_bins": 16, "regression": True, "tree_kwargs": {"min_samples_leaf": 8, "min_impurity_decrease": 0.0}},
    "tree_regression_48_decrease": {"n_bins": 48, "regression": True, "tree_kwargs": {"min_samples_leaf": 1, "min_impurity_decrease": 0.002}},
    "tree_classes_16": {"n_bins": 16, "regression": False, "tree_kwargs": {"min_samples_leaf": 4, "min_impurity_decrease": 0.0001}},
}


def main() -> None:
    setup()
    warnings.filterwarnings("ignore", message=".*just two bin edges")
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
    y_regression = (2 * xs[:, 0]).sin() + 0.3 * xs[:, 1].log() + xs[:, 2] * xs[:, 3] + 0.8 * xs[:, 4] + 0.3 * noise[:, 5]
    y_classes = torch.bucketize(y_regression, torch.tensor([-0.6, 0.7]))
    tensors = {"input.x": xs, "input.y_regression": y_regression, "input.y_classes": y_classes}
    for case, config in CASES.items():
        args = dict(config)
        if "regression" in args:
            args["y"] = y_regression if args["regression"] else y_classes
            args["tree_kwargs"] = args["tree_kwargs"] | {"random_state": 0}
        edges = compute_bins(xs, **args)
        tensors |= {f"output.{case}.{i}": values for i, values in enumerate(edges)}
        print(case, [len(values) - 1 for values in edges])
    save(goldens("tabular") / "bins.safetensors", "python/goldens/tabular_bins.py", tensors, CASES, ("rtdl_num_embeddings", "scikit-learn"))


if __name__ == "__main__":
    main()
