"""Traditional clustering as a dictionary: a token is represented by the centre of its cluster."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import AgglomerativeClustering, KMeans
from torch import Tensor

from hsae.config import check_positive


@dataclass
class ClusteringConfig:
    """Section `clustering_baseline`: tokens to fit on (the first of the shuffled store) and Lloyd iterations."""

    fit_tokens: int
    max_iter: int

    def __post_init__(self) -> None:
        check_positive(self, ["fit_tokens", "max_iter"])


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
    """Fit k-means with as many clusters as level 1 has latents, or Ward's tree over those cut to level 2's width.

    Returns the tensors of `Clusters` and, for ward, the tree. Raises ValueError for too few rows or an unknown method.
    """
    n_leaves = widths[0]
    if len(x) < n_leaves:
        raise ValueError(f"`clustering_baseline.fit_tokens` must be at least {n_leaves}, the clusters; not {len(x)}.")
    if method == "kmeans":
        fitted = kmeans(n_leaves, config.max_iter, seed).fit(x)
        centers = torch.from_numpy(fitted.cluster_centers_)
        return {"leaf_centers": centers, "leaf_labels": torch.arange(n_leaves), "centers": centers.clone()}
    if method == "ward":
        fitted = WardOnCentroids(min(widths[1], n_leaves), n_leaves, config.max_iter, seed).fit(x)
        return {
            "leaf_centers": torch.from_numpy(fitted.leaf_centers_),
            "leaf_labels": torch.from_numpy(fitted.leaf_labels_),
            "centers": torch.from_numpy(fitted.cluster_centers_).float(),
            "children": torch.from_numpy(fitted.children_),
            "distances": torch.from_numpy(fitted.distances_),
        }
    raise ValueError(f"unknown clustering method {method!r}; allowed: kmeans, ward.")


@dataclass(frozen=True)
class Clusters:
    """Fitted clusters: a token belongs to the cluster of its nearest leaf."""

    leaf_centers: Float[Tensor, "leaf d_in"]
    leaf_labels: Int[Tensor, " leaf"]
    centers: Float[Tensor, "cluster d_in"]

    @classmethod
    def load(cls, tensors: dict[str, Tensor], device: torch.device) -> "Clusters":
        """Clusters among the tensors that `fit_clusters` returned."""
        return cls(*(tensors[name].to(device) for name in ("leaf_centers", "leaf_labels", "centers")))

    def reconstruct(
        self, x: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch cluster"], Float[Tensor, "batch d_in"]]:
        """One-hot membership and the cluster's centre."""
        distances = self.leaf_centers.square().sum(1) - 2 * x @ self.leaf_centers.T
        labels = self.leaf_labels[distances.argmin(1)].long()
        return torch.nn.functional.one_hot(labels, len(self.centers)).to(x.dtype), self.centers[labels]
