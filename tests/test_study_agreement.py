import numpy as np
import pytest
from statsmodels.stats.inter_rater import fleiss_kappa

from hsae.streams import Stream
from hsae.study.agreement import alpha_interval, intraclass_correlation, krippendorff_alpha

STREAM = Stream(0, "test")


def counted(answers: list[str], options: str) -> np.ndarray:
    """Trials x options, from a string of each rater's answers, '.' for none."""
    return np.array([[sum(own[i] == option for own in answers) for option in options] for i in range(len(answers[0]))])


# Krippendorff 2011, section C: four observers, twelve units, missing data
PAPER = counted(["123321412...", "1233224125.3", ".3332342251.", "12332441251."], "12345")


def test_the_papers_example_has_the_papers_alpha():
    # By hand: 8 is the disagreement within units, 1216 that of all 40 answers: 1 - 39 x 8 / 1216
    assert krippendorff_alpha(PAPER) == pytest.approx(1 - 39 * 8 / 1216)
    assert krippendorff_alpha(PAPER) == pytest.approx(0.743, abs=5e-4)


def test_a_trial_with_one_answer_says_nothing():
    assert PAPER[11].sum() == 1
    assert krippendorff_alpha(PAPER[:11]) == krippendorff_alpha(PAPER)


def test_alpha_is_fleiss_kappa_corrected_for_few_answers_where_all_trials_have_as_many():
    rng = np.random.default_rng(0)
    answers = np.stack([rng.multinomial(6, rng.dirichlet(np.full(5, 0.5))) for _ in range(30)])
    kappa = fleiss_kappa(answers)
    assert krippendorff_alpha(answers) == pytest.approx(kappa + (1 - kappa) / (30 * 6))


def test_perfect_agreement_is_1_and_what_chance_gives_is_0():
    assert krippendorff_alpha(np.diag([4, 3, 2])) == 1
    rng = np.random.default_rng(1)
    assert krippendorff_alpha(rng.multinomial(5, np.full(5, 0.2), 4000)) == pytest.approx(0, abs=0.02)


def test_agreement_on_nothing_is_none():
    assert krippendorff_alpha(np.zeros((0, 5), dtype=int)) is None
    assert krippendorff_alpha(np.array([[1, 0], [0, 1]])) is None, "one answer a trial"
    assert krippendorff_alpha(np.array([[3, 0], [3, 0]])) is None, "all the same option"
    assert alpha_interval(np.array([[3, 0], [3, 0]]), STREAM) is None
    assert alpha_interval(np.array([[3, 1]]), STREAM) is None


def test_the_interval_holds_alpha_shrinks_with_trials_and_repeats():
    low, high = alpha_interval(PAPER, STREAM) or (0, 0)
    assert low < (krippendorff_alpha(PAPER) or 0) < high <= 1
    more = alpha_interval(np.tile(PAPER, (9, 1)), STREAM) or (0, 0)
    assert more[1] - more[0] == pytest.approx((high - low) / 3, rel=0.25)
    assert alpha_interval(PAPER, STREAM) == (low, high)


def correlation(by_feature: list[list[float]], arms: list[int]) -> float | None:
    features = np.repeat(np.arange(len(by_feature)), [len(own) for own in by_feature])
    values = np.concatenate(by_feature).astype(float)
    return intraclass_correlation(values, np.array(arms)[features], features)


def test_correlation_by_hand():
    # Means .75 and .25: MSB = 4 (.0625 + .0625) / 1 = .5, MSW = (.75 + .75) / 6 = .25, (.5 - .25) / (.5 + 3 x .25)
    assert correlation([[1, 1, 1, 0], [0, 0, 0, 1]], [0, 0]) == pytest.approx(0.2)
    assert correlation([[1, 1], [0, 0]], [0, 0]) == 1
    assert correlation([[1, 0], [0, 1]], [0, 0]) == -1
    # Unequal: MSB = 4 (.75 - 2/3)^2 + 2 (.5 - 2/3)^2 = 1/12, MSW = (.75 + .5) / 4, n0 = 6 - 20 / 6
    msb, msw, n0 = 1 / 12, 1.25 / 4, 6 - 20 / 6
    assert correlation([[1, 1, 1, 0], [0, 1]], [0, 0]) == pytest.approx((msb - msw) / (msb + (n0 - 1) * msw))


def test_what_arms_differ_by_is_no_correlation():
    within = [[1.0, 1, 1, 0], [0, 0, 0, 1]]
    shifted = [[value + 10 for value in own] for own in within]
    assert correlation(within + shifted, [0, 0, 1, 1]) == pytest.approx(0.2)


def test_a_known_correlation_is_found():
    rng = np.random.default_rng(2)
    of_feature = np.repeat(rng.normal(0, np.sqrt(0.3), 4000), 5)
    values = of_feature + rng.normal(0, np.sqrt(0.7), 20_000)
    found = intraclass_correlation(values, np.zeros(20_000, dtype=int), np.repeat(np.arange(4000), 5))
    assert found == pytest.approx(0.3, abs=0.02)


def test_correlation_of_nothing_is_none():
    assert correlation([[1.0], [0.0]], [0, 0]) is None, "one answer a feature"
    assert correlation([[1.0, 0.0]], [0]) is None, "one feature"
    assert correlation([[1.0, 1.0], [1.0, 1.0]], [0, 0]) is None, "no difference at all"
    nothing = np.zeros(0)
    assert intraclass_correlation(nothing, nothing.astype(int), nothing.astype(int)) is None


def test_a_feature_of_two_arms_is_refused():
    with pytest.raises(ValueError, match=r"`features` must be each of one arm; not \[0, 0\]"):
        intraclass_correlation(np.zeros(2), np.array([0, 1]), np.array([0, 0]))
