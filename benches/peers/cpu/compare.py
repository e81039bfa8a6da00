"""The CPU engine beside PyTorch and candle-nn: both on the same threads, in turn, in one run.

    python3 benches/peers/cpu/compare.py [--threads 2] [--only WORD] [--rounds 11] [--plot FILE] [--bars FILE]

Builds our side first, and installs PyTorch into a virtual environment beside it unless this Python has it.
Prints one line per case: medians in milliseconds, their ratio, and the bound of the ratio.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
# A sample takes about this long, in seconds; it is at least one step.
SAMPLE = 0.1
# Idle before a sample, in seconds: threads of the other side that still spin for work go to sleep.
PAUSE = 0.02
LARGE = 16_777_216
VERSION = "2.15"
LR = 1e-4

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--rounds", type=int, default=11)
parser.add_argument("--only", default="", help="cases whose name contains this")
target = Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
parser.add_argument("--program", type=Path, default=target / "release/cpu-peer")
parser.add_argument("--plot", type=Path, help="writes the scaling of AdamW as an SVG picture")
parser.add_argument("--bars", type=Path, help="writes the cases 'adamw, flat' as an SVG picture")
arguments = parser.parse_args()


def prepare():
    """Both sides as they are to be measured."""
    if arguments.program == target / "release/cpu-peer":
        subprocess.run(["cargo", "build", "--release", "--manifest-path", HERE / "Cargo.toml"], check=True)
    if importlib.util.find_spec("torch") is None:
        python = target / "venv/bin/python"
        if sys.executable == str(python):
            sys.exit("PyTorch is installed and cannot be imported")
        venv.create(target / "venv", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", f"torch=={VERSION}.*"], check=True)
        os.execv(python, [python, *sys.argv])


prepare()
import torch  # noqa: E402  (after the arguments: it takes seconds)

print(f"PyTorch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds")
if not torch.__version__.startswith(VERSION):
    sys.exit(f"PyTorch {VERSION} is what the bounds are of")

torch.set_num_threads(arguments.threads)


class Ours:
    """A child process that times its own steps."""

    def __init__(self, contender, rule, tensors, elements, threads=arguments.threads):
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.child = subprocess.Popen([arguments.program], **pipes)
        assert self.ask(f"setup {contender} {rule} {tensors} {elements}") == "ready"

    def ask(self, line):
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        return self.child.stdout.readline().strip()

    def time(self, steps):
        return float(self.ask(f"time {steps}"))

    def close(self):
        self.child.stdin.close()
        self.child.wait()


class Torch:
    """PyTorch in this process."""

    def __init__(self, rule, tensors, elements, clip=False, **options):
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(elements, generator=generator)) for _ in range(tensors)]
        for p in self.params:
            p.grad = torch.randn(elements, generator=generator)
        self.optimizer = getattr(torch.optim, rule)(self.params, lr=LR, **options)
        self.clip = clip
        # Gradients that are set to zero are filled again before every step, untimed on both sides.
        self.fresh = [p.grad.clone() for p in self.params] if clip else []

    def time(self, steps):
        seconds = 0.0
        for _ in range(steps):
            for p, fresh in zip(self.params, self.fresh):
                p.grad.copy_(fresh)
            start = time.perf_counter()
            if self.clip:
                torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
            if self.clip:
                self.optimizer.zero_grad(set_to_none=False)
            seconds += time.perf_counter() - start
        return seconds / steps

    def close(self):
        del self.params, self.optimizer, self.fresh


def medians(contenders):
    """Of every contender, in turn."""
    steps = []
    for contender in contenders:
        contender.time(1)
        steps.append(max(1, min(1_000, round(SAMPLE / contender.time(2)))))
    samples = [[] for _ in contenders]
    for _ in range(arguments.rounds):
        for contender, count, own in zip(contenders, steps, samples):
            time.sleep(PAUSE)
            contender.time(1)  # wakes the threads
            own.append(contender.time(count))
    for contender in contenders:
        contender.close()
    return [statistics.median(own) for own in samples]


# By name of a case: seconds of our step, and of the first peer's.
MEASURED = {}


def case(name, bound, ours, *peers):
    """A line for each peer; factories, so that only what is wanted takes memory."""
    if arguments.only not in name:
        return
    mine, *theirs = medians([ours(), *(peer() for _, peer in peers)])
    MEASURED[name] = mine, theirs[0]
    for (peer, _), other in zip(peers, theirs):
        aim = f"at most {bound:.2f} {'kept' if mine / other <= bound else 'MISSED'}" if bound else "no bound"
        print(
            f"{name:42} {mine * 1e3:8.3f} ms   {peer:20} {other * 1e3:8.3f} ms   "
            f"ratio {mine / other:.3f}   {aim}",
            flush=True,
        )


def main():
    # The first case after the start is colder than the rest.
    fused = {"adamw": ("AdamW", {}), "adam": ("Adam", {}), "momentum": ("SGD", {"momentum": 0.9})}
    shapes = [(1, LARGE, 1.0), (512, 4_096, 0.4), (148, 65_536, 1.0)]
    for rule, (peer, options) in fused.items():
        for tensors, elements, bound in shapes:
            for form in ["flat", "each"] if tensors > 1 else ["flat"]:
                case(
                    f"{rule}, {form}, {tensors} x {elements}",
                    bound,
                    lambda: Ours(form, rule, tensors, elements),
                    ("torch fused", lambda: Torch(peer, tensors, elements, fused=True, **options)),
                )
    for tensors, elements, bound in [(1, LARGE, 0.8), (512, 4_096, 0.3), (148, 65_536, 0.75)]:
        case(
            f"clip + adamw + zero, {tensors} x {elements}",
            bound,
            lambda: Ours("clip", "adamw", tensors, elements),
            ("torch fused", lambda: Torch("AdamW", tensors, elements, clip=True, fused=True)),
        )
    foreach = {
        "rmsprop": "RMSprop",
        "adagrad": "Adagrad",
        "nadam": "NAdam",
        "radam": "RAdam",
        "adamax": "Adamax",
        "adadelta": "Adadelta",
    }
    for rule, peer in foreach.items():
        case(
            f"{rule}, foreach, 1 x {LARGE}",
            1 / 3,
            lambda: Ours("flat", rule, 1, LARGE),
            ("torch foreach", lambda: Torch(peer, 1, LARGE, foreach=True)),
        )
    case(
        f"adamw, candle, 1 x {LARGE}",
        1 / 3,
        lambda: Ours("flat", "adamw", 1, LARGE),
        ("candle-nn", lambda: Ours("candle", "adamw", 1, LARGE)),
    )
    case(
        "adamw, tiny, 10000 x 100",
        1.0,
        lambda: Ours("flat", "adamw", 10_000, 100),
        ("torch fused", lambda: Torch("AdamW", 10_000, 100, fused=True)),
    )
    case(
        "adamw, tiny each, 10000 x 100",
        1.0,
        lambda: Ours("each", "adamw", 10_000, 100),
        ("torch fused", lambda: Torch("AdamW", 10_000, 100, fused=True)),
    )
    for stored in ["bf16", "bf16-random", "q8", "q8-random"]:
        case(
            f"adamw, formats, {stored}",
            None,
            lambda: Ours(stored, "adamw", 1, LARGE),
            ("ours in f32", lambda: Ours("flat", "adamw", 1, LARGE)),
        )
    if arguments.bars:
        arguments.bars.write_text(bars())
    scaling()


def bars():
    """A pair of bars for each shape of AdamW: our time and PyTorch's, which is the unit."""
    width, left, full = 640, 150, 330
    rows = [(tensors, elements, *MEASURED[f"adamw, flat, {tensors} x {elements}"])
            for tensors, elements in [(1, LARGE), (148, 65_536), (512, 4_096)]]
    height = 88 + 52 * len(rows)
    blue, grey = "#1f5fbf", "#aaaaaa"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           '<text x="12" y="24" font-size="15">Time of an AdamW step on the CPU, in f32</text>',
           f'<text x="12" y="44" fill="#555">{arguments.threads} threads, '
           f'medians of {arguments.rounds}</text>',
           f'<rect x="12" y="55" width="12" height="12" fill="{blue}"/><text x="30" y="66">wgpu-optim</text>',
           f'<rect x="{left}" y="55" width="12" height="12" fill="{grey}"/>'
           f'<text x="{left + 18}" y="66">PyTorch {VERSION}, fused=True</text>']
    for i, (tensors, elements, mine, other) in enumerate(rows):
        top = 80 + 52 * i
        shape = f"{tensors} tensor{'s' * (tensors > 1)} of {elements:,}".replace(",", " ")
        out.append(f'<text x="12" y="{top + 24}" font-size="12">{shape}</text>')
        for y, color, time in [(top, blue, mine), (top + 20, grey, other)]:
            length = full * time / other
            out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="18" fill="{color}"/>'
                       f'<text x="{left + length + 6:.1f}" y="{y + 14}">{time * 1e3:.2f} ms</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def scaling():
    """Bandwidth of AdamW (28 bytes per parameter) and of a triad (12 per element) with equal bytes.

    The table is by elements and threads.
    """
    if arguments.only not in "scaling":
        return
    rows = []
    for elements in [1 << k for k in range(20, 29, 2)]:
        for threads in sorted({1, arguments.threads}):
            # Each side is measured with the other in turn.
            step, triad = medians(
                [
                    Ours("flat", "adamw", 1, elements, threads),
                    Ours("triad", "-", 1, elements * 28 // 12, threads),
                ]
            )
            rows.append((elements, threads, 28 * elements / step / 1e9, 28 * elements / triad / 1e9))
            _, _, ours, theirs = rows[-1]
            print(
                f"scaling, {elements:>11} elements, {threads} threads: "
                f"{step * 1e3:9.3f} ms, {ours:6.1f} GB/s, "
                f"triad {theirs:6.1f} GB/s, ratio {ours / theirs:.3f}",
                flush=True,
            )
    if arguments.plot:
        arguments.plot.write_text(picture(rows))


def picture(rows):
    """Bandwidth over elements, a line for each contender and number of threads."""
    width, height, margin = 640, 400, 56
    top = 1.1 * max(max(row[2:]) for row in rows)
    low, high = (f(row[0] for row in rows).bit_length() for f in (min, max))
    x = lambda elements: margin + (elements.bit_length() - low) / max(1, high - low) * (width - 2 * margin)
    y = lambda rate: height - margin - rate / top * (height - 2 * margin)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for elements in sorted({row[0] for row in rows}):
        out.append(
            f'<text x="{x(elements)}" y="{height - margin + 20}" text-anchor="middle">'
            f"{elements >> 20} Mi</text>"
        )
    for rate in range(0, int(top) + 1, 10):
        out.append(
            f'<path d="M{margin} {y(rate)}H{width - margin}" stroke="#ddd"/>'
            f'<text x="{margin - 6}" y="{y(rate) + 4}" text-anchor="end">{rate}</text>'
        )
    out.append(
        f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">parameters</text>'
        f'<text x="{margin}" y="{margin - 24}">GB/s</text>'
    )
    for i, threads in enumerate(sorted({row[1] for row in rows})):
        for column, color, name in [(2, "#1f5fbf", "AdamW"), (3, "#999999", "triad")]:
            points = [(x(row[0]), y(row[column])) for row in rows if row[1] == threads]
            dash = ' stroke-dasharray="6 4"' if i == 0 else ""
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
            out.append(
                f'<text x="{points[-1][0] + 4}" y="{points[-1][1] + 4 - 12 * (column == 2)}" '
                f'fill="{color}">{name} {threads}</text>'
            )
    return "\n".join([*out, "</svg>"]) + "\n"


main()
