"""Trees over latents: agglomerative clustering, and how well a tree keeps classes together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from hsae.config import check


@dataclass(frozen=True)
class Dendrogram:
    """A binary tree over groups of leaves; a group of several leaves is one node with all of them as its children."""

    groups: Int[ndarray, " leaf"]
    """The group of each leaf, 0 to n - 1; every leaf its own in an ordinary tree."""
    distances: Float[ndarray, "group group"]
    """What the tree was built from."""
    merges: Float[ndarray, "group_minus_1 4"]
    """The merges of groups, as SciPy's `linkage` gives them."""

    @classmethod
    def average(
        cls, distances: Float[ndarray, "group group"], groups: Int[ndarray, " leaf"] | None = None
    ) -> "Dendrogram":
        """Agglomerative clustering by average linkage (UPGMA, Sokal & Michener 1958). Raises ValueError for one group.

        Without `groups`, every leaf is its own.
        """
        check("the groups of a tree", len(distances), "at least 2", len(distances) >= 2)
        leaves = np.arange(len(distances)) if groups is None else groups
        return cls(leaves, distances, linkage(squareform(distances, checks=False), "average"))

    def shuffled(self, rng: np.random.Generator) -> "Dendrogram":
        """The tree of the same distances, dealt to other pairs."""
        dealt = squareform(rng.permutation(squareform(self.distances, checks=False)))
        return Dendrogram.average(dealt, self.groups)

    def cut(self, n_clusters: int) -> Int[ndarray, " leaf"]:
        """The cluster of each leaf after all merges but the last `n_clusters` - 1; a group is never cut."""
        n_groups = len(self.distances)
        done = self.merges[: max(n_groups - n_clusters, 0), :2].astype(int)
        merged_into = n_groups + np.arange(len(done)).repeat(2)
        edges = coo_array((np.ones(2 * len(done)), (done.ravel(), merged_into)), shape=(2 * n_groups, 2 * n_groups))
        # SciPy's fcluster gives fewer clusters where heights are equal, and its cut_tree is slow.
        labels = connected_components(edges, directed=False)[1][:n_groups]
        return np.unique(labels, return_inverse=True)[1][self.groups]

    def cophenetic_correlation(self) -> float:
        """Correlation of the distances with the heights at which the tree joins two groups (Sokal & Rohlf 1962)."""
        heights = cophenet(self.merges)
        distances = squareform(self.distances, checks=False)
        return float(np.corrcoef(heights, distances)[0, 1]) if np.ptp(heights) > 0 < np.ptp(distances) else np.nan

    def parents(self) -> Int[ndarray, " node"]:
        """The parent of every node: leaves come first, then groups, then merges in their order; -1 for the root."""
        n_leaves, n_groups = len(self.groups), len(self.distances)
        merged_into = np.full(n_groups + len(self.merges), -1)
        merged_into[self.merges[:, :2].astype(int)] = n_leaves + n_groups + np.arange(len(self.merges))[:, None]
        return np.concatenate([n_leaves + self.groups, merged_into])

    def purity(self, classes: Int[ndarray, " leaf"]) -> float:
        """Dendrogram purity (Heller & Ghahramani 2005, ICML); leaves whose class is -1 are cut off first.

        The mean, over all pairs of leaves of one class, of that class's share among the leaves below the pair's lowest
        common ancestor; 1 if every class is a subtree; nan without such a pair. Exact: the pairs that meet at a node
        are counted from the classes of its children.
        """
        n_leaves, parents = len(classes), self.parents()
        counts = np.zeros((len(parents), max(int(classes.max(initial=0)), 0) + 1))
        counted = np.flatnonzero(classes >= 0)
        counts[counted, classes[counted]] = 1
        squares = np.zeros_like(counts)
        for node, parent in enumerate(parents[:-1]):
            counts[parent] += counts[node]
            squares[parent] += counts[node] ** 2
        inner = counts[n_leaves:]
        pairs = (inner**2 - squares[n_leaves:]) / 2
        shares = inner / np.maximum(inner.sum(1, keepdims=True), 1)
        return float((pairs * shares).sum() / pairs.sum()) if pairs.sum() else np.nan


def cosine_distances(rows: Float[ndarray, "n d"]) -> Float[ndarray, "n n"]:
    """1 - cosine of every two rows: symmetric to the bit, 0 on the diagonal, never below 0."""
    unit = rows.astype(float) / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
    return similarity_distances(unit @ unit.T)


def similarity_distances(similarity: Float[ndarray, "n n"]) -> Float[ndarray, "n n"]:
    """1 - similarity, made symmetric, 0 on the diagonal, never below 0."""
    distances = (1 - (similarity + similarity.T) / 2).clip(min=0)
    np.fill_diagonal(distances, 0)
    return distances
