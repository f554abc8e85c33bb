"""Whether autoencoders trained from different seeds learn the same features: matched decoder directions, and a null.

PW-MCC, the pairwise mean correlation coefficient (O'Neill et al. 2024, arXiv 2411.13117; Paulo & Belrose 2025, arXiv
2501.16615; Song et al. 2025, arXiv 2505.20254): the directions of two dictionaries are matched one to one so that the
sum of cosines is largest, and their mean is taken. Each direction finds some partner, so chance alone gives .2 or .3,
and more where directions share a subspace. The null is therefore that of normal directions with the same matrix of
second moments as each of the two dictionaries (exactly so before they are scaled to unit norm).

Only living latents are matched: those that are active on some token of the validation split.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hsae.config import check
from hsae.progress import Progress
from hsae.statistics import cluster_weights
from hsae.streams import Stream

MATCHED = {"matched_70": 0.7, "matched_90": 0.9}
"""Cosines at which a latent counts as matched; RECURS is that at which it counts as found again."""
RECURS = 0.7


@dataclass(frozen=True)
class Directions:
    """Decoder directions of the living latents of one dictionary, and the latents' indices."""

    rows: Float[ndarray, "latent coordinate"]
    latents: Int[ndarray, " latent"]
    basis: Float[ndarray, "coordinate d"] | None = None
    """Where coordinates are latents themselves, which each seed numbers in its own way: their directions."""


@torch.no_grad()
def living(
    encode: Callable[[Tensor], Tensor],
    directions: Float[Tensor, "latent coordinate"],
    batches: Iterable[Float[Tensor, "_ d_in"]],
) -> Directions:
    """The directions of the latents that are active on some row of the `batches`, the validation split."""
    active = torch.stack([(encode(x) > 0).any(0) for x in batches]).any(0)
    latents = np.flatnonzero(active.cpu())
    return Directions(directions.detach().double().cpu().numpy()[latents], latents)


@dataclass(frozen=True)
class Matching:
    """Pairs of rows of two dictionaries, as many as the smaller one has, and the cosine of each pair."""

    a: Int[ndarray, " pair"]
    b: Int[ndarray, " pair"]
    cosines: Float[ndarray, " pair"]


def match(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"]) -> Matching:
    """The one-to-one matching of rows with the largest sum of cosines (Hungarian algorithm)."""
    cosines = _unit(a) @ _unit(b).T
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return Matching(rows, columns, cosines[rows, columns])


def aligned(a: Directions, b: Directions) -> tuple[Float[ndarray, "n k"], Float[ndarray, "m k"]]:
    """Rows of both in common coordinates: where these are latents, matched by their own directions; others dropped."""
    if a.basis is None or b.basis is None:
        return a.rows, b.rows
    matched = match(a.basis, b.basis)
    return a.rows[:, matched.a], b.rows[:, matched.b]


def random_like(rows: Float[ndarray, "n d"], rng: np.random.Generator) -> Float[ndarray, "n d"]:
    """As many independent normal rows, whose matrix of second moments is that of the rows of unit norm."""
    return rng.standard_normal((len(rows), len(rows))) @ _unit(rows) / np.sqrt(len(rows))


def null_match(a: Float[ndarray, "n d"], b: Float[ndarray, "m d"], stream: Stream) -> Matching:
    """The matching of what is `random_like` the rows of both."""
    rng = stream.numpy()
    return match(random_like(a, rng), random_like(b, rng))


def stability(models: dict[str, dict[int, Directions]], stream: Stream) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every dictionary's seeds two by two; `models`: dictionary -> seed that it was trained from -> directions.

    Returns a row per pair: dictionary, seed_a, seed_b, mcc, null, adjusted = (mcc - null) / (1 - null), and the shares
    of pairs whose cosine reaches MATCHED; and a row per latent of each dictionary's first seed: dictionary, latent
    (index), recurrence (in how many of the other seeds its match has a cosine of RECURS or more). `stream` is that of
    the nulls, a part of it for each. Raises ValueError for a dictionary of fewer than 2 seeds, or one without a living
    latent.
    """
    for name, of_seeds in models.items():
        check(name, [*of_seeds], "trained from at least 2 seeds", len(of_seeds) > 1)
        dead = [own for own, directions in of_seeds.items() if not len(directions.rows)]
        check(name, dead, "alive: there is no living latent from some seeds", not dead)
    pairs, latents = [], []
    with Progress("stability", sum(len(own) * (len(own) - 1) // 2 for own in models.values())) as bar:
        for name, of_seeds in models.items():
            first = next(iter(of_seeds))
            recurrence = np.zeros(len(of_seeds[first].rows), dtype=int)
            for one, other in combinations(of_seeds, 2):
                a, b = aligned(of_seeds[one], of_seeds[other])
                matched = match(a, b)
                if one == first:
                    recurrence[matched.a] += matched.cosines >= RECURS
                null = float(null_match(a, b, stream.of(name, f"seeds {one} and {other}")).cosines.mean())
                pairs.append({"dictionary": name, "seed_a": one, "seed_b": other, **_measures(matched.cosines, null)})
                bar.advance()
            rows = {"dictionary": name, "latent": of_seeds[first].latents, "recurrence": recurrence}
            latents.append(pd.DataFrame(rows))
    return pd.DataFrame(pairs), pd.concat(latents, ignore_index=True)


def summarize(pairs: pd.DataFrame, latents: pd.DataFrame, stream: Stream) -> dict[str, dict[str, Any]]:
    """dictionary -> means over pairs of seeds, and the 95% intervals of `mcc` and `adjusted` (None below 3 seeds).

    Also `recurs`: the share of the first seed's latents that are found in all the other seeds. `stream` is that of the
    intervals, a part of it for each.
    """
    result = {}
    for name, own in pairs.groupby("dictionary", sort=False):
        n_seeds = len({*own["seed_a"], *own["seed_b"]})
        means = own.drop(columns=["dictionary", "seed_a", "seed_b"]).mean().to_dict()
        intervals = {f"{key}_interval": seed_interval(own, key, stream.of(name, key)) for key in ("mcc", "adjusted")}
        recurrence = latents.loc[latents["dictionary"] == name, "recurrence"]
        recurs = float((recurrence == n_seeds - 1).mean())
        result[str(name)] = {"n_seeds": n_seeds, **means, **intervals, "recurs": recurs}
    return result


def seed_interval(pairs: pd.DataFrame, column: str, stream: Stream) -> list[float] | None:
    """95% bootstrap interval of the mean over all pairs of different seeds; None for fewer than 3 seeds.

    Pairs share seeds and so are not independent: seeds are drawn with replacement, and all pairs of different ones
    among those drawn are averaged.
    """
    seeds = sorted({*pairs["seed_a"], *pairs["seed_b"]})
    if len(seeds) < 3:
        return None
    values = np.zeros((len(seeds), len(seeds)))
    a, b = (np.searchsorted(seeds, pairs[key]) for key in ("seed_a", "seed_b"))
    values[a, b] = values[b, a] = pairs[column]
    drawn = cluster_weights(len(seeds), stream).astype(float)
    n_pairs = len(seeds) ** 2 - (drawn**2).sum(1)
    means = ((drawn @ values) * drawn).sum(1)[n_pairs > 0] / n_pairs[n_pairs > 0]
    return np.quantile(means, [0.025, 0.975]).tolist()


def _measures(cosines: Float[ndarray, " pair"], null: float) -> dict[str, float]:
    mcc = float(cosines.mean())
    shares = {name: float((cosines >= least).mean()) for name, least in MATCHED.items()}
    return {"mcc": mcc, "null": null, "adjusted": (mcc - null) / (1 - null), **shares}


def _unit(rows: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
