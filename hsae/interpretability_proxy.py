"""Proxies for how easily a latent is understood: a short rule that tells when it is active, and a rater that uses it.

A proxy is no human judgement, and every number here is called proxy_*. A rule is a set of at most some n-grams, all of
one length: the latent is active where the text ends in one of them. Rules are found on one part of the text and scored
on another. The simulated rater knows the rule and nothing else, and looks for the intruder among five snippets, one of
which does not activate the latent (Chang et al. 2009, Reading Tea Leaves; chance .2).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Integer
from numpy import ndarray
from scipy.sparse import csc_array, csr_array

from hsae.config import check, check_positive
from hsae.sparse_probing import f1
from hsae.statistics import bootstrap_interval

SNIPPETS = 5
TOP = 0.1  # share of a latent's activations, the strongest, that snippets show


@dataclass
class ProxyConfig:
    """Section `interpretability_proxy`.

    fit_tokens (validation split), score_tokens (test split). longest: n-grams are 1 to so many characters long; ngrams:
    of a rule, at most. min_active: tokens of either part on which a latent must be active to be scored. trials: of the
    simulated rater, for each latent. snippet_chars: length of a snippet.
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

    def fires(self, codes: dict[int, Int[ndarray, " token"]]) -> Bool[ndarray, " token"]:
        """Where the rule says that the latent is active."""
        return np.isin(codes[self.length], self.ngrams)


@dataclass(frozen=True)
class Part:
    """A part of the text: n-grams that end at each token, and activations of a dictionary there."""

    codes: dict[int, Int[ndarray, " token"]]
    acts: csc_array


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
    best = [(0.0, Rule(1, ()))] * n_latents
    for length, codes in part.codes.items():
        known, index = np.unique(codes, return_inverse=True)
        seen = np.bincount(index).astype(float)
        member = csr_array((np.ones(len(index)), (index, np.arange(len(index)))), shape=(len(known), len(index)))
        both = csc_array(member @ active)
        for latent in range(n_latents):
            column = slice(both.indptr[latent], both.indptr[latent + 1])
            rows, hits = both.indices[column], both.data[column]
            usable = known[rows] >= 0
            reached, chosen = _greedy(hits[usable], seen[rows[usable]], n_active[latent], most)
            if reached > best[latent][0] + 1e-12:
                best[latent] = (reached, Rule(length, tuple(int(known[i]) for i in rows[usable][chosen])))
    return [rule for _, rule in best]


def intruder_accuracy(
    acts: ndarray, fires: Bool[ndarray, " token"], width: int, trials: int, rng: np.random.Generator
) -> float | None:
    """How often a rater who knows the rule finds the intruder; where several snippets look alike, chance decides.

    Four snippets are pieces of the text that end soon after a strong activation, the fifth one on which the latent is
    silent. The rater takes the snippet on which the rule fires nowhere. None if there are not enough snippets.
    """
    before = width * 3 // 4
    inside = np.arange(before, len(acts) - (width - before))
    starts = inside - before
    active = np.concatenate([[0], np.cumsum(acts != 0)])
    firing = np.concatenate([[0], np.cumsum(fires)])
    silent = starts[active[starts + width] == active[starts]]
    strong = rng.permutation(inside[acts[inside] > 0])  # a cluster is equally active everywhere: not the first places
    strong = strong[np.argsort(-acts[strong], kind="stable")][: max(int(TOP * len(strong)), SNIPPETS - 1)] - before
    if len(strong) < SNIPPETS - 1 or not len(silent):
        return None
    fired = firing[starts + width] > firing[starts]
    shown = np.stack([rng.choice(strong, SNIPPETS - 1, replace=False) for _ in range(trials)])
    quiet = (~fired[shown - starts[0]]).sum(1)
    intruder_quiet = ~fired[rng.choice(silent, trials) - starts[0]]
    # Among q quiet snippets the rater guesses; if the rule fires on all five, among all.
    alike = np.where(intruder_quiet, quiet + 1, SNIPPETS)
    found = np.where(intruder_quiet, 1 / alike, np.where(quiet == 0, 1 / SNIPPETS, 0.0))
    return float(found.mean())


def score(fit: Part, test: Part, config: ProxyConfig, vocabulary: Sequence[str], seed: int) -> pd.DataFrame:
    """A row for each latent that is active on enough tokens of both parts.

    Columns: latent, density (on the test part), length, proxy_f1, proxy_f1_null (of a rule that was found for the
    latent's activations at other tokens, moved in a circle), proxy_intruder, rule.
    """
    rng = np.random.default_rng(seed)
    n = _shape(fit.acts)[0]
    moved = csr_array(fit.acts)[np.roll(np.arange(n), int(rng.integers(n // 4, n - n // 4)))]
    rules, by_chance = (fit_rules(Part(fit.codes, csc_array(acts)), config.ngrams) for acts in (fit.acts, moved))
    enough = np.minimum(np.diff(fit.acts.indptr), np.diff(test.acts.indptr)) >= config.min_active
    rows = []
    for latent in np.flatnonzero(enough).tolist():
        acts = test.acts[:, [latent]].toarray().ravel()
        rule, fires = rules[latent], rules[latent].fires(test.codes)
        rows.append(
            {
                "latent": latent,
                "density": float((acts != 0).mean()),
                "length": rule.length,
                "proxy_f1": f1(fires, acts != 0),
                "proxy_f1_null": f1(by_chance[latent].fires(test.codes), acts != 0),
                "proxy_intruder": intruder_accuracy(acts, fires, config.snippet_chars, config.trials, rng),
                "rule": json.dumps([text_of(code, rule.length, vocabulary) for code in rule.ngrams]),
            }
        )
    columns = ["latent", "density", "length", "proxy_f1", "proxy_f1_null", "proxy_intruder", "rule"]
    return pd.DataFrame(rows, columns=columns)


def summarize(table: pd.DataFrame) -> dict[str, Any]:
    """method -> number of latents, and mean of each proxy over latents with its 95% bootstrap interval."""
    check("methods", table["method"].unique().tolist(), "at least one", len(table) > 0)
    result: dict[str, Any] = {}
    for method, rows in table.groupby("method", sort=False):
        own: dict[str, Any] = {"latents": len(rows)}
        for proxy in ("proxy_f1", "proxy_f1_null", "proxy_intruder"):
            values = rows[proxy].dropna().to_numpy(float)
            interval = list(bootstrap_interval(values, seed=0)) if len(values) > 1 else None
            own[proxy] = {"mean": float(values.mean()) if len(values) else None, "interval": interval}
        lengths = rows["length"].value_counts(normalize=True).sort_index()
        result[str(method)] = {**own, "length": {str(key): float(value) for key, value in lengths.items()}}
    return result


def _shape(matrix: csc_array) -> tuple[int, int]:
    assert matrix.shape is not None
    return matrix.shape[0], matrix.shape[1]


def _greedy(hits: ndarray, seen: ndarray, n_active: float, most: int) -> tuple[float, list[int]]:
    chosen: list[int] = []
    true, predicted, reached = 0.0, 0.0, 0.0
    free = np.ones(len(hits), dtype=bool)
    while len(chosen) < most and free.any():
        after = np.where(free, 2 * (true + hits) / (predicted + seen + n_active), -1.0)
        i = int(after.argmax())
        if after[i] <= reached:
            break
        chosen.append(i)
        free[i], true, predicted, reached = False, true + hits[i], predicted + seen[i], float(after[i])
    return reached, chosen
