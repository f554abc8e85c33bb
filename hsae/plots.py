"""Figures: each function takes a tidy frame, or an array, and returns a matplotlib Figure; nothing is saved here."""

import itertools

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")


def loss_curve(curve: pd.DataFrame) -> Figure:
    """Training and validation loss of the transformer. Columns: step, train_loss, val_loss (nats per character)."""
    losses = curve.rename(columns={"train_loss": "train", "val_loss": "validation"})
    tidy = losses.melt("step", ["train", "validation"], "split", "loss")
    figure, axes = _axes(7, 4.2)
    sns.lineplot(tidy, x="step", y="loss", hue="split", style="split", ax=axes)
    best = curve["val_loss"].min()
    axes.set(ylabel="cross-entropy (nats per character)", title=f"Character transformer: best validation {best:.3f}")
    return figure


def training_curves(curves: pd.DataFrame) -> Figure:
    """Every term of every autoencoder's objective. Columns: stage, step, term, value (weighted; zeros left out)."""
    shown = curves.query("value > 0")
    grid = sns.relplot(
        shown, x="step", y="value", hue="term", style="term", kind="line", dashes=True,
        col="stage", col_wrap=3, height=3, aspect=1.35, facet_kws={"sharex": False},
    )  # fmt: skip
    grid.set(yscale="log")
    grid.set_titles("{col_name}").set_axis_labels("step", "weighted term of the loss")
    return grid.figure


def dictionaries(results: pd.DataFrame, y: str, label: str) -> Figure:
    """Dot plot of `y`, a share of 1, with a row per dictionary; the axis shows what is missing to 1, on a log scale.

    Columns: method, family, latents, l0 and `y`. Rows stand in the frame's order, those of one number of latents
    together, the most latents first. The number beside a dot is `y` itself, also where a dot would be off the axis (`y`
    of 1 or more).
    """
    shown = results.sort_values("latents", ascending=False, kind="stable")
    names = [f"{row['method']}  ({row['latents']:,} latents, L0 {row['l0']:.1f})" for row in shown.to_dict("records")]
    missing = (1 - shown[y]).where(shown[y] < 1)
    figure, axes = _axes(9, 1.5 + 0.3 * len(shown))
    sns.scatterplot(
        shown.assign(name=names, missing=missing), x="missing", y="name", hue="family", style="family", s=90, ax=axes
    )
    for row, (value, place) in enumerate(zip(shown[y], missing, strict=True)):
        at, transform = (place, axes.transData) if place > 0 else (0, axes.get_yaxis_transform())
        axes.annotate(f"{value:.3f}", (at, row), (9, 0), transform, "offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set(xscale="log", xlabel=f"1 − {label} (log scale; left is better)", ylabel="")
    axes.margins(x=0.12)
    label_between_decades(axes.xaxis)
    for above, below in itertools.pairwise(range(len(names))):
        if shown["latents"].iloc[above] != shown["latents"].iloc[below]:
            axes.axhline(below - 0.5, color="black", linewidth=1)
    sns.move_legend(axes, "lower center", bbox_to_anchor=(0.5, 1), ncol=4, title=None, frameon=False)
    return figure


def densities(frame: pd.DataFrame, bins: int) -> Figure:
    """Histogram of activation densities. Columns: dictionary, density (share of tokens on which a latent is active)."""
    alive = frame.query("density > 0").assign(log_density=lambda f: np.log10(f["density"]))
    dead = {str(name): (group["density"] == 0).mean() for name, group in frame.groupby("dictionary")}
    grid = sns.displot(alive, x="log_density", col="dictionary", col_wrap=2, bins=bins, height=2.8, aspect=1.6)
    grid.set_axis_labels("log10 share of tokens", "latents")
    for name, axes in grid.axes_dict.items():
        axes.set_title(f"{name}: {dead[name]:.1%} dead")
    grid.figure.subplots_adjust(hspace=0.3)
    return grid.figure


def decoder_heatmap(W_dec: np.ndarray) -> Figure:
    """Level-2 decoder (parents x children, nonnegative), children sorted by their strongest parent, then by weight.

    Each entry is shown as its share of the child's column, so that a child with one parent is one bright cell; parents
    are ordered by their number of children, and children without any parent stand at the right.
    """
    shares, (parents, children) = _shares(W_dec), hierarchical_order(W_dec)
    figure, axes = _axes(11, 5.5)
    sns.heatmap(
        shares[parents][:, children], ax=axes, cmap="mako", norm=PowerNorm(0.4, 0, 1), rasterized=True,
        xticklabels=False, yticklabels=False, cbar_kws={"label": "share of the child's incoming weight"},
    )  # fmt: skip
    axes.set(xlabel=f"{W_dec.shape[1]} level-1 latents, sorted by strongest parent")
    axes.set(ylabel=f"{W_dec.shape[0]} level-2 latents, most children first")
    axes.set_title("Level-2 decoder: who is whose child")
    return figure


def hierarchical_order(W_dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parents by their number of children; children by their strongest parent, then by its share, orphans last."""
    shares = _shares(W_dec)
    strongest = np.where(W_dec.sum(0) > 0, shares.argmax(0), -1)
    sizes = np.bincount(strongest[strongest >= 0], minlength=len(W_dec))
    parents = np.argsort(-sizes, kind="stable")
    rank = np.append(np.argsort(parents), len(parents))  # rank[-1]: no parent, last
    return parents, np.lexsort((-shares.max(0), rank[strongest]))


def panel_grid(
    names: list[str], height: float, width: float = 3.4, n_columns: int = 3, *, sharey: bool = True
) -> tuple[Figure, dict[str, Axes]]:
    """A figure of panels of a size in inches, so many in a row; with `sharey` they have one vertical axis."""
    n_columns = max(min(len(names), n_columns), 1)
    n_rows = max(-(-len(names) // n_columns), 1)
    size = (2.5 + width * n_columns, 1.2 + n_rows * height)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08))
    panels = figure.subplots(n_rows, n_columns, sharey=sharey, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.remove()
    return figure, dict(zip(names, panels, strict=False))


def label_between_decades(axis: Axis) -> None:
    """Plain numbers along a logarithmic axis of a decade or less, where the default labels one tick, or two."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def forest(trees: pd.DataFrame) -> Figure:
    """Some level-2 latents and their children as trees, labelled with the text on which they are strongest.

    Columns: parent, child (labels), share (of the child's incoming decoder weight: line width), p_parent_given_child
    (colour and number). A row per child, those of one parent together.
    """
    figure, axes = _axes(11, 0.8 + 0.36 * (len(trees) + 0.6 * len(trees["parent"].unique())))
    colors = sns.color_palette("mako_r", as_cmap=True)
    y = 0.0
    for parent, children in trees.groupby("parent", sort=False):
        rows = y + np.arange(len(children))
        axes.text(
            0, rows.mean(), str(parent), ha="right", va="center", family="monospace", fontsize=9, parse_math=False
        )
        for row, child in zip(rows, children.to_dict("records"), strict=True):
            p = child["p_parent_given_child"]
            axes.plot([0.02, 0.38], [rows.mean(), row], color=colors(p), linewidth=1 + 5 * child["share"])
            text = f"{p:.2f}  {child['child']}"
            axes.text(0.4, row, text, va="center", family="monospace", fontsize=9, parse_math=False)
        y = rows[-1] + 1.6
    axes.set(xlim=(-0.45, 1), ylim=(y, -1))
    axes.set_title(
        "Level-2 latents (left) and their children (right), each with the text up to its strongest [character]\n"
        "number and colour: P(parent active | child active); width: share of the child's incoming decoder weight",
        fontsize=10,
    )
    axes.set_axis_off()
    return figure


def _shares(W_dec: np.ndarray) -> np.ndarray:
    return W_dec / np.maximum(W_dec.sum(0, keepdims=True), 1e-8)


def colors(n: int) -> list[tuple[float, float, float]]:
    """The colour-blind-safe palette, over and over: beyond its ten colours markers tell methods apart."""
    palette = sns.color_palette("colorblind")
    return [palette[i % len(palette)] for i in range(n)]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    # Not pyplot: it would keep every figure alive.
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()
