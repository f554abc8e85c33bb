from itertools import product

import numpy as np
import pandas as pd
import pytest

from hsae.statistics import at_matched_l0, bootstrap_interval, cluster_weights, holm, paired_comparison
from hsae.streams import Stream

COLUMNS = ["condition", "metric", "n", "mean", "reference_mean", "difference", "low", "high", "p", "p_holm"]


def tidy(values: dict[tuple[str, str], list[float]], seeds: dict[str, list[int]] | None = None) -> pd.DataFrame:
    """(condition, metric) -> values, as rows; seeds count from 0 where a condition has none of its own."""
    return pd.DataFrame(
        {"condition": condition, "metric": metric, "seed": seed, "value": value}
        for (condition, metric), row in values.items()
        for seed, value in zip((seeds or {}).get(condition, range(len(row))), row, strict=True)
    )


def test_holm_by_hand():
    # Sorted: .005 * 4, .01 * 3, .03 * 2, .04 * 1; the last is below the one before it, and is raised to it.
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm(np.array([0.03])).tolist() == [0.03]


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for level in (0.01, 0.05, 0.3):
        p = rng.random(12) ** 4
        rejected = np.zeros(12, dtype=bool)
        for step, index in enumerate(np.argsort(p)):
            if p[index] * (12 - step) > level:
                break
            rejected[index] = True
        assert 0 < rejected.sum() < 12
        assert (holm(p) <= level).tolist() == rejected.tolist()


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_holm_refuses_what_is_no_p_value(bad: float):
    with pytest.raises(ValueError, match=r"`p` must be in 0\.\.1"):
        holm(np.array([0.5, bad]))


def test_the_interval_is_that_of_all_possible_resamples_at_expanded_percentiles():
    x = np.array([0.13, 1.07, 1.94, 3.21, 4.9, 11.37])
    means = [np.mean(resample) for resample in product(x, repeat=6)]
    # Student's 90% quantile for 5 degrees of freedom is 1.4759; times sqrt(6 / 5), 1.6168; Phi(-1.6168) = .05297.
    expected = np.quantile(means, [0.05297, 1 - 0.05297])
    np.testing.assert_allclose(bootstrap_interval(x, stream=Stream(0, "test"), confidence=0.8), expected, atol=0.15)
    plain = np.quantile(means, [0.1, 0.9])
    assert np.abs(expected - plain).min() > 0.3


def test_the_interval_covers_the_mean_of_eight_normal_values_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(size=(300, 8))
    intervals = [bootstrap_interval(sample, stream=Stream(0, "test"), confidence=0.8) for sample in samples]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert covered == pytest.approx(0.8, abs=0.06)


def test_the_interval_repeats_moves_and_scales_with_its_values():
    x = np.random.default_rng(0).normal(size=8)
    low, high = bootstrap_interval(x, stream=Stream(3, "test"))
    assert low < x.mean() < high
    assert bootstrap_interval(x, stream=Stream(3, "test")) == (low, high)
    assert bootstrap_interval(x, stream=Stream(4, "test")) != (low, high)
    assert bootstrap_interval(2 * x + 5, stream=Stream(3, "test")) == pytest.approx((2 * low + 5, 2 * high + 5))


def test_more_confidence_gives_a_wider_interval_that_two_values_bound():
    x = np.random.default_rng(0).normal(size=8)
    widths = [np.diff(bootstrap_interval(x, Stream(0, "test"), confidence)).item() for confidence in (0.5, 0.8, 0.95)]
    assert widths == sorted(set(widths))
    assert bootstrap_interval(np.array([1.0, 3.0]), stream=Stream(0, "test")) == (1, 3)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_equal_values_are_their_own_interval(value: float):
    for n in (3, 8):  # the mean of three times .1 is not .1
        assert bootstrap_interval(np.full(n, value), stream=Stream(0, "test")) == (value, value)


def test_an_interval_needs_two_values_and_a_confidence():
    with pytest.raises(ValueError, match="`n` must be at least 2; not 1"):
        bootstrap_interval(np.array([1.0]), stream=Stream(0, "test"))
    with pytest.raises(ValueError, match="`confidence` must be between 0 and 1; not 95"):
        bootstrap_interval(np.array([1.0, 2.0]), stream=Stream(0, "test"), confidence=95)


def test_a_comparison_by_hand():
    frame = tidy({("full", "fvu"): [0.1, 0.2, 0.3], ("ablated", "fvu"): [0.2, 0.4, 0.6]})
    compared = paired_comparison(frame, "full", stream=Stream(0, "test"))
    assert compared.columns.tolist() == COLUMNS
    (row,) = compared.to_dict("records")
    assert (row["condition"], row["metric"], row["n"]) == ("ablated", "fvu", 3)
    assert (row["mean"], row["reference_mean"], row["difference"]) == pytest.approx((0.4, 0.2, 0.2))
    # Differences .1 .2 .3: t = .2 / (.1 / sqrt(3)) = sqrt(12), and with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    assert row["p"] == pytest.approx(1 - np.sqrt(12 / 14))
    assert row["p_holm"] == row["p"]
    assert (row["low"], row["high"]) == bootstrap_interval(np.array([0.1, 0.2, 0.3]), stream=Stream(0, "test"))


def test_only_the_seeds_that_both_have_are_compared_whatever_the_order_of_the_rows():
    values = {("full", "fvu"): [1.0, 2.0, 3.0, 100.0], ("ablated", "fvu"): [50.0, 4.0, 6.0, 3.0]}
    frame = tidy(values, {"full": [0, 1, 2, 9], "ablated": [7, 1, 2, 0]})
    compared = paired_comparison(frame, "full", stream=Stream(0, "test"))
    assert compared["n"].item() == 3
    assert compared["mean"].item() == pytest.approx(13 / 3)
    assert compared["reference_mean"].item() == 2
    assert compared["p"].item() == pytest.approx(1 - 7 / np.sqrt(2 + 7**2))  # differences 2 2 3: t = 7
    shuffled = paired_comparison(frame.sample(frac=1, random_state=0), "full", stream=Stream(0, "test"))
    columns = ["n", "difference", "p"]
    pd.testing.assert_frame_equal(shuffled.filter(columns), compared.filter(columns))


def test_conditions_keep_their_order_and_holm_counts_every_row():
    rng = np.random.default_rng(0)
    names = ["no grouping", "full", "frozen"]
    frame = tidy({(name, metric): list(rng.normal(size=8)) for name in names for metric in ("purity", "fvu")})
    # A metric that is not defined everywhere is compared where it is.
    frame = frame.query("condition != 'frozen' or metric != 'fvu'")
    compared = paired_comparison(frame, "full", stream=Stream(0, "test"))
    pairs = list(zip(compared["condition"], compared["metric"], strict=True))
    assert pairs == [("no grouping", "purity"), ("no grouping", "fvu"), ("frozen", "purity")]
    assert compared["p_holm"].tolist() == holm(compared["p"].to_numpy()).tolist()
    alone = paired_comparison(frame.query("metric == 'fvu'"), "full", stream=Stream(0, "test"))
    shared = [column for column in COLUMNS if column != "p_holm"]
    assert alone.filter(shared).to_dict("records") == [compared.filter(shared).to_dict("records")[1]]


@pytest.mark.parametrize(
    ("change", "difference", "p"), [(0.0, 0.0, 1.0), (1e-17, 0.0, 1.0), (0.5, 0.5, 2 / 2**8), (-0.1, -0.1, 2 / 2**8)]
)
def test_differences_without_spread_get_the_sign_flip_tests_p(change: float, difference: float, p: float):
    reference = np.random.default_rng(0).random(8)
    # The differences -0.1 differ by rounding errors, whose t would be astronomical.
    frame = tidy({("full", "fvu"): reference.tolist(), ("ablated", "fvu"): (reference + change).tolist()})
    (row,) = paired_comparison(frame, "full", stream=Stream(0, "test")).to_dict("records")
    assert row["difference"] == pytest.approx(difference, abs=1e-15)
    assert (row["low"], row["high"]) == pytest.approx((difference, difference), abs=1e-15)
    assert row["p"] == p


def test_small_differences_are_no_rounding_errors():
    rng = np.random.default_rng(0)
    reference = rng.random(8)
    values = reference + 1e-8 * (1 + 0.1 * rng.random(8))
    compared = paired_comparison(
        tidy({("full", "l0"): [*reference], ("ablated", "l0"): [*values]}), "full", stream=Stream(0, "test")
    )
    assert compared["p"].item() < 1e-6


def test_a_comparison_that_cannot_be_made_is_refused_in_one_line():
    frame = tidy({("full", "fvu"): [0.1, 0.2], ("ablated", "fvu"): [0.2, 0.4]})
    with pytest.raises(ValueError, match=r"^`reference` must be one of the conditions full, ablated; not 'ful'\.$"):
        paired_comparison(frame, "ful", stream=Stream(0, "test"))
    with pytest.raises(ValueError, match=r"^`condition` must be at least one other than the reference"):
        paired_comparison(frame.head(2), "full", stream=Stream(0, "test"))
    with pytest.raises(ValueError, match=r"^ablated and full must share at least 2 seeds of `fvu`; not 1\.$"):
        paired_comparison(frame.head(3), "full", stream=Stream(0, "test"))
    with pytest.raises(ValueError, match=r"^ablated and full must share at least 2 seeds of `l0`; not 0\.$"):
        paired_comparison(pd.concat([frame, frame.tail(2).assign(metric="l0")]), "full", stream=Stream(0, "test"))
    with pytest.raises(ValueError, match=r"^`fvu of ablated, seed 1` must be there once; not twice\.$"):
        paired_comparison(frame.iloc[[0, 1, 2, 3, 3]], "full", stream=Stream(0, "test"))
    with pytest.raises(ValueError, match=r"^`fvu of full, seed 0` must be finite; not nan\.$"):
        paired_comparison(frame.assign(value=[np.nan, 0.2, 0.2, 0.4]), "full", stream=Stream(0, "test"))


def frontier(*points: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(points, columns=["l0", "fvu"])


def test_the_frontier_is_linear_in_log_l0_between_its_points():
    frame = frontier((64.0, 0.1), (4.0, 0.5), (16.0, 0.3))
    assert at_matched_l0(frame, 8.0, "fvu") == pytest.approx(0.4)  # halfway from 4 to 16 in log L0
    assert at_matched_l0(frame, 32.0, "fvu") == pytest.approx(0.2)
    assert [at_matched_l0(frame, l0, "fvu") for l0 in (4.0, 16.0, 64.0)] == pytest.approx([0.5, 0.3, 0.1])


def test_the_frontier_ends_where_the_sweep_ended():
    frame = frontier((64.0, 0.1), (4.0, 0.5))
    assert np.isnan([at_matched_l0(frame, l0, "fvu") for l0 in (3.999, 64.001)]).all()
    assert at_matched_l0(frame.head(1), 64.0, "fvu") == pytest.approx(0.1)
    assert np.isnan(at_matched_l0(frame.head(1), 63.0, "fvu"))


def test_points_at_the_same_l0_count_as_their_mean():
    frame = frontier((4.0, 0.2), (16.0, 0.3), (4.0, 0.8))
    assert at_matched_l0(frame, 4.0, "fvu") == pytest.approx(0.5)
    assert at_matched_l0(frame, 8.0, "fvu") == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("frame", "l0", "message"),
    [
        (frontier((4.0, 0.2)), 0.0, "`l0` must be above 0; not 0"),
        (frontier((0.0, 1.0), (4.0, 0.2)), 2.0, "`l0` must be above 0 at every point"),
        (frontier((np.nan, 1.0), (4.0, 0.2)), 2.0, "`l0` must be above 0 at every point"),
        (frontier((1.0, np.nan), (4.0, 0.2)), 2.0, "`fvu` must be finite at every point"),
        (frontier(), 2.0, "`points` must be at least one; not 0"),
    ],
)
def test_a_frontier_that_is_none_is_refused(frame: pd.DataFrame, l0: float, message: str):
    with pytest.raises(ValueError, match=message):
        at_matched_l0(frame, l0, "fvu")


def test_clusters_are_drawn_as_often_as_there_are_clusters_each_as_likely_as_another():
    weights = cluster_weights(5, stream=Stream(0, "test"))
    assert (weights.sum(1) == 5).all()
    # 5 draws of 1 in 5: binomial, mean 1 and variance .8.
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.06)
    np.testing.assert_allclose(weights.var(0), 0.8, atol=0.08)
    np.testing.assert_array_equal(weights, cluster_weights(5, stream=Stream(0, "test")))
    assert (weights != cluster_weights(5, stream=Stream(1, "test"))).any()
