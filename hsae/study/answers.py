"""Answers beside what was asked, as a frame, and which raters are left out of the scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hsae.config import check, check_positive
from hsae.study.responses import Response
from hsae.study.trials import Kind, Role, Trial, Trials

SIMULATED = "simulated-"  # how codes of raters begin that are no people
FIFTHS = 5
REASONS = ("gold", "attention", "speed")  # for which a rater is left out
COLUMNS = [
    "rater", "position", "fifth", "trial", "kind", "role", "arm", "index", "feature", "density", "choice", "correct",
    "rating", "label", "skipped", "seconds",
]  # fmt: skip


@dataclass
class ScoreConfig:
    """Section `score_study`.

    reference: arm with which the others are compared. A rater is left out with fewer right answers than `min_gold` (a
    share of the gold items met), more than `max_failed_attention` checks failed, or a median time below
    `min_median_ms`. p1, p2 (accuracies), power, alpha: what the study is planned to see.
    """

    reference: str
    min_gold: float
    max_failed_attention: int
    min_median_ms: float
    p1: float
    p2: float
    power: float
    alpha: float

    def __post_init__(self) -> None:
        check("min_gold", self.min_gold, "in 0..1", 0 <= self.min_gold <= 1)
        for name in ("max_failed_attention", "min_median_ms"):
            value = getattr(self, name)
            check(name, value, "0 or more", value >= 0)
        check_positive(self, ["p1", "p2", "power", "alpha"])
        for name in ("p1", "p2", "power", "alpha"):
            check(name, getattr(self, name), "below 1", getattr(self, name) < 1)
        check("p2", self.p2, "another than p1", self.p1 != self.p2)
        check("power", self.power, f"above alpha (={self.alpha})", self.power > self.alpha)


def answer_frame(study: Trials, responses: Sequence[Response]) -> pd.DataFrame:
    """A row for each answer or skipped trial, by rater and position.

    Columns: rater, position, fifth (0 to 4: of a whole session), trial, kind, role, arm, index (of the feature in its
    arm), feature (a number that no other arm's has), density, choice, correct (1, 0; nan if skipped or nothing is right
    or wrong), rating, label, skipped, seconds. Raises ValueError for an answer to no trial, or of another kind than the
    trial's; a density that is not above 0.
    """
    trials = {trial.id: trial for trial in study.trials}
    features: dict[tuple[str, int], int] = {}
    for trial in study.trials:
        if trial.role == Role.main:
            check(f"density of {trial.id}", trial.density, "above 0", trial.density > 0)
            features.setdefault((trial.arm, trial.feature), len(features))
    length = sum(vars(study.session).values())
    rows = []
    for response in sorted(responses, key=lambda r: (r.rater, r.position)):
        check("trial", response.trial, "one of trials.json", response.trial in trials)
        trial = trials[response.trial]
        _check_kind(trial, response)
        answered = trial.answer is not None and not response.skipped
        row = {
            **vars(response), "kind": str(trial.kind), "role": str(trial.role), "arm": trial.arm,
            "index": trial.feature, "density": trial.density, "feature": features.get((trial.arm, trial.feature), -1),
            "fifth": min((response.position - 1) * FIFTHS // max(length, 1), FIFTHS - 1),
            "correct": float(response.choice == trial.answer) if answered else None,
            "seconds": response.milliseconds / 1000,
        }  # fmt: skip
        rows.append(row)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["choice", "correct", "rating", "seconds"]
    return frame.assign(
        **{name: frame[name].to_numpy(float) for name in numbers}, skipped=frame["skipped"].to_numpy(bool)
    )


def exclusions(frame: pd.DataFrame, config: ScoreConfig) -> dict[str, list[str]]:
    """Raters who are left out, and why: gold, attention, speed.

    A gold item or a check that was skipped counts as wrong: both are plain. Speed is the median over answered main
    trials. Who met none of these is not judged by them. `frame` is that of `answer_frame`.
    """
    found = {}
    for rater, own in frame.groupby("rater"):
        plain = own.query("kind != @Kind.clarity.value")  # a rating is never wrong
        gold = plain.query("role == @Role.gold.value")["correct"].to_numpy() == 1
        failed = plain.query("role == @Role.attention.value")["correct"].to_numpy() != 1
        seconds = own.query("role == @Role.main.value and not skipped")["seconds"].to_numpy()
        reasons = {
            "gold": len(gold) > 0 and gold.mean() < config.min_gold,
            "attention": failed.sum() > config.max_failed_attention,
            "speed": len(seconds) > 0 and np.median(seconds) * 1000 < config.min_median_ms,
        }
        if any(reasons.values()):
            found[str(rater)] = [name for name in REASONS if reasons[name]]
    return found


def _check_kind(trial: Trial, response: Response) -> None:
    given = "rating" if response.rating is not None else "choice"
    wanted = "rating" if trial.kind == Kind.clarity else "choice"
    name = f"answer of {response.rater} to {trial.id}"
    check(name, f"a {given}", f"a {wanted}, as it is of kind {trial.kind}", response.skipped or given == wanted)
