"""Goldens of DIN in its three variants, of its attention and of Dice.

References: package `fuxictr` (variant B), package `deepctr-torch` (variant C), and for the authors' TensorFlow 1 code (variant A), which
runs nowhere any more, a transcription of its equations in this file. Writes into crates/recsys/tests/goldens/ files din_<case>.safetensors,
with `_train` at the end for batch statistics with dropout 0; keys as in recsys_ctr_finalmlp.py. attention_<case> and dice_<case> hold the
parts alone, with `cotangent` for a loss of Σ output * cotangent.
"""

import torch
from common import goldens, randn, save, setup
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.layers.activation import Dice as DeepCtrDice
from deepctr_torch.models import DIN as DeepCtrDin
from fuxictr.pytorch.layers import DIN_Attention, Dice
from recsys_ctr_common import BATCH, DIN, TIME, batch, build, ours, perturb, write

SCRIPT = "python/goldens/recsys_ctr_din.py"
FIELDS = [
    {"type": "categorical", "name": "user", "vocab_size": 7},
    {"type": "categorical", "name": "item", "vocab_size": 9},
    {"type": "numeric", "name": "price"},
    {"type": "categorical", "name": "shop", "vocab_size": 5},
    {"type": "sequence", "name": "seen_items", "vocab_size": 9, "max_len": TIME, "share_embedding": "item"},
    {"type": "sequence", "name": "seen_shops", "vocab_size": 5, "max_len": TIME, "share_embedding": "shop"},
    {"type": "sequence", "name": "tags", "vocab_size": 6, "max_len": TIME, "encoder": "layers.MaskedAveragePooling()"},
]
CONFIG = {
    "variant": "fuxictr",
    "fields": FIELDS,
    "din_target_field": [["item", "shop"]],
    "din_sequence_field": [["seen_items", "seen_shops"]],
    "embedding_dim": 4,
    "attention_hidden_units": [10, 6],
    "attention_hidden_activations": "dice",
    "attention_dropout": 0.0,
    "din_use_softmax": True,
    "dnn_hidden_units": [12, 8],
    "dnn_activations": "dice",
    "net_dropout": 0.0,
    "batch_norm": True,
}


def fuxictr() -> None:
    given = [
        {"type": "categorical", "name": "item", "vocab_size": 9},
        {"type": "categorical", "name": "picture", "vocab_size": 8},
        {"type": "sequence", "name": "liked", "vocab_size": 9, "max_len": TIME, "share_embedding": "item"},
        {"type": "sequence", "name": "liked_pictures", "vocab_size": 8, "max_len": TIME, "share_embedding": "picture"},
        {"type": "sequence", "name": "left", "vocab_size": 9, "max_len": TIME, "share_embedding": "item"},
        {"type": "sequence", "name": "left_pictures", "vocab_size": 8, "max_len": TIME, "share_embedding": "picture"},
    ]
    cases = {
        "softmax": {},
        "intensity": {"din_use_softmax": False},
        "relu": {"din_use_softmax": False, "attention_hidden_activations": "relu", "dnn_activations": "relu", "batch_norm": False},
        "prelu": {"attention_hidden_activations": "prelu", "dnn_activations": "sigmoid"},
        "dropout": {"attention_dropout": 0.1, "net_dropout": 0.1},
        "given": {
            "fields": given,
            "din_target_field": [["item", "picture"]] * 2,
            "din_sequence_field": [["liked", "liked_pictures"], ["left", "left_pictures"]],
            "din_use_softmax": False,
            "attention_hidden_activations": "relu",
            "pretrained": [{"field": name, "dim": 3} for name in ("picture", "liked_pictures", "left_pictures")],
        },
    }
    for case, changes in cases.items():
        for train in (False, True):
            if train and case == "dropout":
                continue
            config = CONFIG | changes
            widths = {one["field"]: one["dim"] for one in config.get("pretrained", [])}
            module = build(DIN, config, widths)
            perturb(module)
            inputs = batch(config["fields"], BATCH, seed=10)
            run = lambda module, inputs: module(inputs)["logit"]
            write(f"din_{case}{'_train' if train else ''}", SCRIPT, "din", ours(config), module, inputs, run, train)


def deepctr() -> None:
    cases = {
        "deepctr": {"din_use_softmax": False, "batch_norm": False},
        "deepctr_softmax": {"din_use_softmax": True, "batch_norm": True},
        "deepctr_sigmoid": {"din_use_softmax": False, "batch_norm": False, "attention_hidden_activations": "sigmoid"},
    }
    for case, changes in cases.items():
        for train in (False, True):
            config = CONFIG | {"variant": "deepctr", "length": "length", "dnn_activations": "relu"} | changes
            dim = config["embedding_dim"]
            named = {"seen_items": ("hist_item", "item"), "seen_shops": ("hist_shop", "shop"), "tags": ("tags", "tags")}
            columns = []
            for field in FIELDS:
                name = field["name"]
                if field["type"] == "numeric":
                    columns.append(DenseFeat(name, 1))
                elif field["type"] == "categorical":
                    columns.append(SparseFeat(name, field["vocab_size"], embedding_dim=dim))
                else:
                    theirs, table = named[name]
                    sparse = SparseFeat(theirs, field["vocab_size"], embedding_dim=dim, embedding_name=table)
                    columns.append(VarLenSparseFeat(sparse, maxlen=TIME, length_name=None if name == "tags" else "length"))
            module = DeepCtrDin(
                columns,
                ["item", "shop"],
                dnn_use_bn=config["batch_norm"],
                dnn_hidden_units=config["dnn_hidden_units"],
                dnn_activation=config["dnn_activations"],
                att_hidden_size=config["attention_hidden_units"],
                att_activation=config["attention_hidden_activations"],
                att_weight_normalization=config["din_use_softmax"],
            )
            perturb(module)
            inputs = batch(FIELDS, BATCH, seed=10)
            inputs["length"] = (inputs["seen_items"] != 0).sum(1)

            def run(module, inputs):
                theirs = {"hist_item": inputs["seen_items"], "hist_shop": inputs["seen_shops"]} | inputs
                parts = [theirs[name].reshape(BATCH, -1).float() for name in module.feature_index]
                xs = torch.cat(parts, -1)
                return logit_of(module, xs)

            write(f"din_{case}{'_train' if train else ''}", SCRIPT, "din", ours(config), module, inputs, run, train, ("deepctr-torch",))


def logit_of(module, xs):
    """The package gives probabilities; what enters its sigmoid is taken on the way."""
    found = []
    activation = module.out.forward

    def spy(values):
        found.append(values + module.out.bias)
        return activation(values.clone())

    module.out.forward = spy
    module(xs)
    module.out.forward = activation
    return found[0]


class Authors(torch.nn.Module):
    """DIN of zhougr1993/DeepInterestNetwork, `din/model.py` and `din/Dice.py`, equation by equation.

    `batch` is the paper's batch norm: statistics of the batch in training, running averages with momentum 0.99 in evaluation
    (the unbiased variance, as PyTorch averages it). Without it mean 0 and variance 1 always, as the released code computes.
    """

    def __init__(self, dim: int, items: int, shops: int, attention: list[int], tail: list[int], dice: bool, batch: bool):
        super().__init__()
        width = 2 * dim
        self.batch, self.dice, self.width = batch, dice, width
        part = lambda size: torch.nn.Parameter(torch.zeros(size))
        holder = torch.nn.Module

        def add(name: str, **values) -> None:
            self.add_module(name, holder())
            for key, value in values.items():
                if isinstance(value, torch.nn.Parameter):
                    self.get_submodule(name).register_parameter(key, value)
                else:
                    self.get_submodule(name).register_buffer(key, value)

        def linear(name: str, inputs: int, outputs: int) -> None:
            add(name, weight=part((outputs, inputs)), bias=part(outputs))

        def statistics(size: int) -> dict:
            return {"running_mean": torch.zeros(size), "running_var": torch.ones(size), "num_batches_tracked": torch.tensor(0)}

        def norm(name: str, size: int) -> None:
            add(name, weight=torch.nn.Parameter(torch.ones(size)), bias=part(size), **statistics(size))

        add("item_emb_w", weight=part((items, dim)))
        add("shop_emb_w", weight=part((shops, dim)))
        self.item_b = part(items)
        sizes = [4 * width, *attention, 1]
        for i in range(len(sizes) - 1):
            linear(f"f{i + 1}_att", sizes[i], sizes[i + 1])
        norm("hist_bn", width)
        linear("hist_fcn", width, width)
        norm("b1", 3 * width)
        sizes = [3 * width, *tail, 1]
        for i in range(len(sizes) - 1):
            linear(f"f{i + 1}", sizes[i], sizes[i + 1])
            if dice and i < len(tail):
                add(f"dice_{i + 1}", alpha=part(tail[i]), beta=part(tail[i]))
                self.get_submodule(f"dice_{i + 1}").add_module("bn", holder())
                for key, value in statistics(tail[i]).items():
                    self.get_submodule(f"dice_{i + 1}.bn").register_buffer(key, value)
        self.depth = len(attention), len(tail)

    def normed(self, part: str, xs: torch.Tensor) -> torch.Tensor:
        own = self.get_submodule(part)
        if self.batch and self.training:
            mean, variance = xs.mean(0), xs.var(0, unbiased=False)
            with torch.no_grad():
                own.running_mean.mul_(0.99).add_(0.01 * mean)
                own.running_var.mul_(0.99).add_(0.01 * xs.var(0, unbiased=True))
                own.num_batches_tracked += 1
        else:
            # Without training they stay 0 and 1.
            mean, variance = own.running_mean, own.running_var
        return (xs - mean) / torch.sqrt(variance + 1e-3)

    def linear(self, part: str, xs: torch.Tensor) -> torch.Tensor:
        own = self.get_submodule(part)
        return xs @ own.weight.T + own.bias

    def forward(self, inputs: dict) -> torch.Tensor:
        table = lambda ids, name: self.get_submodule(f"{name}_emb_w").weight[ids]
        item = torch.cat([table(inputs["item"], "item"), table(inputs["shop"], "shop")], -1)
        keys = torch.cat([table(inputs["seen_items"], "item"), table(inputs["seen_shops"], "shop")], -1)
        queries = item[:, None].expand_as(keys)
        xs = torch.cat([queries, keys, queries - keys, queries * keys], -1)
        for i in range(self.depth[0]):
            xs = torch.sigmoid(self.linear(f"f{i + 1}_att", xs))
        scores = self.linear(f"f{self.depth[0] + 1}_att", xs)[..., 0]
        valid = torch.arange(keys.shape[1]) < inputs["length"][:, None]
        scores = torch.where(valid, scores, torch.tensor(-(2.0**32) + 1)) / self.width**0.5
        history = (torch.softmax(scores, -1)[..., None] * keys).sum(1)
        scaled = lambda part, xs: self.normed(part, xs) * self.get_submodule(part).weight + self.get_submodule(part).bias
        user = self.linear("hist_fcn", scaled("hist_bn", history))
        xs = scaled("b1", torch.cat([user, item, user * item], -1))
        for i in range(self.depth[1]):
            xs = self.linear(f"f{i + 1}", xs)
            if self.dice:
                own = self.get_submodule(f"dice_{i + 1}")
                p = torch.sigmoid(own.beta * self.normed(f"dice_{i + 1}.bn", xs))
                xs = own.alpha * (1 - p) * xs + p * xs
            else:
                xs = torch.sigmoid(xs)
        return self.linear(f"f{self.depth[1] + 1}", xs)[:, 0] + self.item_b[inputs["item"]]


def authors() -> None:
    fields = [field for field in FIELDS if field["name"] in ("item", "shop", "seen_items", "seen_shops")]
    for dice in (False, True):
        for mode in ("frozen", "batch"):
            for train in (False, True):
                config = CONFIG | {
                    "variant": "authors",
                    "fields": fields,
                    "length": "length",
                    "bn_mode": mode,
                    "attention_hidden_activations": "sigmoid",
                    "dnn_activations": "dice" if dice else "sigmoid",
                    "batch_norm": False,
                }
                module = Authors(4, 9, 5, config["attention_hidden_units"], config["dnn_hidden_units"], dice, mode == "batch")
                perturb(module)
                if mode == "frozen":
                    for name, value in module.named_buffers():
                        value.fill_(1.0) if name.endswith("running_var") else value.zero_()
                inputs = batch(fields, BATCH, seed=10)
                # Item 0 is an item: only the lengths tell what is padding.
                inputs["length"] = (inputs["seen_items"] != 0).sum(1)
                inputs["seen_items"][2, 0] = 0
                name = f"din_authors_{mode}{'_dice' if dice else ''}{'_train' if train else ''}"
                write(name, SCRIPT, "din", config, module, inputs, lambda module, inputs: module(inputs), train, ())


def part(file: str, preset: str, config: dict, module: torch.nn.Module, inputs: dict, run, train: bool, output: str, packages: tuple[str, ...]) -> None:
    perturb(module)
    module.train(train)
    tensors = {f"weight.{name}": value.clone() for name, value in module.state_dict().items()}
    leaves = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in inputs.items()}
    ys = run(module, leaves)
    cotangent = randn(*ys.shape, seed=12)
    loss = (ys * cotangent).sum()
    loss.backward()
    tensors |= {f"input.{name}": value for name, value in inputs.items()}
    tensors |= {f"output.{output}": ys.detach(), "cotangent": cotangent, "loss": loss.detach()}
    tensors |= {f"grad.{name}": parameter.grad for name, parameter in module.named_parameters()}
    tensors |= {f"grad_input.{name}": value.grad for name, value in leaves.items() if value.requires_grad}
    if train:
        tensors |= {f"after.{name}": value.clone() for name, value in module.state_dict().items() if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    save(goldens("recsys") / f"{file}.safetensors", SCRIPT, tensors, config, packages, model=preset)


def parts() -> None:
    mask = torch.arange(TIME) < torch.tensor([0, TIME, 3, 1, 2, 4])[:, None]
    for softmax in (False, True):
        for train in (False, True):
            config = {"embedding_dim": 6, "attention_units": [10, 8], "hidden_activations": "dice", "dropout_rate": 0.0, "use_softmax": softmax}
            torch.manual_seed(0)
            module = DIN_Attention(6, attention_units=[10, 8], hidden_activations="Dice", use_softmax=softmax)
            inputs = {"query": randn(BATCH, 6, seed=1), "keys": randn(BATCH, TIME, 6, seed=2), "mask": mask.long()}
            run = lambda module, xs: module(xs["query"], xs["keys"], xs["mask"])
            name = f"attention_{'softmax' if softmax else 'intensity'}{'_train' if train else ''}"
            part(name, "din-attention", config, module, inputs, run, train, "pooled", ("fuxictr",))
    for variant, kind, packages in (("fuxictr", Dice, ("fuxictr",)), ("deepctr", DeepCtrDice, ("deepctr-torch",))):
        for train in (False, True):
            inputs = {"x": randn(BATCH, 7, seed=3, scale=2.0)}
            name = f"dice_{variant}{'_train' if train else ''}"
            part(name, "dice", {"input_dim": 7, "variant": variant}, kind(7), inputs, lambda module, xs: module(xs["x"]), train, "y", packages)


def main() -> None:
    setup()
    fuxictr()
    deepctr()
    authors()
    parts()


if __name__ == "__main__":
    main()
