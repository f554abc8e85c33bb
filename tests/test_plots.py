import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsae import plots


def axes_of(figure: Figure, label: str) -> Axes:
    """The one axes with this x label."""
    (found,) = [axes for axes in figure.axes if axes.get_xlabel() == label]
    return found


def test_the_loss_curve_has_two_labelled_lines_and_the_best_loss_in_its_title():
    curve = pd.DataFrame({"step": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.75, 2.5]})
    axes = axes_of(plots.loss_curve(curve), "step")
    assert axes.get_ylabel() == "cross-entropy (nats per character)"
    assert "1.750" in axes.get_title()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train", "validation"]
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines() if len(np.asarray(line.get_ydata()))]
    assert drawn == [[3.0, 2.0, 1.0], [3.0, 1.75, 2.5]]


def test_training_curves_have_a_panel_per_stage_on_a_log_scale_without_zeros():
    curves = pd.DataFrame(
        {
            "stage": ["phase1"] * 4 + ["phase2"] * 4,
            "step": [1, 2] * 4,
            "term": ["loss", "loss", "l1_h1", "l1_h1"] * 2,
            "value": [2.0, 1.0, 0.2, 0.1, 4.0, 3.0, 0.0, 0.0],
        }
    )
    figure = plots.training_curves(curves)
    assert [axes.get_title() for axes in figure.axes] == ["phase1", "phase2"]
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    lines = [[line for line in axes.get_lines() if len(np.asarray(line.get_xdata()))] for axes in figure.axes]
    assert [len(panel) for panel in lines] == [2, 1]
    assert figure.axes[0].get_ylabel() == "weighted term of the loss"


def test_each_dictionary_has_a_row_with_its_number_the_widest_first():
    results = pd.DataFrame(
        {
            "method": ["HSAE level1", "HSAE level2", "flat SAE topk", "clustering ward"],
            "family": ["HSAE", "HSAE", "flat SAE", "clustering"],
            "latents": [1024, 16, 1024, 16],
            "l0": [20.0, 10.0, 20.0, 1.0],
            "ce_recovered_mean": [0.9, 0.5, 0.95, 1.25],
        }
    )
    axes = axes_of(plots.dictionaries(results, "ce_recovered_mean", "share"), "1 − share (log scale; left is better)")
    assert axes.get_xscale() == "log"
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert rows == [
        "HSAE level1  (1,024 latents, L0 20.0)",
        "flat SAE topk  (1,024 latents, L0 20.0)",
        "HSAE level2  (16 latents, L0 10.0)",
        "clustering ward  (16 latents, L0 1.0)",
    ]
    points = np.concatenate([np.asarray(collection.get_offsets()) for collection in axes.collections])
    assert points == pytest.approx(np.array([[0.1, 0], [0.05, 1], [0.5, 2]]))  # none where more than all is recovered
    assert [text.get_text() for text in axes.texts] == ["0.900", "0.950", "0.500", "1.250"]
    rules = [np.asarray(line.get_ydata()) for line in axes.get_lines()]  # the legend's handles are empty lines
    assert [rule.tolist() for rule in rules if rule.size] == [[1.5, 1.5]]


def test_densities_count_the_living_latents_and_name_the_share_of_dead_ones():
    frame = pd.DataFrame(
        {
            "dictionary": ["level 1"] * 4 + ["level 2"] * 2,
            "density": [0.0, 0.1, 0.01, 1.0, 0.5, 0.5],
        }
    )
    figure = plots.densities(frame, bins=10)
    assert [axes.get_title() for axes in figure.axes] == ["level 1: 25.0% dead", "level 2: 0.0% dead"]
    counts = [sum(patch.get_height() for patch in axes.patches) for axes in figure.axes]  # pyright: ignore
    assert counts == [3, 2]
    assert figure.axes[0].get_ylabel() == "latents"


def shown(W_dec: np.ndarray) -> np.ndarray:
    figure = plots.decoder_heatmap(W_dec)
    mesh = figure.axes[0].collections[0]
    return np.asarray(mesh.get_array()).reshape(W_dec.shape)


def test_the_decoder_of_a_shuffled_hierarchy_is_shown_as_blocks_on_the_diagonal():
    # Parent 0 has one child, parent 1 has three, parent 2 has two. Each child has one parent, so weights do not matter.
    parent_of = [1, 2, 0, 1, 2, 1]
    W_dec = np.zeros((3, 6))
    W_dec[parent_of, range(6)] = [0.2, 0.9, 0.4, 0.5, 0.1, 0.7]
    expected = np.zeros((3, 6))
    expected[0, :3] = expected[1, 3:5] = expected[2, 5] = 1
    np.testing.assert_allclose(shown(W_dec), expected)


def test_children_stand_in_order_of_their_share_and_orphans_at_the_right():
    W_dec = np.array([[0.0, 0.6, 0.9, 0.8], [0.0, 0.4, 0.1, 0.0]])
    np.testing.assert_allclose(shown(W_dec), [[1.0, 0.9, 0.6, 0.0], [0.0, 0.1, 0.4, 0.0]])


@pytest.mark.parametrize("shape", [(2, 5), (4, 3)])
def test_the_heatmap_names_how_many_latents_each_axis_has(shape: tuple[int, int]):
    axes = plots.decoder_heatmap(np.random.default_rng(0).random(shape)).axes[0]
    assert axes.get_xlabel().startswith(f"{shape[1]} level-1 latents")
    assert axes.get_ylabel().startswith(f"{shape[0]} level-2 latents")


def test_the_forest_has_a_line_per_child_as_wide_as_its_share_and_says_p():
    trees = pd.DataFrame(
        {
            "parent": ["1: th[e]", "1: th[e]", "4: $x$[_]"],
            "child": ["7: the[n]", "9: the[y]", "2: a[b]"],
            "share": [0.5, 1.0, 0.25],
            "p_parent_given_child": [0.25, 1.0, 0.5],
        }
    )
    (axes,) = plots.forest(trees).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["1: th[e]", "0.25  7: the[n]", "1.00  9: the[y]", "4: $x$[_]", "0.50  2: a[b]"]
    widths = [line.get_linewidth() for line in axes.get_lines()]
    assert widths == [3.5, 6.0, 2.25]
    assert len({str(line.get_color()) for line in axes.get_lines()}) == 3


def test_a_forest_without_trees_is_an_empty_picture():
    columns = ["parent", "child", "share", "p_parent_given_child"]
    (axes,) = plots.forest(pd.DataFrame(columns=columns)).axes
    assert len(axes.texts) == len(axes.get_lines()) == 0
