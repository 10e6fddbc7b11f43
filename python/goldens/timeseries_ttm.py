"""Goldens of TinyTimeMixer (TTM).

Reference: package `granite-tsfm` (`tsfm_public/models/tinytimemixer`). It asks for other versions of scikit-learn and NumPy than the other scripts, so give it an
environment of its own; where it is missing the script says so and leaves the files as they are. Writes into crates/timeseries/tests/goldens/ files ttm_<case>.safetensors;
metadata `model` is the registered name, `config` ours, `transformers` the reference's config.json:

  weight.<name>    fresh weights + 0.1 * noise
  input.past       [B, L, C]; input.observed, input.freq_token and input.future in some cases
  output.forecast, output.loc, output.scale   of evaluation mode, in the cases `_train` with batch statistics and dropout 0
  input.target, loss   mean squared error, the package's own
  grad.<name>, grad_input.past
../saved_by_granite/   what `save_pretrained` writes, to prove that its folder loads, with input.safetensors of one window
counts_ttm.json        parameter counts of published sizes
"""

import json
import sys

import torch
from common import goldens, randn, save, setup, versions

try:
    from tsfm_public.models.tinytimemixer import TinyTimeMixerConfig, TinyTimeMixerForPrediction
except ImportError as error:
    print(f"TTM's goldens stay as they are: {error}; to write them, run this script in an environment with granite-tsfm==0.3.11, torch==2.11.0 and transformers==5.23.0", file=sys.stderr)
    sys.exit(0)

SCRIPT = "python/goldens/timeseries_ttm.py"
PACKAGES = ("granite-tsfm", "transformers")
BATCH = 4
SMALL = {
    "context_length": 18,
    "patch_length": 4,
    "num_input_channels": 3,
    "d_model": 24,
    "expansion_factor": 2,
    "num_layers": 1,
    "adaptive_patching_levels": 3,
    "decoder_num_layers": 2,
    "decoder_d_model": 6,
    "prediction_length": 5,
}


def reference(ours: dict) -> TinyTimeMixerForPrediction:
    theirs = dict(ours) | {"patch_stride": ours["patch_length"]}
    if ours.get("scaling") == "none":
        theirs["scaling"] = None
    return TinyTimeMixerForPrediction(TinyTimeMixerConfig(**theirs))


def golden(case: str, train: bool = False, observed: bool = False, **changes) -> None:
    ours = SMALL | ({"dropout": 0.0, "head_dropout": 0.0} if train else {}) | changes
    torch.manual_seed(0)
    module = reference(ours)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += randn(*parameter.shape, seed=1000 + i, scale=0.1)
    module.train(train)
    tensors = {f"weight.{name}": value.clone() for name, value in module.state_dict().items()}

    config = module.config
    size = (BATCH, config.context_length, config.num_input_channels)
    past = randn(*size, seed=10, scale=3.0) + 5.0
    arguments = {}
    if observed:
        seen = (randn(*size, seed=11) > -0.5).float()
        past = past * seen
        tensors["input.observed"] = arguments["past_observed_mask"] = seen
    if config.resolution_prefix_tuning:
        tensors["input.freq_token"] = arguments["freq_token"] = torch.tensor([0, 3, 1, 4])
    tensors["input.past"] = past
    leaf = past.clone().requires_grad_()
    # Channels with a known future are given, the others are what the loss compares with: they must not be read.
    target = randn(BATCH, config.prediction_length, config.num_input_channels, seed=12, scale=3.0) + 5.0
    if config.exogenous_channel_indices:
        tensors["input.future"] = target.clone()
    output = module(past_values=leaf, future_values=target, **arguments)
    output.loss.backward()

    chosen = config.prediction_channel_indices or list(range(config.num_input_channels))
    tensors["input.target"] = target[:, : output.prediction_outputs.shape[1], chosen]
    tensors |= {"output.forecast": output.prediction_outputs, "output.loc": output.loc, "output.scale": output.scale, "loss": output.loss}
    for key, parameter in module.named_parameters():
        tensors[f"grad.{key}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    tensors["grad_input.past"] = leaf.grad
    if train:
        tensors |= {f"after.{key}": value.clone() for key, value in module.state_dict().items() if "running" in key}
    tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
    save(goldens("timeseries") / f"ttm_{case}.safetensors", SCRIPT, tensors, ours, PACKAGES, model="ttm-forecast", transformers=json.dumps(config.to_dict(), sort_keys=True))


def saved() -> None:
    torch.manual_seed(0)
    module = reference(SMALL | {"enable_forecast_channel_mixing": True, "exogenous_channel_indices": [0]}).eval()
    folder = goldens("timeseries").parent / "saved_by_granite"
    module.save_pretrained(folder)
    past = randn(2, 18, 3, seed=10)
    future = randn(2, 5, 3, seed=11)
    ys = module(past_values=past, future_values=future).prediction_outputs
    save(folder / "input.safetensors", SCRIPT, {"input.past": past, "input.future": future, "output.forecast": ys.detach()}, {}, PACKAGES)


def counts() -> None:
    first = {"context_length": 512, "patch_length": 64, "num_input_channels": 7, "prediction_length": 96, "d_model": 192, "num_layers": 2, "adaptive_patching_levels": 3, "decoder_num_layers": 2, "decoder_d_model": 128}
    cases = [
        ("first release, 512 to 96", first, 805_280),
        ("1024 to 96", first | {"context_length": 1024, "patch_length": 128}, None),
        ("with prefix, raw patches and channel mixing", first | {"resolution_prefix_tuning": True, "decoder_raw_residual": True, "enable_forecast_channel_mixing": True, "fcm_use_mixer": True}, None),
    ]
    rows = []
    for name, config, stated in cases:
        module = reference(config)
        params = sum(parameter.numel() for parameter in module.parameters())
        assert stated in (None, params), (name, params, stated)
        rows.append({"name": name, "transformers": module.config.to_dict(), "params": params})
    content = {"script": SCRIPT, "versions": versions(*PACKAGES), "models": rows}
    (goldens("timeseries") / "counts_ttm.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(json.dumps({row["name"]: row["params"] for row in rows}, indent=1))


def main() -> None:
    setup()
    mixing = {"enable_forecast_channel_mixing": True}
    golden("forecast")
    golden("plain_layers", adaptive_patching_levels=0, num_layers=2, gated_attn=False)
    golden("no_decoder", use_decoder=False)
    golden("same_width", decoder_d_model=24, decoder_adaptive_patching_levels=2, decoder_num_layers=1)
    golden("one_patch", context_length=7, adaptive_patching_levels=0)
    golden("attention", self_attn=True, self_attn_heads=2, adaptive_patching_levels=0)
    golden("mix_channel_train", True, mode="mix_channel", decoder_mode="mix_channel", norm_mlp="BatchNorm")
    golden("layer_norm_train", True)
    golden("prefix", resolution_prefix_tuning=True, decoder_raw_residual=True)
    golden("observed", observed=True)
    golden("scaling_mean", scaling="mean", observed=True)
    golden("scaling_none", scaling="none")
    golden("two_channels", prediction_channel_indices=[0, 2], prediction_filter_length=3)
    golden("mixing", **mixing)
    golden("mixing_wide", **mixing, fcm_context_length=2, fcm_prepend_past=False, fcm_gated_attn=False, prediction_filter_length=4)
    golden("mixing_layers_train", True, **mixing, fcm_use_mixer=True, prediction_channel_indices=[1, 2])
    golden("known_future", **mixing, exogenous_channel_indices=[1])
    golden("known_future_layers", **mixing, exogenous_channel_indices=[0], prediction_channel_indices=[2], fcm_use_mixer=True, fcm_mix_layers=1, prediction_filter_length=3)
    saved()
    counts()


if __name__ == "__main__":
    main()
