"""The table of methods as a figure."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from hsae import plots  # noqa: F401 (sets the theme)

LESS_IS_BETTER = {"fvu": True, "dead_fraction": True, "ce_recovered_mean": False}
WORSE, SAME, BETTER = "#f3c9a5", "#f7f7f7", "#a9cfe8"  # orange and blue: told apart by all
SIGNIFICANT = 0.05


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
