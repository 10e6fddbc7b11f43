"""Goldens of the language models.

Reference: package `transformers`, tiny random models of each architecture. Writes crates/lm/tests/goldens/model_<case>.safetensors:

  config           (metadata) config.json as the package saves it
  weight.<name>    the tensors under the names that the package saves
  input.ids        [2, 9]
  output.logits    in f32; output64.logits wholly in f64 (softmax, norms and angles too)
  loss             in f64: mean cross-entropy of each next token
  grad.<name>      in f64, of the embeddings, the first layer, the last norm and the head
  left.*, right.*  `ids`, `mask` and f64 `logits` of rows padded on that side; logits at padding mean nothing
  greedy.prompt, greedy.lengths, greedy.ids   prompts (padded right with 0) and the six tokens that follow each, one by one, in f64
"""

import torch
from common import goldens, save, setup
from lm_common import LAYERS, MODELS, build, doubled, ids, positions, published

SCRIPT = "python/goldens/lm_models.py"
PACKAGES = ("transformers",)
STEPS = 6


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def greedy(model: torch.nn.Module, length: int, seed: int) -> torch.Tensor:
    """A prompt with what follows, where no two tokens are nearly as likely at any step."""
    tokens = ids(length, seed=seed)
    for _ in range(STEPS):
        best, places = model(tokens[None]).logits[0, -1].topk(2)
        if best[0] - best[1] < 1e-2:
            return greedy(model, length, seed + 100)
        tokens = torch.cat((tokens, places[:1]))
    return tokens


def write(case: str, make) -> None:
    single = build(make)
    config, weights = published(single)
    tokens = ids(2, 9, seed=5)
    tensors = {f"weight.{name}": value for name, value in weights.items()}
    tensors["input.ids"] = tokens
    with torch.no_grad():
        tensors["output.logits"] = single(tokens).logits
    with doubled():
        model = build(make, double=True)
        logits = model(tokens).logits
        assert logits.dtype == torch.float64
        loss = loss_of(logits, tokens)
        loss.backward()
        tensors |= {"output64.logits": logits.detach(), "loss": loss.detach()}
        renamed = {"lm_head.weight": "embed_out.weight"} if "embed_out.weight" in weights else {}
        for name, param in model.named_parameters():
            name = renamed.get(name, name)
            assert f"weight.{name}" in tensors, name
            assert torch.equal(param.detach().to(weights[name].dtype), weights[name]), name
            if not any(f".{layer}." in name for layer in range(1, LAYERS)):
                tensors[f"grad.{name}"] = param.grad
        with torch.no_grad():
            mask = torch.ones(2, 9, dtype=torch.int64)
            for side, part in (("left", slice(0, 3)), ("right", slice(6, 9))):
                padded, real = tokens.clone(), mask.clone()
                padded[0, part], real[0, part] = 0, 0
                logits = model(padded, attention_mask=real, position_ids=positions(real)).logits
                tensors |= {f"{side}.ids": padded, f"{side}.mask": real, f"{side}.logits": logits * real[..., None]}
            lengths = [4, 7, 2]
            prompts = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
            follow = []
            for row, length in enumerate(lengths):
                both = greedy(model, length, seed=30 + row)
                prompts[row, :length] = both[:length]
                follow.append(both[length:])
            tensors |= {"greedy.prompt": prompts, "greedy.lengths": torch.tensor(lengths), "greedy.ids": torch.stack(follow)}
    difference = (tensors["output.logits"].double() - tensors["output64.logits"]).abs().max() / tensors["output64.logits"].abs().max()
    assert difference < 2e-6, (case, difference)
    save(goldens("lm") / f"model_{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


if __name__ == "__main__":
    setup()
    for case, make in MODELS.items():
        write(case, make)
