"""Fitting of clusterings and matrix factorisations, with scikit-learn; what they give is in clusters.py."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import AgglomerativeClustering, KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA, MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from hsae.clusters import DICTIONARIES, split_signs
from hsae.config import check_positive
from hsae.streams import Stream


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

    Ward itself is quadratic in the number of points; over the centroids of `leaves`, a k-means, it gives a tree that
    can be cut at `n_clusters` and compared with the HSAE's hierarchy. Learned: `leaf_centers_` (leaf, d),
    `leaf_labels_` (the cluster of each leaf), `cluster_centers_` (n_clusters, d; the means of the clusters' points),
    `children_` and `distances_` (the tree, as in scikit-learn's AgglomerativeClustering).
    """

    def __init__(self, n_clusters: int, leaves: KMeans):
        self.n_clusters = n_clusters
        self.leaves = leaves

    def fit(self, X: np.ndarray, y: None = None) -> "WardOnCentroids":  # noqa: ARG002 (scikit-learn's signature)
        """Cluster the rows of `X` finely, then merge the centroids."""
        leaves = clustered(self.leaves, X)
        tree = AgglomerativeClustering(self.n_clusters, linkage="ward", compute_distances=True)
        self.leaf_centers_ = leaves.cluster_centers_
        self.leaf_labels_ = tree.fit_predict(self.leaf_centers_)
        self.children_, self.distances_ = tree.children_, tree.distances_
        labels = np.asarray(leaves.labels_)
        counts = np.bincount(labels, minlength=len(leaves.cluster_centers_))
        members = np.eye(self.n_clusters)[self.leaf_labels_] * counts[:, None]
        self.cluster_centers_ = members.T @ self.leaf_centers_ / members.sum(0)[:, None]
        self.labels_ = self.leaf_labels_[labels]
        return self


def kmeans(n_clusters: int, max_iter: int, stream: Stream) -> KMeans:
    """Lloyd's k-means from random rows: k-means++ takes longer than the clustering itself at 1,024 clusters."""
    return KMeans(n_clusters, init="random", n_init=1, max_iter=max_iter, random_state=stream.number)  # pyright: ignore[reportArgumentType]


def clustered(start: KMeans, x: np.ndarray) -> KMeans:
    """The rows of `x` by a k-means that is not changed: whoever starts from it comes to the same clusters."""
    return KMeans(**start.get_params()).fit(x)


def fit_clusters(
    method: str, x: np.ndarray, widths: tuple[int, int], config: ClusteringConfig, stream: Stream
) -> dict[str, Tensor]:
    """Fit one of `DICTIONARIES` on normalised activations (row, d_in), as large as an HSAE level; for `clusters.load`.

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
    leaves = kmeans(n1, config.max_iter, stream.of("k-means"))  # for both: Ward's tree is over the same clusters
    match method:
        case "kmeans":
            tensors = _own_leaves(clustered(leaves, x))
        case "minibatch_kmeans":
            tensors = _own_leaves(_minibatch_kmeans(n1, config.max_iter, stream.of("mini-batches")).fit(x))
        case "ward":
            tensors = _ward(WardOnCentroids(min(n2, n1), leaves).fit(x))
        case "gmm":
            tensors = _gmm(x, n2, config.slow_passes, stream.of("mixture"))
        case "pca":
            fitted = PCA().fit(x)
            tensors = {"mean": torch.from_numpy(fitted.mean_), "components": torch.from_numpy(fitted.components_)}
        case "nmf":
            tensors = _nmf(x, n2, config.slow_passes, stream.of("parts"))
        case _:
            raise ValueError(f"unknown clustering method {method!r}; allowed: {', '.join(DICTIONARIES)}.")
    return tensors


def _minibatch_kmeans(n_clusters: int, max_iter: int, stream: Stream) -> MiniBatchKMeans:
    settings: dict[str, Any] = {"init": "random", "n_init": 1, "max_iter": max_iter}
    return MiniBatchKMeans(n_clusters, random_state=stream.number, **settings)


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


def _gmm(x: np.ndarray, n_components: int, passes: int, stream: Stream) -> dict[str, Tensor]:
    """EM from the mixture that k-means amounts to: equal weights, and its mean squared error as every variance."""
    start = kmeans(n_components, passes, stream.of("start")).fit(x)
    variance = max(np.square(x - start.cluster_centers_[start.labels_]).mean(), 1e-6)
    mixture = GaussianMixture(
        n_components,
        covariance_type="diag",
        # Added to variances, which are 1 on average over all rows: a component of few rows must not collapse.
        reg_covar=1e-3,
        max_iter=passes,
        random_state=stream.of("EM").number,  # asked for, and not used: all that it could draw is given
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


def _nmf(x: np.ndarray, n_components: int, passes: int, stream: Stream) -> dict[str, Tensor]:
    """Multiplicative updates from k-means centres (Wild, Curry & Dougherty 2004, Pattern Recognit. 37).

    From random parts, as many passes leave three times the error. The parts are scaled to unit norm.
    """
    channels = split_signs(torch.from_numpy(x)).numpy()
    start = kmeans(n_components, passes, stream.of("start")).fit(channels)
    # Multiplied, a zero would stay one.
    W = np.full((len(x), n_components), 1e-2, x.dtype)
    W[np.arange(len(x)), start.labels_] = 1
    H = np.maximum(start.cluster_centers_, 1e-3)
    # The passes are a budget: no early stop, and no warning where they are used up.
    endless: dict[str, Any] = {"tol": 0, "max_no_improvement": None}
    nmf = MiniBatchNMF(n_components, init="custom", batch_size=4096, max_iter=passes, **endless)  # pyright: ignore[reportArgumentType]
    parts = torch.from_numpy(nmf.fit(channels, W=W, H=H).components_)
    return {"parts": parts / parts.norm(dim=1, keepdim=True).clamp(min=1e-8)}
