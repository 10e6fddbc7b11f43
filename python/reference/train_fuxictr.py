"""The yardstick: trains FuxiCTR's own FinalMLP and DIN on exactly the rows and ids that Densely trains on.

All figures again, from the root of the repository (one thread; minutes):

    for r in finalmlp-ml100k din-ml100k; do
        densely train crates/recsys/recipes/$r.toml --data-dir DIR --export exports/$r
        python python/reference/train_fuxictr.py $r exports/$r
    done

Reads a folder with
    train.safetensors, valid.safetensors, test.safetensors: a tensor per field by its name (ids i64 [N] or [N, T], numbers f32 [N]), label f32
        [N], group i64 [N]
    meta.json: {"preset", "config" (with "fields"), "train"}, the settings of the recipe
and writes python/reference/<recipe>.json: AUC, gAUC and log loss on the test rows at the epoch with the best validation value, per seed.

What is the package's and what is ours: layers, regulariser, loss, optimiser, clipping and the trainer's rules (`BaseModel.fit`) are FuxiCTR's
own; the two forward passes, which the package does not carry, join its layers as its `model_zoo` does. The loader below gives the batches
that FuxiCTR's would, shuffled anew in each epoch. Only the order of batches, initial weights and dropout masks differ from Densely's.
"""

import argparse
import importlib.metadata
import json
import logging
import platform
import statistics
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy
import torch
from fuxictr.features import FeatureMap
from fuxictr.metrics import evaluate_metrics
from fuxictr.pytorch.layers import DIN_Attention, Dice, FeatureEmbedding, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from model_zoo.LongCTR.FinalMLP.FinalMLP import FeatureSelection, InteractionAggregation
from safetensors.torch import load_file

NAMES = {"relu": "ReLU", "dice": "Dice", "sigmoid": "Sigmoid"}


class FinalMLP(BaseModel):
    def __init__(self, feature_map, config, train, **kwargs):
        super().__init__(feature_map, **kwargs)
        dim = config["embedding_dim"]
        width = dim * feature_map.num_fields
        self.embedding_layer = FeatureEmbedding(feature_map, dim)
        streams = [
            MLP_Block(
                input_dim=width,
                hidden_units=config[f"mlp{at}_hidden_units"],
                hidden_activations="ReLU",
                dropout_rates=config[f"mlp{at}_dropout"],
                batch_norm=config[f"mlp{at}_batch_norm"],
            )
            for at in (1, 2)
        ]
        self.mlp1, self.mlp2 = streams
        self.fs_module = None
        if config["use_fs"]:
            self.fs_module = FeatureSelection(feature_map, width, dim, config["fs_hidden_units"], config["fs1_context"], config["fs2_context"])
        self.fusion_module = InteractionAggregation(
            config["mlp1_hidden_units"][-1], config["mlp2_hidden_units"][-1], output_dim=1, num_heads=config["num_heads"]
        )
        finish(self, train)

    def forward(self, inputs):
        ids = self.get_inputs(inputs)
        flat = self.embedding_layer(ids).flatten(start_dim=1)
        first, second = self.fs_module(ids, flat) if self.fs_module is not None else (flat, flat)
        return {"y_pred": self.output_activation(self.fusion_module(self.mlp1(first), self.mlp2(second)))}


class DIN(BaseModel):
    def __init__(self, feature_map, config, train, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.dim = config["embedding_dim"]
        self.targets, self.sequences = config["din_target_field"], config["din_sequence_field"]
        activations = NAMES[config["dnn_activations"]]
        self.embedding_layer = FeatureEmbeddingDict(feature_map, self.dim)
        self.attention_layers = torch.nn.ModuleList(
            DIN_Attention(
                self.dim * len(target),
                attention_units=config["attention_hidden_units"],
                hidden_activations=NAMES[config["attention_hidden_activations"]],
                output_activation=None,
                dropout_rate=config["attention_dropout"],
                use_softmax=config["din_use_softmax"],
            )
            for target in self.targets
        )
        self.dnn = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=config["dnn_hidden_units"],
            hidden_activations=[Dice(units) for units in config["dnn_hidden_units"]] if activations == "Dice" else activations,
            output_activation=self.output_activation,
            dropout_rates=config["net_dropout"],
            batch_norm=config["batch_norm"],
        )
        finish(self, train)

    def forward(self, inputs):
        ids = self.get_inputs(inputs)
        vectors = self.embedding_layer(ids)
        for attention, target, sequence in zip(self.attention_layers, self.targets, self.sequences):
            joined = [torch.cat([vectors[name] for name in names], dim=-1) for names in (target, sequence)]
            pooled = attention(*joined, ids[sequence[0]].long() != 0)
            vectors.update(zip(sequence, pooled.split(self.dim, dim=-1)))
        return {"y_pred": self.dnn(self.embedding_layer.dict2tensor(vectors, flatten_emb=True))}


def finish(model, train):
    model.compile("adam", "binary_crossentropy", train["optimizer"]["lr"])
    model.reset_parameters()
    model.model_to_device()


class Batches:
    """What FuxiCTR's loader gives: dictionaries of tensors, the last one as small as it comes."""

    def __init__(self, rows, size, shuffle):
        self.rows, self.size, self.shuffle = rows, size, shuffle
        self.count = len(rows["label"])

    def __len__(self):
        return -(-self.count // self.size)

    def __iter__(self):
        order = torch.randperm(self.count) if self.shuffle else torch.arange(self.count)
        for chosen in order.split(self.size):
            yield {name: values[chosen] for name, values in self.rows.items()}


def feature_map(config, folder):
    fields = FeatureMap("rows", folder)
    fields.labels = ["label"]
    fields.group_id = "group"
    fields.default_emb_dim = config["embedding_dim"]
    fields.features = OrderedDict()
    for field in config["fields"]:
        spec = {"source": "", "type": field["type"]}
        if field["type"] != "numeric":
            spec |= {"padding_idx": 0, "vocab_size": field["vocab_size"]}
        if field["type"] == "sequence":
            spec |= {"max_len": field["max_len"]}
        if field.get("share_embedding"):
            spec |= {"share_embedding": field["share_embedding"]}
        fields.features[field["name"]] = spec
    fields.num_fields = fields.get_num_fields()
    fields.features["group"] = {"type": "meta"}
    fields.set_column_index()
    return fields


def train(folder, seed):
    meta = json.loads((folder / "meta.json").read_text())
    config, settings = meta["config"], meta["train"]
    parts = {name: load_file(folder / f"{name}.safetensors") for name in ("train", "valid", "test")}
    seed_everything(seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        fields = feature_map(config, scratch)
        (Path(scratch) / "rows").mkdir()
        monitor = {{"auc": "AUC", "gauc": "gAUC", "log_loss": "logloss"}[name]: weight for name, weight in settings["monitor"].items()}
        model = {"finalmlp": FinalMLP, "din": DIN}[meta["preset"]](
            fields,
            config,
            settings,
            model_id="reference",
            gpu=-1,
            monitor=monitor,
            monitor_mode="max",
            early_stop_patience=settings["patience"],
            embedding_regularizer=float(settings["optimizer"]["embedding_l2"]),
            net_regularizer=None,
            task="binary_classification",
            verbose=0,
            model_root=scratch,
            metrics=["AUC", "logloss"],
        )
        epochs = []
        evaluate = model.evaluate

        def counted(*args, **kwargs):
            found = evaluate(*args, **kwargs)
            epochs.append(found)
            return found

        model.evaluate = counted
        model.fit(
            Batches(parts["train"], settings["batch_size"], True),
            epochs=settings["epochs"],
            validation_data=Batches(parts["valid"], settings["eval_batch_size"], False),
            max_gradient_norm=settings["optimizer"]["max_norm"],
        )
        model.evaluate = evaluate
        rows = parts["test"]
        p = model.predict(Batches(rows, settings["eval_batch_size"], False))
        found = evaluate_metrics(rows["label"].double().numpy(), p, ["AUC", "logloss", "gAUC"], rows["group"].numpy())
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    values = [sum(weight * epoch[name] for name, weight in monitor.items()) for epoch in epochs]
    best = int(numpy.argmax(values))
    return {
        "seed": seed,
        "value": float(found["AUC"]),
        "gauc": float(found["gAUC"]),
        "log_loss": float(found["logloss"]),
        "valid": float(values[best]),
        "best_epoch": best + 1,
        "epochs": len(epochs),
        "parameters": parameters,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("folder", type=Path, help="written by `densely train RECIPE --export DIR`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="default: python/reference/<recipe>.json; '-' only prints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    runs = []
    for seed in args.seeds:
        runs.append(train(args.folder, seed))
        print(runs[-1], flush=True)
    values = [run["value"] for run in runs]
    meta = json.loads((args.folder / "meta.json").read_text())
    result = {
        "recipe": args.recipe,
        "size": "full",
        "package": "fuxictr",
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name).split("+")[0] for name in ("fuxictr", "torch")},
        "metric": "auc",
        "direction": "higher",
        "rows": {name: len(load_file(args.folder / f"{name}.safetensors")["label"]) for name in ("train", "valid", "test")},
        "seeds": runs,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "settings": {name: value for name, value in meta["config"].items() if name != "fields"} | {"train": meta["train"]},
        "threads": args.threads,
    }
    print(f"{args.recipe}: auc {result['mean']:.5f} ± {result['sd'] or 0:.5f}")
    if str(args.output) != "-":
        output = args.output or Path(__file__).with_name(f"{args.recipe}.json")
        output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
