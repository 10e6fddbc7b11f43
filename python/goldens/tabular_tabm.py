"""Goldens of TabM, TabM-mini, TabM-packed, the plain MLP and the numerical embeddings.

Reference: packages `tabm` and `rtdl_num_embeddings`. Writes into crates/tabular/tests/goldens/:

tabm_<case>.safetensors, mlp_<case>.safetensors   whole models; metadata `model` is the registered name
  init.<name>      state dict after `torch.manual_seed(0)`, then construction in this order: numerical embedding, backbone,
                   head. A correct initialisation that draws in this order equals it bit for bit.
  weight.<name>    init + 0.1 * noise: used for everything below (piecewise-linear weights start at zero, hence the noise)
  bins.<i>         edges of feature i, where there are piecewise-linear embeddings
  input.x_num [B, n] or [B, k, n] f32, input.x_cat [B, m] or [B, k, m] i64, input.y [B] or [B, k] f32 (regression) or i64
                   (classes); `cotangent` where the model has no head
  output.y         [B, k, o], of the plain MLP [B, o]; evaluation mode, so the dropout of the config is off
  loss             mean over rows and members of the member's own squared error or cross-entropy; without a head
                   (output * cotangent).sum()
  grad.<name>, grad_input.x_num
emb_<case>.safetensors   embeddings alone (`config`: the embedding's); same keys; input.x [B, n], output.y [B, n, e],
                   loss = (output * cotangent).sum()
counts.json        parameter counts; piecewise-linear `bins` are given by their number only (`bin_counts`)

Differences from the package, both needed to run it: one-hot columns are cast to float (without, tabm-packed cannot take
categorical columns alone), and the plain MLP, which the package has no class for, is assembled from its parts.
"""

import json
import warnings

import rtdl_num_embeddings as rne
import tabm
import torch
from common import floats, goldens, randn, save, setup, versions
from torch import nn
from torch.nn import functional as F

SCRIPT = "python/goldens/tabular_tabm.py"
PACKAGES = ("tabm", "rtdl_num_embeddings")
BATCH, K, N_NUM, CARDINALITIES = 6, 4, 3, [3, 4]


def training_matrix() -> torch.Tensor:
    """500 rows: a continuous column, one with ties (fewer bins than asked), one binary (a single bin)."""
    xs = randn(500, N_NUM, seed=1)
    ties = (xs[:, 1] * 1.5).round().clamp(-1, 2)
    return torch.stack([xs[:, 0], ties, (xs[:, 2] > -0.3).float()], 1)


def unequal_bins() -> list[torch.Tensor]:
    bins = rne.compute_bins(training_matrix(), n_bins=5)
    assert [len(edges) - 1 for edges in bins] == [5, 3, 1], [len(edges) - 1 for edges in bins]
    return bins


def equal_bins() -> list[torch.Tensor]:
    return rne.compute_bins(randn(500, N_NUM, seed=2), n_bins=4)


def single_bins() -> list[torch.Tensor]:
    return [torch.tensor([-1.0, 1.5]), torch.tensor([0.0, 0.25]), torch.tensor([-2.0, -1.0])]


def ple(bins: list[torch.Tensor], version: str = "B", activation: bool = False, d_embedding: int = 8) -> dict:
    return {"type": "piecewise_linear", "bins": [floats(edges) for edges in bins], "d_embedding": d_embedding, "activation": activation, "version": version}


def periodic(lite: bool = False, activation: bool = True) -> dict:
    return {"type": "periodic", "d_embedding": 8, "n_frequencies": 4, "frequency_init_scale": 0.1, "lite": lite, "activation": activation}


def embedding(config: dict | None, n_features: int) -> nn.Module | None:
    """Builds the reference's module from the Rust config."""
    if config is None:
        return None
    args = {key: value for key, value in config.items() if key not in ("type", "bins")}
    match config["type"]:
        case "piecewise_linear":
            return rne.PiecewiseLinearEmbeddings([torch.tensor(edges) for edges in config["bins"]], **args)
        case "linear":
            return rne.LinearEmbeddings(n_features, **args)
        case "linear_relu":
            return rne.LinearReLUEmbeddings(n_features, **args)
        case "periodic":
            return rne.PeriodicEmbeddings(n_features, **args)
    raise ValueError(config["type"])


class FloatOneHot(nn.Module):
    """One-hot columns as floats."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        return self.inner(xs).float()


class Plain(nn.Module):
    """The plain MLP from the package's parts, with the names that TabM has."""

    def __init__(self, *, n_num_features, cat_cardinalities, d_out, n_blocks, d_block, dropout, num_embeddings) -> None:
        super().__init__()
        self.num_module = num_embeddings
        self.cat_module = tabm._OneHotEncoding(cat_cardinalities) if cat_cardinalities else None
        width = 1 if num_embeddings is None else num_embeddings.get_output_shape()[1]
        self.backbone = tabm.MLPBackbone(d_in=n_num_features * width + sum(cat_cardinalities), n_blocks=n_blocks, d_block=d_block, dropout=dropout)
        self.output = None if d_out is None else nn.Linear(d_block, d_out)

    def forward(self, x_num=None, x_cat=None) -> torch.Tensor:
        parts = []
        if x_num is not None:
            parts.append((x_num if self.num_module is None else self.num_module(x_num)).flatten(1))
        if x_cat is not None:
            parts.append(self.cat_module(x_cat))
        xs = self.backbone(torch.cat(parts, 1))
        return xs if self.output is None else self.output(xs)


def build(model: str, config: dict) -> nn.Module:
    config = dict(config)
    config["num_embeddings"] = embedding(config["num_embeddings"], config["n_num_features"])
    built = Plain(**config) if model == "mlp" else tabm.TabM(**config)
    if built.cat_module is not None:
        built.cat_module = FloatOneHot(built.cat_module)
    return built


def perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter += randn(*parameter.shape, seed=1000 + i, scale=0.1)


def state(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": value.clone() for name, value in module.state_dict().items()}


def config_of(model: str, *, num: bool, cat: bool, emb: dict | None, init: str | None, d_out: int | None = 1) -> dict:
    config = {
        "n_num_features": N_NUM if num else 0,
        "cat_cardinalities": CARDINALITIES if cat else [],
        "d_out": d_out,
        "n_blocks": 2,
        "d_block": 8,
        "dropout": 0.1,
        "num_embeddings": emb,
    }
    if model != "mlp":
        config |= {"k": K, "arch_type": model, "start_scaling_init": init}
    return config


def model_golden(file: str, model: str, config: dict, per_member: bool = False) -> None:
    torch.manual_seed(0)
    module = build(model, config)
    tensors = state(module, "init")
    perturb(module)
    tensors |= state(module, "weight")
    module.eval()

    emb = config["num_embeddings"]
    if emb is not None and emb["type"] == "piecewise_linear":
        tensors |= {f"bins.{i}": torch.tensor(edges) for i, edges in enumerate(emb["bins"])}
    rows = (BATCH, K) if per_member else (BATCH,)
    inputs = {}
    if config["n_num_features"]:
        # Twice the training range, so that some values lie beyond the outer edges.
        inputs["x_num"] = (randn(*rows, N_NUM, seed=10) * 2.0).requires_grad_()
    if config["cat_cardinalities"]:
        generator = torch.Generator().manual_seed(11)
        inputs["x_cat"] = torch.stack([torch.randint(c, rows, generator=generator) for c in config["cat_cardinalities"]], -1)
    ys = module(**inputs)

    d_out = config["d_out"]
    if d_out is None:
        tensors["cotangent"] = randn(*ys.shape, seed=12)
        loss = (ys * tensors["cotangent"]).sum()
    else:
        if d_out == 1:
            target = randn(*rows, seed=12)
        else:
            target = torch.randint(d_out, rows, generator=torch.Generator().manual_seed(12))
        tensors["input.y"] = target
        if model == "mlp" or per_member:
            repeated = target.flatten()
        else:
            repeated = target.repeat_interleave(K)
        flat = ys.flatten(0, -2)
        loss = F.mse_loss(flat.squeeze(-1), repeated) if d_out == 1 else F.cross_entropy(flat, repeated)
    loss.backward()

    tensors |= {f"input.{name}": value.detach() for name, value in inputs.items()}
    tensors["output.y"] = ys.detach()
    tensors["loss"] = loss.detach()
    tensors |= {f"grad.{name}": parameter.grad for name, parameter in module.named_parameters()}
    if "x_num" in inputs:
        tensors["grad_input.x_num"] = inputs["x_num"].grad
    save(goldens("tabular") / f"{file}.safetensors", SCRIPT, tensors, config, PACKAGES, model=model)


def model_goldens() -> None:
    bins = ple(unequal_bins())
    columns = {"num": (True, False), "cat": (False, True), "numcat": (True, True)}
    embeddings = {
        "none": None,
        "ple": bins,
        "ple_equal": ple(equal_bins()),
        "linear_relu": {"type": "linear_relu", "d_embedding": 8},
        "periodic": periodic(),
        "periodic_lite": periodic(lite=True),
    }
    both = ["none", "ple", "ple_equal", "linear_relu", "periodic", "periodic_lite"]
    grid = [("num", "none"), ("num", "ple"), ("cat", "none"), *(("numcat", name) for name in both)]
    for model in ("tabm", "tabm-mini", "tabm-packed", "mlp"):
        stem = "mlp" if model == "mlp" else "tabm" if model == "tabm" else model.replace("-", "_")
        for which, name in grid:
            num, cat = columns[which]
            emb = embeddings[name]
            scaled = model in ("tabm", "tabm-mini")
            # The package's own default: normal with embeddings, random signs without.
            init = ("random-signs" if emb is None else "normal") if scaled else None
            model_golden(f"{stem}_{which}_{name}", model, config_of(model, num=num, cat=cat, emb=emb, init=init))
            if scaled and (which, name) in (("numcat", "none"), ("numcat", "ple"), ("cat", "none")):
                other = "normal" if emb is None else "random-signs"
                model_golden(f"{stem}_{which}_{name}_{other.replace('-', '_')}", model, config_of(model, num=num, cat=cat, emb=emb, init=other))
        init = "normal" if scaled else None
        model_golden(f"{stem}_classes", model, config_of(model, num=True, cat=True, emb=bins, init=init, d_out=3))
        if model != "mlp":
            model_golden(f"{stem}_per_member", model, config_of(model, num=True, cat=True, emb=bins, init=init), per_member=True)
        model_golden(f"{stem}_no_head", model, config_of(model, num=True, cat=True, emb=None, init="random-signs" if scaled else None, d_out=None))


def embedding_goldens() -> None:
    cases = {
        "linear": {"type": "linear", "d_embedding": 8},
        "linear_relu": {"type": "linear_relu", "d_embedding": 8},
        "periodic": periodic(),
        "periodic_no_activation": periodic(activation=False),
        "periodic_lite": periodic(lite=True),
        "ple_a": ple(unequal_bins(), "A"),
        "ple_a_activation": ple(unequal_bins(), "A", activation=True),
        "ple_a_equal": ple(equal_bins(), "A", activation=True),
        "ple_b": ple(unequal_bins()),
        "ple_b_activation": ple(unequal_bins(), activation=True),
        "ple_b_equal": ple(equal_bins()),
        "ple_b_single": ple(single_bins()),
    }
    for name, config in cases.items():
        torch.manual_seed(0)
        module = embedding(config, N_NUM)
        tensors = state(module, "init")
        perturb(module)
        tensors |= state(module, "weight")
        tensors |= {f"bins.{i}": torch.tensor(edges) for i, edges in enumerate(config.get("bins", []))}
        xs = (randn(BATCH, N_NUM, seed=20) * 2.0).requires_grad_()
        ys = module(xs)
        cotangent = randn(*ys.shape, seed=21)
        loss = (ys * cotangent).sum()
        loss.backward()
        tensors |= {"input.x": xs.detach(), "cotangent": cotangent, "output.y": ys.detach(), "loss": loss.detach(), "grad_input.x": xs.grad}
        tensors |= {f"grad.{key}": parameter.grad for key, parameter in module.named_parameters()}
        save(goldens("tabular") / f"emb_{name}.safetensors", SCRIPT, tensors, config, PACKAGES, n_features=str(N_NUM))


def encoding_golden() -> None:
    """The encoding alone: edges with unequal counts and a single bin, values inside, on and beyond the edges."""
    bins = [torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])]
    xs = torch.tensor([[3.0, 2.0, 0.5], [-1.0, -0.5, -2.0], [5.0, 0.1, 7.0], [1.0, 1.0, 0.0], [4.0, 0.0, -1.0], [0.25, 0.75, 1.0]])
    module = rne.PiecewiseLinearEncoding(bins)
    tensors = state(module, "weight")
    tensors |= {f"bins.{i}": edges for i, edges in enumerate(bins)}
    tensors |= {"input.x": xs, "output.flat": module(xs), "output.padded": module.impl(xs)}
    assert tensors["output.padded"][0].tolist() == [[1, 1, 0.5], [0, 0, 2], [1, 0, 0.5]]
    save(goldens("tabular") / "emb_encoding.safetensors", SCRIPT, tensors, {"bins": [floats(edges) for edges in bins]}, PACKAGES)


def counts() -> None:
    """Parameter counts with `TabM.make`: `given` is what the caller said, `config` what it became."""
    cases: list[tuple[str, str, dict, int | None]] = []
    columns = {"n_num_features": 24, "cat_cardinalities": [3, 7], "d_out": 1}
    california = {"n_num_features": 8, "cat_cardinalities": [], "d_out": 1}
    for arch in ("tabm", "tabm-mini", "tabm-packed"):
        cases += [
            (f"{arch} 24 numerical, 3 + 7 classes", arch, columns, None),
            (f"{arch} 8 numerical", arch, california, None),
            (f"{arch} 8 numerical, 2 blocks of 128", arch, california | {"n_blocks": 2, "d_block": 128}, None),
            (f"{arch} 24 numerical, 3 + 7 classes, piecewise-linear 48 x 16", arch, columns, 48),
            (f"{arch} 8 numerical, piecewise-linear 48 x 16", arch, california, 48),
            (f"{arch} 3 + 7 classes alone, 2 outputs", arch, {"n_num_features": 0, "cat_cardinalities": [3, 7], "d_out": 2}, None),
        ]
    cases += [
        ("tabm California, published run", "tabm", california | {"n_blocks": 3, "d_block": 400}, None),
        ("tabm California with piecewise-linear 47 x 20, published run", "tabm", california | {"n_blocks": 3, "d_block": 416, "d_embedding": 20}, 47),
        ("mlp 24 numerical, 3 + 7 classes, 3 blocks of 512", "mlp", columns | {"n_blocks": 3, "d_block": 512}, None),
        ("mlp 8 numerical, 2 blocks of 128", "mlp", california | {"n_blocks": 2, "d_block": 128}, None),
    ]
    rows = []
    for name, model, given, bins in cases:
        given = dict(given)
        d_embedding = given.pop("d_embedding", 16)
        emb = None if bins is None else {"type": "piecewise_linear", "bins": [], "d_embedding": d_embedding, "activation": False, "version": "B"}
        edges = [torch.linspace(0, 1, bins + 1)] * given["n_num_features"] if bins else None
        module_emb = embedding(emb | {"bins": [floats(e) for e in edges]}, given["n_num_features"]) if emb else None
        if model == "mlp":
            built = Plain(**given, dropout=0.1, num_embeddings=module_emb)
            config = given | {"dropout": 0.1, "num_embeddings": emb}
        else:
            built = tabm.TabM.make(**given, arch_type=model, num_embeddings=module_emb)
            block = built.backbone.blocks[0]
            scaling = None if model == "tabm-packed" else "normal" if emb else "random-signs"
            config = given | {
                "k": built.k,
                "n_blocks": len(built.backbone.blocks),
                "d_block": built.backbone.get_original_output_shape()[0],
                "dropout": block[2].p,
                "arch_type": model,
                "start_scaling_init": scaling,
                "num_embeddings": emb,
            }
        rows.append(
            {
                "name": name,
                "model": model,
                "given": given,
                "config": config,
                "bin_counts": [bins] * given["n_num_features"] if bins else None,
                "params": sum(parameter.numel() for parameter in built.parameters()),
            }
        )
    embeddings = []
    for name, module in {
        "periodic 8 x 24, 48 frequencies": rne.PeriodicEmbeddings(8, lite=False),
        "periodic-lite 8 x 24, 48 frequencies": rne.PeriodicEmbeddings(8, lite=True),
        "linear-relu 8 x 32": rne.LinearReLUEmbeddings(8),
    }.items():
        embeddings.append({"name": name, "params": sum(parameter.numel() for parameter in module.parameters())})
    path = goldens("tabular") / "counts.json"
    content = {"script": SCRIPT, "versions": versions(*PACKAGES), "models": rows, "embeddings": embeddings}
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    # The figures that the models' pages state.
    stated = {row["name"]: row["params"] for row in rows}
    assert stated["tabm 24 numerical, 3 + 7 classes"] == 690_272
    assert stated["tabm-mini 24 numerical, 3 + 7 classes"] == 560_736
    assert stated["tabm-packed 24 numerical, 3 + 7 classes"] == 17_399_840
    assert stated["tabm 24 numerical, 3 + 7 classes, piecewise-linear 48 x 16"] == 594_016
    assert stated["tabm 8 numerical"] == 676_128
    assert stated["tabm California, published run"] == 438_688
    print(json.dumps(stated, indent=1))


def main() -> None:
    setup()
    warnings.filterwarnings("ignore", message=".*just two bin edges")
    warnings.filterwarnings("ignore", message=".*the input should usually have the shape")
    warnings.filterwarnings("ignore", message=".*row_stack")
    model_goldens()
    embedding_goldens()
    encoding_golden()
    counts()


if __name__ == "__main__":
    main()
