"""The Python side of the comparison: FuxiCTR's FinalMLP and DIN, eager or with a compiled forward pass, on the work of benches/src/recsys.rs.

    python benches/peers/recsys.py WORKLOAD PHASE BATCH DTYPE DEVICE PEER

PEER is `eager` or `compiled`. A training step is the package's own: regulariser over whole tables, clipping, dense Adam. Weights and rows are
drawn from the same seeds as ours; see side.py.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import side

sys.path.append(str(Path(__file__).resolve().parents[2] / "python" / "goldens"))
from recsys_ctr_common import DIN, FinalMLP, build  # noqa: E402

FRAPPE = {"user": 956, "item": 4084, "daytime": 9, "weekday": 9, "isweekend": 4, "homework": 5, "cost": 4, "weather": 11, "country": 82, "city": 235}
CRITEO = [1462, 560, 413424, 248543, 307, 23, 12192, 635, 5, 54712, 5350, 409749, 3182, 29, 12500, 365811, 12, 4934, 2096, 6, 397981, 20, 17, 88608, 98, 64073]  # fmt: skip
CATEGORY = lambda name, size: {"type": "categorical", "name": name, "vocab_size": size}
HISTORY = lambda name, size, owner: {"type": "sequence", "name": name, "vocab_size": size, "max_len": 100, "share_embedding": owner}

FINALMLP = {
    "fields": [CATEGORY(name, size) for name, size in FRAPPE.items()],
    "embedding_dim": 10,
    "mlp1_hidden_units": [400],
    "mlp1_dropout": 0.4,
    "mlp1_batch_norm": True,
    "mlp2_hidden_units": [100],
    "mlp2_dropout": 0.4,
    "mlp2_batch_norm": True,
    "use_fs": True,
    "fs_hidden_units": [400],
    "fs1_context": ["user"],
    "fs2_context": ["item"],
    "num_heads": 5,
}
AMAZON = (
    DIN,
    {
        "fields": [CATEGORY("item_id", 63003), CATEGORY("cate_id", 803), HISTORY("item_history", 63003, "item_id"), HISTORY("cate_history", 803, "cate_id")],
        "din_target_field": [["item_id", "cate_id"]],
        "din_sequence_field": [["item_history", "cate_history"]],
        "embedding_dim": 64,
        "attention_hidden_units": [512, 256],
        "attention_hidden_activations": "dice",
        "attention_dropout": 0.1,
        "din_use_softmax": True,
        "dnn_hidden_units": [1024, 512, 256],
        "dnn_activations": "dice",
        "net_dropout": 0.1,
        "batch_norm": True,
    },
    0.005,
)
NUMBERS = [f"I{i}" for i in range(1, 14)]
# name without `-lazy` -> (model, config, embedding regulariser), as in benches/src/recsys.rs
WORKLOADS = {
    "finalmlp-frappe": (FinalMLP, FINALMLP, 0.05),
    "finalmlp-criteo": (
        FinalMLP,
        FINALMLP
        | {
            "fields": [{"type": "numeric", "name": name} for name in NUMBERS] + [CATEGORY(f"C{i + 1}", size) for i, size in enumerate(CRITEO)],
            "mlp1_hidden_units": [400] * 3,
            "mlp1_dropout": 0.2,
            "mlp2_hidden_units": [1000],
            "mlp2_dropout": 0.3,
            "fs_hidden_units": [800],
            "fs1_context": NUMBERS,
            "fs2_context": ["C6"],
            "num_heads": 200,
        },
        1e-5,
    ),
    "din-amazon": AMAZON,
    "din-candidates": AMAZON,
}


def rows(fields: list[dict], count: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = lambda shape, size: (torch.rand(*shape).pow(3) * (size - 1)).long() + 1
    made = {}
    for field in fields:
        if field["type"] == "numeric":
            made[field["name"]] = torch.rand(count)
        elif field["type"] == "categorical":
            made[field["name"]] = ids((count,), field["vocab_size"])
        else:
            steps = field["max_len"]
            made[field["name"]] = ids((count, steps), field["vocab_size"]) * (torch.arange(steps) < steps * 3 // 4)
    return made


class Bench:
    def __init__(self, name: str, count: int, dtype: str, device: str, compiled: bool) -> None:
        self.device, self.bf16 = device.partition(":")[0], dtype == "bf16"
        kind, config, regularizer = WORKLOADS[name.removesuffix("-lazy")]
        self.one_by_one = name == "din-candidates"
        self.model = build(kind, config, embedding_regularizer=regularizer)
        self.model._max_gradient_norm = 10.0
        torch.manual_seed(0)
        with torch.no_grad():
            # A shared table stands under the name of its owner here.
            parameters = {(name.replace("_history", "_id")): value for name, value in self.model.state_dict(keep_vars=True).items() if value.requires_grad}
            for name in sorted(parameters):
                value = parameters[name]
                value.copy_(torch.randn(value.shape) * 0.05)
                if "embedding_layers" in name and value.shape[1] > 1:
                    value[0] = 0
        self.model.to(device)
        self.inputs = {name: xs.to(device) for name, xs in rows(config["fields"], count).items()}
        if self.one_by_one:  # candidates of the user of the first row
            self.inputs = {name: xs[:1].expand_as(xs).contiguous() if xs.dim() == 2 else xs for name, xs in self.inputs.items()}
        self.batch = self.inputs | {"label": (torch.arange(count) % 2).float().to(device)}
        if compiled:
            self.model.forward = torch.compile(self.model.forward)

    def train_step(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            self.model.train_step(self.batch)

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            batches = [self.batch]
            if self.one_by_one:
                batches = [{name: xs[row : row + 1] for name, xs in self.batch.items()} for row in range(len(self.batch["label"]))]
            return torch.cat([self.model(batch)["y_pred"].float().flatten() for batch in batches])

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        probability = self.model(self.batch)["y_pred"].flatten()
        loss = F.binary_cross_entropy(probability, self.batch["label"])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.model.optimizer.zero_grad()
        return loss.item(), norm.item()


if __name__ == "__main__":
    name, phase, batch, dtype, device, peer = side.arguments()
    side.run(Bench(name, int(batch), dtype, device, peer == "compiled"), phase)
