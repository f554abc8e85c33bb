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

    Columns: method, concept, measure (a key of LABELS), value, low, high (interval), null and untrained (nan: there is
    none).
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
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _dots(axes: Axes, rows: pd.DataFrame) -> None:
    y = np.arange(len(rows))
    axes.hlines(y, rows["low"], rows["high"], color="C0", linewidth=1.5)
    axes.scatter(rows["untrained"], y, s=44, facecolors="none", edgecolors="C7", zorder=2, label="untrained")
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


def recurrence(table: pd.DataFrame) -> Figure:
    """Histograms of the cosines between latents and their matches in another seed. Columns: level, cosine, null."""
    kinds = {"cosine": "latents of another seed", "null": "random directions, same second moments"}
    tidy = table.rename(columns=kinds).melt("level", [*kinds.values()], "matched with", "cosine")
    grid = sns.displot(
        tidy, x="cosine", hue="matched with", col="level", bins=30, stat="proportion", common_norm=False,
        element="step", height=3.2, aspect=1.3, facet_kws={"sharey": False},
    )  # fmt: skip
    grid.set_titles("level {col_name}").set_axis_labels("cosine of matched decoder directions", "share of latents")
    return grid.figure


def latent_effects(table: pd.DataFrame, untrained: pd.DataFrame) -> Figure:
    """What removing a latent changes, against removing as much in a random direction; before training too.

    Columns: level, kl, kl_null.
    """
    named = [
        own.assign(level=[f"{name}{level}" for level in own["level"]])
        for name, own in (("", table), ("untrained ", untrained))
    ]
    shown = pd.concat(named, ignore_index=True).query("kl > 0 and kl_null > 0")
    figure = Figure(figsize=(5.6, 5), layout="constrained")
    axes = figure.subplots()
    sns.scatterplot(shown, x="kl_null", y="kl", hue="level", style="level", s=24, alpha=0.6, ax=axes)
    if len(shown):
        ends = [shown[["kl", "kl_null"]].min().min(), shown[["kl", "kl_null"]].max().max()]
        axes.plot(ends, ends, color="black", linewidth=1, linestyle="--")
        axes.set(xscale="log", yscale="log")
    axes.set(
        xlabel="random direction of the same length: KL (nats)", ylabel="latent removed: KL of next character (nats)"
    )
    return figure


def case(raised: pd.DataFrame, children: pd.DataFrame, standing: pd.DataFrame) -> Figure:
    """One latent: the next characters that it raises and lowers, its children, and where it stands among all.

    Columns of `raised`: character, nats; of `children`: child, weight, p_parent_given_child; of `standing`: measure,
    percentile (0 to 100).
    """
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    sign = raised.assign(change=np.where(raised["nats"] > 0, "raised", "lowered"))
    sns.barplot(sign, x="nats", y="character", hue="change", hue_order=["raised", "lowered"], ax=left, legend=False)
    left.axvline(0, color="black", linewidth=1)
    left.set(xlabel="change of log probability (nats)", ylabel="next character", title="What it causes")
    names = {"weight": "decoder weight", "p_parent_given_child": "P(parent | child)"}
    tidy = children.rename(columns=names).melt("child", [*names.values()], "measure", "value").astype({"child": str})
    sns.barplot(tidy, x="value", y="child", hue="measure", ax=middle)
    middle.set(xlabel="", ylabel="level-1 latent", title="Its children", xlim=(0, 1.02))
    if len(children):
        sns.move_legend(middle, "upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, title=None, frameon=False)
    sns.stripplot(standing, x="percentile", y="measure", size=10, color="C0", ax=right)
    right.set(xlabel="percentile among level-2 latents", ylabel="", title="Where it stands", xlim=(-3, 103))
    right.axvline(50, color="black", linewidth=1, linestyle="--")
    return figure
