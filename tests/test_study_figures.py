import numpy as np
import pandas as pd
import pytest

from hsae.study import figures


def frame() -> pd.DataFrame:
    rows = [
        ["intruder", "flat", 0.6, 0.5, 0.7, 40, 5],
        ["intruder", "hsae_level2", 0.8, 0.7, 0.9, 41, 5],
        ["odd_child", "hsae_level2", 0.5, np.nan, np.nan, 7, 1],
        ["clarity", "flat", 3.5, 3.0, 4.0, 20, 5],
        ["clarity", "hsae_level2", np.nan, np.nan, np.nan, 0, 0],
    ]
    return pd.DataFrame(rows, columns=["kind", "arm", "value", "low", "high", "answers", "features"])


def title(figure: figures.Figure) -> str:
    assert figure._suptitle is not None  # pyright: ignore[reportAttributeAccessIssue]
    return figure._suptitle.get_text()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_panel_per_kind_with_arms_in_order_intervals_and_chance():
    figure = figures.results(frame(), 6, 0)
    intruder, odd_child, clarity = figure.axes
    assert [axes.get_title() for axes in figure.axes] == [*figures.TITLES.values()]
    assert [label.get_text() for label in intruder.get_yticklabels()] == ["flat", "hsae level2"]
    assert intruder.yaxis_inverted()
    bars, dots = intruder.collections
    assert np.asarray(dots.get_offsets()).tolist() == [[0.6, 0], [0.8, 1]]
    segments = [np.asarray(path.vertices)[:, 0] for path in bars.get_paths()]
    np.testing.assert_allclose(segments, [[0.5, 0.7], [0.7, 0.9]])
    for axes, lines in ((intruder, 1), (odd_child, 1), (clarity, 0)):
        assert len(axes.lines) == lines
    assert np.asarray(intruder.lines[0].get_xdata()).tolist() == [0.2, 0.2]
    assert clarity.get_xlim()[1] > 5


def test_the_number_of_answers_stands_beside_each_dot_that_is_there():
    intruder, odd_child, clarity = figures.results(frame(), 6, 0).axes
    assert [text.get_text() for text in intruder.texts] == ["n = 40", "n = 41"]
    assert [text.get_text() for text in odd_child.texts] == ["n = 7"]
    assert [text.get_text() for text in clarity.texts] == ["n = 20"]


def test_simulated_raters_are_named_so_in_the_title():
    assert title(figures.results(frame(), 6, 0)) == "Human study, 6 raters"
    assert title(figures.results(frame(), 6, 2)) == "Human study, SIMULATED: 2 of 6 raters are no people"


@pytest.mark.parametrize(("raters", "text"), [(0, "no responses yet"), (3, "no responses left")])
def test_without_answers_the_figure_says_so_and_has_no_axes(raters: int, text: str):
    figure = figures.results(frame().assign(answers=0), raters, 0)
    assert not figure.axes
    (shown,) = figure.texts
    assert shown.get_text().startswith(text)
    assert shown.get_position() == (0.5, 0.5)


def test_clarity_alone_has_no_chance():
    figure = figures.results(frame().query("kind == 'clarity'"), 6, 0)
    (axes,) = figure.axes
    assert not axes.lines
