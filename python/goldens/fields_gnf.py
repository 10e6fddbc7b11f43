"""Goldens of GNF: decoders of kernels, DiF-Grid encoders, whole models, radiance and losses.

References: torch's broadcasting for the kernels (d^2 as it is defined, never expanded), torch's `grid_sample` for the grids and scipy's spherical
harmonics. Writes into crates/fields/tests/goldens/ files gnf_<case>.safetensors; metadata `config` is that of the Rust struct:

  decoder_<kernel>, decoder_f32   input [points, F]; weight.<name>, output, cotangent, grad.<name>, grad_input
  model_<case>                    the same for whole models; input [points, dim]
  fresh                           weight.<name> of a model that torch draws with seed 3
  radiance                        outputs [points, 49], directions [points, 3], density, colour, cotangent.*, grad_outputs
  losses                          values, target, colour, distance, grad_colour, grad_distance
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from common import goldens, randn, save, setup
from scipy.special import sph_harm_y

SCRIPT = "python/goldens/fields_gnf.py"
EPS = 1e-9


def wendland(squared):
    r = (squared + EPS).sqrt()
    return torch.where(r < 1, (1 - r) ** 9 * (9 * r + 1), torch.zeros_like(r))


KERNELS = {
    "gaussian": lambda squared: torch.exp(-squared / 2),
    "multiquadric": lambda squared: (squared + 1).sqrt(),
    "inverse_multiquadric": lambda squared: (squared + 1) ** -0.5,
    "cubic": lambda squared: squared**1.5,
    "thin_plate_spline": lambda squared: (squared + EPS) * torch.log((squared + EPS).sqrt()),
    "wendland_c2": wendland,
}


class Rbf(torch.nn.Module):
    def __init__(self, features: int, kernels: int, outputs: int, kernel: str = "gaussian"):
        super().__init__()
        self.centers = torch.nn.ModuleList([torch.nn.Embedding(kernels, features)])
        self.betas = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(kernels, features))])
        self.betas_shifts = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(kernels))])
        self.weighted_sums = torch.nn.ModuleList([torch.nn.Linear(kernels, outputs)])
        torch.nn.init.uniform_(self.centers[0].weight, -1e-4, 1e-4)
        self.kernel = KERNELS[kernel]

    def forward(self, h):
        away = h[:, None, :] - self.centers[0].weight
        squared = (self.betas[0].exp() * away**2).sum(-1)
        return self.weighted_sums[0](self.kernel(squared))


class Decoder(torch.nn.Module):
    """Wraps the kernels, so that names are the reference's."""

    def __init__(self, *sizes):
        super().__init__()
        self.decoder = Rbf(*sizes)

    def forward(self, _coords, h):
        return self.decoder(h)


class Mlp(torch.nn.Module):
    def __init__(self, inputs: int, layers: int, hidden: int, outputs: int):
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        parts = []
        for a, b in zip(widths, widths[1:]):
            parts += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        self.mlp = torch.nn.Sequential(*parts[:-1])

    def forward(self, coords, h):
        return self.mlp(torch.cat([coords, h], -1))


class DifGrid(torch.nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        levels = zip(config["channels"], config["resolutions"])
        self.basis_functions = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.randn(channels, *[resolution] * config["dim"])) for channels, resolution in levels]
        )

    def forward(self, x):
        found = []
        tiles = self.config["bands"] if self.config["tiling"] == "bands" else self.config["resolutions"]
        for grid, tile in zip(self.basis_functions, torch.tensor(tiles, dtype=x.dtype)):
            extent = 2 / tile
            u = (x + 1) % extent / (extent / 2) - 1
            u = u.view(1, *[1] * (x.shape[1] - 1), -1, x.shape[1])
            found.append(
                F.grid_sample(grid[None], u, mode="bilinear", padding_mode="border", align_corners=self.config["align_corners"])
                .view(grid.shape[0], -1)
                .T
            )
        return torch.cat(found, -1)


class Gnf(torch.nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.encoder = DifGrid(config["encoder"])
        ((kind, sizes),) = config["decoder"].items()
        if kind == "rbf":
            self.decoder = Decoder(sizes["features"], sizes["kernels"], sizes["outputs"], sizes["kernel"])
        else:
            self.decoder = Mlp(sizes["dim"] + sizes["features"], sizes["layers"], sizes["hidden"], sizes["outputs"])

    def forward(self, x):
        return self.decoder(x, self.encoder(x))


def disturb(module, scale: float) -> None:
    with torch.no_grad():
        for i, (name, parameter) in enumerate(module.named_parameters()):
            # Widths and centres as after training; a shift that had an effect would show.
            parameter += randn(*parameter.shape, seed=100 + i, scale=1.0 if "shifts" in name else scale)


def golden(case: str, module, xs: torch.Tensor, config: dict, dtype=torch.float64, scale: float = 0.3) -> None:
    disturb(module, scale)
    module = module.to(dtype)
    if isinstance(module, Rbf):
        with torch.no_grad():
            # Points on a centre, and far from all of them.
            xs = torch.cat([xs, module.centers[0].weight[:1].to(xs.dtype), 5 + xs[:1]])
    xs = xs.to(dtype).detach().requires_grad_()
    output = module(xs)
    cotangent = randn(*output.shape, seed=7).to(dtype)
    (output * cotangent).sum().backward()
    tensors = {"input": xs, "output": output, "cotangent": cotangent, "grad_input": xs.grad}
    for name, parameter in module.named_parameters():
        tensors[f"weight.{name}"] = parameter
        tensors[f"grad.{name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    save(goldens("fields") / f"gnf_{case}.safetensors", SCRIPT, tensors, config, dtype=str(dtype).removeprefix("torch."))


def decoders() -> None:
    for kernel in KERNELS:
        sizes = {"features": 5, "kernels": 7, "outputs": 3, "kernel": kernel}
        golden(f"decoder_{kernel}", Rbf(*sizes.values()), randn(11, 5, seed=20, scale=0.4), sizes)
    sizes = {"features": 18, "kernels": 64, "outputs": 3, "kernel": "gaussian"}
    golden("decoder_f32", Rbf(*sizes.values()), randn(31, 18, seed=21, scale=0.5), sizes, torch.float32)


def points(count: int, dim: int, seed: int) -> torch.Tensor:
    """In the domain, then its corners, places on the seams of tiles, and places outside."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(count, dim, generator=generator, dtype=torch.float64) * 2 - 1
    edges = torch.tensor([[-1.0] * dim, [1.0] * dim, [0.0] * dim, [0.5] * dim, [-0.75] * dim, [1.4] * dim, [-1.3] * dim])
    return torch.cat([inside, edges.double()])


def model(case: str, encoder: dict, decoder: dict, dtype=torch.float64) -> None:
    encoder = {"dim": 2, "channels": [3, 2], "resolutions": [5, 8], "bands": [2.0, 3.2], "tiling": "bands", "align_corners": False} | encoder
    config = {"encoder": encoder, "decoder": decoder}
    golden(f"model_{case}", Gnf(config), points(23, encoder["dim"], 30), config, dtype)


def models() -> None:
    rbf = {"rbf": {"features": 5, "kernels": 6, "outputs": 3, "kernel": "gaussian"}}
    three = {"dim": 3, "resolutions": [5, 3]}
    model("image", {}, rbf)
    model("image_f32", {}, rbf, torch.float32)
    model("image_resolutions", {"tiling": "resolutions"}, rbf)
    model("image_corners", {"align_corners": True}, rbf)
    model("sdf", three, {"rbf": {"features": 5, "kernels": 6, "outputs": 1, "kernel": "inverse_multiquadric"}})
    model("sdf_resolutions", three | {"tiling": "resolutions", "align_corners": True}, rbf)
    model("mlp", {}, {"mlp": {"dim": 2, "features": 5, "layers": 3, "hidden": 9, "outputs": 3}})
    model("mlp_one", three, {"mlp": {"dim": 3, "features": 5, "layers": 1, "hidden": 9, "outputs": 2}})


def fresh() -> None:
    encoder = {"dim": 2, "channels": [3, 2], "resolutions": [7, 9], "bands": [2.0, 3.2], "tiling": "bands", "align_corners": False}
    config = {"encoder": encoder, "decoder": {"rbf": {"features": 5, "kernels": 11, "outputs": 3, "kernel": "gaussian"}}}
    torch.manual_seed(3)
    module = Gnf(config)
    tensors = {f"weight.{name}": parameter for name, parameter in module.named_parameters()}
    save(goldens("fields") / "gnf_fresh.safetensors", SCRIPT, tensors, config, seed="3")


def harmonics(directions: np.ndarray) -> np.ndarray:
    """Real harmonics of degrees 0 to 3 from scipy's complex ones, with their phase (-1)^m: [points, 16]."""
    x, y, z = directions.T
    polar, azimuth = np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x)
    found = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            values = sph_harm_y(degree, abs(order), polar, azimuth)
            found.append(values.real if order == 0 else math.sqrt(2) * (values.imag if order < 0 else values.real))
    return np.stack(found, -1)


def radiance() -> None:
    directions = F.normalize(randn(9, 3, seed=40).double(), dim=-1)
    directions = torch.cat([directions, torch.tensor([[0, 0, 1.0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)])
    outputs = randn(12, 49, seed=41).double()
    outputs[:, 0] = torch.linspace(-15, 45, 12)
    outputs.requires_grad_()
    density = F.softplus(outputs[:, 0] - 10)
    basis = torch.from_numpy(harmonics(directions.numpy()))
    colour = torch.sigmoid(torch.einsum("nck,nk->nc", outputs[:, 1:].view(-1, 3, 16), basis))
    tensors = {
        "outputs": outputs, "directions": directions, "density": density, "colour": colour,
        "cotangent.density": randn(12, seed=42).double(), "cotangent.colour": randn(12, 3, seed=43).double(),
    }
    ((density * tensors["cotangent.density"]).sum() + (colour * tensors["cotangent.colour"]).sum()).backward()
    tensors["grad_outputs"] = outputs.grad
    save(goldens("fields") / "gnf_radiance.safetensors", SCRIPT, tensors, {}, ("scipy",))


def losses() -> None:
    values, target = randn(13, 3, seed=50).double().requires_grad_(), randn(13, 3, seed=51, scale=0.2).double()
    target[0] = 0
    colour = F.l1_loss(values, target)
    (grad_colour,) = torch.autograd.grad(colour, values)
    distance = torch.mean((values - target) ** 2 / (torch.abs(target) + 0.1))
    (grad_distance,) = torch.autograd.grad(distance, values)
    tensors = {
        "values": values, "target": target, "colour": colour, "distance": distance, "grad_colour": grad_colour, "grad_distance": grad_distance,
    }
    save(goldens("fields") / "gnf_losses.safetensors", SCRIPT, tensors, {})


def main() -> None:
    setup()
    torch.manual_seed(0)
    decoders()
    models()
    fresh()
    radiance()
    losses()


if __name__ == "__main__":
    main()
