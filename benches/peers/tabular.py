"""The Python side of the comparison: package `tabm` in PyTorch, eager or compiled, on the work of benches/src/tabular.rs.

    python benches/peers/tabular.py WORKLOAD PHASE BATCH DTYPE DEVICE PEER

PEER is `eager` or `compiled`. Weights and rows come from the same seeds as ours. Says first what it computes (predictions, loss,
gradient norm), then measures whenever a line arrives on standard input; see benches/examples/side.rs for the lines.
"""

import rtdl_num_embeddings
import tabm
import torch
from torch import nn
from torch.nn import functional as F

import side

# name -> (model, features, blocks, width, embedded), as in benches/src/tabular.rs
WORKLOADS = {
    "tabm-8": ("tabm", 8, 3, 512, False),
    "tabm-100": ("tabm", 100, 3, 512, False),
    "tabm-mini-8": ("tabm-mini", 8, 3, 512, False),
    "tabm-mini-100": ("tabm-mini", 100, 3, 512, False),
    "tabm-packed-8": ("tabm-packed", 8, 3, 512, False),
    "mlp-ple-8": ("mlp", 8, 2, 512, True),
    "mlp-ple-100": ("mlp", 100, 2, 512, True),
    "tabm-small": ("tabm", 8, 2, 128, False),
    "tabm-mini-small": ("tabm-mini", 8, 2, 128, False),
}


class Mlp(nn.Module):
    """The plain MLP on embedded features: the package's backbone and one linear head. `[batch, n]` to `[batch, 1, 1]`."""

    def __init__(self, features: int, embedding: nn.Module, n_blocks: int, d_block: int) -> None:
        super().__init__()
        self.num_module = embedding
        self.backbone = tabm.MLPBackbone(d_in=features * 16, n_blocks=n_blocks, d_block=d_block, dropout=0.1)
        self.output = nn.Linear(d_block, 1)

    def forward(self, x_num: torch.Tensor) -> torch.Tensor:
        return self.output(self.backbone(self.num_module(x_num).flatten(1))).unsqueeze(1)


class Bench:
    def __init__(self, name: str, rows: int, dtype: str, device: str, compiled: bool) -> None:
        kind, features, n_blocks, d_block, embedded = WORKLOADS[name]
        self.device, self.bf16 = device.partition(":")[0], dtype == "bf16"
        if embedded:
            torch.manual_seed(2)
            bins = rtdl_num_embeddings.compute_bins(torch.randn(10_000, features), n_bins=48)
        torch.manual_seed(0)
        if kind == "mlp":
            embedding = rtdl_num_embeddings.PiecewiseLinearEmbeddings(bins, 16, activation=False, version="B")
            model = Mlp(features, embedding, n_blocks, d_block)
        else:
            model = tabm.TabM.make(n_num_features=features, d_out=1, arch_type=kind, n_blocks=n_blocks, d_block=d_block, dropout=0.1)
        self.model = model.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3, weight_decay=3e-4)
        torch.manual_seed(1)
        x = torch.randn(rows, features)
        self.x, self.y = x.to(device), x.sum(1).sin().to(device)
        self.call = torch.compile(self.model) if compiled else self.model

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    def loss(self, model: nn.Module) -> torch.Tensor:
        with self.autocast():
            ys = model(self.x)
        ys = ys.float().squeeze(-1)
        return F.mse_loss(ys, self.y[:, None].expand_as(ys))

    def train_step(self) -> None:
        loss = self.loss(self.call)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        with self.autocast():
            ys = self.call(self.x)
        return ys.float().mean((1, 2))

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        loss = self.loss(self.model)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimizer.zero_grad()
        return loss.item(), norm.item()


if __name__ == "__main__":
    name, phase, batch, dtype, device, peer = side.arguments()
    side.run(Bench(name, int(batch), dtype, device, peer == "compiled"), phase)
