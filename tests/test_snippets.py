import numpy as np

from hsae.snippets import apart, begin


def test_tokens_are_taken_in_their_order_unless_one_is_near():
    assert apart(np.array([10, 14, 3, 30, 22]), 3, 5) == [10, 3, 30]
    assert apart(np.array([10, 15]), 3, 5) == [10, 15]
    assert apart(np.array([], dtype=int), 3, 5) == []


def test_a_snippet_is_whole_at_either_end():
    assert begin(50, 8, 100) == 44
    assert begin(2, 8, 100) == 0
    assert begin(99, 8, 100) == 92
