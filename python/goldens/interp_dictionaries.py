"""Goldens of sparse dictionaries.

References: the packages sae_lens and eai-sparsify; the paper's transcoder (jacobdunefsky/transcoder_circuits), which is in no package, derived again in plain
steps; circuit-tracer for cross-layer transcoders. All in f64. Writes into crates/interp/tests/goldens/

dictionary_<case>.safetensors   config: the config of this project
  weight.<name>                 by the package's names
  input.x, input.target, input.dead
  output.features, output.reconstruction, output.loss, output.loss_mse, output.loss_sparsity   the last three where the case trains
  grad.<name>, grad.input.x     of the loss
dictionary_init_<case>.safetensors   W_enc and W_dec as drawn behind torch.manual_seed(7)
dictionary_clt_<case>.safetensors    as the first, by circuit-tracer
../formats/<case>/              folders as each package saves them, with input.x and output.* in expected.safetensors
../formats/written_<case>/         folders that this project wrote: this script opens them in the package and compares
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from common import goldens, randn, save, setup
from safetensors.torch import load_file

# The package's kernel wants a GPU; this is its own plain form.
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"

SCRIPT = "python/goldens/interp_dictionaries.py"
PACKAGES = ("sae-lens", "eai-sparsify", "circuit-tracer")
N, D, F = 9, 6, 20
DEAD = torch.tensor([3, 4, 11, 12, 13, 17])


def spread(model: torch.nn.Module, seed: int) -> None:
    """Weights of ordinary size in the place of the package's first ones, biases too."""
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        scale = 0.5 if parameter.dim() > 1 else 0.1
        values = randn(*parameter.shape, seed=seed + i, scale=scale).double()
        if "threshold" in name:
            values = values.abs() + 0.05
        parameter.data = values.to(parameter.dtype)


def data(seed: int, target: bool) -> dict[str, torch.Tensor]:
    x = randn(N, D, seed=seed).double()
    return {"x": x, "target": randn(N, D, seed=seed + 1).double() if target else x.clone()}


def write(case: str, config, model, inputs, outputs, loss=None, parts=(), dead=False, rename=lambda name: name) -> None:
    tensors = {f"input.{name}": xs for name, xs in inputs.items()}
    if dead:
        mask = torch.zeros(F, dtype=torch.float64)
        mask[DEAD] = 1
        tensors["input.dead"] = mask
    for name, parameter in model.named_parameters():
        weight, grad = parameter, parameter.grad
        if name == "encoder.weight":
            weight, grad = weight.T, None if grad is None else grad.T
        tensors[f"weight.{rename(name)}"] = weight.double()
        if loss is not None:
            tensors[f"grad.{rename(name)}"] = torch.zeros_like(weight) if grad is None else grad.double()
    for name, xs in model.named_buffers():
        if name == "topk_threshold":
            tensors[f"weight.{name}"] = xs.double()
    tensors |= {f"output.{name}": xs for name, xs in outputs.items()}
    if loss is not None:
        tensors["output.loss"], (tensors["output.loss_mse"], tensors["output.loss_sparsity"]) = loss, parts
        tensors["grad.input.x"] = inputs["x"].grad
    save(goldens("interp") / f"dictionary_{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


# --- the paper's transcoder ---


class Paper(torch.nn.Module):
    def __init__(self):
        super().__init__()
        parameter = lambda *size: torch.nn.Parameter(torch.zeros(*size, dtype=torch.float64))  # noqa: E731
        self.W_enc, self.b_enc = parameter(D, F), parameter(F)
        self.W_dec, self.b_dec, self.b_dec_out = parameter(F, D), parameter(D), parameter(D)

    def loss(self, x, target, coefficient, dead=None, compat=False):
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        features = torch.relu(pre)
        y = features @ self.W_dec + self.b_dec_out
        mse = (y - target) ** 2 / target.norm(dim=-1, keepdim=True)
        ghost = torch.zeros((), dtype=torch.float64)
        if dead is not None:
            residual = (x if compat else target) - y
            norms = residual.norm(dim=-1)
            out = torch.exp(pre[:, dead]) @ self.W_dec[dead]
            out = out * (norms / (1e-6 + 2 * out.norm(dim=-1)))[:, None].detach()
            each = (out - residual.detach()) ** 2 / (residual.detach() ** 2).sum(dim=-1, keepdim=True).sqrt()
            ghost = ((mse / (each + 1e-6)).detach() * each).mean()
        sparsity = coefficient * features.abs().sum(dim=1).mean()
        return features, y, mse.mean() + sparsity + ghost, (mse.mean(), sparsity)


def paper() -> None:
    for case, dead, compat in (("paper", None, False), ("paper_ghost", DEAD, False), ("paper_ghost_compat", DEAD, True)):
        model = Paper()
        spread(model, 10)
        inputs = data(30, target=True)
        inputs["x"].requires_grad_()
        features, y, loss, parts = model.loss(inputs["x"], inputs["target"], 0.01, dead, compat)
        loss.backward()
        objective = {
            "error": "normalised",
            "sparsity": {"kind": "l1", "coefficient": 0.01},
            "dead": {"kind": "ghost", "reference_compat": compat},
        }
        config = {"d_in": D, "d_out": D, "d_sae": F, "objective": objective}
        write(case, config, model, inputs, {"features": features, "reconstruction": y}, loss, parts, dead is not None)
    torch.manual_seed(7)
    encoder = torch.nn.init.kaiming_uniform_(torch.empty(D, F))
    decoder = torch.nn.init.kaiming_uniform_(torch.empty(F, D))
    decoder /= torch.norm(decoder, dim=1, keepdim=True)
    init("paper", encoder, decoder, {})


def init(case: str, encoder, decoder, config) -> None:
    tensors = {"W_enc": encoder.detach(), "W_dec": decoder.detach()}
    config = {"d_in": D, "d_out": D, "d_sae": F} | config
    save(goldens("interp") / f"dictionary_init_{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


# --- sae_lens ---


def sae_lens() -> None:
    from sae_lens import saes
    from sae_lens.saes.sae import TrainStepInput

    base = {"role": "autoencoder", "d_in": D, "d_out": D, "d_sae": F, "input_bias": "shared", "init": "sae-lens"}
    sizes = {"d_in": D, "d_sae": F, "dtype": "float64"}
    jump = {"kind": "jump-relu", "threshold": 0.01, "bandwidth": 0.4}
    aux = {"kind": "aux-k", "coefficient": 0.7}
    none = {"kind": "none"}
    step = {"jumprelu_bandwidth": 0.4, "l0_coefficient": 0.3}
    trained = [
        ("standard", saes.StandardTrainingSAE, saes.StandardTrainingSAEConfig(**sizes, l1_coefficient=0.3), {"kind": "relu"},
         {"kind": "l1", "coefficient": 0.3, "by_norm": True}, None, "l1_loss", {"l1": 0.3}),
        ("topk", saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig(**sizes, k=4, aux_loss_coefficient=0.7),
         {"kind": "top-k", "k": 4, "rescale": True}, none, None, None, {}),
        ("topk_dead", saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig(**sizes, k=4, aux_loss_coefficient=0.7, rescale_acts_by_decoder_norm=False),
         {"kind": "top-k", "k": 4}, none, aux, None, {}),
        ("batchtopk_dead", saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig(**sizes, k=3.5, aux_loss_coefficient=0.7),
         {"kind": "batch-top-k", "k": 3.5, "rescale": True}, none, aux, None, {}),
        ("jumprelu", saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig(**sizes, **step), jump,
         {"kind": "l0", "coefficient": 0.3}, None, "l0_loss", {"l0": 0.3}),
        ("jumprelu_ste", saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig(**sizes, **step, jumprelu_ste_to_input=True),
         jump | {"ste_to_input": True}, {"kind": "l0", "coefficient": 0.3}, None, "l0_loss", {"l0": 0.3}),
        ("jumprelu_tanh", saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig(**sizes, **step, jumprelu_sparsity_loss_mode="tanh"),
         jump, {"kind": "tanh", "coefficient": 0.3, "scale": 4.0}, None, "l0_loss", {"l0": 0.3}),
    ]
    for case, kind, settings, activation, sparsity, dead, part, coefficients in trained:
        model = kind(settings)
        spread(model, 100)
        inputs = data(50, target=False)
        inputs["x"].requires_grad_()
        mask = torch.zeros(F, dtype=torch.bool)
        mask[DEAD] = True
        asked = TrainStepInput(sae_in=inputs["x"], coefficients=coefficients, dead_neuron_mask=mask if dead else None, n_training_steps=0, is_logging_step=False)
        # The package has one tensor for both: the target must not carry gradients here, where it is an input of its own.
        found = training_pass(model, asked, inputs["target"])
        found.loss.backward()
        zero = torch.zeros((), dtype=torch.float64)
        parts = (found.losses["mse_loss"], found.losses[part] if part else zero)
        config = base | {"activation": activation, "objective": {"error": "squared", "sparsity": sparsity, "dead": dead or {"kind": "nothing"}}}
        outputs = {"features": found.feature_acts, "reconstruction": found.sae_out}
        write(f"sae_{case}", config, model, inputs, outputs, found.loss, parts, dead is not None)

    metadata = {"model_name": "gpt2", "hook_name": "blocks.1.ln2.hook_normalized", "context_size": 16, "prepend_bos": True}
    saved = [
        ("standard", saes.StandardSAE, saes.StandardSAEConfig(**sizes)),
        ("standard_plain", saes.StandardSAE, saes.StandardSAEConfig(**sizes, apply_b_dec_to_input=False)),
        ("standard_norm", saes.StandardSAE, saes.StandardSAEConfig(**sizes, normalize_activations="constant_norm_rescale")),
        ("standard_layer_norm", saes.StandardSAE, saes.StandardSAEConfig(**sizes, normalize_activations="layer_norm")),
        ("topk", saes.TopKSAE, saes.TopKSAEConfig(**sizes, k=4, rescale_acts_by_decoder_norm=True)),
        ("jumprelu", saes.JumpReLUSAE, saes.JumpReLUSAEConfig(**sizes)),
        ("gated", saes.GatedSAE, saes.GatedSAEConfig(**sizes)),
        ("transcoder", saes.Transcoder, saes.TranscoderConfig(**sizes, d_out=D, apply_b_dec_to_input=False)),
        ("skip_transcoder", saes.SkipTranscoder, saes.SkipTranscoderConfig(**sizes, d_out=D, apply_b_dec_to_input=False)),
        ("jumprelu_transcoder", saes.JumpReLUTranscoder, saes.JumpReLUTranscoderConfig(**sizes, d_out=D, apply_b_dec_to_input=False)),
    ]
    folder = goldens("interp").parent / "formats"
    for case, kind, settings in saved:
        settings.dtype = "float32"
        model = kind(settings)
        spread(model, 200)
        for key, value in metadata.items():
            model.cfg.metadata[key] = value
        to = folder / f"sae_lens_{case}"
        shutil.rmtree(to, ignore_errors=True)
        model.save_model(to)
        rewrite(to / "sae_weights.safetensors")
        expect(to, data(60, target=False)["x"].float(), model.encode, model.forward)
    torch.manual_seed(7)
    drawn = saes.StandardTrainingSAE(saes.StandardTrainingSAEConfig(d_in=D, d_sae=F))
    init("sae_lens", drawn.W_enc, drawn.W_dec, base)


def training_pass(model, asked, target):
    """The package's training_forward_pass with a target that is not its input."""
    wrapped = model.mse_loss_fn
    model.mse_loss_fn = lambda y, _x: wrapped(y, target)
    return model.training_forward_pass(asked)


def rewrite(path: Path) -> None:
    """The same tensors with a header in sorted order: the package's own differs from run to run."""
    tensors = load_file(path)
    save(path, SCRIPT, tensors, {}, PACKAGES)


def expect(folder: Path, x, encode, forward) -> None:
    with torch.no_grad():
        tensors = {"input.x": x, "output.features": encode(x.clone()), "output.reconstruction": forward(x.clone())}
    save(folder / "expected.safetensors", SCRIPT, tensors, {}, PACKAGES)


# --- eai-sparsify ---


def sparsify() -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    folder = goldens("interp").parent / "formats"
    for case, transcode, skip, dead in (("autoencoder", False, False, True), ("transcoder", True, True, True), ("plain_transcoder", True, False, False)):
        settings = SparseCoderConfig(num_latents=F, k=4, transcode=transcode, skip_connection=skip)
        model = SparseCoder(D, settings, dtype=torch.float64)
        spread(model, 300)
        inputs = data(70, target=True)
        inputs["x"].requires_grad_()
        mask = torch.zeros(F, dtype=torch.bool)
        mask[DEAD] = True
        found = model(inputs["x"], inputs["target"], dead_mask=mask if dead else None)
        loss = found.fvu + found.auxk_loss / 32
        loss.backward()
        features = torch.zeros(N, F, dtype=torch.float64).scatter(1, found.latent_indices, found.latent_acts)
        config = {
            "role": "transcoder" if transcode else "autoencoder",
            "d_in": D, "d_out": D, "d_sae": F,
            "input_bias": "none" if transcode else "shared",
            "skip": skip,
            "init": "sparsify",
            "activation": {"kind": "top-k", "k": 4},
            "objective": {"error": "fvu", "sparsity": {"kind": "none"}, "dead": {"kind": "aux-k", "coefficient": 1 / 32}},
        }  # fmt: skip
        names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
        parts = (found.fvu, torch.zeros((), dtype=torch.float64))
        outputs = {"features": features, "reconstruction": found.sae_out}
        write(f"sparsify_{case}", config, model, inputs, outputs, loss, parts, dead, lambda name: names.get(name, name))

        single = SparseCoder(D, settings)
        spread(single, 400)
        to = folder / f"sparsify_{case}"
        shutil.rmtree(to, ignore_errors=True)
        single.save_to_disk(to)
        rewrite(to / "sae.safetensors")
        text = json.dumps(json.loads((to / "cfg.json").read_text()), indent=2, sort_keys=True)
        (to / "cfg.json").write_text(text + "\n")

        def encode(x, single=single):
            acts, indices, _ = single.encode(x)
            return torch.zeros(N, F).scatter(1, indices, acts)

        expect(to, data(80, target=False)["x"].float(), encode, lambda x, single=single: single(x).sae_out)
        torch.manual_seed(7)
        drawn = SparseCoder(D, settings)
        init(f"sparsify_{case}", drawn.encoder.weight.T, drawn.W_dec, {key: config[key] for key in ("role", "input_bias", "skip", "init")})


# --- circuit-tracer ---


def cross() -> None:
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt

    layers, features = 3, 8
    for case, activation in (("relu", "relu"), ("jumprelu", "jump_relu")):
        folder = goldens("interp").parent / "formats" / f"clt_{case}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for i in range(layers):
            tensors = {
                f"W_enc_{i}": randn(features, D, seed=500 + i, scale=0.5),
                f"b_enc_{i}": randn(features, seed=510 + i, scale=0.1),
                f"b_dec_{i}": randn(D, seed=520 + i, scale=0.1),
            }
            if activation == "jump_relu":
                tensors[f"threshold_{i}"] = randn(features, seed=530 + i, scale=0.3).abs()
            save(folder / f"W_enc_{i}.safetensors", SCRIPT, tensors, {}, PACKAGES)
            decoder = {f"W_dec_{i}": randn(features, layers - i, D, seed=540 + i, scale=0.5)}
            save(folder / f"W_dec_{i}.safetensors", SCRIPT, decoder, {}, PACKAGES)
        (folder / "config.yaml").write_text("model_name: gpt2\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n")
        clt = load_clt(str(folder), lazy_decoder=False, device=torch.device("cpu"), dtype=torch.float32)
        x = randn(N, layers, D, seed=90)
        with torch.no_grad():
            encoded = clt.encode(x.transpose(0, 1).contiguous())  # [layers, N, features]
            decoded = clt.decode(encoded.to_sparse() if not encoded.is_sparse else encoded)
        tensors = {"input.x": x, "output.features": encoded.transpose(0, 1).contiguous(), "output.reconstruction": decoded.transpose(0, 1).contiguous()}
        save(folder / "expected.safetensors", SCRIPT, tensors, {}, PACKAGES)
        assert isinstance(clt, CrossLayerTranscoder)


# --- folders of this project ---


def written() -> None:
    """Folders that this project wrote open in the packages and give the numbers that the project expects of them."""
    from sae_lens.saes.sae import SAE
    from sparsify import SparseCoder

    for folder in sorted((goldens("interp").parent / "formats").glob("written_*")):
        expected = load_file(folder / "expected.safetensors")
        x = expected["input.x"]
        with tempfile.TemporaryDirectory() as copy, torch.no_grad():
            for name in ("cfg.json", "sae_weights.safetensors", "sae.safetensors"):
                if (folder / name).exists():
                    shutil.copy(folder / name, copy)
            if (folder / "sae.safetensors").exists():
                model = SparseCoder.load_from_disk(copy)
                y = model(x).sae_out
            else:
                model = SAE.load_from_disk(copy)
                y = model(x)
        torch.testing.assert_close(y, expected["output.reconstruction"], rtol=1e-5, atol=1e-6)
        print(f"{folder.name} opens in the package")


if __name__ == "__main__":
    setup()
    paper()
    sae_lens()
    sparsify()
    cross()
    written()
