"""Make the files of tests/interop, and check that runs go from PyTorch to wgpu-optim and back.

    python interop/golden.py                           # makes all files except those of the way back
    python interop/golden.py --check DIRECTORY         # continues the test's checkpoints in PyTorch
    python interop/golden.py --check DIRECTORY --keep  # and makes the files of the way back

`cargo test -p optim --test interop` writes the checkpoints into DIRECTORY.

For every rule that both sides have:

* `RULE.safetensors` is a run of 20 steps in PyTorch in the format `optim-trajectory/1` (see
  tests/golden/README.md): gradients, the truth in f64, and PyTorch's result in f32.
* `RULE-10.safetensors` is PyTorch's state after 10 of these steps, converted by torch_state.py. Its
  parameters come from two files and their index, as Hugging Face writes them. The test loads the file, takes
  the other 10 steps, and compares the result with the bar of the recorded runs.

`adamw-0.safetensors` is a run with a model's files and no step yet.

`form-FORM.safetensors` are the 10 steps of AdamW in the forms in which apex, TransformerEngine, Megatron, DCP
and Lightning write a state_dict, with numpy's numbers, and with further keys. All of them convert to the same
checkpoint. In `without-leave`, `without-zero` and `without-group` a parameter, or a whole group, had no
gradient. `without-group-end` has the parameters 10 steps later, in f64, with gradients for the group too.

The test also takes the first 10 steps here and saves a checkpoint. With `--check`, torch_state.py converts
the checkpoint to a state_dict and a file of parameters, and PyTorch takes the other 10 steps. `--keep` keeps:

* `RULE-here.safetensors`, the checkpoint. The test compares its own checkpoint with this one.
* `RULE-back.safetensors`, parameters and state after the 20 steps. The test compares them with the bar.
* `adamw-model.safetensors`, the parameters after the 10 steps.
"""

import argparse
import copy
import json
import math
import shutil
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy
import torch
from safetensors.torch import save, save_file

import torch_state

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "tests" / "interop"
STEPS, HALF = 20, 10
GROUPS = {"decay": {"w": (4, 3), "v": (5,)}, "plain": {"b": (3,)}}

# Learning rate, hyperparameters of all groups, and those of the second.
CASES = {
    "sgd": (0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"weight_decay": 0.0}),
    "adam": (0.01, {"betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": True}, {"weight_decay": 0.0}),
    "adamw": (0.01, {"betas": (0.9, 0.95), "weight_decay": 0.1}, {"weight_decay": 0.0}),
    "adagrad": (0.1, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}, {"weight_decay": 0.1}),
    "rmsprop": (0.01, {"alpha": 0.9, "momentum": 0.5, "centered": True}, {"weight_decay": 0.1}),
    "adadelta": (1.0, {"rho": 0.9}, {"weight_decay": 0.1}),
    "adamax": (0.01, {"betas": (0.8, 0.95)}, {"weight_decay": 0.1}),
    "nadam": (0.01, {"betas": (0.9, 0.95), "momentum_decay": 0.01}, {"weight_decay": 0.1}),
    "radam": (0.01, {"betas": (0.9, 0.9)}, {"weight_decay": 0.1}),
}


def shapes() -> dict:
    return {name: shape for group in GROUPS.values() for name, shape in group.items()}


def data(rule: str) -> tuple[dict, list]:
    generator = torch.Generator().manual_seed(zlib.crc32(rule.encode()))
    draw = lambda shape: torch.randn(shape, generator=generator)
    return {n: draw(s) for n, s in shapes().items()}, [
        {n: draw(s) for n, s in shapes().items()} for _ in range(STEPS)
    ]


def optimizer(rule: str, params: dict, dtype):
    """A PyTorch optimizer on its own copies of the parameters."""
    lr, hyper, second = CASES[rule]
    own = {name: torch.nn.Parameter(x.to(dtype, copy=True)) for name, x in params.items()}
    groups = [
        {"params": [(n, own[n]) for n in names], "name": group, **(second if group == "plain" else {})}
        for group, names in GROUPS.items()
    ]
    return torch_state.RULES[rule].cls(groups, lr=lr, foreach=False, **hyper), own


def steps(optim, own: dict, grads: list) -> None:
    for of_step in grads:
        for name, p in own.items():
            p.grad = of_step[name].to(p.dtype, copy=True) if name in of_step else None
        optim.step()


def run(rule: str, params: dict, grads: list, dtype):
    optim, own = optimizer(rule, params, dtype)
    # With the default type, PyTorch's own scalars (NAdam's product) are of that type too.
    torch.set_default_dtype(dtype)
    steps(optim, own, grads)
    torch.set_default_dtype(torch.float32)
    return optim, own


def detached(own: dict) -> dict:
    return {name: p.detach().clone() for name, p in own.items()}


def generate(rule: str) -> None:
    params, grads = data(rule)
    lr, _, _ = CASES[rule]
    half, half_params = run(rule, params, grads[:HALF], torch.float32)
    state = copy.deepcopy(half.state_dict())
    tensors, record = convert(FILES / f"{rule}-{HALF}.safetensors", rule, state, detached(half_params), HALF)
    round_trip(rule, state, tensors, record, lr)
    refusals(rule, tensors, record, lr)
    if rule == "adamw":
        for form, (given, ignore) in forms(state, HALF).items():
            others = convert(
                FILES / f"form-{form}.safetensors", rule, given, detached(half_params), HALF, ignore
            )
            assert same_checkpoint(others, (tensors, record)), form
        without()
        convert(
            FILES / f"{rule}-0.safetensors",
            rule,
            optimizer(rule, params, torch.float32)[0].state_dict(),
            params,
            0,
        )

    tensors = {"lr": torch.full((STEPS,), lr, dtype=torch.float64)}
    tensors |= {f"param/{n}": x for n, x in params.items()}
    tensors |= {f"grad/{t}/{n}": x for t, of_step in enumerate(grads, 1) for n, x in of_step.items()}
    for kind, dtype in (("expect", torch.float64), ("peer", torch.float32)):
        optim, own = run(rule, params, grads, dtype)
        tensors |= {f"{kind}/param/{n}": x for n, x in detached(own).items()}
        converted, _ = numbers(optim, rule)
        tensors |= {f"{kind}/{n}": x for n, x in converted.items()}
    common, second = (group["hyperparameters"] for group in record["groups"])
    metadata = {
        "format": "optim-trajectory/1",
        "source": f"torch {torch.__version__}",
        "optimizer": json.dumps({"rule": rule, **common}),
        "groups": json.dumps(
            [
                {
                    "name": group,
                    "params": list(names),
                    "overrides": (
                        {} if group == "decay" else {k: v for k, v in second.items() if v != common[k]}
                    ),
                }
                for group, names in GROUPS.items()
            ]
        ),
    }
    save_sorted(tensors, FILES / f"{rule}.safetensors", metadata)


def save_sorted(tensors: dict, path: Path, metadata: dict) -> None:
    """Write reproducible bytes: safetensors writes the metadata in random order, so sort its keys."""
    data = save(tensors, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert len(text) == length
    path.write_bytes(data[:8] + text + data[8 + length :])


def forms(state: dict, count: int) -> dict:
    """One state in the form of each writer, with the keys for `--ignore`, by the name of the form."""
    names = torch_state.named(state, None)

    def changed(group=lambda group: group, own=lambda own: own) -> dict:
        new = copy.deepcopy(state)
        return {
            "state": {n: own(x) for n, x in new["state"].items()},
            "param_groups": [group(x) for x in new["param_groups"]],
        }

    own = lambda own: {slot: x for slot, x in own.items() if slot != "step"}
    not_apex = {"foreach", "maximize", "capturable", "differentiable", "fused"}
    counted = {"step": count} if any("step" in own for own in state["state"].values()) else {}
    apex = (
        lambda more: lambda group: {k: v for k, v in group.items() if k not in not_apex}
        | {"bias_correction": True}
        | counted
        | more
    )
    megatron = {
        "wd_mult": 1.0,
        "lr_mult": 1.0,
        "is_expert_parallel": False,
        "is_decoupled_lr": False,
        "max_lr": 0.01,
        "min_lr": 0.0,
        "pre_wd_mult": 1.0,
    }
    shared = {
        "state": changed(own=own)["state"],
        "param_groups": changed(lambda group: {**group, **megatron, "bias_correction": True}, own)[
            "param_groups"
        ],
    }
    if counted:
        shared["state"]["common_step"] = torch.tensor(float(count))
    masters = [[torch.zeros(3)], [torch.zeros(2)]]
    by_name = {
        "state": {names[n]: own for n, own in copy.deepcopy(state["state"]).items()},
        "param_groups": [
            {**g, "params": [names[n] for n in g["params"]]} for g in copy.deepcopy(state["param_groups"])
        ],
    }
    by_name["param_groups"] = [
        {k: v for k, v in g.items() if k != "param_names"} for g in by_name["param_groups"]
    ]
    flat = {f"state.{name}.{slot}": x for name, own in by_name["state"].items() for slot, x in own.items()}
    flat |= {
        f"param_groups.{name}.{k}": v
        for g in by_name["param_groups"]
        for name in g["params"]
        for k, v in g.items()
        if k != "params"
    }
    hyper = lambda g: {k: numpy.float64(v) if isinstance(v, float) else v for k, v in g.items()} | {
        k: tuple(map(numpy.float64, v)) for k, v in g.items() if k == "betas"
    }
    noted = lambda g: g | {
        "lr_scale": 0.5,
        "wd_mult": 2.0,
        "group_name": "a",
        "bias_correction": True,
        "depth": 3,
    }
    return {
        "apex": (changed(apex({}), own), []),
        "transformer-engine": (
            changed(
                apex(
                    {k: torch.tensor(n, dtype=torch.int32) for k, n in counted.items()} | {"capturable": True}
                ),
                own,
            ),
            [],
        ),
        "megatron": (
            {
                "iteration": count,
                "args": argparse.Namespace(lr=0.01),
                "optimizer": {
                    "optimizer": changed(apex(megatron), own),
                    "grad_scaler": {"scale": 1.0},
                    "fp32_from_fp16_params": masters,
                },
                "opt_param_scheduler": {"max_lr": 0.01, "num_steps": count},
            },
            [],
        ),
        "megatron-sharded": (
            {"optimizer": {"optimizer": shared, "grad_scaler": None, "fp32_from_fp16_params": masters}},
            [],
        ),
        "dcp": (by_name, []),
        "dcp-numbers": (
            {"optim": {**state, "state": {str(n): own for n, own in state["state"].items()}}, "step": count},
            [],
        ),
        "dcp-flat": ({"optimizer": flat, "epoch": 1}, []),
        "lightning": (
            {
                "epoch": 1,
                "state_dict": {},
                "optimizer_states": [state],
                "lr_schedulers": [{"last_epoch": 3}],
                "loops": {"fit_loop": {}},
            },
            [],
        ),
        "numpy": (
            {
                "optimizer": changed(hyper),
                "loss": numpy.float32(0.5),
                "rng": numpy.arange(4),
                "best": numpy.bool_(True),
            },
            [],
        ),
        "further-keys": (changed(noted, lambda own: own | {"note": 1}), ["depth", "note"]),
    }


def same_checkpoint(a, b) -> bool:
    return (
        a[1] == b[1]
        and a[0].keys() == b[0].keys()
        and all(torch.equal(x, b[0][name]) for name, x in a[0].items())
    )


def without() -> None:
    """Runs of AdamW in which a parameter, or a group, had no gradient."""
    rule = "adamw"
    params, grads = data(rule)
    some = lambda missing: [
        {n: x for n, x in of_step.items() if n not in missing} for of_step in grads[:HALF]
    ]
    optim, own = optimizer(rule, params, torch.float32)
    steps(optim, own, some(["v"]))
    for choice in ("leave", "zero"):
        convert(
            FILES / f"without-{choice}.safetensors", rule, optim.state_dict(), detached(own), HALF, (), choice
        )
    optim, own = optimizer(rule, params, torch.float32)
    steps(optim, own, some(["b"]))
    convert(FILES / "without-group.safetensors", rule, optim.state_dict(), detached(own), HALF)
    optim, own = optimizer(rule, params, torch.float64)
    steps(optim, own, some(["b"]) + grads[HALF:])
    save_file(detached(own), FILES / "without-group-end.safetensors")


def convert(
    path: Path, rule: str, state: dict, params: dict, steps: int, ignore=(), without_state=None
) -> tuple[dict, dict]:
    """Convert by torch_state.py, called as from a shell."""
    with tempfile.TemporaryDirectory() as directory:
        optim, index = Path(directory) / "optimizer.pt", Path(directory) / "model.safetensors.index.json"
        torch.save(state, optim)
        shards = {
            f"model-{i:05}-of-00002.safetensors": names for i, names in enumerate((["w"], ["v", "b"]), 1)
        }
        for shard, names in shards.items():
            save_file({name: params[name] for name in names}, index.parent / shard, {"format": "pt"})
        weights = {name: shard for shard, names in shards.items() for name in names}
        total = sum(x.numel() * x.element_size() for x in params.values())
        index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weights}))
        count = ["--steps", str(steps)] if rule == "sgd" else []
        count += ["--ignore", *ignore] if ignore else []
        count += ["--without-state", without_state] if without_state else []
        torch_state.main(
            ["from-torch", str(optim), str(path), "--rule", rule, "--params", str(index), *count]
        )
    return torch_state.read_checkpoint(path)


def refusals(rule: str, tensors: dict, record: dict, lr: float) -> None:
    """Contents that PyTorch has no place for are dropped only on request."""
    more = tensors | {"ema/w": tensors["param/w"], "master/w": tensors["param/w"]}
    scaled = record | {"loss_scale": {"scale": 1.0, "good_steps": 0}}
    for names in ([], ["ema", "master"], ["ema", "loss_scale", "master", "remainder"]):
        try:
            torch_state.to_torch(more, scaled, lr, names)
        except torch_state.Refused as error:
            for name in {"ema", "loss_scale", "master"}.symmetric_difference(names):
                assert name in str(error), f"{rule}: {error}"
        else:
            raise AssertionError(f"{rule}: {names} are not all that is lost")
    torch_state.to_torch(more, scaled, lr, ["ema", "loss_scale", "master"])


def numbers(optim, rule: str) -> tuple[dict, None]:
    """Slots by name, in their own types."""
    state = optim.state_dict()
    names = torch_state.named(state, None)
    out = {}
    for number, own in state["state"].items():
        for slot in torch_state.RULES[rule].slots:
            if own.get(slot) is not None:
                out[f"{slot}/{names[number]}"] = own[slot].detach().clone()
    return out, None


def round_trip(rule: str, state: dict, tensors: dict, record: dict, lr: float) -> None:
    """Converting there and back gives the same state."""
    back, _ = torch_state.to_torch(tensors, record, lr)
    for number, own in state["state"].items():
        for name, x in own.items():
            if x is not None:
                assert torch.equal(
                    torch.as_tensor(back["state"][number][name]), torch.as_tensor(x)
                ), f"{rule}: {name} of {number}"
    for ours, theirs in zip(back["param_groups"], state["param_groups"]):
        for name, value in theirs.items():
            if name not in ("foreach",):
                assert ours[name] == value, f"{rule}: {name} {ours[name]} {value}"


def ulp(x: float) -> float:
    return 2.0 ** (max(math.floor(math.log2(x)), -126) - 23) if x else 2.0**-149


def check(rule: str, directory: Path, keep: bool) -> bool:
    """Continue a run of ten steps here with ten steps in PyTorch, and compare with the bar."""
    params, grads = data(rule)
    lr, _, _ = CASES[rule]
    here = directory / f"{rule}.safetensors"
    with tempfile.TemporaryDirectory() as temporary:
        there, model = Path(temporary) / "optimizer.pt", Path(temporary) / "model.safetensors"
        torch_state.main(["to-torch", str(here), str(there), "--lr", str(lr), "--params", str(model)])
        state, (half_params, _) = torch.load(there, weights_only=True), torch_state.read(model)
        if keep and rule == "adamw":
            shutil.copy(model, FILES / f"{rule}-model.safetensors")
    optim, own = optimizer(rule, half_params, torch.float32)
    optim.load_state_dict(state)
    steps(optim, own, grads[HALF:])
    if keep:
        shutil.copy(here, FILES / f"{rule}-here.safetensors")
        after = numbers(optim, rule)[0] | {f"param/{name}": x for name, x in detached(own).items()}
        save_file(after, FILES / f"{rule}-back.safetensors")
    _, truth = run(rule, params, grads, torch.float64)
    _, peer = run(rule, params, grads, torch.float32)
    passed, squares = True, [0.0, 0.0, 0]
    for name, expect in detached(truth).items():
        error, theirs = ((x[name].double() - expect).detach() for x in (own, peer))
        unit = ulp(expect.abs().max().item())
        bound = 2 * theirs.abs().max().item() + math.sqrt(STEPS) * unit
        passed &= error.abs().max().item() <= bound
        squares[0] += (error / unit).square().sum().item()
        squares[1] += (theirs / unit).square().sum().item()
        squares[2] += expect.numel()
    ours, theirs = (math.sqrt(x / squares[2]) for x in squares[:2])
    passed &= ours <= 1.25 * theirs + 0.05
    print(f"{rule:9} {'ok  ' if passed else 'FAIL'} rms error {ours:.3f} ulp, of PyTorch alone {theirs:.3f}")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", type=Path, metavar="DIRECTORY")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(not all([check(rule, arguments.check, arguments.keep) for rule in CASES]))
    FILES.mkdir(exist_ok=True)
    for rule in CASES:
        generate(rule)


if __name__ == "__main__":
    main()
