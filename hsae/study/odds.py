"""Odds of a right answer: logistic models of correlated answers, fitted by generalised estimating equations (GEE)."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from statsmodels.genmod.cov_struct import Exchangeable
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE

from hsae.statistics import holm

LARGEST = 15.0  # log odds beyond this are on their way to infinity
TRIALS = 10  # of which the slope is given


@dataclass(frozen=True)
class Effect:
    """A coefficient in log odds with its 95% interval, and p of the coefficient 0."""

    log_odds: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class ArmOdds:
    """Each other arm against the reference: effects, and p adjusted by Holm over these arms.

    by_density: whether log density was a covariate: not where it would tell the arms apart. failed: why there is
    nothing ("" if there is).
    """

    effects: dict[str, Effect]
    p_holm: dict[str, float]
    by_density: bool
    failed: str


def arm_odds(answers: pd.DataFrame, reference: str) -> ArmOdds:
    """Odds of a right answer in each arm against the `reference` arm, at equal density of the features.

    A logistic GEE with exchangeable correlation of the answers about a feature (Liang & Zeger 1986); arms and the log
    density, centred, are its terms. Standard errors are the sandwich's, corrected for few clusters (Mancl & DeRouen
    2001), quantiles Student's with (features - terms) degrees of freedom. Simulated arms that do not differ are told
    apart at p < .05 in 4% of studies, of 24 features an arm or of 60.

    Columns of `answers`: arm, feature (a number that no other arm's has), density (above 0), correct (0 or 1).
    """
    others = [str(arm) for arm in sorted(answers["arm"].unique()) if arm != reference]
    failed = _obstacle(answers, "feature")
    if not failed and len(others) == len(answers["arm"].unique()):
        failed = f"no answers of the reference, {reference}"
    if not failed and not others:
        failed = "no arm but the reference"
    if failed:
        return ArmOdds({}, {}, False, failed)
    design = _arms(answers, others)
    log_density = np.log(answers["density"].to_numpy(float))
    adjusted = np.column_stack([design, log_density - log_density.mean()])
    by_density = bool(np.linalg.matrix_rank(adjusted) == adjusted.shape[1])
    effects, failed = _fit(answers, adjusted if by_density else design, "feature")
    if failed:
        return ArmOdds({}, {}, by_density, failed)
    named = dict(zip(others, effects[1:], strict=False))
    p_holm = holm(np.array([effect.p for effect in named.values()]))
    return ArmOdds(named, dict(zip(named, p_holm.tolist(), strict=True)), by_density, "")


def position_slope(answers: pd.DataFrame) -> tuple[Effect | None, str]:
    """By how much the log odds of a right answer change in the course of 10 trials: learning above 0, fatigue below.

    A logistic GEE as in `arm_odds`, with arms and position as terms, in which the answers of a rater are correlated:
    position differs within raters. None, and the reason, if it cannot be fitted. Columns of `answers`: arm, rater,
    position, correct.
    """
    failed = _obstacle(answers, "rater")
    if failed:
        return None, failed
    design = _arms(answers, sorted(answers["arm"].unique())[1:])
    position = answers["position"].to_numpy(float) / TRIALS
    design = np.column_stack([design, position - position.mean()])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None, "position and arm cannot be told apart"
    effects, failed = _fit(answers, design, "rater")
    return (None, failed) if failed else (effects[-1], "")


def _arms(answers: pd.DataFrame, others: list[str]) -> Float[np.ndarray, "answer arm"]:
    """Intercept (the arm that is not named), and an indicator of each other arm."""
    indicators = [(answers["arm"] == arm).to_numpy(float) for arm in others]
    return np.column_stack([np.ones(len(answers)), *indicators])


def _obstacle(answers: pd.DataFrame, cluster: str) -> str:
    """Why no model can be fitted: "" if it can be tried."""
    if answers.empty:
        return "no answers"
    for arm, own in answers.groupby("arm"):
        right = own["correct"].to_numpy()
        if right.min() == right.max():
            return f"{arm}: all answers are {'right' if right[0] else 'wrong'}"
        if len(own[cluster].unique()) < 2:
            return f"{arm}: a single {cluster}"
    return ""


def _fit(answers: pd.DataFrame, design: Float[np.ndarray, "answer term"], cluster: str) -> tuple[list[Effect], str]:
    """Effect of each term, or why there is none."""
    clusters = pd.factorize(answers[cluster])[0]
    freedom = int(clusters.max()) + 1 - design.shape[1]
    if freedom < 1:
        return [], f"no more {cluster}s than terms"
    model = GEE(answers["correct"].to_numpy(float), design, clusters, family=Binomial(), cov_struct=Exchangeable())
    try:
        # It warns, or fails in linear algebra, where terms separate right from wrong: told below by what comes out.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            fitted = model.fit(cov_type="bias_reduced")
        assert fitted is not None
        estimates, errors = np.asarray(fitted.params), np.asarray(fitted.bse)
    except np.linalg.LinAlgError:
        return [], "the model is singular"
    usable = np.isfinite(estimates) & np.isfinite(errors) & (errors > 0) & (np.abs(estimates) < LARGEST)
    if not (fitted.converged and usable.all()):
        return [], "the fit did not converge"
    reach = stats.t.ppf(0.975, freedom) * errors
    p = 2 * stats.t.sf(np.abs(estimates) / errors, freedom)
    rows = zip(estimates.tolist(), (estimates - reach).tolist(), (estimates + reach).tolist(), p.tolist(), strict=True)
    return [Effect(*row) for row in rows], ""
