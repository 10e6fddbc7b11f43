"""Writes the folder that `train_tabm.py` reads, made by scikit-learn instead of by `densely train RECIPE --export DIR`.

    python python/reference/export_sklearn.py california california_housing.parquet.brotli DIR
    python python/reference/export_sklearn.py adult adult.parquet.brotli DIR

A random split of 64 / 16 / 20 % (stratified for classes), the noisy quantile transform of the paper's code, ordinal codes in which
an unseen category is the cardinality. Useful to try the yardstick without Densely, and as an independent check of its preprocessing;
the committed figures are made from Densely's own export, so that both sides see the same bits.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import QuantileTransformer

SETS = {"california": ("MedHouseVal", False), "adult": ("income", True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the fitting noise")
    args = parser.parse_args()

    target, classes = SETS[args.set]
    table = pd.read_parquet(args.file)
    ys = table.pop(target)
    labels = sorted(ys.unique()) if classes else []
    ys = ys.map({label: i for i, label in enumerate(labels)}).to_numpy() if classes else ys.to_numpy(np.float64)
    rows = np.arange(len(table))
    rest, test = train_test_split(rows, test_size=0.2, random_state=args.seed, stratify=ys if classes else None)
    train, valid = train_test_split(rest, test_size=0.2, random_state=args.seed, stratify=ys[rest] if classes else None)

    numeric = [name for name in table if pd.api.types.is_numeric_dtype(table[name])]
    categorical = [name for name in table if name not in numeric]
    x_num = table[numeric].to_numpy(np.float32)
    noise = np.random.RandomState(args.seed).normal(0.0, 1e-5, (len(train), len(numeric))).astype(np.float32)
    transformer = QuantileTransformer(n_quantiles=max(min(len(train) // 30, 1000), 10), output_distribution="normal", subsample=10**9, random_state=args.seed)
    transformer.fit(x_num[train] + noise)
    x_num = transformer.transform(x_num).astype(np.float32)
    codes, cardinalities = [], []
    for name in categorical:
        known = {value: i for i, value in enumerate(sorted(table[name].iloc[train].astype(str).unique()))}
        codes.append(table[name].astype(str).map(lambda value, known=known: known.get(value, len(known))).to_numpy(np.int64))
        cardinalities.append(len(known))
    mean, std = (0.0, 1.0) if classes else (float(ys[train].mean()), float(ys[train].std()))

    args.folder.mkdir(parents=True, exist_ok=True)
    for name, part in {"train": train, "valid": valid, "test": test}.items():
        tensors = {
            "x_num": torch.from_numpy(x_num[part]),
            "y": torch.from_numpy(ys[part]) if classes else torch.from_numpy(((ys[part] - mean) / std).astype(np.float32)),
        }
        if codes:
            tensors["x_cat"] = torch.from_numpy(np.stack([column[part] for column in codes], 1))
        save_file(tensors, args.folder / f"{name}.safetensors")
    meta = {
        "task": "binary" if classes else "regression",
        "classes": [str(label) for label in labels],
        "cat_cardinalities": cardinalities,
        "target_mean": mean,
        "target_std": std,
    }
    (args.folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"{args.folder}: {len(train)} / {len(valid)} / {len(test)} rows, {len(numeric)} numerical, {len(categorical)} categorical {cardinalities}")


if __name__ == "__main__":
    main()
