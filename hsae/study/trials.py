"""The trials of a study, as they stand in trials.json: what is shown, what is right, and what each rater gets."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeVar, get_type_hints

from hsae.config import check

T = TypeVar("T")

FORMAT = "hsae-trials-1"
OPTIONS = 5


class Kind(StrEnum):
    """What a rater is asked to do.

    intruder: find the one of five snippets in which the highlighted characters do not belong together with the others'.
    odd_child: find the one of five groups of snippets that does not belong to the others.
    clarity: say in 1 (no pattern) to 5 (obvious) how clear it is what the highlighted characters share, and what it is.
    """

    intruder = "intruder"
    odd_child = "odd_child"
    clarity = "clarity"


class Role(StrEnum):
    """What a trial is for: the study proper; gold, whose answer is plain; attention, which says what to answer."""

    main = "main"
    gold = "gold"
    attention = "attention"


@dataclass(frozen=True)
class Snippet:
    """A piece of the corpus; `marks` are the positions of its highlighted characters, ascending."""

    text: str
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """One question.

    id: opaque. arm: where the feature is from ("" for gold and attention). feature: its index there; density: share of
    tokens on which it is active. decile: of its activations, 1 to 10, from which snippets are (None: all of them).
    options: five to choose from, for clarity a single one. answer: index of the right option (None for clarity).
    instruction: what an attention check tells the rater to do ("" elsewhere).
    """

    id: str
    kind: Kind
    role: Role
    arm: str
    feature: int
    density: float
    decile: int | None
    options: tuple[tuple[Snippet, ...], ...]
    answer: int | None
    instruction: str = ""


@dataclass
class Session:
    """How many trials of each sort a rater gets."""

    intruder: int
    odd_child: int
    clarity: int
    gold: int
    attention: int


@dataclass(frozen=True)
class Trials:
    """All trials of a study, in an order that tells nothing."""

    corpus: str
    seed: int
    session: Session
    trials: tuple[Trial, ...]


def dumps(study: Trials) -> str:
    """trials.json. The same trials give the same text, and so the same sha256."""
    return json.dumps({"format": FORMAT, **asdict(study)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: str) -> Trials:
    """The trials that a trials.json holds. Raises ValueError, in one line, for anything that is not as it should be."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"trials.json is damaged ({error}): run `dvc repro build_study`.") from None
    found = content.get("format") if isinstance(content, dict) else None
    check("format", found, f"{FORMAT}: run `dvc repro build_study`", found == FORMAT)
    try:
        session = record(Session, content["session"])
        trials = tuple(_trial(row) for row in content["trials"])
        rest = {name: value for name, value in content.items() if name != "format"}
        study = record(Trials, {**rest, "session": session, "trials": trials})
    except (KeyError, TypeError) as error:
        raise ValueError(f"trials.json lacks something ({error!r}): run `dvc repro build_study`.") from None
    _check(study)
    return study


def record(kind: type[T], row: dict[str, Any]) -> T:
    """A dataclass from what JSON holds. Raises ValueError for a key that is missing or unknown, or a wrong type."""
    hints = get_type_hints(kind)
    check(f"keys of a {kind.__name__}", list(row), f"{', '.join(hints)}", row.keys() == hints.keys())
    for name, hint in hints.items():
        hint = getattr(hint, "__origin__", hint)  # tuple[...] -> tuple
        # In Python true is an integer, and an integer will do for a float; neither is meant to be a number here.
        same = isinstance(row[name], hint | int if hint is float else hint) and isinstance(row[name], bool) <= (
            hint is bool
        )
        check(name, row[name], getattr(hint, "__name__", str(hint)), same)
    return kind(**row)


def available(trials: Iterable[Trial]) -> Counter[str]:
    """How many trials there are of each sort that a `Session` names."""
    return Counter(str(trial.kind if trial.role == Role.main else trial.role) for trial in trials)


def _trial(row: dict[str, Any]) -> Trial:
    options = tuple(
        tuple(record(Snippet, {**snippet, "marks": tuple(snippet["marks"])}) for snippet in option)
        for option in row["options"]
    )
    return record(Trial, {**row, "kind": Kind(row["kind"]), "role": Role(row["role"]), "options": options})


def _check(study: Trials) -> None:
    counts = Counter(trial.id for trial in study.trials)
    for trial in study.trials:
        check(f"density of {trial.id}", trial.density, "in 0..1", 0 <= trial.density <= 1)
        check("id", trial.id, "there once", counts[trial.id] == 1)
        n = 1 if trial.kind == Kind.clarity else OPTIONS
        check(f"options of {trial.id}", len(trial.options), f"{n} for {trial.kind}", len(trial.options) == n)
        right = trial.answer is None if n == 1 else trial.answer in range(n)
        check(f"answer of {trial.id}", trial.answer, "none" if n == 1 else f"0 to {n - 1}", right)
        snippets = [snippet for option in trial.options for snippet in option]
        inside = all(mark in range(len(snippet.text)) for snippet in snippets for mark in snippet.marks)
        check(f"marks of {trial.id}", [s.marks for s in snippets], "positions of the text", inside)
    counts = available(study.trials)
    for name, wanted in vars(study.session).items():
        check(f"session.{name}", wanted, f"0 to {counts[name]}, those that there are", 0 <= wanted <= counts[name])
