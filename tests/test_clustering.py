import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from hsae import clustering
from hsae.clustering import ClusteringConfig, WardOnCentroids, fit_clusters, kmeans
from hsae.clusters import (
    DICTIONARIES,
    L0_LEVEL,
    Clusters,
    Dictionary,
    Mixture,
    NonnegativeParts,
    PrincipalComponents,
    load,
    nonnegative_pursuit,
    split_signs,
)
from hsae.streams import Stream

CONFIG = ClusteringConfig(fit_tokens=1000, max_iter=50)
CPU = torch.device("cpu")
HARD = [method for method in DICTIONARIES if method not in L0_LEVEL]
BLOBS = np.array([[0, 0], [0, 10], [10, 0], [10, 10]], dtype=np.float32)


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)


def blobs(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Points around the corners of a square, and the corner of each."""
    rng = np.random.default_rng(1)
    corner = rng.permuted(np.repeat(np.arange(4), n))
    return (BLOBS[corner] + rng.normal(scale=0.3, size=(4 * n, 2))).astype(np.float32), corner


def fit(method: str, x: np.ndarray, widths: tuple[int, int] = (20, 6), seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of a fitted method."""
    return fit_clusters(method, x, widths, CONFIG, Stream(seed, "test"))


def ward(x: np.ndarray) -> WardOnCentroids:
    """Twenty clusters of k-means, merged to six."""
    return WardOnCentroids(6, kmeans(20, 100, Stream(0, "test"))).fit(x)


def fit_and_load(method: str, x: np.ndarray, widths: tuple[int, int] = (20, 6), l0: int = 3) -> Dictionary:
    """A fitted method as a dictionary."""
    return load(method, fit(method, x, widths), (l0, l0), CPU)


def error(dictionary: Dictionary, x: np.ndarray) -> float:
    """Squared error of the reconstruction, summed."""
    return (dictionary.reconstruct(torch.from_numpy(x))[1] - torch.from_numpy(x)).square().sum().item()


def test_reconstruct_gives_the_brute_force_nearest_leafs_cluster(points: np.ndarray):
    clusters = fit_and_load("ward", points)
    assert isinstance(clusters, Clusters)
    x = torch.from_numpy(points[:50]) + 0.1
    codes, x_hat = clusters.reconstruct(x)
    for row, code, reconstruction in zip(x, codes, x_hat, strict=True):
        distances = [(row - leaf).norm().item() for leaf in clusters.leaf_centers]
        label = int(clusters.leaf_labels[distances.index(min(distances))])
        assert code.tolist() == [float(cluster == label) for cluster in range(6)]
        assert torch.equal(reconstruction, clusters.centers[label])


@pytest.mark.parametrize("method", ["kmeans", "minibatch_kmeans"])
def test_k_means_clusters_are_their_own_leaves(points: np.ndarray, method: str):
    tensors = fit(method, points)
    assert torch.equal(tensors["centers"], tensors["leaf_centers"])
    assert tensors["leaf_labels"].tolist() == list(range(20))
    _, x_hat = load(method, tensors, (1, 1), CPU).reconstruct(torch.from_numpy(points))
    nearest = torch.cdist(torch.from_numpy(points), tensors["centers"]).argmin(1)
    assert torch.equal(x_hat, tensors["centers"][nearest])


@pytest.mark.parametrize("method", HARD)
def test_well_separated_blobs_are_found(method: str):
    x, corner = blobs()
    # k-means starts from random rows, so it has two centres a blob; ward joins them.
    widths = (16, 4) if method == "ward" else (4, 4)
    seeds = [0] if method == "ward" else range(20)
    fits = [load(method, fit(method, x, widths, seed), (1, 1), CPU) for seed in seeds]
    # Lloyd's iterations and EM can stop at a local optimum: the best of some seeds is the blobs.
    best = min(fits, key=lambda dictionary: error(dictionary, x))
    codes, x_hat = best.reconstruct(torch.from_numpy(x))
    assert np.linalg.norm(x_hat.numpy() - BLOBS[corner], axis=1).max() < 0.2
    assert len({(row.argmax().item(), blob) for row, blob in zip(codes, corner, strict=True)}) == 4


def test_wards_centres_are_the_means_of_their_members(points: np.ndarray):
    fitted = ward(points)
    assert sorted(set(fitted.labels_)) == list(range(6))
    for cluster in range(6):
        members = points[fitted.labels_ == cluster]
        np.testing.assert_allclose(fitted.cluster_centers_[cluster], members.mean(0), atol=1e-5)


def test_wards_tree_has_one_merge_less_than_leaves_at_growing_distances(points: np.ndarray):
    fitted = ward(points)
    assert fitted.children_.shape == (19, 2)
    # Every node but the root is merged exactly once.
    assert sorted(fitted.children_.ravel()) == list(range(38))
    assert (np.diff(fitted.distances_) >= 0).all()


def test_cutting_wards_tree_gives_the_labels_of_the_leaves(points: np.ndarray):
    fitted = ward(points)
    groups = {leaf: {leaf} for leaf in range(20)}
    for node, (left, right) in enumerate(fitted.children_[: 20 - 6], start=20):
        groups[node] = groups.pop(left) | groups.pop(right)
    labels = {frozenset(np.flatnonzero(fitted.leaf_labels_ == cluster)) for cluster in range(6)}
    assert {frozenset(leaves) for leaves in groups.values()} == labels


@pytest.mark.parametrize("method", DICTIONARIES)
def test_fits_repeat_for_a_seed_and_all_but_pca_differ_for_another(points: np.ndarray, method: str):
    first, again, other = (fit(method, points, seed=seed) for seed in (0, 0, 1))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
    same = all(torch.equal(tensor, other[name]) for name, tensor in first.items())
    assert same == (method == "pca")


def test_wards_leaves_are_the_clusters_of_k_means_and_what_starts_from_k_means_has_its_own(points: np.ndarray):
    tensors = {method: fit(method, points) for method in ("kmeans", "ward", "minibatch_kmeans")}
    assert torch.equal(tensors["ward"]["leaf_centers"], tensors["kmeans"]["leaf_centers"])
    assert not torch.equal(tensors["minibatch_kmeans"]["leaf_centers"], tensors["kmeans"]["leaf_centers"])


def test_everything_that_is_drawn_of_a_fit_has_a_stream_of_its_own(points: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    drawn: dict[str, list[Stream]] = {}

    def noted(n_clusters: int, max_iter: int, stream: Stream) -> KMeans:
        drawn.setdefault(method, []).append(stream)
        return kmeans(n_clusters, max_iter, stream)

    monkeypatch.setattr(clustering, "kmeans", noted)
    for method in ("kmeans", "ward", "gmm", "nmf"):
        fit(method, points)
    leaves = Stream(0, "test/k-means")
    assert drawn["kmeans"] == drawn["ward"] == [leaves]
    assert drawn["gmm"] == [leaves, Stream(0, "test/mixture/start")]
    assert drawn["nmf"] == [leaves, Stream(0, "test/parts/start")]


def test_ward_cannot_have_more_clusters_than_leaves(points: np.ndarray):
    assert len(fit("ward", points, (5, 9))["centers"]) == 5


def test_the_estimator_shows_scikit_learn_its_parameters():
    parameters = WardOnCentroids(3, kmeans(7, 5, Stream(2, "test"))).get_params()
    expected = {"n_clusters": 3, "leaves__n_clusters": 7, "leaves__max_iter": 5}
    assert {name: parameters[name] for name in expected} == expected


def test_k_means_stops_after_the_given_iterations(points: np.ndarray):
    assert kmeans(20, 3, Stream(0, "test")).fit(points).n_iter_ == 3


def test_the_mixtures_tokens_belong_to_their_most_probable_component(points: np.ndarray):
    mixture = fit_and_load("gmm", points)
    assert isinstance(mixture, Mixture)
    oracle = GaussianMixture(6, covariance_type="diag")
    oracle.weights_, oracle.means_ = mixture.weights.double().numpy(), mixture.means.double().numpy()
    oracle.covariances_ = mixture.variances.double().numpy()
    oracle.precisions_cholesky_ = oracle.covariances_**-0.5
    labels = oracle.predict(points)
    nearest = torch.cdist(torch.from_numpy(points), mixture.means).argmin(1).numpy()
    assert (labels != nearest).any(), "else the variances and weights would not be tested"
    codes, x_hat = mixture.reconstruct(torch.from_numpy(points))
    np.testing.assert_array_equal(codes, np.eye(6)[labels])
    assert torch.equal(x_hat, mixture.means[labels])


def test_the_mixtures_broad_component_takes_what_is_nearer_to_a_narrow_one():
    weights = torch.tensor([0.5, 0.5])
    mixture = Mixture(torch.tensor([[0.0], [4.0]]), torch.tensor([[0.01], [4.0]]), weights)
    codes, x_hat = mixture.reconstruct(torch.tensor([[0.1], [1.0], [5.0]]))
    assert codes.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert x_hat.tolist() == [[0], [4], [4]]
    # A component that has hardly any rows loses those that lie between.
    rare = Mixture(torch.tensor([[0.0], [4.0]]), torch.ones(2, 1), torch.tensor([0.99999, 0.00001]))
    assert rare.reconstruct(torch.tensor([[3.0], [6.0]]))[0].tolist() == [[1, 0], [0, 1]]


def test_a_mixture_component_of_equal_rows_does_not_collapse():
    x = np.repeat(BLOBS, 5, axis=0)
    variances = fit("gmm", x, (4, 4))["variances"]
    assert (variances >= 0.999e-3).all()


def test_the_mixture_explains_more_likely_what_em_has_fitted_for_longer(points: np.ndarray):
    def likelihood(max_iter: int) -> float:
        config = ClusteringConfig(fit_tokens=1000, max_iter=max_iter)
        tensors = fit_clusters("gmm", points, (20, 6), config, Stream(0, "test"))
        components = torch.distributions.Independent(
            torch.distributions.Normal(tensors["means"], tensors["variances"].sqrt()), 1
        )
        mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(tensors["weights"]), components)
        return mixture.log_prob(torch.from_numpy(points)).mean().item()

    assert likelihood(5) < likelihood(50)


def test_pca_keeps_the_best_components_of_any_l0(points: np.ndarray):
    pca = fit_and_load("pca", points, l0=2)
    assert isinstance(pca, PrincipalComponents)
    x = torch.from_numpy(points[:40])
    codes, x_hat = pca.reconstruct(x)
    assert (codes < 0).any()
    assert ((codes != 0).sum(1) == 2).all()
    for row, reconstruction in zip(x.double(), x_hat, strict=True):
        errors = []
        for pair in itertools.combinations(range(5), 2):
            basis = pca.components[list(pair)].double().T
            errors.append(torch.linalg.lstsq(basis, (row - pca.mean)[:, None]).solution)
            errors[-1] = (basis @ errors[-1] - (row - pca.mean)[:, None]).square().sum().item()
        assert (row - reconstruction).square().sum().item() == pytest.approx(min(errors), rel=1e-4)


def test_pca_with_as_many_components_as_there_are_is_exact(points: np.ndarray):
    shifted = points + np.arange(5, dtype=np.float32)
    codes, x_hat = fit_and_load("pca", shifted, l0=99).reconstruct(torch.from_numpy(shifted))
    assert codes.shape == (300, 5)
    np.testing.assert_allclose(x_hat, shifted, atol=1e-5)


def test_splitting_signs_gives_nonnegative_channels_whose_difference_is_the_data(points: np.ndarray):
    assert split_signs(torch.tensor([[2.0, -3.0, 0.0]])).tolist() == [[2, 0, 0, 0, 3, 0]]
    positive, negative = split_signs(torch.from_numpy(points)).chunk(2, dim=1)
    assert torch.equal(positive - negative, torch.from_numpy(points))


def random_parts(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nonnegative parts of unit norm, and data that they explain in part."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(n, d, generator=generator) ** 4
    parts /= parts.norm(dim=1, keepdim=True)
    weights = torch.rand(30, n, generator=generator) * (torch.rand(30, n, generator=generator) < 0.3)
    return parts, weights @ parts + 0.3 * torch.rand(30, d, generator=generator)


def naive_pursuit(x: np.ndarray, parts: np.ndarray, l0: int) -> np.ndarray:
    """Nonnegative orthogonal matching pursuit of one token, by an exact solver."""
    support, codes = [], np.zeros(len(parts))
    for _ in range(l0):
        gains = parts @ (x - codes @ parts)
        gains[support] = -np.inf
        support.append(int(gains.argmax()))
        codes = np.zeros(len(parts))
        codes[support] = nnls(parts[support].T, x)[0]
    return codes


@pytest.mark.parametrize("l0", [1, 2, 4, 12])
def test_the_pursuit_is_that_of_a_naive_loop_with_an_exact_solver(l0: int):
    parts, x = random_parts(12, 8)
    codes = nonnegative_pursuit(x, parts, l0, sweeps=2000)
    expected = np.array([naive_pursuit(row, parts.double().numpy(), l0) for row in x.double().numpy()])
    np.testing.assert_allclose(codes, expected, atol=2e-3)
    assert (codes > 0).sum(1).max() <= l0


def test_a_few_sweeps_are_nearly_as_good_as_an_exact_solver():
    parts, x = random_parts(12, 8)
    few, many = ((x - nonnegative_pursuit(x, parts, 4, *n) @ parts).square().sum().item() for n in ((), (2000,)))
    assert few == pytest.approx(many, rel=0.01)


def test_the_pursuit_finds_orthogonal_parts_and_leaves_negative_ones_out():
    x = torch.tensor([[3.0, 0.0, 2.0], [-1.0, 5.0, 1.0], [-1.0, -1.0, -1.0]])
    assert nonnegative_pursuit(x, torch.eye(3), 2).tolist() == [[3, 0, 2], [0, 5, 1], [0, 0, 0]]
    assert nonnegative_pursuit(x, torch.eye(3), 1).tolist() == [[3, 0, 0], [0, 5, 0], [0, 0, 0]]


def test_a_part_that_a_later_one_makes_superfluous_is_given_up():
    # The diagonal part resembles x most; once both axes are there, nothing of it is left.
    parts = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]) / torch.tensor([[2.0**0.5], [1.0], [1.0]])
    codes = nonnegative_pursuit(torch.tensor([[2.0, 1.0]]), parts, 3, sweeps=500)
    torch.testing.assert_close(codes @ parts, torch.tensor([[2.0, 1.0]]))
    assert nonnegative_pursuit(torch.tensor([[2.0, 1.0]]), parts, 1)[0].nonzero().tolist() == [[0]]


def test_nmf_adds_up_nonnegative_unit_parts(points: np.ndarray):
    nmf = fit_and_load("nmf", points, (20, 16))
    assert isinstance(nmf, NonnegativeParts)
    assert nmf.parts.shape == (16, 10)
    assert (nmf.parts >= 0).all()
    torch.testing.assert_close(nmf.parts.norm(dim=1), torch.ones(16))
    codes, x_hat = nmf.reconstruct(torch.from_numpy(points))
    assert (codes >= 0).all()
    assert (codes > 0).sum(1).max() == 3
    signed = nmf.parts[:, :5] - nmf.parts[:, 5:]
    torch.testing.assert_close(x_hat, codes @ signed)


def test_nmf_finds_the_parts_that_the_data_were_made_of():
    generator = torch.Generator().manual_seed(0)
    parts = torch.eye(4).repeat_interleave(2, 1) * torch.tensor([1.0, -1.0]).repeat(4)
    # Rows of one part each, with another now and then.
    weights = torch.eye(4).repeat(100, 1) * (0.5 + torch.rand(400, 1, generator=generator))
    weights += (torch.rand(400, 4, generator=generator) < 0.1) * torch.rand(400, 4, generator=generator)
    x = (weights @ parts).numpy()
    # As k-means, it depends on the rows that it starts from.
    config = ClusteringConfig(fit_tokens=400, max_iter=1000)
    fits = [load("nmf", fit_clusters("nmf", x, (4, 4), config, Stream(seed, "test")), (4, 4), CPU) for seed in range(5)]
    errors = [error(fitted, x) / np.square(x).sum() for fitted in fits]
    assert min(errors) < 0.01


def test_nmf_fits_better_the_longer_it_is_fitted(points: np.ndarray):
    errors = []
    for max_iter in (5, 250):
        config = ClusteringConfig(fit_tokens=1000, max_iter=max_iter)
        errors.append(
            error(load("nmf", fit_clusters("nmf", points, (20, 8), config, Stream(0, "test")), (8, 8), CPU), points)
        )
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("method", L0_LEVEL)
def test_more_components_reconstruct_better_and_too_many_mean_all(points: np.ndarray, method: str):
    dictionaries = [fit_and_load(method, points, l0=l0) for l0 in (1, 3, 5, 99)]
    errors = [error(dictionary, points) for dictionary in dictionaries]
    assert errors[0] > errors[1] > errors[2]
    counts = [(d.reconstruct(torch.from_numpy(points))[0] != 0).sum(1).max().item() for d in dictionaries]
    assert counts[:3] == [1, 3, 5]
    n_components = {"pca": 5, "nmf": 6}[method]
    assert error(fit_and_load(method, points, l0=n_components), points) == errors[3]


@pytest.mark.parametrize(("method", "l0"), [("pca", 4), ("nmf", 2)])
def test_components_are_as_many_as_their_levels_l0(points: np.ndarray, method: str, l0: int):
    codes, _ = load(method, fit(method, points), (4, 2), CPU).reconstruct(torch.from_numpy(points))
    assert (codes != 0).sum(1).max() == l0


@pytest.mark.parametrize("method", HARD)
def test_clusterings_have_one_active_latent_a_token_whatever_l0_is(points: np.ndarray, method: str):
    tensors = fit(method, points)
    codes, x_hat = load(method, tensors, (1, 1), CPU).reconstruct(torch.from_numpy(points))
    assert (codes.sort(1).values == torch.tensor([0.0] * (codes.shape[1] - 1) + [1.0])).all()
    assert torch.equal(x_hat, load(method, tensors, (4, 2), CPU).reconstruct(torch.from_numpy(points))[1])


@pytest.mark.parametrize(
    ("method", "latents"),
    [("kmeans", 128), ("minibatch_kmeans", 128), ("ward", 32), ("gmm", 32), ("pca", 16), ("nmf", 32)],
)
def test_every_method_fits_the_size_of_a_level_in_single_precision_and_one_batch_of_many(method: str, latents: int):
    generator = np.random.default_rng(0)
    x = (generator.standard_t(4, size=(512, 16)) @ generator.normal(size=(16, 16)) / 6).astype(np.float32)
    tensors = fit_clusters(method, x, (128, 32), ClusteringConfig(fit_tokens=512, max_iter=5), Stream(0, "test"))
    dictionary = load(method, tensors, (20, 20), CPU)
    codes, x_hat = dictionary.reconstruct(torch.from_numpy(x))
    assert codes.shape == (512, latents)
    assert codes.dtype == x_hat.dtype == torch.float32
    assert codes.isfinite().all()
    assert error(dictionary, x) < 0.7 * np.square(x).sum()
    parts = [dictionary.reconstruct(chunk)[0] for chunk in torch.from_numpy(x).split(100)]
    torch.testing.assert_close(torch.cat(parts), codes, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", DICTIONARIES)
def test_fewer_tokens_than_clusters_are_refused(points: np.ndarray, method: str):
    expected = r"`clustering_baseline.fit_tokens` must be at least 20, the most clusters of any method; not 19"
    with pytest.raises(ValueError, match=expected):
        fit(method, points[:19])


def test_as_many_tokens_as_clusters_are_enough(points: np.ndarray):
    for method in DICTIONARIES:
        fit(method, points[:20])


def test_an_unknown_method_is_refused_with_those_there_are(points: np.ndarray):
    expected = "unknown clustering method 'spectral'; allowed: kmeans, minibatch_kmeans, ward, gmm, pca, nmf"
    with pytest.raises(ValueError, match=expected):
        fit("spectral", points)


def test_an_l0_of_nothing_is_refused(points: np.ndarray):
    with pytest.raises(ValueError, match="`l0` must be 1 or above; not 0"):
        fit_and_load("pca", points, l0=0)


@pytest.mark.parametrize("method", ["gmm", "nmf"])
def test_slow_methods_make_a_fifth_of_the_passes_and_at_least_one(points: np.ndarray, method: str):
    def tensors(max_iter: int) -> dict[str, torch.Tensor]:
        return fit_clusters(
            method, points, (20, 6), ClusteringConfig(fit_tokens=1000, max_iter=max_iter), Stream(0, "test")
        )

    once, five, nine, ten = (tensors(max_iter) for max_iter in (1, 5, 9, 10))
    for name, tensor in once.items():
        assert torch.equal(tensor, five[name])
        assert torch.equal(tensor, nine[name])
        assert not torch.equal(tensor, ten[name])


@pytest.mark.parametrize("values", [(0, 1), (1, 0)])
def test_settings_out_of_range_are_refused_by_name(values: tuple[int, int]):
    name = ("fit_tokens", "max_iter")[values.index(0)]
    with pytest.raises(ValueError, match=f"`{name}` must be above 0; not 0"):
        ClusteringConfig(*values)
