"""Snippets of features: pieces of a text around activations, drawn decile by decile, and text where there are none."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from scipy.sparse import csc_array

from hsae.snippets import PEAK, apart
from hsae.study.trials import Snippet

DECILES = 10


@dataclass(frozen=True)
class Feature:
    """Where a feature is active: a latent, a cluster, a direction.

    active: the tokens of the text on which it is, ascending. deciles: those that a snippet can be shown for, in ten
    parts from the weakest activations to the strongest.
    """

    arm: str
    index: int
    density: float
    active: Int[ndarray, " active"]
    deciles: list[Int[ndarray, " _"]]


class Sampler:
    """Draws snippets of `width` characters from a text."""

    def __init__(self, text: str, width: int, rng: np.random.Generator):
        self.text, self.width, self.rng = text, width, rng
        self.before = int(width * PEAK)

    def feature(self, arm: str, acts: csc_array, index: int) -> Feature:
        """A feature by its activations (token, feature; rows ascending) on the text."""
        n = len(self.text)
        column = slice(acts.indptr[index], acts.indptr[index + 1])
        rows, values = acts.indices[column], acts.data[column]
        rows, values = rows[values > 0], values[values > 0]
        whole = (rows >= self.before) & (rows - self.before + self.width <= n)
        # A cluster is equally active everywhere: ties are broken by chance, not by place.
        order = np.lexsort((self.rng.random(int(whole.sum())), values[whole]))
        return Feature(arm, index, len(rows) / n, rows, np.array_split(rows[whole][order], DECILES))

    def places(self, tokens: Int[ndarray, " shown"], n: int) -> list[int]:
        """Up to `n` of some tokens, drawn so that their snippets do not overlap."""
        return apart(self.rng.permutation(tokens), n, self.width)

    def shown(self, feature: Feature, tokens: Int[ndarray, " shown"], n: int) -> list[Snippet]:
        """Up to `n` snippets for some of the tokens on which a feature is active, which is highlighted."""
        found = []
        for start in (token - self.before for token in self.places(tokens, n)):
            first, beyond = np.searchsorted(feature.active, [start, start + self.width])
            found.append(self._cut(start, tuple((feature.active[first:beyond] - start).tolist())))
        return found

    def has_silence(self, feature: Feature) -> bool:
        """Whether there is a snippet on which the feature is active nowhere."""
        return bool(self._silence(feature)[1].sum())

    def unlike(self, feature: Feature, marks: tuple[int, ...]) -> Snippet:
        """Text on which the feature is active nowhere, with given highlights: any such snippet is as likely."""
        first, counts = self._silence(feature)
        total = np.cumsum(counts)
        drawn = int(self.rng.integers(total[-1]))
        gap = int(np.searchsorted(total, drawn, side="right"))
        return self._cut(int(first[gap] + drawn - (total[gap] - counts[gap])), marks)

    def _silence(self, feature: Feature) -> tuple[Int[ndarray, " gap"], Int[ndarray, " gap"]]:
        """Between active tokens: the first snippet that fits, and how many do."""
        ends = np.concatenate([[-1], feature.active, [len(self.text)]])
        return ends[:-1] + 1, np.maximum(np.diff(ends) - self.width, 0)

    def _cut(self, start: int, marks: tuple[int, ...]) -> Snippet:
        return Snippet(self.text[start : start + self.width], marks)
