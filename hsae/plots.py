"""Figures: each function takes a tidy frame, or an array, and returns a matplotlib Figure; nothing is saved here."""

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

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


def frontier(results: pd.DataFrame, y: str, label: str) -> Figure:
    """L0 against `y` for all dictionaries. Columns: method, latents, l0 and `y`."""
    names = [f"{row['method']} ({row['latents']} latents)" for row in results.to_dict("records")]
    figure, axes = _axes(7, 5)
    sns.scatterplot(results.assign(dictionary=names), x="l0", y=y, hue="dictionary", style="dictionary", s=140, ax=axes)
    axes.set(xscale="log", xlabel="L0: active latents per token (log scale)", ylabel=label)
    axes.set_title("Sparsity against loss recovered: up and left is better")
    sns.move_legend(axes, "center left", bbox_to_anchor=(1, 0.5), title=None)
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
    shares = W_dec / np.maximum(W_dec.sum(0, keepdims=True), 1e-8)
    strongest = np.where(W_dec.sum(0) > 0, shares.argmax(0), -1)
    sizes = np.bincount(strongest[strongest >= 0], minlength=len(W_dec))
    parents = np.argsort(-sizes, kind="stable")
    rank = np.append(np.argsort(parents), len(parents))  # rank[-1]: no parent, last
    children = np.lexsort((-shares.max(0), rank[strongest]))
    figure, axes = _axes(11, 5.5)
    sns.heatmap(
        shares[parents][:, children], ax=axes, cmap="mako", norm=PowerNorm(0.4, 0, 1), rasterized=True,
        xticklabels=False, yticklabels=False, cbar_kws={"label": "share of the child's incoming weight"},
    )  # fmt: skip
    axes.set(xlabel=f"{W_dec.shape[1]} level-1 latents, sorted by strongest parent")
    axes.set(ylabel=f"{W_dec.shape[0]} level-2 latents, most children first")
    axes.set_title("Level-2 decoder: who is whose child")
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    # Not pyplot: it would keep every figure alive.
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()
