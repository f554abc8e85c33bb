import numpy as np
import pytest
import torch

from hsae.clustering import ClusteringConfig, Clusters, WardOnCentroids, fit_clusters, kmeans

CONFIG = ClusteringConfig(fit_tokens=1000, max_iter=50)
BLOBS = np.array([[0, 0], [0, 10], [10, 0], [10, 10]], dtype=np.float32)


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)


def blobs(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Points around the corners of a square, and the corner of each."""
    rng = np.random.default_rng(1)
    corner = rng.permuted(np.repeat(np.arange(4), n))
    return (BLOBS[corner] + rng.normal(scale=0.3, size=(4 * n, 2))).astype(np.float32), corner


def test_reconstruct_gives_the_brute_force_nearest_leafs_cluster(points: np.ndarray):
    tensors = fit_clusters("ward", points, (20, 6), CONFIG, seed=0)
    clusters = Clusters.load(tensors, torch.device("cpu"))
    x = torch.from_numpy(points[:50]) + 0.1
    codes, x_hat = clusters.reconstruct(x)
    for row, code, reconstruction in zip(x, codes, x_hat, strict=True):
        distances = [(row - leaf).norm().item() for leaf in clusters.leaf_centers]
        label = int(clusters.leaf_labels[distances.index(min(distances))])
        assert code.tolist() == [float(cluster == label) for cluster in range(6)]
        assert torch.equal(reconstruction, clusters.centers[label])


def test_k_means_clusters_are_their_own_leaves(points: np.ndarray):
    tensors = fit_clusters("kmeans", points, (20, 6), CONFIG, seed=0)
    assert torch.equal(tensors["centers"], tensors["leaf_centers"])
    assert tensors["leaf_labels"].tolist() == list(range(20))
    _, x_hat = Clusters.load(tensors, torch.device("cpu")).reconstruct(torch.from_numpy(points))
    nearest = torch.cdist(torch.from_numpy(points), tensors["centers"]).argmin(1)
    assert torch.equal(x_hat, tensors["centers"][nearest])


@pytest.mark.parametrize("method", ["kmeans", "ward"])
def test_well_separated_blobs_are_found(method: str):
    x, corner = blobs()
    # k-means starts from random rows, so it has two centres a blob; ward joins them.
    widths = (4, 4) if method == "kmeans" else (16, 4)
    seeds = range(20) if method == "kmeans" else [0]
    fits = [fit_clusters(method, x, widths, CONFIG, seed)["centers"].numpy() for seed in seeds]
    # Lloyd's iterations can stop at a local optimum: the best of some seeds is the blobs.
    errors = [np.linalg.norm(BLOBS[:, None] - centers, axis=2).min(1).max() for centers in fits]
    assert min(errors) < 0.2
    assert len(np.unique(corner)) == 4


def test_wards_centres_are_the_means_of_their_members(points: np.ndarray):
    fitted = WardOnCentroids(n_clusters=6, n_leaves=20).fit(points)
    assert sorted(set(fitted.labels_)) == list(range(6))
    for cluster in range(6):
        members = points[fitted.labels_ == cluster]
        np.testing.assert_allclose(fitted.cluster_centers_[cluster], members.mean(0), atol=1e-5)


def test_wards_tree_has_one_merge_less_than_leaves_at_growing_distances(points: np.ndarray):
    fitted = WardOnCentroids(n_clusters=6, n_leaves=20).fit(points)
    assert fitted.children_.shape == (19, 2)
    # Every node but the root is merged exactly once.
    assert sorted(fitted.children_.ravel()) == list(range(38))
    assert (np.diff(fitted.distances_) >= 0).all()


def test_cutting_wards_tree_gives_the_labels_of_the_leaves(points: np.ndarray):
    fitted = WardOnCentroids(n_clusters=6, n_leaves=20).fit(points)
    groups = {leaf: {leaf} for leaf in range(20)}
    for node, (left, right) in enumerate(fitted.children_[: 20 - 6], start=20):
        groups[node] = groups.pop(left) | groups.pop(right)
    labels = {frozenset(np.flatnonzero(fitted.leaf_labels_ == cluster)) for cluster in range(6)}
    assert {frozenset(leaves) for leaves in groups.values()} == labels


@pytest.mark.parametrize("method", ["kmeans", "ward"])
def test_clusterings_repeat_for_a_seed_and_differ_for_another(points: np.ndarray, method: str):
    first, again, other = (fit_clusters(method, points, (20, 6), CONFIG, seed) for seed in (0, 0, 1))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
    assert not torch.equal(first["leaf_centers"], other["leaf_centers"])


def test_ward_cannot_have_more_clusters_than_leaves(points: np.ndarray):
    assert len(fit_clusters("ward", points, (5, 9), CONFIG, seed=0)["centers"]) == 5


def test_the_estimator_shows_scikit_learn_its_parameters():
    estimator = WardOnCentroids(n_clusters=3, n_leaves=7, max_iter=5, random_state=2)
    assert estimator.get_params() == {"n_clusters": 3, "n_leaves": 7, "max_iter": 5, "random_state": 2}


def test_k_means_stops_after_the_given_iterations(points: np.ndarray):
    assert kmeans(20, 3, 0).fit(points).n_iter_ == 3


@pytest.mark.parametrize("method", ["kmeans", "ward"])
def test_fewer_tokens_than_clusters_are_refused(points: np.ndarray, method: str):
    expected = r"`clustering_baseline.fit_tokens` must be at least 20, the clusters; not 19"
    with pytest.raises(ValueError, match=expected):
        fit_clusters(method, points[:19], (20, 6), CONFIG, seed=0)


def test_an_unknown_method_is_refused_with_those_there_are(points: np.ndarray):
    with pytest.raises(ValueError, match="unknown clustering method 'spectral'; allowed: kmeans, ward"):
        fit_clusters("spectral", points, (20, 6), CONFIG, seed=0)


@pytest.mark.parametrize("values", [(0, 1), (1, 0)])
def test_settings_out_of_range_are_refused_by_name(values: tuple[int, int]):
    name = ("fit_tokens", "max_iter")[values.index(0)]
    with pytest.raises(ValueError, match=f"`{name}` must be above 0; not 0"):
        ClusteringConfig(*values)
