"""Case studies of level-2 latents: which ones, by criteria stated beforehand, and the evidence for and against each.

Everything follows from the run's own data, so that another run gives its own cases. A case that fails is always among
them: a selection of successes shows nothing (Makelov et al. 2024 and others on interpretability illusions).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.sparse import csc_array, csr_array

from hsae.config import check, check_positive
from hsae.evidence import Evidence
from hsae.latent_effects import strongest
from hsae.snippets import apart, begin
from hsae.stability import RECURS

CRITERIA = {
    "strong": "in the upper half of level-2 latents by their share of all level-2 activation",
    "stable": f"found again by another seed: a cosine of at least {RECURS}, and above 95% of random directions",
    "causal": "removing it changes the next character at least four times as much as a random direction does (KL)",
    "hierarchical": "at least two children that tell of it (FDR), active together with it in half of their tokens",
}
CAUSAL_RATIO = 4.0
GOOD_F1 = 0.5
DENSE = 0.2
MIN_CHILDREN = 2
MIN_P_PARENT = 0.5
ALIKE = 0.7  # cosine of decoder directions above which two latents are not both shown


@dataclass
class CaseConfig:
    """Section `case_studies`.

    cases: latents beside the one that fails. children: shown of each; characters: raised most, and lowered most.
    snippets: examples, and of each sort of counter-example. snippet_chars: of a snippet. prompt_chars, sample_chars: of
    the steering samples. dose: what is added, in units of the latent's largest activation.
    """

    cases: int
    children: int
    characters: int
    snippets: int
    snippet_chars: int
    prompt_chars: int
    sample_chars: int
    dose: float

    def __post_init__(self) -> None:
        check_positive(self, vars(self))
        check("snippet_chars", self.snippet_chars, "at least 8", self.snippet_chars >= 8)


@dataclass(frozen=True)
class Material:
    """What cases are made of: what is known of all level-2 latents, their activations on a text, and its tokens.

    evidence: tables of the other stages. acts: (token, latent). raised: nats by which each latent raises next
    character of `vocabulary`. fdr: at which a child tells of its parent.
    """

    evidence: Evidence
    acts: csc_array
    text: Sequence[str]
    raised: csr_array  # (latent, vocab)
    vocabulary: Sequence[str]
    fdr: float

    @cached_property
    def latents(self) -> pd.DataFrame:
        """`Evidence.latents` of level 2, and density: the share of tokens on which a latent is active."""
        density = np.diff(self.acts.indptr) / len(self.text)
        return self.evidence.latents(2, len(density)).assign(density=density)

    @cached_property
    def found(self) -> pd.DataFrame:
        """`criteria` of all latents."""
        mass = np.asarray(self.acts.sum(0), dtype=float).ravel()
        return criteria(self.latents, self.evidence.children, mass, self.fdr)

    def children(self, latent: int, n: int) -> pd.DataFrame:
        """The first rows of `Evidence.children` of a latent, each with its rule: a list of n-grams."""
        own = self.evidence.children.query("parent == @parent", local_dict={"parent": latent}).head(n)
        children = own["child"].tolist()
        known = self.evidence.latents(1, max(children, default=-1) + 1).to_dict("index")
        return own.assign(rule=[_rule(known[child]) for child in children])


def criteria(table: pd.DataFrame, children: pd.DataFrame, mass: Float[ndarray, " latent"], fdr: float) -> pd.DataFrame:
    """A row per level-2 latent: which of CRITERIA it meets (bool), met (how many), and rank (its mean percentile).

    `table`: `Evidence.latents(2, ...)`; `children`: `Evidence.children`; `mass`: summed activation. What is not known
    of a latent counts against it.
    """
    tells = (children["q"] <= fdr) & (children["p_parent_given_child"] >= MIN_P_PARENT)
    telling = children[tells].groupby("parent").size()
    n_children = telling.reindex(table.index, fill_value=0)
    share = pd.Series(mass / (mass.sum() or 1.0), index=table.index)
    ratio = table["kl"] / table["kl_null"].where(table["kl_null"] > 0)
    found = pd.DataFrame(
        {
            "strong": share >= share.median(),
            "stable": table["cosine"] >= np.maximum(RECURS, table["cosine_null"]),
            "causal": ratio >= CAUSAL_RATIO,
            "hierarchical": n_children >= MIN_CHILDREN,
        }
    )
    percentiles = [values.rank(pct=True).fillna(0) for values in (share, table["cosine"], ratio, n_children)]
    numbers = {"share": share, "ratio": ratio, "telling_children": n_children}
    return found.assign(met=found.sum(axis=1), rank=sum(percentiles) / len(percentiles), **numbers)


def select(found: pd.DataFrame, directions: Float[ndarray, "latent d_in"], n: int) -> list[int]:
    """`n` latents that meet most criteria, the highest rank first, no two of them alike; and, last, one that fails.

    The one that fails has the largest share of activation among the strong ones that meet the fewest criteria.
    """
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(min=1e-12)
    chosen: list[int] = []
    for latent in found.sort_values(["met", "rank"], ascending=False, kind="stable").index.tolist():
        if len(chosen) < n and all(unit[latent] @ unit[other] < ALIKE for other in chosen):
            chosen.append(latent)
    rest = (
        found.drop(index=chosen).query("strong").sort_values(["met", "share"], ascending=[True, False], kind="stable")
    )
    return [*chosen, *rest.index[:1].tolist()]


def case(material: Material, latent: int, config: CaseConfig, seed: int) -> dict[str, Any]:
    """All that the page says of one latent, but for its figure and its steering sample."""
    row, found = (frame.to_dict("index")[latent] for frame in (material.latents, material.found))
    rule = _rule(row)
    acts = material.acts[:, [latent]].toarray().ravel()
    tasks = material.evidence.causal_shares().query("level == 2 and latent == @latent")
    return {
        "latent": latent,
        "density": row["density"],
        "share": found["share"],
        "met": found["met"],
        "rule": rule,
        "evidence": evidence(row, found, tasks, float(np.median(material.latents["density"]))),
        "children": material.children(latent, config.children).to_dict("records"),
        "examples": examples(acts, fires(material.text, rule), material.text, config, seed),
    }


def frames(material: Material, latent: int, config: CaseConfig) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What `feature_plots.case` shows of a latent: characters that it raises and lowers, children, percentiles."""
    up, down = strongest(material.raised, latent, material.vocabulary, config.characters)
    raised = pd.DataFrame([*up, *down[::-1]], columns=["character", "nats"])
    raised["character"] = raised["character"].map(lambda character: {" ": "␣"}.get(character, visible(character)))
    measures = {
        "activation": material.found["share"],
        "found again (cosine)": material.latents["cosine"],
        "effect (KL, over random)": material.found["ratio"],
        "children that tell": material.found["telling_children"],
        "rule's F1 (proxy)": material.latents["proxy_f1"],
    }
    standing = [(name, 100 * values.rank(pct=True)[latent]) for name, values in measures.items()]
    return raised, material.children(latent, config.children), pd.DataFrame(standing, columns=["measure", "percentile"])


def fires(text: Sequence[str], rule: list[str]) -> Bool[ndarray, " token"]:
    """The tokens of a text with which it ends in one of the n-grams."""
    string, on = "".join(text), np.zeros(len(text), dtype=bool)
    ends = np.cumsum(list(map(len, text)))
    for ngram in filter(None, rule):
        # Ahead of where they are looked for, so that those which overlap are found too.
        found = re.finditer(f"(?={re.escape(ngram)})", string)
        stops = np.fromiter((match.start() for match in found), dtype=int) + len(ngram)
        tokens = np.searchsorted(ends, stops)
        on[tokens[ends[tokens] == stops]] = True
    return on


def examples(
    acts: Float[ndarray, " token"],
    predicted: Bool[ndarray, " token"],
    text: Sequence[str],
    config: CaseConfig,
    seed: int,
) -> dict[str, list[str]]:
    """Snippets in which characters with activity stand between ⟦ and ⟧.

    strongest: the largest activations. missed: drawn among tokens on which the latent is active and the rule says it is
    not. silent: drawn among those where the rule fires and the latent does not.
    """
    rng = np.random.default_rng(seed)
    on = acts > 0
    orders = {
        "strongest": np.argsort(-acts, kind="stable")[: int(on.sum())],
        "missed": rng.permutation(np.flatnonzero(on & ~predicted)),
        "silent": rng.permutation(np.flatnonzero(predicted & ~on)),
    }
    return {
        name: [_marked(text, on, token, config) for token in apart(order, config.snippets, config.snippet_chars)]
        for name, order in orders.items()
    }


def evidence(
    row: dict[str, Any], found: dict[str, Any], tasks: pd.DataFrame, density: float
) -> list[tuple[str, str, str]]:
    """What speaks for and against a latent: (verdict, what was asked, what was found).

    `row`: of `Material.latents`; `found`: of `criteria`; `tasks`: its rows of `Evidence.causal_shares`; `density`: the
    median of its level.
    """
    rows = [
        _judged(
            "another seed finds it again",
            row["cosine"],
            found["stable"],
            "cosine {:.2f} with its match; 95% of random directions reach at most {:.2f}",
            row["cosine"],
            row["cosine_null"],
        ),
        _judged(
            "it changes what comes next",
            found["ratio"],
            found["causal"],
            "KL {:.3f} nats without it, {:.3f} for a random direction: {:.1f} times as much",
            row["kl"],
            row["kl_null"],
            found["ratio"],
        ),
        _judged(
            "it is a parent",
            found["telling_children"],
            found["hierarchical"],
            "{} children tell of it and are active with it in half of their tokens or more",
            found["telling_children"],
        ),
        _judged(
            "a short rule describes it (a proxy)",
            row["proxy_f1"],
            row["proxy_f1"] >= GOOD_F1,
            "F1 {:.2f} on other text; {:.3f} by chance",
            row["proxy_f1"],
            row["proxy_f1_null"],
        ),
        _judged(
            "it is selective",
            row["density"],
            row["density"] < DENSE,
            "active on {:.1%} of tokens; the median of its level is {:.1%}",
            row["density"],
            density,
        ),
    ]
    for task in tasks.to_dict("records"):
        rows.append(
            _judged(
                f"it carries the task {task['task'].replace('_', ' ')}",
                task["share"],
                task["low"] > 0,
                "restored alone it gives {:.3f} of the effect (95% interval {:.3f} to {:.3f})",
                task["share"],
                task["low"],
                task["high"],
            )
        )
    return rows


def visible(text: str) -> str:
    """Line breaks and tabs as signs; control characters, which no page shows, as one too."""
    signs = {"\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c, c if c.isprintable() else "�") for c in text)


def summarize(found: pd.DataFrame, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """How many level-2 latents meet each criterion, and which were chosen; the last one is that which fails."""
    counts = {name: int(np.sum(found[name])) for name in CRITERIA}
    met_all = int(np.sum(found["met"] == len(CRITERIA)))
    keys = ("latent", "met", "density", "share")
    return {
        "latents": len(found),
        **counts,
        "all": met_all,
        "cases": [{key: case[key] for key in keys} for case in cases],
    }


def _judged(question: str, value: float, good: bool, found: str, *numbers: float) -> tuple[str, str, str]:
    if not np.isfinite(value):
        return "unknown", question, "not measured"
    return "for" if good else "against", question, found.format(*numbers)


def _rule(row: dict[str, Any]) -> list[str]:
    return json.loads(row["rule"]) if isinstance(row["rule"], str) else []


def _marked(text: Sequence[str], on: Bool[ndarray, " token"], token: int, config: CaseConfig) -> str:
    width = min(config.snippet_chars, len(text))
    start = begin(token, width, len(text))
    marks = on[start : start + width].astype(int)
    edges = np.diff(np.concatenate([[0], marks, [0]]))
    characters = []
    for i, character in enumerate(text[start : start + width]):
        characters.append(("⟦" if edges[i] > 0 else "") + visible(character) + ("⟧" if edges[i + 1] < 0 else ""))
    return "".join(characters)
