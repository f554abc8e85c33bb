import numpy as np
import pytest

from hsae.study import planning
from hsae.study.planning import achieved_power, design_effect, raters_needed, sample_size, smallest_difference

PLAN = {"p1": 0.7, "p2": 0.8, "power": 0.8, "alpha": 0.05, "per_feature": 8, "icc": 0.3}


def test_the_planned_study_needs_so_many_answers():
    needed = sample_size(**PLAN)
    # By hand: h = 2 asin(sqrt .8) - 2 asin(sqrt .7) = .23198, n = 2 (1.95996 + .84162)^2 / h^2 = 291.69
    assert needed.independent == 292
    assert needed.design_effect == pytest.approx(1 + 7 * 0.3)
    assert needed.answers == 906  # 292 x 3.1 = 905.2
    assert needed.features == 114
    assert sample_size(**{**PLAN, "p1": 0.8, "p2": 0.7}) == needed


def test_answers_that_do_not_correlate_or_are_alone_need_no_more():
    assert sample_size(**{**PLAN, "icc": 0.0}).answers == 292
    assert sample_size(**{**PLAN, "per_feature": 1})[2:] == (292, 292)
    assert sample_size(**{**PLAN, "icc": 1.0}).features == 292
    assert design_effect(2.5, 0.2) == pytest.approx(1.3)


def test_power_and_sample_size_and_smallest_difference_are_each_others_inverse():
    assert achieved_power(0.7, 0.8, 0.05, 292, 292) >= 0.8 > achieved_power(0.7, 0.8, 0.05, 291, 291)
    assert achieved_power(0.7, 0.8, 0.05, 200, 540) == pytest.approx(achieved_power(0.7, 0.8, 0.05, 540, 200))
    for n1, n2 in ((50, 60), (292, 292), (4000, 1000.5)):
        found = smallest_difference(0.7, 0.8, 0.05, n1, n2)
        assert found is not None
        assert achieved_power(0.7, 0.7 + found, 0.05, n1, n2) == pytest.approx(0.8)
    assert smallest_difference(0.7, 0.8, 0.05, 4, 4) is None, "a difference of .3 is the largest there can be"


def test_power_is_how_often_a_test_finds_the_difference():
    rng = np.random.default_rng(0)
    shares = rng.binomial(150, [[0.7], [0.8]], (2, 20_000)) / 150
    z = (shares[1] - shares[0]) / np.sqrt((shares * (1 - shares)).sum(0) / 150)
    assert achieved_power(0.7, 0.8, 0.05, 150, 150) == pytest.approx((np.abs(z) > 1.96).mean(), abs=0.015)


def test_raters_share_the_answers_of_all_arms():
    assert raters_needed(906, 5, 100) == 46
    assert raters_needed(100, 1, 100) == 1


def test_the_report_says_all_numbers_in_a_few_lines():
    report = planning.report(**PLAN)
    for part in (
        "0.7 against 0.8",
        "power 0.8",
        "292 independent",
        "3.1",
        "906 answers about 114 features",
        "46 raters",
    ):
        assert part in report
    assert max(map(len, report.splitlines())) <= 100
    assert len(report.splitlines()) <= 6


@pytest.mark.parametrize(
    ("name", "value"),
    [("p1", 0.0), ("p1", 0.8), ("p2", 1.0), ("power", 1.0), ("power", 0.05), ("alpha", 0.0), ("alpha", 1.5),
     ("per_feature", 0), ("icc", -0.1), ("icc", 1.1)],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name: str, value: float):
    asked = "p2" if (name, value) == ("p1", 0.8) else name  # equal accuracies
    with pytest.raises(ValueError, match=f"`{asked}` must be .*; not {value}"):
        sample_size(**{**PLAN, name: value})


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="`per_rater` must be above 0; not 0"):
        raters_needed(906, 5, 0)
    with pytest.raises(ValueError, match="`n2` must be above 0; not 0"):
        achieved_power(0.7, 0.8, 0.05, 10, 0)
    with pytest.raises(ValueError, match="`n1` must be above 0; not 0"):
        smallest_difference(0.7, 0.8, 0.05, 0, 10)
