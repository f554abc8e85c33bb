"""Claims that were written down before their test (docs/claims.yaml): what each compares, seed by seed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from hsae.config import check
from hsae.statistics import at_matched_l0

CLAIMS = Path(__file__).parent.parent / "docs" / "claims.yaml"
LEAST_SEEDS = 6  # for a claim to hold: few seeds within the frontier say little of all
HOW: dict[str, Callable[[float, float], float]] = {
    "difference": lambda value, null: value - null,
    "ratio": lambda value, null: value / null if null else np.nan,
    "chance": lambda value, null: (value - null) / (1 - null) if null != 1 else np.nan,
}


@dataclass
class Claim:
    """That the absence of a component moves a metric up or down; docs/claims.yaml explains the keys."""

    component: str
    condition: str
    metric: str
    compared: str
    direction: str
    null: str | None = None
    how: str | None = None
    note: str | None = None
    exploratory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = f"claims.{self.component}"
        ways = ("as is", "null", "matched L0")
        check(f"{name}.compared", self.compared, f"one of {', '.join(ways)}", self.compared in ways)
        check(f"{name}.direction", self.direction, "up or down", self.direction in ("up", "down"))
        against_null = self.compared == "null"
        check(
            f"{name}.null", self.null, "there where `compared` is null, and only there", (not self.null) != against_null
        )
        check(f"{name}.how", self.how, f"one of {', '.join(HOW)} with a null", (self.how in HOW) == against_null)
        if self.compared == "matched L0":
            level, _, own = self.metric.partition(".")
            check(f"{name}.metric", self.metric, "level1's or level2's", level in ("level1", "level2") and bool(own))


def read() -> dict[str, Any]:
    """The file's `seeds` and `claims`, all values as they are written: null is a word there."""
    return yaml.load(CLAIMS.read_text(encoding="utf-8"), yaml.BaseLoader)


def rows(claims: list[Claim], frame: pd.DataFrame, frontier: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`frame` as each claim compares it: its condition's values and the reference's, with its component as the metric.

    At matched L0 either's value is what it has beyond the frontier at its own L0: what stands beside the frontier is
    not taken for better or worse than the other for its L0 alone.

    Columns of `frame`: condition, seed, metric, value. `frontier` has the points of the reference's own frontier: level
    (1 or 2), seed, l0 and metrics of a dictionary. Values that are not known, or beyond the frontier, are nan. Raises
    ValueError for a metric that neither has.
    """
    found = [
        {"condition": condition, "seed": seed, "metric": claim.component, "value": value}
        for claim in claims
        for condition in (claim.condition, reference)
        for seed, value in _compared(claim, condition, frame, frontier).items()
    ]
    return pd.DataFrame(found, columns=["condition", "seed", "metric", "value"])


def _compared(claim: Claim, condition: str, frame: pd.DataFrame, frontier: pd.DataFrame) -> dict[int, float]:
    """What a claim compares of a condition, by seed."""
    own = _values(claim, condition, claim.metric, frame)
    if claim.null and claim.how:
        nulls, how = _values(claim, condition, claim.null, frame), HOW[claim.how]
        return {seed: how(value, nulls.get(seed, np.nan)) for seed, value in own.items()}
    if claim.compared == "matched L0":
        level, _, y = claim.metric.partition(".")
        check(f"claims.{claim.component}", claim.metric, f"one of the frontier's {', '.join(frontier)}", y in frontier)
        points = frontier.query(f"l0 > 0 and level == {level[-1]}").filter(["seed", "l0", y]).dropna()
        l0s = _values(claim, condition, f"{level}.l0", frame)
        return {
            seed: value - _on(points.query("seed == @seed"), l0s.get(seed, np.nan), y) for seed, value in own.items()
        }
    return own


def _values(claim: Claim, condition: str, metric: str, frame: pd.DataFrame) -> dict[int, float]:
    """A metric of a condition, by seed."""
    there = frame["metric"].unique().tolist()
    check(f"claims.{claim.component}", metric, f"a metric of the results ({', '.join(there)})", metric in there)
    own = frame.loc[(frame["condition"] == condition) & (frame["metric"] == metric), ["seed", "value"]]
    return {int(seed): float(value) for seed, value in own.to_numpy()}


def _on(points: pd.DataFrame, l0: float, y: str) -> float:
    """The frontier of a seed at an L0; nan where it has none."""
    return at_matched_l0(points, l0, y) if len(points) and l0 > 0 else np.nan
