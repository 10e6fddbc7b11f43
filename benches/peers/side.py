"""What every Python side of the comparison does: say what it computes, then measure whenever a line arrives on standard input.

See benches/examples/side.rs for the lines. A bench has `model`, `device`, `train_step()`, `infer()` and `loss_and_gradient_norm()`.
"""

import hashlib
import json
import resource
import sys
import time
import warnings

import torch


def timed(work, device: str) -> float:
    """Milliseconds of `work`: by the clock, on a GPU by its own events."""
    if device != "cpu":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3


def measure(work, device: str) -> list[float]:
    """As in benches/examples/side.rs."""
    times, start = [], time.perf_counter()
    while True:
        times.append(timed(work, device))
        seconds = time.perf_counter() - start
        if len(times) >= 1000 or (seconds > 0.5 and len(times) >= (2 if seconds > 1.5 else 3)):
            return times


def say(line: dict) -> None:
    print(json.dumps(line), flush=True)


def arguments() -> list[str]:
    """WORKLOAD PHASE BATCH DTYPE DEVICE PEER."""
    warnings.filterwarnings("ignore")
    return sys.argv[1:]


def run(bench, phase: str) -> None:
    bench.model.eval()
    outputs = bench.infer().double().cpu().tolist()
    loss, norm = bench.loss_and_gradient_norm() if phase == "train" else (0.0, 0.0)
    bench.model.train(phase == "train")
    work = bench.train_step if phase == "train" else bench.infer
    work()  # compiles
    measure(work, bench.device)  # warm-up
    say({"ready": True, "outputs": outputs[:64], "loss": loss, "gradient_norm": norm, "threads": torch.get_num_threads()})
    for _ in sys.stdin:
        ms = measure(work, bench.device)
        checksum = hashlib.sha256(bench.infer().cpu().numpy().tobytes()).hexdigest() if phase == "infer" else None
        say({"ms": ms, "checksum": checksum})
    say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
