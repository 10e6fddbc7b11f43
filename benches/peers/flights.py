"""The Python side of the comparison on flights: XGBoost, LightGBM, or the package `tabm`, on the rows that ours trains on.

    python benches/peers/flights.py FOLDER PEER THREADS

FOLDER is what `densely train RECIPE --quick --export FOLDER` writes; PEER is `xgboost`, `lightgbm` or `tabm`. Trees have their packages'
defaults, a learning rate of 0.1, and as many trees as the validation rows choose; categories are their codes. `tabm` is trained as in
python/reference/train_tabm.py, with the settings of the recipe. The lines are those of benches/examples/flights.rs.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

PARTS = ("train", "valid", "test")
MOST_TREES, PATIENCE = 1000, 50


def say(line: dict) -> None:
    print(json.dumps(line), flush=True)


def rows(folder: Path):
    """Features `[rows, n + m]` f32 and classes of each part."""
    import numpy as np
    from safetensors.numpy import load_file

    parts = [load_file(folder / f"{name}.safetensors") for name in PARTS]
    both = lambda part: [part[name].astype(np.float32) for name in ("x_num", "x_cat") if name in part]
    return [(np.concatenate(both(part), 1), part["y"].astype(int)) for part in parts]


def xgboost(folder: Path, threads: int):
    import xgboost as package

    train, valid, test = rows(folder)
    model = package.XGBClassifier(
        n_estimators=MOST_TREES, learning_rate=0.1, tree_method="hist", n_jobs=threads, eval_metric="auc", early_stopping_rounds=PATIENCE, random_state=0
    )
    begin = time.perf_counter()
    model.fit(*train, eval_set=[valid], verbose=False)
    seconds = time.perf_counter() - begin
    return seconds, lambda: model.predict_proba(test[0])[:, 1], test[1]


def lightgbm(folder: Path, threads: int):
    import lightgbm as package

    train, valid, test = rows(folder)
    model = package.LGBMClassifier(n_estimators=MOST_TREES, learning_rate=0.1, n_jobs=threads, random_state=0, verbose=-1)
    stop = package.early_stopping(PATIENCE, verbose=False)
    begin = time.perf_counter()
    model.fit(*train, eval_X=valid[0], eval_y=valid[1], eval_metric="auc", callbacks=[stop])
    seconds = time.perf_counter() - begin
    return seconds, lambda: model.predict_proba(test[0])[:, 1], test[1]


def tabm(folder: Path, threads: int):
    sys.path.insert(0, str(Path(__file__).parents[2] / "python" / "reference"))
    import torch
    from safetensors.torch import load_file
    from train_tabm import QUICK, RECIPES, train

    run = train(folder, QUICK | RECIPES["tabm-flights-time"], 0, threads, False, keep=True)
    test = load_file(folder / "test.safetensors")
    inputs = {name: xs for name, xs in test.items() if name != "y"}

    @torch.inference_mode()
    def predict():
        batches = range(0, len(test["y"]), 8192)
        ys = torch.cat([run["model"](**{name: xs[i : i + 8192] for name, xs in inputs.items()}) for i in batches])
        return ys.softmax(-1).mean(1)[:, 1].numpy()

    return run["seconds"], predict, test["y"].numpy()


def main() -> None:
    folder, peer, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    seconds, predict, classes = {"xgboost": xgboost, "lightgbm": lightgbm, "tabm": tabm}[peer](folder, threads)
    from sklearn.metrics import roc_auc_score

    predicted = predict()  # warm-up
    say({"ready": True, "fit_seconds": seconds, "roc_auc": roc_auc_score(classes, predicted), "rows": len(classes), "threads": threads})
    for _ in sys.stdin:
        begin = time.perf_counter()
        predict()
        say({"ms": [(time.perf_counter() - begin) * 1e3]})
    say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


if __name__ == "__main__":
    main()
