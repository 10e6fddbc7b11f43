"""The Python side of the comparison: training steps of `sae_lens` and `eai-sparsify`, and `transformers`' layers with hooks, on the work of
benches/src/interp.rs.

    python benches/peers/interp.py WORKLOAD PHASE BATCH DTYPE DEVICE PEER

PEER is `eager` or `compiled`. A step is what the package's trainer does in one: forward, backward, clipping (sae_lens), Adam, counts of what fired. The
packages' steps choose features by indices, which `torch.compile` breaks its graph at, and their trainers do not compile them: in the place of the compiled
column stands the eager step again. (sae_lens' sparse activations fail in its own count of what fired, which the CPU cannot cast.) The layers are compiled.
"""

import os

import torch

import side

WIDTH, FEATURES, TOKENS, LAYERS = 576, 9216, 128, 9
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernel is for GPUs; this is the package's own plain form
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}


@torch.no_grad()
def draw(model: torch.nn.Module, less: float = 0.0) -> None:
    """As in benches/src/interp.rs: in the order of the names there."""
    torch.manual_seed(0)
    for name, param in sorted(model.named_parameters(), key=lambda pair: NAMES.get(pair[0], pair[0])):
        turned = name == "encoder.weight"
        values = torch.randn(param.shape[::-1] if turned else param.shape) * (1 / 24 if param.dim() > 1 else 0.01)
        values = values - less if name == "b_enc" else values
        param.copy_(values.T if turned else values)


class Lens:
    """A step of sae_lens' trainer."""

    def __init__(self, name: str, rows: int, device: str) -> None:
        from sae_lens import saes

        self.device = device
        sizes = {"d_in": WIDTH, "d_sae": FEATURES, "device": device}
        if name == "sae-topk":
            self.model = saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(**sizes, k=32))
            draw(self.model)
            self.coefficients = {}
        else:
            self.model = saes.StandardTrainingSAE(saes.StandardTrainingSAEConfig(**sizes, l1_coefficient=1.0))
            draw(self.model, 2.33)
            self.coefficients = {"l1": 1.0}
        torch.manual_seed(1)
        self.x = torch.randn(rows, WIDTH).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-4, betas=(0.9, 0.999))
        self.since = torch.zeros(FEATURES, device=device)
        self.often = torch.zeros(FEATURES, device=device)

    def forward(self):
        from sae_lens.saes.sae import TrainStepInput

        dead = (self.since > 1e9).bool()
        asked = TrainStepInput(sae_in=self.x, coefficients=self.coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False)
        return self.model.training_forward_pass(asked)

    def train_step(self) -> None:
        found = self.forward()
        with torch.no_grad():
            firing = found.feature_acts.bool().float()
            fired = firing.sum(-2).bool()
            fired = fired.to_dense() if fired.is_sparse else fired
            self.since += 1
            self.since[fired] = 0
            self.often += firing.sum(0)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def infer(self) -> torch.Tensor:
        return self.forward().sae_out.flatten()

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        loss = self.forward().loss
        loss.backward()
        norm = sum(p.grad.square().sum().double() for p in self.model.parameters() if p.grad is not None).sqrt()
        self.optimizer.zero_grad()
        return float(loss.detach()), float(norm)


class Sparsify:
    """A step of eai-sparsify's trainer, by Adam."""

    def __init__(self, rows: int, device: str) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        self.device = device
        self.model = SparseCoder(WIDTH, SparseCoderConfig(num_latents=FEATURES, k=32, transcode=True, skip_connection=True), device=device)
        draw(self.model)
        torch.manual_seed(1)
        self.x, self.y = torch.randn(rows, WIDTH).to(device), torch.randn(rows, WIDTH).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-4 / (FEATURES / 2**14) ** 0.5)
        self.since = torch.zeros(FEATURES, dtype=torch.long, device=device)

    def forward(self):
        return self.model(self.x, self.y, dead_mask=self.since > 10_000_000_000)

    def train_step(self) -> None:
        found = self.forward()
        fired = torch.zeros(FEATURES, dtype=torch.bool, device=self.device)
        fired[found.latent_indices.flatten()] = True
        (found.fvu + found.auxk_loss / 32).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.since += len(self.x)
        self.since[fired] = 0

    @torch.no_grad()
    def infer(self) -> torch.Tensor:
        return self.forward().sae_out.flatten()

    def loss_and_gradient_norm(self) -> tuple[float, float]:
        loss = self.forward().fvu
        loss.backward()
        norm = sum(p.grad.square().sum().double() for p in self.model.parameters() if p.grad is not None).sqrt()
        self.optimizer.zero_grad()
        return float(loss.detach()), float(norm)


class Layers:
    """The first layers of SmolLM2, and what enters and leaves the last one's MLP."""

    def __init__(self, rows: int, device: str, kept: bool, compiled: bool) -> None:
        import lm

        self.device, self.kept = device, kept
        whole = lm.smollm2()
        whole.model.layers = whole.model.layers[:LAYERS]
        whole.model.norm = torch.nn.Identity()
        self.model = whole
        # The norm's weight is drawn, too, where it stands in the order of the names.
        torch.manual_seed(0)
        with torch.no_grad():
            names = dict(whole.named_parameters())
            for name in sorted([*names, "model.norm.weight"]):
                shape = names[name].shape if name in names else (WIDTH,)
                values = torch.randn(shape) * (0.1 if "embed_tokens" in name else 0.02)
                if name in names:
                    names[name].copy_(values + 1 if len(shape) == 1 and name.endswith("weight") else values)
        self.model.to(device)
        torch.manual_seed(1)
        self.ids = torch.randint(whole.config.vocab_size, (rows, TOKENS)).to(device)
        self.found = {}
        last = whole.model.layers[-1]
        if kept:
            # The norm's input scaled, before its weight.
            def read(module, args, _ys):
                xs = args[0]
                self.found["read"] = xs * torch.rsqrt(xs.square().mean(-1, keepdim=True) + module.variance_epsilon)

            last.post_attention_layernorm.register_forward_hook(read)
            last.mlp.register_forward_hook(lambda _module, _args, ys: self.found.update(write=ys))
        self.run = torch.compile(whole.model) if compiled and not kept else whole.model

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        last = self.run(self.ids, use_cache=False).last_hidden_state
        parts = [last, self.found["read"], self.found["write"]] if self.kept else [last]
        return torch.cat([part.flatten()[:4096] for part in parts])


if __name__ == "__main__":
    name, phase, batch, _dtype, device, peer = side.arguments()
    device = device.partition(":")[0]
    if name.startswith("layers"):
        bench = Layers(int(batch), device, name.endswith("-kept"), peer == "compiled")
    elif name == "skip-transcoder":
        bench = Sparsify(int(batch), device)
    else:
        bench = Lens(name, int(batch), device)
    side.run(bench, phase)
