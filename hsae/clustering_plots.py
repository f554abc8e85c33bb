"""Figures of how latents cluster: each takes tidy frames or arrays and returns a Figure; nothing is saved here."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain, cycle, islice

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hsae import plots  # noqa: F401 (sets backend and theme)
from hsae.dendrogram import Dendrogram, similarity_distances

OTHERS = ["other", "no class"]
GREY = (0.85, 0.85, 0.85)
MARKERS = ["o", "X", "s", "P", "D", "^", "v", "<", ">", "*"]
# The palette's own grey would pass for that of OTHERS.
COLORS = [color for color in sns.color_palette("colorblind") if max(color) - min(color) > 0.01] + [(0.0, 0.0, 0.0)]


def clustermap(phi: np.ndarray, labels: pd.DataFrame) -> Figure:
    """Phi coefficients of every two latents, in the order of their tree, beside what else they are grouped by.

    The tree is by average linkage of 1 - phi. Columns of `labels`: group, community, current and next, all strings (see
    `feature_analysis.latent_frame`); each becomes a column of colours.
    """
    merges = Dendrogram.average(similarity_distances(phi)).merges
    classes = _palette(chain(labels["current"], labels["next"]))
    palettes = {"group": _palette(labels["group"]), "community": _palette(labels["community"])}
    palettes |= {"current": classes, "next": classes}
    colors = pd.DataFrame({name: [palette[value] for value in labels[name]] for name, palette in palettes.items()})
    grid = sns.clustermap(
        pd.DataFrame(phi), row_linkage=merges, col_linkage=merges, row_colors=colors, cmap="vlag",
        vmin=-0.3, vmax=0.3, xticklabels=False, yticklabels=False, figsize=(13, 10), dendrogram_ratio=0.1,
        colors_ratio=0.022, rasterized=True,
        cbar_kws={"label": "phi coefficient", "orientation": "horizontal", "extend": "both"},
    )  # fmt: skip
    grid.figure.subplots_adjust(right=0.74, top=0.97)
    grid.figure.axes[-1].set_position((0.77, 0.08, 0.2, 0.02))
    grid.ax_heatmap.set(xlabel=f"{len(labels)} level-1 latents: the largest level-2 groups", ylabel="")
    titles = {"level-2 group": "group", "co-activation community": "community", "class, current and next": "next"}
    top = 0.96
    for title, name in titles.items():
        place = {"loc": "upper left", "bbox_to_anchor": (0.76, top), "alignment": "left", "fontsize": 10}
        grid.figure.legend(handles=_patches(palettes[name]), title=title, frameon=False, **place)
        top -= 0.05 + 0.0215 * len(palettes[name])
    return grid.figure


def embedding(latents: pd.DataFrame) -> Figure:
    """Decoder directions in the plane, coloured by class; members of the largest groups have a marker of their own.

    Columns: x, y, current (class of the current character) and group, as `feature_analysis.latent_frame` gives them.
    """
    figure = Figure(figsize=(11, 8.5))
    axes = figure.add_subplot()
    palette = _palette(latents["current"])
    colored = latents.assign(color=[palette[value] for value in latents["current"]])
    handles = _patches(palette)
    others = colored[colored["group"].isin(OTHERS)]
    axes.scatter(others["x"], others["y"], c=others["color"].tolist(), s=16, alpha=0.6, linewidth=0)
    groups = sorted(set(latents["group"]) - set(OTHERS), key=_number)
    for group, marker in zip(groups, islice(cycle(MARKERS), len(groups)), strict=True):
        members = colored[colored["group"] == group]
        look = {"s": 95, "marker": marker, "edgecolor": "black", "linewidth": 0.9}
        axes.scatter(members["x"], members["y"], c=members["color"].tolist(), **look)
        handles += axes.plot([], [], marker, color="white", markeredgecolor="black", markersize=9, label=group)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axes.set_title(
        "Level-1 decoder directions (t-SNE of cosine distances)\n"
        "colour: class of the current character; marker: the largest level-2 groups",
        fontsize=11,
    )
    return figure


def agreement(frame: pd.DataFrame) -> Figure:
    """AMI of every clustering with every labelling, and with the other clusterings of the same dictionary.

    Columns: dictionary, partition, other, ami, null_mean, null_sd (of permuted labels). Rows and columns stand in the
    frame's order. The last row is the largest null, mean and two standard deviations, of its column; a number that does
    not exceed its own null is grey.
    """
    tidy = frame.assign(
        row=frame["dictionary"] + ": " + frame["partition"].str.replace("_", " "),
        column=frame["other"].str.replace("_", " "),
        chance=frame["null_mean"] + 2 * frame["null_sd"],
    )
    # Clusterings stand in the order of their rows, after what else they are compared with.
    clusterings = tidy["partition"].str.replace("_", " ").unique()
    columns = [*tidy.query("other not in partition")["column"].unique(), *clusterings]
    ami, chance = (
        tidy.pivot(index="row", columns="column", values=value)
        .reindex(tidy["row"].unique(), columns=columns)
        .astype(float)
        for value in ("ami", "chance")
    )
    null = pd.DataFrame([chance.max()], index=["permuted labels: mean + 2 sd"])
    values, needed = pd.concat([ami, null]), pd.concat([chance, null])
    highest = max(float(ami.max().max()), 0.1)
    figure = Figure(figsize=(3 + 0.8 * values.shape[1], 2.2 + 0.5 * len(values)))
    axes = figure.add_subplot()
    axes.grid(visible=False)
    cbar = {"label": "adjusted mutual information"}
    sns.heatmap(values, ax=axes, cmap="mako_r", vmin=0, vmax=highest, linewidths=0.5, cbar_kws=cbar)
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        if not np.isnan(value):
            color = "white" if value > 0.4 * highest else "black" if value > needed.iat[row, column] else "grey"
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", color=color, fontsize=10)
    axes.axhline(len(ami), color="black", linewidth=1)
    axes.set(xlabel="", ylabel="", title="Agreement of clusterings of latents (grey: no more than of permuted labels)")
    for label in axes.get_xticklabels():
        label.set(rotation=40, ha="right")
    return figure


def _palette(values: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    """A colour for each value: numbered ones in their order, others the most frequent first; grey for OTHERS, last."""
    counts = Counter(values)
    names = sorted(counts.keys() - set(OTHERS), key=lambda name: (_number(name), -counts[name], name))
    palette = dict(zip(names, islice(cycle(COLORS), len(names)), strict=True))
    return palette | {name: GREY for name in OTHERS if name in counts}


def _number(name: str) -> int:
    """The number that a name starts with, or 0."""
    first = name.split()[0]
    return int(first) if first.isdigit() else 0


def _patches(palette: dict[str, tuple[float, float, float]]) -> list[Artist]:
    """A palette's entries for a legend."""
    return [Patch(facecolor=color, label=name) for name, color in palette.items()]
