"""Mutual information of all pairs of 1,024 and 256 latents over 1e5 tokens, beside scikit-learn's on some of them.

Run `dvc repro` first: the latents are those of the trained HSAE. Argument: where to write the result.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.metrics import mutual_info_score

from benchmarks.training import THREADS, machine
from hsae import activations, hierarchical
from hsae.files import read_tensors, write_json
from hsae.information import mutual_information, quantile_bins

N_TOKENS, N_BINS = 100_000, 4
N_PAIRS = 50  # of scikit-learn's in a round
ROUNDS = 5


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def main(result: str) -> None:
    """Measure and write."""
    torch.set_num_threads(THREADS)
    test = activations.read(*read_tensors(Path("data/activations/test.safetensors")), torch.device("cpu"))
    model = hierarchical.load(*read_tensors(Path("models/phase3.safetensors")))
    with torch.no_grad():
        h1 = model.level1.encode(test.x(slice(0, N_TOKENS)))
        h2 = model.level2.encode(h1)
    acts = h1.numpy(), h2.numpy()

    pairs = np.random.default_rng(0).integers((h1.shape[1], h2.shape[1]), size=(N_PAIRS, 2))

    def peer(bins: list[np.ndarray]) -> list[float]:
        return [mutual_info_score(bins[0][:, i], bins[1][:, j]) for i, j in pairs]

    seconds: dict[str, list[float]] = {"bins": [], "all pairs": [], "a pair, scikit-learn": []}
    for _ in range(ROUNDS):
        time_bins, bins = timed(lambda: [quantile_bins(of_level, N_BINS) for of_level in acts])
        time_all, found = timed(lambda bins=bins: mutual_information(*bins))
        time_peer, expected = timed(lambda bins=bins: peer(bins))
        np.testing.assert_allclose(found[pairs[:, 0], pairs[:, 1]], expected, atol=1e-9)
        for name, value in zip(seconds, (time_bins, time_all, time_peer / N_PAIRS), strict=True):
            seconds[name].append(value)
    rows = {name: median(values) for name, values in seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(rows, f"{peak / 1e9:.1f} GB")
    write_json(
        Path(result),
        {
            "machine": machine(), "n_tokens": N_TOKENS, "n_bins": N_BINS, "latents": [h1.shape[1], h2.shape[1]],
            "l0": [float((level > 0).sum(1).mean()) for level in acts], "seconds": rows, "peak_bytes": peak,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
