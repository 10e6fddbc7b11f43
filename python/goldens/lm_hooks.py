"""Goldens of the hook points and of the processed weights.

Reference: package `transformer_lens` (HookedTransformer), fed with the models of lm_models.py, in f64. Writes into crates/lm/tests/goldens/

hooks_<case>.safetensors: all hook points of one run over `input.ids` [1, 7], weights unprocessed; `config` is `model` and the weights are those
of model_<case>.safetensors.
  output.logits, hook.<name>   every point, under the package's own name; the opt-in points come from a second run that switches them on
                               (with split inputs the package's ln1 sees each head's copy, so ln1 is taken from the first run)
  grad.<name>                  gradients of the mean cross-entropy of each next token with respect to some of the points
Left out of the files: `hook_attn_in` (an alternative to the split inputs), `unembed.hook_in` and `unembed.hook_out` (what ln_final gives after its
affine, and the logits). In GPT-J the package holds the block's only norm twice, as ln1 and ln2.

processed_<case>.safetensors: fold_ln, center_writing_weights, center_unembed and fold_value_biases all on.
  weight.<name>                the processed tensors under the package's own names (`blocks.0.attn.W_Q`, grouped keys as `_W_K`)
  output.logits, hook.<name>   of the processed model

logit_lens and the like follow from these: `ln_final` and `unembed` of any residual.
"""

import warnings

import torch
from common import goldens, save, setup
from lm_common import MODELS, build, doubled, ids
from lm_models import loss_of
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gpt2_weights,
    convert_gptj_weights,
    convert_llama_weights,
    convert_neox_weights,
    convert_opt_weights,
)

SCRIPT = "python/goldens/lm_hooks.py"
PACKAGES = ("transformers", "transformer_lens")
CASES = {
    "gpt2": convert_gpt2_weights,
    "neox": convert_neox_weights,
    "neox_serial": convert_neox_weights,
    "gptj": convert_gptj_weights,
    "opt": convert_opt_weights,
    "llama": convert_llama_weights,
    "llama_tied": convert_llama_weights,
    "llama_scaled": convert_llama_weights,
}
PROCESSED = ("gpt2", "neox", "opt", "llama")
OPT_IN = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_result")
GRADIENTS = ("hook_embed", "hook_resid_pre", "hook_resid_post", "hook_z", "hook_q", "hook_k", "hook_v", "hook_mlp_out", "hook_attn_out", "hook_pattern")


def hooked_config(case: str, config) -> HookedTransformerConfig:
    heads = config.num_attention_heads
    common = {
        "n_layers": config.num_hidden_layers, "d_model": config.hidden_size, "n_ctx": config.max_position_embeddings, "n_heads": heads,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // heads, "d_vocab": config.vocab_size, "dtype": torch.float64, "seed": 0,
        "device": "cpu", "default_prepend_bos": False,
    }  # fmt: skip
    if case == "gpt2":
        return HookedTransformerConfig(d_mlp=4 * config.n_embd, act_fn="gelu_new", normalization_type="LN", eps=config.layer_norm_epsilon, **common)
    if case.startswith("neox"):
        return HookedTransformerConfig(
            d_mlp=config.intermediate_size, act_fn="gelu", normalization_type="LN", eps=config.layer_norm_eps, positional_embedding_type="rotary",
            rotary_dim=common["d_head"] // 4, rotary_adjacent_pairs=False, parallel_attn_mlp=config.use_parallel_residual, **common,
        )  # fmt: skip
    if case == "gptj":
        return HookedTransformerConfig(
            d_mlp=config.n_inner, act_fn="gelu_new", normalization_type="LN", eps=config.layer_norm_epsilon, positional_embedding_type="rotary",
            rotary_dim=config.rotary_dim, rotary_adjacent_pairs=True, parallel_attn_mlp=True, **common,
        )  # fmt: skip
    if case == "opt":
        return HookedTransformerConfig(d_mlp=config.ffn_dim, act_fn="relu", normalization_type="LN", eps=1e-5, **common)
    rope = config.rope_parameters
    scaling = {}
    if rope["rope_type"] == "llama3":
        scaling = {
            "use_NTK_by_parts_rope": True, "NTK_by_parts_low_freq_factor": rope["low_freq_factor"], "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"], "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }  # fmt: skip
    return HookedTransformerConfig(
        d_mlp=config.intermediate_size, act_fn="silu", gated_mlp=True, normalization_type="RMS", eps=config.rms_norm_eps, final_rms=True,
        positional_embedding_type="rotary", rotary_dim=common["d_head"], rotary_base=rope["rope_theta"], rotary_adjacent_pairs=False,
        n_key_value_heads=config.num_key_value_heads, **scaling, **common,
    )  # fmt: skip


def hooked(case: str, process: bool) -> tuple[HookedTransformer, torch.nn.Module]:
    with doubled():
        model = build(MODELS[case], double=True)
    config = hooked_config(case, model.config)
    state = {name: value.detach().clone() for name, value in CASES[case](model, config).items()}
    lens = HookedTransformer(config)
    lens.load_and_process_state_dict(state, fold_ln=process, center_writing_weights=process, center_unembed=process, fold_value_biases=process)
    for block in lens.blocks:
        attn = block.attn
        if hasattr(attn, "rotary_sin"):  # loading has rounded them to f32
            with doubled():
                attn.rotary_sin, attn.rotary_cos = attn.calculate_sin_cos_rotary(config.rotary_dim, config.n_ctx, base=config.rotary_base, dtype=torch.float64)
    return lens.eval(), model


def wanted(name: str) -> bool:
    return "hook_attn_in" not in name and "unembed." not in name


def run(lens: HookedTransformer, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits and every point, the opt-in ones too."""
    with torch.no_grad():
        logits, cache = lens.run_with_cache(tokens)
        lens.set_use_attn_result(True)
        lens.set_use_split_qkv_input(True)
        lens.set_use_hook_mlp_in(True)
        again, more = lens.run_with_cache(tokens)
        assert torch.allclose(again, logits, rtol=1e-12, atol=1e-12)
        lens.set_use_attn_result(False)
        lens.set_use_split_qkv_input(False)
        lens.set_use_hook_mlp_in(False)
    tensors = {"output.logits": logits}
    tensors |= {f"hook.{name}": value for name, value in cache.items() if wanted(name)}
    tensors |= {f"hook.{name}": value for name, value in more.items() if name.endswith(OPT_IN) and wanted(name)}
    return tensors


def gradients(lens: HookedTransformer, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    names = [name for name in lens.hook_dict if name.rpartition(".")[2] in GRADIENTS]
    hooks = [(name, lambda grad, hook: found.__setitem__(f"grad.{hook.name}", grad.detach().clone())) for name in names]
    with lens.hooks(bwd_hooks=hooks):
        loss_of(lens(tokens), tokens).backward()
    lens.zero_grad()
    return found


def write(case: str) -> None:
    tokens = ids(1, 7, seed=6)
    lens, model = hooked(case, process=False)
    tensors = {"input.ids": tokens} | run(lens, tokens)
    with doubled(), torch.no_grad():
        logits = model(tokens).logits
    difference = (logits - tensors["output.logits"]).abs().max() / logits.abs().max()
    assert difference < 1e-12, f"{case}: the two packages differ by {difference}"
    if case in ("gpt2", "llama"):
        tensors |= gradients(lens, tokens)
    save(goldens("lm") / f"hooks_{case}.safetensors", SCRIPT, tensors, {"model": f"model_{case}"}, PACKAGES)
    if case not in PROCESSED:
        return
    lens, _ = hooked(case, process=True)
    tensors = {"input.ids": tokens} | run(lens, tokens)
    tensors = {name: value for name, value in tensors.items() if ".blocks.1." in name or "blocks" not in name}
    state = {name: value for name, value in lens.state_dict().items() if name.rpartition(".")[2].lstrip("_")[:2] in ("W_", "b_") or name.endswith((".w", ".b"))}
    tensors |= {f"weight.{name}": value.clone() for name, value in state.items() if ".blocks.1." in f".{name}" or "blocks" not in name}
    save(goldens("lm") / f"processed_{case}.safetensors", SCRIPT, tensors, {"model": f"model_{case}"}, PACKAGES)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    setup()
    torch.set_grad_enabled(True)
    for case in CASES:
        write(case)
