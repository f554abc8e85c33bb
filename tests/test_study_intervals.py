import numpy as np
import pytest

from hsae.study.intervals import difference_interval, mean_interval, two_way_variance
from tests.raters import marginal, simulate

SIMULATIONS = 1000  # of which 93% to 97% is three standard errors from 95%
SHAPE = (60, 24, 8)  # features an arm, raters, answers a feature: a study of moderate size
SCENARIOS = {  # log odds of the mean feature and rater, standard deviations of features and raters
    "both vary": (0.9, 1.0, 0.7),
    "features vary": (0.9, 1.0, 0.0),
    "raters vary": (0.9, 0.0, 0.7),
    "high accuracy": (2.5, 1.0, 0.7),
    "near chance": (-1.2, 0.8, 0.3),
}


def pairs_oracle(influence: np.ndarray, groups: np.ndarray) -> float:
    n = len(set(groups.tolist()))
    pairs = ((i, j) for i in range(len(groups)) for j in range(len(groups)) if groups[i] == groups[j])
    return n / (n - 1) * sum(influence[i] * influence[j] for i, j in pairs)


def test_the_variance_is_that_of_all_pairs_that_share_a_feature_or_a_rater():
    rng = np.random.default_rng(0)
    features, raters = rng.integers(10, 16, 40), rng.integers(0, 5, 40)
    influence = rng.normal(size=40)
    influence -= influence.mean()
    v_feature, v_rater, v_both = (pairs_oracle(influence, own) for own in (features, raters, features * 100 + raters))
    assert two_way_variance(influence, features, raters) == pytest.approx(v_rater + max(v_feature - v_both, 0))
    assert two_way_variance(influence, raters, features) == pytest.approx(v_feature + max(v_rater - v_both, 0))
    assert (v_feature - v_both) * (v_rater - v_both) < 0, "one of them is cut off, the other not"


def test_independent_answers_have_the_variance_of_any_mean():
    values = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    alone = np.arange(5)
    assert two_way_variance((values - 0.6) / 5, alone, alone) == pytest.approx(values.var(ddof=1) / 5)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_interval_covers_the_accuracy_over_all_features_and_raters_95_times_in_100(name: str):
    log_odds, sd_feature, sd_rater = SCENARIOS[name]
    truth = marginal(log_odds, float(np.hypot(sd_feature, sd_rater)))
    rng, covered = np.random.default_rng(0), 0
    for _ in range(SIMULATIONS):
        found = simulate(rng, (log_odds,), SHAPE, (sd_feature, sd_rater))
        interval = mean_interval(found.correct, found.feature, found.rater)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_an_interval_that_forgets_raters_or_features_covers_too_rarely():
    truth, rng = marginal(0.9, float(np.hypot(1.2, 1.2))), np.random.default_rng(0)
    covered = np.zeros(2)
    for _ in range(200):
        correct, _, feature, rater = simulate(rng, (0.9,), (30, 24, 8), (1.2, 1.2))
        for i, groups in enumerate((feature, rater)):
            interval = mean_interval(correct, groups, groups)
            assert interval is not None
            covered[i] += interval[0] <= truth <= interval[1]
    assert covered[0] / 200 < 0.85
    assert covered[1] / 200 < 0.92


@pytest.mark.parametrize("sd_rater", [0.0, 0.7])
def test_a_difference_that_is_not_there_is_claimed_5_times_in_100(sd_rater: float):
    rng, covered = np.random.default_rng(1), 0
    for _ in range(SIMULATIONS):
        interval = difference_interval(*simulate(rng, (0.9, 0.9), SHAPE, (1.0, sd_rater)))
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_what_a_rater_adds_to_both_sides_of_a_difference_cancels():
    rng = np.random.default_rng(2)
    features, raters = np.repeat(np.arange(40), 6), np.tile(np.arange(6), 40)
    treated = (features >= 20).astype(int)
    values = rng.random(240) * 0.1 + np.linspace(0, 0.8, 6)[raters]  # raters differ by far more than answers
    paired = difference_interval(values, treated, features, raters) or (0, 1)
    others = difference_interval(values, treated, features, raters + 6 * treated) or (0, 0)
    assert paired[1] - paired[0] < 0.1 * (others[1] - others[0])
    assert sum(paired) / 2 == pytest.approx(values[120:].mean() - values[:120].mean())


def test_a_rating_has_the_interval_of_its_share_of_the_scale():
    rng = np.random.default_rng(3)
    features, raters = np.repeat(np.arange(12), 4), np.tile(np.arange(4), 12)
    shares = rng.integers(0, 5, 48) / 4
    low, high = mean_interval(shares, features, raters) or (0, 0)
    assert mean_interval(1 + 4 * shares, features, raters, 1, 5) == pytest.approx((1 + 4 * low, 1 + 4 * high))
    assert low < shares.mean() < high


def test_all_right_is_as_many_independent_answers_as_there_are_clusters_of_the_scarcer_kind():
    features, raters = np.repeat(np.arange(12), 4), np.tile(np.arange(4), 12)
    right = np.ones(48)
    assert mean_interval(right, features, raters) == pytest.approx((0.025 ** (1 / 4), 1))
    assert mean_interval(1 - right, features, raters) == pytest.approx((0, 1 - 0.025 ** (1 / 4)))
    assert mean_interval(right * 5, features, raters, 1, 5) == pytest.approx((1 + 4 * 0.025 ** (1 / 4), 5))


def test_nothing_is_known_of_a_single_feature_or_rater_or_without_spread():
    many, one, none = np.arange(8), np.zeros(8, dtype=int), np.zeros(0, dtype=int)
    values = many % 2.0
    assert mean_interval(values, many, one) is None
    assert mean_interval(values, one, many) is None
    assert mean_interval(np.full(8, 3.0), many, many, 1, 5) is None
    assert mean_interval(none.astype(float), none, none) is None
    assert difference_interval(values, one, many, many) is None
    assert difference_interval(values, many // 4, many, one) is None
    assert difference_interval(np.ones(8), many // 4, many, many % 4) is None


def test_values_off_the_scale_are_refused():
    many = np.arange(3)
    with pytest.raises(ValueError, match=r"`values` must be in 1\.\.5; not \[0\.0, 2\.0, 3\.0\]"):
        mean_interval(np.array([0.0, 2.0, 3.0]), many, many, 1, 5)
