"""What the scripts of `interp` share: the models that are traced and edited, and reading and changing a module's output."""

import contextlib

import torch
from common import goldens, save
from lm_common import build, doubled, gpt2, llama, published

LAYERS = 4
SCRIPT = "python/goldens/interp_trace.py"
# Golden name -> what makes it. interp_trace.py writes model_<case>.safetensors.
MODELS = {
    "gpt2": lambda: gpt2(layers=LAYERS),
    "llama": lambda: llama(layers=LAYERS, hidden_size=16, head_dim=4, intermediate_size=24),
}


def model_of(case: str) -> torch.nn.Module:
    """In f64; to be called and run within `doubled()`."""
    model = build(MODELS[case], seed=2, double=True)
    return model.requires_grad_(False)


def write_models() -> None:
    for case, make in MODELS.items():
        config, weights = published(build(make, seed=2))
        tensors = {f"weight.{name}": value for name, value in weights.items()}
        save(goldens("interp") / f"model_{case}.safetensors", SCRIPT, tensors, config, ("transformers",))


def module(model: torch.nn.Module, layer: int | None, kind: str | None = None) -> torch.nn.Module:
    """`layer` None is the token embedding; `kind` None the whole block, else `mlp`, `attn` or `out` (the second MLP matrix)."""
    if hasattr(model, "transformer"):
        if layer is None:
            return model.transformer.wte
        block = model.transformer.h[layer]
        return block if kind is None else {"mlp": block.mlp, "attn": block.attn, "out": block.mlp.c_proj}[kind]
    if layer is None:
        return model.model.embed_tokens
    block = model.model.layers[layer]
    return block if kind is None else {"mlp": block.mlp, "attn": block.self_attn, "out": block.mlp.down_proj}[kind]


@contextlib.contextmanager
def changing(*pairs):
    """Within it, each module of `(module, change)` gives `change(input, output)` of its first output; None leaves it."""

    def hook(change):
        def run(_module, inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            new = change(inputs[0] if inputs else None, first)
            if new is None:
                return None
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return run

    handles = [place.register_forward_hook(hook(change)) for place, change in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["LAYERS", "MODELS", "changing", "doubled", "model_of", "module", "write_models"]
