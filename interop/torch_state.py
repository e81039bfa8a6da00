"""Convert the state of torch.optim optimizers to checkpoints of wgpu-optim, and back.

    python interop/torch_state.py from-torch optim.pt run.safetensors --rule adamw --params model.safetensors
    python interop/torch_state.py to-torch run.safetensors optim.pt --lr 1e-3 --params model.safetensors

The script needs torch, safetensors and numpy. The tests are run by hand: python interop/test_torch_state.py

`optim.pt` is `torch.save(optimizer.state_dict(), ...)`. It may also be a dictionary that holds one such
state_dict among other entries, as files of Lightning and Megatron do. If it holds several, `--entry` names
one. Scalars and arrays of numpy are accepted.

`model.safetensors` has the parameters by name, as Hugging Face writes them
(`safetensors.torch.save_file(model.state_dict(), ...)`). It may also be the index (`.index.json`) of several
such files. With `--params` the checkpoint holds the parameters and the state; without it, the state alone.
The state of an optimizer that has not stepped yet becomes a checkpoint of step 0.

A state_dict has numbers for parameters. Their names are the `param_names` that PyTorch keeps if the optimizer
was made from `named_parameters()`. Otherwise `--names` lists them in order. FSDP and DCP have names instead
of numbers, also in a flat form (`state.NAME.exp_avg`), and these names are used. First make a directory of
DCP one file with `torch.distributed.checkpoint.format_utils.dcp_to_torch_save`. Groups of a checkpoint have
names: the `name` of a parameter group, otherwise "0", "1", ….

Differences between the two sides:

* Counts of steps. PyTorch counts steps per parameter, and not at all for SGD. wgpu-optim has one count per
  group. It is the count of the group's parameters. If they have none, it is the group's `step` (apex,
  TransformerEngine, Megatron) or the `common_step` of the state (Megatron), and otherwise `--steps`.
  Different counts within a group are refused. A group without any state has taken no steps.
* Parameters without state. In a group that has stepped, such a parameter never had a gradient. It is refused
  unless `--without-state` is given. With `leave` the checkpoint does not have the parameter: to load it into
  a layout that does, use `Missing::Zero`. With `zero` its state is zero (AdaGrad's sum: the initial
  value) and its count is the group's. PyTorch counts from the first gradient. The first updates therefore
  differ if the rule corrects for the count.
* Carries. NAdam's `mu_product` is a carry of the group, and so is whether SGD's velocity has begun. PyTorch
  keeps `mu_product` in f32, so the carry has the precision of f32.
* Velocities of an SGD group with momentum 0 are not used, and are left out.
* Types. Moments in f16 become f32, which has all their values. Scales beside the moments are not read.
* Rules. A checkpoint may have groups of several rules, and an optimizer of PyTorch has one class. `to-torch`
  therefore converts the groups of one rule, which `--rule` names. It leaves the other groups out of the
  state_dict and names their parameters. The file of `--params` has the parameters of all groups.
* Frozen groups. A state_dict does not have them. `to-torch` names them.
* The digest of a checkpoint is checked before the way back. `from-torch` writes none.
* AdaGrad's sum starts at `initial_accumulator_value` in PyTorch. Here it starts at zero, and the first step
  adds the initial value.
* Decoupled decay. apex and TransformerEngine do not save the mode of weight decay of Adam and AdaGrad:
  `--rule` selects it. Groups of apex's AdaGrad have no `lr_decay` and no initial value: both are 0.
* Master weights, beside the state (`fp32_from_fp16_params`, `fp32_from_fp16`) or in it (`master_param`, to be
  named by `--ignore`), are not read. Give them by `--params`: otherwise the run continues from rounded
  parameters.
* Learning rates. PyTorch keeps them in groups; here each step has one. If all groups have the same rate,
  `lr_factor` is 1, and the rate is to be passed to each step. Otherwise each group's `lr_factor` is its rate,
  and 1 is to be passed. The way back takes `--lr`, and `lr_factor` multiplies it.
* Keys of groups that do not change results are left out: those of PyTorch's implementations (`foreach`,
  `fused`, `capturable`, `differentiable`), those of its schedulers (`initial_lr`, `max_lr`, `max_momentum`,
  …), and factors that trainers have already multiplied into `lr` and `weight_decay` (`lr_scale`, `wd_mult`,
  …). A scheduled momentum or `betas` has the last value. Any other key may change the update: it is refused
  unless `--ignore` names it. PyTorch fills in the keys that its older versions did not have. A rule or
  hyperparameter that only one side has is an error.
* Options (clipping, loss scale, …) are not in a state_dict. A load does not compare them. After the way back,
  the training program sets them.
* `ema`, `master`, `remainder` and `loss_scale` of a checkpoint have no place in torch.optim. They are refused
  unless `--drop` names them. Without `master` or `remainder` the parameters have the precision of their
  storage.
"""

import argparse
import functools
import json
import math
import os
import re
import struct
import sys
from collections import Counter
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

KEY = "wgpu_optim"
VERSION = 1

# Keys of groups that do not change results: of PyTorch's optimizers, then of its schedulers.
IGNORED = {"lr", "params", "param_names", "name", "foreach", "fused", "capturable", "differentiable"}
IGNORED |= {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"}
# Names, and factors that trainers have already multiplied into `lr` and `weight_decay`.
IGNORED |= {
    "group_name",
    "lr_scale",
    "lr_mult",
    "wd_scale",
    "wd_mult",
    "pre_lr_mult",
    "pre_wd_mult",
    "layer_id",
}
IGNORED |= {"start_wd", "end_wd", "is_expert_parallel", "is_decoupled_lr", "default_config"}
IGNORED |= {"master_weights", "set_grad_none"}
# The group's count, used if its parameters have none.
IGNORED |= {"step"}
# Options of other libraries that are always on in torch.optim.
ALWAYS = {"bias_correction": True, "correct_bias": True}
# The largest count of steps.
MAX_STEPS = 2**53
MAX_FLOAT = sys.float_info.max
# The least normal f32.
MIN_NORMAL = 2.0**-126
# Words that the digest adds at once, a power of 2.
CHUNK = 2**18
# The fields of a record.
FIELDS = {"version", "crc32c", "writer", "rule", "steps", "taken", "loss_scale", "options", "groups"}
BETAS = {"beta1": ("betas", 0), "beta2": ("betas", 1)}


def same(*names):
    return {name: (name, None) for name in names}


class Rule:
    """One rule: its class in torch.optim, its slots, and its hyperparameters by our names.

    `fixed` has our hyperparameters that PyTorch lacks, with the values that PyTorch's update implies.
    """

    def __init__(self, cls, slots, hyper, fixed=None, torch_fixed=None, absent=None):
        self.cls, self.slots, self.hyper, self.fixed = cls, slots, hyper, fixed or {}
        # Values of the keys that the class of another library does not have.
        self.absent = absent or {}
        # PyTorch's hyperparameters that select another rule here.
        self.torch_fixed = torch_fixed or {}


ADAM = BETAS | same("eps", "weight_decay", "amsgrad", "maximize")
ADAM_FIXED = {"amsgrad_corrected": False, "eps_corrected": True}
ADAM_SLOTS = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
MOMENTS = ["exp_avg", "exp_avg_sq"]
# Rules that multiply eps by the root of the second bias correction.
CORRECT_EPS = {"adam", "adamw", "nadam", "radam"}
RULES = {
    "sgd": Rule(
        torch.optim.SGD,
        ["momentum_buffer"],
        same("momentum", "dampening", "weight_decay", "nesterov", "maximize"),
        {"form": "heavy_ball"},
    ),
    "adam": Rule(torch.optim.Adam, ADAM_SLOTS, ADAM | same("decoupled_weight_decay"), ADAM_FIXED),
    "adamw": Rule(torch.optim.AdamW, ADAM_SLOTS, ADAM, ADAM_FIXED, {"decoupled_weight_decay": True}),
    "adagrad": Rule(
        torch.optim.Adagrad,
        ["sum"],
        same("lr_decay", "weight_decay", "initial_accumulator_value", "eps", "maximize"),
        {"eps_root": 0.0},
        absent={"lr_decay": 0.0, "initial_accumulator_value": 0.0},
    ),
    "rmsprop": Rule(
        torch.optim.RMSprop,
        ["square_avg", "momentum_buffer", "grad_avg"],
        same("alpha", "eps", "weight_decay", "momentum", "centered", "maximize"),
        {"eps_root": 0.0},
    ),
    "adadelta": Rule(
        torch.optim.Adadelta, ["square_avg", "acc_delta"], same("rho", "eps", "weight_decay", "maximize")
    ),
    "adamax": Rule(
        torch.optim.Adamax,
        ["exp_avg", "exp_inf"],
        BETAS | same("eps", "weight_decay", "maximize"),
        {"eps_after_max": False},
    ),
    "nadam": Rule(
        torch.optim.NAdam,
        MOMENTS,
        BETAS | same("eps", "weight_decay", "momentum_decay", "decoupled_weight_decay", "maximize"),
    ),
    "radam": Rule(
        torch.optim.RAdam,
        MOMENTS,
        BETAS | same("eps", "weight_decay", "decoupled_weight_decay", "maximize"),
        {"eps_corrected": False, "rectification_threshold": 5.0},
    ),
}


class Refused(Exception):
    """The input cannot be converted."""


def plain(value):
    """A number of torch or numpy as a number of Python."""
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (ValueError, RuntimeError):
        return value


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(value, what: str) -> int:
    """A count of steps."""
    count = plain(value)
    if not is_number(count) or not 0 <= count <= MAX_STEPS or count != int(count):
        raise Refused(
            f"{what} is {shown(count)}, must be a whole number from 0 to 2^53: give the file of a run that"
            " counts whole steps"
        )
    return int(count)


def finite(value, what: str, least: float = -math.inf, where: str = "a group"):
    """A number that f64 can hold."""
    found = plain(value)
    if not is_number(found) or not max(least, -MAX_FLOAT) <= found <= MAX_FLOAT:
        bound = "" if least == -math.inf else f" and at least {least:g}"
        raise Refused(
            f"{what} = {shown(found)} in {where}, must be finite{bound}: set it in PyTorch and save the state"
            " again"
        )
    return found


def choice(value, what: str) -> bool:
    found = plain(value)
    if not isinstance(found, (bool, int)) or found not in (False, True):
        raise Refused(
            f"{what} = {shown(found)} in a group, must be True or False: set it in PyTorch and save the state"
            " again"
        )
    return bool(found)


def number(text: str):
    try:
        return float(text) if not text.lstrip("-").isdigit() else int(text)
    except ValueError:
        return text


def carry_bits(x: float) -> str:
    return struct.pack(">d", x).hex()


def carry_of(bits: str) -> float:
    return struct.unpack(">d", bytes.fromhex(bits))[0]


def kept(rule: str, hyper: dict) -> list[str]:
    """The slots that are kept with these hyperparameters."""
    needs = {
        "max_exp_avg_sq": hyper.get("amsgrad", False),
        "grad_avg": hyper.get("centered", False),
        "momentum_buffer": hyper.get("momentum", 0.0) != 0.0,
    }
    return [slot for slot in RULES[rule].slots if needs.get(slot, True)]


def filled(rule: str, group: dict) -> dict:
    """The group, with the keys that PyTorch adds to groups of its older versions."""
    optimizer = RULES[rule].cls([torch.nn.Parameter(torch.zeros(1))])
    optimizer.__setstate__({"state": {}, "param_groups": [group | {"params": []}]})
    return RULES[rule].absent | optimizer.param_groups[0] | group


def default_group(rule: str) -> dict:
    """A parameter group of the rule's class, with its defaults."""
    return RULES[rule].cls([torch.nn.Parameter(torch.zeros(1))]).state_dict()["param_groups"][0]


def hyper_from(rule: str, group: dict, ignore=()) -> dict:
    known = RULES[rule]
    hyper, group = dict(known.fixed), filled(rule, group)
    own = {name for name, _ in known.hyper.values()}
    if missing := sorted({"lr", *own} - group.keys()):
        raise Refused(
            f"this is no state of torch.optim.{known.cls.__name__}: its groups have no {listed(missing)}:"
            " give another --rule"
        )
    defaults = default_group(rule)
    for ours, (theirs, i) in known.hyper.items():
        value, default = group[theirs], defaults[theirs]
        if i is not None:
            value = items(value)
            if not isinstance(value, (list, tuple)) or len(value) != len(default):
                raise Refused(
                    f"{theirs} = {shown(value)} in a group, must be {len(default)} numbers: set it in PyTorch"
                    " and save the state again"
                )
            value, default = value[i], default[i]
        hyper[ours] = (choice if isinstance(default, bool) else finite)(value, theirs)
    check_bounds(rule, hyper)
    for name in sorted(map(str, group.keys() - own - IGNORED - set(ignore))):
        if name not in known.torch_fixed | ALWAYS:
            raise Refused(
                f"{rule} has no {name} = {shown(group.get(name))} here: if it does not change the update,"
                f" give --ignore {name}"
            )
        value = plain(group.get(name))
        if (
            not is_number(value)
            and not isinstance(value, bool)
            or value != (known.torch_fixed | ALWAYS)[name]
        ):
            raise Refused(
                f"{rule} has no {name} = {shown(group.get(name))} here: it changes the update, so give"
                " another --rule or go on there"
            )
    return hyper


def check_bounds(rule: str, hyper: dict) -> None:
    """Refuses a value that a load here would refuse: the bounds of the rules in src/rules."""
    # The device gets eps times its bias correction, which is least at the first step.
    root = math.sqrt(max(1.0 - hyper["beta2"], 0.0)) if rule in CORRECT_EPS else 1.0
    for ours, (theirs, _) in RULES[rule].hyper.items():
        value = hyper[ours]
        if ours in BETAS:
            good, bound = 0 <= value < 1, "in [0, 1)"
        elif ours == "rho":
            good, bound = 0 <= value <= 1, "in [0, 1]"
        elif ours in ("eps", "initial_accumulator_value"):
            good = value == 0 or value * root >= MIN_NORMAL
            up = Context(prec=3, rounding=ROUND_CEILING)
            bound = f"0 or at least {up.create_decimal(MIN_NORMAL / root):g}"
        elif ours == "nesterov":
            good = not value or (hyper["momentum"] > 0 and hyper["dampening"] == 0)
            bound = "False without momentum > 0 and dampening = 0"
        else:
            good, bound = ours == "dampening" or value >= 0, "at least 0"
        if not good:
            raise Refused(
                f"{theirs} = {shown(value)} in a group, must be {bound}: set it in PyTorch and save the state"
                " again"
            )


def shown(value, columns: int = 40) -> str:
    """A value on a short line, with at most 17 digits per number."""
    value = plain(value)
    if isinstance(value, int) and abs(value) >= 10**17:
        return f"{Decimal(value):.3e}"
    text = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else str(value)
    text = re.sub(r"(\d{17})\d+", r"\1…", " ".join(text.split()))
    return text if len(text) <= columns else text[: columns - 1] + "…"


def named(state_dict: dict, names: list[str] | None) -> dict[int, str]:
    found = {}
    for group in state_dict["param_groups"]:
        theirs = group.get("param_names")
        if names is None and theirs is not None:
            if not isinstance(theirs, (list, tuple)) or not all(isinstance(name, str) for name in theirs):
                raise Refused(
                    f"param_names = {shown(theirs)} in a group, must be a list of names: give the names by"
                    " --names"
                )
            found.update(zip(group["params"], theirs))
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    # FSDP and DCP have names instead of numbers.
    found.update((number, number) for number in numbers if isinstance(number, str))
    if names is not None:
        if len(names) != len(numbers):
            raise Refused(
                f"--names has {len(names)} names, the optimizer {len(numbers)} parameters: list one name per"
                " parameter"
            )
        found = dict(zip(numbers, names))
    if missing := [number for number in numbers if number not in found]:
        raise Refused(f"parameters {listed([str(number) for number in missing])} have no names: give --names")
    unique("parameters", [found[number] for number in numbers])
    return found


def unique(what: str, names: list[str]) -> None:
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise Refused(f"several {what} have the name {listed(twice)}: give each its own name")


def listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def agreed(what: str, found: dict):
    """The value that all parameters have. `found` has the parameters' names by value."""
    if len(found) > 1:
        each = "; ".join(f"{value} of {listed(names)}" for value, names in sorted(found.items()))
        raise Refused(f"{what}: {each}: put parameters that differ into groups of their own in PyTorch")
    return next(iter(found))


def lacks(own: dict, slots: list[str]) -> bool:
    """Whether a parameter never had a gradient: it has no state.

    AdaGrad has state before the first gradient, with a count of 0.
    """
    count = plain(own.get("step"))
    return bool(slots) and (all(own.get(slot) is None for slot in slots) or (is_number(count) and count == 0))


def steps_taken(
    rule: str, group: dict, title: str, own_slots: list[str], state: dict, names: dict, steps: int | None
) -> int | None:
    """The count of a group; `None` if the group has no state and no count."""
    members = [(names[number], state.get(number, {})) for number in group["params"]]
    counts = {}
    for name, own in members:
        if "step" in own and not lacks(own, own_slots):
            counts.setdefault(whole(own["step"], f"the step of {name}"), []).append(name)
    if "step" in group:
        counts.setdefault(whole(group["step"], f"the step of group {title}"), []).append("the group")
    if all(lacks(own, own_slots) for _, own in members) and not counts and rule != "sgd":
        return None
    if steps is not None:
        counts.setdefault(steps, []).append("--steps")
    if not counts:
        raise Refused(f"nothing counts the steps of group {title}, as of any SGD in PyTorch: give --steps")
    return agreed(f"steps of group {title} differ, here a group has one number", counts)


def shape_of(name: str, param: torch.Tensor | None, own: dict, slots: list[str]) -> tuple | None:
    """The shape of a parameter and of its state; `None` if neither is there."""
    found = {"parameter": param} | {slot: own.get(slot) for slot in slots}
    shapes = {what: tuple(x.shape) for what, x in found.items() if hasattr(x, "shape")}
    if len(set(shapes.values())) > 1:
        raise Refused(
            f"shapes of {name} differ: "
            + ", ".join(f"{what} {list(shape)}" for what, shape in shapes.items())
            + ": give the files of one run"
        )
    return next(iter(shapes.values()), None)


def state_of(state_dict: dict, ignore=()) -> tuple[dict, list[dict]]:
    """The state of each parameter by its number, and the groups with their counts.

    DCP writes numbers as text. Megatron keeps one count of all parameters beside their state. An entry of
    `None` counts as absent.
    """
    groups, state = state_dict["param_groups"], dict(state_dict["state"])
    numbers = [number for group in groups for number in group["params"]]
    if odd := [shown(number) for number in numbers if not isinstance(number, (int, str))]:
        raise Refused(
            f"params has {listed(odd)} in a group, must be numbers or names: save optimizer.state_dict()"
        )
    known = {str(number): number for number in numbers} | {number: number for number in numbers}
    if "common_step" in state and "common_step" not in known:
        groups = [{"step": state["common_step"]} | group for group in groups]
        del state["common_step"]
    if lost := [str(key) for key in state if key not in known and str(key) not in ignore]:
        raise Refused(
            f"the state has {listed(lost)}, and no group has such a parameter: give --ignore"
            f" {' '.join(lost[:3])} to leave it out"
        )
    own = {}
    for key, entries in state.items():
        if key not in known:
            continue
        if not isinstance(entries, dict):
            raise Refused(
                f"the state of parameter {key} is {type(entries).__name__}, must be a dictionary: save"
                " optimizer.state_dict()"
            )
        own[known[key]] = {name: tensor(x) for name, x in entries.items() if x is not None}
    return own, groups


def items(x):
    """An array or tensor as lists and numbers of Python."""
    return x.tolist() if hasattr(x, "tolist") else x


def tensor(x):
    """An array of numpy as a tensor."""
    return torch.from_numpy(x) if type(x).__module__ == "numpy" and getattr(x, "ndim", 0) else x


def from_torch(
    state_dict: dict, rule: str, names=None, steps=None, params=None, without_state=None, ignore=()
):
    """The tensors and the record of a checkpoint.

    With `params` the checkpoint holds the parameters. Parameters without state need them for their shapes.
    """
    known = RULES[rule]
    state, param_groups = state_of(state_dict, ignore)
    names = named(state_dict, names)
    if params is not None and (missing := [name for name in names.values() if name not in params]):
        raise Refused(
            f"--params has no {listed(missing)}; a file has one name of tied parameters: give the model's"
            " file of this run, with its names by --names"
        )
    groups, tensors = [], {}
    # If one group keeps a slot, all groups keep it.
    hypers = [hyper_from(rule, group, ignore) for group in param_groups]
    slots = [slot for slot in known.slots if any(slot in kept(rule, hyper) for hyper in hypers)]
    rates = [float(finite(group["lr"], "lr", 0)) for group in param_groups]
    titles = [str(group.get("name", i)) for i, group in enumerate(param_groups)]
    unique("groups", titles)
    for number, name in names.items():
        if more := sorted(
            map(str, state.get(number, {}).keys() - {"step", "mu_product", *known.slots, *ignore})
        ):
            raise Refused(
                f"the state of {name} has {listed(more)}, which torch.optim.{known.cls.__name__} has not:"
                f" give --ignore {' '.join(more)} to leave it out"
            )
    own_slots = [kept(rule, hyper) for hyper in hypers]
    found = [
        steps_taken(rule, group, title, own, state, names, steps)
        for group, title, own in zip(param_groups, titles, own_slots)
    ]
    # Without any state there are no counts.
    total = max((count for count in found if count is not None), default=steps or 0)
    offset = 0
    for title, rate, group, hyper, count, own_slot in zip(
        titles, rates, param_groups, hypers, found, own_slots
    ):
        carries, places, count = {}, {}, count or 0
        members = [(names[number], state.get(number, {})) for number in group["params"]]
        begun = [name for name, own in members if not lacks(own, own_slot)]
        late = [name for name, own in members if lacks(own, own_slot)] if count and begun else []
        if late and without_state is None:
            differ = (
                f"steps: 0 of {listed(late)} (no state: it never had a gradient); {count} of {listed(begun)}"
            )
            if rule == "sgd":
                differ = (
                    "velocity (1 that has begun, 0 of a parameter that never had a gradient): 0.0 of"
                    f" {listed(late)}; 1.0 of {listed(begun)}"
                )
            raise Refused(
                f"parameters of group {title} differ in {differ}: give --without-state leave or zero"
            )
        if late and without_state == "zero" and hyper.get("dampening", 0.0) != 0.0:
            raise Refused(
                f"{listed(late)} of group {title} has no velocity, and dampening = {hyper['dampening']}"
                " spares the first one: give --without-state leave"
            )
        for name, own in members:
            if name in late and without_state == "leave":
                continue
            needed = [*own_slot, *(["mu_product"] if rule == "nadam" else [])]
            if name in begun and (lost := [entry for entry in needed if own.get(entry) is None]):
                raise Refused(f"the state of {name} has no {listed(lost)}: give the file of a whole state")
            shape = shape_of(name, None if params is None else params[name], own, known.slots)
            if shape is None:
                raise Refused(f"the shape of {name} is not known, for it has no state: give --params")
            for slot in slots:
                x = own.get(slot) if slot in own_slot else None
                # The first step of AdaGrad adds the initial value here.
                if x is None or (rule == "adagrad" and count == 0):
                    start = hyper.get("initial_accumulator_value", 0.0) if count else 0.0
                    x = torch.full(shape, start, dtype=torch.float32)
                kind = getattr(x, "dtype", type(x).__name__)
                if kind == torch.float16:
                    x, kind = x.float(), torch.float32
                if kind not in (torch.float32, torch.bfloat16):
                    raise Refused(
                        f"{slot} of {name} is {kind}, must be float32 or bfloat16: convert it in PyTorch"
                    )
                tensors[f"{slot}/{name}"] = x.detach().cpu().contiguous()
            if params is not None:
                tensors[f"param/{name}"] = params[name].detach().cpu().contiguous()
            places[name] = offset
            offset += math.prod(shape)
            if name in late:
                continue
            if rule == "nadam":
                carry = float(finite(own.get("mu_product", 0.0), "mu_product", where=f"the state of {name}"))
                carries.setdefault(carry, []).append(name)
            elif rule == "sgd":
                moving = own_slot and own.get("momentum_buffer") is not None
                carries.setdefault(1.0 if moving else 0.0, []).append(name)
        what = (
            "mu_product"
            if rule == "nadam"
            else "velocity (1 that has begun, 0 of a parameter that never had a gradient)"
        )
        carry = agreed(f"parameters of group {title} differ in {what}", carries) if carries else 0.0
        groups.append(
            {
                "name": title,
                "hyperparameters": hyper,
                "lr_factor": {"constant": 1.0 if len(set(rates)) == 1 else rate},
                "carry": carry_bits(carry),
                **({} if count == total else {"taken": count}),
                "tensors": places,
            }
        )
    record = {
        "version": VERSION,
        "writer": f"torch {torch.__version__}",
        "rule": rule,
        "steps": total,
        "taken": total,
        "loss_scale": None,
        "options": None,
        "groups": groups,
    }
    return tensors, record


def rule_of(group: dict, record: dict) -> str:
    """The rule of a checkpoint's group, which has its own if it is not the first group's."""
    return group.get("rule", record["rule"])


def rule_to_convert(record: dict, wanted: str | None) -> str:
    """The rule of all groups, or the `wanted` one if there are several."""
    rules = {} if record["groups"] else {record["rule"]: []}
    for group in record["groups"]:
        rules.setdefault(rule_of(group, record), []).append(group["name"])
    here = [rule for rule in rules if rule in RULES]
    if not here or (wanted in rules and wanted not in here):
        lost = listed(list(rules)) if not here else wanted
        raise Refused(f"torch.optim has no {lost}: go on with this run here")
    if wanted is not None and wanted not in rules:
        raise Refused(f"the checkpoint has no group of rule {wanted}: give --rule {' or '.join(here)}")
    if wanted is None and len(rules) > 1:
        each = "; ".join(f"{rule} of {listed(names)}" for rule, names in rules.items())
        raise Refused(
            f"the checkpoint has groups of several rules ({each}), and an optimizer of torch.optim has one:"
            f" give --rule {' or '.join(here)}"
        )
    return wanted or here[0]


def to_torch(tensors: dict, record: dict, lr: float, drop=(), rule: str | None = None) -> tuple[dict, dict]:
    """A state_dict with `param_names`, and the checkpoint's parameters by name.

    Contents that torch.optim has no place for are refused, except the kinds in `drop`. If the groups have
    several rules, `rule` selects the groups of one.
    """
    rule = rule_to_convert(record, rule)
    known = RULES[rule]
    others = [group for group in record["groups"] if rule_of(group, record) != rule]
    left_out = {name for group in others for name in group["tensors"]}
    there = {
        name.split("/", 1)[0].removesuffix(".scale")
        for name in tensors
        if name.split("/", 1)[-1] not in left_out
    }
    if record["loss_scale"] is not None:
        there.add("loss_scale")
    if lost := sorted(there - {"param", *known.slots, *drop}):
        raise Refused(f"torch.optim has no place for {', '.join(lost)}: give --drop {' '.join(lost)}")
    if never := sorted(set(drop) - there):
        raise Refused(f"there is no {', '.join(never)} to drop: leave it out of --drop")
    state, groups, number = {}, [], 0
    for group in record["groups"]:
        if rule_of(group, record) != rule:
            continue
        hyper = group["hyperparameters"]
        for name, value in known.fixed.items():
            if hyper.get(name, value) != value:
                raise Refused(
                    f"torch.optim.{known.cls.__name__} has no {name} = {shown(hyper[name])}: go on with this"
                    " run here"
                )
        if unknown := hyper.keys() - known.hyper.keys() - known.fixed.keys():
            raise Refused(
                f"{rule} has no {listed(sorted(unknown))}: convert with the script of the version that"
                " saved it"
            )
        factor = group["lr_factor"]
        if factor is None or list(factor) != ["constant"]:
            raise Refused(
                f"the learning rate's factor of group {group['name']} is a schedule, {shown(factor)}: save"
                " with a constant factor"
            )
        theirs = default_group(rule)
        for ours, (name, i) in known.hyper.items():
            if ours not in hyper:
                continue
            if i is None:
                theirs[name] = hyper[ours]
            else:
                theirs[name] = tuple(hyper[ours] if j == i else x for j, x in enumerate(theirs[name]))
        theirs["lr"] = lr * factor["constant"]
        theirs["name"] = group["name"]
        theirs["params"], theirs["param_names"] = [], []
        begun, taken = carry_of(group["carry"]), group.get("taken", record["taken"])
        for name in group["tensors"]:
            own = {}
            if rule != "sgd":
                own["step"] = torch.tensor(float(taken))
            for slot in kept(rule, hyper):
                x = tensors.get(f"{slot}/{name}")
                if x is None:
                    raise Refused(f"the checkpoint has no {slot} of {name}: save it with all of its state")
                if f"{slot}.scale/{name}" in tensors:
                    raise Refused(f"{slot} of {name} is in blocks; load it and save it as f32 first")
                own[slot] = x.clone()
            shape_of(name, tensors.get(f"param/{name}"), own, known.slots)
            if rule == "sgd" and begun == 0.0:
                own.pop("momentum_buffer", None)
            if rule == "nadam":
                own["mu_product"] = torch.tensor(begun if taken else 1.0)
            if rule == "adagrad" and taken == 0:
                own["sum"] += theirs["initial_accumulator_value"]
            if taken or rule == "adagrad":
                state[number] = own
            theirs["params"].append(number)
            theirs["param_names"].append(name)
            number += 1
        groups.append(theirs)
        if group.get("frozen"):
            note(f"group {group['name']} is frozen: give its parameters no gradients in PyTorch")
    for group in others:
        own = rule_of(group, record)
        advice = f"give --rule {own} for another state_dict" if own in RULES else "go on with it here"
        note(
            f"the state_dict leaves out {listed(list(group['tensors']))} of group {group['name']}, which has"
            f" the rule {own}: {advice}"
        )
    params = {name[len("param/") :]: x for name, x in tensors.items() if name.startswith("param/")}
    return {"state": state, "param_groups": groups}, params


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def read(path: Path) -> tuple[dict, dict]:
    """All tensors of a file, or of the files that an index names, and the metadata."""
    tensors, metadata, _ = read_typed(path)
    return tensors, metadata


def read_typed(path: Path) -> tuple[dict, dict, dict]:
    """The same as `read`, and the type and shape of each tensor as the file has them."""
    if path.name.endswith(".index.json"):
        index = parsed(path, path.read_bytes())
        weights = index.get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()):
            raise Refused(
                f"{path} is no index of safetensors files: it has no weight_map from names to files: give the"
                " index of the model"
            )
        tensors, types = {}, {}
        for shard in sorted(set(weights.values())):
            more, _, more_types = read_typed(path.parent / shard)
            tensors, types = tensors | more, types | more_types
        metadata = index.get("metadata")
        return tensors, metadata if isinstance(metadata, dict) else {}, types
    try:
        with safe_open(path, "pt") as file:
            tensors, types = {}, {}
            for name in file.keys():
                stored = file.get_slice(name)
                types[name] = (stored.get_dtype(), stored.get_shape())
                tensors[name] = file.get_tensor(name)
            return tensors, file.metadata() or {}, types
    except SafetensorError as error:
        raise Refused(
            f"{path} is damaged or no safetensors file ({shown(error, 200)}): give another copy"
        ) from None


def parsed(path: Path, text: str | bytes) -> dict:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Refused(f"the JSON in {path} is damaged ({shown(error, 200)}): give another copy") from None
    if not isinstance(found, dict):
        raise Refused(f"the JSON in {path} is {type(found).__name__}, must be an object: give another file")
    return found


def harmless() -> list:
    """Types that a file may hold beside tensors; no others are unpickled.

    These are the arguments of programs, and the constructors of numpy's scalars and arrays. Older versions of
    numpy have the constructors in another module.
    """
    try:
        import numpy
        from numpy._core import multiarray
    except ImportError:
        return [argparse.Namespace]
    makers = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ]
    types = (
        [value for name, value in sorted(vars(numpy.dtypes).items()) if name.endswith("DType")]
        if hasattr(numpy, "dtypes")
        else []
    )
    return [argparse.Namespace, *makers, numpy.dtype, numpy.ndarray, *types]


def read_state(path: Path, entry: str | None = None) -> dict:
    """An optimizer's state_dict: the file's only one, or the one at the keys `entry`."""
    try:
        with torch.serialization.safe_globals(harmless()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # A damaged file can make the unpickler raise any exception.
    except Exception as error:
        raise Refused(f"{path} {unreadable(path, error)}") from None
    found = list(states_in(loaded, "")) if isinstance(loaded, dict) else []
    if not found:
        raise Refused(
            f"{path} has no state_dict of an optimizer, with state and param_groups: save"
            " optimizer.state_dict()"
        )
    if entry is not None:
        found = [(key, state) for key, state in found if key == entry] or found
        if found[0][0] != entry:
            raise Refused(
                f"{path} has no state_dict of an optimizer at {entry}: give --entry one of"
                f" {listed([key for key, _ in found])}"
            )
    if len(found) > 1:
        raise Refused(
            f"{path} has {len(found)} state_dicts of optimizers ({listed([key for key, _ in found])}): give"
            " one by --entry"
        )
    return found[0][1]


def unreadable(path: Path, error: Exception) -> str:
    """The reason why a file cannot be read, without PyTorch's colours and its advice to trust the file."""
    try:
        ours = [
            known[1] if isinstance(known, tuple) else f"{known.__module__}.{known.__name__}"
            for known in harmless()
        ]
        others = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(ours))
    except Exception:
        others = []
    if others:
        return f"has objects beside tensors and numbers ({listed(others)}): save optimizer.state_dict() alone"
    # PyTorch's message has the reason behind these words.
    _, found, reason = re.sub("\x1b[^m]*m", "", str(error)).rpartition("WeightsUnpickler error: ")
    if not found and "weights_only" in reason:
        reason = "it is no pickle"
    return (
        f"is damaged or not of torch.save ({shown(reason.strip().split(chr(10))[0], 200)}): save"
        " optimizer.state_dict() again"
    )


def states_in(x, key: str, depth: int = 0):
    """All state_dicts in the loaded object, with the keys that lead to them."""
    if is_state(x):
        yield key, x
    elif isinstance(x, dict) and (whole := unflattened(x)):
        yield key, whole
    elif depth < 4 and isinstance(x, (dict, list, tuple)):
        for name, entry in x.items() if isinstance(x, dict) else enumerate(x):
            yield from states_in(entry, f"{key}.{name}" if key else str(name), depth + 1)


def unflattened(x: dict) -> dict | None:
    """The state_dict in a flat one of DCP, with keys `state.NAME.SLOT` and `param_groups.NAME.KEY`.

    Parameters with equal keys form a group.
    """
    state, of = {}, {}
    for key, value in x.items():
        for prefix, into in (("state.", state), ("param_groups.", of)):
            if isinstance(key, str) and key.startswith(prefix) and "." in key[len(prefix) :]:
                name, last = key[len(prefix) :].rsplit(".", 1)
                into.setdefault(name, {})[last] = value
    groups = []
    for name, own in of.items():
        own = {key: value for key, value in own.items() if key != "params"}
        same_keys = [
            group
            for group in groups
            if alike({key: value for key, value in group.items() if key != "params"}, own)
        ]
        if same_keys:
            same_keys[0]["params"].append(name)
        else:
            groups.append({**own, "params": [name]})
    return {"state": state, "param_groups": groups} if groups else None


def alike(a, b) -> bool:
    a, b = items(a), items(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


def is_state(x) -> bool:
    if not isinstance(x, dict) or not isinstance(x.get("state"), dict):
        return False
    groups = x.get("param_groups")
    lists = (list, tuple)
    return isinstance(groups, lists) and all(
        isinstance(g, dict) and isinstance(g.get("params"), lists) for g in groups
    )


def write(path: Path, writer) -> None:
    """Replace a file by the output of `writer` once the output is complete."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        # A killed run has left this file, or the file is a link. Links are not followed. An error of `touch`
        # is an OSError, unlike errors of the writers.
        partial.unlink(missing_ok=True)
        partial.touch(exist_ok=False)
        try:
            writer(partial)
        except OSError:
            raise
        # The writers of PyTorch and safetensors raise various exceptions.
        except Exception as error:
            reason = shown(error, 200)
            raise Refused(f"{path} cannot be written ({reason}): give another file or free space") from None
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_checkpoint(path: Path, tensors: dict, record: dict) -> None:
    # A file has no tensors that share memory.
    uses = Counter(x.untyped_storage().data_ptr() for x in tensors.values())
    shared = {name: x for name, x in tensors.items() if uses[x.untyped_storage().data_ptr()] > 1}
    tensors = tensors | {name: x.clone() for name, x in shared.items()}
    write(path, lambda partial: save_file(tensors, partial, {KEY: json.dumps(record)}))


def advanced(k: int, registers: numpy.ndarray) -> numpy.ndarray:
    """Registers of CRC-32C after 2^k further words of zeros."""
    low, high = tables(k)
    halves = registers.view("<u2")
    found = numpy.take(low, halves[0::2])
    found ^= numpy.take(high, halves[1::2])
    return found


@functools.cache
def tables(k: int) -> list[numpy.ndarray]:
    """The function `advanced` of each lower and each upper half of a register. The function is linear."""
    images = numpy.left_shift(1, numpy.arange(32)).astype("<u4")
    if k:
        images = advanced(k - 1, advanced(k - 1, images))
    else:
        for _ in range(32):
            images = (images >> 1) ^ (images & 1) * numpy.uint32(0x82F63B78)
    found = []
    for bits in (images[:16], images[16:]):
        table = numpy.zeros(1, "<u4")
        for image in bits:
            table = numpy.concatenate([table, table ^ image])
        found.append(table)
    return found


def crc32c(data, crc: int = 0) -> int:
    """CRC-32C of `data` after bytes with the sum `crc`.

    The first half of the words advances by the length of the second half and is added to it, until one word
    remains.
    """
    register, at, end = crc ^ 0xFFFFFFFF, 0, len(data)
    while end - at >= 4:
        count = min(CHUNK, 1 << ((end - at) // 4).bit_length() - 1)
        words = numpy.frombuffer(data, "<u4", count, at).copy()
        words[0] ^= numpy.uint32(register)
        for k in reversed(range(count.bit_length() - 1)):
            words = advanced(k, words[: 1 << k]) ^ words[1 << k :]
        register = int(advanced(0, words)[0])
        at += 4 * count
    for byte in bytes(data[at:]):
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def digest(tensors: dict, types: dict, metadata: dict) -> str:
    """The digest of src/checkpoint/digest.rs; `metadata` has the record without its digits, in two parts."""
    pieces = []
    for key, texts in sorted(metadata.items(), key=lambda item: item[0].encode()):
        pieces += [text.encode() for text in (key, *texts)]
    for name in sorted(tensors, key=str.encode):
        dtype, shape = types[name]
        pieces += [name.encode(), dtype.encode(), *(struct.pack("<Q", length) for length in shape)]
        data = tensors[name].reshape(-1).view(torch.uint8).numpy()
        pieces.append(struct.pack("<I", crc32c(data)))
    whole = b"".join(struct.pack("<Q", len(piece)) + piece for piece in pieces)
    return f"{crc32c(whole):08x}"


def read_checkpoint(path: Path) -> tuple[dict, dict]:
    """The tensors and the record of a checkpoint. The record has `crc32c` if the digest was compared."""
    tensors, metadata, types = read_typed(path)
    metadata = {key: text for key, text in metadata.items() if isinstance(text, str)}
    if KEY not in metadata:
        raise Refused(f"{path} is no checkpoint of wgpu-optim: give a file that it saved")
    record = parsed(path, metadata[KEY])
    if record.get("version") != VERSION:
        raise Refused(
            f"{path} has version {shown(record.get('version'))}, this script reads {VERSION}: convert with"
            " the script of that version"
        )
    if missing := sorted({"rule", "taken", "loss_scale", "groups"} - record.keys()):
        raise Refused(f"the record in {path} has no {listed(missing)}: save the checkpoint again")
    # A flipped bit in the key of the digest makes another key.
    if odd := sorted(record.keys() - FIELDS):
        raise Refused(f"the record in {path} has {listed(odd)}, which is not known: give another copy")
    form = re.compile(r'(\{"version":[0-9]*,"crc32c":")([^"]{8})(".*)', re.DOTALL)
    if stamped := form.fullmatch(metadata[KEY]):
        before, saved, after = stamped.groups()
        texts = {key: [text] for key, text in metadata.items()} | {KEY: [before, after]}
        found = digest(tensors, types, texts)
        if found != saved:
            raise Refused(
                f"{path} is damaged: the digest of its content is {found}, {shown(saved)} was saved: give"
                " another copy"
            )
    else:
        record.pop("crc32c", None)
    return tensors, record


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("from-torch")
    command.add_argument("state", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--rule", required=True, choices=RULES)
    command.add_argument("--params", type=Path, help="parameters by name, which go into the checkpoint")
    command.add_argument(
        "--names",
        type=Path,
        help="a text file with a parameter's name a line, in the order of the optimizer's",
    )
    command.add_argument(
        "--entry", metavar="KEYS", help="the state_dict of a file with several, as optimizer_states.1"
    )
    command.add_argument(
        "--steps", help="steps taken, where the file does not count them (SGD, and moments without a step)"
    )
    command.add_argument(
        "--without-state",
        choices=["leave", "zero"],
        help="what becomes of a parameter that never had a gradient: it is left out, or starts at zero",
    )
    command.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="NAME",
        help="keys of groups and of state that do not change the update",
    )
    command = commands.add_parser("to-torch")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument(
        "--lr", type=float, required=True, help="the learning rate, which lr_factor multiplies"
    )
    command.add_argument("--params", type=Path, help="where the parameters go")
    command.add_argument(
        "--rule", metavar="NAME", help="the rule of the groups to convert, if the groups have several rules"
    )
    command.add_argument(
        "--drop",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what may be lost: ema, master, remainder, loss_scale",
    )
    arguments = parser.parse_args(arguments)
    try:
        if arguments.command == "from-torch":
            state = read_state(arguments.state, arguments.entry)
            params = read(arguments.params)[0] if arguments.params else None
            names = arguments.names.read_text().split("\n") if arguments.names else None
            names = [name for name in names if name] if names else None
            steps = None if arguments.steps is None else whole(number(arguments.steps), "--steps")
            tensors, record = from_torch(
                state, arguments.rule, names, steps, params, arguments.without_state, arguments.ignore
            )
            write_checkpoint(arguments.out, tensors, record)
        else:
            tensors, record = read_checkpoint(arguments.checkpoint)
            if "crc32c" not in record:
                note(f"{arguments.checkpoint} has no digest and is not checked: save it here to have one")
            state, params = to_torch(tensors, record, arguments.lr, arguments.drop, arguments.rule)
            if arguments.params and not params:
                raise Refused(f"{arguments.checkpoint} has no parameters for --params: leave --params out")
            write(arguments.out, lambda partial: torch.save(state, partial))
            if arguments.params:
                # Libraries of Hugging Face require the entry `format`.
                write(arguments.params, lambda partial: save_file(params, partial, {"format": "pt"}))
    except (Refused, OSError, UnicodeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
