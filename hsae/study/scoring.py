"""What a study found: accuracy and clarity of each arm with intervals, comparisons, agreement, learning, power.

Nothing is estimated from nothing: where there are no answers, or too few, an estimate is None.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hsae.config import check
from hsae.streams import Stream
from hsae.study.agreement import alpha_interval, intraclass_correlation, krippendorff_alpha
from hsae.study.answers import FIFTHS, REASONS, SIMULATED, ScoreConfig, answer_frame, exclusions
from hsae.study.intervals import difference_interval, mean_interval
from hsae.study.odds import Effect, arm_odds, position_slope
from hsae.study.planning import achieved_power, design_effect, smallest_difference
from hsae.study.responses import RATINGS, Responses
from hsae.study.trials import OPTIONS, Kind, Role, Trials


class Scores(NamedTuple):
    """metrics: all results, for JSON. frame: a row per kind and arm, for the figure.

    Columns of `frame`: kind, arm, value (accuracy, or mean rating for clarity), low, high (95% interval), answers,
    features; nan for what there is not.
    """

    metrics: dict[str, Any]
    frame: pd.DataFrame


def score(study: Trials, sha256: str, found: Responses, config: ScoreConfig) -> Scores:
    """Score the responses to `study`, whose trials.json has this sha256.

    Responses to other trials are counted, not scored: people answered other questions then. Raters who fail a filter
    (`exclusions`) are left out, but for `without_exclusions`. Raises ValueError for a reference that is no arm of the
    study, or responses that do not fit the trials.
    """
    arms, stream = {kind: _arms(study, kind) for kind in Kind}, Stream(study.seed, "score_study/trials drawn anew")
    known = sorted(set().union(*arms.values()))
    check("reference", config.reference, f"an arm of the study: {', '.join(known)}", config.reference in known)
    own = found.responses if found.trials_sha256 == sha256 else ()
    everyone = answer_frame(study, own)
    excluded = exclusions(everyone, config)
    raters = everyone["rater"].unique().tolist()
    reasons = {reason: sum(reason in own for own in excluded.values()) for reason in REASONS}
    metrics: dict[str, Any] = {
        "responses": len(own),
        "responses_to_other_trials": len(found.responses) - len(own),
        "raters": len(raters),
        "simulated": sum(rater.startswith(SIMULATED) for rater in raters),
        "excluded": {"raters": len(excluded), **reasons},
        "reference": config.reference,
    }
    rows = []
    for kind in (kind for kind in Kind if arms[kind]):
        of_all = everyone.query("role == @Role.main.value and kind == @kind.value")
        given = of_all.query("rater not in @excluded")
        if kind == Kind.clarity:
            metrics[kind.value] = {"arms": _per_arm(given, of_all, arms[kind], "rating"), "labels": _labels(given)}
        else:
            metrics[kind.value] = _choices(given, of_all, arms[kind], config, stream.of(kind.value))
        for arm, result in metrics[kind.value]["arms"].items():
            low, high = result["interval"] or (None, None)
            rows.append([kind.value, arm, result["mean"], low, high, result["answers"], result["features"]])
    frame = pd.DataFrame(rows, columns=["kind", "arm", "value", "low", "high", "answers", "features"])
    return Scores(metrics, frame.astype({"value": float, "low": float, "high": float}))


def _arms(study: Trials, kind: Kind) -> list[str]:
    return sorted({trial.arm for trial in study.trials if trial.kind == kind and trial.role == Role.main})


def _choices(
    given: pd.DataFrame, of_all: pd.DataFrame, arms: list[str], config: ScoreConfig, stream: Stream
) -> dict[str, Any]:
    """Everything about the answers of a kind that can be right or wrong."""
    answered = given.query("not skipped")
    icc = intraclass_correlation(
        answered["correct"].to_numpy(float), pd.factorize(answered["arm"])[0], answered["feature"].to_numpy(int)
    )
    per_arm = _per_arm(given, of_all, arms, "correct")
    for arm, own in per_arm.items():
        own["alpha"] = _alpha(_of(answered, arm), stream.of("of one arm", arm))
        own["answers_per_feature"] = own["answers"] / own["features"] if own["answers"] else None
        own["effective_answers"] = _effective(own["answers"], own["features"], icc)
    model = arm_odds(answered, config.reference)
    against = {}
    for arm in arms:
        if arm != config.reference and config.reference in arms:
            odds = {"odds_ratio": _effect(model.effects.get(arm), exponent=True), "p_holm": model.p_holm.get(arm)}
            against[arm] = _difference(answered, arm, config.reference) | odds | _power(per_arm, arm, config)
    return {
        "arms": per_arm,
        "against_reference": against,
        "model": {"by_density": model.by_density, "failed": model.failed or None},
        "alpha": _alpha(answered, stream.of("of all arms")),
        "intraclass_correlation": icc,
        "session": _session(answered),
    }


def _per_arm(given: pd.DataFrame, of_all: pd.DataFrame, arms: list[str], column: str) -> dict[str, dict[str, Any]]:
    """Mean of `column` in each arm with its interval, and what it rests on."""
    low, high = (RATINGS[0], RATINGS[-1]) if column == "rating" else (0, 1)
    result = {}
    for arm in arms:
        of_arm = _of(given, arm)
        own = of_arm.query("not skipped")
        values, features = own[column].to_numpy(float), own["feature"].to_numpy(int)
        raters = pd.factorize(own["rater"])[0]
        result[arm] = {
            "mean": _mean(values),
            "interval": _listed(mean_interval(values, features, raters, low, high)),
            "without_exclusions": _mean(_of(of_all, arm).query("not skipped")[column].to_numpy()),
            "answers": len(own),
            "features": len(np.unique(features)),
            "raters": len(np.unique(raters)),
            "skipped": _mean(of_arm["skipped"].to_numpy()),
            "median_seconds": _median(own["seconds"].to_numpy()),
        }
    return result


def _session(answered: pd.DataFrame) -> dict[str, Any]:
    """Learning and fatigue: accuracy and time by fifth of the session, and the trend."""
    fifths = [answered.query("fifth == @i") for i in range(FIFTHS)]
    slope, failed = position_slope(answered)
    return {
        "accuracy": [_mean(fifth["correct"].to_numpy()) for fifth in fifths],
        "median_seconds": [_median(fifth["seconds"].to_numpy()) for fifth in fifths],
        "log_odds_per_10_trials": _effect(slope),
        "failed": failed or None,
    }


def _labels(given: pd.DataFrame) -> list[dict[str, Any]]:
    """What raters called each feature, as they wrote it: text to be shown, never to be run or rendered."""
    labels: dict[tuple[str, int], list[str]] = {}
    for row in given.sort_values(["arm", "index", "rater"]).to_dict("records"):
        if isinstance(row["label"], str) and row["label"]:  # pandas makes nan of None
            labels.setdefault((row["arm"], row["index"]), []).append(row["label"])
    return [{"arm": arm, "feature": index, "labels": written} for (arm, index), written in labels.items()]


def _difference(answered: pd.DataFrame, arm: str, reference: str) -> dict[str, Any]:
    both = _of(answered, arm, reference)
    treated, correct = (both["arm"] == arm).to_numpy(int), both["correct"].to_numpy(float)
    if len(np.unique(treated)) < 2:
        return {"difference": None, "interval": None}
    interval = difference_interval(correct, treated, both["feature"].to_numpy(int), pd.factorize(both["rater"])[0])
    difference = float(correct[treated == 1].mean() - correct[treated == 0].mean())
    return {"difference": difference, "interval": _listed(interval)}


def _effective(answers: int, features: int, icc: float | None) -> float | None:
    """How many independent answers tell as much: None if nobody knows how alike answers about one feature are."""
    if not answers or (icc is None and answers > features):
        return None
    return answers / design_effect(answers / features, max(icc or 0.0, 0.0))


def _power(arms: dict[str, Any], arm: str, config: ScoreConfig) -> dict[str, Any]:
    """Power of the comparison with the reference, had the accuracies been p1 and p2."""
    n1, n2 = (arms[name]["effective_answers"] for name in (config.reference, arm))
    if n1 is None or n2 is None:
        return {"power": None, "smallest_difference": None}
    return {
        "power": achieved_power(config.p1, config.p2, config.alpha, n1, n2),
        "smallest_difference": smallest_difference(config.p1, config.power, config.alpha, n1, n2),
    }


def _alpha(answered: pd.DataFrame, stream: Stream) -> dict[str, Any]:
    """Krippendorff's alpha of the options that were chosen, with its interval."""
    trials, ids = pd.factorize(answered["trial"])
    counts = np.zeros((len(ids), OPTIONS), dtype=int)
    np.add.at(counts, (trials, answered["choice"].to_numpy(int)), 1)
    return {"mean": krippendorff_alpha(counts), "interval": _listed(alpha_interval(counts, stream))}


def _effect(effect: Effect | None, *, exponent: bool = False) -> dict[str, Any]:
    """An effect in log odds, or, with `exponent`, as an odds ratio."""
    if effect is None:
        return {"mean": None, "interval": None, "p": None}
    values = [effect.log_odds, effect.low, effect.high]
    mean, low, high = np.exp(values).tolist() if exponent else values
    return {"mean": mean, "interval": [low, high], "p": effect.p}


def _of(answers: pd.DataFrame, *arms: str) -> pd.DataFrame:
    return answers.query("arm in @arms", local_dict={"arms": arms})


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
