"""Feature splitting and absorption of concepts that are known exactly for every token.

After Chanin et al. 2024 (A is for Absorption, arXiv 2409.14507) and SAEBench (Karvonen et al. 2025, arXiv 2503.09532),
with its thresholds. A latent that seems to stand for a concept is silent on some tokens that have it where another,
more special latent is active, whose direction contains the concept's: the concept is absorbed. What is computed:

- Probe: logistic regression of the concept on the normalised activations x. Its direction w, of unit norm, is the
  ground truth; a latent contributes act * (its decoder direction . w) to the projection x . w, biases nothing.
- Main latents: those of `sparse_probing`. How many there are measures feature splitting.
- Absorption: over the tokens that have the concept and that the probe classifies right, the share on which all main
  latents are silent (activation 0), x . w > 0, and the latent with the largest contribution has a direction of cosine
  FULL_COSINE or more with w and contributes PROJECTION_SHARE of x . w or more. (Chanin et al. want the largest effect
  of ablation, by a margin; SAEBench replaced it by the share of the projection.)
- Absorption fraction: the mean over the same tokens of a number from 0 to 1, for partial absorption by up to
  MAX_ABSORBERS latents. Let m be the main latents' contribution and a that of the largest others of cosine
  FRACTION_COSINE or more. It is 0 where m >= x . w or a < PROJECTION_SHARE * x . w, else 1 where m <= 0, else
  c / (c + m), where c = min(a, x . w - m).

Probes and main latents are chosen on one split and scored on another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Integer
from numpy import ndarray
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hsae.activations import Store
from hsae.coactivation import sparse_acts
from hsae.config import check_positive
from hsae.sparse_probing import MainLatents, Ranked, f1, main_latents, rank
from hsae.statistics import cluster_weights
from hsae.streams import Stream

FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
PROJECTION_SHARE = 0.4
MAX_ABSORBERS = 3

RATIOS = {
    "first_feature_f1": ("double_hits", "calls_and_positives"),
    "precision": ("hits", "calls"),
    "recall": ("hits", "positives"),
    "split_f1": ("split_double_hits", "split_calls_and_positives"),
    "missed": ("silent", "found"),
    "absorption": ("absorbed", "found"),
    "absorption_fraction": ("fraction", "found"),
}
"""Measures of a concept: a sum over tokens, divided by another."""
UNTRAINED = "untrained "
"""What the name of a method begins with that is another one before its training: what chance scores."""
HEADLINE = ["first_feature_f1", "absorption", "absorption_fraction"]
"""Those with an interval."""


@dataclass
class AbsorptionConfig:
    """Section `absorption`: tokens to fit on and to score on, the same share of each document; the rarest concept.

    A concept that fewer than `min_tokens` of the tokens to fit on have, or lack, is left out. The null shifts the
    labels `shifts` times.
    """

    fit_tokens: int
    score_tokens: int
    min_tokens: int
    shifts: int

    def __post_init__(self) -> None:
        check_positive(self, vars(self))


@dataclass(frozen=True)
class Labelled:
    """Normalised activations with the concepts of their tokens, and each token's context and place in the corpus."""

    x: Float[Tensor, "n d"]
    concepts: dict[str, Bool[ndarray, " n"]]
    contexts: Int[ndarray, " n"]
    offsets: Integer[ndarray, " n"]


@dataclass(frozen=True)
class Method:
    """A dictionary: codes, 0 or above, of a batch of normalised activations, and each latent's direction in them."""

    encode: Callable[[Tensor], Tensor]
    directions: Float[Tensor, "latent d"]


@dataclass(frozen=True)
class Probe:
    """A linear classifier: a row x has the concept where x . direction > cutoff; the direction has unit norm."""

    direction: Float[ndarray, " d"]
    cutoff: float


def labelled(store: Store, concepts: dict[str, Bool[ndarray, " corpus"]], n: int) -> Labelled:
    """What is kept of `n` tokens, in whole contexts of all documents, of a store of contexts in their order."""
    own = store.spread(n).scored(slice(None))
    rows = own.activations
    offsets = rows.offsets.numpy()
    contexts = pd.factorize(offsets - rows.positions.numpy())[0]
    return Labelled(own.x(slice(None)), {name: has[offsets] for name, has in concepts.items()}, contexts, offsets)


def fit_probe(x: Float[ndarray, "n d"], has: Bool[ndarray, " n"], stream: Stream) -> Probe:
    """Logistic regression of a concept on activations, with scikit-learn's default penalty."""
    # Newton's method: few steps, each of one product of x with itself. It asks for random numbers and uses none.
    fitted = LogisticRegression(solver="newton-cholesky", random_state=stream.number).fit(x, has)
    norm = np.linalg.norm(fitted.coef_[0])
    return Probe(fitted.coef_[0] / norm, float(-fitted.intercept_[0] / norm))


def absorb(
    codes: csr_array,
    gains: Float[ndarray, " latent"],
    cosines: Float[ndarray, " latent"],
    main: list[int],
    projection: Float[ndarray, " n"],
) -> tuple[Bool[ndarray, " n"], Bool[ndarray, " n"], Float[ndarray, " n"]]:
    """Of every token: whether all main latents are silent, whether it is absorbed, and its absorption fraction.

    `gains` are the products of the latents' directions with the probe's, `cosines` the same of unit directions,
    `projection` is x . w. See the head of this module.
    """
    rows = np.repeat(np.arange(len(projection)), np.diff(codes.indptr))
    contributions = codes.data * gains[codes.indices]
    is_main, cosine = np.isin(codes.indices, main), cosines[codes.indices]
    silent = np.bincount(rows, is_main, len(projection)) == 0
    of_main = np.bincount(rows, contributions * is_main, len(projection))

    def largest(entries: Bool[ndarray, " entry"]) -> Float[ndarray, "n absorber"]:
        values = np.where(entries & ~is_main, contributions, 0).clip(min=0)
        return _largest(values, codes.indptr, MAX_ABSORBERS)

    top, aligned = largest(cosine > -np.inf)[:, 0], largest(cosine >= FULL_COSINE)[:, 0]
    enough = PROJECTION_SHARE * projection
    absorbed = silent & (projection > 0) & (aligned >= enough) & (aligned == top)
    others, left = largest(cosine >= FRACTION_COSINE).sum(1), projection - of_main
    carried = np.minimum(others, left)
    partial = (projection > 0) & (left > 0) & (others >= enough)
    fraction = np.where(partial, carried / np.where(partial, carried + of_main.clip(min=0), 1), 0)
    return silent, absorbed, fraction


def _largest(values: Float[ndarray, " entry"], indptr: ndarray, k: int) -> Float[ndarray, "n k"]:
    """The `k` largest of each row's entries (0 or above), from the largest down, filled up with zeros."""
    sizes = np.diff(indptr)
    padded = np.zeros((len(sizes), max(sizes.max(initial=0), k)))
    place = np.arange(len(values)) - np.repeat(indptr[:-1], sizes)
    padded[np.repeat(np.arange(len(sizes)), sizes), place] = values
    return -np.partition(-padded, range(k), axis=1)[:, :k]


def measure(
    methods: dict[str, Method], fit: Labelled, score: Labelled, config: AbsorptionConfig, stream: Stream
) -> dict[str, Any]:
    """Splitting and absorption of each concept by each method, chosen on `fit` and scored on `score`.

    Returns `probes` (concept -> n, the tokens of `score` that have it, and the probe's f1) and `methods` (method ->
    `concepts`, and `mean` over them). Of each concept:

    - first_feature_f1, precision, recall: of the best single latent; first_feature_f1_null: the same where labels are
      circularly shifted along the text (mean over shifts), so that they keep their runs and lose their meaning
    - split_latents, split_f1: number of main latents, and the F1 of all together
    - missed: of the tokens with the concept that the probe finds, the share on which all main latents are silent
    - absorption, absorption_fraction: see the head of this module

    An interval (95%) is of percentiles of a bootstrap over contexts, as tokens of one are not independent. `stream`
    draws them, the same ones for all methods and concepts, which are so compared pair by pair. What is undefined, where
    the probe finds no token for instance, is None.
    """
    x, x_score = (split.x.cpu().numpy().astype(np.float64) for split in (fit, score))
    probes, found, projections = {}, {}, {}
    for name, has in fit.concepts.items():
        if min(has.sum(), (~has).sum()) >= config.min_tokens:
            probes[name] = fit_probe(x, has, stream.of("probe", name))
            projections[name] = x_score @ probes[name].direction
            found[name] = projections[name] > probes[name].cutoff
    weights = cluster_weights(int(score.contexts[-1]) + 1, stream)
    result = {}
    for method_name, method in methods.items():
        of_fit, codes = (sparse_acts(method.encode, split.x.split(4096)) for split in (fit, score))
        ranked = rank(of_fit)
        sums, others = {}, {}
        for name, probe in probes.items():
            has = score.concepts[name]
            main = main_latents(ranked, fit.concepts[name])
            absorption = _absorption(method, codes, main, probe, projections[name], has & found[name])
            sums[name] = pd.concat([_detection(codes, main, has), absorption], axis=1).groupby(score.contexts).sum()
            null = _null(ranked, codes, fit.concepts[name], has, config.shifts)
            others[name] = {"first_feature_f1_null": null, "split_latents": len(main.latents)}
        result[method_name] = _summarize(sums, pd.DataFrame(others).T, weights)
    quality = {
        name: {"n": int(score.concepts[name].sum()), "f1": f1(found[name], score.concepts[name])} for name in probes
    }
    return {"probes": quality, "methods": result}


def _detection(codes: csr_array, main: MainLatents, has: Bool[ndarray, " n"]) -> pd.DataFrame:
    """What is added up of every token for the measures of the first and of all main latents."""
    called, split = main.first().detect(codes), main.detect(codes)
    columns = {
        "hits": called & has,
        "calls": called,
        "positives": has,
        "double_hits": 2.0 * (called & has),
        "calls_and_positives": 1.0 * called + has,
        "split_double_hits": 2.0 * (split & has),
        "split_calls_and_positives": 1.0 * split + has,
    }
    return pd.DataFrame(columns)


def _absorption(
    method: Method,
    codes: csr_array,
    main: MainLatents,
    probe: Probe,
    projection: Float[ndarray, " n"],
    found: Bool[ndarray, " n"],
) -> pd.DataFrame:
    """`absorb` of the tokens that the probe finds; zeros elsewhere."""
    directions = method.directions.detach().cpu().numpy().astype(np.float64)
    gains = directions @ probe.direction
    cosines = gains / np.linalg.norm(directions, axis=1).clip(min=1e-12)
    values = np.zeros((len(found), 3))
    values[found] = np.column_stack(
        absorb(codes[np.flatnonzero(found)], gains, cosines, main.latents, projection[found])
    )
    return pd.DataFrame(values, columns=["silent", "absorbed", "fraction"]).assign(found=found)


def _null(ranked: Ranked, codes: csr_array, fit: Bool[ndarray, " n"], score: Bool[ndarray, " m"], shifts: int) -> float:
    """Mean F1 of the best single latent over circular shifts, evenly spaced, of the labels of both splits."""
    f1s = []
    for i in range(1, shifts + 1):
        shifted_fit, shifted = (np.roll(has, len(has) * i // (shifts + 1)) for has in (fit, score))
        f1s.append(f1(main_latents(ranked, shifted_fit, most=1).detect(codes), shifted))
    return float(np.mean(f1s))


def _summarize(
    sums: dict[str, pd.DataFrame], others: pd.DataFrame, weights: Int[ndarray, "resample context"]
) -> dict[str, Any]:
    """The measures of every concept, and their means, from sums over the tokens of each context.

    `others` holds what has no interval, a row per concept.
    """
    if not sums:
        return {"concepts": {}, "mean": {}}
    estimates, resampled = {}, {}
    for name, own in sums.items():
        estimates[name] = _ratios(own.sum().to_frame().T)
        resampled[name] = _ratios(pd.DataFrame(weights @ own.to_numpy(float), columns=own.columns))
    concepts = {name: _record(estimates[name], resampled[name]) | others.loc[name].to_dict() for name in sums}
    mean, mean_resampled = (_mean([*frames.values()]) for frames in (estimates, resampled))
    return {"concepts": concepts, "mean": _record(mean, mean_resampled) | others.mean().to_dict()}


def _mean(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Mean over concepts, of which those without a value are left out."""
    return pd.DataFrame({name: pd.concat([frame[name] for frame in frames], axis=1).mean(axis=1) for name in RATIOS})


def _ratios(totals: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({name: totals[above] / totals[below] for name, (above, below) in RATIOS.items()})


def _record(estimate: pd.DataFrame, resampled: pd.DataFrame) -> dict[str, Any]:
    """Estimates (of one row) with the intervals of HEADLINE."""
    values = {name: None if np.isnan(value) else value for name, value in estimate.iloc[0].to_dict().items()}
    bounds = np.asarray(resampled[HEADLINE].quantile([0.025, 0.975])).T
    intervals = {
        f"{name}_interval": None if np.isnan(ends).any() else ends.tolist()
        for name, ends in zip(HEADLINE, bounds, strict=True)
    }
    return values | intervals


def tidy(result: dict[str, Any]) -> pd.DataFrame:
    """What `measure` returns for a plot: method, concept (`mean` too), measure (HEADLINE), value, low, high, null.

    And untrained: the value of the method called UNTRAINED and this one's name, which has no rows of its own.
    """
    found = {method: {**own["concepts"], "mean": own["mean"]} for method, own in result["methods"].items()}
    rows = []
    for method in [name for name in found if not name.startswith(UNTRAINED)]:
        before = found.get(UNTRAINED + method, {})
        for concept, values in found[method].items():
            for name in HEADLINE if values else []:
                low, high = values[f"{name}_interval"] or (None, None)
                untrained = before.get(concept, {}).get(name)
                rows.append((method, concept, name, values[name], low, high, values.get(f"{name}_null"), untrained))
    columns = ["method", "concept", "measure", "value", "low", "high", "null", "untrained"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[3:], float))
