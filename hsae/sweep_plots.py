"""Figures of sweeps: conditions or controls against a reference, methods against one of them, and their frontiers."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hsae import plots

LESS_IS_BETTER = {"fvu": True, "dead_fraction": True, "ce_recovered_mean": False}
WORSE, SAME, BETTER = "#f3c9a5", "#f7f7f7", "#a9cfe8"  # orange and blue: told apart by all
SIGNIFICANT = 0.05
SMALLEST_FVU = 1e-3  # of a log axis: a full basis rebuilds everything, and would stretch it to 1e-7


def paired_differences(comparisons: pd.DataFrame, reference: str) -> Figure:
    """Forest plot: how each condition differs from the `reference`, a panel per metric, both in the frame's order.

    Columns: condition, metric, difference, low, high, p_holm, as `hsae.statistics.paired_comparison` returns them. A
    marker is filled where p_holm < .05 and hollow elsewhere.
    """
    conditions = comparisons["condition"].unique()
    figure, panels = plots.panel_grid(comparisons["metric"].unique().tolist(), 0.9 + 0.26 * len(conditions))
    for metric, axes in panels.items():
        _forest_panel(axes, comparisons[comparisons["metric"] == metric].set_index("condition").reindex(conditions))
        axes.set_title(metric)
    figure.supxlabel(f"difference from the {reference}: mean over seeds and 95% interval", fontsize="medium")
    handles = next(iter(panels.values())).get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def known_hierarchies(summary: dict[str, dict[str, Any]], labels: dict[str, str], first: list[str]) -> Figure:
    """A panel per score, a row per method, a colour per difficulty: means over seeds and their 95% intervals.

    `summary`: method -> <difficulty>.<score> -> entries of metrics/recovery.json; `labels`: those keys -> label, of
    which a score's first is its panel's title. The methods of `first` are on top, as far as `summary` has them; the
    first of all is the reference. Scores that only it, or it and its untrained self, have are left out. A marker is
    hollow unless p_holm < .05 tells it from the reference's.
    """
    reference = first[0]
    methods = [method for method in dict.fromkeys([*first, *summary]) if method in summary]
    own = {reference, f"untrained_{reference}"}
    shared = {key.partition(".")[2] for method in methods if method not in own for key in summary[method]}
    titles: dict[str, str] = {}
    for key, label in labels.items():
        if key.partition(".")[2] in shared:
            titles.setdefault(key.partition(".")[2], label)
    difficulties = list(dict.fromkeys(key.partition(".")[0] for key in labels))
    palette = dict(zip(difficulties, plots.colors(len(difficulties)), strict=True))
    places = dict(zip(difficulties, 0.2 * (np.arange(len(difficulties)) - (len(difficulties) - 1) / 2), strict=True))
    figure, panels = plots.panel_grid(list(titles), 0.9 + 0.36 * len(methods))
    for score, axes in panels.items():
        for y, method in enumerate(methods):
            for difficulty, color in palette.items():
                cell = summary[method].get(f"{difficulty}.{score}")
                if cell is not None:
                    _mean_and_interval(axes, y + places[difficulty], cell, color, filled=method == reference)
        axes.set_title(titles[score])
        axes.set_yticks(np.arange(len(methods)), [method.replace("_", " ") for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    look = {"marker": "o", "linewidth": 1.5}
    handles = [Line2D([], [], color=color, label=difficulty, **look) for difficulty, color in palette.items()]
    same = f"not different from {reference} (p ≥ .05 after Holm)"
    handles.append(Line2D([], [], color="black", markerfacecolor="white", label=same, **look))
    figure.supxlabel("mean over seeds and 95% interval", fontsize="medium")
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def controls_over_seeds(summary: dict[str, dict[str, Any]], labels: dict[str, str], reference: str) -> Figure:
    """A panel per metric, a row in it per control, the `reference` first: means over seeds and their 95% intervals.

    `summary`: control -> metric -> entries of metrics/controls.json; `labels`: metric -> title, in their order. A
    marker is hollow unless p_holm < .05 tells the control from the reference.
    """
    names = [reference, *(name for name in summary if name != reference)]
    shown = [metric for metric in labels if any(metric in own for own in summary.values())]
    figure, panels = plots.panel_grid(shown, 0.75 + 0.3 * len(names))
    for metric, axes in panels.items():
        for y, name in enumerate(names):
            if metric in summary[name]:
                _mean_and_interval(axes, y, summary[name][metric], "C0", filled=name == reference)
        axes.set_title(labels[metric], fontsize="medium")
        axes.set_yticks(np.arange(len(names)), [name.replace("_", " ") for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    note = f"hollow: not different from {reference} (p ≥ .05 after Holm)"
    figure.supxlabel(f"mean over seeds and 95% interval; {note}", fontsize="medium")
    return figure


def frontier(points: pd.DataFrame, ys: dict[str, str]) -> Figure:
    """L0 against each quantity in `ys` (column: label): a row of panels per level, a line per method.

    Columns: method, level, condition, seed, l0 and the keys of `ys`; a row per trained model. Lines join the means over
    seeds, small dots are the seeds. Columns named fvu* are drawn on a log scale, down to SMALLEST_FVU.
    """
    groups = points.groupby(["method", "level", "condition"], sort=False, as_index=False)
    means = groups.agg(dict.fromkeys(["l0", *ys], "mean"))
    methods = means["method"].unique()
    # There are fewer colours than methods: those of one sparsity, markers without a line, share black.
    lines = [method for method in methods if means.loc[means["method"] == method, "condition"].nunique() > 1]
    palette = dict.fromkeys(methods, "black") | dict(zip(lines, plots.colors(len(lines)), strict=True))
    grid = sns.relplot(
        means.melt(["method", "level", "l0"], list(ys), "quantity"), x="l0", y="value", row="level", col="quantity",
        hue="method", style="method", kind="line", estimator=None, markers=True, markersize=8, height=3.4, aspect=1.2,
        facet_kws={"sharex": "row", "sharey": False}, palette=palette,
    )  # fmt: skip
    grid.set_titles("level {row_name}")
    for (level, quantity), axes in grid.axes_dict.items():
        sns.scatterplot(
            points.query(f"level == {level}"), x="l0", y=quantity, hue="method", palette=palette, s=6, alpha=0.5,
            linewidth=0, legend=False, ax=axes,
        )  # fmt: skip
        axes.set(xlabel="", ylabel=ys[quantity])
        axes.set_xscale("log")
        plots.label_between_decades(axes.xaxis)
        if quantity.startswith("fvu"):
            axes.set_yscale("log")
            axes.set_ylim(bottom=max(axes.get_ylim()[0], SMALLEST_FVU))
            plots.label_between_decades(axes.yaxis)
    grid.set_xlabels("L0: active latents per token (log scale)")
    grid.tight_layout()
    return grid.figure


def comparison_table(summary: dict[str, dict[str, Any]], labels: dict[str, str], reference: str) -> Figure:
    """A row per method and level, a column per metric: means over seeds, intervals over seeds and over contexts.

    `summary`: method -> level<n>.<metric> -> entries of metrics/comparison.json; `labels`: those keys -> "level <n>:
    <label>". A cell is blue where a method is better than the `reference` of its level and orange where it is worse,
    in both cases p_holm < .05; metrics that are neither good nor bad stay white.
    """
    of_levels = {key: label for key, label in labels.items() if key.startswith("level")}
    columns = {key.partition(".")[2]: label.partition(": ")[2] for key, label in of_levels.items()}
    levels = sorted({key.partition(".")[0] for key in of_levels})
    rows = [
        (f"level {level[-1]}: {method}", [entries.get(f"{level}.{metric}") for metric in columns])
        for level in levels
        for method, entries in summary.items()
        if f"{level}.{next(iter(columns))}" in entries
    ]
    names = [name + " (reference)" * name.endswith(f": {reference}") for name, _ in rows]
    text = np.array([[_text(cell) for cell in cells] for _, cells in rows])
    colors = np.array(
        [[_verdict(metric, cell) for metric, cell in zip(columns, cells, strict=True)] for _, cells in rows]
    )
    figure = Figure(figsize=(2.6 + 2.3 * len(columns), 1.2 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(
        pd.DataFrame(colors, names, list(columns.values())), annot=text, fmt="", ax=axes,
        cmap=ListedColormap([WORSE, SAME, BETTER]), vmin=-1, vmax=1, cbar=False, linewidths=1,
        annot_kws={"size": 7.5, "color": "black"},
    )  # fmt: skip
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_title(
        f"Mean over seeds, 95% intervals over seeds (s) and contexts (c)\n"
        f"blue: better than {reference}, orange: worse (p < .05 after Holm)",
        fontsize="medium",
    )
    return figure


def _forest_panel(axes: Axes, rows: pd.DataFrame) -> None:
    y = np.arange(len(rows))
    significant = (rows["p_holm"] < SIGNIFICANT).to_numpy()
    axes.axvline(0, color="black", linewidth=1)
    axes.hlines(y, rows["low"], rows["high"], color="C0", linewidth=1.5)
    look = {"s": 24, "edgecolor": "C0", "linewidth": 1.2, "zorder": 3}
    for shown, face, label in ((significant, "C0", "p < .05 after Holm"), (~significant, "white", "p ≥ .05")):
        axes.scatter(rows["difference"][shown], y[shown], facecolor=face, label=label, **look)
    axes.set_yticks(y, rows.index)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first condition on top
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _mean_and_interval(axes: Axes, y: float, cell: dict[str, Any], color: Any, *, filled: bool) -> None:
    if cell["interval"]:
        axes.hlines(y, *cell["interval"], color=color, linewidth=1.5)
    filled = filled or cell.get("p_holm", 1) < SIGNIFICANT
    face = color if filled else "white"
    axes.scatter(cell["mean"], y, s=18, edgecolor=color, facecolor=face, linewidth=1.2, zorder=3)


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    lines = [_number(cell["mean"])]
    if cell["interval"]:
        lines.append("s " + _interval(cell["interval"]))
    if "contexts" in cell:
        lines.append("c " + _interval(cell["contexts"]["interval"]))
    return "\n".join(lines)


def _verdict(metric: str, cell: dict[str, Any] | None) -> int:
    if cell is None or metric not in LESS_IS_BETTER or cell.get("p_holm", 1) >= SIGNIFICANT:
        return 0
    return 1 if (cell["difference"] < 0) == LESS_IS_BETTER[metric] else -1


def _interval(interval: list[float]) -> str:
    return " – ".join(map(_number, interval))


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
