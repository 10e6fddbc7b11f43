"""The Python side of the comparison: package `tabm` in PyTorch, eager and compiled, on the work of benches/lib.rs.

Prints one JSON line per workload, phase and peer. `cargo xtask bench --peers` runs it in turn with our side. Initial weights and rows
come from the same seeds as ours, so equal checksums show that both sides computed the same function: the sum of the averaged
predictions before training, and after three training steps.

    python benches/peers/tabular.py [NAME ...] [--device cuda] [--compile]
"""

import argparse
import json
import resource
import time

import tabm
import torch
from torch.nn import functional as F

# name -> (arch, blocks, width); 8 numerical features, batch 256, as in benches/lib.rs
WORKLOADS = {
    "tabm-small": ("tabm", 2, 128),
    "tabm-mini-small": ("tabm-mini", 2, 128),
    "tabm-default": ("tabm", 3, 512),
    "tabm-mini-default": ("tabm-mini", 3, 512),
}
FEATURES, BATCH = 8, 256


class Bench:
    def __init__(self, name: str, rows: int, device: str, compiled: bool) -> None:
        arch, n_blocks, d_block = WORKLOADS[name]
        torch.manual_seed(0)
        model = tabm.TabM.make(n_num_features=FEATURES, d_out=1, arch_type=arch, n_blocks=n_blocks, d_block=d_block, dropout=0.0)
        self.model = model.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3, weight_decay=3e-4)
        torch.manual_seed(1)
        self.x = torch.randn(rows, FEATURES)
        self.y = self.x.sum(1).sin().to(device)
        self.x = self.x.to(device)
        self.call = torch.compile(self.model) if compiled else self.model

    def train_step(self) -> None:
        self.model.train()
        ys = self.call(self.x).squeeze(-1)
        loss = F.mse_loss(ys, self.y[:, None].expand_as(ys))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def infer(self) -> torch.Tensor:
        self.model.eval()
        return self.call(self.x).mean((1, 2))


def measure(work, device: str) -> list[float]:
    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    times, start, turn = [], time.perf_counter(), 0
    while True:
        wait()
        begin = time.perf_counter()
        work()
        wait()
        if turn >= 2:
            times.append((time.perf_counter() - begin) * 1e3)
        if turn == 1:
            start = time.perf_counter()  # compiling is not measured
        turn += 1
        if len(times) >= 200 or (len(times) >= 2 and time.perf_counter() - start > 2.0):
            return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    args = parser.parse_args()
    for name, (arch, _, _) in WORKLOADS.items():
        if args.names and not any(part in name for part in args.names):
            continue
        for peer in ("eager", "compiled") if args.compile else ("eager",):
            for phase, rows in (("infer", 1), ("infer", 1024), ("train", BATCH)):
                bench = Bench(name, rows, args.device, peer == "compiled")
                if phase == "infer":
                    checksum = bench.infer().double().sum().item()
                    ms = measure(bench.infer, args.device)
                else:
                    ms = measure(bench.train_step, args.device)
                    fresh = Bench(name, rows, args.device, False)
                    for _ in range(3):
                        fresh.train_step()
                    checksum = fresh.infer().double().sum().item()
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                line = {"workload": name, "model": arch, "phase": phase, "batch": rows, "threads": torch.get_num_threads(), "dtype": "f32"}
                line |= {"device": "cuda:0" if args.device == "cuda" else args.device, "peer": peer, "ms": ms, "checksum": checksum, "peak_mb": peak}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
