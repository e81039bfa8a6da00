"""Make the golden trajectories: runs of other libraries on synthetic gradients, step by step.

Every case of the table `CASES` becomes one file `<name>.safetensors` beside this script, in the format
`optim-trajectory/1` (see README.md). A file holds the inputs in float32, and the result of another
implementation on them in float64 (`expect/...`, the truth) and in float32 (`peer/...`, for comparison).

    python tests/golden/generate.py                  # all files
    python tests/golden/generate.py --only sgd-plain # one of them (the option can be repeated)

A new rule takes an entry in `RULES` and its cases in `CASES`. A new case takes an entry in `CASES`. Files of
other cases do not change, because each is seeded by its own name.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from peers import Formula, Hyper, Keras, Optax, Torch, adan, lars, radam, sgd_averaged

FORMAT = "optim-trajectory/1"
MAX_FILE_BYTES = 200_000

# ---------------------------------------------------------------------------------------------------------
# Random values of the table. A callable is drawn from the case's own generator; other values are constants.

Draw = Callable[[np.random.Generator], float]


def uniform(low: float, high: float) -> Draw:
    return lambda rng: float(rng.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """10^U(low, high)."""
    return lambda rng: float(10.0 ** rng.uniform(low, high))


def drawn(values: dict, rng: np.random.Generator) -> dict:
    return {name: value(rng) if callable(value) else value for name, value in values.items()}


# ---------------------------------------------------------------------------------------------------------
# Rules


@dataclass(frozen=True)
class Rule:
    """One update rule: its hyperparameters with their defaults, and its peers.

    `momentum` is the hyperparameter that the tensor of that name overrides. `lr` is the peak of the schedule.
    With it, 50 steps move many parameters by about their own size: if a few elements outgrow all others, a
    file's error depends on these few.
    """

    lr: Draw
    momentum: str | None
    defaults: dict
    peers: dict[str, Torch | Optax | Keras | Formula]

    def complete(self, hyper: dict) -> Hyper:
        if unknown := hyper.keys() - self.defaults.keys():
            raise ValueError(f"no such hyperparameter: {', '.join(sorted(unknown))}")
        return Hyper(self.defaults | hyper)

    def check_read(self, peer: str, hyper: Hyper) -> None:
        """Raise an error if a hyperparameter has a value that the peer does not read."""
        embodied = self.defaults | self.peers[peer].fixed
        for name, value in hyper.items():
            if name not in hyper.read and value != embodied[name]:
                raise ValueError(f"{peer} has no {name} = {value}")


DESCENT = {"weight_decay": 0.0, "maximize": False}
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **DESCENT}
ADAM_OPTIONS = {"amsgrad": False, "amsgrad_corrected": False, "eps_corrected": True}
# Keras adds eps before the bias correction. PyTorch does the same with an eps that changes with the step.
UNCORRECTED = {
    "fixed": {"eps_corrected": False},
    "at_step": lambda h, t: {"eps": h["eps"] / math.sqrt(1 - h["beta2"] ** t)},
}
KERAS_ADAM = {"beta1": "beta_1", "beta2": "beta_2", "eps": "epsilon"}
KERAS_ADAM_SLOTS = {"momentum": "exp_avg", "velocity": "exp_avg_sq", "velocity_hat": "max_exp_avg_sq"}
OPTAX_ADAM_SLOTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}


def keras_arguments(**names: str) -> Callable[[Hyper], dict]:
    """Hyperparameters by their names in keras."""
    return lambda h: {argument: h[name] for name, argument in names.items()}


def optax_amsgrad(optax, h: Hyper):
    return optax.scale_by_amsgrad(h["beta1"], h["beta2"], h["eps"])


def optax_rms(optax, h: Hyper) -> list:
    # The momentum comes before the learning rate, as in torch; in optax.rmsprop it comes after.
    scale = optax.scale_by_stddev if h["centered"] else optax.scale_by_rms
    chain = [optax.add_decayed_weights(h["weight_decay"]), scale(h["alpha"], h["eps_root"])]
    return [*chain, optax.trace(h["momentum"])] if h["momentum"] else chain


def optax_lamb(optax, h: Hyper) -> list:
    # A chain without the ratio where optax.lamb would need a mask.
    chain = [
        optax.scale_by_adam(h["beta1"], h["beta2"], h["eps"]),
        optax.add_decayed_weights(h["weight_decay"]),
    ]
    return [*chain, optax.scale_by_trust_ratio()] if h["adapt_undecayed"] or h["weight_decay"] else chain


RULES = {
    "sgd": Rule(
        lr=log_uniform(-4, -3),
        momentum="momentum",
        defaults={"momentum": 0.0, "dampening": 0.0, "nesterov": False, "form": "heavy_ball", **DESCENT},
        peers={
            "torch": Torch(torch.optim.SGD),
            "keras": Keras(
                "SGD",
                keras_arguments(momentum="momentum", nesterov="nesterov"),
                # The velocity of keras has the other sign.
                slots={"momentum": "-momentum_buffer"},
                fixed={"form": "classic"},
                l2=True,
            ),
            "optax": Optax(
                "ema",
                lambda optax, h: [
                    optax.add_decayed_weights(h["weight_decay"]),
                    optax.ema(h["momentum"], debias=False),
                ],
                slots={"ema": "momentum_buffer"},
                fixed={"form": "averaged"},
            ),
            "formula": Formula(sgd_averaged, fixed={"form": "averaged"}),
        },
    ),
    "adam": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="beta1",
        defaults={**ADAM, **ADAM_OPTIONS, "decoupled_weight_decay": False},
        peers={
            "torch": Torch(torch.optim.Adam),
            "torch with eps of the step": Torch(torch.optim.Adam, **UNCORRECTED),
            "keras": Keras(
                "Adam",
                keras_arguments(**KERAS_ADAM, amsgrad="amsgrad"),
                slots=KERAS_ADAM_SLOTS,
                fixed={"eps_corrected": False},
                l2=True,
            ),
            "optax": Optax(
                "scale_by_amsgrad",
                lambda optax, h: [optax.add_decayed_weights(h["weight_decay"]), optax_amsgrad(optax, h)],
                slots=OPTAX_ADAM_SLOTS,
                fixed={"amsgrad": True, "amsgrad_corrected": True},
            ),
        },
    ),
    "adamw": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="beta1",
        defaults={**ADAM, **ADAM_OPTIONS, "weight_decay": 0.01},
        peers={
            "torch": Torch(torch.optim.AdamW),
            "torch with eps of the step": Torch(torch.optim.AdamW, **UNCORRECTED),
            "keras": Keras(
                "AdamW",
                keras_arguments(**KERAS_ADAM, amsgrad="amsgrad", weight_decay="weight_decay"),
                slots=KERAS_ADAM_SLOTS,
                fixed={"eps_corrected": False},
            ),
            "optax": Optax(
                "scale_by_amsgrad",
                lambda optax, h: [optax_amsgrad(optax, h), optax.add_decayed_weights(h["weight_decay"])],
                slots=OPTAX_ADAM_SLOTS,
                fixed={"amsgrad": True, "amsgrad_corrected": True},
            ),
        },
    ),
    "adagrad": Rule(
        lr=log_uniform(-2.2, -1.2),
        momentum=None,
        defaults={
            "lr_decay": 0.0,
            "initial_accumulator_value": 0.0,
            "eps": 1e-10,
            "eps_root": 0.0,
            **DESCENT,
        },
        peers={
            "torch": Torch(torch.optim.Adagrad),
            "optax": Optax(
                "scale_by_rss",
                lambda optax, h: [
                    optax.add_decayed_weights(h["weight_decay"]),
                    optax.scale_by_rss(h["initial_accumulator_value"], h["eps_root"]),
                ],
                slots={"sum_of_squares": "sum"},
                fixed={"eps": 0.0},
            ),
        },
    ),
    "rmsprop": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="momentum",
        defaults={"alpha": 0.99, "eps": 1e-8, "eps_root": 0.0, "momentum": 0.0, "centered": False, **DESCENT},
        peers={
            "torch": Torch(torch.optim.RMSprop),
            "optax": Optax(
                "scale_by_rms / scale_by_stddev, trace",
                optax_rms,
                slots={"nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"},
                fixed={"eps": 0.0},
            ),
        },
    ),
    "adadelta": Rule(
        lr=log_uniform(0, 0.7),
        momentum=None,
        defaults={"rho": 0.9, "eps": 1e-6, **DESCENT},
        peers={"torch": Torch(torch.optim.Adadelta)},
    ),
    "adamax": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="beta1",
        defaults={**ADAM, "eps_after_max": False},
        peers={
            "torch": Torch(torch.optim.Adamax),
            "keras": Keras(
                "Adamax",
                keras_arguments(**KERAS_ADAM),
                slots={"momentum": "exp_avg", "norm": "exp_inf"},
                fixed={"eps_after_max": True},
                l2=True,
            ),
        },
    ),
    "nadam": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="beta1",
        defaults={**ADAM, "momentum_decay": 4e-3, "decoupled_weight_decay": False},
        peers={"torch": Torch(torch.optim.NAdam)},
    ),
    "radam": Rule(
        # The steps before the rectification are as long as the gradients.
        lr=log_uniform(-3.5, -2.7),
        momentum="beta1",
        defaults={
            **ADAM,
            "decoupled_weight_decay": False,
            "eps_corrected": False,
            "rectification_threshold": 5.0,
        },
        peers={
            "torch": Torch(torch.optim.RAdam),
            "optax": Optax(
                "scale_by_radam",
                lambda optax, h: [
                    optax.add_decayed_weights(h["weight_decay"]),
                    optax.scale_by_radam(
                        h["beta1"], h["beta2"], h["eps"], threshold=h["rectification_threshold"]
                    ),
                ],
                slots=OPTAX_ADAM_SLOTS,
                fixed={"eps_corrected": True},
            ),
            "formula": Formula(radam),
        },
    ),
    "lion": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="beta1",
        defaults={"beta1": 0.9, "beta2": 0.99, **DESCENT, "weight_decay": 1e-3},
        peers={
            "optax": Optax(
                "scale_by_lion",
                lambda optax, h: [
                    optax.scale_by_lion(h["beta1"], h["beta2"]),
                    optax.add_decayed_weights(h["weight_decay"]),
                ],
                slots={"mu": "exp_avg"},
            ),
        },
    ),
    "adabelief": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="beta1",
        defaults={**ADAM, "eps": 1e-16, "eps_root": 1e-16},
        peers={
            "optax": Optax(
                "scale_by_belief",
                lambda optax, h: [
                    optax.scale_by_belief(h["beta1"], h["beta2"], h["eps"], h["eps_root"]),
                    optax.add_decayed_weights(h["weight_decay"]),
                ],
                slots=OPTAX_ADAM_SLOTS,
            ),
        },
    ),
    "adan": Rule(
        lr=log_uniform(-2.7, -1.7),
        momentum="beta1",
        defaults={
            **ADAM,
            "beta1": 0.98,
            "beta2": 0.92,
            "beta3": 0.99,
            "eps_root": 0.0,
            "no_prox": False,
            "complement_beta2": False,
        },
        peers={
            "torch": Torch(
                "Adan",
                package="pytorch_optimizer",
                renamed={"no_prox": "weight_decouple"},
                slots={"previous_grad": "-pre_grad"},
                # Its gradient before step 1 has the sign of descent, so the first difference is not 0.
                refused=("maximize",),
            ),
            "optax": Optax(
                "scale_by_adan",
                lambda optax, h: [
                    optax.scale_by_adan(h["beta1"], h["beta2"], h["beta3"], h["eps"], h["eps_root"]),
                    optax.add_decayed_weights(h["weight_decay"]),
                ],
                slots={"m": "exp_avg", "v": "exp_avg_diff", "n": "exp_avg_sq", "g": "pre_grad"},
                fixed={"complement_beta2": True, "no_prox": True},
            ),
            "formula": Formula(adan),
        },
    ),
    "lamb": Rule(
        lr=log_uniform(-2, -1.2),
        momentum="beta1",
        defaults={**ADAM, "eps": 1e-6, "adapt_undecayed": True},
        peers={"optax": Optax("lamb", optax_lamb, slots=OPTAX_ADAM_SLOTS)},
    ),
    "lars": Rule(
        # Relative change of a tensor per step: this rate times the trust coefficient.
        lr=log_uniform(-1, -0.3),
        momentum="momentum",
        defaults={
            "momentum": 0.9,
            "dampening": 0.0,
            "nesterov": False,
            "form": "heavy_ball",
            "trust_coefficient": 1e-3,
            "eps": 0.0,
            "joint_norm": False,
            **DESCENT,
        },
        peers={
            "optax": Optax(
                "lars",
                lambda optax, h: [
                    optax.add_decayed_weights(h["weight_decay"]),
                    optax.scale_by_trust_ratio(trust_coefficient=h["trust_coefficient"], eps=h["eps"]),
                ],
                after_lr=lambda optax, h: [optax.trace(h["momentum"], h["nesterov"])],
                # The trace has the sign of the update.
                slots={"trace": "-momentum_buffer"},
                fixed={"form": "classic", "joint_norm": True},
            ),
            "formula": Formula(lars),
        },
    ),
}

# ---------------------------------------------------------------------------------------------------------
# Tensors. `late` has an entirely zero gradient in the first step that is applied, `idle` in every step.
# The sizes are no multiples of a vector or workgroup width.

SMALL = {"tiny": (3,), "idle": (5,), "matrix": (7, 9), "late": (31,)}
LARGE = {**SMALL, "wide": (130,)}
COMPACT = {"tiny": (3,), "idle": (5,), "matrix": (4, 7), "late": (11,)}

# ---------------------------------------------------------------------------------------------------------
# Per-step values of the `momentum` tensor


def wandering(low: float, high: float) -> Callable:
    """A new random value per step."""
    return lambda rng, steps: rng.uniform(low, high, steps)


def cyclical(low: float, high: float) -> Callable:
    """From `high` down to `low` and back, as the one-cycle schedule moves it."""
    return lambda rng, steps: low + (high - low) / 2 * (1 + np.cos(2 * math.pi * np.arange(steps) / steps))


def zero_at_first(low: float, high: float) -> Callable:
    """0 for some steps, then as `wandering`: torch makes the momentum buffer at the first nonzero value."""

    def values(rng: np.random.Generator, steps: int) -> np.ndarray:
        momentum = rng.uniform(low, high, steps)
        momentum[: rng.integers(3, 8)] = 0.0
        return momentum

    return values


def zero_in_between(low: float, high: float) -> Callable:
    """As `wandering`, with a few steps of 0 in the middle. At 0 torch leaves the buffer as it is."""

    def values(rng: np.random.Generator, steps: int) -> np.ndarray:
        momentum = rng.uniform(low, high, steps)
        start = rng.integers(steps // 3, steps // 2)
        momentum[start : start + rng.integers(2, 6)] = 0.0
        return momentum

    return values


# ---------------------------------------------------------------------------------------------------------
# Cases


@dataclass(frozen=True)
class Group:
    """A parameter group; `overrides` may hold draws, as the hyperparameters of a case may."""

    name: str
    params: tuple[str, ...]
    overrides: dict = field(default_factory=dict)
    lr_factor: float | Draw | None = None


@dataclass(frozen=True)
class Case:
    """One file. Hyperparameters that `hyper` omits have the rule's defaults. `peer` is a peer of the rule.

    `float32_peer` replaces it in the float32 run: the bar is PyTorch's own accuracy if PyTorch has the rule.
    """

    name: str
    rule: str
    hyper: dict
    peer: str = "torch"
    float32_peer: str | None = None
    shapes: dict = field(default_factory=lambda: SMALL)
    steps: tuple[int, int] = (40, 61)  # at least, and fewer than
    zero: tuple[str, ...] = ()  # tensors that are all zero before step 1
    lr: Draw | None = None  # the peak of the schedule, where the rule's own does not suit
    grad_factor: float = 1.0  # all gradients are multiplied by it
    groups: tuple[Group, ...] = ()
    clip: dict | None = None  # {"global_norm": X} or {"value": X}
    momentum: Callable | None = None  # (generator, steps) -> value of each step
    loss_scale: bool = False
    skip_nonfinite: bool = False


MU = uniform(0.5, 0.95)
DAMPENING = uniform(0.1, 0.9)
L2 = log_uniform(-3, -1)
DECAY = log_uniform(-2, 0)
BETA1 = uniform(0.7, 0.95)
BETA2 = uniform(0.9, 0.9995)
EPS = log_uniform(-9, -5)
BETAS = {"beta1": BETA1, "beta2": BETA2}

BETA3 = uniform(0.9, 0.995)
LARGE_EPS = log_uniform(-2, 1)
ROOT = log_uniform(-9, -3)  # eps_root: compared with squares
ADAN = {"beta1": uniform(0.9, 0.99), "beta2": uniform(0.7, 0.95), "beta3": BETA3}
RADAM = {"beta1": BETA1, "beta2": uniform(0.8, 0.999)}  # rectified from step 6 or some steps later
RECTIFICATION = uniform(4.5, 7)
TRUST = log_uniform(-1.7, -1)
WITH_MOMENTUM = log_uniform(-3.5, -2.7)  # the peak for RMSprop: momentum lengthens the steps


def compact(name: str, rule: str, hyper: dict, **others) -> Case:
    """A case on the compact tensors."""
    return Case(name, rule, hyper, shapes=COMPACT, **others)


def layerwise(name: str, rule: str, hyper: dict, **others) -> Case:
    """A compact case in fewer steps, because a wrong norm shows at once."""
    return compact(name, rule, hyper, steps=(24, 27), **others)


def lars_case(name: str, hyper: dict, peer: str = "formula", **others) -> Case:
    """A case in which gradient norms are about as large as the weight decay term and `eps`."""
    return layerwise(name, "lars", hyper, peer=peer, grad_factor=1e-3, **others)


def compact_groups(first: dict, second: dict, third: dict) -> tuple[Group, ...]:
    """The compact tensors in groups with these overrides, the last two with learning rates of their own."""
    return (
        Group("first", ("matrix", "idle"), first),
        Group("second", ("late",), second, lr_factor=uniform(1.1, 3.0)),
        Group("third", ("tiny",), third, lr_factor=uniform(0.2, 0.9)),
    )


ADAMW_GROUPS = (
    Group("decay", ("matrix", "tiny")),
    Group("no_decay", ("late",), {"weight_decay": 0.0}, lr_factor=uniform(1.5, 4.0)),
    Group("own_betas", ("wide", "idle"), {**BETAS, "eps": EPS}, lr_factor=uniform(0.1, 0.9)),
)

LAMB = {**BETAS, "eps": EPS, "weight_decay": DECAY}
JOINT = {
    "form": "classic",
    "joint_norm": True,
    "trust_coefficient": TRUST,
    "weight_decay": L2,
    "eps": LARGE_EPS,
}

BY_KERAS = {"peer": "keras", "float32_peer": "torch with eps of the step"}

CASES = [
    # SGD
    Case("sgd-plain", "sgd", {}),
    Case("sgd-momentum", "sgd", {"momentum": MU}, shapes=LARGE),
    Case("sgd-dampening", "sgd", {"momentum": MU, "dampening": DAMPENING}),
    Case("sgd-nesterov", "sgd", {"momentum": MU, "nesterov": True}),
    Case("sgd-weight-decay", "sgd", {"weight_decay": L2}),
    Case(
        "sgd-momentum-weight-decay-dampening",
        "sgd",
        {"momentum": MU, "weight_decay": L2, "dampening": DAMPENING},
    ),
    Case("sgd-maximize", "sgd", {"momentum": MU, "weight_decay": L2, "maximize": True}),
    Case(
        "sgd-nesterov-weight-decay-maximize",
        "sgd",
        {"momentum": MU, "nesterov": True, "weight_decay": L2, "maximize": True},
    ),
    Case(
        "sgd-groups",
        "sgd",
        {"momentum": MU, "weight_decay": L2},
        shapes=LARGE,
        groups=(
            Group("as_given", ("idle",)),
            Group(
                "no_momentum",
                ("matrix",),
                {"momentum": 0.0, "weight_decay": 0.0},
                lr_factor=uniform(0.2, 0.9),
            ),
            Group("dampened", ("wide",), {"momentum": MU, "dampening": DAMPENING, "weight_decay": L2}),
            Group("nesterov", ("late",), {"momentum": MU, "nesterov": True}, lr_factor=uniform(1.1, 3.0)),
            Group("ascent", ("tiny",), {"maximize": True}, lr_factor=uniform(0.2, 0.9)),
        ),
    ),
    Case("sgd-momentum-override", "sgd", {"momentum": MU, "weight_decay": L2}, momentum=cyclical(0.5, 0.95)),
    Case(
        "sgd-momentum-override-late-buffer",
        "sgd",
        {"momentum": MU, "dampening": DAMPENING, "weight_decay": L2},
        momentum=zero_at_first(0.3, 0.95),
    ),
    Case(
        "sgd-momentum-override-gap",
        "sgd",
        {"momentum": MU, "nesterov": True},
        momentum=zero_in_between(0.3, 0.95),
    ),
    Case("sgd-skip-nonfinite", "sgd", {"momentum": MU, "dampening": DAMPENING}, skip_nonfinite=True),
    # Gradients so small that the 1e-6 added to the norm matters, with a learning rate to match.
    Case(
        "sgd-clip-norm-small",
        "sgd",
        {"momentum": MU},
        lr=log_uniform(3.5, 4),
        grad_factor=1e-7,
        clip={"global_norm": log_uniform(-5.3, -4.5)},
    ),
    # Adam
    Case("adam-betas", "adam", BETAS, shapes=LARGE),
    Case("adam-weight-decay", "adam", {**BETAS, "eps": EPS, "weight_decay": L2}),
    Case("adam-maximize", "adam", {**BETAS, "eps": EPS, "weight_decay": L2, "maximize": True}),
    Case("adam-large-eps", "adam", {**BETAS, "eps": log_uniform(-2, 1)}),
    Case("adam-tiny-eps", "adam", {**BETAS, "eps": 1e-15}),
    Case("adam-beta1-zero", "adam", {"beta1": 0.0, "beta2": BETA2, "eps": EPS}),
    Case(
        "adam-groups",
        "adam",
        {**BETAS, "eps": EPS, "weight_decay": L2},
        shapes=LARGE,
        groups=(
            Group("as_given", ("tiny", "idle")),
            Group(
                "no_decay", ("matrix",), {"beta1": BETA1, "weight_decay": 0.0}, lr_factor=uniform(0.2, 0.9)
            ),
            Group("slow", ("wide",), {**BETAS, "eps": log_uniform(-3, 0)}, lr_factor=uniform(1.1, 3.0)),
            Group("decay", ("late",), {"beta2": BETA2, "eps": 1e-12, "weight_decay": L2}),
        ),
    ),
    Case("adam-momentum-override", "adam", {**BETAS, "eps": EPS}, momentum=wandering(0.6, 0.97)),
    # AdamW
    Case("adamw-weight-decay", "adamw", {**BETAS, "eps": EPS, "weight_decay": DECAY}, shapes=LARGE),
    Case("adamw-no-weight-decay", "adamw", {**BETAS, "eps": EPS, "weight_decay": 0.0}),
    Case("adamw-maximize", "adamw", {**BETAS, "maximize": True}),
    Case(
        "adamw-groups",
        "adamw",
        {**BETAS, "eps": EPS, "weight_decay": DECAY},
        shapes=LARGE,
        groups=ADAMW_GROUPS,
    ),
    Case(
        "adamw-clip-norm",
        "adamw",
        {**BETAS, "eps": EPS, "weight_decay": DECAY},
        shapes=LARGE,
        clip={"global_norm": log_uniform(1.7, 2.5)},
    ),
    Case(
        "adamw-clip-value",
        "adamw",
        {**BETAS, "eps": EPS, "weight_decay": DECAY},
        clip={"value": log_uniform(-1.5, 0.5)},
    ),
    Case("adamw-loss-scale", "adamw", {**BETAS, "eps": EPS, "weight_decay": DECAY}, loss_scale=True),
    Case(
        "adamw-skip-nonfinite",
        "adamw",
        {**BETAS, "eps": EPS, "weight_decay": DECAY},
        loss_scale=True,
        skip_nonfinite=True,
    ),
    Case(
        "adamw-everything",
        "adamw",
        {**BETAS, "eps": EPS, "weight_decay": DECAY},
        shapes=LARGE,
        groups=ADAMW_GROUPS,
        clip={"global_norm": log_uniform(1.7, 2.5)},
        loss_scale=True,
        skip_nonfinite=True,
    ),
    # SGD with other forms of momentum
    compact("sgd-classic", "sgd", {"form": "classic", "momentum": MU}, peer="keras"),
    compact(
        "sgd-classic-nesterov", "sgd", {"form": "classic", "momentum": MU, "nesterov": True}, peer="keras"
    ),
    compact(
        "sgd-classic-weight-decay-maximize",
        "sgd",
        {"form": "classic", "momentum": MU, "weight_decay": L2, "maximize": True},
        peer="keras",
    ),
    compact(
        "sgd-classic-momentum-override",
        "sgd",
        {"form": "classic", "momentum": MU, "nesterov": True},
        peer="keras",
        momentum=cyclical(0.5, 0.95),
    ),
    compact("sgd-averaged", "sgd", {"form": "averaged", "momentum": MU}, peer="optax"),
    compact(
        "sgd-averaged-weight-decay-maximize",
        "sgd",
        {"form": "averaged", "momentum": MU, "weight_decay": L2, "maximize": True},
        peer="optax",
    ),
    compact(
        "sgd-averaged-momentum-override",
        "sgd",
        {"form": "averaged", "momentum": MU},
        peer="optax",
        momentum=wandering(0.3, 0.95),
    ),
    compact(
        "sgd-averaged-nesterov",
        "sgd",
        {"form": "averaged", "momentum": MU, "nesterov": True, "weight_decay": L2},
        peer="formula",
    ),
    # Adam with the options of AMSGrad, keras and optax
    compact("adam-amsgrad", "adam", {**BETAS, "amsgrad": True}),
    compact(
        "adam-amsgrad-weight-decay-maximize",
        "adam",
        {**BETAS, "eps": EPS, "weight_decay": L2, "amsgrad": True, "maximize": True},
    ),
    compact(
        "adam-decoupled-weight-decay",
        "adam",
        {**BETAS, "eps": EPS, "weight_decay": DECAY, "decoupled_weight_decay": True},
    ),
    compact(
        "adam-amsgrad-groups",
        "adam",
        {**BETAS, "eps": EPS, "weight_decay": L2},
        groups=compact_groups(
            {"amsgrad": True},
            {**BETAS, "decoupled_weight_decay": True, "weight_decay": DECAY},
            {"amsgrad": True, "beta1": BETA1, "eps": LARGE_EPS, "maximize": True},
        ),
    ),
    # Large and small gradients alternate, without averages. The old one must not mask the new one.
    compact("adam-no-averages", "adam", {"beta1": 0.0, "beta2": 0.0, "eps": EPS}),
    compact(
        "adam-short-averages", "adam", {"beta1": uniform(0.0, 0.3), "beta2": uniform(0.0, 0.3), "eps": EPS}
    ),
    compact("adam-eps-uncorrected", "adam", {**BETAS, "eps": LARGE_EPS, "eps_corrected": False}, **BY_KERAS),
    compact(
        "adam-eps-uncorrected-amsgrad",
        "adam",
        {**BETAS, "eps": LARGE_EPS, "weight_decay": L2, "eps_corrected": False, "amsgrad": True},
        **BY_KERAS,
    ),
    compact(
        "adam-amsgrad-corrected",
        "adam",
        {**BETAS, "eps": EPS, "amsgrad": True, "amsgrad_corrected": True},
        peer="optax",
    ),
    compact(
        "adam-amsgrad-corrected-weight-decay",
        "adam",
        {**BETAS, "eps": LARGE_EPS, "weight_decay": L2, "amsgrad": True, "amsgrad_corrected": True},
        peer="optax",
    ),
    # AdamW with the same options
    compact("adamw-amsgrad", "adamw", {**BETAS, "eps": EPS, "weight_decay": DECAY, "amsgrad": True}),
    compact(
        "adamw-amsgrad-groups",
        "adamw",
        {**BETAS, "eps": EPS, "weight_decay": DECAY, "amsgrad": True},
        groups=compact_groups({}, {"amsgrad": False, "weight_decay": 0.0}, {**BETAS, "maximize": True}),
    ),
    compact(
        "adamw-eps-uncorrected",
        "adamw",
        {**BETAS, "eps": LARGE_EPS, "weight_decay": DECAY, "eps_corrected": False},
        **BY_KERAS,
    ),
    compact(
        "adamw-amsgrad-corrected",
        "adamw",
        {**BETAS, "eps": EPS, "weight_decay": DECAY, "amsgrad": True, "amsgrad_corrected": True},
        peer="optax",
    ),
    # Adagrad
    compact("adagrad", "adagrad", {}),
    compact("adagrad-lr-decay", "adagrad", {"lr_decay": log_uniform(-2, 0)}),
    compact("adagrad-initial-accumulator", "adagrad", {"initial_accumulator_value": log_uniform(-2, 1)}),
    compact("adagrad-eps", "adagrad", {"eps": LARGE_EPS}),
    compact("adagrad-weight-decay", "adagrad", {"weight_decay": L2, "lr_decay": log_uniform(-2, 0)}),
    compact("adagrad-maximize", "adagrad", {"weight_decay": L2, "maximize": True}),
    compact(
        "adagrad-groups",
        "adagrad",
        {"initial_accumulator_value": log_uniform(-2, 1)},
        groups=compact_groups(
            {"lr_decay": log_uniform(-2, 0)},
            {"initial_accumulator_value": 0.0, "weight_decay": L2},
            {"eps": LARGE_EPS, "maximize": True},
        ),
    ),
    compact(
        "adagrad-skip-nonfinite",
        "adagrad",
        {"lr_decay": log_uniform(-1, 0), "eps": EPS},
        loss_scale=True,
        skip_nonfinite=True,
    ),
    compact("adagrad-eps-root", "adagrad", {"eps": 0.0, "eps_root": ROOT}, peer="optax"),
    compact(
        "adagrad-eps-root-initial-accumulator",
        "adagrad",
        {
            "eps": 0.0,
            "eps_root": 1e-7,
            "initial_accumulator_value": 0.1,
            "weight_decay": L2,
            "maximize": True,
        },
        peer="optax",
    ),
    # RMSprop
    compact("rmsprop", "rmsprop", {"alpha": BETA2}),
    compact("rmsprop-eps", "rmsprop", {"alpha": BETA2, "eps": LARGE_EPS}),
    compact("rmsprop-momentum", "rmsprop", {"alpha": BETA2, "eps": EPS, "momentum": MU}, lr=WITH_MOMENTUM),
    compact("rmsprop-centered", "rmsprop", {"alpha": BETA2, "eps": EPS, "centered": True}),
    compact("rmsprop-weight-decay", "rmsprop", {"alpha": BETA2, "eps": EPS, "weight_decay": L2}),
    compact(
        "rmsprop-maximize", "rmsprop", {"alpha": BETA2, "eps": EPS, "weight_decay": L2, "maximize": True}
    ),
    compact(
        "rmsprop-everything",
        "rmsprop",
        {"alpha": BETA2, "eps": EPS, "weight_decay": L2, "momentum": MU, "centered": True, "maximize": True},
        lr=WITH_MOMENTUM,
        clip={"value": log_uniform(-1.5, 0.5)},
        loss_scale=True,
        skip_nonfinite=True,
    ),
    compact(
        "rmsprop-groups",
        "rmsprop",
        {"alpha": BETA2, "eps": EPS},
        lr=WITH_MOMENTUM,
        groups=compact_groups(
            {"centered": True},
            {"momentum": MU, "weight_decay": L2},
            {"alpha": BETA2, "centered": True, "momentum": MU},
        ),
    ),
    compact(
        "rmsprop-momentum-override",
        "rmsprop",
        {"alpha": BETA2, "eps": EPS, "momentum": MU},
        lr=WITH_MOMENTUM,
        momentum=cyclical(0.5, 0.95),
    ),
    compact(
        "rmsprop-centered-short", "rmsprop", {"alpha": uniform(0.02, 0.4), "centered": True, "eps": 1e-3}
    ),
    compact("rmsprop-eps-root", "rmsprop", {"alpha": BETA2, "eps": 0.0, "eps_root": ROOT}, peer="optax"),
    compact(
        "rmsprop-eps-root-centered",
        "rmsprop",
        {"alpha": BETA2, "eps": 0.0, "eps_root": ROOT, "centered": True},
        peer="optax",
    ),
    compact(
        "rmsprop-eps-root-momentum",
        "rmsprop",
        {"alpha": BETA2, "eps": 0.0, "eps_root": ROOT, "momentum": MU, "weight_decay": L2, "maximize": True},
        peer="optax",
        lr=WITH_MOMENTUM,
    ),
    # Adadelta
    compact("adadelta", "adadelta", {"rho": BETA2}),
    compact("adadelta-eps", "adadelta", {"rho": BETA2, "eps": log_uniform(-5, -2)}),
    compact("adadelta-weight-decay", "adadelta", {"rho": BETA2, "weight_decay": L2}),
    compact("adadelta-maximize", "adadelta", {"rho": BETA2, "weight_decay": L2, "maximize": True}),
    compact(
        "adadelta-groups",
        "adadelta",
        {"rho": BETA2},
        groups=compact_groups(
            {"weight_decay": L2}, {"rho": BETA2}, {"eps": log_uniform(-5, -2), "maximize": True}
        ),
    ),
    # Adamax
    compact("adamax", "adamax", BETAS),
    compact("adamax-eps", "adamax", {**BETAS, "eps": LARGE_EPS}),
    compact("adamax-weight-decay", "adamax", {**BETAS, "eps": EPS, "weight_decay": L2}),
    compact("adamax-maximize", "adamax", {**BETAS, "eps": EPS, "weight_decay": L2, "maximize": True}),
    compact(
        "adamax-groups",
        "adamax",
        {**BETAS, "eps": EPS},
        groups=compact_groups({"weight_decay": L2}, {**BETAS, "eps": LARGE_EPS}, {"maximize": True}),
    ),
    compact("adamax-momentum-override", "adamax", {**BETAS, "eps": EPS}, momentum=wandering(0.6, 0.97)),
    compact(
        "adamax-eps-after-max", "adamax", {**BETAS, "eps": LARGE_EPS, "eps_after_max": True}, peer="keras"
    ),
    compact(
        "adamax-eps-after-max-weight-decay",
        "adamax",
        {**BETAS, "eps": EPS, "weight_decay": L2, "eps_after_max": True, "maximize": True},
        peer="keras",
    ),
    # NAdam
    compact("nadam", "nadam", BETAS),
    compact("nadam-eps", "nadam", {**BETAS, "eps": LARGE_EPS}),
    compact("nadam-momentum-decay", "nadam", {**BETAS, "eps": EPS, "momentum_decay": log_uniform(-2, 0)}),
    compact("nadam-weight-decay", "nadam", {**BETAS, "eps": EPS, "weight_decay": L2}),
    compact(
        "nadam-decoupled-weight-decay",
        "nadam",
        {**BETAS, "eps": EPS, "weight_decay": DECAY, "decoupled_weight_decay": True},
    ),
    compact("nadam-maximize", "nadam", {**BETAS, "eps": EPS, "weight_decay": L2, "maximize": True}),
    compact(
        "nadam-groups",
        "nadam",
        {**BETAS, "eps": EPS, "weight_decay": L2},
        groups=compact_groups(
            {"momentum_decay": log_uniform(-2, 0)},
            {**BETAS, "decoupled_weight_decay": True},
            {"weight_decay": 0.0, "maximize": True},
        ),
    ),
    compact("nadam-momentum-override", "nadam", {**BETAS, "eps": EPS}, momentum=cyclical(0.6, 0.97)),
    compact(
        "nadam-skip-nonfinite",
        "nadam",
        {**BETAS, "eps": EPS, "momentum_decay": log_uniform(-2, 0)},
        loss_scale=True,
        skip_nonfinite=True,
    ),
    # RAdam
    compact("radam", "radam", RADAM),
    compact("radam-eps", "radam", {**RADAM, "eps": LARGE_EPS}),
    # No step is rectified.
    compact(
        "radam-low-beta2", "radam", {"beta1": BETA1, "beta2": uniform(0.4, 0.65)}, lr=log_uniform(-4, -3)
    ),
    compact("radam-weight-decay", "radam", {**RADAM, "eps": EPS, "weight_decay": L2}),
    compact(
        "radam-decoupled-weight-decay",
        "radam",
        {**RADAM, "eps": EPS, "weight_decay": DECAY, "decoupled_weight_decay": True},
    ),
    compact("radam-maximize", "radam", {**RADAM, "eps": EPS, "weight_decay": L2, "maximize": True}),
    compact(
        "radam-groups",
        "radam",
        {**RADAM, "eps": EPS, "weight_decay": L2},
        groups=compact_groups(
            {"beta2": uniform(0.7, 0.8)}, {**RADAM, "decoupled_weight_decay": True}, {"maximize": True}
        ),
    ),
    compact("radam-momentum-override", "radam", {**RADAM, "eps": EPS}, momentum=wandering(0.6, 0.97)),
    compact("radam-skip-nonfinite", "radam", {**RADAM, "eps": EPS}, loss_scale=True, skip_nonfinite=True),
    compact("radam-eps-corrected", "radam", {**RADAM, "eps": LARGE_EPS, "eps_corrected": True}, peer="optax"),
    compact(
        "radam-eps-corrected-threshold",
        "radam",
        {
            **RADAM,
            "eps": EPS,
            "eps_corrected": True,
            "rectification_threshold": RECTIFICATION,
            "weight_decay": L2,
        },
        peer="optax",
    ),
    compact(
        "radam-threshold",
        "radam",
        {**RADAM, "eps": EPS, "rectification_threshold": RECTIFICATION},
        peer="formula",
    ),
    # Lion
    compact("lion", "lion", BETAS, peer="optax"),
    compact("lion-weight-decay", "lion", {**BETAS, "weight_decay": DECAY}, peer="optax"),
    compact("lion-no-weight-decay", "lion", {"weight_decay": 0.0}, peer="optax"),
    compact("lion-maximize", "lion", {**BETAS, "weight_decay": DECAY, "maximize": True}, peer="optax"),
    compact(
        "lion-groups",
        "lion",
        {**BETAS, "weight_decay": DECAY},
        peer="optax",
        groups=compact_groups({"weight_decay": 0.0}, BETAS, {"maximize": True}),
    ),
    compact("lion-momentum-override", "lion", BETAS, peer="optax", momentum=wandering(0.6, 0.97)),
    # AdaBelief
    compact("adabelief", "adabelief", BETAS, peer="optax"),
    compact("adabelief-eps", "adabelief", {**BETAS, "eps": EPS}, peer="optax"),
    compact("adabelief-eps-root", "adabelief", {**BETAS, "eps_root": log_uniform(-12, -6)}, peer="optax"),
    compact(
        "adabelief-weight-decay", "adabelief", {**BETAS, "eps": 1e-12, "weight_decay": DECAY}, peer="optax"
    ),
    compact(
        "adabelief-maximize",
        "adabelief",
        {**BETAS, "eps": EPS, "weight_decay": DECAY, "maximize": True},
        peer="optax",
    ),
    compact(
        "adabelief-groups",
        "adabelief",
        {**BETAS, "eps": EPS},
        peer="optax",
        groups=compact_groups({"weight_decay": DECAY}, {**BETAS, "eps_root": 1e-9}, {"maximize": True}),
    ),
    compact("adabelief-no-mean", "adabelief", {"beta1": 0.0, "beta2": BETA2, "eps": 1e-8}, peer="optax"),
    compact(
        "adabelief-momentum-override",
        "adabelief",
        {**BETAS, "eps": EPS},
        peer="optax",
        momentum=wandering(0.6, 0.97),
    ),
    # Adan
    compact("adan", "adan", ADAN),
    compact("adan-eps", "adan", {**ADAN, "eps": LARGE_EPS}),
    compact("adan-weight-decay", "adan", {**ADAN, "eps": EPS, "weight_decay": DECAY}),
    compact("adan-no-prox", "adan", {**ADAN, "eps": EPS, "weight_decay": DECAY, "no_prox": True}),
    compact("adan-maximize", "adan", {**ADAN, "eps": EPS, "weight_decay": DECAY, "maximize": True}),
    compact(
        "adan-groups",
        "adan",
        {**ADAN, "eps": EPS, "weight_decay": DECAY},
        groups=compact_groups({"no_prox": True}, ADAN, {"weight_decay": 0.0, "maximize": True}),
    ),
    compact("adan-momentum-override", "adan", {**ADAN, "eps": EPS}, momentum=wandering(0.8, 0.99)),
    compact("adan-skip-nonfinite", "adan", {**ADAN, "eps": EPS}, loss_scale=True, skip_nonfinite=True),
    compact("adan-eps-root", "adan", {**ADAN, "eps_root": ROOT}, peer="formula"),
    compact(
        "adan-complement-beta2",
        "adan",
        {**ADAN, "eps": EPS, "weight_decay": DECAY, "complement_beta2": True},
        peer="formula",
    ),
    compact(
        "adan-complement-beta2-no-prox",
        "adan",
        {
            **ADAN,
            "eps": EPS,
            "eps_root": ROOT,
            "weight_decay": DECAY,
            "complement_beta2": True,
            "no_prox": True,
        },
        peer="optax",
    ),
    # LAMB
    layerwise("lamb", "lamb", {}, peer="optax", zero=("late",)),
    layerwise("lamb-eps", "lamb", {**BETAS, "eps": LARGE_EPS}, peer="optax"),
    layerwise("lamb-weight-decay", "lamb", LAMB, peer="optax", zero=("tiny",)),
    layerwise("lamb-maximize", "lamb", {**LAMB, "maximize": True}, peer="optax"),
    layerwise(
        "lamb-groups",
        "lamb",
        LAMB,
        peer="optax",
        groups=compact_groups({}, {"weight_decay": 0.0}, {**BETAS, "eps": LARGE_EPS}),
    ),
    layerwise(
        "lamb-adapt-undecayed",
        "lamb",
        {**LAMB, "adapt_undecayed": False},
        peer="optax",
        groups=compact_groups({"weight_decay": 0.0}, {}, {"weight_decay": 0.0, "adapt_undecayed": True}),
    ),
    layerwise("lamb-momentum-override", "lamb", LAMB, peer="optax", momentum=wandering(0.6, 0.97)),
    layerwise(
        "lamb-everything",
        "lamb",
        LAMB,
        peer="optax",
        groups=compact_groups({}, {"weight_decay": 0.0}, {**BETAS, "maximize": True}),
        clip={"global_norm": log_uniform(1.2, 2.0)},
        loss_scale=True,
        skip_nonfinite=True,
    ),
    # LARS
    lars_case("lars", {"trust_coefficient": TRUST}, zero=("late",)),
    lars_case(
        "lars-weight-decay", {"momentum": MU, "trust_coefficient": TRUST, "weight_decay": L2}, zero=("tiny",)
    ),
    lars_case(
        "lars-nesterov",
        {"momentum": MU, "nesterov": True, "trust_coefficient": TRUST, "weight_decay": L2},
    ),
    # The default trust coefficient, and a learning rate to match.
    lars_case("lars-no-momentum", {"momentum": 0.0}, lr=log_uniform(1, 1.7)),
    lars_case(
        "lars-maximize",
        {"momentum": MU, "trust_coefficient": TRUST, "weight_decay": L2, "eps": LARGE_EPS, "maximize": True},
    ),
    lars_case(
        "lars-dampening",
        {"momentum": MU, "dampening": DAMPENING, "trust_coefficient": TRUST, "weight_decay": L2},
    ),
    lars_case(
        "lars-groups",
        {"trust_coefficient": TRUST, "momentum": MU, "weight_decay": L2},
        groups=compact_groups(
            {"trust_coefficient": TRUST, "weight_decay": 0.0},
            {"momentum": MU, "nesterov": True, "eps": LARGE_EPS},
            {"trust_coefficient": TRUST, "momentum": 0.0, "weight_decay": L2},
        ),
    ),
    lars_case(
        "lars-clip-value-skip",
        {"trust_coefficient": TRUST, "momentum": MU, "weight_decay": L2},
        clip={"value": log_uniform(-2, 0)},
        loss_scale=True,
        skip_nonfinite=True,
    ),
    lars_case("lars-joint-norm", {**JOINT, "momentum": MU}, peer="optax", zero=("late",)),
    lars_case("lars-joint-norm-nesterov", {**JOINT, "momentum": MU, "nesterov": True}, peer="optax"),
]

# ---------------------------------------------------------------------------------------------------------
# Inputs


@dataclass
class Inputs:
    """All inputs of a run, after the random draws. The arrays are those of the file."""

    rule: Rule
    hyper: dict
    groups: list[dict]
    clip: dict | None
    skip_nonfinite: bool
    lr: np.ndarray
    momentum: np.ndarray | None
    loss_scale: np.ndarray | None
    params: dict[str, np.ndarray]
    grads: list[dict[str, np.ndarray]]


def signed_magnitudes(rng: np.random.Generator, shape: tuple, low: float, high: float) -> np.ndarray:
    return 10.0 ** rng.uniform(low, high, shape) * rng.choice([-1.0, 1.0], shape)


def make_lr(rng: np.random.Generator, peak: float, steps: int) -> np.ndarray:
    """Linear warm-up, then cosine to a floor: a different value per step."""
    warmup = int(rng.integers(4, 10))
    floor = peak * rng.uniform(0.02, 0.2)
    t = np.arange(1, steps + 1)
    cosine = floor + (peak - floor) / 2 * (1 + np.cos(math.pi * (t - warmup) / (steps - warmup)))
    return np.where(t <= warmup, peak * t / warmup, cosine)


def make_loss_scale(rng: np.random.Generator, steps: int) -> np.ndarray:
    """A different power of two per step, and a few steps of one float32 that is no power of two."""
    scale = 2.0 ** rng.integers(-3, 17, steps)
    start = int(rng.integers(steps // 3, steps // 2))
    scale[start : start + 3] = np.float32(10.0 ** rng.uniform(1, 4))
    return scale


def make_nonfinite_steps(rng: np.random.Generator, steps: int) -> list[int]:
    """Steps (from 1) to be skipped: the first, two in a row and two more."""
    pair = int(rng.integers(5, steps // 2))
    others = rng.choice(np.arange(steps // 2 + 2, steps + 1), 2, replace=False)
    return [1, pair, pair + 1, *sorted(int(t) for t in others)]


def make_grads(
    rng: np.random.Generator,
    shapes: dict,
    steps: int,
    factor: float,
    first_applied: int,
    varied_norm: bool,
    keep: set[int],
) -> list[dict[str, np.ndarray]]:
    """True gradients, before the loss scale: `factor` times 10^U(-6, 3) with both signs and some exact zeros.

    Half of the elements keep their magnitude and mostly their sign. Small second moments then stay small, and
    first moments do not average out. The other elements draw magnitude and sign at every step. With
    `varied_norm` the whole gradient of a step is scaled down by up to 100, so that a bound on the norm binds
    in some steps only. One step has a gradient of zero; this step is never one of `keep`.
    """
    steady = {name: rng.random(shape) < 0.5 for name, shape in shapes.items()}
    home = {name: signed_magnitudes(rng, shape, -6, 3) for name, shape in shapes.items()}
    void = int(rng.choice([t for t in range(3, steps + 1) if t not in keep])) if varied_norm else None
    grads = []
    for t in range(1, steps + 1):
        step_factor = factor * (10.0 ** rng.uniform(-2, 0) if varied_norm else 1.0)
        step = {}
        for name, shape in shapes.items():
            fresh = signed_magnitudes(rng, shape, -6, 3)
            near = (
                home[name]
                * 10.0 ** rng.uniform(-0.5, 0.0, shape)
                * np.where(rng.random(shape) < 0.8, 1.0, -1.0)
            )
            grad = np.where(steady[name], near, fresh) * step_factor
            grad[rng.random(shape) < 0.06] = 0.0
            if name == "idle" or (name == "late" and t <= first_applied) or t == void:
                grad = np.zeros(shape)
            step[name] = grad.astype(np.float32)
        grads.append(step)
    return grads


def make_inputs(case: Case) -> Inputs:
    """Draw a case. The streams are apart, so that changing one part of a case leaves the others alone."""
    seed = int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:8], "little")
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(8)]
    hyper_rng, lr_rng, momentum_rng, scale_rng, skip_rng, param_rng, grad_rng, group_rng = streams

    rule = RULES[case.rule]
    steps = int(lr_rng.integers(*case.steps))
    hyper = drawn(case.hyper, hyper_rng)
    clip = None if case.clip is None else drawn(case.clip, hyper_rng)
    groups = []
    for group in case.groups:
        entry = {
            "name": group.name,
            "params": list(group.params),
            "overrides": drawn(group.overrides, group_rng),
        }
        if group.lr_factor is not None:
            entry |= drawn({"lr_factor": group.lr_factor}, group_rng)
        groups.append(entry)
    if groups and sorted(name for group in groups for name in group["params"]) != sorted(case.shapes):
        raise ValueError(f"{case.name}: the groups do not hold every tensor once")

    params = {}
    for name, shape in case.shapes.items():
        param = signed_magnitudes(param_rng, shape, -3, 1)
        param[(param_rng.random(shape) < 0.08) | (name in case.zero)] = 0.0
        params[name] = param.astype(np.float32)

    nonfinite = make_nonfinite_steps(skip_rng, steps) if case.skip_nonfinite else []
    first_applied = next(t for t in range(1, steps + 1) if t not in nonfinite)
    varied_norm = clip is not None and "global_norm" in clip
    grads = make_grads(
        grad_rng,
        case.shapes,
        steps,
        factor=case.grad_factor,
        first_applied=first_applied,
        varied_norm=varied_norm,
        keep={*nonfinite, first_applied},
    )
    loss_scale = make_loss_scale(scale_rng, steps) if case.loss_scale else None
    if loss_scale is not None:
        for t, step in enumerate(grads):
            for name in step:
                step[name] = step[name] * np.float32(loss_scale[t])
    tensors = skip_rng.permutation(list(case.shapes))
    for i, t in enumerate(nonfinite):
        grad = grads[t - 1][str(tensors[i % len(tensors)])]
        grad.reshape(-1)[skip_rng.integers(grad.size)] = (np.nan, np.inf, -np.inf)[i % 3]

    return Inputs(
        rule=rule,
        hyper=hyper,
        groups=groups,
        clip=clip,
        skip_nonfinite=case.skip_nonfinite,
        lr=make_lr(lr_rng, (case.lr or rule.lr)(lr_rng), steps),
        momentum=None if case.momentum is None else case.momentum(momentum_rng, steps),
        loss_scale=loss_scale,
        params=params,
        grads=grads,
    )


# ---------------------------------------------------------------------------------------------------------
# Runs


def run(inputs: Inputs, peer_name: str, dtype: torch.dtype) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Run the peer on the inputs in `dtype`.

    Returns the final parameters and state, named as in the file (`param/NAME`, `SLOT/NAME`), and how many
    steps were skipped or clipped. The float32 inputs are cast first; all that follows is done in `dtype`.
    """
    rule, peer = inputs.rule, inputs.rule.peers[peer_name]
    # Torch keeps scalars of the state in the default type: the truth needs NAdam's product in float64.
    torch.set_default_dtype(dtype)
    params = {name: torch.tensor(value).to(dtype) for name, value in inputs.params.items()}
    groups = inputs.groups or [{"params": list(params), "overrides": {}}]
    runs = [
        peer.start(
            {name: params[name].numpy() for name in group["params"]},
            rule.complete(inputs.hyper | group["overrides"]),
        )
        for group in groups
    ]
    counts = {"skipped": 0, "clipped": 0}
    for t, grads in enumerate(inputs.grads):
        override = {} if inputs.momentum is None else {rule.momentum: float(inputs.momentum[t])}
        for name, param in params.items():
            param.grad = torch.tensor(grads[name]).to(dtype)
            if inputs.loss_scale is not None:
                param.grad /= float(inputs.loss_scale[t])
        if inputs.skip_nonfinite and not all(bool(torch.isfinite(p.grad).all()) for p in params.values()):
            counts["skipped"] += 1
            continue
        counts["clipped"] += clip_grads(list(params.values()), inputs.clip)
        for group, group_run in zip(groups, runs, strict=True):
            hyper = rule.complete(inputs.hyper | group["overrides"] | override)
            negate = hyper["maximize"] and not peer.maximizes
            group_run.step(
                {
                    name: (-params[name].grad if negate else params[name].grad).numpy()
                    for name in group["params"]
                },
                float(inputs.lr[t]) * group.get("lr_factor", 1.0),
                hyper,
            )
            rule.check_read(peer_name, hyper)

    result = {name: value for group_run in runs for name, value in group_run.result().items()}
    assert {value.dtype for value in result.values()} == {torch.zeros(0).numpy().dtype}
    return result, counts


def clip_grads(params: list[torch.Tensor], clip: dict | None) -> bool:
    """Clip in place; true if it changed anything."""
    match clip:
        case None:
            return False
        case {"global_norm": bound}:
            return bool(torch.nn.utils.clip_grad_norm_(params, bound, foreach=False) > bound)
        case {"value": bound}:
            changed = any(bool((p.grad.abs() > bound).any()) for p in params)
            torch.nn.utils.clip_grad_value_(params, bound, foreach=False)
            return changed
    raise ValueError(f"unknown clip {clip}")


# ---------------------------------------------------------------------------------------------------------
# Files

DTYPES = {np.dtype("<f8"): "F64", np.dtype("<f4"): "F32"}


def safetensors_bytes(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Serialize as safetensors, in an order of our own.

    The safetensors package writes the metadata in a random order, and a file must come out the same, byte
    by byte, each time it is made. Float64 comes first, which keeps every tensor aligned.
    """
    header: dict = {"__metadata__": metadata}
    data = bytearray()
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        raw = np.ascontiguousarray(tensors[name]).tobytes()
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def make_file(case: Case) -> tuple[bytes, str]:
    """The bytes of a case's file and a line about it."""
    inputs = make_inputs(case)
    expect, counts = run(inputs, case.peer, torch.float64)
    float32_peer = case.float32_peer or case.peer
    peer, peer_counts = run(inputs, float32_peer, torch.float32)
    if float32_peer != case.peer:
        # Two libraries must give the same truth.
        other, _ = run(inputs, float32_peer, torch.float64)
        for name, value in expect.items():
            assert np.abs(value - other[name]).max() <= 1e-13 * np.abs(value).max(), f"{case.name}: {name}"
    steps = len(inputs.lr)
    assert counts == peer_counts and expect.keys() == peer.keys(), case.name
    assert all(np.isfinite(value).all() for value in (*expect.values(), *peer.values())), case.name
    assert (counts["skipped"] > 0) == case.skip_nonfinite, case.name
    assert case.clip is None or steps // 5 <= counts["clipped"], f"{case.name}: clipping rarely binds"
    if case.clip is not None and "global_norm" in case.clip:
        assert (
            counts["clipped"] + counts["skipped"] <= steps - steps // 5
        ), f"{case.name}: clipping nearly always binds"

    producer = inputs.rule.peers[case.peer].source()
    if float32_peer != case.peer:
        producer += f" in float64, {inputs.rule.peers[float32_peer].source()} in float32"
    metadata = {
        "format": FORMAT,
        "source": f"{producer}, synthetic gradients (tests/golden/generate.py)",
        "optimizer": json.dumps({"rule": case.rule, **inputs.hyper}),
    }
    if inputs.clip is not None:
        metadata["clip"] = json.dumps(inputs.clip)
    if inputs.groups:
        metadata["groups"] = json.dumps(inputs.groups)
    if inputs.skip_nonfinite:
        metadata["skip_nonfinite"] = "true"

    tensors = {"lr": inputs.lr}
    if inputs.momentum is not None:
        tensors["momentum"] = inputs.momentum
    if inputs.loss_scale is not None:
        tensors["loss_scale"] = inputs.loss_scale
    tensors |= {f"param/{name}": value for name, value in inputs.params.items()}
    for t, grads in enumerate(inputs.grads, start=1):
        tensors |= {f"grad/{t}/{name}": value for name, value in grads.items()}
    tensors |= {f"expect/{name}": value for name, value in expect.items()}
    tensors |= {f"peer/{name}": value for name, value in peer.items()}

    data = safetensors_bytes(tensors, metadata)
    assert len(data) <= MAX_FILE_BYTES, f"{case.name}: {len(data)} bytes"
    summary = f"{case.name}: {steps} steps, {len(data)} bytes"
    summary += "".join(f", {count} {what}" for what, count in counts.items() if count)
    return data, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="make this case only; can be repeated"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory to write to")
    arguments = parser.parse_args()
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names), "two cases have one name"
    if unknown := set(arguments.only or ()) - set(names):
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")

    # One thread, so that the order of the sums in a norm does not depend on the machine.
    torch.set_num_threads(1)
    for case in CASES:
        if arguments.only is None or case.name in arguments.only:
            data, summary = make_file(case)
            (arguments.out / f"{case.name}.safetensors").write_bytes(data)
            print(summary)


if __name__ == "__main__":
    main()
