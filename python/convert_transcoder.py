"""Turns a transcoder of the paper's released code (jacobdunefsky/transcoder_circuits) into a folder of sae_lens, which Densely opens.

    python python/convert_transcoder.py final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_24576.pt mlp8

Such a file is a pickle: loading it runs what stands in it, so take files from people you trust. Its settings are an object of a class that need not be
installed: a stand-in takes its place. b_dec, which the code takes from its input, is folded into the encoder's bias.
"""

import argparse
import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file


class Anything:
    """In the place of classes that are not installed."""

    def __init__(self, *_args, **_keywords) -> None:
        pass

    def __setstate__(self, state) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if module.split(".")[0] in ("torch", "collections", "numpy"):
            return super().find_class(module, name)
        return Anything


class Pickle:
    """What torch.load asks of a pickle module."""

    Unpickler = Unpickler
    load = staticmethod(lambda file, **_keywords: Unpickler(file).load())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    found = torch.load(arguments.file, map_location="cpu", pickle_module=Pickle, weights_only=False)
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
    arguments.folder.mkdir(parents=True, exist_ok=False)
    save_file({name: xs.contiguous() for name, xs in tensors.items()}, arguments.folder / "sae_weights.safetensors")
    (arguments.folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{arguments.folder}: {d_in} → {d_sae} → {d_out}, on {metadata['hook_name']}; trained on the processed model, so judge it on that")


if __name__ == "__main__":
    main()
