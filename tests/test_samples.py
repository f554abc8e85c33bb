"""Records of what was chosen and scored on which samples, and the finding of samples that served for both."""

import numpy as np
import pytest

from hsae.samples import record, shared
from hsae.streams import Stream


def test_a_record_has_the_runs_of_its_samples():
    found = record("parents", "chosen", "val", np.array([7, 3, 4, 5, 9, 8, 3]), Stream(2, "parents"))
    assert found == {
        "what": "parents", "role": "chosen", "split": "val", "runs": [[3, 5], [7, 9]], "stream": "2/parents",
    }  # fmt: skip
    assert record("bins", "scored", "test", np.array([4]))["runs"] == [[4, 4]]
    with pytest.raises(ValueError, match="bins: there are no samples of `test` on which it could be scored"):
        record("bins", "scored", "test", np.array([], dtype=int))


def test_what_shares_a_sample_or_a_stream_is_found():
    first, second = np.arange(10), np.arange(10, 20)
    apart = [record("a", "chosen", "test", first), record("a", "scored", "test", second)]
    assert shared(apart) == []
    assert shared([*apart, record("a", "scored", "test", first[-1:])]) == ["a"]
    assert shared([*apart, record("b", "chosen", "test", second)]) == ["b"], "chosen, and never scored"
    drawn = [record("c", role, split, first, Stream(0, "x")) for role, split in (("chosen", "val"), ("scored", "test"))]  # pyright: ignore
    assert shared(drawn) == ["c"]


def test_text_is_one_whatever_its_splits_are_called_and_drawn_data_are_several():
    first, second = np.arange(10), np.arange(10, 20)
    for one in ("train", "val", "test", "final"):
        for other in ("train", "val", "test", "final"):
            assert shared([record("a", "chosen", one, first), record("a", "scored", other, first)]) == ["a"]
            assert shared([record("a", "chosen", one, first), record("a", "scored", other, second)]) == []
    drawn = [record("a", "chosen", "choosing samples", first), record("a", "scored", "scoring samples", first)]
    assert shared(drawn) == []
    assert shared([drawn[0], record("a", "scored", "val", first)]) == []
    assert shared([drawn[0], record("a", "scored", "choosing samples", first)]) == ["a"]
