"""The yardstick of the linear recipes: NLinear and DLinear in PyTorch, by the released scripts of LTSF-Linear, on the same files.

    python python/reference/train_ltsf_linear.py DATA     # DATA holds exchange-rate/ and ili/, as `cargo xtask data path` shows

writes python/reference/{nlinear,dlinear}-{exchange-96,ili-24}.json: mean squared error on all test windows at the epoch with the best validation
score, per seed, mean and sample standard deviation; `as_published` has the same forecasts scored as the paper does, without the last
windows, which do not fill a batch.

LTSF-Linear is no package: model and loop are written anew from its files (models/{NLinear,DLinear}.py, exp/exp_main.py,
scripts/EXP-LongForecasting/Linear). Adam, the rate halved from the third epoch on, at most 10 epochs, patience 3, drop_last in training;
validation counts every window here. DLinear's weights start at 1/T, NLinear's at PyTorch's default, as in those files.
"""

import importlib.metadata
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

EXCHANGE = {"file": "exchange-rate/exchange_rate.csv", "lookback": 336, "horizon": 96, "batch_size": 8, "lr": 5e-4}
ILI = {"file": "ili/national_illness.csv", "lookback": 104, "horizon": 24, "batch_size": 32, "lr": 1e-2}
RECIPES = {f"{model}-{name}": {"model": model} | data for model in ("nlinear", "dlinear") for name, data in (("exchange-96", EXCHANGE), ("ili-24", ILI))}
SEEDS = range(6)
EPOCHS, PATIENCE, KERNEL = 10, 3, 25


class NLinear(nn.Module):
    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__()
        self.Linear = nn.Linear(lookback, horizon)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        last = xs[:, -1:]
        return self.Linear((xs - last).transpose(1, 2)).transpose(1, 2) + last


class DLinear(nn.Module):
    def __init__(self, lookback: int, horizon: int) -> None:
        super().__init__()
        self.Linear_Seasonal, self.Linear_Trend = nn.Linear(lookback, horizon), nn.Linear(lookback, horizon)
        for layer in (self.Linear_Seasonal, self.Linear_Trend):
            nn.init.constant_(layer.weight, 1 / lookback)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        xs = xs.transpose(1, 2)
        side = (KERNEL - 1) // 2
        trend = F.avg_pool1d(F.pad(xs, (side, side), mode="replicate"), KERNEL, 1)
        return (self.Linear_Seasonal(xs - trend) + self.Linear_Trend(trend)).transpose(1, 2)


def windows(path: Path, lookback: int, horizon: int) -> dict[str, torch.Tensor]:
    values = pd.read_csv(path).iloc[:, 1:].to_numpy(float)
    rows = len(values)
    train, test = int(rows * 0.7), int(rows * 0.2)
    mean, std = values[:train].mean(0), values[:train].std(0)
    scaled = torch.tensor((values - mean) / std, dtype=torch.float32)
    parts = {"train": (0, train), "valid": (train - lookback, rows - test), "test": (rows - test - lookback, rows)}
    return {name: scaled[a:b].unfold(0, lookback + horizon, 1).transpose(1, 2) for name, (a, b) in parts.items()}


def run(settings: dict, data: dict[str, torch.Tensor], seed: int) -> dict:
    torch.manual_seed(seed)
    start = time.perf_counter()
    lookback, batch = settings["lookback"], settings["batch_size"]
    model = {"nlinear": NLinear, "dlinear": DLinear}[settings["model"]](lookback, settings["horizon"])
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])

    def errors(part: str) -> torch.Tensor:
        with torch.no_grad():
            return model(data[part][:, :lookback]) - data[part][:, lookback:]

    best, best_epoch, state = float("inf"), 0, {}
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * 0.5 ** max(epoch - 1, 0)
        order = torch.randperm(len(data["train"]))
        for at in range(0, len(order) // batch * batch, batch):
            rows = data["train"][order[at : at + batch]]
            optimizer.zero_grad()
            F.mse_loss(model(rows[:, :lookback]), rows[:, lookback:]).backward()
            optimizer.step()
        valid = errors("valid").square().mean().item()
        if valid < best:
            best, best_epoch, state = valid, epoch, {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - best_epoch >= PATIENCE:
            break
    model.load_state_dict(state)
    test = errors("test")
    full = test[: len(test) // batch * batch]
    return {
        "seed": seed,
        "value": test.square().mean().item(),
        "mae": test.abs().mean().item(),
        "as_published": {"windows": len(full), "mse": full.square().mean().item(), "mae": full.abs().mean().item()},
        "valid": best,
        "best_epoch": best_epoch,
        "epochs": epoch + 1,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    torch.set_num_threads(2)
    folder = Path(sys.argv[1])
    for recipe, settings in RECIPES.items():
        data = windows(folder / settings["file"], settings["lookback"], settings["horizon"])
        seeds = [run(settings, data, seed) for seed in SEEDS]
        values = [one["value"] for one in seeds]
        published = [one["as_published"]["mse"] for one in seeds]
        result = {
            "recipe": recipe,
            "size": "full",
            "package": "torch",
            "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch").split("+")[0]},
            "metric": "mse",
            "direction": "lower",
            "rows": {name: len(rows) for name, rows in data.items()},
            "seeds": seeds,
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values),
            "settings": settings,
            "threads": 2,
        }
        Path(__file__).with_name(f"{recipe}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"{recipe}: {result['mean']:.4f} ± {result['sd']:.4f} on {len(data['test'])} windows; {statistics.fmean(published):.4f} on {seeds[0]['as_published']['windows']}")


if __name__ == "__main__":
    main()
