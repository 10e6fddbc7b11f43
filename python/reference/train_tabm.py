"""The yardstick: trains the reference packages `tabm` and `rtdl_num_embeddings` on exactly the arrays that Densely trains on.

All figures again, from the root of the repository (2 processes of 1 thread each; about three quarters of an hour on two cores):

    for r in {tabm,tabm-ple,mlp}-california {tabm,tabm-mini,mlp}-adult tabm-{rossmann,flights,employment}-time; do
        densely train crates/tabular/recipes/$r.toml --quick --export exports/$r
        python python/reference/train_tabm.py $r exports/$r
    done

`densely` finds the rows with `--data-dir`; see docs/src/guide/recipes.md.

Reads a folder with
    train.safetensors, valid.safetensors, test.safetensors:  x_num [N, n] f32 (preprocessed), x_cat [N, m] i64 (a category unseen in
        training is the cardinality), y [N] f32 (standardised) or i64 (classes); x_num or x_cat may be absent
    meta.json: {"task": "regression" | "binary" | "multiclass", "cat_cardinalities": [..], "target_mean": 0.0, "target_std": 1.0, "classes": [..]}
and writes python/reference/<recipe>.json: value on the test rows at the epoch with the best validation value, per seed, mean and
sample standard deviation.

What is the package's and what is ours: model and embedding are the package's classes; the loop is that of the package's example
notebook (AdamW on all parameters alike, shared batches, mean of the members' own losses, clipping at 1, evaluation every epoch).
Two things differ from the notebook: one-hot columns of an unseen category are zeros (the package would stop), and a binary task has two
logits. Neither changes a number on rows without unseen categories. Only the order of batches, the initial weights and the
dropout masks differ between this program and Densely's, because their random generators are used in a different order.
"""

import argparse
import copy
import importlib.metadata
import json
import math
import multiprocessing
import platform
import statistics
import time
import warnings
from pathlib import Path

import rtdl_num_embeddings
import tabm
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

# The settings of the quick size; the recipes' TOML files say the same.
QUICK = {"n_blocks": 2, "d_block": 128, "dropout": 0.1, "k": 32, "batch_size": 256, "lr": 2e-3, "weight_decay": 3e-4, "clip_norm": 1.0, "patience": 8}
RECIPES: dict[str, dict] = {
    "tabm-california": {"model": "tabm", "lr": 5e-3, "max_epochs": 24},
    "tabm-ple-california": {"model": "tabm", "n_bins": 48, "d_embedding": 16, "lr": 5e-3, "max_epochs": 24},
    "mlp-california": {"model": "mlp", "lr": 1e-3, "max_epochs": 60},
    "tabm-adult": {"model": "tabm", "lr": 3e-3, "max_epochs": 12},
    "tabm-mini-adult": {"model": "tabm-mini", "lr": 3e-3, "max_epochs": 12},
    "mlp-adult": {"model": "mlp", "lr": 1e-3, "max_epochs": 15},
    "tabm-rossmann-time": {"model": "tabm", "lr": 5e-3, "max_epochs": 24, "patience": 16},
    "tabm-flights-time": {"model": "tabm", "lr": 1e-3, "max_epochs": 6, "patience": 3, "batch_size": 1024, "metric": "roc_auc"},
    "tabm-employment-time": {"model": "tabm", "lr": 2e-3, "max_epochs": 6, "patience": 3, "batch_size": 1024, "metric": "roc_auc"},
}

# Seeds, where three understate the spread: the MLP is cheap, three seeds of TabM-mini hit the same number of test rows, and the shops'
# months differ so much that single seeds lie far apart.
SEEDS = {"mlp-california": 12, "mlp-adult": 12, "tabm-mini-adult": 8, "tabm-rossmann-time": 6}


class OneHot(nn.Module):
    """One-hot columns as floats; the code `cardinality` (unseen in training) gives zeros."""

    def __init__(self, cardinalities: list[int]) -> None:
        super().__init__()
        self.cardinalities = cardinalities

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.one_hot(xs[..., i], n + 1)[..., :-1] for i, n in enumerate(self.cardinalities)], -1).float()


class Mlp(nn.Module):
    """The plain MLP: the package's backbone and one linear head. Output `[batch, 1, d_out]`, one member."""

    def __init__(self, n_num: int, cardinalities: list[int], d_out: int, settings: dict) -> None:
        super().__init__()
        self.cat_module = OneHot(cardinalities) if cardinalities else None
        sizes = {name: settings[name] for name in ("n_blocks", "d_block", "dropout")}
        self.backbone = tabm.MLPBackbone(d_in=n_num + sum(cardinalities), **sizes)
        self.output = nn.Linear(settings["d_block"], d_out)

    def forward(self, x_num=None, x_cat=None) -> torch.Tensor:
        parts = [xs for xs in (x_num, None if x_cat is None else self.cat_module(x_cat)) if xs is not None]
        return self.output(self.backbone(torch.cat(parts, 1))).unsqueeze(1)


def build(settings: dict, n_num: int, cardinalities: list[int], d_out: int, x_train: torch.Tensor | None) -> nn.Module:
    if settings["model"] == "mlp":
        return Mlp(n_num, cardinalities, d_out, settings)
    embedding = None
    if "n_bins" in settings:
        bins = rtdl_num_embeddings.compute_bins(x_train, n_bins=settings["n_bins"])
        embedding = rtdl_num_embeddings.PiecewiseLinearEmbeddings(bins, settings["d_embedding"], activation=False, version="B")
    sizes = {name: settings[name] for name in ("n_blocks", "d_block", "dropout", "k")}
    model = tabm.TabM.make(n_num_features=n_num, cat_cardinalities=cardinalities, d_out=d_out, num_embeddings=embedding, arch_type=settings["model"], **sizes)
    if cardinalities:
        model.cat_module = OneHot(cardinalities)
    return model


def loss_of(ys: torch.Tensor, target: torch.Tensor, regression: bool) -> torch.Tensor:
    """Mean over rows and members of each member's own loss. `ys` is `[batch, k, d_out]`."""
    repeated = target.repeat_interleave(ys.shape[1])
    ys = ys.flatten(0, 1)
    return F.mse_loss(ys.squeeze(-1), repeated) if regression else F.cross_entropy(ys, repeated)


@torch.no_grad()
def evaluate(model: nn.Module, part: dict, meta: dict, metric: str) -> float:
    """RMSE in the target's own units, accuracy, or area under the ROC curve, of the averaged prediction."""
    model.eval()
    inputs = {name: part[name] for name in ("x_num", "x_cat") if name in part}
    ys = torch.cat([model(**{name: xs[i : i + 1024] for name, xs in inputs.items()}) for i in range(0, len(part["y"]), 1024)])
    if metric == "rmse":
        # The mean commutes with undoing the standardisation.
        error = (ys.squeeze(-1).double().mean(1) - part["y"].double()) * meta["target_std"]
        return error.square().mean().sqrt().item()
    probabilities = ys.double().softmax(-1).mean(1)
    if metric == "roc_auc":
        return float(roc_auc_score(part["y"].numpy(), probabilities[:, 1].numpy()))
    return (probabilities.argmax(-1) == part["y"]).double().mean().item()


def metric_of(settings: dict, meta: dict) -> str:
    return settings.get("metric") or ("rmse" if meta["task"] == "regression" else "accuracy")


def train(folder: Path, settings: dict, seed: int, threads: int, verbose: bool, keep: bool = False) -> dict:
    """What one seed reached; with `keep` also the model of the best epoch."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*just two bin edges")
    meta = json.loads((folder / "meta.json").read_text())
    parts = {name: load_file(folder / f"{name}.safetensors") for name in ("train", "valid", "test")}
    regression = meta["task"] == "regression"
    d_out = 1 if regression else len(meta["classes"])
    rows = parts["train"]
    n_num = rows["x_num"].shape[1] if "x_num" in rows else 0

    torch.manual_seed(seed)
    model = build(settings, n_num, meta["cat_cardinalities"], d_out, rows.get("x_num"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"])
    started = time.perf_counter()
    best, best_epoch, test, step_seconds, weights = -math.inf, -1, math.nan, [], None
    metric = metric_of(settings, meta)
    for epoch in range(settings["max_epochs"]):
        model.train()
        for index in torch.randperm(len(rows["y"])).split(settings["batch_size"]):
            begun = time.perf_counter()
            batch = {name: xs[index] for name, xs in rows.items()}
            target = batch.pop("y")
            optimizer.zero_grad()
            loss_of(model(**batch), target, regression).backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
            optimizer.step()
            step_seconds.append(time.perf_counter() - begun)
        value = evaluate(model, parts["valid"], meta, metric)
        score = -value if metric == "rmse" else value
        if score > best:
            best, best_epoch, test = score, epoch, evaluate(model, parts["test"], meta, metric)
            weights = copy.deepcopy(model.state_dict()) if keep else None
        if verbose:
            print(f"  seed {seed} epoch {epoch + 1}: valid {value:.5f}, test at best {test:.5f}", flush=True)
        if epoch - best_epoch >= settings["patience"]:
            break
    kept = {}
    if keep:
        model.load_state_dict(weights)
        kept["model"] = model.eval()
    return kept | {
        "seed": seed,
        "value": test,
        "valid": abs(best),
        "best_epoch": best_epoch + 1,
        "epochs": epoch + 1,
        "seconds": round(time.perf_counter() - started, 1),
        "step_ms": round(1e3 * statistics.median(step_seconds), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("folder", type=Path, help="written by `densely train RECIPE --export DIR`")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of SEEDS")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes one setting (JSON value)")
    parser.add_argument("--threads", type=int, default=1, help="per process")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    parser.add_argument("--output", type=Path, help="default: python/reference/<recipe>.json; '-' only prints")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    settings = QUICK | RECIPES[args.recipe]
    args.seeds = args.seeds or list(range(SEEDS.get(args.recipe, 3)))
    for change in args.set:
        name, _, value = change.partition("=")
        if name not in settings:
            parser.error(f"no setting {name!r}; there are {', '.join(sorted(settings))}")
        settings[name] = json.loads(value)

    # Spawned, not forked: OpenMP does not survive a fork.
    with multiprocessing.get_context("spawn").Pool(min(args.jobs, len(args.seeds)), maxtasksperchild=1) as pool:
        jobs = [(args.folder, settings, seed, args.threads, args.verbose) for seed in args.seeds]
        runs = pool.starmap(train, jobs, chunksize=1)
    values = [run["value"] for run in runs]
    meta = json.loads((args.folder / "meta.json").read_text())
    metric = metric_of(settings, meta)
    packages = ("tabm", "rtdl_num_embeddings", "torch")
    result = {
        "recipe": args.recipe,
        "size": "quick",
        "package": "tabm",
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name).split("+")[0] for name in packages},
        "metric": metric,
        "direction": "lower" if metric == "rmse" else "higher",
        "rows": {name: len(load_file(args.folder / f"{name}.safetensors")["y"]) for name in ("train", "valid", "test")},
        "seeds": runs,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "settings": settings,
        "threads": args.threads,
    }
    line = ", ".join(f"{value:.5f}" for value in values)
    print(f"{args.recipe}: {result['metric']} {result['mean']:.5f} ± {result['sd'] or 0:.5f} ({line}); epochs {[r['epochs'] for r in runs]}, {[r['seconds'] for r in runs]} s, step {[r['step_ms'] for r in runs]} ms")
    if str(args.output) != "-":
        output = args.output or Path(__file__).with_name(f"{args.recipe}.json")
        output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
