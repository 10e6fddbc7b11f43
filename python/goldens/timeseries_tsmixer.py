"""Goldens of TSMixer and TSMixer-Ext.

Reference: package `neuralforecast` (`TSMixer`, `TSMixerx`). Writes into crates/timeseries/tests/goldens/ files
tsmixer_<case>.safetensors and tsmixer_ext_<case>.safetensors:

  weight.<name>    fresh weights + 0.1 * noise; running statistics perturbed too
  input.<name>     inputs as the registered model names them
  output.forecast  in evaluation mode; in the cases `_train` with batch statistics and dropout 0
  loss             (output * cotangent).sum(), with its `cotangent`
  grad.<name>, grad_input.<name>
  after.<name>     cases `_train`: running averages after this one step. The package averages the unbiased variance, the released
                   code of the paper the biased one; `after.*.running_var` is the package's with n/(n-1) taken off the batch's part.
counts_tsmixer.json   parameter counts of the published sizes
"""

import json
import logging
import warnings

import torch
from common import goldens, randn, save, setup, versions
from neuralforecast.losses.pytorch import MSE
from neuralforecast.models import TSMixer, TSMixerx

SCRIPT = "python/goldens/timeseries_tsmixer.py"
PACKAGES = ("neuralforecast",)
BATCH, LOOKBACK, HORIZON, CHANNELS = 4, 12, 5, 3


def own(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's state, without that of losses and scalers which the package keeps beside it."""
    return {name: value for name, value in module.state_dict().items() if not name.startswith(("loss", "valid_loss", "scaler", "padder"))}


def perturb(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for i, (name, value) in enumerate(own(module).items()):
            if name.endswith("num_batches_tracked"):
                continue
            noise = randn(*value.shape, seed=1000 + i, scale=0.1)
            value += noise.abs() if name.endswith("running_var") else noise


def write(file: str, model: str, config: dict, module: torch.nn.Module, inputs: dict, run, train: bool) -> None:
    perturb(module)
    module.train(train)
    tensors = {f"weight.{name}": value.clone() for name, value in own(module).items()}
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    ys = run(module, leaves)
    cotangent = randn(*ys.shape, seed=12)
    loss = (ys * cotangent).sum()
    loss.backward()
    tensors |= {f"input.{name}": value for name, value in inputs.items()}
    tensors |= {"output.forecast": ys.detach(), "cotangent": cotangent, "loss": loss.detach()}
    tensors |= {f"grad.{name}": parameter.grad for name, parameter in module.named_parameters()}
    tensors |= {f"grad_input.{name}": value.grad for name, value in leaves.items()}
    if train:
        for name, value in own(module).items():
            if name.endswith("running_mean"):
                tensors[f"after.{name}"] = value.clone()
            if name.endswith("running_var"):
                before = tensors[f"weight.{name}"]
                tensors[f"after.{name}"] = 0.99 * before + (value - 0.99 * before) * (BATCH - 1) / BATCH
    save(goldens("timeseries") / f"{file}.safetensors", SCRIPT, tensors, config, PACKAGES, model=model)


def tsmixer(case: str, train: bool = False, **changes) -> None:
    config = {"lookback": LOOKBACK, "horizon": HORIZON, "channels": CHANNELS, "n_block": 2, "ff_dim": 6, "dropout": 0.0 if train else 0.9, "revin": True} | changes
    torch.manual_seed(0)
    module = TSMixer(
        h=config["horizon"],
        input_size=config["lookback"],
        n_series=config["channels"],
        n_block=config["n_block"],
        ff_dim=config["ff_dim"],
        dropout=config["dropout"],
        revin=config["revin"],
        loss=MSE(),
    )
    inputs = {"past": randn(BATCH, LOOKBACK, CHANNELS, seed=10, scale=3.0) + 5.0}
    write(f"tsmixer_{case}", "tsmixer", config, module, inputs, lambda module, xs: module({"insample_y": xs["past"]}), train)


def tsmixer_ext(case: str, train: bool = False, **changes) -> None:
    config = {"lookback": LOOKBACK, "horizon": HORIZON, "channels": 1, "past": 1, "known": 2, "statics": 3, "n_block": 2, "ff_dim": 6, "dropout": 0.0, "revin": True, "form": "neuralforecast"} | changes
    torch.manual_seed(0)
    columns = lambda kind: [f"{kind}{i}" for i in range(config[kind])] or None
    module = TSMixerx(
        h=config["horizon"],
        input_size=config["lookback"],
        n_series=1,
        hist_exog_list=columns("past"),
        futr_exog_list=columns("known"),
        stat_exog_list=columns("statics"),
        n_block=config["n_block"],
        ff_dim=config["ff_dim"],
        dropout=config["dropout"],
        revin=config["revin"],
        loss=MSE(),
    )
    inputs = {"past": randn(BATCH, LOOKBACK, 1 + config["past"], seed=10, scale=3.0) + 5.0}
    if config["known"]:
        inputs["past_known"] = randn(BATCH, LOOKBACK, config["known"], seed=13)
        inputs["future"] = randn(BATCH, HORIZON, config["known"], seed=14)
    if config["statics"]:
        # The package takes one row of static values for all windows of a batch.
        inputs["static"] = randn(1, config["statics"], seed=15).repeat(BATCH, 1)

    def run(module, xs):
        batch = {"insample_y": xs["past"][..., :1], "hist_exog": None, "futr_exog": None, "stat_exog": None}
        if config["past"]:
            batch["hist_exog"] = xs["past"][..., 1:].permute(0, 2, 1).unsqueeze(-1)
        if config["known"]:
            batch["futr_exog"] = torch.cat([xs["past_known"], xs["future"]], 1).permute(0, 2, 1).unsqueeze(-1)
        if config["statics"]:
            # The mean of equal rows: its gradient is spread over them, as ours is when summed.
            batch["stat_exog"] = xs["static"].mean(0, keepdim=True)
        return module(batch)

    write(f"tsmixer_ext_{case}", "tsmixer-ext", config, module, inputs, run, train)


def counts() -> None:
    rows = []
    for name, channels, blocks, ff in [("ETT", 7, 2, 64), ("Weather", 21, 4, 32), ("Electricity", 321, 4, 64), ("Traffic", 862, 8, 64)]:
        module = TSMixer(h=96, input_size=512, n_series=channels, n_block=blocks, ff_dim=ff, loss=MSE())
        config = {"lookback": 512, "horizon": 96, "channels": channels, "n_block": blocks, "ff_dim": ff}
        rows.append({"name": name, "model": "tsmixer", "config": config, "params": sum(p.numel() for p in module.parameters())})
    module = TSMixerx(h=28, input_size=35, n_series=1, hist_exog_list=["a"], futr_exog_list=["b", "c"], stat_exog_list=["d", "e", "f"], n_block=2, ff_dim=64, loss=MSE())
    config = {"lookback": 35, "horizon": 28, "channels": 1, "past": 1, "known": 2, "statics": 3, "n_block": 2, "ff_dim": 64, "form": "neuralforecast"}
    rows.append({"name": "ext", "model": "tsmixer-ext", "config": config, "params": sum(p.numel() for p in module.parameters())})
    stated = {row["name"]: row["params"] for row in rows}
    # The figures that the models' pages state.
    assert stated == {"ETT": 605_180, "Weather": 1_277_534, "Electricity": 3_896_038, "Traffic": 17_165_324, "ext": 150_839}, stated
    content = {"script": SCRIPT, "versions": versions(*PACKAGES), "models": rows}
    (goldens("timeseries") / "counts_tsmixer.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(json.dumps(stated, indent=1))


def main() -> None:
    setup()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.ERROR)
    for train in (False, True):
        suffix = "_train" if train else ""
        tsmixer(f"revin{suffix}", train)
        tsmixer(f"plain{suffix}", train, revin=False)
    tsmixer_ext("all")
    tsmixer_ext("all_train", True)
    tsmixer_ext("no_static", statics=0)
    tsmixer_ext("no_known", known=0)
    tsmixer_ext("past_alone", known=0, statics=0, past=0, revin=False)
    counts()


if __name__ == "__main__":
    main()
