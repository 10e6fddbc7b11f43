"""A checkpoint of MAXIM as its authors give it out (`checkpoint.npz`) as a safetensors file that `densely restore --weights` takes.

    pip install numpy safetensors
    python python/convert_maxim.py checkpoint.npz maxim_sidd.safetensors

The archive holds the optimiser's state, too, which is left out: the file becomes a quarter as large.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np

PREFIXES = ("opt/target/", "params/")
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def torch_name(path: str) -> str:
    """`stage_0_input_conv_0/kernel` → `stage_0_input_conv_0.weight`."""
    *parts, leaf = path.split("/")
    if leaf not in LEAVES:
        raise ValueError(f"{path} is none of {', '.join(LEAVES)}")
    return ".".join([*parts, LEAVES[leaf]])


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """Convolution (h, w, in, out) → (out, in, h, w); transposed convolution → (in, out, h, w), turned by half a circle; layer (in, out) → (out, in)."""
    if not path.endswith("kernel"):
        return value
    if "ConvTranspose" in path:
        return value[::-1, ::-1].transpose(2, 3, 0, 1)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def convert(archive: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's weights by their names in Densely."""
    tensors = {}
    for key, value in archive.items():
        for prefix in PREFIXES:
            if key.startswith(prefix):
                path = key.removeprefix(prefix)
                tensors[torch_name(path)] = np.ascontiguousarray(to_torch(path, value), dtype=np.float32)
    if not tensors:
        raise SystemExit(f"no weights in the archive: expected names that begin with {' or '.join(PREFIXES)}, got {', '.join(list(archive)[:3])}, …")
    return tensors


def main() -> None:
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        archive = np.load(arguments.archive, allow_pickle=False)
        if not hasattr(archive, "files"):
            raise ValueError("it holds one array, not an archive of them")
        with archive:
            tensors = convert({key: archive[key] for key in archive.files if key.startswith(PREFIXES)} or dict.fromkeys(archive.files))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{arguments.archive} is not a checkpoint of MAXIM: {error}") from error
    save_file(tensors, arguments.out)
    print(f"{len(tensors)} tensors, {sum(value.size for value in tensors.values()):,} values in {arguments.out}")


if __name__ == "__main__":
    main()
