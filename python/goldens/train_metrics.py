"""Goldens of the metrics from scikit-learn.

Writes crates/train/tests/goldens/metrics.safetensors. Keys: <case>.input.predictions, <case>.input.targets, <case>.output.<metric> (f64 scalars).
Metadata `config`: {case: [metric names]}.
"""

import torch
from common import goldens, randn, save, setup
from sklearn import metrics as m

NAMES = {
    "regression": ["rmse", "mse", "mae", "r2"],
    "regression_f64": ["rmse", "mse", "mae", "r2"],
    "binary": ["accuracy", "log_loss", "roc_auc"],
    "binary_ties": ["accuracy", "log_loss", "roc_auc"],
    "binary_sure": ["accuracy", "log_loss", "roc_auc"],
    "multiclass": ["accuracy", "log_loss"],
}


def main() -> None:
    setup()
    n = 700
    t = randn(n, seed=0)
    y = (randn(n, seed=1) > 0.4).long()
    p = torch.sigmoid(randn(n, seed=2).double() + y)
    sure = p.clone()
    sure[:5], sure[5:10] = 0.0, 1.0
    classes = (randn(n, seed=3).abs() * 2).long().clamp(max=3)
    data = {
        "regression": (t + randn(n, seed=4, scale=0.3), t),
        "regression_f64": (t.double() + randn(n, seed=5).double() + 1e6, t.double() + 1e6),
        "binary": (p, y),
        "binary_ties": ((p * 8).round() / 8, y),
        "binary_sure": (sure, y),
        "multiclass": (torch.softmax(randn(n, 4, seed=6).double() + torch.nn.functional.one_hot(classes), 1), classes),
    }
    tensors = {}
    for case, (predictions, targets) in data.items():
        a, b = predictions.double().numpy(), targets.numpy() if not targets.is_floating_point() else targets.double().numpy()
        decided = a.argmax(1) if a.ndim == 2 else (a > 0.5).astype(int)
        functions = {
            "rmse": lambda: m.root_mean_squared_error(b, a),
            "mse": lambda: m.mean_squared_error(b, a),
            "mae": lambda: m.mean_absolute_error(b, a),
            "r2": lambda: m.r2_score(b, a),
            "accuracy": lambda: m.accuracy_score(b, decided),
            "log_loss": lambda: m.log_loss(b, a),
            "roc_auc": lambda: m.roc_auc_score(b, a),
        }
        tensors[f"{case}.input.predictions"], tensors[f"{case}.input.targets"] = predictions, targets
        for name in NAMES[case]:
            tensors[f"{case}.output.{name}"] = torch.tensor(float(functions[name]()), dtype=torch.float64)
    save(goldens("train") / "metrics.safetensors", "python/goldens/train_metrics.py", tensors, NAMES, packages=("scikit-learn",))


if __name__ == "__main__":
    main()
