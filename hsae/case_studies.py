"""Case studies of level-2 latents: which ones, by criteria stated beforehand, and the evidence for and against each.

Everything follows from the run's own data, so that another run gives its own cases. A case that fails is always among
them: a selection of successes shows nothing (Makelov et al. 2024 and others on interpretability illusions). Latents are
chosen by numbers of one text, and all that is shown of them are numbers of another: else the best of many would be
flattered. Whether another seed finds them again has no part in the choice, as there is one other seed alone to tell.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csc_array, csr_array

from hsae.coactivation import activity
from hsae.config import check, check_positive
from hsae.evidence import Evidence
from hsae.interpretability_proxy import Part, Rule
from hsae.latent_effects import Raised, strongest
from hsae.snippets import apart, begin
from hsae.stability import RECURS
from hsae.streams import Stream

TOGETHER = "active with it in half of their tokens or more, and at least twice as often as by chance"
CRITERIA = {
    "strong": "in the upper half of level-2 latents by their share of all level-2 activation",
    "causal": "removing it changes the next character at least four times as much as a random direction does (KL)",
    "hierarchical": f"at least two children that are {TOGETHER}",
}
CAUSAL_RATIO = 4.0
GOOD_F1 = 0.5
DENSE = 0.2
MIN_CHILDREN = 2
MIN_P_PARENT, MIN_LIFT = 0.5, 2.0
MIN_TOKENS = 20  # on which a child is active
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
class LevelActs:
    """Activations of both levels on a part of the text; none on a token that is not kept."""

    h1: csc_array  # (token, child)
    h2: csc_array  # (token, parent)
    kept: Bool[ndarray, " token"]

    @property
    def mass(self) -> Float[ndarray, " parent"]:
        """Summed activation of each level-2 latent."""
        return np.asarray(self.h2.sum(0), dtype=float).ravel()

    @property
    def density(self) -> Float[ndarray, " parent"]:
        """The share of tokens on which each level-2 latent is active."""
        return np.diff(self.h2.indptr) / self.kept.sum()

    def families(self, weight: Float[ndarray, "parent child"]) -> Bool[ndarray, "parent child"]:
        """Children, of positive decoder weight, that are TOGETHER with a parent here, and active on enough tokens."""
        on1, on2 = (activity(csr_array(acts)) for acts in (self.h1, self.h2))
        n_child = np.asarray(on1.sum(0)).ravel()
        p = (on2.T @ on1).toarray() / np.maximum(n_child, 1)
        least = np.maximum(MIN_P_PARENT, MIN_LIFT * self.density[:, None])
        return (weight > 0) & (n_child >= MIN_TOKENS) & (p >= least)


@dataclass(frozen=True)
class Material:
    """What cases are made of: what is known of level-2 latents, on the text that chooses and on that which is shown.

    evidence: tables of the other stages. weight: of the level-2 decoder. text: the tokens of `shown`; codes: the
    n-grams that end at each, by `interpretability_proxy.ngram_codes`, as long as any rule's. raised: next tokens of
    `vocabulary` that each latent raises and lowers most.
    """

    evidence: Evidence
    choice: LevelActs
    shown: LevelActs
    weight: Float[ndarray, "parent child"]
    text: Sequence[str]
    codes: dict[int, Int[ndarray, " token"]]
    raised: Raised
    vocabulary: Sequence[str]

    @cached_property
    def latents(self) -> pd.DataFrame:
        """`Evidence.latents` of level 2, and density: the share of shown tokens on which a latent is active."""
        return self.evidence.latents(2, len(self.weight)).assign(density=self.shown.density)

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """`criteria` of all latents on the text that chooses."""
        return criteria(self._ratio("kl_choice", "kl_null_choice"), self._families.sum(1), self.choice.mass)

    @cached_property
    def found(self) -> pd.DataFrame:
        """`criteria` of all latents on the text that is shown, for the children that the other text has chosen."""
        children = (self._families & self.shown.families(self.weight)).sum(1)
        return criteria(self._ratio("kl", "kl_null"), children, self.shown.mass)

    def _ratio(self, *columns: str) -> Float[ndarray, " latent"]:
        kl, null = (self.latents[column].to_numpy(float) for column in columns)
        return kl / np.where(null > 0, null, np.nan)

    @cached_property
    def _families(self) -> Bool[ndarray, "parent child"]:
        return self.choice.families(self.weight)

    def fires(self, latent: int) -> Bool[ndarray, " token"]:
        """The shown tokens on which the proxy's rule says that a latent is active; none if it has no rule."""
        row = self.latents.loc[latent]
        if not isinstance(row["codes"], str):
            return np.zeros(len(self.text), dtype=bool)
        return self._part.fires(Rule(int(row["length"]), tuple(json.loads(row["codes"]))))

    @cached_property
    def _part(self) -> Part:
        return Part(self.codes, self.shown.h2)

    def children(self, latent: int, n: int) -> pd.DataFrame:
        """The first rows of `Evidence.children` of a latent, each with its rule: a list of n-grams."""
        own = self.evidence.children.query("parent == @parent", local_dict={"parent": latent}).head(n)
        children = own["child"].tolist()
        known = self.evidence.latents(1, max(children, default=-1) + 1).to_dict("index")
        return own.assign(rule=[_rule(known[child]) for child in children])


def criteria(
    ratio: Float[ndarray, " latent"],
    children: Int[ndarray, " latent"],
    mass: Float[ndarray, " latent"],
) -> pd.DataFrame:
    """A row per level-2 latent: which of CRITERIA it meets (bool), met (how many), and rank (its mean percentile).

    `ratio`: of the KL of its removal to that of a random direction's; `children`: how many are TOGETHER with it;
    `mass`: summed activation. What is not known of a latent counts against it.
    """
    numbers = pd.DataFrame(
        {"share": mass / (mass.sum() or 1.0), "ratio": ratio, "children": children},
        pd.RangeIndex(len(mass), name="latent"),
    )
    found = pd.DataFrame(
        {
            "strong": numbers["share"] >= numbers["share"].median(),
            "causal": numbers["ratio"] >= CAUSAL_RATIO,
            "hierarchical": numbers["children"] >= MIN_CHILDREN,
        }
    )
    rank = numbers.rank(pct=True).fillna(0).mean(axis=1)
    return found.assign(met=found.sum(axis=1), rank=rank).join(numbers)


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


def case(material: Material, latent: int, config: CaseConfig, stream: Stream) -> dict[str, Any]:
    """All that the page says of one latent, but for its figure and its steering sample. `stream` draws examples."""
    frames = (material.latents, material.chosen, material.found)
    row, chosen, found = (frame.to_dict("index")[latent] for frame in frames)
    rule = _rule(row)
    acts, kept = material.shown.h2[:, [latent]].toarray().ravel(), material.shown.kept
    tasks = material.evidence.causal_shares().query("level == 2 and latent == @latent")
    return {
        "latent": latent,
        "density": row["density"],
        "share": found["share"],
        "met": found["met"],
        "met_choice": chosen["met"],
        "rule": rule,
        "evidence": evidence(row, found, chosen["children"], tasks, float(np.median(material.latents["density"]))),
        "children": material.children(latent, config.children).to_dict("records"),
        "examples": examples(acts, material.fires(latent) & kept, material.text, config, stream.of(latent)),
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
        "children active with it": material.found["children"],
        "rule's F1 (proxy)": material.latents["proxy_f1"],
    }
    standing = [(name, 100 * values.rank(pct=True)[latent]) for name, values in measures.items()]
    return raised, material.children(latent, config.children), pd.DataFrame(standing, columns=["measure", "percentile"])


def examples(
    acts: Float[ndarray, " token"],
    predicted: Bool[ndarray, " token"],
    text: Sequence[str],
    config: CaseConfig,
    stream: Stream,
) -> dict[str, list[str]]:
    """Snippets in which characters with activity stand between ⟦ and ⟧.

    strongest: the largest activations. missed: drawn among tokens on which the latent is active and the rule says it is
    not. silent: drawn among those where the rule fires and the latent does not.
    """
    on = acts > 0
    orders = {
        "strongest": np.argsort(-acts, kind="stable")[: int(on.sum())],
        "missed": stream.of("missed").numpy().permutation(np.flatnonzero(on & ~predicted)),
        "silent": stream.of("silent").numpy().permutation(np.flatnonzero(predicted & ~on)),
    }
    return {
        name: [_marked(text, on, token, config) for token in apart(order, config.snippets, config.snippet_chars)]
        for name, order in orders.items()
    }


def evidence(
    row: dict[str, Any], found: dict[str, Any], children: int, tasks: pd.DataFrame, density: float
) -> list[tuple[str, str, str]]:
    """What speaks for and against a latent: (verdict, what was asked, what was found).

    `row`: of `Material.latents`; `found`: of `Material.found`; `children`: how many the other text has chosen; `tasks`:
    its rows of `Evidence.causal_shares`; `density`: the median of its level.
    """
    rows = [
        _judged(
            "another seed finds it again",
            row["cosine"],
            row["cosine"] >= max(RECURS, row["cosine_null"]),
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
            found["children"],
            found["hierarchical"],
            f"{{}} of its {{}} children that other text has chosen are {TOGETHER}",
            found["children"],
            children,
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


def summarize(material: Material, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """How many level-2 latents meet each criterion on either text, and the cases; the last one is that which fails."""
    keys = ("latent", "met_choice", "met", "density", "share")
    return {
        "latents": len(material.latents),
        "chosen": _counts(material.chosen),
        "scored": _counts(material.found),
        "cases": [{key: case[key] for key in keys} for case in cases],
    }


def _counts(found: pd.DataFrame) -> dict[str, int]:
    counts = {name: int(np.sum(found[name])) for name in CRITERIA}
    return {**counts, "all": int(np.sum(found["met"] == len(CRITERIA)))}


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
