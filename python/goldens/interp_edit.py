"""Goldens of model editing: ROME, MEMIT and constrained finetuning.

Reference: the released code (kmeng01/rome `rome/compute_u.py`, `rome/compute_v.py`, `baselines/ft/ft_main.py`, kmeng01/memit `memit/*.py`), derived
again on token ids in f64 with the models of interp_trace.py; each prompt is a pass of its own (right padding under a causal mask changes nothing).
Writes into crates/interp/tests/goldens/

rome_<case>.safetensors   config: model, layer, subject [begin, end) in the prompt, clamp, steps and the loss's parts
  prompt, target, kl_prompt (the subject comes first in it), kl_subject [1] (place of the subject's last token there)
  prefix.<i>              the texts before the prompt; the first is empty
  moments [m, m]          C
  averaged_key, u, plain_u (without C), v0, v_star, loss [evaluations], delta_norm
  reference.key, reference.value, reference.delta [m, d]   k_cur and v_cur from the bare prompt
  averaged.value, averaged.delta [m, d]                    k_cur := averaged key
  after.logits.<mode>     of the prompt after the edit, last position

memit.safetensors         config: model, layers, subjects, lambda, ...
  prompt.<r>, target.<r>, kl_prompt.<r>, kl_subject.<r>, prefix.<group>.<i>, moments.<layer>
  z [2, d], z0 [2, d], loss.<r>, keys.<layer> [m, 2], residual.<layer> [d, 2] (already divided), delta.<layer> [m, d]
  after.logits [2, V]

finetune_<case>.safetensors   config: model, layer, lr, steps, clamp (null: none), loss (`single_position`, `sequence_mean`, `sequence_sum`), bias
  prompt.<r>, target.<r>, loss [steps made], delta [m, d], bias_delta [d] where the bias is trained too, as the released code does because it looks
  for the matrix's name in every parameter's name
"""

import torch
from common import goldens, save, setup
from interp_common import changing, doubled, model_of, module
from lm_common import SINGLE, ids

SCRIPT = "python/goldens/interp_edit.py"
PACKAGES = ("transformers",)
NO_IDS = torch.zeros(0, dtype=torch.int64)


def logits_of(model, tokens):
    return model(tokens[None]).logits[0]


def moments(width: int, seed: int) -> torch.Tensor:
    """A well conditioned second moment, exact in f32."""
    rows = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(seed), dtype=SINGLE)
    return (rows.T @ rows / len(rows) + 0.2 * torch.eye(width, dtype=SINGLE)).double()


def captured(model, place, tokens, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a module at one token."""
    found = {}

    def look(inputs, ys):
        found["both"] = (None if inputs is None else inputs[0, at].detach().clone(), ys[0, at].detach().clone())

    with torch.no_grad(), changing((place, look)):
        logits_of(model, tokens)
    return found["both"]


class Request:
    def __init__(self, prompt, subject, target, seed):
        self.prompt, self.subject, self.target = prompt, subject, target
        begin, end = subject
        self.kl_prompt = torch.cat((prompt[begin:end], ids(2, seed=seed)))
        self.kl_subject = end - begin - 1

    def at(self, prefix) -> int:
        return len(prefix) + self.subject[1] - 1


def optimise(model, place, request, prefixes, *, lr=0.5, steps=20, clamp, kl_factor=0.0625, decay=0.5):
    """v* (or z) with v0 and the losses: δ is added to the output of `place` at the subject's last token."""
    delta = torch.zeros(model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    initial = captured(model, place, torch.cat((prefixes[0], request.prompt)), request.at(prefixes[0]))[1]
    count, before, losses = len(request.target), None, []

    def at(position):
        def change(_inputs, ys):
            ys = ys.clone()
            ys[0, position] = ys[0, position] + delta
            return ys

        return (place, change)

    for step in range(steps):
        optimizer.zero_grad()
        nll = 0
        for prefix in prefixes:
            tokens = torch.cat((prefix, request.prompt, request.target[:-1]))
            with changing(at(request.at(prefix))):
                log = logits_of(model, tokens)[-count:].log_softmax(-1)
            nll = nll - log.gather(1, request.target[:, None]).sum() / count / len(prefixes)
        with changing(at(request.kl_subject)):
            log = logits_of(model, request.kl_prompt)[request.kl_subject].log_softmax(-1)
        before = log.detach().clone() if before is None else before
        kl = (log.exp() * (log - before)).sum()
        loss = nll + kl_factor * kl + decay * delta.norm() / initial.norm() ** 2
        losses.append(loss.detach().clone())
        if loss < 5e-2 or step == steps - 1:
            break
        loss.backward()
        optimizer.step()
        limit = clamp * initial.norm()
        if delta.norm() > limit:
            with torch.no_grad():
                delta.copy_(delta * limit / delta.norm())
    return (initial + delta).detach(), initial, torch.stack(losses)


def rome(case: str, model_name: str, layer: int, clamp: float, seed: int, decay: float = 0.5, subject=(2, 4), targets: int = 2, steps: int = 20, kl_factor: float = 0.0625) -> None:
    with doubled():
        model = model_of(model_name)
        out, mlp = module(model, layer, "out"), module(model, layer, "mlp")
        conv = hasattr(model, "transformer")
        request = Request(ids(6, seed=seed), subject, ids(targets, seed=seed + 1), seed=seed + 2)
        prefixes = [NO_IDS, ids(2, seed=seed + 3), ids(3, seed=seed + 4), ids(2, seed=seed + 5)]
        place = request.at(NO_IDS)
        keys = torch.stack([captured(model, out, torch.cat((p, request.prompt)), request.at(p))[0] for p in prefixes])
        key = keys.mean(0)
        second = moments(len(key), seed + 6)
        u = torch.linalg.solve(second, key)
        u = u / u.norm()
        star, initial, losses = optimise(model, mlp, request, prefixes, clamp=clamp, decay=decay, steps=steps, kl_factor=kl_factor)
        current_key, current_value = captured(model, out, request.prompt, place)
        assert torch.allclose(current_value, initial)
        weight = out.weight if conv else out.weight.T  # [m, d]
        bias = out.bias if out.bias is not None else torch.zeros(weight.shape[1], dtype=torch.float64)
        averaged_value = key @ weight + bias
        tensors = {
            "prompt": request.prompt, "target": request.target, "kl_prompt": request.kl_prompt, "kl_subject": torch.tensor([request.kl_subject]),
            "moments": second, "averaged_key": key, "u": u, "plain_u": key / key.norm(), "v0": initial, "v_star": star, "loss": losses,
            "delta_norm": (star - initial).norm(), "reference.key": current_key, "reference.value": current_value, "averaged.value": averaged_value,
        }  # fmt: skip
        tensors |= {f"prefix.{i}": prefix for i, prefix in enumerate(prefixes)}
        saved = out.weight.clone()
        for mode, k, v in (("reference", current_key, current_value), ("averaged", key, averaged_value)):
            change = torch.outer(u, (star - v) / (k @ u))
            assert torch.allclose(k @ (weight + change) + bias, star)
            tensors[f"{mode}.delta"] = change
            with torch.no_grad():
                out.weight += change if conv else change.T
                tensors[f"after.logits.{mode}"] = logits_of(model, request.prompt)[-1]
                out.weight.copy_(saved)
        print(case, "evaluations", len(losses), "loss", losses[0].item(), losses[-1].item(), "norm", (star - initial).norm().item(), "limit", clamp * initial.norm().item())
    config = {
        "model": f"model_{model_name}", "layer": layer, "subject": request.subject, "clamp": clamp, "steps": steps, "lr": 0.5, "kl_factor": kl_factor, "weight_decay": decay,
    }  # fmt: skip
    save(goldens("interp") / f"rome_{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


def memit() -> None:
    layers, weight_of_moments, clamp, seed = [1, 2], 0.7, 0.75, 300
    with doubled():
        model = model_of("gpt2")
        requests = [Request(ids(6, seed=seed), (2, 4), ids(2, seed=seed + 1), seed=seed + 2), Request(ids(5, seed=seed + 3), (1, 4), ids(1, seed=seed + 4), seed=seed + 5)]
        groups = [[NO_IDS], [ids(n, seed=seed + 10 + i) for i, n in enumerate((2, 3, 2))]]
        flat = [prefix for group in groups for prefix in group]
        last = module(model, layers[-1])
        tensors = {"z": [], "z0": []}
        for r, request in enumerate(requests):
            z, z0, losses = optimise(model, last, request, flat, clamp=clamp)
            print("memit", r, "evaluations", len(losses), losses[0].item(), losses[-1].item())
            tensors["z"].append(z)
            tensors["z0"].append(z0)
            tensors |= {
                f"prompt.{r}": request.prompt, f"target.{r}": request.target, f"kl_prompt.{r}": request.kl_prompt,
                f"kl_subject.{r}": torch.tensor([request.kl_subject]), f"loss.{r}": losses,
            }  # fmt: skip
        tensors["z"], tensors["z0"] = torch.stack(tensors["z"]), torch.stack(tensors["z0"])
        tensors |= {f"prefix.{g}.{i}": prefix for g, group in enumerate(groups) for i, prefix in enumerate(group)}
        for i, layer in enumerate(layers):
            out = module(model, layer, "out")
            columns = []
            for request in requests:
                means = [torch.stack([captured(model, out, torch.cat((p, request.prompt)), request.at(p))[0] for p in group]).mean(0) for group in groups]
                columns.append(torch.stack(means).mean(0))
            keys = torch.stack(columns, 1)  # [m, 2]
            now = torch.stack([captured(model, last, request.prompt, request.at(NO_IDS))[1] for request in requests], 1)
            residual = (tensors["z"].T - now) / (len(layers) - i)  # [d, 2]
            second = moments(keys.shape[0], seed + 20 + layer)
            solved = torch.linalg.solve(weight_of_moments * second + keys @ keys.T, keys)
            change = solved @ residual.T
            tensors |= {f"moments.{layer}": second, f"keys.{layer}": keys, f"residual.{layer}": residual, f"delta.{layer}": change}
            with torch.no_grad():
                out.weight += change
        with torch.no_grad():
            tensors["after.logits"] = torch.stack([logits_of(model, request.prompt)[-1] for request in requests])
    config = {
        "model": "model_gpt2", "layers": layers, "subjects": [request.subject for request in requests], "lambda": weight_of_moments, "clamp": clamp, "steps": 20,
        "lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5,
    }  # fmt: skip
    save(goldens("interp") / "memit.safetensors", SCRIPT, tensors, config, PACKAGES)


def finetune(case: str, loss: str, clamp: float | None, bias: bool = False, steps: int = 25, lr: float = 5e-4, layer: int = 1, only: int | None = None) -> None:
    with doubled():
        model = model_of("gpt2")
        out = module(model, layer, "out")
        requests = [(ids(6, seed=500), ids(2, seed=501)), (ids(4, seed=502), ids(1, seed=503))]
        requests = requests if only is None else requests[only : only + 1]
        trained = [out.weight, out.bias] if bias else [out.weight]
        saved = [param.detach().clone() for param in trained]
        for param in trained:
            param.requires_grad_(True)
        optimizer = torch.optim.Adam(trained, lr=lr)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            total = 0
            for prompt, target in requests:
                if loss == "single_position":
                    log = logits_of(model, prompt)[-1].log_softmax(-1)[target]
                else:
                    log = logits_of(model, torch.cat((prompt, target[:-1])))[len(prompt) - 1 :].log_softmax(-1).gather(1, target[:, None])[:, 0]
                total = total - (log.sum() if loss == "sequence_sum" else log.mean()) / len(requests)
            losses.append(total.detach().clone())
            if total >= 1e-2:
                total.backward()
                optimizer.step()
            if clamp is not None:
                with torch.no_grad():
                    for param, old in zip(trained, saved):
                        param.clamp_(old - clamp, old + clamp)
            if total < 1e-2:
                break
        tensors = {"loss": torch.stack(losses), "delta": (out.weight - saved[0]).detach()}
        if bias:
            tensors["bias_delta"] = (out.bias - saved[1]).detach()
        for r, (prompt, target) in enumerate(requests):
            tensors |= {f"prompt.{r}": prompt, f"target.{r}": target}
        print("finetune", case, len(losses), losses[0].item(), losses[-1].item(), tensors["delta"].abs().max().item())
    config = {"model": "model_gpt2", "layer": layer, "lr": lr, "steps": steps, "clamp": clamp, "loss": loss, "bias": bias}
    save(goldens("interp") / f"finetune_{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


if __name__ == "__main__":
    setup()
    rome("clamped", "gpt2", layer=1, clamp=0.75, seed=100)
    rome("free", "gpt2", layer=2, clamp=4.0, seed=200)
    rome("stopped", "gpt2", layer=3, clamp=20.0, seed=700, decay=1e-3, subject=(4, 6), targets=1, steps=60, kl_factor=0.0)
    rome("llama", "llama", layer=1, clamp=3.0, seed=400)
    memit()
    finetune("single_position", "single_position", clamp=2e-3)
    finetune("single_position_bias", "single_position", clamp=2e-3, bias=True)
    finetune("sequence_mean", "sequence_mean", clamp=2e-3)
    finetune("sequence_sum", "sequence_sum", clamp=2e-3)
    finetune("unconstrained", "sequence_mean", clamp=None, lr=2e-2, steps=40, layer=3)
    finetune("stopped", "single_position", clamp=None, lr=2e-2, steps=100, layer=3, only=1)
