"""Intervals over the text: what metrics would have been on other contexts, by a cluster bootstrap that pairs methods.

The characters of a context are not independent, so contexts are drawn, not characters; every method is measured on the
same draws.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from hsae.experiments import read_tensors
from hsae.statistics import cluster_weights
from hsae.streams import Stream

FILES = ("data/contexts/evaluate.safetensors", "data/contexts/hsae.safetensors")
Sums = dict[str, Float[np.ndarray, " context"]]


class Run(NamedTuple):
    """Sums over each context of the test split, in its order (`evaluation.Evaluation`)."""

    shared: Sums
    """What no method changes."""
    methods: dict[str, Sums]
    """Of each method, family/name."""


def read(commit: str) -> Run:
    """The sums that a commit's evaluation has left, of the HSAE and of all others."""
    groups: dict[str, Sums] = {}
    for path in FILES:
        for key, values in read_tensors(commit, path)[0].items():
            group, _, name = key.rpartition("/")
            groups.setdefault(group, {})[name] = values.numpy()
    return Run(groups.pop("contexts"), groups)


def intervals(runs: list[Run], rivals: dict[str, str], stream: Stream) -> pd.DataFrame:
    """95% percentile intervals of the means over `runs` (one per seed of the models), as contexts are drawn.

    `rivals`: method -> the method that it is compared with. Columns: method, metric (l0, fvu, ce_recovered_mean), low
    and high of the mean, difference_low and difference_high of method - rival. `stream` draws the contexts, the same
    ones for all methods and metrics. Raises ValueError if runs have other contexts than the first one.
    """
    n_contexts = len(runs[0].shared["n_tokens"])
    if any(len(run.shared["n_tokens"]) != n_contexts for run in runs):
        raise ValueError("the runs were evaluated on different numbers of contexts, and cannot be compared over them.")
    weights = cluster_weights(n_contexts, stream)
    found = {method: _means(runs, method, weights) for method in {*rivals, *rivals.values()}}
    rows = []
    for method, rival in rivals.items():
        for metric, values in found[method].items():
            low, high = np.percentile(values, [2.5, 97.5])
            least, most = np.percentile(values - found[rival][metric], [2.5, 97.5])
            rows.append((method, metric, low, high, least, most))
    return pd.DataFrame(rows, columns=["method", "metric", "low", "high", "difference_low", "difference_high"])


def metrics(shared: Sums, own: Sums, weights: np.ndarray) -> dict[str, Float[np.ndarray, " draw"]]:
    """l0, fvu and ce_recovered_mean of a method on contexts that count as often as a row of `weights` says."""
    clean, ablated, ce = (weights @ values for values in (shared["ce_clean"], shared["ce_mean_ablated"], own["ce"]))
    return {
        "l0": (weights @ own["active"]) / (weights @ shared["n_tokens"]),
        "fvu": (weights @ own["squared_error"]) / (weights @ shared["sum_squares"]),
        "ce_recovered_mean": (ablated - ce) / (ablated - clean),
    }


def _means(runs: list[Run], method: str, weights: np.ndarray) -> dict[str, Float[np.ndarray, " draw"]]:
    found = [metrics(run.shared, run.methods[method], weights) for run in runs]
    return {name: np.mean([values[name] for values in found], axis=0) for name in found[0]}
