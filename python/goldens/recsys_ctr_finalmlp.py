"""Goldens of FinalMLP.

Reference: package `fuxictr`, its gates, bilinear form, embeddings and MLPs in the order of `model_zoo/FinalMLP`. Writes into
crates/recsys/tests/goldens/ files finalmlp_<case>.safetensors, and finalmlp_<case>_train.safetensors with batch statistics and dropout 0:

  weight.<name>    fresh weights + 0.3 * noise, padding rows 0; shared tables under both names, as the package saves them
  input.<name>, label
  output.logit, output.probability, loss (mean binary cross-entropy), grad.<name>
  after.<name>     cases `_train`: running statistics after this one step

Case `dead` leaves the gates at their first weights, where those of an empty context do not learn but for the last bias.
"""

from common import setup
from recsys_ctr_common import BATCH, FinalMLP, TIME, batch, build, ours, perturb, write

SCRIPT = "python/goldens/recsys_ctr_finalmlp.py"
MEAN = "layers.MaskedAveragePooling()"
FIELDS = [
    {"type": "categorical", "name": "user", "vocab_size": 7},
    {"type": "numeric", "name": "price"},
    {"type": "categorical", "name": "item", "vocab_size": 9},
    {"type": "numeric", "name": "age"},
    {"type": "sequence", "name": "seen", "vocab_size": 9, "max_len": TIME, "share_embedding": "item", "encoder": MEAN},
]
CONFIG = {
    "fields": FIELDS,
    "embedding_dim": 4,
    "mlp1_hidden_units": [12, 8],
    "mlp1_dropout": 0.0,
    "mlp1_batch_norm": True,
    "mlp2_hidden_units": [6],
    "mlp2_dropout": 0.0,
    "mlp2_batch_norm": False,
    "use_fs": True,
    "fs_hidden_units": [10],
    "fs1_context": [],
    "fs2_context": [],
    "num_heads": 2,
}


def main() -> None:
    setup()
    cases = {
        "context": {"fs1_context": ["price", "age"], "fs2_context": ["item"]},
        "context_mixed": {"fs1_context": ["item", "seen", "user"], "fs2_context": ["price"], "mlp1_dropout": 0.3, "mlp2_dropout": 0.2},
        "bias": {},
        "dead": {},
        "off": {"use_fs": False, "mlp2_batch_norm": True},
    }
    for case, changes in cases.items():
        for train in (False, True):
            # Dropout has a place among the modules, which moves the names; it does not run in evaluation.
            if train and "mlp1_dropout" in changes:
                continue
            config = CONFIG | changes
            module = build(FinalMLP, config)
            perturb(module, but="fs_module" if case == "dead" else "nothing")
            inputs = batch(FIELDS, BATCH, seed=10)
            run = lambda module, inputs: module(inputs)["logit"]
            write(f"finalmlp_{case}{'_train' if train else ''}", SCRIPT, "finalmlp", ours(config), module, inputs, run, train)


if __name__ == "__main__":
    main()
