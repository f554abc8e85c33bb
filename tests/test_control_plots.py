import numpy as np
import pandas as pd
import pytest

from hsae import control_plots

NAN = float("nan")
HEADLINES = pd.DataFrame(
    [
        ("trained", "L0", 20.0, NAN),
        ("random_decoder", "L0", 90.0, NAN),
        ("trained", "P(parent | child)", 0.8, 0.1),
        ("random_decoder", "P(parent | child)", 0.06, 0.03),
        ("trained", "CE recovered", 0.9, NAN),
        ("random_decoder", "CE recovered", NAN, NAN),
    ],
    columns=["control", "headline", "value", "null"],
)


def points(axes) -> list[list[list[float]]]:
    """Of each collection its dots that are seen."""
    found = [np.ma.filled(np.ma.asarray(dots.get_offsets()), NAN) for dots in axes.collections]
    return [[row for row in dots.tolist() if not np.isnan(row).any()] for dots in found]


def test_a_headline_has_a_panel_with_a_dot_per_control_and_its_null_beside_it():
    figure = control_plots.controls(HEADLINES)
    l0, p, ce = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["L0", "P(parent | child)", "CE recovered"]
    assert points(l0) == [[], [[20, 0], [90, 1]]]
    assert points(p) == [[[0.1, 0], [0.03, 1]], [[0.8, 0], [0.06, 1]]]
    assert points(ce) == [[], [[0.9, 0]]]
    assert [tick.get_text() for tick in l0.get_yticklabels()] == ["trained", "random decoder"]
    assert l0.get_ylim()[0] > l0.get_ylim()[1], "the first on top"


@pytest.mark.parametrize("factor", [1, -1, 0])
def test_every_panel_reaches_from_nothing_to_all_its_dots_and_cuts_none(factor: int):
    values = HEADLINES[["value", "null"]] * factor
    for axes in control_plots.controls(HEADLINES.assign(**values)).axes:
        low, high = axes.get_xlim()
        assert low < 0 < high
        assert all(low < x < high for dots in points(axes) for x, _ in dots)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_there_are_no_empty_panels(n: int):
    rows = pd.DataFrame({"control": "trained", "headline": [f"h{i}" for i in range(n)], "value": 1.0, "null": NAN})
    assert len(control_plots.controls(rows).axes) == n
