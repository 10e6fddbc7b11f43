"""The Python side of the comparison: `transformers`' models for plain passes, `transformer_lens` for passes that keep activations, and causal
tracing as the released code does it, on the work of benches/src/lm.rs.

    python benches/peers/lm.py WORKLOAD PHASE BATCH DTYPE DEVICE PEER

PEER is `eager` or `compiled`. Parameters are drawn in the order of their names, from the same seed, and so are the texts; see side.py.
`compiled` compiles the plain passes; hooks that are Python functions cannot be compiled into the model, so the others run eagerly either way.

Causal tracing runs one pass of 1 + n rows for each cell of the grid. All cells cost the same, so only 9 of 270 are run (each token once, at a layer of
its own) and their time counts 30 times; the clean pass and the one without restoration count once. TRACE_CELLS=all in the environment runs all.
"""

import hashlib
import os
import resource
import time

import torch

import side

TOKENS = 128
# "The Space Needle is in the city of" by SmolLM2's tokeniser, with the subject's tokens.
PROMPT, SUBJECT, SAMPLES, SD = [504, 414, 46682, 18669, 314, 281, 260, 2240, 282], (1, 4), 10, 0.3
KEPT = ("hook_resid_post", "hook_mlp_out")


def gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def smollm2() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@torch.no_grad()
def draw(model: torch.nn.Module) -> torch.nn.Module:
    """As in benches/src/lm.rs."""
    torch.manual_seed(0)
    for name, param in sorted(model.named_parameters()):
        values = torch.randn(param.shape) * (0.1 if "embed_tokens" in name else 0.02)
        param.copy_(values + 1 if param.dim() == 1 and name.endswith("weight") else values)
    return model.eval()


class Plain:
    """Logits of all positions; some of them are compared."""

    def __init__(self, model: torch.nn.Module, rows: int, dtype: str, device: str, compiled: bool) -> None:
        self.device, self.bf16 = device.partition(":")[0], dtype == "bf16"
        self.model = draw(model).to(device)
        torch.manual_seed(1)
        self.ids = torch.randint(self.model.config.vocab_size, (rows, TOKENS)).to(device)
        self.call = torch.compile(self.model) if compiled else self.model

    def logits(self) -> torch.Tensor:
        return self.call(self.ids, use_cache=False).logits

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.logits()[..., :64].float().flatten()


class Kept(Plain):
    """GPT-2 in transformer_lens, all weights as they are; all activations are kept, or some."""

    def __init__(self, rows: int, dtype: str, device: str, some: bool) -> None:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

        super().__init__(gpt2(), rows, dtype, device, False)
        config = HookedTransformerConfig(
            n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257, act_fn="gelu_new", normalization_type="LN", eps=1e-5,
            seed=0, device=device, default_prepend_bos=False,
        )  # fmt: skip
        state = {name: value.detach().clone() for name, value in convert_gpt2_weights(self.model, config).items()}
        self.model = self.call = HookedTransformer(config)
        self.model.load_and_process_state_dict(state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
        self.filter = (lambda name: name.endswith(KEPT)) if some else None

    def logits(self) -> torch.Tensor:
        logits, _cache = self.model.run_with_cache(self.ids, names_filter=self.filter)
        return logits


class Tracing:
    """High, low and the scores of the cells that are run."""

    def __init__(self, device: str) -> None:
        import numpy

        self.device = device.partition(":")[0]
        self.model = draw(smollm2()).to(device)
        self.ids = torch.tensor([PROMPT] * (SAMPLES + 1)).to(device)
        begin, end = SUBJECT
        noise = numpy.random.RandomState(1).randn(SAMPLES, end - begin, self.model.config.hidden_size)
        self.noise = torch.from_numpy(SD * noise).float().to(device)
        self.layers = len(self.model.model.layers)
        every = [(token, layer) for token in range(len(PROMPT)) for layer in range(self.layers)]
        shown = [(token, (7 * token + 3) % self.layers) for token in range(len(PROMPT))]
        self.cells = every if os.environ.get("TRACE_CELLS") == "all" else shown
        self.shown, self.share = shown, len(every) / len(self.cells)

    def row(self, cell, answer) -> torch.Tensor:
        def corrupt(_module, _inputs, output):
            output[1:, SUBJECT[0] : SUBJECT[1]] += self.noise
            return output

        def restore(_module, _inputs, output):
            states = output[0] if isinstance(output, tuple) else output
            states[1:, cell[0]] = states[0, cell[0]]
            return output

        handles = [self.model.model.embed_tokens.register_forward_hook(corrupt)]
        if cell is not None:
            handles.append(self.model.model.layers[cell[1]].register_forward_hook(restore))
        logits = self.model(self.ids, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return logits[1:, -1].softmax(-1).mean(0)[answer]

    @torch.inference_mode()
    def infer(self) -> torch.Tensor:
        start = time.perf_counter()
        high, answer = self.model(self.ids, use_cache=False).logits[:, -1].softmax(-1)[0].max(-1)
        low = self.row(None, answer)
        middle = time.perf_counter()
        scores = {cell: self.row(cell, answer) for cell in self.cells}
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.milliseconds = 1e3 * (middle - start + (time.perf_counter() - middle) * self.share)
        return torch.stack((high, low, *(scores[cell] for cell in self.shown))).float()


def run_tracing(bench: Tracing) -> None:
    """side.run with the time of the whole grid."""
    outputs = bench.infer().double().cpu().tolist()
    side.say({"ready": True, "outputs": outputs, "loss": 0.0, "gradient_norm": 0.0, "threads": torch.get_num_threads()})
    for _ in side.sys.stdin:
        ms = []
        for _ in range(2):
            last = bench.infer()
            ms.append(bench.milliseconds)
        side.say({"ms": ms, "checksum": hashlib.sha256(last.cpu().numpy().tobytes()).hexdigest()})
    side.say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


if __name__ == "__main__":
    name, phase, batch, dtype, device, peer = side.arguments()
    if name == "trace-smollm2":
        run_tracing(Tracing(device))
    elif name.startswith("gpt2-cache"):
        side.run(Kept(int(batch), dtype, device, some=name.endswith("-some")), phase)
    else:
        model = {"gpt2": gpt2, "smollm2": smollm2}[name]()
        side.run(Plain(model, int(batch), dtype, device, peer == "compiled"), phase)
