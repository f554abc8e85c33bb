"""Figures of what methods find of a known hierarchy."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from hsae import plots  # noqa: F401 (sets the theme)

SHOWN = {
    "edge_ap": "average precision of edges",
    "matched_f1": "F1 of features",
    "parent_f1": "F1 of parents, level 2",
    "absorption": "absorption",
}


def recovery(scores: dict[str, dict[str, float]]) -> Figure:
    """A panel per score, a row per method: `ground_truth.score_all`'s result."""
    rows = [
        {"method": method.replace("_", " "), "score": label, "value": values[key]}
        for method, values in scores.items()
        for key, label in SHOWN.items()
        if key in values
    ]
    grid = sns.catplot(
        pd.DataFrame(rows), x="value", y="method", hue="method", col="score", kind="strip", jitter=False, size=9,
        height=1.2 + 0.35 * (len(scores) - 1), aspect=3.2 / (1.2 + 0.35 * (len(scores) - 1)), legend=False,
    )  # fmt: skip
    grid.set_titles("{col_name}").set_axis_labels("", "").set(xlim=(-0.05, 1.05))
    for axes in grid.axes.flat:
        axes.grid(axis="y", linewidth=0.5)
    return grid.figure
