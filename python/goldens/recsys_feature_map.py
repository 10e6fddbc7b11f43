"""Goldens of feature maps: what FuxiCTR makes of its own tiny CSV.

Writes crates/recsys/tests/goldens/feature_map.safetensors (keys <split>.<field>: ids i64 [100] or [100, T], numbers f32 [100]) and, into
crates/recsys/tests/data/tiny_csv/fuxictr, FuxiCTR's own feature_map.json and feature_vocab.json.
Metadata `config`: the columns, sizes of the vocabularies, total_features, and the tokens of each field in the order of their ids.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy
import torch
from common import ROOT, goldens, save, setup

TINY = ROOT / "crates" / "recsys" / "tests" / "data" / "tiny_csv"
PLAIN = [
    "userid", "adgroup_id", "pid", "cate_id", "campaign_id", "brand", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
    "occupation",
]
COLUMNS = [
    *({"name": name, "active": True, "dtype": "str", "type": "categorical"} for name in PLAIN),
    {"name": "cms_segid", "active": True, "dtype": "str", "type": "categorical", "min_categr_count": 3},
    {"name": "customer", "active": True, "dtype": "int", "type": "categorical"},
    {"name": "cms_group_id", "active": True, "dtype": "float", "type": "categorical"},
    {"name": "price", "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"},
    {"name": "price_range", "active": True, "dtype": "float", "type": "numeric", "preprocess": "copy_from(price)", "normalizer": "MinMaxScaler"},
    {"name": "price_bucket", "active": True, "dtype": "float", "type": "categorical", "preprocess": "convert_to_bucket(price)", "fill_na": 0},
    {"name": "click_sequence", "active": True, "dtype": "str", "type": "sequence", "splitter": "^", "max_len": 3, "share_embedding": "adgroup_id",
     "feature_encoder": None},
    {"name": "clicks_before", "active": True, "dtype": "str", "type": "sequence", "splitter": "^", "padding": "pre", "min_categr_count": 2,
     "preprocess": "copy_from(click_sequence)", "feature_encoder": None},
    {"name": "latest_clicks", "active": True, "dtype": "str", "type": "sequence", "splitter": "^", "padding": "pre", "max_len": 2,
     "share_embedding": "adgroup_id", "preprocess": "copy_from(click_sequence)", "feature_encoder": None},
]


def main() -> None:
    setup()
    import polars
    from fuxictr.datasets.criteo import CustomizedFeatureProcessor

    with tempfile.TemporaryDirectory() as folder:
        processor = CustomizedFeatureProcessor(
            feature_cols=[dict(column) for column in COLUMNS], label_col={"name": "clk", "dtype": "float"}, dataset_id="tiny_csv", data_root=folder
        )
        tables = {}
        for part in ("train", "valid", "test"):
            # As `read_data`, whose argument `dtypes` newer versions of polars call `schema_overrides`.
            path = TINY / f"{part}_sample.csv"
            header = path.read_text().splitlines()[0].split(",")
            kinds = {name: kind for name, kind in processor.dtype_dict.items() if name in header}
            tables[part] = processor.preprocess(polars.scan_csv(path, schema_overrides=kinds))
        processor.fit(tables["train"], min_categr_count=1)
        tensors = {}
        for part, table in tables.items():
            frame = processor.transform(dict(table.collect().to_pandas().items()))
            for column in COLUMNS:
                values = torch.tensor(numpy.asarray(frame[column["name"]]))
                tensors[f"{part}.{column['name']}"] = values.float() if column["type"] == "numeric" else values.long()
        theirs = TINY / "fuxictr"
        theirs.mkdir(exist_ok=True)
        for name in ("feature_map.json", "feature_vocab.json"):
            shutil.copy(Path(folder) / "tiny_csv" / name, theirs / name)
        features = processor.feature_map.features
        config = {
            "columns": COLUMNS,
            "vocab_sizes": {name: spec["vocab_size"] for name, spec in features.items() if "vocab_size" in spec},
            "total_features": processor.feature_map.total_features,
            "input_length": processor.feature_map.input_length,
            "num_fields": processor.feature_map.num_fields,
            "tokens": json.loads((theirs / "feature_vocab.json").read_text()),
        }
    save(goldens("recsys") / "feature_map.safetensors", "python/goldens/recsys_feature_map.py", tensors, config, packages=("fuxictr", "pandas"))


if __name__ == "__main__":
    main()
