"""Do raters agree, and are answers about one feature alike: Krippendorff's alpha, intraclass correlation."""

import numpy as np
from jaxtyping import Float, Int

from hsae.config import check
from hsae.statistics import cluster_weights
from hsae.streams import Stream


def krippendorff_alpha(counts: Int[np.ndarray, "trial option"]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 for perfect agreement, 0 for what chance would give.

    alpha = 1 - D_o / D_e. Of n answers, n_t to trial t and n_to of them for option o: D_o = 1 / n sum_t (n_t^2 - sum_o
    n_to^2) / (n_t - 1), D_e = (n^2 - sum_o n_o^2) / (n (n - 1)) (Krippendorff 2011, Computing Krippendorff's
    Alpha-Reliability). `counts` are n_to; trials with fewer than two answers say nothing about agreement and are left
    out. None without any other trial, or if all answers are the same option: there is nothing to disagree on.
    """
    alphas = _alphas(counts, np.ones((1, len(counts)), dtype=int))
    return None if np.isnan(alphas[0]) else float(alphas[0])


def alpha_interval(counts: Int[np.ndarray, "trial option"], stream: Stream) -> tuple[float, float] | None:
    """95% percentile interval of `krippendorff_alpha` by a bootstrap over trials; None for fewer than two of them."""
    paired = counts[counts.sum(1) > 1]
    if len(paired) < 2:
        return None
    alphas = _alphas(paired, cluster_weights(len(paired), stream))
    if np.isnan(alphas).all():
        return None
    low, high = np.nanpercentile(alphas, [2.5, 97.5])  # nan: a resample in which all answers are the same
    return float(low), float(high)


def intraclass_correlation(
    values: Float[np.ndarray, " answer"], arms: Int[np.ndarray, " answer"], features: Int[np.ndarray, " answer"]
) -> float | None:
    """How alike answers about one feature are, within arms: the one-way ANOVA estimator, pooled over arms.

    (MSB - MSW) / (MSB + (n0 - 1) MSW), where MSB is the mean square between the features of an arm, MSW that within
    features and n0 the number of answers a feature, corrected for unequal numbers (Donner 1986). A feature is of one
    arm. Below 0 by chance if features do not differ. None if there is no feature with two
    answers, no arm with two features, or no difference between any answers of an arm. Raises ValueError for a feature
    that is in several arms.
    """
    _, first, feature = np.unique(features, return_index=True, return_inverse=True)
    arm = np.unique(arms, return_inverse=True)[1]
    check("features", features.tolist(), "each of one arm", bool((arm[first][feature] == arm).all()))
    per_feature, per_arm = np.bincount(feature), np.bincount(arm)
    between, within = len(per_feature) - len(per_arm), len(values) - len(per_feature)
    if between < 1 or within < 1:
        return None
    mean = np.bincount(feature, values) / per_feature
    arm_mean = np.bincount(arm, values) / per_arm
    msb = (per_feature * (mean - arm_mean[arm[first]]) ** 2).sum() / between
    msw = ((values - mean[feature]) ** 2).sum() / within
    unequal = np.bincount(arm[first], per_feature.astype(float) ** 2) / per_arm
    n0 = (len(values) - unequal.sum()) / between
    total = msb + (n0 - 1) * msw
    return float((msb - msw) / total) if total > 0 else None


def _alphas(
    counts: Int[np.ndarray, "trial option"], weights: Int[np.ndarray, "resample trial"]
) -> Float[np.ndarray, " resample"]:
    """Alpha of the trials taken as often as each row of weights says; nan where it is not defined."""
    per_trial = counts.sum(1)
    paired = per_trial > 1
    of_trial = np.where(paired, (per_trial**2 - (counts**2).sum(1)) / np.maximum(per_trial - 1, 1), 0)
    n = weights @ np.where(paired, per_trial, 0)
    observed = weights @ of_trial
    expected = n**2 - ((weights @ np.where(paired[:, None], counts, 0)) ** 2).sum(1)
    alphas = np.full(len(weights), np.nan)
    np.divide((n - 1) * observed, expected, out=alphas, where=expected > 0)
    return 1 - alphas
