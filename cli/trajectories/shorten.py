"""Shorten recorded training runs to their first steps, so that they are small enough to be bundled.

    python shorten.py DIRECTORY    # where the full recordings lie; the short ones are written beside this script

The inputs (parameters, gradients, learning rates) of the first steps are kept as they are. The results after them, `expect/...` in
float64 and `peer/...` in float32, are computed anew with PyTorch, the way the recordings were made. To show that it is the same way, the
script first recomputes each full run and compares it with the results in the recording.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
MAX_FILE_BYTES = 200_000
DTYPES = {np.dtype("<f8"): "F64", np.dtype("<f4"): "F32"}


def torch_arguments(hyper: dict) -> dict:
    """PyTorch's arguments: beta1 and beta2 become betas."""
    arguments = {name: value for name, value in hyper.items() if name not in ("rule", "beta1", "beta2")}
    if "beta1" in hyper:
        arguments["betas"] = (hyper["beta1"], hyper["beta2"])
    return arguments


def run(metadata: dict, tensors: dict, steps: int, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Parameters and state after `steps` steps in `dtype`, as `param/NAME` and `SLOT/NAME`."""
    hyper = json.loads(metadata["optimizer"])
    names = [name.removeprefix("param/") for name in tensors if name.startswith("param/")]
    params = {name: torch.tensor(tensors[f"param/{name}"]).to(dtype).requires_grad_() for name in names}
    groups = json.loads(metadata.get("groups", "null")) or [{"params": names, "overrides": {}}]
    optimizer = CLASSES[hyper["rule"]](
        [
            {"params": [params[name] for name in group["params"]], **torch_arguments(hyper | group["overrides"])}
            for group in groups
        ],
        foreach=False,
        fused=False,
    )
    clip = json.loads(metadata.get("clip", "null"))
    for t in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = float(tensors["lr"][t - 1])
        for name, param in params.items():
            param.grad = torch.tensor(tensors[f"grad/{t}/{name}"]).to(dtype)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip["global_norm"], foreach=False)
        optimizer.step()
    results = {f"param/{name}": param.detach().numpy() for name, param in params.items()}
    for name, param in params.items():
        for slot, value in optimizer.state[param].items():
            if torch.is_tensor(value) and value.shape == param.shape:
                results[f"{slot}/{name}"] = value.numpy()
    return results


def compare(recorded: dict, prefix: str, results: dict) -> float:
    """The largest relative distance of a tensor from the recorded one."""
    expected = {name.removeprefix(prefix) for name in recorded if name.startswith(prefix)}
    assert expected == set(results), expected ^ set(results)
    worst = 0.0
    for name, value in results.items():
        want = recorded[prefix + name].astype(np.float64)
        worst = max(worst, float(np.abs(value.astype(np.float64) - want).max() / np.abs(want).max()))
    return worst


def shortened(metadata: dict, tensors: dict, steps: int) -> bytes:
    """The file with the first `steps` steps. Written here, because the safetensors package orders metadata at random."""
    kept = {"lr": tensors["lr"][:steps]}
    for name, value in tensors.items():
        if name.startswith("param/") or (name.startswith("grad/") and int(name.split("/")[1]) <= steps):
            kept[name] = value
    kept |= {f"expect/{name}": value for name, value in run(metadata, tensors, steps, torch.float64).items()}
    kept |= {f"peer/{name}": value for name, value in run(metadata, tensors, steps, torch.float32).items()}
    metadata = metadata | {"source": f"{metadata['source']}; the first {steps} of {len(tensors['lr'])} steps"}
    header: dict = {"__metadata__": dict(sorted(metadata.items()))}
    data = bytearray()
    for name in sorted(kept, key=lambda name: (-kept[name].itemsize, name)):
        raw = np.ascontiguousarray(kept[name]).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": DTYPES[kept[name].dtype], "shape": list(kept[name].shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    for path in sorted(Path(sys.argv[1]).glob("digits-*.safetensors")):
        with safe_open(path, "numpy") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        total = len(tensors["lr"])
        truth = compare(tensors, "expect/", run(metadata, tensors, total, torch.float64))
        peer = compare(tensors, "peer/", run(metadata, tensors, total, torch.float32))
        print(f"{path.stem}: {total} steps again: expect off by {truth:.1e}, peer by {peer:.1e}, relative")
        if truth > 1e-13 or peer > 1e-5:
            sys.exit("this is not how the recording was made")
        steps = next(n for n in range(20, 0, -1) if len(shortened(metadata, tensors, n)) <= MAX_FILE_BYTES)
        data = shortened(metadata, tensors, steps)
        (Path(__file__).parent / path.name).write_bytes(data)
        print(f"{path.stem}: {steps} steps, {len(data)} bytes")


if __name__ == "__main__":
    main()
