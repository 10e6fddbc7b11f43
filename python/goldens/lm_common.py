"""What the scripts of `lm` and `interp` share: tiny random language models of `transformers`, in f32 and wholly in f64."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()

VOCAB, LAYERS = 53, 2
SINGLE = torch.float32  # also within `doubled()`


def gpt2(layers: int = LAYERS, **changes):
    return GPT2LMHeadModel, GPT2Config(**({"vocab_size": VOCAB, "n_positions": 16, "n_embd": 16, "n_layer": layers, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0} | changes))


def neox(**changes):
    sizes = {
        "vocab_size": VOCAB, "max_position_embeddings": 16, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": 48, "rotary_pct": 0.25, "tie_word_embeddings": False, "hidden_act": "gelu",
    }  # fmt: skip
    return GPTNeoXForCausalLM, GPTNeoXConfig(**(sizes | changes))


def gptj(**changes):
    sizes = {"vocab_size": VOCAB, "n_positions": 16, "n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_inner": 40, "rotary_dim": 4, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0}
    return GPTJForCausalLM, GPTJConfig(**(sizes | changes))


def opt(**changes):
    sizes = {
        "vocab_size": VOCAB, "max_position_embeddings": 16, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "ffn_dim": 40,
        "word_embed_proj_dim": 16,
    }  # fmt: skip
    return OPTForCausalLM, OPTConfig(**(sizes | changes))


def llama(layers: int = LAYERS, **changes):
    sizes = {
        "vocab_size": VOCAB, "max_position_embeddings": 32, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 40, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    return LlamaForCausalLM, LlamaConfig(**(sizes | changes))


LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def qwen2(**changes):
    sizes = {
        "vocab_size": VOCAB, "max_position_embeddings": 32, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 40, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }  # fmt: skip
    return Qwen2ForCausalLM, Qwen2Config(**(sizes | changes))


# Golden name -> what makes it.
MODELS = {
    "gpt2": gpt2,
    "neox": neox,
    "neox_serial": lambda: neox(use_parallel_residual=False),
    "gptj": gptj,
    "opt": opt,
    "llama": llama,
    # Heads wider than d / heads.
    "llama_tied": lambda: llama(hidden_size=16, head_dim=8, tie_word_embeddings=True),
    "llama_scaled": lambda: llama(max_position_embeddings=64, rope_parameters=LLAMA3),
    "llama_linear": lambda: llama(hidden_size=16, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "qwen2": qwen2,
}


@contextlib.contextmanager
def doubled():
    """What the package computes in f32 whatever the weights are (softmax, norms, angles) is computed in f64 in here."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch, "float32", torch.float64), mock.patch.object(torch, "float", torch.float64), mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(default)


def normal(*shape: int, seed: int) -> torch.Tensor:
    """f32, also within `doubled()`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=SINGLE)


@torch.no_grad()
def draw(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that attention attends and nothing is near zero: a model at its initialisation hides mistakes."""
    for i, (name, param) in enumerate(sorted(model.named_parameters())):
        values = normal(*param.shape, seed=seed * 10_000 + i)
        if param.dim() == 1:
            norm = name.endswith("weight")
            values = values * 0.2 + 1 if norm else values * 0.2
        elif "embed" in name or "wte" in name or "wpe" in name:
            values = values * 0.8
        else:
            values = values * (1.2 / max(param.shape[0] if "transformer.h" in name and "c_" in name else param.shape[1], 1) ** 0.5)
        param.copy_(values)


def build(make, seed: int = 1, double: bool = False) -> torch.nn.Module:
    """The model in evaluation mode; call it within `doubled()` when it is to be in f64."""
    kind, config = make()
    config._attn_implementation = "eager"
    model = kind(config)
    model = model.double() if double else model.float()
    draw(model, seed)
    return model.eval()


def published(model: torch.nn.Module) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json and the tensors as `save_pretrained` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        tensors = load_file(Path(folder) / "model.safetensors")
    config.pop("transformers_version", None)
    return config, tensors


def ids(*shape: int, seed: int) -> torch.Tensor:
    """Ids that are no special tokens: an embedding's padding row would have no gradient."""
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Of each real token its number; what is padding is never read."""
    return (mask.cumsum(1) - 1).clamp_min(0)
