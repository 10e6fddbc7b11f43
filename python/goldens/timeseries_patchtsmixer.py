"""Goldens of PatchTSMixer under all its heads.

Reference: package `transformers` (`models/patchtsmixer`). Writes into crates/timeseries/tests/goldens/ files
patchtsmixer_<case>.safetensors; metadata `model` is the registered name, `config` ours, `transformers` the reference's config.json:

  weight.<name>    fresh weights + 0.1 * noise
  input.past       [B, L, C]; input.observed (0 or 1) and input.mask (hidden patches) in some cases
  output.<name>    of evaluation mode, in the cases `_train` with batch statistics and dropout 0; with a distribution
                   output.<distribution>.<parameter>
  input.target, loss   mean squared error, cross-entropy, negative log likelihood or the masked error of pretraining: the package's own
  grad.<name>, grad_input.past
../saved_by_transformers/   what `save_pretrained` writes, to prove that its folder loads, with input.safetensors of one window
counts_patchtsmixer.json   parameter counts of published sizes
"""

import json

import torch
from common import goldens, randn, save, setup, versions
from torch import nn
from transformers import (
    PatchTSMixerConfig,
    PatchTSMixerForPrediction,
    PatchTSMixerForPretraining,
    PatchTSMixerForRegression,
    PatchTSMixerForTimeSeriesClassification,
)

SCRIPT = "python/goldens/timeseries_patchtsmixer.py"
PACKAGES = ("transformers",)
BATCH = 4
CLASSES = {
    "forecast": PatchTSMixerForPrediction,
    "pretrain": PatchTSMixerForPretraining,
    "classification": PatchTSMixerForTimeSeriesClassification,
    "regression": PatchTSMixerForRegression,
}
SMALL = {
    "context_length": 18,
    "patch_length": 4,
    "patch_stride": 4,
    "num_input_channels": 3,
    "d_model": 6,
    "expansion_factor": 2,
    "num_layers": 2,
    "prediction_length": 5,
    "num_targets": 3,
}


class FixedMask(nn.Module):
    """Hides the given patches instead of drawn ones."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, patches: torch.Tensor):
        return patches.masked_fill(self.mask.bool().unsqueeze(-1), 0), self.mask.bool()


def golden(case: str, head: str, train: bool = False, observed: bool = False, **changes) -> None:
    ours = SMALL | {"head": head} | ({"dropout": 0.0, "head_dropout": 0.0} if train else {}) | changes
    theirs = {key: value for key, value in ours.items() if key not in ("head", "distribution_output")}
    if distribution := ours.get("distribution_output"):
        theirs |= {"loss": "nll", "distribution_output": distribution}
    if ours.get("scaling") == "none":
        theirs["scaling"] = None
    torch.manual_seed(0)
    module = CLASSES[head](PatchTSMixerConfig(**theirs))
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
        seen[0, :, 0] = 0  # a channel that was never seen
        past = past * seen
        tensors["input.observed"] = arguments["observed_mask"] = seen
    if head == "pretrain":
        patches = (BATCH, config.num_input_channels, (config.context_length - config.patch_length) // config.patch_stride + 1)
        mask = (randn(*patches, seed=13) > 0).float()
        tensors["input.mask"] = mask
        module.model.masking = FixedMask(mask)
    tensors["input.past"] = past
    leaf = past.clone().requires_grad_()

    generator = torch.Generator().manual_seed(12)
    if head == "forecast":
        target = randn(BATCH, config.prediction_length, config.num_input_channels, seed=12, scale=3.0) + 5.0
        if distribution == "negative_binomial":
            target = target.abs().round()
        arguments["future_values"] = target
    elif head == "classification":
        target = torch.randint(config.num_targets, (BATCH,), generator=generator)
        arguments["target_values"] = target
    elif head == "regression":
        target = randn(BATCH, config.num_targets, seed=12)
        arguments["target_values"] = target
    else:
        target = None
    if target is not None:
        channels = ours.get("prediction_channel_indices")
        tensors["input.target"] = target[..., channels] if channels and head == "forecast" else target
    output = module(past_values=leaf, **arguments)
    output.loss.backward()

    name = {"forecast": "forecast", "pretrain": "reconstruction", "classification": "logits", "regression": "values"}[head]
    ys = output.regression_outputs if head == "regression" else output.prediction_outputs
    if distribution == "negative_binomial":
        # The package adds ln(scale) to the logits in place when it makes the distribution, so what it gives back holds it already.
        ys = (ys[0], ys[1] - output.scale.log())
    if distribution:
        parameters = {"student_t": ["df", "loc", "scale"], "normal": ["loc", "scale"], "negative_binomial": ["total_count", "logits"]}[distribution]
        tensors |= {f"output.{distribution}.{parameter}": value.detach().clone() for parameter, value in zip(parameters, ys, strict=True)}
        affine = {"loc": output.loc, "scale": output.scale} if head == "forecast" else {}
        tensors[f"output.{name}"] = module.distribution_output.distribution(ys, **affine).mean.detach()
    else:
        tensors[f"output.{name}"] = ys.detach()
    if head == "forecast" and config.scaling:
        tensors |= {"output.loc": output.loc.detach(), "output.scale": output.scale.detach()}
    tensors["loss"] = output.loss.detach()
    # Weights that the case does not use (gates and norms of none) have no gradient there and zeros here.
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            tensors[f"grad.{key}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    tensors["grad_input.past"] = leaf.grad
    if train:
        buffers = {key for key, _ in module.named_buffers()}
        tensors |= {f"after.{key}": value.clone() for key, value in module.state_dict().items() if key in buffers and "running" in key}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save(goldens("timeseries") / f"patchtsmixer_{case}.safetensors", SCRIPT, tensors, ours, PACKAGES, model=f"patchtsmixer-{head}", transformers=json.dumps(config.to_dict(), sort_keys=True))


def saved() -> None:
    torch.manual_seed(0)
    config = PatchTSMixerConfig(**SMALL, mode="mix_channel", prediction_channel_indices=[2, 0])
    module = PatchTSMixerForPrediction(config).eval()
    folder = goldens("timeseries").parent / "saved_by_transformers"
    module.save_pretrained(folder)
    past = randn(2, config.context_length, config.num_input_channels, seed=10)
    ys = module(past_values=past).prediction_outputs
    save(folder / "input.safetensors", SCRIPT, {"input.past": past, "output.forecast": ys.detach()}, {}, PACKAGES)


def counts() -> None:
    etth1 = {"context_length": 512, "patch_length": 8, "patch_stride": 8, "num_input_channels": 7, "d_model": 48, "expansion_factor": 3, "num_layers": 3, "prediction_length": 96}
    cases = [
        ("defaults", "forecast", {}, 2_040),
        ("ETTh1", "forecast", etth1, 432_096),
        ("ETTh1 mix_channel", "forecast", etth1 | {"mode": "mix_channel"}, 433_518),
        ("ETTh1 with self-attention", "forecast", etth1 | {"self_attn": True}, 460_608),
        ("ETTh1 student-t", "forecast", etth1 | {"distribution_output": "student_t"}, 1_022_112),
        ("ETTh1 pretraining", "pretrain", etth1, 137_480),
        ("ETTh1 classification", "classification", etth1, None),
        ("ETTh1 regression", "regression", etth1, None),
        ("Electricity", "forecast", etth1 | {"num_input_channels": 321, "d_model": 16, "num_layers": 8, "expansion_factor": 2}, 275_696),
        ("paper, 3 layers", "forecast", etth1 | {"patch_length": 16, "d_model": 32, "expansion_factor": 2}, 270_595),
        ("paper, 8 layers", "forecast", etth1 | {"patch_length": 16, "d_model": 32, "expansion_factor": 2, "num_layers": 8}, 397_960),
    ]
    rows = []
    for name, head, config, stated in cases:
        theirs = {key: value for key, value in config.items() if key != "distribution_output"}
        if "distribution_output" in config:
            theirs |= {"loss": "nll", "distribution_output": config["distribution_output"]}
        theirs = PatchTSMixerConfig(**theirs)
        params = sum(parameter.numel() for parameter in CLASSES[head](theirs).parameters() if parameter.requires_grad)
        assert stated in (None, params), (name, params, stated)
        rows.append({"name": name, "head": head, "transformers": theirs.to_dict(), "params": params})
    content = {"script": SCRIPT, "versions": versions(*PACKAGES), "models": rows}
    (goldens("timeseries") / "counts_patchtsmixer.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(json.dumps({row["name"]: row["params"] for row in rows}, indent=1))


def main() -> None:
    setup()
    golden("forecast", "forecast")
    golden("forecast_mix_channel", "forecast", mode="mix_channel")
    golden("forecast_no_gates", "forecast", mode="mix_channel", gated_attn=False)
    golden("forecast_attention", "forecast", self_attn=True, self_attn_heads=2)
    golden("forecast_batch_norm", "forecast", norm_mlp="BatchNorm")
    golden("forecast_batch_norm_train", "forecast", True, norm_mlp="BatchNorm", mode="mix_channel")
    golden("forecast_layer_norm_train", "forecast", True)
    golden("forecast_sincos", "forecast", use_positional_encoding=True, positional_encoding_type="sincos")
    golden("forecast_random_positions", "forecast", use_positional_encoding=True, positional_encoding_type="random")
    golden("forecast_scaling_mean", "forecast", scaling="mean")
    golden("forecast_scaling_none", "forecast", scaling="none")
    golden("forecast_observed", "forecast", observed=True)
    golden("forecast_observed_mean", "forecast", observed=True, scaling="mean")
    golden("forecast_overlapping", "forecast", patch_stride=3)
    golden("forecast_two_channels", "forecast", prediction_channel_indices=[0, 2])
    golden("forecast_student_t", "forecast", distribution_output="student_t")
    golden("forecast_student_t_channels", "forecast", distribution_output="student_t", prediction_channel_indices=[1, 2])
    golden("forecast_normal", "forecast", distribution_output="normal")
    golden("forecast_negative_binomial", "forecast", distribution_output="negative_binomial", scaling="mean")
    golden("pretrain", "pretrain")
    golden("pretrain_mix_channel", "pretrain", mode="mix_channel")
    for aggregation in ("max_pool", "avg_pool", "use_last", None):
        golden(f"classification_{aggregation or 'all'}", "classification", head_aggregation=aggregation)
    golden("classification_scaling_none", "classification", scaling="none")
    golden("regression", "regression")
    golden("regression_range", "regression", output_range=[-1.0, 2.0])
    golden("regression_normal", "regression", distribution_output="normal")
    saved()
    counts()


if __name__ == "__main__":
    main()
