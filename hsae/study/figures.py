"""Figure of the study's results: takes a tidy frame and returns a Figure; nothing is saved here."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsae import plots
from hsae.study.responses import RATINGS
from hsae.study.trials import OPTIONS, Kind

TITLES = {
    Kind.intruder: "which snippet is the intruder?",
    Kind.odd_child: "which group is the odd one out?",
    Kind.clarity: "how clear is the pattern?",
}


def results(frame: pd.DataFrame, raters: int, simulated: int) -> Figure:
    """Accuracy in each arm with its 95% interval and chance, a panel per kind of question; mean clarity beside it.

    Columns of `frame`: kind, arm, value, low, high, answers, as `scoring.score` returns them. The number beside a dot
    is that of its answers. Says so if some of the `raters` are simulated, and if nobody has answered yet.
    """
    kinds = [kind for kind in Kind if kind.value in frame["kind"].to_numpy()]
    if not frame["answers"].to_numpy().any():
        return _empty("no responses yet" if not raters else "no responses left: every rater was excluded")
    arms = frame["arm"].unique()
    figure, panels = plots.panel_grid([TITLES[kind] for kind in kinds], 0.9 + 0.3 * len(arms))
    for color, kind, (title, axes) in zip(plots.colors(len(kinds)), kinds, panels.items(), strict=True):
        _dots(axes, frame[frame["kind"] == kind.value].set_index("arm").reindex(arms), color)
        if kind == Kind.clarity:
            axes.set(xlim=(RATINGS[0] - 0.1, RATINGS[-1] + 0.1), xlabel="mean rating, 1 (no pattern) to 5 (obvious)")
        else:
            axes.axvline(1 / OPTIONS, color="black", linewidth=1, linestyle="--", label=f"chance: {1 / OPTIONS:g}")
            axes.set(xlim=(-0.03, 1.03), xlabel="share right, with 95% interval")
        axes.set_title(title, fontsize="medium")
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False)
    who = f"SIMULATED: {simulated} of {raters} raters are no people" if simulated else f"{raters} raters"
    figure.suptitle(f"Human study, {who}", color="C3" if simulated else "black")
    return figure


def _dots(axes: Axes, rows: pd.DataFrame, color: tuple[float, float, float]) -> None:
    y = np.arange(len(rows))
    axes.hlines(y, rows["low"], rows["high"], color=color, linewidth=1.5)
    axes.scatter(rows["value"], y, s=30, color=color, zorder=3)
    for row, (value, answers) in enumerate(zip(rows["value"], rows["answers"], strict=True)):
        if np.isfinite(value):
            axes.annotate(f"n = {answers:.0f}", (value, row), (0, 6), "data", "offset points", ha="center", fontsize=8)
    axes.set_yticks(y, [str(arm).replace("_", " ") for arm in rows.index])
    axes.set_ylim(len(rows) - 0.4, -0.7)  # the first arm on top


def _empty(text: str) -> Figure:
    figure = Figure(figsize=(7, 3))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize="xx-large", color="0.4")
    return figure
