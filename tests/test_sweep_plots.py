from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import Collection, LineCollection
from matplotlib.colors import to_hex

from hsae.sweep_plots import (
    BETTER,
    SAME,
    SMALLEST_FVU,
    WORSE,
    comparison_table,
    controls_over_seeds,
    frontier,
    known_hierarchies,
    paired_differences,
)

METRICS = {"l0": "L0", "fvu": "FVU"}
LABELS = {f"level{i}.{name}": f"level {i}: {label}" for i in (1, 2) for name, label in METRICS.items()}


def cell(mean: float, difference: float | None = None, p_holm: float = 0.5) -> dict[str, Any]:
    compared = {} if difference is None else {"difference": difference, "p_holm": p_holm}
    contexts = {"interval": [mean - 0.3, mean + 0.3]}
    return {"mean": mean, "interval": [mean - 0.1, mean + 0.1], "contexts": contexts, **compared}


SUMMARY = {
    "HSAE": {
        "level1.l0": cell(24.0, 4, 0.001), "level1.fvu": cell(0.5, -0.1, 0.01), "level2.l0": cell(12.0),
        "level2.fvu": cell(0.7, 0.1, 0.01), "hierarchy.p": cell(0.9),
    },
    "topk": {"level1.l0": cell(20.0), "level1.fvu": cell(0.6)},
    "kmeans": {"level1.l0": cell(1.0), "level1.fvu": cell(0.8, 0.2, 0.06)},
}  # fmt: skip


def test_the_table_marks_what_holm_lets_differ_and_nothing_else():
    axes = comparison_table(SUMMARY, {**LABELS, "hierarchy.p": "P"}, "topk").axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["level 1: HSAE", "level 1: topk (reference)", "level 1: kmeans", "level 2: HSAE"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["L0", "FVU"]
    mesh = axes.collections[0]
    axes.figure.canvas.draw()
    colors = [to_hex(tuple(color)) for color in np.asarray(mesh.get_facecolor())]
    # L0 is neither good nor bad; less error is better; .06 says nothing.
    assert colors == [SAME, BETTER, SAME, SAME, SAME, SAME, SAME, WORSE]
    texts = [text.get_text() for text in axes.texts]
    assert texts[1] == "0.5000\ns 0.4000 – 0.6000\nc 0.2000 – 0.8000"
    assert texts[0].startswith("24.00\n")


def comparison(condition: str, metric: str, difference: float, p_holm: float) -> dict[str, object]:
    low, high = difference - 0.5, difference + 0.25
    return {
        "condition": condition, "metric": metric, "difference": difference, "low": low, "high": high, "p_holm": p_holm
    }  # fmt: skip


COMPARISONS = pd.DataFrame(
    [
        comparison("no grouping", "fvu", 0.5, 0.001),
        comparison("frozen", "fvu", -1.0, 0.05),
        comparison("no grouping", "purity", 2.0, 0.6),
    ]
)


def drawn_points(collection: Collection) -> list[list[float]]:
    offsets = np.ma.filled(np.ma.asarray(collection.get_offsets()), np.nan)
    return offsets[~np.isnan(offsets).any(1)].tolist()


def test_the_forest_shows_every_difference_with_its_interval_and_fills_the_significant_ones():
    figure = paired_differences(COMPARISONS, "reference")
    assert [axes.get_title() for axes in figure.axes] == ["fvu", "purity"]
    panels = []
    for axes in figure.axes:
        bars, significant, others = axes.collections
        assert isinstance(bars, LineCollection)
        segments = [np.asarray(segment) for segment in bars.get_segments()]
        intervals = [segment[:, 0].tolist() for segment in segments if segment.size]
        panels.append((intervals, drawn_points(significant), drawn_points(others)))
        assert np.asarray(significant.get_facecolor())[0, :3].tolist() != [1, 1, 1]
        assert np.asarray(others.get_facecolor())[0, :3].tolist() == [1, 1, 1]
    assert panels == [
        ([[0.0, 0.75], [-1.5, -0.75]], [[0.5, 0]], [[-1.0, 1]]),
        ([[1.5, 2.25]], [], [[2.0, 0]]),
    ]


def test_the_forests_conditions_stand_in_order_from_the_top_with_a_line_at_no_difference():
    figure = paired_differences(COMPARISONS, "reference")
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["no grouping", "frozen"]
    assert first.yaxis_inverted()
    for axes in figure.axes:
        (zero,) = axes.get_lines()
        assert np.asarray(zero.get_xdata()).tolist() == [0, 0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["p < .05 after Holm", "p ≥ .05"]


@pytest.mark.parametrize("n_metrics", [1, 3, 4, 6])
def test_the_forest_has_a_panel_per_metric_and_no_empty_one(n_metrics: int):
    frame = pd.concat([COMPARISONS[:2].assign(metric=f"metric {i}") for i in range(n_metrics)])
    figure = paired_differences(frame, "reference")
    assert [axes.get_title() for axes in figure.axes] == [f"metric {i}" for i in range(n_metrics)]


def test_known_hierarchies_have_a_panel_per_shared_score_and_hollow_markers_where_nothing_differs():
    summary = {
        "top_k": {
            "easy.mcc": {"mean": 0.5, "interval": [0.25, 0.75], "p_holm": 0.04},
            "hard.mcc": {"mean": 0.25, "interval": [0.0, 0.5], "p_holm": 0.05},
        },
        "ours": {
            "easy.mcc": {"mean": 0.75, "interval": [0.5, 1.0]},
            "hard.mcc": {"mean": 0.5, "interval": None},
            "easy.parents": {"mean": 1.0, "interval": [1.0, 1.0]},
        },
        "untrained_ours": {
            "easy.mcc": {"mean": 0.125, "interval": None},
            "easy.parents": {"mean": 0.0, "interval": [0.0, 0.0]},
        },
    }
    labels = {"easy.mcc": "MCC", "hard.mcc": "hard: MCC", "easy.parents": "parents"}
    figure = known_hierarchies(summary, labels, ["ours", "untrained_ours", "unknown"])
    (axes,) = figure.axes
    assert axes.get_title() == "MCC"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "untrained ours", "top k"]
    assert axes.yaxis_inverted()
    markers = [c for c in axes.collections if not isinstance(c, LineCollection)]
    places = [drawn_points(marker)[0] for marker in markers]
    # Ours on top, with what is to be beside it; easy above hard.
    assert np.allclose(places, [[0.75, -0.1], [0.5, 0.1], [0.125, 0.9], [0.5, 1.9], [0.25, 2.1]])
    filled = [np.asarray(m.get_facecolor())[0].tolist() == np.asarray(m.get_edgecolor())[0].tolist() for m in markers]
    assert filled == [True, True, False, True, False]
    bars = [c.get_segments()[0][:, 0].tolist() for c in axes.collections if isinstance(c, LineCollection)]
    assert bars == [[0.5, 1.0], [0.25, 0.75], [0.0, 0.5]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["easy", "hard"]


@pytest.fixture
def frontier_points() -> pd.DataFrame:
    rows = [
        ("HSAE", 1, "dense", 0, 30.0, 0.05, 0.8), ("HSAE", 1, "dense", 1, 34.0, 0.15, 1.0),
        ("HSAE", 1, "sparse", 0, 8.0, 0.2, 0.8), ("flat TopK", 1, "sparse", 0, 16.0, 0.3, 0.7),
        ("HSAE", 2, "dense", 0, 4.0, 0.4, 0.6), ("k-means", 2, "dense", 0, 1.0, 0.8, np.nan),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "level", "condition", "seed", "l0", "fvu_h1", "recovered"])


def test_controls_have_a_panel_per_metric_the_reference_first_and_hollow_markers_where_nothing_differs():
    summary = {
        "shuffled_activations": {"p": cell(0.5, 0.3, 0.01), "u": cell(0.1, 0.01, 0.2)},
        "trained": {"p": cell(0.8), "u": cell(0.11), "ce": cell(0.9)},
    }
    figure = controls_over_seeds(summary, {"u": "U", "p": "P", "ce": "CE", "gone": "?"}, "trained")
    assert [axes.get_title() for axes in figure.axes] == ["U", "P", "CE"]
    u, p, ce = figure.axes
    assert [label.get_text() for label in u.get_yticklabels()] == ["trained", "shuffled activations"]
    dots = [[c for c in axes.collections if not isinstance(c, LineCollection)] for axes in (u, p, ce)]
    assert [[np.asarray(dot.get_offsets()).tolist()[0] for dot in own] for own in dots] == [
        [[0.11, 0], [0.1, 1]], [[0.8, 0], [0.5, 1]], [[0.9, 0]]
    ]  # fmt: skip
    hollow = [[to_hex(tuple(np.asarray(dot.get_facecolor())[0])) == "#ffffff" for dot in own] for own in dots]
    assert hollow == [[False, True], [False, False], [False]]


def test_the_frontier_has_a_row_per_level_a_column_per_quantity_and_a_line_per_method(frontier_points: pd.DataFrame):
    figure = frontier(frontier_points, {"fvu_h1": "FVU of h1", "recovered": "loss recovered"})
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["level 1", "level 1", "level 2", "level 2"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["FVU of h1", "loss recovered"] * 2
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["", ""]
    assert {axes.get_xlabel() for axes in figure.axes[2:]} == {"L0: active latents per token (log scale)"}
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"] * 2
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    lines = [
        [np.column_stack(line.get_data()).tolist() for line in axes.get_lines() if len(np.asarray(line.get_xdata()))]
        for axes in figure.axes
    ]
    assert lines == [
        [[[8.0, 0.2], [32.0, 0.1]], [[16.0, 0.3]]],
        [[[8.0, 0.8], [32.0, 0.9]], [[16.0, 0.7]]],
        [[[4.0, 0.4]], [[1.0, 0.8]]],
        [[[4.0, 0.6]]],
    ], "means over seeds"


def test_the_seeds_of_a_frontier_are_dots_in_their_methods_colours(frontier_points: pd.DataFrame):
    figure = frontier(frontier_points, {"fvu_h1": "FVU of h1"})
    (dots,) = figure.axes[0].collections
    assert drawn_points(dots) == [[30.0, 0.05], [34.0, 0.15], [8.0, 0.2], [16.0, 0.3]]
    lines = [line for line in figure.axes[0].get_lines() if len(np.asarray(line.get_xdata()))]
    ours, flat = [
        to_hex(str(line.get_color()) if isinstance(line.get_color(), str) else line.get_color()) for line in lines
    ]
    assert [to_hex(tuple(color[:3])) for color in np.asarray(dots.get_facecolor())] == [ours] * 3 + [flat]


def test_a_method_looks_the_same_in_every_panel_and_unlike_the_others(frontier_points: pd.DataFrame):
    second = frontier_points.query("method == 'flat TopK'").assign(condition="dense", l0=40.0)
    figure = frontier(pd.concat([frontier_points, second]), {"fvu_h1": "FVU of h1"})
    level1, level2 = [
        [(line.get_color(), str(line.get_marker())) for line in axes.get_lines() if len(np.asarray(line.get_xdata()))]
        for axes in figure.axes
    ]
    assert level1[0] == level2[0]
    assert len({color for color, _ in [*level1, *level2]}) == len({marker for _, marker in [*level1, *level2]}) == 3
    assert level2[1][0] == "black", "k-means: no line, so no colour of its own"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["HSAE", "flat TopK", "k-means"]


def test_every_line_of_a_frontier_has_a_colour_of_its_own_beside_many_clusterings(frontier_points: pd.DataFrame):
    template = frontier_points.iloc[[0, 2]].reset_index(drop=True)
    several = [template.assign(method=f"line {i}") for i in range(8)]
    single = [template.head(1).assign(method=f"clustering {i}", l0=1.0) for i in range(5)]
    figure = frontier(pd.concat([*single, frontier_points.query("method == 'HSAE'"), *several]), {"fvu_h1": "FVU"})
    lines = [line for line in figure.axes[0].get_lines() if len(np.asarray(line.get_xdata())) > 1]
    assert len({str(line.get_color()) for line in lines}) == len(lines) == 9


def test_the_ticks_of_a_frontier_are_plain_numbers_between_the_decades(frontier_points: pd.DataFrame):
    figure = frontier(frontier_points, {"fvu_h1": "FVU of h1"})
    figure.canvas.draw()
    (left, right), labels = figure.axes[0].get_xlim(), figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels if left <= label.get_position()[0] <= right] == ["10", "20"]


def test_a_basis_that_rebuilds_everything_does_not_stretch_the_frontier(frontier_points: pd.DataFrame):
    full_rank = frontier_points[:1].assign(method="PCA", l0=128.0, fvu_h1=1e-7)
    figure = frontier(pd.concat([frontier_points, full_rank]), {"fvu_h1": "FVU of h1"})
    assert figure.axes[0].get_ylim()[0] == SMALLEST_FVU
