"""The explorer: one self-contained page with both levels of an HSAE, latent by latent, on a piece of the corpus.

The text stands in the page once; snippets are offsets into it, and their activations are sparse: positions and values
of one byte each. Nothing in the page is taken for markup: data are JSON in which `<` is escaped, the script sets text
and never HTML, and the page's Content-Security-Policy admits that script and that style alone, by their hashes.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from numpy import ndarray
from scipy.sparse import csc_array, csr_array

from hsae.coactivation import activity, phi
from hsae.config import check, check_positive
from hsae.evidence import Evidence
from hsae.latent_effects import Raised, strongest
from hsae.snippets import apart, begin
from hsae.streams import Stream

BANDS = {"upper": (0.75, 0.95), "middle": (0.4, 0.6), "weak": (0.0, 0.25)}
"""Quantiles of a latent's activations that snippets are drawn from, beside the strongest ones."""
CANDIDATES = 50  # tokens among which one for a snippet is looked for, at most
FULL = 255  # the value of a latent's largest activation


@dataclass
class ExplorerConfig:
    """Section `build_explorer`.

    tokens: of the test split that are shown. strongest: snippets of a latent's largest activations; per_band: of each
    band of quantiles. snippet_chars: at most 256. neighbours: latents of the same level that are listed by decoder and
    by co-activation. characters: that are listed. bins: of the histogram of activations.
    """

    tokens: int
    strongest: int
    per_band: int
    snippet_chars: int
    neighbours: int
    characters: int
    bins: int

    def __post_init__(self) -> None:
        check_positive(self, vars(self))
        check("snippet_chars", self.snippet_chars, "at most 256", self.snippet_chars <= FULL + 1)


@dataclass(frozen=True)
class TextActs:
    """A part of the text, and what the latents of a level do on it. characters: index into the vocabulary."""

    acts: csc_array  # (token, latent)
    characters: Int[ndarray, " token"]

    def shares(self, n_characters: int) -> Float[ndarray, "latent character"]:
        """The share of each latent's activation that each character holds."""
        n = len(self.characters)
        one_hot = csr_array((np.ones(n), (np.arange(n), self.characters)), shape=(n, n_characters))
        mass = (self.acts.T @ one_hot).toarray()
        total = mass.sum(1, keepdims=True)
        return mass / np.where(total > 0, total, 1.0)

    def phi(self) -> Float[ndarray, "latent latent"]:
        """Co-activation of all pairs of latents."""
        return phi(activity(csr_array(self.acts)))


@dataclass(frozen=True)
class Snippets:
    """Snippets of all latents of a level, one latent after the other, and the activations in them.

    first[i] is latent i's first snippet, start[s] the offset of snippet s in the text, bound[s] where its activations
    begin in `position` (in the snippet) and `value` (1 to 255, relative to the latent's largest).
    """

    first: ndarray
    start: ndarray
    bound: ndarray
    position: ndarray
    value: ndarray

    def encoded(self) -> dict[str, str]:
        """Little-endian arrays in base64."""
        kinds = {"first": "<u4", "start": "<u4", "bound": "<u4", "position": "u1", "value": "u1"}
        return {
            name: base64.b64encode(getattr(self, name).astype(kind).tobytes()).decode() for name, kind in kinds.items()
        }


def snippets(acts: csc_array, config: ExplorerConfig, stream: Stream) -> Snippets:
    """Of each latent the strongest snippets, which do not overlap, then those of each band in BANDS, drawn."""
    n, n_latents = acts.shape  # pyright: ignore[reportGeneralTypeIssues]
    width = min(config.snippet_chars, n)
    rng = stream.numpy()
    dense = np.zeros(n)
    first, start, bound, position, value = [0], [], [0], [], []
    for latent in range(n_latents):
        column = slice(acts.indptr[latent], acts.indptr[latent + 1])
        rows, values = acts.indices[column], acts.data[column]
        order = np.argsort(values, kind="stable")[::-1]
        chosen = apart(rows[order[: CANDIDATES * config.strongest]], config.strongest, width)
        ascending = rows[order[::-1]]
        for low, high in BANDS.values():
            band = ascending[int(low * len(rows)) : math.ceil(high * len(rows))]
            chosen += apart(rng.permutation(band)[: CANDIDATES * config.per_band], config.per_band, width)
        dense[rows] = np.ceil(values / values.max() * FULL) if len(rows) else values
        for token in chosen:
            at = begin(token, width, n)
            marked = np.flatnonzero(dense[at : at + width])
            start.append(at)
            position.append(marked)
            value.append(dense[at + marked])
            bound.append(bound[-1] + len(marked))
        dense[rows] = 0
        first.append(len(start))
    joined = [np.concatenate([np.zeros(0), *parts]) for parts in (position, value)]
    return Snippets(np.array(first), np.array(start), np.array(bound), *joined)


def latents(
    choice: TextActs,
    shown: TextActs,
    directions: Float[ndarray, "latent d_in"],
    vocabulary: Sequence[str],
    config: ExplorerConfig,
) -> list[dict[str, Any]]:
    """What can be said of each latent of a level by itself and beside the others of its level.

    density, max, histogram (counts of its activations in bins from 0 to max), on (characters that hold the largest
    shares of its activation), near (latents by cosine of decoder directions), together (by phi of co-activation).
    Characters and latents that are listed for what they do on a text are chosen on `choice`; numbers are of `shown`.
    """
    acts = shown.acts
    n, n_latents = acts.shape  # pyright: ignore[reportGeneralTypeIssues]
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(min=1e-12)
    cosines = unit @ unit.T
    near = _nearest(cosines, config.neighbours, cosines)
    together = _nearest(choice.phi(), config.neighbours, shown.phi())
    of_choice, shares = (part.shares(len(vocabulary)) for part in (choice, shown))
    found = []
    for latent in range(n_latents):
        values = acts.data[acts.indptr[latent] : acts.indptr[latent + 1]]
        largest = float(values.max()) if len(values) else 0.0
        counts = np.histogram(values, config.bins, (0, largest or 1.0))[0]
        top = np.argsort(-of_choice[latent], kind="stable")[: config.characters]
        found.append(
            {
                "density": _short(len(values) / n),
                "max": _short(largest),
                "histogram": counts.tolist(),
                "on": [[vocabulary[i], _short(shares[latent, i])] for i in top if of_choice[latent, i] > 0],
                "near": near[latent],
                "together": together[latent],
            }
        )
    return found


def content(
    evidence: Evidence,
    acts: dict[int, csc_array],
    known: dict[int, list[dict[str, Any]]],
    raised: dict[int, Raised],
    labels: dict[int, dict[int, list[str]]],
    vocabulary: Sequence[str],
    config: ExplorerConfig,
) -> dict[int, list[dict[str, Any]]]:
    """Level -> all that the page says of each latent: `latents` (here `known`) and what other stages found.

    `raised`: next characters that each latent raises and lowers most. `labels`: level -> latent -> what people called
    it.
    """
    children = evidence.children
    columns = ["weight", "share", "p_parent_given_child", "u"]
    of_parent, of_child = (
        records(children, by, [other, *columns]) for by, other in (("parent", "child"), ("child", "parent"))
    )
    shares = evidence.causal_shares()
    found = {}
    for level, own in known.items():
        table = evidence.latents(level, len(own)).to_dict("records")
        causal = records(shares.query("level == @level"), "latent", ["task", "share", "low", "high"])
        mass = np.asarray(acts[level].sum(0), dtype=float).ravel()
        found[level] = []
        for latent, (row, values) in enumerate(zip(table, own, strict=True)):
            up, down = strongest(raised[level], latent, vocabulary, config.characters)
            rule = row["rule"]
            found[level].append(
                {
                    **values,
                    "mass": _short(mass[latent]),
                    "rule": " | ".join(json.loads(rule)) if isinstance(rule, str) else None,
                    "f1": _short(row["proxy_f1"]),
                    "f1_null": _short(row["proxy_f1_null"]),
                    "recurs": _short(row["cosine"]),
                    "kl": _short(row["kl"]),
                    "kl_null": _short(row["kl_null"]),
                    "kl_choice": _short(row["kl_choice"]),
                    "up": up,
                    "down": down,
                    "causal": causal.get(latent, []),
                    "parents" if level == 1 else "children": (of_child if level == 1 else of_parent).get(latent, []),
                    "labels": labels.get(level, {}).get(latent, []),
                }
            )
    return found


def labels(study: dict[str, Any]) -> dict[int, dict[int, list[str]]]:
    """Level -> latent -> what people called it, of metrics/study.json."""
    found: dict[int, dict[int, list[str]]] = {1: {}, 2: {}}
    for row in study["clarity"]["labels"]:
        level = {"level1": 1, "level2": 2}.get(row["arm"])
        if level:
            found[level][row["feature"]] = row["labels"]
    return found


def facts(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """metrics/hsae.json in a few words, for the first page."""
    found = [("P(parent active | child active)", f"{evaluation['hierarchy']['p_parent_given_child_decoder']:.2f}")]
    for level in (1, 2):
        own = evaluation[f"level{level}"]
        found.append((f"level {level}: latents; active on a token", f"{own['latents']:,}; {own['l0']:.1f}"))
        found.append((f"level {level}: FVU; loss recovered", f"{own['fvu']:.3f}; {own['ce_recovered_mean']:.3f}"))
    return found


def page(content: dict[str, Any], snippets: dict[int, Snippets]) -> str:
    """The page. `content`: title, text, levels and what else the script shows; JSON without nan."""
    data = {**content, "snippets": {level: own.encoded() for level, own in snippets.items()}}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A script element ends at "</script" and nowhere else; line separators are for old parsers.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    templates = resources.files("hsae") / "templates"
    script, style = ((templates / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    environment = Environment(
        loader=PackageLoader("hsae"), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("explorer.html").render(
        title=content["title"],
        data=Markup(text),
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def records(frame: pd.DataFrame, by: str, columns: list[str]) -> dict[int, list[list[Any]]]:
    """Rows of a frame by latent (column `by`), as short lists; what is not finite is None."""
    found: dict[int, list[list[Any]]] = {}
    for row in frame.filter([by, *columns]).to_dict("records"):
        found.setdefault(int(row[by]), []).append([_short(row[column]) for column in columns])
    return found


def _nearest(similarity: ndarray, n: int, shown: ndarray) -> list[list[list[Any]]]:
    """Of each row the `n` others with the largest similarities above 0: [index, value of `shown`]."""
    others = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    n = min(n, len(others) - 1)
    top = np.argpartition(-others, n - 1, axis=1)[:, :n] if n else np.zeros((len(others), 0), dtype=int)
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(others, top, 1), 1, kind="stable"), 1)
    rows = zip(others, shown, top, strict=True)
    return [[[int(i), _short(values[i])] for i in best if row[i] > 0] for row, values, best in rows]


def _short(value: Any) -> Any:
    """A number of three digits, for the page; None for what is not finite. Anything else as it is."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.3g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
