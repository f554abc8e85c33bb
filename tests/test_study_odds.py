import numpy as np
import pandas as pd
import pytest
from scipy import special

from hsae.study.odds import Effect, arm_odds, position_slope
from tests.raters import simulate

ARMS = np.array(["flat", "level2", "random"])


def frame(seed: int, log_odds: tuple[float, ...], shape: tuple[int, int, int] = (24, 12, 6)) -> pd.DataFrame:
    """Simulated answers with densities that do not matter, in the order of the arms."""
    rng = np.random.default_rng(seed)
    found = simulate(rng, log_odds, shape, (1.0, 0.5))
    density = np.exp(rng.normal(-5, 1, found.feature.max() + 1))[found.feature]
    position = rng.permutation(len(density)) // shape[1] + 1
    return pd.DataFrame({**found._asdict(), "arm": ARMS[found.arm], "density": density, "position": position})


def test_the_odds_ratio_is_that_of_the_shares_where_density_says_nothing():
    answers = frame(0, (0.5, 1.5)).assign(density=0.01)
    found = arm_odds(answers, "flat")
    assert not found.failed
    assert not found.by_density
    flat, level2 = (answers.query(f"arm == '{arm}'")["correct"].mean() for arm in ("flat", "level2"))
    log_odds = special.logit(level2) - special.logit(flat)
    effect = found.effects["level2"]
    assert effect.log_odds == pytest.approx(log_odds, abs=1e-4)  # as many answers to all features: weights are equal
    assert effect.low < log_odds < effect.high
    assert (effect.low + effect.high) / 2 == pytest.approx(log_odds, abs=1e-4)


def test_known_effects_are_found_and_corrected_for_their_number():
    found = arm_odds(frame(1, (0.5, 2.5, 0.5), (60, 24, 8)), "flat")
    assert found.by_density
    assert list(found.effects) == ["level2", "random"]
    assert found.effects["level2"].p < 1e-4
    assert found.effects["random"].p > 0.05
    assert found.p_holm["level2"] == pytest.approx(2 * found.effects["level2"].p)
    assert found.p_holm["random"] == pytest.approx(found.effects["random"].p)


def test_a_difference_that_density_explains_is_none_of_the_arm():
    plain, adjusted = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found = simulate(rng, (0.0, 0.0), (60, 24, 8), (0.0, 0.0))
        density = np.exp(rng.normal(-5 + np.repeat([0, 1.5], 60), 1))[found.feature]
        correct = (rng.random(len(density)) < special.expit(5 + np.log(density))).astype(float)
        answers = pd.DataFrame({**found._asdict(), "arm": ARMS[found.arm], "correct": correct, "density": density})
        plain.append(arm_odds(answers.assign(density=0.01), "flat").effects["level2"].log_odds)
        adjusted.append(arm_odds(answers, "flat").effects["level2"].log_odds)
    assert min(plain) > 0.5
    assert np.mean(adjusted) == pytest.approx(0, abs=0.2)  # three standard errors


def test_a_difference_that_is_not_there_is_claimed_about_5_times_in_100():
    p = [arm_odds(frame(seed, (0.9, 0.9)), "flat").effects["level2"].p for seed in range(200)]
    assert 0.015 <= np.mean(np.array(p) < 0.05) <= 0.085
    assert np.mean(np.array(p) < 0.5) == pytest.approx(0.5, abs=0.1)


def test_arms_without_right_or_wrong_answers_are_not_compared():
    answers = frame(3, (0.5, 1.5))
    right = answers.assign(correct=answers["correct"].where(answers["arm"] == "flat", 1.0))
    assert arm_odds(right, "flat").failed == "level2: all answers are right"
    wrong = answers.assign(correct=answers["correct"].where(answers["arm"] != "flat", 0.0))
    found = arm_odds(wrong, "flat")
    assert (found.failed, found.effects, found.p_holm) == ("flat: all answers are wrong", {}, {})


def test_there_is_a_reason_for_every_comparison_that_cannot_be():
    answers = frame(4, (0.5, 1.5))
    assert arm_odds(answers.head(0), "flat").failed == "no answers"
    assert arm_odds(answers.query("arm == 'flat'"), "flat").failed == "no arm but the reference"
    assert arm_odds(answers, "kmeans").failed == "no answers of the reference, kmeans"
    assert arm_odds(answers.assign(feature=(answers["arm"] == "flat").astype(int)), "flat").failed.endswith("feature")
    few = pd.DataFrame(
        {"arm": ["flat"] * 4 + ["level2"] * 4, "feature": [0, 0, 1, 1, 2, 2, 3, 3], "correct": [1.0, 0.0] * 4}
    )
    assert not arm_odds(few.assign(density=0.1), "flat").failed
    too_few = few.query("feature != 1").assign(density=0.1)
    assert arm_odds(too_few, "flat").failed == "flat: a single feature"


def test_density_that_separates_right_from_wrong_is_told_and_no_crash():
    n = 40
    density = np.linspace(0.01, 0.2, n)
    arm = np.where(np.arange(n) % 2, "flat", "level2")
    answers = pd.DataFrame(
        {"arm": arm, "feature": np.arange(n), "density": density, "correct": (density > 0.1).astype(float)}
    )
    found = arm_odds(answers, "flat")
    assert found.failed
    assert not found.effects


def sessions(slope: float, raters: int = 24, length: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    position = np.tile(np.arange(1, length + 1), raters)
    p = special.expit(slope * position / 10 + np.repeat(rng.normal(0, 0.5, raters), length))
    return pd.DataFrame(
        {
            "rater": np.repeat(np.arange(raters), length),
            "position": position,
            "arm": ARMS[rng.integers(0, 2, len(p))],
            "correct": (rng.random(len(p)) < p).astype(float),
        }
    )


@pytest.mark.parametrize("slope", [0.3, -0.3, 0.0])
def test_learning_and_fatigue_are_found(slope: float):
    effect, failed = position_slope(sessions(slope))
    assert failed == ""
    assert isinstance(effect, Effect)
    assert effect.low < slope < effect.high
    assert (effect.p < 0.05) == (slope != 0)


def test_there_is_no_slope_of_one_rater_or_one_position():
    answers = sessions(0.0)
    assert position_slope(answers.query("rater == 0")) == (None, "flat: a single rater")
    assert position_slope(answers.assign(position=1)) == (None, "position and arm cannot be told apart")
    assert position_slope(answers.assign(correct=1.0)) == (None, "flat: all answers are right")
    assert position_slope(answers.query("rater < 2")) == (None, "no more raters than terms")
