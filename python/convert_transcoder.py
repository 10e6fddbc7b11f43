"""Turns a transcoder of the paper's released code (jacobdunefsky/transcoder_circuits) into a folder of sae_lens, which Densely opens.

    python python/convert_transcoder.py final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_24576.pt mlp8

Such a file is a pickle, and a pickle can name any function to be run: only what builds tensors and settings is let through, and any other name ends the
conversion. Its settings are an object of a class that need not be installed: a stand-in takes its place. b_dec, which the code takes from its input, is
folded into the encoder's bias. The folder appears whole or not at all.
"""

import argparse
import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
# What a file may name, and no more: none of these runs what else stands in it.
ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "device"),
    ("torch", "Size"),
    ("torch.storage", "TypedStorage"),
    ("torch.storage", "UntypedStorage"),
    ("numpy", "dtype"),
    *(("torch", f"{name}Storage") for name in STORAGES),
    *(("torch", name) for name in DTYPES),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
}
# The settings' classes, wherever the code that wrote the file kept them.
SETTINGS = {"LanguageModelSAERunnerConfig", "CacheActivationsRunnerConfig", "RunnerConfig"}


class Settings:
    """In the place of the settings' classes."""

    def __init__(self, *_args, **_keywords) -> None:
        pass

    def __setstate__(self, state) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) in ALLOWED:
            return super().find_class(module, name)
        if name in SETTINGS:
            return Settings
        raise pickle.UnpicklingError(f"the file names {module}.{name}, which no transcoder of the paper does: it is not loaded")


class Pickle:
    """What torch.load asks of a pickle module."""

    Unpickler = Unpickler
    load = staticmethod(lambda file, **keywords: Unpickler(file, **keywords).load())


def convert(found: dict) -> tuple[dict, dict]:
    """The tensors and the settings of a folder of sae_lens."""
    weights = {name: found["state_dict"][name].float() for name in ("W_enc", "b_enc", "W_dec", "b_dec", "b_dec_out")}
    settings = vars(found["cfg"]) if hasattr(found["cfg"], "__dict__") else dict(found["cfg"])
    folded = weights["b_enc"].double() - weights["b_dec"].double() @ weights["W_enc"].double()
    tensors = {"W_enc": weights["W_enc"], "W_dec": weights["W_dec"], "b_enc": folded.float(), "b_dec": weights["b_dec_out"]}
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    metadata = {
        "model_name": settings.get("model_name"),
        "hook_name": settings.get("hook_point"),
        "hook_name_out": settings.get("out_hook_point"),
        "context_size": settings.get("context_size"),
        "prepend_bos": True,
        "dataset_path": settings.get("dataset_path"),
    }
    config = {
        "architecture": "transcoder", "d_in": d_in, "d_out": d_out, "d_sae": d_sae, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": metadata,
    }  # fmt: skip
    return {name: xs.contiguous() for name, xs in tensors.items()}, config


def write(folder: Path, tensors: dict, text: str) -> None:
    """Writes the folder under another name, and renames it when it is whole."""
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        save_file(tensors, beside / "sae_weights.safetensors")
        (beside / "cfg.json").write_text(text)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    found = torch.load(arguments.file, map_location="cpu", pickle_module=Pickle, weights_only=False)
    tensors, config = convert(found)
    # Settings that are no JSON end the conversion before anything is written.
    write(arguments.folder, tensors, json.dumps(config, indent=2) + "\n")
    sizes = " → ".join(str(config[name]) for name in ("d_in", "d_sae", "d_out"))
    print(f"{arguments.folder}: {sizes}, on {config['metadata']['hook_name']}; trained on the processed model, so judge it on that")


if __name__ == "__main__":
    main()
