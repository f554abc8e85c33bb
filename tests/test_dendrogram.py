from itertools import combinations

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet, fcluster
from scipy.spatial.distance import pdist, squareform

from hsae.dendrogram import Dendrogram, cosine_distances, similarity_distances


def on_a_line(*points: float) -> Dendrogram:
    return Dendrogram.average(squareform(pdist(np.array(points)[:, None])))


def random_tree(n: int, seed: int, groups: np.ndarray | None = None) -> Dendrogram:
    rng = np.random.default_rng(seed)
    return Dendrogram.average(cosine_distances(rng.standard_normal((n, 3))), groups)


@pytest.mark.parametrize(
    ("classes", "purity"),
    [
        ([0, 0, 1, 1], 1),  # every class is a subtree
        ([0, 1, 0, 1], 1 / 2),  # both pairs meet at the root
        ([0, 0, 0, 1], (1 + 3 / 4 + 3 / 4) / 3),
        ([0, 0, -1, 1], 1),
        ([0, 1, 0, -1], 2 / 3),  # the last leaf is cut off
        ([0, 0, 0, 0], 1),
    ],
)
def test_dendrogram_purity_by_hand(classes: list[int], purity: float):
    assert on_a_line(0, 1, 10, 11).purity(np.array(classes)) == pytest.approx(purity)


def test_purity_needs_a_pair():
    assert np.isnan(on_a_line(0, 1, 10, 11).purity(np.array([0, 1, 2, -1])))
    assert np.isnan(on_a_line(0, 1, 10, 11).purity(np.full(4, -1)))


def test_the_leaves_of_a_group_meet_at_once():
    # Groups 0 (leaves 0, 1, 2) and 1 (leaves 3, 4). Pairs of class 0: (0, 1) meets among three leaves, two of its own.
    tree = Dendrogram.average(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 0, 0, 1, 1]))
    assert tree.parents().tolist() == [5, 5, 5, 6, 6, 7, 7, -1]
    assert tree.purity(np.array([0, 0, 1, 1, 1])) == pytest.approx((2 / 3 + 1 + 3 / 5 + 3 / 5) / 4)


def naive_purity(tree: Dendrogram, classes: np.ndarray) -> float:
    """Walks up from every pair of one class to their first common ancestor, and looks at all leaves below it."""
    parents = tree.parents().tolist()

    def ancestors(node: int) -> list[int]:
        return [node, *(ancestors(parents[node]) if parents[node] >= 0 else [])]

    above = [ancestors(leaf) for leaf in range(len(classes))]
    shares = []
    for a, b in combinations(np.flatnonzero(classes >= 0), 2):
        if classes[a] == classes[b]:
            meeting = next(node for node in above[a] if node in above[b])
            below = [leaf for leaf in range(len(classes)) if meeting in above[leaf] and classes[leaf] >= 0]
            shares.append(np.mean(classes[below] == classes[a]))
    return float(np.mean(shares))


@pytest.mark.parametrize("seed", range(5))
def test_purity_is_what_a_naive_walk_over_all_pairs_finds(seed: int):
    rng = np.random.default_rng(seed)
    classes = rng.integers(-1, 4, 30)
    groups = np.append(np.arange(8), rng.integers(8, size=22))
    for tree in (random_tree(30, seed), random_tree(8, seed, groups)):
        assert tree.purity(classes) == pytest.approx(naive_purity(tree, classes))


@pytest.mark.parametrize("n_clusters", [1, 2, 5, 29, 30])
def test_a_cut_is_scipys(n_clusters: int):
    tree = random_tree(30, 0)
    expected = fcluster(tree.merges, n_clusters, "maxclust")
    found = tree.cut(n_clusters)
    assert len(np.unique(found)) == n_clusters == found.max() + 1
    assert len(np.unique(np.stack([found, expected]), axis=1).T) == n_clusters, "the same partition"


def test_a_cut_gives_its_number_of_clusters_also_where_heights_are_equal():
    tree = on_a_line(0, 1, 10, 11, 20, 21)
    assert [len(np.unique(tree.cut(n))) for n in (1, 2, 3, 4, 5, 6)] == [1, 2, 3, 4, 5, 6]


def test_a_cut_never_divides_a_group():
    tree = random_tree(4, 0, np.array([0, 1, 2, 3, 0, 1, 1, 2]))
    assert tree.cut(100).tolist() == tree.groups.tolist()
    for labels in (tree.cut(2), tree.cut(3)):
        assert all(len(np.unique(labels[tree.groups == group])) == 1 for group in range(4))


def test_the_cophenetic_correlation_is_scipys():
    tree = random_tree(20, 0)
    expected = cophenet(tree.merges, squareform(tree.distances, checks=False))[0]
    assert tree.cophenetic_correlation() == pytest.approx(expected)
    assert np.isnan(Dendrogram.average(1 - np.eye(3)).cophenetic_correlation())


def test_a_shuffled_tree_has_the_same_distances_between_other_pairs():
    tree = random_tree(20, 0)
    shuffled = tree.shuffled(np.random.default_rng(0))
    upper = np.triu_indices(20, 1)
    np.testing.assert_array_equal(np.sort(shuffled.distances[upper]), np.sort(tree.distances[upper]))
    assert not np.array_equal(shuffled.distances, tree.distances)
    assert shuffled.cophenetic_correlation() < tree.cophenetic_correlation()


def test_cosine_distances_by_hand():
    distances = cosine_distances(np.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(distances, [[0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 1], [1, 1, 1, 0]])


def test_distances_are_symmetric_and_not_negative_whatever_the_rounding():
    distances = similarity_distances(np.array([[1.0, 1.0 + 1e-9], [1.0 - 1e-12, 1.0]]))
    assert distances.tolist() == [[0, 0], [0, 0]]


def test_one_group_is_no_tree():
    with pytest.raises(ValueError, match="`the groups of a tree` must be at least 2; not 1"):
        Dendrogram.average(np.zeros((1, 1)), np.zeros(3, int))
