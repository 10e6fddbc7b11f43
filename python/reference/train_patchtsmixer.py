"""The yardstick of patchtsmixer-etth1-96: `transformers`' PatchTSMixer trained as its authors' notebook does, on the same file.

    python python/reference/train_patchtsmixer.py DATA     # DATA holds etth1/, as `cargo xtask data path` shows

writes python/reference/patchtsmixer-etth1-96.json: mean squared error on all test windows at the epoch with the best validation score,
per seed, mean and sample standard deviation.

The loop is that of `transformers.Trainer` with the notebook's arguments, written out: AdamW (1e-4, no weight decay) with a linear decay over 100
epochs, gradients clipped at 1, batches of 32, at most 100 epochs, patience 5 with a least improvement of 1e-3. The weights start as PyTorch's
layers start them, as in the notebook's days (`post_init=False` was the default until transformers 5, which always draws from N(0, 0.02)).
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
from torch.nn import functional as F
from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

SEEDS = range(3)
EPOCHS, PATIENCE, IMPROVEMENT, BATCH = 100, 5, 1e-3, 32
STEPS, HORIZON = 512, 96
CONFIG = {
    "context_length": STEPS, "prediction_length": HORIZON, "num_input_channels": 7, "patch_length": 8, "patch_stride": 8, "d_model": 48,
    "num_layers": 3, "expansion_factor": 3, "dropout": 0.5, "head_dropout": 0.7, "mode": "common_channel", "scaling": "std",
}  # fmt: skip


def windows(path: Path) -> dict[str, torch.Tensor]:
    values = pd.read_csv(path).iloc[:, 1:].to_numpy(float)
    train, valid, test = 8640, 2880, 2880
    mean, std = values[:train].mean(0), values[:train].std(0)
    scaled = torch.tensor((values - mean) / std, dtype=torch.float32)
    parts = {"train": (0, train), "valid": (train - STEPS, train + valid), "test": (train + valid - STEPS, train + valid + test)}
    return {name: scaled[a:b].unfold(0, STEPS + HORIZON, 1).transpose(1, 2) for name, (a, b) in parts.items()}


def run(data: dict[str, torch.Tensor], seed: int) -> dict:
    torch.manual_seed(seed)
    start = time.perf_counter()
    model = PatchTSMixerForPrediction(PatchTSMixerConfig(**CONFIG))
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    each = -(-len(data["train"]) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (EPOCHS * each))

    def forecast(past: torch.Tensor) -> torch.Tensor:
        return model(past_values=past, return_loss=False).prediction_outputs

    def errors(part: str) -> tuple[float, float]:
        model.eval()
        with torch.no_grad():
            found = torch.cat([forecast(rows[:, :STEPS]) - rows[:, STEPS:] for rows in data[part].split(256)])
        return found.square().mean().item(), found.abs().mean().item()

    best, best_epoch, bad, state = float("inf"), 0, 0, {}
    for epoch in range(EPOCHS):
        model.train()
        for numbers in torch.randperm(len(data["train"])).split(BATCH):
            rows = data["train"][numbers]
            optimizer.zero_grad()
            F.mse_loss(forecast(rows[:, :STEPS]), rows[:, STEPS:]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        valid, _ = errors("valid")
        print(f"seed {seed} epoch {epoch}: valid {valid:.4f}", flush=True)
        bad = 0 if best - valid > IMPROVEMENT else bad + 1
        if valid < best:
            best, best_epoch, state = valid, epoch, {name: value.clone() for name, value in model.state_dict().items()}
        if bad >= PATIENCE:
            break
    model.load_state_dict(state)
    mse, mae = errors("test")
    seconds = round(time.perf_counter() - start, 1)
    return {"seed": seed, "value": mse, "mae": mae, "valid": best, "best_epoch": best_epoch, "epochs": epoch + 1, "seconds": seconds}


def main() -> None:
    torch.set_num_threads(2)
    data = windows(Path(sys.argv[1]) / "etth1" / "ETTh1.csv")
    seeds = [run(data, seed) for seed in SEEDS]
    values = [one["value"] for one in seeds]
    result = {
        "recipe": "patchtsmixer-etth1-96",
        "size": "full",
        "package": "transformers",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name).split("+")[0] for name in ("transformers", "torch")},
        "metric": "mse",
        "direction": "lower",
        "rows": {name: len(rows) for name, rows in data.items()},
        "seeds": seeds,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values),
        "settings": CONFIG,
        "threads": 2,
    }
    Path(__file__).with_name("patchtsmixer-etth1-96.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['mean']:.4f} ± {result['sd']:.4f} on {len(data['test'])} windows")


if __name__ == "__main__":
    main()
