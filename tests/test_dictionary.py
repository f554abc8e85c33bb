import math

import pytest

from hsae.dictionary import DictionaryConfig


@pytest.mark.parametrize(
    ("expansion1", "expansion2", "d_in", "widths"),
    [(8.0, 2.0, 128, (1024, 256)), (0.75, 0.5, 512, (384, 256)), (0.3, 0.26, 2, (1, 1)), (0.01, 0.01, 4, (1, 1))],
)
def test_widths_are_the_rounded_multiples_of_the_input_and_at_least_one(
    expansion1: float, expansion2: float, d_in: int, widths: tuple[int, int]
):
    assert DictionaryConfig(0, expansion1, expansion2).widths(d_in) == widths


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_expansion_that_is_not_positive_and_finite_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match=f"`expansion1` must be above 0 and finite; not {value}"):
        DictionaryConfig(0, value, 1.0)
    with pytest.raises(ValueError, match=f"`expansion2` must be above 0 and finite; not {value}"):
        DictionaryConfig(0, 1.0, value)
