"""Intervals of means over answers in which features and raters are both drawn at random: two-way clusters."""

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

from hsae.config import check

CONFIDENCE = 0.95


def two_way_variance(
    influence: Float[np.ndarray, " answer"], features: Int[np.ndarray, " answer"], raters: Int[np.ndarray, " answer"]
) -> float:
    """Variance of a statistic whose answers are dependent if they share a feature or a rater.

    V = V_feature + V_rater - V_both (Cameron, Gelbach & Miller 2011), where V_g = G / (G - 1) sum_g (sum of g's
    influences)^2. `influence` is what each answer adds to the statistic, less what it adds on average: (y - mean) / n
    for a mean. Answers about a feature are alike, if anything, so that only chance takes V_feature below V_both: then V
    is V_rater. (V_rater itself may be below V_both: what raters add to both sides of a difference cancels.)
    """
    both = _ranks(features) * (raters.max() + 1) + raters
    v_feature, v_rater, v_both = (_clustered(influence, groups) for groups in (features, raters, both))
    return v_rater + max(v_feature - v_both, 0.0)


def mean_interval(
    values: Float[np.ndarray, " answer"],
    features: Int[np.ndarray, " answer"],
    raters: Int[np.ndarray, " answer"],
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[float, float] | None:
    """95% interval of the mean of values in low..high, over the populations of features and raters.

    A t interval (two-way variance, min(features, raters) - 1 degrees of freedom) on the logit of (mean - low) / (high -
    low), so that it stays inside. With 60 features, 24 raters and 8 answers a feature, simulated intervals cover the
    truth 95 to 96% of the time, whether features, raters, both or neither vary. If all values are `low`, or all `high`,
    the variance knows nothing: then the exact binomial interval (Clopper & Pearson 1934) of as many answers as there
    are clusters of the scarcer kind.

    None for no values, a single feature or rater (nothing is known of its spread), or equal values inside. Raises
    ValueError for values outside low..high.
    """
    check("values", values.tolist(), f"in {low}..{high}", bool(((values >= low) & (values <= high)).all()))
    clusters = _clusters(features, raters)
    if clusters < 2:
        return None
    shares = (values - low) / (high - low)
    share = float(shares.mean())
    if share in (0.0, 1.0):
        exact = stats.binomtest(round(share * clusters), clusters).proportion_ci(CONFIDENCE, "exact")
        return low + (high - low) * float(exact.low), low + (high - low) * float(exact.high)
    if np.ptp(shares) == 0:
        return None
    error = np.sqrt(two_way_variance((shares - share) / len(shares), features, raters)) / (share * (1 - share))
    ends = special.expit(special.logit(share) + np.array([-1, 1]) * _quantile(clusters) * error)
    return low + (high - low) * float(ends[0]), low + (high - low) * float(ends[1])


def difference_interval(
    values: Float[np.ndarray, " answer"],
    treated: Int[np.ndarray, " answer"],
    features: Int[np.ndarray, " answer"],
    raters: Int[np.ndarray, " answer"],
) -> tuple[float, float] | None:
    """95% interval of mean(values where treated = 1) - mean(values where treated = 0): t, two-way variance.

    A feature belongs to one of the two, a rater to both, so what a rater adds to both cancels. None where either has a
    single feature or rater, or where all its values and those of the other are equal.
    """
    influence, means, clusters = np.zeros(len(values)), [], []
    for side, sign in ((0, -1), (1, 1)):
        own = treated == side
        if not own.any():
            return None
        means.append(values[own].mean())
        clusters.append(_clusters(features[own], raters[own]))
        influence[own] = sign * (values[own] - means[side]) / own.sum()
    if min(clusters) < 2 or not influence.any():
        return None
    reach = _quantile(min(clusters)) * np.sqrt(two_way_variance(influence, features, raters))
    difference = float(means[1] - means[0])
    return difference - float(reach), difference + float(reach)


def _clustered(influence: np.ndarray, groups: np.ndarray) -> float:
    ranks = _ranks(groups)
    sums = np.bincount(ranks, weights=influence)
    return float(len(sums) / (len(sums) - 1) * (sums**2).sum()) if len(sums) > 1 else 0.0


def _ranks(groups: np.ndarray) -> np.ndarray:
    return np.unique(groups, return_inverse=True)[1]


def _clusters(features: np.ndarray, raters: np.ndarray) -> int:
    return min(len(np.unique(features)), len(np.unique(raters)))


def _quantile(clusters: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1))
