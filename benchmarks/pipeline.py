"""The pipeline from nothing in a clone of the last commit, and again with another beta2: seconds of every stage.

Arguments: where to write the result and the plot.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns

from benchmarks.training import machine
from hsae.files import write_figure, write_json

RUNS = {"from nothing": ["dvc", "repro"], "beta2=0.2": ["dvc", "exp", "run", "-S", "beta2=0.2"]}


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of a command of DVC's, and of each stage that it ran; memory of the largest process so far."""
    start = time.perf_counter()
    begun: list[tuple[str, float]] = []
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("Running stage '"):
                begun.append((line.split("'")[1], time.perf_counter()))
                print(line.strip(), flush=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed in {folder}")
    end = time.perf_counter()
    ends = [*(at for _, at in begun[1:]), end]
    return {
        "seconds": end - start,
        "stages": {name: until - at for (name, at), until in zip(begun, ends, strict=True)},
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def draw(runs: dict[str, Any], path: Path) -> None:
    """A bar for each stage."""
    rows = [
        {"run": f"{name}: {found['seconds']:.0f} s", "stage": stage, "seconds": seconds}
        for name, found in runs.items()
        for stage, seconds in found["stages"].items()
    ]
    grid = sns.catplot(
        pd.DataFrame(rows), x="seconds", y="stage", hue="run", kind="bar", palette="colorblind", height=8, aspect=1
    )
    grid.set_axis_labels("seconds", "")
    write_figure(path, grid.figure)


def main(result: str, plot: str) -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "hsae"
        subprocess.run(["git", "clone", "--quiet", ".", folder], check=True)
        runs = {name: run(command, folder) for name, command in RUNS.items()}
    write_json(Path(result), {"machine": machine(), "runs": runs})
    draw(runs, Path(plot))


if __name__ == "__main__":
    main(*sys.argv[1:])
