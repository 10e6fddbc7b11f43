"""The Python side of the comparison: `neuralforecast`'s TSMixer and `transformers`' PatchTSMixer, eager or compiled, on the work of
benches/src/timeseries.rs.

    python benches/peers/timeseries.py WORKLOAD PHASE BATCH DTYPE DEVICE PEER

PEER is `eager` or `compiled`. Weights start as ours do, from the same seeds, and so do the windows; see side.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

import side

STEPS, HORIZON, CHANNELS = 512, 96, 7
# name -> (blocks, hidden width), as in benches/src/timeseries.rs
TSMIXERS = {"tsmixer": (2, 64), "tsmixer-etth1": (6, 512)}


class TsMixer(nn.Module):
    """neuralforecast's module on a plain window."""

    def __init__(self, n_block: int, ff_dim: int) -> None:
        super().__init__()
        from neuralforecast.losses.pytorch import MSE
        from neuralforecast.models import TSMixer

        self.inner = TSMixer(
            h=HORIZON, input_size=STEPS, n_series=CHANNELS, n_block=n_block, ff_dim=ff_dim, dropout=0.9, revin=True, loss=MSE()
        )
        torch.manual_seed(0)
        for layer in self.inner.mixing_layers:
            for linear in (layer.temporal_mixer.temporal_lin, layer.feature_mixer.feature_lin_1, layer.feature_mixer.feature_lin_2):
                glorot(linear)
        glorot(self.inner.out)

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        return self.inner({"insample_y": past})


def glorot(linear: nn.Linear) -> None:
    bound = math.sqrt(6 / (linear.in_features + linear.out_features))
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)


class PatchTsMixer(nn.Module):
    """transformers' model as its ETTh1 notebook configures it."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction

        config = PatchTSMixerConfig(
            context_length=STEPS, prediction_length=HORIZON, num_input_channels=CHANNELS, patch_length=8, patch_stride=8, d_model=48,
            num_layers=3, expansion_factor=3, dropout=0.5, head_dropout=0.7, mode="common_channel", scaling="std",
        )  # fmt: skip
        self.inner = PatchTSMixerForPrediction(config)
        torch.manual_seed(0)
        for module in self.inner.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        return self.inner(past_values=past, return_loss=False).prediction_outputs


class Bench:
    def __init__(self, name: str, rows: int, dtype: str, device: str, compiled: bool) -> None:
        self.device, self.bf16 = device.partition(":")[0], dtype == "bf16"
        self.model = (TsMixer(*TSMIXERS[name]) if name in TSMIXERS else PatchTsMixer()).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        torch.manual_seed(1)
        self.past, self.future = torch.randn(rows, STEPS, CHANNELS).to(device), torch.randn(rows, HORIZON, CHANNELS).to(device)
        self.call = torch.compile(self.model) if compiled else self.model

    def forecast(self, model: nn.Module) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return model(self.past)

    def train_step(self) -> None:
        loss = F.mse_loss(self.forecast(self.call).float(), self.future)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        return self.forecast(self.call).float().flatten()

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        loss = F.mse_loss(self.forecast(self.model).float(), self.future)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimizer.zero_grad()
        return loss.item(), norm.item()


if __name__ == "__main__":
    name, phase, batch, dtype, device, peer = side.arguments()
    side.run(Bench(name, int(batch), dtype, device, peer == "compiled"), phase)
