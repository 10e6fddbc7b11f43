"""Goldens of numpy's legacy generator, which draws the noise of causal tracing.

Writes crates/interp/tests/goldens/noise.safetensors, f64: for the seeds 1, 2, 7 and 4294967295

  <seed>.randn [64], <seed>.uniform [16] in [-1, 1), <seed>.standard_t.<df> [64], <seed>.chisquare.<df> [64]   each from a fresh generator
  <seed>.randn_odd [7], <seed>.then [5]   seven normal numbers and then five of the same generator: the second of a pair is kept
  <seed>.words [16]                       the first 32-bit words
"""

import numpy
import torch
from common import goldens, save, setup

SEEDS = (1, 2, 7, 4294967295)


def main() -> None:
    tensors = {}
    for seed in SEEDS:
        fresh = lambda: numpy.random.RandomState(seed)
        found = {"randn": fresh().randn(64), "uniform": fresh().uniform(-1, 1, 16)}
        for degrees in (1, 2, 3, 5.5):
            found[f"standard_t.{degrees}"] = fresh().standard_t(degrees, 64)
            found[f"chisquare.{degrees}"] = fresh().chisquare(degrees, 64)
        one = fresh()
        found |= {"randn_odd": one.randn(7), "then": one.randn(5)}
        found["words"] = fresh().randint(0, 2**32, 16, dtype=numpy.uint32).astype(numpy.int64)
        tensors |= {f"{seed}.{name}": torch.from_numpy(values) for name, values in found.items()}
    save(goldens("interp") / "noise.safetensors", "python/goldens/interp_noise.py", tensors, {"seeds": SEEDS}, ("numpy",))


if __name__ == "__main__":
    setup()
    main()
