"""Figures of what methods find of a known hierarchy."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from hsae import plots  # noqa: F401 (sets the theme)

SHOWN = {
    "edge_ap": "average precision of edges",
    "edge_ap_by_direction": "edges matched by direction",
    "mcc": "MCC",
    "matched_f1": "F1 of features",
    "parent_f1": "F1 of parents, level 2",
    "absorption": "absorption",
}


def recovery(scores: dict[str, Any]) -> Figure:
    """A panel per score, a row per method, each beside its untrained self: `ground_truth.score_all`'s result."""
    methods = [name for name in scores if name not in ("data", "samples")]
    trained = [name for name in methods if not name.startswith("untrained_")]
    order = [name for one in trained for name in (one, f"untrained_{one}") if name in methods]
    rows = [
        {"method": method.replace("_", " "), "score": label, "value": values[key]}
        for method in order
        for key, label in SHOWN.items()
        if (values := scores[method]).get(key) is not None
    ]
    grid = sns.catplot(
        pd.DataFrame(rows), x="value", y="method", hue="method", col="score", kind="strip", jitter=False, size=9,
        height=1.2 + 0.35 * len(order), aspect=3.2 / (1.2 + 0.35 * len(order)), legend=False,
    )  # fmt: skip
    grid.set_titles("{col_name}").set_axis_labels("", "").set(xlim=(-0.05, 1.05))
    for axes in grid.axes.flat:
        axes.grid(axis="y", linewidth=0.5)
    return grid.figure
