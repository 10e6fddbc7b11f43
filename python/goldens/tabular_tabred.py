"""Goldens of TabReD's folders and splits, written by NumPy itself.

Writes crates/tabular/tests/goldens/tabred_folders.safetensors: one synthetic data set as the files of all three
layouts, each file as bytes under `file.<layout>/<path>`, and its arrays as `output.<array>` (f64 or i64, all rows).
`file.odd/...` are the same numerical array as float64, by column, and with the other byte order.

Writes crates/tabular/tests/goldens/tabred_random.safetensors: the random splits as the benchmark's preprocessing scripts
make them. `output.small.<split>.<part>`: rows of 97 rows with windows of 10. `output.<rows>_<window>.<split>`: of a data
set's real size, for each part its first row, its last, and the sum of (position + 1) * row modulo 2^64.
"""

import io
import json

import numpy as np
import torch
from common import goldens, save

SIZES = {"small": (97, 10), "260753_20000": (260_753, 20_000), "28321_4500": (28_321, 4_500), "381664_50000": (381_664, 50_000)}
PARTS = ("train", "val", "test")


def npy(array: np.ndarray) -> torch.Tensor:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return torch.from_numpy(np.frombuffer(file.getvalue(), dtype=np.uint8).copy())


def text(value: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(value.encode(), dtype=np.uint8).copy())


def analysis_splits(rows: int, window: int) -> dict[str, dict[str, np.ndarray]]:
    """The scripts' calls: windows by `arange`, then one legacy generator that shuffles the three in turn."""
    train = rows - 4 * window
    sliding = [{"train": np.arange(train), "val": np.arange(train, train + window), "test": np.arange(train + window, train + 2 * window)}]
    for _ in range(2):
        sliding.append({part: idx + window for part, idx in sliding[-1].items()})
    np.random.seed(0)
    splits = {}
    for i, split in enumerate(sliding):
        idx = np.concatenate([split[part] for part in PARTS])
        np.random.shuffle(idx)
        splits[f"sliding-window-{i}"] = split
        splits[f"random-{i}"] = {"train": idx[:train], "val": idx[train : train + window], "test": idx[train + window :]}
    return splits


def folders() -> None:
    rows = 40
    rng = np.random.RandomState(7)
    x_num = rng.normal(size=(rows, 3)).astype(np.float32)
    x_num[rng.rand(rows, 3) < 0.1] = np.nan
    arrays = {
        "num": x_num,
        "bin": (rng.rand(rows, 2) < 0.4).astype(np.float32),
        "cat": rng.randint(0, 4, size=(rows, 2)).astype(np.int64),
        "meta": np.stack([1_700_000_000_000_000 + np.arange(rows) * 3_600_000_000, np.arange(rows)], axis=1).astype(np.int64),
        "y": np.nan_to_num(x_num).sum(axis=1).astype(np.float32),
    }
    splits = {"default": {"train": np.arange(24), "val": np.arange(24, 32), "test": np.arange(32, 40)}} | analysis_splits(rows, 5)
    info = json.dumps({"name": "made", "task_type": "regression"}, indent=4)
    tensors = {f"file.{layout}/info.json": text(info) for layout in ("new", "old", "parts")}
    for name, array in arrays.items():
        stem = "y" if name == "y" else f"x_{name}"
        tensors[f"file.new/{stem}.npy"] = npy(array)
        tensors[f"file.old/{stem.capitalize()}.npy"] = npy(array)
        for part, idx in splits["default"].items():
            if name != "meta":
                tensors[f"file.parts/{stem.capitalize()}_{part}.npy"] = npy(array[idx])
        tensors[f"output.{name}"] = torch.from_numpy(array.astype(np.float64 if array.dtype == np.float32 else np.int64))
    for split, parts in splits.items():
        for part, idx in parts.items():
            tensors[f"file.new/splits/{split}/{part}.npy"] = npy(idx.astype(np.uint32) if split == "default" else idx)
            tensors[f"file.old/split-{split}/{part}_idx.npy"] = npy(idx)
            tensors[f"output.split.{split}.{part}"] = torch.from_numpy(idx.astype(np.int64))
    tensors["file.odd/f64.npy"] = npy(x_num.astype(np.float64))
    tensors["file.odd/by_column.npy"] = npy(np.asfortranarray(x_num))
    tensors["file.odd/big_endian.npy"] = npy(x_num.astype(">f4"))
    save(goldens("tabular") / "tabred_folders.safetensors", "tabular_tabred.py", tensors, {"rows": rows}, ("numpy",))


def random() -> None:
    tensors = {}
    for name, (rows, window) in SIZES.items():
        for split, parts in analysis_splits(rows, window).items():
            if not split.startswith("random"):
                continue
            if name == "small":
                for part, idx in parts.items():
                    tensors[f"output.small.{split}.{part}"] = torch.from_numpy(idx.astype(np.int64))
                continue
            checks = []
            for part in PARTS:
                idx = parts[part].astype(np.uint64)
                sum_ = (np.arange(1, len(idx) + 1, dtype=np.uint64) * idx).sum(dtype=np.uint64)
                checks.append([int(idx[0]), int(idx[-1]), int(sum_.astype(np.int64))])
            tensors[f"output.{name}.{split}"] = torch.tensor(checks, dtype=torch.int64)
    save(goldens("tabular") / "tabred_random.safetensors", "tabular_tabred.py", tensors, SIZES, ("numpy",))


if __name__ == "__main__":
    folders()
    random()
