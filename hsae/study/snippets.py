"""Snippets of features: pieces of a text around activations, drawn decile by decile, and text where there are none."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray
from scipy.sparse import csc_array

from hsae.snippets import PEAK, apart
from hsae.study.trials import Snippet

DECILES = 10


@dataclass(frozen=True)
class Feature:
    """Where a feature is active: a latent, a cluster, a direction.

    on: whether it is active on each token of the text. deciles: the tokens that a snippet can be shown for, in ten
    parts from the weakest activations to the strongest.
    """

    arm: str
    index: int
    density: float
    on: Bool[ndarray, " token"]
    deciles: list[Int[ndarray, " _"]]


class Sampler:
    """Draws snippets of `width` characters from a text."""

    def __init__(self, text: str, width: int, rng: np.random.Generator):
        self.text, self.width, self.rng = text, width, rng
        self.before = int(width * PEAK)

    def feature(self, arm: str, acts: csc_array, index: int) -> Feature:
        """A feature by its activations (token, feature) on the text."""
        n = len(self.text)
        column = slice(acts.indptr[index], acts.indptr[index + 1])
        rows, values = acts.indices[column], acts.data[column]
        rows, values = rows[values > 0], values[values > 0]
        on = np.zeros(n, dtype=bool)
        on[rows] = True
        whole = (rows >= self.before) & (rows - self.before + self.width <= n)
        # A cluster is equally active everywhere: ties are broken by chance, not by place.
        order = np.lexsort((self.rng.random(int(whole.sum())), values[whole]))
        return Feature(arm, index, len(rows) / n, on, np.array_split(rows[whole][order], DECILES))

    def places(self, tokens: Int[ndarray, " shown"], n: int) -> list[int]:
        """Up to `n` of some tokens, drawn so that their snippets do not overlap."""
        return apart(self.rng.permutation(tokens), n, self.width)

    def shown(self, feature: Feature, tokens: Int[ndarray, " shown"], n: int) -> list[Snippet]:
        """Up to `n` snippets for some of the tokens on which a feature is active, which is highlighted."""
        starts = [token - self.before for token in self.places(tokens, n)]
        return [self._cut(start, np.flatnonzero(feature.on[start : start + self.width])) for start in starts]

    def silent(self, feature: Feature) -> Int[ndarray, " start"]:
        """Where a snippet on which the feature is active nowhere can begin."""
        active = np.concatenate([[0], np.cumsum(feature.on)])
        return np.flatnonzero(active[self.width :] == active[: -self.width])

    def unlike(self, feature: Feature, marks: tuple[int, ...]) -> Snippet:
        """Text on which the feature is active nowhere, with given highlights."""
        return self._cut(int(self.rng.choice(self.silent(feature))), np.array(marks, dtype=int))

    def _cut(self, start: int, marks: Int[ndarray, " mark"]) -> Snippet:
        return Snippet(self.text[start : start + self.width], tuple(marks.tolist()))
