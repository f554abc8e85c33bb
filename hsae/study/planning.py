"""How many answers a study needs, and what those that it has could show: power of the comparison of two arms."""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from hsae.config import check

ARMS = 5  # HSAE level 1, level 2, flat SAE, k-means, random directions
TRIALS_PER_RATER = (50, 100)  # half an hour, an hour


class SampleSize(NamedTuple):
    """What each arm needs.

    independent: answers, if each were about a feature of its own. design_effect: by how many times more, as several are
    about one. answers: independent x design_effect. features: that many answers about each give `answers`.
    """

    independent: int
    design_effect: float
    answers: int
    features: int


def sample_size(p1: float, p2: float, power: float, alpha: float, per_feature: int, icc: float) -> SampleSize:
    """Answers and features an arm, to see accuracy p1 against p2 with this power in a two-sided test at level alpha.

    Normal approximation with the arcsine effect size (Cohen 1988, ch. 6), times the design effect of clusters (Kish
    1965). Raises ValueError for values out of range or p1 = p2.
    """
    _check_test(p1, alpha)
    check("p2", p2, "between 0 and 1, and another than p1", 0 < p2 < 1 and p1 != p2)
    check("power", power, "above alpha and below 1", alpha < power < 1)
    needed = NormalIndPower().solve_power(abs(proportion_effectsize(p2, p1)), power=power, alpha=alpha, ratio=1)
    independent = math.ceil(float(needed))
    effect = design_effect(per_feature, icc)
    answers = math.ceil(round(independent * effect, 6))
    return SampleSize(independent, effect, answers, math.ceil(answers / per_feature))


def design_effect(per_feature: float, icc: float) -> float:
    """1 + (m - 1) icc: by how much the variance of a mean grows if m answers are about each feature (Kish 1965).

    Raises ValueError for values out of range.
    """
    check("per_feature", per_feature, "at least 1", 1 <= per_feature < math.inf)
    check("icc", icc, "in 0..1", 0 <= icc <= 1)
    return 1 + (per_feature - 1) * icc


def raters_needed(answers: int, arms: int, per_rater: int) -> int:
    """Raters who together give so many answers in each of so many arms. Raises ValueError for what is not above 0."""
    for name, value in (("answers", answers), ("arms", arms), ("per_rater", per_rater)):
        check(name, value, "above 0", value > 0)
    return math.ceil(answers * arms / per_rater)


def achieved_power(p1: float, p2: float, alpha: float, n1: float, n2: float) -> float:
    """Power to see accuracy p1, of n1 independent answers, against p2, of n2. Raises ValueError as `sample_size`."""
    _check_test(p1, alpha)
    check("p2", p2, "between 0 and 1", 0 < p2 < 1)
    return _power(abs(float(proportion_effectsize(p2, p1))), alpha, n1, n2)


def smallest_difference(p1: float, power: float, alpha: float, n1: float, n2: float) -> float | None:
    """The smallest p2 - p1 > 0 that is seen with this power, p1 being of n1 independent answers and p2 of n2.

    None if even p2 = 1 would not be. Raises ValueError as `sample_size`.
    """
    _check_test(p1, alpha)
    check("power", power, "above alpha and below 1", alpha < power < 1)
    largest = float(proportion_effectsize(1.0, p1))
    if _power(largest, alpha, n1, n2) < power:
        return None
    # The power rises with the effect, from alpha at 0.
    solved = optimize.root_scalar(lambda effect: _power(effect, alpha, n1, n2) - power, bracket=(0, largest))
    return float(np.sin(np.arcsin(np.sqrt(p1)) + solved.root / 2) ** 2 - p1)


def report(p1: float, p2: float, power: float, alpha: float, per_feature: int, icc: float) -> str:
    """The sample size in plain lines. Raises ValueError for values out of range."""
    needed = sample_size(p1, p2, power, alpha, per_feature, icc)
    raters = " or ".join(
        f"{raters_needed(needed.answers, ARMS, per_rater)} raters with {per_rater} trials each"
        for per_rater in TRIALS_PER_RATER
    )
    return "\n".join(
        [
            f"To see accuracy {p1:g} against {p2:g} with power {power:g} (two-sided, level {alpha:g}), an arm needs",
            f"  {needed.independent} independent answers,",
            f"  times {needed.design_effect:.3g}: {per_feature} answers about each feature correlate by {icc:g},",
            f"  so {needed.answers} answers about {needed.features} features.",
            f"With {ARMS} arms that takes {raters}.",
        ]
    )


def _power(effect: float, alpha: float, n1: float, n2: float) -> float:
    """Of a two-sided test, given the difference of two values whose variances are 1 / n1 and 1 / n2."""
    for name, n in (("n1", n1), ("n2", n2)):
        check(name, n, "above 0", n > 0)
    return float(NormalIndPower().power(effect, 1 / (1 / n1 + 1 / n2), alpha, ratio=0))


def _check_test(p1: float, alpha: float) -> None:
    check("p1", p1, "between 0 and 1", 0 < p1 < 1)
    check("alpha", alpha, "between 0 and 1", 0 < alpha < 1)
