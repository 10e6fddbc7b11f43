"""Goldens of causal tracing.

Reference: the algorithm of the released code (experiments/causal_trace.py), derived again in plain steps with forward hooks on the models of
`transformers`, in f64: one pass of 1 + n rows for each cell, nothing is reused. Writes into crates/interp/tests/goldens/

model_<case>.safetensors   the models that are traced and edited: `config` and `weight.<name>` as saved by the package
trace_<case>.safetensors   config: model, subject [begin, end), samples, sd, layers
  input.ids [7], noise [3, e-b, d]  RandomState(1).randn, not multiplied
  answer [1], high, low             the arg-max at the last position, its clean probability, the one without restoration
  scores.<kind>.<window>            [7, layers] for the kinds `block` (window 1), `mlp`, `attn`
  scores.severed-mlp.1, scores.severed-attn.1   one block's output restored, while that token's MLPs (attentions) in all layers give what they give
                                    without restoration. The released notebook draws the noise of its second pass on from the first one's; here both
                                    passes have the same
  replaced.low, replaced.block      the noise in place of the embedding
  uniform.low, uniform.block, uniform.noise   RandomState(1).uniform(-1, 1)
  forced.ids, forced.target         the prompt with its two target tokens; the score is the product of their probabilities
  forced.high, forced.low, forced.<kind>.<window>  over the prompt's tokens
"""

import numpy
import torch
from common import goldens, save, setup
from interp_common import LAYERS, SCRIPT, changing, doubled, model_of, module, write_models
from lm_common import ids

SAMPLES, SD, SUBJECT, LENGTH = 3, 0.5, (1, 4), 7


class Trace:
    def __init__(self, model, tokens, noise, replace=False, target=None):
        self.model, self.noise, self.replace, self.target = model, noise, replace, target
        whole = tokens if target is None else torch.cat((tokens, target[:-1]))
        self.rows = whole.repeat(SAMPLES + 1, 1)
        self.length = len(tokens)
        if target is None:
            logits = model(self.rows[:1]).logits[0, -1]
            self.answer = logits.argmax()

    def probabilities(self, restored, corrupt=True, severed=None) -> torch.Tensor:
        """Of all rows; `restored` are (token, layer, kind), `severed` is (token, kind)."""

        def embed(_inputs, ys):
            ys, (begin, end) = ys.clone(), SUBJECT
            ys[1:, begin:end] = self.noise if self.replace else ys[1:, begin:end] + self.noise
            return ys

        def restore(token):
            def change(_inputs, ys):
                ys = ys.clone()
                ys[1:, token] = ys[0, token]
                return ys

            return change

        pairs = [(module(self.model, None), embed)] if corrupt else []
        pairs += [(module(self.model, layer, kind), restore(token)) for token, layer, kind in restored]
        if severed is not None:
            token, kind = severed
            kept = {}
            places = [(layer, module(self.model, layer, kind)) for layer in range(LAYERS)]
            with changing(pairs[0], *((place, lambda _inputs, ys, layer=layer: kept.__setitem__(layer, ys.clone())) for layer, place in places)):
                self.model(self.rows)

            def sever(layer):
                def change(_inputs, ys):
                    ys = ys.clone()
                    ys[1:, token] = kept[layer][1:, token]
                    return ys

                return change

            pairs += [(place, sever(layer)) for layer, place in places]
        with changing(*pairs):
            logits = self.model(self.rows).logits
        if self.target is None:
            return logits[:, -1].softmax(-1)[:, self.answer]
        log = logits[:, self.length - 1 :].log_softmax(-1)
        return log.gather(2, self.target.expand(len(self.rows), -1)[..., None])[..., 0].sum(1).exp()

    def high(self) -> torch.Tensor:
        return self.probabilities([], corrupt=False)[0]

    def low(self) -> torch.Tensor:
        return self.probabilities([])[1:].mean()

    def severed(self, kind) -> torch.Tensor:
        rows = [[self.probabilities([(token, layer, None)], severed=(token, kind))[1:].mean() for layer in range(LAYERS)] for token in range(self.length)]
        return torch.stack([torch.stack(row) for row in rows])

    def grid(self, kind, window=1) -> torch.Tensor:
        cells = torch.empty(self.length, LAYERS)
        for token in range(self.length):
            for layer in range(LAYERS):
                layers = [layer] if kind is None else range(max(0, layer - window // 2), min(LAYERS, layer - (-window // 2)))
                cells[token, layer] = self.probabilities([(token, l, kind) for l in layers])[1:].mean()
        return cells


@torch.no_grad()
def write(case: str) -> None:
    with doubled():
        model = model_of(case)
        tokens = ids(LENGTH, seed=41)
        begin, end = SUBJECT
        width = model.config.hidden_size
        draw = lambda: numpy.random.RandomState(1)
        noise = torch.from_numpy(draw().randn(SAMPLES, end - begin, width))
        trace = Trace(model, tokens, SD * noise)
        tensors = {"input.ids": tokens, "noise": noise, "answer": trace.answer[None], "high": trace.high(), "low": trace.low(), "scores.block.1": trace.grid(None)}
        for kind, window in (("mlp", 3), ("attn", 3), ("mlp", 10), ("attn", 2)):
            tensors[f"scores.{kind}.{window}"] = trace.grid(kind, window)
        tensors |= {f"scores.severed-{kind}.1": trace.severed(kind) for kind in ("mlp", "attn")}
        replaced = Trace(model, tokens, SD * noise, replace=True)
        tensors |= {"replaced.low": replaced.low(), "replaced.block": replaced.grid(None)}
        uniform = torch.from_numpy(draw().uniform(-1, 1, (SAMPLES, end - begin, width)))
        other = Trace(model, tokens, SD * uniform)
        tensors |= {"uniform.noise": uniform, "uniform.low": other.low(), "uniform.block": other.grid(None)}
        target = ids(2, seed=42)
        forced = Trace(model, tokens, SD * noise, target=target)
        tensors |= {"forced.ids": torch.cat((tokens, target[:-1])), "forced.target": target, "forced.high": forced.high(), "forced.low": forced.low()}
        for kind, window in ((None, 1), ("mlp", 3), ("attn", 3)):
            tensors[f"forced.{kind or 'block'}.{window}"] = forced.grid(kind, window)
    config = {"model": f"model_{case}", "subject": SUBJECT, "samples": SAMPLES, "sd": SD, "layers": LAYERS}
    save(goldens("interp") / f"trace_{case}.safetensors", SCRIPT, tensors, config, ("transformers", "numpy"))


if __name__ == "__main__":
    setup()
    write_models()
    for case in ("gpt2", "llama"):
        write(case)
