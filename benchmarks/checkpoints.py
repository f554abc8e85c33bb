"""What a checkpoint costs: a save of the trainings of the default run, and the share of their time at the interval.

Argument: where to write the result.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.training import machine
from hsae import variants
from hsae.checkpoint import EVERY, Checkpoints, tensors_of
from hsae.files import write_json
from hsae.gpt import GPT, GPTConfig
from hsae.hierarchical import HierarchicalSAE

SAVES = 15


def models() -> dict[str, nn.Module]:
    """The sizes of the default run."""
    level1 = variants.build("jumprelu", 128, 1024, k=32, beta=0.03)
    level2 = variants.build("jumprelu", 1024, 256, k=16, beta=0.15, nonnegative=True)
    transformer = GPT(GPTConfig(3, 4, 128, 128, 0.0), 90)
    return {"transformer": transformer, "level 1": level1, "HSAE": HierarchicalSAE(level1, level2)}


def measure(name: str, model: nn.Module, folder: Path) -> dict[str, object]:
    """Size and time of a save, Adam having moments, and the best transformer being kept beside the present one."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    best = {f"best.{key}": tensor.clone() for key, tensor in model.state_dict().items() if name == "transformer"}
    checkpoints, seconds = Checkpoints(folder).of(name), []
    for step in range(SAVES):
        before = time.perf_counter()
        checkpoints.save(step, tensors_of(model, optimizer, {"order": torch.Generator()}) | best, {})
        seconds.append(time.perf_counter() - before)
    size = sum(file.stat().st_size for file in folder.glob(f"{name}/*")) / 2
    milliseconds = {
        "milliseconds": round(1e3 * median(seconds), 1),
        "longest_milliseconds": round(1e3 * max(seconds), 1),
    }
    return {"training": name, "megabytes": round(size / 1e6, 1), **milliseconds, "share": median(seconds) / EVERY}


def main(result: str) -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rows = [measure(name, model, Path(folder)) for name, model in models().items()]
    print(*rows, sep="\n")
    write_json(Path(result), {"machine": machine(), "interval_seconds": EVERY, "rows": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
