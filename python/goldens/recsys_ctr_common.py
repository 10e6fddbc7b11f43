"""What the goldens of the click models share: FuxiCTR's models assembled from its own layers, and a file writer."""

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import goldens, randn, save
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import DIN_Attention, Dice, FeatureEmbedding, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel
from model_zoo.LongCTR.FinalMLP.FinalMLP import FeatureSelection, InteractionAggregation

PACKAGES = ("fuxictr",)
BATCH, TIME = 6, 5
CPU = {"model_root": "unused", "gpu": -1, "metrics": ["AUC"], "task": "binary_classification", "optimizer": "adam", "loss": "binary_crossentropy", "verbose": 0}


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def feature_map(fields: list[dict], dim: int, given: dict[str, int], folder: str) -> FeatureMap:
    """FuxiCTR's view of our fields. Vectors of the fields in `given` are written to `folder`, where the package reads them."""
    features = FeatureMap("made", folder)
    features.labels = ["label"]
    features.default_emb_dim = dim
    vocabulary = {}
    for field in fields:
        spec = {"source": "", "type": field["type"]}
        if field["type"] != "numeric":
            spec |= {"vocab_size": field["vocab_size"], "padding_idx": 0, "oov_idx": field["vocab_size"] - 1}
        if field["type"] == "sequence":
            spec |= {"max_len": field["max_len"], "feature_encoder": field.get("encoder")}
        if "share_embedding" in field:
            spec["share_embedding"] = field["share_embedding"]
        name = field["name"]
        if name in given:
            tokens = [str(i) for i in range(1, field["vocab_size"])]
            vocabulary[name] = {token: int(token) for token in tokens}
            vectors = randn(len(tokens), given[name], seed=77).numpy()
            np.savez(Path(folder) / f"{name}.npz", key=np.array(tokens), value=vectors)
            # The second way of the package to name an encoder is a list.
            encoder = f"nn.Linear({given[name]}, {dim}, bias=False)"
            spec |= {"pretrained_emb": f"{name}.npz", "pretrain_dim": given[name], "pretrain_usage": "init", "freeze_emb": True, "embedding_dim": given[name]}
            spec["feature_encoder"] = [encoder] if field["type"] == "sequence" else encoder
        features.features[name] = spec
    # The package looks at the second entry to learn the kind of all keys.
    (Path(folder) / "feature_vocab.json").write_text(json.dumps({"a": {"0": 1}, "b": {"0": 1}} | vocabulary))
    features.num_fields = features.get_num_fields()
    return features


class FinalMLP(BaseModel):
    """The canonical model of `model_zoo/FinalMLP`: the wheel's class of this name builds the gates but does not apply them."""

    def __init__(self, features: FeatureMap, config: dict, **training):
        super().__init__(features, model_id="FinalMLP", **(CPU | training))
        dim = config["embedding_dim"]
        width = len(config["fields"]) * dim
        self.embedding_layer = FeatureEmbedding(features, dim)
        block = lambda n: MLP_Block(input_dim=width, hidden_units=list(config[f"mlp{n}_hidden_units"]), hidden_activations="ReLU", dropout_rates=config[f"mlp{n}_dropout"], batch_norm=config[f"mlp{n}_batch_norm"])
        self.mlp1, self.mlp2 = block(1), block(2)
        self.gated = config["use_fs"]
        if self.gated:
            self.fs_module = FeatureSelection(features, width, dim, list(config["fs_hidden_units"]), config["fs1_context"], config["fs2_context"])
        self.fusion_module = InteractionAggregation(config["mlp1_hidden_units"][-1], config["mlp2_hidden_units"][-1], num_heads=config["num_heads"])
        self.compile(CPU["optimizer"], CPU["loss"], training.get("learning_rate", 1e-3))
        self.reset_parameters()

    def forward(self, inputs):
        inputs = self.get_inputs(inputs)
        xs = self.embedding_layer(inputs, flatten_emb=True)
        one, two = self.fs_module(inputs, xs) if self.gated else (xs, xs)
        logit = self.fusion_module(self.mlp1(one), self.mlp2(two))
        return {"logit": logit, "y_pred": self.output_activation(logit)}


class DIN(BaseModel):
    """The model of `model_zoo/DIN`, which is not in the wheel, over the wheel's layers."""

    def __init__(self, features: FeatureMap, config: dict, **training):
        super().__init__(features, model_id="DIN", **(CPU | training))
        self.config = config
        dim = config["embedding_dim"]
        self.embedding_layer = FeatureEmbeddingDict(features, dim)
        attention = lambda target: DIN_Attention(
            dim * len(target),
            attention_units=list(config["attention_hidden_units"]),
            hidden_activations=config["attention_hidden_activations"],
            dropout_rate=config["attention_dropout"],
            use_softmax=config["din_use_softmax"],
        )
        self.attention_layers = torch.nn.ModuleList(attention(target) for target in config["din_target_field"])
        units = list(config["dnn_hidden_units"])
        activations = [Dice(n) for n in units] if config["dnn_activations"] == "dice" else config["dnn_activations"]
        self.dnn = MLP_Block(input_dim=dim * len(config["fields"]), output_dim=1, hidden_units=units, hidden_activations=activations, dropout_rates=config["net_dropout"], batch_norm=config["batch_norm"])
        self.compile(CPU["optimizer"], CPU["loss"], training.get("learning_rate", 1e-3))
        self.reset_parameters()

    def forward(self, inputs):
        inputs = self.get_inputs(inputs)
        vectors = self.embedding_layer(inputs)
        side = lambda names: torch.cat([vectors[name] for name in names], -1)
        for attention, target, history in zip(self.attention_layers, self.config["din_target_field"], self.config["din_sequence_field"]):
            pooled = attention(side(target), side(history), inputs[history[0]] != 0)
            vectors |= dict(zip(history, pooled.split(self.config["embedding_dim"], -1)))
        logit = self.dnn(self.embedding_layer.dict2tensor(vectors, flatten_emb=True))
        return {"logit": logit, "y_pred": self.output_activation(logit)}


def build(kind, config: dict, given: dict[str, int] | None = None, **training):
    seed(0)
    with TemporaryDirectory() as folder:
        return kind(feature_map(config["fields"], config["embedding_dim"], given or {}, folder), config, **training)


def perturb(module: torch.nn.Module, but: str = "nothing") -> None:
    """Moves every value by noise, so that nothing is at a special place; padding rows stay 0."""
    seen = set()
    tables = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding) and m.padding_idx == 0}
    with torch.no_grad():
        for i, (name, value) in enumerate(module.state_dict(keep_vars=True).items()):
            if name.endswith("num_batches_tracked") or id(value) in seen or name.startswith(but):
                continue
            seen.add(id(value))
            noise = randn(*value.shape, seed=1000 + i, scale=0.3)
            value += noise.abs() if name.endswith("running_var") else noise
            if id(value) in tables:
                value[0] = 0.0


def batch(fields: list[dict], rows: int, seed: int, lengths: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Made inputs; sequences are as long as `lengths` says, padded behind, and the first rows are of padding alone or full."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths or [0, TIME, *([TIME - 2, 1, 2, TIME - 1, 3] * rows)][:rows])
    inputs = {}
    for field in fields:
        if field["type"] == "numeric":
            inputs[field["name"]] = torch.randn(rows, generator=generator)
        elif field["type"] == "categorical":
            inputs[field["name"]] = torch.randint(0, field["vocab_size"], (rows,), generator=generator)
        else:
            ids = torch.randint(1, field["vocab_size"], (rows, field["max_len"]), generator=generator)
            inputs[field["name"]] = ids * (torch.arange(field["max_len"]) < lengths[:, None])
    return inputs


def labels(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(seed)).float()


def write(file: str, script: str, preset: str, config: dict, module: torch.nn.Module, inputs: dict, run, train: bool, packages: tuple[str, ...] = PACKAGES) -> None:
    """Runs once on `inputs` with made labels: logits, probabilities, mean binary cross-entropy, gradients, statistics after."""
    module.train(train)
    tensors = {f"weight.{name}": value.clone() for name, value in module.state_dict().items()}
    logit = run(module, inputs).flatten()
    probability = torch.sigmoid(logit)
    label = labels(len(logit), seed=5)
    loss = torch.nn.functional.binary_cross_entropy(probability, label)
    loss.backward()
    tensors |= {f"input.{name}": value for name, value in inputs.items()}
    tensors |= {"label": label, "output.logit": logit.detach(), "output.probability": probability.detach(), "loss": loss.detach()}
    tensors |= {f"grad.{name}": torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters() if p.requires_grad}
    if train:
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        tensors |= {f"after.{name}": value.clone() for name, value in module.state_dict().items() if name.endswith(statistics)}
    save(goldens("recsys") / f"{file}.safetensors", script, tensors, config, packages, model=preset)


def ours(config: dict) -> dict:
    """Our config: the fields without what only FuxiCTR needs."""
    fields = [{key: value for key, value in field.items() if key != "encoder"} for field in config["fields"]]
    return config | {"fields": fields}

