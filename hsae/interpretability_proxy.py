"""Proxies for how easily a latent is understood: a short rule that tells when it is active, and a rater that uses it.

A proxy is no human judgement, and every number here is called proxy_*. A rule is a set of at most some n-grams, all of
one length: the latent is active where the text ends in one of them. Rules are found on one part of the text and scored
on another. The simulated rater knows the rule and nothing else, and looks for the intruder among five snippets, one of
which does not activate the latent (Chang et al. 2009, Reading Tea Leaves; chance .2).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray
from scipy.sparse import csc_array, csr_array

from hsae.config import check, check_positive
from hsae.sparse_probing import f1
from hsae.statistics import bootstrap_interval
from hsae.streams import Stream

SNIPPETS = 5
ROUNDING = 1e-9
TOP = 0.1  # share of a latent's activations, the strongest, that snippets show


@dataclass
class ProxyConfig:
    """Section `interpretability_proxy`.

    fit_tokens (validation split), score_tokens (test split). longest: n-grams are 1 to so many characters long; ngrams:
    of a rule, at most. min_active: tokens of the first part on which a latent must be active to be scored. trials: of
    the simulated rater, for each latent. snippet_chars: length of a snippet.
    """

    fit_tokens: int
    score_tokens: int
    longest: int
    ngrams: int
    min_active: int
    trials: int
    snippet_chars: int

    def __post_init__(self) -> None:
        check_positive(self, vars(self))


@dataclass(frozen=True)
class Rule:
    """Active where the last `length` characters are one of these n-grams, given by their codes (`ngram_codes`)."""

    length: int
    ngrams: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A part of the text: n-grams that end at each token, and activations of a dictionary there."""

    codes: dict[int, Int[ndarray, " token"]]
    acts: csc_array

    def fires(self, rule: Rule) -> Bool[ndarray, " token"]:
        """Where a rule says that the latent is active."""
        tokens, codes = self._sorted[rule.length]
        found = np.zeros(len(tokens), dtype=bool)
        for ngram in rule.ngrams:
            found[tokens[slice(*np.searchsorted(codes, [ngram, ngram + 1]))]] = True
        return found

    def latent(self, index: int) -> Float[ndarray, " token"]:
        """Activations of one latent."""
        column = slice(self.acts.indptr[index], self.acts.indptr[index + 1])
        found = np.zeros(_shape(self.acts)[0], dtype=self.acts.dtype)
        found[self.acts.indices[column]] = self.acts.data[column]
        return found

    @cached_property
    def _sorted(self) -> dict[int, tuple[Int[ndarray, " token"], Int[ndarray, " token"]]]:
        """length -> tokens in the order of their codes, and these: thousands of rules look for few n-grams each."""
        orders = {length: np.argsort(codes) for length, codes in self.codes.items()}
        return {length: (order, self.codes[length][order]) for length, order in orders.items()}


def ngram_codes(
    tokens: Integer[ndarray, " corpus"], offsets: Int[ndarray, " token"], n_vocab: int, longest: int
) -> dict[int, Int[ndarray, " token"]]:
    """For every length 1 .. longest the n-gram that ends at each offset, as a number; -1 where the corpus begins later.

    An n-gram is a number of n digits to the base `n_vocab`, the last character its lowest digit. Raises ValueError for
    a number that is too long.
    """
    most = int(63 / np.log2(max(n_vocab, 2)))  # digits of a number of 63 bits
    check("longest", longest, f"at most {most} for a vocabulary of {n_vocab} tokens", longest <= most)
    characters, found = tokens.astype(np.int64), {}
    code = np.zeros(len(offsets), dtype=np.int64)
    for length in range(1, longest + 1):
        before = offsets - length + 1
        code = code + n_vocab ** (length - 1) * characters[np.maximum(before, 0)]
        found[length] = np.where(before >= 0, code, -1)
    return found


def text_of(code: int, length: int, vocabulary: Sequence[str]) -> str:
    """The n-gram as text."""
    digits = []
    for _ in range(length):
        code, digit = divmod(code, len(vocabulary))
        digits.append(vocabulary[digit])
    return "".join(reversed(digits))


def fit_rules(part: Part, most: int) -> list[Rule]:
    """The rule of each latent: n-grams are added one by one, each time that which raises F1 most, while it rises.

    The length is the one that ends with the highest F1, the shorter one if two do; no n-gram for a latent that is
    never active.
    """
    n_latents = _shape(part.acts)[1]
    active = csr_array(part.acts != 0, dtype=np.float64)
    n_active = np.asarray(active.sum(0)).ravel()
    best, rules = np.zeros(n_latents), [Rule(1, ())] * n_latents
    for length, codes in part.codes.items():
        tokens = np.flatnonzero(codes >= 0)
        known, index = np.unique(codes[tokens], return_inverse=True)
        member = csr_array((np.ones(len(index)), (index, tokens)), shape=(len(known), len(codes)))
        reached, chosen = _greedy(csc_array(member @ active), np.bincount(index).astype(float), n_active, most)
        for latent in np.flatnonzero(reached > best + 1e-12).tolist():
            best[latent], rules[latent] = reached[latent], Rule(length, tuple(known[chosen[latent]].tolist()))
    return rules


def intruder_accuracy(
    acts: ndarray, fires: Bool[ndarray, " token"], width: int, trials: int, rng: np.random.Generator
) -> float | None:
    """How often a rater who knows the rule finds the intruder; where several snippets look alike, chance decides.

    Four snippets are pieces of the text that end soon after a strong activation, the fifth one on which the latent is
    silent. The rater takes the snippet on which the rule fires nowhere. None if there are not enough snippets.
    """
    before, n = width * 3 // 4, len(acts)
    on, firing = np.flatnonzero(acts != 0), np.flatnonzero(fires)
    # Snippets begin at 0 .. n - width - 1; the silent ones between two activations that are far enough apart.
    first, last = np.append(-1, on) + 1, np.append(on, n - 1) - width
    silent = np.cumsum(np.maximum(last - first + 1, 0))
    strong = rng.permutation(on[(on >= before) & (on < n - (width - before)) & (acts[on] > 0)])
    # A cluster is equally active everywhere: the order was drawn so that not the first places are shown.
    strong = strong[np.argsort(-acts[strong], kind="stable")][: max(int(TOP * len(strong)), SNIPPETS - 1)] - before
    if len(strong) < SNIPPETS - 1 or silent[-1] <= 0:
        return None
    shown = np.stack([rng.choice(strong, SNIPPETS - 1, replace=False) for _ in range(trials)])
    drawn = rng.choice(silent[-1], trials)
    gap = np.searchsorted(silent, drawn, side="right")
    intruders = last[gap] + 1 - (silent[gap] - drawn)

    def quiet(starts: Int[ndarray, "*shape"]) -> Bool[ndarray, "*shape"]:
        return np.searchsorted(firing, starts + width) == np.searchsorted(firing, starts)

    n_quiet, intruder_quiet = quiet(shown).sum(1), quiet(intruders)
    # Among q quiet snippets the rater guesses; if the rule fires on all five, among all.
    alike = np.where(intruder_quiet, n_quiet + 1, SNIPPETS)
    found = np.where(intruder_quiet, 1 / alike, np.where(n_quiet == 0, 1 / SNIPPETS, 0.0))
    return float(found.mean())


def score(fit: Part, test: Part, config: ProxyConfig, vocabulary: Sequence[str], stream: Stream) -> pd.DataFrame:
    """A row for each latent that is active on enough tokens of the part `fit`, whatever it does on the other.

    Columns: latent, density (on the test part), length, proxy_f1, proxy_f1_null (of a rule that was found for the
    latent's activations at other tokens, moved in a circle), proxy_intruder, rule and codes (its n-grams as text and as
    numbers, JSON). Both F1 are 0 of a latent that is silent on the test part.
    """
    n = _shape(fit.acts)[0]
    shift = int(stream.of("shift of the null").numpy().integers(n // 4, n - n // 4))
    moved = csr_array(fit.acts)[np.roll(np.arange(n), shift)]
    rules, by_chance = (fit_rules(Part(fit.codes, csc_array(acts)), config.ngrams) for acts in (fit.acts, moved))
    enough = np.diff(fit.acts.indptr) >= config.min_active
    rows, snippets = [], stream.of("snippets").numpy()
    for latent in np.flatnonzero(enough).tolist():
        acts, rule = test.latent(latent), rules[latent]
        on, fires = acts != 0, test.fires(rule)
        rows.append(
            {
                "latent": latent,
                "density": float(on.mean()),
                "length": rule.length,
                "proxy_f1": f1(fires, on),
                "proxy_f1_null": f1(test.fires(by_chance[latent]), on),
                "proxy_intruder": intruder_accuracy(acts, fires, config.snippet_chars, config.trials, snippets),
                "rule": json.dumps([text_of(code, rule.length, vocabulary) for code in rule.ngrams]),
                "codes": json.dumps(rule.ngrams),
            }
        )
    columns = ["latent", "density", "length", "proxy_f1", "proxy_f1_null", "proxy_intruder", "rule", "codes"]
    return pd.DataFrame(rows, columns=columns)


def summarize(table: pd.DataFrame, stream: Stream) -> dict[str, Any]:
    """method -> number of latents, and mean of each proxy over the n latents that have it, with its 95% interval.

    The interval is a bootstrap's. A latent that is seldom strongly active has no intruder to be found.
    """
    check("methods", table["method"].unique().tolist(), "at least one", len(table) > 0)
    result: dict[str, Any] = {}
    for method, rows in table.groupby("method", sort=False):
        own: dict[str, Any] = {"latents": len(rows)}
        for proxy in ("proxy_f1", "proxy_f1_null", "proxy_intruder"):
            values = rows[proxy].dropna().to_numpy(float)
            interval = list(bootstrap_interval(values, stream.of(method, proxy))) if len(values) > 1 else None
            mean = float(values.mean()) if len(values) else None
            own[proxy] = {"mean": mean, "interval": interval, "n": len(values)}
        lengths = rows["length"].value_counts(normalize=True).sort_index()
        result[str(method)] = {**own, "length": {str(key): float(value) for key, value in lengths.items()}}
    return result


def _shape(matrix: csc_array) -> tuple[int, int]:
    assert matrix.shape is not None
    return matrix.shape[0], matrix.shape[1]


def _greedy(
    both: csc_array, seen: Float[ndarray, " ngram"], n_active: Float[ndarray, " latent"], most: int
) -> tuple[Float[ndarray, " latent"], list[list[int]]]:
    """The F1 that every latent reaches and its n-grams, which end at `seen` tokens each, and at `both` where it is on.

    An n-gram raises F1 only where it is right more often than half of F1. As this grows, most of them are out after
    the first step, for good.
    """
    n_latents = len(n_active)
    latents, ngrams, hits = np.repeat(np.arange(n_latents), np.diff(both.indptr)), both.indices, both.data
    true, predicted, reached = (np.zeros(n_latents) for _ in range(3))
    chosen: list[list[int]] = [[] for _ in range(n_latents)]
    for _ in range(most):
        if not len(latents):
            break
        after = 2 * (true[latents] + hits) / (predicted[latents] + seen[ngrams] + n_active[latents])
        starts = np.flatnonzero(np.diff(latents, prepend=-1))
        largest = np.repeat(np.maximum.reduceat(after, starts), np.diff(np.append(starts, len(after))))
        best = np.flatnonzero(after == largest)
        best = best[np.diff(latents[best], prepend=-1) > 0]  # the first of equals
        best = best[after[best] > reached[latents[best]]]
        own = latents[best]
        true[own], predicted[own], reached[own] = (
            true[own] + hits[best],
            predicted[own] + seen[ngrams[best]],
            after[best],
        )
        for latent, ngram in zip(own.tolist(), ngrams[best].tolist(), strict=True):
            chosen[latent].append(ngram)
        rose = np.zeros(n_latents, dtype=bool)
        rose[own] = True
        left = rose[latents] & (2 * hits > reached[latents] * seen[ngrams] * (1 - ROUNDING))
        left[best] = False
        latents, ngrams, hits = latents[left], ngrams[left], hits[left]
    return reached, chosen
