"""Which latents detect a concept: k-sparse probing (Gurnee et al. 2023, arXiv 2305.01610) by thresholds and F1.

First the single latent, with the threshold on its activation, by which F1 is highest; then, one by one, the latent and
threshold that raise the F1 of "any of them is at its threshold" most, while it rises by more than F1_RISE and up to
MAX_SPLIT. SAEBench (arXiv 2503.09532), whose rule of when to stop this is, takes the largest weights of an L1 probe and
the F1 of a logistic regression on the first k of them; here every choice is the best there is, and nothing is fitted.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

F1_RISE = 0.03
MAX_SPLIT = 10


@dataclass(frozen=True)
class Ranked:
    """Positive activations latent by latent, those of each from the largest down."""

    tokens: Int[ndarray, " entry"]
    latents: Int[ndarray, " entry"]
    acts: Float[ndarray, " entry"]
    starts: Int[ndarray, " entry"]
    """Index of the first entry of the same latent."""
    is_cut: Bool[ndarray, " entry"]
    """Whether a threshold can part this entry from the next one: they are not equal activations of one latent."""


@dataclass(frozen=True)
class MainLatents:
    """The latents by which a concept is detected, in the order in which they were chosen, and their thresholds."""

    latents: list[int]
    thresholds: list[float]

    def detect(self, codes: csr_array) -> Bool[ndarray, " n"]:
        """Whether any of them is at its threshold or above."""
        return (codes[:, self.latents].toarray() >= np.array(self.thresholds)).any(1)

    def first(self) -> "MainLatents":
        """The best single latent."""
        return MainLatents(self.latents[:1], self.thresholds[:1])


def rank(codes: csr_array) -> Ranked:
    """Sort a method's codes for `main_latents`."""
    columns = codes.tocsc()
    ends = zip(columns.indptr[:-1], columns.indptr[1:], strict=True)
    order = np.concatenate(
        [start + np.argsort(np.negative(columns.data[start:end]), kind="stable") for start, end in ends]
    )
    sizes, acts = np.diff(columns.indptr), columns.data[order]
    latents = np.repeat(np.arange(len(sizes)), sizes)
    is_cut = np.append((acts[1:] < acts[:-1]) | (latents[1:] != latents[:-1]), True)[: len(acts)]
    return Ranked(columns.indices[order], latents, acts, np.repeat(columns.indptr[:-1], sizes), is_cut)


def main_latents(ranked: Ranked, has: Bool[ndarray, " n"], most: int = MAX_SPLIT) -> MainLatents:
    """Choose at most `most` main latents of a concept; none if no latent is ever active where it is."""
    chosen, detected, reached = MainLatents([], []), np.zeros(len(has), dtype=bool), -F1_RISE
    for _ in range(most if len(ranked.acts) else 0):
        f1_with = np.where(ranked.is_cut, _f1_with(ranked, has, detected), 0)
        best = int(f1_with.argmax())
        if f1_with[best] <= reached + F1_RISE:
            break
        reached = f1_with[best]
        chosen.latents.append(int(ranked.latents[best]))
        chosen.thresholds.append(float(ranked.acts[best]))
        detected[ranked.tokens[ranked.starts[best] : best + 1]] = True
    return chosen


def _f1_with(ranked: Ranked, has: Bool[ndarray, " n"], detected: Bool[ndarray, " n"]) -> Float[ndarray, " entry"]:
    """F1 of calling positive what is detected already and what is ranked, with its latent, down to each entry."""

    def count(new: Bool[ndarray, " n"]) -> Int[ndarray, " entry"]:
        running = np.append(0, np.cumsum(new[ranked.tokens]))
        return running[1:] - running[ranked.starts]

    hits, calls = count(~detected & has), count(~detected)
    return 2 * (hits + (detected & has).sum()) / (calls + detected.sum() + has.sum())


def f1(called: Bool[ndarray, " n"], has: Bool[ndarray, " n"]) -> float:
    """Harmonic mean of precision and recall: 2 hits / (calls + positives); 0 where there are neither."""
    return 2 * np.count_nonzero(called & has) / max(np.count_nonzero(called) + np.count_nonzero(has), 1)
