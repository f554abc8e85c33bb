import numpy as np
import pandas as pd
import pytest

from hsae import feature_plots


def measure(method: str, concept: str, name: str, value: float, null: float = np.nan) -> dict[str, object]:
    low, high = value - 0.1, value + 0.05
    row = {"method": method, "concept": concept, "measure": name, "value": value, "low": low, "high": high}
    return {**row, "null": null, "untrained": value - 0.3 if method == "own" else np.nan}


def absorption_rows() -> pd.DataFrame:
    rows = []
    for shift, method in ((0.0, "own"), (0.1, "a rival")):
        for more, concept in ((0.0, "vowel"), (0.2, "word_initial")):
            rows.append(measure(method, concept, "first_feature_f1", 0.5 + shift + more, null=0.2))
            rows.append(measure(method, concept, "absorption", 0.3 + shift + more))
            rows.append(measure(method, concept, "absorption_fraction", 0.2 + shift + more))
    return pd.DataFrame(rows)


def test_absorption_has_a_panel_per_measure_and_concept_and_a_row_per_method_in_order():
    figure = feature_plots.absorption(absorption_rows())
    assert [axes.get_title() for axes in figure.axes] == ["vowel", "word initial", "", "", "", ""]
    assert [axes.get_xlabel() for axes in figure.axes[::2]] == [*feature_plots.LABELS.values()]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["own", "a rival"]
    assert figure.axes[0].yaxis_inverted()
    bars, untrained, dots, nulls = figure.axes[1].collections
    assert np.ma.filled(untrained.get_offsets(), np.nan)[0].tolist() == pytest.approx([0.4, 0])
    assert np.isnan(np.ma.filled(untrained.get_offsets(), np.nan)[1, 0]), "a rival has no such row"
    assert np.asarray(dots.get_offsets()).tolist() == [[0.7, 0], [0.8, 1]]
    assert np.asarray(nulls.get_offsets()).tolist() == [[0.2, 0], [0.2, 1]]
    segments = [np.asarray(path.vertices)[:, 0] for path in bars.get_paths()]
    np.testing.assert_allclose(segments, [[0.6, 0.75], [0.7, 0.85]])
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_absorption_without_any_concept_is_an_empty_picture():
    assert not feature_plots.absorption(absorption_rows().head(0)).axes[0].has_data()


def test_stability_shows_every_pair_with_its_null_and_the_share_of_latents_by_recurrence():
    pairs = pd.DataFrame({"dictionary": ["a", "a", "b"], "mcc": [0.8, 0.7, 0.5], "null": [0.3, 0.2, 0.4]})
    latents = pd.DataFrame({"dictionary": ["b"] * 4, "recurrence": [0, 2, 2, 1]})
    left, right = feature_plots.stability(pairs, latents).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    values = [x for dots in left.collections for x, _ in np.asarray(dots.get_offsets())]
    assert sorted(values) == [0.2, 0.3, 0.4, 0.5, 0.7, 0.8]
    assert [patch.get_height() for patch in right.patches] == [0.25, 0.25, 0.5]  # pyright: ignore
    legend = left.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "pair of seeds",
        "random directions, same second moments",
    ]
