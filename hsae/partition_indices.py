"""How good a clustering is, and how far two agree: indices, each beside what chance gives."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.spatial.distance import cdist
from scipy.special import entr
from sklearn.metrics import silhouette_score
from sklearn.metrics.cluster import expected_mutual_information

Z95 = 1.959964  # of the normal distribution: a 95% interval is this many standard errors to either side


def measured(value: float, **nulls: Sequence[float]) -> dict[str, object]:
    """A value beside the mean and standard deviation of the draws of each of its nulls; None for what is undefined."""
    record: dict[str, object] = {"value": number(value)}
    for name, draws in nulls.items():
        known = np.asarray(draws, dtype=float)
        known = known[~np.isnan(known)]
        several = len(known) > 1
        record[name] = {
            "mean": float(known.mean()) if several else None,
            "sd": float(known.std(ddof=1)) if several else None,
        }
    return record


def number(value: float) -> float | None:
    """The value as JSON has it: None for nan."""
    return None if np.isnan(value) else float(value)


def contingency(a: Int[ndarray, " n"], b: Int[ndarray, " n"]) -> Int[ndarray, "cluster_a cluster_b"]:
    """How many latents have each label of `a` and each of `b`; those labelled -1 in either are left out."""
    known = (a >= 0) & (b >= 0)
    a, b = (np.unique(labels[known], return_inverse=True)[1] for labels in (a, b))
    n_a, n_b = (int(labels.max(initial=-1)) + 1 for labels in (a, b))
    return np.bincount(a * n_b + b, minlength=n_a * n_b).reshape(n_a, n_b)


def ami(a: Int[ndarray, " latent"], b: Int[ndarray, " latent"]) -> float:
    """AMI (see `indices`) of two labellings; latents labelled -1 are left out."""
    counts = contingency(a, b)
    return indices(counts, expected_information(counts))["ami"]


def indices(counts: Int[ndarray, "cluster_a cluster_b"], expected: float) -> dict[str, float]:
    """Agreement of two labellings from their contingency table and the `expected_information` of its margins.

    ami: adjusted mutual information (I - E) / (H - E), with H the mean of the two entropies (Vinh, Epps & Bailey 2010,
    JMLR 11). ari: adjusted Rand index (Hubert & Arabie 1985). v_measure: I / H (Rosenberg & Hirschberg 2007), which is
    not corrected for chance, and grows with the number of clusters. 1 is equality; of the first two, 0 is expected of
    chance. nan where undefined: fewer than 2 latents, or both labellings trivial. The same numbers as scikit-learn's,
    whose checks of its arguments take longer than the sums: chance is drawn thousands of times.
    """
    sizes_a, sizes_b, n = counts.sum(1), counts.sum(0), counts.sum()
    mean_entropy = (_entropy(sizes_a) + _entropy(sizes_b)) / 2
    information = 2 * mean_entropy - _entropy(counts)
    pairs, pairs_a, pairs_b = (float((sizes * (sizes - 1)).sum() / 2) for sizes in (counts, sizes_a, sizes_b))
    expected_pairs = pairs_a * pairs_b / max(n * (n - 1) / 2, 1)
    return {
        "ami": _ratio(information - expected, mean_entropy - expected),
        "ari": _ratio(pairs - expected_pairs, (pairs_a + pairs_b) / 2 - expected_pairs),
        "v_measure": _ratio(information, mean_entropy),
    }


def expected_information(counts: Int[ndarray, "cluster_a cluster_b"]) -> float:
    """Mutual information, in nats, expected of two labellings with these margins that have nothing in common."""
    return float(expected_mutual_information(counts, int(counts.sum()))) if counts.size else 0.0


def agreement(
    a: Int[ndarray, " latent"], b: Int[ndarray, " latent"], n_null: int, rng: np.random.Generator
) -> dict[str, dict[str, object]]:
    """The `indices` of two labellings, latents labelled -1 left out, beside those of permutations of one of them."""
    known = (a >= 0) & (b >= 0)
    a, b = a[known], b[known]
    counts = contingency(a, b)
    expected = expected_information(counts)  # of permutations too: it follows from the margins
    draws = [indices(contingency(a, rng.permutation(b)), expected) for _ in range(n_null)]
    return {
        name: measured(value, permuted=[draw[name] for draw in draws])
        for name, value in indices(counts, expected).items()
    }


def _entropy(sizes: Int[ndarray, "*shape"]) -> float:
    return float(entr(sizes / max(sizes.sum(), 1)).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 1e-12 else np.nan


def half_sample_error(
    a: Int[ndarray, " latent"], b: Int[ndarray, " latent"], n_resamples: int, rng: np.random.Generator
) -> float:
    """Standard error of `ami` over the choice of latents: its spread over random halves of them.

    This is the delete-d jackknife at d = n / 2, where its factor (n - d) / d is 1 (Shao & Wu 1989, Ann. Stat. 17). The
    bootstrap will not do: a latent drawn twice agrees with itself in both labellings, which lifts the AMI of clusters
    of a few latents far above the sample's own. nan if fewer than 4 latents are labelled.
    """
    known = (a >= 0) & (b >= 0)
    a, b = a[known], b[known]
    if len(a) < 4:
        return np.nan
    halves = [rng.permutation(len(a))[: len(a) // 2] for _ in range(n_resamples)]
    return float(np.std([ami(a[half], b[half]) for half in halves], ddof=1))


def silhouette(distances: Float[ndarray, "latent latent"], labels: Int[ndarray, " latent"]) -> float:
    """Mean silhouette (Rousseeuw 1987); nan unless there are 2 clusters or more, and fewer than latents."""
    defined = 2 <= len(np.unique(labels)) < len(labels)
    return float(silhouette_score(distances, labels, metric="precomputed")) if defined else np.nan


def davies_bouldin(directions: Float[ndarray, "latent d"], labels: Int[ndarray, " latent"]) -> float:
    """Davies-Bouldin index (1979) of the rows, which are scaled to unit norm first; lower is better.

    The mean over clusters of the worst (scatter_i + scatter_j) / distance_ij, as in scikit-learn, whose loop over
    clusters takes several times as long at hundreds of them. nan unless there are 2 clusters or more, and fewer than
    latents.
    """
    names, labels = np.unique(labels, return_inverse=True)
    if not 2 <= len(names) < len(labels):
        return np.nan
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(min=1e-12)
    sizes = np.bincount(labels)
    centroids = np.eye(len(names))[labels].T @ unit / sizes[:, None]
    scatter = np.bincount(labels, np.linalg.norm(unit - centroids[labels], axis=1)) / sizes
    apart = cdist(centroids, centroids)
    np.fill_diagonal(apart, np.inf)
    return float(((scatter[:, None] + scatter) / apart.clip(min=1e-12)).max(1).mean())
