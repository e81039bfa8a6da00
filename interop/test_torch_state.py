"""Tests of torch_state.py, beside the runs of golden.py: refused inputs, and forms that other writers have.

    python interop/test_torch_state.py

The tests need PyTorch and are run by hand. `test_lightning` also needs lightning.
"""

import contextlib
import copy
import fractions
import importlib.util
import io
import json
import logging
import random
import re
import struct
import tempfile
import unittest
import warnings
from pathlib import Path

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import golden
import torch_state

SHAPES = {"w": (4, 3), "scale": ()}


def optimizer(cls=torch.optim.AdamW, steps=3, without=(), named=True, **hyper):
    """An optimizer that has stepped, without gradients for the parameters `without`."""
    own = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    made = cls(own.items() if named else own.values(), lr=0.1, **hyper)
    for _ in range(steps):
        for name, p in own.items():
            p.grad = None if name in without else torch.ones_like(p)
        made.step()
    return made


class Case(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.said = io.StringIO()
        self.enterContext(contextlib.redirect_stderr(self.said))

    def notes(self) -> list[str]:
        """The notes on stderr since the last call. A note ends with advice."""
        found = self.said.getvalue().splitlines()
        self.said.seek(0)
        self.said.truncate()
        for line in found:
            self.advises(line)
        return found

    def file(self, name: str) -> Path:
        return self.directory / name

    def call(self, *arguments):
        torch_state.main([str(x) for x in arguments])

    def from_torch(self, state, *more, rule="adamw"):
        torch.save(state, self.file("in.pt"))
        self.call("from-torch", self.file("in.pt"), self.file("out.safetensors"), "--rule", rule, *more)
        return torch_state.read_checkpoint(self.file("out.safetensors"))

    def refused(self, words: str, call, *arguments, before=False, **more):
        """The call ends with this message, writes nothing and raises no other exception."""
        with self.assertRaises(SystemExit) as caught:
            call(*arguments, **more)
        message = str(caught.exception.code)
        self.assertRegex(message, f"^error: .*{words}")
        self.advises(message)
        self.assertEqual(self.file("out.safetensors").exists(), before)

    def advises(self, message: str):
        """A message ends with advice, unless it is the system's. Its numbers have at most 17 digits."""
        if "No such file" not in message:
            self.assertRegex(
                message, r": (give|save|put|list|convert|leave|go on|set|if it does|it changes)\b[^:]*$"
            )
        self.assertNotRegex(message, r"\d{18}")

    def params(self, **shapes) -> Path:
        save_file({name: torch.ones(shape) for name, shape in shapes.items()}, self.file("model.safetensors"))
        return self.file("model.safetensors")


class Names(Case):
    def test_names_differ(self):
        self.file("names").write_text("a\na\n")
        state = optimizer(named=False).state_dict()
        self.refused(
            "several parameters have the name a:", self.from_torch, state, "--names", self.file("names")
        )

    def test_names_of_two_groups_differ(self):
        state = optimizer().state_dict()
        (group,) = state["param_groups"]
        first, second = ({**group, "params": [i], "param_names": ["w"]} for i in range(2))
        self.refused(
            "several parameters have the name w:", self.from_torch, state | {"param_groups": [first, second]}
        )

    def test_groups_differ(self):
        state = optimizer().state_dict()
        (group,) = state["param_groups"]
        groups = [
            {**group, "params": [0], "param_names": ["w"], "name": "1"},
            {**group, "params": [1], "param_names": ["scale"]},
        ]
        self.refused("several groups have the name 1:", self.from_torch, state | {"param_groups": groups})
        del groups[0]["name"]
        _, record = self.from_torch(state | {"param_groups": groups})
        self.assertEqual([group["name"] for group in record["groups"]], ["0", "1"])


class Groups(Case):
    def test_what_older_versions_lack_is_filled_in(self):
        later = {
            "maximize",
            "amsgrad",
            "decoupled_weight_decay",
            "foreach",
            "capturable",
            "differentiable",
            "fused",
            "nesterov",
            "centered",
        }
        for rule, known in torch_state.RULES.items():
            state = optimizer(known.cls, **({"momentum": 0.9} if rule == "sgd" else {})).state_dict()
            steps = ["--steps", 3] if rule == "sgd" else []
            now = self.from_torch(state, *steps, rule=rule)[1]
            for group in state["param_groups"]:
                for name in later:
                    group.pop(name, None)
            self.assertEqual(self.from_torch(state, *steps, rule=rule)[1], now, rule)

    def test_another_optimizer_is_refused(self):
        self.refused(
            "no state of torch.optim.SGD: its groups have no dampening",
            self.from_torch,
            optimizer().state_dict(),
            rule="sgd",
        )
        self.refused(
            "adamw has no decoupled_weight_decay = False",
            self.from_torch,
            optimizer(torch.optim.Adam).state_dict(),
        )

    def test_schedulers_leave_their_own_in_groups(self):
        schedulers = torch.optim.lr_scheduler
        for schedule in (
            lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=10),
            lambda o: schedulers.CyclicLR(o, 0.01, 0.1),
            lambda o: schedulers.CosineAnnealingLR(o, 10),
            lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
        ):
            made = optimizer()
            schedule(made)
            self.from_torch(made.state_dict())


class State(Case):
    def test_a_scalar_needs_no_params(self):
        tensors, _ = self.from_torch(optimizer().state_dict())
        self.assertEqual(tensors["exp_avg/scale"].shape, ())

    def test_a_parameter_without_gradient_is_named(self):
        self.refused(
            "0 of scale .*never had a gradient.*; 3 of w",
            self.from_torch,
            optimizer(without=["scale"]).state_dict(),
        )
        state = optimizer(torch.optim.SGD, without=["scale"], momentum=0.9).state_dict()
        params = self.params(**SHAPES)
        self.refused(
            "0.0 of scale; 1.0 of w", self.from_torch, state, "--steps", 3, "--params", params, rule="sgd"
        )

    def test_steps_of_sgd_are_given(self):
        self.refused("give --steps", self.from_torch, optimizer(torch.optim.SGD).state_dict(), rule="sgd")

    def test_shapes_agree(self):
        state = optimizer().state_dict()
        params = self.params(w=(3, 4), scale=())
        self.refused(
            r"shapes of w differ: parameter \[3, 4\], exp_avg \[4, 3\]",
            self.from_torch,
            state,
            "--params",
            params,
        )

    def test_state_is_whole(self):
        """A parameter that has some entries of its state must have all of them."""
        for rule, known in torch_state.RULES.items():
            hyper = {
                "sgd": {"momentum": 0.9},
                "adam": {"amsgrad": True},
                "rmsprop": {"momentum": 0.5, "centered": True},
            }
            state = optimizer(known.cls, **hyper.get(rule, {})).state_dict()
            for entry in state["state"][0].keys() - {"step"}:
                less = copy.deepcopy(state)
                if len(less["state"][0].keys() - {"step", "mu_product"}) > 1 or entry == "mu_product":
                    del less["state"][0][entry]
                    self.refused(f"the state of w has no {entry}: give", self.from_torch, less, rule=rule)

    def test_no_shape_without_state(self):
        self.refused("shape of w is not known", self.from_torch, optimizer(steps=0).state_dict())
        self.from_torch(optimizer(steps=0).state_dict(), "--params", self.params(**SHAPES))


class Counts(Case):
    """Counts of parameters, of groups and by `--steps`, and values that are no count."""

    def moments(self, **group):
        state = optimizer().state_dict()
        for own in state["state"].values():
            del own["step"]
        state["param_groups"][0] |= group
        return state

    def test_the_step_of_a_group(self):
        for step in (3, 3.0, torch.tensor(3), torch.tensor(3.0), numpy.int64(3), numpy.float32(3)):
            for steps in ([], ["--steps", 3]):
                _, record = self.from_torch(self.moments(step=step), *steps)
                self.assertEqual(
                    (record["steps"], record["taken"], "taken" in record["groups"][0]), (3, 3, False), step
                )
        self.refused(
            "steps of group 0 differ, .*: 2 of --steps; 3 of the group",
            self.from_torch,
            self.moments(step=3),
            "--steps",
            2,
            before=True,
        )

    def test_moments_without_a_step_ask_for_it(self):
        for rule, known in torch_state.RULES.items():
            state = optimizer(known.cls, **({"momentum": 0.9} if rule == "sgd" else {})).state_dict()
            for own in state["state"].values():
                own.pop("step", None)
            self.refused("give --steps", self.from_torch, state, rule=rule)
            self.assertEqual(self.from_torch(state, "--steps", 3, rule=rule)[1]["taken"], 3, rule)
            self.file("out.safetensors").unlink()

    def test_what_is_no_count(self):
        for step in (
            -1,
            2.5,
            float("nan"),
            float("inf"),
            2**53 + 2,
            True,
            "3",
            None,
            torch.tensor(-1.0),
            numpy.float64(0.5),
        ):
            self.refused(
                "the step of group 0 is .*must be a whole number", self.from_torch, self.moments(step=step)
            )
            state = optimizer().state_dict()
            state["state"][1]["step"] = step
            if step is not None:
                self.refused("the step of scale is .*must be a whole number", self.from_torch, state)
        for steps in ("-1", "2.5", "nan", "many", "9007199254740993"):
            self.refused(
                "--steps is .*must be a whole number", self.from_torch, self.moments(), f"--steps={steps}"
            )

    def test_groups_count_alone(self):
        state = optimizer().state_dict()
        (group,) = state["param_groups"]
        first, second = ({**group, "params": [i], "param_names": [name]} for i, name in enumerate(SHAPES))
        state["state"][1]["step"] = torch.tensor(2.0)
        tensors, record = self.from_torch(state | {"param_groups": [first, second]})
        self.assertEqual(
            (record["steps"], [group.get("taken") for group in record["groups"]]), (3, [None, 2])
        )
        back, _ = torch_state.to_torch(tensors, record, 0.1)
        self.assertEqual([own["step"].item() for own in back["state"].values()], [3, 2])


class Late(Case):
    """Parameters that never had a gradient, for every rule."""

    def test_it_is_left_out_or_starts_at_zero(self):
        for rule, known in torch_state.RULES.items():
            made = optimizer(known.cls, without=["scale"], **({"momentum": 0.9} if rule == "sgd" else {}))
            state, steps = made.state_dict(), ["--steps", 3] if rule == "sgd" else []
            arguments = [state, *steps, "--params", self.params(**SHAPES)]
            self.refused("give --without-state leave or zero", self.from_torch, *arguments, rule=rule)
            tensors, record = self.from_torch(*arguments, "--without-state", "leave", rule=rule)
            self.assertEqual((list(record["groups"][0]["tensors"]), record["taken"]), (["w"], 3), rule)
            self.assertFalse([name for name in tensors if name.endswith("/scale")])
            tensors, record = self.from_torch(*arguments, "--without-state", "zero", rule=rule)
            self.assertEqual(record["groups"][0]["tensors"], {"w": 0, "scale": 12}, rule)
            for name, x in tensors.items():
                if name.endswith("/scale") and not name.startswith("param/"):
                    self.assertEqual((x.item(), x.shape), (0.0, ()), f"{rule}: {name}")
            self.file("out.safetensors").unlink()

    def test_the_first_sum_of_adagrad_is_kept(self):
        state = optimizer(torch.optim.Adagrad, without=["scale"], initial_accumulator_value=4.0).state_dict()
        tensors, _ = self.from_torch(state, "--without-state", "zero", rule="adagrad")
        self.assertEqual(tensors["sum/scale"].item(), 4.0)

    def test_a_missing_sum_of_adagrad_starts_at_the_initial_value(self):
        for steps, expected in ((3, 4.0), (0, 0.0)):
            made = optimizer(torch.optim.Adagrad, steps=steps, initial_accumulator_value=4.0)
            state = made.state_dict()
            del state["state"][1]
            arguments = [state, "--params", self.params(**SHAPES), "--without-state", "zero"]
            tensors, record = self.from_torch(*arguments, rule="adagrad")
            self.assertEqual((tensors["sum/scale"].item(), record["taken"]), (expected, steps))
            back, _ = torch_state.to_torch(tensors, record, 0.1)
            self.assertEqual(back["state"][1]["sum"].item(), 4.0)

    def test_dampening_spares_the_first_velocity(self):
        state = optimizer(torch.optim.SGD, without=["scale"], momentum=0.9, dampening=0.5).state_dict()
        arguments = [state, "--steps", 3, "--params", self.params(**SHAPES), "--without-state", "zero"]
        self.refused("dampening = 0.5", self.from_torch, *arguments, rule="sgd")

    def test_velocities_without_momentum_are_not_used(self):
        made = optimizer(torch.optim.SGD, without=["scale"], momentum=0.9)
        state = made.state_dict()
        (group,) = state["param_groups"]
        params = ["--steps", 3, "--params", self.params(**SHAPES)]
        alone = state | {"param_groups": [group | {"momentum": 0.0}]}
        tensors, record = self.from_torch(alone, *params, rule="sgd")
        self.assertEqual(record["groups"][0]["carry"], torch_state.carry_bits(0.0))
        self.assertEqual({name.split("/")[0] for name in tensors}, {"param"})
        # The group beside it has velocities, so the file has a velocity of each parameter.
        first, second = ({**group, "params": [i], "param_names": [name]} for i, name in enumerate(SHAPES))
        state["state"][1] = {"momentum_buffer": torch.ones(())}
        beside = state | {"param_groups": [first, second | {"momentum": 0.0}]}
        tensors, record = self.from_torch(beside, *params, rule="sgd")
        self.assertEqual([torch_state.carry_of(group["carry"]) for group in record["groups"]], [1.0, 0.0])
        self.assertEqual(tensors["momentum_buffer/scale"].item(), 0.0)
        self.assertTrue(tensors["momentum_buffer/w"].all())


class Forms(Case):
    """Forms of other writers. The library's tests load those of golden.py."""

    def test_generated_states(self):
        """Every form of a rule's state gives the same checkpoint."""
        for rule, known in torch_state.RULES.items():
            made = optimizer(known.cls, **({"momentum": 0.9, "nesterov": True} if rule == "sgd" else {}))
            state, steps = made.state_dict(), ["--steps", 3] if rule == "sgd" else []
            plain = self.from_torch(state, *steps, rule=rule)
            for form, (given, ignore) in golden.forms(state, 3).items():
                ignored = ["--ignore", *ignore] if ignore else []
                self.assertTrue(
                    golden.same_checkpoint(self.from_torch(given, *steps, *ignored, rule=rule), plain),
                    f"{rule}: {form}",
                )

    def test_what_may_change_the_update_is_named(self):
        state = optimizer().state_dict()
        (group,) = state["param_groups"]
        for more, words in (
            ({"bias_correction": False}, "no bias_correction = False here: it changes the update"),
            ({"sparsity": 0.5}, "no sparsity = 0.5 here: .*give --ignore sparsity"),
            ({"lr": float("nan")}, "lr = nan in a group, must be finite"),
            ({"lr": -1.0}, "lr = -1.0 in a group, must be finite and at least 0"),
            ({"eps": float("inf")}, "eps = inf in a group, must be finite"),
        ):
            self.refused(words, self.from_torch, state | {"param_groups": [group | more]})
        state["state"][0]["master_param"] = torch.ones(4, 3)
        self.refused("the state of w has master_param, .*give --ignore master_param", self.from_torch, state)
        self.from_torch(state, "--ignore", "master_param")

    def test_moments_in_f16(self):
        state = optimizer().state_dict()
        for own in state["state"].values():
            own["exp_avg"] = own["exp_avg"].half()
        tensors, _ = self.from_torch(state)
        self.assertEqual(tensors["exp_avg/w"].dtype, torch.float32)
        self.assertTrue(torch.equal(tensors["exp_avg/w"], state["state"][0]["exp_avg"].float()))
        state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].double()
        self.refused("exp_avg of w is torch.float64", self.from_torch, state, before=True)

    def test_the_betas_of_every_type(self):
        state = optimizer(betas=(0.75, 0.5)).state_dict()
        (group,) = state["param_groups"]
        plain = self.from_torch(state)
        each = zip(SHAPES, state["state"].values())
        flat = {f"state.{name}.{key}": x for name, own in each for key, x in own.items()}
        for kind in (list, numpy.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64)):
            given = state | {"param_groups": [group | {"betas": kind([0.75, 0.5])}]}
            self.assertTrue(golden.same_checkpoint(self.from_torch(given), plain), kind)
            own = {key: x for key, x in group.items() if key not in ("params", "param_names")}
            own["betas"] = kind([0.75, 0.5])
            for name in SHAPES:
                flat |= {f"param_groups.{name}.{key}": x for key, x in own.items()}
            self.assertTrue(golden.same_checkpoint(self.from_torch(flat), plain), kind)
        for betas in (numpy.array([[0.75, 0.5]]), torch.ones(3), numpy.array(0.5), [0.75, [0.5]]):
            given = state | {"param_groups": [group | {"betas": betas}]}
            self.refused("betas = ", self.from_torch, given, before=True)

    def test_bounds_of_hyperparameters(self):
        """The bounds of `Rule::validate`: a load of the checkpoint refuses other values."""
        adam, all_of = ["adam", "adamw", "nadam", "radam"], list(torch_state.RULES)
        with_eps = [rule for rule in all_of if rule != "sgd"]
        for rules, key, value, bound in (
            (with_eps, "eps", 1e-40, r"0 or at least \d\.\d+e-3\d"),
            (with_eps, "eps", -1e-8, "0 or at least"),
            (adam, "eps", 2e-38, r"0 or at least 3\.72e-37"),
            (["adagrad"], "initial_accumulator_value", 1e-40, r"0 or at least 1\.18e-38"),
            (["adagrad"], "lr_decay", -0.5, "at least 0"),
            (all_of, "weight_decay", -0.5, "at least 0"),
            (["sgd", "rmsprop"], "momentum", -0.5, "at least 0"),
            (["nadam"], "momentum_decay", -0.5, "at least 0"),
            (["rmsprop"], "alpha", -0.5, "at least 0"),
            (["adadelta"], "rho", 1.5, r"in \[0, 1\]"),
            ([*adam, "adamax"], "betas", (1.0, 0.999), r"in \[0, 1\)"),
            ([*adam, "adamax"], "betas", (0.9, -0.1), r"in \[0, 1\)"),
            (["sgd"], "nesterov", True, "False without momentum > 0 and dampening = 0"),
        ):
            for rule in rules:
                state = optimizer(torch_state.RULES[rule].cls).state_dict()
                state["param_groups"][0][key] = value
                steps = ["--steps", 3] if rule == "sgd" else []
                first = value if not isinstance(value, tuple) else next(x for x in value if not 0 <= x < 1)
                words = f"{key} = {re.escape(str(first))} in a group, must be .*{bound}"
                self.refused(words, self.from_torch, state, *steps, rule=rule)
        for value in (0.0, 1.2e-38):
            state = optimizer(torch.optim.Adagrad, eps=value, initial_accumulator_value=value).state_dict()
            self.from_torch(state, rule="adagrad")

    def test_state_that_shares_memory(self):
        state = optimizer().state_dict()
        both = torch.arange(24.0)
        for own, entries in zip(state["state"].values(), ("w", "scale")):
            own["exp_avg"] = own["exp_avg_sq"] = both[:12].view(4, 3) if entries == "w" else both[3]
        tensors, _ = self.from_torch(state)
        self.assertTrue(torch.equal(tensors["exp_avg_sq/w"], both[:12].view(4, 3)))
        self.assertEqual(tensors["exp_avg/scale"].item(), 3.0)

    def test_objects_are_named_without_colours(self):
        torch.save(
            {"optimizer": optimizer().state_dict(), "share": fractions.Fraction(1, 3)}, self.file("in.pt")
        )
        self.refused(
            "has objects .*fractions.Fraction.*: save",
            self.call,
            "from-torch",
            self.file("in.pt"),
            self.file("out.safetensors"),
            "--rule",
            "adamw",
        )
        self.file("in.pt").write_bytes(b"no pickle")
        with self.assertRaises(SystemExit) as caught:
            self.call("from-torch", self.file("in.pt"), self.file("out.safetensors"), "--rule", "adamw")
        self.assertNotRegex(caught.exception.code, "\x1b|trust|weights_only")


def by_torch(directory: Path) -> dict:
    """One run in files of PyTorch's writers: `torch.save`, DCP, flat DCP, and DCP with numbers."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import format_utils
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    weights = [(name, p) for name, p in model.named_parameters() if name.endswith("weight")]
    biases = [(name, p) for name, p in model.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    made = torch.optim.AdamW(groups, lr=0.1)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        made.step()
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    states = {
        "save": made.state_dict(),
        "dcp": get_optimizer_state_dict(model, made),
        "dcp-flat": get_optimizer_state_dict(model, made, options=flat),
    }
    files = {}
    for name, state in states.items():
        files[f"{name}-saved"] = directory / f"{name}.pt"
        torch.save({"optimizer": state}, files[f"{name}-saved"])
        dcp.save({"model": model.state_dict(), "optimizer": state}, checkpoint_id=directory / name)
        files[name] = directory / f"{name}-one.pt"
        format_utils.dcp_to_torch_save(directory / name, files[name])
    return files


class Written(Case):
    """Files written by other programs."""

    def convert(self, path: Path, *more):
        self.call("from-torch", path, self.file("out.safetensors"), "--rule", "adamw", *more)
        return torch_state.read_checkpoint(self.file("out.safetensors"))

    def test_dcp(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files = by_torch(self.directory)
        plain = self.convert(files.pop("save-saved"))
        self.assertEqual(
            [list(group["tensors"]) for group in plain[1]["groups"]],
            [["0.weight", "1.weight"], ["0.bias", "1.bias"]],
        )
        self.assertEqual((plain[1]["taken"], plain[0]["exp_avg/0.weight"].abs().min() > 0), (3, True))
        for name, path in files.items():
            self.assertTrue(golden.same_checkpoint(self.convert(path), plain), name)

    @unittest.skipUnless(importlib.util.find_spec("lightning"), "needs lightning")
    def test_lightning(self):
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self, width=4):
                super().__init__()
                self.save_hyperparameters()
                self.net = torch.nn.Linear(3, width)

            def training_step(self, batch, _):
                return self.net(batch[0]).sum()

            def configure_optimizers(self):
                made = torch.optim.AdamW(self.net.named_parameters(), lr=0.1)
                return [made], [torch.optim.lr_scheduler.OneCycleLR(made, 0.1, total_steps=10)]

        quiet = {name: False for name in ("logger", "enable_progress_bar", "enable_model_summary")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_steps=3, accelerator="cpu", default_root_dir=self.directory, **quiet
            )
            trainer.fit(
                Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 3)))
            )
            trainer.save_checkpoint(self.file("run.ckpt"))
        tensors, record = self.convert(self.file("run.ckpt"))
        state = torch.load(self.file("run.ckpt"), weights_only=False)["optimizer_states"][0]["state"]
        self.assertEqual((record["taken"], record["groups"][0]["tensors"]), (3, {"weight": 0, "bias": 12}))
        for number, name in enumerate(["weight", "bias"]):
            self.assertTrue(torch.equal(tensors[f"exp_avg/{name}"], state[number]["exp_avg"]))

    def test_one_of_several(self):
        """Lightning and Megatron keep a list if there are several optimizers."""
        one, other = optimizer().state_dict(), optimizer(steps=5).state_dict()
        for whole, keys in (
            ({"optimizer_states": [one, other]}, "optimizer_states.1"),
            ({"optimizer": [{"optimizer": one}, {"optimizer": other}]}, "optimizer.1.optimizer"),
        ):
            self.refused("2 state_dicts .*: give one by --entry", self.from_torch, whole)
            self.refused(f"give --entry one of .*{keys}", self.from_torch, whole, "--entry", "nowhere")
            self.assertEqual(self.from_torch(whole, "--entry", keys)[1]["taken"], 5)
            self.file("out.safetensors").unlink()


class Generated(Case):
    """Random state_dicts that combine the forms of all writers."""

    CASES = 150

    def habit(self, draw: random.Random, state: dict, steps: int) -> tuple[dict, list]:
        """The same state in a random form, and the arguments that the form needs."""
        arguments, counted = [], any("step" in own for own in state["state"].values())
        names = torch_state.named(state, None)
        groups, own = copy.deepcopy(state["param_groups"]), copy.deepcopy(state["state"])
        where = draw.choice(["own", "group", "common"])
        kinds = [
            int,
            float,
            torch.tensor,
            numpy.int64,
            numpy.float32,
            lambda n: torch.tensor([n], dtype=torch.int32),
        ]
        count = draw.choice(kinds)(steps)
        if counted:
            for entries in own.values():
                entries.pop("step", None)
                if where == "own":
                    entries["step"] = count
            if where == "common":
                own["common_step"] = count
            elif where == "group":
                groups = [group | {"step": count} for group in groups]
        number = draw.choice([lambda x: x, numpy.float64, lambda x: torch.tensor(x, dtype=torch.float64)])
        worn = lambda x: (
            number(x) if isinstance(x, float) else tuple(map(worn, x)) if isinstance(x, tuple) else x
        )
        harmless = {
            "lr_scale": 0.5,
            "wd_mult": 2.0,
            "group_name": "a",
            "bias_correction": True,
            "initial_lr": 1.0,
            "start_wd": 0.1,
            "end_wd": 0.1,
            "layer_id": 3,
            "is_expert_parallel": False,
            "correct_bias": True,
        }
        some = {key: harmless[key] for key in draw.sample(sorted(harmless), draw.randrange(4))}
        groups = [{key: worn(value) for key, value in group.items()} | some for group in groups]
        if draw.random() < 0.3:
            key = draw.choice(["depth", "sparsity"])
            groups = [group | {key: 0.5} for group in groups]
            arguments += ["--ignore", key]
        if draw.random() < 0.3:
            groups = [
                {key: x for key, x in group.items() if key not in ("foreach", "fused", "capturable")}
                for group in groups
            ]
        for entries in own.values():
            if isinstance(entries, dict) and draw.random() < 0.3:
                entries["master_param"] = None
        keys = draw.choice(["numbers", "names", "text"])
        if keys == "text":
            own = {str(key): entries for key, entries in own.items()}
        if keys == "names":
            own = {names.get(key, key): entries for key, entries in own.items()}
            groups = [group | {"params": [names[n] for n in group["params"]]} for group in groups]
            groups = [{key: x for key, x in group.items() if key != "param_names"} for group in groups]
        new = {"state": own, "param_groups": groups}
        beside = {"epoch": numpy.int64(3), "rng": numpy.arange(3), "loss": numpy.float32(0.5)}
        masters = [[torch.zeros(3)]]
        wrap = draw.choice(
            [
                lambda x: x,
                lambda x: {"optimizer": x, **beside},
                lambda x: {
                    "state_dict": {"w": torch.ones(1)},
                    "optimizer_states": [x],
                    "lr_schedulers": [{"last_epoch": 3}],
                },
                lambda x: {
                    "optimizer": {
                        "optimizer": x,
                        "grad_scaler": {"scale": 1.0},
                        "fp32_from_fp16_params": masters,
                    },
                    **beside,
                },
                lambda x: {
                    "optimizer": {"optimizer_state_dict": x, "fp32_from_fp16": masters, "overflow": False}
                },
            ]
        )
        return wrap(new), arguments

    def test_the_clothes_do_not_matter(self):
        draw = random.Random(17)
        rules = sorted(torch_state.RULES)
        plain = {}
        for case in range(self.CASES):
            rule = rules[case % len(rules)]
            known, steps = torch_state.RULES[rule], ["--steps", 3] if rule == "sgd" else []
            hyper = {"momentum": 0.9} if rule == "sgd" else {}
            # AdaGrad has state before the first gradient.
            late = draw.choice([None, None, "leave", "zero"]) if rule != "adagrad" else None
            without = ["--without-state", late, "--params", self.params(**SHAPES)] if late else []
            made = optimizer(known.cls, without=["scale"] if late else [], **hyper)
            if (rule, late) not in plain:
                plain[rule, late] = self.from_torch(made.state_dict(), *steps, *without, rule=rule)
            state = made.state_dict()
            if draw.random() < 0.3:
                state["param_groups"].append(state["param_groups"][0] | {"params": [], "param_names": []})
            given, arguments = self.habit(draw, state, 3)
            tensors, record = self.from_torch(given, *steps, *without, *arguments, rule=rule)
            # An empty group may have no count.
            first = record["groups"][0]
            record["groups"] = [group for group in record["groups"] if group["tensors"]]
            self.assertTrue(
                golden.same_checkpoint((tensors, record), plain[rule, late]), f"{case}: {rule} {given}"
            )
            self.assertNotIn("taken", first, f"{case}: {rule}")

    def test_damage_is_refused_with_advice(self):
        """A state_dict with one wrong entry gives a readable checkpoint, or a message with advice."""
        draw = random.Random(18)
        values = [
            -1,
            2.5,
            10**400,
            10**30,
            -(10**30),
            1e300,
            float("nan"),
            float("inf"),
            True,
            None,
            "x",
            "9" * 60,
            [],
            {},
            (),
            (1, 2),
            (0.9, 10**400),
            torch.ones(2),
            torch.tensor(-3),
            numpy.arange(3),
            numpy.float64("nan"),
            [torch.ones(1)],
            {"a": 1},
            1 / 3,
        ]
        refused = 0
        for case in range(self.CASES):
            rule = draw.choice(sorted(torch_state.RULES))
            state = optimizer(
                torch_state.RULES[rule].cls, **({"momentum": 0.9} if rule == "sgd" else {})
            ).state_dict()
            value = draw.choice(values)
            places = [
                (state["param_groups"], 0),
                (state, "param_groups"),
                (state, "state"),
                (state["state"], 0),
                (state["state"], 7),
            ]
            places += [(state["param_groups"][0], key) for key in state["param_groups"][0]] * 2
            places += [(own, key) for own in state["state"].values() for key in [*own, "further"]] * 2
            into, key = draw.choice(places)
            into[key] = value
            try:
                self.from_torch(state, *(["--steps", 3] if rule == "sgd" else []), rule=rule)
            except SystemExit as error:
                self.advises(str(error.code))
                refused += 1
            else:
                tensors, record = torch_state.read_checkpoint(self.file("out.safetensors"))
                torch_state.to_torch(tensors, record, 0.1)
        self.assertGreater(refused, self.CASES // 3)


class Files(Case):
    def test_a_parameter_that_params_lack_is_named(self):
        self.refused(
            "--params has no scale;",
            self.from_torch,
            optimizer().state_dict(),
            "--params",
            self.params(w=(4, 3)),
        )

    def test_the_state_among_other_things(self):
        state = optimizer().state_dict()
        for wrapped in ({"model": {}, "optimizer": state, "epoch": 3}, {"optimizer_states": [state]}):
            self.from_torch(wrapped)
            self.file("out.safetensors").unlink()
        self.refused("2 state_dicts of optimizers .a, b.:", self.from_torch, {"a": state, "b": state})
        for other in ({"model": {}}, [state], {"state": {}}):
            self.refused("no state_dict of an optimizer", self.from_torch, other)

    def test_state_of_no_parameter(self):
        state = optimizer().state_dict()
        state["state"]["others"] = {"exp_avg": torch.ones(1)}
        self.refused(
            "the state has others, and no group has such a parameter: give --ignore others",
            self.from_torch,
            state,
        )
        self.from_torch(state, "--ignore", "others")

    def test_the_sum_of_apex(self):
        """AdaGrad of apex has no decay of the rate, no initial value and no count."""
        state = optimizer(torch.optim.Adagrad).state_dict()
        plain = self.from_torch(state, rule="adagrad")
        (group,) = state["param_groups"]
        for key in set(group) - {"params", "param_names", "lr", "eps", "weight_decay"}:
            del group[key]
        for own in state["state"].values():
            del own["step"]
        self.assertTrue(golden.same_checkpoint(self.from_torch(state, "--steps", 3, rule="adagrad"), plain))

    def test_damaged_files(self):
        state, params = optimizer().state_dict(), self.params(**SHAPES)
        params.write_bytes(params.read_bytes()[:-1])
        self.refused("damaged", self.from_torch, state, "--params", params)
        index = self.file("model.safetensors.index.json")
        for text, words in (
            ("{}", "has no weight_map"),
            ('{"weight_map": {"w": 1}}', "has no weight_map"),
            ("[]", "must be an object"),
            ("{", "damaged"),
        ):
            index.write_text(text)
            self.refused(words, self.from_torch, state, "--params", index)
        self.refused("No such file", self.from_torch, state, "--params", self.file("none.safetensors"))
        self.file("in.pt").write_bytes(b"PK")
        self.refused(
            "damaged",
            self.call,
            "from-torch",
            self.file("in.pt"),
            self.file("out.safetensors"),
            "--rule",
            "adamw",
        )
        self.refused("damaged", self.call, "to-torch", params, self.file("out.pt"), "--lr", 1)
        self.refused(
            "no checkpoint", self.call, "to-torch", self.params(w=()), self.file("out.pt"), "--lr", 1
        )
        for record, words in (
            ("{", "damaged"),
            ("{}", "version None"),
            ('{"version": 1, "rule": "sgd"}', "has no groups, loss_scale, taken"),
        ):
            save_file({"w": torch.ones(1)}, params, {torch_state.KEY: record})
            self.refused(words, self.call, "to-torch", params, self.file("out.pt"), "--lr", 1)


class Back(Case):
    def test_the_learning_rate_is_given(self):
        with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit):
            self.call("to-torch", self.file("in"), self.file("out"))
        self.assertIn("--lr", said.getvalue())

    def test_parameters_say_whose_they_are(self):
        self.from_torch(optimizer().state_dict(), "--params", self.params(**SHAPES))
        self.call(
            "to-torch",
            self.file("out.safetensors"),
            self.file("out.pt"),
            "--lr",
            0.1,
            "--params",
            self.file("back.safetensors"),
        )
        with safe_open(self.file("back.safetensors"), "pt") as file:
            self.assertEqual((file.metadata(), set(file.keys())), ({"format": "pt"}, set(SHAPES)))
        made = optimizer(steps=0)
        made.load_state_dict(torch.load(self.file("out.pt"), weights_only=True))

    def test_no_parameters_to_write(self):
        self.from_torch(optimizer().state_dict())
        arguments = [
            "to-torch",
            self.file("out.safetensors"),
            self.file("out.pt"),
            "--lr",
            0.1,
            "--params",
            self.file("back.safetensors"),
        ]
        with self.assertRaisesRegex(SystemExit, "has no parameters"):
            self.call(*arguments)
        self.assertFalse(self.file("out.pt").exists())

    def test_a_frozen_group_is_named(self):
        tensors, record = self.from_torch(optimizer().state_dict())
        torch_state.to_torch(tensors, record, 0.1)
        self.assertEqual(self.notes(), [])
        record["groups"][0]["frozen"] = True
        torch_state.to_torch(tensors, record, 0.1)
        self.assertIn("group 0 is frozen: give", self.notes()[0])

    def test_shapes_agree(self):
        tensors, record = self.from_torch(optimizer().state_dict(), "--params", self.params(**SHAPES))
        tensors["param/w"] = torch.ones(12)
        with self.assertRaisesRegex(torch_state.Refused, "shapes of w differ"):
            torch_state.to_torch(tensors, record, 0.1)

    def several(self, *rules) -> tuple:
        """A checkpoint of two groups with their rules. Each group has one parameter."""
        state = optimizer(torch.optim.Adam, weight_decay=0.01).state_dict()
        (group,) = state["param_groups"]
        names = zip("ab", enumerate(SHAPES))
        groups = [{**group, "name": n, "params": [i], "param_names": [name]} for n, (i, name) in names]
        params = self.params(**SHAPES)
        state |= {"param_groups": groups}
        tensors, record = self.from_torch(state, "--params", params, rule="adam")
        record["rule"] = rules[0]
        for group, rule in zip(record["groups"], rules):
            if rule != record["rule"]:
                group["rule"] = rule
            if rule == "lion":
                group["hyperparameters"] = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}
            if rule == "adamw":
                del group["hyperparameters"]["decoupled_weight_decay"]
        return tensors, record

    def test_several_rules_are_converted_one_at_a_time(self):
        out = self.file("several.safetensors")
        arguments = ["to-torch", out, self.file("out.pt"), "--lr", 0.1]
        for rules in (("adam", "adamw"), ("adamw", "adam"), ("adam", "lion"), ("lion", "adam")):
            tensors, record = self.several(*rules)
            if "lion" in rules:
                del tensors[f"exp_avg_sq/{list(SHAPES)[rules.index('lion')]}"]
            torch_state.write_checkpoint(out, tensors, record)
            there = [rule for rule in rules if rule != "lion"]
            with self.assertRaises(SystemExit) as caught:
                self.call(*arguments)
            message = str(caught.exception.code)
            self.assertRegex(
                message,
                f"several rules .{rules[0]} of a; {rules[1]} of b.*one: give --rule {' or '.join(there)}$",
            )
            self.advises(message)
            for rule in there:
                i = rules.index(rule)
                other = 1 - i
                self.notes()
                self.call(*arguments, "--rule", rule, "--params", self.file("back.safetensors"))
                self.assertIn(
                    f"leaves out {list(SHAPES)[other]} of group {'ab'[other]}, which has the rule"
                    f" {rules[other]}: ",
                    self.notes()[1],
                )
                state = torch.load(self.file("out.pt"), weights_only=True)
                (group,) = state["param_groups"]
                self.assertEqual((group["name"], group["param_names"]), ("ab"[i], [list(SHAPES)[i]]))
                self.assertEqual(group["decoupled_weight_decay"], rule == "adamw")
                self.assertEqual(group["weight_decay"], 0.01)
                own = [torch.nn.Parameter(torch.ones(list(SHAPES.values())[i]))]
                torch_state.RULES[rule].cls(own).load_state_dict(state)
                # The model's file is whole.
                self.assertEqual(set(torch_state.read(self.file("back.safetensors"))[0]), set(SHAPES))
            if "lion" in rules:
                with self.assertRaisesRegex(SystemExit, "torch.optim has no lion: go on"):
                    self.call(*arguments, "--rule", "lion")

    def test_rules_that_are_not_there(self):
        tensors, record = self.several("adam", "adamw")
        with self.assertRaisesRegex(torch_state.Refused, "no group of rule sgd: give --rule adam or adamw"):
            torch_state.to_torch(tensors, record, 0.1, rule="sgd")
        tensors, record = self.several("lion", "lamb")
        with self.assertRaisesRegex(torch_state.Refused, "torch.optim has no lion, lamb: go on with"):
            torch_state.to_torch(tensors, record, 0.1)
        tensors, record = self.several("adamw", "adamw")
        with self.assertRaisesRegex(torch_state.Refused, "no group of rule adam: give --rule adamw"):
            torch_state.to_torch(tensors, record, 0.1, rule="adam")

    def test_contents_of_other_groups_need_no_drop(self):
        """Contents that torch.optim has no place for are refused only in the groups that are converted."""
        tensors, record = self.several("adam", "adamw")
        tensors["ema/scale"] = torch.ones(())
        torch_state.to_torch(tensors, record, 0.1, rule="adam")
        with self.assertRaisesRegex(torch_state.Refused, "no place for ema: give --drop ema"):
            torch_state.to_torch(tensors, record, 0.1, rule="adamw")

    def test_a_stateless_optimizer(self):
        self.from_torch(
            optimizer(torch.optim.SGD).state_dict(),
            "--steps",
            3,
            "--params",
            self.params(**SHAPES),
            rule="sgd",
        )
        self.call("to-torch", self.file("out.safetensors"), self.file("out.pt"), "--lr", 0.1)


def crc(data: bytes) -> int:
    """CRC-32C, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def stamp(path: Path) -> None:
    """Gives a file the digest that src/checkpoint/digest.rs describes."""
    data = path.read_bytes()
    (end,) = struct.unpack("<Q", data[:8])
    header, data = json.loads(data[8 : 8 + end]), data[8 + end :]
    metadata = header.pop("__metadata__") | {"é\"": "x", "zz": ""}
    record = json.loads(metadata[torch_state.KEY])
    del record["version"]
    record = {"version": 1, "crc32c": "00000000"} | record
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    before, after = text.split("00000000", 1)
    pieces = []
    for key in sorted([*metadata], key=str.encode):
        pieces += [key.encode()]
        pieces += [before.encode(), after.encode()] if key == torch_state.KEY else [metadata[key].encode()]
    for name in sorted(header, key=str.encode):
        own = header[name]
        pieces += [name.encode(), own["dtype"].encode(), *(struct.pack("<Q", n) for n in own["shape"])]
        pieces += [struct.pack("<I", crc(data[slice(*own["data_offsets"])]))]
    digest = crc(b"".join(struct.pack("<Q", len(piece)) + piece for piece in pieces))
    metadata[torch_state.KEY] = f"{before}{digest:08x}{after}"
    text = json.dumps({"__metadata__": metadata} | header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class Digest(Case):
    def saved(self) -> Path:
        """A file with a digest, of all types that a checkpoint has."""
        tensors, record = self.from_torch(optimizer().state_dict(), "--params", self.params(**SHAPES))
        tensors["param/w"] = tensors["param/w"].bfloat16()
        tensors["remainder/w"] = torch.arange(12).to(torch.uint16).view(4, 3)
        tensors["ema/é"] = torch.empty(0, 2, dtype=torch.uint8)
        tensors["ema/Z"] = torch.ones((), dtype=torch.float16)
        path = self.file("stamped.safetensors")
        torch_state.write_checkpoint(path, tensors, record)
        stamp(path)
        return path

    def test_the_sum_is_the_standard_one(self):
        self.assertEqual(torch_state.crc32c(b"123456789"), 0xE3069283)
        data = random.Random(19).randbytes(4 * torch_state.CHUNK + 4099)
        for n in [*range(40), 255, 256, 257, 1023, 4099]:
            self.assertEqual(torch_state.crc32c(data[:n]), crc(data[:n]), n)
        whole = torch_state.crc32c(data)
        for n in (0, 1, 4097, 4 * torch_state.CHUNK - 1, 4 * torch_state.CHUNK, len(data)):
            self.assertEqual(torch_state.crc32c(data[n:], torch_state.crc32c(data[:n])), whole, n)

    def test_every_flipped_byte_is_found(self):
        path = self.saved()
        whole = path.read_bytes()
        torch_state.read_checkpoint(path)
        draw = random.Random(20)
        for i in range(len(whole)):
            flipped = bytearray(whole)
            flipped[i] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            with self.assertRaises(torch_state.Refused, msg=f"byte {i}") as caught:
                torch_state.read_checkpoint(path)
            self.advises(str(caught.exception))
        path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
        with self.assertRaisesRegex(SystemExit, "stamped.safetensors is damaged: .*: give another copy"):
            self.call("to-torch", path, self.file("out.pt"), "--lr", 0.1)
        self.assertFalse(self.file("out.pt").exists())

    def test_several_files_have_one_digest(self):
        path = self.saved()
        (tensors, metadata), index = torch_state.read(path), self.file("run.safetensors.index.json")
        shards = {name: f"{i % 2}.safetensors" for i, name in enumerate(tensors)}
        for shard in set(shards.values()):
            save_file({name: x for name, x in tensors.items() if shards[name] == shard}, self.file(shard))
        index.write_text(json.dumps({"metadata": metadata | {"total_size": 9}, "weight_map": shards}))
        torch_state.read_checkpoint(index)
        whole = index.read_text()
        index.write_text(json.dumps({"metadata": [1], "weight_map": shards}))
        with self.assertRaisesRegex(torch_state.Refused, "no checkpoint"):
            torch_state.read_checkpoint(index)
        index.write_text(whole)
        data = bytearray(self.file("1.safetensors").read_bytes())
        data[-1] ^= 1
        self.file("1.safetensors").write_bytes(data)
        with self.assertRaisesRegex(torch_state.Refused, "is damaged: "):
            torch_state.read_checkpoint(index)

    def test_a_file_without_a_digest_says_so(self):
        path = self.saved()
        drop = ["--lr", 0.1, "--drop", "ema", "remainder"]
        self.call("to-torch", path, self.file("out.pt"), *drop)
        self.assertEqual(self.notes(), [])
        tensors, record = torch_state.read_checkpoint(path)
        del record["crc32c"]
        # The digits of another program are at another place, and are not compared here either.
        for other in (record, record | {"crc32c": "00000000"}):
            torch_state.write_checkpoint(path, tensors, other)
            self.call("to-torch", path, self.file("out.pt"), *drop)
            (said,) = self.notes()
            self.assertIn("stamped.safetensors has no digest and is not checked", said)


class Whole(Case):
    def test_what_fails_leaves_the_file_from_before(self):
        out = self.file("run.safetensors")
        out.write_text("before")

        def fails(path):
            path.write_text("half")
            raise OSError("full")

        with self.assertRaises(OSError):
            torch_state.write(out, fails)
        self.assertEqual(
            [(path.name, path.read_text()) for path in self.directory.iterdir()],
            [("run.safetensors", "before")],
        )
        torch_state.write(out, lambda path: path.write_text("after"))
        self.assertEqual(
            [(path.name, path.read_text()) for path in self.directory.iterdir()],
            [("run.safetensors", "after")],
        )

    def test_errors_of_writers_are_messages(self):
        def fails(path):
            raise RuntimeError("Some tensors share memory")

        with self.assertRaisesRegex(torch_state.Refused, "run.safetensors .*Some tensors share.*: give"):
            torch_state.write(self.file("run.safetensors"), fails)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_link_is_not_followed(self):
        out, other = self.file("run.safetensors"), self.file("other")
        other.write_text("precious")
        for target in ("other", "none", "."):
            self.file(".run.safetensors.partial").symlink_to(target)
            torch_state.write(out, lambda path: path.write_text("after"))
            self.assertEqual(
                (other.read_text(), out.read_text(), out.is_symlink()), ("precious", "after", False)
            )
            self.assertEqual(
                sorted(path.name for path in self.directory.iterdir()), ["other", "run.safetensors"]
            )

    def test_no_directory(self):
        torch.save(optimizer().state_dict(), self.file("in.pt"))
        self.refused(
            "No such file",
            self.call,
            "from-torch",
            self.file("in.pt"),
            self.file("none/out"),
            "--rule",
            "adamw",
        )


if __name__ == "__main__":
    unittest.main()
