import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, QuadMesh

from hsae import information_plots
from hsae.information_plots import SMALLEST


def test_the_heatmap_stands_in_the_order_of_the_decoders():
    # Parent 0 has one child, parent 1 two; the last latent has no parent.
    W_dec = np.array([[0.0, 0.9, 0.0, 0.0], [0.8, 0.1, 0.6, 0.0]])
    u = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, -0.01, 0.8]])
    axes = information_plots.information_heatmap(u, W_dec).axes[0]
    shown = np.asarray(axes.collections[0].get_array()).reshape(2, 4)
    np.testing.assert_allclose(shown, [[0.5, 0.0, 0.6, 0.8], [0.1, 0.3, 0.2, 0.4]])
    assert axes.get_xlabel().startswith("4 level-1 latents")
    assert axes.get_ylabel().startswith("2 level-2 latents")


def test_all_pairs_are_counted_and_children_are_dots():
    pairs = pd.DataFrame(
        {
            "information": [0.1, -0.2, 0.01, 0.001],
            "weight": [0.9, 0.0, 0.5, 0.1],
            "is_child": [True, False, True, False],
        }
    )
    axes = information_plots.information_weight(pairs).axes[0]
    mesh, dots = axes.collections
    assert isinstance(mesh, QuadMesh)
    assert np.ma.asarray(mesh.get_array()).sum() == 4
    assert np.asarray(dots.get_offsets()).tolist() == [[0.9, 0.1], [0.5, 0.01]]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] <= SMALLEST
    assert "4 pairs" in axes.get_title()


@pytest.mark.parametrize("n_labels", [1, 4])
def test_bounds_have_a_panel_per_label_with_their_intervals_and_the_entropy(n_labels: int):
    rows = [
        {"representation": name, "label": f"label_{i}", "entropy": 2.0, "bound": b, "low": b - 0.25, "high": b + 0.5}
        for i in range(n_labels)
        for name, b in (("hsae_level1", 1.5), ("kmeans", 1.0))
    ]
    figure = information_plots.probe_bounds(pd.DataFrame(rows))
    assert [axes.get_title() for axes in figure.axes] == [f"label {i}" for i in range(n_labels)]
    for axes in figure.axes:
        bars, dots = axes.collections
        assert isinstance(bars, LineCollection)
        assert [np.asarray(bar)[:, 0].tolist() for bar in bars.get_segments()] == [[1.25, 2.0], [0.75, 1.5]]
        assert np.asarray(dots.get_offsets()).tolist() == [[1.5, 0], [1.0, 1]]
        (entropy,) = axes.get_lines()
        assert np.asarray(entropy.get_xdata()).tolist() == [2, 2]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["hsae level1", "kmeans"]
    assert figure.axes[0].yaxis_inverted()
