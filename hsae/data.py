"""Characters as tokens: the tokenizer, the splits of a corpus, and the contexts that it is cut into.

A split is a list of ranges, [begin, end) in tokens, each within one document. No context, and no target, lies in two
ranges: what a document says is never read as the beginning of the next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character; token `i` is `alphabet[i]`, in code-point order."""

    alphabet: str

    @classmethod
    def fit(cls, text: str) -> "CharTokenizer":
        """Tokenizer for every character of `text`."""
        return cls("".join(sorted(set(text))))

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self.alphabet)

    def encode(self, text: str) -> Integer[Tensor, " n"]:
        """Tokens of `text`, bytes if 256 suffice. Raises ValueError for a character that is not in the alphabet."""
        points = _code_points(text)
        alphabet = _code_points(self.alphabet)
        tokens = np.searchsorted(alphabet, points).clip(max=self.n_vocab - 1)
        unknown = points[alphabet[tokens] != points] if self.alphabet else points
        if len(unknown):
            raise ValueError(f"character {chr(unknown[0])!r} is not in the alphabet of {self.n_vocab} characters.")
        return torch.from_numpy(tokens.astype(np.uint8 if self.n_vocab <= 256 else np.int32))

    def decode(self, tokens: Integer[Tensor, " n"]) -> str:
        """Text of `tokens`."""
        return "".join(self.alphabet[token] for token in tokens.tolist())


def split(
    document_starts: Sequence[int], n: int, val_fraction: float, final_fraction: float, test_fraction: float
) -> dict[str, list[tuple[int, int]]]:
    """The ranges of the splits `train`, `final`, `val` and `test`, in this order, of a corpus of `n` tokens.

    `final` is for the last comparison alone. Splits are of whole documents in the corpus's order: from its end, `test`
    takes documents until it has its share, then `val`, then `final`, each one at least; `train` has the others. A
    corpus of fewer documents than splits is cut at the fractions instead, within documents where it must be.
    """
    fractions = {"test": test_fraction, "val": val_fraction, "final": final_fraction}
    bounds = [*document_starts, n]
    if len(document_starts) <= len(fractions):
        at = [0, *(round(n * (1 - sum(list(fractions.values())[:i]))) for i in (3, 2, 1)), n]
        named = zip(("train", "final", "val", "test"), pairwise(at), strict=True)
        return {name: _within(bounds, begin, end) for name, (begin, end) in named}
    documents = list(pairwise(bounds))
    splits: dict[str, list[tuple[int, int]]] = {}
    for name, fraction in fractions.items():
        taken: list[tuple[int, int]] = []
        to_come = len(fractions) - len(splits)  # splits after this one, `train` among them: a document for each
        while len(documents) > to_come and (not taken or sum(end - begin for begin, end in taken) < fraction * n):
            taken.insert(0, documents.pop())
        splits[name] = taken
    return {"train": documents, **{name: splits[name] for name in ("final", "val", "test")}}


def context_starts(ranges: Integer[Tensor, "range 2"], context: int, most: int | None = None) -> Int[Tensor, " window"]:
    """Where the contexts of a split begin: consecutive ones of `context` inputs and one more target in each range.

    What is left of a range, and a range that is shorter, belongs to no context. Where there are more than `most`, the
    first ones of each range are taken, from all ranges the same share: no document stands for all of them. Raises
    ValueError if there is no context.
    """
    counts = (ranges[:, 1] - ranges[:, 0] - 1).clamp(min=0) // context
    _check_contexts(counts, ranges, context)
    own = torch.arange(len(ranges)).repeat_interleave(counts)
    starts = ranges[own, 0] + context * _places(counts)
    return starts if most is None else starts[first_of_each(own, most)]


def first_of_each(documents: Integer[Tensor, " window"], most: int) -> Bool[Tensor, " window"]:
    """Which contexts to take where `most` are wanted (all, if there are no more): the first ones of each document.

    `documents` says whose each context is; those of one document follow each other. All documents give the same share.
    """
    counts = documents.unique_consecutive(return_counts=True)[1]
    ends = (counts.cumsum(0) * min(most, len(documents))).div(len(documents), rounding_mode="floor")
    taken = ends.diff(prepend=ends.new_zeros(1))
    return _places(counts) < taken.repeat_interleave(counts)


def windows(
    tokens: Integer[Tensor, " n"], starts: Int[Tensor, " window"], context: int
) -> Integer[Tensor, "window context_plus_1"]:
    """The contexts that begin there: `context` inputs and one more target; neighbours share that one token."""
    return tokens[starts[:, None] + torch.arange(context + 1)]


def random_starts(
    ranges: Integer[Tensor, "range 2"], context: int, n: int, generator: torch.Generator
) -> Int[Tensor, " window"]:
    """Where `n` windows begin that start anywhere in a split and end, with their target, in the same range.

    Raises ValueError if no range has room for one.
    """
    room = (ranges[:, 1] - ranges[:, 0] - context).clamp(min=0)
    _check_contexts(room, ranges, context)
    ends = room.cumsum(0)
    places = torch.randint(int(ends[-1]), (n,), generator=generator)
    of = torch.searchsorted(ends, places, right=True)
    return ranges[of, 0] + places - (ends - room)[of]


def _check_contexts(counts: Int[Tensor, " range"], ranges: Integer[Tensor, "range 2"], context: int) -> None:
    if not counts.any():
        longest = int((ranges[:, 1] - ranges[:, 0]).max()) if len(ranges) else 0
        raise ValueError(
            f"a split whose longest document has {longest} tokens has no context of {context} and a target: documents "
            f"must be longer, or the context at most {max(longest - 1, 0)} tokens."
        )


def _places(counts: Int[Tensor, " group"]) -> Int[Tensor, " member"]:
    """Of the members of groups of these sizes, one group after the other, the place from 0 in their own."""
    return torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def _within(bounds: list[int], begin: int, end: int) -> list[tuple[int, int]]:
    """The parts of documents, given their bounds, that lie in [begin, end)."""
    parts = ((max(start, begin), min(stop, end)) for start, stop in pairwise(bounds))
    return [(start, stop) for start, stop in parts if start < stop]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
