"""Figures of mutual information; like those of plots.py, whose theme they share, they are returned and not saved."""

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from hsae import plots
from hsae.plots import hierarchical_order

SMALLEST = 1e-5  # nats, of a log axis: what is below is not told from chance


def information_heatmap(u: Float[ndarray, "parent child"], W_dec: Float[ndarray, "parent child"]) -> Figure:
    """Share of every parent's entropy that every child tells, in the order of `plots.decoder_heatmap`.

    So a hierarchy that is in the decoder and in the activations shows the same blocks in both figures.
    """
    parents, children = hierarchical_order(W_dec)
    figure = Figure(figsize=(11, 5.5))
    axes = figure.add_subplot()
    sns.heatmap(
        u[parents][:, children].clip(0), ax=axes, cmap="mako", norm=PowerNorm(0.4, 0, 1), rasterized=True,
        xticklabels=False, yticklabels=False, cbar_kws={"label": "I(parent; child) / H(parent)"},
    )  # fmt: skip
    axes.set(xlabel=f"{u.shape[1]} level-1 latents, sorted by strongest parent in the decoder")
    axes.set(ylabel=f"{u.shape[0]} level-2 latents, most children first")
    axes.set_title("Mutual information: who tells of whom")
    return figure


def information_weight(pairs: pd.DataFrame) -> Figure:
    """Information against decoder weight. Columns: information (nats), weight, is_child; a row per pair of latents.

    All pairs are a histogram, and children with their strongest parent by the decoder are dots. What is below SMALLEST
    stands there.
    """
    shown = pairs.assign(information=pairs["information"].clip(SMALLEST))
    figure = Figure(figsize=(8.5, 5.5))
    axes = figure.add_subplot()
    sns.histplot(
        shown, x="weight", y="information", bins=60, log_scale=(False, True), cmap="crest", norm=LogNorm(), vmin=None,
        vmax=None, cbar=True, cbar_kws={"label": "pairs (log scale)"}, ax=axes,
    )  # fmt: skip
    children = shown[shown["is_child"]]
    axes.scatter(children["weight"], children["information"], s=10, color="C1", label="child and its strongest parent")
    axes.set(
        xlabel="level-2 decoder weight", ylabel=f"mutual information (nats, log scale; {SMALLEST:g} or less below)"
    )
    axes.set_title(f"Decoder weight and mutual information of {len(shown):,} pairs")
    axes.legend(loc="lower right")
    return figure


def probe_bounds(bounds: pd.DataFrame) -> Figure:
    """What each representation tells of each label, a panel per label, with its 95% interval and a line at H(Y).

    Columns: representation and those of `probes.bounds`; representations stand in the frame's order.
    """
    representations = bounds["representation"].unique()
    figure, panels = plots.panel_grid(bounds["label"].unique().tolist(), 1 + 0.32 * len(representations))
    for label, axes in panels.items():
        _bound_panel(axes, bounds[bounds["label"] == label].set_index("representation").reindex(representations))
        axes.set_title(label.replace("_", " "))
    figure.supxlabel("lower bound on the information about the label (nats), 95% interval; dashed: its entropy",
                     fontsize="medium")  # fmt: skip
    return figure


def _bound_panel(axes: Axes, rows: pd.DataFrame) -> None:
    y = np.arange(len(rows))
    axes.axvline(float(np.nanmax(rows["entropy"])), color="black", linewidth=1, linestyle="--")
    axes.hlines(y, rows["low"], rows["high"], color="C0", linewidth=2)
    axes.scatter(rows["bound"], y, s=24, color="C0", zorder=3)
    axes.set_yticks(y, [str(name).replace("_", " ") for name in rows.index])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
