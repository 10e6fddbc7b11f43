"""The Python side of prediction for a long table: pandas in chunks, scikit-learn's quantile transform, the package `tabm`, pandas out.

    python benches/peers/predict.py table RUN ROWS TABLE       writes a CSV of made rows that are distributed like the training rows
    python benches/peers/predict.py predict RUN TABLE OUT THREADS [CHUNK]

RUN is a run of a `tabm` preset on numerical columns with the preprocessing `noisy_quantile`; weights, quantiles and the target's scale are
read from it, so that both sides compute the same function. Prints `{"rows": .., "seconds": .., "peak_mb": ..}`.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

WRITTEN_AT_ONCE = 500_000


def pipeline_of(run: Path) -> dict:
    pipeline = json.loads((run / "best" / "preprocess.json").read_text())
    if pipeline["preset"] != "tabm" or pipeline["preprocessor"]["categorical"] or pipeline["config"]["num_embeddings"]:
        raise SystemExit(f"{run}: only runs of `tabm` on numerical columns without embeddings")
    return pipeline


def write_table(run: Path, rows: int, path: Path) -> None:
    import pyarrow
    import pyarrow.csv

    columns = pipeline_of(run)["preprocessor"]["numeric"]
    draw = np.random.default_rng(0)
    schema = pyarrow.schema([(column["name"], pyarrow.float32()) for column in columns])
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for start in range(0, rows, WRITTEN_AT_ONCE):
            n = min(WRITTEN_AT_ONCE, rows - start)
            drawn = [column["transform"]["quantiles"] for column in columns]
            drawn = [np.interp(draw.random(n), np.linspace(0, 1, len(q)), q).astype(np.float32) for q in drawn]
            writer.write_table(pyarrow.table(drawn, schema=schema))


def quantile_transformer(columns: list[dict]):
    """scikit-learn's transformer as if fitted on the training rows."""
    from sklearn.preprocessing import QuantileTransformer

    quantiles = np.array([column["transform"]["quantiles"] for column in columns]).T
    transformer = QuantileTransformer(n_quantiles=len(quantiles), output_distribution="normal")
    transformer.n_quantiles_ = len(quantiles)
    transformer.quantiles_ = quantiles
    transformer.references_ = np.linspace(0, 1, len(quantiles))
    transformer.n_features_in_ = len(columns)
    return transformer


def predict(run: Path, table: Path, out: Path, threads: int, chunk: int) -> dict:
    import pandas
    import tabm
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    pipeline = pipeline_of(run)
    columns, target, config = pipeline["preprocessor"]["numeric"], pipeline["preprocessor"]["target"], pipeline["config"]
    transformer = quantile_transformer(columns)
    sizes = {name: config[name] for name in ("n_num_features", "d_out", "k", "n_blocks", "d_block", "dropout")}
    model = tabm.TabM.make(**sizes, cat_cardinalities=[], arch_type="tabm")
    model.load_state_dict(load_file(run / "best" / "model.safetensors"))
    model.eval()
    names = [column["name"] for column in columns]

    rows, begin = 0, time.perf_counter()
    with torch.inference_mode():
        for piece in pandas.read_csv(table, usecols=names, chunksize=chunk):
            xs = torch.from_numpy(transformer.transform(piece[names].to_numpy(np.float32)).astype(np.float32))
            ys = torch.cat([model(part).squeeze(-1).mean(1) for part in xs.split(8192)]).double().numpy()
            ys = pandas.DataFrame({"prediction": ys * target["std"] + target["mean"]})
            ys.to_csv(out, index=False, mode="w" if rows == 0 else "a", header=rows == 0)
            rows += len(piece)
    return {"rows": rows, "seconds": time.perf_counter() - begin, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    what, run, *rest = sys.argv[1:]
    if what == "table":
        write_table(Path(run), int(rest[0]), Path(rest[1]))
        return
    chunk = int(rest[3]) if len(rest) > 3 else 100_000
    print(json.dumps(predict(Path(run), Path(rest[0]), Path(rest[1]), int(rest[2]), chunk)))


if __name__ == "__main__":
    main()
