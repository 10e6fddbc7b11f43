"""Golden of the noisy quantile transform: scikit-learn's QuantileTransformer on float32 columns, with the noise stored.

Writes crates/data/tests/goldens/quantile.safetensors. For each case: <case>.train [n], <case>.noise [n] (already scaled, float32),
<case>.quantiles [q] (float64, as fitted on train + noise), <case>.input [m], <case>.output [m] (float32; NaN stays NaN here).
"""

import numpy as np
import torch
from common import goldens, save, setup
from sklearn.preprocessing import QuantileTransformer

SCRIPT = "python/goldens/data_quantile.py"


def main() -> None:
    setup()
    rng = np.random.RandomState(0)
    columns = {
        "normal": rng.normal(size=2000),
        "heavy_tail": np.exp(2 * rng.normal(size=2000)),
        "ties": np.round(rng.normal(size=2000)),
        "mostly_zero": np.where(rng.rand(1500) < 0.8, 0.0, rng.rand(1500)),
        "large": 1e6 + 1e3 * rng.normal(size=900),
        "few_rows": rng.normal(size=20),
        "three_rows": np.array([1.0, 2.0, 4.0]),
        "with_nan": np.where(rng.rand(1200) < 0.1, np.nan, rng.normal(size=1200)),
    }
    tensors = {}
    for name, column in columns.items():
        column = column.astype(np.float32)
        noise = rng.normal(0.0, 1e-5, size=column.shape).astype(np.float32)
        n = max(min(len(column) // 30, 1000), 10)
        transformer = QuantileTransformer(n_quantiles=min(n, len(column)), output_distribution="normal", subsample=10**9)
        transformer.fit((column + noise)[:, None])
        low, high = np.nanmin(column), np.nanmax(column)
        extra = np.array([low, high, low - 1, high + 1, np.median(column[~np.isnan(column)]), np.nan], dtype=np.float32)
        inputs = np.concatenate([column[:300], rng.uniform(low - 0.5, high + 0.5, size=100).astype(np.float32), extra])
        tensors |= {
            f"{name}.train": torch.from_numpy(column),
            f"{name}.noise": torch.from_numpy(noise),
            f"{name}.quantiles": torch.from_numpy(transformer.quantiles_[:, 0].astype(np.float64)),
            f"{name}.input": torch.from_numpy(inputs),
            f"{name}.output": torch.from_numpy(transformer.transform(inputs[:, None].copy())[:, 0]),
        }
    save(goldens("data") / "quantile.safetensors", SCRIPT, tensors, {"cases": sorted(columns)}, packages=("scikit-learn", "numpy", "scipy"))


if __name__ == "__main__":
    main()
