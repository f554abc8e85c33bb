"""Claims are compared as they are written: hand-made numbers for each way."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from hsae import claims
from hsae.claims import Claim

AS_IS: dict[str, Any] = {
    "component": "a part", "condition": "off", "metric": "level1.fvu", "compared": "as is", "direction": "up",
}  # fmt: skip
NULL = {**AS_IS, "metric": "hierarchy.p", "compared": "null", "null": "hierarchy.p_null", "how": "chance"}
MATCHED = {**AS_IS, "compared": "matched L0"}
SEEDS = [100, 101]
NO_FRONTIER = pd.DataFrame(columns=["level", "seed", "l0", "fvu"])


def frame(**values: tuple[list[float], list[float]]) -> pd.DataFrame:
    """Rows of metrics, `__` for a dot, of the condition `off` and of the reference, by seed."""
    rows = [
        {"condition": condition, "seed": seed, "metric": metric.replace("__", "."), "value": value}
        for metric, of_both in values.items()
        for condition, own in zip(("off", "reference"), of_both, strict=True)
        for seed, value in zip(SEEDS, own, strict=False)
    ]
    return pd.DataFrame(rows)


def compared(claim: dict[str, Any], results: pd.DataFrame, frontier: pd.DataFrame = NO_FRONTIER) -> tuple[Any, Any]:
    """The values of the condition and of the reference, in the order of the seeds."""
    rows = claims.rows([Claim(**claim)], results, frontier, "reference")
    assert set(rows["metric"]) == {"a part"}
    of = {name: own.set_index("seed")["value"] for name, own in rows.groupby("condition")}
    assert all(own.index.tolist() == SEEDS[: len(own)] for own in of.values())
    return of["off"].tolist(), of["reference"].tolist()


def test_as_is_a_metric_is_itself():
    results = frame(level1__fvu=([0.5, 0.25], [0.125, 0.5]), level1__l0=([9, 9], [1, 1]))
    assert compared(AS_IS, results) == ([0.5, 0.25], [0.125, 0.5])


@pytest.mark.parametrize(
    ("how", "off", "reference"),
    [
        ("difference", [0.25, 0.5], [0.5, -0.125]),
        ("ratio", [1.5, 3.0], [3.0, 0.5]),
        ("chance", [0.5, 0.5 / 0.75], [0.5 / 0.75, -0.125 / 0.75]),
    ],
)
def test_against_its_null_a_metric_is_what_it_has_beyond_it(how: str, off: list[float], reference: list[float]):
    results = frame(hierarchy__p=([0.75, 0.75], [0.75, 0.125]), hierarchy__p_null=([0.5, 0.25], [0.25, 0.25]))
    found = compared({**NULL, "how": how}, results)
    np.testing.assert_allclose(found, (off, reference))


def test_a_null_of_which_there_is_no_ratio_gives_no_value():
    results = frame(hierarchy__p=([0.75, 0.0], [0.75, 0.5]), hierarchy__p_null=([0.0, 0.0], [0.25, 1.0]))
    np.testing.assert_array_equal(compared({**NULL, "how": "ratio"}, results), ([np.nan, np.nan], [3.0, 0.5]))
    np.testing.assert_allclose(compared(NULL, results), ([0.75, 0.0], [0.5 / 0.75, np.nan]))


def points(seed: int, level: int, *at: tuple[float, float]) -> list[dict[str, float]]:
    return [{"seed": seed, "level": level, "l0": l0, "fvu": fvu} for l0, fvu in at]


FRONTIER = pd.DataFrame(
    points(100, 1, (4, 0.4), (16, 0.2), (0, 1.0))
    + points(101, 1, (4, 0.5), (16, 0.1))
    + points(100, 2, (4, 9.0), (16, 9.0))
)


def test_at_matched_l0_a_metric_is_what_it_has_beyond_the_frontier_of_its_own_seed():
    # At L0 8, halfway between 4 and 16 by its logarithm, the frontiers have .3 and .3; at 16 .2 and .1, at 4 .4 and .5.
    results = frame(level1__fvu=([0.5, 0.25], [0.25, 0.5]), level1__l0=([8, 16], [16, 4]))
    np.testing.assert_allclose(compared(MATCHED, results, FRONTIER), ([0.2, 0.15], [0.05, 0.0]))


def test_at_matched_l0_a_seed_beyond_the_frontier_or_without_one_does_not_count():
    results = frame(level1__fvu=([0.5, 0.25], [0.25, 0.5]), level1__l0=([3, 0], [16, 17]))
    np.testing.assert_allclose(compared(MATCHED, results, FRONTIER), ([np.nan, np.nan], [0.05, np.nan]))
    results = frame(level1__fvu=([0.5], [0.25]), level1__l0=([8], [16]))
    assert np.isnan(compared(MATCHED, results, FRONTIER.query("seed == 101"))).all()
    assert np.isnan(compared(MATCHED, results)).all()


def test_a_condition_without_results_has_no_rows():
    results = frame(level1__fvu=([], [0.25, 0.5]))
    rows = claims.rows([Claim(**AS_IS)], results, NO_FRONTIER, "reference")
    assert rows["condition"].tolist() == ["reference"] * 2
    assert claims.rows([], results, NO_FRONTIER, "reference").empty


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (AS_IS, r"`claims.a part` must be a metric of the results \(hierarchy.p, level1.x\); not 'level1.fvu'"),
        (NULL, r"`claims.a part` must be a metric of the results .*; not 'hierarchy.p_null'"),
        ({**MATCHED, "metric": "level1.x"}, r"`claims.a part` must be one of the frontier's level, seed, l0; not"),
    ],
)
def test_a_metric_that_is_nowhere_is_refused(claim: dict[str, Any], message: str):
    frontier = NO_FRONTIER.drop(columns="fvu")
    with pytest.raises(ValueError, match=message):
        compared(claim, frame(hierarchy__p=([1], [1]), level1__x=([1], [1])), frontier)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({**AS_IS, "compared": "loosely"}, "`claims.a part.compared` must be one of as is, null, matched L0; not"),
        ({**AS_IS, "direction": "left"}, "`claims.a part.direction` must be up or down; not 'left'"),
        ({**AS_IS, "null": "x"}, "`claims.a part.null` must be there where `compared` is null, and only there"),
        ({**NULL, "null": None}, "`claims.a part.null` must be there where `compared` is null, and only there"),
        ({**NULL, "how": "somehow"}, "`claims.a part.how` must be one of difference, ratio, chance with a null; not"),
        ({**AS_IS, "how": "ratio"}, "`claims.a part.how` must be one of difference, ratio, chance with a null; not"),
        (
            {**MATCHED, "metric": "hierarchy.p"},
            "`claims.a part.metric` must be level1's or level2's; not 'hierarchy.p'",
        ),
    ],
)
def test_a_claim_that_says_too_little_or_too_much_is_refused(claim: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Claim(**claim)


def test_words_are_taken_from_the_file_as_they_are_written():
    written = claims.read()
    assert {claim["compared"] for claim in written["claims"]} == {"as is", "null", "matched L0"}
    assert all(("null" in claim) == (claim["compared"] == "null") for claim in written["claims"])
