"""Make `schedules.json` and `one_cycle.json`: values of torch.optim.lr_scheduler in float64 (see README.md).

    python tests/golden/schedules.py

A new case takes a line in `CASES`. Random metrics are seeded by the name of their case.
"""

import argparse
import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.optim import lr_scheduler

MAX_FILE_BYTES = 200_000


@dataclass(frozen=True)
class Case:
    """One schedule, as in the file. `torch` has the class and its arguments, and nothing else."""

    name: str
    torch: dict
    last: int  # the last t of the file; its values are those of t = 0..=last
    base_lr: float = 0.1
    optimizer: str | None = None  # the class, if the schedule moves the momentum


def noam(t: int, model_size: int, warmup: int) -> float:
    return model_size**-0.5 * min((t + 1) ** -0.5, (t + 1) * warmup**-1.5)


def noam_from_zero(t: int, model_size: int, warmup: int) -> float:
    t = max(t, 1)
    return model_size**-0.5 * min(t**-0.5, t * warmup**-1.5)


def warmup_cosine(t: int, warmup: int, total: int, cycles: float) -> float:
    if t < warmup:
        return t / max(1, warmup)
    progress = (t - warmup) / max(1, total - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * cycles * 2 * progress)))


# The text of each `lambda` in a file. Its numbers are the other arguments of the case.
LAMBDAS = {
    "model_size^-0.5 * min((t+1)^-0.5, (t+1) * warmup^-1.5)": noam,
    "with s = max(t, 1): model_size^-0.5 * min(s^-0.5, s * warmup^-1.5)": noam_from_zero,
    (
        "t / warmup where t < warmup, "
        "then max(0, (1 + cos(pi * 2 * cycles * (t-warmup)/(total-warmup))) / 2)"
    ): warmup_cosine,
}
NOAM, NOAM_FROM_ZERO, WARMUP_COSINE = LAMBDAS


def described(name: str, **arguments) -> dict:
    return {"class": name, **arguments}


def constant(**arguments) -> dict:
    return described("ConstantLR", **arguments)


def linear(**arguments) -> dict:
    return described("LinearLR", **arguments)


def exponential(**arguments) -> dict:
    return described("ExponentialLR", **arguments)


def cosine(**arguments) -> dict:
    return described("CosineAnnealingLR", **arguments)


def polynomial(**arguments) -> dict:
    return described("PolynomialLR", **arguments)


def restarts(**arguments) -> dict:
    return described("CosineAnnealingWarmRestarts", **arguments)


def one_cycle(name: str, total: int, optimizer: str = "SGD", **arguments) -> Case:
    """Up to t = total_steps, one past the end of the last phase; the next step is an error."""
    arguments = {"max_lr": 0.4, "total_steps": total, **arguments}
    return Case(f"one-cycle-{name}", described("OneCycleLR", **arguments), total, optimizer=optimizer)


def plateau(name: str, **arguments) -> Case:
    return Case(f"plateau-{name}", described("ReduceLROnPlateau", **arguments), 250)


CASES = [
    Case("constant", constant(factor=1 / 3, total_iters=70), 200),
    Case("linear-up", linear(start_factor=1 / 3, end_factor=1.0, total_iters=117), 200, base_lr=0.037),
    Case("linear-down", linear(start_factor=1.0, end_factor=0.013, total_iters=170), 200),
    Case("polynomial-1", polynomial(total_iters=161, power=1.0), 200, base_lr=0.0123),
    Case("polynomial-2", polynomial(total_iters=161, power=2.0), 200, base_lr=0.0123),
    Case("polynomial-half", polynomial(total_iters=161, power=0.5), 200, base_lr=0.0123),
    Case("polynomial-3.7", polynomial(total_iters=180, power=3.7), 190, base_lr=0.7),
    Case("exponential", exponential(gamma=0.987), 240),
    Case("exponential-up", exponential(gamma=1.01), 120, base_lr=1e-4),
    Case("step", described("StepLR", step_size=30, gamma=0.1), 300),
    Case("step-uneven", described("StepLR", step_size=47, gamma=0.37), 260, base_lr=0.3),
    Case("multi-step", described("MultiStepLR", milestones=[60, 130, 290], gamma=0.1), 300),
    Case("multi-step-repeated", described("MultiStepLR", milestones=[250, 90, 90, 17, 90], gamma=0.6), 270),
    Case("cosine", cosine(T_max=80), 280),
    Case("cosine-floor", cosine(T_max=137, eta_min=0.0021), 280, base_lr=0.05),
    Case("cosine-short-periods", cosine(T_max=9, eta_min=0.01), 120),
    Case("warm-restarts-1", restarts(T_0=53, T_mult=1), 170),
    Case("warm-restarts-2", restarts(T_0=17, T_mult=2, eta_min=0.003), 260),
    Case("warm-restarts-3", restarts(T_0=11, T_mult=3, eta_min=1e-5), 250, base_lr=0.02),
    one_cycle("default", 400),
    one_cycle("cos-adam", 320, "Adam", pct_start=0.25, base_momentum=0.8, max_momentum=0.97),
    one_cycle(
        "linear", 300, pct_start=0.45, anneal_strategy="linear", div_factor=10.0, final_div_factor=100.0
    ),
    one_cycle("cos-three-phase", 400, pct_start=0.37, three_phase=True),
    one_cycle("linear-three-phase", 300, "Adam", pct_start=0.2, anneal_strategy="linear", three_phase=True),
    one_cycle("no-momentum", 330, pct_start=0.1, cycle_momentum=False),
    one_cycle(
        "no-momentum-linear-three-phase",
        300,
        pct_start=0.3,
        anneal_strategy="linear",
        three_phase=True,
        cycle_momentum=False,
    ),
    one_cycle("short", 10, pct_start=0.33),
    Case("noam", {"class": "LambdaLR", "lambda": NOAM, "model_size": 512, "warmup": 90}, 250, base_lr=1.0),
    Case(
        "noam-from-zero",
        {"class": "LambdaLR", "lambda": NOAM_FROM_ZERO, "model_size": 256, "warmup": 40},
        120,
        base_lr=2.0,
    ),
    Case(
        "warmup-cosine",
        {"class": "LambdaLR", "lambda": WARMUP_COSINE, "warmup": 50, "total": 230, "cycles": 0.5},
        260,
        base_lr=3e-4,
    ),
    Case(
        "warmup-cosine-cycles",
        {"class": "LambdaLR", "lambda": WARMUP_COSINE, "warmup": 0, "total": 150, "cycles": 1.5},
        165,
    ),
    Case(
        "sequential-warmup-cosine",
        described(
            "SequentialLR",
            schedulers=[linear(start_factor=0.01, total_iters=60), cosine(T_max=170, eta_min=1e-4)],
            milestones=[60],
        ),
        260,
        base_lr=0.02,
    ),
    Case(
        "sequential-warmup-early-cosine",
        described(
            "SequentialLR",
            schedulers=[linear(start_factor=0.1, total_iters=80), cosine(T_max=100)],
            milestones=[50],
        ),
        160,
    ),
    Case(
        "sequential-three",
        described(
            "SequentialLR",
            schedulers=[
                linear(start_factor=0.25, total_iters=40),
                constant(factor=0.8, total_iters=1000),
                exponential(gamma=0.98),
            ],
            milestones=[40, 130],
        ),
        220,
    ),
    Case(
        "chained",
        described(
            "ChainedScheduler", schedulers=[constant(factor=0.1, total_iters=60), exponential(gamma=0.99)]
        ),
        200,
    ),
    Case(
        "chained-linear-multi-step",
        described(
            "ChainedScheduler",
            schedulers=[
                linear(start_factor=0.2, total_iters=35),
                described("MultiStepLR", milestones=[80, 140], gamma=0.3),
            ],
        ),
        200,
    ),
    plateau("default"),
    plateau("min-rel", mode="min", factor=0.5, patience=5, threshold=0.0123, threshold_mode="rel"),
    plateau(
        "min-abs-cooldown",
        mode="min",
        factor=0.3,
        patience=3,
        threshold=0.01234,
        threshold_mode="abs",
        cooldown=7,
    ),
    plateau("max-rel", mode="max", factor=0.4, patience=8, threshold=0.00321, threshold_mode="rel"),
    plateau(
        "max-abs-cooldown",
        mode="max",
        factor=0.6,
        patience=4,
        threshold=0.00567,
        threshold_mode="abs",
        cooldown=3,
    ),
    plateau("floor", mode="min", factor=0.5, patience=2, min_lr=0.007),
    # A reduction of at most `eps` is skipped.
    plateau("eps", mode="min", factor=0.7, patience=2, eps=0.004),
    plateau("impatient", mode="min", factor=0.9, patience=0, threshold=0.0),
]


def make_metric(case: Case) -> list[float]:
    """A value for each step: falling (rising for mode max) in spells, with plateaus, noise and setbacks.

    Rounded to four digits; the thresholds of the cases are no multiples of that, so that no comparison is
    decided by rounding.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:8], "little"))
    level, values = 1.0, []
    while len(values) < case.last:
        rate = rng.choice([0.0, 0.003, 0.02, -0.01], p=[0.45, 0.25, 0.2, 0.1])
        noise = rng.choice([0.0, 0.004, 0.03])
        for _ in range(int(rng.integers(5, 40))):
            level *= 1 - rate
            values.append(level * (1 + noise * rng.standard_normal()))
    sign = -1 if case.torch.get("mode") == "max" else 1
    return [round(float(0.2 + value if sign > 0 else 2.0 - value), 4) for value in values[: case.last]]


def build(optimizer: torch.optim.Optimizer, description: dict):
    """The scheduler of a case."""
    arguments = {name: value for name, value in description.items() if name != "class"}
    parts = [build(optimizer, part) for part in arguments.pop("schedulers", ())]
    match description["class"]:
        case "LambdaLR":
            function = LAMBDAS[arguments.pop("lambda")]
            return lr_scheduler.LambdaLR(optimizer, lambda t: function(t, **arguments))
        case "ChainedScheduler":
            return lr_scheduler.ChainedScheduler(parts, optimizer=optimizer)
        case "SequentialLR":
            return lr_scheduler.SequentialLR(optimizer, parts, **arguments)
        case name:
            return getattr(lr_scheduler, name)(optimizer, **arguments)


def make_case(case: Case) -> dict:
    """The case's entry of the file."""
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    moves_momentum = case.optimizer is not None and case.torch.get("cycle_momentum", True)
    arguments = {"momentum": 0.9} if case.optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, case.optimizer or "SGD")([parameter], lr=case.base_lr, **arguments)
    group = optimizer.param_groups[0]
    scheduler = build(optimizer, case.torch)
    metric = make_metric(case) if case.torch["class"] == "ReduceLROnPlateau" else None
    lr, momentum = [], []
    for t in range(case.last + 1):
        lr.append(float(group["lr"]))
        momentum.append(float(group["betas"][0] if "betas" in group else group["momentum"]))
        if t < case.last:
            optimizer.step()
            scheduler.step(*([] if metric is None else [metric[t]]))
    entry = {"name": case.name, "torch": case.torch, "base_lr": case.base_lr}
    if moves_momentum:
        entry["optimizer"] = case.optimizer
    if metric is not None:
        entry["metric"] = metric
    entry["lr"] = lr
    if moves_momentum:
        entry["momentum"] = momentum
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory to write to")
    arguments = parser.parse_args()
    assert len({case.name for case in CASES}) == len(CASES), "two cases have one name"
    # SequentialLR steps its parts in a way that triggers a warning of PyTorch.
    warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step", category=UserWarning)
    torch.set_num_threads(1)
    files = {"schedules.json": [], "one_cycle.json": []}
    for case in CASES:
        file = "one_cycle.json" if case.torch["class"] == "OneCycleLR" else "schedules.json"
        files[file].append(make_case(case))
    for name, entries in files.items():
        # One line per case. json writes floats with enough digits to read back the same value.
        text = "[\n" + ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries) + "\n]\n"
        assert len(text) <= MAX_FILE_BYTES, f"{name}: {len(text)} bytes"
        (arguments.out / name).write_text(text)
        print(f"{name}: {len(entries)} cases, {len(text)} bytes")


if __name__ == "__main__":
    main()
