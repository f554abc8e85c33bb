"""Figures of what features are: each function takes a tidy frame and returns a Figure; nothing is saved here."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hsae import plots  # noqa: F401 (sets the theme)

LABELS = {
    "first_feature_f1": "F1 of the best latent",
    "absorption": "absorption",
    "absorption_fraction": "absorption fraction",
}


def absorption(measures: pd.DataFrame) -> Figure:
    """Dot plot: a row of panels per measure, a panel per concept, a row per method, in the frame's order.

    Columns: method, concept, measure (a key of LABELS), value, low, high (interval), null (nan: there is none).
    """
    methods, concepts = measures["method"].unique(), measures["concept"].unique()
    size = (2.5 + 2.0 * len(concepts), 1 + len(LABELS) * (0.7 + 0.21 * len(methods)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(LABELS), max(len(concepts), 1), sharey=True, squeeze=False)
    by_panel = measures.set_index(["measure", "concept", "method"]).sort_index()
    for measure, row in zip(LABELS, panels, strict=True):
        for concept, axes in zip(concepts, row, strict=False):
            _dots(axes, by_panel.loc[measure, concept].reindex(methods))
            axes.set_title(str(concept).replace("_", " ") if measure == "first_feature_f1" else "")
            axes.set_xlabel(LABELS[measure])
    handles = panels[0, 0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _dots(axes: Axes, rows: pd.DataFrame) -> None:
    y = np.arange(len(rows))
    axes.hlines(y, rows["low"], rows["high"], color="C0", linewidth=1.5)
    axes.scatter(rows["value"], y, s=26, color="C0", zorder=3, label="measured, with 95% interval")
    axes.scatter(rows["null"], y, s=26, color="C1", marker="x", zorder=2, label="labels shifted along the text")
    axes.set_yticks(y, rows.index, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first method on top
    axes.set_xlim(-0.04, 1.04)


def stability(pairs: pd.DataFrame, latents: pd.DataFrame) -> Figure:
    """Left: the PW-MCC of every pair of seeds, a row per dictionary, with its null; right: how many latents recur.

    Columns of `pairs`: dictionary, mcc, null; of `latents`: dictionary, recurrence (number of other seeds in which a
    latent of the first seed is found again).
    """
    names = pairs["dictionary"].unique()
    figure = Figure(figsize=(12, 1.6 + 0.34 * max(len(names), 8)), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = {"mcc": "pair of seeds", "null": "random directions, same second moments"}
    tidy = pairs.rename(columns=kinds).melt("dictionary", [*kinds.values()], "kind", "cosine")
    sns.stripplot(tidy, x="cosine", y="dictionary", hue="kind", size=5, alpha=0.5, jitter=False, ax=left)
    left.set(xlim=(0, 1), xlabel="mean cosine of matched decoder directions (PW-MCC)", ylabel="")
    sns.move_legend(left, "lower center", bbox_to_anchor=(0.5, 1), ncols=2, title=None, frameon=False)
    sns.histplot(
        latents, x="recurrence", hue="dictionary", stat="proportion", common_norm=False, discrete=True,
        multiple="dodge", shrink=0.8, ax=right,
    )  # fmt: skip
    right.set(xlabel="other seeds with a match (cosine ≥ .7)", ylabel="share of the first seed's latents")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    sns.move_legend(right, "lower center", bbox_to_anchor=(0.5, 1), ncols=2, title=None, frameon=False)
    return figure


def proxies(table: pd.DataFrame) -> Figure:
    """Which share of latents does at most so well: F1 of a short rule, its null, the simulated rater.

    A line per method.

    Columns: method and those of `interpretability_proxy.score`.
    """
    shown = {
        "proxy_f1": "proxy_f1: rule of n-grams, held out",
        "proxy_f1_null": "proxy_f1_null: shifted activations",
        "proxy_intruder": "proxy_intruder: simulated rater",
    }
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, (column, title) in zip(panels, shown.items(), strict=True):
        sns.ecdfplot(table, x=column, hue="method", ax=axes, legend=axes is panels[-1])
        axes.set(title=title, xlim=(-0.02, 1.02), xlabel="", ylabel="share of latents")
    panels[-1].axvline(0.2, color="black", linewidth=1, linestyle="--")  # chance
    sns.move_legend(panels[-1], "center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure
