"""Make the trajectories of `mixed/`: runs with several rules, one per parameter group.

The truth (`expect/...`) is computed here in float64, from the published formulas, in plain Python without a
library. There is no peer.

    python tests/golden/mixed.py

A new rule takes a function in `RULES`. A new case takes an entry in `CASES`. Files of other cases do not
change, because each is seeded by its own name.
"""

import json
import math
import random
import struct
from pathlib import Path

FORMAT = "optim-trajectory/1"
SOURCE = "tests/golden/mixed.py, float64 from the published formulas"
STEPS = 12
# The step (from 1) that is skipped, because one of its gradients is not finite.
SKIPPED = 5

# ---------------------------------------------------------------------------------------------------------
# Rules. Each updates parameters `p` and state `s` of one tensor from the gradient `g` after clipping, the
# learning rate, the count `t` of steps taken (from 1) and the hyperparameters `h` of this step.


def zeros(s, slot, p):
    return s.setdefault(slot, [0.0] * len(p))


def moments(p, g, s, t, h):
    """The bias-corrected mean and the root of the bias-corrected mean square."""
    m, v = zeros(s, "exp_avg", p), zeros(s, "exp_avg_sq", p)
    for i, d in enumerate(g):
        m[i] = h["beta1"] * m[i] + (1 - h["beta1"]) * d
        v[i] = h["beta2"] * v[i] + (1 - h["beta2"]) * d * d
    mean = [x / (1 - h["beta1"] ** t) for x in m]
    root = [math.sqrt(x) / math.sqrt(1 - h["beta2"] ** t) for x in v]
    return mean, root


def adamw(p, g, s, lr, t, h):
    mean, root = moments(p, g, s, t, h)
    for i in range(len(p)):
        p[i] -= lr * h["weight_decay"] * p[i]
        p[i] -= lr * mean[i] / (root[i] + h["eps"])


def lamb(p, g, s, lr, t, h):
    mean, root = moments(p, g, s, t, h)
    u = [m / (r + h["eps"]) + h["weight_decay"] * x for m, r, x in zip(mean, root, p)]
    p_norm, u_norm = math.hypot(*p), math.hypot(*u)
    ratio = p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0
    for i in range(len(p)):
        p[i] -= lr * ratio * u[i]


def sgd(p, g, s, lr, t, h):
    d = [x + h["weight_decay"] * y for x, y in zip(g, p)]
    if h["momentum"]:
        if "momentum_buffer" not in s:
            s["momentum_buffer"] = list(d)
        else:
            s["momentum_buffer"] = [
                h["momentum"] * b + (1 - h["dampening"]) * x for b, x in zip(s["momentum_buffer"], d)
            ]
        buffer = s["momentum_buffer"]
        d = [x + h["momentum"] * b for x, b in zip(d, buffer)] if h["nesterov"] else buffer
    for i in range(len(p)):
        p[i] -= lr * d[i]


def rmsprop(p, g, s, lr, t, h):
    v = zeros(s, "square_avg", p)
    mean = zeros(s, "grad_avg", p) if h["centered"] else None
    buffer = zeros(s, "momentum_buffer", p) if h["momentum"] else None
    for i, x in enumerate(g):
        d = x + h["weight_decay"] * p[i]
        v[i] = h["alpha"] * v[i] + (1 - h["alpha"]) * d * d
        square = v[i]
        if h["centered"]:
            mean[i] = h["alpha"] * mean[i] + (1 - h["alpha"]) * d
            square -= mean[i] ** 2
        step = d / (math.sqrt(square) + h["eps"])
        if h["momentum"]:
            buffer[i] = h["momentum"] * buffer[i] + step
            step = buffer[i]
        p[i] -= lr * step


def adagrad(p, g, s, lr, t, h):
    if "sum" not in s:
        s["sum"] = [h["initial_accumulator_value"]] * len(p)
    rate = lr / (1 + (t - 1) * h["lr_decay"])
    for i, x in enumerate(g):
        d = x + h["weight_decay"] * p[i]
        s["sum"][i] += d * d
        p[i] -= rate * d / (math.sqrt(s["sum"][i]) + h["eps"])


def nadam(p, g, s, lr, t, h):
    m, v = zeros(s, "exp_avg", p), zeros(s, "exp_avg_sq", p)
    mu = h["beta1"] * (1 - 0.5 * 0.96 ** (t * h["momentum_decay"]))
    mu_next = h["beta1"] * (1 - 0.5 * 0.96 ** ((t + 1) * h["momentum_decay"]))
    product = s["product"] = s.get("product", 1.0) * mu
    for i, x in enumerate(g):
        d = x + h["weight_decay"] * p[i]
        m[i] = h["beta1"] * m[i] + (1 - h["beta1"]) * d
        v[i] = h["beta2"] * v[i] + (1 - h["beta2"]) * d * d
        root = math.sqrt(v[i] / (1 - h["beta2"] ** t)) + h["eps"]
        p[i] -= lr * (1 - mu) / (1 - product) * d / root
        p[i] -= lr * mu_next / (1 - product * mu_next) * m[i] / root


# The rule, the hyperparameter that tensor `momentum` replaces, and the defaults.
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
RULES = {
    "adamw": (adamw, "beta1", ADAM | {"weight_decay": 0.01}),
    "lamb": (lamb, "beta1", ADAM | {"eps": 1e-6}),
    "nadam": (nadam, "beta1", ADAM | {"momentum_decay": 4e-3}),
    "sgd": (sgd, "momentum", {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}),
    "rmsprop": (
        rmsprop,
        "momentum",
        {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False, "weight_decay": 0.0},
    ),
    "adagrad": (
        adagrad,
        None,
        {"eps": 1e-10, "lr_decay": 0.0, "initial_accumulator_value": 0.0, "weight_decay": 0.0},
    ),
}

# ---------------------------------------------------------------------------------------------------------
# Cases. A group's tensors are `(name, shape)`. The sizes are not multiples of four, so that tensors of
# different groups share vectors.

CASES = {
    # The last group has the file's own rule.
    "adamw-sgd-lamb": {
        "optimizer": {"rule": "lamb", "weight_decay": 0.013, "beta2": 0.97},
        "groups": [
            {
                "name": "hidden",
                "tensors": [("matrix", (7, 9)), ("idle", (5,))],
                "optimizer": {"rule": "adamw", "beta2": 0.95, "weight_decay": 0.1},
            },
            {
                "name": "biases",
                "tensors": [("bias", (11,)), ("gain", (3,))],
                "optimizer": {"rule": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.003},
                "lr_factor": 2.5,
            },
            {"name": "embedding", "tensors": [("embedding", (6, 5)), ("head", (13,))]},
        ],
        "clip": {"global_norm": 1.0},
        "scaled": False,
        "momentum": False,
    },
    # A momentum schedule, which Adagrad ignores. The third group overrides the file's own rule. The fourth
    # has that rule unchanged, and keeps a velocity only because of the schedule.
    "momentum-schedule": {
        "optimizer": {"rule": "rmsprop", "alpha": 0.93},
        "groups": [
            {
                "name": "a",
                "tensors": [("matrix", (5, 7)), ("idle", (3,))],
                "optimizer": {"rule": "nadam", "beta2": 0.96, "momentum_decay": 0.03},
            },
            {
                "name": "b",
                "tensors": [("bias", (9,))],
                "optimizer": {"rule": "adagrad", "lr_decay": 0.07},
                "lr_factor": 0.5,
            },
            {
                "name": "c",
                "tensors": [("gain", (17,))],
                "overrides": {"centered": True, "weight_decay": 0.02},
                "lr_factor": 1.5,
            },
            {"name": "d", "tensors": [("head", (2, 3))]},
        ],
        "clip": {"value": 0.75},
        "scaled": True,
        "momentum": True,
    },
    "everything": {
        "optimizer": {"rule": "adamw", "beta2": 0.96, "weight_decay": 0.05},
        "groups": [
            {
                "name": "biases",
                "tensors": [("bias", (11,)), ("gain", (3,))],
                "optimizer": {"rule": "sgd", "momentum": 0.9, "dampening": 0.2},
                "lr_factor": 3.0,
            },
            {"name": "hidden", "tensors": [("matrix", (7, 9))], "lr_factor": 0.5},
            {"name": "plain", "tensors": [("idle", (5,)), ("row", (1,))], "overrides": {"weight_decay": 0.0}},
            {
                "name": "embedding",
                "tensors": [("embedding", (6, 5)), ("head", (13,))],
                "optimizer": {"rule": "lamb", "beta2": 0.98, "weight_decay": 0.01, "eps": 1e-7},
            },
        ],
        "clip": {"global_norm": 1.0},
        "scaled": True,
        "momentum": True,
    },
}

# ---------------------------------------------------------------------------------------------------------


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def magnitude(rng, low, high):
    """10^U(low, high) with either sign, in float32; about one in 16 is zero."""
    if rng.random() < 1 / 16:
        return 0.0
    return f32(10.0 ** rng.uniform(low, high) * rng.choice((-1.0, 1.0)))


def values_of(group, optimizer):
    """The function of a group's rule, the momentum's name, and all hyperparameters."""
    chosen = dict(group.get("optimizer") or optimizer | group.get("overrides", {}))
    update, momentum, defaults = RULES[chosen.pop("rule")]
    if unknown := chosen.keys() - defaults.keys():
        raise ValueError(f"no such hyperparameter: {', '.join(sorted(unknown))}")
    return update, momentum, defaults | chosen


def clipped(grads, clip):
    if "value" in clip:
        return {name: [max(-clip["value"], min(clip["value"], x)) for x in g] for name, g in grads.items()}
    norm = math.sqrt(math.fsum(x * x for g in grads.values() for x in g))
    factor = min(1.0, clip["global_norm"] / (norm + 1e-6))
    return {name: [x * factor for x in g] for name, g in grads.items()}


def make(name, case):
    rng = random.Random(name)
    tensors = [tensor for group in case["groups"] for tensor in group["tensors"]]
    shapes = {"lr": (STEPS,)}
    data = {"lr": [0.02 * (t + 1) / 4 if t < 4 else 0.02 * 0.9 ** (t - 3) for t in range(STEPS)]}
    if case["momentum"]:
        shapes["momentum"] = (STEPS,)
        data["momentum"] = [0.95 - 0.1 * math.sin(math.pi * t / STEPS) for t in range(STEPS)]
    if case["scaled"]:
        shapes["loss_scale"] = (STEPS,)
        data["loss_scale"] = [2.0**16 if t < SKIPPED else 2.0**15 for t in range(STEPS)]
    params, state = {}, {}
    for tensor, shape in tensors:
        params[tensor] = [magnitude(rng, -3, 1) for _ in range(math.prod(shape))]
        shapes[f"param/{tensor}"], data[f"param/{tensor}"] = shape, list(params[tensor])
        state[tensor] = {}
    taken = 0
    for t in range(1, STEPS + 1):
        grads = {}
        scale = data["loss_scale"][t - 1] if case["scaled"] else 1.0
        for tensor, shape in tensors:
            draw = [magnitude(rng, -6, 1) for _ in range(math.prod(shape))]
            grads[tensor] = [0.0 if tensor == "idle" else f32(x * scale) for x in draw]
            shapes[f"grad/{t}/{tensor}"], data[f"grad/{t}/{tensor}"] = shape, grads[tensor]
        if t == SKIPPED:
            # In one tensor of one group: the step is skipped in all of them.
            grads["bias"][2] = math.inf
            continue
        taken += 1
        grads = clipped({tensor: [x / scale for x in g] for tensor, g in grads.items()}, case["clip"])
        for group in case["groups"]:
            update, momentum, hyper = values_of(group, case["optimizer"])
            if case["momentum"] and momentum:
                hyper[momentum] = data["momentum"][t - 1]
            lr = data["lr"][t - 1] * group.get("lr_factor", 1.0)
            for tensor, _ in group["tensors"]:
                update(params[tensor], grads[tensor], state[tensor], lr, taken, hyper)
    for tensor, shape in tensors:
        # A number of NAdam's host, no state slot.
        state[tensor].pop("product", None)
        for slot, values in {"param": params[tensor], **state[tensor]}.items():
            shapes[f"expect/{slot}/{tensor}"], data[f"expect/{slot}/{tensor}"] = shape, values
    groups = [
        {"name": group["name"], "params": [tensor for tensor, _ in group["tensors"]]}
        | {key: group[key] for key in ("optimizer", "overrides", "lr_factor") if key in group}
        for group in case["groups"]
    ]
    metadata = {
        "format": FORMAT,
        "source": SOURCE,
        "optimizer": json.dumps(case["optimizer"]),
        "groups": json.dumps(groups),
        "clip": json.dumps(case["clip"]),
        "skip_nonfinite": "true",
    }
    return metadata, shapes, data


def safetensors(metadata, shapes, data):
    """The bytes of a file."""
    header, blob = {"__metadata__": metadata}, b""
    # Wide elements first, so that every tensor is aligned.
    for name in sorted(data, key=lambda name: (name.startswith(("param/", "grad/")), name)):
        kind, code = ("F32", "f") if name.startswith(("param/", "grad/")) else ("F64", "d")
        part = struct.pack(f"<{len(data[name])}{code}", *data[name])
        header[name] = {
            "dtype": kind,
            "shape": list(shapes[name]),
            "data_offsets": [len(blob), len(blob) + len(part)],
        }
        blob += part
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + blob


def main():
    directory = Path(__file__).parent / "mixed"
    directory.mkdir(exist_ok=True)
    for name, case in CASES.items():
        path = directory / f"{name}.safetensors"
        path.write_bytes(safetensors(*make(name, case)))
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
