"""Simulated raters: they exist in tests only, and their codes say what they are."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import special

from hsae.study.answers import SIMULATED
from hsae.study.responses import Response, Responses
from hsae.study.trials import OPTIONS, Kind, Role, Session, Snippet, Trial, Trials

SHA256 = "ab" * 32
SHOWN = Snippet("to be or not", (3, 4))


def trial(name: str, kind: Kind, role: Role, arm: str, feature: int, answer: int, density: float = 0.01) -> Trial:
    """A trial whose text does not matter."""
    options = 1 if kind == Kind.clarity else OPTIONS
    return Trial(
        id=name, kind=kind, role=role, arm=arm, feature=feature, density=density, decile=None,
        options=((SHOWN,),) * options, answer=None if options == 1 else answer,
    )  # fmt: skip


def study(arms: list[str], features: int, kinds: tuple[Kind, ...] = (Kind.intruder,), seed: int = 0) -> Trials:
    """A trial of each kind for each feature of each arm, four gold items and two attention checks.

    The first arm's features are denser.
    """
    rng = np.random.default_rng(seed)
    trials = [
        trial(
            f"{kind}-{arm}-{feature}", kind, Role.main, arm, feature, int(rng.integers(OPTIONS)),
            float(np.exp(rng.normal(-4.5 + 0.2 * (arm == arms[0]), 0.5))),
        )
        for kind in kinds for arm in arms for feature in range(features)
    ]  # fmt: skip
    trials += [trial(f"gold-{i}", Kind.intruder, Role.gold, "", i, int(rng.integers(OPTIONS))) for i in range(4)]
    trials += [trial(f"attention-{i}", Kind.intruder, Role.attention, "", i, 1) for i in range(2)]
    per_kind = {kind.value: len(arms) * features * (kind in kinds) for kind in Kind}
    return Trials("a corpus", seed, Session(**per_kind, gold=4, attention=2), tuple(trials))


class Simulated(NamedTuple):
    """Answers, as arrays: 1 for a right one; the numbers of arm, feature (no arm shares one) and rater."""

    correct: np.ndarray
    arm: np.ndarray
    feature: np.ndarray
    rater: np.ndarray


def simulate(
    rng: np.random.Generator, log_odds: tuple[float, ...], shape: tuple[int, int, int], sds: tuple[float, float]
) -> Simulated:
    """Answers to features of some arms: right with log odds of arm + feature + rater, the latter two normal.

    shape: features an arm, raters, answers a feature (by different raters, each of whom answers as often). sds:
    standard deviations of features and raters.
    """
    features, raters, per_feature = shape
    assert raters % per_feature == features * per_feature % raters == 0
    rounds = np.tile(np.arange(raters), (len(log_odds) * features * per_feature // raters, 1))
    rater = rng.permuted(rounds, axis=1).ravel()
    feature = np.repeat(np.arange(len(log_odds) * features), per_feature)
    arm = feature // features
    of_feature, of_rater = rng.normal(0, sds[0], len(log_odds) * features), rng.normal(0, sds[1], raters)
    p = special.expit(np.array(log_odds)[arm] + of_feature[feature] + of_rater[rater])
    return Simulated((rng.random(len(p)) < p).astype(float), arm, feature, rater)


def marginal(log_odds: float, sd: float) -> float:
    """Accuracy over the populations of features and raters whose effects have, together, this standard deviation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((special.expit(log_odds + sd * nodes) * weights).sum() / weights.sum())


def code(rater: int) -> str:
    """That of a simulated rater."""
    return f"{SIMULATED}{rater:03}"


def responses(
    asked: Trials,
    raters: int,
    log_odds: dict[str, float],
    seed: int = 0,
    sd_feature: float = 1.0,
    sd_rater: float = 0.5,
    per_position: float = 0.0,
) -> Responses:
    """Everyone answers every trial, in an order of their own, gold items and checks right; clarity by log odds."""
    rng = np.random.default_rng(seed)
    keys = sorted({(t.arm, t.feature) for t in asked.trials})
    of_feature = dict(zip(keys, rng.normal(0, sd_feature, len(keys)), strict=True))
    answers = []
    for rater in range(raters):
        ability = rng.normal(0, sd_rater)
        for position, i in enumerate(rng.permutation(len(asked.trials)).tolist(), start=1):
            own = asked.trials[i]
            logit = log_odds.get(own.arm, 0) + of_feature[own.arm, own.feature] + ability + per_position * position
            right = rng.random() < special.expit(logit) or own.role != Role.main
            wrong = (own.answer or 0) + int(rng.integers(1, OPTIONS))
            is_choice = own.answer is not None
            answers.append(
                Response(
                    rater=code(rater), position=position, trial=own.id, skipped=False,
                    choice=(own.answer if right else wrong % OPTIONS) if is_choice else None,
                    rating=None if is_choice else int(np.clip(round(3 + logit), 1, 5)),
                    label=None if is_choice else f"pattern {own.feature}",
                    milliseconds=int(rng.integers(4_000, 9_000)),
                )
            )  # fmt: skip
    return Responses(SHA256, tuple(answers))


def changed(found: Responses, rater: str, prefix: str, **values: object) -> Responses:
    """The same, but for a rater's answers to trials whose id begins so."""
    hit = [r.rater == rater and r.trial.startswith(prefix) for r in found.responses]
    new = (replace(r, **values) if is_hit else r for r, is_hit in zip(found.responses, hit, strict=True))
    return Responses(found.trials_sha256, tuple(new))
