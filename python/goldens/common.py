"""What every golden script shares: settings that fix the bits, and a file writer that is deterministic.

The safetensors package writes its metadata in the order of a hash map, so two runs give different bytes; `save` below
writes the same format with sorted keys, so that a regenerated file is equal byte for byte when nothing has changed.
"""

import importlib.metadata
import json
import struct
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SIZE_LIMIT = 200 * 1024

_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def setup() -> None:
    """One thread and deterministic kernels: sums do not depend on how work was split."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def goldens(crate: str) -> Path:
    """The folder of committed goldens of a crate."""
    folder = ROOT / "crates" / crate / "tests" / "goldens"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, without local tags such as `+cpu`."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", *packages)}


def randn(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers from a generator of their own, so that the global one is left to the model's initialisation."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def floats(tensor: torch.Tensor) -> list[float]:
    """A float32 tensor as JSON numbers that read back to the same float32."""
    return [float(value) for value in tensor.float()]


def save(path: Path, script: str, tensors: dict[str, torch.Tensor], config, packages: tuple[str, ...] = (), **meta: str) -> None:
    """Writes `tensors` with metadata `config` (JSON), `script`, `versions` (JSON) and `meta`. Same input, same bytes."""
    # Widest type first, then by name: every tensor starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict = {
        "__metadata__": {
            "config": json.dumps(config, sort_keys=True),
            "script": script,
            "versions": json.dumps(versions(*packages), sort_keys=True),
            **meta,
        }
    }
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    body = b""
    for name in order:
        tensor = tensors[name].detach().contiguous()
        data = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    blob = struct.pack("<Q", len(text)) + text + body
    if len(blob) > SIZE_LIMIT:
        raise SystemExit(f"{path.name} has {len(blob)} bytes; goldens stay below {SIZE_LIMIT}: make the case smaller")
    path.write_bytes(blob)
    print(f"{path.relative_to(ROOT)}  {len(blob):,} bytes")
