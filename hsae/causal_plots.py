"""Figures of causal tracing and steering."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hsae import plots

LABELS = {"h2": "level-2 latents", "e1": "e1: h1 from h2", "e0": "e0: x from h1", "h1": "level-1 latents"}

Content = TypeVar("Content", bound=dict[str, Any] | pd.DataFrame)


def _unless_empty(draw: Callable[[Content], Figure]) -> Callable[[Content], Figure]:
    """Where no task is there to be drawn, a figure that says so."""

    @wraps(draw)
    def drawn(content: Content) -> Figure:
        if len(content):
            return draw(content)
        figure = Figure(figsize=(5, 1))
        figure.text(0.5, 0.5, "no task has enough pairs on which the model is right", ha="center", va="center")
        return figure

    return drawn


@_unless_empty
def tracing_map(tasks: dict[str, Any]) -> Figure:
    """A heat map per task that has one: what the clean stream restores at each layer and position, of the effect."""
    tasks = {task: own for task, own in tasks.items() if own["map"] is not None}
    figure, panels = plots.panel_grid(list(tasks), 2.3, 3.6)
    for task, axes in panels.items():
        effect = np.array(tasks[task]["map"])
        rows = ["embeddings", *(f"block {i}" for i in range(len(effect) - 1))]
        columns = [f"-{back}" if back else "last" for back in range(effect.shape[1])]
        frame = pd.DataFrame(effect[::-1, ::-1], rows[::-1], columns[::-1])
        sns.heatmap(frame, vmin=0, vmax=1, cmap="viridis", cbar=False, ax=axes, xticklabels=2)
        axes.set_title(task.replace("_", " "))
    if panels:
        figure.colorbar(next(iter(panels.values())).collections[0], ax=list(panels.values()), shrink=0.8)
    figure.supxlabel("position, counted from the last", fontsize="medium")
    return figure


@_unless_empty
def effects(tasks: dict[str, Any]) -> Figure:
    """CPR and CMD of every method, a panel per task, with 95% intervals; dashed: neurons' CPR."""
    methods = list(next(iter(tasks.values()))["methods"])
    figure, panels = plots.panel_grid(list(tasks), 0.9 + 0.26 * len(methods))
    for task, axes in panels.items():
        for measure, color in (("cpr", "C0"), ("cmd", "C1")):
            _intervals(axes, {method: tasks[task]["methods"][method][measure] for method in methods}, color)
        axes.axvline(tasks[task]["methods"]["neurons"]["cpr"]["value"], color="black", linewidth=1, linestyle="--")
        axes.set_title(task.replace("_", " "))
    figure.supxlabel(
        "means over the number of nodes. Blue: faithfulness (CPR; dashed: neurons). Orange: its distance from 1 (CMD)",
        fontsize="medium",
    )
    return figure


@_unless_empty
def shares(tasks: dict[str, Any]) -> Figure:
    """Share of the effect in level-2 latents, both errors and level-1 latents, a panel per task."""
    figure, panels = plots.panel_grid(list(tasks), 1.0)
    for task, axes in panels.items():
        own = tasks[task]["shares"]
        for kind, color in (("sufficient", "C0"), ("necessary", "C1")):
            _intervals(axes, {LABELS[name]: own[name][kind] for name in LABELS}, color)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_title(task.replace("_", " "))
    figure.supxlabel(
        "share of the effect, 95% interval. Blue: restored alone. Orange: taken out alone", fontsize="medium"
    )
    return figure


def curve_frame(tasks: dict[str, Any]) -> pd.DataFrame:
    """A row per task, method, number of nodes and kind of effect: value, low, high."""
    rows = [
        (task, method, int(k), kind, found["value"], *found["interval"])
        for task, own in tasks.items()
        for method, described in own["methods"].items()
        for k, kinds in described["curve"].items()
        for kind, found in kinds.items()
    ]
    return pd.DataFrame(rows, columns=["task", "method", "k", "kind", "value", "low", "high"])


@_unless_empty
def curves(tasks: dict[str, Any]) -> Figure:
    """Faithfulness of every method over the number of restored nodes, a panel per task."""
    shown = curve_frame(tasks).query("kind == 'sufficient'").replace({"task": "_"}, {"task": " "}, regex=True)
    methods = shown["method"].unique().tolist()
    palette = dict(zip(methods, plots.colors(len(methods)), strict=True))
    grid = sns.relplot(
        shown, x="k", y="value", hue="method", style="method", col="task", col_wrap=_columns(shown), kind="line",
        markers=True, markersize=6, height=2.8, aspect=1.25, palette=palette,
    )  # fmt: skip
    grid.set_titles("{col_name}").set_axis_labels("restored nodes", "faithfulness")
    for task, axes in grid.axes_dict.items():
        axes.set_xscale("log", base=2)
        axes.axhline(1, color="black", linewidth=1, linestyle="--")
        for method, rows in shown[shown["task"] == task].groupby("method", sort=False):
            axes.fill_between(rows["k"], rows["low"], rows["high"], color=palette[method], alpha=0.12, linewidth=0)
    return grid.figure


@_unless_empty
def paths(tasks: dict[str, Any]) -> Figure:
    """Top parents and the children by way of which they act on the answer, a panel per task; lines as wide as effects.

    Beside a parent stands its own effect, beside a child that of each path through it.
    """
    tallest = max(sum(len(row["children"]) for row in own["paths"]) for own in tasks.values())
    figure, panels = plots.panel_grid(list(tasks), 0.4 + 0.26 * tallest, 5.2, 2, sharey=False)
    for task, axes in panels.items():
        _path_panel(axes, tasks[task]["paths"])
        axes.set_title(task.replace("_", " "))
    return figure


@_unless_empty
def steering(frame: pd.DataFrame) -> Figure:
    """Gain of the task's characters against damage to the text, a line per latent and one for chance.

    Columns: task, direction, dose, gain, damage.
    """
    grid = sns.relplot(
        frame.replace({"task": "_"}, {"task": " "}, regex=True).sort_values("dose"), x="damage", y="gain",
        hue="direction", style="direction", col="task", col_wrap=_columns(frame), kind="line",
        sort=False, estimator=None, markers=True, dashes=False, height=2.8, aspect=1.25,
    )  # fmt: skip
    grid.set_titles("{col_name}").set_axis_labels("added cross-entropy (nats)", "gain in log P (nats)")
    for axes in grid.axes.flat:
        axes.set_xscale("symlog", linthresh=0.01)
        # Ticks that are the scale's own lie too near to each other left of 0.
        axes.set_xticks([-0.1, 0, 0.1, 1], ["-0.1", "0", "0.1", "1"])
        axes.axhline(0, color="black", linewidth=1)
    return grid.figure


def _columns(frame: pd.DataFrame) -> int:
    return min(len(frame["task"].unique()), 3)


def _path_panel(axes: Axes, parents: list[dict[str, Any]]) -> None:
    children = list(dict.fromkeys(child["child"] for row in parents for child in row["children"]))
    heights = {child: -i for i, child in enumerate(children)}
    middle = -(len(children) - 1) / 2
    places = np.linspace(0, min(-len(children) + 1, -1), len(parents)) if len(parents) > 1 else np.array([middle])
    for row, y in zip(parents, places, strict=True):
        axes.text(-0.02, y, f"level 2, {row['parent']}: {row['effect']['value']:.2f}", ha="right", va="center")
        for child in row["children"]:
            _line(axes, (0, 1), (y, heights[child["child"]]), child["value"])
    for child, y in heights.items():
        effects = [own["value"] for row in parents for own in row["children"] if own["child"] == child]
        axes.text(1.05, y, f"level 1, {child}: {', '.join(f'{effect:.2f}' for effect in effects)}", va="center")
    axes.set(xlim=(-0.95, 2.3), ylim=(min(-len(children), -1.5), 0.7))
    axes.set_axis_off()


def _line(axes: Axes, x: tuple[float, float], y: tuple[float, float], effect: float) -> None:
    """Blue where a path helps, orange where it hinders; as wide as its effect."""
    axes.plot(x, y, color="C0" if effect >= 0 else "C1", linewidth=min(0.4 + 30 * abs(effect), 9), alpha=0.7)


def _intervals(axes: Axes, found: dict[str, dict[str, Any]], color: str) -> None:
    y = np.arange(len(found))
    low, high = zip(*(row["interval"] for row in found.values()), strict=True)
    axes.hlines(y, low, high, color=color, linewidth=2)
    axes.scatter([row["value"] for row in found.values()], y, s=24, color=color, zorder=3)
    axes.set_yticks(y, list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
