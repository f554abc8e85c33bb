import numpy as np
import pandas as pd
import pytest

from hsae import clustering_plots

LATENTS = pd.DataFrame(
    {
        "x": range(8),
        "y": range(8, 0, -1),
        "group": ["1 (3 latents)"] * 3 + ["10 (2 latents)", "2 (3 latents)"] * 2 + ["other"],
        "community": list("12121212"),
        "current": ["vowel"] * 5 + ["blank"] * 2 + ["no class"],
        "next": ["blank"] * 6 + ["digit", "no class"],
    }
)


def phi() -> np.ndarray:
    return np.asarray(np.corrcoef(np.random.default_rng(0).standard_normal((8, 5))))


def test_the_clustermap_shows_every_coefficient_in_the_order_of_the_tree_beside_its_colours():
    coefficients = phi()
    figure = clustering_plots.clustermap(coefficients, LATENTS.drop(columns=["x", "y"]))
    meshes = [mesh for axes in figure.axes for mesh in axes.collections if mesh.get_array() is not None]
    shown = [np.asarray(mesh.get_array()) for mesh in meshes]
    (matrix,) = [values for values in shown if values.shape == (8, 8)]
    np.testing.assert_allclose(np.sort(matrix.ravel()), np.sort(coefficients.ravel()))
    np.testing.assert_allclose(np.diag(matrix), 1)
    (colors,) = [values for values in shown if values.shape == (8, 4)]
    assert len(np.unique(colors[:, 0])) == 4, "three groups and the others"


def test_the_clustermaps_legends_name_what_is_numbered_in_order_and_the_rest_last():
    figure = clustering_plots.clustermap(phi(), LATENTS.drop(columns=["x", "y"]))
    entries = {
        legend.get_title().get_text(): [text.get_text() for text in legend.get_texts()] for legend in figure.legends
    }
    assert entries == {
        "level-2 group": ["1 (3 latents)", "2 (3 latents)", "10 (2 latents)", "other"],
        "co-activation community": ["1", "2"],
        "class, current and next": ["blank", "vowel", "digit", "no class"],
    }


def test_a_class_has_one_colour_and_no_class_is_grey():
    palette = clustering_plots._palette(["a", "b", "b", "no class"])
    assert list(palette) == ["b", "a", "no class"]
    assert palette["no class"] == clustering_plots.GREY
    assert len(set(palette.values())) == 3


def test_the_embedding_has_a_marker_per_group_at_its_latents():
    (axes,) = clustering_plots.embedding(LATENTS).axes
    points = [np.asarray(collection.get_offsets())[:, 0].tolist() for collection in axes.collections]
    assert points == [[7], [0, 1, 2], [4, 6], [3, 5]]
    faces = [np.asarray(collection.get_facecolor())[:, :3] for collection in axes.collections]
    assert faces[0][0] == pytest.approx(clustering_plots.GREY)
    assert (faces[1] == faces[1][0]).all(), "all vowels"
    assert not (faces[2][0] == faces[2][1]).all()
    legend = axes.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["vowel", "blank", "no class", "1 (3 latents)", "2 (3 latents)", "10 (2 latents)"]


def agreement_rows() -> pd.DataFrame:
    rows = [
        ("HSAE", "decoder_clusters", "current_kind", 0.01, 0.0, 0.02),
        ("HSAE", "decoder_clusters", "communities", 0.3, 0.0, 0.01),
        ("HSAE", "communities", "current_kind", 0.6, 0.1, 0.02),
        ("HSAE", "communities", "decoder_clusters", 0.3, 0.0, 0.01),
        ("flat SAE", "decoder_clusters", "current_kind", None, None, None),
    ]
    return pd.DataFrame(rows, columns=["dictionary", "partition", "other", "ami", "null_mean", "null_sd"])


def test_the_agreement_stands_in_rows_and_columns_over_its_null():
    axes = clustering_plots.agreement(agreement_rows()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "HSAE: decoder clusters", "HSAE: communities", "flat SAE: decoder clusters", "permuted labels: mean + 2 sd",
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["current kind", "decoder clusters", "communities"]
    written = {
        (round(text.get_position()[1] - 0.5), round(text.get_position()[0] - 0.5)): (text.get_text(), text.get_color())
        for text in axes.texts
    }
    assert written == {
        (0, 0): ("0.01", "grey"), (0, 2): ("0.30", "white"), (1, 0): ("0.60", "white"), (1, 1): ("0.30", "white"),
        (3, 0): ("0.14", "grey"), (3, 1): ("0.02", "grey"), (3, 2): ("0.02", "grey"),
    }  # fmt: skip
