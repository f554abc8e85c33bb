import numpy as np
import pytest
from sklearn import metrics

from hsae import partition_indices
from hsae.partition_indices import agreement, ami, contingency, davies_bouldin, half_sample_error, measured, silhouette


def labellings(n: int, seed: int, n_a: int = 9, n_b: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Two labellings that have something in common."""
    rng = np.random.default_rng(seed)
    a = rng.integers(n_a, size=n)
    return a, np.where(rng.random(n) < 0.5, a % n_b, rng.integers(n_b, size=n))


def test_a_contingency_table_by_hand():
    table = contingency(np.array([7, 7, 2, -1, 2]), np.array([0, 1, 1, 1, -1]))
    assert table.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(("n", "n_a", "n_b"), [(300, 9, 4), (60, 40, 30), (20, 2, 2)])
def test_indices_are_scikit_learns(n: int, n_a: int, n_b: int):
    a, b = labellings(n, 0, n_a, n_b)
    table = contingency(a, b)
    found = partition_indices.indices(table, partition_indices.expected_information(table))
    assert found == pytest.approx(
        {
            "ami": metrics.adjusted_mutual_info_score(a, b),
            "ari": metrics.adjusted_rand_score(a, b),
            "v_measure": metrics.v_measure_score(a, b),
        }
    )


def test_latents_without_a_label_do_not_count():
    a, b = labellings(100, 0)
    with_more = np.append(a, [0, -1, 3]), np.append(b, [-1, 2, -1])
    assert ami(*with_more) == pytest.approx(metrics.adjusted_mutual_info_score(a, b))
    assert np.isnan(ami(np.array([0, -1]), np.array([-1, 0])))
    assert np.isnan(ami(np.zeros(5, int), np.zeros(5, int))), "both trivial"


def test_an_agreement_stands_beside_what_permutations_give():
    a, b = labellings(200, 0)
    found = agreement(a, b, 40, np.random.default_rng(0))
    assert found == agreement(a, b, 40, np.random.default_rng(0))
    for name in ("ami", "ari"):
        null = found[name]["permuted"]
        assert isinstance(null, dict)
        assert abs(null["mean"]) < 0.02 < 0.1 < found[name]["value"]  # pyright: ignore[reportOperatorIssue]
    v = found["v_measure"]["permuted"]
    assert isinstance(v, dict)
    assert v["mean"] > 0.03, "V-measure is not corrected for chance"
    permuted = np.random.default_rng(0).permutation(b)
    one = agreement(a, b, 1, np.random.default_rng(0))["ami"]["permuted"]
    assert one == {"mean": None, "sd": None}, "one draw has no spread"
    assert metrics.adjusted_mutual_info_score(a, permuted) == pytest.approx(
        partition_indices.indices(contingency(a, permuted), partition_indices.expected_information(contingency(a, b)))[
            "ami"
        ]
    )


def test_undefined_values_are_none():
    nothing = agreement(np.array([0, -1]), np.array([-1, 0]), 3, np.random.default_rng(0))
    assert nothing == {name: measured(np.nan, permuted=[]) for name in ("ami", "ari", "v_measure")}
    assert measured(np.nan, null=[1.0, np.nan, 3.0]) == {"value": None, "null": {"mean": 2.0, "sd": 2**0.5}}


def test_the_half_sample_error_is_the_spread_over_samples_of_latents():
    samples = [labellings(300, seed, n_a=60) for seed in range(60)]
    spread = np.std([ami(a, b) for a, b in samples], ddof=1)
    errors = [half_sample_error(a, b, 50, np.random.default_rng(0)) for a, b in samples[:20]]
    assert 0.75 < np.mean(errors) / spread < 1.33


def test_the_bootstrap_would_lift_the_ami_of_small_clusters():
    a, b = labellings(300, 0, n_a=100)
    rng = np.random.default_rng(0)
    resampled = [ami(a[rows], b[rows]) for rows in (rng.integers(300, size=300) for _ in range(20))]
    assert np.min(resampled) > ami(a, b) + half_sample_error(a, b, 50, rng)


def test_the_half_sample_error_needs_four_latents():
    labels = np.array([0, 0, 1, -1])
    assert np.isnan(half_sample_error(labels, labels, 5, np.random.default_rng(0)))


def test_silhouette_and_davies_bouldin_are_scikit_learns():
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((40, 5)) * rng.random((40, 1))
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    labels = rng.integers(6, size=40) * 3
    assert davies_bouldin(directions, labels) == pytest.approx(metrics.davies_bouldin_score(unit, labels))
    distances = metrics.pairwise_distances(directions, metric="cosine")
    expected = metrics.silhouette_score(directions, labels, metric="cosine")
    assert silhouette(distances, labels) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [np.zeros(4, int), np.arange(4)])
def test_one_cluster_or_one_per_latent_has_no_shape(labels: np.ndarray):
    directions = np.random.default_rng(0).standard_normal((4, 3))
    assert np.isnan(davies_bouldin(directions, labels))
    assert np.isnan(silhouette(1 - np.eye(4), labels))
