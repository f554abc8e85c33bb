"""Traditional clustering and matrix factorisation as dictionaries.

k-means, Ward's tree and the Gaussian mixture represent a token by one centre (L0 = 1); PCA and NMF by a sum of at most
`l0` components, as many as the HSAE level that they are compared with has active latents.
"""

import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import AgglomerativeClustering, KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA, MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from hsae.config import check, check_positive
from hsae.files import understanding

L0_LEVEL = {"pca": 1, "nmf": 2}
"""Methods that represent a token by several components, and the HSAE level whose L0 says how many."""


@dataclass
class ClusteringConfig:
    """Section `clustering_baseline`: tokens to fit on (the first of the shuffled store), and passes over them at most.

    A pass is an iteration of Lloyd's or of the EM algorithm, or an epoch of mini-batches.
    """

    fit_tokens: int
    max_iter: int

    def __post_init__(self) -> None:
        check_positive(self, ["fit_tokens", "max_iter"])

    @property
    def slow_passes(self) -> int:
        """Passes of the Gaussian mixture, of NMF and of the k-means that each starts from: theirs take longer."""
        return max(self.max_iter // 5, 1)


class WardOnCentroids(ClusterMixin, BaseEstimator):
    """Ward's agglomerative clustering (1963) of the centroids of a finer k-means, as a scikit-learn estimator.

    Ward itself is quadratic in the number of points; over `n_leaves` centroids it gives a tree that can be cut at
    `n_clusters` and compared with the HSAE's hierarchy. Learned: `leaf_centers_` (n_leaves, d), `leaf_labels_` (the
    cluster of each leaf), `cluster_centers_` (n_clusters, d; the means of the clusters' points), `children_` and
    `distances_` (the tree, as in scikit-learn's AgglomerativeClustering).
    """

    def __init__(self, n_clusters: int, n_leaves: int, max_iter: int = 100, random_state: int = 0):
        self.n_clusters = n_clusters
        self.n_leaves = n_leaves
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: None = None) -> "WardOnCentroids":  # noqa: ARG002 (scikit-learn's signature)
        """Cluster the rows of `X` finely, then merge the centroids."""
        leaves = kmeans(self.n_leaves, self.max_iter, self.random_state).fit(X)
        tree = AgglomerativeClustering(self.n_clusters, linkage="ward", compute_distances=True)
        self.leaf_centers_ = leaves.cluster_centers_
        self.leaf_labels_ = tree.fit_predict(self.leaf_centers_)
        self.children_, self.distances_ = tree.children_, tree.distances_
        labels = np.asarray(leaves.labels_)
        counts = np.bincount(labels, minlength=self.n_leaves)
        members = np.eye(self.n_clusters)[self.leaf_labels_] * counts[:, None]
        self.cluster_centers_ = members.T @ self.leaf_centers_ / members.sum(0)[:, None]
        self.labels_ = self.leaf_labels_[labels]
        return self


def kmeans(n_clusters: int, max_iter: int, seed: int) -> KMeans:
    """Lloyd's k-means from random rows: k-means++ takes longer than the clustering itself at 1,024 clusters."""
    return KMeans(n_clusters, init="random", n_init=1, max_iter=max_iter, random_state=seed)  # pyright: ignore[reportArgumentType]


def fit_clusters(
    method: str, x: np.ndarray, widths: tuple[int, int], config: ClusteringConfig, seed: int
) -> dict[str, Tensor]:
    """Fit one of `DICTIONARIES` on normalised activations (row, d_in), as large as an HSAE level; for `load`.

    - kmeans, minibatch_kmeans (Sculley 2010): as many clusters as level 1 has latents
    - ward: Ward's tree over those k-means clusters, cut to level 2's width; the tree is among the tensors
    - gmm: Gaussian mixture of diagonal covariances, as many components as level 2 has latents: at level 1's width it
      would take four times as long, and have fewer rows to a component than the 2 d_in numbers to learn from them
    - pca: all principal components
    - nmf: nonnegative matrix factorisation into as many parts as level 2 has latents. Like level 2, which adds up
      level-1 latents, it adds and cannot cancel; its parts are not orthogonal, so they may outnumber d_in

    Raises ValueError for an unknown method, or fewer rows than the largest of these numbers of clusters.
    """
    if len(x) < max(widths):
        raise ValueError(
            f"`clustering_baseline.fit_tokens` must be at least {max(widths)}, the most clusters of any "
            f"method; not {len(x)}."
        )
    n1, n2 = widths
    match method:
        case "kmeans":
            tensors = _own_leaves(kmeans(n1, config.max_iter, seed).fit(x))
        case "minibatch_kmeans":
            fitted = MiniBatchKMeans(n1, init="random", n_init=1, max_iter=config.max_iter, random_state=seed)  # pyright: ignore[reportArgumentType]
            tensors = _own_leaves(fitted.fit(x))
        case "ward":
            tensors = _ward(WardOnCentroids(min(n2, n1), n1, config.max_iter, seed).fit(x))
        case "gmm":
            tensors = _gmm(x, n2, config.slow_passes, seed)
        case "pca":
            fitted = PCA().fit(x)
            tensors = {"mean": torch.from_numpy(fitted.mean_), "components": torch.from_numpy(fitted.components_)}
        case "nmf":
            tensors = _nmf(x, n2, config.slow_passes, seed)
        case _:
            raise ValueError(f"unknown clustering method {method!r}; allowed: {', '.join(DICTIONARIES)}.")
    return tensors


def _own_leaves(fitted: KMeans | MiniBatchKMeans) -> dict[str, Tensor]:
    centers = torch.from_numpy(fitted.cluster_centers_)
    return {"leaf_centers": centers, "leaf_labels": torch.arange(len(centers)), "centers": centers.clone()}


def _ward(fitted: WardOnCentroids) -> dict[str, Tensor]:
    return {
        "leaf_centers": torch.from_numpy(fitted.leaf_centers_),
        "leaf_labels": torch.from_numpy(fitted.leaf_labels_),
        "centers": torch.from_numpy(fitted.cluster_centers_).float(),
        "children": torch.from_numpy(fitted.children_),
        "distances": torch.from_numpy(fitted.distances_),
    }


def _gmm(x: np.ndarray, n_components: int, passes: int, seed: int) -> dict[str, Tensor]:
    """EM from the mixture that k-means amounts to: equal weights, and its mean squared error as every variance."""
    start = kmeans(n_components, passes, seed).fit(x)
    variance = max(np.square(x - start.cluster_centers_[start.labels_]).mean(), 1e-6)
    mixture = GaussianMixture(
        n_components,
        covariance_type="diag",
        # Added to variances, which are 1 on average over all rows: a component of few rows must not collapse.
        reg_covar=1e-3,
        max_iter=passes,
        weights_init=np.full(n_components, 1 / n_components, x.dtype),
        means_init=start.cluster_centers_,
        precisions_init=np.full_like(start.cluster_centers_, 1 / variance),
    )
    with warnings.catch_warnings():
        # The passes are a budget: EM need not have converged by then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x)
    learned = {"means": mixture.means_, "variances": mixture.covariances_, "weights": mixture.weights_}
    return {name: torch.from_numpy(array).float() for name, array in learned.items()}


def _nmf(x: np.ndarray, n_components: int, passes: int, seed: int) -> dict[str, Tensor]:
    """Multiplicative updates from k-means centres (Wild, Curry & Dougherty 2004, Pattern Recognit. 37).

    From random parts, as many passes leave three times the error. The parts are scaled to unit norm.
    """
    channels = split_signs(torch.from_numpy(x)).numpy()
    start = kmeans(n_components, passes, seed).fit(channels)
    # Multiplied, a zero would stay one.
    W = np.full((len(x), n_components), 1e-2, x.dtype)
    W[np.arange(len(x)), start.labels_] = 1
    H = np.maximum(start.cluster_centers_, 1e-3)
    # The passes are a budget: no early stop, and no warning where they are used up.
    endless: dict[str, Any] = {"tol": 0, "max_no_improvement": None}
    nmf = MiniBatchNMF(n_components, init="custom", batch_size=4096, max_iter=passes, **endless)  # pyright: ignore[reportArgumentType]
    parts = torch.from_numpy(nmf.fit(channels, W=W, H=H).components_)
    return {"parts": parts / parts.norm(dim=1, keepdim=True).clamp(min=1e-8)}


def split_signs(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch 2*d_in"]:
    """max(x, 0) beside max(-x, 0): signed data as nonnegative data (Hoyer 2004, J. Mach. Learn. Res. 5).

    Not x less its minimum: most of what the parts then add up is that minimum, the same for every token, and fitting it
    makes sparse codes worse.
    """
    return torch.cat([x, -x], 1).relu()


@dataclass(frozen=True)
class Clusters:
    """Fitted clusters: a token belongs to the cluster of its nearest leaf."""

    leaf_centers: Float[Tensor, "leaf d_in"]
    leaf_labels: Int[Tensor, " leaf"]
    centers: Float[Tensor, "cluster d_in"]

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch cluster"], Float[Tensor, "batch d_in"]]:
        """One-hot membership and the cluster's centre."""
        distances = self.leaf_centers.square().sum(1) - 2 * x @ self.leaf_centers.T
        return _members(self.leaf_labels[distances.argmin(1)].long(), self.centers)


@dataclass(frozen=True)
class Mixture:
    """Fitted Gaussian mixture of diagonal covariances: a token belongs to its most probable component."""

    means: Float[Tensor, "component d_in"]
    variances: Float[Tensor, "component d_in"]
    weights: Float[Tensor, " component"]

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch component"], Float[Tensor, "batch d_in"]]:
        """One-hot membership and the component's mean."""
        precisions = 1 / self.variances
        log_joint = x @ (self.means * precisions).T - 0.5 * x.square() @ precisions.T
        log_joint += self.weights.log() + 0.5 * (precisions.log() - self.means.square() * precisions).sum(1)
        return _members(log_joint.argmax(1), self.means)


def _members(
    labels: Int[Tensor, " batch"], centers: Float[Tensor, "cluster d_in"]
) -> tuple[Float[Tensor, "batch cluster"], Float[Tensor, "batch d_in"]]:
    return torch.nn.functional.one_hot(labels, len(centers)).to(centers.dtype), centers[labels]


@dataclass(frozen=True)
class PrincipalComponents:
    """Fitted PCA, of which a token keeps the `l0` coefficients of largest magnitude: they may be negative.

    The basis is orthonormal, so no other `l0` components of it reconstruct the token better.
    """

    mean: Float[Tensor, " d_in"]
    components: Float[Tensor, "component d_in"]
    l0: int

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch component"], Float[Tensor, "batch d_in"]]:
        """The coefficients that are kept among zeros, and what they add up to."""
        coefficients = (x - self.mean) @ self.components.T
        kept = coefficients.abs().topk(min(self.l0, len(self.components)), sorted=False).indices
        codes = torch.zeros_like(coefficients).scatter(1, kept, coefficients.gather(1, kept))
        return codes, self.mean + codes @ self.components


@dataclass(frozen=True)
class NonnegativeParts:
    """Fitted NMF: a token is a sum of at most `l0` parts of unit norm with positive coefficients.

    Parts are in the space of `split_signs`; the reconstruction is its positive less its negative channels.
    """

    parts: Float[Tensor, "part channel"]
    l0: int

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch part"], Float[Tensor, "batch d_in"]]:
        """Nonnegative coefficients and what they add up to."""
        codes = nonnegative_pursuit(split_signs(x), self.parts, min(self.l0, len(self.parts)))
        positive, negative = (codes @ self.parts).chunk(2, dim=1)
        return codes, positive - negative


def nonnegative_pursuit(
    x: Float[Tensor, "batch d"], parts: Float[Tensor, "part d"], l0: int, sweeps: int = 10
) -> Float[Tensor, "batch part"]:
    """Nonnegative codes of at most `l0` of the unit-norm `parts` that approximate x in least squares, chosen greedily.

    Nonnegative orthogonal matching pursuit (Bruckstein, Elad & Zibulevsky 2008, IEEE Trans. Inf. Theory 54): `l0`
    times, take the part that the residual has most of, then fit all coefficients again, by `sweeps` of coordinate
    descent from where they were. A part that could only get a negative coefficient stays at zero.
    """
    correlations, gram = x @ parts.T, parts @ parts.T
    codes = torch.zeros_like(correlations)
    # A row for each part that was chosen, of all tokens: steps are then taken along memory.
    support, coefficients = torch.empty(0, len(x), dtype=torch.long, device=x.device), correlations.T[:0]
    for _ in range(l0):
        gains = (correlations - codes @ gram).scatter(1, support.T, -torch.inf)
        support = torch.cat([support, gains.argmax(1)[None]])
        coefficients = torch.cat([coefficients, coefficients.new_zeros(1, len(x))])
        target, overlap = correlations.T.gather(0, support), gram[support[:, None], support[None]]
        for i in list(range(len(support))) * sweeps:
            coefficients[i] = (coefficients[i] + target[i] - (overlap[i] * coefficients).sum(0)).relu()
        codes = codes.scatter(1, support.T, coefficients.T)
    return codes


Dictionary = Clusters | Mixture | PrincipalComponents | NonnegativeParts

DICTIONARIES: dict[str, type[Dictionary]] = {
    "kmeans": Clusters,
    "minibatch_kmeans": Clusters,
    "ward": Clusters,
    "gmm": Mixture,
    "pca": PrincipalComponents,
    "nmf": NonnegativeParts,
}
"""The methods, and what each is used as once it is fitted."""


def load(method: str, tensors: dict[str, Tensor], l0s: tuple[int, int], device: torch.device) -> Dictionary:
    """The dictionary that `fit_clusters` gave as these tensors, on `device`.

    `l0s` are those of the HSAE's levels: of pca's components a token has at most as many as level 1 has active latents,
    of nmf's as many as level 2 (all, where there are fewer). Raises ValueError for an L0 below 1, or another's tensors.
    """
    dictionary = DICTIONARIES[method]
    values: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
    if method in L0_LEVEL:
        values["l0"] = l0s[L0_LEVEL[method] - 1]
        check("l0", values["l0"], "1 or above", values["l0"] >= 1)
    # Ward's tree is no part of its dictionary.
    with understanding(f"the dictionary of {method}"):
        return dictionary(**{field.name: values[field.name] for field in fields(dictionary)})
