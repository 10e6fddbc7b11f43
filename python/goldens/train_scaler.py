"""Golden of loss scaling: `torch.amp.GradScaler` on made gradients, of which some are infinite or no numbers.

Writes crates/train/tests/goldens/scaler.safetensors. Keys:
  weight, grad [60, 4]     parameter, and the gradients of the unscaled loss of all steps
  scale [60]               the scale after each step
  output [60, 4]           the parameter after each step (SGD, learning rate 0.1)
The growth interval is 2000, as by default; the script sets it to 7 where the Rust test does, to see growth.
"""

import torch
from common import goldens, randn, save, setup

STEPS, INTERVAL = 60, 7
BAD = {3: float("inf"), 20: float("nan"), 21: float("-inf"), 50: float("inf")}


def main() -> None:
    setup()
    start, grads = randn(4, seed=0), randn(STEPS, 4, seed=1)
    for step, value in BAD.items():
        grads[step, step % 4] = value
    param = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([param], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", growth_interval=INTERVAL)
    scales, outputs = [], []
    for grad in grads:
        optimizer.zero_grad()
        scaler.scale((param * grad).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        outputs.append(param.detach().clone())
    tensors = {"weight": start, "grad": grads, "scale": torch.tensor(scales), "output": torch.stack(outputs)}
    save(goldens("train") / "scaler.safetensors", "python/goldens/train_scaler.py", tensors, {"growth_interval": INTERVAL})


if __name__ == "__main__":
    main()
