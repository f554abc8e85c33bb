"""Figure of the controls; like those of plots.py, whose theme it shares, it is returned and not saved."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from hsae import plots  # noqa: F401 (its theme)

COLUMNS = 4


def controls(headlines: pd.DataFrame) -> Figure:
    """A panel per headline, a row in it per control; both in the frame's order.

    Columns: control, headline, value, null. A dot is the value, a hollow one its null where it has one (else nan). A
    value that is not defined (nan) has no dot.
    """
    names, titles = headlines["control"].unique(), headlines["headline"].unique()
    n_rows = -(-len(titles) // COLUMNS)
    figure = Figure(figsize=(13, 0.9 + n_rows * (0.75 + 0.3 * len(names))), layout=ConstrainedLayoutEngine(h_pad=0.08))
    panels = figure.subplots(n_rows, COLUMNS, sharey=True, squeeze=False).flatten()
    for title, axes in zip(titles, panels, strict=False):
        _panel(axes, headlines[headlines["headline"] == title].set_index("control").reindex(names))
        axes.set_title(title, fontsize="small")
    for axes in panels[len(titles) :]:
        axes.remove()
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    y = np.arange(len(rows))
    axes.scatter(rows["null"], y, s=45, facecolor="white", edgecolor="C1", linewidth=1.5, label="its null", zorder=3)
    axes.scatter(rows["value"], y, s=45, color=["C0" if row == 0 else "C7" for row in y], label="value", zorder=3)
    axes.set_yticks(y, [str(name).replace("_", " ") for name in rows.index])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    drawn = np.append(rows[["value", "null"]].to_numpy(), 0)  # what is lost shows only against nothing
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    pad = 0.06 * (high - low) or 0.5
    axes.set_xlim(low - pad, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(4))
