"""Goldens of the coordinate networks and of what they read.

References: `siren-pytorch` (SIREN), `random-fourier-features-pytorch` (features of FreSh's Fourier network), scipy (spherical harmonics,
quadrature) and, written below from the equations with torch's own layers and complex numbers, CAM's Fourier network, FreSh's SIREN, FINER and
WIRE.
Writes into crates/fields/tests/goldens/ networks_<case>.safetensors:

networks_net_<case>: metadata `config` is ours, `model` the network, `dtype`; the loss is the sum of values times cotangents
  weight.<name>, coords, cotangent, values, grad.<name>, grad_coords
networks_init_<case>: fresh weights after `torch.manual_seed(3)`, in f32: weight.<name>
networks_encodings_<dtype>: inputs, features, cotangents and gradients of the encodings

The cases in f32 have lower frequencies: a sine of phase p is right to p / 2^24 only, so that published ones would ask for looser bounds.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from common import goldens, randn, save, setup
from rff.layers import GaussianEncoding
from scipy.special import sph_harm_y
from siren_pytorch import SirenNet
from torch import nn

SCRIPT = "python/goldens/fields_networks.py"
PACKAGES = ("siren-pytorch", "random-fourier-features-pytorch", "scipy")


class Grid(nn.Module):
    """CAM behind a layer: instance normalisation over the channels of each point, then one bilinear read of scale and shift."""

    def __init__(self, cam):
        super().__init__()
        self.cam = cam
        size = (cam["grid"]["columns"], cam["grid"]["rows"])
        self.affine = nn.Parameter(torch.cat([torch.ones(1, 1, *size), torch.zeros(1, 1, *size)], dim=1))

    def forward(self, h, coords):
        low, high = self.cam["domain"]
        places = (2 * (coords - low) / (high - low) - 1).view(1, -1, 1, 2)
        scale, shift = F.grid_sample(self.affine, places, padding_mode="border", align_corners=True).view(2, -1, 1)
        return F.instance_norm(h[None])[0] * scale + shift


class Layer(nn.Module):
    """A linear layer and its grid, with a nonlinearity of its own."""

    def __init__(self, linear, cam=None):
        super().__init__()
        self.linear, self.grid = linear, Grid(cam) if cam else None

    def forward(self, xs, coords):
        z = self.linear(xs)
        return self.grid(z, coords) if self.grid else z


def uniform(param, bound):
    with torch.no_grad():
        param.uniform_(-bound, bound)


def sine_layers(c, start):
    """The layers of a sine network and the last one, with SIREN's weights; `start` draws those of the first."""
    layers = nn.ModuleList()
    for i in range(c["layers"] + 1):
        width = c["hidden"] if i else c["inputs"]
        layer = Layer(nn.Linear(width, c["hidden"]), c.get("cam"))
        if i:
            uniform(layer.linear.weight, math.sqrt(6 / width) / c["omega"])
        else:
            start(layer.linear)
        layers.append(layer)
    last = nn.Linear(c["hidden"], c["outputs"])
    uniform(last.weight, math.sqrt(6 / c["hidden"]) / c["omega"])
    return layers, last


class Ffn(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        if c["form"] == "cam":
            self.matrix = torch.randn(c["inputs"], c["frequencies"]) * (2 * math.pi)
        else:
            self.encoding = GaussianEncoding(sigma=c["sigma"], input_size=c["inputs"], encoded_size=c["frequencies"])
        widths = [2 * c["frequencies"]] + [c["hidden"]] * c["layers"]
        self.layers = nn.ModuleList(Layer(nn.Linear(i, c["hidden"]), c.get("cam")) for i in widths[:-1])
        self.last = nn.Linear(c["hidden"], c["outputs"])

    def forward(self, coords):
        if self.config["form"] == "cam":
            phases = coords @ (self.matrix.to(coords.dtype) * self.config["sigma"])
            xs = torch.cat([phases.sin(), phases.cos()], dim=-1)
        else:
            xs = self.encoding(coords)
        for layer in self.layers:
            xs = layer(xs, coords).relu()
        values = self.last(xs)
        return values.sigmoid() if self.config["sigmoid"] else values

    def named(self):
        last = self.config["layers"]
        if self.config["form"] == "cam":
            names = {"pos_enc.proj": self.matrix, "FC_final.linear": self.last}
            names |= {f"FC_{i}.linear": layer.linear for i, layer in enumerate(self.layers)}
            names |= {f"FC_{i}.affine": layer.grid.affine for i, layer in enumerate(self.layers) if layer.grid}
            return names
        names = {"_net.0.b": self.encoding.b.detach(), f"_net.{1 + 2 * last}": self.last}
        names |= {f"_net.{1 + 2 * i}": layer.linear for i, layer in enumerate(self.layers)}
        return names


class SirenFresh(nn.Module):
    """The frequency on the input, in the last layer too; the first weights of a Beta distribution."""

    def __init__(self, config):
        super().__init__()
        c = self.config = config

        def start(linear):
            drawn = torch.distributions.Beta(c["beta"], c["beta"]).rsample(linear.weight.shape)
            linear.weight.data = (drawn * 2 - 1) / c["inputs"]

        self.layers, self.last = sine_layers(c, start)

    def forward(self, coords):
        xs = coords
        for i, layer in enumerate(self.layers):
            xs = layer(xs * self.config["omega" if i else "first_omega"], coords).sin()
        return self.last(xs * self.config["omega"])

    def named(self):
        names = {f"_net.{i}.linear": layer.linear for i, layer in enumerate(self.layers)}
        names |= {f"_net.{i}.affine": layer.grid.affine for i, layer in enumerate(self.layers) if layer.grid}
        return names | {f"_net.{len(self.layers)}.linear": self.last}


class Siren(nn.Module):
    """The original's first weights in siren-pytorch's network, which has no grids; with them its layers written out."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers, self.last = sine_layers(config, lambda linear: uniform(linear.weight, 1 / config["inputs"]))

    def forward(self, coords):
        c = self.config
        if not c.get("cam"):
            net = SirenNet(c["inputs"], c["hidden"], c["outputs"], c["layers"] + 1, w0=c["omega"], w0_initial=c["first_omega"])
            state = {f"layers.{i}": layer.linear for i, layer in enumerate(self.layers)} | {"last_layer": self.last}
            state = {f"{name}.{part}": getattr(linear, part) for name, linear in state.items() for part in ("weight", "bias")}
            return torch.func.functional_call(net.to(coords.dtype), state, (coords,))
        xs = coords
        for i, layer in enumerate(self.layers):
            xs = torch.sin(c["omega" if i else "first_omega"] * layer(xs, coords))
        return self.last(xs)

    def named(self):
        names = {f"layers.{i}": layer.linear for i, layer in enumerate(self.layers)}
        names |= {f"layers.{i}.affine": layer.grid.affine for i, layer in enumerate(self.layers) if layer.grid}
        return names | {"last_layer": self.last}


class VariablePeriod(torch.autograd.Function):
    """sin(w (|z| + 1) z) and the derivative that it has when |z| + 1 is a constant."""

    @staticmethod
    def forward(ctx, z, omega):
        factor = omega * (z.abs() + 1)
        ctx.save_for_backward(z, factor)
        return torch.sin(factor * z)

    @staticmethod
    def backward(ctx, cotangent):
        z, factor = ctx.saved_tensors
        return cotangent * factor * torch.cos(factor * z), None


class Finer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config

        def start(linear):
            uniform(linear.weight, 1 / c["inputs"])
            if c.get("first_bias") is not None:
                uniform(linear.bias, c["first_bias"])

        self.layers, self.last = sine_layers(c, start)

    def forward(self, coords):
        xs = coords
        for i, layer in enumerate(self.layers):
            xs = VariablePeriod.apply(layer(xs, coords), self.config["omega" if i else "first_omega"])
        return self.last(xs)

    def named(self):
        names = {f"_net.{i}.linear": layer.linear for i, layer in enumerate(self.layers)}
        names |= {f"_net.{i}.affine": layer.grid.affine for i, layer in enumerate(self.layers) if layer.grid}
        return names | {f"_net.{len(self.layers)}": self.last}


class Wire(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        width = int(c["hidden"] / np.sqrt(2))
        self.layers = nn.ModuleList([nn.Linear(c["inputs"], width)])
        self.layers.extend(nn.Linear(width, width, dtype=torch.cfloat) for _ in range(c["layers"]))
        self.last = nn.Linear(width, c["outputs"], dtype=torch.cfloat)
        self.grids = nn.ModuleList(Grid(c["cam"]) for _ in self.layers) if c.get("cam") else None

    def forward(self, coords):
        c = self.config
        xs = coords
        for i, layer in enumerate(self.layers):
            z = layer(xs)
            if self.grids and i == 0:
                z = self.grids[i](z, coords)
            elif self.grids:
                z = torch.complex(*self.grids[i](torch.cat([z.real, z.imag], dim=-1), coords).chunk(2, dim=-1))
            omega, scale = (c["omega"], c["scale"]) if i else (c["first_omega"], c["first_scale"])
            xs = torch.exp(1j * omega * z - (scale * z).abs().square())
        return self.last(xs).real / 2 + 0.5

    def named(self):
        names = {f"_net.{i}.linear": layer for i, layer in enumerate(self.layers)} | {f"_net.{len(self.layers)}": self.last}
        for i in range(len(self.layers)):
            number = "" if i else "first_"
            for buffer, field in [("omega_0", "omega"), ("scale_0", "scale")]:
                names[f"_net.{i}.{buffer}"] = torch.tensor([self.config[number + field]])
            if self.grids:
                names[f"_net.{i}.affine"] = self.grids[i].affine
        return names


def named(net):
    """Parameters and buffers by the names of the published code."""
    found = {}
    for name, part in net.named().items():
        if isinstance(part, nn.Linear):
            found |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
        else:
            found[name] = part
    return found


def real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


MODELS = {"ffn": Ffn, "siren": Siren, "siren_fresh": SirenFresh, "finer": Finer, "wire": Wire}
SMALL = {"inputs": 2, "hidden": 17, "layers": 2, "outputs": 3}
UNIT = {"grid": {"kind": "plane", "rows": 5, "columns": 7}, "domain": [0.0, 1.0]}
SYMMETRIC = {"grid": {"kind": "plane", "rows": 4, "columns": 3}, "domain": [-1.0, 1.0]}
SINE = SMALL | {"first_omega": 30.0, "omega": 30.0}
LOW = {"first_omega": 5.0, "omega": 3.0}
FRESH = SINE | {"form": "fresh", "beta": 1.0}
FFN = SMALL | {"frequencies": 9, "sigma": 10.0, "form": "cam", "sigmoid": True}
WIRE = SMALL | {"first_omega": 20.0, "omega": 10.0, "first_scale": 10.0, "scale": 8.0}


def network(case: str, model: str, config: dict, dtype=torch.float64, points: int = 13) -> None:
    torch.manual_seed(1)
    net = MODELS[model](config)
    for param in [*net.parameters(), *net.buffers()]:
        # Complex layers stay complex, which `double` would leave in single precision.
        param.data = param.data.to((torch.cdouble if dtype == torch.float64 else torch.cfloat) if param.is_complex() else dtype)
    with torch.no_grad():
        for i, (name, param) in enumerate(net.named_parameters()):
            if name.endswith("affine"):
                param += randn(*param.shape, seed=100 + i, scale=0.3).to(dtype)
    # Where the grids end, within them and beyond.
    low, high = config.get("cam", UNIT)["domain"]
    coords = torch.rand(points, config["inputs"], generator=torch.Generator().manual_seed(2)) * 1.2 - 0.1
    coords[0], coords[1] = 0.0, 1.0
    coords = (low + (high - low) * coords).to(dtype).requires_grad_()
    values = net(coords)
    cotangent = randn(*values.shape, seed=7).to(dtype)
    (values * cotangent).sum().backward()
    tensors = {"coords": coords, "values": values, "cotangent": cotangent, "grad_coords": coords.grad}
    for name, value in named(net).items():
        kept = real(value.detach())
        tensors[f"weight.{name}"] = kept.to(dtype) if kept.is_floating_point() else kept
        if isinstance(value, nn.Parameter):
            tensors[f"grad.{name}"] = real(value.grad)
    name = str(dtype).removeprefix("torch.")
    save(
        goldens("fields") / f"networks_net_{case}.safetensors", SCRIPT, tensors, config, PACKAGES,
        model=model.removesuffix("_fresh"), dtype=name,
    )


def init(case: str, model: str, config: dict) -> None:
    torch.manual_seed(3)
    net = MODELS[model](config)
    tensors = {f"weight.{name}": real(value.detach()).float() for name, value in named(net).items()}
    save(
        goldens("fields") / f"networks_init_{case}.safetensors", SCRIPT, tensors, config, PACKAGES,
        model=model.removesuffix("_fresh"), dtype="float32",
    )


def harmonics(directions):
    """Polynomials in x, y, z of the real spherical harmonics: K P(z) Re or Im (x + iy)^m, P the m-th derivative of Legendre's polynomial."""
    x, y, z = directions.unbind(-1)
    found = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            m = abs(order)
            legendre = np.polynomial.legendre.leg2poly([0] * degree + [1])
            for _ in range(m):
                legendre = np.polynomial.polynomial.polyder(legendre)
            height = sum(float(c) * z**k for k, c in enumerate(legendre))
            wave = torch.ones_like(torch.complex(x, y)) if m == 0 else torch.complex(x, y) ** m
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m))
            norm *= (-1) ** m * (math.sqrt(2) if m else 1)
            found.append(norm * height * (wave.imag if order < 0 else wave.real))
    values = torch.stack(found, -1)
    on_sphere = (directions.detach().square().sum(-1) - 1).abs() < 1e-6
    unit = directions.detach().double()[on_sphere].numpy()
    polar, azimuth = np.arccos(unit[:, 2].clip(-1, 1)), np.arctan2(unit[:, 1], unit[:, 0])
    for i, (degree, order) in enumerate((n, m) for n in range(4) for m in range(-n, n + 1)):
        theirs = sph_harm_y(degree, abs(order), polar, azimuth)
        theirs = theirs.real if order == 0 else math.sqrt(2) * (theirs.imag if order < 0 else theirs.real)
        assert np.abs(values.detach()[on_sphere][:, i].numpy() - theirs).max() < 1e-5 + 1e-9
    return values


def expected_waves(mean, variance, lo, hi):
    """Mean sine and cosine of a Gaussian; checked by Gauss-Hermite quadrature where that converges."""
    scales = 2.0 ** torch.arange(lo, hi, dtype=mean.dtype)
    y = (mean[..., None, :] * scales[:, None]).flatten(-2)
    v = (variance[..., None, :] * scales[:, None] ** 2).flatten(-2)
    # The cosine as a shifted sine, as released: in f32 large phases lose the shift's last bits.
    features = torch.cat([torch.exp(-v / 2) * torch.sin(y), torch.exp(-v / 2) * torch.sin(y + math.pi / 2)], dim=-1)
    if mean.dtype != torch.float64:
        return features
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    ys, spread = y.detach().numpy(), np.sqrt(v.detach().numpy())
    draws = ys[..., None] + spread[..., None] * nodes
    weights = weights / weights.sum()
    half = ys.shape[-1]
    for part, wave in [(features[..., :half], np.sin), (features[..., half:], np.cos)]:
        near = spread < 3
        error = np.abs(part.detach().numpy() - (wave(draws) * weights).sum(-1))
        assert near.any() and error[near].max() < 1e-9
    return features


def encodings(dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    tensors = {}

    def keep(case, features, **inputs):
        cotangent = randn(*features.shape, seed=len(tensors)).to(dtype)
        (features * cotangent).sum().backward()
        tensors.update({f"{case}.features": features, f"{case}.cotangent": cotangent})
        for field, xs in inputs.items():
            tensors.update({f"{case}.{field}": xs, f"{case}.grad_{field}": xs.grad})

    def draw(*shape, seed):
        return randn(*shape, seed=seed).to(dtype).requires_grad_()

    xs = draw(5, 3, 3, seed=1)
    waves = (xs[..., None, :] * 2.0 ** torch.arange(0, 10, dtype=dtype)[:, None]).flatten(-2)
    keep("sinusoidal", torch.cat([xs, waves.sin(), (waves + math.pi / 2).sin()], -1), xs=xs)
    xs = draw(7, 1, seed=2)
    waves = (xs[..., None, :] * 2.0 ** torch.arange(2, 4, dtype=dtype)[:, None]).flatten(-2)
    keep("sinusoidal_2_4", torch.cat([xs, waves.sin(), (waves + math.pi / 2).sin()], -1), xs=xs)
    mean = draw(4, 2, 3, seed=3)
    variance = (randn(4, 2, 3, seed=4).to(dtype).square() * 0.01).requires_grad_()
    keep("integrated", expected_waves(mean, variance, 0, 16), mean=mean, variance=variance)
    directions = randn(11, 3, seed=5).to(dtype)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    directions[9] = torch.tensor([0.0, 0.0, 1.0])
    directions[10] = torch.tensor([0.3, -0.2, 0.4])  # not of length 1: the polynomials go on
    directions.requires_grad_()
    keep("harmonics", harmonics(directions), directions=directions)
    save(goldens("fields") / f"networks_encodings_{name}.safetensors", SCRIPT, tensors, {}, PACKAGES, dtype=name)


def main() -> None:
    setup()
    f32 = torch.float32
    network("siren", "siren", SINE | {"first_omega": 24.0})
    network("siren_f32", "siren", SINE | LOW, f32)
    network("siren_cam", "siren", SINE | {"cam": SYMMETRIC})
    network("siren_fresh", "siren_fresh", FRESH | {"first_omega": 24.0, "inputs": 3})
    network("siren_fresh_f32", "siren_fresh", FRESH | LOW, f32)
    network("siren_fresh_cam", "siren_fresh", FRESH | {"cam": SYMMETRIC})
    network("finer", "finer", SINE | {"first_omega": 24.0, "first_bias": 1.5})
    network("finer_f32", "finer", SINE | LOW, f32)
    network("finer_cam", "finer", SINE | {"cam": SYMMETRIC})
    network("wire", "wire", WIRE | {"inputs": 1})
    network("wire_f32", "wire", WIRE | LOW, f32)
    network("wire_cam", "wire", WIRE | {"cam": SYMMETRIC})
    network("ffn", "ffn", FFN)
    network("ffn_f32", "ffn", FFN | {"sigma": 1.0}, f32)
    network("cam", "ffn", FFN | {"cam": UNIT})
    network("cam_f32", "ffn", FFN | {"sigma": 1.0, "cam": UNIT}, f32)
    network("ffn_fresh", "ffn", FFN | {"form": "package", "sigmoid": False, "sigma": 3.0, "inputs": 3})
    network("ffn_fresh_f32", "ffn", FFN | {"form": "package", "sigmoid": False, "sigma": 1.0}, f32)
    init("siren", "siren", SINE)
    init("siren_fresh", "siren_fresh", FRESH)
    init("siren_fresh_beta", "siren_fresh", FRESH | {"beta": 4.0})
    init("finer", "finer", SINE)
    init("finer_bias", "finer", SINE | {"first_bias": 1.5})
    init("wire", "wire", WIRE)
    init("cam", "ffn", FFN | {"cam": UNIT})
    init("ffn_fresh", "ffn", FFN | {"form": "package", "sigmoid": False})
    for dtype in (torch.float64, torch.float32):
        encodings(dtype)


if __name__ == "__main__":
    main()
