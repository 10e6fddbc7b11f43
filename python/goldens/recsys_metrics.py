"""Goldens of the click metrics from scikit-learn: random scores, many ties, users with one class only.

Writes crates/recsys/tests/goldens/metrics.safetensors. Keys: <case>.input.{p,y,group} (f64), <case>.output.<metric> (f64 scalars).
Metadata `config`: the cases.
"""

import torch
from common import goldens, randn, save, setup
from sklearn.metrics import log_loss, roc_auc_score


def grouped(y, p, group):
    weighted, aucs, rows = 0.0, [], 0
    for one in sorted(set(group.tolist())):
        chosen = group == one
        if 0 < y[chosen].sum() < chosen.sum():
            auc = float(roc_auc_score(y[chosen], p[chosen]))
            aucs.append(auc)
            weighted += auc * int(chosen.sum())
            rows += int(chosen.sum())
    return weighted / rows, sum(aucs) / len(aucs)


def main() -> None:
    setup()
    n = 2000
    y = (randn(n, seed=1) > 0.9).double()
    smooth = torch.sigmoid(randn(n, seed=2).double() + y)
    sure = smooth.clone()
    sure[:5], sure[5:10] = 0.0, 1.0
    groups = {
        "smooth": (smooth, (randn(n, seed=3).abs() * 40).floor().double()),
        "ties": ((smooth * 6).round() / 6, (randn(n, seed=4).abs() * 400).floor().double()),
        "sure": (sure, (randn(n, seed=5).abs() * 3).floor().double()),
    }
    tensors = {}
    for case, (p, group) in groups.items():
        a, b, g = p.numpy(), y.numpy(), group.numpy()
        gauc, average = grouped(b, a, g)
        figures = {"auc": roc_auc_score(b, a), "log_loss": log_loss(b, a), "gauc": gauc, "avg_auc": average}
        tensors |= {f"{case}.input.p": p, f"{case}.input.y": y.clone(), f"{case}.input.group": group}
        tensors |= {f"{case}.output.{name}": torch.tensor(float(value), dtype=torch.float64) for name, value in figures.items()}
    save(goldens("recsys") / "metrics.safetensors", "python/goldens/recsys_metrics.py", tensors, list(groups), packages=("scikit-learn",))


if __name__ == "__main__":
    main()
