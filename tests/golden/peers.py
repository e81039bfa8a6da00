"""The libraries that run an update rule for `generate.py`, behind one interface.

A peer is one way to run a rule: a class of torch, transformations of optax, a class of keras, or a formula in
NumPy if no library has the option. `peer.start(params, hyper)` starts a run over one group of tensors, which
keep the dtypes of their arrays. `run.step(grads, lr, hyper)` updates them with the hyperparameters of this
step. The gradients include the sign of `maximize`, unless the peer `maximizes`. `run.result()` has the
parameters and the state by their names in a file (`param/NAME`, `SLOT/NAME`).

Hyperparameters have the names of the trajectory format, and all of them are given. A peer need not read all
of them. For the others it uses the rule's defaults, or the values in `fixed`. `generate.py` refuses a case
with another value of a hyperparameter that the peer did not read.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch


class Hyper(dict):
    """Hyperparameters that remember which of them were read."""

    def __init__(self, values: dict) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def in_file(slot: str, name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """State in the form of a file. A minus before the slot's name negates the library's value."""
    return {f"{slot.removeprefix('-')}/{name}": -value if slot.startswith("-") else value}


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package).split('+')[0]}" for package in packages)


# ---------------------------------------------------------------------------------------------------------
# torch


@dataclass(frozen=True)
class Torch:
    """A class of `torch.optim`, or a class with the same interface.

    Its arguments are hyperparameters, except `betas`. `renamed` has other names of its arguments, `slots`
    other names of its state. `refused` are arguments that it has and that are not used.
    `at_step` makes arguments that change with the step t, counted from 1.
    """

    optimizer: type[torch.optim.Optimizer] | str
    package: str = "torch"
    renamed: dict = field(default_factory=dict)
    slots: dict = field(default_factory=dict)
    fixed: dict = field(default_factory=dict)
    refused: tuple = ()
    at_step: Callable[[Hyper, int], dict] = lambda hyper, t: {}

    @property
    def maximizes(self) -> bool:
        return "maximize" not in self.refused

    def source(self) -> str:
        built_on = "" if self.package == "torch" else f" ({versions('torch')})"
        return f"{versions(self.package)} {self.optimizer_class().__name__}{built_on}"

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        if isinstance(self.optimizer, str):
            return getattr(__import__(self.package), self.optimizer)
        return self.optimizer

    def arguments(self, hyper: Hyper) -> dict:
        signature = inspect.signature(self.optimizer_class()).parameters
        arguments = {
            self.renamed.get(name, name): hyper[name]
            for name in hyper
            if self.renamed.get(name, name) in signature and name not in self.refused
        }
        if "betas" in signature:
            arguments["betas"] = tuple(hyper[f"beta{i + 1}"] for i in range(len(signature["betas"].default)))
        return arguments

    def start(self, params: dict[str, np.ndarray], hyper: Hyper) -> "TorchRun":
        return TorchRun(self, params, hyper)


class TorchRun:
    def __init__(self, peer: Torch, params: dict[str, np.ndarray], hyper: Hyper) -> None:
        self.peer = peer
        self.steps = 0
        self.params = {name: torch.tensor(value).requires_grad_() for name, value in params.items()}
        # The plain loop over tensors defines the semantics.
        optimizer = peer.optimizer_class()
        plain = {
            name: False for name in ("foreach", "fused") if name in inspect.signature(optimizer).parameters
        }
        self.optimizer = optimizer(self.params.values(), **peer.arguments(hyper), **plain)

    def step(self, grads: dict[str, np.ndarray], lr: float, hyper: Hyper) -> None:
        self.steps += 1
        arguments = self.peer.arguments(hyper) | self.peer.at_step(hyper, self.steps)
        self.optimizer.param_groups[0].update(arguments, lr=lr)
        for name, param in self.params.items():
            param.grad = torch.tensor(grads[name])
        self.optimizer.step()

    def result(self) -> dict[str, np.ndarray]:
        result = {f"param/{name}": param.detach().numpy() for name, param in self.params.items()}
        for name, param in self.params.items():
            for slot, value in self.optimizer.state.get(param, {}).items():
                if slot != "step" and torch.is_tensor(value) and value.shape == param.shape:
                    result |= in_file(self.peer.slots.get(slot, slot), name, value.numpy())
        return result


# ---------------------------------------------------------------------------------------------------------
# optax


def import_jax():
    """jax with float64 enabled. Arrays of float32 stay float32."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax


@dataclass(frozen=True)
class Optax:
    """A chain of transformations with the learning rate at its end, or before those `after_lr`.

    The transformations are created at every step, because a hyperparameter can change with the step. `slots`
    are the names of the fields in their states.
    """

    name: str
    chain: Callable[[Any, Hyper], list]  # (optax, hyperparameters) -> transformations
    slots: dict
    after_lr: Callable[[Any, Hyper], list] = lambda optax, hyper: []
    fixed: dict = field(default_factory=dict)
    maximizes = False

    def source(self) -> str:
        return f"{versions('optax')} {self.name} ({versions('jax')})"

    def start(self, params: dict[str, np.ndarray], hyper: Hyper) -> "OptaxRun":
        return OptaxRun(self, params, hyper)


class OptaxRun:
    def __init__(self, peer: Optax, params: dict[str, np.ndarray], hyper: Hyper) -> None:
        self.jax = import_jax()
        self.peer = peer
        self.params = {name: self.jax.numpy.asarray(value) for name, value in params.items()}
        self.state = self.chain(hyper, 0.0).init(self.params)

    def chain(self, hyper: Hyper, lr: float):
        import optax

        before, after = self.peer.chain(optax, hyper), self.peer.after_lr(optax, hyper)
        return optax.chain(*before, optax.scale_by_learning_rate(lr), *after)

    def step(self, grads: dict[str, np.ndarray], lr: float, hyper: Hyper) -> None:
        import optax

        updates = {name: self.jax.numpy.asarray(grad) for name, grad in grads.items()}
        updates, self.state = self.chain(hyper, lr).update(updates, self.state, self.params)
        self.params = optax.apply_updates(self.params, updates)

    def result(self) -> dict[str, np.ndarray]:
        result = {f"param/{name}": np.array(value) for name, value in self.params.items()}
        for state in self.state:
            for name, values in state._asdict().items():
                if name in self.peer.slots:
                    for key, value in values.items():
                        result |= in_file(self.peer.slots[name], key, np.array(value))
        return result


# ---------------------------------------------------------------------------------------------------------
# keras


@dataclass(frozen=True)
class Keras:
    """A class of `keras.optimizers`, run by jax. Its arguments are attributes too, set at every step.

    With `l2` the weight decay is added to the gradient before keras gets it: keras decays the parameters.
    """

    name: str
    arguments: Callable[[Hyper], dict]
    slots: dict  # the part of a variable's name after that of the parameter -> slot
    fixed: dict = field(default_factory=dict)
    l2: bool = False
    maximizes = False

    def source(self) -> str:
        return f"{versions('keras')} {self.name} ({versions('jax')})"

    def start(self, params: dict[str, np.ndarray], hyper: Hyper) -> "KerasRun":
        return KerasRun(self, params, hyper)


class KerasRun:
    def __init__(self, peer: Keras, params: dict[str, np.ndarray], hyper: Hyper) -> None:
        import_jax()
        os.environ["KERAS_BACKEND"] = "jax"
        import keras

        self.peer = peer
        # Everything of keras that is not a parameter (the learning rate, state, constants) has this type.
        keras.config.set_floatx(next(iter(params.values())).dtype.name)
        self.params = {name: keras.Variable(value, name=name) for name, value in params.items()}
        self.optimizer = getattr(keras.optimizers, peer.name)(learning_rate=0.0, **peer.arguments(hyper))
        self.optimizer.build(list(self.params.values()))

    def step(self, grads: dict[str, np.ndarray], lr: float, hyper: Hyper) -> None:
        self.optimizer.learning_rate = lr
        for name, value in self.peer.arguments(hyper).items():
            setattr(self.optimizer, name, value)
        if self.peer.l2:
            grads = {
                name: grad + hyper["weight_decay"] * self.params[name].numpy() for name, grad in grads.items()
            }
        self.optimizer.apply([grads[name] for name in self.params])

    def result(self) -> dict[str, np.ndarray]:
        result = {f"param/{name}": variable.numpy() for name, variable in self.params.items()}
        for variable in self.optimizer.variables:
            name, _, slot = variable.name.partition("_")
            if name in self.params and slot in self.peer.slots:
                result |= in_file(self.peer.slots[slot], name, variable.numpy())
        return result


# ---------------------------------------------------------------------------------------------------------
# Formulas, where no library has the option


@dataclass(frozen=True)
class Formula:
    """A function (p, g, state, t, lr, hyperparameters) -> p of one tensor.

    The state is a dictionary of arrays, empty at first.
    """

    update: Callable
    fixed: dict = field(default_factory=dict)
    maximizes = False

    def source(self) -> str:
        return f"{versions('numpy')}, formula of {self.update.__doc__}"

    def start(self, params: dict[str, np.ndarray], hyper: Hyper) -> "FormulaRun":
        return FormulaRun(self, params)


class FormulaRun:
    def __init__(self, peer: Formula, params: dict[str, np.ndarray]) -> None:
        self.peer = peer
        self.params = params
        self.state: dict = {name: {} for name in params}
        self.t = 0

    def step(self, grads: dict[str, np.ndarray], lr: float, hyper: Hyper) -> None:
        self.t += 1
        self.params = {
            name: self.peer.update(param, grads[name], self.state[name], self.t, lr, hyper)
            for name, param in self.params.items()
        }

    def result(self) -> dict[str, np.ndarray]:
        result = {f"param/{name}": param for name, param in self.params.items()}
        for name, state in self.state.items():
            result |= {f"{slot}/{name}": value for slot, value in state.items()}
        return result


def averaged(state: dict, slot: str, beta: float, value: np.ndarray) -> np.ndarray:
    """The moving average of the slot with one more value."""
    state[slot] = beta * state.get(slot, np.zeros_like(value)) + (1 - beta) * value
    return state[slot]


def sgd_averaged(p, g, state, t, lr, h):
    """SGD with averaged momentum"""
    mu = h["momentum"]
    d = g + h["weight_decay"] * p
    v = averaged(state, "momentum_buffer", mu, d)
    return p - lr * (mu * v + (1 - mu) * d if h["nesterov"] else v)


def radam(p, g, state, t, lr, h):
    """RAdam with a choice of the threshold"""
    beta1, beta2, eps = h["beta1"], h["beta2"], h["eps"]
    if h["decoupled_weight_decay"]:
        p = p * (1 - lr * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * p
    m = averaged(state, "exp_avg", beta1, g) / (1 - beta1**t)
    root = np.sqrt(averaged(state, "exp_avg_sq", beta2, g * g))
    bc2 = 1 - beta2**t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / bc2
    if rho <= h["rectification_threshold"]:
        return p - lr * m
    r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
    if h["eps_corrected"]:
        return p - lr * r * m / (root / bc2**0.5 + eps)
    return p - lr * r * bc2**0.5 * m / (root + eps)


def adan(p, g, state, t, lr, h):
    """Adan"""
    beta1, beta2, beta3 = h["beta1"], h["beta2"], h["beta3"]
    weight = 1 - beta2 if h["complement_beta2"] else beta2
    d = g - state.get("pre_grad", g)
    state["pre_grad"] = g
    m = averaged(state, "exp_avg", beta1, g) / (1 - beta1**t)
    v = averaged(state, "exp_avg_diff", beta2, d) / (1 - beta2**t)
    n = averaged(state, "exp_avg_sq", beta3, (g + weight * d) ** 2) / (1 - beta3**t)
    u = (m + weight * v) / (np.sqrt(n + h["eps_root"]) + h["eps"])
    if h["no_prox"]:
        return p * (1 - lr * h["weight_decay"]) - lr * u
    return (p - lr * u) / (1 + lr * h["weight_decay"])


def norm(x: np.ndarray) -> np.floating:
    """The Euclidean norm in the type of the array."""
    return np.sqrt((x * x).sum())


# pytorch_optimizer's LARS has no eps and leaves vectors out.
def lars(p, g, state, t, lr, h):
    """LARS with heavy-ball momentum"""
    mu, dampening, nesterov = h["momentum"], h["dampening"], h["nesterov"]
    trust, weight_decay, eps = h["trust_coefficient"], h["weight_decay"], h["eps"]
    p_norm = norm(p)
    divisor = norm(g) + weight_decay * p_norm + eps
    d = g + weight_decay * p
    if p_norm > 0 and divisor > 0:
        d = trust * p_norm / divisor * d
    if mu == 0:
        return p - lr * d
    # The first value is not dampened, as in torch.
    buffer = mu * state["momentum_buffer"] + (1 - dampening) * d if state else d
    state["momentum_buffer"] = buffer
    return p - lr * (d + mu * buffer if nesterov else buffer)
