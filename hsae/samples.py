"""What was chosen on which samples, and what was scored on which: the two never share a token.

The best of many, chosen and scored on the same tokens, is flattered. So every stage that chooses (a matching, a parent,
a case, a bin, the best of several readings) records on which samples it chose and on which it scored, in its metrics
file, and a test finds the two disjoint (tests/test_samples.py).
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer
from numpy import ndarray

from hsae.streams import Stream

Role = Literal["chosen", "scored"]
Record = dict[str, Any]
TEXT = ("train", "val", "test", "final")  # the corpus's splits


def record(what: str, role: Role, split: str, offsets: Integer[ndarray, " n"], stream: Stream | None = None) -> Record:
    """What a metrics file says of the samples on which `what` was chosen, or scored.

    `split` names the text or the data: a split of the corpus, or for drawn data the name of what was drawn. `offsets`
    are the samples' places in the corpus, whatever the split, or in that data; the record keeps the runs of consecutive
    ones, as [first, last].
    `stream` draws among them, if anything does. Raises ValueError if there is no sample.
    """
    if not len(offsets):
        raise ValueError(f"{what}: there are no samples of `{split}` on which it could be {role}.")
    places = np.unique(offsets)
    ends = np.flatnonzero(np.diff(places) > 1)
    runs = zip(places[np.append(0, ends + 1)].tolist(), places[np.append(ends, len(places) - 1)].tolist(), strict=True)
    drawn = f"{stream.seed}/{stream.name}" if stream else None
    return {"what": what, "role": role, "split": split, "runs": [list(run) for run in runs], "stream": drawn}


def shared(records: Iterable[Record]) -> list[str]:
    """The names of all that was chosen and scored on a common sample, or from one stream, or only chosen or scored."""
    found: dict[str, dict[str, list[Record]]] = {}
    for one in records:
        found.setdefault(one["what"], {"chosen": [], "scored": []})[one["role"]].append(one)
    return [
        what
        for what, by in found.items()
        if not by["chosen"] or not by["scored"] or any(_overlap(a, b) for a in by["chosen"] for b in by["scored"])
    ]


def _overlap(a: Record, b: Record) -> bool:
    one_stream = a["stream"] is not None and a["stream"] == b["stream"]
    meet = any(first <= last_b and first_b <= last for first, last in a["runs"] for first_b, last_b in b["runs"])
    return one_stream or (_space(a) == _space(b) and meet)


def _space(one: Record) -> str:
    """What a record's places lie in. All splits are of one corpus: what names two of them may still read one."""
    return "text" if one["split"] in TEXT else one["split"]
