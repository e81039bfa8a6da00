"""Make `scaler.json`: the scale of `torch.amp.GradScaler` over 500 steps with scripted overflows.

    python tests/golden/scaler.py

Each case has the scaler's arguments, one flag per step for an overflow, and the scale after each step.
Overflows are random and come in bursts. The first step overflows too. The scale grows in long stretches
without overflows.
"""

import json
import random
from pathlib import Path

import torch

STEPS = 500
CASES = {
    "default-interval-of-20": {"init_scale": 65536.0, "growth_interval": 20},
    "every-step": {"init_scale": 4.0, "growth_interval": 1},
    "odd-factors": {"init_scale": 1000.0, "growth_factor": 1.5, "backoff_factor": 0.25, "growth_interval": 7},
}


def overflows(rng: random.Random) -> list[bool]:
    found, burst = [True], 0
    while len(found) < STEPS:
        if burst == 0 and rng.random() < 0.03:
            burst = rng.randint(1, 6)
        found.append(burst > 0)
        burst = max(0, burst - 1)
    return found


def scales(arguments: dict, found: list[bool]) -> list[float]:
    scaler = torch.amp.GradScaler("cpu", **arguments)
    param = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=0.1)
    scales = []
    for overflow in found:
        # The scaler creates its scale at the first call of `scale`.
        scaler.scale(param.sum())
        param.grad = torch.full((3,), float("inf") if overflow else 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def main() -> None:
    cases = []
    for name, arguments in CASES.items():
        found = overflows(random.Random(name))
        cases.append(
            {"name": name, "arguments": arguments, "overflow": found, "scale": scales(arguments, found)}
        )
    made_by = f"torch {torch.__version__.split('+')[0]} torch.amp.GradScaler (tests/golden/scaler.py)"
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    Path(__file__).with_suffix(".json").write_text(f'{{"source":"{made_by}","cases":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
